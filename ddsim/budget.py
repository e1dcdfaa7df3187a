"""Solvers: how many tree nodes to verify, given the gains of the nodes and what verification costs.

A round at a position with sorted gains ``g`` and budget ``n`` commits ``1 + Phi(n)`` tokens in expectation,
``Phi(n) = g[0] + ... + g[n-1]``, and takes ``C(n)`` seconds.  Every rule below is a scan of ``n``; ties go to the
smallest ``n``; a budget never exceeds the nodes that exist (gains above 0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from ddsim.errors import DdsimError

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
    """What the solvers need of a cost table: seconds of a round by context and budget (see `ddsim.cost`)."""

    seconds: Floats  # [U, M + 1], a drafted round with n nodes
    ar_seconds: Floats  # [U], a round without draft
    row: Ints  # [P], the row of each position


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


def cost_rows(costs: Costs, index: slice | NDArray[Any]) -> Costs:
    """The same cost table for a part of its positions."""
    part: Costs = dataclasses.replace(costs, row=costs.row[index])  # type: ignore[type-var]
    return part


# --------------------------------------------------------------------------------------------------------------------
# one round
# --------------------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _choose(gains, nodes, seconds, rule, price, base):  # type: ignore[no-untyped-def]
    """(n, base + Phi(n)) for one position."""
    best = 0
    best_tokens = base
    best_seconds = seconds[0]
    best_value = base - price * seconds[0]
    phi = 0.0
    for n in range(1, nodes + 1):
        phi += gains[n - 1]
        tokens = base + phi
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
def _budgets(gains, nodes, seconds, row, rule, price, base):  # type: ignore[no-untyped-def]
    out = np.empty(len(nodes), np.int32)
    for p in range(len(nodes)):
        out[p] = _choose(gains[p], nodes[p], seconds[row[p]], rule, price, base)[0]
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


def node_counts(gains: NDArray[np.float32]) -> Ints:
    """int32 [P]: how many nodes exist at each position (gains above 0; ``gains`` [P, N] descending)."""
    counts: Ints = _count(gains)
    return counts


def round_budgets(
    gains: NDArray[np.float32],
    costs: Costs,
    rule: Rule,
    price: float = 0.0,
    *,
    nodes: Ints | None = None,
    calibration: Calibration | None = None,
) -> Ints:
    """Budgets of many positions under one rule.

    Parameters
    ----------
    gains : float32 [P, N], descending, zero-padded
    costs : cost table with a row for each of the P positions
    rule : "greedy" (grow while (1 + Phi)/C improves), "exhaustive" (argmax of that ratio) or "price"
        (argmax of (1 + Phi(n)) - price * C(n)); ties go to the smallest n
    price : tokens per second, for "price"
    nodes : int32 [P], cap; by default the nodes that exist
    calibration : applied to the gains first

    Returns
    -------
    int32 [P]
    """
    if nodes is None:
        nodes = node_counts(gains)
    if calibration is not None:
        gains = np.ascontiguousarray(calibration.apply_gains(gains), np.float32)
    out: Ints = _budgets(gains, nodes, costs.seconds, costs.row, RULES[rule], float(price), 1.0)
    return out


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The smallest cost table: one curve."""

    seconds: Floats
    ar_seconds: Floats
    row: Ints


def cost_curve(cost: Any, max_budget: int, context: int | None = None, batch: int = 1) -> Floats:
    """float64 [max_budget + 1]: seconds of a joint round of ``batch`` requests with n nodes in all, n + batch tokens.

    ``cost`` is a CostModel, or the curve itself (seconds of a round with 0, 1, ... nodes).
    """
    if hasattr(cost, "verify_seconds"):
        tokens = np.arange(max_budget + 1) + batch
        verify = np.asarray(cost.verify_seconds(tokens, context, batch), np.float64)
        draft = float(np.asarray(cost.draft_seconds(batch, context)))
        return np.ascontiguousarray(np.broadcast_to(verify, tokens.shape) + draft)
    curve = np.array(cost, np.float64).reshape(-1)
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
    rule : "exhaustive", the argmax of (1 + Phi(n)) / C(n); "greedy", CaDDTree's stop at the first n that does not
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
    values = np.asarray(gains, np.float32)
    single = values.ndim == 1
    values = np.ascontiguousarray(np.atleast_2d(values))
    if values.ndim != 2:
        raise DdsimError(f"gains have {values.ndim} dimensions; expected [N] or [P, N]")
    if not np.isfinite(values).all() or (values < 0).any() or (np.diff(values, axis=1) > 0).any():
        raise DdsimError("gains must be finite, at least 0 and in descending order")
    if rule not in RULES:
        raise DdsimError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
    if (price is None) == (rule == "price"):
        raise DdsimError("rule 'price' needs price=; the other rules take none")
    curve = cost_curve(cost, values.shape[1], _priced_context(context))
    table = _Curve(curve[None], curve[:1], np.zeros(len(values), np.int32))
    out = round_budgets(values, table, rule, price or 0.0)
    return int(out[0]) if single else out


def _priced_context(context: int | None) -> int | None:
    """Contexts are priced in steps (as in `ddsim.cost.cost_table`)."""
    if context is None:
        return None
    from ddsim.cost import CONTEXT_STEP

    return -(-int(context) // CONTEXT_STEP) * CONTEXT_STEP


# --------------------------------------------------------------------------------------------------------------------
# many rounds, under the surrogate: positions weighted equally
# --------------------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, parallel=True)
def _rule_totals(gains, nodes, seconds, row, index, rule, price, base):  # type: ignore[no-untyped-def]
    chunks = (len(index) + _CHUNK - 1) // _CHUNK
    part = np.zeros((chunks, 2))
    for c in prange(chunks):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(index))):
            p = index[i]
            n, tokens = _choose(gains[p], nodes[p], seconds[row[p]], rule, price, base)
            part[c, 0] += tokens
            part[c, 1] += seconds[row[p], n]
    return part


@njit(cache=True, nogil=True, parallel=True)
def _fixed_totals(gains, nodes, seconds, row, index, base):  # type: ignore[no-untyped-def]
    width = gains.shape[1] + 1
    chunks = (len(index) + _CHUNK - 1) // _CHUNK
    part = np.zeros((chunks, 2, width))
    for c in prange(chunks):
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(index))):
            p = index[i]
            tokens = base
            for n in range(width):
                if 0 < n <= nodes[p]:
                    tokens += gains[p, n - 1]
                part[c, 0, n] += tokens
                part[c, 1, n] += seconds[row[p], min(n, nodes[p])]
    return part


@dataclasses.dataclass(frozen=True)
class PriceSolution:
    """A price and what it yields.

    Attributes
    ----------
    price : float, tokens per second: the fixed point lambda* = E[tokens] / E[seconds] of its own budgets
    tokens, seconds : float, their sums over the positions counted
    iterations : int
    """

    price: float
    tokens: float
    seconds: float
    iterations: int


def _totals_over(
    positions: Positions,
    sequences: NDArray[np.bool_] | None,
    costs: Costs,
    calibration: Calibration | None,
    kernel: Callable[[NDArray[np.float32], Ints, Costs, NDArray[np.int64]], Floats],
) -> Floats:
    total: Floats | None = None
    for low, first, block in positions.blocks():
        high = low + len(block)
        index = block.roots(None if sequences is None else sequences[first : first + block.sequences])
        gains: NDArray[np.float32] = block.gains  # type: ignore[assignment]
        if calibration is not None:
            gains = np.ascontiguousarray(calibration.apply_gains(gains), np.float32)
        part = kernel(gains, block.nodes, cost_rows(costs, slice(low, high)), index).sum(axis=0)
        total = part if total is None else total + part
    if total is None:
        raise DdsimError("no positions to solve over: the trace or the selection is empty")
    return total


def as_positions(gains: Positions | ArrayLike) -> Positions:
    """Bare gains [P, N] as positions that each stand for a round (no truth: surrogate solvers only)."""
    if isinstance(gains, Positions):
        return gains
    values = np.ascontiguousarray(np.atleast_2d(np.asarray(gains, np.float32)))
    count = len(values)
    # a last position never starts a round, so a sentinel closes the one sequence
    values = np.concatenate([values, np.zeros((1, values.shape[1]), np.float32)])
    return Positions(
        values,
        np.full((count + 1, 1), NO_RANK, np.int32),
        node_counts(values),
        np.zeros(count + 1, np.uint8),
        np.zeros(count + 1, np.float32),
        np.zeros(count + 1, np.int32),
        np.array([0, count + 1], np.int64),
        ("",),
        ("",),
        np.zeros(1, np.float32),
    )


def _sentinel_row(positions: Positions | ArrayLike, costs: Costs) -> Costs:
    """Cost rows to match `as_positions`."""
    if isinstance(positions, Positions):
        return costs
    return dataclasses.replace(costs, row=np.append(costs.row, costs.row[-1:]).astype(np.int32))  # type: ignore


def solve_price(
    positions: Positions | ArrayLike,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
    realised: bool = False,
) -> PriceSolution:
    """The long-run price lambda*, by Dinkelbach's method.

    lambda* is the largest sum(1 + Phi_p(n_p)) / sum(C_p(n_p)) over all choices of n_p, positions weighted equally; the
    choice argmax_n (1 + Phi_p(n)) - lambda* C_p(n) attains it.  Each iteration replaces the price by the throughput
    that its budgets yield; prices rise to the fixed point in a few passes.

    Parameters
    ----------
    positions : Positions, or bare gains [P, N]
    costs : cost table with a row for each position
    sequences : bool [S], which sequences to count (default all)
    calibration : applied to the gains
    realised : walk the trace instead: tokens and seconds of the rounds actually visited; the best of a few fixed-point
        iterations started at the surrogate's lambda*

    Returns
    -------
    PriceSolution

    Examples
    --------
    >>> import numpy as np
    >>> from ddsim.budget import CurveTable
    >>> gains = np.array([[0.9, 0.8], [0.1, 0.0]], np.float32)
    >>> solve_price(gains, CurveTable([1.0, 1.5, 2.0], 2)).price  # doctest: +ELLIPSIS
    1.23...
    """
    where, table = as_positions(positions), _sentinel_row(positions, costs)

    def totals(price: float, rule: int = PRICE) -> Floats:
        return _totals_over(
            where,
            sequences,
            table,
            calibration,
            lambda gains, nodes, part, index: _rule_totals(
                gains, nodes, part.seconds, part.row, index, rule, price, 1.0
            ),
        )

    tokens, seconds = totals(0.0, EXHAUSTIVE)
    if not seconds > 0:
        raise DdsimError("cannot solve for a price: the positions counted take no time")
    price, iterations = tokens / seconds, 1
    while iterations < 50:
        tokens, seconds = totals(price)
        iterations += 1
        if not tokens / seconds > price:
            break
        price = tokens / seconds
    solution = PriceSolution(float(price), float(tokens), float(seconds), iterations)
    if not realised:
        return solution
    return _realised_price(where, table, sequences, calibration, solution)


def _realised_price(
    positions: Positions,
    costs: Costs,
    sequences: NDArray[np.bool_] | None,
    calibration: Calibration | None,
    start: PriceSolution,
) -> PriceSolution:
    counted = np.ones(positions.sequences, np.bool_) if sequences is None else sequences
    tokens = float(positions.tokens[counted].sum())
    best, price = start, start.price
    best_seconds = np.inf
    for step in range(12):
        spent = 0.0
        for low, first, block in positions.blocks():
            part = cost_rows(costs, slice(low, low + len(block)))
            actions = lockstep(
                block,
                part,
                lambda gains, table, at=price: round_budgets(gains, table, "price", at, calibration=calibration),
            )
            spent += float(walk(block, part, actions).seconds[counted[first : first + block.sequences]].sum())
        if spent < best_seconds:
            best_seconds = spent
            best = PriceSolution(price, tokens, spent, start.iterations + step + 1)
        if abs(tokens / spent - price) <= 1e-6 * price:
            break
        price = tokens / spent
    return best


def CurveTable(seconds: ArrayLike, positions: int, ar_seconds: float | None = None) -> Costs:
    """A cost table with one curve for all positions: seconds of a round with 0, 1, ... nodes."""
    curve = cost_curve(seconds, 0)
    alone = curve[0] if ar_seconds is None else float(ar_seconds)
    return _Curve(curve[None], np.array([alone]), np.zeros(positions, np.int32))


def fixed_expected(
    positions: Positions | ArrayLike,
    costs: Costs,
    *,
    sequences: NDArray[np.bool_] | None = None,
    calibration: Calibration | None = None,
) -> Floats:
    """float64 [N + 1]: expected tokens per second of each fixed budget under the surrogate, positions weighted equally."""
    where, table = as_positions(positions), _sentinel_row(positions, costs)
    tokens, seconds = _totals_over(
        where,
        sequences,
        table,
        calibration,
        lambda gains, nodes, part, index: _fixed_totals(gains, nodes, part.seconds, part.row, index, 1.0),
    )
    out: Floats = tokens / seconds
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
    where, table = as_positions(positions), _sentinel_row(positions, costs)
    tokens, seconds = _totals_over(
        where,
        sequences,
        table,
        calibration,
        lambda gains, nodes, part, index: _rule_totals(
            gains, nodes, part.seconds, part.row, index, RULES[rule], float(price), 1.0
        ),
    )
    return float(tokens / seconds)


# --------------------------------------------------------------------------------------------------------------------
# many rounds, for real: walks along the true tokens
# --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Walk:
    """What a policy did, sequence by sequence.

    Attributes
    ----------
    seconds : float64 [S]; rounds : int64 [S]; budget : int64 [S], sum of verified nodes
    drawn : int64 [S], tokens accepted (without the bonus) plus one in rounds that see their whole horizon
    expected : float64 [S], predicted 1 + Phi in the same rounds
    accepted : int16 [P], accepted drafted tokens at visited positions, -1 elsewhere
    """

    seconds: Floats
    rounds: NDArray[np.int64]
    budget: NDArray[np.int64]
    drawn: NDArray[np.int64]
    expected: Floats
    accepted: NDArray[np.int16]


@njit(cache=True, nogil=True, parallel=True)
def _walk(gains, ranks, nodes, chain, chain_expected, starts, seconds, ar_seconds, row, actions):  # type: ignore[no-untyped-def]
    count = len(starts) - 1
    horizon = ranks.shape[1]
    spent = np.zeros(count)
    rounds = np.zeros(count, np.int64)
    budget = np.zeros(count, np.int64)
    drawn = np.zeros(count, np.int64)
    expected = np.zeros(count)
    accepted = np.full(len(actions), -1, np.int16)
    for s in prange(count):
        p = starts[s]
        end = starts[s + 1] - 1
        while p < end:
            u = row[p]
            n = actions[p]
            a = 0
            tokens = 1.0
            if n == NO_DRAFT:
                spent[s] += ar_seconds[u]
            elif n == CHAIN:
                a = chain[p]
                spent[s] += seconds[u, horizon]
                tokens += chain_expected[p]
                budget[s] += horizon
            else:
                n = min(n, nodes[p])
                while a < horizon and ranks[p, a] <= n:
                    a += 1
                spent[s] += seconds[u, n]
                for i in range(n):
                    tokens += gains[p, i]
                budget[s] += n
            if p + horizon <= end:
                drawn[s] += a + 1
                expected[s] += tokens
            rounds[s] += 1
            accepted[p] = a
            p += a + 1
    return spent, rounds, budget, drawn, expected, accepted


def walk(block: Positions, costs: Costs, actions: Ints) -> Walk:
    """Walk all sequences of a block with a budget (or NO_DRAFT, CHAIN) given for every position, int32 [P]."""
    return Walk(
        *_walk(
            block.gains,
            block.ranks,
            block.nodes,
            block.chain,
            block.chain_expected,
            block.starts,
            costs.seconds,
            costs.ar_seconds,
            costs.row,
            actions,
        )
    )


@njit(cache=True, nogil=True)
def _advance(ranks, nodes, chain, positions, budgets):  # type: ignore[no-untyped-def]
    horizon = ranks.shape[1]
    out = np.empty(len(positions), np.int64)
    for i in range(len(positions)):
        p = positions[i]
        n = budgets[i]
        a = 0
        if n == CHAIN:
            a = chain[p]
        elif n != NO_DRAFT:
            n = min(n, nodes[p])
            while a < horizon and ranks[p, a] <= n:
                a += 1
        out[i] = p + a + 1
    return out


@njit(cache=True, nogil=True)
def _step(ranks, nodes, chain, seconds, ar_seconds, row, p, n):  # type: ignore[no-untyped-def]
    horizon = ranks.shape[1]
    if n == NO_DRAFT:
        return p + 1, ar_seconds[row[p]]
    if n == CHAIN:
        return p + chain[p] + 1, seconds[row[p], horizon]
    n = min(n, nodes[p])
    a = 0
    while a < horizon and ranks[p, a] <= n:
        a += 1
    return p + a + 1, seconds[row[p], n]


def step(block: Positions, costs: Costs, position: int, action: int) -> tuple[int, float]:
    """One round: the position after it, which may lie beyond the sequence's end, and its seconds."""
    after, seconds = _step(
        block.ranks, block.nodes, block.chain, costs.seconds, costs.ar_seconds, costs.row, position, action
    )
    return int(after), float(seconds)


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
        budgets = np.ascontiguousarray(choose(block.gains[here], cost_rows(costs, here)), np.int32)  # type: ignore[index]
        actions[here] = budgets
        here = _advance(block.ranks, block.nodes, block.chain, here, budgets)
        live = here < end
        if not live.all():
            here, end = here[live], end[live]
    return actions


@njit(cache=True, nogil=True, parallel=True)
def _fixed_walks(ranks, nodes, starts, seconds, row, width):  # type: ignore[no-untyped-def]
    count = len(starts) - 1
    horizon = ranks.shape[1]
    spent = np.zeros((count, width))
    rounds = np.zeros((count, width), np.int32)
    for s in prange(count):
        end = starts[s + 1] - 1
        for n in range(width):
            p = starts[s]
            while p < end:
                m = min(n, nodes[p])
                a = 0
                while a < horizon and ranks[p, a] <= m:
                    a += 1
                spent[s, n] += seconds[row[p], m]
                rounds[s, n] += 1
                p += a + 1
    return spent, rounds


def fixed_walks(positions: Positions, costs: Costs) -> tuple[Floats, Ints]:
    """Realised seconds, float64 [S, N + 1], and rounds, int32 [S, N + 1], of every fixed budget, sequence by sequence."""
    width = positions.max_budget + 1
    parts = []
    for low, _, block in positions.blocks():
        part = cost_rows(costs, slice(low, low + len(block)))
        parts.append(_fixed_walks(block.ranks, block.nodes, block.starts, part.seconds, part.row, width))
    spent, rounds = zip(*parts, strict=True)
    return np.concatenate(spent), np.concatenate(rounds)


def fixed_seconds(positions: Positions, costs: Costs, folds: NDArray[np.int64] | None = None) -> Floats:
    """float64 [F, N + 1]: realised seconds of every fixed budget, summed over the sequences of each fold.

    ``folds`` int64 [S] numbers the fold of each sequence (default: one fold).
    """
    which = np.zeros(positions.sequences, np.int64) if folds is None else folds
    out = np.zeros((int(which.max(initial=0)) + 1, positions.max_budget + 1))
    np.add.at(out, which, fixed_walks(positions, costs)[0])
    return out


def best_fixed_budget(positions: Positions, costs: Costs, *, realised: bool = True) -> int:
    """The fixed budget of highest throughput over the trace: realised, or expected under the surrogate."""
    if realised:
        return int(np.argmin(fixed_seconds(positions, costs)[0]))
    return int(np.argmax(fixed_expected(positions, costs)))


@njit(cache=True, nogil=True, parallel=True)
def _hindsight(ranks, nodes, chain, starts, seconds, ar_seconds, row, monotone):  # type: ignore[no-untyped-def]
    horizon = ranks.shape[1]
    actions = np.zeros(len(nodes), np.int32)
    for s in prange(len(starts) - 1):
        low = starts[s]
        end = starts[s + 1] - 1
        least = np.zeros(max(end - low + 1, 1))  # least seconds from each position to the end
        for p in range(end - 1, low - 1, -1):
            u = row[p]
            best = ar_seconds[u] + least[p + 1 - low]
            action = NO_DRAFT
            first = 0  # budgets first .. last accept exactly a tokens
            for a in range(horizon + 1):
                last = nodes[p]
                if a < horizon and ranks[p, a] <= last:
                    last = ranks[p, a] - 1
                rest = least[min(p + a + 1, end) - low]
                stop = first if monotone[u] else last
                for n in range(first, stop + 1):
                    if seconds[u, n] + rest < best:
                        best = seconds[u, n] + rest
                        action = n
                first = last + 1
                if first > nodes[p]:
                    break
            value = seconds[u, horizon] + least[min(p + chain[p] + 1, end) - low]
            if value < best:
                best = value
                action = CHAIN
            least[p - low] = best
            actions[p] = action
    return actions


def hindsight_actions(block: Positions, costs: Costs) -> Ints:
    """The budgets of least realised time, with the true tokens known: a shortest path over positions.

    At every position the choices are one autoregressive step (NO_DRAFT), the chain (CHAIN) and every tree budget
    n = 0 .. nodes, so no policy that chooses among these can be faster.  Ties: autoregression first, then fewer nodes.

    Returns
    -------
    int32 [P]
    """
    monotone = (np.diff(costs.seconds[:, : block.max_budget + 1], axis=1) >= 0).all(axis=1)
    out: Ints = _hindsight(
        block.ranks, block.nodes, block.chain, block.starts, costs.seconds, costs.ar_seconds, costs.row, monotone
    )
    return out


# --------------------------------------------------------------------------------------------------------------------
# forests: B requests in one forward pass
# --------------------------------------------------------------------------------------------------------------------


def forest_budgets(
    gains: NDArray[np.float32],
    seconds: Floats,
    rule: Rule = "price",
    price: float = 0.0,
    *,
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

    Returns
    -------
    int32 [B], nodes given to each request
    """
    from ddsim.tree import forest_gains

    requests = len(gains)
    raw = gains
    if calibration is not None:
        gains = np.where(raw > 0, calibration.apply_gains(raw), 0).astype(np.float32)
    total = min(len(seconds) - 1, raw.size)
    merged, owner = forest_gains(np.ascontiguousarray(gains), total)
    nodes = int(node_counts(np.ascontiguousarray(merged[None]))[0])
    best = _choose(merged, nodes, seconds, RULES[rule], float(price), float(requests))[0]
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
        gains = np.where(gains > 0, calibration.apply_gains(gains), 0).astype(np.float32)
    total = min(len(seconds) - 1, batch * gains.shape[1])
    merged = np.stack([forest_gains(np.ascontiguousarray(gains[group]), total)[0] for group in order])
    nodes = node_counts(merged)
    row, index = np.zeros(groups, np.int32), np.arange(groups)
    table = np.ascontiguousarray(seconds[None])
    price, iterations, rule = 0.0, 0, EXHAUSTIVE
    while True:
        tokens, spent = _rule_totals(merged, nodes, table, row, index, rule, price, float(batch)).sum(axis=0)
        iterations += 1
        if iterations > 1 and (not tokens / spent > price or iterations >= 50):
            return PriceSolution(float(price), float(tokens), float(spent), iterations)
        price, rule = tokens / spent, PRICE
