"""A trace that several processes write: the same as one process's, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddsim.errors import DdsimError
from ddsim.files.locks import FolderLock
from ddsim.trace import together
from ddsim.trace.together import Together, is_shared
from ddsim.trace.trace import open_trace
from ddsim.trace.writer import TraceWriter

SHAPE: dict[str, Any] = {
    "horizon": 2,
    "max_budget": 3,
    "vocab_size": 9,
    "provenance": {"target": "toy", "sizes": (1, 2)},
}
NAMES = [("toy", f"p{i}", 0.0) for i in range(11)]


def sequence(key: tuple[str, str, float]) -> dict[str, Any]:
    """A sequence that depends on its name only."""
    rng = np.random.default_rng(int(key[1][1:]))
    length = int(rng.integers(2, 9))
    logprobs = np.log(np.sort(rng.dirichlet(np.ones(4), (length, 2)), axis=-1)[..., ::-1])
    return {
        "workload": key[0], "prompt_id": key[1], "temperature": key[2], "prompt_tokens": 5, "tokens": rng.integers(0, 9, length),
        "token_ids": np.tile(np.arange(4), (length, 2, 1)), "logprobs": logprobs,
    }  # fmt: skip


def write(
    folder: Path,
    rank: int,
    count: int,
    *,
    most: int = 99,
    names: Sequence[Any] = NAMES,
    pause: float = 0.0,
    own: bool = False,
) -> None:
    """One process's shards of two sequences each: its ``own``, or at most so many."""
    with Together(folder, **SHAPE, rank=rank, count=count, sequences=names, batch=2) as writer:
        for shard, part in writer.share():
            if most == 0 or (own and shard % count != rank):
                return
            most -= 1
            for key in part:
                writer.add_sequence(**sequence(key))
            time.sleep(pause)
            writer.put(shard)
        while rank == 0 and not writer.whole():
            pass


def whole(folder: Path) -> str:
    with TraceWriter(folder, **SHAPE) as writer:
        for key in NAMES:
            writer.add_sequence(**sequence(key))
            writer.flush()
    return open_trace(folder).fingerprint


@pytest.mark.parametrize("orders", [[(0, 1)], [(1, 2), (0, 2)], [(2, 3), (1, 3), (0, 3)]])
def test_shares_make_one_trace(orders: list[tuple[int, int]], tmp_path: Path) -> None:
    for rank, count in orders:
        write(tmp_path / "a", rank, count, own=rank > 0)
    trace = open_trace(tmp_path / "a")
    assert trace.fingerprint == whole(tmp_path / "b") and trace.meta["complete"]
    assert not is_shared(tmp_path / "a") and not (tmp_path / "a" / together.WAITING).exists()
    write(tmp_path / "a", 0, 2)  # nothing left to do


def test_a_trace_is_readable_at_all_times_and_goes_on_with_another_number(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write(folder, 1, 2, most=2)  # shards 1 and 3 wait for their turn
    with pytest.raises(DdsimError, match="no trace there"):
        open_trace(folder)
    assert is_shared(folder)
    write(folder, 0, 3, most=1)  # shard 0, and 1 with it
    with pytest.warns(UserWarning, match="interrupted or is still running; it holds 4 sequences"):
        assert [s.prompt_id for s in open_trace(folder).sequences] == ["p0", "p1", "p2", "p3"]
    write(folder, 0, 1)
    assert open_trace(folder).fingerprint == whole(tmp_path / "b")


def test_a_process_that_dies_while_it_puts_a_shard_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    write(folder, 1, 2, own=True)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # renamed, but not listed
        patch.setattr(together, "_write_recording", dies)
        with pytest.raises(KeyboardInterrupt):
            write(folder, 0, 2)
    write(folder, 0, 2)
    assert open_trace(folder).fingerprint == whole(tmp_path / "b")


def test_a_finished_trace_grows(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write(folder, 0, 1, names=NAMES[:4])
    assert len(open_trace(folder).sequences) == 4
    write(folder, 1, 2, own=True)
    write(folder, 0, 2)
    assert open_trace(folder).fingerprint == whole(tmp_path / "b")


def test_processes_that_disagree_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    write(folder, 1, 2, most=1)
    other = SHAPE | {"provenance": {"target": "another", "sizes": (1, 2)}}
    with pytest.raises(DdsimError, match=r"plan\.json: recorded with target .toy., this run has .another."):
        Together(folder, **other, rank=0, count=2, sequences=NAMES, batch=2)
    for names in (NAMES[:-1], [*NAMES, ("toy", "p11", 0.0)]):
        with pytest.raises(DdsimError, match=r"plans other sequences than are asked for here; .* or delete .*\.parts"):
            write(folder, 0, 2, names=names)
    monkeypatch.setattr(together, "PATIENCE", 0.1)
    lock = FolderLock(folder)
    with pytest.raises(DdsimError, match="is being written by process"):
        write(folder, 0, 2)
    lock.release()
    (folder / together.WAITING / "plan.json").write_text("{")
    with pytest.raises(DdsimError, match=r"plan.json: is damaged; delete .*\.parts"):
        write(folder, 0, 2)


def test_a_killed_process_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """It is killed while it is at a shard; the other one, which has done all others, takes it."""
    folder = tmp_path / "a"
    script = (
        "import sys; from pathlib import Path; from tests.trace.test_together import write\n"
        "write(Path(sys.argv[1]), 1, 2, pause=1e6)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=Path(__file__).parents[2])
    while not list(folder.glob(f"{together.WAITING}/00001/.lock")):
        assert process.poll() is None
        time.sleep(0.05)
    seen: list[int] = []
    with (
        Together(folder, **SHAPE, rank=0, count=2, sequences=NAMES, batch=2) as writer,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        while not writer.whole():
            for shard, part in writer.share():
                seen.append(shard)
                for key in part:
                    writer.add_sequence(**sequence(key))
                writer.put(shard)
            if len(seen) == 5:
                assert writer.recorded() == 9
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
    assert seen == [0, 2, 4, 3, 5, 1]
    assert [str(w.message) for w in told] == [f"{folder}: a process died at shard 1; it is recorded anew"]
    assert open_trace(folder).fingerprint == whole(tmp_path / "b")
