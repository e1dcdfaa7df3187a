"""Shapes of targets and drafters: their configurations, the tensors that these imply, and which go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ddsim.errors import DdsimError

Weights = dict[str, torch.Tensor]

MOST_LAYERS = 1024
MOST_BLOCK = 64
"""Largest block size of a drafter: commits and masks are built for it."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama- or Qwen3-architecture target.

    ``arch`` is ``"llama"`` or ``"qwen3"``; the two differ by ``qk_norm``, an RMSNorm on each head's query and key.
    """

    arch: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    max_position_embeddings: int
    qk_norm: bool

    @property
    def parameters(self) -> int:
        """Parameters that a forward pass reads (the embedding counts once, as the head)."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of bfloat16 keys and values that one committed token keeps."""
        return 4 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class DrafterConfig:
    """Shape of a DFlash drafter: its own layers plus what ties it to its target.

    ``convolution`` is DFlash 2's around every sublayer: taps, and channels that share one. A drafter with a ``window`` sees so many
    positions, its block among them; only contexts within are supported.

    A slot of its block drafts the token at its own position; with ``sample_from_anchor`` (DSpark) the token after it, so that the
    root's slot drafts too.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    block_size: int
    mask_token_id: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int
    sample_from_anchor: bool = False
    convolution: tuple[int, int] | None = None
    window: int | None = None

    @property
    def horizon(self) -> int:
        """Positions drafted in one pass: the block without its root, whose slot drafts with ``sample_from_anchor`` only."""
        return self.block_size if self.sample_from_anchor else self.block_size - 1

    def described(self) -> dict[str, Any]:
        """Its fields; without those that plain DFlash drafters don't have, where they are at their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def target_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a target, by Hugging Face name, with its shape."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if config.qk_norm:
            layer |= {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a target's files must hold: a tied head is the embedding."""
    shapes = target_shapes(config)
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def drafter_shapes(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a DFlash drafter, by published name, with its shape."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, hidden * len(config.target_layer_ids)),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    for i in range(config.num_layers):
        layer = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "self_attn.q_norm.weight": (dim,),
            "self_attn.k_norm.weight": (dim,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if config.convolution is not None:
            taps, group = config.convolution
            for name in ("attention_conv", "mlp_conv"):
                layer[f"{name}.base_kernel"] = (2, taps, hidden)
                layer[f"{name}.kernel_projection.weight"] = (2 * taps * (hidden // group), hidden)
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def target_layer_ids(num_target_layers: int, num_draft_layers: int) -> list[int]:
    """Feature layers of a checkpoint that names none: evenly spaced from layer 1 to the third-last."""
    if num_draft_layers == 1:
        return [num_target_layers // 2]
    span = num_target_layers - 4
    return [round(1 + span * i / (num_draft_layers - 1)) for i in range(num_draft_layers)]


def drafter_config(target: ModelConfig, *, layers: int = 5, block_size: int = 16, mask_token_id: int,
                   layer_ids: Sequence[int] | None = None) -> DrafterConfig:  # fmt: skip
    """A drafter in the target's own dimensions."""
    ids = tuple(layer_ids or target_layer_ids(target.num_layers, layers))
    if max(ids) >= target.num_layers:
        raise DdsimError(f"target layer {max(ids)}: the target has layers 0 to {target.num_layers - 1}")
    return DrafterConfig(
        hidden_size=target.hidden_size, num_layers=layers, num_heads=target.num_heads, num_kv_heads=target.num_kv_heads,
        head_dim=target.head_dim, intermediate_size=target.intermediate_size, vocab_size=target.vocab_size,
        rms_norm_eps=target.rms_norm_eps, rope_theta=target.rope_theta, block_size=block_size,
        mask_token_id=mask_token_id, target_layer_ids=ids, num_target_layers=target.num_layers,
    )  # fmt: skip


def check_window(drafter: DrafterConfig, context: int) -> None:
    """Refuse contexts that a drafter's window cuts."""
    if drafter.window is not None and context + drafter.block_size > drafter.window:
        raise DdsimError(
            f"context of {context} tokens: the drafter's window of {drafter.window} holds {drafter.window - drafter.block_size} "
            "beside its block, and longer ones are not supported; shorten prompts, answers or contexts"
        )


def check_pair(target: ModelConfig, drafter: DrafterConfig, name: str = "drafter") -> None:
    """Refuse a drafter that was not made for the target."""
    if drafter.horizon < 1:
        raise DdsimError(f"{name}: block size {drafter.block_size} drafts nothing; it must be at least 2")
    if drafter.horizon >= MOST_BLOCK:
        raise DdsimError(f"{name}: block size {drafter.block_size} is not supported; the largest is {MOST_BLOCK}")
    for field in ("hidden_size", "vocab_size"):
        mine, other = getattr(drafter, field), getattr(target, field)
        if mine != other:
            what = field.replace("_", " ").replace("vocab size", "vocabulary size")
            raise DdsimError(
                f"{name}: {what} {mine}, but the target's is {other}; use the drafter made for this target"
            )
    if (
        not drafter.target_layer_ids
        or not 0 <= min(drafter.target_layer_ids) <= max(drafter.target_layer_ids) < target.num_layers
    ):
        raise DdsimError(
            f"{name}: reads target layers {list(drafter.target_layer_ids)}, but the target has layers 0 to {target.num_layers - 1}"
        )
    if not 0 <= drafter.mask_token_id < target.vocab_size:
        raise DdsimError(
            f"{name}: mask token {drafter.mask_token_id} lies outside the vocabulary of {target.vocab_size}"
        )
