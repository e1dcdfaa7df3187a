"""Tasks here, on threads, and on real clusters of processes: the same answers, or one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddsim
from ddsim import cluster
from ddsim.cluster import workers
from ddsim.errors import DdsimError
from ddsim.replay import load as _load
from ddsim.replay.sweep import sweep
from ddsim.threads import one_thread, split
from ddsim.trace import calibrate
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
    trace = ddsim.open_trace(traces / "trace")
    picked = trace.subset([0, 1, len(trace.sequences) - 1])
    sent = pickle.dumps(SharedTrace(picked))
    assert len(sent) < 1000
    arrived = pickle.loads(sent)
    assert arrived.open().sequences == picked.sequences
    np.testing.assert_array_equal(arrived.positions().ranks[:99], SharedTrace(picked).positions().ranks[:99])


def test_another_trace_in_its_place_is_refused(traces: Path, tmp_path: Path) -> None:
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


def test_no_scheduler_one_line(monkeypatch: pytest.MonkeyPatch, cli: Any, files: Path) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    words = "files/trace", "-p", "files/profile.json", "--policy", "AR", "--cluster", "tcp://127.0.0.1:1"
    for command in ("serve", "sweep"):
        answer = cli(command, *(word.replace("files", str(files)) for word in words))
        *warned, line = answer.err.splitlines()
        assert answer.code == 2 and all(other.startswith("warning: ") for other in warned)
        assert line.startswith("error: --cluster tcp://127.0.0.1:1: no Dask scheduler answers there")
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


@contextlib.contextmanager
def elsewhere(address: str | None = None) -> Iterator[cluster.Spread]:
    """What a cluster is to its tasks: all travels as pickles, the last task comes first, and nobody keeps anything."""

    def spread(function: Any, tasks: Any, progress: Any = None) -> list[Any]:
        sent = pickle.dumps(function)
        done = [pickle.dumps(pickle.loads(sent)(pickle.loads(pickle.dumps(task)))) for task in reversed(tasks)]
        return [pickle.loads(result) for result in reversed(done)]

    yield spread


def test_loads_are_the_same_elsewhere(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = {"trace": ddsim.open_trace(traces / "trace").subset([0, 1, 2])}
    cost = {"flat": ddsim.CostModel.from_table([1, 400], [0.010, 0.020], draft_seconds=0.001)}
    told: list[tuple[int, int]] = []
    asked: dict[str, Any] = {"load": {"running": 3, "ttft": 0.1}, "seeds": [0, 1], "bootstrap": 1, "requests": 4}
    here = sweep(trace, cost, ["DFlash", "LongRun"], **asked, progress=lambda *at: told.append(at))
    assert len(here) == 2 * 3 * 3 and told[-1] == (2 * 3 * 4, 2 * 3 * 4)
    monkeypatch.setattr(_load, "workers", elsewhere)
    assert sweep(trace, cost, ["DFlash", "LongRun"], **asked).equals(here)


def test_path_fits_are_the_same_elsewhere(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = ddsim.open_trace(traces / "trace")
    told: list[tuple[int, int]] = []
    here = ddsim.cross_calibrate(trace, "path", folds=3, progress=lambda *at: told.append(at))
    assert told[-1] == (len(trace), len(trace))
    monkeypatch.setattr(calibrate, "workers", elsewhere)
    there = ddsim.cross_calibrate(trace, "path", folds=3, cluster="elsewhere")
    fits = [[pickle.dumps(vars(part.path)) for part in cross.parts] for cross in (here, there)]
    assert fits[0] == fits[1] and len(set(fits[0])) == 3
    assert [part.provenance for part in there.parts] == [part.provenance for part in here.parts]


@dataclass(frozen=True)
class Dies:
    """Kills its own process: at its third task the first time, or always."""

    trace: SharedTrace
    once: Path | None

    def __call__(self, task: int) -> float:
        if task == 2 and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return Sums(self.trace)(task)[0]


@pytest.mark.slow
def test_a_killed_worker_changes_no_number(traces: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "cores", lambda: 2)
    trace = SharedTrace(ddsim.open_trace(traces / "trace"))
    with workers() as spread:
        here = [value for value, _ in spread(Sums(trace), range(20))]
    with workers("local") as spread:
        assert spread(Dies(trace, tmp_path / "died"), range(20)) == here
        assert (tmp_path / "died").exists()
        with pytest.raises(DdsimError, match="--cluster local: 4 workers died one after another of the same task"):
            spread(Dies(trace, None), range(4))


@dataclass(frozen=True)
class Sleeps:
    """Takes its time."""

    seconds: float

    def __call__(self, task: int) -> int:
        time.sleep(self.seconds)
        return task


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A scheduler and a worker as their own commands start them: address, scheduler, worker."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    start = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    ]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": Path(__file__).parents[1]}
    scheduler = subprocess.Popen(start, **quiet)
    join = [
        sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard",
        "--no-nanny", "--local-directory", str(tmp_path),
    ]  # fmt: skip
    worker = subprocess.Popen(join, **quiet)
    while not file.exists():
        time.sleep(0.05)
    yield json.loads(file.read_text())["address"], scheduler, worker
    for process in (worker, scheduler):
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "line"),
    [
        (lambda scheduler, worker: scheduler.kill(), "answers no more"),
        (lambda scheduler, worker: scheduler.send_signal(signal.SIGSTOP), "answers no more"),
        (lambda scheduler, worker: worker.kill(), r"has no worker, for 3 s; start some \(dask worker tcp://"),
    ],
    ids=["scheduler killed", "scheduler frozen", "no worker left"],
)
def test_a_cluster_that_answers_no_more(machines: Any, ends: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address, scheduler, worker = machines
    monkeypatch.setattr(cluster, "PATIENCE", 3.0)
    began = time.monotonic()
    with pytest.raises(DdsimError, match=f"^--cluster {address}: {line}"), workers(address) as spread:
        assert spread(Sleeps(0.0), range(3)) == [0, 1, 2]
        threading.Timer(1.0, ends, (scheduler, worker)).start()
        spread(Sleeps(0.5), range(1000))
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_serve_on_other_machines(machines: Any, traces: Path, cli: Any, files: Path, tmp_path: Path) -> None:
    """The same JSON to the byte; without the trace there one line with worker and file."""
    address, _, _ = machines
    folder = tmp_path / "trace"
    shutil.copytree(files / "trace", folder)
    words = "serve", folder, "-p", files / "profile.json", "--batch", 1, "--batch", 3, "--bootstrap", 3, "--json"
    here, there = cli(*words), cli(*words, "--cluster", address)
    assert here.code == there.code == 0 and here.out == there.out
    recording = SharedTrace(ddsim.open_trace(folder))
    shutil.move(folder, tmp_path / "elsewhere")
    with (
        pytest.raises(DdsimError, match=rf"^worker tcp://.* on .*: {folder}: no such trace$"),
        workers(address) as spread,
    ):
        spread(Sums(recording), [1, 2])


@pytest.mark.slow
def test_loads_and_path_fits_on_processes(cli: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same JSON to the byte."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "cores", lambda: 2)
    trace = files / "trace"
    loads = trace, "-p", files / "profile.json", "--load", "--running", 3, "--bootstrap", 3
    for words in (("serve", *loads), ("sweep", *loads), ("calibrate", trace, "--path")):
        here, there = cli(*words, "--json"), cli(*words, "--json", "--cluster", "local")
        assert here.code == there.code == 0 and here.out == there.out
