"""First minutes on a GPU: are the kernels and the engine right there, to the bit? ``pass_timings.py`` then times them.

``python3 reference/tools/selftest.py [--out DIR] [--seconds 45] [--bits | --products]``
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import checkout  # noqa: F401
from ddsim.files.atomic import write_text
from ddsim_reference.engine import attention, kernels
from ddsim_reference.engine.buckets import Bucket, TokenTree
from ddsim_reference.engine.engine import Engine, project_head
from ddsim_reference.model import forward
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, drafter_config
from ddsim_reference.model.forward import head_logits
from ddsim_reference.model.heads import HeadConfig, head_shapes
from ddsim_reference.model.sampling import choose
from ddsim_reference.model.shapes import random_drafter, random_target, random_weights, shape_configs
from ddsim_reference.profile import random_tree
from pass_timings import print_table, time_engine


@contextmanager
def plain() -> Iterator[None]:
    """Run the PyTorch twins of all kernels, also where Triton would run."""
    with (
        patch.object(kernels, "use_triton", return_value=False),
        patch.object(attention, "use_triton", return_value=False),
    ):
        yield


def error(out: Tensor, reference: Tensor) -> float:
    """‖out − reference‖ / ‖reference‖ in float64; not a number if anything is."""
    a, b = out.double(), reference.double()
    scale = float(b.norm())
    return float((a - b).norm()) / (scale if scale > 0 else 1.0)


class Report:
    """What was found: lines printed as they come, and a JSON file rewritten after each part."""

    def __init__(self, out: Path | None) -> None:
        self.path = None if out is None else out / "selftest.json"
        self.parts: dict[str, Any] = {}
        self.failures: list[str] = []
        self.begin = time.perf_counter()

    def check(self, name: str, value: float, limit: float) -> None:
        """One comparison: its error and whether it is small enough."""
        good = value <= limit  # not a number is not
        self.parts.setdefault("errors", {})[name] = value
        if not good:
            self.failures.append(f"{name}: {value:.2e} > {limit:.0e}")
        print(f"  {'ok  ' if good else 'FAIL'} {name}: {value:.2e}", flush=True)

    def part(self, name: str, body: Callable[[], None]) -> None:
        """Run one part; what it raises is printed and doesn't stop the others."""
        begin = time.perf_counter()
        print(f"[{begin - self.begin:6.1f} s] {name}", flush=True)
        try:
            body()
        except Exception as failure:
            self.failures.append(
                f"{name}: {type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            )
            print("".join(traceback.format_exc().splitlines(keepends=True)[-14:]), flush=True)
        self.parts.setdefault("seconds", {})[name] = time.perf_counter() - begin
        self.save()

    def save(self) -> None:
        """Write what is known so far."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            document = {**self.parts, "failures": self.failures}
            write_text(self.path, json.dumps(document, indent=1) + "\n")


# (a) Kernels against their PyTorch twins.


def check_small_kernels(report: Report, device: torch.device, heads: int, kv_heads: int, dim: int, hidden: int) -> None:
    """Norm, SwiGLU, rotary write, row moves, walk, sampling and matrix-vector products."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    types = ((torch.float32, 1e-5), (torch.bfloat16, 8e-3))
    for dtype, limit in types:
        tag = f"{str(dtype)[6:]} h{hidden}"
        x, delta, weight = normal(5, hidden, dtype=dtype), normal(5, hidden, dtype=dtype), normal(hidden, dtype=dtype)
        for d in (None, delta):
            x1, x2 = x.clone(), x.clone()
            out = kernels.add_rms_norm(x1, d, weight, 1e-5)
            with plain():
                twin = kernels.add_rms_norm(x2, d, weight, 1e-5)
            report.check(f"add_rms_norm {tag} add={d is not None}", max(error(out, twin), error(x1, x2)), limit)
        wide = normal(5, 2 * hidden * 3, dtype=dtype)
        out = kernels.silu_mul(wide)
        with plain():
            report.check(f"silu_mul {tag}", error(out, kernels.silu_mul(wide)), limit)

        batch, length, m = 3, 80, 7
        cos, sin = forward.rope_table(torch.arange(length, device=device), dim, 1e4)
        position = torch.tensor([0, 1, 2, 9, 30, 31, 79], dtype=torch.int32, device=device)
        request = torch.tensor([0, 0, 1, 1, 2, 2, 0], dtype=torch.int32, device=device)
        slot = torch.tensor([0, 1, 2, -1, 30, 33, 79], dtype=torch.int32, device=device)
        for norms in (False, True):
            qkv = normal(m, (heads + 2 * kv_heads) * dim, dtype=dtype)
            qn, kn = (normal(dim, dtype=dtype), normal(dim, dtype=dtype)) if norms else (None, None)
            results = []
            for twin_runs in (False, True):
                q = qkv.clone()
                keys, values = torch.zeros(2, batch, kv_heads, length, dim, device=device, dtype=dtype)
                if twin_runs:
                    with plain():
                        kernels.rope_write(q, qn, kn, 1e-6, cos, sin, position, request, slot, keys, values)
                else:
                    kernels.rope_write(q, qn, kn, 1e-6, cos, sin, position, request, slot, keys, values)
                results.append((q, keys, values))
            worst = max(error(a, b) for a, b in zip(*results, strict=True))
            report.check(f"rope_write {tag} qk_norm={norms}", worst, limit)

        keys, values = (
            normal(4, batch, kv_heads, length, dim, dtype=dtype),
            normal(4, batch, kv_heads, length, dim, dtype=dtype),
        )
        path = torch.zeros(batch, 16, dtype=torch.int32, device=device)
        path[0, :4] = torch.tensor([0, 2, 5, 17])
        path[1, :2] = torch.tensor([0, 1])
        count = torch.tensor([4, 2, 0], dtype=torch.int32, device=device)
        context = torch.tensor([10, 60, 5], dtype=torch.int32, device=device)
        moved = [(keys.clone(), values.clone()) for _ in range(2)]
        kernels.move_rows(*moved[0], context, path, count)
        with plain():
            kernels.move_rows(*moved[1], context, path, count)
        report.check(f"move_rows {tag}", max(error(a, b) for a, b in zip(*moved, strict=True)), 0.0)

        one = normal(1, hidden, dtype=dtype)
        matrix = normal(6 * 64, hidden, dtype=dtype) * hidden**-0.5
        limit_dot = 1e-5 if dtype == torch.float32 else 1.2e-2
        for norm, gated, add in (
            (None, False, False),
            (weight, False, False),
            (weight, True, False),
            (None, False, True),
        ):
            n = 192 if gated else 384
            runs = []
            for twin_runs in (False, True):
                stream = torch.ones(1, n, device=device, dtype=dtype) if add else None
                if twin_runs:
                    with plain():
                        runs.append(kernels.gemv(one, matrix, norm=norm, eps=1e-5, gated=gated, add=stream))
                else:
                    runs.append(kernels.gemv(one, matrix, norm=norm, eps=1e-5, gated=gated, add=stream))
            report.check(f"gemv {tag} norm={norm is not None} gated={gated} add={add}", error(*runs), limit_dot)
        logits = torch.empty(1, 384, device=device)
        kernels.gemv(one, matrix, out=logits)
        exact = dtype == torch.float32 or kernels.use_triton(one)  # the twin rounds to the operands' type
        report.check(f"gemv {tag} float32 out", error(logits, one.float() @ matrix.float().T), 1e-5 if exact else 8e-3)
        some = normal(24, hidden, dtype=dtype)
        logits = torch.empty(24, 384, device=device)
        project_head(some, matrix, logits)
        report.check(f"project_head {tag}", error(logits, some.double() @ matrix.double().T), 1e-5)

    rng = np.random.default_rng(0)
    for size in (1, 40, 300):
        bucket = Bucket(size + 6, 2, heads // kv_heads, device)
        trees = [random_tree(size, 9, 5, rng), random_tree(4, 3, 5, rng)]
        bucket.pack(trees)
        if bucket.uploaded is not bucket.staging:
            bucket.uploaded.copy_(bucket.staging)
        on = bucket.on
        choices = torch.from_numpy(rng.integers(0, 5, size + 6).astype(np.int32)).to(device)
        arguments = (on["token"], on["parent"], choices, on["start"], on["size"], 16, bucket.tokens)
        out = kernels.walk(*arguments)
        with plain():
            # Siblings of one token: the kernel takes the last, the twin's dictionary too.
            twin = kernels.walk(*arguments)
        worst = max(float((a != b).sum()) for a, b in zip(out, twin, strict=True))
        report.check(f"walk {size} + 4 tokens", worst, 0.0)

    logits = normal(64, 49_152, dtype=torch.float32) * 3
    uniform = torch.rand(64, dtype=torch.float64, device=device, generator=generator)
    for temperature in (0.5, 1.0):
        picked = kernels.choose_tokens(logits, temperature, uniform)
        differing = int((picked != choose(logits, temperature, uniform).int()).sum())
        report.check(f"choose_tokens T={temperature} (differing of 64)", float(differing), 0.0)


def check_attention(report: Report, device: torch.device, heads: int, kv_heads: int, dim: int) -> None:
    """Tree attention over ragged forests, parts joined by one program or by several."""
    rng = np.random.default_rng(2)
    generator = torch.Generator(device).manual_seed(2)
    group = heads // kv_heads
    cases = (  # tokens of each request (None: no part), contexts, bucket
        ((1,), (300,), 1),
        ((37,), (0,), 48),
        ((130,), (517,), 160),
        ((3, None, 70, 1), (0, 5, 1640, 77), 96),
    )
    for dtype, limit in ((torch.bfloat16, 1e-2), (torch.float32, 1e-5)):
        for sizes, contexts, tokens in cases:
            batch, length = len(sizes), 1792
            bucket = Bucket(tokens, batch, group, device)
            bucket.pack([None if m is None else random_tree(m, 15, 100, rng) for m in sizes])
            if bucket.uploaded is not bucket.staging:
                bucket.uploaded.copy_(bucket.staging)
            metadata = bucket.metadata(torch.tensor(contexts, dtype=torch.int32, device=device), 16)
            keys, values = torch.randn(2, batch, kv_heads, length, dim, device=device, generator=generator).to(dtype)
            qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=device, generator=generator).to(dtype)
            qkv *= 2
            used = sum(m or 0 for m in sizes)
            with plain():
                twin = attention.tree_attention(qkv.float(), heads, keys.float(), values.float(), metadata)[:used]
            for together in (False, True):
                name = f"attention {str(dtype)[6:]} d{dim} {sizes} together={together}"
                try:
                    out = attention.tree_attention(qkv, heads, keys, values, metadata, together=together)[:used]
                    report.check(name, error(out, twin), limit)
                except Exception as failure:
                    report.failures.append(f"{name}: {str(failure).splitlines()[0][:100]}")
                    print(f"  FAIL {name}: {str(failure).splitlines()[0][:160]}", flush=True)
                    break


# (b) The engine against dense forward passes.


def tree_forward(
    config: ModelConfig, weights: Weights, prompt: Sequence[int], tree: TokenTree, auxiliary_layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Features and float32 logits of a prompt's tokens followed by a tree's, by the dense forward pass."""
    device = weights["model.embed_tokens.weight"].device
    p, m = len(prompt), len(tree.tokens)
    tokens = torch.tensor([[*prompt, *tree.tokens.tolist()]], device=device)
    positions = torch.cat((torch.arange(p), p + torch.from_numpy(tree.depths).long()))[None].to(device)
    mask = torch.zeros(p + m, p + m, dtype=torch.bool)
    mask[:p, :p] = torch.ones(p, p, dtype=torch.bool).tril()
    mask[p:, :p] = True
    mask[p:, p:] = attention.unpack_mask(torch.from_numpy(tree.mask.view(np.int32)), m)
    layers = forward.target_layers(config, weights)
    features, hidden = forward.target_features(
        config, weights, layers, tokens, positions, forward.masked_attention(mask.to(device)), auxiliary_layers or (0,)
    )
    return features[0], head_logits(hidden[0], weights["lm_head.weight"])


def decoy_tree(path: Sequence[int], vocab: int, size: int, rng: np.random.Generator) -> tuple[TokenTree, list[int]]:
    """A tree of ``size`` tokens that holds ``path`` (its root first) among random others; and where the path lies in it."""
    while True:
        tree = random_tree(size, len(path), vocab, rng)
        deepest = int(np.flatnonzero(tree.depths == tree.depths.max())[0])
        places = [deepest]
        while places[0] != 0:
            places.insert(0, int(tree.parents[places[0]]))
        if len(places) >= 3:
            places = places[: len(path)]
            tree.tokens[places] = path[: len(places)]
            return tree, places


def check_engine(
    report: Report, label: str, config: ModelConfig, drafter: DrafterConfig, device: torch.device, dtype: torch.dtype,
    limit: float,
) -> None:  # fmt: skip
    """Verification, commit and draft of the engine, with graphs and without, against dense passes in float32."""
    weights = random_target(config, device=device, dtype=dtype)
    drafter_weights = random_drafter(drafter, device=device, dtype=dtype)
    rng = np.random.default_rng(3)
    prompt = rng.integers(0, config.vocab_size, 75).tolist()
    tree, places = decoy_tree(rng.integers(0, config.vocab_size, 6).tolist(), config.vocab_size, 50, rng)
    outcome: dict[str, tuple[Tensor, ...]] = {}
    for graphs in (False, True) if device.type == "cuda" else (False,):
        engine = Engine(
            config, weights, drafter, drafter_weights, max_context=192, max_tokens=96, candidates=64,
            cuda_graphs=graphs, buckets=(1, 16, 64),
        )  # fmt: skip
        # A neighbour in a second request would hide offsets that a batch of one cannot show; batch 2 is checked below.
        prefilled = engine.prefill(0, prompt).clone()
        bucket = engine.stage([tree])
        logits = engine.verify(bucket)[: len(tree.tokens)].clone()
        features = engine.features[: len(tree.tokens)].clone()
        # Whatever the random model says, the path is what is accepted.
        for here, after in pairwise(places):
            engine.choices[here] = int(tree.tokens[after])
        bonus = 7
        children = [int(tree.tokens[j]) for j in np.flatnonzero(tree.parents == places[-1])]
        while bonus in children:
            bonus += 1
        engine.choices[places[-1]] = bonus
        engine.commit(bucket)
        engine.draft()
        engine.wait()
        accepted, following = engine.collect()[0]
        if accepted != places or following != bonus:
            report.failures.append(f"{label} commit: accepted {accepted} then {following}, not {places} then {bonus}")
            print(f"  FAIL {label} commit: {accepted}, {following} against {places}, {bonus}", flush=True)
        total = len(prompt) + len(places)
        keys, values = engine.stack.keys[:, 0, :, :total].clone(), engine.stack.values[:, 0, :, :total].clone()
        logprobs, ids = (torch.from_numpy(np.array(x[0])) for x in engine.drafted())
        outcome[f"graphs={graphs}"] = (prefilled, logits, features, keys, values, logprobs, ids)
        if not graphs:
            fresh = Engine(config, weights, max_context=192, max_tokens=96, cuda_graphs=False)
            fresh.prefill(0, [*prompt, *tree.tokens[places].tolist()])
            pairs = ((keys, fresh.stack.keys), (values, fresh.stack.values))
            worst = max(error(a, b[:, 0, :, :total]) for a, b in pairs)
            report.check(f"{label} cache after commit against plain prefill", worst, limit)
        if graphs and device.type == "cuda":
            engine.fast = True
            engine.set_context(len(prompt))
            one = engine.stage([TokenTree.chain(tree.tokens[:1])])
            with_gemv = engine.verify(one)[:1].clone()
            report.check(f"{label} one token through gemv against the tree's root", error(with_gemv, logits[:1]), limit)

    wide = {name: tensor.float() for name, tensor in weights.items()}
    wide_drafter = {name: tensor.float() for name, tensor in drafter_weights.items()}
    ref_features, ref_logits = tree_forward(config, wide, prompt, tree, drafter.target_layer_ids)
    path_tokens = [*prompt, *tree.tokens[places].tolist()]
    rows = [*range(len(prompt)), *(len(prompt) + j for j in places)]
    context_features = ref_features[rows][None]
    anchors = torch.tensor([len(path_tokens)], device=device)
    roots = torch.tensor([[bonus]], device=device)
    inputs, positions = forward.block_inputs(drafter, roots, anchors[None])
    hidden = forward.drafter_hidden(
        drafter, wide_drafter, context_features, torch.arange(len(path_tokens), device=device)[None],
        F.embedding(inputs, wide["model.embed_tokens.weight"]), positions,
        forward.masked_attention(forward.block_mask(anchors, len(path_tokens), drafter.block_size)),
    )  # fmt: skip
    drafted = head_logits(hidden[0, 1:], wide["lm_head.weight"])
    ref_logprobs = drafted.log_softmax(-1)
    for name, (prefilled, logits, features, _, _, logprobs, ids) in outcome.items():
        p = len(prompt)
        report.check(f"{label} {name} prefill against dense", error(prefilled[0], ref_logits[p - 1]), limit)
        report.check(f"{label} {name} tree logits against dense", error(logits, ref_logits[p:]), limit)
        report.check(f"{label} {name} features against dense", error(features, ref_features[p:]), limit)
        at = ref_logprobs.gather(1, ids.to(device).long())
        gap = float((logprobs.to(device) - at).abs().max())
        report.check(f"{label} {name} marginals against dense (largest difference, nats)", gap, max(0.02, 10 * limit))
    if len(outcome) == 2:
        same = [error(a.double(), b.double()) for a, b in zip(*outcome.values(), strict=True)]
        report.check(f"{label} graphs against none", max(same), limit / 5)


def check_batch(report: Report, config: ModelConfig, device: torch.device, dtype: torch.dtype, limit: float) -> None:
    """Three requests with ragged trees in one pass equal each alone."""
    weights = random_target(config, device=device, dtype=dtype)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in (20, 3, 61)]
    trees = [random_tree(m, 12, config.vocab_size, rng) for m in (17, 1, 33)]
    engine = Engine(config, weights, max_context=96, max_tokens=96, batch=3)
    for b, prompt in enumerate(prompts):
        engine.prefill(b, prompt)
    together = engine.verify(engine.stage(trees)).clone()
    at = 0
    for prompt, tree in zip(prompts, trees, strict=True):
        alone = Engine(config, weights, max_context=96, max_tokens=96)
        alone.prefill(0, prompt)
        m = len(tree.tokens)
        logits = alone.verify(alone.stage([tree]))[:m]
        report.check(f"batch {str(dtype)[6:]}: {m} of 51 tokens", error(together[at : at + m], logits), limit)
        at += m


# (c) Bits.

CROWD = 32
"""Requests among which a head drafts for one that was alone before."""


def check_bits(report: Report, label: str, config: ModelConfig, drafter: DrafterConfig, device: torch.device) -> None:
    """A path's logits, features, keys and values, and what is drafted after it, bit by bit: token by token, and in every company.

    In trees of up to 512 tokens at any places, in prompts cut differently, in batches, from graphs and without; at contexts that end
    within parts of the attention and at their edges.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = random_target(config, device=device, dtype=dtype)
    drafter_weights = random_drafter(drafter, device=device, dtype=dtype)
    rng = np.random.default_rng(6)
    steps, most = 7, 512 if device.type == "cuda" else 16
    sizes = [m for m in (2, 8, 16, 20, 33, 64, 128, 200, 300, 512) if m <= most]

    def made(batch: int, tokens: int, graphs: bool) -> Engine:
        return Engine(
            config, weights, drafter, drafter_weights, max_context=1400, max_tokens=tokens, batch=batch, candidates=64,
            cuda_graphs=graphs, buckets=sorted({1, batch, *sizes}),
        )  # fmt: skip

    engine, other = made(1, most, False), made(3, most + 40, False)
    graphed = made(1, most, True) if device.type == "cuda" else None
    head = HeadConfig("gated", 512, reach=1)
    random_head = random_weights(head_shapes(head, drafter), device=device, dtype=dtype, seed=3)
    crowd = lone = None
    if device.type == "cuda":
        crowd, lone = (
            Engine(
                config, weights, drafter, drafter_weights, (head, random_head), max_context=128, max_tokens=128, batch=batch,
                cuda_graphs=False,
            )
            for batch in (CROWD, 1)
        )  # fmt: skip

    def found(engine: Engine, b: int, context: int, first: int, places: Sequence[int]) -> list[Tensor]:
        """What a pass left of the tokens at some places of request b's tree."""
        rows = [context + j for j in places]
        at = [first + j for j in places]
        cache = [x[:, b, :, rows].transpose(0, 2) for x in (engine.stack.keys, engine.stack.values)]
        return [x.clone() for x in (engine.logits[at], engine.features[at], *cache)]

    def differing(ours: list[Tensor], wanted: list[Tensor]) -> float:
        if device.type == "cpu":  # whose library adds up as it likes
            return float(max(error(a, b[: len(a)]) for a, b in zip(ours, wanted, strict=True)) > 1e-4)
        return float(sum(int((a != b[: len(a)]).sum()) for a, b in zip(ours, wanted, strict=True)))

    def drafted(engine: Engine, b: int, root: int) -> list[Tensor]:
        engine.set_root(b, root)
        engine.draft()
        engine.wait()
        return [torch.from_numpy(x[b].copy()) for x in engine.drafted()]

    for context in (5, 75, 127, 128, 513, 530, 1300) if device.type == "cuda" else (75,):
        prompt = rng.integers(0, config.vocab_size, context).tolist()
        path = rng.integers(0, config.vocab_size, steps).tolist()
        engine.set_context(0)
        engine.prefill(0, prompt)
        cached = [x[:, 0, :, :context].clone() for x in (engine.stack.keys, engine.stack.values)]
        draft = drafted(engine, 0, path[0])
        alone: list[list[Tensor]] = []
        for i, token in enumerate(path):
            engine.set_context(context + i)
            engine.verify(engine.stage([TokenTree.chain([token])]))
            alone.append(found(engine, 0, context + i, 0, [0]))
            engine.wait()
        wanted = [torch.cat(parts) for parts in zip(*alone, strict=True)]
        for which in (engine, graphed):
            if which is None:
                continue
            if which is graphed:
                which.set_context(0)
                which.prefill(0, prompt)
            for size in sizes:
                which.set_context(context)
                if size < 16:
                    tree, places = TokenTree.chain([*path, 1][:size]), list(range(min(size, steps)))
                else:
                    tree, places = decoy_tree(path, config.vocab_size, size, rng)
                which.verify(which.stage([tree]))
                name = f"{label} bits of {size} tokens at {context}{', graph' if which is graphed else ''}"
                report.check(name, differing(found(which, 0, context, 0, places), wanted), 0.0)
                which.wait()
        if graphed is not None:
            graphed.set_context(0)
            graphed.prefill(0, prompt)
            report.check(
                f"{label} drafted bits at {context}, graph", differing(drafted(graphed, 0, path[0]), draft), 0.0
            )
        # In the middle of a batch, its prompt cut elsewhere.
        neighbours = [rng.integers(0, config.vocab_size, n).tolist() for n in (90, 700 if context > 80 else 9)]
        other.set_context(0)
        other.max_tokens = max(3, context // 3)
        for b, text in enumerate((neighbours[0], prompt, neighbours[1])):
            other.prefill(b, text)
        other.max_tokens = most + 40
        ours = [x[:, 1, :, :context] for x in (other.stack.keys, other.stack.values)]
        report.check(f"{label} bits of a prompt of {context} cut elsewhere", differing(ours, cached), 0.0)
        other.set_roots([3, path[0], 4])
        report.check(
            f"{label} drafted bits at {context}, in a batch", differing(drafted(other, 1, path[0]), draft), 0.0
        )
        if crowd is not None and lone is not None and context < 100:
            crowd.set_context(0)
            lone.set_context(0)
            for b in range(CROWD):
                crowd.prefill(b, prompt[: 1 + context % 90] if b == CROWD // 2 else neighbours[0][: 1 + b])
            lone.prefill(0, prompt[: 1 + context % 90])
            crowd.set_roots(range(CROWD))
            ours = drafted(crowd, CROWD // 2, path[0])
            report.check(
                f"{label} a head's bits at {context}, among {CROWD}", differing(ours, drafted(lone, 0, path[0])), 0.0
            )
        for size in sizes[2:]:
            tree, places = decoy_tree(path, config.vocab_size, max(16, size - 17), rng)
            trees = [random_tree(3, 12, config.vocab_size, rng), tree, random_tree(14, 12, config.vocab_size, rng)]
            other.verify(other.stage(trees))
            ours = found(other, 1, context, 3, places)
            report.check(f"{label} bits of {size} tokens at {context}, in a batch", differing(ours, wanted), 0.0)
            other.wait()


# The parts together.


def small_config(arch: str, hidden: int, heads: int, kv_heads: int, dim: int, inner: int, layers: int) -> ModelConfig:
    """A target to test with."""
    return ModelConfig(
        arch=arch, hidden_size=hidden, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim,
        intermediate_size=inner, vocab_size=8192, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=False,
        eos_token_ids=(), max_position_embeddings=8192, qk_norm=arch == "qwen3",
    )  # fmt: skip


def small_drafter(target: ModelConfig) -> DrafterConfig:
    """A drafter of two layers to test with."""
    layer = max(target.num_layers - 3, 0)
    return drafter_config(target, layers=2, mask_token_id=target.vocab_size - 1, layer_ids=(layer,))


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="selftest.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for selftest.json ($OUT)")
    parser.add_argument("--seconds", type=float, default=45.0, help="no new timing starts after so many seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="qwen3-8b", help="shape of the timed model")
    parser.add_argument("--bits", action="store_true", help="only the comparisons bit by bit")
    parser.add_argument("--skip-checks", action="store_true", help="only the timings")
    parser.add_argument("--products", action="store_true", help="only the passes of 16 to 128 tokens, piece by piece")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    report = Report(options.out)
    report.parts["device"] = torch.cuda.get_device_name() if gpu else "cpu"
    report.parts["torch"] = torch.__version__
    triton = "Triton" if kernels.use_triton(torch.empty(0, device=device)) else "no Triton"
    print(f"{report.parts['device']}, torch {torch.__version__}, {triton}")
    smollm2 = small_config("llama", 576, 9, 3, 64, 1536, 4)
    qwen3 = small_config("qwen3", 4096, 32, 8, 128, 12_288, 4) if gpu else small_config("qwen3", 256, 8, 2, 32, 512, 3)

    def checks() -> None:
        for config in (smollm2, qwen3):
            shape = (config.num_heads, config.num_kv_heads, config.head_dim)
            report.part(
                f"kernels, hidden {config.hidden_size}",
                partial(check_small_kernels, report, device, *shape, config.hidden_size),
            )
            report.part(f"attention, head_dim {config.head_dim}", partial(check_attention, report, device, *shape))
        types = [(torch.float32, 2e-5)] + ([(torch.bfloat16, 4e-2)] if gpu else [])
        for config in (smollm2, qwen3):
            for dtype, limit in types:
                label = f"engine {config.arch} {str(dtype)[6:]}"
                drafter = small_drafter(config)
                report.part(label, partial(check_engine, report, label, config, drafter, device, dtype, limit))
        report.part("batch of ragged trees", partial(check_batch, report, smollm2, device, *types[-1]))

    def bits() -> None:
        for config in (smollm2, qwen3) if gpu else (qwen3,):  # on a CPU only whether this part runs
            label = f"{config.arch} {config.hidden_size}"
            report.part(f"bits, {label}", partial(check_bits, report, label, config, small_drafter(config), device))

    if options.products:
        import product_timings

        if not gpu:
            print("no GPU: only the script is tried, on a tiny shape")
        shape = shape_configs(options.shape) if gpu else (qwen3, small_drafter(qwen3))
        kind, lengths = (torch.bfloat16, (512, 4096)) if gpu else (torch.float32, (32, 64))
        product_timings.run(report, *shape, device, kind, lengths, options.seconds)
        return finish(report)
    if options.bits:
        bits()
        return finish(report)
    if not options.skip_checks:
        checks()
        bits()
        if gpu:
            torch.cuda.empty_cache()
    if gpu:
        configs = shape_configs(options.shape)
        counts: tuple[int, ...] = (1, 2, 8, 16, 32, 64, 128, 256, 512)
        contexts: tuple[int, ...] = (512, 4096)
        dtype = torch.bfloat16
    else:
        configs = (qwen3, small_drafter(qwen3))
        counts, contexts, dtype = (1, 8, 16), (32, 64), torch.float32
    deadline = report.begin + options.seconds
    timing = partial(time_engine, report, *configs, device, dtype, counts, contexts, deadline)
    report.part(f"timing, {options.shape if gpu else 'tiny'} shape", timing)
    print_table(report.parts.get("timing", []))
    return finish(report)


def finish(report: Report) -> int:
    """Say what failed; the exit code."""
    checked = len(report.parts.get("errors", {}))
    print(f"{checked} comparisons, {len(report.failures)} failures, {time.perf_counter() - report.begin:.1f} s")
    for failure in report.failures:
        print(f"  {failure}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
