"""Policies for requests that are verified together: forests, shares, one width, fair ratio."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints
from ddsim.cost.table import CostTable
from ddsim.policy.contract import FAIR, FOREST, SHARE, UNIFORM, Decision, Policy, ask, decision_of, prepared
from ddsim.policy.decide import calibrated, decide_batch, share_curve
from ddsim.policy.rules import RoundRatio
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions


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
    >>> gains = np.array([[0.9, 0.5], [0.2, 0.1]], np.float32)
    >>> Share(RoundRatio()).choose_joint(gains, 1.0 + 0.2 * np.arange(5)).tolist()
    [1, 0]
    """

    ending = "share"

    def choose_joint(self, gains: NDArray[np.float32], seconds: Floats, paid: Floats | None = None) -> Ints:
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
    >>> gains = np.array([[0.9, 0.5], [0.2, 0.1]], np.float32)
    >>> Uniform(RoundRatio()).choose_joint(gains, 1.0 + 0.2 * np.arange(5)).tolist()
    [1, 1]
    """

    ending = "uniform"
    rectangular = True

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.calibration = policy.calibration
        self._plain = copy.copy(policy)  # decides on gains that are calibrated before their mean is taken
        self._plain.calibration = None

    def choose_joint(self, gains: NDArray[np.float32], seconds: Floats, paid: Floats | None = None) -> Ints:
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
    >>> gains, seconds = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.1]], np.float32), np.array([1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    >>> RoundRatio().choose_joint(gains, seconds).tolist(), FairRatio().choose_joint(gains, seconds).tolist()
    ([3, 0], [2, 1])
    """

    for_batches = True

    def __init__(self, *, calibration: Calibration | None = None) -> None:
        self._ratio = RoundRatio(calibration=calibration)  # refuses calibrations that change trees
        self.calibration = calibration
        self.name = self._ratio.name.replace(self._ratio.label, "FairRatio")

    def choose(self, gains: NDArray[np.float32], costs: CostTable) -> Ints:
        return self._ratio.choose(gains, costs)

    def choose_joint(self, gains: NDArray[np.float32], seconds: Floats) -> Ints:
        return decide_batch(self.decision(), gains, seconds)

    def decision(self) -> Decision:
        return Decision(FAIR, calibration=self.calibration)


def _shared_costs(seconds: Floats, paid: Floats | None, batch: int, max_budget: int, *, rows: int) -> CostTable:
    """A cost table with a request's share of a joint round for all rows: of what is decided on, and of what is paid."""
    charged = None if paid is None else _shared_costs(paid, None, batch, max_budget, rows=rows)
    curve = share_curve(seconds, batch, max_budget)
    return CostTable(curve[None], curve[:1], np.zeros(rows, np.int32), np.zeros(1, np.int64), charged=charged)
