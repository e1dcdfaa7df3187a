"""Draws maps of the best setting by requests, context and workload."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ddsim.view.style import _TEXT, BLACK, BLUE, SIZE, VERMILION, _axes, _label, _mix, _settle
from ddsim.view.titles import entitle


def load_maps(
    table: pd.DataFrame,
    unit: str = "nodes",
    *,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""The best setting by requests, context and workload, what it costs to be one step off, and what the best rule adds.

    Parameters
    ----------
    table : DataFrame
        As `ddsim.replay.load_map.LoadMap` has it. Cells that rest on extrapolated costs are hatched, those that weren't measured grey.
    unit : str
        What a setting counts: nodes, or K.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> cell = {"workload": "all", "requests": 8, "context": 512, "setting": 7, "lost_by_step": 0.1, "rule_gain": 0.2, "extrapolated": False}
    >>> [panel.get_title() for panel in load_maps(pd.DataFrame([cell]), "K", ax=canvas()).child_axes]
    ['best K', 'lost one\nstep off, %', 'best rule\nadds, %']
    """
    workloads, contexts = list(dict.fromkeys(table["workload"])), sorted(table["context"].unique().tolist())
    sizes = sorted(table["requests"].unique().tolist())
    rows = pd.MultiIndex.from_product([workloads, sizes])
    ax = _axes(ax, (SIZE[0], 0.9 + 0.19 * (len(rows) + len(workloads))))
    ax.set_axis_off()
    cells = table.set_index(["workload", "requests", "context"])
    panels = [("setting", f"best {unit}", 1.0, "{:.0f}"), ("lost_by_step", "lost one\nstep off, %", 100.0, "{:.0f}")]
    if "chain_gain" in table:
        panels.append(("chain_gain", "best rule on\nchains adds, %", 100.0, "{:.0f}"))
    panels.append(("rule_gain", "best rule\nadds, %", 100.0, "{:.0f}"))
    wide = 1.02 / len(panels)
    first: Axes | None = None
    for k, (column, name, scale, form) in enumerate(panels):
        panel = ax.inset_axes((wide * k, 0.0, wide - 0.02, 1.0), sharey=first)
        first = first or panel
        grid, marks = (
            cells[part].astype(float).unstack("context").reindex(rows)[contexts] for part in (column, "extrapolated")
        )
        _blocks(
            panel,
            scale * grid.to_numpy(float),
            (marks == 1).to_numpy(bool),
            len(sizes),
            form,
            VERMILION if k == 1 else BLUE,
        )
        panel.set_title(name, fontsize=_TEXT - 0.5)
        panel.set_xticks(range(len(contexts)), [_thousands(c) for c in contexts], fontsize=_TEXT - 1.5, rotation=90)
        panel.set_xlabel("context, tokens", fontsize=_TEXT - 0.5)
        panel.tick_params(length=0, labelleft=k == 0)
    assert first is not None
    for k, name in enumerate(workloads):
        first.text(-0.5, k * (len(sizes) + 1), f" {_label(name)}", fontsize=_TEXT - 0.5, va="center", weight="bold")
    first.set_yticks(
        [i + i // len(sizes) + 1 for i in range(len(rows))], [f"{b:,}" for _, b in rows], fontsize=_TEXT - 1.5
    )
    first.set_ylabel("requests", fontsize=_TEXT - 0.5)
    _settle(ax)
    entitle(ax, title, about)
    return ax


def _thousands(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else f"{count}"


def _blocks(ax: Axes, grid: NDArray[np.float64], marks: NDArray[np.bool_], block: int, form: str, colour: str) -> None:
    """Cells with their numbers, darker where they are larger; an empty row above each block."""
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    for (i, j), value in np.ndenumerate(grid):
        y = i + i // block + 1
        share = (value - low) / (high - low) if np.isfinite(value) and high > low else 0.0
        face = _mix(colour, 0.85 * share) if np.isfinite(value) else "#dddddd"
        hatch = "////" if marks[i, j] else None
        edge = "#00000040" if hatch else "white"
        drawn: list[Artist] = [
            ax.add_patch(Rectangle((j - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor=edge, lw=0.5, hatch=hatch))
        ]
        if np.isfinite(value):
            shown = form.format(value).replace("-", "−")
            ink = "white" if share > 0.65 else BLACK
            drawn.append(ax.text(j, y, shown, ha="center", va="center", fontsize=_TEXT - 1.5, color=ink))
        for one in drawn:  # inside the axes, so that the layout needn't measure a thousand of them
            one.set_in_layout(False)
    rows = len(grid) + len(grid) // block
    ax.set_xlim(-0.5, grid.shape[1] - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    for spine in ax.spines.values():
        spine.set_visible(False)
