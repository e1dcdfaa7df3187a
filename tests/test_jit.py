"""The cache of compiled kernels: what is damaged, of another version or can't be written is compiled, never trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from ddsim import jit
from ddsim.jit import njit
from ddsim.policy import choose, engine_rules, joint, memory, walk
from ddsim.replay import serving
from ddsim.trace import rounds
from ddsim.tree import checked, masks
from ddsim.tree import kernels as tree_kernels

ROOT = Path(__file__).parent.parent

BELOW = """
from ddsim.jit import njit

STEP = 1

@njit(cache=True, nogil=True)
def below(x):
    return x + STEP
"""
ABOVE = """
from below import below
from ddsim.jit import njit

@njit(cache=True, nogil=True)
def above(x):
    return 10 * below(x)
"""

Run = Callable[..., list[tuple[int, bool]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Call kernels of a module in a process of their own: for each its answer to 4, and whether it was compiled."""

    def run(module: str, *names: str, **environment: str) -> list[tuple[int, bool]]:
        script = f"import {module} as m\nfor n in {names}: k = getattr(m, n); print(k(4), len(k.stats.cache_misses))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=os.environ
            | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
            | environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [(int(answer), misses != "0") for answer, misses in map(str.split, done.stdout.splitlines())]

    return run


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.nb?"))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "its last byte lost": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "random": lambda content: np.random.default_rng(0).bytes(len(content)),
    "one bit flipped": lambda content: bytes([*content[:900], content[900] ^ 4, *content[901:]]),
    "another's": lambda content: b"\x80\x04N.",  # a pickle, of None
}


def test_a_damaged_cache_is_compiled_again(tmp_path: Path, run: Run) -> None:
    names = [f"k{i}" for i in range(len(DAMAGES) + 1)]
    kernels = [f"@njit(cache=True)\ndef k{i}(x): return x + {i}" for i in range(len(names))]
    (tmp_path / "kernels.py").write_text("\n".join(["from ddsim.jit import njit", *kernels]))
    answers = [4 + i for i in range(len(names))]
    assert run("kernels", *names) == [(answer, True) for answer in answers]
    files = kept(tmp_path)
    assert len(files) == len(names)
    for path, damage in zip(files, DAMAGES.values(), strict=False):  # the last stays whole
        path.write_bytes(damage(path.read_bytes()))
    again = run("kernels", *names)
    assert again == [(answer, answer != answers[-1]) for answer in answers]
    assert run("kernels", *names) == [(answer, False) for answer in answers]
    assert kept(tmp_path) == files


def test_a_kernel_is_compiled_again_where_one_it_calls_is_another(tmp_path: Path, run: Run) -> None:
    (tmp_path / "below.py").write_text(BELOW)
    (tmp_path / "above.py").write_text(ABOVE)
    assert run("above", "above") == [(50, True)]
    (tmp_path / "below.py").write_text(BELOW.replace("STEP = 1", "STEP = 2"))
    assert run("above", "above") == [(60, True)]
    (tmp_path / "below.py").write_text(BELOW)
    assert run("above", "above") == [(50, False)]  # what was compiled for it is still there


def test_without_a_folder_to_write_kernels_still_run(tmp_path: Path, run: Run) -> None:
    (tmp_path / "below.py").write_text(BELOW)
    (tmp_path / "__pycache__").touch()  # where the folder would be made
    nowhere = str(tmp_path / "below.py" / "folder")
    for _ in range(2):
        assert run("below", "below", NUMBA_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere) == [(5, True)]


def test_a_full_disk_costs_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    @njit(cache=True)
    def twice(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(jit._CacheFiles, "_save_data", full)
    assert twice(4) == 8


def test_every_kernel_has_this_cache() -> None:
    for module in (tree_kernels, checked, masks, rounds, choose, walk, memory, engine_rules, joint, serving):
        kernels = [value for value in vars(module).values() if isinstance(value, Dispatcher)]
        assert kernels
        assert all(isinstance(kernel._cache, jit._Cache) for kernel in kernels)


@pytest.mark.slow
def test_commands_survive_a_damaged_cache(tmp_path: Path) -> None:
    """The whole program, every file of its cache damaged at once."""
    from tests import made_up

    made_up.saved(tmp_path / "trace")
    made_up.profile().save(tmp_path / "profile.json")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "ddsim",
        "plan",
        "trace",
        "--profile",
        "profile.json",
        "--bootstrap",
        "20",
        "--json",
    ]
    answers, files = [], dict[Path, bytes]()
    for kind in (None, "empty", "cut short", "random", "one bit flipped"):
        for path, content in files.items():
            path.write_bytes(DAMAGES[str(kind)](content))
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers.append((done.stdout, done.stderr))  # a warning of the profile, each time the same
        files = files or {path: path.read_bytes() for path in kept(tmp_path)}
    assert len(files) > 20
    assert len(set(answers)) == 1
