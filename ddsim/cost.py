"""Cost models: from a latency profile to seconds as a function of verified tokens, context and batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim import jsonfile
from ddsim.curves import (
    Roofline,
    bucket_levels,
    convex_curve,
    find_buckets,
    fit_roofline,
    isotonic_curve,
    robust,
)
from ddsim.errors import DdsimError
from ddsim.profiles import (
    KIND as PROFILE_KIND,
)
from ddsim.profiles import (
    SCHEMA_VERSION as PROFILE_VERSION,
)
from ddsim.profiles import (
    DraftSample,
    HostSample,
    Points,
    Profile,
    VerifySample,
    read_profile,
    write_profile,
)

__all__ = [
    "CONTEXT_STEP",
    "KINDS",
    "CostModel",
    "CostReport",
    "CostTable",
    "DraftSample",
    "ExtrapolationWarning",
    "FitRange",
    "HostSample",
    "KindReport",
    "Points",
    "Profile",
    "VerifySample",
    "cost_table",
    "fit_cost",
    "open_cost",
    "read_profile",
    "write_profile",
]

Kind = Literal["steps", "roofline", "convex", "isotonic", "table"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONTEXT_STEP = 64  # contexts are rounded up to a multiple of this before they are priced
SCHEMA_VERSION = 1
COST_KIND = "ddsim-cost"
FOLDS = 10
FLOOR = 0.005  # relative error that no point is trusted beyond, however well its repeats agree
STEP_FLOOR = 0.01  # differences below this aren't taken for a step when buckets have to be found
TIE = (
    0.1,
    0.001,
)  # kinds within 10 % + 0.1 percentage points of the least held-out error count as equally good

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class ExtrapolationWarning(UserWarning):
    """A cost was asked for outside the tokens, contexts or batches that were measured."""


@dataclass(frozen=True)
class FitRange:
    """What a cost model was fitted on: first and last token count, context and batch (None: it doesn't depend on it)."""

    tokens: tuple[float, float]
    contexts: tuple[int, int] | None
    batches: tuple[int, int] | None

    def __str__(self) -> str:
        text = f"tokens {self.tokens[0]:g}–{self.tokens[1]:g}"
        for name, pair in (("context", self.contexts), ("batch", self.batches)):
            if pair is not None:
                text += f", {name} {pair[0]}" + (f"–{pair[1]}" if pair[1] != pair[0] else "")
        return text


@dataclass(frozen=True)
class KindReport:
    """Relative errors of one kind on points that it wasn't fitted on.

    ``axes`` holds, for each way of leaving out ("tokens", "contexts", "batches", and "buckets" where the profile names them),
    median, mean and worst error and the number of points; median, worst and score are over all ways but "buckets", where
    the score is the mean over the ways of their mean errors.
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
    points that the picked kind predicts worst: outliers to look at, or structure that it misses.
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


@dataclass(frozen=True)
class Curve:
    """Seconds over token counts at one (context, batch), measured from ``low`` to ``high`` tokens; None: at any."""

    context: int | None
    batch: int | None
    low: float
    high: float
    tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class RoundPoint:
    """Median seconds of a drafter pass (or of host work, whose context is None) at one context and batch; None: at any."""

    context: int | None
    batch: int | None
    seconds: float


class _Grid:
    """Bilinear interpolation weights over (batch, context) nodes; every batch has contexts of its own.

    Past the last context a node's value goes on with a slope given by the caller; below the first it stays. A batch outside the
    nodes counts as the nearest one with the same KV cache in all: context · batch is kept.
    """

    def __init__(self, nodes: Sequence[tuple[int | None, int | None]]) -> None:
        self.any_batch = all(batch is None for _, batch in nodes)
        self.any_context = all(context is None for context, _ in nodes)
        keyed = [(batch or 1, context or 0) for context, batch in nodes]
        self.batches = np.array(sorted({batch for batch, _ in keyed}), np.float64)
        self.nodes = []  # per batch: its nodes' indices and contexts, ascending
        for batch in self.batches:
            of = sorted((context, i) for i, (b, context) in enumerate(keyed) if b == batch)
            self.nodes.append((np.array([i for _, i in of]), np.array([float(context) for context, _ in of])))

    def weights(
        self, context: FloatArray, batch: FloatArray
    ) -> tuple[list[tuple[int, FloatArray]], list[tuple[int, FloatArray]], BoolArray, BoolArray]:
        """(node, weight) pairs, (batch index, weighted context tokens past its last node) pairs, outside contexts, outside batches."""
        nothing = np.zeros(context.shape, bool)
        if self.any_batch:
            batch = np.full_like(batch, self.batches[0])
        low, high, f = _bracket(self.batches, batch)
        out_batch = (batch < self.batches[0]) | (batch > self.batches[-1])
        out_context = nothing.copy()
        pairs, beyond = [], []
        for k, (index, contexts) in enumerate(self.nodes):
            wk = np.where(low == k, 1.0 - f, 0.0) + np.where((high == k) & (high != low), f, 0.0)
            if not wk.any():
                continue
            if self.any_context:
                pairs.append((int(index[0]), wk))
                continue
            c = np.where(out_batch, context * batch / self.batches[k], context)
            i, j, g = _bracket(contexts, c)
            out_context |= (wk > 0) & ((c < contexts[0]) | (c > contexts[-1]))
            for node in range(len(contexts)):
                w = wk * (np.where(i == node, 1.0 - g, 0.0) + np.where((j == node) & (j != i), g, 0.0))
                if w.any():
                    pairs.append((int(index[node]), w))
            if (c > contexts[-1]).any():
                beyond.append((k, wk * np.maximum(0.0, c - contexts[-1])))
        return pairs, beyond, out_context, out_batch


def _bracket(nodes: FloatArray, x: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Indices of the nodes around each x and how far it lies from the first to the second; clamped to the ends."""
    low = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 1)
    high = np.minimum(low + 1, len(nodes) - 1)
    gap = np.where(high > low, nodes[high] - nodes[low], 1.0)
    return low, high, np.where(high > low, np.clip((x - nodes[low]) / gap, 0.0, 1.0), 0.0)


def _at(curve: Curve, tokens: FloatArray, steps: bool) -> FloatArray:
    """One curve at any token counts: flat below its first point, going on with its last slope past its last."""
    x, y = np.array(curve.tokens), np.array(curve.seconds)
    slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2])) if len(x) > 1 else 0.0
    inside = y[np.minimum(np.searchsorted(x, tokens, side="left"), len(x) - 1)] if steps else np.interp(tokens, x, y)
    return np.where(tokens > x[-1], y[-1] + slope * (tokens - x[-1]), inside)


class _Surface:
    """Verification seconds over (tokens, context, batch): curves on a grid, or a roofline that knows where it was fitted."""

    def __init__(self, kind: str, curves: Sequence[Curve], roofline: Roofline | None) -> None:
        self.kind, self.curves, self.roofline = kind, tuple(curves), roofline
        self.grid = _Grid([(c.context, c.batch) for c in curves])
        self.slopes = [self._context_slope(index) for index, _ in self.grid.nodes] if roofline is None else []

    def _context_slope(self, index: IntArray) -> float:
        """Seconds per context token past the last context: from the last two curves, the same for all token counts.

        One number, so that a convex or monotone model stays so where it is extrapolated.
        """
        if len(index) < 2:
            return 0.0
        a, b = self.curves[index[-2]], self.curves[index[-1]]
        assert a.context is not None and b.context is not None
        x = np.array([t for t in b.tokens if a.low <= t <= a.high] or [b.low])
        steps = self.kind == "steps"
        return max(0.0, float(np.median(_at(b, x, steps) - _at(a, x, steps))) / (b.context - a.context))

    def seconds(
        self, tokens: FloatArray, context: FloatArray, batch: FloatArray
    ) -> tuple[FloatArray, BoolArray, BoolArray, BoolArray]:
        """Seconds, and where tokens, context and batch lie outside what was measured; arrays of one shape."""
        pairs, beyond, out_context, out_batch = self.grid.weights(context, batch)
        low, high = np.full(tokens.shape, np.inf), np.full(tokens.shape, np.inf)
        value = np.zeros(tokens.shape)
        for node, w in pairs:
            curve, used = self.curves[node], w > 0
            low[used] = np.minimum(low[used], curve.low)
            high[used] = np.minimum(high[used], curve.high)
            if self.roofline is None:
                value[used] += w[used] * _at(curve, tokens[used], self.kind == "steps")
        if self.roofline is None:
            for k, tokens_beyond in beyond:
                value += self.slopes[k] * tokens_beyond
        else:
            value = self.roofline.seconds(tokens, context, batch)
        return value, (tokens < low) | (tokens > high), out_context, out_batch


class CostModel:
    """Seconds that a round costs: drafting and host work, and verification of so many tokens.

    C(n) = draft_seconds + verify_seconds(n + 1, context). Made by :func:`fit_cost`, :meth:`from_table` or :meth:`load`.

    Between measured contexts and batches all kinds but ``roofline`` interpolate linearly. Outside what was measured every answer
    comes with one :class:`ExtrapolationWarning` per model and axis: token counts go on with the last slope (flat below the first),
    contexts with the last slope between contexts (flat below the first), batches keep the size of the KV cache.

    Attributes
    ----------
    kind : str
        The fitted shape: steps, roofline, convex, isotonic or table.
    range : FitRange
        What it was fitted on.
    report : CostReport
        Held-out errors and why this kind.
    provenance : dict
        Of the profile.
    parameters : dict or None
        Of the roofline, in seconds.

    Examples
    --------
    >>> cost = CostModel.from_table([1, 64, 512], [0.010, 0.012, 0.026], draft_seconds=0.001)
    >>> float(cost.verify_seconds(32.5)), float(cost.draft_seconds())
    (0.011, 0.001)
    """

    def __init__(
        self,
        kind: str,
        curves: Sequence[Curve],
        roofline: Roofline | None,
        draft: Sequence[RoundPoint],
        host: Sequence[RoundPoint],
        report: CostReport,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.report = report
        self.provenance = dict(provenance or {})
        self._surface = _Surface(kind, curves, roofline)
        self._draft, self._host = tuple(draft), tuple(host)
        self._round = [
            (name, points, _Grid([(p.context, p.batch) for p in points]))
            for name, points in (("drafting", self._draft), ("host work", self._host))
            if points
        ]
        contexts = sorted({c.context for c in curves if c.context is not None})
        batches = sorted({c.batch for c in curves if c.batch is not None})
        self.range = FitRange(
            (min(c.low for c in curves), max(c.high for c in curves)),
            (contexts[0], contexts[-1]) if contexts else None,
            (batches[0], batches[-1]) if batches else None,
        )
        self.default_context = contexts[(len(contexts) - 1) // 2] if contexts else 0
        self._warned: set[str] = set()
        self._rows: dict[
            tuple[int, int, int], tuple[FloatArray, float]
        ] = {}  # rows of cost tables, by context, batch, budget

    def __repr__(self) -> str:
        return f"CostModel(kind={self.kind!r}, {self.range})"

    @property
    def parameters(self) -> dict[str, object] | None:
        """Parameters of a roofline fit (see :class:`ddsim.curves.Roofline`), None for other kinds."""
        return None if self._surface.roofline is None else self._surface.roofline.to_json()

    @overload
    def verify_seconds(self, tokens: float, context: float | None = None, batch: float = 1) -> float: ...
    @overload
    def verify_seconds(
        self, tokens: ArrayLike, context: ArrayLike | None = None, batch: ArrayLike = 1
    ) -> FloatArray: ...
    def verify_seconds(self, tokens: ArrayLike, context: ArrayLike | None = None, batch: ArrayLike = 1) -> Any:
        """Seconds of the target's pass over ``tokens`` tokens.

        Parameters
        ----------
        tokens : array_like, at least 1
            Root and nodes, over all requests of the batch.
        context : array_like, optional
            Committed tokens per request. None: the middle one of the profiled contexts (``default_context``).
        batch : array_like

        Returns
        -------
        float64 array of the broadcast shape, or a float for scalars

        Raises
        ------
        DdsimError
            Tokens or batch below 1, context below 0, or no numbers.
        """
        t, c, b = _arguments(
            tokens=(tokens, 1),
            context=(self.default_context if context is None else context, 0),
            batch=(batch, 1),
        )
        value, out_tokens, out_context, out_batch = self._surface.seconds(t, c, b)
        self._flag("tokens", t, out_tokens, f"{self.range.tokens[0]:g}–{self.range.tokens[1]:g}")
        self._flag("context", c, out_context, _span(self.range.contexts))
        self._flag("batch", b, out_batch, _span(self.range.batches))
        return value if value.ndim else float(value)

    @overload
    def draft_seconds(self, batch: float = 1, context: float | None = None) -> float: ...
    @overload
    def draft_seconds(self, batch: ArrayLike = 1, context: ArrayLike | None = None) -> FloatArray: ...
    def draft_seconds(self, batch: ArrayLike = 1, context: ArrayLike | None = None) -> Any:
        """Seconds a round spends on drafting and on the host: medians, linear between contexts and batches.

        Parameters
        ----------
        batch, context : array_like
            As in :meth:`verify_seconds`.
        """
        c, b = _arguments(context=(self.default_context if context is None else context, 0), batch=(batch, 1))
        value = np.zeros(c.shape)
        for name, points, grid in self._round:
            pairs, beyond, out_context, out_batch = grid.weights(c, b)
            for node, w in pairs:
                value = value + w * points[node].seconds
            for k, tokens_beyond in beyond:
                index, contexts = grid.nodes[k]
                if len(index) > 1:
                    rise = points[index[-1]].seconds - points[index[-2]].seconds
                    value = value + max(0.0, rise / (contexts[-1] - contexts[-2])) * tokens_beyond
            self._flag(f"context of {name}", c, out_context, _span_of([p.context for p in points]))
            self._flag(f"batch of {name}", b, out_batch, _span_of([p.batch for p in points]))
        return value if value.ndim else float(value)

    def ar_seconds(self, context: ArrayLike | None = None, batch: ArrayLike = 1) -> Any:
        """Seconds of an autoregressive round: one token per request, no drafting."""
        return self.verify_seconds(batch, context, batch)

    def is_convex(self, max_tokens: int | None = None, context: float | None = None, batch: int = 1) -> bool:
        """Whether verification cost is convex over the whole token counts from ``batch`` to ``max_tokens`` (None: the fit's last).

        Where it is, stopping at the first node that doesn't pay (CaDDTree's greedy stop) is optimal.
        """
        last = int(self.range.tokens[1]) if max_tokens is None else max_tokens
        t, c, b = _arguments(
            tokens=(np.arange(batch, last + 1), 1),
            context=(self.default_context if context is None else context, 0),
            batch=(batch, 1),
        )
        curve = self._surface.seconds(t, c, b)[0]
        return bool((np.diff(curve, 2) >= -1e-9 * np.abs(curve).max()).all()) if len(curve) > 2 else True

    def explain(self) -> str:
        """One sentence: which kind, how well it predicts what it hasn't seen, why it was picked, and its range."""
        mine = self.report.kinds.get(self.kind)
        text = f"Cost model '{self.kind}' ({self.report.reason})"
        if mine is not None and mine.points:
            text += f"; held-out error {100 * mine.median:.1f} % median, {100 * mine.worst:.1f} % worst over {mine.points} predictions"
        others = {name: r for name, r in self.report.kinds.items() if name != self.kind and r.points}
        if others:
            text += (
                " ("
                + ", ".join(f"{name} {100 * r.median:.1f} / {100 * r.worst:.1f} %" for name, r in others.items())
                + ")"
            )
        text += f"; fitted on {self.range}"
        if not self.is_convex():
            text += "; not convex, so a greedy stop may end at a step"
        if not self._draft:
            text += "; no drafter was measured, so drafting counts as free"
        return text + "."

    @classmethod
    def from_table(cls, tokens: ArrayLike, seconds: ArrayLike, draft_seconds: float = 0.0) -> CostModel:
        """A curve typed in by hand: linear between its points, the same at every context and batch.

        Parameters
        ----------
        tokens : array_like [m], m at least 2, ascending
        seconds : array_like [m]
        draft_seconds : float
            Drafter and host together, per round.

        Raises
        ------
        DdsimError
            Lengths differ, tokens don't ascend, or a duration isn't positive.
        """
        try:
            x, y = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
        except (TypeError, ValueError):
            raise DdsimError("from_table: tokens and seconds must be lists of numbers") from None
        if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
            raise DdsimError(
                f"from_table: needs at least 2 tokens and as many seconds, has shapes {x.shape} and {y.shape}"
            )
        if not (np.isfinite(x).all() and x[0] >= 1 and (np.diff(x) > 0).all()):
            raise DdsimError("from_table: tokens must ascend from 1 or more, each once")
        if not (np.isfinite(y).all() and (y > 0).all()):
            raise DdsimError("from_table: seconds must be finite and above 0")
        draft = jsonfile.number(draft_seconds, "from_table: draft_seconds", positive=False)
        curve = Curve(None, None, float(x[0]), float(x[-1]), tuple(x.tolist()), tuple(y.tolist()))
        report = CostReport("table", "table", "typed in by hand", points=len(x))
        return cls("table", [curve], None, [RoundPoint(None, None, draft)], [], report)

    def to_json(self) -> dict[str, Any]:
        """The model as the JSON object that files hold."""
        surface = self._surface
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": COST_KIND,
            "fit": self.kind,
            "provenance": self.provenance,
            "curves": [asdict(c) for c in surface.curves],
            "roofline": self.parameters,
            "draft": [asdict(p) for p in self._draft],
            "host": [asdict(p) for p in self._host],
            "report": asdict(self.report),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as JSON, whole or not at all; :meth:`load` gives back the same numbers to the last bit."""
        jsonfile.write_document(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostModel:
        """Read a saved model.

        Raises
        ------
        DdsimError
            One line: which file, which entry, what is wrong.
        """
        return _model(jsonfile.read_document(path, {COST_KIND: SCHEMA_VERSION}), str(path))

    def _flag(self, axis: str, value: FloatArray, outside: BoolArray, span: str) -> None:
        if axis in self._warned or not outside.any():
            return
        self._warned.add(axis)
        asked = np.broadcast_to(value, outside.shape)[outside]
        text = f"{asked.min():g}" + (f"–{asked.max():g}" if asked.max() > asked.min() else "")
        warnings.warn(
            f"cost extrapolated: {axis} {text} is outside the measured {span}",
            ExtrapolationWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class CostTable:
    """Seconds of a round by budget, for every context that occurs.

    Attributes
    ----------
    seconds : float64 [U, N + 1]
        Drafting, host and verification of ``batch + n`` tokens: n nodes over the whole batch, and one root per request.
    ar_seconds : float64 [U]
        An autoregressive round: verification of ``batch`` tokens.
    row : int32 [P]
        Which row of ``seconds`` prices each position.
    contexts : int64 [U]
        The rounded contexts, ascending.
    batch : int
    """

    seconds: FloatArray
    ar_seconds: FloatArray
    row: NDArray[np.int32]
    contexts: IntArray
    batch: int = 1


def cost_table(cost: CostModel, contexts: ArrayLike, max_budget: int, batch: int = 1) -> CostTable:
    """Price all budgets at all positions; contexts are rounded up to a multiple of ``CONTEXT_STEP`` first.

    Rows are kept in the model, so that a decoder may ask every round.

    Parameters
    ----------
    cost : CostModel
    contexts : int array_like [P]
    max_budget : int
        N.
    batch : int

    Examples
    --------
    >>> table = cost_table(CostModel.from_table([1, 9], [1.0, 2.0], draft_seconds=0.5), [10, 60, 70], max_budget=8)
    >>> table.seconds.shape, table.row.tolist(), float(table.seconds[0, 8]), float(table.ar_seconds[0])
    ((2, 9), [0, 0, 1], 2.5, 1.0)
    """
    wanted = np.atleast_1d(np.asarray(contexts))
    if wanted.size and not (np.issubdtype(wanted.dtype, np.integer) and wanted.min() >= 0):
        raise DdsimError("cost_table: contexts must be whole numbers of at least 0")
    if max_budget < 0 or batch < 1:
        raise DdsimError(f"cost_table: needs max_budget >= 0 and batch >= 1, has {max_budget} and {batch}")
    rounded = -(-wanted.astype(np.int64) // CONTEXT_STEP) * CONTEXT_STEP
    unique, row = np.unique(rounded, return_inverse=True)
    missing = np.array([c for c in unique.tolist() if (c, batch, max_budget) not in cost._rows], np.int64)
    if len(missing):
        if len(cost._rows) > 4096:
            cost._rows.clear()
            missing = unique
        verify = cost.verify_seconds(np.arange(batch, batch + max_budget + 1), missing[:, None], batch)
        total = verify + cost.draft_seconds(np.full(len(missing), batch), missing)[:, None]
        for c, seconds, first in zip(missing.tolist(), total, verify[:, 0].tolist()):
            cost._rows[c, batch, max_budget] = seconds, first
    rows = [cost._rows[c, batch, max_budget] for c in unique.tolist()]
    seconds = np.array([r[0] for r in rows], np.float64).reshape(len(rows), max_budget + 1)
    return CostTable(
        seconds, np.array([r[1] for r in rows], np.float64), row.reshape(-1).astype(np.int32), unique, batch
    )


def fit_cost(profile: Profile, kind: str = "auto", *, seed: int = 0) -> CostModel:
    """Fit a cost model to a profile.

    Parameters
    ----------
    profile : Profile
    kind : str
        ``convex`` (non-decreasing and convex in tokens, non-negative least squares), ``isotonic`` (non-decreasing), ``steps``
        (a size costs its bucket: the profile's, or found in the data), ``roofline`` (parametric), ``table`` (medians joined by
        lines), or ``auto``: the kind with the least error on token counts, contexts and batches left out of its fit.
    seed : int
        Of the bootstrap behind the error bars.

    Returns
    -------
    CostModel
        Its ``report`` holds the held-out errors of every kind tried; ``explain()`` says them in a sentence.

    Raises
    ------
    DdsimError
        Unknown kind.

    Examples
    --------
    >>> samples = [VerifySample(t, c, 1, (0.01 + 1e-5 * t + 1e-8 * c,)) for t in (1, 8, 64, 512) for c in (512, 2048)]
    >>> cost = fit_cost(Profile(samples, [DraftSample(512, 1, (0.001,))]), kind="table")
    >>> round(cost.verify_seconds(64, 512), 6)
    0.010645
    """
    if kind != "auto" and kind not in KINDS:
        raise DdsimError(f'unknown cost kind "{kind}" (known: auto, {", ".join(KINDS)})')
    points = profile.points(seed)
    tried: tuple[Kind, ...] = KINDS if kind == "auto" else (cast(Kind, kind),)
    tests = _left_out(points, profile.buckets)
    errors = {name: _held_out_errors(name, points, tests, profile) for name in tried}
    reports = {name: _kind_report(tests, e) for name, e in errors.items()}
    picked, reason = _pick(reports, profile.buckets is not None) if kind == "auto" else (cast(Kind, kind), "as asked")
    surface, buckets = _fit(picked, points, profile)
    report = CostReport(
        kind=picked,
        asked=kind,
        reason=reason,
        kinds={str(name): r for name, r in reports.items()},
        points=len(points),
        noise=float(np.median(points.error / points.seconds)),
        buckets=None if buckets is None else list(buckets),
        buckets_from=None if buckets is None else "found" if profile.buckets is None else "profile",
        worst_points=_worst_points(tests, errors[picked]),
    )
    draft = _medians([(s.context, s.batch, s.seconds) for s in profile.draft])
    host = _medians([(None, s.batch, s.seconds) for s in profile.host])
    return CostModel(picked, surface.curves, surface.roofline, draft, host, report, profile.provenance)


def open_cost(path: str | os.PathLike[str], kind: str = "auto") -> CostModel:
    """A cost model from a file: a saved one as it is, a profile by fitting it."""
    document = jsonfile.read_document(path, {COST_KIND: SCHEMA_VERSION, PROFILE_KIND: PROFILE_VERSION})
    if document["kind"] == PROFILE_KIND:
        return fit_cost(Profile.from_json(document, str(path)), kind)
    model = _model(document, str(path))
    if kind not in ("auto", model.kind):
        raise DdsimError(f'{path}: holds a fitted "{model.kind}" cost model; to get "{kind}", fit the profile again')
    return model


def _fit(kind: Kind, points: Points, profile: Profile) -> tuple[_Surface, tuple[int, ...] | None]:
    """One kind fitted to points; of the profile only buckets and physical constants are used. Also the buckets, if it has any."""
    x, y = points.tokens.astype(np.float64), points.seconds
    relative = np.hypot(points.error / y, FLOOR)
    groups = [
        np.flatnonzero((points.batch == b) & (points.context == c))
        for b, c in sorted(set(zip(points.batch.tolist(), points.context.tolist(), strict=True)))
    ]
    groups = [g for g in groups if len(g) > 1] or groups
    buckets = None if profile.buckets is None else tuple(profile.buckets)
    if kind == "steps" and buckets is None:
        counts = np.unique(x)
        grid = np.full((2, len(counts), len(groups)), np.nan)
        for j, g in enumerate(groups):
            grid[:, np.searchsorted(counts, x[g]), j] = y[g], np.hypot(points.error[g] / y[g], STEP_FLOOR)
        buckets = find_buckets(counts, grid[0], grid[1])

    curves, roofline = [], None
    for g in groups:
        knots, values = x[g], y[g]
        if kind == "convex":
            values = robust(lambda w, g=g: convex_curve(x[g], y[g], w), y[g], (y[g] * relative[g]) ** -2.0)
        elif kind == "isotonic":
            values = robust(lambda w, g=g: isotonic_curve(y[g], w), y[g], (y[g] * relative[g]) ** -2.0)
        elif kind == "steps":
            assert buckets is not None
            knots, values = bucket_levels(x[g], y[g], buckets)
        low, high = float(x[g[0]]), float(max(x[g[-1]], knots[-1]))
        shape = ((), ()) if kind == "roofline" else (tuple(knots.tolist()), tuple(values.tolist()))
        curves.append(Curve(int(points.context[g[0]]), int(points.batch[g[0]]), low, high, *shape))
    if kind == "roofline":
        roofline = fit_roofline(
            x,
            points.context.astype(np.float64),
            points.batch.astype(np.float64),
            y,
            relative,
            buckets,
            _data_sheet(profile),
        )
    return _Surface(kind, curves, roofline), buckets if kind in ("steps", "roofline") else None


def _data_sheet(p: Profile) -> tuple[float, float, float] | None:
    """Seconds for the weights, per context token and per token, by the device's and the model's constants, if all are known."""
    if not (p.bandwidth_bytes_per_s and p.flops_per_s and p.weight_bytes and p.flops_per_token):
        return None
    kv = (p.kv_bytes_per_token or 0.0) / p.bandwidth_bytes_per_s
    return p.weight_bytes / p.bandwidth_bytes_per_s, kv, p.flops_per_token / p.flops_per_s


@dataclass(frozen=True)
class _Fold:
    """What is fitted without (``kept`` mask over points) and what is then predicted, with the truth."""

    axis: str
    kept: BoolArray
    tokens: FloatArray
    context: FloatArray
    batch: FloatArray
    truth: FloatArray


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
        t, c, b, y = (
            v[index].astype(np.float64) for v in (points.tokens, points.context, points.batch, points.seconds)
        )
        if buckets is not None and axis == "tokens":
            t, c, b, y = _with_bucket_ends(t, c, b, y, counts, np.array([0, *buckets]))
        table = _raw(points.take(kept))
        inside = ~np.logical_or.reduce(table.seconds(t, c, b)[1:])
        if inside.any():
            folds.append(_Fold(axis, kept, t[inside], c[inside], b[inside], y[inside]))
    return folds


def _with_bucket_ends(
    t: FloatArray, c: FloatArray, b: FloatArray, y: FloatArray, counts: IntArray, ends: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """The tests, and for each in a bucket measured at one size only, the same truth at the bucket's first and last size."""
    own = np.searchsorted(ends, t, side="left")  # ends starts with 0, so bucket k is ends[k - 1] + 1 … ends[k]
    sizes = np.bincount(np.searchsorted(ends, counts, side="left"), minlength=len(ends) + 1)
    alone = (own < len(ends)) & (sizes[own] == 1)
    tests = [(t, c, b, y)]
    for end in (ends[own[alone] - 1] + 1.0, ends[own[alone]].astype(np.float64)):
        new = end != t[alone]
        tests.append((end[new], c[alone][new], b[alone][new], y[alone][new]))
    t, c, b, y = (np.concatenate(column) for column in zip(*tests, strict=True))
    return t, c, b, y


def _raw(points: Points) -> _Surface:
    """The medians joined by lines: here only to know what these points cover."""
    curves = []
    for batch, context in sorted(set(zip(points.batch.tolist(), points.context.tolist(), strict=True))):
        g = np.flatnonzero((points.batch == batch) & (points.context == context))
        x, y = points.tokens[g].astype(np.float64), points.seconds[g]
        curves.append(Curve(context, batch, float(x[0]), float(x[-1]), tuple(x.tolist()), tuple(y.tolist())))
    return _Surface("table", curves, None)


def _held_out_errors(kind: Kind, points: Points, folds: Sequence[_Fold], profile: Profile) -> list[FloatArray]:
    """Signed relative errors of one kind on every fold, each from a fit that never saw the fold."""
    return [
        _fit(kind, points.take(f.kept), profile)[0].seconds(f.tokens, f.context, f.batch)[0] / f.truth - 1.0
        for f in folds
    ]


def _kind_report(folds: Sequence[_Fold], errors: Sequence[FloatArray]) -> KindReport:
    axes: dict[str, dict[str, float]] = {}
    scored = []
    for axis in dict.fromkeys(f.axis for f in folds):
        e = np.abs(np.concatenate([e for f, e in zip(folds, errors, strict=True) if f.axis == axis]))
        axes[axis] = {
            "median": float(np.median(e)),
            "mean": float(e.mean()),
            "worst": float(e.max()),
            "points": len(e),
        }
        if axis != "buckets":
            scored.append(e)
    if not scored:
        return KindReport(0.0, 0.0, 0.0, 0, axes)
    every = np.concatenate(scored)
    return KindReport(
        float(np.median(every)),
        float(every.max()),
        float(np.mean([e.mean() for e in scored])),
        len(every),
        axes,
    )


def _pick(reports: dict[Kind, KindReport], declared: bool) -> tuple[Kind, str]:
    """The kind with the least held-out error; among equally good ones, the one that assumes what is known to be so."""
    order: tuple[Kind, ...] = ("roofline", "convex", "isotonic", "table", "steps")
    if declared:  # the engine pads, so a model that does too is preferred
        order = ("steps", "roofline", "convex", "isotonic", "table")
    if not any(r.points for r in reports.values()):
        kind: Kind = "steps" if declared else "table"
        return kind, "picked unjudged: too few token counts and contexts to leave any out"
    least = min(r.score for r in reports.values())
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


def _medians(samples: Sequence[tuple[int | None, int, Sequence[float]]]) -> list[RoundPoint]:
    pooled: dict[tuple[int, int | None], list[float]] = {}
    for context, batch, seconds in samples:
        pooled.setdefault((batch, context), []).extend(seconds)
    keys = sorted(pooled, key=lambda k: (k[0], k[1] or 0))
    return [RoundPoint(context, batch, float(np.median(pooled[batch, context]))) for batch, context in keys]


def _arguments(**named: tuple[ArrayLike, float]) -> list[FloatArray]:
    """Float arrays of one shape from (value, least allowed) pairs."""
    arrays = []
    for name, (value, least) in named.items():
        try:
            x = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise DdsimError(f"{name} must be numbers, is {value!r:.40}") from None
        if not (np.isfinite(x) & (x >= least)).all():
            raise DdsimError(f"{name} must be finite and at least {least:g}")
        arrays.append(x)
    return [np.array(x) for x in np.broadcast_arrays(*arrays)]


def _span(pair: tuple[int, int] | None) -> str:
    return "range" if pair is None else f"{pair[0]}" + (f"–{pair[1]}" if pair[1] != pair[0] else "")


def _span_of(values: Sequence[int | None]) -> str:
    known = [v for v in values if v is not None]
    return _span((min(known), max(known)) if known else None)


def _model(document: dict[str, Any], where: str) -> CostModel:
    """A cost model from its JSON object, all checks made."""
    keys = ("schema_version", "kind", "fit", "provenance", "curves", "roofline", "draft", "host", "report")
    jsonfile.mapping(document, where, keys)
    for key in keys:
        jsonfile.need(document, key, where)
    kind = document["fit"]
    if kind not in KINDS:
        raise DdsimError(f"{where}: fit: must be one of {', '.join(KINDS)}, is {jsonfile.brief(kind)}")
    if (kind == "roofline") != (document["roofline"] is not None):
        raise DdsimError(f'{where}: "roofline" must hold parameters for a roofline fit, and null for any other')
    curves = [
        _curve(c, f"{where}: curves[{i}]", kind)
        for i, c in enumerate(jsonfile.array(document["curves"], f"{where}: curves", 1))
    ]
    roofline = None if document["roofline"] is None else _roofline_of(document["roofline"], f"{where}: roofline")
    draft, host = (
        [
            _round_point(p, f"{where}: {name}[{i}]")
            for i, p in enumerate(jsonfile.array(document[name], f"{where}: {name}"))
        ]
        for name in ("draft", "host")
    )
    try:
        report = CostReport(**document["report"])
        report = CostReport(
            **{**document["report"], "kinds": {name: KindReport(**r) for name, r in report.kinds.items()}}
        )
    except (TypeError, AttributeError):
        raise DdsimError(f"{where}: report: not the report of a cost model; fit the profile again") from None
    return CostModel(
        kind,
        curves,
        roofline,
        draft,
        host,
        report,
        jsonfile.mapping(document["provenance"], f"{where}: provenance"),
    )


def _optional(entry: dict[str, Any], key: str, where: str, minimum: int) -> int | None:
    value = jsonfile.need(entry, key, where)
    return None if value is None else jsonfile.integer(value, f"{where}.{key}", minimum)


def _curve(raw: Any, where: str, kind: str) -> Curve:
    entry = jsonfile.mapping(raw, where, ("context", "batch", "low", "high", "tokens", "seconds"))
    low, high = (
        jsonfile.number(jsonfile.need(entry, k, where), f"{where}.{k}", positive=True) for k in ("low", "high")
    )
    tokens, seconds = (
        [
            jsonfile.number(v, f"{where}.{k}[{i}]", positive=True)
            for i, v in enumerate(jsonfile.array(jsonfile.need(entry, k, where), where))
        ]
        for k in ("tokens", "seconds")
    )
    if len(tokens) != len(seconds) or (not tokens and kind != "roofline"):
        raise DdsimError(
            f"{where}: needs as many seconds as tokens and at least one, has {len(seconds)} and {len(tokens)}"
        )
    if any(b <= a for a, b in zip(tokens, tokens[1:], strict=False)) or high < low:
        raise DdsimError(f"{where}: tokens must ascend, and low be at most high")
    return Curve(
        _optional(entry, "context", where, 0),
        _optional(entry, "batch", where, 1),
        low,
        high,
        tuple(tokens),
        tuple(seconds),
    )


def _round_point(raw: Any, where: str) -> RoundPoint:
    entry = jsonfile.mapping(raw, where, ("context", "batch", "seconds"))
    seconds = jsonfile.number(jsonfile.need(entry, "seconds", where), f"{where}.seconds", positive=False)
    return RoundPoint(_optional(entry, "context", where, 0), _optional(entry, "batch", where, 1), seconds)


def _roofline_of(raw: Any, where: str) -> Roofline:
    names = ("launch", "weights", "kv", "token", "attention", "sharpness")
    entry = jsonfile.mapping(raw, where, (*names, "buckets"))
    values = [jsonfile.number(jsonfile.need(entry, k, where), f"{where}.{k}", positive=k == "sharpness") for k in names]
    buckets = entry.get("buckets")
    if buckets is not None:
        buckets = tuple(
            jsonfile.integer(b, f"{where}.buckets[{i}]", 1) for i, b in enumerate(jsonfile.array(buckets, where, 1))
        )
    return Roofline(*values, buckets)
