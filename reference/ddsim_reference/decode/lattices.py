"""What was drafted, as trees: lattices, which a drafter with a head leaves on the host, or which a path correction makes of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN, chain_length
from ddsim.trace.calibration import Calibration
from ddsim.trace.path import WIDTH, PathCorrection
from ddsim.tree.kernels import write_gains
from ddsim.tree.lattice_kernels import first_nodes, make_scratch, next_row
from ddsim.tree.lattice_tables import best_of_row, write_nodes
from ddsim_reference.decode.rows import Grown
from ddsim_reference.engine.engine import Engine


class DraftedLattices:
    """A lattice for each slot; `DraftedRows` for drafters with a head."""

    def __init__(self, engine: Engine, calibration: Calibration | None, most: int) -> None:
        assert engine.drafter is not None
        if calibration is not None and calibration.kind != "isotonic":
            raise DdsimError(
                f"calibration: kind {calibration.kind} is for marginals, but this drafter has a head; use an isotonic one"
            )
        self.horizon = engine.drafter.horizon
        self.logprobs, self.ids = engine.drafted()
        self.ranks = np.zeros(max(most, self.horizon) + 1, np.int32)

    def read(self, slots: list[int], answers: Sequence[Sequence[int]]) -> None:
        """As `DraftedRows`; trees are grown where the engine leaves its lattices."""

    def grow(
        self, slots: NDArray[np.int64], budgets: NDArray[np.int32], grown: Grown, gains: NDArray[np.float32]
    ) -> int:
        """As `DraftedRows`; the chain takes the best candidate behind each one before it."""
        total: int = grow(self.logprobs, self.ids, self.horizon, slots, budgets, self.ranks, *grown, gains)
        return total


class CorrectedRows(DraftedLattices):
    """The lattices that a path correction makes of rows of marginals, on the host."""

    def __init__(self, engine: Engine, correction: PathCorrection, most: int) -> None:
        super().__init__(engine, None, most)
        if correction.horizon != self.horizon:
            raise DdsimError(f"calibration: made for horizon {correction.horizon}, but the drafter's is {self.horizon}")
        wanted = min(correction.max_budget, engine.target.vocab_size)
        if engine.candidates < wanted:
            raise DdsimError(
                f"calibration: made for {wanted} candidates a depth, but the engine keeps {engine.candidates}; raise candidates"
            )
        self.correction, self.rows = correction, (self.ids, self.logprobs)
        self.logprobs = np.zeros((engine.batch, 1 + (self.horizon - 1) * WIDTH, WIDTH), np.float32)
        self.ids = np.zeros((engine.batch, self.horizon, WIDTH), np.int32)

    def read(self, slots: list[int], answers: Sequence[Sequence[int]]) -> None:
        """As `DraftedRows`."""
        ids, logprobs = self.rows
        for b, answer in zip(slots, answers, strict=True):
            made = self.correction.lattice(ids[b], logprobs[b], answer)
            self.logprobs[b], self.ids[b] = made.rows, made.token_ids


@njit(cache=True, nogil=True)
def grow(logprobs, ids, horizon, slots, budgets, ranks, nodes, parents, depths, tokens, gains):  # type: ignore[no-untyped-def]
    """`DraftedLattices.grow`; ``ranks`` [most + 1] is working memory."""
    total = 0
    rows, width = logprobs.shape[1:]
    flat = logprobs.reshape(-1)
    most = np.int64(max(budgets.max(), 0))
    nothing, none = np.empty(0, np.int64), np.empty(0, np.int32)
    s = make_scratch(most, width)
    for i in range(len(slots)):
        b = slots[i]
        own = ids[b].reshape(-1)
        n = 0
        parents[b, 0], depths[b, 0] = -1, 0
        if budgets[i] <= CHAIN:
            row = 0
            while n < chain_length(budgets[i], horizon):
                best = best_of_row(flat, nothing, width, b * rows + row)
                if best < 0:
                    break
                parents[b, n + 1], depths[b, n + 1], tokens[b, n + 1] = n, n + 1, own[n * width + best % width]
                row = next_row(none, width, rows, row, best)
                n += 1
        else:
            if budgets[i] > 0:
                n = first_nodes(flat, nothing, none, width, b * rows, rows, np.int64(budgets[i]), s)[1]
            write_nodes(s, n, width, own, parents[b], depths[b], ranks, tokens[b])
            if len(gains) > 0:
                write_gains(s, n, gains[i])
        nodes[b] = n
        total += n + 1
    return total
