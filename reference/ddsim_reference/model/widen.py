"""A small model's function at a big model's cost: real weights in the leading block, no effect from the rest.

Latency depends on tensor shapes, acceptance on what the model says. A widened target says exactly what the small one says
(up to rounding) while every product has the big model's size, so that predictions can be held against hardware without a
multi-billion checkpoint. Figures measured on it are labelled, for instance, "SmolLM2 text at Qwen3-8B cost".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim_reference.model import forward
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, drafter_shapes
from ddsim_reference.model.heads import DraftHead, HeadConfig, head_shapes


@dataclass(frozen=True)
class Shape:
    """Tensor shapes of a big model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int


SHAPES = {
    "qwen3-4b": Shape(2560, 36, 32, 8, 128, 9728, 151_936),
    "qwen3-8b": Shape(4096, 36, 32, 8, 128, 12_288, 151_936),
}


class _Widener:
    """Index maps from a small model's dimensions into a big one's."""

    def __init__(
        self, small: ModelConfig | DrafterConfig, big: Shape, device: str, dtype: torch.dtype, seed: int
    ) -> None:
        ratio = big.head_dim // small.head_dim
        group, big_group = small.num_heads // small.num_kv_heads, big.num_heads // big.num_kv_heads
        if (
            small.hidden_size > big.hidden_size
            or small.num_kv_heads > big.num_kv_heads
            or group > big_group
            or small.head_dim * ratio != big.head_dim
            or small.intermediate_size > big.intermediate_size
            or small.vocab_size > big.vocab_size
        ):
            raise DdsimError(
                "widening: the big shape must hold the small one in every dimension, head_dim as a multiple"
            )
        self.small, self.big, self.device, self.dtype = small, big, device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)
        half = torch.arange(small.head_dim // 2)
        # Frequency i of the small head is frequency i * ratio of the big one, at the same base; pairs stay pairs.
        self.inner = torch.cat((half * ratio, half * ratio + big.head_dim // 2))
        heads = torch.arange(small.num_heads)
        placed = heads // group * big_group + heads % group
        self.query_rows = (placed[:, None] * big.head_dim + self.inner).flatten()
        kv_heads = torch.arange(small.num_kv_heads)
        self.kv_rows = (kv_heads[:, None] * big.head_dim + self.inner).flatten()
        self.norm_scale = (small.hidden_size / big.hidden_size) ** 0.5
        self.score_scale = (big.head_dim / small.head_dim) ** 0.5

    def random(self, *shape: int) -> Tensor:
        """Random weights of a trained matrix's order of magnitude."""
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=self.generator).mul_(0.02)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros where the rest must have no effect."""
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def norm(self, weight: Tensor) -> Tensor:
        """The mean square over more dimensions is smaller; the weight makes up for it."""
        wide = self.zeros(self.big.hidden_size)
        wide[: self.small.hidden_size] = weight * self.norm_scale
        return wide

    def rows(self, weight: Tensor, rows: Tensor, total: int, scale: float = 1.0, *, silent: bool = False) -> Tensor:
        """A projection from the residual stream: real rows at ``rows``, the rest random, or zero if ``silent``."""
        wide = self.zeros(total, self.big.hidden_size) if silent else self.random(total, self.big.hidden_size)
        real = self.zeros(len(rows), self.big.hidden_size)
        real[:, : self.small.hidden_size] = weight * scale
        wide[rows.to(self.device)] = real
        return wide

    def columns(self, weight: Tensor, columns: Tensor, total: int) -> Tensor:
        """A projection into the residual stream: only real inputs reach it, and only its real dimensions."""
        wide = self.zeros(self.big.hidden_size, total)
        wide[: self.small.hidden_size, columns.to(self.device)] = weight.to(self.device, self.dtype)
        return wide

    def embedding(self, weight: Tensor) -> Tensor:
        """The embedding of a vocabulary whose extra part is zero."""
        small, big = self.small, self.big
        wide = self.zeros(big.vocab_size, big.hidden_size)
        wide[: small.vocab_size, : small.hidden_size] = weight.to(self.device, self.dtype)
        return wide

    def head(self, weight: Tensor, away: Tensor) -> Tensor:
        """The head; extra rows are what `widen_target` says of ``away``."""
        small, big = self.small, self.big
        head = self.random(big.vocab_size, big.hidden_size)
        head[:, : small.hidden_size] = 0
        head[: small.vocab_size] = 0
        head[: small.vocab_size, : small.hidden_size] = weight.to(self.device, self.dtype)
        row = weight.to(self.device, torch.float32).mean(0) + 40 * away.to(self.device, torch.float32)
        head[small.vocab_size :, : small.hidden_size] = row.to(self.dtype)
        return head

    def layer(self, weights: Weights, prefix: str) -> Weights:
        """One transformer layer."""
        small, big = self.small, self.big
        mlp = torch.arange(small.intermediate_size)
        queries, keys = big.num_heads * big.head_dim, big.num_kv_heads * big.head_dim
        take = {name: weights[prefix + name].to(self.device, torch.float32) for name in _LAYER}
        scale = 1.0 if prefix + "self_attn.q_norm.weight" in weights else self.score_scale
        # Queries and keys are silent outside the real dimensions: scores, and norms over a head, must not see them.
        return {
            "input_layernorm.weight": self.norm(take["input_layernorm.weight"]),
            "self_attn.q_proj.weight": self.rows(
                take["self_attn.q_proj.weight"], self.query_rows, queries, scale, silent=True
            ),
            "self_attn.k_proj.weight": self.rows(take["self_attn.k_proj.weight"], self.kv_rows, keys, silent=True),
            "self_attn.v_proj.weight": self.rows(take["self_attn.v_proj.weight"], self.kv_rows, keys),
            "self_attn.o_proj.weight": self.columns(take["self_attn.o_proj.weight"], self.query_rows, queries),
            "post_attention_layernorm.weight": self.norm(take["post_attention_layernorm.weight"]),
            "mlp.gate_proj.weight": self.rows(take["mlp.gate_proj.weight"], mlp, big.intermediate_size),
            "mlp.up_proj.weight": self.rows(take["mlp.up_proj.weight"], mlp, big.intermediate_size),
            "mlp.down_proj.weight": self.columns(take["mlp.down_proj.weight"], mlp, big.intermediate_size),
        }

    def idle_layer(self) -> Weights:
        """A layer that costs what a layer costs and adds zero."""
        big = self.big
        queries, keys = big.num_heads * big.head_dim, big.num_kv_heads * big.head_dim
        return {
            "input_layernorm.weight": self.zeros(big.hidden_size).add_(1),
            "self_attn.q_proj.weight": self.random(queries, big.hidden_size),
            "self_attn.k_proj.weight": self.random(keys, big.hidden_size),
            "self_attn.v_proj.weight": self.random(keys, big.hidden_size),
            "self_attn.o_proj.weight": self.zeros(big.hidden_size, queries),
            "post_attention_layernorm.weight": self.zeros(big.hidden_size).add_(1),
            "mlp.gate_proj.weight": self.random(big.intermediate_size, big.hidden_size),
            "mlp.up_proj.weight": self.random(big.intermediate_size, big.hidden_size),
            "mlp.down_proj.weight": self.zeros(big.hidden_size, big.intermediate_size),
        }


_LAYER = (
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)  # fmt: skip


def away_from(states: Tensor) -> Tensor:
    """Direction u, float32 [hidden], with u · h ≈ -1 for all ``states`` h [n, hidden], by regularised least squares."""
    wide = states.double()
    gram = wide.T @ wide
    gram += 1e-2 * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, -wide.sum(0)).float()


def widen_target(
    config: ModelConfig, weights: Weights, shape: Shape, *, away: Tensor, device: str = "cpu",
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> tuple[ModelConfig, Weights]:  # fmt: skip
    """A target with the small one's function and the big one's shapes.

    Parameters
    ----------
    config, weights
        A Llama-architecture target (queries and keys without norms).
    away : Tensor [hidden]
        A direction whose product with every final hidden state is about -1 (`away_from`). The extra vocabulary's rows of
        the head are the mean of the real rows, which alone is never the largest logit, and 40 times this direction, which
        makes their probability vanish.

    Returns
    -------
    ModelConfig, dict of str to Tensor

    Raises
    ------
    DdsimError
        The big shape cannot hold the small one, or the target normalises queries and keys.
    """
    big, tensors = stream_target(config, weights, shape, away=away, device=device, dtype=dtype, seed=seed)
    return big, dict(tensors)


def stream_target(
    config: ModelConfig, weights: Weights, shape: Shape, *, away: Tensor, device: str = "cpu",
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:  # fmt: skip
    """What `widen_target` returns, its tensors one by one: a big target can be written with little memory."""
    if config.qk_norm:
        raise DdsimError("widening: targets that normalise queries and keys are not supported; use a Llama checkpoint")
    if shape.num_layers < config.num_layers:
        raise DdsimError(f"widening: {shape.num_layers} layers cannot hold the target's {config.num_layers}")
    widener = _Widener(config, shape, device, dtype, seed)
    big = replace(config, **_sizes(config, shape), num_layers=shape.num_layers, tie_word_embeddings=False)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "model.norm.weight", widener.norm(weights["model.norm.weight"].to(device, torch.float32))
        yield "model.embed_tokens.weight", widener.embedding(weights["model.embed_tokens.weight"])
        yield "lm_head.weight", widener.head(weights["lm_head.weight"], away)
        for i in range(shape.num_layers):
            real = i < config.num_layers
            layer = widener.layer(weights, f"model.layers.{i}.") if real else widener.idle_layer()
            for name in list(layer):
                yield f"model.layers.{i}.{name}", layer.pop(name)

    return big, tensors()


def _sizes(small: ModelConfig | DrafterConfig, shape: Shape) -> dict[str, Any]:
    """What the two configurations of a widened pair take from the shape: everything but the layers."""
    sizes = asdict(shape)
    del sizes["num_layers"]
    # The mean square is over more dimensions, so its floor shrinks with it.
    return sizes | {"rms_norm_eps": small.rms_norm_eps * small.hidden_size / shape.hidden_size}


def widen_drafter(
    config: DrafterConfig, weights: Weights, shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[DrafterConfig, Weights]:  # fmt: skip
    """A drafter for the widened target, with the small drafter's function; it keeps its own number of layers."""
    if config.convolution is not None:
        raise DdsimError("widen: drafters with convolutions are not supported")
    widener = _Widener(config, shape, device, dtype, seed)
    hidden, features = config.hidden_size, len(config.target_layer_ids)
    fc = widener.zeros(shape.hidden_size, features * shape.hidden_size)
    small_fc = weights["fc.weight"].to(device, dtype)
    for i in range(features):
        fc[:hidden, i * shape.hidden_size : i * shape.hidden_size + hidden] = small_fc[:, i * hidden : (i + 1) * hidden]
    wide: Weights = {"fc.weight": fc}
    for name in ("hidden_norm.weight", "norm.weight"):
        wide[name] = widener.norm(weights[name].to(device, torch.float32))
    for i in range(config.num_layers):
        prefix = f"layers.{i}."
        layer = widener.layer(weights, prefix)
        for part, scale in (("q", 1.0), ("k", 1 / widener.score_scale)):
            # Norms over a head see half of the mean square; the query's share of that is the score's scale already.
            norm = widener.zeros(shape.head_dim)
            small_norm = weights[f"{prefix}self_attn.{part}_norm.weight"].to(device, torch.float32)
            norm[widener.inner.to(device)] = (small_norm * scale).to(dtype)
            layer[f"self_attn.{part}_norm.weight"] = norm
        wide |= {prefix + name: tensor for name, tensor in layer.items()}
    big = replace(config, **_sizes(config, shape), num_target_layers=shape.num_layers)
    assert all(tuple(wide[name].shape) == size for name, size in drafter_shapes(big).items())
    return big, wide


def widen_head(
    head: HeadConfig, weights: Weights, config: DrafterConfig, shape: Shape, *, width: int | None = None,
    device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0,
) -> DraftHead:  # fmt: skip
    """The head of a drafter (``config``: before it was widened) for the widened one.

    Parameters
    ----------
    width : int, optional
        Inner values of the wide head; by default in proportion to the hidden size, and then up to a multiple of 64, since
        libraries multiply odd sizes several times slower.

    Raises
    ------
    DdsimError
        ``width`` is below the head's own.
    """
    widener = _Widener(config, shape, device, dtype, seed)
    if width is None:
        width = 64 * -(-head.width * shape.hidden_size // (64 * config.hidden_size))
    if width < head.width:
        raise DdsimError(f"widening: a head of {width} inner values cannot hold one of {head.width}")
    big = replace(head, width=width)
    sizes = head_shapes(big, replace(config, hidden_size=shape.hidden_size, vocab_size=shape.vocab_size))
    wide: Weights = {}
    for name, small in weights.items():
        # What comes of the random values goes nowhere: the columns that read them are zero.
        values = (
            widener.random(*sizes[name])
            if name in ("previous.weight", "hidden.weight")
            else widener.zeros(*sizes[name])
        )
        real = small.to(device, torch.float32)
        if name in ("previous.weight", "hidden.weight"):
            # Vectors are made to have a unit mean square, which is over more dimensions here; a selector reads them as they are.
            scale = 1.0 if head.form == "selector" else widener.norm_scale
            real = (real * scale).unflatten(1, (-1, config.hidden_size))
            place = values.unflatten(1, (-1, shape.hidden_size))
            place[: head.width] = 0
            place[: head.width, :, : config.hidden_size] = real.to(dtype)
        else:
            values[tuple(slice(n) for n in small.shape)] = real.to(dtype)
        wide[name] = values
    return big, wide


def hidden_states(
    config: ModelConfig, weights: Weights, shape: DrafterConfig, drafter_weights: Weights, texts: Sequence[Sequence[int]],
    blocks: int = 16,
) -> torch.Tensor:  # fmt: skip
    """Final hidden states of a pair over texts, float32 [n, hidden]: the target's, and the drafter's of ``blocks`` blocks each."""
    layers = forward.target_layers(config, weights)
    embedding = weights["model.embed_tokens.weight"]
    found = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([list(text)], device=embedding.device)
            here = torch.arange(ids.shape[1], device=embedding.device)[None]
            features, hidden = forward.target_features(
                config, weights, layers, ids, here, forward.causal_attention, shape.target_layer_ids
            )
            anchors = torch.linspace(min(1, len(text) - 1), len(text) - 1, blocks, device=embedding.device).long()
            tokens, positions = forward.block_inputs(shape, ids[:, anchors], anchors[None])
            drafted = forward.drafter_hidden(
                shape, drafter_weights, features, here, F.embedding(tokens, embedding), positions,
                forward.masked_attention(forward.block_mask(anchors, len(text), shape.block_size)),
            )  # fmt: skip
            found += [hidden[0].float(), drafted[0].float()]
    return torch.cat(found).clone()


def direction_away(
    config: ModelConfig, weights: Weights, shape: DrafterConfig, drafter_weights: Weights, name: str,
    texts: Sequence[Sequence[int]],
) -> Tensor:  # fmt: skip
    """What `widen_target` takes as ``away``; ``texts`` show what the pair's hidden states look like.

    Raises
    ------
    DdsimError
        On texts that were not used to find it, the extra vocabulary is not kept out.
    """
    away = away_from(hidden_states(config, weights, shape, drafter_weights, texts[::2]))
    worst = float((hidden_states(config, weights, shape, drafter_weights, texts[1::2] or texts) @ away).max())
    if worst > -0.1:
        raise DdsimError(
            f"widen {name}: the extra vocabulary's logits are not kept low (direction {worst:.2f}, at most -0.1); give more prompts"
        )
    return away


def widened(
    config: ModelConfig, weights: Weights, shape: DrafterConfig, drafter_weights: Weights, draft_head: DraftHead | None,
    name: str, texts: Sequence[Sequence[int]],
) -> tuple[ModelConfig, Weights, DrafterConfig, Weights, DraftHead | None]:  # fmt: skip
    """A pair and its head at a big model's cost, on the device and in the type that it has; ``texts`` as `direction_away` takes them."""
    away = direction_away(config, weights, shape, drafter_weights, name, texts)
    device, kind = str(weights["model.embed_tokens.weight"].device), weights["model.embed_tokens.weight"].dtype
    big, wide = widen_target(config, weights, SHAPES[name], away=away, device=device, dtype=kind)
    if draft_head is not None:
        draft_head = widen_head(*draft_head, shape, SHAPES[name], device=device, dtype=kind)
    return big, wide, *widen_drafter(shape, drafter_weights, SHAPES[name], device=device, dtype=kind), draft_head
