"""What a schedule of K by the number of requests says, rule by rule as vLLM documents ``num_speculative_tokens_per_batch_size``."""

from __future__ import annotations

from collections.abc import Sequence

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
