"""Shapes of latency curves: each fit against its plain twin, its constraints by property, known truths recovered."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cost.shapes import (
    Roofline,
    _roofline,
    bucket_levels,
    convex_curve,
    find_buckets,
    fit_roofline,
    isotonic_curve,
    pad,
    robust,
)
from tests.naive import cost as naive_cost
from tests.strategies import ints

many = settings(max_examples=200, deadline=None)


def points(draw: Any, least: int, most: int) -> tuple[Any, Any, Any]:
    m = draw(st.integers(least, most))
    x = np.array(sorted(draw(st.sets(st.integers(1, 1024), min_size=m, max_size=m))), np.float64)
    heights = draw(ints(0, 255, m)) / 255
    rising = np.sort(heights) if draw(st.booleans()) else heights
    return x, 0.001 + 0.05 * rising, 10.0 ** (draw(ints(0, 255, m)) / 64 - 2)


@st.composite
def small(draw: Any) -> tuple[Any, Any, Any]:
    return points(draw, 2, 6)


@st.composite
def large(draw: Any) -> tuple[Any, Any, Any]:
    return points(draw, 2, 40)


@many
@given(small())
def test_convex_is_the_best_of_all_hinge_curves(case: Any) -> None:
    x, y, w = case
    values, twin = convex_curve(x, y, w), naive_cost.convex(x, y, w)
    error, best = (w * (values - y) ** 2).sum(), (w * (twin - y) ** 2).sum()
    assert error <= best * (1 + 1e-9) + 1e-15
    np.testing.assert_allclose(values, twin, rtol=1e-6, atol=1e-9)


@many
@given(large())
def test_convex_is_convex_monotone_and_stays_on_convex_data(case: Any) -> None:
    x, y, w = case
    values = convex_curve(x, y, w)
    slopes = np.diff(values) / np.diff(x)
    scale = values.max() / np.diff(x).min()
    assert (slopes >= -1e-9 * scale).all() and (np.diff(slopes) >= -1e-9 * scale).all()
    # what is of the form already is given back; the true curve hinges where the data may
    knee = x[len(x) // 3]
    truth = 0.01 + 1e-5 * x + np.where(knee <= x[-1] - (x[-1] - x[0]) / 10, 1e-4 * np.maximum(0, x - knee), 0)
    np.testing.assert_allclose(convex_curve(x, truth, w), truth, rtol=1e-6)


def test_two_close_last_points_do_not_set_the_last_slope() -> None:
    x = np.array([1.0, 128, 256, 512, 1024, 1025])
    y = np.array([10.0, 10, 11, 14, 20, 21])  # 1025 falls into the next bucket
    values = convex_curve(x, y, np.ones(6))
    assert (values[-1] - values[-2]) / 1 < 0.02  # the trend is 0.012 a token


@many
@given(small())
def test_isotonic_against_the_max_min_formula(case: Any) -> None:
    _, y, w = case
    values = isotonic_curve(y, w)
    np.testing.assert_allclose(values, naive_cost.isotonic(y, w), rtol=1e-9)
    assert (np.diff(values) >= 0).all()


@many
@given(large(), st.integers(0, 39), st.floats(1.2, 3))
def test_robust_fit_leaves_one_disturbed_point(case: Any, which: int, factor: float) -> None:
    x, _, _ = case
    truth = 0.01 + 2e-5 * np.maximum(0.0, x - x[0] / 2)
    inner = np.arange(len(x))[2:-2]
    if len(inner) < 4:
        return
    y = truth.copy()
    y[inner[which % len(inner)]] *= factor
    for curve in (partial(convex_curve, x, y), partial(isotonic_curve, y)):
        values = robust(curve, y, y**-2.0)
        plain = curve(y**-2.0)
        assert np.abs(values / truth - 1).max() < np.abs(plain / truth - 1).max() + 1e-9
        assert np.median(np.abs(values / truth - 1)) < 0.005


@st.composite
def staircase(draw: Any) -> tuple[Any, Any, Any]:
    curves = draw(st.integers(1, 3))
    tokens = np.array(sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=8))), np.float64)
    m = len(tokens)
    levels = np.cumsum(np.maximum(0, draw(ints(-100, 100, m)) / 100)) + 1
    noise = np.exp(draw(ints(-100, 100, m, curves)) / 5000)
    seconds = 0.01 * levels[:, None] * (0.5 + draw(ints(0, 150, curves)) / 100) * noise
    seconds[draw(ints(0, 4, m, curves)) == 4] = np.nan
    return tokens, seconds, 0.005 + draw(ints(0, 250, m, curves)) / 1e4


@many
@given(staircase())
def test_buckets_found_are_the_cheapest_partition(case: Any) -> None:
    tokens, seconds, errors = case
    ends = find_buckets(tokens, seconds, errors)
    assert ends[-1] == tokens[-1] and list(ends) == sorted(set(ends))
    _, price = naive_cost.buckets(tokens, seconds, errors)
    assert naive_cost.bucket_price(tokens, seconds, errors, ends) <= price * (1 + 1e-9) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sets(st.integers(2, 127), min_size=6, max_size=6), st.integers(1, 4))
def test_known_buckets_are_recovered(data: Any, ends: set[int], curves: int) -> None:
    truth = np.sort(list(ends)) * 8
    tokens = np.unique(np.concatenate([[1], truth, truth[:-1] + 1])).astype(np.float64)
    levels = np.cumprod(1.1 + data.draw(ints(0, 30, 6)) / 100)[np.searchsorted(truth, tokens)]
    noise = np.exp(data.draw(ints(-60, 60, len(tokens), curves)) / 1e4)
    seconds = 0.01 * levels[:, None] * noise
    errors = np.full(seconds.shape, 0.01)
    assert find_buckets(tokens, seconds, errors) == tuple(int(t) for t in truth)


def test_bucket_levels() -> None:
    tokens, seconds = np.array([1.0, 5, 8, 20, 40]), np.array([1.0, 2.2, 2, 4, 8])
    ends, levels = bucket_levels(tokens, seconds, (1, 8, 16, 32, 64))
    assert ends.tolist() == [1, 8, 16, 32, 64]
    # 5 and 8 share a bucket whose slow point counts as disturbed; 16 was not measured
    assert levels.tolist() == [1, 2, 2 + 2 * 8 / 24, 4, 8]
    ends, levels = bucket_levels(tokens, seconds, (1, 8, 16))  # a point past the last bucket is not padded
    assert ends.tolist() == [1, 8, 16, 20, 40] and levels[-1] == 8
    assert bucket_levels(tokens[:2], seconds[:2], (1, 8, 16))[0].tolist() == [1, 8]  # nothing known of 16


@many
@given(st.lists(st.integers(1, 500), min_size=1, max_size=8, unique=True), st.lists(st.integers(1, 600), min_size=1))
def test_pad(buckets: list[int], tokens: list[int]) -> None:
    buckets.sort()
    want = [next((b for b in buckets if b >= t), t) for t in tokens]
    assert pad(np.array(tokens, np.float64), buckets).tolist() == want
    assert pad(np.array(tokens, np.float64), None).tolist() == tokens


def grid() -> tuple[Any, ...]:
    t, c, b = np.meshgrid([1, 16, 64, 128, 256, 384, 512, 768, 1024], [256, 1024, 4096, 8192], [1, 8], indexing="ij")
    return tuple(v.ravel().astype(np.float64) for v in (t, c, b))


@many
@given(
    st.floats(0, 0.01), st.floats(1e-4, 0.02), st.floats(0, 1e-7), st.floats(1e-7, 1e-4), st.floats(0, 1e-9),
    st.floats(1, 40),
)  # fmt: skip
def test_roofline_is_a_smooth_maximum_with_exact_derivatives(
    launch: float, weights: float, kv: float, token: float, attention: float, sharpness: float
) -> None:
    t, c, b = grid()
    memory, flops = weights + kv * b * c, token * t + attention * t * c
    value = Roofline(launch, weights, kv, token, attention, sharpness).seconds(t, c, b)
    larger = np.maximum(memory, flops)
    assert (value >= launch + larger * (1 - 1e-12)).all()
    assert (value <= launch + larger * 2 ** (1 / sharpness) * (1 + 1e-12)).all()
    np.testing.assert_allclose(value, launch + (memory**sharpness + flops**sharpness) ** (1 / sharpness), rtol=1e-9)
    theta = np.array([launch, weights, kv, token, attention, 1 / sharpness])
    _, jacobian = _roofline(theta, t, c, b)
    steps = 1e-5 * np.array([weights, weights, weights / (b * c).max(), token, token / c.max(), 1 / sharpness])
    for i, step in enumerate(steps):
        up, down = theta.copy(), theta.copy()
        up[i] += step
        down[i] -= step  # memory and arithmetic stay above 0
        change = (_roofline(up, t, c, b)[0] - _roofline(down, t, c, b)[0]) / 2
        rounding = 1e-14 * value.max()
        assert (np.abs(jacobian[:, i] * step - change) <= 1e-5 * np.abs(change).max() + rounding).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buckets", [None, (1, 16, 64, 128, 256, 384, 512, 768, 1024)])
def test_roofline_recovers_its_parameters_from_noise(seed: int, buckets: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(seed)
    truth = Roofline(0.004, 0.006, 8e-8, 2.4e-5, 1.2e-9, 4.0, buckets)
    t, c, b = grid()
    clean = truth.seconds(t, c, b)
    noisy = clean * np.exp(0.003 * rng.standard_normal(len(t)))
    noisy[rng.integers(len(t))] *= 1.5  # one disturbed point
    fit = fit_roofline(t, c, b, noisy, np.full(len(t), 0.003), buckets)
    assert fit.launch + fit.weights == pytest.approx(truth.launch + truth.weights, rel=0.01)
    for name in ("kv", "token", "attention"):
        assert getattr(fit, name) == pytest.approx(getattr(truth, name), rel=0.1), name
    inside = fit.seconds(t + 7, c, b) / truth.seconds(t + 7, c, b)
    assert np.abs(inside - 1).max() < 0.02


def test_roofline_uses_the_data_sheet_as_a_start() -> None:
    truth = Roofline(0.003, 0.0055, 5e-8, 2.1e-5, 0.0, 12.0)
    t, c, b = grid()
    fit = fit_roofline(t, c, b, truth.seconds(t, c, b), np.full(len(t), 0.002), guess=(0.0051, 4.8e-8, 1.9e-5))
    np.testing.assert_allclose(fit.seconds(t, c, b), truth.seconds(t, c, b), rtol=1e-3)
