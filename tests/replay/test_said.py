"""Sentences that answers begin with, by naive computations, and what they admit where prompts are too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ddsim
from ddsim.cli.main import main
from ddsim.cost.model import CostModel
from ddsim.replay.bootstrap import ENOUGH, few
from ddsim.replay.replay import ReplayResult
from ddsim.replay.served import ServingResult
from ddsim.replay.serving import simulate
from ddsim.text import between, gained, signed
from ddsim.trace.shown import calibration_sentence
from tests import made_up
from tests.made_up import made_trace

COST = CostModel.from_table([1, 16, 33, 65], [0.010, 0.0104, 0.0115, 0.016], draft_seconds=0.001)


@pytest.fixture(scope="module")
def trace() -> ddsim.Trace:
    return made_trace(0, prompts=ENOUGH, length=40)


@pytest.fixture(scope="module")
def small() -> ddsim.Trace:
    return made_trace(0, workloads=(("a", 1.0),), prompts=2, length=30)


@pytest.fixture(scope="module")
def replayed(trace: ddsim.Trace) -> ReplayResult:
    return ddsim.replay(
        trace, COST, ["AR", "DFlash", "DDTree:16", "DDTree:17", "RoundRatio", "Hindsight"], bootstrap=200
    )


def test_a_replay_names_the_fastest_and_what_is_not_significantly_slower(replayed: ReplayResult) -> None:
    table = replayed.table().set_index("policy").drop(index="Hindsight")
    best = table["tokens_per_second"].idxmax()
    sentence = replayed.sentence
    row = table.loc[best]
    ends = [100 * (row[key] - 1) for key in ("speedup", "speedup_low", "speedup_high")]
    said = f"{best} is the fastest of 5 policies: {row['tokens_per_second']:,.0f} tokens/s, {ends[0]:+.1f} % ({ends[1]:+.1f} to {ends[2]:+.1f} %) over AR"
    assert sentence.startswith(said)
    near = [name for name in table.index if name != best and replayed.gain(best, name)[1] <= 0]
    rest = sentence.removeprefix(said)
    assert near and all((name in rest) == (name in near) for name in table.index)
    assert str(replayed).startswith(sentence[:70]) and replayed.to_json()["sentence"] == sentence


def test_a_replay_of_two_prompts_warns_and_is_sure_of_nothing(small: ddsim.Trace) -> None:
    result = ddsim.replay(small, COST, ["AR", "DFlash", "DDTree:16"], bootstrap=50)
    lines = str(result).splitlines()
    assert "significant" not in str(result) and " to +" not in str(result)
    assert any(line.startswith("Warning: The trace holds 2 prompts, too few") for line in lines[:4])
    assert not result.to_json()["enough_prompts"] and result.to_json()["prompts"] == 2
    only = ddsim.replay(small, COST, ["Hindsight"], bootstrap=5)
    assert only.sentence == "Hindsight knows the text: a bound, and nothing that can be run."


def test_serving_says_the_best_setting_of_every_batch(trace: ddsim.Trace) -> None:
    result = simulate(trace, COST, ["DDTree:8", "DDTree:32", "LongRun"], batch=[1, 4], bootstrap=20)
    table = result.table()
    head, *parts = result.sentence.removesuffix(".").split("; ")
    assert result.sentence.startswith("Best at 1 request: ") and parts[0].startswith("4 requests: ") and len(parts) == 1
    for size, part in zip((1, 4), (head, parts[0]), strict=True):
        rows = table[table["batch"] == size].set_index("policy")
        fixed = rows.loc[["AR", "DDTree(8)", "DDTree(32)"], "tokens_per_second"].idxmax()
        rule = rows.loc["LongRun"]
        taken = rule["over_fixed"] >= 0.005 and rule["over_fixed_low"] > 0
        nodes = round(rows.loc[fixed, "budget_mean"])
        assert f"trees of {nodes} nodes" in part and ("LongRun" in part) == taken
        speed = rule["tokens_per_second"] if taken else rows.loc[fixed, "tokens_per_second"]
        assert f"{speed:,.0f} tokens/s" in part
        gain = gained(rule["over_fixed"], rule["over_fixed_low"], rule["over_fixed_high"])
        assert gain in (part if taken else " ".join(result.details))
    assert result.prompts == 2 * ENOUGH and result.to_json()["sentence"] == result.sentence


def test_serving_two_prompts_warns(small: ddsim.Trace) -> None:
    result: ServingResult = simulate(small, COST, ["DDTree:8", "LongRun"], batch=[1], bootstrap=5)
    assert result.details[0] == f"Warning: {few(2)}" and "±" not in str(result) and "LongRun" not in result.sentence
    assert result.prompts == 2 and not result.to_json()["enough_prompts"]


def test_rules_and_loads_of_one_prompt_name_no_winner(small: ddsim.Trace) -> None:
    from ddsim.replay.contest import contest

    answer = contest(small, CostModel.from_table([1, 400], [0.010, 0.030]), batch=[1, 2], running=2, bootstrap=3)
    assert answer.sentence.startswith("Which rule is worth it can't be told from so few prompts")
    assert answer.details[0] == f"Warning: {few(2)}" == answer.loaded.details[0]
    assert " to +" not in str(answer) + str(answer.loaded) and not answer.to_json()["enough_prompts"]


def test_a_calibration_says_which_way_the_drafter_errs() -> None:
    def of(before: float, after: float, nodes: int = 64) -> str:
        rows = {
            "budget": [1, nodes],
            "realised": [2.0, 5.0],
            "predicted_before": [2.0, before],
            "predicted_after": [2.0, after],
        }
        return calibration_sentence(pd.DataFrame(rows))

    assert of(4.0, 4.9) == (
        "The drafter is underconfident: for trees of 64 nodes it promises 4.00 tokens a round, 5.00 are committed (−20.0 %); "
        "calibrated it promises 4.90 (−2.0 %)."
    )
    assert "overconfident" in of(5.5, 5.0) and "(+10.0 %)" in of(5.5, 5.0) and "(0.0 %)." in of(5.5, 5.0)
    assert "right on average" in of(5.04, 5.0, 16) and "trees of 16 nodes" in of(5.04, 5.0, 16)


def test_a_fit_says_how_far_off_it_is_and_what_passes_take() -> None:
    profile = made_up.profile()
    cost = ddsim.fit_cost(profile, "table")
    context, (low, high) = cost.default_context, cost.range.tokens
    sizes = sorted({int(low), 64, int(high)})
    mine = cost.report.kinds["table"]
    assert cost.sentence.startswith(
        f"Cost model 'table' predicts what it hasn't seen to {100 * mine.score:.1f} % on average"
    )
    for n in sizes:
        assert f"{1e3 * float(cost.verify_seconds(n, context, 1)):.2f} ms" in cost.sentence
    assert cost.sentence.endswith(f" at a context of {context:,}.") and len(cost.sentence) < 200
    told = " ".join(cost.details).lower()
    assert all(part.lower().rstrip(".") in told for part in cost.explain().split("; ")[2:3])
    typed = CostModel.from_table([1, 64, 128], [0.01, 0.012, 0.02])
    assert typed.sentence == "Cost model 'table': 1 token takes 10.00 ms, 64 12.00 ms and 128 20.00 ms."


def test_commands_begin_with_their_sentence(
    small: ddsim.Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save(tmp_path / "trace")
    COST.save(tmp_path / "cost.json")
    trace, cost = str(tmp_path / "trace"), str(tmp_path / "cost.json")

    def ran(*words: Any) -> tuple[str, dict[str, Any]]:
        assert main([*map(str, words)]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert main([*map(str, words), "--json"]) == 0
        return text, json.loads(capsys.readouterr().out)

    for words in (
        ("replay", trace, "-p", cost, "--bootstrap", 20),
        ("serve", trace, "-p", cost, "--batch", 1, "--policy", "LongRun", "--bootstrap", 2),
        ("fit", cost),
        ("calibrate", trace),
        ("sweep", trace, "-p", cost, "--batch", 1, "--policy", "LongRun"),
        ("export", trace, "-o", tmp_path / "table.csv"),
    ):
        text, document = ran(*words)
        assert text.startswith(document["sentence"]), words
        assert words[0] in ("fit", "export") or few(2) in text, words
    text, _ = ran("export", trace, "--what", "budgets", "-p", cost, "--batch", 1, "-o", tmp_path / "budgets.json")
    assert text.startswith("The best trees have ") and few(2) in text


@pytest.mark.parametrize("digits", [0, 1, 2])
def test_gains_are_worded_one_way(digits: int) -> None:
    for value in np.random.default_rng(0).normal(0, 0.003, 200).tolist():
        text = signed(value, digits)
        number = float(text.removesuffix(" %").replace("−", "-"))
        assert number == round(100 * value, digits) and "-" not in text
        assert text.startswith(("+", "−")) == (number != 0)
        again = gained(value, value - 1e-9, value + 1e-9, digits)
        assert again == text or abs(abs(100 * value * 10**digits) % 1 - 0.5) < 1e-3
    assert between(0.8512, 0.8533, "{:.0%}".format) == "85%" and between(float("nan"), 1.0) == ""
