"""Cost tables: seconds of a round by context and budget, as solvers and replay read them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import Floats, Ints, numbers
from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.text import brief

CONTEXT_STEP = 64  # contexts are rounded up to a multiple of this before they are priced


@dataclass(frozen=True)
class CostTable:
    """Seconds of a round by context and budget: what solvers weigh, and what walks charge.

    Attributes
    ----------
    seconds : float64 [U, N + 1]
        Drafting, host and verification of ``batch + n`` tokens: n nodes over the whole batch, and one root per request.
    ar_seconds : float64 [U]
        An autoregressive round: verification of ``batch`` tokens.
    row : int32 [P]
        Which row of ``seconds`` prices each position.
    contexts : int64 [U]
        The rounded contexts, ascending; of one curve for any context, 0.
    batch : int
    charged : CostTable or None
        What rounds are charged, if a policy decides on other costs than it pays (see `paid`); it has the same rows.
    """

    seconds: Floats
    ar_seconds: Floats
    row: Ints
    contexts: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(1, np.int64))
    batch: int = 1
    charged: CostTable | None = None

    @property
    def paid(self) -> CostTable:
        """The table that rounds are charged by: this one, unless a policy decides on other costs than it pays."""
        return self if self.charged is None else self.charged

    def take(self, index: slice | NDArray[Any]) -> CostTable:
        """The same costs for a part of the positions.

        Examples
        --------
        >>> CostTable.of_curve([1.0, 1.5], 4).take(slice(1, 3)).row.tolist()
        [0, 0]
        """
        charged = None if self.charged is None else self.charged.take(index)
        return dataclasses.replace(self, row=self.row[index], charged=charged)

    @classmethod
    def of_curve(cls, cost: Any, positions: int = 1, max_budget: int = 0, context: int | None = None) -> CostTable:
        """One curve for all positions: seconds of a round with 0, 1, ... nodes; one without draft takes those of 0 nodes.

        Parameters
        ----------
        cost : CostModel or array_like
            A model is asked for the seconds of rounds of one request up to ``max_budget`` nodes; an array is the curve itself.
        positions : int
        max_budget : int
        context : int, optional
            Where a model is asked.

        Raises
        ------
        DdsimError
            The curve is too short, or not of positive finite seconds.

        Examples
        --------
        >>> table = CostTable.of_curve([1.0, 1.5, 2.0], positions=3)
        >>> table.seconds.tolist(), table.ar_seconds.tolist(), table.row.tolist()
        ([[1.0, 1.5, 2.0]], [1.0], [0, 0, 0])
        """
        curve = _curve(cost, max_budget, context)
        return cls(curve[None], curve[:1], np.zeros(positions, np.int32))


def cost_table(cost: CostModel, contexts: ArrayLike, max_budget: int, batch: int = 1) -> CostTable:
    """Price all budgets at all positions; contexts are rounded up to a multiple of ``CONTEXT_STEP`` first.

    Rows are kept in the model, so that a decoder may ask every round.

    Parameters
    ----------
    cost : CostModel
    contexts : int array_like [P]
    max_budget : int
        N.
    batch : int

    Examples
    --------
    >>> table = cost_table(CostModel.from_table([1, 9], [1.0, 2.0], draft_seconds=0.5), [10, 60, 70], max_budget=8)
    >>> table.seconds.shape, table.row.tolist(), float(table.seconds[0, 8]), float(table.ar_seconds[0])
    ((2, 9), [0, 0, 1], 2.5, 1.0)
    """
    wanted = np.atleast_1d(np.asarray(contexts))
    if wanted.size and not (np.issubdtype(wanted.dtype, np.integer) and wanted.min() >= 0):
        raise DdsimError("cost_table: contexts must be whole numbers of at least 0")
    if max_budget < 0 or batch < 1:
        raise DdsimError(f"cost_table: needs max_budget >= 0 and batch >= 1, has {max_budget} and {batch}")
    rounded = -(-wanted.astype(np.int64) // CONTEXT_STEP) * CONTEXT_STEP
    unique, row = np.unique(rounded, return_inverse=True)
    missing = np.array([c for c in unique.tolist() if (c, batch, max_budget) not in cost._rows], np.int64)
    if len(missing):
        if len(cost._rows) > 4096:
            cost._rows.clear()
            missing = unique
        verify = cost.verify_seconds(np.arange(batch, batch + max_budget + 1), missing[:, None], batch)
        total = verify + cost.draft_seconds(batch, context=missing)[:, None]
        for c, seconds, first in zip(missing.tolist(), total, verify[:, 0].tolist(), strict=True):
            cost._rows[c, batch, max_budget] = seconds, first
    rows = [cost._rows[c, batch, max_budget] for c in unique.tolist()]
    seconds = np.array([r[0] for r in rows], np.float64).reshape(len(rows), max_budget + 1)
    return CostTable(
        seconds, np.array([r[1] for r in rows], np.float64), row.reshape(-1).astype(np.int32), unique, batch
    )


def _curve(cost: Any, max_budget: int, context: int | None) -> Floats:
    """Seconds of a round of one request by nodes, at least [max_budget + 1]: a model's, or an array's as it is."""
    if hasattr(cost, "verify_seconds"):
        tokens = np.arange(max_budget + 1) + 1
        verify = np.asarray(cost.verify_seconds(tokens, context, 1), np.float64)
        draft = float(np.asarray(cost.draft_seconds(1, context=context)))
        return np.ascontiguousarray(np.broadcast_to(verify, tokens.shape) + draft)
    curve = numbers(cost, "cost curve").astype(np.float64).reshape(-1)
    if len(curve) < max_budget + 1:
        raise DdsimError(f"cost curve has {len(curve)} entries; {max_budget + 1} needed (0 to {max_budget} nodes)")
    if not (np.isfinite(curve).all() and (curve > 0).all()):
        raise DdsimError("cost curve has an entry that is not a positive finite number of seconds")
    return curve


def priced_context(context: int | None) -> int | None:
    """A context as it is priced (see `cost_table`)."""
    if context is None:
        return None
    if isinstance(context, bool) or not isinstance(context, (int, np.integer)) or context < 0:
        raise DdsimError(f"context {brief(context)}: must be a whole number of tokens, 0 or more")
    return -(-int(context) // CONTEXT_STEP) * CONTEXT_STEP
