"""Two costs: where a pass or a draft takes more time with one than with the other, and whether a plan says the same on both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ddsim.arrays import spread
from ddsim.cost.model import CostModel, fit_cost
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.replay.bootstrap import cost_error
from ddsim.replay.compare_plans import PlanComparison, compare_plans
from ddsim.replay.plan import plan
from ddsim.replay.replay import _records
from ddsim.tables import Column, Shown, Summary, Table, drawn, milliseconds, number, percent
from ddsim.text import listed, printable
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Sizes that are compared where the two weren't measured at the same ones, as far as both answer them."""

SAID = (1, 64, 512)
"""Tokens that the sentence speaks of, or the nearest."""

SHOWN = (1, 16, 64, 128, 256, 512, 1024)
"""Tokens of the rows that are printed, or the nearest."""

USUAL = 512
"""Committed tokens that the sentence speaks of, or the nearest."""

SAME = 0.005
"""Relative difference in time that the sentence calls none."""

Measured = dict[tuple[int, int, int], tuple[float, float]]
"""Seconds, and their relative standard error, by tokens (0: the draft of a round), context and batch."""


@dataclass(frozen=True, eq=False, repr=False)
class CostComparison(Shown):
    """What the second of two costs takes, beside the first; made by `compare`.

    Attributes
    ----------
    sentence : str
        Whether a plan says the same on both, if there is a recording to plan for; otherwise where the second takes more time, or less.
    details : tuple of str
        The other of the two, and where they differ most.
    names : (str, str)
        What the two are called.
    measured : bool
        Whether times are medians of sizes that both measured, with intervals of their repeats; otherwise they are those of fitted
        curves, with intervals of their errors on points left out of the fit.
    plans : PlanComparison or None
        What a plan says on each.
    """

    sentence: str
    details: tuple[str, ...]
    names: tuple[str, str]
    measured: bool
    plans: PlanComparison | None
    _rows: pd.DataFrame

    def summary(self) -> Summary:
        """What is printed: the answer, times of the usual passes, and by how much passes differ by tokens and context."""
        here = usual(self._rows)
        keep = sorted({min(here["tokens"], key=lambda n, t=t: (abs(np.log2(n / t)), n)) for t in SHOWN})  # type: ignore[misc]
        names = [printable(name, 16) for name in self.names]
        columns: list[Column] = [
            ("tokens", "tokens", number(0)), ("first", f"{names[0]}\nms", milliseconds), ("second", f"{names[1]}\nms", milliseconds),
            ("difference", "differ-\nence", percent), ("low", "from", percent), ("high", "to", percent),
        ]  # fmt: skip
        place = f"context {int(here['context'].iloc[0]):,}, batch {int(here['batch'].iloc[0])}"
        tables = [Table.of(here[here["tokens"].isin(keep)], columns, f"Passes at {place} (95 % interval)")]
        passes = self._rows[(self._rows["what"] == "verify") & (self._rows["batch"] == here["batch"].iloc[0])]
        contexts = sorted(passes["context"].unique())
        if len(contexts) > 1:
            wide = passes.pivot(index="tokens", columns="context", values="difference")
            rows = wide[wide.index.isin(keep)].reset_index()
            across: list[Column] = [
                ("tokens", "tokens", number(0)),
                *((c, f"{c:,}", percent) for c in spread(contexts, 5)),
            ]
            tables.append(Table.of(rows, across, "Differences by context"))
        return Summary(self.sentence, self.details, tables)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the differences by tokens, a curve a context: `ddsim.plot.cost_differences`."""
        return drawn("cost_differences", self.table(), self.names, ax=ax)

    def table(self) -> pd.DataFrame:
        """Times of both.

        Returns
        -------
        pandas.DataFrame
            what ("verify", or "draft": a round's draft), tokens (of the pass, all requests together; 0 of a draft), context, batch, first,
            second (seconds), difference (second / first - 1), low, high (95 % interval of it; NaN where nothing is known of the errors).
        """
        return self._rows.copy()

    def to_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values."""
        return {
            "schema_version": 1, "kind": "ddsim-cost-comparison", "sentence": self.sentence, "details": list(self.details),
            "names": list(self.names), "measured": self.measured, "differences": _records(self._rows),
            "plans": None if self.plans is None else self.plans.to_json(),
        }  # fmt: skip


def compare_costs(
    first: Profile | CostModel,
    second: Profile | CostModel,
    *,
    names: tuple[str, str] = ("the first", "the second"),
    trace: Trace | None = None,
    kind: str = "auto",
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> CostComparison:
    """Compare what passes and drafts take: by tokens, context and batch, and by what a plan for a recording says on each.

    Parameters
    ----------
    first, second : Profile or CostModel
        Profiles with sizes in common are compared as measured, everything else as fitted.
    names : (str, str)
        What to call them.
    trace : Trace, optional
        What to plan for.
    kind : str
        Of the cost models, as `fit_cost` takes it.
    bootstrap, seed, progress
        Of the plans.

    Raises
    ------
    DdsimError
        They have no number of tokens in common.

    Examples
    --------
    >>> slow = CostModel.from_table([1, 64, 512], [0.010, 0.012, 0.030])
    >>> print(compare_costs(slow, CostModel.from_table([1, 512], [0.008, 0.008])).sentence)
    Verifying takes 20.0 % less time with the second than with the first at 1 token, 33.3 % less at 64 and 73.3 % less at 512.
    """
    pair = first, second
    measured = all(isinstance(side, Profile) for side in pair)
    if measured:
        sides = [_measured(side, seed) for side in pair if isinstance(side, Profile)]
        shared = sorted(sides[0].keys() & sides[1].keys())
        measured = len({tokens for tokens, _, _ in shared if tokens}) > 1
    models: list[CostModel] = []
    if not measured or trace is not None:
        models = [side if isinstance(side, CostModel) else fit_cost(side, kind, seed=seed) for side in pair]
    if not measured:
        shared = _grid(*models)
        sides = [{at: _fitted(model, *at) for at in shared} for model in models]
    if not any(tokens for tokens, _, _ in shared):
        raise DdsimError("compare: the costs have no number of tokens in common; measure both at the same sizes")
    rows = pd.DataFrame([_row(at, sides[0][at], sides[1][at]) for at in shared])
    said = [_said(rows, names), *_most(rows, names)]
    of = [side.provenance.get("seconds") for side in pair]
    if of[0] != of[1]:  # whole steps beside passes
        said += [
            f"Times of {name} are {seconds}."
            for name, seconds in zip(names, of, strict=True)
            if isinstance(seconds, str)
        ]
    plans = None
    if trace is not None:
        answers = [plan(trace, model, bootstrap=bootstrap, seed=seed, progress=progress).to_json() for model in models]
        plans = compare_plans(answers[0], answers[1], names=names)
        said = [plans.sentence, *plans.notes, *said]
    return CostComparison(said[0], tuple(said[1:]), names, measured, plans, rows)


def _measured(profile: Profile, seed: int) -> Measured:
    points = profile.points(seed)
    at = zip(points.tokens.tolist(), points.context.tolist(), points.batch.tolist(), strict=True)
    errors = np.where(points.repeats > 1, points.error / points.seconds, np.nan)
    found: Measured = dict(zip(at, zip(points.seconds.tolist(), errors.tolist(), strict=True), strict=True))
    drafts: dict[tuple[int, int], list[float]] = {}
    for sample in profile.draft:
        drafts.setdefault((sample.context, sample.batch), []).extend(sample.seconds)
    return found | {(0, *where): (float(np.median(seconds)), np.nan) for where, seconds in drafts.items()}


def _fitted(model: CostModel, tokens: int, context: int, batch: int) -> tuple[float, float]:
    if tokens == 0:
        return float(model.draft_seconds(batch, context=context)), np.nan
    return float(model.verify_seconds(tokens, context, batch)), cost_error(model) or np.nan


def _grid(first: CostModel, second: CostModel) -> list[tuple[int, int, int]]:
    """What both answer: sizes, contexts and batches that lie within the ranges of both."""
    ranges = first.range, second.range
    low, high = max(r.tokens[0] for r in ranges), min(r.tokens[1] for r in ranges)
    found = []
    for context in _common(
        [r.contexts for r in ranges], (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768), USUAL
    ):
        for batch in _common([r.batches for r in ranges], (1, 2, 4, 8, 16, 32, 64), 1):
            sizes = [n for n in TOKENS if max(low, batch) <= n <= high]
            known = [n for n in sizes if not any(model.extrapolated(n, context, batch) for model in (first, second))]
            found += [(n, context, batch) for n in known] + [(0, context, batch)] * bool(known)
    return found


def _common(spans: list[tuple[int, int] | None], grid: tuple[int, ...], usual: int) -> list[int]:
    """Values of a grid, and ends of spans, that lie within all spans; one usual value where there are none."""
    known = [span for span in spans if span is not None]
    if not known:
        return [usual]
    low, high = max(span[0] for span in known), min(span[1] for span in known)
    return sorted({v for v in (*grid, low, high) if low <= v <= high}) or [low]


def _row(at: tuple[int, int, int], first: tuple[float, float], second: tuple[float, float]) -> dict[str, Any]:
    ratio = second[0] / first[0] if first[0] > 0 else np.nan
    spread = np.exp(1.96 * np.hypot(np.nan_to_num(first[1]), np.nan_to_num(second[1])))
    known = bool(np.isfinite([first[1], second[1]]).any())
    return {
        "what": "verify" if at[0] else "draft", "tokens": at[0], "context": at[1], "batch": at[2], "first": first[0], "second": second[0],
        "difference": ratio - 1, "low": ratio / spread - 1 if known else np.nan, "high": ratio * spread - 1 if known else np.nan,
    }  # fmt: skip


def usual(rows: pd.DataFrame) -> pd.DataFrame:
    """Passes at the usual context, or the nearest, and the smallest batch."""
    passes = rows[rows["what"] == "verify"]
    context = min(passes["context"].unique(), key=lambda c: (abs(int(c) - USUAL), c))
    here = passes[passes["context"] == context]
    return here[here["batch"] == here["batch"].min()]


def _said(rows: pd.DataFrame, names: tuple[str, str]) -> str:
    here = usual(rows).set_index("tokens")
    wanted = dict.fromkeys(min(here.index, key=lambda n, t=t: abs(np.log2(n / t))) for t in SAID)  # type: ignore[misc]
    parts = []
    for n, tokens in enumerate(wanted):
        row = here.loc[tokens]
        way = "more" if row["difference"] > 0 else "less"
        about = abs(row["difference"]) < SAME or row["low"] <= 0 <= row["high"]
        amount = "as long" if about else f"{100 * abs(row['difference']):.1f} % {way}"
        place = f"at {tokens:,}"
        if n == 0:
            amount += f" with {names[1]} as with {names[0]}" if about else f" time with {names[1]} than with {names[0]}"
            place += f" token{'s' * (tokens > 1)}"
        parts.append(f"{amount} {place}")
    where = [f"{name} {int(here[name].iloc[0]):,}" for name in ("context", "batch") if rows[name].nunique() > 1]
    beside = f" ({', '.join(where)})" if where else ""
    return f"Verifying takes {listed(parts)}{beside}."


def _most(rows: pd.DataFrame, names: tuple[str, str]) -> Iterator[str]:
    """Where passes differ most, and by how much drafts do."""
    passes = rows[rows["what"] == "verify"]
    top = passes.iloc[int(np.argmax(passes["difference"].abs()))]
    if abs(top["difference"]) >= SAME and len(passes) > len(usual(rows)):
        yield (
            f"They differ most at {int(top['tokens']):,} tokens, context {int(top['context']):,}"
            + (f", batch {int(top['batch'])}" if rows["batch"].nunique() > 1 else "")
            + f": {1e3 * top['first']:.2f} ms with {names[0]}, {1e3 * top['second']:.2f} with {names[1]}."
        )
    drafts = rows[(rows["what"] == "draft") & (rows["first"] > 0) & (rows["second"] > 0)]
    if len(drafts):
        mean = float(np.exp(np.log(drafts["second"] / drafts["first"]).mean()) - 1)
        how = "as long" if abs(mean) < SAME else f"{100 * abs(mean):.1f} % {'more' if mean > 0 else 'less'} time"
        yield f"A draft takes {how} with {names[1]}{' as' if abs(mean) < SAME else ' than'} with {names[0]}."
