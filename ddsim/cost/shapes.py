"""Shapes that a latency curve can take, fitted to points with SciPy: table, convex, isotonic, steps, roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.files.documents import array, integer, mapping, need, number

FloatArray = NDArray[np.float64]


def convex_curve(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Values at ``x`` of the non-decreasing convex curve nearest to ``y`` by weighted least squares.

    f(x) = a + b (x - x_0) + Σ_k c_k max(0, x - x_k) with a, b, c_k ≥ 0 and hinges at the inner points; every convex curve
    takes the values of one of this form at the points. Solved as non-negative least squares (``scipy.optimize.nnls``). There
    are no hinges in the last tenth of the range: the last slope is the one that extrapolation goes on with, and two points
    that lie close together (both sides of a bucket) can't tell it. No value is below half the least of ``y``: a line through the
    last points may pass below 0 at the first, where that one counts for little, but no pass is free.

    Parameters
    ----------
    x : float64 [m], strictly ascending
    y, weights : float64 [m]

    Returns
    -------
    float64 [m]

    Examples
    --------
    >>> convex_curve(np.array([1.0, 2, 3]), np.array([1.0, 3, 3]), np.ones(3)).round(6).tolist()
    [1.333333, 2.333333, 3.333333]
    """
    from scipy.optimize import nnls  # here, since SciPy's optimisers cost a third of a second to import

    span = x[-1] - x[0]
    hinges = x[:-1][(x[:-1] <= x[-1] - span / 10) | (x[:-1] == x[0])]
    basis = np.column_stack([np.ones(len(x)), np.maximum(0.0, x[:, None] - hinges) / span])
    rows = np.sqrt(weights)
    columns = np.linalg.norm(basis * rows[:, None], axis=0)

    def solve(floor: float) -> FloatArray:
        found = nnls(basis * rows[:, None] / columns, (y - floor) * rows, maxiter=100 * len(x))[0]
        return np.asarray(floor + basis @ (found / columns))

    values, floor = solve(0.0), 0.5 * float(y.min())
    return values if values[0] >= floor else solve(floor)


def isotonic_curve(y: FloatArray, weights: FloatArray) -> FloatArray:
    """The non-decreasing sequence nearest to ``y`` by weighted least squares (``scipy.optimize.isotonic_regression``)."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(y, weights=weights).x, np.float64)


def robust(fit: Callable[[FloatArray], FloatArray], y: FloatArray, weights: FloatArray, rounds: int = 8) -> FloatArray:
    """Fit again with points far off the curve weighted down (Huber's weights on log residuals).

    A point counts as far off beyond three robust standard deviations, and never below 1 %: the steps of a real curve are not
    outliers, a measurement disturbed for all its repeats is.
    """
    values = fit(weights)
    for _ in range(rounds):
        residual = np.abs(np.log(y / np.maximum(values, 1e-3 * y)))
        cut = max(3 * 1.4826 * float(np.median(residual)), 0.01)
        if residual.max() <= cut:
            break
        values = fit(weights * np.minimum(1.0, cut / np.maximum(residual, 1e-300)))
    return values


def spikes(seconds: FloatArray, errors: FloatArray) -> NDArray[np.bool_]:
    """Points above both of their neighbours by more than 5 %, and five times their error: disturbed for all their repeats.

    A step is no spike: what comes after it costs as much. The first point is one if it lies above the next two.

    Parameters
    ----------
    seconds : float64 [m]
        Of one curve, by ascending token counts.
    errors : float64 [m]
        Relative standard deviation of every point.

    Examples
    --------
    >>> spikes(np.array([1.0, 1.4, 1.0, 1.2, 1.2, 1.3, 1.2]), np.full(7, 0.01)).tolist()
    [False, True, False, False, False, True, False]
    """
    logs, found = np.log(seconds), np.zeros(len(seconds), bool)
    if len(seconds) > 2:
        before, after = np.append(logs[2], logs[:-2]), logs[1:]
        found[:-1] = logs[:-1] - np.maximum(before, after) > np.maximum(0.05, 5 * errors[:-1])
    return found


def find_buckets(tokens: FloatArray, seconds: FloatArray, errors: FloatArray) -> tuple[int, ...]:
    """The padded sizes that explain the curves best: ends of the runs of token counts that cost the same.

    Optimal partition by dynamic programming: Σ over runs of the weighted squared deviation of log seconds from the run's mean,
    plus a Bayesian price (half a log n per level, counted as in BIC) for every run.

    Parameters
    ----------
    tokens : float64 [m], strictly ascending
    seconds : float64 [m, curves], NaN where a curve has no point
    errors : float64 [m, curves]
        Relative standard deviation of every point.

    Returns
    -------
    tuple of int
        Last token count of every run, ascending; the last one is ``tokens[-1]``.
    """
    m = len(tokens)
    there = np.isfinite(seconds)
    w = np.where(there, 1.0 / np.where(there, errors, 1.0) ** 2, 0.0)
    logs = np.where(there, np.log(np.where(there, seconds, 1.0)), 0.0)
    logs -= logs.sum(0) / np.maximum(there.sum(0), 1)  # centred: the sums of squares below cancel less
    zero = np.zeros((1, seconds.shape[1]))
    s0, s1, s2 = (np.concatenate([zero, np.cumsum(v, axis=0)]) for v in (w, w * logs, w * logs**2))
    price = np.log(max(2, int(there.sum()))) * (seconds.shape[1] + 1)
    best = np.zeros(m + 1)
    start = np.zeros(m + 1, np.int64)
    for j in range(1, m + 1):
        n0 = s0[j] - s0[:j]
        within = s2[j] - s2[:j] - np.divide((s1[j] - s1[:j]) ** 2, n0, out=np.zeros_like(n0), where=n0 > 0)
        total = best[:j] + np.maximum(within, 0.0).sum(1) + price
        start[j] = int(np.argmin(total))
        best[j] = total[start[j]]
    ends = []
    j = m
    while j > 0:
        ends.append(int(tokens[j - 1]))
        j = int(start[j])
    return tuple(reversed(ends))


def bucket_levels(tokens: FloatArray, seconds: FloatArray, buckets: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Cost of every bucket of one curve: the median of its points; a bucket without points lies on the line between others.

    Of two middle points the lower: disturbances only ever slow a pass down, and most buckets are measured at their two ends.

    Buckets past the last point are dropped; a point past the last bucket is a bucket of its own.

    Returns
    -------
    ends, levels : float64 [buckets]
    """
    known = np.array(buckets, np.float64)
    known = np.concatenate([known, tokens[tokens > known[-1]]])
    of = np.searchsorted(known, tokens, side="left")
    filled = np.unique(of)
    levels = np.array([np.quantile(seconds[of == k], 0.5, method="lower") for k in filled])
    ends = known[: filled[-1] + 1]
    return ends, np.interp(ends, known[filled], levels)


@dataclass(frozen=True)
class Roofline:
    """seconds(t, c, b) = launch + (M^p + F^p)^(1/p), M = weights + kv·b·c, F = token·t + attention·t·c.

    ``t`` tokens over the batch, ``c`` context per request, ``b`` requests. M is the time to read weights and KV cache, F the
    time of the arithmetic; a smooth maximum, p = 1 their sum, p → ∞ the larger. With ``buckets``, t is padded first.
    """

    launch: float
    weights: float
    kv: float
    token: float
    attention: float
    sharpness: float
    buckets: tuple[int, ...] | None = None

    def seconds(self, tokens: FloatArray, context: FloatArray, batch: FloatArray) -> FloatArray:
        """Seconds of one verification pass, elementwise."""
        theta = np.array([self.launch, self.weights, self.kv, self.token, self.attention, 1.0 / self.sharpness])
        return _roofline(theta, pad(tokens, self.buckets), context, batch)[0]

    def to_json(self) -> dict[str, object]:
        """Parameters in seconds (launch, weights), seconds per context token (kv), per token, per token and context token."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any, where: str) -> Roofline:
        """The parameters in a document, checked."""
        names = ("launch", "weights", "kv", "token", "attention", "sharpness")
        entry = mapping(raw, where, (*names, "buckets"))
        values = {k: number(need(entry, k, where), f"{where}.{k}", positive=k == "sharpness") for k in names}
        buckets = entry.get("buckets")
        if buckets is not None:
            buckets = tuple(integer(b, f"{where}.buckets[{i}]", 1) for i, b in enumerate(array(buckets, where, 1)))
        return cls(**values, buckets=buckets)


def pad(tokens: FloatArray, buckets: Sequence[int] | None) -> FloatArray:
    """Every token count as its bucket; counts past the last bucket as they are."""
    if buckets is None:
        return tokens
    ends = np.array(buckets, np.float64)
    return np.where(
        tokens <= ends[-1],
        ends[np.minimum(np.searchsorted(ends, tokens, side="left"), len(ends) - 1)],
        tokens,
    )


def padded_range(low: float, high: float, buckets: Sequence[int]) -> tuple[float, float]:
    """First and last size that cost what was measured from ``low`` to ``high``: a size is measured with its bucket."""
    ends = np.array([0, *buckets])
    first, last = np.searchsorted(ends, [low, high], side="left")
    return (
        float(ends[first - 1] + 1) if first < len(ends) else low,
        float(ends[last]) if last < len(ends) else high,
    )


def _roofline(theta: FloatArray, t: FloatArray, c: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Roofline seconds [n] and their derivatives [n, 6] by launch, weights, kv, token, attention and 1/p."""
    launch, weights, kv, token, attention, s = theta
    memory = weights + kv * b * c
    flops = token * t + attention * t * c
    high, low = np.maximum(memory, flops), np.minimum(memory, flops)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    log_ratio = np.log(np.maximum(ratio, 1e-300))
    power = np.exp(log_ratio / s)  # (low / high)^p, with p = 1 / s
    total = high * (1.0 + power) ** s
    d_high = (1.0 + power) ** (s - 1.0)
    d_low = d_high * np.where(ratio > 0, np.exp(log_ratio * (1.0 / s - 1.0)), float(s == 1.0))
    d_memory = np.where(memory >= flops, d_high, d_low)
    d_flops = np.where(memory >= flops, d_low, d_high)
    d_s = total * (np.log1p(power) - power / (1.0 + power) * log_ratio / s)
    jacobian = np.column_stack([np.ones_like(t), d_memory, d_memory * b * c, d_flops * t, d_flops * t * c, d_s])
    return launch + total, jacobian


def fit_roofline(
    tokens: FloatArray,
    context: FloatArray,
    batch: FloatArray,
    seconds: FloatArray,
    errors: FloatArray,
    buckets: tuple[int, ...] | None = None,
    guess: tuple[float, float, float] | None = None,
) -> Roofline:
    """Fit a :class:`Roofline` by robust least squares on log residuals (``scipy.optimize.least_squares``).

    Parameters
    ----------
    tokens, context, batch, seconds : float64 [n]
    errors : float64 [n]
        Relative standard deviation of every point.
    buckets : tuple of int, optional
        Sizes that the engine pads to.
    guess : (weights, kv, token) in seconds, optional
        What the device's data sheet says; one of the starting points.
    """
    from scipy.optimize import least_squares

    t = pad(tokens, buckets)
    least, most = float(seconds.min()), float(seconds.max())
    # Parameters are fitted in units in which each is about 1.
    unit = np.array(
        [least, least, least / max(1.0, float((batch * context).max())), most / t.max(),
         most / max(1.0, float((t * context).max())), 1.0]
    )  # fmt: skip
    logs = np.log(seconds)

    def residuals(x: FloatArray) -> FloatArray:
        return np.asarray((np.log(np.maximum(_roofline(x * unit, t, context, batch)[0], 1e-12)) - logs) / errors)

    def jacobian(x: FloatArray) -> FloatArray:
        value, slope = _roofline(x * unit, t, context, batch)
        return np.asarray(slope * unit / (np.maximum(value, 1e-12) * errors)[:, None])

    starts = [np.array([0.2, 0.7, 0.02, 0.6, 0.02, s]) for s in (0.15, 0.6)]
    if guess is not None:
        weights, kv, token = guess
        rest = max(0.05, 1.0 - weights / least)
        starts.append(np.array([rest, weights / unit[1], kv / unit[2], token / unit[3], 0.01, 0.3]))
    fits = [
        least_squares(
            residuals, start, jac=jacobian, bounds=([0.0] * 5 + [0.02], [np.inf] * 5 + [1.0]), loss="soft_l1", f_scale=3.0,
            x_scale="jac", ftol=1e-10, xtol=1e-10, gtol=1e-10, max_nfev=200,
        )
        for start in starts
    ]  # fmt: skip
    x = min(fits, key=lambda f: float(f.cost)).x * unit
    if not context.any():  # measured before no context alone, what one costs is unknown, and the fit leaves it anywhere
        x[2] = x[4] = 0.0
    return Roofline(float(x[0]), float(x[1]), float(x[2]), float(x[3]), float(x[4]), float(1.0 / x[5]), buckets)


class Shape:
    """A kind of cost curve, here the table: medians joined by lines.

    A kind of its own overrides what differs, and gets a line in `ddsim.cost.kinds`.

    Attributes
    ----------
    pads : bool
        Whether a size costs its bucket, where the profile has buckets.
    stepped : bool
        Whether its curves are made of buckets; they are looked for where the profile declares none.
    convex : bool
        Whether its curves are convex.
    formula : type or None
        One formula over tokens, context and batch in place of curves.
    """

    pads = False
    stepped = False
    convex = False
    formula: type[Roofline] | None = None

    def fit(
        self, x: FloatArray, y: FloatArray, weights: FloatArray, buckets: Sequence[int] | None
    ) -> tuple[FloatArray, FloatArray]:
        """Knots and their seconds, from the points of one context and batch."""
        return x, y

    def fit_formula(
        self,
        tokens: FloatArray,
        context: FloatArray,
        batch: FloatArray,
        seconds: FloatArray,
        errors: FloatArray,
        buckets: tuple[int, ...] | None,
        guess: tuple[float, float, float] | None,
    ) -> Roofline | None:
        """The formula's parameters, from all points (see `fit_roofline`); None without a formula."""
        return None

    def between(self, x: FloatArray, y: FloatArray, tokens: FloatArray) -> FloatArray:
        """Seconds at token counts up to the last knot; flat below the first one."""
        return np.interp(tokens, x, y)

    def trend_from(self, x: FloatArray) -> int:
        """The knot whose line to the last one goes on past it.

        The upper half of the range by default: two neighbouring points may lie in one bucket, or on both sides of a step, and say
        nothing about the trend.
        """
        return int(np.searchsorted(x, x[-1] / 2, side="right")) - 1

    def at(self, knots: Sequence[float], seconds: Sequence[float], tokens: FloatArray) -> FloatArray:
        """Seconds at any token counts: past the last knot on a straight line that doesn't fall."""
        x, y = np.array(knots), np.array(seconds)
        back = max(self.trend_from(x), 0)
        slope = max(0.0, (y[-1] - y[back]) / (x[-1] - x[back])) if len(x) > 1 else 0.0
        return np.where(tokens > x[-1], y[-1] + slope * (tokens - x[-1]), self.between(x, y, tokens))

    def sizes(self, knots: FloatArray, low: float, high: float, formula: Roofline | None) -> FloatArray:
        """Token counts that say all about a curve measured from ``low`` to ``high``."""
        return knots


class Convex(Shape):
    """Non-decreasing and convex in tokens."""

    convex = True

    def fit(
        self, x: FloatArray, y: FloatArray, weights: FloatArray, buckets: Sequence[int] | None
    ) -> tuple[FloatArray, FloatArray]:
        return x, robust(partial(convex_curve, x, y), y, weights)

    def trend_from(self, x: FloatArray) -> int:
        return len(x) - 2  # goes on with its last slope, so that it stays convex


class Isotonic(Shape):
    """Non-decreasing in tokens."""

    def fit(
        self, x: FloatArray, y: FloatArray, weights: FloatArray, buckets: Sequence[int] | None
    ) -> tuple[FloatArray, FloatArray]:
        return x, robust(partial(isotonic_curve, y), y, weights)


class Steps(Shape):
    """A size costs its bucket."""

    pads = True
    stepped = True

    def fit(
        self, x: FloatArray, y: FloatArray, weights: FloatArray, buckets: Sequence[int] | None
    ) -> tuple[FloatArray, FloatArray]:
        assert buckets is not None
        return bucket_levels(x, y, buckets)

    def between(self, x: FloatArray, y: FloatArray, tokens: FloatArray) -> FloatArray:
        return np.asarray(y[np.minimum(np.searchsorted(x, tokens, side="left"), len(x) - 1)])

    def sizes(self, knots: FloatArray, low: float, high: float, formula: Roofline | None) -> FloatArray:
        return _both_ends(knots, low)


class OneRoofline(Shape):
    """One parametric formula over tokens, context and batch."""

    pads = True
    formula = Roofline

    def fit(
        self, x: FloatArray, y: FloatArray, weights: FloatArray, buckets: Sequence[int] | None
    ) -> tuple[FloatArray, FloatArray]:
        return x[:0], y[:0]

    def fit_formula(
        self,
        tokens: FloatArray,
        context: FloatArray,
        batch: FloatArray,
        seconds: FloatArray,
        errors: FloatArray,
        buckets: tuple[int, ...] | None,
        guess: tuple[float, float, float] | None,
    ) -> Roofline | None:
        return fit_roofline(tokens, context, batch, seconds, errors, buckets, guess)

    def sizes(self, knots: FloatArray, low: float, high: float, formula: Roofline | None) -> FloatArray:
        if formula is None or formula.buckets is None:
            return np.geomspace(low, high, 64).round()
        ends = np.array(formula.buckets, np.float64)
        return _both_ends(np.append(ends[(ends >= low) & (ends < high)], high), low)


def _both_ends(last: FloatArray, low: float) -> FloatArray:
    """The first and the last size of each bucket, by their last ones: a step costs the same from one to the other."""
    return np.concatenate([[low], last[:-1] + 1, last])
