"""Prices: the throughput that pays for its own budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import Floats, Ints
from ddsim.cost.table import Costs, _Curves, cost_rows
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.policy.choose import RULES, Rule, _choose, _slopes_ahead
from ddsim.policy.walk import rule_actions, walk
from ddsim.threads import split
from ddsim.trace.rounds import Positions, node_counts

if TYPE_CHECKING:
    from ddsim.trace.calibration import Calibration

_CHUNK = 256  # positions per partial sum: fixed, so that sums don't depend on the thread count


@njit(cache=True, nogil=True)
def _rule_totals(gains, seconds, row, ahead, index, rule, price, base, first, last, part):  # type: ignore[no-untyped-def]
    for c in range(first, last):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(index))):
            p = index[i]
            n, tokens = _choose(gains[p], seconds[row[p]], ahead[row[p]], rule, price, base)
            part[c, 0] += tokens
            part[c, 1] += seconds[row[p], n]


@njit(cache=True, nogil=True)
def _fixed_totals(gains, nodes, seconds, row, index, base, first, last, part):  # type: ignore[no-untyped-def]
    for c in range(first, last):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(index))):
            p = index[i]
            tokens = base
            for n in range(gains.shape[1] + 1):
                if 0 < n <= nodes[p]:
                    tokens += gains[p, n - 1]
                part[c, 0, n] += tokens
                part[c, 1, n] += seconds[row[p], min(n, nodes[p])]


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


def _surrogate_blocks(
    positions: Positions | ArrayLike,
    costs: Costs,
    sequences: NDArray[np.bool_] | None,
    calibration: Calibration | None,
) -> Iterator[tuple[NDArray[np.float32], Ints, Costs, NDArray[np.int64]]]:
    """Gains, nodes, costs and which positions to count, block by block; bare gains are one block and all count."""
    if not isinstance(positions, Positions):
        bare = np.ascontiguousarray(np.atleast_2d(np.asarray(positions, np.float32)))
        nodes = node_counts(bare)
        yield bare if calibration is None else calibration.apply_gains(bare), nodes, costs, np.arange(len(bare))
        return
    for low, first, block in positions.blocks():
        index = block.roots(None if sequences is None else sequences[first : first + block.sequences])
        gains: NDArray[np.float32] = block.gains  # type: ignore[assignment]
        if calibration is not None:
            gains = np.ascontiguousarray(calibration.apply_gains(gains), np.float32)
        yield gains, block.nodes, cost_rows(costs, slice(low, low + len(block))), index


def _totals(
    positions: Positions | ArrayLike,
    costs: Costs,
    rule: Rule,
    price: float = 0.0,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
    base: float = 1.0,
) -> tuple[float, float]:
    """Expected tokens and seconds of one round at every position under a rule; ``base`` tokens come with any budget."""
    ahead = _slopes_ahead(costs.seconds)
    total = np.zeros(2)
    for gains, _, part, index in _surrogate_blocks(positions, costs, sequences, calibration):
        chunks = -(-len(index) // _CHUNK)
        sums = np.zeros((chunks, 2))
        arguments = (gains, part.seconds, part.row, ahead, index, RULES[rule], float(price), base)
        split(lambda first, last, a=arguments, s=sums: _rule_totals(*a, first, last, s), chunks, 16)  # type: ignore[misc]
        total += sums.sum(axis=0)
    if not total[1] > 0:
        raise DdsimError("no positions to solve over: the trace or the selection has no round")
    return float(total[0]), float(total[1])


def solve_price(
    positions: Positions | ArrayLike,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> PriceSolution:
    """The long-run price λ*, by Dinkelbach's method.

    λ* is the largest Σ (1 + Φ*_p(n_p)) / Σ C_p(n_p) over all choices of n_p, positions weighted equally; the choice
    argmax_n (1 + Φ*_p(n)) - λ*·C_p(n) attains it. Each iteration replaces the price by the throughput that its budgets yield;
    prices rise to the fixed point in a few passes.

    Parameters
    ----------
    positions : Positions, or bare gains [P, N]
    costs : cost table with a row for each position
    sequences : bool [S], which sequences to count (default all)
    calibration : applied to the gains

    Returns
    -------
    PriceSolution

    Raises
    ------
    DdsimError : no position to count

    Examples
    --------
    >>> from ddsim.cost.table import curve_table
    >>> gains = np.array([[0.9, 0.8], [0.1, 0.0]], np.float32)
    >>> round(solve_price(gains, curve_table([1.0, 1.5, 2.0], 2)).price, 3)
    1.233
    """
    return _dinkelbach(positions, costs, sequences, calibration, 1.0)


def _dinkelbach(
    positions: Positions | ArrayLike,
    costs: Costs,
    sequences: NDArray[np.bool_] | None,
    calibration: Calibration | None,
    base: float,
) -> PriceSolution:
    tokens, seconds = _totals(positions, costs, "exhaustive", 0.0, sequences, calibration, base)
    price, iterations = tokens / seconds, 1
    while iterations < 50:
        tokens, seconds = _totals(positions, costs, "price", price, sequences, calibration, base)
        iterations += 1
        if not tokens / seconds > price:
            break
        price = tokens / seconds
    return PriceSolution(price, tokens, seconds, iterations)


def fixed_expected(
    positions: Positions | ArrayLike,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> Floats:
    """float64 [N + 1]: expected tokens per second of each fixed budget under the surrogate, positions weighted equally."""
    total: Floats | None = None
    for gains, nodes, part, index in _surrogate_blocks(positions, costs, sequences, calibration):
        chunks = -(-len(index) // _CHUNK)
        sums = np.zeros((chunks, 2, gains.shape[1] + 1))
        arguments = (gains, nodes, part.seconds, part.row, index, 1.0)
        split(lambda first, last, a=arguments, s=sums: _fixed_totals(*a, first, last, s), chunks, 16)  # type: ignore[misc]
        total = sums.sum(axis=0) if total is None else total + sums.sum(axis=0)
    if total is None or not total[1, 0] > 0:
        raise DdsimError("no positions to solve over: the trace or the selection has no round")
    out: Floats = total[0] / total[1]
    return out


def rule_expected(
    positions: Positions | ArrayLike,
    costs: Costs,
    rule: Rule,
    price: float = 0.0,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> float:
    """Expected tokens per second of a rule under the surrogate, positions weighted equally."""
    tokens, seconds = _totals(positions, costs, rule, price, sequences, calibration)
    return tokens / seconds


def solve_walk_price(
    positions: Positions,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> PriceSolution:
    """The price that equals the throughput which its budgets realise on the trace, or the best met in seeking it.

    `solve_price` weights all positions equally and believes the gains, which flatters: rounds start more often where texts are
    hard. Here the policy walks the trace, and each price is the throughput of the one before, from the per-round ratio on, until
    it stays or comes again: on given texts there may be no fixed point, and prices go round in a circle.

    Parameters
    ----------
    positions, costs, sequences, calibration : as in `solve_price`

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
            part = cost_rows(costs, slice(low, low + len(block)))

            if calibration is not None:
                block = dataclasses.replace(block, gains=calibration.apply_gains(block.gains))  # type: ignore[arg-type]
            spent += float(walk(block, part, rule_actions(block, part, rule, price)).seconds[inside].sum())
        iterations += 1
        found = tokens / spent
        if rule == "price":
            earned[price] = PriceSolution(price, tokens, spent, iterations)
            if abs(found - price) <= 1e-4 * price:
                return earned[price]
            if iterations == 12 or found in earned:
                return min(earned.values(), key=lambda one: one.seconds)
        rule, price = "price", found


def solve_forest_price(
    gains: NDArray[np.float32], seconds: Floats, batch: int, *, seed: int = 0, calibration: Calibration | None = None
) -> PriceSolution:
    """lambda* of joint rounds: positions in random groups of ``batch``, each a forest (surrogate, as `solve_price`).

    Parameters
    ----------
    gains : float32 [P, N]; P is cut to whole groups after a seeded shuffle
    seconds : float64 [M + 1], a joint round with n nodes in all
    batch : int, requests in a round
    """
    from ddsim.tree.forests import forest_gains

    groups = len(gains) // batch
    if groups == 0:
        raise DdsimError(f"{len(gains)} positions do not fill one batch of {batch}")
    order = np.random.default_rng(seed).permutation(len(gains))[: groups * batch].reshape(groups, batch)
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    total = min(len(seconds) - 1, batch * gains.shape[1])
    merged = np.stack([forest_gains(gains[group], total)[0] for group in order])
    table = _Curves(np.atleast_2d(seconds), np.ones(1), np.zeros(groups, np.int32))
    return _dinkelbach(merged, table, None, None, float(batch))
