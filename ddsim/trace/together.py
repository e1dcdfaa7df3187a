"""One trace written by several processes, each a share of its sequences: shards wait beside it, and are put in place in order."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ddsim.errors import DdsimError, WorkWarning, caller_level
from ddsim.files.atomic import write_text
from ddsim.files.locks import LOCK_FILE, FolderLock
from ddsim.trace.reader import _Shard, _shard_path
from ddsim.trace.schema import CHANGING_PROVENANCE, RECORDING_FILE, _check_agree, _leaves
from ddsim.trace.writer import TraceWriter, _write_recording, _write_shard

Key = tuple[str, str, float]
"""Workload, prompt id and temperature: the name of a sequence."""

WAITING = ".parts"
"""Folder in a trace's, while several processes write it: their plan, and shards whose turn hasn't come."""

PATIENCE = 60.0
"""Seconds to wait for the trace's lock, which others hold for moments."""

PAUSE = 0.5
"""Seconds after which a process that has nothing to do looks again whether another one has died."""


class Together(TraceWriter):
    """Writes one process's share of a trace that several write; as `TraceWriter` but for what follows.

    The first process to come writes a plan: which sequences make which shard. Each process then takes one shard after another that is not
    there and that nobody is at: a lock says so, which ends with its process. Process ``rank`` of ``count`` begins with the shards
    ``rank``, ``rank + count`` and so on, then helps with what is left, also by processes that died. Whoever finds the next shard of the
    trace written puts it in place and lists it, under the folder's lock. So the trace is at all times a readable one, its order is the
    plan's whoever wrote what, and the one who puts the last shard in place closes it. They need to share nothing but the folder. A run
    that was killed continues, by as many processes as then are there: the plan and all shards written are kept.

    Parameters
    ----------
    path, horizon, max_budget, vocab_size, provenance, kind
        As `TraceWriter` takes them; the same in all processes.
    rank, count : int
        Which process this is, and how many there are: so that they begin in different places.
    sequences : sequence of (workload, prompt_id, temperature)
        What all of them together are to record, in order; those that the trace has already are left out.
    batch : int
        Sequences of a shard.

    Raises
    ------
    DdsimError
        Another process records with other settings or other sequences.

    Examples
    --------
    >>> import tempfile
    >>> from ddsim.trace.trace import open_trace
    >>> folder, names = tempfile.mkdtemp(), [("toy", "a", 0.0), ("toy", "b", 0.0), ("toy", "c", 0.0)]
    >>> shape = {"horizon": 1, "max_budget": 2, "vocab_size": 9, "provenance": {}}
    >>> arrays = {"tokens": [3, 5], "token_ids": [[[5, 7]]], "logprobs": [[[-0.5, -1.5]]], "prompt_tokens": 4}
    >>> for rank in (1, 0):  # one after the other here
    ...     with Together(folder, **shape, rank=rank, count=2, sequences=names, batch=1) as writer:
    ...         for shard, part in writer.share():
    ...             for workload, prompt, temperature in part:
    ...                 writer.add_sequence(workload=workload, prompt_id=prompt, temperature=temperature, **arrays)
    ...             writer.put(shard)
    ...             if rank == 1:
    ...                 break
    >>> [info.prompt_id for info in open_trace(folder).sequences]
    ['a', 'b', 'c']
    """

    def __init__(
        self, path: str | Path, *, horizon: int, max_budget: int, vocab_size: int, provenance: Any, rank: int, count: int,
        sequences: Sequence[Key], batch: int, kind: str = "rows",
    ) -> None:  # fmt: skip
        self.rank, self.count = rank, count
        self._asked, self._batch = list(sequences), batch
        self._plan: dict[str, Any] = {}
        super().__init__(
            path, horizon=horizon, max_budget=max_budget, vocab_size=vocab_size, provenance=provenance, kind=kind
        )
        try:
            self._planned()
        finally:
            self._lock.release()

    def _locked(self) -> FolderLock:
        began = time.monotonic()
        while True:
            try:
                return FolderLock(self.path)
            except DdsimError:
                if time.monotonic() - began > PATIENCE:
                    raise
                time.sleep(0.05)

    @property
    def _waiting(self) -> Path:
        return self.path / WAITING

    def _shard_file(self, number: int) -> Path:
        return self._waiting / f"{number:05d}" / "shard.parquet"

    def _planned(self) -> None:
        """Take the plan that is there, or make one; the folder is locked."""
        file = self._waiting / "plan.json"
        try:
            self._plan = json.loads(file.read_text())
        except FileNotFoundError:
            todo = [key for key in self._asked if key not in self.done]
            if not todo:
                return
            parts = [todo[i : i + self._batch] for i in range(0, len(todo), self._batch)]
            self._plan = {
                "meta": self._meta, "parts": parts, "shard": len(self._checksums), "sequence": self._sequence,
                "began": len(self.done),
            }  # fmt: skip
            if self._complete:  # the recording goes on: see `TraceWriter.flush`
                self._list(complete=False)
            self._waiting.mkdir(exist_ok=True)
            write_text(file, json.dumps(self._plan))
        except ValueError:
            raise DdsimError(f"{file}: is damaged; delete {self._waiting} to record what is missing anew") from None
        mine, theirs = self._meta, self._plan["meta"]
        keys = sorted(
            (_leaves(mine["provenance"]).keys() | _leaves(theirs["provenance"]).keys()) - set(CHANGING_PROVENANCE)
        )
        _check_agree(file, theirs, None, mine, keys)
        self._parts: list[list[Key]] = [[(w, p, float(t)) for w, p, t in part] for part in self._plan["parts"]]
        planned = {key for part in self._parts for key in part}
        if not planned <= set(self._asked) or not set(self._asked) <= planned | self.done:
            raise DdsimError(
                f"{file}: plans other sequences than are asked for here; finish that recording with its own prompts, or delete "
                f"{self._waiting} to go on without it"
            )

    def share(self) -> Iterator[tuple[int, list[Key]]]:
        """(number of a shard, its sequences), for as long as there are some that nobody has written or is at; `put` each."""
        count = len(self._plan.get("parts", ()))
        order = sorted(range(count), key=lambda number: ((number - self.rank) % self.count != 0, number))
        taken = True
        while taken:  # somebody may have died meanwhile
            taken = False
            for number in order:
                lock = None if self._there(number) else self._free(number)
                if lock is None:
                    continue
                try:
                    if not self._there(number):  # it may have come just before
                        taken = True
                        yield number, self._parts[number]
                finally:
                    lock.release()
        self._publish()

    def _free(self, number: int) -> FolderLock | None:
        """The lock of a shard, if nobody is at it."""
        folder = self._shard_file(number).parent
        folder.mkdir(parents=True, exist_ok=True)
        begun = (folder / LOCK_FILE).exists()
        try:
            lock = FolderLock(folder)
        except DdsimError:
            return None
        if begun:
            said = f"{self.path}: a process died at shard {number}; it is recorded anew"
            warnings.warn(said, WorkWarning, stacklevel=caller_level())
        return lock

    def _there(self, number: int) -> bool:
        return self._shard_file(number).exists() or _shard_path(self.path, self._plan["shard"] + number).exists()

    def recorded(self) -> int:
        """Sequences that all processes together have written, with those that were there before."""
        parts = enumerate(self._plan.get("parts", ()))
        return int(self._plan.get("began", len(self.done))) + sum(len(part) for n, part in parts if self._there(n))

    def flush(self) -> None:
        """Nothing: `put` writes."""

    def put(self, shard: int) -> None:
        """Write what was added as a shard, and put in place what has come in order."""
        if not self._there(shard):
            before = sum(map(len, self._parts[:shard]))
            _write_shard(self._shard_file(shard), self._meta, self._plan["sequence"] + before, self._pending)
        self._pending, self._positions = [], 0
        self._publish()

    def _publish(self) -> bool:
        """Put shards in place whose turn has come; whether all are."""
        if not self._plan:
            return True
        last = self._plan["shard"] + len(self._parts)
        lock = self._locked()
        try:
            listed = self._listed()
            while len(listed) < last:
                place = _shard_path(self.path, len(listed))
                if not place.exists():  # it is there already where a process died before it was listed
                    try:
                        os.rename(self._shard_file(len(listed) - self._plan["shard"]), place)
                    except FileNotFoundError:
                        return False
                listed.append(_Shard(place).checksum)
                _write_recording(self.path, listed, complete=len(listed) == last)
            shutil.rmtree(self._waiting, ignore_errors=True)
            return True
        finally:
            lock.release()

    def _listed(self) -> list[str]:
        try:
            return list(json.loads((self.path / RECORDING_FILE).read_text())["shards"])
        except FileNotFoundError:
            return []

    def whole(self) -> bool:
        """Whether the trace is; after a pause where others still are at it."""
        if not self._publish():
            time.sleep(PAUSE)
            return self._publish()
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: what was put is there, what was begun is another's to take."""


def is_shared(path: Path) -> bool:
    """Whether several processes have begun a trace there and not finished it."""
    return (path / WAITING / "plan.json").exists()
