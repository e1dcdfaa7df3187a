"""Fits of every kind to a latency profile, their held-out errors, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.cost.interpolation import Curve, RoundPoint, Surface
from ddsim.cost.kinds import KINDS, shape_of
from ddsim.cost.profile import Points, Profile, check_buckets, doubts
from ddsim.cost.shapes import find_buckets, padded_range, spikes
from ddsim.errors import DdsimError
from ddsim.files.documents import LARGEST, array, integer, mapping, need, number, text
from ddsim.text import brief, signed

FOLDS = 10


FLOOR = 0.005  # relative error that no point is trusted beyond, however well its repeats agree


STEP_FLOOR = 0.01  # differences below this aren't taken for a step when buckets have to be found


TIE = (0.1, 0.001)  # kinds within 10 % + 0.1 percentage points of the least held-out error count as equally good


EVIDENT = 1.5  # of the least error: leaving out one side of a step hides it, so a fold can't prove what neighbours show


FloatArray = NDArray[np.float64]


IntArray = NDArray[np.int64]


BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class KindReport:
    """Relative errors of one kind on points that it wasn't fitted on.

    ``axes`` holds, for each way of leaving out ("tokens", "contexts", "batches", and "buckets" where the profile names them),
    median, mean and worst error and the number of points; median, worst and score are over all ways but "buckets", where
    the score, by which kinds are chosen, is the mean over the ways of their mean errors without spikes.
    """

    median: float
    worst: float
    score: float
    points: int
    axes: dict[str, dict[str, float]]


@dataclass(frozen=True)
class CostReport:
    """How a cost model came about; JSON-able with ``dataclasses.asdict``.

    ``noise`` is the median relative bootstrap error of a point (no model can predict better); ``worst_points`` are the held-out
    points that the picked kind predicts worst: outliers to look at, or structure that it misses. ``notes`` are doubts about the
    profile (see `ddsim.cost.profile.doubts`), and what its sizes can't tell.
    """

    kind: str
    asked: str
    reason: str
    kinds: dict[str, KindReport] = field(default_factory=dict)
    points: int = 0
    noise: float = 0.0
    buckets: list[int] | None = None
    buckets_from: str | None = None
    worst_points: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_report(raw: Any, where: str) -> CostReport:
    """A report from the JSON object that files hold, all checks made: intervals and default budgets rest on it.

    Raises
    ------
    DdsimError
        One line: which entry, what is wrong.
    """
    entry = mapping(raw, where, tuple(f.name for f in fields(CostReport)))
    kinds = {
        text(name, f"{where}.kinds"): _read_kind(kind, f"{where}.kinds.{name:.40}")
        for name, kind in mapping(entry.get("kinds", {}), f"{where}.kinds").items()
    }
    buckets = entry.get("buckets")
    if buckets is not None:
        buckets = list(check_buckets(buckets, f"{where}.buckets"))
    source = entry.get("buckets_from")
    return CostReport(
        kind=text(need(entry, "kind", where), f"{where}.kind"),
        asked=text(need(entry, "asked", where), f"{where}.asked"),
        reason=text(need(entry, "reason", where), f"{where}.reason"),
        kinds=kinds,
        points=integer(entry.get("points", 0), f"{where}.points", 0),
        noise=number(entry.get("noise", 0.0), f"{where}.noise", positive=False),
        buckets=buckets,
        buckets_from=None if source is None else text(source, f"{where}.buckets_from"),
        worst_points=[
            _figures(point, f"{where}.worst_points[{i}]")
            for i, point in enumerate(array(entry.get("worst_points", []), f"{where}.worst_points"))
        ],
        notes=[
            text(note, f"{where}.notes[{i}]") for i, note in enumerate(array(entry.get("notes", []), f"{where}.notes"))
        ],
    )


def _read_kind(raw: Any, where: str) -> KindReport:
    entry = mapping(raw, where, tuple(f.name for f in fields(KindReport)))
    median, worst, score = (
        number(need(entry, key, where), f"{where}.{key}", positive=False) for key in ("median", "worst", "score")
    )
    axes = {
        name: _figures(axis, f"{where}.axes.{name:.40}")
        for name, axis in mapping(need(entry, "axes", where), f"{where}.axes").items()
    }
    return KindReport(median, worst, score, integer(need(entry, "points", where), f"{where}.points", 0), axes)


def _figures(raw: Any, where: str) -> dict[str, float]:
    """Named numbers of either sign."""
    entry = mapping(raw, where)
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            raise DdsimError(f"{where}.{name:.40}: must be a number, is {brief(value)}")
    return dict(entry)


def fit(profile: Profile, kind: str, seed: int = 0) -> tuple[Surface, CostReport]:
    """One kind, or the one with the least held-out error, fitted to a profile; and how it was judged and picked."""
    points = profile.points(seed)
    tried = KINDS if kind == "auto" else (kind,)
    tests = _left_out(points, profile.buckets)
    errors = {name: _held_out_errors(name, points, tests, profile) for name in tried}
    reports = {name: _kind_report(tests, e) for name, e in errors.items()}
    steps = _steps(points) if profile.buckets is None else None
    evident = steps is not None and steps.evident
    picked, reason = _pick(reports, profile.buckets is not None, evident) if kind == "auto" else (kind, "as asked")
    surface, found = _fit(picked, points, profile)
    buckets = profile.buckets or found  # the engine pads whatever the shape of the fit
    report = CostReport(
        kind=picked,
        asked=kind,
        reason=reason,
        kinds=reports,
        points=len(points),
        noise=float(np.median(points.error / points.seconds)),
        buckets=None if buckets is None else list(buckets),
        buckets_from=None if buckets is None else "found" if profile.buckets is None else "profile",
        worst_points=_worst_points(tests, errors[picked]),
        notes=doubts(profile, points) + ([str(steps)] if steps is not None and steps.unclear else []),
    )
    return surface, report


def _fit(kind: str, points: Points, profile: Profile) -> tuple[Surface, tuple[int, ...] | None]:
    """One kind fitted to points; of the profile only buckets and physical constants are used. Also the buckets, if it has any."""
    x, y = points.tokens.astype(np.float64), points.seconds
    relative = np.hypot(points.error / y, FLOOR)
    groups = [
        np.flatnonzero((points.batch == b) & (points.context == c))
        for b, c in sorted(set(zip(points.batch.tolist(), points.context.tolist(), strict=True)))
    ]
    groups = [g for g in groups if len(g) > 1] or groups
    buckets, shape = None if profile.buckets is None else tuple(profile.buckets), shape_of(kind)
    if shape.stepped and buckets is None:
        counts = np.unique(x)
        grid = np.full((2, len(counts), len(groups)), np.nan)
        groups = [g[~_spikes(points, g)] for g in groups]  # one would be taken for a bucket of its own
        for j, g in enumerate(groups):
            grid[:, np.searchsorted(counts, x[g]), j] = y[g], np.hypot(points.error[g] / y[g], STEP_FLOOR)
        buckets = find_buckets(counts, grid[0], grid[1])

    curves = []
    for g in groups:
        low, high = float(x[g[0]]), float(x[g[-1]])
        if shape.pads and buckets is not None:  # a padded size is measured with its bucket
            low, high = padded_range(low, high, buckets)
        knots, values = shape.fit(x[g], y[g], (y[g] * relative[g]) ** -2.0, buckets)
        context, batch = int(points.context[g[0]]), int(points.batch[g[0]])
        curves.append(Curve(context, batch, low, high, tuple(knots.tolist()), tuple(values.tolist())))
    at = (points.context.astype(np.float64), points.batch.astype(np.float64))
    formula = shape.fit_formula(x, *at, y, relative, buckets, _data_sheet(profile))
    return Surface(kind, curves, formula), buckets if shape.pads else None


def _data_sheet(p: Profile) -> tuple[float, float, float] | None:
    """Seconds for the weights, per context token and per token, by the device's and the model's constants, if all are known."""
    if not (p.bandwidth_bytes_per_s and p.flops_per_s and p.weight_bytes and p.flops_per_token):
        return None
    kv = (p.kv_bytes_per_token or 0.0) / p.bandwidth_bytes_per_s
    return p.weight_bytes / p.bandwidth_bytes_per_s, kv, p.flops_per_token / p.flops_per_s


def _spikes(points: Points, curve: IntArray) -> BoolArray:
    """Which points of one curve stick out above their neighbours."""
    return spikes(points.seconds[curve], np.hypot(points.error[curve] / points.seconds[curve], STEP_FLOOR))


@dataclass(frozen=True)
class _Steps:
    """What neighbouring sizes tell about steps where no buckets are declared.

    ``evident``: the cost rises where sizes lie close together, and little in the wide gaps between them, as only steps do.
    ``unclear``: (size, next size, relative rise) of gaps in which the cost rises and a step may lie anywhere.
    """

    evident: bool
    unclear: list[tuple[int, int, float]]

    def __str__(self) -> str:
        most = sorted(sorted(self.unclear, key=lambda gap: -gap[2])[:4])
        gaps = ", ".join(f"{a} and {b} ({signed(rise, 0)})" for a, b, rise in most)
        more = f" and in {len(self.unclear) - len(most)} further gaps" if len(self.unclear) > len(most) else ""
        return (
            f"no buckets are declared, and the sizes measured can't tell where steps lie: anywhere between {gaps}{more}, "
            "so costs there are unsure by as much; declare buckets, or measure both sides of likely ones"
        )


def _steps(points: Points) -> _Steps:
    """Look for steps in how costs rise from one size to the next."""
    counts = np.unique(points.tokens)
    curves = np.full((len(counts), 0), np.nan)
    for batch, context in sorted(set(zip(points.batch.tolist(), points.context.tolist(), strict=True))):
        g = np.flatnonzero((points.batch == batch) & (points.context == context))
        g = g[~_spikes(points, g)]
        column = np.full((len(counts), 1), np.nan)
        column[np.searchsorted(counts, points.tokens[g]), 0] = np.log(points.seconds[g])
        curves = np.hstack([curves, column])
    rises = np.diff(curves, axis=0)
    there = np.isfinite(rises).any(axis=1)
    a, b, rises = counts[:-1][there], counts[1:][there], rises[there]
    rise = np.array([np.median(row[np.isfinite(row)]) for row in rises])
    noise = max(STEP_FLOOR, 3 * float(np.median(points.error / points.seconds)))
    close = b - a <= np.maximum(1, a // 50)
    up = np.where(rise > noise, rise, 0.0)
    width = np.log(b / a)
    share, room = (float(v[close].sum() / max(v.sum(), 1e-300)) for v in (up, width))
    evident = int((up[close] > 0).sum()) >= 2 and share > max(0.5, 2 * room)
    wide = ~close & (rise > max(0.05, noise))
    if not wide.any():
        return _Steps(evident, [])
    # Close pairs among the gaps that show no step tell that the cost rises as a slope.
    level = close & (a >= a[wide].min()) & (up == 0)
    if not evident and level.sum() >= 3:
        return _Steps(False, [])
    return _Steps(evident, [(int(a[i]), int(b[i]), float(np.expm1(rise[i]))) for i in np.flatnonzero(wide)])


@dataclass(frozen=True)
class _Fold:
    """What is fitted without (``kept`` mask over points) and what is then predicted, with the truth.

    ``sound`` leaves out spikes: kinds are reported with them, but not chosen by what no kind should predict.
    """

    axis: str
    kept: BoolArray
    tokens: FloatArray
    context: FloatArray
    batch: FloatArray
    truth: FloatArray
    sound: BoolArray


def _left_out(points: Points, buckets: Sequence[int] | None) -> list[_Fold]:
    """The folds on which kinds are compared. Where to test is decided by where was measured, never by what was measured.

    Only inner values are left out, so every test is an interpolation: token counts (a count at all contexts and batches
    together, so that no other context gives it away; up to ten interleaved folds), contexts one by one, batches one by one.
    With declared buckets, a bucket that was measured at one size only is also tested at its two ends, since the engine would
    pad those to the same cost: otherwise a profile of bucket sizes alone couldn't tell a staircase from a smooth curve. The
    ``buckets`` axis leaves out whole buckets, harder than any question that will be asked, and is reported but not scored.
    """
    counts = np.unique(points.tokens)
    inner = counts[1:-1]
    sound = np.ones(len(points), bool)
    for batch, context in set(zip(points.batch.tolist(), points.context.tolist(), strict=True)):
        g = np.flatnonzero((points.batch == batch) & (points.context == context))
        sound[g] = ~_spikes(points, g)
    out: list[tuple[str, IntArray]] = [
        ("tokens", np.flatnonzero(np.isin(points.tokens, inner[k::FOLDS]))) for k in range(FOLDS)
    ]
    if buckets is not None:
        of = np.searchsorted(np.array(buckets), points.tokens, side="left")
        kinds = np.unique(of)[1:-1]
        out += [("buckets", np.flatnonzero(np.isin(of, kinds[k::FOLDS]))) for k in range(FOLDS)]
    out += [("contexts", np.flatnonzero(points.context == c)) for c in np.unique(points.context)[1:-1]]
    out += [("batches", np.flatnonzero(points.batch == b)) for b in np.unique(points.batch)[1:-1]]
    folds = []
    for axis, index in out:
        if not len(index):
            continue
        kept = np.ones(len(points), bool)
        kept[index] = False
        columns = (points.tokens, points.context, points.batch, points.seconds, sound)
        tests = np.array([v[index] for v in columns], np.float64)
        if buckets is not None and axis == "tokens":
            tests = _with_bucket_ends(tests, counts, np.array([0, *buckets]))
        table = _raw(points.take(kept))
        t, c, b, y, good = tests[:, ~np.logical_or.reduce(table.seconds(*tests[:3])[1:])]
        if len(t):
            folds.append(_Fold(axis, kept, t, c, b, y, good > 0))
    return folds


def _with_bucket_ends(tests: FloatArray, counts: IntArray, ends: IntArray) -> FloatArray:
    """The tests (columns; tokens first), and for each in a bucket measured at one size only the same at its first and last size."""
    t = tests[0]
    own = np.searchsorted(ends, t, side="left")  # ends starts with 0, so bucket k is ends[k - 1] + 1 … ends[k]
    sizes = np.bincount(np.searchsorted(ends, counts, side="left"), minlength=len(ends) + 1)
    alone = (own < len(ends)) & (sizes[own] == 1)
    parts = [tests]
    for end in (ends[own[alone] - 1] + 1.0, ends[own[alone]].astype(np.float64)):
        more = tests[:, alone][:, end != t[alone]]
        more[0] = end[end != t[alone]]
        parts.append(more)
    return np.concatenate(parts, axis=1)


def _raw(points: Points) -> Surface:
    """The medians joined by lines: here only to know what these points cover."""
    curves = []
    for batch, context in sorted(set(zip(points.batch.tolist(), points.context.tolist(), strict=True))):
        g = np.flatnonzero((points.batch == batch) & (points.context == context))
        x, y = points.tokens[g].astype(np.float64), points.seconds[g]
        curves.append(Curve(context, batch, float(x[0]), float(x[-1]), tuple(x.tolist()), tuple(y.tolist())))
    return Surface("table", curves, None)


def _held_out_errors(kind: str, points: Points, folds: Sequence[_Fold], profile: Profile) -> list[FloatArray]:
    """Signed relative errors of one kind on every fold, each from a fit that never saw the fold."""
    return [
        _fit(kind, points.take(f.kept), profile)[0].seconds(f.tokens, f.context, f.batch)[0] / f.truth - 1.0
        for f in folds
    ]


def held_out_seconds(profile: Profile, kind: str, seed: int = 0) -> FloatArray:
    """What a kind predicts for each of ``profile.points()`` when it is fitted without the points of that token count.

    Parameters
    ----------
    profile : Profile
    kind : str
    seed : int

    Returns
    -------
    float64 [points]
        Seconds; NaN at the first and the last count, which can't be left out without extrapolating.

    Examples
    --------
    >>> from ddsim.cost.profile import VerifySample
    >>> samples = [VerifySample(t, 512, 1, [0.010 + 0.0001 * t]) for t in (1, 8, 16, 32)]
    >>> held_out_seconds(Profile(samples), "table").round(4).tolist()
    [nan, 0.0108, 0.0116, nan]
    """
    points = profile.points(seed)
    found = np.full(len(points), np.nan)
    for fold in _left_out(points, profile.buckets):
        if fold.axis != "tokens":
            continue
        left = np.flatnonzero(~fold.kept)
        surface = _fit(kind, points.take(fold.kept), profile)[0]
        seconds, *outside = surface.seconds(
            *(v[left].astype(np.float64) for v in (points.tokens, points.context, points.batch))
        )
        found[left] = np.where(np.logical_or.reduce(outside), np.nan, seconds)
    return found


def _kind_report(folds: Sequence[_Fold], errors: Sequence[FloatArray]) -> KindReport:
    axes: dict[str, dict[str, float]] = {}
    every, scored = [], []
    for axis in dict.fromkeys(f.axis for f in folds):
        e = np.abs(np.concatenate([e for f, e in zip(folds, errors, strict=True) if f.axis == axis]))
        axes[axis] = {
            "median": float(np.median(e)),
            "mean": float(e.mean()),
            "worst": float(e.max()),
            "points": len(e),
        }
        if axis != "buckets":
            every.append(e)
            sound = np.concatenate([f.sound for f in folds if f.axis == axis])
            scored.append(e[sound] if sound.any() else e)
    if not every:
        return KindReport(0.0, 0.0, 0.0, 0, axes)
    all_of = np.concatenate(every)
    return KindReport(
        float(np.median(all_of)),
        float(all_of.max()),
        float(np.mean([e.mean() for e in scored])),
        len(all_of),
        axes,
    )


def _pick(reports: dict[str, KindReport], declared: bool, evident: bool = False) -> tuple[str, str]:
    """The kind with the least held-out error; among equally good ones, the one that assumes what is known to be so."""
    order = KINDS
    if not (declared or evident):  # where the engine pads, a model that does too is preferred
        order = tuple(sorted(KINDS, key=lambda kind: shape_of(kind).stepped))
    if not any(r.points for r in reports.values()):
        kind = "steps" if declared or evident else "table"
        return kind, "picked unjudged: too few token counts and contexts to leave any out"
    least = min(r.score for r in reports.values())
    if evident and reports["steps"].score <= EVIDENT * least:
        return (
            "steps",
            f"picked since costs jump between neighbouring sizes; {100 * reports['steps'].score:.2g} % mean held-out error",
        )
    kind = next(k for k in order if reports[k].score <= (1 + TIE[0]) * least + TIE[1])
    text = f"picked for the least mean held-out error, {100 * reports[kind].score:.2g} %"
    if reports[kind].score > least:
        text = f"picked at {100 * reports[kind].score:.2g} % mean held-out error as the simplest within reach of the least, {100 * least:.2g} %"
    return kind, text


def _worst_points(folds: Sequence[_Fold], errors: Sequence[FloatArray], count: int = 5) -> list[dict[str, float]]:
    """The held-out points with the largest errors, each named once."""
    rows: dict[tuple[float, float, float], float] = {}
    for f, e in zip(folds, errors, strict=True):
        if f.axis == "buckets":
            continue
        for t, c, b, error in zip(f.tokens.tolist(), f.context.tolist(), f.batch.tolist(), e.tolist(), strict=True):
            if abs(error) > abs(rows.get((t, c, b), 0.0)):
                rows[t, c, b] = error
    worst = sorted(rows.items(), key=lambda item: (-abs(item[1]), item[0]))[:count]
    return [{"tokens": t, "context": c, "batch": b, "error": error} for (t, c, b), error in worst]


def median_points(samples: Sequence[tuple[int | None, int, Sequence[float]]]) -> list[RoundPoint]:
    """Medians of (context, batch, seconds) samples; those of one context and batch are pooled."""
    pooled: dict[tuple[int, int | None], list[float]] = {}
    for context, batch, seconds in samples:
        pooled.setdefault((batch, context), []).extend(seconds)
    keys = sorted(pooled, key=lambda key: (key[0], key[1] or 0))
    return [RoundPoint(context, batch, float(np.median(pooled[batch, context]))) for batch, context in keys]
