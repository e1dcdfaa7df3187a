"""`ddsim validate`: real prompts decoded with every policy on a device, beside what replay predicted for the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddsim.cost.model import CostModel, fit_cost, read_costs
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.files.documents import write_document
from ddsim.policy.contract import Policy, is_autoregressive
from ddsim.policy.parse import policies_of
from ddsim.policy.rules import Autoregressive, BestFixed, CaDDTree, DDTree, DFlash, LongRun, RoundRatio
from ddsim.replay.replay import measured_budget
from ddsim.text import distinct
from ddsim.trace.trace import Trace
from ddsim.view import checks as _checks
from ddsim.view import style as _style
from ddsim_reference import comparison
from ddsim_reference.decode import Decoded, decode
from ddsim_reference.engine.buckets import BUCKETS
from ddsim_reference.engine.engine import Engine
from ddsim_reference.limits import check_sampling
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target
from ddsim_reference.model.config import Weights
from ddsim_reference.model.device import check_device, device_name, number_type
from ddsim_reference.model.fields import read_json
from ddsim_reference.model.widen import SHAPES, widened
from ddsim_reference.model.workloads import choose_prompts, encode_all
from ddsim_reference.profile import (
    clocks,
    copy_bandwidth,
    host_seconds,
    matmul_rate,
    measure,
    measure_prefill,
    profile_of,
    profiled_tokens,
)
from ddsim_reference.record import head_provenance

KIND = "ddsim-validation"
SCHEMA_VERSION = 1


def default_policies() -> list[Policy]:
    """What is validated by default; budgets are one less than a bucket, since with the root they fill it."""
    fixed = [DDTree(n) for n in (15, 63, 255)]
    return [Autoregressive(), DFlash(), *fixed, CaDDTree(), RoundRatio(), LongRun(), BestFixed()]


def engine_drafts(
    engine: Engine, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the engine itself drafts at every position of an answer.

    Prompt and answer are read once; then every position is drafted from, the last one first, since a draft writes its block's keys over
    those of later tokens. In the engine's invariant passes that is what it drafts while it decodes, bit by bit.

    Returns
    -------
    logprobs, token_ids : float32 and int32 ndarray [len(answer) - 1, ...]
        As `Engine.drafted` of one request.
    margins : float32 ndarray [len(answer) - 1]
        By how much the target's best next token leads the second, in nats.
    """
    engine.set_temperature(0.0)  # the answer says which token comes next
    engine.set_context(0)
    engine.prefill(0, prompt)
    margins: list[np.ndarray] = []
    for first in range(0, len(answer) - 1, engine.max_tokens):
        part = answer[first : min(first + engine.max_tokens, len(answer) - 1)]
        engine.prefill(0, part, len(prompt) + first)
        best, second = engine.logits[: len(part)].topk(2).values.T.cpu().numpy()
        margins.append(best - second)
    found = []
    for position in reversed(range(len(answer) - 1)):
        engine.set_context(len(prompt) + position)
        engine.set_root(0, answer[position])
        engine.draft()
        engine.wait()
        found.append([x[0].copy() for x in engine.drafted()])
    logprobs, ids = (np.stack(column[::-1]) for column in zip(*found, strict=True))
    return logprobs, ids, np.concatenate(margins)


def validate(
    *,
    target: str,
    drafter: str,
    out: str | Path,
    widen: str | None = None,
    prompts: Sequence[str] = ("all",),
    policies: Sequence[str | Policy] | None = None,
    limit: int | None = 4,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    profile: str | Path | None = None,
    contexts: Sequence[int] = (128, 256, 512, 1024),
    repeats: int = 5,
    largest: int = 512,
    eager_budget: int | None = None,
    tolerance: float | None = None,
    device: str = "cuda",
    dtype: str = "bfloat16",
    seed: int = 0,
    head: bool = True,
    encoded: dict[tuple[str, str], list[int]] | None = None,
    plot_path: str | Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Hold predictions against hardware: profile, record, replay and decode in one run, one request at a time.

    The autoregressive text is decoded first, and the decoder itself records what it drafts at each of its positions. From that and
    from the costs comes every prediction, which is written before another policy decodes a text.

    Parameters
    ----------
    target, drafter : str
        As `load_target` and `load_drafter` take them.
    out : path
        JSON of everything, written anew whenever a policy has decoded a workload.
    widen : str, optional
        A shape ("qwen3-4b", "qwen3-8b"): the pair keeps its function at that shape's cost.
    prompts : sequence of str
        Workloads or JSONL files; at most ``limit`` of each workload.
    policies : sequence of str or Policy
        Names as `ddsim.parse_policy` reads them; AR must be among them. Default: `default_policies`.
    max_new_tokens : int
    temperature : float
        0 is greedy. Above it every policy decodes twice: with the recording's dice, which make the same text, and with others, whose
        rounds are compared as distributions.
    profile : path, optional
        Costs: a profile or a fitted cost model of this engine. By default it is profiled here, in the same process.
    contexts, repeats, largest : sequence of int, int, int
        Of the profile: committed tokens, sweeps, and the largest budget.
    eager_budget : int, optional
        Also run the published kind of loop (eager, a dense mask and a Python heap a round) with trees of so many nodes.
    tolerance : float, optional
        Largest relative error of tokens a second; the result's ``passed`` tells whether all policies and workloads keep it.
    head : bool
        Draft lattices if the drafter has a head; otherwise its marginals.
    encoded : dict, optional
        Token ids by (workload, prompt id), for machines without the tokenizer.
    plot_path : path, optional
        Picture of predicted against measured.
    progress : callable
        Called with a line now and then.

    Returns
    -------
    dict
        What ``out`` holds. ``rows``: a policy and workload each, predicted beside measured, as `comparison.rows` says; ``inside``: how many
        measured values lie in their prediction's interval. ``cost_error`` is the cost model's alone, its seconds for the very
        rounds that were decoded against those measured. ``parts_ms_per_round``, and ``rule_ms_per_round``: what a policy's budgets and
        trees take on the host beyond those of a fixed tree, which predictions pay. ``first_token``: seconds to it, a row a workload
        (`comparison.first_tokens`). ``agreement``: answers with the text of the
        autoregressive one, and those of them with the rounds of the replay; ``departures``: where other texts leave it, and how near a
        tie the target was there. Above temperature 0 ``other_dice``: ``rows``, ``inside`` and ``lengths`` (`comparison.lengths`) of
        the other texts. Also ``cost``, ``profile`` and ``provenance``. Seconds unless a name says otherwise.

    Raises
    ------
    DdsimError
        Models, prompts, costs or options that don't fit, or no GPU.
    """
    rules = policies_of(default_policies() if policies is None else policies)
    for rule in rules:
        if rule.hindsight:
            raise DdsimError(f"validate: {rule.name} is known after a text only, so it can't be decoded")
    ar = next((rule for rule in rules if is_autoregressive(rule)), None)
    if ar is None:
        raise DdsimError("validate: AR must be among the policies; speedups and the recorded text are its")
    for rule in rules:
        if rule.fixed is not None and rule.fixed > largest:
            raise DdsimError(f"validate: {rule.name} has a larger budget than max_budget {largest}; raise that")
    called = distinct([rule.name for rule in rules])
    plain = called[rules.index(ar)]
    if widen is not None and widen not in SHAPES:
        raise DdsimError(f"widen {widen!r}: unknown shape; use one of {', '.join(SHAPES)}")
    if temperature > 0 and eager_budget is not None:
        raise DdsimError("validate: the published loop is greedy; leave out eager_budget above temperature 0")
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch=1)
    given = None if profile is None else _given_costs(profile, temperature, largest)
    check_device(torch.device(device))
    kind = number_type(dtype)
    config, weights, tokenizer = load_target(target, dtype=kind, device=device, with_tokenizer=encoded is None)
    shape, drafter_weights = load_drafter(drafter, dtype=kind, device=device, target=weights)
    draft_head = load_head(drafter, shape, dtype=kind, device=device) if head else None
    chosen = choose_prompts(prompts, limit)
    if encoded is None:
        ids = encode_all(tokenizer, chosen, config, max_new_tokens)
    else:
        ids = [encoded[p.workload, p.id] for p in chosen]
    label = _label(target)
    if widen is not None:
        config, weights, shape, drafter_weights, draft_head = widened(
            config, weights, shape, drafter_weights, draft_head, widen, ids[:16]
        )
        label += f" text at {widen} cost"
    sizes = BUCKETS if given is None or given.buckets is None else given.buckets
    engine = Engine(
        config, weights, shape, drafter_weights, draft_head, device=device,
        max_context=max(*contexts, max(map(len, ids)) + max_new_tokens) + 64,
        max_tokens=largest + 1 if given is None else next((b for b in sizes if b > largest), largest + 1), buckets=sizes,
    )  # fmt: skip
    progress(f"loaded {label}: {len(chosen)} prompts")

    provenance: dict[str, Any] = {
        "target": label, "drafter": drafter, "device": device_name(device), "dtype": dtype, "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"), "seed": seed,
    }  # fmt: skip
    if draft_head is not None:
        provenance |= head_provenance(drafter, draft_head[0]) | {"lattice_width": engine.candidates}
    if given is None:
        bandwidth, rate = copy_bandwidth(engine.device), matmul_rate(engine.device, kind)
        tokens = [m for m in profiled_tokens(engine, largest + 1) if m >= 1]
        found = measure(engine, tokens=tokens, contexts=contexts, repeats=repeats, seed=seed, temperature=temperature)
        host = host_seconds(engine, found, seed=seed, temperature=temperature)
        lengths = {*map(len, ids)}
        prompts_of = {min(lengths), max(lengths), *(m for m in tokens if min(lengths) < m < max(lengths))}
        found |= measure_prefill(engine, [(m, 0) for m in sorted(prompts_of)], repeats=-(-repeats // 2), seed=seed)
        about = provenance | ({"temperature": temperature} if temperature else {})
        own = profile_of(engine, found, host, about, bandwidth, rate)
        cost = fit_cost(own)
        measured: dict[str, Any] = {"bandwidth_bytes_per_s": bandwidth, "flops_per_s": rate, "profile": own.to_json()}
        progress("profiled")
    else:
        assert profile is not None
        cost = given
        measured = {"costs_from": {"file": Path(profile).name, "provenance": cost.provenance}}
        # Captures and compiles; what it takes is thrown away.
        measure(engine, tokens=engine.sizes, contexts=[min(contexts)], repeats=1, seed=seed, temperature=temperature)

    names = [p.id for p in chosen]

    def run(policy: Policy, which: Sequence[int], *, dice: int = seed, timings: bool = False) -> list[Decoded]:
        return decode(
            engine, [ids[i] for i in which], policy, cost, max_new_tokens=max_new_tokens, seed=dice,
            prompt_ids=[names[i] for i in which], timings=timings, temperature=temperature,
            max_budget=min(largest, engine.largest_tree),
        )  # fmt: skip

    run(ar, [0])  # captures
    alone = run(ar, range(len(chosen)))
    keep = [i for i in range(len(chosen)) if len(alone[i].tokens) >= 2]
    if not keep:
        raise DdsimError("validate: every answer ends with its first token, so there is no round to compare")
    progress(f"decoded {plain}")
    pairs = [engine_drafts(engine, ids[i], alone[i].tokens) for i in keep]
    texts, found_ids = [np.array(alone[i].tokens) for i in keep], [p[1] for p in pairs]
    about = {
        "workload": [chosen[i].workload for i in keep],
        "prompt_id": [names[i] for i in keep],
        "context0": [len(ids[i]) for i in keep],
        "temperature": temperature,
        "max_budget": min(largest, engine.largest_tree),
        "vocab_size": config.vocab_size,
        "provenance": provenance,
    }
    if draft_head is None:
        trace = Trace.from_arrays(texts, found_ids, [p[0] for p in pairs], **about)
    else:
        width = engine.candidates
        behind = [p[0][:, 1:].reshape(len(p[0]), -1, width, width) for p in pairs]
        trace = Trace.from_lattice(texts, found_ids, [p[0][:, 0] for p in pairs], behind, **about)
    progress(f"recorded {len(trace)} positions")

    of_workload = {w: [s for s, i in enumerate(keep) if chosen[i].workload == w] for w in about["workload"]}
    first = [keep[some[0]] for some in of_workload.values()]
    said = comparison.predict(
        trace, [t.tolist() for t in texts], cost, dict(zip(called, rules, strict=True)), {}, seed=seed
    )
    ready = {name: said.result.outcomes[name].policy for name in called}
    parts, rule_seconds = _timed(run, ready, first, [len(ids[i]) for i in first], cost, engine)
    said = comparison.predict(trace, said.texts, cost, dict(zip(called, rules, strict=True)), rule_seconds, seed=seed)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "label": label,
        "provenance": provenance
        | {"trace": trace.fingerprint, "prompts": len(keep), "max_new_tokens": max_new_tokens, "temperature": temperature}
        | {"clocks": clocks(engine.device), "recorded_by": "the decoder, over its own autoregressive answers"},
        "cost": cost.explain(),
        "baseline": plain,
        "policies": called,
        "rule_ms_per_round": {name: 1e3 * value for name, value in rule_seconds.items()},
        "parts_ms_per_round": parts,
        "tolerance": tolerance,
    } | measured  # fmt: skip
    answers: comparison.Answers = {name: {} for name in called}
    others: comparison.Answers = {name: {} for name in called if name != plain}
    answers[plain] = {s: alone[i] for s, i in enumerate(keep)}

    known: dict[tuple[str, str], dict[str, Any]] = {}
    known_others: dict[tuple[str, str], dict[str, Any]] = {}

    def note() -> None:
        """Write what is known so far."""
        document["rows"] = comparison.rows(said, answers, known)
        document["inside"] = comparison.counted_inside(document["rows"])
        document["first_token"] = comparison.first_tokens(said, answers)
        document["agreement"] = comparison.agreement(said, answers)
        document["departures"] = comparison.departures(said, answers, [p[2] for p in pairs])
        if temperature > 0:
            found = comparison.rows(said, others, known_others)
            document["other_dice"] = {
                "seed": seed + 1,
                "rows": found,
                "inside": comparison.counted_inside(found),
                "lengths": comparison.lengths(said, others, seed=seed),
            }
        errors = [abs(row["tokens_per_second_error"]) for row in document["rows"]]
        document["tokens_per_second_error"] = {"mean": float(np.mean(errors)), "worst": max(errors)}
        document["passed"] = tolerance is None or max(errors) <= tolerance
        write_document(out, document)

    note()
    for dice, into in ((seed, answers), (seed + 1, others))[: 1 + (temperature > 0)]:
        for name, policy in ready.items():
            if name == plain:
                continue
            for which in of_workload.values():
                into[name] |= zip(which, run(policy, [keep[s] for s in which], dice=dice), strict=True)
                note()
            progress(f"decoded {name}" + (" with other dice" if dice != seed else ""))
    if eager_budget is not None:  # what is known is written: the published loop may run out of memory or time
        document["published_loop"] = _published(
            (config, weights, shape, drafter_weights), ids, first, {n: a for n, a in answers.items() if n != plain}, keep,
            eager_budget, max_new_tokens,
        )  # fmt: skip
        progress("decoded the published loop")
    write_document(out, document)
    if plot_path is not None:
        _style.save_figure(_checks.validation(document), plot_path)
    return document


def _given_costs(path: str | Path, temperature: float, largest: int) -> CostModel:
    """The costs of a file, which must hold what a round at this temperature pays for, up to the largest budget."""
    held = read_costs(path)
    cost = fit_cost(held) if isinstance(held, Profile) else held
    if temperature != float(cost.provenance.get("temperature", 0.0)):
        raise DdsimError(
            f"{path}: measured at temperature {float(cost.provenance.get('temperature', 0.0)):g}, so what sampling takes isn't that of "
            f"temperature {temperature:g}; leave it out, and costs are measured here"
        )
    if measured_budget(cost, largest) < largest:
        raise DdsimError(
            f"{path}: costs were measured up to {cost.range.tokens[1]:g} tokens; lower --max-budget ({largest}), or profile further"
        )
    return cost


def _label(target: str) -> str:
    """A target's name: as `ddsim convert` wrote it down, or a folder's or file's own, or the one given."""
    path = Path(target)
    if path.is_dir():
        told = read_json(path / "config.json").get("ddsim_provenance", {})
        return str(told.get("label") or path.resolve().name)
    return path.stem if path.is_file() else target


def _timed(
    run: Callable[..., list[Decoded]], policies: dict[str, Policy], which: Sequence[int], prompt_tokens: Sequence[int],
    cost: CostModel, engine: Engine,
) -> tuple[dict[str, Any], dict[str, float]]:  # fmt: skip
    """The parts of a round of every policy with a draft, and what its budgets and trees take on the host beyond a fixed tree's.

    The costs hold the host's work for a fixed tree of 63 nodes (`host_seconds`). It is the same work whatever the text.
    """

    def host(found: Sequence[Decoded]) -> float:
        """Seconds of budgets and trees a round: the median of the prompts, so that one pause doesn't count."""
        return float(np.median([a.seconds.get("tree", 0.0) / max(len(a.rounds), 1) for a in found]))

    parts: dict[str, Any] = {}
    extra: dict[str, float] = {}
    fixed = DDTree(min(63, engine.largest_tree))
    run(fixed, which[:1])
    usual = host(run(fixed, which, timings=True))
    for name, policy in policies.items():
        if not policy.drafts:
            continue
        run(policy, which[:1])  # captures and compiles
        found = run(policy, which, timings=True)
        parts[name] = comparison.parts(found, prompt_tokens, cost)
        extra[name] = max(host(found) - usual, 0.0)
    return parts, extra


def _published(
    pair: tuple[Any, Weights, Any, Weights], ids: Sequence[Sequence[int]], few: Sequence[int], answers: comparison.Answers,
    keep: Sequence[int], budget: int, max_new_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """The published kind of loop on a few prompts, beside the policy that was fastest on them."""
    from ddsim_reference.published import published_loop  # imports transformers

    slow = published_loop(*pair, [ids[i] for i in few], budget=budget, max_new_tokens=max_new_tokens)
    tokens = sum(len(t) - 1 for t in slow.tokens)
    fast = {name: _throughput([found[keep.index(i)] for i in few]) for name, found in answers.items()}
    best = max(fast, key=lambda name: fast[name])
    return {
        "budget": budget, "prompts": len(few), "tokens": tokens, "rounds": slow.rounds, "seconds": slow.seconds,
        "tokens_per_second": tokens / slow.seconds, "best_policy": best, "best_tokens_per_second": fast[best],
        "ratio": fast[best] * slow.seconds / tokens,
    }  # fmt: skip


def _throughput(answers: Sequence[Decoded]) -> float:
    return sum(len(a.tokens) - 1 for a in answers) / sum(a.seconds["decode"] for a in answers)
