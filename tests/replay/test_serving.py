"""Joint rounds against brute force, theorems as properties, and the closed loop against a plain one and against replay."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsim
from ddsim.cost import table as _table
from ddsim.cost.model import CostModel, ExtrapolationWarning, fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.cost.table import CONTEXT_STEP, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.batch import CHAINS, FAIR, FOREST, SHARE, UNIFORM, WIDTH, FairRatio, Share, Uniform, share_curve
from ddsim.policy.choose import _slopes_ahead
from ddsim.policy.contract import Decision, Policy, decision_of
from ddsim.policy.joint import JointTable, decided_on, groups_of, joint_table, joint_totals, solve_joint_price
from ddsim.policy.rules import (
    Autoregressive,
    BestChain,
    BestFixed,
    CaDDTree,
    Chain,
    DDTree,
    DFlash,
    GreedySteps,
    Hindsight,
    LongRun,
    RoundRatio,
    Schedule,
)
from ddsim.replay import serving as _serving
from ddsim.replay.maps import batch_map, best_widths
from ddsim.replay.served import _interval
from ddsim.replay.serving import simulate
from ddsim.trace.cache import positions_of
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions, node_counts
from ddsim.tree.kernels import NO_RANK
from tests import strategies
from tests.made_up import made_trace
from tests.naive import budget as naive_budget
from tests.naive import schedule as naive_schedule
from tests.naive import serving as naive_serving

WAYS = {"forest": FOREST, "share": SHARE, "uniform": UNIFORM}


def made(
    seed: int, lengths: Any, budget: int = 12, horizon: int = 4, spread: float = 1.0, contexts: Any = None
) -> Positions:
    """Positions with gains of very different rounds, and a truth that follows them roughly."""
    rng = np.random.default_rng(seed)
    count = int(np.sum(lengths))
    gains = rng.random((count, budget)) ** rng.uniform(0.3, 1 + 8 * spread, (count, 1))
    gains = np.maximum(-np.sort(-gains, axis=1), 1e-3).astype(
        np.float32
    )  # smaller ones would turn on the last bit of sums
    gains[rng.random(gains.shape).cumsum(axis=1) > rng.uniform(1, budget, (count, 1))] = 0
    nodes = node_counts(gains)
    ranks = np.cumsum(rng.integers(1, 4, (count, horizon)), axis=1).astype(np.int32)
    ranks[(ranks > nodes[:, None]) | (rng.random(ranks.shape).cumsum(axis=1) > 2.5)] = NO_RANK
    ranks = np.maximum.accumulate(ranks, axis=1)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if contexts is None:
        context = np.concatenate([10 + np.arange(n) for n in lengths]).astype(np.int32)
    else:
        context = np.concatenate([c + np.arange(n) for c, n in zip(contexts, lengths, strict=True)]).astype(np.int32)
    return Positions(
        gains,
        ranks,
        nodes,
        rng.integers(0, horizon + 1, count).astype(np.uint8),
        rng.uniform(0, 1, (count, horizon)).cumsum(axis=1).astype(np.float32),
        context,
        starts,
        tuple(f"p{i // 2}" for i in range(len(lengths))),
        tuple("ab"[i % 2] for i in range(len(lengths))),
        np.zeros(len(lengths), np.float32),
        "made",
    )


def curves(width: int) -> st.SearchStrategy[Any]:
    """Costs of any shape: convex, stepped, falling in places; none infinite."""
    return strategies.curves(width).map(lambda curve: np.where(np.isinf(curve), curve[0] + 4, curve))


def some_positions(lengths: Sequence[int], budget: int = 12) -> st.SearchStrategy[Positions]:
    """A table of rounds of a horizon of 4 whose gains, ranks and chains Hypothesis draws; no rank is of a node that isn't there."""

    def there(found: Positions) -> Positions:
        ranks: Any = found.ranks
        return dataclasses.replace(found, ranks=np.where(ranks > found.nodes[:, None], NO_RANK, ranks).astype(np.int32))

    return strategies.positions(lengths, 4, budget).map(there)


# one joint round


@settings(max_examples=200, deadline=None)
@given(
    st.data(), st.integers(1, 5), st.integers(1, 9), st.sampled_from(sorted(WAYS)),
    st.sampled_from(["greedy", "exhaustive", "price"]), st.floats(0, 8),
)  # fmt: skip
def test_decisions_against_brute_force(data: Any, batch: int, budget: int, way: str, rule: str, price: float) -> None:
    check_decisions(data, batch, budget, way, rule, price)


@pytest.mark.slow
@settings(max_examples=100_000, deadline=None)
@given(
    st.data(), st.integers(1, 5), st.integers(1, 9), st.sampled_from(sorted(WAYS)),
    st.sampled_from(["greedy", "exhaustive", "price"]), st.floats(0, 8),
)  # fmt: skip
def test_decisions_against_brute_force_at_length(
    data: Any, batch: int, budget: int, way: str, rule: str, price: float
) -> None:
    check_decisions(data, batch, budget, way, rule, price)


def check_decisions(data: Any, batch: int, budget: int, way: str, rule: str, price: float) -> None:
    positions = data.draw(some_positions([batch + 1], budget))
    gains: Any = positions.gains[:batch]  # type: ignore[index]
    seconds = data.draw(curves(data.draw(st.integers(1, batch * budget + 3))))
    paid = data.draw(st.none() | curves(len(seconds)))  # None: what is decided on is paid, and nothing filled
    budgets, tokens = naive_serving.decide(gains, seconds, way, rule, price, paid)
    inner: Policy = {"greedy": CaDDTree(), "exhaustive": RoundRatio(), "price": LongRun(price)}[rule]
    inner.fill = paid is not None
    policy = policy_of(way, inner)

    def value(chosen: Any, expected: float) -> float:
        n = int(np.sum(chosen)) if way != "uniform" else 0
        if way == "forest":
            return expected - price * seconds[n] if rule == "price" else expected / seconds[n]
        share = [seconds[k * batch] / batch for k in range(budget + 1) if k * batch < len(seconds)]
        if way == "share":
            each = [1 + float(gains[b, :k].sum(dtype=float)) for b, k in enumerate(chosen)]
            return sum(
                t - price * share[k] if rule == "price" else t / share[k] for t, k in zip(each, chosen, strict=True)
            )
        w = int(np.max(chosen))
        return expected / batch - price * share[w] if rule == "price" else expected / batch / share[w]

    chosen = policy.choose_batch(gains, seconds) if paid is None else policy.choose_batch(gains, seconds, paid)  # type: ignore[call-arg]
    expected = batch + sum(float(gains[b, :k].sum(dtype=float)) for b, k in enumerate(chosen))
    if paid is not None:  # where two budgets are as good, both are filled
        same, _ = naive_serving.decide(gains, seconds, way, rule, price)
        inner.fill = False
        assert chosen.tolist() == budgets or policy_of(way, inner).choose_batch(gains, seconds).tolist() != same
        inner.fill = True
    elif rule == "greedy":  # where it stops may turn on the last bit of a ratio
        assert chosen.tolist() == budgets or value(chosen, expected) == pytest.approx(value(budgets, tokens), rel=1e-6)
    else:
        assert value(chosen, expected) == pytest.approx(value(budgets, tokens), rel=1e-6, abs=1e-6)
    # the kernel decides as the policy object does
    decision = decision_of(policy)
    assert decision is not None
    table = table_of(seconds, batch, budget, paid)
    got, spent, nodes = joint_totals(decision, positions, np.arange(batch)[None], table)
    assert nodes == int(chosen.sum())
    assert got == pytest.approx(expected, rel=1e-6)
    assert spent == (seconds if paid is None else paid)[int(nodes)]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(0, 4))
def test_expected_tokens_of_chains(data: Any, batch: int, k: int) -> None:
    """``k`` 0: whole chains, of 4 tokens."""
    positions, seconds = data.draw(some_positions([3] * batch)), data.draw(curves(4 * batch + 1))
    groups = np.array([positions.roots()[:batch]])
    got = joint_totals(Decision(CHAINS, width=k), positions, groups, table_of(seconds, batch, 12))
    expected = sum(1 + float(positions.chain_expected[p, (k or 4) - 1]) for p in groups[0])
    assert got == (pytest.approx(expected), seconds[batch * (k or 4)], batch * (k or 4))


def policy_of(way: str, inner: Policy) -> Policy:
    return {"forest": inner, "share": Share(inner), "uniform": Uniform(inner)}[way]


def table_of(seconds: Any, batch: int, budget: int, paid: Any = None) -> JointTable:
    """A table with one row, the curve itself; ``paid``: the curve that is paid, if another."""
    curve = np.ascontiguousarray(seconds[None])
    share = share_curve(curve, batch, budget)
    charged = curve if paid is None else np.ascontiguousarray(paid[None])
    return JointTable(
        batch,
        1,
        charged,
        0.9 * charged[:, 0],
        len(seconds) - 1,
        curve,
        _slopes_ahead(curve),
        share,
        _slopes_ahead(share),
    )


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 5))
def test_fair_ratio_is_the_best_way_to_hand_out_nodes(data: Any, batch: int, budget: int) -> None:
    positions = data.draw(some_positions([batch + 1], budget))
    gains: Any = positions.gains[:batch]  # type: ignore[index]
    seconds = data.draw(curves(data.draw(st.integers(1, batch * budget + 3))))

    def value(budgets: Any) -> float:
        tokens = [1 + float(row[:n].sum(dtype=float)) for row, n in zip(gains, budgets, strict=True)]
        return float(np.log(tokens).sum() - batch * np.log(seconds[int(np.sum(budgets))]))

    want, _ = naive_serving.fair(gains, seconds)
    got = FairRatio().choose_batch(gains, seconds)
    assert value(got) == pytest.approx(value(want), abs=1e-9)
    table = table_of(seconds, batch, budget)
    tokens, _, nodes = joint_totals(Decision(FAIR), positions, np.arange(batch)[None], table)
    assert nodes == got.sum()
    assert tokens == pytest.approx(batch + sum(float(gains[b, :n].sum(dtype=float)) for b, n in enumerate(got)))
    if batch == 1:
        assert value(got) == pytest.approx(value(RoundRatio().choose_batch(gains, seconds)), abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 9))
def test_forests_of_policies_are_forest_budgets(data: Any, batch: int, budget: int) -> None:
    positions = data.draw(some_positions([batch + 1], budget))
    gains: Any = positions.gains[:batch]  # type: ignore[index]
    seconds = data.draw(curves(batch * budget + 1))
    assert (
        RoundRatio().choose_batch(gains, seconds).tolist()
        == naive_serving.forest_budgets(gains, seconds, "exhaustive").tolist()
    )


# theorems, under the surrogate


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 99), st.sampled_from([1, 2, 3, 8]))
def test_forest_beats_widths_and_shares(data: Any, seed: int, batch: int) -> None:
    budget = 9
    positions = data.draw(some_positions([25], budget))
    # where costs fall, a padded width may reach a cheaper size that no forest has the nodes for
    seconds = np.maximum.accumulate(data.draw(curves(batch * budget + 1)))
    table, groups = table_of(seconds, batch, budget), groups_of(positions, batch, seed)
    rate = {}
    for way, mode in WAYS.items():
        solution = solve_joint_price(mode, positions, groups, table)
        tokens, spent, _ = joint_totals(Decision(mode, price=solution.price), positions, groups, table)
        if way != "share":
            assert tokens / spent == pytest.approx(solution.price, rel=1e-9)  # the fixed point
        rate[way] = tokens / spent
    for rule in (RoundRatio(), CaDDTree()):  # λ* against rules that look at one round
        decision = decision_of(rule)
        assert decision is not None
        tokens, spent, _ = joint_totals(decision, positions, groups, table)
        assert rate["forest"] >= tokens / spent * (1 - 1e-9)
    for width in range(budget + 1):
        tokens, spent, nodes = joint_totals(Decision(WIDTH, width=width), positions, groups, table)
        assert nodes <= width * groups.size
        assert rate["forest"] >= tokens / spent * (1 - 1e-9), "a fixed width beats the forest"
        if nodes == width * groups.size:  # a fixed width that nobody fills is cheaper than one that is padded
            assert rate["uniform"] >= tokens / spent * (1 - 1e-9)
    assert rate["forest"] >= rate["uniform"] * (1 - 1e-9), "one width a round beats the forest"
    assert rate["forest"] >= rate["share"] * (1 - 1e-9), "equal shares beat the forest"
    if batch == 1:
        assert rate["forest"] == pytest.approx(rate["share"]) == pytest.approx(rate["uniform"])


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(0, 99), st.integers(1, 5))
def test_forest_price_is_that_of_a_plain_loop(data: Any, seed: int, batch: int) -> None:
    positions = data.draw(some_positions([41], 9))
    seconds = data.draw(curves(batch * 9 + 1))
    roots: Any = positions.gains[:40]  # type: ignore[index]
    groups = np.random.default_rng(seed).permutation(40)[: 40 // batch * batch].reshape(-1, batch)
    price = better = 0.0
    while True:  # Dinkelbach: the ratio of a price's own budgets, until it no longer rises
        chosen = [naive_serving.forest_budgets(roots[group], seconds, "price", better) for group in groups]
        kept = [roots[group][np.arange(9) < budgets[:, None]] for group, budgets in zip(groups, chosen, strict=True)]
        tokens = groups.size + sum(float(gains.sum(dtype=np.float64)) for gains in kept)
        better = tokens / sum(float(seconds[budgets.sum()]) for budgets in chosen)
        if better <= price * (1 + 1e-12):
            break
        price = better
    assert solve_joint_price(FOREST, positions, groups, table_of(seconds, batch, 9)).price == pytest.approx(
        price, rel=1e-9
    )


# the closed loop

COST = CostModel.from_table([1, 8, 9, 64, 65, 300], [0.010, 0.010, 0.013, 0.013, 0.02, 0.05], draft_seconds=0.002)


def quiet(*arguments: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        return simulate(*arguments, **named)


@pytest.mark.parametrize(("cases", "each"), [(40, 6), pytest.param(400, 20, marks=pytest.mark.slow)])
def test_closed_loop_against_a_plain_one(cases: int, each: int) -> None:
    """Every policy on some of the cases; all of them on all in the slow suite."""
    strategies.run(
        cases, closed_loop_is_a_plain_one, st.data(), st.integers(0, 99),
        st.lists(st.integers(1, 9), min_size=2, max_size=9), st.integers(1, 5), st.integers(1, 12), st.just(each),
    )  # fmt: skip


def closed_loop_is_a_plain_one(data: Any, seed: int, lengths: list[int], batch: int, requests: int, each: int) -> None:
    lengths[0] += 1  # something to decode
    positions = data.draw(some_positions(lengths))
    policies = [
        Autoregressive(), DFlash(), DDTree(3), CaDDTree(), RoundRatio(), LongRun(80.0), Share(RoundRatio()),
        Share(LongRun(60.0)), Uniform(RoundRatio()), Uniform(LongRun(70.0)), FairRatio(),
        GreedySteps(), CaDDTree(fill=True), Share(CaDDTree(fill=True)), Uniform(CaDDTree()), Uniform(CaDDTree(fill=True)),
        Chain(1), Chain(3), Chain(4), Schedule([(1, 1, 9), (2, 3, 2), (5, 9, 0)]),
    ]  # fmt: skip
    first = data.draw(st.integers(0, len(policies) - 1))
    policies = [*policies[first:], *policies[:first]][:each]
    result = quiet(positions, COST, policies, batch=batch, requests=requests, bootstrap=1, seed=seed)
    whole = _serving._in_memory(positions, None)
    queues = _serving._queues(whole, requests, 1, seed)
    table = joint_table(COST, (10, 20), batch, 12, 4, widest=3)
    for policy in policies:
        run = result.runs[batch, policy.name]
        own = decided_on(policy, COST, table, 12)
        paid = [table.seconds[0, : table.limit + 1]] if policy.fill else []

        def choose(gains: Any, policy: Policy = policy, own: JointTable = own, paid: Any = paid) -> Any:
            if isinstance(policy, Autoregressive):
                return None
            if isinstance(policy, DFlash):
                return 4
            if isinstance(policy, Chain):
                return policy.k
            if isinstance(policy, Schedule):
                return min(policy.k(len(gains)), 4) or None
            return policy.choose_batch(np.ascontiguousarray(gains), own.curve[0], *paid).tolist()

        for r, queue in enumerate(queues.tolist()):
            want = naive_serving.closed_loop(
                whole, queue, batch, table.seconds[0], table.ar_seconds[0], choose, isinstance(policy, Uniform)
            )
            got = run.seconds[r], run.tokens[r], run.rounds[r], run.nodes[r]
            assert got[1:] == want[1:4], policy.name
            assert got[0] == pytest.approx(want[0]) and run.latency[r] == pytest.approx(want[4])


@settings(max_examples=40, deadline=None)
@given(
    st.data(), st.integers(0, 99), st.lists(st.integers(2, 9), min_size=1, max_size=7), st.integers(2, 5),
    st.integers(1, 12),
)  # fmt: skip
def test_a_batch_that_drains_against_a_plain_one(
    data: Any, seed: int, lengths: list[int], batch: int, requests: int
) -> None:
    positions = data.draw(some_positions(lengths))
    schedule = Schedule([(1, 1, 9), (2, 3, 2), (4, 4, 0)])
    policies = [Autoregressive(), DFlash(), DDTree(3), RoundRatio(), FairRatio(), Chain(2), schedule]
    result = quiet(positions, COST, policies, batch=batch, requests=requests, drain=True, bootstrap=1, seed=seed)
    whole = _serving._in_memory(positions, None)
    queues = _serving._queues(whole, requests, 1, seed)
    tables = {b: joint_table(COST, (10, 20), b, 12, 4, widest=3) for b in range(1, batch + 1)}
    seconds, alone = ({b: getattr(t, name)[0] for b, t in tables.items()} for name in ("seconds", "ar_seconds"))
    for policy in policies:
        run = result.runs[batch, policy.name]

        def choose(gains: Any, policy: Policy = policy) -> Any:
            if isinstance(policy, Autoregressive):
                return None
            if isinstance(policy, (DFlash, Chain)):
                return 4 if isinstance(policy, DFlash) else 2
            if isinstance(policy, Schedule):
                return naive_schedule.tokens(policy.ranges, len(gains), 4) or None
            return policy.choose_batch(np.ascontiguousarray(gains), tables[len(gains)].curve[0]).tolist()

        for r, queue in enumerate(queues.tolist()):
            want = naive_serving.drained(whole, queue, batch, seconds, alone, choose)
            got = run.seconds[r], run.tokens[r], run.rounds[r], run.nodes[r]
            assert got == pytest.approx(want[:4])
            np.testing.assert_allclose(run.latency[r], want[4])
            assert run.tokens[r] == whole.tokens[queue].sum()


def test_a_schedule_pays_where_a_batch_drains() -> None:
    positions = made(4, [60, 20, 20, 20, 20, 20, 20, 20])
    names = ["Chain:1", "Chain:4", "Schedule([(1, 1, 4), (2, 8, 0)])"]
    steep = CostModel.from_table([1, 2, 8, 9, 300], [0.010, 0.0101, 0.0105, 0.02, 0.9])
    full, ends = (
        quiet(positions, steep, names, batch=8, requests=8, bootstrap=0, drain=d).table() for d in (False, True)
    )
    rate = ends.set_index("policy")["tokens_per_second"]
    assert rate.iloc[3] > rate.drop(names[2]).max()  # the schedule
    assert (
        full["tokens_per_second"][0] > 2 * ends["tokens_per_second"][0]
    )  # a round of AR costs about the same for fewer
    assert (ends["tokens"] == 8 * positions.tokens.sum()).all()
    alone, same = (quiet(positions, steep, names, batch=1, bootstrap=2, drain=d).table() for d in (False, True))
    assert alone.equals(same)


class Copied(Policy):
    """Another policy that the kernel doesn't recognise."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, f"copy of {policy.name}"
        self.online, self.decides_on, self.fill = policy.online, policy.decides_on, policy.fill
        self.rectangular = isinstance(policy, Uniform)

    def prepare(self, positions: Any, costs: Any, *, sequences: Any = None) -> Policy:
        return Copied(self.policy.prepare(positions, costs, sequences=sequences))

    def choose_batch(self, gains: Any, seconds: Any, *paid: Any) -> Any:
        return self.policy.choose_batch(gains, seconds, *paid)

    def observe(self, tokens: float, seconds: float) -> None:
        self.policy.observe(tokens, seconds)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 99), st.lists(st.integers(2, 15), min_size=1, max_size=9), st.integers(1, 6))
def test_the_kernel_does_what_the_policy_objects_do(data: Any, seed: int, lengths: list[int], batch: int) -> None:
    context = np.concatenate([data.draw(st.integers(10, 900)) + np.arange(n) for n in lengths]).astype(np.int32)
    positions = dataclasses.replace(data.draw(some_positions(lengths)), context=context)
    samples = [
        VerifySample(t, c, 1, (0.01 + 1e-4 * t + 2e-3 * (t // 8) + 1e-5 * c,))
        for t in (1, 7, 8, 16, 80)
        for c in (64, 512, 1024)
    ]
    cost = ddsim.fit_cost(ddsim.Profile(samples), "isotonic")
    pure = [
        Autoregressive(), DFlash(), DDTree(5), BestFixed(), CaDDTree(), RoundRatio(), LongRun(90.0), LongRun(online=True),
        Chain(3), BestChain(),
        LongRun(online=True, memory=3), Share(CaDDTree()), Uniform(LongRun(90.0)), FairRatio(), GreedySteps(),
        CaDDTree(fill=True), Share(CaDDTree(fill=True)), Uniform(CaDDTree(fill=True)),
    ]  # fmt: skip
    convex = LongRun(online=True)  # whatever decides on another cost than it pays, a price that is tracked too
    convex.decides_on, convex.name = "convex", "LongRun online, convex"
    pure.append(convex)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        result = quiet(positions, cost, [*pure, *map(Copied, pure)], batch=batch, bootstrap=2, seed=seed)
    for policy in pure:
        one, other = result.runs[batch, policy.name], result.runs[batch, f"copy of {policy.name}"]
        for name in ("tokens", "rounds", "nodes"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist(), policy.name
        np.testing.assert_allclose(one.seconds, other.seconds)
        np.testing.assert_allclose(one.latency, other.latency)


def test_batches_of_one_are_replay() -> None:
    positions = made(3, [30, 41, 17, 60], contexts=[10, 200, 900, 40])
    samples = [VerifySample(t, c, 1, (0.01 + 2e-4 * t + 1e-5 * c,)) for t in (1, 16, 80) for c in (64, 512, 1024)]
    cost = ddsim.fit_cost(ddsim.Profile(samples), "table")
    table = cost_table(cost, positions.context, 12)
    policies: list[Policy] = [Autoregressive(), DFlash(), DDTree(4), RoundRatio(), BestFixed(), LongRun(60.0)]
    policies += [Chain(2), BestChain()]
    result = quiet(positions, cost, policies, batch=1, requests=4, bootstrap=0)
    for policy in policies:
        ready = policy.prepare(positions, table)
        walked = ddsim.policy.walk.walk(positions, table, ready.actions(positions, table))
        run = result.runs[1, policy.name]
        assert run.rounds[0] == walked.rounds.sum() and run.nodes[0] == walked.budget.sum()
        assert run.seconds[0] == pytest.approx(walked.seconds.sum()) and run.tokens[0] == positions.tokens.sum()
        assert sorted(run.latency[0]) == pytest.approx(sorted(walked.seconds))


def test_table_and_gain() -> None:
    positions = made(5, [40, 80, 20, 60, 50, 33, 70, 90, 55, 45], spread=2)
    result = quiet(positions, COST, ["DFlash", "DDTree:4", "LongRun", RoundRatio()], batch=(1, 4), bootstrap=50)
    table = result.table()
    assert table["policy"].tolist() == ["AR", "DFlash", "DDTree(4)", "LongRun", "RoundRatio"] * 2
    assert (table["tokens_per_second"] == table["tokens"] / table["seconds"]).all()
    np.testing.assert_allclose(table["tokens_per_second_user"] * table["batch"], table["tokens_per_second"])
    np.testing.assert_allclose(table["acceptance_length"] * table["rounds"] * table["batch"], table["tokens"])
    ar = table[table["policy"] == "AR"]
    assert (ar["speedup"] == 1).all() and (ar["budget_mean"] == 0).all() and (ar["acceptance_length"] == 1).all()
    np.testing.assert_allclose(ar["tpot_mean"], [0.010, 0.010])
    for name in ("tokens_per_second", "tpot_mean", "speedup"):
        assert (table[f"{name}_low"] <= table[f"{name}_high"]).all()
    drafted = table[table["policy"] != "AR"]
    assert (drafted["tpot_p95"] > drafted["tpot_mean"]).all()
    value, low, high = result.gain("LongRun", "DDTree(4)", 4)
    rate = table.set_index(["batch", "policy"])["tokens_per_second"]
    assert value == pytest.approx(rate[4, "LongRun"] / rate[4, "DDTree(4)"] - 1) and low <= high
    assert result.gain("LongRun", "LongRun", 1) == (0, 0, 0)  # paired
    assert len(result.runs[4, "LongRun"].seconds) == _serving.SHUFFLES + 50
    for batch, rows in table.set_index("policy").groupby("batch"):
        best = rows.loc[["AR", "DFlash", "DDTree(4)"], "tokens_per_second"].idxmax()
        assert (
            set(rows["best_fixed"]) == {best} and rows.loc[best, "over_fixed"] == 0 == rows.loc[best, "tpot_over_fixed"]
        )
        assert tuple(rows.loc["LongRun", ["over_fixed", "over_fixed_low", "over_fixed_high"]]) == result.gain(
            "LongRun", best, batch
        )
        assert (rows["tpot_over_fixed"] == rows["tpot_mean"] / rows.loc[best, "tpot_mean"] - 1).all()
    json.dumps(result.to_json(), allow_nan=False)
    assert "TPOT" in str(result) and str(result).count("\nLongRun ") == 2 and " ±" in str(result)
    with pytest.raises(DdsimError, match="no policy 'Hindsight' at batch 4; there are AR, DFlash"):
        result.gain("Hindsight", "AR", 4)


def test_rules_by_one_name() -> None:
    positions = made(2, [12, 9])
    names = quiet(positions, COST, ["rules", "Chain:2"], batch=2, bootstrap=0).table()["policy"].tolist()
    chains = ["AR", "BestChain", "BestSchedule", "AdaptiveSteps", "DSpark", "AdaptiveVerification"]
    carried = ["LongRun uniform", "FairRatio", "LongRun"]
    assert names == [*chains, *(f"{name} on chains" for name in carried), "BestFixed", *carried, "Chain(2)"]
    engine = dataclasses.replace(
        ddsim.Profile([VerifySample(t, 64, 1, (0.01 * t,)) for t in (1, 99)]), provenance={"engine": "vLLM"}
    )
    assert "BestFixed" not in [policy.name for policy in _serving.rules_for(ddsim.fit_cost(engine, "table"))]
    assert _serving.named_rules("LongRun", list) == "LongRun" and _serving.named_rules(None, list) is None


def test_intervals_cover_the_truth_about_new_prompts() -> None:
    """Speedups on half of many prompts lie in the interval from the other half about as often as they should."""
    inside = 0
    for seed in range(20):
        positions = made(100 + seed, [25] * 60, spread=2)
        halves = [positions.block(0, 30), positions.block(30, 60)]
        results = [quiet(h, COST, ["DDTree:4"], batch=4, bootstrap=60, seed=seed).table().iloc[1] for h in halves]
        width = results[0]["speedup_high"] - results[0]["speedup_low"]
        assert 0 < width < 0.5
        # two samples of one size differ by √2 standard errors
        inside += abs(results[0]["speedup"] - results[1]["speedup"]) < np.sqrt(2) * width / 2
    assert inside >= 15


def test_everything_is_deterministic_whatever_the_threads() -> None:
    import numba

    positions = made(8, [30] * 12)
    many = quiet(positions, COST, batch=(2, 5), bootstrap=12).table()
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = quiet(positions, COST, batch=(2, 5), bootstrap=12).table()
    finally:
        numba.set_num_threads(threads)
    assert many.equals(one)


def test_prices_and_widths_are_solved_for_every_batch() -> None:
    positions = made(9, [50] * 10, spread=2)
    result = quiet(
        positions, COST, [LongRun(), Share(LongRun()), Uniform(LongRun()), BestFixed()], batch=(1, 16), bootstrap=0
    )
    said = {(p["batch"], p["name"]): p for p in result.provenance["policies"]}
    assert said[16, "LongRun"]["price"] > 4 * said[1, "LongRun"]["price"]  # tokens per second of all slots
    assert said[16, "BestFixed"]["budget"] < said[1, "BestFixed"]["budget"]
    forest, share = said[16, "LongRun"]["price"], said[16, "LongRun share"]["policy"]["price"]
    assert forest >= share


def test_best_fixed_width_is_the_best_of_all() -> None:
    positions = made(10, [60] * 8, spread=1)
    for batch in (1, 4, 9):
        fixed = [f"DDTree:{n}" for n in range(13)]
        table = quiet(positions, COST, [*fixed, "BestFixed"], batch=batch, requests=200, bootstrap=0).table()
        rate = table.set_index("policy")["tokens_per_second"]
        assert rate["BestFixed"] >= 0.99 * rate.drop("AR").max()  # contexts and the end of the loop differ a little


def test_best_chain_is_the_best_of_all() -> None:
    positions = made(10, [60] * 8, spread=1)
    best = []
    for batch in (1, 9, 60):
        chains = [f"Chain:{k}" for k in range(1, 5)]
        result = quiet(positions, COST, [*chains, "DFlash", "BestChain"], batch=batch, requests=200, bootstrap=0)
        rate = result.table().set_index("policy")["tokens_per_second"]
        assert rate["BestChain"] >= 0.99 * rate.drop("AR").max() and rate["Chain(4)"] == rate["DFlash"]
        best += [p["k"] for p in result.provenance["policies"] if p["name"] == "BestChain"]
    assert best[0] > best[-1]


def test_calibration_of_policies_and_of_traces() -> None:
    positions = made(11, [40] * 6)
    calibration = Calibration("isotonic", np.log([0.01, 1.0]), np.array([0.005, 0.5]), np.ones(0), {})
    smooth = CostModel.from_table([1, 60], [0.010, 0.030])
    pure = [
        RoundRatio(calibration=calibration),
        FairRatio(calibration=calibration),
        Uniform(RoundRatio(calibration=calibration)),
    ]
    result = quiet(positions, smooth, [RoundRatio(), FairRatio(), *pure, *map(Copied, pure)], batch=4, bootstrap=0)
    table = result.table().set_index("policy")
    for name in ("RoundRatio", "FairRatio"):
        assert table["budget_mean"][f"{name} isotonic"] != table["budget_mean"][name]
    for policy in pure:
        assert table["tokens"][policy.name] == table["tokens"][f"copy of {policy.name}"]
        # where the next gain is too small to change a sum of logarithms, the last bit decides whether it is taken
        assert table["budget_mean"][policy.name] == pytest.approx(
            table["budget_mean"][f"copy of {policy.name}"], rel=1e-3
        )
    with pytest.raises(DdsimError, match="calibrated already"):
        simulate(positions, COST, calibration=calibration)


def test_limits_on_tokens() -> None:
    positions = made(12, [40] * 6)
    free = quiet(positions, COST, [DDTree(12), RoundRatio()], batch=4, bootstrap=0).table().set_index("policy")
    tight = (
        quiet(positions, COST, [DDTree(12), RoundRatio()], batch=4, bootstrap=0, max_tokens=14)
        .table()
        .set_index("policy")
    )
    assert tight["budget_mean"]["DDTree(12)"] <= 2 < free["budget_mean"]["DDTree(12)"]
    assert tight["budget_mean"]["RoundRatio"] <= 2.5
    with pytest.raises(DdsimError, match="max_tokens: 3 tokens can't hold the roots of a batch of 4"):
        simulate(positions, COST, batch=4, max_tokens=3)
    copied = quiet(positions, COST, [Copied(DDTree(12))], batch=4, bootstrap=0, max_tokens=14).table()
    assert copied["budget_mean"].iloc[1] == tight["budget_mean"]["DDTree(12)"]
    with pytest.raises(DdsimError, match="copy of DFlash: asks for 16 nodes in all; 15 are allowed"):
        simulate(positions, COST, [Copied(DFlash())], batch=4, max_tokens=19)
    with pytest.raises(DdsimError, match="DFlash: 4 chains verify 20 tokens; max_tokens allows 19"):
        simulate(positions, COST, ["DFlash"], batch=4, max_tokens=19)
    with pytest.raises(DdsimError, match=r"Chain\(4\): 4 chains verify 20 tokens; max_tokens allows 19"):
        simulate(positions, COST, ["Chain:4"], batch=4, max_tokens=19)
    simulate(positions, COST, ["Chain:3", "BestChain"], batch=4, max_tokens=19, bootstrap=0)
    with pytest.raises(DdsimError, match=r"Chain\(5\): the trace's drafts have 4 tokens"):
        simulate(positions, COST, ["Chain:5"], batch=4)


def test_batches_that_were_not_measured_are_flagged_and_priced() -> None:
    positions = made(13, [40] * 6, contexts=[300] * 6)
    samples = [VerifySample(t, c, 1, (0.01 + 1e-5 * t + 1e-6 * c,)) for t in (1, 64) for c in (256, 512, 1024)]
    cost = ddsim.fit_cost(ddsim.Profile(samples), "table")
    with pytest.warns(ExtrapolationWarning, match="batch 16 is outside the measured 1"):
        result = simulate(positions, cost, ["DDTree:12"], batch=16, bootstrap=0)
    table = result.table().set_index("policy")
    # 15 further requests of about 340 tokens read 15 · 340 · 1 µs
    want = 0.01 + 1e-5 * 16 + 1e-6 * 16 * 352
    assert table["tpot_mean"]["AR"] == pytest.approx(want, rel=0.05)
    assert (
        table["budget_mean"]["DDTree(12)"] > 5
    )  # 16 · 13 tokens lie past the 64 measured, and are priced all the same


def test_more_slots_than_positions() -> None:
    result = quiet(made(1, [20, 20]), COST, ["LongRun", Share(LongRun()), "BestFixed"], batch=50, bootstrap=0)
    assert (result.table()["tokens_per_second"] > 0).all()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"batch": 0}, "batch: must be whole numbers"),
        ({"batch": (1, True)}, "batch: must be whole numbers"),
        ({"batch": ()}, "batch: must be whole numbers"),
        ({"bootstrap": -1}, "bootstrap: must be at least 0, is -1"),
        ({"requests": 0}, "requests: must be at least 1, is 0"),
        ({"policies": [Hindsight()]}, "Hindsight"),
        ({"policies": ["RoundRatio", "RoundRatio"]}, "two policies are called 'RoundRatio'"),
        ({"policies": ["Nonsense"]}, "unknown policy"),
    ],
)
def test_bad_options_get_one_line(named: dict[str, Any], words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        with pytest.raises(DdsimError, match=words) as error:
            simulate(made(1, [20, 20]), COST, **named)
    assert "\n" not in str(error.value)


def test_policies_choose_for_one_request_too() -> None:
    positions = made(15, [5])
    table = table_of(np.linspace(1.0, 2.0, 13), 1, 12)
    costs = _serving._shares(positions, table)
    alone = RoundRatio().choose(positions.gains, costs)  # type: ignore[arg-type]
    for policy in (Share(RoundRatio()), Uniform(RoundRatio()), FairRatio()):
        assert policy.choose(positions.gains, costs).tolist() == alone.tolist()  # type: ignore[arg-type]
        json.dumps(policy.to_json())


def test_repr_and_single_runs() -> None:
    result = quiet(made(16, [20, 1, 20]), COST, ["RoundRatio"], batch=2, bootstrap=0)
    assert repr(result).startswith(
        "Best at 2 requests: no draft, 200 tokens/s.\nWarning: The trace holds 2 prompts, too few"
    )
    assert "\n\n2 requests together\n" in repr(result)
    table = result.table()
    assert table["speedup_low"].isna().all() and "±" not in str(result)
    assert json.loads(json.dumps(result.to_json()))["table"][1]["speedup_low"] is None


def test_nothing_to_decode() -> None:
    with pytest.raises(DdsimError, match="nothing to decode"):
        simulate(made(1, [1, 1]), COST)


# maps


def test_batch_map() -> None:
    positions = made(14, [60] * 10, spread=2)
    frame = batch_map(positions, COST, batch=(1, 4, 16), contexts=(64, 640))
    assert frame[["batch", "context"]].values.tolist() == [[b, c] for b in (1, 4, 16) for c in (64, 640)]
    for name in ("uniform", "share", "forest"):
        assert (frame["forest"] >= frame[name] * (1 - 1e-6)).all()
        np.testing.assert_allclose(frame[f"gain_{name}"], frame[name] / frame["fixed"] - 1)
    assert (frame["uniform"] >= frame["fixed"] * (1 - 1e-6)).all()
    smooth = CostModel.from_table([1, 300], [0.010, 0.040])
    assert batch_map(positions, smooth, batch=(1, 4, 16), contexts=(64,))["width"].is_monotonic_decreasing
    assert (frame["ar"] <= frame["batch"] / 0.010 + 1e-9).all()
    assert frame["context"][0] % CONTEXT_STEP == 0
    with pytest.raises(DdsimError, match="contexts"):
        batch_map(positions, COST, contexts=())
    with pytest.raises(DdsimError, match="needs as many positions"):
        batch_map(positions, COST, batch=4_000)


# what wasn't measured


def measured_at(batches: tuple[int, ...], contexts: tuple[int, ...] = (64, 512), last: int = 256) -> CostModel:
    verify = [
        VerifySample(t, c, b, (0.01 + 1e-8 * c * b + 2e-5 * max(0, t - 40),))
        for b in batches
        for c in contexts
        for t in (b, 40, last)
        if t >= b
    ]
    draft = [DraftSample(c, b, (0.001 + 1e-5 * b,)) for b in batches for c in contexts]
    return fit_cost(Profile(verify, draft), "table")


def test_default_grids_stay_within_what_was_measured() -> None:
    positions = made(14, [40] * 10)
    frame = batch_map(positions, measured_at((1, 6)))
    assert sorted(frame["batch"].unique()) == [1, 2, 4] and sorted(frame["context"].unique()) == [256, 512]
    assert not frame["extrapolated"].any()
    assert set(batch_map(positions, measured_at((3,), (64, 128)))["batch"]) == {3}
    cost = measured_at((1, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = simulate(positions, cost, ["RoundRatio"], bootstrap=0).table()
    assert table["batch"].unique().tolist() == [1, 8] and not table["extrapolated"].any()
    free = simulate(positions, COST, ["RoundRatio"], bootstrap=0).table()  # the same at every batch
    assert free["batch"].unique().tolist() == [1, 8, 32]


def test_cells_beyond_are_marked_and_warned_of_once() -> None:
    positions = made(14, [40] * 10)
    cost = measured_at((1, 6))
    with pytest.warns(ExtrapolationWarning) as caught:
        frame = batch_map(positions, cost, batch=(1, 6, 8, 16), contexts=(64, 512, 1024))
    assert len(caught) == 1 and caught[0].filename == __file__
    text = str(caught[0].message)
    assert text == (
        "cost extrapolated: context 1024 is outside the measured 64–512; batch 8–16 is outside the measured 1–6"
    )
    want = [[b, c] for b in (1, 6, 8, 16) for c in (64, 512, 1024) if b > 6 or c > 512]
    assert frame.loc[frame["extrapolated"], ["batch", "context"]].values.tolist() == want


def test_rows_beyond_are_marked_and_warned_of_once() -> None:
    positions = made(14, [40] * 10, budget=30)
    cost = measured_at((1, 6), last=100)
    with pytest.warns(ExtrapolationWarning) as caught:
        result = simulate(positions, cost, ["DDTree:8", "DDTree:24", "RoundRatio"], batch=(1, 4, 12), bootstrap=0)
    assert len(caught) == 1 and "batch 12 is outside the measured 1–6" in str(caught[0].message)
    table = result.table()
    marked = table[table["extrapolated"]]
    # four trees of 24 nodes and their roots are at most the measured 100 tokens; twelve requests weren't measured
    assert marked["batch"].unique().tolist() == [12] and len(marked) == 4
    past = measured_at((1, 6), last=45)
    with pytest.warns(ExtrapolationWarning, match="tokens 46–100 is outside the measured 1–45"):
        table = simulate(positions, past, ["DDTree:8", "DDTree:24", "RoundRatio"], batch=4, bootstrap=0).table()
    assert table.loc[table["extrapolated"], "policy"].tolist() == ["DDTree(24)"]
    assert "DDTree(24) *" in str(result) and str(result).count("* costs extrapolated") == 1
    assert any(row["extrapolated"] for row in result.to_json()["table"])


def test_rules_choose_within_what_was_measured_at_their_batch() -> None:
    """A batch that was measured to fewer tokens than another is limited by its own."""
    verify = [VerifySample(t, 512, b, (0.01 + 1e-7 * t,)) for b, last in ((1, 8), (8, 256)) for t in (b, last)]
    cost = fit_cost(Profile([*verify, VerifySample(8, 512, 8, (0.01,))]), "table")
    assert cost.measured_tokens(512, 1) == (1, 8) and cost.measured_tokens(512, 8) == (8, 256)
    assert joint_table(cost, (512, 512), 1, 30, 3).limit == 7


def test_best_widths_by_what_was_accepted() -> None:
    """Against rounds counted one by one and costs asked for one by one."""
    positions = positions_of(made_trace(8, prompts=4, length=30, sharper=0.6, max_budget=24))
    cost = CostModel.from_table([1, 16, 33, 200], [0.010, 0.0104, 0.0115, 0.05], draft_seconds=0.001)
    table = best_widths(positions, cost, batch=(1, 3, 7), contexts=(64, 640)).set_index(["batch", "context"])
    costs = _table.CostTable.of_curve(np.ones(25), len(positions))
    counts = [sum(d["rounds"] for d in naive_budget.walk(positions, costs, [n] * len(positions))) for n in range(25)]
    for (batch, context), row in table.iterrows():
        rates = {
            n: batch * (positions.tokens.sum() / counts[n])
            / (cost.draft_seconds(batch=batch, context=context) + cost.verify_seconds(batch * (n + 1), context, batch))
            for n in range(25)
            if batch * (n + 1) <= 200
        }  # fmt: skip
        best = max(rates, key=rates.__getitem__)
        assert row["width"] == best and row["tokens_per_second"] == pytest.approx(rates[best])
        assert row["acceptance_length"] == pytest.approx(positions.tokens.sum() / counts[best])
    # a drafter that believes in itself too little or too much doesn't change what it gets accepted
    sure = dataclasses.replace(positions, gains=np.sqrt(np.asarray(positions.gains)))
    assert best_widths(sure, cost, batch=3, contexts=(64,))["width"].item() == table.loc[(3, 64), "width"]
    assert batch_map(sure, cost, batch=3, contexts=(64,))["width"].item() != table.loc[(3, 64), "width"]


def test_an_interval_holds_its_value() -> None:
    assert _interval(np.array([1.0, 2.0, 3.0]))[:2] == (1.0, 1.0)
    assert _interval(np.array([4.0, 2.0, 3.0]))[2] == 4.0
    value, low, high = _interval(np.array([2.0, *np.linspace(0.0, 4.0, 401)]))
    assert (value, round(low, 9), round(high, 9)) == (2.0, 0.1, 3.9)
    assert np.isnan(_interval(np.array([1.0]))[1:]).all() and np.isnan(_interval(np.array([np.nan, np.nan, 1.0]))).all()
