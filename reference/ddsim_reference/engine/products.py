"""Products of any number of tokens with a weight matrix, each token's sums in one order, whoever shares the pass.

A token's product with a row of the weights is divided along K into parts that the matrix's shape alone decides; a part is summed in
steps of the tensor cores from its first column to its last, and the parts are added in their order. Tiles, warps and stages change
none of that: they are chosen by the number of tokens, for speed. So a token gets the same bits alone and among a thousand others.

Few tokens make a product a matter of memory bandwidth: enough bytes must be on their way on every multiprocessor all the time. The
rows of the weights take the long side of the tensor cores' tiles, the tokens the short one; each part is a program of its own, whose
float32 sums go to a workspace that the next kernel adds up as it reads. Many tokens make it a matter of arithmetic: a program sums
all parts of its tile, and the tokens take the long side.
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
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    triton = None

STREAMED_TOKENS = 64
"""Up to so many tokens the weights are streamed; beyond, a product is a matter of arithmetic, or nearly so."""
PREFETCH = 2
"""Steps along K whose weights each program asks into the L2 cache while the kernel before it still runs."""
MULTIPROCESSORS = 132
UNIT = 128
"""Parts begin at multiples of so many columns, which tiles' steps divide; only a product of one part may take longer steps."""


class Tile(NamedTuple):
    """How a product is worked on: weight rows and columns a step, tokens, steps on their way, warps.

    ``whole``: a program adds up all parts of its tile, which otherwise are programs of their own. ``tokens_first``: tokens take the
    long side of the tensor cores' tiles. ``copied``: tiles come by the copy engine, which takes no registers, and are whole.
    ``turns``: programs that stay take copied tiles in turn, and load for the next one while they finish one.
    """

    rows: int
    columns: int
    tokens: int
    stages: int
    warps: int = 4
    whole: bool = False
    tokens_first: bool = False
    copied: bool = False
    turns: bool = False


PARTS: dict[tuple[int, int], int] = {
    (6144, 4096): 1,
    (4096, 4096): 1,
    (4096, 12288): 1,
    (4096, 20480): 4,
}
"""Measured numbers of parts by weight rows and columns; ``default_parts`` serves the rest. Changing one changes bits."""

TUNED: dict[tuple[int, int, int], Tile] = {
    (6144, 4096, 16): Tile(64, 128, 16, 5, copied=True),
    (4096, 4096, 16): Tile(64, 256, 16, 5, copied=True),
    (24576, 4096, 16): Tile(64, 128, 16, 11),
    (4096, 12288, 16): Tile(32, 128, 64, 9, tokens_first=True),
    (151936, 4096, 16): Tile(64, 256, 16, 5),
    (4096, 20480, 16): Tile(64, 128, 16, 5),
    (6144, 4096, 32): Tile(64, 128, 64, 6, tokens_first=True),
    (4096, 4096, 32): Tile(32, 128, 64, 9, tokens_first=True),
    (24576, 4096, 32): Tile(64, 128, 64, 6, tokens_first=True),
    (4096, 12288, 32): Tile(32, 128, 64, 9, tokens_first=True),
    (151936, 4096, 32): Tile(128, 128, 64, 3, tokens_first=True, copied=True),
    (6144, 4096, 64): Tile(64, 128, 64, 6, tokens_first=True, copied=True),
    (4096, 4096, 64): Tile(64, 128, 64, 6, tokens_first=True, copied=True),
    (24576, 4096, 64): Tile(64, 128, 64, 6, tokens_first=True, copied=True),
    (4096, 12288, 64): Tile(32, 128, 64, 9, tokens_first=True, copied=True),
    (151936, 4096, 64): Tile(128, 128, 64, 3, tokens_first=True, copied=True),
    (4096, 20480, 64): Tile(128, 128, 64, 4, 8),
    (6144, 4096, 128): Tile(64, 128, 128, 4, copied=True),
    (4096, 4096, 128): Tile(64, 128, 64, 5, tokens_first=True, copied=True),
    (24576, 4096, 128): Tile(64, 64, 128, 7, tokens_first=True, copied=True, turns=True),
    (4096, 12288, 128): Tile(64, 64, 128, 8, tokens_first=True, copied=True),
    (151936, 4096, 128): Tile(128, 128, 128, 3, 8, tokens_first=True, copied=True),
    (6144, 4096, 256): Tile(128, 64, 128, 6, tokens_first=True, copied=True),
    (4096, 4096, 256): Tile(64, 128, 128, 4, copied=True),
    (24576, 4096, 256): Tile(128, 64, 128, 5, tokens_first=True, copied=True, turns=True),
    (4096, 12288, 256): Tile(128, 128, 64, 4, 8, tokens_first=True, copied=True),
    (151936, 4096, 256): Tile(128, 64, 256, 4, 8, copied=True),
    (6144, 4096, 512): Tile(256, 64, 128, 4, 8, tokens_first=True, copied=True),
    (4096, 4096, 512): Tile(128, 64, 128, 6, copied=True),
    (24576, 4096, 512): Tile(256, 64, 128, 4, 8, tokens_first=True, copied=True),
    (4096, 12288, 512): Tile(128, 64, 128, 6, tokens_first=True, copied=True),
    (151936, 4096, 512): Tile(128, 64, 128, 5, tokens_first=True, copied=True, turns=True),
}
"""Measured choices in bfloat16 by weight rows, weight columns and padded tokens; ``default_tile`` serves the rest."""


def padded_tokens(tokens: int) -> int:
    """16, 32, 64, 128, ...: token counts of one padded count share their tile."""
    return max(16, power_of_two(tokens))


def default_parts(rows: int, columns: int) -> int:
    """Parts along K such that tiles of 64 rows, three on every multiprocessor, are one wave, each with four steps to do at least."""
    return max(1, min(3 * MULTIPROCESSORS // -(-rows // 64), columns // 256, 16))


def parts_of(rows: int, columns: int) -> int:
    """Into how many parts a product is divided along K, by the shape of the weights alone.

    Examples
    --------
    >>> parts_of(4096, 12288), parts_of(151936, 4096)
    (4, 1)
    """
    return PARTS.get((rows, columns)) or default_parts(rows, columns)


def default_tile(rows: int, columns: int, padded: int, parts: int) -> Tile:
    """Up to 64 tokens tiles of 64 weight rows, with 64 KiB and more of weights on their way on each multiprocessor, about what the
    memory's latency hides; for more tokens square tiles, which add up the parts themselves unless they would leave
    multiprocessors without work."""
    if padded <= STREAMED_TOKENS:
        return Tile(64, 64, padded, max(2, min(6, 74_000 // ((64 + padded) * 64 * 2))))
    programs = -(-rows // 128) * -(-padded // 128)
    if parts == 1 or programs > MULTIPROCESSORS // 2:
        return Tile(128, 64, 128, 3 if parts == 1 else 4, 8, True, True, True)
    return Tile(128, 64, 128, 4, 8, False, True)


def tile_for(rows: int, columns: int, tokens: int, parts: int, itemsize: int) -> Tile:
    """The tuned tile, or the default one; for numbers of four bytes one that fits into the shared memory.

    Examples
    --------
    >>> tile_for(24576, 4096, 60, 1, 2).columns, tile_for(24576, 4096, 60, 1, 4).columns
    (128, 64)
    """
    padded = padded_tokens(tokens)
    if itemsize > 2:  # no tensor cores: small tiles, in which the sums stay in registers
        return Tile(64, 64, min(padded, 64), 2, 4, padded > 64)
    return TUNED.get((rows, columns, min(padded, 512))) or default_tile(rows, columns, padded, parts)


if triton is not None:

    @triton.jit
    def _sums(
        x_ptr, weights, token, tokens, part,
        K: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr,
        TOKENS_FIRST: tl.constexpr,
    ):  # fmt: skip
        # One part of a tile, from its first column to its last.
        UNITS: tl.constexpr = (K + UNIT - 1) // UNIT
        column = tl.arange(0, COLUMNS)
        sums = tl.zeros([M, ROWS] if TOKENS_FIRST else [ROWS, M], tl.float32)
        for at in range(part * UNITS // PARTS * UNIT, tl.minimum((part + 1) * UNITS // PARTS * UNIT, K), COLUMNS):
            here = at + column
            if K % COLUMNS == 0:
                w = tl.load(weights[:, None] + here[None, :], eviction_policy="evict_first")
                x = tl.load(x_ptr + token[:, None] * K + here[None, :], mask=(token < tokens)[:, None], other=0.0)
            else:
                w = tl.load(
                    weights[:, None] + here[None, :], mask=(here < K)[None, :], other=0.0, eviction_policy="evict_first"
                )
                inside = (token < tokens)[:, None] & (here < K)[None, :]
                x = tl.load(x_ptr + token[:, None] * K + here[None, :], mask=inside, other=0.0)
            if TOKENS_FIRST:
                sums = tl.dot(x, tl.trans(w), sums, input_precision="ieee")
            else:
                sums = tl.dot(w, tl.trans(x), sums, input_precision="ieee")
        return sums

    @triton.jit
    def _ask_ahead(weights, begin, K: tl.constexpr, COLUMNS: tl.constexpr):
        # Weights depend on no kernel, so that the L2 cache may have their first columns before tokens come; 64 to a line.
        for line in tl.static_range(0, COLUMNS, 64):
            ahead = tl.minimum(begin + line, K - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(weights + ahead).to(tl.int64)],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip

    @triton.jit
    def _copied_sums(
        x_tiles, weight_tiles, block, tile, part,
        K: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr,
        TOKENS_FIRST: tl.constexpr, GATED: tl.constexpr,
    ):  # fmt: skip
        # As ``_sums``; of a gated product, half of a tile's rows are gates, the other half what they gate.
        UNITS: tl.constexpr = (K + UNIT - 1) // UNIT
        sums = tl.zeros([M, ROWS] if TOKENS_FIRST else [ROWS, M], tl.float32)
        for at in range(part * UNITS // PARTS * UNIT, tl.minimum((part + 1) * UNITS // PARTS * UNIT, K), COLUMNS):
            x = x_tiles.load([block * M, at])
            if GATED:
                w = tl.reshape(weight_tiles.load([0, tile * (ROWS // 2), at]), [ROWS, COLUMNS])
            else:
                w = weight_tiles.load([tile * ROWS, at])
            if TOKENS_FIRST:
                sums = tl.dot(x, tl.trans(w), sums, input_precision="ieee")
            else:
                sums = tl.dot(w, tl.trans(x), sums, input_precision="ieee")
        return sums

    @triton.jit
    def _copied_out(
        total, out_ptr, tokens, block, tile, N: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr,
        TOKENS_FIRST: tl.constexpr, GATED: tl.constexpr,
    ):  # fmt: skip
        if not TOKENS_FIRST:
            total = tl.trans(total)
        dtype = out_ptr.dtype.element_ty
        if GATED:
            gate, up = tl.split(tl.permute(tl.reshape(total, [M, 2, ROWS // 2]), (0, 2, 1)))
            result = _gate(gate, up, dtype)
            place = tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
        else:
            result = total.to(dtype)
            place = tile * ROWS + tl.arange(0, ROWS)
        token = block * M + tl.arange(0, M)
        inside = (token < tokens)[:, None] & (place < N)[None, :]
        tl.store(out_ptr + token.to(tl.int64)[:, None] * N + place[None, :], result, mask=inside)

    @triton.jit(do_not_specialize=["tokens"])
    def _copied_product(
        x_tiles, weight_tiles, weight_ptr, out_ptr, tokens,
        N: tl.constexpr, K: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        PARTS: tl.constexpr, UNIT: tl.constexpr, TOKENS_FIRST: tl.constexpr, GATED: tl.constexpr,
        PREFETCH: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
        block = tl.program_id(0)
        tile = tl.program_id(1)
        if PREFETCH > 0:
            lane = tl.arange(0, ROWS)
            if GATED:
                row = tl.minimum(tile * (ROWS // 2) + lane % (ROWS // 2), N - 1) + lane // (ROWS // 2) * N
            else:
                row = tl.minimum(tile * ROWS + lane, N - 1)
            _ask_ahead(weight_ptr + row.to(tl.int64) * K, 0, K, PREFETCH * COLUMNS)
        if PDL:
            tl.extra.cuda.gdc_wait()
        total = _copied_sums(
            x_tiles, weight_tiles, block, tile, 0, K, M, ROWS, COLUMNS, PARTS, UNIT, TOKENS_FIRST, GATED
        )
        for part in range(1, PARTS):
            total += _copied_sums(
                x_tiles, weight_tiles, block, tile, part, K, M, ROWS, COLUMNS, PARTS, UNIT, TOKENS_FIRST, GATED
            )
        _copied_out(total, out_ptr, tokens, block, tile, N, M, ROWS, TOKENS_FIRST, GATED)

    @triton.jit(do_not_specialize=["tokens"])
    def _products_in_turn(
        x_tiles, weight_tiles, out_ptr, tokens,
        N: tl.constexpr, K: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        UNIT: tl.constexpr, TOKENS_FIRST: tl.constexpr, GATED: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        # A product of one part, by programs that go on: one loop over tiles and columns, whose loads never pause.
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        blocks = tl.cdiv(tokens, M)
        TILES: tl.constexpr = ((2 * N if GATED else N) + ROWS - 1) // ROWS
        for turn in tl.range(tl.program_id(0), blocks * TILES, PROGRAMS, flatten=True):
            block = turn % blocks
            tile = turn // blocks
            total = _copied_sums(
                x_tiles, weight_tiles, block, tile, 0, K, M, ROWS, COLUMNS, 1, UNIT, TOKENS_FIRST, GATED
            )
            _copied_out(total, out_ptr, tokens, block, tile, N, M, ROWS, TOKENS_FIRST, GATED)

    @triton.jit
    def _gate(gate, up, dtype: tl.constexpr):
        # Rounded where separate kernels would round.
        gate = gate.to(dtype).to(tl.float32)
        active = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        return (active * up.to(dtype).to(tl.float32)).to(dtype)

    @triton.jit(do_not_specialize=["tokens"])  # one compiled kernel serves all counts
    def _product(
        x_ptr, weight_ptr, out_ptr, tokens,
        N: tl.constexpr, K: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        PARTS: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr, TOKENS_FIRST: tl.constexpr, GATED: tl.constexpr,
        PREFETCH: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        if PDL:  # all programs of one wave are resident, so what follows may come in and prefetch at once
            tl.extra.cuda.gdc_launch_dependents()
        tile = tl.program_id(1)  # programs that read the same weights are neighbours
        lane = tl.arange(0, ROWS)
        if GATED:  # gate and up rows take turns, so that one tile of the tensor cores holds the pairs
            own = tile * (ROWS // 2) + lane // 2
            row = tl.minimum(own, N - 1) + (lane % 2) * N
        else:
            row = tl.minimum(tile * ROWS + lane, N - 1)
        token = tl.program_id(0) * M + tl.arange(0, M)
        weights = weight_ptr + row.to(tl.int64) * K
        first = tl.program_id(2)
        if PREFETCH > 0:
            begin = first * ((K + UNIT - 1) // UNIT) // PARTS * UNIT
            _ask_ahead(weights, begin, K, PREFETCH * COLUMNS)
        if PDL:
            tl.extra.cuda.gdc_wait()
        total = _sums(x_ptr, weights, token, tokens, first, K, M, ROWS, COLUMNS, PARTS, UNIT, TOKENS_FIRST)
        if WHOLE:
            for part in range(1, PARTS):
                total += _sums(x_ptr, weights, token, tokens, part, K, M, ROWS, COLUMNS, PARTS, UNIT, TOKENS_FIRST)
        dtype = out_ptr.dtype.element_ty
        if GATED:
            if TOKENS_FIRST:
                gate, up = tl.split(tl.reshape(total, [M, ROWS // 2, 2]))
            else:
                gate, up = tl.split(tl.permute(tl.reshape(total, [ROWS // 2, 2, M]), (0, 2, 1)))
            result = _gate(gate, up, dtype)
            place = tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
        else:
            result = total.to(dtype)
            place = tile * ROWS + lane
        if not TOKENS_FIRST:
            result = tl.trans(result)
        out_row = first.to(tl.int64) * tokens + token
        inside = (token < tokens)[:, None] & (place < N)[None, :]
        tl.store(out_ptr + out_row[:, None] * N + place[None, :], result, mask=inside)


def product(
    x: Tensor, weight: Tensor, *, gated: bool = False, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """Tokens times a matrix: the whole, or parts that the next kernel adds up, whichever is faster; the sum is the same.

    Parameters
    ----------
    x : Tensor [M, K]
    weight : Tensor [N, K], or [2 * N, K] if gated
    gated : bool
        Return silu(first half) * second half in the type of ``x``.
    out : Tensor [M, N], optional
        Where the whole product goes, in its own type.
    tile : Tile, optional
        How to work on it; by default as tuned.

    Returns
    -------
    Tensor
        float32 [parts, M, N], whose sum over the first dimension is the product; or the whole, [M, N].
    """
    if not kernels.use_triton(x):
        result = F.linear(x, weight)
        if gated:
            return kernels.silu_mul(result)
        return result if out is None else out.copy_(x.float() @ weight.float().T)
    tokens, k = x.shape
    rows = weight.shape[0]
    n = rows // 2 if gated else rows
    parts = 1 if gated or out is not None else parts_of(rows, k)
    if tile is None:
        tile = tile_for(rows, k, tokens, parts, weight.element_size())
    if tile.copied and (k % 8 or x.data_ptr() % 16 or weight.data_ptr() % 16):  # which the copy engine can't take
        tile = tile._replace(copied=False, whole=True)
    whole = parts == 1 or tile.whole or tile.copied
    if out is None and whole:
        out = torch.empty(tokens, n, dtype=x.dtype, device=x.device)
    elif out is None:
        out = torch.empty(parts, tokens, n, dtype=torch.float32, device=x.device)
    launch = kernels.early_launch(x)
    shape = {
        "N": n, "K": k, "M": tile.tokens, "ROWS": tile.rows, "COLUMNS": tile.columns, "UNIT": UNIT, "GATED": gated,
        "TOKENS_FIRST": tile.tokens_first, "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    ahead = PREFETCH if launch["PDL"] and tokens <= STREAMED_TOKENS else 0
    grid = -(-tokens // tile.tokens), -(-rows // tile.rows)
    if tile.copied:
        gates = weight.view(2, n, k) if gated else weight
        height = [2, tile.rows // 2] if gated else [tile.rows]
        tiles = (
            TensorDescriptor.from_tensor(x, [tile.tokens, tile.columns]),
            TensorDescriptor.from_tensor(gates, [*height, tile.columns]),
        )
        if tile.turns and parts == 1:
            programs = min(MULTIPROCESSORS, grid[0] * grid[1])
            _products_in_turn[(programs,)](*tiles, out, tokens, PROGRAMS=programs, **shape, **launch)
        else:
            _copied_product[grid](*tiles, weight, out, tokens, PARTS=parts, PREFETCH=ahead, **shape, **launch)
        return out
    _product[(*grid, 1 if whole else parts)](
        x, weight, out, tokens, PARTS=parts, WHOLE=whole, PREFETCH=ahead, **shape, **launch
    )
    return out


def added(result: Tensor, dtype: torch.dtype) -> Tensor:
    """What `product` returned as one matrix, for whoever adds up no parts."""
    if result.dim() == 2:
        return result
    total = result[0]
    for part in result[1:]:
        total = total + part
    return total.to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by `product`."""
    if not kernels.use_triton(x):
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2).contiguous()
    many = rows.shape[0] > STREAMED_TOKENS and rows.element_size() == 2
    tile = Tile(128, 64, 64, 4, 4, True, True, True) if many else None  # no next kernel adds up parts here
    out = added(product(rows, weight, tile=tile), x.dtype).unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias
