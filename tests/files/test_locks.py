"""One writer a folder: real processes that meet in one, are killed in it, and follow one another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddsim.errors import DdsimError
from ddsim.files import locks
from ddsim.files.locks import LOCK_FILE, FolderLock
from ddsim.trace.trace import open_trace
from ddsim.trace.writer import TraceWriter

SHAPE = {"horizon": 1, "max_budget": 2, "vocab_size": 9, "provenance": {}}
SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from ddsim.errors import DdsimError
from ddsim.trace.writer import TraceWriter
folder, names, when = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
print("imported", flush=True)
sys.stdin.readline()
rows = {"tokens": [3, 5], "token_ids": [[[5, 7]]], "logprobs": np.log([[[0.5, 0.25]]])}
try:
    with TraceWriter(folder, horizon=1, max_budget=2, vocab_size=9, provenance={}) as writer:
        for name in names:
            writer.add_sequence(prompt_id=name, workload="w", temperature=0.0, prompt_tokens=4, **rows)
            writer.flush()
            time.sleep(0.02)
        print("written", flush=True)
        if when == "hold":
            sys.stdin.readline()
except DdsimError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def writer(folder: Path, names: str, when: str = "go") -> subprocess.Popen[str]:
    """A process that is about to write sequences, and does so at a line on its standard input."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), names, when], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "imported\n"
    return process


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def recorded(folder: Path) -> set[str]:
    trace = open_trace(folder)
    list(trace.blocks())
    return {info.prompt_id for info in trace.sequences}


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    pairs = [
        (tmp_path / f"t{i}", writer(tmp_path / f"t{i}", "a,b,c"), writer(tmp_path / f"t{i}", "d,e")) for i in range(3)
    ]
    for folder, one, two in pairs:
        start(one)
        start(two)
        errors = [one.communicate()[1], two.communicate()[1]]
        codes = [one.returncode, two.returncode]
        assert 0 in codes and set(codes) <= {0, 2}  # one waits its turn out, or they didn't meet
        wanted = (set("abc") if codes[0] == 0 else set()) | (set("de") if codes[1] == 0 else set())
        assert recorded(folder) == wanted
        for code, error, other in zip(codes, errors, (two, one), strict=True):
            if code == 2:
                assert f"is being written by process {other.pid} on " in error


def test_the_second_is_told_who_writes_and_a_killed_one_never_blocks(tmp_path: Path) -> None:
    held = writer(tmp_path, "a", "hold")
    start(held)
    assert held.stdout is not None and held.stdout.readline() == "written\n"
    with pytest.raises(DdsimError) as caught:
        TraceWriter(tmp_path, **SHAPE)
    assert f"{tmp_path}: is being written by process {held.pid} on " in str(caught.value)
    assert " since 2" in str(caught.value) and "\n" not in str(caught.value)
    held.send_signal(signal.SIGKILL)
    held.communicate()
    assert (tmp_path / LOCK_FILE).exists()  # what it left behind
    with TraceWriter(tmp_path, **SHAPE) as after:
        assert after.done == {("w", "a", 0.0)}
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_writer_in_this_process_is_refused_and_let_in_later(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path, **SHAPE)
    with pytest.raises(DdsimError, match=f"process {os.getpid()} on "):
        TraceWriter(tmp_path, **SHAPE)
    first.close()
    rows = {"tokens": [3, 5], "token_ids": [[[5, 7]]], "logprobs": np.log([[[0.5, 0.25]]])}
    with TraceWriter(tmp_path, **SHAPE) as second:
        second.add_sequence(prompt_id="a", workload="w", temperature=0.0, prompt_tokens=4, **rows)
    with pytest.raises(DdsimError):
        TraceWriter(tmp_path, **SHAPE, resume=False)
    with TraceWriter(tmp_path, **SHAPE):  # the refused one let go
        pass


def test_lock_files_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(victim)
    with pytest.raises(DdsimError, match=r"\.lock: can't be written"):
        FolderLock(tmp_path)
    assert victim.read_text() == "precious"
    (tmp_path / LOCK_FILE).unlink()
    (tmp_path / LOCK_FILE).write_bytes(b"\xff[[[")
    FolderLock(tmp_path).release()

    def no_locks(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        FolderLock(tmp_path).release()
