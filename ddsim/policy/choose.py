"""One round: scans budgets for the rule's best, given gains and seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import Ints, numbers, plain
from ddsim.cost.table import CostTable, priced_context
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.text import brief

if TYPE_CHECKING:
    from ddsim.trace.calibration import Calibration

NO_DRAFT = -1  # an action: decode one token without drafting


CHAIN = -2  # an action: draft, and verify the chain of best candidates


PREFIX = -1000  # PREFIX - k is an action: draft, and verify the first k tokens of the chain


LONGEST = 255  # tokens of a chain: accepted ones are counted in a byte


GREEDY, EXHAUSTIVE, PRICE = 0, 1, 2


RULES = {"greedy": GREEDY, "exhaustive": EXHAUSTIVE, "price": PRICE}


Rule = Literal["greedy", "exhaustive", "price"]


@njit(cache=True, nogil=True)
def chain_length(action, horizon):  # type: ignore[no-untyped-def]
    """Tokens of the chain that an action of CHAIN or less verifies; at most the horizon."""
    return horizon if action == CHAIN else min(PREFIX - action, horizon)


def nodes_of(actions: NDArray[Any], nodes: NDArray[Any], horizon: int) -> NDArray[Any]:
    """Nodes that actions verify, where so many exist in the trees; chains are paid for whole.

    Examples
    --------
    >>> nodes_of(np.array([NO_DRAFT, CHAIN, PREFIX - 2, 3, 9]), np.full(5, 7), horizon=4).tolist()
    [0, 4, 2, 3, 7]
    """
    chains = np.where(actions == CHAIN, horizon, np.minimum(PREFIX - actions, horizon))
    return np.where(actions <= CHAIN, chains, np.maximum(np.minimum(actions, nodes), 0))


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


def round_budgets(
    gains: NDArray[np.float32],
    costs: CostTable,
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
    fill : then the largest budget that is charged no more: up to the end of the step (see `CostTable.paid`)
    calibration : applied to the gains first

    Returns
    -------
    int32 [P]
    """
    if calibration is not None:
        gains = calibration.apply_gains(gains)
    gains = gains[:, : costs.seconds.shape[1] - 1]
    arguments = (RULES[rule], float(price), 1.0, fill, costs.paid.seconds)
    out: Ints = _budgets(plain(gains, np.float32), costs.seconds, costs.row, *arguments)
    return out


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
    costs = CostTable.of_curve(cost, len(values), values.shape[1], priced_context(context))
    out = round_budgets(values, costs, rule, price or 0.0)
    return int(out[0]) if single else out
