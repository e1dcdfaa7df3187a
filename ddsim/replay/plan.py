"""The plan: what to verify, what it gains, and how sure that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim import limits
from ddsim.cost.model import CostModel
from ddsim.policy.contract import Policy, is_rule
from ddsim.policy.parse import policies_of, same_policy
from ddsim.policy.rules import Autoregressive, BestFixed, CaDDTree, DDTree, DFlash, Hindsight, LongRun, RoundRatio
from ddsim.replay.arguments import check_given
from ddsim.replay.bootstrap import FOLDS, WORTHWHILE, Interval, _Bootstrap, _dealt, few, named_interval
from ddsim.replay.bucket import Bucket, further_bucket
from ddsim.replay.chains import Chains, best_chain
from ddsim.replay.fixed import Fixed
from ddsim.replay.outcome import Key, Outcome, TunedOn
from ddsim.replay.plan_text import _details, _is_tree, _notes, _sentence
from ddsim.replay.replay import ReplayResult, _ready, _records, _Replayer
from ddsim.replay.shown import ShownPlan
from ddsim.replay.why import Why, mean_seconds, why
from ddsim.trace.calibration import Calibration, CrossCalibration
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace

if TYPE_CHECKING:
    from ddsim.replay.foresight import Foresight

KIND, SCHEMA_VERSION = "ddsim-plan", 1
"""Of the documents that plans are written as."""


@dataclass(frozen=True, repr=False)
class Plan(ShownPlan):
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

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001)
    >>> advice = plan(trace, cost)
    >>> advice.policy, advice.near_best
    (DFlash(), ((2, 2),))
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
    own best (with interval). ``tuned_on`` says which prompts: "same prompts" for a workload of one. Then budget (the smallest within
    1 % that isn't significantly worse), best_k (of its best chain), context (mean committed tokens) and prompts."""
    notes: tuple[str, ...]
    _curve: pd.DataFrame
    details: tuple[str, ...] = ()
    budget: int = 0
    near_best: tuple[tuple[int, int], ...] = ()
    judged_on: TunedOn = "same prompts"
    fold_choices: tuple[str, ...] = ()
    """What was chosen without each of the parts."""
    baselines: tuple[str, ...] = ("AR", "DFlash", "BestFixed")
    """Names in `result` of what doesn't draft, of the chain and of the best fixed budget."""
    foresight: Foresight | None = None
    """What a planner without foresight could reach of hindsight: most of the distance is chance."""
    chains: Chains | None = None
    """The best chain beside the trees: what an engine that verifies chains would get."""
    bucket: Bucket | None = None
    """The further bucket that would bring the most, where passes are padded; its cost is assumed."""
    why: Why | None = None
    """Where ``budget`` stands on the cost curve: the bucket or step that it fills, what one more node costs and brings."""
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
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "sentence": self.sentence,
            "details": list(self.details),
            "policy": self.policy.to_json(),
            "choice": self.choice,
            "gains": [{"over": name, **named_interval(self.gain(name))} for name in self.baselines],
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
            "chains": None if self.chains is None else self.chains.to_json(),
            "bucket": None if self.bucket is None else self.bucket.to_json(),
            "why": None if self.why is None else self.why.to_json(),
            "prompts": self.result.prompts,
            "enough_prompts": not few(self.result.prompts),
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


def plan(
    trace: Trace,
    cost: CostModel,
    policies: Sequence[Policy | str] | Policy | str | None = None,
    *,
    calibration: Calibration | CrossCalibration | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Recommend a budget or an adaptive rule for what was recorded, at these costs.

    The simplest policy wins unless a less simple one is faster by at least half a per cent, and beyond its paired 95 % interval:
    AR, then the chain, then one fixed budget, then one on calibrated marginals, then the fastest rule of ``policies``, then the
    fastest of these on calibrated marginals. The fixed budget is the smallest within 1 % of the best that isn't
    significantly worse, so a rule has to pass one more test: it must beat the best fixed budget on prompts that neither was tuned
    on, by a 95 % interval above 0. Otherwise the simplest of the others is recommended. With one prompt there are no intervals, and
    the fastest wins.

    The best of several looks better on the prompts that it was picked on than on others. So the gains that are stated are held
    out: the same choice is made without each fifth of the prompts, and judged on that fifth. Intervals cover prompts and costs
    (see `ReplayResult`).

    Parameters
    ----------
    trace, cost, calibration, bootstrap, seed, progress : as in `replay`
    policies : list of Policy or of names (see `parse_policy`), or one, optional
        Rules to choose from, of your own too; default CaDDTree, RoundRatio and LongRun. AR, the chain, every fixed budget and
        Hindsight are always there. What always has the same budget is replayed beside them.

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
    (2, DFlash())
    """
    check_given("plan", trace, cost)
    limits.check("bootstrap", bootstrap)
    limits.check("seed", seed)
    with cost.one_warning():
        return planned(_Replayer(trace, cost, calibration, progress), policies, bootstrap=bootstrap, seed=seed)


def planned(replayed: _Replayer, policies: Any, *, bootstrap: int, seed: int) -> Plan:
    """`plan` for whoever asks the replayer for more."""
    from ddsim.replay.foresight import without_foresight

    contest = _Contest.of(policies, replayed)
    whole = replayed.outcomes(contest.everyone)
    draws = replayed.result(whole, bootstrap=bootstrap, seed=seed)._draws
    every = np.ones(replayed.positions.sequences, bool)
    folds = draws.folds(FOLDS)
    shown, without = dict(whole), []
    if folds is not None:
        tuned = [policy for policy in contest.everyone if policy.solves]
        parts = int(folds.max()) + 1
        for part in range(parts):
            if replayed.progress is not None:
                replayed.progress(part, parts)
            without.append(whole | replayed.outcomes(tuned, folds != part))
        for key in whole:
            if any(key[0] == id(policy) for policy in tuned):
                shown[key] = _dealt(whole[key], [outcomes[key] for outcomes in without], folds)
    for adaptive in (True, False):
        chosen = _choose(replayed, draws, whole, every, contest, adaptive)
        judged, picks, fixed = chosen.outcome, [], chosen.fixed
        if folds is not None:
            picks = [_choose(replayed, draws, part, folds != k, contest, adaptive) for k, part in enumerate(without)]
            judged = _dealt(chosen.outcome, [pick.outcome for pick in picks], folds)
            fixed = {on: _dealt(outcome, [pick.fixed[on] for pick in picks], folds) for on, outcome in fixed.items()}
        if chosen.outcome is not chosen.rule or _beats_fixed(draws, shown, chosen.rule, contest, every):
            break
    if _is_tree(chosen.outcome.asked):
        beside = [key for key, outcome in shown.items() if _alike(outcome, chosen.outcome)]
        shown[(*beside, chosen.outcome.key)[0]] = fixed[chosen.outcome.calibrated]
        last = id(contest.hindsight), False
        shown[last] = shown.pop(last)
    chains = best_chain(replayed, draws, shown[id(contest.best), False], folds)
    result = replayed.result(shown, bootstrap=bootstrap, seed=seed)

    def name_of(outcome: Outcome) -> str:
        names = zip(shown.values(), result.outcomes, strict=True)
        return next((name for other, name in names if _alike(other, outcome)), outcome.name)

    name = name_of(chosen.outcome)
    walked = replayed.fixed()
    best, runs = walked.best()
    advice = Plan(
        sentence="",
        choice=name,
        policy=chosen.outcome.policy,
        baselines=tuple(name_of(whole[id(policy), False]) for policy in contest.baselines),
        result=result,
        best_budget=best,
        budget=chosen.budget,
        flat=next(run for run in runs if run[0] <= best <= run[1]),
        near_best=runs,
        judged_on="same prompts" if folds is None else "other prompts",
        fold_choices=tuple(name_of(pick.outcome) for pick in picks),
        by_workload=_workloads(result, walked, replayed, draws, chosen.budget, judged, folds, chains),
        notes=(),
        _curve=walked.curve(draws, replayed.positions.tokens, every),
        foresight=without_foresight(replayed.trace, replayed.cost, seed=seed),
        chains=chains,
        bucket=further_bucket(replayed, draws),
        why=why(
            chosen.budget,
            mean_seconds(replayed.costs),
            result.tokens.sum() / walked.rounds.sum(0),
            replayed.cost.buckets,
        ),
        _judged=judged,
    )
    picked = None if chosen.outcome.policy.fixed is not None else replayed.rounds(chosen.outcome)["budget"].to_numpy()
    return dataclasses.replace(
        advice,
        sentence=_sentence(advice),
        details=(
            *_details(
                advice, None if chosen.rule is None else name_of(chosen.rule), not adaptive, replayed.cost, picked
            ),
            *((chains.said(result.prompts),) if advice.policy.drafts else ()),
            *((advice.bucket.said(result.prompts),) if advice.bucket is not None and advice.policy.drafts else ()),
        ),
        notes=_notes(advice, replayed),
    )


@dataclass(frozen=True)
class _Contest:
    """Who takes part."""

    alone: Policy
    chain: Policy
    best: Policy
    hindsight: Policy
    given: list[Policy]

    @classmethod
    def of(cls, policies: Any, replayed: _Replayer) -> _Contest:
        always = Autoregressive(), DFlash(), BestFixed(), Hindsight()
        given = policies_of([CaDDTree(), RoundRatio(), LongRun()] if policies is None else policies)
        others = [policy for policy in given if not any(same_policy(policy, other) for other in always)]
        return cls(*always, given=[_ready(policy, replayed.trace, replayed.cost) for policy in others])

    @property
    def everyone(self) -> list[Policy]:
        return [*self.baselines, *self.given, self.hindsight]

    @property
    def baselines(self) -> tuple[Policy, ...]:
        return self.alone, self.chain, self.best

    @property
    def rules(self) -> list[Policy]:
        return [policy for policy in self.given if is_rule(policy)]


@dataclass(frozen=True)
class _Choice:
    """What was chosen on some sequences, and what it does on all."""

    outcome: Outcome
    budget: int
    """The fixed budget to take."""
    fixed: dict[bool, Outcome]
    """What it does and, if calibrated trees differ, what the one for these does."""
    rule: Outcome | None
    """The fastest adaptive rule, or the chosen one."""


def _alike(one: Outcome, other: Outcome) -> bool:
    """Whether both are of one policy on the same trees."""
    return one.calibrated == other.calibrated and same_policy(one.asked, other.asked)


def _beats_fixed(
    draws: _Bootstrap, outcomes: dict[Key, Outcome], rule: Outcome, contest: _Contest, counted: NDArray[np.bool_]
) -> bool:
    """Whether a rule is faster than every best fixed budget, beyond noise."""
    mine = outcomes[rule.key]
    best = [outcome for (policy, _), outcome in outcomes.items() if policy == id(contest.best)]
    gains = [draws.ratios(other, [mine], counted)[:, 0] - 1 for other in best]
    return all((low if np.isfinite(low) else gain) > 0 for gain, low, _ in gains)


def _choose(
    replayed: _Replayer,
    draws: _Bootstrap,
    outcomes: dict[Key, Outcome],
    counted: NDArray[np.bool_],
    contest: _Contest,
    adaptive: bool,
) -> _Choice:
    """The simplest policy that no less simple one beats on the sequences counted, an ``adaptive`` one if it may be.

    ``outcomes`` are tuned on these sequences.
    """

    def on(calibrated: bool, policies: Sequence[Policy]) -> list[Outcome]:
        keys = [(id(policy), calibrated) for policy in policies]
        return [outcomes[key] for key in keys if key in outcomes]

    def spent(outcome: Outcome) -> float:
        return float(outcome.seconds[counted].sum())

    fixed = {
        calibrated: replayed.outcome_of(DDTree(_smallest(replayed.fixed(calibrated), draws, counted)), calibrated)
        for calibrated in (False, True)
        if on(calibrated, [contest.best])
    }
    rules = [min(found, key=spent) for calibrated in (False, True) if (found := on(calibrated, contest.rules))]
    candidates = [*on(False, [contest.alone, contest.chain]), *fixed.values(), *(rules if adaptive else [])]
    value, drawn = draws.seconds(
        np.column_stack([outcome.seconds for outcome in candidates]),
        np.stack([outcome.mix(counted) for outcome in candidates]),
        counted,
    )
    choice = 0
    for k in range(1, len(candidates)):
        gain, low, _ = (
            draws.intervals((value[[choice]], drawn[:, [choice]]), (value[[k]], drawn[:, [k]]), counted)[:, 0] - 1
        )
        if gain >= WORTHWHILE and (low if np.isfinite(low) else gain) > 0:
            choice = k
    chosen = candidates[choice]
    rule = next((rule for rule in rules if rule is chosen), min(rules, key=spent, default=None))
    budget = fixed[False].asked.fixed
    assert budget is not None
    return _Choice(chosen, budget, fixed, rule)


def _smallest(fixed: Fixed, draws: _Bootstrap, counted: NDArray[np.bool_]) -> int:
    """The smallest budget within 1 % of the best that isn't significantly worse on the sequences counted."""
    best, runs = fixed.best(counted)
    near = np.array([n for first, last in runs for n in range(first, min(last, best) + 1)])
    value, drawn = draws.seconds(fixed.seconds[:, near], fixed.mix[near], counted)
    high = draws.intervals((value[-1:], drawn[:, -1:]), (value, drawn), counted)[2]
    return int(near[high >= 1.0][0]) if np.isfinite(high).all() else best


def _workloads(
    result: ReplayResult,
    fixed: Fixed,
    replayed: _Replayer,
    draws: _Bootstrap,
    pooled: int,
    judged: Outcome,
    folds: NDArray[np.int64] | None,
    chains: Chains,
) -> pd.DataFrame:
    """For each workload its own best fixed budget, what the pooled one loses there, and what the choice gains over its own."""
    rows, positions = [], replayed.positions
    best_k = chains.by_workload.set_index("workload")["best_k"]
    lengths = np.diff(positions.starts)
    contexts = np.array([part.mean() for part in np.split(positions.context, positions.starts[1:-1])])
    for workload in result.workloads:
        counted = result.workload == workload
        best, runs = fixed.best(counted)
        flat = next(run for run in runs if run[0] <= best <= run[1])
        own = replayed.outcome_of(DDTree(best))
        held_out = folds is not None and len(np.unique(folds[counted])) > 1
        if folds is not None and held_out:
            others = [counted & (folds != part) for part in range(int(folds.max()) + 1)]
            own = _dealt(own, [replayed.outcome_of(DDTree(fixed.best(other)[0])) for other in others], folds)
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
                "budget": _smallest(fixed, draws, counted),
                "best_k": int(best_k[workload]),
                "context": float(np.average(contexts[counted], weights=lengths[counted])),
                "prompts": len(np.unique(draws.unit[counted])),
            }
        )
    return pd.DataFrame(rows)
