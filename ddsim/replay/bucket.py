"""What one more bucket would bring a plan: a size to pad to between two that there are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.replay.bootstrap import ENOUGH, Interval, _Bootstrap, named_interval, percent, sure
from ddsim.replay.fixed import Fixed
from ddsim.replay.replay import _Replayer

TILE = 8
"""Sizes that are asked about are multiples of this, as engines' own are."""
LEAST = 0.001
"""Relative gain below which no bucket is worth a sentence of its own."""


@dataclass(frozen=True)
class Bucket:
    """The further bucket that would bring the most, its cost assumed to lie on the line between its neighbours'.

    Attributes
    ----------
    tokens, below, above : int
        Of the bucket, and of those around it.
    seconds : float
        Assumed seconds of a pass, at the trace's contexts.
    gain : (float, float, float)
        What the fixed budget that fills it gains over the best one now, both on all prompts: value, low, high.
    """

    tokens: int
    below: int
    above: int
    seconds: float
    gain: Interval

    def __str__(self) -> str:
        return self.said(ENOUGH)

    def said(self, prompts: int) -> str:
        """The bucket in words, its interval if that many prompts are enough for one."""
        if self.gain[0] < LEAST:
            return f"No further bucket would bring as much as {100 * LEAST:g} % over the best fixed budget now."
        return (
            f"A bucket at {self.tokens} tokens would let {self.tokens - 1} nodes cost {1e3 * self.seconds:.2f} ms (assumed: on the line "
            f"between {self.below} and {self.above} tokens): {percent(sure(self.gain, prompts))} over the best fixed budget now."
        )

    def to_json(self) -> dict[str, Any]:
        """As one JSON-able object."""
        return {
            "tokens": self.tokens, "nodes": self.tokens - 1, "between": [self.below, self.above], "seconds": self.seconds,
            "cost": "assumed on the line between its neighbours", "gain": named_interval(self.gain), "judged_on": "same prompts",
        }  # fmt: skip


def on_lines(seconds: Floats, buckets: NDArray[np.int64]) -> Floats:
    """Seconds by nodes [..., N + 1], each as if it filled a bucket of its own: on the line between the buckets around it.

    Passes of n nodes hold n + 1 tokens, and cost their bucket in ``seconds``. Up to the first bucket nothing changes.

    Examples
    --------
    >>> on_lines(np.array([1.0, 2.0, 2.0, 2.0, 4.0, 4.0]), np.array([1, 4, 8])).round(3).tolist()
    [1.0, 1.333, 1.667, 2.0, 2.5, 3.0]
    """
    tokens = np.arange(1, seconds.shape[-1] + 1)
    ends = buckets[: np.searchsorted(buckets, tokens[-1]) + 1]
    if len(ends) < 2:
        return seconds
    known = seconds[..., np.minimum(ends, tokens[-1]) - 1]  # the last bucket's cost is that of every size in it
    k = np.clip(np.searchsorted(ends, tokens), 1, len(ends) - 1)
    share = np.clip((tokens - ends[k - 1]) / (ends[k] - ends[k - 1]), 0.0, 1.0)
    return np.where(tokens < ends[0], seconds, known[..., k - 1] + share * (known[..., k] - known[..., k - 1]))


def further_bucket(replayed: _Replayer, draws: _Bootstrap) -> Bucket | None:
    """The bucket that would bring the most; None where passes aren't padded, or none lies between two that there are."""
    if replayed.cost.buckets is None:
        return None
    buckets, costs = np.array(replayed.cost.buckets, np.int64), replayed.costs
    nodes = np.arange(TILE, replayed.most + 2, TILE) - 1
    nodes = nodes[(nodes + 1 > buckets[0]) & (nodes + 1 < buckets[-1]) & ~np.isin(nodes + 1, buckets)]
    if not len(nodes):
        return None
    seconds = costs.seconds.copy()
    seconds[:, : replayed.most + 1] = on_lines(seconds[:, : replayed.most + 1], buckets)
    drawn = dataclasses.replace(costs, seconds=seconds)
    walked, now = Fixed.walked(replayed.positions, drawn, replayed.knots), replayed.fixed()
    n, best = int(nodes[walked.seconds[:, nodes].sum(0).argmin()]), now.best()[0]
    every = np.ones(len(replayed.positions.tokens), bool)
    value, spent = draws.seconds(
        np.column_stack([now.seconds[:, best], walked.seconds[:, n]]), np.stack([now.mix[best], walked.mix[n]]), every
    )
    gain, low, high = draws.intervals((value[:1], spent[:, :1]), (value[1:], spent[:, 1:]), every)[:, 0].tolist()
    weight = np.bincount(costs.row, minlength=len(costs.seconds)) / len(costs.row)
    passes = seconds[:, n] - (costs.seconds[:, 0] - costs.ar_seconds)
    k = int(np.searchsorted(buckets, n + 1))
    return Bucket(n + 1, int(buckets[k - 1]), int(buckets[k]), float(weight @ passes), (gain - 1, low - 1, high - 1))
