"""The decode loop: draft, choose a budget, build the trees, verify them in one pass, commit, until every prompt is answered.

The budget comes from the very policy objects that replay a trace, the marginals are rounded as a trace rounds them, and above
temperature 0 each token's random number belongs to its place in the answer: so rounds, accepted lengths and text are those that
a replay of the recorded answer predicts. The host waits twice a round, and most of its work falls into the drafter's time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.policy.contract import Policy
from ddsim.policy.parse import policy_of
from ddsim.trace.calibration import Calibration
from ddsim_reference.decode.answers import Decoded, Event, Round
from ddsim_reference.decode.trees import Trees
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model.sampling import choose, uniforms

LAG = 2
"""Autoregressive steps that the device is ahead of the host, so that it never waits for it."""


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
        Chooses every round's budget (``choose`` for a lone request, ``choose_batch`` for several).
    cost : CostModel, optional
        Prices the budgets; policies that don't look at gains need none.
    max_new_tokens : int
        Longest answer.
    temperature, seed, prompt_ids
        0 is greedy. Above it, ``uniforms(seed, prompt_ids[i])`` are the numbers behind answer i; ids default to "0", "1", ...
    calibration : Calibration, optional
        Of the marginals ("temperature": rows pruned and corrected as a replay does it), of the gains ("isotonic"), or a correction
        by the token before ("path": it makes lattices of rows).
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
    run = Run(
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
    return Run(engine, prompts, policy, cost, **options).events()


class Run:
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
        self.engine, self.prompts, self.policy = engine, prompts, policy_of(policy, joint=True)
        self.longest, self.seed = max_new_tokens, seed
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
            self.trees = Trees(engine, self.policy, cost, calibration, max_budget)
        self.answers = [Decoded(seconds={"ttft": 0.0, "prefill": 0.0, "decode": 0.0}) for _ in prompts]
        self.waiting = deque(range(len(prompts)))
        self.slots: list[int | None] = [None] * engine.batch  # the prompt in each row of the cache
        self.context = np.zeros(engine.batch, np.int64)
        self.roots = np.zeros(engine.batch, np.int32)
        self.clock = self.began = 0.0

    # Prompts and answers.

    def events(self) -> Iterator[Event]:
        """Decode everything."""
        self.began = time.perf_counter()
        self.engine.set_context(0)
        return self._speculative() if self.policy.drafts else self._autoregressive()

    def _admit(self, slot: int) -> Event | None:
        """Give a free slot to the next prompt; None if there is none left."""
        if not self.waiting:
            return None
        engine, began = self.engine, time.perf_counter()
        index = self.waiting.popleft()
        prompt = self.prompts[index]
        first = None
        if engine.temperature > 0:
            numbers = uniforms(self.seed, self.names[index], self.longest)
            engine.set_uniforms(slot, len(prompt), numbers)
            first = torch.from_numpy(numbers[:1]).to(engine.device)
        token = int(choose(engine.prefill(slot, prompt), engine.temperature, first))
        engine.set_root(slot, token)
        self.context[slot], self.roots[slot] = len(prompt), token
        answer = self.answers[index]
        answer.tokens.append(token)
        now = time.perf_counter()
        answer.seconds["prefill"], answer.seconds["ttft"] = now - began, now - self.began
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
            texts = [self.answers[index].tokens for index in self.slots if index is not None]
            bucket = self.trees.plant(live, self.context, self.roots, texts)
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
                entry = Round(position, int(self.trees.nodes[b]), kept, len(fresh))
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
