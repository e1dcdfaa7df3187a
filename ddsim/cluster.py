"""Where many tasks run: here, on threads, or on the workers of a Dask cluster, with the same answers.

``with workers(cluster) as spread: results = spread(function, tasks)``. Without a cluster nothing of Dask is imported.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import queue
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ddsim.errors import DdsimError
from ddsim.threads import cores, one_thread

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"
"""The cluster that is started here for as long as it is needed: a process a core."""

CONNECT = 10.0
"""Seconds in which a scheduler must answer when it is first asked."""

PATIENCE = 30.0
"""Seconds after which a scheduler that doesn't answer, or a cluster without workers, is given up."""

ATTEMPTS = 3
"""Workers that may die under a task before it is blamed."""


class Spread(Protocol):
    """Calls a function with each of some tasks; the results come in the order of the tasks."""

    def __call__(
        self, function: Callable[[T], R], tasks: Sequence[T], progress: Callable[[int, int], None] | None = None
    ) -> list[R]: ...


@dataclass(frozen=True)
class Together:
    """Several functions as one; a task is (number of the function, its own task).

    Examples
    --------
    >>> with workers() as spread:
    ...     spread(Together([abs, len]), [(0, -1), (1, "four")])
    [1, 4]
    """

    functions: Sequence[Callable[[Any], Any]]

    def __call__(self, task: tuple[int, Any]) -> Any:
        number, own = task
        return self.functions[number](own)


@contextlib.contextmanager
def workers(cluster: str | None = None) -> Iterator[Spread]:
    """Workers for tasks, for as long as the block lasts.

    A task must do the same wherever it runs, and bring what it needs: on a cluster function, tasks and results travel as pickles, so
    large data goes by reference (`ddsim.trace.shared.SharedTrace`). The function is sent once a worker process keeps it, with all that
    it has cached. Tasks of one worker run on one thread each.

    Parameters
    ----------
    cluster : str, optional
        None: threads of this process. "local": a process a core, started here. Otherwise the address of a Dask scheduler, as
        "tcp://10.0.0.1:8786"; its workers need this version of ddsim.

    Yields
    ------
    Spread
        ``spread(function, tasks, progress=None)``; ``progress`` is called with (tasks done, tasks in all).

    Raises
    ------
    DdsimError
        Dask isn't installed or no scheduler answers; from ``spread``: a task refused its input (the line names the worker), ended
        several workers, or the cluster answers no more.

    Examples
    --------
    >>> with workers() as spread:
    ...     spread(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    if cluster is None:
        yield _here
        return
    distributed = _imported()
    with _quiet(), contextlib.ExitStack() as stack:
        address = cluster
        if cluster == LOCAL:
            address = stack.enter_context(_started(distributed))
        try:
            client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise DdsimError(
                f"--cluster {cluster}: no Dask scheduler answers there ({_reason(error)}); give {LOCAL} or an address as "
                "tcp://HOST:8786"
            ) from None
        stack.callback(_closed, client)
        yield functools.partial(_on, client, cluster)


def _here(
    function: Callable[[T], R], tasks: Sequence[T], progress: Callable[[int, int], None] | None = None
) -> list[R]:
    """On threads of this process: a task a thread where there are enough of them, else the threads of each task."""
    threads, done = cores(), 0
    if threads < 2 or len(tasks) < 2 * threads:
        results = []
        for task in tasks:
            results.append(function(task))
            if progress is not None:
                progress(len(results), len(tasks))
        return results

    def alone(task: T) -> R:
        with one_thread():
            return function(task)

    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(alone, task) for task in tasks]
        left = set(futures)
        while left:
            ended, left = wait(
                left, timeout=0.25, return_when=FIRST_EXCEPTION if progress is None else "FIRST_COMPLETED"
            )
            for future in ended:
                future.result()
            done += len(ended)
            if progress is not None and ended:
                progress(done, len(tasks))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _imported() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise DdsimError(
            f"--cluster: needs Dask's distributed ({error}); install it with pip install 'ddsim-decoding[cluster]'"
        ) from None
    return distributed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a cluster logs, ddsim says in a line where it matters."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio", "bokeh")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _started(distributed: Any) -> Iterator[str]:
    """The address of a cluster of this machine; its processes end with the block."""
    settings = {
        "distributed.scheduler.worker-ttl": f"{PATIENCE:.0f} s",
        "distributed.scheduler.allowed-failures": ATTEMPTS,
        "distributed.worker.memory.terminate": False,  # pages of a mapped cache count as a process's own, and aren't
    }
    import dask

    with dask.config.set(settings):
        try:
            started = distributed.LocalCluster(
                n_workers=cores(), threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0,
                silence_logs=logging.CRITICAL + 1,
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            raise DdsimError(f"--cluster {LOCAL}: can't be started ({_reason(error)})") from None
        try:
            yield started.scheduler_address
        finally:
            with contextlib.suppress(Exception):  # all that was asked for is there, or an error is on its way
                started.close(timeout=5)


def _closed(client: Any) -> None:
    with contextlib.suppress(Exception):  # of a cluster that is gone
        client.close(timeout=2)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _on(
    client: Any, cluster: str, function: Callable[[T], R], tasks: Sequence[T],
    progress: Callable[[int, int], None] | None = None,
) -> list[R]:  # fmt: skip
    """`Spread` on a cluster."""
    import cloudpickle

    import ddsim

    if not tasks:
        return []
    body = cloudpickle.dumps(function)
    loads = [cloudpickle.dumps(task) for task in tasks]
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    futures = client.map(
        functools.partial(_call, ddsim.__version__, body), loads, key=[f"ddsim-{os.urandom(8).hex()}-{i}" for i in range(len(tasks))],
        pure=False,
    )  # fmt: skip
    place = {future.key: i for i, future in enumerate(futures)}
    for future in futures:
        future.add_done_callback(ended.put)
    results: list[Any] = [None] * len(tasks)
    left, asked, empty_since = len(tasks), time.monotonic(), None
    while left:
        try:
            future = ended.get(timeout=0.5)
        except queue.Empty:
            if time.monotonic() - asked > 2.0:
                empty_since = _check_alive(client, cluster, empty_since)
                asked = time.monotonic()
            continue
        if future.status != "finished":
            raise _lost(future, cluster)
        results[place[future.key]] = _unpacked(future.result(timeout=PATIENCE))
        future.release()
        left -= 1
        if progress is not None:
            progress(len(tasks) - left, len(tasks))
    return results


def _check_alive(client: Any, cluster: str, empty_since: float | None) -> float | None:
    """Since when the cluster has no workers, None if it has; raises if that has been too long, or its scheduler is silent."""
    try:
        there = client.sync(client.scheduler.ncores, callback_timeout=PATIENCE)
    except Exception as error:
        raise DdsimError(f"--cluster {cluster}: answers no more ({_reason(error)}); start the command again") from None
    if there:
        return None
    since = time.monotonic() if empty_since is None else empty_since
    if time.monotonic() - since > PATIENCE:
        raise DdsimError(
            f"--cluster {cluster}: has no worker, for {PATIENCE:.0f} s; start some (dask worker {cluster})"
        )
    return since


def _lost(future: Any, cluster: str) -> Exception:
    """Why a task has no result."""
    if future.status == "error":
        error = future.exception(timeout=PATIENCE)
        if type(error).__name__ == "KilledWorker":
            return DdsimError(
                f"--cluster {cluster}: {ATTEMPTS + 1} workers died one after another of the same task; have they memory enough?"
            )
        return DdsimError(
            f"--cluster {cluster}: a worker can't run ddsim's tasks ({type(error).__name__}: {_reason(error)}); install the same "
            "packages on all machines"
        )
    return DdsimError(f"--cluster {cluster}: answers no more (its scheduler is gone); start the command again")


def _call(version: str, body: bytes, load: bytes) -> bytes:
    """One task, on a worker: its result, or what went wrong in words, as a pickle."""
    import cloudpickle
    from distributed import get_worker

    import ddsim

    where = f"worker {get_worker().address} on {socket.gethostname()}"
    try:
        if ddsim.__version__ != version:
            raise DdsimError(f"has ddsim {ddsim.__version__}, this is {version}; install one version on all machines")
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who asked has been warned
            return bytes(cloudpickle.dumps((True, _loaded(body)(pickle.loads(load)))))
    except DdsimError as error:
        return pickle.dumps((False, ("", f"{where}: {error}")))
    except ImportError as error:
        return pickle.dumps((False, ("", f"{where}: {error}; install it there, or set its PYTHONPATH")))
    except MemoryError:
        return pickle.dumps((False, ("", f"{where}: not enough memory; start fewer workers there")))
    except Exception as error:
        policy = getattr(error, "of_policy", None)
        kind = "" if policy is not None else "bug"
        whose = "" if policy is None else f"policy {policy}: "
        return pickle.dumps((False, (kind, f"{where}: {whose}{type(error).__name__}: {error}")))


@functools.lru_cache(maxsize=2)
def _loaded(body: bytes) -> Any:
    """A function with all that it has cached, once a process."""
    return pickle.loads(body)


def _unpacked(answer: bytes) -> Any:
    fine, value = pickle.loads(answer)
    if fine:
        return value
    kind, line = value
    raise RuntimeError(line) if kind else DdsimError(line)
