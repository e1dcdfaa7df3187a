"""Sweeps: every trace, cost, seed, batch size and policy, in one table; on threads, or on a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddsim import limits
from ddsim.cluster import workers
from ddsim.cost.model import CostModel
from ddsim.cost.ranges import measured_grid
from ddsim.errors import DdsimError
from ddsim.policy.contract import Policy
from ddsim.policy.joint import batches_of
from ddsim.policy.parse import policies_of
from ddsim.replay.arguments import check_given
from ddsim.replay.served import Run
from ddsim.replay.serving import BATCHES, _Simulation, named_rules, rules_for, serving_policies
from ddsim.trace.rounds import Positions
from ddsim.trace.schema import Progress
from ddsim.trace.shared import SharedTrace
from ddsim.trace.trace import Trace


@dataclass(frozen=True)
class _Cells:
    """The simulations of a sweep; a task is (number of the simulation, one of its tasks)."""

    simulations: list[_Simulation]

    def __call__(self, task: tuple[int, tuple[int, int]]) -> tuple[Policy, Run]:
        number, own = task
        return self.simulations[number](own)


def sweep(
    traces: Mapping[str, Trace | Positions],
    costs: Mapping[str, CostModel],
    policies: Sequence[Policy | str] | Policy | str | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    requests: int | None = None,
    max_tokens: int | None = None,
    bootstrap: int = 0,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Serve each trace at each cost with each seed, as `ddsim.simulate` does for one.

    Parameters
    ----------
    traces, costs : dict of name to Trace, and to CostModel
        Each trace is served by itself.
    policies, batch, requests, max_tokens, bootstrap
        As `ddsim.simulate` takes them.
    seeds : sequence of int
    cluster : str, optional
        As `ddsim.cluster.workers` takes it. A task is one policy at one batch size of one cell; the table doesn't depend on who did what.
    progress : callable, optional
        Called with (tasks done, tasks in all).

    Returns
    -------
    pandas.DataFrame
        Columns trace, profile, seed and those of `ServingResult.table`, a row for each batch size and policy.

    Raises
    ------
    DdsimError
        Nothing to sweep over, what `ddsim.simulate` refuses, or what befalls a cluster.

    Examples
    --------
    >>> import numpy as np
    >>> ids, logprobs = np.full((9, 2, 2), [6, 7]), np.log(np.full((9, 2, 2), [0.5, 0.25]))
    >>> trace = Trace.from_arrays([5, 6, 6] * 3, ids, logprobs, max_budget=4)
    >>> cost = CostModel.from_table([1, 200], [0.010, 0.020], draft_seconds=0.001)
    >>> table = sweep({"toy": trace}, {"flat": cost}, "DFlash", batch=[1, 2], seeds=[0, 1])
    >>> table["seed"].tolist(), table["batch"].tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 1, 1, 2, 2])
    """
    if not (traces and costs and seeds):
        raise DdsimError("sweep: give at least one trace, one cost and one seed")
    limits.check("simulations", bootstrap, "bootstrap")
    shared: dict[str, SharedTrace] = {}
    cells: list[dict[str, Any]] = []
    simulations: list[_Simulation] = []
    rules = {  # the same objects for all cells of a cost: sent once
        profile: policies_of(
            named_rules(policies, functools.partial(rules_for, cost)) or serving_policies(), joint=True
        )
        for profile, cost in costs.items()
    }
    for name, trace in traces.items():
        shared[name] = SharedTrace(trace)
        for profile, cost in costs.items():
            check_given("sweep", trace, cost, Positions)
            sizes = batches_of(measured_grid(BATCHES, cost.range.batches) if batch is None else batch)
            for seed in seeds:
                cells.append({"trace": name, "profile": profile, "seed": limits.check("seed", seed)})
                simulations.append(
                    _Simulation(
                        shared[name], cost, rules[profile], sizes, requests=requests, max_tokens=max_tokens, drain=False, calibration=None,
                        bootstrap=bootstrap, seed=seed,
                    )
                )  # fmt: skip
    tasks = [(n, task) for n, simulation in enumerate(simulations) for task in simulation.tasks]
    with contextlib.ExitStack() as stack:
        for cost in costs.values():
            stack.enter_context(cost.one_warning())
        spread = stack.enter_context(workers(cluster))
        for simulation in simulations:
            simulation.price()
        done = spread(_Cells(simulations), tasks, progress)
        parts: list[Any] = []
        for n, (cell, simulation) in enumerate(zip(cells, simulations, strict=True)):
            own = [result for (number, _), result in zip(tasks, done, strict=True) if number == n]
            parts.append(simulation.result(own).table().assign(**cell))
    table = pd.concat(parts, ignore_index=True)
    return table[["trace", "profile", "seed", *table.columns.drop(["trace", "profile", "seed"])]]
