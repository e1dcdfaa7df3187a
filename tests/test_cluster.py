"""Tasks here, on threads, and on real clusters of processes: the same answers, or one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ddsim
from ddsim import cluster
from ddsim.cluster import workers
from ddsim.errors import DdsimError
from ddsim.threads import one_thread, split
from ddsim.trace.shared import SharedTrace


@dataclass(frozen=True)
class Sums:
    """Adds up the gains of some positions, and says in which process."""

    trace: SharedTrace

    def __call__(self, task: int) -> tuple[float, int]:
        positions = self.trace.positions()
        if task < 0:
            raise DdsimError(f"task {task}: is negative")
        return float(np.asarray(positions.gains[task : task + 5]).sum(dtype=np.float64)), os.getpid()


def test_threads_keep_the_order_and_tell_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "cores", lambda: 3)
    told: list[tuple[int, int]] = []
    with workers() as spread:
        assert spread(lambda n: n * n, range(10), lambda *at: told.append(at)) == [n * n for n in range(10)]
        assert told[-1] == (10, 10) and [done for done, _ in told] == sorted({done for done, _ in told})
        assert spread(str, []) == []
        with pytest.raises(DdsimError, match="task -1"):
            spread(Sums(SharedTrace(_positions())), [1, -1] * 9)


def test_a_lone_thread_splits_no_work() -> None:
    pieces: list[tuple[int, int]] = []
    with one_thread():
        split(lambda *piece: pieces.append(piece), 1000, 1)
    assert pieces == [(0, 1000)]


def _positions() -> ddsim.Trace:
    ids, logprobs = np.full((9, 2, 2), [6, 7]), np.log(np.full((9, 2, 2), [0.5, 0.25]))
    return ddsim.Trace.from_arrays([5, 6, 6] * 3, ids, logprobs, max_budget=4)


def test_dask_is_not_imported_unless_asked_for() -> None:
    script = "import sys, ddsim.cluster, ddsim.cli.main; print({'dask', 'distributed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_without_dask_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DdsimError, match=r"needs Dask's distributed .*'ddsim-decoding\[cluster\]'"), workers("local"):
        pass


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import made_up

    folder = tmp_path_factory.mktemp("shared")
    made_up.saved(folder / "trace")
    return folder


def test_references_are_small_and_find_the_same_sequences(traces: Path) -> None:
    import pickle

    trace = ddsim.open_trace(traces / "trace")
    picked = trace.subset([0, 1, len(trace.sequences) - 1])
    sent = pickle.dumps(SharedTrace(picked))
    assert len(sent) < 1000
    arrived = pickle.loads(sent)
    assert arrived.open().sequences == picked.sequences
    np.testing.assert_array_equal(arrived.positions().ranks[:99], SharedTrace(picked).positions().ranks[:99])


def test_another_trace_in_its_place_is_refused(traces: Path, tmp_path: Path) -> None:
    import pickle
    import shutil

    from tests import made_up

    folder = tmp_path / "trace"
    shutil.copytree(traces / "trace", folder)
    sent = pickle.dumps(SharedTrace(ddsim.open_trace(folder)))
    shutil.rmtree(folder)
    with pytest.raises(DdsimError, match=f"{folder}: no such trace"):
        pickle.loads(sent).positions()
    made_up.saved(folder, seed=9)
    with pytest.raises(DdsimError, match=f"{folder}: is another trace than was asked about"):
        pickle.loads(sent).positions()


def test_no_scheduler_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense://here", ""):
        with pytest.raises(DdsimError, match=r"no Dask scheduler answers there .*tcp://HOST:8786"), workers(address):
            pass


def test_processes_give_what_threads_give(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "cores", lambda: 2)
    job, told = Sums(SharedTrace(ddsim.open_trace(traces / "trace"))), []
    with workers() as spread:
        here = spread(job, range(12))
    with workers("local") as spread:
        there = spread(job, range(12), lambda *at: told.append(at))
        assert [value for value, _ in there] == [value for value, _ in here]
        assert told == [(n + 1, 12) for n in range(12)]
        assert os.getpid() not in {process for _, process in there}
        with pytest.raises(DdsimError, match=r"^worker tcp://127.0.0.1:\d+ on .*: task -1: is negative$"):
            spread(job, [3, -1])
        with pytest.raises(DdsimError, match="a trace in memory can't go to other processes"):
            spread(Sums(SharedTrace(_positions())), [1])
