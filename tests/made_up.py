"""A made-up trace and profile that look like real ones: for figures, the report and notebooks' code."""

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
