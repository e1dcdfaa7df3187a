"""``ddsim sweep``: many traces, profiles, batch sizes, policies and seeds in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddsim.cli.app import (
    ANSWERS,
    CSV,
    KINDS,
    ClusterOption,
    JsonOption,
    KindOption,
    RequestsOption,
    ServingPolicyOption,
    SimulationsOption,
    TemperatureOption,
    WorkloadOption,
    _cost,
    _one_of,
    _open,
    _out_option,
    _within,
    _write,
    app,
    example,
)
from ddsim.cli.console import Column, Out, number, progress
from ddsim.cli.load import LoadOption, RateOption, RunningOption, TpotOption, TtftOption, check_load
from ddsim.files.atomic import STDOUT

COLUMNS: tuple[Column, ...] = (
    ("trace", "trace", str),
    ("profile", "profile", str),
    ("batch", "batch", number(0)),
    ("policy", "most tokens/s", str),
    ("tokens_per_second", "tokens/s", number(0)),
    ("least", "least of\nseeds", number(0)),
    ("most", "most of\nseeds", number(0)),
)


LOAD_COLUMNS: tuple[Column, ...] = (
    ("trace", "trace", str),
    ("profile", "profile", str),
    ("policy", "most\nrequests/s", str),
    ("highest", "requests/s", number(1)),
    ("least", "least of\nseeds", number(1)),
    ("most", "most of\nseeds", number(1)),
)


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim sweep traces/temperature-0/* --profile h100.json --batch 1 --batch 32 --seeds 5 --out sweep.csv",
        "ddsim sweep traces/* -p h100.json -p a100.json --cluster tcp://10.0.0.1:8786 --out sweep.parquet",
        "ddsim sweep traces/temperature-0/humaneval --profile mine.csv --batch 1 --batch 8 --out sweep.csv",
        "ddsim sweep traces/temperature-0/* --profile h100.json --load --rate 2 --rate 8 --out loads.csv",
    ),
)
def sweep(
    trace: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="Trace folders, each served by itself; all workers see them there."),
    ],
    profile: Annotated[
        list[Path],
        typer.Option("--profile", "-p", metavar="FILE", help=f"Latency profile, cost model, or {CSV} (repeatable)."),
    ],
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", "-b", callback=_within("batch"), help="Requests decoded together (repeatable)."),
    ] = None,
    policy: ServingPolicyOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds, from 0 on: as many orders of all requests.")] = 1,
    requests: RequestsOption = None,
    load: LoadOption = False,
    rate: RateOption = None,
    running: RunningOption = None,
    ttft: TtftOption = None,
    tpot: TpotOption = None,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: SimulationsOption = 0,
    cluster: ClusterOption = None,
    out: Annotated[str | None, _out_option("Save the table (.csv, .parquet, .json, .jsonl)")] = None,
    json: JsonOption = False,
) -> None:
    """Serve every trace at every profile, batch size (or load), policy and seed, on this machine or on a cluster: one table."""
    show = Out(json, [out])
    _one_of("--kind", kind, KINDS)
    needs = {"--rate": rate, "--running": running, "--ttft": ttft is not None, "--tpot": tpot is not None}
    check_load(load, needs, {"--batch": batch}, "sweep")
    from ddsim.replay.replay import _records
    from ddsim.replay.said import won
    from ddsim.replay.shown import warned
    from ddsim.replay.sweep import sweep as run
    from ddsim.view.export import check_format, export_table

    if out is not None and out != STDOUT:
        check_format(out, "--out ")  # now, not after the work
    traces = {str(path): _open(show, [path], workload, temperature) for path in trace}
    costs = {str(path): _cost(show, path, kind) for path in profile}
    with progress("Sweeping") as told:
        table = run(
            traces, costs, policy or None, batch=batch or None, seeds=range(seeds), requests=requests, bootstrap=bootstrap,
            load={"rate": rate or None, "running": running, "ttft": ttft, "tpot": tpot} if load else None, cluster=cluster, progress=told,
        )  # fmt: skip
    keys, worth = (
        ["trace", "profile"] if load else ["trace", "profile", "batch"],
        "highest" if load else "tokens_per_second",
    )
    rates = table.groupby([*keys, "policy"], sort=False)[worth].agg(["mean", "min", "max"]).reset_index()
    best = rates.loc[rates.groupby(keys, sort=False)["mean"].idxmax()]
    best = best.rename(columns={"mean": worth, "min": "least", "max": "most"})
    drop = [key for key in ("trace", "profile") if best[key].nunique() == 1]
    prompts = min(len({(s.workload, s.prompt_id) for s in one.sequences}) for one in traces.values())
    sentence = won(best["policy"].tolist(), [float(v) for v in best[worth]], "requests/s" if load else "tokens/s")
    show.answer(sentence, warned(prompts))
    show.say()
    title = (
        f"The {'policy of each that can serve most' if load else 'fastest policy of each'} ({len(table)} rows in all)"
    )
    show.table(best.drop(columns=drop), LOAD_COLUMNS if load else COLUMNS, title)
    if out is not None:
        _write(out, Path(out).suffix if out != STDOUT else ".csv", lambda path: export_table(table, path))
        show.saved(out)
    show.json(
        {
            "kind": "ddsim-sweep",
            "schema_version": 1,
            "sentence": sentence,
            "prompts": prompts,
            "table": _records(table),
            "out": out,
        }
    )
