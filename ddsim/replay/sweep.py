"""Sweeps: every trace, cost, seed, batch size and policy, in one table; on threads, or on a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ddsim import limits
from ddsim.cluster import Together, workers
from ddsim.cost.model import CostModel
from ddsim.cost.ranges import measured_grid
from ddsim.errors import DdsimError
from ddsim.policy.contract import Policy
from ddsim.policy.joint import batches_of
from ddsim.policy.parse import policies_of
from ddsim.replay.arguments import check_given
from ddsim.replay.load import UnderLoad, serve_loads
from ddsim.replay.serving import BATCHES, _Simulation, named_rules, rules_for, serving_policies
from ddsim.trace.rounds import Positions
from ddsim.trace.schema import Progress
from ddsim.trace.shared import SharedTrace
from ddsim.trace.trace import Trace


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
    load: Mapping[str, Any] | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Serve each trace at each cost with each seed, as `ddsim.simulate` or `ddsim.serve_load` does for one.

    Parameters
    ----------
    traces, costs : dict of name to Trace, and to CostModel
        Each trace is served by itself.
    policies, batch, requests, max_tokens, bootstrap
        As `ddsim.simulate` takes them.
    seeds : sequence of int
    load : dict, optional
        Requests arrive on their own: loads in place of batch sizes. What `ddsim.serve_load` takes: rate, arrivals, running, memory, prefill,
        chunk, ttft, tpot; empty for its defaults.
    cluster : str, optional
        As `ddsim.cluster.workers` takes it. A task is one policy at one batch size or load of one cell; the table doesn't depend on who did what.
    progress : callable, optional
        Called with (tasks done, tasks in all).

    Returns
    -------
    pandas.DataFrame
        Columns trace, profile, seed and those of `ServingResult.table`, a row for each batch size and policy; with ``load`` those of
        `LoadResult.table`, a row for each load and policy.

    Raises
    ------
    DdsimError
        Nothing to sweep over, what `ddsim.simulate` and `ddsim.serve_load` refuse, or what befalls a cluster.

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
    cells: list[dict[str, Any]] = [
        {"trace": name, "profile": profile, "seed": limits.check("seed", seed)}
        for name in traces
        for profile in costs
        for seed in seeds
    ]
    for cell in cells:
        check_given("sweep", traces[cell["trace"]], costs[cell["profile"]], Positions)
    shared = {name: SharedTrace(trace) for name, trace in traces.items()}
    with contextlib.ExitStack() as stack:
        for cost in costs.values():
            stack.enter_context(cost.one_warning())
        if load is None:
            given: dict[str, Any] = {
                "batch": batch,
                "requests": requests,
                "max_tokens": max_tokens,
                "bootstrap": bootstrap,
            }
            tables = _full(cells, shared, costs, policies, cluster, progress, **given)
        else:
            for name, value in (("batch", batch), ("max_tokens", max_tokens)):
                if value is not None:
                    raise DdsimError(f"sweep: {name} is for full batches, not for a load")
            served = [
                UnderLoad(
                    shared[cell["trace"]], costs[cell["profile"]], policies, **load, requests=requests, bootstrap=bootstrap, seed=cell["seed"]
                )
                for cell in cells
            ]  # fmt: skip
            tables = [result.table() for result in serve_loads(served, cluster, progress)]
    table = pd.concat([own.assign(**cell) for own, cell in zip(tables, cells, strict=True)], ignore_index=True)
    return table[["trace", "profile", "seed", *table.columns.drop(["trace", "profile", "seed"])]]


def _full(
    cells: Sequence[Mapping[str, Any]], shared: Mapping[str, SharedTrace], costs: Mapping[str, CostModel], policies: Any, cluster: str | None,
    progress: Progress | None, *, batch: int | Sequence[int] | None, requests: int | None, max_tokens: int | None, bootstrap: int,
) -> list[pd.DataFrame]:  # fmt: skip
    """Each cell's table of full batches."""
    rules = {  # the same objects for all cells of a cost: sent once
        profile: policies_of(
            named_rules(policies, functools.partial(rules_for, cost)) or serving_policies(), joint=True
        )
        for profile, cost in costs.items()
    }
    simulations = []
    for cell in cells:
        cost = costs[cell["profile"]]
        sizes = batches_of(measured_grid(BATCHES, cost.range.batches) if batch is None else batch)
        simulations.append(
            _Simulation(
                shared[cell["trace"]], cost, rules[cell["profile"]], sizes, requests=requests, max_tokens=max_tokens, drain=False,
                calibration=None, bootstrap=bootstrap, seed=cell["seed"],
            )
        )  # fmt: skip
    tasks = [(n, task) for n, simulation in enumerate(simulations) for task in simulation.tasks]
    with workers(cluster) as spread:
        for simulation in simulations:
            simulation.price()
        done = spread(Together(simulations), tasks, progress)
    found = []
    for n, simulation in enumerate(simulations):
        own = [result for (number, _), result in zip(tasks, done, strict=True) if number == n]
        found.append(simulation.result(own).table())
    return found
