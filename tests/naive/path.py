"""Path corrections the obvious way: dictionaries and the equation of `ddsim.trace.path`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tests.naive.lattice import Lattice

Row = list[tuple[int, float]]


def earlier(answer: Sequence[int], token: int, after: int | None = None) -> int:
    """How often a token was followed by another, or by a given one, in the answer so far."""
    return sum(1 for a, b in pairwise(answer) if a == token and after in (None, b))


def features(
    rows: Sequence[Row], d: int, i: int, j: int, answer: Sequence[int], pairs: Mapping[tuple[int, int], float]
) -> list[float]:
    """What relates candidate j of row d (from 0) to candidate i of the row before, or to the root."""
    chances = [{token: math.exp(value) for token, value in row} for row in rows]
    a = rows[d - 1][i][0] if d > 0 else answer[-1]
    b, log_q = rows[d][j]
    off = float(d > 0 and i > 0)

    def shifted(before: int, after: int) -> float:
        if d == 0 or before < 0 or after >= len(rows) or a not in chances[before] or b not in chances[after]:
            return 0.0
        return math.log1p(chances[before][a] * chances[after][b] / (chances[d - 1][a] * chances[d][b] + 1e-6))

    seen, both, q = earlier(answer, a), earlier(answer, a, b), chances[d][b]
    echo = math.log((both + q + 1e-3) / ((seen + 1) * q + 1e-3)) if seen else 0.0
    ahead, behind = shifted(d, d + 1), shifted(d - 2, d - 1)
    return [off * log_q, pairs.get((a, b), 0.0), ahead, behind, float(a == b), echo, off * (j == 0)]


def lattice(
    rows: Sequence[Row],
    answer: Sequence[int],
    pairs: Mapping[tuple[int, int], float],
    weights: Sequence[float],
    powers: Sequence[float],
    rests: Sequence[float],
    width: int,
) -> Lattice:
    """The lattice of one position; rows are cut already."""

    def corrected(d: int, i: int) -> list[float]:
        row = rows[d]
        unlisted = max(1 - sum(math.exp(value) for _, value in row), 1e-4)
        rest = math.log(unlisted) + rests[d] + weights[7] * (d > 0 and i > 0)
        scores = [
            powers[d] * row[j][1]
            + sum(w * f for w, f in zip(weights, features(rows, d, i, j, answer, pairs), strict=False))
            for j in range(len(row))
        ]
        total = math.log(math.exp(rest) + sum(math.exp(s) for s in scores))
        return [s - total for s in scores] + [-math.inf] * (width - len(row))

    none = [-math.inf] * width
    steps = [
        [corrected(d, i) if i < len(rows[d - 1]) and rows[d] else none for i in range(width)]
        for d in range(1, len(rows))
    ]
    ids = [[token for token, _ in row] + [-1] * (width - len(row)) for row in rows]
    return Lattice(ids, corrected(0, 0) if rows[0] else none, steps)
