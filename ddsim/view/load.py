"""Draws what loads come to as differences to the best fixed setting: the highest load beside latency, a row a policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ddsim.view.looks import policy_look
from ddsim.view.style import _TEXT, GREY, MARKERS, SIZE, _axes, _dress, _label, _settle
from ddsim.view.titles import entitle

MOST = 25.0
"""Per cent of difference that an axis shows; what lies beyond stands at its edge with its number."""

SHADES = ("#9A9A9A", "#555555", "#000000")
"""Of loads, the highest the darkest: colours are the policies'."""

SHOWN_AS = dict(zip(MARKERS, "●■▲◆▼✚✖", strict=True))

Series = tuple[str, pd.DataFrame]  # a label, and columns value, low, high by policy; NaN where there is nothing to show


def load_gains(
    table: pd.DataFrame, *, title: str | None = None, about: str | None = None, ax: Axes | None = None
) -> Axes:
    """Policies under load against the best fixed setting at each load: mean latency, and the highest load that they can serve.

    Parameters
    ----------
    table : DataFrame
        As ``LoadResult.table()`` gives it. A queue that grows without end isn't drawn.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> row = {"load": 2.0, "share": 0.9, "policy": "AR", "unstable": False}
    >>> row |= {"highest_over": 0.0, "highest_over_low": 0.0, "highest_over_high": 0.0}
    >>> row |= {"latency_over": 0.0, "latency_over_low": 0.0, "latency_over_high": 0.0}
    >>> [panel.get_xlabel() for panel in load_gains(pd.DataFrame([row]), ax=canvas()).child_axes]
    ['mean latency, %', 'highest load, %']
    """
    names = list(dict.fromkeys(table["policy"]))
    loads: list[Series] = []
    for load, rows in table.groupby("load", sort=False):
        of = rows.set_index("policy")
        found = _change(of, "latency_over").where(~of["unstable"], np.nan)
        loads.append((f"{load:.3g} requests/s ({100 * rows['share'].iloc[0]:.0f} %)", found))
    once = table.drop_duplicates("policy").set_index("policy")
    ax = _axes(ax, (SIZE[0], 0.9 + 0.27 * (len(names) + 3)))
    _panels(
        ax, names,
        ("mean latency, %", loads),
        ("highest load, %", [("", _change(once, "highest_over"))]),
    )  # fmt: skip
    entitle(ax, title or "Difference to the best fixed setting at each load", about)
    return ax


def _change(of: pd.DataFrame, name: str) -> pd.DataFrame:
    """A relative change with its interval, in per cent."""
    return 100 * pd.DataFrame({"value": of[name], "low": of[f"{name}_low"], "high": of[f"{name}_high"]})


def _panels(
    ax: Axes, names: Sequence[str], left: tuple[str, Sequence[Series]], right: tuple[str, Sequence[Series]]
) -> None:
    """Two panels side by side with a row a name; a series a shade, and where there is one only, the policies' marks."""
    ax.set_axis_off()
    first = ax.inset_axes((0.0, 0.0, 0.6, 1.0))
    second = ax.inset_axes((0.65, 0.0, 0.35, 1.0), sharey=first)
    for panel, (label, series) in ((first, left), (second, right)):
        _dots(panel, names, series)
        panel.set_xlabel(label, fontsize=_TEXT)
    first.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=_TEXT)
    first.set_ylim(len(names) - 0.5, -0.5)
    second.tick_params(labelleft=False)
    handles, labels = first.get_legend_handles_labels()
    second.legend(  # grows to the left, where names leave room
        handles, labels, fontsize=_TEXT - 0.5, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.2,
        handletextpad=0.1, columnspacing=0.8,
    )  # fmt: skip
    _settle(ax)


def _dots(ax: Axes, names: Sequence[str], series: Sequence[Series]) -> None:
    """Dots with intervals; those beyond the axis stand at its edge, with their numbers."""
    _dress(ax)
    ax.axvline(0, color=GREY, lw=1)
    every = np.concatenate([frame.to_numpy(float).ravel() for _, frame in series])
    every = every[np.isfinite(every)]
    low = max(-MOST, min(-2.0, float(every.min(initial=0.0))) * 1.15)
    high = min(MOST, max(2.0, float(every.max(initial=0.0))) * 1.15)
    far: dict[tuple[int, bool], list[str]] = {}
    for i, (label, frame) in enumerate(series):
        colour, marker = SHADES[i % len(SHADES)], MARKERS[i % len(MARKERS)]
        y = np.arange(len(names)) + 0.25 * (i - (len(series) - 1) / 2)
        value, bottom, top = (frame[name].reindex(list(names)).to_numpy(float) for name in ("value", "low", "high"))
        inside = (value >= low) & (value <= high)
        bars: NDArray[np.float64] = np.nan_to_num(np.maximum(0.0, np.stack([value - bottom, top - value])))
        if label:
            ax.errorbar(
                value[inside],
                y[inside],
                xerr=bars[:, inside],
                fmt=marker,
                ms=4.5,
                elinewidth=1.0,
                color=colour,
                label=label,
            )
        else:
            for k in np.flatnonzero(inside).tolist():
                own = policy_look(names[k]).mark()
                ax.errorbar(value[k], y[k], xerr=bars[:, k, None], ls="", ms=5.5, elinewidth=1.0, label="_", **own)
        for k in np.flatnonzero(~inside & np.isfinite(value)).tolist():
            mark = SHOWN_AS[marker] if label else ""
            far.setdefault((k, bool(value[k] > high)), []).append(f"{mark}{value[k]:+.0f}".replace("-", "−"))
    for (k, right), numbers in far.items():
        at, side = (high, "right") if right else (low, "left")
        said = f" {' '.join(numbers)} → " if right else f" ← {' '.join(numbers)} "
        ax.text(at, k, said, fontsize=_TEXT - 1.5, ha=side, va="center")
    ax.set_xlim(low, high)
