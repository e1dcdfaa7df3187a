"""What engines' rules carry from round to round, as one array of numbers, and how a round changes it.

A rule's `Decision.start` is the array before the first round. `ddsim.policy.batch.decide` reads it, `ddsim.policy.batch.learn` changes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddsim.arrays import Floats
from ddsim.jit import njit
from ddsim.policy.choose import LONGEST

# --- K by the number of requests --------------------------------------------------------------------------------------


def schedule_start(ranges: Sequence[tuple[int, int, int]]) -> Floats:
    """Ranges of (first, last, K) in order: the first number of requests of each, and its K.

    Examples
    --------
    >>> scheduled(schedule_start([(1, 4, 15), (9, 16, 7)]), 8)
    15
    """
    return np.array([[first, k] for first, _, k in ranges], np.float64).reshape(-1)


@njit(cache=True, nogil=True)
def scheduled(state, requests):  # type: ignore[no-untyped-def]
    """K for a number of requests: that of the last range that begins no later."""
    k = 0
    for i in range(0, len(state), 2):
        if state[i] <= requests:
            k = int(state[i + 1])
    return k


# --- K by a moving average of accepted drafts -------------------------------------------------------------------------

FROM, ALPHA, WARMUP, INTERVAL, UP, DOWN, OPTIONS, AT, MEAN, SEEN = range(10)
"""Of a slot: requests it begins from, its settings, how many Ks it can choose among, which of them is chosen, the moving average and the rounds so far."""

MOST_OPTIONS = 16
SLOT = SEEN + 1 + MOST_OPTIONS


def steps_start(
    slots: Sequence[tuple[int, Sequence[int], float]], first: int, alpha: float, warmup: int, interval: int, up: float
) -> Floats:
    """Slots of (requests from which it holds, Ks ascending, down hysteresis): each at K of ``first`` if it has it, else its middle one."""
    state = np.zeros((len(slots), SLOT))
    for slot, (begins, ks, down) in zip(state, slots, strict=True):
        at = list(ks).index(first) if first in ks else len(ks) // 2
        slot[: SEEN + 1] = begins, alpha, warmup, interval, up, down, len(ks), at, ks[at] - 1, 0
        slot[SEEN + 1 : SEEN + 1 + len(ks)] = ks
    return state.reshape(-1)


@njit(cache=True, nogil=True)
def _slot(state, requests):  # type: ignore[no-untyped-def]
    """Where the slot of a number of requests begins: the last that begins no later, else the first."""
    found = 0
    for i in range(0, len(state), SLOT):
        if state[i + FROM] <= requests:
            found = i
    return found


@njit(cache=True, nogil=True)
def steps(state, requests):  # type: ignore[no-untyped-def]
    """K of the next round of so many requests."""
    i = _slot(state, requests)
    return int(state[i + SEEN + 1 + int(state[i + AT])])


@njit(cache=True, nogil=True)
def tried(state, accepted):  # type: ignore[no-untyped-def]
    """Tell the slot of a round's requests how many drafted tokens each ``accepted``; now and then it chooses another K."""
    i = _slot(state, len(accepted))
    options = state[i + SEEN + 1 : i + SLOT]
    at, last = int(state[i + AT]), int(state[i + OPTIONS]) - 1
    if options[at] > 0:
        state[i + MEAN] = (1 - state[i + ALPHA]) * state[i + MEAN] + state[i + ALPHA] * accepted.mean()
    state[i + SEEN] += 1
    since = int(state[i + SEEN] - state[i + WARMUP])
    if since <= 0 or since % int(state[i + INTERVAL]) != 0:
        return
    mean = state[i + MEAN]
    if options[at] == 0:  # what isn't drafted teaches nothing, so it tries again
        at = min(at + 1, last)
        if options[at] > 0 and mean < 0:
            state[i + MEAN] = options[at] - 1
    else:
        begun = at
        while at > 0 and mean <= max(options[at - 1], 1.0) - 0.5 + state[i + DOWN]:
            at -= 1
        while at >= begun and at < last and mean > options[at] - 0.5 + state[i + UP]:
            at += 1
    state[i + AT] = at


# --- how likely drafted tokens are accepted ---------------------------------------------------------------------------

LAG, EPS, ESTIMATES, REFIT, WARM, DAMPING, RIDGE, ROUNDS, REFITS, SLOPE, SLOPE_BEFORE, CURVATURE, PULL = range(13)
"""Settings of what is `LAGGED`: rounds that its budget looks back, the least path probability that counts, whether it estimates, and how that is fitted; then
rounds since the last fit, fits so far, the slope now and as it was in the last round, and of this fit the slope's curvature and gradient."""

BIAS, BIAS_BEFORE, COUPLING, WEIGHT, RESIDUAL, COUNT = (PULL + 1 + i * LONGEST for i in range(6))
"""Where arrays by depth begin: the biases now and as they were in the last round, and of this fit its sums."""

SURE = 1e-6
"""A probability this close to 0 or 1 is as good as that: chains' probabilities are differences of float32 sums."""


def lagged_start(
    lag: int,
    *,
    eps: float = 0.0,
    estimates: bool = False,
    refit: int = 100,
    warm: int = 3,
    damping: float = 50.0,
    ridge: float = 1e-3,
    bias: float = 1.5,
) -> Floats:
    """What a rule knows before the first round whose budget looks ``lag`` rounds back; if it ``estimates``, that all tokens are as likely."""
    state = np.zeros(COUNT + LONGEST if estimates else BIAS)
    state[: RIDGE + 1] = lag, eps, estimates, refit, warm, damping, ridge
    state[BIAS:COUPLING] = bias
    return state


@njit(cache=True, nogil=True)
def is_warming_up(state):  # type: ignore[no-untyped-def]
    """Whether it doesn't trust its estimate yet, and verifies all that is drafted."""
    return state[ESTIMATES] > 0 and state[REFITS] < state[WARM]


@njit(cache=True, nogil=True)
def _log_odds(gains, p, k):  # type: ignore[no-untyped-def]
    """Log-odds of the chain's token k, given those before."""
    q = gains[p, k] / (gains[p, k - 1] if k else 1.0)
    q = min(max(q, SURE), 1.0 - SURE)
    return np.log(q / (1.0 - q))


@njit(cache=True, nogil=True)
def _likely(state, before, feature, k):  # type: ignore[no-untyped-def]
    """Estimate that token k is accepted if those before it are, by the coefficients now or as they were in the last round."""
    slope, bias = (state[SLOPE_BEFORE], state[BIAS_BEFORE + k]) if before else (state[SLOPE], state[BIAS + k])
    return 1.0 / (1.0 + np.exp(-slope * feature - bias))


@njit(cache=True, nogil=True)
def survivals(gains, p, state, before, out):  # type: ignore[no-untyped-def]
    """Probabilities that the first 1, 2, ... tokens of the chain at p are all accepted, as the rule believes; ``before``: as it did in the last round."""
    alive = 1.0
    for k in range(gains.shape[1]):
        if state[ESTIMATES] > 0:
            alive *= _likely(state, before, _log_odds(gains, p, k), k)
        else:
            alive = gains[p, k]
        out[k] = max(alive, 1e-30) if alive >= state[EPS] else 0.0


@njit(cache=True, nogil=True)
def fit(state, where, left, budgets, accepted, gains):  # type: ignore[no-untyped-def]
    """Add what a round says about the estimate; every so many rounds, take one damped Newton step of the logistic regression.

    Acceptance of token k, if those before it were accepted, is taken for 1 / (1 + exp(-slope · log-odds - bias_k)). The slope is common to all
    depths, so the biases are eliminated first.
    """
    if state[ESTIMATES] == 0:
        return
    depths = gains.shape[1]
    for b in range(len(where)):
        for k in range(min(accepted[b] + 1, budgets[b], left[b])):
            feature = _log_odds(gains, where[b], k)
            likely = _likely(state, False, feature, k)
            weight, residual = likely * (1.0 - likely), (1.0 if k < accepted[b] else 0.0) - likely
            state[CURVATURE] += weight * feature * feature
            state[PULL] += residual * feature
            state[COUPLING + k] += weight * feature
            state[WEIGHT + k] += weight
            state[RESIDUAL + k] += residual
            state[COUNT + k] += 1.0
    state[SLOPE_BEFORE] = state[SLOPE]
    state[BIAS_BEFORE : BIAS_BEFORE + depths] = state[BIAS : BIAS + depths]
    state[ROUNDS] += 1
    if state[ROUNDS] < state[REFIT]:
        return
    pull, curvature, count = state[PULL], state[CURVATURE] + state[RIDGE], 0.0
    for k in range(depths):
        weight = state[WEIGHT + k] + state[RIDGE]
        pull -= state[COUPLING + k] * state[RESIDUAL + k] / weight
        curvature -= state[COUPLING + k] ** 2 / weight
        count += state[COUNT + k]
    step = pull / curvature * count / (count + state[DAMPING])
    if state[SLOPE] + step < 0:  # a surer draft can't be accepted less often
        step = 0.0
    state[SLOPE] += step
    for k in range(depths):
        count = state[COUNT + k]
        own = (state[RESIDUAL + k] - state[COUPLING + k] * step) / (state[WEIGHT + k] + state[RIDGE])
        state[BIAS + k] += own * count / (count + state[DAMPING])
    state[ROUNDS] = 0
    state[REFITS] += 1
    state[CURVATURE] = state[PULL] = 0.0
    state[COUPLING:] = 0.0
