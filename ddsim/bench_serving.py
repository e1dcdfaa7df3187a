"""``ddsim bench --scale``: how long serving a made-up trace of a million positions takes, and in how much memory."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddsim import bench, limits

if TYPE_CHECKING:
    from ddsim.arrays import Ints
    from ddsim.trace.rounds import Positions

POSITIONS = 1_000_000
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NODES = 256  # as the recordings that ship
POLICIES = (
    "AR", "DFlash", "BestFixed", "RoundRatio", "LongRun", "FairRatio", "Share:RoundRatio", "Uniform:RoundRatio",
)  # fmt: skip
_PART = 20_000  # positions made at once


def run_scale(
    *, positions: int = POSITIONS, seed: int = 0, progress: bench.Progress | None = None
) -> bench.BenchReport:
    """Measure what `ddsim.simulate` takes for a long trace, 8 policies and 9 batch sizes, in a process of its own.

    Parameters
    ----------
    positions : int
        Of the made-up trace; targets are scaled with it.
    seed : int
        Of the marginals.
    progress : callable, optional
        Told in a few words what comes next.

    Returns
    -------
    BenchReport

    Examples
    --------
    >>> run_scale(positions=20_000).table()  # doctest: +SKIP
    """
    from ddsim.trace.cache import _fill, _shapes

    limits.check("seed", seed)
    say = progress or (lambda _: None)
    rng = np.random.default_rng(seed)
    positions -= positions % _PART
    with tempfile.TemporaryDirectory(prefix="ddsim-bench-") as folder:
        say("making a trace")
        _fill(Path(folder), _shapes(positions, NODES, bench.HORIZON), _made(rng, positions))
        say(f"serving {positions:,} positions")
        found = bench._child(f"from ddsim.bench_serving import served; served({folder!r}, {positions})")
    part = positions / POSITIONS
    what = f"serving {positions:,} positions, {len(POLICIES)} policies, batches {BATCHES[0]} to {BATCHES[-1]}"
    note = f"N = {NODES}; 8 orders of all requests for each of {len(POLICIES) * len(BATCHES)} runs, prices and widths solved in them; no intervals"
    value = {key: None if found is None else float(found[key]) for key in ("seconds", "processor", "bytes")}
    peak = None if value["bytes"] is None else value["bytes"] / 2**20
    figures = (
        bench.Figure(what, value["seconds"], "s", 60.0 * part if part >= 0.1 else None, note=note),
        bench.Figure(f"{what}: processor time", value["processor"], "s", None),
        bench.Figure(f"{what}: peak memory", peak, "MiB", 2048.0, note="resident, the mapped table included"),
    )
    return bench.BenchReport(figures, bench._machine(seed, positions < POSITIONS))


def _made(rng: np.random.Generator, positions: int) -> Iterator[Positions]:
    """The table of rounds of a made-up trace, part by part."""
    from ddsim.trace.rounds import Positions, node_counts
    from ddsim.tree.proposal import Rows

    pool = bench._Pool(rng, 1500)
    for _ in range(positions // _PART):
        drawn = pool.draw(rng, _PART)
        rows = Rows(bench.HORIZON, drawn.offsets, drawn.token_ids, drawn.logprobs)
        gains, ranks, chain, expected = rows.drafts(rows.true_paths(drawn.tokens, drawn.starts), NODES)
        yield Positions(gains, ranks, node_counts(gains), chain, expected, _contexts(_PART), drawn.starts)


def _contexts(positions: int) -> Ints:
    return (100 + np.arange(positions) % bench.LENGTH).astype(np.int32)


def served(folder: str, positions: int) -> None:
    """Serve the table in ``folder``, and print what it took as JSON."""
    import resource

    from ddsim.cost.model import CostModel
    from ddsim.replay.serving import simulate
    from ddsim.trace.cache import _opened, _shapes
    from ddsim.trace.rounds import Positions

    tokens = np.arange(1, 8193)
    padded = -(-tokens // 64) * 64
    cost = CostModel.from_table(tokens, 0.005 + 2e-5 * np.maximum(padded - 128, 0), draft_seconds=0.001)
    starts = np.arange(0, positions + 1, bench.LENGTH)
    names = tuple(map(str, range(len(starts) - 1)))
    arrays = _opened(Path(folder), _shapes(positions, NODES, bench.HORIZON))
    table = Positions(
        **arrays, context=_contexts(positions), starts=starts, prompt_id=names, workload=("bench",) * len(names),
        temperature=np.zeros(len(names), np.float32),
    )  # fmt: skip
    simulate(
        table.subset(np.arange(len(names)) < 4), cost, POLICIES, batch=2, bootstrap=0
    )  # kernels are compiled or read
    began, used = time.perf_counter(), time.process_time()
    simulate(table, cost, POLICIES, batch=BATCHES, bootstrap=0).table()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "processor": processor, "bytes": peak}))
