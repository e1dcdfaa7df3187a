"""Ranges of a schedule: K by the number of requests that are decoded together, as engines take it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ddsim.errors import DdsimError
from ddsim.policy.choose import LONGEST


def checked_ranges(given: Any) -> list[tuple[int, int, int]]:
    """A schedule's ranges, in order, checked as vLLM checks them."""
    if not isinstance(given, (list, tuple)) or not given:
        raise DdsimError(
            f"Schedule: must be a list of (first, last, K), as in [(1, 4, 15), (5, 16, 7)], is {given!r:.60}"
        )
    found = []
    for one in given:
        numbers = list(one) if isinstance(one, (list, tuple)) else []
        if len(numbers) != 3 or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in numbers):
            raise DdsimError(f"Schedule: {one!r:.60} must be three whole numbers: first, last, K")
        first, last, k = map(int, numbers)
        if not (1 <= first <= last and 0 <= k <= LONGEST):
            raise DdsimError(f"Schedule: {one!r:.60}: needs 1 <= first <= last requests and K of 0 to {LONGEST}")
        found.append((first, last, k))
    found.sort()
    if found[0][0] != 1:
        raise DdsimError(f"Schedule: the first range must start from 1 request, starts from {found[0][0]}")
    for before, after in pairwise(found):
        if after[0] <= before[1]:
            raise DdsimError(f"Schedule: {before} and {after} overlap")
    return found


def check_whole(ranges: Sequence[tuple[int, int, int]], horizon: int | None, what: str) -> None:
    """Refuse a schedule that somebody typed and that an engine would mend by itself: gaps, and K above the block of ``horizon`` tokens.

    Examples
    --------
    >>> check_whole([(1, 4, 15), (9, 16, 7)], 15, "Schedule")
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: Schedule: leaves out 5 to 8 requests, where vLLM would go on with K = 15; name them
    """
    for (_, last, k), (first, _, _) in pairwise(ranges):
        if first != last + 1:
            raise DdsimError(
                f"{what}: leaves out {last + 1} to {first - 1} requests, where vLLM would go on with K = {k}; name them"
            )
    for first, last, k in ranges:
        if horizon is not None and k > horizon:
            raise DdsimError(
                f"{what}: K = {k} for {first} to {last} requests: must be 0 to {horizon}, the tokens of a draft"
            )
