"""A trace by reference: its folders and the hash of its content travel, every process opens and caches it for itself."""

from __future__ import annotations

import os
import threading
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError
from ddsim.trace.cache import positions_of
from ddsim.trace.calibration import Calibration, CrossCalibration
from ddsim.trace.reader import _Shard
from ddsim.trace.rounds import Positions
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace, open_trace


class SharedTrace:
    """A trace, or a selection of one, that tasks may take to other processes and machines.

    Here it is the trace itself. Pickled it is the paths of its folders, the numbers of its sequences and their fingerprint; where it
    arrives, the folders are opened at the same paths, compared with the fingerprint, and their table of rounds is taken from that
    machine's cache or put there.

    Parameters
    ----------
    trace : Trace or Positions
        What is in memory stays here: pickling it is refused.

    Examples
    --------
    >>> import numpy as np, pickle
    >>> trace = Trace.from_arrays([5, 6, 6], np.full((3, 1, 2), [6, 7]), np.log(np.full((3, 1, 2), [0.5, 0.25])), max_budget=2)
    >>> len(SharedTrace(trace).positions())
    3
    >>> pickle.dumps(SharedTrace(trace))
    Traceback (most recent call last):
    ddsim.errors.DdsimError: a trace in memory can't go to other processes; save it (Trace.save) where all workers see it, and open that
    """

    def __init__(self, trace: Trace | Positions) -> None:
        self._trace = trace if isinstance(trace, Trace) else None
        self._positions: dict[int | None, Positions] = {} if isinstance(trace, Trace) else {None: trace}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        trace = self._trace
        if trace is None or not trace._folders:
            raise DdsimError(
                "a trace in memory can't go to other processes; save it (Trace.save) where all workers see it, and open that"
            )
        places: list[tuple[str, int]] = []
        for source, i in trace._entries:
            assert isinstance(source, _Shard)
            places.append((str(source.path.parent), source.first + i))
        runs = []  # (folder, first number, last number)
        for _, run in groupby(enumerate(places), key=lambda item: (item[1][0], item[1][1] - item[0])):
            found = [place for _, place in run]
            runs.append((os.path.abspath(found[0][0]), found[0][1], found[-1][1]))
        folders = [os.path.abspath(folder) for folder in trace._folders]
        return {"folders": folders, "runs": runs, "fingerprint": trace.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._trace, self._positions, self._lock = None, {}, threading.Lock()

    def open(self) -> Trace:
        """The trace.

        Raises
        ------
        DdsimError
            This machine has no such folder, or another trace there.
        """
        with self._lock:
            if self._trace is None:
                self._trace = self._opened()
            return self._trace

    def _opened(self) -> Trace:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a recording that goes on: who sent the reference has been told
            whole = open_trace(self._state["folders"])
        entries = {(os.path.abspath(s.path.parent), s.first + i): (s, i) for s, i in whole._entries}  # type: ignore[attr-defined]
        wanted = [(folder, n) for folder, first, last in self._state["runs"] for n in range(first, last + 1)]
        there = [entries[place] for place in wanted if place in entries]
        trace = Trace(whole.meta, there, [Path(folder) for folder in self._state["folders"]])
        if trace.fingerprint != self._state["fingerprint"]:
            raise DdsimError(
                f"{self._state['folders'][0]}: is another trace than was asked about (hash {trace.fingerprint[:12]}, not "
                f"{self._state['fingerprint'][:12]}); copy it anew to all machines"
            )
        return trace

    def positions(
        self, calibration: Calibration | CrossCalibration | None = None, progress: Progress | None = None
    ) -> Positions:
        """The table of rounds, kept for as long as this is; `ddsim.positions_of`."""
        if None in self._positions and self._trace is None and not hasattr(self, "_state"):
            if calibration is not None:
                raise DdsimError("calibration: positions are calibrated already; give it to positions_of instead")
            return self._positions[None]
        trace, key = self.open(), None if calibration is None else id(calibration)
        with self._lock:
            if key not in self._positions:
                self._positions[key] = positions_of(trace, calibration=calibration, progress=progress)
            return self._positions[key]
