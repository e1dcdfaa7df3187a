"""Why a plan says what it says: what the next setting would cost, and what it would bring."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ddsim.arrays import Floats
from ddsim.cost.table import CostTable

SAME = 1e-4
"""Relative difference of seconds up to which two budgets cost the same."""

STEP = 0.005
"""Relative rise of a round's seconds at one node from which on the cost curve has a step there,"""
STEEPER = 4.0
"""if it is so many times the mean rise of the nodes before."""


@dataclass(frozen=True)
class Change:
    """Another setting beside the one that was chosen: relative changes of a round's seconds and of its tokens."""

    nodes: int
    seconds: float
    tokens: float

    def __str__(self) -> str:
        tokens = f"{_share(self.tokens)} {'more' if self.tokens > 0 else 'fewer'} tokens"
        return f"takes {_share(self.seconds)} {'more' if self.seconds > 0 else 'less'} time and commits {tokens}"


@dataclass(frozen=True)
class Why:
    """Where a budget stands on the cost curve of the recording's contexts, and what others would cost and bring.

    Attributes
    ----------
    nodes : int
    seconds : float
        Mean seconds of a round over the contexts of the recording: drafting, host work and verification.
    bucket : int or None
        Tokens that its passes are padded to, or that end its step; None where the curve has no step near.
    padded : bool
        Whether that is a size that passes are padded to.
    fills : Change or None
        The largest budget of the same seconds, where it isn't the chosen one.
    beyond : Change or None
        One node past the bucket or step; None where costs or recording end there.
    more, less : Change or None
        Twice and half as many nodes, as far as can be judged.
    """

    nodes: int
    seconds: float
    bucket: int | None
    padded: bool
    fills: Change | None
    beyond: Change | None
    more: Change | None
    less: Change | None

    def __str__(self) -> str:
        if self.bucket is None:
            return self._no_step()
        size = f"the {self.bucket:,}-token bucket" if self.padded else f"the step up to {self.bucket:,} tokens"
        if self.fills is None:
            text = f"{_count(self.nodes)} and the root fill {size}"
            return (
                f"{text}; one more node costs {_costs(self.beyond)}."
                if self.beyond
                else f"{text}, the last that was measured."
            )
        text = f"{_count(self.nodes)} and the root are in {size}: up to {self.fills.nodes} nodes cost the same and bring {_brings(self.fills)}"
        return f"{text}; one more costs {_costs(self.beyond)}." if self.beyond else f"{text}."

    def _no_step(self) -> str:
        parts = [
            f"{_count(change.nodes)} would {'take' if change.seconds >= 0 else 'save'} {_share(change.seconds)}"
            f"{' more time' if change.seconds >= 0 else ' of the time'} a round for {_share(change.tokens)} "
            f"{'more' if change.tokens > 0 else 'fewer'} tokens"
            for change in (self.more, self.less)
            if change is not None
        ]
        last = ", and larger trees can't be judged" if self.more is None else ""
        return f"No step of the cost curve ends at {_count(self.nodes)}{last}{': ' * bool(parts)}{'; '.join(parts)}."

    def to_json(self) -> dict[str, Any]:
        """As one JSON-able object."""
        return asdict(self) | {"text": str(self)}


def _share(change: float) -> str:
    value = 100 * abs(change)
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"


def _brings(change: Change) -> str:
    if round(1000 * change.tokens) <= 0:
        return "no more tokens"
    return f"{_share(change.tokens)} more tokens"


def _costs(change: Change) -> str:
    return f"{_share(change.seconds)} more time a round and brings {_brings(change)}"


def _count(nodes: int) -> str:
    return f"{nodes} node{'s' * (nodes != 1)}"


def mean_seconds(costs: CostTable) -> Floats:
    """Mean seconds of a round by nodes, [N + 1], over the contexts of the positions; infinite where costs weren't measured."""
    weight = np.bincount(costs.row, minlength=len(costs.seconds)) / len(costs.row)
    covered = np.isfinite(costs.seconds).all(axis=0)
    out = np.full(costs.seconds.shape[1], np.inf)
    out[covered] = weight @ costs.seconds[:, covered]
    return out


def why(nodes: int, seconds: Floats, lengths: Floats, buckets: tuple[int, ...] | None) -> Why:
    """Why a budget of ``nodes`` and not the next.

    Parameters
    ----------
    nodes : int
    seconds : float64 [N + 1]
        Of a round by nodes; infinite where they weren't measured.
    lengths : float64 [N + 1]
        Tokens that a round commits.
    buckets : tuple of int, or None
        Sizes that passes are padded to.

    Examples
    --------
    >>> print(why(3, np.array([1.0, 1.0, 1.0, 1.0, 1.2, 1.2]), np.array([1.0, 1.5, 1.8, 2.0, 2.02, 2.03]), (4, 6)))
    3 nodes and the root fill the 4-token bucket; one more node costs 20 % more time a round and brings 1.0 % more tokens.
    """
    most = int(np.flatnonzero(np.isfinite(seconds[: len(lengths)]))[-1])

    def change(to: int) -> Change | None:
        if not 0 <= to <= most or to == nodes:
            return None
        return Change(to, float(seconds[to] / seconds[nodes] - 1), float(lengths[to] / lengths[nodes] - 1))

    above = [size for size in buckets or () if size > nodes]
    bucket, last = (above[0], min(above[0] - 1, most)) if above else (None, nodes)
    if seconds[last] > (1 + SAME) * seconds[nodes]:  # a fit that doesn't keep to the sizes that passes are padded to
        above, bucket, last = [], None, nodes
    if bucket is None:
        rises = np.diff(seconds[nodes // 2 : nodes + 1]) / seconds[nodes]
        rise = float(seconds[nodes + 1] / seconds[nodes] - 1) if nodes < most else 0.0
        if rise >= STEP and rise >= STEEPER * max(float(rises.mean()) if len(rises) else 0.0, 0.0):
            bucket = nodes + 1
    return Why(
        nodes=nodes,
        seconds=float(seconds[nodes]),
        bucket=bucket,
        padded=bool(above),
        fills=change(last),
        beyond=change(last + 1) if bucket is not None else None,
        more=change(min(2 * nodes, most)),
        less=change(nodes // 2),
    )
