"""Draws costs: curves, maps over batch and context, serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from ddsim.arrays import spread
from ddsim.cost.fit import held_out_seconds
from ddsim.cost.kinds import KINDS
from ddsim.cost.model import CostModel
from ddsim.cost.profile import Points, Profile
from ddsim.errors import DdsimError
from ddsim.text import distinct
from ddsim.view import titles
from ddsim.view.looks import WINE, policy_look
from ddsim.view.style import (
    _TEXT,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PURPLE,
    SIZE,
    SKY,
    STYLES,
    VERMILION,
    _axes,
    _dress,
    _figure,
    _label,
    _label_right,
    _legend_beside,
    _list,
    _token_axis,
    _whole,
)
from ddsim.view.titles import entitle


def cost_curve(
    cost: CostModel,
    profile: Profile | None = None,
    *,
    contexts: Sequence[int] | None = None,
    batch: int = 1,
    residuals: bool = True,
    beside: Sequence[Profile] | Mapping[str, Profile] = (),
    title: str | None = None,
    about: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Seconds of a verification pass over its tokens: measured points with error bars, the fit, and below errors on held-out points.

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
        Draw, in a panel below (with a profile only), measured / predicted − 1 of points that a fit without their token count predicts.
    beside : profiles, or a mapping of names to profiles, optional
        Of other engines or devices, drawn as measured at the context nearest to the first, and named by engine and device.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`; without ``about`` what the costs' provenance tells.
    ax : Axes, optional

    Raises
    ------
    DdsimError
        A profile has no points at this batch.

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> cost_curve(CostModel.from_table([1, 64], [0.010, 0.012]), ax=canvas()).get_ylabel()
    'verification, ms'
    """
    points, predicted = None, np.zeros(0)
    if profile is not None:
        every = profile.points()
        points = _at_batch(every, batch)
        if residuals and cost.kind in KINDS:
            predicted = held_out_seconds(profile, cost.kind)[every.batch == batch]
    named = _named_profiles(beside, cost.provenance.get("device"))
    others = {name: _at_batch(other.points(), batch) for name, other in named.items()}
    spans = token_spans(cost, batch)
    if points is not None:
        spans = {
            c: (int(t.min()), int(t.max()))
            for c in np.unique(points.context).tolist()
            if len(t := points.tokens[points.context == c])
        }
    whole = (min(low for low, _ in spans.values()), max(high for _, high in spans.values()))
    if contexts is None:
        contexts = spread(list(spans), 4)
        if others:  # one curve each, at a context that all have
            common = set(spans).intersection(*(of.context.tolist() for of in others.values())) or set(spans)
            contexts = [min(sorted(common), key=lambda c: abs(c - cost.default_context))]
    ax = _axes(ax, (SIZE[0], SIZE[1] + 0.6))
    below = None
    if np.isfinite(predicted).any():
        below = ax.inset_axes((0.0, -0.44, 1.0, 0.38), sharex=ax)
    most, reach = 0.0, 1.0
    ends: list[tuple[float, float, str, str]] = []
    for i, context in enumerate(contexts):
        colour, marker = _ramp(i, len(contexts)), MARKERS[i % len(MARKERS)]
        low, high = spans.get(context, whole)
        label = f"context {context:,}" if cost.range.contexts is not None else "any context"
        if points is not None:
            at = points.context == context
            here, other = points.take(at), predicted[at] if below is not None else predicted
            if len(here):
                bars = np.maximum(0.0, np.stack([here.seconds - here.low, here.high - here.seconds]))
                ax.errorbar(
                    here.tokens, 1e3 * here.seconds, 1e3 * bars, fmt=marker, ms=4, color=colour, elinewidth=1, capsize=1.5, label=label
                )  # fmt: skip
                most = max(most, float(here.seconds.max()))
            if below is not None and len(here):
                left, bar = 100 * (here.seconds / other - 1), 100 * bars / other
                known = np.isfinite(left)
                below.errorbar(
                    here.tokens[known], left[known], bar[:, known], fmt=marker, ms=3.5, color=colour, elinewidth=1
                )
                reach = max(reach, float(np.abs(left[known]).max(initial=0.0)))
        t = _whole(low, high)
        y = np.asarray(cost.verify_seconds(t, context, batch))
        most = max(most, float(y.max()))
        ax.plot(t, 1e3 * y, color=colour, lw=1.4, label="_")
        ends.append((float(t[-1]), 1e3 * float(y[-1]), label, colour))
    for i, (name, theirs) in enumerate(others.items()):
        context = min(np.unique(theirs.context).tolist(), key=lambda c: abs(c - contexts[0]))
        theirs = theirs.take(theirs.context == context)
        colour, marker = BESIDE[i % len(BESIDE)], MARKERS[-1 - i % len(MARKERS)]
        bars = 1e3 * np.maximum(0.0, np.stack([theirs.seconds - theirs.low, theirs.high - theirs.seconds]))
        ax.errorbar(
            theirs.tokens, 1e3 * theirs.seconds, bars, color=colour, marker=marker, ms=4, lw=1, elinewidth=1, ls=STYLES[1], label=_label(name)
        )  # fmt: skip
        ends.append(
            (float(theirs.tokens[-1]), 1e3 * float(theirs.seconds[-1]), f"{_label(name)},\ncontext {context:,}", colour)
        )
        most = max(most, float(theirs.high.max()))
        whole = (min(whole[0], int(theirs.tokens.min())), max(whole[1], int(theirs.tokens.max())))
    ax.set_ylabel("verification, ms")
    _dress(ax)
    ax.set_ylim(0, 1e3 * most * 1.08)
    bottom = ax
    if below is not None:
        bottom = below
        _dress(below)
        ax.tick_params(labelbottom=False)
        below.axhline(0, color=GREY, lw=1)
        below.set_ylim(-1.15 * reach, 1.15 * reach)
        below.set_ylabel("held-out\nresidual, %")
    _token_axis(bottom, *whole)
    bottom.set_xlabel("tokens verified in one pass" + (f", batch of {batch}" if batch > 1 else ""), fontsize=_TEXT)
    entitle(ax, title, titles.about(cost.provenance) if about is None else about)
    _label_right(ax, ends)
    return ax


BESIDE = (WINE, VERMILION, GREEN, PURPLE)
"""Colours of further profiles beside one whose contexts are shades of blue."""


def _at_batch(points: Points, batch: int) -> Points:
    found = points.take(points.batch == batch)
    if not len(found):
        raise DdsimError(f"the profile has no points at batch {batch}; it has batches {_list(points.batch)}")
    return found


def _named_profiles(profiles: Sequence[Profile] | Mapping[str, Profile], device: object) -> dict[str, Profile]:
    """Profiles by the names given, or by what they are: their engine, and their device where it is another one."""
    if isinstance(profiles, Mapping):
        return dict(profiles)
    names = []
    for i, profile in enumerate(profiles, start=2):
        other = {key: value for key, value in profile.provenance.items() if key != "target"}
        if other.get("device") == device:
            other.pop("device", None)
        names.append(titles.about(other) or f"profile {i}")
    return dict(zip(distinct(names), profiles, strict=True))


def _ramp(i: int, count: int) -> str:
    """Shades of blue for what has an order, the darkest last."""
    share = 0.4 if count < 2 else i / (count - 1)
    light, dark = (np.array([int(c[k : k + 2], 16) for k in (1, 3, 5)]) for c in (SKY, "#00304D"))
    return "#" + "".join(f"{round(v):02X}" for v in (light + share * (dark - light)))


def heat_map(
    values: ArrayLike,
    batches: Sequence[int],
    contexts: Sequence[int],
    *,
    label: str,
    form: str = "{:.0f}",
    centre: float | None = None,
    extrapolated: ArrayLike | None = None,
    title: str | None = None,
    about: str | None = None,
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
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.view.style import canvas
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
    entitle(ax, title, about)
    return ax


FAR = -20.0
"""Per cent below the best fixed setting at which the axis of `serving` ends: what lies there is said in words."""


def serving(table: pd.DataFrame, *, title: str | None = None, about: str | None = None, ax: Axes | None = None) -> Axes:
    """What policies gain over the best fixed setting at the same batch size, a line a policy, with intervals; and below, how much later tokens come.

    Parameters
    ----------
    table : DataFrame
        As ``ServingResult.table()`` gives: batch, policy, over_fixed, tpot_over_fixed, and optionally these with _low and _high, and extrapolated.
        Policies that stay more than 20 % below are named in the legend only.
    title, about : str, optional
        Written above, see `ddsim.view.titles.entitle`.
    ax : Axes, optional
        Its two panels are ``ax.child_axes``.

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> table = pd.DataFrame({"batch": [1, 8], "policy": "LongRun", "over_fixed": [0.01, 0.08], "tpot_over_fixed": [0.0, -0.05]})
    >>> [panel.get_ylabel() for panel in serving(table, ax=canvas()).child_axes]
    ['tokens/s, %', 'time per token, %']
    """
    ax = _axes(ax, (SIZE[0], SIZE[1] + 0.4))
    ax.set_axis_off()
    upper = ax.inset_axes((0.0, 0.53, 1.0, 0.47))
    below = ax.inset_axes((0.0, 0.0, 1.0, 0.47), sharex=upper)
    batches = sorted(table["batch"].unique().tolist())
    named = [(str(name), part.sort_values("batch")) for name, part in table.groupby("policy", sort=False)]
    near = [(name, part) for name, part in named if not (100 * part["over_fixed"] < FAR).all()]
    near.sort(key=lambda pair: -float(pair[1]["over_fixed"].iloc[-1]))  # the legend in the order of the lines' ends
    ends = {panel: [0.0] for panel in (upper, below)}
    for i, (name, part) in enumerate(near):
        # Side by side, so that intervals at one batch size don't hide each other.
        x = part["batch"].to_numpy(float) * 2 ** (0.05 * (i - (len(near) - 1) / 2))
        look = policy_look(name)
        style: dict[str, Any] = {"ls": look.line, "lw": 1.4, "ms": 4.5, "elinewidth": 0.8, **look.mark()}
        for panel, key in ((upper, "over_fixed"), (below, "tpot_over_fixed")):
            y, bars = 100 * part[key].to_numpy(float), None
            if {f"{key}_low", f"{key}_high"} <= set(part):
                ends[panel] += [v for end in ("_low", "_high") for v in 100 * part[key + end] if np.isfinite(v)]
                bars = np.maximum(
                    0.0, np.stack([y - 100 * part[f"{key}_low"], 100 * part[f"{key}_high"] - y]).astype(float)
                )
            ends[panel] += y.tolist()
            panel.errorbar(x, y, bars, label=_label(name), **style)
            if part.get("extrapolated", pd.Series(dtype=bool)).any():
                hollow = part["extrapolated"].to_numpy(bool)
                panel.plot(x[hollow], y[hollow], "o", ms=2.5, mfc="white", mec=look.colour, mew=0.5, zorder=4)
    for name, part in named:
        if all(name != other for other, _ in near):
            low, high = 100 * part["over_fixed"].min(), 100 * part["over_fixed"].max()
            upper.plot([], [], " ", label=f"{_label(name)}: {low:.0f} to {high:.0f} %".replace("-", "−"))
    for panel, label, far in ((upper, "tokens/s, %", (FAR, np.inf)), (below, "time per token, %", (-np.inf, -FAR))):
        _dress(panel)
        panel.axhline(0, color=GREY, lw=1, zorder=1)
        low, high = max(min(ends[panel]), far[0]), min(max(ends[panel]), far[1])
        room = 0.06 * max(high - low, 1.0)
        panel.set_ylim(low - room, high + room)
        panel.set_ylabel(label, fontsize=_TEXT)
    extrapolated = table.get("extrapolated", pd.Series(dtype=bool)).any()
    upper.set_xscale("log", base=2)
    upper.tick_params(labelbottom=False)
    below.set_xticks(batches, [f"{b:,}" for b in batches])
    below.xaxis.set_minor_locator(NullLocator())
    upper.xaxis.set_minor_locator(NullLocator())
    below.set_xlim(batches[0] / 1.4, batches[-1] * 1.4)
    below.set_xlabel("batch, requests decoded together" + (" (hollow: costs extrapolated)" if extrapolated else ""))
    entitle(ax, title or "Difference to the best fixed setting of each batch", about)
    _legend_beside(upper, bbox_to_anchor=(1.0, -0.06), last=len(named) - len(near))
    return ax


def token_spans(cost: CostModel, batch: int) -> dict[int, tuple[int, int]]:
    """First and last token count that a model was fitted on, by context, at a batch (any batch if it isn't among them)."""
    every = cost._surface.curves
    spans = {}
    for c in [c for c in every if c.batch in (batch, None)] or every:
        context = cost.default_context if c.context is None else c.context
        spans[context] = (max(int(np.ceil(c.low)), batch), max(int(c.high), batch))
    return spans
