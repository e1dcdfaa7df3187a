"""Milliseconds of autoregressive steps and of speculative rounds, for one checkout or for several in turn.

``python3 reference/tools/compare_rounds.py [CHECKOUT ...] [--shape qwen3-8b] [--context 512] [--tokens 64] [--turns 3]``

Weights are random, so that no files are needed. Each checkout runs in a process of its own, turn by turn, so that a warm or slow GPU
is none's advantage; CHECKOUT is this one by default. A round is what the decode loop launches: upload, verify, commit, draft.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent.parent


def measure(shape: str, context: int, tokens: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a step, a pass, a draft and a round; of the package that is found first."""
    import numpy as np
    import torch

    try:
        from ddsim_reference.engine.engine import Engine
        from ddsim_reference.profile import event_seconds, random_drafter, random_target, random_tree, shape_configs
    except ImportError:  # a checkout from before the decoder had rooms
        from ddsim_reference.profiler import event_seconds, random_drafter, random_target, random_tree, shape_configs

        from ddsim_reference.engine import Engine
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config, drafter = shape_configs(shape)
    engine: Any = Engine(
        config, random_target(config, device=device, dtype=dtype), drafter,
        random_drafter(drafter, device=device, dtype=dtype), max_context=context + 64, max_tokens=tokens,
    )  # fmt: skip
    for stack in (engine.stack, engine.drafter_stack):
        stack.keys.normal_()
        stack.values.normal_()
    bucket = engine.stage([random_tree(tokens, drafter.horizon, config.vocab_size, np.random.default_rng(4))])
    engine.wait()

    def step() -> None:
        engine.step()

    def verify() -> None:
        engine.verify(bucket)

    def draft() -> None:
        engine.draft()

    def whole_round() -> None:
        bucket.upload()
        engine.verify(bucket)
        engine.commit(bucket)
        engine.draft()

    found = {}
    for name, call in (("step", step), ("verify", verify), ("draft", draft), ("round", whole_round)):
        milliseconds = []
        for _ in range(5):  # committed tokens move the context on: start each short series at the same one
            engine.set_context(context)
            milliseconds += [1e3 * s for s in event_seconds(call, device, repeats)]
        found[name] = statistics.median(milliseconds)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a line for each checkout: medians over its turns, and how far they are from the first one's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", default=[HERE])
    parser.add_argument("--shape", default="qwen3-8b")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    checkouts = [path.resolve() for path in options.checkouts]
    if options.child:
        sys.path[:0] = [str(checkouts[0] / "reference"), str(checkouts[0])]
        print(json.dumps(measure(options.shape, options.context, options.tokens, options.repeats)))
        return 0
    rows: dict[Path, list[dict[str, float]]] = {path: [] for path in checkouts}
    for _ in range(options.turns):
        for path, found in rows.items():
            command = [sys.executable, __file__, str(path), "--child", "--shape", options.shape]
            for name in ("context", "tokens", "repeats"):
                command += [f"--{name}", str(getattr(options, name))]
            out = subprocess.run(command, capture_output=True, text=True, cwd=path)
            if out.returncode:
                print(out.stderr, file=sys.stderr)
                return 1
            found.append(json.loads(out.stdout.splitlines()[-1]))
    first: dict[str, float] = {}
    for path, found in rows.items():
        middle = {name: statistics.median(turn[name] for turn in found) for name in found[0]}
        first = first or middle
        print(path.name, ", ".join(f"{k} {v:.3f} ms ({100 * (v / first[k] - 1):+.2f} %)" for k, v in middle.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
