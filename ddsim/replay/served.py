"""What serving came to: runs of policies at batch sizes, and their table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.errors import DdsimError
from ddsim.replay.bootstrap import ENOUGH
from ddsim.replay.replay import _records
from ddsim.replay.said import best_of_batches
from ddsim.replay.shown import EXTRAPOLATED as EXTRAPOLATED
from ddsim.replay.shown import ShownServing
from ddsim.tables import Shown, Summary

Interval = tuple[float, float, float]


SHUFFLES = 8
"""Orders of the queue that a figure is taken over: who meets whom in a batch is chance."""


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """What one policy did at one batch size: SHUFFLES entries with all prompts, then one for each repeat with resampled prompts.

    Attributes
    ----------
    seconds : float64 [R]
    tokens : int64 [R], committed by all slots
    rounds : int64 [R], joint rounds
    nodes : int64 [R], verified nodes in all
    latency : float64 [R, requests], seconds from a request's first round to its last
    largest : int64 [R], nodes of the largest round
    shares : int64 [R], rounds that requests took part in: of a joint round as many as it had requests
    """

    seconds: Floats
    tokens: NDArray[np.int64]
    rounds: NDArray[np.int64]
    nodes: NDArray[np.int64]
    latency: Floats
    largest: NDArray[np.int64]
    shares: NDArray[np.int64]

    def summary(self) -> Summary:
        """What is printed: tokens, rounds and throughput, in a line."""
        tokens, rounds, seconds = (float(of.sum()) for of in (self.tokens, self.rounds, self.seconds))
        said = f"{len(self.seconds)} simulations: {tokens:,.0f} tokens in {rounds:,.0f} rounds"
        return Summary(f"{said}, {tokens / seconds:,.0f} tokens/s." if seconds else f"{said}.")


class ServingResult(ShownServing):
    """Outcomes of policies at several batch sizes, with 95 % intervals from repeated simulations.

    Attributes
    ----------
    runs : dict, (batch, policy name) -> Run
        Names that would be the same are numbered, as in "Half" and "Half (2)".
    provenance : dict
    extrapolated : dict, (batch, policy name) -> bool
        Whether a round cost what wasn't measured: a larger batch, more tokens or a longer context.
    baseline : str
        The policy that speed-ups are over: autoregressive decoding.
    fixed : set of (batch, policy name)
        Those with one setting for all rounds, however many requests there are; the best of them at a batch size is what others are compared with.

    Examples
    --------
    >>> import ddsim
    >>> logprobs = np.log(np.full((12, 2, 2), [0.6, 0.3]))
    >>> trace = ddsim.Trace.from_arrays([5, 6, 6, 7] * 3, np.full((12, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> cost = ddsim.CostModel.from_table([1, 40], [0.010, 0.012], draft_seconds=0.001)
    >>> result = ddsim.simulate(trace, cost, ["AR", "DDTree:2"], batch=2, bootstrap=0)
    >>> result.best_fixed(2), result.table()["acceptance_length"].round(2).tolist()
    ('DDTree(2)', [1.0, 2.2])
    """

    def __init__(
        self,
        runs: dict[tuple[int, str], Run],
        lengths: dict[int, NDArray[np.int64]],
        provenance: dict[str, Any],
        extrapolated: dict[tuple[int, str], bool],
        baseline: str,
        fixed: frozenset[tuple[int, str]],
    ) -> None:
        self.runs = runs
        self.fixed = fixed
        self.baseline = baseline
        self.extrapolated = extrapolated
        self.provenance = provenance
        self._lengths = lengths

    @property
    def prompts(self) -> int:
        """Prompts of the recording; several answers to one count once."""
        return int(self.provenance.get("prompts", ENOUGH))

    @property
    def sentence(self) -> str:
        """The best setting of every batch size."""
        return best_of_batches(self)[0]

    @property
    def details(self) -> tuple[str, ...]:
        """What the best rules do where no rule is taken; first a warning, where prompts are too few."""
        return best_of_batches(self)[1]

    def best_fixed(self, batch: int) -> str:
        """The fixed setting of most tokens a second at a batch size."""
        names = [name for size, name in self.runs if size == batch and (size, name) in self.fixed]
        return max(names, key=lambda name: float(_rates(self.runs[batch, name])[0]))

    def table(self) -> pd.DataFrame:
        """One row a batch size and policy.

        Returns
        -------
        DataFrame
            batch, policy, rounds (joint; this and the sums below over SHUFFLES runs), tokens (of all slots), acceptance_length (tokens a request and round), budget_mean (nodes
            a request and round), seconds, tokens_per_second (of all slots; _low, _high), tokens_per_second_user (of one that is taken),
            tpot_mean and tpot_p95 (seconds per output token over finished requests; the mean with _low, _high), speedup (over AR at
            the same batch size; _low, _high), best_fixed (the best fixed setting there), over_fixed and tpot_over_fixed (relative change over it of
            tokens per second and of tpot_mean; _low, _high), extrapolated (whether a round cost what wasn't measured).
        """
        rows = []
        for (batch, name), run in self.runs.items():
            rate = _rates(run)
            tpot = run.latency / self._lengths[batch]
            rounds, shares = int(run.rounds[:SHUFFLES].sum()), int(run.shares[:SHUFFLES].sum())
            row: dict[str, Any] = {
                "batch": batch,
                "policy": name,
                "rounds": rounds,
                "tokens": int(run.tokens[:SHUFFLES].sum()),
                "acceptance_length": run.tokens[:SHUFFLES].sum() / shares,
                "budget_mean": run.nodes[:SHUFFLES].sum() / shares,
                "seconds": float(run.seconds[:SHUFFLES].sum()),
            }
            row |= _columns("tokens_per_second", rate)
            row["tokens_per_second_user"] = rate[0] / (shares / rounds)
            row |= _columns("tpot_mean", self._tpots(batch, name))
            row["tpot_p95"] = float(np.quantile(tpot[:SHUFFLES], 0.95))
            row |= _columns("speedup", rate / _rates(self.runs[batch, self.baseline]))
            row["best_fixed"] = fixed = self.best_fixed(batch)
            row |= _columns("over_fixed", rate / _rates(self.runs[batch, fixed]) - 1)
            row |= _columns("tpot_over_fixed", self._tpots(batch, name) / self._tpots(batch, fixed) - 1)
            row["extrapolated"] = self.extrapolated[batch, name]
            rows.append(row)
        return pd.DataFrame(rows)

    def _tpots(self, batch: int, name: str) -> Floats:
        """Mean seconds per output token: over the shuffles of all prompts, then of every repeat."""
        tpot = self.runs[batch, name].latency / self._lengths[batch]
        return np.append(tpot[:SHUFFLES].mean(), tpot[SHUFFLES:].mean(axis=1))

    def gain(self, policy: str, over: str, batch: int) -> Interval:
        """Relative gain in tokens per second of one policy over another at one batch size, paired: value, low, high."""
        for name in (policy, over):
            if (batch, name) not in self.runs:
                known = ", ".join(n for b, n in self.runs if b == batch)
                raise DdsimError(f"no policy {name!r} at batch {batch}; there {'are ' + known if known else 'is none'}")
        return _interval(_rates(self.runs[batch, policy]) / _rates(self.runs[batch, over]) - 1.0)

    def to_json(self) -> dict[str, Any]:
        """Table (times in seconds) and provenance, as JSON."""
        return {
            "kind": "ddsim-serving", "schema_version": 1, "sentence": self.sentence, "details": list(self.details), "prompts": self.prompts,
            "enough_prompts": self.prompts >= ENOUGH, "provenance": self.provenance, "table": _records(self.table()),
        }  # fmt: skip


def _rates(run: Run) -> Floats:
    """Tokens per second of all slots: over the shuffles of all prompts, then of every repeat."""
    plain = run.tokens[:SHUFFLES].sum() / run.seconds[:SHUFFLES].sum()
    return np.append(plain, run.tokens[SHUFFLES:] / run.seconds[SHUFFLES:])


def _interval(values: Floats) -> Interval:
    """The first value, and the 95 % percentile interval of the others (NaN without any).

    Prompts drawn anew differ more than those recorded, and near saturation every difference makes queues longer, never shorter: the
    percentiles can then lie on one side of the value. The interval is widened to hold it.
    """
    value = float(values[0])
    if len(values) < 2:
        return value, np.nan, np.nan
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return value, min(float(low), value), max(float(high), value)


def _columns(name: str, values: Floats) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), _interval(values), strict=True))
