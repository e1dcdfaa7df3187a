"""What replays and full batches say: the best policy, how sure that is, and a warning where prompts are too few to tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddsim.replay.bootstrap import ENOUGH, WORTHWHILE, few, percent, sure
from ddsim.text import between, listed

NAMED = 3
"""Policies that a sentence names at most."""


def fastest(result: Any) -> str:
    """Which policy of a `ReplayResult` is fastest, what it gains over AR, and which can't be told from it.

    Hindsight is left out, which no server can run.
    """
    speeds = {
        name: float(result.tokens.sum() / o.seconds.sum())
        for name, o in result.outcomes.items()
        if not o.policy.hindsight
    }
    if not speeds:
        return f"{listed(list(result.outcomes))} knows the text: a bound, and nothing that can be run."
    best = max(speeds, key=speeds.__getitem__)
    enough = result.prompts >= ENOUGH
    mine = result.outcomes[best]
    text = f"{best} is the fastest of {len(speeds)} policies" if len(speeds) > 1 else f"{best} decodes"
    text += f": {speeds[best]:,.0f} tokens/s"
    if mine is not result._ar and best != "AR":
        text += f", {percent(sure(result._gain(mine, result._ar), result.prompts))} over AR"
    if not enough or len(speeds) == 1:
        return f"{text}."
    near = [name for name in speeds if name != best and not result._gain(mine, result.outcomes[name])[1] > 0]
    if not near:
        return f"{text}; {'every' if len(speeds) > 2 else 'the'} other is significantly slower."
    near.sort(key=lambda name: -speeds[name])
    told = near if len(near) <= NAMED else [*near[: NAMED - 1], f"{len(near) - NAMED + 1} others"]
    return f"{text}; {listed(told)} {'are' if len(near) > 1 else 'is'}n't significantly slower."


def best_of_batches(result: Any) -> tuple[str, tuple[str, ...]]:
    """The best setting of a `ServingResult` at each batch size in a sentence, and what the best rule does where it isn't taken.

    That is the best fixed setting, unless a rule gains at least half a per cent over it and beyond noise.
    """
    table, prompts = result.table(), result.prompts
    parts, left = [], []
    for size, rows in table.groupby("batch", sort=False):
        of = {row["policy"]: row for row in rows.to_dict("records")}
        fixed = result.best_fixed(int(size))
        rules = [row for name, row in of.items() if (size, name) not in result.fixed]
        top = max(rules, key=lambda row: row["over_fixed"], default=None)
        at = f"{size} request{'s' * (size > 1)}"
        if top is None:
            parts.append(f"{at}: {_setting(of[fixed])}, {of[fixed]['tokens_per_second']:,.0f} tokens/s")
            continue
        gain = tuple(top[f"over_fixed{end}"] for end in ("", "_low", "_high"))
        said = percent(sure(gain, prompts))
        low = gain[1] if np.isfinite(gain[1]) and prompts >= ENOUGH else gain[0]
        if prompts >= ENOUGH and gain[0] >= WORTHWHILE and low > 0:
            parts.append(
                f"{at}: {top['policy']}, {top['tokens_per_second']:,.0f} tokens/s, {said} over {_setting(of[fixed])}"
            )
        else:
            parts.append(f"{at}: {_setting(of[fixed])}, {of[fixed]['tokens_per_second']:,.0f} tokens/s")
            left.append(f"{said} at {size} ({top['policy']})")
    details = []
    if left:
        why = "adds half a per cent beyond noise to" if prompts >= ENOUGH else "can be told from"
        details.append(f"No rule {why} the best fixed setting there; the best: {listed(left)}.")
    return f"Best at {'; '.join(parts)}.", tuple([f"Warning: {few(prompts)}"] * (prompts < ENOUGH) + details)


def _setting(row: dict[str, Any]) -> str:
    """A fixed setting in words."""
    name, nodes = str(row["policy"]), round(float(row["budget_mean"]))
    if name == "AR":
        return "no draft"
    return f"trees of {nodes} nodes" if name.startswith(("BestFixed", "DDTree")) else f"{name} ({nodes} tokens)"


def won(policies: list[str], worth: list[float], unit: str) -> str:
    """Which policies are best in how many cases, and what they reach there.

    Examples
    --------
    >>> won(["LongRun", "AR", "LongRun"], [900.0, 177.0, 1000.0], "tokens/s")
    'LongRun is best in 2 of 3 cases (900 to 1,000 tokens/s) and AR in 1 (177).'
    >>> won(["AR"], [177.0], "tokens/s")
    'AR is best: 177 tokens/s.'
    """

    def reached(name: str) -> str:
        of = [value for policy, value in zip(policies, worth, strict=True) if policy == name]
        digits = 0 if min(of) >= 100 else 1
        return between(min(of), max(of), f"{{:,.{digits}f}}".format)

    count = {name: policies.count(name) for name in sorted(dict.fromkeys(policies), key=policies.count, reverse=True)}
    if len(policies) == 1:
        return f"{policies[0]} is best: {reached(policies[0])} {unit}."
    first, *others = count
    parts = [f"{first} is best in {count[first]} of {len(policies)} cases ({reached(first)} {unit})"]
    return f"{listed(parts + [f'{name} in {count[name]} ({reached(name)})' for name in others])}."


def written(answers: int, prompts: int, positions: int, max_budget: int) -> str:
    """What a recording holds that is written for other tools.

    Examples
    --------
    >>> written(2, 1, 1200, 64)
    '2 answers to 1 prompt, 1,200 positions, each with what trees of up to 64 nodes need.'
    """
    held = (
        f"{answers:,} answer{'s' * (answers != 1)} to {prompts:,} prompt{'s' * (prompts != 1)}, {positions:,} positions"
    )
    return f"{held}, each with what trees of up to {max_budget} nodes need."
