"""How figures look: size, colours, axes, and how they are saved."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation
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


SIZE = (5.8, 3.7)  # inches: letters are as large as a telephone's where the figure is as wide as its screen


_TEXT = 9.5  # points


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


def _legend(ax: Axes, columns: int = 2, title: str | None = None) -> None:
    """A legend below the axes, where no curve runs."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    lowest = min((child for child in (ax, *ax.child_axes)), key=lambda panel: panel.get_position().y0)
    _settle(ax)
    box = lowest.get_window_extent()
    room = (_figure(ax).bbox.x1 - box.x0) * 72 / _figure(ax).dpi
    while columns > 1 and columns * (0.56 * _TEXT * max(map(len, labels)) + 4 * _TEXT) > room:
        columns -= 1
    under = min(lowest.xaxis.label.get_window_extent().y0, lowest.xaxis.get_tightbbox().y0)  # type: ignore[union-attr]
    drop = ScaledTranslation(0, (under - box.y0) / _figure(ax).dpi - 0.09, _figure(ax).dpi_scale_trans)
    ax.legend(
        handles, labels, fontsize=_TEXT - 0.5, frameon=False, loc="upper left", ncols=columns, borderaxespad=0.0, borderpad=0.0,
        bbox_to_anchor=(0.0, 0.0), bbox_transform=lowest.transAxes + drop, labelspacing=0.3, columnspacing=1.4,
        title=title, title_fontsize=_TEXT - 0.5, alignment="left",
    )  # fmt: skip


def _legend_beside(ax: Axes, last: int = 0, **settings: Any) -> None:
    """A legend on the right of the axes, for names that are many; the first entries may be moved to the end."""
    handles, labels = ax.get_legend_handles_labels()
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    ax.legend(
        handles[last:] + handles[:last], labels[last:] + labels[:last], fontsize=_TEXT - 0.5, frameon=False,
        **cast(Any, place | settings),
    )  # fmt: skip


def _label_right(ax: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) beside the axes at the height of their points, moved apart where they are close, and tied to them."""
    if not points:
        return
    order = sorted(points, key=lambda point: -point[1])
    notes = [
        ax.annotate(text, (x, y), xytext=(1.03, 0.5), textcoords="axes fraction", fontsize=_TEXT - 0.5, va="center", annotation_clip=False)
        for x, y, text, _ in order
    ]  # fmt: skip
    _settle(ax)
    box = ax.get_window_extent()
    heights = np.array([1.06 * note.get_window_extent().height for note in notes])
    wanted = np.array([ax.transData.transform((x, y))[1] for x, y, _, _ in order])
    at = _apart(wanted, heights, box.y0 - 0.06 * box.height, box.y1 + 0.06 * box.height)
    for note, (x, y, text, colour), height in zip(notes, order, at, strict=True):
        note.remove()
        ax.annotate(
            text, (x, y), xytext=(1.03, (height - box.y0) / box.height), textcoords="axes fraction", fontsize=_TEXT - 0.5,
            color=_ink(colour), va="center", annotation_clip=False, label="_direct",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def _ink(colour: str) -> tuple[float, float, float]:
    """A colour, darkened until letters in it can be read on white (a contrast of 4.5, by WCAG)."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    while (
        1.05
        / (
            float(np.dot(np.where(rgb <= 0.04, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), (0.2126, 0.7152, 0.0722)))
            + 0.05
        )
        < 4.5
    ):
        rgb = rgb * 0.95
    return cast(tuple[float, float, float], tuple(rgb.tolist()))


def _apart(wanted: FloatArray, heights: FloatArray, low: float, high: float) -> FloatArray:
    """Places as near to those wanted (descending) as can be, so that none is closer to the next than their heights allow."""
    gaps = (heights[1:] + heights[:-1]) / 2
    down = np.concatenate([[0.0], np.cumsum(gaps)])
    # Moved apart, what is to be near are wanted + down, which may then only fall: a least squares fit (pool adjacent violators).
    blocks: list[list[float]] = []
    for value in (wanted + down).tolist():
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    placed = np.repeat([value for value, _ in blocks], [int(n) for _, n in blocks])
    top, bottom = high - heights[0] / 2, low + heights[-1] / 2 + down[-1]
    return np.clip(placed, min(bottom, top), top) - down


def _budget_axis(ax: Axes, last: int, first: int = 0, buckets: Sequence[int] | None = None) -> None:
    """Budgets on a scale that is logarithmic and still has a place for 0; ticks at powers of 2, or where nodes fill a bucket."""
    ax.set_xscale("symlog", base=2, linthresh=1.0)
    ticks = [0, *(2**k for k in range(0, 21) if 2**k <= last)]
    label = "budget n, nodes in the tree"
    filled = sorted({b - 1 for b in buckets or ()} & set(range(1, last + 1)))
    if filled:
        label += "\n(ticks: with the root they fill a bucket)"
        ax.xaxis.set_minor_locator(FixedLocator(filled))
        ax.grid(True, axis="x", which="minor", color="#e3e3e3", lw=0.7)
        ticks = [0, *_far_apart(filled, lambda low, high: high >= 1.55 * low)]
    else:
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if t >= first]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(first - (0.05 if first == 0 else 0.1 * first), last * 1.06 + 0.05)
    ax.set_xlabel(label, fontsize=_TEXT)


def _far_apart(values: Sequence[int], room: Callable[[int, int], bool]) -> list[int]:
    """Values that leave room for their labels: those one short of a power of 2 first."""
    picked: list[int] = []
    for value in sorted(values, key=lambda v: ((v + 1) & v != 0, v)):
        if all(room(min(value, other), max(value, other)) for other in picked):
            picked.append(value)
    return sorted(picked)


def _thin(ax: Axes) -> None:
    """Leave out labels of budgets for which the axes, as wide as they have become, have no room."""
    _settle(ax)
    ticks = [int(t) for t in ax.xaxis.get_majorticklocs()]
    at = dict(zip(ticks, ax.transData.transform([(t, 0) for t in ticks])[:, 0] * 72 / _figure(ax).dpi, strict=True))
    wide = {t: 0.64 * _TEXT * len(f"{t:,}") for t in ticks}
    kept = _far_apart(ticks, lambda low, high: bool(at[high] - at[low] > (wide[low] + wide[high]) / 2 + 3))
    ax.xaxis.set_major_locator(FixedLocator(kept))


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
