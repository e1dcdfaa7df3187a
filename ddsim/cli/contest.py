"""What `rules` does: which rule wins where."""

from __future__ import annotations

from ddsim.cli.app import (
    ANSWERS,
    KINDS,
    JsonOption,
    KindOption,
    PlotOption,
    ProfileOption,
    SeedOption,
    ServedBatchOption,
    SimulationsOption,
    TemperatureOption,
    TraceArgument,
    WorkloadOption,
    _check_plot,
    _cost,
    _one_of,
    _open,
    _plot,
    app,
    example,
)
from ddsim.cli.console import Out, progress
from ddsim.cli.load import RunningOption


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim rules traces/temperature-0/humaneval --profile vllm.json",
        "ddsim rules traces/temperature-0/humaneval --profile mine.csv --batch 8",
        "ddsim rules traces/temperature-0/chat -p vllm.json -b 1 -b 8 -b 64 --running 64 --json",
    ),
)
def rules(
    trace: TraceArgument,
    profile: ProfileOption,
    batch: ServedBatchOption = None,
    running: RunningOption = None,
    kind: KindOption = "auto",
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    bootstrap: SimulationsOption = 40,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Tell which of the rules that engines have is worth it: over the best fixed setting, in full batches and under load."""
    show = Out(json, [plot])
    _one_of("--kind", kind, KINDS)
    _check_plot(plot)
    from ddsim.replay.contest import contest

    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    with progress("Simulating") as went:
        answer = contest(
            recording, cost, batch=batch or None, running=running, bootstrap=bootstrap, seed=seed, progress=went
        )
    show.summary(answer.summary())
    if plot is not None:
        _plot(show, plot, lambda ax: answer.plot(ax=ax))
    show.json(answer.to_json() | {"plot": plot})
