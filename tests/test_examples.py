"""The documents' examples run, print what the documents tell, and spell their options right (see examples.py)."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise
from pathlib import Path

import pytest

import ddsim
from tests import examples

DOCUMENTS = examples.documents()
NAMES = [str(path.relative_to(examples.ROOT)) for path in DOCUMENTS]
INLINE = re.compile(r"`ddsim ([a-z-]+(?: [^`]*)?)`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_examples_print_what_is_told(path: Path) -> None:
    """``python tests/examples.py --write`` renews what is told."""
    _, wrong = examples.checked(path)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_options_are_spelt_right(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block in examples.blocks(text):
        if block.kind in ("bash", "console"):
            body = block.body
            if block.kind == "console":
                body = "".join(re.findall(r"^\$ (?:[^\n]*\\\n)*[^\n]*\n", body, re.M))
            for words in examples.commands(body):
                examples.parsed(words)
    prose = examples.BLOCK.sub("", text)
    for said in INLINE.findall(prose):
        for words in examples.commands(f"ddsim {' '.join(said.split())}"):
            assert not examples.misspelt(words), said


@pytest.mark.slow
def test_commands_run() -> None:
    found = {
        tuple(words): path
        for path in DOCUMENTS
        for block in examples.blocks(path.read_text(encoding="utf-8"))
        if block.kind == "bash" and block.runs
        for words in examples.commands(block.body)
        if examples.here(words)
    }
    with examples.folder():
        for words, path in found.items():
            assert examples.ran(list(words)), f"{path}: {words} prints nothing"


def test_the_readme_shows_an_answer() -> None:
    """A person who reads no further has seen tokens/s."""
    found = examples.blocks((examples.ROOT / "README.md").read_text(encoding="utf-8"))
    told = [block.body for before, block in pairwise(found) if block.kind == "text" and before.kind == "python"]
    assert any("tokens/s" in body for body in told)


def test_every_public_object_has_an_example() -> None:
    """Which runs with the other examples in docstrings; what a function makes may be shown there."""
    for home in (ddsim, ddsim.plot):
        for name in home.__all__:
            thing = getattr(home, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                said = thing.__doc__ or ""
                assert ">>> " in said or re.search(r"made by `\w+`", said), name


def test_what_is_wrong_is_seen_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "ROOT", tmp_path)
    for name in examples.LINKED:
        (tmp_path / name).mkdir()
    document = tmp_path / "a.md"
    document.write_text(
        "```python\nx = 1\n```\n\n```python\nprint(x)\nprint('b ')\n```\n\n```text\n2\n```\n\n```console\n$ ddsim --version\n```\n"
        "Words.\n\n```text\nleft alone\n```\n\n<!-- not run -->\n```python\nprint(2)\n```\n\n```text\n3\n```\n"
    )
    text, wrong = examples.checked(document)
    assert len(wrong) == 2 and "a.md:11" in wrong[0]
    assert (
        "```text\n1\nb\n```" in text
        and "$ ddsim --version\nddsim 0.1.0\n```" in text
        and "left alone" in text
        and "text\n3\n" in text
    )
    document.write_text(text)
    assert examples.checked(document) == (text, [])
    document.write_text("```python\ndef test_it():\n    assert False\n```\n")
    with pytest.raises(AssertionError):
        examples.checked(document)


def test_a_misspelt_option_is_seen() -> None:
    trace, profile = "traces/marginals", "traces/profiles/qwen3-8b-cost-h100.json"
    assert examples.here(["plan", trace, "-p", profile]) and not examples.here(["plan", trace, "-p", "mine.json"])
    assert not examples.here(["bench"])
    for words in (
        ["plan", trace, "-p", profile, "--plt", "a.png"],
        ["plan", trace],
        ["plam", trace],
        ["plan", trace, "-p", profile, "--seed", "x"],
    ):
        with pytest.raises(Exception, match=r"No such|Missing|valid"):
            examples.parsed(words)
    assert examples.misspelt(["plan", "--plt", "-p", "--json", "-o"]) == ["--plt", "-o"] and not examples.misspelt(
        ["plan"]
    )
