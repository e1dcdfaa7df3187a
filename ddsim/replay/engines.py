"""What engines are set to: K by the number of requests, and how often each drafted token is accepted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim import limits
from ddsim.arrays import Floats
from ddsim.cost.imports import WHOLE_STEPS
from ddsim.cost.model import CostModel
from ddsim.cost.table import CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN
from ddsim.policy.walk import chain_walks, walk
from ddsim.replay.arguments import check_given, measured_on
from ddsim.replay.bootstrap import _Bootstrap, _knots, cost_error
from ddsim.replay.requests import _in_memory
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace, check_trace

DRAWS = 2000
"""Draws of prompts by which a K counts as worse than another."""

STAYS = 0.01
"""Relative loss in tokens a second up to which K stays as it is for one request less: so that a schedule has few ranges."""

MOST_REQUESTS = 256
"""Requests that are weighed by default where costs know tokens only, whoever they are of."""


Rule = Literal["any", "first", "one"]
"""Which K an engine can be set to: any by the number of requests, none above that of one request, or one for all."""


@dataclass(frozen=True)
class Engine:
    """What an engine's settings can say.

    Attributes
    ----------
    title : str
        Its name as people write it.
    rules : dict
        Which K it can be set to, by the method that drafts.
    """

    title: str
    rules: dict[str, Rule]


ENGINES = {
    "vllm": Engine("vLLM", {"dflash": "any", "eagle3": "any", "dspark": "any"}),
    "sglang": Engine("SGLang", {"dflash": "one", "eagle3": "any", "dspark": "one"}),
    "tensorrt-llm": Engine("TensorRT-LLM", {"dflash": "first", "eagle3": "first"}),
}


def engine_rule(engine: str, method: str = "dflash") -> Rule:
    """Which K an engine can be set to, for a method that drafts.

    Raises
    ------
    DdsimError
        An engine, or a method of it, that isn't known here.

    Examples
    --------
    >>> engine_rule("vllm"), engine_rule("sglang")
    ('any', 'one')
    """
    if engine not in ENGINES:
        raise DdsimError(f'unknown engine "{engine}" (known: {", ".join(ENGINES)})')
    rules = ENGINES[engine].rules
    if method not in rules:
        raise DdsimError(f'{ENGINES[engine].title}: unknown method "{method}" (known: {", ".join(rules)})')
    return rules[method]


def unnamed_costs(engine: str, cost: CostModel) -> list[str]:
    """A note, if nothing says that costs are an engine's own."""
    if measured_on(cost.provenance) is not None:
        return []
    return [f"Nothing says that these costs are {ENGINES[engine].title}'s: another's can be off by tens of per cent."]


@dataclass(frozen=True)
class ChainRates:
    """What a chain of every K costs and yields, for 1, 2, ... requests that are decoded together.

    Attributes
    ----------
    requests : int64 [B]
        1 to B.
    lengths : float64 [L + 1]
        Tokens that a request commits a round, by K; 1 for K = 0.
    seconds : float64 [B, L + 1]
        Of a round; NaN where costs weren't measured, unless they are extrapolated.
    extrapolated : bool [B, L + 1]
    context : int
        Committed tokens that every request has.
    """

    requests: NDArray[np.int64]
    lengths: Floats
    seconds: Floats
    extrapolated: NDArray[np.bool_]
    context: int

    @property
    def rates(self) -> Floats:
        """Tokens a second of all requests, float64 [B, L + 1]."""
        rates: Floats = self.requests[:, None] * self.lengths / self.seconds
        return rates

    @property
    def best(self) -> NDArray[np.int64]:
        """The K of highest throughput for each number of requests, int64 [B]; of equals the smallest."""
        return np.nanargmax(self.rates, axis=1)


def chain_lengths(positions: Positions) -> tuple[Floats, NDArray[np.int64]]:
    """Tokens that chains of K = 0 .. L commit a round, float64 [L + 1], and their rounds by sequence, int64 [S, L + 1]."""
    curve = CostTable.of_curve(np.ones(positions.horizon + 1), len(positions))
    rounds = np.column_stack([positions.tokens, chain_walks(positions, curve)[1]]).astype(np.int64)
    return positions.tokens.sum() / rounds.sum(axis=0), rounds


def chain_rates(
    trace: Trace | Positions,
    cost: CostModel,
    *,
    requests: int | None = None,
    context: int | None = None,
    extrapolate: bool = False,
) -> ChainRates:
    """Throughput of every K for 1, 2, ... requests that are decoded together, by what the recording accepted.

    A chain of K commits as many tokens a round as its walk over the recording, whoever shares the pass; B requests take the seconds of
    a draft of the whole block and a pass of B·(K + 1) tokens. K = 0 doesn't draft.

    Parameters
    ----------
    trace, cost
    requests : int, optional
        The most; by default the largest batch that was measured, or where costs know tokens only, as many requests as these.
    context : int, optional
        Committed tokens that all requests have; by default the mean of the recording.
    extrapolate : bool
        Whether to weigh what costs weren't measured for, too.

    Raises
    ------
    DdsimError
        More requests than were measured, or a context that wasn't, without ``extrapolate``.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 4, 5, 12], [0.010, 0.010, 0.020, 0.060])
    >>> chain_rates(trace, cost, requests=1).rates.round().tolist()
    [[100.0, 195.0, 300.0]]
    """
    check_given("chain_rates", trace, cost, Positions)
    positions = _in_memory(trace, None)
    known = int(cost.range.batches[1] if cost.range.batches else min(cost.range.tokens[1], MOST_REQUESTS))
    most = limits.check("batch", known if requests is None else requests)
    if most > known and not extrapolate:
        raise DdsimError(f"costs were measured for up to {known} requests, not {most}; profile further, or extrapolate")
    length = round(float(positions.context.mean())) if context is None else limits.check("context", context)
    if cost.range.contexts:
        # Below the first that was measured: its costs, which are no more than their own reading off.
        length = max(length, int(cost.range.contexts[0]))
    lengths = chain_lengths(positions)[0]
    seconds, marks = chain_seconds(cost, range(1, most + 1), positions.horizon, length, extrapolate=extrapolate)
    if marks[:, 0].any() and not extrapolate:
        raise DdsimError(
            f"costs were not measured for {marks[:, 0].argmax() + 1} requests at a context of {length}; profile there, or extrapolate"
        )
    return ChainRates(np.arange(1, most + 1), lengths, seconds, marks, length)


def chain_seconds(
    cost: CostModel, requests: Sequence[int], horizon: int, context: int, *, extrapolate: bool = False
) -> tuple[Floats, NDArray[np.bool_]]:
    """Seconds of a round by the number of requests and K = 0 .. L, float64 [B, L + 1], and which lie outside what was measured.

    Unless they are extrapolated, seconds are NaN from the first K on that wasn't measured. An engine's profile names the Ks that the
    engine was made ready for (``ks``); others are NaN, since an engine without graphs for a K is slower than those around it say.
    Between the numbers of requests at which an engine's whole steps were measured, seconds lie between theirs at the same K.
    """
    batches = measured_batches(cost)

    @cache
    def measured(count: int) -> tuple[Floats, NDArray[np.bool_]]:
        """One number of requests, read off."""
        row = np.full(horizon + 1, np.nan)
        marks: NDArray[np.bool_] = cost.extrapolated(count * (1 + np.arange(horizon + 1)), context, count)
        weighed = horizon + 1 if extrapolate else int(np.argmax([*marks, True]))  # K below it
        if weighed:
            table = cost_table(cost, [context], count * (weighed - 1), count)
            row[:weighed] = np.append(table.ar_seconds, table.seconds[0, count::count])
        return row, marks

    seconds, marks = (np.full((len(requests), horizon + 1), fill) for fill in (np.nan, False))
    with cost.one_warning():
        for i, count in enumerate(requests):
            above = bisect_left(batches, count)
            if 0 < above < len(batches) and batches[above] != count:
                (few, first), (many, second) = (measured(batches[j]) for j in (above - 1, above))
                share = (count - batches[above - 1]) / (batches[above] - batches[above - 1])
                seconds[i], marks[i] = (1 - share) * few + share * many, first | second
            else:
                seconds[i], marks[i] = measured(count)
    ready = cost.provenance.get("ks")
    if isinstance(ready, list):
        seconds[:, [k for k in range(horizon + 1) if k not in ready]] = np.nan
    return seconds, marks


def measured_batches(cost: CostModel) -> list[int]:
    """The numbers of requests at which whole steps were measured; none of costs of another kind."""
    if cost.provenance.get("seconds") != WHOLE_STEPS:
        return []
    return list(cost.batches)


def best_chains(
    trace: Trace | Positions,
    cost: CostModel,
    *,
    requests: int | None = None,
    context: int | None = None,
    extrapolate: bool = False,
    rule: Rule = "any",
) -> pd.DataFrame:
    """The best K for 1, 2, ... requests that are decoded together, by what the recording accepted; 0 where drafting loses.

    K stays that of one request less while that loses at most 1 %; else it is the smallest within 1 % of the best that isn't significantly
    worse than it. It is chosen on the prompts that it is judged on.

    Parameters
    ----------
    trace, cost, requests, context, extrapolate : as in `chain_rates`
    rule : {"any", "first", "one"}
        Which K may be chosen: any by the number of requests; none above that of one request; or one for all, of highest geometric
        mean throughput over all numbers of requests.

    Returns
    -------
    DataFrame
        A row a number of requests: requests, k, acceptance_length (tokens a request and round), tokens_per_second (of all requests),
        over_ar (relative gain over decoding without a draft), lost (of the best K's tokens a second, a share), extrapolated. Its ``attrs``
        name the context.

    Raises
    ------
    DdsimError
        As `chain_rates`.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = CostModel.from_table([1, 4, 5, 12], [0.010, 0.010, 0.020, 0.060])
    >>> best_chains(trace, cost, requests=4, extrapolate=True)["k"].tolist()
    [2, 1, 0, 0]
    >>> best_chains(trace, cost, requests=4, extrapolate=True, rule="one")["k"].tolist()
    [1, 1, 1, 1]
    """
    found = chain_rates(trace, cost, requests=requests, context=context, extrapolate=extrapolate)
    return choices_of(found, chosen(found, rule, choosing(found, _in_memory(trace, None), cost)))


def choosing(found: ChainRates, positions: Positions, cost: CostModel) -> Iterator[Floats] | None:
    """The draws by which `best_chains` tells K apart, always the same ones; None for a single prompt, which tells nothing."""
    draws = _Bootstrap(positions, DRAWS, 0, cost_error(cost))
    return drawn_rates(found, positions, cost, draws) if draws.units > 1 else None


def drawn_rates(found: ChainRates, positions: Positions, cost: CostModel, draws: _Bootstrap) -> Iterator[Floats]:
    """Tokens a second by K, [draws, L + 1], for 1, 2, ... requests: prompts drawn anew, and costs off by their error."""
    every = np.ones(positions.sequences, bool)
    rounds = draws.sums(chain_lengths(positions)[1], every)[1]
    lengths = draws.sums(positions.tokens, every)[1] / rounds
    knots = _knots(cost, int(found.requests[-1]) * len(found.lengths))
    errors = np.random.default_rng([draws.seed, 1]).normal(0.0, draws.cost_error, (draws.count, knots.shape[1]))
    columns = np.arange(len(found.lengths))
    for count, seconds in zip(found.requests.tolist(), found.seconds, strict=True):
        drafting = float(np.asarray(cost.draft_seconds(count, context=found.context)))
        shares = 1 - np.where(columns > 0, drafting, 0.0) / seconds  # of verification: what its errors touch
        mixes = np.nan_to_num(shares)[:, None] * knots[count * (columns + 1) - 1]
        yield count * lengths / (seconds * np.exp(errors @ mixes.T))


def chosen(found: ChainRates, rule: Rule = "any", drawn: Iterable[Floats] | None = None) -> NDArray[np.int64]:
    """K for each number of requests as `best_chains` chooses it, int64 [B]; without draws the best, however little it gains."""
    rates = found.rates
    if rule == "one":
        means = np.log(rates).mean(axis=0)  # NaN where a number of requests isn't covered
        spread = None if drawn is None else np.exp(sum(np.log(part) for part in drawn) / len(rates))
        return np.full(len(rates), _smallest(np.exp(means), spread), np.int64)
    ks = np.zeros(len(rates), np.int64)
    for i, (row, spread) in enumerate(zip(rates, [None] * len(rates) if drawn is None else drawn, strict=True)):
        allowed = row[: ks[0] + 1] if rule == "first" and i else row
        before = int(ks[i - 1])
        stays = i > 0 and rates[i, before] >= (1 - STAYS) * np.nanmax(allowed)  # False for NaN
        ks[i] = before if stays else _smallest(allowed, spread)
    return ks


def _smallest(rates: Floats, drawn: Floats | None) -> int:
    """The smallest K within 1 % of the best that isn't significantly worse: 97.5 % of the draws say that it is slower."""
    best = int(np.nanargmax(rates))
    if drawn is None:
        return best
    for k in range(best):
        if rates[k] >= (1 - STAYS) * rates[best] and np.quantile(drawn[:, k] / drawn[:, best], 0.975) >= 1:
            return k
    return best


def choices_of(found: ChainRates, ks: NDArray[np.int64]) -> pd.DataFrame:
    """What a K for each number of requests, int64 [B], yields: rows as those of `best_chains`."""
    rows, rates = np.arange(len(ks)), found.rates
    table = pd.DataFrame(
        {
            "requests": found.requests,
            "k": ks,
            "acceptance_length": found.lengths[ks],
            "tokens_per_second": rates[rows, ks],
            "over_ar": rates[rows, ks] / rates[:, 0] - 1,
            "lost": 1 - rates[rows, ks] / np.nanmax(rates, axis=1),
            "extrapolated": found.extrapolated[rows, ks],
        }
    )
    table.attrs["context"] = found.context
    return table


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
