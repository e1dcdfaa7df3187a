"""A further bucket: what a plan says that it would bring is what a replay at its costs says."""

from __future__ import annotations

import numpy as np
import pytest

import ddsim
from ddsim.cost.model import CostModel
from ddsim.replay.bucket import on_lines
from ddsim.replay.plan import plan
from tests import made_up

BUCKETS, SECONDS = (1, 4, 16, 64), (1.0, 1.0, 1.1, 3.0)


def costs(*more: tuple[int, float], buckets: bool = True) -> CostModel:
    sizes = sorted([*zip(BUCKETS, SECONDS, strict=True), *more])
    tokens, seconds = (list(column) for column in zip(*sizes, strict=True))
    return CostModel.from_table(tokens, seconds, 0.1, buckets=tokens if buckets else None)


@pytest.fixture(scope="module")
def trace() -> ddsim.Trace:
    return made_up.trace(sequences=12, length=60, max_budget=40, seed=3)


def test_lines_join_the_buckets() -> None:
    rng = np.random.default_rng(0)
    for buckets in ((1, 4, 9, 16), (3, 8), (2, 30), (50,), (1, 2, 3)):
        own = {b: float(rng.uniform(1, 2)) for b in buckets}
        tokens = np.arange(1, min(13, buckets[-1]) + 1)
        curve = np.array([[own[min(b for b in buckets if b >= t)] for t in tokens]] * 2)
        found = on_lines(curve, np.array(buckets))
        for i, t in enumerate(tokens.tolist()):
            below, above = [b for b in buckets if b < t], [b for b in buckets if b >= t]
            wanted = own[above[0]]
            if below:
                wanted = own[below[-1]] + (wanted - own[below[-1]]) * (t - below[-1]) / (above[0] - below[-1])
            assert found[:, i] == pytest.approx(wanted)


def test_the_bucket_gains_what_a_replay_with_it_gains(trace: ddsim.Trace) -> None:
    advice = plan(trace, costs(), bootstrap=50)
    bucket = advice.bucket
    assert bucket is not None and bucket.tokens in (8, 24, 32, 40)
    for tokens in (8, 24, 32, 40):
        line = float(np.interp(tokens, BUCKETS, SECONDS))
        there = ddsim.replay(trace, costs((tokens, line)), [f"DDTree:{tokens - 1}"], bootstrap=50).table()
        now = ddsim.replay(trace, costs(), [f"DDTree:{advice.best_budget}"], bootstrap=50).table()
        gain = float(there["tokens_per_second"].iloc[0] / now["tokens_per_second"].iloc[0] - 1)
        assert gain <= bucket.gain[0] + 1e-9
        if tokens == bucket.tokens:
            assert bucket.gain[0] == pytest.approx(gain, rel=1e-9) and bucket.seconds == pytest.approx(line)
            assert bucket.gain[1] <= gain <= bucket.gain[2]
            assert (
                advice.to_json()["bucket"]["between"] == [bucket.below, bucket.above]
                and bucket.below < tokens < bucket.above
            )


def test_a_plan_says_what_it_would_bring(trace: ddsim.Trace) -> None:
    dear = CostModel.from_table([1, 4, 64], [1.0, 1.0, 1.4], 0.1, buckets=[1, 4, 64])
    advice = plan(trace, dear, bootstrap=50)
    assert advice.bucket is not None and advice.bucket.gain[0] > 0.001
    tokens = advice.bucket.tokens
    assert advice.details[-1] == str(advice.bucket)
    assert f"A bucket at {tokens} tokens would let {tokens - 1} nodes cost " in advice.details[-1]
    assert "ms (assumed: on the line between 4 and 64 tokens): +" in advice.details[-1]
    flat = CostModel.from_table([1, 64], [1.0, 1.0], 0.1, buckets=[1, 64])
    assert plan(trace, flat, bootstrap=50).details[-1].startswith("No further bucket would bring as much as 0.1 %")


def test_without_room_there_is_no_bucket(trace: ddsim.Trace) -> None:
    assert plan(trace, costs(buckets=False), bootstrap=50).bucket is None
    full = CostModel.from_table(
        [1, 8, 16, 24, 32, 40, 48], [1.0 + i / 9 for i in range(7)], buckets=[1, 8, 16, 24, 32, 40, 48]
    )
    advice = plan(trace, full, bootstrap=50)
    assert advice.bucket is None and advice.to_json()["bucket"] is None and "bucket" not in advice.details[-1]
