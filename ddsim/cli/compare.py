"""``ddsim compare``: recordings, costs, plans or drafters beside each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ddsim.cli.app import (
    ANSWERS,
    KINDS,
    BootstrapOption,
    JsonOption,
    KindOption,
    PlotOption,
    SeedOption,
    TemperatureOption,
    WorkloadOption,
    _check_plot,
    _chosen,
    _one_of,
    _open,
    _plot,
    app,
    example,
)
from ddsim.cli.console import Out
from ddsim.cli.console import progress as _progress
from ddsim.errors import DdsimError


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim compare traces/marginals traces/temperature-0",
        "ddsim compare old new --budget 32 --plot gain.png",
        "ddsim compare h100.json mine.csv --trace traces/temperature-0/chat --plot costs.png",
        "ddsim compare yesterday.json today.json",
        "ddsim compare reference/drafter drafter",
    ),
)
def compare(
    sides: Annotated[
        list[Path],
        typer.Argument(
            metavar="FIRST SECOND...",
            help="Recordings of the same texts; profiles, cost models or CSVs; plans (ddsim plan --json); or drafters' folders. "
            "All are compared with the first.",
        ),
    ],
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            "--trace", metavar="TRACE", help="Recording to plan for with costs (repeatable; default: the demo's)."
        ),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option("--budget", min=1, help="Nodes to show of recordings (repeatable; default: 16, 64, 256)."),
    ] = None,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: BootstrapOption = 2000,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """What differs between two of a kind: drafts by tokens a round, costs by time and by what a plan says, plans by why, drafters by shape."""
    show = Out(json, [plot])
    _one_of("--kind", kind, KINDS)
    _check_plot(plot)
    if len(sides) < 2:
        raise DdsimError("compare: needs two or more: recordings, costs, plans or drafters")
    from ddsim.replay.compare import BUDGETS
    from ddsim.replay.compare import compare as run
    from ddsim.replay.compare_drafters import Drafter
    from ddsim.replay.shown import COMPARED
    from ddsim.replay.sides import called, open_side
    from ddsim.trace.trace import Trace

    show.reads(*sides)
    opened: list[Any] = [open_side(os.path.expanduser(path), kind) for path in sides]
    what = [called(side) for side in opened]
    for path, found in zip(sides, what, strict=True):
        if found != what[0]:
            raise DdsimError(f"compare: {sides[0]} is {what[0]} and {path} {found}; compare two of a kind")
    recordings, costs, drafters = isinstance(opened[0], Trace), what[0] == "costs", isinstance(opened[0], Drafter)
    if not costs and trace:
        raise DdsimError("compare: --trace is for costs, which a plan may say the same on")
    if not recordings and budget:
        raise DdsimError("compare: --budget is for recordings")
    if drafters and plot:
        raise DdsimError("compare: drafters' folders have no figure; record with both and compare the recordings")
    options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
    if recordings:
        opened = [_chosen(show, side, workload, temperature) for side in opened]
        options["budgets"] = sorted({*BUDGETS, *(budget or ())})
    elif costs:
        from ddsim.demo import demo_trace

        options["trace"] = _open(show, trace, workload, temperature) if trace else demo_trace()
        options["kind"] = kind
    names = _names(sides) if not recordings else list(map(str, sides))
    answers = []
    for side, name in zip(opened[1:], names[1:], strict=True):
        alike = not recordings or opened[0].kind == side.kind or len(sides) > 2
        with _progress("Comparing") as progress:
            answer = run(opened[0], side, names=(names[0], name) if alike else None, progress=progress, **options)
        answers.append(answer)
        show.summary(answer.summary(budget or COMPARED) if recordings else answer.summary())
    if plot is not None:
        _plot(show, plot, lambda ax: answers[0].plot(ax=ax) if len(answers) == 1 else _draw_all(answers, names, ax))
    documents = [answer.to_json() for answer in answers]
    one = documents[0] if len(documents) == 1 else {"kind": "ddsim-comparisons", "comparisons": documents}
    show.json(one | {"plot": plot})


def _names(paths: list[Path]) -> list[str]:
    """What files and folders are called: short names where they differ."""
    short = [
        path.name.removesuffix(".gz").removesuffix(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)
        for path in paths
    ]
    return short if len(set(short)) == len(short) and all(short) else list(map(str, paths))


def _draw_all(answers: list[Any], names: list[str], ax: Any) -> Any:
    """All others beside the first, in one figure."""
    import pandas as pd

    from ddsim.replay.compare_costs import CostComparison, usual
    from ddsim.replay.compare_plans import PlanComparison
    from ddsim.view.budgets import draft_gains
    from ddsim.view.comparisons import cost_differences, plan_curves

    if isinstance(answers[0], CostComparison):
        rows = [usual(a.table()).assign(series=name) for a, name in zip(answers, names[1:], strict=True)]
        return cost_differences(pd.concat(rows), (names[0], "the others"), ax=ax)
    if isinstance(answers[0], PlanComparison):
        curves = {names[0]: answers[0].curves[0]} | {
            name: a.curves[1] for a, name in zip(answers, names[1:], strict=True)
        }
        return plan_curves(curves, ax=ax)
    tables = [a.table() for a in answers]
    pooled = [
        t[t["workload"] == t["workload"].iloc[-1]].assign(workload=name)
        for t, name in zip(tables, names[1:], strict=True)
    ]
    return draft_gains(pd.concat(pooled), (names[0], "the others"), ax=ax)
