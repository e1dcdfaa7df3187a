"""Runs a file's tests again in Triton's interpreter, for files that compare kernels there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the subprocess that test_in_the_interpreter starts")


def run_in_the_interpreter(file: str, which: str) -> None:
    """Triton decides on import whether it interprets, so the comparisons run in a process of their own."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    words = ["-q", "-x", "-p", "no:cacheprovider", "-m", f"{which} and not gpu", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
