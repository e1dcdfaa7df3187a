"""Requests that are verified together: the kernel that decides how many nodes each of them gets, and the rules made for them.

A rule is a class here that returns its budgets from `choose_batch`. One that should be simulated at a kernel's speed also has a mode
and a branch in `decide`, and says so by `Policy.decision`; its `choose_batch` can then be `decide_batch`.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints, plain
from ddsim.cost.table import CostTable
from ddsim.jit import njit
from ddsim.policy.choose import (
    CHAIN,
    EXHAUSTIVE,
    GREEDY,
    NO_DRAFT,
    PREFIX,
    PRICE,
    _choose,
    _slopes_ahead,
    chain_length,
    filled,
    round_budgets,
)
from ddsim.policy.contract import Decision, Policy, ask, decision_of, name_with, prepared
from ddsim.policy.memory import LAG, fit, is_warming_up, scheduled, steps, survivals, tried
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions, node_counts

AR, CHAINS, WIDTH, FOREST, SHARE, UNIFORM, FAIR, SCHEDULED, STEPS, LAGGED = range(10)
"""Modes of a `Decision`, for a lone request as for many: no draft; chains of ``width`` tokens (0: all); ``width`` nodes for every request; a rule for the batch
as one tree, for each request at its share of the cost, for one width; `FairRatio` (for a lone request these four are one rule); chains by the number of
requests; chains by what was accepted; a budget by what was known some rounds ago."""


class FairRatio(Policy):
    """The forest of highest geometric mean of expected acceptance lengths over time: max Σ_b log(1 + Φ_b(n_b)) − B log C(Σ n_b).

    The text of a request is what it is: a token gained where drafting is easy saves little, since it would have come cheaply, one
    gained where it is hard saves a round. `LongRun` and `RoundRatio` count both alike, so as forests they feed the easy requests,
    which then hurry on to their hard parts. Worth what a token costs where it is, C / (B (1 + Φ_b)) seconds, a node pays if
    g_b / (1 + Φ_b) ≥ B·C' / C, which is the first-order condition of the maximum above. For one request it is `RoundRatio`.

    Parameters
    ----------
    calibration : Calibration, optional
        Isotonic.

    Examples
    --------
    >>> from ddsim.policy.rules import RoundRatio
    >>> gains, seconds = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.1]], np.float32), np.array([1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    >>> RoundRatio().choose_batch(gains, seconds).tolist(), FairRatio().choose_batch(gains, seconds).tolist()
    ([3, 0], [2, 1])
    """

    for_batches = True

    def __init__(self, *, calibration: Calibration | None = None) -> None:
        self.calibration = calibration
        self.name = name_with("FairRatio", calibration)

    def choose(self, gains: NDArray[np.float32], costs: CostTable) -> Ints:
        return round_budgets(gains, costs, "exhaustive", calibration=self.calibration)

    def choose_batch(self, gains: NDArray[np.float32], seconds: Floats) -> Ints:
        return decide_batch(self.decision(), gains, seconds)

    def decision(self) -> Decision:
        return Decision(FAIR, calibration=self.calibration)


class _Carried(Policy):
    """A rule for one request, carried over to a batch."""

    for_batches = True
    ending: ClassVar[str]

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = f"{policy.name} {self.ending}"
        self.online, self.decides_on, self.fill = policy.online, policy.decides_on, policy.fill
        self.drafts, self.adaptive, self.hindsight = policy.drafts, policy.adaptive, policy.hindsight
        self.solves, self.price, self.needs_trace = policy.solves, policy.price, policy.needs_trace

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Policy:
        return type(self)(prepared(self.policy, positions, costs, sequences=sequences))

    def at(self, value: float) -> Policy:
        return type(self)(self.policy.at(value))

    def choose(self, gains: NDArray[np.float32], costs: CostTable) -> Ints:
        return self.policy.choose(gains, costs)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "policy": self.policy.to_json()}


class Share(_Carried):
    """Every request of a batch decides alone, at its share of the cost: n nodes count as C(B·n) / B.

    Parameters
    ----------
    policy : Policy
        A rule for one request.

    Examples
    --------
    >>> from ddsim.policy.rules import RoundRatio
    >>> gains = np.array([[0.9, 0.5], [0.2, 0.1]], np.float32)
    >>> Share(RoundRatio()).choose_batch(gains, 1.0 + 0.2 * np.arange(5)).tolist()
    [1, 0]
    """

    ending = "share"

    def choose_batch(self, gains: NDArray[np.float32], seconds: Floats, paid: Floats | None = None) -> Ints:
        costs = _shared_costs(seconds, paid, *gains.shape, rows=len(gains))
        cut = np.ascontiguousarray(gains[:, : costs.seconds.shape[1] - 1])
        return ask(self.policy, cut, costs, most=gains.shape[1])

    def observe(self, tokens: float, seconds: float) -> None:
        self.policy.observe(tokens, seconds)

    def decision(self) -> Decision | None:
        return _carried(self.policy, SHARE)


class Uniform(_Carried):
    """One width for all requests of a batch, chosen each round by a rule for one request with the mean gains.

    Parameters
    ----------
    policy : Policy

    Examples
    --------
    >>> from ddsim.policy.rules import RoundRatio
    >>> gains = np.array([[0.9, 0.5], [0.2, 0.1]], np.float32)
    >>> Uniform(RoundRatio()).choose_batch(gains, 1.0 + 0.2 * np.arange(5)).tolist()
    [1, 1]
    """

    ending = "uniform"
    rectangular = True

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.calibration = policy.calibration
        self._plain = copy.copy(policy)  # decides on gains that are calibrated before their mean is taken
        self._plain.calibration = None

    def choose_batch(self, gains: NDArray[np.float32], seconds: Floats, paid: Floats | None = None) -> Ints:
        costs = _shared_costs(seconds, paid, *gains.shape, rows=1)
        most = costs.seconds.shape[1] - 1
        mean = calibrated(gains, self.calibration)[:, :most].mean(axis=0, dtype=np.float64)
        width = ask(self._plain, mean[None].astype(np.float32), costs, most=gains.shape[1])
        return np.repeat(width, len(gains)).astype(np.int32)

    def observe(self, tokens: float, seconds: float) -> None:
        self._plain.observe(tokens, seconds)

    def decision(self) -> Decision | None:
        return _carried(self.policy, UNIFORM)


def _carried(policy: Policy, mode: int) -> Decision | None:
    """The kernels' form of a rule for one request, if they know how to carry it over; they don't at an online price."""
    rule = decision_of(policy)
    return (
        dataclasses.replace(rule, mode=mode) if rule is not None and rule.mode == FOREST and not rule.memory else None
    )


def _shared_costs(seconds: Floats, paid: Floats | None, batch: int, max_budget: int, *, rows: int) -> CostTable:
    """A cost table with a request's share of a joint round for all rows: of what is decided on, and of what is paid."""
    charged = None if paid is None else _shared_costs(paid, None, batch, max_budget, rows=rows)
    curve = share_curve(seconds, batch, max_budget)
    return CostTable(curve[None], curve[:1], np.zeros(rows, np.int32), np.zeros(1, np.int64), charged=charged)


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
        decision.mode, decision.rule, decision.price, decision.fill, 0, mapped, node_counts(mapped), np.zeros((0, 1), np.float32),
        np.arange(batch), 0, charged[0], plain(own, np.float64)[0], ahead[0], share[0], _slopes_ahead(share)[0], budgets, order,
        heap, key, rate, mean, np.full((batch, 2), -1), np.zeros(0),
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
def _sift(heap, i, size, key):  # type: ignore[no-untyped-def]
    """Move request i of a heap down to its place: larger keys first, then smaller requests."""
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
            heap[size] = b
            size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sift(heap, i, size, key)
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
        _sift(heap, 0, size, key)
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
def _lagged(gains, where, before, state, curve, curve_ahead, budgets, order, heap, key, rate):  # type: ignore[no-untyped-def]
    """(n, expected tokens): as many nodes as would have been best by what was known some rounds ago, and where they are best by now."""
    batch, horizon = len(where), gains.shape[1]
    rows, counts = np.arange(batch), np.full(batch, horizon, np.int32)
    fresh = np.empty((batch, horizon), np.float32)
    for b in range(batch):
        survivals(gains, where[b], state, False, fresh[b])
    n = min(batch * horizon, len(curve) - 1)
    if not is_warming_up(state):
        lag = int(state[LAG])
        stale = np.ones((batch, horizon), np.float32) if lag else fresh
        for b in range(batch if lag else 0):
            if before[b, lag - 1] >= 0:
                survivals(gains, before[b, lag - 1], state, True, stale[b])
        n, _ = _forest(
            False, stale, counts, rows, curve, curve_ahead, EXHAUSTIVE, 0.0, False, curve, budgets, order, heap, key, rate
        )  # fmt: skip
    # At a price of 0 the best of a forest is all that it may have.
    return _forest(
        False, fresh, counts, rows, curve[: n + 1], curve_ahead[: n + 1], PRICE, 0.0, False, curve, budgets, order, heap, key, rate
    )  # fmt: skip


@njit(cache=True, nogil=True)
def decide(  # type: ignore[no-untyped-def]
    mode, rule, price, fill, width, gains, nodes, chain_expected, where, horizon,
    charged, curve, curve_ahead, share, share_ahead, budgets, order, heap, key, rate, mean, before, state,
):  # fmt: skip
    """(n, expected tokens) of one joint round at the positions ``where`` [B]; the requests' actions go to ``budgets`` [B].

    ``n`` is NO_DRAFT where nothing is drafted. ``charged`` is what n nodes in all are paid for (with ``fill``, n goes up to the end of its step). The
    other curves are one row of those that `curves_for` gives; ``order`` [M], ``heap``, ``key``, ``rate`` [B], ``mean`` [N] are scratch.
    ``before`` [B, 2] are the positions of each request's last round and the one before it, -1 where there was none, ``state`` [S] is what the
    rule carries from round to round: it begins as `Decision.start`, and `learn` goes on with it.
    """
    batch = len(where)
    if mode in (SCHEDULED, STEPS):
        width = scheduled(state, batch) if mode == SCHEDULED else steps(state, batch)
        width = min(width, horizon, (len(charged) - 1) // batch)
    if mode == AR or (mode in (SCHEDULED, STEPS) and width == 0):
        budgets[:] = NO_DRAFT
        return NO_DRAFT, float(batch)
    if mode == LAGGED:
        return _lagged(gains, where, before, state, curve, curve_ahead, budgets, order, heap, key, rate)
    if mode in (FOREST, FAIR):
        return _forest(
            mode == FAIR, gains, nodes, where, curve, curve_ahead, rule, price, fill, charged, budgets, order, heap, key, rate
        )  # fmt: skip
    total, tokens = 0, 0.0
    if mode in (CHAINS, SCHEDULED, STEPS):
        action = PREFIX - width if width else CHAIN
        k = chain_length(action, horizon)
        for b in range(batch):
            budgets[b] = action
            tokens += 1.0 + chain_expected[where[b], k - 1]
        return batch * k, tokens
    if mode == UNIFORM:
        most = min(len(share) - 1, gains.shape[1])  # of chains there are fewer
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


@njit(cache=True, nogil=True)
def accepted_of(action, p, ranks, chain, horizon):  # type: ignore[no-untyped-def]
    """Drafted tokens that a round at p accepts."""
    if action <= CHAIN:
        return min(int(chain[p]), chain_length(action, horizon))
    if action <= 0:
        return 0
    accepted = 0
    while accepted < horizon and ranks[p, accepted] <= action:
        accepted += 1
    return accepted


@njit(cache=True, nogil=True)
def learn(mode, state, where, left, budgets, accepted, gains):  # type: ignore[no-untyped-def]
    """Tell a rule what became of a round: ``accepted`` [B] drafted tokens of the rounds at ``where`` [B], with ``budgets`` [B] as `decide` gave them.

    ``left`` [B] are the tokens that each text goes on for after ``where``: what was drafted past its end was neither right nor wrong.
    """
    if mode == STEPS:
        tried(state, accepted)
    elif mode == LAGGED:
        fit(state, where, left, budgets, accepted, gains)
