"""Solvers the obvious way, in exact arithmetic where numbers allow: scans, walks, and brute force over all choices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction as F
from typing import Any

NO_DRAFT, CHAIN, PREFIX = -1, -2, -1000

Row = Sequence[float]


def exact(seconds: float) -> F:
    """Seconds as a fraction; infinitely many as far more than all others."""
    return F(float(seconds)) if seconds < float("inf") else F(10) ** 30


def net(tokens: F, cost: F, price: float) -> F:
    """What a budget is worth at a price; nothing that takes forever is worth it, not even at price 0."""
    return tokens - max(F(price), F(1, 10**9) if cost >= F(10) ** 30 else F(0)) * cost


def phi(gains: Row, n: int) -> F:
    """Φ(n): the sum of the first n gains."""
    return sum((F(float(g)) for g in gains[:n]), F(0))


def nodes(gains: Row) -> int:
    """How many nodes exist."""
    return sum(1 for g in gains if g > 0)


def choose(gains: Row, seconds: Row, rule: str, price: float = 0.0, base: int = 1) -> int:
    """The budget that a rule picks at one position, the smallest of equally good ones."""
    most = nodes(gains)
    tokens = [base + phi(gains, n) for n in range(most + 1)]
    cost = [exact(c) for c in seconds[: most + 1]]
    if rule == "greedy":
        n = 0
        while n < most and tokens[n + 1] / cost[n + 1] > tokens[n] / cost[n]:
            n += 1
        return n
    if rule == "exhaustive":
        worth = [t / c for t, c in zip(tokens, cost, strict=True)]
    else:
        worth = [net(t, c, price) for t, c in zip(tokens, cost, strict=True)]
    return worth.index(max(worth))


def fill(n: int, most: int, charged: Row) -> int:
    """The largest number of nodes, n to ``most``, that is charged no more than n nodes are."""
    return max(m for m in range(n, max(n, most) + 1) if charged[m] <= charged[n])


def choose_and_pay(
    positions: Any, decide: Any, paid: Any, rule: str, price: float, filled: bool
) -> list[dict[str, Any]]:
    """Walk every sequence with budgets that a rule picks by one table's seconds, charged another's."""
    actions = []
    for p in range(len(positions)):
        n = choose(positions.gains[p], decide.seconds[decide.row[p]], rule, price)
        actions.append(fill(n, nodes(positions.gains[p]), paid.seconds[paid.row[p]]) if filled else n)
    return walk(positions, paid, actions)


def slopes_ahead(curve: Row) -> list[float]:
    """The least slope from each budget to any larger one."""
    return [
        min(((curve[m] - curve[n]) / (m - n) for m in range(n + 1, len(curve))), default=float("inf"))
        for n in range(len(curve))
    ]


def accepted(ranks: Sequence[int], n: int) -> int:
    """Drafted tokens that a tree of n nodes gets accepted."""
    return max([0, *(d for d in range(1, len(ranks) + 1) if ranks[d - 1] <= n)])


def chain(action: int, horizon: int) -> int:
    """Tokens of a chain: all for CHAIN, k for PREFIX - k, never more than there are."""
    return min(PREFIX - action, horizon) if action < CHAIN else horizon


def round_at(positions: Any, costs: Any, p: int, action: int) -> tuple[int, int, float]:
    """(nodes verified, drafted tokens accepted, seconds) of one round."""
    u = int(costs.row[p])
    if action == NO_DRAFT:
        return 0, 0, float(costs.ar_seconds[u])
    if action <= CHAIN:
        k = chain(action, positions.ranks.shape[1])
        return k, min(k, int(positions.chain[p])), float(costs.seconds[u, k])
    n = min(action, nodes(positions.gains[p]))
    return n, accepted(positions.ranks[p].tolist(), n), float(costs.seconds[u, n])


def walk(positions: Any, costs: Any, actions: Sequence[int]) -> list[dict[str, Any]]:
    """For every sequence: seconds, rounds, budget, drawn and expected tokens of whole rounds, accepted by visited position."""
    out = []
    horizon = positions.ranks.shape[1]
    for start, stop in itertools.pairwise(positions.starts.tolist()):
        done: dict[str, Any] = {"seconds": 0.0, "rounds": 0, "budget": 0, "drawn": 0, "expected": 0.0, "accepted": {}}
        p = start
        while p < stop - 1:
            n, a, seconds = round_at(positions, costs, p, actions[p])
            done["seconds"] += seconds
            done["rounds"] += 1
            done["budget"] += n
            done["accepted"][p] = a
            if p + horizon <= stop - 1:
                done["drawn"] += a + 1
                drafted = positions.chain_expected[p, n - 1] if actions[p] <= CHAIN else phi(positions.gains[p], n)
                done["expected"] += 1 + float(drafted)
            p += a + 1
        out.append(done)
    return out


def choices(positions: Any, p: int) -> list[int]:
    """All actions at a position."""
    return [NO_DRAFT, CHAIN, *range(nodes(positions.gains[p]) + 1)]


def least_seconds(positions: Any, costs: Any, s: int) -> float:
    """The least realised seconds of a sequence: every choice at every position that can be reached, tried by recursion."""
    end = int(positions.starts[s + 1]) - 1

    def best(p: int) -> float:
        if p >= end:
            return 0.0
        found = []
        for action in choices(positions, p):
            _, a, seconds = round_at(positions, costs, p, action)
            found.append(seconds + best(p + a + 1))
        return min(found)

    return best(int(positions.starts[s]))


def best_forest(gains: Sequence[Row], seconds: Row, rule: str, price: float) -> F:
    """The best worth of a joint round over all ways of giving nodes to requests."""
    best = None
    for budgets in itertools.product(*(range(nodes(row) + 1) for row in gains)):
        total = sum(budgets)
        if total >= len(seconds):
            continue
        tokens = len(gains) + sum((phi(row, n) for row, n in zip(gains, budgets, strict=True)), F(0))
        cost = exact(seconds[total])
        worth = tokens / cost if rule == "exhaustive" else net(tokens, cost, price)
        best = worth if best is None else max(best, worth)
    assert best is not None
    return best
