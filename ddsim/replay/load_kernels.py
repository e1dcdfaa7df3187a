"""The event loop of a server that requests arrive at: admission, prefill, joint rounds, until the last request is answered."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.jit import njit
from ddsim.policy.batch import accepted_of, decide, learn
from ddsim.policy.choose import EXHAUSTIVE, NO_DRAFT
from ddsim.policy.walk import begin, track

ADMITTED, READY, PART, DONE, BATCH, HELD = range(6)
"""Counts of a simulation: requests admitted, those of them that are prefilled, tokens of the next one that are, requests answered, requests
that decode, tokens of keys and values that are set aside. Requests are admitted and prefilled in the order in which they arrive."""

REQUEST, WHERE, PIECE, CONTEXT = range(4)
"""What is known of a request that decodes: its number, its position in the trace, its piece of text, its committed tokens."""


class Requests(NamedTuple):
    """What arrives, in R simulations of N requests each.

    Attributes
    ----------
    arrival : float64 [R, N], seconds, ascending
    prompt : int64 [R, N], tokens, at least 1
    answer : int64 [R, N], tokens, at least 1; the first comes with the end of the prefill
    pieces : int64 [R, N + 1]
        Request i decodes the pieces of text pieces[r, i] to pieces[r, i + 1] - 1, one after another.
    texts : int64 [P, 2]
        A piece's first and last position in the trace; rounds that start at the first commit last - first tokens.
    """

    arrival: Floats
    prompt: NDArray[np.int64]
    answer: NDArray[np.int64]
    pieces: NDArray[np.int64]
    texts: NDArray[np.int64]


class Server(NamedTuple):
    """What the server holds, and how it prefills.

    Attributes
    ----------
    running : int
        Requests that are prefilled or decoded at a time.
    memory : int
        Tokens of keys and values that they may have in all; a request is admitted when its prompt and its whole answer fit.
    chunked : bool
        Whether prompts are prefilled in parts beside the rounds of others; otherwise in passes of their own, which rounds wait for.
    budget : int
        Prompt tokens of a part, or of a pass: whole prompts, at least one.
    prefill : float64 [T]
        Seconds of a pass over 0, 1, ... tokens, but for what their attention takes:
    attend : float
        Seconds a prompt token and token before it.
    """

    running: int
    memory: int
    chunked: bool
    budget: int
    prefill: Floats
    attend: float


class Tables(NamedTuple):
    """Costs of joint rounds of 1, 2, ... requests: the rows of `ddsim.policy.joint.JointTable`, one behind another.

    Attributes
    ----------
    step, low, rows : int
        Row u prices a mean context of (low + u) · step tokens; every number of requests has ``rows`` rows.
    starts : int64 [3, running + 2]
        Where the rows of b requests start in ``seconds``, in ``curve`` and its slopes, and in ``share`` and its slopes.
    ar_seconds : float64 [running + 1, rows]
    seconds, curve, curve_ahead, share, share_ahead : float64
    """

    step: int
    low: int
    rows: int
    starts: NDArray[np.int64]
    ar_seconds: Floats
    seconds: Floats
    curve: Floats
    curve_ahead: Floats
    share: Floats
    share_ahead: Floats


class Told(NamedTuple):
    """What happened, in R simulations.

    Attributes
    ----------
    admitted, first, finish : float64 [R, N], seconds: a request leaves the queue, has its first token, has its last
    decoding : float64 [R], seconds in which rounds were run (with parts of prompts beside them)
    prefilling : float64 [R], seconds of passes that only prefilled
    rounds, nodes, shares, tokens : int64 [R]
        Joint rounds; nodes verified in them; requests in them, summed; tokens committed by them.
    largest : int64 [R, running + 1], tokens of the largest round by its number of requests, prompts beside it not counted; 0: no round
    longest : int64 [R, running + 1], the row of `Tables` of the longest mean context, plus 1, by the number of requests
    held : int64 [R], the most tokens of keys and values that were set aside
    """

    admitted: Floats
    first: Floats
    finish: Floats
    decoding: Floats
    prefilling: Floats
    rounds: NDArray[np.int64]
    nodes: NDArray[np.int64]
    shares: NDArray[np.int64]
    tokens: NDArray[np.int64]
    largest: NDArray[np.int64]
    longest: NDArray[np.int64]
    held: NDArray[np.int64]


def room(simulations: int, requests: int, running: int) -> Told:
    """Room for what happens."""
    admitted, first, finish = (np.zeros((simulations, requests)) for _ in range(3))
    rounds, nodes, shares, tokens, held = (np.zeros(simulations, np.int64) for _ in range(5))
    largest, longest = (np.zeros((simulations, running + 1), np.int64) for _ in range(2))
    seconds = np.zeros(simulations), np.zeros(simulations)
    return Told(admitted, first, finish, *seconds, rounds, nodes, shares, tokens, largest, longest, held)


@njit(cache=True, nogil=True)
def row_of(flat, starts, batch, u, rows):  # type: ignore[no-untyped-def]
    """Row u of ``batch`` requests."""
    width = (starts[batch + 1] - starts[batch]) // rows
    first = starts[batch] + u * width
    return flat[first : first + width]


@njit(cache=True, nogil=True)
def admit(now, count, server, requests, told, r):  # type: ignore[no-untyped-def]
    """Let in who has arrived, in order, as long as there is room; the next one's arrival if nobody is there. Returns the time."""
    if count[ADMITTED] == count[DONE]:
        now = max(now, requests.arrival[r, count[ADMITTED]])
    while count[ADMITTED] < requests.arrival.shape[1]:
        i = count[ADMITTED]
        needs = requests.prompt[r, i] + requests.answer[r, i]
        if (
            requests.arrival[r, i] > now
            or count[ADMITTED] - count[DONE] == server.running
            or count[HELD] + needs > server.memory
        ):
            break
        told.admitted[r, i] = now
        count[ADMITTED] += 1
        count[HELD] += needs
        told.held[r] = max(told.held[r], count[HELD])
    return now


@njit(cache=True, nogil=True)
def prompts(count, server, requests, r):  # type: ignore[no-untyped-def]
    """(tokens, seconds, ready, part): what this step prefills of the prompts that wait, what attention takes of it, and where that gets
    `READY` and `PART`."""
    tokens, attended, ready, part = 0, 0.0, count[READY], count[PART]
    while ready < count[ADMITTED]:
        taken = requests.prompt[r, ready] - part
        if tokens + taken > server.budget and (server.chunked or tokens):
            if not server.chunked or tokens == server.budget:
                break
            taken = server.budget - tokens
        attended += taken * (part + (taken - 1) / 2)
        tokens, part = tokens + taken, part + taken
        if part == requests.prompt[r, ready]:
            ready, part = ready + 1, 0
    return tokens, server.attend * attended, ready, part


@njit(cache=True, nogil=True)
def price_row(count, slots, tables):  # type: ignore[no-untyped-def]
    """The row of `Tables` that prices the requests that decode: that of their mean context."""
    length = 0
    for b in range(count[BATCH]):
        length += slots[CONTEXT, b]
    return min(max(-(-length // (tables.step * count[BATCH])) - tables.low, 0), tables.rows - 1)


@njit(cache=True, nogil=True)
def accept(count, slots, budgets, ranks, chain, requests, accepted, left):  # type: ignore[no-untyped-def]
    """Drafted tokens that each request of a round accepts, and tokens that its text goes on for, to ``accepted`` and ``left``."""
    for b in range(count[BATCH]):
        accepted[b] = accepted_of(budgets[b], slots[WHERE, b], ranks, chain, ranks.shape[1])
        left[b] = requests.texts[slots[PIECE, b], 1] - slots[WHERE, b]


@njit(cache=True, nogil=True)
def commit(now, count, slots, accepted, before, requests, told, r):  # type: ignore[no-untyped-def]
    """Move the requests that decode on by what was accepted, and answer those at their ends. Returns the tokens committed."""
    gained, left = 0, 0
    for b in range(count[BATCH]):
        p = slots[WHERE, b]
        piece, i = slots[PIECE, b], slots[REQUEST, b]
        moved = min(accepted[b] + 1, requests.texts[piece, 1] - p)
        older, last = before[b, 0], p
        gained += moved
        p += moved
        if p == requests.texts[piece, 1]:
            piece += 1
            if piece == requests.pieces[r, i + 1]:
                told.finish[r, i] = now
                count[DONE] += 1
                count[HELD] -= requests.prompt[r, i] + requests.answer[r, i]
                continue
            p = requests.texts[piece, 0]
        slots[REQUEST, left], slots[WHERE, left], slots[PIECE, left] = i, p, piece
        slots[CONTEXT, left] = slots[CONTEXT, b] + moved
        before[left, 0], before[left, 1] = last, older
        left += 1
    count[BATCH] = left
    return gained


@njit(cache=True, nogil=True)
def begin_answers(now, ready, part, count, slots, before, requests, told, r):  # type: ignore[no-untyped-def]
    """Give requests whose prefill has ended their first token; those that want more decode from the next round on."""
    for i in range(count[READY], ready):
        told.first[r, i] = now
        if requests.answer[r, i] == 1:
            told.finish[r, i] = now
            count[DONE] += 1
            count[HELD] -= requests.prompt[r, i] + 1
            continue
        b, piece = count[BATCH], requests.pieces[r, i]
        slots[REQUEST, b], slots[WHERE, b], slots[PIECE, b] = i, requests.texts[piece, 0], piece
        slots[CONTEXT, b] = requests.prompt[r, i]
        before[b] = -1
        count[BATCH] += 1
    count[READY], count[PART] = ready, part


@njit(cache=True, nogil=True)
def step_seconds(took, batch, nodes, prompt, attended, server):  # type: ignore[no-untyped-def]
    """Seconds of a joint round beside which ``prompt`` tokens are prefilled: what so many more cost in a pass of that size, and their attention."""
    if prompt:
        took += server.prefill[batch + nodes + prompt] - server.prefill[batch + nodes] + attended
    return took


@njit(cache=True, nogil=True)
def count_round(took, batch, nodes, u, gained, told, r):  # type: ignore[no-untyped-def]
    """Add a joint round to what is told."""
    told.decoding[r] += took
    told.rounds[r] += 1
    told.nodes[r] += nodes
    told.shares[r] += batch
    told.tokens[r] += gained
    told.largest[r, batch] = max(told.largest[r, batch], batch + nodes)
    told.longest[r, batch] = max(told.longest[r, batch], u + 1)


@njit(cache=True, nogil=True)
def open_loop(  # type: ignore[no-untyped-def]
    mode,
    rule,
    price,
    fill,
    width,
    memory,
    start,
    gains,
    ranks,
    nodes,
    chain,
    chain_expected,
    tables,
    server,
    requests,
    told,
    first,
    last,
):
    """Simulations ``first`` to ``last`` of a policy; ``mode``, ``rule``, ``price``, ``fill`` and ``width`` by the number of requests that decode.

    See `ddsim.replay.load.serve_load`. What happened goes to ``told``.
    """
    horizon, widest = ranks.shape[1], 0
    for b in range(1, server.running + 1):
        widest = max(widest, (tables.starts[1, b + 1] - tables.starts[1, b]) // tables.rows)
    for r in range(first, last):
        count, slots = np.zeros(6, np.int64), np.zeros((4, server.running), np.int64)
        budgets, heap = np.zeros(server.running, np.int32), np.zeros(server.running, np.int64)
        key, rate = np.zeros(server.running), np.zeros(server.running)
        order, mean = np.zeros(widest, np.int32), np.zeros(gains.shape[1], np.float32)
        before, left, accepted = (
            np.full((server.running, 2), -1),
            np.zeros(server.running, np.int64),
            np.zeros(server.running, np.int64),
        )
        state, carried = np.zeros(3), start.copy()  # of an online LongRun: see there; of other rules
        now = 0.0
        while count[DONE] < requests.arrival.shape[1]:
            now = admit(now, count, server, requests, told, r)
            prompt, attended, ready, part = prompts(count, server, requests, r)
            batch, gained = count[BATCH], 0
            if batch and (server.chunked or not prompt):
                u = price_row(count, slots, tables)
                seconds = row_of(tables.seconds, tables.starts[0], batch, u, tables.rows)
                curve = row_of(tables.curve, tables.starts[1], batch, u, tables.rows)
                ahead = row_of(tables.curve_ahead, tables.starts[1], batch, u, tables.rows)
                share = row_of(tables.share, tables.starts[2], batch, u, tables.rows)
                share_ahead = row_of(tables.share_ahead, tables.starts[2], batch, u, tables.rows)
                where, at = slots[WHERE, :batch], price[batch]
                if memory > 0 and state[2] == 0:
                    n, expected = decide(
                        mode[batch], EXHAUSTIVE, 0.0, False, width[batch], gains, nodes, chain_expected, where, horizon, seconds,
                        curve, ahead, share, share_ahead, budgets[:batch], order, heap[:batch], key[:batch], rate[:batch], mean,
                        before[:batch], carried,
                    )  # fmt: skip
                    begin(state, expected, curve[n])
                if memory > 0:
                    at = state[0] / state[1]
                n, expected = decide(
                    mode[batch], rule[batch], at, fill[batch], width[batch], gains, nodes, chain_expected, where, horizon, seconds,
                    curve, ahead, share, share_ahead, budgets[:batch], order, heap[:batch], key[:batch], rate[:batch], mean,
                    before[:batch], carried,
                )  # fmt: skip
                took = tables.ar_seconds[batch, u] if n == NO_DRAFT else seconds[n]
                n = max(n, 0)
                took = step_seconds(took, batch, n, prompt, attended, server)
                now += took
                accept(count, slots, budgets, ranks, chain, requests, accepted, left)
                learn(mode[batch], carried, where, left[:batch], budgets[:batch], accepted[:batch], gains)
                gained = commit(now, count, slots, accepted, before, requests, told, r)
                count_round(took, batch, n, u, gained, told, r)
                if memory > 0:
                    track(state, memory, float(gained), took)
            else:
                took = server.prefill[prompt] + attended
                now += took
                told.prefilling[r] += took
            begin_answers(now, ready, part, count, slots, before, requests, told, r)
