"""`ddsim validate`: real prompts decoded with every policy on a device, beside what replay predicted for the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ddsim.cost.model import CostModel, fit_cost
from ddsim.errors import DdsimError
from ddsim.files.documents import write_document
from ddsim.policy.contract import Policy, decision_table, is_autoregressive, prepared
from ddsim.policy.parse import policies_of
from ddsim.policy.rules import Autoregressive, BestFixed, CaDDTree, DDTree, DFlash, LongRun, RoundRatio
from ddsim.replay.replay import priced, replay, replay_rounds
from ddsim.text import distinct
from ddsim.trace.cache import positions_of
from ddsim.trace.trace import Trace
from ddsim.view import checks as _checks
from ddsim.view import style as _style
from ddsim_reference.decode import Decoded, decode
from ddsim_reference.engine.buckets import TokenTree
from ddsim_reference.engine.engine import Engine
from ddsim_reference.limits import check_sampling
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target
from ddsim_reference.model.device import check_device, device_name, number_type
from ddsim_reference.model.widen import SHAPES, widened
from ddsim_reference.model.workloads import choose_prompts, encode_all
from ddsim_reference.profile import copy_bandwidth, host_seconds, matmul_rate, measure, profile_of, profiled_tokens
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
    """What the engine itself drafts at every position of an answer, one after another.

    Returns
    -------
    logprobs, token_ids : float32 and int32 ndarray [len(answer) - 1, ...]
        As `Engine.drafted` of one request.
    margins : float32 ndarray [len(answer) - 1]
        By how much the target's best next token leads the second, in nats.
    """
    engine.set_context(0)
    engine.prefill(0, prompt)
    found = []
    for here, after in pairwise(answer):
        engine.set_root(0, here)
        engine.draft()
        engine.wait()
        logprobs, ids = (x[0].copy() for x in engine.drafted())
        bucket = engine.stage([TokenTree.chain([here])])
        best, second = engine.verify(bucket)[0].topk(2).values.tolist()
        found.append((logprobs, ids, np.float32(best - second)))
        engine.commit(bucket)
        engine.wait()
        engine.set_root(0, after)
    logprobs_, ids_, margins = (np.stack(column) for column in zip(*found, strict=True))
    return logprobs_, ids_, margins


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
    """Hold predictions against hardware: profile, record, replay and decode in one run, greedily, one request at a time.

    Parameters
    ----------
    target, drafter : str
        As `load_target` and `load_drafter` take them.
    out : path
        JSON of everything.
    widen : str, optional
        A shape ("qwen3-4b", "qwen3-8b"): the pair keeps its function at that shape's cost.
    prompts : sequence of str
        Workloads or JSONL files; at most ``limit`` of each workload.
    policies : sequence of str or Policy
        Names as `ddsim.parse_policy` reads them; AR must be among them. Default: `default_policies`.
    max_new_tokens : int
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
        What ``out`` holds. ``rows``: a policy and workload each, predicted beside measured; ``cost_error`` is the cost model's
        alone, its seconds for the very rounds that were decoded against those measured. ``parts_ms_per_round``. ``agreement``:
        answers with the text of the autoregressive one, and those of them with the rounds of the replay; ``departures``: where
        other texts leave it, and how near a tie the target was there (in bfloat16, passes over other numbers of tokens round
        differently). Also ``cost``, ``profile`` and ``provenance``. Seconds unless a name says otherwise.

    Raises
    ------
    DdsimError
        Models, prompts or options that don't fit, or no GPU.
    """
    rules = policies_of(default_policies() if policies is None else policies)
    for rule in rules:
        if rule.hindsight:
            raise DdsimError(f"validate: {rule.name} is known after a text only, so it can't be decoded")
    ar = next((rule for rule in rules if is_autoregressive(rule)), None)
    if ar is None:
        raise DdsimError("validate: AR must be among the policies; speedups and the recorded text are its")
    called = distinct([rule.name for rule in rules])
    plain = called[rules.index(ar)]
    if widen is not None and widen not in SHAPES:
        raise DdsimError(f"widen {widen!r}: unknown shape; use one of {', '.join(SHAPES)}")
    check_sampling(max_new_tokens=max_new_tokens, temperature=0.0, seed=seed, batch=1)
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
    label = target
    if widen is not None:
        config, weights, shape, drafter_weights, draft_head = widened(
            config, weights, shape, drafter_weights, draft_head, widen, ids[:16]
        )
        label = f"{Path(target).name} text at {widen} cost"
    most = max(*contexts, max(map(len, ids)) + max_new_tokens) + 64
    engine = Engine(
        config, weights, shape, drafter_weights, draft_head, max_context=most, max_tokens=largest + 1, device=device
    )
    progress(f"loaded {label}: {len(chosen)} prompts")

    sizes = [m for m in profiled_tokens(engine, largest + 1) if m >= 1]
    bandwidth, rate = copy_bandwidth(engine.device), matmul_rate(engine.device, kind)
    measured = measure(engine, tokens=sizes, contexts=contexts, repeats=repeats, seed=seed)
    progress("profiled")
    provenance = {
        "target": label, "drafter": drafter, "device": device_name(device), "dtype": dtype, "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"), "seed": seed,
    }  # fmt: skip
    if draft_head is not None:
        provenance |= head_provenance(drafter, draft_head[0]) | {"lattice_width": engine.candidates}
    profile = profile_of(engine, measured, host_seconds(engine, measured, seed=seed), dict(provenance), bandwidth, rate)
    cost = fit_cost(profile)

    names = [p.id for p in chosen]

    def run(policy: Policy, which: Sequence[int], *, timings: bool = False) -> list[Decoded]:
        return decode(
            engine, [ids[i] for i in which], policy, cost, max_new_tokens=max_new_tokens, seed=seed,
            prompt_ids=[names[i] for i in which], timings=timings,
            max_budget=min(largest, engine.largest_tree),
        )  # fmt: skip

    everyone = range(len(chosen))
    run(ar, [0])  # captures
    answers = {plain: run(ar, everyone)}
    keep = [i for i in everyone if len(answers[plain][i].tokens) >= 2]
    progress(f"decoded {plain}")
    pairs = [engine_drafts(engine, ids[i], answers[plain][i].tokens) for i in keep]
    texts, found_ids = [np.array(answers[plain][i].tokens) for i in keep], [p[1] for p in pairs]
    about: dict[str, Any] = {
        "workload": [chosen[i].workload for i in keep],
        "prompt_id": [names[i] for i in keep],
        "context0": [len(ids[i]) for i in keep],
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
    positions = positions_of(trace, cache=False)
    costs = priced(positions, cost)
    ready = [prepared(rule, positions, decision_table(rule, cost, costs)) for rule in rules]
    predicted = replay(trace, cost, rules, seed=seed)
    first = {
        w: next(i for i in keep if chosen[i].workload == w) for w in dict.fromkeys(chosen[i].workload for i in keep)
    }
    parts = {}
    for name, rule, policy in zip(called, rules, ready, strict=True):
        if rule is not ar:
            run(policy, list(first.values())[:1])  # captures
            answers[name] = run(policy, keep)
            parts[name] = _parts(run(policy, list(first.values()), timings=True))
            progress(f"decoded {name}")
    answers[plain] = [answers[plain][i] for i in keep]

    rows = _rows(
        predicted.table(), predicted.table("workload"), answers, plain, [chosen[i].workload for i in keep],
        cost, [len(ids[i]) for i in keep],
    )  # fmt: skip
    steps = _differences(trace, cost, dict(zip(called, ready, strict=True)), answers, plain)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "label": label,
        "provenance": provenance | {"trace": trace.fingerprint, "prompts": len(keep), "max_new_tokens": max_new_tokens},
        "cost": cost.explain(),
        "bandwidth_bytes_per_s": bandwidth,
        "flops_per_s": rate,
        "baseline": plain,
        "rows": rows,
        "parts_ms_per_round": parts,
        "agreement": steps,
        "departures": _departures(answers, plain, [p[2] for p in pairs], [names[i] for i in keep]),
        "profile": profile.to_json(),
    }
    errors = [abs(row["tokens_per_second_error"]) for row in rows]
    document["tokens_per_second_error"] = {"mean": float(np.mean(errors)), "worst": max(errors)}
    document["tolerance"] = tolerance
    document["passed"] = tolerance is None or max(errors) <= tolerance
    write_document(out, document)  # what is known so far: the published loop may run out of memory or time
    if eager_budget is not None:
        from ddsim_reference.published import published_loop  # imports transformers

        few = list(first.values())
        slow = published_loop(
            config,
            weights,
            shape,
            drafter_weights,
            [ids[i] for i in few],
            budget=eager_budget,
            max_new_tokens=max_new_tokens,
        )
        tokens = sum(len(t) - 1 for t in slow.tokens)
        fast = {
            name: _throughput([found[keep.index(i)] for i in few]) for name, found in answers.items() if name != plain
        }
        best = max(fast, key=lambda name: fast[name])
        document["published_loop"] = {
            "budget": eager_budget, "prompts": len(few), "tokens": tokens, "rounds": slow.rounds, "seconds": slow.seconds,
            "tokens_per_second": tokens / slow.seconds, "best_policy": best, "best_tokens_per_second": fast[best],
            "ratio": fast[best] * slow.seconds / tokens,
        }  # fmt: skip
        progress("decoded the published loop")
    write_document(out, document)
    if plot_path is not None:
        table = pd.DataFrame(
            {
                "group": [row["policy"] for row in rows],
                "predicted": [row["predicted"]["tokens_per_second"] for row in rows],
                "measured": [row["measured"]["tokens_per_second"] for row in rows],
            }
        )
        _style.save_figure(_checks.predicted_measured(table), plot_path)
    return document


def _throughput(answers: Sequence[Decoded]) -> float:
    return sum(len(a.tokens) - 1 for a in answers) / sum(a.seconds["decode"] for a in answers)


def _parts(answers: Sequence[Decoded]) -> dict[str, float]:
    """Milliseconds a round by part; timing itself costs a little, so these are not the throughput's."""
    rounds = sum(len(a.rounds) for a in answers)
    names = ("draft", "tree", "verify", "commit", "host")
    return {name: 1e3 * sum(a.seconds.get(name, 0.0) for a in answers) / rounds for name in names}


def _rows(
    pooled: pd.DataFrame, by_workload: pd.DataFrame, answers: dict[str, list[Decoded]], plain: str, workloads: Sequence[str],
    cost: CostModel, prompt_tokens: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    """Predicted beside measured, pooled and by workload; ``plain`` names the autoregressive answers."""
    tables = {"all": pooled} | {w: by_workload[by_workload["workload"] == w] for w in dict.fromkeys(workloads)}
    rows = []
    for workload, table in tables.items():
        base = _throughput([a for a, w in zip(answers[plain], workloads, strict=True) if workload in ("all", w)])
        for name, found in answers.items():
            mine = [a for a, w in zip(found, workloads, strict=True) if workload in ("all", w)]
            tokens, rounds = sum(len(a.tokens) - 1 for a in mine), sum(len(a.rounds) for a in mine)
            said = table[table["policy"] == name].iloc[0]
            speed = _throughput(mine)
            measured = {
                "acceptance_length": tokens / rounds,
                "rounds": rounds,
                "ms_per_round": 1e3 * sum(a.seconds["decode"] for a in mine) / rounds,
                "budget_mean": float(np.mean([r.budget for a in mine for r in a.rounds])),
                "tokens_per_second": speed,
                "speedup": speed / base,
            }
            predicted = {
                "acceptance_length": float(said["acceptance_length"]),
                "rounds": int(said["rounds"]),
                "ms_per_round": 1e3 * float(said["seconds"]) / int(said["rounds"]),
                "budget_mean": float(said["budget_mean"]),
                "tokens_per_second": float(said["tokens_per_second"]),
                "speedup": float(said["speedup"]),
            }
            errors = {
                f"{key}_error": predicted[key] / measured[key] - 1
                for key in ("acceptance_length", "tokens_per_second", "speedup")
            }
            lengths = [n for n, w in zip(prompt_tokens, workloads, strict=True) if workload in ("all", w)]
            errors["cost_error"] = (
                _priced(mine, lengths, cost, name == plain) / sum(a.seconds["decode"] for a in mine) - 1
            )
            rows.append({"workload": workload, "policy": name, "predicted": predicted, "measured": measured} | errors)
    return rows


def _priced(answers: Sequence[Decoded], prompt_tokens: Sequence[int], cost: CostModel, plain: bool) -> float:
    """Seconds that the cost model gives for the rounds of some answers."""
    rounds = [(r.budget + 1, n + r.position) for a, n in zip(answers, prompt_tokens, strict=True) for r in a.rounds]
    tokens, contexts = np.array(rounds).T
    seconds = (
        cost.ar_seconds(contexts)
        if plain
        else cost.verify_seconds(tokens, contexts) + cost.draft_seconds(context=contexts)
    )
    return float(np.sum(seconds))


def _departures(
    answers: dict[str, list[Decoded]], plain: str, margins: Sequence[np.ndarray], prompts: Sequence[str]
) -> dict[str, Any]:
    """Where texts first differ from the autoregressive ones, and by how much the best token led the second there."""
    found: list[dict[str, Any]] = []
    for name, mine in answers.items():
        for answer, alone, margin, prompt in zip(mine, answers[plain], margins, prompts, strict=True):
            both = zip(answer.tokens, alone.tokens, strict=False)
            index = next((i for i, (a, b) in enumerate(both) if a != b), None)
            if index is not None:
                lead = float(margin[index - 1]) if index else None
                found.append({"policy": name, "prompt": prompt, "index": index, "margin": lead})
    leads = [f["margin"] for f in found if f["margin"] is not None]
    every = np.concatenate(list(margins))
    return {
        "largest_margin": max(leads, default=None),
        "share_of_positions_within": float(np.mean(every <= max(leads))) if leads else None,
        "first": found,
    }


def _differences(
    trace: Trace, cost: CostModel, policies: dict[str, Policy], answers: dict[str, list[Decoded]], plain: str
) -> dict[str, dict[str, int]]:
    """Where rounds and texts differ from the replay of the autoregressive answer, and how many do."""
    found: dict[str, dict[str, int]] = {}
    texts = [a.tokens for a in answers[plain]]
    for name, policy in policies.items():
        same_text = same_rounds = 0
        rounds = replay_rounds(trace, cost, policy)
        for s, answer in enumerate(answers[name]):
            if answer.tokens != texts[s]:
                continue
            same_text += 1
            mine = rounds[rounds["sequence"] == s]
            expected = list(zip(mine["position"], mine["accepted"], strict=True))
            same_rounds += [(r.position, min(r.accepted, r.committed)) for r in answer.rounds] == [
                (int(p), min(int(a), len(texts[s]) - 1 - int(p))) for p, a in expected
            ]
        found[name] = {"answers": len(texts), "same_text": same_text, "of_these_same_rounds": same_rounds}
    return found
