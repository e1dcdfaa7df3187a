"""Prefill: seconds of a prompt by tokens and context, against its naive twin; what is extrapolated; files."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cli.main import main
from ddsim.cost.model import CostModel, ExtrapolationWarning, fit_cost, open_cost
from ddsim.cost.prefill import Prefill, PrefillPoint
from ddsim.cost.profile import PrefillSample, Profile, VerifySample, read_profile
from ddsim.errors import DdsimError
from tests.naive import cost as naive_cost

TOKENS, CONTEXTS = (128, 512, 2048, 8192), (0, 2048, 8192, 24_576)
VERIFY = [VerifySample(t, c, 1, (0.006 + 2e-5 * t + 1e-8 * c,)) for t in (1, 64, 1024) for c in (512, 4096)]


def truth(tokens: float, context: float) -> float:
    """A pass of 1,024 tokens at a time waits for the weights, every token attends to those before it."""
    return 0.006 * float(np.ceil(tokens / 1024)) + 3e-5 * tokens + 1.5e-9 * tokens * (context + tokens / 2)


def profiled(**more: Any) -> Profile:
    samples = [
        PrefillSample(t, c, (0.9 * truth(t, c), truth(t, c), 1.5 * truth(t, c))) for t in TOKENS for c in CONTEXTS
    ]
    return Profile(VERIFY, prefill=samples, **{"buckets": [1, 64, 1024]} | more)


@st.composite
def places(draw: Any) -> dict[tuple[int, int], float]:
    contexts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=3, unique=True))
    found = {}
    for context in contexts:
        for tokens in draw(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True)):
            found[tokens, context] = draw(st.floats(1e-4, 1.0))
    return found


@settings(max_examples=60, deadline=None)
@given(places(), st.lists(st.tuples(st.integers(1, 150), st.integers(0, 90)), min_size=1, max_size=4))
def test_a_prompt_costs_what_the_naive_twin_says(
    measured: dict[tuple[int, int], float], asked: list[tuple[int, int]]
) -> None:
    held = Prefill([PrefillPoint(t, c, y) for (t, c), y in measured.items()])
    seconds, out_tokens, out_positions = held.seconds(*np.array(asked, np.float64).T)
    for i, (tokens, context) in enumerate(asked):
        wanted, outside = naive_cost.prefill(measured, tokens, context)
        assert seconds[i] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert bool(out_tokens[i] | out_positions[i]) == outside


def test_measured_places_come_back_and_others_lie_between() -> None:
    cost = fit_cost(profiled(), kind="steps")
    t, c = (x.ravel() for x in np.meshgrid(TOKENS, CONTEXTS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost.prefill_seconds(t, c) == pytest.approx([truth(*at) for at in zip(t, c, strict=True)], rel=1e-12)
        for tokens, context in ((4096, 0), (300, 1000), (8192, 12_000), (20_000, 0), (8192, 24_576)):
            assert cost.prefill_seconds(tokens, context) == pytest.approx(truth(tokens, context), rel=0.06)
        assert not cost.prefill_extrapolated([128, 20_000], [0, 12_768]).any()
    assert (
        isinstance(cost.prefill_seconds(128), float) and str(cost.prefill_range) == "tokens 128–8192, context 0–24576"
    )
    assert "prefill measured at tokens 128–8192, context 0–24576 (held-out error" in cost.explain()


def test_outside_what_was_measured_it_says_so() -> None:
    cost = fit_cost(profiled(), kind="steps")
    assert cost.prefill_extrapolated([100, 128, 8192, 8192], [0, 0, 24_576, 24_577]).tolist() == [
        True,
        False,
        False,
        True,
    ]
    with pytest.warns(ExtrapolationWarning, match="tokens of prefill 100 is outside the measured 128–8192"):
        assert cost.prefill_seconds(100) == pytest.approx(truth(128, 0), rel=0.01)
    with pytest.warns(ExtrapolationWarning, match="positions of prefill 36000 is outside the measured 0–32768"):
        far = cost.prefill_seconds(20_000, 16_000)
    assert far == pytest.approx(truth(20_000, 16_000), rel=0.01)
    for bad in ((0, 0), (1, -1), (float("nan"), 0), ("many", 0)):
        with pytest.raises(DdsimError, match="must be"):
            cost.prefill_seconds(*bad)  # type: ignore[call-overload]


def test_without_prefills_passes_of_verification_stand_in() -> None:
    cost = fit_cost(Profile(VERIFY, buckets=[1, 64, 1024]), kind="steps")
    assert cost.prefill_range is None and cost.prefill_extrapolated(512) is True
    assert "prefill" not in cost.to_json() and "prefill" not in cost.explain()
    with pytest.warns(ExtrapolationWarning, match="none was: taken as passes of verification"):
        got = cost.prefill_seconds([1024, 2500], [512, 512])
    parts = [(1024, 512), (1024, 1536), (452, 2560)]
    assert got == pytest.approx([cost.verify_seconds(1024, 512), sum(cost.verify_seconds(*p) for p in parts)])


def test_files_keep_it_and_old_ones_are_read(tmp_path: Path) -> None:
    profile = profiled()
    profile.save(tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == profile
    cost = fit_cost(profile)
    cost.save(tmp_path / "c.json")
    again = open_cost(tmp_path / "c.json")
    assert isinstance(again, CostModel) and again.prefill_seconds(4000, 77) == cost.prefill_seconds(4000, 77)
    assert cost.convex().prefill_seconds(4000, 77) == cost.prefill_seconds(4000, 77)
    old = json.loads((tmp_path / "c.json").read_text())
    del old["prefill"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert open_cost(tmp_path / "old.json").prefill_range is None
    assert "prefill" not in replace(profile, prefill=()).to_json()


def test_fit_shows_prompts_and_marks_what_is_extrapolated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiled().save(tmp_path / "p.json")
    assert main(["fit", str(tmp_path / "p.json"), "--kind", "steps"]) == 0
    text = capsys.readouterr().out
    assert "Prefill of one request, ms (* extrapolated)" in text
    lines = {line.split()[0]: line for line in text.splitlines() if " *" in line or "." in line}
    assert lines["8,192"].count("*") == 1 and lines["32,768"].count("*") == 2
    assert main(["fit", str(tmp_path / "p.json"), "--kind", "steps", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["prefill"]
    assert [r["context"] for r in rows if r["tokens"] == 32_768 and r["extrapolated"]] == [8192, 32_768]
    old = Profile(VERIFY, buckets=[1, 64, 1024])
    old.save(tmp_path / "old.json")
    assert main(["fit", str(tmp_path / "old.json"), "--json"]) == 0
    assert "prefill" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("prefill", "says"),
    [
        ([{"tokens": 0, "context": 0, "seconds": [1.0]}], r"prefill\[0\].tokens"),
        ([{"tokens": 8, "context": 0, "seconds": []}], r"prefill\[0\].seconds"),
        ([{"tokens": 8, "seconds": [1.0]}], "context"),
        ([{"tokens": 8, "context": 0, "batch": 1, "seconds": [1.0]}], "batch"),
        ({"tokens": 8}, "prefill"),
    ],
)
def test_bad_prefills_are_refused(tmp_path: Path, prefill: Any, says: str) -> None:
    document = Profile(VERIFY).to_json() | {"prefill": prefill}
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(DdsimError, match=says):
        read_profile(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([(8, 0, 1.0), (8, 0, 2.0)], "stands twice"),
        ([(8, 0, -1.0), (9, 0, 2.0)], r"prefill\[0\].seconds"),
        ([(8, 1 << 40, 1.0), (9, 0, 2.0)], r"prefill\[0\].context"),
    ],
)
def test_bad_prefills_of_a_model_are_refused(tmp_path: Path, points: list[tuple[int, int, float]], says: str) -> None:
    document = fit_cost(profiled(), kind="steps").to_json()
    document["prefill"] = [dict(zip(("tokens", "context", "seconds"), p, strict=True)) for p in points]
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(DdsimError, match=says):
        open_cost(tmp_path / "c.json")
