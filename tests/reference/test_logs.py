"""Logs of answers in all forms that are read, and recordings of them: what the target wrote itself is recorded as `record` does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import pyarrow as pa
import pyarrow.parquet as pq

from ddsim.errors import DdsimError
from ddsim.trace.trace import Trace, open_trace
from ddsim_reference.model.checkpoint import load_drafter, load_target, save_drafter, save_head, save_target
from ddsim_reference.model.logs import Given, choose_answers, encode_given, read_log
from ddsim_reference.record import record
from tests.reference import tiny, tiny_models

USER = {"role": "user", "content": "word1 word2"}
ASSISTANT = {"role": "assistant", "content": "word3"}
MORE = {"role": "user", "content": "word4"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(found: list[Given]) -> list[tuple[Any, Any, bool]]:
    return [(given.prompt, given.answer, given.ended) for given in found]


FORMS: dict[str, tuple[dict[str, Any], list[tuple[Any, Any, bool]]]] = {
    "prompt": ({"prompt": "word1 word2", "answer": "word3"}, [([USER], "word3", True)]),
    "response": ({"prompt": "word1 word2", "response": "word3"}, [([USER], "word3", True)]),
    "messages of both": ({"prompt": [USER], "completion": [ASSISTANT]}, [([USER], "word3", True)]),
    "ids": ({"prompt": [1, 2], "answer": [3, 4]}, [([1, 2], [3, 4], True)]),
    "question": ({"question": "word1 word2", "answer": "word3"}, [([USER], "word3", True)]),
    "Alpaca": ({"instruction": "word1 word2", "input": "", "output": "word3"}, [([USER], "word3", True)]),
    "ids of the answer": ({"messages": [USER], "answer": [3, 4]}, [([USER], [3, 4], True)]),
    "messages": ({"messages": [USER, ASSISTANT]}, [([USER], "word3", True)]),
    "turns": (
        {"messages": [USER, ASSISTANT, MORE, ASSISTANT]},
        [([USER], "word3", True), ([USER, ASSISTANT, MORE], "word3", True)],
    ),
    "turns and an answer": (
        {"messages": [USER, ASSISTANT, MORE], "answer": "word5"},
        [([USER], "word3", True), ([USER, ASSISTANT, MORE], "word5", True)],
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "word1 word2"}, {"from": "gpt", "value": "word3"}]},
        [([USER], "word3", True)],
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "word1 "}, {"type": "text", "text": "word2"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "word3"}]},
            ]
        },
        [([USER], "word3", True)],
    ),
    "RequestOutput": (
        {
            "request_id": "0", "prompt": "raw", "prompt_token_ids": [5, 6], "finished": True,
            "outputs": [{"index": 0, "text": "x", "token_ids": [7, 8], "finish_reason": "length"}],
        },
        [([5, 6], [7, 8], False)],
    ),
    "RequestOutput of text": ({"prompt": "raw", "outputs": [{"text": "word3"}]}, [("raw", "word3", True)]),
    "several outputs": (
        {"prompt_token_ids": [5], "outputs": [{"token_ids": [7]}, {"token_ids": [8]}]},
        [([5], [7], True), ([5], [8], True)],
    ),
    "completions": (
        {"request": {"prompt": "raw", "temperature": 0}, "response": {"choices": [{"text": "word3", "finish_reason": "stop"}]}},
        [("raw", "word3", True)],
    ),
    "chat completions": (
        {"messages": [USER], "choices": [{"message": ASSISTANT, "finish_reason": "length"}]},
        [([USER], "word3", False)],
    ),
    "token ids of a server": (
        {
            "request": {"messages": [USER]},
            "response": {"prompt_token_ids": [5], "choices": [{"message": ASSISTANT, "token_ids": [7, 8]}]},
        },
        [([5], [7, 8], True)],
    ),
    "a batch file": (
        {
            "custom_id": "a", "request": {"body": {"messages": [USER]}},
            "response": {"status_code": 200, "body": {"choices": [{"message": ASSISTANT}]}},
        },
        [([USER], "word3", True)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, kind: str, tmp_path: Path) -> None:
    row, wanted = FORMS[form]
    path = tmp_path / f"log.{kind}"
    if kind == "jsonl":
        write(path, row)
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    assert texts(read_log(path)) == wanted


def test_names_workloads_and_temperatures(tmp_path: Path) -> None:
    one = {"prompt": "a", "answer": "b"}
    path = write(
        tmp_path / "chat.log.jsonl", one, one | {"id": 7, "workload": "w", "temperature": 1.0}, FORMS["turns"][0],
        one | {"request": {"temperature": 0.5}},
    )  # fmt: skip
    found = [(g.workload, g.id, g.temperature) for g in read_log(path, 0.25)]
    assert found == [
        ("chat", "1", 0.25), ("w", "7", 1.0), ("chat", "3/1", 0.25), ("chat", "3/2", 0.25), ("chat", "4", 0.5),
    ]  # fmt: skip
    assert [g.id for g in choose_answers([path], limit=2)] == ["1", "7", "3/1"]
    assert read_log(path)[1].where == f"{path}, line 2"
    other = write(tmp_path / "w.jsonl", one, one | {"id": "7", "temperature": 1})
    with pytest.raises(DdsimError) as caught:
        choose_answers([path, other])
    assert (
        str(caught.value)
        == f'{other}, line 2: id "7" is already used in {path}, line 2; make it unique in its workload'
    )


BAD = [
    ("", "holds no answers"),
    ("Hello\n", "line 1: not JSON"),
    ('{"prompt": "a"}', "line 1: has no answer; it needs one of answer, response, completion"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "line 1: has no answer"),
    ('{"prompt_token_ids": [1]}', "line 1: has no answer"),
    ('{"answer": "a"}', "line 1: has no prompt"),
    ('{"outputs": [{"token_ids": [1]}]}', "line 1: has no prompt"),
    ('{"prompt": "a", "answer": ""}', "line 1: the answer is empty"),
    ('{"prompt_token_ids": [1], "outputs": [{"token_ids": [1]}, {"token_ids": []}]}', "line 1: answer 2 is empty"),
    ('\n{"prompt": 3, "answer": "a"}', 'line 2: "prompt" is 3, but must be a list of objects'),
    ('{"prompt": "a", "answer": 3}', 'line 1: "answer" is 3, but must be text or a list of token ids'),
    ('{"prompt": "a", "answer": [1, "b"]}', "must be text or a list of token ids"),
    ('{"prompt": "a", "outputs": {}}', '"outputs" is {}, but must be a list of objects'),
    ('{"prompt": "a", "outputs": [{"index": 0}]}', '"outputs" holds neither token_ids nor text'),
    ('{"prompt_token_ids": "a", "answer": "b"}', '"prompt_token_ids" is "a", but must be a list of token ids'),
    ('{"prompt_token_ids": [1], "outputs": [{"token_ids": "ab"}]}', "must be a list of token ids"),
    ('{"messages": [{"role": "user"}], "answer": "b"}', '"messages" 1 needs "role" and "content", both text'),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', "begins with the assistant's message"),
    ('{"prompt": "a", "answer": "b", "temperature": "hot"}', '"temperature" is "hot", but must be a number'),
    ('{"prompt": "a", "answer": "b", "id": []}', '"id" is [], but must be text'),
    ('{"prompt": "\\ud800", "answer": "b"}', "half a surrogate pair"),
    ("[1]", "line 1: not a JSON object but a list"),
]


@pytest.mark.parametrize(("content", "says"), BAD)
def test_bad_rows_are_named(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DdsimError) as caught:
        read_log(path)
    assert str(caught.value).startswith(str(path)) and says in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("no")
    with pytest.raises(DdsimError, match=r"log\.parquet: not readable as Parquet"):
        read_log(tmp_path / "log.parquet")
    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": ["c", None]}), tmp_path / "log.parquet")
    with pytest.raises(DdsimError, match=r"log\.parquet, row 2: has no answer"):
        read_log(tmp_path / "log.parquet")
    with pytest.raises(DdsimError, match="nowhere: no such file"):
        read_log(tmp_path / "nowhere")


def test_folders_and_data_sets_hold_answers_too(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": [1, 2 + n], "answer": [3, 4, 5]} for n in range(4)]
    folder = tmp_path / "log"
    folder.mkdir()
    write(folder / "a.jsonl", *rows[:2])
    write(folder / "b.jsonl", *rows[2:])
    found = read_log(folder)
    assert [(g.id, g.workload, g.prompt) for g in found] == [(f"{n + 1}", "log", [1, 2 + n]) for n in range(4)]
    monkeypatch.setattr("ddsim_reference.model.rows._reach", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: {"test": rows}))  # type: ignore[arg-type]
    assert [(g.id, g.workload) for g in choose_answers(["org/name"], 3)] == [(f"{n + 1}", "name") for n in range(3)]
    one, other = (open_trace(record(**job | {"out": tmp_path / "o"}, answers=[source])) for source in (folder, folder))
    assert one.fingerprint == other.fingerprint and len(one.meta["provenance"]["answers_sha256"]) == 64


def same(one: Trace, other: Trace) -> None:
    """Everything but where it comes from."""
    assert [
        (i.workload, i.prompt_id, i.temperature, i.prompt_tokens, i.digest, i.prompt_digest) for i in one.sequences
    ] == [(i.workload, i.prompt_id, i.temperature, i.prompt_tokens, i.digest, i.prompt_digest) for i in other.sequences]
    (a,), (b,) = one.blocks(), other.blocks()
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.context, b.context)
    for name, column in a.proposal.candidates().items():
        assert np.array_equal(column, b.proposal.candidates()[name]), name


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    config, weights = tiny.target("llama", eos_token_ids=(7, 8))
    shape, draft_weights = tiny.drafter(config)
    save_target(tmp_path / "target", config, weights)
    save_drafter(tmp_path / "drafter", shape, draft_weights, {})
    return {
        "target": str(tmp_path / "target"), "drafter": str(tmp_path / "drafter"), "max_budget": 20, "batch": 3,
        "out": tmp_path / "given",
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("head", [False, True])
def test_the_targets_own_answers_are_recorded_as_record_does(
    job: dict[str, Any], temperature: float, head: bool, tmp_path: Path
) -> None:
    """As an engine would log them: token ids of prompts and answers."""
    if head:
        save_head(job["drafter"], *tiny.head(load_drafter(job["drafter"])[0]), {})
        job |= {"lattice_width": 8}
    asked = tiny.prompts(7, 61, seed=4)
    prompts = [{"id": f"p{i}", "workload": "toy", "prompt": f"prompt {i}"} for i in range(7)]
    file = write(tmp_path / "prompts.jsonl", *prompts)
    encoded = {("toy", f"p{i}"): ids for i, ids in enumerate(asked)}
    own = open_trace(
        record(
            **job | {"out": tmp_path / "own"}, prompts=[str(file)], encoded=encoded, max_new_tokens=30,
            temperature=temperature, seed=5,
        )
    )  # fmt: skip
    (block,) = own.blocks()
    rows = [
        {
            "request_id": f"p{i}", "workload": "toy", "prompt_token_ids": asked[i],
            "outputs": [{"token_ids": block.tokens[block.starts[i] : block.starts[i + 1]].tolist()}],
        }
        for i in range(7)
    ]  # fmt: skip
    log = write(tmp_path / "log.jsonl", *rows)
    told: list[tuple[int, int]] = []
    given = open_trace(
        record(**job, answers=[log], temperature=temperature, progress=lambda done, of: told.append((done, of)))
    )
    same(own, given)
    assert told == [(i, 7) for i in range(1, 8)]
    provenance = given.meta["provenance"]
    assert (
        provenance["text"] == "given"
        and provenance["answers"] == ["log.jsonl"]
        and len(provenance["answers_sha256"]) == 64
    )
    assert not {"seed", "max_new_tokens", "batch"} & provenance.keys()


def test_a_recording_of_given_answers_goes_on(job: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": ids, "answer": [*ids, 9, 10, 11]} for ids in tiny.prompts(7, 61, seed=4)]
    log = write(tmp_path / "log.jsonl", *rows)

    def pull_the_plug(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(**job, answers=[log], progress=pull_the_plug)
    assert 3 <= len(open_trace(job["out"]).sequences) < 7
    again = open_trace(record(**job, answers=[log]))
    assert again.fingerprint == open_trace(record(**job | {"out": tmp_path / "whole"}, answers=[log])).fingerprint
    write(log, *rows[:6])
    with pytest.raises(DdsimError, match="recorded with answers_sha256 "):
        record(**job, answers=[log])
    cut = open_trace(record(**job | {"out": tmp_path / "cut"}, answers=[log], max_new_tokens=2))
    assert [info.length for info in cut.sequences] == [2] * 6 and cut.meta["provenance"]["max_new_tokens"] == 2


def test_text_is_what_the_template_and_the_tokenizer_make_of_it(tmp_path: Path) -> None:
    """One recording of conversations is the recording of their token ids; turns see all that stands before them."""
    target, drafter = tiny_models.save(tmp_path)
    document = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(document | {"eos_token_id": [7]}))
    turns = {"messages": [USER, ASSISTANT, MORE, {"role": "assistant", "content": "word5 word6"}], "id": "a"}
    cut = {"messages": [USER], "choices": [{"message": ASSISTANT, "finish_reason": "length"}], "id": "b"}
    words = {name: i for i, name in enumerate(["user", "assistant", "?", *(f"word{i}" for i in range(57))])}
    first = [words[w] for w in ["user", "word1", "word2", "assistant"]]
    second = [*first, *(words[w] for w in ["word3", "user", "word4", "assistant"])]
    answers = [[words["word3"], 7], [words["word5"], words["word6"], 7]]
    config, _, tokenizer = load_target(str(target))
    log = write(tmp_path / "log.jsonl", turns, cut)
    wanted = [(first, answers[0]), (second, answers[1]), (first, answers[0][:1])]
    assert encode_given(tokenizer, read_log(log), config) == wanted
    assert encode_given(tokenizer, read_log(log), config, 2)[1] == (second, answers[1][:2])
    ids = write(
        tmp_path / "ids.jsonl",
        *(
            {"prompt": p, "answer": a, "id": n, "workload": "log"}
            for (p, a), n in zip(wanted, ("a/1", "a/2", "b"), strict=True)
        ),
    )
    options: dict[str, Any] = {"target": str(target), "drafter": str(drafter), "max_budget": 10}
    same(
        open_trace(record(**options, answers=[log], out=tmp_path / "one")),
        open_trace(record(**options, answers=[ids], out=tmp_path / "other")),
    )


@pytest.mark.parametrize(
    ("row", "changes", "says"),
    [
        (
            {"prompt": [1], "answer": [2, 61]},
            {},
            "line 2: token 61 of its answer lies outside the target's vocabulary of 61",
        ),
        ({"prompt": [-1], "answer": [2]}, {}, "line 2: token -1 of its prompt lies outside"),
        ({"prompt": [1] * 512, "answer": [2]}, {}, "line 2: its 512 and 1 tokens exceed the 512 positions"),
        ({"prompt": "a", "answer": [2]}, {}, "line 2: is text, but the target has no tokenizer; give token ids"),
        ({"prompt": [], "answer": [2]}, {}, "line 2: its prompt has no tokens"),
        ({"prompt": [1]}, {}, "line 2: has no answer"),
        ({"prompt": [1], "answer": [2], "id": "1"}, {}, 'line 2: id "1" is already used in '),
        ({"prompt": [1], "answer": [2]}, {"prompts": ["chat"]}, "not both"),
        ({"prompt": [1], "answer": [2]}, {"max_new_tokens": 1}, "answers of at least 2 tokens"),
        ({"prompt": [1], "answer": [2]}, {"limit": 0}, "limit 0: must be at least 1"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    job: dict[str, Any], row: dict[str, Any], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    log = write(tmp_path / "log.jsonl", {"prompt": [1, 2], "answer": [3, 4]}, row)
    with pytest.raises(DdsimError) as caught:
        record(**job | changes, answers=[log])
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not job["out"].exists()
