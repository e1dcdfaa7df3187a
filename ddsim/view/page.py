"""Figures and tables of an HTML page: drawings inlined with a text alternative, rows that sort."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

from ddsim.text import printable
from ddsim.view.style import canvas

WIDTH, HEIGHT = 4.5, 3.3  # inches: what a column of the page, or a telephone, shows without shrinking the letters much


LONGEST = 60  # characters of a cell


SVG = "http://www.w3.org/2000/svg"


XLINK = "http://www.w3.org/1999/xlink"


Columns = dict[str, tuple[str, Callable[[Any], str]]]


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its drawing, what it is, and what it says to those who can't see it."""

    name: str
    title: str
    svg: Markup
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page: headings, and rows of (text, value to sort by)."""

    title: str
    headings: list[str]
    rows: list[list[tuple[str, float | str]]]

    @property
    def narrow(self) -> bool:
        """Whether it fits beside a figure."""
        return len(self.headings) <= 5


Section = list["Figure | Table"]


def inline_figure(
    name: str,
    title: str,
    draw: Callable[[Axes], Any],
    caption: str,
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    wide: bool = False,
) -> Figure:
    ax = canvas(width, height)
    draw(ax)
    file = io.BytesIO()
    # Letters stay letters: smaller, and they can be searched and read aloud. The salt makes equal figures equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        ax.get_figure(root=True).savefig(  # type: ignore[union-attr]
            file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return Figure(name, title, _inline(file.getvalue(), name, title, caption), caption, wide)


def _inline(svg: bytes, name: str, title: str, text: str) -> Markup:
    """An SVG file as an element of a page: names of its own, a text alternative, and sizes that follow the page's."""
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata":
            root.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "d":  # numbers to a hundredth of a point: half the size, and nobody sees it
                element.set(key, re.sub(r"-?\d+\.\d+", _short, value))
            elif key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                del element.attrib[key]
                element.set("href", f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            if key == "style" and "font" in value:
                value = value.replace("'DejaVu Sans Mono'", "'DejaVu Sans Mono', Menlo, Consolas, monospace")
                element.set(key, value.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Arial, sans-serif"))
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-text")
    root.set("style", f"max-width: {width * 1.7:.0f}px; aspect-ratio: {width:g} / {height:g}")
    for i, (tag, content) in enumerate((("title", title), ("desc", text))):
        node = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'text'}"})
        node.text = printable(content)
        root.insert(i, node)
    ElementTree.register_namespace("", SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True))


def _short(match: re.Match[str]) -> str:
    return f"{float(match.group()):.2f}".rstrip("0").rstrip(".")


def sortable_table(title: str, frame: pd.DataFrame, columns: Columns) -> Table:
    shown = {name: how for name, how in columns.items() if name in frame}
    rows = []
    for record in records(frame):
        row: list[tuple[str, float | str]] = []
        for name, (_, how) in shown.items():
            value = record[name]
            if isinstance(value, str):
                row.append((printable(value, LONGEST), value))
            else:
                known = value is not None and np.isfinite(value)
                row.append((how(value) if known else "–", float(value) if known else ""))
        rows.append(row)
    return Table(title, [heading for heading, _ in shown.values()], rows)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
