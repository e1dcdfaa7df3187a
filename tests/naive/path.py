"""Path corrections the obvious way: dictionaries and the equation of `ddsim.trace.path`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tests.naive.lattice import Lattice

Row = list[tuple[int, float]]


Tables = Mapping[tuple[int, int], tuple[float, float]]


def followed(answer: Sequence[int], before: Sequence[int], q: float, token: int) -> float:
    """By how much likelier a token is that followed these tokens in the answer so far; the log of it."""
    n = len(before)
    places = [i for i in range(n, len(answer)) if list(answer[i - n : i]) == list(before)]
    if not places:
        return 0.0
    return math.log((sum(answer[i] == token for i in places) + q + 1e-3) / ((len(places) + 1) * q + 1e-3))


def features(
    rows: Sequence[Row], d: int, i: int, j: int, answer: Sequence[int], pairs: Tables, classes: Sequence[int]
) -> list[float]:
    """What relates candidate j of row d (from 0) to candidate i of the row before, or to the root."""
    chances = [{token: math.exp(value) for token, value in row} for row in rows]
    a = rows[d - 1][i][0] if d > 0 else answer[-1]
    b, log_q = rows[d][j]
    off = float(d > 0 and i > 0)
    of_a, of_b = (-1 - (classes[token] if token < len(classes) else 0) for token in (a, b))

    def shifted(before: int, after: int) -> float:
        if d == 0 or before < 0 or after >= len(rows) or a not in chances[before] or b not in chances[after]:
            return 0.0
        return math.log1p(chances[before][a] * chances[after][b] / (chances[d - 1][a] * chances[d][b] + 1e-6))

    none = 0.0, 0.0
    both, mixed, alike = pairs.get((a, b), none), pairs.get((a, of_b), none), pairs.get((of_a, of_b), none)
    grand = [rows[d - 2][0][0]] if d >= 2 else list(answer[-2:-1] if d == 0 else answer[-1:])
    q = chances[d][b]
    return [
        off * log_q, both[0], off * both[1], mixed[0], off * mixed[1], off * alike[1],
        shifted(d, d + 1), shifted(d - 2, d - 1), float(a == b),
        followed(answer, [a], q, b), followed(answer, [*grand, a], q, b) if grand else 0.0,
        off * (j == 0), -rows[d - 1][i][1] * (j == 0) if d > 0 else 0.0,
    ]  # fmt: skip


def lattice(
    rows: Sequence[Row],
    answer: Sequence[int],
    pairs: Tables,
    classes: Sequence[int],
    weights: Sequence[float],
    powers: Sequence[float],
    rests: Sequence[float],
    width: int,
) -> Lattice:
    """The lattice of one position; rows are cut already."""

    def corrected(d: int, i: int) -> list[float]:
        row = rows[d]
        unlisted = max(1 - sum(math.exp(value) for _, value in row), 1e-4)
        rest = math.log(unlisted) + rests[d] + weights[13] * (d > 0 and i > 0)
        scores = []
        for j in range(len(row)):
            x = features(rows, d, i, j, answer, pairs, classes)
            scores.append(powers[d] * row[j][1] + sum(w * f for w, f in zip(weights[:13], x, strict=True)))
        total = math.log(math.exp(rest) + sum(math.exp(s) for s in scores))
        return [s - total for s in scores] + [-math.inf] * (width - len(row))

    none = [-math.inf] * width
    steps = [
        [corrected(d, i) if i < len(rows[d - 1]) and rows[d] else none for i in range(width)]
        for d in range(1, len(rows))
    ]
    ids = [[token for token, _ in row] + [-1] * (width - len(row)) for row in rows]
    return Lattice(ids, corrected(0, 0) if rows[0] else none, steps)
