"""Figures: one function each. Each takes an Axes (or makes one), draws on it and returns it.

Nothing global changes: no rcParams, no styles. Without ``ax`` a function makes a pyplot figure, which notebooks show by themselves;
programs pass ``ax=canvas()``, which needs no display and leaves nothing behind. Colours are those of Okabe and Ito, told apart with
any colour vision; where it matters markers or line styles differ too. Times are drawn in milliseconds, throughput in tokens per
second.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from . import files
from .calibration import Reliability
from .cost import CostModel
from .errors import DdsimError
from .profiles import Profile
from .replay import said_runs
from .text import printable
from .trace import Trace
from .tree import DraftTree, draft_tree

__all__ = [
    "COLOURS",
    "SUFFIXES",
    "DraftedRound",
    "acceptance_by_budget",
    "budget_distribution",
    "canvas",
    "cost_curve",
    "drafted_round",
    "fixed_budgets",
    "gains",
    "heat_map",
    "policies",
    "predicted_measured",
    "prediction_errors",
    "price_curve",
    "reliability_by_depth",
    "reliability_by_probability",
    "round_throughput",
    "save_figure",
    "serving",
    "tree",
]

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
        raise DdsimError(f"{target}: figures are written as {_or(SUFFIXES)}; choose one of these suffixes")
    # Dates, and names that SVG draws at random, would make equal figures differ.
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ddsim"}):
        _figure(ax).savefig(drawn, format=kind, dpi=200, bbox_inches="tight", metadata=metadata)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DdsimError(f"{target}: can't be written ({error.strerror or error})") from None
    files.write(target, lambda file: file.write(drawn.getbuffer()))
    return target


# --------------------------------------------------------------------------------------------------------------------
# one round
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DraftedRound:
    """One round of a trace: the tree that was drafted, its tokens, and what the target made of it."""

    tree: DraftTree
    tokens: NDArray[np.int32]
    """[n + 1] token of each node; node 0 is the root, the last committed token."""
    texts: list[str]
    """[n + 1] the same as text."""
    accepted: list[int]
    """Nodes on the accepted path, the root first."""
    bonus: str | None
    """Text of the token that the target adds after it; None at the end of a sequence."""


def drafted_round(trace: Trace, position: int = 0, budget: int = 64, sequence: int = 0) -> DraftedRound:
    """The tree of ``budget`` nodes that a round at a position of a trace drafts, and the path that is accepted.

    Parameters
    ----------
    trace : Trace
    position : int
        Of the root in its sequence.
    budget : int
        Nodes without the root.
    sequence : int
        Number of the sequence in the trace.

    Raises
    ------
    DdsimError
        No such sequence or position, no round starts there, or a budget that the trace can't answer.

    Examples
    --------
    >>> logprobs = np.log(np.full((3, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 7], np.full((3, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> r = drafted_round(trace, budget=3)
    >>> r.texts, r.accepted
    (['<5>', '<6>', '<6>', '<7>'], [0, 1])
    """
    trace.check_budget(budget)
    if not 0 <= sequence < len(trace.sequences):
        raise DdsimError(f"sequence {sequence}: the trace has sequences 0 to {len(trace.sequences) - 1}")
    last = trace.sequences[sequence].length - 2
    if not 0 <= position <= last:
        raise DdsimError(f"position {position}: rounds of sequence {sequence} start at positions 0 to {last}")
    block = next(trace.subset([sequence]).blocks())
    rows = block.rows(position)
    drafted = draft_tree([logprobs for _, logprobs in rows], budget)
    tokens = np.array(
        [block.tokens[position]]
        + [rows[d - 1][0][k] for d, k in zip(drafted.depths[1:], drafted.ranks[1:], strict=True)],
        np.int32,
    )
    accepted = [0]
    while True:
        following = position + len(accepted)
        true = block.tokens[following] if following < len(block) else -1
        children = np.flatnonzero((drafted.parents == accepted[-1]) & (tokens == true))
        if not len(children):
            break
        accepted.append(int(children[0]))
    bonus = trace.text([true]) if true >= 0 else None
    return DraftedRound(drafted, tokens, [trace.text([t]) for t in tokens], accepted, bonus)


def tree(
    drafted: DraftTree | DraftedRound,
    texts: Sequence[str] | None = None,
    accepted: Sequence[int] = (),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a draft tree: depth to the right, a row for each branch, tokens on the nodes, the accepted path lit.

    Boxes are the darker the likelier their path; the best continuation of a node stands beside it, others below. Spaces are shown as
    ``·``, line ends as ``⏎``. The letters are sized to fit, and legible up to about 64 nodes on half a page.

    Parameters
    ----------
    drafted : DraftTree or DraftedRound
        A DraftedRound brings texts and accepted path with it.
    texts : sequence of n + 1 str, optional
        Of the nodes, the root's first. Without them nodes are named by their candidate's rank.
    accepted : sequence of int
        Nodes on the accepted path.
    ax : Axes, optional
    """
    bonus = None
    if isinstance(drafted, DraftedRound):
        shape, texts, accepted, bonus = drafted.tree, drafted.texts, drafted.accepted, drafted.bonus
    else:
        shape = drafted
    count = len(shape)
    if texts is not None and len(texts) != count:
        raise DdsimError(f"{len(texts)} texts for a tree of {count} nodes, the root included")
    names = ["root", *(str(k + 1) for k in shape.ranks[1:])] if texts is None else texts
    labels = [_shown(name) for name in names]
    children: list[list[int]] = [[] for _ in range(count)]
    for node in range(1, count):
        children[shape.parents[node]].append(node)
    row = np.zeros(count)
    rows, stack = 0, [0]
    while stack:  # depth first: the first child continues its parent's row, each other opens a new one
        node = stack.pop()
        parent = shape.parents[node]
        if node and node != children[parent][0]:
            rows += 1
        row[node] = rows
        stack.extend(reversed(children[node]))
    depths = shape.depths
    widths = [max(len(labels[i]) for i in np.flatnonzero(depths == d)) for d in range(int(depths.max()) + 1)]
    gap = 2.6  # characters between columns
    left = np.concatenate([[0.0], np.cumsum(np.array(widths) + gap)])
    extent, height = left[-1] - gap, rows + 1

    if ax is None:
        ax = _axes(None, (SIZE[0] if extent > 45 else 1 + 5.3 * extent / 45, 0.6 + 0.128 * height))
    ax.set_axis_off()
    ax.set_xlim(-1.5, extent + 1.5)
    ax.set_ylim(height - 0.3, -1.9)
    _settle(ax)  # the letters are sized by the place that the axes will have
    box = ax.get_window_extent()
    points = 72 / _figure(ax).dpi
    wide, high = box.width * points / (extent + 3), box.height * points / (height + 1.6)
    size = float(np.clip(min(wide / 0.602, high / 1.45), 3.0, 10.0))  # a letter is 0.602 of its size wide
    # A small tree doesn't fill the axes: its boxes fit their letters.
    ax.set_xlim(-1.5, -1.5 + max(extent + 3, box.width * points / (0.602 * size)))
    ax.set_ylim(-1.9 + max(height + 1.6, box.height * points / (1.6 * size)), -1.9)

    probability = np.exp(shape.logprobs)
    lit = {int(i) for i in accepted}
    plain: list[list[tuple[float, float]]] = []
    bold: list[list[tuple[float, float]]] = []
    for node in range(1, count):
        parent = shape.parents[node]
        x0 = left[depths[parent]] + len(labels[parent]) + 0.5
        x1, y0, y1 = left[depths[node]] - 0.5, row[parent], row[node]
        bend = x1 - 0.9
        path = [(x0, y0), (x1, y1)] if y0 == y1 else [(x0, y0), (bend, y0), (bend, y1), (x1, y1)]
        (bold if node in lit and int(parent) in lit else plain).append(path)
    ax.add_collection(LineCollection(plain, colors="#9a9a9a", linewidths=0.09 * size, zorder=1))
    ax.add_collection(LineCollection(bold, colors=VERMILION, linewidths=0.28 * size, zorder=2))
    for node in range(count):
        on = node in lit
        shade = 0.08 + 0.62 * float(probability[node]) ** 0.5
        face = ORANGE if on else _mix(SKY, shade)
        edge = VERMILION if on else "#8aa4b5"
        x, w = left[depths[node]], len(labels[node])
        ax.add_patch(
            FancyBboxPatch(
                (x - 0.5, row[node] - 0.36), w + 1.0, 0.72, boxstyle="round,pad=0,rounding_size=0.3", mutation_aspect=0.5,
                facecolor=face, edgecolor=edge, linewidth=0.14 * size if on else 0.07 * size, zorder=3,
            )
        )  # fmt: skip
        ax.text(
            x + w / 2, row[node], labels[node], family="DejaVu Sans Mono", fontsize=size, ha="center", va="center_baseline",
            color=BLACK, weight="bold" if on else "normal", zorder=4, parse_math=False,
        )  # fmt: skip
    text = f"{count - 1} nodes"
    if lit:
        text += f", {len(lit - {0})} accepted"
        if bonus is not None:
            text += f', then "{_shown(bonus)}" from the target'
    ax.text(
        -0.5, -1.2, text, fontsize=max(size, 7.0), va="center", ha="left", color="#333333", parse_math=False, clip_on=False
    )  # fmt: skip
    return ax


def gains(values: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Gain of each node and what they add up to: 1 + Φ*(n), the expected acceptance length at budget n.

    Parameters
    ----------
    values : [N] or [P, N]
        Gains, descending. Of several positions the mean is drawn, and the middle 80 % of 1 + Φ*.
    ax : Axes, optional

    Examples
    --------
    >>> gains([0.9, 0.5, 0.2], ax=canvas()).get_ylabel()
    '1 + Φ*(n), expected tokens a round'
    """
    rows = np.atleast_2d(np.asarray(values, np.float64))
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DdsimError(f"gains have shape {np.shape(values)}; give [N] or [P, N] with N at least 1")
    n = np.arange(rows.shape[1] + 1)
    phi = 1 + np.pad(np.cumsum(rows, axis=1), ((0, 0), (1, 0)))
    mean = rows.mean(0)
    ax = _axes(ax)
    if len(rows) > 1:
        low, high = np.quantile(phi, [0.1, 0.9], axis=0)
        ax.fill_between(n, low, high, color=BLUE, alpha=0.15, lw=0, label="middle 80 % of positions")
    ax.plot(n, phi.mean(0), color=BLUE, lw=2, label="1 + Φ*(n), left")
    ax.set_ylabel("1 + Φ*(n), expected tokens a round", color=BLUE)
    ax.set_ylim(bottom=0)
    _dress(ax)
    _budget_axis(ax, int(n[-1]))
    right = ax.twinx()
    there = mean > 0
    right.plot(n[1:][there], mean[there], color=VERMILION, lw=1.5, ls=STYLES[1], label="gain g(n), right")
    right.set_yscale("log")
    right.set_ylabel("gain g(n), path probability of node n", color=VERMILION, fontsize=_TEXT)
    right.tick_params(labelsize=_TEXT)
    right.yaxis.set_minor_locator(NullLocator())
    if mean[there].min(initial=1.0) > 0.003 * mean.max():  # powers of ten alone would be too few ticks
        right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    right.spines["top"].set_visible(False)
    handles = [*ax.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    ax.legend(handles=handles, fontsize=_TEXT, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def round_throughput(
    values: ArrayLike, cost: CostModel | ArrayLike, *, context: int | None = None, ax: Axes | None = None
) -> Axes:
    """θ(n) = (1 + Φ*(n)) / C(n), the expected tokens per second of one round over budgets; its best and where greedy stops.

    Parameters
    ----------
    values : [N]
        Gains of the round, descending.
    cost : CostModel, or seconds of a round with 0, 1, …, N nodes
    context : int, optional
        Committed tokens before the root.
    ax : Axes, optional

    Examples
    --------
    >>> ax = round_throughput([0.9, 0.6, 0.1], [1.0, 1.1, 1.2, 2.0], ax=canvas())
    >>> ax.get_ylabel()
    'expected throughput θ(n), tokens/s'
    """
    from .budget import cost_curve as round_seconds
    from .budget import optimal_budget

    row = np.asarray(values, np.float64)
    if row.ndim != 1 or len(row) == 0:
        raise DdsimError(f"gains have shape {row.shape}; give those of one position, [N] with N at least 1")
    exist = int((row > 0).sum())
    seconds = round_seconds(cost, len(row), context)
    best, greedy = (optimal_budget(row, seconds, rule=rule) for rule in ("exhaustive", "greedy"))  # type: ignore[arg-type]
    n = np.arange(exist + 1)
    theta = (1 + np.concatenate([[0.0], np.cumsum(row[:exist])])) / seconds[: exist + 1]
    ax = _axes(ax)
    ax.plot(n, theta, color=BLUE, lw=1.8, drawstyle="default")
    same = best == greedy
    ax.plot(best, theta[best], "o", ms=9, color=GREEN, label=f"best: {best} nodes, {_rate(theta[best])}", zorder=4)
    text = "greedy stop: the same" if same else f"greedy stop: {greedy} nodes, {_rate(theta[greedy])}"
    ax.plot(greedy, theta[greedy], "x", ms=9, mew=2.5, color=VERMILION, label=text, zorder=5)
    ax.set_ylabel("expected throughput θ(n), tokens/s")
    _dress(ax)
    _budget_axis(ax, exist)
    ax.set_ylim(0, theta.max() * 1.12)
    _legend(ax, "lower right")
    return ax


# --------------------------------------------------------------------------------------------------------------------
# cost
# --------------------------------------------------------------------------------------------------------------------


def cost_curve(
    cost: CostModel,
    profile: Profile | None = None,
    *,
    contexts: Sequence[int] | None = None,
    batch: int = 1,
    residuals: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Seconds of a verification pass over its tokens: measured points with error bars, the fit, and below what is left over.

    Parameters
    ----------
    cost : CostModel
    profile : Profile, optional
        What it was fitted on: points and residuals are drawn.
    contexts : sequence of int, optional
        By default at most four of those measured at this batch.
    batch : int
        Requests; tokens are counted over the whole batch.
    residuals : bool
        Draw measured / fit − 1 in a panel below (with a profile only).
    ax : Axes, optional

    Raises
    ------
    DdsimError
        The profile has no points at this batch.

    Examples
    --------
    >>> cost_curve(CostModel.from_table([1, 64], [0.010, 0.012]), ax=canvas()).get_ylabel()
    'verification, ms'
    """
    points = None
    if profile is not None:
        every = profile.points()
        points = every.take(every.batch == batch)
        if not len(points):
            raise DdsimError(f"the profile has no points at batch {batch}; it has batches {_list(every.batch)}")
    spans = token_spans(cost, batch)
    if points is not None:
        spans = {
            c: (int(t.min()), int(t.max()))
            for c in np.unique(points.context).tolist()
            if len(t := points.tokens[points.context == c])
        }
    whole = (min(low for low, _ in spans.values()), max(high for _, high in spans.values()))
    if contexts is None:
        contexts = _spread(np.array(list(spans)), 4)
    ax = _axes(ax, (SIZE[0], SIZE[1] + 0.6))
    below = None
    if residuals and points is not None:
        below = ax.inset_axes((0.0, -0.44, 1.0, 0.38), sharex=ax)
    most = 0.0
    for i, context in enumerate(contexts):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        low, high = spans.get(context, whole)
        label = f"context {context:,}" if cost.range.contexts is not None else "any context"
        if points is not None:
            here = points.take(points.context == context)
            if len(here):
                bars = np.maximum(0.0, np.stack([here.seconds - here.low, here.high - here.seconds]))
                ax.errorbar(
                    here.tokens, 1e3 * here.seconds, 1e3 * bars, fmt=marker, ms=4, color=colour, elinewidth=1, capsize=1.5, label=label
                )  # fmt: skip
                label = "_"
                most = max(most, float(here.seconds.max()))
            if below is not None and len(here):
                fit = np.asarray(cost.verify_seconds(here.tokens, context, batch))
                left = here.seconds / fit - 1
                below.errorbar(
                    here.tokens, 100 * left, 100 * bars / fit,
                    fmt=marker, ms=3.5, color=colour, elinewidth=1,
                )  # fmt: skip
        t = _whole(low, high)
        y = np.asarray(cost.verify_seconds(t, context, batch))
        most = max(most, float(y.max()))
        ax.plot(t, 1e3 * y, color=colour, lw=1.4, label=label)
    ax.plot([], [], color=GREY, lw=1.4, label=f"fit ({cost.kind})")
    ax.set_ylabel("verification, ms")
    _dress(ax)
    ax.set_ylim(0, 1e3 * most * 1.08)
    _legend(ax, "upper left")
    bottom = ax
    if below is not None:
        bottom = below
        _dress(below)
        ax.tick_params(labelbottom=False)
        below.axhline(0, color=GREY, lw=1)
        reach = max(1.0, float(np.abs(below.get_ylim()).max()))
        below.set_ylim(-reach, reach)
        below.set_ylabel("measured\n/ fit − 1, %")
    _token_axis(bottom, *whole)
    bottom.set_xlabel("tokens verified in one pass" + (f", batch of {batch}" if batch > 1 else ""), fontsize=_TEXT)
    if below is not None:
        _settle(ax, 3)
    return ax


# --------------------------------------------------------------------------------------------------------------------
# many rounds
# --------------------------------------------------------------------------------------------------------------------


MOST_RUNS = 4  # runs of budgets that a legend names one by one


def fixed_budgets(
    curve: pd.DataFrame,
    *,
    flat: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    baseline: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Throughput of every fixed budget with its interval, the best one, and the budgets about as good.

    Parameters
    ----------
    curve : DataFrame
        budget, tokens_per_second, and optionally low and high (95 %), as ``Plan.curve()`` gives.
    flat : (first, last) or several, optional
        Runs of budgets within 1 % of the best, as ``Plan.near_best`` gives.
    baseline : float, optional
        Tokens per second without speculation.
    ax : Axes, optional

    Examples
    --------
    >>> curve = pd.DataFrame({"budget": [0, 8, 16], "tokens_per_second": [90.0, 180.0, 170.0]})
    >>> fixed_budgets(curve, flat=(6, 12), baseline=80.0, ax=canvas()).get_ylabel()
    'throughput, tokens/s'
    """
    n, rate = curve["budget"].to_numpy(), curve["tokens_per_second"].to_numpy(float)
    best = int(np.argmax(rate))
    ax = _axes(ax)
    runs = [] if flat is None else [(int(a), int(b)) for a, b in np.reshape(np.asarray(flat), (-1, 2))]
    for k, (first, last) in enumerate(runs):
        words = said_runs(runs) if len(runs) <= MOST_RUNS else f"{len(runs)} runs from {runs[0][0]} to {runs[-1][1]}"
        label = f"within 1 %: {words} nodes" if k == 0 else None
        ax.axvspan(first - 0.3, last + 0.3, color=GREEN, alpha=0.15, lw=0, label=label)
    if {"low", "high"} <= set(curve):
        ax.fill_between(
            n,
            curve["low"].to_numpy(float),
            curve["high"].to_numpy(float),
            color=BLUE,
            alpha=0.2,
            lw=0,
            label="95 % interval",
        )
    ax.plot(n, rate, color=BLUE, lw=1.8)
    ax.plot(n[best], rate[best], "o", ms=8, color=GREEN, label=f"best: {n[best]} nodes, {_rate(rate[best])}", zorder=4)
    if baseline is not None:
        ax.axhline(baseline, color=GREY, lw=1.2, ls=STYLES[1], label=f"autoregressive, {_rate(baseline)}")
    ax.set_ylabel("throughput, tokens/s")
    _dress(ax)
    _budget_axis(ax, int(n.max()))
    ax.set_ylim(bottom=0)
    _legend(ax, "lower right")
    return ax


def policies(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Policies beside each other: throughput with its interval; on the right what it means. Hindsight is the ceiling.

    Parameters
    ----------
    table : DataFrame
        As ``ReplayResult.table()`` gives: policy, tokens_per_second and, where known, its _low and _high, speedup, hindsight_share.
        With a column workload, every workload gets a block of rows.
    ax : Axes, optional

    Examples
    --------
    >>> table = pd.DataFrame({"policy": ["AR", "DDTree(16)"], "tokens_per_second": [90.0, 200.0]})
    >>> policies(table, ax=canvas()).get_xlabel()
    'throughput, tokens/s'
    """
    groups = [("", table)] if "workload" not in table else list(table.groupby("workload", sort=False))
    lines = sum(len(part) + (1 if name else 0) for name, part in groups)
    ax = _axes(ax, (SIZE[0], 0.8 + 0.22 * lines))
    labels: list[str] = []
    bold: list[int] = []
    most = float(table["tokens_per_second"].max())
    if "tokens_per_second_high" in table:
        most = max(most, float(table["tokens_per_second_high"].max()))
    y = 0
    for name, part in groups:
        if name:
            labels.append(_label(name))
            bold.append(y)
            y += 1
        top = y
        for row in part.sort_values("tokens_per_second", ascending=False).to_dict("records"):
            rate = row["tokens_per_second"]
            ceiling = row["policy"] == "Hindsight"
            colour = GREY if ceiling else VERMILION if row["policy"] == "AR" else BLUE
            low, high = row.get("tokens_per_second_low", rate), row.get("tokens_per_second_high", rate)
            ax.plot([low, high], [y, y], color=colour, lw=2.5, alpha=0.6, solid_capstyle="butt")
            ax.plot(rate, y, "|" if ceiling else "o", ms=9 if ceiling else 6, mew=2.5 if ceiling else 1, color=colour)
            facts = []
            if "speedup" in row:
                facts.append(f"{row['speedup']:.2f}×")
            if "hindsight_share" in row and not ceiling:
                facts.append(f"{100 * row['hindsight_share']:.0f} % of hindsight")
            ax.text(most * 1.03, y, ", ".join(facts), va="center", fontsize=_TEXT)
            labels.append(_label(row["policy"]))
            y += 1
        ceilings = part.loc[part["policy"] == "Hindsight", "tokens_per_second"]
        if len(ceilings):
            ax.plot([float(ceilings.iloc[0])] * 2, [top - 0.4, y - 0.6], color=GREY, lw=1, ls=STYLES[1], zorder=0)
    ax.set_ylim(y - 0.4, -0.6)
    ax.set_xlabel("throughput, tokens/s")
    _dress(ax)
    ax.grid(False, axis="y")
    ax.set_yticks(range(y), labels)
    for i in bold:
        ax.get_yticklabels()[i].set_fontweight("bold")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, most * 1.02)
    return ax


def budget_distribution(budgets: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """How often a policy picks which budget: share of its rounds with at most n nodes.

    Parameters
    ----------
    budgets : mapping from a policy's name to int [rounds]
        Negative actions (rounds without a draft, chains) are left out.
    ax : Axes, optional

    Examples
    --------
    >>> budget_distribution({"CaDDTree": [8, 16, 16, 40]}, ax=canvas()).get_ylabel()
    'rounds with at most n nodes'
    """
    ax = _axes(ax)
    last = 1
    for i, (name, values) in enumerate(budgets.items()):
        picked = np.sort(np.asarray(values))
        picked = picked[picked >= 0]
        if not len(picked):
            continue
        last = max(last, int(picked[-1]))
        x, share = np.unique(picked, return_counts=True)
        label = f"{_label(name)}: median {np.median(picked):g}, mean {picked.mean():.0f}"
        ax.step(
            np.concatenate([[0], x, [x[-1]]]), np.concatenate([[0.0], np.cumsum(share) / len(picked), [1.0]]), where="post",
            color=COLOURS[i % len(COLOURS)], ls=STYLES[i % len(STYLES)], lw=1.8, label=label,
        )  # fmt: skip
    ax.set_ylabel("rounds with at most n nodes")
    _dress(ax)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _budget_axis(ax, last)
    ax.set_ylim(0, 1.02)
    _legend(ax, "upper left")
    return ax


def price_curve(
    prices: ArrayLike,
    throughput: ArrayLike,
    *,
    ratio: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Throughput that the budgets of each price λ yield, and the fixed point λ*, where a price equals what it yields.

    Parameters
    ----------
    prices, throughput : float [m]
        Tokens per second, prices ascending.
    ratio : float, optional
        Throughput of the rule that maximises each round's own ratio, drawn beside.
    ax : Axes, optional

    Examples
    --------
    >>> price_curve([100.0, 200.0, 300.0], [220.0, 240.0, 230.0], ratio=235.0, ax=canvas()).get_xlabel()
    'price λ, tokens/s'
    """
    x, y = np.asarray(prices, float), np.asarray(throughput, float)
    ax = _axes(ax)
    ax.plot(x, y, color=BLUE, lw=1.8, label="budgets of price λ")
    if ratio is not None:
        ax.axhline(ratio, color=VERMILION, lw=1.4, ls=STYLES[1], label=f"each round's own ratio: {_rate(ratio)}")
    ax.plot(x, x, color=GREY, lw=1, ls=STYLES[2], label="throughput = price")
    below = np.flatnonzero((y - x)[:-1] * (y - x)[1:] <= 0)
    if len(below):
        i = int(below[0])
        gap = (y - x)[i : i + 2]
        star = float(x[i] + (x[i + 1] - x[i]) * gap[0] / (gap[0] - gap[1])) if gap[0] != gap[1] else float(x[i])
        ax.plot(star, star, "o", ms=8, color=GREEN, label=f"λ* = {_rate(star)}", zorder=4)
    span = max(float(y.max() - y.min()), 0.02 * float(y.max()))
    ax.set_ylim(y.min() - 0.4 * span, max(float(y.max()), ratio or 0.0) + 0.3 * span)
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel("price λ, tokens/s")
    ax.set_ylabel("throughput, tokens/s")
    _dress(ax)
    _legend(ax, "best")
    return ax


def heat_map(
    values: ArrayLike,
    batches: Sequence[int],
    contexts: Sequence[int],
    *,
    label: str,
    form: str = "{:.0f}",
    centre: float | None = None,
    extrapolated: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A number for each batch size and context, as colour and as text.

    Parameters
    ----------
    values : float [batches, contexts]
        NaN where nothing is known.
    batches, contexts : sequences of int
    label : str
        What the numbers are, with their unit.
    form : str
        How a number is written.
    centre : float, optional
        With it colours diverge: blue above, orange below.
    extrapolated : bool [batches, contexts], optional
        Cells that are hatched: their costs weren't measured.
    ax : Axes, optional

    Examples
    --------
    >>> heat_map([[96, 64], [8, 4]], [1, 32], [512, 4096], label="best budget, nodes a request", ax=canvas()).get_xlabel()
    'context, tokens a request'
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    grid = np.asarray(values, float)
    if grid.shape != (len(batches), len(contexts)):
        raise DdsimError(
            f"values have shape {grid.shape}; expected {(len(batches), len(contexts))} (batches, contexts)"
        )
    ax = _axes(ax, (SIZE[0], 1.2 + 0.38 * len(batches)))
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if centre is None:
        colours = LinearSegmentedColormap.from_list("ddsim", ["#ffffff", SKY, BLUE])
    else:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
        colours = LinearSegmentedColormap.from_list("ddsim", [ORANGE, "#ffffff", BLUE])
    image = ax.imshow(
        np.ma.masked_invalid(grid),
        cmap=colours.with_extremes(bad="#dddddd"),
        vmin=low,
        vmax=high if high > low else low + 1,
        aspect="auto",
    )
    for i, j in np.ndindex(*grid.shape):
        if np.isfinite(grid[i, j]):
            dark = float(np.dot(image.to_rgba(grid[i, j])[:3], (0.299, 0.587, 0.114))) < 0.55
            ax.text(
                j,
                i,
                form.format(grid[i, j]).replace("-", "−"),
                ha="center",
                va="center",
                fontsize=_TEXT,
                color="white" if dark else BLACK,
            )
    for i, j in np.argwhere(np.zeros(grid.shape, bool) if extrapolated is None else np.asarray(extrapolated, bool)):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", edgecolor="#00000040", lw=0))
    ax.set_xticks(range(len(contexts)), [f"{c:,}" for c in contexts], fontsize=_TEXT)
    ax.set_yticks(range(len(batches)), [f"{b:,}" for b in batches], fontsize=_TEXT)
    ax.set_xlabel("context, tokens a request", fontsize=_TEXT)
    ax.set_ylabel("batch, requests", fontsize=_TEXT)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = _figure(ax).colorbar(image, ax=ax, pad=0.02)
    bar.set_label(label, fontsize=_TEXT)
    bar.ax.tick_params(labelsize=_TEXT)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return ax


def serving(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Speed-up over autoregressive decoding at the same batch size, a line a policy, with intervals.

    Parameters
    ----------
    table : DataFrame
        As ``ServingResult.table()`` gives: batch, policy, speedup and optionally speedup_low and speedup_high.
    ax : Axes, optional

    Examples
    --------
    >>> table = pd.DataFrame({"batch": [1, 8], "policy": "LongRun", "speedup": [3.2, 2.1]})
    >>> serving(table, ax=canvas()).get_xlabel()
    'batch, requests decoded together'
    """
    ax = _axes(ax)
    batches = sorted(table["batch"].unique().tolist())
    named = list(table.groupby("policy", sort=False))
    for i, (name, part) in enumerate(named):
        part = part.sort_values("batch")
        rate = part["speedup"].to_numpy(float)
        # Side by side, so that intervals at one batch size don't hide each other.
        x = part["batch"].to_numpy(float) * 2 ** (0.07 * (i - (len(named) - 1) / 2))
        colour = GREY if name == "AR" else COLOURS[i % len(COLOURS)]
        style: dict[str, Any] = {"color": colour, "ls": STYLES[i % len(STYLES)], "lw": 1.5, "label": _label(name)}
        bars = None
        if {"speedup_low", "speedup_high"} <= set(part):
            bars = np.stack([rate - part["speedup_low"], part["speedup_high"] - rate]).astype(float)
            bars = np.maximum(0.0, bars)
        ax.errorbar(
            x, rate, bars, marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)], ms=4.5, elinewidth=1, **style
        )
        if part.get("extrapolated", pd.Series(dtype=bool)).any():
            hollow = part["extrapolated"].to_numpy(bool)
            ax.plot(x[hollow], rate[hollow], "o", ms=3, mfc="white", mec=colour, mew=0.5, zorder=4)
    _dress(ax)
    ax.set_xscale("log", base=2)
    ax.set_xticks(batches, [f"{b:,}" for b in batches])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(batches[0] / 1.4, batches[-1] * 1.4)
    ax.set_ylim(bottom=0)
    hollow = bool(table.get("extrapolated", pd.Series(dtype=bool)).any())
    ax.set_xlabel("batch, requests decoded together" + (" (hollow: costs extrapolated)" if hollow else ""))
    ax.set_ylabel("tokens/s, as a multiple of AR's at that batch")
    ax.legend(fontsize=_TEXT, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


# --------------------------------------------------------------------------------------------------------------------
# predictions against outcomes
# --------------------------------------------------------------------------------------------------------------------


def reliability_by_probability(
    before: Reliability, after: Reliability | None = None, *, ax: Axes | None = None
) -> Axes:
    """Reliability diagram of nodes: how often a node was accepted whose path probability was p. On the line is right.

    Parameters
    ----------
    before : Reliability
        From `ddsim.calibration.reliability`.
    after : Reliability, optional
        The same after a calibration.
    ax : Axes, optional
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
    _legend(ax, "upper left")
    return ax


def reliability_by_depth(before: Reliability, after: Reliability | None = None, *, ax: Axes | None = None) -> Axes:
    """How likely the best candidate of each depth was said to be, and how often it was the true token.

    Rows count whose true path so far is in the tree; depths with fewer than 20 such rows are left out.

    Parameters
    ----------
    before : Reliability
    after : Reliability, optional
        The same after a calibration of rows.
    ax : Axes, optional
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
    _legend(ax, "best")
    return ax


def acceptance_by_budget(before: Reliability, after: Reliability | None = None, *, ax: Axes | None = None) -> Axes:
    """Acceptance length over budgets: what trees of that size delivered and what the marginals promised.

    Parameters
    ----------
    before : Reliability
    after : Reliability, optional
        The same after a calibration.
    ax : Axes, optional
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
    _legend(ax, "lower right")
    return ax


def predicted_measured(
    table: pd.DataFrame,
    *,
    quantity: str = "throughput, tokens/s",
    tolerance: float | None = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Predicted against measured, a point a run; on the line is right, in the band within tolerance.

    Parameters
    ----------
    table : DataFrame
        predicted and measured; optionally group (colour and marker), measured_low and measured_high.
    quantity : str
        What it is, with its unit.
    tolerance : float, optional
        Relative half-width of the band.
    ax : Axes, optional

    Examples
    --------
    >>> table = pd.DataFrame({"predicted": [100.0, 200.0], "measured": [103.0, 196.0], "group": ["AR", "DDTree(64)"]})
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
    kinds = table["group"].astype(str).tolist() if "group" in table else [""] * len(table)
    for i, kind in enumerate(dict.fromkeys(kinds)):
        mine = np.array([k == kind for k in kinds])
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "label": _label(kind) if kind else None}
        if {"measured_low", "measured_high"} <= set(table):
            low, high = table["measured_low"].to_numpy(float)[mine], table["measured_high"].to_numpy(float)[mine]
            bars = np.abs(np.stack([y[mine] - low, high - y[mine]]))
            ax.errorbar(x[mine], y[mine], bars, fmt=MARKERS[i % len(MARKERS)], ms=5.5, elinewidth=1, **style)
        else:
            ax.plot(x[mine], y[mine], MARKERS[i % len(MARKERS)], ms=5.5, ls="", **style)
    ax.set_xlabel(f"predicted {quantity}")
    ax.set_ylabel(f"measured {quantity}")
    _dress(ax)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    _legend(ax, "upper left")
    return ax


def prediction_errors(table: pd.DataFrame, *, tolerance: float | None = 0.05, ax: Axes | None = None) -> Axes:
    """How far each prediction lies from its measurement, a row a run: predicted / measured − 1, as ``ddsim validate`` prints it.

    Parameters
    ----------
    table : DataFrame
        label, predicted, measured; optionally measured_low and measured_high.
    tolerance : float, optional
        Relative half-width of the band.
    ax : Axes, optional

    Examples
    --------
    >>> table = pd.DataFrame({"label": ["AR", "DDTree(64)"], "predicted": [100.0, 200.0], "measured": [103.0, 196.0]})
    >>> prediction_errors(table, ax=canvas()).get_xlabel()
    'predicted / measured − 1, %'
    """
    ax = _axes(ax, (SIZE[0], 0.9 + 0.25 * len(table)))
    predicted = table["predicted"].to_numpy(float)
    off = 100 * (predicted / table["measured"].to_numpy(float) - 1)
    y = np.arange(len(table))
    reach = float(np.abs(off).max(initial=0.0))
    if tolerance is not None:
        ax.axvspan(-100 * tolerance, 100 * tolerance, color=GREEN, alpha=0.15, lw=0, label=f"± {100 * tolerance:g} %")
        reach = max(reach, 100 * tolerance)
    if {"measured_low", "measured_high"} <= set(table):
        low, high = (100 * (predicted / table[f"measured_{side}"].to_numpy(float) - 1) for side in ("high", "low"))
        ax.hlines(y, low, high, color=BLUE, lw=2.5, alpha=0.6)
        reach = max(reach, float(np.abs(low).max()), float(np.abs(high).max()))
    ax.axvline(0, color=GREY, lw=1)
    ax.plot(off, y, "o", ms=6, color=BLUE)
    ax.set_xlabel("predicted / measured − 1, %")
    _dress(ax)
    ax.grid(False, axis="y")
    ax.set_yticks(y, [_label(label) for label in table["label"]])
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(-1.1 * reach, 1.1 * reach)
    ax.set_ylim(len(table) - 0.4, -0.6)
    return ax


# --------------------------------------------------------------------------------------------------------------------
# helpers
# --------------------------------------------------------------------------------------------------------------------


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


def _dots(ax: Axes, x: FloatArray, y: FloatArray, part: pd.DataFrame, i: int, label: str) -> None:
    """Points with the intervals in columns low and high."""
    bars = np.maximum(0.0, np.stack([y - part["low"].to_numpy(float), part["high"].to_numpy(float) - y]))
    ax.errorbar(x, y, bars, fmt=MARKERS[i], ms=4.5, color=COLOURS[i], elinewidth=1, label=label)


def _named(before: Reliability, after: Reliability | None) -> list[tuple[str, Reliability]]:
    return [("as recorded", before)] + ([] if after is None else [("calibrated", after)])


def token_spans(cost: CostModel, batch: int) -> dict[int, tuple[int, int]]:
    """First and last token count that a model was fitted on, by context, at a batch (any batch if it isn't among them)."""
    every = cost._surface.curves
    spans = {}
    for c in [c for c in every if c.batch in (batch, None)] or every:
        context = cost.default_context if c.context is None else c.context
        spans[context] = (max(int(np.ceil(c.low)), batch), max(int(c.high), batch))
    return spans


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


def _shown(text: str, most: int = 12) -> str:
    """A token's text on one line, with what can't be seen or drawn made visible."""
    marks = {" ": "·", "\n": "⏎", "\t": "→", "\r": "↵"}
    known = _glyphs()
    text = "".join(marks.get(c, c if c.isprintable() and ord(c) in known else "□") for c in text)
    return (text if len(text) <= most else text[: most - 1] + "…") or "∅"


def _glyphs() -> Mapping[int, int]:
    return cast(Mapping[int, int], get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_charmap())


def _mix(colour: str, share: float) -> tuple[float, float, float]:
    """A colour thinned with white."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return cast(tuple[float, float, float], tuple(1 - share * (1 - c) for c in rgb))


def _rate(value: float) -> str:
    return f"{value:,.0f} tokens/s" if value >= 99.5 else f"{value:.3g} tokens/s"


def _or(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _list(values: NDArray[Any]) -> str:
    return ", ".join(str(v) for v in np.unique(values))
