"""Heads that know the token before, one parent and one candidate at a time, on lists of float64 vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Vector = np.ndarray


def unit(x: Vector) -> Vector:
    return x / math.sqrt(float((x * x).mean()) + 1e-6)


def silu(x: Vector) -> Vector:
    return x / (1 + np.exp(-x))


def log_softmax(x: Vector) -> Vector:
    return x - x.max() - math.log(float(np.exp(x - x.max()).sum()))


def change(
    head: Any, w: dict[str, Vector], hidden: Vector, depth: int, parent: int, likely: list[float], embedding: Vector
) -> tuple[Vector, Vector]:
    """What a head adds to the hidden state of a depth behind a parent (nothing with tables), and its inner values.

    ``hidden`` is [L, hidden]; ``likely`` the parent's log-probability at each depth of the window.
    """
    a = w["previous.table"][parent] if head.tables else w["previous.weight"] @ unit(embedding[parent])
    near = [
        hidden[d - 1] if 1 <= d <= len(hidden) else np.zeros(hidden.shape[1])
        for d in range(depth - head.reach, depth + head.reach + 1)
    ]
    if head.form == "static":
        inner = a
    else:
        b = w["hidden.weight"] @ np.concatenate([unit(h) for h in near]) + w["bias"]
        if head.reach:
            a = a + w["likely.weight"] @ np.array([1 + x / 20 for x in likely] + [math.exp(x) for x in likely])
        inner = silu(a + b) if head.form == "gated" else a / (1 + np.exp(-b))
    if head.tables:
        return np.zeros(hidden.shape[1]), inner
    added = w["out.weight"] @ inner
    if head.reach and head.form != "static":
        for share, h in zip(w["shift.weight"] @ inner, near, strict=True):
            added = added + 0.125 * share * h
    return added, inner


def lattice(
    head: Any, w: dict[str, Vector], hidden: Vector, embedding: Vector, target_head: Vector, count: int
) -> tuple[Vector, Vector, Vector]:
    """Candidates [L, K] of one block, log-probabilities of depth 1 [K], and of each candidate behind each before it [L - 1, K, K]."""
    horizon = len(hidden)
    logits = [target_head @ h for h in hidden]
    logprobs = [log_softmax(row) for row in logits]
    ids = [[int(x) for x in np.argsort(-row, kind="stable")[:count]] for row in logits]
    transitions = np.zeros((horizon - 1, count, count))
    for d in range(2, horizon + 1):
        for i, parent in enumerate(ids[d - 2]):
            window = range(d - 1 - head.reach, d + head.reach)
            likely = [max(-20.0, float(logprobs[t - 1][parent])) if 1 <= t <= horizon else -20.0 for t in window]
            added, inner = change(head, w, hidden, d, parent, likely, embedding)
            scores = []
            for x in ids[d - 1]:
                extra = w["out.table"][x] @ inner if head.tables else target_head[x] @ added
                scores.append(float(logits[d - 1][x] + extra))
            others = [math.exp(logits[d - 1][x]) for x in range(len(target_head)) if x not in ids[d - 1]]
            rest = math.log(sum(others)) + float(w["rest.weight"] @ inner)
            total = math.log(sum(math.exp(s) for s in scores) + math.exp(rest))
            transitions[d - 2, i] = [s - total for s in scores]
    return np.array(ids), logprobs[0][ids[0]], transitions
