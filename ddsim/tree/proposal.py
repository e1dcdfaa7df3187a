"""Proposals: what a drafter proposes at every position of a text, and how each kind of it becomes gains and ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ddsim.tree.rows import gains_and_ranks, true_ranks
from ddsim.tree.trees import DraftTree, draft_tree


class Drafts(NamedTuple):
    """What the drafts of P positions come to: all that is known of them from here on up."""

    gains: NDArray[np.float32]
    """[P, N] path probabilities of the best nodes, descending, 0 where the tree ran out."""
    ranks: NDArray[np.int32]
    """[P, L] place in the tree of the node of the first d true tokens, from 1, or NO_RANK."""
    chain: NDArray[np.uint8]
    """[P] leading depths whose true token is the best candidate."""
    chain_expected: NDArray[np.float32]
    """[P, L] expected accepted tokens of the first 1, 2, ... L tokens of the chain of best candidates."""


def chain_expected(logprobs: NDArray[np.float64]) -> NDArray[np.float32]:
    """`Drafts.chain_expected` from the log-probability [P, L] of each token of the chain given those before.

    Examples
    --------
    >>> chain_expected(np.log([[0.5, 0.5, 0.5]])).tolist()
    [[0.5, 0.75, 0.875]]
    """
    return np.exp(np.cumsum(logprobs, axis=1)).cumsum(axis=1).astype(np.float32)


class Proposal(Protocol):
    """One proposal at each of P positions, a function of the committed text before it. A kind of drafter is a class of these.

    Paths, int32 [P, L], say where the tokens of a text stand in the proposals, in a code of the kind's own.
    """

    @property
    def horizon(self) -> int:
        """Depths of a proposal, L."""
        ...

    def __len__(self) -> int:
        """Positions, P."""
        ...

    def true_paths(self, tokens: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Where the committed tokens [P] of sequences that start at ``starts`` [S + 1] stand."""
        ...

    def drawn_paths(self, starts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int32]:
        """Paths drawn by the drafter's own probabilities, none past a sequence's end."""
        ...

    def best_after(self, paths: NDArray[np.int32]) -> NDArray[np.float64]:
        """[P, L] log-probability of the best candidate of each depth behind these paths; -inf where none is."""
        ...

    def drafts(self, paths: NDArray[np.int32], max_budget: int) -> Drafts:
        """Gains to ``max_budget`` nodes, the ranks of these paths, the chain's luck and its expectation."""
        ...

    def tree(self, position: int, budget: int) -> DraftTree:
        """The best tree of ``budget`` nodes at a position, with its nodes' ``tokens``."""
        ...

    def candidates(self) -> dict[str, NDArray[Any]]:
        """All that is proposed as a long table: position, depth, rank, token_id, logprob."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of marginals, as DFlash drafts them: the tree is that of their product.

    The candidates of depth d at position p (row p·L + d − 1 of P·L) are ``token_ids[a:b]`` and
    ``logprobs[a:b]`` with ``a, b = offsets[p * L + d - 1], offsets[p * L + d]``.

    Examples
    --------
    >>> rows = Rows(1, np.array([0, 2, 2]), np.array([7, 5], np.int32), np.log(np.float32([0.5, 0.25])))
    >>> paths = rows.true_paths(np.array([9, 5], np.int32), np.array([0, 2]))
    >>> rows.drafts(paths, 2).ranks[0].tolist(), rows.tree(0, 2).tokens.tolist()
    ([2], [-1, 7, 5])
    """

    horizon: int
    offsets: NDArray[np.int64]
    """[P * L + 1] where each row of candidates starts in the next two."""
    token_ids: NDArray[np.int32]
    """[M] candidates."""
    logprobs: NDArray[np.float32]
    """[M] their log-probabilities, descending within a row."""

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.horizon

    def with_logprobs(self, logprobs: NDArray[np.float32]) -> Self:
        """The same candidates with other log-probabilities."""
        return replace(self, logprobs=logprobs)

    @property
    def counts(self) -> NDArray[np.int64]:
        """[P, L] candidates of each row."""
        return np.diff(self.offsets).reshape(-1, self.horizon)

    def best(self) -> NDArray[np.float64]:
        """[P, L] log-probability of each row's best candidate, -inf if there is none."""
        exists = self.counts > 0
        best = np.full(exists.shape, -np.inf)
        best[exists] = self.logprobs[self.offsets[:-1].reshape(exists.shape)[exists]]
        return best

    def best_after(self, paths: NDArray[np.int32]) -> NDArray[np.float64]:
        """As `Proposal`: whatever the path, as long as it is in the rows."""
        best = self.best()
        best[:, 1:][(paths[:, :-1] < 0).cumsum(axis=1) > 0] = -np.inf
        return best

    def part(self, first: int, last: int) -> Self:
        """Positions ``first`` to ``last`` (exclusive)."""
        edges = self.offsets[first * self.horizon : last * self.horizon + 1]
        inside = slice(edges[0], edges[-1])
        return replace(self, offsets=edges - edges[0], token_ids=self.token_ids[inside], logprobs=self.logprobs[inside])

    def at(self, position: int) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Candidates and log-probabilities of depths 1..L."""
        edges = self.offsets[position * self.horizon : (position + 1) * self.horizon + 1]
        return [(self.token_ids[a:b], self.logprobs[a:b]) for a, b in pairwise(edges)]

    def true_paths(self, tokens: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Index of each true token in its row, -1 if it isn't there."""
        return true_ranks(self.token_ids, self.offsets, tokens, starts, self.horizon)

    def drawn_paths(self, starts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int32]:
        """A candidate of each row drawn by its probability; -1 for none of them, and past the text's end."""
        mass = np.concatenate([[0.0], np.cumsum(np.exp(self.logprobs.astype(np.float64)))])
        first, last = self.offsets[:-1], self.offsets[1:]
        drawn = np.searchsorted(mass[1:], mass[first] + rng.random(len(first)), side="right")
        paths = np.where(drawn < last, drawn - first, -1).astype(np.int32).reshape(len(self), self.horizon)
        left = np.repeat(starts[1:], np.diff(starts)) - 1 - np.arange(len(self))
        paths[np.arange(1, self.horizon + 1) > left[:, None]] = -1
        return paths

    def drafts(self, paths: NDArray[np.int32], max_budget: int) -> Drafts:
        """As `Proposal`; whoever made the rows has checked them."""
        drafted = gains_and_ranks(self.logprobs, self.offsets, paths, self.horizon, max_budget, check=False)
        return Drafts(*drafted, chain_expected(self.best()))

    def tree(self, position: int, budget: int) -> DraftTree:
        """As `Proposal`."""
        rows = self.at(position)
        drafted = draft_tree([logprobs for _, logprobs in rows], budget)
        nodes = zip(drafted.depths[1:], drafted.ranks[1:], strict=True)
        return replace(drafted, tokens=np.array([-1, *(rows[d - 1][0][k] for d, k in nodes)], np.int32))

    def candidates(self) -> dict[str, NDArray[Any]]:
        """As `Proposal`."""
        row = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return {
            "position": row // self.horizon,
            "depth": (row % self.horizon + 1).astype(np.int32),
            "rank": (np.arange(len(row)) - self.offsets[row]).astype(np.int32),
            "token_id": self.token_ids,
            "logprob": self.logprobs,
        }
