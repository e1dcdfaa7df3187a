"""Two drafts of the same texts: gains counted by walks, texts matched by prompt, what differs left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsim
from ddsim.errors import DdsimError
from ddsim.replay.bootstrap import few
from ddsim.replay.compare import compare
from ddsim.trace.trace import Trace
from ddsim.view.budgets import draft_gains
from ddsim.view.style import canvas

HORIZON, WIDTH, WORDS = 3, 2, 5


def drafts(rng: np.random.Generator, length: int) -> tuple[Any, Any, Any, Any]:
    """Tokens of a text, and candidates at each of its positions with probabilities of their own and behind each other."""
    tokens = rng.integers(0, WORDS, length)
    ids = np.argsort(rng.random((length, HORIZON, WORDS)), axis=-1)[..., :WIDTH]
    first = np.log(rng.dirichlet(np.ones(WIDTH + 1), (length,))[..., :WIDTH])
    rest = np.log(rng.dirichlet(np.ones(WIDTH + 1), (length, HORIZON - 1, WIDTH))[..., :WIDTH])
    return tokens, ids, first, rest


def recorded(texts: list[tuple[Any, Any, Any, Any]], names: list[str], lattice: bool, seed: int = 0) -> Trace:
    """The texts as lattices, or as rows of other candidates."""
    tokens, ids, first, rest = ([text[k] for text in texts] for k in range(4))
    workloads = ["a" if name < "p2" else "b" for name in names]
    if lattice:
        return Trace.from_lattice(tokens, ids, first, rest, prompt_id=names, workload=workloads, max_budget=6)
    rng = np.random.default_rng(seed)
    rows = [np.log(-np.sort(-rng.dirichlet(np.ones(WIDTH + 1), (len(t), HORIZON)))[..., :WIDTH]) for t in tokens]
    return Trace.from_arrays(tokens, ids, rows, prompt_id=names, workload=workloads, max_budget=5)


def walked(trace: Trace, number: int, nodes: int) -> tuple[int, int]:
    """Tokens and rounds of one sequence, tree by tree."""
    block = next(trace.subset([number]).blocks())
    p, rounds = 0, 0
    while p < len(block) - 1:
        tree = block.proposal.tree(p, nodes)
        assert tree.tokens is not None
        at, here = 0, p
        while here < len(block) - 1:
            child = [
                c for c in range(1, len(tree)) if tree.parents[c] == at and tree.tokens[c] == block.tokens[here + 1]
            ]
            if not child:
                break
            at, here = child[0], here + 1
        p, rounds = here + 1, rounds + 1
    return len(block) - 1, rounds


@given(st.integers(0, 2**31), st.integers(1, 4), st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_gains_are_those_of_walks_whatever_the_order(seed: int, count: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    texts = [drafts(rng, int(rng.integers(2, 12))) for _ in range(count)]
    names = [f"p{n}" for n in range(count)]
    order = [n for n in order if n < count]
    first, second = (
        recorded(texts, names, lattice=False),
        recorded([texts[n] for n in order], [names[n] for n in order], True),
    )
    found = compare(first, second, budgets=(1, 3, 9), bootstrap=20)
    assert found.names == ("marginals", "lattices") and not found.notes and found.prompts == count
    table = found.table()
    assert table["policy"].tolist() == ["DFlash", "DDTree(1)", "DDTree(3)"] * (
        len(table) // 3
    )  # 9 is beyond what both answer
    pooled = table[table["workload"] == table["workload"].iloc[-1]].set_index("policy")
    for policy, nodes in (("DDTree(1)", 1), ("DDTree(3)", 3)):
        for column, trace in (("first", first), ("second", second)):
            sums = np.sum([walked(trace, n, nodes) for n in range(count)], axis=0)
            assert pooled.loc[policy, column] == pytest.approx(sums[0] / sums[1])
        assert pooled.loc[policy, "gain"] == pytest.approx(
            pooled.loc[policy, "second"] / pooled.loc[policy, "first"] - 1
        )


def accepts(trace: Trace, number: int, position: int, nodes: int) -> int:
    """Tokens that a tree accepts at one position, walked."""
    block = next(trace.subset([number]).blocks())
    tree = block.proposal.tree(position, nodes)
    at, found = 0, 0
    while position + found + 1 < len(block):
        here = [
            c
            for c in range(1, len(tree))
            if tree.parents[c] == at and tree.tokens[c] == block.tokens[position + found + 1]
        ]  # type: ignore[index]
        if not here:
            break
        at, found = here[0], found + 1
    return found


@given(st.integers(0, 2**31), st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_agreement_is_counted_at_every_position(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    texts, names = [drafts(rng, int(rng.integers(2, 9))) for _ in range(count)], [f"p{n}" for n in range(count)]
    traces = [recorded(texts, names, lattice=lattice) for lattice in (False, True)]
    table = compare(*traces, budgets=(1, 3), bootstrap=20).table()
    for nodes in (1, 3):
        same = [
            accepts(traces[0], n, p, nodes) == accepts(traces[1], n, p, nodes)
            for n in range(count) for p in range(len(texts[n][0]) - 1)
        ]  # fmt: skip
        assert table[table["policy"] == f"DDTree({nodes})"]["agree"].iloc[-1] == pytest.approx(np.mean(same))
    assert (compare(traces[0], traces[0], bootstrap=20).table()["agree"] == 1).all()


def test_what_only_one_has_is_left_out_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [drafts(rng, 9) for _ in range(4)]
    first = recorded(texts, ["p0", "p1", "p2", "p3"], lattice=False)
    other = ((texts[2][0] + 1) % WORDS, *texts[2][1:])
    second = recorded([texts[3], other, texts[0]], ["p3", "p2", "p0"], lattice=True)
    second.save(tmp_path / "second")
    first.save(tmp_path / "first")
    for a, b in ((first, second), (ddsim.open_trace(tmp_path / "first"), ddsim.open_trace(tmp_path / "second"))):
        found = ddsim.compare(a, b, bootstrap=50)
        assert found.prompts == 2 and found.positions == 18 and found.pairs == ((0, 2), (3, 0))
        assert found.notes == (
            "Left out: 1 sequence that only one of the recordings has.",
            "Left out: 1 of 3 prompts, whose texts differ.",
        )
        alone = compare(a.subset([0, 3]), b.subset([0, 2]), bootstrap=50)
        assert alone.table().equals(found.table()) and not alone.notes
    said = [found.sentence, f"Warning: {few(2)}", *found.notes]
    assert " ".join(str(found).split()).startswith(" ".join(said)) and "Tokens a round\n" in str(found)
    assert not found.to_json()["enough_prompts"]
    assert found.sentence.startswith("Lattices commit ") and "in trees of 4 nodes" in found.sentence
    assert found.to_json()["gains"][0]["workload"] == "a" and found.to_json()["names"] == ["marginals", "lattices"]
    assert found.table((4,))["policy"].tolist() == ["DFlash", "DDTree(4)"] * 3
    ax = draft_gains(found.table(), found.names, ax=canvas())
    assert len(ax.containers) == 3
    drawn = ax.containers[0].lines[0].get_ydata()
    assert np.isnan(drawn[1]) and np.allclose(np.delete(drawn, 1), found.table()["gain"][:4])


def test_the_same_draft_gains_nothing() -> None:
    texts = [drafts(np.random.default_rng(5), 9)]
    trace = recorded(texts, ["p0"], lattice=True)
    found = compare(trace, trace)
    assert found.names == ("the first", "the second") and (found.table()["gain"] == 0).all()
    assert found.sentence.endswith(": 0.0 %, on the same text.") and found.to_json()["gains"][0]["low"] is None


def test_nothing_in_common_is_refused() -> None:
    rng = np.random.default_rng(7)
    texts = [drafts(rng, 9) for _ in range(2)]
    trace = recorded(texts[:1], ["p0"], lattice=False)
    with pytest.raises(DdsimError, match="share no text"):
        compare(trace, recorded(texts[:1], ["p1"], lattice=True))
    other = ((texts[0][0] + 1) % WORDS, *texts[0][1:])
    with pytest.raises(DdsimError, match="prompts are the same but no text is"):
        compare(trace, recorded([other], ["p0"], lattice=True))
