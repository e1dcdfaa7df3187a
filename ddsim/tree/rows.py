"""Draft trees from marginals: best-first trees, their gains, the ranks of true paths, and forests.

A node is a tuple of candidate ranks (k1, ..., kd); its path log-probability is the float64 sum of its rows' values from depth 1
down. Best-first order is by path log-probability, descending, then by rank tuple, lexicographically ascending (a prefix comes
before its extensions). The tree of budget n is the first n nodes in this order: a maximum-weight prefix-closed set, and trees of
growing budgets are nested. Candidates of log-probability -inf are absent.

Marginals are rows of log-probabilities, descending. Of one position: a dense [L, K] array or a list of L rows. Of P positions:
compressed rows, where the candidates of depth d at position p are ``logprobs[offsets[p * L + d - 1] : offsets[p * L + d]]``.

Large inputs are split over ``numba.get_num_threads()`` threads by position; results don't depend on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers, plain
from ddsim.errors import DdsimError
from ddsim.text import brief
from ddsim.threads import split
from ddsim.tree.checked import FAULTS, NOT_A_NUMBER, POSITIVE, RISING, SUM, even_offsets, first_fault
from ddsim.tree.kernels import gains_and_ranks as _gains_and_ranks
from ddsim.tree.kernels import kept_pairs as _kept_pairs
from ddsim.tree.kernels import true_ranks as _true_ranks

ROW_SUM_TOLERANCE = 1e-4  # rows come from float32 softmaxes, whose sums are not exactly 1


MAX_TREE = 1 << 20  # nodes; guards against a budget typed wrongly, which would only be refused by the allocator


_Compressed = tuple[NDArray[Any], NDArray[np.int64], int]


def gains_and_ranks(
    logprobs: NDArray[np.floating[Any]],
    offsets: NDArray[np.int64],
    truth_ranks: NDArray[np.int32],
    horizon: int,
    max_budget: int,
    *,
    check: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Gains of the best-first trees at P positions, and when each true path enters them.

    Parameters
    ----------
    logprobs : float32 or float64 [M]
        Compressed rows (see the module), each descending.
    offsets : int64 [P * L + 1]
        Where each row starts in ``logprobs``.
    truth_ranks : int32 [P, L]
        Index of the true token x[p + d] in row (p, d), -1 if it isn't there; see `true_ranks`.
    horizon : int
        L.
    max_budget : int
        N.
    check : bool
        Refuse rows that can't be marginals.

    Returns
    -------
    gains : float32 [P, N]
        As `tree_gains`, a row a position.
    ranks : int32 [P, L]
        1-based place in best-first order of the node of the first d true tokens, `NO_RANK` if it isn't among the first N nodes.
        A tree of budget n ≤ N accepts as many drafted tokens as there are d with ranks[p, d - 1] ≤ n.
    chain : uint8 [P]
        Accepted tokens of the chain: leading depths whose true token is candidate 0.

    Raises
    ------
    DdsimError
        Shapes that don't fit together, or a row that can't be a marginal (named).

    Examples
    --------
    >>> logprobs = np.log([0.6, 0.4, 0.8, 0.2])  # one position, two depths
    >>> gains, ranks, chain = gains_and_ranks(logprobs, np.array([0, 2, 4]), np.array([[1, 0]]), 2, 4)
    >>> [round(float(gain), 2) for gain in gains[0]], ranks.tolist(), chain.tolist()
    ([0.6, 0.48, 0.4, 0.32], [[3, 4]], [0])
    """
    flat, starts, positions = _compressed(_floats(logprobs), offsets, horizon)
    most = budget_of(max_budget, "max_budget")
    truth = plain(truth_ranks, np.int32)
    if truth.shape != (positions, horizon):
        raise DdsimError(
            f"truth_ranks has shape {truth.shape}; offsets and horizon {horizon} say {(positions, horizon)}"
        )
    if check:
        _check(flat, starts, horizon)
    gains = np.empty((positions, most), np.float32)
    ranks = np.empty((positions, horizon), np.int32)
    chain = np.empty(positions, np.uint8)

    def work(first: int, last: int) -> None:
        _gains_and_ranks(flat, starts, truth, horizon, first, last, gains, ranks, chain)

    split(work, positions, 256)
    return gains, ranks, chain


def true_ranks(
    token_ids: NDArray[np.integer[Any]],
    offsets: NDArray[np.int64],
    tokens: NDArray[np.int32],
    sequence_starts: NDArray[np.int64],
    horizon: int,
) -> NDArray[np.int32]:
    """Find the true token of every row.

    Parameters
    ----------
    token_ids : int [M]
        Candidates, compressed rows as for `gains_and_ranks`.
    offsets : int64 [P * L + 1]
    tokens : int32 [P]
        Committed tokens of S sequences one after another.
    sequence_starts : int64 [S + 1]
        Where each sequence starts in ``tokens``, then P.
    horizon : int
        L.

    Returns
    -------
    int32 [P, L]
        Index of x[p + d] in row (p, d), -1 if it isn't there or lies beyond the sequence's end.

    Examples
    --------
    >>> true_ranks(np.array([7, 5, 5, 7]), np.array([0, 2, 4, 4, 4]), np.array([9, 5]), np.array([0, 2]), 2).tolist()
    [[1, -1], [-1, -1]]
    """
    ids, starts, positions = _compressed(plain(token_ids, np.int32), offsets, horizon)
    committed = plain(tokens, np.int32)
    bounds = plain(sequence_starts, np.int64)
    if committed.shape != (positions,):
        raise DdsimError(f"tokens has shape {committed.shape}; offsets and horizon {horizon} say {(positions,)}")
    if len(bounds) < 1 or bounds[0] != 0 or bounds[-1] != positions or np.any(np.diff(bounds) < 0):
        raise DdsimError(f"sequence_starts must rise from 0 to the {positions} positions")
    ranks = np.empty((positions, horizon), np.int32)
    _true_ranks(ids, starts, committed, bounds, horizon, 0, len(bounds) - 1, ranks)
    return ranks


def kept_pairs(logprobs: NDArray[np.floating[Any]], max_budget: int, *, check: bool = True) -> NDArray[np.int32]:
    """Count the candidates of each row that trees of at most ``max_budget`` nodes use.

    Node (0, ..., 0, k) at depth d comes first of all nodes that use candidate k of that row, so the candidate matters only if this
    node is among the first N. Dropping the others changes no tree, gain or rank at any budget up to N.

    Parameters
    ----------
    logprobs : float32 or float64 [P, L, K]
        Rows descending.
    max_budget : int
        N.
    check : bool
        Refuse rows that can't be marginals.

    Returns
    -------
    int32 [P, L]
        How many leading candidates to keep; at most N over the rows of a position.

    Examples
    --------
    >>> kept_pairs(np.log([[[0.9, 0.1], [0.5, 0.5]]]), 3).tolist()
    [[1, 2]]
    """
    dense = _floats(logprobs)
    if dense.ndim != 3:
        raise DdsimError(f"logprobs has shape {dense.shape}; kept_pairs needs [positions, horizon, candidates]")
    positions, horizon, width = dense.shape
    most = budget_of(max_budget, "max_budget")
    kept = np.zeros((positions, horizon), np.int32)
    if most == 0 or horizon == 0:
        return kept
    flat = dense.reshape(-1)
    starts = even_offsets(positions * horizon, width)
    if check:
        _check(flat, starts, horizon)
    split(lambda first, last: _kept_pairs(flat, starts, horizon, most, first, last, kept), positions, 256)
    return kept


_REASONS = {
    NOT_A_NUMBER: "hold NaN; every candidate needs a log-probability",
    POSITIVE: "are positive; log-probabilities are natural logarithms of probabilities, at most 0",
    RISING: "rise; sort each row in descending order",
    SUM: f"have probabilities that sum above 1 + {ROW_SUM_TOLERANCE:g}; normalise each row by log-softmax",
}


def refused(fault: int, horizon: int, positions: int = 1) -> DdsimError:
    """What is wrong with rows, from the fault that a kernel found."""
    row, reason = divmod(fault, FAULTS)
    place = f"depth {row % horizon + 1}"
    if positions > 1:
        place = f"position {row // horizon}, {place}"
    return DdsimError(f"logprobs at {place} {_REASONS[reason]}")


def _check(flat: NDArray[Any], offsets: NDArray[np.int64], horizon: int) -> None:
    """Raise if a compressed row can't be a marginal."""
    fault = first_fault(flat, offsets, ROW_SUM_TOLERANCE)
    if fault:
        raise refused(fault, horizon, (len(offsets) - 1) // horizon)


def budget_of(budget: int, name: str) -> int:
    """Budget as a plain int, if it is one."""
    if type(budget) is int and 0 <= budget <= MAX_TREE:
        return budget
    if not isinstance(budget, np.integer) or not 0 <= budget <= MAX_TREE:
        raise DdsimError(f"{name} is {brief(budget)}; it must be a whole number of nodes from 0 to {MAX_TREE}")
    return int(budget)


def _floats(array: Any) -> NDArray[Any]:
    """Log-probabilities as kernels take them: float64 if they come so, else float32."""
    given = array if isinstance(array, np.ndarray) and array.dtype.kind in "fiu" else numbers(array, "logprobs")
    return plain(given, np.float32 if given.dtype.char in "ef" else np.float64)


def rows_of_one(logprobs: ArrayLike | Sequence[ArrayLike]) -> NDArray[Any]:
    """Rows of one position as kernels take them, [L, K]; shorter ones of a list end with -inf."""
    if not isinstance(logprobs, (list, tuple)):
        dense = _floats(logprobs)
        if dense.ndim != 2:
            raise DdsimError(f"logprobs has shape {dense.shape}; one position needs [horizon, candidates]")
        return dense
    rows = [numbers(row, f"logprobs at depth {depth + 1}") for depth, row in enumerate(logprobs)]
    if any(row.ndim != 1 for row in rows):
        raise DdsimError("logprobs must be rows of numbers, one row a depth")
    flat = _floats(np.concatenate(rows) if rows else np.empty(0, np.float32))
    counts = np.array([len(row) for row in rows], np.int64)
    dense = np.full((len(rows), counts.max(initial=0)), -np.inf, flat.dtype)
    dense[np.arange(dense.shape[1]) < counts[:, None]] = flat
    return dense


def _compressed(flat: NDArray[Any], offsets: ArrayLike, horizon: int) -> _Compressed:
    """Check that offsets cut ``flat`` into whole positions; return both, and the number of positions."""
    starts = plain(offsets, np.int64)
    if not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise DdsimError(f"horizon is {brief(horizon)}; it must be a whole number of at least 1")
    if flat.ndim != 1 or starts.ndim != 1 or len(starts) % horizon != 1 % horizon or len(starts) < 1:
        raise DdsimError(
            f"shapes {flat.shape} and {starts.shape} of rows and offsets are not those of horizon {horizon}"
        )
    if starts[0] < 0 or starts[-1] > len(flat) or np.any(starts[1:] < starts[:-1]):
        raise DdsimError(f"offsets must not fall and must stay within the {len(flat)} candidates")
    return flat, starts, (len(starts) - 1) // horizon
