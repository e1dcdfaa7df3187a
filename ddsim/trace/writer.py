"""Writes a trace shard by shard, so that a killed run leaves a readable trace and can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ddsim.errors import DdsimError
from ddsim.files.atomic import write, write_text
from ddsim.files.atomic import write as _write
from ddsim.files.locks import FolderLock
from ddsim.text import brief
from ddsim.trace.checks import (
    _arrays,
    _check_descending,
    _order_ties,
    _sparse,
    folded_lattices,
    folded_trees,
    round_logprobs,
)
from ddsim.trace.folded import COLUMNS, Folded
from ddsim.trace.reader import _check_recording, _pieces_digest, _shard_path, _shards
from ddsim.trace.schema import (
    CHANGING_PROVENANCE,
    PIECES_FILE,
    RECORDING_FILE,
    SequenceInfo,
    _check_agree,
    _check_name,
    _check_new,
    _checksum,
    _describe,
    _id_type,
    _leaves,
    _metadata,
    _Rows,
    _schema,
    _temperature,
)
from ddsim.trace.shown import ShownWriter

# Row groups hold whole sequences, about so many positions; a reader holds one of them at a time.
POSITIONS_PER_GROUP = 16384


POSITIONS_PER_SHARD = 65536


class TraceWriter(ShownWriter):
    """Writes a trace shard by shard, so that a run killed at any moment leaves a readable trace and can be
    continued.

    Shards are written under a temporary name, synced to disk and renamed. Use it as a context manager:
    leaving the block flushes complete sequences, also after an error; leaving it without one marks the recording
    as complete.

    Parameters
    ----------
    path : str or Path
        Folder, made if need be.
    horizon : int
        Positions that a draft proposes, L.
    max_budget : int
        Largest budget N that the trace must answer exactly. Of each row only the best candidate and those that
        some tree of N nodes uses are kept.
    vocab_size : int
    provenance : mapping
        Where the numbers come from (models, device, versions ...); JSON values.
    resume : bool
        Continue a trace that is already there. It must have the same shape and provenance, dates aside.
    kind : {"rows", "lattice", "trees"}
        What is recorded: rows of marginals (``add_sequence``), or proposals that know their path (``add_lattice``, ``add_trees``).

    Attributes
    ----------
    done : set of (workload, prompt_id, temperature)
        Sequences on disk or added; the temperature as float32 holds it.
    prompt_digests : dict of (workload, prompt_id, temperature) to str
        Hashes of their prompts, as ``add_sequence`` was told them; empty where it wasn't.

    Raises
    ------
    DdsimError
        A trace is there already and ``resume`` is false, or it is another recording, or another writer has the
        folder (`ddsim.files.locks.FolderLock`, held until the block is left or ``close``).

    Examples
    --------
    >>> from ddsim.trace.trace import open_trace
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> arrays = {"tokens": [3, 5], "token_ids": [[[5, 7]]], "logprobs": np.log([[[0.5, 0.25]]])}
    >>> name = {"prompt_id": "a", "workload": "toy", "temperature": 0.0, "prompt_tokens": 4}
    >>> with TraceWriter(folder, horizon=1, max_budget=2, vocab_size=9, provenance={}) as writer:
    ...     writer.add_sequence(**name, **arrays)
    >>> len(open_trace(folder))
    2
    """

    def __init__(
        self,
        path: str | Path,
        *,
        horizon: int,
        max_budget: int,
        vocab_size: int,
        provenance: Mapping[str, Any],
        resume: bool = True,
        kind: str = "rows",
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise DdsimError(f"{brief(path)}: is no path; give a folder")
        self.path = Path(path)
        self.done: set[tuple[str, str, float]] = set()
        self.prompt_digests: dict[tuple[str, str, float], str] = {}
        self._meta = _metadata(horizon, max_budget, vocab_size, provenance, kind)
        self._pending: list[tuple[SequenceInfo, _Rows | Folded]] = []
        self._positions = 0
        self._sequence = 0
        self._complete = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DdsimError(f"{self.path}: can't be made a folder ({reason})") from None
        self._checksums: list[str] = []
        self._lock = self._locked()
        try:
            self._continue(resume)
        except BaseException:
            self._lock.release()
            raise

    def _locked(self) -> FolderLock:
        return FolderLock(self.path)

    def _continue(self, resume: bool) -> None:
        """Take stock of what is there."""
        if any(self.path.glob("part-*.parquet")):
            if not resume:
                raise DdsimError(f"{self.path}: holds a trace already; choose another folder")
            shards = list(_shards(self.path))
            self._complete = _check_recording(self.path, shards) is True
            for shard in shards:
                shard.verify()
                self._checksums.append(shard.checksum)
                keys = _leaves(self._meta["provenance"]).keys() | _leaves(shard.meta["provenance"]).keys()
                _check_agree(shard.path, shard.meta, None, self._meta, sorted(keys.difference(CHANGING_PROVENANCE)))
                for info in shard.infos:
                    name = info.workload, info.prompt_id, info.temperature
                    self.done.add(name)
                    self.prompt_digests[name] = info.prompt_digest
                self._sequence += len(shard.infos)
        for leftover in self.path.glob(".part-*.tmp"):  # of a run that was killed, before files had names of their own
            leftover.unlink(missing_ok=True)

    def add_sequence(
        self,
        *,
        prompt_id: str,
        workload: str,
        temperature: float,
        prompt_tokens: int,
        tokens: ArrayLike,
        token_ids: ArrayLike,
        logprobs: ArrayLike,
        prompt_digest: str = "",
    ) -> None:
        """Add the answer to one prompt; it reaches the disk with the next ``flush``.

        Parameters
        ----------
        prompt_id, workload, temperature
            Name the sequence; a name can be used once.
        prompt_tokens : int
            Length of the prompt in tokens.
        tokens : int array [T]
            The answer.
        token_ids, logprobs : int and float arrays [T, L, K] (or [T - 1, L, K])
            The K most likely tokens of each marginal and their log-probabilities, descending, -inf for none.
            The last position starts no round and is ignored. Values are rounded by ``round_logprobs`` and
            ties ordered by token id. K must reach ``max_budget`` (or the vocabulary) unless rows end sooner:
            otherwise the trace might lack a candidate.
        prompt_digest : str
            Hash of the prompt, by which a run that continues knows that it is the same.

        Raises
        ------
        DdsimError
            Not marginals, wrong shapes, tokens outside the vocabulary, or a name used before; nothing is
            added then.
        """
        where = self._new(workload, prompt_id, temperature, "rows")
        x, ids, values = _arrays(where, tokens, token_ids, logprobs)
        rounded = round_logprobs(values)
        _check_descending(where, rounded)
        rounded, ids = _order_ties(rounded, ids)
        rows = _sparse(where, self._meta, x, ids, rounded, prune=True)
        self._append(workload, prompt_id, temperature, prompt_tokens, rows, prompt_digest)

    def add_lattice(
        self,
        *,
        prompt_id: str,
        workload: str,
        temperature: float,
        prompt_tokens: int,
        tokens: ArrayLike,
        token_ids: ArrayLike,
        first: ArrayLike,
        transitions: ArrayLike,
        prompt_digest: str = "",
    ) -> None:
        """Add the answer to one prompt, of a trace of kind "lattice"; as ``add_sequence`` but for what is proposed.

        Parameters
        ----------
        token_ids : int [T, L, K] (or [T - 1, L, K])
        first : float [T, K] (or [T - 1, K])
        transitions : float [T, L - 1, K, K] (or [T - 1, L - 1, K, K])
            A `ddsim.Lattice` at each position, rounded by `ddsim.trace.folded.round_conditionals`; the last position is ignored.
        """
        where = self._new(workload, prompt_id, temperature, "lattice")
        paths = folded_lattices(where, self._meta, tokens, token_ids, first, transitions)
        self._append(workload, prompt_id, temperature, prompt_tokens, paths, prompt_digest)

    def add_trees(
        self,
        *,
        prompt_id: str,
        workload: str,
        temperature: float,
        prompt_tokens: int,
        tokens: ArrayLike,
        trees: Sequence[Any],
        prompt_digest: str = "",
    ) -> None:
        """Add the answer to one prompt, of a trace of kind "trees"; as ``add_sequence`` but for what is proposed.

        Parameters
        ----------
        trees : sequence of T or T - 1 trees
            As `ddsim.Trace.from_trees` takes them: (parents, tokens, path log-probabilities) without the root, best first, or a
            `ddsim.DraftTree`. The last position's is ignored.

        Examples
        --------
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> name = {"prompt_id": "a", "workload": "toy", "temperature": 0.0, "prompt_tokens": 4}
        >>> tree = [0, 1, 0], [6, 7, 8], np.log([0.5, 0.25, 0.125])
        >>> with TraceWriter(folder, horizon=2, max_budget=3, vocab_size=9, provenance={}, kind="trees") as writer:
        ...     writer.add_trees(**name, tokens=[5, 6, 7], trees=[tree, tree])
        >>> from ddsim.trace.trace import open_trace
        >>> open_trace(folder).kind
        'trees'
        """
        where = self._new(workload, prompt_id, temperature, "trees")
        paths = folded_trees(where, self._meta, tokens, trees)
        self._append(workload, prompt_id, temperature, prompt_tokens, paths, prompt_digest)

    def _new(self, workload: str, prompt_id: str, temperature: float, kind: str) -> str:
        """Name a sequence for error messages, if it may be added."""
        where = f"{_check_name('sequence', 'workload', workload)} {_check_name('sequence', 'prompt_id', prompt_id)}"
        if self._meta.get("kind", "rows") != kind:
            raise DdsimError(f"{self.path}: records {self._meta.get('kind', 'rows')}, not {kind}")
        _check_new(set(self.done), workload, prompt_id, _temperature(where, temperature), where)
        return where

    def _append(
        self,
        workload: str,
        prompt_id: str,
        temperature: float,
        prompt_tokens: int,
        rows: _Rows | Folded,
        prompt_digest: str,
    ) -> None:
        """Add a sequence whose rows are checked and pruned."""
        where = f"{workload} {prompt_id}"
        info = replace(
            _describe(where, workload, prompt_id, temperature, prompt_tokens, rows), prompt_digest=prompt_digest
        )
        self._pending.append((info, rows))
        self.prompt_digests[info.workload, info.prompt_id, info.temperature] = prompt_digest
        self.done.add((info.workload, info.prompt_id, info.temperature))
        self._positions += info.length
        if self._positions >= POSITIONS_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time as one more shard; does nothing if that is nothing."""
        if not self._pending:
            return
        if self._complete:  # the recording goes on; killed behind the next shard, it must not seem to have one too many
            self._list(complete=False)
        path = _shard_path(self.path, len(self._checksums))
        self._checksums.append(_write_shard(path, self._meta, self._sequence, self._pending))
        self._sequence += len(self._pending)
        self._pending, self._positions = [], 0
        self._list(complete=False)

    def _list(self, complete: bool) -> None:
        """Write down which shards there are."""
        _write_recording(self.path, self._checksums, complete)
        self._complete = complete

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
            if kind is None and self._checksums and not self._complete:
                self._list(complete=True)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Flush, and let the next writer in; the recording counts as interrupted."""
        try:
            self.flush()
        finally:
            self._lock.release()


def write_pieces(path: str | Path, pieces: Mapping[int, str]) -> None:
    """Put the text of tokens beside a trace (``_pieces.parquet``), for ``Trace.text``."""
    ids = sorted(pieces)
    table = pa.table({"id": pa.array(ids, pa.int32()), "piece": pa.array([pieces[i] for i in ids], pa.string())})
    table = table.replace_schema_metadata({"ddsim": json.dumps({"digest": _pieces_digest(pieces)})})
    # Ids rise in small steps and pieces are short: so encoded they take half of what dictionaries do.
    encoding = {"id": "DELTA_BINARY_PACKED", "piece": "DELTA_LENGTH_BYTE_ARRAY"}
    options = {"compression": "zstd", "compression_level": 19, "use_dictionary": False, "write_statistics": False}
    write(
        Path(path) / PIECES_FILE, lambda file: pq.write_table(table, file, column_encoding=encoding, **options)
    )  # fmt: skip


def _write_recording(folder: Path, checksums: Sequence[str], complete: bool) -> None:
    listed = {"schema_version": 1, "complete": complete, "shards": list(checksums)}
    write_text(folder / RECORDING_FILE, json.dumps(listed | {"checksum": _checksum(listed)}) + "\n")


def _table(schema: pa.Schema, first: int, parts: Sequence[tuple[SequenceInfo, Any]]) -> pa.Table:
    """Rows of some sequences."""
    lengths = np.array([info.length for info, _ in parts])
    here = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    rounds = np.concatenate([np.arange(length) < length - 1 for length in lengths])

    def spread(values: Sequence[Any], dtype: type) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), lengths)

    def lists(kind: pa.DataType, sizes: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
        edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(edges), pa.array(values, kind))

    columns = [
        pa.array(spread(range(first, first + len(parts)), np.int32)),
        pa.array(spread([info.prompt_id for info, _ in parts], object), pa.string()),
        pa.array(spread([info.workload for info, _ in parts], object), pa.string()),
        pa.array(spread([info.temperature for info, _ in parts], np.float32)),
        pa.array(here),
        pa.array(np.concatenate([rows.tokens for _, rows in parts])),
        pa.array(here + spread([info.prompt_tokens for info, _ in parts], np.int32)),
    ]
    if isinstance(parts[0][1], Folded):
        whole = Folded.joined([rows for _, rows in parts])
        sizes = whole.sizes()
        flat = {name: getattr(whole, name) for name in COLUMNS}
        flat["widths"] = whole.widths[rounds].ravel()
        flat["counts"] = whole.counts[np.repeat(rounds, sizes["counts"])]
        columns += [lists(schema.field(name).type.value_type, sizes[name] * rounds, flat[name]) for name in COLUMNS]
    else:
        counts = np.concatenate([rows.counts for _, rows in parts])
        ids = np.concatenate([rows.token_ids for _, rows in parts])
        logprobs = np.concatenate([rows.logprobs for _, rows in parts]).astype(np.float16)
        totals = counts.sum(1, dtype=np.int64)
        columns += [
            lists(pa.uint16(), rounds * counts.shape[1], counts[rounds].ravel().astype(np.uint16)),
            lists(schema.field("token_ids").type.value_type, totals, ids),
            lists(pa.float16(), totals, logprobs),
        ]
    return pa.Table.from_arrays(columns, schema=schema)


def _write_shard(path: Path, meta: Mapping[str, Any], first: int, parts: Sequence[tuple[SequenceInfo, Any]]) -> str:
    """Write a shard and return the checksum of its metadata."""
    full = dict(meta) | {"first_sequence": first, "digests": [info.digest for info, _ in parts], "listed": True}
    if any(info.prompt_digest for info, _ in parts):
        full["prompt_digests"] = [info.prompt_digest for info, _ in parts]
    checksum = full["checksum"] = _checksum(full)
    kind = meta.get("kind", "rows")
    schema = _schema(_id_type(meta["vocab_size"]), kind)
    tables, start, size = [], 0, 0
    for i, (info, _) in enumerate(parts):
        if i > start and size + info.length > POSITIONS_PER_GROUP:
            tables.append(_table(schema, first + start, parts[start:i]))
            start, size = i, 0
        size += info.length
    tables.append(_table(schema, first + start, parts[start:]))

    def write(file: Any) -> None:
        options = _PARQUET_OPTIONS | ({} if kind == "rows" else {"column_encoding": _FOLDED_ENCODING})
        with pq.ParquetWriter(file, schema, **options) as writer:
            writer.add_key_value_metadata({"ddsim": json.dumps(full)})
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))

    _write(path, write)
    return checksum


# Measured on shipped rows of marginals (105 pairs a position at 256 nodes): 100 bytes of token ids (PLAIN; byte streams 117), 99 of
# log-probabilities as byte streams. Pages of 1 MiB, the default, take 5 % more, as what repeats lies further apart.
_PARQUET_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 19,
    "use_dictionary": ["prompt_id", "workload"],
    "column_encoding": {
        "logprobs.list.element": "BYTE_STREAM_SPLIT",
    },
    "data_page_size": 1 << 24,
    "write_statistics": False,
    "write_page_checksum": True,
    "store_schema": False,
}


# Parquet keeps 16-bit integers in 32 bits; byte streams leave the empty halves together. Token ids repeat from position to position,
# which zstd finds only where their bytes are together: 87 bytes a position against 104.
_FOLDED_ENCODING = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in COLUMNS if name != "token_ids"}
