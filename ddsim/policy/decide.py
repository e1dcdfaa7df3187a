"""One joint round: the kernel that decides how many nodes each request gets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints, plain
from ddsim.jit import njit
from ddsim.policy.choose import CHAIN, GREEDY, PRICE, _choose, _slopes_ahead, filled
from ddsim.policy.contract import AR, CHAINS, FAIR, FOREST, SHARE, UNIFORM, Decision
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import node_counts


def decide_batch(decision: Decision, gains: NDArray[np.float32], seconds: Floats, paid: Floats | None = None) -> Ints:
    """Budgets int32 [B] of one joint round, by the kernel that also serves.

    Parameters
    ----------
    decision : Decision
        FOREST, SHARE, UNIFORM or FAIR.
    gains : float32 [B, N], descending, zero-padded
    seconds : float64 [M + 1], what is decided on: a joint round with n = 0 .. M nodes in all; n never exceeds M
    paid : float64 [M + 1], optional
        What it is charged, where that is something else.
    """
    batch, budget = gains.shape
    mapped = plain(calibrated(gains, decision.calibration), np.float32)
    curve = plain(np.atleast_2d(seconds), np.float64)
    charged = curve if paid is None else plain(np.atleast_2d(paid), np.float64)
    share = plain(share_curve(curve, batch, budget), np.float64)
    own, ahead = weighed(decision.mode, curve, _slopes_ahead(curve))
    budgets, heap = np.zeros(batch, np.int32), np.zeros(batch, np.int64)
    key, rate = np.zeros(batch), np.zeros(batch)
    order, mean = np.zeros(curve.shape[1], np.int32), np.zeros(budget, np.float32)
    n, _ = decide(
        decision.mode, decision.rule, decision.price, decision.fill, 0, mapped, node_counts(mapped), np.zeros(0, np.float32),
        np.arange(batch), 0, charged[0], plain(own, np.float64)[0], ahead[0], share[0], _slopes_ahead(share)[0], budgets, order,
        heap, key, rate, mean,
    )  # fmt: skip
    return np.full(batch, n // batch, np.int32) if decision.mode == UNIFORM else budgets


def weighed(mode: int, curve: Floats, ahead: Floats) -> tuple[Floats, Floats]:
    """The curve that a mode weighs nodes against, [U, limit + 1], and its slopes ahead: FAIR takes the logarithm."""
    if mode == FAIR:
        curve = np.log(curve)
        ahead = _slopes_ahead(curve)
    return curve, ahead


def calibrated(gains: NDArray[np.float32], calibration: Calibration | None) -> NDArray[np.float32]:
    """Gains mapped by a calibration, or as they are."""
    if calibration is None:
        return gains
    return np.ascontiguousarray(calibration.apply_gains(gains), np.float32)


def share_curve(seconds: Floats, batch: int, max_budget: int) -> Floats:
    """float64 [W + 1]: a request's share of a joint round in which all have n = 0 .. W nodes, W at most ``max_budget``."""
    return np.ascontiguousarray(seconds[..., ::batch][..., : max_budget + 1] / batch)


@njit(cache=True, nogil=True)
def _sift(heap, size, key):  # type: ignore[no-untyped-def]
    """Move the first request of a heap to its place: larger keys first, then smaller requests."""
    i = 0
    while True:
        top, child = i, 2 * i + 1
        for c in range(child, min(child + 2, size)):
            x, y = key[heap[c]], key[heap[top]]
            if x > y or (x == y and heap[c] < heap[top]):
                top = c
        if top == i:
            return
        heap[i], heap[top] = heap[top], heap[i]
        i = top


@njit(cache=True, nogil=True)
def _forest(  # type: ignore[no-untyped-def]
    fair, gains, nodes, where, curve, ahead, rule, price, fill, charged, budgets, order, heap, key, rate
):
    """(n, B + Phi(n)) of the forest, and each request's nodes in ``budgets``.

    With ``fill``, n goes up to the largest number that is ``charged`` no more. Nodes come in the order of their gains; if ``fair``, of their gains over the request's expected tokens so far, and ``curve`` is
    the logarithm of the cost. ``order`` [M] and ``heap``, ``key``, ``rate`` [B] are scratch.
    """
    batch = len(where)
    size = 0
    for b in range(batch):
        budgets[b], rate[b] = 0, 1.0
        key[b] = gains[where[b], 0] if nodes[where[b]] else 0.0
        if key[b] > 0:
            size += 1
    heap[:] = np.argsort(-key, kind="mergesort")  # a sorted list is a heap; requests without nodes come last
    tokens = float(batch)
    value = -batch * curve[0] if fair else tokens - price * curve[0]
    best, best_tokens, best_seconds, best_value = 0, tokens, curve[0], value
    logs, n = 0.0, 0
    limit, target, stopped = len(curve) - 1, 0, False  # target: nodes to end with, once the rule has stopped
    while size and n < limit:
        b = heap[0]
        p = where[b]
        gain = gains[p, budgets[b]]
        if fair:
            step, worth = np.log1p(key[b]), float(batch)
        else:
            step, worth = gain, price if rule == PRICE else best_tokens / best_seconds
        if not stopped and step <= worth * ahead[n]:  # as in ddsim.policy.choose._choose: nothing better follows
            stopped, target = True, _last_filled(gains, nodes, where, charged, best, limit) if fill else best
        if stopped and n >= target:
            break
        order[n] = b
        n += 1
        budgets[b] += 1
        rate[b] += gain
        if budgets[b] == nodes[p] or gains[p, budgets[b]] <= 0:
            size -= 1
            heap[0] = heap[size]
        else:
            key[b] = gains[p, budgets[b]] / (rate[b] if fair else 1.0)
        _sift(heap, size, key)
        tokens += gain
        logs += step
        if stopped:
            continue
        if fair or rule == PRICE:
            value = logs - batch * curve[n] if fair else tokens - price * curve[n]
            if value > best_value:
                best, best_tokens, best_value = n, tokens, value
        elif tokens * best_seconds > best_tokens * curve[n]:
            best, best_tokens, best_seconds = n, tokens, curve[n]
        elif rule == GREEDY:
            stopped, target = True, _last_filled(gains, nodes, where, charged, best, limit) if fill else best
    if not stopped:
        target = _last_filled(gains, nodes, where, charged, best, limit) if fill else best
    for i in range(target, n):  # what was looked at past the best is given back
        budgets[order[i]] -= 1
    if target > best:
        best, best_tokens = target, float(batch)
        for b in range(batch):
            for i in range(budgets[b]):
                best_tokens += gains[where[b], i]
    return best, best_tokens


@njit(cache=True, nogil=True)
def _existing(gains, nodes, p):  # type: ignore[no-untyped-def]
    """Nodes with a gain above 0: a calibration may have made some of them 0."""
    most = nodes[p]
    while most > 0 and gains[p, most - 1] <= 0:
        most -= 1
    return most


@njit(cache=True, nogil=True)
def _last_filled(gains, nodes, where, charged, n, limit):  # type: ignore[no-untyped-def]
    """`filled` for a forest that has n nodes and can have at most ``limit``."""
    most = 0
    for p in where:
        most += _existing(gains, nodes, p)
    return filled(charged, n, max(n, min(most, limit)), 1)


@njit(cache=True, nogil=True)
def decide(  # type: ignore[no-untyped-def]
    mode, rule, price, fill, width, gains, nodes, chain_expected, where, horizon,
    charged, curve, curve_ahead, share, share_ahead, budgets, order, heap, key, rate, mean,
):  # fmt: skip
    """(n, expected tokens) of one joint round at the positions ``where`` [B]; the requests' actions go to ``budgets`` [B].

    ``charged`` is what n nodes in all are paid for (with ``fill``, n goes up to the end of its step). The other curves are one row
    of those that `curves_for` gives; ``order`` [M], ``heap``, ``key``, ``rate`` [B], ``mean`` [N] are scratch.
    """
    batch = len(where)
    if mode == AR:
        return 0, float(batch)
    if mode in (FOREST, FAIR):
        return _forest(
            mode == FAIR,
            gains,
            nodes,
            where,
            curve,
            curve_ahead,
            rule,
            price,
            fill,
            charged,
            budgets,
            order,
            heap,
            key,
            rate,
        )
    total, tokens = 0, 0.0
    if mode == CHAINS:
        for b in range(batch):
            budgets[b] = CHAIN
            tokens += 1.0 + chain_expected[where[b]]
        return batch * horizon, tokens
    if mode == UNIFORM:
        most = len(share) - 1
        for i in range(most):
            sum_of = 0.0
            for b in range(batch):
                sum_of += gains[where[b], i]
            mean[i] = np.float32(sum_of / batch)
        width = _choose(mean[:most], share, share_ahead, rule, price, 1.0)[0]
        if fill:
            while most > width and mean[most - 1] <= 0:
                most -= 1
            width = filled(charged, width, most, batch)
    for b in range(batch):
        p = where[b]
        if mode == SHARE:
            n, expected = _choose(gains[p, : len(share) - 1], share, share_ahead, rule, price, 1.0)
            if fill:
                n = filled(charged, n, max(n, min(_existing(gains, nodes, p), len(share) - 1)), batch)
        else:
            n, expected = min(width, nodes[p]), 1.0
        if mode != SHARE or fill:
            expected = 1.0
            for i in range(n):
                expected += gains[p, i]
        budgets[b] = n
        total += n
        tokens += expected
    return batch * width if mode == UNIFORM else total, tokens  # one width: padded
