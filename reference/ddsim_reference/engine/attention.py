"""Tree attention: each token sees its request's committed context and its own ancestors in the draft tree.

A token at position p sums over its keys in an order that p alone decides, wherever the keys lie and whatever else the pass holds.
Up to a boundary at a multiple of 16 that lies at least a tree's depth before p, all keys are committed: row r of the cache holds
position r, for whichever token asks. They are taken in steps of 64, in parts that begin at fixed
positions. The few keys from the boundary on, committed
or ancestors in a tree, are gathered in the order of their positions. A chain's rows are positions, too, so that a prompt can be as
long as it likes.

So a batch may hold trees of any sizes: tokens lie flat, and a table of tiles says which request each group of tokens belongs to.
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
PART = 128
"""Keys of a part among the first ``GROUP``: steps within one go on from each other, parts are joined."""
GROUP = 512
"""Keys of a group. The first one's parts are joined among themselves, by one program or by ``_finish``, before the other groups,
each a part of its own, join them: short contexts need many programs, long ones few sums to join."""
GRANULE = 16
"""The boundary between committed keys and gathered ones is a multiple of this."""
STAGES = 3
"""Steps whose keys and values are on their way at once; one more where a multiprocessor has one program."""
BUSY = 64
"""Programs of a whole group each that keep the GPU busy; with fewer, each part is one."""


@dataclass
class TreeMetadata:
    """Where the flat tokens of a forward pass belong; all int32.

    Attributes
    ----------
    request, position, slot : Tensor [M]
        Row of the cache, position id and place in the cache (-1: keys and values are not kept).
    seen : Tensor [M]
        Rows of its request's cache, from the first on, that a token sees; a multiple of 16.
    near : Tensor [M, W]
        Rows that it sees beside these, in the order of their positions; -1 for none.
    tiles : Tensor [T, 3]
        Request, first flat token and tokens of each group of queries; groups may be empty.
    tokens_per_tile : int
        Upper bound of ``tiles[:, 2]``.
    """

    request: Tensor
    position: Tensor
    slot: Tensor
    seen: Tensor
    near: Tensor
    tiles: Tensor
    tokens_per_tile: int


def tokens_per_tile(tokens: int, batch: int, group: int) -> int:
    """Tokens whose queries share one pass over the keys: up to 128 matrix rows of all heads that read the same keys."""
    widest = 128 if tokens >= 128 * batch else 64
    return max(1, min(widest // power_of_two(group), power_of_two(-(-tokens // batch))))


def tile_count(tokens: int, batch: int, per_tile: int) -> int:
    """The most tiles that ``tokens`` tokens of ``batch`` requests can need."""
    return (tokens + batch * (per_tile - 1)) // per_tile


def near_width(steps: int) -> int:
    """Keys gathered for each token of trees whose paths are ``steps`` tokens at most, roots included.

    Examples
    --------
    >>> near_width(16)
    32
    """
    return power_of_two(steps - 1 + GRANULE)


def keys_of_paths(
    request: Tensor, index: Tensor, depth: Tensor, parent: Tensor, start: Tensor, context: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, positions and places of tokens that see their context and their path, as `TreeMetadata` has them.

    Parameters
    ----------
    request, index, depth, parent : int32 Tensor [M]
        Of each token: its request, its place in the request's tree (-1: padding, which sees nothing), its depth there, and its
        parent's place (-1 for roots).
    start, context : int32 Tensor [batch]
        Where a request's tokens begin in the flat order, and how many tokens it has committed.
    steps : int
        Longest path of a tree, its root included. Longer ones must be chains.

    Returns
    -------
    seen : int32 Tensor [M]
    near : int32 Tensor [M, near_width(steps)]
    position, slot : int32 Tensor [M]
        0 and -1 for padding.
    """
    tokens, width = request.shape[0], near_width(steps)
    if use_triton(request):
        seen, position, slot = (torch.empty_like(request) for _ in range(3))
        near = torch.empty(tokens, width, dtype=torch.int32, device=request.device)
        block = 32
        _keys_of_paths[(-(-tokens // block),)](
            request, index, depth, parent, start, context, seen, near, position, slot, tokens,
            STEPS=steps, GRANULE=GRANULE, WIDTH=width, BLOCK=block, num_warps=1, **early_launch(request),
        )  # fmt: skip
        return seen, near, position, slot
    here, real = context[request], index >= 0
    position = here + depth
    seen = torch.where(real, (position - (steps - 1)).clamp_min(0) // GRANULE * GRANULE, 0)
    at = seen[:, None] + torch.arange(width, dtype=torch.int32, device=request.device)
    near = torch.where((at < here[:, None]) & (at <= position[:, None]) & real[:, None], at, -1)
    node, place, own = index, position, real
    while bool(own.any()):  # from the tokens up their paths
        rows = own.nonzero()[:, 0]
        near[rows, (place - seen)[rows].long()] = (here + node)[rows].int()
        node = torch.where(own, parent[(start[request] + node.clamp_min(0)).long()], node)
        place = place - 1
        own = own & (place >= here) & (place >= seen)
    return seen, near, torch.where(real, position, 0), torch.where(real, here + index, -1)


if triton is not None:

    @triton.jit(do_not_specialize=["tokens"])
    def _keys_of_paths(
        request_ptr, index_ptr, depth_ptr, parent_ptr, start_ptr, context_ptr, seen_ptr, near_ptr, position_ptr, slot_ptr, tokens,
        STEPS: tl.constexpr, GRANULE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:  # and nothing starts before it ends: the layers' kernels read this without waiting for whom they follow
            tl.extra.cuda.gdc_wait()
        token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = token < tokens
        request = tl.load(request_ptr + token, mask=inside, other=0)
        node = tl.load(index_ptr + token, mask=inside, other=-1)
        context = tl.load(context_ptr + request)
        start = tl.load(start_ptr + request)
        real = node >= 0
        position = context + tl.load(depth_ptr + token, mask=inside, other=0)
        seen = tl.where(real, tl.maximum(position - (STEPS - 1), 0) // GRANULE * GRANULE, 0)
        tl.store(seen_ptr + token, seen, mask=inside)
        tl.store(position_ptr + token, tl.where(real, position, 0), mask=inside)
        tl.store(slot_ptr + token, tl.where(real, context + node, -1), mask=inside)
        column = tl.arange(0, WIDTH)
        # Committed rows and the places that stay empty; then, from the token up, its path.
        at = seen[:, None] + column[None, :]
        near = tl.where((at < context[:, None]) & (at <= position[:, None]) & real[:, None], at, -1)
        place = position
        own = real & (place >= context) & (place >= seen)
        while tl.max(own.to(tl.int32), 0) > 0:
            near = tl.where((at == place[:, None]) & own[:, None], (context + node)[:, None], near)
            node = tl.where(own, tl.load(parent_ptr + start + node, mask=own, other=0), node)
            place -= 1
            own = own & (place >= context) & (place >= seen)
        tl.store(near_ptr + token[:, None] * WIDTH + column[None, :], near, mask=inside[:, None])

    @triton.jit
    def _join(best, total, mixed, best2, total2, mixed2):
        # Two parts of a softmax. With one that saw nothing, the other comes out unchanged, so that it doesn't matter how many such
        # parts are joined. Multiplications and additions are fused here and not by the compiler, which may choose differently
        # in each kernel.
        higher = tl.maximum(best, best2)
        level = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(best - level)
        shrink2 = tl.exp2(best2 - level)
        total = tl.fma(total2, shrink2, total * shrink)
        mixed = tl.fma(mixed2, shrink2[:, None], mixed * shrink[:, None])
        return higher, total, mixed

    @triton.jit
    def _span(slot, PART: tl.constexpr, GROUP_SIZE: tl.constexpr, TOGETHER: tl.constexpr):
        # The keys behind a slot of the workspace: a group's; or one of the first group's parts, then other groups.
        if TOGETHER:
            begin = slot * GROUP_SIZE
            end = begin + GROUP_SIZE
        else:
            FIRST: tl.constexpr = GROUP_SIZE // PART
            begin = tl.where(slot < FIRST, slot * PART, (slot - FIRST + 1) * GROUP_SIZE)
            end = tl.where(slot < FIRST, begin + PART, begin + GROUP_SIZE)
        return begin, end

    @triton.jit(do_not_specialize=["length", "slots"])
    def _committed(
        q_ptr, key_ptr, value_ptr, tile_ptr, seen_ptr, partial_ptr, norm_ptr, q_stride, length, scale, slots,
        HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, GROUP_SIZE: tl.constexpr, TOGETHER: tl.constexpr,
        PDL: tl.constexpr,
    ):  # fmt: skip
        # Committed keys, a part of them or, TOGETHER, a group, for a tile of tokens and the heads that read the same keys.
        tile = tl.program_id(0)
        head = tl.program_id(1)
        request = tl.load(tile_ptr + tile * 3).to(tl.int64)
        first = tl.load(tile_ptr + tile * 3 + 1)
        count = tl.load(tile_ptr + tile * 3 + 2)
        packed = tl.arange(0, BLOCK_M)
        token = packed // PADDED
        member = packed % PADDED
        flat = first + tl.where(token < count, token, 0)
        seen = tl.where(token < count, tl.load(seen_ptr + flat), 0)
        limit = tl.max(seen, 0)
        # Long parts start first, short ones fill what they leave; the cache may have room for many more.
        used = tl.cdiv(limit, GROUP_SIZE)
        if not TOGETHER:
            used = tl.where(limit > GROUP_SIZE, GROUP_SIZE // PART - 1 + used, tl.cdiv(limit, PART))
        slot = used - 1 - tl.program_id(2)
        if PDL:  # noqa: SIM102 (one is known to the compiler)
            if (slot >= 0) | (tl.program_id(2) == 0):  # one waits in any case, so that who follows has waited, too
                tl.extra.cuda.gdc_wait()  # first, so that what follows may read what is there by now
                tl.extra.cuda.gdc_launch_dependents()
        column = tl.arange(0, DIM)
        base = (request * KV_HEADS + head) * length * DIM
        keys, values = key_ptr + base, value_ptr + base
        if slot >= 0:
            begin, end = _span(slot, PART, GROUP_SIZE, TOGETHER)
            real = (token < count) & (member < GROUP)
            q_at = flat.to(tl.int64) * q_stride + (head * GROUP + member) * DIM
            q = tl.load(q_ptr + q_at[:, None] + column[None, :], mask=real[:, None], other=0.0)
            if TOGETHER:
                best = tl.full([BLOCK_M], -float("inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
                mixed = tl.zeros([BLOCK_M, DIM], tl.float32)
                stride = tl.where(slot == 0, PART, GROUP_SIZE)
                for at in range(begin, tl.minimum(end, limit), stride):
                    stop = tl.minimum(at + stride, limit)
                    best2, total2, mixed2 = _part(q, keys, values, seen, at, stop, scale, DIM, BLOCK_M, BLOCK_N)
                    best, total, mixed = _join(best, total, mixed, best2, total2, mixed2)
            else:
                stop = tl.minimum(end, limit)
                best, total, mixed = _part(q, keys, values, seen, begin, stop, scale, DIM, BLOCK_M, BLOCK_N)
            at = (flat.to(tl.int64) * HEADS + head * GROUP + member) * slots + slot
            tl.store(norm_ptr + at * 2, best, mask=real)
            tl.store(norm_ptr + at * 2 + 1, total, mask=real)
            tl.store(partial_ptr + at[:, None] * DIM + column[None, :], mixed, mask=real[:, None])

    @triton.jit
    def _part(
        q, key_base, value_base, seen, begin, stop, scale,
        DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        offset = tl.arange(0, BLOCK_N)
        column = tl.arange(0, DIM)
        best = tl.full([BLOCK_M], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, DIM], tl.float32)
        for at in range(begin, stop, BLOCK_N):
            row = at + offset
            inside = row < stop
            k = tl.load(key_base + row[None, :] * DIM + column[:, None], mask=inside[None, :], other=0.0)
            scores = tl.dot(q, k, input_precision="ieee") * scale
            scores = tl.where(row[None, :] < seen[:, None], scores, -float("inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            # A row may have seen nothing yet: its maximum is still -inf, and -inf - -inf is not a number.
            level = tl.where(higher == -float("inf"), 0.0, higher)
            shrink = tl.exp2(best - level)
            weight = tl.exp2(scores - level[:, None])
            v = tl.load(value_base + row[:, None] * DIM + column[None, :], mask=inside[:, None], other=0.0)
            total = tl.fma(total, shrink, tl.sum(weight, 1))
            mixed = tl.dot(weight.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
            best = higher
        return best, total, mixed

    @triton.jit(do_not_specialize=["length", "slots"])
    def _finish(
        q_ptr, key_ptr, value_ptr, request_ptr, seen_ptr, near_ptr, partial_ptr, norm_ptr, out_ptr,
        q_stride, length, scale, slots,
        HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
        WIDTH: tl.constexpr, PART: tl.constexpr, GROUP_SIZE: tl.constexpr, FIRST: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        # One token and the heads that read the same keys: the gathered keys, and all parts joined. The first FIRST of them are
        # the first group's.
        if PDL:  # queries, keys and values are there already, see ``_committed``; what it leaves is not
            tl.extra.cuda.gdc_launch_dependents()
        token = tl.program_id(0)
        head = tl.program_id(1)
        member = tl.arange(0, ROWS)
        real = member < GROUP
        column = tl.arange(0, DIM)
        q_at = token.to(tl.int64) * q_stride + (head * GROUP + member) * DIM
        q = tl.load(q_ptr + q_at[:, None] + column[None, :], mask=real[:, None], other=0.0)
        row = tl.load(near_ptr + token * WIDTH + tl.arange(0, WIDTH))
        request = tl.load(request_ptr + token).to(tl.int64)
        seen = tl.load(seen_ptr + token)
        base = (request * KV_HEADS + head) * length * DIM
        k = tl.load(key_ptr + base + row[None, :] * DIM + column[:, None], mask=(row >= 0)[None, :], other=0.0)
        v = tl.load(value_ptr + base + row[:, None] * DIM + column[None, :], mask=(row >= 0)[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where((row >= 0)[None, :], scores, -float("inf"))
        near_best = tl.max(scores, 1)
        level = tl.where(near_best == -float("inf"), 0.0, near_best)
        weight = tl.exp2(scores - level[:, None])
        near_total = tl.sum(weight, 1)
        near_mixed = tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        if PDL:
            tl.extra.cuda.gdc_wait()
        best = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, DIM], tl.float32)
        here = (token.to(tl.int64) * HEADS + head * GROUP + member) * slots
        for part in tl.static_range(0, FIRST):
            wrote = real & (part * PART < seen)
            best2, total2, mixed2 = _slot(partial_ptr, norm_ptr, here + part, wrote, column, DIM)
            best, total, mixed = _join(best, total, mixed, best2, total2, mixed2)
        for group in range(1, tl.cdiv(seen, GROUP_SIZE), 2):  # two at a time are on their way
            slot = here + FIRST - 1 + group
            best2, total2, mixed2 = _slot(partial_ptr, norm_ptr, slot, real, column, DIM)
            wrote = real & ((group + 1) * GROUP_SIZE < seen)
            best3, total3, mixed3 = _slot(partial_ptr, norm_ptr, slot + 1, wrote, column, DIM)
            best, total, mixed = _join(best, total, mixed, best2, total2, mixed2)
            best, total, mixed = _join(best, total, mixed, best3, total3, mixed3)
        best, total, mixed = _join(best, total, mixed, near_best, near_total, near_mixed)
        result = mixed / tl.where(total > 0, total, 1.0)[:, None]  # tokens of no request see nothing
        at = out_ptr + (token.to(tl.int64) * HEADS + head * GROUP + member)[:, None] * DIM + column[None, :]
        tl.store(at, result.to(out_ptr.dtype.element_ty), mask=real[:, None])

    @triton.jit
    def _slot(partial_ptr, norm_ptr, at, wrote, column, DIM: tl.constexpr):
        best = tl.load(norm_ptr + at * 2, mask=wrote, other=-float("inf"))
        total = tl.load(norm_ptr + at * 2 + 1, mask=wrote, other=0.0)
        mixed = tl.load(partial_ptr + at[:, None] * DIM + column[None, :], mask=wrote[:, None], other=0.0)
        return best, total, mixed


def tree_attention(
    qkv: Tensor,
    heads: int,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: TreeMetadata,
    *,
    together: bool | None = None,
) -> Tensor:
    """Attention of flat tokens to their contexts and their trees.

    Parameters
    ----------
    qkv : Tensor [M, >= heads * head_dim]
        Rotated queries in the first ``heads * head_dim`` columns.
    key_cache, value_cache : Tensor [batch, kv_heads, length, head_dim]
        Request b's committed tokens in rows 0 .. context[b] - 1, its tree's tokens after them.
    metadata : TreeMetadata
    together : bool, optional
        A program takes a whole group of keys, and not a part; by default if there are enough of them. The result is the same.

    Returns
    -------
    Tensor [M, heads * head_dim]
        Zero for tokens that see nothing.
    """
    kv_heads, length, dim = key_cache.shape[1:]
    group = heads // kv_heads
    if not use_triton(qkv):
        return _tree_attention_torch(qkv, heads, key_cache, value_cache, metadata)
    tokens, tiles = qkv.shape[0], metadata.tiles.shape[0]
    padded = power_of_two(group)
    if together is None:
        together = tiles * kv_heads >= BUSY
    first = 1 if together else GROUP // PART
    slots = first + max(0, -(-length // GROUP) - 1)
    block_m = max(64, metadata.tokens_per_tile * padded)  # the same instructions for one token as for many
    out = torch.empty(tokens, heads * dim, dtype=qkv.dtype, device=qkv.device)
    partial = torch.empty(tokens, heads, slots, dim, dtype=torch.float32, device=qkv.device)
    norm = torch.empty(tokens, heads, slots, 2, dtype=torch.float32, device=qkv.device)
    launch = early_launch(qkv)
    narrow = dim > 128 or qkv.element_size() == 4  # what fits into shared memory
    scale = dim**-0.5 * 1.4426950408889634
    _committed[(tiles, kv_heads, slots)](
        qkv, key_cache, value_cache, metadata.tiles, metadata.seen, partial, norm, qkv.stride(0), length, scale, slots,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=group, PADDED=padded, DIM=dim, BLOCK_M=block_m,
        BLOCK_N=32 if narrow else KEYS_A_STEP, PART=PART, GROUP_SIZE=GROUP, TOGETHER=together,
        num_warps=block_m // 16, num_stages=2 if narrow else STAGES + (tiles == 1), **launch,
    )  # fmt: skip
    _finish[(tokens, kv_heads)](
        qkv, key_cache, value_cache, metadata.request, metadata.seen, metadata.near, partial, norm, out,
        qkv.stride(0), length, scale, slots,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=group, ROWS=max(16, padded), DIM=dim, WIDTH=metadata.near.shape[1],
        PART=PART, GROUP_SIZE=GROUP, FIRST=first, num_warps=2, **launch,
    )  # fmt: skip
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
    spans: dict[int, tuple[int, int]] = {}  # of each request's tokens, which several tiles may share
    for b, first, count in metadata.tiles.tolist():
        if count > 0:
            low, high = spans.get(b, (first, first))
            spans[b] = min(low, first), max(high, first + count)
    for b, (first, last) in spans.items():
        own = slice(first, last)
        near, seen = metadata.near[own].long(), metadata.seen[own]
        end = int(torch.maximum(near.amax() + 1, seen.amax()))
        mask = torch.arange(end + 1, device=near.device) < seen[:, None]
        mask.scatter_(1, torch.where(near < 0, end, near), True)
        mask = mask[:, :end]
        attended = F.scaled_dot_product_attention(
            query[None, :, own], key_cache[b : b + 1, :, :end], value_cache[b : b + 1, :, :end],
            attn_mask=mask, enable_gqa=True,
        )  # fmt: skip
        out[own] = attended[0].transpose(0, 1).flatten(1)
    return out
