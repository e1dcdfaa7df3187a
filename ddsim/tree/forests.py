"""Forests: the gains of requests that are verified together, merged."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers
from ddsim.errors import DdsimError
from ddsim.tree.rows import budget_of


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
    most = budget_of(total, "total")
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
