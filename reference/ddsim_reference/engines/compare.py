"""`ddsim validate --engine`: what was predicted of an engine beside what it does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import combinations
from multiprocessing import get_context
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
from ddsim_reference.engines.journal import Journal
from ddsim_reference.engines.predict import NOTHING, Prices, Told, drain
from ddsim_reference.limits import MOST_REPEATS, check_range, check_sampling
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import checkpoint_folder, load_drafter, load_target, read_tokenizer
from ddsim_reference.model.config import ModelConfig
from ddsim_reference.model.device import check_device, number_type
from ddsim_reference.model.workloads import Prompt, choose_prompts, encode_all
from ddsim_reference.record import marginals

KIND = "ddsim-engine-validation"
SCHEMA_VERSION = 1
BATCHES = (1, 8, 32)
STATIC = (0, 3, 7, 15)
LONG = 30.0
"""Seconds of a turn of lone prompts from which on it isn't repeated: it has many calls as it is."""
TYPICAL = 8
"""Requests side by side: the exported schedule rests on what was written at the batch nearest to it."""
CANDIDATES = 64
"""Kept of each marginal: chains ask for the best alone."""
MEMORY = 0.45
"""Share of the GPU's memory that the engine takes: the recorder has a copy of the pair beside it."""
DIFFERENT = 0.02
"""Relative difference in tokens a second from which on the order of two Ks is held against the prediction."""

Answers = list[list[int]]


class Recorder:
    """Traces over answers that are given, with a copy of the pair as the engine has it; an answer is recorded once."""

    def __init__(
        self,
        target: str,
        drafter: str,
        device: str,
        dtype: str,
        prompts: Sequence[Sequence[int]],
        about: Sequence[Prompt],
    ) -> None:
        self.prompts, self.about = prompts, about
        kind = number_type(dtype)
        self.config, self.weights, _ = load_target(target, dtype=kind, device=device, with_tokenizer=False)
        self.shape, self.drafter = load_drafter(drafter, dtype=kind, device=device, target=self.weights)
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


class Turns:
    """Turns of calls with all prompts, ``batch`` of them a call, under schedules that have names.

    Schedules take turns call by call, so that what happens on the machine meanwhile falls on all of them. Before a schedule's first
    call at a batch one isn't counted: things compile and load while it drains.
    """

    def __init__(
        self, engine: vllm.Vllm, prompts: Answers, most: int, stop: Sequence[int], journal: Journal | None = None
    ) -> None:
        self.engine, self.prompts, self.most, self.stop, self.journal = engine, prompts, most, stop, journal
        self.found: dict[tuple[int, str], list[tuple[Told, Answers]]] = {}
        self.warm: set[tuple[int, str]] = set()

    def take(self, batch: int, schedules: dict[str, vllm.Ranges]) -> None:
        """One more turn of every schedule."""
        turn = len(self.found.get((batch, next(iter(schedules))), ()))
        label = f"turn {turn} at {batch}: {', '.join(schedules)}"
        kept = None if self.journal is None else self.journal.get(label)
        if kept is None:
            kept = self._decoded(batch, schedules)
            if self.journal is not None:
                kept = self.journal.put(label, kept)
        for name, (took, answers) in kept.items():
            told_again = Told(**took | {"tpot": tuple(took["tpot"])})
            self.found.setdefault((batch, name), []).append((told_again, answers))

    def _decoded(self, batch: int, schedules: dict[str, vllm.Ranges]) -> dict[str, tuple[dict[str, Any], Answers]]:
        groups = [[self.prompts[i] for i in group] for group in groups_of(len(self.prompts), batch)]
        for name, ranges in schedules.items():
            if (batch, name) not in self.warm:
                self.engine.schedule(ranges)
                self.engine.decode(groups[0], self.most if batch > 1 else min(self.most, 24), self.stop)
                self.warm.add((batch, name))
        gc.collect()  # not while it decodes
        calls: dict[str, list[vllm.Call]] = {name: [] for name in schedules}
        for group in groups:
            for name, ranges in schedules.items():
                self.engine.schedule(ranges)
                calls[name].append(self.engine.decode(group, self.most, self.stop))
        return {
            name: (asdict(sum(map(told, made), NOTHING)), [answer for call in made for answer in call.tokens])
            for name, made in calls.items()
        }

    def answers(self, batch: int, name: str) -> Answers:
        """Of the last turn."""
        return self.found[batch, name][-1][1]

    def seconds(self, batch: int) -> float:
        """Of all turns at a batch so far."""
        return sum(took.seconds for (b, _), turns in self.found.items() if b == batch for took, _ in turns)

    def speeds(self, batch: int, name: str) -> list[float]:
        """Tokens a second of every turn."""
        return [one.to_json()["tokens_per_second"] for one, _ in self.found[batch, name]]

    def middle(self, batch: int, name: str) -> Told:
        """The turn of median tokens a second; of two in the middle the slower."""
        speeds = self.speeds(batch, name)
        return self.found[batch, name][int(np.argsort(speeds)[(len(speeds) - 1) // 2])][0]


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
    repeats: int = 4,
    turns: int = 3,
    plain: bool = False,
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
    steps' costs, half of which are measured before it decodes and half after, and on the answers that it wrote at K = 0 at that
    batch: other batches round otherwise, and the answer that takes most rounds tells how long a call is.

    Parameters
    ----------
    engine : {"vllm"}
    target, drafter : str
        Folders in Hugging Face format.
    out : path
        JSON of everything. What is measured meanwhile is kept beside it; a run that was stopped goes on there.
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
        Times that calls are repeated, all Ks in turn; the one of median tokens a second counts. Lone prompts are repeated only if
        they take less than half a minute.
    plain : bool
        Decode without a drafter too, in an engine of its own in another process, before all else.
    tolerance : float, optional
        Largest relative error of tokens a second; ``passed`` tells whether all rows keep it.
    dtype, device : str
        The engine's, and where the recording is made.
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
        second, TPOT), ``turns``: tokens a second of each, ``on_its_text``: the same prediction over the text of that very run,
        ``same_text``: answers equal to those at K = 0. ``order``: pairs of Ks, more than 2 % apart, whose order was predicted right,
        by batch. ``schedule_over_best``: the exported schedule's measured tokens a second over the best K's, by batch;
        ``schedule_over_block``: over the whole block's. ``without_drafter``: what an engine without one measured, by batch.
        ``notes``: what else should be known.

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
    check_range("repeats", repeats, 2, MOST_REPEATS, ", half of them before decoding")
    if max_new_tokens < 2 or min(batches, default=0) < 1 or turns < 1:
        raise DdsimError("validate: max_new_tokens must be at least 2, batches and turns at least 1")
    config, shape = vllm.read_pair(target, drafter)
    static = sorted({k for k in STATIC if k <= shape.horizon} | {0, shape.horizon} if ks is None else {0, *ks})
    measured_ks = costs.drafted(shape.horizon, [*static, *costs.drafted(shape.horizon)])
    contexts = costs.check_contexts(contexts, config)
    chosen = choose_prompts(prompts, limit)
    ids = _encode(target, chosen, config, max_new_tokens, encoded)
    most = max(batches)
    sizes = [b for b in costs.BATCHES if b < most] + [most] if profile_batches is None else list(profile_batches)
    longest = max(max(map(len, ids)) + max_new_tokens, max(contexts) + costs.longest(measured_ks))
    about = costs.described(target, drafter, dtype)
    said = {
        "kind": "validation", "pair": about | {"measured": ""}, "prompts": ids, "max_new_tokens": max_new_tokens,
        "ks": measured_ks, "batches": sizes, "contexts": contexts, "dtype": dtype, "seed": seed,
    }  # fmt: skip
    journal = Journal(out, said)
    without = None
    if plain:
        without = journal.get("without a drafter")
        if without is None:
            options = {"length": longest, "dtype": dtype, "seed": seed}
            without = apart(
                plain_rows, target, ids, list(batches), turns, max_new_tokens, config.eos_token_ids, options
            )
            journal.put("without a drafter", without)
        progress("decoded without a drafter")
    running = started or vllm.start(
        target, drafter, block=shape.horizon, ks=measured_ks, seats=max(sizes),
        length=min(longest, config.max_position_embeddings), dtype=dtype, seed=seed, memory=MEMORY,
    )  # fmt: skip
    progress(f"started {running.title} {running.version}")
    sweeps = costs.Sweeps(running, batches=sizes, contexts=contexts, seed=seed, journal=journal)
    for _ in range((repeats + 1) // 2):
        sweeps.sweep()
        progress(f"profiled, sweep {sweeps.done}")
    before = fit_cost(costs.profile_of(running, sweeps.samples(), about | sweeps.how()))

    every: dict[str, vllm.Ranges] = {str(k): [(1, running.seats, k)] for k in static}
    decoded = Turns(running, ids, max_new_tokens, config.eos_token_ids, journal)
    for batch in batches:
        decoded.take(batch, {"0": every["0"]})
    recorder = Recorder(target, drafter, device, dtype, ids, chosen)
    recorded = {batch: recorder(decoded.answers(batch, "0")) for batch in batches}
    trace = recorded[min(batches, key=lambda b: abs(b - TYPICAL))]
    progress(f"recorded over {len(trace)} tokens that it wrote")
    ranges = schedule_ranges(best_chains(trace, before, requests=min(most, max(sizes))))
    every["schedule"] = ranges
    for batch in batches:
        for turn in range(turns):
            if turn and batch == 1 and decoded.seconds(batch) > LONG:
                break
            decoded.take(batch, {name: one for name, one in every.items() if (turn, name) != (0, "0")})
            progress(f"decoded at batch {batch}, turn {turn + 1}")
    for _ in range(repeats // 2):
        sweeps.sweep()
        progress(f"profiled, sweep {sweeps.done}")

    profile = costs.profile_of(running, sweeps.samples(), about | sweeps.how())
    cost = fit_cost(profile)
    price = Prices(cost, shape.horizon)
    rows = []
    simulated: dict[str, Any] = {"lag": running.lag, "most": max_new_tokens}
    with cost.one_warning():
        for batch in batches:
            for name, one in every.items():
                answers = decoded.answers(batch, name)
                expected = predicted(recorded[batch], price, one, batch, **simulated)
                own = predicted(recorder(answers), price, one, batch, **simulated)
                measured = decoded.middle(batch, name)
                row = row_of(batch, name, expected, measured, own, answers, decoded.answers(batch, "0"))
                rows.append(row | {"turns": decoded.speeds(batch, name)})
            progress(f"predicted at batch {batch}")
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "label": f"{about['target']} in {running.title} {running.version}",
        "provenance": profile.provenance
        | {"trace": trace.fingerprint, "prompts": len(ids), "max_new_tokens": max_new_tokens, "turns": turns},
        "cost": cost.explain(),
        "schedule": [list(one) for one in ranges],
        "rows": rows,
        **summary(rows, shape.horizon),
        "without_drafter": without,
        "notes": [note for note in (costs.host_bound(profile.provenance),) if note],
        "profile": profile.to_json(),
    }
    if tolerance is not None:
        document |= {"tolerance": tolerance, "passed": document["tokens_per_second_error"]["worst"] <= tolerance}
    write_document(out, document)
    journal.remove()
    running.close()
    if plot_path is not None:
        draw(document, plot_path)
    return document


def plain_rows(
    target: str,
    ids: Answers,
    batches: Sequence[int],
    turns: int,
    most: int,
    stop: Sequence[int],
    options: dict[str, Any],
    started: vllm.Vllm | None = None,
) -> list[dict[str, Any]]:
    """What an engine without a drafter measures, a row a batch."""
    engine = started or vllm.start(target, None, block=0, ks=(0,), seats=max(batches), **options)
    decoded = Turns(engine, ids, most, stop)
    for batch in batches:
        for turn in range(turns):
            if turn and batch == 1 and decoded.seconds(batch) > LONG:
                break
            decoded.take(batch, {"0": [(1, max(batches), 0)]})
    rows = [
        {"batch": batch, "measured": decoded.middle(batch, "0").to_json(), "turns": decoded.speeds(batch, "0")}
        for batch in batches
    ]
    engine.close()
    return rows


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What ``work`` returns, from a process of its own: what it holds of the GPU's memory is free afterwards."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *given).result()
    except BrokenProcessPool:
        raise DdsimError(
            "engine: its process without a drafter was ended from outside; it may have run out of memory"
        ) from None


def row_of(
    batch: int, name: str, expected: Told, measured: Told, own: Told, answers: Answers, plain: Answers
) -> dict[str, Any]:
    """A batch and K: predicted beside measured."""
    before, after, text = expected.to_json(), measured.to_json(), own.to_json()
    return {
        "batch": batch,
        "k": name,
        "predicted": before,
        "measured": after,
        "on_its_text": text,
        "tokens_per_second_error": before["tokens_per_second"] / after["tokens_per_second"] - 1,
        "error_on_its_text": text["tokens_per_second"] / after["tokens_per_second"] - 1,
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
