"""Exact replay of policies over dense traces."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import ddsim
from ddsim import limits
from ddsim.arrays import Floats
from ddsim.cost.model import CostModel
from ddsim.cost.table import CostTable, cost_table
from ddsim.errors import DdsimError, caller_level
from ddsim.policy.contract import Policy, calibration_matters, check_chain, decision_table, prepared, walk_of
from ddsim.policy.parse import policies_of, policy_of, same_policy
from ddsim.policy.rules import Autoregressive, BestFixed, CaDDTree, DDTree, DFlash, Hindsight, LongRun, RoundRatio
from ddsim.replay.arguments import check_given
from ddsim.replay.bootstrap import Interval, _Bootstrap, _knots, cost_error, few
from ddsim.replay.fixed import Fixed
from ddsim.replay.outcome import Key, Outcome, TunedOn, named
from ddsim.replay.said import fastest
from ddsim.replay.shown import ShownReplay, warned
from ddsim.trace.cache import positions_of
from ddsim.trace.calibration import Calibration, CrossCalibration
from ddsim.trace.rounds import Positions
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace

BUDGETS = (8, 16, 32, 64, 128, 256, 512)
"""Fixed budgets of the default policies where passes aren't padded; see `default_budgets`."""


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
    >>> from ddsim.cost.model import CostModel
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
            stacklevel=caller_level(),
        )
    table = cost_table(cost, positions.context, max(last, positions.horizon))
    width = max(positions.max_budget, positions.horizon) + 1
    if width > table.seconds.shape[1]:
        seconds = np.full((len(table.seconds), width), np.inf)
        seconds[:, : table.seconds.shape[1]] = table.seconds
        table = dataclasses.replace(table, seconds=seconds)
    return table


def _tallies(
    runs: Sequence[tuple[Policy, CostTable]], positions: Positions, knots: Floats
) -> list[dict[str, NDArray[Any]]]:
    """What policies that are ready do, each with the costs that it decides on (`decision_table`): all in one pass over the trace."""
    tallies: list[list[dict[str, NDArray[Any]]]] = [[] for _ in runs]
    for low, _, block in positions.blocks():
        for (policy, costs), tally in zip(runs, tallies, strict=True):
            part = costs.take(slice(low, low + len(block)))
            done = walk_of(policy, block, part)
            tally.append(done.sums() | {"verify": done.verification(block, part, knots)})
    return [{name: np.concatenate([one[name] for one in tally]) for name in tally[0]} for tally in tallies]


class ReplayResult(ShownReplay):
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
    outcomes : dict, shown name -> Outcome
        By policy and calibration; names that would be the same are numbered, as in "Half" and "Half (2)".
    tokens : int64 [S], tokens that the rounds of each sequence commit
    workload : [S] names; workloads : list of those with a round

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001)
    >>> result = replay(trace, cost, ["AR", "DDTree:2"])
    >>> round(result.gain("DDTree(2)", "AR")[0], 3), result.table()["acceptance_length"].tolist()
    (1.593, [1.0, 3.0])
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

    def table(self, by: Literal["workload"] | None = None) -> pd.DataFrame:
        """One row a policy, or one a workload and policy.

        Returns
        -------
        pandas.DataFrame
            [workload,] policy, rounds, tokens, acceptance_length (tokens per round), budget_mean (nodes per round), seconds,
            tokens_per_second, speedup (over AR at the same cost model) and hindsight_share (of the throughput of Hindsight),
            the last three each with 95 % bounds ``_low`` and ``_high``; NaN bounds where there is one prompt only. Then prompts, and
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

    @property
    def prompts(self) -> int:
        """Prompts that were replayed; several answers to one count once."""
        return self._draws.units

    @property
    def sentence(self) -> str:
        """The fastest policy, what it gains, and which others aren't significantly slower."""
        return fastest(self)

    @property
    def details(self) -> tuple[str, ...]:
        """A warning, where prompts are too few."""
        return tuple(warned(self.prompts))

    def _counted(self, workload: str | None) -> NDArray[np.bool_]:
        counted = np.ones(len(self.tokens), bool) if workload is None else self.workload == workload
        if not counted.any():
            raise DdsimError(f"no workload {workload!r}; there are {', '.join(self.workloads)}")
        return counted

    def _rows(self, counted: NDArray[np.bool_], outcomes: dict[str, Outcome] | None = None) -> list[dict[str, Any]]:
        outcomes = self.outcomes if outcomes is None else outcomes
        tokens, prompts = int(self.tokens[counted].sum()), len(np.unique(self._draws.unit[counted]))
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
            rows.append(row | {"prompts": prompts, "tuned_on": outcome.tuned_on})
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
            if outcome.policy.hindsight or not rounds:
                continue
            predicted, realised = float(outcome.expected.sum()) / rounds, float(outcome.drawn.sum()) / rounds
            rows.append([name, rounds, predicted, realised, predicted / realised])
        return pd.DataFrame(rows, columns=["policy", "rounds", "predicted", "realised", "ratio"])

    def _find(self, policy: str | Policy) -> Outcome:
        if isinstance(policy, str):
            found = [self.outcomes[policy]] if policy in self.outcomes else []
        else:
            plain = [outcome for outcome in self.outcomes.values() if not outcome.calibrated]
            alike = [
                [o for o in plain if policy is o.asked or policy is o.policy],
                [o for o in plain if same_policy(policy, o.asked)],
                [o for o in plain if policy.name == o.asked.name],
            ]
            found = next((outcomes for outcomes in alike if outcomes), [])
        if len(found) != 1:
            name = policy if isinstance(policy, str) else policy.name
            how = "was replayed more than once" if found else "was not replayed"
            raise DdsimError(f"policy {name!r} {how}; there are {', '.join(self.outcomes)}")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """Tables and provenance as one JSON-able object."""
        return {
            "schema_version": 1,
            "kind": "ddsim-replay",
            "sentence": self.sentence,
            "prompts": self.prompts,
            "enough_prompts": not few(self.prompts),
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
        it must have been fitted on other prompts: `ddsim.cross_calibrate` sees to it. Hindsight stays that of the raw trees, but for a path correction.
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
        A budget above what trace or cost model answer, a policy given twice, an empty trace.

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
    with cost.one_warning():
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
        self.trace, self.cost, self.calibration, self.progress = trace, cost, calibration, progress
        self.positions = positions_of(trace, progress=progress)
        if not self.positions.tokens.sum():
            raise DdsimError("trace: no sequence has two tokens, so there is no round to replay")
        self.costs = priced(self.positions, cost)
        self.knots = _knots(cost, self.costs.seconds.shape[1])
        self.most = measured_budget(cost, self.positions.max_budget)
        self.better = None if calibration is None else positions_of(trace, calibration=calibration, progress=progress)
        self._fixed: dict[tuple[bool, bool], Fixed] = {}
        self._of: dict[tuple[str, bool], Outcome] = {}

    def outcomes(self, policies: Sequence[Policy], sequences: NDArray[np.bool_] | None = None) -> dict[Key, Outcome]:
        """What policies do, tuned on some of the sequences (default all), and again calibrated where that matters."""
        out = self._run(policies, sequences)
        if self.calibration is None:
            return out
        kind = self.calibration.kind
        again = [policy for policy in policies if policy.calibration is None and calibration_matters(policy, kind)]
        return out | self._run(again, sequences, calibrated=True)

    def _run(
        self, policies: Sequence[Policy], sequences: NDArray[np.bool_] | None, calibrated: bool = False
    ) -> dict[Key, Outcome]:
        """Outcomes on the trees as recorded or on calibrated ones."""
        positions = self._on(calibrated)
        tables = [decision_table(policy, self.cost, self.costs) for policy in policies]
        runs = []
        for policy, costs in zip(policies, tables, strict=True):
            if policy.solves in ("budget", "chain"):  # the walks that say it are kept
                walked = self.fixed(calibrated, chains=policy.solves == "chain")
                runs.append((policy.at(walked.best(sequences)[0]), costs))
            else:
                runs.append((prepared(policy, positions, costs, sequences=sequences), costs))
        tallies = _tallies(runs, positions, self.knots)
        found: dict[Key, Outcome] = {}
        for policy, (ready, _), sums in zip(policies, runs, tallies, strict=True):
            tuned_on = self._tuned_on(policy, calibrated)
            found[id(policy), calibrated] = Outcome(
                **sums, policy=ready, asked=policy, calibrated=calibrated, tuned_on=tuned_on
            )
        return found

    def _on(self, calibrated: bool) -> Positions:
        return self.better if calibrated and self.better is not None else self.positions

    def _tuned_on(self, policy: Policy, calibrated: bool) -> TunedOn | None:
        if policy.solves:
            return "same prompts"
        seen = [c for c in (policy.calibration, self.calibration if calibrated else None) if c is not None]
        if any(not isinstance(c, CrossCalibration) and _fitted_here(c, self.trace) for c in seen):
            return "same prompts"
        return "other prompts" if seen else None

    def rounds(self, outcome: Outcome) -> pd.DataFrame:
        """`replay_rounds` of what was replayed."""
        return _rounds(
            outcome.policy, self._on(outcome.calibrated), decision_table(outcome.policy, self.cost, self.costs)
        )

    def fixed(self, calibrated: bool = False, *, chains: bool = False) -> Fixed:
        """Every fixed budget or every chain, on the trees as recorded or on calibrated ones."""
        key = calibrated, chains
        if key not in self._fixed:
            self._fixed[key] = Fixed.walked(self._on(calibrated), self.costs, self.knots, chains=chains)
        return self._fixed[key]

    def outcome_of(self, fixed: Policy, calibrated: bool = False) -> Outcome:
        """What one fixed budget or chain does; its number counts as tuned on the trace."""
        key = repr(fixed), calibrated
        if key not in self._of:
            (outcome,) = self._run([fixed], None, calibrated).values()
            self._of[key] = dataclasses.replace(outcome, tuned_on="same prompts")
        return self._of[key]

    def result(self, outcomes: dict[Key, Outcome], *, bootstrap: int, seed: int) -> ReplayResult:
        """Outcomes with their intervals and where they come from."""

        def alone(policy: Policy) -> Outcome:
            plain = [o for o in outcomes.values() if not o.calibrated and same_policy(o.asked, policy)]
            return plain[0] if plain else self._run([policy], None)[id(policy), False]

        trace, cost, error = self.trace, self.cost, cost_error(self.cost)
        provenance = {
            "ddsim": ddsim.__version__,
            "trace": {
                "fingerprint": trace.fingerprint,
                "positions": len(trace),
                "sequences": len(trace.sequences),
                "recording": trace.meta["provenance"],
            },
            "cost": {
                "kind": cost.kind,
                "range": str(cost.range),
                "buckets": None if cost.buckets is None else list(cost.buckets),
                "provenance": cost.provenance,
            },
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
            named(outcomes.values()),
            alone(Autoregressive()),
            alone(Hindsight()),
            bootstrap=bootstrap,
            seed=seed,
            provenance=provenance,
            cost_error=error,
        )


def _fitted_here(calibration: Calibration, trace: Trace) -> bool:
    """Whether a calibration may have seen this trace; one that doesn't say counts as if it had."""
    origin = calibration.provenance.get("trace")
    return origin is None or origin == trace.fingerprint


def _ready(policy: Policy | str, trace: Trace, cost: CostModel) -> Policy:
    """The policy, if trace and costs can answer for it."""
    policy = policy_of(policy)
    check_chain(policy, trace.horizon)
    if policy.fixed is not None and policy.fixed > 0:  # neither the chain nor without a draft
        trace.check_budget(policy.fixed)
        most = measured_budget(cost, trace.max_budget)
        if policy.fixed > most:
            raise DdsimError(
                f"{policy.name} verifies {policy.fixed + 1} tokens, but costs were measured up to "
                f"{cost.range.tokens[1]:g}; choose a budget of at most {most} or profile further"
            )
    return policy


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
    with cost.one_warning():
        return _rounds(policy, positions, decision_table(policy, cost, priced(positions, cost)))


def _rounds(policy: Policy, positions: Positions, costs: CostTable) -> pd.DataFrame:
    """`replay_rounds`, with the costs that the policy decides on."""
    ready = prepared(policy, positions, costs)
    parts = []
    for low, first, block in positions.blocks():
        part = costs.take(slice(low, low + len(block)))
        done = walk_of(ready, block, part)
        here, nodes, seconds = done.visits(block, part)
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
                    "accepted": done.accepted[here],
                    "seconds": seconds,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
