"""Plain twins of joint rounds and of the closed loop: every budget tried, every list sorted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints, plain
from ddsim.policy.choose import RULES, Rule, _budgets
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions
from ddsim.tree.forests import forest_gains


def best(gains: Sequence[float], curve: Sequence[float], base: float, rule: str, price: float) -> tuple[int, float]:
    """(n, base + the first n gains) by trying every n."""
    most = min(len(curve) - 1, sum(g > 0 for g in gains))
    tokens = [base]
    for g in gains[:most]:
        tokens.append(tokens[-1] + float(g))
    if rule == "greedy":
        n = 0
        while n < most and tokens[n + 1] * curve[n] > tokens[n] * curve[n + 1]:
            n += 1
        return n, tokens[n]
    values = [t - price * c if rule == "price" else t / c for t, c in zip(tokens, curve, strict=False)]
    n = max(range(most + 1), key=lambda i: (values[i], -i))
    return n, tokens[n]


def decide(gains: Any, seconds: Any, way: str, rule: str, price: float, charged: Any = None) -> tuple[list[int], float]:
    """Budgets of B requests with gains [B, N] at joint cost ``seconds``, and expected tokens.

    ``charged``: then as many more nodes as are charged no more.
    """
    if charged is not None:
        return filled(gains, seconds, way, rule, price, charged)
    batch, width = gains.shape
    if way == "fair":
        return fair(gains, seconds)
    share = [seconds[n * batch] / batch for n in range(width + 1) if n * batch < len(seconds)]
    if way == "forest":
        every = sorted((-float(gains[b, i]), b, i) for b in range(batch) for i in range(width))
        n, tokens = best([-g for g, _, _ in every], seconds, float(batch), rule, price)
        budgets = [sum(b == owner for _, owner, _ in every[:n]) for b in range(batch)]
        return budgets, tokens
    if way == "share":
        one = [best(row.tolist(), share, 1.0, rule, price) for row in gains]
        return [n for n, _ in one], sum(t for _, t in one)
    mean = [float(np.float32(sum(float(row[i]) for row in gains) / batch)) for i in range(len(share) - 1)]
    n, _ = best(mean, share, 1.0, rule, price)
    budgets = [n] * batch
    return budgets, sum(1.0 + float(row[:n].sum(dtype=np.float64)) for row in gains)


def filled(gains: Any, seconds: Any, way: str, rule: str, price: float, charged: Any) -> tuple[list[int], float]:
    """`decide`, then every number of nodes that is charged no more is tried, for the forest, each share, or the width."""
    batch = len(gains)
    budgets, _ = decide(gains, seconds, way, rule, price)
    last = len(seconds) - 1
    if way == "forest":
        n, every = sum(budgets), sorted((-float(g), b, i) for (b, i), g in np.ndenumerate(gains) if g > 0)
        n = max(m for m in range(n, max(n, min(last, len(every))) + 1) if charged[m] <= charged[n])
        budgets = [sum(b == owner for _, owner, _ in every[:n]) for b in range(batch)]
    else:
        mean = gains.sum(axis=0)
        for b, n in enumerate(list(budgets)):
            exist = int(((gains[b] if way == "share" else mean) > 0).sum())
            most = max(n, min(exist, last // batch))
            budgets[b] = max(m for m in range(n, most + 1) if charged[m * batch] <= charged[n * batch])
    return budgets, batch + sum(float(row[:n].sum(dtype=np.float64)) for row, n in zip(gains, budgets, strict=True))


def fair(gains: Any, seconds: Any) -> tuple[list[int], float]:
    """The best of all ways to hand out nodes, by the sum of the logarithms of expected tokens less B times that of the time."""
    batch = len(gains)
    tokens = [[1.0 + float(row[:n].sum(dtype=np.float64)) for n in range(int((row > 0).sum()) + 1)] for row in gains]
    best_value, best_budgets = -np.inf, [0] * batch
    for budgets in product(*(range(len(t)) for t in tokens)):
        if sum(budgets) < len(seconds):
            value = sum(np.log(t[n]) for t, n in zip(tokens, budgets, strict=True)) - batch * np.log(
                seconds[sum(budgets)]
            )
            if value > best_value:
                best_value, best_budgets = value, list(budgets)
    return best_budgets, sum(t[n] for t, n in zip(tokens, best_budgets, strict=True))


def closed_loop(
    positions: Positions, queue: Sequence[int], batch: int, seconds: Any, ar_seconds: Any, choose: Any, padded: bool
) -> Any:
    """One simulation at one context row: ``choose(gains [B, N]) -> budgets``; None: no draft, a number: chains of so many tokens.
    ``padded``: nodes that don't exist are paid for.

    Returns seconds, tokens, rounds, nodes and the latency of every request.
    """
    waiting = [(k, queue[k % len(queue)]) for k in range(1000)][::-1]
    slots: list[dict[str, Any]] = []
    now, tokens, rounds, nodes = 0.0, 0, 0, 0
    latency: dict[int, float] = {}

    def take() -> dict[str, Any]:
        k, s = waiting.pop()
        return {"request": k, "p": int(positions.starts[s]), "end": int(positions.starts[s + 1]) - 1, "since": now}

    slots = [take() for _ in range(batch)]
    while len([k for k in latency if k < len(queue)]) < len(queue):
        budgets = choose(positions.gains[[slot["p"] for slot in slots]])
        if budgets is None:
            now += ar_seconds
        elif isinstance(budgets, int):
            n = batch * budgets
            now, nodes = now + seconds[n], nodes + n
        else:
            n = (
                sum(budgets)
                if padded
                else sum(min(n, int(positions.nodes[slot["p"]])) for n, slot in zip(budgets, slots, strict=True))
            )
            now, nodes = now + seconds[n], nodes + n
        rounds += 1
        for i, slot in enumerate(slots):
            p, accepted = slot["p"], 0
            if isinstance(budgets, int):
                accepted = min(int(positions.chain[p]), budgets)
            elif budgets is not None:
                while accepted < positions.horizon and positions.ranks[p][accepted] <= budgets[i]:
                    accepted += 1
            after = min(p + accepted + 1, slot["end"])
            tokens += after - p
            slot["p"] = after
        for i, slot in enumerate(slots):
            if slot["p"] == slot["end"]:
                latency[slot["request"]] = now - slot["since"]
                slots[i] = take()
    return now, tokens, rounds, nodes, [latency[k] for k in range(len(queue))]


def drained(positions: Positions, queue: Sequence[int], batch: int, seconds: Any, ar_seconds: Any, choose: Any) -> Any:
    """One simulation whose queue runs empty, at one context row: ``seconds[b]`` and ``ar_seconds[b]`` are those of b requests.

    ``choose(gains [b, N]) -> budgets`` as in `closed_loop`. Returns seconds, tokens, rounds, nodes and the latency of every request.
    """
    waiting = list(enumerate(queue))
    running: list[dict[str, Any]] = []
    now, tokens, rounds, nodes = 0.0, 0, 0, 0
    latency: dict[int, float] = {}
    while waiting or running:
        while waiting and len(running) < batch:
            k, s = waiting.pop(0)
            end = int(positions.starts[s + 1]) - 1
            running.append({"request": k, "p": int(positions.starts[s]), "end": end, "since": now})
        budgets = choose(positions.gains[[one["p"] for one in running]])
        b, rounds = len(running), rounds + 1
        if budgets is None:
            now += ar_seconds[b]
        else:
            each = [budgets] * b if isinstance(budgets, int) else list(budgets)
            if not isinstance(budgets, int):
                each = [min(n, int(positions.nodes[one["p"]])) for n, one in zip(each, running, strict=True)]
            now, nodes = now + seconds[b][sum(each)], nodes + sum(each)
        for i, one in enumerate(running):
            p, accepted = one["p"], 0
            if isinstance(budgets, int):
                accepted = min(int(positions.chain[p]), budgets)
            elif budgets is not None:
                while accepted < positions.horizon and positions.ranks[p][accepted] <= budgets[i]:
                    accepted += 1
            one["p"] = min(p + accepted + 1, one["end"])
            tokens += one["p"] - p
        for one in running:
            if one["p"] == one["end"]:
                latency[one["request"]] = now - one["since"]
        running = [one for one in running if one["p"] < one["end"]]
    return now, tokens, rounds, nodes, [latency[k] for k in range(len(queue))]


def forest_budgets(
    gains: NDArray[np.float32],
    seconds: Floats,
    rule: Rule = "price",
    price: float = 0.0,
    *,
    fill: Floats | None = None,
    calibration: Calibration | None = None,
) -> Ints:
    """Budgets of B requests verified together, by sorting all gains: the best n nodes of the forest, n chosen by a rule.

    The n largest gains over all requests are the best n nodes of the forest, so the batch is one tree with merged
    gains, a base of B tokens and cost ``seconds[n]`` for n nodes in all (n + B tokens).

    Parameters
    ----------
    gains : float32 [B, N], descending, zero-padded
    seconds : float64 [M + 1], a joint round with n = 0 .. M nodes; n never exceeds M
    rule, price, calibration : as in `round_budgets`
    fill : float64 [M + 1], what a joint round is charged; then n goes up to the largest number that is charged no more

    Returns
    -------
    int32 [B], nodes given to each request
    """
    requests = len(gains)
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    merged, owner = forest_gains(gains, min(len(seconds) - 1, gains.size))
    curve = plain(np.atleast_2d(seconds), np.float64)
    charged = curve if fill is None else plain(np.atleast_2d(fill), np.float64)
    rules = (RULES[rule], float(price), float(requests), fill is not None, charged)
    best = _budgets(merged[None], curve, np.zeros(1, np.int32), *rules)[0]
    return np.bincount(owner[:best], minlength=requests).astype(np.int32)
