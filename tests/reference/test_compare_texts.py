"""The tool that compares greedy texts, on a tiny pair: it decodes alone and in batches, and counts what differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ddsim_reference.model.checkpoint import load_drafter, save_head
from tests.reference import tiny, tiny_models

sys.path.insert(0, str(Path(__file__).parents[2] / "reference" / "tools"))
import compare_texts


def test_a_tiny_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target, drafter = tiny_models.save(tmp_path)
    save_head(drafter, *tiny.head(load_drafter(str(drafter))[0]), {})
    prompts = [[w, str(i), ids] for w in ("humaneval", "chat") for i, ids in enumerate(tiny.prompts(3, 61))]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    words = ["--target", target, "--drafter", drafter, "--encoded", tmp_path / "prompts.json", "--limit", 2]
    words += ["--budget", 5, "--batch", 3, "--max-new-tokens", 8, "--device", "cpu", "-o", tmp_path / "out.json"]
    assert compare_texts.main([str(word) for word in words]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["texts"]
    assert [(row["policy"], row["batch"]) for row in rows] == [
        ("AR", 1), ("chain", 1), ("tree of 5", 1), ("RoundRatio", 1), ("AR", 3), ("tree of 5", 3), ("chain", 3),
    ]  # fmt: skip
    assert all(row["answers"] == row["same_text"] == 4 for row in rows)
    assert all(row["same_rounds"] == 4 for row in rows if row["batch"] > 1)
    assert "0 of 28 answers differ" in capsys.readouterr().out
    decode = compare_texts.decode

    def forgetful(engine, prompts, policy, *rest, **options):  # type: ignore[no-untyped-def]
        found = decode(engine, prompts, policy, *rest, **options)
        if policy.name == "DFlash":
            found[0].tokens[-1] += 1
        return found

    monkeypatch.setattr(compare_texts, "decode", forgetful)
    assert compare_texts.main([str(word) for word in words]) == 1
    assert "2 of 28 answers differ" in capsys.readouterr().out
