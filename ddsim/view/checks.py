"""Draws what was predicted beside what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from ddsim.trace.reliability import Reliability
from ddsim.view.looks import policy_look
from ddsim.view.style import (
    BLACK,
    COLOURS,
    FEWEST,
    GREEN,
    GREY,
    MARKERS,
    SIZE,
    STYLES,
    FloatArray,
    _axes,
    _budget_axis,
    _dress,
    _label,
    _legend,
    _legend_beside,
)
from ddsim.view.titles import about as told
from ddsim.view.titles import entitle

MARKS = (*MARKERS, "<", ">", "p", "h", "*", "d")
"""More marks than colours, and no multiple of them: no two of 91 groups look alike."""


def reliability_by_probability(
    before: Reliability,
    after: Reliability | None = None,
    *,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Reliability diagram of nodes: how often a node was accepted whose path probability was p. On the line is right.

    Parameters
    ----------
    before : Reliability
        From `ddsim.trace.reliability.reliability`.
    after : Reliability, optional
        The same after a calibration.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> import ddsim
    >>> from ddsim.view.style import canvas
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = ddsim.Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> reliability_by_probability(ddsim.reliability(trace), ax=canvas()).get_xlabel()
    'predicted: path probability of a node'
    """
    ax = _axes(ax)
    least = 1.0
    for i, (name, which) in enumerate(_named(before, after)):
        part = which.by_probability
        part = part[(part["count"] >= FEWEST) & (part["realised"] > 0)]  # logarithmic axes have no place for 0
        predicted, realised = part["predicted"].to_numpy(float), part["realised"].to_numpy(float)
        if not len(part):
            continue
        least = min(least, predicted.min(), realised.min())
        _dots(ax, predicted, realised, part, i, name)
    floor = max(least * 0.6, 1e-6)
    ax.plot([floor, 1], [floor, 1], color=GREY, lw=1, ls=STYLES[1], zorder=0, label="as predicted")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(floor, 1.25)
    ax.set_ylim(floor, 1.25)
    ax.set_xlabel("predicted: path probability of a node")
    ax.set_ylabel("share of such nodes accepted")
    _dress(ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
    entitle(ax, title, about)
    _legend(ax)
    return ax


def reliability_by_depth(
    before: Reliability,
    after: Reliability | None = None,
    *,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How likely the best candidate of each depth was said to be, and how often it was the true token.

    Rows count whose true path so far is in the tree; depths with fewer than 20 such rows are left out.

    Parameters
    ----------
    before : Reliability
    after : Reliability, optional
        The same after a calibration of rows.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> import ddsim
    >>> from ddsim.view.style import canvas
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = ddsim.Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> reliability_by_depth(ddsim.reliability(trace), ax=canvas()).get_xlabel()
    'depth d, tokens after the root'
    """
    ax = _axes(ax)
    for i, (name, which) in enumerate(_named(before, after)):
        part = which.by_depth[which.by_depth["count"] >= FEWEST]
        depth = part["depth"].to_numpy(float)
        label = f"predicted{f', {name}' if after is not None else ''}"
        ax.plot(depth, part["predicted"].to_numpy(float), color=COLOURS[i], ls=STYLES[i], lw=1.8, label=label)
    part = before.by_depth[before.by_depth["count"] >= FEWEST]
    bars = np.stack([part["realised"] - part["low"], part["high"] - part["realised"]])
    ax.errorbar(
        part["depth"], part["realised"], np.maximum(0.0, bars), fmt="o", ms=4.5, color=BLACK, elinewidth=1,
        label="true token, 95 % interval",
    )  # fmt: skip
    ax.set_xlabel("depth d, tokens after the root")
    ax.set_ylabel("best candidate is the true token")
    _dress(ax)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.set_ylim(0, 1)
    ax.set_xlim(0.5, float(before.by_depth["depth"].max()) + 0.5)
    entitle(ax, title, about)
    _legend(ax)
    return ax


def acceptance_by_budget(
    before: Reliability,
    after: Reliability | None = None,
    *,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Acceptance length over budgets: what trees of that size delivered and what the marginals promised.

    Parameters
    ----------
    before : Reliability
    after : Reliability, optional
        The same after a calibration.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> import ddsim
    >>> from ddsim.view.style import canvas
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = ddsim.Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> acceptance_by_budget(ddsim.reliability(trace), ax=canvas()).get_xlabel()
    'budget n, nodes in the tree'
    """
    ax = _axes(ax)
    realised = before.by_budget
    budgets = realised["budget"].to_numpy()
    ax.plot(budgets, realised["realised"], color=BLACK, lw=1.8, marker="o", ms=4, label="realised")
    for i, (name, which) in enumerate(_named(before, after)):
        label = f"predicted{f', {name}' if after is not None else ''}, 1 + Φ*(n)"
        ax.plot(
            which.by_budget["budget"],
            which.by_budget["predicted"],
            color=COLOURS[i],
            ls=STYLES[i + 1],
            lw=1.8,
            marker=MARKERS[i + 1],
            ms=4,
            label=label,
        )
    ax.set_ylabel("acceptance length, tokens a round")
    _dress(ax)
    _budget_axis(ax, int(budgets.max()), first=int(budgets.min()))
    ax.set_ylim(bottom=0)
    entitle(ax, title, about)
    _legend(ax)
    return ax


def predicted_measured(
    table: pd.DataFrame,
    *,
    quantity: str = "throughput, tokens/s",
    tolerance: float | None = 0.05,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Predicted against measured, a point a run; on the line is right, in the band within tolerance.

    Parameters
    ----------
    table : DataFrame
        predicted and measured; optionally policy (which has its mark and colour) or group (with one of its own), and ends of intervals:
        predicted_low and predicted_high, measured_low and measured_high, NaN where there is none.
    quantity : str
        What it is, with its unit.
    tolerance : float, optional
        Relative half-width of the band.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> table = pd.DataFrame({"predicted": [100.0, 200.0], "measured": [103.0, 196.0], "policy": ["AR", "DDTree(64)"]})
    >>> predicted_measured(table, ax=canvas()).get_xlabel()
    'predicted throughput, tokens/s'
    """
    ax = _axes(ax, (SIZE[0], 4.4))
    x, y = table["predicted"].to_numpy(float), table["measured"].to_numpy(float)
    top = 1.1 * max(float(x.max()), float(y.max()))
    line = np.array([0.0, top])
    if tolerance is not None:
        ax.fill_between(
            line,
            line * (1 - tolerance),
            line * (1 + tolerance),
            color=GREEN,
            alpha=0.15,
            lw=0,
            label=f"± {100 * tolerance:g} %",
        )
    ax.plot(line, line, color=GREY, lw=1, ls=STYLES[1], label="as predicted")
    by = "policy" if "policy" in table else "group"
    kinds = table[by].astype(str).tolist() if by in table else [""] * len(table)
    for i, kind in enumerate(dict.fromkeys(kinds)):
        mine = np.array([k == kind for k in kinds])
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        if by == "policy":
            style = policy_look(kind).mark()
        style |= {"ls": "", "ms": 5.5, "label": _label(kind) if kind else None}
        up, across = _bars(table[mine], "measured"), _bars(table[mine], "predicted")
        if up is not None or across is not None:
            ax.errorbar(x[mine], y[mine], yerr=up, xerr=across, elinewidth=0.8, **style)
        else:
            ax.plot(x[mine], y[mine], **style)
    ax.set_xlabel(f"predicted {quantity}")
    ax.set_ylabel(f"measured {quantity}")
    _dress(ax)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    entitle(ax, title, about)
    if len(ax.get_legend_handles_labels()[1]) > 7:
        _legend_beside(ax)
    else:
        _legend(ax)
    return ax


def _bars(table: pd.DataFrame, side: str) -> FloatArray | None:
    """How far intervals reach below and above, [2, n]; None where the table has none."""
    if not {f"{side}_low", f"{side}_high"} <= set(table):
        return None
    value, low, high = (table[f"{side}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    return np.nan_to_num(np.maximum(0.0, np.stack([value - low, high - value])))


def validation(document: Mapping[str, Any], *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Every policy on every workload as `ddsim validate` found it, with 95 % intervals: a mark and colour a policy.

    Parameters
    ----------
    document : mapping
        What `ddsim validate` wrote.
    title : str, optional
        Written above; below it what was run, where and how, as the document tells.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> speed = {"tokens_per_second": 500.0, "tokens_per_second_low": 450.0, "tokens_per_second_high": 560.0}
    >>> row = {"workload": "chat", "policy": "DDTree(63)", "predicted": speed, "measured": speed}
    >>> document = {"label": "a pair", "provenance": {"device": "a GPU"}, "rows": [row]}
    >>> [text.get_text() for text in validation(document, ax=canvas()).texts]
    ["a pair · a GPU · ddsim's decoder"]
    """
    ax = _axes(ax, (8.2, 5.0))
    cells = [row for row in document["rows"] if row["workload"] != "all"] or document["rows"]
    table = pd.DataFrame(
        {
            "policy": row["policy"],
            **{
                f"{side}{end}": row[side].get(f"tokens_per_second{end}")
                for side in ("predicted", "measured")
                for end in ("", "_low", "_high")
            },
        }
        for row in cells
    )
    made = document["provenance"]
    ran = {"target": document["label"], "device": made.get("device"), "engine": made.get("engine", "ddsim's decoder")}
    line = [told(ran)]
    if made.get("temperature"):
        line.append(f"temperature {made['temperature']:g}")
    numbers = table.astype(dict.fromkeys(table.columns[1:], float))
    return predicted_measured(numbers, title=title, about=" · ".join(line), ax=ax)


def prediction_errors(
    table: pd.DataFrame,
    *,
    tolerance: float | None = 0.05,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How far each prediction lies from its measurement, a row a run: predicted / measured − 1, as ``ddsim validate`` prints it.

    Parameters
    ----------
    table : DataFrame
        label, predicted, measured; optionally measured_low and measured_high. A label that names a policy has its mark and colour.
    tolerance : float, optional
        Relative half-width of the band.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> table = pd.DataFrame({"label": ["AR", "DDTree(64)"], "predicted": [100.0, 200.0], "measured": [103.0, 196.0]})
    >>> prediction_errors(table, ax=canvas()).get_xlabel()
    'predicted / measured − 1, %'
    """
    ax = _axes(ax, (SIZE[0], 0.9 + 0.25 * len(table)))
    predicted = table["predicted"].to_numpy(float)
    off = 100 * (predicted / table["measured"].to_numpy(float) - 1)
    y = np.arange(len(table))
    looks = [policy_look(str(label)) for label in table["label"]]
    reach = float(np.abs(off).max(initial=0.0))
    if tolerance is not None:
        ax.axvspan(-100 * tolerance, 100 * tolerance, color=GREEN, alpha=0.15, lw=0, label=f"± {100 * tolerance:g} %")
        reach = max(reach, 100 * tolerance)
    if {"measured_low", "measured_high"} <= set(table):
        low, high = (100 * (predicted / table[f"measured_{side}"].to_numpy(float) - 1) for side in ("high", "low"))
        ax.hlines(y, low, high, color=[look.colour for look in looks], lw=2.5, alpha=0.6)
        reach = max(reach, float(np.abs(low).max()), float(np.abs(high).max()))
    ax.axvline(0, color=GREY, lw=1)
    for at, row, look in zip(off, y, looks, strict=True):
        ax.plot(at, row, ls="", ms=6.5, **look.mark())
    ax.set_xlabel("predicted / measured − 1, %")
    _dress(ax)
    ax.grid(False, axis="y")
    ax.set_yticks(y, [_label(label) for label in table["label"]])
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(-1.1 * reach, 1.1 * reach)
    ax.set_ylim(len(table) - 0.4, -0.6)
    entitle(ax, title, about)
    return ax


def _dots(ax: Axes, x: FloatArray, y: FloatArray, part: pd.DataFrame, i: int, label: str) -> None:
    """Points with the intervals in columns low and high."""
    bars = np.maximum(0.0, np.stack([y - part["low"].to_numpy(float), part["high"].to_numpy(float) - y]))
    ax.errorbar(x, y, bars, fmt=MARKERS[i], ms=4.5, color=COLOURS[i], elinewidth=1, label=label)


def _named(before: Reliability, after: Reliability | None) -> list[tuple[str, Reliability]]:
    return [("as recorded", before)] + ([] if after is None else [("calibrated", after)])
