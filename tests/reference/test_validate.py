"""Validation on the CPU: rounds are those that replay predicts, files hold what they say, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ddsim.cost.model import CostModel, fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.policy.choose import NO_DRAFT
from ddsim.policy.contract import Policy
from ddsim.policy.rules import Autoregressive, DFlash
from ddsim.trace.trace import Trace
from ddsim_reference import comparison, convert, validate
from ddsim_reference.decode import Decoded, Round, decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import widen
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


COSTS = Profile(
    [VerifySample(t, 64, 1, (1e-3 * t,)) for t in (1, 8, 32)], [DraftSample(64, 1, (1e-3,))], buckets=(1, 8, 32)
)


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


def result_workloads(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["workload"] for row in result["rows"] if row["workload"] != "all"))


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
    assert result["departures"] == {"count": 0, "largest_margin": None, "share_of_positions_within": None, "first": []}
    assert len(result["rows"]) == len(policies) * 3
    for row in result["rows"]:
        assert row["predicted"]["rounds"] == row["measured"]["rounds"]
        assert row["acceptance_length_error"] == pytest.approx(0)
        assert row["measured"]["tokens_per_second"] > 0
        assert row["cost_error"] > -1
        product = np.prod([1 + value for value in row["contributions"].values()])
        assert product - 1 == pytest.approx(row["tokens_per_second_error"])
        assert row["contributions"]["rounds"] == pytest.approx(0) and row["contributions"]["texts"] == pytest.approx(0)
        low, high = (row["predicted"][f"tokens_per_second_{end}"] for end in ("low", "high"))
        assert low <= row["predicted"]["tokens_per_second"] <= high
        assert row["inside"]["tokens_per_second"] == (low <= row["measured"]["tokens_per_second"] <= high)
        assert row["inside"]["acceptance_length"]
    first = result["first_token"]
    assert [(row["workload"], row["prompts"]) for row in first] == [
        ("all", 4),
        *((w, 2) for w in result_workloads(result)),
    ]
    for row in first:
        assert row["prompt_tokens"] == 9 and row["measured"] > 0 and not row["extrapolated"]
        assert row["predicted"] == pytest.approx(row["measured"] * (1 + row["error"]))
    assert [(s["tokens"], s["context"]) for s in result["profile"]["prefill"]] == [(9, 0)]
    parts = result["parts_ms_per_round"]["RoundRatio"]
    assert set(parts) == {"draft", "tree", "verify", "commit", "host", "predicted"}
    assert set(result["rule_ms_per_round"]) == set(result["agreement"]) - {"Plain"}
    assert result["inside"]["acceptance_length"] == {"cells": 18, "inside": 18}


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


def test_sampled_texts_with_the_same_dice_and_with_others(
    pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path
) -> None:
    """At temperature 1 the recording's dice make the same texts in the replayed rounds; others are compared as distributions."""
    given = {
        "target": pair[0], "drafter": pair[1], "out": tmp_path / "v.json", "prompts": [prompts[0]], "encoded": prompts[1],
        "policies": ("AR", "DFlash", "DDTree:15"), "max_new_tokens": 16, "contexts": (64,), "repeats": 1, "largest": 31,
        "device": "cpu", "dtype": "float32", "limit": 2,
    }  # fmt: skip
    result = validate.validate(**given, temperature=1.0)
    for name, agreement in result["agreement"].items():
        assert agreement == {"answers": 4, "same_text": 4, "of_these_same_rounds": 4}, name
    assert result["provenance"]["temperature"] == result["profile"]["provenance"]["temperature"] == 1.0
    other = result["other_dice"]
    assert {row["policy"] for row in other["rows"]} == {"DFlash", "DDTree(15)"} and len(other["rows"]) == 6
    assert other["inside"]["acceptance_length"]["cells"] == 4
    for found in other["lengths"].values():
        for side in ("predicted", "measured"):  # counts of rounds by the tokens that they commit
            assert np.dot(found[side], np.arange(1, len(found[side]) + 1)) == 4 * 15
        assert 0 < found["p"] <= 1
    assert other["lengths"]["DDTree(15)"]["predicted"] != other["lengths"]["DDTree(15)"]["measured"]
    # Costs at another temperature lack what sampling takes.
    (tmp_path / "p.json").write_text(json.dumps(result["profile"]))
    with pytest.raises(
        DdsimError, match="measured at temperature 1, so what sampling takes isn't that of temperature 0"
    ):
        validate.validate(**given, profile=tmp_path / "p.json")


def test_costs_of_a_file_for_a_pair_of_converted_folders(
    pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What `ddsim convert` writes validates as any pair of folders does, under the name that it was given there."""
    monkeypatch.setitem(widen.SHAPES, "big", widen.Shape(96, 6, 16, 4, 32, 160, 100))
    monkeypatch.setattr(convert, "direction_away", lambda *_: torch.zeros(48))
    written = convert.convert(
        target=pair[0], drafter=pair[1], widen="big", prompts=[prompts[0]], encoded=prompts[1], dtype="float32",
        out=tmp_path / "wide",
    )  # fmt: skip
    COSTS.save(tmp_path / "p.json")
    result = validate.validate(
        target=written["target"], drafter=written["drafter"], out=tmp_path / "v.json", prompts=[prompts[0]],
        encoded=prompts[1], limit=1, policies=("AR", "DDTree:7", "RoundRatio"), max_new_tokens=12, device="cpu", dtype="float32",
        profile=tmp_path / "p.json", largest=31,
    )  # fmt: skip
    assert result["label"] == "target text at big cost"
    assert result["costs_from"]["file"] == "p.json" and "profile" not in result
    assert result["first_token"][0]["extrapolated"]  # these costs hold no prefill
    for name, agreement in result["agreement"].items():
        assert agreement == {"answers": 2, "same_text": 2, "of_these_same_rounds": 2}, name
    assert result["rows"][1]["predicted"]["ms_per_round"] == pytest.approx(9, abs=4)  # the file's 8 and 1, and the rule


def said(texts: list[list[int]]) -> tuple[comparison.Prediction, comparison.Answers]:
    """A prediction for texts of tokens 6 and 7, of which the drafter likes 6; and answers that are as predicted."""
    logprobs = [np.log(np.full((len(text), 2, 2), [0.6, 0.3])) for text in texts]
    ids = [np.full((len(text), 2, 2), [6, 7]) for text in texts]
    trace = Trace.from_arrays(
        texts, ids, logprobs, max_budget=6, workload=["a", "a", "b", "b"], prompt_id=list("wxyz"), context0=4
    )
    cost = CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001)
    rules = {rule.name: rule for rule in (Autoregressive(), DFlash())}
    found = comparison.predict(trace, texts, cost, rules, {"DFlash": 0.002})
    answers: comparison.Answers = {}
    for name in rules:
        mine = [
            Decoded(list(text), [Round(p, n, a, c) for p, n, a, c in found.rounds[name][s]])
            for s, text in enumerate(texts)
        ]
        seconds = comparison.priced(mine, [4] * 4, cost, name == "AR")
        for answer, spent in zip(mine, seconds, strict=True):
            answer.seconds["decode"] = float(spent) + (0.002 * len(answer.rounds) if name == "DFlash" else 0.0)
        answers[name] = dict(enumerate(mine))
    return found, answers


TEXTS = [[5, 6, 6, 7, 6, 6], [5, 7, 6, 6, 6], [5, 7, 7, 6, 6, 6], [5, 6, 6, 6, 7]]


def test_errors_are_told_apart() -> None:
    found, answers = said(TEXTS)
    for row in comparison.rows(found, answers):
        assert row["tokens_per_second_error"] == pytest.approx(0) == pytest.approx(row["cost_error"])
        assert row["inside"] == {"acceptance_length": True, "tokens_per_second": True}
    as_said = found.result.outcomes["DFlash"].seconds.sum()
    # A quarter more time for the same rounds; then one text in another round more; then another text.
    for answer in answers["DFlash"].values():
        answer.seconds["decode"] *= 1.25
    row = next(r for r in comparison.rows(found, answers) if (r["workload"], r["policy"]) == ("all", "DFlash"))
    assert row["contributions"] == pytest.approx({"costs": 0.25, "rounds": 0, "texts": 0})
    assert row["cost_error"] == pytest.approx(-0.2) and row["tokens_per_second_error"] == pytest.approx(0.25)
    for low, high in [(row["tokens_per_second_error_low"], row["tokens_per_second_error_high"])]:
        assert low == pytest.approx(0.25) == pytest.approx(high)  # whichever prompts are drawn
    assert comparison.agreement(found, answers)["DFlash"] == {"answers": 4, "same_text": 4, "of_these_same_rounds": 4}
    found, answers = said(TEXTS)
    more = answers["DFlash"][0]
    spent = more.seconds["decode"] / len(more.rounds)
    more.rounds.append(Round(4, 2, 0, 1))
    more.seconds["decode"] += spent
    row = next(r for r in comparison.rows(found, answers) if (r["workload"], r["policy"]) == ("all", "DFlash"))
    assert row["contributions"] == pytest.approx({"costs": 0, "rounds": spent / as_said, "texts": 0})
    assert comparison.agreement(found, answers)["DFlash"]["of_these_same_rounds"] == 3
    more.tokens[-1] = 7
    row = next(r for r in comparison.rows(found, answers) if (r["workload"], r["policy"]) == ("all", "DFlash"))
    assert row["contributions"] == pytest.approx({"costs": 0, "rounds": 0, "texts": spent / as_said})
    assert comparison.agreement(found, answers)["DFlash"]["same_text"] == 3


def test_only_whole_workloads_are_compared_and_known_rows_stay() -> None:
    found, answers = said(TEXTS)
    known: dict[tuple[str, str], dict[str, Any]] = {}
    part = {"AR": answers["AR"], "DFlash": {s: answers["DFlash"][s] for s in (2, 3)}}
    rows = comparison.rows(found, part, known)
    assert [(r["workload"], r["policy"]) for r in rows] == [("all", "AR"), ("a", "AR"), ("b", "AR"), ("b", "DFlash")]
    kept = dict(known)
    rows = comparison.rows(found, answers, known)
    assert len(rows) == 6 and all(known[key] is row for key, row in kept.items())
    assert comparison.counted_inside(rows)["tokens_per_second"] == {"cells": 4, "inside": 4}


def test_lengths_of_one_distribution_and_of_another() -> None:
    generator = np.random.default_rng(0)
    texts = [[5, *generator.choice([6, 7], 60, p=[0.6, 0.4]).tolist()] for _ in range(4)]
    found, answers = said(texts)
    same = comparison.lengths(found, answers)["DFlash"]
    assert same["predicted"] == same["measured"] and same["total_variation"] == 0 and same["p"] == 1
    for answer in answers["DFlash"].values():  # every round commits one token
        answer.rounds = [Round(p, 2, 0, 1) for p in range(60)]
    other = comparison.lengths(found, answers)["DFlash"]
    shares = np.array(other["predicted"]) / sum(other["predicted"])
    assert other["measured"] == [240, 0, 0] and other["total_variation"] == pytest.approx(1 - shares[0])
    assert other["p"] == pytest.approx(2 / 16, abs=0.03)  # of 16 ways to change sides two are as far apart


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
    """Rounded up as replay rounds them, so that equal rounds are equal seconds."""
    profile = Profile(
        [VerifySample(t, c, 1, ((t + c) / 1e3,)) for t in (1, 9, 17) for c in (64, 128)],
        [DraftSample(c, 1, (c / 1e4,)) for c in (64, 128)],
    )
    cost = fit_cost(profile, kind="table")
    answers = [Decoded([1, 2, 3], [Round(0, 8, 1, 2)]), Decoded([4, 5], [Round(0, 0, 0, 1)])]
    # Nine tokens at context 64, which 60 becomes; one at 128, which 65 becomes.
    np.testing.assert_allclose(comparison.priced(answers, [60, 65], cost, False), [0.073 + 0.0064, 0.129 + 0.0128])
    assert comparison.priced(answers[1:], [65], cost, True)[0] == pytest.approx(0.129)


def test_departures_name_the_place_and_the_lead() -> None:
    answers = {
        "AR": {0: Decoded([5, 6, 7]), 1: Decoded([1, 2, 3])},
        "DFlash": {0: Decoded([5, 6, 8]), 1: Decoded([1, 2, 3])},
    }
    margins = [np.array([3.0, 0.25]), np.array([0.125, 4.0])]
    sequences = [SimpleNamespace(prompt_id=name) for name in "ab"]
    said: Any = SimpleNamespace(texts=[[5, 6, 7], [1, 2, 3]], trace=SimpleNamespace(sequences=sequences))
    assert comparison.departures(said, answers, margins) == {
        "count": 1,
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
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1.0, "eager_budget": 8}, "published loop is greedy"),
        ({"profile": "nowhere.json"}, "nowhere.json"),
        ({"policies": ("AR", "DDTree:63"), "largest": 31}, r"DDTree\(63\) has a larger budget than max_budget 31"),
        ({"profile": "short.json"}, "measured up to 32 tokens; lower --max-budget"),
    ],
)
def test_bad_options(pair: tuple[str, str], tmp_path: Path, change: dict[str, object], says: str) -> None:
    options = {"target": pair[0], "drafter": pair[1], "out": tmp_path / "v.json", "device": "cpu", "dtype": "float32"}
    if change.get("profile") == "short.json":
        COSTS.save(tmp_path / "short.json")
        change = {"profile": tmp_path / "short.json"}
    with pytest.raises(DdsimError, match=says):
        validate.validate(**(options | change))
    assert not (tmp_path / "v.json").exists()
