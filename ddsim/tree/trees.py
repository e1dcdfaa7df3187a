"""Draft trees of one position: the best-first tree, the chain, its gains and its attention masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.tree.checked import checked_gains, checked_tree, even_offsets, first_fault
from ddsim.tree.lattice import Lattice
from ddsim.tree.lattice_tables import dense_gains, dense_tree
from ddsim.tree.masks import ancestor_mask
from ddsim.tree.masks import packed_mask as _packed_mask
from ddsim.tree.rows import ROW_SUM_TOLERANCE, budget_of, refused, rows_of_one
from ddsim.tree.shown import ShownTree

_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)  # looked up faster than the types


@dataclass(eq=False, repr=False, slots=True)  # frozen ones take longer to make than a small tree does
class DraftTree(ShownTree):
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
    """[n + 1] rank of the node's candidate in the row of its depth, of a lattice among those that follow its parent, from 0; -1 for
    the root."""
    logprobs: NDArray[np.float64]
    """[n + 1] path log-probability; 0 for the root."""
    tokens: NDArray[np.int32] | None = None
    """[n + 1] token of each node, -1 for the root; None where the proposal is rows of numbers only."""

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


def draft_tree(logprobs: ArrayLike | Sequence[ArrayLike] | Lattice, budget: int, *, check: bool = True) -> DraftTree:
    """Build the best-first tree of one position.

    Parameters
    ----------
    logprobs : [L, K] array or list of L rows, float32 or float64, or Lattice
        Marginals of the next L positions, each row descending; -inf marks absent candidates. Or a lattice, which is checked when made.
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
    if type(logprobs) is Lattice:
        return _lattice_tree(logprobs, budget_of(budget, "budget"))
    rows = logprobs if _fits(logprobs) else rows_of_one(logprobs)  # type: ignore[arg-type]
    most = budget_of(budget, "budget")
    shape, values = np.empty((3, most + 1), _INT32), np.empty(most + 1)
    n = checked_tree(rows, ROW_SUM_TOLERANCE if check else np.inf, shape, values)
    if n < 0:
        raise refused(-n, len(rows))  # type: ignore[arg-type]
    if n < most:
        shape, values = shape[:, : n + 1], values[: n + 1]
    return DraftTree(shape[0], shape[1], shape[2], values)


def _lattice_tree(lattice: Lattice, most: int) -> DraftTree:
    shape, values = np.empty((4, most + 1), _INT32), np.empty(most + 1)
    n = dense_tree(lattice.rows, lattice.token_ids, shape, values)
    if n < most:
        shape, values = shape[:, : n + 1], values[: n + 1]
    return DraftTree(shape[0], shape[1], shape[2], values, shape[3])


def _fits(logprobs: Any) -> bool:
    """Whether rows are as kernels take them already; most are, and then microseconds count."""
    return (
        type(logprobs) is np.ndarray
        and logprobs.dtype is _FLOAT32
        and logprobs.ndim == 2
        and logprobs.flags.carray  # contiguous, aligned and writable
    )


def draft_chain(logprobs: ArrayLike | Sequence[ArrayLike] | Lattice) -> DraftTree:
    """Build the chain of best candidates, DFlash's draft: the tree restricted to one node a depth.

    Parameters
    ----------
    logprobs : [L, K] array or list of L rows, float32 or float64, or Lattice
        As for `draft_tree`. The chain ends before the first row without candidates; of a lattice, each candidate is the best given the
        one before.

    Returns
    -------
    DraftTree
        At most L nodes and the root.

    Examples
    --------
    >>> draft_chain([[-0.5, -1.5], [-0.25, -2.0]]).logprobs.tolist()
    [0.0, -0.5, -0.75]
    """
    if isinstance(logprobs, Lattice):
        path = logprobs.chain()
        best = np.append(logprobs.first[path[:1]], logprobs.transitions[np.arange(len(path) - 1), path[:-1], path[1:]])
        tokens = np.append(-1, logprobs.token_ids[np.arange(len(path)), path]).astype(np.int32)
        return _chain(best.astype(np.float64), tokens)
    rows = rows_of_one(logprobs)
    fault = first_fault(rows.reshape(-1), even_offsets(*rows.shape), ROW_SUM_TOLERANCE)
    if fault:
        raise refused(fault, len(rows))
    best = rows[:, 0].astype(np.float64) if rows.shape[1] else np.full(len(rows), -np.inf)
    return _chain(best[: int(np.argmin(np.append(best, -np.inf) > -np.inf))])


def _chain(best: NDArray[np.float64], tokens: NDArray[np.int32] | None = None) -> DraftTree:
    """The chain of nodes with these log-probabilities, each given the one before."""
    steps = np.arange(len(best) + 1, dtype=np.int32)
    ranks = np.zeros(len(best) + 1, np.int32)
    ranks[0] = -1
    return DraftTree(steps - np.int32(1), steps, ranks, np.concatenate([[0.0], np.cumsum(best)]), tokens)


def tree_gains(logprobs: ArrayLike | Sequence[ArrayLike] | Lattice, max_budget: int) -> NDArray[np.float32]:
    """Gains g[1..N] of one position: what each further node adds to the expected acceptance length.

    Parameters
    ----------
    logprobs : [L, K] array or list of L rows, float32 or float64, or Lattice
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
    gains = np.empty(budget_of(max_budget, "max_budget"), _FLOAT32)
    if isinstance(logprobs, Lattice):
        dense_gains(logprobs.rows, gains)
        return gains
    rows = logprobs if _fits(logprobs) else rows_of_one(logprobs)
    fault = checked_gains(rows, ROW_SUM_TOLERANCE, gains)
    if fault:
        raise refused(fault, len(rows))  # type: ignore[arg-type]
    return gains
