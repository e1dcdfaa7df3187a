"""A widened pair says what the small one says: same tokens, same marginals, the extra vocabulary never chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
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
from ddsim_reference.model.heads import FORMS, PUBLISHED, head_shapes
from ddsim_reference.record import lattices, marginals
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


EVERY = [(form, more) for form in FORMS for more in ({}, {"tables": True}, {"reach": 1})]


@pytest.mark.parametrize("width", [None, 12, 31])
@pytest.mark.parametrize(("form", "more"), [*EVERY, *((form, {"tables": True}) for form in PUBLISHED)], ids=str)
def test_heads(form: str, more: dict[str, Any], width: int | None) -> None:
    (config, weights, shape, drafter), (big, wide, big_shape, wide_drafter) = pairs(61)
    head = tiny.head(shape, form, **more)
    wide_head = widen.widen_head(*head, shape, replace(BIG, vocab_size=61), width=width)
    assert 12 * BIG.hidden_size / config.hidden_size <= 64
    assert wide_head[0].width == (64 if width is None else width)
    assert {n: tuple(t.shape) for n, t in wide_head[1].items()} == head_shapes(wide_head[0], big_shape)
    found = []
    for models in ((config, weights, shape, drafter, head), (big, wide, big_shape, wide_drafter, wide_head)):
        layers = forward.target_layers(*models[:2])
        found.append(lattices(*models[:2], layers, *models[2:], PROMPTS[1], PROMPTS[2], width=8))
    (ids, first, steps), (wide_ids, wide_first, wide_steps) = found
    same = ids == wide_ids
    assert same.mean() > 0.98
    np.testing.assert_allclose(first[:-1][same[:-1, 0]], wide_first[:-1][same[:-1, 0]], atol=2e-2)
    both = same[:-1, :-1, :, None] & same[:-1, 1:, None, :]
    np.testing.assert_allclose(steps[:-1][both], wide_steps[:-1][both], atol=2e-2, rtol=2e-3)


def test_a_head_that_does_not_fit_is_refused() -> None:
    (_, _, shape, _), _ = pairs(61)
    with pytest.raises(DdsimError, match="a head of 11 inner values cannot hold one of 12"):
        widen.widen_head(*tiny.head(shape), shape, BIG, width=11)
