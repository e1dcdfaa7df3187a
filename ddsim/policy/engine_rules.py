"""Rules that serving engines have, over the chains that they verify: what they decide, from what they know at that moment.

Each was written after the engine's own sources: vLLM 0.33 (`AdaptiveVerification`; its schedule is `ddsim.policy.rules.Schedule`), SGLang 0.5.23
(`AdaptiveSteps`, and `DSpark`'s scheduler).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.policy.batch import LAGGED, STEPS, accepted_of, decide, learn
from ddsim.policy.choose import LONGEST, NO_DRAFT, PREFIX, _slopes_ahead
from ddsim.policy.contract import Decision, Gains, Policy, decision_of, prepared, walk_of
from ddsim.policy.memory import MOST_OPTIONS, REFIT, REFITS, WARM, lagged_start, steps, steps_start, tried
from ddsim.policy.walk import Walk, walk
from ddsim.trace.rounds import Positions, chain_positions


class OnChain(Policy):
    """A rule for trees, over the chain of best candidates: what it could do where an engine verifies chains.

    A chain is a tree whose n best nodes are its first n tokens, so any rule that weighs gains can choose its length.

    Parameters
    ----------
    policy : Policy
        A rule, for one request or for a batch.

    Examples
    --------
    >>> from ddsim.policy.rules import RoundRatio
    >>> OnChain(RoundRatio()).name
    'RoundRatio on chains'
    """

    chains = True

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = f"{policy.name} on chains"
        for key in (
            "online",
            "decides_on",
            "fill",
            "drafts",
            "adaptive",
            "solves",
            "price",
            "needs_trace",
            "calibration",
            "rectangular",
        ):
            setattr(self, key, getattr(policy, key))

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        return type(self)(prepared(self.policy, chain_positions(positions), costs, sequences=sequences))

    def at(self, value: float) -> Self:
        return type(self)(self.policy.at(value))

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        return self.policy.choose(gains, costs)

    def choose_batch(self, gains: Gains, seconds: Floats, *paid: Floats) -> Ints:
        return self.policy.choose_batch(gains, seconds, *paid)

    def observe(self, tokens: float, seconds: float) -> None:
        self.policy.observe(tokens, seconds)

    def decision(self) -> Decision | None:
        inner = decision_of(self.policy)
        return None if inner is None else dataclasses.replace(inner, chains=True)

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        done = walk_of(self.policy, chain_positions(block), costs)
        return dataclasses.replace(done, actions=np.where(done.actions > 0, PREFIX - done.actions, done.actions))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "policy": self.policy.to_json()}


class _Remembering(Policy):
    """A rule that knows what became of earlier rounds, so that it is asked by kernels only: one state, rounds in order."""

    online = True
    chains = True
    solves: str | None = None

    def __init__(self) -> None:
        self._state = self._start()

    def _start(self) -> Floats:
        raise NotImplementedError

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        ready = copy.copy(self)
        ready._state = ready._start()
        return ready

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        raise DdsimError(
            f"{self.name}: looks back on earlier rounds of each request, which replay and serve can tell it only"
        )

    def choose_batch(self, gains: Gains, seconds: Floats) -> Ints:
        raise DdsimError(
            f"{self.name}: looks back on earlier rounds of each request, which replay and serve can tell it only"
        )

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        return walk(block, costs, self._round_by_round(block, costs, np.ones(block.sequences, np.bool_)))

    def _round_by_round(self, block: Positions, costs: CostTable, counted: NDArray[np.bool_]) -> Ints:
        """Actions of lone requests, int32 [P], of the sequences that are ``counted`` [S]; the state goes on."""
        decision = self.decision()
        assert decision is not None
        seen = chain_positions(block) if decision.chains else block
        actions = np.zeros(len(block), np.int32)
        _alone(
            decision.mode, seen.gains, seen.ranks, seen.nodes, seen.chain, seen.chain_expected, seen.starts, costs.paid.seconds,
            costs.seconds, _slopes_ahead(costs.seconds), costs.row, counted, self._state, actions,
        )  # fmt: skip
        return actions


@njit(cache=True, nogil=True)
def _alone(  # type: ignore[no-untyped-def]
    mode, gains, ranks, nodes, chain, chain_expected, starts, charged, curve, ahead, row, counted, state, actions
):
    """What a rule does for lone requests, one after another, at the positions that are reached."""
    horizon = ranks.shape[1]
    where, left = np.zeros(1, np.int64), np.zeros(1, np.int64)
    accepted, heap = np.zeros(1, np.int64), np.zeros(1, np.int64)
    budgets, key, rate, before = np.zeros(1, np.int32), np.zeros(1), np.zeros(1), np.full((1, 2), -1)
    order, mean = np.zeros(curve.shape[1], np.int32), np.zeros(gains.shape[1], np.float32)
    for s in range(len(starts) - 1):
        p, end = starts[s], starts[s + 1] - 1
        before[:] = -1
        while counted[s] and p < end:
            u = row[p]
            where[0], left[0] = p, end - p
            decide(
                mode, 0, 0.0, False, 0, gains, nodes, chain_expected, where, horizon,
                charged[u], curve[u], ahead[u], curve[u], ahead[u], budgets, order, heap, key, rate, mean, before, state,
            )  # fmt: skip
            accepted[0] = accepted_of(budgets[0], p, ranks, chain, horizon)
            learn(mode, state, where, left, budgets, accepted, gains)
            actions[p] = PREFIX - budgets[0] if budgets[0] > 0 else budgets[0]
            before[0, 1], before[0, 0] = before[0, 0], p
            p += accepted[0] + 1


class AdaptiveVerification(_Remembering):
    """vLLM's adaptive verification: one budget of drafted tokens for the whole batch, split among its requests by how likely each token is.

    The budget maximises (requests + Σ of the likeliest tokens' probabilities) / seconds, over the probabilities that were known one round
    ago and over seconds measured at one context; a request in its first round counts as sure. Then this round's likeliest tokens get it.
    Everything is drafted whatever is verified.

    Parameters
    ----------
    estimate : bool
        Estimate how likely tokens are, as for drafters without a confidence head: 1 / (1 + exp(-w·l - b_k)) for the log-odds l of the drafted token
        and its place k, refitted every 100 rounds by a damped Newton step, until the third fit everything is verified. Otherwise believe the drafter's own probabilities.
    context : int
        Where seconds are read; as near to it as was measured.
    cold : bool
        Begin as a server that has just started. Otherwise `prepare` settles the estimate on the trace first, as in one that has run for a thousand rounds.

    Notes
    -----
    vLLM 0.28 (DSpark with a confidence head) and 0.33 (all drafters), `enable_adaptive_verification`. w is common to all places and starts at 0, b_k
    at 1.5. A round adds its verified tokens up to the first that was refused. A fit takes one Newton step of the logistic regression on the rounds
    since the last one, with a ridge of 0.001, times n / (n + 50) for n tokens seen; w stays at 0 or more.

    Examples
    --------
    >>> AdaptiveVerification(), AdaptiveVerification(estimate=False).name
    (AdaptiveVerification(), 'AdaptiveVerification(estimate=False)')
    """

    def __init__(self, *, estimate: bool = True, context: int = 8192, cold: bool = False) -> None:
        if isinstance(context, bool) or not isinstance(context, (int, np.integer)) or context < 0:
            raise DdsimError(
                f"AdaptiveVerification: context must be a whole number of tokens, 0 or more, is {context!r:.40}"
            )
        self.estimate, self.context, self.cold = bool(estimate), int(context), bool(cold)
        self.name = repr(self).removesuffix("()")
        super().__init__()

    @property
    def at_context(self) -> int:  # type: ignore[override]
        return self.context

    @property
    def solves(self) -> str | None:  # type: ignore[override]
        return "an estimate" if self.estimate and not self.cold else None

    def _start(self) -> Floats:
        return lagged_start(1, estimates=self.estimate)

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        ready = super().prepare(positions, costs)
        if self.estimate and not self.cold:
            state = ready._state
            warm, refit = state[WARM], state[REFIT]
            state[WARM], state[REFIT] = (
                FITS,
                refit * costs.batch,
            )  # as many tokens as that many rounds of the batch show
            counted = np.ones(positions.sequences, np.bool_) if sequences is None else sequences
            while state[REFITS] < FITS and positions.tokens[counted].any():
                for low, first, block in positions.blocks():
                    here = counted[first : first + block.sequences]
                    ready._round_by_round(block, costs.take(slice(low, low + len(block))), here)
            state[WARM], state[REFIT] = warm, refit
        return ready

    def decision(self) -> Decision:
        return Decision(LAGGED, chains=True, start=self._state.copy())

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "estimate": self.estimate, "context": self.context, "cold": self.cold}


FITS = 10
"""Fits after which an estimate has settled."""


class DSpark(_Remembering):
    """DSpark's scheduler: as `AdaptiveVerification`, but the budget looks two rounds back, and probabilities are believed as they are.

    The budget maximises expected tokens × steps per second, from a table by the tokens of a step. SGLang's table is profiled near the
    workload's contexts, so seconds are those of the batch's own. What is less likely than 10⁻⁶ isn't verified.

    Notes
    -----
    SGLang 0.5.23, `--speculative-algorithm DSPARK` with an SPS table (arXiv 2607.05147). DSpark's drafter has a confidence head; a trace
    has the drafter's own probabilities in its place.

    Examples
    --------
    >>> DSpark().name, DSpark().adaptive
    ('DSpark', True)
    """

    name = "DSpark"

    def _start(self) -> Floats:
        return lagged_start(2, eps=1e-6)

    def decision(self) -> Decision:
        return Decision(LAGGED, chains=True, start=self._start())


Slots = dict[int, list[int]]
SLOTS: dict[int, tuple[list[int], float]] = {
    1: ([1, 3, 5, 7], -0.25), 8: ([0, 1, 3], 0.0), 32: ([0, 1], 0.0), 64: ([0], 0.0),
}  # fmt: skip
"""SGLang's own: K to choose among, and down_hysteresis, by the number of requests from which they hold."""


class AdaptiveSteps(_Remembering):
    """SGLang's adaptive steps: one K for the batch, moved up and down by a moving average of how many drafted tokens were accepted.

    Every ``update_interval`` rounds, after ``warmup_batches``: down to the Ks below as long as the average is at most K - 0.5 + ``down_hysteresis`` for the lower K, or else up as
    long as it is above K - 0.5 + ``up_hysteresis``. At K of 0 nothing is learnt, so it tries the next. Costs don't matter to it. Each slot of batch sizes has an average of its own.

    Parameters
    ----------
    slots : dict of int to list of int, optional
        Ks by the number of requests from which they hold. By default SGLang's: 1, 3, 5, 7 from one request, 0, 1, 3 from 8, 0, 1 from 32, off from
        64, each with a ``down_hysteresis`` of its own.
    num_steps : int
        K at first, where a slot has it; its middle one elsewhere.
    ema_alpha, warmup_batches, update_interval, up_hysteresis, down_hysteresis
        As in ``--speculative-adaptive-config``.

    Notes
    -----
    SGLang 0.5.23, for EAGLE and EAGLE3 drafts of one candidate a depth. Its batch sizes are padded to those of its CUDA graphs first; here they aren't.

    Examples
    --------
    >>> rule = AdaptiveSteps(slots={1: [1, 3]}, num_steps=1, warmup_batches=0, update_interval=1)
    >>> for _ in range(4):
    ...     rule.observe(2 * rule.k(2) + 2, 1.0)  # two requests, all accepted
    >>> rule.k(2)
    3
    """

    adaptive = False
    chains = False

    def __init__(
        self,
        slots: Slots | None = None,
        *,
        num_steps: int = 3,
        ema_alpha: float = 0.2,
        warmup_batches: int = 10,
        update_interval: int = 5,
        up_hysteresis: float = 0.0,
        down_hysteresis: float = -0.25,
    ) -> None:
        self.slots = None if slots is None else _slots(slots)
        numbers = {"num_steps": num_steps, "warmup_batches": warmup_batches, "update_interval": update_interval}
        for key, number in numbers.items():
            if (
                isinstance(number, bool)
                or not isinstance(number, (int, np.integer))
                or number < (key == "update_interval")
            ):
                raise DdsimError(
                    f"AdaptiveSteps: {key} must be a whole number of at least {int(key == 'update_interval')}, is {number!r:.40}"
                )
        if not 0 <= ema_alpha <= 1 or not np.isfinite([up_hysteresis, down_hysteresis]).all():
            raise DdsimError("AdaptiveSteps: ema_alpha must be from 0 to 1, hystereses finite")
        self.num_steps, self.warmup_batches, self.update_interval = (
            int(num_steps),
            int(warmup_batches),
            int(update_interval),
        )
        self.ema_alpha, self.up_hysteresis, self.down_hysteresis = (
            float(ema_alpha),
            float(up_hysteresis),
            float(down_hysteresis),
        )
        self.name = repr(self).removesuffix("()")
        self._requests = 1
        super().__init__()

    def _start(self) -> Floats:
        slots = SLOTS if self.slots is None else {n: (ks, self.down_hysteresis) for n, ks in self.slots.items()}
        common = self.ema_alpha, self.warmup_batches, self.update_interval, self.up_hysteresis
        return steps_start([(n, ks, down) for n, (ks, down) in slots.items()], self.num_steps, *common)

    def k(self, requests: int) -> int:
        """K of the next round of so many requests."""
        self._requests = requests
        return int(steps(self._state, requests))

    def _action(self, requests: int) -> int:
        k = self.k(requests)
        return PREFIX - k if k else NO_DRAFT

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        return np.full(len(gains), self._action(1), np.int32)

    def choose_batch(self, gains: Gains, seconds: Floats) -> Ints:
        return np.full(len(gains), self._action(len(gains)), np.int32)

    def observe(self, tokens: float, seconds: float) -> None:
        accepted = np.full(self._requests, tokens / self._requests - 1.0)
        tried(self._state, accepted)

    def decision(self) -> Decision:
        return Decision(STEPS, start=self._start())

    def to_json(self) -> dict[str, Any]:
        keys = ("num_steps", "ema_alpha", "warmup_batches", "update_interval", "up_hysteresis", "down_hysteresis")
        slots = {n: ks for n, (ks, _) in SLOTS.items()} if self.slots is None else self.slots
        return {"name": self.name, "slots": {str(n): ks for n, ks in slots.items()}} | {
            key: getattr(self, key) for key in keys
        }


def _slots(given: Any) -> Slots:
    """Ks by the number of requests, in order, checked as SGLang checks them."""
    if not isinstance(given, dict) or not given:
        raise DdsimError(
            f"AdaptiveSteps: slots must be Ks by the number of requests, as in {{1: [1, 3, 7], 8: [0, 1]}}, is {given!r:.60}"
        )
    found: Slots = {}
    for first, ks in given.items():
        whole = [first, *ks] if isinstance(ks, (list, tuple)) else []
        if len(whole) < 2 or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in whole):
            raise DdsimError(f"AdaptiveSteps: slot {first!r:.20}: {ks!r:.40} must be a list of whole numbers")
        if first < 1 or min(ks) < 0 or max(ks) > LONGEST or len(set(ks)) > MOST_OPTIONS:
            raise DdsimError(
                f"AdaptiveSteps: slot {first!r:.20}: needs 1 request or more, and up to {MOST_OPTIONS} Ks of 0 to {LONGEST}"
            )
        found[int(first)] = sorted({int(k) for k in ks})
    return dict(sorted(found.items()))
