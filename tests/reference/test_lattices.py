"""Drafters with a head in the engine and the decoder: lattices on the device, trees of them, round by round as replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cost.model import CostModel
from ddsim.cost.table import cost_table
from ddsim.errors import DdsimError
from ddsim.policy import walk as _walk
from ddsim.policy.choose import CHAIN, PREFIX
from ddsim.policy.contract import decision_table
from ddsim.policy.rules import Autoregressive, CaDDTree, Chain, DDTree, DFlash, RoundRatio
from ddsim.trace import folded
from ddsim.trace.cache import positions_of
from ddsim.trace.calibration import Calibration
from ddsim.trace.path import FEATURES, PathCorrection
from ddsim.trace.trace import Trace, open_trace
from ddsim_reference.decode import decode
from ddsim_reference.decode.lattices import DraftedLattices
from ddsim_reference.decode.rows import Grown
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import forward
from ddsim_reference.model.heads import FORMS, lattice
from ddsim_reference.model.sampling import round_conditionals
from ddsim_reference.record import lattices, marginals
from tests.naive import lattice as naive
from tests.reference import tiny
from tests.reference.test_decode import Adaptive, Anything, replay_by_launching

COST = CostModel.from_table([1, 8, 64, 2048], [1.0, 1.05, 1.6, 40.0], draft_seconds=0.2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def small_vocabulary(form: str = "gated", **options: Any) -> Engine:
    """Nine tokens, six of them candidates, so that trees are often right for several steps."""
    return tiny.engine(form=form, changes={"vocab_size": 9}, **({"lattice_width": 6} | options))


def drafted(engine: Engine, roots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What an engine without context drafts behind these roots."""
    engine.set_context(0)
    engine.set_roots(roots)
    engine.draft()
    engine.wait()
    logprobs, ids = engine.drafted()
    return logprobs.copy(), ids.copy()


def as_naive(engine: Engine, slot: int) -> naive.Lattice:
    logprobs, ids = engine.drafted()
    rows = logprobs[slot].astype(float)
    width = rows.shape[1]
    return naive.Lattice(ids[slot].tolist(), rows[0].tolist(), rows[1:].reshape(-1, width, width).tolist())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [{}, {"tables": True}, {"reach": 1}], ids=str)
def test_the_engine_drafts_the_heads_lattice(form: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with the drafter's own output."""
    config, weights = tiny.target()
    shape, draft_weights = tiny.drafter(config)
    head = tiny.head(shape, form, **more)
    engine = Engine(config, weights, shape, draft_weights, head, max_context=64, max_tokens=9, batch=3)
    seen = []
    from ddsim_reference.engine import engine as module

    run = module.run_layers
    monkeypatch.setattr(module, "run_layers", lambda *args, **named: seen.append(run(*args, **named)) or seen[-1])
    logprobs, ids = drafted(engine, [3, 4, 5])
    hidden = seen[-1].unflatten(0, (3, shape.block_size))[:, 1:]
    wanted_ids, first, transitions = lattice(
        *head, hidden, weights["model.embed_tokens.weight"], weights["lm_head.weight"], 16
    )
    assert ids.tolist() == wanted_ids.tolist()
    rows = np.concatenate((first[:, None], transitions.flatten(1, 2)), 1)
    assert np.array_equal(logprobs, round_conditionals(torch.from_numpy(rows)).numpy())
    assert np.exp(logprobs).sum(-1).max() < 1 + 1e-5 and np.isfinite(logprobs).all()
    assert not np.array_equal(logprobs[:, 1], logprobs[:, 2])  # it looks at the token before


@pytest.mark.parametrize("budget", [0, 1, 7, 40, CHAIN, PREFIX - 1, PREFIX - 3])
def test_trees_match_the_naive_twin(budget: int) -> None:
    engine = small_vocabulary(batch=3, max_tokens=180)
    drafted(engine, [1, 2, 3])
    trees = DraftedLattices(engine, None, 50)
    room = 51
    grown = Grown(np.zeros(3, np.int32), *(np.full((3, room), -7, np.int32) for _ in range(3)))
    gains = np.full((2, 50), np.nan, np.float32)
    total = trees.grow(np.array([2, 0]), np.array([budget, 13], np.int32), grown, gains)
    assert total == 2 + int(grown.nodes[2]) + int(grown.nodes[0])
    for slot, asked, own in ((2, budget, gains[0]), (0, 13, gains[1])):
        wanted = as_naive(engine, slot)
        if asked <= CHAIN:
            candidates = [j for _, j in naive.chain(wanted)][: None if asked == CHAIN else PREFIX - asked]
            nodes = [naive.Node(0.0, (), tuple(candidates[: d + 1])) for d in range(len(candidates))]
        else:
            nodes = naive.best_first(wanted, asked)
            np.testing.assert_allclose(own[: len(nodes)], [math.exp(node.value) for node in nodes], rtol=1e-6)
            assert not own[len(nodes) :].any()
        count = int(grown.nodes[slot])
        assert count == len(nodes)
        assert (grown.parents[slot, 0], grown.depths[slot, 0]) == (-1, 0)
        place = {(): 0} | {node.candidates: i + 1 for i, node in enumerate(nodes)}
        for i, node in enumerate(nodes, 1):
            depth = len(node.candidates)
            assert grown.depths[slot, i] == depth
            assert grown.parents[slot, i] == place[node.candidates[:-1]]
            assert grown.tokens[slot, i] == wanted.token_ids[depth - 1][node.candidates[-1]]
    assert (grown.parents[1] == -7).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_lattices_write_what_the_target_writes(batch: int) -> None:
    """Every budget, no draft and chains; cut trees are those grown; a batch is its requests alone."""
    engine, alone = small_vocabulary(batch=batch, max_tokens=65 * batch), small_vocabulary()
    prompts = tiny.prompts(5, 9, seed=3)
    wanted = [a.tokens for a in decode(engine, prompts, Autoregressive(), max_new_tokens=14)]
    grown = decode(engine, prompts, Anything(60, 1), COST, max_new_tokens=14)
    cut = decode(engine, prompts, Adaptive(60, 1), COST, max_new_tokens=14)
    assert [d.tokens for d in grown] == wanted
    assert [(d.tokens, d.rounds) for d in cut] == [(d.tokens, d.rounds) for d in grown]
    for policy in (DDTree(17), DFlash()):
        one, many = (decode(e, prompts, policy, max_new_tokens=14) for e in (alone, engine))
        assert [(d.tokens, d.rounds) for d in many] == [(d.tokens, d.rounds) for d in one]


def test_warming_up_a_graph_changes_no_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    replay_by_launching(monkeypatch)
    plain, graphs = (small_vocabulary(batch=2, max_tokens=65 * 2) for _ in range(2))
    graphs.graphs.on = True
    prompts = tiny.prompts(5, 9, seed=3)
    wanted, got = (decode(engine, prompts, Anything(20, 1), max_new_tokens=14) for engine in (plain, graphs))
    assert [(d.tokens, d.rounds) for d in got] == [(d.tokens, d.rounds) for d in wanted]


def recorded(prompts: list[list[int]], answers: list[list[int]], form: str, most: int, temperature: float) -> Trace:
    """The head's lattices at every position of answers, by plain passes."""
    config, weights = tiny.target(vocab_size=9)
    shape, draft_weights = tiny.drafter(config)
    models = config, weights, forward.target_layers(config, weights), shape, draft_weights, tiny.head(shape, form)
    found = [lattices(*models, p, a, width=6) for p, a in zip(prompts, answers, strict=True)]
    return Trace.from_lattice(
        [np.array(a, np.int32) for a in answers], *zip(*found, strict=True), context0=[len(p) for p in prompts],
        max_budget=most, vocab_size=9, temperature=temperature,
    )  # fmt: skip


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("form", "temperature"), [("gated", 0.0), ("static", 1.0)])
def test_rounds_are_those_of_a_replay(form: str, temperature: float, count: int, tmp_path: Path) -> None:
    """Accepted tokens and budgets of chains, of trees of 3 to 64 nodes and of adaptive policies, round by round."""
    engine = small_vocabulary(form)
    prompts = tiny.prompts(count, 9, seed=7)
    options: dict[str, Any] = {"max_new_tokens": 14, "temperature": temperature}
    answers = [a.tokens for a in decode(engine, prompts, Autoregressive(), **options)]
    recorded(prompts, answers, form, 64, temperature).save(tmp_path / "t")
    trace = open_trace(tmp_path / "t")
    flatten = Calibration("isotonic", np.log([0.01, 0.2, 0.9]), np.array([0.02, 0.3, 0.8]), np.zeros(0), {})
    fixed = (DFlash(), Chain(2), DDTree(3), DDTree(8), DDTree(20), DDTree(64))
    most = 0
    for calibration, policies in ((None, (*fixed, RoundRatio(), CaDDTree())), (flatten, (RoundRatio(),))):
        positions = positions_of(trace, calibration=calibration, cache=False)
        measured = cost_table(COST, positions.context, 64)
        for policy in policies:
            costs = decision_table(policy, COST, measured)
            actions = policy.actions(positions.block(0, count), costs)
            accepted = _walk.walk(positions.block(0, count), costs, actions).accepted
            got = decode(engine, prompts, policy, COST, calibration=calibration, **options)
            for s, (answer, text) in enumerate(zip(got, answers, strict=True)):
                own = slice(int(positions.starts[s]), int(positions.starts[s + 1]))
                visited = np.flatnonzero(accepted[own] >= 0)
                assert answer.tokens == text
                assert [r.position for r in answer.rounds] == visited.tolist()
                assert [r.accepted for r in answer.rounds] == accepted[own][visited].tolist()
                if policy.fixed is not None and policy.fixed > 0:
                    assert {r.budget for r in answer.rounds} == {policy.fixed}
            most = max(most, int(accepted.max()))
    assert most >= 2


def test_recorded_in_passes_of_any_size() -> None:
    config, weights = tiny.target()
    shape, draft_weights = tiny.drafter(config)
    head, layers = tiny.head(shape, reach=1), forward.target_layers(config, weights)
    prompt, answer = tiny.prompts(2, 61, seed=4, longest=20)
    models = config, weights, layers, shape, draft_weights, head, prompt, answer
    whole, parts = (lattices(*models, width=8, positions_per_pass=n) for n in (64, 3))
    assert (whole[0] == parts[0]).all()
    assert np.all(whole[1][-1] == -np.inf) and np.all(whole[2][-1] == -np.inf)
    for a, b in zip(whole[1:], parts[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1 / 64)


@given(st.integers(0, 2**31 - 1), st.sampled_from([0.1, 3.0, 30.0, 900.0]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_conditionals_are_rounded_as_in_traces(seed: int, spread: float, whole: bool) -> None:
    """Rows that sum to 1, or to less; twice rounded is once rounded."""
    x = (torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) * spread).log_softmax(-1)
    x = x if whole else x[:, :3]
    got = round_conditionals(x)
    np.testing.assert_array_equal(got.numpy(), folded.round_conditionals(x.numpy()))
    assert torch.equal(round_conditionals(got), got)


@pytest.mark.parametrize("batch", [1, 3])
def test_corrected_rows_are_those_of_a_replay(batch: int) -> None:
    """A path correction makes lattices of rows: every round as replayed, alone and side by side."""
    engine = tiny.engine(changes={"vocab_size": 9}, batch=batch, max_tokens=65 * batch)
    prompts = tiny.prompts(4, 9, seed=7)
    options: dict[str, Any] = {"max_new_tokens": 14}
    answers = [a.tokens for a in decode(engine, prompts, Autoregressive(), **options)]
    config, weights = tiny.target(vocab_size=9)
    shape, draft_weights = tiny.drafter(config)
    models = config, weights, forward.target_layers(config, weights), shape, draft_weights
    rows = [marginals(*models, p, a, candidates=9) for p, a in zip(prompts, answers, strict=True)]
    trace = Trace.from_arrays(
        [np.array(a, np.int32) for a in answers], [r[1] for r in rows], [r[0] for r in rows],
        context0=[len(p) for p in prompts], max_budget=64, vocab_size=9,
    )  # fmt: skip
    rng, none = np.random.default_rng(1), np.zeros(0, np.int32)
    made = PathCorrection(
        rng.normal(0, 0.7, FEATURES), rng.uniform(0.6, 1.4, 5), rng.normal(0, 0.3, 5), none, none, none,
        np.zeros((0, 2), np.int32), 64,
    )  # fmt: skip
    path = Calibration("path", np.zeros(0), np.zeros(0), np.zeros(0), {}, path=made)
    found = []
    for calibration in (None, path):
        positions = positions_of(trace, calibration=calibration, cache=False)
        costs = cost_table(COST, positions.context, 64)
        for policy in (DFlash(), DDTree(3), DDTree(20), DDTree(64)):
            actions = policy.actions(positions.block(0, 4), costs)
            accepted = _walk.walk(positions.block(0, 4), costs, actions).accepted
            got = decode(engine, prompts, policy, COST, calibration=calibration, **options)
            for s, (answer, text) in enumerate(zip(got, answers, strict=True)):
                own = accepted[int(positions.starts[s]) : int(positions.starts[s + 1])]
                visited = np.flatnonzero(own >= 0)
                assert answer.tokens == text
                assert [(r.position, r.accepted) for r in answer.rounds] == [(p, own[p]) for p in visited]
            found.append(accepted.tolist())
    assert found[:4] != found[4:]


def test_corrections_that_do_not_fit_are_refused() -> None:
    none = np.zeros(0, np.int32)

    def refused(horizon: int, most: int, message: str, **options: Any) -> None:
        made = PathCorrection(
            np.zeros(FEATURES), np.ones(horizon), np.zeros(horizon), none, none, none, np.zeros((0, 2), np.int32), most
        )
        path = Calibration("path", np.zeros(0), np.zeros(0), np.zeros(0), {}, path=made)
        with pytest.raises(DdsimError, match=message):
            decode(tiny.engine(**options), [[1, 2]], DDTree(4), max_new_tokens=4, calibration=path)

    refused(7, 8, "made for horizon 7, but the drafter's is 5")
    refused(5, 30, "made for 30 candidates a depth, but the engine keeps 20", candidates=20)
    refused(5, 8, "kind path is for marginals", form="gated")


def test_temperatures_of_marginals_are_refused() -> None:
    temper = Calibration("temperature", np.zeros(0), np.zeros(0), np.ones(5), {})
    with pytest.raises(DdsimError, match="kind temperature is for marginals") as caught:
        decode(small_vocabulary(), [[1, 2]], DDTree(4), max_new_tokens=4, calibration=temper)
    assert "\n" not in str(caught.value)
