"""What `draw` does: one round of a recording, its tree and the path that was accepted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ddsim.cli.app import (
    ANSWERS,
    JsonOption,
    TemperatureOption,
    TraceArgument,
    WorkloadOption,
    _check_plot,
    _open,
    _write,
    app,
    example,
)
from ddsim.cli.console import Out
from ddsim.errors import DdsimError


@app.command(
    rich_help_panel=ANSWERS,
    epilog=example(
        "ddsim draw traces/temperature-0/humaneval",
        "ddsim draw traces/temperature-0/chat --budget 24 -o tree.svg",
        "ddsim draw traces/temperature-0/humaneval --sequence 3 --position 40 --budget 63 -o tree.png",
    ),
)
def draw(
    trace: TraceArgument,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="FILE", help="Where the drawing goes (.svg, .png, .pdf; - writes a PNG)."),
    ] = "ddsim-tree.svg",
    budget: Annotated[int, typer.Option("--budget", "-n", min=1, help="Nodes of the tree, without the root.")] = 32,
    sequence: Annotated[
        int | None, typer.Option(min=0, help="Number of the sequence; by default that of a typical round.")
    ] = None,
    position: Annotated[
        int | None, typer.Option(min=0, help="Of the root in its sequence; by default that of a typical round.")
    ] = None,
    workload: WorkloadOption = None,
    temperature: TemperatureOption = None,
    json: JsonOption = False,
) -> None:
    """Draw one round of a recording: the tree that is drafted, and the path that the target accepts."""
    show = Out(json, [out])
    _check_plot(out, "--out")
    if position is not None and sequence is None:
        raise DdsimError("draw: --position needs --sequence, the number of the sequence that it is in")
    from ddsim.view.style import save_figure
    from ddsim.view.trees import drafted_round, tree_canvas, typical_round

    recording = _open(show, trace, workload, temperature)
    recording.check_budget(budget)
    if position is None:
        sequence, position = typical_round(recording, budget, sequence)
    assert sequence is not None
    drafted = drafted_round(recording, position, budget, sequence)
    info = recording.sequences[sequence]
    where = f"{info.workload} {info.prompt_id}".strip() or f"sequence {sequence}"
    show.say(f"{drafted.sentence} ({where}, position {position}.)")
    _write(out, ".png", lambda path: save_figure(tree_canvas(drafted), path))
    show.saved(out)
    answer: dict[str, Any] = {
        "sequence": sequence, "position": position, "workload": info.workload, "prompt_id": info.prompt_id, "budget": budget,
        "parents": drafted.tree.parents.tolist(), "logprobs": drafted.tree.logprobs.tolist(), "tokens": drafted.tokens.tolist(),
        "texts": drafted.texts, "accepted": drafted.accepted, "bonus": drafted.bonus, "out": out,
    }  # fmt: skip
    show.json(answer)
