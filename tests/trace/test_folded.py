"""Traces of lattices, explicit trees and chains: in memory, in files, and damaged."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsim
from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.trace.folded import PER_NAT, fold, round_conditionals, rounded
from ddsim.trace.trace import Trace, open_trace
from ddsim.trace.writer import TraceWriter
from ddsim.tree.lattices import Lattices
from tests.naive import lattice as naive
from tests.strategies import CASES, ints, lattices, run
from tests.tree.test_lattice import dense, held, same

L, K, VOCABULARY, BUDGET = 3, 4, 12, 10
COST = CostModel.from_table([1, 4, 11], [0.010, 0.0104, 0.0115], draft_seconds=0.001)


def made_up(seed: int, lengths: tuple[int, ...] = (7, 5, 1, 9)) -> list[Any]:
    """Tokens, candidates, first and transitions of a few sequences; the truth is often a good candidate."""
    rng = np.random.default_rng(seed)
    tokens, ids, first, steps = [], [], [], []
    for length in lengths:
        ids.append(np.argsort(rng.random((length, L, VOCABULARY)), axis=-1)[..., :K])
        text = rng.integers(0, VOCABULARY, length)
        for p in range(1, length):
            text[p] = ids[-1][p - 1, 0, rng.integers(K)]
        tokens.append(text)
        first.append(np.log(rng.dirichlet(np.full(K, 0.5), length)))
        steps.append(np.log(rng.dirichlet(np.full(K, 0.5), (length, L - 1, K))))
    return [tokens, ids, first, steps]


@pytest.fixture
def trace() -> Trace:
    names = {"workload": ["a", "b", "a", "b"], "context0": [3, 0, 1, 2], "provenance": {"target": "t", "drafter": "d"}}
    return Trace.from_lattice(*made_up(0), max_budget=BUDGET, vocab_size=VOCABULARY, **names)


def without_last(lattices: Lattices) -> Lattices:
    return replace(lattices, positions=lattices.positions[:-1], offsets=lattices.offsets[:-1])


def table(trace: Trace) -> list[Any]:
    found = ddsim.positions_of(trace, cache=False)
    return [np.asarray(getattr(found, name)) for name in ("gains", "ranks", "nodes", "chain", "chain_expected")]


@CASES
def test_folded_and_unfolded(cases: int) -> None:
    def check(several: list[naive.Lattice], tokens: Any, budget: int, as_trees: bool) -> None:
        ids, first, steps = dense([held(lattice, np.float32) for lattice in several])
        whole = Lattices.from_dense(ids, round_conditionals(first), round_conditionals(steps), budget)
        if as_trees:
            trees = [whole.tree(p, budget) for p in range(len(whole))]
            flat = [np.concatenate([getattr(t, name)[1:] for t in trees]) for name in ("parents", "tokens", "logprobs")]
            whole = rounded(Lattices.from_trees(whole.horizon, np.cumsum([0, *(len(t) - 1 for t in trees)]), *flat))
        text = tokens[: len(whole) + 1].astype(np.int32)
        folded = fold(text, whole)
        again = folded.unfold()
        assert again.first_fault() is None and len(again) == len(text)
        paths = whole.true_paths(text[:-1], np.array([0, len(whole)]))
        more = np.concatenate([paths, np.full((1, whole.horizon), -1, np.int32)])
        same(whole.drafts(paths, budget), [part[:-1] for part in again.drafts(more, budget)])
        for p in range(len(whole)):
            for name in ("parents", "depths", "ranks", "logprobs", "tokens"):
                one, other = whole.tree(p, budget), again.tree(p, budget)
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name, array in vars(fold(text, without_last(again))).items():
            np.testing.assert_array_equal(array, getattr(folded, name))
        middle = len(text) // 2
        halves = type(folded).joined(list(folded.parts([(0, middle), (middle, len(text))])))
        for name, array in vars(halves).items():
            np.testing.assert_array_equal(array, getattr(folded, name))

    sound = lattices(2, (2, 3), ("smooth", "far", "lumps")).filter(lambda x: naive.fault(held(x, np.float32)) is None)
    several = st.lists(sound, min_size=1, max_size=3).filter(
        lambda many: len({(len(one.token_ids), len(one.first)) for one in many}) == 1
    )
    run(cases, check, several, ints(0, 3, 4), st.integers(0, 30), st.booleans())


def test_candidates_are_counted_back_from_the_newest() -> None:
    """Three candidates a depth, each row best first: what a file says of them."""
    token_ids = [[[7, 8, 9], [4, 5, 6]]]
    steps = np.log([[[[0.2, 0.5, 0.1], [0.1, 0.2, 0.6], [0.4, 0.3, 0.2]]]])
    whole = Lattices.from_dense(
        token_ids, round_conditionals(np.log([[0.2, 0.3, 0.4]])), round_conditionals(steps), 100
    )
    folded = fold(np.array([1, 9], np.int32), whole)
    assert folded.widths.tolist() == [[3, 3], [0, 0]]
    assert folded.token_ids.tolist() == [9, 8, 7, 4, 5, 6]
    assert folded.counts.tolist() == [
        3,
        3,
        3,
        3,
        0,
        0,
        0,
        0,
    ]  # of the root, the candidates, and the last position's root
    assert folded.children.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3, 2, 3, 1]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-1200, 0, width=32) | st.floats(-3, 0, width=32), min_size=1, max_size=5))
def test_rounding(row: list[float]) -> None:
    total = math.fsum(math.exp(value) for value in row)
    values = [value - math.log(total) for value in row] if total > 1 else row
    found = round_conditionals(np.array(values, np.float32)).astype(float)
    assert math.fsum(np.exp(found)) <= 1 + 1e-6
    for before, after in zip(values, found.tolist(), strict=True):
        if after == -math.inf:
            assert before < -1022
        else:
            assert after * PER_NAT == int(after * PER_NAT) and abs(after - before) <= 1.001 / PER_NAT


def test_files_give_back_what_memory_holds(trace: Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "t")
    read = open_trace(tmp_path / "t")
    assert read.fingerprint == trace.fingerprint and read.kind == "lattice" and read.meta["schema_version"] == 2
    same(table(trace), table(read))
    for one, other in zip(trace.blocks(6), read.blocks(6), strict=True):
        same([one.tokens, one.context, one.starts], [other.tokens, other.context, other.starts])
        for name, array in vars(one.proposal).items():
            np.testing.assert_array_equal(array, getattr(other.proposal, name))
    part = read.select(workload="b")
    part.save(tmp_path / "b")
    assert open_trace(tmp_path / "b").fingerprint == part.fingerprint
    columns = pq.read_table(tmp_path / "t" / "part-00000.parquet").column_names
    assert columns[-5:] == ["widths", "token_ids", "counts", "children", "falls"]


def test_what_is_recorded_is_the_proposal_to_the_largest_budget(trace: Trace) -> None:
    tokens, ids, first, steps = made_up(0)
    whole = [
        Lattices.from_dense(i, round_conditionals(f), round_conditionals(s), 10**4)
        for i, f, s in zip(ids, first, steps, strict=True)
    ]
    gains, ranks, _, chain, expected = table(trace)
    low = 0
    for text, one in zip(tokens, whole, strict=True):
        rounds = len(text) - 1
        wanted = one.drafts(one.true_paths(text, np.array([0, len(text)])), BUDGET)
        same([gains[low : low + rounds], ranks[low : low + rounds]], [wanted.gains[:rounds], wanted.ranks[:rounds]])
        same(
            [chain[low : low + rounds], expected[low : low + rounds]],
            [wanted.chain[:rounds], wanted.chain_expected[:rounds]],
        )
        assert not gains[low + rounds].any()
        low += len(text)


def test_trees_of_a_lattice_give_its_tables(trace: Trace, tmp_path: Path) -> None:
    trees = []
    for block in trace.subset(range(4)).blocks(1):
        trees.append([block.proposal.tree(p, BUDGET) for p in range(len(block) - 1)])
    tokens = made_up(0)[0]
    again = Trace.from_trees(tokens, trees, horizon=L, max_budget=BUDGET, vocab_size=VOCABULARY)
    same(table(trace)[:3], table(again)[:3])
    again.save(tmp_path / "trees")
    read = open_trace(tmp_path / "trees")
    assert read.kind == "trees" and read.fingerprint == again.fingerprint
    same(table(again), table(read))
    with TraceWriter(
        tmp_path / "written", horizon=L, max_budget=BUDGET, vocab_size=VOCABULARY, provenance={}, kind="trees"
    ) as writer:
        for i, (text, drafted) in enumerate(zip(tokens[:4], trees, strict=True)):
            writer.add_trees(prompt_id=str(i), workload="w", temperature=0, prompt_tokens=3, tokens=text, trees=drafted)
        with pytest.raises(DdsimError, match="records trees, not rows"):
            writer.add_sequence(
                prompt_id="x", workload="w", temperature=0, prompt_tokens=3, tokens=[1], token_ids=[], logprobs=[]
            )
    same(table(again), table(open_trace(tmp_path / "written")))
    one = Trace.from_trees(tokens[0], [(t.parents[1:], t.tokens[1:], t.logprobs[1:]) for t in trees[0]], horizon=L)
    same([a[:7, :BUDGET] for a in table(one)[:1]], [a[:7] for a in table(trace)[:1]])


def test_chains_are_rows_of_one_candidate(trace: Trace, tmp_path: Path) -> None:
    ids, logprobs, tokens = [], [], made_up(0)[0]
    for block in trace.blocks(1):
        chains = [ddsim_chain(block.proposal, p) for p in range(len(block) - 1)]
        ids.append(np.array([c[0] for c in chains]).reshape(-1, L))
        logprobs.append(np.array([c[1] for c in chains]).reshape(-1, L))
    chains = Trace.from_chains(tokens, ids, logprobs, vocab_size=VOCABULARY)
    same(table(trace)[3:], table(chains)[3:])  # the chain's luck, and what is expected of it
    np.testing.assert_array_equal((table(chains)[1] <= L).sum(1), table(chains)[3])
    chains.save(tmp_path / "chains")
    assert open_trace(tmp_path / "chains").meta["schema_version"] == 1
    short = Trace.from_chains([1, 2, 3], [[2, 3], [3, 0]], [[-0.5, -0.5], [-0.5, -np.inf]])
    assert [len(next(short.blocks()).proposal.tree(p, 2)) for p in range(2)] == [3, 2]


def ddsim_chain(proposal: Any, p: int) -> tuple[list[int], list[float]]:
    row, ids, values = int(proposal.positions[p]), [], []
    while len(ids) < L:
        at = int(proposal.offsets[row])
        ids.append(int(proposal.token_ids[at]))
        values.append(float(proposal.logprobs[at]))
        row = int(proposal.positions[p] + proposal.nexts[at])
    return ids, values


def test_everything_above_works(trace: Trace, tmp_path: Path) -> None:
    from ddsim.view.export import export_candidates
    from ddsim.view.trees import drafted_round

    policies = ["AR", "DFlash", "DDTree:4", "DDTree:10", "CaDDTree", "RoundRatio", "LongRun", "Hindsight"]
    found = ddsim.replay(trace, COST, policies, bootstrap=5).table()
    assert len(found) == len(policies)
    assert drafted_round(trace, budget=3).accepted[0] == 0
    export_candidates(trace, tmp_path / "c.csv")
    assert "next_row" in (tmp_path / "c.csv").read_text().splitlines()[0]
    cross = ddsim.cross_calibrate(trace, folds=2)
    ddsim.positions_of(trace, calibration=cross, cache=False)
    report = ddsim.reliability(trace)
    naive_best = [[block.proposal, block] for block in trace.blocks()]
    assert report.by_depth["count"].iloc[0] == sum(max(len(text) - L, 0) for text in made_up(0)[0]) and naive_best
    for call in (
        lambda: ddsim.fit_calibration(trace, "temperature"),
        lambda: ddsim.cross_calibrate(trace, "temperature", folds=2),
        lambda: ddsim.positions_of(
            trace, calibration=ddsim.Calibration("temperature", np.ones(0), np.ones(0), np.ones(L), {}), cache=False
        ),
    ):
        with pytest.raises(DdsimError, match="rows of marginals"):
            call()
    with pytest.raises(DdsimError, match="no rows of marginals"):
        next(trace.blocks()).rows(0)


def test_a_killed_recording_goes_on(tmp_path: Path) -> None:
    tokens, ids, first, steps = made_up(1)
    options: dict[str, Any] = {
        "horizon": L, "max_budget": BUDGET, "vocab_size": VOCABULARY, "provenance": {}, "kind": "lattice"
    }  # fmt: skip

    def add(writer: TraceWriter, i: int) -> None:
        writer.add_lattice(
            prompt_id=str(i), workload="", temperature=0.0, prompt_tokens=0, tokens=tokens[i], token_ids=ids[i],
            first=first[i], transitions=steps[i],
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path, **options) as writer:
        add(writer, 0)
        raise KeyboardInterrupt
    with TraceWriter(tmp_path, **options) as writer:
        for i in (1, 2, 3):
            add(writer, i)
    whole = Trace.from_lattice(tokens, ids, first, steps, max_budget=BUDGET, vocab_size=VOCABULARY)
    assert open_trace(tmp_path).fingerprint == whole.fingerprint
    with pytest.raises(DdsimError, match="kind"):
        TraceWriter(tmp_path, **options | {"kind": "rows"})
    with TraceWriter(tmp_path, **options) as writer, pytest.raises(DdsimError, match="records lattice, not rows"):
        writer.add_sequence(
            prompt_id="x",
            workload="",
            temperature=0.0,
            prompt_tokens=0,
            tokens=[1],
            token_ids=ids[0][:1],
            logprobs=first[0][:1],
        )


@pytest.mark.parametrize("column", ["widths", "token_ids", "counts", "children", "falls"])
def test_damage_never_gives_wrong_numbers(trace: Trace, tmp_path: Path, column: str) -> None:
    trace.save(tmp_path / "sound")
    path = tmp_path / "sound" / "part-00000.parquet"
    whole = pq.read_table(path)
    at = whole.column_names.index(column)
    rng = np.random.default_rng(0)
    for change in range(12):
        lists = whole[column].to_pylist()
        filled = [i for i, values in enumerate(lists) if values]
        row = int(rng.choice(filled))
        values = list(lists[row])
        spot = int(rng.integers(len(values)))
        if change % 3 == 0:
            values[spot] = int(rng.integers(0, 65535 if column != "token_ids" else 30))
        elif change % 3 == 1:
            values.pop(spot)
        else:
            values.insert(spot, int(rng.integers(0, 3)))
        if values == lists[row]:
            continue
        lists[row] = values
        forged = whole.set_column(at, whole.schema.field(column), pa.array(lists, whole.schema.field(column).type))
        pq.write_table(forged, path)
        with pytest.raises(DdsimError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_trace(tmp_path / "sound")
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_wrong_arguments_get_one_clear_line() -> None:
    tokens, ids, first, steps = (one[0] for one in made_up(0))
    tree = [0, 1], [6, 7], [-0.5, -1.0]
    nan = steps.copy()
    nan[2, 1, 3, 0] = np.nan
    for call, message in (
        (lambda: Trace.from_lattice(tokens, ids, first, steps[:-3]), "must be"),
        (lambda: Trace.from_lattice(tokens, ids, first, nan), r"transitions\[2, 1, 3\]"),
        (lambda: Trace.from_lattice(tokens, ids, first + 1, steps), r"first\[0\]"),
        (lambda: Trace.from_lattice(tokens, ids, first, steps, vocab_size=5), "outside the vocabulary"),
        (lambda: Trace.from_lattice(tokens, np.zeros_like(ids), first, steps), "a token stands twice"),
        (lambda: Trace.from_lattice([tokens], [ids], [first], []), "must be equally many"),
        (lambda: Trace.from_lattice(tokens, ids[0], first, steps), "must have 3 axes"),
        (lambda: Trace.from_trees([1, 2], [tree, tree, tree], horizon=2), "but 3 trees"),
        (lambda: Trace.from_trees([1, 2], [tree], horizon=1), "sequence 0: position 0: .* horizon 1"),
        (lambda: Trace.from_trees([1, 2], [([0, 2], [6, 7], [-0.5, -1.0])], horizon=2), "sequence 0: position 0, node 2"),
        (lambda: Trace.from_chains([1, 2], [1], [[0.5]]), "token_ids: shape"),
        (lambda: Trace.from_chains([1, 2], [[1]], [[0.5]]), "positive"),
    ):  # fmt: skip
        with pytest.raises(DdsimError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
