"""Proposals that know their path: lattices and explicit trees at every position of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers, plain, whole_numbers
from ddsim.errors import DdsimError
from ddsim.threads import split
from ddsim.tree.lattice_tables import (
    best_after,
    drawn_paths,
    gains_and_ranks,
    kept_candidates,
    lattice_tree,
    row_depths,
    true_paths,
)
from ddsim.tree.proposal import Drafts, chain_expected
from ddsim.tree.rows import ROW_SUM_TOLERANCE, budget_of
from ddsim.tree.trees import DraftTree

_PIECE = 4096  # positions that are pruned at once


@dataclass(frozen=True, eq=False)
class Lattices:
    """Rows of candidates, where each candidate names the row of candidates that follows it.

    Position p has rows ``positions[p] : positions[p + 1]``, at least one, the first behind the root. The candidates of row r are
    ``offsets[r] : offsets[r + 1]`` of the last three arrays. A row follows one or more candidates of rows before it: one in a tree, all
    that name the same token of a depth in a lattice.

    Examples
    --------
    >>> trees = Lattices.from_trees(2, [0, 2], parents=[0, 1], tokens=[7, 5], logprobs=np.log([0.5, 0.25]))
    >>> paths = trees.true_paths(np.array([9], np.int32), np.array([0, 1]))
    >>> trees.drafts(paths, 3).gains.tolist(), trees.tree(0, 2).tokens.tolist()
    ([[0.5, 0.25, 0.0]], [-1, 7, 5])
    """

    horizon: int
    positions: NDArray[np.int64]
    """[P + 1]"""
    offsets: NDArray[np.int64]
    """[R + 1]"""
    token_ids: NDArray[np.int32]
    """[M] candidates."""
    nexts: NDArray[np.int32]
    """[M] number, within the position, of the row that follows the candidate; -1 for none."""
    logprobs: NDArray[np.float32]
    """[M] log-probabilities given the path to the row, descending within it."""

    def __len__(self) -> int:
        return len(self.positions) - 1

    @classmethod
    def from_dense(cls, token_ids: ArrayLike, first: ArrayLike, transitions: ArrayLike, max_budget: int) -> Self:
        """Lattices of P positions, as `ddsim.Lattice` takes them, without what trees of at most ``max_budget`` nodes don't use.

        Parameters
        ----------
        token_ids : int [P, L, K]
        first : float32 [P, K]
        transitions : float32 [P, L - 1, K, K]
            Whoever made them has checked them.
        max_budget : int
            N. The chain of best candidates is kept to full depth.
        """
        ids = plain(token_ids, np.int32)
        count, horizon, width = ids.shape
        if width == 0:  # no candidates at all: a row without any behind each root
            none = np.empty(0, np.int32)
            edges = np.zeros(count + 1, np.int64)
            return cls(horizon, np.arange(count + 1), edges, none, none, np.empty(0, np.float32))
        rows = 1 + (horizon - 1) * width
        starts, steps = numbers(first, "first"), numbers(transitions, "transitions")
        pieces = []
        for a in range(0, max(count, 1), _PIECE):
            b = min(a + _PIECE, count)
            flat = np.concatenate([starts[a:b, None], steps[a:b].reshape(b - a, rows - 1, width)], axis=1)
            flat = plain(flat.reshape(-1), np.float32)
            nothing = np.empty(0, np.int64)
            kept = _kept(flat, nothing, np.empty(0, np.int32), width, np.arange(b - a + 1) * rows, horizon, max_budget)
            position, origin = kept[0], kept[1]
            row, candidate = np.divmod(origin - position * (rows * width), width)
            depth = (row + width - 1) // width
            pieces.append(_compressed(b - a, *kept, ids[a + position, depth, candidate], flat[origin]))
        return cls(horizon, *_joined(pieces))

    @classmethod
    def from_trees(
        cls, horizon: int, starts: ArrayLike, parents: ArrayLike, tokens: ArrayLike, logprobs: ArrayLike
    ) -> Self:
        """Explicit trees of P positions, one after another.

        What is kept of a path log-probability is the node's own, given its parent's path, in float32. The float64 sum of these from
        depth 1 down is the path log-probability again, to the last bit if it was made so: as that of any tree of a lattice is.

        Parameters
        ----------
        horizon : int
            L: no node is deeper.
        starts : int [P + 1]
            Nodes ``starts[p] : starts[p + 1]`` are position p's, best first, without the root.
        parents : int [M]
            As in `DraftTree`: 0 for the root, else the number of the parent among the position's nodes, from 1.
        tokens : int [M]
        logprobs : float [M]
            Path log-probabilities, descending within a position.

        Raises
        ------
        DdsimError
            A node before its parent, above it or out of order; two children of one node with one token; children whose probabilities
            sum above 1 (named).
        """
        bounds = plain(whole_numbers(starts, "starts"), np.int64)
        above, ids = whole_numbers(parents, "parents"), whole_numbers(tokens, "tokens")
        paths = numbers(logprobs, "logprobs").astype(np.float64)
        if bounds.ndim != 1 or paths.ndim != 1 or not above.shape == ids.shape == paths.shape:
            raise DdsimError(
                f"starts, parents, tokens and logprobs have shapes {bounds.shape}, {above.shape}, {ids.shape} and "
                f"{paths.shape}; trees need [positions + 1] and three times [nodes]"
            )
        total, count = len(paths), len(bounds) - 1
        if count < 0 or bounds[0] != 0 or bounds[-1] != total or np.any(np.diff(bounds) < 0):
            raise DdsimError(f"starts must rise from 0 to the {total} nodes")
        position = np.repeat(np.arange(count), np.diff(bounds))
        node = np.arange(total) - bounds[position] + 1

        def refuse(bad: NDArray[np.bool_], why: str) -> None:
            if bad.any():
                i = int(np.argmax(bad))
                raise DdsimError(f"position {position[i]}, node {node[i]}: {why}")

        refuse((above < 0) | (above >= node), "its parent must be 0, the root, or a node before it")
        refuse(~np.isfinite(paths), "its log-probability is not finite")
        # With the roots: position p's nodes, its root first, are roots[p] + 0, 1, 2, ...
        roots = bounds + np.arange(count + 1)
        own, parent = roots[position] + node, roots[position] + above
        values = np.zeros(total + count)
        values[own] = paths
        refuse(values[own] > values[parent], "its log-probability is above its parent's")
        refuse((node > 1) & (values[own] > values[own - 1]), "its log-probability is above that of the node before it")
        opens = np.zeros(total + count + 1, bool)  # nodes with a row behind them
        opens[roots] = opens[parent] = True
        number = np.cumsum(opens) - 1
        positions = number[roots]
        row = number[parent]
        order = np.argsort(row, kind="stable")
        nexts = np.where(opens[own], number[own] - positions[position], -1).astype(np.int32)
        found = cls(
            int(horizon),
            positions,
            np.concatenate([[0], np.cumsum(np.bincount(row, minlength=int(positions[-1])))]),
            ids[order].astype(np.int32),
            nexts[order],
            (values[own] - values[parent]).astype(np.float32)[order],
        )
        fault = found.first_fault()
        if fault is not None:
            raise DdsimError(f"position {fault[0]}: {fault[1]}")
        return found

    def first_fault(self, vocab_size: int = 2**31 - 1) -> tuple[int, str] | None:
        """The first position that can't be what a drafter proposed, and why; None if all can.

        Whoever made the arrays has seen to it that ``positions`` and ``offsets`` cut them up.
        """
        row = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        position_of = np.repeat(np.arange(len(self)), np.diff(self.positions))
        position = position_of[row]
        first = self.positions[position]
        here, before = self.logprobs[1:], self.logprobs[:-1]
        linked = (self.nexts > row - first) & (self.nexts < self.positions[position + 1] - first)
        linked |= self.nexts == -1
        order = np.lexsort((self.token_ids, row))
        twice = (np.diff(row[order]) == 0) & (np.diff(self.token_ids[order]) == 0)
        faults = [
            (position[~np.isfinite(self.logprobs) | (self.logprobs > 0)], "a log-probability is not finite and 0 or less"),
            (position[1:][(here > before) & (row[1:] == row[:-1])], "the candidates of a row are not best first"),
            (position[(self.token_ids < 0) | (self.token_ids >= vocab_size)], f"a token lies outside the vocabulary of {vocab_size}"),
            (position[order][1:][twice], "a token stands twice among those that follow one path"),
            (position[~linked], "a candidate names a row that is none of those after its own"),
        ]  # fmt: skip
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.bincount(row, np.exp(self.logprobs.astype(np.float64)), minlength=len(position_of))
        faults.append((position_of[sums > 1 + ROW_SUM_TOLERANCE], "the probabilities of a row sum above 1"))
        found = [(int(where[0]), why) for where, why in faults if len(where)]
        if not found and len(row):
            depths = np.empty(len(position_of), np.int32)
            row_depths(self.offsets, self.nexts, self.positions, depths)
            for bad, why in (
                (position_of[depths == 0], "no candidate names one of its rows"),
                (position[depths[row] > self.horizon], f"a path is longer than the horizon {self.horizon}"),
            ):
                found += [(int(bad[0]), why)] if len(bad) else []
        return min(found, default=None)

    def pruned(self, max_budget: int) -> Self:
        """The same without what trees of at most ``max_budget`` nodes don't use; the chain of best candidates stays."""
        pieces = []
        for a in range(0, max(len(self), 1), _PIECE):
            b = min(a + _PIECE, len(self))
            kept = _kept(
                self.logprobs, self.offsets, self.nexts, 0, self.positions[a : b + 1], self.horizon, max_budget
            )
            origin = kept[1]
            pieces.append(_compressed(b - a, *kept, self.token_ids[origin], self.logprobs[origin]))
        return type(self)(self.horizon, *_joined(pieces))

    @classmethod
    def joined(cls, horizon: int, parts: Sequence[Self]) -> Self:
        """The positions of several, one after another."""
        pieces = [(part.positions, part.offsets, part.token_ids, part.nexts, part.logprobs) for part in parts]
        return cls(horizon, *_joined(pieces))

    def true_paths(self, tokens: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rank of each true token among those that follow the true tokens before it; -1 from the first that isn't there."""
        paths = np.empty((len(self), self.horizon), np.int32)
        committed, bounds = plain(tokens, np.int32), plain(starts, np.int64)
        rows = self.token_ids, self.offsets, self.nexts, self.positions
        split(lambda a, b: true_paths(*rows, committed, bounds, a, b, paths), len(bounds) - 1, 64)
        return paths

    def drawn_paths(self, starts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int32]:
        """Ranks drawn by their probabilities, each given those before; -1 from where none of the candidates is drawn."""
        paths = np.empty((len(self), self.horizon), np.int32)
        uniforms = rng.random(paths.shape)
        drawn_paths(self.logprobs, self.offsets, self.nexts, self.positions, uniforms, paths)
        left = np.repeat(starts[1:], np.diff(starts)) - 1 - np.arange(len(self))
        paths[np.arange(1, self.horizon + 1) > left[:, None]] = -1
        return paths

    def best_after(self, paths: NDArray[np.int32]) -> NDArray[np.float64]:
        """As `Proposal`."""
        best = np.empty((len(self), self.horizon))
        best_after(self.logprobs, self.offsets, self.nexts, self.positions, plain(paths, np.int32), best)
        return best

    def chain_logprobs(self) -> NDArray[np.float64]:
        """[P, L] log-probability of each token of the chain of best candidates, given those before; -inf past its end."""
        return self.best_after(np.zeros((len(self), self.horizon), np.int32))

    def drafts(self, paths: NDArray[np.int32], max_budget: int) -> Drafts:
        """As `Proposal`."""
        count, most = len(self), budget_of(max_budget, "max_budget")
        gains = np.empty((count, most), np.float32)
        ranks = np.empty((count, self.horizon), np.int32)
        chain = np.empty(count, np.uint8)
        truth = plain(paths, np.int32)
        rows = self.logprobs, self.offsets, self.nexts, self.positions
        split(lambda a, b: gains_and_ranks(*rows, truth, a, b, gains, ranks, chain), count, 256)
        return Drafts(gains, ranks, chain, chain_expected(self.chain_logprobs()))

    def tree(self, position: int, budget: int) -> DraftTree:
        """As `Proposal`."""
        most = budget_of(budget, "budget")
        shape, values = np.empty((4, most + 1), np.int32), np.empty(most + 1)
        first, rows = int(self.positions[position]), int(self.positions[position + 1] - self.positions[position])
        lattice = self.logprobs, self.offsets, self.nexts, 0, first, rows, self.token_ids
        n = lattice_tree(*lattice, shape, values)
        shape, values = shape[:, : n + 1], values[: n + 1]
        return DraftTree(shape[0], shape[1], shape[2], values, shape[3])

    def candidates(self) -> dict[str, NDArray[Any]]:
        """As `Proposal`; a candidate's row is numbered within its position, and so is the row that follows it (-1: none)."""
        row = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        position = np.repeat(np.arange(len(self)), np.diff(self.positions))[row]
        depths = np.empty(len(self.offsets) - 1, np.int32)
        row_depths(self.offsets, self.nexts, self.positions, depths)
        return {
            "position": position,
            "depth": depths[row],
            "rank": (np.arange(len(row)) - self.offsets[row]).astype(np.int32),
            "token_id": self.token_ids,
            "logprob": self.logprobs,
            "row": (row - self.positions[position]).astype(np.int32),
            "next_row": self.nexts,
        }


_Pieces = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


def _kept(
    logprobs: NDArray[Any],
    offsets: NDArray[np.int64],
    nexts: NDArray[np.int32],
    width: int,
    positions: NDArray[np.int64],
    horizon: int,
    max_budget: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Of each candidate kept: its position, where it stands, the number of its row and of its next row."""
    count, most = len(positions) - 1, budget_of(max_budget, "max_budget")
    room = most + horizon
    counts = np.zeros(count, np.int64)
    origins = np.empty((count, room), np.int64)
    row_of, after = np.empty((count, room), np.int32), np.empty((count, room), np.int32)
    source = logprobs, offsets, nexts, width, plain(positions, np.int64), horizon, most
    split(lambda a, b: kept_candidates(*source, a, b, counts, origins, row_of, after), count, 256)
    here = np.arange(room) < counts[:, None]
    return np.repeat(np.arange(count), counts), origins[here], row_of[here], after[here]


def _compressed(
    count: int,
    position: NDArray[np.int64],
    origin: NDArray[np.int64],
    row_of: NDArray[np.int32],
    after: NDArray[np.int32],
    token_ids: NDArray[np.int32],
    logprobs: NDArray[np.float32],
) -> _Pieces:
    """What `_kept` found as the arrays of `Lattices`."""
    rows = np.ones(count, np.int64)
    np.maximum.at(rows, position, row_of + 1)
    positions = np.concatenate([[0], np.cumsum(rows)])
    sizes = np.bincount(positions[position] + row_of, minlength=int(positions[-1]))
    return positions, np.concatenate([[0], np.cumsum(sizes)]), token_ids, after, logprobs


def _joined(pieces: list[_Pieces]) -> _Pieces:
    """Arrays of several runs of positions as those of all."""
    starts, offsets = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    for positions, edges, *_ in pieces:
        starts.append(starts[-1][-1] + positions[1:])
        offsets.append(offsets[-1][-1] + edges[1:])
    ids, nexts, logprobs = (np.concatenate([piece[i] for piece in pieces]) for i in (2, 3, 4))
    return np.concatenate(starts), np.concatenate(offsets), ids, nexts, logprobs
