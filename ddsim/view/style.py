"""How figures look: size, colours, axes, and how they are saved."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.files.atomic import write
from ddsim.text import listed, printable

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip


COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""In the order in which series get them (Okabe and Ito; yellow is left out, it is too pale for lines)."""


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (1, 2)), "-")


GREY = "#767676"


SUFFIXES = ("png", "svg", "pdf")


FEWEST = 20  # observations below which a rate says nothing


LONGEST = 32  # characters of a label


SIZE = (6.3, 3.8)  # inches: the width of a page's text, less than half its height


_TEXT = 9.0  # points


FloatArray = NDArray[np.float64]


def canvas(width: float = SIZE[0], height: float = SIZE[1]) -> Axes:
    """A blank Axes on a figure of its own that no display and no pyplot knows of.

    Parameters
    ----------
    width, height : float
        Inches.

    Examples
    --------
    >>> canvas(4, 3).figure.get_size_inches().tolist()
    [4.0, 3.0]
    """
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def save_figure(ax: Axes, path: str | os.PathLike[str]) -> Path:
    """Write the figure of an Axes as PNG, SVG or PDF, by the file's suffix.

    Parameters
    ----------
    ax : Axes
    path : str or path
        Missing folders are made.

    Returns
    -------
    Path

    Raises
    ------
    DdsimError
        Another suffix, or the file can't be written.

    Examples
    --------
    >>> save_figure(canvas(), "tree.gif")
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: tree.gif: figures are written as png, svg or pdf; choose one of these suffixes
    """
    target = Path(path)
    kind = target.suffix.lower().lstrip(".")
    if kind not in SUFFIXES:
        raise DdsimError(f"{target}: figures are written as {listed(SUFFIXES, 'or')}; choose one of these suffixes")
    # Dates, and names that SVG draws at random, would make equal figures differ.
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ddsim"}):
        _figure(ax).savefig(drawn, format=kind, dpi=200, bbox_inches="tight", metadata=metadata)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DdsimError(f"{target}: can't be written ({error.strerror or error})") from None
    write(target, lambda file: file.write(drawn.getbuffer()))
    return target


def _axes(ax: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # costs time and picks a backend: only where it is wanted

    return plt.subplots(figsize=size, layout="constrained")[1]


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _settle(ax: Axes, times: int = 1) -> None:
    """Let the figure's layout find the place of the axes now; several times where a panel's size hangs on its parent's."""
    layout = _figure(ax).get_layout_engine()
    for _ in range(times if layout is not None else 0):
        layout.execute(_figure(ax))  # type: ignore[union-attr]


def _dress(ax: Axes) -> None:
    """What all figures share: light grid, no box, letters of one size."""
    ax.grid(True, color="#e3e3e3", lw=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=_TEXT)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(_TEXT)


def _legend(ax: Axes, place: str) -> None:
    """A legend without a frame that still covers what it lies on."""
    legend = ax.legend(fontsize=_TEXT, loc=cast(Any, place), edgecolor="none", facecolor="white", framealpha=0.85)
    legend.set_zorder(3)


def _budget_axis(ax: Axes, last: int, first: int = 0) -> None:
    """Budgets on a scale that is logarithmic and still has a place for 0."""
    ax.set_xscale("symlog", base=2, linthresh=1.0)
    ticks = [0, *(2**k for k in range(0, 21) if 2**k <= last)]
    ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if t >= first]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set_xlim(first - (0.05 if first == 0 else 0.1 * first), last * 1.06 + 0.05)
    ax.set_xlabel("budget n, nodes in the tree", fontsize=_TEXT)


def _token_axis(ax: Axes, first: int, last: int) -> None:
    ax.set_xscale("log", base=2)
    ticks = [2**k for k in range(0, 31) if first <= 2**k <= last]
    if len(ticks) > 9:
        ticks = ticks[:: 1 + len(ticks) // 10]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set_xlim(first / 1.12, last * 1.12)


def _whole(low: int, high: int) -> NDArray[np.int64]:
    """Every whole number from ``low`` to ``high``, thinned out where they are many."""
    if high - low < 2048:
        return np.arange(low, high + 1)
    return np.unique(np.geomspace(low, high, 2048).round().astype(np.int64))


def _spread(values: NDArray[Any], most: int) -> list[int]:
    """At most so many of the values, first and last among them."""
    if len(values) > most:
        values = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    return [int(v) for v in values]


def _label(name: object) -> str:
    """A foreign name as a label: neither markup of mathematics nor a character that SVG can't hold."""
    shown = printable(name, LONGEST).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # Matplotlib leaves labels with a leading _ out of legends


def _mix(colour: str, share: float) -> tuple[float, float, float]:
    """A colour thinned with white."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return cast(tuple[float, float, float], tuple(1 - share * (1 - c) for c in rgb))


def _rate(value: float) -> str:
    return f"{value:,.0f} tokens/s" if value >= 99.5 else f"{value:.3g} tokens/s"


def _list(values: NDArray[Any]) -> str:
    return ", ".join(str(v) for v in np.unique(values))
