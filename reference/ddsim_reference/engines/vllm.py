"""vLLM in this process, step by step, with the schedule of K and what is accepted switched between calls.

Its model runner drafts the whole block at every step, at K = 0 too, and the scheduler cuts it to the K of as many requests as the step
before had. With asynchronous scheduling a step is launched before the tokens of the last one are known.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ddsim.errors import DdsimError
from ddsim_reference.model.checkpoint import checkpoint_folder
from ddsim_reference.model.config import DrafterConfig, ModelConfig, check_pair
from ddsim_reference.model.fields import Fields, model_config, read_json
from ddsim_reference.model.formats import read_drafter

KNOWN = ("0.26.0",)
"""Versions whose insides are those that this module reaches into."""

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Environment that is set unless it is set already: the scheduler must be in this process to be switched."""

QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
"""The same for what it prints: standard output is for answers."""

BATCHED_TOKENS = 8192
"""Tokens of the largest step, prompts included."""

IN_FLIGHT = 8
"""Steps after which nothing is left of requests that have ended."""

Ranges = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Call:
    """What one call with several prompts did.

    Attributes
    ----------
    tokens : list of list of int
        Answers, in the prompts' order.
    steps : list of (float, dict)
        When each step's tokens were there, seconds from the call's start, and how many each request gained.
    seconds : float
        Of the whole call.
    """

    tokens: list[list[int]]
    steps: list[tuple[float, dict[int, int]]]
    seconds: float


@dataclass(frozen=True)
class Steps:
    """Steps with the same number of requests and K.

    Attributes
    ----------
    batch, k : int
    context : float
        Tokens of a request at the first of them.
    seconds : tuple of float
    host : tuple of float
        Seconds that a step takes on the host alone, begun when the GPU has nothing left to do; empty where that can't be told.
    """

    batch: int
    k: int
    context: float
    seconds: tuple[float, ...]
    host: tuple[float, ...] = ()


def known_version() -> str:
    """The version of the installed vLLM, if it is known here; nothing is imported."""
    try:
        found = version("vllm")
    except PackageNotFoundError:
        raise DdsimError(
            f"engine vllm: vLLM isn't installed; on a machine with a GPU run pip install vllm=={KNOWN[-1]}"
        ) from None
    if found.split("+")[0] not in KNOWN:
        raise DdsimError(
            f"engine vllm: version {found} isn't known here ({', '.join(KNOWN)}); its scheduler may work otherwise"
        )
    return found


def read_pair(target: str, drafter: str) -> tuple[ModelConfig, DrafterConfig]:
    """The configurations of two folders in Hugging Face format, which must fit each other."""
    for name in (target, drafter):
        if name.endswith(".gguf") or not (checkpoint_folder(name) / "config.json").is_file():
            raise DdsimError(f"{name}: vLLM takes folders in Hugging Face format; ddsim convert writes them")
    path = checkpoint_folder(target) / "config.json"
    config = model_config(read_json(path), path)
    path = checkpoint_folder(drafter) / "config.json"
    shape, _ = read_drafter(Fields(read_json(path), path))
    check_pair(config, shape, drafter)
    return config, shape


class Vllm:
    """A running vLLM.

    Parameters
    ----------
    llm : vllm.LLM
        With a drafter, a schedule that names every K in ``ks``, and prompts as token ids.
    ks : sequence of int
        Every K that it may be set to: graphs were captured for these.
    version : str
    clock : callable
        Seconds.
    sampling : callable, optional
        Makes the parameters of a request out of (most tokens, tokens that end it); vLLM's own by default.
    wait : callable, optional
        Returns once the GPU has nothing left to do; None where there is none.
    """

    name = "vllm"
    title = "vLLM"

    def __init__(
        self,
        llm: Any,
        ks: Sequence[int],
        version: str,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sampling: Callable[[int, Sequence[int]], Any] | None = None,
        wait: Callable[[], object] | None = None,
    ) -> None:
        self.engine = llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.ks, self.version, self.clock = tuple(ks), version, clock
        self.sampling = _sampling if sampling is None else sampling
        self.wait = wait
        self.asked = 0
        if self.ks != (0,) and getattr(self.scheduler, "dynamic_sd_lookup", None) is None:
            raise DdsimError("engine vllm: it runs without a schedule of K, so K can't be switched")

    @property
    def seats(self) -> int:
        """The most requests side by side."""
        return int(self.engine.vllm_config.scheduler_config.max_num_seqs)

    @property
    def longest(self) -> int:
        """The most tokens of a request, its prompt included."""
        return int(self.engine.vllm_config.model_config.max_model_len)

    @property
    def room(self) -> int:
        """Tokens that its cache holds."""
        cache = self.engine.vllm_config.cache_config
        return int(cache.num_gpu_blocks) * int(cache.block_size)

    @property
    def lag(self) -> int:
        """Steps that are launched before the tokens of a step are known."""
        return int(bool(self.engine.vllm_config.scheduler_config.async_scheduling))

    def about(self) -> dict[str, Any]:
        """What its figures depend on, as it runs."""
        config = self.engine.vllm_config
        return {
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
            "cudagraph_capture_sizes": list(config.compilation_config.cudagraph_capture_sizes),
            "max_num_seqs": int(config.scheduler_config.max_num_seqs),
            "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
            "max_model_len": int(config.model_config.max_model_len),
            "num_speculative_tokens": int(config.num_speculative_tokens or 0),
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "environment": {name: os.environ.get(name) for name in SETTINGS},
        }

    def schedule(self, ranges: Ranges) -> None:
        """Set K by the number of requests, as vLLM's own schedules do; gaps and the tail carry the K before."""
        wanted = {k for _, _, k in ranges}
        if not wanted <= set(self.ks):
            raise DdsimError(
                f"engine vllm: was started for K of {sorted(self.ks)}, and has no graphs for {sorted(wanted - set(self.ks))}"
            )
        lookup = getattr(self.scheduler, "dynamic_sd_lookup", None)
        if lookup is None:  # it has no drafter
            return
        for first, _, k in sorted(ranges):
            lookup[first:] = [k] * len(lookup[first:])

    def accept(self, rates: Sequence[float] | None) -> bool:
        """Fix how often each drafted token is accepted, given those before; None: as the target says. Whether it could be done."""
        try:
            worker = self.engine.model_executor.driver_worker
            sampler = getattr(worker, "worker", worker).model_runner.rejection_sampler
            if rates is None:
                sampler.synthetic_conditional_rates = None
            else:
                torch = importlib.import_module("torch")
                sampler.synthetic_conditional_rates = torch.tensor(
                    rates, dtype=torch.float32, device=sampler_device(sampler)
                )
        except AttributeError:
            return False
        return True

    def decode(self, prompts: Sequence[Sequence[int]], most: int, stop: Sequence[int]) -> Call:
        """Hand it all prompts in one call, greedily, and step until the last answer has ended."""
        began = self.clock()
        place = {self._add(ids, most, stop): i for i, ids in enumerate(prompts)}
        tokens: list[list[int]] = [[] for _ in prompts]
        steps = []
        while self.engine.has_unfinished_requests():
            fresh = {place[output.request_id]: list(output.outputs[0].token_ids) for output in self.engine.step()}
            for i, found in fresh.items():
                tokens[i] += found
            if any(fresh.values()):
                steps.append((self.clock() - began, {i: len(found) for i, found in fresh.items() if found}))
        spent = self.clock() - began
        self._settle()
        return Call(tokens, steps, spent)

    def steps(
        self, batch: int, context: int, *, warm: int, count: int, alone: int = 0, gain: float = 1.0, down: bool = False,
        seed: int = 0,
    ) -> list[Steps]:  # fmt: skip
        """Time ``count`` steps of ``batch`` requests with random prompts at every K, each after ``warm`` others.

        Prompts are shorter than ``context`` by half of what will be decoded, so that steps lie around it.

        Parameters
        ----------
        alone : int
            Further steps at every K that begin when the GPU has nothing left to do: what they take is the host's time.
        gain : float
            Tokens that a step is expected to decode, over all Ks.
        down : bool
            Take the Ks the other way around.
        """
        rng = np.random.default_rng([seed, batch, context])
        steps = len(self.ks) * (warm + count + alone)
        total = round(steps * gain)
        length = max(2, min(context - total // 2, self.longest - 2 * total - IN_FLIGHT))
        names = {}
        for _ in range(batch):
            names[self._add(rng.integers(1, 1000, length).tolist(), (max(self.ks) + 1) * steps + 64, ())] = 0
        ks = self.ks[::-1] if down else self.ks
        self.schedule([(1, self.seats, ks[0])])

        def step() -> float | None:
            """Seconds of one step and of taking what it gave, if every request gained something."""
            began = self.clock()
            fresh = {one.request_id: list(one.outputs[0].token_ids) for one in self.engine.step()}
            for name, tokens in fresh.items():
                names[name] += len(tokens)
            spent = self.clock() - began
            return spent if sum(map(bool, fresh.values())) == batch else None

        for _ in range(64 + 2 * batch * (1 + length // 256)):  # prompts
            if step() is not None and min(names.values()):
                break
        measured = []
        for k in ks:
            self.schedule([(1, self.seats, k)])
            for _ in range(warm):
                step()
            at = length + sum(names.values()) / batch
            seconds = [step() for _ in range(count)]
            host = []
            if self.wait is not None and self.lag:
                for _ in range(alone):
                    self.wait()
                    host.append(step())
            measured.append(Steps(batch, k, at, _known(seconds), _known(host)))
        self.engine.abort_request(list(names))
        self._settle()
        return measured

    def close(self) -> None:
        """Give back what it holds; a failure of that is no failure of what was measured."""
        with contextlib.suppress(Exception):
            self.engine.engine_core.shutdown()

    def _add(self, ids: Sequence[int], most: int, stop: Sequence[int]) -> str:
        name = str(self.asked)
        self.asked += 1
        self.engine.add_request(name, {"prompt_token_ids": list(ids)}, self.sampling(most, stop))
        return name

    def _settle(self) -> None:
        """Let steps in flight end, of requests that have ended."""
        for _ in range(IN_FLIGHT):
            if not getattr(self.core, "batch_queue", None) and not self.scheduler.has_requests():
                return
            self.engine.step()


def _known(seconds: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(s for s in seconds if s is not None)


def sampler_device(sampler: Any) -> Any:
    """Where a rejection sampler keeps its tensors."""
    return sampler.sampler.sampling_states.temperature.gpu.device


def _sampling(most: int, stop: Sequence[int]) -> Any:
    module = importlib.import_module("vllm")
    kind = importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA
    return module.SamplingParams(
        temperature=0.0,
        max_tokens=most,
        stop_token_ids=list(stop),
        ignore_eos=not stop,
        detokenize=False,
        output_kind=kind,
    )


def start(
    target: str, drafter: str | None, *, block: int, ks: Sequence[int], seats: int, length: int, dtype: str = "bfloat16",
    seed: int = 0, memory: float = 0.9,
) -> Vllm:  # fmt: skip
    """Start vLLM with a drafter and a schedule that names every K.

    Parameters
    ----------
    target, drafter : str
        Folders in Hugging Face format. Without a drafter it decodes without speculation.
    block : int
        Tokens that are drafted; no K is larger.
    ks : sequence of int
    seats, length : int
        The most requests side by side, and the longest of them in tokens.
    memory : float
        Share of the GPU's memory that it may take.

    Raises
    ------
    DdsimError
        vLLM isn't installed, is of another version, or doesn't start.
    """
    found = known_version()
    for name, value in (SETTINGS | QUIET).items():
        os.environ.setdefault(name, value)
    speculative: dict[str, Any] = {}
    if drafter is not None:
        # The draft has graphs only if some range has the block's K, and a K has graphs only if some range has it.
        ranges = [[i + 1, i + 1, k] for i, k in enumerate(dict.fromkeys((block, *ks)))]
        speculative["speculative_config"] = {
            "method": "dflash",
            "model": drafter,
            "num_speculative_tokens": block,
            "num_speculative_tokens_per_batch_size": ranges,
        }
    try:
        llm = importlib.import_module("vllm").LLM(
            model=target, dtype=dtype, skip_tokenizer_init=True, enable_prefix_caching=False, max_model_len=length,
            max_num_seqs=seats, max_num_batched_tokens=max(BATCHED_TOKENS, 2 * seats * (block + 1)), seed=seed,
            gpu_memory_utilization=memory, **speculative,
        )  # fmt: skip
        wait = importlib.import_module("torch").cuda.synchronize
    except Exception as error:
        line = " ".join(str(error).split())
        raise DdsimError(f"engine vllm: doesn't start: {type(error).__name__}: {line:.300}") from None
    return Vllm(llm, ks, found, wait=wait)
