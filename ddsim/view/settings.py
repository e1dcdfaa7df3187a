"""Settings in the words of serving engines: exactly the fields that they document, and around them what the choice rests on.

Fields and their meaning were read from the packages themselves: vLLM 0.26.0 (`num_speculative_tokens_per_batch_size`: inclusive ranges
of requests, K carried on through gaps and past the end), SGLang 0.5.15 and 0.5.23 (the DFLASH window is K + 1; the adaptive
configuration's keys are lower bounds of the batch, after padding it to a CUDA graph's; SPS tables are looked up at the probe below),
TensorRT-LLM's main branch of 2026 (`draft_len_schedule`: upper bounds, 0 past the last, the first must be `max_draft_len`).
``ddsim/data/schemas`` holds a JSON schema for each.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import numpy as np
import pandas as pd

from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.replay.engines import ENGINES, engine_rule, schedule_ranges

WRITTEN_AGAINST = {
    "vllm": "vLLM 0.26.0 (a schedule needs 0.24 or later)",
    "sglang": "SGLang 0.5.23 (DFLASH and EAGLE3 as in 0.5.15; DSPARK is newer)",
    "tensorrt-llm": "TensorRT-LLM, llm_args.py of the main branch at 0004396 (keys of draft_len_schedule were lower bounds in earlier versions)",
}
"""What each engine's settings were read from."""

BEYOND = {
    "vllm": "Above {last} requests the engine goes on with K = {k}, which nothing here speaks for.",
    "sglang": "Above {last} requests the engine goes on with K = {k}, which nothing here speaks for.",
    "tensorrt-llm": "Above {last} requests the engine doesn't draft.",
}


def engine_settings(
    engine: str,
    choices: pd.DataFrame,
    drafter: str,
    horizon: int,
    *,
    method: str = "dflash",
    sps: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings of an engine for K by the number of requests.

    Parameters
    ----------
    engine : {"vllm", "sglang", "tensorrt-llm"}
    choices : DataFrame
        Of `ddsim.replay.engines.best_chains`, by the engine's rule: a row for 1, 2, ... requests.
    drafter : str
        The drafter's folder or hub name, as the engine finds it.
    horizon : int
        Tokens of a recorded draft.
    method : str
        What drafts: dflash, eagle3 or dspark.
    sps : dict, optional
        Of `sps_table`, for SGLang's DSPARK.

    Returns
    -------
    dict
        ``arguments`` is the command line to paste; the engine's own objects stand beside it under the names that the engine gives them.
        Around them what the choice rests on, and what to know.

    Raises
    ------
    DdsimError
        An engine or method that isn't known, choices that leave out a number of requests, or a K that isn't within the block or that
        the engine can't be set to.

    Examples
    --------
    >>> choices = pd.DataFrame({"requests": [1, 2, 3], "k": [7, 7, 0], "extrapolated": [False] * 3})
    >>> engine_settings("vllm", choices, "drafter", 15)["speculative_config"]["num_speculative_tokens_per_batch_size"]
    [[1, 2, 7], [3, 3, 0], [1000000, 1000000, 15]]
    >>> engine_settings("tensorrt-llm", choices, "drafter", 15)["speculative_config"]["draft_len_schedule"]
    {'2': 7, '3': 0}
    """
    rule = engine_rule(engine, method)
    ks = _checked(choices, horizon)
    if rule == "first" and max(ks) > ks[0]:
        raise DdsimError(
            f"{ENGINES[engine].title}: K = {max(ks)} is above that of one request, {ks[0]}; choose by its rule"
        )
    if rule == "one" and len(set(ks)) > 1:
        raise DdsimError(
            f"{ENGINES[engine].title}: {method} has one K for all batches, not {sorted(set(ks))}; choose by its rule"
        )
    ranges = schedule_ranges(choices)
    make = {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm}[engine]
    own, notes = make(ranges, drafter, horizon, method, sps)
    if method == "eagle3":
        notes.append(
            "EAGLE drafts a pass a token: K is right if costs are of whole steps by K, as a CSV of them has it."
        )
    notes.append(BEYOND[engine].format(last=ranges[-1][1], k=ranges[-1][2]))
    if choices["extrapolated"].any():
        count = int(choices["extrapolated"].sum())
        notes.append(f"Of {len(ks)} numbers of requests {count} rest on extrapolated costs (marked in choices).")
    lost = choices["lost"].to_numpy(float) if "lost" in choices else np.zeros(1)
    if lost.max() > 0.01:
        notes.append(
            f"Against the best K at each number of requests these settings lose {100 * lost.max():.1f} % at {lost.argmax() + 1} "
            f"requests, {100 * lost.mean():.1f} % on average."
        )
    return {
        "schema_version": 1,
        "kind": "ddsim-engine-settings",
        "engine": engine,
        "method": method,
        "written_against": WRITTEN_AGAINST[engine],
        **own,
        "units": {
            "requests": "decoded together in a step",
            "K": "drafted tokens; K + 1 are verified",
            "tokens_per_second": "of all requests",
        },
        "choices": choices.to_dict("records"),
        "notes": notes,
        "provenance": provenance or {},
    }


def vllm_settings(
    choices: pd.DataFrame, drafter: str, horizon: int, *, provenance: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`engine_settings` for vLLM and a DFlash drafter.

    Examples
    --------
    >>> choices = pd.DataFrame({"requests": [1, 2], "k": [7, 0], "extrapolated": [False, False]})
    >>> vllm_settings(choices, "drafter", 15)["speculative_config"]["num_speculative_tokens_per_batch_size"]
    [[1, 1, 7], [2, 2, 0], [1000000, 1000000, 15]]
    """
    return engine_settings("vllm", choices, drafter, horizon, provenance=provenance)


def _checked(choices: pd.DataFrame, horizon: int) -> list[int]:
    """K by the number of requests, without gaps and within the block."""
    requests, ks = (choices[name].tolist() for name in ("requests", "k"))
    if requests != list(range(1, len(requests) + 1)) or not requests:
        raise DdsimError("settings: choices must name 1, 2, 3, ... requests, none left out")
    for count, k in zip(requests, ks, strict=True):
        if not 0 <= k <= horizon:
            raise DdsimError(f"settings: K = {k} for {count} requests: must be 0 to {horizon}, the tokens of a draft")
    return [int(k) for k in ks]


UNREACHED = 1_000_000
"""Requests that no engine has side by side: vLLM captures its draft's CUDA graphs for the Ks that stand in its schedule."""


def _off(ranges: list[tuple[int, int, int]]) -> bool:
    return any(k == 0 for _, _, k in ranges)


def _shorter(k: int, horizon: int) -> str:
    return f"A block of {k} drafts proposes other tokens than the recorded one of {horizon}: ddsim record --block-size {k + 1} is exact."


def _vllm(
    ranges: list[tuple[int, int, int]], drafter: str, horizon: int, method: str, sps: Any
) -> tuple[dict[str, Any], list[str]]:
    block = method != "eagle3" and all(k < horizon for _, _, k in ranges)
    whole = [(UNREACHED, UNREACHED, horizon)] if block else []
    config = {
        "method": method,
        "model": drafter,
        "num_speculative_tokens": horizon,
        "num_speculative_tokens_per_batch_size": [list(one) for one in [*ranges, *whole]],
    }
    notes = ["The engine counts requests that it prefills too, and drops the schedule under data parallelism."]
    if whole:
        notes.append(
            f"The last range, from {UNREACHED:,} requests on, is never reached: vLLM 0.26 drafts without a CUDA graph unless some range "
            "has the whole block."
        )
    if method != "eagle3":
        notes.insert(
            0, f"The block is drafted whole, {horizon} tokens, and cut to K; drafting fewer would propose other tokens."
        )
    if _off(ranges):
        notes.append(
            "K = 0 is off: there drafting loses. vLLM 0.26 drafts all the same and verifies nothing of it, so an engine without a drafter "
            "is faster still."
        )
    return {"arguments": f"--speculative-config {shlex.quote(json.dumps(config))}", "speculative_config": config}, notes


def _sglang(
    ranges: list[tuple[int, int, int]], drafter: str, horizon: int, method: str, sps: dict[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    most = max(k for _, _, k in ranges)
    words = ["--speculative-algorithm", method.upper(), "--speculative-draft-model-path", drafter]
    own: dict[str, Any] = {}
    notes = []
    if method == "dflash":
        words += ["--speculative-dflash-block-size", str(most + 1)]
        notes.append(
            f"DFLASH verifies one window at every batch: {most + 1} tokens are K = {most} and the last committed one."
        )
    elif method == "dspark":
        words += ["--speculative-dspark-block-size", str(most)]
        notes.append(
            f"DSPARK's block is K = {most}; it verifies {most + 1} tokens, or fewer by the SPS table (ragged verification)."
        )
        if sps is not None and most:
            own["sps_table"] = sps
            words += ["--speculative-dspark-sps-table-path", "sps.json"]
            notes.append("Save sps_table as sps.json: steps a second by tokens of a pass, drafting and host included.")
    else:
        words += ["--speculative-num-steps", str(most), "--speculative-eagle-topk", "1"]
        words += ["--speculative-num-draft-tokens", str(most + 1)]
        words += ["--speculative-adaptive", "--speculative-adaptive-config", "adaptive.json"]
        slots = {str(first): {"candidate_steps": [k]} for first, _, k in ranges}
        own["adaptive_config"] = {"ema_alpha": 0.2, "warmup_batches": 10, "update_interval": 5} | slots
        notes.append("Save adaptive_config as adaptive.json. A slot has one candidate, so its K stays what it is here.")
        notes.append("The engine looks K up at the size of the CUDA graph that a batch is padded to.")
    if method != "eagle3" and 0 < most < horizon:
        notes.append(_shorter(most, horizon))
    if most == 0:
        words, own = [], {}
        notes = ["Drafting loses at every number of requests weighed: start the server without these arguments."]
    elif _off(ranges):
        notes.append("K = 0 is off: there drafting loses. Check that your version keeps the drafter's state meanwhile.")
    return {"arguments": shlex.join(words), **own}, notes


def _tensorrt_llm(
    ranges: list[tuple[int, int, int]], drafter: str, horizon: int, method: str, sps: Any
) -> tuple[dict[str, Any], list[str]]:
    kind = {"dflash": "DFlash", "eagle3": "Eagle3"}[method]
    first = ranges[0][2]
    if first == 0:
        notes = [
            "Drafting loses from one request on, and no later K may be above the first: run without speculative_config."
        ]
        return {"arguments": "", "speculative_config": None}, notes
    schedule = {last: k for _, last, k in ranges}
    call = f"{kind}DecodingConfig(max_draft_len={first}, speculative_model={drafter!r}, draft_len_schedule={schedule})"
    notes = ["speculative_config goes into the YAML of trtllm-serve; arguments is the same for the LLM class."]
    if method == "dflash":
        notes.append("mask_token_id and target_layer_ids are read from the drafter's own config.")
    if first < horizon and method == "dflash":
        notes.append(_shorter(first, horizon))
    if _off(ranges):
        notes.append(
            "K = 0 is off: there drafting loses. It can leave the drafter without state, so newer versions draft 1 token instead"
            + (" for DFlash." if method == "dflash" else " for some methods.")
        )
    config = {
        "decoding_type": kind,
        "max_draft_len": first,
        "speculative_model": drafter,
        "draft_len_schedule": {str(last): k for last, k in schedule.items()},
    }
    return {"arguments": f"speculative_config={call}", "speculative_config": config}, notes


def sps_table(cost: CostModel, k: int, context: int, requests: int) -> dict[str, Any] | None:
    """SGLang's SPS table: steps a second by tokens of a pass, as far as measured; None with fewer than two probes.

    As SGLang's own profiler has it, a pass of n windows comes from n requests. Fewer tokens than a window are of one request.

    Parameters
    ----------
    cost : CostModel
    k : int
        Drafted tokens; a window has one more.
    context : int
    requests : int
        The most.

    Examples
    --------
    >>> sps_table(CostModel.from_table([1, 8], [0.010, 0.020]), 1, 512, 4)
    {'sample_batch_tokens': [1, 2, 4, 8], 'sample_steps_per_sec': [100.0, 87.5, 70.0, 50.0], 'max_batch_tokens': 8}
    """
    window = k + 1
    counts = sorted({2**i for i in range(requests.bit_length())} | {requests})
    probes = [(2**i, 1) for i in range(window.bit_length()) if 2**i < window] + [(n * window, n) for n in counts]
    known = [(t, n) for t, n in probes if not cost.extrapolated(t, context, n)]
    if len(known) < 2:
        return None
    seconds = [cost.verify_seconds(t, context, n) + cost.draft_seconds(n, context=context) for t, n in known]
    tokens = [t for t, _ in known]
    return {
        "sample_batch_tokens": tokens,
        "sample_steps_per_sec": (1 / np.array(seconds)).round(6).tolist(),
        "max_batch_tokens": tokens[-1],
    }


def acceptance_profile(table: pd.DataFrame, *, provenance: dict[str, Any] | None = None) -> dict[str, Any]:
    """How often each drafted token is accepted, by workload, for simulators, and for vLLM's synthetic acceptance.

    Parameters
    ----------
    table : DataFrame
        Of `ddsim.replay.engines.acceptance`.

    Returns
    -------
    dict
        ``workloads``: by name, and "all" of them, ``synthetic_acceptance_rates`` (unconditional, one per drafted token), ``rounds``
        and ``tokens_per_round``. Of a workload without a round that sees its whole horizon, rates are empty.
    """
    workloads = {
        str(row["workload"]): {
            "synthetic_acceptance_rates": row["rates"],
            "tokens_per_round": row["tokens_per_round"] if row["rounds"] else None,
            "rounds": row["rounds"],
        }
        for row in table.to_dict("records")
    }
    return {
        "schema_version": 1,
        "kind": "ddsim-acceptance",
        "workloads": workloads,
        "provenance": provenance or {},
    }
