"""Two plans: what they recommend and promise, where they differ, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ddsim.errors import DdsimError
from ddsim.replay.bootstrap import ENOUGH, percent, sure
from ddsim.replay.plan import KIND, Plan
from ddsim.replay.plan_text import said_runs
from ddsim.replay.replay import _records
from ddsim.replay.shown import beside, warned
from ddsim.tables import Shown, Summary, drawn
from ddsim.text import between, brief, listed, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEAR = 0.01
"""Loss in tokens a second below which another plan's budget is as good."""


@dataclass(frozen=True, eq=False, repr=False)
class PlanComparison(Shown):
    """What two plans recommend; made by `compare`.

    Attributes
    ----------
    sentence : str
        Whether they say the same, and what each recommends.
    notes : tuple of str
        Why they differ: recording, costs, and what each budget would lose in the other's place.
    names : (str, str)
        What the two are called.
    same : bool
        Whether each one's recommendation is within 1 % of the best in the other's place.
    speed : (float, float, float)
        Tokens a second of the second over the first, less 1, with its 95 % interval, as if the two had no prompts in common.
    curves : (DataFrame, DataFrame)
        Fixed budgets of each, as `Plan.curve`.
    """

    sentence: str
    notes: tuple[str, ...]
    names: tuple[str, str]
    same: bool
    speed: tuple[float, float, float]
    curves: tuple[pd.DataFrame, pd.DataFrame]
    _rows: pd.DataFrame

    def summary(self) -> Summary:
        """What is printed: the sentence, the notes, and the table."""
        return Summary(self.sentence, self.notes, [beside(self._rows, self.names)])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the throughput of fixed budgets of both: `ddsim.plot.plan_curves`."""
        return drawn(
            "plan_curves", dict(zip(self.names, self.curves, strict=True)), title=self.sentence.split("; ")[0], ax=ax
        )

    def table(self) -> pd.DataFrame:
        """One quantity a row: what, first, second; numbers as text, with their 95 % intervals."""
        return self._rows.copy()

    def to_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values."""
        return {
            "schema_version": 1, "kind": "ddsim-plan-comparison", "sentence": self.sentence, "notes": list(self.notes),
            "names": list(self.names), "same": self.same,
            "speed": {
                k: v if np.isfinite(v) else None for k, v in zip(("difference", "low", "high"), self.speed, strict=True)
            },
            "table": _records(self._rows),
        }  # fmt: skip


def compare_plans(
    first: Plan | Mapping[str, Any],
    second: Plan | Mapping[str, Any],
    *,
    names: tuple[str, str] = ("the first", "the second"),
) -> PlanComparison:
    """Compare two plans, or the documents that ``ddsim plan --json`` writes of them.

    Raises
    ------
    DdsimError
        A document is no whole plan.
    """
    pair = [side.to_json() if isinstance(side, Plan) else dict(side) for side in (first, second)]
    for name, side in zip(names, pair, strict=True):
        if side.get("kind") != KIND:
            raise DdsimError(
                f'{name}: is no plan (its "kind" is {brief(side.get("kind"))}); write one with ddsim plan --json'
            )
    found = []
    for name, side in zip(names, pair, strict=True):
        try:
            found.append(_Told(side))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise DdsimError(
                f"{name}: something is missing or damaged ({error}); write it again with ddsim plan --json"
            ) from None
    a, b = found
    losses = a.loss_of(b), b.loss_of(a)  # of the other's budget, at one's own costs and texts
    alike = a.choice == b.choice or all(loss is not None and loss <= NEAR for loss in losses)
    if a.choice == b.choice:
        head = f"The same answer from both, {a.said}"
    elif alike:
        head = f"The same answer within {100 * NEAR:g} %: {a.said} from {names[0]}, {b.said} from {names[1]}"
    else:
        head = f"Different answers: {a.said} from {names[0]}, {b.said} from {names[1]}"
    speed = _ratio(a.speed, b.speed)
    sentence = f"{head}; {names[1]} gives {b.speed[0]:,.0f} tokens/s where {names[0]} gives {a.speed[0]:,.0f}: {percent(speed)}."
    notes = [*warned(min(a.prompts, b.prompts)), *_why(a, b, names), *_crossed(a, b, losses, names)]
    rows = pd.DataFrame(
        [
            {"what": "recommended", "first": a.choice, "second": b.choice},
            {"what": "best nodes", "first": str(a.best), "second": str(b.best)},
            {"what": "within 1 %", "first": a.near, "second": b.near},
            {"what": "tokens/s", "first": _rate(a.speed), "second": _rate(b.speed)},
            *(
                {"what": f"over {over}", "first": _short(gain), "second": _short(b.gains[over])}
                for over, gain in a.gains.items()
                if over in b.gains
            ),
        ]
    )
    return PlanComparison(sentence, tuple(notes), names, alike, speed, (a.curve, b.curve), rows)


class _Told:
    """What a plan's document says."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.choice, self.best = str(document["choice"]), int(document["best_budget"])
        self.budget = int(document.get("budget") or self.best)
        near = [(int(a), int(b)) for a, b in document.get("near_best") or [document["flat"]]]
        self.near = said_runs(near)
        judged = document["judged"]
        self.speed = _interval(judged, "tokens_per_second", "tokens_per_second_low", "tokens_per_second_high")
        self.gains = {str(row["over"]): _interval(row, "gain", "low", "high") for row in document["gains"]}
        self.prompts = int(document.get("prompts", ENOUGH))
        self.speed = sure(self.speed, self.prompts)
        self.gains = {over: sure(gain, self.prompts) for over, gain in self.gains.items()}
        self.curve = pd.DataFrame(list(document["curve"]))
        budgets, rates, lengths = (
            self.curve[name].astype(float).tolist() for name in ("budget", "tokens_per_second", "acceptance_length")
        )
        self.rates, self.lengths = dict(zip(budgets, rates, strict=True)), dict(zip(budgets, lengths, strict=True))
        whole = all(0 < value < np.inf for value in (*rates, *lengths))
        if not whole or self.best not in self.rates or self.budget not in self.rates:
            raise ValueError("its curve of fixed budgets")
        self.fixed = self.choice == f"DDTree({self.budget})"
        self.said = f"trees of {self.budget} nodes" if self.fixed else self.choice
        provenance = document["replay"]["provenance"]
        self.trace = str(provenance["trace"]["fingerprint"])
        self.cost = dict(provenance["cost"])
        self.costs = dict(self.cost["provenance"])

    def step(self, few: int, many: int) -> tuple[float, float]:
        """By how much, relative, a round commits more tokens and takes longer with many nodes than with few."""
        seconds = [self.lengths[n] / self.rates[n] for n in (few, many)]
        return self.lengths[many] / self.lengths[few] - 1, seconds[1] / seconds[0] - 1

    def loss_of(self, other: _Told) -> float | None:
        """What the other's budget loses here against the best; None if it isn't known, or no budget is recommended."""
        if not (self.fixed and other.fixed) or other.budget not in self.rates:
            return None
        return 1 - self.rates[other.budget] / self.rates[self.best]


def _interval(row: Mapping[str, Any], value: str, low: str, high: str) -> tuple[float, float, float]:
    numbers = [np.nan if row.get(key) is None else float(row[key]) for key in (value, low, high)]
    if not np.isfinite(numbers[0]):
        raise ValueError(f"{value} must be a number")
    return numbers[0], numbers[1], numbers[2]


def _ratio(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float, float]:
    """Second over first, less 1; the errors of their logarithms add up in squares."""
    ratio = second[0] / first[0]
    spreads = [np.log(high / low) / 2 if 0 < low <= high else np.nan for _, low, high in (first, second)]
    spread = float(np.exp(np.hypot(spreads[0], spreads[1])))
    return ratio - 1, ratio / spread - 1, ratio * spread - 1


def _rate(speed: tuple[float, float, float]) -> str:
    return f"{speed[0]:,.0f}" + (f" ({speed[1]:,.0f} to {speed[2]:,.0f})" if np.isfinite(speed[1]) else "")


def _short(gain: tuple[float, float, float]) -> str:
    """A gain that fits a cell."""
    digits = 0 if abs(gain[0]) >= 0.1 else 1
    ends = between(gain[1], gain[2], lambda v: signed(v, digits, ""))
    return signed(gain[0], digits) + (f" ({ends})" if ends else "")


def _why(a: _Told, b: _Told, names: tuple[str, str]) -> list[str]:
    """What the two rest on, where that differs."""
    if a.trace != b.trace and a.cost != b.cost:
        return ["They rest on different recordings and different costs, so neither alone explains the difference."]
    if a.trace != b.trace:
        return ["They rest on the same costs and different recordings: other texts, or another draft."]
    if a.cost == b.cost:
        return ["They rest on the same recording and the same costs."]
    told = a.costs, b.costs
    pairs = {
        key: (told[0].get(key), told[1].get(key)) for key in ("target", "device", "engine", "dtype", "source", "file")
    }
    parts = [
        f"{key} {brief(x)} and {brief(y)}"
        for key, (x, y) in pairs.items()
        if x != y and x is not None and y is not None
    ]
    parts += [
        f"engine {brief(of['engine'])} of {name}"
        for of, name, other in zip(told, names, told[::-1], strict=True)
        if of.get("engine") is not None and other.get("engine") is None
    ]
    beside = f" ({'; '.join(parts)})" if parts else ""
    return [f"They rest on the same recording and different costs{beside}."]


def _longer(share: float) -> str:
    """How much longer a round takes."""
    amount = f"{100 * abs(share):.1f}"
    return "as long" if amount == "0.0" else f"{amount} % {'longer' if share > 0 else 'less'}"


def _crossed(a: _Told, b: _Told, losses: tuple[float | None, float | None], names: tuple[str, str]) -> list[str]:
    """What each budget would lose in the other's place, and what a round pays, and gets, for the larger of the two."""
    if a.choice == b.choice or None in losses:
        return []
    said = [
        f"{other.budget} nodes would lose {100 * loss:.1f} % with {name}"
        for loss, other, name in zip(losses, (b, a), names, strict=True)
        if loss is not None
    ]
    few, many = sorted((a.budget, b.budget))
    tokens, seconds = zip(*(side.step(few, many) for side in (a, b)), strict=True)
    gets = [f"{100 * gain:.1f} %" for gain in tokens]
    pays = [f"{_longer(cost)} with {name}" for cost, name in zip(seconds, names, strict=True)]
    more = gets[0] if gets[0] == gets[1] else f"{gets[0]} and {gets[1]}"
    both = [other.budget for loss, other in zip(losses, (b, a), strict=True) if loss is not None and loss <= NEAR]
    use = (
        [f"{both[0]} nodes do for both: they are within {100 * NEAR:g} % of the best with each."]
        if len(both) == 1
        else []
    )
    return [
        *use,
        f"From {few} to {many} nodes a round commits {more} more tokens; it takes {listed(pays)}.",
        f"In the other's place, {listed(said)}.",
    ]
