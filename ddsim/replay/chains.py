"""The best chain beside a plan's trees: what an engine that verifies chains would get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.policy.rules import Chain, DDTree
from ddsim.replay.bootstrap import ENOUGH, Interval, _Bootstrap, _dealt, named_interval, percent, sure
from ddsim.replay.outcome import Outcome
from ddsim.replay.replay import _records, _Replayer
from ddsim.replay.shown import spans


@dataclass(frozen=True)
class Chains:
    """Chains of best candidates, at a plan's costs.

    Attributes
    ----------
    k : int
        Tokens of the best chain, chosen on all prompts.
    tokens_per_second : float
        Of the best chain; with several prompts held out: each part by the chain that is best on the others.
    trees_gain : (float, float, float)
        What the best fixed budget gains over it, as far held out: value, low, high.
    curve : DataFrame
        A row a chain: k, tokens_per_second, low, high, acceptance_length; of all prompts.
    by_workload : DataFrame
        A row a workload: workload, best_k, tokens_per_second, and trees_gain, trees_gain_low and trees_gain_high of its own best
        fixed budget over its own best chain. Both are chosen and judged on the same prompts.
    near_best : tuple of (int, int)
        All runs of K within 1 % of the best.
    """

    k: int
    tokens_per_second: float
    trees_gain: Interval
    curve: pd.DataFrame
    by_workload: pd.DataFrame
    near_best: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return self.said(ENOUGH)

    def said(self, prompts: int) -> str:
        """The best chain in words, its interval if that many prompts are enough for one."""
        near = "" if self.near_best == ((self.k, self.k),) else f" ({spans(self.near_best)} within 1 %)"
        speed = f"{self.tokens_per_second:,.0f} tokens/s"
        return f"The best chain, K = {self.k}: {speed}{near}; trees gain {percent(sure(self.trees_gain, prompts))}."

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON-able object."""
        return {
            "k": self.k,
            "near_best": [list(run) for run in self.near_best],
            "tokens_per_second": self.tokens_per_second,
            "trees_gain": named_interval(self.trees_gain),
            "curve": _records(self.curve),
            "workloads": _records(self.by_workload),
        }


def best_chain(replayed: _Replayer, draws: _Bootstrap, trees: Outcome, folds: NDArray[np.int64] | None) -> Chains:
    """What chains yield beside ``trees``, the best fixed budget; with ``folds`` [S] what is chosen is judged on other prompts."""
    walked, tokens = replayed.fixed(chains=True), replayed.positions.tokens
    every = np.ones(len(tokens), bool)

    def best(counted: NDArray[np.bool_]) -> Outcome:
        return replayed.outcome_of(Chain(walked.best(counted)[0]))

    def gain(over: Outcome, of: Outcome, counted: NDArray[np.bool_]) -> Interval:
        value, low, high = draws.ratios(over, [of], counted)[:, 0].tolist()
        return value - 1, low - 1, high - 1

    judged = best(every)
    if folds is not None:
        judged = _dealt(judged, [best(folds != part) for part in range(int(folds.max()) + 1)], folds)
    rows = []
    workload = np.array(replayed.positions.workload, object)
    for name in dict.fromkeys(replayed.positions.workload):
        counted = workload == name
        if not tokens[counted].any():
            continue
        chain, tree = best(counted), replayed.outcome_of(DDTree(replayed.fixed().best(counted)[0]))
        speed = float(tokens[counted].sum() / chain.seconds[counted].sum())
        names = ("trees_gain", "trees_gain_low", "trees_gain_high")
        row = {"workload": name, "best_k": walked.best(counted)[0], "tokens_per_second": speed}
        rows.append(row | dict(zip(names, gain(chain, tree, counted), strict=True)))
    return Chains(
        k=walked.best()[0],
        tokens_per_second=float(tokens.sum() / judged.seconds.sum()),
        trees_gain=gain(judged, trees, every),
        curve=walked.curve(draws, tokens, every, "k"),
        by_workload=pd.DataFrame(rows),
        near_best=walked.best()[1],
    )
