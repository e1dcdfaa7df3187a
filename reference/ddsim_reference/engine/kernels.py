"""The small operations of a decoder layer, each in plain PyTorch and as one Triton kernel that the GPU runs instead."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.model.forward import rms_norm, rotate
from ddsim_reference.model.sampling import choose

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU-only installs have no Triton; the PyTorch twins below serve them
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's own CPU interpreter is on: kernels run on CPU tensors too, slowly, so that tests can compare them."""


LOWEST = -(1 << 63)
"""What ``highest`` compares with before it has seen anything."""

EARLY_LAUNCH = True
"""A layer's kernels start while the kernel before them ends, where the GPU can (programmatic dependent launch).

Each waits for the one before it to end before it touches what earlier kernels read or write, so that having waited for one
is having waited for all.
"""

EARLY_TOKENS = 64
"""Passes of so many tokens at most leave room for what follows them."""


def use_triton(x: Tensor) -> bool:
    """Whether the Triton kernel runs for a tensor, rather than its PyTorch twin."""
    return triton is not None and (x.is_cuda or INTERPRETED)


def early_launch(x: Tensor) -> dict[str, bool]:
    """Launch options of a layer's kernel: on a GPU that can, it starts before the kernel ahead of it has ended.

    With many tokens [..., tokens, columns] it would only be in that one's way: at 256 a pass took 9.8 ms so, and 9.1 without.
    """
    early = EARLY_LAUNCH and x.is_cuda and not INTERPRETED and torch.cuda.get_device_capability(x.device)[0] >= 9
    early = early and x.shape[-2 if x.dim() > 1 else 0] <= EARLY_TOKENS
    return {"PDL": True, "launch_pdl": True} if early else {"PDL": False}


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


if triton is not None:

    @triton.jit
    def _summed(ptr, at, inside, stride, PARTS: tl.constexpr, DTYPE: tl.constexpr):
        # The parts of a product that was divided along K, added up and rounded as the whole would have been.
        total = tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            total += tl.load(ptr + part * stride + at, mask=inside, other=0.0).to(tl.float32)
        return total.to(DTYPE).to(tl.float32)

    @triton.jit
    def _add_rms_norm(
        x_ptr, delta_ptr, weight_ptr, out_ptr, auxiliary_ptr, eps, delta_stride, auxiliary_stride,
        HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PARTS: tl.constexpr, AUXILIARY: tl.constexpr,
        PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
        row = tl.program_id(0).to(tl.int64) * HIDDEN
        column = tl.arange(0, BLOCK)
        inside = column < HIDDEN
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
        if PDL:
            tl.extra.cuda.gdc_wait()
        x = tl.load(x_ptr + row + column, mask=inside, other=0.0)
        if ADD:
            delta = _summed(delta_ptr, row + column, inside, delta_stride, PARTS, x_ptr.dtype.element_ty)
            x = (x.to(tl.float32) + delta).to(x_ptr.dtype.element_ty)
            tl.store(x_ptr + row + column, x, mask=inside)
        if AUXILIARY:
            tl.store(auxiliary_ptr + tl.program_id(0).to(tl.int64) * auxiliary_stride + column, x, mask=inside)
        x = x.to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, 0) / HIDDEN + eps)
        # Rounded before the weight as well, as the published models do it.
        x = x.to(out_ptr.dtype.element_ty).to(tl.float32) * weight
        tl.store(out_ptr + row + column, x.to(out_ptr.dtype.element_ty), mask=inside)

    @triton.jit
    def _silu_mul(x_ptr, out_ptr, INNER: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < INNER
        gate = tl.load(x_ptr + row * 2 * INNER + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(x_ptr + row * 2 * INNER + INNER + column, mask=inside, other=0.0).to(tl.float32)
        active = (gate / (1.0 + tl.exp(-gate))).to(x_ptr.dtype.element_ty).to(tl.float32)
        tl.store(out_ptr + row * INNER + column, (active * up).to(out_ptr.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["length"])
    def _rope_write(
        qkv_ptr, query_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, position_ptr, request_ptr, slot_ptr, key_ptr,
        value_ptr, length, eps, stride, query_stride,
        HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, HALF: tl.constexpr,
        QK_NORM: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
        token = tl.program_id(0)
        head = tl.program_id(1)
        dtype = query_ptr.dtype.element_ty
        half = tl.arange(0, HALF)
        position = tl.load(position_ptr + token)
        request = tl.load(request_ptr + token).to(tl.int64)
        slot = tl.load(slot_ptr + token)
        cos = tl.load(cos_ptr + position * HALF + half)
        sin = tl.load(sin_ptr + position * HALF + half)
        if PDL:  # where tokens belong is known before the first layer
            tl.extra.cuda.gdc_wait()
        row = token.to(tl.int64) * (HEADS + 2 * KV_HEADS) * 2 * HALF
        query = query_ptr + token.to(tl.int64) * query_stride

        group = tl.arange(0, PADDED)
        inside = group[:, None] < GROUP
        at = (head * GROUP + group[:, None]) * 2 * HALF + half[None, :]
        a = _summed(qkv_ptr, row + at, inside, stride, PARTS, dtype)
        b = _summed(qkv_ptr, row + at + HALF, inside, stride, PARTS, dtype)
        if QK_NORM:
            scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
            a = (a * scale).to(dtype).to(tl.float32) * tl.load(q_norm_ptr + half).to(tl.float32)[None, :]
            b = (b * scale).to(dtype).to(tl.float32) * tl.load(q_norm_ptr + HALF + half).to(tl.float32)[None, :]
            a = a.to(dtype).to(tl.float32)
            b = b.to(dtype).to(tl.float32)
        # One rounding of two is left out, and here it says which: the compiler might choose another one elsewhere.
        tl.store(query + at, tl.fma(a, cos[None, :], -(b * sin[None, :])).to(dtype), mask=inside)
        tl.store(query + at + HALF, tl.fma(b, cos[None, :], a * sin[None, :]).to(dtype), mask=inside)

        if slot >= 0:
            k_row = row + (HEADS + head) * 2 * HALF
            every = half >= 0
            k_a = _summed(qkv_ptr, k_row + half, every, stride, PARTS, dtype)
            k_b = _summed(qkv_ptr, k_row + HALF + half, every, stride, PARTS, dtype)
            if QK_NORM:
                k_scale = tl.rsqrt((tl.sum(k_a * k_a, 0) + tl.sum(k_b * k_b, 0)) / (2 * HALF) + eps)
                k_a = (k_a * k_scale).to(dtype).to(tl.float32) * tl.load(k_norm_ptr + half).to(tl.float32)
                k_b = (k_b * k_scale).to(dtype).to(tl.float32) * tl.load(k_norm_ptr + HALF + half).to(tl.float32)
                k_a = k_a.to(dtype).to(tl.float32)
                k_b = k_b.to(dtype).to(tl.float32)
            v_row = row + (HEADS + KV_HEADS + head) * 2 * HALF
            cache = ((request * KV_HEADS + head) * length + slot) * 2 * HALF
            tl.store(key_ptr + cache + half, tl.fma(k_a, cos, -(k_b * sin)).to(dtype))
            tl.store(key_ptr + cache + HALF + half, tl.fma(k_b, cos, k_a * sin).to(dtype))
            v_a = _summed(qkv_ptr, v_row + half, every, stride, PARTS, dtype)
            v_b = _summed(qkv_ptr, v_row + HALF + half, every, stride, PARTS, dtype)
            tl.store(value_ptr + cache + half, v_a.to(dtype))
            tl.store(value_ptr + cache + HALF + half, v_b.to(dtype))

    @triton.jit
    def _move_rows(
        key_ptr, value_ptr, context_ptr, path_ptr, count_ptr, batch, length,
        KV_HEADS: tl.constexpr, DIM: tl.constexpr, PATH: tl.constexpr, PADDED: tl.constexpr,
    ):  # fmt: skip
        # One program per (layer and head, request). The path's indices ascend, so a row may be one step's target and an
        # earlier step's source: everything is read before anything is written.
        layer = (tl.program_id(0) // KV_HEADS).to(tl.int64)
        head = tl.program_id(0) % KV_HEADS
        request = tl.program_id(1)
        context = tl.load(context_ptr + request)
        count = tl.load(count_ptr + request)
        depth = tl.arange(0, PADDED)
        column = tl.arange(0, DIM)
        source = tl.load(path_ptr + request * PATH + depth, mask=depth < count, other=0)
        moved = ((depth < count) & (source != depth))[:, None]
        base = ((layer * batch + request) * KV_HEADS + head) * length * DIM
        from_ = base + (context + source)[:, None] * DIM + column[None, :]
        to = base + (context + depth)[:, None] * DIM + column[None, :]
        key = tl.load(key_ptr + from_, mask=moved, other=0.0)
        value = tl.load(value_ptr + from_, mask=moved, other=0.0)
        tl.debug_barrier()
        tl.store(key_ptr + to, key, mask=moved)
        tl.store(value_ptr + to, value, mask=moved)

    @triton.jit
    def _walk(
        token_ptr, parent_ptr, choice_ptr, start_ptr, size_ptr, path_ptr, count_ptr, bonus_ptr,
        PATH: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        request = tl.program_id(0)
        start = tl.load(start_ptr + request)
        size = tl.load(size_ptr + request)
        node = tl.arange(0, BLOCK)
        inside = node < size
        parent = tl.load(parent_ptr + start + node, mask=inside, other=-1)
        token = tl.load(token_ptr + start + node, mask=inside, other=-1)
        wanted = tl.load(choice_ptr + start + parent, mask=inside & (parent >= 0), other=-2)
        right = inside & (parent >= 0) & (token == wanted)
        here = 0
        last = 0
        count = (size > 0).to(tl.int32)
        tl.store(path_ptr + request * PATH, 0)
        for depth in range(1, PATH):
            child = tl.max(tl.where(right & (parent == here), node, -1), 0)
            found = child >= 0
            tl.store(path_ptr + request * PATH + depth, tl.where(found, child, 0))
            count += found.to(tl.int32)
            # A dead end stays one: node BLOCK is nobody's parent.
            here = tl.where(found, child, BLOCK)
            last = tl.where(found, child, last)
        tl.store(count_ptr + request, count)
        tl.store(bonus_ptr + request, tl.load(choice_ptr + start + last))

    @triton.jit
    def _sample(logits_ptr, uniform_ptr, choice_ptr, vocab, inverse_temperature, BLOCK: tl.constexpr):
        # Inverse CDF in float64, as ``choose`` does it, but three passes over one row that stays in cache.
        row = tl.program_id(0)
        base = logits_ptr + row.to(tl.int64) * vocab
        column = tl.arange(0, BLOCK)
        best = tl.full([BLOCK], -float("inf"), tl.float32)
        for first in range(0, vocab, BLOCK):
            x = tl.load(base + first + column, mask=first + column < vocab, other=-float("inf"))
            best = tl.maximum(best, x)
        top = tl.max(best, 0).to(tl.float64)
        total = tl.zeros([BLOCK], tl.float64)
        for first in range(0, vocab, BLOCK):
            x = tl.load(base + first + column, mask=first + column < vocab, other=-float("inf")).to(tl.float64)
            total += tl.exp((x - top) * inverse_temperature)
        aim = tl.load(uniform_ptr + row) * tl.sum(total, 0)
        passed = tl.sum(tl.zeros([BLOCK], tl.float64), 0)
        below = 0  # tokens whose cumulative probability is at most the aim
        for first in range(0, vocab, BLOCK):
            inside = first + column < vocab
            x = tl.load(base + first + column, mask=inside, other=-float("inf")).to(tl.float64)
            mass = tl.exp((x - top) * inverse_temperature)
            within = passed + tl.cumsum(mass, 0)
            below += tl.sum((inside & (within <= aim)).to(tl.int32), 0)
            passed += tl.sum(mass, 0)
        tl.store(choice_ptr + row, tl.minimum(below, vocab - 1))

    @triton.jit
    def _highest(logits_ptr, best_ptr, vocab, BLOCK: tl.constexpr, PDL: tl.constexpr):
        # Value and place in one integer, the higher the better, among equal values the first place: the order doesn't matter.
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row.to(tl.int64) * vocab + column, mask=column < vocab, other=-float("inf"))
        top = tl.max(x, 0)
        place = tl.min(tl.where((x == top) & (column < vocab), column, vocab - 1), 0)
        bits = top.to(tl.int32, bitcast=True)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        tl.atomic_max(best_ptr + row, (bits.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64))

    @triton.jit(do_not_specialize=["rows"])
    def _places(best_ptr, choice_ptr, rows, LOWEST: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        best = tl.load(best_ptr + row, mask=row < rows, other=0)
        tl.store(choice_ptr + row, 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32), mask=row < rows)
        tl.store(best_ptr + row, tl.full([BLOCK], LOWEST, tl.int64), mask=row < rows)

    @triton.jit
    def _total(logits_ptr, out_ptr, vocab, BLOCK: tl.constexpr):
        # logsumexp of a row in one pass: each lane keeps a maximum and a sum of its own, joined at the end.
        row = tl.program_id(0)
        base = logits_ptr + row.to(tl.int64) * vocab
        column = tl.arange(0, BLOCK)
        best = tl.full([BLOCK], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, vocab, BLOCK):
            x = tl.load(base + first + column, mask=first + column < vocab, other=-float("inf"))
            higher = tl.maximum(best, x)
            level = tl.where(higher == -float("inf"), 0.0, higher)
            total = tl.fma(total, tl.exp(best - level), tl.exp(x - level))
            best = higher
        top = tl.max(best, 0)
        tl.store(out_ptr + row, top + tl.log(tl.sum(total * tl.exp(best - top), 0)))

    @triton.jit
    def _gemv(
        x_ptr, norm_ptr, weight_ptr, out_ptr, eps,
        N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
        NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        # One row times a matrix [N, K], every weight read once. The sums stay spread over the threads until the end.
        row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        weights = weight_ptr + row.to(tl.int64)[:, None] * K
        column = tl.arange(0, BLOCK_K)
        total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        if GATED:
            total_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        if NORM:
            squares = tl.zeros([BLOCK_K], tl.float32)
        if PDL:
            tl.extra.cuda.gdc_wait()
        for first in tl.static_range(0, K, BLOCK_K):
            inside = first + column < K
            w = tl.load(
                weights + (first + column)[None, :], mask=inside[None, :], other=0.0, eviction_policy="evict_first"
            )
            x = tl.load(x_ptr + first + column, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                squares += x * x
                x = x * tl.load(norm_ptr + first + column, mask=inside, other=0.0).to(tl.float32)
            total += w.to(tl.float32) * x[None, :]
            if GATED:
                w_up = tl.load(
                    weights + N * K + (first + column)[None, :], mask=inside[None, :], other=0.0,
                    eviction_policy="evict_first",
                )  # fmt: skip
                total_up += w_up.to(tl.float32) * x[None, :]
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
        result = tl.sum(total, 1)
        if NORM:
            scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
            result = result * scale
        if GATED:
            up = tl.sum(total_up, 1)
            if NORM:
                up = up * scale
            result = result / (1.0 + tl.exp(-result)) * up
        if ADD:
            result += tl.load(out_ptr + row).to(tl.float32)
        tl.store(out_ptr + row, result.to(out_ptr.dtype.element_ty))


def add_rms_norm(
    x: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    auxiliary: Tensor | None = None,
) -> Tensor:
    """Add ``delta`` to the residual stream ``x`` [M, hidden] in place, and return the RMSNorm of the sum.

    ``delta`` [M, hidden], or float32 [parts, M, hidden] that are added up first; ``auxiliary`` [M, hidden] receives a copy of the
    residual stream.
    """
    if out is None:
        out = torch.empty_like(x)
    if use_triton(x):
        tokens, hidden = x.shape
        block = power_of_two(hidden)
        parts = delta.shape[0] if delta is not None and delta.dim() == 3 else 1
        _add_rms_norm[(tokens,)](
            x, x if delta is None else delta, weight, out, x if auxiliary is None else auxiliary, eps,
            tokens * hidden, hidden if auxiliary is None else auxiliary.stride(0),
            HIDDEN=hidden, BLOCK=block, ADD=delta is not None, PARTS=parts, AUXILIARY=auxiliary is not None,
            num_warps=min(max(block // 256, 1), 16),  # whatever comes in, or squares would be added up in other orders
            **early_launch(x),
        )  # fmt: skip
        return out
    if delta is not None:
        x += delta if delta.dim() == 2 else delta.sum(0).to(x.dtype)
    if auxiliary is not None:
        auxiliary.copy_(x)
    return out.copy_(rms_norm(x, weight, eps))


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up of fused [M, 2 * inner] -> [M, inner]."""
    if use_triton(x):
        inner = x.shape[1] // 2
        out = torch.empty(x.shape[0], inner, dtype=x.dtype, device=x.device)
        block = min(power_of_two(inner), 1024)
        _silu_mul[(x.shape[0], -(-inner // block))](x, out, INNER=inner, BLOCK=block, num_warps=4, **early_launch(x))
        return out
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rope_write(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    request: Tensor,
    slot: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """Normalise (Qwen3) and rotate queries, and write rotated keys and the values into the cache.

    Parameters
    ----------
    qkv : Tensor [M, (heads + 2 * kv_heads) * head_dim], or float32 [parts, M, ...] that are added up first
        In the first case its query part is overwritten.
    cos, sin : float32 Tensor [positions, head_dim / 2]
    position, request, slot : int32 Tensor [M]
        A token's position id, its row of the cache, and its place there (-1: don't write).
    key_cache, value_cache : Tensor [batch, kv_heads, length, head_dim]

    Returns
    -------
    Tensor [M, >= heads * head_dim]
        The queries in its first columns; ``qkv`` itself if that was whole.
    """
    kv_heads, length, dim = key_cache.shape[1:]
    tokens, width = qkv.shape[-2:]
    heads = width // dim - 2 * kv_heads
    parts = qkv.shape[0] if qkv.dim() == 3 else 1
    if use_triton(qkv):
        query = qkv
        if qkv.dim() == 3:
            query = torch.empty(tokens, heads * dim, dtype=key_cache.dtype, device=qkv.device)
        group = heads // kv_heads
        _rope_write[(tokens, kv_heads)](
            qkv, query, query if q_norm is None else q_norm, query if k_norm is None else k_norm, cos, sin, position,
            request, slot, key_cache, value_cache, length, eps, tokens * width, query.stride(0),
            HEADS=heads, KV_HEADS=kv_heads, GROUP=group, PADDED=power_of_two(group), HALF=dim // 2,
            QK_NORM=q_norm is not None, PARTS=parts, num_warps=2, **early_launch(qkv),
        )  # fmt: skip
        return query
    if qkv.dim() == 3:
        qkv = qkv.sum(0).to(key_cache.dtype)
    query, key, value = qkv.unflatten(1, (-1, dim)).split((heads, kv_heads, kv_heads), 1)
    if q_norm is not None and k_norm is not None:
        query, key = rms_norm(query, q_norm, eps), rms_norm(key, k_norm, eps)
    c, s = cos[position.long()][None], sin[position.long()][None]
    qkv[:, : heads * dim] = rotate(query.transpose(0, 1)[None], c, s)[0].transpose(0, 1).flatten(1)
    keep = slot >= 0
    rows, places = request[keep].long(), slot[keep].long()
    key_cache[rows, :, places] = rotate(key.transpose(0, 1)[None], c, s)[0].transpose(0, 1)[keep]
    value_cache[rows, :, places] = value[keep]
    return qkv


def move_rows(keys: Tensor, values: Tensor, context: Tensor, path: Tensor, count: Tensor) -> None:
    """Move the accepted tokens' keys and values to follow the committed context, in place and in every layer.

    Parameters
    ----------
    keys, values : Tensor [layers, batch, kv_heads, length, head_dim]
    context : int32 Tensor [batch]
        Committed tokens; request b's tree lies at rows ``context[b] + index``.
    path : int32 Tensor [batch, steps]
        Ascending tree indices, the root's 0 first.
    count : int32 Tensor [batch]
        Valid entries of ``path``.
    """
    layers, batch, kv_heads, length, dim = keys.shape
    if use_triton(keys):
        _move_rows[(layers * kv_heads, batch)](
            keys, values, context, path, count, batch, length,
            KV_HEADS=kv_heads, DIM=dim, PATH=path.shape[1], PADDED=power_of_two(path.shape[1]), num_warps=4,
        )  # fmt: skip
        return
    for b in range(batch):
        n, first = int(count[b]), int(context[b])
        source = path[b, :n].long() + first
        keys[:, b, :, first : first + n] = keys[:, b, :, source]
        values[:, b, :, first : first + n] = values[:, b, :, source]


def walk(
    tokens: Tensor, parents: Tensor, choices: Tensor, start: Tensor, size: Tensor, steps: int, largest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the target's choices down each request's tree.

    Parameters
    ----------
    tokens, parents, choices : int32 Tensor [M]
        Tree tokens, their parents' indices within the request's own tree (-1 for roots), and what the target would put
        after each.
    start, size : int32 Tensor [batch]
        Where a request's tokens lie, and how many there are (0: it takes no part).
    steps : int
        Length of a path, its root included; no tree is deeper than steps - 1.
    largest : int
        Upper bound of ``size``.

    Returns
    -------
    path : int32 Tensor [batch, steps]
        Accepted tree indices, the root's 0 first.
    count : int32 Tensor [batch]
        How many are accepted, the root included; 0 for requests that take no part.
    bonus : int32 Tensor [batch]
        The target's own token after the last accepted one.
    """
    batch = start.shape[0]
    path = torch.zeros(batch, power_of_two(steps), dtype=torch.int32, device=tokens.device)
    count = torch.zeros(batch, dtype=torch.int32, device=tokens.device)
    bonus = torch.zeros(batch, dtype=torch.int32, device=tokens.device)
    if use_triton(tokens):
        block = next(size for size in (64, 512, 4096, power_of_two(largest)) if size >= largest)  # few to compile
        _walk[(batch,)](
            tokens, parents, choices, start, size, path, count, bonus,
            PATH=path.shape[1], BLOCK=block, num_warps=4 if block > 128 else 1,
        )  # fmt: skip
        return path, count, bonus
    for b in range(batch):
        first, n = int(start[b]), int(size[b])
        if n == 0:
            continue
        tree, up, wanted = (x[first : first + n].tolist() for x in (tokens, parents, choices))
        children = {(up[j], tree[j]): j for j in range(1, n)}
        node, accepted = 0, [0]
        while (node, wanted[node]) in children:
            node = children[node, wanted[node]]
            accepted.append(node)
        path[b, : len(accepted)] = torch.tensor(accepted, dtype=torch.int32)
        count[b], bonus[b] = len(accepted), wanted[node]
    return path, count, bonus


def choose_tokens(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """``sampling.choose`` as int32, without float64 copies of a whole tree's logits on the GPU."""
    if temperature == 0 or not use_triton(logits):
        return choose(logits, temperature, uniform).int()
    choices = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device)
    _sample[(logits.shape[0],)](
        logits, uniform, choices, logits.shape[1], 1.0 / temperature,
        BLOCK=min(power_of_two(logits.shape[1]), 4096), num_warps=8,
    )  # fmt: skip
    return choices


def highest(logits: Tensor, choices: Tensor, best: Tensor) -> None:
    """Each row's argmax, the first of equals, into int32 ``choices`` [rows].

    ``best`` int64 [>= rows] is a workspace that holds ``LOWEST`` before and after.
    """
    if not use_triton(logits):
        choices.copy_(logits.argmax(-1))
        return
    rows, vocab = logits.shape
    block = min(power_of_two(vocab), 8192)
    launch = early_launch(logits)
    _highest[(rows, -(-vocab // block))](logits, best, vocab, BLOCK=block, num_warps=8, **launch)
    _places[(-(-rows // 128),)](best, choices, rows, LOWEST=LOWEST, BLOCK=128, num_warps=4, **launch)


def logsumexp(logits: Tensor) -> Tensor:
    """float32 [rows] of float32 logits [rows, vocabulary], each summed in the same order however many rows there are."""
    if not use_triton(logits):
        return logits.logsumexp(-1)
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    block = min(power_of_two(logits.shape[1]), 8192)
    _total[(logits.shape[0],)](logits, out, logits.shape[1], BLOCK=block, num_warps=8)
    return out


def gemv(
    x: Tensor, weight: Tensor, *, norm: Tensor | None = None, eps: float = 0.0, gated: bool = False,
    add: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One token times a matrix, with what stands before and after it in a layer: RMSNorm, SwiGLU, residual addition.

    Parameters
    ----------
    x : Tensor [1, K]
    weight : Tensor [N, K], or [2 * N, K] if gated
    norm : Tensor [K], optional
        RMSNorm weight applied to ``x`` first.
    gated : bool
        Return silu(first half) * second half.
    add : Tensor [1, N], optional
        Residual stream that receives the result in place; it is what is returned then.
    out : Tensor [1, N], optional
        Where the result goes, in its own type.
    """
    k = weight.shape[1]
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    if add is not None:
        out = add
    elif out is None:
        out = torch.empty(1, n, dtype=x.dtype, device=x.device)
    if use_triton(x):
        block_n = 4
        while n % block_n:
            block_n //= 2
        _gemv[(n // block_n,)](
            x, x if norm is None else norm, weight, out, eps,
            N=n, K=k, BLOCK_N=block_n, BLOCK_K=min(power_of_two(k), 1024),
            NORM=norm is not None, GATED=gated, ADD=add is not None, num_warps=4, **early_launch(x),
        )  # fmt: skip
        return out
    result = F.linear(x if norm is None else rms_norm(x, norm, eps), weight)
    if gated:
        result = silu_mul(result)
    return out.copy_(result) if add is None else add.add_(result)
