"""What a prompt costs: seconds of committing tokens of one request after others, from measured prefills."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.cost.interpolation import Surface
from ddsim.cost.profile import LIMITS, MOST_SECONDS, PrefillSample, bounded
from ddsim.cost.ranges import FitRange, span_text
from ddsim.errors import DdsimError
from ddsim.files.documents import integer, mapping, need, number

FloatArray = NDArray[np.float64]


BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class PrefillPoint:
    """Median seconds of committing ``tokens`` tokens of one request after ``context`` others."""

    tokens: int
    context: int
    seconds: float

    @classmethod
    def from_json(cls, raw: Any, where: str) -> PrefillPoint:
        """A point in a document, checked."""
        entry = mapping(raw, where, ("tokens", "context", "seconds"))
        tokens = integer(need(entry, "tokens", where), f"{where}.tokens", 1)
        context = integer(need(entry, "context", where), f"{where}.context", 0)
        seconds = number(need(entry, "seconds", where), f"{where}.seconds", positive=True)
        for name, value in (("tokens", tokens), ("context", context)):
            bounded(value, LIMITS[name][0], f"{where}.{name}", LIMITS[name][1])
        bounded(seconds, MOST_SECONDS, f"{where}.seconds", "pass takes, in seconds")
        return cls(tokens, context, seconds)


def prefill_points(samples: Sequence[PrefillSample]) -> list[PrefillPoint]:
    """Medians of samples by (context, tokens), ascending; those of one place are pooled."""
    pooled: dict[tuple[int, int], list[float]] = {}
    for s in samples:
        pooled.setdefault((s.context, s.tokens), []).extend(s.seconds)
    return [
        PrefillPoint(tokens, context, float(np.median(pooled[context, tokens]))) for context, tokens in sorted(pooled)
    ]


def in_parts(
    tokens: FloatArray, context: FloatArray, most: Callable[[FloatArray], FloatArray]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Prompts in parts of at most ``most(context)`` tokens, one after another: (tokens, context) of each, 0 tokens where one is done."""
    left, at = tokens.copy(), context.copy()
    while (left > 0).any():
        part = np.minimum(left, most(at))
        yield part, at
        left, at = left - part, at + part


class Prefill:
    """Seconds of committing ``tokens`` tokens of one request after ``context`` others.

    Every token attends to what stands before it: that part, ``attend`` seconds a token and token before it, is fitted to how prefills
    grow with their contexts (least squares, and no more than any prefill takes). What is left is linear between measured token
    counts and contexts, flat below the first ones and past the last context. A prompt of more tokens than were measured at its
    context is taken in parts, each as long as was measured there.

    Parameters
    ----------
    points : sequence of PrefillPoint
        At least one; each place once.

    Examples
    --------
    >>> held = Prefill([PrefillPoint(t, c, 0.01 + t * (1e-4 + 1e-8 * (c + (t - 1) / 2))) for t in (128, 512) for c in (0, 1024)])
    >>> seconds, tokens_outside, positions_outside = held.seconds(np.array([256.0, 900.0]), np.array([300.0, 100.0]))
    >>> seconds.round(6).tolist(), tokens_outside.tolist(), positions_outside.tolist()
    ([0.036694, 0.114946], [False, False], [False, False])
    """

    def __init__(self, points: Sequence[PrefillPoint]) -> None:
        self.points = tuple(sorted(points, key=lambda p: (p.context, p.tokens)))
        self.contexts = np.array(sorted({p.context for p in points}), np.float64)
        t, c, y = (
            np.array([getattr(p, name) for p in self.points], np.float64) for name in ("tokens", "context", "seconds")
        )
        attended = t * (c + (t - 1) / 2)
        rises = []
        for count in sorted(set(t.tolist())):
            same = np.flatnonzero(t == count)
            rises += [(count * (c[i] - c[same[0]]), y[i] - y[same[0]]) for i in same[1:]]
        x, rise = np.array(rises, np.float64).reshape(-1, 2).T
        slope = float((x * rise).sum() / (x * x).sum()) if len(x) else 0.0
        self.attend = float(np.clip(slope, 0.0, (y[attended > 0] / attended[attended > 0]).min(initial=np.inf)))
        rest = y - self.attend * attended
        self.curves = [(t[c == at], rest[c == at]) for at in self.contexts]

        counts = [p.tokens for p in self.points]
        low, high = int(self.contexts[0]), int(self.contexts[-1])
        self.range: FitRange | None = FitRange((min(counts), max(counts)), (low, high), None)
        self.reach = max(p.context + p.tokens for p in self.points)
        self.span_of_tokens, self.span_of_positions = (
            span_text((min(counts), max(counts))),
            span_text((low, self.reach)),
        )

    def _around(self, context: FloatArray) -> list[tuple[int, FloatArray]]:
        """Curves around each context with their weights."""
        x = np.interp(context, self.contexts, np.arange(len(self.contexts)))
        return [(k, np.maximum(0.0, 1.0 - np.abs(x - k))) for k in range(len(self.contexts))]

    def span(self, context: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Fewest and most tokens measured at all of the contexts around each one."""
        low, high = np.zeros(context.shape), np.full(context.shape, np.inf)
        for k, weight in self._around(context):
            tokens = self.curves[k][0]
            low = np.where(weight > 0, np.maximum(low, tokens[0]), low)
            high = np.where(weight > 0, np.minimum(high, tokens[-1]), high)
        return low, high

    def seconds(self, tokens: FloatArray, context: FloatArray) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Seconds, and where tokens and positions lie outside what was measured; arrays of one shape."""
        value = self.attend * tokens * (context + (tokens - 1) / 2)
        for part, at in in_parts(tokens, context, lambda at: self.span(at)[1]):
            for k, weight in self._around(at):
                value = value + np.where(part > 0, weight * np.interp(part, *self.curves[k]), 0.0)
        out_positions = (context < self.contexts[0]) | (context + tokens > self.reach)
        return value, tokens < self.span(context)[0], out_positions

    def held_out(self) -> FloatArray:
        """Relative errors at inner token counts and at inner contexts, each from the points that are left without them."""
        errors = []
        for name in ("tokens", "context"):
            for value in sorted({getattr(p, name) for p in self.points})[1:-1]:
                kept = [p for p in self.points if getattr(p, name) != value]
                asked = [p for p in self.points if getattr(p, name) == value]
                t, c = (np.array([getattr(p, key) for p in asked], np.float64) for key in ("tokens", "context"))
                errors += (Prefill(kept).seconds(t, c)[0] / [p.seconds for p in asked] - 1.0).tolist()
        return np.array(errors)

    def __str__(self) -> str:
        text = f"prefill measured at {self.range}"
        errors = np.abs(self.held_out())
        if len(errors):
            text += f" (held-out error {100 * np.median(errors):.1f} % median, {100 * errors.max():.1f} % worst)"
        return text


class AssumedPrefill:
    """What stands in for prefills that weren't measured: passes of verification, with as many tokens as were measured."""

    points: tuple[PrefillPoint, ...] = ()
    range = None
    attend = 0.0
    span_of_tokens = span_of_positions = "range (none was: taken as passes of verification)"

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        self.batches = np.array(sorted({c.batch for c in surface.curves if c.batch is not None}) or [1], np.float64)

    def _reach(self, context: FloatArray) -> FloatArray:
        """Tokens measured at a context, by the batches' order: [batches, ...], never falling."""
        reach = [self.surface.measured_tokens(context, np.full(context.shape, b))[1] for b in self.batches]
        return np.maximum.accumulate(reach, axis=0)

    def seconds(self, tokens: FloatArray, context: FloatArray) -> tuple[FloatArray, BoolArray, BoolArray]:
        """As `Prefill.seconds`; everything lies outside of what was measured.

        Of fewest requests: steps of an engine are measured for as many tokens as its requests draft.
        """
        value = np.zeros(tokens.shape)
        for part, at in in_parts(tokens, context, lambda at: self._reach(at)[-1]):
            batch = self.batches[np.minimum((self._reach(at) < part).sum(axis=0), len(self.batches) - 1)]
            value = value + np.where(part > 0, self.surface.seconds(np.maximum(part, batch), at, batch)[0], 0.0)
        return value, np.ones(tokens.shape, bool), np.zeros(tokens.shape, bool)


def read_prefill(raw: Sequence[Any], where: str) -> list[PrefillPoint]:
    """The points of a document, all checks made."""
    points = [PrefillPoint.from_json(p, f"{where}[{i}]") for i, p in enumerate(raw)]
    places = [(p.tokens, p.context) for p in points]
    if len(set(places)) < len(places):
        raise DdsimError(f"{where}: a token count stands twice at one context")
    return points
