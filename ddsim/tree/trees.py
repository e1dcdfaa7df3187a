"""Draft trees of one position: the best-first tree, the chain, its gains and its attention masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.tree.kernels import ancestor_mask
from ddsim.tree.kernels import draft_tree as _draft_tree
from ddsim.tree.kernels import packed_mask as _packed_mask
from ddsim.tree.rows import _INT32, _budget, _check, _rows_of_one, gains_and_ranks


@dataclass(eq=False)  # frozen ones take longer to make than a small tree does
class DraftTree:
    """A draft tree of n nodes below a root, best first; node 0 is the root.

    Examples
    --------
    >>> tree = draft_tree([[-0.5, -1.5], [-0.2, -2.0]], budget=3)
    >>> tree.parents.tolist(), tree.depths.tolist(), tree.ranks.tolist()
    ([-1, 0, 1, 0], [0, 1, 2, 1], [-1, 0, 0, 1])
    >>> tree.mask().astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    """

    parents: NDArray[np.int32]
    """[n + 1] index of the parent, always smaller than the node's own; -1 for the root."""
    depths: NDArray[np.int32]
    """[n + 1] 0 for the root."""
    ranks: NDArray[np.int32]
    """[n + 1] rank of the node's candidate in the row of its depth, from 0; -1 for the root."""
    logprobs: NDArray[np.float64]
    """[n + 1] path log-probability; 0 for the root."""

    def __len__(self) -> int:
        """Nodes with the root: tokens that verification sends through the target."""
        return len(self.parents)

    def mask(self) -> NDArray[np.bool_]:
        """Attention inside the tree, bool [n + 1, n + 1]: row i is True at node i and at its ancestors."""
        mask = np.zeros((len(self), len(self)), np.bool_)
        ancestor_mask(self.parents, mask)
        return mask

    def packed_mask(self) -> NDArray[np.uint64]:
        """``mask()`` in bits, uint64 [n + 1, ceil((n + 1) / 64)]: node j is bit j % 64, from the least, of word j // 64."""
        nodes = len(self.parents)
        mask = np.empty((nodes, (nodes + 63) // 64), np.uint64)
        _packed_mask(self.parents, mask)
        return mask


def draft_tree(logprobs: ArrayLike | Sequence[ArrayLike], budget: int, *, check: bool = True) -> DraftTree:
    """Build the best-first tree of one position.

    Parameters
    ----------
    logprobs : [L, K] array or list of L rows, float32 or float64
        Marginals of the next L positions, each row descending; -inf marks absent candidates.
    budget : int
        Nodes without the root. The tree is smaller if no more nodes exist.
    check : bool
        Refuse rows that can't be marginals. Leave it out where the rows are known to be sound and microseconds count.

    Returns
    -------
    DraftTree
        argmax over prefix-closed trees T of ``budget`` nodes of Σ_{v in T} exp(path log-probability of v).

    Raises
    ------
    DdsimError
        A row that can't be a marginal (named), or a negative budget.

    Examples
    --------
    >>> draft_tree([[-0.5, -1.5], [-0.25, -2.0]], budget=4).logprobs.tolist()
    [0.0, -0.5, -0.75, -1.5, -1.75]
    """
    most = _budget(budget, "budget")
    flat, offsets, horizon = _rows_of_one(logprobs)
    if check:
        _check(flat, offsets, horizon)
    parents = np.empty(most + 1, _INT32)
    depths = np.empty(most + 1, _INT32)
    ranks = np.empty(most + 1, _INT32)
    values = np.empty(most + 1)
    n = 1 + _draft_tree(flat, offsets, horizon, most, parents, depths, ranks, values)
    if n <= most:
        parents, depths, ranks, values = parents[:n], depths[:n], ranks[:n], values[:n]
    return DraftTree(parents, depths, ranks, values)


def draft_chain(logprobs: ArrayLike | Sequence[ArrayLike]) -> DraftTree:
    """Build the chain of best candidates, DFlash's draft: the tree restricted to one node a depth.

    Parameters
    ----------
    logprobs : [L, K] array or list of L rows, float32 or float64
        As for `draft_tree`. The chain ends before the first row without candidates.

    Returns
    -------
    DraftTree
        At most L nodes and the root.

    Examples
    --------
    >>> draft_chain([[-0.5, -1.5], [-0.25, -2.0]]).logprobs.tolist()
    [0.0, -0.5, -0.75]
    """
    flat, offsets, horizon = _rows_of_one(logprobs)
    _check(flat, offsets, horizon)
    depth = 0
    while depth < horizon and offsets[depth] < offsets[depth + 1] and flat[offsets[depth]] > -np.inf:
        depth += 1
    best = flat[offsets[:depth]].astype(np.float64)
    steps = np.arange(depth + 1, dtype=np.int32)
    ranks = np.zeros(depth + 1, np.int32)
    ranks[0] = -1
    return DraftTree(steps - np.int32(1), steps, ranks, np.concatenate([[0.0], np.cumsum(best)]))


def chain_tree(horizon: int) -> DraftTree:
    """Shape of the chain of ``horizon`` nodes when no marginals are at hand; its log-probabilities are NaN below the root.

    Examples
    --------
    >>> chain_tree(2).parents.tolist()
    [-1, 0, 1]
    """
    tree = draft_chain(np.zeros((horizon, 1)))
    tree.logprobs[1:] = np.nan
    return tree


def tree_gains(logprobs: ArrayLike | Sequence[ArrayLike], max_budget: int) -> NDArray[np.float32]:
    """Gains g[1..N] of one position: what each further node adds to the expected acceptance length.

    Parameters
    ----------
    logprobs : [L, K] array or list of L rows, float32 or float64
        As for `draft_tree`.
    max_budget : int
        N.

    Returns
    -------
    float32 [N]
        Path probabilities of the N best nodes, descending, 0 where no more nodes exist. Φ*(n) = Σ_{i ≤ n} g[i] is concave, and
        1 + Φ*(n) is the expected acceptance length at budget n.

    Raises
    ------
    DdsimError
        A row that can't be a marginal (named), or a negative budget.

    Examples
    --------
    >>> [round(float(gain), 3) for gain in tree_gains([[-0.5, -1.5], [-0.2, -2.0]], 4)]
    [0.607, 0.497, 0.223, 0.183]
    """
    flat, offsets, horizon = _rows_of_one(logprobs)
    _check(flat, offsets, horizon)
    truth = np.full((1, horizon), -1, np.int32)
    return gains_and_ranks(flat, offsets, truth, horizon, max_budget, check=False)[0][0]
