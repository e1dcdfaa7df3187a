"""Plain twins of rules that engines have: one request and one token at a time, every budget tried, dense Newton steps.

SGLang's adaptive steps have theirs in tests/naive/schedule.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddsim.trace.rounds import Positions


class Estimator:
    """vLLM's online estimate of acceptance: one slope, a bias a depth, refitted every so many rounds."""

    def __init__(self, depths: int, every: int = 100, warm: int = 3) -> None:
        self.coefficients = np.array([0.0] + [1.5] * depths)  # slope, biases
        self.every, self.warm, self.fits, self.rounds = every, warm, 0, 0
        self.seen: list[tuple[Any, float]] = []  # a row of the regression, and whether it was accepted

    def row(self, log_odds: float, k: int) -> Any:
        return np.array([log_odds, *(float(i == k) for i in range(len(self.coefficients) - 1))])

    def predict(self, log_odds: Sequence[float]) -> list[float]:
        return [1 / (1 + np.exp(-self.row(x, k) @ self.coefficients)) for k, x in enumerate(log_odds)]

    def learn(self, graded: Sequence[tuple[Sequence[float], int, int]]) -> None:
        """What a round showed: of each request the log-odds of its drafts, how many were verified, and how many accepted."""
        for log_odds, verified, accepted in graded:
            for k in range(verified):
                if k <= accepted:
                    self.seen.append((self.row(log_odds[k], k), float(k < accepted)))
        self.rounds += 1
        if self.rounds == self.every:
            self.refit()

    def refit(self) -> None:
        count = np.zeros(len(self.coefficients))
        information = 1e-3 * np.eye(len(self.coefficients))
        score = np.zeros(len(self.coefficients))
        for row, label in self.seen:
            likely = 1 / (1 + np.exp(-row @ self.coefficients))
            information += likely * (1 - likely) * np.outer(row, row)
            score += (label - likely) * row
            count += row != 0
        count[0] = len(self.seen)
        damped = count / (count + 50)
        slope = np.linalg.solve(information, score)[0] * damped[0]
        if self.coefficients[0] + slope < 0:
            slope = 0.0
        # the biases, given the slope that is taken
        biases = np.linalg.solve(information[1:, 1:], score[1:] - information[1:, 0] * slope) * damped[1:]
        self.coefficients = self.coefficients + np.array([slope, *biases])
        self.seen, self.rounds, self.fits = [], 0, self.fits + 1


class Budgeted:
    """One budget for the batch by what was known ``lag`` rounds ago, handed out by what is known now."""

    def __init__(self, lag: int, estimator: Estimator | None, eps: float = 0.0) -> None:
        self.lag, self.estimator, self.eps = lag, estimator, eps
        self.told: dict[int, list[list[float]]] = {}  # survivals of earlier rounds, by slot, the last one last
        self.odds: dict[int, list[float]] = {}

    def enter(self, slot: int) -> None:
        self.told[slot] = []

    def choose(self, chains: Sequence[Any], seconds: Any) -> list[int]:
        """Tokens of each request; ``chains`` are the drafter's probabilities of the first 1, 2, ... tokens."""
        fresh: list[list[float]] = []
        for slot, chain in enumerate(chains):
            each = [min(max(q / before, 1e-6), 1 - 1e-6) for q, before in zip(chain, [1.0, *chain], strict=False)]
            self.odds[slot] = [float(np.log(q / (1 - q))) for q in each]
            alive = (
                list(map(float, chain))
                if self.estimator is None
                else np.cumprod(self.estimator.predict(self.odds[slot])).tolist()
            )
            fresh.append([float(np.float32(max(a, 1e-30))) if a >= self.eps else 0.0 for a in alive])
        stale = [
            told[-self.lag] if len(told := self.told[slot]) >= self.lag else [1.0] * len(chain)
            for slot, chain in enumerate(chains)
        ]
        for slot, alive in enumerate(fresh):
            self.told[slot].append(alive)
        budget = min(sum(map(len, chains)), len(seconds) - 1)
        if self.estimator is None or self.estimator.fits >= self.estimator.warm:
            likely = sorted((a for alive in stale for a in alive if a > 0), reverse=True)[:budget]
            rates = [(len(chains) + sum(likely[:n])) / seconds[n] for n in range(len(likely) + 1)]
            budget = int(np.argmax(rates))
        order = sorted((-a, slot, k) for slot, alive in enumerate(fresh) for k, a in enumerate(alive) if a > 0)[:budget]
        return [sum(slot == s for _, s, _ in order) for slot in range(len(chains))]

    def learn(self, tokens: Sequence[int], accepted: Sequence[int], left: Sequence[int]) -> None:
        if self.estimator is not None:
            self.estimator.learn([(self.odds[s], min(n, left[s]), accepted[s]) for s, n in enumerate(tokens)])


class Stepped:
    """A rule that says one K for all."""

    def __init__(self, k: Callable[[int], int], learn: Callable[[Sequence[int]], None], horizon: int) -> None:
        self.k, self.told, self.horizon = k, learn, horizon

    def enter(self, slot: int) -> None: ...

    def choose(self, chains: Sequence[Any], seconds: Any) -> list[int] | None:
        k = min(self.k(len(chains)), self.horizon)
        return [k] * len(chains) if k else None

    def learn(self, tokens: Sequence[int], accepted: Sequence[int], left: Sequence[int]) -> None:
        self.told(accepted)


def closed_loop(
    positions: Positions,
    chains: Any,
    queue: Sequence[int],
    batch: int,
    curve: Any,
    seconds: Any,
    ar_seconds: float,
    rule: Any,
) -> tuple[float, int, int, int]:
    """Seconds, tokens, rounds and verified tokens of a closed loop at one context; rules decide on ``curve`` and ``seconds`` are paid."""
    waiting = [queue[k % len(queue)] for k in range(2000)][::-1]
    number, now, tokens, rounds, verified = 0, 0.0, 0, 0, 0
    slots: list[list[int]] = []  # request, position, end

    def take(slot: int) -> list[int]:
        nonlocal number
        s = waiting.pop()
        rule.enter(slot)
        number += 1
        return [number - 1, int(positions.starts[s]), int(positions.starts[s + 1]) - 1]

    slots = [take(slot) for slot in range(batch)]
    finished = 0
    while finished < len(queue):
        lengths = rule.choose([chains[p] for _, p, _ in slots], curve)
        now += ar_seconds if lengths is None else seconds[sum(lengths)]
        tried = [0] * batch if lengths is None else lengths
        accepted = [min(int(positions.chain[p]), n) for (_, p, _), n in zip(slots, tried, strict=True)]
        rule.learn(tried, accepted, [end - p for _, p, end in slots])
        rounds, verified = rounds + 1, verified + sum(tried)
        for slot, (one, a) in enumerate(zip(list(slots), accepted, strict=True)):
            request, p, end = one
            after = min(p + a + 1, end)
            tokens, one[1] = tokens + after - p, after
            if after == end:
                finished += request < len(queue)
                slots[slot] = take(slot)
    return now, tokens, rounds, verified
