"""Draft trees of lattices the obvious way: every path of candidates, sorted in the documented order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Lattice(NamedTuple):
    """Candidates a depth, and log-probabilities of the first and of each given the one before, as nested lists."""

    token_ids: list[list[int]]
    first: list[float]
    transitions: list[list[list[float]]]


class Node(NamedTuple):
    """A path of candidates: its log-probability, the rank of each candidate among those behind the one before, and the candidates."""

    value: float
    ranks: tuple[int, ...]
    candidates: tuple[int, ...]


ROOT = Node(0.0, (), ())


def row_after(lattice: Lattice, candidates: Sequence[int]) -> list[tuple[float, int]]:
    """(log-probability, candidate) of what may follow a path, best first, equal ones by candidate."""
    if len(candidates) == len(lattice.token_ids):
        return []
    row = lattice.transitions[len(candidates) - 1][candidates[-1]] if candidates else lattice.first
    present = [(value, j) for j, value in enumerate(row) if value > -math.inf]
    return sorted(present, key=lambda item: (-item[0], item[1]))


def every_node(lattice: Lattice, above: Node = ROOT) -> Iterator[Node]:
    """All nodes that exist, each before its children."""
    for rank, (value, j) in enumerate(row_after(lattice, above.candidates)):
        node = Node(above.value + value, (*above.ranks, rank), (*above.candidates, j))
        if node.value > -math.inf:
            yield node
            yield from every_node(lattice, node)


def best_first(lattice: Lattice, budget: int) -> list[Node]:
    """The first ``budget`` nodes: by log-probability, then by ranks."""
    return sorted(every_node(lattice), key=lambda node: (-node.value, node.ranks))[:budget]


def best_closed_weight(lattice: Lattice, budget: int) -> float:
    """Largest sum of path probabilities over all prefix-closed sets of at most ``budget`` nodes, by trying every set."""
    nodes = {node.ranks: math.exp(node.value) for node in every_node(lattice)}
    best = 0.0
    for size in range(budget + 1):
        for chosen in itertools.combinations(nodes, size):
            if all(len(node) == 1 or node[:-1] in chosen for node in chosen):
                best = max(best, math.fsum(nodes[node] for node in chosen))
    return best


def true_path(lattice: Lattice, tokens: Sequence[int]) -> list[int]:
    """Rank of each true token behind the true tokens before it, -1 from the first that isn't there."""
    path: list[int] = []
    candidates: list[int] = []
    for depth in range(len(lattice.token_ids)):
        row = [lattice.token_ids[depth][j] for _, j in row_after(lattice, candidates)]
        if depth >= len(tokens) or tokens[depth] not in row:
            break
        path.append(row.index(tokens[depth]))
        candidates.append(row_after(lattice, candidates)[path[-1]][1])
    return path + [-1] * (len(lattice.token_ids) - len(path))


def chain(lattice: Lattice) -> list[tuple[float, int]]:
    """(log-probability, candidate) of the best candidates, each given the one before."""
    found: list[tuple[float, int]] = []
    while row := row_after(lattice, [j for _, j in found]):
        found.append(row[0])
    return found


def used(lattice: Lattice, budget: int) -> set[tuple[int, int, int]]:
    """(depth, candidate before, candidate) of all steps that the first ``budget`` nodes and the chain take; -1: the root."""
    paths = [node.candidates for node in best_first(lattice, budget)] + [tuple(j for _, j in chain(lattice))]
    return {(d, -1 if d == 0 else path[d - 1], path[d]) for path in paths for d in range(len(path))}


def fault(lattice: Lattice) -> tuple[str, str] | None:
    """Where a lattice isn't one, and why."""
    rows = [("first", lattice.first)]
    for d, table in enumerate(lattice.transitions):
        rows += [(f"transitions[{d}, {i}]", row) for i, row in enumerate(table)]
    for where, row in rows:
        for value in row:
            if math.isnan(value):
                return where, "NaN"
            if value > 0:
                return where, "positive"
        if math.fsum(math.exp(value) for value in row) > 1 + 1e-4:
            return where, "sum"
    return None
