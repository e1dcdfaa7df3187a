"""Commands that answer: demo, plan, replay, report, compare, serve."""

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
from ddsim.cli.console import Column, Out, milliseconds, number, percent
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
from ddsim.text import printable

if TYPE_CHECKING:
    from ddsim.replay.plan import Plan

REPLAY_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("acceptance_length", "tokens/\nround", number(2)),
    ("budget_mean", "nodes/\nround", number(1)),
    ("tokens_per_second", "tokens/s", number(1)),
    ("speedup", "speed-up", number(2)),
    ("speedup_interval", "95 %", str),
    ("hindsight_share", "share of\nhindsight", percent),
)


WORKLOAD_COLUMNS: tuple[Column, ...] = (
    ("workload", "workload", str),
    ("best_budget", "best budget,\nnodes", str),
    ("near_best", "within 1 %", str),
    ("tokens_per_second", "tokens/s", number(1)),
    ("pooled_budget_loss", "loss with the\npooled budget", percent),
)


SHOWN = (16, 64, 256)
"""Nodes that drafts are compared at, unless others are asked for."""


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
    _show_plan(show, answer, len(trace.workloads) > 1)
    _show_replay(show, result.table(), "What each policy would have done")
    show.say(f"Trees that know their path: {path.sentence[:1].lower()}{path.sentence[1:]}", style="bold")
    _plot_plan(show, plot, answer)
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
    _show_plan(show, answer, len(recording.workloads) > 1)
    _show_replay(show, answer.table(), None)
    if plot is not None:
        _plot_plan(show, plot, answer)
    show.json(answer.to_json() | {"plot": plot})


def _show_plan(show: Out, answer: Plan, several: bool) -> None:
    show.answer(answer.sentence, answer.details, answer.notes)
    show.say()
    if several:
        table = answer.by_workload
        near = [", ".join(f"{a}–{b}" if b > a else f"{a}" for a, b in runs) for runs in table["near_best"]]
        show.table(table.assign(near_best=near), WORKLOAD_COLUMNS, "The best fixed budget of each workload")


def _plot_plan(show: Out, name: str, answer: Plan) -> None:
    from ddsim.view.budgets import fixed_budgets

    plain = answer.table().set_index("policy")["tokens_per_second"][answer.baselines[0]]
    _plot(show, name, lambda ax: fixed_budgets(answer.curve(), flat=answer.near_best, baseline=plain, ax=ax))


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
    if len(recording.workloads) > 1:
        for name, rows in result.table(by="workload").groupby("workload", sort=False):
            _show_replay(show, rows, str(name))
        _show_replay(show, result.table(), "all workloads")
    else:
        _show_replay(show, result.table(), ", ".join(w for w in recording.workloads if w) or None)
    if out is not None:
        table = result.table(by="workload") if len(recording.workloads) > 1 else result.table()
        _write(out, Path(out).suffix if out != STDOUT else ".csv", lambda path: export_table(table, path))
        show.saved(out)
    if plot is not None:
        from ddsim.view.budgets import policies as policies_figure

        pooled = result.table()
        _plot(show, plot, lambda ax: policies_figure(pooled, ax=ax), len(pooled))
    show.json(result.to_json() | {"out": out, "plot": plot})


def _show_replay(show: Out, table: Any, title: str | None) -> None:
    tuned = table["tuned_on"] == "same prompts"
    marked = table.assign(policy=table["policy"].where(~tuned, table["policy"] + " *"))
    show.table(_with_interval(marked), REPLAY_COLUMNS, title)
    if tuned.any():
        show.say("* tuned on the prompts that it is judged on: on others it does a little worse")
        show.say()


def _with_interval(table: Any) -> Any:
    """The table with a column that holds both bounds of the speed-up; empty where there is nothing to be unsure of."""
    pairs = zip(table["speedup_low"], table["speedup_high"], strict=True)
    return table.assign(speedup_interval=[f"{low:.2f}–{high:.2f}" if low < high else "" for low, high in pairs])


def _over_fixed(table: Any) -> Any:
    """The table with what each gains over the best fixed setting, in per cent, and half the width of its interval."""
    half = 50 * (table["over_fixed_high"] - table["over_fixed_low"])
    pairs = zip(100 * table["over_fixed"], half, strict=True)
    return table.assign(over=[f"{over:+.1f}" + (f" ±{unsure:.1f}" if unsure > 0 else "") for over, unsure in pairs])


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
        "ddsim compare traces/marginals traces/temperature-0", "ddsim compare old new --budget 32 --plot gain.png"
    ),
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Trace folder, or a folder of such folders.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another draft's recording of the same texts.")],
    budget: Annotated[
        list[int] | None, typer.Option("--budget", min=1, help="Nodes to show (repeatable). [default: 16, 64, 256]")
    ] = None,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: BootstrapOption = 2000,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """What one draft gains over another on the same texts: tokens a round, node for node."""
    show = Out(json, [plot])
    _check_plot(plot)
    from ddsim.replay.compare import BUDGETS
    from ddsim.replay.compare import compare as run

    a, b = (_open(show, [path], workload, temperature) for path in (first, second))
    names = None if a.kind != b.kind else (str(first), str(second))
    with _progress("Replaying both") as progress:
        answer = run(
            a, b, names=names, budgets=sorted({*BUDGETS, *(budget or ())}), bootstrap=bootstrap, seed=seed, progress=progress
        )  # fmt: skip
    show.say(answer.sentence)
    length = number(2)
    columns = (
        ("workload", "workload", str), ("policy", "policy", str), ("first", printable(answer.names[0], 16), length),
        ("second", printable(answer.names[1], 16), length), ("gain", "gain", percent), ("low", "from", percent),
        ("high", "to", percent),
    )  # fmt: skip
    show.table(answer.table(budget or SHOWN), columns, "Tokens a round (95 % interval of the gain)")
    for note in answer.notes:
        show.say(note)
    if plot is not None:
        from ddsim.view.budgets import draft_gains

        _plot(show, plot, lambda ax: draft_gains(answer.table(), answer.names, ax=ax))
    show.json(answer.to_json() | {"plot": plot})


SERVING_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("acceptance_length", "tokens/\nround", number(2)),
    ("budget_mean", "nodes/\nrequest", number(1)),
    ("tokens_per_second", "tokens/s", number(0)),
    ("tpot_mean", "TPOT\nms", milliseconds),
    ("tpot_p95", "p95\nms", milliseconds),
    ("speedup", "speed-up", number(2)),
    ("over", "over best\nfixed, %", str),
)


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
    from ddsim.replay.served import EXTRAPOLATED
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
    table = result.table()
    marked = table.assign(policy=table["policy"].where(~table["extrapolated"], table["policy"] + " *"))
    for size, rows in marked.groupby("batch", sort=False):
        show.table(
            _over_fixed(rows), SERVING_COLUMNS, "1 request at a time" if size == 1 else f"{size} requests together"
        )
    if table["extrapolated"].any():
        show.say(EXTRAPOLATED)
    if plot is not None:
        from ddsim.view.costs import serving

        _plot(show, plot, lambda ax: serving(table, ax=ax))
    show.json(result.to_json() | {"plot": plot})
