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
