"""How far from the roofline verification and drafting are, part by part; ``selftest.py`` runs it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ddsim_reference.engine.engine import Engine, project_head
from ddsim_reference.model.config import DrafterConfig, ModelConfig
from ddsim_reference.model.shapes import random_drafter, random_target
from ddsim_reference.profile import copy_bandwidth, event_seconds, matmul_rate, random_tree

if TYPE_CHECKING:
    from selftest import Report


def verify_floor(
    config: ModelConfig, tokens: int, context: int, bandwidth: float, rate: float, *, logits_bytes: int = 4
) -> tuple[float, float]:
    """Least seconds of a verification pass by bytes (weights, keys and values, logits) and by arithmetic."""
    moved = 2.0 * config.parameters + (context + tokens) * config.kv_bytes_per_token
    moved += logits_bytes * tokens * config.vocab_size
    attended = 4.0 * config.num_layers * config.num_heads * config.head_dim * tokens * (context + tokens / 2)
    return moved / bandwidth, (2.0 * config.parameters * tokens + attended) / rate


def draft_floor(
    target: ModelConfig, drafter: DrafterConfig, context: int, bandwidth: float, rate: float
) -> tuple[float, float]:
    """Least seconds of a drafter pass by bytes and by arithmetic, the target's head included."""
    hidden, dim = drafter.hidden_size, drafter.head_dim
    layer = hidden * dim * (2 * drafter.num_heads + 2 * drafter.num_kv_heads) + 3 * hidden * drafter.intermediate_size
    injected = hidden * hidden * len(drafter.target_layer_ids)
    head = hidden * target.vocab_size
    moved = 2.0 * (drafter.num_layers * layer + injected + head)
    moved += 4.0 * drafter.num_layers * drafter.num_kv_heads * dim * context + 4.0 * drafter.horizon * target.vocab_size
    return moved / bandwidth, 2.0 * drafter.block_size * (drafter.num_layers * layer + injected + head) / rate


def matrix_times(engine: Engine, tokens: int) -> float:
    """Seconds of all layers' matrix products alone, in one graph: the floor that the library's products set."""
    layers = engine.stack.layers
    names = ("qkv", "o", "gate_up", "down")
    inputs = {
        name: torch.randn(tokens, getattr(layers[0], name).shape[1], device=engine.device, dtype=engine.dtype)
        for name in names
    }

    def body() -> None:
        for layer in layers:
            for name in names:
                F.linear(inputs[name], getattr(layer, name))
        project_head(inputs["qkv"], engine.head, engine.logits[:tokens])

    graph = engine.graphs.capture(body)
    return statistics.median(event_seconds(graph.replay, engine.device, 8))


def profile_table(name: str, replay: Callable[[], object], repeats: int = 3, rows: int = 14) -> list[dict[str, Any]]:
    """GPU time by kernel of one call."""
    from torch.profiler import ProfilerActivity, profile

    replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            replay()
        torch.cuda.synchronize()
    found: list[dict[str, Any]] = []
    for event in profiler.key_averages():
        micro = float(getattr(event, "self_device_time_total", 0.0) or 0.0) / repeats
        if micro > 0:
            found.append({"kernel": str(event.key), "calls": event.count / repeats, "us": micro})
    found.sort(key=lambda row: -row["us"])
    total = sum(row["us"] for row in found)
    print(f"  {name}: {total / 1e3:.3f} ms in kernels", flush=True)
    for row in found[:rows]:
        short = row["kernel"].replace("void ", "").replace("at::native::", "")[:78]
        print(f"    {row['us']:9.1f} us {100 * row['us'] / total:5.1f} % {row['calls']:6.0f}x  {short}", flush=True)
    return found[: 2 * rows]


def time_engine(
    report: Report, config: ModelConfig, drafter: DrafterConfig, device: torch.device, dtype: torch.dtype,
    counts: Sequence[int], contexts: Sequence[int], deadline: float,
) -> None:  # fmt: skip
    """Verification, draft and commit against the roofline; part by part, while time is left."""
    bandwidth, rate = copy_bandwidth(device), matmul_rate(device, dtype)
    report.parts["bandwidth_bytes_per_s"], report.parts["flops_per_s"] = bandwidth, rate
    print(f"  copy {bandwidth / 1e12:.2f} TB/s, products {rate / 1e12:.0f} TFLOP/s", flush=True)
    begin = time.perf_counter()
    weights = random_target(config, device=device, dtype=dtype)
    drafter_weights = random_drafter(drafter, device=device, dtype=dtype)
    engine = Engine(
        config, weights, drafter, drafter_weights, max_context=max(contexts), max_tokens=max(counts), buckets=counts
    )
    for stack in (engine.stack, engine.drafter_stack):
        stack.keys.normal_()
        stack.values.normal_()
    if device.type == "cuda":
        torch.cuda.synchronize()
        print(f"  {torch.cuda.memory_allocated() / 1e9:.1f} GB on the GPU", flush=True)
    print(f"  built in {time.perf_counter() - begin:.1f} s", flush=True)
    rng = np.random.default_rng(4)
    trees = {m: random_tree(m, 15, config.vocab_size, rng) for m in counts}
    rows: list[dict[str, Any]] = []
    report.parts["timing"] = rows

    def add(what: str, tokens: int, context: int, seconds: list[float], floor: tuple[float, float]) -> None:
        middle = statistics.median(seconds)
        bound = "bytes" if floor[0] >= floor[1] else "FLOPs"
        rows.append(
            {
                "what": what, "tokens": tokens, "context": context, "ms": 1e3 * middle, "min_ms": 1e3 * min(seconds),
                "floor_ms": 1e3 * max(floor), "bound": bound, "ratio": middle / max(floor),
            }
        )  # fmt: skip
        print(
            f"  {what} {tokens} at {context}: {1e3 * middle:.3f} ms, floor {1e3 * max(floor):.3f}, x{middle / max(floor):.2f}",
            flush=True,
        )

    preferred = [m for m in (1, 64, 512, 128, 256, 16, 32, 8, 2) if m in counts]
    for m in [*preferred, *(m for m in counts if m not in preferred)]:
        if time.perf_counter() > deadline:
            print(f"  out of time: {m} tokens and more are left out", flush=True)
            report.failures.append("timing: out of time")
            break
        bucket = engine.stage([trees[m]])
        begin = time.perf_counter()
        engine.verify(bucket)
        engine.wait()
        report.parts.setdefault("capture_seconds", {})[str(m)] = time.perf_counter() - begin
        for context in contexts:
            engine.set_context(context)
            seconds = event_seconds(partial(engine.verify, bucket), device, 12)
            add("verify", m, context, seconds, verify_floor(config, m, context, bandwidth, rate))
        if m == 1 and device.type == "cuda":
            engine.fast = True
            engine.graphs.captured.pop(("verify", bucket.tokens), None)
            for context in contexts:
                engine.set_context(context)
                seconds = event_seconds(partial(engine.verify, bucket), device, 12)
                add("verify fast", m, context, seconds, verify_floor(config, m, context, bandwidth, rate))
            engine.fast = False
            engine.graphs.captured.pop(("verify", bucket.tokens), None)
        if m == preferred[0]:
            for context in contexts:
                engine.set_context(context)
                engine.draft()
                seconds = event_seconds(engine.draft, device, 12)
                add(
                    "draft",
                    drafter.block_size,
                    context,
                    seconds,
                    draft_floor(config, drafter, context, bandwidth, rate),
                )
    m = preferred[min(1, len(preferred) - 1)]
    bucket = engine.stage([trees[m]])
    engine.verify(bucket)
    times = []
    for _ in range(12):  # a commit moves the context on
        engine.set_context(contexts[0] // 2)
        times += event_seconds(partial(engine.commit, bucket), device, 1, warmup=0)
    add("commit", m, contexts[0] // 2, times, (1e-9, 1e-9))

    # A whole round's host side: pack and upload, two waits.
    engine.set_context(contexts[0] // 2)
    packing, whole = [], []
    for _ in range(12):
        engine.set_context(contexts[0] // 2)
        engine.wait()
        begin = time.perf_counter()
        bucket = engine.stage([trees[m]])
        packing.append(time.perf_counter() - begin)
        engine.verify(bucket)
        engine.commit(bucket)
        engine.draft()
        engine.wait()
        whole.append(time.perf_counter() - begin)
    add("pack + upload call", m, contexts[0] // 2, packing, (1e-9, 1e-9))
    add("round without tree building", m, contexts[0] // 2, whole, (1e-9, 1e-9))
    if device.type != "cuda":
        return

    def profiles() -> None:
        tables = report.parts.setdefault("kernels", {})
        engine.set_context(contexts[0])
        for m in (1, 64, 512):
            if m in trees and time.perf_counter() < deadline + 10:
                bucket = engine.stage([trees[m]])
                tables[f"verify {m}"] = profile_table(f"verify {m} at {contexts[0]}", partial(engine.verify, bucket))
        tables["draft"] = profile_table(f"draft at {contexts[0]}", engine.draft)

    def matrices() -> None:
        found = report.parts.setdefault("matrix_products", {})
        for m in (1, 8, 16, 64, 128, 256, 512):
            if m in counts and time.perf_counter() < deadline + 15:
                found[str(m)] = matrix_times(engine, m)
        print(
            "  all matrix products alone, ms: " + ", ".join(f"{m}: {1e3 * s:.3f}" for m, s in found.items()), flush=True
        )

    report.part("matrix products alone", matrices)
    report.part("where the time goes", profiles)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The timings, one line each."""
    print("what                          tokens  context        ms   min ms  floor ms  bound  ratio")
    for r in rows:
        tail = f"{r['floor_ms']:9.3f}  {r['bound']}  {r['ratio']:5.2f}" if r["floor_ms"] > 1e-3 else ""
        print(f"{r['what']:<30}{r['tokens']:>6}{r['context']:>9}{r['ms']:>10.3f}{r['min_ms']:>9.3f} {tail}")
