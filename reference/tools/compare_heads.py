"""Train heads that know the token before side by side on one drafter, and count the tokens a round that each brings.

``python3 reference/tools/compare_heads.py HEAD [HEAD ...] --work FOLDER -o FILE``

HEAD is FORM:WIDTH, FORM:WIDTH:reach=R or FORM:WIDTH:tables (forms: static, gated, gated_low_rank). The drafter stays as it is; FOLDER holds
``text.npz``, the training text that ``ddsim train-drafter`` writes. Heads are judged on workloads that are in no training: trees grow
best first on a lattice of the candidates, over the target's own answers, and are held against trees of the marginals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import checkout  # noqa: F401
import ddsim
from ddsim.files.atomic import write_text
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import SMOLLM2, load_drafter, load_target
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights
from ddsim_reference.model.heads import HeadConfig, lattice
from ddsim_reference.model.sampling import top_candidates, uniforms
from ddsim_reference.model.workloads import WORKLOADS, encode_all, load_prompts
from ddsim_reference.record import write_answers
from ddsim_reference.training.batches import Corpus
from ddsim_reference.training.trainer import Trainer

BUDGETS = (16, 64, 256)
Head = tuple[HeadConfig, Weights]


def parsed(text: str) -> HeadConfig:
    """A head by its name on the command line."""
    form, width, *rest = text.split(":")
    reach = next((int(part.removeprefix("reach=")) for part in rest if part.startswith("reach=")), 0)
    return HeadConfig(form, int(width), "tables" in rest, reach)


def lattices(
    head: Head | None, hidden: torch.Tensor, embedding: torch.Tensor, target_head: torch.Tensor, count: int
) -> list[ddsim.Lattice]:
    """One lattice a block of hidden states [blocks, L, hidden]; without a head, of the marginals."""
    if head is None:
        values, ids = top_candidates(forward.head_logits(hidden, target_head), count)
        return [
            ddsim.Lattice.from_marginals(i, v)
            for i, v in zip(ids.int().cpu().numpy(), values.cpu().numpy(), strict=True)
        ]
    tensors = lattice(*head, hidden, embedding, target_head, count)
    ids, first, transitions = (tensor.cpu().numpy() for tensor in (tensors[0].int(), *tensors[1:]))
    return [ddsim.Lattice(*parts, check=False) for parts in zip(ids, first, transitions, strict=True)]


def accepted(proposal: ddsim.Lattice, truth: Sequence[int], budgets: Sequence[int]) -> list[int]:
    """Tokens that the chain and the tree of each budget have right."""
    chain = 0
    for d, candidate in enumerate(proposal.chain()):
        if d == len(truth) or proposal.token_ids[d, candidate] != truth[d]:
            break
        chain += 1
    tree = ddsim.draft_tree(proposal, max(budgets), check=False)
    nodes, node = [], 0
    for token in truth:
        below = np.flatnonzero((tree.parents == node) & (tree.tokens == token))
        if not len(below):
            break
        node = int(below[0])
        nodes.append(node)
    return [chain, *(sum(node <= budget for node in nodes) for budget in budgets)]


def rounds(proposals: Sequence[ddsim.Lattice], answer: Sequence[int], budgets: Sequence[int]) -> list[int]:
    """Rounds that an answer takes from its first token on; a proposal stands at every position but the last."""
    right = [accepted(proposal, answer[p + 1 :], budgets) for p, proposal in enumerate(proposals)]
    found = []
    for b in range(len(budgets) + 1):
        p = count = 0
        while p < len(right):
            p, count = p + right[p][b] + 1, count + 1
        found.append(count)
    return found


@torch.inference_mode()
def judge(
    config: ModelConfig, weights: Weights, shape: DrafterConfig, drafter: Weights, heads: Sequence[Head | None],
    prompts: Sequence[Sequence[int]], *, names: Sequence[str], temperature: float = 0.0, max_new_tokens: int = 128,
    candidates: int = 24, budgets: Sequence[int] = BUDGETS,
) -> tuple[list[int], np.ndarray]:  # fmt: skip
    """Tokens of each answer after its first, and rounds [heads, answers, 1 + budgets] that it takes."""
    layers = forward.target_layers(config, weights)
    embedding, target_head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    random = None if temperature == 0 else [uniforms(0, name, max_new_tokens) for name in names]
    answers = write_answers(
        config, weights, prompts, max_new_tokens=max_new_tokens, temperature=temperature, random=random
    )
    counts, tokens_in_all = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        if len(answer) < 2:
            continue
        tokens = torch.tensor([[*prompt, *answer]], device=embedding.device)
        here = torch.arange(tokens.shape[1], device=embedding.device)[None]
        features, _ = forward.target_features(
            config, weights, layers, tokens, here, forward.causal_attention, shape.target_layer_ids
        )
        anchors, context = here[0, len(prompt) : -1], tokens.shape[1] - 1
        inputs, positions = forward.block_inputs(shape, tokens[:, anchors], anchors[None])
        mask = forward.masked_attention(forward.block_mask(anchors, context, shape.block_size))
        hidden = forward.drafter_hidden(
            shape, drafter, features[:, :context], here[:, :context], F.embedding(inputs, embedding), positions, mask
        )[0].unflatten(0, (-1, shape.block_size))[:, 1:]
        found = [lattices(head, hidden, embedding, target_head, candidates) for head in heads]
        counts.append([rounds(proposals, answer, budgets) for proposals in found])
        tokens_in_all.append(len(answer) - 1)
    return tokens_in_all, np.array(counts).swapaxes(0, 1)


def gains(tokens: Sequence[int], counts: np.ndarray) -> list[dict[str, Any]]:
    """Of each head: tokens a round, gain over the first, and its 95 % interval over 2,000 draws of answers."""
    draws = np.random.default_rng(0).integers(0, len(tokens), (2000, len(tokens)))
    found = []
    for own in counts:
        drawn = counts[0][draws].sum(1) / own[draws].sum(1) - 1
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        found.append(
            {
                "tokens_a_round": (sum(tokens) / own.sum(0)).round(3).tolist(),
                "gain": (counts[0].sum(0) / own.sum(0) - 1).round(4).tolist(),
                "interval": np.stack((low, high), 1).round(4).tolist(),
            }
        )
    return found


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="+", type=parsed, metavar="HEAD")
    parser.add_argument("--work", type=Path, required=True, help="folder with text.npz")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--target", default=SMOLLM2)
    parser.add_argument("--drafter", default="reference/drafter")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=60, help="prompts of each workload")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config, weights, tokenizer = load_target(given.target, dtype=dtype, device=device)
    shape, drafter = load_drafter(given.drafter, dtype=dtype, device=device)
    with np.load(given.work / "text.npz", allow_pickle=False) as file:
        corpus = Corpus({name: file[name] for name in file.files}, device)
    trainer = Trainer(
        config, weights, shape, corpus, rows=given.rows, matrix_rate=given.rate, vector_rate=given.rate / 3,
        heads=given.heads, frozen=drafter,
    )  # fmt: skip
    trainer.run(given.seconds, given.seconds)
    losses = [loss for loss, _ in trainer.evaluate()]
    trained = [
        (head, {name: weight.detach().to(dtype) for name, weight in trainer.head_weights(i).items()})
        for i, head in enumerate(given.heads)
    ]
    rows: list[dict[str, Any]] = [{"head": None, "held_out_loss": losses[0], "workloads": {}}]
    rows += [
        {"head": vars(head), "held_out_loss": loss, "workloads": {}}
        for head, loss in zip(given.heads, losses[1:], strict=True)
    ]
    for name in WORKLOADS:
        prompts = load_prompts(name)[: given.limit]
        tokens, counts = judge(
            config, weights, shape, drafter, [None, *trained], encode_all(tokenizer, prompts, config, 128),
            names=[prompt.id for prompt in prompts], temperature=given.temperature, candidates=given.candidates,
        )  # fmt: skip
        for row, figures in zip(rows, gains(tokens, counts), strict=True):
            row["workloads"][name] = figures
            print(
                name,
                row["head"],
                figures["tokens_a_round"],
                [f"{100 * gain:+.1f} %" for gain in figures["gain"]],
                flush=True,
            )
    document = {
        "columns": ["chain", *(f"{n} nodes" for n in BUDGETS)],
        "steps": trainer.step,
        "seconds": trainer.elapsed,
    }
    write_text(given.out, json.dumps(document | {"heads": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
