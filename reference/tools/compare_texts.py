"""Whether greedy texts are the same whatever is drafted and whoever else is answered: every policy alone, and batches of several sizes.

``python3 reference/tools/compare_texts.py --target MODEL --drafter DRAFTER [--widen qwen3-8b] [--prompts all] -o FILE``

Says for every policy how many answers are AR's, token by token, and for every batch how many are those of one request at a time, and how
many came about in the same rounds. FILE is written after every line. `ddsim validate` tells beside which rounds are the replayed ones.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import checkout  # noqa: F401
from ddsim.cost.model import CostModel, open_cost
from ddsim.files.documents import write_document
from ddsim.policy.contract import Policy
from ddsim.policy.rules import Autoregressive, DDTree, DFlash, RoundRatio
from ddsim_reference.decode import Decoded, decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target
from ddsim_reference.model.device import device_name
from ddsim_reference.model.widen import widened
from ddsim_reference.model.workloads import choose_prompts, encode_all

COST = CostModel.from_table(
    [1, 16, 64, 128, 256, 512], [0.006, 0.0063, 0.0067, 0.0079, 0.0097, 0.018], draft_seconds=0.0016
)
"""About what an 8B target takes: what RoundRatio weighs where no profile is given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Decode, compare, print and write; 1 if any text differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--drafter", required=True)
    parser.add_argument("--widen")
    parser.add_argument("--prompts", action="append", help="a workload, all, or a JSONL file; --encoded in their place")
    parser.add_argument("--encoded", type=Path, help="JSON: a list of [workload, id, token ids]")
    parser.add_argument("--limit", type=int, default=16, help="prompts of each workload")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--budget", type=int, action="append", help="trees (default 15, 63 and 255 nodes)")
    parser.add_argument("--batch", type=int, action="append", help="requests side by side (default 8 and 32)")
    parser.add_argument("--profile")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 with the same dice")
    parser.add_argument("--seconds", type=float, default=1e9, help="nothing new begins after so many seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args(argv)
    begin = time.perf_counter()
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    budgets, batches = options.budget or [15, 63, 255], options.batch or [8, 32]
    config, weights, tokenizer = load_target(
        options.target, dtype=dtype, device=options.device, with_tokenizer=options.encoded is None
    )
    shape, drafter_weights = load_drafter(options.drafter, dtype=dtype, device=options.device, target=weights)
    head = load_head(options.drafter, shape, dtype=dtype, device=options.device)
    if options.encoded is None:
        chosen = choose_prompts(options.prompts or ["all"], options.limit)
        names, ids = [p.id for p in chosen], encode_all(tokenizer, chosen, config, options.max_new_tokens)
    else:
        by_workload: dict[str, list[Any]] = {}
        for row in json.loads(options.encoded.read_text()):
            by_workload.setdefault(row[0], []).append(row)
        kept = [row for rows in by_workload.values() for row in rows[: options.limit]]
        names, ids = [row[1] for row in kept], [row[2] for row in kept]
    if options.widen is not None:
        config, weights, shape, drafter_weights, head = widened(
            config, weights, shape, drafter_weights, head, options.widen, ids[:16]
        )
    cost = COST if options.profile is None else open_cost(options.profile)
    largest = max(*budgets, 255)
    document: dict[str, Any] = {
        "target": Path(options.target).name, "widen": options.widen, "head": head is not None, "device": device_name(options.device),
        "prompts": len(ids), "max_new_tokens": options.max_new_tokens, "temperature": options.temperature, "texts": [],
    }  # fmt: skip

    def engine_of(batch: int, tokens: int) -> Engine:
        return Engine(
            config, weights, shape, drafter_weights, head, max_context=max(map(len, ids)) + options.max_new_tokens,
            max_tokens=tokens, batch=batch, device=options.device,
        )  # fmt: skip

    def run(engine: Engine, policy: Policy, most: int) -> list[Decoded]:
        return decode(
            engine, ids, policy, cost, max_new_tokens=options.max_new_tokens, prompt_ids=names, temperature=options.temperature,
            max_budget=min(most, engine.largest_tree),
        )  # fmt: skip

    def note(policy: str, batch: int, found: list[Decoded], alone: list[Decoded] | None) -> None:
        """Hold answers against AR's, one by one, and rounds against the same policy's without others beside."""
        row: dict[str, Any] = {"policy": policy, "batch": batch, "answers": len(found)}
        row["same_text"] = sum(a.tokens == b.tokens for a, b in zip(found, answers["AR"], strict=True))
        if alone is not None:
            row["same_rounds"] = sum(a.rounds == b.rounds for a, b in zip(found, alone, strict=True))
        row["tokens_per_second"] = sum(len(a.tokens) - 1 for a in found) / sum(a.seconds["decode"] for a in found)
        document["texts"].append(row)
        document["seconds"] = time.perf_counter() - begin
        write_document(options.out, document)
        print(json.dumps(row), flush=True)

    policies: dict[str, Policy] = {"AR": Autoregressive(), "chain": DFlash()}
    policies |= {f"tree of {n}": DDTree(n) for n in budgets} | {"RoundRatio": RoundRatio()}
    answers: dict[str, list[Decoded]] = {}
    engine = engine_of(1, largest + 1)
    for name, policy in policies.items():
        if time.perf_counter() - begin > options.seconds:
            break
        answers[name] = run(engine, policy, largest)
        note(name, 1, answers[name], None)
    del engine
    for batch in batches:
        gc.collect()
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()
        engine = engine_of(batch, max(budgets[0] + 1, shape.horizon + 1) * batch)
        for name in ("AR", f"tree of {budgets[0]}", "chain"):
            if name in answers and time.perf_counter() - begin < options.seconds:
                note(name, batch, run(engine, policies[name], budgets[0]), answers[name])
        del engine
    other = sum(row["answers"] - row["same_text"] for row in document["texts"])
    print(f"{other} of {sum(row['answers'] for row in document['texts'])} answers differ from AR's")
    return int(other > 0)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    raise SystemExit(main())
