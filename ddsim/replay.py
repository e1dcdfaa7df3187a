"""Exact replay of policies over dense traces, and the plan that follows from it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import ddsim
from ddsim import budget as _budget
from ddsim import limits
from ddsim.arguments import check_given
from ddsim.budget import Floats, Positions
from ddsim.calibration import Calibration, CrossCalibration
from ddsim.cost import CostModel, CostTable, cost_table
from ddsim.curves import pad
from ddsim.errors import DdsimError
from ddsim.policy import (
    Autoregressive,
    BestFixed,
    CaDDTree,
    DDTree,
    DFlash,
    Hindsight,
    LongRun,
    Policy,
    RoundRatio,
    actions_of,
    decision_table,
    policies_of,
    policy_of,
    prepared,
)
from ddsim.positions import Progress, positions_of
from ddsim.trace import Trace

if TYPE_CHECKING:
    from ddsim.foresight import Foresight

__all__ = ["Plan", "ReplayResult", "default_policies", "plan", "positions_of", "replay", "replay_rounds"]

#: How the name of a policy ends that was replayed on calibrated marginals.
CALIBRATED = " calibrated"

BUDGETS = (8, 16, 32, 64, 128, 256, 512)
"""Fixed budgets of the default policies where passes aren't padded; see `default_budgets`."""
_DRAWS = 200  # bootstrap samples drawn at a time: bounds memory

Interval = tuple[float, float, float]

FOLDS = 5
"""Parts that prompts are dealt into, so that what is chosen on some is judged on others."""

FEW = 20
"""Prompts below which `plan` calls its intervals rough."""

WORTHWHILE = 0.005
"""Relative gain in tokens a second below which `plan` prefers the simpler policy, however sure the gain is."""


def default_budgets(max_budget: int = 512, cost: CostModel | None = None) -> list[int]:
    """About 8, 16, ... 512, up to ``max_budget``: where passes are padded, those that fill a bucket with their root.

    A budget of n verifies n + 1 tokens, so 64 nodes would pay for the bucket after 64 and leave nearly all of it empty.

    Parameters
    ----------
    max_budget : int
    cost : CostModel, optional
        Its ``buckets`` are filled. None: passes aren't padded.

    Examples
    --------
    >>> from ddsim.cost import CostModel
    >>> default_budgets(100), default_budgets(100, CostModel.from_table([1, 128], [0.01, 0.02], buckets=[8, 24, 64, 128]))
    ([8, 16, 32, 64], [7, 16, 23, 63])
    """
    buckets = (cost.buckets if cost is not None else None) or ()

    def filling(n: int) -> int:
        near = [size for size in buckets if n / 2**0.5 < size < n * 2**0.5]
        return min(near, key=lambda size: abs(size - n)) - 1 if near else n

    return sorted({n for n in map(filling, BUDGETS) if n <= max_budget})


def default_policies(max_budget: int = 512, cost: CostModel | None = None) -> list[Policy]:
    """AR, DFlash, DDTree at `default_budgets`, CaDDTree, RoundRatio, LongRun (solved and online), BestFixed, Hindsight.

    Examples
    --------
    >>> [policy.name for policy in default_policies(8)][:4]
    ['AR', 'DFlash', 'DDTree(8)', 'CaDDTree']
    """
    fixed = [DDTree(n) for n in default_budgets(max_budget, cost)]
    adaptive = [CaDDTree(), RoundRatio(), LongRun(), LongRun(online=True)]
    return [Autoregressive(), DFlash(), *fixed, *adaptive, BestFixed(), Hindsight()]


def measured_budget(cost: CostModel, max_budget: int) -> int:
    """The largest budget of at most ``max_budget`` whose verified tokens the cost model was fitted on."""
    return max(min(max_budget, int(cost.range.tokens[1]) - 1), 0)


def priced(positions: Positions, cost: CostModel) -> CostTable:
    """The cost table of a trace; budgets past the measured token counts cost infinity, so that no rule picks them."""
    last = measured_budget(cost, positions.max_budget)
    if positions.horizon > int(cost.range.tokens[1]) - 1:
        raise DdsimError(
            f"cost: measured up to {cost.range.tokens[1]:g} tokens; a chain verifies {positions.horizon + 1}, so profile further"
        )
    if last < positions.max_budget:
        warnings.warn(
            f"costs were measured up to {cost.range.tokens[1]:g} tokens: budgets above {last} are left out, though the trace "
            f"answers up to {positions.max_budget}",
            stacklevel=4,
        )
    table = cost_table(cost, positions.context, max(last, positions.horizon))
    width = max(positions.max_budget, positions.horizon) + 1
    if width > table.seconds.shape[1]:
        seconds = np.full((len(table.seconds), width), np.inf)
        seconds[:, : table.seconds.shape[1]] = table.seconds
        table = dataclasses.replace(table, seconds=seconds)
    return table


TunedOn = Literal["same prompts", "other prompts"]
"""Where what a policy solves for (a price, a budget, a calibration) was tuned, beside the prompts that it is judged on."""


@dataclass(frozen=True)
class Outcome:
    """What one policy did: sums over each of S sequences."""

    policy: Policy
    seconds: Floats
    """[S]"""
    rounds: NDArray[np.int64]
    """[S]"""
    budget: NDArray[np.int64]
    """[S] verified nodes in all."""
    whole: NDArray[np.int64]
    """[S] rounds that see their whole horizon."""
    drawn: NDArray[np.int64]
    """[S] tokens of these, the bonus token counted."""
    expected: Floats
    """[S] what the gains predict for these."""
    verify: Floats
    """[S, K] seconds of verification, by the knots of token counts (`_knots`): what an error of the costs there would change."""
    tuned_on: TunedOn | None = None
    """None: nothing was tuned."""

    def mix(self, counted: NDArray[np.bool_]) -> Floats:
        """[K]: by how much, relative, these sequences take longer for a unit of cost error at each knot."""
        out: Floats = self.verify[counted].sum(axis=0) / max(float(self.seconds[counted].sum()), 1e-300)
        return out


def _outcome(policy: Policy, positions: Positions, costs: CostTable, knots: Floats) -> Outcome:
    """What a policy that is ready does; ``costs`` are those that it decides on (`decision_table`)."""
    parts = []
    for low, _, block in positions.blocks():
        part = _budget.cost_rows(costs, slice(low, low + len(block)))
        actions = actions_of(policy, block, part)
        done = _budget.walk(block, part, actions)
        here, nodes, _, verify = _verified(block, part, actions, done.accepted)
        so_far = np.cumsum(np.concatenate([np.zeros((1, knots.shape[1])), verify[:, None] * knots[nodes]]), axis=0)
        spread = np.diff(so_far[np.searchsorted(here, block.starts)], axis=0)
        parts.append((done.seconds, done.rounds, done.budget, done.whole, done.drawn, done.expected, spread))
    sums: tuple[Any, ...] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return Outcome(policy, *sums)


def _verified(
    block: Positions, costs: _budget.Costs, actions: _budget.Ints, accepted: NDArray[np.int16]
) -> tuple[NDArray[np.int64], _budget.Ints, Floats, Floats]:
    """The rounds of a walk: position, nodes verified, seconds, and seconds of verification alone."""
    here = np.flatnonzero(accepted >= 0)
    nodes = np.minimum(actions[here], block.nodes[here])
    nodes[actions[here] == _budget.CHAIN] = block.horizon
    alone = actions[here] == _budget.NO_DRAFT
    nodes[alone] = 0
    costs = _budget.paid(costs)
    row = costs.row[here]
    seconds = costs.seconds[row, nodes]
    seconds[alone] = costs.ar_seconds[row[alone]]
    verify = seconds - np.where(alone, 0.0, costs.seconds[row, 0] - costs.ar_seconds[row])
    return here, nodes, seconds, verify


def _knots(cost: CostModel, most: int) -> Floats:
    """Weights [most, K] of the knots 1, 2, 4, ... at 1 .. ``most`` tokens.

    Independent errors of one size at the knots, so weighted, are an error of that size at every token count: smooth over its
    logarithm, one for all counts that are padded to the same size, unrelated beyond a factor of two.
    """
    tokens = np.arange(1, most + 1, dtype=np.float64)
    places = np.log2(pad(tokens, cost.buckets))
    away = np.abs(places[:, None] - np.arange(int(np.ceil(places[-1])) + 1))
    weights: Floats = np.cos(0.5 * np.pi * np.minimum(away, 1.0))  # their squares add up to 1
    return weights


def cost_error(cost: CostModel) -> float:
    """How far a cost model's answers may be off, as a relative standard deviation.

    From its mean held-out error (of a normal error: times the root of pi / 2), and at least the noise of a measured point. A
    curve typed in (`CostModel.from_table`) has neither and counts as exact.
    """
    mine = cost.report.kinds.get(cost.kind)
    held_out = mine.score if mine is not None and mine.points else 0.0
    return max(float(np.sqrt(np.pi / 2)) * held_out, cost.report.noise)


class ReplayResult:
    """Outcomes of policies on one trace, with paired bootstrap intervals over prompts and costs.

    Prompts are drawn with replacement within each workload, all sequences of a prompt together; every policy is judged on the
    same draws. A ratio is that of the sums (tokens over seconds), in the sample and in each draw; intervals are percentiles.

    In every draw the costs are off too: by a normal relative error of `cost_error`, independent at token counts a factor of two
    apart and smooth between them, the same for all policies, so that what they have in common cancels in their ratio. An error
    of the whole curve (another clock, another machine), of drafting, and of contexts is not in it.

    An interval says nothing about what was tuned: where ``tuned_on`` is "same prompts" the number is as good as the best of
    several on these prompts (of 20 to 60 prompts 0.2 to 1.2 % too good, of 164 up to 0.4 %).

    Attributes
    ----------
    outcomes : dict, policy name -> Outcome
    tokens : int64 [S], tokens that the rounds of each sequence commit
    workload : [S] names; workloads : list of those with a round
    """

    def __init__(
        self,
        positions: Positions,
        outcomes: dict[str, Outcome],
        ar: Outcome,
        hindsight: Outcome,
        *,
        bootstrap: int,
        seed: int,
        provenance: dict[str, Any],
        cost_error: float = 0.0,
    ) -> None:
        self.outcomes = outcomes
        self.tokens = positions.tokens
        self.workload = np.array(positions.workload, object)
        self.workloads = [w for w in dict.fromkeys(positions.workload) if self.tokens[self.workload == w].any()]
        self._ar, self._hindsight = ar, hindsight
        self.provenance = provenance
        self._draws = _Bootstrap(positions, bootstrap, seed, cost_error)

    def __repr__(self) -> str:
        return (
            f"<ReplayResult: {len(self.outcomes)} policies, {len(self.tokens)} sequences, {self.tokens.sum()} tokens>"
        )

    def table(self, by: Literal["workload"] | None = None) -> pd.DataFrame:
        """One row a policy, or one a workload and policy.

        Returns
        -------
        pandas.DataFrame
            [workload,] policy, rounds, tokens, acceptance_length (tokens per round), budget_mean (nodes per round), seconds,
            tokens_per_second, speedup (over AR at the same cost model) and hindsight_share (of the throughput of Hindsight),
            the last three each with 95 % bounds ``_low`` and ``_high``; NaN bounds where there is one prompt only. Then
            tuned_on: "same prompts" if what the policy solves for (a price, a budget, a calibration) was tuned on the prompts
            that it is judged on, "other prompts" if on others, None if nothing was.
        """
        if by not in (None, "workload"):
            raise DdsimError(f"table: can be split by 'workload' only, not {by!r}")
        rows: list[dict[str, Any]] = []
        for workload in [None] if by is None else self.workloads:
            label = {} if by is None else {by: workload}
            rows += [label | row for row in self._rows(self._counted(workload))]
        return pd.DataFrame(rows)

    def _counted(self, workload: str | None) -> NDArray[np.bool_]:
        counted = np.ones(len(self.tokens), bool) if workload is None else self.workload == workload
        if not counted.any():
            raise DdsimError(f"no workload {workload!r}; there are {', '.join(self.workloads)}")
        return counted

    def _rows(self, counted: NDArray[np.bool_], outcomes: dict[str, Outcome] | None = None) -> list[dict[str, Any]]:
        outcomes = self.outcomes if outcomes is None else outcomes
        tokens = int(self.tokens[counted].sum())
        below = list(outcomes.values())
        ratios = {
            "tokens_per_second": self._draws.ratios(self.tokens, below, counted),
            "speedup": self._draws.ratios(self._ar, below, counted),
            "hindsight_share": self._draws.ratios(self._hindsight, below, counted),
        }
        rows = []
        for k, (name, outcome) in enumerate(outcomes.items()):
            rounds = int(outcome.rounds[counted].sum())
            row: dict[str, Any] = {
                "policy": name,
                "rounds": rounds,
                "tokens": tokens,
                "acceptance_length": tokens / rounds if rounds else np.nan,
                "budget_mean": float(outcome.budget[counted].sum() / rounds) if rounds else np.nan,
                "seconds": float(outcome.seconds[counted].sum()),
            }
            for key, intervals in ratios.items():
                row |= dict(zip((key, f"{key}_low", f"{key}_high"), intervals[:, k].tolist(), strict=True))
            rows.append(row | {"tuned_on": outcome.tuned_on})
        return rows

    def gain(self, policy: str | Policy, over: str | Policy, workload: str | None = None) -> Interval:
        """Relative gain in tokens per second of one policy over another, paired: (value, low, high), 0.05 meaning 5 % more."""
        a, b = self._find(policy), self._find(over)
        return self._gain(a, b, workload)

    def _gain(self, a: Outcome, b: Outcome, workload: str | None = None) -> Interval:
        value, low, high = self._draws.ratios(b, [a], self._counted(workload))[:, 0].tolist()
        return value - 1, low - 1, high - 1

    def surrogate(self) -> pd.DataFrame:
        """Expected against realised acceptance length: policy, rounds, predicted, realised, ratio.

        Only rounds that see their whole horizon count, so that the end of a text hides no accepted token.
        """
        rows = []
        for name, outcome in self.outcomes.items():
            rounds = int(outcome.whole.sum())
            if isinstance(outcome.policy, Hindsight) or not rounds:
                continue
            predicted, realised = float(outcome.expected.sum()) / rounds, float(outcome.drawn.sum()) / rounds
            rows.append([name, rounds, predicted, realised, predicted / realised])
        return pd.DataFrame(rows, columns=["policy", "rounds", "predicted", "realised", "ratio"])

    def _find(self, policy: str | Policy) -> Outcome:
        name = policy if isinstance(policy, str) else policy.name
        if name not in self.outcomes:
            raise DdsimError(f"policy {name!r} was not replayed; there are {', '.join(self.outcomes)}")
        return self.outcomes[name]

    def to_json(self) -> dict[str, Any]:
        """Tables and provenance as one JSON-able object."""
        return {
            "schema_version": 1,
            "kind": "ddsim-replay",
            "provenance": self.provenance,
            "policies": [o.policy.to_json() for o in self.outcomes.values()],
            "pooled": _records(self.table()),
            "by_workload": _records(self.table(by="workload")),
            "surrogate": _records(self.surrogate()),
        }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON types; NaN becomes null."""
    out: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        clean = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        out.append({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in clean.items()})
    return out


class _Bootstrap:
    """Draws of prompts with replacement, within workloads, and of cost errors; the same for everything that is asked."""

    def __init__(self, positions: Positions, count: int, seed: int, cost_error: float = 0.0) -> None:
        self.count, self.seed, self.cost_error = count, seed, cost_error
        prompts: dict[tuple[str, str], int] = {}
        keys = zip(positions.workload, positions.prompt_id, strict=True)
        self.unit = np.array([prompts.setdefault(key, len(prompts)) for key in keys], np.int64)
        workloads = np.array([w for w, _ in prompts], object)
        self.strata = [np.flatnonzero(workloads == w) for w in dict.fromkeys(workloads.tolist())]
        self.units = len(prompts)

    @cached_property
    def _small(self) -> Floats | None:
        """All weights, if they fit in 64 MiB."""
        if self.count * self.units > 1 << 23:
            return None
        return np.concatenate(list(self._generate()))

    def _generate(self) -> Iterator[Floats]:
        """How often each prompt was drawn, [draws, prompts], a few draws at a time."""
        rng = np.random.default_rng(self.seed)
        for first in range(0, self.count, _DRAWS):
            rows = min(_DRAWS, self.count - first)
            cells = np.arange(rows)[:, None] * self.units
            weights = np.zeros(rows * self.units)
            for members in self.strata:
                drawn = members[rng.integers(0, len(members), (rows, len(members)))]
                weights += np.bincount((cells + drawn).ravel(), minlength=len(weights))
            yield weights.reshape(rows, self.units)

    def folds(self, count: int) -> NDArray[np.int64] | None:
        """[S]: which of ``count`` parts each sequence belongs to; None for a single prompt.

        Prompts are dealt out in random order, workload by workload, all sequences of a prompt to one part.
        """
        parts = min(count, self.units)
        if parts < 2:
            return None
        rng = np.random.default_rng([self.seed, 2])
        order = np.concatenate([rng.permutation(members) for members in self.strata])
        part = np.empty(self.units, np.int64)
        part[order] = np.arange(self.units) % parts
        return part[self.unit]

    def sums(self, values: NDArray[Any], counted: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Sums of per-sequence values [S] or [S, M] over the counted sequences: of the sample [M], and of each draw [draws, M]."""
        chosen = np.asarray(values, np.float64).reshape(len(values), -1)[counted]
        per_unit = np.zeros((self.units, chosen.shape[1]))
        np.add.at(per_unit, self.unit[counted], chosen)
        parts = self._generate() if self._small is None else iter([self._small])
        return per_unit.sum(axis=0), np.concatenate([part @ per_unit for part in parts])

    def seconds(self, values: Floats, mixes: Floats, counted: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """`sums` of seconds [S, M], in each draw as its costs say; ``mixes`` [M, K] as `Outcome.mix`."""
        value, draws = self.sums(values, counted)
        if self.cost_error:
            errors = np.random.default_rng([self.seed, 1]).normal(0.0, self.cost_error, (self.count, mixes.shape[1]))
            draws *= np.exp(errors @ mixes.T)
        return value, draws

    def ratios(self, above: NDArray[Any] | Outcome, below: Sequence[Outcome], counted: NDArray[np.bool_]) -> Floats:
        """Ratios of sums over sequences, tokens [S] or seconds of a policy over seconds of others: value, low, high, float64 [3, M].

        The bounds are NaN if the sequences counted come from one prompt.
        """
        columns = [*([above] if isinstance(above, Outcome) else []), *below]
        value, draws = self.seconds(
            np.column_stack([outcome.seconds for outcome in columns]),
            np.stack([outcome.mix(counted) for outcome in columns]),
            counted,
        )
        if isinstance(above, Outcome):
            return self.intervals((value[:1], draws[:, :1]), (value[1:], draws[:, 1:]), counted)
        return self.intervals(self.sums(above, counted), (value, draws), counted)

    def intervals(
        self, above: tuple[Floats, Floats], below: tuple[Floats, Floats], counted: NDArray[np.bool_]
    ) -> Floats:
        """Of (sums, sums in each draw) over such: value, low, high, float64 [3, M]."""
        out = np.full((3, len(below[0])), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[0] = above[0] / below[0]
            if len(np.unique(self.unit[counted])) > 1:
                ratios = above[1] / below[1]
                quantile = np.quantile if np.isfinite(ratios).all() else np.nanquantile
                out[1:] = quantile(ratios, [0.025, 0.975], axis=0)
        return out


def replay(
    trace: Trace,
    cost: CostModel,
    policies: Sequence[Policy | str] | Policy | str | None = None,
    *,
    calibration: Calibration | CrossCalibration | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> ReplayResult:
    """Replay policies over a trace, exactly: every round accepts what the recorded text says.

    Parameters
    ----------
    trace : Trace
    cost : CostModel
        Seconds of a round; contexts are those of the trace, batch 1.
    policies : list of Policy or of names (see `parse_policy`), or one, optional
        Default: `default_policies`.
    calibration : Calibration or CrossCalibration, optional
        Policies that depend on it are replayed once more on calibrated marginals, as "<name> calibrated". For a fair comparison
        it must have been fitted on other prompts: `ddsim.cross_calibrate` sees to it. Hindsight stays that of the raw trees.
    bootstrap : int
        Resamples of the prompts for the 95 % intervals.
    seed : int
        Of the resamples.
    progress : callable, optional
        Called with (positions done, positions in all) where gains have to be computed.

    Returns
    -------
    ReplayResult

    Raises
    ------
    DdsimError
        A budget above what trace or cost model answer, two policies of one name, an empty trace.

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001)
    >>> replay(trace, cost, ["AR", "DDTree:6", "Hindsight"]).table()[["policy", "rounds", "acceptance_length"]]
          policy  rounds  acceptance_length
    0         AR       3                1.0
    1  DDTree(6)       1                3.0
    2  Hindsight       1                3.0
    """
    check_given("replay", trace, cost)
    limits.check("bootstrap", bootstrap)
    limits.check("seed", seed)
    replayed = _Replayer(trace, cost, calibration, progress)
    if policies is None:
        policies = default_policies(replayed.most, cost)
    chosen = [_ready(policy, trace, cost) for policy in policies_of(policies)]
    if not chosen:
        raise DdsimError("no policies to replay")
    return replayed.result(replayed.outcomes(chosen), bootstrap=bootstrap, seed=seed)


class _Replayer:
    """A trace at given costs, as recorded and on calibrated marginals, on which policies are tuned and replayed."""

    def __init__(
        self,
        trace: Trace,
        cost: CostModel,
        calibration: Calibration | CrossCalibration | None,
        progress: Progress | None,
    ) -> None:
        self.trace, self.cost, self.calibration = trace, cost, calibration
        self.positions = positions_of(trace, progress=progress)
        if not self.positions.tokens.sum():
            raise DdsimError("trace: no sequence has two tokens, so there is no round to replay")
        self.costs = priced(self.positions, cost)
        self.knots = _knots(cost, self.costs.seconds.shape[1])
        self.most = measured_budget(cost, self.positions.max_budget)
        self.better = None if calibration is None else positions_of(trace, calibration=calibration, progress=progress)
        self._fixed: dict[str, Fixed] = {}
        self._of_budget: dict[tuple[int, str], Outcome] = {}

    def outcomes(self, policies: Sequence[Policy], sequences: NDArray[np.bool_] | None = None) -> dict[str, Outcome]:
        """What policies do, tuned on some of the sequences (default all), and again calibrated where that matters."""
        out = {policy.name: self._run(policy, sequences) for policy in policies}
        for policy in policies:
            if self.calibration is not None and policy.calibration is None and _depends(policy, self.calibration):
                if policy.name + CALIBRATED in out:
                    raise DdsimError(
                        f"two policies are called {policy.name + CALIBRATED!r}: {policy.name} is replayed calibrated too; rename one"
                    )
                out[policy.name + CALIBRATED] = self._run(policy, sequences, CALIBRATED)
        return out

    def _run(self, policy: Policy, sequences: NDArray[np.bool_] | None, ending: str = "") -> Outcome:
        positions = self.better if ending and self.better is not None else self.positions
        costs = decision_table(policy, self.cost, self.costs)
        if type(policy) is BestFixed:  # its walks are needed anyway, and once is enough
            ready: Policy = BestFixed()
            ready.budget = self.fixed(ending).best(sequences)[0]  # type: ignore[attr-defined]
        else:
            ready = prepared(policy, positions, costs, sequences=sequences)
        outcome = _outcome(ready, positions, costs, self.knots)
        return dataclasses.replace(outcome, tuned_on=self._tuned_on(policy, self.calibration if ending else None))

    def _tuned_on(self, policy: Policy, calibration: Calibration | CrossCalibration | None) -> TunedOn | None:
        if _tunes(policy):
            return "same prompts"
        seen = [c for c in (policy.calibration, calibration) if c is not None]
        if any(not isinstance(c, CrossCalibration) and _fitted_here(c, self.trace) for c in seen):
            return "same prompts"
        return "other prompts" if seen else None

    def fixed(self, ending: str = "") -> Fixed:
        """Every fixed budget, on the trees as recorded or, with ``ending`` CALIBRATED, on calibrated ones."""
        if ending not in self._fixed:
            positions = self.better if ending and self.better is not None else self.positions
            self._fixed[ending] = Fixed.walked(positions, self.costs, self.knots)
        return self._fixed[ending]

    def outcomes_of_budget(self, budget: int, ending: str = "") -> Outcome:
        """What one fixed budget does; its number counts as tuned on the trace."""
        key = budget, ending
        if key not in self._of_budget:
            positions = self.better if ending and self.better is not None else self.positions
            outcome = _outcome(DDTree(budget), positions, self.costs, self.knots)
            self._of_budget[key] = dataclasses.replace(outcome, tuned_on="same prompts")
        return self._of_budget[key]

    def result(self, outcomes: dict[str, Outcome], *, bootstrap: int, seed: int) -> ReplayResult:
        """Outcomes with their intervals and where they come from."""

        def alone(policy: Policy) -> Outcome:
            return outcomes.get(policy.name) or _outcome(policy, self.positions, self.costs, self.knots)

        trace, cost, error = self.trace, self.cost, cost_error(self.cost)
        provenance = {
            "ddsim": ddsim.__version__,
            "trace": {
                "fingerprint": trace.fingerprint,
                "positions": len(trace),
                "sequences": len(trace.sequences),
                "recording": trace.meta["provenance"],
            },
            "cost": {"kind": cost.kind, "range": str(cost.range), "provenance": cost.provenance},
            "calibration": None if self.calibration is None else self.calibration.provenance,
            "bootstrap": bootstrap,
            "seed": seed,
            "intervals": {
                "cover": "prompts and costs" if error else "prompts; the costs count as exact",
                "cost_error": error,
            },
        }
        return ReplayResult(
            self.positions,
            outcomes,
            alone(Autoregressive()),
            alone(Hindsight()),
            bootstrap=bootstrap,
            seed=seed,
            provenance=provenance,
            cost_error=error,
        )


def _tunes(policy: Policy) -> bool:
    """Whether a policy solves for something on the trace before it is replayed there."""
    return type(policy).prepare is not Policy.prepare and bool(getattr(policy, "solves", True))


def _fitted_here(calibration: Calibration, trace: Trace) -> bool:
    """Whether a calibration may have seen this trace; one that doesn't say counts as if it had."""
    origin = calibration.provenance.get("trace")
    return origin is None or origin == trace.fingerprint


@dataclass(frozen=True)
class Fixed:
    """Every fixed budget, 0 to N, on S sequences."""

    seconds: Floats
    """[S, N + 1]"""
    rounds: NDArray[Any]
    """[S, N + 1]"""
    mix: Floats
    """[N + 1, K] as `Outcome.mix`; for trees that never run out of nodes."""

    @classmethod
    def walked(cls, positions: Positions, costs: CostTable, knots: Floats) -> Fixed:
        """Walk every budget."""
        seconds, rounds = _budget.fixed_walks(positions, costs)
        weight = np.bincount(costs.row, minlength=len(costs.seconds)) / len(costs.row)
        curves = costs.seconds[:, : seconds.shape[1]]
        whole = weight @ np.where(np.isfinite(curves), curves, 1.0)
        drafting = weight @ (costs.seconds[:, 0] - costs.ar_seconds)
        return cls(seconds, rounds, (1.0 - drafting / whole)[:, None] * knots[: len(whole)])

    def best(self, sequences: NDArray[np.bool_] | None = None) -> tuple[int, tuple[tuple[int, int], ...]]:
        """The budget of least seconds on some of the sequences (default all), and all runs of budgets within 1 % of its throughput."""
        seconds = (self.seconds if sequences is None else self.seconds[sequences]).sum(axis=0)
        best = int(np.argmin(seconds))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], seconds * 0.99 <= seconds[best], [0]])))
        return best, tuple((int(a), int(b) - 1) for a, b in edges.reshape(-1, 2))


def _ready(policy: Policy | str, trace: Trace, cost: CostModel) -> Policy:
    """The policy, if trace and costs can answer for it."""
    policy = policy_of(policy)
    if isinstance(policy, DDTree):
        trace.check_budget(policy.budget)
        most = measured_budget(cost, trace.max_budget)
        if policy.budget > most:
            raise DdsimError(
                f"{policy.name} verifies {policy.budget + 1} tokens, but costs were measured up to "
                f"{cost.range.tokens[1]:g}; choose a budget of at most {most} or profile further"
            )
    return policy


def _depends(policy: Policy, calibration: Calibration | CrossCalibration) -> bool:
    """Whether a calibration can change what a policy does."""
    if policy.adaptive:
        return True
    return calibration.kind == "temperature" and isinstance(policy, (DDTree, BestFixed))


def replay_rounds(
    trace: Trace,
    cost: CostModel,
    policy: Policy | str,
    *,
    calibration: Calibration | CrossCalibration | None = None,
) -> pd.DataFrame:
    """Every round of one policy: sequence, workload, prompt_id, temperature, position, budget, accepted, seconds.

    ``position`` is that of the round's root; ``accepted`` counts drafted tokens. A chain's budget is its length. With
    ``calibration`` the policy sees calibrated marginals, as `replay`'s "<name> calibrated" does.

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> rounds = replay_rounds(trace, CostModel.from_table([1, 8], [0.010, 0.012]), "DDTree:1")
    >>> rounds[["position", "budget", "accepted"]].values.tolist()
    [[0, 1, 1], [2, 1, 0]]
    """
    check_given("replay_rounds", trace, cost)
    positions = positions_of(trace, calibration=calibration)
    policy = _ready(policy, trace, cost)
    costs = decision_table(policy, cost, priced(positions, cost))
    ready = prepared(policy, positions, costs)
    parts = []
    for low, first, block in positions.blocks():
        part = _budget.cost_rows(costs, slice(low, low + len(block)))
        actions = actions_of(ready, block, part)
        accepted = _budget.walk(block, part, actions).accepted
        here, nodes, seconds, _ = _verified(block, part, actions, accepted)
        sequence = np.searchsorted(block.starts, here, side="right") - 1
        parts.append(
            pd.DataFrame(
                {
                    "sequence": first + sequence,
                    "workload": np.array(block.workload, object)[sequence],
                    "prompt_id": np.array(block.prompt_id, object)[sequence],
                    "temperature": block.temperature[sequence],
                    "position": here - block.starts[sequence],
                    "budget": nodes,
                    "accepted": accepted[here],
                    "seconds": seconds,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Plan:
    """What to run, and what it is worth.

    Attributes
    ----------
    sentence : str
        The recommendation, its throughput and what it gains, on prompts that the choice hasn't seen (see ``judged_on``).
    choice : str
        Name of the recommended policy in `result`.
    policy : Policy
        Recommended, ready to use: a fixed budget, or an adaptive rule with its price.
    result : ReplayResult
        AR, DFlash, fixed and adaptive policies, Hindsight; what was tuned is judged on other prompts, if there are any.
    best_budget : int
        Fixed budget of highest realised throughput.
    budget : int
        The fixed budget to take: the smallest within 1 % of the best that isn't significantly worse than it (97.5 % of the paired
        draws say that it is slower; with one prompt, the best).
    near_best : tuple of (int, int)
        All runs of fixed budgets, first and last, within 1 % of the best one's throughput.
    flat : (int, int)
        The run that the best one is in.
    judged_on : {"other prompts", "same prompts"}
        "other prompts": prompts were dealt into FOLDS parts within workloads; for each part everything was chosen (price, budget,
        policy) on the others as it was on all, and judged on the part. "same prompts": there is one prompt only.
    notes : tuple of str
        What limits the answer, in sentences.
    details : tuple of str
        Intervals of the gains, the range of budgets that are as good, and what the next simpler or less simple policy would do.
    """

    sentence: str
    choice: str
    policy: Policy
    result: ReplayResult
    best_budget: int
    flat: tuple[int, int]
    by_workload: pd.DataFrame
    """A row a workload: its own best fixed budget, the run around it and all runs within 1 % of it, and, judged on prompts that
    the budget wasn't chosen on: tokens per second there, what the pooled budget loses, and what the recommendation gains over its
    own best (with interval). ``tuned_on`` says which prompts: "same prompts" for a workload of one."""
    notes: tuple[str, ...]
    _curve: pd.DataFrame
    details: tuple[str, ...] = ()
    budget: int = 0
    near_best: tuple[tuple[int, int], ...] = ()
    judged_on: TunedOn = "same prompts"
    fold_choices: tuple[str, ...] = ()
    """What was chosen without each of the parts."""
    foresight: Foresight | None = None
    """What a planner without foresight could reach of hindsight: most of the distance is chance."""
    _judged: Outcome | None = None

    def table(self, by: Literal["workload"] | None = None) -> pd.DataFrame:
        """The table of `result`."""
        return self.result.table(by)

    def curve(self) -> pd.DataFrame:
        """Fixed budgets: budget, tokens_per_second, low, high, acceptance_length."""
        return self._curve

    def gain(self, over: str | Policy, workload: str | None = None) -> Interval:
        """Relative gain in tokens per second of what was chosen over a policy of `result`: (value, low, high).

        Judged on ``judged_on``, paired. The interval covers prompts, the costs' held-out error, and what the choice owes to the
        prompts that it was made on.
        """
        return self.result._gain(self._outcome, self.result._find(over), workload)

    def judged(self) -> dict[str, Any]:
        """What was chosen, as a row of `table`, on ``judged_on``."""
        every = np.ones(len(self.result.tokens), bool)
        return self.result._rows(every, {self.choice: self._outcome})[0]

    @property
    def _outcome(self) -> Outcome:
        return self.result._find(self.choice) if self._judged is None else self._judged

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON-able object."""
        over = [name for name in ("AR", "DFlash", "BestFixed") if name in self.result.outcomes]
        return {
            "schema_version": 1,
            "kind": "ddsim-plan",
            "sentence": self.sentence,
            "details": list(self.details),
            "policy": self.policy.to_json(),
            "choice": self.choice,
            "gains": [{"over": name, **_named(self.gain(name))} for name in over],
            "judged": _records(pd.DataFrame([self.judged()]))[0],
            "judged_on": self.judged_on,
            "fold_choices": list(self.fold_choices),
            "best_budget": self.best_budget,
            "budget": self.budget,
            "flat": list(self.flat),
            "near_best": [list(run) for run in self.near_best],
            "notes": list(self.notes),
            "curve": _records(self._curve),
            "workloads": _records(self.by_workload),
            "hindsight": self._hindsight(),
            "replay": self.result.to_json(),
        }

    def _hindsight(self) -> dict[str, Any] | None:
        """Shares of hindsight: what was chosen, what a planner without foresight could reach, and how much of the distance that is."""
        if self.foresight is None:
            return None
        share = self.judged()["hindsight_share"]
        return {
            "share": share,
            "share_without_foresight": self.foresight.without,
            "distance_by_chance": self.foresight.chance(share),
            "drawn": self.foresight.to_json(),
        }


def _named(interval: Interval) -> dict[str, float | None]:
    return {
        key: value if np.isfinite(value) else None for key, value in zip(("gain", "low", "high"), interval, strict=True)
    }


def plan(
    trace: Trace,
    cost: CostModel,
    *,
    calibration: Calibration | CrossCalibration | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Recommend a budget or an adaptive rule for what was recorded, at these costs.

    The simplest policy wins unless a less simple one is faster by at least half a per cent, and beyond its paired 95 % interval:
    AR, then the chain, then one fixed budget, then one on calibrated marginals, then the fastest of CaDDTree, RoundRatio and
    LongRun, then the fastest of these on calibrated marginals. The fixed budget is the smallest within 1 % of the best that isn't
    significantly worse. With one prompt there are no intervals, and the fastest wins.

    The best of several looks better on the prompts that it was picked on than on others. So the gains that are stated are held
    out: the same choice is made without each fifth of the prompts, and judged on that fifth. Intervals cover prompts and costs
    (see `ReplayResult`).

    Parameters
    ----------
    trace, cost, calibration, bootstrap, seed, progress : as in `replay`

    Returns
    -------
    Plan

    Raises
    ------
    DdsimError
        As `replay`.

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> advice = plan(trace, CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001))
    >>> advice.best_budget, advice.policy  # the chain of two nodes is as good
    (2, <DFlash>)
    """
    check_given("plan", trace, cost)
    from ddsim.foresight import without_foresight  # here, since it replays too

    limits.check("bootstrap", bootstrap)
    limits.check("seed", seed)
    replayed = _Replayer(trace, cost, calibration, progress)
    plain: list[Policy] = [Autoregressive(), DFlash(), BestFixed(), CaDDTree(), RoundRatio(), LongRun(), Hindsight()]
    tuned = [policy for policy in plain if _tunes(policy)]
    whole = replayed.outcomes(plain)
    draws = replayed.result(whole, bootstrap=bootstrap, seed=seed)._draws
    every = np.ones(replayed.positions.sequences, bool)
    chosen = _choose(replayed, draws, whole, every)
    shown, judged, picks = dict(whole), chosen.outcome, []
    folds = draws.folds(FOLDS)
    fixed = chosen.fixed
    if folds is not None:
        parts = range(int(folds.max()) + 1)
        without = [whole | replayed.outcomes(tuned, folds != part) for part in parts]
        picks = [_choose(replayed, draws, without[part], folds != part) for part in parts]
        for name in shown:
            if any(name.removesuffix(CALIBRATED) == policy.name for policy in tuned):
                shown[name] = _dealt(whole[name].policy, [outcomes[name] for outcomes in without], folds)
        judged = _dealt(chosen.outcome.policy, [pick.outcome for pick in picks], folds)
        fixed = {
            ending: _dealt(outcome.policy, [pick.fixed[ending] for pick in picks], folds)
            for ending, outcome in chosen.fixed.items()
        }
    name = chosen.name
    if isinstance(chosen.outcome.policy, DDTree):
        shown[name] = fixed[CALIBRATED if name.endswith(CALIBRATED) else ""]
        shown["Hindsight"] = shown.pop("Hindsight")  # stays last
    result = replayed.result(shown, bootstrap=bootstrap, seed=seed)
    walked = replayed.fixed()
    best, runs = walked.best()
    advice = Plan(
        sentence="",
        choice=name,
        policy=chosen.outcome.policy,
        result=result,
        best_budget=best,
        budget=chosen.budget,
        flat=next(run for run in runs if run[0] <= best <= run[1]),
        near_best=runs,
        judged_on="same prompts" if folds is None else "other prompts",
        fold_choices=tuple(pick.name for pick in picks),
        by_workload=_workloads(result, walked, replayed, chosen.budget, judged, folds),
        notes=(),
        _curve=_fixed_curve(result, walked, every),
        foresight=without_foresight(trace, cost, seed=seed),
        _judged=judged,
    )
    return dataclasses.replace(
        advice,
        sentence=_sentence(advice),
        details=_details(advice, chosen.rule, replayed.cost),
        notes=_notes(advice, replayed),
    )


@dataclass(frozen=True)
class _Choice:
    """What was chosen on some sequences, and what it does on all."""

    name: str
    outcome: Outcome
    budget: int
    """The fixed budget to take."""
    fixed: dict[str, Outcome]
    """What it does, and, by the ending of their names, what those on calibrated trees do."""
    rule: str
    """The fastest adaptive rule, or the chosen one."""


def _choose(
    replayed: _Replayer, draws: _Bootstrap, outcomes: dict[str, Outcome], counted: NDArray[np.bool_]
) -> _Choice:
    """The simplest policy that no less simple one beats on the sequences counted; ``outcomes`` are tuned on these."""
    candidates = {name: outcomes[name] for name in ("AR", "DFlash")}
    fixed, budgets = {}, {}
    for ending in ("", CALIBRATED):
        if "BestFixed" + ending in outcomes:
            budgets[ending] = _smallest(replayed.fixed(ending), draws, counted)
            fixed[ending] = replayed.outcomes_of_budget(budgets[ending], ending)
            candidates[fixed[ending].policy.name + ending] = fixed[ending]
    rules = []
    for ending in ("", CALIBRATED):
        names = [name + ending for name in ("CaDDTree", "RoundRatio", "LongRun") if name + ending in outcomes]
        if names:
            rules.append(min(names, key=lambda name: float(outcomes[name].seconds[counted].sum())))
            candidates[rules[-1]] = outcomes[rules[-1]]
    value, drawn = draws.seconds(
        np.column_stack([outcome.seconds for outcome in candidates.values()]),
        np.stack([outcome.mix(counted) for outcome in candidates.values()]),
        counted,
    )
    choice = 0
    for k in range(1, len(candidates)):
        gain, low, _ = (
            draws.intervals((value[[choice]], drawn[:, [choice]]), (value[[k]], drawn[:, [k]]), counted)[:, 0] - 1
        )
        if gain >= WORTHWHILE and (low if np.isfinite(low) else gain) > 0:
            choice = k
    name = list(candidates)[choice]
    rule = name if name in rules else min(rules, key=lambda name: float(outcomes[name].seconds[counted].sum()))
    return _Choice(name, candidates[name], budgets[""], fixed, rule)


def _smallest(fixed: Fixed, draws: _Bootstrap, counted: NDArray[np.bool_]) -> int:
    """The smallest budget within 1 % of the best that isn't significantly worse on the sequences counted."""
    best, runs = fixed.best(counted)
    near = np.array([n for first, last in runs for n in range(first, min(last, best) + 1)])
    value, drawn = draws.seconds(fixed.seconds[:, near], fixed.mix[near], counted)
    high = draws.intervals((value[-1:], drawn[:, -1:]), (value, drawn), counted)[2]
    return int(near[high >= 1.0][0]) if np.isfinite(high).all() else best


def _dealt(policy: Policy, parts: Sequence[Outcome], folds: NDArray[np.int64]) -> Outcome:
    """Outcomes of which each was tuned without one part of the sequences, [S], put together from these parts."""

    def each(name: str) -> NDArray[Any]:
        return np.stack([getattr(outcome, name) for outcome in parts])[folds, np.arange(len(folds))]

    sums: dict[str, Any] = {field.name: each(field.name) for field in dataclasses.fields(Outcome)[1:-1]}
    return Outcome(policy, **sums, tuned_on="other prompts")


def _fixed_curve(result: ReplayResult, fixed: Fixed, counted: NDArray[np.bool_]) -> pd.DataFrame:
    """The throughput of every fixed budget that the costs cover."""
    covered = np.flatnonzero(np.isfinite(fixed.seconds).all(axis=0))
    draws = result._draws
    spent = draws.seconds(fixed.seconds[:, covered], fixed.mix[covered], counted)
    tokens, drawn = draws.sums(result.tokens, counted)
    value, low, high = draws.intervals((tokens, drawn), spent, counted)
    return pd.DataFrame(
        {
            "budget": covered,
            "tokens_per_second": value,
            "low": low,
            "high": high,
            "acceptance_length": result.tokens[counted].sum() / fixed.rounds[counted][:, covered].sum(axis=0),
        }
    )


def _workloads(
    result: ReplayResult,
    fixed: Fixed,
    replayed: _Replayer,
    pooled: int,
    judged: Outcome,
    folds: NDArray[np.int64] | None,
) -> pd.DataFrame:
    """For each workload its own best fixed budget, what the pooled one loses there, and what the choice gains over its own."""
    rows = []
    for workload in result.workloads:
        counted = result.workload == workload
        best, runs = fixed.best(counted)
        flat = next(run for run in runs if run[0] <= best <= run[1])
        own = replayed.outcomes_of_budget(best)
        held_out = folds is not None and len(np.unique(folds[counted])) > 1
        if folds is not None and held_out:
            others = [counted & (folds != part) for part in range(int(folds.max()) + 1)]
            own = _dealt(own.policy, [replayed.outcomes_of_budget(fixed.best(other)[0]) for other in others], folds)
        share = result._gain(judged, own, workload)
        rows.append(
            {
                "workload": workload,
                "best_budget": best,
                "flat_low": flat[0],
                "flat_high": flat[1],
                "near_best": [list(run) for run in runs],
                "tokens_per_second": float(result.tokens[counted].sum() / own.seconds[counted].sum()),
                "pooled_budget_loss": float(1 - own.seconds[counted].sum() / fixed.seconds[counted, pooled].sum()),
                "choice_gain": share[0],
                "choice_gain_low": share[1],
                "choice_gain_high": share[2],
                "tuned_on": "other prompts" if held_out else "same prompts",
            }
        )
    return pd.DataFrame(rows)


def _percent(interval: Interval) -> str:
    value, low, high = (round(100 * v, 1) + 0.0 for v in interval)  # never -0.0
    return f"{value:+.1f} % ({low:+.1f} to {high:+.1f} %)" if np.isfinite(low) else f"{value:+.1f} %"


def _about(interval: Interval) -> str:
    """The gain alone, with as many digits as one remembers."""
    value = round(100 * interval[0], 1) + 0.0
    return f"{value:+.0f} %" if abs(value) >= 10 else f"{value:+.1f} %"


def said_runs(runs: Sequence[tuple[int, int]]) -> str:
    """Runs of budgets in words.

    Examples
    --------
    >>> said_runs([(62, 63), (116, 127), (255, 255)])
    '62 to 63, 116 to 127 and 255'
    """
    words = [f"{first} to {last}" if last > first else f"{first}" for first, last in runs]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _sentence(advice: Plan) -> str:
    """The recommendation, its throughput, and its gains over AR and over the chain."""
    result, choice, policy = advice.result, advice.choice, advice.policy
    speed = f"{result.tokens.sum() / advice._outcome.seconds.sum():,.0f} tokens/s"
    if choice == "AR":
        return f"Don't draft: at these costs autoregressive decoding, {speed}, isn't beaten beyond noise."
    if isinstance(policy, DFlash):
        head = "Verify DFlash's chain"
    elif isinstance(policy, DDTree):
        head = f"Verify trees of {policy.budget} nodes"
    else:
        head = f"Let {policy.name} choose each tree's size"
    if choice.endswith(CALIBRATED):
        head += " from calibrated marginals"
    gains = f"{_about(advice.gain('AR'))} over AR"
    if choice != "DFlash":
        gains += f" and {_about(advice.gain('DFlash'))} over DFlash"
    return f"{head}: {speed}, {gains}."


def _details(advice: Plan, rule: str, cost: CostModel) -> tuple[str, ...]:
    """How sure the gains are, and how little it would matter to miss the recommendation."""
    choice, best, policy, outcomes = advice.choice, advice.best_budget, advice.policy, advice.result.outcomes

    def gain(over: str) -> str:
        return _percent(advice.gain(over))

    if choice == "AR":
        lines = [
            f"Over AR, 95 % intervals in brackets: best fixed budget, {best} nodes, "
            f"{_percent(advice.result.gain('BestFixed', 'AR'))}; {rule} {_percent(advice.result.gain(rule, 'AR'))}."
        ]
        return (*lines, _judgement(advice, cost))
    lines = [f"Gains, 95 % intervals in brackets: over AR {gain('AR')}"]
    lines[0] += "." if choice == "DFlash" else f", over DFlash {gain('DFlash')}."
    lines.append(_judgement(advice, cost))
    if choice == rule:
        mean = outcomes[choice].budget.sum() / outcomes[choice].rounds.sum()
        price = f", at a price of {policy.price:,.0f} tokens/s" if isinstance(policy, LongRun) else ""
        lines.append(f"It verifies {mean:.0f} nodes a round on average{price}.")
    if advice.near_best == ((best, best),):
        lines.append(f"No other fixed budget comes within 1 % of the best, {best} nodes.")
    else:
        line = f"Fixed budgets of {said_runs(advice.near_best)} nodes come within 1 % of the best, {best}"
        if advice.budget != best:
            line += f"; {advice.budget} is the smallest of them that isn't significantly worse"
        lines.append(line + ".")
    if choice == rule:
        lines.append(f"Over the best fixed budget {rule} gains {gain('BestFixed')}.")
    elif isinstance(policy, DDTree):
        over = _percent(advice.result._gain(outcomes[rule], advice._outcome))
        lines.append(f"No adaptive rule adds as much as {100 * WORTHWHILE:g} % beyond noise; the best, {rule}: {over}.")
    else:
        over = _percent(advice.result._gain(outcomes["BestFixed"], advice._outcome))
        lines.append(f"No tree adds as much as {100 * WORTHWHILE:g} % beyond noise; the best fixed budget: {over}.")
    if advice.foresight is not None:
        lines.append(
            f"It reaches {100 * advice.judged()['hindsight_share']:.0f} % of hindsight, which knows the text. On texts drawn from the "
            "drafter's own probabilities, where no planner can know more, the best rule reaches "
            f"{100 * advice.foresight.without:.0f} %: {_said_of_chance(advice)}."
        )
    return tuple(lines)


def _said_of_chance(advice: Plan) -> str:
    """How much of the distance to hindsight is chance."""
    assert advice.foresight is not None
    chance = advice.foresight.chance(advice.judged()["hindsight_share"])
    return "the distance is chance" if chance == 1 else f"{100 * chance:.0f} % of the distance is chance"


def _judgement(advice: Plan, cost: CostModel) -> str:
    """What the gains were judged on, and what their intervals cover."""
    error = cost_error(cost)
    costs = f"an error of {100 * error:.2g} % in the costs" if error else "no error of the costs, which count as exact"
    if advice.judged_on == "same prompts":
        return "They are of the prompt that the choice was made on."
    return (
        f"They are of prompts that the choice wasn't made on ({len(advice.fold_choices)} parts, each judged by a choice made on "
        f"the others); the intervals cover other prompts and {costs}."
    )


def _notes(advice: Plan, replayed: _Replayer) -> tuple[str, ...]:
    notes = []
    result, best, last = advice.result, advice.best_budget, replayed.most
    units = result._draws.units
    if units < 2:
        notes.append("The trace holds one prompt, so nothing is known of how much another would differ.")
    elif units < FEW:
        notes.append(f"The trace holds {units} prompts: intervals are rough, and choices made on fewer still.")
    if last < replayed.positions.max_budget:
        notes.append(f"Costs were measured up to {last + 1} tokens; budgets above {last} nodes were not judged.")
    if best == last:
        notes.append(f"The best budget, {best}, is the largest that could be judged; a larger one may be faster still.")
    for row in _records(advice.by_workload):
        if row["pooled_budget_loss"] > 0.01:
            notes.append(
                f"On {row['workload']}, {row['best_budget']} nodes would be {100 * row['pooled_budget_loss']:.1f} % faster than "
                f"the pooled budget, {advice.budget}."
            )
    return tuple(notes)
