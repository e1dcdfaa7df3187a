"""What `export --for`, `plan --engine`, `profile --engine` and `validate --engine` do: serving engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import _complete, _cost, _one_of, _open, _plot, _write
from ddsim.cli.console import Out, progress
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
    from ddsim.replay.engine_plan import said_ranges
    from ddsim.replay.engines import ENGINES as ENGINES_SAID
    from ddsim.replay.engines import acceptance, best_chains, engine_rule, schedule_ranges, unnamed_costs
    from ddsim.replay.shown import warned
    from ddsim.view.settings import acceptance_profile, engine_settings, sps_table

    rule = "any" if engine == "acceptance" else engine_rule(engine, method)
    recording = _open(show, trace, workload, temperature)
    prompts = len({(s.workload, s.prompt_id) for s in recording.sequences})
    source: dict[str, Any] = {
        "ddsim": ddsim.__version__,
        "trace": recording.fingerprint,
        "workloads": list(dict.fromkeys(info.workload for info in recording.sequences)),
    }
    if engine == "acceptance" or profile is None or drafter is None:
        rates = acceptance(recording)
        document = acceptance_profile(rates, provenance=source)
        sentence = f"Chains commit {rates['tokens_per_round'].iloc[-1]:.2f} tokens a round; {100 * rates['rates'].iloc[-1][0]:.0f} % of first tokens are accepted."
        show.answer(sentence, warned(prompts))
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
        sentence = f"{ENGINES_SAID[engine].title}: {said_ranges(schedule_ranges(choices))}."
        show.answer(sentence, warned(prompts))
        show.say(document["arguments"] or "(no arguments)", wrap=False)
        for note in document["notes"]:
            show.say(note)
    _write(out, ".json", lambda path: write_document(path, document))
    show.saved(out)
    show.json(
        {
            "out": out,
            "for": engine,
            "sentence": sentence,
            "sequences": len(recording.sequences),
            "positions": len(recording),
        }
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
    show.summary(answer.summary())
    if plot is not None:
        _plot(show, plot, lambda ax: answer.plot(ax=ax))
    show.json(answer.to_json() | {"plot": plot})


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
