"""Lattices, explicit trees and chains against the naive twins, and against rows of marginals."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import strategies as st

import ddsim
from ddsim.errors import DdsimError
from ddsim.tree import kernels as _kernels
from ddsim.tree import lattice_kernels, lattice_tables
from ddsim.tree.lattices import Lattices
from ddsim.tree.proposal import Rows
from tests.naive import lattice as naive
from tests.strategies import CASES, ints, lattices, run, some_rows
from tests.tree.test_tree import budgets, dtypes, nodes_of

SMALL: dict[str, Any] = {"deepest": 3, "widths": (1, 2, 3)}


def held(lattice: naive.Lattice, dtype: Any) -> naive.Lattice:
    """As arrays of a type hold it."""
    return naive.Lattice(
        lattice.token_ids,
        np.array(lattice.first, dtype).tolist(),
        [np.array(table, dtype).tolist() for table in lattice.transitions],
    )


def made(lattice: naive.Lattice, dtype: Any = np.float64, check: bool = False) -> ddsim.Lattice:
    return ddsim.Lattice(*arrays(lattice, dtype), check=check)


def arrays(lattice: naive.Lattice, dtype: Any = np.float64) -> tuple[Any, Any, Any]:
    width = len(lattice.first)
    steps = np.array(lattice.transitions, dtype).reshape(len(lattice.transitions), width, width)
    return np.array(lattice.token_ids, np.int32), np.array(lattice.first, dtype), steps


def dense(several: list[naive.Lattice]) -> tuple[Any, Any, Any]:
    """Lattices of one shape as arrays of positions."""
    ids, first, steps = zip(*(arrays(lattice, np.float32) for lattice in several), strict=True)
    return np.stack(ids), np.stack(first), np.stack(steps)


def same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@CASES
def test_draft_tree_is_every_path_sorted(cases: int) -> None:
    def check(lattice: naive.Lattice, budget: int, dtype: Any) -> None:
        drafted = ddsim.draft_tree(made(lattice, dtype), budget)
        wanted = naive.best_first(held(lattice, dtype), budget)
        assert nodes_of(drafted) == [node.ranks for node in wanted]
        assert drafted.logprobs.tolist() == [0.0, *(node.value for node in wanted)]
        assert drafted.depths.tolist() == [0, *(len(node.ranks) for node in wanted)]
        tokens = [lattice.token_ids[len(node.ranks) - 1][node.candidates[-1]] for node in wanted]
        assert drafted.tokens is not None and drafted.tokens.tolist() == [-1, *tokens]
        assert np.all(drafted.parents[1:] < np.arange(1, len(drafted)))
        gains = ddsim.tree_gains(made(lattice, dtype), budget)
        np.testing.assert_allclose(gains[: len(wanted)], np.exp(drafted.logprobs[1:]), rtol=2e-7, atol=1e-45)
        assert gains.shape == (budget,) and not gains[len(wanted) :].any()

    run(cases, check, lattices(), budgets, dtypes)
    run(cases // 10, check, lattices(3, (9,)), budgets, dtypes)


@CASES
def test_gains_and_ranks(cases: int) -> None:
    def check(several: list[naive.Lattice], data: Any, budget: int) -> None:
        several = [held(lattice, np.float32) for lattice in several]
        horizon, count = len(several[0].token_ids), len(several)
        proposal = Lattices.from_dense(*dense(several), max_budget=budget)
        assert len(proposal) == count
        assert proposal.first_fault() is None or any(naive.fault(lattice) for lattice in several)
        tokens = data.draw(ints(0, 4, count)).astype(np.int32)
        cut = data.draw(st.integers(0, count))
        starts = np.array([0, cut, count])
        paths = proposal.true_paths(tokens, starts)
        drafts = proposal.drafts(paths, budget)
        for p, lattice in enumerate(several):
            end = cut if p < cut else count
            wanted = naive.true_path(lattice, tokens[p + 1 : end].tolist())
            nodes = naive.best_first(lattice, budget)
            place = {node.ranks: i for i, node in enumerate(nodes, 1)}
            prefixes = [tuple(wanted[: d + 1]) for d in range(horizon)]
            assert drafts.ranks[p].tolist() == [place.get(path, _kernels.NO_RANK) for path in prefixes]
            known = 0
            while known < horizon and paths[p, known] >= 0:
                known += 1
            assert paths[p, :known].tolist() == wanted[:known] and (paths[p, known:] == -1).all()
            exact = np.array([math.exp(node.value) for node in nodes] + [0.0] * (budget - len(nodes)), np.float32)
            assert np.all(drafts.gains[p] <= np.nextafter(exact, np.float32(2)))
            assert np.all(drafts.gains[p] >= np.nextafter(exact, np.float32(-1)))
            assert np.all(np.diff(drafts.gains[p]) <= 0)
            assert drafts.chain[p] == next((d for d, rank in enumerate(wanted) if rank != 0), horizon)
            best = np.full(horizon, -np.inf)  # past its end
            best[: len(naive.chain(lattice))] = np.cumsum([value for value, _ in naive.chain(lattice)])
            assert drafts.chain_expected[p] == pytest.approx(np.exp(best).cumsum(), rel=1e-6)
            drafted = proposal.tree(p, budget)
            assert nodes_of(drafted) == [node.ranks for node in nodes]
            assert drafted.tokens[1:].tolist() == [lattice.token_ids[len(n.ranks) - 1][n.candidates[-1]] for n in nodes]
            assert drafted.logprobs[1:].tolist() == [node.value for node in nodes]

    shapes = st.tuples(st.integers(1, 3), st.sampled_from((1, 2, 3)))
    several = shapes.flatmap(lambda s: st.lists(of_shape(*s), min_size=1, max_size=4))
    run(cases, check, several, st.data(), budgets)


def of_shape(horizon: int, width: int) -> st.SearchStrategy[naive.Lattice]:
    return lattices(horizon, (width,)).filter(lambda lattice: len(lattice.token_ids) == horizon)


@CASES
def test_equal_rows_are_marginals(cases: int) -> None:
    """To the last bit."""

    def check(rows: Any, data: Any, budget: int, dtype: Any) -> None:
        horizon, width = len(rows), max(map(len, rows))
        table = np.full((horizon, width), -np.inf, dtype)
        for d, row in enumerate(rows):
            table[d, : len(row)] = row
        ids = np.tile(np.arange(width, dtype=np.int32), (horizon, 1))
        lattice = ddsim.Lattice(ids, table[0], np.repeat(table[1:, None], width, axis=1), check=False)
        one, other = ddsim.draft_tree(table, budget, check=False), ddsim.draft_tree(lattice, budget)
        for name in ("parents", "depths", "ranks", "logprobs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        table = table.astype(np.float32)
        exists = table > -np.inf
        for d in range(1, horizon):  # a trace has no rows behind an empty one
            exists[d] &= exists[d - 1].any()
        counts = exists.sum(1)
        marginals = Rows(horizon, np.concatenate([[0], np.cumsum(counts)]), ids[exists], table[exists])
        proposal = Lattices.from_dense(ids[None], table[:1], lattice.transitions[None].astype(np.float32), budget)
        path = data.draw(ints(-1, min(2, width - 1), 1, horizon)).astype(np.int32)
        path[:, np.argmax(np.append(path[0] < 0, True)) :] = -1
        whole = Lattices.from_dense(ids[None], table[:1], lattice.transitions[None].astype(np.float32), 10**5)
        same(marginals.drafts(path, budget), whole.drafts(path, budget))
        same(marginals.drafts(path, budget), proposal.drafts(path, budget))

    run(cases, check, some_rows(4, (1, 2, 3, 5)), st.data(), st.integers(0, 90), dtypes)


@CASES
def test_pruning_changes_nothing(cases: int) -> None:
    def check(lattice: naive.Lattice, data: Any, budget: int) -> None:
        lattice = held(lattice, np.float32)
        everything = Lattices.from_dense(*dense([lattice]), max_budget=10**4)
        pruned = Lattices.from_dense(*dense([lattice]), max_budget=budget)
        assert len(pruned.token_ids) == len(naive.used(lattice, budget))
        smaller = data.draw(st.integers(0, budget))
        path = data.draw(ints(-1, 2, 1, everything.horizon)).astype(np.int32)
        path[:, np.argmax(np.append(path[0] < 0, True)) :] = -1
        same(everything.drafts(path, smaller), pruned.drafts(path, smaller))
        for name, array in vars(everything.pruned(budget)).items():
            np.testing.assert_array_equal(array, getattr(pruned, name))
        for name in ("parents", "depths", "ranks", "logprobs", "tokens"):
            np.testing.assert_array_equal(
                getattr(everything.tree(0, smaller), name), getattr(pruned.tree(0, smaller), name)
            )

    run(cases, check, lattices(**SMALL), st.data(), st.integers(0, 40))


@CASES
def test_a_tree_recorded_from_a_lattice_gives_its_tables(cases: int) -> None:
    """To the last bit: path log-probabilities in float64, each node's own in float32."""

    def check(lattice: naive.Lattice, tokens: Any, budget: int) -> None:
        proposal = Lattices.from_dense(*dense([lattice]), max_budget=10**4)
        drafted = proposal.tree(0, budget)
        ids = drafted.tokens[1:]
        trees = Lattices.from_trees(proposal.horizon, [0, len(ids)], drafted.parents[1:], ids, drafted.logprobs[1:])
        again = trees.tree(0, budget)
        for name in ("parents", "depths", "ranks", "logprobs", "tokens"):
            np.testing.assert_array_equal(getattr(drafted, name), getattr(again, name))
        text = tokens.astype(np.int32)
        starts = np.array([0, len(text)])
        repeated = Lattices.from_dense(*(np.repeat(a, len(text), 0) for a in dense([lattice])), max_budget=10**4)
        copies = Lattices.from_trees(
            proposal.horizon, np.arange(len(text) + 1) * len(ids), np.tile(drafted.parents[1:], len(text)),
            np.tile(ids, len(text)), np.tile(drafted.logprobs[1:], len(text)),
        )  # fmt: skip
        one = repeated.drafts(repeated.true_paths(text, starts), budget)
        other = copies.drafts(copies.true_paths(text, starts), budget)
        same(one[:2], other[:2])

    sound = lattices(**SMALL).filter(lambda lattice: naive.fault(held(lattice, np.float32)) is None)
    run(cases, check, sound, ints(0, 3, 4), st.integers(0, 40))


@CASES
def test_no_closed_set_weighs_more(cases: int) -> None:
    def check(lattice: naive.Lattice, budget: int) -> None:
        weight = math.fsum(np.exp(ddsim.draft_tree(made(lattice), budget).logprobs[1:]).tolist())
        assert weight == pytest.approx(naive.best_closed_weight(lattice, budget), rel=1e-12, abs=1e-300)

    kinds = ("smooth", "grid", "sure", "cut", "lumps", "empty")
    run(cases // 4, check, lattices(2, (1, 2, 3), kinds), st.integers(0, 4))
    run(cases // 40, check, lattices(3, (2,), kinds), st.integers(0, 4))


@CASES
def test_chains(cases: int) -> None:
    def check(lattice: naive.Lattice, dtype: Any) -> None:
        lattice = held(lattice, dtype)
        wanted = naive.chain(lattice)
        drafted = ddsim.draft_chain(made(lattice, dtype))
        assert drafted.tokens is not None
        assert drafted.tokens.tolist() == [-1, *(lattice.token_ids[d][j] for d, (_, j) in enumerate(wanted))]
        assert drafted.logprobs.tolist() == np.cumsum([0.0, *(value for value, _ in wanted)]).tolist()
        assert drafted.depths.tolist() == list(range(len(wanted) + 1))

    run(cases, check, lattices(), dtypes)


@CASES
def test_drawn_paths(cases: int) -> None:
    def check(lattice: naive.Lattice, seed: int) -> None:
        lattice = held(lattice, np.float32)
        proposal = Lattices.from_dense(*(np.repeat(a, 5, 0) for a in dense([lattice])), max_budget=10**4)
        paths = proposal.drawn_paths(np.array([0, 2, 5]), np.random.default_rng(seed))
        uniforms = np.random.default_rng(seed).random(paths.shape)
        for p, left in enumerate((1, 0, 2, 1, 0)):
            wanted: list[int] = []
            candidates: list[int] = []
            for u in uniforms[p][:left]:
                row = naive.row_after(lattice, candidates)
                mass = np.cumsum([math.exp(value) for value, _ in row])
                rank = int(np.searchsorted(mass, u, side="right"))
                if rank == len(row):
                    break
                wanted.append(rank)
                candidates.append(row[rank][1])
            assert paths[p].tolist() == wanted + [-1] * (proposal.horizon - len(wanted))

    run(cases, check, lattices(**SMALL), st.integers(0, 2**32))


@CASES
def test_checks(cases: int) -> None:
    value = st.one_of(st.floats(-20, 0, width=32), st.sampled_from((-math.inf, math.nan, 0.0, 1e-6, -0.693147)))

    def check(lattice: naive.Lattice, spoilt: Any, row: int, at: int, dtype: Any) -> None:
        rows = [lattice.first, *(row for table in lattice.transitions for row in table)]
        chosen = rows[row % len(rows)]
        chosen[at % len(chosen)] = spoilt
        fault = naive.fault(held(lattice, dtype))
        if fault is None:
            made(lattice, dtype, check=True)
            return
        words = {"NaN": "hold NaN", "positive": "are positive", "sum": "sum above"}
        with pytest.raises(DdsimError) as caught:
            made(lattice, dtype, check=True)
        assert str(caught.value).startswith(f"{fault[0]}: ") and words[fault[1]] in str(caught.value)

    run(cases, check, lattices(**SMALL), value, st.integers(0, 9), st.integers(0, 3), dtypes)


@CASES
def test_heap_alone(cases: int) -> None:
    def check(lattice: naive.Lattice, most: int) -> None:
        rows = made(lattice).rows
        count, width = rows.shape
        none = np.empty(0, np.int64)
        s = lattice_kernels.make_scratch(most, width)
        flat = rows.reshape(-1)
        listed, n = lattice_kernels.heap_nodes(flat, none, none, width, 0, count, most, s)
        wanted = naive.best_first(lattice, most)
        assert s.sorted_values[:n].tolist() == [node.value for node in wanted]
        assert [(s.codes[i] & 0xFFFFFFFF) % width for i in s.order[:n]] == [n.candidates[-1] for n in wanted]
        assert listed <= 2 * most + 2

    run(cases, check, lattices(), st.integers(0, 60))


@pytest.mark.parametrize("most", [30, 39, 40, 41, 200, 700])
def test_what_does_not_fit_goes_to_the_heap(most: int) -> None:
    table = np.full((3, 40), -math.log(40))  # 64,000 equal nodes at depth 3, 1,600 at depth 2
    lattice = ddsim.Lattice.from_marginals(np.tile(np.arange(40), (3, 1)), table)
    assert nodes_of(ddsim.draft_tree(lattice, most)) == nodes_of(ddsim.draft_tree(table, most))


@pytest.mark.parametrize("far", [5.0, 20.0, 60.0, 500.0, 5000.0])
def test_reach_grows_as_far_as_needed(far: float) -> None:
    table = np.array([[-0.01] + [-far - 0.01 * i for i in range(20)]] * 3)
    ids, steps = np.tile(np.arange(21), (3, 1)), np.repeat(table[1:, None], 21, axis=1)
    lattice = ddsim.Lattice(ids, table[0], steps, check=False)
    for most in (3, 4, 30, 500, 5000):
        one, other = ddsim.draft_tree(lattice, most), ddsim.draft_tree(table, most, check=False)
        assert nodes_of(one) == nodes_of(other)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


@CASES
def test_what_float32_cannot_tell_apart(cases: int) -> None:
    """Nodes about a threshold, and steps that differ where their sums don't."""
    near = st.sampled_from([0.0, 2.0**-53, 2.0**-52, 1e-12, 1e-9, 1e-7, 5e-7, 1e-6, 3e-6])

    def check(data: Any, budget: int, far: float, kind: Any) -> None:
        threshold = lattice_kernels.FIRST * math.log(budget + 1.0)
        steps = [-(far + data.draw(near)) for _ in range(4)]
        first = [-max(threshold - far, 0.0) * (1 + data.draw(near)), -threshold - data.draw(near), -threshold, -30.0]
        lattice = held(naive.Lattice([[1, 2, 3, 4]] * 2, first, [[steps, steps[::-1], steps, steps]]), kind)
        drafted = ddsim.draft_tree(made(lattice, kind), budget)
        wanted = naive.best_first(lattice, budget)
        assert nodes_of(drafted) == [node.ranks for node in wanted]
        assert drafted.logprobs.tolist() == [0.0, *(node.value for node in wanted)]

    run(cases, check, st.data(), st.integers(1, 12), st.sampled_from([1e-3, 0.5, 1.0, 3.0]), dtypes)


def test_results_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    steps = np.log(rng.dirichlet(np.full(4, 0.3), (2000, 2, 4))).astype(np.float32)
    first = np.log(rng.dirichlet(np.full(4, 0.3), 2000)).astype(np.float32)
    ids = np.tile(np.arange(4, dtype=np.int32), (2000, 3, 1))
    tokens, starts = rng.integers(0, 4, 2000).astype(np.int32), np.arange(0, 2001, 20)
    results = []
    before = numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            proposal = Lattices.from_dense(ids, first, steps, 50)
            paths = proposal.true_paths(tokens, starts)
            results.append((*vars(proposal).values(), paths, *proposal.drafts(paths, 50)))
    finally:
        numba.set_num_threads(before)
    for others in results[1:]:
        same(results[0], others)


def test_layouts_and_types_compile_nothing_anew() -> None:
    ids, first, steps = np.array([[1, 2, 3]] * 3), np.log(np.full(3, 0.25)), np.log(np.full((2, 3, 3), 0.25))
    for kind in (np.float32, np.float64, np.float16):
        for layout in (lambda a: a, np.asfortranarray, lambda a: a[::-1], lambda a: a.tolist()):
            lattice = ddsim.Lattice(layout(ids), layout(first.astype(kind)), layout(steps.astype(kind)))
            ddsim.draft_tree(lattice, 5).packed_mask()
            ddsim.draft_chain(lattice).mask()
            ddsim.tree_gains(lattice, 5)
    whole = Lattices.from_dense(ids[None], first[None], steps[None], 9).pruned(5)
    paths = whole.true_paths(np.array([1]), np.array([0, 1]))
    whole.drafts(paths, 5), whole.tree(0, 4), whole.drawn_paths(np.array([0, 1]), np.random.default_rng(0))
    for kernel in (lattice_tables.dense_tree, lattice_tables.dense_gains, lattice_tables.first_fault):
        assert len(kernel.signatures) <= 2, kernel  # float32 and float64
    for kernel in (lattice_tables.gains_and_ranks, lattice_tables.kept_candidates, lattice_tables.true_paths):
        assert len(kernel.signatures) <= 1, kernel


def test_no_nodes() -> None:
    for lattice in (
        ddsim.Lattice(np.empty((0, 3), int), np.empty(3), np.empty((0, 3, 3))),
        ddsim.Lattice(np.empty((2, 0), int), np.empty(0), np.empty((1, 0, 0))),
        ddsim.Lattice([[1, 2]], [-np.inf, -np.inf], np.empty((0, 2, 2))),
    ):
        assert len(ddsim.draft_tree(lattice, 5)) == len(ddsim.draft_chain(lattice)) == 1
        assert not ddsim.tree_gains(lattice, 3).any()
    empty = Lattices.from_dense(np.empty((0, 2, 3)), np.empty((0, 3)), np.empty((0, 1, 3, 3)), 4)
    assert len(empty) == len(empty.drafts(np.empty((0, 2), np.int32), 3).gains) == 0
    none = Lattices.from_trees(2, [0, 0, 0], [], [], [])
    assert len(none) == 2 and not none.drafts(np.full((2, 2), -1), 3).gains.any() and len(none.tree(1, 3)) == 1


def test_wrong_arguments_get_one_clear_line() -> None:
    one = [[0.5, 0.5], [0.5, 0.5]]
    tree: dict[str, Any] = {"parents": [0, 1], "tokens": [5, 6], "logprobs": [-0.5, -1.0]}
    for call, message in (
        (lambda: ddsim.Lattice([1, 2], np.log([0.5, 0.5]), np.log([one])), "token_ids has shape"),
        (lambda: ddsim.Lattice([[1, 2]] * 2, np.log([0.5, 0.5]), np.log([one, one])), r"needs \(2,\) and \(1, 2, 2\)"),
        (lambda: ddsim.Lattice([[1, 2]] * 2, np.log([0.5]), np.log([one])), "first has shape"),
        (lambda: ddsim.Lattice([[1, 2]] * 2, ["a", "b"], np.log([one])), "first: must be numbers"),
        (lambda: ddsim.Lattice([[1, 2.5]], np.log([0.5, 0.5]), []), "whole number"),
        (lambda: ddsim.Lattice([[1, 2]] * 2, np.log([0.5, 0.6]), np.log([one])), "first: .* sum above 1"),
        (lambda: ddsim.Lattice([[1, 2]] * 2, np.log([0.5, 0.5]), [one]), r"transitions\[0, 0\]: .* are positive"),
        (lambda: ddsim.Lattice.from_marginals([[1]], [0.5]), "logprobs has shape"),
        (lambda: ddsim.draft_tree(ddsim.Lattice([[1]], [-1.0], []), -1), "budget is"),
        (lambda: Lattices.from_trees(2, [0, 2], **tree | {"parents": [0, 2]}), "position 0, node 2: its parent"),
        (lambda: Lattices.from_trees(2, [0, 2], **tree | {"parents": [0, -1]}), "position 0, node 2: its parent"),
        (lambda: Lattices.from_trees(2, [0, 1, 2], **tree), "position 1, node 1: its parent"),
        (lambda: Lattices.from_trees(2, [0, 2], **tree | {"logprobs": [-0.5, -0.4]}), "above its parent's"),
        (lambda: Lattices.from_trees(2, [0, 2], [0, 0], [5, 6], [-2.0, -1.0]), "above that of the node before"),
        (lambda: Lattices.from_trees(2, [0, 2], **tree | {"logprobs": [-0.5, math.nan]}), "not finite"),
        (lambda: Lattices.from_trees(2, [0, 2], **tree | {"tokens": [5, -6]}), "outside the vocabulary"),
        (lambda: Lattices.from_trees(2, [0, 2], [0, 0], [5, 5], [-1.0, -1.0]), "position 0: a token stands twice"),
        (lambda: Lattices.from_trees(2, [0, 2], [0, 0], [5, 6], [-0.5, -0.6]), "position 0: .* sum above 1"),
        (lambda: Lattices.from_trees(1, [0, 2], **tree), "longer than the horizon 1"),
        (lambda: Lattices.from_trees(2, [0, 3], **tree), "starts must rise from 0 to the 2"),
        (lambda: Lattices.from_trees(2, [0, 2], **tree | {"tokens": [5]}), "have shapes"),
    ):  # fmt: skip
        with pytest.raises(DdsimError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
