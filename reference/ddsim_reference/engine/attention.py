"""Tree attention: each token sees its request's committed context and its own ancestors in the draft tree.

The mask is a few bits a token, not a dense float matrix, and a batch may hold trees of any sizes: tokens lie flat, and a
table of tiles says which request each group of tokens belongs to. Against FlexAttention this needs no compilation and no
block mask rebuilt each round; against SDPA no dense mask, and the keys are split over the GPU when queries are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.engine.kernels import early_launch, power_of_two, use_triton

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


KEYS_A_STEP = 64
"""Keys that a program of the attention kernel looks at in one step."""
STAGES = 3
"""Steps whose keys and values are on their way at once."""
LEAST_STEPS = 3
"""Steps that a part of the keys is worth: short contexts use fewer parts, and ``_combine`` reads less."""


@dataclass
class TreeMetadata:
    """Where the flat tokens of a forward pass belong; all int32.

    Attributes
    ----------
    request, position, slot : Tensor [M]
        Row of the cache, position id and place in the cache (-1: keys and values are not kept).
    context, start, size : Tensor [batch]
        Committed tokens of each request, where its tree's tokens begin in the flat order, and how many there are.
    tiles : Tensor [T, 4]
        Request, first flat token, tokens and first tree index of each group of queries; groups may be empty.
    mask : Tensor [M, W]
        Bit t of a token's words: it sees the tree token t of its own request.
    causal : bool
        No token sees a later one of its tree, so a tile can stop early.
    tokens_per_tile : int
        Upper bound of ``tiles[:, 2]``.
    """

    request: Tensor
    position: Tensor
    slot: Tensor
    context: Tensor
    start: Tensor
    size: Tensor
    tiles: Tensor
    mask: Tensor
    causal: bool
    tokens_per_tile: int


def tokens_per_tile(tokens: int, batch: int, group: int) -> int:
    """Tokens whose queries share one pass over the keys: 16 to 128 matrix rows of all heads that read the same keys."""
    widest = 128 if tokens >= 128 * batch else 64
    return max(1, min(widest // power_of_two(group), power_of_two(-(-tokens // batch))))


def tile_count(tokens: int, batch: int, per_tile: int) -> int:
    """The most tiles that ``tokens`` tokens of ``batch`` requests can need."""
    return (tokens + batch * (per_tile - 1)) // per_tile


if triton is not None:

    @triton.jit
    def _attend_chunk(q, key_base, value_base, row, inside, seen, best, total, mixed, scale, DIM: tl.constexpr):
        column = tl.arange(0, DIM)
        k = tl.load(key_base + row[None, :] * DIM + column[:, None], mask=inside[None, :], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        # A row may have seen nothing yet: its maximum is still -inf, and -inf - -inf is not a number.
        level = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(best - level)
        weight = tl.exp2(scores - level[:, None])
        v = tl.load(value_base + row[:, None] * DIM + column[None, :], mask=inside[:, None], other=0.0)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        return higher, total, mixed

    @triton.jit
    def _tree_attention(
        q_ptr, key_ptr, value_ptr, tile_ptr, context_ptr, size_ptr, mask_ptr, out_ptr, partial_ptr, norm_ptr,
        q_stride, length, words, scale, splits, least,
        HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, CAUSAL: tl.constexpr,
        PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        tile = tl.program_id(0)
        head = tl.program_id(1)
        split = tl.program_id(2)
        request = tl.load(tile_ptr + tile * 4).to(tl.int64)
        first = tl.load(tile_ptr + tile * 4 + 1)
        count = tl.load(tile_ptr + tile * 4 + 2)
        index = tl.load(tile_ptr + tile * 4 + 3)
        if count > 0:
            context = tl.load(context_ptr + request)
            if CAUSAL:  # noqa: SIM108
                limit = index + count
            else:
                limit = tl.load(size_ptr + request)
            context_chunks = tl.cdiv(context, BLOCK_N)
            chunks = context_chunks + tl.cdiv(limit, BLOCK_N)
            share = tl.maximum(tl.cdiv(chunks, splits), least)
            begin = split * share
            end = tl.minimum(begin + share, chunks)

            packed = tl.arange(0, BLOCK_M)
            token = packed // PADDED
            member = packed % PADDED
            real = (token < count) & (member < GROUP)
            flat = first + tl.where(token < count, token, 0)
            column = tl.arange(0, DIM)
            q_at = flat.to(tl.int64) * q_stride + (head * GROUP + member) * DIM
            q = tl.load(q_ptr + q_at[:, None] + column[None, :], mask=real[:, None], other=0.0)
            best = tl.full([BLOCK_M], -float("inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            mixed = tl.zeros([BLOCK_M, DIM], tl.float32)
            base = (request * KV_HEADS + head) * length * DIM
            offset = tl.arange(0, BLOCK_N)
            for chunk in range(begin, tl.minimum(end, context_chunks)):
                row = chunk * BLOCK_N + offset
                inside = row < context
                best, total, mixed = _attend_chunk(
                    q, key_ptr + base, value_ptr + base, row, inside, inside[None, :], best, total, mixed, scale, DIM
                )
            for chunk in range(tl.maximum(begin, context_chunks), end):
                node = (chunk - context_chunks) * BLOCK_N + offset
                inside = node < limit
                # A chunk spans one mask word or two: loading those, and not a word for each pair, is most of the speed.
                word = mask_ptr + flat * words + (chunk - context_chunks) * (BLOCK_N // 32)
                bits = tl.load(word)[:, None]
                if BLOCK_N == 64:
                    more = flat * 0 + (chunk - context_chunks) * 2 + 1 < words
                    bits = tl.where((offset < 32)[None, :], bits, tl.load(word + 1, mask=more, other=0)[:, None])
                seen = inside[None, :] & (((bits >> (offset & 31)[None, :]) & 1) != 0)
                best, total, mixed = _attend_chunk(
                    q, key_ptr + base, value_ptr + base, context + node, inside, seen, best, total, mixed, scale, DIM
                )
            out_at = flat.to(tl.int64) * HEADS + head * GROUP + member
            if not SPLIT:
                result = mixed / total[:, None]
                at = out_ptr + out_at[:, None] * DIM + column[None, :]
                tl.store(at, result.to(out_ptr.dtype.element_ty), mask=real[:, None])
            else:
                at = out_at * splits + split
                tl.store(norm_ptr + at * 2, best, mask=real)
                tl.store(norm_ptr + at * 2 + 1, total, mask=real)
                wrote = real & (best > -float("inf"))
                tl.store(partial_ptr + at[:, None] * DIM + column[None, :], mixed, mask=wrote[:, None])

    @triton.jit
    def _combine(
        partial_ptr, norm_ptr, out_ptr, HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        at = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
        split = tl.arange(0, SPLITS)
        column = tl.arange(0, DIM)
        best = tl.load(norm_ptr + (at * SPLITS + split) * 2)
        total = tl.load(norm_ptr + (at * SPLITS + split) * 2 + 1)
        some = best > -float("inf")
        weight = tl.where(some, tl.exp2(best - tl.max(best, 0)), 0.0)
        part = tl.load(
            partial_ptr + (at * SPLITS + split)[:, None] * DIM + column[None, :], mask=some[:, None], other=0.0
        )
        result = tl.sum(part * weight[:, None], 0) / tl.sum(tl.where(some, total * weight, 0.0), 0)
        tl.store(out_ptr + at * DIM + column, result.to(out_ptr.dtype.element_ty))


def _splits(programs: int, block_m: int) -> int:
    """Parts of the keys, so that the GPU's multiprocessors are busy: one program each at wide tiles, two at narrow ones.

    More would only add to what ``_combine`` has to read.
    """
    wanted = (132 if block_m >= 128 else 264) // programs
    return max(1, min(32, power_of_two(wanted + 1) // 2))


def tree_attention(
    qkv: Tensor,
    heads: int,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: TreeMetadata,
    *,
    splits: int | None = None,
) -> Tensor:
    """Attention of flat tokens to their contexts and their trees.

    Parameters
    ----------
    qkv : Tensor [M, >= heads * head_dim]
        Rotated queries in the first ``heads * head_dim`` columns.
    key_cache, value_cache : Tensor [batch, kv_heads, length, head_dim]
        Request b's committed tokens in rows 0 .. context[b] - 1, its tree's tokens after them.
    metadata : TreeMetadata
    splits : int, optional
        Parts that the keys are divided into; a power of two.

    Returns
    -------
    Tensor [M, heads * head_dim]
        Undefined for tokens of no request.
    """
    kv_heads, length, dim = key_cache.shape[1:]
    group = heads // kv_heads
    if not use_triton(qkv):
        return _tree_attention_torch(qkv, heads, key_cache, value_cache, metadata)
    tokens, tiles = qkv.shape[0], metadata.tiles.shape[0]
    padded = power_of_two(group)
    block_m = max(16, metadata.tokens_per_tile * padded)
    splits = _splits(tiles * kv_heads, block_m) if splits is None else splits
    out = torch.empty(tokens, heads * dim, dtype=qkv.dtype, device=qkv.device)
    partial = norm = out
    if splits > 1:
        partial = torch.empty(tokens, heads, splits, dim, dtype=torch.float32, device=qkv.device)
        norm = torch.empty(tokens, heads, splits, 2, dtype=torch.float32, device=qkv.device)
    launch = early_launch(qkv)
    narrow = dim > 128 or qkv.element_size() == 4  # what fits into shared memory
    _tree_attention[(tiles, kv_heads, splits)](
        qkv, key_cache, value_cache, metadata.tiles, metadata.context, metadata.size, metadata.mask, out, partial, norm,
        qkv.stride(0), length, metadata.mask.shape[1], dim**-0.5 * 1.4426950408889634, splits,
        LEAST_STEPS,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=group, PADDED=padded, DIM=dim,
        BLOCK_M=block_m, BLOCK_N=32 if narrow else KEYS_A_STEP, SPLIT=splits > 1, CAUSAL=metadata.causal,
        num_warps=8 if block_m >= 128 else 4, num_stages=2 if narrow else STAGES, **launch,
    )  # fmt: skip
    if splits > 1:
        _combine[(tokens, heads)](
            partial, norm, out, HEADS=heads, DIM=dim, SPLITS=splits, num_warps=1 if splits < 8 else 2, **launch
        )
    return out


def unpack_mask(words: Tensor, size: int) -> Tensor:
    """Bool [rows, size] of int32 mask words [rows, W]."""
    bit = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> bit) & 1).flatten(1)[:, :size].bool()


def _tree_attention_torch(
    qkv: Tensor, heads: int, key_cache: Tensor, value_cache: Tensor, metadata: TreeMetadata
) -> Tensor:
    dim = key_cache.shape[-1]
    query = qkv[:, : heads * dim].unflatten(1, (heads, dim)).transpose(0, 1)
    out = torch.zeros(qkv.shape[0], heads * dim, dtype=qkv.dtype, device=qkv.device)
    rows = zip(metadata.start.tolist(), metadata.size.tolist(), metadata.context.tolist(), strict=True)
    for b, (first, size, context) in enumerate(rows):
        if size == 0:
            continue
        own = slice(first, first + size)
        seen = unpack_mask(metadata.mask[own], size)
        mask = torch.cat((torch.ones(size, context, dtype=torch.bool, device=seen.device), seen), 1)
        end = context + size
        attended = F.scaled_dot_product_attention(
            query[None, :, own], key_cache[b : b + 1, :, :end], value_cache[b : b + 1, :, :end],
            attn_mask=mask, enable_gqa=True,
        )  # fmt: skip
        out[own] = attended[0].transpose(0, 1).flatten(1)
    return out
