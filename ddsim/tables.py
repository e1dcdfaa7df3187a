"""What answers look like: a sentence, lines and tables, as text of 80 columns and as HTML, the same in Python and on the command line."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddsim.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table as RichTable

WIDTH = 80
"""Columns that text is laid out for."""

LONGEST = 60  # characters of a cell: longer names are cut in the middle

Column = tuple[Any, str, Callable[[Any], str]]  # key of a row, heading, how a value is printed


@dataclass(frozen=True)
class Table:
    """A table for people: headings, and rows of cells as they are printed."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str | None = None

    @classmethod
    def of(cls, rows: Any, columns: Sequence[Column], title: str | None = None) -> Table:
        """The table of a data frame, or of a list of dicts; columns that it lacks are left out, and a value that is missing is a dash.

        Examples
        --------
        >>> Table.of([{"n": 3, "ms": 0.5}], [("n", "nodes", str), ("ms", "ms", number(1)), ("K", "K", str)]).rows
        (('3', '0.5'),)
        """
        records: Sequence[Mapping[Any, Any]] = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
        there = rows.columns if hasattr(rows, "columns") else {key for record in records for key in record}
        shown = [column for column in columns if column[0] in there]
        return cls(
            tuple(heading for _, heading, _ in shown),
            tuple(tuple(_cell(record.get(key), how) for key, _, how in shown) for record in records),
            None if title is None else printable(title, 3 * WIDTH),
        )

    def rich(self, console: Console) -> list[RichTable]:
        """The table for a Rich console, without its title: one where it is wide enough, else several, to be shown below each other.

        Headings are stacked, and then columns moved closer, before a table is split; each part has the columns that tell rows apart.
        Cells of the first column are broken between words where they would take more than half of the width, and others where they
        alone would take more than is left. No number is cut.
        """
        names, every = self.headings, range(len(self.headings))
        high = [stacked(name) for name in names]
        for shown, apart in ((names, 1), (high, 1), (high, 0)):
            whole = self._part(shown, every, console, apart)
            if _fits(whole, console):
                return [whole]
        rows = self.rows
        keys = next((k for k in range(1, len(names)) if len({row[:k] for row in rows}) == len(rows)), 1)
        parts = [whole]
        for shown, first in ((names, keys), (high, keys), (high, 1)):
            rest = len(names) - first
            for count in range(2, rest + 1):  # so many parts, all but the last with as many columns
                each = -(-rest // count)
                parts = [
                    self._part(shown, [*range(first), *every[low : low + each]], console)
                    for low in range(first, len(names), each)
                ]
                if all(_fits(part, console) for part in parts):
                    return parts
        return parts

    def _part(self, names: Sequence[str], shown: Iterable[int], console: Console, apart: int = 1) -> RichTable:
        from rich import box
        from rich.cells import cell_len
        from rich.table import Table as RichTable
        from rich.text import Text  # as it is: a string would be read as markup

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, apart, 0, 0))
        half = console.width // 2 if len(self.headings) > 1 else console.width - 4
        first = max((cell_len(row[0]) for row in self.rows), default=0)
        for i in (shown := list(shown)):
            longest = max((cell_len(row[i]) for row in self.rows), default=0)
            most = console.width - min(first, half) - 4 if i else half
            table.add_column(
                names[i], justify="right" if i else "left", overflow="fold", no_wrap=longest <= most,
                max_width=None if longest <= most else most,
            )  # fmt: skip
        for row in self.rows:
            table.add_row(*(Text(row[i]) for i in shown))
        return table

    def text(self) -> str:
        """The table as plain text."""
        import io

        from rich.console import Console

        parts = []
        console = Console(width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
        for part in self.rich(console):
            console.file = io.StringIO()
            console.print(part)
            lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
            shift = min((len(line) - len(line.lstrip()) for line in lines), default=0)
            parts.append("\n".join(line[shift:] for line in lines))
        said = [] if self.title is None else _wrapped(self.title)
        return "\n".join([*said, "\n\n".join(parts)])

    def html(self) -> str:
        """The table as HTML without colours of its own, so that it is read on light and on dark."""

        def row(cells: Sequence[str], tag: str) -> str:
            sides = ("left", *("right",) * (len(cells) - 1))
            made = (
                f'<{tag} style="text-align: {side}">{html.escape(_one_line(cell))}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{''.join(made)}</tr>"

        title = (
            ""
            if self.title is None
            else f'<caption style="text-align: left; white-space: nowrap">{html.escape(self.title)}</caption>'
        )
        body = "".join(row(cells, "td") for cells in self.rows)
        return f"<table>{title}<thead>{row(self.headings, 'th')}</thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Summary:
    """What is printed of an object: a sentence, lines that explain it, a drawing, tables, and what marks in these mean."""

    sentence: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    feet: Sequence[str] = ()
    drawing: str = ""

    def __str__(self) -> str:
        said = [line for part in (self.sentence, *self.lines) for line in _wrapped(part)]
        tables = "\n\n".join(table.text() for table in self.tables)
        feet = "\n".join(line for foot in self.feet for line in _wrapped(foot))
        parts = ["\n".join([*said, self.drawing] if self.drawing else said), tables]
        return "\n\n".join(part for part in parts if part) + (f"\n{feet}" if feet else "")

    def _repr_html_(self) -> str:
        lines, feet = ([html.escape(printable(line)) for line in said] for said in (self.lines, self.feet))
        made = [f"<strong>{html.escape(printable(self.sentence))}</strong>", *(f"<div>{line}</div>" for line in lines)]
        made += [f"<pre>{html.escape(self.drawing)}</pre>"] if self.drawing else []
        made += [table.html() for table in self.tables] + [f"<div><small>{foot}</small></div>" for foot in feet]
        return f"<div>{''.join(made)}</div>"


class Shown:
    """An object that shows its answer: as text of 80 columns where it is printed, as HTML in Jupyter."""

    __slots__ = ()

    def summary(self) -> Summary:
        """What is printed, from what is known already: nothing is read from disk for it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        try:
            return str(self.summary())
        except Exception:  # a debugger shows objects that are half made
            return f"<{type(self).__name__}>"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        try:
            return self.summary()._repr_html_()
        except Exception:
            return html.escape(f"<{type(self).__name__}>")


def public(name: str) -> Any:
    """A public name of ddsim, such as ``plot``: imported now, not before, because figures stand above what they show."""
    return getattr(import_module("ddsim"), name)


def drawn(figure: str, *values: Any, ax: Axes | None = None, of: Mapping[str, Any] | None = None, **named: Any) -> Axes:
    """What a function of `ddsim.plot` draws; ``of`` is the provenance that its title tells of."""
    if of is not None:
        named["about"] = public("plot").about(of)
    axes: Axes = getattr(public("plot"), figure)(*values, ax=ax, **named)
    return axes


def number(digits: int) -> Callable[[Any], str]:
    """Format with so many digits after the point."""
    return lambda value: f"{value:,.{digits}f}"


def percent(value: Any) -> str:
    """A share as a percentage."""
    return f"{round(100 * value, 1) + 0.0:.1f} %".replace("-", "−")


def milliseconds(value: Any) -> str:
    """Seconds, printed as milliseconds."""
    return f"{1e3 * value:.2f}"


_TOGETHER = re.compile(
    r"(?<=\d) (?=(?:%|ms|s|[KMG]i?B|GB/s|TB/s|nodes|tokens/s)(?![\w/]))|(?<=\w) (?== [\d-])|(?<= =) (?=[\d-])"
)
_HELD = "\0"  # in place of a space at which no line may end


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a paragraph; a number stays with its unit.

    Examples
    --------
    >>> wrapped("The best adaptive rule gains +0.1 % with K = 15", 34)
    ['The best adaptive rule gains', '+0.1 % with K = 15']
    """
    from rich.cells import cell_len, chop_cells

    lines, room = [""], width
    for word in _TOGETHER.sub(_HELD, text).split(" "):
        word = word.replace(_HELD, " ")
        for part in [word] if cell_len(word) <= width else chop_cells(word, width):
            if lines[-1] and cell_len(part) + 1 > room:
                lines, room = [*lines, ""], width
            glue = " " if lines[-1] else ""
            lines[-1] += glue + part
            room -= cell_len(glue + part)
    return lines


def stacked(heading: str) -> str:
    """A heading with a line a word; numbers keep their units.

    Examples
    --------
    >>> stacked("over best fixed"), stacked("within 1 %")
    ('over\\nbest\\nfixed', 'within\\n1 %')
    """
    return _TOGETHER.sub(_HELD, heading).replace(" ", "\n").replace(_HELD, " ")


def _fits(table: RichTable, console: Console) -> bool:
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


def _cell(value: Any, how: Callable[[Any], str]) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return printable(how(value), LONGEST)


def _one_line(heading: str) -> str:
    """A heading that was broken to be narrow."""
    return heading.replace("-\n", "").replace("/\n", "/").replace("\n", " ")


def _wrapped(text: str) -> list[str]:
    """Lines of at most 80 columns."""
    return wrapped(printable(text), WIDTH)
