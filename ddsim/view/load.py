"""Draws what loads come to as differences to the best fixed setting: the highest load beside latency, a row a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ddsim.view.style import _TEXT, BLACK, COLOURS, GREY, MARKERS, SIZE, _axes, _dress, _label, _settle

MOST = 25.0
"""Per cent of difference that an axis shows; what lies beyond stands at its edge with its number."""

Series = tuple[str, pd.DataFrame]  # a label, and columns value, low, high by policy; NaN where there is nothing to show


def load_gains(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Policies under load against the best fixed setting at each load: mean latency, and the highest load that they can serve.

    Parameters
    ----------
    table : DataFrame
        As ``LoadResult.table()`` gives it. A queue that grows without end isn't drawn.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> row = {"load": 2.0, "share": 0.9, "policy": "AR", "unstable": False}
    >>> row |= {"highest_over": 0.0, "highest_over_low": 0.0, "highest_over_high": 0.0}
    >>> row |= {"latency_over": 0.0, "latency_over_low": 0.0, "latency_over_high": 0.0}
    >>> [panel.get_xlabel() for panel in load_gains(pd.DataFrame([row]), ax=canvas()).child_axes]
    ['mean latency over best fixed, %', 'highest load, %']
    """
    names = list(dict.fromkeys(table["policy"]))
    loads: list[Series] = []
    for load, rows in table.groupby("load", sort=False):
        of = rows.set_index("policy")
        found = _change(of, "latency_over").where(~of["unstable"], np.nan)
        loads.append((f"{load:.3g} requests/s ({100 * rows['share'].iloc[0]:.0f} %)", found))
    once = table.drop_duplicates("policy").set_index("policy")
    ax = _axes(ax, (SIZE[0], 0.9 + 0.27 * (len(names) + 3)))
    return _panels(
        ax, names,
        ("mean latency over best fixed, %", loads),
        ("highest load, %", [("", _change(once, "highest_over"))]),
    )  # fmt: skip


def _change(of: pd.DataFrame, name: str) -> pd.DataFrame:
    """A relative change with its interval, in per cent."""
    return 100 * pd.DataFrame({"value": of[name], "low": of[f"{name}_low"], "high": of[f"{name}_high"]})


def _panels(
    ax: Axes, names: Sequence[str], left: tuple[str, Sequence[Series]], right: tuple[str, Sequence[Series]]
) -> Axes:
    """Two panels side by side with a row a name; a series a colour."""
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
        handles, labels, fontsize=_TEXT - 1, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.2,
        handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
    _settle(ax, 3)
    return ax


def _dots(ax: Axes, names: Sequence[str], series: Sequence[Series]) -> None:
    """Dots with intervals; those beyond the axis stand at its edge, with their numbers."""
    _dress(ax)
    ax.axvline(0, color=GREY, lw=1)
    every = np.concatenate([frame.to_numpy(float).ravel() for _, frame in series])
    every = every[np.isfinite(every)]
    low = max(-MOST, min(-2.0, float(every.min(initial=0.0))) * 1.15)
    high = min(MOST, max(2.0, float(every.max(initial=0.0))) * 1.15)
    for i, (label, frame) in enumerate(series):
        colour, marker = COLOURS[i % len(COLOURS)] if label else BLACK, MARKERS[i % len(MARKERS)]
        y = np.arange(len(names)) + 0.22 * (i - (len(series) - 1) / 2)
        value, bottom, top = (frame[name].reindex(list(names)).to_numpy(float) for name in ("value", "low", "high"))
        inside = (value >= low) & (value <= high)
        bars: NDArray[np.float64] = np.nan_to_num(np.maximum(0.0, np.stack([value - bottom, top - value])))
        style: dict[str, Any] = {"color": colour, "fmt": marker, "ms": 4.0, "elinewidth": 1.0}
        ax.errorbar(value[inside], y[inside], xerr=bars[:, inside], label=label or "_", **style)
        for k in np.flatnonzero(~inside & np.isfinite(value)):
            right = value[k] > high
            ax.text(
                high if right else low, y[k], f"{value[k]:+.0f} ".replace("-", "−"), color=colour, fontsize=_TEXT - 2.5,
                ha="right" if right else "left", va="center",
            )  # fmt: skip
    ax.set_xlim(low, high)
