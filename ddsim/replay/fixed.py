"""Every fixed budget and every chain on a trace, walked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.cost.table import CostTable
from ddsim.policy.walk import chain_walks, fixed_walks
from ddsim.replay.bootstrap import _Bootstrap
from ddsim.trace.rounds import Positions


@dataclass(frozen=True)
class Fixed:
    """Every fixed budget, 0 to N, or every chain, 1 to L, on S sequences."""

    seconds: Floats
    """[S, N + 1] or [S, L]"""
    rounds: NDArray[Any]
    """The same shape."""
    mix: Floats
    """[N + 1, K] or [L, K] as `Outcome.mix`; for trees that never run out of nodes."""
    first: int = 0
    """Nodes of the first column."""

    @classmethod
    def walked(cls, positions: Positions, costs: CostTable, knots: Floats, *, chains: bool = False) -> Fixed:
        """Walk every budget, or every chain."""
        seconds, rounds = (chain_walks if chains else fixed_walks)(positions, costs)
        weight = np.bincount(costs.row, minlength=len(costs.seconds)) / len(costs.row)
        columns = slice(int(chains), int(chains) + seconds.shape[1])
        curves = costs.seconds[:, columns]
        whole = weight @ np.where(np.isfinite(curves), curves, 1.0)
        drafting = weight @ (costs.seconds[:, 0] - costs.ar_seconds)
        return cls(seconds, rounds, (1.0 - drafting / whole)[:, None] * knots[columns], columns.start)

    def best(self, sequences: NDArray[np.bool_] | None = None) -> tuple[int, tuple[tuple[int, int], ...]]:
        """The nodes of least seconds on some of the sequences (default all), and all runs of them within 1 % of its throughput."""
        seconds = (self.seconds if sequences is None else self.seconds[sequences]).sum(axis=0)
        best = int(np.argmin(seconds))
        edges = self.first + np.flatnonzero(np.diff(np.concatenate([[0], seconds * 0.99 <= seconds[best], [0]])))
        return self.first + best, tuple((int(a), int(b) - 1) for a, b in edges.reshape(-1, 2))

    def curve(
        self, draws: _Bootstrap, tokens: NDArray[np.int64], counted: NDArray[np.bool_], nodes: str = "budget"
    ) -> pd.DataFrame:
        """What each that the costs cover yields: ``nodes``, tokens_per_second, low, high, acceptance_length."""
        covered = np.flatnonzero(np.isfinite(self.seconds).all(axis=0))
        spent = draws.seconds(self.seconds[:, covered], self.mix[covered], counted)
        value, low, high = draws.intervals(draws.sums(tokens, counted), spent, counted)
        return pd.DataFrame(
            {
                nodes: self.first + covered,
                "tokens_per_second": value,
                "low": low,
                "high": high,
                "acceptance_length": tokens[counted].sum() / self.rounds[counted][:, covered].sum(axis=0),
            }
        )
