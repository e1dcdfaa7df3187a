"""Made-up traces and profiles that look like real ones: easy and hard stretches, marginals that flatten with depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddsim.cost.profile import DraftSample, HostSample, Profile, VerifySample
from ddsim.trace.trace import Trace, open_trace
from ddsim.trace.writer import write_pieces

WORDS = (
    " return", " if", " else", ":", "\n", "\n   ", "\n       ", " for", " in", " range", "(", ")", "[", "]", " =", " ==",
    " +", " -", " x", " y", " n", " i", " result", " numbers", " sorted", ".append", " def", " None", " True", " False",
    "_", "0", "1", "2", ",", " and", " not", " len", " list", " max", " min", " sum", " abs", "->", " int", " str", '"',
    '"""', " #", " the", " of", " a", " is", " to", " Return", " value", " float", " element", " index", " while", "$",
    " threshold", " distance", " enumerate",
)  # fmt: skip


def trace(
    sequences: int = 24,
    length: int = 60,
    horizon: int = 15,
    max_budget: int = 64,
    seed: int = 0,
    workloads: Sequence[str] = ("chat", "code"),
    prompt: str = "p",
    origin: str = "made up",
) -> Trace:
    """A trace in memory whose marginals are sharp near the root, flatter with depth, and a bit too unsure."""
    rng = np.random.default_rng(seed)
    vocab = len(WORDS)
    logits = np.log(np.linspace(1, 0.01, vocab))  # a token's own frequency
    tokens, ids, values, names = [], [], [], []
    for s in range(sequences):
        x = rng.integers(0, vocab, length)
        hard = rng.gamma(2.0, 0.5, length)[:, None] + 0.12 * np.arange(horizon)  # difficulty [T, L]
        score = np.tile(logits, (length, horizon, 1)) + rng.gumbel(size=(length, horizon, vocab)) * 1.2
        future = np.minimum(np.arange(length)[:, None] + 1 + np.arange(horizon), length - 1)
        rows, cols = np.indices((length, horizon))
        score[rows, cols, x[future]] += 7.5 - 2.2 * hard * rng.random((length, horizon)) * 2
        score *= 0.85
        logprobs = score - np.log(np.exp(score).sum(-1, keepdims=True))
        order = np.argsort(-logprobs, -1)[..., :max_budget]
        tokens.append(x)
        ids.append(order)
        values.append(np.take_along_axis(logprobs, order, -1).astype(np.float32) - 1e-6)
        names.append(workloads[s % len(workloads)])
    return Trace.from_arrays(
        tokens, ids, values, workload=names, prompt_id=[f"{prompt}{s}" for s in range(sequences)],
        context0=[100 + 20 * s for s in range(sequences)], max_budget=max_budget, vocab_size=vocab,
        provenance={"target": origin, "drafter": origin},
    )  # fmt: skip


def saved(folder: Path, **changes: Any) -> Trace:
    """The same trace on disk, with the text of its tokens."""
    trace(**changes).save(folder)
    write_pieces(folder, dict(enumerate(WORDS)))
    return open_trace(folder)


def made_trace(
    seed: int = 0,
    *,
    workloads: tuple[tuple[str, float], ...] = (("code", 1.4), ("chat", 0.2)),
    prompts: int = 12,
    length: int = 80,
    horizon: int = 6,
    candidates: int = 24,
    max_budget: int = 64,
    sharper: float = 1.0,
    context0: int = 100,
    temperatures: tuple[float, ...] = (0.0,),
) -> Trace:
    """A trace of ``prompts`` per workload and temperature, biased by a known power: for whatever is checked against a truth.

    Depth d at a position has a distribution over ``candidates`` tokens, flatter where the stretch is hard and with depth. The
    true token is drawn from it raised to the power ``sharper``: 1 is a calibrated drafter as far as marginals go.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[object]] = {key: [] for key in ("x", "ids", "logprobs", "workload", "prompt_id", "t")}
    for workload, ease in workloads:
        for prompt in range(prompts):
            for temperature in temperatures:
                total = length + horizon
                drift = np.cumsum(rng.normal(0, 0.3, total)) * 0.5
                scale = np.exp(0.5 * (ease + drift - drift.mean()).clip(-2, 3)) * 1.2
                logits = rng.normal(size=(total, candidates)) * scale[:, None]
                order = np.stack([rng.permutation(candidates) for _ in range(total)])
                marginals = np.stack([logits[1 + d : 1 + d + length] / (1 + 0.08 * d) for d in range(horizon)], 1)
                marginals -= np.log(np.exp(marginals).sum(-1, keepdims=True))
                sharp = logits[:length] * sharper
                chance = np.exp(sharp - sharp.max(-1, keepdims=True)).cumsum(-1)
                drawn = (chance > rng.random((length, 1)) * chance[:, -1:]).argmax(-1)
                x = order[np.arange(length), drawn]
                names = np.stack([order[1 + d : 1 + d + length] for d in range(horizon)], 1)
                best = np.argsort(-marginals, -1, kind="stable")
                columns["x"].append(x)
                columns["ids"].append(np.take_along_axis(names, best, -1))
                columns["logprobs"].append(np.take_along_axis(marginals, best, -1))
                columns["workload"].append(workload)
                columns["prompt_id"].append(f"{workload}/{prompt}")
                columns["t"].append(temperature)
    return Trace.from_arrays(
        columns["x"],
        columns["ids"],
        columns["logprobs"],
        workload=columns["workload"],  # type: ignore[arg-type]
        prompt_id=columns["prompt_id"],  # type: ignore[arg-type]
        temperature=columns["t"],  # type: ignore[arg-type]
        context0=context0,
        max_budget=max_budget,
        vocab_size=candidates,
        provenance={"target": "made up", "drafter": "made up"},
    )


def seconds(tokens: int, context: int, batch: int = 1) -> float:
    """What a target of 8 billion parameters might take, in buckets."""
    buckets = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096]
    padded = next(b for b in buckets if b >= tokens)
    return 0.0005 + ((0.0055 + 3e-7 * context * batch) ** 4 + (1.5e-4 * padded + 1e-10 * padded * context) ** 4) ** 0.25


def profile(contexts: tuple[int, ...] = (64, 512, 1024), batches: tuple[int, ...] = (1,), seed: int = 1) -> Profile:
    """Its profile: 20 repeats with 1 % noise."""
    rng = np.random.default_rng(seed)
    counts = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512]
    verify = [
        VerifySample(t * b, c, b, tuple(float(s) for s in seconds(t * b, c, b) * rng.lognormal(0, 0.01, 20)))
        for b in batches
        for c in contexts
        for t in counts
        if t * b <= 4096
    ]
    draft = [
        DraftSample(c, b, tuple((0.0011 * rng.lognormal(0, 0.01, 20)).tolist())) for b in batches for c in contexts
    ]
    host = [HostSample(tuple((0.0002 * rng.lognormal(0, 0.05, 20)).tolist()), b) for b in batches]
    return Profile(verify, draft, host, {"device": "made up", "target": "8B-like"})
