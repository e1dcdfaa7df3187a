"""What a plan says: its sentence, why, how sure that is, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddsim.cost.model import CostModel
from ddsim.policy.choose import CHAIN, NO_DRAFT
from ddsim.policy.contract import Policy
from ddsim.replay.bootstrap import ENOUGH, FEW, WORTHWHILE, Interval, cost_error, few, percent, sure
from ddsim.replay.outcome import Outcome
from ddsim.replay.replay import _records
from ddsim.replay.why import Change
from ddsim.text import listed, signed

if TYPE_CHECKING:
    from ddsim.replay.plan import Plan
    from ddsim.replay.replay import _Replayer


def _is_tree(policy: Policy) -> bool:
    """Whether it verifies trees of one size."""
    return policy.fixed is not None and policy.fixed >= 0


def _about(interval: Interval) -> str:
    """The gain alone, with as many digits as one remembers."""
    return signed(interval[0], 0 if abs(interval[0]) >= 0.1 else 1)


def said_runs(runs: Sequence[tuple[int, int]]) -> str:
    """Runs of budgets in words.

    Examples
    --------
    >>> said_runs([(62, 63), (116, 127), (255, 255)])
    '62 to 63, 116 to 127 and 255'
    """
    words = [f"{first} to {last}" if last > first else f"{first}" for first, last in runs]
    return listed(words)


def _sentence(advice: Plan) -> str:
    """The recommendation, its throughput, and its gains over AR and over the chain."""
    result, policy = advice.result, advice.policy
    alone, chain, _ = advice.baselines
    speed = f"{result.tokens.sum() / advice._outcome.seconds.sum():,.0f} tokens/s"
    if policy.fixed == NO_DRAFT:
        return f"Don't draft: at these costs autoregressive decoding, {speed}, isn't beaten beyond noise."
    if policy.fixed == CHAIN:
        head = "Verify DFlash's chain"
    elif _is_tree(policy):
        head = f"Verify trees of {policy.fixed} nodes"
    else:
        head = f"Let {policy.name} choose each tree's size"
    if advice._outcome.calibrated:
        head += " from calibrated marginals"
    gains = f"{_about(advice.gain(alone))} over {alone}"
    if policy.fixed != CHAIN:
        gains += f" and {_about(advice.gain(chain))} over {chain}"
    return f"{head}: {speed}, {gains}."


def _details(
    advice: Plan, rule: str | None, dropped: bool, cost: CostModel, picked: NDArray[Any] | None
) -> tuple[str, ...]:
    """How sure the gains are, and how little it would matter to miss the recommendation.

    ``dropped``: the best rule was faster than the budget to take, but not than the best budget.
    """
    choice, best, policy, outcomes = advice.choice, advice.best_budget, advice.policy, advice.result.outcomes
    alone, chain, best_fixed = advice.baselines

    def gain(over: str) -> str:
        return percent(sure(advice.gain(over), prompts))

    def between(name: str, over: Outcome) -> str:
        return percent(sure(advice.result._gain(outcomes[name], over), prompts))

    prompts = advice.result.prompts
    enough = prompts >= ENOUGH
    if policy.fixed == NO_DRAFT:
        line = f"Over {alone} the best fixed budget, {best} nodes, gains {between(best_fixed, outcomes[alone])}"
        line += "" if rule is None else f", {rule} {between(rule, outcomes[alone])}"
        return _reason(advice, picked), f"{line}: {_judgement(advice, cost, enough)}"
    line = f"Over {alone} {gain(alone)}"
    line += "" if policy.fixed == CHAIN else f", over {chain} {gain(chain)}"
    lines = [_reason(advice, picked), f"{line}: {_judgement(advice, cost, enough)}"]
    if choice == rule:
        mean = outcomes[choice].budget.sum() / outcomes[choice].rounds.sum()
        price = f", at a price of {policy.price:,.0f} tokens/s" if policy.price is not None else ""
        lines.append(f"It verifies {mean:.0f} nodes a round on average{price}.")
    if advice.near_best == ((best, best),):
        lines.append(f"No other fixed budget comes within 1 % of the best, {best} nodes.")
    else:
        line = f"Fixed budgets of {said_runs(advice.near_best)} nodes come within 1 % of the best, {best}"
        if enough and advice.budget != best:
            line += f"; {advice.budget} is the smallest of them that isn't significantly worse"
        elif enough and advice.near_best[0][0] < best:
            line += "; smaller ones are significantly worse"
        lines.append(line + ".")
    if choice == rule:
        lines.append(f"Over the best fixed budget {rule} gains {between(rule, outcomes[best_fixed])}.")
    elif not enough and (rule is not None or not _is_tree(policy)):
        named, name = (f"{rule}, the best rule,", rule) if rule is not None else ("the best fixed budget", best_fixed)
        lines.append(
            f"The simplest policy is recommended; {named} gains {between(name, advice._outcome)}, which may be chance."
        )
    elif not _is_tree(policy) and not dropped:
        over = between(best_fixed, advice._outcome)
        lines.append(f"No tree adds as much as {100 * WORTHWHILE:g} % beyond noise; the best fixed budget: {over}.")
    elif rule is not None and dropped:
        over = between(rule, outcomes[best_fixed])
        lines.append(f"No adaptive rule beats the best fixed budget beyond noise; the best, {rule}: {over}.")
    elif rule is not None:
        over = between(rule, advice._outcome)
        lines.append(f"No adaptive rule adds as much as {100 * WORTHWHILE:g} % beyond noise; the best, {rule}: {over}.")
    if advice.foresight is not None:
        lines.append(
            f"It reaches {100 * advice.judged()['hindsight_share']:.0f} % of hindsight, which knows the text; where texts are drawn from "
            f"the drafter's own probabilities the best rule reaches {100 * advice.foresight.without:.0f} %: {_said_of_chance(advice)}."
        )
    return tuple(lines)


def _said_of_chance(advice: Plan) -> str:
    """How much of the distance to hindsight is chance."""
    assert advice.foresight is not None
    chance = advice.foresight.chance(advice.judged()["hindsight_share"])
    return "the distance is chance" if chance == 1 else f"{100 * chance:.0f} % of the distance is chance"


def _reason(advice: Plan, picked: NDArray[Any] | None) -> str:
    """Why this setting and not the next: what that would cost, and bring. ``picked``: nodes of each round, of a rule."""
    policy, result = advice.policy, advice.result
    if policy.fixed in (CHAIN, NO_DRAFT):
        tree, mine = result.outcomes[advice.baselines[2]], result.outcomes[advice.choice]
        rounds = mine.rounds.sum() / tree.rounds.sum()
        change = Change(advice.best_budget, tree.seconds.sum() / mine.seconds.sum() * rounds - 1, rounds - 1)
        return f"A round of the best tree, {change.nodes} nodes, {change} than {'the chain' if policy.fixed == CHAIN else 'one without a draft'}."
    if picked is not None:
        low, high = np.percentile(picked, [10, 90])
        return f"Rounds differ in what a node brings: a tenth of them get at most {low:.0f} nodes, another tenth {high:.0f} or more."
    return str(advice.why)


def _judgement(advice: Plan, cost: CostModel, enough: bool) -> str:
    """What the gains were judged on, and what their intervals cover."""
    error = cost_error(cost)
    costs = f"an error of {100 * error:.2g} % in the costs" if error else "no error of the costs, which count as exact"
    if advice.judged_on == "same prompts":
        return "on the prompt that the choice was made on."
    text = f"on prompts that the choice wasn't made on ({len(advice.fold_choices)} parts)"
    return f"{text}; the intervals cover other prompts and {costs}." if enough else f"{text}."


def _notes(advice: Plan, replayed: _Replayer) -> tuple[str, ...]:
    notes = []
    result, best, last = advice.result, advice.best_budget, replayed.most
    units = result._draws.units
    if units < ENOUGH:
        notes.append(few(units))
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
