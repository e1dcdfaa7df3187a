"""What docs/results.py writes with: what shipped files and commands say, signs, tables, and what was measured once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ddsim.cli.main import main as ddsim_command
from ddsim.files.documents import read_bytes

ROOT = Path(__file__).parent.parent
MEASURED = json.loads((ROOT / "docs" / "measured.json").read_text(encoding="utf-8"))


@cache
def shipped(name: str) -> Any:
    """A JSON document of the repository, plain or gzipped, whichever is there."""
    path = ROOT / name.removesuffix(".gz")
    return json.loads(read_bytes(path if path.exists() else f"{path}.gz"))


def named(name: str) -> str:
    """The name of a shipped file as it is now."""
    plain = name.removesuffix(".gz")
    return plain if (ROOT / plain).exists() else plain + ".gz"


@cache
def said(command: str) -> Any:
    """What a command says as JSON, run in this process."""
    words = shlex.split(command)[1:]
    written, back = io.StringIO(), Path.cwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = ddsim_command([*words, "--json"])
    finally:
        os.chdir(back)
    if code:
        raise SystemExit(f"{command}: exit code {code}\n{errors.getvalue()}")
    return json.loads(written.getvalue())


def share(value: float, digits: int = 1) -> str:
    """A relative change: ``+1.2 %``, ``−0.3 %``, ``0.0 %``, which no line breaks."""
    number = round(100 * value, digits)
    return (f"{number:+.{digits}f}" if number else f"{0:.{digits}f}").replace("-", "−") + "\u00a0%"


def between(low: float, high: float, digits: int = 1) -> str:
    return f"({share(low, digits)[:-2]}\u00a0to\u00a0{share(high, digits)})"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def code(command: str) -> str:
    return f"`{command}`" if command else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def against(value: bool, reason: str) -> str:
    """What stands beside a target: met, or missed and why."""
    return "met" if value else f"**missed**: {reason}"


def device(document: dict[str, Any]) -> str:
    return str(document["provenance"]["device"]).removeprefix("NVIDIA ").split(" ")[0]


def about(document: dict[str, Any]) -> str:
    """Conditions of a validation."""
    made = document["provenance"]
    heat = f"temperature {made['temperature']:g}, " if "temperature" in made else ""
    return f"{device(document)}, {made['dtype']}, {heat}{made['prompts']} prompts, answers of {made['max_new_tokens']} tokens, {made.get('date') or made['measured']}"


def elsewhere(section: str) -> str:
    """The tables of measured.json for a section, then its entries."""
    parts = []
    for one in MEASURED["tables"]:
        if one["section"] == section:
            parts.append(f"{one['title']}\n({one['conditions']}; {code(one['command'])}, {one['date']}):")
            parts.append(table(one["columns"], one["rows"]))
    rows = [
        (
            one["what"], one["target"], one["measured"],
            (against(not one["missed"], one["missed"]) if one["target"] else ""), one["conditions"], code(one["command"]), one["date"],
        )
        for one in MEASURED["entries"]
        if one["section"] == section
    ]  # fmt: skip
    if rows:
        parts.append(table(("measured once", "target", "measured", "", "conditions", "made by", "date"), rows))
    return "\n\n".join(parts)
