"""Predicted beside measured: rows with intervals, what an error is made of, rounds that differ, lengths as distributions."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.cost.model import CostModel
from ddsim.cost.table import CONTEXT_STEP
from ddsim.policy.contract import Policy, is_autoregressive
from ddsim.replay.bootstrap import _Bootstrap
from ddsim.replay.replay import ReplayResult, replay, replay_rounds
from ddsim.trace.cache import positions_of
from ddsim.trace.trace import Trace
from ddsim_reference.decode import Decoded

DRAWS = 2000
"""Bootstrap samples of the prompts, and permutations."""

Rounded = tuple[int, int, int, int]

Answers = dict[str, dict[int, Decoded]]
"""By policy, and by number of the text in the recording: what has been decoded so far."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What replay says before anything else is decoded: of a recording, at some costs.

    Attributes
    ----------
    result : ReplayResult
        Every policy, each round's ``rule_seconds`` paid.
    rounds : dict of str to list
        Of every policy: the rounds of each text as it decodes them, (root's position, nodes, drafted tokens committed, tokens committed).
    tables : dict of str to DataFrame
        What ``result`` says over all texts ("all") and over each workload.
    baseline : str
        The autoregressive policy.
    rule_seconds : dict of str to float
        What a policy's budgets and trees take on the host beyond those that the costs hold, a round.
    texts : list of list of int
        The recorded tokens of each answer.
    """

    trace: Trace
    cost: CostModel
    result: ReplayResult
    rounds: dict[str, list[list[Rounded]]]
    tables: dict[str, pd.DataFrame]
    baseline: str
    rule_seconds: dict[str, float]
    texts: list[list[int]]
    draws: _Bootstrap


def predict(
    trace: Trace, texts: Sequence[Sequence[int]], cost: CostModel, policies: dict[str, Policy],
    rule_seconds: dict[str, float], *, seed: int = 0,
) -> Prediction:  # fmt: skip
    """Replay policies, which are named apart; ``rule_seconds`` of those that aren't in it are 0."""
    result = replay(trace, cost, list(policies.values()), bootstrap=DRAWS, seed=seed)
    for name, outcome in result.outcomes.items():
        seconds = outcome.seconds + rule_seconds.get(name, 0.0) * outcome.rounds
        result.outcomes[name] = dataclasses.replace(outcome, seconds=seconds)
    rounds = {name: _of_texts(replay_rounds(trace, cost, o.policy), texts) for name, o in result.outcomes.items()}
    by_workload = result.table("workload")
    tables = {"all": result.table()} | {w: by_workload[by_workload["workload"] == w] for w in result.workloads}
    baseline = next(name for name, policy in policies.items() if is_autoregressive(policy))
    draws = _Bootstrap(positions_of(trace, cache=False), DRAWS, seed)
    return Prediction(
        trace, cost, result, rounds, tables, baseline, rule_seconds, [list(text) for text in texts], draws
    )


def priced(answers: Sequence[Decoded], prompt_tokens: Sequence[int], cost: CostModel, plain: bool) -> Floats:
    """Seconds [S] that the cost model gives for the rounds of some answers, at contexts rounded up as replay rounds them."""
    found = np.zeros(len(answers))
    for s, (answer, before) in enumerate(zip(answers, prompt_tokens, strict=True)):
        rounds = np.array([(r.budget + 1, before + r.position) for r in answer.rounds]).reshape(-1, 2)
        tokens, contexts = rounds[:, 0], -(-rounds[:, 1] // CONTEXT_STEP) * CONTEXT_STEP
        if plain:
            found[s] = np.sum(cost.ar_seconds(contexts))
        else:
            found[s] = np.sum(cost.verify_seconds(tokens, contexts) + cost.draft_seconds(context=contexts))
    return found


def _of_texts(rounds: pd.DataFrame, texts: Sequence[Sequence[int]]) -> list[list[Rounded]]:
    """`replay_rounds` text by text; what an answer's end cuts off is committed by no round."""
    out: list[list[Rounded]] = [[] for _ in texts]
    columns = (rounds[name].tolist() for name in ("sequence", "position", "budget", "accepted"))
    for s, position, nodes, accepted in zip(*columns, strict=True):
        left = len(texts[s]) - 1 - position
        out[s].append((position, nodes, min(accepted, left), min(accepted + 1, left)))
    return out


def same_rounds(answer: Decoded, rounds: list[Rounded]) -> bool:
    """Whether an answer's rounds are those of a replay of its text: roots, nodes and committed tokens."""
    return [(r.position, r.budget, min(r.accepted, r.committed), r.committed) for r in answer.rounds] == rounds


def rows(
    said: Prediction, answers: Answers, known: dict[tuple[str, str], dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Predicted beside measured, of every policy over all texts and over each workload that it has decoded whole.

    Rows in ``known`` stay as they are, and new ones are added to it.

    Each side has 95 % intervals over prompts, a prediction's cover its costs too; that of an error is of the prompts that both
    share. ``inside`` tells whether what was measured lies in the prediction's interval (None: one prompt has none).
    ``contributions`` are relative errors of tokens a second that come of costs, of rounds that differ where the text is the same,
    and of other texts: (1 + costs) (1 + rounds) (1 + texts) = 1 + the whole.
    """
    out = []
    known = {} if known is None else known
    workloads = np.array([sequence.workload for sequence in said.trace.sequences], object)
    for workload in ["all", *dict.fromkeys(workloads)]:
        counted = np.ones(len(workloads), bool) if workload == "all" else workloads == workload
        which = np.flatnonzero(counted)
        table = said.tables[workload]
        base = said_base = None
        for name, found in answers.items():
            if not found.keys() >= set(which.tolist()) or not any(found[s].rounds for s in which.tolist()):
                continue
            key = workload, name
            if key not in known:
                known[key] = _row(said, name, found, counted, table[table["policy"] == name].iloc[0])
            row = known[key]
            if name == said.baseline:
                base, said_base = row["measured"]["tokens_per_second"], row["predicted"]["tokens_per_second"]
            for side, over in (("predicted", said_base), ("measured", base)):
                if over is not None:
                    row[side]["speedup"] = row[side]["tokens_per_second"] / over
            if base is not None:
                row["speedup_error"] = row["predicted"]["speedup"] / row["measured"]["speedup"] - 1
            out.append({"workload": workload, "policy": name} | row)
    return out


def _row(
    said: Prediction, name: str, found: dict[int, Decoded], counted: NDArray[np.bool_], table: Any
) -> dict[str, Any]:
    """One policy over the texts that count."""
    outcome, draws = said.result.outcomes[name], said.draws
    everyone = [found.get(s, Decoded(tokens=[0])) for s in range(len(counted))]
    sequences = said.trace.sequences
    tokens = np.array([len(a.tokens) - 1 for a in everyone], float)
    rounds = np.array([len(a.rounds) for a in everyone], float)
    seconds = np.array([a.seconds.get("decode", 0.0) for a in everyone])
    cost = priced(everyone, [s.prompt_tokens for s in sequences], said.cost, name == said.baseline)
    cost += said.rule_seconds.get(name, 0.0) * rounds
    alike = np.array([a.tokens == text for a, text in zip(everyone, said.texts, strict=True)])
    mixed = [np.where(alike, a, b) for a, b in ((said.result.tokens, tokens), (outcome.seconds, cost))]

    def ratio(above: NDArray[Any], below: NDArray[Any]) -> tuple[float, float | None, float | None]:
        value, low, high = draws.intervals(draws.sums(above, counted), draws.sums(below, counted), counted)[:, 0]
        return float(value), _known(low), _known(high)

    speed, length = ratio(tokens, seconds), ratio(tokens, rounds)
    wanted_length = ratio(said.result.tokens, outcome.rounds)
    low, high = (_known(table[f"tokens_per_second_{end}"]) for end in ("low", "high"))
    wanted = float(table["tokens_per_second"]), low, high
    nodes = sum(r.budget for s in np.flatnonzero(counted) for r in everyone[s].rounds)
    measured: dict[str, Any] = {
        **_interval("acceptance_length", length),
        "rounds": int(rounds[counted].sum()),
        "ms_per_round": 1e3 * float(seconds[counted].sum() / rounds[counted].sum()),
        "budget_mean": nodes / float(rounds[counted].sum()),
        **_interval("tokens_per_second", speed),
    }
    predicted: dict[str, Any] = {
        **_interval("acceptance_length", wanted_length),
        "rounds": int(table["rounds"]),
        "ms_per_round": 1e3 * float(table["seconds"]) / int(table["rounds"]),
        "budget_mean": float(table["budget_mean"]),
        **_interval("tokens_per_second", wanted),
    }
    # The error's interval: both sides of it on the same draws of prompts.
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [draws.sums(x, counted)[1] for x in (said.result.tokens, outcome.seconds, tokens, seconds)]
        error = np.nanquantile(sides[0] * sides[3] / (sides[1] * sides[2]) - 1, [0.025, 0.975])
    rates = [
        float(a[counted].sum() / b[counted].sum())
        for a, b in ((tokens, seconds), (tokens, cost), mixed, (said.result.tokens, outcome.seconds))
    ]
    low, high = (None, None) if speed[1] is None else error.tolist()
    return {
        "predicted": predicted,
        "measured": measured,
        "acceptance_length_error": predicted["acceptance_length"] / measured["acceptance_length"] - 1,
        "tokens_per_second_error": predicted["tokens_per_second"] / measured["tokens_per_second"] - 1,
        "tokens_per_second_error_low": low,
        "tokens_per_second_error_high": high,
        "cost_error": float(cost[counted].sum() / seconds[counted].sum()) - 1,
        "contributions": {
            kind: after / before - 1
            for kind, before, after in zip(("costs", "rounds", "texts"), rates[:3], rates[1:], strict=True)
        },
        "inside": {
            "acceptance_length": _inside(length[0], wanted_length),
            "tokens_per_second": _inside(speed[0], wanted),
        },
    }


def first_tokens(said: Prediction, answers: Answers) -> list[dict[str, Any]]:
    """Seconds from handing over a prompt to its first token, predicted beside measured: all texts, and each workload.

    Of a prompt the median over the policies that answered it counts: none of them plays a part before the first token. A row:
    workload, prompts, prompt_tokens (mean), measured, predicted, error, extrapolated (whether the costs of any prompt are).
    """
    tokens = np.array([sequence.prompt_tokens for sequence in said.trace.sequences])
    taken = [[f[s].seconds["prefill"] for f in answers.values() if s in f] for s in range(len(tokens))]
    workload = np.array([sequence.workload for sequence in said.trace.sequences], object)
    known = np.array([bool(some) for some in taken])
    rows = []
    with warnings.catch_warnings(action="ignore"):  # marked instead
        predicted, outside = said.cost.prefill_seconds(tokens), said.cost.prefill_extrapolated(tokens)
    measured = np.array([np.median(some) if some else np.nan for some in taken])
    for name in ("all", *dict.fromkeys(workload)):
        mine = known & ((workload == name) | (name == "all"))
        if mine.any():
            came, told = float(measured[mine].mean()), float(predicted[mine].mean())
            rows.append(
                {
                    "workload": name, "prompts": int(mine.sum()), "prompt_tokens": float(tokens[mine].mean()), "measured": came,
                    "predicted": told, "error": told / came - 1, "extrapolated": bool(outside[mine].any()),
                }
            )  # fmt: skip
    return rows


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(name: str, values: tuple[Any, Any, Any]) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _inside(value: float, interval: tuple[Any, Any, Any]) -> bool | None:
    _, low, high = interval
    return None if low is None else bool(low * (1 - 1e-12) <= value <= high * (1 + 1e-12))


def counted_inside(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How many measured values lie in their prediction's interval, over policies and workloads; the pooled rows don't count."""
    out = {}
    for key in ("tokens_per_second", "acceptance_length"):
        cells = [row["inside"][key] for row in found if row["workload"] != "all" and row["inside"][key] is not None]
        out[key] = {"cells": len(cells), "inside": sum(cells)}
    return out


def agreement(said: Prediction, answers: Answers) -> dict[str, dict[str, int]]:
    """Answers decoded so far, those with the recorded text, and those of these with the replayed rounds."""
    found = {}
    for name, mine in answers.items():
        alike = {s: a for s, a in mine.items() if a.tokens == said.texts[s]}
        same = sum(same_rounds(a, said.rounds[name][s]) for s, a in alike.items())
        found[name] = {"answers": len(mine), "same_text": len(alike), "of_these_same_rounds": same}
    return found


def departures(said: Prediction, answers: Answers, margins: Sequence[np.ndarray], limit: int = 40) -> dict[str, Any]:
    """Where texts first leave the recorded ones, and by how much the best token led the second there; the first ``limit`` by name."""
    found: list[dict[str, Any]] = []
    for name, mine in answers.items():
        for s, answer in mine.items():
            both = zip(answer.tokens, said.texts[s], strict=False)
            index = next((i for i, (a, b) in enumerate(both) if a != b), None)
            if index is not None:
                lead = float(margins[s][index - 1]) if index else None
                found.append(
                    {"policy": name, "prompt": said.trace.sequences[s].prompt_id, "index": index, "margin": lead}
                )
    leads = [f["margin"] for f in found if f["margin"] is not None]
    every = np.concatenate(list(margins))
    return {
        "count": len(found),
        "largest_margin": max(leads, default=None),
        "share_of_positions_within": float(np.mean(every <= max(leads))) if leads else None,
        "first": found[:limit],
    }


def lengths(said: Prediction, answers: Answers, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Tokens a round as distributions: those of the recorded texts beside those of texts with other dice.

    Each policy has ``predicted`` and ``measured``, counts of rounds that commit 1, 2, ... tokens; their ``total_variation``; and
    ``p``, how often it is as large or larger if each prompt's two texts change sides at random, which they may if both come from the same
    distribution.
    """
    out = {}
    longest = said.trace.horizon + 1
    for name, mine in answers.items():
        if name == said.baseline or not mine:
            continue
        which = sorted(mine)
        sides = np.zeros((2, len(which), longest + 1))
        for i, s in enumerate(which):
            sides[0, i] = np.bincount([r[3] for r in said.rounds[name][s]], minlength=longest + 1)
            sides[1, i] = np.bincount([r.committed for r in mine[s].rounds], minlength=longest + 1)
        swap = np.random.default_rng([seed, 3]).random((DRAWS, len(which))) < 0.5
        mixed = [np.where(swap[..., None], sides[1 - k], sides[k]).sum(axis=1) for k in (0, 1)]
        apart = _total_variation(*(side.sum(axis=0) for side in sides))
        drawn = _total_variation(*mixed)
        out[name] = {
            "predicted": sides[0].sum(axis=0)[1:].astype(int).tolist(),
            "measured": sides[1].sum(axis=0)[1:].astype(int).tolist(),
            "total_variation": float(apart),
            "p": float((1 + np.sum(drawn >= apart * (1 - 1e-12))) / (1 + DRAWS)),
        }
    return out


def _total_variation(a: Floats, b: Floats) -> Any:
    """Half the sum of differences of two distributions, given as counts [..., n]."""
    shares = [x / np.maximum(x.sum(axis=-1, keepdims=True), 1) for x in (a, b)]
    return 0.5 * np.abs(shares[0] - shares[1]).sum(axis=-1)


def parts(answers: Sequence[Decoded], prompt_tokens: Sequence[int], cost: CostModel) -> dict[str, Any]:
    """Milliseconds a round by part; timing itself costs a little, so these are not the throughput's.

    ``predicted`` are the costs' own for the same rounds: ``verify``, and ``draft`` with the host's work.
    """
    rounds = np.array(
        [(r.budget + 1, n + r.position) for a, n in zip(answers, prompt_tokens, strict=True) for r in a.rounds]
    )
    names = ("draft", "tree", "verify", "commit", "host")
    found: dict[str, Any] = {n: 1e3 * sum(a.seconds.get(n, 0.0) for a in answers) / len(rounds) for n in names}
    contexts = -(-rounds[:, 1] // CONTEXT_STEP) * CONTEXT_STEP
    seconds = {"draft": cost.draft_seconds(context=contexts), "verify": cost.verify_seconds(rounds[:, 0], contexts)}
    return found | {"predicted": {name: 1e3 * float(np.mean(value)) for name, value in seconds.items()}}
