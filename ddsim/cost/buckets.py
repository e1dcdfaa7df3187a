"""Token counts to pad to: chosen from what passes cost that aren't padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError

FloatArray = NDArray[np.float64]


def unpadded_curve(profile: Profile, batch: int | None = None) -> tuple[NDArray[np.int64], FloatArray]:
    """Sizes whose passes are not padded, and their median seconds [sizes, contexts], of a profile at one batch (None: its smallest).

    Where the profile names buckets, these are the buckets that were measured; otherwise all sizes. Only sizes that were measured
    at every context count.

    Raises
    ------
    DdsimError
        There are fewer than 2 such sizes.
    """
    points = profile.points()
    points = points.take(points.batch == (points.batch.min() if batch is None else batch))
    contexts, sizes = np.unique(points.context), np.unique(points.tokens)
    if profile.buckets is not None:
        sizes = np.intersect1d(sizes, profile.buckets)
    table = np.full((len(sizes), len(contexts)), np.nan)
    there = np.isin(points.tokens, sizes)
    at = np.searchsorted(sizes, points.tokens[there]), np.searchsorted(contexts, points.context[there])
    table[at] = points.seconds[there]
    whole = np.isfinite(table).all(axis=1)
    if whole.sum() < 2:
        raise DdsimError("choose buckets: the profile holds fewer than 2 sizes that aren't padded at every context")
    return sizes[whole], table[whole]


def choose_buckets(
    tokens: ArrayLike,
    seconds: ArrayLike,
    count: int,
    *,
    beside: float = 0.0,
    weights: ArrayLike | None = None,
    worst: bool = False,
) -> tuple[int, ...]:
    """The sizes to pad to that lose least, at most ``count`` of them.

    A size costs its bucket, the next larger one that was chosen. What that loses is a share of the round: the pass's seconds beyond
    its own, over its own and ``beside``. A pass may be padded anyway, so no size counts as dearer than a larger one.

    Parameters
    ----------
    tokens : int array_like [m], ascending
        Sizes to choose from, and to judge by.
    seconds : array_like [m] or [m, contexts]
        Of passes that aren't padded; losses at several contexts are averaged (with ``worst``, the largest counts).
    count : int
        The largest size is always one of them.
    beside : float
        Seconds of a round that don't depend on the size: drafting and the host.
    weights : array_like [m], optional
        How often each size is asked for. Default: each octave as often as another.
    worst : bool
        Least largest loss, instead of least mean loss.

    Returns
    -------
    tuple of int
        Ascending; no more than are needed for the least loss.

    Raises
    ------
    DdsimError
        Lengths differ, sizes don't ascend, or a number is out of range.

    Examples
    --------
    >>> choose_buckets([16, 32, 48, 64, 128], [1.0, 1.0, 1.5, 1.5, 1.6], 2)
    (32, 128)
    """
    x, y, w = _checked(tokens, seconds, count, beside, weights)
    m = len(x)
    loss = _losses(y, beside, w, worst)
    best, last, totals = loss[0], [], [loss[0, -1]]  # of the sizes to j in one run
    for _ in range(1, min(count, m)):
        # The runs before end at i, the last one begins after it.
        joined = np.maximum(best[:-1, None], loss[1:]) if worst else best[:-1, None] + loss[1:]
        last.append(joined.argmin(0))
        best = joined.min(0)
        totals.append(best[-1])
    runs = next(k for k, total in enumerate(totals) if total <= min(totals) + 1e-12)
    ends = [m - 1]
    for ended in reversed(last[:runs]):
        ends.append(int(ended[ends[-1]]))
    return tuple(int(x[j]) for j in reversed(ends))


def bucket_loss(
    tokens: ArrayLike,
    seconds: ArrayLike,
    buckets: Sequence[int],
    *,
    beside: float = 0.0,
    weights: ArrayLike | None = None,
    worst: bool = False,
) -> float:
    """What `choose_buckets` minimises, of given buckets; those that aren't among the sizes cost the next larger size.

    Examples
    --------
    >>> bucket_loss([16, 32, 64], [1.0, 1.0, 1.5], [64], worst=True)
    0.5
    """
    x, y, w = _checked(tokens, seconds, 1, beside, weights)
    ends = np.array(sorted(set(buckets)), np.float64)
    if not len(ends) or ends[-1] < x[-1]:
        raise DdsimError(f"buckets: the largest must hold {x[-1]:g} tokens")
    padded = ends[np.searchsorted(ends, x)]
    own = y[np.minimum(np.searchsorted(x, padded), len(x) - 1)]
    losses = (own - y) / (y + beside)
    return float(losses.max() if worst else (w[:, None] * losses).sum() / w.sum() / y.shape[1])


def _losses(y: FloatArray, beside: float, w: FloatArray, worst: bool) -> FloatArray:
    """[i, j]: what a run of the sizes i to j loses with j as its bucket; infinite for i > j."""
    m, contexts = y.shape
    if worst:  # no size costs more than a larger one, so the first of a run loses most
        found = ((y[None, :, :] - y[:, None, :]) / (y[:, None, :] + beside)).max(-1)
    else:
        share = w[:, None] / (w.sum() * contexts) / (y + beside)
        ones, own = (np.vstack([np.zeros(contexts), np.cumsum(v, axis=0)]) for v in (share, share * y))
        to = np.arange(1, m + 1)
        weight, spent = (v[None, to] - v[:m, None] for v in (ones, own))  # over the sizes i to j
        found = np.maximum(0.0, (y[None, :, :] * weight - spent).sum(-1))
    return np.where(np.arange(m)[:, None] <= np.arange(m), found, np.inf)


def _checked(
    tokens: ArrayLike, seconds: ArrayLike, count: int, beside: float, weights: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sizes [m], seconds [m, contexts] that don't fall with the size, and weights [m]."""
    x, y = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 1 or not len(x) or y.ndim != 2 or len(y) != len(x) or not y.shape[1]:
        raise DdsimError(f"buckets: needs as many seconds as sizes, has shapes {x.shape} and {np.shape(seconds)}")
    if not (np.isfinite(x).all() and x[0] >= 1 and (np.diff(x) > 0).all()):
        raise DdsimError("buckets: sizes must ascend from 1 or more, each once")
    if not (np.isfinite(y).all() and (y > 0).all() and np.isfinite(beside) and beside >= 0):
        raise DdsimError("buckets: seconds must be finite and above 0")
    if count < 1:
        raise DdsimError(f"buckets: count {count}: must be at least 1")
    w = np.diff(np.log1p(np.concatenate([[0.0], x]))) if weights is None else np.asarray(weights, np.float64)
    if w.shape != x.shape or not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise DdsimError("buckets: weights must be as many as sizes, none below 0 and some above")
    return x, np.minimum.accumulate(y[::-1], axis=0)[::-1], w
