"""Prompts in, text out: models loaded by name, and answers as pieces of text while they are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ddsim.cost.model import open_cost
from ddsim.errors import DdsimError
from ddsim.policy.contract import Policy
from ddsim.policy.parse import policy_of
from ddsim.trace.calibration import Calibration
from ddsim_reference.decode.answers import Decoded
from ddsim_reference.decode.loop import Run
from ddsim_reference.engine.buckets import BUCKETS, check_buckets
from ddsim_reference.engine.engine import Engine
from ddsim_reference.limits import check_sampling
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target
from ddsim_reference.model.config import check_pair
from ddsim_reference.model.device import check_device, number_type
from ddsim_reference.model.workloads import Prompt, choose_prompts, encode_all

PROMPT_TOKENS = 1024
"""Tokens of a prompt that one pass takes, however small the trees: a first token waits for all of them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as text.

    Attributes
    ----------
    prompt : Prompt
    parts : list of (str, bool)
        Text of each token, and whether the drafter had proposed it. A token that ends within a character is held back and
        comes with the one that completes it.
    answer : Decoded or None
        The whole, once it is complete.
    """

    prompt: Prompt
    parts: list[tuple[str, bool]]
    answer: Decoded | None


def decode_prompts(
    *,
    target: str,
    drafter: str | None = None,
    prompts: Sequence[str] = (),
    text: Sequence[str] = (),
    policy: str | Policy = "DDTree:63",
    profile: str | None = None,
    calibration: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    limit: int | None = None,
    batch: int = 1,
    max_budget: int = 512,
    head: bool = True,
    fast: bool = False,
    buckets: Sequence[int] = BUCKETS,
) -> Iterator[Piece]:
    """Answer prompts with models loaded by name, piece by piece as they are decoded.

    Parameters
    ----------
    target, drafter : str
        As ``load_target`` and ``load_drafter`` take them; without a drafter only the policy AR works.
    prompts, text : sequence of str
        Workloads or JSONL files, and messages typed in.
    policy : str or Policy
        As ``parse_policy`` takes it.
    profile : str, optional
        Latency profile or saved cost model; policies that weigh gains against cost need it.
    calibration : str, optional
        File of a calibration.
    dtype : str, optional
        By default bfloat16 on a GPU and float32 elsewhere.
    limit : int, optional
        At most so many prompts of each workload.
    batch : int
        Requests side by side.
    max_budget : int
        Largest tree.
    head : bool
        Draft lattices if the drafter has a head; otherwise its marginals.
    fast, buckets : bool, sequence of int
        As `Engine` takes them; with ``fast`` texts may depend on what is drafted.

    Raises
    ------
    DdsimError
        Whatever is missing or doesn't fit, before the first piece.
    """
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch=batch)
    chosen = choose_prompts(prompts, limit)
    chosen += [Prompt(f"text-{i + 1}", "text", message) for i, message in enumerate(text)]
    if not chosen:
        raise DdsimError("no prompts: name a workload or a JSONL file, or give a text")
    rule = policy_of(policy)
    if rule.drafts and drafter is None:
        raise DdsimError(f"policy {rule.name}: needs a drafter; give one, or decode with AR")
    cost = None if profile is None else open_cost(profile)
    correction = None if calibration is None else Calibration.load(calibration)
    kind = ("bfloat16" if check_device(device).type == "cuda" else "float32") if dtype is None else dtype
    config, weights, tokenizer = load_target(target, dtype=number_type(kind), device=device)
    shape, drafter_weights, draft_head = None, None, None
    if drafter is not None and rule.drafts:
        shape, drafter_weights = load_drafter(drafter, dtype=number_type(kind), device=device, target=weights)
        check_pair(config, shape, drafter)
        draft_head = load_head(drafter, shape, dtype=number_type(kind), device=device) if head else None
    ids = encode_all(tokenizer, chosen, config, max_new_tokens)
    largest = max_budget if rule.fixed is None else max(rule.fixed, 0)
    largest = max(largest, 0 if shape is None else shape.horizon)
    longest = max(map(len, ids))
    pass_tokens = largest + batch if rule.fixed is None else (largest + 1) * batch
    engine = Engine(
        config, weights, shape, drafter_weights, draft_head, max_context=longest + max_new_tokens,
        max_tokens=max(pass_tokens, min(longest, PROMPT_TOKENS)), batch=batch, candidates=max(largest, max_budget),
        fast=fast, buckets=check_buckets(buckets),
    )  # fmt: skip
    run = Run(
        engine, ids, rule, cost, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        prompt_ids=[prompt.id for prompt in chosen], calibration=correction,
    )  # fmt: skip
    return pieces(run, chosen, tokenizer)


def pieces(run: Run, prompts: Sequence[Prompt], tokenizer: Any) -> Iterator[Piece]:
    shown = [("", 0) for _ in prompts]  # text of the tokens since the last whole character, and where they begin
    for event in run.events():
        tokens = run.answers[event.index].tokens
        before, begin = shown[event.index]
        parts = []
        for i in range(len(event.tokens)):
            end = len(tokens) - len(event.tokens) + i + 1
            now = tokenizer.decode(tokens[begin:end])
            whole = not now.endswith("\ufffd")
            parts.append((now[len(before) :] if whole else "", i < event.accepted))
            if whole:
                # One token stays as what comes before the next: some tokenizers strip a text's first space.
                begin = max(end - 1, 0)
                before = tokenizer.decode(tokens[begin:end])
                if before.endswith("\ufffd"):
                    begin, before = end, ""
        shown[event.index] = before, begin
        yield Piece(prompts[event.index], parts, run.answers[event.index] if event.done else None)
