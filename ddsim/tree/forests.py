"""Forests: the gains of requests that are verified together, merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers
from ddsim.errors import DdsimError
from ddsim.tree.rows import _budget
from ddsim.tree.trees import DraftTree, draft_tree


def forest_gains(gains: ArrayLike, total: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Merge the gains of B requests that are verified together.

    Parameters
    ----------
    gains : float32 [B, N]
        Rows descending, 0 where no more nodes exist.
    total : int
        Nodes of the forest, without the B roots.

    Returns
    -------
    merged : float32 [total]
        The largest gains of all, descending; 0 where no more nodes exist.
    owners : int32 [total]
        Request that each node belongs to, -1 where no more nodes exist. Equal gains: the smaller request first. The trees' budgets
        at n nodes are the counts of owners[:n].

    Examples
    --------
    >>> merged, owners = forest_gains([[0.5, 0.25], [0.75, 0.25]], 3)
    >>> merged.tolist(), owners.tolist()
    ([0.75, 0.5, 0.25], [1, 0, 0])
    """
    with np.errstate(over="ignore"):
        rows = numbers(gains, "gains").astype(np.float32)
    most = _budget(total, "total")
    if rows.ndim != 2:
        raise DdsimError(f"gains has shape {rows.shape}; forest_gains needs [requests, budget]")
    if not np.all(rows >= 0) or np.any(rows[:, 1:] > rows[:, :-1]):
        bad = int(np.argmax(~np.all(rows >= 0, axis=1) | np.any(rows[:, 1:] > rows[:, :-1], axis=1)))
        raise DdsimError(f"gains of request {bad} are not descending numbers from 0")
    flat = rows.reshape(-1)
    # Stable, and it profits from the rows' own order.
    first = np.argsort(-flat, kind="stable")[:most]
    first = first[flat[first] > 0]
    merged = np.zeros(most, np.float32)
    owners = np.full(most, -1, np.int32)
    merged[: len(first)] = flat[first]
    owners[: len(first)] = first // rows.shape[1]
    return merged, owners


def draft_forest(requests: Sequence[ArrayLike | Sequence[ArrayLike]], total: int) -> list[DraftTree]:
    """Build the trees of B requests that together hold the ``total`` best nodes.

    Parameters
    ----------
    requests : list of B marginals, each as for `draft_tree`
    total : int
        Nodes of all trees, without the B roots.

    Returns
    -------
    list of B DraftTree
        Nodes are taken by path log-probability, descending; equal ones from the smaller request first.

    Examples
    --------
    >>> [len(tree) - 1 for tree in draft_forest([[[-0.5, -3.0]], [[-0.25, -1.75]]], 3)]
    [1, 2]
    """
    most = _budget(total, "total")
    if not isinstance(requests, (list, tuple)):
        requests = list(np.atleast_1d(numbers(requests, "requests")))
    trees = [draft_tree(rows, most) for rows in requests]
    if not trees:
        return []
    values = np.concatenate([tree.logprobs[1:] for tree in trees])
    owners = np.repeat(np.arange(len(trees)), [len(tree) - 1 for tree in trees])
    sizes = np.bincount(owners[np.argsort(-values, kind="stable")[:most]], minlength=len(trees))
    return [
        DraftTree(tree.parents[:nodes], tree.depths[:nodes], tree.ranks[:nodes], tree.logprobs[:nodes])
        for tree, nodes in zip(trees, (sizes + 1).tolist(), strict=True)
    ]
