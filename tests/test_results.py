"""RESULTS.md and what README takes from it are as docs/results.py makes them: no number in them is typed."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield importlib.import_module("results")
    for name in ("results", "draw_tree", "shown"):
        sys.modules.pop(name, None)


def test_what_is_quick_to_make_is_as_it_is_made_now(results: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check", "--quick"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_all_is_as_it_is_made_now(results: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"]) == 0, capsys.readouterr().out


def test_what_differs_is_said(
    results: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "SECTIONS", (("The drafter", lambda: "It is good.", True),))
    assert results.main(["--check", "--quick"]) == 1
    assert "RESULTS.md: The drafter" in capsys.readouterr().out


def test_changes_are_signed_and_never_minus_nought(results: Any) -> None:
    told = [results.share(v) for v in (0.0123, -0.0346, 0.0, -0.0001)]
    assert [one.replace("\u00a0", " ") for one in told] == ["+1.2 %", "−3.5 %", "0.0 %", "0.0 %"]
    assert [results.share(v, 0).replace("\u00a0", " ") for v in (0.127, -0.004)] == ["+13 %", "0 %"]
    assert results.between(-0.01, 0.02).replace("\u00a0", " ") == "(−1.0 to +2.0 %)"


def test_every_figure_measured_once_has_its_conditions(results: Any) -> None:
    sections = set(re.findall(r'elsewhere\("(\w+)"\)', (ROOT / "docs" / "results.py").read_text()))
    for one in [*results.MEASURED["entries"], *results.MEASURED["tables"]]:
        assert one["section"] in sections, one
        assert one["conditions"] and re.fullmatch(r"2026-\d\d-\d\d", one["date"]), one
        assert all(len(row) == len(one["columns"]) for row in one.get("rows", ())), one
    assert json.loads((ROOT / "docs" / "measured.json").read_text())["entries"] == results.MEASURED["entries"]


def test_the_readme_is_short_and_what_it_names_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 10_000
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []
    files = re.findall(r"(?<![\w/-])(?:traces|reference|notebooks|docs)/[\w./-]*[\w/]", text)
    assert [name for name in files if not (ROOT / name).exists() and name != "traces/mine"] == []


def test_the_tree_is_small_text_with_an_alternative() -> None:
    drawn = (ROOT / "docs" / "tree.svg").read_bytes()
    assert len(drawn) <= 12 << 10
    assert b"<title>" in drawn and drawn.count(b"<rect") >= 16
