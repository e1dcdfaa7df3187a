"""Solvers against plain-Python twins, and the theorems that the project stands on."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction as F
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import strategies as st

from ddsim.cost import table as _table
from ddsim.errors import DdsimError
from ddsim.policy import choose as _choose
from ddsim.policy import price as _price
from ddsim.policy import walk as _walk
from ddsim.policy.batch import FOREST, decide_batch
from ddsim.policy.contract import Decision
from ddsim.trace import rounds as _rounds
from ddsim.trace.rounds import Positions
from ddsim.tree.trees import tree_gains
from tests import strategies
from tests.naive import budget as naive
from tests.strategies import CASES, run

RULES = ("greedy", "exhaustive", "price")
CHECKS: dict[str, Callable[[Any], None]] = {}
rules = st.sampled_from(RULES)
numbers = st.integers


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Register a property of what it draws: 200 cases are tried by default, 10^5 in the slow run."""
    CHECKS[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------------------------------
# twins
# --------------------------------------------------------------------------------------------------------------------


@check
def budgets_are_those_of_a_plain_scan(data: Any) -> None:
    count, width = data.draw(numbers(1, 6)), data.draw(numbers(1, 8))
    gains, table = data.draw(strategies.gains(count, width)), data.draw(strategies.tables(count, width + 1))
    price = data.draw(strategies.prices)
    for rule in RULES:
        expected = [naive.choose(g, table.seconds[u], rule, price) for g, u in zip(gains, table.row, strict=True)]
        assert _choose.round_budgets(gains, table, rule, price).tolist() == expected
        single = [
            int(_choose.round_budgets(gains[i : i + 1], table.take(slice(i, i + 1)), rule, price)[0])
            for i in range(count)
        ]
        assert single == expected


@check
def slopes_are_those_of_all_pairs(data: Any) -> None:
    curve = data.draw(numbers(1, 11).flatmap(strategies.curves))
    finite = np.isfinite(curve)
    expected = np.array(naive.slopes_ahead(np.where(finite, curve, 1e300).tolist()))
    assert _choose._slopes_ahead(curve[None])[0][finite] == pytest.approx(
        np.where(expected > 1e200, np.inf, expected)[finite]
    )


@check
def counted_nodes(data: Any) -> None:
    gains = data.draw(strategies.gains(data.draw(numbers(0, 4)), data.draw(numbers(0, 8))))
    assert _rounds.node_counts(gains).tolist() == [naive.nodes(row) for row in gains]


@check
def walks_are_those_of_a_plain_loop(data: Any) -> None:
    positions, table = data.draw(strategies.cases())
    chains = [naive.PREFIX - k for k in range(1, positions.horizon + 2)]  # one token more than there are is all
    chosen = [data.draw(st.sampled_from([*naive.choices(positions, p), *chains])) for p in range(len(positions))]
    actions = np.array(chosen, np.int32)
    expected, done = naive.walk(positions, table, actions.tolist()), _walk.walk(positions, table, actions)
    for key in ("seconds", "rounds", "budget", "drawn", "expected"):
        assert getattr(done, key) == pytest.approx(np.array([one[key] for one in expected])), key
    visited = {p: a for one in expected for p, a in one["accepted"].items()}
    assert done.accepted.tolist() == [visited.get(p, -1) for p in range(len(positions))]
    assert done.actions.tolist() == [int(actions[p]) if p in visited else 0 for p in range(len(positions))]
    rounds = [(p, *naive.round_at(positions, table, p, int(actions[p]))) for p in sorted(visited)]
    here, nodes, seconds = done.visits(positions, table)
    assert (here.tolist(), nodes.tolist(), seconds.tolist()) == tuple([r[k] for r in rounds] for k in (0, 1, 3))
    weights = data.draw(strategies.ints(0, 64, max(positions.max_budget, positions.horizon) + 1, 2)) / 64
    alone = [
        0.0 if actions[p] == naive.NO_DRAFT else table.seconds[table.row[p], 0] - table.ar_seconds[table.row[p]]
        for p in here
    ]
    one = [weights[n] * (spent - less) for (_, n, _, spent), less in zip(rounds, alone, strict=True)]
    sequence = np.searchsorted(positions.starts, here, side="right") - 1
    expected = [
        sum((w for w, s in zip(one, sequence, strict=True) if s == k), np.zeros(2)) for k in range(positions.sequences)
    ]
    if np.isfinite(seconds).all() and np.isfinite(table.seconds).all():
        assert done.verification(positions, table, weights) == pytest.approx(np.array(expected))
    for action in (
        naive.NO_DRAFT,
        naive.CHAIN,
        data.draw(st.sampled_from(chains)),
        data.draw(numbers(0, positions.max_budget)),
    ):
        same = _walk.walk(positions, table, np.full(len(positions), action, np.int32))
        assert all(
            np.array_equal(a, b)
            for a, b in zip(_walk.walk(positions, table, action).arrays(), same.arrays(), strict=True)
        )


@check
def lockstep_asks_at_the_positions_of_a_walk(data: Any) -> None:
    positions, table = data.draw(strategies.cases())
    rule, price = data.draw(rules), data.draw(strategies.prices)
    asked: list[int] = []

    def choose(gains: Any, costs: Any) -> Any:
        asked.append(len(gains))
        return _choose.round_budgets(gains, costs, rule, price)

    done = _walk.lockstep(positions, table, choose)
    everywhere = _choose.round_budgets(positions.gains, table, rule, price)
    for other in (_walk.rule_walk(positions, table, rule, price), _walk.walk(positions, table, everywhere)):
        assert all(np.array_equal(a, b) for a, b in zip(other.arrays(), done.arrays(), strict=True))
    visited = done.accepted >= 0
    assert np.array_equal(done.actions, np.where(visited, everywhere, 0)) and sum(asked) == visited.sum()
    seen: list[tuple[float, float]] = []
    one_by_one = _walk.in_order(positions, table, choose, lambda tokens, seconds: seen.append((tokens, seconds)))
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one.arrays(), done.arrays(), strict=True))
    assert sum(tokens for tokens, _ in seen) == positions.tokens.sum()
    assert [seconds for _, seconds in seen] == done.visits(positions, table)[2].tolist()


@check
def an_online_price_is_tracked_round_by_round(data: Any) -> None:
    positions, table = data.draw(strategies.cases())
    state = np.array([data.draw(numbers(1, 98)), data.draw(numbers(1, 98)), 1.0])
    memory = data.draw(st.sampled_from([2.0, 4.0, np.inf]))
    tokens, seconds, rounds = state.tolist()
    done = _walk.online_walk(positions, table, state, memory)
    actions = done.actions
    again = _walk.walk(positions, table, actions)
    assert all(np.array_equal(a, b) for a, b in zip(done.arrays(), again.arrays(), strict=True))
    for start, stop in pairwise(positions.starts.tolist()):
        p = start
        while p < stop - 1:
            gains, curve = np.asarray(positions.gains[p]), table.seconds[table.row[p]]
            best = naive.choose(gains, curve, "price", tokens / seconds)
            worth = [
                float(naive.net(1 + naive.phi(gains, n), naive.exact(curve[n]), tokens / seconds))
                for n in (int(actions[p]), best)
            ]
            assert worth[0] == pytest.approx(worth[1], abs=1e-12)  # prices are no multiples of 1/64: near ties are ties
            _, accepted, spent = naive.round_at(positions, table, p, int(actions[p]))
            keep = 1.0 if rounds <= memory else 1 - 1 / memory
            tokens = keep * tokens + min(accepted + 1, stop - 1 - p)
            seconds = keep * seconds + spent
            rounds += 1
            p += accepted + 1
    assert state == pytest.approx(np.array([tokens, seconds, rounds]))


@check
def fixed_walks_are_walks(data: Any) -> None:
    positions, table = data.draw(strategies.cases())
    spent, rounds = _walk.fixed_walks(positions, table)
    for n in range(positions.max_budget + 1):
        done = naive.walk(positions, table, [n] * len(positions))
        assert spent[:, n] == pytest.approx(np.array([one["seconds"] for one in done]))
        assert rounds[:, n].tolist() == [one["rounds"] for one in done]


@check
def chain_walks_are_walks(data: Any) -> None:
    positions, table = data.draw(strategies.cases())
    spent, rounds = _walk.chain_walks(positions, table)
    for k in range(1, positions.horizon + 1):
        done = naive.walk(positions, table, [naive.PREFIX - k] * len(positions))
        assert spent[:, k - 1] == pytest.approx(np.array([one["seconds"] for one in done]))
        assert rounds[:, k - 1].tolist() == [one["rounds"] for one in done]


@check
def one_cost_is_decided_on_and_another_paid(data: Any) -> None:
    positions, paid = data.draw(strategies.cases())
    other = data.draw(strategies.tables(len(positions), paid.seconds.shape[1]))
    seconds = other.seconds[data.draw(strategies.ints(0, len(other.seconds) - 1, len(paid.seconds)))]
    decided = _table.CostTable(
        np.where(np.isfinite(paid.seconds), seconds, np.inf), paid.ar_seconds / 2, paid.row, charged=paid
    )
    rule, price, fill = data.draw(rules), data.draw(strategies.prices), data.draw(st.booleans())
    expected = naive.choose_and_pay(positions, decided, paid, rule, price, fill)
    done = _walk.rule_walk(positions, decided, rule, price, fill=fill)  # type: ignore[arg-type]
    asked = _walk.lockstep(
        positions,
        decided,
        lambda gains, costs: _choose.round_budgets(gains, costs, rule, price, fill=fill),  # type: ignore[arg-type]
    )
    assert all(np.array_equal(a, b) for a, b in zip(done.arrays(), asked.arrays(), strict=True))
    again = _walk.walk(positions, decided, done.actions)
    assert all(np.array_equal(a, b) for a, b in zip(done.arrays(), again.arrays(), strict=True))
    for key in ("seconds", "rounds", "budget", "drawn"):
        assert getattr(done, key).tolist() == [one[key] for one in expected]
    here, _, spent = done.visits(positions, decided)
    assert spent.tolist() == [naive.round_at(positions, paid, int(p), int(done.actions[p]))[2] for p in here]
    fixed, _ = _walk.fixed_walks(positions, decided)
    assert fixed.tolist() == _walk.fixed_walks(positions, paid)[0].tolist()
    assert (
        _walk.hindsight_walk(positions, decided).actions.tolist()
        == _walk.hindsight_walk(positions, paid).actions.tolist()
    )


# --------------------------------------------------------------------------------------------------------------------
# theorems
# --------------------------------------------------------------------------------------------------------------------


@check
def phi_is_concave(data: Any) -> None:
    horizon, width = data.draw(numbers(1, 4)), data.draw(numbers(1, 5))
    weights = data.draw(strategies.ints(1, 200, horizon, width))
    rows = -np.sort(-np.log(weights / weights.sum(axis=1, keepdims=True)), axis=1)
    gains = tree_gains(rows, data.draw(numbers(1, 39)))
    calibration = data.draw(strategies.calibrations())
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    assert (np.diff(gains) <= 0).all() and (gains >= 0).all() and (gains <= 1).all()


@check
def ratio_is_unimodal_and_greedy_optimal_under_convex_cost(data: Any) -> None:
    width = data.draw(numbers(1, 8))
    gains, table = data.draw(strategies.gains(4, width)), data.draw(strategies.tables(4, width + 1, ("convex",)))
    calibration = data.draw(strategies.calibrations())
    greedy = _choose.round_budgets(gains, table, "greedy", calibration=calibration)
    best = _choose.round_budgets(gains, table, "exhaustive", calibration=calibration)
    mapped = gains if calibration is None else calibration.apply_gains(gains)
    for p in range(4):
        curve = table.seconds[table.row[p]]
        ratios = [(1 + naive.phi(mapped[p], n)) / F(curve[n]) for n in range(naive.nodes(mapped[p]) + 1)]
        if calibration is None:
            assert greedy[p] == best[p]
        assert float(ratios[greedy[p]]) == pytest.approx(float(max(ratios)), rel=1e-12)
        top = ratios.index(max(ratios))
        assert all(a <= b for a, b in pairwise(ratios[: top + 1])) and all(a >= b for a, b in pairwise(ratios[top:]))


def visited_prices(positions: Positions, table: Any, count: int = 30) -> list[tuple[float, float]]:
    """(price, seconds that its budgets take), each price the throughput of what was before; the last one if it stays."""
    tokens, out = int(positions.tokens.sum()), []
    price = tokens / sum(_walk.rule_walk(positions, table, "exhaustive").seconds)
    for _ in range(count):
        spent = float(_walk.rule_walk(positions, table, "price", price).seconds.sum())
        out.append((price, spent))
        if abs(tokens / spent - price) <= 1e-4 * price:
            return out[-1:]
        price = tokens / spent
    return out


@check
def a_walked_price_is_a_fixed_point_or_the_best_of_a_circle(data: Any) -> None:
    positions, table = data.draw(strategies.cases(12))
    if not positions.tokens.sum() or not np.isfinite(table.seconds).all():
        return
    visited = visited_prices(positions, table)
    solution = _price.solve_walk_price(positions, table)
    assert (solution.price, solution.seconds) in visited
    assert solution.seconds == min(spent for _, spent in visited)


@pytest.mark.parametrize(
    ("gains", "ranks", "lengths"),
    [  # the smallest that Hypothesis finds
        ([[5, 0], [0, 0], [0, 0]], [1, 1, 1], [3]),
        ([[0, 0, 0], [5, 0, 0], [0, 0, 0], [0, 0, 0]], [9, 1, 1, 1], [1, 3]),
    ],
)
def test_prices_that_go_round_in_a_circle(gains: Any, ranks: Any, lengths: list[int]) -> None:
    """No price is the throughput of its own budgets here; the slower half of the circle was returned."""
    positions = strategies.rounds(np.array(gains, np.float32) / 64, np.array(ranks)[:, None], lengths)
    curve = np.arange(32.0, 33 + 2 * len(gains[0]), 2) / 64
    table = _table.CostTable(curve[None], np.array([1 / 64]), np.zeros(len(positions), np.int32))
    visited = visited_prices(positions, table)
    assert len(visited) == 30 and visited[-1] in visited[:-1]
    solution = _price.solve_walk_price(positions, table)
    assert solution.seconds == min(spent for _, spent in visited) < max(spent for _, spent in visited[-3:])
    assert solution.tokens / solution.seconds == positions.tokens.sum() / solution.seconds


@check
def hindsight_is_the_least_over_all_choices(data: Any) -> None:
    positions, table = data.draw(strategies.cases(5))
    done = _walk.hindsight_walk(positions, table)
    least = [naive.least_seconds(positions, table, s) for s in range(positions.sequences)]
    assert done.seconds == pytest.approx(np.array(least))


@check
def hindsight_beats_every_policy(data: Any) -> None:
    positions, table = data.draw(strategies.cases(30))
    least = _walk.hindsight_walk(positions, table).seconds * (1 - 1e-12)
    for action in (_choose.NO_DRAFT, _choose.CHAIN, *range(positions.max_budget + 1)):
        assert (_walk.walk(positions, table, np.full(len(positions), action, np.int32)).seconds >= least).all()
    price = data.draw(strategies.prices)
    for rule in RULES:
        done = _walk.lockstep(
            positions, table, lambda gains, costs, r=rule: _choose.round_budgets(gains, costs, r, price)
        )
        assert (done.seconds >= least).all()


@check
def the_forest_is_the_best_of_all_ways_to_share(data: Any) -> None:
    requests, width = data.draw(numbers(1, 3)), data.draw(numbers(1, 3))
    gains, price = data.draw(strategies.gains(requests, width)), data.draw(strategies.prices)
    curve = data.draw(strategies.curves(data.draw(numbers(1, requests * width + 1)), ("steps",)))
    for rule in ("exhaustive", "price"):
        budgets = decide_batch(Decision(FOREST, _choose.RULES[rule], price), gains, curve)
        tokens = requests + sum(naive.phi(row, n) for row, n in zip(gains, budgets, strict=True))
        cost = F(float(curve[budgets.sum()]))
        worth = tokens / cost if rule == "exhaustive" else tokens - F(price) * cost
        assert worth == naive.best_forest(gains, curve, rule, price)


@check
def the_forest_beats_every_uniform_width(data: Any) -> None:
    requests, width = data.draw(numbers(1, 8)), data.draw(numbers(1, 8))
    gains, calibration = data.draw(strategies.gains(requests, width)), data.draw(strategies.calibrations())
    curve = data.draw(strategies.curves(requests * width + 1))
    mapped = gains if calibration is None else calibration.apply_gains(gains)

    def ratio(budgets: Any) -> float:
        kept = np.arange(width) < budgets[:, None]
        return float((requests + mapped[kept].sum(dtype=np.float64)) / curve[budgets.sum()])

    best = ratio(decide_batch(Decision(FOREST, _choose.EXHAUSTIVE, calibration=calibration), gains, curve))
    exists = _rounds.node_counts(gains)
    assert all(best >= ratio(np.minimum(n, exists)) * (1 - 1e-12) for n in range(width + 1))


@CASES
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_check(name: str, cases: int) -> None:
    run(cases, CHECKS[name], st.data())


# --------------------------------------------------------------------------------------------------------------------
# the rest
# --------------------------------------------------------------------------------------------------------------------


def some_rounds(rng: np.random.Generator, lengths: Any, horizon: int, width: int) -> Positions:
    """Many rounds at once, more than strategies draw."""
    count = int(np.sum(lengths))
    gains = -np.sort(-rng.integers(0, 65, (count, width)), axis=1) / 64
    ranks = np.sort(rng.permuted(np.tile(np.arange(1, width + horizon + 1), (count, 1)), axis=1)[:, :horizon], axis=1)
    return strategies.rounds(gains.astype(np.float32), ranks, lengths, rng.integers(0, 255, count))


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    positions = some_rounds(rng, rng.integers(1, 60, 300), 5, 16)
    table = _table.CostTable(
        0.01 + rng.random((3, 17)), 0.01 + rng.random(3), rng.integers(0, 3, len(positions)).astype(np.int32)
    )
    answers = []
    most = numba.get_num_threads()
    try:
        for threads in (1, most):
            numba.set_num_threads(threads)
            done = _walk.hindsight_walk(positions, table)
            answers.append(
                [
                    _walk.fixed_seconds(positions, table).tolist(),
                    done.actions.tolist(),
                    done.seconds.tolist(),
                    _walk.rule_walk(positions, table, "exhaustive").expected.tolist(),
                ]
            )
    finally:
        numba.set_num_threads(most)
    assert answers[0] == answers[1]


def test_blocks_change_nothing() -> None:
    rng = np.random.default_rng(1)
    positions = some_rounds(rng, rng.integers(1, 9, 40), 3, 8)
    seen = [(low, first, len(block)) for low, first, block in positions.blocks(20)]
    assert [low for low, _, _ in seen] == np.cumsum([0, *(n for _, _, n in seen)])[:-1].tolist()
    assert sum(n for _, _, n in seen) == len(positions) and len(seen) > 1
    whole = np.concatenate([block.ranks for _, _, block in positions.blocks(20)])
    assert np.array_equal(whole, positions.ranks)


def test_optimal_budget() -> None:
    gains, curve = [0.9, 0.6, 0.1], [1.0, 1.1, 1.2, 2.0]
    assert _choose.optimal_budget(gains, curve) == _choose.optimal_budget(gains, curve, rule="greedy") == 2
    assert _choose.optimal_budget(gains, curve, rule="price", price=0.01) == 3
    assert _choose.optimal_budget([gains, [0.0, 0.0, 0.0]], curve).tolist() == [2, 0]
    frozen = np.array([gains], np.float32)
    frozen.flags.writeable = False
    assert _choose.optimal_budget(frozen, curve).tolist() == [2]
    for arguments, reason in (
        (([0.1, 0.6], curve), "descending"),
        (([0.6, np.nan], curve), "finite"),
        ((gains, [1.0, 1.0]), "entries"),
        ((gains, [1.0, 1.0, 0.0, 1.0]), "positive"),
    ):
        with pytest.raises(DdsimError, match=reason):
            _choose.optimal_budget(*arguments)
    for options, reason in (({"rule": "x"}, "unknown rule"), ({"rule": "price"}, "price"), ({"price": 1.0}, "price")):
        with pytest.raises(DdsimError, match=reason):
            _choose.optimal_budget(gains, curve, **options)  # type: ignore[arg-type]


def test_costs_of_fewer_nodes_than_gains_bound_the_budget() -> None:
    gains = np.full((3, 8), 0.9, np.float32)
    assert _choose.round_budgets(gains, _table.CostTable.of_curve([1.0, 1.0, 1.0], 3), "price").tolist() == [2, 2, 2]
