"""What was drafted, as trees: rows of marginals, which the drafter leaves on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN, chain_length
from ddsim.trace.calibration import Calibration
from ddsim.tree.kernels import first_nodes, make_scratch, write_gains, write_tree
from ddsim.tree.rows import kept_pairs
from ddsim_reference.engine.engine import Engine


class Grown(NamedTuple):
    """A tree for each slot, root first; the root's token is left out."""

    nodes: NDArray[np.int32]
    """[batch] how many there are, the root not counted."""
    parents: NDArray[np.int32]
    """[batch, most + 1]"""
    depths: NDArray[np.int32]
    """[batch, most + 1]"""
    tokens: NDArray[np.int32]
    """[batch, most + 1]"""


class DraftedRows:
    """Rows of marginals, one for each depth of each slot. Drafts of another kind need a class with the same two methods.

    Parameters
    ----------
    engine : Engine
        With a drafter.
    calibration : Calibration or None
        One of the marginals ("temperature") corrects the rows; other kinds leave them as they are.
    most : int
        Nodes of the largest tree.
    """

    def __init__(self, engine: Engine, calibration: Calibration | None, most: int) -> None:
        assert engine.drafter is not None
        self.horizon = engine.drafter.horizon
        self.most = most
        self.logprobs, self.ids = engine.drafted()
        self.calibration = None
        if calibration is not None and calibration.kind == "temperature":
            wanted = len(calibration.temperatures)
            if wanted != self.horizon:
                raise DdsimError(f"calibration: made for horizon {wanted}, but the drafter's is {self.horizon}")
            self.calibration = calibration
        offsets = np.arange(engine.batch * self.horizon + 1, dtype=np.int64) * engine.candidates
        self.rows = self.logprobs.reshape(-1), offsets, self.ids.reshape(-1)
        self.ranks = np.zeros(max(most, self.horizon) + 1, np.int32)

    def read(self, slots: list[int], answers: Sequence[Sequence[int]]) -> None:
        """Take what the engine has just drafted: with a calibration, prune it as a trace does and correct it.

        Parameters
        ----------
        slots, answers : list of int, sequences of int
            Of the round's requests, each answer up to its root.
        """
        if self.calibration is None:
            return  # ``rows`` are views of where it lies
        logprobs = self.logprobs
        kept = np.maximum(kept_pairs(logprobs, self.most, check=False), logprobs[:, :, 0] > -np.inf)
        inside = np.arange(logprobs.shape[2]) < kept[:, :, None]
        offsets = np.concatenate([[0], np.cumsum(kept.reshape(-1), dtype=np.int64)])
        self.rows = self.calibration.apply_rows(logprobs[inside], offsets), offsets, self.ids[inside]

    def grow(
        self,
        slots: NDArray[np.int64],
        budgets: NDArray[np.int32],
        grown: Grown,
        gains: NDArray[np.float32],
    ) -> int:
        """Grow the best-first tree of each slot.

        Parameters
        ----------
        slots : int64 [B]
        budgets : int32 [B]
            Nodes, CHAIN for the chain of best candidates, PREFIX - k for its first k tokens, or NO_DRAFT for the root alone.
        grown : Grown
            Filled at these slots.
        gains : float32 [B, N]
            Filled with the trees' path probabilities; [0, N] if nobody needs them.

        Returns
        -------
        int
            Tokens in all, roots too.
        """
        total: int = grow(*self.rows, self.horizon, slots, budgets, self.ranks, *grown, gains)
        return total


@njit(cache=True, nogil=True)
def grow(rows, offsets, ids, horizon, slots, budgets, ranks, nodes, parents, depths, tokens, gains):  # type: ignore[no-untyped-def]
    """`DraftedRows.grow`; ``ranks`` [most + 1] is working memory."""
    total = 0
    s = make_scratch(horizon, max(budgets.max(), 0))
    for i in range(len(slots)):
        b = slots[i]
        first = b * horizon
        n = 0
        if budgets[i] <= CHAIN:
            parents[b, 0], depths[b, 0] = -1, 0
            while n < chain_length(budgets[i], horizon):
                best = offsets[first + n]
                if best == offsets[first + n + 1] or rows[best] == -np.inf:
                    break
                n += 1
                parents[b, n], depths[b, n], ranks[n] = n - 1, n, 0
        else:
            if budgets[i] > 0:
                n = first_nodes(rows, offsets, first, horizon, np.int64(budgets[i]), s)[1]
            write_tree(s, n, parents[b], depths[b], ranks)
            if len(gains) > 0:
                write_gains(s, n, gains[i])
        for j in range(1, n + 1):
            tokens[b, j] = ids[offsets[first + depths[b, j] - 1] + ranks[j]]
        nodes[b] = n
        total += n + 1
    return total
