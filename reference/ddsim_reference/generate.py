"""Many sequences in lockstep: one token a step for every slot, over one static key/value cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.model.config import ModelConfig, Weights
from ddsim_reference.model.forward import (
    PART,
    Continued,
    halves,
    head_logits,
    rms_norm,
    rope_table,
    rotate,
    target_layer,
    target_layers,
    transformer_layer,
)

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU-only installs have no Triton; the PyTorch path below serves them
    triton = None

if triton is not None:

    @triton.jit
    def _decode_attention(  # type: ignore[no-untyped-def]
        qkv_ptr, key_ptr, value_ptr, cos_ptr, sin_ptr, start_ptr, step_ptr, out_ptr, length, scale,
        HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, HALF: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        slot = tl.program_id(0)
        kv_head = tl.program_id(1)
        step = tl.load(step_ptr)
        start = tl.load(start_ptr + slot)
        half = tl.arange(0, HALF)
        cos = tl.load(cos_ptr + (step - start) * HALF + half)
        sin = tl.load(sin_ptr + (step - start) * HALF + half)
        row = qkv_ptr + slot.to(tl.int64) * (HEADS + 2 * KV_HEADS) * 2 * HALF

        group = tl.arange(0, PADDED)
        q_offset = (kv_head * GROUP + group[:, None]) * 2 * HALF + half[None, :]
        q_mask = group[:, None] < GROUP
        first = tl.load(row + q_offset, mask=q_mask, other=0.0).to(tl.float32)
        second = tl.load(row + q_offset + HALF, mask=q_mask, other=0.0).to(tl.float32)
        q_first = first * cos[None, :] - second * sin[None, :]
        q_second = second * cos[None, :] + first * sin[None, :]

        k_row = row + (HEADS + kv_head) * 2 * HALF
        k_a = tl.load(k_row + half).to(tl.float32)
        k_b = tl.load(k_row + HALF + half).to(tl.float32)
        k_first = k_a * cos - k_b * sin
        k_second = k_b * cos + k_a * sin
        v_row = row + (HEADS + KV_HEADS + kv_head) * 2 * HALF
        wide = tl.arange(0, 2 * HALF)
        v_new = tl.load(v_row + wide)

        cache = (slot.to(tl.int64) * KV_HEADS + kv_head) * length * 2 * HALF
        here = cache + step * 2 * HALF
        tl.store(key_ptr + here + half, k_first.to(key_ptr.dtype.element_ty))
        tl.store(key_ptr + here + HALF + half, k_second.to(key_ptr.dtype.element_ty))
        tl.store(value_ptr + here + wide, v_new)

        # The new token's own key starts the online softmax, so that no step reads what it has just written.
        best = (tl.sum(q_first * k_first[None, :], 1) + tl.sum(q_second * k_second[None, :], 1)) * scale
        total = tl.full([PADDED], 1.0, tl.float32)
        mixed = tl.zeros([PADDED, 2 * HALF], tl.float32) + v_new[None, :].to(tl.float32)
        q_first = q_first.to(key_ptr.dtype.element_ty)
        q_second = q_second.to(key_ptr.dtype.element_ty)
        for base in range(start, step, BLOCK):
            index = base + tl.arange(0, BLOCK)
            inside = index < step
            at = cache + index[:, None] * 2 * HALF
            keys_first = tl.load(key_ptr + at + half[None, :], mask=inside[:, None], other=0.0)
            keys_second = tl.load(key_ptr + at + HALF + half[None, :], mask=inside[:, None], other=0.0)
            scores = (
                tl.dot(q_first, tl.trans(keys_first), input_precision="ieee")
                + tl.dot(q_second, tl.trans(keys_second), input_precision="ieee")
            ) * scale
            scores = tl.where(inside[None, :], scores, -float("inf"))
            new_best = tl.maximum(best, tl.max(scores, 1))
            weight = tl.exp(scores - new_best[:, None])
            shrink = tl.exp(best - new_best)
            values = tl.load(value_ptr + at + wide[None, :], mask=inside[:, None], other=0.0)
            total = total * shrink + tl.sum(weight, 1)
            mixed = mixed * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
            best = new_best
        result = mixed / total[:, None]
        out_offset = (kv_head * GROUP + group[:, None]) * 2 * HALF + wide[None, :]
        out = out_ptr + slot.to(tl.int64) * HEADS * 2 * HALF + out_offset
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=q_mask)


def _one_launch_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm`` in one launch: as ``rms_norm`` does it, norms would be most of a step's launches."""
    return F.rms_norm(x, weight.shape, weight, eps)


class TextGenerator:
    """A target that advances ``slots`` sequences by one token a step.

    Slot s's sequence starts at row position ``start[s]`` and all slots are at row position ``step``: a slot may begin a
    new sequence in the middle of its row, and sees nothing before it.

    Parameters
    ----------
    config, weights
        The target.
    slots, length : int
        Sequences side by side, and row positions to keep keys and values for.
    """

    def __init__(self, config: ModelConfig, weights: Weights, slots: int, length: int) -> None:
        self.config = config
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = weights["lm_head.weight"]
        self.norm = weights["model.norm.weight"]
        self.layers = target_layers(config, weights)
        self.length = length
        device, dtype = self.embedding.device, self.embedding.dtype
        shape = (config.num_layers, slots, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.cos, self.sin = rope_table(torch.arange(length, device=device), config.head_dim, config.rope_theta)
        self.fused = triton is not None and device.type == "cuda" and not config.qk_norm

    def _attend(self, i: int, step: Tensor, start: Tensor, normed: Tensor) -> Tensor:
        config = self.config
        qkv = F.linear(normed, self.layers[i][1])
        if self.fused:
            out = torch.empty(qkv.shape[0], config.num_heads * config.head_dim, device=qkv.device, dtype=qkv.dtype)
            group = config.num_heads // config.num_kv_heads
            _decode_attention[(qkv.shape[0], config.num_kv_heads)](
                qkv, self.keys[i], self.values[i], self.cos, self.sin, start, step, out,
                self.length, config.head_dim**-0.5,
                HEADS=config.num_heads, KV_HEADS=config.num_kv_heads, GROUP=group,
                PADDED=max(16, triton.next_power_of_2(group)), HALF=config.head_dim // 2, BLOCK=64, num_warps=4,
            )  # fmt: skip
            return out
        heads = qkv.unflatten(-1, (-1, config.head_dim))[:, :, None]
        query, key, value = heads.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), 1)
        norms = self.layers[i][6:]
        if norms[0] is not None and norms[1] is not None:
            query = rms_norm(query, norms[0], config.rms_norm_eps)
            key = rms_norm(key, norms[1], config.rms_norm_eps)
        position = step - start
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        self.keys[i].index_copy_(2, step.view(1), rotate(key, cos, sin))
        self.values[i].index_copy_(2, step.view(1), value)
        index = torch.arange(self.length, device=qkv.device)
        mask = (index <= step) & (index >= start[:, None])
        attended = F.scaled_dot_product_attention(
            rotate(query, cos, sin), self.keys[i], self.values[i], attn_mask=mask[:, None, None], enable_gqa=True
        )
        return attended.flatten(1)

    def hidden(self, tokens: Tensor, step: Tensor, start: Tensor) -> Tensor:
        """Feed one token a slot, int [slots], at row position ``step`` (0-d int); hidden states [slots, hidden] for the head."""
        eps = self.config.rms_norm_eps
        x = F.embedding(tokens, self.embedding)
        for i, (norm1, _, o_weight, norm2, gate_up, down, _, _) in enumerate(self.layers):
            attention = partial(self._attend, i, step, start)
            x = transformer_layer(x, norm1, attention, o_weight, norm2, halves(gate_up), down, eps, _one_launch_norm)
        return _one_launch_norm(x, self.norm, eps)

    def prefill(self, slot: int, tokens: Sequence[int], first: int, part: int = PART) -> Tensor:
        """Feed a slot's first tokens, ``part`` a pass, at row positions from ``first``; the hidden state [hidden] of the last."""
        config, device = self.config, self.embedding.device
        continued = Continued(config.num_layers)
        x = torch.empty(0)
        for begin in range(0, len(tokens), part):
            ids = torch.tensor([list(tokens[begin : begin + part])], device=device)
            here = torch.arange(begin, begin + ids.shape[1], device=device)[None]
            cos, sin = rope_table(here, config.head_dim, config.rope_theta)
            own = slice(first + begin, first + begin + ids.shape[1])
            x = F.embedding(ids, self.embedding)
            for keys, values, layer in zip(self.keys, self.values, self.layers, strict=True):

                def attend(
                    query: Tensor,
                    key: Tensor,
                    value: Tensor,
                    keys: Tensor = keys,
                    values: Tensor = values,
                    own: slice = own,
                ) -> Tensor:
                    keys[slot, :, own], values[slot, :, own] = key[0], value[0]
                    return continued(query, key, value)

                x = target_layer(x, layer, cos, sin, config.num_heads, config.num_kv_heads, config.rms_norm_eps, attend)
        return _one_launch_norm(x[0, -1], self.norm, config.rms_norm_eps)

    def keep(self, slots: Tensor) -> None:
        """Go on with some slots only, int [fewer], in this order."""
        self.keys, self.values = self.keys[:, slots], self.values[:, slots]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [slots, vocabulary]; bfloat16 ones are too coarse for a faithful argmax."""
        return head_logits(hidden, self.head)
