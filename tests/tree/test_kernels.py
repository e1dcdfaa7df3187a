"""Ways through the tree kernels that ordinary marginals seldom take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from ddsim.tree import kernels as _kernels
from tests.naive import tree as naive
from tests.strategies import CASES, Rows, run, some_rows
from tests.tree.test_tree import compress


def loaded(rows: Rows, most: int, reach: float = math.inf) -> tuple[Any, int]:
    """Working memory with rows in it, and depths in use."""
    scratch = _kernels.make_scratch(len(rows), most)
    logprobs, offsets = compress([rows])
    depth = _kernels.load_rows(logprobs, offsets, 0, len(rows), most, reach, scratch.rows, scratch.starts)
    return scratch, depth


def listed_node(scratch: Any, i: int) -> tuple[int, ...]:
    """Rank tuple of a listed node."""
    ranks = []
    while i > 0:
        ranks.append(int(scratch.codes[i]) & 0xFFFFFFFF)
        i = int(scratch.codes[i]) >> 32
    return tuple(reversed(ranks))


def ordered(scratch: Any, n: int) -> list[tuple[float, tuple[int, ...]]]:
    return [(float(scratch.sorted_values[i]), listed_node(scratch, int(scratch.order[i]))) for i in range(n)]


@CASES
def test_heap_alone(cases: int) -> None:
    def check(rows: Rows, most: int) -> None:
        scratch, depth = loaded(rows, most)
        listed, n = _kernels.heap_nodes(scratch, depth, most)
        assert ordered(scratch, n) == naive.best_first(rows, most)
        assert listed <= 2 * most + 2

    run(cases, check, some_rows(5, range(1, 13)), st.integers(0, 60))


@CASES
def test_list_and_order_alone(cases: int) -> None:
    def check(rows: Rows, most: int, cut: float) -> None:
        scratch, depth = loaded(rows, most)
        threshold = -math.inf if cut > 8 else -cut
        n = _kernels.list_nodes(scratch, depth, threshold)
        reachable = [row[:most] for row in rows]  # candidates behind ``most`` siblings are not loaded
        wanted = [item for item in naive.sorted_nodes(reachable, 10**6) if item[0] > threshold]
        if n == 0:
            assert len(wanted) + 1 > len(scratch.order)
            return
        few = min(n - 1, most)
        _kernels.order_nodes(scratch, n, scratch.values[1], threshold, few, _kernels.NO_STEPS)
        assert ordered(scratch, few) == wanted[:few]

    run(cases, check, some_rows(3, range(1, 10)), st.integers(1, 60), st.floats(0, 10))


def test_what_does_not_fit_goes_to_the_heap() -> None:
    rows = [[-math.log(40)] * 40] * 3  # 64,000 equal nodes at depth 3, 1,600 at depth 2
    for most in (30, 39, 40, 41, 200, 700):
        scratch, depth = loaded(rows, most)
        assert _kernels.list_nodes(scratch, depth, -math.inf) == 0
        logprobs, offsets = compress([rows])
        n = _kernels.first_nodes(logprobs, offsets, 0, 3, most, scratch)[1]
        assert n == most
        assert ordered(scratch, n) == naive.best_first(rows, most)


def test_aim_too_high_is_lowered() -> None:
    # Deviations of 10.24 bins count as 10, so sums of two as 20: the histogram takes 361 nodes for better than they are.
    most = 200
    reach = math.log(most + 1) + _kernels.REACH
    rows = [[-0.001] + [-0.001 - 10.24 * reach / _kernels.BINS] * 19] * 2
    scratch, depth = loaded(rows, most, reach)
    counts = _kernels.histogram_nodes(scratch.rows, scratch.starts, depth, reach, scratch.counts)
    aims = [_kernels.threshold_for(counts, reach, aim * most + 8) for aim in _kernels.AIMS]
    assert all(0 < _kernels.list_nodes(scratch, depth, aim) <= most for aim in aims[:2])  # too few
    logprobs, offsets = compress([rows])
    n = _kernels.first_nodes(logprobs, offsets, 0, 2, most, scratch)[1]
    assert ordered(scratch, n) == naive.best_first(rows, most)


@pytest.mark.parametrize("far", [5.0, 20.0, 60.0, 500.0, 5000.0])
def test_reach_grows_as_far_as_needed(far: float) -> None:
    rows = [[-0.01] + [-far - 0.01 * i for i in range(20)]] * 3
    for most in (3, 4, 30, 500, 5000):
        scratch, _ = loaded(rows, most)
        logprobs, offsets = compress([rows])
        n = _kernels.first_nodes(logprobs, offsets, 0, 3, most, scratch)[1]
        assert ordered(scratch, n) == naive.best_first(rows, most)


def test_crowded_buckets_are_merge_sorted() -> None:
    # One far node stretches the range, so all others share a bucket, and they are far from their order.
    rows = [[-1.0 - 0.001 * i for i in range(40)] + [-50.0], [-0.5 - 0.0009 * i for i in range(40)]]
    scratch, depth = loaded(rows, 1000)
    n = _kernels.list_nodes(scratch, depth, -math.inf)
    _kernels.order_nodes(scratch, n, scratch.values[1], -math.inf, n, _kernels.NO_STEPS)
    assert n == 1 + 41 + 41 * 40
    # Merge sort left its traces: a copy of the order but for the last, widest merge.
    assert sorted(scratch.bucket_of[: n - 1]) == list(range(1, n))
    assert ordered(scratch, n - 1) == naive.sorted_nodes(rows, n)


@CASES
def test_exponential(cases: int) -> None:
    def check(x: float) -> None:
        close = math.exp(x)
        got = _kernels.exp_nonpositive(x)
        if x > -50:
            assert got == pytest.approx(close, rel=1e-12)
        elif x > -104:
            assert got == pytest.approx(close, rel=1e-9)
        assert abs(np.float32(got) - np.float32(close)) <= np.spacing(np.float32(close))

    run(cases, check, st.one_of(st.floats(-104, 0), st.floats(-2, 0), st.floats(max_value=0)))
    assert _kernels.exp_nonpositive(0.0) == 1.0
    assert np.float32(_kernels.exp_nonpositive(-math.inf)) == 0.0
