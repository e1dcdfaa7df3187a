"""What engines are set to: K by the number of requests, and how often each drafted token is accepted."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim import limits
from ddsim.cost.model import CostModel
from ddsim.cost.table import CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN
from ddsim.policy.walk import chain_walks, walk
from ddsim.replay.arguments import check_given
from ddsim.replay.serving import _in_memory
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace, check_trace

STAYS = 0.01
"""Relative loss in tokens a second up to which K stays as it is for one request less: so that a schedule has few ranges."""


def best_chains(
    trace: Trace | Positions,
    cost: CostModel,
    *,
    requests: int | None = None,
    context: int | None = None,
    extrapolate: bool = False,
) -> pd.DataFrame:
    """The best K for 1, 2, ... requests that are decoded together, by what the recording accepted; 0 where drafting loses.

    A chain of K commits as many tokens a round as its walk over the recording, whoever shares the pass; B requests take the seconds of
    a draft of the whole block and a pass of B·(K + 1) tokens. K stays that of one request less while that loses at most 1 %. It is
    chosen on the prompts that it is judged on.

    Parameters
    ----------
    trace, cost
    requests : int, optional
        The most; by default the largest batch that was measured.
    context : int, optional
        Committed tokens that all requests have; by default the mean of the recording.
    extrapolate : bool
        Whether to weigh what costs weren't measured for, too.

    Returns
    -------
    DataFrame
        A row a number of requests: requests, k, acceptance_length (tokens a request and round), tokens_per_second (of all requests),
        over_ar (relative gain over decoding without a draft), extrapolated.

    Raises
    ------
    DdsimError
        More requests than were measured, or a context that wasn't, without ``extrapolate``.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 4, 5, 12], [0.010, 0.010, 0.020, 0.060])
    >>> best_chains(trace, cost, requests=4, extrapolate=True)["k"].tolist()
    [2, 1, 0, 0]
    """
    check_given("best_chains", trace, cost, Positions)
    positions = _in_memory(trace, None)
    known = int(cost.range.batches[1]) if cost.range.batches else 1
    most = limits.check("batch", known if requests is None else requests)
    if most > known and not extrapolate:
        raise DdsimError(f"costs were measured for up to {known} requests, not {most}; profile further, or extrapolate")
    length = round(float(positions.context.mean())) if context is None else limits.check("context", context)
    curve = CostTable.of_curve(np.ones(positions.horizon + 1), len(positions))
    rounds = chain_walks(positions, curve)[1].sum(axis=0)
    yields = np.concatenate([[1.0], positions.tokens.sum() / rounds])
    if (
        cost.range.contexts
    ):  # below the first that was measured: its costs, which are no more than their own reading off
        length = max(length, int(cost.range.contexts[0]))
    rows: list[dict[str, Any]] = []
    before = -1
    with cost.one_warning():
        for count in range(1, most + 1):
            tokens = count * (1 + np.arange(len(yields)))
            beyond = np.asarray(cost.extrapolated(tokens, length, count), np.bool_)
            if beyond[0] and not extrapolate:
                raise DdsimError(
                    f"costs were not measured for {count} requests at a context of {length}; profile there, or extrapolate"
                )
            weighed = len(yields) if extrapolate else int(np.argmax([*beyond, True]))  # K below it
            table = cost_table(cost, [length], count * (weighed - 1), count)
            seconds = np.append(table.ar_seconds, table.seconds[0, count::count])
            rates = count * yields[:weighed] / seconds
            best = int(np.argmax(rates))
            k = before if 0 <= before < weighed and rates[before] >= (1 - STAYS) * rates[best] else best
            before = k
            rows.append(
                {
                    "requests": count,
                    "k": k,
                    "acceptance_length": float(yields[k]),
                    "tokens_per_second": float(rates[k]),
                    "over_ar": float(rates[k] / rates[0] - 1),
                    "extrapolated": bool(beyond[k]),
                }
            )
    return pd.DataFrame(rows)


def schedule_ranges(choices: pd.DataFrame) -> list[tuple[int, int, int]]:
    """Ranges (first, last, K) of `best_chains`, as `ddsim.Schedule` takes them.

    Examples
    --------
    >>> schedule_ranges(pd.DataFrame({"requests": [1, 2, 3], "k": [7, 7, 0]}))
    [(1, 2, 7), (3, 3, 0)]
    """
    found = []
    for k, run in groupby(zip(choices["requests"].tolist(), choices["k"].tolist(), strict=True), lambda pair: pair[1]):
        numbers = [count for count, _ in run]
        found.append((numbers[0], numbers[-1], int(k)))
    return found


def acceptance(trace: Trace | Positions) -> pd.DataFrame:
    """How often each token of the drafted chain is accepted, unconditionally: that and all before it.

    Counted over the rounds of a replay of whole chains, where every token had a true one to be held against.

    Returns
    -------
    DataFrame
        A row a workload, and one of all, called "all": workload, rounds, tokens_per_round, rates (a list, one per drafted token,
        never rising).

    Examples
    --------
    >>> logprobs = np.log(np.full((5, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 7, 6, 6], np.full((5, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> acceptance(trace)[["workload", "rounds", "tokens_per_round", "rates"]].values.tolist()[-1]
    ['all', 2, 2.5, [1.0, 0.5]]
    """
    check_trace("acceptance", trace, Positions)
    positions = _in_memory(trace, None)
    horizon = positions.horizon
    done = walk(positions, CostTable.of_curve(np.ones(horizon + 1), len(positions)), CHAIN)
    ends = np.repeat(positions.starts[1:], np.diff(positions.starts))
    whole = (done.accepted >= 0) & (np.arange(len(positions)) + horizon < ends)
    names = np.repeat(np.array(positions.workload, object), np.diff(positions.starts))

    def row(name: str, counted: NDArray[np.bool_]) -> dict[str, Any]:
        accepted = done.accepted[counted].astype(np.int64)
        rates = [float((accepted >= d).mean()) for d in range(1, horizon + 1)] if len(accepted) else []
        tokens = float(accepted.mean()) + 1 if len(accepted) else float("nan")
        return {"workload": name, "rounds": len(accepted), "tokens_per_round": tokens, "rates": rates}

    rows = [row(name, whole & (names == name)) for name in dict.fromkeys(positions.workload)]
    return pd.DataFrame([*rows, row("all", whole)])
