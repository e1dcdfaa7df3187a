"""Bounds of what may be asked for: beyond them the work would not end, and the answer would be no better."""

from __future__ import annotations

import math
import operator
from typing import Any

from ddsim.errors import DdsimError

#: What is asked for -> (least, most, what to do about more).
BOUNDS: dict[str, tuple[int, int, str]] = {
    "batch": (1, 4096, "simulate a replica of the server, with its share of the requests"),
    "running": (1, 1024, "simulate a replica of the server, with its share of the requests"),
    "bootstrap": (1, 100_000, "intervals hardly move beyond a few thousand resamples"),
    "simulations": (0, 10_000, "intervals hardly move beyond a few hundred simulations"),
    "requests": (1, 1_000_000, "throughput settles after a few times the batch"),
    "max_tokens": (1, 2**31, "leave it out where a pass may verify all that is drafted"),
    "context": (0, 2**30, "no model reads that many tokens"),
    "chunk": (1, 2**20, "prefill whole prompts instead"),
    "memory": (1, 2**50, "leave it out where memory is no limit"),
    "rows": (1, 2**40, "leave it out to write all rows"),
    "seed": (0, 2**63 - 1, "any smaller number is as good"),
}
MOST_REQUESTS = 20_000_000  # requests times simulations


def check(what: str, value: Any, name: str | None = None) -> int:
    """A whole number within the bounds of ``what``.

    Raises
    ------
    DdsimError
        It isn't; the line says what the bound is and what to do.

    Examples
    --------
    >>> check("batch", 8)
    8
    >>> check("bootstrap", 10**9)
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: bootstrap: must be at most 100,000, is 1,000,000,000; intervals hardly move beyond a few thousand resamples
    """
    least, most, advice = BOUNDS[what]
    name = name or what
    try:
        number = operator.index(value)
    except TypeError:
        raise DdsimError(f"{name}: must be a whole number, is {value!r:.40}") from None
    if number < least:
        raise DdsimError(f"{name}: must be at least {least:,}, is {_said(number)}")
    if number > most:
        raise DdsimError(f"{name}: must be at most {most:,}, is {_said(number)}; {advice}")
    return number


def check_finite(value: float, name: str) -> float:
    """A number of at least 0 that is neither NaN nor infinite, or one line that says so."""
    if not math.isfinite(value) or value < 0:
        raise DdsimError(f"{name}: must be a finite number of at least 0, is {value}")
    return value


def check_requests(requests: int, simulations: int) -> None:
    """Refuse a simulation of so many requests, repeated so often, that it wouldn't end."""
    if requests * (simulations + 1) > MOST_REQUESTS:
        raise DdsimError(
            f"{requests:,} requests in {simulations:,} simulations are more than {MOST_REQUESTS:,}; ask for fewer requests, "
            "or for fewer simulations behind the intervals (--bootstrap)"
        )


def _said(number: int) -> str:
    digits = number.bit_length() * 0.30103
    return f"{number:,}" if digits < 30 else f"{'-' if number < 0 else ''}10^{digits:.0f} or so"
