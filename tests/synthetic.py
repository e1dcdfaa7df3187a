"""Made-up traces that look like real ones: easy and hard stretches, marginals that flatten with depth, biased by a known power."""

from __future__ import annotations

import numpy as np

from ddsim.trace.trace import Trace


def made_trace(
    seed: int = 0,
    *,
    workloads: tuple[tuple[str, float], ...] = (("code", 1.4), ("chat", 0.2)),
    prompts: int = 12,
    length: int = 80,
    horizon: int = 6,
    candidates: int = 24,
    max_budget: int = 64,
    sharper: float = 1.0,
    context0: int = 100,
    temperatures: tuple[float, ...] = (0.0,),
) -> Trace:
    """A trace of ``prompts`` per workload and temperature.

    Depth d at a position has a distribution over ``candidates`` tokens, flatter where the stretch is hard and with depth. The
    true token is drawn from it raised to the power ``sharper``: 1 is a calibrated drafter as far as marginals go.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[object]] = {key: [] for key in ("x", "ids", "logprobs", "workload", "prompt_id", "t")}
    for workload, ease in workloads:
        for prompt in range(prompts):
            for temperature in temperatures:
                total = length + horizon
                drift = np.cumsum(rng.normal(0, 0.3, total)) * 0.5
                scale = np.exp(0.5 * (ease + drift - drift.mean()).clip(-2, 3)) * 1.2
                logits = rng.normal(size=(total, candidates)) * scale[:, None]
                order = np.stack([rng.permutation(candidates) for _ in range(total)])
                marginals = np.stack([logits[1 + d : 1 + d + length] / (1 + 0.08 * d) for d in range(horizon)], 1)
                marginals -= np.log(np.exp(marginals).sum(-1, keepdims=True))
                sharp = logits[:length] * sharper
                chance = np.exp(sharp - sharp.max(-1, keepdims=True)).cumsum(-1)
                drawn = (chance > rng.random((length, 1)) * chance[:, -1:]).argmax(-1)
                x = order[np.arange(length), drawn]
                names = np.stack([order[1 + d : 1 + d + length] for d in range(horizon)], 1)
                best = np.argsort(-marginals, -1, kind="stable")
                columns["x"].append(x)
                columns["ids"].append(np.take_along_axis(names, best, -1))
                columns["logprobs"].append(np.take_along_axis(marginals, best, -1))
                columns["workload"].append(workload)
                columns["prompt_id"].append(f"{workload}/{prompt}")
                columns["t"].append(temperature)
    return Trace.from_arrays(
        columns["x"],
        columns["ids"],
        columns["logprobs"],
        workload=columns["workload"],  # type: ignore[arg-type]
        prompt_id=columns["prompt_id"],  # type: ignore[arg-type]
        temperature=columns["t"],  # type: ignore[arg-type]
        context0=context0,
        max_budget=max_budget,
        vocab_size=candidates,
        provenance={"target": "made up", "drafter": "made up"},
    )
