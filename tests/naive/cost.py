"""Plain twins of the curve fits: slow, exact on small cases, obviously right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, product

import numpy as np
from numpy.typing import NDArray

from ddsim.cost.interpolation import Curve, RoundPoint

Floats = NDArray[np.float64]


def convex(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Non-negative least squares on the hinge basis by trying every set of columns that may be in use."""
    hinges = [x[0]] + [k for k in x[1:-1] if k <= x[-1] - (x[-1] - x[0]) / 10]
    basis = np.array([[1.0] + [max(0.0, a - k) for k in hinges] for a in x])
    rows = np.sqrt(weights)
    best, best_values = np.inf, np.zeros(len(x))
    for size in range(basis.shape[1] + 1):
        for used in combinations(range(basis.shape[1]), size):
            columns = basis[:, list(used)]
            solution = np.linalg.lstsq(columns * rows[:, None], y * rows, rcond=None)[0]
            if (solution < 0).any():
                continue
            values = columns @ solution
            error = float((weights * (values - y) ** 2).sum())
            if error < best:
                best, best_values = error, values
    return best_values


def isotonic(y: Floats, weights: Floats) -> Floats:
    """The max-min formula: value i is the largest over j ≤ i of the least over k ≥ i of the mean from j to k."""
    n = len(y)

    def mean(j: int, k: int) -> float:
        return float(np.average(y[j : k + 1], weights=weights[j : k + 1]))

    return np.array([max(min(mean(j, k) for k in range(i, n)) for j in range(i + 1)) for i in range(n)])


def buckets(tokens: Floats, seconds: Floats, errors: Floats) -> tuple[tuple[int, ...], float]:
    """The cheapest of all partitions into runs, and its price."""
    m, curves = seconds.shape
    there = np.isfinite(seconds)
    price = np.log(max(2, there.sum())) * (curves + 1)
    best: tuple[float, tuple[int, ...]] = (np.inf, ())
    for cuts in product([False, True], repeat=m - 1):
        ends = [i for i, cut in enumerate(cuts) if cut] + [m - 1]
        total, first = 0.0, 0
        for end in ends:
            total += price
            for c in range(curves):
                use = np.flatnonzero(there[first : end + 1, c]) + first
                if len(use):
                    logs, w = np.log(seconds[use, c]), errors[use, c] ** -2.0
                    total += float((w * (logs - np.average(logs, weights=w)) ** 2).sum())
            first = end + 1
        best = min(best, (total, tuple(int(tokens[e]) for e in ends)))
    return best[1], best[0]


def bucket_price(tokens: Floats, seconds: Floats, errors: Floats, ends: Sequence[int]) -> float:
    """What a given partition costs."""
    there = np.isfinite(seconds)
    total = 0.0
    of = np.searchsorted(np.array(ends), tokens, side="left")
    for k in range(len(ends)):
        total += float(np.log(max(2, there.sum())) * (seconds.shape[1] + 1))
        for c in range(seconds.shape[1]):
            use = np.flatnonzero((of == k) & there[:, c])
            if len(use):
                logs, w = np.log(seconds[use, c]), errors[use, c] ** -2.0
                total += float((w * (logs - np.average(logs, weights=w)) ** 2).sum())
    return total


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between points, flat outside."""
    if x <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in pairwise(points):
        if x <= b:
            return low + (high - low) * (x - a) / (b - a)
    return points[-1][1]


def _curve(curve: Curve, tokens: float, kind: str) -> float:
    x, y = curve.tokens, curve.seconds
    if tokens > x[-1]:
        if len(x) == 1:
            return y[-1]
        back = len(x) - 2 if kind == "convex" else max([i for i in range(len(x)) if x[i] <= x[-1] / 2], default=0)
        return y[-1] + max(0.0, (y[-1] - y[back]) / (x[-1] - x[back])) * (tokens - x[-1])
    if kind == "steps":
        return next(s for t, s in zip(x, y, strict=True) if tokens <= t)
    return _line(list(zip(x, y, strict=True)), tokens)


def surface(curves: Sequence[Curve], kind: str, tokens: float, context: float, batch: float) -> float:
    """Seconds by curves at (context, batch): linear between contexts, then between batches, with what lies past them.

    A curve of batch b at context c was measured while b * c context tokens were read, so b requests with one token more each cost
    the slope between contexts, and one context token costs a b-th of it. Whatever is asked for reads some number of context
    tokens; those that no curve covers are paid at that price.
    """
    by_batch: dict[int, dict[int, Curve]] = {}
    for c in curves:
        by_batch.setdefault(c.batch or 1, {})[c.context or 0] = c
    values = []
    last_batch = max(by_batch)
    for b, of in sorted(by_batch.items()):
        contexts = sorted(of)
        value = _line([(c, _curve(of[c], tokens, kind)) for c in contexts], context)
        if len(contexts) > 1:
            low, high = of[contexts[-2]], of[contexts[-1]]
            shared = [t for t in high.tokens if low.low <= t <= low.high] or [high.low]
            rise = [(_curve(high, t, kind) - _curve(low, t, kind)) / (contexts[-1] - contexts[-2]) for t in shared]
            read = max(0.0, float(np.median(rise[: -(-len(rise) // 4)])))
            attend = sum(t * (r - read) for t, r in zip(shared, rise, strict=True)) / sum(t * t for t in shared)
            read_one = read / b
            requests = batch if b == last_batch and batch > b else b
            value += read_one * (requests * context - b * min(context, contexts[-1]))
            value += max(0.0, attend) * max(0.0, context - contexts[-1]) * tokens
        values.append((float(b), value))
    return _line(values, batch)


def round_times(points: Sequence[RoundPoint], context: float, batch: float) -> float:
    """Seconds of drafting: linear between contexts and past the last, then the same between batches.

    With one batch only, further requests cost what reading their contexts does: all of them one token more costs the slope.
    """
    by_batch: dict[int, dict[int, float]] = {}
    for p in points:
        by_batch.setdefault(p.batch or 1, {})[p.context or 0] = p.seconds
    at, rates = [], []
    for b, of in sorted(by_batch.items()):
        known = sorted(of.items())
        value, rate = _line([(float(c), s) for c, s in known], context), 0.0
        if len(known) > 1:
            (c0, s0), (c1, s1) = known[-2:]
            rate = max(0.0, (s1 - s0) / (c1 - c0))
            value += rate * max(0.0, context - c1)
        at.append((float(b), value))
        rates.append(rate)
    last, seconds = at[-1]
    if batch <= last:
        return _line(at, batch)
    if len(at) == 1:
        return seconds + (batch - last) * context * rates[0] / last
    before, earlier = at[-2]
    return seconds + (batch - last) * max(0.0, seconds - earlier) / (last - before)


def prefill(measured: dict[tuple[int, int], float], tokens: int, context: int) -> tuple[float, bool]:
    """Seconds of a prompt by places (tokens, context) that were measured, and whether it lies outside of them; a part at a time."""
    contexts = sorted({c for _, c in measured})
    top = bottom = 0.0
    for t in {t for t, _ in measured}:
        at = [c for c in contexts if (t, c) in measured]
        for c in at[1:]:
            x = t * (c - at[0])
            top += x * (measured[t, c] - measured[t, at[0]])
            bottom += x * x
    attend = max(0.0, top / bottom) if bottom else 0.0
    for (t, c), seconds in measured.items():
        if pairs := sum(c + i for i in range(t)):
            attend = min(attend, seconds / pairs)

    def rest(t: float, c: int) -> float:
        """What a measured context's prefills take beside attention, on the line between its token counts."""
        counts = sorted(n for n, k in measured if k == c)
        values = [measured[n, c] - attend * sum(c + i for i in range(n)) for n in counts]
        if t <= counts[0]:
            return values[0]
        for (a, y), (b, z) in pairwise(zip(counts, values, strict=True)):
            if t <= b:
                return y + (z - y) * (t - a) / (b - a)
        return values[-1]

    total, first = attend * sum(context + i for i in range(tokens)), True
    outside = context < contexts[0] or context + tokens > max(n + k for n, k in measured)
    while tokens:
        inside = min(max(context, contexts[0]), contexts[-1])
        below, above = max(c for c in contexts if c <= inside), min(c for c in contexts if c >= inside)
        part = min(tokens, *(max(n for n, k in measured if k == c) for c in (below, above)))
        share = 0.0 if above == below else (inside - below) / (above - below)
        total += (1 - share) * rest(part, below) + share * rest(part, above)
        fewest = max(min(n for n, k in measured if k == c) for c in (below, above))
        outside |= first and tokens < fewest
        tokens, context, first = tokens - part, context + part, False
    return total, outside


def padding_loss(
    tokens: Sequence[int], seconds: Sequence[Sequence[float]], ends: Sequence[int], beside: float, weights: Sequence[float],
    worst: bool,
) -> float:  # fmt: skip
    """What buckets lose, a size and a context at a time; a size costs no more than a larger one."""
    losses, total = [], 0.0
    for i, size in enumerate(tokens):
        bucket = tokens.index(min(e for e in ends if e >= size))
        for c in range(len(seconds[0])):
            own, padded = (min(row[c] for row in seconds[k:]) for k in (i, bucket))
            loss = (padded - own) / (own + beside)
            losses.append(loss)
            total += weights[i] * loss / sum(weights) / len(seconds[0])
    return max(losses) if worst else total


def least_padding(
    tokens: Sequence[int], seconds: Sequence[Sequence[float]], count: int, beside: float, weights: Sequence[float], worst: bool
) -> tuple[float, int]:  # fmt: skip
    """The least loss of all sets of at most ``count`` buckets, and how few buckets reach it."""
    found = [
        (padding_loss(tokens, seconds, (*some, tokens[-1]), beside, weights, worst), size + 1)
        for size in range(min(count, len(tokens)))
        for some in combinations(tokens[:-1], size)
    ]
    least = min(loss for loss, _ in found)
    return least, min(size for loss, size in found if loss <= least + 1e-12)
