"""Notebooks: a question first, its answer last, no number typed into a sentence, and outputs that running them again gives.

The slow test runs them all: ``pytest -m slow tests/test_notebooks.py`` (it needs the extra ``dev``).
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import notebooks

FOLDER = notebooks.FOLDER
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?")
LIMIT, TOGETHER = 110_000, 465_000  # bytes of one notebook, and of all
SECONDS = (
    400  # of processor time, for all: some 120 where nothing else runs, 180 beside mypy and a browser on two cores
)
VARIES = "varies"  # tag of a cell that times this machine: its numbers aren't compared

# What may hold a digit, or a number in words, in a sentence that nobody computed: names, and what is so by definition.
NAMED = re.compile(
    r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)|(?m:^# \d\.)|\bnotebooks? \d|\b95 %|\bK = 0\b|\b1 \+ Φ\*|[Qq]wen3-[48][Bb]|SmolLM2(?:-135M)?|[HA][128]00\b"
)
TYPED = re.compile(
    r"\d|\b(?:dozens?|hundreds?|thousands?|millions?|tenths?|half|twice|double|threefold)\b", re.IGNORECASE
)


def cells(path: Path) -> list[dict[str, Any]]:
    notebook: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return notebook


def source(cell: Any) -> str:
    return "".join(cell["source"])


def text_of(output: Any) -> str:
    """What an output says: of a table the text of its cells, of a figure only that there is one."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    data = output["data"]
    for kind in ("text/markdown", "text/html", "image/png", "text/plain"):
        if kind in data:
            said = data[kind] if isinstance(data[kind], str) else "".join(data[kind])
            said = re.sub(r"<style.*?</style>", "", said, flags=re.DOTALL)
            return kind if kind == "image/png" else " ".join(re.sub(r"<[^>]*>", " ", said).split())
    raise AssertionError(f"an output of {sorted(data)}")


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`*])", paragraph.strip())


def written(cell: Any) -> Iterator[str]:
    """The words of a cell's sentences: a Markdown cell's; of code those of f-strings and of what Markdown() gets, not what is computed."""
    if cell["cell_type"] == "markdown":
        yield source(cell)
        return
    lines = [line for line in source(cell).splitlines() if not line.startswith(("%", "!"))]
    nodes = list(ast.walk(ast.parse("\n".join(lines))))
    formats = {id(node.format_spec) for node in nodes if isinstance(node, ast.FormattedValue)}
    for node in nodes:
        said = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Markdown"
        if said or (isinstance(node, ast.JoinedStr) and id(node) not in formats):
            yield from _words(node)


def _words(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.FormattedValue):  # computed; its format isn't said
        yield from _words(node.value)
    elif not isinstance(node, ast.Subscript):  # a key isn't said
        for child in ast.iter_child_nodes(node):
            yield from _words(child)


def typed(text: str) -> list[str]:
    """Numbers in a text that are neither part of a name nor so by definition."""
    left = NAMED.sub("", text)
    return [left[max(0, m.start() - 30) : m.end() + 20] for m in TYPED.finditer(left)]


def same(one: str, other: str) -> bool:
    """Whether two outputs differ at most in digits that an interval's draws or another processor may change."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    values = ([float(v.replace(",", "").replace("−", "-").rstrip(".")) for v in pair] for pair in pairs)
    return all(a == pytest.approx(b, rel=0.01, abs=0.11) for a, b in values)


def spent() -> float:
    """Seconds of processor time that kernels which have ended took."""
    times = os.times()
    return times.children_user + times.children_system


def test_all_are_there_and_small() -> None:
    assert NAMES and [name[:2] for name in NAMES] == [f"{i:02d}" for i in range(1, len(NAMES) + 1)]
    sizes = {path.stem: path.stat().st_size for path in NOTEBOOKS}
    assert max(sizes.values()) < LIMIT, sizes
    assert sum(sizes.values()) < TOGETHER, sizes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_question_and_two_sentences_first(path: Path) -> None:
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    title, said = source(first).split("\n\n")
    assert re.fullmatch(rf"# {int(path.stem[:2])}\. [A-Z].*\?", title)
    assert len(sentences(said)) == 2, sentences(said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_answer_last_in_one_sentence_that_is_computed(path: Path) -> None:
    *_, heading, last = cells(path)
    assert source(heading) == "## Answer"
    assert last["cell_type"] == "code"
    (output,) = last["outputs"]
    told = text_of(output)
    assert re.fullmatch(r"\*\*[^*]+\.\*\*", told.replace("Φ*", "Φ")), told
    assert len(sentences(told)) == 1, sentences(told)
    assert len(NUMBER.findall(told)) >= 3
    assert len(told) <= 520


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_no_number_is_typed_into_a_sentence(path: Path) -> None:
    found = {i: found for i, cell in enumerate(cells(path)) for text in written(cell) if (found := typed(text))}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "a few dozen candidates",
        "it takes 14 ms",
        "half of them",
        "K = 3",
        "95 tokens",
        "Qwen3-8B in 6.1 ms",
        "# 1. Why 3?",
    ],
)
def test_a_typed_number_is_seen(text: str) -> None:
    assert typed(text)


@pytest.mark.parametrize(
    "text", ["# 1. Why?", "notebook 3", "the 95 % interval", "K = 0 on an H100", "`n = 3`", "$g_1 = 2$", "[x](a1)"]
)
def test_a_name_or_a_definition_may_hold_one(text: str) -> None:
    assert not typed(text)


def test_what_code_says_is_read_without_what_it_computes() -> None:
    said = 'x = 3\nMarkdown(f"of {a[1]:.2f} and {b[\'K3\']} there are {c:,} or 7" + ", ".join(f"{v}5" for v in d))'
    assert {w for w in written({"cell_type": "code", "source": said}) if typed(w)} == {" or 7", "5"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_saved_and_clean(path: Path) -> None:
    depth = 1
    for cell in cells(path):
        for marks in re.findall(r"(?m)^(#+) ", source(cell) if cell["cell_type"] == "markdown" else ""):
            assert len(marks) <= depth + 1, source(cell)
            depth = len(marks)
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code), "every cell shows something"
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            assert output["output_type"] != "stream" or set(output) == {"output_type", "name", "text"}
            said = text_of(output)
            assert "Warning" not in said, said
            assert not re.search(r"/(?:home|root|tmp|usr|work|Users)/", said)


@pytest.mark.slow
def test_run_again_they_say_the_same_in_little_time() -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    began = spent()
    for path in NOTEBOOKS:
        nbformat.validate(nbformat.read(path, as_version=4))
        for cell, before in zip(notebooks.clean(notebooks.execute(path)).cells, cells(path), strict=True):
            if cell.cell_type != "code":
                continue
            assert all(output.get("name") != "stderr" for output in cell.outputs), (path.name, cell.outputs)
            now, then = [text_of(o) for o in cell.outputs], [text_of(o) for o in before["outputs"]]
            assert len(now) == len(then), (path.name, now, then)
            if VARIES not in cell.metadata.get("tags", []):
                for one, other in zip(now, then, strict=True):
                    assert same(one, other), (path.name, one, other)
    assert spent() - began < SECONDS
