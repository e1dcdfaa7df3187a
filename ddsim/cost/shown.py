"""What profiles and cost models print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ddsim.arrays import spread
from ddsim.cost.ranges import span_text
from ddsim.tables import Column, Shown, Summary, Table, drawn, milliseconds, public
from ddsim.text import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ddsim.cost.model import CostModel

SHOWN = 64
"""Tokens of a pass that a sentence speaks of, beside the fewest and the most."""

TOKENS, CONTEXTS = 8, 4
"""Most token counts and contexts that a cost model's table has."""


class ShownProfile(Shown):
    """How a profile is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: of which device and model, and what was measured, in a line."""
        tokens, contexts, batches = ({getattr(s, name) for s in self.verify} for name in ("tokens", "context", "batch"))
        said = f"Profile{measured_on(self.provenance)}: {len(self.verify):,} points of {_span(tokens)} tokens"
        said += f", {_word('context', contexts)} {_span(contexts)}, {_word('batch', batches)} {_span(batches)}"
        beside = [
            what
            for what, there in (("drafting", self.draft), ("host work", self.host), ("prefill", self.prefill))
            if there
        ]
        return Summary(f"{said}{'; with ' if beside else ''}{', '.join(beside)}.")

    def plot(self: Any, *, kind: str = "auto", batch: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw the measured points and a fit of them, with what is left over: `ddsim.plot.cost_curve`.

        Parameters
        ----------
        kind : str
            Of the fit, as in `ddsim.fit_cost`.
        batch : int, optional
            Requests; default the fewest that were measured.
        ax : Axes, optional
        """
        least = min(s.batch for s in self.verify) if batch is None else batch
        return drawn("cost_curve", public("fit_cost")(self, kind), self, batch=least, ax=ax)


class ShownCost(Shown):
    """How a cost model is shown."""

    @property
    def sentence(self: Any) -> str:
        """How well the fit predicts what it hasn't seen, and what passes take."""
        mine = self.report.kinds.get(self.kind)
        said = f"Cost model '{self.kind}'"
        if mine is not None and mine.points:
            said += f" predicts what it hasn't seen to {100 * mine.score:.1f} % on average ({100 * mine.worst:.1f} % at worst)"
        low, high = (int(end) for end in self.range.tokens)
        batch = _fewest(self)
        sizes = sorted({n for n in (max(low, batch), SHOWN, high) if max(low, batch) <= n <= high})
        context = self.default_context if self.range.contexts else 0
        seconds = self._surface.seconds(
            np.array(sizes, float), np.full(len(sizes), float(context)), np.full(len(sizes), float(batch))
        )[0]
        passes = [f"{n:,} {milliseconds(s)} ms" for n, s in zip(sizes, np.ravel(seconds).tolist(), strict=True)]
        passes[0] = passes[0].replace(" ", f" token{'s' * (sizes[0] != 1)} take{'s' * (sizes[0] == 1)} ", 1)
        return f"{said}: {listed(passes)}{f' at a context of {context:,}' if self.range.contexts else ''}."

    @property
    def details(self: Any) -> list[str]:
        """What else is to be known of it, a sentence each: why this kind, its range, and what limits it."""
        parts, remarks = self._conditions()
        chosen = f"kind '{self.kind}': {self.report.reason}"
        return [f"{part[0].upper()}{part[1:]}." for part in (chosen, *parts)] + remarks

    def summary(self: Any) -> Summary:
        """What is printed: kind, range and error, and milliseconds of passes by tokens and context."""
        mine = self.report.kinds.get(self.kind)
        said = f"Cost model '{self.kind}'{measured_on(self.provenance)}: {self.range}"
        if mine is not None and mine.points:
            said += f"; held-out error {100 * mine.median:.1f} % median, {100 * mine.worst:.1f} % worst"
        return Summary(f"{said}.", tables=[_passes(self)])

    def plot(self: Any, profile: Any = None, *, batch: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw seconds of a pass over its tokens: `ddsim.plot.cost_curve`.

        Parameters
        ----------
        profile : Profile, optional
            What it was fitted on: its points are drawn too, with what is left over.
        batch : int, optional
            Requests; default the fewest that were measured.
        ax : Axes, optional
        """
        return drawn("cost_curve", self, profile, batch=_fewest(self) if batch is None else batch, ax=ax)


def measured_on(provenance: Mapping[str, Any]) -> str:
    """What a profile is of, after a noun: the target, the engine and the device, as far as they are known."""
    target, engine, device = (provenance.get(key) for key in ("target", "engine", "device"))
    said = f" of {target}" if target else ""
    said += f" in {engine}" if engine else ""
    return said + (f" on {device}" if device else "")


def _passes(cost: CostModel) -> Table:
    """Milliseconds of verification passes, and of drafting and host work beside them, at a few counts and contexts within what was measured.

    Not by `CostModel.verify_seconds`, whose one warning of an extrapolation is for those who asked.
    """
    low, high = (int(end) for end in cost.range.tokens)
    batch = _fewest(cost)
    first = max(low, batch)
    sizes = spread([n for n in cost.buckets or _powers(first, high) if first <= n <= high], TOKENS)
    measured = cost.range.contexts
    contexts = spread(_powers(max(measured[0], 1), measured[1]), CONTEXTS) if measured else [0]
    columns: list[Column] = [
        ("tokens", "tokens", str),
        *((c, f"context {c:,}" if measured else "any context", milliseconds) for c in contexts),
    ]
    passes = cost._surface.seconds(
        *np.broadcast_arrays(np.array(sizes, float)[:, None], np.array(contexts, float), float(batch))
    )[0]
    rows: list[dict[Any, Any]] = [
        {"tokens": f"{n:,}", **dict(zip(contexts, row, strict=True))}
        for n, row in zip(sizes, passes.tolist(), strict=True)
    ]
    beside = [
        sum(float(times.seconds(np.array(float(c)), np.array(float(batch)))[0]) for times in cost._round)
        for c in contexts
    ]
    if any(beside):  # whole steps of an engine have them in their seconds
        rows.append({"tokens": "draft, host", **dict(zip(contexts, beside, strict=True))})
    return Table.of(rows, columns, "Milliseconds of a pass" + (f" of {batch} requests" if batch > 1 else ""))


def _fewest(cost: CostModel) -> int:
    return int(cost.range.batches[0]) if cost.range.batches else 1


def _powers(low: int, high: int) -> list[int]:
    """Both ends and the powers of two between them."""
    between = [2**k for k in range(math.ceil(math.log2(low)), int(math.log2(high)) + 1)]
    return sorted({low, *between, high})


def _span(values: Iterable[int]) -> str:
    every = list(values)
    return span_text((min(every), max(every)))


def _word(noun: str, values: set[int]) -> str:
    return noun if len(values) == 1 else f"{noun}{'es' if noun.endswith('h') else 's'}"
