"""Solvers: how many tree nodes to verify, given the gains of the nodes and what verification costs.

A round at a position with sorted gains g and budget n commits 1 + Φ*(n) tokens in expectation, Φ*(n) = g[0] + ... + g[n - 1],
and takes C(n) seconds. Every rule below is a scan of n; ties go to the smallest n; a budget never exceeds the nodes that exist
(gains above 0). Seconds may be infinite: such budgets are never chosen.

Kernels take and return arrays; sequences, or chunks of positions, are split over threads, and results don't depend on their
number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim._jit import njit
from ddsim._threads import split
from ddsim.arrays import numbers
from ddsim.errors import DdsimError
from ddsim.jsonfile import brief

NO_DRAFT = -1  # an action: decode one token without drafting
CHAIN = -2  # an action: draft, and verify the chain of best candidates
NO_RANK = 2**31 - 1
GREEDY, EXHAUSTIVE, PRICE = 0, 1, 2
RULES = {"greedy": GREEDY, "exhaustive": EXHAUSTIVE, "price": PRICE}
BLOCK = 32768  # positions held in memory at once: 64 MiB of gains at 512 nodes
_CHUNK = 256  # positions per partial sum: fixed, so that sums don't depend on the thread count

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Rule = Literal["greedy", "exhaustive", "price"]


class Costs(Protocol):
    """What the solvers need of a cost table: seconds of a round by context and budget (see `ddsim.cost.cost_table`)."""

    @property
    def seconds(self) -> Floats:
        """float64 [U, M + 1], a drafted round with n nodes."""

    @property
    def ar_seconds(self) -> Floats:
        """float64 [U], a round without draft."""

    @property
    def row(self) -> Ints:
        """int32 [P], the row of each position."""


class Calibration(Protocol):
    """Maps path probabilities to better ones, monotone, so that the order of nodes stays."""

    def apply_gains(self, gains: NDArray[np.float32]) -> NDArray[np.float32]: ...


# --------------------------------------------------------------------------------------------------------------------
# positions
# --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """A two-dimensional array in a file, mapped a slice at a time so that memory stays bounded."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int

    def __getitem__(self, index: slice) -> NDArray[Any]:
        low, high, _ = index.indices(self.shape[0])
        width = self.shape[1]
        if high <= low or width == 0:
            return np.zeros((max(high - low, 0), width), self.dtype)
        start = self.offset + low * width * self.dtype.itemsize
        # mode "c": numba compiles a kernel anew for read-only arrays
        return np.asarray(np.memmap(self.path, self.dtype, "c", start, (high - low, width)))


@dataclasses.dataclass(frozen=True)
class Positions:
    """What a trace comes down to for the solvers: gains and true-path ranks at every position.

    Attributes
    ----------
    gains : float32 [P, N], path probabilities of the nodes, descending, 0 where the tree ran out
    ranks : int32 [P, L], best-first rank of the node of the first d true tokens, or NO_RANK
    nodes : int32 [P], nodes that exist
    chain : uint8 [P], leading depths whose true token is the best candidate
    chain_expected : float32 [P], expected number of accepted tokens of the chain
    context : int32 [P], committed tokens before the root
    starts : int64 [S + 1], first position of each sequence
    prompt_id, workload : tuples of S strings; temperature : float32 [S]
    """

    gains: NDArray[np.float32] | StoredRows
    ranks: Ints | StoredRows
    nodes: Ints
    chain: NDArray[np.uint8]
    chain_expected: NDArray[np.float32]
    context: Ints
    starts: NDArray[np.int64]
    prompt_id: tuple[str, ...] = ()
    workload: tuple[str, ...] = ()
    temperature: NDArray[np.float32] = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    fingerprint: str = ""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def max_budget(self) -> int:
        return self.gains.shape[1]

    @property
    def horizon(self) -> int:
        return self.ranks.shape[1]

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    @property
    def tokens(self) -> NDArray[np.int64]:
        """int64 [S]: tokens that the rounds of each sequence commit, whatever the policy."""
        return np.maximum(np.diff(self.starts) - 1, 0)

    def block(self, first: int, last: int) -> Positions:
        """Sequences ``first`` to ``last`` (exclusive), in memory."""
        low, high = int(self.starts[first]), int(self.starts[last])
        return Positions(
            np.ascontiguousarray(self.gains[low:high]),
            np.ascontiguousarray(self.ranks[low:high]),
            self.nodes[low:high],
            self.chain[low:high],
            self.chain_expected[low:high],
            self.context[low:high],
            self.starts[first : last + 1] - low,
            self.prompt_id[first:last],
            self.workload[first:last],
            self.temperature[first:last],
            self.fingerprint,
        )

    def blocks(self, max_positions: int = BLOCK) -> Iterator[tuple[int, int, Positions]]:
        """Yield (first position, first sequence, block) over runs of whole sequences."""
        first = 0
        while first < self.sequences:
            limit = self.starts[first] + max_positions
            last = max(int(np.searchsorted(self.starts, limit, side="right")) - 1, first + 1)
            last = min(last, self.sequences)
            yield int(self.starts[first]), first, self.block(first, last)
            first = last

    def roots(self, sequences: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Positions that can start a round (all but each sequence's last), of the chosen sequences."""
        keep = np.ones(len(self), np.bool_)
        ends = self.starts[1:] - 1
        keep[ends[np.diff(self.starts) > 0]] = False
        if sequences is not None:
            keep &= np.repeat(sequences, np.diff(self.starts))
        return np.flatnonzero(keep)


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


# --------------------------------------------------------------------------------------------------------------------
# one round
# --------------------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _slopes_ahead(seconds):  # type: ignore[no-untyped-def]
    """[U, M + 1] the least of (C(m) - C(n)) / (m - n) over m > n: the slope of C's convex hull to the right of n."""
    rows, width = seconds.shape
    out = np.empty((rows, width))
    hull = np.empty(width, np.int64)
    for u in range(rows):
        top = 0  # hull[:top]: vertices to the right of n, the nearest last
        for n in range(width - 1, -1, -1):
            least = np.inf
            while top:
                m = hull[top - 1]
                least = (seconds[u, m] - seconds[u, n]) / (m - n)
                if top == 1:
                    break
                beyond = hull[top - 2]
                if (seconds[u, beyond] - seconds[u, n]) / (beyond - n) > least:
                    break
                top -= 1
            out[u, n] = least
            if seconds[u, n] < np.inf:
                hull[top] = n
                top += 1
    return out


@njit(cache=True, nogil=True)
def _choose(gains, seconds, ahead, rule, price, base):  # type: ignore[no-untyped-def]
    """(n, base + Φ(n)) for one position.

    Ends where no larger budget can be better: m nodes gain at most (m - n)·g[n + 1] over n, and cost at least (m - n)·ahead[n].
    """
    best = 0
    best_tokens = base
    best_seconds = seconds[0]
    best_value = base - price * seconds[0]
    tokens = base
    for n in range(1, len(gains) + 1):
        worth = price if rule == PRICE else best_tokens / best_seconds
        if gains[n - 1] <= 0 or gains[n - 1] <= worth * ahead[n - 1]:
            break
        tokens += gains[n - 1]
        if rule == PRICE:
            value = tokens - price * seconds[n]
            if value > best_value:
                best, best_tokens, best_value = n, tokens, value
        elif tokens * best_seconds > best_tokens * seconds[n]:
            best, best_tokens, best_seconds = n, tokens, seconds[n]
        elif rule == GREEDY:
            break
    return best, best_tokens


@njit(cache=True, nogil=True)
def filled(charged, n, most, step):  # type: ignore[no-untyped-def]
    """The largest number of nodes, at most ``most``, for which n can be exchanged at no more cost; m nodes cost charged[step * m]."""
    for m in range(most, n, -1):
        if charged[step * m] <= charged[step * n] < np.inf:
            return m
    return n


@njit(cache=True, nogil=True)
def _budgets(gains, seconds, row, rule, price, base, fill, charged):  # type: ignore[no-untyped-def]
    # -inf ends no scan: for a few positions slopes cost more than they save
    ahead = _slopes_ahead(seconds) if len(gains) >= 2 * len(seconds) else np.full(seconds.shape, -np.inf)
    out = np.empty(len(gains), np.int32)
    for p in range(len(gains)):
        n = _choose(gains[p], seconds[row[p]], ahead[row[p]], rule, price, base)[0]
        if fill:
            most = n
            while most < len(gains[p]) and gains[p, most] > 0:
                most += 1
            n = filled(charged[row[p]], n, most, 1)
        out[p] = n
    return out


@njit(cache=True, nogil=True)
def _count(gains):  # type: ignore[no-untyped-def]
    out = np.empty(gains.shape[0], np.int32)
    for p in range(gains.shape[0]):
        low, high = 0, gains.shape[1]
        while low < high:
            middle = (low + high) // 2
            if gains[p, middle] > 0:
                low = middle + 1
            else:
                high = middle
        out[p] = low
    return out


def _plain(array: ArrayLike, dtype: Any) -> NDArray[Any]:
    """Contiguous and writable: kernels see one type of array, whatever the caller has, and are compiled once."""
    out = np.ascontiguousarray(array, dtype)
    return out if out.flags.writeable else out.copy()


def node_counts(gains: NDArray[np.float32]) -> Ints:
    """int32 [P]: how many nodes exist at each position (gains above 0; ``gains`` [P, N] descending)."""
    counts: Ints = _count(_plain(gains, np.float32))
    return counts


def round_budgets(
    gains: NDArray[np.float32],
    costs: Costs,
    rule: Rule,
    price: float = 0.0,
    *,
    fill: bool = False,
    calibration: Calibration | None = None,
) -> Ints:
    """Budgets of many positions under one rule.

    Parameters
    ----------
    gains : float32 [P, N], descending, zero-padded
    costs : cost table with a row for each of the P positions; budgets that it has no seconds for are not chosen
    rule : "greedy" (grow while (1 + Phi)/C improves), "exhaustive" (argmax of that ratio) or "price"
        (argmax of (1 + Phi(n)) - price * C(n)); ties go to the smallest n
    price : tokens per second, for "price"
    fill : then the largest budget that is charged no more: up to the end of the step (see `paid`)
    calibration : applied to the gains first

    Returns
    -------
    int32 [P]
    """
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    gains = gains[:, : costs.seconds.shape[1] - 1]
    arguments = (RULES[rule], float(price), 1.0, fill, paid(costs).seconds)
    out: Ints = _budgets(_plain(gains, np.float32), costs.seconds, costs.row, *arguments)
    return out


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


def optimal_budget(
    gains: ArrayLike,
    cost: Any,
    *,
    context: int | None = None,
    rule: Rule = "exhaustive",
    price: float | None = None,
) -> Any:
    """The node budget that a rule picks at one position, or at many.

    Parameters
    ----------
    gains : [N] or [P, N], path probabilities in descending order (`ddsim.tree_gains`)
    cost : CostModel, or an array of seconds of a round with 0, 1, ..., N nodes
    context : committed tokens before the root, where the cost depends on it
    rule : "exhaustive", the argmax of (1 + Phi(n)) / C(n); "greedy", the stop at the first n that does not
        improve this ratio; "price", the argmax of (1 + Phi(n)) - price * C(n)
    price : tokens per second; needed by "price", refused otherwise

    Returns
    -------
    int, or int32 [P]

    Raises
    ------
    DdsimError : gains unsorted, negative or not finite; unknown rule; price missing or not wanted

    Examples
    --------
    >>> optimal_budget([0.9, 0.6, 0.1], [1.0, 1.1, 1.2, 2.0])
    2
    """
    with np.errstate(over="ignore"):
        values = numbers(gains, "gains").astype(np.float32)
    single = values.ndim == 1
    values = np.ascontiguousarray(np.atleast_2d(values))
    if values.ndim != 2:
        raise DdsimError(f"gains have {values.ndim} dimensions; expected [N] or [P, N]")
    if not np.isfinite(values).all() or (values < 0).any() or (np.diff(values, axis=1) > 0).any():
        raise DdsimError("gains must be finite, at least 0 and in descending order")
    if not isinstance(rule, str) or rule not in RULES:
        raise DdsimError(f"unknown rule {brief(rule)}; known: {', '.join(RULES)}")
    if price is not None and (
        isinstance(price, bool) or not isinstance(price, (int, float, np.number)) or not 0 <= price < np.inf
    ):
        raise DdsimError(f"price {brief(price)}: must be tokens per second, a finite number of 0 or more")
    if (price is None) == (rule == "price"):
        raise DdsimError("rule 'price' needs price=; the other rules take none")
    curve = cost_curve(cost, values.shape[1], _priced_context(context))
    out = round_budgets(values, curve_table(curve, len(values)), rule, price or 0.0)
    return int(out[0]) if single else out


def _priced_context(context: int | None) -> int | None:
    """Contexts are priced in steps (as in `ddsim.cost.cost_table`)."""
    if context is None:
        return None
    if isinstance(context, bool) or not isinstance(context, (int, np.integer)) or context < 0:
        raise DdsimError(f"context {brief(context)}: must be a whole number of tokens, 0 or more")
    from ddsim.cost import CONTEXT_STEP

    return -(-int(context) // CONTEXT_STEP) * CONTEXT_STEP


# --------------------------------------------------------------------------------------------------------------------
# many rounds, under the surrogate: positions weighted equally
# --------------------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _rule_totals(gains, seconds, row, ahead, index, rule, price, base, first, last, part):  # type: ignore[no-untyped-def]
    for c in range(first, last):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(index))):
            p = index[i]
            n, tokens = _choose(gains[p], seconds[row[p]], ahead[row[p]], rule, price, base)
            part[c, 0] += tokens
            part[c, 1] += seconds[row[p], n]


@njit(cache=True, nogil=True)
def _fixed_totals(gains, nodes, seconds, row, index, base, first, last, part):  # type: ignore[no-untyped-def]
    for c in range(first, last):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(index))):
            p = index[i]
            tokens = base
            for n in range(gains.shape[1] + 1):
                if 0 < n <= nodes[p]:
                    tokens += gains[p, n - 1]
                part[c, 0, n] += tokens
                part[c, 1, n] += seconds[row[p], min(n, nodes[p])]


@dataclasses.dataclass(frozen=True)
class PriceSolution:
    """A price and what it yields.

    Attributes
    ----------
    price : float, tokens per second: the fixed point λ* = E[tokens] / E[seconds] of its own budgets
    tokens, seconds : float, their sums over the positions counted
    iterations : int
    """

    price: float
    tokens: float
    seconds: float
    iterations: int


def _surrogate_blocks(
    positions: Positions | ArrayLike,
    costs: Costs,
    sequences: NDArray[np.bool_] | None,
    calibration: Calibration | None,
) -> Iterator[tuple[NDArray[np.float32], Ints, Costs, NDArray[np.int64]]]:
    """Gains, nodes, costs and which positions to count, block by block; bare gains are one block and all count."""
    if not isinstance(positions, Positions):
        bare = np.ascontiguousarray(np.atleast_2d(np.asarray(positions, np.float32)))
        nodes = node_counts(bare)
        yield bare if calibration is None else calibration.apply_gains(bare), nodes, costs, np.arange(len(bare))
        return
    for low, first, block in positions.blocks():
        index = block.roots(None if sequences is None else sequences[first : first + block.sequences])
        gains: NDArray[np.float32] = block.gains  # type: ignore[assignment]
        if calibration is not None:
            gains = np.ascontiguousarray(calibration.apply_gains(gains), np.float32)
        yield gains, block.nodes, cost_rows(costs, slice(low, low + len(block))), index


def _totals(
    positions: Positions | ArrayLike,
    costs: Costs,
    rule: Rule,
    price: float = 0.0,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
    base: float = 1.0,
) -> tuple[float, float]:
    """Expected tokens and seconds of one round at every position under a rule; ``base`` tokens come with any budget."""
    ahead = _slopes_ahead(costs.seconds)
    total = np.zeros(2)
    for gains, _, part, index in _surrogate_blocks(positions, costs, sequences, calibration):
        chunks = -(-len(index) // _CHUNK)
        sums = np.zeros((chunks, 2))
        arguments = (gains, part.seconds, part.row, ahead, index, RULES[rule], float(price), base)
        split(lambda first, last, a=arguments, s=sums: _rule_totals(*a, first, last, s), chunks, 16)  # type: ignore[misc]
        total += sums.sum(axis=0)
    if not total[1] > 0:
        raise DdsimError("no positions to solve over: the trace or the selection has no round")
    return float(total[0]), float(total[1])


def solve_price(
    positions: Positions | ArrayLike,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> PriceSolution:
    """The long-run price λ*, by Dinkelbach's method.

    λ* is the largest Σ (1 + Φ*_p(n_p)) / Σ C_p(n_p) over all choices of n_p, positions weighted equally; the choice
    argmax_n (1 + Φ*_p(n)) - λ*·C_p(n) attains it. Each iteration replaces the price by the throughput that its budgets yield;
    prices rise to the fixed point in a few passes.

    Parameters
    ----------
    positions : Positions, or bare gains [P, N]
    costs : cost table with a row for each position
    sequences : bool [S], which sequences to count (default all)
    calibration : applied to the gains

    Returns
    -------
    PriceSolution

    Raises
    ------
    DdsimError : no position to count

    Examples
    --------
    >>> gains = np.array([[0.9, 0.8], [0.1, 0.0]], np.float32)
    >>> round(solve_price(gains, curve_table([1.0, 1.5, 2.0], 2)).price, 3)
    1.233
    """
    return _dinkelbach(positions, costs, sequences, calibration, 1.0)


def _dinkelbach(
    positions: Positions | ArrayLike,
    costs: Costs,
    sequences: NDArray[np.bool_] | None,
    calibration: Calibration | None,
    base: float,
) -> PriceSolution:
    tokens, seconds = _totals(positions, costs, "exhaustive", 0.0, sequences, calibration, base)
    price, iterations = tokens / seconds, 1
    while iterations < 50:
        tokens, seconds = _totals(positions, costs, "price", price, sequences, calibration, base)
        iterations += 1
        if not tokens / seconds > price:
            break
        price = tokens / seconds
    return PriceSolution(price, tokens, seconds, iterations)


def fixed_expected(
    positions: Positions | ArrayLike,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> Floats:
    """float64 [N + 1]: expected tokens per second of each fixed budget under the surrogate, positions weighted equally."""
    total: Floats | None = None
    for gains, nodes, part, index in _surrogate_blocks(positions, costs, sequences, calibration):
        chunks = -(-len(index) // _CHUNK)
        sums = np.zeros((chunks, 2, gains.shape[1] + 1))
        arguments = (gains, nodes, part.seconds, part.row, index, 1.0)
        split(lambda first, last, a=arguments, s=sums: _fixed_totals(*a, first, last, s), chunks, 16)  # type: ignore[misc]
        total = sums.sum(axis=0) if total is None else total + sums.sum(axis=0)
    if total is None or not total[1, 0] > 0:
        raise DdsimError("no positions to solve over: the trace or the selection has no round")
    out: Floats = total[0] / total[1]
    return out


def rule_expected(
    positions: Positions | ArrayLike,
    costs: Costs,
    rule: Rule,
    price: float = 0.0,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> float:
    """Expected tokens per second of a rule under the surrogate, positions weighted equally."""
    tokens, seconds = _totals(positions, costs, rule, price, sequences, calibration)
    return tokens / seconds


# --------------------------------------------------------------------------------------------------------------------
# many rounds, for real: walks along the true tokens
# --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Walk:
    """What a policy did, sequence by sequence.

    Attributes
    ----------
    seconds : float64 [S]; rounds : int64 [S]; budget : int64 [S], sum of verified nodes
    whole : int64 [S], rounds that see their whole horizon, so that the end of the text hides no accepted token
    drawn : int64 [S], tokens accepted plus one in these
    expected : float64 [S], 1 + Φ in these
    accepted : int16 [P], accepted drafted tokens at visited positions, -1 elsewhere
    """

    seconds: Floats
    rounds: NDArray[np.int64]
    budget: NDArray[np.int64]
    whole: NDArray[np.int64]
    drawn: NDArray[np.int64]
    expected: Floats
    accepted: NDArray[np.int16]


@njit(cache=True, nogil=True)
def _round(ranks, nodes, chain, seconds, ar_seconds, row, p, action):  # type: ignore[no-untyped-def]
    """(nodes verified, drafted tokens accepted, seconds) of a round at p."""
    u = row[p]
    if action == NO_DRAFT:
        return 0, 0, ar_seconds[u]
    horizon = ranks.shape[1]
    if action == CHAIN:
        return horizon, int(chain[p]), seconds[u, horizon]
    n = min(action, nodes[p])
    a = 0
    while a < horizon and ranks[p, a] <= n:
        a += 1
    return n, a, seconds[u, n]


@njit(cache=True, nogil=True)
def _walk(  # type: ignore[no-untyped-def]
    gains,
    ranks,
    nodes,
    chain,
    chain_expected,
    starts,
    seconds,
    ar_seconds,
    row,
    actions,
    first,
    last,
    spent,
    rounds,
    budget,
    whole,
    drawn,
    expected,
    accepted,
):
    horizon = ranks.shape[1]
    for s in range(first, last):
        p = starts[s]
        end = starts[s + 1] - 1
        while p < end:
            n, a, cost = _round(ranks, nodes, chain, seconds, ar_seconds, row, p, actions[p])
            spent[s] += cost
            rounds[s] += 1
            budget[s] += n
            accepted[p] = a
            if p + horizon <= end:
                tokens = 1.0
                if actions[p] == CHAIN:
                    tokens += chain_expected[p]
                else:
                    for i in range(n):
                        tokens += gains[p, i]
                whole[s] += 1
                drawn[s] += a + 1
                expected[s] += tokens
            p += a + 1


def walk(block: Positions, costs: Costs, actions: Ints) -> Walk:
    """Walk all sequences of a block in memory, with a budget (or NO_DRAFT, CHAIN) given for every position, int32 [P].

    Rounds take the seconds that are paid, whatever was decided on (`paid`).
    """
    count, costs = block.sequences, paid(costs)
    spent, expected = np.zeros(count), np.zeros(count)
    rounds, budget, whole, drawn = (np.zeros(count, np.int64) for _ in range(4))
    accepted = np.full(len(block), -1, np.int16)
    arguments = (
        block.gains,
        block.ranks,
        block.nodes,
        block.chain,
        block.chain_expected,
        block.starts,
        costs.seconds,
        costs.ar_seconds,
        costs.row,
        _plain(actions, np.int32),
    )
    sums = (spent, rounds, budget, whole, drawn, expected, accepted)
    split(lambda first, last: _walk(*arguments, first, last, *sums), count, 1024)
    return Walk(*sums)


def step(block: Positions, costs: Costs, position: int, action: int) -> tuple[int, float]:
    """One round: the position after it, which may lie beyond the sequence's end, and the seconds paid for it."""
    costs = paid(costs)
    _, accepted, seconds = _round(
        block.ranks, block.nodes, block.chain, costs.seconds, costs.ar_seconds, costs.row, position, action
    )
    return position + accepted + 1, seconds


@njit(cache=True, nogil=True)
def _advance(ranks, nodes, chain, seconds, ar_seconds, row, here, actions):  # type: ignore[no-untyped-def]
    out = np.empty(len(here), np.int64)
    for i in range(len(here)):
        out[i] = here[i] + 1 + _round(ranks, nodes, chain, seconds, ar_seconds, row, here[i], actions[i])[1]
    return out


def lockstep(block: Positions, costs: Costs, choose: Callable[[NDArray[np.float32], Costs], Ints]) -> Ints:
    """Actions at the positions that a stateless rule visits (0 elsewhere), all sequences advancing together.

    ``choose(gains [k, N], costs of k positions) -> int32 [k]`` is asked only about positions that are reached, as a
    decoder would.
    """
    actions = np.zeros(len(block), np.int32)
    here, end = block.starts[:-1].copy(), block.starts[1:] - 1
    live = here < end
    here, end = here[live], end[live]
    while len(here):
        chosen = np.ascontiguousarray(choose(block.gains[here], cost_rows(costs, here)), np.int32)  # type: ignore[index]
        actions[here] = chosen
        here = _advance(block.ranks, block.nodes, block.chain, costs.seconds, costs.ar_seconds, costs.row, here, chosen)
        live = here < end
        if not live.all():
            here, end = here[live], end[live]
    return actions


def solve_walk_price(
    positions: Positions,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> PriceSolution:
    """The price that equals the throughput which its budgets realise on the trace, or the best met in seeking it.

    `solve_price` weights all positions equally and believes the gains, which flatters: rounds start more often where texts are
    hard. Here the policy walks the trace, and each price is the throughput of the one before, from the per-round ratio on, until
    it stays or comes again: on given texts there may be no fixed point, and prices go round in a circle.

    Parameters
    ----------
    positions, costs, sequences, calibration : as in `solve_price`

    Returns
    -------
    PriceSolution
        The fixed point, or if there is none the price of highest realised throughput among those visited; realised tokens and
        seconds.

    Raises
    ------
    DdsimError : no round to count
    """
    counted = np.ones(positions.sequences, np.bool_) if sequences is None else sequences
    tokens = float(positions.tokens[counted].sum())
    if not tokens:
        raise DdsimError("no positions to solve over: the trace or the selection has no round")
    rule: Rule = "exhaustive"
    price, iterations = 0.0, 0
    earned: dict[float, PriceSolution] = {}  # by price
    while True:
        spent = 0.0
        for low, first, block in positions.blocks():
            inside = counted[first : first + block.sequences]
            if not inside.any():
                continue
            part = cost_rows(costs, slice(low, low + len(block)))

            if calibration is not None:
                block = dataclasses.replace(block, gains=calibration.apply_gains(block.gains))  # type: ignore[arg-type]
            spent += float(walk(block, part, rule_actions(block, part, rule, price)).seconds[inside].sum())
        iterations += 1
        found = tokens / spent
        if rule == "price":
            earned[price] = PriceSolution(price, tokens, spent, iterations)
            if abs(found - price) <= 1e-4 * price:
                return earned[price]
            if iterations == 12 or found in earned:
                return min(earned.values(), key=lambda one: one.seconds)
        rule, price = "price", found


@njit(cache=True, nogil=True)
def _rule_walk(  # type: ignore[no-untyped-def]
    gains, ranks, nodes, chain, starts, charged, ar_seconds, row, seconds, ahead, rule, fill, state, memory, first, last,
    actions,
):  # fmt: skip
    """Decides on ``seconds``, pays ``charged``."""
    width = min(gains.shape[1], seconds.shape[1] - 1)
    price = state[0] / state[1]
    for s in range(first, last):
        p = starts[s]
        end = starts[s + 1] - 1
        while p < end:
            u = row[p]
            n = _choose(gains[p, :width], seconds[u], ahead[u], rule, price, 1.0)[0]
            if fill:
                n = filled(charged[u], n, max(n, min(nodes[p], width)), 1)
            actions[p] = n
            _, a, cost = _round(ranks, nodes, chain, charged, ar_seconds, row, p, actions[p])
            if memory > 0:
                track(state, memory, min(a + 1, end - p), cost)
                price = state[0] / state[1]
            p += a + 1


PRIOR = 8
"""Rounds that the guess made in the first round counts for in an online price."""


@njit(cache=True, nogil=True)
def begin(state, tokens, seconds):  # type: ignore[no-untyped-def]
    """Start the state of an online price from the first round's best ratio: its expected tokens and its seconds."""
    state[0], state[1], state[2] = PRIOR * tokens, PRIOR * seconds, 1.0


@njit(cache=True, nogil=True)
def track(state, memory, tokens, seconds):  # type: ignore[no-untyped-def]
    """Add a round to the state of an online price, float64 [3]: tokens, seconds and rounds so far (see `ddsim.policy.LongRun`)."""
    keep = 1.0 if state[2] <= memory else 1.0 - 1.0 / memory
    state[0] = keep * state[0] + tokens
    state[1] = keep * state[1] + seconds
    state[2] += 1


def rule_actions(block: Positions, costs: Costs, rule: Rule, price: float = 0.0, *, fill: bool = False) -> Ints:
    """`lockstep` for one of the rules, int32 [P], all in a kernel."""
    actions = np.zeros(len(block), np.int32)
    state = np.array([price, 1.0, 0.0])
    arguments = (*_walked(block, costs), RULES[rule], fill, state, 0.0)
    split(lambda first, last: _rule_walk(*arguments, first, last, actions), block.sequences, 64)
    return actions


def online_actions(block: Positions, costs: Costs, state: Floats, memory: float, *, fill: bool = False) -> Ints:
    """Actions int32 [P] at a price that is tracked from round to round, sequences in order; ``state`` is updated."""
    actions = np.zeros(len(block), np.int32)
    arguments = (*_walked(block, costs), PRICE, fill, state, memory)
    _rule_walk(*arguments, 0, block.sequences, actions)
    return actions


def _walked(block: Positions, costs: Costs) -> tuple[Any, ...]:
    """What kernels that decide and walk take first: the block, what is paid, what is decided on."""
    charged = paid(costs)
    return (
        block.gains,
        block.ranks,
        block.nodes,
        block.chain,
        block.starts,
        charged.seconds,
        charged.ar_seconds,
        costs.row,
        costs.seconds,
        _slopes_ahead(costs.seconds),
    )


@njit(cache=True, nogil=True)
def _fixed_walks(ranks, nodes, starts, seconds, row, first, last, spent, rounds):  # type: ignore[no-untyped-def]
    horizon = ranks.shape[1]
    for s in range(first, last):
        end = starts[s + 1] - 1
        for n in range(spent.shape[1]):
            p = starts[s]
            while p < end:
                m = min(n, nodes[p])
                a = 0
                while a < horizon and ranks[p, a] <= m:
                    a += 1
                spent[s, n] += seconds[row[p], m]
                rounds[s, n] += 1
                p += a + 1


def fixed_walks(positions: Positions, costs: Costs) -> tuple[Floats, Ints]:
    """Realised seconds, float64 [S, N + 1], and rounds, int32 [S, N + 1], of every fixed budget, sequence by sequence."""
    costs = paid(costs)
    spent = np.zeros((positions.sequences, positions.max_budget + 1))
    rounds = np.zeros(spent.shape, np.int32)
    for low, s, block in positions.blocks():
        part = cost_rows(costs, slice(low, low + len(block)))
        arguments = (block.ranks, block.nodes, block.starts, part.seconds, part.row)
        sums = (spent[s : s + block.sequences], rounds[s : s + block.sequences])
        split(lambda first, last, a=arguments, b=sums: _fixed_walks(*a, first, last, *b), block.sequences, 8)  # type: ignore[misc]
    return spent, rounds


def fixed_seconds(positions: Positions, costs: Costs, sequences: NDArray[np.bool_] | None = None) -> Floats:
    """float64 [N + 1]: realised seconds of every fixed budget, summed over the sequences counted (bool [S], default all)."""
    spent = fixed_walks(positions, costs)[0]
    out: Floats = (spent if sequences is None else spent[sequences]).sum(axis=0)
    return out


@njit(cache=True, nogil=True)
def _hindsight(ranks, nodes, chain, starts, seconds, ar_seconds, row, monotone, first, last, actions):  # type: ignore[no-untyped-def]
    horizon = ranks.shape[1]
    for s in range(first, last):
        low = starts[s]
        end = starts[s + 1] - 1
        least = np.zeros(max(end - low + 1, 1))  # least seconds from each position to the end
        for p in range(end - 1, low - 1, -1):
            u = row[p]
            best = ar_seconds[u] + least[p + 1 - low]
            action = NO_DRAFT
            fewest = 0  # budgets fewest .. most accept exactly a tokens
            for a in range(horizon + 1):
                most = nodes[p]
                if a < horizon and ranks[p, a] <= most:
                    most = ranks[p, a] - 1
                rest = least[min(p + a + 1, end) - low]
                for n in range(fewest, (fewest if monotone[u] else most) + 1):
                    if seconds[u, n] + rest < best:
                        best = seconds[u, n] + rest
                        action = n
                fewest = most + 1
                if fewest > nodes[p]:
                    break
            value = seconds[u, horizon] + least[min(p + chain[p] + 1, end) - low]
            if value < best:
                best = value
                action = CHAIN
            least[p - low] = best
            actions[p] = action


def hindsight_actions(block: Positions, costs: Costs) -> Ints:
    """The budgets of least realised time, with the true tokens known: a shortest path over positions.

    At every position the choices are one autoregressive step (NO_DRAFT), the chain (CHAIN) and every tree budget
    n = 0 .. nodes, so no policy that chooses among these can be faster. Ties: autoregression first, then fewer nodes.

    Returns
    -------
    int32 [P]
    """
    costs = paid(costs)
    curves = costs.seconds[:, : block.max_budget + 1]
    monotone = (curves[:, 1:] >= curves[:, :-1]).all(axis=1)
    actions = np.zeros(len(block), np.int32)
    arguments = (block.ranks, block.nodes, block.chain, block.starts, costs.seconds, costs.ar_seconds, costs.row)
    split(lambda first, last: _hindsight(*arguments, monotone, first, last, actions), block.sequences, 64)
    return actions


# --------------------------------------------------------------------------------------------------------------------
# forests: B requests in one forward pass
# --------------------------------------------------------------------------------------------------------------------


def forest_budgets(
    gains: NDArray[np.float32],
    seconds: Floats,
    rule: Rule = "price",
    price: float = 0.0,
    *,
    fill: Floats | None = None,
    calibration: Calibration | None = None,
) -> Ints:
    """Budgets of B requests verified together: the best n nodes of the forest, n chosen by a rule.

    The n largest gains over all requests are the best n nodes of the forest, so the batch is one tree with merged
    gains, a base of B tokens and cost ``seconds[n]`` for n nodes in all (n + B tokens).

    Parameters
    ----------
    gains : float32 [B, N], descending, zero-padded
    seconds : float64 [M + 1], a joint round with n = 0 .. M nodes; n never exceeds M
    rule, price, calibration : as in `round_budgets`
    fill : float64 [M + 1], what a joint round is charged; then n goes up to the largest number that is charged no more

    Returns
    -------
    int32 [B], nodes given to each request
    """
    from ddsim.tree import forest_gains

    requests = len(gains)
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    merged, owner = forest_gains(gains, min(len(seconds) - 1, gains.size))
    curve = _plain(np.atleast_2d(seconds), np.float64)
    charged = curve if fill is None else _plain(np.atleast_2d(fill), np.float64)
    rules = (RULES[rule], float(price), float(requests), fill is not None, charged)
    best = _budgets(merged[None], curve, np.zeros(1, np.int32), *rules)[0]
    return np.bincount(owner[:best], minlength=requests).astype(np.int32)


def solve_forest_price(
    gains: NDArray[np.float32], seconds: Floats, batch: int, *, seed: int = 0, calibration: Calibration | None = None
) -> PriceSolution:
    """lambda* of joint rounds: positions in random groups of ``batch``, each a forest (surrogate, as `solve_price`).

    Parameters
    ----------
    gains : float32 [P, N]; P is cut to whole groups after a seeded shuffle
    seconds : float64 [M + 1], a joint round with n nodes in all
    batch : int, requests in a round
    """
    from ddsim.tree import forest_gains

    groups = len(gains) // batch
    if groups == 0:
        raise DdsimError(f"{len(gains)} positions do not fill one batch of {batch}")
    order = np.random.default_rng(seed).permutation(len(gains))[: groups * batch].reshape(groups, batch)
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    total = min(len(seconds) - 1, batch * gains.shape[1])
    merged = np.stack([forest_gains(gains[group], total)[0] for group in order])
    table = _Curves(np.atleast_2d(seconds), np.ones(1), np.zeros(groups, np.int32))
    return _dinkelbach(merged, table, None, None, float(batch))
