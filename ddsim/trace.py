"""Dense traces: what a drafter proposed at every position of recorded texts, as a folder of Parquet files.

A trace is a folder of shards ``part-NNNNN.parquet`` (zstd), one row per position of a sequence, whole
sequences only, in order. Any Parquet tool reads them::

    pandas.read_parquet("traces/humaneval")

===========  =============  =========================================================================
column       type           meaning
===========  =============  =========================================================================
sequence     int32          number of the sequence in this folder, from 0
prompt_id    string         name of the prompt that the sequence answers
workload     string         name of the set of prompts
temperature  float32        at which the target wrote the answer; 0 is greedy
position     int32          p, from 0 in every sequence; x[0] is the first generated token
token        int32          x[p], which the target committed
context      int32          tokens committed before x[p]: length of the prompt + p
counts       list<uint16>   candidates kept for depths 1..horizon; empty at the last position
token_ids    list<uint16>   candidates of depth 1, then those of depth 2, ... (int32 if the vocabulary
                            has more than 65,536 tokens)
logprobs     list<float16>  their log-probabilities: descending within a depth, equal ones by token id
===========  =============  =========================================================================

The candidates of depth d at position p are the drafter's marginal for x[p + d]. Only those that some tree of
at most ``max_budget`` nodes uses are kept, and the best of each depth, which the chain uses: so the trace is
exact up to that budget and says nothing beyond it.

The key-value metadata of every shard holds, under the key ``ddsim``, a JSON object: ``schema_version``,
``horizon``, ``block_size``, ``max_budget``, ``vocab_size``, ``provenance``, ``first_sequence``, ``digests``
(a hash of the content of each sequence), if known ``prompt_digests`` (a hash of the tokens of each prompt),
``listed`` and ``checksum`` (a hash of this object). Files in the folder whose names start with ``_`` or ``.`` are
no shards; ``_pieces.parquet`` (id, piece), if present, gives the text of
tokens.

``_recording.json`` lists the checksums of the shards and says whether the recording came to its end, so a shard
that is missing or of another recording is noticed. Shards with ``listed`` come with it; where it is lost the
recording counts as interrupted. Traces from before it was written don't have it: there a missing last shard can't
be told.

Opening a trace verifies all that it tells: every sequence, its names, context and candidates, against its hash.
That is done once for the bytes of a shard and remembered in the user's cache folder.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from . import files
from .arrays import numbers, relative_error, whole_numbers
from .cache import is_known, remember
from .errors import DdsimError
from .jsonfile import array, brief, integer, mapping, need, parse
from .locks import FolderLock

SCHEMA_VERSION = 1
MOST_MATCHES = 10_000  # of a pattern, at any depth
DEFAULT_MAX_BUDGET = 512
ROW_SUM_TOLERANCE = 1e-4  # rows come from float32 softmaxes, whose sums are not exactly 1
MAX_HORIZON = 255  # accepted tokens are counted in a byte
MAX_BUDGET = 65535  # counts of candidates are recorded in 16 bits
PIECES_FILE = "_pieces.parquet"
RECORDING_FILE = "_recording.json"
VERIFIED = "verified-1"  # counted up when opening a trace verifies more
# Entries of a provenance that may differ between two runs of one recording.
CHANGING_PROVENANCE = ("recorded", "date", "seconds")
# Row groups hold whole sequences, about so many positions; a reader holds one of them at a time.
POSITIONS_PER_GROUP = 8192
POSITIONS_PER_SHARD = 65536

_INDEX_COLUMNS = ["sequence", "prompt_id", "workload", "temperature", "position", "context"]
_ROW_COLUMNS = ["token", "counts", "token_ids", "logprobs"]


def round_logprobs(logprobs: ArrayLike) -> NDArray[np.float32]:
    """Round log-probabilities down to what float16 can hold.

    Recorder and decoder pass the drafter's marginals through this, so both build the same trees: sums of at
    most a few dozen such values are exact in float64 whatever their order. Rounding down keeps the sum of a
    row's probabilities at or below 1.

    Parameters
    ----------
    logprobs : array_like of float32, any shape
        Log-probabilities (natural logarithm), 0 at most.

    Returns
    -------
    float32 ndarray, same shape
        The largest float16 value that is not above each input; -inf below -65,504. NaN stays NaN.

    Examples
    --------
    >>> round_logprobs([-0.1, -1e-9]).tolist()
    [-0.10003662109375, -5.960464477539063e-08]
    """
    exact = np.asarray(logprobs, np.float32)
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
        half = np.where(half.astype(np.float32) > exact, np.nextafter(half, np.float16(-np.inf)), half)
    return half.astype(np.float32)


@dataclass(frozen=True)
class SequenceInfo:
    """What is known of a recorded sequence without reading its candidates."""

    workload: str
    prompt_id: str
    temperature: float
    prompt_tokens: int
    length: int
    """Committed tokens = positions."""
    digest: str
    """Hash of the sequence's whole content."""
    prompt_digest: str = ""
    """Hash of the prompt's tokens; empty in recordings that keep none."""


@dataclass(frozen=True)
class TraceBlock:
    """Some whole sequences of a trace, in memory: S sequences, P positions, M kept (token, log-probability)
    pairs.

    The candidates of depth d at position p (row p·L + d − 1 of P·L) are ``token_ids[a:b]`` and
    ``logprobs[a:b]`` with ``a, b = offsets[p * L + d - 1], offsets[p * L + d]``.
    """

    horizon: int
    first_sequence: int
    """Number of the block's first sequence in the trace."""
    tokens: NDArray[np.int32]
    """[P] committed tokens x."""
    context: NDArray[np.int32]
    """[P] tokens committed before each."""
    sequence: NDArray[np.int32]
    """[P] number of the sequence in the trace."""
    starts: NDArray[np.int64]
    """[S + 1] sequence s is positions starts[s] : starts[s + 1]."""
    offsets: NDArray[np.int64]
    """[P * L + 1] where each row of candidates starts in the next two."""
    token_ids: NDArray[np.int32]
    """[M] candidates."""
    logprobs: NDArray[np.float32]
    """[M] their log-probabilities, descending within a row."""
    prompt_id: list[str]
    """[S]"""
    workload: list[str]
    """[S]"""
    temperature: NDArray[np.float32]
    """[S]"""

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, position: int) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Candidates and log-probabilities of depths 1..L at a position of the block."""
        edges = self.offsets[position * self.horizon : (position + 1) * self.horizon + 1]
        return [(self.token_ids[a:b], self.logprobs[a:b]) for a, b in pairwise(edges)]


@dataclass(frozen=True)
class _Rows:
    """One sequence: T positions."""

    tokens: NDArray[np.int32]  # [T]
    counts: NDArray[np.int32]  # [T, L]; zeros at the last position
    token_ids: NDArray[np.int32]  # [M]
    logprobs: NDArray[np.float32]  # [M]


class _Source(Protocol):
    """Where sequences come from."""

    infos: list[SequenceInfo]

    def load(self, wanted: Sequence[int]) -> Iterator[_Rows]:
        """The sequences with these ascending numbers."""
        ...


class Trace:
    """A recording that replays read: drafter's marginals and committed tokens, position by position.

    Made by ``open_trace`` or ``Trace.from_arrays``. Candidates are read from disk only while ``blocks`` runs.

    Attributes
    ----------
    meta : dict
        ``schema_version``, ``horizon``, ``block_size``, ``max_budget``, ``vocab_size``, ``provenance`` (what
        all parts of the trace agree on), ``provenances`` (that of each part) and ``complete`` (whether the
        recording came to its end; None where that isn't known).
    sequences : tuple of SequenceInfo
    path : Path or None
        The folder, or the first of several; None in memory.
    """

    def __init__(
        self, meta: dict[str, Any], entries: Sequence[tuple[_Source, int]], folders: Sequence[Path] = ()
    ) -> None:
        self.meta = meta
        self.sequences = tuple(source.infos[i] for source, i in entries)
        self._entries = tuple(entries)
        self._folders = tuple(folders)
        self._pieces: dict[int, str] | None = None

    def __len__(self) -> int:
        """Positions."""
        return sum(info.length for info in self.sequences)

    def __repr__(self) -> str:
        return (
            f"<Trace: {len(self)} positions, {len(self.sequences)} sequences, "
            f"workloads {', '.join(self.workloads)}, "
            f"horizon {self.horizon}, exact to budget {self.max_budget}>"
        )

    @property
    def horizon(self) -> int:
        """Positions that a draft proposes, L."""
        return int(self.meta["horizon"])

    @property
    def max_budget(self) -> int:
        """The largest budget that the trace answers exactly, N."""
        return int(self.meta["max_budget"])

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return int(self.meta["vocab_size"])

    @property
    def path(self) -> Path | None:
        """The folder, or the first of several; None in memory."""
        return self._folders[0] if self._folders else None

    @property
    def workloads(self) -> tuple[str, ...]:
        """Names of the workloads, in order of appearance."""
        return tuple(dict.fromkeys(info.workload for info in self.sequences))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures, ascending."""
        return tuple(sorted({info.temperature for info in self.sequences}))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: the same for the same sequences in the same order, however they are
        stored."""
        shape = [self.horizon, self.max_budget, self.vocab_size]
        return hashlib.sha256(json.dumps([shape, [info.digest for info in self.sequences]]).encode()).hexdigest()

    def check_budget(self, budget: int) -> None:
        """Refuse a budget that the trace can't answer exactly.

        Raises
        ------
        DdsimError
            ``budget`` is negative or above ``max_budget``.
        """
        if budget < 0:
            raise DdsimError(f"budget {budget}: must be 0 or more")
        if budget > self.max_budget:
            where = self.path or "this trace"
            raise DdsimError(
                f"budget {budget}: {where} keeps candidates for budgets up to {self.max_budget} only; "
                "choose a smaller one or record with a larger max_budget"
            )

    def select(
        self,
        workload: str | Sequence[str] | None = None,
        temperature: float | None = None,
        prompts: str | Iterable[str] | None = None,
    ) -> Trace:
        """The part of the trace with the given workload(s), temperature and prompt name(s); no copy.

        Raises
        ------
        DdsimError
            No sequence is left, or names that aren't text.

        Examples
        --------
        >>> ids, logprobs = [np.ones((2, 1, 1), int)] * 2, [np.zeros((2, 1, 1))] * 2
        >>> trace = Trace.from_arrays([[1, 2]] * 2, ids, logprobs, workload=["a", "b"])
        >>> len(trace.select(workload="b"))
        2
        """
        workloads, names = _names("workload", workload), _names("prompts", prompts)
        heat = None if temperature is None else _temperature("select", temperature)
        kept = [
            entry
            for entry, info in zip(self._entries, self.sequences, strict=True)
            if (workloads is None or info.workload in workloads)
            and (heat is None or info.temperature == heat)
            and (names is None or info.prompt_id in names)
        ]
        if not kept:
            raise DdsimError(
                f"no sequence with workload {workload}, temperature {temperature} and the given prompts; "
                "the trace has "
                f"workloads {', '.join(self.workloads)} at "
                f"temperatures {', '.join(map(str, self.temperatures))}"
            )
        return Trace(self.meta, kept, self._folders)

    def subset(self, numbers: Iterable[int]) -> Trace:
        """The sequences with these numbers (places in ``sequences``), in the order of the trace; no copy.

        Raises
        ------
        DdsimError
            No number, or one that no sequence has.
        """
        chosen = _listed("subset", numbers)
        for number in chosen:
            if (
                not isinstance(number, (int, np.integer))
                or isinstance(number, bool)
                or not 0 <= number < len(self._entries)
            ):
                raise DdsimError(
                    f"subset: {brief(number)} is no number of a sequence; they go from 0 to {len(self._entries) - 1}"
                )
        if not chosen:
            raise DdsimError("subset: no number given")
        return Trace(self.meta, [self._entries[i] for i in sorted(set(chosen))], self._folders)

    def blocks(self, max_positions: int = 8192) -> Iterator[TraceBlock]:
        """Whole sequences, in order, about ``max_positions`` positions at a time (a longer sequence comes
        alone).

        Raises
        ------
        DdsimError
            Content is damaged or breaks an invariant; the line names file, row and reason.
        """
        pending: list[_Rows] = []
        size = first = 0
        for number, rows in enumerate(self._load()):
            if pending and size + len(rows.tokens) > max_positions:
                yield self._block(first, pending)
                pending, size, first = [], 0, number
            pending.append(rows)
            size += len(rows.tokens)
        if pending:
            yield self._block(first, pending)

    def _load(self) -> Iterator[_Rows]:
        """All sequences, opening each source once per run of neighbouring sequences."""
        i = 0
        while i < len(self._entries):
            source, j = self._entries[i][0], i
            while j < len(self._entries) and self._entries[j][0] is source:
                j += 1
            yield from source.load([k for _, k in self._entries[i:j]])
            i = j

    def _block(self, first: int, parts: list[_Rows]) -> TraceBlock:
        infos = self.sequences[first : first + len(parts)]
        lengths = np.array([info.length for info in infos])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        counts = np.concatenate([part.counts.ravel() for part in parts])
        here = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return TraceBlock(
            horizon=self.horizon,
            first_sequence=first,
            tokens=np.concatenate([part.tokens for part in parts]),
            context=(here + np.repeat([info.prompt_tokens for info in infos], lengths)).astype(np.int32),
            sequence=np.repeat(np.arange(first, first + len(parts)), lengths).astype(np.int32),
            starts=starts,
            offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            token_ids=np.concatenate([part.token_ids for part in parts]),
            logprobs=np.concatenate([part.logprobs for part in parts]),
            prompt_id=[info.prompt_id for info in infos],
            workload=[info.workload for info in infos],
            temperature=np.array([info.temperature for info in infos], np.float32),
        )

    def check(self) -> None:
        """Read everything once; raises ``DdsimError`` at the first thing that is wrong."""
        for _ in self._load():
            pass

    def text(self, ids: Iterable[int]) -> str:
        """Tokens as text: their pieces if the trace comes with them, ``<id>`` otherwise."""
        if self._pieces is None:
            self._pieces = {}
            for folder in self._folders:
                if (folder / PIECES_FILE).exists():
                    self._pieces |= _read_pieces(folder / PIECES_FILE)
        return "".join(self._pieces.get(int(i), f"<{int(i)}>") for i in ids)

    def save(self, path: str | Path) -> None:
        """Write this trace (or selection, or merger) as a new folder of few, large shards.

        One that was made from arrays is rounded and pruned as ``TraceWriter.add_sequence`` does.

        Raises
        ------
        DdsimError
            The folder can't be written, or holds a trace already.
        """
        provenance = self.meta["provenance"]
        with TraceWriter(
            path,
            horizon=self.horizon,
            max_budget=self.max_budget,
            vocab_size=self.vocab_size,
            provenance=provenance,
            resume=False,
        ) as writer:
            for (source, _), info, rows in zip(self._entries, self.sequences, self._load(), strict=True):
                if isinstance(source, _Memory):  # neither pruned nor rounded yet
                    token_ids, logprobs = _dense(rows)
                    writer.add_sequence(
                        prompt_id=info.prompt_id,
                        workload=info.workload,
                        temperature=info.temperature,
                        prompt_tokens=info.prompt_tokens,
                        tokens=rows.tokens,
                        token_ids=token_ids,
                        logprobs=logprobs,
                    )
                else:
                    writer._append(
                        info.workload, info.prompt_id, info.temperature, info.prompt_tokens, rows, info.prompt_digest
                    )

    @classmethod
    def from_arrays(
        cls,
        tokens: Any,
        token_ids: Any,
        logprobs: Any,
        *,
        workload: str | Sequence[str] = "",
        prompt_id: str | Sequence[str] | None = None,
        context0: int | Sequence[int] = 0,
        temperature: float | Sequence[float] = 0.0,
        max_budget: int | None = None,
        vocab_size: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Trace:
        """A trace in memory, from arrays of one sequence or lists of arrays of several.

        Parameters
        ----------
        tokens : int array [T], or several: a list of such, or [S, T]
            Committed tokens. All arrays may be NumPy's, PyTorch tensors, or nested lists.
        token_ids, logprobs : int and float arrays [T, L, K] (or [T - 1, L, K]: the last position starts no
        round), or several
            Candidates of depths 1..L and their log-probabilities, descending; -inf for none. They are taken
            as they are: candidates beyond the K given don't exist. Only rows of bfloat16 and float16 whose
            probabilities sum above 1 by no more than such rounding does are scaled to sum to 1.
        workload, prompt_id, context0, temperature : one value, or one per sequence
            ``context0`` is the length of the prompt. Prompts are numbered unless named.
        max_budget : int, optional
            Largest budget that may be asked of the trace; 512 by default.
        vocab_size : int, optional
            By default the largest token + 1.

        Raises
        ------
        DdsimError
            Not marginals, or lengths that don't match; names sequence, position and depth.

        Examples
        --------
        >>> logprobs = np.log(np.full((3, 2, 2), [0.6, 0.3]))
        >>> trace = Trace.from_arrays([5, 6, 7], np.full((3, 2, 2), [6, 7]), logprobs, max_budget=6)
        >>> len(trace), trace.horizon, next(trace.blocks()).offsets[-1]
        (3, 2, np.int64(8))
        """
        if _is_row(tokens[0]) if isinstance(tokens, (list, tuple)) and tokens else getattr(tokens, "ndim", 1) == 2:
            given = [_listed(*one) for one in (("tokens", tokens), ("token_ids", token_ids), ("logprobs", logprobs))]
        else:
            given = [[tokens], [token_ids], [logprobs]]
        count = len(given[0])
        if count == 0 or len(given[1]) != count or len(given[2]) != count:
            raise DdsimError(
                f"{count} sequences of tokens, {len(given[1])} of token_ids and {len(given[2])} of logprobs: must be "
                "equally many, at least one"
            )

        def spread(name: str, value: Any) -> list[Any]:
            values = _listed(name, value) if _is_row(value) else [value] * count
            if len(values) != count:
                raise DdsimError(f"{name}: {len(values)} values for {count} sequences")
            return values

        workloads, contexts = spread("workload", workload), spread("context0", context0)
        temperatures = spread("temperature", temperature)
        names = [str(i) for i in range(count)] if prompt_id is None else spread("prompt_id", prompt_id)
        parts = [_arrays(f"sequence {i}", *one) for i, one in enumerate(zip(*given, strict=True))]
        size = vocab_size
        if size is None:
            used = [ids[values > -np.inf].max(initial=0) for _, ids, values in parts]
            size = 1 + int(max(*used, *(x.max() for x, _, _ in parts), 0))
        most = DEFAULT_MAX_BUDGET if max_budget is None else max_budget
        meta = _metadata(parts[0][2].shape[1], most, size, {} if provenance is None else provenance)
        rows, infos, seen = [], [], set[tuple[str, str, float]]()
        for i, (x, ids, values) in enumerate(parts):
            where = f"sequence {i}"
            part = _sparse(where, meta, x, ids, _rescaled(values, relative_error(given[2][i])))
            rows.append(part)
            name = names[i] if isinstance(names[i], str) else str(_count(where, "prompt_id", names[i]))
            info = _describe(where, workloads[i], name, temperatures[i], _count(where, "context0", contexts[i]), part)
            _check_new(seen, info.workload, info.prompt_id, info.temperature, where)
            infos.append(info)
        source = _Memory(infos, rows)
        return cls(meta | {"provenances": [meta["provenance"]], "complete": True}, [(source, i) for i in range(count)])


def open_trace(path: str | Path | Sequence[str | Path]) -> Trace:
    """Open a trace: a folder of shards, a folder of such folders, a pattern (``*``, ``?``) of either, or a
    list of any of these.

    Several folders are read one after the other as one trace; they must agree in horizon, largest budget,
    vocabulary, target and drafter. All is verified against its hashes, once for the content of each file (the user's
    cache folder remembers which were sound); only the index of the sequences stays in memory. A recording that was
    interrupted, or that is still running, can be read and gives a warning.

    Parameters
    ----------
    path : str, Path, or sequence of them

    Returns
    -------
    Trace

    Raises
    ------
    DdsimError
        Nothing there, or a damaged, newer or inconsistent file; the line names file, row and reason.
    """
    try:
        paths = [Path(one) for one in ([path] if isinstance(path, (str, os.PathLike)) else path)]
    except TypeError:
        raise DdsimError(f"open_trace: {type(path).__name__} is no path; give a folder or a list of folders") from None
    try:
        folders = list(dict.fromkeys(folder for one in paths for folder in _trace_folders(one)))
    except (OSError, ValueError) as error:
        if isinstance(error, DdsimError):
            raise
        raise DdsimError(f"{paths[0]}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not folders:
        raise DdsimError("no trace given")
    metas: list[tuple[Path, dict[str, Any]]] = []
    entries: list[tuple[_Source, int]] = []
    seen: set[tuple[str, str, float]] = set()
    complete: list[bool | None] = []
    for folder in folders:
        shards = list(_shards(folder))
        complete.append(_check_recording(folder, shards))
        if complete[-1] is False:
            warnings.warn(
                f"{folder}: the recording was interrupted or is still running; it holds "
                f"{sum(len(shard.infos) for shard in shards)} sequences so far",
                stacklevel=2,
            )
        for shard in shards:
            shard.verify()
            metas.append((shard.path, shard.meta))
            _check_agree(*metas[0], *metas[-1], ("target", "drafter", "drafter_sha256"))
            for i, info in enumerate(shard.infos):
                where = f"{shard.path}: row {shard.starts[i]}"
                _check_new(seen, info.workload, info.prompt_id, info.temperature, where)
                entries.append((shard, i))
    first = metas[0][1]
    provenances: list[dict[str, Any]] = []
    for _, meta in metas:
        if meta["provenance"] not in provenances:
            provenances.append(meta["provenance"])
    agreed = {k: v for k, v in provenances[0].items() if all(k in p and p[k] == v for p in provenances)}
    whole = False if False in complete else None if None in complete else True
    return Trace(first | {"provenance": agreed, "provenances": provenances, "complete": whole}, entries, folders)


class TraceWriter:
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
        folder (`ddsim.locks.FolderLock`, held until the block is left or ``close``).

    Examples
    --------
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
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise DdsimError(f"{brief(path)}: is no path; give a folder")
        self.path = Path(path)
        self.done: set[tuple[str, str, float]] = set()
        self.prompt_digests: dict[tuple[str, str, float], str] = {}
        self._meta = _metadata(horizon, max_budget, vocab_size, provenance)
        self._pending: list[tuple[SequenceInfo, _Rows]] = []
        self._positions = 0
        self._sequence = 0
        self._complete = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DdsimError(f"{self.path}: can't be made a folder ({reason})") from None
        self._checksums: list[str] = []
        self._lock = FolderLock(self.path)
        try:
            self._continue(resume)
        except BaseException:
            self._lock.release()
            raise

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
        where = f"{_check_name('sequence', 'workload', workload)} {_check_name('sequence', 'prompt_id', prompt_id)}"
        _check_new(set(self.done), workload, prompt_id, _temperature(where, temperature), where)
        x, ids, values = _arrays(where, tokens, token_ids, logprobs)
        rounded = round_logprobs(values)
        _check_descending(where, rounded)
        rounded, ids = _order_ties(rounded, ids)
        rows = _sparse(where, self._meta, x, ids, rounded, prune=True)
        self._append(workload, prompt_id, temperature, prompt_tokens, rows, prompt_digest)

    def _append(
        self, workload: str, prompt_id: str, temperature: float, prompt_tokens: int, rows: _Rows, prompt_digest: str
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
    files.write(
        Path(path) / PIECES_FILE, lambda file: pq.write_table(table, file, compression="zstd", compression_level=19)
    )


# --- content ------------------------------------------------------------------


_SHAPE = ("horizon", "max_budget", "vocab_size")


def _metadata(horizon: Any, max_budget: Any, vocab_size: Any, provenance: Mapping[str, Any]) -> dict[str, Any]:
    limits = (MAX_HORIZON, MAX_BUDGET, 2**31 - 1)
    for name, value, most in zip(_SHAPE, (horizon, max_budget, vocab_size), limits, strict=True):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1 <= value <= most:
            raise DdsimError(f"{name} {brief(value)}: must be a whole number from 1 to {most:,}")
    try:
        told = parse(json.dumps(dict(provenance), allow_nan=False).encode(), "provenance")
    except DdsimError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DdsimError(f"provenance: must be a mapping of JSON values ({error})") from None
    return {
        "schema_version": SCHEMA_VERSION,
        "horizon": int(horizon),
        "block_size": int(horizon) + 1,
        "max_budget": int(max_budget),
        "vocab_size": int(vocab_size),
        "provenance": told,
    }


def _check_name(where: str, what: str, name: Any) -> str:
    """Names are printed, and drawn: refuse what isn't text, or controls terminals and breaks lines."""
    if not isinstance(name, str):
        raise DdsimError(f"{where}: {what} {brief(name)} must be text")
    if len(name) > 500 or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise DdsimError(f"{where}: {what} {brief(name)} is longer than 500 characters or holds control characters")
    return name


def _digest(workload: str, prompt_id: str, temperature: float, prompt_tokens: int, rows: _Rows) -> str:
    """Hash of a sequence's content, the same whether it lies in a file or in memory."""
    half = rows.logprobs.astype(np.float16)
    exact = np.array_equal(half.astype(np.float32), rows.logprobs)
    logprobs = half.astype("<f2") if exact else rows.logprobs.astype("<f4")
    head = [workload, prompt_id, temperature, prompt_tokens, len(rows.tokens), logprobs.dtype.str]
    digest = hashlib.sha256(json.dumps(head).encode())
    for part in (
        rows.tokens.astype("<i4"),
        rows.counts.astype("<i4"),
        rows.token_ids.astype("<i4"),
        logprobs,
    ):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]


def _describe(
    where: str, workload: Any, prompt_id: Any, temperature: Any, prompt_tokens: Any, rows: _Rows
) -> SequenceInfo:
    workload, prompt_id = _check_name(where, "workload", workload), _check_name(where, "prompt_id", prompt_id)
    heat = _temperature(where, temperature)
    before = _count(where, "prompt_tokens", prompt_tokens)
    if before >= 2**31 - len(rows.tokens):
        raise DdsimError(f"{where}: a prompt of {before} tokens")
    digest = _digest(workload, prompt_id, heat, before, rows)
    return SequenceInfo(workload, prompt_id, heat, before, len(rows.tokens), digest)


def _temperature(where: str, value: Any) -> float:
    """As float32 holds it."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and 0 <= value < 1e38:
        return float(np.float32(value))
    raise DdsimError(f"{where}: temperature {brief(value)} must be a number of 0 or more")


def _count(where: str, name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise DdsimError(f"{where}: {name} {brief(value)} must be a whole number of 0 or more")
    return int(value)


def _is_row(value: Any) -> bool:
    """Whether a value is more than one number: a list, or an array of any kind."""
    return bool(getattr(value, "ndim", isinstance(value, (list, tuple))))


def _listed(name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except Exception:
        raise DdsimError(f"{name}: must be a list") from None


def _arrays(
    where: str, tokens: Any, token_ids: Any, logprobs: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Arrays of one sequence, whatever they came as, if their shapes fit: [T], and [T, L, K] or [T - 1, L, K] twice."""
    x = whole_numbers(tokens, f"{where}: tokens")
    ids = whole_numbers(token_ids, f"{where}: token_ids")
    with np.errstate(over="ignore"):
        values = numbers(logprobs, f"{where}: logprobs").astype(np.float32)
    if x.ndim != 1 or len(x) == 0:
        raise DdsimError(f"{where}: tokens must be a row of at least one integer, got shape {x.shape}")
    if ids.shape != values.shape or values.ndim != 3 or len(values) not in (len(x), len(x) - 1):
        raise DdsimError(
            f"{where}: {len(x)} tokens, token_ids of shape {ids.shape}, logprobs of shape {values.shape}: "
            f"must be [{len(x)}, horizon, candidates]"
        )
    return x, ids, values


def _rescaled(values: NDArray[np.float32], error: float) -> NDArray[np.float32]:
    """Divide probabilities of rows that sum above 1 by their sum, where rounding to a coarse type explains it."""
    if not error or not np.all(values <= 0):
        return values
    sums = np.exp(values, dtype=np.float64).sum(-1, keepdims=True)
    over = (sums > 1 + ROW_SUM_TOLERANCE) & (sums < 1 + 16 * error)  # log-probabilities of interest are above -16
    return np.where(over, values - np.log(np.maximum(sums, 1)), values).astype(np.float32)


def _sparse(
    where: str,
    meta: Mapping[str, Any],
    x: NDArray[np.int64],
    ids: NDArray[np.int64],
    values: NDArray[np.float32],
    prune: bool = False,
) -> _Rows:
    """Check dense arrays of one sequence, from `_arrays`, and keep the candidates that exist (``prune``: and that
    trees can use)."""
    horizon, vocab, most = int(meta["horizon"]), int(meta["vocab_size"]), int(meta["max_budget"])
    if values.shape[1] != horizon:
        raise DdsimError(f"{where}: {values.shape[1]} depths, but the horizon is {horizon}")
    if np.any((x < 0) | (x >= vocab)):
        p = int(np.argmax((x < 0) | (x >= vocab)))
        raise DdsimError(f"{where}: token {x[p]} at position {p} lies outside the vocabulary of {vocab}")
    rounds = len(x) - 1
    width = values.shape[2]
    ids, values = ids[:rounds], np.ascontiguousarray(values[:rounds])
    _check_descending(where, values)
    exists = values > -np.inf
    counts = np.zeros((len(x), horizon), np.int32)
    if rounds and width:
        if prune:
            from .tree import kept_pairs  # imports Numba, which readers of traces can do without

            counts[:rounds] = kept_pairs(values, most)
            full = (counts[:rounds] == width) & (width < min(most, vocab))
            if full.any():
                p, d = (int(v) for v in np.argwhere(full)[0])
                raise DdsimError(
                    f"{where}: position {p}, depth {d + 1}: all {width} candidates matter "
                    f"up to budget {most}; "
                    f"give {min(most, vocab)} of them"
                )
            # The chain of best candidates goes on where no tree does.
            counts[:rounds] = np.maximum(counts[:rounds], exists[:, :, 0])
        else:
            counts[:rounds] = exists.sum(-1)
        kept = np.arange(width) < counts[:rounds, :, None]
    else:
        kept = exists
    rows = _Rows(x.astype(np.int32), counts, ids[kept].astype(np.int64), values[kept])
    bad = _first_bad_row(rows.counts, rows.token_ids, rows.logprobs, vocab, ties_ordered=False)
    if bad is not None:
        raise DdsimError(f"{where}: position {bad[0]}, depth {bad[1] + 1}: {bad[2]}")
    # The sum is over all that was given: pruning could hide a row that is no marginal.
    sums = np.exp(values, dtype=np.float64).sum(-1)
    if np.any(sums > 1 + ROW_SUM_TOLERANCE):
        p, d = (int(v) for v in np.argwhere(sums > 1 + ROW_SUM_TOLERANCE)[0])
        raise DdsimError(f"{where}: position {p}, depth {d + 1}: probabilities sum to {sums[p, d]:.6g}, above 1")
    depth = np.repeat(np.arange(rows.counts.size), rows.counts.ravel())
    order = np.lexsort((rows.token_ids, depth))
    twice = (np.diff(depth[order]) == 0) & (np.diff(rows.token_ids[order]) == 0)
    if twice.any():
        row = int(depth[order][int(np.argmax(twice))])
        token = int(rows.token_ids[order][int(np.argmax(twice))])
        raise DdsimError(f"{where}: position {row // horizon}, depth {row % horizon + 1}: token {token} twice")
    return _Rows(rows.tokens, rows.counts, rows.token_ids.astype(np.int32), rows.logprobs)


def _dense(rows: _Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Token ids and log-probabilities [T, L, K + 1], -inf beyond the candidates that exist."""
    here = np.arange(int(rows.counts.max(initial=0)) + 1) < rows.counts[..., None]
    token_ids, logprobs = np.zeros(here.shape, np.int32), np.full(here.shape, -np.inf, np.float32)
    token_ids[here], logprobs[here] = rows.token_ids, rows.logprobs
    return token_ids, logprobs


def _check_descending(where: str, values: NDArray[np.floating[Any]]) -> None:
    """Refuse dense rows that aren't descending log-probabilities with any -inf at the end."""
    if values.ndim != 3:
        return  # the shapes are refused later
    for what, bad in (
        ("not a number", np.isnan(values)),
        ("positive", values > 0),
        (
            "not in descending order",
            np.pad(values[..., 1:] > values[..., :-1], [(0, 0), (0, 0), (min(1, values.shape[2]), 0)]),
        ),
    ):
        if bad.any():
            p, d, k = (int(v) for v in np.argwhere(bad)[0])
            raise DdsimError(
                f"{where}: position {p}, depth {d + 1}: log-probability {values[p, d, k]:g} of candidate {k} is {what}"
            )


def _order_ties(values: NDArray[np.float32], ids: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Order equal values (made so by rounding) by token id, where they aren't yet."""
    wrong = (values[..., 1:] == values[..., :-1]) & (ids[..., 1:] < ids[..., :-1]) & (values[..., 1:] > -np.inf)
    for p, d in np.argwhere(wrong.any(-1)):
        order = np.lexsort((ids[p, d], -values[p, d]))
        values[p, d], ids[p, d] = values[p, d][order], ids[p, d][order]
    return values, ids


def _first_bad_row(
    counts: NDArray[np.int32], ids: NDArray[Any], values: NDArray[np.float32], vocab: int, ties_ordered: bool
) -> tuple[int, int, str] | None:
    """The first (position, depth index, reason) whose kept candidates can't be a marginal, if any."""
    depths = counts.shape[1]
    sizes = counts.ravel().astype(np.int64)
    ends = np.cumsum(sizes)
    inner = np.ones(len(values), bool)  # pairs that have a predecessor in their row
    inner[(ends - sizes)[sizes > 0]] = False
    before, here = values[:-1], values[1:]
    unordered = np.zeros(len(values), bool)
    unordered[1:] = here > before
    if ties_ordered:
        unordered[1:] |= (here == before) & (ids[1:] <= ids[:-1])
    full = ends[sizes > 0] - sizes[sizes > 0]
    sums = np.add.reduceat(np.exp(values, dtype=np.float64), full) if len(full) else np.zeros(0)
    gap = np.zeros(counts.shape, bool)
    gap[:, 1:] = (counts[:, 1:] > 0) & (counts[:, :-1] == 0)
    candidates = [
        (~(values <= 0) | ~np.isfinite(values), "log-probability {value:g} is not finite and 0 or less"),
        (inner & unordered, "log-probabilities are not in descending order (ties: ascending token id)"),
        ((ids < 0) | (ids >= vocab), "token {token} lies outside the vocabulary of {vocab}"),
    ]
    found: list[tuple[int, str]] = []
    for bad, text in candidates:
        if bad.any():
            i = int(np.argmax(bad))
            row = int(np.searchsorted(ends, i, side="right"))
            found.append((row, text.format(value=float(values[i]), token=int(ids[i]), vocab=vocab)))
    if len(full) and sums.max() > 1 + ROW_SUM_TOLERANCE:
        i = int(np.argmax(sums > 1 + ROW_SUM_TOLERANCE))
        found.append((int(np.flatnonzero(sizes > 0)[i]), f"probabilities sum to {sums[i]:.6g}, above 1"))
    if gap.any():
        found.append((int(np.argmax(gap)), "candidates after a depth without any"))
    if not found:
        return None
    row, reason = min(found, key=lambda item: item[0])
    return row // depths, row % depths, reason


def _check_new(
    seen: set[tuple[str, str, float]], workload: str, prompt_id: str, temperature: float, where: str
) -> None:
    if (workload, prompt_id, temperature) in seen:
        raise DdsimError(
            f"{where}: the answer to prompt {prompt_id!r} of workload {workload!r} at "
            f"temperature {temperature:g} is in the "
            "trace already"
        )
    seen.add((workload, prompt_id, temperature))


def _check_agree(
    path: Path,
    meta: Mapping[str, Any],
    other_path: Path | None,
    other: Mapping[str, Any],
    keys: Iterable[str],
) -> None:
    """Refuse to join recordings that differ in shape or in the given entries of their provenance."""
    right = "this run" if other_path is None else f"{other_path}"
    mine, others = _leaves(meta["provenance"]), _leaves(other["provenance"])
    pairs = [(name, meta[name], other[name]) for name in ("horizon", "max_budget", "vocab_size")]
    for key in keys:
        ours, theirs = mine.get(key), others.get(key)
        if other_path is None or (ours is not None and theirs is not None):
            pairs.append((key, ours, theirs))
    for name, ours, theirs in pairs:
        if ours is None and theirs is not None:
            raise DdsimError(
                f"{path}: recorded without {name} (by an older ddsim?), so whether this run would continue it can't be "
                "known; choose another folder"
            )
        if ours != theirs:
            raise DdsimError(
                f"{path}: recorded with {name} {brief(ours)}, {right} has {brief(theirs)}; they can't be one trace"
            )


def _leaves(provenance: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of a provenance, those of objects within as ``object.entry``."""
    found: dict[str, Any] = {}
    for key, value in provenance.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _names(what: str, value: Any) -> set[str] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else _listed(what, value)
    if not all(isinstance(name, str) for name in names):
        raise DdsimError(f"{what}: must be a name or a list of names")
    return set(names)


class _Memory:
    """Sequences in memory."""

    def __init__(self, infos: list[SequenceInfo], rows: list[_Rows]) -> None:
        self.infos = infos
        self._rows = rows

    def load(self, wanted: Sequence[int]) -> Iterator[_Rows]:
        return (self._rows[i] for i in wanted)


# --- files --------------------------------------------------------------------


def _trace_folders(path: Path) -> list[Path]:
    """The folders with shards that a path means."""
    if glob.has_magic(str(path)) and not path.exists():
        folders = [folder for match in _matches(path) for folder in _with_shards(match)]
        if not folders:
            raise DdsimError(f"{path}: no folder with a trace matches")
        return folders
    if path.is_file():
        raise DdsimError(f"{path}: is a file; a trace is a folder, give {path.parent}")
    if not path.is_dir():
        raise DdsimError(f"{path}: no such trace")
    folders = _with_shards(path)
    if not folders:
        raise DdsimError(f"{path}: no trace there (no part-*.parquet, also not one folder down)")
    return folders


def _matches(pattern: Path) -> list[Path]:
    """The paths that a pattern means; one that goes through half of the disk is refused before it has."""
    found = [pattern.parents[-1]] if len(pattern.parents) else [pattern]
    for part in pattern.relative_to(found[0]).parts:
        deeper: list[Path] = []
        for path in found:
            names = glob.iglob(part, root_dir=path) if glob.has_magic(part) else [part]
            deeper += (path / name for name in islice(names, MOST_MATCHES) if os.path.exists(path / name))
            if len(deeper) >= MOST_MATCHES:
                raise DdsimError(f"{pattern}: matches {MOST_MATCHES:,} paths and more; name the folders of traces")
        found = deeper
    return sorted(found)


def _with_shards(path: Path) -> list[Path]:
    """The folder itself if it has shards, otherwise those of its folders that do."""
    if any(path.glob("part-*.parquet")):
        return [path]
    children = sorted(path.iterdir()) if path.is_dir() else []
    return [child for child in children if child.is_dir() and any(child.glob("part-*.parquet"))]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def _shards(folder: Path) -> Iterator[_Shard]:
    """The shards of a folder, their indices checked."""
    first = 0
    for number, path in enumerate(sorted(folder.glob("part-*.parquet"))):
        expected = _shard_path(folder, number)
        if path != expected:
            raise DdsimError(f"{path}: expected {expected.name} here; is a shard missing, or was one renamed?")
        shard = _Shard(path)
        if shard.first != first:
            raise DdsimError(
                f"{path}: row 0: starts with sequence {shard.first}, expected {first}; is a shard missing?"
            )
        first += len(shard.infos)
        yield shard


def _write_recording(folder: Path, checksums: Sequence[str], complete: bool) -> None:
    listed = {"schema_version": SCHEMA_VERSION, "complete": complete, "shards": list(checksums)}
    files.write_text(folder / RECORDING_FILE, json.dumps(listed | {"checksum": _checksum(listed)}) + "\n")


def _check_recording(folder: Path, shards: Sequence[_Shard]) -> bool | None:
    """Compare the shards with the list beside them; whether the recording came to its end, None if nothing says so."""
    path = folder / RECORDING_FILE
    try:
        _check_regular(path)
        listed = _read_meta(path, path.read_bytes())
    except FileNotFoundError:
        return False if any(shard.meta["listed"] for shard in shards) else None
    except OSError as error:
        raise DdsimError(f"{path}: can't be read ({error.strerror or error})") from None
    checksums = array(need(listed, "shards", f"{path}"), f"{path}: shards")
    complete = need(listed, "complete", f"{path}")
    if not isinstance(complete, bool):
        raise DdsimError(f"{path}: complete must be true or false")
    for number, checksum in enumerate(checksums):
        if number >= len(shards):
            raise DdsimError(
                f"{_shard_path(folder, number)}: is missing ({path.name} lists {len(checksums)} shards); put it back, "
                f"or delete {path.name} to read what is left"
            )
        if shards[number].checksum != checksum:
            raise DdsimError(f"{shards[number].path}: is another shard than {path.name} lists; was it replaced?")
    # A recorder that is killed may have written one more shard than it has listed.
    if len(shards) > len(checksums) + (not complete):
        raise DdsimError(f"{shards[len(checksums)].path}: is not listed in {path.name}; was it added from elsewhere?")
    return complete


class _Shard:
    """One file of a trace: its index in memory, its rows on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reading = _Reading(path)
        with reading as file:
            self.meta, self.first, digests = _shard_meta(path, file.metadata.metadata)
            self.checksum = str(self.meta.pop("checksum"))
            self._check_schema(file.schema_arrow)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            table = file.read(columns=_INDEX_COLUMNS)
            table.validate(full=True)
            self._content = _content_hash(path, reading.found)
        self.infos, self.starts = self._read_index(table, digests)
        edges = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        if min(groups) < 1 or edges[-1] != table.num_rows:
            raise DdsimError(f"{path}: {table.num_rows} rows in row groups of {groups[:9]}; was the file edited?")
        cuts = np.searchsorted(self.starts, edges)
        if not np.array_equal(self.starts[cuts], edges):
            raise DdsimError(f"{path}: a row group ends inside a sequence; write traces with ddsim.TraceWriter")
        self._cuts = cuts  # sequences cuts[g] : cuts[g + 1] are row group g

    def verify(self) -> None:
        """Read every sequence and compare it with its hash, unless that was done for a file of the same content."""
        if not is_known(VERIFIED, self._content):
            for _ in self.load(range(len(self.infos))):
                pass
            remember(VERIFIED, self._content)

    def fail(self, row: int, reason: str) -> DdsimError:
        return DdsimError(f"{self.path}: row {row}: {reason}")

    def _check_schema(self, schema: pa.Schema) -> None:
        id_type = _id_type(self.meta["vocab_size"])
        wanted = {column.name: column.type for column in _schema(id_type)}
        for name, kind in wanted.items():
            if schema.names.count(name) != 1:
                how = "is missing" if name not in schema.names else "is there twice"
                raise DdsimError(f"{self.path}: column {name} {how}")
            actual = schema.field(name).type
            if pa.types.is_list(kind):
                same = pa.types.is_list(actual) and actual.value_type == kind.value_type
            else:
                same = actual == kind
            if not same:
                raise DdsimError(f"{self.path}: column {name} is {actual}, expected {kind}")

    def _read_index(self, table: pa.Table, digests: list[str]) -> tuple[list[SequenceInfo], NDArray[np.int64]]:
        for name in _INDEX_COLUMNS:
            if table[name].null_count:
                row = int(np.argmax(table[name].is_null().to_numpy(zero_copy_only=False)))
                raise self.fail(row, f"{name} is missing")
        rows = table.num_rows
        if rows == 0:
            raise DdsimError(f"{self.path}: has no rows")
        number, position, context, temperature = (
            table[name].to_numpy() for name in ("sequence", "position", "context", "temperature")
        )
        new = np.ones(rows, bool)
        new[1:] = number[1:] != number[:-1]
        starts = np.flatnonzero(new)
        bounds = np.append(starts, rows).astype(np.int64)
        lengths = np.diff(bounds)
        which = np.cumsum(new) - 1
        names = [table[name].combine_chunks().dictionary_encode() for name in ("prompt_id", "workload")]
        codes = [name.indices.to_numpy() for name in names]
        checks = [
            (number != self.first + which, "sequence {number} is out of order"),
            (position != np.arange(rows) - starts[which], "position {position} is out of order"),
            (
                context != context[starts][which] + np.arange(rows) - starts[which],
                "context {context} doesn't follow",
            ),
            (context < 0, "context {context} is negative"),
            (
                (codes[0] != codes[0][starts][which]) | (codes[1] != codes[1][starts][which]),
                "prompt changes inside a sequence",
            ),
            (~((temperature >= 0) & (temperature < np.inf)), "temperature {temperature} must be 0 or more"),
            (temperature != temperature[starts][which], "temperature changes inside a sequence"),
        ]
        for bad, text in checks:
            if bad.any():
                row = int(np.argmax(bad))
                raise self.fail(row, text.format(
                    number=number[row], position=position[row],
                    context=context[row], temperature=temperature[row],
                ))  # fmt: skip
        if len(digests) != len(starts):
            raise DdsimError(
                f"{self.path}: {len(starts)} sequences, but hashes of {len(digests)}; was the file edited?"
            )
        told = self.meta.pop("prompt_digests")
        prompts, workloads = (name.dictionary.to_pylist() for name in names)
        for start in starts:
            where = f"{self.path}: row {start}"
            _check_name(where, "prompt_id", prompts[codes[0][start]])
            _check_name(where, "workload", workloads[codes[1][start]])
        infos = [
            SequenceInfo(
                workload=workloads[codes[1][start]],
                prompt_id=prompts[codes[0][start]],
                temperature=float(temperature[start]),
                prompt_tokens=int(context[start]),
                length=int(length),
                digest=digest,
                prompt_digest=prompt_digest,
            )
            for start, length, digest, prompt_digest in zip(starts, lengths, digests, told, strict=True)
        ]
        return infos, bounds

    def load(self, wanted: Sequence[int]) -> Iterator[_Rows]:
        """Sequences by their ascending numbers in the file, reading only the row groups that hold them."""
        numbers = np.asarray(wanted)
        groups = np.searchsorted(self._cuts, numbers, side="right") - 1
        with _Reading(self.path) as file:
            for group in np.unique(groups):
                table = file.read_row_group(int(group), columns=_ROW_COLUMNS)
                table.validate(full=True)
                yield from self._parse(table, int(group), numbers[groups == group])

    def _parse(self, table: pa.Table, group: int, wanted: NDArray[np.int64]) -> Iterator[_Rows]:
        """Sequences ``wanted`` of a row group, its rows checked."""
        a, b = int(self._cuts[group]), int(self._cuts[group + 1])
        base = int(self.starts[a])
        horizon, vocab = int(self.meta["horizon"]), int(self.meta["vocab_size"])
        positions = int(self.starts[b]) - base
        if table.num_rows != positions:
            raise self.fail(base, f"{table.num_rows} rows in a row group of {positions}; was the file edited?")
        lists = {name: self._list(table, name, base) for name in ("counts", "token_ids", "logprobs")}
        token = table["token"]
        if token.null_count:
            raise self.fail(base + int(np.argmax(token.is_null().to_numpy(zero_copy_only=False))), "token is missing")
        tokens = token.to_numpy()
        last = np.zeros(positions, bool)
        last[self.starts[a + 1 : b + 1] - base - 1] = True
        depth_edges, flat_counts = lists["counts"]
        pair_edges, ids = lists["token_ids"]
        value_edges, half = lists["logprobs"]
        sizes = np.diff(depth_edges)
        self._refuse(base, (tokens < 0) | (tokens >= vocab), f"token lies outside the vocabulary of {vocab}")
        self._refuse(base, last & (sizes != 0), "the last position of a sequence has candidates")
        self._refuse(base, ~last & (sizes != horizon), f"counts of other than {horizon} depths")
        counts = np.zeros((positions, horizon), np.int32)
        counts[~last] = flat_counts.reshape(-1, horizon)
        totals = counts.sum(1)
        self._refuse(base, np.diff(pair_edges) != totals, "token_ids are not as many as counts say")
        self._refuse(base, np.diff(value_edges) != totals, "logprobs are not as many as counts say")
        self._refuse(
            base,
            totals > self.meta["max_budget"] + horizon,
            f"more candidates than a budget of {self.meta['max_budget']} can use",
        )
        values = half.astype(np.float32)
        bad = _first_bad_row(counts, ids, values, vocab, ties_ordered=True)
        if bad is not None:
            raise self.fail(base + bad[0], f"depth {bad[1] + 1}: {bad[2]}")
        pair_edges = pair_edges - pair_edges[0]
        for i in wanted:
            p, q = int(self.starts[i]) - base, int(self.starts[i + 1]) - base
            m, n = int(pair_edges[p]), int(pair_edges[q])
            rows = _Rows(tokens[p:q].astype(np.int32), counts[p:q], ids[m:n].astype(np.int32), values[m:n])
            info = self.infos[i]
            if _digest(info.workload, info.prompt_id, info.temperature, info.prompt_tokens, rows) != info.digest:
                raise self.fail(base + p, f"sequence {self.first + int(i)} differs from its hash; the file was edited")
            yield rows

    def _list(self, table: pa.Table, name: str, base: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Edges and values of a list column."""
        column = table[name].combine_chunks()
        if column.null_count:
            raise self.fail(
                base + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))), f"{name} is missing"
            )
        edges = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(edges[0], edges[-1] - edges[0])
        if values.null_count:
            row = (
                np.searchsorted(
                    edges - edges[0], int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))), "right"
                )
                - 1
            )
            raise self.fail(base + int(row), f"a value in {name} is missing")
        return edges, values.to_numpy()

    def _refuse(self, base: int, bad: NDArray[np.bool_], reason: str) -> None:
        if bad.any():
            raise self.fail(base + int(np.argmax(bad)), reason)


class _Reading:
    """A Parquet file open for reading, whose every failure becomes one clear line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> pq.ParquetFile:
        # By its path: of a Python file object Arrow's threads may still want something when the interpreter exits.
        try:
            self.found = _check_regular(self._path)
            self._file = pq.ParquetFile(self._path, page_checksum_verification=True, memory_map=False)
        except DdsimError:
            raise
        except Exception as error:
            raise self._line(error) from None
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if isinstance(error, Exception) and not isinstance(error, DdsimError):
            raise self._line(error) from None

    def _line(self, error: Exception) -> DdsimError:
        text = "".join(
            c if c.isprintable() else " " for c in str(error)
        )  # Arrow quotes the bytes that it stumbles over
        detail = " ".join(text.split())[:160] or type(error).__name__
        return DdsimError(f"{self._path}: can't be read as Parquet, it is truncated or damaged ({detail})")


def _content_hash(path: Path, before: os.stat_result) -> str:
    """SHA-256 of a file's bytes, if it is still the one of ``before``."""
    with open(path, "rb") as file:
        now = os.fstat(file.fileno())
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise DdsimError(f"{path}: was replaced while it was read; try again")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_regular(path: Path) -> os.stat_result:
    """Refuse a folder, and a pipe or device, which could be read without end."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise DdsimError(f"{path}: is no regular file")
    return found


def _read_meta(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object with a schema version and a checksum that fits."""
    where = f"{path}"
    meta = mapping(parse(text, where), where)
    version = integer(need(meta, "schema_version", where), f"{where}: schema_version", 1)
    if version > SCHEMA_VERSION:
        raise DdsimError(
            f"{path}: has schema version {version}, this ddsim reads up to {SCHEMA_VERSION}; upgrade ddsim"
        )
    if meta.get("checksum") != _checksum({key: value for key, value in meta.items() if key != "checksum"}):
        raise DdsimError(f"{path}: metadata differs from its checksum; the file was edited or is damaged")
    return meta


def _shard_meta(path: Path, metadata: Mapping[bytes, bytes] | None) -> tuple[dict[str, Any], int, list[str]]:
    """What a shard says of itself, the number of its first sequence, and the digests of its sequences."""
    where = f"{path}"
    text = (metadata or {}).get(b"ddsim")
    if text is None:
        raise DdsimError(f"{path}: is no shard of a ddsim trace (no metadata under 'ddsim')")
    meta = _read_meta(path, text)
    shape = {name: integer(need(meta, name, where), f"{where}: {name}", 1) for name in _SHAPE}
    try:
        checked = _metadata(**shape, provenance=mapping(need(meta, "provenance", where), "provenance"))
    except DdsimError as error:
        raise DdsimError(f"{path}: {error}") from None
    if need(meta, "block_size", where) != checked["block_size"]:
        raise DdsimError(f"{path}: block_size must be the horizon + 1, {checked['block_size']}")
    listed = meta.get("listed", False)
    digests = array(need(meta, "digests", where), f"{where}: digests")
    told = array(meta.get("prompt_digests", [""] * len(digests)), f"{where}: prompt_digests")
    if len(told) != len(digests) or not all(isinstance(digest, str) for digest in told):
        raise DdsimError(f"{path}: prompt_digests must be a string for each sequence; was the file edited?")
    if not isinstance(listed, bool) or not all(isinstance(digest, str) for digest in digests):
        raise DdsimError(f"{path}: listed must be true or false, and digests strings")
    first = integer(need(meta, "first_sequence", where), f"{where}: first_sequence", 0)
    return checked | {"listed": listed, "checksum": meta["checksum"], "prompt_digests": told}, first, digests


def _checksum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:32]


def _id_type(vocab_size: int) -> pa.DataType:
    return pa.uint16() if vocab_size <= 65536 else pa.int32()


def _schema(id_type: pa.DataType) -> pa.Schema:
    return pa.schema(
        [
            ("sequence", pa.int32()),
            ("prompt_id", pa.string()),
            ("workload", pa.string()),
            ("temperature", pa.float32()),
            ("position", pa.int32()),
            ("token", pa.int32()),
            ("context", pa.int32()),
            ("counts", pa.list_(pa.uint16())),
            ("token_ids", pa.list_(id_type)),
            ("logprobs", pa.list_(pa.float16())),
        ]
    )


def _table(schema: pa.Schema, first: int, parts: Sequence[tuple[SequenceInfo, _Rows]]) -> pa.Table:
    """Rows of some sequences."""
    lengths = np.array([info.length for info, _ in parts])
    here = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    rounds = np.concatenate([np.arange(length) < length - 1 for length in lengths])
    counts = np.concatenate([rows.counts for _, rows in parts])

    def spread(values: Sequence[Any], dtype: type) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), lengths)

    def lists(kind: pa.DataType, sizes: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
        edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(edges), pa.array(values, kind))

    ids = np.concatenate([rows.token_ids for _, rows in parts])
    logprobs = np.concatenate([rows.logprobs for _, rows in parts]).astype(np.float16)
    totals = counts.sum(1, dtype=np.int64)
    columns = [
        pa.array(spread(range(first, first + len(parts)), np.int32)),
        pa.array(spread([info.prompt_id for info, _ in parts], object), pa.string()),
        pa.array(spread([info.workload for info, _ in parts], object), pa.string()),
        pa.array(spread([info.temperature for info, _ in parts], np.float32)),
        pa.array(here),
        pa.array(np.concatenate([rows.tokens for _, rows in parts])),
        pa.array(here + spread([info.prompt_tokens for info, _ in parts], np.int32)),
        lists(pa.uint16(), rounds * counts.shape[1], counts[rounds].ravel().astype(np.uint16)),
        lists(schema.field("token_ids").type.value_type, totals, ids),
        lists(pa.float16(), totals, logprobs),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _write_shard(path: Path, meta: Mapping[str, Any], first: int, parts: Sequence[tuple[SequenceInfo, _Rows]]) -> str:
    """Write a shard and return the checksum of its metadata."""
    full = dict(meta) | {"first_sequence": first, "digests": [info.digest for info, _ in parts], "listed": True}
    if any(info.prompt_digest for info, _ in parts):
        full["prompt_digests"] = [info.prompt_digest for info, _ in parts]
    checksum = full["checksum"] = _checksum(full)
    schema = _schema(_id_type(meta["vocab_size"]))
    tables, start, size = [], 0, 0
    for i, (info, _) in enumerate(parts):
        if i > start and size + info.length > POSITIONS_PER_GROUP:
            tables.append(_table(schema, first + start, parts[start:i]))
            start, size = i, 0
        size += info.length
    tables.append(_table(schema, first + start, parts[start:]))

    def write(file: Any) -> None:
        with pq.ParquetWriter(file, schema, **_PARQUET_OPTIONS) as writer:
            writer.add_key_value_metadata({"ddsim": json.dumps(full)})
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))

    files.write(path, write)
    return checksum


# Measured on synthetic marginals of 79 pairs a position: 129 bytes of token ids (PLAIN; byte streams 133,
# dictionary 171) and 106 of log-probabilities (byte streams; PLAIN 126, dictionary 139); level 3 takes
# 6 % more.
_PARQUET_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 19,
    "use_dictionary": ["prompt_id", "workload"],
    "column_encoding": {
        "logprobs.list.element": "BYTE_STREAM_SPLIT",
    },
    "write_statistics": False,
    "write_page_checksum": True,
    "store_schema": False,
}


def _read_pieces(path: Path) -> dict[int, str]:
    with _Reading(path) as file:
        table = file.read()
        table.validate(full=True)
        if table.schema.names != ["id", "piece"] or table.schema.types != [pa.int32(), pa.string()]:
            raise DdsimError(f"{path}: must have the columns id (int32) and piece (string)")
        if table["id"].null_count or table["piece"].null_count:
            raise DdsimError(f"{path}: an id or a piece is missing")
        pieces = dict(zip(table["id"].to_pylist(), table["piece"].to_pylist(), strict=True))
    told = (table.schema.metadata or {}).get(b"ddsim")  # older files have no digest
    if told is not None and mapping(parse(told, f"{path}"), f"{path}").get("digest") != _pieces_digest(pieces):
        raise DdsimError(f"{path}: differs from its hash; the file was edited or is damaged")
    return pieces


def _pieces_digest(pieces: Mapping[int, str]) -> str:
    return hashlib.sha256(json.dumps(sorted((int(i), piece) for i, piece in pieces.items())).encode()).hexdigest()[:32]
