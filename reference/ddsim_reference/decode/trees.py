"""A round's budgets and trees: the policy is asked, the trees are grown and packed for the target."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ddsim.cost.model import CostModel
from ddsim.cost.table import CONTEXT_STEP, CostTable, cost_table
from ddsim.errors import DdsimError
from ddsim.policy.choose import CHAIN
from ddsim.policy.contract import Policy, ask, ask_joint, decision_table
from ddsim.trace.calibration import Calibration
from ddsim.tree import kernels as _kernels
from ddsim.tree.kernels import NO_RANK
from ddsim.tree.rows import kept_pairs
from ddsim_reference.engine.buckets import Bucket
from ddsim_reference.engine.engine import Engine

_FREE = CostTable(np.ones((1, 1)), np.ones(1), np.zeros(1, np.int32), np.zeros(1, np.int64))


class Trees:
    """What a policy makes of the drafter's marginals, round by round.

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
        exact = engine.candidates if engine.candidates < engine.target.vocab_size else engine.max_tokens - 1
        most = min(exact, engine.max_tokens - 1)
        if max_budget is not None and not 0 <= max_budget <= most:
            raise DdsimError(
                f"max_budget {max_budget}: the engine holds trees of 0 to {most} nodes; raise max_tokens and candidates"
            )
        self.most = most if max_budget is None else max_budget
        if cost is None and policy.adaptive:
            raise DdsimError(f"policy {policy.name}: needs a cost model; give a profile")
        batch, horizon = engine.batch, engine.drafter.horizon
        self.horizon = horizon
        room = max(self.most, horizon) + 1
        self.parents, self.depths, self.ranks = (np.zeros((batch, room), np.int32) for _ in range(3))
        self.values = np.zeros(room)
        self.nodes = np.zeros(batch, np.int32)
        self.gains = np.zeros((batch, self.most), np.float32)
        self.no_truth = np.full((batch, horizon), -1, np.int32)
        self.no_ranks, self.no_chain = np.zeros((batch, horizon), np.int32), np.zeros(batch, np.uint8)
        logprobs, ids = engine.drafted()
        self.rows = logprobs.reshape(-1)
        self.ids = ids.reshape(-1)
        self.offsets = np.arange(batch * horizon + 1, dtype=np.int64) * engine.candidates
        if calibration is not None and calibration.kind == "temperature":
            wanted = len(calibration.temperatures)
            if wanted != horizon:
                raise DdsimError(f"calibration: made for horizon {wanted}, but the drafter's is {horizon}")
        self.tables: dict[int, CostTable] = {}  # by number of requests in the round

    def plant(self, live: list[int], context: NDArray[np.int64], roots: NDArray[np.int32]) -> Bucket:
        """Budgets, trees and a packed bucket for the requests in these slots, whose contexts and roots are given."""
        engine = self.engine
        rows, offsets, ids = self.rows, self.offsets, self.ids
        if self.calibration is not None and self.calibration.kind == "temperature":
            rows, offsets, ids = self._calibrated()
        slots = np.array(live, np.int64)
        budgets = self._budgets(live, slots, rows, offsets, context)
        if len(budgets) and max(budgets) > self.most:
            raise DdsimError(
                f"policy {self.policy.name}: a tree of {max(budgets)} nodes, but the engine holds {self.most}; "
                "raise max_tokens and candidates"
            )
        total = grow(
            rows, offsets, self.horizon, slots, np.asarray(budgets, np.int32), self.parents, self.depths, self.ranks,
            self.values, self.nodes,
        )  # fmt: skip
        if total > engine.max_tokens:
            raise DdsimError(
                f"policy {self.policy.name}: {len(live)} requests ask for {total} tokens in one forward pass, but the "
                f"engine was built for {engine.max_tokens}; raise max_tokens or lower the budget"
            )
        bucket = engine.bucket_for(total)
        pack(
            offsets, ids, self.horizon, slots, self.nodes, self.parents, self.depths, self.ranks, roots,
            bucket.per_tile, *bucket.fields,
        )  # fmt: skip
        return bucket

    def _budgets(
        self,
        live: list[int],
        slots: NDArray[np.int64],
        rows: NDArray[np.float32],
        offsets: NDArray[np.int64],
        context: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        policy = self.policy
        gains = self.gains
        if policy.adaptive:
            _kernels.gains_and_ranks(
                rows, offsets, self.no_truth, self.horizon, 0, len(gains), gains, self.no_ranks, self.no_chain
            )  # fmt: skip
            if len(live) < len(gains):
                gains = gains[slots]
            if self.calibration is not None:
                gains = self.calibration.apply_gains(gains)
        else:
            gains = gains[: len(live)]
        if len(live) == 1:
            return ask(policy, gains, self._costs(int(context[live[0]])), most=NO_RANK)
        return ask_joint(policy, gains, *self._joint_seconds(live, context), most=NO_RANK)

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

    def _calibrated(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]]:
        """Marginals pruned as in a trace, then corrected: rows, offsets, ids."""
        assert self.calibration is not None
        logprobs, ids = self.engine.drafted()
        kept = np.maximum(kept_pairs(logprobs, self.most, check=False), logprobs[:, :, 0] > -np.inf)
        inside = np.arange(logprobs.shape[2]) < kept[:, :, None]
        offsets = np.concatenate([[0], np.cumsum(kept.reshape(-1), dtype=np.int64)])
        rows = self.calibration.apply_rows(logprobs[inside], offsets)
        return rows, offsets, ids[inside]


@njit(cache=True, nogil=True)
def grow(rows, offsets, horizon, slots, budgets, parents, depths, ranks, values, nodes):  # type: ignore[no-untyped-def]
    """Build the tree of each slot into its row of parents, depths, ranks [batch, >= budget + 1]; tokens in all, roots too."""
    total = 0
    for i in range(len(slots)):
        b = slots[i]
        if budgets[i] == CHAIN:
            n = 0
            parents[b, 0], depths[b, 0], ranks[b, 0] = -1, 0, -1
            while n < horizon:
                first = offsets[b * horizon + n]
                if first == offsets[b * horizon + n + 1] or rows[first] == -np.inf:
                    break
                parents[b, n + 1], depths[b, n + 1], ranks[b, n + 1] = n, n + 1, 0
                n += 1
        else:
            own = offsets[b * horizon : (b + 1) * horizon + 1]
            most = max(budgets[i], 0)
            n = _kernels_draft_tree(rows, own, horizon, most, parents[b], depths[b], ranks[b], values)
        nodes[b] = n
        total += n + 1
    return total


_kernels_draft_tree = _kernels.draft_tree


@njit(cache=True, nogil=True)
def pack(  # type: ignore[no-untyped-def]
    offsets, ids, horizon, slots, nodes, parents, depths, ranks, roots, per_tile,
    token, request, index, depth, parent, mask, tiles, start, size,
):  # fmt: skip
    """Fill a bucket's staging fields as ``Bucket.pack`` does."""
    start[:] = 0
    size[:] = 0
    at = 0
    tile = 0
    for i in range(len(slots)):
        b = slots[i]
        m = nodes[b] + 1
        words = (m + 31) // 32
        start[b] = at
        size[b] = m
        for j in range(m):
            t = at + j
            above = parents[b, j]
            level = depths[b, j]
            if j == 0:
                token[t] = roots[b]
                for w in range(words):
                    mask[t, w] = 0
            else:
                token[t] = ids[offsets[b * horizon + level - 1] + ranks[b, j]]
                for w in range(words):
                    mask[t, w] = mask[at + above, w]
            mask[t, j >> 5] |= np.uint32(1) << np.uint32(j & 31)
            request[t] = b
            index[t] = j
            depth[t] = level
            parent[t] = above
        for first in range(0, m, per_tile):
            tiles[tile, 0] = b
            tiles[tile, 1] = at + first
            tiles[tile, 2] = min(per_tile, m - first)
            tiles[tile, 3] = first
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
        tiles[t, 3] = 0
