"""The published loop: its text is the target's own, and its rounds are those of the same trees elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from ddsim.bench import published_tree
from ddsim.policy.rules import Autoregressive, DDTree
from ddsim.tree.trees import draft_tree
from ddsim_reference.decode import decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.published import published_loop, transformers_target
from tests.reference import tiny

PROMPTS = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 9, 17, 30)]


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("budget", [0, 1, 20])
def test_published_loop_gives_the_targets_text_in_the_decoders_rounds(arch: str, budget: int) -> None:
    config, weights = tiny.target(arch)
    shape, drafter = tiny.drafter(config)
    engine = Engine(
        config, dict(weights), shape, dict(drafter), max_context=96, max_tokens=32, candidates=31, device="cpu"
    )
    mine = decode(engine, PROMPTS, Autoregressive(), max_new_tokens=24)
    trees = decode(engine, PROMPTS, DDTree(budget), max_new_tokens=24)
    theirs = published_loop(config, weights, shape, drafter, PROMPTS, budget=budget, max_new_tokens=24)
    assert theirs.tokens == [a.tokens for a in mine]
    assert theirs.rounds == sum(len(a.rounds) for a in trees)
    assert theirs.seconds > 0


def test_transformers_holds_the_same_tensors() -> None:
    config, weights = tiny.target("llama")
    model = transformers_target(config, weights)
    held = {x.data_ptr() for x in model.parameters()}
    assert held == {x.data_ptr() for x in weights.values()}
    assert not any(x.is_meta for x in [*model.parameters(), *model.buffers()])


def test_heap_is_the_best_first_tree() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 12)).astype(np.float32) * 2
    logprobs = -np.sort(-(logits - np.log(np.exp(logits).sum(1, keepdims=True))), 1)
    parents, depths, ranks, _ = published_tree(logprobs, 40)
    tree = draft_tree(logprobs, 40)
    assert parents.tolist() == tree.parents.tolist()
    assert depths.tolist() == tree.depths.tolist()
    assert ranks.tolist() == tree.ranks.tolist()
