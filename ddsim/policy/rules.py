"""The shipped policies for one request."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints
from ddsim.cost.model import CostModel
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.policy.batch import AR, CHAINS, FOREST, SCHEDULED, WIDTH, decide_batch
from ddsim.policy.choose import CHAIN, EXHAUSTIVE, LONGEST, NO_DRAFT, PREFIX, PRICE, RULES, Rule, round_budgets
from ddsim.policy.contract import Decision, Gains, Policy, name_with
from ddsim.policy.memory import schedule_start
from ddsim.policy.price import solve_walk_price
from ddsim.policy.schedules import checked_ranges
from ddsim.policy.walk import (
    Walk,
    begin,
    chain_walks,
    fixed_seconds,
    hindsight_walk,
    online_walk,
    rule_walk,
    track,
    walk,
)
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions

MEMORY = 2000
"""Rounds after which an online price forgets, by default."""


class _Fixed(Policy):
    """The same answer in every round."""

    adaptive = False
    instead: ClassVar[str] = "DDTree(budget)"

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        return self._always(len(gains))

    def choose_batch(self, gains: Gains, seconds: Floats) -> Ints:
        return self._always(len(gains))

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        return walk(block, costs, self._always(1))

    def _always(self, count: int) -> Ints:
        if self.fixed is None:
            raise DdsimError(
                f"{self.name}: which budget is best shows on a trace only; replay it, then use {self.instead}"
            )
        return np.full(count, self.fixed, np.int32)

    def decision(self) -> Decision | None:
        if self.fixed is None:
            return None
        if self.fixed == NO_DRAFT:
            return Decision(AR)
        if self.fixed <= CHAIN:
            return Decision(CHAINS, width=0 if self.fixed == CHAIN else PREFIX - self.fixed)
        return Decision(WIDTH, width=self.fixed)


class Autoregressive(_Fixed):
    """No draft: one token a round.

    Examples
    --------
    >>> Autoregressive().name, Autoregressive().drafts
    ('AR', False)
    """

    name = "AR"
    drafts = False
    fixed = NO_DRAFT


class DFlash(_Fixed):
    """The chain of best candidates, one a depth: L nodes, L + 1 verified tokens. `Chain` of L by its usual name.

    Examples
    --------
    >>> DFlash(), DFlash().name
    (DFlash(), 'DFlash')
    """

    name = "DFlash"
    fixed = CHAIN


class DDTree(_Fixed):
    """The best tree of a fixed number of nodes.

    Parameters
    ----------
    budget : int
        Nodes, the root not counted.

    Examples
    --------
    >>> DDTree(64).name
    'DDTree(64)'
    """

    def __init__(self, budget: int) -> None:
        if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 0:
            raise DdsimError(f"DDTree: the budget must be a whole number of nodes, 0 or more, is {budget!r}")
        self.budget = int(budget)
        self.name = f"DDTree({self.budget})"

    @property
    def fixed(self) -> int:  # type: ignore[override]
        return self.budget

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "budget": self.budget}


class _Rule(Policy):
    """A scan of budgets by one of the rules of `ddsim.optimal_budget`."""

    label: ClassVar[str]
    rule: ClassVar[Rule]
    fill: bool = False

    def __init__(self, *, calibration: Calibration | None = None) -> None:
        self.calibration = calibration
        self.name = name_with(self.label, calibration)

    @property
    def _price(self) -> float:
        return 0.0

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        return round_budgets(gains, costs, self.rule, self._price, fill=self.fill, calibration=self.calibration)

    def choose_batch(self, gains: Gains, seconds: Floats, paid: Floats | None = None) -> Ints:
        rule = Decision(FOREST, RULES[self.rule], self._price, fill=self.fill, calibration=self.calibration)
        return decide_batch(rule, gains, seconds, paid)

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        if self.calibration is not None:
            return super().walk(block, costs)
        return rule_walk(block, costs, self.rule, self._price, fill=self.fill)

    def decision(self) -> Decision | None:
        return Decision(FOREST, RULES[self.rule], self._price, fill=self.fill, calibration=self.calibration)

    def to_json(self) -> dict[str, Any]:
        on = self.decides_on
        said = on if isinstance(on, str) else {"kind": on.kind, "range": str(on.range), "provenance": on.provenance}
        return {"name": self.name, "decides_on": said, "fill": self.fill}


class CaDDTree(_Rule):
    """Grow the tree while expected tokens per second of this round, (1 + Φ*(n)) / C(n), improve (arXiv 2606.01813).

    As its authors do, it decides on a monotone convex fit C of the medians that were measured, where stopping at the first node
    that doesn't pay is optimal, and pays what the hardware takes. `GreedySteps` decides on the measured costs themselves.

    Parameters
    ----------
    fill : bool
        After the rule stops at n nodes, verify the largest number that costs no more by what is paid: up to the end of the step.
    decides_on : "convex" or CostModel
        The curve to decide on: the convex fit of the costs that are paid, or one of your own.
    calibration : Calibration, optional
        Isotonic.

    Examples
    --------
    >>> from ddsim.policy.contract import decision_table
    >>> from ddsim.cost.model import CostModel
    >>> from ddsim.cost.table import cost_table
    >>> stepped = CostModel.from_table([1, 4, 5, 9], [1.0, 1.0, 1.4, 1.4])
    >>> gains = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.1]], np.float32)
    >>> costs = cost_table(stepped, [0], 6)
    >>> for policy in (GreedySteps(), CaDDTree(), CaDDTree(fill=True)):
    ...     print(policy.name, policy.choose(gains, decision_table(policy, stepped, costs)))
    GreedySteps [3]
    CaDDTree [5]
    CaDDTree filled [6]
    """

    label = "CaDDTree"
    rule = "greedy"

    def __init__(
        self,
        *,
        fill: bool = False,
        decides_on: Literal["convex"] | CostModel = "convex",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration=calibration)
        self.fill, self.decides_on = fill, decides_on
        label = self.label if isinstance(decides_on, str) else f"{self.label} on own costs"
        self.name = self.name.replace(self.label, label + (" filled" if fill else ""))


class GreedySteps(_Rule):
    """`CaDDTree`'s greedy stop on the measured costs, steps and all: it ends at the first step. Nobody's proposal, but instructive.

    Examples
    --------
    >>> GreedySteps().name, GreedySteps().decides_on, CaDDTree().decides_on
    ('GreedySteps', 'measured', 'convex')
    """

    label = "GreedySteps"
    rule = "greedy"


class RoundRatio(_Rule):
    """The budget of highest expected tokens per second of this round, over all n, so that no step of the costs stops it.

    Examples
    --------
    >>> costs = CostTable.of_curve(np.array([1.0, 1.0, 1.0, 1.4, 1.4, 1.4]), 1)
    >>> RoundRatio().choose(np.array([[0.9, 0.8, 0.2, 0.1, 0.1]], np.float32), costs)
    array([2], dtype=int32)
    """

    label = "RoundRatio"
    rule = "exhaustive"


class LongRun(_Rule):
    """The budget of highest (1 + Φ*(n)) - λ·C(n), at one price λ in tokens per second.

    For rounds that are alike (i.i.d.) this maximises throughput. For given texts it need not: where drafting is hard a token saves
    more time than where it is easy, which one price can't say, and `RoundRatio` can be faster.

    Parameters
    ----------
    price : float, optional
        λ. Without it, replay and `prepare` solve for it over the trace: the fixed point at which the price equals the
        throughput that it yields (`ddsim.policy.price.solve_walk_price`). A policy that was never prepared tunes the price itself, as
        with ``online``.
    online : bool
        Tune the price from the rounds so far, also in replay: prompts in their order, the state kept from one to the next, as
        in a server that runs on.
    memory : float
        Rounds after which an online price forgets. A short memory makes the price local: in a text, a token saved where
        decoding is slow is worth more time than one saved where it is fast. On the shipped recordings the online price comes
        within 0.6 % of the solved one's throughput after 200 rounds, and within 1 % where workloads follow one another.
    calibration : Calibration, optional
        Isotonic.

    Notes
    -----
    Step rule of the online price, in `ddsim.policy.walk.begin` and `ddsim.policy.walk.track` for replay, serving and decoder: λ = T / S,
    where T and S are the tokens and seconds of the rounds so far. They start in the first round as PRIOR rounds at that round's
    best ratio n₀ = argmax (1 + Φ*(n)) / C(n), with 1 + Φ*(n₀) tokens and C(n₀) seconds each. After round k, T ← ρ_k T + t_k and
    S ← ρ_k S + s_k: ρ_k = 1 for the first ``memory`` rounds, so that λ moves by steps s_k / S ~ 1/k as in stochastic
    approximation (Robbins-Monro), then 1 - 1 / ``memory``, so that it follows a changing load.
    After each `choose` or `choose_batch` call `observe` once, with the tokens committed by all its rounds and the seconds they
    took, on the scale of the costs given.

    Examples
    --------
    >>> LongRun(price=500).name, LongRun(online=True).name, LongRun().solves
    ('LongRun', 'LongRun online', 'price')
    """

    label = "LongRun"
    rule = "price"

    def __init__(
        self,
        price: float | None = None,
        *,
        online: bool = False,
        memory: float = MEMORY,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration=calibration)
        if not 1 < memory <= np.inf:
            raise DdsimError(f"LongRun: the memory must be above 1 round, is {memory!r}")
        if price is not None and (
            isinstance(price, bool) or not isinstance(price, (int, float, np.floating)) or not 0 <= price < np.inf
        ):
            raise DdsimError(f"LongRun: the price must be a number of tokens per second, 0 or more, is {price!r}")
        if price is not None and online:
            raise DdsimError("LongRun: give a price or let it be tuned online, not both")
        self.price = None if price is None else float(price)
        self.solves = "price" if price is None and not online else None
        self.memory = float(memory)
        if online:
            label = f"{self.label} online" + ("" if memory == MEMORY else f"({memory:g})")
            self.name = self.name.replace(self.label, label)
        self._forget()

    def _setting(self, key: str, default: Any) -> Any:
        return self.online and not self.solves if key == "online" else super()._setting(key, default)

    def _forget(self) -> None:
        self._state = np.zeros(3)  # tokens, seconds and rounds so far

    @property
    def online(self) -> bool:  # type: ignore[override]
        return self.price is None

    @property
    def _price(self) -> float:
        if self.price is not None:
            return self.price
        tokens, seconds, rounds = self._state.tolist()
        return tokens / seconds if rounds else 0.0

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        if not self.solves:
            return self.at(self.price)
        return self.at(solve_walk_price(positions, costs, sequences=sequences, calibration=self.calibration).price)

    def at(self, value: float | None) -> Self:
        ready = copy.copy(self)
        ready._forget()
        ready.price = value
        return ready

    def decision(self) -> Decision | None:
        memory = self.memory if self.online else 0.0
        price = self.price or 0.0
        return Decision(FOREST, PRICE, price, fill=self.fill, memory=memory, calibration=self.calibration)

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        if self.online and not self._state[2]:
            best = round_budgets(gains, costs, "exhaustive", calibration=self.calibration)
            self._start(gains, best, float(costs.seconds[costs.row, best].sum()))
        return super().choose(gains, costs)

    def choose_batch(self, gains: Gains, seconds: Floats, paid: Floats | None = None) -> Ints:
        if self.online and not self._state[2]:
            best = decide_batch(Decision(FOREST, EXHAUSTIVE, calibration=self.calibration), gains, seconds)
            self._start(gains, best, float(seconds[best.sum()]))
        return super().choose_batch(gains, seconds, paid)

    def _start(self, gains: Gains, budgets: Ints, seconds: float) -> None:
        mapped = gains if self.calibration is None else self.calibration.apply_gains(gains)
        kept = np.arange(gains.shape[1]) < budgets[:, None]
        tokens = len(gains) + float(mapped[kept].sum(dtype=np.float64))
        begin(self._state, tokens, seconds)

    def observe(self, tokens: float, seconds: float) -> None:
        if self.online and self._state[2]:
            track(self._state, self.memory, float(tokens), float(seconds))

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        if not self.online or self.calibration is not None:
            return super().walk(block, costs)
        roots = block.roots()
        if not len(roots):
            return Walk.begun(block)
        here = slice(roots[0], roots[0] + 1)
        self.choose(block.gains[here], costs.take(here))  # starts the price
        return online_walk(block, costs, self._state, self.memory, fill=self.fill)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"price": self.price, "solved": self.solves is not None, "memory": self.memory}


class Chain(_Fixed):
    """The first k tokens of the chain of best candidates, each the most probable after those before: k + 1 verified tokens.

    The trace's whole block is drafted, and its draft is paid for, as where an engine drafts a block and cuts it. An engine that is set
    to k once and for all may draft a shorter block, which proposes other tokens: record that with ``--block-size`` k + 1.

    Parameters
    ----------
    k : int
        1 to the trace's horizon.

    Examples
    --------
    >>> Chain(7).name
    'Chain(7)'
    """

    def __init__(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= LONGEST:
            raise DdsimError(f"Chain: k must be a whole number of tokens, 1 to {LONGEST}, is {k!r}")
        self.k = int(k)
        self.name = f"Chain({self.k})"

    @property
    def fixed(self) -> int:  # type: ignore[override]
        return PREFIX - self.k

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k}


class Schedule(_Fixed):
    """K tokens of the chain by the number of requests that are decoded together, as in vLLM's ``num_speculative_tokens_per_batch_size``.

    The whole block is drafted whatever K is, and its draft is paid for: vLLM's runner drafts the block and cuts it. K of 0 turns drafting
    off: a round decodes one token and pays for no draft. (ddsim's decoder and vLLM 0.26 draft all the same, which keeps the drafter up to
    date; a profile of an engine's whole steps has that in its seconds.)
    A lone request, as in replay, has the K of one request.

    Parameters
    ----------
    ranges : list of (int, int, int)
        ``(first, last, K)``: K, 0 or more, for ``first`` to ``last`` requests, both counted. One range starts from 1, and none
        overlap. Between and after them the K before goes on. K is cut to the length of the drafts.

    Examples
    --------
    >>> schedule = Schedule([(1, 4, 15), (9, 16, 7), (17, 64, 0)])
    >>> [schedule.k(requests) for requests in (1, 4, 5, 9, 16, 17, 1000)]
    [15, 15, 15, 7, 7, 0, 0]
    """

    scheduled = True
    solves = None

    def __init__(self, ranges: list[tuple[int, int, int]]) -> None:
        self.ranges = checked_ranges(ranges)
        self.name = f"Schedule({self.ranges})"
        self.requests = 1
        self.drafts = any(k for _, _, k in self.ranges)

    def k(self, requests: int) -> int:
        """K for a number of requests."""
        return next(k for first, _, k in reversed(self.ranges) if first <= requests)

    def action(self, requests: int) -> int:
        """What a round of so many requests does, as `Policy.choose` says it."""
        k = self.k(requests)
        return PREFIX - k if k else NO_DRAFT

    @property
    def fixed(self) -> int:  # type: ignore[override]
        return self.action(self.requests)

    def prepare(
        self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None
    ) -> Schedule:
        ready = copy.copy(self)
        ready.requests = costs.batch
        return ready

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        return np.full(len(gains), self.action(costs.batch), np.int32)

    def choose_batch(self, gains: Gains, seconds: Floats) -> Ints:
        return np.full(len(gains), self.action(len(gains)), np.int32)

    def decision(self) -> Decision:
        return Decision(SCHEDULED, start=schedule_start(self.ranges))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ranges": [list(one) for one in self.ranges]}


class _BestK(_Fixed):
    """The K of highest throughput over a trace."""

    def __init__(self) -> None:
        self.k: int | None = None

    @property
    def fixed(self) -> int | None:  # type: ignore[override]
        return None if self.k is None else PREFIX - self.k if self.k else NO_DRAFT

    @property
    def needs_trace(self) -> bool:  # type: ignore[override]
        return self.k is None

    def at(self, value: float) -> Self:
        ready = copy.copy(self)
        ready.k = int(value)
        return ready

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k}


class BestChain(_BestK):
    """The `Chain` of highest realised throughput over the trace, of 1 to L tokens: what `BestFixed` is for trees.

    Examples
    --------
    >>> BestChain().solves, BestChain().at(7).fixed == Chain(7).fixed
    ('chain', True)
    """

    name = "BestChain"
    solves = "chain"
    instead = "Chain(k)"

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        spent = chain_walks(positions, costs)[0]
        return self.at(1 + int(np.argmin((spent if sequences is None else spent[sequences]).sum(axis=0))))


class BestSchedule(_BestK):
    """The K of highest throughput over the trace for the number of requests that are decoded together, 0 where drafting doesn't pay.

    What vLLM's ``num_speculative_tokens_per_batch_size`` can be set to at best, as `ddsim.engine_plan` does: see `Schedule`.

    Examples
    --------
    >>> BestSchedule().scheduled, BestSchedule().at(0).fixed == Autoregressive().fixed
    (True, True)
    """

    name = "BestSchedule"
    solves = None
    for_batches = True
    scheduled = True
    instead = "Schedule(ranges)"

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        alone = costs.paid.ar_seconds[costs.row]
        alone[positions.starts[1:][np.diff(positions.starts) > 0] - 1] = 0  # no round starts at the last token
        counted = np.repeat(
            np.ones(positions.sequences, bool) if sequences is None else sequences, np.diff(positions.starts)
        )
        spent = chain_walks(positions, costs)[0]
        drafted = (spent if sequences is None else spent[sequences]).sum(axis=0)
        return self.at(int(np.argmin([alone[counted].sum(), *drafted])))


class BestFixed(_Fixed):
    """The fixed budget of highest realised throughput over the trace: a strong baseline, since it has seen the outcome.

    Examples
    --------
    >>> BestFixed().needs_trace, BestFixed().at(63).fixed
    (True, 63)
    """

    name = "BestFixed"
    solves = "budget"

    def __init__(self) -> None:
        self.budget: int | None = None

    @property
    def fixed(self) -> int | None:  # type: ignore[override]
        return self.budget

    @property
    def needs_trace(self) -> bool:  # type: ignore[override]
        return self.budget is None

    def prepare(
        self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None
    ) -> BestFixed:
        return self.at(int(np.argmin(fixed_seconds(positions, costs, sequences))))

    def at(self, value: float) -> BestFixed:
        ready = copy.copy(self)
        ready.budget = int(value)
        return ready

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "budget": self.budget}


class Hindsight(Policy):
    """The fastest choice of budgets for the tokens that came: a shortest path, the ceiling for every policy on these trees.

    Examples
    --------
    >>> Hindsight().hindsight  # to be replayed, not run
    True
    """

    name = "Hindsight"
    adaptive = False
    hindsight = True

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
        raise DdsimError("Hindsight: knows the tokens to come, so it works in replay only")

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        return hindsight_walk(block, costs)
