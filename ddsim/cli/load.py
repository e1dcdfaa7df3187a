"""What `serve --load` and `plan --load` do, requests that arrive on their own and the map of settings; and their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import _check_typed, _complete, _cost, _one_of, _open, _plot, _within
from ddsim.cli.console import Out, progress
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
    show.summary(result.summary())
    if plot is not None:
        _plot(show, plot, lambda ax: result.plot(ax=ax), len(result.highest) + 5)
    show.json(result.to_json() | {"plot": plot})


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
    show.summary(answer.summary())
    if plot is not None:
        lines = answer.table["workload"].nunique() * (1 + answer.table["requests"].nunique())
        _plot(show, plot, lambda ax: answer.plot(ax=ax), lines)
    show.json(answer.to_json() | {"plot": plot})
