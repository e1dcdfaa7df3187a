"""Two profiles of one GPU and model recommend the same: noise between measurements doesn't flip the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ddsim
from ddsim.cost.model import CostModel
from ddsim.replay.plan import plan
from tests.made_up import made_trace

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_shipped_profiles_of_one_gpu_recommend_the_same() -> None:
    """Measured apart: one for batch 1, one for many batches. (By workload, on the recording that ships in the package.)"""
    trace = ddsim.open_trace(ROOT / "ddsim" / "data" / "humaneval")
    trace = trace.subset(range(0, len(trace.sequences), 6))
    names = ("qwen3-8b-cost-h100.json", "qwen3-8b-cost-h100-batches.json.gz")
    found = [
        plan(trace, ddsim.fit_cost(ddsim.read_profile(ROOT / "traces" / "profiles" / name), "steps"), bootstrap=200)
        for name in names
    ]
    assert found[0].choice == found[1].choice and found[0].budget == found[1].budget
    assert found[0].why is not None and found[1].why is not None and found[0].why.bucket == found[1].why.bucket


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_one_per_cent_in_a_padded_curve_flips_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = made_trace(4, prompts=12, length=40)
    sizes, seconds = [1, 8, 16, 32, 64], [1.0, 1.0, 1.02, 1.1, 1.6]
    noisy = [value * (1 + 0.005 * float(rng.uniform(-1, 1))) for value in seconds]
    choices = {
        plan(trace, CostModel.from_table(sizes, curve, 0.1, buckets=sizes), bootstrap=200).choice
        for curve in (seconds, sorted(noisy))
    }
    assert len(choices) == 1
