"""The table of rounds: gains and true-path ranks at every position of a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Ints, plain
from ddsim.jit import njit
from ddsim.trace.calibration import Calibration, CrossCalibration, calibrated_gains, calibrated_proposal
from ddsim.trace.schema import Progress
from ddsim.trace.shown import ShownPositions
from ddsim.trace.trace import Trace
from ddsim.tree.kernels import NO_RANK
from ddsim.tree.proposal import Proposal

READ = 8192  # positions read and drafted at once


BLOCK = 32768  # positions held in memory at once: 64 MiB of gains at 512 nodes


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """A two-dimensional array in a file, mapped a slice at a time so that memory stays bounded."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int

    def __getitem__(self, index: slice) -> NDArray[Any]:
        low, high, _ = index.indices(self.shape[0])
        width = self.shape[1]
        if high <= low or width == 0:
            return np.zeros((max(high - low, 0), width), self.dtype)
        start = self.offset + low * width * self.dtype.itemsize
        # mode "c": numba compiles a kernel anew for read-only arrays
        return np.asarray(np.memmap(self.path, self.dtype, "c", start, (high - low, width)))


@dataclasses.dataclass(frozen=True)
class PickedRows:
    """Some rows of a two-dimensional array, gathered a slice at a time."""

    rows: NDArray[Any] | StoredRows | PickedRows | ChainRows
    index: NDArray[np.int64]
    """Ascending."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.rows.shape[1]

    def __getitem__(self, index: slice) -> NDArray[Any]:
        picked = self.index[index]
        low, high = (int(picked[0]), int(picked[-1]) + 1) if len(picked) else (0, 0)
        return np.asarray(self.rows[low:high])[picked - low]


@dataclasses.dataclass(frozen=True)
class ChainRows:
    """Path probabilities of the chain's first 1, 2, ... tokens, a slice at a time: differences of what they are expected to yield."""

    expected: NDArray[Any] | StoredRows | PickedRows | ChainRows

    @property
    def shape(self) -> tuple[int, int]:
        return self.expected.shape[0], self.expected.shape[1]

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        each = np.diff(np.asarray(self.expected[index], np.float64), axis=1, prepend=0.0)
        return np.minimum.accumulate(np.clip(each, LEAST, 1.0), axis=1).astype(np.float32)


LEAST = 1e-9  # path probability of a chain: below the last digit of the sums that it is a difference of, but never 0

Table = NDArray[Any] | StoredRows | PickedRows | ChainRows


@dataclasses.dataclass(frozen=True, repr=False)
class Positions(ShownPositions):
    """What a trace comes down to for the solvers: gains and true-path ranks at every position.

    Attributes
    ----------
    gains : float32 [P, N], path probabilities of the nodes, descending, 0 where the tree ran out
    ranks : int32 [P, L], best-first rank of the node of the first d true tokens, or NO_RANK
    nodes : int32 [P], nodes that exist
    chain : uint8 [P], leading depths whose true token is the best candidate
    chain_expected : float32 [P, L], expected number of accepted tokens of the chain's first 1, 2, ... L tokens
    context : int32 [P], committed tokens before the root
    starts : int64 [S + 1], first position of each sequence
    prompt_id, workload : tuples of S strings; temperature : float32 [S]
    """

    gains: Table
    ranks: Table
    nodes: Ints
    chain: NDArray[np.uint8]
    chain_expected: Table
    context: Ints
    starts: NDArray[np.int64]
    prompt_id: tuple[str, ...] = ()
    workload: tuple[str, ...] = ()
    temperature: NDArray[np.float32] = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    fingerprint: str = ""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def max_budget(self) -> int:
        return self.gains.shape[1]

    @property
    def horizon(self) -> int:
        return self.ranks.shape[1]

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    @property
    def prompts(self) -> int:
        """Different prompts; several answers to one count once, and answers without a name one each."""
        keys = set(zip(self.workload, self.prompt_id, strict=True))
        return len(keys) or self.sequences

    @property
    def tokens(self) -> NDArray[np.int64]:
        """int64 [S]: tokens that the rounds of each sequence commit, whatever the policy."""
        return np.maximum(np.diff(self.starts) - 1, 0)

    def block(self, first: int, last: int) -> Positions:
        """Sequences ``first`` to ``last`` (exclusive), in memory."""
        low, high = int(self.starts[first]), int(self.starts[last])
        return Positions(
            np.ascontiguousarray(self.gains[low:high]),
            np.ascontiguousarray(self.ranks[low:high]),
            self.nodes[low:high],
            self.chain[low:high],
            np.ascontiguousarray(self.chain_expected[low:high]),
            self.context[low:high],
            self.starts[first : last + 1] - low,
            self.prompt_id[first:last],
            self.workload[first:last],
            self.temperature[first:last],
            self.fingerprint,
        )

    def blocks(self, max_positions: int = BLOCK) -> Iterator[tuple[int, int, Positions]]:
        """Yield (first position, first sequence, block) over runs of whole sequences."""
        first = 0
        while first < self.sequences:
            limit = self.starts[first] + max_positions
            last = max(int(np.searchsorted(self.starts, limit, side="right")) - 1, first + 1)
            last = min(last, self.sequences)
            yield int(self.starts[first]), first, self.block(first, last)
            first = last

    def subset(self, chosen: NDArray[np.bool_]) -> Positions:
        """The sequences chosen, bool [S]; their gains and ranks are gathered as blocks are read."""
        lengths = np.diff(self.starts)
        at = np.flatnonzero(np.repeat(chosen, lengths))
        numbers = np.flatnonzero(chosen)
        return Positions(
            PickedRows(self.gains, at),
            PickedRows(self.ranks, at),
            self.nodes[at],
            self.chain[at],
            PickedRows(self.chain_expected, at),
            self.context[at],
            np.concatenate([[0], np.cumsum(lengths[chosen])]),
            tuple(self.prompt_id[i] for i in numbers),
            tuple(self.workload[i] for i in numbers),
            self.temperature[numbers],
        )

    def roots(self, sequences: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Positions that can start a round (all but each sequence's last), of the chosen sequences."""
        keep = np.ones(len(self), np.bool_)
        ends = self.starts[1:] - 1
        keep[ends[np.diff(self.starts) > 0]] = False
        if sequences is not None:
            keep &= np.repeat(sequences, np.diff(self.starts))
        return np.flatnonzero(keep)


@njit(cache=True, nogil=True)
def _count(gains):  # type: ignore[no-untyped-def]
    out = np.empty(gains.shape[0], np.int32)
    for p in range(gains.shape[0]):
        low, high = 0, gains.shape[1]
        while low < high:
            middle = (low + high) // 2
            if gains[p, middle] > 0:
                low = middle + 1
            else:
                high = middle
        out[p] = low
    return out


def node_counts(gains: NDArray[np.float32]) -> Ints:
    """int32 [P]: how many nodes exist at each position (gains above 0; ``gains`` [P, N] descending)."""
    counts: Ints = _count(plain(gains, np.float32))
    return counts


class Drafted(NamedTuple):
    """A block of a trace, read, and what its drafts come to."""

    proposal: Proposal
    paths: Ints
    """[P, L] as `Proposal.true_paths`."""
    rounds: Positions
    first: int
    """Number of its first sequence."""


def drafted(
    trace: Trace,
    calibration: Calibration | CrossCalibration | None = None,
    positions: Positions | None = None,
    progress: Progress | None = None,
) -> Iterator[Drafted]:
    """Read a trace block by block; trees are built unless their ``positions``, of this calibration, are there."""
    tables = None if positions is None else positions.blocks(READ)
    done = 0
    for block in trace.blocks(READ):
        proposal: Proposal = block.proposal
        if calibration is not None:
            proposal = calibrated_proposal(block, calibration, trace.max_budget)
        paths = proposal.true_paths(block.tokens, block.starts)
        if tables is None:
            gains, ranks, chain, chain_expected = proposal.drafts(paths, trace.max_budget)
            nodes = node_counts(gains)
            if calibration is not None:
                gains = calibrated_gains(block, gains, calibration)
            names = tuple(block.prompt_id), tuple(block.workload)
            rounds = Positions(
                gains, ranks, nodes, chain, chain_expected, block.context, block.starts, *names, block.temperature
            )
        else:
            _, _, rounds = next(tables)
        yield Drafted(proposal, paths, rounds, block.first_sequence)
        done += len(block)
        if progress is not None:
            progress(done, len(trace))


def rounds_of(
    trace: Trace, positions: Positions | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, Positions]]:
    """(first sequence, block), of ``positions`` if they are there, else as `drafted` reads the trace."""
    if positions is None:
        yield from ((block.first, block.rounds) for block in drafted(trace, progress=progress))
        return
    for low, first, block in positions.blocks(READ):
        yield first, block
        if progress is not None:
            progress(low + len(block), len(positions))


def chain_positions(positions: Positions) -> Positions:
    """The same positions with the chain of best candidates for their tree: n nodes are its first n tokens.

    Examples
    --------
    >>> tree = Positions(np.array([[0.5, 0.4, 0.3]], np.float32), np.array([[2, 3]], np.int32), np.array([3], np.int32),
    ...     np.array([1], np.uint8), np.array([[0.5, 0.75]], np.float32), np.zeros(1, np.int32), np.array([0, 1]))
    >>> chain = chain_positions(tree)
    >>> np.asarray(chain.gains).tolist(), (chain.ranks[0] <= 2).tolist(), chain.nodes.tolist()
    ([[0.5, 0.25]], [True, False], [2])
    """
    depth = np.arange(1, positions.horizon + 1, dtype=np.int32)
    ranks = np.where(depth <= positions.chain[:, None], depth, np.int32(NO_RANK))
    rows = ChainRows(positions.chain_expected)
    gains = rows[:] if isinstance(rows.expected, np.ndarray) else rows
    return dataclasses.replace(
        positions, gains=gains, ranks=ranks, nodes=np.full(len(ranks), positions.horizon, np.int32)
    )
