"""Why a plan says what it says, how few prompts it admits to, and the figures that stand beside a workload's budget."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ddsim
from ddsim.cost.model import CostModel
from ddsim.policy.rules import DDTree
from ddsim.replay.bootstrap import ENOUGH, few
from ddsim.replay.plan import Plan, plan
from ddsim.replay.why import Why, why
from tests import made_up
from tests.made_up import made_trace

PADDED = CostModel.from_table([1, 4, 16, 64], [1.0, 1.0, 1.1, 3.0], 0.1, buckets=[1, 4, 16, 64])


@pytest.fixture(scope="module")
def trace() -> ddsim.Trace:
    return made_up.trace(sequences=ENOUGH + 2, length=60, max_budget=40, seed=3)


@pytest.fixture(scope="module")
def advice(trace: ddsim.Trace) -> Plan:
    return plan(trace, PADDED, bootstrap=100)


def rounds_of(trace: ddsim.Trace, cost: CostModel, nodes: int) -> tuple[float, float]:
    """Seconds and tokens of a round with a fixed budget, by a replay of it alone."""
    row = ddsim.replay(trace, cost, [f"DDTree:{nodes}"], bootstrap=1).table().iloc[0]
    return row["seconds"] / row["rounds"], row["acceptance_length"]


def test_a_plan_says_which_bucket_it_fills_and_what_one_more_node_costs(trace: ddsim.Trace, advice: Plan) -> None:
    found = advice.why
    assert found is not None and found.padded and found.nodes == advice.budget and found.bucket == 16
    here, beyond = rounds_of(trace, PADDED, advice.budget), rounds_of(trace, PADDED, 16)
    assert found.seconds == pytest.approx(here[0]) and found.beyond is not None
    assert found.beyond.seconds == pytest.approx(beyond[0] / here[0] - 1)
    assert found.beyond.tokens == pytest.approx(beyond[1] / here[1] - 1)
    last = rounds_of(trace, PADDED, 15)
    if advice.budget == 15:
        assert found.fills is None and str(found).startswith(
            "15 nodes and the root fill the 16-token bucket; one more node costs "
        )
    else:
        assert found.fills is not None and found.fills.nodes == 15 and found.fills.seconds == pytest.approx(0)
        assert found.fills.tokens == pytest.approx(last[1] / here[1] - 1)
        assert "are in the 16-token bucket: up to 15 nodes cost the same and bring" in str(found)
    assert advice.details[0] == str(found) and advice.to_json()["why"]["text"] == str(found)
    assert f"{100 * found.beyond.seconds:.0f} % more time a round" in str(found)


def test_a_plan_finds_the_step_of_a_curve_that_nothing_is_padded_to() -> None:
    seconds = np.concatenate([np.linspace(1.0, 1.01, 32), np.linspace(1.2, 1.21, 32)])
    lengths = 1 + np.log2(1 + np.arange(64)) / 3
    for nodes in range(64):
        found = why(nodes, seconds, lengths, None)
        assert (found.bucket == 32) == (nodes == 31) and not found.padded
    assert str(why(31, seconds, lengths, None)).startswith(
        "31 nodes and the root fill the step up to 32 tokens; one more node costs 19 %"
    )


def test_without_a_step_a_plan_says_what_twice_and_half_the_nodes_do(trace: ddsim.Trace) -> None:
    smooth = CostModel.from_table([1, 41], [1.0, 3.0], 0.1)
    found = plan(trace, smooth, bootstrap=50).why
    assert found is not None and found.bucket is None and found.beyond is None
    here = rounds_of(trace, smooth, found.nodes)
    for change, nodes in ((found.more, min(2 * found.nodes, 40)), (found.less, found.nodes // 2)):
        assert change is not None and change.nodes == nodes
        there = rounds_of(trace, smooth, nodes)
        assert change.seconds == pytest.approx(there[0] / here[0] - 1) and change.tokens == pytest.approx(
            there[1] / here[1] - 1
        )
        assert f"{nodes} nodes would " in str(found)


def test_where_costs_end_nothing_is_said_of_more() -> None:
    seconds, lengths = np.array([1.0, 1.0, 1.0, np.inf]), np.array([1.0, 1.4, 1.6, 1.7])
    assert str(why(2, seconds, lengths, None)).startswith(
        "No step of the cost curve ends at 2 nodes, and larger trees can't be judged: 1 node would"
    )
    padded = why(2, seconds, lengths, (1, 3))
    assert (
        isinstance(padded, Why)
        and str(padded) == "2 nodes and the root fill the 3-token bucket, the last that was measured."
    )


def test_a_chain_and_no_draft_are_held_beside_the_best_tree() -> None:
    trace = made_trace(6, workloads=(("hard", -4.0),), prompts=12)
    advice = plan(trace, CostModel.from_table([1, 65], [0.010, 0.650], draft_seconds=0.02), bootstrap=50)
    assert advice.choice == "AR"
    table = advice.table().set_index("policy")
    tree, alone = table.loc["BestFixed"], table.loc["AR"]
    more = tree["seconds"] / tree["rounds"] / (alone["seconds"] / alone["rounds"]) - 1
    assert f"{100 * more:.0f} % more time" in advice.details[0] and advice.details[0].startswith(
        "A round of the best tree, "
    )


def test_a_workload_has_its_own_budget_chain_and_context(trace: ddsim.Trace, advice: Plan) -> None:
    every = {name: list(trace.select(name).blocks()) for name in trace.workloads}
    for row in advice.by_workload.to_dict("records"):
        part = trace.select(row["workload"])
        alone = plan(part, PADDED, bootstrap=100)
        assert row["best_budget"] == alone.best_budget and row["prompts"] == len(part.sequences) == alone.result.prompts
        assert alone.chains is not None and row["best_k"] == alone.chains.k
        assert row["budget"] <= row["best_budget"] and any(a <= row["budget"] <= b for a, b in row["near_best"])
        lengths = [block.starts[1:] - block.starts[:-1] for block in every[row["workload"]]]
        spans = [(s.prompt_tokens, n) for s, n in zip(part.sequences, np.concatenate(lengths).tolist(), strict=True)]
        context = sum(sum(range(first, first + n)) for first, n in spans) / sum(n for _, n in spans)
        assert row["context"] == pytest.approx(context)


def test_chains_name_all_runs_within_a_hundredth(advice: Plan) -> None:
    chains = advice.chains
    assert chains is not None
    rates = chains.curve.set_index("k")["tokens_per_second"]
    good = [k for k in rates.index if rates[k] >= 0.99 * rates.max()]
    assert [k for a, b in chains.near_best for k in range(a, b + 1)] == good
    assert chains.to_json()["near_best"] == [list(run) for run in chains.near_best]


def test_too_few_prompts_are_a_warning_and_not_a_confidence(trace: ddsim.Trace, advice: Plan) -> None:
    small = plan(made_up.trace(sequences=2, length=60, max_budget=40, seed=3), PADDED, bootstrap=50)
    said = str(small)
    assert said.splitlines()[1].startswith("Warning: The trace holds 2 prompts, too few for intervals")
    assert said.count("too few") == 1 and small.notes[0] == few(2)
    for word in ("significant", "beyond noise", "interval c", " to +", "95 %"):
        assert word not in said.replace("speed-up  95 %", "").replace("95 %  hindsight", ""), (word, said)
    document = json.loads(json.dumps(small.to_json(), allow_nan=False))
    assert document["prompts"] == 2 and not document["enough_prompts"]
    assert advice.to_json()["enough_prompts"] and "Warning" not in str(advice) and few(ENOUGH) == ""
    assert isinstance(small.policy, DDTree) or small.choice


def test_answers_to_one_prompt_count_once() -> None:
    found = ddsim.replay(
        made_trace(0, prompts=10, length=20, temperatures=(0.0, 1.0)),
        PADDED.__class__.from_table([1, 65], [1.0, 2.0]),
        ["AR"],
        bootstrap=5,
    )
    assert (
        found.prompts == 20
        and set(found.table()["prompts"]) == {20}
        and set(found.table("workload")["prompts"]) == {10}
    )
