"""Commands that answer: demo, plan, replay, report, serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import (
    ANSWERS,
    CALIBRATIONS,
    KINDS,
    BootstrapOption,
    CalibrateOption,
    ClusterOption,
    JsonOption,
    KindOption,
    PlotOption,
    PolicyOption,
    ProfileOption,
    RequestsOption,
    RuleOption,
    SeedOption,
    ServedBatchOption,
    ServingPolicyOption,
    SimulationsOption,
    TemperatureOption,
    TraceArgument,
    WorkloadOption,
    _calibration,
    _check_plot,
    _check_typed,
    _cost,
    _one_of,
    _open,
    _out_option,
    _plot,
    _within,
    _write,
    app,
    example,
)
from ddsim.cli.console import Out
from ddsim.cli.console import progress as _progress
from ddsim.cli.engines import AgainstOption, EngineOption, ExtrapolateOption, MethodOption, plan_for
from ddsim.cli.load import (
    ArrivalsOption,
    ChunkOption,
    LoadOption,
    MapOption,
    MemoryOption,
    PrefillOption,
    RateOption,
    RunningOption,
    TpotOption,
    TtftOption,
    check_load,
    map_for,
    serve_under_load,
)
from ddsim.errors import DdsimError
from ddsim.files.atomic import STDOUT

if TYPE_CHECKING:
    pass


@app.command(rich_help_panel=ANSWERS, epilog=example("ddsim demo", "ddsim demo --json | head"))
def demo(
    plot: Annotated[
        str, typer.Option("--plot", metavar="FILE", help="Where the figure goes (.png, .svg, .pdf; - writes a PNG).")
    ] = "ddsim-demo.png",
    json: JsonOption = False,
) -> None:
    """Plan and replay what comes with ddsim: HumanEval recorded with a small model, an 8B model's costs on an H100.

    The drafter knows the token before; the last line of the answer says what that gains over its marginals.
    """
    show = Out(json, [plot])
    _check_plot(plot)
    from ddsim.cost.model import fit_cost
    from ddsim.demo import demo_marginals, demo_profile, demo_trace
    from ddsim.replay.compare import compare as compare_drafts
    from ddsim.replay.plan import plan as solve
    from ddsim.replay.replay import default_policies, measured_budget
    from ddsim.replay.replay import replay as run
    from ddsim.replay.shown import replay_table

    trace, marginals = demo_trace(), demo_marginals()
    show.reads(*trace._folders, *marginals._folders)
    with _progress("Fitting the cost model"):
        cost = fit_cost(demo_profile())
    show.say(f"Recording: {_told(trace.meta['provenance'])}; {len(trace.sequences)} prompts, {len(trace):,} positions")
    show.say(f"Costs:     {_told(cost.provenance)}")
    with _progress("Replaying") as progress:
        answer = solve(trace, cost, progress=progress)
        result = run(trace, cost, default_policies(measured_budget(cost, trace.max_budget), cost))
        path = compare_drafts(marginals, trace, progress=progress)
    show.answer(
        answer.summary().sentence, answer.summary().lines
    )  # without its table, which holds no more than the next
    show.say()
    show.tables([replay_table(result.table(), "What each policy would have done")], result.summary().feet)
    show.say()
    show.say(f"Trees that know their path: {path.sentence[:1].lower()}{path.sentence[1:]}", style="bold")
    _plot(show, plot, lambda ax: answer.plot(ax=ax), 13)
    show.json({"plan": answer.to_json(), "replay": result.to_json(), "path": path.to_json(), "plot": plot})


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim plan traces/temperature-0/humaneval --profile h100.json",
        "ddsim plan traces/temperature-0/humaneval --profile mine.csv",
        "ddsim plan traces/temperature-0 --profile h100.json --plot plan.png",
        "ddsim plan traces/temperature-0 --profile vllm.json --engine vllm --plot k.png",
        "ddsim plan traces/temperature-0 --profile vllm.json --engine vllm --load --plot map.png",
    ),
)
def plan(
    trace: TraceArgument,
    profile: ProfileOption,
    policy: RuleOption = None,
    engine: EngineOption = None,
    load: MapOption = False,
    method: MethodOption = "dflash",
    against: AgainstOption = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch", "-b", callback=_within("batch"), help="Requests decoded together (repeatable; --engine, --load)."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(callback=_within("context"), help="Committed tokens that all requests have (--engine, --load)."),
    ] = None,
    extrapolate: ExtrapolateOption = False,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    calibrate: CalibrateOption = None,
    bootstrap: BootstrapOption = 2000,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """How big draft trees should be, in one sentence, and what that gains; for a serving engine, how long its drafts should be.

    With --load, a map: the best setting by requests, context and workload, and what it costs to be one step off.
    """
    show = Out(json, [plot])
    _one_of("--kind", kind, KINDS)
    _one_of("--calibrate", calibrate, CALIBRATIONS)
    _check_plot(plot)
    if load:
        if against is not None or calibrate is not None:
            raise DdsimError("plan: --load takes no --against or --calibrate")
        map_for(
            show, engine, trace, profile, kind, method, policy, batch, context, extrapolate, workload, temperature, seed, plot
        )  # fmt: skip
        return
    if engine is not None:
        if policy or calibrate is not None:
            raise DdsimError(
                "plan: --engine takes no --policy or --calibrate: engines verify chains as they are drafted"
            )
        plan_for(
            show, engine, trace, profile, kind, method, against, batch, context, extrapolate, workload, temperature,
            bootstrap, seed, plot,
        )  # fmt: skip
        return
    if against is not None or batch or context is not None or extrapolate or method != "dflash":
        raise DdsimError("plan: --method, --against, --batch, --context and --extrapolate are for --engine ENGINE")
    from ddsim.policy.parse import policies_of
    from ddsim.replay.plan import plan as solve

    policies = policies_of(policy) if policy else None
    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    _check_typed(policies, recording.horizon)
    calibration = _calibration(recording, calibrate, seed)
    with _progress("Replaying") as progress:
        answer = solve(
            recording, cost, policies, calibration=calibration, bootstrap=bootstrap, seed=seed, progress=progress
        )  # fmt: skip
    show.summary(answer.summary())
    if plot is not None:
        _plot(show, plot, lambda ax: answer.plot(ax=ax), 13)
    show.json(answer.to_json() | {"plot": plot})


def _told(provenance: dict[str, Any]) -> str:
    """What matters most of a provenance, on a line."""
    parts = [str(provenance[key]) for key in ("target", "drafter", "device") if provenance.get(key)]
    return ", ".join(parts) or "of unknown origin"


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim replay traces/temperature-0/humaneval --profile h100.json",
        "ddsim replay traces/temperature-0/humaneval -p mine.csv --policy DDTree:31",
        "ddsim replay traces/temperature-0 -p h100.json --policy AR --policy DDTree:95 --calibrate isotonic",
    ),
)
def replay(
    trace: TraceArgument,
    profile: ProfileOption,
    policy: PolicyOption = None,
    kind: KindOption = "auto",
    calibrate: CalibrateOption = None,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: BootstrapOption = 2000,
    seed: SeedOption = 0,
    out: Annotated[str | None, _out_option("Save the table (.csv, .parquet, .json, .jsonl)")] = None,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """What each policy would have done on a recording, exactly, by workload and pooled."""
    show = Out(json, [out, plot])
    _one_of("--kind", kind, KINDS)
    _one_of("--calibrate", calibrate, CALIBRATIONS)
    _check_plot(plot)
    from ddsim.policy.parse import policies_of
    from ddsim.replay.replay import replay as run
    from ddsim.view.export import export_table

    policies = None if policy is None else policies_of(policy)
    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    _check_typed(policies, recording.horizon)
    calibration = _calibration(recording, calibrate, seed)
    with _progress("Replaying") as progress:
        result = run(
            recording, cost, policies, calibration=calibration, bootstrap=bootstrap, seed=seed, progress=progress
        )  # fmt: skip
    show.summary(result.summary(by="workload"))
    if out is not None:
        table = result.table(by="workload") if len(recording.workloads) > 1 else result.table()
        _write(out, Path(out).suffix if out != STDOUT else ".csv", lambda path: export_table(table, path))
        show.saved(out)
    if plot is not None:
        _plot(show, plot, lambda ax: result.plot(ax=ax), len(result.outcomes))
    show.json(result.to_json() | {"out": out, "plot": plot})


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim report traces/temperature-0/humaneval --profile h100.json -o report.html",
        "ddsim report traces/temperature-0/humaneval --profile mine.csv -o report.html",
    ),
)
def report(
    trace: TraceArgument,
    profile: ProfileOption,
    out: Annotated[str, _out_option("The page")],
    policy: RuleOption = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside", metavar="TRACE", help="Another draft's recording of the same texts: both trees are drawn."
        ),
    ] = None,
    kind: KindOption = "auto",
    calibrate: CalibrateOption = None,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: BootstrapOption = 2000,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """The answer and its reasons as one HTML file that needs no network: recommendation, costs, policies, provenance."""
    show = Out(json, [out])
    _one_of("--kind", kind, KINDS)
    _one_of("--calibrate", calibrate, CALIBRATIONS)
    from ddsim.cost.model import read_costs
    from ddsim.policy.parse import policies_of
    from ddsim.view.report import report as write_report

    policies = policies_of(policy) if policy else None
    show.reads(profile.expanduser())
    recording, cost = _open(show, trace, workload, temperature), read_costs(profile.expanduser(), kind)
    _check_typed(policies, recording.horizon)
    other = None if beside is None else _open(show, [beside], workload, temperature)
    calibration = _calibration(recording, calibrate, seed)
    with _progress("Writing the report") as progress:
        _write(
            out, ".html",
            lambda path: write_report(
                recording, cost, path, policies=policies, beside=other, kind=kind, calibration=calibration, bootstrap=bootstrap,
                seed=seed, progress=progress,
            ),
        )  # fmt: skip
    show.saved(out)
    show.json({"out": out})


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim serve traces/temperature-0/humaneval --profile h100.json",
        "ddsim serve traces/temperature-0/humaneval --profile mine.csv",
        "ddsim serve traces/temperature-0 -p h100.json --batch 64 --policy LongRun --policy Uniform:LongRun",
        "ddsim serve traces/temperature-0 -p h100.json --load --rate 12 --ttft 0.5 --tpot 0.02",
        "ddsim serve traces/temperature-0 -p vllm.json --policy rules --plot rules.png",
    ),
)
def serve(
    trace: TraceArgument,
    profile: ProfileOption,
    batch: ServedBatchOption = None,
    policy: ServingPolicyOption = None,
    load: LoadOption = False,
    rate: RateOption = None,
    arrivals: ArrivalsOption = None,
    running: RunningOption = None,
    memory: MemoryOption = None,
    prefill: PrefillOption = None,
    chunk: ChunkOption = None,
    ttft: TtftOption = None,
    tpot: TpotOption = None,
    requests: RequestsOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(callback=_within("max_tokens"), help="Most tokens that one pass may verify.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Let the batch run empty at the end, as one call with all prompts does.")
    ] = False,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: SimulationsOption = 100,
    seed: SeedOption = 0,
    cluster: ClusterOption = None,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a server that decodes B requests together: throughput and time per token of each policy.

    With --load requests arrive on their own: latencies, goodput, and the highest load that each policy can serve.
    """
    show = Out(json, [plot])
    _one_of("--kind", kind, KINDS)
    _check_plot(plot)
    check_load(
        load,
        {
            "--rate": rate, "--arrivals": arrivals, "--running": running, "--memory": memory, "--prefill": prefill, "--chunk": chunk,
            "--ttft": ttft is not None, "--tpot": tpot is not None,
        },
        {"--batch": batch, "--max-tokens": max_tokens, "--drain": drain},
    )  # fmt: skip
    from ddsim.policy.names import EVERY
    from ddsim.policy.parse import policies_of
    from ddsim.replay.serving import simulate

    typed = policies_of([name for name in policy or () if name.lower() != EVERY], joint=True)  # said at once
    if load:
        serve_under_load(
            show, trace, profile, kind, policy or None, typed, rate, arrivals, running, memory, prefill, chunk, ttft, tpot, requests, workload,
            temperature, bootstrap, seed, cluster, plot,
        )  # fmt: skip
        return
    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    _check_typed(typed, recording.horizon)
    with _progress("Simulating") as progress:
        result = simulate(
            recording, cost, policy or None, batch=batch or None, requests=requests, max_tokens=max_tokens,
            drain=drain, bootstrap=bootstrap, seed=seed, cluster=cluster, progress=progress,
        )  # fmt: skip
    show.summary(result.summary())
    if plot is not None:
        _plot(show, plot, lambda ax: result.plot(ax=ax))
    show.json(result.to_json() | {"plot": plot})
