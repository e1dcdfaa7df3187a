"""What a round of the decoder costs on a device: verification, drafting and host time, measured the way a round pays them."""

from __future__ import annotations

import gc
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddsim.cost.profile import DraftSample, HostSample, PrefillSample, Profile, VerifySample, read_profile
from ddsim.errors import DdsimError
from ddsim.policy.rules import DDTree
from ddsim_reference.decode import decode
from ddsim_reference.engine.buckets import BUCKETS, TokenTree, check_buckets, pack_mask
from ddsim_reference.engine.engine import Engine
from ddsim_reference.limits import LARGEST_SEED, MOST_REPEATS, check_range
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights
from ddsim_reference.model.device import device_name, number_type
from ddsim_reference.model.heads import DraftHead
from ddsim_reference.model.sampling import choose
from ddsim_reference.model.shapes import random_drafter, random_target, shape_configs
from ddsim_reference.model.widen import SHAPES, widened
from ddsim_reference.model.workloads import choose_prompts, encode_all

CONTEXTS = (64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
SHORT = 8192
"""Contexts to here are measured in an engine whose cache holds no more, as most answers have: attention launches work by its length."""
PROMPTS = (64, 128, 129, 256, 257, 512, 513, 1024, 2048, 8192)
"""Tokens of prompts to measure: both sides of the usual passes, since a prompt that a pass holds pays that pass's bucket."""
MOST_TOKENS = 1024

# The device's own limits.


def event_seconds(call: Callable[[], object], device: torch.device, repeats: int, warmup: int = 2) -> list[float]:
    """Seconds of each of ``repeats`` calls: between CUDA events, so that the host's waiting is not in them, or by the clock."""
    for _ in range(warmup):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return times
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    size = 2**31 if device.type == "cuda" else 2**25
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / statistics.median(event_seconds(lambda: target.copy_(source), device, 8))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on random values."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    out: Tensor = torch.empty(n, n, device=device, dtype=dtype)
    return 2 * n**3 / statistics.median(event_seconds(lambda: torch.mm(a, b, out=out), device, 12))


# The profile.


def random_tree(
    tokens: int, horizon: int, vocabulary: int, rng: np.random.Generator, near: int | None = None
) -> TokenTree:
    """A root and a draft tree of random shape and tokens; each parent is one of the ``near`` tokens before its child, if given."""
    parents, depths = np.full(tokens, -1, np.int32), np.zeros(tokens, np.int32)
    seen = np.zeros((tokens, tokens), bool)
    seen[0, 0] = True
    for i in range(1, tokens):
        parent = int(rng.integers(0 if near is None else max(0, i - near), i))
        while depths[parent] >= horizon:
            parent = int(parents[parent])
        parents[i], depths[i] = parent, depths[parent] + 1
        seen[i] = seen[parent]
        seen[i, i] = True
    return TokenTree(rng.integers(0, vocabulary, tokens).astype(np.int32), parents, depths, pack_mask(seen))


def profiled_tokens(engine: Engine, most: int) -> list[int]:
    """Token counts to measure, all requests together: each bucket and the count above the bucket before it; powers of two
    where none are padded. A request sends one token at least."""
    if engine.device.type == "cpu":
        counts = {2**i for i in range(most.bit_length())}
    else:
        sizes = [b for b in engine.sizes if b <= most]
        counts = {*sizes, *(b + 1 for b in sizes[:-1])}
    return sorted({engine.batch, *(m for m in counts if engine.batch <= m <= most)})


class _Clock:
    """Times of calls by key: between CUDA events, the host kept ahead of the device, or by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.marks: list[tuple[Any, Any, Any]] = []
        self.seconds: dict[Any, list[float]] = {}

    def time(self, key: Any, call: Callable[[], object]) -> None:
        """One call."""
        if not self.gpu:
            begin = time.perf_counter()
            call()
            self.seconds.setdefault(key, []).append(time.perf_counter() - begin)
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(400_000)  # a fifth of a millisecond, in which the host enqueues the call
        first.record()
        call()
        last.record()
        self.marks.append((key, first, last))

    def collect(self) -> None:
        """Wait, and read the events."""
        if self.gpu:
            torch.cuda.synchronize()
        for key, first, last in self.marks:
            self.seconds.setdefault(key, []).append(first.elapsed_time(last) / 1e3)
        self.marks = []


def measure(
    engine: Engine,
    *,
    tokens: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    seed: int = 0,
    temperature: float = 0.0,
    sweep_done: Callable[[int, dict[Any, list[float]]], None] | None = None,
) -> dict[Any, list[float]]:
    """Seconds of verification by ("verify", tokens, context, batch), of drafting by ("draft", context, batch), in shuffled sweeps.

    Verification is what a round pays for it: upload of the trees, the target's pass with head and argmax, above temperature 0 sampling. Its ``tokens`` are
    all requests' together, spread evenly. Drafting is the drafter's pass, top-k and the copy to the host.
    """
    engine.set_temperature(temperature)
    batch = engine.batch
    shares = {m: [m // batch + (b < m % batch) for b in range(batch)] for m in tokens}
    trees = {
        n: random_tree(n, 15, engine.target.vocab_size, np.random.default_rng(seed + n), 24)
        for n in {n for s in shares.values() for n in s}
    }
    clock = _Clock(engine.device)
    points: list[tuple[Any, ...]] = [("verify", m, c, batch) for m in tokens for c in contexts]
    if engine.drafter is not None:
        points += [("draft", c, batch) for c in contexts]

    def call(point: tuple[Any, ...]) -> None:
        if point[0] == "draft":
            engine.draft()
        else:
            bucket = engine.bucket_for(point[1])
            bucket.upload()
            engine.verify(bucket)
            if temperature > 0:
                engine.sample(bucket)

    def ready(point: tuple[Any, ...]) -> None:
        engine.set_context(point[-2])
        if point[0] == "verify":
            engine.wait()
            engine.bucket_for(point[1]).pack([trees[n] for n in shares[point[1]]])

    for m in tokens:  # captures and compiles
        for point in points:
            if point[0] == "verify" and point[1] == m:
                ready(point)
                call(point)
                break
    if engine.drafter is not None:
        engine.set_context(contexts[0])
        engine.draft()
    engine.wait()
    order = random.Random(seed)
    for sweep in range(repeats):
        order.shuffle(points)
        for point in points:
            ready(point)
            clock.time(point, lambda p=point: call(p))  # type: ignore[misc]
        clock.collect()
        if sweep_done is not None:
            sweep_done(sweep, clock.seconds)
    return clock.seconds


def prompts_to_measure(most: int) -> list[tuple[int, int]]:
    """(tokens, context) of prefills that end within ``most`` positions.

    Examples
    --------
    >>> prompts_to_measure(130)
    [(64, 0), (128, 0), (129, 0), (64, 8), (64, 32)]
    """
    tokens = [t for t in PROMPTS if t <= most]
    if len(tokens) < 2:
        tokens = sorted({max(1, most // 4), most})
    contexts = sorted({0, most // 16, most // 4, most - min(PROMPTS[-1], most // 4)})
    return [(t, c) for c in contexts for t in tokens if t + c <= most]


def measure_prefill(
    engine: Engine, points: Sequence[tuple[int, int]], *, repeats: int, seed: int = 0
) -> dict[Any, list[float]]:
    """Seconds from handing over a prompt to its first token by ("prefill", tokens, context, batch), by the clock, in shuffled sweeps.

    The prompt is one request's, in chunks of the engine's largest pass; what the drafter reads of it is computed too.
    """
    engine.set_temperature(0.0)
    rng, order = np.random.default_rng(seed), random.Random(seed)
    prompt = rng.integers(0, engine.target.vocab_size, max((t for t, _ in points), default=0)).tolist()
    todo: list[tuple[int, int]] = list(points)
    found: dict[Any, list[float]] = {}
    for sweep in range(-1, repeats):  # the first captures and compiles
        for tokens, context in todo:
            engine.set_context(context)
            engine.wait()
            begin = time.perf_counter()
            int(choose(engine.prefill(0, prompt[:tokens], context), 0.0, None))
            if sweep >= 0:
                found.setdefault(("prefill", tokens, context, engine.batch), []).append(time.perf_counter() - begin)
        order.shuffle(todo)
    return found


def host_seconds(
    engine: Engine, measured: dict[Any, list[float]], *, runs: int = 5, seed: int = 0, temperature: float = 0.0
) -> list[HostSample]:
    """What a round costs beyond drafting and verification: whole rounds of the decode loop, less those two.

    Runs in which a request ended before the others don't count: their later rounds are smaller.
    """
    batch = engine.batch
    drafted = [key[1] for key in measured if key[0] == "draft" and key[2] == batch]
    if engine.drafter is None or not drafted:
        return []
    context = min(drafted)
    sizes = [k[1] for k in measured if k[0] == "verify" and k[2:] == (context, batch)]
    # One count for each request, so that all trees are equal; the last bucket's cost at most.
    nodes = max(0, max((m for m in sizes if m <= min(64, engine.largest_tree + 1) * batch), default=batch) // batch - 1)
    size = min(m for m in sizes if m >= batch * (nodes + 1))
    rest = statistics.median(measured["draft", context, batch])
    rest += statistics.median(measured["verify", size, context, batch])
    rng = np.random.default_rng(seed)
    found = []
    for run in range(runs + 1):
        length = max(1, min(context, engine.max_context - 64))
        prompts = rng.integers(0, engine.target.vocab_size, (batch, length)).tolist()
        answers = decode(engine, prompts, DDTree(nodes), max_new_tokens=24, stop=(), temperature=temperature)
        rounds = {len(answer.rounds) for answer in answers}
        if run and len(rounds) == 1 and rounds != {0}:
            found.append(max(1e-7, sum(answer.seconds["decode"] for answer in answers) / rounds.pop() - rest))
    return [HostSample(tuple(found), batch)] if found else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def clocks(device: torch.device) -> dict[str, str]:
    """This GPU's clocks and driver as they are; nothing is set. Of a CPU nothing is known."""
    if device.type != "cuda":
        return {}
    # By its own name: nvidia-smi counts all GPUs of the machine, PyTorch those of CUDA_VISIBLE_DEVICES.
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", gpu, f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().splitlines()[0].split(", ") if done.returncode == 0 and done.stdout.strip() else []
    return dict(zip(query.split(","), values, strict=False))


def profile_of(
    engine: Engine, measured: dict[Any, list[float]], host: Sequence[HostSample], provenance: dict[str, Any],
    bandwidth: float, rate: float,
) -> Profile:  # fmt: skip
    """Measured seconds as a profile."""
    element = torch.empty(0, dtype=engine.dtype).element_size()
    order = sorted(measured.items(), key=lambda item: (item[0][-1], item[0][-2], item[0][1]))
    prefill = [PrefillSample(key[1], key[2], tuple(seconds)) for key, seconds in order if key[0] == "prefill"]
    verify = [VerifySample(key[1], key[2], key[3], tuple(seconds)) for key, seconds in order if key[0] == "verify"]
    return Profile(
        verify=verify,
        draft=[DraftSample(key[1], key[2], tuple(seconds)) for key, seconds in order if key[0] == "draft"],
        host=host,
        provenance=provenance,
        buckets=[b for b in engine.sizes if b <= max(s.tokens for s in verify)] if engine.graphs.on else None,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=rate,
        weight_bytes=float(element * engine.target.parameters),
        kv_bytes_per_token=float(element * engine.target.kv_bytes_per_token / 2),
        flops_per_token=2.0 * engine.target.parameters,
        prefill=prefill,
    )


def measure_profile(
    *,
    target: str,
    drafter: str | None = None,
    random_weights: bool = False,
    out: str | Path,
    widen: str | None = None,
    texts: Sequence[Sequence[int]] | None = None,
    max_tokens: int = MOST_TOKENS,
    contexts: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    buckets: Sequence[int] = BUCKETS,
    prefill: bool = True,
    repeats: int = 8,
    device: str = "cuda",
    dtype: str = "bfloat16",
    seed: int = 0,
    head: bool = True,
    fast: bool = False,
    eager: bool = False,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure what a round costs, and a prompt, and write it as a profile.

    Parameters
    ----------
    target, drafter : str
        As `load_target` and `load_drafter` take them. With ``random_weights``, the target is the name of a shape
        ("smollm2-135m", "qwen3-4b", "qwen3-8b") and needs no files: latency depends on shapes, not on values.
    out : path
        JSON that `ddsim.read_profile` and ``ddsim fit`` read. Written after every sweep; an interrupted run goes on there.
    widen : str, optional
        A shape ("qwen3-4b", "qwen3-8b"): the pair is measured at that shape's cost, its head included.
    texts : sequence of sequence of int, optional
        Token ids that show what a pair to be widened looks like; by default the first 16 of the workloads' prompts.
    max_tokens, batches : int, sequence of int
        Tokens of the largest pass, all requests together; and requests side by side. Every bucket is measured at both ends.
    contexts : sequence of int, optional
        Committed tokens per request; by default 64 to 32,768 as far as the target has positions and the memory room. Those beyond
        8,192 are measured in an engine of their own.
    buckets : sequence of int
        As `Engine` takes them.
    prefill : bool
        Measure prompts too, of 64 to 8,192 tokens before nothing and after other tokens, in the engine of the smallest batch.
    repeats : int
        Sweeps over all points, each in another order, so that drift doesn't look like a curve; over prompts half as many.
    device, dtype : str
    head : bool
        Draft lattices if the drafter has a head; otherwise its marginals.
    fast : bool
        As `Engine` takes it.
    eager : bool
        Measure the published kind of loop in place of the decoder: transformers' layers, a dense mask and a Python heap a round, one
        request, powers of two of tokens, contexts of 64, 512 and 4,096 by default, no prompts, and anew each time.
    progress : callable, optional
        Called with (sweeps done, sweeps in all).

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    DdsimError
        No GPU, too little memory, unknown names, or a file there that measures something else.

    Examples
    --------
    >>> measure_profile(target="qwen3-8b", random_weights=True, out="profile.json")  # doctest: +SKIP
    """
    if repeats < 1 or not batches or min(batches) < 1 or (contexts is not None and min(contexts, default=0) < 1):
        raise DdsimError("profile: repeats, batches and contexts must be at least 1")
    if eager and (random_weights or drafter is None or tuple(batches) != (1,) or fast):
        raise DdsimError(
            "profile: the eager loop needs a target and a drafter with weights, one request, and no fast mode"
        )
    if max_tokens < 2 * max(batches):
        raise DdsimError(f"profile: max_tokens {max_tokens}: must be at least 2 for each request of a batch")
    check_range("seed", seed, 0, LARGEST_SEED)
    check_range("repeats", repeats, 1, MOST_REPEATS)
    sizes = check_buckets(buckets)
    if widen is not None and (random_weights or drafter is None or widen not in SHAPES):
        raise DdsimError(
            f"profile: widen {widen!r} needs a target and a drafter with weights, and one of {', '.join(SHAPES)}"
        )
    kind = number_type(dtype)
    path = Path(out)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DdsimError("device cuda: PyTorch finds no GPU here; use --device cpu, or install a CUDA build of PyTorch")
    models: tuple[DrafterConfig | None, Weights | None, DraftHead | None] = (None, None, None)
    label = Path(target).name if widen is not None or Path(target).is_file() else target
    if random_weights:
        config, shape = shape_configs(target)
        weights: Weights = {}
    else:
        read = widen is not None and texts is None
        config, weights, tokenizer = load_target(target, dtype=kind, device=device, with_tokenizer=read)
        if drafter is not None:
            shape, drafter_weights = load_drafter(drafter, dtype=kind, device=device, target=weights)
            models = shape, drafter_weights, load_head(drafter, shape, dtype=kind, device=device) if head else None
            if widen is not None:
                texts = encode_all(tokenizer, choose_prompts(("all",), 4)[:16], config) if texts is None else texts
                config, weights, *models = widened(config, weights, *models, widen, texts)  # type: ignore[assignment]
                label = f"{label} text at {widen} cost"
    chosen = list(contexts) if contexts is not None else default_contexts(config, models[0], widen is not None)
    provenance: dict[str, Any] = {
        "target": label,
        "weights": "random" if random_weights else "loaded",
        "device": device_name(device),
        "dtype": dtype,
        "head": None if models[2] is None else asdict(models[2][0]),
        "cuda_graphs": device.startswith("cuda"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "max_context": max(chosen) + 64,
        "repeats": repeats,
        "seed": seed,
    }
    if fast:
        provenance["fast"] = True
    if eager:
        from ddsim_reference.published import published_profile

        provenance |= {"clocks": clocks(torch.device(device)), "measured": time.strftime("%Y-%m-%d")}
        assert models[0] is not None and models[1] is not None  # checked above: the loop needs a drafter
        return published_profile(
            path, config, weights, models[0], models[1], provenance, max_tokens, contexts, progress
        )  # fmt: skip
    before: dict[Any, list[float]] = {}
    host: dict[int, HostSample] = {}
    if resume and path.exists():
        old = read_profile(path)
        differing = [k for k, v in provenance.items() if old.provenance.get(k) != v]
        if old.buckets is not None and set(old.buckets) - {max_tokens} != {b for b in sizes if b < max_tokens}:
            differing.append("buckets")
        if differing:
            raise DdsimError(f"{path}: profiles something else ({differing[0]} differs); choose another file")
        before = {("verify", s.tokens, s.context, s.batch): list(s.seconds) for s in old.verify}
        before |= {("draft", s.context, s.batch): list(s.seconds) for s in old.draft}
        before |= {("prefill", s.tokens, s.context, min(batches)): list(s.seconds) for s in old.prefill}
        host = {s.batch: s for s in old.host}
    parts, prompt_sweeps = _parts(chosen, batches, prefill), -(-repeats // 2)
    sweeps = [_sweeps_done(part, before) for part in parts]
    if all(rounds >= repeats and prompts >= prompt_sweeps for rounds, prompts in sweeps):
        return path
    if random_weights:
        weights = random_target(config, device=device, dtype=kind, seed=seed)
        models = shape, random_drafter(shape, device=device, dtype=kind), None
    bandwidth, rate = copy_bandwidth(torch.device(device)), matmul_rate(torch.device(device), kind)
    provenance |= {"clocks": clocks(torch.device(device)), "measured": time.strftime("%Y-%m-%d")}
    if prefill:
        provenance["prefill_tokens_a_pass"] = max_tokens
    told = [min(done[0], repeats) for done in sweeps]

    def save(
        engine: Engine, kept: dict[Any, list[float]], k: int, done: int, sweep: int, seconds: dict[Any, list[float]]
    ) -> None:
        for key, values in seconds.items():
            before[key] = [*kept.get(key, ()), *values]
        profile_of(engine, before, [host[b] for b in sorted(host)], provenance, bandwidth, rate).save(path)
        told[k] = done + sweep + 1
        if progress is not None:
            progress(sum(told), repeats * len(told))

    for k, part in enumerate(parts):
        rounds, prompts = sweeps[k]
        if rounds >= repeats and prompts >= prompt_sweeps:
            continue
        try:
            engine = Engine(
                config, weights, *models, max_context=part.max_context, max_tokens=max_tokens, batch=part.batch,
                device=device, fast=fast, buckets=sizes,
            )  # fmt: skip
        except DdsimError:
            if contexts is not None or not part.long:
                raise
            told[k] = repeats  # by default, contexts go as far as the memory has room
            continue
        for stack in (engine.stack, *((engine.drafter_stack,) if engine.drafter is not None else ())):
            stack.keys.normal_()
            stack.values.normal_()
        if prompts < prompt_sweeps:
            before |= measure_prefill(engine, part.prompts, repeats=prompt_sweeps, seed=seed)
        if rounds < repeats:
            keep = partial(save, engine, dict(before), k, rounds)
            found = measure(
                engine, tokens=profiled_tokens(engine, max_tokens), contexts=part.contexts, repeats=repeats - rounds,
                seed=seed + rounds, sweep_done=keep,
            )  # fmt: skip
            if not part.long:
                host |= {sample.batch: sample for sample in host_seconds(engine, found, seed=seed)}
            keep(repeats - rounds - 1, found)
            del keep
        else:
            save(engine, {}, k, rounds, -1, {})
        del engine
        gc.collect()  # graphs hold on to caches, and the next batch needs the room
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return path


def default_contexts(target: ModelConfig, drafter: DrafterConfig | None, widened: bool = False) -> list[int]:
    """Those of `CONTEXTS` that the target has positions for (widened, it is measured for a larger one), and the drafter's window."""
    most = CONTEXTS[-1] if widened else target.max_position_embeddings
    if drafter is not None and drafter.window is not None:
        most = min(most, drafter.window - drafter.block_size - 64)
    return [c for c in CONTEXTS if c <= most] or [max(1, most // 2)]


@dataclass(frozen=True)
class _Part:
    """What one engine measures: contexts at a batch, and prompts."""

    batch: int
    contexts: list[int]
    prompts: list[tuple[int, int]]
    long: bool

    @property
    def max_context(self) -> int:
        return max([*self.contexts, *(t + c for t, c in self.prompts)]) + 64


def _parts(contexts: Sequence[int], batches: Sequence[int], prefill: bool) -> list[_Part]:
    """Short and long contexts apart, for every batch; prompts with the smallest one."""
    groups = [[c for c in contexts if c <= SHORT], [c for c in contexts if c > SHORT]]
    prompts = prompts_to_measure(max(contexts)) if prefill else []
    parts = []
    for batch in sorted(set(batches)):
        for long, group in enumerate(groups):
            if group:
                mine = [
                    p
                    for p in prompts
                    if batch == min(batches) and (len(groups[1 - long]) == 0 or (sum(p) > SHORT) == long)
                ]
                parts.append(_Part(batch, group, mine, bool(long) and bool(groups[0])))
    return parts


def _sweeps_done(part: _Part, before: dict[Any, list[float]]) -> tuple[int, int]:
    """Sweeps over rounds and over prompts that a profile holds already."""
    rounds = [len(v) for k, v in before.items() if k[0] == "verify" and k[2] in part.contexts and k[3] == part.batch]
    prompts = [len(before.get(("prefill", t, c, part.batch), ())) for t, c in part.prompts]
    return min(rounds, default=0), min(prompts, default=LARGEST_SEED)
