"""One trace written by several processes, each a share of its sequences: shards wait beside it, and are put in place in order."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ddsim.errors import DdsimError
from ddsim.files.atomic import write_text
from ddsim.files.locks import FolderLock
from ddsim.trace.reader import _Shard, _shard_path
from ddsim.trace.schema import CHANGING_PROVENANCE, RECORDING_FILE, _check_agree, _leaves
from ddsim.trace.writer import TraceWriter, _write_recording, _write_shard

Key = tuple[str, str, float]
"""Workload, prompt id and temperature: the name of a sequence."""

WAITING = ".parts"
"""Folder in a trace's, while several processes write it: their plan, and shards whose turn hasn't come."""

PATIENCE = 120.0
"""Seconds to wait for the trace's lock, and for a process that isn't there to come."""

MOMENT = 2.0
"""Seconds to wait for the lock of an own share: another process may be looking whether it is held."""


class Together(TraceWriter):
    """Writes one process's share of a trace that several write; as `TraceWriter` but for what follows.

    The first process to come writes a plan: which sequences make which shard. Process ``rank`` of ``count`` writes the shards ``rank``,
    ``rank + count`` and so on, under other names; whoever finds the next one of the trace there puts it in place and lists it, under
    the folder's lock. So the trace is at all times a readable one, its order is the plan's whoever wrote what, and the one who puts the
    last shard in place closes it. They need to share nothing but the folder. A run that was killed continues, by as many processes as
    then are there: the plan and all shards written are kept.

    Parameters
    ----------
    path, horizon, max_budget, vocab_size, provenance, kind
        As `TraceWriter` takes them; the same in all processes.
    rank, count : int
        Which process this is, and how many there are.
    sequences : sequence of (workload, prompt_id, temperature)
        What all of them together are to record, in order; those that the trace has already are left out.
    batch : int
        Sequences of a shard.

    Raises
    ------
    DdsimError
        Another process records with other settings or other sequences, or is this ``rank`` already.

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
        self._mine = _locked(self._share_folder(rank), MOMENT) if self._plan else None

    def _locked(self) -> FolderLock:
        return _locked(self.path, PATIENCE)

    def _share_folder(self, rank: int) -> Path:
        folder = self._waiting / f"process-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def _waiting(self) -> Path:
        return self.path / WAITING

    def _shard_file(self, number: int) -> Path:
        return self._waiting / f"shard-{number:05d}.parquet"

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
        """(number of a shard, its sequences) of this process, but for those that are there."""
        for number in range(self.rank, len(self._plan.get("parts", ())), self.count):
            if not self._there(number):
                yield number, self._parts[number]

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

    def finish(self, told: Callable[[int], None] | None = None) -> None:
        """Wait until the trace is whole; ``told`` is called with the sequences that are there meanwhile.

        Raises
        ------
        DdsimError
            A process has ended without its share.
        """
        gone: dict[int, float] = {}
        while not self._publish():
            if told is not None:
                told(self.recorded())
            for rank in range(self.count):
                missing = [n for n in range(rank, len(self._parts), self.count) if not self._there(n)]
                if rank == self.rank or not missing or self._runs(rank):
                    gone.pop(rank, None)
                elif time.monotonic() - gone.setdefault(rank, time.monotonic()) > PATIENCE:
                    raise DdsimError(
                        f"{self.path}: process {rank} of {self.count} is gone, and {sum(len(self._parts[n]) for n in missing)} of its "
                        "sequences are missing; start the command again to record them"
                    )
            time.sleep(min(0.5, PATIENCE / 4))
        if told is not None:
            told(self.recorded())

    def _runs(self, rank: int) -> bool:
        """Whether a process holds the lock of that share."""
        try:
            FolderLock(self._share_folder(rank)).release()
            return False
        except DdsimError:
            return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process take this share."""
        if self._mine is not None:
            self._mine.release()
            self._mine = None


def is_shared(path: Path) -> bool:
    """Whether several processes have begun a trace there and not finished it."""
    return (path / WAITING / "plan.json").exists()


def _locked(folder: Path, patience: float) -> FolderLock:
    """A folder's lock, which others hold for moments only."""
    began = time.monotonic()
    while True:
        try:
            return FolderLock(folder)
        except DdsimError:
            if time.monotonic() - began > patience:
                raise
            time.sleep(0.05)
