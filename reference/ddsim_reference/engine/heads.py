"""A head's products in an engine: each token's sums in one order, however many blocks are drafted at once."""

# Triton kernels take pointers and compile-time constants, for which there are no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
from torch import Tensor

from ddsim_reference.engine import kernels, products
from ddsim_reference.engine.kernels import power_of_two
from ddsim_reference.model import heads
from ddsim_reference.model.forward import head_logits

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


if triton is not None:

    @triton.jit
    def _picked(
        x_ptr, table_ptr, id_ptr, shift_ptr, near_ptr, out_ptr, parents,
        WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, NEAR: tl.constexpr,
    ):  # fmt: skip
        # One token and the rows that its block picks at this depth.
        row = tl.program_id(0)
        group = row // parents
        pick = tl.arange(0, PADDED)
        column = tl.arange(0, BLOCK)
        own = tl.load(id_ptr + group * COUNT + pick, mask=pick < COUNT, other=0).to(tl.int64)
        dtype = x_ptr.dtype.element_ty
        total = tl.zeros([PADDED, BLOCK], tl.float32)
        for first in range(0, WIDTH, BLOCK):
            at = first + column
            inside = at < WIDTH
            x = tl.load(x_ptr + row.to(tl.int64) * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
            for i in tl.static_range(NEAR):
                near = tl.load(near_ptr + (group.to(tl.int64) * NEAR + i) * WIDTH + at, mask=inside, other=0.0)
                x = tl.fma(near.to(tl.float32), tl.load(shift_ptr + row * NEAR + i) * 0.125, x)
            x = x.to(dtype).to(tl.float32)
            w = tl.load(table_ptr + own[:, None] * WIDTH + at[None, :], mask=inside[None, :], other=0.0)
            total = tl.fma(w.to(tl.float32), tl.broadcast_to(x[None, :], [PADDED, BLOCK]), total)
        tl.store(out_ptr + row * COUNT + pick, tl.sum(total, 1), mask=pick < COUNT)


def picked(x: Tensor, table: Tensor, ids: Tensor, shift: Tensor | None = None, near: Tensor | None = None) -> Tensor:
    """`ddsim_reference.model.heads.picked`; what is added to x isn't rounded before."""
    if not kernels.use_triton(x):
        return heads.picked(x, table, ids, shift, near)
    parents, width = x.shape[-2:]
    count = ids.shape[-1]
    out = torch.empty(*x.shape[:-1], count, dtype=torch.float32, device=x.device)
    padded = power_of_two(count)
    mixes = shift is not None and near is not None
    _picked[(x[..., 0].numel(),)](
        x.contiguous(), table, ids.contiguous(), out if shift is None else shift.float().contiguous(),
        x if near is None else near.contiguous(), out, parents,
        WIDTH=width, COUNT=count, PADDED=padded, BLOCK=max(32, 4096 // padded),
        NEAR=near.shape[-2] if mixes and near is not None else 0, num_warps=4,
    )  # fmt: skip
    return out


def few(x: Tensor, rows: Tensor) -> Tensor:
    """`ddsim_reference.model.heads.few`, in float32."""
    if not kernels.use_triton(x):
        return heads.few(x, rows)
    table = rows.view(-1, rows.shape[-1])
    every = torch.arange(len(table), device=x.device).expand(*x.shape[:-2], -1)
    out = picked(x, table, every)
    return out[..., 0] if rows.dim() == 1 else out


def logits(x: Tensor, head: Tensor) -> Tensor:
    """`ddsim_reference.model.forward.head_logits`."""
    if not kernels.use_triton(x):
        return head_logits(x, head)
    rows = x.flatten(0, -2).contiguous()
    out = torch.empty(len(rows), len(head), dtype=torch.float32, device=x.device)
    return products.product(rows, head, out=out).unflatten(0, x.shape[:-1])


PRODUCTS = heads.Products(products.linear, few, picked, logits)
