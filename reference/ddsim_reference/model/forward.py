"""Whole-sequence forward passes of target and drafter in plain PyTorch: what training and recording run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of query, key and value, each [batch, heads, length, head_dim], to [batch, heads, length, head_dim]."""

Pair = Callable[[Tensor], Sequence[Tensor]]
"""Of hidden states [..., hidden], their products with two weight matrices: key and value, or gate and up."""

Around = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""Of a sublayer's normed input [..., hidden]: what goes into the sublayer, and a function of what comes out of it."""

TargetLayer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
DrafterLayer = tuple[Tensor, ...]

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DRAFTER_LAYER_NAMES = (
    "input_layernorm.weight",
    *(f"self_attn.{name}.weight" for name in _ATTENTION),
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
CONVOLUTION_NAMES = tuple(
    f"{name}_conv.{part}" for name in ("attention", "mlp") for part in ("base_kernel", "kernel_projection.weight")
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, computed in float32 (float64 stays float64)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [..., head_dim / 2], of rotary embeddings at integer positions [...]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * theta**-exponent
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to x [batch, heads, length, head_dim] with tables [batch, length, head_dim / 2]."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


PART = 2048
"""Tokens of a prompt that one pass takes at most: what a pass holds beside keys and values grows with them."""


class Continued:
    """Causal attention of whole sequences that are fed in parts: what was fed before stays, layer by layer."""

    def __init__(self, layers: int) -> None:
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._calls = 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer = self._calls % len(self._kept)
        self._calls += 1
        kept = self._kept[layer]
        if kept is not None:
            key, value = torch.cat((kept[0], key), 2), torch.cat((kept[1], value), 2)
        self._kept[layer] = key, value
        if kept is None:
            return causal_attention(query, key, value)
        fed, queries = key.shape[2] - query.shape[2], query.shape[2]
        mask = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril(fed)
        return masked_attention(mask)(query, key, value)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[batch, length, heads * head_dim] -> [batch, heads, length, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def masked_attention(mask: Tensor) -> Attend:
    """Grouped-query attention under a bool mask broadcastable to [batch, heads, queries, keys]."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    return attend


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain causal grouped-query attention."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def convolve(x: Tensor, own: Tensor, base: Tensor, block: int) -> Tensor:
    """Convolve the slots of each block with those before them.

    Parameters
    ----------
    x : Tensor [..., blocks * block, hidden]
    own : Tensor [..., blocks * block, taps, groups]
        What each slot adds to the kernel, equal for the channels of a group.
    base : Tensor [taps, hidden]
        Tap t weighs the slot t places before; none before the block's first.
    """
    kernel = base + own.repeat_interleave(x.shape[-1] // own.shape[-1], -1)
    blocks = x.unflatten(-2, (-1, block))
    out = kernel[..., 0, :] * x
    for t in range(1, len(base)):
        out = out + kernel[..., t, :] * F.pad(blocks[..., :-t, :], (0, 0, t, 0)).flatten(-3, -2)
    return out


def convolutions(kernels: Sequence[Tensor], block: int) -> tuple[Around, Around]:
    """DFlash 2's convolutions of blocks around attention and SwiGLU, of the tensors of ``CONVOLUTION_NAMES``."""
    base, projection, second_base, second_projection = kernels
    return _convolution(base, projection, block), _convolution(second_base, second_projection, block)


def _convolution(base: Tensor, projection: Tensor, block: int) -> Around:
    """Two convolutions, by base [2, taps, hidden] and by what projection [2 * taps * groups, hidden] makes of the input."""

    def around(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        before, after = F.linear(x, projection).unflatten(-1, (2, base.shape[1], -1)).unbind(-3)
        return convolve(x, before, base[0], block), lambda y: convolve(y, after, base[1], block)

    return around


def _nothing(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return x, lambda y: y


def transformer_layer(
    x: Tensor,
    norm1: Tensor,
    attention: Callable[[Tensor], Tensor],
    o_weight: Tensor,
    norm2: Tensor,
    gate_up: Pair,
    down: Tensor,
    eps: float,
    norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm,
    around: tuple[Around, Around] = (_nothing, _nothing),
) -> Tensor:
    """One pre-norm layer with SwiGLU over the residual stream x [..., hidden]: what all plain passes are made of.

    Parameters
    ----------
    attention : callable
        Of the normed stream, to [..., heads * head_dim].
    norm : callable
        RMSNorm of x, weight and eps.
    around : pair of callables
        What is done around attention and around the SwiGLU.
    """
    inside, after = around[0](norm(x, norm1, eps))
    x = x + after(F.linear(attention(inside), o_weight))
    inside, after = around[1](norm(x, norm2, eps))
    gate, up = gate_up(inside)
    return x + after(F.linear(F.silu(gate) * up, down))


def halves(weight: Tensor) -> Pair:
    """Products with the two halves of a stacked matrix, in one launch."""

    def products(x: Tensor) -> Sequence[Tensor]:
        return F.linear(x, weight).chunk(2, -1)

    return products


def joined(first: Tensor, second: Tensor) -> Pair:
    """Products with two matrices of one shape, stacked for it."""
    return halves(torch.cat((first, second)))


def separate(first: Tensor, second: Tensor) -> Pair:
    """Products with two matrices, one launch each."""

    def products(x: Tensor) -> Sequence[Tensor]:
        return F.linear(x, first), F.linear(x, second)

    return products


def target_layers(config: ModelConfig, weights: Weights) -> list[TargetLayer]:
    """Per-layer weights of a target with query/key/value and gate/up fused into one matrix each."""
    layers = []
    for i in range(config.num_layers):
        prefix = f"model.layers.{i}."
        attention = [weights[f"{prefix}self_attn.{name}.weight"] for name in _ATTENTION]
        layers.append(
            (
                weights[prefix + "input_layernorm.weight"],
                torch.cat(attention[:3]),
                attention[3],
                weights[prefix + "post_attention_layernorm.weight"],
                torch.cat([weights[prefix + "mlp.gate_proj.weight"], weights[prefix + "mlp.up_proj.weight"]]),
                weights[prefix + "mlp.down_proj.weight"],
                weights.get(prefix + "self_attn.q_norm.weight"),
                weights.get(prefix + "self_attn.k_norm.weight"),
            )
        )
    return layers


def target_layer(
    x: Tensor, layer: TargetLayer, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, eps: float, attend: Attend
) -> Tensor:
    """One transformer layer of the target over whole sequences x [batch, length, hidden]."""
    norm1, qkv_weight, o_weight, norm2, gate_up, down, q_norm, k_norm = layer

    def attention(normed: Tensor) -> Tensor:
        qkv = F.linear(normed, qkv_weight)
        head_dim = qkv.shape[-1] // (heads + 2 * kv_heads)
        query, key, value = split_heads(qkv, head_dim).split((heads, kv_heads, kv_heads), 1)
        if q_norm is not None and k_norm is not None:
            query, key = rms_norm(query, q_norm, eps), rms_norm(key, k_norm, eps)
        return attend(rotate(query, cos, sin), rotate(key, cos, sin), value).transpose(1, 2).flatten(2)

    return transformer_layer(x, norm1, attention, o_weight, norm2, halves(gate_up), down, eps)


def target_features(
    config: ModelConfig,
    weights: Weights,
    layers: Sequence[TargetLayer],
    tokens: Tensor,
    positions: Tensor,
    attend: Attend,
    feature_layers: Sequence[int],
    layer_function: Callable[..., Tensor] = target_layer,
) -> tuple[Tensor, Tensor]:
    """Run the target over whole sequences.

    Parameters
    ----------
    tokens, positions : int Tensor [batch, length]
    feature_layers : sequence of int
        Layers whose outputs are the drafter's features (layer i's output is ``hidden_states[i + 1]`` elsewhere).

    Returns
    -------
    features : Tensor [batch, length, len(feature_layers) * hidden]
    hidden : Tensor [batch, length, hidden]
        After the final norm, ready for the head.
    """
    cos, sin = rope_table(positions, config.head_dim, config.rope_theta)
    x = F.embedding(tokens, weights["model.embed_tokens.weight"])
    kept = {}
    for i, layer in enumerate(layers):
        x = layer_function(x, layer, cos, sin, config.num_heads, config.num_kv_heads, config.rms_norm_eps, attend)
        if i in feature_layers:
            kept[i] = x
    features = torch.cat([kept[i] for i in feature_layers], -1)
    return features, rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)


def text_features(
    config: ModelConfig,
    weights: Weights,
    layers: Sequence[TargetLayer],
    tokens: Tensor,
    feature_layers: Sequence[int],
    part: int = PART,
) -> Tensor:
    """Features of one text, int Tensor [1, length], that is fed in parts, as `target_features` returns them."""
    here = torch.arange(tokens.shape[1], device=tokens.device)[None]
    attend = Continued(len(layers))
    found = [
        target_features(
            config, weights, layers, tokens[:, i : i + part], here[:, i : i + part], attend, feature_layers
        )[0]
        for i in range(0, tokens.shape[1], part)
    ]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def drafter_layers(config: DrafterConfig, weights: Weights) -> list[DrafterLayer]:
    """Per-layer weights of a drafter, in the order of ``DRAFTER_LAYER_NAMES``, then of ``CONVOLUTION_NAMES`` if it has them."""
    names = DRAFTER_LAYER_NAMES if config.convolution is None else DRAFTER_LAYER_NAMES + CONVOLUTION_NAMES
    return [tuple(weights[f"layers.{i}.{name}"] for name in names) for i in range(config.num_layers)]


def drafter_layer(
    x: Tensor,
    context: Tensor,
    layer: DrafterLayer,
    block_rope: tuple[Tensor, Tensor],
    context_rope: tuple[Tensor, Tensor],
    head_dim: int,
    eps: float,
    attend: Attend,
    pair: Callable[[Tensor, Tensor], Pair] = joined,
    block: int = 0,
) -> Tensor:
    """One DFlash layer: blocks x [batch, blocks * block_size, hidden] attend to the context's keys and to their own.

    ``block`` is the blocks' size, which convolutions need.
    """
    norm1, q_weight, k_weight, v_weight, o_weight, q_norm, k_norm, norm2, gate, up, down, *kernels = layer
    key_value = pair(k_weight, v_weight)

    def attention(normed: Tensor) -> Tensor:
        query = split_heads(F.linear(normed, q_weight), head_dim)
        own_key, own_value = (split_heads(y, head_dim) for y in key_value(normed))
        context_key, context_value = (split_heads(y, head_dim) for y in key_value(context))
        query = rotate(rms_norm(query, q_norm, eps), *block_rope)
        own_key = rotate(rms_norm(own_key, k_norm, eps), *block_rope)
        context_key = rotate(rms_norm(context_key, k_norm, eps), *context_rope)
        attended = attend(query, torch.cat((context_key, own_key), 2), torch.cat((context_value, own_value), 2))
        return attended.transpose(1, 2).flatten(2)

    around = convolutions(kernels, block) if kernels else (_nothing, _nothing)
    return transformer_layer(x, norm1, attention, o_weight, norm2, pair(gate, up), down, eps, around=around)


def drafter_hidden(
    config: DrafterConfig,
    weights: Weights,
    features: Tensor,
    context_positions: Tensor,
    noise: Tensor,
    block_positions: Tensor,
    attend: Attend,
    layer_function: Callable[..., Tensor] = drafter_layer,
) -> Tensor:
    """Run a DFlash drafter over many blocks at once.

    Parameters
    ----------
    features : Tensor [batch, context, len(target_layer_ids) * hidden]
        The target's features of the committed tokens.
    noise : Tensor [batch, blocks * block_size, hidden]
        The target's embeddings of each block's root followed by mask tokens.
    context_positions, block_positions : int Tensor
        Position ids of the two.
    attend : Attend
        Must let a block see only the context before its root, and itself.

    Returns
    -------
    Tensor [batch, blocks * block_size, hidden]
        After the drafter's final norm, ready for the target's head.
    """
    context = rms_norm(F.linear(features, weights["fc.weight"]), weights["hidden_norm.weight"], config.rms_norm_eps)
    block_rope = rope_table(block_positions, config.head_dim, config.rope_theta)
    context_rope = rope_table(context_positions, config.head_dim, config.rope_theta)
    x = noise
    more = {} if config.convolution is None else {"block": config.block_size}
    for layer in drafter_layers(config, weights):
        x = layer_function(
            x, context, layer, block_rope, context_rope, config.head_dim, config.rms_norm_eps, attend, **more
        )
    return rms_norm(x, weights["norm.weight"], config.rms_norm_eps)


def block_inputs(config: DrafterConfig, roots: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and position ids of the blocks at roots [batch, blocks], which sit at positions anchors [batch, blocks]."""
    tokens = torch.full((*roots.shape, config.block_size), config.mask_token_id, dtype=roots.dtype, device=roots.device)
    tokens[..., 0] = roots
    offsets = torch.arange(config.block_size, device=roots.device)
    return tokens.flatten(-2), (anchors[..., None] + offsets).flatten(-2)


def by_depth(config: DrafterConfig, hidden: Tensor) -> Tensor:
    """Of hidden states of blocks [..., block_size, hidden], those that draft depths 1 to L: [..., L, hidden]."""
    return hidden[..., config.block_size - config.horizon :, :]


def block_mask(anchors: Tensor, context: int, block_size: int) -> Tensor:
    """Bool [blocks * block_size, context + blocks * block_size]: a block sees positions before its root, and itself."""
    rows = anchors.repeat_interleave(block_size)
    before = torch.arange(context, device=anchors.device)[None] < rows[:, None]
    block = torch.arange(anchors.numel(), device=anchors.device).repeat_interleave(block_size)
    return torch.cat((before, block[:, None] == block[None]), 1)


def head_logits(hidden: Tensor, head: Tensor) -> Tensor:
    """The head's product with a float32 result, whatever the operands' type."""
    if hidden.dtype == torch.float32:
        return hidden @ head.T
    if hidden.is_cuda:
        return torch.mm(hidden.flatten(0, -2), head.T, out_dtype=torch.float32).unflatten(0, hidden.shape[:-1])
    return hidden.float() @ head.float().T
