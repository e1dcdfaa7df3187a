"""The decode loop: the target's own text whatever is drafted, and round by round what a replay predicts."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2

from ddsim.cost.model import CostModel
from ddsim.cost.table import cost_table
from ddsim.errors import DdsimError
from ddsim.policy import memory
from ddsim.policy import walk as _walk
from ddsim.policy.choose import CHAIN, PREFIX, nodes_of
from ddsim.policy.contract import Policy, decision_table
from ddsim.policy.engine_rules import AdaptiveSteps, DSpark, OnChain
from ddsim.policy.rules import (
    Autoregressive,
    BestFixed,
    CaDDTree,
    Chain,
    DDTree,
    DFlash,
    GreedySteps,
    Hindsight,
    LongRun,
    RoundRatio,
    Schedule,
)
from ddsim.trace.cache import positions_of
from ddsim.trace.calibration import Calibration
from ddsim.trace.trace import Trace, open_trace
from ddsim_reference.decode import Decoded, Event, Piece, decode, stream
from ddsim_reference.decode.text import pieces
from ddsim_reference.decode.trees import Trees
from ddsim_reference.engine.engine import Engine
from ddsim_reference.engine.graphs import Graphs
from ddsim_reference.model import forward
from ddsim_reference.model.config import ModelConfig, Weights
from ddsim_reference.model.sampling import uniforms
from ddsim_reference.model.workloads import Prompt
from ddsim_reference.record import marginals, write_answers
from tests.reference import tiny

COST = CostModel.from_table([1, 8, 64, 2048], [1.0, 1.05, 1.6, 40.0], draft_seconds=0.2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


class Anything(Policy):
    """Random budgets, no draft, chains and their beginnings among them: another tree each round, and ragged ones in a batch."""

    name = "Anything"
    adaptive = False

    def __init__(self, largest: int, seed: int = 0) -> None:
        self.largest, self.rng = largest, np.random.default_rng(seed)

    def choose(self, gains: NDArray[np.float32], costs: Any) -> NDArray[np.int32]:
        drawn = self.rng.integers(CHAIN - 3, self.largest + 1, len(gains))
        return np.where(drawn < CHAIN, PREFIX + drawn - CHAIN, drawn).astype(np.int32)

    def choose_batch(self, gains: NDArray[np.float32], seconds: Any) -> NDArray[np.int32]:
        return self.choose(gains, None)


def test_a_schedule_looks_at_the_requests_that_are_left() -> None:
    """Three answers of different lengths side by side: 1 token of the chain for three, 2 for two, and for the last none."""
    engine = small_vocabulary(batch=3, max_tokens=30)
    prompts = tiny.prompts(3, 9, seed=7)
    schedule = Schedule([(1, 1, 0), (2, 2, 2), (3, 3, 1)])
    running: list[int] = []
    plant = Trees.plant

    def counted(self: Trees, live: list[int], *rest: Any) -> Any:
        bucket = plant(self, live, *rest)
        running.append(len(live))
        assert self.nodes[live].max() <= schedule.k(len(live)) == self.nodes[live].min()
        return bucket

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trees, "plant", counted)
        got = decode(engine, prompts, schedule, max_new_tokens=14)
    wanted = decode(engine, prompts, Autoregressive(), max_new_tokens=14)
    assert [answer.tokens for answer in got] == [answer.tokens for answer in wanted]
    assert running == sorted(running, reverse=True) and running[0] == 3


class Adaptive(Anything):
    """The same budgets, after a look at the gains: its trees are grown whole, then cut."""

    adaptive = True


def small_vocabulary(arch: str = "qwen3", **options: Any) -> Engine:
    """Nine tokens, so that trees of up to 64 nodes are often right for several steps."""
    return tiny.engine(arch, changes={"vocab_size": 9}, **options)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("batch", [1, 4])
def test_trees_write_what_the_target_writes(arch: str, batch: int, count: int) -> None:
    """Random prompts, every budget from 0 to 64 (a third of them where there are few), stop tokens, answers cut at their longest."""
    engine = small_vocabulary(arch, batch=batch, max_tokens=65 * batch, seed=batch)
    prompts = tiny.prompts(count, 9, seed=batch)
    step = min(10, -(-count // 3))
    for first in range(0, count, step):
        part = prompts[first : first + step]
        stop = [(), (3,), (1, 5)][first // step % 3]
        longest = 4 + first % 20
        wanted = decode(engine, part, Autoregressive(), max_new_tokens=longest, stop=stop)
        if batch == 1:
            drafted = [
                decode(engine, [p], DDTree((13 * (first + i)) % 65), max_new_tokens=longest, stop=stop)[0]
                for i, p in enumerate(part)
            ]
        else:
            drafted = decode(engine, part, Anything(64, first), max_new_tokens=longest, stop=stop)
        for a, d in zip(wanted, drafted, strict=True):
            assert d.tokens == a.tokens
            assert sum(r.committed for r in d.rounds) == len(d.tokens) - 1
            ended = d.tokens[-1] in stop
            assert ended or len(d.tokens) == longest
            assert not set(d.tokens[:-1]) & set(stop)


@pytest.mark.parametrize("budget", [0, 1, 7, 64])
def test_a_budget_at_every_prompt(budget: int) -> None:
    engine = small_vocabulary()
    prompts = tiny.prompts(4, 9)
    wanted = decode(engine, prompts, Autoregressive(), max_new_tokens=12)
    drafted = decode(engine, prompts, DDTree(budget), max_new_tokens=12)
    assert [d.tokens for d in drafted] == [a.tokens for a in wanted]
    assert {r.budget for d in drafted for r in d.rounds} == {budget}
    if budget == 0:
        assert {(r.accepted, r.committed) for d in drafted for r in d.rounds} == {(0, 1)}
    if budget == 64:
        assert max(r.accepted for d in drafted for r in d.rounds) >= 2


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_the_decoder_without_drafts_writes_the_targets_greedy_text(arch: str) -> None:
    """Against a dense forward pass over the whole text for every token, and against the recorder's writer."""
    config, weights = tiny.target(arch)
    prompts = tiny.prompts(3, config.vocab_size, seed=5)
    got = decode(Engine(config, tiny.copies(weights), max_context=64), prompts, Autoregressive(), max_new_tokens=10)
    for prompt, answer in zip(prompts, got, strict=True):
        tokens = list(prompt)
        for _ in range(10):
            tokens.append(int(next_logits(config, weights, tokens).argmax()))
        assert answer.tokens == tokens[len(prompt) :]
    assert write_answers(config, weights, prompts, max_new_tokens=10) == [a.tokens for a in got]


def next_logits(config: ModelConfig, weights: Weights, tokens: list[int]) -> torch.Tensor:
    row = torch.tensor([tokens])
    _, hidden = forward.target_features(
        config, weights, forward.target_layers(config, weights), row, torch.arange(len(tokens))[None],
        forward.causal_attention, (0,),
    )  # fmt: skip
    return hidden[0, -1] @ weights["lm_head.weight"].T


@pytest.mark.parametrize("count", [600, pytest.param(5000, marks=pytest.mark.slow)])
def test_samples_have_the_targets_distribution(count: int) -> None:
    """Chi-square over all continuations of 2 tokens, drafted by trees; and they are those of the decoder without drafts."""
    config, weights = tiny.target("qwen3", vocab_size=7, seed=3)
    weights["lm_head.weight"] *= 0.5
    shape, draft_weights = tiny.drafter(config, block_size=4)
    engine = Engine(config, weights, shape, draft_weights, max_context=16, max_tokens=32 * 9, batch=32)
    prompt = [1, 4, 2]
    expected = {}
    first = next_logits(config, weights, prompt).double().softmax(-1)
    for a, b in itertools.product(range(7), repeat=2):
        expected[a, b] = float(first[a] * next_logits(config, weights, [*prompt, a]).double().softmax(-1)[b])
    settings = {"max_new_tokens": 2, "temperature": 1.0, "seed": 11}
    drafted = decode(engine, [prompt] * count, DDTree(8), **settings)
    seen = Counter(tuple(d.tokens) for d in drafted)
    assert sum(r.accepted for d in drafted for r in d.rounds) > count / 10  # drafts do decide
    bins = sorted(expected, key=lambda pair: expected[pair])
    statistic, freedom, e, o = 0.0, -1, 0.0, 0
    for pair in bins:  # neighbours are pooled until each bin expects 5
        e, o = e + count * expected[pair], o + seen[pair]
        if e >= 5 or pair == bins[-1]:
            statistic, freedom, e, o = statistic + (o - e) ** 2 / e, freedom + 1, 0.0, 0
    assert freedom > 15
    assert chi2.sf(statistic, freedom) > 0.001
    plain = decode(engine, [prompt] * 40, Autoregressive(), **settings)
    assert [p.tokens for p in plain] == [d.tokens for d in drafted[:40]]


def test_a_sampled_text_depends_on_seed_and_prompt_only() -> None:
    engine, alone = small_vocabulary(batch=3, max_tokens=200), small_vocabulary()
    prompts = tiny.prompts(5, 9)
    settings: dict[str, Any] = {"max_new_tokens": 14, "temperature": 0.8, "prompt_ids": list("vwxyz")}
    wanted = [a.tokens for a in decode(alone, prompts, Autoregressive(), seed=1, **settings)]
    for policy in (DFlash(), DDTree(20), Anything(60)):
        assert [d.tokens for d in decode(engine, prompts, policy, seed=1, **settings)] == wanted
        assert [d.tokens for d in decode(alone, prompts, policy, seed=1, **settings)] == wanted
    assert [d.tokens for d in decode(alone, prompts, DFlash(), seed=2, **settings)] != wanted
    config, weights = tiny.target("qwen3", vocab_size=9)
    random = [uniforms(1, name, 14) for name in "vwxyz"]
    assert write_answers(config, weights, prompts, max_new_tokens=14, temperature=0.8, random=random) == wanted
    greedy = decode(alone, prompts, DFlash(), max_new_tokens=14)  # temperature 0 is back afterwards
    assert [d.tokens for d in greedy] == [a.tokens for a in decode(alone, prompts, Autoregressive(), max_new_tokens=14)]


def check_batch(batch: int, prompts: list[list[int]]) -> None:
    together = small_vocabulary(batch=batch, max_tokens=65 * batch)
    alone = small_vocabulary()
    for policy in (DDTree(17), DFlash()):
        one = decode(alone, prompts, policy, max_new_tokens=11)
        many = decode(together, prompts, policy, max_new_tokens=11)
        assert [(d.tokens, d.rounds) for d in many] == [(d.tokens, d.rounds) for d in one]


@pytest.mark.parametrize("batch", [2, pytest.param(5, marks=pytest.mark.slow), 8])
def test_a_batch_is_its_requests_alone(batch: int) -> None:
    """Also with more prompts than places, so that places are filled again, and with fewer."""
    check_batch(batch, tiny.prompts(11, 9, seed=batch))
    check_batch(batch, tiny.prompts(batch - 1, 9, seed=batch))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_tree_cut_is_the_tree_grown(batch: int) -> None:
    """Every budget, no draft and chains: the same rounds whether the budget comes before the tree or after it."""
    engine = small_vocabulary(batch=batch, max_tokens=65 * batch)
    prompts = tiny.prompts(5, 9, seed=3)
    grown = decode(engine, prompts, Anything(20, 1), COST, max_new_tokens=14)
    cut = decode(engine, prompts, Adaptive(20, 1), COST, max_new_tokens=14)
    assert [(d.tokens, d.rounds) for d in cut] == [(d.tokens, d.rounds) for d in grown]
    assert {r.budget for d in cut for r in d.rounds} >= {0, engine.drafter.horizon}


class Replayed:
    """A graph in name only: what it replays is launched anew."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def replay(self) -> None:
        with torch.inference_mode():
            self.body()


def replay_by_launching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture no graphs: each body runs once, as when a graph is warmed up, and once more at each replay."""

    def capture(self: Graphs, body: Any) -> Replayed:
        graph = Replayed(body)
        graph.replay()
        return graph

    monkeypatch.setattr(Graphs, "capture", capture)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_warming_up_a_graph_changes_no_answer(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each graph's body runs once more before its first replay."""
    replay_by_launching(monkeypatch)
    plain, graphs = (small_vocabulary(batch=2, max_tokens=65 * 2) for _ in range(2))
    graphs.graphs.on = True
    prompts = tiny.prompts(5, 9, seed=3)
    for policy in (Autoregressive, lambda: Anything(20, 1), DFlash):
        wanted, got = (
            decode(engine, prompts, policy(), max_new_tokens=14, temperature=temperature) for engine in (plain, graphs)
        )
        assert [(d.tokens, d.rounds) for d in got] == [(d.tokens, d.rounds) for d in wanted]
    kinds = {key if isinstance(key, str) else key[0] for key in graphs.graphs.captured}
    assert kinds == {"step", "verify", "commit", "draft"}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 32])
def test_a_big_batch_is_its_requests_alone(batch: int) -> None:
    check_batch(batch, tiny.prompts(3 * batch, 9, seed=batch))


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_caches_are_those_of_a_plain_prefill(arch: str) -> None:
    """Target's and drafter's, after rounds that moved rows."""
    engine, fresh = small_vocabulary(arch, batch=2, max_tokens=130), small_vocabulary(arch, batch=2, max_tokens=130)
    prompts = tiny.prompts(2, 9, seed=2)
    done = decode(engine, prompts, DDTree(40), max_new_tokens=15)
    assert max(r.accepted for d in done for r in d.rounds) >= 2
    for b, (prompt, answer) in enumerate(zip(prompts, done, strict=True)):
        # The last round may have run past the answer's end; what it moved there is right too, but nobody's business.
        text = [*prompt, *answer.tokens[:-1]]
        fresh.prefill(b, text)
        drafted = len(prompt) + sum(r.committed for r in answer.rounds[:-1])
        for name, length in (("stack", len(text)), ("drafter_stack", drafted)):
            for kind in ("keys", "values"):
                mine, plain = (getattr(getattr(e, name), kind)[:, b, :, :length] for e in (engine, fresh))
                torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


# What a replay predicts.


def recorded(
    engine: Engine, prompts: list[list[int]], answers: list[list[int]], most: int, temperature: float = 0.0
) -> Trace:
    """A dense trace of answers by an engine's own models."""
    config, weights = tiny.target(engine.target.arch, vocab_size=engine.target.vocab_size)
    shape, draft_weights = tiny.drafter(config)
    layers = forward.target_layers(config, weights)
    rows = [
        marginals(config, weights, layers, shape, draft_weights, p, a, candidates=most)
        for p, a in zip(prompts, answers, strict=True)
    ]
    return Trace.from_arrays(
        [np.array(a, np.int32) for a in answers], [r[1] for r in rows], [r[0] for r in rows],
        context0=[len(p) for p in prompts], max_budget=most, vocab_size=config.vocab_size, temperature=temperature,
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("arch", "temperature"), [("llama", 0.0), ("qwen3", 1.0)])
def test_rounds_are_those_of_a_replay(arch: str, temperature: float, count: int, tmp_path: Path) -> None:
    """Accepted lengths and budgets of every policy, round by round."""
    engine = small_vocabulary(arch)
    prompts = tiny.prompts(count, 9, seed=7)
    settings = {"max_new_tokens": 14, "temperature": temperature}
    answers = [a.tokens for a in decode(engine, prompts, Autoregressive(), **settings)]
    recorded(engine, prompts, answers, 64, temperature).save(tmp_path / "t")
    trace = open_trace(tmp_path / "t")
    temper = Calibration("temperature", np.zeros(0), np.zeros(0), np.array([0.8, 1.3, 0.9, 1.1, 0.7]), {})
    flatten = Calibration("isotonic", np.log([0.01, 0.2, 0.9]), np.array([0.02, 0.3, 0.8]), np.zeros(0), {})
    fixed = (DFlash(), Chain(1), Chain(3), DDTree(3), DDTree(20), DDTree(64))
    some = fixed if count > 2 else (Chain(3), DDTree(20))  # with other marginals
    for calibration, more in ((None, fixed), (temper, some), (flatten, ())):
        positions = positions_of(trace, calibration=calibration)
        measured = cost_table(COST, positions.context, 64)
        rules = (CaDDTree(), CaDDTree(fill=True), GreedySteps(), RoundRatio(), LongRun().prepare(positions, measured))
        for policy in (*more, *rules):
            costs = decision_table(policy, COST, measured)
            actions = policy.actions(positions.block(0, count), costs)
            accepted = _walk.walk(positions.block(0, count), costs, actions).accepted
            drafted = decode(engine, prompts, policy, COST, calibration=calibration, **settings)
            for s, answer in enumerate(drafted):
                own = slice(int(positions.starts[s]), int(positions.starts[s + 1]))
                visited = np.flatnonzero(accepted[own] >= 0)
                assert [r.position for r in answer.rounds] == visited.tolist()
                assert [r.accepted for r in answer.rounds] == accepted[own][visited].tolist()
                budgets = nodes_of(actions[own], np.full(len(accepted[own]), 64), positions.horizon)[visited]
                assert [r.budget for r in answer.rounds] == budgets.tolist()
    assert int(accepted.max()) >= 2


def test_marginals_are_those_of_the_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every position that the decoder visits: same candidates, same float16 log-probabilities up to their last bit."""
    engine = tiny.engine("qwen3", candidates=32)
    prompts = tiny.prompts(4, 61, seed=3)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    wait = engine.wait

    def look() -> None:
        wait()
        seen.append(tuple(x[0].copy() for x in engine.drafted()))

    config, weights = tiny.target("qwen3")
    shape, draft_weights = tiny.drafter(config)
    layers = forward.target_layers(config, weights)
    for prompt in prompts:
        monkeypatch.setattr(engine, "wait", look)
        seen.clear()
        (answer,) = decode(engine, [prompt], DDTree(30), max_new_tokens=15)
        drafts = seen[-len(answer.rounds) :]  # what came before are waits of the prefill
        logprobs, ids = marginals(
            config, weights, layers, shape, draft_weights, prompt, answer.tokens, candidates=32, positions_per_pass=4
        )
        assert np.all(logprobs[-1] == -np.inf)
        for entry, (mine, mine_ids) in zip(answer.rounds, drafts, strict=True):
            np.testing.assert_allclose(mine, logprobs[entry.position], rtol=2e-3)
            same = mine_ids == ids[entry.position]
            assert same.mean() > 0.99  # neighbours may swap where rounding made them equal


# Batches, costs and events.


class Watching(Policy):
    """DDTree(9) that remembers what it is told."""

    name, online = "Watching", True

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def choose(self, gains: NDArray[np.float32], costs: Any) -> NDArray[np.int32]:
        self.calls.append(("choose", gains.copy(), costs.seconds[costs.row[0]]))
        return np.full(len(gains), 9, np.int32)

    def choose_batch(self, gains: NDArray[np.float32], seconds: NDArray[np.float64]) -> NDArray[np.int32]:
        self.calls.append(("joint", gains.copy(), seconds))
        return np.full(len(gains), 9, np.int32)

    def observe(self, tokens: float, seconds: float) -> None:
        self.calls.append(("observe", tokens, seconds))


def test_policies_are_asked_and_told() -> None:
    cost = CostModel.from_table([1, 500], [1.0, 6.0], draft_seconds=0.5)
    policy = Watching()
    engine = small_vocabulary(batch=2, max_tokens=100)
    done = decode(engine, tiny.prompts(2, 9), policy, cost, max_new_tokens=9)
    kinds = [call[0] for call in policy.calls]
    assert kinds[0::2] == sorted(kinds[0::2], reverse=True)  # joint while both are there, then alone
    assert set(kinds[0::2]) <= {"joint", "choose"} and set(kinds[1::2]) == {"observe"}
    for kind, gains, seconds in policy.calls[0::2]:
        requests = 2 if kind == "joint" else 1
        assert gains.shape == (requests, 99)
        assert np.all(np.diff(gains, axis=1) <= 0)
        nodes = np.arange(len(seconds))
        np.testing.assert_allclose(
            seconds, cost.verify_seconds(nodes + requests, 0, requests) + cost.draft_seconds(requests)
        )
    assert len(policy.calls[0][2]) == 99  # 100 tokens are 98 nodes and 2 roots
    assert sum(call[1] for call in policy.calls[1::2]) == sum(len(d.tokens) - 1 for d in done)


def test_events_tell_every_token_once() -> None:
    engine = small_vocabulary(batch=3, max_tokens=150)
    prompts = tiny.prompts(7, 9)
    for policy in (Autoregressive(), DDTree(30)):
        answers: dict[int, Decoded] = {i: Decoded() for i in range(7)}
        done: list[int] = []
        for event in stream(engine, prompts, policy, max_new_tokens=9, stop=(2,)):
            answers[event.index].tokens += event.tokens
            assert event.index not in done
            if event.round is None:
                assert len(event.tokens) == 1 and event.accepted == 0
            else:
                answers[event.index].rounds.append(event.round)
                assert (event.accepted, len(event.tokens)) == (event.round.accepted, event.round.committed)
            if event.done:
                done.append(event.index)
        assert sorted(done) == list(range(7))
        again = decode(engine, prompts, policy, max_new_tokens=9, stop=(2,))
        assert [a.tokens for a in again] == [answers[i].tokens for i in range(7)]
        assert [a.rounds for a in again] == [answers[i].rounds for i in range(7)]
        seen: list[Event] = []
        decode(engine, prompts, policy, max_new_tokens=9, stop=(2,), on_round=seen.append)
        assert len(seen) == 7 + sum(len(a.rounds) for a in again)


def test_an_answer_of_one_token_has_no_rounds() -> None:
    engine = small_vocabulary(batch=2, max_tokens=130)
    for policy in (Autoregressive(), DDTree(5)):
        done = decode(engine, tiny.prompts(5, 9), policy, max_new_tokens=1)
        assert [(len(d.tokens), d.rounds) for d in done] == [(1, [])] * 5
        stopped = decode(engine, tiny.prompts(5, 9), policy, max_new_tokens=9, stop=range(9))
        assert [d.tokens for d in stopped] == [d.tokens for d in done]
    assert decode(engine, [], DDTree(5), max_new_tokens=4) == []


def test_parts_of_a_round_add_up() -> None:
    engine = small_vocabulary(batch=2, max_tokens=130)
    for answer in decode(engine, tiny.prompts(5, 9), DDTree(20), max_new_tokens=9, timings=True):
        seconds = answer.seconds
        assert set(seconds) == {"ttft", "prefill", "decode", "draft", "tree", "verify", "commit", "host"}
        assert sum(seconds[k] for k in ("draft", "tree", "verify", "commit", "host")) == pytest.approx(
            seconds["decode"]
        )
    (answer,) = decode(engine, tiny.prompts(1, 9), DDTree(20), max_new_tokens=9)
    assert set(answer.seconds) == {"ttft", "prefill", "decode"}


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def test_text_comes_in_whole_characters() -> None:
    text = "na\u00efve \U0001f642 \u65e5\u672c"
    data = list(text.encode())

    class Run:
        def __init__(self) -> None:
            self.answers = [Decoded()]

        def events(self) -> Any:
            for first in range(0, len(data), 3):
                fresh = data[first : first + 3]
                self.answers[0].tokens += fresh
                yield Event(0, fresh, 2, None, first + 3 >= len(data))

    whole: list[Piece] = list(pieces(Run(), [Prompt("a", "b", "c")], Bytes()))  # type: ignore[arg-type]
    parts = [part for piece in whole for part in piece.parts]
    assert "".join(part for part, _ in parts) == text
    assert len(parts) == len(data)
    assert not any("\ufffd" in part for part, _ in parts)
    assert [accepted for _, accepted in parts[:6]] == [True, True, False] * 2
    assert [piece.answer is not None for piece in whole] == [False] * (len(whole) - 1) + [True]


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[1] * 120]}, "prompt 0: 120 tokens and 9 new ones, but the cache holds 128; raise max_context"),
        ({"prompts": [[]]}, "prompt 0: it is empty"),
        ({"prompts": [[1], [9]], "prompt_ids": ["a", "b"]}, "prompt b: a token lies outside the target's vocabulary of 9"),
        ({"prompts": [[-1]]}, "vocabulary"),
        ({"prompt_ids": ["a", "b"]}, "1 prompts, but 2 prompt ids"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"policy": RoundRatio(), "cost": None}, "policy RoundRatio: needs a cost model; give a profile"),
        ({"policy": DDTree(65)}, "policy DDTree(65): a tree of 65 nodes, but the engine holds 64"),
        ({"policy": BestFixed()}, "BestFixed"),
        ({"policy": Hindsight()}, "Hindsight: knows the tokens to come"),
        ({"policy": OnChain(RoundRatio())}, "RoundRatio on chains: weighs the tokens of chains, which the decoder doesn't hand out"),
        ({"policy": DSpark()}, "DSpark: weighs the tokens of chains"),
        ({"max_budget": 65}, "max_budget 65"),
        ({"calibration": Calibration("temperature", np.zeros(0), np.zeros(0), np.ones(3), {})}, "made for horizon 3"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    engine = small_vocabulary()
    settings: dict[str, Any] = {"prompts": [[1, 2]], "policy": DDTree(5), "cost": COST, "max_new_tokens": 9} | change
    with pytest.raises(DdsimError) as caught:
        decode(engine, settings.pop("prompts"), settings.pop("policy"), settings.pop("cost"), **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adaptive_steps_decode_the_same_text() -> None:
    """One K for the batch, by what was accepted: the rule is told of every round."""
    engine = small_vocabulary(batch=2)
    rule = AdaptiveSteps({1: [1, 3], 2: [0, 2]}, num_steps=1, warmup_batches=0, update_interval=1)
    plain, drafted = (
        decode(engine, tiny.prompts(3, 9), policy, max_new_tokens=9) for policy in (Autoregressive(), rule)
    )
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    assert {one.budget for answer in drafted for one in answer.rounds} <= {0, 1, 2, 3}
    assert rule._state[memory.SEEN] + rule._state[memory.SLOT + memory.SEEN] > 0


def test_trees_that_are_too_many_together_are_refused() -> None:
    engine = small_vocabulary(batch=3, max_tokens=65)
    with pytest.raises(DdsimError, match=r"3 requests ask for 93 tokens .* built for 65; raise max_tokens"):
        decode(engine, tiny.prompts(3, 9), DDTree(30), max_new_tokens=9)


def test_without_a_drafter_only_plain_decoding_works() -> None:
    config, weights = tiny.target("qwen3")
    engine = Engine(config, weights, max_context=32)
    with pytest.raises(DdsimError, match=r"policy DDTree\(5\): needs a drafter"):
        decode(engine, [[1]], DDTree(5), max_new_tokens=4)
    assert len(decode(engine, [[1]], Autoregressive(), max_new_tokens=4)[0].tokens) == 4


def test_a_prompt_is_read_in_long_passes_whatever_the_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token waits for the prompt, so small budgets, and none, don't cut it small."""
    from ddsim_reference.decode import text
    from tests.reference import tiny_models

    target, drafter = tiny_models.save(tmp_path)
    made: list[int] = []

    class Spy(Engine):
        def __init__(self, *models: Any, **options: Any) -> None:
            made.append(options["max_tokens"])
            super().__init__(*models, **options)

    monkeypatch.setattr(text, "Engine", Spy)
    long = " ".join(f"word{i % 9}" for i in range(30))
    for policy, limit in (("AR", 1024), ("DDTree:3", 1024), ("DDTree:3", 8), ("DDTree:20", 8), ("RoundRatio", 8)):
        monkeypatch.setattr(text, "PROMPT_TOKENS", limit)
        profile = {"profile": str(tmp_path / "p.json")} if policy == "RoundRatio" else {}
        if profile:
            CostModel.from_table([1, 64], [1.0, 2.0]).save(tmp_path / "p.json")
        list(
            text.decode_prompts(
                target=str(target),
                drafter=str(drafter),
                text=[long],
                policy=policy,
                max_new_tokens=2,
                max_budget=16,
                **profile,
            )
        )
    lengths = made[0]
    assert lengths > 30 and made == [lengths, lengths, 8, 21, 17]
