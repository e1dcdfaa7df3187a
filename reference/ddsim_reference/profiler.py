"""What a round of the decoder costs on a device: verification, drafting and host time, measured the way a round pays them."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim.policy import DDTree
from ddsim.profiles import DraftSample, HostSample, Profile, VerifySample, read_profile

from .attention import triton
from .checkpoint import (
    SMOLLM2,
    DrafterConfig,
    ModelConfig,
    Weights,
    drafter_shapes,
    load_drafter,
    load_target,
    number_type,
    target_shapes,
)
from .decode import decode
from .engine import Engine, Proposal
from .record import device_name
from .widen import SHAPES

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
MOST_TOKENS = 1024

# Models of a published shape with random weights: latency depends on shapes, not on values.


def shape_configs(name: str) -> tuple[ModelConfig, DrafterConfig]:
    """Configurations of a target and of its DFlash drafter (5 layers, blocks of 16), by shape name."""
    if name == SMOLLM2:
        target = ModelConfig(
            arch="llama", hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
            intermediate_size=1536, vocab_size=49_152, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=False,
            eos_token_ids=(), max_position_embeddings=8192, qk_norm=False,
        )  # fmt: skip
        return target, drafter_config(target)
    if name not in SHAPES:
        raise DdsimError(f"shape {name!r}: unknown; use one of {', '.join((SMOLLM2, *SHAPES))}")
    shape = SHAPES[name]
    target = ModelConfig(
        arch="qwen3", hidden_size=shape.hidden_size, num_layers=shape.num_layers, num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, eos_token_ids=(),
        max_position_embeddings=40_960, qk_norm=True,
    )  # fmt: skip
    return target, drafter_config(target)


def drafter_config(target: ModelConfig, *, layers: int = 5, block_size: int = 16) -> DrafterConfig:
    """A DFlash drafter's configuration in a target's own dimensions, with evenly spaced feature layers."""
    last = max(target.num_layers - 3, 0)
    taps = sorted({round(min(1, last) + i * (last - min(1, last)) / max(layers - 1, 1)) for i in range(layers)})
    return DrafterConfig(
        hidden_size=target.hidden_size,
        num_layers=layers,
        num_heads=target.num_heads,
        num_kv_heads=target.num_kv_heads,
        head_dim=target.head_dim,
        intermediate_size=target.intermediate_size,
        vocab_size=target.vocab_size,
        rms_norm_eps=target.rms_norm_eps,
        rope_theta=target.rope_theta,
        block_size=block_size,
        mask_token_id=target.vocab_size - 1,
        target_layer_ids=tuple(taps),
        num_target_layers=target.num_layers,
    )


def random_weights(
    shapes: dict[str, tuple[int, ...]], *, device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Weights:
    """Random weights, made on the device: matrices that keep a unit variance, norms near 1."""
    generator = torch.Generator(device).manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, device=device, dtype=dtype)
        if len(shape) == 1:
            tensor.normal_(1.0, 0.1, generator=generator)
        else:
            tensor.normal_(0.0, 1.0 if "embed" in name else shape[1] ** -0.5, generator=generator)
        weights[name] = tensor
    return weights


def random_target(
    config: ModelConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Weights:
    """Random weights of a target."""
    return random_weights(target_shapes(config), device=device, dtype=dtype, seed=seed)


def random_drafter(
    config: DrafterConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 1
) -> Weights:
    """Random weights of a DFlash drafter."""
    return random_weights(drafter_shapes(config), device=device, dtype=dtype, seed=seed)


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


def random_tree(tokens: int, horizon: int, vocabulary: int, seed: int) -> Proposal:
    """A root and a draft tree of random shape and tokens, best first in form: parents come before their children."""
    rng = np.random.default_rng(seed)
    parents, depths = np.full(tokens, -1, np.int32), np.zeros(tokens, np.int32)
    seen = np.zeros((tokens, 64 * -(-tokens // 64)), np.uint8)
    seen[0, 0] = 1
    for i in range(1, tokens):
        parent = int(rng.integers(max(0, i - 24), i))
        while depths[parent] >= horizon:
            parent = int(parents[parent])
        parents[i], depths[i] = parent, depths[parent] + 1
        seen[i] = seen[parent]
        seen[i, i] = 1
    mask = np.packbits(seen, axis=1, bitorder="little").view(np.uint32)
    return Proposal(rng.integers(0, vocabulary, tokens).astype(np.int32), parents, depths, mask)


def profiled_tokens(engine: Engine, most: int) -> list[int]:
    """Token counts to measure: each bucket and the count above the bucket before it; powers of two where none are padded."""
    if engine.device.type == "cpu":
        return [2**i for i in range(most.bit_length()) if 2**i <= most]
    sizes = [b for b in engine.sizes if b <= most]
    return sorted({*sizes, *(b + 1 for b in sizes[:-1])})


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
    sweep_done: Callable[[int, dict[Any, list[float]]], None] | None = None,
) -> dict[Any, list[float]]:
    """Seconds of verification by ("verify", tokens, context), and of drafting by ("draft", context), in shuffled sweeps.

    Verification is what a round pays for it: upload of the tree, the target's pass with head and argmax. Drafting is the
    drafter's pass, top-k and the copy to the host.
    """
    engine.set_temperature(0.0)
    trees = {m: random_tree(m, 15, engine.target.vocab_size, seed + m) for m in tokens}
    batch = engine.batch
    clock = _Clock(engine.device)
    points: list[tuple[Any, ...]] = [("verify", m, c) for m in tokens for c in contexts]
    if engine.drafter is not None:
        points += [("draft", c) for c in contexts]

    def call(point: tuple[Any, ...]) -> None:
        if point[0] == "draft":
            engine.draft()
        else:
            bucket = engine.bucket_for(batch * point[1])
            bucket.upload()
            engine.verify(bucket)

    def ready(point: tuple[Any, ...]) -> None:
        engine.set_context(point[-1])
        if point[0] == "verify":
            engine.wait()
            bucket = engine.bucket_for(batch * point[1])
            bucket.pack([trees[point[1]]] * batch)

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


def host_seconds(engine: Engine, measured: dict[Any, list[float]], *, runs: int = 5, seed: int = 0) -> list[float]:
    """What a round costs beyond drafting and verification: whole rounds of the decode loop at a lone request, less those two."""
    if engine.drafter is None or engine.batch != 1:
        return []
    context = min(key[1] for key in measured if key[0] == "draft")
    sizes = sorted(key[1] for key in measured if key[0] == "verify" and key[2] == context)
    size = max((m for m in sizes if m <= min(64, engine.candidates + 1)), default=sizes[0])
    rest = statistics.median(measured["draft", context]) + statistics.median(measured["verify", size, context])
    rng = np.random.default_rng(seed)
    found = []
    for run in range(runs + 1):
        length = max(1, min(context, engine.max_context - 64))
        prompt = rng.integers(0, engine.target.vocab_size, length).tolist()
        answer = decode(engine, [prompt], DDTree(size - 1), max_new_tokens=24, stop=())[0]
        if run and answer.rounds:
            found.append(max(1e-7, answer.seconds["decode"] / len(answer.rounds) - rest))
    return found


def clocks() -> dict[str, str]:
    """The GPU's clocks and driver as they are; nothing is set."""
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().splitlines()[0].split(", ") if done.returncode == 0 and done.stdout.strip() else []
    return dict(zip(query.split(","), values, strict=False))


def profile_of(
    engine: Engine, measured: dict[Any, list[float]], host: Sequence[float], provenance: dict[str, Any],
    bandwidth: float, rate: float,
) -> Profile:  # fmt: skip
    """Measured seconds as a profile."""
    batch, gpu = engine.batch, engine.device.type == "cuda"
    element = torch.empty(0, dtype=engine.dtype).element_size()
    verify = [
        VerifySample(batch * k[1], k[2], batch, tuple(v))
        for k, v in sorted(measured.items(), key=str)
        if k[0] == "verify"
    ]
    draft = [DraftSample(k[1], batch, tuple(v)) for k, v in sorted(measured.items(), key=str) if k[0] == "draft"]
    return Profile(
        verify=verify,
        draft=draft,
        host=[HostSample(tuple(host), batch)] if host else [],
        provenance=provenance,
        buckets=[b for b in engine.sizes if b <= max(s.tokens for s in verify)] if gpu else None,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=rate,
        weight_bytes=float(element * engine.target.parameters),
        kv_bytes_per_token=float(element * engine.target.kv_bytes_per_token / 2),
        flops_per_token=2.0 * engine.target.parameters,
    )


def measure_profile(
    *,
    target: str,
    drafter: str | None = None,
    random_weights: bool = False,
    out: str | Path,
    max_tokens: int = MOST_TOKENS,
    contexts: Sequence[int] = CONTEXTS,
    batch: int = 1,
    repeats: int = 8,
    device: str = "cuda",
    dtype: str = "bfloat16",
    seed: int = 0,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure what a round costs and write it as a profile.

    Parameters
    ----------
    target, drafter : str
        As `load_target` and `load_drafter` take them. With ``random_weights``, the target is the name of a shape
        ("smollm2-135m", "qwen3-4b", "qwen3-8b") and needs no files: latency depends on shapes, not on values.
    out : path
        JSON that `ddsim.read_profile` and ``ddsim fit`` read. Written after every sweep; an interrupted run goes on there.
    max_tokens, contexts, batch : int, sequence of int, int
        Largest pass, committed tokens per request, and requests side by side. Every bucket is measured at both ends.
    repeats : int
        Sweeps over all points, each in another order, so that drift doesn't look like a curve.
    device, dtype : str
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
    if repeats < 1 or batch < 1 or max_tokens < 2 or not contexts or min(contexts) < 1:
        raise DdsimError("profile: repeats, batch and contexts must be at least 1, max_tokens at least 2")
    kind = number_type(dtype)
    path = Path(out)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DdsimError("device cuda: PyTorch finds no GPU here; use --device cpu, or install a CUDA build of PyTorch")
    if random_weights:
        config, shape = shape_configs(target)
    else:
        config, weights, _ = load_target(target, dtype=kind, device=device, with_tokenizer=False)
    provenance: dict[str, Any] = {
        "target": target,
        "weights": "random" if random_weights else "loaded",
        "device": device_name(device),
        "dtype": dtype,
        "cuda_graphs": device.startswith("cuda"),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "max_context": max(contexts) + 64,
        "repeats": repeats,
        "seed": seed,
    }
    before: dict[Any, list[float]] = {}
    if resume and path.exists():
        old = read_profile(path)
        differing = [k for k, v in provenance.items() if old.provenance.get(k) != v]
        if differing:
            raise DdsimError(f"{path}: profiles something else ({differing[0]} differs); choose another file")
        before = {("verify", s.tokens // batch, s.context): list(s.seconds) for s in old.verify if s.batch == batch}
        before |= {("draft", s.context): list(s.seconds) for s in old.draft if s.batch == batch}
    done = min((len(v) for v in before.values()), default=0)
    if done >= repeats:
        return path
    if random_weights:
        weights = random_target(config, device=device, dtype=kind, seed=seed)
        pair: tuple[DrafterConfig | None, Weights | None] = (shape, random_drafter(shape, device=device, dtype=kind))
    else:
        pair = (None, None) if drafter is None else load_drafter(drafter, dtype=kind, device=device)
    engine = Engine(
        config,
        weights,
        *pair,
        max_context=max(contexts) + 64,
        max_tokens=batch * max_tokens,
        batch=batch,
        device=device,
    )
    for stack in (engine.stack, *((engine.drafter_stack,) if engine.drafter is not None else ())):
        stack.keys.normal_()
        stack.values.normal_()
    bandwidth, rate = copy_bandwidth(engine.device), matmul_rate(engine.device, kind)
    provenance |= {"clocks": clocks(), "measured": time.strftime("%Y-%m-%d")}

    def save(sweep: int, seconds: dict[Any, list[float]], host: Sequence[float] = ()) -> None:
        merged = {key: [*before.get(key, ()), *values] for key, values in seconds.items()}
        profile_of(engine, merged, host, provenance, bandwidth, rate).save(path)
        if progress is not None:
            progress(done + sweep + 1, repeats)

    found = measure(
        engine, tokens=profiled_tokens(engine, max_tokens), contexts=contexts, repeats=repeats - done, seed=seed + done,
        sweep_done=save,
    )  # fmt: skip
    save(repeats - done - 1, found, host_seconds(engine, found, seed=seed))
    return path
