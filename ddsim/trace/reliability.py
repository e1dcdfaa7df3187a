"""Reliability: how often nodes are right that the drafter calls so probable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ddsim.errors import DdsimError
from ddsim.trace.calibration import (
    Calibration,
    CrossCalibration,
    _blocks,
    _uncensored,
    calibrated_gains,
    calibrated_proposal,
)
from ddsim.trace.trace import Trace, check_trace

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress


@dataclass(frozen=True)
class Reliability:
    """Predicted against realised acceptance; each row has its count and a 95 % Wilson interval.

    Intervals treat outcomes as independent; those of neighbouring positions are not, so read them as a lower
    bound on doubt.
    """

    by_depth: pd.DataFrame
    """depth, count, predicted and realised probability that the best candidate is the true token, low, high; rows
    whose true path so far is in the tree of ``max_budget`` nodes."""
    by_probability: pd.DataFrame
    """bin edges of path probability (above, upto), count of nodes, predicted, realised, low, high."""
    by_budget: pd.DataFrame
    """budget, count of positions, predicted and realised acceptance length (root included), ratio."""


def reliability(
    trace: Trace, calibration: Calibration | CrossCalibration | None = None, *, progress: Progress | None = None
) -> Reliability:
    """Compare predicted with realised acceptance over a trace, optionally after a calibration.

    Parameters
    ----------
    trace : Trace
    calibration : Calibration or CrossCalibration, optional
    progress : callable, optional
        Called with (positions done, positions in all).

    Returns
    -------
    Reliability

    Raises
    ------
    DdsimError
        No position has a full horizon of truth.
    """
    check_trace("reliability", trace)
    horizon, most = trace.horizon, trace.max_budget
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 1, 17)])
    depth_sums = np.zeros((3, horizon))  # rows, predicted, realised
    node_sums = np.zeros((3, len(edges) - 1))
    predicted, realised, positions = np.zeros(most), np.zeros(most), 0
    for block in _blocks(trace, progress):
        use = _uncensored(block)
        if not use.any():
            continue
        rows = block.proposal if calibration is None else calibrated_proposal(block, calibration)
        truth = rows.true_paths(block.tokens, block.starts)
        gains, ranks, *_ = rows.drafts(truth, most)
        has = (rows.counts > 0) & use[:, None]
        has[:, 1:] &= ranks[:, :-1] <= most
        best = np.where(has, np.exp(rows.best()), 0.0)
        depth_sums += np.stack([has.sum(0), best.sum(0), (has & (truth == 0)).sum(0)])
        if calibration is not None:
            gains = calibrated_gains(block, gains, calibration)
        gains, ranks = gains[use], ranks[use]
        predicted += gains.sum(0, dtype=np.float64)
        hit = ranks[ranks <= most] - 1
        realised += np.bincount(hit, minlength=most)
        positions += int(use.sum())
        flat = gains[gains > 0]
        bins = np.clip(np.searchsorted(edges, flat, side="left") - 1, 0, len(edges) - 2)
        at = np.broadcast_to(np.arange(len(ranks))[:, None], ranks.shape)[ranks <= most]
        hits = gains[at, hit]
        hit_bins = np.clip(np.searchsorted(edges, hits, side="left") - 1, 0, len(edges) - 2)
        width = len(edges) - 1
        node_sums += np.stack(
            [
                np.bincount(bins, minlength=width),
                np.bincount(bins, flat, width),
                np.bincount(hit_bins, minlength=width),
            ]
        )
    if positions == 0:
        raise DdsimError("calibration: no position of these sequences has a full horizon of truth")
    budgets = np.array(sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= most} | {most}))
    forecast = 1 + np.cumsum(predicted)[budgets - 1] / positions
    outcome = 1 + np.cumsum(realised)[budgets - 1] / positions
    return Reliability(
        by_depth=_rates({"depth": np.arange(1, horizon + 1)}, depth_sums),
        by_probability=_rates({"above": edges[:-1], "upto": edges[1:]}, node_sums),
        by_budget=pd.DataFrame(
            {
                "budget": budgets,
                "count": positions,
                "predicted": forecast,
                "realised": outcome,
                "ratio": forecast / outcome,
            }
        ),
    )


def wilson(successes: ArrayLike, count: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's 95 % interval of a proportion; (0, 1) for no trials.

    Examples
    --------
    >>> [round(float(v), 3) for v in wilson(5, 10)]
    [0.237, 0.763]
    """
    z = 1.959963984540054
    n = np.asarray(count, np.float64)
    safe = np.maximum(n, 1)
    rate = np.asarray(successes, np.float64) / safe
    centre = (rate + z * z / (2 * safe)) / (1 + z * z / safe)
    half = z / (1 + z * z / safe) * np.sqrt(rate * (1 - rate) / safe + z * z / (4 * safe * safe))
    return np.where(n > 0, np.maximum(centre - half, 0), 0.0), np.where(n > 0, np.minimum(centre + half, 1), 1.0)


def _rates(labels: dict[str, NDArray[Any]], sums: NDArray[np.float64]) -> pd.DataFrame:
    count, predicted, realised = sums
    low, high = wilson(realised, count)
    safe = np.where(count > 0, count, np.nan)
    rates = {"predicted": predicted / safe, "realised": realised / safe, "low": low, "high": high}
    return pd.DataFrame(labels | {"count": count.astype(np.int64)} | rates)
