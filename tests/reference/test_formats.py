"""Published formats of drafters: against plain twins, in files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.errors import DdsimError
from ddsim.policy.rules import DDTree
from ddsim_reference.decode import decode
from ddsim_reference.engine.buckets import TokenTree
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import load_drafter, load_head, save_drafter, write_tensors
from ddsim_reference.model.config import DrafterConfig, Weights
from ddsim_reference.model.heads import HeadConfig, head_shapes, lattice
from ddsim_reference.record import lattices, marginals, write_answers
from tests.naive import drafters as naive
from tests.reference import tiny

MARKOV = HeadConfig("markov", 5, tables=True)
SELECTOR = HeadConfig("selector", 5, tables=True)


def tables(config: DrafterConfig, seed: int = 0, head: HeadConfig = MARKOV) -> Weights:
    return tiny.random_weights(head_shapes(head, config), seed)


def doubles(weights: Weights) -> dict[str, np.ndarray]:
    return {name: weight.double().numpy() for name, weight in weights.items()}


def blocks(
    shape: DrafterConfig, weights: Weights, seed: int, anchors: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[list[np.ndarray]], Weights]:
    """Blocks of a tiny drafter over a text: hidden states by depth, roots, the twin's slots, and the target's weights."""
    config, target = tiny.target()
    tokens = torch.randint(0, 60, (1, 9), generator=torch.Generator().manual_seed(seed))
    here = torch.arange(9)[None]
    layers = forward.target_layers(config, target)
    features, _ = forward.target_features(
        config, target, layers, tokens, here, forward.causal_attention, shape.target_layer_ids
    )
    at = torch.tensor(anchors)
    inputs, positions = forward.block_inputs(shape, tokens[:, at], at[None])
    hidden = forward.drafter_hidden(
        shape, weights, features, here, torch.nn.functional.embedding(inputs, target["model.embed_tokens.weight"]),
        positions, forward.masked_attention(forward.block_mask(at, 9, shape.block_size)),
    )  # fmt: skip
    embedding, arrays = target["model.embed_tokens.weight"].double().numpy(), doubles(weights)
    twins = [
        naive.block(shape, arrays, features[0, :a].double().numpy(), int(tokens[0, a]), embedding) for a in anchors
    ]
    return forward.by_depth(shape, hidden[0].unflatten(0, (-1, shape.block_size))), tokens[0, at], twins, target


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.booleans(), st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_markov_lattices_are_the_published_steps(seed: int, count: int, from_anchor: bool, block: int) -> None:
    shape, weights = tiny.drafter(tiny.target_config(), seed % 5, block_size=block, sample_from_anchor=from_anchor)
    assert shape.horizon == (block if from_anchor else block - 1)
    hidden, roots, twins, target = blocks(shape, weights, seed, [1, 4, 8])
    head = tables(shape, seed)
    embedding, target_head = target["model.embed_tokens.weight"], target["lm_head.weight"]
    ids, first, transitions = lattice(MARKOV, head, hidden, embedding, target_head, count, roots)
    assert ids.shape == (3, shape.horizon, count)
    w1, w2 = head["previous.table"].double().numpy(), head["out.table"].double().numpy()
    for b, twin in enumerate(twins):
        steps = naive.drafted(shape, twin, target_head.double().numpy())
        assert len(steps) == shape.horizon
        for d, logits in enumerate(steps):
            own = ids[b, d].tolist()
            assert sorted(own) == sorted(np.argsort(-logits, kind="stable")[:count].tolist())
            for i, before in enumerate([int(roots[b])] if d == 0 else ids[b, d - 1].tolist()):
                found = first[b] if d == 0 else transitions[b, d - 1, i]
                np.testing.assert_allclose(found, naive.markov(logits, before, w1, w2)[own], atol=2e-4)


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 4, 48]), st.integers(3, 5))
@settings(max_examples=15, deadline=None)
def test_selector_lattices_are_the_published_steps(seed: int, count: int, taps: int, group: int, block: int) -> None:
    """With DFlash 2's convolutions below, within each block."""
    shape, weights = tiny.drafter(tiny.target_config(), seed % 5, block_size=block, convolution=(taps, group))
    hidden, roots, twins, target = blocks(shape, weights, seed, [1, 4, 8])
    head = tables(shape, seed, SELECTOR)
    target_head = target["lm_head.weight"]
    ids, first, transitions = lattice(
        SELECTOR, head, hidden, target["model.embed_tokens.weight"], target_head, count, roots
    )
    for b, twin in enumerate(twins):
        np.testing.assert_allclose(hidden[b], np.array(twin[1:]), atol=1e-4)
        for d, logits in enumerate(naive.drafted(shape, twin, target_head.double().numpy())):
            own = ids[b, d].tolist()
            for i, before in enumerate([int(roots[b])] if d == 0 else ids[b, d - 1].tolist()):
                found = first[b] if d == 0 else transitions[b, d - 1, i]
                wanted = naive.selected(logits, own, before, twin[d + 1], doubles(head))
                np.testing.assert_allclose(found, wanted, atol=5e-4)


@pytest.mark.parametrize("block", [1, 4, 8])
def test_the_engine_drafts_from_the_anchor_as_recorded(block: int) -> None:
    """A block of 8 drafts 8 tokens, and a round may commit 9."""
    config, target = tiny.target()
    shape, weights = tiny.drafter(config, block_size=block, sample_from_anchor=True)
    engine = Engine(
        config, tiny.copies(target), shape, tiny.copies(weights), max_context=64, max_tokens=65, candidates=61
    )
    prompts = tiny.prompts(3, config.vocab_size)
    plain = write_answers(config, target, prompts, max_new_tokens=20)
    assert [x.tokens for x in decode(engine, prompts, DDTree(30), max_new_tokens=20)] == plain
    layers = forward.target_layers(config, target)
    for prompt, answer in zip(prompts, plain, strict=True):
        logprobs, ids = marginals(config, target, layers, shape, weights, prompt, answer, candidates=61)
        assert logprobs.shape == (20, block, 61)
        engine.set_context(0)
        engine.prefill(0, prompt)
        engine.set_roots([answer[0]])
        engine.draft()
        engine.wait()
        np.testing.assert_allclose(engine.drafted()[0][0], logprobs[0], atol=2e-3)
        assert (engine.drafted()[1][0][:, 0] == ids[0][:, 0]).all()
        # A round that drafted nothing but the truth commits the whole block and one token more, and the next drafts after them.
        bucket = engine.stage([TokenTree.chain(answer[: block + 1])])
        engine.verify(bucket)
        engine.commit(bucket)
        engine.wait_commit()
        assert engine.collect()[0] == (list(range(block + 1)), answer[block + 1])
        engine.draft()
        engine.wait()
        np.testing.assert_allclose(engine.drafted()[0][0], logprobs[block + 1], atol=2e-3)


@pytest.mark.parametrize(
    ("more", "form"),
    [
        ({}, MARKOV),
        ({"sample_from_anchor": True}, MARKOV),
        ({"convolution": (2, 4), "window": 70}, SELECTOR),
        ({"convolution": (3, 48), "window": None}, SELECTOR),
    ],
    ids=str,
)
def test_the_engine_drafts_published_lattices_as_recorded(more: dict[str, Any], form: HeadConfig) -> None:
    config, target = tiny.target()
    shape, weights = tiny.drafter(config, **more)
    head = form, tables(shape, 0, form)
    (prompt,) = tiny.prompts(1, config.vocab_size)
    (answer,) = write_answers(config, target, [prompt], max_new_tokens=5)
    layers = forward.target_layers(config, target)
    ids, first, transitions = lattices(config, target, layers, shape, weights, head, prompt, answer, width=7)
    engine = Engine(
        config, tiny.copies(target), shape, tiny.copies(weights), head, max_context=64, max_tokens=18, batch=2,
        lattice_width=7,
    )  # fmt: skip
    engine.prefill(0, [5, *prompt])
    engine.prefill(1, prompt)
    for root in (answer[0], (answer[0] + 1) % 60):
        engine.set_roots([7, root])
        engine.draft()
        engine.wait()
        logprobs, drafted = (found[1] for found in engine.drafted())
        same = root == answer[0]
        assert np.allclose(logprobs[0], first[0], atol=2e-3) == same
        if same:
            assert drafted.tolist() == ids[0].tolist()
            np.testing.assert_allclose(logprobs[1:], transitions[0].reshape(-1, 7), atol=2e-3)
    plain = write_answers(config, target, [prompt], max_new_tokens=20)
    engine = Engine(config, target, shape, weights, head, max_context=64, max_tokens=33)
    assert [x.tokens for x in decode(engine, [prompt], DDTree(30), max_new_tokens=20)] == plain


@pytest.mark.parametrize("from_anchor", [False, True])
def test_dspark_drafters_come_back(from_anchor: bool, tmp_path: Path) -> None:
    config, _ = tiny.target()
    shape, weights = tiny.drafter(config, sample_from_anchor=from_anchor)
    head = tables(shape)
    save_drafter(tmp_path, shape, weights, {"made_by": "a test"}, (MARKOV, head))
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["architectures"] == ["Qwen3DSparkModel"] and "dflash_config" not in document
    assert (document["markov_rank"], document["sample_from_anchor"]) == (5, from_anchor)
    found, mine = load_drafter(str(tmp_path))
    assert found == shape
    assert all(torch.equal(mine[name], weights[name].bfloat16().float()) for name in weights)
    again = load_head(str(tmp_path), found)
    assert again is not None and again[0] == MARKOV
    assert again[1].keys() == head.keys()
    assert all(torch.equal(again[1][name], head[name].bfloat16().float()) for name in head)


def published(folder: Path, **changes: Any) -> tuple[DrafterConfig, Weights, Weights]:
    """A DSpark checkpoint with all that DeepSpec's files hold: copies of the target's tensors, and a confidence head."""
    config, target = tiny.target()
    shape, weights = tiny.drafter(config, sample_from_anchor=True)
    head = tables(shape)
    save_drafter(folder, shape, weights, {}, (MARKOV, head))
    document = json.loads((folder / "config.json").read_text())
    del document["sample_from_anchor"], document["ddsim_provenance"]
    document |= {"enable_confidence_head": True, "confidence_head_with_markov": True} | changes
    (folder / "config.json").write_text(json.dumps(document))
    write_tensors(
        folder / "model.safetensors",
        weights
        | {"markov_head.markov_w1.weight": head["previous.table"], "markov_head.markov_w2.weight": head["out.table"]}
        | {"embed_tokens.weight": target["model.embed_tokens.weight"], "lm_head.weight": target["lm_head.weight"]}
        | {"confidence_head.proj.weight": torch.ones(1, 53), "confidence_head.proj.bias": torch.ones(1)},
    )
    return shape, weights, target


def test_dspark_is_read_as_it_is_published(tmp_path: Path) -> None:
    shape, weights, target = published(tmp_path)
    found, mine = load_drafter(str(tmp_path), target=target)
    assert found == shape and found.horizon == found.block_size
    assert mine.keys() == weights.keys() and all(torch.equal(mine[name], weights[name]) for name in weights)
    head = load_head(str(tmp_path), found)
    assert head is not None and torch.equal(head[1]["out.table"], tables(shape)["out.table"])
    assert load_drafter(str(tmp_path))[0] == shape
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        other = target | {name: target[name] + 1}
        with pytest.raises(DdsimError, match="is not the target's; a drafter with its own is not supported") as caught:
            load_drafter(str(tmp_path), target=other)
        assert "\n" not in str(caught.value)


def test_dspark_without_a_head_drafts_marginals(tmp_path: Path) -> None:
    config, _ = tiny.target()
    shape, weights = tiny.drafter(config, sample_from_anchor=True)
    save_drafter(tmp_path, shape, weights, {})
    assert load_drafter(str(tmp_path))[0] == shape
    assert load_head(str(tmp_path), shape) is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["LlamaForCausalLMEagle3"]}, "an? EAGLE drafter is not supported"),
    ({"architectures": ["DominoDraftModel"]}, "an? Domino drafter is not supported"),
    ({"architectures": ["LiLiCorrDraftModel"]}, "an? LiLiCorr drafter is not supported"),
    ({"architectures": ["JetSpecDraftModel"]}, "an? JetSpec drafter is not supported"),
    ({"architectures": ["DSparkDraftModel"]}, "an? DSpark drafter is not supported: only its layout Qwen3DSparkModel"),
    ({"architectures": ["Gemma4DSparkModel"]}, "an? DSpark drafter is not supported"),
    ({"architectures": ["Qwen3ForCausalLM"]}, "architectures is 'Qwen3ForCausalLM', but must be one of DFlashDraftModel"),
    ({"architectures": []}, "architectures is \\[\\], but must be a list of one name"),
    ({"architectures": 3}, "architectures is 3"),
    ({"speculators_model_type": "dspark"}, "the layout of the speculators library is not supported"),
    ({"markov_head_type": "gated"}, "markov_head_type is 'gated', but must be 'vanilla'"),
    ({"markov_head_type": "rnn"}, "markov_head_type is 'rnn'"),
    ({"markov_rank": None}, "'markov_rank' is missing"),
    ({"markov_rank": -1}, "markov_rank is -1"),
    ({"markov_rank": 6}, "markov_w1.weight' has shape \\(61, 5\\)"),
    ({"markov_rank": 0}, "markov_w1.weight' has no place"),
    ({"block_size": 0}, "block_size is 0"),
    ({"block_size": 64}, "block_size is 64"),
    ({"sample_from_anchor": "yes"}, "sample_from_anchor is 'yes'"),
    ({"sample_from_anchor": False, "block_size": 1}, "block_size is 1"),
    ({"mask_token_id": 61}, "mask_token_id is 61"),
    ({"target_layer_ids": None}, "'target_layer_ids' is missing"),
    ({"target_layer_ids": []}, "target_layer_ids is \\[\\]"),
    ({"target_layer_ids": [-1, 2, 3]}, "target_layer_ids is \\[-1, 2, 3\\]"),
    ({"draft_vocab_size": 32}, "draft_vocab_size is 32, but must be the whole vocabulary, 61"),
    ({"logit_scale": 0.5}, "logit_scale is 0.5"),
    ({"enable_confidence_head": False}, "confidence_head.proj.weight' has no place|confidence_head.proj.bias' has no place"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_no_readable_dspark_is_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    shape, _, _ = published(tmp_path, **fields)
    with pytest.raises(DdsimError, match=message) as caught:
        load_drafter(str(tmp_path))
        load_head(str(tmp_path), shape)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"causal": True}, "a JetSpec drafter is not supported"),
        ({"projector_type": "domino"}, "a Domino drafter is not supported"),
        ({"projector_type": "lilicorr"}, "a LiLiCorr drafter is not supported"),
        ({"projector_type": "dspark"}, "a DSpark drafter is not supported"),
    ],
)
def test_others_in_dflashs_clothes_are_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    shape, weights = tiny.drafter(tiny.target_config())
    save_drafter(tmp_path, shape, weights, {})
    document = json.loads((tmp_path / "config.json").read_text())
    document["dflash_config"] |= fields
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(DdsimError, match=message):
        load_drafter(str(tmp_path))


def second(folder: Path, **changes: Any) -> tuple[DrafterConfig, Weights, Weights]:
    """A DFlash 2 checkpoint by the names, shapes and fields of a released one."""
    shape, weights = tiny.drafter(tiny.target_config(), convolution=(2, 4), window=40)
    head = tables(shape, 0, SELECTOR)
    save_drafter(folder, replace(shape, convolution=None), weights, {})
    document = json.loads((folder / "config.json").read_text())
    dflash = document["dflash_config"] | {
        "block_size": document.pop("block_size"), "conv_group_size": 4, "conv_kernel_size": 2,
        "selector_rank": 5, "selector_top_k": 16,
    }  # fmt: skip
    document |= {
        "architectures": ["DFlash2DraftModel"], "is_causal": False, "layer_types": ["sliding_attention"] * 2,
        "sliding_window": 40, "use_sliding_window": True, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    }  # fmt: skip
    for key, value in changes.items():
        (dflash if key in dflash or key in SCALES else document)[key] = value
    (folder / "config.json").write_text(json.dumps(document | {"dflash_config": dflash}))
    write_tensors(
        folder / "model.safetensors",
        weights
        | {
            "candidate_selector.predecessor_codebook": head["previous.table"],
            "candidate_selector.successor_codebook": head["out.table"],
            "candidate_selector.hidden_projection.weight": head["hidden.weight"],
        },
    )
    return shape, weights, head


SCALES = ("input_embedding_scale", "output_multiplier", "final_logit_softcapping")


def test_dflash_2_is_read_as_it_is_published(tmp_path: Path) -> None:
    shape, weights, head = second(tmp_path, output_multiplier=1.0, final_logit_softcapping=None)
    found, mine = load_drafter(str(tmp_path))
    assert found == shape
    assert mine.keys() == weights.keys() and all(torch.equal(mine[name], weights[name]) for name in weights)
    again = load_head(str(tmp_path), found)
    assert again is not None and again[0] == SELECTOR
    assert again[1].keys() == head.keys() and all(torch.equal(again[1][name], head[name]) for name in head)
    with pytest.raises(DdsimError, match="a drafter with convolutions is read only"):
        save_drafter(tmp_path / "again", shape, weights, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_group_size": 5}, "conv_group_size is 5, but must be a divisor of hidden_size, 48"),
        ({"conv_group_size": 8}, "kernel_projection.weight' has shape \\(48, 48\\)"),
        ({"conv_kernel_size": 0}, "conv_kernel_size is 0"),
        ({"conv_kernel_size": 7}, "conv_kernel_size is 7"),
        ({"conv_kernel_size": None}, "'conv_kernel_size' is missing"),
        ({"selector_rank": None}, "'selector_rank' is missing"),
        ({"selector_rank": 6}, "codebook' has shape|projection.weight' has shape"),
        ({"selector_top_k": 8}, "selector_top_k is 8, but must be 16"),
        ({"output_multiplier": 0.5}, "output_multiplier is 0.5, but must be absent; it is not supported"),
        ({"input_embedding_scale": 2}, "input_embedding_scale is 2"),
        ({"final_logit_softcapping": 20.0}, "final_logit_softcapping is 20.0"),
        ({"sample_from_anchor": True}, "sample_from_anchor is True"),
        ({"is_causal": True}, "is_causal is True, but must be false"),
        ({"is_causal": None}, "is_causal is True, but must be false"),
        ({"sliding_window": None}, "'sliding_window' is missing"),
        ({"sliding_window": 6}, "sliding_window is 6"),
        ({"architectures": ["DFlashDraftModel"], "block_size": 6}, "layers with a sliding window are not supported"),
    ],
)
def test_what_is_no_readable_dflash_2_is_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    shape, _, _ = second(tmp_path, **fields)
    with pytest.raises(DdsimError, match=message) as caught:
        load_drafter(str(tmp_path))
        load_head(str(tmp_path), shape)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_contexts_that_a_window_cuts_are_refused() -> None:
    config, target = tiny.target()
    shape, weights = tiny.drafter(config, convolution=(2, 4), window=40)
    Engine(config, tiny.copies(target), shape, tiny.copies(weights), max_context=34, max_tokens=9)
    with pytest.raises(DdsimError, match="context of 35 tokens: the drafter's window of 40 holds 34 beside its block"):
        Engine(config, target, shape, weights, max_context=35, max_tokens=9)


def test_a_plain_drafter_is_described_as_ever() -> None:
    """Recordings made before go on only where their provenance says the same."""
    shape = tiny.drafter_config(tiny.target_config())
    assert len(shape.described()) == 13 and shape.described().keys().isdisjoint({"sample_from_anchor", "window"})
    assert replace(shape, window=9).described() == shape.described() | {"window": 9}
