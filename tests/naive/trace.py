"""Slow, obvious twins of what traces do."""

from __future__ import annotations

import heapq
import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def best_nodes(rows: NDArray[np.floating], budget: int) -> list[tuple[int, ...]]:
    """Rank tuples of the ``budget`` best nodes of rows [L, K], best first, by a heap of children."""

    def children(node: tuple[int, ...], total: float) -> list[tuple[float, tuple[int, ...]]]:
        depth = len(node)
        if depth == len(rows):
            return []
        return [(-(total + float(v)), (*node, k)) for k, v in enumerate(rows[depth]) if v > -np.inf]

    heap = children((), 0.0)
    heapq.heapify(heap)
    nodes: list[tuple[int, ...]] = []
    while heap and len(nodes) < budget:
        minus, node = heapq.heappop(heap)
        nodes.append(node)
        for child in children(node, -minus):
            heapq.heappush(heap, child)
    return nodes


def kept_pairs(logprobs: NDArray[np.floating], max_budget: int) -> NDArray[np.int32]:
    """How many candidates of each row [P, L, K] the best tree of ``max_budget`` nodes uses, int32 [P, L]."""
    counts = np.zeros(logprobs.shape[:2], np.int32)
    for p, rows in enumerate(logprobs):
        for node in best_nodes(rows, max_budget):
            counts[p, len(node) - 1] = max(counts[p, len(node) - 1], node[-1] + 1)
    return counts


def half_floor(value: float) -> float:
    """The largest float16 value that is not above ``value`` <= 0, by exact arithmetic."""
    if math.isnan(value) or value == -math.inf:
        return value
    magnitude = Fraction(-value)
    if magnitude == 0:
        return 0.0
    exponent = -24
    while Fraction(2) ** (exponent + 11) <= magnitude:
        exponent += 1
    step = Fraction(2) ** exponent  # between neighbouring float16 values of this size
    rounded = step * math.ceil(magnitude / step)
    return -math.inf if rounded > 65504 else -float(rounded)


def by_probability(
    gains: NDArray[np.float32], ranks: NDArray[np.int32], use: NDArray[np.bool_], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes, probabilities and accepted nodes [3, bins] of the positions in use, and [2, N] the last two by place in the tree."""
    bins, budgets = np.zeros((3, len(edges) - 1)), np.zeros((2, gains.shape[1]))

    def bin_of(gain: np.float32) -> int:
        return max(sum(float(gain) > edge for edge in edges[1:-1]), 0)

    for p in np.flatnonzero(use):
        accepted = {int(rank) - 1 for rank in ranks[p] if rank <= gains.shape[1]}
        for i, gain in enumerate(gains[p]):
            budgets[:, i] += gain, i in accepted
            bins[:, bin_of(gain)] += gain > 0, gain, i in accepted
    return bins, budgets


def by_log_gain(
    gains: NDArray[np.float32], ranks: NDArray[np.int32], use: NDArray[np.bool_], of: NDArray[np.int64], folds: int
) -> NDArray[np.float64]:
    """[folds, 3, 384]: nodes, accepted nodes and sums of log-gains; a nat from -24 to 0 is 16 bins."""
    total = np.zeros((folds, 3, 384))
    for p in np.flatnonzero(use):
        accepted = {int(rank) - 1 for rank in ranks[p] if rank <= gains.shape[1]}
        for i, gain in enumerate(gains[p]):
            log = float(np.log(np.float64(gain))) if gain > 0 else -math.inf
            place = int(np.clip(math.trunc((max(log, -24.0) + 24) * 16), 0, 383))
            total[of[p], :, place] += gain > 0, i in accepted, log if gain > 0 else 0.0
    return total


def acceptance(log_gains: NDArray[np.float64], values: NDArray[np.float64], gain: np.float32) -> np.float32:
    """What an isotonic calibration makes of a gain, but for the order of neighbours."""
    if gain <= 0:
        return np.float32(0)
    log = np.float64(np.log(gain))
    value = values[0] * np.exp(log - log_gains[0]) if log < log_gains[0] else np.interp(log, log_gains, values)
    return np.float32(max(value, np.finfo(np.float32).tiny))
