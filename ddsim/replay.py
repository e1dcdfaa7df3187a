"""Exact replay of policies over dense traces, and the plan that follows from it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import ddsim
from ddsim import budget as _budget
from ddsim.budget import Floats, Positions
from ddsim.calibration import Calibration, CrossCalibration
from ddsim.cost import CostModel, CostTable, cost_table
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
    parse_policy,
)
from ddsim.positions import Progress, positions_of
from ddsim.trace import Trace

__all__ = ["Plan", "ReplayResult", "default_policies", "plan", "positions_of", "replay", "replay_rounds"]

#: How the name of a policy ends that was replayed on calibrated marginals.
CALIBRATED = " calibrated"

BUDGETS = (8, 16, 32, 64, 128, 256, 512)
"""Fixed budgets of the default policies where passes aren't padded; see `default_budgets`."""
_DRAWS = 200  # bootstrap samples drawn at a time: bounds memory

Interval = tuple[float, float, float]

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
    if not hasattr(cost, "verify_seconds"):
        raise DdsimError(
            f"cost: expected a cost model (ddsim.fit_cost, CostModel.from_table), got {type(cost).__name__}"
        )
    last = measured_budget(cost, positions.max_budget)
    if positions.horizon > int(cost.range.tokens[1]) - 1:
        raise DdsimError(
            f"cost: measured up to {cost.range.tokens[1]:g} tokens; a chain verifies {positions.horizon + 1}, so profile further"
        )
    if last < positions.max_budget:
        warnings.warn(
            f"costs were measured up to {cost.range.tokens[1]:g} tokens: budgets above {last} are left out, though the trace "
            f"answers up to {positions.max_budget}",
            stacklevel=3,
        )
    table = cost_table(cost, positions.context, max(last, positions.horizon))
    width = max(positions.max_budget, positions.horizon) + 1
    if width > table.seconds.shape[1]:
        seconds = np.full((len(table.seconds), width), np.inf)
        seconds[:, : table.seconds.shape[1]] = table.seconds
        table = dataclasses.replace(table, seconds=seconds)
    return table


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


def _outcome(policy: Policy, positions: Positions, costs: CostTable) -> Outcome:
    parts = []
    for low, _, block in positions.blocks():
        part = _budget.cost_rows(costs, slice(low, low + len(block)))
        done = _budget.walk(block, part, policy.actions(block, part))
        parts.append((done.seconds, done.rounds, done.budget, done.whole, done.drawn, done.expected))
    return Outcome(policy, *(np.concatenate(column) for column in zip(*parts, strict=True)))


class ReplayResult:
    """Outcomes of policies on one trace, with paired bootstrap intervals over prompts.

    Prompts are drawn with replacement within each workload, all sequences of a prompt together; every policy is judged on the
    same draws. A ratio is that of the sums (tokens over seconds), in the sample and in each draw; intervals are percentiles.

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
        ar: Floats,
        hindsight: Floats,
        *,
        bootstrap: int,
        seed: int,
        provenance: dict[str, Any],
    ) -> None:
        self.outcomes = outcomes
        self.tokens = positions.tokens
        self.workload = np.array(positions.workload, object)
        self.workloads = [w for w in dict.fromkeys(positions.workload) if self.tokens[self.workload == w].any()]
        self._ar, self._hindsight = ar, hindsight
        self.provenance = provenance
        self._draws = _Bootstrap(positions, bootstrap, seed)

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
            the last three each with 95 % bounds ``_low`` and ``_high``; NaN bounds where there is one prompt only.
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

    def _rows(self, counted: NDArray[np.bool_]) -> list[dict[str, Any]]:
        tokens = int(self.tokens[counted].sum())
        seconds = np.stack([outcome.seconds for outcome in self.outcomes.values()], axis=1)
        ratios = {
            key: self._draws.ratios(above, seconds, counted)
            for key, above in (
                ("tokens_per_second", self.tokens),
                ("speedup", self._ar),
                ("hindsight_share", self._hindsight),
            )
        }
        rows = []
        for k, (name, outcome) in enumerate(self.outcomes.items()):
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
            rows.append(row)
        return rows

    def gain(self, policy: str | Policy, over: str | Policy, workload: str | None = None) -> Interval:
        """Relative gain in tokens per second of one policy over another, paired: (value, low, high), 0.05 meaning 5 % more."""
        a, b = self._find(policy), self._find(over)
        value, low, high = self._draws.ratio(b.seconds, a.seconds, self._counted(workload))
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
    """Draws of prompts with replacement, within workloads; the same for everything that is asked."""

    def __init__(self, positions: Positions, count: int, seed: int) -> None:
        if count < 1:
            raise DdsimError(f"bootstrap: needs at least 1 resample, is {count}")
        self.count, self.seed = count, seed
        prompts: dict[tuple[str, str], int] = {}
        keys = zip(positions.workload, positions.prompt_id, strict=True)
        self.unit = np.array([prompts.setdefault(key, len(prompts)) for key in keys], np.int64)
        workloads = np.array([w for w, _ in prompts], object)
        self.strata = [np.flatnonzero(workloads == w) for w in dict.fromkeys(workloads.tolist())]
        self.units = len(prompts)

    @cached_property
    def _small(self) -> NDArray[np.float32] | None:
        """All weights, if they fit in 64 MiB."""
        if self.count * self.units > 1 << 24:
            return None
        return np.concatenate(list(self._generate()))

    def _generate(self) -> Iterator[NDArray[np.float32]]:
        """How often each prompt was drawn, [draws, prompts], a few draws at a time."""
        rng = np.random.default_rng(self.seed)
        for first in range(0, self.count, _DRAWS):
            rows = min(_DRAWS, self.count - first)
            weights = np.zeros((rows, self.units), np.float32)
            for members in self.strata:
                drawn = members[rng.integers(0, len(members), (rows, len(members)))]
                np.add.at(weights, (np.arange(rows)[:, None], drawn), 1)
            yield weights

    def sums(self, values: NDArray[Any], counted: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Sums of per-sequence values [S] or [S, M] over the counted sequences: of the sample [M], and of each draw [draws, M]."""
        chosen = np.asarray(values, np.float64).reshape(len(values), -1)[counted]
        per_unit = np.zeros((self.units, chosen.shape[1]))
        np.add.at(per_unit, self.unit[counted], chosen)
        parts = self._generate() if self._small is None else iter([self._small])
        return per_unit.sum(axis=0), np.concatenate([part.astype(np.float64) @ per_unit for part in parts])

    def ratios(self, above: NDArray[Any], below: NDArray[Any], counted: NDArray[np.bool_]) -> Floats:
        """Ratios of sums over sequences, ``above`` [S] over each column of ``below`` [S, M]: value, low, high, float64 [3, M].

        The bounds are NaN if the sequences counted come from one prompt.
        """
        value, draws = self.sums(np.column_stack([above, below]), counted)
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.full((3, len(value) - 1), np.nan)
            out[0] = value[0] / value[1:]
            if len(np.unique(self.unit[counted])) > 1:
                out[1:] = np.nanquantile(draws[:, :1] / draws[:, 1:], [0.025, 0.975], axis=0)
        return out

    def ratio(self, above: NDArray[Any], below: NDArray[Any], counted: NDArray[np.bool_]) -> Interval:
        """`ratios` with one column below."""
        value, low, high = self.ratios(above, below[:, None], counted)[:, 0].tolist()
        return value, low, high


def replay(
    trace: Trace,
    cost: CostModel,
    policies: Sequence[Policy | str] | None = None,
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
    policies : list of Policy or of names (see `parse_policy`), optional
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
    positions = positions_of(trace, progress=progress)
    if not positions.tokens.sum():
        raise DdsimError("trace: no sequence has two tokens, so there is no round to replay")
    costs = priced(positions, cost)
    most = measured_budget(cost, positions.max_budget)
    if policies is None:
        policies = default_policies(most, cost)
    chosen = [_ready(policy, trace, cost) for policy in policies]
    if not chosen:
        raise DdsimError("no policies to replay")
    names = [policy.name for policy in chosen]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DdsimError(f"two policies are called {min(twice)!r}; give each a name of its own")
    outcomes = {p.name: _outcome(p.prepare(positions, costs), positions, costs) for p in chosen}
    if calibration is not None:
        better = positions_of(trace, calibration=calibration, progress=progress)
        for policy in chosen:
            if policy.calibration is None and _depends(policy, calibration):
                again = _outcome(policy.prepare(better, costs), better, costs)
                outcomes[policy.name + CALIBRATED] = again

    def alone(policy: Policy) -> Floats:
        return (outcomes[policy.name] if policy.name in outcomes else _outcome(policy, positions, costs)).seconds

    provenance = {
        "ddsim": ddsim.__version__,
        "trace": {
            "fingerprint": trace.fingerprint,
            "positions": len(trace),
            "sequences": len(trace.sequences),
            "recording": trace.meta["provenance"],
        },
        "cost": {"kind": cost.kind, "range": str(cost.range), "provenance": cost.provenance},
        "calibration": None if calibration is None else calibration.provenance,
        "bootstrap": bootstrap,
        "seed": seed,
    }
    return ReplayResult(
        positions,
        outcomes,
        alone(Autoregressive()),
        alone(Hindsight()),
        bootstrap=bootstrap,
        seed=seed,
        provenance=provenance,
    )


def _ready(policy: Policy | str, trace: Trace, cost: CostModel) -> Policy:
    """The policy, if trace and costs can answer for it."""
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(policy, Policy):
        raise DdsimError(f"policies: expected a Policy or its name, got {type(policy).__name__}")
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
    positions = positions_of(trace, calibration=calibration)
    costs = priced(positions, cost)
    ready = _ready(policy, trace, cost).prepare(positions, costs)
    parts = []
    for low, first, block in positions.blocks():
        part = _budget.cost_rows(costs, slice(low, low + len(block)))
        actions = ready.actions(block, part)
        accepted = _budget.walk(block, part, actions).accepted
        here = np.flatnonzero(accepted >= 0)
        sequence = np.searchsorted(block.starts, here, side="right") - 1
        nodes = np.minimum(actions[here], block.nodes[here])
        nodes[actions[here] == _budget.CHAIN] = block.horizon
        alone = actions[here] == _budget.NO_DRAFT
        nodes[alone] = 0
        seconds = part.seconds[part.row[here], nodes]
        seconds[alone] = part.ar_seconds[part.row[here[alone]]]
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
        The recommendation, its throughput and what it gains.
    choice : str
        Name of the recommended policy in `result`.
    policy : Policy
        Recommended, ready to use: a fixed budget, or an adaptive rule with its price.
    result : ReplayResult
        AR, DFlash, fixed and adaptive policies, Hindsight.
    best_budget : int
        Fixed budget of highest realised throughput.
    flat : (int, int)
        Smallest and largest fixed budget within 1 % of the best one's throughput.
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
    """A row a workload: its own best fixed budget, the range within 1 % of it, tokens per second there, what the pooled best
    budget loses, and what the recommended policy gains over its own best (with interval)."""
    notes: tuple[str, ...]
    _curve: pd.DataFrame
    details: tuple[str, ...] = ()

    def table(self, by: Literal["workload"] | None = None) -> pd.DataFrame:
        """The table of `result`."""
        return self.result.table(by)

    def curve(self) -> pd.DataFrame:
        """Fixed budgets: budget, tokens_per_second, low, high, acceptance_length."""
        return self._curve

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON-able object."""
        return {
            "schema_version": 1,
            "kind": "ddsim-plan",
            "sentence": self.sentence,
            "details": list(self.details),
            "policy": self.policy.to_json(),
            "best_budget": self.best_budget,
            "flat": list(self.flat),
            "notes": list(self.notes),
            "curve": _records(self._curve),
            "workloads": _records(self.by_workload),
            "replay": self.result.to_json(),
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

    The simplest policy wins unless a less simple one is faster by at least half a per cent, and beyond its paired 95 % interval: AR, then the chain, then one fixed
    budget, then one on calibrated marginals, then the fastest of CaDDTree, RoundRatio and LongRun, then the fastest of these on
    calibrated marginals. With one prompt there are no intervals, and the fastest wins.

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
    adaptive: list[Policy] = [CaDDTree(), RoundRatio(), LongRun()]
    policies = [Autoregressive(), DFlash(), BestFixed(), *adaptive, Hindsight()]
    result = replay(trace, cost, policies, calibration=calibration, bootstrap=bootstrap, seed=seed, progress=progress)
    positions = positions_of(trace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # replay has said it
        costs = priced(positions, cost)
    spent, rounds = _budget.fixed_walks(positions, costs)
    every = np.ones(positions.sequences, bool)
    best, flat = _flat_range(spent.sum(axis=0))
    candidates, rules = ["DFlash", "BestFixed", "BestFixed" + CALIBRATED], []
    for ending in ("", CALIBRATED):
        names = [policy.name + ending for policy in adaptive if policy.name + ending in result.outcomes]
        if names:
            rules.append(min(names, key=lambda name: float(result.outcomes[name].seconds.sum())))
    choice = "AR"
    for candidate in candidates + rules:
        if candidate not in result.outcomes:
            continue
        value, low, _ = result.gain(candidate, choice)
        if value >= WORTHWHILE and (low if np.isfinite(low) else value) > 0:
            choice = candidate
    rule = choice if choice in rules else min(rules, key=lambda name: float(result.outcomes[name].seconds.sum()))
    last = measured_budget(cost, positions.max_budget)
    return Plan(
        sentence=_sentence(result, choice),
        choice=choice,
        policy=_settled(result.outcomes[choice].policy),
        result=result,
        best_budget=best,
        flat=flat,
        by_workload=_workloads(result, spent, best, choice),
        notes=_notes(result, positions, last, best, spent),
        _curve=_fixed_curve(result, spent, rounds, every),
        details=_details(result, choice, rule, best, flat),
    )


def _settled(policy: Policy) -> Policy:
    """The policy as a decoder would be given it."""
    return DDTree(policy.budget) if isinstance(policy, BestFixed) and policy.budget is not None else policy


def _flat_range(seconds: Floats) -> tuple[int, tuple[int, int]]:
    """The budget of least seconds, and the run of budgets around it within 1 % of its throughput."""
    best = int(np.argmin(seconds))
    near = seconds * 0.99 <= seconds[best]
    low = high = best
    while low > 0 and near[low - 1]:
        low -= 1
    while high + 1 < len(near) and near[high + 1]:
        high += 1
    return best, (low, high)


def _fixed_curve(result: ReplayResult, spent: Floats, rounds: NDArray[Any], counted: NDArray[np.bool_]) -> pd.DataFrame:
    """The throughput of every fixed budget that the costs cover."""
    covered = np.flatnonzero(np.isfinite(spent).all(axis=0))
    value, low, high = result._draws.ratios(result.tokens, spent[:, covered], counted)
    return pd.DataFrame(
        {
            "budget": covered,
            "tokens_per_second": value,
            "low": low,
            "high": high,
            "acceptance_length": result.tokens[counted].sum() / rounds[counted][:, covered].sum(axis=0),
        }
    )


def _workloads(result: ReplayResult, spent: Floats, best: int, choice: str) -> pd.DataFrame:
    """For each workload its own best fixed budget, what the pooled one loses there, and what the choice gains over its own."""
    rows = []
    for workload in result.workloads:
        counted = result.workload == workload
        seconds = spent[counted].sum(axis=0)
        own, flat = _flat_range(seconds)
        share = result._draws.ratio(spent[:, own], result.outcomes[choice].seconds, counted)
        rows.append(
            {
                "workload": workload,
                "best_budget": own,
                "flat_low": flat[0],
                "flat_high": flat[1],
                "tokens_per_second": float(result.tokens[counted].sum() / seconds[own]),
                "pooled_budget_loss": float(1 - seconds[own] / seconds[best]),
                "choice_gain": share[0] - 1,
                "choice_gain_low": share[1] - 1,
                "choice_gain_high": share[2] - 1,
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


def _sentence(result: ReplayResult, choice: str) -> str:
    """The recommendation, its throughput, and its gains over AR and over the chain."""
    outcome = result.outcomes[choice]
    policy = outcome.policy
    speed = f"{result.tokens.sum() / outcome.seconds.sum():,.0f} tokens/s"
    if choice == "AR":
        return f"Don't draft: at these costs autoregressive decoding, {speed}, isn't beaten beyond noise."
    if isinstance(policy, DFlash):
        head = "Verify DFlash's chain"
    elif isinstance(policy, BestFixed):
        head = f"Verify trees of {policy.budget} nodes"
    else:
        head = f"Let {policy.name} choose each tree's size"
    if choice.endswith(CALIBRATED):
        head += " from calibrated marginals"
    gains = f"{_about(result.gain(choice, 'AR'))} over AR"
    if choice != "DFlash":
        gains += f" and {_about(result.gain(choice, 'DFlash'))} over DFlash"
    return f"{head}: {speed}, {gains}."


def _details(result: ReplayResult, choice: str, rule: str, best: int, flat: tuple[int, int]) -> tuple[str, ...]:
    """How sure the gains are, and how little it would matter to miss the recommendation."""

    def gain(over: str, policy: str = choice) -> str:
        return _percent(result.gain(policy, over))

    if choice == "AR":
        return (
            f"Over AR, 95 % intervals in brackets: best fixed budget, {best} nodes, {gain('AR', 'BestFixed')}; "
            f"{rule} {gain('AR', rule)}.",
        )
    policy = result.outcomes[choice].policy
    lines = [f"Gains, 95 % intervals in brackets: over AR {gain('AR')}"]
    lines[0] += "." if choice == "DFlash" else f", over DFlash {gain('DFlash')}."
    if choice == rule:
        mean = result.outcomes[choice].budget.sum() / result.outcomes[choice].rounds.sum()
        price = f", at a price of {policy.price:,.0f} tokens/s" if isinstance(policy, LongRun) else ""
        lines.append(f"It verifies {mean:.0f} nodes a round on average{price}.")
    if flat == (best, best):
        lines.append(f"No other fixed budget comes within 1 % of the best, {best} nodes.")
    else:
        lines.append(f"Fixed budgets from {flat[0]} to {flat[1]} nodes come within 1 % of the best, {best}.")
    if choice == rule:
        lines.append(f"Over the best fixed budget {rule} gains {gain('BestFixed')}.")
    elif isinstance(policy, BestFixed):
        lines.append(
            f"No adaptive rule adds as much as {100 * WORTHWHILE:g} % beyond noise; the best, {rule}: {gain(choice, rule)}."
        )
    else:
        lines.append(
            f"No tree adds as much as {100 * WORTHWHILE:g} % beyond noise; the best fixed budget: {gain(choice, 'BestFixed')}."
        )
    return tuple(lines)


def _notes(result: ReplayResult, positions: Positions, last: int, best: int, spent: Floats) -> tuple[str, ...]:
    notes = []
    if result._draws.units < 2:
        notes.append("The trace holds one prompt, so nothing is known of how much another would differ.")
    if last < positions.max_budget:
        notes.append(f"Costs were measured up to {last + 1} tokens; budgets above {last} nodes were not judged.")
    if best == last:
        notes.append(f"The best budget, {best}, is the largest that could be judged; a larger one may be faster still.")
    for workload in result.workloads:
        seconds = spent[result.workload == workload].sum(axis=0)
        loss = 1 - seconds.min() / seconds[best]
        if loss > 0.01:
            notes.append(
                f"On {workload}, {int(seconds.argmin())} nodes would be {100 * loss:.1f} % faster than the pooled best budget."
            )
    return tuple(notes)
