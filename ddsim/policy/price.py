"""Prices: the throughput that pays for its own budgets."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.policy.choose import Rule
from ddsim.policy.walk import rule_walk
from ddsim.trace.rounds import Positions

if TYPE_CHECKING:
    from ddsim.trace.calibration import Calibration


@dataclasses.dataclass(frozen=True)
class PriceSolution:
    """A price and what it yields.

    Attributes
    ----------
    price : float, tokens per second: the fixed point λ* = E[tokens] / E[seconds] of its own budgets
    tokens, seconds : float, their sums over the positions counted
    iterations : int
    """

    price: float
    tokens: float
    seconds: float
    iterations: int


def solve_walk_price(
    positions: Positions,
    costs: CostTable,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> PriceSolution:
    """The price that equals the throughput which its budgets realise on the trace, or the best met in seeking it.

    The policy walks the trace, and each price is the throughput of the one before, from the per-round ratio on, until it stays or
    comes again: on given texts there may be no fixed point, and prices go round in a circle. (Positions weighted equally, with the
    gains believed, would flatter: rounds start more often where texts are hard.)

    Parameters
    ----------
    positions : Positions
    costs : cost table with a row for each position
    sequences : bool [S], which sequences to count (default all)
    calibration : applied to the gains

    Returns
    -------
    PriceSolution
        The fixed point, or if there is none the price of highest realised throughput among those visited; realised tokens and
        seconds.

    Raises
    ------
    DdsimError : no round to count
    """
    counted = np.ones(positions.sequences, np.bool_) if sequences is None else sequences
    tokens = float(positions.tokens[counted].sum())
    if not tokens:
        raise DdsimError("no positions to solve over: the trace or the selection has no round")
    rule: Rule = "exhaustive"
    price, iterations = 0.0, 0
    earned: dict[float, PriceSolution] = {}  # by price
    while True:
        spent = 0.0
        for low, first, block in positions.blocks():
            inside = counted[first : first + block.sequences]
            if not inside.any():
                continue
            part = costs.take(slice(low, low + len(block)))

            if calibration is not None:
                block = dataclasses.replace(block, gains=calibration.apply_gains(block.gains))  # type: ignore[arg-type]
            spent += float(rule_walk(block, part, rule, price).seconds[inside].sum())
        iterations += 1
        found = tokens / spent
        if rule == "price":
            earned[price] = PriceSolution(price, tokens, spent, iterations)
            if abs(found - price) <= 1e-4 * price:
                return earned[price]
            if iterations == 12 or found in earned:
                return min(earned.values(), key=lambda one: one.seconds)
        rule, price = "price", found
