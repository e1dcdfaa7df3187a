"""What `export --for`, `plan --engine`, `profile --engine` and `validate --engine` do: serving engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import _complete, _cost, _one_of, _open, _plot, _write
from ddsim.cli.console import Column, Out, milliseconds, number, percent, progress
from ddsim.errors import DdsimError
from ddsim.files.atomic import STDOUT

if TYPE_CHECKING:
    from ddsim.cost.model import CostModel

ENGINES, METHODS = ("vllm", "sglang", "tensorrt-llm"), ("dflash", "eagle3", "dspark")

MethodOption = Annotated[
    str,
    typer.Option(
        "--method", metavar="NAME", help=f"What drafts in the engine: {', '.join(METHODS)}.", autocompletion=_complete(*METHODS)
    ),
]  # fmt: skip

EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help=f"Plan K for a serving engine, which verifies chains: {', '.join(ENGINES)}.",
        autocompletion=_complete(*ENGINES),
    ),
]

DrivenOption = Annotated[
    str | None,
    typer.Option(
        "--engine", metavar="ENGINE", help="A serving engine in place of ddsim's decoder: vllm.", autocompletion=_complete("vllm")
    ),
]  # fmt: skip

KOption = Annotated[
    list[int] | None,
    typer.Option(
        "--k", "-k", min=0, help="Drafted tokens that are verified (repeatable; default: 0 to 15). (--engine)"
    ),
]

AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="K",
        help="What the engine is set to now: K, or a schedule as in [[1,4,15],[5,64,3]]. Default: all drafted tokens. (--engine)",
    ),
]

ExtrapolateOption = Annotated[
    bool, typer.Option("--extrapolate", help="Let an engine's K rest on costs that weren't measured; they are marked.")
]


def engine_costs(show: Out, profile: Path, engine: str, drafter: str | None = None, kind: str = "auto") -> CostModel:
    """Costs for an engine's settings: not those of another engine, nor of another drafter than asked for."""
    from ddsim.replay.arguments import measured_on
    from ddsim.replay.engines import ENGINES as KNOWN

    cost = _cost(show, profile, kind)
    measured = measured_on(cost.provenance)
    if measured not in (None, engine):
        raise DdsimError(
            f"{profile}: holds costs of {cost.provenance['engine']!r:.60}, not of {KNOWN[engine].title}; profile that engine"
        )
    theirs = cost.provenance.get("drafter")
    if measured is not None and drafter is not None and isinstance(theirs, str) and _last(theirs) != _last(drafter):
        raise DdsimError(
            f"{profile}: holds costs of the drafter {theirs!r:.60}, not of {drafter!r:.60}; profile that one"
        )
    return cost


def _last(name: str) -> str:
    """The last part of a folder's or a hub's name, as people tell models apart."""
    return name.rstrip("/").rpartition("/")[2].lower()


def export_for(
    show: Out,
    engine: str,
    out: str,
    trace: Sequence[Path],
    profile: Path | None,
    batch: list[int] | None,
    context: list[int] | None,
    drafter: str | None,
    method: str,
    extrapolate: bool,
    workload: Sequence[str] | None,
    temperature: float | None,
) -> None:
    """Settings for an engine, or an acceptance profile, as JSON."""
    if engine == "acceptance":
        if profile is not None or drafter is not None or batch or context or extrapolate or method != "dflash":
            raise DdsimError(
                "export: --for acceptance takes no --profile, --drafter, --method, --batch, --context or --extrapolate"
            )
    elif profile is None or drafter is None:
        raise DdsimError(f"export: --for {engine} needs --profile FILE and --drafter NAME")
    if any(len(given) > 1 for given in (batch or (), context or ())):
        raise DdsimError(f"export: --for {engine} takes one --batch, the most requests, and one --context")
    _one_of("--method", method, METHODS)
    if out != STDOUT and Path(out).suffix != ".json":
        raise DdsimError(f"-o {out}: settings are written as .json")
    import ddsim
    from ddsim.files.documents import write_document
    from ddsim.replay.engines import acceptance, best_chains, engine_rule, unnamed_costs
    from ddsim.view.settings import acceptance_profile, engine_settings, sps_table

    rule = "any" if engine == "acceptance" else engine_rule(engine, method)
    recording = _open(show, trace, workload, temperature)
    source: dict[str, Any] = {
        "ddsim": ddsim.__version__,
        "trace": recording.fingerprint,
        "workloads": list(dict.fromkeys(info.workload for info in recording.sequences)),
    }
    if engine == "acceptance" or profile is None or drafter is None:
        document = acceptance_profile(acceptance(recording), provenance=source)
    else:
        cost = engine_costs(show, profile, engine, drafter)
        given = {name: one[0] for name, one in (("requests", batch), ("context", context)) if one}
        with progress("Solving"):
            choices = best_chains(recording, cost, extrapolate=extrapolate, rule=rule, **given)
        source |= {
            "target": recording.meta.get("provenance", {}).get("target"),
            "drafter": recording.meta.get("provenance", {}).get("drafter"),
            "profile": profile.name,
            "cost": cost.provenance,
            "cost_kind": cost.kind,
            "cost_range": str(cost.range),
            "tuned_on": "same prompts",
        }
        sps = None
        if engine == "sglang" and method == "dspark":
            sps = sps_table(cost, int(choices["k"].max()), choices.attrs["context"], len(choices))
        document = engine_settings(
            engine, choices, drafter, recording.horizon, method=method, sps=sps, provenance=source
        )
        document["notes"] += unnamed_costs(engine, cost)
        show.say(document["arguments"] or "(no arguments)", wrap=False)
        for note in document["notes"]:
            show.say(note)
    _write(out, ".json", lambda path: write_document(path, document))
    show.saved(out)
    show.json({"out": out, "for": engine, "sequences": len(recording.sequences), "positions": len(recording)})


PLAN_COLUMNS: tuple[Column, ...] = (
    ("requests", "batch", str),
    ("k", "K", str),
    ("ks", "95 %", str),
    ("near_best", "within\n1 %", str),
    ("tokens_per_second", "tokens/s", number(0)),
    ("interval", "95 %", str),
    ("tpot", "TPOT\nms", milliseconds),
    ("gain", "gain", percent),
    ("gains", "95 %", str),
)


def plan_for(
    show: Out,
    engine: str,
    trace: Sequence[Path],
    profile: Path,
    kind: str,
    method: str,
    against: str | None,
    batch: list[int] | None,
    context: int | None,
    extrapolate: bool,
    workload: Sequence[str] | None,
    temperature: float | None,
    bootstrap: int,
    seed: int,
    plot: str | None,
) -> None:
    """Plan K for an engine: sentence, table, heat map, JSON."""
    _one_of("--engine", engine, ENGINES)
    _one_of("--method", method, METHODS)
    from ddsim.replay.engine_plan import engine_plan
    from ddsim.replay.engines import engine_rule

    engine_rule(engine, method)
    now = None if against is None else _typed(against)
    recording, cost = _open(show, trace, workload, temperature), engine_costs(show, profile, engine, kind=kind)
    with progress("Solving"):
        answer = engine_plan(
            recording, cost, engine, method=method, against=now, requests=batch or None, context=context,
            extrapolate=extrapolate, bootstrap=bootstrap, seed=seed,
        )  # fmt: skip
    show.answer(answer.sentence, answer.details, answer.notes)
    show.say()
    rows = answer.table[answer.table["requests"].isin(answer.shown)]
    rows = rows.assign(
        k=[f"{k} *" if mark else str(k) for k, mark in zip(rows["k"], rows["extrapolated"], strict=True)],
        ks=[said_runs([pair]) for pair in zip(rows["k_low"], rows["k_high"], strict=True)],
        near_best=[said_runs(runs) for runs in rows["near_best"]],
        interval=_between(rows["low"], rows["high"], 1, "{:,.0f}"),
        gains=_between(rows["gain_low"], rows["gain_high"], 100, "{:+.0f}"),
    )
    title = f"At a context of {answer.context:,}; gain over {answer.against}"
    show.table(rows, PLAN_COLUMNS, title + (" (* extrapolated)" if rows["extrapolated"].any() else ""))
    if len(answer.by_workload) and answer.by_workload["lost"].max() > 0:
        of = answer.by_workload
        cells = [f"{k} ({100 * lost:.1f})" for k, lost in zip(of["k"], of["lost"], strict=True)]
        wide = of.assign(cell=cells, at=of["requests"].astype(str)).pivot(index="workload", columns="at", values="cell")
        columns: list[Column] = [("workload", "batch", str), *[(str(n), str(n), str) for n in answer.shown]]
        show.table(wide.reset_index(), columns, "Each workload's own best K (per cent lost by the plan's)")
    if plot is not None:
        from ddsim.view.costs import heat_map

        grid, contexts, marks = answer.grid()
        label = "best K, drafted tokens a request"
        _plot(show, plot, lambda ax: heat_map(grid, answer.shown, contexts, label=label, extrapolated=marks, ax=ax))
    show.json(answer.to_json() | {"plot": plot})


def said_runs(runs: Sequence[tuple[int, int]]) -> str:
    """Runs of K for a table.

    Examples
    --------
    >>> said_runs([(3, 5), (7, 7)])
    '3–5, 7'
    """
    return ", ".join(f"{a}–{b}" if b > a else f"{a}" for a, b in runs)


def _between(low: Any, high: Any, scale: float, form: str) -> list[str]:
    """Both ends of intervals; empty where there are none, or nothing to be unsure of."""
    pairs = zip(low, high, strict=True)
    return [f"{form.format(scale * a)}–{form.format(scale * b)}" if a < b else "" for a, b in pairs]


def _typed(against: str) -> Any:
    """What --against says: a whole number, or a schedule as JSON."""
    from ddsim.files.documents import array, integer, parse

    value = parse(against.encode(), "--against")
    if not isinstance(value, list):
        return integer(value, "--against", 0)
    return [
        tuple(integer(number, f"--against[{i}]", 0) for number in array(one, f"--against[{i}]", 3))
        for i, one in enumerate(value)
    ]
