"""What `export --for` and `plan --engine` do: settings and plans for serving engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsim.cli.app import _complete, _cost, _one_of, _open, _write
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

ExtrapolateOption = Annotated[
    bool, typer.Option("--extrapolate", help="Let an engine's K rest on costs that weren't measured; they are marked.")
]


def engine_costs(show: Out, profile: Path, engine: str, drafter: str | None = None, kind: str = "auto") -> CostModel:
    """Costs for an engine's settings: not those of another engine, nor of another drafter than asked for."""
    from ddsim.replay.engines import ENGINES as KNOWN
    from ddsim.replay.engines import measured_on

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


def rests_on(cost: CostModel, engine: str) -> str | None:
    """A note where nothing says that costs are an engine's own."""
    from ddsim.replay.engines import ENGINES as KNOWN
    from ddsim.replay.engines import measured_on

    if measured_on(cost.provenance) is not None:
        return None
    return f"Nothing says that these costs are {KNOWN[engine].title}'s: of another engine they can be off by tens of per cent."


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
    from ddsim.replay.engines import acceptance, best_chains, engine_rule
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
        note = rests_on(cost, engine)
        document["notes"] += [] if note is None else [note]
        show.say(document["arguments"] or "(no arguments)", wrap=False)
        for note in document["notes"]:
            show.say(note)
    _write(out, ".json", lambda path: write_document(path, document))
    show.saved(out)
    show.json({"out": out, "for": engine, "sequences": len(recording.sequences), "positions": len(recording)})
