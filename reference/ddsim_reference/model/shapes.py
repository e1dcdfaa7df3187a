"""Models of a published shape with random weights: latency depends on shapes, not on values."""

from __future__ import annotations

import torch

from ddsim.errors import DdsimError
from ddsim_reference.model.checkpoint import SMOLLM2
from ddsim_reference.model.config import (
    DrafterConfig,
    ModelConfig,
    Weights,
    drafter_config,
    drafter_shapes,
    target_shapes,
)
from ddsim_reference.model.widen import SHAPES


def shape_configs(name: str) -> tuple[ModelConfig, DrafterConfig]:
    """Configurations of a target and of its DFlash drafter (5 layers, blocks of 16), by shape name."""
    if name == SMOLLM2:
        target = ModelConfig(
            arch="llama", hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
            intermediate_size=1536, vocab_size=49_152, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=False,
            eos_token_ids=(), max_position_embeddings=8192, qk_norm=False,
        )  # fmt: skip
        return target, drafter_config(target, mask_token_id=target.vocab_size - 1)
    if name not in SHAPES:
        raise DdsimError(f"shape {name!r}: unknown; use one of {', '.join((SMOLLM2, *SHAPES))}")
    shape = SHAPES[name]
    target = ModelConfig(
        arch="qwen3", hidden_size=shape.hidden_size, num_layers=shape.num_layers, num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, eos_token_ids=(),
        max_position_embeddings=40_960, qk_norm=True,
    )  # fmt: skip
    return target, drafter_config(target, mask_token_id=target.vocab_size - 1)


def random_weights(
    shapes: dict[str, tuple[int, ...]], *, device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Weights:
    """Random weights, made on the device: matrices that keep a unit variance, norms near 1."""
    generator = torch.Generator(device).manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, device=device, dtype=dtype)
        if len(shape) == 1:
            tensor.normal_(1.0, 0.1, generator=generator)
        else:
            tensor.normal_(0.0, 1.0 if "embed" in name else shape[1] ** -0.5, generator=generator)
        weights[name] = tensor
    return weights


def random_target(
    config: ModelConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Weights:
    """Random weights of a target."""
    return random_weights(target_shapes(config), device=device, dtype=dtype, seed=seed)


def random_drafter(
    config: DrafterConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 1
) -> Weights:
    """Random weights of a DFlash drafter."""
    return random_weights(drafter_shapes(config), device=device, dtype=dtype, seed=seed)
