"""Which rule wins where: policies in full batches and under load, and which of the rules that engines have is worth its complexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ddsim.cost.model import CostModel
from ddsim.policy.engine_rules import AdaptiveSteps, AdaptiveVerification, DSpark
from ddsim.policy.parse import kind_of
from ddsim.policy.rules import BestSchedule
from ddsim.replay.bootstrap import ENOUGH
from ddsim.replay.load import RUNNING, serve_load
from ddsim.replay.load_rules import load_policies
from ddsim.replay.loaded import LoadResult
from ddsim.replay.replay import _records
from ddsim.replay.requests import _in_memory
from ddsim.replay.served import ServingResult
from ddsim.replay.serving import rules_for, simulate
from ddsim.replay.shown import ShownContest, warned
from ddsim.text import gained, listed, signed
from ddsim.trace.rounds import Positions
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace

WORTH = 0.01
"""Share of tokens a second that a rule has to gain, at the low end of its interval, to be worth having."""

ENGINES_OWN = (BestSchedule, AdaptiveVerification, DSpark, AdaptiveSteps)
"""Rules that released engines have; the others say what any rule would add."""


@dataclass(frozen=True, repr=False)
class Contest(ShownContest):
    """Rules in full batches and under load, over the best fixed setting of each; made by `contest`.

    Attributes
    ----------
    served : ServingResult
    loaded : LoadResult
    """

    served: ServingResult
    loaded: LoadResult

    @property
    def rules(self) -> list[str]:
        """Policies that aren't a fixed setting."""
        fixed = {name for _, name in self.served.fixed}
        return [name for name in dict.fromkeys(name for _, name in self.served.runs) if name not in fixed]

    def table(self) -> pd.DataFrame:
        """One row a rule and place.

        Returns
        -------
        DataFrame
            policy, engine (whether released engines have it), where ("batch 8", "90 % load" or "highest load"), measure ("tokens/s", "mean
            latency" or "requests/s"), gain over the best fixed setting (a share; of latencies what is saved) with low and high, best_fixed
            (what that is), over_schedule (the same over `BestSchedule`; _low, _high), extrapolated, unstable (under load: its queue grows without end).
        """
        rows: list[dict[str, Any]] = []
        full, load = self.served.table(), self.loaded.table()
        static = BestSchedule.name
        for row in full[full["policy"].isin(self.rules)].to_dict("records"):
            ends = [row[f"over_fixed{end}"] for end in ("", "_low", "_high")]
            over = self.served.gain(row["policy"], static, row["batch"])
            rows.append(_row(row, f"batch {row['batch']}", "tokens/s", ends, over))
        load = load[load["policy"].isin(self.rules)]
        for row in load.to_dict("records"):
            ends = [-row[f"latency_over{end}"] for end in ("", "_high", "_low")]
            change, low, high = self.loaded.gain(row["policy"], static, row["load"])
            rows.append(_row(row, f"{100 * row['share']:.0f} % load", "mean latency", ends, (-change, -high, -low)))
        for row in load.drop_duplicates("policy").to_dict("records"):
            ends = [row[f"highest_over{end}"] for end in ("", "_low", "_high")]
            row = row | {"best_fixed": self.loaded.highest_fixed, "unstable": False}
            rows.append(_row(row, "highest load", "requests/s", ends, (np.nan, np.nan, np.nan)))
        return pd.DataFrame(rows)

    @property
    def wide(self) -> pd.DataFrame:
        """Gains in per cent: a row a rule, a column a place."""
        table = self.table()
        shown = table.assign(gain=(100 * table["gain"]).where(~table["unstable"]))
        wide = shown.pivot(index="policy", columns="where", values="gain")
        return wide.loc[self.rules, list(dict.fromkeys(table["where"]))]

    @property
    def sentence(self) -> str:
        """Which of the engines' rules is worth its complexity, and what the best rule of any kind would add."""
        full = self.table()
        full = full[full["measure"] == "tokens/s"]
        full = full.assign(at=full["where"].str.removeprefix("batch "))
        own = full[full["engine"] & (full["policy"] != BestSchedule.name)]
        own = own.assign(sure=own["over_schedule_low"].fillna(own["over_schedule"]) > WORTH)
        worth, never = [], []
        if self.served.prompts < ENOUGH:
            best = full.sort_values("gain", kind="stable").iloc[-1]
            gain = signed(best["gain"])
            return f"Which rule is worth it can't be told from so few prompts; the fastest here: {best['policy']}, {gain} at {best['at']}."
        for name, rows in own.groupby("policy", sort=False):
            sure = rows[rows["sure"]]
            if not len(sure):
                never.append(str(name))
                continue
            top = sure.sort_values("over_schedule").iloc[-1]
            at = listed(sure["at"].tolist())
            worth.append(f"{name} at {at} requests, {_percent(top, 'over_schedule')} at {top['at']}")
        than = (
            f"Over the best K for each number of requests, a static schedule, more than {100 * WORTH:g} % is gained by"
        )
        said = [f"{than} {'; '.join(worth) or 'none of the rules that engines have'}."]
        if worth and never:
            said.append(f"{listed(never)} {'gain' if len(never) > 1 else 'gains'} as much nowhere.")
        best = full.sort_values("gain", kind="stable").iloc[-1]
        said.append(
            f"The best rule of any kind is {best['policy']}: {_percent(best, 'gain')} over the best fixed setting at {best['at']}."
        )
        return " ".join(said)

    @property
    def details(self) -> tuple[str, ...]:
        """What each of the engines' rules, and the best of any kind, save of the mean latency at the largest load."""
        table = self.table()
        late = table[table["measure"] == "mean latency"]
        where = late["where"].iloc[-1]
        last = late[(late["where"] == where) & ~late["unstable"]].sort_values("gain", ascending=False)
        if not len(last):
            return (*warned(self.served.prompts), f"At {where} every rule's queue grows without end.")
        chosen = last[last["engine"] | (last["gain"] == last["gain"].max())]
        enough = self.served.prompts >= ENOUGH
        gains = {
            row["policy"]: _percent(row, "gain") if enough else signed(row["gain"]) for row in chosen.to_dict("records")
        }
        saved = "; ".join(f"{name} {gain}" for name, gain in gains.items())
        said = f"At {where}, mean latency saved over the best fixed setting, {last['best_fixed'].iloc[0]}: {saved}."
        return (*warned(self.served.prompts), said)

    def to_json(self) -> dict[str, Any]:
        """Sentence, table, and both results, as JSON."""
        return {
            "kind": "ddsim-contest",
            "schema_version": 1,
            "sentence": self.sentence,
            "details": list(self.details),
            "prompts": self.served.prompts,
            "enough_prompts": self.served.prompts >= ENOUGH,
            "table": _records(self.table()),
            "served": self.served.to_json(),
            "loaded": self.loaded.to_json(),
        }


def _percent(row: Any, key: str) -> str:
    """A gain in per cent with its interval."""
    low, high = (row["low"], row["high"]) if key == "gain" else (row[f"{key}_low"], row[f"{key}_high"])
    return gained(row[key], low, high)


def _row(row: Any, where: str, measure: str, ends: Sequence[float], static: Sequence[float]) -> dict[str, Any]:
    keys = ("gain", "low", "high", "over_schedule", "over_schedule_low", "over_schedule_high")
    return {
        "policy": row["policy"],
        "engine": kind_of(row["policy"].split("(")[0]) in ENGINES_OWN,
        "where": where,
        "measure": measure,
        **dict(zip(keys, (*ends, *static), strict=True)),
        "best_fixed": row["best_fixed"],
        "extrapolated": bool(row["extrapolated"]),
        "unstable": bool(row.get("unstable", False)),
    }


def contest(
    trace: Trace | Positions,
    cost: CostModel,
    *,
    batch: int | Sequence[int] | None = None,
    running: int | None = None,
    bootstrap: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
) -> Contest:
    """Hold the rules that engines have against the best fixed settings, in full batches and at 30, 60 and 90 % of the highest load.

    Rules are those of `ddsim.replay.serving.rules_for`. In full batches the best fixed setting is the best one for that batch; under load
    it is one for all numbers of requests, so that a schedule can gain there too.

    Parameters
    ----------
    trace, cost, batch, bootstrap, seed : as in `simulate`
    running : int, optional
        Requests that run at a time under load; as in `serve_load`.
    progress : callable, optional

    Examples
    --------
    >>> from ddsim.trace.trace import Trace
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(8), (80, 3)), axis=-1)[..., ::-1])
    >>> ids = rng.permuted(np.tile(np.arange(8), (80, 3, 1)), axis=-1)
    >>> trace = Trace.from_arrays(list(rng.integers(0, 8, (4, 20))), list(ids.reshape(4, 20, 3, 8)), list(rows.reshape(4, 20, 3, 8)), max_budget=16)
    >>> cost = CostModel.from_table([1, 200], [0.010, 0.020], draft_seconds=0.001)
    >>> contest(trace, cost, batch=[1, 4], running=4, bootstrap=2).wide.columns.tolist()
    ['batch 1', 'batch 4', '30 % load', '60 % load', '90 % load', 'highest load']
    """
    positions = _in_memory(trace, None)
    served = simulate(positions, cost, "rules", batch=batch, bootstrap=bootstrap, seed=seed, progress=progress)
    running = running or (int(cost.range.batches[1]) if cost.range.batches else RUNNING)
    settings = [one for one in load_policies(positions, cost, running) if one.fixed is not None]
    rules = [one for one in rules_for(cost) if one.fixed is None and one.solves not in ("budget", "chain")]
    loaded = serve_load(
        positions, cost, [*settings, *rules], running=running, bootstrap=bootstrap, seed=seed, progress=progress
    )
    return Contest(served, loaded)
