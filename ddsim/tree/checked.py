"""Kernels that check rows of marginals, and build the tree or the gains of one position from rows that pass.

A fault is ``row * FAULTS + reason``; 0 is none.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import numpy as np

from ddsim.jit import njit
from ddsim.tree.kernels import draft_tree, exp_nonpositive, first_nodes, make_scratch, write_gains

NOT_A_NUMBER, POSITIVE, RISING, SUM = 1, 2, 3, 4


FAULTS = 8


HEAD = (
    64  # candidates of a row that the quick bound adds one by one; behind them a group counts as its first, its largest
)


GROUPS = 16  # of the candidates HEAD to 2 * HEAD, and of each span twice as long behind them


MARGIN = 5e-5  # more than rough exponentials may be wrong by


_ONE, _HALF, _SIXTH, _STEP, _LOWEST = (np.float32(x) for x in (1.0, 0.5, 1 / 6, 1 / 256, -24.0))


@njit(cache=True, nogil=True)
def exp_roughly(x):
    """e^x for float32 x <= 0, to 3e-5 of its value; never below e^-24."""
    r = (x if x > _LOWEST else _LOWEST) * _STEP
    p = _ONE + r * (_ONE + r * (_HALF + r * _SIXTH))
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    return p


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def bound_of_sum(row, head):
    """At least Σ exp(row[i]) of a descending row, but for MARGIN; the first ``head`` count as they are."""
    total = np.float32(0.0)
    for i in range(min(row.shape[0], head)):
        total += exp_roughly(np.float32(row[i]))
    bound = np.float64(total)
    start = head
    while start < row.shape[0]:
        leaders = row[start : 2 * start : start // GROUPS]
        total = np.float32(0.0)
        for i in range(leaders.shape[0]):
            total += exp_roughly(np.float32(leaders[i]))
        bound += np.float64(total) * (start // GROUPS)
        start *= 2
    return bound


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def sum_exp(row):
    """Σ exp(row[i]), added in any order, so that the loop vectorises."""
    total = 0.0
    for i in range(row.shape[0]):
        total += exp_nonpositive(np.float64(row[i]))
    return total


@njit(cache=True, nogil=True)
def row_fault(row, tolerance):
    """Why a row can't be a marginal; 0 if it can."""
    if row.shape[0] == 0:
        return 0
    before = row[:-1]
    after = row[1:]
    wrong = not row[0] <= 0.0
    for i in range(after.shape[0]):  # without a branch, so that the loop vectorises
        wrong |= not after[i] <= before[i]
    if wrong:
        below = 0.0
        for i in range(row.shape[0]):
            value = np.float64(row[i])
            if not value <= below:
                return NOT_A_NUMBER if np.isnan(value) else (POSITIVE if value > 0.0 else RISING)
            below = value
    most = 1.0 + tolerance
    for head in (HEAD, row.shape[0]):
        if bound_of_sum(row, head) <= most - MARGIN:
            return 0
    return SUM if sum_exp(row) > most else 0


@njit(cache=True, nogil=True)
def first_fault(logprobs, offsets, tolerance):
    """The first fault of compressed rows."""
    for row in range(offsets.shape[0] - 1):
        reason = row_fault(logprobs[offsets[row] : offsets[row + 1]], tolerance)
        if reason > 0:
            return row * FAULTS + reason
    return 0


@njit(cache=True, nogil=True)
def sound_rows(counts, token_ids, logprobs, vocabulary, ties_ordered, tolerance):
    """Whether candidates, ``counts`` [P, L] a row, are marginals that a trace may hold; ``ties_ordered``: by token id."""
    at = 0
    for p in range(counts.shape[0]):
        for d in range(counts.shape[1]):
            end = at + counts[p, d]
            if at == end:
                continue
            if d > 0 and counts[p, d - 1] == 0:
                return False
            row = logprobs[at:end]
            if row_fault(row, tolerance) > 0 or row[-1] == -np.inf:
                return False
            ids = token_ids[at:end]
            wrong = False
            for i in range(ids.shape[0]):
                wrong |= (ids[i] < 0) | (ids[i] >= vocabulary)
            if ties_ordered:
                for i in range(ids.shape[0] - 1):
                    wrong |= (row[i] == row[i + 1]) & (ids[i] >= ids[i + 1])
            if wrong:
                return False
            at = end
    return True


@njit(cache=True, nogil=True)
def even_offsets(rows, width):
    """Where each row starts, of rows of equal width."""
    offsets = np.empty(rows + 1, np.int64)
    for row in range(rows + 1):
        offsets[row] = row * width
    return offsets


@njit(cache=True, nogil=True)
def checked_tree(rows, tolerance, shape, values):
    """Fill parents, depths and ranks, ``shape`` [3, most + 1], and ``values`` [most + 1] with the best-first tree of ``rows`` [L, K].

    Return its nodes without the root, or -fault. A tolerance of infinity leaves the check out.
    """
    flat = rows.reshape(-1)
    horizon = rows.shape[0]
    offsets = even_offsets(horizon, rows.shape[1])
    if tolerance < np.inf:
        fault = first_fault(flat, offsets, tolerance)
        if fault > 0:
            return -fault
    return draft_tree(flat, offsets, horizon, values.shape[0] - 1, shape[0], shape[1], shape[2], values)


@njit(cache=True, nogil=True)
def checked_gains(rows, tolerance, gains):
    """Fill ``gains`` [most] of ``rows`` [L, K]; return the first fault."""
    flat = rows.reshape(-1)
    horizon = rows.shape[0]
    offsets = even_offsets(horizon, rows.shape[1])
    fault = first_fault(flat, offsets, tolerance)
    if fault == 0:
        most = gains.shape[0]
        s = make_scratch(horizon, most)
        write_gains(s, first_nodes(flat, offsets, np.int64(0), horizon, most, s)[1], gains)
    return fault
