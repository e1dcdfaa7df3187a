"""Two of a kind beside each other: what costs differ by, and plans' throughput by budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from ddsim.arrays import spread
from ddsim.text import printable
from ddsim.view.style import (
    _TEXT,
    BLACK,
    COLOURS,
    GREY,
    LONGEST,
    MARKERS,
    STYLES,
    _axes,
    _budget_axis,
    _dress,
    _label,
    _legend,
    _legend_beside,
    _token_axis,
)
from ddsim.view.titles import entitle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 5
"""Contexts that are drawn at most."""


def cost_differences(
    table: pd.DataFrame,
    names: tuple[str, str] = ("first", "second"),
    *,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """By how much passes take more time with the second costs than with the first, by tokens; a curve a context.

    Parameters
    ----------
    table : DataFrame
        As ``CostComparison.table()`` gives: what, tokens, context, batch, difference, low, high. A column ``series`` names curves of its own.
    names : (str, str)
        What the costs are called.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> row = {"what": "verify", "context": 512, "batch": 1, "low": 0.1, "high": 0.3}
    >>> table = pd.DataFrame([row | {"tokens": 1, "difference": 0.2}, row | {"tokens": 64, "difference": 0.1}])
    >>> cost_differences(table, ("a", "b"), ax=canvas()).get_ylabel()
    'difference in time of a pass, %'
    """
    ax = _axes(ax)
    passes = table[table["what"] == "verify"]
    if "series" not in passes:
        passes = passes[passes["batch"] == passes["batch"].min()]
        contexts = spread(np.sort(passes["context"].unique()), CURVES)
        passes = passes[passes["context"].isin(contexts)]
        passes = passes.assign(series=[f"context {c:,}" for c in passes["context"]])
    for i, (name, part) in enumerate(passes.groupby("series", sort=False)):
        own = part.sort_values("tokens")
        away = np.abs(own[["low", "high"]].to_numpy(float).T - own["difference"].to_numpy())
        ax.errorbar(
            own["tokens"], own["difference"], np.nan_to_num(away), label=_label(str(name)), color=COLOURS[i % len(COLOURS)],
            ls=STYLES[i % len(STYLES)], marker=MARKERS[i % len(MARKERS)], ms=4, lw=1.5, elinewidth=0.8,
        )  # fmt: skip
    ax.axhline(0, color=GREY, lw=1)
    ax.set_ylabel("difference in time of a pass, %")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:+.0f}".replace("-", "−") if v else "0"))
    _dress(ax)
    _token_axis(ax, int(passes["tokens"].min()), int(passes["tokens"].max()))
    ax.set_xlabel("tokens of a pass", fontsize=_TEXT)
    if passes["series"].nunique() > 1:
        _legend_beside(ax)
    said = f"{printable(names[1], LONGEST)} over {printable(names[0], LONGEST)}"
    entitle(ax, said if title is None else title, about)
    return ax


def plan_curves(
    curves: Mapping[str, pd.DataFrame], *, title: str | None = None, about: str | None = None, ax: Axes | None = None
) -> Axes:
    """Throughput of fixed budgets of several plans, the best of each marked.

    Parameters
    ----------
    curves : mapping from a plan's name to its curve
        As ``Plan.curve()`` gives: budget, tokens_per_second, and where known low and high.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> curve = pd.DataFrame({"budget": [1, 2, 3], "tokens_per_second": [100.0, 120.0, 110.0]})
    >>> plan_curves({"old": curve, "new": curve}, ax=canvas()).get_ylabel()
    'throughput, tokens/s'
    """
    ax = _axes(ax)
    last = 1
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        own = curve[curve["budget"] > 0].sort_values("budget")
        last = max(last, int(own["budget"].max()))
        if "low" in own and np.isfinite(own["low"].to_numpy(float)).all():
            ax.fill_between(
                own["budget"], own["low"].astype(float), own["high"].astype(float), color=colour, alpha=0.15, lw=0
            )
        best = own.iloc[int(np.argmax(own["tokens_per_second"]))]
        label = f"{_label(name)}: best {int(best['budget'])} nodes, {best['tokens_per_second']:,.0f}"
        ax.plot(own["budget"], own["tokens_per_second"], color=colour, ls=STYLES[i % len(STYLES)], lw=1.8, label=label)
        ax.plot(
            best["budget"], best["tokens_per_second"], MARKERS[i % len(MARKERS)], ms=7, color=colour, mec=BLACK, mew=0.6
        )
    ax.set_ylabel("throughput, tokens/s")
    ax.set_ylim(bottom=0)
    _dress(ax)
    _budget_axis(ax, last, 1)
    _legend(ax, 1)
    entitle(ax, title, about)
    return ax
