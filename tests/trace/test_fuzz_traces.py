"""Thousands of damaged and forged traces: the same answer, or one line; see fuzz_traces.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHUNK = 500


def fuzzed(folder: Path, seed: int, first: int, last: int, kind: str) -> dict[str, int]:
    """Run cases in a process of their own; how many were refused, and how many gave the same."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}
    words = [
        sys.executable,
        str(ROOT / "tests" / "trace" / "fuzz_traces.py"),
        str(folder),
        *map(str, (seed, first, last)),
        kind,
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, told, done.stderr[-3000:])  # a crash, or a hang that no signal ends
    assert len(told) == 1, told[:-1]
    counts: dict[str, int] = told[0]["counts"]
    assert set(counts) == {"same", "refused"} and sum(counts.values()) == last - first
    return counts


@pytest.mark.parametrize("kind", ["rows", "lattice"])
def test_damaged_traces_give_the_same_or_one_line(tmp_path: Path, kind: str) -> None:
    counts = fuzzed(tmp_path, 0, 0, 100, kind)
    assert counts["refused"] > 50 and counts["same"] > 5  # both endings are seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "lattice"])
@pytest.mark.parametrize("first", range(0, 10_000, CHUNK))
def test_10_000_damaged_traces(tmp_path: Path, first: int, kind: str) -> None:
    counts = fuzzed(tmp_path, 1, first, first + CHUNK, kind)
    assert counts["refused"] > CHUNK // 2 and counts["same"] > CHUNK // 20
