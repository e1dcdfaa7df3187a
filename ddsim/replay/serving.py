"""Serving: a closed loop of B requests that are decoded together."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ddsim
from ddsim import limits
from ddsim.arrays import Floats, Ints
from ddsim.cluster import workers
from ddsim.cost.model import CostModel
from ddsim.cost.ranges import measured_grid
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.policy.batch import (
    AR,
    FAIR,
    FOREST,
    LAGGED,
    SHARE,
    STEPS,
    FairRatio,
    Share,
    Uniform,
    accepted_of,
    calibrated,
    decide,
    learn,
    share_curve,
)
from ddsim.policy.choose import CHAIN, EXHAUSTIVE, NO_DRAFT, PRICE, chain_length, nodes_of
from ddsim.policy.contract import Decision, Policy, ask_batch, check_chain, decision_of, is_autoregressive, prepared
from ddsim.policy.engine_rules import AdaptiveSteps, AdaptiveVerification, DSpark, OnChain
from ddsim.policy.joint import JointTable, batches_of, curves_for, decide_round, decided_on, joint_table
from ddsim.policy.names import EVERY
from ddsim.policy.parse import policies_of
from ddsim.policy.rules import Autoregressive, BestChain, BestFixed, BestSchedule, DFlash, LongRun, RoundRatio
from ddsim.policy.walk import begin, track
from ddsim.replay.arguments import check_given, measured_on
from ddsim.replay.requests import _in_memory, _queues
from ddsim.replay.served import SHUFFLES, Run, ServingResult
from ddsim.text import distinct
from ddsim.threads import split
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions, chain_positions
from ddsim.trace.schema import Progress
from ddsim.trace.shared import SharedTrace
from ddsim.trace.trace import Trace

BATCHES = (1, 8, 32)

ENOUGH = 800_000
"""Positions over which a price is solved: of a long trace, fewer orders of the queue say the same."""


def serving_policies() -> list[Policy]:
    """AR, DFlash, BestFixed (one width for all, always), RoundRatio by shares, with one width a round and as a forest, and the forests
    of LongRun (solved and online) and FairRatio.

    Examples
    --------
    >>> [policy.name for policy in serving_policies()][-4:]
    ['RoundRatio', 'LongRun', 'LongRun online', 'FairRatio']
    """
    return [
        Autoregressive(),
        DFlash(),
        BestFixed(),
        Share(RoundRatio()),
        Uniform(RoundRatio()),
        RoundRatio(),
        LongRun(),
        LongRun(online=True),
        FairRatio(),
    ]


def rules_for(cost: CostModel) -> list[Policy]:
    """What ``rules`` stands for: the best fixed settings, and the rules that engines have, each over the chains that engines verify.

    Adaptive verification, DSpark's and SGLang's rule, vLLM's schedule at its best, and what rules for trees could do there: one length a
    round, the fair ratio, the forest by price. Costs that no engine is named for are a decoder's that verifies trees: those rules over trees too.

    Examples
    --------
    >>> [policy.name for policy in rules_for(CostModel.from_table([1, 2], [1.0, 1.0]))][-3:]
    ['LongRun uniform', 'FairRatio', 'LongRun']
    """
    carried: list[Policy] = [Uniform(LongRun()), FairRatio(), LongRun()]
    chains = [BestChain(), BestSchedule(), AdaptiveSteps(), DSpark(), AdaptiveVerification(), *map(OnChain, carried)]
    return [Autoregressive(), *chains, *([] if measured_on(cost.provenance) else [BestFixed(), *carried])]


@njit(cache=True, nogil=True)
def _closed_loop(  # type: ignore[no-untyped-def]
    mode, rule, price, fill, width, memory, start, gains, ranks, nodes, chain, chain_expected, context, starts, queue, batch, step,
    low, seconds, ar_seconds, curve, curve_ahead, share, share_ahead, known, first, last,
    spent, committed, rounds, verified, latency, largest,
):  # fmt: skip
    """Repeats ``first`` to ``last`` (rows of ``queue``) of the simulation; see `simulate`. What happened goes to the last six arrays.

    ``known`` int32 [P] keeps the nodes of lone requests, -1 where nobody has asked; empty where they depend on more than the position.
    """
    requests, horizon = queue.shape[1], ranks.shape[1]
    for r in range(first, last):
        where, end = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        request, since = np.zeros(batch, np.int64), np.zeros(batch)
        budgets, heap = np.zeros(batch, np.int32), np.zeros(batch, np.int64)
        key, rate = np.zeros(batch), np.zeros(batch)
        order, mean = np.zeros(curve.shape[1], np.int32), np.zeros(gains.shape[1], np.float32)
        before, left, accepted = np.full((batch, 2), -1), np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        carried = start.copy()
        for b in range(batch):
            s = queue[r, b % requests]
            where[b], end[b], request[b] = starts[s], starts[s + 1] - 1, b
        following, done, now, at = batch, 0, 0.0, price
        state = np.zeros(3)  # of an online LongRun: see there
        priced, paid, own, ahead, part, part_ahead = 0, seconds[0], curve[0], curve_ahead[0], share[0], share_ahead[0]
        while done < requests:
            length = 0
            for b in range(batch):
                length += context[where[b]]
            u = min(max(-(-length // (step * batch)) - low, 0), len(seconds) - 1)
            if u != priced:  # views of rows cost more than a lone request's round
                priced, paid, own, ahead, part, part_ahead = (
                    u,
                    seconds[u],
                    curve[u],
                    curve_ahead[u],
                    share[u],
                    share_ahead[u],
                )
            if memory > 0 and state[2] == 0:
                n, expected = decide(
                    mode, EXHAUSTIVE, 0.0, False, width, gains, nodes, chain_expected, where, horizon, paid,
                    own, ahead, part, part_ahead, budgets, order, heap, key, rate, mean,
                    before, carried,
                )  # fmt: skip
                begin(state, expected, curve[u, n])
            if memory > 0:
                at = state[0] / state[1]
            if len(known) and known[where[0]] >= 0:
                n = known[where[0]]
                budgets[0] = n
            elif mode == AR and rounds[r] > 0:  # decided as in the first round
                n = NO_DRAFT
            else:
                n, expected = decide(
                    mode, rule, at, fill, width, gains, nodes, chain_expected, where, horizon, paid,
                    own, ahead, part, part_ahead, budgets, order, heap, key, rate, mean,
                    before, carried,
                )  # fmt: skip
                if len(known):
                    known[where[0]] = n
            took = ar_seconds[u] if n == NO_DRAFT else seconds[u, n]
            n = max(n, 0)
            now += took
            gained = 0
            for b in range(batch):
                accepted[b] = accepted_of(budgets[b], where[b], ranks, chain, horizon)
                left[b] = end[b] - where[b]
            if mode in (STEPS, LAGGED):
                learn(mode, carried, where, left, budgets, accepted, gains)
            for b in range(batch):
                p = where[b]
                before[b, 1], before[b, 0] = before[b, 0], p
                where[b] = min(p + accepted[b] + 1, end[b])
                gained += where[b] - p
                if where[b] == end[b]:
                    if request[b] < requests:
                        latency[r, request[b]] = now - since[b]
                        done += 1
                    s = queue[r, following % requests]
                    where[b], end[b], request[b], since[b] = starts[s], starts[s + 1] - 1, following, now
                    before[b] = -1
                    following += 1
            if memory > 0:
                track(state, memory, float(gained), took)
            rounds[r] += 1
            verified[r] += n
            largest[r] = max(largest[r], n)
            committed[r] += gained
        spent[r] = now


def _run(decision: Decision, positions: Positions, table: JointTable, queue: NDArray[np.int64]) -> Run:
    """One policy at one batch size, every repeat, in the kernel."""
    positions = chain_positions(positions) if decision.chains else positions
    gains = calibrated(np.asarray(positions.gains), decision.calibration)
    alone = table.batch == 1 and not decision.memory and decision.mode in (FOREST, FAIR, SHARE)
    arguments = (
        decision.mode, decision.rule, decision.price, decision.fill, decision.width, decision.memory, decision.start,
        gains, positions.ranks, positions.nodes, positions.chain, positions.chain_expected, positions.context,
        positions.starts, queue, table.batch, table.step,
        table.first, table.seconds, table.ar_seconds, *curves_for(decision.mode, table),
        np.full(len(positions) if alone else 0, -1, np.int32),
    )  # fmt: skip
    tokens, rounds, nodes, largest = (np.zeros(len(queue), np.int64) for _ in range(4))
    sums = np.zeros(len(queue)), tokens, rounds, nodes, np.zeros(queue.shape), largest
    split(lambda first, last: _closed_loop(*arguments, first, last, *sums), len(queue), 4)
    return Run(*sums, shares=rounds * table.batch)


def _loop(
    policy: Policy,
    positions: Positions,
    batch: int,
    table_of: Callable[[int], JointTable],
    queue: NDArray[np.int64],
    drain: bool,
) -> tuple[float, int, int, int, Floats, int, int]:
    """One repeat in Python, for what the kernel doesn't know: `Policy.choose_batch` is asked every round.

    ``table_of`` gives the table of a number of requests: always ``batch``, unless the queue may ``drain``.
    """
    positions = chain_positions(positions) if policy.chains else positions
    requests, horizon = len(queue), positions.horizon
    gains, ranks, starts = positions.gains, positions.ranks, positions.starts
    decision = decision_of(policy)
    remembers = (
        decision if decision is not None and len(decision.start) else None
    )  # the kernel alone can tell it of earlier rounds
    state = np.zeros(0) if remembers is None else remembers.start.copy()
    request = np.arange(min(batch, requests) if drain else batch)
    taken = queue[request % requests]
    where, end, since = starts[taken], starts[taken + 1] - 1, np.zeros(len(request))
    before = np.full((len(request), 2), -1)
    latency = np.zeros(requests)
    following, done, now, committed, rounds, verified, largest, shares = batch, 0, 0.0, 0, 0, 0, 0, 0
    while done < requests:
        batch = len(where)
        table = table_of(batch)
        u = table.row_of(float(positions.context[where].sum()) / batch)
        paid = table.seconds[u, : table.limit + 1]
        if remembers is not None:
            asked = decide_round(remembers, positions, where, table, u, before, state)
        else:
            asked = ask_batch(policy, np.ascontiguousarray(gains[where]), table.curve[u], paid).astype(np.int64)  # type: ignore[index]
        budgets = _allowed(asked, positions.nodes[where], table.seconds.shape[1] - 1)
        each = nodes_of(budgets, budgets, horizon)
        nodes = batch * int(nodes_of(asked, asked, horizon).max()) if policy.rectangular else int(each.sum())
        if nodes >= table.seconds.shape[1]:
            raise DdsimError(f"{policy.name}: asks for {nodes} nodes in all; {table.seconds.shape[1] - 1} are allowed")
        took = float(table.ar_seconds[u] if (asked == NO_DRAFT).all() else table.seconds[u, nodes])
        now += took
        accepted = (ranks[where] <= np.maximum(budgets, 0)[:, None]).cumprod(axis=1).sum(axis=1)  # type: ignore[index]
        accepted = np.where(asked <= CHAIN, np.minimum(positions.chain[where], each), accepted)
        if remembers is not None:
            learn(remembers.mode, state, where, end - where, budgets.astype(np.int32), accepted, gains)
        before = np.column_stack([where, before[:, 0]])
        moved = np.minimum(where + accepted + 1, end)
        gained = int((moved - where).sum())
        where = moved
        for b in np.flatnonzero(where == end):
            if request[b] < requests:
                latency[request[b]] = now - since[b]
                done += 1
            s = queue[following % requests]
            where[b], end[b], request[b], since[b] = starts[s], starts[s + 1] - 1, following, now
            before[b] = -1
            following += 1
        policy.observe(gained, took)
        committed, rounds, verified = committed + gained, rounds + 1, verified + nodes
        largest, shares = max(largest, nodes), shares + batch
        if drain:
            left = request < requests
            where, end, request, since, before = where[left], end[left], request[left], since[left], before[left]
    return now, committed, rounds, verified, latency, largest, shares


def _allowed(asked: NDArray[np.int64], nodes: Ints, most: int) -> NDArray[np.int64]:
    """Budgets that exist; past what a pass can hold, everybody gets the same."""
    budgets = np.minimum(asked, nodes)
    if np.maximum(budgets, 0).sum() > most:
        budgets = np.minimum(budgets, most // len(budgets))
    return budgets


def simulate(
    trace: Trace | Positions,
    cost: CostModel,
    policies: Sequence[Policy | str] | Policy | str | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    requests: int | None = None,
    max_tokens: int | None = None,
    drain: bool = False,
    calibration: Calibration | None = None,
    bootstrap: int = 100,
    seed: int = 0,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> ServingResult:
    """Decode a trace's prompts in batches: B slots, and a slot whose sequence ends takes the next prompt of a shuffled queue.

    Exact for the recorded tokens, whatever the policy; figures are taken over SHUFFLES orders of the queue. All slots start together
    and are always taken: the simulation ends when the first ``requests`` requests are finished, and until then slots that become
    free go on with the queue from its start. A round of B requests with n nodes in all takes
    draft_seconds(B) + verify_seconds(n + B tokens, mean context, B); prefill isn't counted.

    Rules decide about the whole batch as a forest; `Share` and `Uniform` carry them over in other ways. What has to be solved
    (`LongRun`'s price, `BestFixed`'s width) is solved on this trace, anew for every batch size; prices on as many of the orders as
    make ENOUGH positions.

    Parameters
    ----------
    trace : Trace or Positions
        Its gains are held in memory.
    cost : CostModel
        What lies outside what was measured is extrapolated: rows say so, and one warning at the end.
    policies : sequence of Policy or str, or one, optional
        Default: `serving_policies`. AR is always simulated too. The name ``rules`` stands for all of `rules_for`.
    batch : int or ints, optional
        Numbers of slots. Default: those of 1, 8 and 32 within the batches that were measured.
    requests : int, optional
        Requests to finish. Default: every sequence once, and at least four a slot.
    max_tokens : int, optional
        Tokens that one pass may verify; see `ddsim.policy.joint.joint_table`.
    drain : bool
        Take every request of the queue once, and end with the last: a slot whose sequence ends when none waits stays empty, and rounds
        go on with fewer requests at the cost of so few, which schedules look up too. As when one call hands an engine ``requests``
        prompts. What is solved stays that of the whole batch. Simulated in Python, so slower.
    calibration : Calibration, optional
        Of the marginals; changes the trees.
    bootstrap : int
        Repeats of the whole simulation for the intervals, each with a queue of prompts drawn with replacement within workloads
        (all sequences of a prompt together) and shuffled. Requests of a batch share its time, so repeating the simulation is what
        carries over to other prompts; reweighting one run isn't. Every policy sees the same queues. 0: no intervals.
    seed : int
    cluster : str, optional
        Where the runs are: threads of this process by default, "local" processes, or a Dask scheduler's address
        (`ddsim.cluster.workers`). Figures are the same.
    progress : callable, optional
        Called with (runs done, runs in all); a run is a policy at a batch size.

    Returns
    -------
    ServingResult

    Raises
    ------
    DdsimError
        A policy that works on single requests only, nothing to decode, bad options.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(8), (40, 3)), axis=-1)[..., ::-1])
    >>> ids = rng.permuted(np.tile(np.arange(8), (40, 3, 1)), axis=-1)
    >>> trace = Trace.from_arrays(rng.integers(0, 8, 40), ids, rows, max_budget=16)
    >>> cost = CostModel.from_table([1, 200], [0.010, 0.020], draft_seconds=0.001)
    >>> simulate(trace, cost, ["DFlash", "LongRun"], batch=4, bootstrap=10).table()["policy"].tolist()
    ['AR', 'DFlash', 'LongRun']
    """
    check_given("simulate", trace, cost, Positions)
    sizes = batches_of(measured_grid(BATCHES, cost.range.batches) if batch is None else batch)
    limits.check("simulations", bootstrap, "bootstrap")
    limits.check("seed", seed)
    if requests is not None:
        limits.check("requests", requests)
    if max_tokens is not None:
        limits.check("max_tokens", max_tokens)
    whole = _Simulation(
        trace, cost, policies, sizes, requests=requests, max_tokens=max_tokens, drain=drain, calibration=calibration,
        bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    with cost.one_warning(), workers(cluster) as spread:
        whole.price()
        return whole.result(spread(whole, whole.tasks, progress))


class _Simulation:
    """All runs of a simulation: what they share, the tasks that they are, and what comes of them; see `simulate`.

    A task is (batch size, number of the policy), largest batches first: they take longest.
    """

    def __init__(
        self, trace: Trace | Positions | SharedTrace, cost: CostModel, policies: Any, sizes: Sequence[int], *, requests: int | None,
        max_tokens: int | None, drain: bool, calibration: Calibration | None, bootstrap: int, seed: int,
    ) -> None:  # fmt: skip
        self.shared = trace if isinstance(trace, SharedTrace) else SharedTrace(trace)
        self.calibration = calibration
        self.cost, self.sizes, self.requests, self.max_tokens = cost, tuple(sizes), requests, max_tokens
        self.drain, self.bootstrap, self.seed = drain, bootstrap, seed
        positions = self.positions
        self.policies = _with_baseline(
            policies_of(named_rules(policies, lambda: rules_for(cost)) or serving_policies(), joint=True)
        )
        for policy in self.policies:
            if (policy.fixed or 0) > positions.max_budget:
                raise DdsimError(f"{policy.name}: the trace answers budgets up to {positions.max_budget}")
            check_chain(policy, positions.horizon)
        for size in sizes:
            limits.check_requests(self._count(size), bootstrap)
        self.widest = max(0, *(policy.fixed or 0 for policy in self.policies))
        self.tasks = [(size, k) for size in sorted(sizes, reverse=True) for k in range(len(self.policies))]

    def __getstate__(self) -> dict[str, Any]:
        kept_here = "positions", "_tables", "_queued", "tasks"
        return {key: value for key, value in vars(self).items() if key not in kept_here}

    @functools.cached_property
    def positions(self) -> Positions:
        return _in_memory(self.shared.positions(self.calibration), None)

    @functools.cached_property
    def _tables(self) -> dict[int, JointTable]:
        return {}

    @functools.cached_property
    def _queued(self) -> dict[int, NDArray[np.int64]]:
        return {}

    def _contexts(self) -> tuple[int, int]:
        return int(self.positions.context.min()), int(self.positions.context.max())

    def _count(self, size: int) -> int:
        return max(self.positions.sequences, 4 * size) if self.requests is None else self.requests

    def queue(self, size: int) -> NDArray[np.int64]:
        """Sequences in the order in which they are taken; the same for all batch sizes that finish as many requests."""
        count = self._count(size)
        if count not in self._queued:
            self._queued[count] = _queues(self.positions, count, self.bootstrap, self.seed)
        return self._queued[count]

    def table(self, policy: Policy, size: int) -> JointTable:
        """What a policy decides on and pays."""
        if size not in self._tables:
            widths = self.positions.max_budget, self.positions.horizon
            self._tables[size] = joint_table(
                self.cost, self._contexts(), size, *widths, max_tokens=self.max_tokens, widest=self.widest
            )
        return decided_on(policy, self.cost, self._tables[size], self.positions.max_budget)

    def price(self) -> None:
        """Ask for all costs once, here: workers warn nobody."""
        for size in self.sizes:
            for policy in self.policies:
                self.table(policy, size)
            self.queue(size)

    def __call__(self, task: tuple[int, int]) -> tuple[Policy, Run]:
        """A policy at a batch size: ready, and what it did."""
        size, k = task
        policy, positions, queue = self.policies[k], self.positions, self.queue(size)
        if decision_of(policy) is None:  # other tasks ask it too
            policy = copy.deepcopy(policy)
        own = self.table(policy, size)
        rows = min(max(-(-ENOUGH // len(positions)), 1), SHUFFLES)
        ready = _prepared(policy, positions, own, queue[:rows])
        chain = ready.fixed is not None and ready.fixed <= CHAIN
        verified = 1 + (chain_length(ready.fixed, positions.horizon) if chain else 0)
        if size * verified > own.seconds.shape[1] - 1 + size:
            raise DdsimError(
                f"{policy.name}: {size} chains verify {size * verified} tokens; max_tokens allows {self.max_tokens}"
            )
        decision = decision_of(ready)
        if decision is None or (self.drain and size > 1):  # the kernel can't decide as the policy does, or for fewer
            table_of = functools.cache(functools.partial(self.table, policy))
            loops = [_loop(copy.deepcopy(ready), positions, size, table_of, row, self.drain) for row in queue]
            return ready, Run(*(np.array(column) for column in zip(*loops, strict=True)))
        width = min(decision.width, (own.seconds.shape[1] - 1) // size)
        return ready, _run(dataclasses.replace(decision, width=width), positions, own, queue)

    def result(self, done: Sequence[tuple[Policy, Run]]) -> ServingResult:
        """What the tasks came to."""
        names = distinct([policy.name for policy in self.policies])
        found = dict(zip(self.tasks, done, strict=True))
        keys = {(size, name): found[size, k] for size in self.sizes for k, name in enumerate(names)}
        cost, extrapolated = self.cost, {}
        # Contexts below the first that was measured cost what it does, which is no more than their own reading off.
        contexts = np.maximum(self._contexts(), cost.range.contexts[0] if cost.range.contexts else 0)
        for (size, name), (_, run) in keys.items():
            extrapolated[size, name] = bool(cost.extrapolated(size + int(run.largest.max()), contexts, size).any())
        provenance = {
            "ddsim": ddsim.__version__,
            "trace": self.positions.fingerprint,
            "cost": {"kind": cost.kind, "range": str(cost.range), "provenance": cost.provenance},
            "contexts": "a batch is priced at the mean context of its requests",
            "max_tokens": self.max_tokens,
            "drain": self.drain,
            "prompts": self.positions.prompts,
            "seed": self.seed,
            "bootstrap": self.bootstrap,
            "policies": [{"batch": size, **ready.to_json()} for (size, _), (ready, _) in keys.items()],
        }
        counts = {size: self.positions.tokens[self.queue(size)] for size in self.sizes}
        baseline = next(name for name, policy in zip(names, self.policies, strict=True) if is_autoregressive(policy))
        runs = {key: run for key, (_, run) in keys.items()}
        fixed = frozenset(key for key, (ready, _) in keys.items() if ready.fixed is not None and not ready.scheduled)
        return ServingResult(runs, counts, provenance, extrapolated, baseline, fixed)


def named_rules(policies: Any, rules: Callable[[], list[Policy]]) -> Any:
    """Policies as they were given, with ``rules`` in place of the name for all of them."""
    given = [policies] if isinstance(policies, (str, Policy)) else policies
    named = [isinstance(one, str) and one.lower() == EVERY for one in given] if isinstance(given, Sequence) else []
    if not any(named):
        return policies
    return [own for one, all_of in zip(given, named, strict=True) for own in (rules() if all_of else [one])]


def _with_baseline(policies: list[Policy]) -> list[Policy]:
    """The policies, AR first if it isn't among them."""
    for policy in policies:
        if policy.hindsight:
            raise DdsimError(f"{policy.name}: a shortest path for one request; it has no meaning in a batch")
    return policies if any(map(is_autoregressive, policies)) else [Autoregressive(), *policies]


def _prepared(policy: Policy, positions: Positions, table: JointTable, queue: NDArray[np.int64]) -> Policy:
    """The policy ready for joint rounds: prices and widths solved for this batch size."""
    rule = decision_of(policy.at(0.0)) if policy.solves == "price" else None
    if rule is None:
        return prepared(policy, positions, _shares(positions, table))
    return policy.at(_loop_price(rule, positions, table, queue))


def _loop_price(decision: Decision, positions: Positions, table: JointTable, queue: NDArray[np.int64]) -> float:
    """The price that equals the throughput of its own closed loop: `ddsim.policy.price.solve_walk_price` for joint rounds."""
    decision = dataclasses.replace(decision, rule=EXHAUSTIVE)
    earned: dict[float, float] = {}  # tokens per second by price
    for _ in range(12):
        run = _run(decision, positions, table, queue)
        found = float(run.tokens.sum() / run.seconds.sum())
        if decision.rule == PRICE:
            earned[decision.price] = found
            if abs(found - decision.price) <= 1e-4 * decision.price:
                return decision.price
            if found in earned:
                break
        decision = dataclasses.replace(decision, rule=PRICE, price=found)
    return max(earned, key=earned.__getitem__)


def _shares(positions: Positions, table: JointTable) -> CostTable:
    """What every position's request pays of a joint round in which all have the same number of nodes and the same context."""
    row = np.clip(-(-positions.context // table.step) - table.first, 0, len(table.seconds) - 1).astype(np.int32)

    def of(share: Floats, paid: CostTable | None) -> CostTable:
        seconds = np.full((len(share), max(positions.max_budget, positions.horizon) + 1), np.inf)
        seconds[:, : share.shape[1]] = share
        return CostTable(seconds, table.ar_seconds / table.batch, row, table.contexts, table.batch, paid)

    charged = share_curve(table.seconds[:, : table.limit + 1], table.batch, positions.max_budget)
    return of(table.share, of(charged, None))
