"""The self-test runs on a CPU too, finds nothing wrong there, and sees what is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import selftest


def test_self_test_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--device", "cpu", "--out", str(tmp_path), "--seconds", "60"]) == 0
    document = json.loads((tmp_path / "selftest.json").read_text())
    assert document["failures"] == [] and len(document["errors"]) > 100
    assert {row["what"] for row in document["timing"]} >= {"verify", "draft", "commit"}
    assert "0 failures" in capsys.readouterr().out


def test_a_difference_and_an_exception_are_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = selftest.Report(tmp_path)
    report.check("right", 1e-7, 1e-5)
    report.check("wrong", float("nan"), 1e-5)
    report.part("broken", lambda: 1 / 0)  # type: ignore[arg-type]
    assert [failure.split(":")[0] for failure in report.failures] == ["wrong", "broken"]
    assert json.loads((tmp_path / "selftest.json").read_text())["failures"] == report.failures
