"""Draws budgets: gains, throughput, policies, prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike

from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.policy.parse import kind_of
from ddsim.replay.plan_text import said_runs
from ddsim.view.looks import policy_look
from ddsim.view.style import (
    _TEXT,
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    MARKERS,
    SIZE,
    STYLES,
    VERMILION,
    _axes,
    _budget_axis,
    _dress,
    _label,
    _label_right,
    _legend,
    _rate,
    _thin,
)
from ddsim.view.titles import entitle


def gains(values: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Gain of each node and what they add up to: 1 + Φ*(n), the expected acceptance length at budget n.

    Parameters
    ----------
    values : [N] or [P, N]
        Gains, descending. Of several positions the mean is drawn, and the middle 80 % of 1 + Φ*.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
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
    ax.legend(
        handles=handles, fontsize=_TEXT - 0.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2
    )
    return ax


def round_throughput(
    values: ArrayLike,
    cost: CostModel | ArrayLike,
    *,
    context: int | None = None,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """θ(n) = (1 + Φ*(n)) / C(n), the expected tokens per second of one round over budgets; its best and where greedy stops.

    Parameters
    ----------
    values : [N]
        Gains of the round, descending.
    cost : CostModel, or seconds of a round with 0, 1, …, N nodes
    context : int, optional
        Committed tokens before the root.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> ax = round_throughput([0.9, 0.6, 0.1], [1.0, 1.1, 1.2, 2.0], ax=canvas())
    >>> ax.get_ylabel()
    'expected throughput θ(n), tokens/s'
    """
    from ddsim.cost.table import CostTable
    from ddsim.policy.choose import optimal_budget

    row = np.asarray(values, np.float64)
    if row.ndim != 1 or len(row) == 0:
        raise DdsimError(f"gains have shape {row.shape}; give those of one position, [N] with N at least 1")
    exist = int((row > 0).sum())
    seconds = CostTable.of_curve(cost, 1, len(row), context).seconds[0]
    best, greedy = (optimal_budget(row, seconds, rule=rule) for rule in ("exhaustive", "greedy"))  # type: ignore[arg-type]
    n = np.arange(exist + 1)
    theta = (1 + np.concatenate([[0.0], np.cumsum(row[:exist])])) / seconds[: exist + 1]
    ax = _axes(ax)
    ax.plot(n, theta, color=BLUE, lw=1.8, drawstyle="default")
    same = best == greedy
    same = best == greedy
    ax.plot(best, theta[best], "o", ms=9, color=GREEN, label=f"best: {best} nodes, {_rate(theta[best])}", zorder=4)
    text = "greedy stop: the same" if same else f"greedy stop: {greedy} nodes, {_rate(theta[greedy])}"
    ax.plot(greedy, theta[greedy], "x", ms=9, mew=2.5, color=VERMILION, label=text, zorder=5)
    ax.set_ylabel("expected throughput θ(n), tokens/s")
    _dress(ax)
    _budget_axis(ax, exist)
    ax.set_ylim(0, theta.max() * 1.12)
    _legend(ax)
    entitle(ax, title, about)
    return ax


MOST_RUNS = 4  # runs of budgets that a figure names one by one


def fixed_budgets(
    curve: pd.DataFrame,
    *,
    flat: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    baseline: float | None = None,
    policies: pd.DataFrame | None = None,
    buckets: Sequence[int] | None = None,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Throughput of every fixed budget with its interval, the best one, and the budgets about as good; other policies beside it.

    Parameters
    ----------
    curve : DataFrame
        budget, tokens_per_second, and optionally low and high (95 %), as ``Plan.curve()`` gives.
    flat : (first, last) or several, optional
        Runs of budgets within 1 % of the best, as ``Plan.near_best`` gives.
    baseline : float, optional
        Tokens per second without speculation.
    policies : DataFrame, optional
        policy, budget_mean (nodes a round) and tokens_per_second, as ``Plan.table()`` gives: a mark a policy. Fixed trees are on the
        curve already.
    buckets : sequence of int, optional
        Token counts that passes are padded to, as ``CostModel.buckets`` has them: ticks stand where nodes and root fill one.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> curve = pd.DataFrame({"budget": [0, 8, 16], "tokens_per_second": [90.0, 180.0, 170.0]})
    >>> fixed_budgets(curve, flat=(6, 12), baseline=80.0, ax=canvas()).get_ylabel()
    'throughput, tokens/s'
    """
    n, rate = curve["budget"].to_numpy(), curve["tokens_per_second"].to_numpy(float)
    best, last = int(np.argmax(rate)), int(n.max())
    ax = _axes(ax)
    banded = {"low", "high"} <= set(curve) and np.isfinite(curve[["low", "high"]].to_numpy(float)).any()
    beside: list[tuple[float, float, str, str]] = []
    if banded:
        low, high = (curve[end].to_numpy(float) for end in ("low", "high"))
        ax.fill_between(n, low, high, color=BLUE, alpha=0.2, lw=0, label="95 % interval")
    ax.plot(n, rate, color=BLUE, lw=1.8, label="fixed budgets")
    beside.append((float(n[-1]), float(rate[-1]), "fixed budgets" + (", 95 %" if banded else ""), BLUE))
    look = policy_look("BestFixed")
    ax.plot(n[best], rate[best], ms=11, ls="", zorder=4, label="best fixed", **look.mark())  # others may lie on it
    beside.append((float(n[best]), float(rate[best]), f"best: {n[best]} nodes, {_number(rate[best])}", look.colour))
    drawn = [] if policies is None else policies.to_dict("records")
    drawn = [row for row in drawn if not row["policy"].startswith("DDTree(") and row["policy"] != "BestFixed"]
    if baseline is not None:
        own = policy_look("AR")
        ax.axhline(baseline, color=own.colour, lw=1.2, ls=own.line, label="AR")
        if all(row["policy"] != "AR" for row in drawn):
            beside.append((float(last), baseline, f"AR {_number(baseline)}", own.colour))
    for row in drawn:
        own, nodes, speed = policy_look(row["policy"]), float(row["budget_mean"]), float(row["tokens_per_second"])
        ax.plot(nodes, speed, ms=6, ls="", zorder=5, label=_label(row["policy"]), **own.mark())
        beside.append((nodes, speed, f"{_label(row['policy'])} {_number(speed)}", own.colour))
    ax.set_ylabel("throughput, tokens/s")
    _dress(ax)
    _budget_axis(ax, max(last, *(int(row["budget_mean"]) for row in drawn), 1), buckets=buckets)
    ax.set_ylim(0, max(ax.get_ylim()[1], 1.04 * float(rate.max())))
    runs = [] if flat is None else [(int(a), int(b)) for a, b in np.reshape(np.asarray(flat), (-1, 2))]
    for k, (first, end) in enumerate(runs):
        ax.axvspan(first - 0.3, end + 0.3, color=GREEN, alpha=0.15, lw=0, label="within 1 %" if k == 0 else None)
    if runs:
        words = said_runs(runs) if len(runs) <= MOST_RUNS else f"{len(runs)} runs, {runs[0][0]} to {runs[-1][1]}"
        beside.append((float(runs[-1][1]), 0.02 * ax.get_ylim()[1], f"within 1 %:\n{words} nodes", GREEN))
    entitle(ax, title, about)
    _label_right(ax, beside)
    _thin(ax)
    return ax


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def draft_gains(
    table: pd.DataFrame,
    names: tuple[str, str] = ("first", "second"),
    *,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""What the second of two drafts gains over the first, by the size of the tree: a line a workload, with 95 % intervals.

    Parameters
    ----------
    table : DataFrame
        As ``Comparison.table()`` gives: workload, policy, first, second, gain, low, high.
    names : (str, str)
        What the drafts are called.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> row = {"workload": "chat", "policy": "DDTree(8)", "first": 2.0, "second": 2.2, "gain": 0.1, "low": 0.05, "high": 0.15}
    >>> draft_gains(pd.DataFrame([row]), ("marginals", "lattices"), ax=canvas()).get_ylabel().splitlines()
    ['tokens a round:', 'lattices over marginals']
    """
    ax = _axes(ax)
    sizes = list(dict.fromkeys(table["policy"]))  # the chain first, then trees as they grow
    workloads = list(dict.fromkeys(table["workload"]))
    for k, workload in enumerate(workloads):
        own = table[table["workload"] == workload].set_index("policy").loc[sizes]
        at = np.arange(len(sizes)) + 0.06 * (k - (len(workloads) - 1) / 2)
        colour, width = (BLACK, 2.2) if workload == "all" else (COLOURS[k % 6], 1.3)
        marker = "o" if workload == "all" else MARKERS[k % len(MARKERS)]
        away = np.abs(own[["low", "high"]].to_numpy().T - own["gain"].to_numpy())
        first, second = own["first"].iloc[-1], own["second"].iloc[-1]
        label = f"{_label(workload) or 'trace'}: {first:.2f} → {second:.2f}"
        line = ax.errorbar(
            at,
            own["gain"],
            np.nan_to_num(away),
            elinewidth=0.8,
            label=label,
            color=colour,
            lw=width,
            marker=marker,
            ms=4.5,
        )[0]
        if sizes[0] == "DFlash" and len(sizes) > 1:  # a chain is no tree of less than one node
            line.set_data(np.insert(at, 1, np.nan), np.insert(own["gain"].to_numpy(), 1, np.nan))
    ax.axhline(0, color=GREY, lw=1)
    ax.set_xticks(
        range(len(sizes)), [s if (s := p.removeprefix("DDTree(").rstrip(")")) != "DFlash" else "chain" for p in sizes]
    )
    ax.set_xlabel("nodes in the tree", fontsize=_TEXT)
    ax.set_ylabel(f"tokens a round:\n{_label(names[1])} over {_label(names[0])}")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:+.0f} %" if v else "0"))
    _dress(ax)
    place = "in chains" if sizes[-1] == "DFlash" else f"at {sizes[-1][7:-1]} nodes"
    entitle(ax, title, about)
    _legend(ax, 2, title=f"tokens a round {place}")
    return ax


def policies(
    table: pd.DataFrame, *, title: str | None = None, about: str | None = None, ax: Axes | None = None
) -> Axes:
    """Policies beside each other: throughput with its interval; on the right what it means. Hindsight is the ceiling.

    Parameters
    ----------
    table : DataFrame
        As ``ReplayResult.table()`` gives: policy, tokens_per_second and, where known, its _low and _high, speedup, hindsight_share.
        With a column workload, every workload gets a block of rows.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> table = pd.DataFrame({"policy": ["AR", "DDTree(16)"], "tokens_per_second": [90.0, 200.0]})
    >>> policies(table, ax=canvas()).get_xlabel()
    'throughput, tokens/s'
    """
    groups = [("", table)] if "workload" not in table else list(table.groupby("workload", sort=False))
    lines = sum(len(part) + (1 if name else 0) for name, part in groups)
    ax = _axes(ax, (SIZE[0], 0.8 + 0.22 * lines))
    ceilings = {name for name in table["policy"] if kind_of(name).hindsight}
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
            ceiling, look = row["policy"] in ceilings, policy_look(row["policy"])
            low, high = row.get("tokens_per_second_low", rate), row.get("tokens_per_second_high", rate)
            ax.plot([low, high], [y, y], color=look.colour, lw=2.5, alpha=0.6, solid_capstyle="butt")
            ax.plot(rate, y, ms=6.5, ls="", **look.mark())
            facts = []
            if "speedup" in row:
                facts.append(f"{row['speedup']:.2f}×")
            if "hindsight_share" in row and not ceiling:
                facts.append(f"{100 * row['hindsight_share']:.0f} % of hindsight")
            ax.text(most * 1.03, y, ", ".join(facts), va="center", fontsize=_TEXT)
            labels.append(_label(row["policy"]))
            y += 1
        highest = part.loc[part["policy"].isin(ceilings), "tokens_per_second"]
        if len(highest):
            ax.plot([float(highest.iloc[0])] * 2, [top - 0.4, y - 0.6], color=GREY, lw=1, ls=STYLES[1], zorder=0)
    ax.set_ylim(y - 0.4, -0.6)
    ax.set_xlabel("throughput, tokens/s")
    _dress(ax)
    ax.grid(False, axis="y")
    ax.set_yticks(range(y), labels)
    for i in bold:
        ax.get_yticklabels()[i].set_fontweight("bold")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, most * 1.02)
    entitle(ax, title, about)
    return ax


def budget_distribution(
    budgets: Mapping[str, ArrayLike],
    *,
    buckets: Sequence[int] | None = None,
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How often a policy picks which budget: share of its rounds with at most n nodes.

    Parameters
    ----------
    budgets : mapping from a policy's name to int [rounds]
        Negative actions (rounds without a draft, chains) are left out.
    buckets : sequence of int, optional
        Token counts that passes are padded to: ticks stand where nodes and root fill one.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> budget_distribution({"CaDDTree": [8, 16, 16, 40]}, ax=canvas()).get_ylabel()
    'rounds with at most n nodes'
    """
    ax = _axes(ax)
    last = 1
    for name, values in budgets.items():
        picked = np.sort(np.asarray(values))
        picked = picked[picked >= 0]
        if not len(picked):
            continue
        last = max(last, int(picked[-1]))
        x, share = np.unique(picked, return_counts=True)
        label = f"{_label(name)}: median {np.median(picked):g}, mean {picked.mean():.0f}"
        look, shares = policy_look(name), np.cumsum(share) / len(picked)
        ax.step(
            np.concatenate([[0], x, [x[-1]]]), np.concatenate([[0.0], shares, [1.0]]), where="post", ls=look.line, lw=1.8, ms=6,
            markevery=[1 + int(np.searchsorted(shares, 0.5))], label=label, **look.mark(),
        )  # fmt: skip
    ax.set_ylabel("rounds with at most n nodes")
    _dress(ax)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _budget_axis(ax, last, buckets=buckets)
    ax.set_ylim(0, 1.02)
    entitle(ax, title, about)
    _thin(ax)
    _legend(ax, 1)
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
    >>> from ddsim.view.style import canvas
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
    _legend(ax)
    return ax
