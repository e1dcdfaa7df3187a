"""Validation on the CPU: rounds are those that replay predicts, files hold what they say, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ddsim.cost.model import fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.policy.choose import NO_DRAFT
from ddsim.policy.contract import Policy
from ddsim.policy.rules import Autoregressive
from ddsim_reference import validate
from ddsim_reference.decode import Decoded, Round, decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model.checkpoint import load_drafter, save_drafter, save_head, save_target
from ddsim_reference.model.forward import target_layers
from ddsim_reference.model.widen import hidden_states
from ddsim_reference.record import marginals
from tests.reference import tiny


class Plain(Policy):
    """A user's own autoregressive baseline."""

    drafts = adaptive = False
    fixed = NO_DRAFT

    def choose(self, gains: Any, costs: Any) -> Any:
        return np.full(len(gains), NO_DRAFT, np.int32)


class Few(Policy):
    """A user's own rule, whose objects are all called alike."""

    def __init__(self, most: int) -> None:
        self._most = most

    def choose(self, gains: Any, costs: Any) -> Any:
        return np.minimum((gains > 0.01).sum(axis=1), self._most).astype(np.int32)


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
    policies = (Plain(), "DFlash", "DDTree:7", "CaDDTree", "RoundRatio", "LongRun", "BestFixed", Few(1), Few(2))
    result = validate.validate(
        target=pair[0], drafter=pair[1], out=tmp_path / "v.json", prompts=[prompts[0]], encoded=prompts[1], limit=2,
        policies=policies, max_new_tokens=16, contexts=(16, 32), repeats=2, largest=31, device="cpu", dtype="float32",
        plot_path=tmp_path / "v.png", tolerance=1e-9,
    )  # fmt: skip
    assert json.loads((tmp_path / "v.json").read_text())["rows"] == json.loads(json.dumps(result["rows"]))
    assert (tmp_path / "v.png").stat().st_size > 5000
    assert not result["passed"]  # no clock is that good
    assert result["baseline"] == "Plain" and list(result["agreement"])[-2:] == ["Few", "Few (2)"]
    for name, agreement in result["agreement"].items():
        assert agreement == {"answers": 4, "same_text": 4, "of_these_same_rounds": 4}, name
    assert result["departures"] == {"largest_margin": None, "share_of_positions_within": None, "first": []}
    assert len(result["rows"]) == len(policies) * 3
    for row in result["rows"]:
        assert row["predicted"]["rounds"] == row["measured"]["rounds"]
        assert row["acceptance_length_error"] == pytest.approx(0)
        assert row["measured"]["tokens_per_second"] > 0
        assert row["cost_error"] > -1
    assert set(result["parts_ms_per_round"]["RoundRatio"]) == {"draft", "tree", "verify", "commit", "host"}


def test_validation_of_lattices(
    pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path
) -> None:
    """A drafter with a head needs no more options; without it, the same texts in other rounds."""
    save_head(pair[1], *tiny.head(load_drafter(pair[1])[0]), {})
    rounds = []
    for head in (True, False):
        result = validate.validate(
            target=pair[0], drafter=pair[1], out=tmp_path / "v.json", prompts=[prompts[0]], encoded=prompts[1], limit=2,
            policies=("AR", "DFlash", "DDTree:15", "RoundRatio"), max_new_tokens=16, contexts=(16, 32), repeats=2,
            largest=31, device="cpu", dtype="float32", head=head,
        )  # fmt: skip
        for name, agreement in result["agreement"].items():
            assert agreement == {"answers": 4, "same_text": 4, "of_these_same_rounds": 4}, name
        assert ("head_config" in result["provenance"]) == head
        rounds.append([row["measured"]["rounds"] for row in result["rows"]])
    assert rounds[0] != rounds[1]


def test_engine_marginals_are_the_recorders(pair: tuple[str, str]) -> None:
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config)
    engine = Engine(
        config, dict(weights), shape, dict(drafter), max_context=64, max_tokens=16, candidates=40, device="cpu"
    )
    prompt = list(range(3, 12))
    answer = decode(engine, [prompt], Autoregressive(), max_new_tokens=12)[0].tokens
    logprobs, ids, margins = validate.engine_drafts(engine, prompt, answer)
    layers = target_layers(config, weights)
    there, there_ids = marginals(config, weights, layers, shape, drafter, prompt, answer, candidates=40)
    np.testing.assert_allclose(logprobs, there[:-1], atol=2e-2)
    assert np.mean(ids == there_ids[:-1]) > 0.99
    assert margins.shape == (11,) and margins.min() >= 0


def test_rounds_are_priced_at_their_contexts() -> None:
    profile = Profile(
        [VerifySample(t, c, 1, ((t + c) / 1e3,)) for t in (1, 9, 17) for c in (16, 48)],
        [DraftSample(c, 1, (c / 1e4,)) for c in (16, 48)],
    )
    cost = fit_cost(profile, kind="table")
    answers = [Decoded([1, 2, 3], [Round(0, 8, 1, 2)]), Decoded([4, 5], [Round(0, 0, 0, 1)])]
    # Nine tokens at context 20, one at context 31.
    assert validate._priced(answers, [20, 31], cost, False) == pytest.approx(0.029 + 0.002 + 0.032 + 0.0031)
    assert validate._priced(answers[1:], [31], cost, True) == pytest.approx(0.032)


def test_departures_name_the_place_and_the_lead() -> None:
    answers = {"AR": [Decoded([5, 6, 7]), Decoded([1, 2, 3])], "DFlash": [Decoded([5, 6, 8]), Decoded([1, 2, 3])]}
    margins = [np.array([3.0, 0.25]), np.array([0.125, 4.0])]
    assert validate._departures(answers, "AR", margins, ["a", "b"]) == {
        "largest_margin": 0.25,
        "share_of_positions_within": 0.5,
        "first": [{"policy": "DFlash", "prompt": "a", "index": 2, "margin": 0.25}],
    }


def test_hidden_states_are_the_heads_inputs(pair: tuple[str, str]) -> None:
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config)
    text = list(range(3, 15))
    states = hidden_states(config, weights, shape, drafter, [text], blocks=5)
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
