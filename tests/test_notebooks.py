"""Notebooks: committed with their outputs, small, and the same answer when they are run again.

The slow test runs them all: ``pytest -m slow tests/test_notebooks.py`` (it needs the extra ``dev``).
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?")
LIMIT = 400_000  # bytes of one notebook


def cells(path: Path) -> list[dict[str, Any]]:
    notebook: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return notebook


def answer(last: Any) -> str:
    """The text of the last cell's last output."""
    text = last["outputs"][-1]["data"]["text/markdown"]
    return text if isinstance(text, str) else "".join(text)


def test_all_are_there() -> None:
    assert NAMES and [name[:2] for name in NAMES] == [f"{i:02d}" for i in range(1, len(NAMES) + 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_question_first_and_an_answer_last_that_is_computed(path: Path) -> None:
    first, *_, last = cells(path)
    assert first["cell_type"] == "markdown"
    assert "?" in "".join(first["source"])
    assert last["cell_type"] == "code"
    told = answer(last)
    assert told.startswith("**") and told.endswith(".")
    assert len(NUMBER.findall(told)) >= 3
    assert "{" in "".join(last["source"])  # its numbers come from the data


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_committed_and_clean(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < LIMIT
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) >= len(code) - 2
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            written = "".join(output.get("data", {}).get("text/plain", [])) + "".join(output.get("text", []))
            assert not re.search(r"/(?:home|root|tmp|usr|work|Users)/", written)


@pytest.mark.slow
def test_run_again_they_give_the_same_answers_within_five_minutes() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    began = time.monotonic()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        before = answer(notebook.cells[-1])
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
        after = answer(notebook.cells[-1])
        assert NUMBER.sub("#", after) == NUMBER.sub("#", before), path.name
        for a, b in zip(NUMBER.findall(after), NUMBER.findall(before), strict=True):
            x, y = (float(v.replace(",", "").replace("−", "-")) for v in (a, b))
            assert x == pytest.approx(y, rel=0.01, abs=0.11), (path.name, before, after)
    assert time.monotonic() - began < 300
