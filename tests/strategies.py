"""What kernels are tried on: Hypothesis strategies for rows of marginals, gains, costs, rounds, traces and policies.

Every number is drawn by Hypothesis, none from a generator with a drawn seed: so a failure shrinks to its smallest case. ``run`` tries a
property on the number of cases that ``CASES`` gives, few in the fast suite and 10^5 in the slow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ddsim.cost import table as _table
from ddsim.policy.contract import Policy
from ddsim.policy.parse import parse_policy
from ddsim.trace import rounds as _rounds
from ddsim.trace.calibration import Calibration
from ddsim.trace.path import PathCorrection
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace
from ddsim.tree import kernels as _kernels
from tests.naive import lattice as naive_lattice

CASES = pytest.mark.parametrize("cases", [100, pytest.param(100_000, marks=pytest.mark.slow)])
Rows = list[list[float]]
Draw = Callable[[st.SearchStrategy[Any]], Any]


def run(cases: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Check a property on so many cases."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    options = settings(
        max_examples=cases, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    options(given(*strategies)(check))()


@cache  # a strategy is checked when it is first drawn from
def ints(low: int, high: int, *shape: int) -> st.SearchStrategy[Any]:
    """int64 arrays of numbers from ``low`` to ``high``, at most 256 values; drawn as bytes, which is quick and shrinks to ``low``."""
    count = math.prod(shape)
    return st.binary(min_size=count, max_size=count).map(
        lambda drawn: low + np.frombuffer(drawn, np.uint8).astype(np.int64).reshape(shape) % (high - low + 1)
    )


# --- rows of marginals ----------------------------------------------------------------------------------------------

KINDS = ("smooth", "grid", "equal", "sure", "cut", "lumps", "far", "flat", "empty")
"""Rows that are hard in their own ways."""


def _row(kind: str, width: int) -> st.SearchStrategy[list[float]]:
    def some(values: st.SearchStrategy[float], least: int = 1, most: int = width) -> st.SearchStrategy[list[float]]:
        return st.lists(values, min_size=least, max_size=most)

    if kind == "smooth":
        found = some(st.floats(0, 1).map(lambda u: -4.0 * u * u))
    elif kind in ("grid", "equal"):  # many equal paths
        found = some(st.integers(0, 3).map(lambda n: -0.5 * n))
    elif kind == "sure":  # a node and its child are equal
        found = st.tuples(some(st.just(0.0), 1, 2), some(st.integers(1, 4).map(lambda n: -float(n)), 0, 2)).map(
            lambda pair: pair[0] + pair[1]
        )
    elif kind == "cut":
        found = some(st.sampled_from((-0.7, -1.3, -2.9, -math.inf)))
    elif kind == "lumps":  # all but the best far below, around the reach of the first histogram
        best, rest = st.floats(-0.001, 0), some(st.floats(-12.0, -11.6), 0, max(width - 1, 0))
        found = st.tuples(best, rest).map(lambda pair: [pair[0], *pair[1]])
    elif kind == "far":
        scales = st.sampled_from((1e-9, 3.0, 40.0, 150.0, 900.0, 4000.0))
        found = some(st.tuples(scales, st.floats(0, 1)).map(lambda pair: -pair[0] * pair[1]))
    elif kind == "flat":  # more equal nodes than any room
        found = st.just([-math.log(width)] * width)
    else:
        found = some(st.floats(-1, 0), 0)
    return found.map(lambda values: sorted(values, reverse=True))


@cache
def rows(kind: str, horizon: int, width: int) -> st.SearchStrategy[Rows]:
    """``horizon`` rows of a kind, log-probabilities in descending order, at most ``width`` candidates each."""
    if kind == "equal":
        return _row(kind, width).map(lambda row: [list(row) for _ in range(horizon)])
    return st.lists(_row(kind, width), min_size=horizon, max_size=horizon)


@st.composite
def some_rows(
    draw: Draw, deepest: int = 5, widths: Sequence[int] = (1, 2, 3, 5, 9, 30), kinds: Sequence[str] = KINDS
) -> Rows:
    """Rows of any kind and horizon."""
    kind, horizon = draw(st.sampled_from(kinds)), draw(st.integers(1, deepest))
    return draw(rows(kind, horizon, draw(st.sampled_from(widths))))


@st.composite
def several_rows(draw: Draw, most: int = 3, deepest: int = 5, widths: Sequence[int] = (1, 2, 4, 20)) -> list[Rows]:
    """Rows of one kind and one horizon at several positions."""
    kind, horizon, width = draw(st.sampled_from(KINDS)), draw(st.integers(1, deepest)), draw(st.sampled_from(widths))
    return draw(st.lists(rows(kind, horizon, width), min_size=1, max_size=most))


@st.composite
def lattices(
    draw: Draw, deepest: int = 4, widths: Sequence[int] = (1, 2, 3, 4), kinds: Sequence[str] = KINDS
) -> naive_lattice.Lattice:
    """Lattices whose rows are of a kind, in any order; absent candidates are -inf."""
    kind, horizon, width = draw(st.sampled_from(kinds)), draw(st.integers(1, deepest)), draw(st.sampled_from(widths))
    count = 1 + (horizon - 1) * width
    values = draw(rows(kind, count, width))
    places = np.argsort(draw(ints(0, 255, count, width)), axis=1, kind="stable").tolist()
    table = [[(row + [-math.inf] * width)[i] for i in place] for row, place in zip(values, places, strict=True)]
    ids = np.argsort(draw(ints(0, 255, horizon, width + 1)), axis=1, kind="stable")[:, :width].tolist()
    steps = [table[1 + d * width : 1 + (d + 1) * width] for d in range(horizon - 1)]
    return naive_lattice.Lattice(ids, table[0], steps)


# --- gains and costs ------------------------------------------------------------------------------------------------
# Numbers are multiples of 1/64, so that sums are exact and ties are ties.


@cache
@st.composite
def gains(draw: Draw, count: int, width: int) -> Any:
    """[count, width] float32, descending, 0 from some node on."""
    found = -np.sort(-draw(ints(0, 64, count, width)), axis=1) / 64
    if draw(st.booleans()):
        ends = draw(ints(0, width, count, 1))
        found = np.where(np.arange(width) < ends, found, 0)
    return found.astype(np.float32)


SHAPES = ("convex", "steps", "wild")


@cache
@st.composite
def curves(draw: Draw, width: int, shapes: tuple[str, ...] = SHAPES) -> Any:
    """float64 [width] seconds: convex, with steps, or anything; at times a tail that costs infinity."""
    shape = draw(st.sampled_from(shapes))
    if shape == "convex":
        curve = 32 + np.cumsum(np.sort(draw(ints(0, 39, width))))
    elif shape == "steps":
        curve = 32 + np.cumsum(np.maximum(draw(ints(-160, 89, width)), 0))
    else:
        curve = draw(ints(1, 199, width))
    curve = curve / 64.0
    if shape != "convex" and draw(st.integers(0, 9)) == 9:
        curve[draw(st.integers(1, width)) :] = np.inf
    return curve


@cache
@st.composite
def tables(draw: Draw, positions: int, width: int, shapes: tuple[str, ...] = SHAPES) -> Any:
    """Costs of one or two contexts, and which of them each position has."""
    count = draw(st.integers(1, 2))
    seconds = np.stack([draw(curves(width, shapes)) for _ in range(count)])
    alone = draw(ints(1, 99, count)) / 64.0
    return _table.CostTable(seconds, alone, draw(ints(0, count - 1, positions)).astype(np.int32))


prices: st.SearchStrategy[float] = st.just(0.0) | st.integers(0, 199).map(lambda n: n / 64)


@cache
@st.composite
def calibrations(draw: Draw) -> Calibration | None:
    """None, or an isotonic map."""
    if draw(st.booleans()):
        return None
    logs = np.log(np.array(sorted(draw(st.sets(st.integers(1, 64), min_size=1, max_size=4)))) / 64)
    chance = np.sort(draw(ints(0, 64, len(logs)))) / 64
    return Calibration("isotonic", logs, chance * 0.9 + 0.05, np.ones(0), {})


# --- rounds and traces ----------------------------------------------------------------------------------------------


def rounds(gains: Any, ranks: Any, lengths: Sequence[int], chain: Any = None, expected: Any = None) -> Positions:
    """A table of rounds from gains and true-path ranks; ranks beyond the gains, or behind a text's end, become NO_RANK."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count, width, horizon = int(starts[-1]), gains.shape[1], ranks.shape[1]
    left = np.minimum(np.repeat(starts[1:], lengths) - 1 - np.arange(count), horizon)
    ranks = np.where((ranks > width) | (np.arange(horizon) >= left[:, None]), _kernels.NO_RANK, ranks)
    chain = np.zeros(count, np.int64) if chain is None else chain % (left + 1)
    return Positions(
        gains,
        ranks.astype(np.int32),
        _rounds.node_counts(gains),
        chain.astype(np.uint8),
        np.zeros((count, horizon), np.float32) if expected is None else expected.astype(np.float32),
        np.zeros(count, np.int32),
        starts,
        tuple(map(str, range(len(lengths)))),
        ("w",) * len(lengths),
        np.zeros(len(lengths), np.float32),
    )


@st.composite
def positions(draw: Draw, lengths: Sequence[int], horizon: int, width: int) -> Positions:
    """A table of rounds whose ranks and chains are made up, not those of trees."""
    count = sum(lengths)
    order = np.argsort(draw(ints(0, 255, count, width + horizon)), axis=1, kind="stable")
    ranks = 1 + np.sort(order[:, :horizon], axis=1)  # some of 1 to width + horizon, rising
    chain, expected = draw(ints(0, 255, count)), draw(ints(0, 64, count, horizon)).cumsum(axis=1) / 64
    return rounds(draw(gains(count, width)), ranks, lengths, chain, expected)


@cache
@st.composite
def cases(draw: Draw, longest: int = 7) -> tuple[Positions, Any]:
    """A table of rounds of a few short texts, and what rounds cost there."""
    horizon, width = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    found = draw(positions(lengths, horizon, width))
    return found, draw(tables(len(found), max(width, horizon) + 1))


@st.composite
def traces(draw: Draw, horizon: int = 3, vocabulary: int = 9, max_budget: int = 8, longest: int = 5) -> Trace:
    """A few short texts in memory, with rows of marginals that sum to at most 1."""
    tokens, ids, logprobs = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        length, width = draw(st.integers(1, longest)), draw(st.integers(1, min(vocabulary, max_budget)))
        tokens.append(draw(ints(0, vocabulary - 1, length)))
        ids.append(np.argsort(draw(ints(0, 255, length, horizon, vocabulary)), kind="stable")[..., :width])
        weights = -np.sort(-draw(ints(1, 64, length, horizon, width)), axis=-1)
        logprobs.append(np.log(weights / (weights.sum(-1, keepdims=True) + 1)))
    return Trace.from_arrays(tokens, ids, logprobs, max_budget=max_budget, vocab_size=vocabulary)


@st.composite
def path_corrections(draw: Draw, horizon: int = 3, vocabulary: int = 9, max_budget: int = 8) -> PathCorrection:
    """Corrections of any sign, with some pairs of tokens."""
    numbers = draw(ints(-64, 64, 14 + 2 * horizon)) / 32
    classes = draw(ints(0, 2, draw(st.integers(0, vocabulary)))).astype(np.int32)  # of the first few tokens
    highest = st.integers(-1 - int(classes.max(initial=0)), vocabulary - 1)
    pairs = sorted(draw(st.sets(st.tuples(highest, highest), max_size=16)))
    before, after = np.array(pairs, np.int32).reshape(-1, 2).T.copy()
    hundredths = draw(ints(-99, 99, len(pairs), 2)).astype(np.int32)
    powers, rests = numbers[14 : 14 + horizon], numbers[14 + horizon :]
    return PathCorrection(numbers[:14], powers, rests, classes, before, after, hundredths, max_budget)


policies: st.SearchStrategy[Policy] = st.one_of(
    st.sampled_from(("AR", "DFlash", "CaDDTree", "RoundRatio", "LongRun", "BestFixed", "Hindsight", "GreedySteps")),
    st.integers(0, 8).map(lambda n: f"DDTree:{n}"),
).map(parse_policy)
