"""A small engine with vLLM's interface: it schedules a step before the last one's tokens are known, and keeps its own time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass
class Request:
    """A request: its answer, and how much of a whole block the target accepts at each position of it."""

    prompt: int
    answer: list[int]
    chain: list[int]
    given: int = 0
    scheduled: int = 0  # tokens that it has for sure, those in flight counted
    gone: bool = False


@dataclass
class FakeEngine:
    """What `Vllm` reaches for in a `vllm.LLMEngine`.

    ``answers``: by prompt, the answer and what of a block is accepted at each of its positions. A step takes ``step(tokens, requests,
    context)`` seconds.
    """

    answers: dict[tuple[int, ...], tuple[list[int], list[int]]]
    block: int
    seats: int = 64
    lag: int = 1
    host: float = 0.0  # seconds of a step that begins when nothing else is left to do
    breaks: int = 1 << 60  # steps after which it is interrupted
    now: float = 0.0
    idle: bool = False
    waiting: deque[str] = field(default_factory=deque)
    requests: dict[str, Request] = field(default_factory=dict)
    flight: deque[tuple[list[str], int, bool]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.lookup = [0] + [self.block] * self.seats
        self.k = 0
        self.sampler = SimpleNamespace(
            synthetic_conditional_rates=None,
            sampler=SimpleNamespace(
                sampling_states=SimpleNamespace(temperature=SimpleNamespace(gpu=SimpleNamespace(device="cpu")))
            ),
        )
        self.model_executor = SimpleNamespace(
            driver_worker=SimpleNamespace(model_runner=SimpleNamespace(rejection_sampler=self.sampler))
        )
        scheduler = SimpleNamespace(
            dynamic_sd_lookup=self.lookup, has_requests=lambda: bool(self.live()), num_spec_tokens=self.block
        )
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler, batch_queue=self.flight))
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(
                async_scheduling=bool(self.lag), max_num_seqs=self.seats, max_num_batched_tokens=8192
            ),
            compilation_config=SimpleNamespace(
                cudagraph_mode="FULL_AND_PIECEWISE", cudagraph_capture_sizes=[1, 2, 4, 8]
            ),
            cache_config=SimpleNamespace(num_gpu_blocks=20_000, block_size=16, enable_prefix_caching=False),
            model_config=SimpleNamespace(max_model_len=4096),
            num_speculative_tokens=self.block,
        )

    @property
    def llm_engine(self) -> FakeEngine:
        return self

    def clock(self) -> float:
        return self.now

    def wait(self) -> None:
        """Nothing is left to do: the next step's time is the host's, and what it started is paid for later."""
        self.idle = True

    def seconds(self, tokens: int, requests: int, context: float) -> float:
        return 0.004 + 2e-5 * tokens + 1e-4 * requests + 1e-8 * requests * context

    def live(self) -> list[str]:
        return [name for name, request in self.requests.items() if not request.gone]

    def add_request(self, name: str, prompt: dict[str, list[int]], params: tuple[int, Any]) -> None:
        ids, (most, stop) = prompt["prompt_token_ids"], params
        answer, chain = self.answers.get(tuple(ids), ([7] * most, [0] * most))
        answer = answer[:most]
        self.requests[name] = Request(len(ids), answer, chain[:most])
        self.ends = set(stop)

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.requests[name].gone = True

    def has_unfinished_requests(self) -> bool:
        return bool(self.live())

    def step(self) -> list[Any]:
        """Launch a step; give what the one before it decoded."""
        self.breaks -= 1
        if self.breaks < 0:
            raise KeyboardInterrupt
        names = [n for n in self.live() if self.requests[n].scheduled < len(self.requests[n].answer)]
        if names:
            prompts = any(self.requests[n].scheduled == 0 for n in names)
            self.flight.append((names, self.k, prompts))
            for name in names:
                self.requests[name].scheduled = min(
                    self.requests[name].given + len(self.flight), len(self.requests[name].answer)
                )
            self.k = self.lookup[len(names)] if self.lookup else 0
            if len(self.flight) <= self.lag:
                return []
        if not self.flight:
            return []
        names, k, prompts = self.flight.popleft()
        contexts = [self.requests[n].prompt + max(0, self.requests[n].given - 1) for n in names]
        k = 0 if prompts else k
        spent = 0.05 if prompts else self.seconds(len(names) * (k + 1), len(names), float(np.mean(contexts)))
        self.now += self.host if self.idle else spent
        self.idle = False
        outputs = []
        for name in names:
            request = self.requests[name]
            if request.gone:
                continue
            accepted = 0
            if request.given and self.sampler.synthetic_conditional_rates is None:
                accepted = min(k, request.chain[request.given - 1])
            fresh = request.answer[request.given : request.given + accepted + 1]
            request.given += len(fresh)
            request.gone = request.given >= len(request.answer)
            outputs.append(SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=fresh)]))
        return outputs
