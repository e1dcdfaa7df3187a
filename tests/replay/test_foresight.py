"""What hindsight gains by luck: against explicit trees along truths drawn one by one."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from ddsim.cost.model import CostModel
from ddsim.cost.table import cost_table
from ddsim.errors import DdsimError
from ddsim.replay.foresight import Foresight, without_foresight
from ddsim.replay.plan import plan
from ddsim.replay.replay import replay
from ddsim.trace.cache import positions_of
from ddsim.trace.trace import Trace
from ddsim.tree import kernels as _kernels
from tests.made_up import made_trace
from tests.naive import budget as naive_budget
from tests.naive import tree as naive_tree

COST = CostModel.from_table([1, 4, 13], [0.010, 0.0104, 0.016], draft_seconds=0.001)


def small(seed: int) -> Trace:
    return made_trace(
        seed, workloads=(("a", 0.5),), prompts=2, length=7, horizon=3, candidates=4, max_budget=12, context0=10
    )


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_those_of_explicit_trees(seed: int) -> None:
    trace = small(seed)
    found = without_foresight(trace, COST, replicates=2, seed=seed)
    rng = np.random.default_rng(seed)
    fixed, hindsight, ratio = np.zeros(13), 0.0, 0.0
    recorded = positions_of(trace)
    costs = cost_table(COST, recorded.context, 12)
    (block,) = trace.blocks()
    for _ in range(2):
        numbers = iter(rng.random(len(block) * 3).tolist())
        ranks = []
        for p, end in enumerate(np.repeat(block.starts[1:], np.diff(block.starts)).tolist()):
            rows = [row[1].tolist() for row in block.rows(p)]
            truth: tuple[int, ...] = ()
            ends = False
            for d, row in enumerate(rows, 1):
                number = next(numbers)
                drawn = next((k for k in range(len(row)) if sum(map(math.exp, row[: k + 1])) > number), None)
                ends = ends or drawn is None or p + d >= end
                truth = truth if ends or drawn is None else (*truth, drawn)
            order = [node for _, node in naive_tree.best_first(rows, 12)]
            path = [truth[:d] for d in range(1, len(truth) + 1)]
            ranks.append([order.index(node) + 1 if node in order else _kernels.NO_RANK for node in path])
            ranks[-1] += [_kernels.NO_RANK] * (3 - len(path))
        chain = np.array([sum(r[d] < _kernels.NO_RANK for d in range(3)) for r in ranks], np.uint8)
        for p, row in enumerate(ranks):  # accepted by the chain: the leading depths whose node is all zeros
            rows = [r[1].tolist() for r in block.rows(p)]
            order = [node for _, node in naive_tree.best_first(rows, 12)]
            zeros = [order.index((0,) * d) + 1 if (0,) * d in order else None for d in (1, 2, 3)]
            chain[p] = next((d for d in range(3) if row[d] != zeros[d]), 3)
        texts = dataclasses.replace(recorded, ranks=np.array(ranks, np.int32), chain=chain)
        fixed += [sum(done["seconds"] for done in naive_budget.walk(texts, costs, [n] * len(block))) for n in range(13)]
        chosen = [
            naive_budget.choose(g, costs.seconds[r], "exhaustive") for g, r in zip(texts.gains, costs.row, strict=True)
        ]  # type: ignore[call-overload]
        ratio += sum(done["seconds"] for done in naive_budget.walk(texts, costs, chosen))
        hindsight += sum(naive_budget.least_seconds(texts, costs, s) for s in range(texts.sequences))
    assert found.best_fixed == pytest.approx(hindsight / fixed.min()) and fixed[found.budget] == pytest.approx(
        fixed.min()
    )
    assert found.round_ratio == pytest.approx(hindsight / ratio)


def test_truths_are_drawn_as_the_marginals_say() -> None:
    (block,) = made_trace(3, workloads=(("a", 0.5),), prompts=1, length=5, horizon=2, candidates=6).blocks()
    rng = np.random.default_rng(0)
    drawn = np.stack([block.proposal.drawn_paths(block.starts, rng) for _ in range(4000)])
    for p in range(len(block)):
        for d, row in enumerate(block.rows(p)):
            if p + d + 1 >= len(block):
                assert (drawn[:, p, d] == -1).all()
                continue
            seen = np.array([(drawn[:, p, d] == k).mean() for k in range(len(row[1]))])
            assert seen == pytest.approx(np.exp(row[1]), abs=0.04)


def test_the_recorded_text_of_a_calibrated_drafter_is_such_a_draw() -> None:
    """Where marginals are right the recorded distance to hindsight is the drawn one, at a horizon of 1, where no two rounds
    could have seen the same token.
    """
    trace = made_trace(4, prompts=40, length=80, horizon=1, max_budget=24)
    cost = CostModel.from_table([1, 4, 9, 25], [0.010, 0.0104, 0.0115, 0.018], draft_seconds=0.001)
    found = without_foresight(trace, cost, positions=10_000)
    share = replay(trace, cost, ["BestFixed"], bootstrap=1).table()["hindsight_share"][0]
    assert found.best_fixed == pytest.approx(share, abs=0.01) and found.chance(share) > 0.93
    few = without_foresight(trace, cost, positions=1000)
    assert few.positions <= 1000 and few.best_fixed == pytest.approx(found.best_fixed, abs=0.05)
    assert (
        without_foresight(trace, cost, positions=1000) == few != without_foresight(trace, cost, positions=1000, seed=1)
    )


def test_plan_says_how_much_of_hindsight_is_chance() -> None:
    trace = made_trace(4, prompts=8, length=60)
    cost = CostModel.from_table([1, 16, 33, 65], [0.010, 0.0104, 0.0115, 0.016], draft_seconds=0.001)
    advice = plan(trace, cost, bootstrap=50)
    said = advice.to_json()["hindsight"]
    assert said["share"] == pytest.approx(advice.judged()["hindsight_share"])
    assert said["distance_by_chance"] == min(1, (1 - said["share_without_foresight"]) / (1 - said["share"]))
    assert said["drawn"]["texts"] == "drawn from the drafter's own marginals"
    assert "of hindsight, which knows the text" in advice.details[-2] and "chance" in advice.details[-2]
    assert Foresight(0.7, 0.6, 1, 1, 1, 0).chance(1.0) == 1


def test_refusals() -> None:
    with pytest.raises(DdsimError, match="without_foresight: trace must be a Trace"):
        without_foresight("a path", COST)  # type: ignore[arg-type]
    with pytest.raises(DdsimError, match="no round"):
        without_foresight(made_trace(0, prompts=1, length=1), COST)
    assert [b - a for a, b in pairwise(small(0).blocks().__next__().starts)] == [7, 7]
