"""What a planner without foresight could reach: the truth drawn from the drafter's own marginals."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ddsim.cost.model import CostModel
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.policy.rules import Hindsight, RoundRatio
from ddsim.policy.walk import fixed_seconds
from ddsim.replay.arguments import check_given
from ddsim.replay.replay import priced
from ddsim.trace.rounds import Positions, node_counts
from ddsim.trace.schema import TraceBlock
from ddsim.trace.trace import Trace

POSITIONS = 4096
"""Positions that are drawn for, by default: enough for a share to within a per cent."""


@dataclass(frozen=True)
class Foresight:
    """Shares of hindsight's throughput on drawn texts, where the drafter is right about every probability.

    Attributes
    ----------
    best_fixed : float
        What the best fixed budget reaches.
    round_ratio : float
        What `RoundRatio` reaches, which knows the probabilities of each round and no more.
    budget : int
        That best fixed budget.
    positions, replicates, seed : int
        How much was drawn.
    """

    best_fixed: float
    round_ratio: float
    budget: int
    positions: int
    replicates: int
    seed: int

    @property
    def without(self) -> float:
        """What a planner without foresight reaches: the better of the two."""
        return max(self.best_fixed, self.round_ratio)

    def chance(self, share: float) -> float:
        """How much of the distance to hindsight of a policy that reaches ``share`` of it on the recorded text is chance, at most 1.

        Chance is what a planner stays behind by on drawn texts.

        Examples
        --------
        >>> Foresight(0.78, 0.8, 63, 4096, 2, 0).chance(0.6)
        0.5
        """
        return round(min(1.0, (1.0 - self.without) / (1.0 - share)), 12) if share < 1 else 1.0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-able object."""
        return asdict(self) | {"texts": "drawn from the drafter's own marginals"}


def without_foresight(
    trace: Trace, cost: CostModel, *, replicates: int = 2, positions: int = POSITIONS, seed: int = 0
) -> Foresight:
    """Replay with truths drawn from the drafter's marginals: there hindsight's lead is chance, which no planner sees coming.

    At every position the true token of each depth is drawn anew, from that depth's marginal (what the recorded candidates leave is
    a token that no tree has). Texts keep their lengths. With these truths trees are as good as their probabilities say, so no
    planner can know more than `RoundRatio` does; what it stays behind hindsight is luck. (Every position is drawn for itself, while
    in a real text a token that surprises one round would have surprised the rounds before it as well: real luck is less varied,
    and policies come a little closer to hindsight.)

    Parameters
    ----------
    trace, cost
    replicates : int
        Draws of every position.
    positions : int
        Draw for about so many positions at most: every k-th text.
    seed : int

    Raises
    ------
    DdsimError
        As `ddsim.replay.replay`.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.arange(40) % 2 + 6, np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> found = without_foresight(trace, CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001))
    >>> 0.8 < found.best_fixed < 1
    True
    """
    check_given("without_foresight", trace, cost)
    texts_with_rounds = np.flatnonzero([info.length > 1 for info in trace.sequences])
    if not len(texts_with_rounds):
        raise DdsimError("trace: no sequence has two tokens, so there is no round to replay")
    part = trace.subset(texts_with_rounds[:: max(1, -(-len(trace) // positions))])
    rng = np.random.default_rng(seed)
    fixed: Any = 0.0
    ratio = hindsight = 0.0
    for block in part.blocks():
        costs: CostTable | None = None  # contexts, and so costs, are the same in all draws
        for _ in range(replicates):
            texts = _drawn(block, part.max_budget, rng)
            if costs is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the replay has said it
                    costs = priced(texts, cost)
            fixed = fixed + fixed_seconds(texts, costs)
            ratio += _spent(texts, costs, RoundRatio())
            hindsight += _spent(texts, costs, Hindsight())
    best = int(np.argmin(fixed))
    return Foresight(float(hindsight / fixed[best]), hindsight / ratio, best, len(part), replicates, seed)


def _spent(texts: Positions, costs: CostTable, policy: Any) -> float:
    return float(policy.walk(texts, costs).seconds.sum())


def _drawn(block: TraceBlock, max_budget: int, rng: np.random.Generator) -> Positions:
    """A block whose true tokens are drawn anew at every position and depth."""
    paths = block.proposal.drawn_paths(block.starts, rng)
    gains, ranks, chain, chain_expected = block.proposal.drafts(paths, max_budget)
    return Positions(
        gains,
        ranks,
        node_counts(gains),
        chain,
        chain_expected,
        np.asarray(block.context, np.int32),
        np.asarray(block.starts, np.int64),
    )
