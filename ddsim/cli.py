"""The command line: ``ddsim demo``, ``plan``, ``replay`` and the others. Everything heavy is imported where it is used."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ddsim import __version__, console, interrupts, limits
from ddsim.console import Out
from ddsim.errors import DdsimError
from ddsim.files import STDOUT, write_stdout
from ddsim.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ddsim.calibration import CrossCalibration
    from ddsim.cost import CostModel
    from ddsim.replay import Plan
    from ddsim.trace import Trace

LONGEST_LINE = 2000  # characters of an error: names can be of any length
FAILED_TOLERANCE, BAD_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141
KINDS = ("auto", "steps", "roofline", "convex", "isotonic", "table")  # of ddsim.cost, which takes NumPy to import
PLOT_FORMATS = (".png", ".svg", ".pdf")
CALIBRATIONS = ("isotonic", "temperature")
POLICIES = (
    "AR",
    "DFlash",
    "DDTree:63",
    "CaDDTree",
    "CaDDTree:fill",
    "GreedySteps",
    "RoundRatio",
    "LongRun",
    "LongRun:online",
    "BestFixed",
    "Hindsight",
)
SERVING_POLICIES = (*POLICIES[:-1], "FairRatio", "Share:RoundRatio", "Uniform:RoundRatio")

ANSWERS, CURVES, REFERENCE = "Answers", "Costs, calibration, files", "With a model (reference extra)"

app = typer.Typer(
    name="ddsim",
    help="How big should a draft tree be? Replay, price and plan speculative decoding with draft trees.",
    epilog=(
        "Start with:\n\n[bold]ddsim demo[/]\n\n"
        "Exit codes: 0 done, 1 an answer failed a tolerance, 2 bad input, 3 a bug in ddsim."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def example(*lines: str) -> str:
    """Epilog of a command's help: lines to copy."""
    return "\n\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"[bold]{line}[/]" for line in lines)])


def _complete(*values: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [v for v in values if v.lower().startswith(incomplete.lower())]


def _within(what: str) -> Callable[..., Any]:
    """Callback of an option (or a repeatable one) that refuses numbers out of bounds before any work begins."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None:
                limits.check(what, one, param.opts[0])
        return value

    return check


def _finite(param: typer.CallbackParam, value: Any) -> Any:
    return value if value is None else limits.check_finite(value, param.opts[0])


TraceArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="TRACE", help="Trace folder, a folder of such folders, or a pattern; several make one trace."
    ),
]
ProfileOption = Annotated[
    Path, typer.Option("--profile", "-p", metavar="FILE", help="Latency profile, or a cost model that fit saved.")
]
KindOption = Annotated[
    str,
    typer.Option(
        "--kind", metavar="KIND", help=f"Shape of the cost model: {', '.join(KINDS)}.", autocompletion=_complete(*KINDS)
    ),
]
WorkloadOption = Annotated[
    list[str] | None, typer.Option("--workload", "-w", metavar="NAME", help="Only this workload (repeatable).")
]
TemperatureOption = Annotated[
    float | None, typer.Option(metavar="T", callback=_finite, help="Only this temperature of the recording.")
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help=f"{', '.join(POLICIES)} (repeatable). "
        "Default: all but CaDDTree:fill and GreedySteps, DDTree at 7, 15, 31 and so on to fill buckets.",
        autocompletion=_complete(*POLICIES),
    ),
]
ServingPolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help=f"{', '.join(SERVING_POLICIES)} (repeatable; Share and Uniform take CaDDTree, GreedySteps or LongRun too). "
        "Default: all but CaDDTree, GreedySteps and DDTree. AR is always there.",
        autocompletion=_complete(*SERVING_POLICIES),
    ),
]
CalibrateOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="KIND",
        help="Replay calibrated too, each prompt by a fit on others: isotonic or temperature.",
        autocompletion=_complete(*CALIBRATIONS),
    ),
]
SeedOption = Annotated[int, typer.Option(callback=_within("seed"), help="Seed of everything random.")]
BootstrapOption = Annotated[
    int, typer.Option(callback=_within("bootstrap"), help="Resamples behind the 95 % intervals.")
]
PlotOption = Annotated[
    str | None, typer.Option("--plot", metavar="FILE", help="Draw the answer (.png, .svg, .pdf; - writes a PNG).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def _out_option(what: str) -> Any:
    return typer.Option("--out", "-o", metavar="FILE", help=f"{what}; - for standard output.")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ddsim {__version__}")
        raise typer.Exit()


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Options of the program itself; ``main`` sees to ``--debug``."""


class _ByOption(TyperCommand):
    """A command whose model is an option; a model in its place is refused with a line that says so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        stray = self.make_parser(ctx).parse_args(list(args))[1]
        if stray:
            raise DdsimError(f"unexpected {stray[0]!r}: name the model with --target, as in --target {stray[0]}")
        return super().parse_args(ctx, args)


class _Failed(Exception):
    """An answer that failed a tolerance: printed in one line, exit code 1."""


# --- what commands share --------------------------------------------------------------------------------------------


def _open(
    show: Out, paths: Sequence[Path], workload: Sequence[str] | None = None, temperature: float | None = None
) -> Trace:
    """The trace, which no output may touch."""
    from ddsim.trace import open_trace

    trace = open_trace([os.path.expanduser(p) for p in paths])
    show.reads(*trace._folders)
    return trace if workload is None and temperature is None else trace.select(workload or None, temperature)


def _cost(show: Out, path: Path, kind: str) -> CostModel:
    from ddsim.cost import open_cost

    show.reads(path.expanduser())
    with console.progress("Fitting the cost model"):
        return open_cost(path.expanduser(), kind)


def _one_of(option: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise DdsimError(f'{option}: unknown value "{value}" (known: {", ".join(known)})')


def _write(name: str, suffix: str, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make the file ``name``; ``-`` is standard output."""
    if name == STDOUT:
        write_stdout(suffix, write)
    else:
        write(Path(name))


def _check_plot(name: str | None) -> None:
    """Refuse a figure of unknown format now, not after the work."""
    if name is not None and name != STDOUT and Path(name).suffix.lower() not in PLOT_FORMATS:
        raise DdsimError(f"--plot {name}: can't tell the format; end the name in {', '.join(PLOT_FORMATS)}")


def _plot(show: Out, name: str, draw: Callable[[Axes], Any], lines: int = 0) -> None:
    """Draw a figure and write it; ``lines`` of text need so much more height."""
    from ddsim.plot import SIZE, canvas, save_figure

    ax = canvas(height=max(SIZE[1], 0.9 + 0.27 * lines))
    draw(ax)
    _write(name, ".png", lambda path: save_figure(ax, path))
    show.saved(name)


def _reference(module: str) -> Any:
    """A module of the reference decoder, or one line that says how to install it."""
    from importlib import import_module

    if not console.on_terminal():
        os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' own progress bars
    try:
        return import_module(f"ddsim_reference.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ddsim_reference."):
            raise
        raise DdsimError(
            f"this command needs the reference decoder ({error.name} isn't installed): "
            "in a checkout of ddsim run pip install -c constraints.txt '.[reference]' ./reference"
        ) from None


# --- answers --------------------------------------------------------------------------------------------------------

REPLAY_COLUMNS: tuple[console.Column, ...] = (
    ("policy", "policy", str),
    ("acceptance_length", "tokens/\nround", console.number(2)),
    ("budget_mean", "nodes/\nround", console.number(1)),
    ("tokens_per_second", "tokens/s", console.number(1)),
    ("speedup", "speed-up", console.number(2)),
    ("speedup_interval", "95 %", str),
    ("hindsight_share", "share of\nhindsight", console.percent),
)
WORKLOAD_COLUMNS: tuple[console.Column, ...] = (
    ("workload", "workload", str),
    ("best_budget", "best budget,\nnodes", str),
    ("near_best", "within 1 %", str),
    ("tokens_per_second", "tokens/s", console.number(1)),
    ("pooled_budget_loss", "loss with the\npooled budget", console.percent),
)


@app.command(rich_help_panel=ANSWERS, epilog=example("ddsim demo", "ddsim demo --json | head"))
def demo(
    plot: Annotated[
        str, typer.Option("--plot", metavar="FILE", help="Where the figure goes (.png, .svg, .pdf; - writes a PNG).")
    ] = "ddsim-demo.png",
    json: JsonOption = False,
) -> None:
    """Plan and replay what comes with ddsim: HumanEval recorded with a small model, an 8B model's costs on an H100."""
    show = Out(json, [plot])
    _check_plot(plot)
    from ddsim.cost import fit_cost
    from ddsim.demo import demo_profile, demo_trace
    from ddsim.replay import default_policies, measured_budget
    from ddsim.replay import plan as solve
    from ddsim.replay import replay as run

    trace = demo_trace()
    show.reads(*trace._folders)
    with console.progress("Fitting the cost model"):
        cost = fit_cost(demo_profile())
    show.say(f"Recording: {_told(trace.meta['provenance'])}; {len(trace.sequences)} prompts, {len(trace):,} positions")
    show.say(f"Costs:     {_told(cost.provenance)}")
    with console.progress("Replaying") as progress:
        answer = solve(trace, cost, progress=progress)
        result = run(trace, cost, default_policies(measured_budget(cost, trace.max_budget), cost))
    _show_plan(show, answer, len(trace.workloads) > 1)
    _show_replay(show, result.table(), "What each policy would have done")
    _plot_plan(show, plot, answer)
    show.json({"plan": answer.to_json(), "replay": result.to_json(), "plot": plot})


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim plan traces/temperature-0/humaneval --profile h100.json",
        "ddsim plan 'traces/temperature-*' --profile h100.json --plot plan.png",
    ),
)
def plan(
    trace: TraceArgument,
    profile: ProfileOption,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    calibrate: CalibrateOption = None,
    bootstrap: BootstrapOption = 2000,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """How big draft trees should be, in one sentence, and what that gains."""
    show = Out(json, [plot])
    _one_of("--kind", kind, KINDS)
    _one_of("--calibrate", calibrate, CALIBRATIONS)
    _check_plot(plot)
    from ddsim.replay import plan as solve

    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    calibration = _calibration(recording, calibrate, seed)
    with console.progress("Replaying") as progress:
        answer = solve(
            recording, cost, calibration=calibration, bootstrap=bootstrap, seed=seed, progress=progress
        )  # fmt: skip
    _show_plan(show, answer, len(recording.workloads) > 1)
    _show_replay(show, answer.table(), None)
    if plot is not None:
        _plot_plan(show, plot, answer)
    show.json(answer.to_json() | {"plot": plot})


def _show_plan(show: Out, answer: Plan, several: bool) -> None:
    show.say()
    show.say(answer.sentence, style="bold")
    for line in answer.details:
        show.say(line)
    for note in answer.notes:
        show.say(f"Note: {note}")
    show.say()
    if several:
        table = answer.by_workload
        near = [", ".join(f"{a}–{b}" if b > a else f"{a}" for a, b in runs) for runs in table["near_best"]]
        show.table(table.assign(near_best=near), WORKLOAD_COLUMNS, "The best fixed budget of each workload")


def _plot_plan(show: Out, name: str, answer: Plan) -> None:
    from ddsim.plot import fixed_budgets

    plain = answer.table().set_index("policy")["tokens_per_second"].get("AR")
    _plot(show, name, lambda ax: fixed_budgets(answer.curve(), flat=answer.near_best, baseline=plain, ax=ax))


def _told(provenance: dict[str, Any]) -> str:
    """What matters most of a provenance, on a line."""
    parts = [str(provenance[key]) for key in ("target", "drafter", "device") if provenance.get(key)]
    return ", ".join(parts) or "of unknown origin"


def _calibration(trace: Trace, kind: str | None, seed: int) -> CrossCalibration | None:
    if kind is None:
        return None
    from ddsim.calibration import cross_calibrate

    with console.progress("Calibrating") as progress:
        return cross_calibrate(trace, kind, seed=seed, progress=progress)


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim replay traces/temperature-0/humaneval --profile h100.json",
        "ddsim replay 'traces/temperature-*' -p h100.json --policy AR --policy DDTree:95 --calibrate isotonic",
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
    from ddsim.export import export_table
    from ddsim.policy import parse_policy
    from ddsim.replay import replay as run

    policies = None if policy is None else [parse_policy(name) for name in policy]
    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    calibration = _calibration(recording, calibrate, seed)
    with console.progress("Replaying") as progress:
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
        from ddsim.plot import policies as policies_figure

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


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example("ddsim report traces/temperature-0/humaneval --profile h100.json -o report.html"),
)
def report(
    trace: TraceArgument,
    profile: ProfileOption,
    out: Annotated[str, _out_option("The page")],
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
    from ddsim.cost import read_costs
    from ddsim.report import report as write_report

    show.reads(profile.expanduser())
    recording, cost = _open(show, trace, workload, temperature), read_costs(profile.expanduser(), kind)
    calibration = _calibration(recording, calibrate, seed)
    with console.progress("Writing the report") as progress:
        _write(
            out, ".html",
            lambda path: write_report(
                recording, cost, path, kind=kind, calibration=calibration, bootstrap=bootstrap, seed=seed,
                progress=progress,
            ),
        )  # fmt: skip
    show.saved(out)
    show.json({"out": out})


SERVING_COLUMNS: tuple[console.Column, ...] = (
    ("policy", "policy", str),
    ("acceptance_length", "tokens/\nround", console.number(2)),
    ("budget_mean", "nodes/\nrequest", console.number(1)),
    ("tokens_per_second", "tokens/s", console.number(0)),
    ("tpot_mean", "TPOT\nms", console.milliseconds),
    ("tpot_p95", "p95\nms", console.milliseconds),
    ("speedup", "speed-up", console.number(2)),
    ("speedup_interval", "95 %", str),
)


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim serve traces/temperature-0/humaneval --profile h100.json",
        "ddsim serve 'traces/temperature-*' -p h100.json --batch 64 --policy LongRun --policy Uniform:LongRun",
    ),
)
def serve(
    trace: TraceArgument,
    profile: ProfileOption,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            "-b",
            callback=_within("batch"),
            help="Requests decoded together (repeatable; default: of 1, 8 and 32 those measured).",
        ),
    ] = None,
    policy: ServingPolicyOption = None,
    requests: Annotated[
        int | None, typer.Option(callback=_within("requests"), help="Requests to finish (default: each prompt once).")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(callback=_within("max_tokens"), help="Most tokens that one pass may verify.")
    ] = None,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: Annotated[
        int, typer.Option(callback=_within("simulations"), help="Repeated simulations behind the 95 % intervals.")
    ] = 100,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a server that decodes B requests together: throughput and time per token of each policy."""
    show = Out(json, [plot])
    _one_of("--kind", kind, KINDS)
    _check_plot(plot)
    from ddsim.policy import parse_policy
    from ddsim.serving import EXTRAPOLATED, simulate

    policies = [parse_policy(name, joint=True) for name in policy or ()]
    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    with console.progress("Simulating") as progress:
        result = simulate(
            recording, cost, policies or None, batch=batch or None, requests=requests, max_tokens=max_tokens,
            bootstrap=bootstrap, seed=seed, progress=progress,
        )  # fmt: skip
    table = result.table()
    marked = table.assign(policy=table["policy"].where(~table["extrapolated"], table["policy"] + " *"))
    for size, rows in marked.groupby("batch", sort=False):
        show.table(
            _with_interval(rows), SERVING_COLUMNS, "1 request at a time" if size == 1 else f"{size} requests together"
        )
    if table["extrapolated"].any():
        show.say(EXTRAPOLATED)
    if plot is not None:
        from ddsim.plot import serving

        _plot(show, plot, lambda ax: serving(table, ax=ax))
    show.json(result.to_json() | {"plot": plot})


# --- costs, calibration, files --------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=CURVES,
    epilog=example("ddsim fit h100.json -o cost.json --plot cost.png", "ddsim fit h100.json --kind convex --json"),
)
def fit(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="Latency profile (made by ddsim profile).")],
    out: Annotated[str | None, _out_option("Save the cost model")] = None,
    kind: KindOption = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(callback=_finite, help="Exit with 1 if the median held-out error is above this (0.05 is 5 %)."),
    ] = None,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Fit a cost model to a profile and say how well it predicts what it hasn't seen."""
    show = Out(json, [out, plot])
    _one_of("--kind", kind, KINDS)
    _check_plot(plot)
    import pandas as pd

    from ddsim.cost import fit_cost
    from ddsim.profiles import read_profile

    show.reads(profile.expanduser())
    measured = read_profile(profile.expanduser())
    with console.progress("Fitting the cost model"):
        cost = fit_cost(measured, kind, seed=seed)
    report = cost.report
    rows = [
        {
            "kind": name,
            "median": r.median,
            "worst": r.worst,
            "points": r.points,
            "picked": "*" if name == cost.kind else "",
        }
        for name, r in report.kinds.items()
        if r.points
    ]
    show.say(cost.explain())
    if rows:
        show.say()
        columns = (
            ("kind", "kind", str), ("median", "median error", console.percent), ("worst", "worst error", console.percent),
            ("points", "predictions", str), ("picked", "picked", str),
        )  # fmt: skip
        show.table(pd.DataFrame(rows), columns, "Errors on points left out of the fit")
    if out is not None:
        _write(out, ".json", cost.save)
        show.saved(out)
    if plot is not None:
        from ddsim.plot import cost_curve

        _plot(show, plot, lambda ax: cost_curve(cost, measured, ax=ax))
    show.json({"explanation": cost.explain(), "model": cost.to_json(), "out": out, "plot": plot})
    mine = report.kinds.get(cost.kind)
    if tolerance is not None and mine is not None and mine.points and mine.median > tolerance:
        raise _Failed(
            f"held-out error {console.percent(mine.median)} is above the tolerance {console.percent(tolerance)}"
        )


@app.command(
    rich_help_panel=CURVES, epilog=example("ddsim calibrate traces/temperature-0/humaneval -o calibration.json")
)
def calibrate(
    trace: TraceArgument,
    out: Annotated[str | None, _out_option("Save the calibration")] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="KIND", help="isotonic or temperature.", autocompletion=_complete(*CALIBRATIONS)
        ),
    ] = "isotonic",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Fit a calibration of the drafter's marginals on half of the prompts and judge it on the others."""
    show = Out(json, [out, plot])
    _one_of("--kind", kind, CALIBRATIONS)
    _check_plot(plot)
    from ddsim.calibration import fit_calibration, reliability

    recording = _open(show, trace, workload, temperature)
    with console.progress("Calibrating") as progress:
        calibration, report = fit_calibration(recording, kind, seed=seed, progress=progress)
    length = console.number(2)
    columns = (
        ("budget", "nodes", str), ("realised", "realised", length), ("predicted_before", "predicted", length),
        ("predicted_after", "calibrated", length), ("count", "positions", str),
    )  # fmt: skip
    show.table(report, columns, "Acceptance length on the held-out prompts (tokens a round, root included)")
    if out is not None:
        _write(out, ".json", calibration.save)
        show.saved(out)
    if plot is not None:
        from ddsim.plot import reliability_by_probability

        with console.progress("Measuring reliability, as recorded") as progress:
            before = reliability(recording, progress=progress)
        with console.progress("Measuring reliability, calibrated") as progress:
            after = reliability(recording, calibration, progress=progress)
        _plot(show, plot, lambda ax: reliability_by_probability(before, after, ax=ax))
    show.json({"kind": kind, "held_out": report, "provenance": calibration.provenance, "out": out, "plot": plot})


EXPORTS = ("sequences", "candidates", "budgets")


@app.command(
    rich_help_panel=CURVES,
    epilog=example(
        "ddsim export traces/temperature-0/humaneval -o sequences.csv",
        "ddsim export traces/temperature-0/humaneval --what candidates --limit 1000 -o - | head",
        "ddsim export 'traces/temperature-*' --what budgets --profile h100.json -o budgets.json",
    ),
)
def export(
    trace: TraceArgument,
    out: Annotated[str, _out_option("File that ends in .csv, .parquet, .json or .jsonl")],
    what: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="sequences: a row each. candidates: a row for each at every position and depth. "
            "budgets: the best tree width by context and batch, JSON for a serving engine.",
            autocompletion=_complete(*EXPORTS),
        ),
    ] = "sequences",
    file_format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="csv, parquet, json or jsonl; for -o - (csv).")
    ] = None,
    limit: Annotated[int | None, typer.Option(callback=_within("rows"), help="At most so many rows.")] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", "-p", metavar="FILE", help="Profile or cost model, for budgets.")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            "-b",
            callback=_within("batch"),
            help="Batch size, for budgets (repeatable; default: 1 to 64 as far as measured).",
        ),
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context",
            callback=_within("context"),
            help="Context, for budgets (repeatable; default: 256 to 8,192 as far as measured).",
        ),
    ] = None,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    json: JsonOption = False,
) -> None:
    """Write a trace as a table, or the best budgets as a lookup table, for other tools."""
    show = Out(json, [out])
    _one_of("--what", what, EXPORTS)
    _one_of("--format", file_format, ("csv", "parquet", "json", "jsonl"))
    if (what == "budgets") != (profile is not None):
        raise DdsimError("export: budgets need --profile FILE, and nothing else takes it")
    suffix = Path(out).suffix if out != STDOUT else ".json" if what == "budgets" else f".{file_format or 'csv'}"
    if file_format is not None and suffix != f".{file_format}":
        raise DdsimError(f"-o {out}: its ending and --format {file_format} disagree; drop one of them")
    known = {"candidates": (".csv", ".parquet"), "budgets": (".json",)}.get(what)
    if known is not None and suffix not in known:
        raise DdsimError(f"-o {out}: {what} are written as {' or '.join(known)}")
    from ddsim.export import export_budgets, export_candidates, export_table, sequence_table

    recording = _open(show, trace, workload, temperature)
    if what == "sequences":
        table = sequence_table(recording).head(limit) if limit else sequence_table(recording)
        _write(out, suffix, lambda path: export_table(table, path))
    elif what == "candidates":
        with console.progress("Writing candidates"):
            _write(out, suffix, lambda path: export_candidates(recording, path, limit=limit))
    elif profile is not None:
        from ddsim.serving import best_widths

        cost = _cost(show, profile, "auto")
        given: dict[str, Any] = {k: sorted(set(v)) for k, v in (("batch", batch), ("contexts", context)) if v}
        with console.progress("Solving"):
            table = best_widths(recording, cost, **given).pivot(index="context", columns="batch")
        widths, marks = table["width"], table["extrapolated"].to_numpy(bool)
        source = {
            "trace": recording.fingerprint,
            "cost": cost.provenance,
            "cost_kind": cost.kind,
            "acceptance": "what the recording accepted, not the drafter's probabilities",
            "tuned_on": "same prompts",
        }
        grid = widths.index.to_numpy(int), widths.columns.to_numpy(int), widths.to_numpy(int)
        _write(out, suffix, lambda path: export_budgets(path, *grid, extrapolated=marks, provenance=source))
        spans = [
            f"{name} {values[0]:,}–{values[-1]:,}" for name, values in (("contexts", grid[0]), ("batches", grid[1]))
        ]
        show.say(f"Budgets for {' and '.join(spans)}; costs measured at {cost.range}.")
        show.say("They are best for what this recording accepted, whatever the drafter's probabilities say.")
        if marks.any():
            show.say(f"Of {marks.size} budgets {marks.sum()} rest on extrapolated costs (marked in the file).")
    show.saved(out)
    show.json({"out": out, "what": what, "sequences": len(recording.sequences), "positions": len(recording)})


BENCH_COLUMNS: tuple[console.Column, ...] = (
    ("figure", "figure", str),
    ("measured", "measured", str),
    ("target", "target", str),
    ("meets", "met", lambda met: "" if met is None else "yes" if met else "NO"),
)


@app.command(rich_help_panel=CURVES, epilog=example("ddsim bench --quick", "ddsim bench --json > bench.json"))
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the positions, fewer repeats.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a target is missed.")] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Measure how fast this ddsim is on this machine, each figure beside its target."""
    show = Out(json)
    from ddsim.bench import run_bench

    with console.working("Measuring") as say:
        result = run_bench(quick=quick, seed=seed, progress=say)
    show.table(result.table(), BENCH_COLUMNS)
    show.say(", ".join(f"{key} {value}" for key, value in result.machine.items()))
    show.json(result.to_json())
    missed = [f.name for f in result.figures if f.meets is False]
    if check and missed:
        raise _Failed(f"targets missed: {', '.join(missed)}")


# --- with a model ---------------------------------------------------------------------------------------------------

TargetOption = Annotated[
    str, typer.Option(metavar="MODEL", help="Checkpoint folder, hub name, .gguf file, or smollm2-135m.")
]
DrafterOption = Annotated[str, typer.Option(metavar="DRAFTER", help="DFlash drafter: checkpoint folder or hub name.")]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="humaneval, chat, mathematics, summarising, all, or a JSONL file (repeatable).",
        autocompletion=_complete("humaneval", "chat", "mathematics", "summarising", "all"),
    ),
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")]
DTYPES = ("float32", "bfloat16")
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="float32 or bfloat16.", autocompletion=_complete(*DTYPES))
]
OptionalDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="float32 or bfloat16 (default: bfloat16 on a GPU, float32 elsewhere).",
        autocompletion=_complete(*DTYPES),
    ),
]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", min=2, help="Longest answer, in tokens.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each workload.")]
WIDTHS = ("qwen3-4b", "qwen3-8b")
WidenOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE",
        help="Run the target at the cost of a larger one: qwen3-4b or qwen3-8b.",
        autocompletion=_complete(*WIDTHS),
    ),
]


@app.command(
    cls=_ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim record --target smollm2-135m --drafter reference/drafter --prompts humaneval -o traces/mine",
    ),
)
def record(
    target: TargetOption,
    drafter: DrafterOption,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the trace.")],
    prompts: PromptsOption = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 for greedy answers, otherwise samples.")] = 0.0,
    max_new_tokens: TokensOption = 128,
    max_budget: Annotated[int, typer.Option(min=1, help="Largest budget that the trace answers exactly.")] = 512,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    limit: LimitOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers written side by side.")] = 32,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Record a dense trace: the target's answers and the drafter's marginals at every position.

    A run that was stopped continues where it was when it is started again with the same options.
    """
    show = Out(json, folders=[out])
    _one_of("--dtype", dtype, DTYPES)
    if not prompts:
        raise DdsimError("record: say what to record with --prompts NAME (a workload, all, or a JSONL file)")
    show.reads(target, drafter, *filter(os.path.isfile, prompts))
    module = _reference("record")
    with console.progress("Recording") as progress:
        path = module.record(
            target=target, drafter=drafter, prompts=prompts, out=out, temperature=temperature,
            max_new_tokens=max_new_tokens, max_budget=max_budget, device=device, dtype=dtype, seed=seed, limit=limit,
            batch=batch, progress=progress,
        )  # fmt: skip
    trace = _open(Out(), [path])
    told = f"{path}: {len(trace.sequences)} sequences, {len(trace):,} positions, exact to budget {trace.max_budget}"
    show.say(told, wrap=False)
    show.json(
        {
            "out": path, "sequences": len(trace.sequences), "positions": len(trace), "workloads": trace.workloads,
            "horizon": trace.horizon, "max_budget": trace.max_budget, "fingerprint": trace.fingerprint,
        }
    )  # fmt: skip


@app.command(
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim decode 'Write a haiku about trees.' --target smollm2-135m --drafter reference/drafter --policy DDTree:31",
        "ddsim decode --prompts humaneval --limit 2 --target smollm2-135m --drafter reference/drafter "
        "--policy LongRun --profile h100.json",
    ),
)
def decode(
    target: TargetOption,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Messages to answer.")] = None,
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="DFlash drafter; not needed by --policy AR.")
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help=f"{', '.join(POLICIES[:-2])}.", autocompletion=_complete(*POLICIES))
    ] = "DDTree:63",
    prompts: PromptsOption = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", metavar="FILE", help="Profile or cost model, for policies that weigh costs."),
    ] = None,
    calibration: Annotated[str | None, typer.Option(metavar="FILE", help="Saved by ddsim calibrate.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 for greedy answers, otherwise samples.")] = 0.0,
    max_new_tokens: TokensOption = 128,
    device: DeviceOption = "cpu",
    dtype: OptionalDtypeOption = None,
    limit: LimitOption = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Requests decoded together.")] = 1,
    mark: Annotated[
        bool, typer.Option(help="Mark what the drafter proposed: green, or [in brackets] without colours.")
    ] = True,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Answer prompts with the reference decoder; the text streams, drafted tokens that were accepted are marked."""
    show = Out(json)
    _one_of("--dtype", dtype, DTYPES)
    from ddsim.policy import BestFixed, Hindsight, parse_policy

    rule = parse_policy(policy, joint=batch > 1)
    if isinstance(rule, (BestFixed, Hindsight)):
        raise DdsimError(f"--policy {rule.name}: is known after a text only, so it works in replay, not in decoding")
    pieces = _reference("decode").decode_prompts(
        target=target, drafter=drafter, prompts=prompts or (), text=text or (), policy=rule, profile=profile,
        calibration=calibration, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, device=device,
        dtype=dtype, limit=limit, batch=batch,
    )  # fmt: skip
    texts: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    answers: list[dict[str, Any]] = []
    for piece in pieces:
        key = piece.prompt.workload, piece.prompt.id
        held = texts.setdefault(key, [])
        if batch == 1 and not held:
            _show_prompt(show, piece.prompt.id, first=not answers)
        held += piece.parts
        if batch == 1:
            show.stream(piece.parts, mark)
        if piece.answer is None:
            continue
        done = piece.answer
        if batch > 1:
            _show_prompt(show, piece.prompt.id, first=not answers)
            show.stream(held, mark)
        seconds, rounds = done.seconds.get("decode", 0.0), len(done.rounds)
        rate = f", {(len(done.tokens) - 1) / seconds:,.1f} tokens/s" if seconds > 0 else ""
        length = f", {(len(done.tokens) - 1) / rounds:.2f} tokens a round" if rounds else ""
        show.say()
        show.say(f"{len(done.tokens)} tokens in {rounds} rounds{length}{rate}", style="dim")
        answers.append(
            {
                "workload": key[0], "prompt_id": key[1], "text": "".join(t for t, _ in held), "tokens": done.tokens,
                "rounds": [dataclasses.asdict(r) for r in done.rounds], "seconds": done.seconds,
            }
        )  # fmt: skip
    show.json({"policy": policy, "temperature": temperature, "answers": answers})


def _show_prompt(show: Out, name: str, first: bool) -> None:
    if not first:
        show.say()
    show.say(name, style="bold", wrap=False)


@app.command(
    cls=_ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim profile --target smollm2-135m --drafter reference/drafter -o mine.json",
        "ddsim profile --target qwen3-8b --random-weights -b 1 -b 8 -o 8b.json",
    ),
)
def profile(
    target: TargetOption,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The profile (JSON).")],
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="DFlash drafter: checkpoint folder or hub name.")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="The target is a shape: smollm2-135m, qwen3-4b, qwen3-8b; needs no files."
        ),
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the largest pass, all requests together.")] = 1024,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Committed tokens (repeatable; default: 256 to 8,192).")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", "-b", min=1, help="Requests side by side (repeatable; default: 1).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Sweeps over all points.")] = 8,
    device: DeviceOption = "cuda",
    dtype: DtypeOption = "bfloat16",
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what verification and drafting cost on this device. A run that was stopped continues."""
    show = Out(json, [out, plot])
    if out == STDOUT:
        raise DdsimError("profile --out -: name a file; an interrupted run goes on there")
    _one_of("--dtype", dtype, DTYPES)
    _check_plot(plot)
    show.reads(target, drafter)
    given = {"contexts": context} if context else {}
    module = _reference("profiler")
    with console.progress("Measuring") as progress:
        path = module.measure_profile(
            target=target, drafter=drafter, random_weights=random_weights, out=out, max_tokens=max_tokens,
            batches=batch or (1,), repeats=repeats, device=device, dtype=dtype, seed=seed, progress=progress, **given,
        )  # fmt: skip
    show.saved(path)
    if plot is not None:
        from ddsim.cost import fit_cost
        from ddsim.plot import cost_curve
        from ddsim.profiles import read_profile

        measured = read_profile(path)
        with console.progress("Fitting the cost model"):
            cost = fit_cost(measured, seed=seed)
        _plot(show, plot, lambda ax: cost_curve(cost, measured, batch=min(batch or (1,)), ax=ax))
    show.json({"out": path, "plot": plot})


VALIDATION = "ddsim-validation", 1  # kind and newest schema of ddsim_reference.validate, which takes torch to import
VALIDATION_COLUMNS: tuple[console.Column, ...] = (
    ("policy", "policy", str),
    ("tau_predicted", "tau\npred.", console.number(2)),
    ("tau_measured", "tau\nmeas.", console.number(2)),
    ("ms", "ms a\nround", console.number(2)),
    ("speed_predicted", "tokens/s\npredicted", console.number(1)),
    ("speed_measured", "tokens/s\nmeasured", console.number(1)),
    ("error", "error", lambda value: f"{100 * value:+.1f} %"),
    ("speedup", "speed-up\nmeasured", console.number(2)),
)


@app.command(
    cls=_ByOption,
    rich_help_panel=REFERENCE,
    epilog=example(
        "ddsim validate --target smollm2-135m --drafter reference/drafter --widen qwen3-8b -o check.json",
        "ddsim validate --show traces/validation/qwen3-8b-cost-h100.json",
    ),
)
def validate(
    target: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Checkpoint folder, hub name, .gguf file, or smollm2-135m.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="DFlash drafter: checkpoint folder or hub name.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="The comparison (JSON).")] = None,
    saved: Annotated[
        Path | None, typer.Option("--show", metavar="FILE", help="Print a saved comparison; needs no model.")
    ] = None,
    widen: WidenOption = None,
    prompts: PromptsOption = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help=f"{', '.join(POLICIES[:-1])} (repeatable); AR must be among them.",
            autocompletion=_complete(*POLICIES[:-1]),
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many prompts of each workload.")] = 4,
    max_new_tokens: TokensOption = 96,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Committed tokens to profile (repeatable; default: 128 to 1,024).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Sweeps of the profile.")] = 5,
    max_budget: Annotated[int, typer.Option(min=1, help="Largest budget.")] = 512,
    eager_budget: Annotated[
        int | None, typer.Option(min=1, help="Also run the published kind of loop with trees of so many nodes.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 if tokens/s are further off than this (0.05 is 5 %).")
    ] = None,
    device: DeviceOption = "cuda",
    dtype: DtypeOption = "bfloat16",
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Decode for real what replay predicts, and compare throughput and accepted lengths."""
    show = Out(json, [out, plot])
    _check_plot(plot)
    show.reads(target, drafter, *filter(os.path.isfile, prompts or ()))
    if saved is not None:
        show.reads(saved.expanduser())
        from ddsim.jsonfile import read_document

        if target is not None or drafter is not None or out is not None:
            raise DdsimError("validate --show: prints what was measured; leave out --target, --drafter and --out")
        result = read_document(saved.expanduser(), dict([VALIDATION]))
    else:
        if target is None or drafter is None or out is None or out == STDOUT:
            raise DdsimError("validate: needs --target, --drafter and -o FILE (or --show FILE alone)")
        _one_of("--dtype", dtype, DTYPES)
        _one_of("--widen", widen, WIDTHS)
        given: dict[str, Any] = {k: v for k, v in (("policies", policy), ("contexts", context)) if v}
        module = _reference("validate")
        with console.working("Validating") as say:
            result = module.validate(
                target=target, drafter=drafter, out=out, widen=widen, prompts=prompts or ("all",), limit=limit,
                max_new_tokens=max_new_tokens, repeats=repeats, largest=max_budget, eager_budget=eager_budget,
                tolerance=tolerance, device=device, dtype=dtype, seed=seed, progress=say, **given,
            )  # fmt: skip
    try:
        worst = _show_validation(show, result, plot)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if saved is None:
            raise
        raise DdsimError(f"{saved}: something is missing or damaged ({error}); run ddsim validate again") from None
    if out is not None:
        show.saved(out)
    show.json(result | {"plot": plot})
    held = tolerance if tolerance is not None else result.get("tolerance")
    if held is not None and worst > held:
        raise _Failed(f"tokens/s are up to {100 * worst:.1f} % off, above the tolerance of {100 * held:g} %")


def _show_validation(show: Out, document: dict[str, Any], plot: str | None) -> float:
    """Print and draw predicted beside measured; the largest error of tokens a second."""
    import pandas as pd

    table = pd.DataFrame(
        {
            "workload": row["workload"],
            "policy": row["policy"],
            "group": row["policy"],
            "tau_predicted": row["predicted"]["acceptance_length"],
            "tau_measured": row["measured"]["acceptance_length"],
            "ms": row["measured"]["ms_per_round"],
            "speed_predicted": row["predicted"]["tokens_per_second"],
            "speed_measured": row["measured"]["tokens_per_second"],
            "error": row["tokens_per_second_error"],
            "speedup": row["measured"]["speedup"],
        }
        for row in document["rows"]
    )
    pooled, parts = table[table["workload"] == "all"], table[table["workload"] != "all"]
    show.table(pooled, VALIDATION_COLUMNS, f"{document['label']}, {document['provenance']['device']}")
    if len(parts):
        far = max(parts.to_dict("records"), key=lambda row: abs(row["error"]))
        show.say(f"By workload the worst error is {100 * far['error']:+.1f} % ({far['policy']}, {far['workload']}).")
    found = [counts for name, counts in document["agreement"].items() if name != "AR"]
    answers, texts, rounds = (sum(c[k] for c in found) for k in ("answers", "same_text", "of_these_same_rounds"))
    show.say(
        f"Of {answers} answers with a draft, {texts} have the autoregressive text; of these {rounds} have the replayed rounds."
    )
    if plot is not None:
        from ddsim.plot import predicted_measured

        points = table.rename(columns={"speed_predicted": "predicted", "speed_measured": "measured"})
        _plot(show, plot, lambda ax: predicted_measured(points, ax=ax))
    return float(table["error"].abs().max())


@app.command(
    "train-drafter",
    cls=_ByOption,
    rich_help_panel=REFERENCE,
    epilog=example("ddsim train-drafter --target smollm2-135m --mask-token 16 -o drafter --work drafter-work"),
)
def train_drafter(
    target: TargetOption,
    mask_token: Annotated[int, typer.Option(min=0, help="An unused special token of the target.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the drafter.")],
    work: Annotated[str, typer.Option(metavar="FOLDER", help="Keeps text and state; a further run continues there.")],
    data_seconds: Annotated[float, typer.Option(min=0, help="Time for writing text.")] = 170.0,
    train_seconds: Annotated[float, typer.Option(min=0, help="Time for training.")] = 680.0,
    stop_after: Annotated[float | None, typer.Option(min=0, help="Stop after so many seconds; continue later.")] = None,
    start: Annotated[
        str | None, typer.Option(metavar="DRAFTER", help="Go on from this drafter, not from the target's layers.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Largest learning rate of matrices.")] = 3e-3,
    block_size: Annotated[int, typer.Option(min=2, help="Horizon + 1.")] = 16,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the drafter.")] = 5,
    device: DeviceOption = "cuda",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a DFlash drafter for a target on text that the target writes itself (needs a GPU)."""
    show = Out(json, folders=[out, work])
    show.reads(target, start)
    module = _reference("training")
    path = module.train_drafter(
        target=target, out=out, work=work, data_seconds=data_seconds, train_seconds=train_seconds, stop_after=stop_after,
        start=start, rate=rate, mask_token_id=mask_token, block_size=block_size, layers=layers, device=device, seed=seed,
        progress=lambda line: print(printable(line), file=sys.stderr),
    )  # fmt: skip
    if _reference("ranks").Ranks().rank > 0:
        return  # under torchrun the first process speaks for all
    show.say(f"Stopped; run it again to continue (state in {work})" if path is None else f"Wrote {path}", wrap=False)
    show.json({"out": path, "work": work, "finished": path is not None})


# --- entry point ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 an answer failed a tolerance, 2 bad input, 3 a bug, 130 interrupted, 141 output closed.

    Examples
    --------
    >>> main(["--version"])
    ddsim 0.1.0
    0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters must not end a run
    try:
        with console.one_line_warnings(), console.sane_width():
            code = app([w for w in words if w != "--debug"], prog_name="ddsim", standalone_mode=False)
            sys.stdout.flush()
    except BaseException as error:
        if debug and not isinstance(error, (BrokenPipeError, SystemExit)):
            import traceback

            print(printable(traceback.format_exc(), keep="\n"), end="", file=sys.stderr)
        code = _exit_code(error)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return code
    if code == INTERRUPTED:  # Typer's answer to Ctrl-C
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _discard_output() -> None:
    """What standard output can't take is dropped; Python would try again when it exits, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: BaseException) -> int:
    """Say in one line what went wrong; the exit code that goes with it."""
    # Typer and Rich turn a broken pipe into sys.exit(1).
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
        _discard_output()
        return BROKEN_PIPE
    if isinstance(error, (KeyboardInterrupt, typer.Abort)) or interrupts.seen():
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, _Failed):
        return _fail(str(error), FAILED_TOLERANCE, "failed")
    if isinstance(error, DdsimError):
        return _fail(str(error), BAD_INPUT)
    if hasattr(error, "format_message"):  # a usage error of Typer or Click, whichever of them raised it
        context = getattr(error, "ctx", None)
        message = error.format_message().rstrip(".")
        if not message:  # help was printed in place of a command
            return BAD_INPUT
        where = context.command_path if context is not None else "ddsim"
        return _fail(f"{message}; see {where} --help", BAD_INPUT)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{name}{error.strerror or error}", BAD_INPUT)
    if isinstance(error, MemoryError):
        return _fail("not enough memory; choose fewer workloads or smaller budgets", BAD_INPUT)
    return _fail(f"a bug in ddsim: {type(error).__name__}: {error}; --debug shows where", BUG)


def _fail(message: str, code: int, word: str = "error") -> int:
    text = printable(" ".join(message.split()), LONGEST_LINE)
    with contextlib.suppress(OSError):  # nobody reads standard error
        print(f"{word}: {text}", file=sys.stderr)
    return code
