"""Walks along the true tokens: what a policy's budgets accept and cost, round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats, Ints, plain
from ddsim.cost.table import CostTable
from ddsim.jit import njit
from ddsim.policy.choose import CHAIN, NO_DRAFT, RULES, Rule, _choose, _slopes_ahead, chain_length, filled, nodes_of
from ddsim.threads import split
from ddsim.trace.rounds import Positions


@dataclasses.dataclass(frozen=True)
class Tally:
    """What a policy did, summed over each of S sequences."""

    seconds: Floats
    """[S]"""
    rounds: NDArray[np.int64]
    """[S]"""
    budget: NDArray[np.int64]
    """[S] verified nodes in all."""
    whole: NDArray[np.int64]
    """[S] rounds that see their whole horizon, so that the end of the text hides no accepted token."""
    drawn: NDArray[np.int64]
    """[S] tokens of these, the bonus token counted."""
    expected: Floats
    """[S] what the gains predict for these: 1 + Φ."""

    def sums(self) -> dict[str, NDArray[Any]]:
        """The arrays by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Tally)}


@dataclasses.dataclass(frozen=True)
class Walk(Tally):
    """A tally of a block in memory, and its rounds.

    Attributes
    ----------
    actions : int32 [P]
        What was chosen at the positions that were visited, 0 elsewhere.
    accepted : int16 [P]
        Drafted tokens accepted at visited positions, -1 elsewhere.
    """

    actions: Ints
    accepted: NDArray[np.int16]

    @classmethod
    def begun(cls, block: Positions) -> Self:
        """A walk that has made no step yet."""
        count = block.sequences
        rounds, budget, whole, drawn = (np.zeros(count, np.int64) for _ in range(4))
        actions, accepted = np.zeros(len(block), np.int32), np.full(len(block), -1, np.int16)
        return cls(np.zeros(count), rounds, budget, whole, drawn, np.zeros(count), actions, accepted)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What the kernels write to."""
        return (*self.sums().values(), self.actions, self.accepted)

    def visits(self, block: Positions, costs: CostTable) -> tuple[NDArray[np.int64], Ints, Floats]:
        """The rounds: position, nodes verified and seconds paid."""
        here = np.flatnonzero(self.accepted >= 0)
        chosen = self.actions[here]
        nodes = nodes_of(chosen, block.nodes[here], block.horizon)
        alone = chosen == NO_DRAFT
        costs = costs.paid
        row = costs.row[here]
        seconds = costs.seconds[row, nodes]
        seconds[alone] = costs.ar_seconds[row[alone]]
        return here, nodes, seconds

    def verification(self, block: Positions, costs: CostTable, weights: Floats) -> Floats:
        """float64 [S, K]: seconds of verification alone, weighted by ``weights`` [N + 1, K] of the nodes verified."""
        out = np.zeros((block.sequences, weights.shape[1]))
        costs = costs.paid
        arguments = (block.starts, block.nodes, block.horizon, costs.seconds, costs.ar_seconds, costs.row)
        _verification(*arguments, self.actions, self.accepted, weights, out)
        return out


@njit(cache=True, nogil=True)
def _round(ranks, nodes, chain, seconds, ar_seconds, row, p, action):  # type: ignore[no-untyped-def]
    """(nodes verified, drafted tokens accepted, seconds) of a round at p."""
    u = row[p]
    if action == NO_DRAFT:
        return 0, 0, ar_seconds[u]
    horizon = ranks.shape[1]
    if action <= CHAIN:
        k = chain_length(action, horizon)
        return k, min(k, int(chain[p])), seconds[u, k]
    n = min(action, nodes[p])
    a = 0
    while a < horizon and ranks[p, a] <= n:
        a += 1
    return n, a, seconds[u, n]


@njit(cache=True, nogil=True)
def _tallied(  # type: ignore[no-untyped-def]
    gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row, s, p, action, tokens,
    spent, rounds, budget, whole, drawn, expected, actions, accepted,
):  # fmt: skip
    """(drafted tokens accepted, seconds) of a round of sequence s at p, added to its tally; ``tokens`` are 1 + Φ, or 0 to add up."""
    n, a, cost = _round(ranks, nodes, chain, charged, ar_seconds, row, p, action)
    spent[s] += cost
    rounds[s] += 1
    budget[s] += n
    actions[p] = action
    accepted[p] = a
    if p + ranks.shape[1] < starts[s + 1]:
        if tokens == 0.0:
            tokens = 1.0
            if action <= CHAIN:
                tokens += chain_expected[p, n - 1]
            else:
                for i in range(n):
                    tokens += gains[p, i]
        whole[s] += 1
        drawn[s] += a + 1
        expected[s] += tokens
    return a, cost


@njit(cache=True, nogil=True)
def _walk(  # type: ignore[no-untyped-def]
    gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row, given, first, last,
    spent, rounds, budget, whole, drawn, expected, actions, accepted,
):  # fmt: skip
    """Every round does what is ``given`` for its position, or for all if that is one entry."""
    for s in range(first, last):
        p = starts[s]
        while p < starts[s + 1] - 1:
            a, _ = _tallied(
                gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row,
                s, p, given[p] if len(given) > 1 else given[0], 0.0,
                spent, rounds, budget, whole, drawn, expected, actions, accepted,
            )  # fmt: skip
            p += a + 1


@njit(cache=True, nogil=True)
def _rule_walk(  # type: ignore[no-untyped-def]
    gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row,
    seconds, ahead, rule, fill, state, memory, first, last,
    spent, rounds, budget, whole, drawn, expected, actions, accepted,
):  # fmt: skip
    """Every round is chosen by a rule: decides on ``seconds``, pays ``charged``."""
    width = min(gains.shape[1], seconds.shape[1] - 1)
    price = state[0] / state[1]
    for s in range(first, last):
        p = starts[s]
        end = starts[s + 1] - 1
        while p < end:
            u = row[p]
            n, tokens = _choose(gains[p, :width], seconds[u], ahead[u], rule, price, 1.0)
            if fill:
                n = filled(charged[u], n, max(n, min(nodes[p], width)), 1)
                tokens = 0.0
            a, cost = _tallied(
                gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row, s, p, n, tokens,
                spent, rounds, budget, whole, drawn, expected, actions, accepted,
            )  # fmt: skip
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


@njit(cache=True, nogil=True)
def _verification(  # type: ignore[no-untyped-def]
    starts, nodes, horizon, seconds, ar_seconds, row, actions, accepted, weights, out
):
    """Differences of one running sum over all rounds: in order, so that threads change nothing."""
    total = np.zeros(weights.shape[1])
    for s in range(len(starts) - 1):
        before = total.copy()
        p = starts[s]
        while p < starts[s + 1] - 1:
            u = row[p]
            n = 0
            spent = ar_seconds[u]
            if actions[p] != NO_DRAFT:
                n = chain_length(actions[p], horizon) if actions[p] <= CHAIN else min(actions[p], nodes[p])
                spent = seconds[u, n] - (seconds[u, 0] - ar_seconds[u])
            for k in range(len(total)):
                total[k] += spent * weights[n, k]
            p += accepted[p] + 1
        for k in range(len(total)):
            out[s, k] = total[k] - before[k]


@njit(cache=True, nogil=True)
def _advance(  # type: ignore[no-untyped-def]
    gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row, sequence, here, chosen,
    spent, rounds, budget, whole, drawn, expected, actions, accepted,
):  # fmt: skip
    """One round of each of some sequences: where they are after it, and the seconds that it took."""
    after, seconds = np.empty(len(here), np.int64), np.empty(len(here))
    for i in range(len(here)):
        a, seconds[i] = _tallied(
            gains, ranks, nodes, chain, chain_expected, starts, charged, ar_seconds, row, sequence[i], here[i], chosen[i], 0.0,
            spent, rounds, budget, whole, drawn, expected, actions, accepted,
        )  # fmt: skip
        after[i] = here[i] + a + 1
    return after, seconds


def _walked(block: Positions, costs: CostTable) -> tuple[Any, ...]:
    """What kernels that walk take first: the block, and the seconds that are paid, whatever was decided on (`paid`)."""
    costs = costs.paid
    return (
        block.gains,
        block.ranks,
        block.nodes,
        block.chain,
        block.chain_expected,
        block.starts,
        costs.seconds,
        costs.ar_seconds,
        costs.row,
    )


def walk(block: Positions, costs: CostTable, actions: Ints | int) -> Walk:
    """Walk all sequences of a block in memory with given actions (see `Policy.choose`): int32 [P], or one for all positions."""
    done = Walk.begun(block)
    arguments = (*_walked(block, costs), plain(np.atleast_1d(actions), np.int32))
    split(lambda first, last: _walk(*arguments, first, last, *done.arrays()), block.sequences, 1024)
    return done


def rule_walk(block: Positions, costs: CostTable, rule: Rule, price: float = 0.0, *, fill: bool = False) -> Walk:
    """Choose by one of the rules and walk, in one pass."""
    return _rule_walked(block, costs, RULES[rule], fill, np.array([price, 1.0, 0.0]), 0.0)


def online_walk(block: Positions, costs: CostTable, state: Floats, memory: float, *, fill: bool = False) -> Walk:
    """Choose at a price that is tracked from round to round, sequences in order, and walk; ``state`` is updated."""
    return _rule_walked(block, costs, RULES["price"], fill, state, memory)


def _rule_walked(block: Positions, costs: CostTable, rule: int, fill: bool, state: Floats, memory: float) -> Walk:
    done = Walk.begun(block)
    arguments = (*_walked(block, costs), costs.seconds, _slopes_ahead(costs.seconds), rule, fill, state, memory)
    smallest = 64 if memory == 0 else block.sequences + 1  # a price that is tracked knows one order
    split(lambda first, last: _rule_walk(*arguments, first, last, *done.arrays()), block.sequences, smallest)
    return done


def lockstep(block: Positions, costs: CostTable, choose: Callable[[NDArray[np.float32], CostTable], Ints]) -> Walk:
    """Walk while asking a stateless rule, all sequences advancing together.

    ``choose(gains [k, N], costs of k positions) -> int32 [k]`` is asked only about positions that are reached, as a
    decoder would.
    """
    done, arguments = Walk.begun(block), _walked(block, costs)
    sequence = np.flatnonzero(np.diff(block.starts) > 1)
    here = block.starts[sequence]
    while len(here):
        chosen = np.ascontiguousarray(choose(block.gains[here], costs.take(here)), np.int32)  # type: ignore[index]
        here, _ = _advance(*arguments, sequence, here, chosen, *done.arrays())
        live = here < block.starts[sequence + 1] - 1
        if not live.all():
            sequence, here = sequence[live], here[live]
    return done


def in_order(
    block: Positions,
    costs: CostTable,
    choose: Callable[[NDArray[np.float32], CostTable], Ints],
    observe: Callable[[float, float], None],
) -> Walk:
    """Walk while asking an online rule: one request after another, one round after another, each reported by ``observe``."""
    done, arguments = Walk.begun(block), _walked(block, costs)
    for s in range(block.sequences):
        p, last = int(block.starts[s]), int(block.starts[s + 1]) - 1
        while p < last:
            here = np.array([p])
            chosen = np.ascontiguousarray(
                choose(np.array(block.gains[p : p + 1]), costs.take(slice(p, p + 1))), np.int32
            )
            after, seconds = _advance(*arguments, np.array([s]), here, chosen, *done.arrays())
            observe(min(int(after[0]), last) - p, float(seconds[0]))
            p = int(after[0])
    return done


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


def fixed_walks(positions: Positions, costs: CostTable) -> tuple[Floats, Ints]:
    """Realised seconds, float64 [S, N + 1], and rounds, int32 [S, N + 1], of every fixed budget, sequence by sequence."""
    costs = costs.paid
    spent = np.zeros((positions.sequences, positions.max_budget + 1))
    rounds = np.zeros(spent.shape, np.int32)
    for low, s, block in positions.blocks():
        part = costs.take(slice(low, low + len(block)))
        arguments = (block.ranks, block.nodes, block.starts, part.seconds, part.row)
        sums = (spent[s : s + block.sequences], rounds[s : s + block.sequences])
        split(lambda first, last, a=arguments, b=sums: _fixed_walks(*a, first, last, *b), block.sequences, 8)  # type: ignore[misc]
    return spent, rounds


@njit(cache=True, nogil=True)
def _chain_walks(chain, starts, seconds, row, first, last, spent, rounds):  # type: ignore[no-untyped-def]
    for s in range(first, last):
        end = starts[s + 1] - 1
        for k in range(1, spent.shape[1] + 1):
            p = starts[s]
            while p < end:
                spent[s, k - 1] += seconds[row[p], k]
                rounds[s, k - 1] += 1
                p += min(k, int(chain[p])) + 1


def chain_walks(positions: Positions, costs: CostTable) -> tuple[Floats, Ints]:
    """Realised seconds, float64 [S, L], and rounds, int32 [S, L], of chains of 1, 2, ... L tokens, sequence by sequence."""
    costs = costs.paid
    spent = np.zeros((positions.sequences, positions.horizon))
    rounds = np.zeros(spent.shape, np.int32)
    arguments = (positions.chain, positions.starts, costs.seconds, costs.row)
    split(lambda first, last: _chain_walks(*arguments, first, last, spent, rounds), positions.sequences, 64)
    return spent, rounds


def fixed_seconds(positions: Positions, costs: CostTable, sequences: NDArray[np.bool_] | None = None) -> Floats:
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


def hindsight_walk(block: Positions, costs: CostTable) -> Walk:
    """Walk with the budgets of least realised time, with the true tokens known: a shortest path over positions.

    At every position the choices are one autoregressive step (NO_DRAFT), the chain (CHAIN) and every tree budget
    n = 0 .. nodes, so no policy that chooses among these can be faster. Ties: autoregression first, then fewer nodes.
    """
    costs = costs.paid
    curves = costs.seconds[:, : block.max_budget + 1]
    monotone = (curves[:, 1:] >= curves[:, :-1]).all(axis=1)
    actions = np.zeros(len(block), np.int32)
    arguments = (block.ranks, block.nodes, block.chain, block.starts, costs.seconds, costs.ar_seconds, costs.row)
    split(lambda first, last: _hindsight(*arguments, monotone, first, last, actions), block.sequences, 64)
    return walk(block, costs, actions)
