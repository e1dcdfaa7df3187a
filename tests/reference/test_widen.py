"""A widened pair says what the small one says: same tokens, same marginals, the extra vocabulary never chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch

from ddsim.errors import DdsimError
from ddsim.policy.rules import Autoregressive, DDTree
from ddsim_reference.decode import decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import forward, widen
from ddsim_reference.model.config import drafter_shapes, target_shapes
from ddsim_reference.model.forward import head_logits
from ddsim_reference.record import marginals
from tests.reference import tiny

BIG = widen.Shape(
    hidden_size=96, num_layers=6, num_heads=16, num_kv_heads=4, head_dim=32, intermediate_size=160, vocab_size=100
)
PROMPTS = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 9, 17, 30)]


def pairs(vocabulary: int = 100):
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config)
    big_one = replace(BIG, vocab_size=vocabulary)
    # Random hidden states have no common direction, so the extra rows are the mean row alone: never the largest logit.
    big, wide = widen.widen_target(config, weights, big_one, away=torch.zeros(config.hidden_size))
    big_shape, wide_drafter = widen.widen_drafter(shape, drafter, big_one)
    return (config, weights, shape, drafter), (big, wide, big_shape, wide_drafter)


def logits(config, weights, prompt):
    layers = forward.target_layers(config, weights)
    ids, here = torch.tensor([prompt]), torch.arange(len(prompt))[None]
    _, hidden = forward.target_features(config, weights, layers, ids, here, forward.causal_attention, (0,))
    return head_logits(hidden[0], weights["lm_head.weight"])


def test_logits_and_shapes() -> None:
    (config, weights, _, _), (big, wide, big_shape, wide_drafter) = pairs()
    assert {name: tuple(t.shape) for name, t in wide.items()} == target_shapes(big)
    assert {name: tuple(t.shape) for name, t in wide_drafter.items()} == drafter_shapes(big_shape)
    for prompt in PROMPTS:
        small, large = logits(config, weights, prompt), logits(big, wide, prompt)
        torch.testing.assert_close(large[:, : config.vocab_size], small, rtol=1e-4, atol=1e-4)
        assert large.argmax(-1).max() < config.vocab_size


def test_greedy_text_and_rounds() -> None:
    small, large = pairs(61)
    found = []
    for config, weights, shape, drafter in (small, large):
        engine = Engine(
            config, dict(weights), shape, dict(drafter), max_context=96, max_tokens=32, candidates=40, device="cpu"
        )
        ar = decode(engine, PROMPTS, Autoregressive(), max_new_tokens=24)
        tree = decode(engine, PROMPTS, DDTree(15), max_new_tokens=24)
        assert [a.tokens for a in ar] == [t.tokens for t in tree]
        found.append(([t.tokens for t in tree], [[(r.position, r.accepted) for r in t.rounds] for t in tree]))
    assert found[0] == found[1]


def test_marginals() -> None:
    found = []
    for config, weights, shape, drafter in pairs(61):
        layers = forward.target_layers(config, weights)
        found.append(marginals(config, weights, layers, shape, drafter, PROMPTS[1], PROMPTS[2], candidates=20))
    (a, a_ids), (b, b_ids) = found
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=0, atol=2e-2)
    assert (a_ids == b_ids).mean() > 0.98


def test_what_does_not_fit_is_refused() -> None:
    config, weights = tiny.target("llama")
    away = torch.zeros(config.hidden_size)
    with pytest.raises(DdsimError, match="every dimension"):
        widen.widen_target(config, weights, widen.Shape(40, 6, 16, 4, 32, 160, 100), away=away)
    with pytest.raises(DdsimError, match="layers"):
        widen.widen_target(config, weights, widen.Shape(96, 2, 16, 4, 32, 160, 100), away=away)
    qwen, qwen_weights = tiny.target("qwen3")
    with pytest.raises(DdsimError, match="not supported"):
        widen.widen_target(qwen, qwen_weights, BIG, away=away)


def test_a_direction_away_from_states() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 24, generator=generator) + 4 * torch.eye(24)[3]
    assert ((states @ widen.away_from(states)) < -0.3).all()
