"""The map of a server's settings: the best one by concurrency, context and workload, and what it costs to be one step off."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import ddsim
from ddsim import limits
from ddsim.arrays import Floats
from ddsim.cost.model import CostModel
from ddsim.cost.ranges import measured_grid
from ddsim.cost.table import CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.contract import Policy, decision_of
from ddsim.policy.joint import batches_of, decided_on, joint_table
from ddsim.policy.parse import policies_of
from ddsim.policy.rules import Autoregressive, Chain, DDTree
from ddsim.policy.walk import fixed_walks
from ddsim.replay.arguments import check_given
from ddsim.replay.engines import ENGINES, chain_lengths, chain_seconds, engine_rule, unnamed_costs
from ddsim.replay.maps import MAP_BATCHES, MAP_CONTEXTS
from ddsim.replay.replay import _records
from ddsim.replay.requests import _in_memory, _queues
from ddsim.replay.served import Run
from ddsim.replay.serving import _run
from ddsim.replay.shown import ShownMap
from ddsim.text import signed
from ddsim.trace.rounds import Positions
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace

CHAIN_STEPS = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31)
"""Ks that a setting is moved by, where an engine's profile doesn't name those that it was made ready for."""

TREE_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023)
"""Nodes that a setting is moved by: with the root they are powers of two."""

ORDERS = 4
"""Orders of the queue that rules and the best setting are simulated over."""

TREE_RULES = ["RoundRatio", "FairRatio"]
CHAIN_RULES = ["OnChain:RoundRatio", "OnChain:FairRatio"]
"""Rules whose settings need no solving, so that a map of hundreds of cells takes seconds."""


@dataclass(frozen=True, repr=False)
class LoadMap(ShownMap):
    """The best setting by concurrency, context and workload.

    Attributes
    ----------
    engine : str or None
        Whose settings: chains of K tokens; None: our decoder's, trees of n nodes.
    table : DataFrame
        A row a cell: workload ("all": pooled), requests, context, setting (K, or nodes; 0 is off), tokens_per_second, over_ar (relative),
        down and up (one step less and more), lost_down and lost_up (shares of the best's tokens a second), lost_by_step (the larger), rule (the best), rule_gain (relative,
        simulated on the same orders as the best setting), of an engine chain_rule and chain_gain (the best of those that verify chains), extrapolated. NaN
        where nothing was measured.
    notes : tuple of str
    provenance : dict
    """

    engine: str | None
    table: pd.DataFrame
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def title(self) -> str:
        """Whose settings."""
        return "Our decoder" if self.engine is None else ENGINES[self.engine].title

    @property
    def unit(self) -> str:
        """What a setting counts."""
        return "nodes" if self.engine is None else "K"

    @property
    def workloads(self) -> list[str]:
        """Names in the table."""
        return list(dict.fromkeys(self.table["workload"]))

    def said(self, setting: float) -> str:
        """A setting in words."""
        if setting == 0:
            return "no draft"
        return f"K = {setting:.0f}" if self.engine is not None else f"{setting:.0f} node{'s' * (setting != 1)}"

    @property
    def sentence(self) -> str:
        """From where to where the best setting goes, and where drafting is off."""
        rows = self.table[self.table["workload"] == self.workloads[0]].to_dict("records")
        least, most = (pick(rows, key=lambda row: (row["setting"], row["requests"])) for pick in (min, max))
        text = f"{self.title}: {self.said(most['setting'])} at {_where(most)}"
        if least["setting"] != most["setting"]:
            text += f", {self.said(least['setting'])} at {_where(least)}"
        every = self.table
        off = int((every["setting"] == 0).sum())
        text += f"; drafting is off in {off} of {len(every)} cells" if off else "; drafting pays in every cell"
        return text + "."

    @property
    def details(self) -> tuple[str, ...]:
        """What a step costs, what the best rule adds, and where drafting is off."""
        lines = []
        every = self.table.dropna(subset="lost_by_step")
        if len(every):
            worst = every.to_dict("records")[int(every["lost_by_step"].to_numpy().argmax())]
            step = worst["down"] if not worst["lost_up"] >= worst["lost_by_step"] else worst["up"]
            lines.append(
                f"One step off costs {100 * every['lost_by_step'].median():.1f} % in the median cell, {100 * worst['lost_by_step']:.1f} % "
                f"at most: {self.said(step)} in place of {self.said(worst['setting'])} at {_where(worst, named=True)}."
            )
        rules = self.table.dropna(subset="rule_gain")
        if len(rules):
            best = rules.to_dict("records")[int(rules["rule_gain"].to_numpy().argmax())]
            text = f"The best rule adds {signed(rules['rule_gain'].median())} in the median cell, {signed(best['rule_gain'])} at most: "
            text += f"{best['rule']} at {_where(best, named=True)}"
            if "chain_gain" in rules:
                on_chains = rules["chain_gain"]
                text += f"; on chains, which the engine verifies, {signed(on_chains.median())} and {signed(on_chains.max())}"
            lines.append(f"{text}.")
        off = self.table[self.table["setting"] == 0]
        if len(off):
            fewest = off.to_dict("records")[int(off["requests"].to_numpy().argmin())]
            lines.append(f"Drafting is off from {_where(fewest, named=True)} on at the earliest.")
        return tuple(lines)

    def grid(self, column: str, workload: str | None = None) -> tuple[Floats, list[int], list[int], NDArray[np.bool_]]:
        """A column by requests and context: values, the numbers of requests, the contexts, and which cells rest on extrapolated costs."""
        of = self.table[self.table["workload"] == (self.workloads[0] if workload is None else workload)]
        values, marks = (
            of.assign(cell=of[name].astype(float)).pivot(index="requests", columns="context", values="cell")
            for name in (column, "extrapolated")
        )
        sizes, contexts = ([int(n) for n in axis] for axis in (values.index, values.columns))
        return values.to_numpy(float), sizes, contexts, marks.to_numpy(float) == 1

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON-able object."""
        return {
            "schema_version": 1,
            "kind": "ddsim-load-map",
            "engine": self.engine,
            "setting": self.unit,
            "sentence": self.sentence,
            "details": list(self.details),
            "notes": list(self.notes),
            "provenance": self.provenance,
            "table": _records(self.table),
        }


def _where(row: dict[Any, Any], named: bool = False) -> str:
    text = f"{row['requests']} request{'s' * (row['requests'] > 1)} of context {row['context']:,}"
    return f"{text} ({row['workload']})" if named and row["workload"] != "all" else text


def load_map(
    trace: Trace | Positions,
    cost: CostModel,
    engine: str | None = None,
    *,
    method: str = "dflash",
    rules: Sequence[Policy | str] | None = None,
    requests: Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    extrapolate: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> LoadMap:
    """The best setting for every number of requests that decode together, context and workload.

    A fixed setting commits as many tokens a round as its walk over the recording, whoever shares the pass and whatever the context; so its
    throughput follows from what a round costs. Rules are simulated, with the best setting beside them, as `simulate` does it, but at one context.

    Parameters
    ----------
    trace, cost
    engine : {"vllm", "sglang", "tensorrt-llm"}, optional
        Whose settings: chains of K tokens, of those Ks that its profile names. Default: our decoder's trees of n nodes.
    method : str
        What drafts in the engine.
    rules : sequence of Policy or str, optional
        Of any kind, also what the engine can't run. Default: RoundRatio and FairRatio as forests, and on chains for an engine. None that solves for a
        price or a setting.
    requests, contexts : sequences of int, optional
        Default: those of 1, 2, ... 64 and of 256, 512, ... 8,192 that were measured; all of them with ``extrapolate``.
    extrapolate : bool
        Fill cells whose costs weren't measured; they are marked.
    seed : int
        Of the orders of prompts that rules are simulated on.
    progress : callable, optional

    Raises
    ------
    DdsimError
        An engine or method that isn't known, a rule that has to solve, nothing measured on the grid.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 4, 5, 12], [0.010, 0.010, 0.020, 0.060])
    >>> print(load_map(trace, cost, requests=[1, 2, 3], contexts=[512], rules=[]).sentence)
    Our decoder: 2 nodes at 1 request of context 512, no draft at 3 requests of context 512; drafting is off in 1 of 3 cells.
    """
    check_given("load_map", trace, cost, Positions)
    if engine is not None:
        engine_rule(engine, method)
    limits.check("seed", seed)
    whole = _in_memory(trace, None)
    asked = (
        policies_of([*(CHAIN_RULES if engine else ()), *TREE_RULES] if rules is None else list(rules), joint=True)
        if rules != []
        else []
    )
    for policy in asked:
        if decision_of(policy) is None or policy.solves or policy.needs_trace:
            raise DdsimError(
                f"load_map: {policy.name} has to solve for something, or isn't known to the kernels; choose other rules"
            )
    known = (None, None) if extrapolate else (cost.range.batches, cost.range.contexts)
    sizes = batches_of(measured_grid(MAP_BATCHES, known[0]) if requests is None else list(requests))
    lengths = (
        measured_grid(MAP_CONTEXTS, known[1]) if contexts is None else [limits.check("context", c) for c in contexts]
    )
    if not lengths:
        raise DdsimError("contexts: must be one number of tokens or more, are none")
    names = list(dict.fromkeys(whole.workload))
    parts = {"all": whole} if len(names) > 1 else {}
    parts |= {name: _part(whole, name) for name in names}
    rows: list[dict[str, Any]] = []
    cells = list(itertools.product(parts.items(), sizes, lengths))
    ladder = _ladder(cost, engine, whole)
    yields = {name: _lengths(part, engine) for name, part in parts.items()}
    with cost.one_warning():
        for done, ((name, part), size, context) in enumerate(cells):
            seconds, marks = _seconds(cost, size, context, len(yields[name]) - 1, engine, extrapolate)
            rates = size * yields[name] / seconds
            if np.isnan(rates[0]) or not np.isfinite(rates).any():
                continue
            best = int(np.nanargmax(rates))
            row: dict[str, Any] = {"workload": name, "requests": size, "context": context, "setting": best}
            row |= {"tokens_per_second": rates[best], "over_ar": rates[best] / rates[0] - 1}
            row |= _steps(rates, best, ladder)
            row |= _best_rule(asked, part, cost, size, context, best, engine, seed)
            row["extrapolated"] = bool(marks[best])
            rows.append(row)
            if progress is not None:
                progress(done + 1, len(cells))
    if not rows:
        raise DdsimError("no cell of the map was measured; profile these requests and contexts, or extrapolate")
    notes = ["Settings were chosen on the prompts that they are judged on; ddsim serve gives intervals."]
    if engine is not None:
        notes += unnamed_costs(engine, cost)
        if cost.provenance.get("off"):
            notes.append(f"{cost.provenance['off']}.")
    missing = len(cells) - len(rows)
    if missing:
        notes.append(f"{missing} of {len(cells)} cells weren't measured.")
    provenance = {
        "ddsim": ddsim.__version__,
        "trace": whole.fingerprint,
        "cost": {"kind": cost.kind, "range": str(cost.range), "provenance": cost.provenance},
        "rules": [policy.to_json() for policy in asked],
        "tuned_on": "same prompts",
        "seed": seed,
    }
    return LoadMap(engine, pd.DataFrame(rows), tuple(notes), provenance)


def _part(whole: Positions, workload: str) -> Positions:
    """The sequences of a workload, in memory."""
    some = whole.subset(np.array([one == workload for one in whole.workload]))
    return some.block(0, some.sequences)


def _lengths(positions: Positions, engine: str | None) -> Floats:
    """Tokens a round by the setting, from 0 on; 1 without a draft."""
    if engine is not None:
        return chain_lengths(positions)[0]
    curve = CostTable.of_curve(np.ones(positions.max_budget + 1), len(positions))
    lengths: Floats = positions.tokens.sum() / fixed_walks(positions, curve)[1].sum(axis=0)
    return lengths


def _seconds(
    cost: CostModel, requests: int, context: int, most: int, engine: str | None, extrapolate: bool
) -> tuple[Floats, NDArray[np.bool_]]:
    """Seconds of a round by the setting, and which lie outside of what was measured: these are NaN, unless they are extrapolated."""
    if engine is not None:
        seconds, marks = chain_seconds(cost, [requests], most, context, extrapolate=extrapolate)
        return seconds[0], marks[0]
    marks = np.asarray(cost.extrapolated(requests * (1 + np.arange(most + 1)), context, requests))
    weighed = most + 1 if extrapolate else int(np.argmax([*marks, True]))
    seconds = np.full(most + 1, np.nan)
    if weighed:
        table = cost_table(cost, [context], requests * (weighed - 1), requests)
        seconds[:weighed] = table.seconds[0, ::requests]
        seconds[0] = table.ar_seconds[0]
    return seconds, marks


def _ladder(cost: CostModel, engine: str | None, positions: Positions) -> list[int]:
    """Settings that one can be moved by one step along."""
    ready = cost.provenance.get("ks")
    if engine is not None and isinstance(ready, list):
        return sorted(ready)
    return list(TREE_STEPS if engine is None else CHAIN_STEPS)


def _steps(rates: Floats, best: int, ladder: Sequence[int]) -> dict[str, Any]:
    """What one step less and one step more lose."""
    lost = {n: 1 - float(rates[n] / rates[best]) for n in ladder if n < len(rates) and np.isfinite(rates[n])}
    down, up = max((n for n in lost if n < best), default=None), min((n for n in lost if n > best), default=None)
    less, more = (np.nan if n is None else lost[n] for n in (down, up))
    worst = float(np.fmax(less, more))
    return {"down": down, "lost_down": less, "up": up, "lost_up": more, "lost_by_step": worst}


def _best_rule(
    rules: Sequence[Policy],
    part: Positions,
    cost: CostModel,
    size: int,
    context: int,
    best: int,
    engine: str | None,
    seed: int,
) -> dict[str, Any]:
    """The rule of most tokens a second, and its gain over the best setting, both simulated on the same orders of prompts."""
    if not rules:
        return {"rule": None, "rule_gain": np.nan}
    here = dataclasses.replace(part, context=np.full(len(part), context, np.int32))
    queue = _queues(here, max(here.sequences, 4 * size), 0, seed)[:ORDERS]
    chains = engine is not None
    fixed: Policy = Autoregressive() if best == 0 else Chain(best) if chains else DDTree(best)
    table = joint_table(cost, (context, context), size, part.max_budget, part.horizon, widest=0 if chains else best)

    def rate(policy: Policy) -> float:
        decision = decision_of(policy)
        assert decision is not None
        run: Run = _run(decision, here, decided_on(policy, cost, table, part.max_budget), queue)
        return float(run.tokens.sum() / run.seconds.sum())

    base = rate(fixed)
    found = {policy.name: rate(policy) / base - 1 for policy in rules}
    name = max(found, key=found.__getitem__)
    told: dict[str, Any] = {"rule": name, "rule_gain": found[name]}
    on_chains = [policy.name for policy in rules if policy.chains]
    if on_chains:
        name = max(on_chains, key=found.__getitem__)
        told |= {"chain_rule": name, "chain_gain": found[name]}
    return told
