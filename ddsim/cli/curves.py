"""Commands about costs, calibration and files: fit, calibrate, export, bench."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import (
    CALIBRATIONS,
    CSV,
    CURVES,
    KINDS,
    ClusterOption,
    JsonOption,
    KindOption,
    PlotOption,
    SeedOption,
    TemperatureOption,
    TraceArgument,
    WorkloadOption,
    _check_plot,
    _complete,
    _cost,
    _Failed,
    _finite,
    _one_of,
    _open,
    _out_option,
    _plot,
    _within,
    _write,
    app,
    example,
)
from ddsim.cli.console import Column, Out, milliseconds, number, percent, progress, working
from ddsim.cli.console import progress as _progress
from ddsim.cli.engines import ENGINES, ExtrapolateOption, MethodOption, export_for
from ddsim.errors import DdsimError
from ddsim.files.atomic import STDOUT

if TYPE_CHECKING:
    from ddsim.cost.model import CostModel
    from ddsim.trace.calibration import Calibration, CrossCalibration
    from ddsim.trace.trace import Trace


@app.command(
    rich_help_panel=CURVES,
    epilog=example(
        "ddsim fit h100.json -o cost.json --plot cost.png",
        "ddsim fit h100.json --kind convex --json",
        "ddsim fit mine.csv",
        "ddsim fit h100.json --beside eager.json --plot costs.png",
    ),
)
def fit(
    profile: Annotated[
        Path,
        typer.Argument(
            metavar="PROFILE",
            help=f"Latency profile (made by ddsim profile); {CSV}, or of batch,k,context,seconds of whole steps; SPS table; CaDDTree's .pt.",
        ),
    ],
    out: Annotated[str | None, _out_option("Save the cost model")] = None,
    kind: KindOption = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(callback=_finite, help="Exit with 1 if the median held-out error is above this (0.05 is 5 %)."),
    ] = None,
    choose_buckets: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Say which N token counts passes should be padded to, of those profiled."
        ),
    ] = None,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--beside", metavar="PROFILE", help="Another profile to draw beside this one (repeatable; --plot)."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fit a cost model to a profile and say how well it predicts what it hasn't seen."""
    show = Out(json, [out, plot])
    _one_of("--kind", kind, KINDS)
    _check_plot(plot)
    import pandas as pd

    from ddsim.cost.model import CostModel, fit_cost, read_costs

    if beside and plot is None:
        raise DdsimError("fit: --beside draws another profile; give --plot FILE too")
    show.reads(profile.expanduser(), *(path.expanduser() for path in beside or ()))
    others = []
    for path in beside or ():
        other = read_costs(path.expanduser())
        if isinstance(other, CostModel):
            raise DdsimError(f"--beside {path}: holds a fitted model; give a profile, whose points can be drawn")
        others.append(other)
    found = read_costs(profile.expanduser(), kind)
    measured = None if isinstance(found, CostModel) else found
    if choose_buckets is not None and measured is None:
        raise DdsimError(f"--choose-buckets: {profile} holds a fitted model; give the profile that it was fitted to")
    with progress("Fitting the cost model"):
        cost = found if isinstance(found, CostModel) else fit_cost(found, kind, seed=seed)
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
    show.say(cost.sentence, style="bold")
    show.say()
    if rows:
        columns = (
            ("kind", "kind", str), ("median", "median error", percent), ("worst", "worst error", percent),
            ("points", "predictions", str), ("picked", "picked", str),
        )  # fmt: skip
        show.table(pd.DataFrame(rows), columns, "Errors on points left out of the fit")
    prompts = _prompts(cost) if cost.prefill_range is not None else []
    if prompts:
        cells: dict[int, dict[str, Any]] = {}
        for row in prompts:
            cell = f"{milliseconds(row['seconds'])}{' *' if row['extrapolated'] else ''}"
            cells.setdefault(row["tokens"], {"tokens": f"{row['tokens']:,}"})[str(row["context"])] = cell
        lengths: list[Column] = [("tokens", "tokens", str), *((str(c), f"after {c:,}", str) for c in PROMPT_CONTEXTS)]
        show.table(pd.DataFrame(list(cells.values())), lengths, "Prefill of one request, ms (* extrapolated)")
    for note in cost.details:
        show.say(note)
    buckets = {}
    if choose_buckets is not None and measured is not None:
        from ddsim.cost import buckets as _buckets

        batch = min(s.batch for s in measured.verify)
        curve, drafting = _buckets.unpadded_curve(measured, batch), cost.draft_seconds(batch)
        chosen = _buckets.choose_buckets(*curve, choose_buckets, beside=drafting)
        loss = _buckets.bucket_loss(*curve, chosen, beside=drafting)
        buckets = {"buckets": {"buckets": chosen, "loss": loss, "sizes": curve[0]}}
        show.say(
            f"Of {len(curve[0])} sizes profiled, {len(chosen)} as buckets lose {100 * loss:.2g} % of a round on average over budgets, each "
            f"octave as likely: --buckets {','.join(map(str, chosen))}"
        )
    if out is not None:
        _write(out, ".json", cost.save)
        show.saved(out)
    if plot is not None:
        from ddsim.view.costs import cost_curve

        batch = 1 if measured is None else min(s.batch for s in measured.verify)
        _plot(show, plot, lambda ax: cost_curve(cost, measured, batch=batch, beside=others, ax=ax), 14)
    answer = {
        "sentence": cost.sentence,
        "details": cost.details,
        "explanation": cost.explain(),
        "model": cost.to_json(),
        "out": out,
        "plot": plot,
    }
    show.json(answer | ({"prefill": prompts} if prompts else {}) | buckets)
    mine = report.kinds.get(cost.kind)
    if tolerance is not None and mine is not None and mine.points and mine.median > tolerance:
        raise _Failed(f"held-out error {percent(mine.median)} is above the tolerance {percent(tolerance)}")


PROMPTS, PROMPT_CONTEXTS = (128, 512, 2048, 8192, 32_768), (0, 8192, 32_768)  # that fit shows


def _prompts(cost: CostModel) -> list[dict[str, Any]]:
    """Seconds of prompts of several lengths after several contexts, and which of them are extrapolated."""
    with warnings.catch_warnings(action="ignore"):  # marked instead
        return [
            {
                "tokens": tokens, "context": context, "seconds": cost.prefill_seconds(tokens, context),
                "extrapolated": cost.prefill_extrapolated(tokens, context),
            }
            for tokens in PROMPTS for context in PROMPT_CONTEXTS
        ]  # fmt: skip


@app.command(
    rich_help_panel=CURVES,
    epilog=example(
        "ddsim calibrate traces/temperature-0/humaneval -o calibration.json",
        "ddsim calibrate traces/marginals --path",
    ),
)
def calibrate(
    trace: TraceArgument,
    out: Annotated[str | None, _out_option("Save the calibration")] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="KIND", help="isotonic, temperature or path.", autocompletion=_complete(*CALIBRATIONS)
        ),
    ] = "isotonic",
    path: Annotated[
        bool, typer.Option("--path", help="Correct by the token before, which makes other trees: --kind path.")
    ] = False,
    leave_workload_out: Annotated[
        bool, typer.Option("--leave-workload-out", help="Say too what a fit on the other workloads gains (--path).")
    ] = False,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    cluster: ClusterOption = None,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Fit a calibration of the drafter's marginals on half of the prompts and judge it on the others.

    A path correction gets more: what it gains in tokens a round, each prompt judged by a fit on others. The one saved is then fitted on
    all prompts.
    """
    show = Out(json, [out, plot])
    _one_of("--kind", kind, CALIBRATIONS)
    _check_plot(plot)
    kind = "path" if path else kind
    if leave_workload_out and kind != "path":
        raise DdsimError("--leave-workload-out: only with --path")
    if cluster is not None and kind != "path":
        raise DdsimError("--cluster: only with --path; other fits are one pass over the trace")
    from ddsim.replay.bootstrap import few
    from ddsim.replay.shown import warned
    from ddsim.trace.cache import positions_of
    from ddsim.trace.calibrate import cross_calibrate, fit_calibration, fit_on_all
    from ddsim.trace.reliability import reliability
    from ddsim.trace.shown import calibration_sentence

    recording = _open(show, trace, workload, temperature)
    prompts = len({(s.workload, s.prompt_id) for s in recording.sequences})
    answer: dict[str, Any] = {"kind": kind}
    applied: Calibration | CrossCalibration
    if kind == "path":
        with _progress("Calibrating, each prompt by a fit on others") as progress:
            applied = cross_calibrate(recording, kind, seed=seed, cluster=cluster, progress=progress)
        answer |= _path_gains(show, recording, applied, leave_workload_out, seed, cluster)
        with _progress("Calibrating on all prompts") as progress:
            calibration = fit_on_all(recording, kind, progress=progress)
    else:
        with _progress("Calibrating") as progress:
            calibration, report = fit_calibration(recording, kind, seed=seed, progress=progress)
        applied = calibration
        length = number(2)
        columns = (
            ("budget", "nodes", str), ("realised", "realised", length), ("predicted_before", "predicted", length),
            ("predicted_after", "calibrated", length), ("count", "positions", str),
        )  # fmt: skip
        answer |= {"sentence": calibration_sentence(report), "prompts": prompts, "enough_prompts": not few(prompts)}
        show.answer(answer["sentence"], warned(prompts))
        show.say()
        show.table(report, columns, "Tokens a round on held-out prompts")
        answer["held_out"] = report
    with _progress("Measuring reliability, as recorded") as progress:
        before = reliability(recording, positions=positions_of(recording), progress=progress)
    answer["by_branch"] = before.by_branch
    branches, after = before.by_branch, None
    if kind != "isotonic" or plot is not None:
        with _progress("Measuring reliability, calibrated") as progress:
            drafted = positions_of(recording, calibration=applied)
            after = reliability(recording, applied, positions=drafted, progress=progress)
    share = number(3)
    shown: list[Column] = [
        ("branch", "token before", str),
        ("predicted", "stated", share),
        ("realised", "realised", share),
    ]
    if after is not None and kind != "isotonic":  # which knows gains of nodes only
        answer["by_branch_after"] = after.by_branch
        branches = branches.assign(
            predicted_after=after.by_branch["predicted"], realised_after=after.by_branch["realised"]
        )
        shown += [("predicted_after", "calibrated", share), ("realised_after", "realised", share)]
    show.table(branches, [*shown, ("count", "rows", str)], "How often the best candidate is right, by branch")
    if out is not None:
        _write(out, ".json", calibration.save)
        show.saved(out)
    if plot is not None:
        from ddsim.view.checks import reliability_by_probability
        from ddsim.view.titles import about

        line = about(recording.meta["provenance"])
        _plot(show, plot, lambda ax: reliability_by_probability(before, after, about=line, ax=ax))
    show.json(answer | {"provenance": calibration.provenance, "out": out, "plot": plot})


def _path_gains(
    show: Out, recording: Trace, cross: CrossCalibration, leave_workload_out: bool, seed: int, cluster: str | None
) -> dict[str, Any]:
    """Show what a path correction gains on prompts, and if asked on workloads, that it wasn't fitted on."""
    from ddsim.replay.bootstrap import few
    from ddsim.replay.held_out import gains_sentence, tokens_a_round
    from ddsim.replay.shown import warned
    from ddsim.trace.cache import positions_of
    from ddsim.trace.calibrate import cross_calibrate

    with _progress("Drafting, as recorded") as progress:
        before = positions_of(recording, progress=progress)
    with _progress("Drafting, calibrated") as progress:
        after = positions_of(recording, calibration=cross, progress=progress)
    gains = tokens_a_round(recording, before, after, seed=seed)
    length = number(2)
    columns = (
        ("workload", "workload", str), ("policy", "policy", str), ("before", "before", length), ("after", "after", length),
        ("gain", "gain", percent), ("low", "from", percent), ("high", "to", percent), ("others", "elsewhere", percent),
    )  # fmt: skip
    prompts = before.prompts
    answer: dict[str, Any] = {
        "sentence": gains_sentence(gains, prompts), "prompts": prompts, "enough_prompts": not few(prompts), "gains": gains,
    }  # fmt: skip
    show.answer(answer["sentence"], warned(prompts))
    show.say()
    if leave_workload_out:
        with _progress("Calibrating, each workload by a fit on others") as progress:
            others = cross_calibrate(recording, "path", by="workload", cluster=cluster, progress=progress)
        with _progress("Drafting, calibrated on other workloads") as progress:
            away = positions_of(recording, calibration=others, progress=progress)
        answer["gains_from_other_workloads"] = tokens_a_round(recording, before, away, seed=seed)
        gains = gains.assign(others=answer["gains_from_other_workloads"]["gain"])
    title = "Tokens a round, each prompt by a fit on others (95 % interval"
    title += "; elsewhere: by a fit on other workloads)" if leave_workload_out else ")"
    show.table(gains, columns, title)
    return answer


EXPORTS = ("sequences", "candidates", "budgets")
FOR = (*ENGINES, "acceptance")


@app.command(
    rich_help_panel=CURVES,
    epilog=example(
        "ddsim export traces/temperature-0/humaneval -o sequences.csv",
        "ddsim export traces/temperature-0/humaneval --what candidates --limit 1000 -o - | head",
        "ddsim export traces/temperature-0 --what budgets --profile h100.json -o budgets.json",
        "ddsim export traces/temperature-0/humaneval --what budgets -p mine.csv -o budgets.json",
        "ddsim export traces/temperature-0 --for vllm --profile vllm.json --drafter DRAFTER -o settings.json",
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
        Path | None,
        typer.Option("--profile", "-p", metavar="FILE", help="Profile, cost model or CSV (as fit reads), for budgets."),
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
    engine: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help=f"{', '.join(ENGINES)}: settings with the best K by requests (with --profile, --drafter; --batch: the most "
            "requests). acceptance: how often each drafted token is accepted, by workload. JSON, in place of --what.",
            autocompletion=_complete(*FOR),
        ),
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The drafter as the engine finds it, for --for ENGINE.")
    ] = None,
    method: MethodOption = "dflash",
    extrapolate: ExtrapolateOption = False,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    json: JsonOption = False,
) -> None:
    """Write a trace as a table, or the best budgets as a lookup table, for other tools; or settings for an engine."""
    show = Out(json, [out])
    _one_of("--for", engine, FOR)
    if engine is not None:
        if what != "sequences" or file_format is not None or limit is not None:
            raise DdsimError("export: --for takes no --what, --format or --limit")
        export_for(
            show, engine, out, trace, profile, batch, context, drafter, method, extrapolate, workload, temperature
        )
        return
    if drafter is not None or extrapolate or method != "dflash":
        raise DdsimError("export: --drafter, --method and --extrapolate are for --for ENGINE")
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
    from ddsim.replay.said import written
    from ddsim.replay.shown import warned
    from ddsim.text import between
    from ddsim.view.export import export_budgets, export_candidates, export_table, sequence_table

    def span(low: int, high: int) -> str:
        return between(low, high, "{:,}".format)

    recording = _open(show, trace, workload, temperature)
    prompts = len({(s.workload, s.prompt_id) for s in recording.sequences})
    sentence = written(len(recording.sequences), prompts, len(recording), recording.max_budget)
    if what == "sequences":
        table = sequence_table(recording).head(limit) if limit else sequence_table(recording)
        _write(out, suffix, lambda path: export_table(table, path))
        show.answer(sentence, ())
    elif what == "candidates":
        with progress("Writing candidates"):
            _write(out, suffix, lambda path: export_candidates(recording, path, limit=limit))
        show.answer(sentence, ())
    elif profile is not None:
        from ddsim.replay.maps import best_widths

        cost = _cost(show, profile, "auto")
        given: dict[str, Any] = {k: sorted(set(v)) for k, v in (("batch", batch), ("contexts", context)) if v}
        with progress("Solving"):
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
        few_, many = (min(grid[1]), max(grid[1]))
        first, last = (
            span(int(grid[2][:, grid[1] == b].min()), int(grid[2][:, grid[1] == b].max())) for b in (few_, many)
        )
        sentence = f"The best trees have {first} nodes at batch {few_}" + (
            f" and {last} at batch {many}." if many > few_ else "."
        )
        show.answer(sentence, warned(prompts))
        show.say(f"Budgets for {' and '.join(spans)}; costs measured at {cost.range}.")
        show.say("They are best for what this recording accepted, whatever the drafter's probabilities say.")
        if marks.any():
            show.say(f"Of {marks.size} budgets {marks.sum()} rest on extrapolated costs (marked in the file).")
    show.saved(out)
    show.json(
        {
            "out": out,
            "what": what,
            "sentence": sentence,
            "sequences": len(recording.sequences),
            "positions": len(recording),
        }
    )


BENCH_COLUMNS: tuple[Column, ...] = (
    ("figure", "figure", str),
    ("measured", "measured", str),
    ("target", "target", str),
    ("meets", "met", lambda met: "" if met is None else "yes" if met else "NO"),
)


@app.command(rich_help_panel=CURVES, epilog=example("ddsim bench --quick", "ddsim bench --json > bench.json"))
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the positions, fewer repeats.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a target is missed.")] = False,
    scale: Annotated[
        bool,
        typer.Option(
            "--scale", help="Serve a made-up trace of a million positions instead: minutes, and 2 GB on disk."
        ),
    ] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Measure how fast this ddsim is on this machine, each figure beside its target."""
    show = Out(json)
    from ddsim.bench import run_bench
    from ddsim.bench_serving import POSITIONS, run_scale

    with working("Measuring") as say:
        if scale:
            result = run_scale(positions=POSITIONS // 10 if quick else POSITIONS, seed=seed, progress=say)
        else:
            result = run_bench(quick=quick, seed=seed, progress=say)
    show.table(result.table(), BENCH_COLUMNS)
    show.say(", ".join(f"{key} {value}" for key, value in result.machine.items()))
    show.json(result.to_json())
    missed = [f.name for f in result.figures if f.meets is False]
    if check and missed:
        raise _Failed(f"targets missed: {', '.join(missed)}")
