"""Cost models: from a latency profile to seconds as a function of verified tokens, context and batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim import limits
from ddsim.cost import imports
from ddsim.cost.fit import CostReport, fit, median_points, read_report
from ddsim.cost.interpolation import Curve, RoundPoint, RoundTimes, Surface, check_grid
from ddsim.cost.kinds import KINDS, shape_of
from ddsim.cost.prefill import AssumedPrefill, Prefill, PrefillPoint, prefill_points, read_prefill
from ddsim.cost.profile import KIND as PROFILE_KIND
from ddsim.cost.profile import LIMITS, MILLISECONDS, MOST_SECONDS, MOST_TOKENS, Profile, bounded, check_buckets
from ddsim.cost.profile import SCHEMA_VERSION as PROFILE_VERSION
from ddsim.cost.ranges import ExtrapolationWarning as ExtrapolationWarning
from ddsim.cost.ranges import FitRange, Outside, arguments, span_of, span_text
from ddsim.cost.shapes import Roofline, bucket_levels, convex_curve, padded_range
from ddsim.cost.shown import ShownCost
from ddsim.errors import DdsimError, caller_level
from ddsim.files.documents import array, check_header, mapping, need, number, read_bytes, read_document, write_document
from ddsim.text import brief

SCHEMA_VERSION = 1


COST_KIND = "ddsim-cost"


FloatArray = NDArray[np.float64]


IntArray = NDArray[np.int64]


class ProfileWarning(UserWarning):
    """Something in a profile, or in a table, can hardly be true, or is not enough to tell."""


class CostModel(ShownCost):
    """Seconds that a round costs: drafting and host work, and verification of so many tokens.

    C(n) = draft_seconds + verify_seconds(n + 1, context). Made by :func:`fit_cost`, :meth:`from_table` or :meth:`load`.

    Between measured contexts and batches all kinds but ``roofline`` interpolate linearly. Outside what was measured every answer
    comes with one :class:`ExtrapolationWarning` per model and axis: token counts go on with the last slope (flat below the first),
    contexts with the last slope between contexts (flat below the first), and every request past the last batch of B adds what
    reading its context costs, a B-th of the slope between contexts there. Drafting and host work go on as from the batch before
    to the last.

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
        prefill: Sequence[PrefillPoint] = (),
    ) -> None:
        self.kind = kind
        self.report = report
        self.provenance = dict(provenance or {})
        self._surface = Surface(kind, curves, roofline)
        self._draft, self._host = tuple(draft), tuple(host)
        self._prefill = Prefill(prefill) if prefill else AssumedPrefill(self._surface)
        self._round = [
            RoundTimes(name, points)
            for name, points in (("drafting", self._draft), ("host work", self._host))
            if points
        ]
        contexts = sorted({c.context for c in curves if c.context is not None})
        batches = sorted({c.batch for c in curves if c.batch is not None})
        self.batches = tuple(batches)
        self.range = FitRange(
            (min(c.low for c in curves), max(c.high for c in curves)),
            (contexts[0], contexts[-1]) if contexts else None,
            (batches[0], batches[-1]) if batches else None,
        )
        self.default_context = contexts[(len(contexts) - 1) // 2] if contexts else 0
        self._outside = Outside()
        self._convex: CostModel | None = None
        self._rows: dict[
            tuple[int, int, int], tuple[FloatArray, float]
        ] = {}  # rows of cost tables, by context, batch, budget

    @property
    def buckets(self) -> tuple[int, ...] | None:
        """Token counts that passes are padded to: those the profile declares, or those found in it; None if there are none."""
        return None if self.report.buckets is None else tuple(self.report.buckets)

    @property
    def parameters(self) -> dict[str, object] | None:
        """Parameters of a roofline fit (see :class:`ddsim.cost.shapes.Roofline`), None for other kinds."""
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
        t, c, b = arguments(
            tokens=(tokens, 1),
            context=(self.default_context if context is None else context, 0),
            batch=(batch, 1),
        )
        value, out_tokens, out_context, out_batch = self._surface.seconds(t, c, b)
        self._outside.note("tokens", t, out_tokens, f"{self.range.tokens[0]:g}–{self.range.tokens[1]:g}")
        self._outside.note("context", c, out_context, span_text(self.range.contexts))
        self._outside.note("batch", b, out_batch, span_text(self.range.batches))
        return value if value.ndim else float(value)

    @overload
    def draft_seconds(self, batch: float = 1, *, context: float | None = None) -> float: ...
    @overload
    def draft_seconds(self, batch: ArrayLike = 1, *, context: ArrayLike | None = None) -> FloatArray: ...
    def draft_seconds(self, batch: ArrayLike = 1, *, context: ArrayLike | None = None) -> Any:
        """Seconds a round spends on drafting and on the host: medians, linear between contexts and batches.

        Parameters
        ----------
        batch, context : array_like
            As in :meth:`verify_seconds`; the context by name only, since everywhere else it comes before the batch.
        """
        c, b = arguments(context=(self.default_context if context is None else context, 0), batch=(batch, 1))
        value = np.zeros(c.shape)
        for times in self._round:
            seconds, out_context, out_batch = times.seconds(c, b)
            value = value + seconds
            self._outside.note(f"context of {times.name}", c, out_context, span_of([p.context for p in times.points]))
            self._outside.note(f"batch of {times.name}", b, out_batch, span_of([p.batch for p in times.points]))
        return value if value.ndim else float(value)

    def ar_seconds(self, context: ArrayLike | None = None, batch: ArrayLike = 1) -> Any:
        """Seconds of an autoregressive round: one token per request, no drafting."""
        return self.verify_seconds(batch, context, batch)

    @overload
    def prefill_seconds(self, tokens: float, context: float = 0) -> float: ...
    @overload
    def prefill_seconds(self, tokens: ArrayLike, context: ArrayLike = 0) -> FloatArray: ...
    def prefill_seconds(self, tokens: ArrayLike, context: ArrayLike = 0) -> Any:
        """Seconds of committing ``tokens`` tokens of one request's prompt after ``context`` others (see `ddsim.cost.prefill`).

        Where no prefill was measured (``prefill_range`` is None), passes of verification with as many tokens as were measured.

        Examples
        --------
        >>> cost = CostModel.from_table([1, 64, 128], [0.010, 0.012, 0.020])
        >>> with warnings.catch_warnings(action="ignore"):
        ...     cost.prefill_seconds([128, 192]).round(6).tolist()
        [0.02, 0.032]
        """
        t, c = arguments(tokens=(tokens, 1), context=(context, 0))
        value, out_tokens, out_positions = self._prefill.seconds(t, c)
        self._outside.note("tokens of prefill", t, out_tokens, self._prefill.span_of_tokens)
        self._outside.note("positions of prefill", c + t, out_positions, self._prefill.span_of_positions)
        return value if value.ndim else float(value)

    def prefill_extrapolated(self, tokens: ArrayLike, context: ArrayLike = 0) -> Any:
        """Whether a prefill lies outside what was measured; a bool array, or a bool for scalars."""
        t, c = arguments(tokens=(tokens, 1), context=(context, 0))
        outside = np.logical_or(*self._prefill.seconds(t, c)[1:])
        return outside if outside.ndim else bool(outside)

    @property
    def prefill_attend(self) -> float:
        """Seconds that a prompt token's attention takes for each token before it; 0 where no prefill was measured."""
        return self._prefill.attend

    @property
    def prefill_range(self) -> FitRange | None:
        """Tokens and contexts of the measured prefills; None if there are none."""
        return self._prefill.range

    def measured_tokens(self, context: float | None = None, batch: float = 1) -> tuple[float, float]:
        """First and last token count of a pass that was measured at this context and batch, or at those around it."""
        c, b = arguments(context=(self.default_context if context is None else context, 0), batch=(batch, 1))
        low, high = self._surface.measured_tokens(c, b)
        return float(low), float(high)

    def extrapolated(self, tokens: ArrayLike, context: ArrayLike | None = None, batch: ArrayLike = 1) -> Any:
        """Whether a round lies outside what was measured: its verification, its drafting or its work on the host.

        Parameters
        ----------
        tokens, context, batch : array_like
            As in :meth:`verify_seconds`.

        Returns
        -------
        bool array of the broadcast shape, or a bool for scalars
        """
        t, c, b = arguments(
            tokens=(tokens, 1),
            context=(self.default_context if context is None else context, 0),
            batch=(batch, 1),
        )
        outside = np.logical_or.reduce(self._surface.seconds(t, c, b)[1:])
        for times in self._round:
            outside = np.logical_or.reduce([outside, *times.seconds(c, b)[1:]])
        return outside if outside.ndim else bool(outside)

    def one_warning(self) -> AbstractContextManager[None]:
        """Gather what is extrapolated inside the block, over many questions, and warn of it once at the end of the outermost."""
        return self._outside.gather()

    def no_warning(self) -> AbstractContextManager[None]:
        """Ask inside the block for costs that may be extrapolated, and say nothing of it."""
        return self._outside.gather(said=False)

    def is_convex(self, max_tokens: int | None = None, context: float | None = None, batch: int = 1) -> bool:
        """Whether verification cost is convex over the whole token counts from ``batch`` to ``max_tokens`` (None: the fit's last).

        Where it is, stopping at the first node that doesn't pay (CaDDTree's greedy stop) is optimal.
        """
        last = int(self.range.tokens[1]) if max_tokens is None else max_tokens
        t, c, b = arguments(
            tokens=(np.arange(batch, last + 1), 1),
            context=(self.default_context if context is None else context, 0),
            batch=(batch, 1),
        )
        curve = self._surface.seconds(t, c, b)[0]
        return bool((np.diff(curve, 2) >= -1e-9 * np.abs(curve).max()).all()) if len(curve) > 2 else True

    def convex(self) -> CostModel:
        """This model with monotone convex curves, those nearest to its medians: what `CaDDTree`'s authors decide on.

        Least squares on relative errors over the sizes that the model knows (both ends of a bucket, where it has buckets), one
        curve for each context and batch. Drafting and host work stay. A convex model is returned as it is.

        Examples
        --------
        >>> stepped = CostModel.from_table([1, 16, 17, 32, 33, 64], [1.0, 1.0, 1.5, 1.5, 3.0, 3.0])
        >>> stepped.is_convex(), stepped.convex().is_convex()
        (False, True)
        """
        if self._surface.shape.convex:
            return self
        if self._convex is None:
            curves = [self._convex_curve(curve) for curve in self._surface.curves]
            report = CostReport("convex", "convex", f"drawn through the {self.kind} model", points=self.report.points)
            self._convex = CostModel(
                "convex", curves, None, self._draft, self._host, report, self.provenance, self._prefill.points
            )
            self._convex._outside = self._outside  # what is extrapolated is said once
        return self._convex

    def _convex_curve(self, curve: Curve) -> Curve:
        """One curve made convex."""
        knots, surface = np.array(curve.tokens, np.float64), self._surface
        sizes = surface.shape.sizes(knots, curve.low, curve.high, surface.roofline)
        sizes = np.unique(sizes[(sizes >= curve.low) & (sizes <= curve.high)])
        if not len(sizes):
            sizes = np.array([curve.high])
        context, batch = np.full(len(sizes), curve.context or 0.0), np.full(len(sizes), curve.batch or 1.0)
        seconds = surface.seconds(sizes, context, batch)[0]
        if len(sizes) > 1:
            seconds = convex_curve(sizes, seconds, seconds**-2.0)
        return Curve(curve.context, curve.batch, curve.low, curve.high, tuple(sizes.tolist()), tuple(seconds.tolist()))

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
        parts, remarks = self._conditions()
        return " ".join(["; ".join([text, *parts]) + ".", *remarks])

    def _conditions(self) -> tuple[list[str], list[str]]:
        """What answers rest on: parts of a sentence, and whole sentences of doubt."""
        parts = [f"fitted on {self.range}"]
        if not self.is_convex():
            parts.append("not convex, so a greedy stop may end at a step")
        if self.provenance.get("seconds") in (imports.WHOLE_STEPS, imports.SPLIT_STEPS):
            parts.append(f"seconds are {self.provenance['seconds']}")
        elif not self._draft:
            parts.append("no drafter was measured, so drafting counts as free")
        if self._prefill.points:
            parts.append(str(self._prefill))
        return parts, [f"{note[0].upper()}{note[1:]}{'' if note.endswith('?') else '.'}" for note in self.report.notes]

    @classmethod
    def from_table(
        cls,
        tokens: ArrayLike,
        seconds: ArrayLike,
        draft_seconds: float = 0.0,
        buckets: Sequence[int] | None = None,
    ) -> CostModel:
        """A curve typed in by hand, the same at every context and batch: linear between its points, or in steps of buckets.

        Parameters
        ----------
        tokens : array_like [m], m at least 2, ascending
        seconds : array_like [m]
        draft_seconds : float
            Drafter and host together, per round.
        buckets : sequence of int, optional
            Sizes that passes are padded to, ascending. A size then costs its bucket, which costs what was typed in for one of its
            sizes (of several the lower median), or lies on the line between buckets that have a point.

        Raises
        ------
        DdsimError
            Lengths differ, tokens or buckets don't ascend, or a duration isn't positive.

        Warns
        -----
        ProfileWarning
            Seconds that look like milliseconds.

        Examples
        --------
        >>> cost = CostModel.from_table([1, 64, 128], [0.010, 0.012, 0.020], buckets=[1, 64, 128])
        >>> cost.verify_seconds([2, 64, 65]).tolist()
        [0.012, 0.012, 0.02]
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
        draft = number(draft_seconds, "from_table: draft_seconds", positive=False)
        bounded(float(x[-1]), MOST_TOKENS, "from_table: tokens", LIMITS["tokens"][1])
        for name, values in (("seconds", y), ("draft_seconds", np.array([draft]))):
            bounded(float(values.max()), MOST_SECONDS, f"from_table: {name}", "pass takes, in seconds")
            if values.min() > MILLISECONDS:
                warnings.warn(
                    f"from_table: {name} look like milliseconds: {'a draft' if name != 'seconds' else 'the fastest pass'} would take "
                    f"{values.min():g} s; divide by 1,000 if so",
                    ProfileWarning,
                    stacklevel=caller_level(),
                )
        kind, low, high, ends = "table", float(x[0]), float(x[-1]), None
        if buckets is not None:
            kind, ends = "steps", check_buckets(buckets, "from_table: buckets")
            low, high = padded_range(low, high, ends)
            x, y = bucket_levels(x, y, ends)
        curve = Curve(None, None, low, high, tuple(x.tolist()), tuple(y.tolist()))
        report = CostReport(
            kind,
            kind,
            "typed in by hand",
            points=len(x),
            buckets=None if ends is None else list(ends),
            buckets_from=None if ends is None else "typed in",
        )
        return cls(kind, [curve], None, [RoundPoint(None, None, draft)], [], report)

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
            **({"prefill": [asdict(p) for p in self._prefill.points]} if self._prefill.points else {}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as JSON, whole or not at all; :meth:`load` gives back the same numbers to the last bit."""
        write_document(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostModel:
        """Read a saved model.

        Raises
        ------
        DdsimError
            One line: which file, which entry, what is wrong.
        """
        return _model(read_document(path, {COST_KIND: SCHEMA_VERSION}), str(path))


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

    Warns
    -----
    ProfileWarning
        What can hardly be true of the profile, or what its sizes can't tell; also in ``report.notes`` and ``explain()``.

    Examples
    --------
    >>> from ddsim.cost.profile import VerifySample, DraftSample
    >>> samples = [VerifySample(t, c, 1, (0.01 + 1e-5 * t + 1e-8 * c,)) for t in (1, 8, 64, 512) for c in (512, 2048)]
    >>> cost = fit_cost(Profile(samples, [DraftSample(512, 1, (0.001,))]), kind="table")
    >>> round(cost.verify_seconds(64, 512), 6)
    0.010645
    """
    from ddsim.cost.profile import check_profile

    check_profile("fit_cost", profile)
    limits.check("seed", seed)
    if kind != "auto" and kind not in KINDS:
        raise DdsimError(f'unknown cost kind "{kind}" (known: auto, {", ".join(KINDS)})')
    surface, report = fit(profile, kind, seed)
    if report.notes:
        warnings.warn(f"profile: {'; '.join(report.notes)}", ProfileWarning, stacklevel=caller_level())
    draft = median_points([(s.context, s.batch, s.seconds) for s in profile.draft])
    host = median_points([(None, s.batch, s.seconds) for s in profile.host])
    prefill = prefill_points(profile.prefill)
    return CostModel(report.kind, surface.curves, surface.roofline, draft, host, report, profile.provenance, prefill)


def open_cost(path: str | os.PathLike[str], kind: str = "auto") -> CostModel:
    """A cost model from a file: a saved one as it is, a profile by fitting it."""
    held = read_costs(path, kind)
    return fit_cost(held, kind) if isinstance(held, Profile) else held


def read_costs(path: str | os.PathLike[str], kind: str = "auto") -> Profile | CostModel:
    """What a file holds, a profile as measured or a fitted cost model, read once: it may be a pipe.

    Files of others are told by their content, see `ddsim.cost.imports`; provenance names their source.

    Raises
    ------
    DdsimError
        None of them, or a fitted model of another kind than asked for.
    """
    return costs_of(imports.read_content(read_bytes(path), str(path)), str(path), kind)


def costs_of(found: Any, path: str, kind: str = "auto") -> Profile | CostModel:
    """What `ddsim.cost.imports.read_content` found in a file, as `read_costs` returns it."""
    if isinstance(found, imports.Fitted):
        report = CostReport(found.kind, found.kind, "as it was found", points=sum(len(c.tokens) for c in found.curves))
        found = CostModel(found.kind, found.curves, None, found.draft, [], report, found.provenance)
    elif not isinstance(found, Profile):
        check_header(found, {COST_KIND: SCHEMA_VERSION, PROFILE_KIND: PROFILE_VERSION}, path)
        found = Profile.from_json(found, path) if found["kind"] == PROFILE_KIND else _model(found, path)
    if isinstance(found, CostModel) and kind not in ("auto", found.kind):
        raise DdsimError(f'{path}: holds a fitted "{found.kind}" cost model; to get "{kind}", fit the profile again')
    return found  # type: ignore[no-any-return]


def _model(document: dict[str, Any], where: str) -> CostModel:
    """A cost model from its JSON object, all checks made."""
    keys = ("schema_version", "kind", "fit", "provenance", "curves", "roofline", "draft", "host", "report")
    mapping(document, where, (*keys, "prefill"))
    for key in keys:
        need(document, key, where)
    kind = document["fit"]
    if kind not in KINDS:
        raise DdsimError(f"{where}: fit: must be one of {', '.join(KINDS)}, is {brief(kind)}")
    formula = shape_of(kind).formula
    if (formula is None) != (document["roofline"] is None):
        raise DdsimError(f'{where}: "roofline" must hold parameters for a roofline fit, and null for any other')
    curves = [
        Curve.from_json(c, f"{where}: curves[{i}]", formula is not None)
        for i, c in enumerate(array(document["curves"], f"{where}: curves", 1))
    ]
    roofline = None if formula is None else formula.from_json(document["roofline"], f"{where}: roofline")
    draft, host = (
        [
            RoundPoint.from_json(p, f"{where}: {name}[{i}]")
            for i, p in enumerate(array(document[name], f"{where}: {name}"))
        ]
        for name in ("draft", "host")
    )
    for name, points in (("curves", curves), ("draft", draft), ("host", host)):
        check_grid(points, f"{where}: {name}")
    report = read_report(document["report"], f"{where}: report")
    return CostModel(
        kind,
        curves,
        roofline,
        draft,
        host,
        report,
        mapping(document["provenance"], f"{where}: provenance"),
        read_prefill(array(document.get("prefill", []), f"{where}: prefill"), f"{where}: prefill"),
    )
