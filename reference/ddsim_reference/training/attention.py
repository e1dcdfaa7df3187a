"""Who sees whom in training: documents side by side in a row, and blocks that see what is before their root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ddsim_reference.model import forward
from ddsim_reference.training.batches import Batch


class Attention:
    """The two attention patterns of training; FlexAttention with block masks kept in place on a GPU, dense masks elsewhere."""

    BLOCK = 128

    def __init__(self, rows: int, length: int, anchors: int, block_size: int, device: str) -> None:
        self.length, self.block_size = length, block_size
        self.flex = device.startswith("cuda")
        self.starts = torch.zeros(rows, length, dtype=torch.int32, device=device)
        self.anchors = torch.zeros(rows, anchors, dtype=torch.int32, device=device)
        self.anchor_starts = torch.zeros(rows, anchors, dtype=torch.int32, device=device)
        self.target_mask: Any = None
        self.drafter_mask: Any = None
        starts, anchors_, anchor_starts = self.starts, self.anchors, self.anchor_starts

        def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
            return (k <= q) & (k >= starts[b, q])

        def blocks(b: Any, h: Any, q: Any, k: Any) -> Any:
            block = q // block_size
            before = (k < anchors_[b, block]) & (k >= anchor_starts[b, block])
            return before | ((k >= length) & ((k - length) // block_size == block))

        self._causal, self._blocks = causal, blocks

    def update(self, batch: Batch) -> None:
        """Point both masks at a new batch. The mask objects stay, so that compiled code stays valid."""
        self.starts.copy_(batch.starts)
        self.anchors.copy_(batch.anchors)
        self.anchor_starts.copy_(batch.starts.gather(1, batch.anchors))
        if self.flex:
            self._update_flex()
        else:
            self._update_dense()

    def _update_dense(self) -> None:
        rows, length = self.starts.shape
        queries = self.anchors.shape[1] * self.block_size
        b = torch.arange(rows, device=self.starts.device)[:, None, None]
        q = torch.arange(max(length, queries), device=b.device)[None, :, None]
        k = torch.arange(length + queries, device=b.device)[None, None]
        self.target_mask = forward.masked_attention(self._causal(b, 0, q[:, :length], k[..., :length])[:, None])
        seen = self._blocks(b, 0, q[:, :queries], k)
        self.drafter_mask = forward.masked_attention(seen[:, None])

    def _update_flex(self) -> None:
        rows, length = self.starts.shape
        size, per = self.BLOCK, self.BLOCK // self.block_size
        queries = self.anchors.shape[1] * self.block_size
        device = self.starts.device
        k_block = torch.arange(length // size, device=device)
        q_block = k_block[:, None]
        starts = self.starts.view(rows, -1, size)
        causal = (k_block <= q_block) & (k_block >= starts.amin(2, keepdim=True) // size)
        causal_full = (k_block < q_block) & (k_block * size >= starts.amax(2, keepdim=True))
        anchors, anchor_starts = self.anchors.view(rows, -1, per), self.anchor_starts.view(rows, -1, per)
        before = (k_block >= anchor_starts.amin(2, keepdim=True) // size) & (
            k_block <= (anchors.amax(2, keepdim=True) - 1) // size
        )
        before_full = (k_block * size >= anchor_starts.amax(2, keepdim=True)) & (
            (k_block + 1) * size <= anchors.amin(2, keepdim=True)
        )
        own = torch.eye(queries // size, dtype=torch.bool, device=device).expand(rows, -1, -1)
        none = torch.zeros_like(own)
        self.target_mask = self._renewed(self.target_mask, causal, causal_full, self._causal, (length, length))
        self.drafter_mask = self._renewed(
            self.drafter_mask, torch.cat((before, own), 2), torch.cat((before_full, none), 2), self._blocks,
            (queries, length + queries),
        )  # fmt: skip

    def _renewed(self, old: Any, seen: Tensor, full: Tensor, rule: Callable[..., Any], lengths: tuple[int, int]) -> Any:
        """A block mask from blocks [rows, queries, keys] that are seen at all, and that are seen whole."""
        tables: list[Tensor] = []
        for blocks in ((seen & ~full)[:, None], (seen & full)[:, None]):
            order = blocks.int().argsort(dim=-1, descending=True, stable=True)
            tables += [blocks.sum(-1).int(), order.int()]
        new = BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=self.BLOCK, mask_mod=rule, seq_lengths=lengths)
        if old is None:
            return new
        for name in ("num_blocks", "indices"):
            for side in ("kv", "q", "full_kv", "full_q"):
                getattr(old, f"{side}_{name}").copy_(getattr(new, f"{side}_{name}"))
        return old

    def target(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal within each document."""
        if not self.flex:
            attended: Tensor = self.target_mask(query, key, value)
            return attended
        return flex_attention(query, key, value, block_mask=self.target_mask, enable_gqa=True)  # type: ignore[return-value]

    def drafter(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each block sees its document before its root, and itself."""
        if not self.flex:
            attended: Tensor = self.drafter_mask(query, key, value)
            return attended
        return flex_attention(query, key, value, block_mask=self.drafter_mask, enable_gqa=True)  # type: ignore[return-value]
