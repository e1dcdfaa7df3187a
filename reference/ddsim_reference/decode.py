"""The decode loop: draft, choose a budget, build the trees, verify them in one pass, commit, until every prompt is answered.

The budget comes from the very policy objects that replay a trace, the marginals are rounded as a trace rounds them, and above
temperature 0 each token's random number belongs to its place in the answer: so rounds, accepted lengths and text are those that
a replay of the recorded answer predicts. The host waits twice a round, and most of its work falls into the drafter's time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from ddsim.cost.model import CostModel, open_cost
from ddsim.cost.table import CONTEXT_STEP, Costs, CostTable, cost_rows, cost_table, paid
from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN
from ddsim.policy.contract import Policy, ask, ask_joint, decision_table
from ddsim.policy.parse import policy_of
from ddsim.trace.calibration import Calibration
from ddsim.tree import kernels as _kernels
from ddsim.tree.kernels import NO_RANK
from ddsim.tree.rows import kept_pairs
from ddsim_reference.engine.engine import Bucket, Engine
from ddsim_reference.limits import check_sampling
from ddsim_reference.model.checkpoint import load_drafter, load_target
from ddsim_reference.model.config import check_pair
from ddsim_reference.model.device import check_device, number_type
from ddsim_reference.model.sampling import choose, uniforms
from ddsim_reference.model.workloads import Prompt, choose_prompts, encode_all

LAG = 2
"""Autoregressive steps that the device is ahead of the host, so that it never waits for it."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one request.

    Attributes
    ----------
    position : int
        p: the round's root is the answer's token p.
    budget : int
        Nodes verified, the root not counted.
    accepted : int
        Drafted tokens that were committed.
    committed : int
        Tokens committed: one more than accepted, unless the answer ended within the tree.
    """

    position: int
    budget: int
    accepted: int
    committed: int


@dataclass(frozen=True, slots=True)
class Event:
    """What a request has just committed.

    Attributes
    ----------
    index : int
        Which prompt.
    tokens : list of int
        In order.
    accepted : int
        How many of them, from the first, the drafter had proposed.
    round : Round or None
        None for the first token, which the prompt itself yields.
    done : bool
        The answer is complete.
    """

    index: int
    tokens: list[int]
    accepted: int
    round: Round | None
    done: bool


@dataclass
class Decoded:
    """An answer and how it came about.

    Attributes
    ----------
    tokens : list of int
        The answer, its stop token included.
    rounds : list of Round
        In order; for autoregressive decoding one a token after the first.
    seconds : dict of str to float
        ``prefill``: prompt and first token. ``decode``: from the first token to the last, a round's time shared equally by the
        requests in it; tokens a second are ``(len(tokens) - 1) / seconds["decode"]``. With ``timings``, the parts of
        ``decode``: ``draft``, ``verify``, ``commit`` (the device's), ``tree`` (budget, tree, packing) and ``host`` (the rest).
    """

    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def decode(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    policy: Policy,
    cost: CostModel | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    prompt_ids: Sequence[str] | None = None,
    calibration: Calibration | None = None,
    max_budget: int | None = None,
    stop: Sequence[int] | None = None,
    on_round: Callable[[Event], None] | None = None,
    timings: bool = False,
) -> list[Decoded]:
    """Answer prompts, ``engine.batch`` of them side by side; a free place goes to the next prompt.

    Parameters
    ----------
    prompts : sequence of sequence of int
        Token ids.
    policy : Policy
        Chooses every round's budget (``choose`` for a lone request, ``choose_joint`` for several).
    cost : CostModel, optional
        Prices the budgets; policies that don't look at gains need none.
    max_new_tokens : int
        Longest answer.
    temperature, seed, prompt_ids
        0 is greedy. Above it, ``uniforms(seed, prompt_ids[i])`` are the numbers behind answer i; ids default to "0", "1", ...
    calibration : Calibration, optional
        Of the marginals ("temperature": rows pruned and corrected as a replay does it) or of the gains ("isotonic").
    max_budget : int, optional
        Largest budget that policies may choose; by default the largest that candidates and ``max_tokens`` allow.
    stop : sequence of int, optional
        Tokens that end an answer; the target's own by default.
    on_round : callable, optional
        Called with every Event, while the device drafts.
    timings : bool
        Time the parts of each round.

    Returns
    -------
    list of Decoded
        In the prompts' order.

    Raises
    ------
    DdsimError
        A prompt that is empty or doesn't fit the cache with its answer, a policy without what it needs, a negative
        temperature, or budgets beyond what the engine holds.
    """
    run = _Run(
        engine, prompts, policy, cost, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        prompt_ids=prompt_ids, calibration=calibration, max_budget=max_budget, stop=stop, timings=timings,
    )  # fmt: skip
    for event in run.events():
        if on_round is not None:
            on_round(event)
    return run.answers


def stream(
    engine: Engine, prompts: Sequence[Sequence[int]], policy: Policy, cost: CostModel | None = None, **options: Any
) -> Iterator[Event]:
    """`decode` as an iterator of events, with the same options."""
    return _Run(engine, prompts, policy, cost, **options).events()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as text.

    Attributes
    ----------
    prompt : Prompt
    parts : list of (str, bool)
        Text of each token, and whether the drafter had proposed it. A token that ends within a character is held back and
        comes with the one that completes it.
    answer : Decoded or None
        The whole, once it is complete.
    """

    prompt: Prompt
    parts: list[tuple[str, bool]]
    answer: Decoded | None


def decode_prompts(
    *,
    target: str,
    drafter: str | None = None,
    prompts: Sequence[str] = (),
    text: Sequence[str] = (),
    policy: str | Policy = "DDTree:63",
    profile: str | None = None,
    calibration: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    limit: int | None = None,
    batch: int = 1,
    max_budget: int = 512,
) -> Iterator[Piece]:
    """Answer prompts with models loaded by name, piece by piece as they are decoded.

    Parameters
    ----------
    target, drafter : str
        As ``load_target`` and ``load_drafter`` take them; without a drafter only the policy AR works.
    prompts, text : sequence of str
        Workloads or JSONL files, and messages typed in.
    policy : str or Policy
        As ``parse_policy`` takes it.
    profile : str, optional
        Latency profile or saved cost model; policies that weigh gains against cost need it.
    calibration : str, optional
        File of a calibration.
    dtype : str, optional
        By default bfloat16 on a GPU and float32 elsewhere.
    limit : int, optional
        At most so many prompts of each workload.
    batch : int
        Requests side by side.
    max_budget : int
        Largest tree.

    Raises
    ------
    DdsimError
        Whatever is missing or doesn't fit, before the first piece.
    """
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch=batch)
    chosen = choose_prompts(prompts, limit)
    chosen += [Prompt(f"text-{i + 1}", "text", message) for i, message in enumerate(text)]
    if not chosen:
        raise DdsimError("no prompts: name a workload or a JSONL file, or give a text")
    rule = policy_of(policy)
    if rule.drafts and drafter is None:
        raise DdsimError(f"policy {rule.name}: needs a drafter; give one, or decode with AR")
    cost = None if profile is None else open_cost(profile)
    correction = None if calibration is None else Calibration.load(calibration)
    kind = ("bfloat16" if check_device(device).type == "cuda" else "float32") if dtype is None else dtype
    config, weights, tokenizer = load_target(target, dtype=number_type(kind), device=device)
    shape, drafter_weights = None, None
    if drafter is not None and rule.drafts:
        shape, drafter_weights = load_drafter(drafter, dtype=number_type(kind), device=device)
        check_pair(config, shape, drafter)
    ids = encode_all(tokenizer, chosen, config, max_new_tokens)
    largest = max_budget if rule.adaptive else getattr(rule, "budget", None) or 0
    largest = max(largest, 0 if shape is None else shape.horizon)
    engine = Engine(
        config, weights, shape, drafter_weights, max_context=max(map(len, ids)) + max_new_tokens,
        max_tokens=largest + batch if rule.adaptive else (largest + 1) * batch, batch=batch, candidates=max(largest, max_budget),
    )  # fmt: skip
    run = _Run(
        engine, ids, rule, cost, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        prompt_ids=[prompt.id for prompt in chosen], calibration=correction,
    )  # fmt: skip
    return _pieces(run, chosen, tokenizer)


def _pieces(run: _Run, prompts: Sequence[Prompt], tokenizer: Any) -> Iterator[Piece]:
    shown = [("", 0) for _ in prompts]  # text of the tokens since the last whole character, and where they begin
    for event in run.events():
        tokens = run.answers[event.index].tokens
        before, begin = shown[event.index]
        parts = []
        for i in range(len(event.tokens)):
            end = len(tokens) - len(event.tokens) + i + 1
            now = tokenizer.decode(tokens[begin:end])
            whole = not now.endswith("\ufffd")
            parts.append((now[len(before) :] if whole else "", i < event.accepted))
            if whole:
                # One token stays as what comes before the next: some tokenizers strip a text's first space.
                begin = max(end - 1, 0)
                before = tokenizer.decode(tokens[begin:end])
                if before.endswith("\ufffd"):
                    begin, before = end, ""
        shown[event.index] = before, begin
        yield Piece(prompts[event.index], parts, run.answers[event.index] if event.done else None)


class _Run:
    """The state of one call of `decode`."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        policy: Policy,
        cost: CostModel | None,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        prompt_ids: Sequence[str] | None = None,
        calibration: Calibration | None = None,
        max_budget: int | None = None,
        stop: Sequence[int] | None = None,
        timings: bool = False,
    ) -> None:
        self.engine, self.prompts, self.policy, self.cost = engine, prompts, policy_of(policy, joint=True), cost
        self.longest, self.seed, self.calibration = max_new_tokens, seed, calibration
        self.names = [str(i) for i in range(len(prompts))] if prompt_ids is None else list(prompt_ids)
        self.stops = frozenset(engine.target.eos_token_ids if stop is None else stop)
        self.timings = timings
        if max_new_tokens < 1:
            raise DdsimError(f"max_new_tokens {max_new_tokens}: must be at least 1")
        if len(self.names) != len(prompts):
            raise DdsimError(f"{len(prompts)} prompts, but {len(self.names)} prompt ids")
        for name, prompt in zip(self.names, prompts, strict=True):
            if len(prompt) == 0:
                raise DdsimError(f"prompt {name}: it is empty; give at least one token")
            if len(prompt) + max_new_tokens > engine.max_context:
                raise DdsimError(
                    f"prompt {name}: {len(prompt)} tokens and {max_new_tokens} new ones, but the cache holds "
                    f"{engine.max_context}; raise max_context"
                )
            if not 0 <= min(prompt) <= max(prompt) < engine.target.vocab_size:
                raise DdsimError(
                    f"prompt {name}: a token lies outside the target's vocabulary of {engine.target.vocab_size}"
                )
        engine.set_temperature(temperature)
        if policy.drafts:
            self._prepare_drafting(max_budget)
        self.answers = [Decoded(seconds={"prefill": 0.0, "decode": 0.0}) for _ in prompts]
        self.waiting = deque(range(len(prompts)))
        self.slots: list[int | None] = [None] * engine.batch  # the prompt in each row of the cache
        self.context = np.zeros(engine.batch, np.int64)
        self.roots = np.zeros(engine.batch, np.int32)
        self.clock = 0.0

    def _prepare_drafting(self, max_budget: int | None) -> None:
        engine = self.engine
        if engine.drafter is None:
            raise DdsimError(f"policy {self.policy.name}: needs a drafter; give one, or decode with AR")
        exact = engine.candidates if engine.candidates < engine.target.vocab_size else engine.max_tokens - 1
        most = min(exact, engine.max_tokens - 1)
        if max_budget is not None and not 0 <= max_budget <= most:
            raise DdsimError(
                f"max_budget {max_budget}: the engine holds trees of 0 to {most} nodes; raise max_tokens and candidates"
            )
        self.most = most if max_budget is None else max_budget
        if self.cost is None and self.policy.adaptive:
            raise DdsimError(f"policy {self.policy.name}: needs a cost model; give a profile")
        batch, horizon = engine.batch, engine.drafter.horizon
        self.horizon = horizon
        room = max(self.most, horizon) + 1
        self.parents, self.depths, self.ranks = (np.zeros((batch, room), np.int32) for _ in range(3))
        self.values = np.zeros(room)
        self.nodes = np.zeros(batch, np.int32)
        self.budgets = np.zeros(batch, np.int32)
        self.gains = np.zeros((batch, self.most), np.float32)
        self.no_truth = _read_only(np.full((batch, horizon), -1, np.int32))
        self.no_ranks, self.no_chain = np.zeros((batch, horizon), np.int32), np.zeros(batch, np.uint8)
        logprobs, ids = engine.drafted()
        self.rows = _read_only(logprobs.reshape(-1))
        self.ids = _read_only(ids.reshape(-1))
        self.offsets = _read_only(np.arange(batch * horizon + 1, dtype=np.int64) * engine.candidates)
        if self.calibration is not None and self.calibration.kind == "temperature":
            wanted = len(self.calibration.temperatures)
            if wanted != horizon:
                raise DdsimError(f"calibration: made for horizon {wanted}, but the drafter's is {horizon}")
        self.tables: dict[int, CostTable] = {}  # by number of requests in the round

    # Prompts and answers.

    def events(self) -> Iterator[Event]:
        """Decode everything."""
        self.engine.set_context(0)
        return self._speculative() if self.policy.drafts else self._autoregressive()

    def _admit(self, slot: int) -> Event | None:
        """Give a free slot to the next prompt; None if there is none left."""
        if not self.waiting:
            return None
        engine, began = self.engine, time.perf_counter()
        index = self.waiting.popleft()
        prompt = self.prompts[index]
        dice = None
        if engine.temperature > 0:
            numbers = uniforms(self.seed, self.names[index], self.longest)
            engine.set_dice(slot, len(prompt), numbers)
            dice = torch.from_numpy(numbers[:1]).to(engine.device)
        token = int(choose(engine.prefill(slot, prompt), engine.temperature, dice))
        engine.set_root(slot, token)
        self.context[slot], self.roots[slot] = len(prompt), token
        answer = self.answers[index]
        answer.tokens.append(token)
        answer.seconds["prefill"] = time.perf_counter() - began
        done = token in self.stops or self.longest == 1
        self.slots[slot] = None if done else index
        return Event(index, [token], 0, None, done)

    def _fill(self) -> Iterator[Event]:
        """Prompts for all free slots; those that end with their first token make way at once."""
        for slot in range(self.engine.batch):
            while self.slots[slot] is None:
                event = self._admit(slot)
                if event is None:
                    break
                yield event

    def _append(self, index: int, fresh: list[int]) -> tuple[list[int], bool]:
        """Add tokens up to the answer's end; those added, and whether it has ended."""
        tokens = self.answers[index].tokens
        fresh = fresh[: self.longest - len(tokens)]
        done = len(tokens) + len(fresh) >= self.longest
        if not self.stops.isdisjoint(fresh):
            end = next(i for i, token in enumerate(fresh) if token in self.stops)
            fresh, done = fresh[: end + 1], True
        tokens += fresh
        return fresh, done

    # Without drafts.

    def _autoregressive(self) -> Iterator[Event]:
        engine = self.engine
        device = engine.device.type == "cuda"
        ring = [torch.zeros(engine.batch, dtype=torch.int32, pin_memory=device) for _ in range(LAG + 1)]
        marks = [torch.cuda.Event() if device else None for _ in ring]
        engine.active.fill_(1)
        yield from self._fill()
        launched = [0] * engine.batch  # steps since each slot's prompt
        flying: deque[tuple[int, list[int | None]]] = deque()
        turn = 0
        self.clock = time.perf_counter()
        while flying or any(index is not None for index in self.slots):
            going = [index is not None and launched[b] < self.longest - 1 for b, index in enumerate(self.slots)]
            if any(going):
                engine.step()
                ring[turn].copy_(engine.roots, non_blocking=True)
                mark = marks[turn]
                if mark is not None:
                    mark.record()
                flying.append((turn, [index if goes else None for index, goes in zip(self.slots, going, strict=True)]))
                turn = (turn + 1) % len(ring)
                for b, goes in enumerate(going):
                    launched[b] += goes
                    if goes and launched[b] == self.longest - 1:
                        engine.active[b] = 0
                if len(flying) <= LAG:
                    continue
            which, owners = flying.popleft()
            mark = marks[which]
            if mark is not None:
                mark.synchronize()
            now = time.perf_counter()
            share = (now - self.clock) / sum(owner is not None for owner in owners)
            self.clock = now
            freed = []
            for b, (index, token) in enumerate(zip(owners, ring[which].tolist(), strict=True)):
                if index is None or self.slots[b] != index:
                    continue  # launched before its answer was known to have ended
                answer = self.answers[index]
                position = len(answer.tokens) - 1
                answer.seconds["decode"] += share
                fresh, done = self._append(index, [token])
                answer.rounds.append(Round(position, 0, 0, 1))
                if done:
                    self.slots[b] = None
                    freed.append(b)
                yield Event(index, fresh, 0, answer.rounds[-1], done)
            for b in freed:
                engine.active[b] = 0
            if freed and self.waiting:
                yield from self._fill()
                for b in freed:
                    if self.slots[b] is not None:
                        launched[b] = 0
                        engine.active[b] = 1
                self.clock = time.perf_counter()

    # With drafts.

    def _speculative(self) -> Iterator[Event]:
        engine, policy = self.engine, self.policy
        marks = None
        if self.timings and engine.device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        yield from self._fill()
        live = [b for b, index in enumerate(self.slots) if index is not None]
        self.clock = time.perf_counter()
        parts = {"draft": self._draft(marks) if live else 0.0}
        while live:
            began = time.perf_counter()
            bucket = self._plant(live)
            bucket.upload()
            planted = time.perf_counter()
            if marks is not None:
                marks[0].record()
            engine.verify(bucket)
            verified = time.perf_counter()
            if marks is not None:
                marks[1].record()
            engine.commit(bucket)
            if marks is not None:
                marks[2].record()
            if engine.ready is not None:  # on the CPU it would only delay the events
                engine.draft()
                if marks is not None:
                    marks[3].record()
                engine.ready.record()
            engine.wait_commit()
            if marks is not None:
                marks[2].synchronize()
            now = time.perf_counter()
            spent, self.clock = now - self.clock, now
            if self.timings:
                parts["tree"] = planted - began
                if marks is not None:
                    parts["verify"], parts["commit"] = (marks[i].elapsed_time(marks[i + 1]) / 1e3 for i in (0, 1))
                else:
                    parts["verify"], parts["commit"] = verified - planted, now - verified
                parts["host"] = spent - sum(parts.values())
            total = 0
            outcome = engine.collect()
            tree_tokens, starts = bucket.host["token"], bucket.host["start"]
            for b in live:
                index = self.slots[b]
                assert index is not None
                path, bonus = outcome[b]
                first = int(starts[b])
                drafted = [int(tree_tokens[first + j]) for j in path[1:]]
                answer = self.answers[index]
                position = len(answer.tokens) - 1
                fresh, done = self._append(index, [*drafted, bonus])
                kept = min(len(drafted), len(fresh))
                total += len(fresh)
                entry = Round(position, int(self.nodes[b]), kept, len(fresh))
                answer.rounds.append(entry)
                self._charge(answer, spent / len(live), parts, len(live))
                self.context[b] += len(path)
                self.roots[b] = bonus
                if done:
                    self.slots[b] = None
                yield Event(index, fresh, kept, entry, done)
            if policy.online:
                policy.observe(total, spent)
            refilled = False
            if self.waiting and any(index is None for index in self.slots):
                yield from self._fill()
                refilled = True
                self.clock = time.perf_counter()
            live = [b for b, index in enumerate(self.slots) if index is not None]
            if not live:
                break
            if engine.ready is None or refilled:
                parts = {"draft": self._draft(marks)}
            else:
                engine.ready.synchronize()
                parts = {"draft": marks[2].elapsed_time(marks[3]) / 1e3 if marks is not None else 0.0}

    def _charge(self, answer: Decoded, share: float, parts: dict[str, float], requests: int) -> None:
        seconds = answer.seconds
        seconds["decode"] += share
        if self.timings:
            for name, value in parts.items():
                seconds[name] = seconds.get(name, 0.0) + value / requests

    def _draft(self, marks: list[Any] | None) -> float:
        """Draft and wait for the marginals; seconds if they are asked for."""
        began = time.perf_counter()
        if marks is not None:
            marks[2].record()
        self.engine.draft()
        if marks is not None:
            marks[3].record()
        self.engine.wait()
        if marks is not None:
            return float(marks[2].elapsed_time(marks[3])) / 1e3
        return time.perf_counter() - began

    def _plant(self, live: list[int]) -> Bucket:
        """Budgets, trees and a packed bucket for the requests in these slots."""
        engine = self.engine
        rows, offsets, ids = self.rows, self.offsets, self.ids
        if self.calibration is not None and self.calibration.kind == "temperature":
            rows, offsets, ids = self._calibrated()
        slots = np.array(live, np.int64)
        budgets = self._budgets(live, slots, rows, offsets)
        if len(budgets) and max(budgets) > self.most:
            raise DdsimError(
                f"policy {self.policy.name}: a tree of {max(budgets)} nodes, but the engine holds {self.most}; "
                "raise max_tokens and candidates"
            )
        total = _grow(
            rows, offsets, self.horizon, slots, np.asarray(budgets, np.int32), self.parents, self.depths, self.ranks,
            self.values, self.nodes,
        )  # fmt: skip
        if total > engine.max_tokens:
            raise DdsimError(
                f"policy {self.policy.name}: {len(live)} requests ask for {total} tokens in one forward pass, but the "
                f"engine was built for {engine.max_tokens}; raise max_tokens or lower the budget"
            )
        bucket = engine.bucket_for(total)
        _pack(
            offsets, ids, self.horizon, slots, self.nodes, self.parents, self.depths, self.ranks, self.roots,
            bucket.per_tile, *bucket.fields,
        )  # fmt: skip
        return bucket

    def _budgets(
        self, live: list[int], slots: NDArray[np.int64], rows: NDArray[np.float32], offsets: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        policy = self.policy
        gains = self.gains
        if policy.adaptive:
            _kernels.gains_and_ranks(
                rows, offsets, self.no_truth, self.horizon, 0, len(gains), gains, self.no_ranks, self.no_chain
            )  # fmt: skip
            if len(live) < len(gains):
                gains = gains[slots]
            if self.calibration is not None:
                gains = self.calibration.apply_gains(gains)
        else:
            gains = gains[: len(live)]
        if len(live) == 1:
            return ask(policy, gains, self._costs(int(self.context[live[0]])), most=NO_RANK)
        return ask_joint(policy, gains, *self._joint_seconds(live), most=NO_RANK)

    def _costs(self, context: int) -> Costs:
        if self.cost is None:
            return _FREE
        table = self._table(1)
        step = -(-context // CONTEXT_STEP)
        return cost_rows(table, slice(step, step + 1))

    def _joint_seconds(self, live: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds by nodes in all, float64 [M + 1]: what the policy decides on, and what is paid."""
        if self.cost is None:
            return _FREE.seconds[0], _FREE.seconds[0]
        table = self._table(len(live))
        row = -(-int(self.context[live].sum()) // (len(live) * CONTEXT_STEP))
        return table.seconds[row], paid(table).seconds[row]

    def _table(self, requests: int) -> CostTable:
        """Prices at every multiple of the context step, worked out once, by the costs that the policy decides on."""
        if requests not in self.tables:
            assert self.cost is not None
            contexts = np.arange(0, self.engine.max_context + CONTEXT_STEP, CONTEXT_STEP)
            most = self.most if requests == 1 else self.engine.max_tokens - requests
            costs = cost_table(self.cost, contexts, most, requests)
            self.tables[requests] = decision_table(self.policy, self.cost, costs)
        return self.tables[requests]

    def _calibrated(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]]:
        """Marginals pruned as in a trace, then corrected: rows, offsets, ids."""
        assert self.calibration is not None
        logprobs, ids = self.engine.drafted()
        kept = np.maximum(kept_pairs(logprobs, self.most, check=False), logprobs[:, :, 0] > -np.inf)
        inside = np.arange(logprobs.shape[2]) < kept[:, :, None]
        offsets = np.concatenate([[0], np.cumsum(kept.reshape(-1), dtype=np.int64)])
        rows = self.calibration.apply_rows(logprobs[inside], offsets)
        return _read_only(rows), _read_only(offsets), _read_only(ids[inside])


_FREE = CostTable(np.ones((1, 1)), np.ones(1), np.zeros(1, np.int32), np.zeros(1, np.int64))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The type of array that the kernels of ``ddsim.tree`` are compiled for."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@njit(cache=True, nogil=True)
def _grow(rows, offsets, horizon, slots, budgets, parents, depths, ranks, values, nodes):  # type: ignore[no-untyped-def]
    """Build the tree of each slot into its row of parents, depths, ranks [batch, >= budget + 1]; tokens in all, roots too."""
    total = 0
    for i in range(len(slots)):
        b = slots[i]
        if budgets[i] == CHAIN:
            n = 0
            parents[b, 0], depths[b, 0], ranks[b, 0] = -1, 0, -1
            while n < horizon:
                first = offsets[b * horizon + n]
                if first == offsets[b * horizon + n + 1] or rows[first] == -np.inf:
                    break
                parents[b, n + 1], depths[b, n + 1], ranks[b, n + 1] = n, n + 1, 0
                n += 1
        else:
            own = offsets[b * horizon : (b + 1) * horizon + 1]
            most = max(budgets[i], 0)
            n = _kernels_draft_tree(rows, own, horizon, most, parents[b], depths[b], ranks[b], values)
        nodes[b] = n
        total += n + 1
    return total


_kernels_draft_tree = _kernels.draft_tree


@njit(cache=True, nogil=True)
def _pack(  # type: ignore[no-untyped-def]
    offsets, ids, horizon, slots, nodes, parents, depths, ranks, roots, per_tile,
    token, request, index, depth, parent, mask, tiles, start, size,
):  # fmt: skip
    """Fill a bucket's staging fields as ``Bucket.pack`` does."""
    start[:] = 0
    size[:] = 0
    at = 0
    tile = 0
    for i in range(len(slots)):
        b = slots[i]
        m = nodes[b] + 1
        words = (m + 31) // 32
        start[b] = at
        size[b] = m
        for j in range(m):
            t = at + j
            above = parents[b, j]
            level = depths[b, j]
            if j == 0:
                token[t] = roots[b]
                for w in range(words):
                    mask[t, w] = 0
            else:
                token[t] = ids[offsets[b * horizon + level - 1] + ranks[b, j]]
                for w in range(words):
                    mask[t, w] = mask[at + above, w]
            mask[t, j >> 5] |= np.uint32(1) << np.uint32(j & 31)
            request[t] = b
            index[t] = j
            depth[t] = level
            parent[t] = above
        for first in range(0, m, per_tile):
            tiles[tile, 0] = b
            tiles[tile, 1] = at + first
            tiles[tile, 2] = min(per_tile, m - first)
            tiles[tile, 3] = first
            tile += 1
        at += m
    for t in range(at, len(token)):  # padding keeps no keys
        token[t] = 0
        request[t] = 0
        index[t] = -1
        depth[t] = 0
        parent[t] = -1
    for t in range(tile, len(tiles)):
        tiles[t, 0] = 0
        tiles[t, 1] = 0
        tiles[t, 2] = 0
        tiles[t, 3] = 0
