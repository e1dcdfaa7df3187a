"""Cost tables: seconds of a round by context and budget, as solvers and replay read them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import Floats, Ints, numbers
from ddsim.cost.model import CostModel, FloatArray, IntArray
from ddsim.errors import DdsimError
from ddsim.text import brief

CONTEXT_STEP = 64  # contexts are rounded up to a multiple of this before they are priced


@dataclass(frozen=True)
class CostTable:
    """Seconds of a round by budget, for every context that occurs.

    Attributes
    ----------
    seconds : float64 [U, N + 1]
        Drafting, host and verification of ``batch + n`` tokens: n nodes over the whole batch, and one root per request.
    ar_seconds : float64 [U]
        An autoregressive round: verification of ``batch`` tokens.
    row : int32 [P]
        Which row of ``seconds`` prices each position.
    contexts : int64 [U]
        The rounded contexts, ascending.
    batch : int
    paid : CostTable or None
        What the rounds are charged, if a policy decides on other costs than it pays; its rows are those of this table.
    """

    seconds: FloatArray
    ar_seconds: FloatArray
    row: NDArray[np.int32]
    contexts: IntArray
    batch: int = 1
    paid: CostTable | None = None


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


class Costs(Protocol):
    """What the solvers need of a cost table: seconds of a round by context and budget (see `ddsim.cost.table.cost_table`)."""

    @property
    def seconds(self) -> Floats:
        """float64 [U, M + 1], a drafted round with n nodes."""

    @property
    def ar_seconds(self) -> Floats:
        """float64 [U], a round without draft."""

    @property
    def row(self) -> Ints:
        """int32 [P], the row of each position."""


def paid(costs: Costs) -> Costs:
    """The table that rounds are charged by: ``costs.paid`` where a policy decides on other costs than it pays, else ``costs``."""
    other: Costs | None = getattr(costs, "paid", None)
    return costs if other is None else other


def cost_rows(costs: Costs, index: slice | NDArray[Any]) -> Costs:
    """The same cost table for a part of its positions."""
    charged = paid(costs)
    return _Curves(
        costs.seconds, costs.ar_seconds, costs.row[index], None if charged is costs else cost_rows(charged, index)
    )


@dataclasses.dataclass(frozen=True)
class _Curves:
    """The smallest cost table."""

    seconds: Floats
    ar_seconds: Floats
    row: Ints
    paid: Costs | None = None


def curve_table(seconds: ArrayLike, positions: int, ar_seconds: float | None = None) -> Costs:
    """A cost table with one curve for all positions: seconds of a round with 0, 1, ... nodes.

    ``ar_seconds`` (default: those of a round with 0 nodes) is what a round without draft takes.
    """
    curve = cost_curve(seconds, 0)
    alone = curve[0] if ar_seconds is None else float(ar_seconds)
    return _Curves(curve[None], np.array([alone]), np.zeros(positions, np.int32))


def cost_curve(cost: Any, max_budget: int, context: int | None = None, batch: int = 1) -> Floats:
    """float64 [max_budget + 1]: seconds of a joint round of ``batch`` requests with n nodes in all, n + batch tokens.

    ``cost`` is a CostModel, or the curve itself (seconds of a round with 0, 1, ... nodes).
    """
    if hasattr(cost, "verify_seconds"):
        tokens = np.arange(max_budget + 1) + batch
        verify = np.asarray(cost.verify_seconds(tokens, context, batch), np.float64)
        draft = float(np.asarray(cost.draft_seconds(batch, context=context)))
        return np.ascontiguousarray(np.broadcast_to(verify, tokens.shape) + draft)
    curve = numbers(cost, "cost curve").astype(np.float64).reshape(-1)
    if len(curve) < max_budget + 1:
        raise DdsimError(f"cost curve has {len(curve)} entries; {max_budget + 1} needed (0 to {max_budget} nodes)")
    if not (np.isfinite(curve).all() and (curve > 0).all()):
        raise DdsimError("cost curve has an entry that is not a positive finite number of seconds")
    return curve


def _priced_context(context: int | None) -> int | None:
    """Contexts are priced in steps (as in `ddsim.cost.table.cost_table`)."""
    if context is None:
        return None
    if isinstance(context, bool) or not isinstance(context, (int, np.integer)) or context < 0:
        raise DdsimError(f"context {brief(context)}: must be a whole number of tokens, 0 or more")
    pass

    return -(-int(context) // CONTEXT_STEP) * CONTEXT_STEP
