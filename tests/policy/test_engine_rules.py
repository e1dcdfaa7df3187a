"""Rules that engines have, against plain twins written from what the engines document."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cost.model import CostModel, ExtrapolationWarning
from ddsim.errors import DdsimError
from ddsim.policy import memory
from ddsim.policy.batch import FairRatio, Share, Uniform
from ddsim.policy.contract import Policy, decision_of
from ddsim.policy.engine_rules import SLOTS, AdaptiveSteps, AdaptiveVerification, DSpark, OnChain
from ddsim.policy.joint import decided_on, joint_table
from ddsim.policy.parse import parse_policy
from ddsim.policy.rules import BestChain, BestSchedule, CaDDTree, LongRun, RoundRatio, Schedule
from ddsim.replay import serving as _serving
from ddsim.replay.replay import replay, replay_rounds
from ddsim.replay.serving import simulate
from ddsim.trace.rounds import Positions, chain_positions
from tests.made_up import made_trace
from tests.naive import engine_rules as naive
from tests.naive import schedule as naive_schedule
from tests.naive import serving as naive_serving
from tests.strategies import run

COST = CostModel.from_table(
    [1, 4, 5, 12, 24, 60, 90], [0.010, 0.0101, 0.014, 0.015, 0.024, 0.060, 0.1], draft_seconds=0.002
)
HORIZON, WIDTH = 4, 9  # of chains and of the trees that hold them


def made(seed: int, lengths: list[int]) -> Positions:
    """Positions whose chains are accepted about as often as they say, some surely, some hardly."""
    rng = np.random.default_rng(seed)
    count = int(np.sum(lengths))
    each = rng.random((count, HORIZON)) ** rng.uniform(0.02, 3, (count, 1))
    alive = np.cumprod(each, axis=1)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    left = np.repeat(starts[1:], lengths) - 1 - np.arange(count)  # tokens to the end of the text
    chain = np.minimum((rng.random((count, HORIZON)) < each).cumprod(axis=1).sum(axis=1), left)
    return Positions(
        -np.sort(-rng.random((count, WIDTH)).astype(np.float32), axis=1),
        np.cumsum(rng.integers(1, 4, (count, HORIZON)), axis=1).astype(np.int32),
        np.full(count, WIDTH, np.int32),
        chain.astype(np.uint8),
        alive.cumsum(axis=1).astype(np.float32),
        np.concatenate([10 + np.arange(n) for n in lengths]).astype(np.int32),
        starts,
        tuple(f"p{i}" for i in range(len(lengths))),
        ("a",) * len(lengths),
        np.zeros(len(lengths), np.float32),
        "made",
    )


def quiet(*arguments: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        return simulate(*arguments, **named)


class Quick(AdaptiveVerification):
    """Adaptive verification that refits every fourth round, so that short texts see it settle and go on."""

    def __init__(self) -> None:
        super().__init__(cold=True)
        self.name = "quick"

    def _start(self) -> Any:
        return memory.lagged_start(1, estimates=True, refit=4, warm=2)


def twin_of(policy: Policy) -> Any:
    """A plain twin of a rule."""
    if isinstance(policy, Quick):
        return naive.Budgeted(1, naive.Estimator(HORIZON, 4, 2))
    if isinstance(policy, AdaptiveVerification):
        return naive.Budgeted(1, naive.Estimator(HORIZON) if policy.estimate else None)
    if isinstance(policy, DSpark):
        return naive.Budgeted(2, None, 1e-6)
    assert isinstance(policy, AdaptiveSteps)
    own = naive_schedule.Adaptive(config_of(policy), policy.num_steps)
    return naive.Stepped(own.steps, own.update, HORIZON)


def config_of(policy: AdaptiveSteps) -> dict[str, Any]:
    """What SGLang's configuration file would say."""
    keys = ("ema_alpha", "warmup_batches", "update_interval", "up_hysteresis", "down_hysteresis")
    if policy.slots is not None:
        return {key: getattr(policy, key) for key in keys} | {
            str(n): {"candidate_steps": ks} for n, ks in policy.slots.items()
        }
    return {str(n): {"candidate_steps": ks, "down_hysteresis": down} for n, (ks, down) in SLOTS.items()}


RULES = [
    AdaptiveVerification(cold=True),
    AdaptiveVerification(estimate=False),
    Quick(),
    DSpark(),
    AdaptiveSteps(),
    AdaptiveSteps({1: [0, 1, 2, 4], 3: [0, 2]}, num_steps=2, warmup_batches=1, update_interval=2, ema_alpha=0.5),
    AdaptiveSteps(
        {1: [1, 3, 9]}, num_steps=9, warmup_batches=0, update_interval=1, up_hysteresis=-0.5, down_hysteresis=0.2
    ),
]


@pytest.mark.parametrize("cases", [15, pytest.param(3000, marks=pytest.mark.slow)])
def test_closed_loops_against_plain_ones(cases: int) -> None:
    lengths = st.lists(st.integers(2, 25), min_size=1, max_size=7)
    run(cases, check_closed_loops, st.integers(0, 2**32), lengths, st.integers(1, 5), st.integers(1, 12))


def check_closed_loops(seed: int, lengths: list[int], batch: int, requests: int) -> None:
    positions = made(seed, lengths)
    result = quiet(positions, COST, RULES, batch=batch, requests=requests, bootstrap=0)
    whole = _serving._in_memory(positions, None)
    queues = _serving._queues(whole, requests, 0, 0)
    table = joint_table(COST, (10, 34), batch, WIDTH, HORIZON)
    chains: Any = chain_positions(whole).gains
    for policy in RULES:
        told, own = result.runs[batch, policy.name], decided_on(policy, COST, table, WIDTH)
        alone = _serving._loop(policy, whole, batch, {batch: own}.__getitem__, queues[1], False)
        for r in (0, 1):
            want = naive.closed_loop(
                whole, chains, queues[r].tolist(), batch, own.curve[0], table.seconds[0], table.ar_seconds[0], twin_of(policy)
            )  # fmt: skip
            got = told.tokens[r], told.rounds[r], told.nodes[r]
            assert got == want[1:], policy.name
            assert told.seconds[r] == pytest.approx(want[0])
        assert alone[:4] == pytest.approx(want), policy.name  # asked round by round, as where a batch drains


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_an_estimate_is_refitted_by_one_damped_newton_step(seed: int, fits: int) -> None:
    rng = np.random.default_rng(seed)
    gains: Any = chain_positions(made(seed, [400])).gains
    state, twin = memory.lagged_start(1, estimates=True, refit=10), naive.Estimator(HORIZON, 10)
    odds = np.log(memory.SURE / (1 - memory.SURE))
    for _ in range(10 * fits):
        where = rng.integers(0, 400, 6)
        budgets, left = rng.integers(0, HORIZON + 1, 6).astype(np.int32), rng.integers(1, 9, 6)
        accepted = np.minimum(rng.integers(0, HORIZON + 1, 6), np.minimum(budgets, left))
        each = gains[where] / np.column_stack([np.ones(6, np.float32), gains[where][:, :-1]])
        feature = np.clip(np.log(each / (1 - np.minimum(each, 1 - 1e-7)).astype(float)), odds, -odds)
        memory.fit(state, where, left, budgets, accepted, gains)
        twin.learn([(feature[b].tolist(), int(min(budgets[b], left[b])), int(accepted[b])) for b in range(6)])
    assert state[memory.REFITS] == fits
    found = [state[memory.SLOPE], *state[memory.BIAS : memory.BIAS + HORIZON]]
    np.testing.assert_allclose(found, twin.coefficients, rtol=1e-4, atol=1e-5)
    assert found[0] >= 0


def test_an_estimate_learns_what_is_accepted() -> None:
    """Drafts that are accepted as often as they say: a slope near 1 and biases near 0."""
    positions = made(1, [4000])
    policy = AdaptiveVerification()
    ready = policy.prepare(positions, _serving._shares(positions, joint_table(COST, (10, 4009), 8, WIDTH, HORIZON)))
    state = ready._state
    assert state[memory.REFITS] >= 10 and state[memory.REFIT] == 100
    assert 0.8 < state[memory.SLOPE] < 1.2 and np.abs(state[memory.BIAS : memory.BIAS + 3]).max() < 0.3
    assert policy._state[memory.REFITS] == 0  # a copy is ready, the policy is as it was


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_steps_against_the_plain_controller(data: Any) -> None:
    policy = data.draw(st.sampled_from([p for p in RULES if isinstance(p, AdaptiveSteps)]))
    state, twin = policy.decision().start, naive_schedule.Adaptive(config_of(policy), policy.num_steps)
    for batch in data.draw(st.lists(st.sampled_from([1, 2, 3, 8, 9, 32, 70]), max_size=60)):
        assert memory.steps(state, batch) == twin.steps(batch)
        accepted = (
            data.draw(st.lists(st.integers(0, 7), min_size=batch, max_size=batch)) if batch < 4 else [batch % 5] * batch
        )
        memory.tried(state, np.array(accepted))
        twin.update(accepted)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(2, 15), min_size=1, max_size=7), st.integers(1, 4))
def test_rules_for_trees_over_chains(seed: int, lengths: list[int], batch: int) -> None:
    positions = made(seed, lengths)
    inner = [RoundRatio(), LongRun(80.0), CaDDTree(), FairRatio(), Share(RoundRatio()), Uniform(RoundRatio())]
    policies = [OnChain(policy) for policy in inner]
    result = quiet(positions, COST, policies, batch=batch, requests=6, bootstrap=0)
    whole = _serving._in_memory(positions, None)
    queue = _serving._queues(whole, 6, 0, 0)[0].tolist()
    table = joint_table(COST, (10, 24), batch, WIDTH, HORIZON)
    for policy in policies:
        own = decided_on(policy, COST, table, WIDTH)

        def choose(gains: Any, policy: Policy = policy, own: Any = own) -> Any:
            return policy.choose_batch(np.ascontiguousarray(gains), own.curve[0]).tolist()

        run, padded = result.runs[batch, policy.name], policy.rectangular
        want = naive_serving.closed_loop(
            chain_positions(whole), queue, batch, table.seconds[0], table.ar_seconds[0], choose, padded
        )
        assert (run.tokens[0], run.rounds[0], run.nodes[0]) == want[1:4]
        assert run.seconds[0] == pytest.approx(want[0])


def test_alone_a_rule_does_in_replay_what_it_does_in_a_batch_of_one() -> None:
    trace = made_trace()
    names = ["OnChain:RoundRatio", "AdaptiveVerification(estimate=False)", "DSpark", "AR"]
    served = quiet(trace, COST, names, batch=1, bootstrap=0).table().set_index("policy")
    replayed = replay(trace, COST, names, bootstrap=1).table().set_index("policy")
    for name in served.index:
        assert 8 * replayed["rounds"][name] == served["rounds"][name]
        assert served["tokens_per_second"][name] == pytest.approx(replayed["tokens_per_second"][name])
    rounds = replay_rounds(trace, COST, "DSpark")
    assert rounds["budget"].max() <= trace.horizon and (rounds["accepted"] <= rounds["budget"]).all()
    table = replay(trace, COST, ["AdaptiveVerification", "AdaptiveSteps", "DFlash"], bootstrap=1).table()
    assert np.isfinite(table["tokens_per_second"]).all()


def test_a_server_that_forgets_nobody_is_the_same_for_any_threads_and_order_of_policies() -> None:
    positions = made(3, [30, 20, 25, 9])
    one = quiet(positions, COST, RULES, batch=[1, 3], bootstrap=2)
    other = quiet(positions, COST, RULES[::-1], batch=[3, 1], bootstrap=2)
    for key, told in one.runs.items():
        assert all(
            np.array_equal(x, y)
            for x, y in zip(dataclasses.astuple(told), dataclasses.astuple(other.runs[key]), strict=True)
        )


def test_a_schedule_that_is_best_for_every_batch() -> None:
    positions = made(5, [40, 30, 20])
    steep = CostModel.from_table([1, 2, 6, 60], [0.010, 0.0101, 0.02, 0.6])
    table = quiet(positions, steep, ["BestSchedule", "BestChain", "AR"], batch=[1, 6], bootstrap=0).table()
    by = table.set_index(["batch", "policy"])["tokens_per_second"]
    for batch in (1, 6):
        assert by[batch, "BestSchedule"] == max(by[batch, "BestChain"], by[batch, "AR"])
    assert by[6, "AR"] > by[6, "BestChain"] and by[1, "BestChain"] > by[1, "AR"]
    with pytest.raises(DdsimError, match="for requests that are decoded together"):
        parse_policy("BestSchedule")
    assert BestSchedule().needs_trace and isinstance(parse_policy("bestschedule", joint=True), BestSchedule)


def test_schedules_look_up_the_requests_of_a_round() -> None:
    ranges = [(1, 2, 3), (5, 9, 1), (12, 12, 0)]
    start = memory.schedule_start(Schedule(ranges).ranges)
    assert [memory.scheduled(start, n) for n in range(1, 20)] == [
        naive_schedule.tokens(ranges, n, 99) for n in range(1, 20)
    ]


def test_names_and_settings() -> None:
    for text, said in {
        "adaptiveverification": "AdaptiveVerification()",
        "AdaptiveVerification(estimate=False, context=2048)": "AdaptiveVerification(estimate=False, context=2048)",
        "dspark": "DSpark()",
        "AdaptiveSteps": "AdaptiveSteps()",
        "AdaptiveSteps(slots={8: [3, 0, 1], 1: [5, 3]}, num_steps=5)": "AdaptiveSteps(slots={1: [3, 5], 8: [0, 1, 3]}, num_steps=5)",
        "OnChain:RoundRatio": "OnChain(RoundRatio())",
        "RoundRatio on chains": "OnChain(RoundRatio())",
        "OnChain:LongRun:500": "OnChain(LongRun(price=500))",
    }.items():
        assert repr(parse_policy(text)) == said
    for text in ("OnChain:FairRatio", "OnChain:Share:RoundRatio", "RoundRatio uniform on chains"):
        assert parse_policy(text, joint=True).chains
    assert decision_of(OnChain(BestChain())) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("OnChain:DDTree:8", "takes CaDDTree"),
        ("OnChain:FairRatio", "decoded together"),
        ("OnChain", "needs a rule"),
        ("OnChain:DSpark", "not DSpark"),
        ("Share:DSpark", "decoded together"),
        ("AdaptiveVerification(context=-1)", "0 or more"),
        ("AdaptiveVerification(lag=2)", "takes estimate, context"),
        ("AdaptiveSteps(slots={})", "must be Ks by the number"),
        ("AdaptiveSteps(slots=[1,2])", "must be Ks by the number"),
        ("AdaptiveSteps(slots={0: [1]})", "1 request or more"),
        ("AdaptiveSteps(slots={1: [-1]})", "of 0 to 255"),
        ("AdaptiveSteps(slots={1: []})", "list of whole numbers"),
        ("AdaptiveSteps(slots={1: 3})", "list of whole numbers"),
        ("AdaptiveSteps(update_interval=0)", "at least 1"),
        ("AdaptiveSteps(ema_alpha=2)", "from 0 to 1"),
        ("AdaptiveSteps(up_hysteresis=nan)", "hystereses finite"),
    ],
)
def test_settings_that_make_no_sense_get_one_line(text: str, said: str) -> None:
    with pytest.raises(DdsimError, match=said) as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


def test_what_only_kernels_can_tell_is_not_asked_of_the_object() -> None:
    with pytest.raises(DdsimError, match="looks back"):
        DSpark().choose_batch(np.ones((2, 2), np.float32), np.ones(5))
    with pytest.raises(DdsimError, match="looks back"):
        AdaptiveVerification().choose(np.ones((1, 2), np.float32), None)  # type: ignore[arg-type]
