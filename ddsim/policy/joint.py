"""Many joint rounds: what they cost, what they yield, and the price that pays for its own budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddsim import limits
from ddsim.arrays import Floats
from ddsim.cost.model import CostModel
from ddsim.cost.table import CONTEXT_STEP, cost_table
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.policy.batch import decide, share_curve, weighed
from ddsim.policy.choose import EXHAUSTIVE, NO_DRAFT, PRICE, _slopes_ahead
from ddsim.policy.contract import Decision, Policy, cost_table_of, decision_cost
from ddsim.policy.price import PriceSolution
from ddsim.threads import split
from ddsim.trace.rounds import Positions

_CHUNK = 64  # joint rounds per partial sum: fixed, so that sums don't depend on the thread count


@dataclass(frozen=True)
class JointTable:
    """Seconds of joint rounds of ``batch`` requests, by mean context.

    Requests of one batch have different contexts. They are priced at their mean, rounded up to a multiple of ``step``:
    what a context costs to read is linear in its length, so the mean prices the sum.

    Attributes
    ----------
    batch : int
    first : int
        Context of row 0 in steps of ``step`` tokens; row u prices a mean context of (first + u) steps.
    seconds : float64 [U, M + 1]
        A drafted round with n = 0 .. M nodes in all, n + batch tokens: what is paid.
    ar_seconds : float64 [U]
    limit : int
        Nodes in all that rules may choose, at most M.
    curve : float64 [U, limit + 1]
        What rules decide on: ``seconds`` up to there, or another cost model's (`decided_on`).
    share : float64 [U, W + 1]
        ``share_curve`` of it.
    curve_ahead, share_ahead : float64
        The least slope from n nodes to any larger number of them, of both.
    """

    batch: int
    first: int
    seconds: Floats
    ar_seconds: Floats
    limit: int
    curve: Floats
    curve_ahead: Floats
    share: Floats
    share_ahead: Floats
    step: int = CONTEXT_STEP

    def row_of(self, context: float) -> int:
        """The row that prices a mean context."""
        steps = int(-(-context // self.step)) - self.first
        return min(max(steps, 0), len(self.seconds) - 1)

    @property
    def contexts(self) -> NDArray[np.int64]:
        """int64 [U], the contexts that rows price."""
        return (self.first + np.arange(len(self.seconds), dtype=np.int64)) * self.step


def joint_table(
    cost: CostModel,
    contexts: tuple[int, int],
    batch: int,
    max_budget: int,
    horizon: int,
    *,
    max_tokens: int | None = None,
    widest: int = 0,
    step: int = CONTEXT_STEP,
) -> JointTable:
    """Price joint rounds of ``batch`` requests at mean contexts from ``contexts[0]`` to ``contexts[1]``.

    Parameters
    ----------
    cost : CostModel
    contexts : (int, int)
    batch : int
    max_budget : int
        Nodes that one request can have.
    horizon : int
        Nodes of a chain.
    max_tokens : int, optional
        Tokens that a pass may verify. By default rules choose within what the cost model was fitted on, but may always give
        every request the nodes of a chain; fixed widths (``widest``) go past that at extrapolated cost, which is flagged.
    widest : int
        Nodes per request that are priced besides what rules may choose.
    step : int
        Tokens from one row to the next, a multiple of ``CONTEXT_STEP``.

    Raises
    ------
    DdsimError
        ``max_tokens`` leaves no token per request.
    """
    if max_tokens is not None and max_tokens < batch:
        raise DdsimError(f"max_tokens: {max_tokens} tokens can't hold the roots of a batch of {batch}")
    if max_tokens is None:
        measured = min(cost.measured_tokens(context, batch)[1] for context in contexts)
        limit = max(int(measured) - batch, batch * horizon)
        last = max(limit, batch * min(widest, max_budget))
    else:
        limit = last = max_tokens - batch
    limit, last = (min(n, batch * max(max_budget, horizon)) for n in (limit, last))
    first, end = (-(-context // step) for context in contexts)
    table = cost_table(cost, np.arange(first, end + 1) * step, last, batch)
    return _joint(batch, first, table.seconds, table.ar_seconds, table.seconds[:, : limit + 1], max_budget, step)


def _joint(
    batch: int, first: int, seconds: Floats, ar_seconds: Floats, curve: Floats, max_budget: int, step: int
) -> JointTable:
    """A table whose rules decide on ``curve`` [U, limit + 1]."""
    curve = np.ascontiguousarray(curve)
    share = share_curve(curve, batch, max_budget)
    slopes = _slopes_ahead(curve), _slopes_ahead(share)
    return JointTable(batch, first, seconds, ar_seconds, curve.shape[1] - 1, curve, slopes[0], share, slopes[1], step)


def decided_on(policy: Policy, cost: CostModel, table: JointTable, max_budget: int) -> JointTable:
    """The table with the curves that a policy decides on, where ``cost`` is paid."""
    model = decision_cost(policy, cost)
    if model is cost and policy.at_context is None:
        return table
    priced = cost_table_of(policy, model, table.contexts, table.limit, table.batch)
    curve = priced.seconds[priced.row]
    return _joint(table.batch, table.first, table.seconds, table.ar_seconds, curve, max_budget, table.step)


def curves_for(mode: int, table: JointTable) -> tuple[Floats, Floats, Floats, Floats]:
    """What `decide` weighs nodes against: curve [U, limit + 1] and share [U, W + 1], each with its slopes ahead."""
    return (*weighed(mode, table.curve, table.curve_ahead), table.share, table.share_ahead)


def decide_round(
    decision: Decision,
    positions: Positions,
    where: NDArray[np.int64],
    table: JointTable,
    row: int,
    before: NDArray[np.int64],
    state: Floats,
) -> NDArray[np.int64]:
    """Actions int64 [B] of one joint round at the positions ``where`` [B], in memory, priced by a ``row`` of the table; the rest as `decide` takes it."""
    batch = len(where)
    budgets, heap = np.zeros(batch, np.int32), np.zeros(batch, np.int64)
    key, rate = np.zeros(batch), np.zeros(batch)
    curves = [curve[row] for curve in curves_for(decision.mode, table)]
    order, mean = np.zeros(len(curves[0]), np.int32), np.zeros(positions.max_budget, np.float32)
    decide(
        decision.mode, decision.rule, decision.price, decision.fill, decision.width, positions.gains, positions.nodes,
        positions.chain_expected, where, positions.horizon, table.seconds[row], *curves, budgets, order, heap, key, rate, mean,
        before, state,
    )  # fmt: skip
    return budgets.astype(np.int64)


@njit(cache=True, nogil=True)
def _totals(  # type: ignore[no-untyped-def]
    mode, rule, price, fill, width, gains, nodes, chain_expected, groups, row, horizon,
    seconds, ar_seconds, curve, curve_ahead, share, share_ahead, first, last, out,
):  # fmt: skip
    """Expected tokens, seconds and nodes of the joint rounds ``groups`` [G, B], added up by chunks in ``out`` [chunks, 3]."""
    count, batch = groups.shape
    budgets, heap = np.zeros(batch, np.int32), np.zeros(batch, np.int64)
    key, rate = np.zeros(batch), np.zeros(batch)
    order, mean = np.zeros(curve.shape[1], np.int32), np.zeros(gains.shape[1], np.float32)
    before, state = np.full((batch, 2), -1), np.zeros(0)
    for c in range(first, last):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, count)):
            u = row[i]
            n, tokens = decide(
                mode, rule, price, fill, width, gains, nodes, chain_expected, groups[i], horizon,
                seconds[u], curve[u], curve_ahead[u], share[u], share_ahead[u], budgets, order, heap, key, rate, mean,
                before, state,
            )  # fmt: skip
            out[c, 0] += tokens
            out[c, 1] += ar_seconds[u] if n == NO_DRAFT else seconds[u, n]
            out[c, 2] += max(n, 0)


def groups_of(positions: Positions, batch: int, seed: int = 0, most: int = 8192) -> NDArray[np.int64]:
    """int64 [G, batch]: positions that can start a round, at most about ``most`` of them, shuffled into joint rounds."""
    roots = positions.roots()
    if len(roots) < batch:
        raise DdsimError(f"a batch of {batch} needs as many positions that start a round; the trace has {len(roots)}")
    order = np.random.default_rng(seed).permutation(roots)
    return order[: min(len(order), max(most, batch)) // batch * batch].reshape(-1, batch)


def joint_totals(
    decision: Decision,
    positions: Positions,
    groups: NDArray[np.int64],
    table: JointTable,
    *,
    context: int | None = None,
) -> tuple[float, float, float]:
    """Expected tokens, seconds and nodes of the joint rounds ``groups``, summed; the surrogate, nothing is walked.

    ``positions`` has its gains in memory, calibrated already. ``context`` prices all rounds alike.
    """
    if context is None:
        mean = positions.context[groups].mean(axis=1)
        row = np.array([table.row_of(c) for c in mean.tolist()], np.int64)
    else:
        row = np.full(len(groups), table.row_of(context), np.int64)
    arguments = (
        decision.mode, decision.rule, decision.price, decision.fill, decision.width, positions.gains, positions.nodes,
        positions.chain_expected, groups, row, positions.horizon,
        table.seconds, table.ar_seconds, *curves_for(decision.mode, table),
    )  # fmt: skip
    parts = np.zeros((-(-len(groups) // _CHUNK), 3))
    split(lambda first, last: _totals(*arguments, first, last, parts), len(parts), 16)
    sums = parts.sum(axis=0)
    return float(sums[0]), float(sums[1]), float(sums[2])


def solve_joint_price(
    mode: int,
    positions: Positions,
    groups: NDArray[np.int64],
    table: JointTable,
    *,
    context: int | None = None,
    start: float | None = None,
) -> PriceSolution:
    """λ* of joint rounds: the price that equals the throughput of its own budgets, over all slots (Dinkelbach's method).

    For SHARE the budgets don't maximise what the price weighs, since requests pay for shares of rounds that nobody runs; the best
    price met on the way is returned.

    Parameters
    ----------
    mode : FOREST, SHARE or UNIFORM
    positions, groups, table, context : as in `joint_totals`
    start : float, optional
        A price to begin with: any will do, a close one saves time.
    """
    first = Decision(mode, EXHAUSTIVE) if start is None else Decision(mode, PRICE, start)
    tokens, seconds, _ = joint_totals(first, positions, groups, table, context=context)
    price, best = tokens / seconds, None
    for iterations in range(2, 51):
        tokens, seconds, _ = joint_totals(Decision(mode, PRICE, price), positions, groups, table, context=context)
        if best is None or tokens / seconds >= best.tokens / best.seconds:
            best = PriceSolution(price, tokens, seconds, iterations)
        if not tokens / seconds > price:
            break
        price = tokens / seconds
    assert best is not None
    return best


def batches_of(batch: int | Sequence[int]) -> tuple[int, ...]:
    """Checked batch sizes."""
    sizes = (batch,) if isinstance(batch, (int, np.integer)) else tuple(batch)
    if not sizes or any(isinstance(b, bool) or not isinstance(b, (int, np.integer)) or b < 1 for b in sizes):
        raise DdsimError(f"batch: must be whole numbers of requests, at least 1, is {batch!r}")
    return tuple(limits.check("batch", b) for b in sizes)
