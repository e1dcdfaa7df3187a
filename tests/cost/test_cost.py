"""Cost models: what every kind promises, what ``auto`` picks, what happens outside what was measured, files, errors."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cli import app
from ddsim.cost import kinds
from ddsim.cost.fit import CostReport
from ddsim.cost.interpolation import Curve, RoundPoint, RoundTimes, Surface
from ddsim.cost.kinds import KINDS
from ddsim.cost.model import CostModel, ExtrapolationWarning, ProfileWarning, fit_cost, open_cost
from ddsim.cost.profile import DraftSample, HostSample, Profile, VerifySample, read_profile, write_profile
from ddsim.cost.shapes import Roofline, Shape, pad
from ddsim.cost.table import CONTEXT_STEP, cost_table
from ddsim.errors import DdsimError
from tests import strategies
from tests.naive import cost as naive_cost
from tests.strategies import ints

BUCKETS = (1, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
BOTH_SIDES = tuple(sorted({t for b in BUCKETS for t in (b, b + 1)} - {1025}))
CONTEXTS = (256, 1024, 2048, 4096, 8192)
TRUTH = Roofline(0.003, 0.006, 5e-8, 2e-5, 1e-9, 4.0)
Truth = Callable[[float, float, float], float]


def roofline(t: float, c: float, b: float) -> float:
    return float(TRUTH.seconds(*np.atleast_1d(np.float64(t), np.float64(c), np.float64(b)))[0])


def padded(t: float, c: float, b: float) -> float:
    return roofline(float(pad(np.array([t], np.float64), BUCKETS)[0]), c, b)


def hinge(t: float, c: float, b: float) -> float:
    """Convex, and no roofline: three slopes."""
    return 0.01 + 1e-6 * t + 2e-5 * max(0, t - 64) + 5e-5 * max(0, t - 384) + 2e-7 * c


def crooked(t: float, c: float, b: float) -> float:
    """Monotone, neither convex nor stepped: a fast rise, then a slow one."""
    return 0.004 + 0.004 * np.log1p(t / 4) + 1e-7 * c


def measured(
    truth: Truth,
    tokens: Sequence[int] = BOTH_SIDES,
    contexts: Sequence[int] = CONTEXTS,
    batches: Sequence[int] = (1,),
    *,
    noise: float = 0.003,
    repeats: int = 7,
    seed: int = 0,
    **more: Any,
) -> Profile:
    rng = np.random.default_rng(seed)
    verify = [
        VerifySample(t, c, b, tuple(truth(t, c, b) * np.exp(noise * rng.standard_normal(repeats))))
        for b in batches
        for c in contexts
        for t in tokens
        if t >= b
    ]
    draft = [DraftSample(c, b, (0.001 + 1e-8 * c + 1e-4 * b,)) for b in batches for c in contexts]
    return Profile(verify, draft, [HostSample((0.0002,))], {"device": "synthetic"}, **more)


def error_of(cost: CostModel, truth: Truth, tokens: Sequence[int], contexts: Sequence[int] = (1024, 3000)) -> float:
    return max(abs(cost.verify_seconds(t, c) / truth(t, c, 1) - 1) for t in tokens for c in contexts)


# what each kind promises


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_what_it_is_made_for(kind: str) -> None:
    truth = {"steps": padded, "roofline": roofline, "convex": hinge, "isotonic": crooked, "table": crooked}[kind]
    cost = fit_cost(measured(truth, buckets=BUCKETS if kind == "steps" else None), kind)
    assert cost.kind == kind == cost.report.asked
    assert error_of(cost, truth, BOTH_SIDES) < 0.01
    if kind in ("steps", "roofline", "convex"):
        assert error_of(cost, truth, (5, 77, 300, 450, 700)) < 0.02
    assert cost.report.kinds[kind].points > 0 and cost.report.noise == pytest.approx(0.0015, rel=0.5)


def test_a_convex_fit_never_says_that_a_pass_is_free() -> None:
    # One token was measured at twice and at half its time, so it counts for little; the line through the others meets 0 there.
    verify = [
        VerifySample(1, 0, 1, (0.005, 0.02)), VerifySample(950, 0, 1, (0.005,)), VerifySample(1000, 0, 1, (0.02,)),
    ]  # fmt: skip
    profile = Profile(verify)
    cost = fit_cost(profile, "convex")
    assert 0.0025 <= cost.verify_seconds(1, 0) < cost.verify_seconds(950, 0) < cost.verify_seconds(1000, 0)
    shapes_hold(profile, "convex")


@st.composite
def noisy_profiles(draw: Any) -> Profile:
    tokens = sorted(draw(st.sets(st.integers(1, 1024), min_size=2, max_size=12)))
    contexts = sorted(draw(st.sets(st.integers(0, 8999), min_size=1, max_size=4)))
    seconds = st.lists(st.floats(0.005, 0.02), min_size=1, max_size=3)
    verify = [VerifySample(t, c, 1, tuple(draw(seconds))) for c in contexts for t in tokens]
    return Profile(verify, buckets=draw(st.sampled_from([None, BUCKETS, (4, 2000), (1024,)])))


@pytest.mark.parametrize("cases", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_shapes_hold_whatever_was_measured(cases: int) -> None:
    strategies.run(cases, shapes_hold, noisy_profiles(), st.sampled_from(KINDS))


def shapes_hold(profile: Profile, kind: str) -> None:
    cost = fit_cost(profile, kind)
    last = int(cost.range.tokens[1])
    t = np.unique(np.concatenate([np.arange(1, last + 40, 7), [s.tokens for s in profile.verify]])).astype(float)
    assert cost.range.contexts is not None
    for context in (cost.range.contexts[0], sum(cost.range.contexts) / 2, cost.range.contexts[1] + 1000):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            seconds = cost.verify_seconds(t, context)
        assert np.isfinite(seconds).all() and (seconds > 0).all() and seconds.max() < 10
        if kind in ("convex", "isotonic", "roofline"):
            assert (np.diff(seconds) >= -1e-9).all(), "not monotone"
        if kind == "convex":
            inside = t >= profile_first(profile)
            slopes = np.diff(seconds[inside]) / np.diff(t[inside])
            assert (np.diff(slopes) >= -1e-8).all(), "not convex"
        if kind == "steps" and profile.buckets is not None:
            size = pad(t, profile.buckets)
            same = (size[1:] == size[:-1]) & (t[1:] <= profile.buckets[-1]) & (t[1:] <= last)
            within = np.diff(seconds)[same]
            # Past the measured contexts attention goes on with the tokens that are verified; padding asks for none.
            assert (within >= 0).all() if context > cost.range.contexts[1] else (within == 0).all(), (
                "one bucket, two costs"
            )


def test_a_roofline_of_no_context_says_nothing_of_contexts() -> None:
    cost = fit_cost(Profile([VerifySample(n, 0, 1, (1 / 64,)) for n in (1, 2)]), "roofline")
    with pytest.warns(ExtrapolationWarning, match="context 1000"):
        assert cost.verify_seconds(2, 1000) == pytest.approx(1 / 64, rel=1e-3)  # it said 16,000 s


def profile_first(profile: Profile) -> int:
    return min(s.tokens for s in profile.verify)


def test_steps_use_the_declared_buckets() -> None:
    sizes = measured(padded, BUCKETS, buckets=BUCKETS)  # measured at the bucket sizes only
    for kind in ("auto", "steps"):
        cost = fit_cost(sizes, kind)
        assert cost.kind in ("steps", "roofline")  # both pad
        assert cost.report.buckets == list(BUCKETS) and cost.report.buckets_from == "profile"
        for t in (2, 9, 33, 100, 129, 500, 769):
            assert cost.verify_seconds(t, 1024) == cost.verify_seconds(pad(np.array([t * 1.0]), BUCKETS), 1024)[0]
        assert error_of(cost, padded, range(1, 1025, 3)) < 0.01
        assert not cost.is_convex() and "greedy stop may end at a step" in cost.explain()


def test_steps_find_undeclared_buckets() -> None:
    cost = fit_cost(measured(padded), "steps")
    assert cost.report.buckets_from == "found"
    # small passes cost the same whatever their size, so only buckets that cost something can be found
    dear = [b for b in BUCKETS if b >= 192]
    assert set(dear) <= set(cost.report.buckets or [])
    assert error_of(cost, padded, range(1, 1025, 3)) < 0.03


def test_padded_sizes_are_inside_what_was_measured() -> None:
    profile = measured(padded, (8, 16, 100, 1000), buckets=BUCKETS)
    for kind in ("steps", "roofline"):
        cost = fit_cost(profile, kind)
        assert cost.range.tokens == (2, 1024)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cost.verify_seconds([2, 5, 1001, 1024], 1024)
    assert fit_cost(profile, "convex").range.tokens == (8, 1000)


def test_roofline_recovers_what_made_the_data_over_batches_too() -> None:
    cost = fit_cost(measured(roofline, batches=(1, 4, 16), contexts=(256, 2048, 8192)), "roofline")
    parameters = cost.parameters
    assert parameters is not None
    for name, rel in (("kv", 0.03), ("token", 0.03), ("attention", 0.1)):
        assert parameters[name] == pytest.approx(getattr(TRUTH, name), rel=rel)
    assert cost.verify_seconds(300, 1000, 9) == pytest.approx(roofline(300, 1000, 9), rel=0.01)


# between and outside


@pytest.mark.parametrize("kind", ["steps", "convex", "isotonic", "table"])
def test_linear_between_contexts_and_batches(kind: str) -> None:
    cost = fit_cost(measured(roofline, batches=(1, 8), noise=0.0), kind)
    t = np.array([16.0, 200, 900])
    low, high = cost.verify_seconds(t, 1024, 1), cost.verify_seconds(t, 2048, 1)
    np.testing.assert_allclose(cost.verify_seconds(t, 1280, 1), 0.75 * low + 0.25 * high, rtol=1e-12)
    one, eight = cost.verify_seconds(t, 1280, 1), cost.verify_seconds(t, 1280, 8)
    np.testing.assert_allclose(cost.verify_seconds(t, 1280, 4.5), (one + eight) / 2, rtol=1e-12)
    table = cost.verify_seconds(t[:, None, None], np.array([300, 1024, 5000])[:, None], np.array([1, 3, 8]))
    assert table.shape == (3, 3, 3)
    assert table[1, 2, 0] == cost.verify_seconds(200, 5000, 1)


@st.composite
def grids(draw: Any) -> tuple[str, list[Curve]]:
    kind = draw(st.sampled_from(["steps", "convex", "isotonic", "table"]))
    curves = []
    for batch in sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=3))):
        for context in sorted(draw(st.sets(st.integers(0, 9000), min_size=1, max_size=4))):
            x = np.array(sorted(draw(st.sets(st.integers(1, 299), min_size=1, max_size=5))), float)
            y = (draw(ints(10, 100, len(x))) if kind == "table" else np.sort(draw(ints(10, 100, len(x))))) / 1000
            curves.append(Curve(context, batch, x[0], x[-1], tuple(x.tolist()), tuple(y.tolist())))
    return kind, curves


@settings(max_examples=300, deadline=None)
@given(
    grids(), st.lists(st.tuples(st.integers(1, 400), st.integers(0, 12000), st.floats(1, 60)), min_size=1, max_size=9)
)
def test_interpolation_against_a_plain_one(grid: tuple[str, list[Curve]], asked: list[tuple[int, int, float]]) -> None:
    kind, curves = grid
    t, c, b = (np.array(column, np.float64) for column in zip(*asked, strict=True))
    value, _, out_context, out_batch = Surface(kind, curves, None).seconds(t, c, b)
    want = [naive_cost.surface(curves, kind, *one) for one in asked]
    np.testing.assert_allclose(value, want, rtol=1e-9)
    batches = sorted({curve.batch for curve in curves if curve.batch})
    assert out_batch.tolist() == [not batches[0] <= x <= batches[-1] for x in b]
    spans = {x: [k.context for k in curves if k.batch == x] for x in batches}
    for i in range(len(asked)):
        near = {max([x for x in batches if x <= b[i]], default=batches[0])}
        near |= {min([x for x in batches if x >= b[i]], default=batches[-1])}
        outside = any(not min(spans[x]) <= c[i] <= max(spans[x]) for x in near)  # type: ignore[type-var]
        assert out_context[i] == outside


@st.composite
def round_points(draw: Any) -> list[RoundPoint]:
    batches = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=3)))
    contexts = [sorted(draw(st.sets(st.integers(0, 9000), min_size=1, max_size=4))) for _ in batches]
    return [
        RoundPoint(c, b, draw(st.integers(10, 100)) / 1e4) for b, of in zip(batches, contexts, strict=True) for c in of
    ]


@settings(max_examples=200, deadline=None)
@given(round_points(), st.lists(st.tuples(st.integers(0, 12000), st.floats(1, 200)), min_size=1, max_size=9))
def test_round_times_against_plain_ones(points: list[RoundPoint], asked: list[tuple[int, float]]) -> None:
    c, b = (np.array(column, np.float64) for column in zip(*asked, strict=True))
    value, out_context, out_batch = RoundTimes("drafting", points).seconds(c, b)
    np.testing.assert_allclose(value, [naive_cost.round_times(points, *one) for one in asked], rtol=1e-9)
    batches = [p.batch or 1 for p in points]
    assert out_batch.tolist() == [not min(batches) <= x <= max(batches) for x in b]
    assert out_context.shape == c.shape


def test_the_context_comes_before_the_batch_wherever_both_have_a_place() -> None:
    import inspect

    for callable_ in (CostModel.verify_seconds, CostModel.ar_seconds, CostModel.is_convex, CostModel.draft_seconds):
        names = [
            name
            for name, p in inspect.signature(callable_).parameters.items()
            if p.kind is p.POSITIONAL_OR_KEYWORD and name in ("tokens", "max_tokens", "context", "batch")
        ]
        assert names == sorted(names, key=["tokens", "max_tokens", "context", "batch"].index), callable_
    with pytest.raises(TypeError):
        TABLE_COST.draft_seconds(8, 1024)  # type: ignore[call-overload]


def test_draft_and_host_by_context_and_batch() -> None:
    cost = fit_cost(measured(roofline, batches=(1, 8)), "table")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # host work was measured at batch 1 only
        assert cost.draft_seconds(1, context=1024) == pytest.approx(0.001 + 1e-8 * 1024 + 1e-4 + 0.0002)
        assert cost.draft_seconds(4.5, context=3072) == pytest.approx(0.001 + 1e-8 * 3072 + 4.5e-4 + 0.0002)
        assert cost.draft_seconds(1, context=10_000) == pytest.approx(0.001 + 1e-8 * 10_000 + 1e-4 + 0.0002)
        assert cost.draft_seconds(np.array([1, 8]), context=1024).shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_extrapolation_is_flagged_once_an_axis_and_sane(kind: str) -> None:
    truth = padded if kind == "steps" else roofline
    cost = fit_cost(measured(truth, buckets=BUCKETS if kind == "steps" else None), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost.verify_seconds([1, 500, 1024], [256, 999, 8192])
    for arguments, words, near in (
        ((2048, 1024, 1), "tokens 2048 is outside the measured 1–1024", 0.1),
        ((512, 16384, 1), "context 16384 is outside the measured 256–8192", 0.1),
        ((512, 1024, 8), "batch 8 is outside the measured 1", 0.25),
    ):
        with pytest.warns(ExtrapolationWarning, match=words) as caught:
            value = cost.verify_seconds(*arguments)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert value == pytest.approx(roofline(*arguments), rel=near)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cost.verify_seconds(*arguments) == value  # said once


@pytest.mark.parametrize("kind", ["steps", "isotonic", "table", "convex"])
def test_two_points_in_the_last_bucket_do_not_make_everything_past_it_free_or_dear(kind: str) -> None:
    for tokens in ((*BOTH_SIDES, 1025), (*BOTH_SIDES[:-1], 1000, 1024)):
        cost = fit_cost(measured(padded, tokens, buckets=BUCKETS if kind == "steps" else None), kind)
        with pytest.warns(ExtrapolationWarning):
            value = cost.verify_seconds(2048, 1024)
        assert value == pytest.approx(roofline(2048, 1024, 1), rel=0.15)


def test_a_batch_outside_adds_the_reading_of_its_cache() -> None:
    cost = fit_cost(measured(roofline, noise=0.001), "table")
    with pytest.warns(ExtrapolationWarning, match="batch 32"):
        extra = cost.verify_seconds(64, 4096, 32) - cost.verify_seconds(64, 4096, 1)
    assert extra == pytest.approx(31 * 4096 * TRUTH.kv, rel=0.25)
    # not the arithmetic of attending to other requests' contexts
    assert cost.verify_seconds(1024, 4096, 32) - cost.verify_seconds(1024, 4096, 1) == pytest.approx(extra)
    with pytest.warns(ExtrapolationWarning, match="of drafting 4 is outside the measured 1") as caught:
        more = cost.draft_seconds(4, context=1024) - cost.draft_seconds(1, context=1024)
    assert more == pytest.approx(3 * 1024 * 1e-8)
    assert len(caught) == 2  # host work was measured at batch 1 as well


def additive(t: float, c: float, b: float) -> float:
    """As most engines: matrix products, and after them attention, which reads every request's cache."""
    return 0.003 + max(0.006, 2e-5 * t) + 5e-8 * b * c + 1e-9 * t * c


@pytest.mark.parametrize("kind", ["steps", "convex", "isotonic", "table"])
@pytest.mark.parametrize("batches", [(1, 8, 32), (4, 16), (1,)])
def test_batches_outside_against_the_truth(kind: str, batches: tuple[int, ...]) -> None:
    """Two and four times the last batch: with the slope taken for one request's, 256 tokens at 64 x 1,024 were 6 times the truth."""
    last = batches[-1]
    for truth in (additive, roofline):
        sizes = {"tokens": BUCKETS, "buckets": BUCKETS} if kind == "steps" else {}
        cost = fit_cost(measured(truth, batches=batches, noise=0.002, **sizes), kind)
        for batch in (2 * last, 4 * last):
            for t in (batch, 256, 1024):
                for c in (256, 1024, 3000, 8192):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ExtrapolationWarning)
                        error = cost.verify_seconds(t, c, batch) / truth(t, c, batch) - 1
                    # the roofline's reading hides behind arithmetic where that takes as long, which no curve can know
                    memory, flops = TRUTH.weights + TRUTH.kv * last * c, (TRUTH.token + TRUTH.attention * c) * t
                    hidden = 0.35 if truth is roofline and flops > 0.5 * memory else 0.04
                    assert -0.04 < error < hidden, (truth.__name__, t, c, batch)


def test_the_shipped_batches_extrapolate_to_the_one_left_out() -> None:
    """Batch 32 from batches 1 and 8, as measured on an H100."""
    profile = read_profile(Path(__file__).parents[2] / "traces/profiles/qwen3-8b-cost-h100-batches.json.gz")
    known = [[s for s in samples if s.batch < 32] for samples in (profile.verify, profile.draft, profile.host)]
    cost = fit_cost(Profile(*known, buckets=profile.buckets), "steps")
    points = profile.points()
    points = points.take(points.batch == 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        error = cost.verify_seconds(points.tokens, points.context, 32) / points.seconds - 1
        rounds = [cost.draft_seconds(32, context=c) for c in CONTEXTS]
    assert np.median(np.abs(error)) < 0.05 and np.abs(error).max() < 0.25  # were 1.16 and 4.0
    truth = fit_cost(profile, "table").draft_seconds(32, context=np.array(CONTEXTS))
    np.testing.assert_allclose(rounds, truth, rtol=0.25)


# outliers


@pytest.mark.parametrize("kind", KINDS)
def test_one_disturbed_sample_changes_next_to_nothing(kind: str) -> None:
    clean = measured(padded if kind == "steps" else roofline, buckets=BUCKETS if kind == "steps" else None)
    samples = list(clean.verify)
    s = samples[40]
    samples[40] = VerifySample(s.tokens, s.context, s.batch, (*s.seconds[:-1], 1.0))
    disturbed = Profile(samples, buckets=clean.buckets)
    t = np.arange(1, 1025)
    ratio = fit_cost(disturbed, kind).verify_seconds(t, s.context) / fit_cost(clean, kind).verify_seconds(t, s.context)
    assert np.abs(ratio - 1).max() < 0.005


@pytest.mark.parametrize("kind", ["steps", "roofline", "convex", "isotonic"])
@pytest.mark.parametrize("seed", range(3))
def test_one_disturbed_point_is_outvoted_and_named(kind: str, seed: int) -> None:
    truth = padded if kind == "steps" else roofline
    clean = measured(truth, buckets=BUCKETS if kind == "steps" else None, seed=seed)
    samples = list(clean.verify)
    which = [i for i, s in enumerate(samples) if s.context == 2048 and 16 < s.tokens < 700][7 * seed]
    s = samples[which]
    samples[which] = VerifySample(s.tokens, s.context, s.batch, tuple(1.4 * x for x in s.seconds))
    cost = fit_cost(Profile(samples, buckets=clean.buckets), kind)
    others = [t for t in BOTH_SIDES if t != s.tokens]
    assert error_of(cost, truth, others, (2048,)) < 0.03
    value = cost.verify_seconds(s.tokens, 2048)
    if kind == "isotonic":  # all that monotone curves know is that it lies between its neighbours
        above = BOTH_SIDES[BOTH_SIDES.index(s.tokens) + 1]
        assert truth(s.tokens, 2048, 1) * 0.97 < value < truth(above, 2048, 1) * 1.03
    else:
        assert value == pytest.approx(truth(s.tokens, 2048, 1), rel=0.03)
    # its neighbour in the same bucket looks as odd, since each was predicted from the other
    named = [w for w in cost.report.worst_points[:2] if (w["tokens"], w["context"]) == (s.tokens, 2048)]
    assert named and named[0]["error"] == pytest.approx(1 / 1.4 - 1, abs=0.05)


# the choice


@pytest.mark.parametrize(
    ("truth", "declared", "picked"),
    [
        (roofline, False, {"roofline"}),
        (padded, True, {"steps"}),
        (padded, False, {"steps"}),
        (hinge, False, {"convex"}),
        (crooked, False, {"isotonic", "table"}),
    ],
)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_auto_picks_the_kind_that_predicts(truth: Truth, declared: bool, picked: set[str], seed: int) -> None:
    dense = tuple(sorted({*BOTH_SIDES, *range(24, 1025, 40), *(b + 12 for b in BUCKETS[3:-1])}))
    tokens = dense if truth is padded and not declared else BOTH_SIDES
    cost = fit_cost(measured(truth, tokens, seed=seed, buckets=BUCKETS if declared else None))
    assert cost.kind in picked, cost.explain()
    report = cost.report
    assert set(report.kinds) == set(KINDS) and report.asked == "auto"
    least = min(r.score for r in report.kinds.values())
    assert report.kinds[cost.kind].score <= 1.1 * least + 0.001
    assert {"tokens", "contexts"} <= set(report.kinds[cost.kind].axes)
    text = cost.explain()
    assert f"'{cost.kind}' (picked" in text and "held-out error" in text and "fitted on tokens 1–1024" in text


def disturbed(profile: Profile, count: int, seed: int, factor: float = 1.5) -> Profile:
    """The profile with some points slowed down in all their repeats."""
    rng = np.random.default_rng(seed)
    samples = list(profile.verify)
    for i in rng.choice(len(samples), count, replace=False):
        s = samples[i]
        samples[i] = VerifySample(s.tokens, s.context, s.batch, tuple(factor * x for x in s.seconds))
    return Profile(samples, profile.draft, profile.host, buckets=profile.buckets)


def fit_quietly(profile: Profile, kind: str = "auto") -> CostModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProfileWarning)
        return fit_cost(profile, kind)


@pytest.mark.parametrize("contexts", [(1024,), CONTEXTS])
@pytest.mark.parametrize(
    ("outliers", "seed"),
    [(0, 0), (1, 1), (3, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0), (3, 1)))],
)
def test_undeclared_steps_are_found_through_outliers(contexts: tuple[int, ...], outliers: int, seed: int) -> None:
    """Measured on both sides of each bucket. Was: another kind, and 17 to 26 % off between the sizes."""
    cost = fit_quietly(disturbed(measured(padded, contexts=contexts, seed=seed), outliers, seed))
    assert cost.kind == "steps" and cost.report.buckets_from == "found", cost.explain()
    ask = range(1, 1025, 3)
    assert np.median([abs(cost.verify_seconds(t, 1024) / padded(t, 1024, 1) - 1) for t in ask]) < 0.005
    # where an outlier was all that told of a bucket's other sizes, nothing can
    error = [abs(cost.verify_seconds(t, 1024) / padded(t, 1024, 1) - 1) for t in ask]
    assert np.quantile(error, 1.0 if outliers == 0 else 0.85) < 0.05


@pytest.mark.parametrize("truth", [roofline, hinge, crooked])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_slopes_are_not_taken_for_steps(truth: Truth, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost = fit_cost(measured(truth, contexts=(1024,), seed=seed))
    assert cost.kind != "steps" and cost.report.notes == []
    spiky = fit_quietly(disturbed(measured(truth, contexts=CONTEXTS, seed=seed), 2, seed))
    assert spiky.kind != "steps" and error_of(spiky, truth, (50, 300, 600)) < 0.05, spiky.explain()


def test_sizes_that_can_not_tell_are_named() -> None:
    powers = tuple(2**k for k in range(11))
    with pytest.warns(ProfileWarning, match="no buckets are declared") as caught:
        cost = fit_cost(measured(padded, powers))
    assert len(caught) == 1 and caught[0].filename == __file__
    for text in (str(caught[0].message), cost.explain()):
        assert re.search(
            r"anywhere between 128 and 256 \(\+\d+ %\), 256 and 512 \(\+4\d %\), 512 and 1024 \(\+7\d %\)", text
        ), text
        assert "declare buckets, or measure both sides of likely ones" in text
    truth = [padded(t, 1024, 1) for t in (300, 513)]
    assert (cost.verify_seconds([300, 513], 1024) / truth).min() < 0.9  # as unsure as it says
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_cost(measured(padded, powers, buckets=BUCKETS)).report.notes == []
    model = CostModel.from_table([1, 2], [0.1, 0.2]).to_json()
    del model["report"]["notes"]  # as older versions saved them
    with_old = json.loads(json.dumps(model))
    from ddsim.cost.model import _model

    assert _model(with_old, "old").report.notes == []


def test_spikes_do_not_choose_the_kind() -> None:
    """A disturbed point says nothing about kinds: scores without it stay near those of the clean profile."""
    clean = fit_quietly(measured(hinge, seed=3))
    spiky = fit_quietly(disturbed(measured(hinge, seed=3), 3, 4))
    assert spiky.kind == clean.kind == "convex"
    assert spiky.report.kinds["convex"].score < clean.report.kinds["convex"].score + 0.002
    assert spiky.report.kinds["convex"].worst > 0.25  # but they are reported


# what can hardly be true


CONSTANTS = {
    "weight_bytes": 15e9, "bandwidth_bytes_per_s": 3e12, "flops_per_token": 15e9, "flops_per_s": 8e14, "kv_bytes_per_token": 1.5e5,
}  # fmt: skip


def times(profile: Profile, factor: float) -> Profile:
    verify = [VerifySample(s.tokens, s.context, s.batch, tuple(factor * x for x in s.seconds)) for s in profile.verify]
    return Profile(verify, buckets=profile.buckets, **CONSTANTS)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (
            1000,
            r"verify at \d+ tokens, context 256, batch 1 is the fastest pass and takes [89]\.\d+ s: are these milliseconds\? Divide by",
        ),
        (100, None),
        (1e-3, r"takes 0\.00[89]\d* ms, but reading 15 GB of weights at 3,000 GB/s takes 5 ms"),
        (0.3, r"takes 2\.\d+ ms, but reading 15 GB"),
        (0.6, None),
    ],
)
def test_seconds_of_another_unit_are_asked_about(factor: float, words: str | None) -> None:
    profile = times(measured(roofline, contexts=(256, 2048)), factor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cost = fit_cost(profile, "table")
    assert len(caught) == (words is not None)
    if words is not None:
        assert re.search(words, str(caught[0].message)) and re.search(words, cost.explain(), re.IGNORECASE)
        assert "\n" not in str(caught[0].message)


def test_hundreds_of_times_what_the_device_needs_is_asked_about() -> None:
    small = Profile(
        [VerifySample(t, 512, 1, (0.5 + 1e-4 * t,)) for t in (1, 64)],
        **{**CONSTANTS, "weight_bytes": 1e9, "flops_per_token": 1e9},
    )
    with pytest.warns(
        ProfileWarning, match=r"verify at 1 tokens, context 512, batch 1 takes 0\.5001 s, 1,500 times what weights"
    ):
        fit_cost(small, "table")


def test_costs_that_fall_with_tokens_are_asked_about() -> None:
    falling = Profile([VerifySample(t, 512, 1, (0.02 - 1e-5 * t,) * 3) for t in (1, 64, 256, 1024)])
    with pytest.warns(
        ProfileWarning,
        match=r"falls with more tokens: verify at 1024 tokens, context 512, batch 1 takes 9\.76 ms, 51 % less than 1 tok",
    ):
        fit_cost(falling, "table")
    noisy = Profile([VerifySample(t, 512, 1, s) for t, s in ((1, (0.01, 0.03, 0.02)), (64, (0.009, 0.018, 0.012)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the bars overlap
        fit_cost(noisy, "table")


def test_drafts_in_milliseconds_are_asked_about() -> None:
    verify = [VerifySample(t, 512, 1, (0.01,)) for t in (1, 64)]
    for slow in ({"draft": [DraftSample(512, 1, (1.6,))]}, {"host": [HostSample((2.0,))]}):
        with pytest.warns(ProfileWarning, match="(draft|host) takes .* more than 10 times any verification"):
            fit_cost(Profile(verify, **slow), "table")  # type: ignore[arg-type]


def test_shipped_profiles_are_taken_without_a_question() -> None:
    root = Path(__file__).parents[2]
    paths = [*sorted((root / "traces/profiles").glob("*.json*")), *sorted((root / "ddsim/data").glob("*cost*.json"))]
    assert len(paths) >= 5
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cost = fit_cost(read_profile(path), "table")
        assert cost.report.notes == []


def test_tables_in_milliseconds_are_asked_about() -> None:
    with pytest.warns(
        ProfileWarning, match=r"seconds look like milliseconds: the fastest pass would take 12 s; divide by 1,000"
    ):
        CostModel.from_table([1, 64], [12.0, 14.0])
    with pytest.warns(ProfileWarning, match="draft_seconds look like milliseconds"):
        CostModel.from_table([1, 64], [0.012, 0.014], draft_seconds=1.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CostModel.from_table([1, 64], [0.9, 12.0], draft_seconds=0.5)
    for arguments, words in (
        (([1, 64], [12000.0, 14000.0]), r"seconds: 14000 is more than any pass takes, in seconds \(3,600\)"),
        (([1, 2**50], [0.01, 0.02]), r"tokens: 1\.1\d+e\+15 is more than any pass verifies, in tokens \(4,194,304\)"),
        (([1, 2], [0.01, 0.02], 1e200), r"draft_seconds: 1e\+200 is more"),
    ):
        with pytest.raises(DdsimError, match=words):
            CostModel.from_table(*arguments)  # type: ignore[arg-type]


def test_held_out_errors_are_honest() -> None:
    """The error that is reported is about the error on sizes that were never measured."""
    cost = fit_cost(measured(hinge, (1, 8, 32, 64, 128, 256, 512, 768, 1024), noise=0.002), "convex")
    between = [abs(cost.verify_seconds(t, c) / hinge(t, c, 1) - 1) for t in range(2, 1024, 11) for c in (700, 3000)]
    mine = cost.report.kinds["convex"]
    assert np.median(between) <= mine.median * 2 and max(between) <= mine.worst * 1.5


def test_too_little_to_judge() -> None:
    two = [VerifySample(t, 512, 1, (s,)) for t, s in ((1, 0.01), (64, 0.02))]
    cost = fit_cost(Profile(two))
    assert cost.kind == "table" and "too few token counts and contexts to leave any out" in cost.explain()
    assert cost.verify_seconds(32.5, 512) == pytest.approx(0.015)
    assert fit_cost(Profile(two, buckets=(1, 64))).kind == "steps"
    for kind in KINDS:
        assert fit_cost(Profile(two), kind).verify_seconds(64, 512) == pytest.approx(0.02, rel=0.02)


def test_same_profile_same_model() -> None:
    profile = measured(padded, buckets=BUCKETS)
    assert fit_cost(profile).to_json() == fit_cost(profile).to_json()
    shuffled = Profile(profile.verify[::-1], profile.draft, profile.host, profile.provenance, profile.buckets)
    assert fit_cost(shuffled).to_json() == fit_cost(profile).to_json()


def test_fits_in_the_time_that_the_demo_has() -> None:
    tokens = sorted({*BOTH_SIDES, *range(24, 1025, 64)})
    profile = measured(padded, tokens, (256, 512, 1024, 2048, 4096, 8192), repeats=10, buckets=BUCKETS)
    fit_cost(measured(roofline, (1, 8, 64), (512,)))  # imports
    start = time.process_time()
    fit_cost(profile)
    assert time.process_time() - start < 4  # 1 s on an idle core; 2 s is the target, and this machine may be shared


# tables by hand, and prices of positions


def test_from_table() -> None:
    cost = CostModel.from_table([1, 64, 512], [0.010, 0.012, 0.026], draft_seconds=0.001)
    assert cost.verify_seconds([1, 32.5, 512], 99999, 64).tolist() == [0.010, 0.011, 0.026]
    assert cost.draft_seconds(8, context=123) == 0.001 and cost.ar_seconds() == 0.010
    assert cost.range.contexts is None and cost.range.batches is None
    assert not cost.is_convex() and CostModel.from_table([1, 64, 512], [0.010, 0.012, 0.036]).is_convex()


def test_from_table_with_buckets_costs_a_size_its_bucket() -> None:
    cost = CostModel.from_table([1, 60, 64, 512], [0.010, 0.011, 0.012, 0.026], 0.001, buckets=[1, 64, 128, 512])
    assert cost.buckets == (1, 64, 128, 512) and cost.report.buckets_from == "typed in"
    assert cost.verify_seconds([1, 2, 64, 65, 128, 129, 500]).tolist() == pytest.approx(
        [0.010, 0.011, 0.011, 0.011 + 0.015 / 7, 0.011 + 0.015 / 7, 0.026, 0.026]  # 128: on the line from 64 to 512
    )
    assert cost.draft_seconds() == 0.001 and not cost.is_convex()
    half = CostModel.from_table([10, 60], [0.010, 0.011], buckets=np.array([8, 16, 64]))
    assert half.range.tokens == (9, 64)  # sizes of a measured bucket are inside
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half.verify_seconds([9, 64])
    for wrong, words in (
        ([64, 64], r"from_table: buckets\[1\]: 64 does not exceed"),
        ([], "buckets: needs at least 1 entry"),
        (64, "buckets: must be a list"),
        ([1.5, 2], r"buckets\[0\]: must be a whole number"),
    ):
        with pytest.raises(DdsimError, match=words):
            CostModel.from_table([1, 64], [0.01, 0.02], buckets=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_are_the_declared_ones_or_those_found(kind: str, tmp_path: Path) -> None:
    declared = fit_cost(measured(padded, BUCKETS, buckets=BUCKETS), kind)
    assert declared.buckets == BUCKETS  # the engine pads, whatever shape is fitted
    declared.save(tmp_path / "cost.json")
    assert CostModel.load(tmp_path / "cost.json").buckets == BUCKETS
    found = fit_cost(measured(padded), kind).buckets
    assert found is None if kind != "steps" else found is not None and {512, 768, 1024} <= set(found)
    assert CostModel.from_table([1, 64], [0.010, 0.012]).buckets is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1], [0.1]), "at least 2 tokens"),
        (([1, 2], [0.1]), "as many seconds"),
        (([[1, 2]], [[0.1, 0.2]]), "at least 2 tokens"),
        (([2, 1], [0.1, 0.2]), "tokens must ascend"),
        (([1, 1], [0.1, 0.2]), "tokens must ascend"),
        (([0, 1], [0.1, 0.2]), "tokens must ascend from 1"),
        (([1, float("nan")], [0.1, 0.2]), "tokens must ascend"),
        (([1, 2], [0.1, float("nan")]), "seconds must be finite and above 0"),
        (([1, 2], [0.1, -0.2]), "seconds must be finite and above 0"),
        ((["a", 2], [0.1, 0.2]), "lists of numbers"),
        (([1, 2], [0.1, 0.2], -1.0), "draft_seconds: must be at least 0"),
    ],
)
def test_from_table_refuses(arguments: Any, words: str) -> None:
    with pytest.raises(DdsimError, match=words) as error:
        CostModel.from_table(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "tokens must be finite and at least 1"),
        ((float("nan"),), "tokens must be finite"),
        (("a",), "tokens must be numbers"),
        ((1, -1), "context must be finite and at least 0"),
        ((1, 1, 0), "batch must be finite and at least 1"),
    ],
)
def test_questions_without_sense_are_refused(arguments: Any, words: str) -> None:
    cost = CostModel.from_table([1, 64], [0.010, 0.012])
    with pytest.raises(DdsimError, match=words):
        cost.verify_seconds(*arguments)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=30), st.integers(0, 60), st.sampled_from([1, 8]))
def test_cost_table_prices_every_position(contexts: list[int], budget: int, batch: int) -> None:
    cost = TABLE_COST
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        for _ in range(2):  # the second comes from the rows kept
            table = cost_table(cost, contexts, budget, batch)
            assert table.seconds.shape == (len(table.contexts), budget + 1) and table.row.dtype == np.int32
            for context, row in zip(contexts, table.row, strict=True):
                rounded = -(-context // CONTEXT_STEP) * CONTEXT_STEP
                assert table.contexts[row] == rounded
                draft = cost.draft_seconds(batch, context=rounded)
                for n in {0, budget}:
                    want = draft + cost.verify_seconds(batch + n, rounded, batch)
                    assert table.seconds[row, n] == pytest.approx(want, rel=1e-12)
                assert table.ar_seconds[row] == pytest.approx(cost.ar_seconds(rounded, batch), rel=1e-12)


TABLE_COST = fit_cost(measured(padded, batches=(1, 8), contexts=(256, 1024, 8192), buckets=BUCKETS), "steps")


@pytest.mark.parametrize("arguments", [([0.5], 4), ([-1], 4), ([1], -1), ([1], 4, 0)])
def test_cost_table_refuses(arguments: Any) -> None:
    with pytest.raises(DdsimError, match="cost_table"):
        cost_table(TABLE_COST, *arguments)


# files


@pytest.mark.parametrize("buckets", [None, (1, 8, 16, 32, 64, 128)])
@pytest.mark.parametrize("kind", [*KINDS, "by hand"])
def test_convex_of_every_kind(tmp_path: Path, kind: str, buckets: tuple[int, ...] | None) -> None:
    sizes = (1, 4, 8, 9, 16, 17, 32, 33, 64, 65, 128)
    padded = dict.fromkeys(sizes) if buckets is None else {t: min(b for b in buckets if b >= t) for t in sizes}
    samples = [
        VerifySample(t, c, b, (0.010 * b**0.1 + 1e-4 * (padded[t] or 8 * (t // 8)) + 1e-7 * b * c,))
        for t in sizes
        for c in (256, 1024)
        for b in (1, 2)
        if t >= b
    ]
    profile = Profile(samples, [DraftSample(256, 1, (0.001,)), DraftSample(1024, 1, (0.002,))], buckets=buckets)
    if kind == "by hand":
        cost = CostModel.from_table([1, 16, 17, 32, 64], [0.010, 0.010, 0.012, 0.012, 0.019], draft_seconds=0.001)
    else:
        cost = fit_cost(profile, kind)
    convex = cost.convex()
    assert convex is cost.convex() and convex.convex() is convex and (convex is cost) == (kind == "convex")
    tokens = np.arange(1, 129 if kind != "by hand" else 65)
    for context in (256, 700, 1024):
        for batch in (1, 2):
            curve = convex.verify_seconds(tokens, context, batch)
            measured = cost.verify_seconds(tokens, context, batch)
            slopes = np.diff(curve)
            assert (slopes >= -1e-12).all() and (np.diff(slopes) >= -1e-9 * curve.max()).all()
            assert np.abs(curve / measured - 1).mean() < 0.1
            assert (
                (curve - measured).max() >= 0 >= (curve - measured).min()
            )  # through the points, not under or over them
            assert convex.draft_seconds(batch, context=context) == cost.draft_seconds(batch, context=context)
    cost.save(tmp_path / "cost.json")
    again = CostModel.load(tmp_path / "cost.json").convex()
    assert again.verify_seconds(tokens, 700).tolist() == convex.verify_seconds(tokens, 700).tolist()


def test_what_a_convex_fit_extrapolates_is_said_once() -> None:
    cost = CostModel.from_table([1, 8, 9, 16], [0.010, 0.010, 0.014, 0.014])
    with pytest.warns(ExtrapolationWarning, match="17"):
        cost.verify_seconds(17)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost.convex().verify_seconds(17)


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_saved_models_come_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    cost = fit_cost(measured(padded, batches=(1, 8), contexts=(256, 2048, 8192), buckets=BUCKETS), kind)
    cost.save(tmp_path / "cost.json")
    again = CostModel.load(tmp_path / "cost.json")
    assert again.to_json() == cost.to_json() and again.range == cost.range and again.explain() == cost.explain()
    t, c, b = np.meshgrid(np.arange(1.0, 1200, 13), [1.0, 300, 5000, 20000], [1.0, 3, 8, 20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        assert again.verify_seconds(t, c, b).tobytes() == cost.verify_seconds(t, c, b).tobytes()
        assert again.draft_seconds(b, context=c).tobytes() == cost.draft_seconds(b, context=c).tobytes()
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "cost.json").read_bytes()


def test_open_cost_takes_profiles_and_models(tmp_path: Path) -> None:
    profile = measured(padded, BUCKETS, (512, 2048, 8192), buckets=BUCKETS)
    write_profile(profile, tmp_path / "profile.json")
    fitted = open_cost(tmp_path / "profile.json")
    assert fitted.to_json() == fit_cost(profile).to_json() and fitted.provenance == {"device": "synthetic"}
    fitted.save(tmp_path / "cost.json")
    assert open_cost(tmp_path / "cost.json").to_json() == fitted.to_json()
    assert open_cost(tmp_path / "cost.json", fitted.kind).kind == fitted.kind
    with pytest.raises(
        DdsimError, match=f'holds a fitted "{fitted.kind}" cost model; to get "convex", fit the profile again'
    ):
        open_cost(tmp_path / "cost.json", "convex")
    with pytest.raises(DdsimError, match='unknown cost kind "cubic"'):
        open_cost(tmp_path / "profile.json", "cubic")
    with pytest.raises(DdsimError, match="not a ddsim-cost file"):
        CostModel.load(tmp_path / "profile.json")


def saved(kind: str = "table") -> dict[str, Any]:
    model: dict[str, Any] = json.loads(json.dumps(fit_cost(measured(roofline, (1, 64), (512,)), kind).to_json()))
    return model


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema_version",), 9, "schema version 9 is newer"),
        (("fit",), "spline", "fit: must be one of steps"),
        (("fit",), None, "fit: must be one of"),
        (("fit",), "roofline", "must hold parameters for a roofline fit"),
        (("curves",), [], "curves: needs at least 1 entry"),
        (("curves", 0, "high"), 2.0**50, r"curves\[0\].tokens: .* is more than any pass verifies"),
        (("curves", 0, "seconds", 0), 1e200, r"curves\[0\].seconds: 1e\+200 is more than any pass takes"),
        (("curves", 0, "tokens"), [1, 1], "tokens must ascend"),
        (("curves", 0, "tokens"), [1], "as many seconds as tokens"),
        (("curves", 0, "seconds", 0), -0.1, r"curves\[0\].seconds\[0\]: must be above 0"),
        (("curves", 0, "seconds", 0), float("nan"), "holds NaN"),
        (("curves", 0, "colour"), 1, 'unknown key "colour"'),
        (("curves", 0, "low"), 99, "low be at most high"),
        (("draft", 0, "seconds"), -1, r"draft\[0\].seconds: must be at least 0"),
        (("report",), {"kind": 1}, "report.kind: must be text"),
        (("report",), [], "report: must be an object"),
        (("report", "buckets"), 0, "report.buckets: must be a list"),
        (("report", "buckets"), [1, 4, ""], r"report.buckets\[2\]: must be a whole number"),
        (("report", "buckets"), [], "report.buckets: needs at least 1 entry"),
        (("report", "noise"), "0", "report.noise: must be a number"),
        (("report", "kinds"), [1], "report.kinds: must be an object"),
        (("report", "worst_points"), [{"tokens": None}], r"report.worst_points\[0\].tokens: must be a number"),
        (("report", "notes"), [1], r"report.notes\[0\]: must be text"),
        (("report", "colour"), 1, 'report: unknown key "colour"'),
        (
            ("draft",),
            [{"context": None, "batch": 1, "seconds": 1.0}, {"context": 8, "batch": 2, "seconds": 1.0}],
            "some name a context",
        ),
        (
            ("draft",),
            [{"context": 8, "batch": 1, "seconds": 1.0}] * 2,
            r"draft\[1\]: context 8 and batch 1 stand twice",
        ),
        (("extra",), 1, 'unknown key "extra"'),
        (("provenance",), 1, "provenance: must be an object"),
    ],
)
def test_bad_model_files_get_one_line(tmp_path: Path, path: tuple[Any, ...], value: Any, words: str) -> None:
    document = saved()
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(DdsimError) as error:
        CostModel.load(tmp_path / "bad.json")
    line = str(error.value)
    assert line.startswith(str(tmp_path / "bad.json")) and "\n" not in line and re.search(words, line), line


def test_every_key_of_a_model_file_is_needed(tmp_path: Path) -> None:
    for kind in ("table", "roofline"):
        for key in saved(kind):
            document = saved(kind)
            del document[key]
            (tmp_path / "bad.json").write_text(json.dumps(document))
            with pytest.raises(DdsimError):
                CostModel.load(tmp_path / "bad.json")
    document = saved("roofline")
    document["roofline"]["sharpness"] = 0
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(DdsimError, match=r"roofline\.sharpness: must be above 0"):
        CostModel.load(tmp_path / "bad.json")


def test_unknown_kind() -> None:
    with pytest.raises(DdsimError, match=r'unknown cost kind "cubic" \(known: auto, steps, roofline'):
        fit_cost(measured(roofline, (1, 64), (512,)), "cubic")


def test_scipy_is_imported_by_fits_only() -> None:
    import subprocess
    import sys

    code = "import sys, ddsim.cost.model; ddsim.cost.model.CostModel.from_table([1, 2], [1, 2]); print('scipy.optimize' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


class Parabola(Shape):
    """A kind of its own: seconds rise with the square of the tokens."""

    def fit(self, x: Any, y: Any, weights: Any, buckets: Any) -> tuple[Any, Any]:
        return x, np.polyval(np.polyfit(x**2, y, 1, w=weights**0.5), x**2)


def test_a_kind_is_added_by_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds._SHAPES, "parabola", f"{__name__}:Parabola")
    shape = kinds.shape_of("parabola")
    x = np.array([1.0, 8, 64, 256])
    knots, seconds = shape.fit(x, 0.01 + 1e-7 * x**2, np.ones(4), None)
    curves = [Curve(256, 1, 1.0, 256.0, tuple(knots.tolist()), tuple(seconds.tolist()))]
    model = CostModel("parabola", curves, None, [], [], CostReport("parabola", "parabola", "tried"))
    assert model.verify_seconds(64) == pytest.approx(0.01 + 1e-7 * 64**2)
    assert model.verify_seconds(36) == pytest.approx(0.01 + 1e-7 * (8**2 + 64**2) / 2)
    assert app.KINDS[1:] == KINDS  # the command line's list
