"""Plain twins of the curve fits: slow, exact on small cases, obviously right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def convex(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Non-negative least squares on the hinge basis by trying every set of columns that may be in use."""
    hinges = [x[0]] + [k for k in x[1:-1] if k <= x[-1] - (x[-1] - x[0]) / 10]
    basis = np.array([[1.0] + [max(0.0, a - k) for k in hinges] for a in x])
    rows = np.sqrt(weights)
    best, best_values = np.inf, np.zeros(len(x))
    for size in range(basis.shape[1] + 1):
        for used in combinations(range(basis.shape[1]), size):
            columns = basis[:, list(used)]
            solution = np.linalg.lstsq(columns * rows[:, None], y * rows, rcond=None)[0]
            if (solution < 0).any():
                continue
            values = columns @ solution
            error = float((weights * (values - y) ** 2).sum())
            if error < best:
                best, best_values = error, values
    return best_values


def isotonic(y: Floats, weights: Floats) -> Floats:
    """The max-min formula: value i is the largest over j ≤ i of the least over k ≥ i of the mean from j to k."""
    n = len(y)

    def mean(j: int, k: int) -> float:
        return float(np.average(y[j : k + 1], weights=weights[j : k + 1]))

    return np.array([max(min(mean(j, k) for k in range(i, n)) for j in range(i + 1)) for i in range(n)])


def buckets(tokens: Floats, seconds: Floats, errors: Floats) -> tuple[tuple[int, ...], float]:
    """The cheapest of all partitions into runs, and its price."""
    m, curves = seconds.shape
    there = np.isfinite(seconds)
    price = np.log(max(2, there.sum())) * (curves + 1)
    best: tuple[float, tuple[int, ...]] = (np.inf, ())
    for cuts in product([False, True], repeat=m - 1):
        ends = [i for i, cut in enumerate(cuts) if cut] + [m - 1]
        total, first = 0.0, 0
        for end in ends:
            total += price
            for c in range(curves):
                use = np.flatnonzero(there[first : end + 1, c]) + first
                if len(use):
                    logs, w = np.log(seconds[use, c]), errors[use, c] ** -2.0
                    total += float((w * (logs - np.average(logs, weights=w)) ** 2).sum())
            first = end + 1
        best = min(best, (total, tuple(int(tokens[e]) for e in ends)))
    return best[1], best[0]


def bucket_price(tokens: Floats, seconds: Floats, errors: Floats, ends: Sequence[int]) -> float:
    """What a given partition costs."""
    there = np.isfinite(seconds)
    total = 0.0
    of = np.searchsorted(np.array(ends), tokens, side="left")
    for k in range(len(ends)):
        total += float(np.log(max(2, there.sum())) * (seconds.shape[1] + 1))
        for c in range(seconds.shape[1]):
            use = np.flatnonzero((of == k) & there[:, c])
            if len(use):
                logs, w = np.log(seconds[use, c]), errors[use, c] ** -2.0
                total += float((w * (logs - np.average(logs, weights=w)) ** 2).sum())
    return total
