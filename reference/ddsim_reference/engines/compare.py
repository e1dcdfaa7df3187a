"""`ddsim validate --engine`: what was predicted of an engine beside what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ddsim.cost.model import fit_cost
from ddsim.errors import DdsimError
from ddsim.files.documents import write_document
from ddsim.policy.rules import Schedule
from ddsim.replay.engines import best_chains, schedule_ranges
from ddsim.trace.cache import positions_of
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace
from ddsim.view import checks as _checks
from ddsim.view import style as _style
from ddsim_reference.engines import costs, vllm
from ddsim_reference.engines.predict import NOTHING, Prices, Told, drain
from ddsim_reference.limits import check_sampling
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import checkpoint_folder, load_drafter, load_target, read_tokenizer
from ddsim_reference.model.config import ModelConfig
from ddsim_reference.model.device import check_device
from ddsim_reference.model.workloads import Prompt, choose_prompts, encode_all
from ddsim_reference.record import marginals

KIND = "ddsim-engine-validation"
SCHEMA_VERSION = 1
BATCHES = (1, 8, 32)
STATIC = (0, 3, 7, 15)
CANDIDATES = 64
"""Kept of each marginal: chains ask for the best alone."""
MEMORY = 0.45
"""Share of the GPU's memory that the engine takes: the recorder has a copy of the pair beside it."""
DIFFERENT = 0.02
"""Relative difference in tokens a second from which on the order of two Ks is held against the prediction."""

Answers = list[list[int]]


class Recorder:
    """Traces over answers that are given, with a float32 copy of the pair; an answer is recorded once."""

    def __init__(
        self, target: str, drafter: str, device: str, prompts: Sequence[Sequence[int]], about: Sequence[Prompt]
    ) -> None:
        self.prompts, self.about = prompts, about
        self.config, self.weights, _ = load_target(target, device=device, with_tokenizer=False)
        self.shape, self.drafter = load_drafter(drafter, device=device, target=self.weights)
        self.layers = forward.target_layers(self.config, self.weights)
        self.known: dict[tuple[int, tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, answers: Answers) -> Positions:
        """What the drafter proposes over these answers, one of each prompt."""
        rows = []
        for i, answer in enumerate(answers):
            key = i, tuple(answer)
            if key not in self.known:
                self.known[key] = marginals(
                    self.config, self.weights, self.layers, self.shape, self.drafter, self.prompts[i], answer,
                    candidates=CANDIDATES,
                )  # fmt: skip
            rows.append(self.known[key])
        trace = Trace.from_arrays(
            [np.array(answer) for answer in answers], [ids[:-1] for _, ids in rows], [values[:-1] for values, _ in rows],
            workload=[p.workload for p in self.about], prompt_id=[p.id for p in self.about],
            context0=[len(ids) for ids in self.prompts], max_budget=min(CANDIDATES, self.config.vocab_size),
            vocab_size=self.config.vocab_size,
        )  # fmt: skip
        positions = positions_of(trace, cache=False)
        return positions.block(0, positions.sequences)


def told(call: vllm.Call) -> Told:
    """A call's figures, from the step on in which the last prompt gave its first token."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for at, gained in call.steps:
        for i in gained:
            first.setdefault(i, at)
            last[i] = at
    begin = max(first.values())
    after = [(at, gained) for at, gained in call.steps if at > begin]
    return Told(
        tokens=sum(n for _, gained in after for n in gained.values()),
        rounds=sum(len(gained) for _, gained in after),
        steps=len(after),
        seconds=call.steps[-1][0] - begin,
        tpot=tuple((last[i] - first[i]) / (len(t) - 1) for i, t in enumerate(call.tokens) if len(t) > 1),
    )


def groups_of(count: int, batch: int) -> list[list[int]]:
    """Prompts in turn, ``batch`` a call.

    Examples
    --------
    >>> groups_of(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    return [list(range(i, min(i + batch, count))) for i in range(0, count, batch)]


def predicted(positions: Positions, price: Prices, ranges: vllm.Ranges, batch: int, *, lag: int, most: int) -> Told:
    """The same calls, simulated."""
    k_of = Schedule([(a, b, k) for a, b, k in ranges]).k
    calls = [
        drain(positions, price, group, k_of, lag=lag, most=most) for group in groups_of(positions.sequences, batch)
    ]
    return sum(calls, NOTHING)


def validate_engine(
    *,
    engine: str,
    target: str,
    drafter: str,
    out: str | Path,
    prompts: Sequence[str] = ("all",),
    limit: int | None = 8,
    max_new_tokens: int = 96,
    batches: Sequence[int] = BATCHES,
    ks: Sequence[int] | None = None,
    profile_batches: Sequence[int] | None = None,
    contexts: Sequence[int] = (128, 512),
    repeats: int = 2,
    turns: int = 2,
    tolerance: float | None = None,
    dtype: str = "bfloat16",
    device: str = "cuda",
    seed: int = 0,
    encoded: dict[tuple[str, str], list[int]] | None = None,
    plot_path: str | Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
    started: vllm.Vllm | None = None,
) -> dict[str, Any]:
    """Hold predictions against an engine: profile it, record over what it wrote, predict, and let it decode with every K.

    The engine decodes ``batch`` prompts a call; the next call begins when the last answer has ended. Predictions rest on its
    steps' costs and on the answers that it wrote at K = 0.

    Parameters
    ----------
    engine : {"vllm"}
    target, drafter : str
        Folders in Hugging Face format.
    out : path
        JSON of everything.
    prompts, limit, max_new_tokens
        Workloads or JSONL files, at most so many prompts of each workload, and the longest answer.
    batches : sequence of int
        Prompts a call.
    ks : sequence of int, optional
        K of every request, as a schedule of one range; 0, 3, 7, 15 as far as the block goes by default. The schedule that
        ``ddsim export`` makes of the recording and the costs is decoded with too.
    profile_batches, contexts, repeats
        Of the profile.
    turns : int
        Times that calls of more than one prompt are repeated.
    tolerance : float, optional
        Largest relative error of tokens a second; ``passed`` tells whether all rows keep it.
    dtype, device : str
        The engine's, and where the recording is made, in float32.
    encoded : dict, optional
        Token ids by (workload, prompt id), for machines without the tokenizer.
    plot_path : path, optional
        Picture of predicted against measured.
    started : Vllm, optional
        An engine that runs already.

    Returns
    -------
    dict
        What ``out`` holds. ``rows``: a batch and K each, predicted beside measured (tokens a round, milliseconds a step, tokens a
        second, TPOT), ``on_its_text``: the same prediction over the text of that very run, ``same_text``: answers equal to those at
        K = 0. ``order``: pairs of Ks, more than 2 % apart, whose order was predicted right, by batch. ``schedule_over_best``: the
        exported schedule's measured tokens a second over the best K's, by batch; ``schedule_over_block``: over the whole block's.

    Raises
    ------
    DdsimError
        The engine isn't installed or of a known version, or a model, prompt or option doesn't fit.
    """
    costs.check_engine(engine)
    if started is None:
        vllm.known_version()
        check_device(torch.device(device))
    check_sampling(max_new_tokens=max_new_tokens, temperature=0.0, seed=seed, batch=max(batches, default=0))
    if max_new_tokens < 2 or min(batches, default=0) < 1 or turns < 1:
        raise DdsimError("validate: max_new_tokens must be at least 2, batches and turns at least 1")
    config, shape = vllm.read_pair(target, drafter)
    static = sorted({k for k in STATIC if k <= shape.horizon} | {0, shape.horizon} if ks is None else {0, *ks})
    measured_ks = costs.drafted(shape.horizon, [*static, *costs.drafted(shape.horizon)])
    chosen = choose_prompts(prompts, limit)
    ids = _encode(target, chosen, config, max_new_tokens, encoded)
    most = max(batches)
    sizes = [b for b in costs.BATCHES if b < most] + [most] if profile_batches is None else list(profile_batches)
    longest = max(max(map(len, ids)) + max_new_tokens, max(contexts) + costs.longest(repeats, measured_ks))
    running = started or vllm.start(
        target, drafter, block=shape.horizon, ks=measured_ks, seats=max(sizes), length=longest, dtype=dtype, seed=seed,
        memory=MEMORY,
    )  # fmt: skip
    progress(f"started {running.title} {running.version}")
    samples, how = costs.measure(running, batches=sizes, contexts=contexts, repeats=repeats, seed=seed)
    profile = costs.profile_of(running, samples, costs.described(target, drafter, dtype) | how)
    cost = fit_cost(profile)
    price = Prices(cost)
    progress("profiled")

    def run(batch: int, ranges: vllm.Ranges) -> tuple[Told, Answers]:
        """Decode everything; the first call, in which things compile, doesn't count."""
        running.schedule(ranges)
        groups = groups_of(len(ids), batch)
        running.decode([ids[i] for i in groups[0]], min(max_new_tokens, 24), config.eos_token_ids)
        calls: list[Told] = []
        answers: Answers = []
        for _ in range(turns if batch > 1 else 1):
            answers = []
            for group in groups:
                call = running.decode([ids[i] for i in group], max_new_tokens, config.eos_token_ids)
                calls.append(told(call))
                answers += call.tokens
        return sum(calls, NOTHING), answers

    every: dict[int, vllm.Ranges] = {k: [(1, running.seats, k)] for k in static}
    decoded = {(batch, "0"): run(batch, every[0]) for batch in batches}
    recorder = Recorder(target, drafter, device, ids, chosen)
    plain = decoded[min(batches, key=lambda b: abs(b - 8)), "0"][1]
    recorded = recorder(plain)
    progress(f"recorded over {len(recorded)} tokens that it wrote")
    choices = best_chains(recorded, cost, requests=min(most, max(sizes)))
    ranges = schedule_ranges(choices)
    names: dict[str, vllm.Ranges] = {str(k): one for k, one in every.items()} | {"schedule": ranges}
    rows = []
    for batch in batches:
        for name, one in names.items():
            if (batch, name) not in decoded:
                decoded[batch, name] = run(batch, one)
            measured, answers = decoded[batch, name]
            options: dict[str, Any] = {"lag": running.lag, "most": max_new_tokens}
            before = predicted(recorded, price, one, batch, **options).to_json()
            own = predicted(recorder(answers), price, one, batch, **options).to_json()
            rows.append(row_of(batch, name, before, measured.to_json(), own, answers, plain))
        progress(f"decoded at batch {batch}")
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "label": f"{Path(target).name} in {running.title} {running.version}",
        "provenance": profile.provenance
        | {"trace": recorded.fingerprint, "prompts": len(ids), "max_new_tokens": max_new_tokens},
        "cost": cost.explain(),
        "schedule": [list(one) for one in ranges],
        "rows": rows,
        **summary(rows, shape.horizon),
        "profile": profile.to_json(),
    }
    if tolerance is not None:
        document |= {"tolerance": tolerance, "passed": document["tokens_per_second_error"]["worst"] <= tolerance}
    write_document(out, document)
    if plot_path is not None:
        draw(document, plot_path)
    return document


def row_of(
    batch: int, name: str, before: dict[str, float], measured: dict[str, float], own: dict[str, float],
    answers: Answers, plain: Answers,
) -> dict[str, Any]:  # fmt: skip
    """A batch and K: predicted beside measured."""
    return {
        "batch": batch,
        "k": name,
        "predicted": before,
        "measured": measured,
        "on_its_text": own,
        "tokens_per_second_error": before["tokens_per_second"] / measured["tokens_per_second"] - 1,
        "error_on_its_text": own["tokens_per_second"] / measured["tokens_per_second"] - 1,
        "answers": len(answers),
        "same_text": sum(a == b for a, b in zip(answers, plain, strict=True)),
    }


def summary(rows: Sequence[dict[str, Any]], block: int) -> dict[str, Any]:
    """Errors, orders, and what the exported schedule is worth."""
    errors = [abs(row["tokens_per_second_error"]) for row in rows]
    order, over_best, over_block = [], [], []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        of = {row["k"]: row for row in rows if row["batch"] == batch}
        static = {name: row for name, row in of.items() if name != "schedule"}
        right = asked = 0
        for a, b in combinations(static.values(), 2):
            x, y = (row["measured"]["tokens_per_second"] for row in (a, b))
            if abs(x - y) > DIFFERENT * max(x, y):
                asked += 1
                u, v = (row["predicted"]["tokens_per_second"] for row in (a, b))
                right += (x > y) == (u > v)
        order.append({"batch": batch, "pairs": asked, "right": right})
        speeds = {name: row["measured"]["tokens_per_second"] for name, row in of.items()}
        best = max(static, key=speeds.__getitem__)
        over_best.append({"batch": batch, "best_k": int(best), "ratio": speeds["schedule"] / speeds[best]})
        if str(block) in speeds:
            over_block.append({"batch": batch, "ratio": speeds["schedule"] / speeds[str(block)]})
    return {
        "tokens_per_second_error": {"mean": float(np.mean(errors)), "worst": max(errors)},
        "order": order,
        "schedule_over_best": over_best,
        "schedule_over_block": over_block,
    }


def draw(document: dict[str, Any], path: str | Path) -> None:
    """Predicted against measured tokens a second, a point a batch and K."""
    table = pd.DataFrame(
        {
            "group": f"batch {row['batch']}",
            "predicted": row["predicted"]["tokens_per_second"],
            "measured": row["measured"]["tokens_per_second"],
        }
        for row in document["rows"]
    )
    _style.save_figure(_checks.predicted_measured(table), path)


def _encode(
    target: str,
    chosen: Sequence[Prompt],
    config: ModelConfig,
    most: int,
    encoded: dict[tuple[str, str], list[int]] | None,
) -> Answers:
    if encoded is not None:
        return [encoded[p.workload, p.id] for p in chosen]
    return encode_all(read_tokenizer(checkpoint_folder(target)), chosen, config, most)
