"""Products of up to 128 tokens with a weight matrix, as fast as the weights can be read; the sums are left to what follows.

So few tokens make a product a matter of memory bandwidth: enough bytes must be on their way on every multiprocessor all the
time. The rows of the weights take the long side of the tensor cores' tiles, the tokens the short one. Narrow matrices are
also divided along K; each part's float32 sums go to a workspace that the next kernel adds up as it reads, always in the same
order, so that results are reproducible.
"""

# Triton kernels take pointers and compile-time constants, for which there are no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.engine import kernels
from ddsim_reference.engine.kernels import power_of_two

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MOST_TOKENS = 64
"""Above this the products are no longer bound by bandwidth alone, and cuBLAS does them faster (they work to 128)."""
PREFETCH = 4
"""Steps along K whose weights each program asks into the L2 cache while the kernel before it still runs."""
MULTIPROCESSORS = 132


class Tile(NamedTuple):
    """How a product is divided: weight rows and columns a step, parts along K, steps on their way, warps."""

    rows: int
    columns: int
    split: int
    stages: int
    warps: int = 4


TUNED: dict[tuple[int, int, int], Tile] = {
    (6144, 4096, 16): Tile(64, 64, 4, 7, 4),
    (4096, 4096, 16): Tile(128, 64, 8, 6, 8),
    (24576, 4096, 16): Tile(64, 128, 1, 5, 4),
    (4096, 12288, 16): Tile(64, 128, 4, 5, 4),
    (151936, 4096, 16): Tile(64, 128, 1, 5, 4),
    (4096, 20480, 16): Tile(64, 128, 4, 5, 4),
    (6144, 4096, 64): Tile(64, 64, 4, 4, 4),
    (4096, 4096, 64): Tile(64, 64, 4, 6, 4),
    (24576, 4096, 64): Tile(128, 128, 1, 4, 8),
    (4096, 12288, 64): Tile(128, 128, 4, 4, 8),
    (151936, 4096, 64): Tile(64, 128, 1, 3, 4),
    (4096, 20480, 64): Tile(128, 128, 4, 4, 8),
}
"""Measured choices in bfloat16 by weight rows, weight columns and padded tokens; ``default_tile`` serves the rest."""


def padded_tokens(tokens: int) -> int:
    """16, 32, 64 or 128."""
    return max(16, power_of_two(tokens))


def default_split(rows: int, columns: int, tile_rows: int, step: int, slots: int) -> int:
    """Parts along K such that ``slots`` programs a multiprocessor are one wave, each with four steps to do at least."""
    return max(1, min(slots * MULTIPROCESSORS // -(-rows // tile_rows), columns // (4 * step), 16))


def default_tile(rows: int, columns: int, padded: int, whole: bool) -> Tile:
    """Tiles of 64 weight rows, three programs on every multiprocessor at once, all of them in one wave if K may be divided.

    64 KiB and more of weights are then on their way on each, about what the memory's latency hides.
    """
    step = 64
    stages = max(2, min(6, 74_000 // ((64 + padded) * step * 2)))
    return Tile(64, step, 1 if whole else default_split(rows, columns, 64, step, 3), stages)


def tile_for(rows: int, columns: int, padded: int, whole: bool, itemsize: int) -> Tile:
    """The tuned tile, or the default one: also for numbers of four bytes, whose steps would fill the shared memory twice.

    Examples
    --------
    >>> tile_for(24576, 4096, 64, True, 2).columns, tile_for(24576, 4096, 64, True, 4).columns
    (128, 64)
    """
    tuned = TUNED.get((rows, columns, padded)) if itemsize == 2 else None
    return tuned or default_tile(rows, columns, padded, whole)


if triton is not None:

    @triton.jit(do_not_specialize=["tokens"])  # one compiled kernel serves all counts
    def _streamed_product(
        x_ptr, weight_ptr, out_ptr, tokens,
        N: tl.constexpr, K: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        SPLIT: tl.constexpr, GATED: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:  # all programs of one wave are resident, so what follows may come in and prefetch at once
            tl.extra.cuda.gdc_launch_dependents()
        tile = tl.program_id(0)
        split = tl.program_id(1)
        lane = tl.arange(0, ROWS)
        if GATED:  # gate and up rows take turns, so that one tile of the tensor cores holds the pairs
            own = tile * (ROWS // 2) + lane // 2
            row = tl.minimum(own, N - 1) + (lane % 2) * N
        else:
            row = tl.minimum(tile * ROWS + lane, N - 1)
        column = tl.arange(0, COLUMNS)
        token = tl.arange(0, M)
        weights = weight_ptr + row.to(tl.int64) * K
        STEPS: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
        begin = split * STEPS // SPLIT
        end = (split + 1) * STEPS // SPLIT
        if PREFETCH > 0:  # the weights depend on no kernel; a cache line holds 64 of them
            for line in tl.static_range(0, PREFETCH * COLUMNS, 64):
                ahead = tl.minimum(begin * COLUMNS + line, K - 1)
                tl.inline_asm_elementwise(
                    "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(weights + ahead).to(tl.int64)],
                    dtype=tl.int32, is_pure=False, pack=1,
                )  # fmt: skip
        if PDL:
            tl.extra.cuda.gdc_wait()
        total = tl.zeros([ROWS, M], tl.float32)
        for step in range(begin, end):
            at = step * COLUMNS + column
            if K % COLUMNS == 0:
                w = tl.load(weights[:, None] + at[None, :], eviction_policy="evict_first")
                x = tl.load(x_ptr + token[:, None] * K + at[None, :], mask=(token < tokens)[:, None], other=0.0)
            else:
                w = tl.load(
                    weights[:, None] + at[None, :], mask=(at < K)[None, :], other=0.0, eviction_policy="evict_first"
                )
                inside = (token < tokens)[:, None] & (at < K)[None, :]
                x = tl.load(x_ptr + token[:, None] * K + at[None, :], mask=inside, other=0.0)
            total = tl.dot(w, tl.trans(x), total, input_precision="ieee")
        dtype = out_ptr.dtype.element_ty
        if GATED:
            gate, up = tl.split(tl.permute(tl.reshape(total, [ROWS // 2, 2, M]), (0, 2, 1)))
            # Rounded where separate kernels would round.
            gate = gate.to(dtype).to(tl.float32)
            active = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            result = tl.trans((active * up.to(dtype).to(tl.float32)).to(dtype))
            place = tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
        else:
            result = tl.trans(total.to(dtype))
            place = tile * ROWS + lane
        out_row = split.to(tl.int64) * tokens + token
        inside = (token < tokens)[:, None] & (place < N)[None, :]
        tl.store(out_ptr + out_row[:, None] * N + place[None, :], result, mask=inside)


def streamed_product(
    x: Tensor, weight: Tensor, *, gated: bool = False, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """At most 128 tokens times a matrix: partial sums for the next kernel, or the whole if gated or ``out`` is given.

    Parameters
    ----------
    x : Tensor [M, K]
    weight : Tensor [N, K], or [2 * N, K] if gated
    gated : bool
        Return silu(first half) * second half in the type of ``x``.
    out : Tensor [M, N], optional
        Where the whole product goes, in its own type.
    tile : Tile, optional
        How to divide the work; by default as tuned.

    Returns
    -------
    Tensor
        float32 [parts, M, N], whose sum over the first dimension is the product; or the whole, [M, N].
    """
    tokens, k = x.shape
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    if not kernels.use_triton(x):
        product = F.linear(x, weight)
        if gated:
            return kernels.silu_mul(product)
        return product.float()[None] if out is None else out.copy_(x.float() @ weight.float().T)
    padded = padded_tokens(tokens)
    whole = gated or out is not None
    if tile is None:
        tile = tile_for(weight.shape[0], k, padded, whole, weight.element_size())
    split = 1 if whole else tile.split
    if gated:
        out = torch.empty(tokens, n, dtype=x.dtype, device=x.device)
    elif out is None:
        out = torch.empty(split, tokens, n, dtype=torch.float32, device=x.device)
    launch = kernels.early_launch(x)
    _streamed_product[(-(-weight.shape[0] // tile.rows), split)](
        x, weight, out, tokens,
        N=n, K=k, M=padded, ROWS=tile.rows, COLUMNS=tile.columns, SPLIT=split, GATED=gated,
        PREFETCH=PREFETCH if launch["PDL"] else 0, num_warps=tile.warps, num_stages=tile.stages, **launch,
    )  # fmt: skip
    return out
