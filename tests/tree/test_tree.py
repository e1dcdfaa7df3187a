"""Trees against the naive twins, through the public functions."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import strategies as st

from ddsim.errors import DdsimError
from ddsim.tree import checked as _checked
from ddsim.tree import forests as _forests
from ddsim.tree import kernels as _kernels
from ddsim.tree import masks as _masks
from ddsim.tree import rows as _rows
from ddsim.tree import trees as _trees
from tests import strategies
from tests.naive import tree as naive
from tests.strategies import CASES, Rows, ints, run, several_rows, some_rows

budgets = st.one_of(st.integers(0, 12), st.integers(0, 90), st.just(300))
dtypes = st.sampled_from((np.float32, np.float64))


def arrays(rows: Rows, dtype: Any) -> tuple[list[Any], Rows]:
    """Rows as arrays, and what these hold as floats."""
    given = [np.array(row, dtype) for row in rows]
    return given, [row.tolist() for row in given]


def nodes_of(drafted: _trees.DraftTree) -> list[tuple[int, ...]]:
    """Rank tuples of all nodes but the root."""
    paths: list[tuple[int, ...]] = [()]
    for i in range(1, len(drafted)):
        paths.append((*paths[drafted.parents[i]], int(drafted.ranks[i])))
    return paths[1:]


def compress(positions: list[Rows], dtype: Any = np.float64) -> tuple[Any, Any]:
    flat = [value for rows in positions for row in rows for value in row]
    return np.array(flat, dtype), np.cumsum([0, *(len(row) for rows in positions for row in rows)])


@CASES
def test_draft_tree_is_the_heaps(cases: int) -> None:
    def check(rows: Rows, budget: int, dtype: Any) -> None:
        given, held = arrays(rows, dtype)
        drafted = _trees.draft_tree(given, budget, check=False)
        wanted = naive.best_first(held, budget)
        assert nodes_of(drafted) == [node for _, node in wanted]
        assert drafted.logprobs.tolist() == [0.0, *(value for value, _ in wanted)]
        assert drafted.depths.tolist() == [0, *(len(node) for _, node in wanted)]
        assert drafted.parents[0] == drafted.ranks[0] == -1
        assert np.all(drafted.parents[1:] < np.arange(1, len(drafted)))

    run(cases, check, some_rows(), budgets, dtypes)


@CASES
def test_gains_and_ranks(cases: int) -> None:
    def check(several: list[Rows], data: Any, budget: int, dtype: Any) -> None:
        positions, horizon = [arrays(rows, dtype)[1] for rows in several], len(several[0])
        rank = st.sampled_from((0, 0, 1, 2, -1)) | st.integers(0, 20)
        truth = [data.draw(st.lists(rank, min_size=horizon, max_size=horizon)) for _ in positions]
        logprobs, offsets = compress(positions, dtype)
        gains, ranks, chain = _rows.gains_and_ranks(
            logprobs, offsets, np.array(truth, np.int32), horizon, budget, check=False
        )
        for p, rows in enumerate(positions):
            values = [value for value, _ in naive.best_first(rows, budget)]
            exact = np.array([math.exp(value) for value in values] + [0.0] * (budget - len(values)), np.float32)
            assert np.all(gains[p] <= np.nextafter(exact, np.float32(2)))
            assert np.all(gains[p] >= np.nextafter(exact, np.float32(-1)))
            assert np.all(np.diff(gains[p]) <= 0)  # so their running sum, Φ*, is concave
            assert ranks[p].tolist() == naive.true_path_ranks(rows, truth[p], budget, _kernels.NO_RANK)
            assert chain[p] == next((d for d, k in enumerate(truth[p]) if k != 0), horizon)

    run(cases, check, several_rows(), st.data(), budgets, dtypes)


@CASES
def test_tree_gains_and_chain(cases: int) -> None:
    def check(rows: Rows, budget: int) -> None:
        gains = _rows.gains_and_ranks(*compress([rows]), np.full((1, len(rows)), -1), len(rows), budget, check=False)[0]
        rows = [[value - 5.0 for value in row] for row in rows]  # sums below 1, so these are marginals
        marginals = [np.array(row) for row in rows]
        drafted = _trees.draft_tree(marginals, budget)
        gains = _trees.tree_gains(marginals, budget)
        assert gains.shape == (budget,)
        np.testing.assert_allclose(gains[: len(drafted) - 1], np.exp(drafted.logprobs[1:]), rtol=2e-7, atol=1e-45)
        assert not gains[len(drafted) - 1 :].any()
        chain = _trees.draft_chain(marginals)
        depth = next((d for d, row in enumerate(rows) if not row or row[0] == -math.inf), len(rows))
        assert nodes_of(chain) == [(0,) * (d + 1) for d in range(depth)]
        assert chain.logprobs[1:].tolist() == [naive.path_logprob(rows, (0,) * (d + 1)) for d in range(depth)]
        assert chain.depths.tolist() == list(range(depth + 1))

    run(cases, check, some_rows(), st.integers(0, 40))


@CASES
def test_pruning_changes_nothing(cases: int) -> None:
    def check(rows: Rows, data: Any, budget: int) -> None:
        horizon = len(rows)
        dense = np.full((1, horizon, max(map(len, rows)) + 1), -np.inf)
        for d, row in enumerate(rows):
            dense[0, d, : len(row)] = row
        kept = _rows.kept_pairs(dense, budget, check=False)
        assert kept.tolist() == [naive.candidates_used(rows, budget)]
        assert kept.sum() <= budget
        pruned = [row[:count] for row, count in zip(rows, kept[0], strict=True)]
        truth = data.draw(ints(-1, 2, 1, horizon)).astype(np.int32)
        smaller = data.draw(st.integers(0, budget))
        whole = _trees.draft_tree(dense[0], smaller, check=False)
        less = _trees.draft_tree([np.array(row) for row in pruned], smaller, check=False)
        for name in ("parents", "depths", "ranks", "logprobs"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(less, name))
        for a, b in zip(
            _rows.gains_and_ranks(*compress([rows]), truth, horizon, smaller, check=False),
            _rows.gains_and_ranks(*compress([pruned]), truth, horizon, smaller, check=False),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)

    run(cases, check, some_rows(4, range(1, 10)), st.data(), budgets)


@CASES
def test_forests(cases: int) -> None:
    gain = st.sampled_from((0.0, 0.25)) | st.floats(0, 1, width=32)
    five = st.lists(gain, min_size=5, max_size=5).map(lambda values: sorted(values, reverse=True))

    def check(rows: Rows, total: int) -> None:
        gains = np.array(rows, np.float32)
        merged, owners = _forests.forest_gains(gains, total)
        pool = sorted(((-g, b) for b, row in enumerate(gains.tolist()) for g in row if g > 0))[:total]
        assert merged.tolist() == [-g for g, _ in pool] + [0.0] * (total - len(pool))
        assert owners.tolist() == [b for _, b in pool] + [-1] * (total - len(pool))

    run(cases, check, st.lists(five, min_size=1, max_size=4), st.integers(0, 40))


@CASES
def test_masks(cases: int) -> None:
    def check(rows: Rows, budget: int) -> None:
        drafted = _trees.draft_tree([np.array(row) for row in rows], budget, check=False)
        mask = drafted.mask()
        parents = drafted.parents.tolist()
        for i in range(len(drafted)):
            assert set(np.flatnonzero(mask[i]).tolist()) == naive.ancestors(parents, i)
        bits = np.unpackbits(drafted.packed_mask().view(np.uint8), axis=1, bitorder="little")
        assert not bits[:, len(drafted) :].any()
        np.testing.assert_array_equal(bits[:, : len(drafted)], mask)

    run(cases, check, some_rows(), st.sampled_from((0, 1, 5, 62, 63, 64, 65, 127, 128, 150)))


@CASES
def test_true_ranks(cases: int) -> None:
    row = st.lists(st.integers(0, 6), max_size=6, unique=True)

    def check(data: Any, horizon: int, lengths: list[int]) -> None:
        positions = sum(lengths)
        tokens = data.draw(ints(0, 5, positions)).tolist()
        rows = data.draw(st.lists(row, min_size=positions * horizon, max_size=positions * horizon))
        starts = np.cumsum([0, *lengths])
        found = _rows.true_ranks(
            np.array([token for row in rows for token in row], np.int64), np.cumsum([0, *map(len, rows)]),
            np.array(tokens, np.int32), starts, horizon,
        )  # fmt: skip
        wanted = []
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            for p in range(first, last):
                ahead = [tokens[p + d] if p + d < last else None for d in range(1, horizon + 1)]
                mine = rows[p * horizon : (p + 1) * horizon]
                wanted.append([row.index(x) if x in row else -1 for row, x in zip(mine, ahead, strict=True)])
        assert found.tolist() == wanted

    run(cases, check, st.data(), st.integers(1, 4), st.lists(st.integers(0, 4), max_size=4))


@CASES
def test_checks_of_marginals(cases: int) -> None:
    value = st.one_of(st.floats(-20, 0, width=32), st.sampled_from((-math.inf, math.nan, 0.0, -0.0, 1e-6, -0.693147)))
    words = {"NaN": "hold NaN", "positive": "are positive", "rise": "rise", "sum": "sum above"}

    def check(rows: Rows, tidy: bool, dtype: Any) -> None:
        if tidy:
            rows = [sorted((min(v, 0.0) for v in row if v == v), reverse=True) for row in rows]
        held = arrays(rows, dtype)[1]
        faults = [naive.row_fault(row) for row in held]
        if all(fault is None for fault in faults):
            _trees.draft_tree([np.array(row, dtype) for row in rows], 0)
            _rows.gains_and_ranks(*compress([rows], dtype), np.zeros((1, len(rows))), len(rows), 1)
            return
        bad = next(d for d, fault in enumerate(faults) if fault)
        with pytest.raises(DdsimError, match=f"depth {bad + 1} .*{words[str(faults[bad])]}"):
            _trees.draft_tree([np.array(row, dtype) for row in rows], 0)
        with pytest.raises(DdsimError, match=f"depth {bad + 1} .*{words[str(faults[bad])]}"):
            _rows.gains_and_ranks(*compress([rows], dtype), np.zeros((1, len(rows))), len(rows), 1)

    run(cases, check, st.lists(st.lists(value, max_size=6), min_size=1, max_size=3), st.booleans(), dtypes)


@CASES
def test_quick_sums_refuse_what_exact_ones_do(cases: int) -> None:
    """Long rows whose probabilities sum to about what is allowed: neither rough exponentials nor groups may decide."""

    def check(seed: int, width: int, power: float, over: float, bad: int, dtype: Any) -> None:
        heights = -power * np.log(np.arange(1, width + 1)) - 0.1 * np.sort(np.random.default_rng(seed).random(width))
        rows = np.tile((heights + math.log(1 + over) - np.log(np.exp(heights).sum())).astype(dtype), (3, 1))
        rows[:, 1:] = np.minimum(rows[:, 1:], rows[:, :1])
        rows = np.minimum(rows, 0)
        rows[np.arange(3) != bad] -= 1
        if abs(math.fsum(np.exp(rows[bad].astype(np.float64)).tolist()) - 1.0001) < 1e-8:
            return  # the order of adding decides
        if naive.row_fault(rows[bad].tolist()) is None:
            _trees.tree_gains(rows, 2)
            return
        with pytest.raises(DdsimError, match=f"depth {bad + 1} .*sum above"):
            _trees.tree_gains(rows, 2)

    over = st.one_of(st.floats(-3e-4, 3e-4), st.floats(0.99e-4, 1.01e-4), st.floats(-0.5, 0.5))
    run(cases, check, st.integers(0, 2**32), st.integers(1, 3000), st.floats(0, 4), over, st.integers(0, 2), dtypes)


@CASES
def test_no_closed_set_weighs_more(cases: int) -> None:
    """Brute force over all prefix-closed trees, and the documented order by sorting every node."""

    def check(rows: Rows, budget: int) -> None:
        drafted = _trees.draft_tree([np.array(row) for row in rows], budget, check=False)
        assert nodes_of(drafted) == [node for _, node in naive.sorted_nodes(rows, budget)]
        weight = math.fsum(np.exp(drafted.logprobs[1:]).tolist())
        assert weight == pytest.approx(naive.best_closed_weight(rows, budget), rel=1e-12, abs=1e-300)

    kinds, budget = ("smooth", "grid", "sure", "cut", "lumps", "empty"), st.integers(0, 4)
    run(cases // 10, check, some_rows(2, (1, 2), kinds), budget)
    run(cases // 10, check, some_rows(1, range(1, 6), kinds), budget)
    run(cases // 100, check, st.sampled_from(kinds).flatmap(lambda kind: strategies.rows(kind, 3, 2)), budget)


def test_trees_of_growing_budgets_are_nested() -> None:
    rows = np.full((4, 9), -math.log(9))  # all candidates alike
    largest = nodes_of(_trees.draft_tree(rows, 200))
    for budget in range(0, 200, 7):
        assert nodes_of(_trees.draft_tree(rows, budget)) == largest[:budget]


def test_results_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    logits = -np.sort(rng.exponential(2.0, (2000, 3, 8)))
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    offsets = np.arange(2000 * 3 + 1) * 8
    truth = rng.integers(-1, 3, (2000, 3), dtype=np.int32)
    results = []
    before = numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            results.append(
                (*_rows.gains_and_ranks(logprobs.ravel(), offsets, truth, 3, 50), _rows.kept_pairs(logprobs, 50))
            )
    finally:
        numba.set_num_threads(before)
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


def test_layouts_and_types_compile_nothing_anew() -> None:
    rows = np.log(np.full((4, 3), 0.25))
    read_only = rows.copy()
    read_only.setflags(write=False)
    for layout in (rows, read_only, np.asfortranarray(rows), rows[::2], rows[:, ::-1], rows.astype(np.float32),
                  rows.astype(np.float16), (2 * rows).astype(int), rows.tolist(), [rows[0], rows[1, :2]]):  # fmt: skip
        drafted = _trees.draft_tree(layout, 5)
        drafted.mask(), drafted.packed_mask()
        _trees.draft_chain(layout).packed_mask()
        _trees.tree_gains(layout, 5)
        dense = np.stack([layout] * 2) if isinstance(layout, np.ndarray) else np.stack([rows] * 2)
        _rows.kept_pairs(dense, 5)
        flat = dense.reshape(-1)
        _rows.gains_and_ranks(
            flat, np.arange(2 * len(dense[0]) + 1) * 3, np.zeros((2, len(dense[0]))), len(dense[0]), 4
        )
    for kernel in (
        _checked.checked_tree, _checked.checked_gains, _checked.first_fault, _kernels.gains_and_ranks, _kernels.kept_pairs,
    ):  # fmt: skip
        assert len(kernel.signatures) <= 2, kernel  # float32 and float64
    for kernel in (_masks.ancestor_mask, _masks.packed_mask, _kernels.true_ranks, _checked.even_offsets):
        assert len(kernel.signatures) <= 1, kernel


@pytest.mark.parametrize("rows", [[], np.empty((0, 4)), np.empty((3, 0)), [[]], [[], [-0.5]], [[-math.inf]]])
def test_no_nodes(rows: Any) -> None:
    assert len(_trees.draft_tree(rows, 5)) == 1
    assert _trees.draft_tree(rows, 5).packed_mask().tolist() == [[1]]
    assert len(_trees.draft_chain(rows)) == 1
    if len(rows):
        assert not _trees.tree_gains(rows, 3).any()


def test_wrong_arguments_get_one_clear_line() -> None:
    good, one = np.log([[0.5, 0.5]]), np.zeros((1, 1), np.int32)
    for budget in (-1, 1.5, True, 2**21, None):
        with pytest.raises(DdsimError, match="budget is"):
            _trees.draft_tree(good, budget)  # type: ignore[arg-type]
    for call, message in (
        (lambda: _trees.draft_tree(good[0], 1), "shape"),
        (lambda: _trees.draft_tree([[[-0.5]]], 1), "rows of numbers"),
        (lambda: _trees.draft_tree([[-0.5], -0.5], 1), "rows of numbers"),
        (lambda: _trees.draft_tree([["a"]], 1), "type"),
        (lambda: _trees.draft_tree(np.array([[1j]]), 1), "type"),
        (lambda: _rows.kept_pairs(good, 1), "positions, horizon, candidates"),
        (lambda: _rows.gains_and_ranks(good[0], np.array([0, 3]), one, 1, 3), "within the 2"),
        (lambda: _rows.gains_and_ranks(good[0], np.array([1, 0]), one, 1, 3), "not fall"),
        (lambda: _rows.gains_and_ranks(good[0], np.array([0, 1, 2]), one, 0, 3), "horizon"),
        (lambda: _rows.gains_and_ranks(good[0], np.array([0, 1]), one, 2, 3), "shapes"),
        (lambda: _rows.kept_pairs(np.array([[[-1.0]], [[math.nan]]]), 1), "position 1, depth 1 hold NaN"),
        (lambda: _rows.gains_and_ranks(good[0], np.array([0, 2]), np.zeros((2, 1), np.int32), 1, 3), "truth_ranks"),
        (lambda: _forests.forest_gains([0.5], 1), "shape"),
        (lambda: _forests.forest_gains([[0.5], [-0.1]], 1), "request 1"),
        (lambda: _forests.forest_gains([[0.1, 0.2]], 1), "request 0"),
        (lambda: _rows.true_ranks(np.array([1]), np.array([0, 1]), np.array([1, 2]), np.array([0, 1]), 1), "tokens"),
        (lambda: _rows.true_ranks(np.array([1]), np.array([0, 1]), np.array([1]), np.array([0, 2]), 1), "rise from 0"),
    ):  # fmt: skip
        with pytest.raises(DdsimError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_empty_forests() -> None:
    merged, owners = _forests.forest_gains(np.empty((2, 0)), 2)
    assert merged.tolist() == [0, 0] and owners.tolist() == [-1, -1]
