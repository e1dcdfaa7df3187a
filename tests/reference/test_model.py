"""Logits against transformers' own models, the drafter against a plain reading of its published description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim_reference.engine.buckets import Bucket, TokenTree, causal_mask
from ddsim_reference.engine.engine import Engine
from ddsim_reference.generate import TextGenerator
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import load_target
from ddsim_reference.model.config import DrafterConfig, Weights, check_pair
from ddsim_reference.model.sampling import choose, round_down_half, top_candidates
from tests.reference import tiny


def published(arch: str, **changes: Any) -> Any:
    """A tiny random model of transformers' own."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 80, "vocab_size": 61, "rms_norm_eps": 1e-5, "tie_word_embeddings": arch == "llama",
        "max_position_embeddings": 128, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": [3, 7],
        "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
    } | changes  # fmt: skip
    torch.manual_seed(5)
    make, config = (LlamaForCausalLM, LlamaConfig) if arch == "llama" else (Qwen3ForCausalLM, Qwen3Config)
    model = make(config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_are_those_of_transformers(arch: str, shards: int, tmp_path: Path) -> None:
    """From checkpoints that transformers wrote, whole or sharded: prefill, dense pass and one token at a time."""
    model = published(arch)
    size = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size=size if shards == 1 else size // 2)
    assert len(list(tmp_path.glob("*.safetensors"))) >= (1 if shards == 1 else 2)
    config, weights, tokenizer = load_target(str(tmp_path))
    assert tokenizer is None
    assert (config.arch, config.eos_token_ids, config.rope_theta) == (arch, (3, 7), 50_000.0)
    tokens = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model(tokens, output_hidden_states=True)
    wanted = result.logits
    here = torch.arange(23)[None].expand(2, -1)
    features, hidden = forward.target_features(
        config, weights, forward.target_layers(config, weights), tokens, here, forward.causal_attention, (0, 1)
    )
    torch.testing.assert_close(hidden @ weights["lm_head.weight"].T, wanted, rtol=1e-4, atol=1e-4)
    # Layer i's output is what the drafter reads as feature i.
    torch.testing.assert_close(features, torch.cat(result.hidden_states[1:3], -1), rtol=1e-4, atol=1e-4)

    engine = Engine(config, tiny.copies(weights), max_context=40, max_tokens=9, batch=2)
    for b in range(2):
        last = engine.prefill(b, tokens[b, :17].tolist())  # two chunks of nine
        torch.testing.assert_close(last[0], wanted[b, 16], rtol=1e-4, atol=1e-4)
    for t in range(17, 23):
        bucket = engine.stage([TokenTree.chain([int(tokens[b, t])]) for b in range(2)])
        torch.testing.assert_close(engine.verify(bucket), wanted[:, t], rtol=1e-4, atol=1e-4)
        engine.commit(bucket)

    model_of_slots = TextGenerator(config, weights, 2, 30)
    start = torch.tensor([0, 4])
    for t in range(20):
        token = torch.stack((tokens[0, t], tokens[1, max(t - 4, 0)]))
        logits = model_of_slots.logits(model_of_slots.hidden(token, torch.tensor(t), start.clamp_max(t)))
        torch.testing.assert_close(logits[0], wanted[0, t], rtol=1e-4, atol=1e-4)
        if t >= 4:
            torch.testing.assert_close(logits[1], wanted[1, t - 4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_logits_of_a_tree_are_those_of_its_paths(arch: str) -> None:
    """A ragged forest in one pass against a dense pass over each node's path."""
    config, weights = tiny.target(arch)
    engine = Engine(config, tiny.copies(weights), max_context=40, max_tokens=40, batch=3)
    prompts = [[5, 9, 2, 2], [1], [7] * 11]
    for b, prompt in enumerate(prompts):
        engine.prefill(b, prompt)
    parents = ([-1, 0, 0, 1, 1, 3, 2, 5], None, [-1, 0, 1])
    trees: list[TokenTree | None] = []
    rng = np.random.default_rng(0)
    for up in parents:
        if up is None:
            trees.append(None)
            continue
        depths, seen = np.zeros(len(up), np.int32), np.zeros((len(up), 32), np.uint8)
        for j, parent in enumerate(up):
            if parent >= 0:
                depths[j], seen[j] = depths[parent] + 1, seen[parent]
            seen[j, j] = 1
        mask = np.packbits(seen, axis=1, bitorder="little").view(np.uint32)
        trees.append(TokenTree(rng.integers(0, 61, len(up)).astype(np.int32), np.array(up, np.int32), depths, mask))
    logits = engine.verify(engine.stage(trees))
    row = 0
    for prompt, tree in zip(prompts, trees, strict=True):
        if tree is None:
            continue
        for j in range(len(tree.tokens)):
            path, node = [], j
            while node >= 0:
                path.insert(0, int(tree.tokens[node]))
                node = int(tree.parents[node])
            text = torch.tensor([[*prompt, *path]])
            _, hidden = forward.target_features(
                config, weights, forward.target_layers(config, weights), text, torch.arange(text.shape[1])[None],
                forward.causal_attention, (0,),
            )  # fmt: skip
            torch.testing.assert_close(logits[row], hidden[0, -1] @ weights["lm_head.weight"].T, rtol=1e-4, atol=1e-4)
            row += 1


# The published drafter, one block, one head and one query at a time.


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotary embedding of one head's vector: pairs (i, i + dim / 2) by angle position * theta^(-2i / dim)."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(position * theta ** (-2 * i / len(x)))
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
    return out


def published_drafter(config: DrafterConfig, w: Weights, features: Tensor, embedded: Tensor, first: int) -> Tensor:
    """Hidden states [block, hidden] of a block whose root stands at position ``first``, after features [first, auxiliary_layers * hidden].

    The context enters every layer through its key and value projections only; the block sees all of it and, without a mask,
    itself.
    """
    context = norm(features @ w["fc.weight"].T, w["hidden_norm.weight"], config.rms_norm_eps)
    x, dim = embedded, config.head_dim
    group = config.num_heads // config.num_kv_heads
    for i in range(config.num_layers):
        at = f"layers.{i}."
        own = norm(x, w[at + "input_layernorm.weight"], config.rms_norm_eps)
        both = torch.cat((context, own))
        query = own @ w[at + "self_attn.q_proj.weight"].T
        key = both @ w[at + "self_attn.k_proj.weight"].T
        value = both @ w[at + "self_attn.v_proj.weight"].T
        mixed = torch.zeros_like(query)
        for h in range(config.num_heads):
            of = slice(h * dim, (h + 1) * dim)
            kv = slice(h // group * dim, (h // group + 1) * dim)
            keys = norm(key[:, kv], w[at + "self_attn.k_norm.weight"], config.rms_norm_eps)
            keys = torch.stack([turn(k, p, config.rope_theta) for p, k in enumerate(keys)])
            for j in range(len(x)):
                q = norm(query[j, of], w[at + "self_attn.q_norm.weight"], config.rms_norm_eps)
                scores = keys @ turn(q, first + j, config.rope_theta) / dim**0.5
                mixed[j, of] = scores.softmax(0) @ value[:, kv]
        x = x + mixed @ w[at + "self_attn.o_proj.weight"].T
        own = norm(x, w[at + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = own @ w[at + "mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (own @ w[at + "mlp.up_proj.weight"].T)) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"], config.rms_norm_eps)


@pytest.mark.parametrize("block_size", [2, 6, 16])
def test_the_drafter_is_the_published_one(block_size: int) -> None:
    """The engine's draft after a prompt and again after a committed chain, two requests side by side."""
    config, weights = tiny.target("qwen3")
    shape, draft_weights = tiny.drafter(config, block_size=block_size)
    engine = Engine(
        config, tiny.copies(weights), shape, tiny.copies(draft_weights), max_context=40, max_tokens=20, batch=2,
        candidates=61,
    )  # fmt: skip
    texts = [[4, 8, 15, 16, 23], [42, 1]]
    for b, text in enumerate(texts):
        engine.prefill(b, text)
    roots = [11, 12]
    engine.set_roots(roots)
    layers = forward.target_layers(config, weights)
    for turn_ in range(2):
        engine.draft()
        engine.wait()
        logprobs, ids = engine.drafted()
        for b, text in enumerate(texts):
            tokens, here = torch.tensor([text]), torch.arange(len(text))[None]
            features, _ = forward.target_features(
                config, weights, layers, tokens, here, forward.causal_attention, shape.target_layer_ids
            )
            block = torch.tensor([roots[b], *[shape.mask_token_id] * (block_size - 1)])
            embedded = weights["model.embed_tokens.weight"][block]
            hidden = published_drafter(shape, draft_weights, features[0], embedded, len(text))
            wanted = (hidden[1:] @ weights["lm_head.weight"].T).log_softmax(-1)
            assert logprobs[b].shape == (block_size - 1, 61)
            got = torch.full_like(wanted, -torch.inf).scatter(
                1, torch.from_numpy(ids[b]).long(), torch.from_numpy(logprobs[b])
            )
            torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)  # rounded to float16
            assert np.all(np.diff(logprobs[b], axis=1) <= 0)
        if turn_ == 0:
            # The target is made to agree with a chain of one for the first request, and with nothing for the second.
            bucket = engine.stage([TokenTree.chain([roots[0], 30]), TokenTree.chain([roots[1], 31])])
            engine.verify(bucket)
            engine.choices[:4] = torch.tensor([30, 19, 32, 0])
            engine._commit(bucket)
            assert engine.collect() == [([0, 1], 19), ([0], 32)]
            texts, roots = [[*texts[0], roots[0], 30], [*texts[1], roots[1]]], [19, 32]


# Small parts.


def test_candidates_are_rounded_down_and_ordered() -> None:
    logits = torch.randn(4, 5, 301, generator=torch.Generator().manual_seed(0)) * 5
    logits[0, 0, 10:20] = 3.0  # ties go to the smaller token
    logits[1, 0, 7] = 1e4  # a certain token: log-probability 0, the others far below
    values, ids = top_candidates(logits, 40)
    exact = logits.double().log_softmax(-1)
    for at in np.ndindex(4, 5):
        row = exact[at]
        low = row.float().half()
        low = torch.where(
            low.double() > row.float().double(), torch.nextafter(low, torch.tensor(-torch.inf).half()), low
        )
        order = sorted(range(301), key=lambda i, low=low: (-float(low[i]), i))
        got = list(zip(ids[at].tolist(), values[at].tolist(), strict=True))
        assert values[at].max() <= 0
        # float32 sums may put a value on the other side of a float16 step.
        np.testing.assert_allclose(values[at], [float(low[i]) for i, _ in got], rtol=1.1e-3, atol=1e-7)
        assert got == sorted(got, key=lambda pair: (-pair[1], pair[0]))
        np.testing.assert_allclose(values[at], [float(low[i]) for i in order[:40]], rtol=1.1e-3, atol=1e-7)
    few, _ = top_candidates(logits, 400)
    assert few.shape[-1] == 301


def test_rounding_down_is_that_of_traces() -> None:
    from ddsim.trace.checks import round_logprobs

    x = -torch.logspace(-9, 4.9, 5000)
    x = torch.cat((x, torch.zeros(1), x.half().float()))
    np.testing.assert_array_equal(round_down_half(x).numpy(), round_logprobs(x.numpy()))


def test_choosing_by_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]]).log_softmax(-1)
    p = logits.double().softmax(-1)[0]
    for u, wanted in ((0.0, 0), (float(p[0]) - 1e-9, 0), (float(p[0]) + 1e-9, 1), (1 - 1e-12, 2)):
        assert int(choose(logits, 1.0, torch.tensor([u], dtype=torch.float64))) == wanted
    assert int(choose(logits, 0.0, None)) == 1


def test_masks_of_chains() -> None:
    for m in (1, 31, 32, 33, 70):
        bits = np.unpackbits(causal_mask(m).view(np.uint8), axis=1, bitorder="little")
        np.testing.assert_array_equal(bits[:, :m], np.tri(m))
        assert not bits[:, m:].any()


def test_buckets_hold_what_is_packed() -> None:
    bucket = Bucket(70, 3, 3, torch.device("cpu"))
    bucket.pack([TokenTree.chain(list(range(40))), None, TokenTree.chain([7])])
    forest = bucket.metadata(torch.tensor([10, 20, 30], dtype=torch.int32), 16)
    assert forest.position[:41].tolist() == [*range(10, 50), 30]
    assert forest.slot[:42].tolist() == [*range(10, 50), 30, -1]
    assert forest.request[:41].tolist() == [0] * 40 + [2]
    tiles = forest.tiles[forest.tiles[:, 2] > 0].tolist()
    covered = [(b, first + i) for b, first, count in tiles for i in range(count)]
    assert covered == [(0, i) for i in range(40)] + [(2, 40)]
    assert all(count <= bucket.per_tile for _, _, count in tiles)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 1}, "drafter: block size 1"),
        ({"block_size": 65}, "drafter: block size 65"),
        ({"hidden_size": 64}, "drafter: hidden size 64, but the target's is 48; use the drafter made for this target"),
        ({"vocab_size": 60}, "drafter: vocabulary size 60, but the target's is 61"),
        ({"target_layer_ids": (0, 4)}, "drafter: reads target layers [0, 4], but the target has layers 0 to 3"),
        ({"target_layer_ids": ()}, "drafter: reads target layers []"),
        ({"mask_token_id": 61}, "drafter: mask token 61"),
    ],
)
def test_drafters_of_other_targets_are_refused(changes: dict[str, Any], message: str) -> None:
    config = tiny.target_config()
    with pytest.raises(DdsimError) as caught:
        check_pair(config, tiny.drafter_config(config, **changes))
    assert message in str(caught.value)


def test_engines_refuse_what_they_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = tiny.target()
    with pytest.raises(DdsimError, match="all must be at least 1"):
        Engine(config, weights, batch=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DdsimError, match=r"device cuda: PyTorch finds no GPU here; use --device cpu"):
        Engine(config, weights, device="cuda")
    engine = Engine(config, weights, max_context=8, max_tokens=4)
    with pytest.raises(DdsimError, match="prompt: 9 tokens, but the cache holds 8; raise max_context"):
        engine.prefill(0, [1] * 9)
    with pytest.raises(DdsimError, match="prompt: it is empty"):
        engine.prefill(0, [])
    with pytest.raises(DdsimError, match="5 tokens in one forward pass: the engine was built for 4"):
        engine.stage([TokenTree.chain([1] * 5)])
    with pytest.raises(DdsimError, match="context 9: the cache holds 8"):
        engine.set_context(9)
    with pytest.raises(DdsimError, match="this engine has no drafter"):
        engine.draft()


def test_too_little_memory_is_told_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = tiny.target()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    with pytest.raises(DdsimError, match=r"GPU memory: \d+\.\d GB needed .* 0\.0 GB free; lower max_context \(9000\)"):
        Engine(config, weights, device="cuda", max_context=9000)
