"""Serving under load: requests arrive on their own, wait, are prefilled and decoded together; an open loop."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ddsim
from ddsim import limits
from ddsim.arrays import Floats, plain
from ddsim.cluster import Together, workers
from ddsim.cost.model import CostModel
from ddsim.cost.table import CONTEXT_STEP
from ddsim.errors import DdsimError
from ddsim.policy.batch import calibrated
from ddsim.policy.choose import NO_DRAFT, nodes_of
from ddsim.policy.contract import Decision, Policy, ask_batch, check_chain, decision_of
from ddsim.policy.joint import JointTable, curves_for, decided_on, joint_table
from ddsim.policy.parse import policies_of
from ddsim.replay.arguments import check_given, measured_on
from ddsim.replay.arrivals import Arrivals, check_span, drawn_arrivals, read_arrivals
from ddsim.replay.load_kernels import (
    BATCH,
    DONE,
    WHERE,
    Requests,
    Server,
    Tables,
    Told,
    accept,
    admit,
    begin_answers,
    commit,
    count_round,
    open_loop,
    price_row,
    prompts,
    room,
    step_seconds,
)
from ddsim.replay.load_rules import load_policies
from ddsim.replay.loaded import LoadResult, LoadRun, Promise, pooled
from ddsim.replay.requests import _in_memory, _queues
from ddsim.replay.served import SHUFFLES
from ddsim.replay.serving import _allowed, _prepared, _with_baseline, named_rules
from ddsim.text import distinct
from ddsim.threads import split
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions, chain_positions
from ddsim.trace.schema import Progress
from ddsim.trace.shared import SharedTrace
from ddsim.trace.trace import Trace

SHARES = (0.3, 0.6, 0.9)
"""Loads that are simulated unless others are asked for: shares of the highest one that the best fixed setting can serve."""

RUNNING = 32
"""Requests that are decoded at a time, where costs don't say for how many they were measured."""

WHOLE = 8192
"""Prompt tokens that one pass prefills, at most, unless a single prompt is longer."""

MOST_ROWS = 24
"""Contexts at which rounds are priced, at most, for up to 64 requests: they are further apart where requests differ more, or are more."""

DENSE = 2**16
"""Tokens up to which passes over prompts are priced one by one; beyond twice as many, at some sizes, and linearly between them."""

WARM = 10  # of drawn arrivals the first tenth meets a server that isn't full yet, and isn't counted

_NO_LIMIT = 2**62


@dataclass(frozen=True)
class _Prepared:
    """A policy, ready for every number of requests, and what it costs."""

    policy: Policy
    ready: list[Policy]
    """By the number of requests; entry 0 is that of one."""
    tables: list[JointTable]
    flat: Tables
    decisions: list[Decision] | None
    """None: the kernel can't decide as the policy does."""


def serve_load(
    trace: Trace | Positions,
    cost: CostModel,
    policies: Sequence[Policy | str] | Policy | str | None = None,
    *,
    rate: float | Sequence[float] | None = None,
    arrivals: str | os.PathLike[str] | Arrivals = "poisson",
    running: int | None = None,
    memory: int | None = None,
    prefill: str | None = None,
    chunk: int = 512,
    ttft: float | None = None,
    tpot: float | None = None,
    requests: int | None = None,
    calibration: Calibration | None = None,
    bootstrap: int = 40,
    seed: int = 0,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> LoadResult:
    """Serve requests that arrive on their own: latencies, throughput, goodput, and the highest load that each policy can serve.

    Requests wait in one queue, in order. One is let in when fewer than ``running`` are, and when its prompt and its whole answer fit into
    ``memory`` beside theirs: nobody is sent back. Then its prompt is prefilled, which gives its first token, and it joins the rounds from
    the next one on. Rounds cost as in `simulate`, for as many requests as there are; what they accept is the recording's, exactly.

    What a policy solves for (a price, a width, K) it solves for each number of requests that decode together, as if these were
    always as many (at 1, 4, 16, ... requests and ``running``; prices in between are interpolated, other settings are those of the nearest). Policies don't see
    prompts that are prefilled beside a round.

    Parameters
    ----------
    trace, cost, policies, calibration : as in `simulate`
        Default policies, also by the name ``rules``: `load_policies`.
    rate : float or floats, optional
        Requests a second. Default: 30, 60 and 90 % of what the best fixed setting can serve; of a log, as it is.
    arrivals : {"poisson", "bursts"}, path or Arrivals
        Gaps are exponential, or four times as crowded (gamma, shape 1/4: they vary by twice their mean), or those of a log (.csv or
        .parquet; see `ddsim.replay.arrivals.read_arrivals`), sped up to ``rate`` if that is given. Of a log's requests lengths are the log's, if it has any: an answer takes as
        much of a recorded text, and goes on in another where that ends.
    running : int, optional
        Requests that are prefilled or decoded at a time. Default: the largest batch that was measured.
    memory : int, optional
        Tokens of keys and values that these may have in all.
    prefill : {"whole", "chunked"}, optional
        Default: chunked where costs are vLLM's, as it does, and whole elsewhere. Prompts that wait are prefilled in a pass of their own, up to 8,192 tokens at a time, while rounds wait; or ``chunk`` tokens of
        them beside each round.
    chunk : int
    ttft, tpot : float, optional
        Seconds to the first token and seconds per output token that are promised: goodput is the share of requests that get both.
    requests : int, optional
        Requests of one simulation. Default: every sequence once, and at least ten for each that runs; of a log, all.
    bootstrap : int
        Repeated simulations behind the intervals, each with prompts drawn anew, as in `simulate`, and arrivals of its own. All
        policies see the same.
    seed : int
    cluster : str, optional
        Where the simulations are, as in `simulate`: a task is a policy at a load. Figures are the same.
    progress : callable, optional

    Returns
    -------
    LoadResult

    Raises
    ------
    DdsimError
        A log that runs backwards, a request that can't fit into memory, bad options.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(8), (80, 3)), axis=-1)[..., ::-1])
    >>> ids = rng.permuted(np.tile(np.arange(8), (80, 3, 1)), axis=-1)
    >>> trace = Trace.from_arrays(list(rng.integers(0, 8, (4, 20))), list(ids.reshape(4, 20, 3, 8)), list(rows.reshape(4, 20, 3, 8)), max_budget=16)
    >>> cost = CostModel.from_table([1, 200], [0.010, 0.020], draft_seconds=0.001)
    >>> result = serve_load(trace, cost, ["DFlash", "LongRun"], rate=2.0, running=4, ttft=0.1, bootstrap=4)
    >>> result.table()[["policy", "unstable"]].values.tolist()
    [['AR', False], ['DFlash', False], ['LongRun', False]]
    """
    check_given("serve_load", trace, cost, Positions)
    one = UnderLoad(
        trace, cost, policies, rate=rate, arrivals=arrivals, running=running, memory=memory, prefill=prefill, chunk=chunk, ttft=ttft, tpot=tpot,
        requests=requests, calibration=calibration, bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    with cost.one_warning():
        return serve_loads([one], cluster, progress)[0]


class UnderLoad:
    """A server under load: what its simulations share, the tasks that they are, and what comes of them; see `serve_load`.

    A task is (number of the policy, the policy ready for every number of requests, seconds a unit of the arrivals); with None and None
    the policy is made ready and all requests come at once. A result is the policy, ready, and what it did.
    """

    def __init__(
        self, trace: Trace | Positions | SharedTrace, cost: CostModel, policies: Any = None, *, rate: float | Sequence[float] | None = None,
        arrivals: str | os.PathLike[str] | Arrivals = "poisson", running: int | None = None, memory: int | None = None,
        prefill: str | None = None, chunk: int = 512, ttft: float | None = None, tpot: float | None = None, requests: int | None = None,
        calibration: Calibration | None = None, bootstrap: int = 40, seed: int = 0,
    ) -> None:  # fmt: skip
        self.shared = trace if isinstance(trace, SharedTrace) else SharedTrace(trace)
        self.calibration, self.cost, self.bootstrap, self.seed = calibration, cost, bootstrap, seed
        positions = self.positions
        if not isinstance(arrivals, (str, os.PathLike, Arrivals)):
            raise DdsimError(f"arrivals: must be poisson, bursts, a log's name or Arrivals, is {arrivals!r:.40}")
        log = arrivals if isinstance(arrivals, Arrivals) else None
        if not isinstance(arrivals, Arrivals) and os.path.splitext(os.fspath(arrivals))[1]:
            log = read_arrivals(arrivals)
        if log is not None and requests is not None:
            log = log.first(limits.check("requests", requests))
        self.log, self.arrivals = log, "" if log is not None else str(arrivals)
        if running is None:
            running = int(cost.range.batches[1]) if cost.range.batches else RUNNING
        limits.check("running", running)
        limits.check("simulations", bootstrap, "bootstrap")
        limits.check("seed", seed)
        if prefill is None:
            prefill = "chunked" if measured_on(cost.provenance) == "vllm" else "whole"
        if prefill not in ("whole", "chunked"):
            raise DdsimError(f'prefill: must be "whole" or "chunked", is {prefill!r:.40}')
        limits.check("chunk", chunk)
        limited = (None if s is None else _positive(s, n, "seconds") for s, n in ((ttft, "ttft"), (tpot, "tpot")))
        self.promise = Promise(*limited)
        self.rates = None if rate is None else [rate] if isinstance(rate, (int, float, np.number)) else list(rate)
        for one in self.rates or ():
            _positive(one, "rate", "requests a second")
        if self.rates == []:
            raise DdsimError("rate: must be one number of requests a second or more, is an empty list")
        if log is None:
            count = max(positions.sequences, 10 * running) if requests is None else limits.check("requests", requests)
        else:
            count = len(log)
        self.count, self.saturating = count, max(count, 8 * running)
        one_second = 1.0 if log is None else log.rate
        check_span(float(self.unit.max()) * (1.0 if self.rates is None else one_second / min(map(float, self.rates))))
        limits.check_requests(self.saturating, bootstrap)
        needs = int((self.base.prompt + self.base.answer).max())
        if memory is not None and limits.check("memory", memory) < needs:
            raise DdsimError(f"memory: {memory:,} tokens can't hold the longest request, of {needs:,} with its answer")
        given = named_rules(policies, lambda: load_policies(positions, cost, running))
        asked = policies_of(given or load_policies(positions, cost, running), joint=True)
        self.policies = _with_baseline(asked)
        for policy in self.policies:
            if (policy.fixed or 0) > positions.max_budget:
                raise DdsimError(f"{policy.name}: the trace answers budgets up to {positions.max_budget}")
            check_chain(policy, positions.horizon)
        chunked = prefill == "chunked"
        nodes = max(positions.max_budget, positions.horizon)
        longest = running * (1 + nodes) + chunk if chunked else max(WHOLE, int(self.base.prompt.max()))
        seconds, attend, self.said = prefill_seconds(cost, longest)
        self.server = Server(
            running, _NO_LIMIT if memory is None else memory, chunked, chunk if chunked else WHOLE, seconds, attend
        )
        self.provenance = {
            "ddsim": ddsim.__version__,
            "trace": positions.fingerprint,
            "cost": {"kind": cost.kind, "range": str(cost.range), "provenance": cost.provenance},
            "arrivals": self.arrivals
            if log is None
            else {"requests": count, "rate": log.rate if np.isfinite(log.rate) else None},
            "server": {"running": running, "memory": memory, "prefill": prefill, "chunk": chunk if chunked else None},
            "prefill_seconds": self.said,
            "promised": {"ttft": ttft, "tpot": tpot},
            "admission": "in order, when prompt and answer fit",
            "requests": count,
            "prompts": positions.prompts,
            "seed": seed,
            "bootstrap": bootstrap,
        }

    def __getstate__(self) -> dict[str, Any]:
        kept_here = "positions", "unit", "queues", "base", "priced"
        return {key: value for key, value in vars(self).items() if key not in kept_here}

    @functools.cached_property
    def positions(self) -> Positions:
        return _in_memory(self.shared.positions(self.calibration), None)

    @functools.cached_property
    def unit(self) -> Floats:
        """When requests arrive: as the log says, or one a second."""
        simulations = SHUFFLES + self.bootstrap
        if self.log is None:
            return drawn_arrivals(self.arrivals, simulations, self.count, self.seed)
        return np.tile(self.log.seconds, (simulations, 1))

    @functools.cached_property
    def queues(self) -> NDArray[np.int64]:
        return _queues(self.positions, self.saturating, self.bootstrap, self.seed)

    @functools.cached_property
    def base(self) -> Requests:
        return _requests(self.positions, self.queues, self.log, self.seed)

    @functools.cached_property
    def priced(self) -> list[JointTable]:
        contexts = int(self.base.prompt.min()), int((self.base.prompt + self.base.answer).max())
        return _priced(self.cost, self.positions, contexts, self.server.running, self.policies)

    @property
    def ways(self) -> int:
        """Loads that are simulated."""
        return len(self.rates or (SHARES if self.log is None else (1,)))

    def arriving(self, scale: float) -> Requests:
        """The requests of a load, so many seconds a unit of their arrivals."""
        unit, count = self.unit, self.count
        return self.base._replace(
            arrival=np.ascontiguousarray(unit * scale if np.isfinite(scale) else unit),
            prompt=np.ascontiguousarray(self.base.prompt[:, :count]),
            answer=np.ascontiguousarray(self.base.answer[:, :count]),
        )

    def __call__(self, task: tuple[int, list[Policy] | None, float | None]) -> tuple[list[Policy], Told]:
        k, ready, scale = task
        policy, positions = self.policies[k], self.positions
        if decision_of(policy) is None:  # other tasks ask it too
            policy = copy.deepcopy(policy)
        one = _ready(policy, positions, self.cost, self.priced, self.queues[:SHUFFLES, : self.count], ready)
        return one.ready, _simulate(one, positions, self.server, self.base if scale is None else self.arriving(scale))

    def loads(self, highest: Sequence[Told]) -> list[tuple[float, float]]:
        """Each load and its scale, given what each policy did with all requests at once."""
        log = self.log
        if log is not None and self.rates is None:
            return [(log.rate, 1.0)]
        done = zip(self.policies, highest, strict=True)
        fixed = [told for policy, told in done if policy.fixed is not None and not policy.scheduled]
        most = max(pooled(_served(told, self.server.running)) for told in fixed)
        loads = [share * most for share in SHARES] if self.rates is None else [float(one) for one in self.rates]
        return [(load, 1 / load if log is None else log.rate / load) for load in loads]

    def result(
        self, highest: Sequence[tuple[list[Policy], Told]], loads: list[tuple[float, float]], done: Sequence[Told]
    ) -> LoadResult:
        """What the tasks came to: all requests at once, then every load, each by policy."""
        names = distinct([policy.name for policy in self.policies])
        of = zip(names, self.policies, strict=True)
        fixed = tuple(name for name, policy in of if policy.fixed is not None and not policy.scheduled)
        left = iter(done)
        runs, marks = {}, {}
        for load, scale in loads:
            some = self.arriving(scale)
            for name in names:
                told = next(left)
                runs[load, name] = LoadRun(some, told, self.count // WARM if self.log is None else 0)
                marks[load, name] = _extrapolated(self.cost, self.priced[0], told)
        most = {name: _served(told, self.server.running) for name, (_, told) in zip(names, highest, strict=True)}
        shares = SHARES if self.rates is None and self.log is None else None
        ready = {name: own[-1].to_json() for name, (own, _) in zip(names, highest, strict=True)}
        provenance = self.provenance | {"policies": ready}
        return LoadResult(runs, most, fixed, self.promise, marks, self.said, shares, provenance)


def serve_loads(
    served: Sequence[UnderLoad], cluster: str | None = None, progress: Progress | None = None
) -> list[LoadResult]:
    """Serve all: first each policy with all requests at once, which says what loads there are, then every load."""
    job, steps = Together(served), sum(len(one.policies) * (1 + one.ways) for one in served)
    first = [(n, (k, None, None)) for n, one in enumerate(served) for k in range(len(one.policies))]

    def part(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, steps)

    with workers(cluster) as spread:
        with ExitStack() as stack:
            for cost in {id(one.cost): one.cost for one in served}.values():
                stack.enter_context(cost.no_warning())  # prices that may never be asked for; see _extrapolated
            for one in served:
                _ = one.priced
            told = spread(job, first, part(0))
            highest = [[t for (n, _), t in zip(first, told, strict=True) if n == i] for i in range(len(served))]
        loads = [one.loads([t for _, t in own]) for one, own in zip(served, highest, strict=True)]
        then = [
            (n, (k, ready, scale))
            for n in range(len(served))
            for _, scale in loads[n]
            for k, (ready, _) in enumerate(highest[n])
        ]
        done = spread(job, then, part(len(first)))
    answers = []
    for i, one in enumerate(served):
        own = [t for (n, _), (_, t) in zip(then, done, strict=True) if n == i]
        answers.append(one.result(highest[i], loads[i], own))
    return answers


def _positive(value: Any, name: str, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < float(value) < np.inf:
        raise DdsimError(f"{name}: must be a number of {unit} above 0, is {value!r:.40}")
    return float(value)


def prefill_seconds(cost: CostModel, most: int) -> tuple[Floats, float, str]:
    """What `Server` takes: seconds of a pass over 0 .. ``most`` prompt tokens without their attention, never falling; seconds a token and
    token before it; and where they are from."""
    tokens, measured, attend = np.arange(1.0, most + 1), cost.prefill_range, cost.prefill_attend
    known = np.append(tokens[:DENSE], np.linspace(DENSE, most, 257).round()[1:] if most > 2 * DENSE else tokens[DENSE:])
    if measured is None and cost.buckets:  # graphs are captured for rounds; prompts aren't padded to them
        last = cost.buckets[-1]
        known = np.unique([1, *cost.buckets, *range(last, most + last, last)]).astype(np.float64)
    with cost.no_warning():  # it is said in words
        # Long prompts are taken in many parts: apart, so that the short ones aren't looked at for each of these again.
        found = [cost.prefill_seconds(some) for some in (known[known <= DENSE], known[known > DENSE])]
        seconds = np.interp(tokens, known, np.concatenate(found))
    seconds = np.concatenate([[0.0], np.maximum.accumulate(seconds - attend * tokens * (tokens - 1) / 2)])
    said = "assumed, as passes of verification of as many tokens" if measured is None else f"measured, {measured}"
    return seconds, attend, said


def _requests(positions: Positions, queues: NDArray[np.int64], log: Arrivals | None, seed: int) -> Requests:
    """Requests that all come at once, [R, N]: their prompts and answers are the trace's, or as long as the log's."""
    simulations, count = queues.shape
    firsts, tokens = positions.starts[:-1], positions.tokens
    prompt = np.maximum(positions.context[firsts][queues].astype(np.int64), 1)
    arrival = np.zeros(queues.shape)
    if log is not None and log.prompt_tokens is not None:
        prompt = np.tile(np.resize(log.prompt_tokens, count), (simulations, 1))
    if log is None or log.answer_tokens is None:
        pieces = np.arange(simulations * count, dtype=np.int64).reshape(queues.shape)
        ends = np.concatenate([pieces, pieces[:, -1:] + 1], axis=1)
        texts = np.stack([firsts[queues].ravel(), (firsts + tokens)[queues].ravel()], axis=1)
        return Requests(arrival, prompt, tokens[queues] + 1, ends, np.ascontiguousarray(texts))
    answer = np.tile(np.resize(log.answer_tokens, count), (simulations, 1))
    if (texts_needed := answer.sum() / tokens.mean()) > limits.MOST_REQUESTS:
        raise DdsimError(
            f"arrivals: answers of {int(answer.sum()):,} tokens in all simulations take {texts_needed:,.0f} recorded texts, more than "
            f"{limits.MOST_REQUESTS:,}; ask for fewer requests, or for fewer simulations behind the intervals (--bootstrap)"
        )
    found: list[tuple[int, int]] = []
    ends = np.zeros((simulations, count + 1), np.int64)
    for r, queue in enumerate(queues.tolist()):
        at = 0
        for i, wanted in enumerate(answer[r].tolist()):
            ends[r, i], left = len(found), wanted - 1
            while left > 0:
                s = queue[at % count]
                at += 1
                taken = min(left, int(tokens[s]))
                found.append((int(firsts[s]), int(firsts[s]) + taken))
                left -= taken
        ends[r, count] = len(found)
    return Requests(arrival, prompt, answer, ends, np.array(found, np.int64).reshape(-1, 2))


def _priced(
    cost: CostModel, positions: Positions, contexts: tuple[int, int], running: int, policies: Sequence[Policy]
) -> list[JointTable]:
    """What rounds of 1, 2, ... requests cost."""
    widest = max(0, *(policy.fixed or 0 for policy in policies))
    rows = max(MOST_ROWS * 64 // max(running, 64), 4)
    step = CONTEXT_STEP * -(-(contexts[1] - contexts[0] + 1) // (rows * CONTEXT_STEP))
    return [
        joint_table(cost, contexts, b, positions.max_budget, positions.horizon, widest=widest, step=step)
        for b in range(1, running + 1)
    ]


def _ready(
    policy: Policy, positions: Positions, cost: CostModel, priced: list[JointTable], queues: NDArray[np.int64],
    ready: list[Policy] | None = None,
) -> _Prepared:  # fmt: skip
    """The policy, ready for every number of requests; ``ready``: as it was solved before."""
    tables = [decided_on(policy, cost, table, positions.max_budget) for table in priced]
    ready = _solved(policy, positions, tables, queues) if ready is None else ready
    decisions = [decision_of(one) for one in ready]
    known = [one for one in decisions if one is not None]
    flat = _flat(tables, known[-1].mode if len(known) == len(tables) else 0)
    return _Prepared(policy, ready, tables, flat, known if len(known) == len(tables) else None)


def _solved(policy: Policy, positions: Positions, tables: list[JointTable], queues: NDArray[np.int64]) -> list[Policy]:
    """The policy with what it solves for, for every number of requests."""
    running = len(tables)
    grid = sorted({min(4**i, running) for i in range(8)})
    solved = {b: _prepared(policy, positions, tables[b - 1], queues) for b in grid} if policy.solves else {}
    ready = []
    for b in range(1, running + 1):
        if b in solved:
            ready.append(solved[b])
        elif policy.solves == "price":
            prices = np.interp(b, grid, [float(solved[g].price or 0.0) for g in grid])
            ready.append(policy.at(float(prices)))
        elif solved:
            ready.append(solved[min(grid, key=lambda g: abs(np.log(g / b)))])
        else:
            ready.append(
                _prepared(policy, positions, tables[b - 1], queues) if policy.scheduled or b == 1 else ready[0]
            )
    return ready


def _flat(tables: list[JointTable], mode: int) -> Tables:
    """Tables for 1, 2, ... requests as the kernel reads them."""
    curves = [curves_for(mode, table) for table in tables]
    rows = len(tables[0].seconds)
    parts: list[list[Floats]] = [[table.seconds for table in tables], *(list(of) for of in zip(*curves, strict=True))]
    starts = np.array([np.cumsum([0, 0, *(one.size for one in part)]) for part in (parts[0], parts[1], parts[3])])
    flat = [np.concatenate([one.ravel() for one in part]) for part in parts]
    alone = np.stack([tables[0].ar_seconds, *(table.ar_seconds for table in tables)])
    return Tables(tables[0].step, tables[0].first, rows, starts, alone, *flat)


def _simulate(one: _Prepared, positions: Positions, server: Server, requests: Requests) -> Told:
    """Every simulation of a policy at a load."""
    simulations, count = requests.arrival.shape
    out = room(simulations, count, server.running)
    if one.decisions is None:
        for r in range(len(requests.arrival)):
            _asked_loop(copy.deepcopy(one.ready[-1]), one.tables, one.flat, positions, server, requests, out, r)
        return out
    first = one.decisions[0]
    widest = [(table.seconds.shape[1] - 1) // table.batch for table in one.tables]
    columns = [
        plain([0, *(getattr(d, name) for d in one.decisions)], kind)
        for name, kind in (("mode", np.int64), ("rule", np.int64), ("price", np.float64), ("fill", np.bool_))
    ]
    width = plain([0, *(min(d.width, most) for d, most in zip(one.decisions, widest, strict=True))], np.int64)
    positions = chain_positions(positions) if first.chains else positions
    gains = calibrated(np.asarray(positions.gains), first.calibration)
    arguments = (
        *columns, width, first.memory, one.decisions[-1].start, gains, positions.ranks, positions.nodes, positions.chain, positions.chain_expected,
        one.flat, server, requests, out,
    )  # fmt: skip
    split(lambda a, b: open_loop(*arguments, a, b), len(requests.arrival), 2)
    return out


def _asked_loop(
    policy: Policy,
    tables: list[JointTable],
    flat: Tables,
    positions: Positions,
    server: Server,
    requests: Requests,
    out: Told,
    r: int,
) -> None:
    """One simulation of a policy that the kernel doesn't know: `Policy.choose_batch` is asked every round."""
    positions = chain_positions(positions) if policy.chains else positions
    count, slots, now = np.zeros(6, np.int64), np.zeros((4, server.running), np.int64), 0.0
    accepted, left = np.zeros(server.running, np.int64), np.zeros(server.running, np.int64)
    before, horizon = np.zeros((server.running, 2), np.int64), positions.horizon
    while count[DONE] < requests.arrival.shape[1]:
        now = admit(now, count, server, requests, out, r)
        prompt, attended, ready, part = prompts(count, server, requests, r)
        batch = int(count[BATCH])
        if batch and (server.chunked or not prompt):
            table, u = tables[batch - 1], price_row(count, slots, flat)
            where = slots[WHERE, :batch]
            gains = np.ascontiguousarray(positions.gains[where])  # type: ignore[index]
            asked = ask_batch(policy, gains, table.curve[u], table.seconds[u, : table.limit + 1]).astype(np.int64)
            budgets = _allowed(asked, positions.nodes[where], table.seconds.shape[1] - 1)
            each = nodes_of(budgets, budgets, horizon)
            nodes = batch * int(nodes_of(asked, asked, horizon).max()) if policy.rectangular else int(each.sum())
            if nodes >= table.seconds.shape[1]:
                raise DdsimError(
                    f"{policy.name}: asks for {nodes} nodes in all; {table.seconds.shape[1] - 1} are allowed"
                )
            drafted = not (asked == NO_DRAFT).all()
            took = float(table.seconds[u, nodes] if drafted else table.ar_seconds[u])
            took = step_seconds(took, batch, nodes, prompt, attended, server)
            now += took
            actions = np.where(asked < 0, asked, budgets).astype(np.int32)
            accept(count, slots, actions, positions.ranks, positions.chain, requests, accepted, left)
            gained = commit(now, count, slots, accepted, before, requests, out, r)
            count_round(took, batch, nodes, u, gained, out, r)
            policy.observe(gained, took)
        else:
            took = server.prefill[prompt] + attended
            now += took
            out.prefilling[r] += took
        begin_answers(now, ready, part, count, slots, before, requests, out, r)


def _served(done: Told, running: int) -> Floats:
    """Requests a second that a server answers while its queue is never empty, float64 [R]: from when it is in its stride, to the last admission."""
    finish, last = np.sort(done.finish, axis=1), done.admitted.max(axis=1)
    begin = finish[:, min(running, finish.shape[1] // 2) - 1] if finish.shape[1] > 1 else np.zeros(len(finish))
    inside = ((finish > begin[:, None]) & (finish <= last[:, None])).sum(axis=1)
    short = inside < 1
    rates = np.where(short, finish.shape[1] / finish[:, -1], inside / np.maximum(last - begin, 1e-300))
    return rates


def _extrapolated(cost: CostModel, table: JointTable, done: Told) -> bool:
    """Whether a round cost what wasn't measured; where, the model says in its warning."""
    largest, longest = done.largest.max(axis=0), done.longest.max(axis=0)
    sizes = np.flatnonzero(largest)
    # Contexts below the first that was measured cost what it does, which is no more than their own reading off.
    first = cost.range.contexts[0] if cost.range.contexts else 0
    contexts = np.maximum((table.first + longest[sizes] - 1) * table.step, first)
    cost.verify_seconds(largest[sizes], contexts, sizes)
    return bool(np.any(cost.extrapolated(largest[sizes], contexts, sizes)))
