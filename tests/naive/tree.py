"""Draft trees the obvious way: explicit heaps with tuple keys, and enumeration of every node."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

Rows = Sequence[Sequence[float]]
Node = tuple[int, ...]


def path_logprob(rows: Rows, node: Node) -> float:
    """Sum of the node's row values, from depth 1 down."""
    total = 0.0
    for row, k in zip(rows, node, strict=False):
        total += float(row[k])
    return total


def best_first(rows: Rows, budget: int) -> list[tuple[float, Node]]:
    """First ``budget`` nodes as (path log-probability, ranks): pop the best, push its first child and its next sibling."""
    heap: list[tuple[float, Node]] = []

    def push(node: Node) -> None:
        d = len(node) - 1
        if d < len(rows) and node[-1] < len(rows[d]) and path_logprob(rows, node) > -math.inf:
            heapq.heappush(heap, (-path_logprob(rows, node), node))

    if rows:
        push((0,))
    found = []
    while heap and len(found) < budget:
        negative, node = heapq.heappop(heap)
        found.append((-negative, node))
        push((*node, 0))
        push((*node[:-1], node[-1] + 1))
    return found


def every_node(rows: Rows) -> Iterator[tuple[float, Node]]:
    """All nodes that exist, as (path log-probability, ranks)."""
    for depth in range(1, len(rows) + 1):
        for node in itertools.product(*(range(len(row)) for row in rows[:depth])):
            value = path_logprob(rows, node)
            if value > -math.inf:
                yield value, node


def sorted_nodes(rows: Rows, budget: int) -> list[tuple[float, Node]]:
    """First ``budget`` nodes by sorting all of them in the documented order."""
    return sorted(every_node(rows), key=lambda item: (-item[0], item[1]))[:budget]


def best_closed_weight(rows: Rows, budget: int) -> float:
    """Largest Σ exp(path log-probability) over all prefix-closed sets of at most ``budget`` nodes, by trying every set."""
    nodes = {node: math.exp(value) for value, node in every_node(rows)}
    best = 0.0
    for size in range(budget + 1):
        for chosen in itertools.combinations(nodes, size):
            if all(len(node) == 1 or node[:-1] in chosen for node in chosen):
                best = max(best, math.fsum(nodes[node] for node in chosen))
    return best


def true_path_ranks(rows: Rows, truth: Sequence[int], budget: int, no_rank: int) -> list[int]:
    """1-based place of each prefix of the true path among the first ``budget`` nodes."""
    places = {node: place for place, (_, node) in enumerate(best_first(rows, budget), 1)}
    return [
        places.get(tuple(truth[: d + 1]), no_rank) if min(truth[: d + 1]) >= 0 else no_rank for d in range(len(rows))
    ]


def candidates_used(rows: Rows, budget: int) -> list[int]:
    """How many leading candidates of each row the first ``budget`` nodes use."""
    used = [0] * len(rows)
    for _, node in best_first(rows, budget):
        for d, k in enumerate(node):
            used[d] = max(used[d], k + 1)
    return used


def ancestors(parents: Sequence[int], node: int) -> set[int]:
    """The node and all above it."""
    found = set()
    while node >= 0:
        found.add(node)
        node = parents[node]
    return found


def row_fault(row: Sequence[float]) -> str | None:
    """Why a row can't be a marginal."""
    previous = 0.0
    for value in row:
        if math.isnan(value):
            return "NaN"
        if value > 0:
            return "positive"
        if value > previous:
            return "rise"
        previous = value
    return "sum" if math.fsum(math.exp(value) for value in row) > 1 + 1e-4 else None
