"""Llama and a DFlash drafter as serving engines compute them, from a folder's config.json and safetensors alone, in float64.

After vLLM's ``models/llama.py`` and ``models/qwen3_dflash.py``: the residual stream beside the sublayers' output, a norm's mean square
over the configuration's whole width, scores over the root of its ``head_dim``, features from the streams that enter layers i + 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Folder = tuple[dict[str, Any], dict[str, Tensor]]


def read(folder: Path) -> Folder:
    """A folder as engines read it: what the index names, or all files that lie there."""
    index = folder / "model.safetensors.index.json"
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    if index.exists():
        assert sorted(set(json.loads(index.read_text())["weight_map"].values())) == names
    weights = {name: t.double() for file in names for name, t in load_file(folder / file).items()}
    return json.loads((folder / "config.json").read_text()), weights


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    assert x.shape[-1] == len(weight)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """[tokens, heads, head_dim], the halves of a head as pairs."""
    half = x.shape[-1] // 2
    angles = positions.double()[:, None, None] * theta ** (-torch.arange(half).double() / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


def heads(x: Tensor, config: dict[str, Any]) -> Tensor:
    return x.unflatten(-1, (-1, config["head_dim"]))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """[tokens, heads, head_dim]; a group of query heads reads one key head."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def mlp(x: Tensor, own: dict[str, Tensor]) -> Tensor:
    return (torch.nn.functional.silu(x @ own["mlp.gate_proj.weight"].T) * (x @ own["mlp.up_proj.weight"].T)) @ own[
        "mlp.down_proj.weight"
    ].T


def layer_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


def target(folder: Folder, tokens: Sequence[int], feature_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
    """Logits [tokens, vocabulary] of ``LlamaForCausalLM``, and the features [tokens, layers * hidden] that a drafter is given."""
    config, weights = folder
    assert config["architectures"] == ["LlamaForCausalLM"]
    eps, theta, here = config["rms_norm_eps"], config["rope_theta"], torch.arange(len(tokens))
    streams = []
    stream, out = torch.zeros(()), weights["model.embed_tokens.weight"][list(tokens)]
    for i in range(config["num_hidden_layers"]):
        own = layer_of(weights, f"model.layers.{i}.")
        stream = stream + out
        streams.append(stream)
        x = rms(stream, own["input_layernorm.weight"], eps)
        q, k, v = (heads(x @ own[f"self_attn.{n}_proj.weight"].T, config) for n in "qkv")
        causal = here[None] <= here[:, None]
        out = attention(rotated(q, here, theta), rotated(k, here, theta), v, causal) @ own["self_attn.o_proj.weight"].T
        stream = stream + out
        out = mlp(rms(stream, own["post_attention_layernorm.weight"], eps), own)
    streams.append(stream + out)
    name = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    logits = rms(stream + out, weights["model.norm.weight"], eps) @ weights[name].T
    return logits, torch.cat([streams[i + 1] for i in feature_layers], -1) if feature_layers else None


def drafter(folder: Folder, served: Folder, tokens: Sequence[int]) -> Tensor:
    """Logits [block - 1, vocabulary] of the block whose root is the last token, after the others' features."""
    config, weights = folder
    assert config["architectures"] == ["DFlashDraftModel"] and config["model_type"] == "qwen3"
    eps, theta, dflash = config["rms_norm_eps"], config["rope_theta"], config["dflash_config"]
    _, features = target(served, tokens, dflash["target_layer_ids"])
    assert features is not None
    context = rms(features[:-1] @ weights["fc.weight"].T, weights["hidden_norm.weight"], eps)
    before, block = len(tokens) - 1, config["block_size"]
    there, here = torch.arange(before), before + torch.arange(block)
    stream = torch.zeros(())
    out = served[1]["model.embed_tokens.weight"][[tokens[-1], *[dflash["mask_token_id"]] * (block - 1)]]
    for i in range(config["num_hidden_layers"]):
        own = layer_of(weights, f"layers.{i}.")
        stream = stream + out
        x = rms(stream, own["input_layernorm.weight"], eps)
        q, k, v, old_k, old_v = (
            heads(y @ own[f"self_attn.{n}_proj.weight"].T, config)
            for y, n in ((x, "q"), (x, "k"), (x, "v"), (context, "k"), (context, "v"))
        )
        q, k, old_k = (
            rotated(rms(y, own[f"self_attn.{n}_norm.weight"], eps), at, theta)
            for y, n, at in ((q, "q", here), (k, "k", here), (old_k, "k", there))
        )
        keys, values = torch.cat((old_k, k)), torch.cat((old_v, v))
        everything = torch.ones(block, before + block, dtype=torch.bool)
        out = attention(q, keys, values, everything) @ own["self_attn.o_proj.weight"].T
        stream = stream + out
        out = mlp(rms(stream, own["post_attention_layernorm.weight"], eps), own)
    return (
        rms(stream + out, weights["norm.weight"], eps)
        @ served[1]["lm_head.weight" if not served[0]["tie_word_embeddings"] else "model.embed_tokens.weight"].T
    )[1:]
