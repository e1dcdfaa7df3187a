"""Validation on the CPU: rounds are those that replay predicts, files hold what they say, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import tiny
from ddsim.errors import DdsimError
from ddsim.policy import Autoregressive
from ddsim_reference import validate
from ddsim_reference.checkpoint import save_drafter, save_target
from ddsim_reference.decode import decode
from ddsim_reference.dense import target_layers
from ddsim_reference.engine import Engine
from ddsim_reference.record import marginals


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config)
    save_target(tmp_path / "target", config, weights)
    save_drafter(tmp_path / "drafter", shape, drafter, {})
    return str(tmp_path / "target"), str(tmp_path / "drafter")


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[str, dict[tuple[str, str], list[int]]]:
    generator = np.random.default_rng(0)
    lines, encoded = [], {}
    for workload in ("a", "b"):
        for i in range(3):
            lines.append(json.dumps({"id": f"{workload}{i}", "workload": workload, "prompt": f"{workload} {i}"}))
            encoded[workload, f"{workload}{i}"] = generator.integers(0, 61, 9).tolist()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "prompts.jsonl"), encoded


def test_validation_in_one_run(
    pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path
) -> None:
    policies = ("AR", "DFlash", "DDTree:7", "CaDDTree", "RoundRatio", "LongRun", "BestFixed")
    result = validate.validate(
        target=pair[0], drafter=pair[1], out=tmp_path / "v.json", prompts=[prompts[0]], encoded=prompts[1], limit=2,
        policies=policies, max_new_tokens=16, contexts=(16, 32), repeats=2, largest=31, device="cpu", dtype="float32",
        plot_path=tmp_path / "v.png", tolerance=1e-9,
    )  # fmt: skip
    assert json.loads((tmp_path / "v.json").read_text())["rows"] == json.loads(json.dumps(result["rows"]))
    assert (tmp_path / "v.png").stat().st_size > 5000
    assert not result["passed"]  # no clock is that good
    for name, agreement in result["agreement"].items():
        assert agreement == {"answers": 4, "same_text": 4, "of_these_same_rounds": 4}, name
    assert len(result["rows"]) == len(policies) * 3
    for row in result["rows"]:
        assert row["predicted"]["rounds"] == row["measured"]["rounds"]
        assert row["acceptance_length_error"] == pytest.approx(0)
        assert row["measured"]["tokens_per_second"] > 0
    assert set(result["parts_ms_per_round"]["RoundRatio"]) == {"draft", "tree", "verify", "commit", "host"}


def test_engine_marginals_are_the_recorders(pair: tuple[str, str]) -> None:
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config)
    engine = Engine(
        config, dict(weights), shape, dict(drafter), max_context=64, max_tokens=16, candidates=40, device="cpu"
    )
    prompt = list(range(3, 12))
    answer = decode(engine, [prompt], Autoregressive(), max_new_tokens=12)[0].tokens
    logprobs, ids = validate.engine_marginals(engine, prompt, answer)
    layers = target_layers(config, weights)
    there, there_ids = marginals(config, weights, layers, shape, drafter, prompt, answer, candidates=40)
    np.testing.assert_allclose(logprobs, there[:-1], atol=2e-2)
    assert np.mean(ids == there_ids[:-1]) > 0.99


def test_hidden_states_are_the_heads_inputs(pair: tuple[str, str]) -> None:
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config)
    text = list(range(3, 15))
    states = validate.hidden_states(config, weights, shape, drafter, [text], blocks=5)
    assert states.shape == (12 + 5 * shape.block_size, config.hidden_size)
    engine = Engine(config, dict(weights), max_context=64, max_tokens=16, device="cpu")
    torch.testing.assert_close(
        states[11] @ weights["lm_head.weight"].T, engine.prefill(0, text)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policies": ("DFlash",)}, "AR must be"),
        ({"widen": "gpt"}, "unknown shape"),
        ({"policies": ("AR", "Best")}, "Best"),
    ],
)
def test_bad_options(pair: tuple[str, str], tmp_path: Path, change: dict[str, object], says: str) -> None:
    options = {"target": pair[0], "drafter": pair[1], "out": tmp_path / "v.json", "device": "cpu", "dtype": "float32"}
    with pytest.raises(DdsimError, match=says):
        validate.validate(**(options | change))
    assert not (tmp_path / "v.json").exists()
