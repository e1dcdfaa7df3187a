"""What `serve --load` and `plan --load` do, requests that arrive on their own and the map of settings; and their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import _check_typed, _complete, _cost, _one_of, _open, _plot, _within
from ddsim.cli.console import Column, Out, milliseconds, number, progress
from ddsim.cli.engines import ENGINES, METHODS, engine_costs
from ddsim.errors import DdsimError

if TYPE_CHECKING:
    from ddsim.policy.contract import Policy

PREFILL = ("whole", "chunked")

LoadOption = Annotated[
    bool, typer.Option("--load", help="Let requests arrive on their own and wait in a queue, in place of full batches.")
]

RateOption = Annotated[
    list[float] | None,
    typer.Option(
        "--rate",
        metavar="R",
        help="Requests a second (repeatable). Default: 30, 60 and 90 % of what the best fixed setting can serve. (--load)",
    ),
]

ArrivalsOption = Annotated[
    str | None,
    typer.Option(
        "--arrivals",
        metavar="NAME",
        help="poisson, bursts, or a log (.csv, .parquet) with a column of times, and of lengths if it has them. (--load)",
        autocompletion=_complete("poisson", "bursts"),
    ),
]

RunningOption = Annotated[
    int | None,
    typer.Option(
        "--running", metavar="N", callback=_within("running"), help="Requests that run at a time (default: the largest batch measured). (--load)"
    ),
]  # fmt: skip

MemoryOption = Annotated[
    int | None,
    typer.Option(
        "--memory", metavar="TOKENS", callback=_within("memory"), help="Keys and values that fit, prompts and answers in all. (--load)"
    ),
]  # fmt: skip

PrefillOption = Annotated[
    str | None,
    typer.Option(
        "--prefill",
        metavar="HOW",
        help="whole: prompts in passes of their own; chunked: in parts beside each round (default: as the engine does). (--load)",
        autocompletion=_complete(*PREFILL),
    ),
]

ChunkOption = Annotated[
    int | None,
    typer.Option(
        "--chunk", callback=_within("chunk"), help="Prompt tokens of a part (default: 512; --prefill chunked)."
    ),
]

TtftOption = Annotated[
    float | None, typer.Option("--ttft", metavar="S", help="Seconds to the first token that are promised. (--load)")
]

TpotOption = Annotated[
    float | None, typer.Option("--tpot", metavar="S", help="Seconds per output token that are promised. (--load)")
]

MapOption = Annotated[
    bool,
    typer.Option(
        "--load", help="Map the best setting over requests, context and workload: for the decoder, or for --engine."
    ),
]

LOAD_COLUMNS: tuple[Column, ...] = (
    ("policy", "policy", str),
    ("highest", "most\nreq/s", number(1)),
    ("ttft_p99", "TTFT\np99 s", number(3)),
    ("tpot_mean", "TPOT\nms", milliseconds),
    ("latency_mean", "whole\ns", number(3)),
    ("latency_p99", "p99\ns", number(3)),
    ("goodput", "as pro-\nmised %", lambda share: f"{100 * share:.1f}"),
    ("latency_over", "to best\nfixed %", lambda change: f"{100 * change:+.1f}"),
    ("interval", "95 %", str),
)

UNSTABLE = "† more arrives than it can ever serve: its queue grows without end"


def check_load(load: bool, needs: dict[str, Any], refused: dict[str, Any], command: str = "serve") -> None:
    """Refuse options of the open loop without --load, and those of full batches with it."""
    given = [name for name, value in (refused if load else needs).items() if value]
    if given:
        raise DdsimError(
            f"{command}: {', '.join(given)} {'is' if len(given) == 1 else 'are'} for full batches, not for --load"
            if load
            else f"{command}: {', '.join(given)} {'needs' if len(given) == 1 else 'need'} --load"
        )


def serve_under_load(
    show: Out,
    trace: Sequence[Path],
    profile: Path,
    kind: str,
    policies: Sequence[str] | None,
    typed: Sequence[Policy],
    rate: Sequence[float] | None,
    arrivals: str | None,
    running: int | None,
    memory: int | None,
    prefill: str | None,
    chunk: int | None,
    ttft: float | None,
    tpot: float | None,
    requests: int | None,
    workload: Sequence[str] | None,
    temperature: float | None,
    bootstrap: int,
    seed: int,
    cluster: str | None,
    plot: str | None,
) -> None:
    """Simulate, and show: sentence, a table a load, figure, JSON."""
    _one_of("--prefill", prefill, PREFILL)
    if chunk is not None and prefill == "whole":
        raise DdsimError("serve: --chunk is for --prefill chunked")
    from ddsim.replay.arrivals import Arrivals, read_arrivals
    from ddsim.replay.load import serve_load
    from ddsim.replay.served import EXTRAPOLATED

    log: Arrivals | str = arrivals or "poisson"
    if arrivals is not None and Path(arrivals).suffix:
        show.reads(Path(arrivals).expanduser())
        log = read_arrivals(Path(arrivals).expanduser())  # what can't be read is said at once
    recording, cost = _open(show, trace, workload, temperature), _cost(show, profile, kind)
    _check_typed(typed, recording.horizon)
    with progress("Simulating") as went:
        result = serve_load(
            recording, cost, policies, rate=list(rate) if rate else None, arrivals=log, running=running,
            memory=memory, prefill="chunked" if chunk is not None else prefill, ttft=ttft, tpot=tpot, requests=requests, bootstrap=bootstrap, seed=seed,
            cluster=cluster, progress=went, chunk=512 if chunk is None else chunk,
        )  # fmt: skip
    table = result.table()
    show.answer(result.sentence, result.details)
    show.say()
    columns = [c for c in LOAD_COLUMNS if c[0] != "goodput" or result.promise]
    for load, rows in table.groupby("load", sort=False):
        show.table(
            _shown(rows),
            columns,
            f"{load:.3g} requests/s ({100 * rows['share'].iloc[0]:.0f} % of the best fixed setting's most)",
        )
    if table["unstable"].any():
        show.say(UNSTABLE)
    if table["extrapolated"].any():
        show.say(EXTRAPOLATED)
    if plot is not None:
        from ddsim.view.load import load_gains

        _plot(show, plot, lambda ax: load_gains(table, ax=ax), len(result.highest) + 3)
    show.json(result.to_json() | {"plot": plot})


def _shown(rows: Any) -> Any:
    """Rows for people: marks at names, and no latency of a queue that grows without end."""
    marks = [" †" * u + " *" * e for u, e in zip(rows["unstable"], rows["extrapolated"], strict=True)]
    ends = zip(rows["latency_over_low"], rows["latency_over_high"], strict=True)
    rows = rows.assign(
        policy=rows["policy"] + marks, interval=[f"{100 * a:+.0f} to {100 * b:+.0f}" if a < b else "" for a, b in ends]
    )
    hidden = ["ttft_p99", "tpot_mean", "latency_mean", "latency_p99", "latency_over", "interval"]
    return rows.assign(**{name: rows[name].where(~rows["unstable"], None) for name in hidden})


def map_for(
    show: Out,
    engine: str | None,
    trace: Sequence[Path],
    profile: Path,
    kind: str,
    method: str,
    rules: Sequence[str] | None,
    batch: Sequence[int] | None,
    context: int | None,
    extrapolate: bool,
    workload: Sequence[str] | None,
    temperature: float | None,
    seed: int,
    plot: str | None,
) -> None:
    """Map settings: sentence, a table a workload, heat maps, JSON."""
    _one_of("--engine", engine, ENGINES)
    _one_of("--method", method, METHODS)
    from ddsim.replay.load_map import load_map

    recording = _open(show, trace, workload, temperature)
    cost = _cost(show, profile, kind) if engine is None else engine_costs(show, profile, engine, kind=kind)
    with progress("Mapping") as went:
        answer = load_map(
            recording, cost, engine, method=method, rules=rules or None, requests=sorted(set(batch)) if batch else None,
            contexts=None if context is None else [context], extrapolate=extrapolate, seed=seed, progress=went,
        )  # fmt: skip
    show.answer(answer.sentence, answer.details, answer.notes)
    show.say()
    show.say(
        f"Best {answer.unit} / % lost one step off / % that the best rule adds, by requests and context (* extrapolated)"
    )
    for name in answer.workloads:
        rows = answer.table[answer.table["workload"] == name]
        cells = [_map_cell(row) for row in rows.to_dict("records")]
        wide = rows.assign(cell=cells).pivot(index="requests", columns="context", values="cell").reset_index()
        columns: list[Column] = [("requests", "batch", str), *[(c, f"{c:,}", str) for c in wide.columns[1:]]]
        show.table(wide, columns, name)
    if plot is not None:
        from ddsim.view.load_maps import load_maps

        lines = answer.table["workload"].nunique() * (1 + answer.table["requests"].nunique())
        _plot(show, plot, lambda ax: load_maps(answer.table, answer.unit, ax=ax), lines)
    show.json(answer.to_json() | {"plot": plot})


def _map_cell(row: dict[Any, Any]) -> str:
    """A cell of the map in a few characters."""
    lost = f"{100 * row['lost_by_step']:.0f}" if row["lost_by_step"] >= 0 else "–"
    adds = f"/{100 * row['rule_gain']:+.0f}" if row["rule"] else ""
    return f"{row['setting']}/{lost}{adds}" + "*" * row["extrapolated"]
