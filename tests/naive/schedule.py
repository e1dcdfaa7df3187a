"""What a schedule of K by the number of requests says, rule by rule as vLLM documents ``num_speculative_tokens_per_batch_size``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

Ranges = Sequence[tuple[int, int, int]]


def allowed(ranges: Ranges) -> bool:
    """Whether an engine takes it: ranges of requests from 1, each from first to last, no number in two of them, no K below 0."""
    numbers = [n for first, last, _ in ranges for n in range(first, last + 1)]
    whole = all(1 <= first <= last and k >= 0 for first, last, k in ranges)
    return whole and 1 in numbers and len(numbers) == len(set(numbers))


def tokens(ranges: Ranges, requests: int, block: int) -> int:
    """K for a number of requests: that of the range it lies in, else of the nearest range below; at most the block's tokens."""
    while True:
        for first, last, k in ranges:
            if first <= requests <= last:
                return min(k, block)
        requests -= 1


# --- what each engine makes of an exported file, rule by rule as its package has it -----------------------------------------


def k_of(document: dict[str, Any], requests: int, graphs: Sequence[int] = ()) -> int:
    """K for a number of requests, from nothing but what the engine is given; ``graphs`` are SGLang's CUDA graph sizes."""
    engine = document["engine"]
    if engine == "vllm":
        config = document["speculative_config"]
        words = shlex.split(document["arguments"])
        assert words[0] == "--speculative-config" and json.loads(words[1]) == config
        assert isinstance(config["num_speculative_tokens_per_batch_size"], list)
        assert allowed(config["num_speculative_tokens_per_batch_size"]) and config["num_speculative_tokens"] > 0
        return tokens(config["num_speculative_tokens_per_batch_size"], requests, config["num_speculative_tokens"])
    if engine == "tensorrt-llm":
        return draft_len(document["speculative_config"], requests)
    words = shlex.split(document["arguments"])
    if not words:
        return 0
    given = dict(pairs_of(words))
    algorithm = given["--speculative-algorithm"]
    if algorithm == "DFLASH":
        return int(given["--speculative-dflash-block-size"] or 0) - 1
    if algorithm == "DSPARK":
        return int(given["--speculative-dspark-block-size"] or 0)
    assert given["--speculative-eagle-topk"] == "1" and "--speculative-adaptive" in given
    steps = int(given["--speculative-num-steps"] or 0)
    config = document["adaptive_config"]
    assert steps in {k for key, slot in config.items() if key.isdigit() for k in slot["candidate_steps"]}
    assert int(given["--speculative-num-draft-tokens"] or 0) == steps + 1
    return Adaptive(config, steps, graphs).steps(requests)


def pairs_of(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Options of a command line, each with its value or None."""
    ends = [*words[1:], "--"]
    return [
        (word, None if after.startswith("--") else after)
        for word, after in zip(words, ends, strict=True)
        if word.startswith("--")
    ]


def draft_len(config: dict[str, Any] | None, requests: int) -> int:
    """TensorRT-LLM's K: that of the least key that isn't below the batch, 0 past the last; refused as its validator refuses."""
    if config is None:
        return 0
    schedule = {int(key): k for key, k in config["draft_len_schedule"].items()}
    assert all(key >= 1 and 0 <= k <= config["max_draft_len"] for key, k in schedule.items())
    assert schedule[min(schedule)] == config["max_draft_len"]
    reach = [key for key in schedule if key >= requests]
    return schedule[min(reach)] if reach else 0


class Adaptive:
    """SGLang's controller: a slot for each batch size that is named, and in it a moving average of accepted drafts."""

    def __init__(self, config: dict[str, Any], initial: int, graphs: Sequence[int] = ()) -> None:
        self.graphs = sorted(graphs)
        common = {key: value for key, value in config.items() if not key.isdigit()}
        self.slots = {int(key): {**common, **slot} for key, slot in config.items() if key.isdigit()}
        for slot in self.slots.values():
            options = sorted(set(slot["candidate_steps"]))
            assert options and options[0] >= 0
            slot["options"], slot["seen"] = options, 0
            slot["now"] = initial if initial in options else options[len(options) // 2]
            slot["mean"] = float(slot["now"] - 1)

    def slot(self, requests: int) -> dict[str, Any]:
        """That of the largest key up to the batch, which is padded to a graph's size first; the first one's below all keys."""
        padded = next((size for size in self.graphs if size >= requests), requests)
        below = [key for key in self.slots if key <= padded]
        return self.slots[max(below) if below else min(self.slots)]

    def steps(self, requests: int) -> int:
        """K of the next round."""
        return int(self.slot(requests)["now"])

    def update(self, accepted: Sequence[int]) -> None:
        """After a round in which each request accepted so many drafts."""
        slot = self.slot(len(accepted))
        if slot["now"] > 0:
            alpha = slot.get("ema_alpha", 0.2)
            slot["mean"] = (1 - alpha) * slot["mean"] + alpha * sum(accepted) / len(accepted)
        slot["seen"] += 1
        since = slot["seen"] - slot.get("warmup_batches", 10)
        if since <= 0 or since % slot.get("update_interval", 5):
            return
        options, now = slot["options"], slot["now"]
        at = options.index(now)
        if now == 0:  # it tries again with the next
            slot["now"] = options[min(at + 1, len(options) - 1)]
            if slot["now"] > 0 and slot["mean"] < 0:
                slot["mean"] = float(slot["now"] - 1)
            return
        start = at
        while at > 0:
            drop = 0.5 if options[at - 1] == 0 else options[at - 1] - 0.5
            if slot["mean"] > drop + slot.get("down_hysteresis", -0.25):
                break
            at -= 1
        while at >= start and at < len(options) - 1:
            if slot["mean"] <= options[at] - 0.5 + slot.get("up_hysteresis", 0.0):
                break
            at += 1
        slot["now"] = options[at]


def steps_per_second(table: dict[str, Any], batch_tokens: int) -> float:
    """SGLang's lookup in an SPS table: the probe at or below, the first below all."""
    below = [i for i, probe in enumerate(table["sample_batch_tokens"]) if probe <= batch_tokens]
    return float(table["sample_steps_per_sec"][max(below, default=0)])
