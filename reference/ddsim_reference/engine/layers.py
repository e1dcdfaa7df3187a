"""The layers of target and drafter over a flat batch of tokens and a static key/value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.engine import kernels, products
from ddsim_reference.engine.attention import TreeMetadata, tree_attention
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights
from ddsim_reference.model.forward import CONVOLUTION_NAMES, Around, convolutions, rope_table


@dataclass
class Layer:
    """One transformer layer; queries, keys and values share a matrix, and so do gate and up."""

    norm1: Tensor
    qkv: Tensor
    o: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    around: tuple[Around, Around] | None = None
    """What a drafter with convolutions does around attention and SwiGLU."""


@dataclass
class Stack:
    """Transformer layers with their cache: keys and values [layers, batch, kv_heads, length, head_dim]."""

    layers: list[Layer]
    heads: int
    eps: float
    final_norm: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor


def fuse(weights: Weights, names: Sequence[str]) -> Tensor:
    """Stack matrices by rows; the dictionary's entries become views of the result, so that nothing is held twice."""
    parts = [weights[name] for name in names]
    ends = [part.data_ptr() + part.numel() * part.element_size() for part in parts]
    one = len({part.untyped_storage().data_ptr() for part in parts}) == 1
    if one and all(part.data_ptr() == end for part, end in zip(parts[1:], ends, strict=False)):
        return parts[0].as_strided((sum(len(part) for part in parts), parts[0].shape[1]), (parts[0].shape[1], 1))
    fused = torch.cat(parts)
    first = 0
    for name in names:
        rows = weights[name].shape[0]
        weights[name] = fused[first : first + rows]
        first += rows
    return fused


def build_stack(
    config: ModelConfig | DrafterConfig, weights: Weights, prefix: str, batch: int, length: int, final_norm: str
) -> Stack:
    """Fused layers named ``<prefix>layers.N...`` with an empty cache of ``length`` rows for each of ``batch`` requests."""
    layers = []
    for i in range(config.num_layers):
        at, around = f"{prefix}layers.{i}.", None
        if isinstance(config, DrafterConfig) and config.convolution is not None:
            around = convolutions([weights[at + name] for name in CONVOLUTION_NAMES], config.block_size)
        layers.append(
            Layer(
                norm1=weights[at + "input_layernorm.weight"],
                qkv=fuse(weights, [f"{at}self_attn.{name}_proj.weight" for name in "qkv"]),
                o=weights[at + "self_attn.o_proj.weight"],
                norm2=weights[at + "post_attention_layernorm.weight"],
                gate_up=fuse(weights, [f"{at}mlp.{name}_proj.weight" for name in ("gate", "up")]),
                down=weights[at + "mlp.down_proj.weight"],
                q_norm=weights.get(at + "self_attn.q_norm.weight"),
                k_norm=weights.get(at + "self_attn.k_norm.weight"),
                around=around,
            )
        )
    norm = weights[final_norm]
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    keys = torch.zeros(shape, dtype=norm.dtype, device=norm.device)
    cos, sin = rope_table(torch.arange(length, device=norm.device), config.head_dim, config.rope_theta)
    return Stack(layers, config.num_heads, config.rms_norm_eps, norm, cos, sin, keys, torch.zeros_like(keys))


def run_layers(
    stack: Stack,
    x: Tensor,
    metadata: TreeMetadata,
    *,
    auxiliary_layers: Sequence[int] = (),
    features: Tensor | None = None,
    outside: Tensor | None = None,
    outside_metadata: TreeMetadata | None = None,
    fast: bool = False,
) -> Tensor:
    """Run all layers over flat tokens; their keys and values go into the cache.

    Parameters
    ----------
    x : Tensor [M, hidden]
        Residual stream; overwritten.
    auxiliary_layers, features : sequence of int, Tensor [>= M, len(auxiliary_layers) * hidden], optional
        Layers whose outputs are copied out.
    outside, outside_metadata : Tensor [C, hidden], TreeMetadata, optional
        DFlash's injected context: hidden states that enter every layer's key and value projections as they are, ahead of
        the M tokens. One product serves both, since its time is that of reading the weights. ``outside_metadata`` places
        all C + M tokens.
    fast : bool
        Products of many tokens are the library's, whose sums depend on how many there are; otherwise a token's bits don't.

    Returns
    -------
    Tensor [M, hidden]
        After the final norm.
    """
    placed = metadata if outside_metadata is None else outside_metadata
    c = 0 if outside is None else outside.shape[0]
    joined = torch.empty_like(x) if outside is None else torch.cat((outside, x))
    library = fast and joined.shape[0] > products.STREAMED_TOKENS
    product = F.linear if library else products.product
    delta: Tensor | None = None
    for i, layer in enumerate(stack.layers):
        auxiliary = _auxiliary(features, auxiliary_layers, i - 1, x)
        kernels.add_rms_norm(x, delta, layer.norm1, stack.eps, out=joined[c:], auxiliary=auxiliary)
        if layer.around is not None:
            inside, after = layer.around[0](joined[c:])
            joined[c:] = inside
        query = kernels.rope_write(
            product(joined, layer.qkv), layer.q_norm, layer.k_norm, stack.eps, stack.cos, stack.sin,
            placed.position, placed.request, placed.slot, stack.keys[i], stack.values[i],
        )  # fmt: skip
        attended = tree_attention(query[c:], stack.heads, stack.keys[i], stack.values[i], metadata)
        delta = product(attended, layer.o)
        if layer.around is not None:
            delta = after(products.added(delta, x.dtype))
        normed = kernels.add_rms_norm(x, delta, layer.norm2, stack.eps)
        if layer.around is not None:
            normed, after = layer.around[1](normed)
        if library:
            active = kernels.silu_mul(F.linear(normed, layer.gate_up))
        else:
            active = products.product(normed, layer.gate_up, gated=True)
        delta = product(active, layer.down)
        if layer.around is not None:
            delta = after(products.added(delta, x.dtype))
    auxiliary = _auxiliary(features, auxiliary_layers, len(stack.layers) - 1, x)
    return kernels.add_rms_norm(x, delta, stack.final_norm, stack.eps, auxiliary=auxiliary)


def run_layers_one(
    stack: Stack,
    x: Tensor,
    metadata: TreeMetadata,
    *,
    auxiliary_layers: Sequence[int] = (),
    features: Tensor | None = None,
) -> Tensor:
    """``run_layers`` for a single token: each layer is four matrix-vector products that bring their own norm, SwiGLU and
    residual addition, and the two attention kernels, so that the GPU is never left waiting for small launches."""
    for i, layer in enumerate(stack.layers):
        qkv = kernels.gemv(x, layer.qkv, norm=layer.norm1, eps=stack.eps)
        kernels.rope_write(
            qkv, layer.q_norm, layer.k_norm, stack.eps, stack.cos, stack.sin,
            metadata.position, metadata.request, metadata.slot, stack.keys[i], stack.values[i],
        )  # fmt: skip
        attended = tree_attention(qkv, stack.heads, stack.keys[i], stack.values[i], metadata)
        kernels.gemv(attended, layer.o, add=x)
        active = kernels.gemv(x, layer.gate_up, norm=layer.norm2, eps=stack.eps, gated=True)
        kernels.gemv(active, layer.down, add=x)
        auxiliary = _auxiliary(features, auxiliary_layers, i, x)
        if auxiliary is not None:
            auxiliary.copy_(x)
    return kernels.add_rms_norm(x, None, stack.final_norm, stack.eps)


def _auxiliary(features: Tensor | None, auxiliary_layers: Sequence[int], layer: int, x: Tensor) -> Tensor | None:
    """Where a layer's output is to be copied, if anywhere."""
    if features is None or layer not in auxiliary_layers:
        return None
    first = auxiliary_layers.index(layer) * x.shape[1]
    return features[: x.shape[0], first : first + x.shape[1]]
