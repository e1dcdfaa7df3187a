"""``ddsim bench``: how fast this ddsim is on this machine, each figure beside its target.

Marginals are made up, like a drafter's: peaked rows that flatten with depth, and easy and hard positions. Everything is seeded.
Times are medians of repeats. Where two times are compared, their repeats take turns, so that both meet the same machine. What runs
on one core is timed by the processor time of its thread, so that other programs on the machine disturb it less.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import __version__, limits

if TYPE_CHECKING:
    import pandas as pd

HORIZON = 15
BUDGET = 512  # of the trace
TREE = 1024  # nodes of the single tree
LENGTH = 250  # positions of a sequence
VOCABULARY = 50_000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    name: str
    measured: float | None
    """None: not available here."""
    unit: str
    target: float | None
    """None: for information."""
    at_least: bool = False
    """Whether the target is a lower bound; an upper one otherwise."""
    note: str = ""

    @property
    def meets(self) -> bool | None:
        """Whether the target is met; None where there is no target or no measurement."""
        if self.target is None or self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


@dataclass(frozen=True)
class BenchReport:
    """What ``run_bench`` measured, and where."""

    figures: tuple[Figure, ...]
    machine: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """Columns figure, target, measured (text with units) and meets (True, False or None)."""
        import pandas as pd

        rows = [
            {
                "figure": f.name,
                "target": "" if f.target is None else f"{'≥' if f.at_least else '≤'} {_text(f.target, f.unit)}",
                "measured": "not available" if f.measured is None else _text(f.measured, f.unit),
                "meets": f.meets,
            }
            for f in self.figures
        ]
        return pd.DataFrame(rows, columns=["figure", "target", "measured", "meets"], dtype=object)

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {"machine": self.machine, "figures": [asdict(f) | {"meets": f.meets} for f in self.figures]}


def run_bench(*, quick: bool = False, seed: int = 0, progress: Progress | None = None) -> BenchReport:
    """Measure ddsim on this machine.

    Parameters
    ----------
    quick : bool
        A trace of 10,000 positions instead of 100,000, and fewer repeats. The target for its gains is scaled with it; that for
        its replay, much of which is the bootstrap, is left out.
    seed : int
        Of the marginals.
    progress : callable, optional
        Told in a few words what comes next.

    Returns
    -------
    BenchReport

    Examples
    --------
    >>> run_bench(quick=True).table()  # doctest: +SKIP
    """
    limits.check("seed", seed)
    say = progress or (lambda _: None)
    positions = 10_000 if quick else 100_000
    rng = np.random.default_rng(seed)
    say("trees")
    figures = [*_tree_figures(rng, 9 if quick else 25)]
    say("gains")
    pool = _Pool(rng, 300 if quick else 1500)
    figures += _gain_figures(rng, pool, positions, 3 if quick else 5)
    figures += _lattice_figures(rng, positions, 3 if quick else 5)
    with tempfile.TemporaryDirectory(prefix="ddsim-bench-") as folder:
        say("writing a trace")
        path = Path(folder) / "trace"
        _write_trace(rng, pool, positions, path)
        say("replay")
        with _cache_in(Path(folder) / "cache"):
            figures += _replay_figures(path, positions, 3 if quick else 5)
            say("fresh processes")
            figures += _process_figures(Path(folder), quick)
    return BenchReport(tuple(figures), _machine(seed, quick))


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Meanwhile ddsim caches there: gigabytes of made-up gains stay out of the user's own cache."""
    before = os.environ.get("DDSIM_CACHE")
    os.environ["DDSIM_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["DDSIM_CACHE"]
        if before is not None:
            os.environ["DDSIM_CACHE"] = before


# --- made-up marginals --------------------------------------------------------


def made_up_marginals(rng: np.random.Generator, positions: int, candidates: int) -> NDArray[np.float32]:
    """Log-probabilities like a drafter's, float32 [positions, HORIZON, candidates], descending, rounded as traces round them.

    Row (p, d) falls about as a power of the rank; the power is larger at easy positions and shrinks with depth. The best
    candidate has probability 0.84 at depth 1 and 0.4 at depth 15 on average.

    Examples
    --------
    >>> made_up_marginals(np.random.default_rng(0), 2, 8).shape
    (2, 15, 8)
    """
    from ddsim.trace.checks import round_logprobs

    depth = np.arange(HORIZON)
    ease = rng.lognormal(0, 0.35, (positions, 1)) * rng.lognormal(0, 0.3, (positions, HORIZON))
    power = (3.2 * np.exp(-0.09 * depth) + 0.6) * ease
    heights = power[..., None] * np.log(np.arange(1, candidates + 1)) + 0.5 * rng.standard_normal(
        (positions, HORIZON, candidates), np.float32
    )
    logits = -np.sort(heights, axis=-1)
    # One per cent of the mass lies on tokens that aren't candidates.
    return round_logprobs(logits - np.log(1.01 * np.exp(logits).sum(-1, keepdims=True)))


class _Pool:
    """Positions to make a long trace of: pruned rows, one after another."""

    def __init__(self, rng: np.random.Generator, positions: int) -> None:
        from ddsim.tree.rows import kept_pairs

        dense = np.concatenate([made_up_marginals(rng, 50, BUDGET) for _ in range(-(-positions // 50))])
        self.counts = kept_pairs(dense, BUDGET)  # [P, L]
        self.logprobs = dense[np.arange(BUDGET) < self.counts[..., None]]
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])

    def draw(self, rng: np.random.Generator, positions: int) -> _Drawn:
        """Positions in random order, as sequences of LENGTH. The true tokens are drawn from the marginals."""
        chosen = rng.integers(len(self.counts), size=positions)
        counts = self.counts[chosen]
        counts[LENGTH - 1 :: LENGTH] = 0  # the last position of a sequence starts no round
        offsets = np.concatenate([[0], np.cumsum(counts)])
        size = counts.ravel()
        rank = np.arange(offsets[-1]) - np.repeat(offsets[:-1], size)
        begin = (chosen[:, None] * HORIZON + np.arange(HORIZON)).ravel()
        logprobs = self.logprobs[np.repeat(self.starts[begin], size) + rank]
        # The true candidate is where the running sum of probabilities passes a uniform number; none if it never does.
        total = np.concatenate([[0.0], np.cumsum(np.exp(logprobs, dtype=np.float64))])
        point = total[offsets[:-1]] + rng.random(len(size))
        truth = np.searchsorted(total, point, side="right") - 1 - offsets[:-1]
        truth = np.where(truth < size, truth, -1)
        tokens = rng.integers(VOCABULARY, size=positions).astype(np.int32)
        ahead = np.arange(positions)[:, None] + np.arange(1, HORIZON + 1)
        target = tokens[np.minimum(ahead, positions - 1)].ravel()
        # Different ids within a row, the true token's at its rank.
        token_ids = (np.repeat(target - truth, size) + rank) % VOCABULARY
        return _Drawn(tokens, counts, offsets, token_ids.astype(np.int32), logprobs)


@dataclass(frozen=True)
class _Drawn:
    """A trace in arrays: P positions, M candidates."""

    tokens: NDArray[np.int32]  # [P]
    counts: NDArray[np.int32]  # [P, L]
    offsets: NDArray[np.int64]  # [P * L + 1]
    token_ids: NDArray[np.int32]  # [M]
    logprobs: NDArray[np.float32]  # [M]

    @property
    def starts(self) -> NDArray[np.int64]:
        return np.arange(0, len(self.tokens) + 1, LENGTH)


def _write_trace(rng: np.random.Generator, pool: _Pool, positions: int, path: Path) -> None:
    """Save a trace shard by shard."""
    from ddsim.trace.checks import _order_ties
    from ddsim.trace.schema import _Rows
    from ddsim.trace.writer import TraceWriter

    with TraceWriter(path, horizon=HORIZON, max_budget=BUDGET, vocab_size=VOCABULARY, provenance={}) as writer:
        for q in range(positions // LENGTH):
            drawn = pool.draw(rng, LENGTH)
            kept = np.arange(drawn.counts.max()) < drawn.counts[..., None]
            ids, values = np.zeros(kept.shape, np.int32), np.full(kept.shape, -np.inf, np.float32)
            ids[kept], values[kept] = drawn.token_ids, drawn.logprobs
            values, ids = _order_ties(values, ids)
            rows = _Rows(drawn.tokens, drawn.counts, ids[kept], values[kept])
            writer._append("bench", str(q), 0.0, 100, rows, prompt_digest="")


# --- the published method -----------------------------------------------------


def published_tree(logprobs: NDArray[np.float32], budget: int) -> tuple[NDArray[Any], ...]:
    """Draft tree as DDTree's published code builds it: Python's heap on negative path log-probabilities.

    The best node is popped and its first child and next sibling are pushed; entries carry the tuple of ranks, which orders equal
    ones. Then each node's mask is its parent's and itself.

    Returns
    -------
    parents, depths, ranks [n + 1], mask bool [n + 1, n + 1]

    Examples
    --------
    >>> published_tree(np.array([[-0.5, -1.5], [-0.25, -2.0]], np.float32), 3)[0].tolist()
    [-1, 0, 1, 0]
    """
    horizon, width = logprobs.shape
    parents = np.empty(budget + 1, np.int32)
    depths = np.empty(budget + 1, np.int64)
    ranks = np.empty(budget + 1, np.int64)
    parents[0], depths[0], ranks[0] = -1, 0, -1
    best = float(logprobs[0, 0])
    heap: list[tuple[float, tuple[int, ...], int, float]] = [(-best, (0,), 0, best)]
    nodes = 0
    while heap and nodes < budget:
        _, path, parent, value = heapq.heappop(heap)
        nodes += 1
        depth = len(path)
        rank = path[-1]
        parents[nodes], depths[nodes], ranks[nodes] = parent, depth, rank
        if rank + 1 < width:
            sibling = value - float(logprobs[depth - 1, rank]) + float(logprobs[depth - 1, rank + 1])
            heapq.heappush(heap, (-sibling, (*path[:-1], rank + 1), parent, sibling))
        if depth < horizon:
            child = value + float(logprobs[depth, 0])
            heapq.heappush(heap, (-child, (*path, 0), nodes, child))
    mask = np.zeros((nodes + 1, nodes + 1), np.bool_)
    mask[0, 0] = True
    for node in range(1, nodes + 1):
        mask[node, :node] = mask[parents[node], :node]
        mask[node, node] = True
    return parents[: nodes + 1], depths[: nodes + 1], ranks[: nodes + 1], mask


# --- figures ------------------------------------------------------------------


def _tree_figures(rng: np.random.Generator, repeats: int) -> list[Figure]:
    from ddsim.tree.trees import draft_tree

    marginals = made_up_marginals(rng, 16, TREE)

    def published() -> None:
        for rows in marginals:
            published_tree(rows, TREE)

    def ours(times: int, check: bool) -> Callable[[], None]:
        def work() -> None:
            for _ in range(times):
                for rows in marginals:
                    draft_tree(rows, TREE, check=check).packed_mask()

        return work

    # Repeats of about the same length: where they are short, caches and branch predictors that other work has filled count most.
    # How much that is, one pass right after the published method shows.
    passes = 64
    works = published, ours(1, False), ours(passes, False), ours(passes, True)
    seconds = _in_turns(repeats, *works, clock=time.thread_time)
    slow, cold, fast, safe = (
        1e6 * value / len(marginals) / times for value, times in zip(seconds, (1, 1, passes, passes), strict=True)
    )
    what = f"tree of {TREE:,} nodes with packed masks"
    return [
        Figure(
            f"{what}: speed over the published heap",
            slow / fast,
            "x",
            100.0,
            at_least=True,
            note=f"L = {HORIZON}, K = {TREE:,}, one core; without the check of the marginals, which the published method lacks",
        ),
        Figure(f"{what}: published heap", slow, "µs", None),
        Figure(f"{what}: ddsim", fast, "µs", None),
        Figure(f"{what}: ddsim, first {len(marginals)} after other work", cold, "µs", None),
        Figure(f"{what}: ddsim, marginals checked", safe, "µs", None),
    ]


def _gain_figures(rng: np.random.Generator, pool: _Pool, positions: int, repeats: int) -> list[Figure]:
    import numba

    from ddsim.tree.rows import gains_and_ranks, true_ranks

    drawn = pool.draw(rng, positions)

    def work(few: int) -> Callable[[], None]:
        offsets = drawn.offsets[: few * HORIZON + 1]
        truth = np.zeros((few, HORIZON), np.int32)
        return lambda: _ignore(gains_and_ranks(drawn.logprobs, offsets, truth, HORIZON, BUDGET, check=False))

    def whole() -> None:
        truth = true_ranks(drawn.token_ids, drawn.offsets, drawn.tokens, drawn.starts, HORIZON)
        gains_and_ranks(drawn.logprobs, drawn.offsets, truth, HORIZON, BUDGET)

    threads, few = numba.get_num_threads(), 2000
    try:
        numba.set_num_threads(1)
        (one,) = _in_turns(3 * repeats, work(few), clock=time.thread_time)
        numba.set_num_threads(min(2, threads))
        (two,) = _in_turns(repeats, whole)
    finally:
        numba.set_num_threads(threads)
    return [
        Figure(f"gains to N = {BUDGET}, one core, a position", 1e6 * one / few, "µs", 12.0, note="ranks included"),
        Figure(
            f"ranks and gains of {positions:,} positions at N = {BUDGET}, two cores",
            two,
            "s",
            4.0 * positions / 100_000,
            note="marginals checked, true tokens looked up; from arrays in memory"
            + ("" if threads >= 2 else "; this machine has one core"),
        ),
    ]


def _lattice_figures(rng: np.random.Generator, positions: int, repeats: int) -> list[Figure]:
    from ddsim.tree.lattice import Lattice
    from ddsim.tree.lattices import Lattices
    from ddsim.tree.trees import draft_tree, tree_gains

    few, width = 250, 16  # fewer positions than are split over threads
    steps = made_up_marginals(rng, few * width, width).reshape(few, width, HORIZON, width).swapaxes(1, 2)
    steps = rng.permuted(steps, axis=-1)
    dense = rng.integers(VOCABULARY, size=(few, HORIZON, width)).astype(np.int32), steps[:, 0, 0], steps[:, 1:]
    given = [Lattice(*one) for one in zip(*dense, strict=True)]
    some = Lattices.from_dense(*dense, max_budget=BUDGET)
    whole = Lattices.joined(HORIZON, [some] * (positions // few))
    truth = np.zeros((positions, HORIZON), np.int32)
    tree, one, whole_one, pruned = _in_turns(
        5 * repeats,
        lambda: _ignore([draft_tree(lattice, 64).packed_mask() for lattice in given]),
        lambda: _ignore(some.drafts(truth[:few], BUDGET)),
        lambda: _ignore([tree_gains(lattice, BUDGET) for lattice in given]),
        lambda: _ignore(Lattices.from_dense(*dense, BUDGET)),
        clock=time.thread_time,
    )
    (all_,) = _in_turns(repeats, lambda: _ignore(whole.drafts(truth, BUDGET)))
    return [
        Figure("lattice: tree of 64 nodes with packed masks", 1e6 * tree / few, "µs", 15.0, note="L = 15, K = 16"),
        Figure(f"lattice: gains and ranks to N = {BUDGET}, a position", 1e6 * one / few, "µs", 30.0),
        Figure(f"lattice: the same of {positions:,} positions", all_, "s", 3.0 * positions / 100_000),
        Figure(f"lattice: gains to N = {BUDGET} of one that is not pruned", 1e6 * whole_one / few, "µs", None),
        Figure(f"lattice: pruned to N = {BUDGET}, a position", 1e6 * pruned / few, "µs", None, note="as recorders do"),
    ]


def _replay_figures(path: Path, positions: int, repeats: int) -> list[Figure]:
    from ddsim.replay.replay import replay
    from ddsim.trace.cache import positions_of
    from ddsim.trace.trace import open_trace

    trace = open_trace(path)
    start = time.perf_counter()
    positions_of(trace)
    first = time.perf_counter() - start
    policies = _policies(20)
    cost = _cost()
    (seconds,) = _in_turns(repeats, lambda: _ignore(replay(trace, cost, policies).table()))
    peak = _child(_PEAK, str(path), env={"DDSIM_CACHE": str(path.parent / "cache")})  # an empty one
    return [
        Figure(
            f"replay of {len(policies)} policies over them, gains and ranks there",
            seconds,
            "s",
            1.0 if positions >= 100_000 else None,
        ),
        Figure("reading their trace and caching gains and ranks", first, "s", None),
        Figure(
            "peak memory of a process that does both",
            None if peak is None else peak["bytes"] / 2**20,
            "MiB",
            1024.0,
            note="resident, pages of the mapped cache included",
        ),
    ]


def _policies(count: int) -> list[Any]:
    """So many different policies."""
    from ddsim.policy.rules import DDTree
    from ddsim.replay.replay import default_policies

    policies = default_policies(BUDGET)[:count]
    names = {policy.name for policy in policies}
    more = (DDTree(n) for n in range(20, BUDGET, 20))
    return policies + [policy for policy in more if policy.name not in names][: count - len(policies)]


def _cost() -> Any:
    """A curve with a shape: flat, then a slope, padded to buckets of 64 tokens."""
    from ddsim.cost.model import CostModel

    tokens = np.arange(1, BUDGET + 2)
    padded = -(-tokens // 64) * 64
    return CostModel.from_table(tokens, 0.005 + 2e-5 * np.maximum(padded - 128, 0), draft_seconds=0.001)


_PEAK = """
import json, resource, sys
import ddsim
from ddsim.bench import _cost, _policies
ddsim.replay(ddsim.open_trace(sys.argv[1]), _cost(), _policies(20)).table()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"bytes": peak * (1 if sys.platform == "darwin" else 1024)}))
"""

_IMPORT = """
import json, time
start = time.perf_counter()
import ddsim
bare = time.perf_counter() - start
for name in ddsim.__all__:
    getattr(ddsim, name)
print(json.dumps({"bare": bare, "names": time.perf_counter() - start, "processor": time.process_time()}))
"""

_KERNELS = """
import json, sys, time
start = time.perf_counter()
import numpy as np
import ddsim
from ddsim.bench import _policies, _cost, BUDGET
from ddsim.tree.rows import kept_pairs
for kind in (np.float32, np.float64):
    rows = np.log(np.full((2, 3, 4), 0.2, kind))
    ddsim.draft_tree(rows[0], 9).packed_mask()
    ddsim.draft_tree(rows[0], 9).mask()
    ddsim.tree_gains(rows[0], 9)
    kept_pairs(rows, 9)
trace = ddsim.Trace.from_arrays(
    [1, 2, 3, 1, 2], np.full((5, 3, 4), [1, 2, 3, 4]), np.log(np.full((5, 3, 4), 0.2)), max_budget=BUDGET
)
ddsim.replay(trace, _cost(), _policies(20)).table()
compiled, loaded, names = 0, 0, []
for module in [m for n, m in list(sys.modules.items()) if n.startswith("ddsim")]:
    for name, value in vars(module).items():
        stats = getattr(value, "stats", None)
        if hasattr(stats, "cache_misses") and value.py_func.__module__ == module.__name__:
            compiled += sum(stats.cache_misses.values())
            loaded += sum(stats.cache_hits.values())
            names += [name] * bool(stats.cache_misses)
print(json.dumps({"compiled": compiled, "loaded": loaded, "names": names, "seconds": time.perf_counter() - start}))
"""


def _process_figures(folder: Path, quick: bool) -> list[Figure]:
    imports = [_child(_IMPORT) for _ in range(3)]
    first = [found["names"] for found in imports if found is not None]
    bare = [found["bare"] for found in imports if found is not None]
    used = [found["processor"] for found in imports if found is not None]
    cache = {"NUMBA_CACHE_DIR": str(folder / "kernels")}
    cold, warm = _child(_KERNELS, env=cache), _child(_KERNELS, env=cache)
    demo = [
        _timed([sys.executable, "-m", "ddsim", "demo", "--plot", str(folder / "demo.png")], folder)
        for _ in range(2 if quick else 4)
    ]
    runs = [seconds for seconds in demo[1:] if seconds is not None]
    return [
        Figure(
            "first import of ddsim, all public names",
            statistics.median(first) if first else None,
            "s",
            1.5,
            note=f"processor time, interpreter included: {statistics.median(used):.2f} s; import ddsim alone: "
            f"{1e3 * statistics.median(bare):.0f} ms"
            if bare
            else "",
        ),
        Figure(
            "kernels compiled by a second process",
            None if warm is None else float(warm["compiled"]),
            "kernels",
            0.0,
            note=""
            if not warm or not cold
            else f"{cold['compiled']} compiled by the first in {cold['seconds']:.1f} s"
            + (f"; again: {', '.join(warm['names'])}" if warm["names"] else ""),
        ),
        Figure("ddsim demo, warm", statistics.median(runs) if runs else None, "s", 6.0),
    ]


def _in_turns(repeats: int, *works: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each work, after one run that doesn't count."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, mine in zip(works, times, strict=True):
            start = clock()
            work()
            mine.append(clock() - start)
    return [statistics.median(mine) for mine in times]


def _ignore(_: object) -> None:
    """Drop a result."""


def _child(script: str, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any] | None:
    """What a fresh Python process printed as JSON; None if it failed."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)
    if done.returncode:
        return None
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _timed(command: list[str], folder: Path) -> float | None:
    """Seconds that a command takes; None if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, cwd=folder, check=False)
    return None if done.returncode else time.perf_counter() - start


def _machine(seed: int, quick: bool) -> dict[str, Any]:
    import numba

    return {
        "ddsim": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "seed": seed,
        "quick": quick,
    }


def _processor() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _text(value: float, unit: str) -> str:
    """A number with three digits that count."""
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"
