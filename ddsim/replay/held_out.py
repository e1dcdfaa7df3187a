"""What a correction of the proposals gains: tokens a round on the same texts, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.arrays import plain
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.policy.choose import CHAIN
from ddsim.policy.rules import DDTree, DFlash
from ddsim.replay.bootstrap import _Bootstrap, percent, sure
from ddsim.trace.rounds import BLOCK, Positions
from ddsim.trace.trace import Trace

BUDGETS = (16, 64, 256)
"""Nodes that gains are shown at."""

HEADLINE = 64
"""Nodes that a sentence speaks of, if they are there."""


def tokens_a_round(
    trace: Trace,
    before: Positions,
    after: Positions,
    *,
    budgets: Sequence[int] = BUDGETS,
    bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Tokens a round of the chain and of fixed budgets, on two tables of rounds of one trace.

    Parameters
    ----------
    trace : Trace
    before, after : Positions
        `ddsim.positions_of` the trace without and with a calibration; a fair one is fitted on other prompts (`ddsim.cross_calibrate`).
    budgets : sequence of int
        Nodes; those beyond the trace's ``max_budget`` are left out.
    bootstrap, seed : int
        Resamples of the prompts for the 95 % intervals, and their seed.

    Returns
    -------
    pandas.DataFrame
        workload ("all": pooled), policy (DFlash: the chain), before, after (tokens a round), gain (after / before - 1), low, high (of the
        gain; NaN for a single prompt).

    Raises
    ------
    DdsimError
        No sequence has two tokens.
    """
    known = [n for n in budgets if n <= trace.max_budget]
    actions = [CHAIN, *known]
    policies = [DFlash().name, *(DDTree(n).name for n in known)]
    tokens = before.tokens
    if not tokens.sum():
        raise DdsimError("trace: no sequence has two tokens, so there is no round to replay")
    rounds = [_rounds(table, actions) for table in (before, after)]
    draws = _Bootstrap(before, bootstrap, seed)
    names = np.array(before.workload)
    out = []
    workloads = list(trace.workloads)
    for workload in [*workloads, "all"] if len(workloads) > 1 else workloads:
        counted = np.ones(len(names), bool) if workload == "all" and len(workloads) > 1 else names == workload
        total = tokens[counted].sum()
        value, low, high = draws.intervals(draws.sums(rounds[0], counted), draws.sums(rounds[1], counted), counted) - 1
        columns = {
            "workload": workload, "policy": policies, "before": total / rounds[0][counted].sum(axis=0),
            "after": total / rounds[1][counted].sum(axis=0), "gain": value, "low": low, "high": high,
        }  # fmt: skip
        out.append(pd.DataFrame(columns))
    return pd.concat(out, ignore_index=True)


def gains_sentence(gains: pd.DataFrame, prompts: int) -> str:
    """What a correction by the token before gains, of the rows of `tokens_a_round`: at 64 nodes or the most there are, all workloads."""
    pooled = gains[gains["workload"] == gains["workload"].iloc[-1]]
    trees = f"DDTree({HEADLINE})"
    row = pooled[pooled["policy"] == trees].iloc[0] if (pooled["policy"] == trees).any() else pooled.iloc[-1]
    where = (
        "chains" if row["policy"] == DFlash().name else f"trees of {row['policy'].removeprefix('DDTree(')[:-1]} nodes"
    )
    gain = percent(sure((float(row["gain"]), float(row["low"]), float(row["high"])), prompts))
    return (
        f"Corrected by the token before, {where} commit {row['after']:.2f} tokens a round where they committed {row['before']:.2f}: {gain}, "
        "each prompt by a fit on others."
    )


def _rounds(positions: Positions, actions: Sequence[int]) -> NDArray[np.int64]:
    """[S, A] rounds of each text."""
    parts = []
    for _, _, block in positions.blocks(BLOCK):
        rounds = np.zeros((block.sequences, len(actions)), np.int64)
        _walk(plain(np.asarray(block.ranks), np.int32), block.chain, block.starts, np.array(actions), CHAIN, rounds)
        parts.append(rounds)
    return np.concatenate(parts)


@njit(cache=True, nogil=True)
def _walk(ranks, chain, starts, actions, of_chain, rounds):  # type: ignore[no-untyped-def]
    """Count the rounds of each text and action."""
    for s in range(starts.shape[0] - 1):
        for k in range(actions.shape[0]):
            p = starts[s]
            while p < starts[s + 1] - 1:
                accepted = chain[p] if actions[k] == of_chain else 0
                if actions[k] != of_chain:
                    while accepted < ranks.shape[1] and ranks[p, accepted] <= actions[k]:
                        accepted += 1
                rounds[s, k] += 1
                p += accepted + 1
