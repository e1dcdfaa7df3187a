"""What was measured, as ranges, and how to say that something lies outside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.errors import DdsimError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FitRange:
    """What a cost model was fitted on: first and last token count, context and batch (None: it doesn't depend on it)."""

    tokens: tuple[float, float]
    contexts: tuple[int, int] | None
    batches: tuple[int, int] | None

    def __str__(self) -> str:
        text = f"tokens {self.tokens[0]:g}–{self.tokens[1]:g}"
        for name, pair in (("context", self.contexts), ("batch", self.batches)):
            if pair is not None:
                text += f", {name} {pair[0]}" + (f"–{pair[1]}" if pair[1] != pair[0] else "")
        return text


def measured_grid(values: Sequence[int], measured: tuple[int, int] | None) -> list[int]:
    """Those of a default grid's values that lie within what was measured, or the ends of that; all if nothing depends on them.

    Examples
    --------
    >>> measured_grid([1, 8, 32, 64], (1, 32)), measured_grid([1, 8], (16, 24)), measured_grid([1, 8], None)
    ([1, 8, 32], [16, 24], [1, 8])
    """
    if measured is None:
        return list(values)
    return [v for v in values if measured[0] <= v <= measured[1]] or sorted(set(measured))


def arguments(**named: tuple[ArrayLike, float]) -> list[FloatArray]:
    """Float arrays of one shape from (value, least allowed) pairs."""
    arrays = []
    for name, (value, least) in named.items():
        try:
            x = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise DdsimError(f"{name} must be numbers, is {value!r:.40}") from None
        if not (np.isfinite(x) & (x >= least)).all():
            raise DdsimError(f"{name} must be finite and at least {least:g}")
        arrays.append(x)
    return [np.array(x) for x in np.broadcast_arrays(*arrays)]


def outside_text(low: float, high: float, span: str) -> str:
    """How values from ``low`` to ``high`` lie to what was measured.

    Examples
    --------
    >>> outside_text(1, 2048, span_text((1, 1024)))
    '1–2048 is outside the measured 1–1024'
    """
    return f"{low:g}" + (f"–{high:g}" if high > low else "") + f" is outside the measured {span}"


def span_text(pair: tuple[int, int] | None) -> str:
    """A measured range in words."""
    return "range" if pair is None else f"{pair[0]}" + (f"–{pair[1]}" if pair[1] != pair[0] else "")


def span_of(values: Sequence[int | None]) -> str:
    """The range of those values that aren't None, in words."""
    known = [v for v in values if v is not None]
    return span_text((min(known), max(known)) if known else None)
