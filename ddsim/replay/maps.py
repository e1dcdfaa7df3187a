"""Maps: the best width by batch size and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ddsim import limits
from ddsim.arrays import Floats
from ddsim.cost.model import CostModel
from ddsim.cost.ranges import measured_grid
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.policy.batch import FOREST, SHARE, UNIFORM, WIDTH
from ddsim.policy.choose import PRICE
from ddsim.policy.contract import Decision
from ddsim.policy.joint import batches_of, groups_of, joint_table, joint_totals, solve_joint_price
from ddsim.policy.walk import fixed_walks
from ddsim.replay.arguments import check_given
from ddsim.replay.requests import _in_memory
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace

MAP_BATCHES, MAP_CONTEXTS = (1, 2, 4, 8, 16, 32, 64), (256, 512, 1024, 2048, 4096, 8192)


def batch_map(
    trace: Trace | Positions,
    cost: CostModel,
    *,
    batch: int | Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    max_tokens: int | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Expected throughput over batch size and context: best width for all, one width a round, shares, forest.

    All by the drafter's own probabilities, not by what was accepted: see `best_widths` for that. Positions of the trace (at most 8,192) are put into random joint rounds, as if all had the given context: expected tokens by
    the gains, nothing is walked. Every way has the price λ* that is best for it, so forest ≥ one width a round ≥ best width, and
    forest ≥ shares.

    Parameters
    ----------
    trace, cost, max_tokens, calibration, seed : as in `simulate`
    batch, contexts : sequences of int, optional
        The grid. Default: those of 1, 2, ... 64 requests and 256, 512, ... 8,192 tokens within what was measured.

    Returns
    -------
    DataFrame
        batch, context, width (the best one), nodes (mean of the forest, a request), ar, fixed, uniform, share, forest (expected
        tokens per second of all slots), gain_uniform, gain_share and gain_forest (relative, over fixed), extrapolated (whether
        the costs that were weighed lie outside what was measured; one warning names where).
        ``frame.pivot(index="batch", columns="context", values="gain_forest")`` is what `ddsim.plot` draws as a heat map.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(8), (40, 3)), axis=-1)[..., ::-1])
    >>> ids = np.tile(np.arange(8), (40, 3, 1))
    >>> trace = Trace.from_arrays(rng.integers(0, 8, 40), ids, rows, max_budget=16)
    >>> cost = CostModel.from_table([1, 100], [0.010, 0.030])
    >>> batch_map(trace, cost, batch=[1, 8], contexts=[512])["width"].tolist()
    [14, 2]
    """
    check_given("batch_map", trace, cost, Positions)
    positions = _in_memory(trace, calibration)
    sizes = batches_of(measured_grid(MAP_BATCHES, cost.range.batches) if batch is None else batch)
    if contexts is None:
        contexts = measured_grid(MAP_CONTEXTS, cost.range.contexts)
    if not contexts or min(contexts) < 0:
        raise DdsimError(f"contexts: must be whole numbers of tokens, at least 0, are {list(contexts)}")
    for context in contexts:
        limits.check("context", context)
    limits.check("seed", seed)
    spread = _spread(positions)
    rows = []
    with cost.one_warning():
        for size in sizes:
            groups = groups_of(positions, size, seed)
            price: dict[int, float] = {}
            for context in contexts:
                table = joint_table(
                    cost, (context, context), size, positions.max_budget, positions.horizon, max_tokens=max_tokens
                )
                fixed = spread[: table.share.shape[1]] / table.share[0]
                width = int(np.argmax(fixed))
                row: dict[str, Any] = {"batch": size, "context": int(context), "width": width, "nodes": 0.0}
                row["ar"] = size / float(table.ar_seconds[0])
                # groups leave out some positions, so the best width is judged on them too
                tokens, seconds, _ = joint_totals(
                    Decision(WIDTH, width=width), positions, groups, table, context=context
                )
                row["fixed"] = tokens / seconds
                for name, mode in (("uniform", UNIFORM), ("share", SHARE), ("forest", FOREST)):
                    solved = solve_joint_price(mode, positions, groups, table, context=context, start=price.get(mode))
                    price[mode] = solved.price
                    decision = Decision(mode, PRICE, solved.price)
                    tokens, seconds, nodes = joint_totals(decision, positions, groups, table, context=context)
                    row[name] = tokens / seconds
                row["nodes"] = nodes / groups.size
                for name in ("uniform", "share", "forest"):
                    row[f"gain_{name}"] = row[name] / row["fixed"] - 1.0
                row["extrapolated"] = bool(cost.extrapolated([size, size + table.limit], context, size).any())
                rows.append(row)
    return pd.DataFrame(rows)


def best_widths(
    trace: Trace | Positions,
    cost: CostModel,
    *,
    batch: int | Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    max_tokens: int | None = None,
    calibration: Calibration | None = None,
) -> pd.DataFrame:
    """The one width for all requests of highest throughput, over batch size and context, by what the recording accepted.

    With a fixed width n a request commits as many tokens a round, whoever it shares the pass with and at whatever context: those of
    the walk over the recording, tokens / rounds. So a batch of B yields B times that in the seconds of a pass of B·(n + 1) tokens; what the
    drafter believes doesn't enter (it does in `batch_map`). The width is chosen on the prompts that it is judged on.

    Parameters
    ----------
    trace, cost, batch, contexts, max_tokens, calibration : as in `batch_map`

    Returns
    -------
    DataFrame
        batch, context, width, acceptance_length (tokens a request and round), tokens_per_second (of all slots), extrapolated.

    Examples
    --------
    >>> logprobs = np.log(np.full((40, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays(np.full(40, 6), np.full((40, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> table = best_widths(trace, CostModel.from_table([1, 100], [0.010, 0.030]), batch=[1, 8], contexts=[512])
    >>> table[["batch", "width", "acceptance_length"]].values.tolist()
    [[1.0, 2.0, 3.0], [8.0, 2.0, 3.0]]
    """
    check_given("best_widths", trace, cost, Positions)
    positions = _in_memory(trace, calibration)
    sizes = batches_of(measured_grid(MAP_BATCHES, cost.range.batches) if batch is None else batch)
    if contexts is None:
        contexts = measured_grid(MAP_CONTEXTS, cost.range.contexts)
    if not contexts or min(contexts) < 0:
        raise DdsimError(f"contexts: must be whole numbers of tokens, at least 0, are {list(contexts)}")
    rounds = fixed_walks(positions, CostTable.of_curve(np.ones(positions.max_budget + 1), len(positions)))[1]
    accepted = positions.tokens.sum() / rounds.sum(axis=0)
    rows = []
    with cost.one_warning():
        for size in sizes:
            for context in contexts:
                table = joint_table(
                    cost, (context, context), size, positions.max_budget, positions.horizon, max_tokens=max_tokens
                )
                share = table.share[0]
                rates = accepted[: len(share)] / share
                width = int(np.argmax(rates))
                rows.append(
                    {
                        "batch": size,
                        "context": int(context),
                        "width": width,
                        "acceptance_length": float(accepted[width]),
                        "tokens_per_second": float(rates[width]),
                        "extrapolated": bool(cost.extrapolated([size, size + table.limit], context, size).any()),
                    }
                )
    return pd.DataFrame(rows)


def _spread(positions: Positions) -> Floats:
    """float64 [N + 1]: mean of 1 + Φ(n) over the positions that can start a round."""
    gains = np.asarray(positions.gains)[positions.roots()]
    return np.concatenate([[1.0], 1.0 + np.cumsum(gains.mean(axis=0, dtype=np.float64))])
