"""Fits path corrections: pair counts, and a conditional logit over the candidates behind true tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import plain
from ddsim.errors import DdsimError
from ddsim.trace.calibration import rows_of
from ddsim.trace.path import WIDTH, PathCorrection, kept_candidates
from ddsim.trace.path_kernels import FEATURES, HUNDREDTHS, likelihood, samples
from ddsim.trace.trace import Trace

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress

PRIORS = 0.5, 1.0
"""Expected and observed counts that every pair is given, k: among all rows, and among those off the best path."""


COLUMNS = ((1, 2), (3, 4), (None, 5))
"""Features of the log-ratios of token and token, token and class, class and class: of all rows, of those off the best path."""


RIDGE = 1.0
"""Of the squares of all parameters, against the sum of weighted log-likelihoods."""


DEPTHS = 7.0
"""Depths over which a row's weight falls by e: exp(-(d - 1) / 7)."""


LEAST = np.log(1e-3)
"""Log-probability of the true path, by its marginals, below which deeper rows aren't fitted on."""


MOST = 200_000
"""Rows fitted on, about; of longer recordings an even share of the positions is taken."""


LOWEST = 10
"""Hundredths of a log-ratio below which a pair is not kept."""


@dataclass
class Samples:
    """Rows behind true tokens, n of them."""

    rows: NDArray[np.int64]
    """[n, 3] group (its own counts are left out), depth from 0, place of the true token (WIDTH: unlisted)."""
    pairs: NDArray[np.int64]
    """[3, n, WIDTH] numbers in ``keys``, of token and token, token and class, class and class; -1 for no candidate."""
    keys: NDArray[np.int64]
    """[U, 2] pairs of tokens and classes (-1 - k for class k), ascending."""
    classes: NDArray[np.int32]
    """[V] class of each token, 0 for unknown ones."""
    x: NDArray[np.float32]
    """[n, WIDTH + 1, FEATURES + 2]"""
    expected: NDArray[np.float64]
    """[n, WIDTH] probability of each candidate by its marginal."""
    horizon: int
    max_budget: int

    @property
    def observed(self) -> NDArray[np.bool_]:
        """[n, WIDTH] which candidate is the true token."""
        return np.arange(WIDTH) == self.rows[:, 2:]


def gathered(trace: Trace, groups: NDArray[np.int64], progress: Progress | None = None) -> Samples:
    """The rows of a trace to fit on; ``groups`` [S]: the prompt that each sequence is of."""
    stride = max(1, int(np.ceil(len(trace) * 2.5 / MOST)))
    parts = []
    done = 0
    for block in trace.blocks():
        proposal = rows_of(block.proposal, "path")
        kept = kept_candidates(proposal.logprobs, proposal.offsets, trace.horizon, trace.max_budget)
        chosen = np.arange(len(block)) % stride == 0
        tokens = plain(block.tokens, np.int32)
        vocab = int(max(tokens.max(initial=0), proposal.token_ids.max(initial=0))) + 1
        given = (
            plain(proposal.token_ids, np.int32), plain(proposal.logprobs, np.float32), plain(proposal.offsets, np.int64),
            plain(kept, np.int32), tokens, plain(block.starts, np.int64), vocab, WIDTH, LEAST, block.first_sequence,
        )  # fmt: skip
        none = np.empty((0, 3), np.int64), np.empty((0, WIDTH), np.int64)
        n = samples(*given, *none, np.empty((0, WIDTH + 1, FEATURES + 2), np.float32), chosen)
        rows, pairs = np.empty((n, 3), np.int64), np.full((n, WIDTH), -1, np.int64)
        x = np.zeros((n, WIDTH + 1, FEATURES + 2), np.float32)
        samples(*given, rows, pairs, x, chosen)
        here = pairs >= 0
        pairs[here] = (pairs[here] // vocab << 32) + pairs[here] % vocab
        parts.append((rows, pairs, x))
        done += len(block)
        if progress is not None:
            progress(done, len(trace))
    rows, pairs, x = (np.concatenate([part[i] for part in parts]) for i in range(3))
    rows[:, 0] = groups[rows[:, 0]]
    here = pairs >= 0
    tokens = np.stack([pairs[here] >> 32, pairs[here] & 0xFFFFFFFF], axis=1)
    classes = token_classes(trace, np.unique(tokens))
    count = int(classes.max(initial=0)) + 1
    before, after = tokens.T
    of_before, of_after = (-1 - classes[part] for part in (before, after))
    flat = [(a + count << 32) + b + count for a, b in ((before, after), (before, of_after), (of_before, of_after))]
    keys, number = np.unique(np.concatenate(flat), return_inverse=True)
    numbered = np.full((3, *pairs.shape), -1)
    numbered[:, here] = number.reshape(3, -1)
    expected = np.where(here, np.exp(x[:, :WIDTH, FEATURES].astype(np.float64)), 0.0)
    both = np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1) - count
    return Samples(rows, numbered, both, np.trim_zeros(classes, "b"), x, expected, trace.horizon, trace.max_budget)


def token_classes(trace: Trace, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
    """[V] class of each token from 1, by how its text starts; 0 for tokens that aren't given, or have no text."""
    starts: dict[str, int] = {}
    classes = np.zeros(int(tokens.max(initial=-1)) + 1, np.int32)
    for token in tokens.tolist():
        text = trace.text([token])
        if text and text != f"<{token}>":
            classes[token] = starts.setdefault(_start(text), len(starts) + 1)
    return classes


def _start(text: str) -> str:
    """What tokens of one class have in common."""
    word = text.strip()
    if not word:
        return "\n" if "\n" in text else " "
    sign = word[0]
    kind = (
        "0" if sign.isdigit() else "A" if sign.isupper() else "a" if sign.isalpha() else sign if sign.isascii() else "?"
    )
    return " " * text[0].isspace() + kind


def fit_path(data: Samples, use: NDArray[np.bool_]) -> PathCorrection:
    """A correction from some of the rows (``use`` [n])."""
    rows, x, pairs = data.rows[use], data.x[use], data.pairs[:, use]
    if not len(rows):
        raise DdsimError("calibration: no position of the training prompts has a true token after it")
    expected, observed, size = data.expected[use], data.observed[use], len(data.keys)
    here, off = pairs[0] >= 0, x[:, WIDTH, FEATURES - 1] > 0
    table = np.zeros((size, 2))
    for numbers, columns in zip(pairs, COLUMNS, strict=True):
        for side, (column, prior, chosen) in enumerate(zip(columns, PRIORS, (off | True, off), strict=True)):
            if column is None:
                continue
            there = here & chosen[:, None]
            flat = numbers[there]
            sums = [np.bincount(flat, values[there], size) for values in (expected, observed)]
            # What a prompt adds itself is left out of the counts that it is fitted with.
            own, at = np.unique(np.repeat(rows[:, 0], there.sum(1)) * size + flat, return_inverse=True)
            others = [
                total[flat] - np.bincount(at, values[there], len(own))[at]
                for total, values in zip(sums, (expected, observed), strict=True)
            ]
            ratios = np.zeros(there.shape)
            ratios[there] = _hundredths(others[0], others[1], prior) / HUNDREDTHS
            x[:, :WIDTH, column] = ratios
            table[:, side] += _hundredths(sums[0], sums[1], prior)  # 0 where the kind has no pair
    weights, powers, rests = fit_logit(x, pairs[0], rows, data.horizon)
    kept = np.abs(table).max(axis=1) >= LOWEST
    before, after = (np.ascontiguousarray(part, np.int32) for part in data.keys[kept].T)
    return PathCorrection(
        weights, powers, rests, data.classes, before, after, table[kept].astype(np.int32), data.max_budget
    )


def _hundredths(expected: NDArray[Any], observed: NDArray[Any], prior: float) -> NDArray[np.float64]:
    """Log-ratios of observed and expected counts, in whole hundredths."""
    ratio = np.log((np.maximum(observed, 0) + prior) / (np.maximum(expected, 0) + prior))
    return np.round(ratio * HUNDREDTHS)


def fit_logit(
    x: NDArray[np.float32], pairs: NDArray[np.int64], rows: NDArray[np.int64], horizon: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weights, powers and rests under which the true tokens are likeliest, by Newton's method: the loss is convex."""
    weight = np.exp(-rows[:, 1] / DEPTHS)
    size = FEATURES + 2 * horizon
    # Where the parameters of a depth stand among all: the weights, then its power and its rest.
    at = np.array([[*range(FEATURES), FEATURES + d, FEATURES + horizon + d] for d in range(horizon)])

    def terms(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        loss, gradient = np.zeros(1), np.zeros((horizon, FEATURES + 2))
        hessian = np.zeros((horizon, FEATURES + 2, FEATURES + 2))
        powers = np.ascontiguousarray(theta[FEATURES:].reshape(2, horizon).T)
        likelihood(x, pairs, rows, weight, theta[:FEATURES].copy(), powers, loss, gradient, hessian)
        slope, curve = 2 * RIDGE * theta, 2 * RIDGE * np.eye(size)
        np.add.at(slope, at, gradient)
        whole = np.tril(hessian) + np.tril(hessian, -1).transpose(0, 2, 1)
        np.add.at(curve, (at[:, :, None], at[:, None, :]), whole)
        return float(loss[0]) + RIDGE * float(theta @ theta), slope, curve

    theta = np.zeros(size)
    loss, slope, curve = terms(theta)
    for _ in range(50):
        step = np.linalg.solve(curve, slope)
        if float(slope @ step) < 1e-9 * len(rows):
            break
        share = 1.0
        while True:
            found = terms(theta - share * step)
            if found[0] <= loss or share < 1e-6:
                break
            share /= 2
        theta = theta - share * step
        loss, slope, curve = found
    return theta[:FEATURES], 1 + theta[FEATURES : FEATURES + horizon], theta[FEATURES + horizon :]
