"""The plan for a serving engine: K by the number of requests, what it gains, and what the engine's settings can't say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim import limits
from ddsim.arrays import Floats
from ddsim.cost.model import CostModel
from ddsim.cost.ranges import measured_grid
from ddsim.cost.table import CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.rules import Schedule
from ddsim.policy.schedules import check_whole
from ddsim.policy.walk import fixed_walks
from ddsim.replay.bootstrap import ENOUGH, FEW, _Bootstrap, cost_error, few, percent, sure
from ddsim.replay.engines import (
    ENGINES,
    ChainRates,
    chain_lengths,
    chain_rates,
    chain_seconds,
    choices_of,
    choosing,
    chosen,
    drawn_rates,
    engine_rule,
    schedule_ranges,
    unnamed_costs,
)
from ddsim.replay.maps import MAP_BATCHES, MAP_CONTEXTS
from ddsim.replay.plan_text import said_runs
from ddsim.replay.replay import _records
from ddsim.replay.requests import _in_memory
from ddsim.replay.shown import ShownEnginePlan
from ddsim.replay.why import Change
from ddsim.text import listed
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace

NEAR = 0.01
"""Relative loss in tokens a second up to which a K is as good as the best."""

MOST_RANGES = 6
"""Ranges of requests that a sentence lists."""

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, repr=False)
class EnginePlan(ShownEnginePlan):
    """K for an engine, and what it is worth.

    Attributes
    ----------
    engine, method : str
        As `ddsim.replay.engines.ENGINES` names them.
    context : int
        Committed tokens that every request has.
    table : DataFrame
        A row for 1, 2, ... requests: requests, k, k_low and k_high (95 % of the bootstrap's draws find their best K there), near_best
        (runs of K within 1 % of the best), acceptance_length, tokens_per_second with low and high, tpot (seconds), over_ar with over_ar_low
        and over_ar_high, against_k, against_tokens_per_second, gain over it with gain_low and gain_high, lost (a share of the best K's
        tokens a second, for what the engine can't be set to), extrapolated.
    against : str
        What the gain is over.
    by_workload : DataFrame
        workload, requests, k (its own best), near_best, tokens_per_second with it, lost (a share, by the plan's K), context (its mean).
    by_context : DataFrame
        context, requests, k (the best there), tokens_per_second with it, lost (a share, by the plan's K), extrapolated.
    trees : DataFrame
        requests, nodes (of the best tree that was measured), tokens_per_second with it, lost (a share, by the plan's K).
    off_from : int or None
        Number of requests from which on nothing should be drafted.
    notes : tuple of str
        What limits the answer.
    """

    engine: str
    method: str
    context: int
    table: pd.DataFrame
    against: str
    by_workload: pd.DataFrame
    by_context: pd.DataFrame
    trees: pd.DataFrame
    off_from: int | None
    notes: tuple[str, ...]
    shown: tuple[int, ...]
    """Numbers of requests that stand for all, in tables for people."""
    provenance: dict[str, Any]
    reasons: tuple[dict[str, Any], ...] = ()
    """Why K changes where it does: requests, k (chosen there), other (K of one request less; where K never changes, the next best at most
    requests), and what the other would do to a round's seconds and tokens (relative changes)."""

    @property
    def prompts(self) -> int:
        """Prompts of the recording; several answers to one count once."""
        return int(self.provenance["prompts"])

    @property
    def title(self) -> str:
        """The engine's name."""
        return ENGINES[self.engine].title

    @property
    def sentence(self) -> str:
        """The recommendation."""
        ranges = schedule_ranges(self.table)
        if len(ranges) > MOST_RANGES:
            ks = dict(zip(self.table["requests"].tolist(), self.table["k"].tolist(), strict=True))
            at = listed([str(n) for n in self.shown])
            return f"{self.title}: K = {listed([str(ks[n]) for n in self.shown])} at {at} requests; {len(ranges)} ranges in all."
        return f"{self.title}: {said_ranges(ranges)}."

    @property
    def details(self) -> tuple[str, ...]:
        """What it gains, from where on drafting is off, and what the engine's settings can't say."""
        rows = self.table.dropna(subset="gain").to_dict("records")
        lines = [said_reasons(self.reasons)] * bool(self.reasons)
        if rows:
            best = max(rows, key=lambda row: float(row["gain"]))
            ends = float(best["gain"]), float(best["gain_low"]), float(best["gain_high"])
            gain = percent(sure(ends, self.prompts))
            lines.append(f"Over {self.against} it gains most at {best['requests']} requests: {gain}.")
        else:
            lines.append(f"The costs of {self.against} weren't measured.")
        last = int(self.table["requests"].iloc[-1])
        if self.off_from is None:
            lines.append(f"Drafting pays up to {last} requests, as far as costs were measured.")
        else:
            lines.append(
                f"From {self.off_from} requests on drafting loses, up to {last} as far as costs were measured."
            )
        return (*lines, *(line for line in map(self._said, self.lost) if line))

    @property
    def lost(self) -> list[dict[str, Any]]:
        """What the engine can't be told, each with the largest loss: what, lost (a share), and where."""
        found = [{"what": "settings", **_worst(self.table, "requests", "k")}]
        for what, table, keys in (
            ("trees", self.trees, ("requests", "nodes")),
            ("K by context", self.by_context, ("requests", "context", "k")),
            ("K by workload", self.by_workload, ("requests", "workload", "k")),
        ):
            if len(table):
                found.append({"what": what, **_worst(table, *keys)})
        return found

    def _said(self, loss: dict[str, Any]) -> str | None:
        """A loss in words."""
        share, requests = f"{100 * loss['lost']:.1f} %", f"{loss['requests']} request{'s' * (loss['requests'] > 1)}"
        if loss["what"] != "settings" and loss["lost"] < 0.0005:
            return f"{loss['what'][0].upper()}{loss['what'][1:]} can't be set; here that loses nothing."
        if loss["what"] == "trees":
            return f"Trees can't be set: against the best, of {loss['nodes']} nodes, it loses {share} at {requests}."
        if loss["what"] == "K by context":
            return (
                f"K by context can't be set: at most {share} is lost, at {requests} and a context of {loss['context']:,} "
                f"(K = {loss['k']})."
            )
        if loss["what"] == "K by workload":
            return f"K by workload can't be set: at most {share} is lost, by {loss['workload']} at {requests} (K = {loss['k']})."
        if loss["lost"] <= NEAR:
            return None
        how = {"one": "One K for all batches", "first": "No K above that of one request"}[
            engine_rule(self.engine, self.method)
        ]
        return f"{how} is all that can be set: at most {share} is lost, at {requests}."

    def grid(self) -> tuple[Floats, list[int], NDArray[np.bool_]]:
        """Best K by the numbers of requests shown and by context, what contexts these are, and which cells rest on extrapolated costs."""
        of = self.by_context if len(self.by_context) else self.table.assign(context=self.context)
        cells = of[of["requests"].isin(self.shown)].pivot(index="requests", columns="context")
        ks = cells["k"].reindex(list(self.shown)).to_numpy(float)
        marks = cells["extrapolated"].reindex(list(self.shown)).fillna(False).to_numpy(bool)
        return ks, [int(c) for c in cells["k"].columns], marks

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON-able object."""
        return {
            "schema_version": 1,
            "kind": "ddsim-engine-plan",
            "engine": self.engine,
            "method": self.method,
            "context": self.context,
            "sentence": self.sentence,
            "details": list(self.details),
            "against": self.against,
            "off_from": self.off_from,
            "schedule": [list(one) for one in schedule_ranges(self.table)],
            "batches": _records(self.table),
            "workloads": _records(self.by_workload),
            "contexts": _records(self.by_context),
            "trees": _records(self.trees),
            "lost": self.lost,
            "why": list(self.reasons),
            "prompts": self.prompts,
            "enough_prompts": self.prompts >= ENOUGH,
            "notes": list(self.notes),
            "provenance": self.provenance,
        }


def engine_plan(
    trace: Trace | Positions,
    cost: CostModel,
    engine: str,
    *,
    method: str = "dflash",
    against: int | Sequence[tuple[int, int, int]] | None = None,
    requests: int | Sequence[int] | None = None,
    context: int | None = None,
    extrapolate: bool = False,
    bootstrap: int = 2000,
    seed: int = 0,
) -> EnginePlan:
    """What an engine should be set to: for 1, 2, ... requests the best K that it can be set to, with intervals.

    K is chosen as `ddsim.replay.engines.best_chains` chooses it, on the prompts that it is judged on. Intervals cover prompts and the
    costs' held-out error. Contexts change costs here, not what is accepted.

    Parameters
    ----------
    trace, cost
    engine : {"vllm", "sglang", "tensorrt-llm"}
    method : str
        What drafts in the engine: dflash, eagle3 or dspark.
    against : int or list of (first, last, K), optional
        What the engine is set to now; by default all drafted tokens at every batch, which is what engines do if nobody says otherwise.
    requests : int or sequence of int, optional
        Numbers of requests to show, the largest being the most; by default 1, 2, 4, ... as far as measured.
    context, extrapolate : as in `ddsim.replay.engines.chain_rates`
    bootstrap, seed : as in `ddsim.plan`

    Raises
    ------
    DdsimError
        An engine or method that isn't known; ``against`` leaves a number of requests out, or its K isn't within the block; and as
        `ddsim.replay.engines.chain_rates`.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 4, 5, 12], [0.010, 0.010, 0.020, 0.060])
    >>> advice = engine_plan(trace, cost, "vllm", requests=4)
    >>> print(advice.sentence)
    vLLM: K = 2 for 1, K = 1 for 2, no draft for 3 to 4 requests.
    >>> print(advice.details[1])
    Over K = 2 at every batch it gains most at 4 requests: +100.0 %.
    >>> [(reason["requests"], reason["other"], reason["k"]) for reason in advice.reasons]
    [(2, 2, 1), (3, 1, 0)]
    """
    rule = engine_rule(engine, method)
    limits.check("bootstrap", bootstrap)
    limits.check("seed", seed)
    asked = [] if requests is None else [requests] if isinstance(requests, int) else sorted(set(requests))
    most = asked[-1] if asked else None
    found = chain_rates(trace, cost, requests=most, context=context, extrapolate=extrapolate)
    positions = _in_memory(trace, None)
    last = len(found.requests)
    shown = tuple(asked) if len(asked) > 1 else (*[n for n in MAP_BATCHES if n < last], last)
    current, name = _current(against, positions.horizon, last)
    ks = chosen(found, rule, choosing(found, positions, cost))
    draws = _Bootstrap(positions, bootstrap, seed, cost_error(cost))
    table = _table(found, ks, current, positions, cost, draws)
    off = np.flatnonzero(ks > 0)
    off_from = None if len(off) and off[-1] == last - 1 else int(off[-1]) + 2 if len(off) else 1
    return EnginePlan(
        engine=engine,
        method=method,
        context=found.context,
        table=table,
        against=name,
        by_workload=_by_workload(found, ks, positions, shown),
        by_context=_by_context(found, ks, cost, shown, extrapolate),
        trees=_trees(found, ks, positions, cost, shown, extrapolate),
        off_from=off_from,
        notes=_notes(engine, table, draws, trace, cost),
        shown=shown,
        provenance={
            "trace": positions.fingerprint,
            "cost": {"kind": cost.kind, "range": str(cost.range), "provenance": cost.provenance},
            "bootstrap": bootstrap,
            "seed": seed,
            "tuned_on": "same prompts",
            "prompts": draws.units,
        },
        reasons=_reasons(found, ks),
    )


def _reasons(found: ChainRates, ks: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
    """`EnginePlan.reasons`."""
    changes = [(i, int(ks[i - 1])) for i in range(1, len(ks)) if ks[i] != ks[i - 1]]
    if not changes:
        rates = found.rates[-1].copy()
        rates[ks[-1]] = np.nan
        changes = [] if np.isnan(rates).all() else [(len(ks) - 1, int(np.nanargmax(rates)))]
    out = []
    for i, other in changes:
        k = int(ks[i])
        seconds, tokens = found.seconds[i, other] / found.seconds[i, k], found.lengths[other] / found.lengths[k]
        if np.isfinite(seconds):
            row = {"requests": int(found.requests[i]), "k": k, "other": other}
            out.append(row | {"seconds": float(seconds) - 1, "tokens": float(tokens) - 1})
    return tuple(out)


def said_reasons(reasons: Sequence[dict[str, Any]]) -> str:
    """Why K changes where it does, in a sentence; of many changes the first and the last.

    Examples
    --------
    >>> said_reasons([{"requests": 14, "k": 7, "other": 15, "seconds": 0.26, "tokens": 0.2}])
    'At 14 requests a round with K = 15 takes 26 % more time and commits 20 % more tokens than with K = 7.'
    """
    told = reasons if len(reasons) <= 2 else (reasons[0], reasons[-1])
    parts = []
    for row in told:
        at = f"{row['requests']} request{'s' * (row['requests'] > 1)}"
        other, k = (f"with K = {k}" if k else "without a draft" for k in (row["other"], row["k"]))
        parts.append(f"at {at} a round {other} {Change(row['other'], row['seconds'], row['tokens'])} than {k}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _current(against: Any, horizon: int, most: int) -> tuple[NDArray[np.int64], str]:
    """K by the number of requests, int64 [B], of what the engine is set to, and its name."""
    if against is None or isinstance(against, (int, np.integer)):
        k = horizon if against is None else int(against)
        if not 0 <= k <= horizon:
            raise DdsimError(f"against: K = {k}: must be 0 to {horizon}, the tokens of a recorded draft")
        return np.full(most, k, np.int64), f"K = {k} at every batch"
    schedule = Schedule(list(against))
    check_whole(schedule.ranges, horizon, "against")
    return np.array([schedule.k(n) for n in range(1, most + 1)], np.int64), "the given schedule"


def _table(
    found: ChainRates,
    ks: NDArray[np.int64],
    current: NDArray[np.int64],
    positions: Positions,
    cost: CostModel,
    draws: _Bootstrap,
) -> pd.DataFrame:
    """Rows of `EnginePlan.table`."""
    rates = found.rates
    rows: list[dict[str, Any]] = []
    for i, drawn in enumerate(drawn_rates(found, positions, cost, draws)):
        count, k, now, seconds = int(found.requests[i]), int(ks[i]), int(current[i]), found.seconds[i]
        row: dict[str, Any] = {"requests": count, "k": k}
        bests = np.nanargmax(drawn, axis=1)
        row["k_low"], row["k_high"] = np.quantile(bests, [0.025, 0.975], method="inverted_cdf").tolist()
        row |= {"near_best": near_best(rates[i]), "acceptance_length": found.lengths[k]}
        row |= _interval("tokens_per_second", rates[i, k], drawn[:, k], draws.units, ("low", "high"))
        row["tpot"] = seconds[k] / found.lengths[k]
        row |= _interval("over_ar", rates[i, k] / rates[i, 0] - 1, drawn[:, k] / drawn[:, 0] - 1, draws.units)
        row |= {"against_k": now, "against_tokens_per_second": rates[i, now]}
        row |= _interval("gain", rates[i, k] / rates[i, now] - 1, drawn[:, k] / drawn[:, now] - 1, draws.units)
        rows.append(row)
    choices = choices_of(found, ks)
    return pd.DataFrame(rows).assign(lost=choices["lost"], extrapolated=choices["extrapolated"])


def _interval(
    name: str, value: float, drawn: Floats, units: int, ends: tuple[str, str] | None = None
) -> dict[str, float]:
    """A figure with its 95 % interval; NaN where there is one prompt only."""
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist() if units > 1 else (np.nan, np.nan)
    first, second = ends or (f"{name}_low", f"{name}_high")
    return {name: value, first: low, second: high}


def said_ranges(ranges: Sequence[tuple[int, int, int]]) -> str:
    """Ranges of requests with their K.

    Examples
    --------
    >>> said_ranges([(1, 8, 15), (9, 9, 7), (10, 64, 0)])
    'K = 15 for 1 to 8, K = 7 for 9, no draft for 10 to 64 requests'
    """
    words = []
    for first, last, k in ranges:
        words.append(f"{f'K = {k}' if k else 'no draft'} for {said_runs([(first, last)])}")
    return f"{', '.join(words)} requests"


def near_best(rates: Floats) -> Runs:
    """Runs of K, first and last, whose throughput is within 1 % of the best.

    Examples
    --------
    >>> near_best(np.array([50.0, 99.5, 100.0, 80.0, 99.9, np.nan]))
    ((1, 2), (4, 4))
    """
    good = rates >= (1 - NEAR) * np.nanmax(rates)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good, [0]]).astype(int)))
    return tuple((int(a), int(b) - 1) for a, b in edges.reshape(-1, 2))


def _by_workload(found: ChainRates, ks: NDArray[np.int64], positions: Positions, shown: Sequence[int]) -> pd.DataFrame:
    """Rows of `EnginePlan.by_workload`; none if all prompts are of one."""
    workload = np.array(positions.workload, object)
    names = [name for name in dict.fromkeys(positions.workload) if positions.tokens[workload == name].any()]
    rows = []
    for name in names if len(names) > 1 else []:
        part = positions.subset(workload == name)
        mine, context = dataclasses.replace(found, lengths=chain_lengths(part)[0]).rates, float(part.context.mean())
        for count in shown:
            rates = mine[count - 1]
            k = int(np.nanargmax(rates))
            rows.append(
                {
                    "workload": name,
                    "requests": count,
                    "k": k,
                    "near_best": near_best(rates),
                    "tokens_per_second": rates[k],
                    "lost": 1 - rates[ks[count - 1]] / rates[k],
                    "context": context,
                }
            )
    return pd.DataFrame(rows)


def _by_context(
    found: ChainRates, ks: NDArray[np.int64], cost: CostModel, shown: Sequence[int], extrapolate: bool
) -> pd.DataFrame:
    """Rows of `EnginePlan.by_context`; none where costs don't depend on the context."""
    rows = []
    for context in measured_grid(MAP_CONTEXTS, cost.range.contexts) if cost.range.contexts else []:
        seconds, marks = chain_seconds(cost, shown, len(found.lengths) - 1, context, extrapolate=extrapolate)
        for count, taken, mark in zip(shown, seconds, marks, strict=True):
            rates, k = count * found.lengths / taken, int(ks[count - 1])
            if np.isnan(rates[0]) or np.isnan(rates[k]):
                continue
            best = int(np.nanargmax(rates))
            rows.append(
                {
                    "context": context,
                    "requests": count,
                    "k": best,
                    "tokens_per_second": rates[best],
                    "lost": 1 - rates[k] / rates[best],
                    "extrapolated": bool(mark[best]),
                }
            )
    return pd.DataFrame(rows)


def _trees(
    found: ChainRates,
    ks: NDArray[np.int64],
    positions: Positions,
    cost: CostModel,
    shown: Sequence[int],
    extrapolate: bool,
) -> pd.DataFrame:
    """Rows of `EnginePlan.trees`: the best fixed width whose tokens were measured; none for recorded chains."""
    if positions.max_budget <= positions.horizon:
        return pd.DataFrame()
    rounds = fixed_walks(positions, CostTable.of_curve(np.ones(positions.max_budget + 1), len(positions)))[1]
    lengths = positions.tokens.sum() / rounds.sum(axis=0)
    rows = []
    with cost.one_warning():
        for count in shown:
            widest = int(cost.measured_tokens(found.context, count)[1]) // count - 1
            widest = min(max(widest, 1 if extrapolate else 0), positions.max_budget)
            if widest < 1:
                continue
            seconds = cost_table(cost, [found.context], count * widest, count).seconds[0, ::count]
            rates = count * lengths[: widest + 1] / seconds
            nodes, mine = 1 + int(np.argmax(rates[1:])), float(found.rates[count - 1, ks[count - 1]])
            lost = max(0.0, 1 - mine / float(rates[nodes]))
            rows.append({"requests": count, "nodes": nodes, "tokens_per_second": rates[nodes], "lost": lost})
    return pd.DataFrame(rows)


def _worst(table: pd.DataFrame, *keys: str) -> dict[str, Any]:
    """The row that loses most: lost, and its ``keys``."""
    row = table.to_dict("records")[int(table["lost"].to_numpy().argmax())]
    return {"lost": max(0.0, float(row["lost"]))} | {str(key): row[key] for key in keys}


def _notes(
    engine: str, table: pd.DataFrame, draws: _Bootstrap, trace: Trace | Positions, cost: CostModel
) -> tuple[str, ...]:
    notes = ["K was chosen on the prompts that it is judged on."]
    if draws.units < ENOUGH:
        notes.append(few(draws.units))
    elif draws.units < FEW:
        notes.append(f"The trace holds {draws.units} prompts: intervals are rough.")
    notes += unnamed_costs(engine, cost)
    if isinstance(off := cost.provenance.get("off"), str):
        notes.append(f"{off}.")
    theirs = cost.provenance.get("target")
    mine = trace.meta.get("provenance", {}).get("target") if isinstance(trace, Trace) else None
    if theirs is not None and mine is not None and theirs != mine:
        notes.append(f"Costs are of {theirs}, the recording of {mine}.")
    if table["extrapolated"].any():
        notes.append(f"Of {len(table)} rows {int(table['extrapolated'].sum())} rest on extrapolated costs.")
    return tuple(notes)
