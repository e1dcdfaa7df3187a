"""What reaches the terminal: tables, progress, warnings, and files on standard output."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from ddsim.cli.waiting import progress as progress
from ddsim.cli.waiting import sign
from ddsim.cli.waiting import working as working
from ddsim.errors import DdsimError, WorkWarning
from ddsim.files.atomic import STDOUT, check_output, check_output_folder, refuse_inputs, stdout_closed
from ddsim.tables import Column as Column
from ddsim.tables import Summary, Table, wrapped
from ddsim.tables import milliseconds as milliseconds
from ddsim.tables import number as number
from ddsim.tables import percent as percent
from ddsim.text import printable, printable_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

NARROWEST, WIDEST = 40, 1000  # columns: text for people is laid out for no others


class Out:
    """Where a command's answer goes: text and tables for people, or one JSON document for machines.

    With ``--json`` only that document goes to standard output. Where a file goes to standard output (``-``), text for
    people goes to standard error instead.

    Parameters
    ----------
    as_json : bool
    files : sequence of str or None
        Names that the command will write; checked now, because an hour of work must not end at a mistyped folder.
    folders : sequence of str
        Folders that it will write to, and make if need be.

    Raises
    ------
    DdsimError
        A folder is missing, two outputs are one file, or standard output is asked for twice.
    """

    def __init__(self, as_json: bool = False, files: Sequence[str | None] = (), folders: Sequence[str] = ()) -> None:
        named = [f for f in files if f is not None]
        if named.count(STDOUT) + as_json > 1:
            raise DdsimError("standard output can take one thing only: give a file name in place of - or drop --json")
        if (as_json or STDOUT in named) and stdout_closed():
            raise DdsimError("standard output is closed, so the answer would be lost; open it, or give a file name")
        for name in named:
            check_output(name)
        for name in folders:
            check_output_folder(name)
        self._outputs = [*named, *folders]
        self.reads()
        self.as_json = as_json
        if as_json:
            sign.hush()
        self._stream = sys.stderr if STDOUT in named else sys.stdout
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The console that people read."""
        sign.end()
        if self._console is None:
            self._console = make_console(self._stream)
        return self._console

    def reads(self, *inputs: str | os.PathLike[str] | None) -> None:
        """Refuse outputs that would replace one of these inputs, or lie in one that is a folder."""
        refuse_inputs(self._outputs, inputs)

    def say(self, text: str = "", style: str | None = None, *, wrap: bool = True) -> None:
        """Print a line for people (none with ``--json``); ``wrap=False`` for one with a path in it."""
        if not self.as_json:
            shown = printable(text)
            for line in wrapped(shown, self.console.width) if wrap else [shown]:
                self.console.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def aside(self, text: str, style: str | None = None) -> None:
        """Print a line about an answer that streams: on standard error, so that the answer holds nothing else."""
        if not self.as_json:
            sign.end()
            with suppress(OSError):
                sys.stdout.flush()
                make_console(sys.stderr).print(
                    printable(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True
                )

    def answer(self, sentence: str, details: Sequence[str], notes: Sequence[str] = ()) -> None:
        """Print an answer's sentence after an empty line, then what it rests on."""
        self.say()
        self.say(sentence, style="bold")
        for line in (*details, *(f"Note: {note}" for note in notes)):
            self.say(line)

    def table(self, frame: pd.DataFrame, columns: Sequence[Column], title: str | None = None) -> None:
        """Print rows of a data frame as a table that fits the width; columns that it lacks are left out."""
        self.tables([Table.of(frame, columns, title)])

    def tables(self, tables: Sequence[Table], feet: Sequence[str] = ()) -> None:
        """Print tables, and what marks in them mean."""
        if self.as_json:
            return
        for table in tables:
            if table.title is not None:
                self.say(table.title, style="bold")
            for part in table.rich(self.console):
                self.console.print(part)
        for foot in feet:
            self.say(foot)

    def summary(self, summary: Summary) -> None:
        """Print an answer as Python prints it."""
        self.answer(summary.sentence, summary.lines)
        self.say()
        self.tables(summary.tables, summary.feet)

    def stream(self, parts: Sequence[tuple[str, bool]], mark: bool = True) -> None:
        """Print text as it comes; with ``mark``, runs of flagged parts are green, or in brackets where there are no colours."""
        if self.as_json:
            return
        for flagged, run in groupby(parts, key=lambda part: part[1]):
            text = printable("".join(part for part, _ in run), keep="\n\t")
            if mark and flagged and self.console.color_system is None:
                text = f"[{text}]"
            style = "green" if mark and flagged else None
            self.console.print(text, style=style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)

    def json(self, document: Any) -> None:
        """Print the answer as JSON, if that was asked for."""
        if self.as_json:
            text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
            print(printable_json(text, sys.stdout.encoding or "utf-8"))

    def saved(self, name: str | os.PathLike[str]) -> None:
        """Say which file was written."""
        if str(name) != STDOUT:
            self.say(f"Wrote {name}", wrap=False)


def make_console(stream: TextIO, width: int | None = None) -> Console:
    """A Rich console on a stream, as wide as the terminal; 80 columns where there is none and COLUMNS isn't set."""
    from rich.console import Console

    return Console(file=stream, width=width)


@contextmanager
def sane_width() -> Iterator[None]:
    """Meanwhile COLUMNS and TERMINAL_WIDTH are widths that text can be laid out for, or unset where they are no numbers."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH")}
    for name, value in before.items():
        if value is None:
            continue
        del os.environ[name]
        if value.isascii() and value.isdigit() and value.strip("0"):
            wide = int(value) if len(value) < 10 else WIDEST
            os.environ[name] = str(min(max(wide, NARROWEST), WIDEST))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value


def plain(value: Any) -> Any:
    """A value as JSON knows it: arrays and data frames as lists, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return str(value)
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict("records"))
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def on_terminal() -> bool:
    """Whether a person watches: neither output nor errors are piped."""
    return sys.stderr.isatty() and sys.stdout.isatty()


@contextmanager
def warnings_after() -> Iterator[None]:
    """Warnings inside the block come at its end, when the answer is out: a line each on standard error, each once.

    What concerns work that goes on is said at once. A block that is interrupted says no more.
    """
    shown: set[str] = set()
    held: list[Warning] = []

    def say(message: Warning) -> None:
        text = printable(" ".join(str(message).split()))
        sign.end()
        if text not in shown:
            with suppress(OSError):  # nobody reads standard error
                print(f"warning: {text}", file=sys.stderr)
        shown.add(text)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        one = message if isinstance(message, Warning) else category(message)
        if isinstance(one, WorkWarning):
            say(one)
        else:
            held.append(one)

    def rest() -> None:
        with suppress(OSError):  # a pipe that was closed is noticed by who writes next
            sys.stdout.flush()
        if not held:
            return
        from ddsim.cost.ranges import ExtrapolationWarning, merged

        outside = [one for one in held if isinstance(one, ExtrapolationWarning)]
        held[:] = [one for one in held if not isinstance(one, ExtrapolationWarning)]
        held.extend(merged(outside))
        for one in held:
            say(one)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except (Exception, SystemExit):
            rest()
            raise
        rest()
