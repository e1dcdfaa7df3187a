"""Proposals that know their path, as traces keep them: candidates a depth, and the steps between those that trees use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers
from ddsim.errors import DdsimError

if TYPE_CHECKING:
    from ddsim.tree.lattices import Lattices

PER_NAT = 64  # log-probabilities are whole multiples of 1 / PER_NAT nats


LOWEST = 65535  # in these units; below, a candidate is absent


COLUMNS = ("widths", "token_ids", "counts", "children", "falls")


@dataclass(frozen=True)
class Folded:
    """T positions, compact.

    The candidates of a position are listed depth by depth, in the order in which rows name them. The row behind the root, then that
    behind each candidate in turn, holds ``counts`` of the next depth's candidates, most probable first: which one, counted back from
    the last that was new, and by how many units it lies below the one before it in its row, the first below probability 1.
    """

    tokens: NDArray[np.int32]
    """[T] committed."""
    widths: NDArray[np.int32]
    """[T, L] candidates of each depth; zeros at the last position."""
    token_ids: NDArray[np.int32]
    """[C] candidates."""
    counts: NDArray[np.int32]
    """[T + C] the root's row, then the candidates', of one position after another."""
    children: NDArray[np.int32]
    """[M] 0: the depth's next candidate, which no row before named; 1: the last that was new, 2: the one before it, ..."""
    falls: NDArray[np.int32]
    """[M]"""

    @classmethod
    def joined(cls, parts: Sequence[Folded]) -> Folded:
        """The positions of several, one after another."""
        names = ("tokens", *COLUMNS)
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def parts(self, runs: Iterable[tuple[int, int]]) -> Iterator[Folded]:
        """Positions first..last-1 of each run (first, last)."""
        edges = {name: np.concatenate([[0], np.cumsum(size)]) for name, size in self.sizes().items()}
        for first, last in runs:
            cut = {name: getattr(self, name)[edges[name][first] : edges[name][last]] for name in COLUMNS[1:]}
            yield Folded(self.tokens[first:last], self.widths[first:last], **cut)

    def digest(self, head: Sequence[Any]) -> str:
        """Hash of a sequence's content; ``head`` names it."""
        digest = hashlib.sha256(json.dumps([*head, len(self.tokens), "folded"]).encode())
        for part in (self.tokens, *(getattr(self, name) for name in COLUMNS)):
            digest.update(np.ascontiguousarray(part, "<i4").data)
        return digest.hexdigest()[:32]

    def sizes(self) -> dict[str, NDArray[np.int64]]:
        """[T] how many entries of each column belong to each position; the last position of a sequence has none in files."""
        candidates = self.widths.sum(1, dtype=np.int64)
        rows = np.concatenate([[0], np.cumsum(candidates + 1)])
        edges = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        steps = np.diff(edges[rows])
        return {
            "widths": np.full(len(self.tokens), self.widths.shape[1]),
            "token_ids": candidates,
            "counts": candidates + 1,
            "children": steps,
            "falls": steps,
        }

    def unfold(self) -> Lattices:
        """As kernels take them.

        Raises
        ------
        DdsimError
            Numbers that don't fit together; the line names the position.
        """
        from ddsim.tree.lattices import Lattices  # loads Numba, which opening a trace can do without

        count, horizon = self.widths.shape
        depth_starts = np.concatenate([[0], np.cumsum(self.widths, dtype=np.int64)])  # [T * L + 1]
        firsts = depth_starts[::horizon]  # [T + 1] first candidate of each position
        slots = firsts + np.arange(count + 1)  # the root, then the candidates
        slot_depth = np.zeros(slots[-1], np.int64)
        slot_position = np.repeat(np.arange(count), np.diff(slots))
        is_candidate = np.ones(slots[-1], bool)
        is_candidate[slots[:-1]] = False
        slot_depth[is_candidate] = np.repeat(np.tile(np.arange(1, horizon + 1), count), self.widths.ravel())
        slot = np.repeat(np.arange(slots[-1]), self.counts)
        position, depth = slot_position[slot], slot_depth[slot]
        _refuse(position, depth >= horizon, "a candidate of the last depth has a row behind it")
        place = position * horizon + depth
        new = self.children == 0
        named = np.bincount(place, new, minlength=count * horizon).astype(
            np.int64
        )  # candidates of each depth that rows name
        _refuse(
            np.repeat(np.arange(count), horizon),
            named != self.widths.ravel(),
            "rows name more or fewer candidates than widths say",
        )
        newest = np.cumsum(new) - 1  # candidates stand in the order of the steps that first name them
        candidate = np.where(new, newest, newest + 1 - self.children)
        _refuse(
            position,
            (self.children < 0) | (candidate < depth_starts[place]),
            "a row names a candidate that isn't there",
        )
        opens = self.counts > 0
        opens[slots[:-1]] = True
        number = np.cumsum(opens) - 1
        positions = np.append(number[slots[:-1]], np.count_nonzero(opens))
        own = candidate + position + 1  # the slot of each candidate named
        nexts = np.where(opens[own], number[own] - positions[position], -1).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(self.counts[opens], dtype=np.int64)])
        total = np.cumsum(self.falls, dtype=np.int64)
        before = np.concatenate([[0], total])[np.repeat(offsets[:-1], np.diff(offsets))]
        units = total - before
        _refuse(position, (self.falls < 0) | (units > LOWEST), "log-probabilities are out of range")
        return Lattices(
            horizon, positions, offsets, self.token_ids[candidate], nexts, (units / -PER_NAT).astype(np.float32)
        )


def fold(tokens: NDArray[np.int32], lattices: Lattices) -> Folded:
    """The compact form of lattices whose log-probabilities are rounded, one fewer than the T tokens: the last starts no round."""
    lattices = replace(
        lattices,
        positions=np.append(lattices.positions, lattices.positions[-1] + 1),
        offsets=np.append(lattices.offsets, lattices.offsets[-1]),
    )
    listed = lattices.candidates()
    position, depth, row = listed["position"], listed["depth"].astype(np.int64), listed["row"].astype(np.int64)
    horizon, count = lattices.horizon, len(lattices)
    after = lattices.nexts.astype(np.int64)
    # A candidate is a row that follows, or a token without one.
    key = (position << 33) + np.where(after >= 0, after, np.int64(2**32) + lattices.token_ids)
    own = lattices.positions[position]  # number of the position's first row
    place = np.zeros(len(lattices.offsets) - 1, np.int64)  # of the candidate before each row, within its depth
    steps, children, of_step = [], [], []
    widths = np.zeros((count, horizon), np.int64)
    for d in range(horizon):  # a depth's candidates are in order before the rows behind them are walked
        here = np.flatnonzero(depth == d + 1)
        here = here[np.lexsort((listed["rank"][here], place[own[here] + row[here]], position[here]))]
        _, first, number = np.unique(key[here], return_index=True, return_inverse=True)
        is_new = np.zeros(len(here), bool)
        is_new[first] = True
        newest = np.cumsum(is_new) - 1
        number = newest[first][number]  # candidates of the depth, over all positions
        widths[:, d] = np.bincount(position[here[is_new]], minlength=count)
        steps.append(here)
        children.append(np.where(is_new, 0, newest + 1 - number))
        of_step.append(is_new)
        leads = after[here] >= 0
        place[(own + after)[here[leads]]] = (number - (np.cumsum(widths[:, d]) - widths[:, d])[position[here]])[leads]
    order = np.concatenate(steps)
    by_position = np.argsort(position[order], kind="stable")
    order = order[by_position]
    # Slots: each position's root, then its candidates.
    firsts = np.concatenate([[0], np.cumsum(widths.sum(1))])
    depth_starts = np.concatenate([[0], np.cumsum(widths)])
    at = position[order]
    before = depth_starts[np.maximum(at * horizon + depth[order] - 2, 0)] + place[own[order] + row[order]] + 1
    slot = at + np.where(depth[order] == 1, firsts[at], before)
    counts = np.bincount(slot, minlength=int(firsts[-1]) + count)
    units = np.rint(lattices.logprobs[order].astype(np.float64) * -PER_NAT).astype(np.int64)
    falls = units.copy()
    same = np.flatnonzero(slot[1:] == slot[:-1]) + 1
    falls[same] -= units[same - 1]
    named = np.concatenate(of_step)[by_position]
    return Folded(
        tokens,
        widths.astype(np.int32),
        lattices.token_ids[order[named]],
        counts.astype(np.int32),
        np.concatenate(children)[by_position].astype(np.int32),
        falls.astype(np.int32),
    )


def round_conditionals(logprobs: ArrayLike) -> NDArray[np.float32]:
    """Round conditional log-probabilities to what a trace keeps: multiples of 1/64 nat.

    Recorder and decoder pass a lattice through this, so both build the same trees.

    Parameters
    ----------
    logprobs : array_like of float32 [..., K]
        Natural logarithms, at most 0; rows sum to at most 1.

    Returns
    -------
    float32 ndarray, same shape
        The nearest multiples, or, where the probabilities of a row would sum above 1, the next lower ones; -inf below -1,023.

    Examples
    --------
    >>> (64 * round_conditionals(np.log([[0.5, 0.2], [0.5, 0.5]]))).tolist()
    [[-44.0, -103.0], [-45.0, -45.0]]
    """
    exact = numbers(logprobs, "logprobs").astype(np.float64)
    nearest = np.rint(exact * PER_NAT) / PER_NAT
    sums = np.exp(nearest).sum(-1, keepdims=True)
    return _rounded(exact, nearest, sums)


def rounded(lattices: Lattices) -> Lattices:
    """Lattices with each row as `round_conditionals` rounds it; what it takes for absent gets the least that a trace can hold."""
    exact = lattices.logprobs.astype(np.float64)
    nearest = np.rint(exact * PER_NAT) / PER_NAT
    row = np.repeat(np.arange(len(lattices.offsets) - 1), np.diff(lattices.offsets))
    sums = np.bincount(row, np.exp(nearest), minlength=len(lattices.offsets) - 1)[row]
    return replace(lattices, logprobs=np.maximum(_rounded(exact, nearest, sums), np.float32(-LOWEST / PER_NAT)))


def _rounded(exact: NDArray[np.float64], nearest: NDArray[np.float64], sums: NDArray[Any]) -> NDArray[np.float32]:
    found = np.where(sums <= 1, nearest, np.floor(exact * PER_NAT) / PER_NAT)
    return np.where(found < -LOWEST / PER_NAT, -np.inf, found).astype(np.float32)


def columns(id_type: pa.DataType) -> list[tuple[str, pa.DataType]]:
    """Of a file, beside the index."""
    return [
        ("widths", pa.list_(pa.uint16())),
        ("token_ids", pa.list_(id_type)),
        ("counts", pa.list_(pa.uint16())),
        ("children", pa.list_(pa.uint16())),
        ("falls", pa.list_(pa.uint16())),
    ]


def _refuse(position: NDArray[np.int64], bad: NDArray[np.bool_], why: str) -> None:
    if bad.any():
        raise DdsimError(f"position {position[int(np.argmax(bad))]}: {why}")
