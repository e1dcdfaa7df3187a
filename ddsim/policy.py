"""Policies: who decides, each round, how many nodes of the draft tree to verify.

One small object per policy; replay, serving and the decoder call the same `Policy.choose`. A policy of your own is a class with
a ``name`` and a ``choose``:

>>> class Half(Policy):
...     \"\"\"Nodes as likely as not to be accepted.\"\"\"
...     name = "Half"
...     def choose(self, gains, costs):
...         return (gains >= 0.5).sum(axis=1).astype(np.int32)
>>> Half().choose(np.array([[0.9, 0.6, 0.1]], np.float32), None)
array([2], dtype=int32)
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ddsim import budget as _budget
from ddsim.budget import CHAIN, NO_DRAFT, Costs, Floats, Ints, Positions, Rule
from ddsim.calibration import Calibration
from ddsim.cost import CostModel, CostTable, cost_table
from ddsim.errors import DdsimError

Gains = NDArray[np.float32]

MEMORY = 2000
"""Rounds after which an online price forgets, by default."""


class Policy:
    """A rule that picks node budgets.

    Attributes
    ----------
    name : str
        Shown in tables. A class without a name of its own is called by its class's name.
    drafts : bool
        False if no round needs the drafter.
    adaptive : bool
        Whether the gains of a round matter to its budget.
    online : bool
        Whether earlier rounds matter: replay then goes round by round, in order, and reports each by `observe`.
    calibration : Calibration or None
        Applied to the gains before a budget is chosen (isotonic only).
    decides_on : str or CostModel
        What costs it decides on; rounds always take the seconds of the cost model that is replayed, planned or served with.
        "measured": that cost model. "convex": its convex fit (`CostModel.convex`). Or a cost model of its own.
    fill : bool
        Whether it also looks at what is paid: `choose` finds it in ``costs.paid``, `choose_joint` gets it as a third argument.
    """

    name: str = "?"
    drafts: bool = True
    adaptive: bool = True
    online: bool = False
    calibration: Calibration | None = None
    decides_on: str | CostModel = "measured"
    fill: bool = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "name" not in vars(cls) and isinstance(cls.name, str):
            cls.name = cls.__name__

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def prepare(self, positions: Positions, costs: Costs, *, sequences: NDArray[np.bool_] | None = None) -> Policy:
        """A copy that is ready for a trace: it has solved what it needs of it (a price, the best fixed budget).

        Parameters
        ----------
        positions : Positions
        costs : cost table with a row for each position
        sequences : bool [S], optional
            Solve over these sequences only (default all).
        """
        return self

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        """Budgets of k independent rounds of one request each.

        Parameters
        ----------
        gains : float32 [k, N]
            Path probabilities of the best nodes, descending, 0 where none exist.
        costs : cost table whose ``row`` has k entries
            ``costs.seconds[costs.row[i], n]``: seconds of round i with n nodes, by the costs that the policy `decides_on`.

        Returns
        -------
        int32 [k]
            Nodes to verify, or NO_DRAFT (decode one token without drafting) or CHAIN (the chain of best candidates).
        """
        raise NotImplementedError(f"{self.name} chooses no budgets")

    def choose_joint(self, gains: Gains, seconds: Floats) -> Ints:
        """Budgets of B requests that are verified in one forward pass.

        Parameters
        ----------
        gains : float32 [B, N]
        seconds : float64 [M + 1]
            A joint round with n = 0 .. M nodes in all, by the costs that the policy `decides_on`. Policies that `fill` get what is
            paid as a third argument of the same shape.

        Returns
        -------
        int32 [B]
            As from `choose`; whoever runs the pass sees to it that no more than M nodes are asked for.
        """
        raise DdsimError(f"{self.name} has no rule for requests that are verified together")

    def observe(self, tokens: float, seconds: float) -> None:
        """What the last round yielded, and what it took. Only online rules use it."""

    def actions(self, block: Positions, costs: Costs) -> Ints:
        """Actions int32 [P] at the positions of a block that this policy visits; replay walks them.

        By default `choose` is asked about the positions that are reached: all sequences at a time, or round by round if the
        policy is online.
        """
        if self.online:
            return _in_order(self, block, costs)
        return _budget.lockstep(block, costs, lambda gains, part: ask(self, gains, part))

    def to_json(self) -> dict[str, Any]:
        """Name and settings, for provenance."""
        return {"name": self.name}


class Autoregressive(Policy):
    """No draft: one token a round."""

    name = "AR"
    drafts = False
    adaptive = False

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        return np.full(len(gains), NO_DRAFT, np.int32)

    def choose_joint(self, gains: Gains, seconds: Floats) -> Ints:
        return np.full(len(gains), NO_DRAFT, np.int32)

    def actions(self, block: Positions, costs: Costs) -> Ints:
        return np.full(len(block), NO_DRAFT, np.int32)


class DFlash(Policy):
    """The chain of best candidates, one a depth: L nodes, L + 1 verified tokens."""

    name = "DFlash"
    adaptive = False

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        return np.full(len(gains), CHAIN, np.int32)

    def choose_joint(self, gains: Gains, seconds: Floats) -> Ints:
        return np.full(len(gains), CHAIN, np.int32)

    def actions(self, block: Positions, costs: Costs) -> Ints:
        return np.full(len(block), CHAIN, np.int32)


class DDTree(Policy):
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

    adaptive = False

    def __init__(self, budget: int) -> None:
        if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 0:
            raise DdsimError(f"DDTree: the budget must be a whole number of nodes, 0 or more, is {budget!r}")
        self.budget = int(budget)
        self.name = f"DDTree({self.budget})"

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        return np.full(len(gains), self.budget, np.int32)

    def choose_joint(self, gains: Gains, seconds: Floats) -> Ints:
        return np.full(len(gains), self.budget, np.int32)

    def actions(self, block: Positions, costs: Costs) -> Ints:
        return np.full(len(block), self.budget, np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "budget": self.budget}


class _Rule(Policy):
    """A scan of budgets by one of the rules of `ddsim.optimal_budget`."""

    label: ClassVar[str]
    rule: ClassVar[Rule]
    fill: bool = False

    def __init__(self, *, calibration: Calibration | None = None) -> None:
        if calibration is not None and calibration.kind != "isotonic":
            raise DdsimError(
                f"{self.label}: a policy maps gains by an isotonic calibration; a {calibration.kind} calibration changes the "
                "trees, so give it to replay(calibration=...)"
            )
        self.calibration = calibration
        self.name = self.label if calibration is None else f"{self.label} isotonic"

    @property
    def _price(self) -> float:
        return 0.0

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        return _budget.round_budgets(gains, costs, self.rule, self._price, fill=self.fill, calibration=self.calibration)

    def choose_joint(self, gains: Gains, seconds: Floats, paid: Floats | None = None) -> Ints:
        fill = (seconds if paid is None else paid) if self.fill else None
        return _budget.forest_budgets(gains, seconds, self.rule, self._price, fill=fill, calibration=self.calibration)

    def actions(self, block: Positions, costs: Costs) -> Ints:
        if self.calibration is not None:
            return super().actions(block, costs)
        return _budget.rule_actions(block, costs, self.rule, self._price, fill=self.fill)

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
    >>> from ddsim.cost import CostModel, cost_table
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
    """`CaDDTree`'s greedy stop on the measured costs, steps and all: it ends at the first step. Nobody's proposal, but instructive."""

    label = "GreedySteps"
    rule = "greedy"


class RoundRatio(_Rule):
    """The budget of highest expected tokens per second of this round, over all n, so that no step of the costs stops it."""

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
        throughput that it yields (`ddsim.budget.solve_walk_price`). A policy that was never prepared tunes the price itself, as
        with ``online``.
    online : bool
        Tune the price from the rounds so far, also in replay: prompts in their order, the state kept from one to the next, as
        in a server that runs on.
    memory : float
        Rounds after which an online price forgets. A short memory makes the price local: in a text, a token saved where
        decoding is slow is worth more time than one saved where it is fast. On the shipped recordings the online price comes
        within 0.5 % of the solved one's throughput after 200 rounds, and within 1 % where workloads follow one another.
    calibration : Calibration, optional
        Isotonic.

    Notes
    -----
    Step rule of the online price, in `ddsim.budget.begin` and `ddsim.budget.track` for replay, serving and decoder: λ = T / S,
    where T and S are the tokens and seconds of the rounds so far. They start in the first round as PRIOR rounds at that round's
    best ratio n₀ = argmax (1 + Φ*(n)) / C(n), with 1 + Φ*(n₀) tokens and C(n₀) seconds each. After round k, T ← ρ_k T + t_k and
    S ← ρ_k S + s_k: ρ_k = 1 for the first ``memory`` rounds, so that λ moves by steps s_k / S ~ 1/k as in stochastic
    approximation (Robbins-Monro), then 1 - 1 / ``memory``, so that it follows a changing load.
    After each `choose` or `choose_joint` call `observe` once, with the tokens committed by all its rounds and the seconds they
    took, on the scale of the costs given.
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
        self.solves = price is None and not online
        self.memory = float(memory)
        if online:
            label = f"{self.label} online" + ("" if memory == MEMORY else f"({memory:g})")
            self.name = self.name.replace(self.label, label)
        self._forget()

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

    def prepare(self, positions: Positions, costs: Costs, *, sequences: NDArray[np.bool_] | None = None) -> Self:
        ready = copy.copy(self)
        ready._forget()
        if self.solves:
            ready.price = _budget.solve_walk_price(
                positions, costs, sequences=sequences, calibration=self.calibration
            ).price
        return ready

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        if self.online and not self._state[2]:
            best = _budget.round_budgets(gains, costs, "exhaustive", calibration=self.calibration)
            self._start(gains, best, float(costs.seconds[costs.row, best].sum()))
        return super().choose(gains, costs)

    def choose_joint(self, gains: Gains, seconds: Floats, paid: Floats | None = None) -> Ints:
        if self.online and not self._state[2]:
            best = _budget.forest_budgets(gains, seconds, "exhaustive", calibration=self.calibration)
            self._start(gains, best, float(seconds[best.sum()]))
        return super().choose_joint(gains, seconds, paid)

    def _start(self, gains: Gains, budgets: Ints, seconds: float) -> None:
        mapped = gains if self.calibration is None else self.calibration.apply_gains(gains)
        kept = np.arange(gains.shape[1]) < budgets[:, None]
        tokens = len(gains) + float(mapped[kept].sum(dtype=np.float64))
        _budget.begin(self._state, tokens, seconds)

    def observe(self, tokens: float, seconds: float) -> None:
        if self.online and self._state[2]:
            _budget.track(self._state, self.memory, float(tokens), float(seconds))

    def actions(self, block: Positions, costs: Costs) -> Ints:
        if not self.online or self.calibration is not None:
            return super().actions(block, costs)
        roots = block.roots()
        if not len(roots):
            return np.zeros(len(block), np.int32)
        here = slice(roots[0], roots[0] + 1)
        self.choose(block.gains[here], _budget.cost_rows(costs, here))  # starts the price
        return _budget.online_actions(block, costs, self._state, self.memory, fill=self.fill)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"price": self.price, "solved": self.solves, "memory": self.memory}


class BestFixed(Policy):
    """The fixed budget of highest realised throughput over the trace: a strong baseline, since it has seen the outcome."""

    name = "BestFixed"
    adaptive = False

    def __init__(self) -> None:
        self.budget: int | None = None

    def prepare(self, positions: Positions, costs: Costs, *, sequences: NDArray[np.bool_] | None = None) -> BestFixed:
        ready = BestFixed()
        ready.budget = int(np.argmin(_budget.fixed_seconds(positions, costs, sequences)))
        return ready

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        if self.budget is None:
            raise DdsimError(
                "BestFixed: which budget is best shows on a trace only; replay it, then use DDTree(budget)"
            )
        return np.full(len(gains), self.budget, np.int32)

    def choose_joint(self, gains: Gains, seconds: Floats) -> Ints:
        return self.choose(gains, None)  # type: ignore[arg-type]

    def actions(self, block: Positions, costs: Costs) -> Ints:
        return self.choose(block.nodes, costs)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "budget": self.budget}


class Hindsight(Policy):
    """The fastest choice of budgets for the tokens that came: a shortest path, the ceiling for every policy on these trees."""

    name = "Hindsight"
    adaptive = False

    def choose(self, gains: Gains, costs: Costs) -> Ints:
        raise DdsimError("Hindsight: knows the tokens to come, so it works in replay only")

    def actions(self, block: Positions, costs: Costs) -> Ints:
        return _budget.hindsight_actions(block, costs)


# --------------------------------------------------------------------------------------------------------------------
# asking policies, those of users too: what they answer is checked once a call, before a kernel indexes with it
# --------------------------------------------------------------------------------------------------------------------


def policy_of(policy: Any, *, joint: bool = False) -> Policy:
    """A policy from what a caller gave: an object, or its name as `parse_policy` takes it.

    Raises
    ------
    DdsimError
        Neither, or a policy without a name, or with that of another policy of ddsim.
    """
    if isinstance(policy, str):
        return parse_policy(policy, joint=joint)
    if isinstance(policy, type):
        raise DdsimError(f"policies: {policy.__name__} is a class; give an object, as in {policy.__name__}()")
    if not isinstance(policy, Policy):
        raise DdsimError(
            f"policies: expected a policy or its name, got {type(policy).__name__}; derive a policy of your own from ddsim.Policy"
        )
    if not isinstance(policy.name, str) or not policy.name.strip():
        raise DdsimError(f"policy {type(policy).__name__}: its name must be a text, is {policy.name!r:.60}")
    if policy.name in _KNOWN and type(policy) is not _KNOWN[policy.name]:
        raise DdsimError(f"policy {type(policy).__name__}: {policy.name} is ddsim's own; give yours another name")
    return policy


def policies_of(policies: Any, *, joint: bool = False) -> list[Policy]:
    """Policies from what a caller gave, one or several (`policy_of`), each name once.

    Examples
    --------
    >>> policies_of("CaDDTree"), policies_of([DDTree(8), "ar"])
    ([<CaDDTree>], [<DDTree(8)>, <AR>])
    """
    if isinstance(policies, (str, Policy, type)):
        policies = [policies]
    try:
        found = [policy_of(policy, joint=joint) for policy in policies]
    except TypeError:
        if isinstance(policies, Iterable):
            raise
        raise DdsimError(f"policies: expected policies or their names, got {type(policies).__name__}") from None
    names = [policy.name for policy in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DdsimError(f"two policies are called {twice[0]!r}; give each a name of its own")
    return found


def ask(policy: Policy, gains: Gains, costs: Costs, *, most: int | None = None) -> Ints:
    """`Policy.choose`, its answer checked: int32 [k] of NO_DRAFT, CHAIN or 0 .. ``most`` nodes (default: those in ``gains``)."""
    most = gains.shape[1] if most is None else most
    return _checked(policy, "choose", policy.choose(gains, costs), len(gains), most)


def ask_joint(policy: Policy, gains: Gains, seconds: Floats, paid: Floats, *, most: int | None = None) -> Ints:
    """`Policy.choose_joint`, its answer checked as by `ask`; ``paid`` is handed to policies that `fill`."""
    most = gains.shape[1] if most is None else most
    more = (paid,) if policy.fill else ()
    return _checked(policy, "choose_joint", policy.choose_joint(gains, seconds, *more), len(gains), most)


def prepared(
    policy: Policy, positions: Positions, costs: Costs, *, sequences: NDArray[np.bool_] | None = None
) -> Policy:
    """`Policy.prepare`, its answer checked."""
    ready = policy.prepare(positions, costs, sequences=sequences)
    if not isinstance(ready, Policy):
        raise DdsimError(
            f"policy {policy.name}: prepare must return a policy that is ready, itself or a copy; returned {type(ready).__name__}"
        )
    return ready


def actions_of(policy: Policy, block: Positions, costs: Costs) -> Ints:
    """`Policy.actions`, checked: int32 [P] that the costs can pay.

    Where a class of a user's own overrides `choose` or `observe` but inherits a kernel's `actions`, `choose` is asked.
    """
    kinds = [vars(policy), *map(vars, type(policy).__mro__)]
    nearest = {name: next(i for i, of in enumerate(kinds) if name in of) for name in ("choose", "observe", "actions")}
    asked = Policy.actions if nearest["actions"] > min(nearest["choose"], nearest["observe"]) else type(policy).actions
    actions = _checked(policy, "actions", asked(policy, block, costs), len(block), block.max_budget)
    charged = _budget.paid(costs)
    width = charged.seconds.shape[1]
    if width <= max(block.max_budget, block.horizon) or not np.isfinite(charged.seconds[:, -1]).all():
        nodes = np.where(actions == CHAIN, block.horizon, np.minimum(actions, block.nodes))
        drafted = np.flatnonzero(nodes >= 0)
        beyond = nodes[drafted] >= width
        beyond |= ~np.isfinite(charged.seconds[costs.row[drafted], np.minimum(nodes[drafted], width - 1)])
        if beyond.any():
            last = int(np.isfinite(charged.seconds).all(axis=0).sum()) - 1
            raise DdsimError(
                f"policy {policy.name}: asks for {nodes[drafted][beyond].max()} nodes, but costs are known up to {last}; "
                "choose no more, or profile further"
            )
    return actions


def _checked(policy: Policy, method: str, answer: Any, count: int, most: int) -> Ints:
    """An answer as int32 [count], NO_DRAFT, CHAIN or 0 .. ``most`` each."""
    said = f"policy {policy.name}: {method} must return a whole number for each of {count} rounds"
    try:
        out = np.asarray(answer)
    except Exception as error:  # lists of different lengths, tensors on a GPU: whatever an array can't be made of
        raise DdsimError(f"{said}, as an array; returned {type(answer).__name__}: {str(error)[:80]!r}") from None
    if out.dtype.kind not in "iu" or out.shape != (count,):
        what = f"{out.dtype} of shape {list(out.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
        raise DdsimError(f"{said}, int32 of shape [{count}]; returned {what}")
    if count and (out.max() > most or out.min() < CHAIN):
        k = int(np.flatnonzero((out > most) | (out < CHAIN))[0])
        raise DdsimError(
            f"{said}: 0 to {most} nodes, NO_DRAFT ({NO_DRAFT}) or CHAIN ({CHAIN}); returned {out[k]} for the first such round, {k}"
        )
    return np.ascontiguousarray(out, np.int32)


def decision_cost(policy: Policy, cost: CostModel) -> CostModel:
    """The cost model that a policy decides on where ``cost`` is paid."""
    wanted = policy.decides_on
    if wanted == "measured":
        return cost
    if wanted == "convex":
        return cost.convex()
    if not hasattr(wanted, "verify_seconds"):
        raise DdsimError(f'{policy.name}: decides_on must be "measured", "convex" or a cost model, is {wanted!r:.60}')
    return wanted  # type: ignore[return-value]


def decision_table(policy: Policy, cost: CostModel, costs: CostTable) -> CostTable:
    """The table that a policy decides on, with ``costs``, made of ``cost``, as what it pays.

    Budgets that can't be paid (of infinite cost) can't be chosen.
    """
    model = decision_cost(policy, cost)
    if model is cost:
        return costs
    known = np.isfinite(costs.seconds)
    most = int(np.flatnonzero(known.any(axis=0))[-1])
    table = cost_table(model, costs.contexts, most, costs.batch)
    seconds = np.full(costs.seconds.shape, np.inf)
    seconds[:, : most + 1] = table.seconds
    seconds[~known] = np.inf
    return dataclasses.replace(costs, seconds=seconds, ar_seconds=table.ar_seconds, paid=costs)


def _in_order(policy: Policy, block: Positions, costs: Costs) -> Ints:
    """Actions of an online policy: one request after another, one round after another."""
    actions = np.zeros(len(block), np.int32)
    for first, last in zip(block.starts[:-1].tolist(), (block.starts[1:] - 1).tolist(), strict=True):
        p = first
        while p < last:
            here = slice(p, p + 1)
            actions[here] = ask(policy, np.array(block.gains[here]), _budget.cost_rows(costs, here))
            p, seconds = _budget.step(block, costs, p, int(actions[p]))
            policy.observe(min(p, last) - first, seconds)
            first = p
    return actions


_KNOWN: dict[str, Callable[..., Policy]] = {
    "AR": Autoregressive,
    "DFlash": DFlash,
    "DDTree": DDTree,
    "CaDDTree": CaDDTree,
    "GreedySteps": GreedySteps,
    "RoundRatio": RoundRatio,
    "LongRun": LongRun,
    "BestFixed": BestFixed,
    "Hindsight": Hindsight,
}

_SETTINGS: dict[str, dict[str, Callable[[str], Any]]] = {
    "DDTree": {"budget": int},
    "CaDDTree": {"fill": bool},
    "LongRun": {"price": float, "online": bool, "memory": float},
}


LONGEST_NAME = 200  # characters: each level of Share:Share:... is a call deeper
JOINT = ("FairRatio", "Share", "Uniform")  # of ddsim.joint: policies for requests that are decoded together


def parse_policy(text: str, *, joint: bool = False) -> Policy:
    """A policy from its name and settings as typed on a command line.

    Parameters
    ----------
    text : str
        ``Name``, ``Name:value`` or ``Name:key=value,...``; the names that tables show (``DDTree(64)``, ``LongRun online``,
        ``RoundRatio share``) are understood too. Names count whatever their case.
    joint : bool
        Whether it is for requests that are decoded together: then ``FairRatio``, ``Share:RULE`` and ``Uniform:RULE`` are known
        too, where RULE is CaDDTree, GreedySteps, RoundRatio or LongRun with its settings.

    Raises
    ------
    DdsimError
        Unknown name (the line lists the known ones), or settings that the policy doesn't take.

    Examples
    --------
    >>> [parse_policy(text).name for text in ("ddtree:64", "DDTree(8)", "CaDDTree:fill", "LongRun:price=500", "LongRun:online")]
    ['DDTree(64)', 'DDTree(8)', 'CaDDTree filled', 'LongRun', 'LongRun online']
    >>> [parse_policy(text, joint=True).name for text in ("Share:RoundRatio", "uniform:LongRun:500", "FairRatio")]
    ['RoundRatio share', 'LongRun uniform', 'FairRatio']
    """
    if len(text) > LONGEST_NAME:
        raise DdsimError(f"unknown policy {text[:40]!r}… of {len(text):,} characters; see --help for names")
    text = re.sub(r"(?i)^\s*(\S.*?)\s+(share|uniform)\s*$", r"\2:\1", text)
    text = re.sub(r"(?i)^\s*(longrun)\s+online\s*$", r"\1:online", text)
    text = re.sub(r"(?i)^\s*(caddtree)\s+filled\s*$", r"\1:fill", text)
    match = re.fullmatch(r"\s*([A-Za-z]+)\s*(?::(.*)|\((.*)\))?\s*", text)
    name = match.group(1).lower() if match else ""
    known = {key.lower(): key for key in (*_KNOWN, *JOINT)} | {"autoregressive": "AR"}
    if match is None or name not in known:
        names = ", ".join([key for key in _KNOWN if key != "Hindsight"] + [*JOINT] if joint else _KNOWN)
        raise DdsimError(f"unknown policy {text!r}; known: {names} (a budget is given as DDTree:63)")
    label = known[name]
    settings = (match.group(2) or match.group(3) or "").strip()
    if label in JOINT:
        if not joint:
            raise DdsimError(f"policy {text!r}: {label} is for requests that are decoded together, as by ddsim serve")
        return _parse_joint(text, label, settings)
    takes = _SETTINGS.get(label, {})
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            first = next((key for key, kind in takes.items() if kind is not bool), "")
            key, value = (part, "true") if takes.get(part) is bool else (first, part)
        if key not in takes:
            raise DdsimError(f"policy {text!r}: {label} takes {', '.join(takes) or 'no settings'}")
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if takes[key] is bool else takes[key](value)
        except (KeyError, ValueError):
            raise DdsimError(f"policy {text!r}: {key} can't be {value!r}") from None
    if label == "DDTree" and "budget" not in values:
        raise DdsimError(f"policy {text!r}: DDTree needs a budget, as in DDTree:63")
    return _KNOWN[label](**values)


def _parse_joint(text: str, label: str, settings: str) -> Policy:
    from ddsim import joint

    if label == "FairRatio":
        if settings:
            raise DdsimError(f"policy {text!r}: FairRatio takes no settings")
        return joint.FairRatio()
    if not settings:
        raise DdsimError(f"policy {text!r}: {label} needs a rule for one request, as in {label}:RoundRatio")
    rule = parse_policy(settings, joint=True)
    if not isinstance(rule, _Rule):
        raise DdsimError(
            f"policy {text!r}: {label} takes CaDDTree, GreedySteps, RoundRatio or LongRun, not {rule.name}"
        )
    return joint.Share(rule) if label == "Share" else joint.Uniform(rule)
