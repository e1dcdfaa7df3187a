"""Drafters as their papers and public code describe them, one block and one token at a time, on float64 arrays.

No mask, no batch, no fused product: a block's slots are a list of vectors, and attention is a sum over the positions that a slot sees.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Vector = np.ndarray


def rms(x: Vector, weight: Vector, eps: float) -> Vector:
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def rotated(x: Vector, position: int, theta: float) -> Vector:
    half = len(x) // 2
    out = x.copy()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def softmax(x: Vector) -> Vector:
    e = np.exp(x - x.max())
    return e / e.sum()


def kernel(config: Any, own: dict[str, Vector], name: str, x: Vector) -> Vector | None:
    """A slot's weights [before or after the sublayer, tap, channel]: the layer's, and what its input adds to a group of channels."""
    if config.convolution is None:
        return None
    taps, group = config.convolution
    weights = own[f"{name}.base_kernel"].copy()
    added = own[f"{name}.kernel_projection.weight"] @ x
    groups = len(x) // group
    for side in range(2):
        for t in range(taps):
            for c in range(len(x)):
                weights[side, t, c] += added[(side * taps + t) * groups + c // group]
    return weights


def convolved(slots: list[Vector], kernels: list[Vector | None], side: int) -> list[Vector]:
    """Each slot from itself and the slots of its block before it."""
    out = []
    for s, (x, weights) in enumerate(zip(slots, kernels, strict=True)):
        if weights is None:
            out.append(x)
        else:
            out.append(sum(weights[side, t] * slots[s - t] for t in range(weights.shape[1]) if s >= t))
    return out


def block(config: Any, w: dict[str, Vector], features: Vector, root: int, embedding: Vector) -> list[Vector]:
    """Final hidden states of a block's slots: the root stands at position len(features), masks after it.

    ``features`` [n, layers * hidden] are the target's, of all tokens before the root.
    """
    eps, dim, n = config.rms_norm_eps, config.head_dim, len(features)
    context = [rms(w["fc.weight"] @ f, w["hidden_norm.weight"], eps) for f in features]
    slots = [embedding[root]] + [embedding[config.mask_token_id]] * (config.block_size - 1)
    for i in range(config.num_layers):
        own = {name.removeprefix(f"layers.{i}."): x for name, x in w.items() if name.startswith(f"layers.{i}.")}

        def heads(kind: str, x: Vector, position: int, own: dict[str, Vector] = own) -> list[Vector]:
            parts = np.split(own[f"self_attn.{kind}_proj.weight"] @ x, len(own[f"self_attn.{kind}_proj.weight"]) // dim)
            if kind == "v":
                return parts
            return [
                rotated(rms(p, own[f"self_attn.{kind}_norm.weight"], eps), position, config.rope_theta) for p in parts
            ]

        normed = [rms(x, own["input_layernorm.weight"], eps) for x in slots]
        kernels = [kernel(config, own, "attention_conv", x) for x in normed]
        normed = convolved(normed, kernels, 0)
        seen = [*enumerate(context), *((n + s, x) for s, x in enumerate(normed))]
        keys = [heads("k", x, at) for at, x in seen]
        values = [heads("v", x, at) for at, x in seen]
        attended = []
        for s, x in enumerate(normed):
            out = []
            for h, query in enumerate(heads("q", x, n + s)):
                group = h * config.num_kv_heads // config.num_heads
                share = softmax(np.array([query @ key[group] for key in keys]) / math.sqrt(dim))
                out.append(sum(p * value[group] for p, value in zip(share, values, strict=True)))
            attended.append(own["self_attn.o_proj.weight"] @ np.concatenate(out))
        slots = [x + y for x, y in zip(slots, convolved(attended, kernels, 1), strict=True)]
        normed = [rms(x, own["post_attention_layernorm.weight"], eps) for x in slots]
        kernels = [kernel(config, own, "mlp_conv", x) for x in normed]
        normed = convolved(normed, kernels, 0)
        outputs = []
        for x in normed:
            gate = own["mlp.gate_proj.weight"] @ x
            outputs.append(own["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (own["mlp.up_proj.weight"] @ x)))
        slots = [x + y for x, y in zip(slots, convolved(outputs, kernels, 1), strict=True)]
    return [rms(x, w["norm.weight"], eps) for x in slots]


def drafted(config: Any, slots: list[Vector], target_head: Vector) -> list[Vector]:
    """Logits of depths 1 to L: a DFlash slot drafts its own position, one that samples from the anchor the position after it."""
    return [target_head @ h for h in (slots if config.sample_from_anchor else slots[1:])]


def markov(logits: Vector, before: int, w1: Vector, w2: Vector) -> Vector:
    """DSpark's log-probabilities behind a token: softmax over the whole vocabulary of the block's logits + w2 · w1[before]."""
    return np.log(softmax(logits + w2 @ w1[before]))


def selected(logits: Vector, candidates: list[int], before: int, hidden: Vector, w: dict[str, Vector]) -> Vector:
    """DFlash 2's log-probabilities of candidates behind a token: softmax of logits[b] + <A[before] ⊙ P·hidden, B[b]> over them."""
    gate = w["hidden.weight"] @ hidden
    scores = [logits[b] + float((w["previous.table"][before] * gate) @ w["out.table"][b]) for b in candidates]
    return np.log(softmax(np.array(scores)))
