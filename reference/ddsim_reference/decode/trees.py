"""A round's budgets and trees: the trees are grown once, the policy is asked, the trees are cut and packed for the target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ddsim.cost.model import CostModel
from ddsim.cost.table import CONTEXT_STEP, CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN
from ddsim.policy.contract import Policy, ask, ask_batch, decision_table
from ddsim.trace.calibration import Calibration
from ddsim.tree.kernels import NO_RANK
from ddsim_reference.decode.lattices import CorrectedRows, DraftedLattices
from ddsim_reference.decode.rows import DraftedRows, Grown
from ddsim_reference.engine.buckets import Bucket
from ddsim_reference.engine.engine import Engine

_FREE = CostTable(np.ones((1, 1)), np.ones(1), np.zeros(1, np.int32), np.zeros(1, np.int64))


class Trees:
    """What a policy makes of what was drafted, round by round.

    Attributes
    ----------
    nodes : int32 ndarray [batch]
        Nodes of each request's last tree.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        cost: CostModel | None,
        calibration: Calibration | None,
        max_budget: int | None,
    ) -> None:
        self.engine, self.policy, self.cost, self.calibration = engine, policy, cost, calibration
        if engine.drafter is None:
            raise DdsimError(f"policy {policy.name}: needs a drafter; give one, or decode with AR")
        most = engine.largest_tree
        if max_budget is not None and not 0 <= max_budget <= most:
            raise DdsimError(
                f"max_budget {max_budget}: the engine holds trees of 0 to {most} nodes; raise max_tokens and candidates"
            )
        self.most = most if max_budget is None else max_budget
        if policy.chains:
            raise DdsimError(
                f"policy {policy.name}: weighs the tokens of chains, which the decoder doesn't hand out; simulate it with ddsim serve"
            )
        if cost is None and policy.adaptive:
            raise DdsimError(f"policy {policy.name}: needs a cost model; give a profile")
        self.draft: DraftedRows | DraftedLattices
        if engine.draft_head is not None:
            self.draft = DraftedLattices(engine, calibration, self.most)
        elif calibration is not None and calibration.path is not None:
            self.draft = CorrectedRows(engine, calibration.path, self.most)
        else:
            self.draft = DraftedRows(engine, calibration, self.most)
        batch = engine.batch
        room = max(self.most, engine.drafter.horizon) + 1
        self.grown = Grown(np.zeros(batch, np.int32), *(np.zeros((batch, room), np.int32) for _ in range(3)))
        self.nodes = self.grown.nodes
        self.gains = np.zeros((batch, self.most), np.float32)
        self.whole = np.full(batch, self.most, np.int32)
        self.tables: dict[int, CostTable] = {}  # by number of requests in the round
        if policy.adaptive and cost is not None:
            self._table(batch)  # in no round's time

    def plant(
        self,
        live: list[int],
        context: NDArray[np.int64],
        roots: NDArray[np.int32],
        answers: Sequence[Sequence[int]],
    ) -> Bucket:
        """Budgets, trees and a packed bucket for the requests in these slots: their contexts, roots, and answers up to the root."""
        engine = self.engine
        self.draft.read(live, answers)
        slots = np.array(live, np.int64)
        gains = self.gains[: len(live)]
        if self.policy.adaptive:
            self.draft.grow(slots, self.whole[: len(live)], self.grown, gains)
        budgets = self._budgets(live, gains, context)
        asked = budgets.tolist()
        if max(asked) > self.most:
            raise DdsimError(
                f"policy {self.policy.name}: a tree of {max(asked)} nodes, but the engine holds {self.most}; "
                "raise max_tokens and candidates"
            )
        if self.policy.adaptive and min(asked) > CHAIN:  # the first nodes of a best-first tree are the smaller tree
            total = cut(slots, budgets, self.nodes)
        else:
            total = self.draft.grow(slots, budgets, self.grown, gains[:0])
        if total > engine.max_tokens:
            raise DdsimError(
                f"policy {self.policy.name}: {len(live)} requests ask for {total} tokens in one forward pass, but the "
                f"engine was built for {engine.max_tokens}; raise max_tokens or lower the budget"
            )
        bucket = engine.bucket_for(total)
        pack(slots, roots, *self.grown, bucket.per_tile, *bucket.fields)
        return bucket

    def _budgets(self, live: list[int], gains: NDArray[np.float32], context: NDArray[np.int64]) -> NDArray[np.int32]:
        policy = self.policy
        if policy.adaptive and self.calibration is not None:
            gains = self.calibration.apply_gains(gains)
        if len(live) == 1:
            return ask(policy, gains, self._costs(int(context[live[0]])), most=NO_RANK)
        return ask_batch(policy, gains, *self._joint_seconds(live, context), most=NO_RANK)

    def _costs(self, context: int) -> CostTable:
        if self.cost is None:
            return _FREE
        table = self._table(1)
        step = -(-context // CONTEXT_STEP)
        return table.take(slice(step, step + 1))

    def _joint_seconds(
        self, live: list[int], context: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds by nodes in all, float64 [M + 1]: what the policy decides on, and what is paid."""
        if self.cost is None:
            return _FREE.seconds[0], _FREE.seconds[0]
        table = self._table(len(live))
        row = -(-int(context[live].sum()) // (len(live) * CONTEXT_STEP))
        return table.seconds[row], table.paid.seconds[row]

    def _table(self, requests: int) -> CostTable:
        """Prices at every multiple of the context step, worked out once, by the costs that the policy decides on."""
        if requests not in self.tables:
            assert self.cost is not None
            contexts = np.arange(0, self.engine.max_context + CONTEXT_STEP, CONTEXT_STEP)
            most = self.most if requests == 1 else self.engine.max_tokens - requests
            costs = cost_table(self.cost, contexts, most, requests)
            self.tables[requests] = decision_table(self.policy, self.cost, costs)
        return self.tables[requests]


@njit(cache=True, nogil=True)
def cut(slots, budgets, nodes):  # type: ignore[no-untyped-def]
    """Keep the first nodes of each slot's tree; return tokens in all, roots too."""
    total = 0
    for i in range(len(slots)):
        b = slots[i]
        nodes[b] = min(nodes[b], max(budgets[i], 0))
        total += nodes[b] + 1
    return total


@njit(cache=True, nogil=True)
def pack(  # type: ignore[no-untyped-def]
    slots, roots, nodes, parents, depths, tokens, per_tile,
    token, request, index, depth, parent, tiles, start, size,
):  # fmt: skip
    """Fill a bucket's staging fields as ``Bucket.pack`` does."""
    start[:] = 0
    size[:] = 0
    at = 0
    tile = 0
    for i in range(len(slots)):
        b = slots[i]
        m = nodes[b] + 1
        start[b] = at
        size[b] = m
        for j in range(m):
            t = at + j
            if j == 0:
                token[t] = roots[b]
            else:
                token[t] = tokens[b, j]
            request[t] = b
            index[t] = j
            depth[t] = depths[b, j]
            parent[t] = parents[b, j]
        for first in range(0, m, per_tile):
            tiles[tile, 0] = b
            tiles[tile, 1] = at + first
            tiles[tile, 2] = min(per_tile, m - first)
            tile += 1
        at += m
    for t in range(at, len(token)):  # padding keeps no keys
        token[t] = 0
        request[t] = 0
        index[t] = -1
        depth[t] = 0
        parent[t] = -1
    for t in range(tile, len(tiles)):
        tiles[t, 0] = 0
        tiles[t, 1] = 0
        tiles[t, 2] = 0
