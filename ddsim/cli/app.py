"""What commands share: options, opening of files, figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim import __version__, limits
from ddsim.cli.console import Out, progress
from ddsim.cli.console import progress as _progress
from ddsim.cost import kinds
from ddsim.errors import DdsimError
from ddsim.files.atomic import STDOUT, write_stdout
from ddsim.policy import names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ddsim.cost.model import CostModel
    from ddsim.policy.contract import Policy
    from ddsim.trace.calibration import CrossCalibration
    from ddsim.trace.trace import Trace

FAILED_TOLERANCE, BAD_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141


KINDS = ("auto", *kinds.KINDS)


CSV = "a CSV of tokens,seconds (also context, batch, draft_seconds)"
"""The table of costs that anybody can type."""


PLOT_FORMATS = (".png", ".svg", ".pdf")


CALIBRATIONS = ("isotonic", "temperature", "path")


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
    Path,
    typer.Option(
        "--profile", "-p", metavar="FILE", help=f"Costs: a latency profile, a cost model that fit saved, or {CSV}."
    ),
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
        help=f"{', '.join((*names.RUN, *names.TRACE, *names.ENGINE, *names.HINDSIGHT))}, or your own: {names.OWN} (repeatable). "
        "Default: all but CaDDTree:fill, GreedySteps and engines' rules, DDTree at 7, 15, 31 and so on to fill buckets.",
        autocompletion=_complete(*names.RUN, *names.TRACE, *names.ENGINE, *names.HINDSIGHT),
    ),
]


RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help=f"Rule to choose from: {', '.join(names.RULES)}, or your own: {names.OWN} (repeatable). "
        "Default: CaDDTree, RoundRatio, LongRun. Beside them always AR, DFlash, every fixed budget, Hindsight.",
        autocompletion=_complete(*names.RULES),
    ),
]


ServingPolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help=f"{', '.join((*names.RUN, *names.TRACE, *names.ENGINE, *names.BATCH))}, or your own: {names.OWN} "
        f"(repeatable; {names.EVERY}: those of engines beside the best fixed settings; Share and Uniform take CaDDTree, GreedySteps or LongRun too). "
        "Default: all but CaDDTree, GreedySteps, DDTree and engines' rules. AR is always there.",
        autocompletion=_complete(*names.RUN, *names.TRACE, *names.ENGINE, *names.BATCH, names.EVERY),
    ),
]


CalibrateOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="KIND",
        help="Replay calibrated too, each prompt by a fit on others: isotonic, temperature or path.",
        autocompletion=_complete(*CALIBRATIONS),
    ),
]


ServedBatchOption = Annotated[
    list[int] | None,
    typer.Option(
        "--batch",
        "-b",
        callback=_within("batch"),
        help="Requests decoded together (repeatable; default: of 1, 8 and 32 those measured).",
    ),
]


RequestsOption = Annotated[
    int | None, typer.Option(callback=_within("requests"), help="Requests to finish (default: each prompt once).")
]


SimulationsOption = Annotated[
    int,
    typer.Option(
        "--bootstrap", callback=_within("simulations"), help="Repeated simulations behind the 95 % intervals."
    ),
]


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Run on a Dask cluster: local, or a scheduler's address as tcp://HOST:8786.",
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


class _Failed(Exception):
    """An answer that failed a tolerance: printed in one line, exit code 1."""


def _open(
    show: Out, paths: Sequence[Path], workload: Sequence[str] | None = None, temperature: float | None = None
) -> Trace:
    """The trace, which no output may touch."""
    from ddsim.trace.trace import open_trace

    return _chosen(show, open_trace([os.path.expanduser(p) for p in paths]), workload, temperature)


def _chosen(show: Out, trace: Trace, workload: Sequence[str] | None, temperature: float | None) -> Trace:
    """What was asked for of a trace that is open, which no output may touch."""
    show.reads(*trace._folders)
    return trace if workload is None and temperature is None else trace.select(workload or None, temperature)


def _check_typed(policies: Iterable[Policy] | None, horizon: int | None) -> None:
    """Refuse typed schedules with gaps or, where the horizon is known, with a K above it."""
    from ddsim.policy.schedules import check_whole

    for policy in policies or ():
        ranges = getattr(policy, "ranges", None)
        if policy.scheduled and ranges:
            check_whole(ranges, horizon, policy.name)


def _cost(show: Out, path: Path, kind: str) -> CostModel:
    from ddsim.cost.model import open_cost

    show.reads(path.expanduser())
    with progress("Fitting the cost model"):
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


def _check_plot(name: str | None, option: str = "--plot") -> None:
    """Refuse a figure of unknown format now, not after the work."""
    if name is not None and name != STDOUT and Path(name).suffix.lower() not in PLOT_FORMATS:
        raise DdsimError(f"{option} {name}: can't tell the format; end the name in {', '.join(PLOT_FORMATS)}")


def _plot(show: Out, name: str, draw: Callable[[Axes], Any], lines: int = 0) -> None:
    """Draw a figure and write it; ``lines`` of text need so much more height."""
    from ddsim.view.style import SIZE, canvas, save_figure

    ax = canvas(height=max(SIZE[1], 0.9 + 0.27 * lines))
    draw(ax)
    _write(name, ".png", lambda path: save_figure(ax, path))
    show.saved(name)


def _calibration(trace: Trace, kind: str | None, seed: int) -> CrossCalibration | None:
    if kind is None:
        return None
    from ddsim.trace.calibrate import cross_calibrate

    with _progress("Calibrating") as progress:
        return cross_calibrate(trace, kind, seed=seed, progress=progress)
