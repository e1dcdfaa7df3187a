"""Fits path corrections: pair counts, and a conditional logit over the candidates behind true tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import plain
from ddsim.errors import DdsimError
from ddsim.trace.calibration import rows_of
from ddsim.trace.path import HUNDREDTHS, WIDTH, PathCorrection, kept_candidates
from ddsim.trace.path_kernels import FEATURES, likelihood, samples
from ddsim.trace.trace import Trace

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress

PRIOR = 0.5
"""Expected and observed counts that every pair is given, k."""


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
    """[n, WIDTH] number of the pair in ``keys``, -1 for no candidate."""
    keys: NDArray[np.int64]
    """[U] token before * 2^32 + candidate, ascending."""
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
    keys, number = np.unique(pairs[here], return_inverse=True)
    pairs[here] = number
    expected = np.where(here, np.exp(x[:, :WIDTH, FEATURES].astype(np.float64)), 0.0)
    return Samples(rows, pairs, keys, x, expected, trace.horizon, trace.max_budget)


def fit_path(data: Samples, use: NDArray[np.bool_]) -> PathCorrection:
    """A correction from some of the rows (``use`` [n])."""
    rows, pairs, x = data.rows[use], data.pairs[use], data.x[use]
    if not len(rows):
        raise DdsimError("calibration: no position of the training prompts has a true token after it")
    expected, observed = data.expected[use], data.observed[use]
    here = pairs >= 0
    flat = pairs[here]
    sums = [np.bincount(flat, values[here], len(data.keys)) for values in (expected, observed)]
    # What a prompt adds itself is left out of the counts that it is fitted with.
    own, number = np.unique(np.repeat(rows[:, 0], here.sum(1)) * len(data.keys) + flat, return_inverse=True)
    others = [
        total[flat] - np.bincount(number, values[here], len(own))[number]
        for total, values in zip(sums, (expected, observed), strict=True)
    ]
    ratios = np.zeros(pairs.shape)
    ratios[here] = _hundredths(*others) / HUNDREDTHS
    x[:, :WIDTH, 1] = ratios
    weights, powers, rests = fit_logit(x, pairs, rows, data.horizon)
    table = _hundredths(*sums)
    kept = np.abs(table) >= LOWEST
    before, after = (part.astype(np.int32) for part in (data.keys[kept] >> 32, data.keys[kept] & 0xFFFFFFFF))
    return PathCorrection(weights, powers, rests, before, after, table[kept].astype(np.int32), data.max_budget)


def _hundredths(expected: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-ratios of observed and expected counts, in whole hundredths."""
    ratio = np.log((np.maximum(observed, 0) + PRIOR) / (np.maximum(expected, 0) + PRIOR))
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
