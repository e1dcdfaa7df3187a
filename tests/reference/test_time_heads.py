"""The tool that times heads on a GPU, on a tiny pair: it checks, decodes and writes what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ddsim_reference.model.checkpoint import load_drafter, save_head
from tests.reference import tiny, tiny_models

sys.path.insert(0, str(Path(__file__).parents[2] / "reference" / "tools"))
import time_heads


def test_a_tiny_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, drafter = tiny_models.save(tmp_path)
    save_head(drafter, *tiny.head(load_drafter(str(drafter))[0], reach=1), {})
    prompts = [[w, str(i), ids] for w in ("humaneval", "chat") for i, ids in enumerate(tiny.prompts(2, 61))]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    options = [
        "--target",
        target,
        "--drafter",
        drafter,
        "--prompts",
        tmp_path / "prompts.json",
        "-o",
        tmp_path / "out.json",
    ]
    options += ["--max-new-tokens", 8, "--budgets", "3,15", "--turns", 1, "--repeats", 2, "--context", 16]
    assert time_heads.main([str(option) for option in options]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["check"]["largest_difference_nats"] < 0.02
    assert document["summary"].keys() == {"all", "humaneval", "chat"}
    assert {"none/AR", "none/DDTree(3)", "head/DDTree(15)", "head/DFlash"} < document["summary"]["all"].keys()
    assert all(row["same_text"] and row["tokens"] == 7 for row in document["answers"])
    assert len(document["answers"]) == 4 * 7
    assert "best over best" in capsys.readouterr().out
