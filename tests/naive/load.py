"""A plain twin of the server that requests arrive at: lists of requests, every sum taken anew."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from ddsim.trace.rounds import Positions


def open_loop(
    positions: Positions,
    wanted: list[dict[str, Any]],
    running: int,
    memory: float,
    chunk: int | None,
    whole: int,
    prefill: Any,
    attend: float,
    costs: Any,
    choose: Any,
    padded: bool,
) -> dict[str, Any]:
    """One simulation.

    ``wanted``: arrival, prompt, answer and texts (first and last positions, one text after another) of each request, in order.
    ``chunk``: tokens of a part of a prompt; None: whole prompts in passes of up to ``whole`` tokens. ``attend``: seconds a prompt token
    and token before it. ``costs(requests, mean context)``: what
    rounds of 0, 1, ... nodes cost, and one without a draft. ``choose(gains [b, N], mean context)``: budgets; None: no draft, a number: chains.
    """
    waiting = [dict(one, number=i, prefilled=0) for i, one in enumerate(wanted)]
    prefilling: list[dict[str, Any]] = []
    decoding: list[dict[str, Any]] = []
    done: dict[int, dict[str, Any]] = {}
    now = 0.0
    told = {"rounds": 0, "nodes": 0, "shares": 0, "tokens": 0, "decoding": 0.0, "prefilling": 0.0, "held": 0}
    while len(done) < len(wanted):
        if not prefilling and not decoding:
            now = max(now, waiting[0]["arrival"])
        while waiting and waiting[0]["arrival"] <= now and len(prefilling + decoding) < running:
            held = sum(one["prompt"] + one["answer"] for one in [*prefilling, *decoding, waiting[0]])
            if held > memory:
                break
            told["held"] = max(told["held"], held)
            prefilling.append(waiting.pop(0) | {"admitted": now})
        parts: list[tuple[dict[str, Any], int]] = []
        for one in prefilling:
            left, used = one["prompt"] - one["prefilled"], sum(tokens for _, tokens in parts)
            if chunk is None and parts and used + left > whole:
                break
            parts.append((one, left if chunk is None else min(left, chunk - used)))
        prompt = sum(tokens for _, tokens in parts)
        # a part's first token attends to what stands before it, the last one to all but itself
        attended = attend * float(
            sum(Fraction(sum(range(one["prefilled"], one["prefilled"] + tokens))) for one, tokens in parts)
        )
        moves: list[tuple[dict[str, Any], int]] = []
        if decoding and (chunk is not None or not prompt):
            b = len(decoding)
            context = Fraction(sum(one["prompt"] + one["done"] for one in decoding), b)
            seconds, alone = costs(b, context)
            budgets = choose(positions.gains[[one["p"] for one in decoding]], context)  # type: ignore[index]
            if budgets is None:
                nodes, took = 0, alone
            elif isinstance(budgets, int):
                nodes = b * budgets
                took = seconds[nodes]
            else:
                exist = [min(n, int(positions.nodes[one["p"]])) for n, one in zip(budgets, decoding, strict=True)]
                nodes = sum(budgets) if padded else sum(exist)
                took = seconds[nodes]
            if prompt:
                took += prefill[b + nodes + prompt] - prefill[b + nodes] + attended
            now += took
            told["decoding"] += took
            told["rounds"] += 1
            told["nodes"] += nodes
            told["shares"] += b
            for i, one in enumerate(decoding):
                accepted = 0
                if isinstance(budgets, int):
                    accepted = min(int(positions.chain[one["p"]]), budgets)
                elif budgets is not None:
                    while accepted < positions.horizon and positions.ranks[one["p"]][accepted] <= budgets[i]:  # type: ignore[index]
                        accepted += 1
                moves.append((one, min(accepted + 1, one["left"][0][1] - one["p"])))
        else:
            took = prefill[prompt] + attended
            now += took
            told["prefilling"] += took
        for one, tokens in moves:
            told["tokens"] += tokens
            one["done"] += tokens
            one["p"] += tokens
            if one["p"] == one["left"][0][1]:
                one["left"] = one["left"][1:]
                if one["left"]:
                    one["p"] = one["left"][0][0]
                else:
                    done[one["number"]] = one | {"finish": now}
        decoding = [one for one in decoding if one["left"]]
        for one, tokens in parts:
            one["prefilled"] += tokens
        for one in [one for one in prefilling if one["prefilled"] == one["prompt"]]:
            prefilling.remove(one)
            one |= {"first": now, "done": 0, "left": one["texts"]}
            if one["texts"]:
                decoding.append(one | {"p": one["texts"][0][0]})
            else:
                done[one["number"]] = one | {"finish": now}
    order = [done[i] for i in range(len(wanted))]
    return told | {name: [one[name] for one in order] for name in ("admitted", "first", "finish")}


def row(context: Fraction, step: int, low: int, rows: int) -> int:
    """The row of a cost table that prices a mean context."""
    return min(max(math.ceil(context / step) - low, 0), rows - 1)
