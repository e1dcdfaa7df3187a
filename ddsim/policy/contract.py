"""The contract of a policy: what replay, serving and the decoder ask of it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints
from ddsim.cost.model import CostModel
from ddsim.cost.table import CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN, LONGEST, NO_DRAFT, PREFIX, PRICE, nodes_of
from ddsim.policy.walk import Walk, in_order, lockstep, walk
from ddsim.tables import Shown
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions

Gains = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Decision:
    """A policy as the kernels understand it, see `Policy.decision`.

    Attributes
    ----------
    mode : int
        Which branch of `ddsim.policy.batch.decide`.
    rule, price : int, float
        GREEDY, EXHAUSTIVE or PRICE of `ddsim.policy.choose`; tokens per second, of PRICE.
    fill : bool
        Go on to the end of the step.
    memory : float
        Rounds after which an online price forgets; 0: the price is given.
    calibration : Calibration, optional
        Of the gains.
    chains : bool
        Whether the tree that it decides about is the chain: kernels are handed `ddsim.trace.rounds.chain_positions`.
    start : float64 [S]
        What it carries from round to round, as it is before the first (see `ddsim.policy.memory`).
    """

    mode: int
    rule: int = PRICE
    price: float = 0.0
    width: int = 0
    fill: bool = False
    memory: float = 0.0
    calibration: Calibration | None = None
    chains: bool = False
    start: Floats = dataclasses.field(default_factory=lambda: np.zeros(0), compare=False)


def _alias(kind: type[Policy]) -> None:
    """Take ``choose_joint`` of a class for its `Policy.choose_batch`, which was called so, and answer to the old name."""
    order = [vars(one) for one in kind.__mro__]
    old, new = (next(i for i, one in enumerate(order) if name in one) for name in ("choose_joint", "choose_batch"))
    if old < new:
        warnings.warn(f"{kind.__name__}: choose_joint is now called choose_batch", DeprecationWarning, stacklevel=3)
        kind.choose_batch = kind.choose_joint  # type: ignore[method-assign,assignment]
    own = vars(kind).get("choose_batch")
    if own is not None:

        def choose_joint(self: Policy, *asked: Any) -> Any:
            warnings.warn("choose_joint is now called choose_batch", DeprecationWarning, stacklevel=2)
            return own(self, *asked)

        kind.choose_joint = choose_joint  # type: ignore[method-assign]


class Policy:
    """A rule that picks node budgets.

    Attributes
    ----------
    name : str
        Shown in tables. A class without a name of its own is called by its class's name. (``repr`` is the call that makes it.)
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
    at_context : int or None
        The one context whose costs it decides on, where those of the requests' own contexts don't matter to it.
    chains : bool
        Whether the tree that it decides about is the chain of best candidates: ``gains`` are then the path probabilities of its first
        tokens, and an answer of n nodes is a chain of n tokens.
    fill : bool
        Whether it also looks at what is paid: `choose` finds it in ``costs.paid``, `choose_batch` gets it as a third argument.
    fixed : int or None
        Its answer to every question, if that is always the same: NO_DRAFT, CHAIN, PREFIX - k or a number of nodes.
    solves : str or None
        What `prepare` solves for on a trace: "price", "budget" and "chain" are numbers that `at` takes. None: nothing.
    price : float or None
        Tokens per second that it decides at, if it decides at a price that is known.
    needs_trace : bool
        Whether it can't `choose` before `prepare` has seen a trace.
    hindsight : bool
        Whether it has to know the tokens to come, so that it can be replayed, but not run.
    for_batches : bool
        Whether it is made for requests that are verified together.
    rectangular : bool
        Whether requests of a batch with fewer nodes are padded to the largest, and cost as much.
    scheduled : bool
        Whether its answer depends on how many requests are decoded together, and on nothing else. `fixed` is then its answer for as
        many as it was prepared for, at first for one.

    Examples
    --------
    >>> class Half(Policy):
    ...     def choose(self, gains, costs):
    ...         return (gains >= 0.5).sum(axis=1).astype(np.int32)
    >>> Half().name, Half().choose(np.array([[0.9, 0.6, 0.1]]), None).tolist()
    ('Half', [2])
    """

    name: str = "?"
    drafts: bool = True
    adaptive: bool = True
    online: bool = False
    calibration: Calibration | None = None
    decides_on: str | CostModel = "measured"
    at_context: int | None = None
    chains: bool = False
    fill: bool = False
    fixed: int | None = None
    solves: str | None = None
    price: float | None = None
    needs_trace: bool = False
    hindsight: bool = False
    for_batches: bool = False
    rectangular: bool = False
    scheduled: bool = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        _alias(cls)
        if "name" not in vars(cls) and isinstance(cls.name, str):
            cls.name = cls.__name__
        declared = any("solves" in vars(kind) for kind in cls.__mro__ if kind is not Policy)
        if not declared and cls.prepare is not Policy.prepare:
            cls.solves = "settings of its own"

    def __repr__(self) -> str:
        """The call that makes it, as `ddsim.parse_policy` reads it; settings that are as by default are left out."""
        said = []
        for key, parameter in inspect.signature(type(self)).parameters.items():
            value = self._setting(key, parameter.default)
            if value is parameter.empty:
                return f"<{self.name}>"  # it doesn't keep its settings under their names
            if parameter.default is parameter.empty:
                said.append(_literal(value))
            elif value is not parameter.default and value != parameter.default:
                said.append(f"{key}={_literal(value)}")
        kind = type(self)
        home = "" if kind.__module__.startswith("ddsim.") or "<locals>" in kind.__qualname__ else f"{kind.__module__}:"
        return f"{home}{kind.__name__}({', '.join(said)})"

    def _setting(self, key: str, default: Any) -> Any:
        """What it was made with."""
        return getattr(self, key, default)

    def prepare(self, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None) -> Policy:
        """A copy that is ready for a trace: it has solved what it needs of it (a price, the best fixed budget).

        Parameters
        ----------
        positions : Positions
        costs : cost table with a row for each position
        sequences : bool [S], optional
            Solve over these sequences only (default all).
        """
        return self

    def at(self, value: float) -> Policy:
        """A copy that is ready, with a given number in place of what it `solves` for."""
        raise DdsimError(f"{self.name} solves for no price and no budget")

    def choose(self, gains: Gains, costs: CostTable) -> Ints:
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
            Nodes to verify, or NO_DRAFT (decode one token without drafting), CHAIN (the chain of best candidates) or PREFIX - k (its
            first k tokens).
        """
        raise NotImplementedError(f"{self.name} chooses no budgets")

    def choose_batch(self, gains: Gains, seconds: Floats) -> Ints:
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

    def choose_joint(self, *asked: Any) -> Any:
        """`choose_batch`, as it was called."""
        warnings.warn("choose_joint is now called choose_batch", DeprecationWarning, stacklevel=2)
        return Policy.choose_batch(self, *asked)

    def observe(self, tokens: float, seconds: float) -> None:
        """What the last round yielded, and what it took. Only online rules use it."""

    def decision(self) -> Decision | None:
        """How the kernels decide as this policy does, also for a batch; None: they can't, so the policy has to be asked."""
        return None

    def walk(self, block: Positions, costs: CostTable) -> Walk:
        """Choose and tally in one pass over a block in memory.

        By default `choose` is asked about the positions that are reached: all sequences at a time, or round by round if the
        policy is online.
        """
        asked = functools.partial(ask, self)
        return in_order(block, costs, asked, self.observe) if self.online else lockstep(block, costs, asked)

    def actions(self, block: Positions, costs: CostTable) -> Ints:
        """Actions int32 [P] at the positions of a block that this policy visits; where a class overrides this, replay walks them."""
        return self.walk(block, costs).actions

    def to_json(self) -> dict[str, Any]:
        """Name and settings, for provenance."""
        return {"name": self.name}


def _literal(value: Any) -> str:
    if isinstance(value, Shown):  # a cost model or a calibration, which no call makes
        return f"<{type(value).__name__}>"
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def name_with(label: str, calibration: Calibration | None) -> str:
    """The name of a rule with a calibration of its own, which must be isotonic."""
    if calibration is not None and calibration.kind != "isotonic":
        raise DdsimError(
            f"{label}: a policy maps gains by an isotonic calibration; a {calibration.kind} calibration changes the "
            "trees, so give it to replay(calibration=...)"
        )
    return label if calibration is None else f"{label} isotonic"


def ask(policy: Policy, gains: Gains, costs: CostTable, *, most: int | None = None) -> Ints:
    """`Policy.choose`, its answer checked: int32 [k] of NO_DRAFT, chains or 0 .. ``most`` nodes (default: those in ``gains``)."""
    most = gains.shape[1] if most is None else most
    try:
        answer = policy.choose(gains, costs)
    except Exception as error:
        _blame(error, policy)
        raise
    return _checked(policy, "choose", answer, len(gains), most)


def ask_batch(policy: Policy, gains: Gains, seconds: Floats, paid: Floats, *, most: int | None = None) -> Ints:
    """`Policy.choose_batch`, its answer checked as by `ask`; ``paid`` is handed to policies that `fill`."""
    most = gains.shape[1] if most is None else most
    more = (paid,) if policy.fill else ()
    try:
        answer = policy.choose_batch(gains, seconds, *more)
    except Exception as error:
        _blame(error, policy)
        raise
    return _checked(policy, "choose_batch", answer, len(gains), most)


def _blame(error: Exception, policy: Policy) -> None:
    """Note on a policy's own exception, which passes as it is, whose it is, so that the command line can say so."""
    if not isinstance(error, DdsimError) and not hasattr(error, "of_policy"):
        error.of_policy = policy.name  # type: ignore[attr-defined]


def prepared(
    policy: Policy, positions: Positions, costs: CostTable, *, sequences: NDArray[np.bool_] | None = None
) -> Policy:
    """`Policy.prepare`, its answer checked."""
    try:
        ready = policy.prepare(positions, costs, sequences=sequences)
    except Exception as error:
        _blame(error, policy)
        raise
    if not isinstance(ready, Policy):
        raise DdsimError(
            f"policy {policy.name}: prepare must return a policy that is ready, itself or a copy; returned {type(ready).__name__}"
        )
    return ready


def walk_of(policy: Policy, block: Positions, costs: CostTable) -> Walk:
    """`Policy.walk`, of actions that are checked and that the costs can pay.

    Where a class of a user's own overrides `choose` or `observe` but inherits a kernel's `walk`, `choose` is asked.
    """
    nearest = _nearest(policy, "choose", "observe", "actions", "walk")
    closest = min(nearest.values())
    try:
        if nearest["actions"] == closest < nearest["walk"]:
            answer = policy.actions(block, costs)
        elif nearest["walk"] == closest:
            done = policy.walk(block, costs)
        else:
            done = Policy.walk(policy, block, costs)
    except Exception as error:
        _blame(error, policy)
        raise
    if nearest["actions"] == closest < nearest["walk"]:
        actions = _checked(policy, "actions", answer, len(block), block.max_budget)
        _check_payable(policy, block, costs, actions)
        return walk(block, costs, actions)
    _check_payable(policy, block, costs, done.actions)
    return done


def _check_payable(policy: Policy, block: Positions, costs: CostTable, actions: Ints) -> None:
    """Refuse actions that the costs have no seconds for."""
    charged = costs.paid
    width = charged.seconds.shape[1]
    if width > max(block.max_budget, block.horizon) and np.isfinite(charged.seconds[:, -1]).all():
        return
    nodes = nodes_of(actions, block.nodes, block.horizon)
    drafted = np.flatnonzero(actions != NO_DRAFT)
    beyond = nodes[drafted] >= width
    beyond |= ~np.isfinite(charged.seconds[costs.row[drafted], np.minimum(nodes[drafted], width - 1)])
    if beyond.any():
        last = int(np.isfinite(charged.seconds).all(axis=0).sum()) - 1
        raise DdsimError(
            f"policy {policy.name}: asks for {nodes[drafted][beyond].max()} nodes, but costs are known up to {last}; "
            "choose no more, or profile further"
        )


def decision_of(policy: Policy) -> Decision | None:
    """`Policy.decision`, but None where a class of a user's own overrides what it stands for and inherits it."""
    nearest = _nearest(policy, "choose", "choose_batch", "observe", "actions", "walk", "decision")
    return policy.decision() if nearest["decision"] == min(nearest.values()) else None


def is_rule(policy: Policy) -> bool:
    """Whether it can choose another budget in every round, and could be run."""
    return policy.fixed is None and policy.solves not in ("budget", "chain") and not policy.hindsight


def is_autoregressive(policy: Policy) -> bool:
    """Whether it never drafts, however many requests there are: the baseline of speed-ups."""
    return policy.fixed == NO_DRAFT and not policy.scheduled


def is_chain(policy: Policy) -> bool:
    """Whether it always verifies a chain, if it drafts."""
    return policy.solves == "chain" or policy.scheduled or (policy.fixed is not None and policy.fixed <= CHAIN)


def check_chain(policy: Policy, horizon: int) -> None:
    """Refuse a chain that is longer than those of a trace; a schedule's are cut to it, as engines do."""
    if policy.fixed is not None and policy.fixed < PREFIX - horizon and not policy.scheduled:
        raise DdsimError(
            f"{policy.name}: the trace's drafts have {horizon} tokens; choose at most that, or record with a larger block"
        )


def knows_batches(policy: Policy) -> bool:
    """Whether it has a rule of its own for requests that are verified together."""
    return type(policy).choose_batch is not Policy.choose_batch or "choose_batch" in vars(policy)


def _nearest(policy: Policy, *names: str) -> dict[str, int]:
    """How far up its ancestors each of some methods is defined; 0: in the object itself."""
    kinds = [vars(policy), *map(vars, type(policy).__mro__)]
    return {name: next(i for i, kind in enumerate(kinds) if name in kind) for name in names}


def calibration_matters(policy: Policy, kind: str) -> bool:
    """Whether a calibration can change what it does: of gains (isotonic), of marginals (temperature), or of all that is drafted (path)."""
    if policy.adaptive:
        return True
    if kind == "path":
        return policy.drafts
    return kind == "temperature" and policy.drafts and not policy.hindsight and not is_chain(policy)


def _checked(policy: Policy, method: str, answer: Any, count: int, most: int) -> Ints:
    """An answer as int32 [count], NO_DRAFT, a chain or 0 .. ``most`` each."""
    said = f"policy {policy.name}: {method} must return a whole number for each of {count} rounds"
    try:
        out = np.asarray(answer)
    except Exception as error:  # lists of different lengths, tensors on a GPU: whatever an array can't be made of
        raise DdsimError(f"{said}, as an array; returned {type(answer).__name__}: {str(error)[:80]!r}") from None
    if out.dtype.kind not in "iu" or out.shape != (count,):
        what = f"{out.dtype} of shape {list(out.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
        raise DdsimError(f"{said}, int32 of shape [{count}]; returned {what}")
    if count and (out.max() > most or out.min() < CHAIN):
        wrong = (out > most) | ((out < CHAIN) & ((out >= PREFIX) | (out < PREFIX - LONGEST)))
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise DdsimError(
                f"{said}: 0 to {most} nodes, NO_DRAFT ({NO_DRAFT}), CHAIN ({CHAIN}) or PREFIX - k ({PREFIX} - k) for k tokens of the "
                f"chain; returned {out[k]} for the first such round, {k}"
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


def cost_table_of(policy: Policy, model: CostModel, contexts: NDArray[np.int64], most: int, batch: int) -> CostTable:
    """What a policy decides on, up to ``most`` nodes: seconds at the contexts, or all at `Policy.at_context`, as near to it as was measured at any batch."""
    if policy.at_context is None:
        return cost_table(model, contexts, most, batch)
    low, high = model.range.contexts or (policy.at_context, policy.at_context)
    at = np.full_like(contexts, min(max(policy.at_context, int(low)), int(high)))
    with model.no_warning():  # nothing of it is paid
        table = cost_table(model, at, most, batch)
    return dataclasses.replace(table, seconds=np.maximum.accumulate(table.seconds, axis=1))


def decision_table(policy: Policy, cost: CostModel, costs: CostTable) -> CostTable:
    """The table that a policy decides on, with ``costs``, made of ``cost``, as what it pays.

    Budgets that can't be paid (of infinite cost) can't be chosen.
    """
    model = decision_cost(policy, cost)
    if model is cost and policy.at_context is None:
        return costs
    known = np.isfinite(costs.seconds)
    most = int(np.flatnonzero(known.any(axis=0))[-1])
    table = cost_table_of(policy, model, costs.contexts, most, costs.batch)
    seconds = np.full(costs.seconds.shape, np.inf)
    seconds[:, : most + 1] = table.seconds[table.row]
    seconds[~known] = np.inf
    return dataclasses.replace(costs, seconds=seconds, ar_seconds=table.ar_seconds[table.row], charged=costs)
