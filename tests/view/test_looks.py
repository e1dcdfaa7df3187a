"""A policy looks alike in every figure, unlike others beside it, and by its name alone; titles tell model, device and engine."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pandas as pd
import pytest

from ddsim.cost.model import CostModel
from ddsim.policy.parse import _KNOWN
from ddsim.replay.replay import default_policies
from ddsim.view import budgets as _budgets
from ddsim.view import style as _style
from ddsim.view import titles as _titles
from ddsim.view.looks import Look, policy_look
from tests import made_up

RULES = ("CaDDTree", "CaDDTree filled", "GreedySteps", "RoundRatio", "LongRun", "LongRun online", "LongRun online(20)")

TOGETHER = {
    "of fixed sizes": ["AR", "DFlash", "BestFixed", "Hindsight", *(f"DDTree({n})" for n in (1, 3, 7, 8, 15, 16, 23, 27, 31, 32, 47, 48, 63))],
    "of large sizes": [*(f"DDTree({n})" for n in (63, 64, 95, 96, 119, 120, 127, 128, 191, 192, 239, 255, 256, 383, 511, 512))],
    "chains": ["BestChain", "BestSchedule", "DFlash", *(f"Chain({k})" for k in range(16))],
    "rules and rules carried over": [
        *(f"{rule}{end}" for rule in (*RULES, "FairRatio") for end in ("", " share", " uniform", " on chains", " uniform on chains", " calibrated")),
        "DSpark", "AdaptiveVerification", "AdaptiveSteps", "AR", "BestFixed", "BestChain", "BestSchedule",
    ],
}  # fmt: skip


def drawn_as(look: Look) -> tuple[str, str, str]:
    return look.colour, look.marker, look.fill


@pytest.mark.parametrize("names", TOGETHER.values(), ids=TOGETHER)
def test_no_two_policies_that_appear_together_look_alike(names: list[str]) -> None:
    looks = {name: drawn_as(policy_look(name)) for name in names}
    for one, other in itertools.combinations(names, 2):
        assert looks[one] != looks[other], (one, other)


@pytest.mark.parametrize("most", [8, 64, 255, 512])
def test_the_policies_replayed_by_default_differ_in_grey_too(most: int) -> None:
    looks = [policy_look(policy.name) for policy in default_policies(most)]
    for one, other in itertools.combinations(looks, 2):
        assert (one.marker, one.fill) != (other.marker, other.fill) or abs(grey(one) - grey(other)) > 0.08, (one, other)


def grey(look: Look) -> float:
    """How light it is without its colour."""
    return float(np.dot([int(look.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], (0.2126, 0.7152, 0.0722)))


def test_every_policy_of_ddsim_has_a_look_that_hangs_on_its_name_alone() -> None:
    names = [*_KNOWN, "Half", "mine:Own(3)", "DDTree(63)", "Schedule([(1, 4, 15)])", "LongRun isotonic"]
    first = {name: policy_look(name) for name in names}
    random.Random(0).shuffle(names)
    assert {name: policy_look(name) for name in names} == first


def test_a_policy_has_its_mark_wherever_it_is_drawn() -> None:
    table = pd.DataFrame(
        {"policy": ["AR", "RoundRatio", "LongRun"], "tokens_per_second": [90.0, 200.0, 210.0], "budget_mean": [0, 3, 5]}
    )
    curve = pd.DataFrame({"budget": [0, 4, 8], "tokens_per_second": [80.0, 190.0, 180.0]})
    marks = set()
    for order in ([0, 1, 2], [2, 0, 1], [2]):
        part = table.iloc[order]
        figures = (
            _budgets.policies(part, ax=_style.canvas()),
            _budgets.fixed_budgets(curve, policies=part, ax=_style.canvas()),
            _budgets.budget_distribution({name: [3, 5] for name in part["policy"]}, ax=_style.canvas()),
        )
        for ax in figures:
            marks |= {
                (line.get_color(), line.get_marker())
                for line in ax.lines
                if line.get_color() == policy_look("LongRun").colour
            }
    marks = {mark for mark in marks if mark[1] != "None"}
    assert marks == {(policy_look("LongRun").colour, policy_look("LongRun").marker)}


def test_budgets_have_ticks_at_powers_of_two_or_where_they_fill_a_bucket() -> None:
    curve = pd.DataFrame({"budget": range(65), "tokens_per_second": np.arange(65.0) + 1})
    plain = _budgets.fixed_budgets(curve, ax=_style.canvas())
    assert plain.get_xticks().tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    padded = _budgets.fixed_budgets(curve, buckets=[1, 8, 16, 17, 24, 64, 1024], ax=_style.canvas())
    assert padded.get_xticks().tolist() == [0, 7, 15, 63] and "fill a bucket" in padded.get_xlabel()
    assert padded.get_xticks(minor=True).tolist() == [16, 23]


@pytest.mark.parametrize(
    ("provenance", "line"),
    [
        ({}, ""),
        ({"target": "qwen3-8b"}, "Qwen3-8B"),
        ({"target": "/models/llama-3.1-8b/", "device": "NVIDIA A100-SXM4-80GB"}, "Llama-3.1-8B · A100"),
        ({"target": "smollm2-135m", "device": "NVIDIA H200", "cuda_graphs": True}, "SmolLM2-135M · H200 · ddsim's decoder"),
        ({"engine": "huggingface-eager", "device": "NVIDIA H100 80GB HBM3"}, "H100 · Hugging Face, eager"),
        ({"trace": "c1841", "cost": {"provenance": {"engine": "vLLM 0.26.0"}}}, "vLLM 0.26"),
        ({"trace": {"recording": {"target": "a-1b", "device": "x"}}, "cost": {"provenance": {"target": "b-8b"}}}, "A-1B text at B-8B cost"),
    ],
)  # fmt: skip
def test_a_title_tells_model_device_and_engine(provenance: dict[str, object], line: str) -> None:
    assert _titles.about(provenance) == line


def test_titles_wrap_between_words_and_parts() -> None:
    line = "SmolLM2-135M text at Qwen3-8B cost · H100 · vLLM 0.26"
    wide = _titles.wrap(line, 1000, 9)
    narrow = _titles.wrap(line, 200, 9)
    assert wide == line and narrow.split("\n") == ["SmolLM2-135M text at Qwen3-8B cost", "H100 · vLLM 0.26"]
    assert "40\u00a0%" in _titles.wrap("gains 40 % over all", 1000, 9)


def test_labels_beside_the_axes_are_apart_and_near_their_points() -> None:
    wanted = np.array([100.0, 99.0, 98.0, 50.0])
    at = _style._apart(wanted, np.full(4, 10.0), 0.0, 120.0)
    assert (np.diff(at) <= -10 + 1e-9).all() and abs(at[:3].mean() - 99) < 1e-9 and at[3] == 50
    assert _style._apart(np.array([119.0, 119.0]), np.full(2, 10.0), 0.0, 120.0).tolist() == [115.0, 105.0]


def test_a_model_without_a_profile_says_what_it_is_of() -> None:
    from ddsim.view.costs import cost_curve

    cost = CostModel.from_table([1, 64], [0.010, 0.012])
    cost.provenance["device"] = "NVIDIA H100 80GB HBM3"
    assert "H100" in [text.get_text() for text in cost_curve(cost, ax=_style.canvas()).texts]


def test_costs_beside_are_named_by_engine_and_device() -> None:
    from ddsim.view.costs import cost_curve

    profile = made_up.profile(batches=(1,))
    eager = dataclasses.replace(profile, provenance={"engine": "huggingface-eager", "device": "NVIDIA H100 80GB HBM3"})
    ax = cost_curve(CostModel.from_table([1, 512], [0.010, 0.012]), profile, beside=[eager], ax=_style.canvas())
    said = [text.get_text() for text in ax.texts]
    assert any(text.startswith("H100 · Hugging Face, eager,\ncontext ") for text in said)
    drawn = next(one.lines[0] for one in ax.containers if one.get_label() == "H100 · Hugging Face, eager")  # type: ignore[attr-defined]
    points = profile.points()
    assert set(np.asarray(drawn.get_xdata())) <= set(points.tokens.tolist())
    assert np.isin(np.asarray(drawn.get_ydata()), 1e3 * points.seconds).all()
    eager.provenance["engine"] = "Hugging Face transformers 5.17.0, eager"
    cost = CostModel.from_table([1, 512], [0.010, 0.012])
    cost.provenance["device"] = "NVIDIA H100 80GB HBM3"
    said = [text.get_text() for text in cost_curve(cost, beside=[eager], ax=_style.canvas()).texts]
    assert any(text.startswith("transformers 5.17, eager,\ncontext ") for text in said)
