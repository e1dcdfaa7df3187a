"""Passes of 16 to 512 tokens on a GPU: are the products right there, to the bit, which tiles are fastest, what is left?

``python3 reference/tools/selftest.py --products [--out DIR] [--seconds 60]``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.engine import attention, kernels, layers, products
from ddsim_reference.engine.engine import Engine, project_head
from ddsim_reference.engine.products import Tile
from ddsim_reference.model import forward
from ddsim_reference.profile import (
    copy_bandwidth,
    event_seconds,
    matmul_rate,
    random_drafter,
    random_target,
    random_tree,
)

if TYPE_CHECKING:
    from ddsim_reference.model.config import DrafterConfig, ModelConfig
    from selftest import Report

COUNTS = (512, 128, 256, 64, 16)


def shapes_of(config: ModelConfig, auxiliary_layers: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix of a layer, of the head and of the drafter's ``fc``."""
    hidden, dim = config.hidden_size, config.head_dim
    return {
        "qkv": ((config.num_heads + 2 * config.num_kv_heads) * dim, hidden),
        "o": (hidden, config.num_heads * dim),
        "gate_up": (2 * config.intermediate_size, hidden),
        "down": (hidden, config.intermediate_size),
        "head": (config.vocab_size, hidden),
        "fc": (hidden, auxiliary_layers * hidden),
    }


def tiles_to_try(rows: int, columns: int, padded: int, parts: int) -> list[Tile]:
    """Tiles with as many stages as fit."""
    found = [products.default_tile(rows, columns, padded, parts)]
    if padded <= products.STREAMED_TOKENS:
        for height, step, slots, warps in (
            (64, 64, 3, 4), (64, 128, 2, 4), (128, 64, 2, 8), (128, 128, 1, 8), (64, 64, 2, 4), (64, 128, 1, 4),
        ):  # fmt: skip
            room = {1: 226_000, 2: 112_000, 3: 74_500}[slots]
            stages = min(8, room // ((height + padded) * step * 2))
            if stages >= 2:
                found.append(Tile(height, step, padded, stages, warps))
        return list(dict.fromkeys(found))
    for height, tokens, warps, stages in (
        (128, 128, 8, 4), (128, 128, 8, 3), (256, 128, 8, 3), (256, 128, 8, 4), (128, 64, 4, 4), (128, 64, 4, 3), (256, 64, 4, 3),
        (128, 256, 8, 3), (256, 64, 8, 4),
    ):  # fmt: skip
        big = height * tokens > 64 * 128 * warps // 4  # the sums of a part and of all don't fit into the registers
        if tokens <= padded and not (parts > 1 and big):
            found.append(Tile(height, 64, tokens, stages, warps, True, True, True))
    if parts > 1:
        found += [Tile(128, 64, 128, 3, 8), Tile(64, 64, 128, 4, 4, tokens_first=True)]
    return list(dict.fromkeys([*found, products.tile_for(rows, columns, padded, parts, 2)]))


def product(name: str, x: Tensor, weight: Tensor, tile: Tile | None, logits: Tensor | None) -> Tensor:
    """A shape's product as the layers use it."""
    return products.product(x, weight, gated=name == "gate_up", out=logits if name == "head" else None, tile=tile)


def library_product(name: str, x: Tensor, weight: Tensor, logits: Tensor | None) -> Tensor:
    """The same by cuBLAS, as the layers use it."""
    if name == "head" and logits is not None:
        project_head(x, weight, logits)
        return logits
    out = F.linear(x, weight)
    return kernels.silu_mul(out) if name == "gate_up" else out


def graph_seconds(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = 7) -> float:
    """Median seconds of one of several calls in a row, captured in one graph where there is a GPU."""

    def body() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return statistics.median(event_seconds(body, device, 1, warmup=0)) / len(calls)
    graph = torch.cuda.CUDAGraph()
    body()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        body()
    return statistics.median(event_seconds(graph.replay, device, repeats)) / len(calls)


def check_products(
    report: Report, config: ModelConfig, device: torch.device, dtype: torch.dtype, auxiliary_layers: int
) -> None:
    """Every kernel against float32, at the layer's shapes; outputs are poisoned first."""
    from selftest import error, plain

    generator = torch.Generator(device).manual_seed(7)
    gpu = device.type == "cuda"

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    def compiled(tokens: int, name: str, rows: int, columns: int) -> None:
        with torch.inference_mode():
            x, weight = (torch.zeros(n, columns, device=device, dtype=dtype) for n in (tokens, rows))
            product(name, x, weight, None, torch.empty(tokens, rows, device=device))

    jobs = [(tokens, name, *shape) for name, shape in shapes_of(config, auxiliary_layers).items() for tokens in COUNTS]
    if gpu:
        compiled(*jobs[0])  # alone: Triton's own caches come about
        with ThreadPoolExecutor(16) as pool:
            for future in [pool.submit(compiled, *job) for job in jobs]:
                if future.exception() is not None:
                    print(f"  {str(future.exception()).splitlines()[0][:160]}", flush=True)
        torch.cuda.empty_cache()
        print(f"  {len(jobs)} kernels compiled by {time.perf_counter() - report.begin:.1f} s", flush=True)
    for name, (rows, columns) in shapes_of(config, auxiliary_layers).items():
        weight = normal(rows, columns) * columns**-0.5
        for tokens in (16, 63, 64, 128, 512):
            x = normal(tokens, columns)
            logits = torch.full((tokens, rows), torch.nan, device=device)
            wide = x.float() @ weight.float().T
            if name == "gate_up":
                gate, up = wide.chunk(2, -1)
                wide = F.silu(gate) * up
            outs = []
            for _ in range(2):
                torch.full(
                    (16 * tokens * rows,), torch.nan, device=device
                )  # freed at once: what follows may land on it
                logits.fill_(torch.nan)
                outs.append(products.added(product(name, x, weight, None, logits), dtype).clone())
            limit = 1e-4 if name == "head" or dtype == torch.float32 else 8e-3
            report.check(f"product {name} {tokens}", error(outs[0], wide), limit)
            report.check(f"product {name} {tokens} twice", float((outs[0] != outs[1]).sum()), 0.0)
        del weight, logits, wide, outs
        if gpu:
            torch.cuda.empty_cache()

    dim, heads, kv_heads, hidden = config.head_dim, config.num_heads, config.num_kv_heads, config.hidden_size
    length = 768
    cos, sin = forward.rope_table(torch.arange(length, device=device), dim, 1e4)
    for tokens in (16, 64, 128):
        parts, weight, x = normal(6, tokens, hidden).float(), normal(hidden), normal(tokens, hidden)
        runs = []
        position = torch.arange(tokens, dtype=torch.int32, device=device) + 500
        request = torch.zeros_like(position)
        qkv_parts = normal(4, tokens, (heads + 2 * kv_heads) * dim).float()
        norms = normal(dim), normal(dim)

        def run(
            x: Tensor = x, parts: Tensor = parts, weight: Tensor = weight, position: Tensor = position,
            request: Tensor = request, qkv_parts: Tensor = qkv_parts, norms: tuple[Tensor, Tensor] = norms,
        ) -> list[Tensor]:  # fmt: skip
            stream, auxiliary = x.clone(), torch.empty_like(x)
            out = kernels.add_rms_norm(stream, parts, weight, 1e-6, auxiliary=auxiliary)
            keys, values = torch.zeros(2, 1, kv_heads, length, dim, device=device, dtype=dtype)
            query = kernels.rope_write(
                qkv_parts, *norms, 1e-6, cos, sin, position, request, position, keys, values
            )[:, : heads * dim]  # fmt: skip
            return [out, stream, auxiliary, query, keys, values]

        runs = [run()]
        with plain():
            runs.append(run())
        worst = max(error(a, b) for a, b in zip(*runs, strict=True))
        report.check(f"norm and rope from parts, {tokens}", worst, 1e-5 if dtype == torch.float32 else 8e-3)


def time_products(
    report: Report, config: ModelConfig, device: torch.device, dtype: torch.dtype, auxiliary_layers: int, deadline: float,
    bandwidth: float,
) -> None:  # fmt: skip
    """cuBLAS and several tiles for each shape; the best become ``TUNED``."""
    found: list[dict[str, Any]] = report.parts.setdefault("products", [])
    gpu = device.type == "cuda"
    print(f"  {'':>8}{'tokens':>7}{'cuBLAS':>16}   {'default':>8}   best (us, TB/s)", flush=True)
    for tokens in COUNTS:
        for name, (rows, columns) in shapes_of(config, auxiliary_layers).items():
            if time.perf_counter() > deadline:
                print(f"  out of time: {name} {tokens} and more left out", flush=True)
                return
            size = rows * columns * torch.empty((), dtype=dtype).element_size()
            copies = max(2, min(8, -(-(3 * 10**8) // size))) if gpu else 2
            weights = [
                torch.empty(rows, columns, device=device, dtype=dtype).normal_(std=columns**-0.5) for _ in range(copies)
            ]
            x = torch.randn(tokens, columns, device=device).to(dtype)
            logits = torch.empty(tokens, rows, device=device) if name == "head" else None
            rounds = 2 if name == "head" else max(2, 24 // copies)
            parts = 1 if name in ("head", "gate_up") else products.parts_of(rows, columns)
            tiles = tiles_to_try(rows, columns, products.padded_tokens(tokens), parts)
            if name == "fc" or tokens == 16:  # each costs a second of compiling
                tiles = tiles[:4]

            def compiled(
                tile: Tile, name: str = name, x: Tensor = x, weight: Tensor = weights[0], logits: Tensor | None = logits
            ) -> str:
                try:
                    torch.zeros(
                        1, device=device
                    )  # makes the GPU's context the thread's, which the copy engine's tables need
                    with torch.inference_mode():  # a thread's own
                        product(name, x, weight, tile, logits)
                except Exception as failure:
                    return f"{type(failure).__name__}: {str(failure).splitlines()[0][:90] if str(failure) else ''}"
                return ""

            with ThreadPoolExecutor(len(tiles) if gpu else 1) as pool:
                outcomes = list(pool.map(compiled, tiles))
            times: dict[Tile, float] = {}
            plain = product(name, x[:16], weights[0], None, None if logits is None else logits[:16])
            few = products.added(plain, dtype).clone()
            for tile, outcome in zip(tiles, outcomes, strict=True):
                try:
                    if outcome:
                        raise RuntimeError(outcome)
                    same = products.added(product(name, x, weights[0], tile, logits), dtype)[:16]
                    report.check(f"bits of {name} {tokens} {tuple(tile)}", float((same != few).sum()), 0.0)
                    calls = [partial(product, name, x, w, tile, logits) for w in weights] * rounds
                    times[tile] = graph_seconds(calls, device)
                except Exception as failure:
                    print(f"  {name} {tokens} {tuple(tile)}: {str(failure).splitlines()[0][:120]}", flush=True)
            library = graph_seconds([partial(library_product, name, x, w, logits) for w in weights] * rounds, device)
            if not times:
                continue
            best = min(times, key=lambda tile: times[tile])
            products.TUNED[rows, columns, products.padded_tokens(tokens)] = best
            found.append(
                {
                    "shape": name, "tokens": tokens, "bytes": size, "cublas_us": 1e6 * library,
                    "tiles": [{"tile": list(tile), "us": 1e6 * t} for tile, t in times.items()],
                }
            )  # fmt: skip
            others = " ".join(f"{1e6 * t:.1f}" for t in times.values())
            print(
                f"  {name:>8}{tokens:>7}{1e6 * library:>9.1f}{size / library / 1e12:>7.2f}"
                f"   {1e6 * times.get(tiles[0], float('nan')):>8.1f}   {1e6 * times[best]:.1f}"
                f" {size / times[best] / 1e12:.2f} x{times[best] * bandwidth / size:.2f} {tuple(best)}  [{others}]",
                flush=True,
            )
            del weights
    report.save()


def time_parts(report: Report, config: ModelConfig, device: torch.device, dtype: torch.dtype, deadline: float) -> None:
    """Streamed products by their number of parts: the fewer, the less the next kernel has to add up."""
    found: list[dict[str, Any]] = report.parts.setdefault("parts", [])
    shapes = shapes_of(config, 1)
    for tokens, name in [(tokens, name) for tokens in (64, 512, 16, 128) for name in ("qkv", "o", "down")]:
        if device.type != "cuda" or time.perf_counter() > deadline:
            return
        rows, columns = shapes[name]
        x = torch.randn(tokens, columns, device=device).to(dtype)
        weights = [torch.empty(rows, columns, device=device, dtype=dtype).normal_(std=columns**-0.5) for _ in range(6)]
        jobs = []
        for parts in (1, 2, 4):
            for height, step, warps, slots in ((64, 64, 4, 3), (64, 64, 4, 1), (64, 128, 4, 1), (128, 128, 8, 1)):
                room = {1: 226_000, 2: 112_000, 3: 74_500}[slots]
                stages = min(10, room // ((height + tokens) * step * 2))
                if tokens <= products.STREAMED_TOKENS:
                    jobs.append((parts, Tile(height, step, tokens, stages, warps)))
            if tokens > products.STREAMED_TOKENS and parts < 4:
                some = [(128, 64, 128, 4, 8), (128, 64, 128, 3, 8), (128, 64, 64, 4, 4)]
                some += [(256, 64, 128, 3, 8)] if parts == 1 else []
                jobs += [(parts, Tile(*tile, True, True, True)) for tile in some]
            if tokens == 128:
                jobs += [(parts, Tile(128, 64, 64, 3, 4)), (parts, Tile(64, 64, 128, 4, 4, tokens_first=True))]

        def run(
            job: tuple[int, Tile], weight: Tensor, x: Tensor = x, shape: tuple[int, int] = (rows, columns)
        ) -> Tensor:
            products.PARTS[shape] = job[0]
            return products.product(x, weight, tile=job[1])

        def compiled(job: tuple[int, Tile], weight: Tensor = weights[0]) -> None:
            torch.zeros(1, device=device)
            with torch.inference_mode():
                run(job, weight)

        with patch.dict(products.PARTS):
            for parts in sorted({parts for parts, _ in jobs}):  # one number of parts at a time: threads share the table
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(compiled, [job for job in jobs if job[0] == parts]))
            times = {job: graph_seconds([partial(run, job, w) for w in weights] * 4, device) for job in jobs}
        for parts in sorted({parts for parts, _ in jobs}):
            # A part's sums are written and read once more than a whole's; that isn't in these figures.
            best = min((job for job in jobs if job[0] == parts), key=lambda job: times[job])
            found.append(
                {"shape": name, "tokens": tokens, "parts": parts, "tile": list(best[1]), "us": 1e6 * times[best]}
            )
            print(f"  {name} {tokens}, {parts} parts: {1e6 * times[best]:.1f} us {tuple(best[1])}", flush=True)
        report.save()


def time_forward(
    report: Report, config: ModelConfig, drafter: DrafterConfig, device: torch.device, dtype: torch.dtype,
    contexts: tuple[int, ...], bandwidth: float, rate: float, deadline: float,
) -> None:  # fmt: skip
    """The whole pass, present and new, over the roofline; what each piece costs; kernels by time."""
    from pass_timings import draft_floor, profile_table, verify_floor
    from selftest import error

    weights, drafter_weights = (
        random_target(config, device=device, dtype=dtype),
        random_drafter(drafter, device=device, dtype=dtype),
    )
    engine = Engine(
        config, weights, drafter, drafter_weights, max_context=max(contexts), max_tokens=max(COUNTS),
        buckets=sorted(COUNTS),
    )  # fmt: skip
    for stack in (engine.stack, engine.drafter_stack):
        stack.keys.normal_()
        stack.values.normal_()
    rng = np.random.default_rng(4)
    rows: list[dict[str, Any]] = report.parts.setdefault("forward", [])

    def verify_seconds(tokens: int, context: int) -> float:
        bucket = engine.bucket_for(tokens)
        engine.graphs.captured.pop(("verify", bucket.tokens), None)
        engine.set_context(context)
        return statistics.median(event_seconds(partial(engine.verify, bucket), device, 12))

    def add(what: str, tokens: int, context: int, seconds: float, floor: float) -> None:
        rows.append({"what": what, "tokens": tokens, "context": context, "ms": 1e3 * seconds, "ratio": seconds / floor})
        print(
            f"  {what:<28}{tokens:>4} at {context:>5}: {1e3 * seconds:8.3f} ms, x{seconds / floor:.3f}"
            f" ({1e6 * (seconds - floor):.0f} us over)",
            flush=True,
        )

    for tokens in COUNTS:
        engine.stage([random_tree(tokens, 15, config.vocab_size, rng)])
        engine.wait()
        logits = {}
        for fast in (True, False):
            engine.fast = fast
            for context in contexts:
                seconds = verify_seconds(tokens, context)
                floor = max(verify_floor(config, tokens, context, bandwidth, rate))
                add("fast" if fast else "default", tokens, context, seconds, floor)
            logits[fast] = engine.logits[:tokens].clone()
            engine.wait()
        report.check(f"logits default against fast, {tokens}", error(logits[False], logits[True]), 5e-2)

    tokens, context = 64, contexts[0]
    floor = max(verify_floor(config, tokens, context, bandwidth, rate))

    def query_only(query: Tensor, *_: object, **__: object) -> Tensor:
        return query[:, : config.num_heads * config.head_dim].contiguous()

    def draft() -> None:
        engine.graphs.captured.pop("draft", None)
        engine.set_context(contexts[0])
        seconds = statistics.median(event_seconds(engine.draft, device, 12))
        floor = max(draft_floor(config, drafter, contexts[0], bandwidth, rate))
        add("draft", drafter.block_size, contexts[0], seconds, floor)

    def profiles() -> None:
        tables = report.parts.setdefault("kernels", {})
        for count in (64, 512, 16):
            verify_seconds(count, context)
            bucket = engine.bucket_for(count)
            name = f"verify {count} (times overlap)"
            tables[name] = profile_table(name, partial(engine.verify, bucket))

    report.part("draft", draft)
    if device.type == "cuda":
        report.part("kernels by time", profiles)

    qkv, o, down = (shapes_of(config, 1)[name] for name in ("qkv", "o", "down"))

    @contextmanager
    def parts(count: int, *tiles: Tile) -> Iterator[None]:
        with (
            patch.dict(products.PARTS, dict.fromkeys((qkv, o, down), count)),
            patch.dict(
                products.TUNED, {(*shape, 64): tile for shape, tile in zip((qkv, o, down), tiles, strict=False)}
            ),
        ):
            yield

    deep = Tile(64, 64, 64, 6), Tile(64, 128, 64, 6), Tile(64, 128, 64, 6)
    variants: dict[str, Any] = {
        "as it is": nullcontext(),
        "2 parts": parts(2),
        "2 parts, deep tiles": parts(2, *deep),
        "1 part, deep tiles": parts(1, Tile(64, 128, 64, 6), *deep[1:]),
        "no prefetch": patch.object(products, "PREFETCH", 0),
        "prefetch of 12 steps": patch.object(products, "PREFETCH", 12),
        "no early launch": patch.object(kernels, "EARLY_LAUNCH", False),
        "default tiles": patch.dict(products.TUNED, clear=True),
        "attention, a program a part": patch.object(attention, "BUSY", 1 << 30),
        "attention, a program a group": patch.object(attention, "BUSY", 0),
        "attention, parts of 128": patch.object(attention, "PART", 128),
        "attention, parts of 512": patch.object(attention, "PART", 512),
        "without attention": patch.object(layers, "tree_attention", query_only),
    }
    for name, change in variants.items():
        if time.perf_counter() > deadline:
            print("  out of time: variants left out", flush=True)
            break
        try:
            with change:
                for length in contexts if name.startswith("attention") else contexts[:1]:
                    add(name, tokens, length, verify_seconds(tokens, length), floor)
        except Exception as failure:
            print(f"  {name}: {type(failure).__name__} {str(failure).splitlines()[0][:120]}", flush=True)


def run(
    report: Report, config: ModelConfig, drafter: DrafterConfig, device: torch.device, dtype: torch.dtype,
    contexts: tuple[int, ...], seconds: float,
) -> None:  # fmt: skip
    """All parts, in the order of their use; what fails is printed and doesn't stop the rest."""
    with patch.dict(products.TUNED):  # the whole pass is timed with the tiles found before it
        _run(report, config, drafter, device, dtype, contexts, seconds)


def _run(
    report: Report, config: ModelConfig, drafter: DrafterConfig, device: torch.device, dtype: torch.dtype,
    contexts: tuple[int, ...], seconds: float,
) -> None:  # fmt: skip
    auxiliary_layers = len(drafter.target_layer_ids)
    bandwidth, rate = copy_bandwidth(device), matmul_rate(device, dtype)
    report.parts["bandwidth_bytes_per_s"], report.parts["flops_per_s"] = bandwidth, rate
    print(f"  copy {bandwidth / 1e12:.2f} TB/s, products {rate / 1e12:.0f} TFLOP/s", flush=True)
    with torch.inference_mode():
        report.part("products, right or not", partial(check_products, report, config, device, dtype, auxiliary_layers))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        deadline = report.begin + 0.65 * seconds
        timing = partial(time_products, report, config, device, dtype, auxiliary_layers, deadline, bandwidth)
        report.part("products, how fast", timing)
        parts = partial(time_parts, report, config, device, dtype, report.begin + 0.75 * seconds)
        report.part("products, by parts", parts)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report.parts["tuned"] = [[*key, *tile] for key, tile in products.TUNED.items()]
    for key, tile in products.TUNED.items():
        print(f"    {key}: Tile{tuple(tile)},", flush=True)
    end = report.begin + 1.1 * seconds
    forward = partial(time_forward, report, config, drafter, device, dtype, contexts, bandwidth, rate, end)
    report.part("the whole pass", forward)
