"""Walks along the true tokens: what a policy's budgets accept and cost, round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints, _plain
from ddsim.cost.table import Costs, cost_rows, paid
from ddsim.jit import njit
from ddsim.policy.choose import CHAIN, NO_DRAFT, PRICE, RULES, Rule, _choose, _slopes_ahead, filled
from ddsim.threads import split
from ddsim.trace.rounds import Positions


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
    """Add a round to the state of an online price, float64 [3]: tokens, seconds and rounds so far (see `ddsim.policy.rules.LongRun`)."""
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
