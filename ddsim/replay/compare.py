"""Two of a kind beside each other. Recordings of the same texts: which draft commits more tokens a round, node for node."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.replay.bootstrap import ENOUGH, percent, sure
from ddsim.replay.compare_costs import CostComparison, compare_costs
from ddsim.replay.compare_drafters import Drafter, DrafterComparison, compare_drafters
from ddsim.replay.compare_plans import PlanComparison, compare_plans
from ddsim.replay.held_out import tokens_a_round
from ddsim.replay.plan import Plan
from ddsim.replay.replay import _records
from ddsim.replay.shown import ShownComparison
from ddsim.replay.sides import Side, called, open_side
from ddsim.trace.cache import positions_of
from ddsim.trace.rounds import BLOCK, Positions
from ddsim.trace.trace import Trace, check_trace

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress

BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Nodes that recordings are compared at."""

HEADLINE = 64
"""Nodes that the sentence speaks of, if both recordings answer them."""

UNNAMED = ("the first", "the second")

KINDS = {"rows": "marginals", "lattice": "lattices", "trees": "drafted trees", "chains": "chains"}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(ShownComparison):
    """What the second of two drafts gains over the first, on the same texts.

    Attributes
    ----------
    sentence : str
        The gain of trees of 64 nodes, or of the largest that both answer, with its interval.
    names : (str, str)
        What the two are called.
    prompts, positions : int
        Compared; what only one recording has is left out.
    notes : tuple of str
        What was left out, in sentences.
    pairs : tuple of (int, int)
        Numbers of the sequences compared, in the first recording and in the second.

    Examples
    --------
    >>> logprobs = np.log(np.full((4, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 6, 7], np.full((4, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> found = compare(trace, trace, bootstrap=100)
    >>> found.prompts, found.table([2])["gain"].tolist()
    (1, [0.0, 0.0])
    """

    sentence: str
    names: tuple[str, str]
    prompts: int
    positions: int
    notes: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    _rows: pd.DataFrame

    def table(self, budgets: Sequence[int] | None = None) -> pd.DataFrame:
        """Tokens a round of both.

        Parameters
        ----------
        budgets : sequence of int, optional
            Nodes to keep, beside the chain; all by default.

        Returns
        -------
        pandas.DataFrame
            workload ("all": pooled), policy (DFlash: the chain), first, second (tokens a round), gain (second / first - 1), low, high
            (95 % interval of the gain, prompts drawn in pairs; NaN for a single prompt), agree (share of positions at which both accept
            equally many tokens).
        """
        if budgets is None:
            return self._rows.copy()
        wanted = {"DFlash", *(f"DDTree({n})" for n in budgets)}
        return self._rows[self._rows["policy"].isin(wanted)].reset_index(drop=True)

    def to_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values."""
        return {
            "sentence": self.sentence, "names": list(self.names), "prompts": self.prompts, "enough_prompts": self.prompts >= ENOUGH,
            "positions": self.positions,
            "notes": list(self.notes), "gains": _records(self._rows),
        }  # fmt: skip


@overload
def compare(
    first: Trace,
    second: Trace,
    *,
    names: tuple[str, str] | None = None,
    budgets: Sequence[int] = BUDGETS,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison: ...


@overload
def compare(
    first: Side | str | os.PathLike[str],
    second: Side | str | os.PathLike[str],
    *,
    names: tuple[str, str] | None = None,
    budgets: Sequence[int] = BUDGETS,
    trace: Trace | None = None,
    kind: str = "auto",
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison | CostComparison | PlanComparison | DrafterComparison: ...


def compare(
    first: Any,
    second: Any,
    *,
    names: tuple[str, str] | None = None,
    budgets: Sequence[int] = BUDGETS,
    trace: Trace | None = None,
    kind: str = "auto",
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Compare two of a kind: recordings, costs (profiles or cost models), plans, or drafters.

    Recordings: two drafts on texts that both were recorded over, by the tokens a round of the chain and of trees, node for node.
    Verification is lossless, so the text doesn't depend on the draft, and two recordings of one text can be compared round by round.
    Costs: what passes and drafts take, and, for a recording, whether a plan says the same on both (`compare_costs`). Plans: what they
    recommend, and why they differ (`compare_plans`). Drafters: how they are made (`compare_drafters`).

    Parameters
    ----------
    first, second : Trace, Profile, CostModel, Plan, or path
        Two of a kind. Recordings must share texts: prompts of the same workload, name and temperature with the same tokens. Paths are
        opened by what they hold, drafters' folders and plans' documents too.
    names : (str, str), optional
        What to call them; by default what they are, or first and second.
    budgets : sequence of int
        Nodes at which recordings are compared; those that one of the two can't answer are left out.
    trace : Trace, optional
        What to plan for with two costs.
    kind : str
        Of cost models that are fitted.
    bootstrap, seed : int
        Resamples of the prompts for the intervals, and their seed.
    progress : callable, optional
        Called with (positions done, positions in all), for one recording after the other.

    Returns
    -------
    Comparison, CostComparison, PlanComparison or DrafterComparison
        Each has a ``sentence``, a ``table()`` and ``to_json()``.

    Raises
    ------
    DdsimError
        They are of two kinds, or the recordings share no text, or none with a round.

    Examples
    --------
    >>> tokens, ids = np.arange(8) % 2, np.tile([0, 1], (8, 2, 1))
    >>> blind = Trace.from_arrays(tokens, ids, np.log(np.full((8, 2, 2), [0.6, 0.4])), max_budget=2)
    >>> first, rest = np.log(np.full((8, 2), [0.6, 0.4])), np.log(np.full((8, 1, 2, 2), [[0.1, 0.9], [0.9, 0.1]]))
    >>> knows = Trace.from_lattice(tokens, ids, first, rest, max_budget=2)
    >>> print(compare(blind, knows, bootstrap=100).sentence)
    Lattices commit 1.75 tokens a round in trees of 2 nodes where marginals commit 1.75: 0.0 %, on the same text.
    """
    if not isinstance(first, Trace) or not isinstance(second, Trace):
        sides: list[Any] = [
            open_side(side, kind) if isinstance(side, str | os.PathLike) else side for side in (first, second)
        ]
        what = [called(side) for side in sides]
        if what[0] != what[1]:
            raise DdsimError(f"compare: the first is {what[0]} and the second {what[1]}; compare two of a kind")
        if isinstance(sides[0], Drafter):
            return compare_drafters(*sides, names=names)
        if isinstance(sides[0], Plan | Mapping):
            return compare_plans(*sides, names=names or UNNAMED)
        if not isinstance(sides[0], Trace):
            return compare_costs(
                *sides,
                names=names or UNNAMED,
                trace=trace,
                kind=kind,
                bootstrap=bootstrap,
                seed=seed,
                progress=progress,
            )
        first, second = sides
    for side in (first, second):
        check_trace("compare", side)
    pairs = _shared(first, second)
    if not pairs:
        raise DdsimError(
            "compare: the recordings share no text; record both over the same prompts (ddsim record --answers)"
        )
    same = _same_text(_picked(first, [n for n, _ in pairs]), _picked(second, [n for _, n in pairs]))
    if not same.any():
        raise DdsimError("compare: prompts are the same but no text is; record the second over the first's answers")
    notes = _left_out(first, second, len(pairs), same)
    pairs = [pair for pair, keep in zip(pairs, same, strict=True) if keep]
    a, b = _picked(first, [n for n, _ in pairs]), _picked(second, [n for _, n in pairs])
    known = [n for n in budgets if n <= min(a.max_budget, b.max_budget)]
    before, after = (positions_of(trace, progress=progress) for trace in (a, b))
    rows = tokens_a_round(a, before, after, budgets=known, bootstrap=bootstrap, seed=seed)
    rows = rows.rename(columns={"before": "first", "after": "second"})
    rows["agree"] = _agreement(before, after, known, list(rows["workload"]))
    if names is None:
        kinds = (KINDS.get(first.kind, first.kind), KINDS.get(second.kind, second.kind))
        names = kinds if kinds[0] != kinds[1] else UNNAMED
    prompts = len({(s.workload, s.prompt_id) for s in a.sequences})
    sentence = _sentence(rows, known, names, prompts)
    return Comparison(sentence, names, prompts, len(a), notes, tuple(pairs), rows)


def _agreement(
    first: Positions, second: Positions, budgets: Sequence[int], workloads: Sequence[str]
) -> NDArray[np.float64]:
    """Share of the positions that start a round at which both accept equally many tokens: for the chain and for each budget, by workload."""
    same: dict[str, NDArray[np.int64]] = {}
    counts: Counter[str] = Counter()
    for (_, start, a), (_, _, b) in zip(first.blocks(BLOCK), second.blocks(BLOCK), strict=True):
        equal = [np.asarray(a.chain) == np.asarray(b.chain)]
        equal += [_accepted(a, n) == _accepted(b, n) for n in budgets]
        for s in range(a.sequences):
            rounds = slice(int(a.starts[s]), max(int(a.starts[s + 1]) - 1, int(a.starts[s])))
            found = np.array([column[rounds].sum() for column in equal])
            for name in (first.workload[start + s], "all"):
                same[name] = same.get(name, 0) + found
                counts[name] += rounds.stop - rounds.start
    return np.concatenate([same[name] / max(counts[name], 1) for name in dict.fromkeys(workloads)])


def _accepted(block: Positions, nodes: int) -> NDArray[np.int64]:
    """Tokens that a tree of so many nodes accepts at each position of a block."""
    inside: NDArray[np.int64] = np.logical_and.accumulate(np.asarray(block.ranks) <= nodes, axis=1).sum(axis=1)
    return inside


def _shared(first: Trace, second: Trace) -> list[tuple[int, int]]:
    """(number in the first, number in the second) of sequences of the same prompt, temperature and length."""

    def keys(trace: Trace) -> list[tuple[Any, ...]]:
        seen: Counter[tuple[Any, ...]] = Counter()
        found = []
        for s in trace.sequences:
            key = (s.workload, s.prompt_id, s.temperature, s.prompt_tokens)
            seen[key] += 1
            found.append((*key, seen[key]))
        return found

    there = {key: n for n, key in enumerate(keys(second))}
    return [(n, there[key]) for n, key in enumerate(keys(first)) if key in there]


def _picked(trace: Trace, numbers: Sequence[int]) -> Trace:
    """The sequences with these numbers, in this order (`Trace.subset` keeps the trace's own)."""
    return Trace(trace.meta, [trace._entries[n] for n in numbers], trace._folders)


def _same_text(first: Trace, second: Trace) -> NDArray[np.bool_]:
    """Of each pair of sequences, whether all their tokens are the same."""
    return np.array([np.array_equal(a, b) for a, b in zip(first._texts(), second._texts(), strict=True)], bool)


def _left_out(first: Trace, second: Trace, shared: int, same: NDArray[np.bool_]) -> tuple[str, ...]:
    notes = []
    alone = len(first.sequences) + len(second.sequences) - 2 * shared
    if alone:
        notes.append(f"Left out: {alone} sequence{'s' * (alone > 1)} that only one of the recordings has.")
    if not same.all():
        notes.append(f"Left out: {int((~same).sum())} of {shared} prompts, whose texts differ.")
    return tuple(notes)


def _sentence(rows: pd.DataFrame, known: Sequence[int], names: tuple[str, str], prompts: int) -> str:
    pooled = rows[rows["workload"] == rows["workload"].iloc[-1]].set_index("policy")
    nodes = HEADLINE if HEADLINE in known else max(known, default=0)
    row = pooled.loc[f"DDTree({nodes})" if nodes else "DFlash"]
    where = f"in trees of {nodes} node{'s' * (nodes > 1)}" if nodes else "in chains"
    texts = f"{prompts} texts" if prompts > 1 else "text"
    gain = percent(sure((float(row["gain"]), float(row["low"]), float(row["high"])), prompts))
    second = names[1][:1].upper() + names[1][1:]
    return (
        f"{second} commit {row['second']:.2f} tokens a round {where} where {names[0]} commit {row['first']:.2f}: {gain}, "
        f"on the same {texts}."
    )
