"""What a drafter's head costs and brings in the decoder: checks its lattices, times drafts, decodes with and without it.

``python3 reference/tools/time_heads.py --widen qwen3-8b --limit 10 -o FILE``

Lattices drafted in a CUDA graph are held against the plain function, drafts and whole rounds are timed in turn with the head and
without, and prompts are decoded with chains and trees of both: tokens a second, tokens a round, and the best budget of lattices over
that of marginals, with its interval over prompts. Where the tokenizer is missing, ``--prompts`` is a JSON list of [workload, id,
tokens]; ``--write-prompts`` makes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import checkout  # noqa: F401
from ddsim.files.atomic import write_text
from ddsim.policy.contract import Policy
from ddsim.policy.rules import Autoregressive, DDTree, DFlash
from ddsim_reference.decode import decode
from ddsim_reference.engine import engine as engine_module
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model.checkpoint import SMOLLM2, load_drafter, load_head, load_target
from ddsim_reference.model.device import device_name
from ddsim_reference.model.forward import by_depth
from ddsim_reference.model.heads import lattice
from ddsim_reference.model.widen import widened
from ddsim_reference.model.workloads import WORKLOADS, encode, load_prompts
from ddsim_reference.profile import event_seconds, random_tree
from pass_timings import profile_table

BUDGETS = (15, 31, 63, 127, 255)
Prompts = list[tuple[str, str, list[int]]]


def asked(given: argparse.Namespace, tokenizer: Any) -> Prompts:
    """Prompts: ``--limit`` of each workload."""
    if given.prompts is not None:
        rows = [(w, i, list(t)) for w, i, t in json.loads(given.prompts.read_text())]
        return [row for w in WORKLOADS for row in [r for r in rows if r[0] == w][: given.limit]]
    chosen = [p for name in WORKLOADS for p in load_prompts(name)[: given.limit]]
    return [(p.workload, p.id, encode(tokenizer, p)) for p in chosen]


def check_lattices(engine: Engine, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """A lattice drafted as a round does it, against the plain function of the same hidden states.

    The products behind the two add up in other orders, so candidates that are nearly as likely may change places.
    """
    assert engine.drafter is not None and engine.draft_head is not None
    kept: list[torch.Tensor] = []
    run = engine_module.run_layers

    def keeping(stack: Any, *args: Any, **named: Any) -> torch.Tensor:
        hidden = run(stack, *args, **named)
        if stack is engine.drafter_stack:
            kept[:] = [hidden]  # of the last call: what a captured graph writes to
        return hidden

    engine_module.run_layers = keeping
    worst, same, places = 0.0, 0, 0
    try:
        for prompt in prompts:
            engine.set_context(0)
            logits = engine.prefill(0, prompt)
            engine.set_root(0, int(logits.argmax()))
            engine.draft()
            engine.wait()
            rows, ids = (torch.from_numpy(x[0].copy()) for x in engine.drafted())
            hidden = by_depth(engine.drafter, kept[0].unflatten(0, (engine.batch, -1)))
            count = engine.candidates
            with torch.inference_mode():
                plain = lattice(*engine.draft_head, hidden, engine.embedding, engine.head, count, engine.roots)
            wanted_ids, first, transitions = (x[0].cpu() for x in plain)
            wanted = torch.cat((first[None], transitions.flatten(0, 1)))
            agree = ids == wanted_ids
            same, places = same + int(agree.sum()), places + agree.numel()
            both = torch.cat((agree[:1], (agree[:-1, :, None] & agree[1:, None, :]).flatten(0, 1)))
            likely = both & (wanted > -8)
            worst = max(worst, float((rows - wanted)[likely].abs().max()))
    finally:
        engine_module.run_layers = run
    return {"same_candidates": same / places, "largest_difference_nats": worst}


def time_drafts(engines: dict[str, Engine], context: int, tokens: int, turns: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of drafts and of whole rounds of ``tokens`` tokens, the engines in turn."""
    found: dict[str, dict[str, list[float]]] = {name: {"draft": [], "round": []} for name in engines}
    buckets = {}
    for name, engine in engines.items():
        assert engine.drafter is not None
        tree = random_tree(tokens, engine.drafter.horizon, engine.target.vocab_size, np.random.default_rng(4))
        buckets[name] = engine.stage([tree])
        engine.wait()

    def whole_round(engine: Engine, name: str) -> None:
        bucket = buckets[name]
        bucket.upload()
        engine.verify(bucket)
        engine.commit(bucket)
        engine.draft()

    for _ in range(turns):
        for name, engine in engines.items():
            for what, call in (("draft", engine.draft), ("round", partial(whole_round, engine, name))):
                engine.set_context(context)
                found[name][what] += event_seconds(call, engine.device, repeats)
    table = {name: {what: 1e3 * statistics.median(s) for what, s in own.items()} for name, own in found.items()}
    head, none = table["head"], table["none"]
    return {
        "context": context, "tokens": tokens, "ms": table,
        "added_ms": head["draft"] - none["draft"], "added_share": (head["draft"] - none["draft"]) / none["round"],
    }  # fmt: skip


def decode_all(
    engines: dict[str, Engine], prompts: Prompts, budgets: Sequence[int], max_new_tokens: int, deadline: float
) -> list[dict[str, Any]]:
    """Every prompt with every budget and both engines, one after another: tokens, rounds and seconds of each answer."""
    policies: list[Policy] = [DFlash(), *(DDTree(n) for n in budgets)]
    rows: list[dict[str, Any]] = []
    for engine in engines.values():  # captures
        for policy in (Autoregressive(), *policies):
            decode(engine, [prompts[0][2]], policy, max_new_tokens=8)
    for workload, name, tokens in prompts:
        if time.perf_counter() > deadline:
            print(f"  time is up after {len({row['prompt'] for row in rows})} prompts", flush=True)
            break
        texts = []
        for policy in (Autoregressive(), *policies):
            for which, engine in engines.items():
                if isinstance(policy, Autoregressive) and which == "head":
                    continue
                (answer,) = decode(engine, [tokens], policy, max_new_tokens=max_new_tokens, timings=False)
                texts.append(answer.tokens)
                rows.append(
                    {
                        "workload": workload, "prompt": f"{workload}/{name}", "engine": which, "policy": policy.name,
                        "tokens": len(answer.tokens) - 1, "rounds": len(answer.rounds),
                        "seconds": answer.seconds["decode"], "same_text": answer.tokens == texts[0],
                    }
                )  # fmt: skip
    return rows


def host_times(engines: dict[str, Engine], prompts: Prompts, budget: int, max_new_tokens: int) -> dict[str, Any]:
    """Milliseconds a round of each part, with clocks in between, which slow a round down."""
    found = {}
    for which, engine in engines.items():
        answers = decode(engine, [p[2] for p in prompts], DDTree(budget), max_new_tokens=max_new_tokens, timings=True)
        rounds = sum(len(a.rounds) for a in answers)
        found[which] = {part: 1e3 * sum(a.seconds[part] for a in answers) / rounds for part in answers[0].seconds}
    return found


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens a second and a round of each policy, and the best of lattices over the best of marginals."""

    def table(some: list[dict[str, Any]]) -> dict[str, Any]:
        names = list(dict.fromkeys((r["engine"], r["policy"]) for r in some))
        found: dict[str, Any] = {}
        columns: dict[tuple[str, str], np.ndarray] = {}
        for name in names:
            own = [r for r in some if (r["engine"], r["policy"]) == name]
            columns[name] = np.array([[r["tokens"], r["rounds"], r["seconds"]] for r in own], float)
            tokens, rounds, seconds = columns[name].sum(0)
            found["/".join(name)] = {
                "tokens_per_second": tokens / seconds, "tokens_per_round": tokens / rounds,
                "ms_per_round": 1e3 * seconds / rounds,
            }  # fmt: skip
        drafting = [name for name in names if name[1] != "AR"]

        def best(engine: str, which: np.ndarray) -> float:
            sums = [columns[n][which].sum(0) for n in drafting if n[0] == engine]
            return max(float(s[0] / s[2]) for s in sums)

        everyone = np.arange(len(columns[names[0]]))
        draws = np.random.default_rng(0).integers(0, len(everyone), (2000, len(everyone)))
        drawn = [best("head", d) / best("none", d) - 1 for d in draws]  # the choice of the budget is drawn too
        found["best_over_best"] = best("head", everyone) / best("none", everyone) - 1
        found["interval"] = np.quantile(drawn, (0.025, 0.975)).tolist()
        return found

    workloads = dict.fromkeys(r["workload"] for r in rows)
    return {"all": table(rows)} | {w: table([r for r in rows if r["workload"] == w]) for w in workloads}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time, decode, write; 1 if a lattice drafted on the device isn't the plain one."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=SMOLLM2)
    parser.add_argument("--drafter", default=str(Path(__file__).resolve().parent.parent / "drafter"))
    parser.add_argument("--widen", help="qwen3-8b or qwen3-4b: real text at that cost")
    parser.add_argument("--prompts", type=Path, metavar="FILE")
    parser.add_argument("--write-prompts", type=Path, metavar="FILE", help="write the prompts' tokens there and stop")
    parser.add_argument("--limit", type=int, default=10, help="prompts of each workload")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--lattice-width", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=420.0, help="start no prompt after so long")
    parser.add_argument("-o", "--out", type=Path, help="JSON of everything")
    given = parser.parse_args(argv)
    budgets = [int(n) for n in given.budgets.split(",")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config, weights, tokenizer = load_target(
        given.target, dtype=dtype, device=device, with_tokenizer=given.prompts is None
    )
    prompts = asked(given, tokenizer)
    if given.write_prompts is not None:
        write_text(given.write_prompts, json.dumps(prompts))
        return 0
    shape, drafter_weights = load_drafter(given.drafter, dtype=dtype, device=device)
    draft_head = load_head(given.drafter, shape, dtype=dtype, device=device)
    if draft_head is None:
        parser.error(f"{given.drafter}: has no head")
    narrow = draft_head[0]
    texts = [tokens for _, _, tokens in prompts]
    if given.widen is not None:
        config, weights, shape, drafter_weights, draft_head = widened(
            config, weights, shape, drafter_weights, draft_head, given.widen, texts[:: max(1, len(texts) // 16)]
        )
    assert draft_head is not None
    room = max(given.context + 64 * given.repeats, max(map(len, texts)) + given.max_new_tokens) + 64
    engines = {
        name: Engine(
            config, weights, shape, drafter_weights, head, max_context=room, max_tokens=max(budgets) + 1,
            candidates=512, lattice_width=given.lattice_width,
        )
        for name, head in (("none", None), ("head", draft_head))
    }  # fmt: skip
    print(f"{device_name(device)}, torch {torch.__version__}: {narrow}, widened to {draft_head[0].width}", flush=True)
    checked = check_lattices(engines["head"], texts[:8])
    limit = 0.1 if dtype == torch.bfloat16 else 0.02  # the engine's are rounded to 1/64 nat
    passed = checked["same_candidates"] > 0.98 and checked["largest_difference_nats"] < limit
    print(f"  {'ok  ' if passed else 'FAIL'} lattices against the plain function: {checked}", flush=True)
    timed = time_drafts(engines, given.context, min(64, max(budgets) + 1), given.turns, given.repeats)
    print(f"  milliseconds {timed['ms']}", flush=True)
    print(f"  the head adds {timed['added_ms']:.3f} ms, {100 * timed['added_share']:.2f} % of a round", flush=True)
    kernels: dict[str, Any] = {}
    if device == "cuda":
        for name, engine in engines.items():
            engine.set_context(given.context)
            kernels[name] = profile_table(f"draft, {name}", engine.draft, rows=24)
    rows = decode_all(engines, prompts, budgets, given.max_new_tokens, begun + given.seconds)
    summary = compare(rows)
    for workload, found in summary.items():
        low, high = found["interval"]
        print(
            f"{workload}: best over best {100 * found['best_over_best']:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"
        )
        for name, row in found.items():
            if isinstance(row, dict):
                print(
                    f"  {name:20} {row['tokens_per_second']:8.1f} tokens/s {row['tokens_per_round']:6.2f} tokens a round "
                    f"{row['ms_per_round']:7.3f} ms a round"
                )
    parts = host_times(engines, prompts[:: max(1, len(prompts) // 8)], min(63, max(budgets)), given.max_new_tokens)
    print(f"milliseconds a round by part: {parts}", flush=True)
    if given.out is not None:
        document = {
            "device": device_name(device), "torch": torch.__version__, "target": given.target, "widen": given.widen,
            "head": vars(narrow), "wide_width": draft_head[0].width, "lattice_width": given.lattice_width,
            "check": checked, "timing": timed, "kernels": kernels, "summary": summary, "parts": parts, "answers": rows,
        }  # fmt: skip
        write_text(given.out, json.dumps(document, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
