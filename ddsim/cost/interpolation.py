"""Verification seconds over tokens, context and batch: curves on a grid of contexts and batches, or one formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.cost.kinds import shape_of
from ddsim.cost.profile import LIMITS, MOST_SECONDS, MOST_TOKENS, bounded
from ddsim.cost.shapes import Roofline
from ddsim.errors import DdsimError
from ddsim.files.documents import array, integer, mapping, need, number

FloatArray = NDArray[np.float64]


IntArray = NDArray[np.int64]


BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """Seconds over token counts at one (context, batch), measured from ``low`` to ``high`` tokens; None: at any."""

    context: int | None
    batch: int | None
    low: float
    high: float
    tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, raw: Any, where: str, formula: bool) -> Curve:
        """A curve in a document, checked; with a formula it has no points of its own."""
        entry = mapping(raw, where, ("context", "batch", "low", "high", "tokens", "seconds"))
        low, high = (number(need(entry, k, where), f"{where}.{k}", positive=True) for k in ("low", "high"))
        tokens, seconds = (
            [number(v, f"{where}.{k}[{i}]", positive=True) for i, v in enumerate(array(need(entry, k, where), where))]
            for k in ("tokens", "seconds")
        )
        if len(tokens) != len(seconds) or (not tokens and not formula):
            raise DdsimError(
                f"{where}: needs as many seconds as tokens and at least one, has {len(seconds)} and {len(tokens)}"
            )
        bounded(max([high, *tokens]), MOST_TOKENS, f"{where}.tokens", LIMITS["tokens"][1])
        bounded(max([0.0, *seconds]), MOST_SECONDS, f"{where}.seconds", "pass takes, in seconds")
        if any(b <= a for a, b in pairwise(tokens)) or high < low:
            raise DdsimError(f"{where}: tokens must ascend, and low be at most high")
        return cls(
            _optional(entry, "context", where, 0),
            _optional(entry, "batch", where, 1),
            low,
            high,
            tuple(tokens),
            tuple(seconds),
        )


@dataclass(frozen=True)
class RoundPoint:
    """Median seconds of a drafter pass (or of host work, whose context is None) at one context and batch; None: at any."""

    context: int | None
    batch: int | None
    seconds: float

    @classmethod
    def from_json(cls, raw: Any, where: str) -> RoundPoint:
        """A point in a document, checked."""
        entry = mapping(raw, where, ("context", "batch", "seconds"))
        seconds = number(need(entry, "seconds", where), f"{where}.seconds", positive=False)
        return cls(_optional(entry, "context", where, 0), _optional(entry, "batch", where, 1), seconds)


def _optional(entry: dict[str, Any], key: str, where: str, minimum: int) -> int | None:
    value = need(entry, key, where)
    return None if value is None else integer(value, f"{where}.{key}", minimum)


def check_grid(points: Sequence[Curve | RoundPoint], where: str) -> None:
    """Refuse points of which some name a context or batch and others don't, and two at one place."""
    for axis in ("context", "batch"):
        if len({getattr(point, axis) is None for point in points}) > 1:
            raise DdsimError(f"{where}: some name a {axis} and others don't")
    places = [(point.context, point.batch) for point in points]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise DdsimError(f"{where}[{i}]: context {place[0]} and batch {place[1]} stand twice")


class Grid:
    """Bilinear interpolation weights over (batch, context) nodes; every batch has contexts of its own.

    Below the first context or batch the value stays. Past the last ones the caller adds what the context tokens cost that no
    node covers: those past the last context, and those of the requests past the last batch. Both are counted as contexts grow in
    a node, where one token more is one for each of its requests.
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
    ) -> tuple[list[tuple[int, FloatArray]], list[tuple[int, FloatArray, FloatArray]], BoolArray, BoolArray]:
        """Weights, context tokens that aren't covered, and where context and batch lie outside the nodes.

        Weights are (node, weight) pairs; then (batch index, tokens past its last context, tokens of requests past the last batch,
        spread over the requests of that batch).
        """
        if self.any_batch:
            batch = np.full_like(batch, self.batches[0])
        low, high, f = _bracket(self.batches, batch)
        out_batch = (batch < self.batches[0]) | (batch > self.batches[-1])
        out_context = np.zeros(context.shape, bool)
        pairs, beyond = [], []
        for k, (index, contexts) in enumerate(self.nodes):
            wk = np.where(low == k, 1.0 - f, 0.0) + np.where((high == k) & (high != low), f, 0.0)
            if not wk.any():
                continue
            if self.any_context:
                pairs.append((int(index[0]), wk))
                continue
            i, j, g = _bracket(contexts, context)
            out_context |= (wk > 0) & ((context < contexts[0]) | (context > contexts[-1]))
            for node in range(len(contexts)):
                w = wk * (np.where(i == node, 1.0 - g, 0.0) + np.where((j == node) & (j != i), g, 0.0))
                if w.any():
                    pairs.append((int(index[node]), w))
            past = wk * np.maximum(0.0, context - contexts[-1])
            more = wk * context * np.maximum(0.0, batch / self.batches[-1] - 1.0)
            if past.any() or more.any():
                beyond.append((k, past, more))
        return pairs, beyond, out_context, out_batch


def _bracket(nodes: FloatArray, x: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Indices of the nodes around each x and how far it lies from the first to the second; clamped to the ends."""
    low = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 1)
    high = np.minimum(low + 1, len(nodes) - 1)
    gap = np.where(high > low, nodes[high] - nodes[low], 1.0)
    return low, high, np.where(high > low, np.clip((x - nodes[low]) / gap, 0.0, 1.0), 0.0)


class RoundTimes:
    """Seconds of a drafter pass, or of a round's host work, over (context, batch).

    Medians, linear between contexts and batches and past the last ones: a drafter drafts for every request, so its time goes on
    growing as it did from the batch before to the last. With one batch only, each further request adds what its context costs.
    """

    def __init__(self, name: str, points: Sequence[RoundPoint]) -> None:
        self.name, self.points = name, tuple(points)
        self.grid = Grid([(p.context, p.batch) for p in points])
        self.slopes = []  # per batch: seconds that one more context token for each of its requests costs
        for index, contexts in self.grid.nodes:
            rise = self.points[index[-1]].seconds - self.points[index[-2]].seconds if len(index) > 1 else 0.0
            self.slopes.append(max(0.0, rise / (contexts[-1] - contexts[-2])) if len(index) > 1 else 0.0)

    def seconds(self, context: FloatArray, batch: FloatArray) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Seconds, and where context and batch lie outside what was measured; arrays of one shape."""
        batches = self.grid.batches
        several = len(batches) > 1
        pairs, beyond, out_context, out_batch = self.grid.weights(
            context, np.minimum(batch, batches[-1]) if several else batch
        )
        value = np.zeros(context.shape)
        for node, w in pairs:
            value += w * self.points[node].seconds
        for k, past, more in beyond:
            value += self.slopes[k] * (past + more)
        if several and (more_requests := np.maximum(0.0, batch - batches[-1])).any():
            out_batch = out_batch | (more_requests > 0)
            last, before = (self.seconds(context, np.full_like(batch, b))[0] for b in batches[[-1, -2]])
            value += more_requests * np.maximum(0.0, last - before) / (batches[-1] - batches[-2])
        return value, out_context, out_batch


class Surface:
    """Verification seconds over (tokens, context, batch): curves on a grid, or a roofline that knows where it was fitted."""

    def __init__(self, kind: str, curves: Sequence[Curve], roofline: Roofline | None) -> None:
        self.shape, self.curves, self.roofline = shape_of(kind), tuple(curves), roofline
        self.grid = Grid([(c.context, c.batch) for c in curves])
        self.slopes = [self._context_slope(index) for index, _ in self.grid.nodes] if roofline is None else []

    def _at(self, curve: Curve, tokens: FloatArray) -> FloatArray:
        return self.shape.at(curve.tokens, curve.seconds, tokens)

    def _context_slope(self, index: IntArray) -> tuple[float, float]:
        """What contexts longer by a token cost past the last one: seconds to read them, and seconds per verified token.

        From the last two curves: their median difference at small token counts, then the slope of what is left. Neither is below
        0, so that a convex or monotone model stays so where it is extrapolated.
        """
        if len(index) < 2:
            return 0.0, 0.0
        a, b = self.curves[index[-2]], self.curves[index[-1]]
        assert a.context is not None and b.context is not None
        x = np.array([t for t in b.tokens if a.low <= t <= a.high] or [b.low])
        rise = (self._at(b, x) - self._at(a, x)) / (b.context - a.context)
        read = max(0.0, float(np.median(rise[: -(-len(x) // 4)])))
        return read, max(0.0, float((x * (rise - read)).sum() / (x * x).sum()))

    def measured_tokens(self, context: FloatArray, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """First and last token count that the curves used at (context, batch) were measured at; arrays of one shape."""
        return self._span(self.grid.weights(context, batch)[0], context.shape)

    def _span(self, pairs: Sequence[tuple[int, FloatArray]], shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
        low, high = np.full(shape, np.inf), np.full(shape, np.inf)
        for node, w in pairs:
            used = w > 0
            low[used] = np.minimum(low[used], self.curves[node].low)
            high[used] = np.minimum(high[used], self.curves[node].high)
        return low, high

    def seconds(
        self, tokens: FloatArray, context: FloatArray, batch: FloatArray
    ) -> tuple[FloatArray, BoolArray, BoolArray, BoolArray]:
        """Seconds, and where tokens, context and batch lie outside what was measured; arrays of one shape."""
        pairs, beyond, out_context, out_batch = self.grid.weights(context, batch)
        low, high = self._span(pairs, tokens.shape)
        value = np.zeros(tokens.shape)
        if self.roofline is None:
            for node, w in pairs:
                used = w > 0
                value[used] += w[used] * self._at(self.curves[node], tokens[used])
            for k, past, more in beyond:
                read, attend = self.slopes[k]
                # The curve reads the context of each of its requests, so its slope is that of a token in all of them; a
                # request attends to its own context only, however many there are.
                value += read * (past + more) + attend * past * tokens
        else:
            value = self.roofline.seconds(tokens, context, batch)
        return value, (tokens < low) | (tokens > high), out_context, out_batch
