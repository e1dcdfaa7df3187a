"""Traces that users open, select from and read block by block."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import _is_path, _named, relative_error
from ddsim.errors import DdsimError, caller_level
from ddsim.text import brief
from ddsim.trace.checks import (
    _arrays,
    _dense,
    _is_row,
    _listed,
    _rescaled,
    _sparse,
    _tree,
    folded_lattices,
    folded_trees,
)
from ddsim.trace.folded import Folded
from ddsim.trace.memory import Memory, Names, rank_of, several, vocabulary
from ddsim.trace.reader import _check_recording, _names, _read_pieces, _shards, _trace_folders
from ddsim.trace.schema import (
    DEFAULT_MAX_BUDGET,
    PIECES_FILE,
    TraceBlock,
    _check_agree,
    _check_new,
    _metadata,
    _Rows,
    _Source,
    _temperature,
)
from ddsim.trace.shown import ShownTrace
from ddsim.trace.writer import TraceWriter


def check_trace(function: str, trace: Any, *also: type) -> None:
    """Refuse what isn't a trace, nor of the types ``also``.

    Examples
    --------
    >>> check_trace("plan", "traces/temperature-0")
    Traceback (most recent call last):
    ddsim.errors.DdsimError: plan: trace must be a Trace, is the path 'traces/temperature-0'; open it first, as in ddsim.open_trace(path)
    """
    if not isinstance(trace, (Trace, *also)):
        how = "; open it first, as in ddsim.open_trace(path)" if _is_path(trace) else ""
        raise DdsimError(f"{function}: trace must be a Trace, is {_named(trace)}{how}")


class Trace(ShownTrace):
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

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> print(trace.summary().sentence)
    Trace of marginals: 1 answer, 4 positions; drafts of 2 tokens, exact to 6 nodes.
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
    def kind(self) -> str:
        """What the drafter proposed: "rows" of marginals, "lattice" or "trees"."""
        return str(self.meta.get("kind", "rows"))

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
                f"the trace has workloads {', '.join(self.workloads)} at temperatures {', '.join(map(str, self.temperatures))}"
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
        pending: list[_Rows | Folded] = []
        size = first = 0
        for number, rows in enumerate(self._load()):
            if pending and size + len(rows.tokens) > max_positions:
                yield self._block(first, pending)
                pending, size, first = [], 0, number
            pending.append(rows)
            size += len(rows.tokens)
        if pending:
            yield self._block(first, pending)

    def _load(self) -> Iterator[_Rows | Folded]:
        """All sequences, opening each source once per run of its sequences in ascending order."""
        for source, numbers in self._runs():
            yield from source.load(numbers)

    def _texts(self) -> Iterator[NDArray[Any]]:
        """The committed tokens of all sequences, without reading what was proposed."""
        return (text for source, numbers in self._runs() for text in source.texts(numbers))

    def _runs(self) -> Iterator[tuple[_Source, list[int]]]:
        i = 0
        while i < len(self._entries):
            source, j = self._entries[i][0], i
            while (
                j < len(self._entries)
                and self._entries[j][0] is source
                and (j == i or self._entries[j - 1][1] < self._entries[j][1])
            ):
                j += 1
            yield source, [k for _, k in self._entries[i:j]]
            i = j

    def _block(self, first: int, parts: list[Any]) -> TraceBlock:
        infos = self.sequences[first : first + len(parts)]
        lengths = np.array([info.length for info in infos])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        here = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return TraceBlock(
            horizon=self.horizon,
            first_sequence=first,
            tokens=np.concatenate([part.tokens for part in parts]),
            context=(here + np.repeat([info.prompt_tokens for info in infos], lengths)).astype(np.int32),
            sequence=np.repeat(np.arange(first, first + len(parts)), lengths).astype(np.int32),
            starts=starts,
            proposal=self._proposal(parts),
            prompt_id=[info.prompt_id for info in infos],
            workload=[info.workload for info in infos],
            temperature=np.array([info.temperature for info in infos], np.float32),
        )

    def _proposal(self, parts: list[Any]) -> Any:
        from ddsim.tree.proposal import Rows  # loads Numba, which opening a trace can do without

        if self.kind != "rows":
            return Folded.joined(parts).unfold()
        counts = np.concatenate([part.counts.ravel() for part in parts])
        return Rows(
            self.horizon,
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.logprobs for part in parts]),
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
            kind=self.kind,
        ) as writer:
            for (source, _), info, rows in zip(self._entries, self.sequences, self._load(), strict=True):
                if isinstance(rows, _Rows) and isinstance(source, Memory):  # neither pruned nor rounded yet
                    token_ids, logprobs = _dense(rows)
                    writer.add_sequence(
                        prompt_id=info.prompt_id, workload=info.workload, temperature=info.temperature,
                        prompt_tokens=info.prompt_tokens, tokens=rows.tokens, token_ids=token_ids, logprobs=logprobs,
                    )  # fmt: skip
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
        given, spread = several(tokens=tokens, token_ids=token_ids, logprobs=logprobs)
        names = Names(spread, workload, prompt_id, context0, temperature)
        parts = [_arrays(f"sequence {i}", *one) for i, one in enumerate(zip(*given, strict=True))]
        size = vocab_size
        if size is None:
            used = [ids[values > -np.inf].max(initial=0) for _, ids, values in parts]
            size = 1 + int(max(*used, *(x.max() for x, _, _ in parts), 0))
        most = DEFAULT_MAX_BUDGET if max_budget is None else max_budget
        meta = _metadata(parts[0][2].shape[1], most, size, {} if provenance is None else provenance)
        rows = [
            _sparse(f"sequence {i}", meta, x, ids, _rescaled(values, relative_error(given[2][i])))
            for i, (x, ids, values) in enumerate(parts)
        ]
        return cls._in_memory(meta, rows, names)

    @classmethod
    def from_chains(
        cls, tokens: Any, token_ids: Any, logprobs: Any, *, max_budget: int | None = None, **named: Any
    ) -> Trace:
        """A trace in memory, of a drafter that proposes one chain a position: rows of one candidate.

        Parameters
        ----------
        tokens : int array [T], or several
        token_ids, logprobs : int and float arrays [T, L] (or [T - 1, L]), or several
            The chain's tokens, and the log-probability of each given those before it; -inf from where it ends.
        max_budget : int, optional
            L by default: no tree is larger.
        **named
            As `from_arrays`.

        Examples
        --------
        >>> trace = Trace.from_chains([5, 6, 7], [[6, 7], [7, 8]], np.log([[0.5, 0.5], [0.5, 0.5]]))
        >>> trace.max_budget, next(trace.blocks()).proposal.tree(0, 2).tokens.tolist()
        (2, [-1, 6, 7])
        """
        given, _ = several(tokens=tokens, token_ids=token_ids, logprobs=logprobs)
        # A second candidate that is absent: so nothing is missing from the rows.
        ids = [np.pad(rank_of(2, "token_ids", one)[..., None], [(0, 0), (0, 0), (0, 1)]) for one in given[1]]
        values = [
            np.pad(
                rank_of(2, "logprobs", one)[..., None].astype(np.float32),
                [(0, 0), (0, 0), (0, 1)],
                constant_values=-np.inf,
            )
            for one in given[2]
        ]
        most = ids[0].shape[1] if max_budget is None else max_budget
        return cls.from_arrays(given[0], ids, values, max_budget=most, **named)

    @classmethod
    def from_lattice(
        cls,
        tokens: Any,
        token_ids: Any,
        first: Any,
        transitions: Any,
        *,
        workload: str | Sequence[str] = "",
        prompt_id: str | Sequence[str] | None = None,
        context0: int | Sequence[int] = 0,
        temperature: float | Sequence[float] = 0.0,
        max_budget: int = DEFAULT_MAX_BUDGET,
        vocab_size: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Trace:
        """A trace in memory, from the lattices of one sequence or of several.

        Parameters
        ----------
        tokens : int array [T], or several: a list of such, or [S, T]
        token_ids : int array [T, L, K] (or [T - 1, L, K]), or several
        first : float array [T, K], or several
        transitions : float array [T, L - 1, K, K], or several
            A `ddsim.Lattice` at each position. Log-probabilities are rounded to 1/64 nat, as on disk, and what no tree of
            ``max_budget`` nodes uses is left out but for the chain of best candidates.
        workload, prompt_id, context0, temperature, vocab_size, provenance
            As `from_arrays`.
        max_budget : int
            Largest budget that may be asked of the trace.

        Raises
        ------
        DdsimError
            No lattices, or lengths that don't match.

        Examples
        --------
        >>> first, transitions = np.log(np.full((3, 2), 0.4)), np.log(np.full((3, 1, 2, 2), [0.6, 0.2]))
        >>> trace = Trace.from_lattice([5, 6, 7], np.full((3, 2, 2), [6, 7]), first, transitions, max_budget=4)
        >>> trace.kind, next(trace.blocks()).proposal.tree(0, 4).tokens.tolist()
        ('lattice', [-1, 6, 7, 6, 6])
        """
        given, spread = several(tokens=tokens, token_ids=token_ids, first=first, transitions=transitions)
        names = Names(spread, workload, prompt_id, context0, temperature)
        ids = [rank_of(3, "token_ids", one) for one in given[1]]
        size = vocabulary(vocab_size, given[0], ids)
        meta = _metadata(ids[0].shape[1], max_budget, size, {} if provenance is None else provenance, "lattice")
        parts = [folded_lattices(f"sequence {i}", meta, *one) for i, one in enumerate(zip(*given, strict=True))]
        return cls._in_memory(meta, parts, names)

    @classmethod
    def from_trees(
        cls,
        tokens: Any,
        trees: Any,
        *,
        horizon: int,
        workload: str | Sequence[str] = "",
        prompt_id: str | Sequence[str] | None = None,
        context0: int | Sequence[int] = 0,
        temperature: float | Sequence[float] = 0.0,
        max_budget: int = DEFAULT_MAX_BUDGET,
        vocab_size: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Trace:
        """A trace in memory, from the explicit trees that a drafter such as EAGLE proposes, of one sequence or of several.

        Parameters
        ----------
        tokens : int array [T], or a list of several
        trees : list of T - 1 (or T) trees, or a list of several such lists
            Each a `DraftTree` with tokens, or (parents, tokens, path log-probabilities) of its nodes without the root, best first; a
            parent is 0 for the root, else the number of the node from 1.
        horizon : int
            L: no node is deeper.
        workload, prompt_id, context0, temperature, max_budget, vocab_size, provenance
            As `from_lattice`; each node's log-probability given its parent is rounded as transitions are.

        Examples
        --------
        >>> tree = [0, 1, 0], [6, 7, 8], np.log([0.5, 0.4, 0.3])
        >>> trace = Trace.from_trees([5, 6, 7], [tree, tree], horizon=2)
        >>> next(trace.blocks()).proposal.tree(1, 2).tokens.tolist()
        [-1, 6, 7]
        """
        many = isinstance(tokens, (list, tuple)) and len(tokens) > 0 and _is_row(tokens[0])
        given, spread = several(tokens=tokens if many else [tokens], trees=trees if many else [trees])
        names = Names(spread, workload, prompt_id, context0, temperature)
        proposed = [np.max(_tree(tree)[1], initial=0) for one in given[1] for tree in one]
        size = vocabulary(vocab_size, given[0], proposed)
        meta = _metadata(horizon, max_budget, size, {} if provenance is None else provenance, "trees")
        parts = [folded_trees(f"sequence {i}", meta, *one) for i, one in enumerate(zip(*given, strict=True))]
        return cls._in_memory(meta, parts, names)

    @classmethod
    def _in_memory(cls, meta: dict[str, Any], parts: Sequence[_Rows | Folded], names: Names) -> Trace:
        source = Memory(names.describe(parts), list(parts))
        whole = meta | {"provenances": [meta["provenance"]], "complete": True}
        return cls(whole, [(source, i) for i in range(len(parts))])


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

    Examples
    --------
    >>> from ddsim.demo import data
    >>> open_trace(data("humaneval")).workloads
    ('humaneval',)
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
                stacklevel=caller_level(),
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
