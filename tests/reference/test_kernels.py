"""Every Triton kernel against its PyTorch twin, in Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ddsim_reference.engine import attention, kernels, products
from ddsim_reference.engine.buckets import Bucket, TokenTree
from ddsim_reference.generate import TextGenerator
from ddsim_reference.model.forward import rope_table
from ddsim_reference.model.sampling import choose
from ddsim_reference.training import loss
from tests.reference import tiny
from tests.reference.interpreter import INTERPRETED, interpreted, run_in_the_interpreter

TYPES = (torch.float32, torch.bfloat16)
DOT_TYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16's bits


@pytest.mark.skipif(INTERPRETED, reason="is the subprocess")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(which: str) -> None:
    run_in_the_interpreter(__file__, which)


@contextmanager
def plain() -> Iterator[None]:
    """Run the PyTorch twins."""
    saved = kernels.use_triton
    kernels.use_triton = attention.use_triton = lambda x: False
    try:
        yield
    finally:
        kernels.use_triton = attention.use_triton = saved


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def random_tree(m: int, depth: int, vocab: int, rng: np.random.Generator) -> TokenTree:
    """A random tree of m tokens, the root included, none deeper than ``depth``; siblings differ."""
    parents, depths = np.full(m, -1, np.int32), np.zeros(m, np.int32)
    seen = np.eye(m, dtype=bool)
    for j in range(1, m):
        parent = int(rng.integers(0, j))
        while depths[parent] >= depth:
            parent = int(parents[parent])
        parents[j], depths[j] = parent, depths[parent] + 1
        seen[j] |= seen[parent]
    tokens = np.zeros(m, np.int32)
    for parent in range(m):
        children = np.flatnonzero(parents == parent)
        tokens[children] = rng.permutation(max(vocab, len(children)))[: len(children)]
    bits = np.zeros((m, 32 * -(-m // 32)), np.uint8)
    bits[:, :m] = seen
    return TokenTree(tokens, parents, depths, np.packbits(bits, axis=1, bitorder="little").view(np.uint32))


@interpreted
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [1, 48, 576, 1025])
@pytest.mark.parametrize("add", [False, True])
def test_add_rms_norm(dtype: torch.dtype, hidden: int, add: bool) -> None:
    x, weight = normal(3, hidden, dtype=dtype), normal(hidden, seed=2, dtype=dtype)
    delta = normal(3, hidden, seed=1, dtype=dtype) if add else None
    one, two = x.clone(), x.clone()
    out = kernels.add_rms_norm(one, delta, weight, 1e-5)
    with plain():
        twin = kernels.add_rms_norm(two, delta, weight, 1e-5)
    close(one, two, dtype)  # the interpreter cuts bfloat16 off, the GPU rounds it
    close(out, twin, dtype)


@interpreted
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("inner", [1, 80, 1536, 2049])
def test_silu_mul(dtype: torch.dtype, inner: int) -> None:
    x = normal(2, 2 * inner, dtype=dtype) * 3
    out = kernels.silu_mul(x)
    with plain():
        close(out, kernels.silu_mul(x), dtype)


@interpreted
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (8, 2, 128), (2, 2, 16)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_rope_write(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, qk_norm: bool) -> None:
    m, length = 5, 40
    qkv = normal(m, (heads + 2 * kv_heads) * dim, dtype=dtype)
    q_norm = normal(dim, seed=1, dtype=dtype) if qk_norm else None
    k_norm = normal(dim, seed=2, dtype=dtype) if qk_norm else None
    cos, sin = rope_table(torch.arange(length), dim, 1e4)
    position, request, slot = (
        torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 9, 30, 39], [0, 0, 1, 2, 0], [0, 1, -1, 33, 39])
    )
    results = []
    for twin in (False, True):
        own = qkv.clone()
        keys, values = torch.zeros(2, 3, kv_heads, length, dim, dtype=dtype)
        arguments = (own, q_norm, k_norm, 1e-6, cos, sin, position, request, slot, keys, values)
        if twin:
            with plain():
                kernels.rope_write(*arguments)
        else:
            kernels.rope_write(*arguments)
        results.append((own, keys, values))
    for a, b in zip(*results, strict=True):
        close(a, b, dtype)


@interpreted
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [64, 128])
def test_move_rows(dtype: torch.dtype, dim: int) -> None:
    layers, batch, kv_heads, length = 3, 4, 3, 40
    keys, values = (
        normal(layers, batch, kv_heads, length, dim, dtype=dtype),
        normal(layers, batch, kv_heads, length, dim, seed=1, dtype=dtype),
    )
    path = torch.zeros(batch, 16, dtype=torch.int32)
    path[0, :4] = torch.tensor([0, 2, 3, 17])
    path[1, :2] = torch.tensor([0, 1])
    path[3] = torch.arange(16) + torch.tensor([0, *[1] * 15])
    count = torch.tensor([4, 2, 0, 16], dtype=torch.int32)
    context = torch.tensor([10, 38, 5, 0], dtype=torch.int32)
    one, two = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    kernels.move_rows(*one, context, path, count)
    with plain():
        kernels.move_rows(*two, context, path, count)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], keys)


@interpreted
@pytest.mark.parametrize("size", [1, 2, 33, 130, 300])
def test_walk(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(6):
        bucket = Bucket(size + 7, 3, 1, torch.device("cpu"))
        bucket.pack([random_tree(size, 15, 4, rng), None, random_tree(5, 4, 4, rng)])
        on = bucket.on
        choices = torch.from_numpy(rng.integers(0, 3, size + 7).astype(np.int32))
        # The target agrees with half of the tree's edges, so that paths get long.
        for b, start in ((0, 0), (2, size)):
            for j in range(1, int(on["size"][b])):
                if rng.random() < 0.7:
                    choices[start + on["parent"][start + j]] = on["token"][start + j]
        arguments = (on["token"], on["parent"], choices, on["start"], on["size"], 16, bucket.tokens)
        out = kernels.walk(*arguments)
        with plain():
            twin = kernels.walk(*arguments)
        path, count, bonus = out
        assert torch.equal(count, twin[1])
        taking_part = [0, 2]
        assert torch.equal(bonus[taking_part], twin[2][taking_part])
        for b in taking_part:
            assert torch.equal(path[b, : count[b]], twin[0][b, : count[b]])


@interpreted
@pytest.mark.parametrize("vocab", [7, 1024, 3001])
def test_choose_tokens(vocab: int) -> None:
    logits = normal(24, vocab) * 3
    uniform = torch.rand(24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    uniform[0] = 0.0
    for temperature in (0.3, 1.0, 2.0):
        picked = kernels.choose_tokens(logits, temperature, uniform)
        assert torch.equal(picked, choose(logits, temperature, uniform).int())
    almost_one = torch.full_like(uniform, np.nextafter(1.0, 0.0))  # sums that differ in the last place differ here
    assert int(kernels.choose_tokens(logits, 1.0, almost_one).max()) < vocab


@interpreted
@pytest.mark.parametrize("vocab", [7, 9000])
def test_highest(vocab: int) -> None:
    """The first of equals, below zero and above, and again with the same workspace."""
    best = torch.full((5,), kernels.LOWEST)
    for logits in (normal(5, vocab).round(), normal(5, vocab, seed=1) - 9, torch.zeros(2, vocab)):
        choices = torch.full((len(logits),), -1, dtype=torch.int32)
        kernels.highest(logits, choices, best)
        wanted = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
        assert torch.equal(choices, wanted.int())
        assert torch.equal(best, torch.full((5,), kernels.LOWEST))


@interpreted
@pytest.mark.parametrize("vocab", [7, 3001, 9000])
def test_logsumexp(vocab: int) -> None:
    logits = normal(3, vocab) * 6
    found = kernels.logsumexp(logits)
    close(found, logits.logsumexp(-1), torch.float32)
    assert torch.equal(kernels.logsumexp(logits[1:2]), found[1:2])


@interpreted
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "k"), [(6, 48), (36, 1025), (8, 1536)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_gemv(dtype: torch.dtype, n: int, k: int, gated: bool, norm: bool) -> None:
    x, weight = normal(1, k, dtype=dtype), normal(n, k, seed=1, dtype=dtype) * k**-0.5
    scale = normal(k, seed=2, dtype=dtype) if norm else None
    out = kernels.gemv(x, weight, norm=scale, eps=1e-5, gated=gated)
    with plain():
        close(out, kernels.gemv(x, weight, norm=scale, eps=1e-5, gated=gated), dtype)
    if not gated:
        one, two = normal(1, n, seed=3, dtype=dtype), normal(1, n, seed=3, dtype=dtype)
        kernels.gemv(x, weight, norm=scale, eps=1e-5, add=one)
        with plain():
            kernels.gemv(x, weight, norm=scale, eps=1e-5, add=two)
        close(one, two, dtype)


PRODUCTS = ((1, 5, 7), (2, 130, 48), (17, 64, 576), (63, 96, 1025), (64, 128, 256), (65, 70, 640), (128, 64, 128))
DEAR = PRODUCTS[2:6]  # seconds each in the interpreter: in one type, and in the other of the slow suite


@interpreted
@pytest.mark.parametrize(
    ("dtype", "m", "n", "k"),
    [
        pytest.param(dtype, *sizes, marks=pytest.mark.slow if dtype != torch.float32 and sizes in DEAR else ())
        for dtype in DOT_TYPES
        for sizes in PRODUCTS
    ],
)
def test_products(dtype: torch.dtype, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k, dtype=dtype), normal(2 * n, k, seed=1, dtype=dtype) * k**-0.5
    gated = products.product(x, weight, gated=True)
    logits = products.product(x, weight, out=torch.full((m, 2 * n), torch.nan))
    with plain():
        wanted = products.product(x, weight)
        close(gated, products.product(x, weight, gated=True), dtype)
        close(logits, products.product(x, weight, out=torch.empty(m, 2 * n)), dtype)
    padded = products.padded_tokens(m)
    tiles = [
        products.Tile(32, 32, padded, 3), products.Tile(64, 128, 32, 3), products.Tile(128, 64, padded, 2, whole=True),
        products.Tile(32, 64, 16, 2, whole=True, tokens_first=True), products.Tile(64, 128, 64, 2, tokens_first=True),
        products.Tile(32, 64, 16, 2, 4, True, True, True), products.Tile(64, 64, 16, 2, 4, True, copied=True),
        products.Tile(32, 128, 32, 2, 4, True, True, True, turns=True),
    ]  # fmt: skip
    count = products.parts_of(2 * n, k)
    for tile in tiles:
        found = products.product(x, weight, tile=tile)
        assert found.shape == ((m, 2 * n) if tile.whole or count == 1 else (count, m, 2 * n))
        close(products.added(found, dtype), wanted, dtype)
        close(products.product(x, weight, gated=True, tile=tile), gated, dtype)


@interpreted
def test_linear() -> None:
    x, weight, bias = normal(2, 3, 600), normal(20, 600, seed=1) * 600**-0.5, normal(20, seed=2)
    close(products.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias), torch.float32)
    close(products.linear(x, weight), torch.nn.functional.linear(x, weight), torch.float32)


@interpreted
@pytest.mark.parametrize("dtype", TYPES)
def test_parts_are_added_up_by_what_follows(dtype: torch.dtype) -> None:
    m, hidden = 5, 576
    parts, weight, x = normal(3, m, hidden, seed=1), normal(hidden, seed=2, dtype=dtype), normal(m, hidden, dtype=dtype)
    results = []
    for twin in (False, True):
        stream, features = x.clone(), torch.zeros(m, 3 * hidden, dtype=dtype)
        auxiliary = features[:, hidden : 2 * hidden]
        if twin:
            with plain():
                out = kernels.add_rms_norm(stream, parts, weight, 1e-5, auxiliary=auxiliary)
        else:
            out = kernels.add_rms_norm(stream, parts, weight, 1e-5, auxiliary=auxiliary)
        assert torch.equal(auxiliary, stream) and not features[:, :hidden].any() and not features[:, 2 * hidden :].any()
        results.append((out, stream))
    for a, b in zip(*results, strict=True):
        close(a, b, dtype)

    heads, kv_heads, dim, length = 9, 3, 64, 40
    parts = normal(4, m, (heads + 2 * kv_heads) * dim)
    cos, sin = rope_table(torch.arange(length), dim, 1e4)
    where = [torch.tensor(w, dtype=torch.int32) for w in ([0, 1, 9, 30, 39], [0, 0, 1, 2, 0], [0, 1, -1, 33, 39])]
    outcomes = []
    for twin in (False, True):
        keys, values = torch.zeros(2, 3, kv_heads, length, dim, dtype=dtype)
        norms = normal(dim, seed=1, dtype=dtype), normal(dim, seed=2, dtype=dtype)
        if twin:
            with plain():
                query = kernels.rope_write(parts, *norms, 1e-6, cos, sin, *where, keys, values)
        else:
            query = kernels.rope_write(parts, *norms, 1e-6, cos, sin, *where, keys, values)
        outcomes.append((query[:, : heads * dim], keys, values))
    for a, b in zip(*outcomes, strict=True):
        close(a, b, dtype)


FORESTS = (  # tokens of each request (None: no part), contexts, bucket
    ((1,), (0,), 1),
    ((1,), (130,), 1),
    ((37,), (0,), 48),
    ((34, None, 3, 1), (70, 5, 0, 1290), 40),
)


SHAPES = ((9, 3, 64, torch.float32), (8, 2, 128, torch.float16))
CROSSED = ((0, 2), (1, 3))  # a shape and a dear forest: each of both is in the fast suite once


@interpreted
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype", "forest"),
    [
        pytest.param(*shape, forest, marks=pytest.mark.slow if (i, j) in CROSSED else ())
        for i, shape in enumerate(SHAPES)
        for j, forest in enumerate(FORESTS)
    ],
)
def test_tree_attention(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, forest: tuple) -> None:
    sizes, contexts, tokens = forest
    rng = np.random.default_rng(sum(contexts) + tokens)
    batch = len(sizes)
    bucket = Bucket(tokens, batch, heads // kv_heads, torch.device("cpu"))
    bucket.pack([None if m is None else random_tree(m, 15, 100, rng) for m in sizes])
    context = torch.tensor(contexts, dtype=torch.int32)
    placed = bucket.metadata(context, 16)
    with plain():
        same = bucket.metadata(context, 16)
    assert torch.equal(placed.seen, same.seen) and torch.equal(placed.near, same.near)
    keys, values = normal(2, batch, kv_heads, 1408, dim, dtype=dtype)
    qkv = normal(tokens, (heads + 2 * kv_heads) * dim, seed=1, dtype=dtype)
    with plain():
        twin = attention.tree_attention(qkv.float(), heads, keys.float(), values.float(), placed)
    outs = [attention.tree_attention(qkv, heads, keys, values, placed, together=together) for together in (False, True)]
    close(outs[0], twin, dtype)
    assert torch.equal(*outs)


@interpreted
@pytest.mark.parametrize("dtype", DOT_TYPES)
def test_block_attention_is_not_causal(dtype: torch.dtype) -> None:
    """The drafter's blocks: every token sees its context and the whole block, whatever its order."""
    heads, kv_heads, dim, block, batch = 4, 2, 64, 6, 2
    rows = torch.arange(batch, dtype=torch.int32)
    near = torch.full((2, 32), -1, dtype=torch.int32)
    near[0, :12], near[1, :6] = torch.arange(64, 76), torch.arange(6)
    placed = attention.TreeMetadata(
        request=rows.repeat_interleave(block), position=torch.zeros(12, dtype=torch.int32),
        slot=torch.zeros(12, dtype=torch.int32), tokens_per_tile=8,
        seen=torch.tensor([64, 0], dtype=torch.int32).repeat_interleave(block), near=near.repeat_interleave(block, 0),
        tiles=torch.stack((rows, rows * block, torch.full_like(rows, block)), 1),
    )  # fmt: skip
    keys, values = normal(2, batch, kv_heads, 96, dim, dtype=dtype)
    qkv = normal(12, (heads + 2 * kv_heads) * dim, seed=1, dtype=dtype)
    out = attention.tree_attention(qkv, heads, keys, values, placed)
    for b, end in ((0, 76), (1, 6)):
        own = slice(b * block, (b + 1) * block)
        query = qkv[own, : heads * dim].float().unflatten(1, (heads, dim)).transpose(0, 1)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query[None], keys[b : b + 1, :, :end].float(), values[b : b + 1, :, :end].float(), enable_gqa=True
        )
        close(out[own], wanted[0].transpose(0, 1).flatten(1), dtype)


@interpreted
def test_lockstep_attention() -> None:
    """Slots that started at different steps, one of them at this very step; 3 heads a key head."""
    config, weights = tiny.target("llama", head_dim=64, num_heads=6, num_kv_heads=2, num_layers=2)
    tokens = torch.randint(0, 50, (70, 3), generator=torch.Generator().manual_seed(0))
    start = torch.tensor([0, 66, 69])
    outcomes = []
    for fused in (True, False):
        model = TextGenerator(config, weights, 3, 80)
        model.fused = fused
        for t in (*range(0, 70, 7), *range(64, 70)):  # gaps leave zeros in the cache, which both see
            hidden = model.hidden(tokens[t], torch.tensor(t), start.clamp_max(t))
        outcomes.append(hidden)
    close(*outcomes, torch.float32)


@interpreted
@pytest.mark.parametrize("vocab", [50, 1024, 5000])
def test_cross_entropy(vocab: int) -> None:
    logits = normal(6, vocab) * 4
    labels = torch.randint(0, vocab, (6,), generator=torch.Generator().manual_seed(1))
    labels[0] = logits[0].argmax()
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0])
    wanted = logits.clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(wanted, labels, reduction="none") * weights
    losses.sum().backward()
    out, hits, slopes = torch.empty(6), torch.empty(6), logits.clone()
    loss._cross_entropy[(6,)](slopes, labels, weights, out, hits, vocab, BLOCK=1024)
    close(out, losses.detach(), torch.float32)
    close(slopes, wanted.grad, torch.float32)
    assert torch.equal(hits, (logits.argmax(-1) == labels).float())


def test_tiles_fit_into_shared_memory() -> None:
    for rows, columns, padded in products.TUNED:
        for itemsize in (2, 4):
            tile = products.tile_for(rows, columns, padded, products.parts_of(rows, columns), itemsize)
            held = (tile.rows + tile.tokens) * tile.columns * itemsize * (tile.stages - 1)
            assert held <= 227 * 1024, (rows, columns, padded, itemsize)  # of a Hopper's multiprocessor
