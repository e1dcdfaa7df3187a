"""Splits a range of work over Numba's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

import numba
import numpy as np
from numba.np.ufunc import parallel

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def cores() -> int:
    """Threads that work is split over: ``NUMBA_NUM_THREADS``, by default one a core."""
    # Asking Numba starts its OpenMP threads, which resets PyTorch's number of threads: only if that has happened anyway.
    return int(numba.get_num_threads() if parallel._is_initialized else numba.config.NUMBA_NUM_THREADS)


@contextmanager
def one_thread() -> Iterator[None]:
    """Meanwhile this thread splits no work: others do as much beside it."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def split(work: Callable[[int, int], None], items: int, smallest: int) -> None:
    """Run ``work(first, last)`` over all items, on threads if there are at least ``smallest`` items for a second one.

    ``work`` calls a Numba kernel that releases the interpreter lock. Threads of our own, not Numba's (``prange``): those end the
    process when two callers meet in a kernel, or after a fork.
    """
    threads = 1 if _alone.get() else min(cores(), items // smallest + 1)
    if threads <= 1:
        work(0, items)
        return
    # Several pieces a thread even out items that cost more; a kernel is compiled before the others start.
    bounds = np.linspace(0, items, 4 * threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, a, b) for a, b in pairwise(bounds)]:
            done.result()
