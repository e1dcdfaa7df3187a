"""Tiny random targets and drafters: the real code at sizes where a test takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import forward
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, drafter_shapes, target_shapes
from ddsim_reference.model.heads import HeadConfig, head_shapes


def target_config(arch: str = "qwen3", **changes: Any) -> ModelConfig:
    """Four layers of hidden size 48; llama has 3 heads a key head (as SmolLM2), qwen3 has 2 and norms on queries and keys."""
    fields: dict[str, Any] = {
        "arch": arch,
        "hidden_size": 48,
        "num_layers": 4,
        "num_heads": 6 if arch == "llama" else 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 80,
        "vocab_size": 61,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": arch == "llama",
        "eos_token_ids": (),
        "max_position_embeddings": 512,
        "qk_norm": arch == "qwen3",
    }
    return ModelConfig(**(fields | changes))


def drafter_config(target: ModelConfig, **changes: Any) -> DrafterConfig:
    """Two layers that read three of the target's."""
    fields: dict[str, Any] = {
        "hidden_size": target.hidden_size,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "vocab_size": target.vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "block_size": 6,
        "mask_token_id": target.vocab_size - 1,
        "target_layer_ids": (0, 2, 3),
        "num_target_layers": target.num_layers,
    }
    return DrafterConfig(**(fields | changes))


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Norms near 1, matrices of unit gain."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.2 * noise if len(shape) == 1 else noise * (1.5 / shape[-1] ** 0.5)
    return weights


def target(arch: str = "qwen3", seed: int = 0, **changes: Any) -> tuple[ModelConfig, Weights]:
    """A target with random weights."""
    config = target_config(arch, **changes)
    shapes = target_shapes(config)
    head = shapes.pop("lm_head.weight")
    weights = random_weights(shapes if config.tie_word_embeddings else shapes | {"lm_head.weight": head}, seed)
    # Unit rows times a small scale keep next-token distributions neither flat nor certain.
    weights["model.embed_tokens.weight"] *= 1.5 if config.tie_word_embeddings else 4.0
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights


def drafter(config: ModelConfig, seed: int = 1, **changes: Any) -> tuple[DrafterConfig, Weights]:
    """A drafter with random weights."""
    shape = drafter_config(config, **changes)
    return shape, random_weights(drafter_shapes(shape), seed)


def head(shape: DrafterConfig, form: str = "gated", seed: int = 2, **fields: Any) -> tuple[HeadConfig, Weights]:
    """A head with random weights, whose word counts."""
    config = HeadConfig(form, **({"width": 12} | fields))
    return config, random_weights(head_shapes(config, shape), seed)


def copies(weights: Weights) -> Weights:
    """Weights that an engine may fuse without touching these."""
    return {name: tensor.clone() for name, tensor in weights.items()}


def engine(
    arch: str = "qwen3",
    seed: int = 0,
    *,
    block_size: int = 6,
    changes: dict[str, Any] | None = None,
    form: str | None = None,
    **options: Any,
) -> Engine:
    """An engine over a tiny target and drafter, which has a head of this form."""
    config, weights = target(arch, seed, **(changes or {}))
    shape, draft_weights = drafter(config, seed + 1, block_size=block_size)
    draft_head = None if form is None else head(shape, form)
    settings: dict[str, Any] = {"max_context": 128, "max_tokens": 65, "batch": 1} | options
    return Engine(config, copies(weights), shape, copies(draft_weights), draft_head, **settings)


def prompts(count: int, vocab: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Random prompts of 1 to ``longest`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, vocab - 1, (n,), generator=generator).tolist() for n in sizes]


def passes(
    config: ModelConfig, weights: Weights, shape: DrafterConfig, drafter: Weights, text: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the target over a text, and of the block whose root is its last token, by the plain pass that records traces."""
    tokens, here = torch.tensor([text]), torch.arange(len(text))[None]
    layers = forward.target_layers(config, weights)
    features, hidden = forward.target_features(
        config, weights, layers, tokens, here, forward.causal_attention, shape.target_layer_ids
    )
    anchor = torch.tensor([len(text) - 1])
    ids, positions = forward.block_inputs(shape, tokens[:, anchor], anchor[None])
    drafted = forward.drafter_hidden(
        shape, drafter, features[:, :-1], here[:, :-1],
        torch.nn.functional.embedding(ids, weights["model.embed_tokens.weight"]), positions,
        forward.masked_attention(forward.block_mask(anchor, len(text) - 1, shape.block_size)),
    )  # fmt: skip
    head = weights["lm_head.weight"]
    return hidden[0] @ head.T, forward.by_depth(shape, drafted[0]) @ head.T
