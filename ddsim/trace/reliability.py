"""Reliability: how often nodes are right that the drafter calls so probable."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import plain
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.trace.calibration import Calibration, CrossCalibration, _uncensored, calibrated_gains
from ddsim.trace.rounds import Positions, drafted, rounds_of
from ddsim.trace.shown import ShownReliability
from ddsim.trace.trace import Trace, check_trace

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress


EDGES = np.concatenate([[0.0], np.geomspace(1e-4, 1, 17)])
"""Of the bins of path probability."""


BRANCHES = ("best path", "off it", "behind the best", "behind the second", "behind the third", "behind others")
"""Where the token before stands, on the path of best candidates or off it, and by its rank."""


@dataclass(frozen=True, repr=False)
class Reliability(ShownReliability):
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
    by_branch: pd.DataFrame
    """branch, count, predicted and realised probability that the best candidate behind the true token before it is the true token,
    low, high; rows of depth 2 on whose true path so far is in the tree of ``max_budget`` nodes. Branches: on the path of best
    candidates, off it, and by the rank of the token before among those that follow the same path."""


def reliability(
    trace: Trace,
    calibration: Calibration | CrossCalibration | None = None,
    *,
    positions: Positions | None = None,
    progress: Progress | None = None,
) -> Reliability:
    """Compare predicted with realised acceptance over a trace, optionally after a calibration.

    Parameters
    ----------
    trace : Trace
    calibration : Calibration or CrossCalibration, optional
    positions : Positions, optional
        `ddsim.positions_of` the trace, with the calibration, where they are there already: no tree is built again.
    progress : callable, optional
        Called with (positions done, positions in all).

    Returns
    -------
    Reliability

    Raises
    ------
    DdsimError
        No position has a full horizon of truth.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(4), (40, 3)))[..., ::-1])
    >>> trace = Trace.from_arrays(rng.integers(0, 4, 40), np.tile(np.arange(4), (40, 3, 1)), rows, max_budget=8)
    >>> reliability(trace).by_budget[["budget", "predicted", "realised"]].round(2).values.tolist()[-1]
    [8.0, 2.76, 2.03]
    """
    check_trace("reliability", trace)
    nodes = _Nodes(trace.max_budget)
    depth_sums = np.zeros((3, trace.horizon))  # rows, predicted, realised
    branch_sums = np.zeros((3, len(BRANCHES)))
    for proposal, truth, block, _ in drafted(trace, calibration, positions, progress):
        best = proposal.best_after(truth)
        has = (best > -np.inf) & _uncensored(block)[:, None]
        has[:, 1:] &= np.asarray(block.ranks)[:, :-1] <= trace.max_budget
        best = np.where(has, np.exp(best), 0.0)
        if nodes.add(block):
            right = truth == 0
            depth_sums += np.stack([has.sum(0), best.sum(0), (has & right).sum(0)])
            for i, there in enumerate(_branches(truth)):
                chosen = has[:, 1:] & there
                branch_sums[:, i] += chosen.sum(), best[:, 1:][chosen].sum(), (chosen & right[:, 1:]).sum()
    by_budget = nodes.by_budget()
    return Reliability(
        by_depth=_rates({"depth": np.arange(1, trace.horizon + 1)}, depth_sums),
        by_probability=_rates({"above": EDGES[:-1], "upto": EDGES[1:]}, nodes.bins),
        by_budget=by_budget,
        by_branch=_rates({"branch": np.array(BRANCHES)}, branch_sums),
    )


def _branches(truth: NDArray[np.int32]) -> list[NDArray[np.bool_]]:
    """[P, L - 1] each: whether the true token before depths 2..L is on each of `BRANCHES`."""
    before = truth[:, :-1]
    best = np.cumsum(before != 0, axis=1) == 0
    return [best, ~best & (before >= 0), *(before == rank for rank in range(3)), before >= 3]


def lengths_by_budget(
    trace: Trace,
    calibration: Calibration | CrossCalibration | None,
    positions: Positions | None,
    progress: Progress | None,
) -> pd.DataFrame:
    """`Reliability.by_budget` alone; ``positions``, if they are there, are those of the trace as recorded."""
    nodes = _Nodes(trace.max_budget)
    if positions is None:
        for drafts in drafted(trace, calibration, progress=progress):
            nodes.add(drafts.rounds)
    else:
        for _, block in rounds_of(trace, positions, progress):
            gains = np.asarray(block.gains)
            if calibration is not None:
                gains = calibrated_gains(block, gains, calibration)
            nodes.add(dataclasses.replace(block, gains=gains))
    return nodes.by_budget()


class _Nodes:
    """Sums over the nodes of trees whose whole horizon of truth is known."""

    def __init__(self, most: int) -> None:
        self.bins = np.zeros((3, len(EDGES) - 1))
        """By path probability: nodes, their probabilities, accepted ones."""
        self.budgets = np.zeros((2, most))
        """By place in the tree: their probabilities, accepted ones."""
        self.positions = 0

    def add(self, block: Positions) -> bool:
        """Add a block, if it has such a position."""
        use = _uncensored(block)
        self.positions += int(use.sum())
        bins, budgets = np.zeros(self.bins.shape), np.zeros(self.budgets.shape)
        tables = plain(np.asarray(block.gains), np.float32), plain(np.asarray(block.ranks), np.int32)
        _add_nodes(*tables, use, EDGES, bins, budgets)
        self.bins += bins
        self.budgets += budgets
        return bool(use.any())

    def by_budget(self) -> pd.DataFrame:
        """Acceptance lengths of a few budgets."""
        if self.positions == 0:
            raise DdsimError("calibration: no position of these sequences has a full horizon of truth")
        most = self.budgets.shape[1]
        budgets = np.array(sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= most} | {most}))
        predicted, realised = 1 + np.cumsum(self.budgets, axis=1)[:, budgets - 1] / self.positions
        return pd.DataFrame(
            {
                "budget": budgets,
                "count": self.positions,
                "predicted": predicted,
                "realised": realised,
                "ratio": predicted / realised,
            }
        )


@njit(cache=True, nogil=True)
def _add_nodes(gains, ranks, use, edges, bins, budgets):  # type: ignore[no-untyped-def]
    """Add the positions in use; ``edges`` of the bins ascend, gains descend."""
    predicted, realised = budgets
    nodes, sums, accepted = bins
    most = gains.shape[1]
    for p in range(gains.shape[0]):
        if not use[p]:
            continue
        for i in range(most):
            predicted[i] += gains[p, i]
        b = len(nodes) - 1
        for i in range(most):
            if not gains[p, i] > 0:
                break
            while b > 0 and gains[p, i] <= edges[b]:
                b -= 1
            nodes[b] += 1
            sums[b] += gains[p, i]
        b = len(nodes) - 1
        for d in range(ranks.shape[1]):
            if ranks[p, d] > most:
                break
            i = ranks[p, d] - 1
            while b > 0 and gains[p, i] <= edges[b]:
                b -= 1
            realised[i] += 1
            accepted[b] += 1


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
