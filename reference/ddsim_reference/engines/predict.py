"""What a call of an engine will do: a batch that drains, priced step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddsim.cost.model import CostModel
from ddsim.replay.engines import chain_seconds
from ddsim.trace.rounds import Positions

CONTEXT_STEP = 16
"""Contexts are priced at multiples of it."""


@dataclass(frozen=True)
class Told:
    """What a call, or several one after another, took from the step on in which the last prompt was read.

    Attributes
    ----------
    tokens, rounds : int
        Tokens after each answer's first, and how many steps their requests took part in, all together.
    steps : int
    seconds : float
    tpot : tuple of float
        Seconds a token of each answer, after its first.
    """

    tokens: int
    rounds: int
    steps: int
    seconds: float
    tpot: tuple[float, ...]

    def __add__(self, other: Told) -> Told:
        return Told(
            self.tokens + other.tokens, self.rounds + other.rounds, self.steps + other.steps,
            self.seconds + other.seconds, self.tpot + other.tpot,
        )  # fmt: skip

    def to_json(self) -> dict[str, float]:
        """The four figures that are compared."""
        return {
            "tokens_per_round": self.tokens / max(1, self.rounds),
            "ms_per_step": 1e3 * self.seconds / max(1, self.steps),
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "tpot_ms": 1e3 * float(np.mean(self.tpot)) if self.tpot else 0.0,
        }


NOTHING = Told(0, 0, 0, 0.0, ())


class Prices:
    """Seconds of a step by requests, K and context, as plans for engines weigh them, kept once they are known.

    Contexts below the first measured one cost as that.
    """

    def __init__(self, cost: CostModel, horizon: int) -> None:
        self.cost, self.horizon = cost, horizon
        self.least = cost.range.contexts[0] if cost.range.contexts else 0
        self.known: dict[tuple[int, int], list[float]] = {}

    def __call__(self, requests: int, k: int, context: float) -> float:
        """Seconds of one step."""
        key = requests, round(context / CONTEXT_STEP)
        if key not in self.known:
            at = max(self.least, key[1] * CONTEXT_STEP)
            self.known[key] = chain_seconds(self.cost, [requests], self.horizon, at, extrapolate=True)[0][0].tolist()
        return self.known[key][k]


def drain(
    positions: Positions,
    price: Callable[[int, int, float], float],
    group: Sequence[int],
    k_of: Callable[[int], int],
    *,
    lag: int = 1,
    most: int | None = None,
) -> Told:
    """Decode some sequences in one call: all start together, and rounds go on with fewer until the last has ended.

    Parameters
    ----------
    positions : Positions
        In memory.
    price : callable
        Seconds of a step by (requests, K, their mean context).
    group : sequence of int
        Sequences of the trace.
    k_of : callable
        K by the number of requests of the step before.
    lag : int
        1 if a step is launched before the tokens of the last one are known: an answer that ends takes part in one step more, unless
        it was sure to end.
    most : int, optional
        Tokens at which answers are cut: an answer of so many is sure to end once one is missing.

    Examples
    --------
    >>> positions = Positions(  # two answers of 4 and 2 tokens, whose drafts of 1 token are always right
    ...     np.ones((6, 1), np.float32), np.ones((6, 1), np.int32), np.ones(6, np.int32), np.ones(6, np.uint8),
    ...     np.ones((6, 1), np.float32), np.arange(6, dtype=np.int32), np.array([0, 4, 6]))
    >>> told = drain(positions, lambda requests, k, context: 1.0, [0, 1], lambda requests: 1)
    >>> told.tokens, told.rounds, told.seconds
    (4, 3, 2.0)
    """
    starts = positions.starts
    where = {i: int(starts[s]) for i, s in enumerate(group)}
    end = {i: max(int(starts[s]), int(starts[s + 1]) - 1) for i, s in enumerate(group)}
    first, length = dict(where), {i: end[i] - where[i] for i in where}
    live = [i for i in where if length[i]]
    k, leaving = k_of(len(group)), 0
    now, tokens, rounds, steps = 0.0, 0, 0, 0
    spent: dict[int, float] = {}
    while live:
        requests = len(live) + leaving
        now += price(requests, k, float(np.mean([positions.context[where[i]] for i in live])))
        leaving = 0
        for i in live:
            missing = end[i] - where[i]
            gained = min(min(int(positions.chain[where[i]]), k) + 1, missing)
            where[i] += gained
            tokens, rounds = tokens + gained, rounds + 1
            if where[i] == end[i]:
                spent[i] = now
                sure = missing == 1 and most is not None and length[i] + 1 == most
                leaving += lag if not sure else 0
        steps += 1
        live = [i for i in live if where[i] < end[i]]
        k = k_of(requests)
    return Told(tokens, rounds, steps, now, tuple(spent[i] / length[i] for i in first if length[i]))
