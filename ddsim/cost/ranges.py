"""What was measured, as ranges, and how to say that something lies outside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.errors import DdsimError, caller_level

FloatArray = NDArray[np.float64]


Asked = dict[
    str, tuple[float, float, str]
]  # by quantity: the least and the most asked for, and what was measured in words


class ExtrapolationWarning(UserWarning):
    """A cost was asked for outside the tokens, contexts or batches that were measured.

    Attributes
    ----------
    asked : dict, quantity -> (least asked for, most asked for, what was measured in words)

    Examples
    --------
    >>> print(ExtrapolationWarning({"context": (64, 192, "256–8192"), "batch": (4, 4, "1")}))
    cost extrapolated: context 64–192 is outside the measured 256–8192; batch 4 is outside the measured 1
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.asked = asked

    def __str__(self) -> str:
        # Drafting asked at what verification was is no news.
        told = [
            f"{name} {outside_text(*saw)}"
            for name, saw in self.asked.items()
            if " of " not in name or saw != self.asked.get(name.split(" of ")[0])
        ]
        return f"cost extrapolated: {'; '.join(told)}"


def _add(to: Asked, more: Asked) -> None:
    """Widen what was asked for by more of the same."""
    for name, (low, high, span) in more.items():
        before = to.get(name, (low, high, span))
        to[name] = min(low, before[0]), max(high, before[1]), span


class Outside:
    """What a model is asked for outside of what was measured: warned of at once, or gathered to be warned of once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._gathered: Asked | None = None

    def note(self, name: str, value: FloatArray, outside: NDArray[np.bool_], span: str) -> None:
        """Note those values of a quantity that lie outside the span that was measured."""
        if not outside.any():
            return
        values = np.broadcast_to(value, outside.shape)[outside]
        asked: Asked = {name: (float(values.min()), float(values.max()), span)}
        if self._gathered is not None:
            _add(self._gathered, asked)
        elif name not in self._warned:
            self._warned.add(name)
            warnings.warn(ExtrapolationWarning(asked), stacklevel=caller_level())

    @contextmanager
    def gather(self, said: bool = True) -> Iterator[None]:
        """Gather inside the block, and at its end say so: in one warning, or to the block around it; or let it be."""
        outer, self._gathered = self._gathered, {}
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, outer
        if said and gathered and outer is not None:
            _add(outer, gathered)
        elif said and gathered:
            warnings.warn(ExtrapolationWarning(gathered), stacklevel=caller_level())


def merged(said: Sequence[ExtrapolationWarning]) -> list[ExtrapolationWarning]:
    """The same in as few warnings as may be: one, unless costs that were measured otherwise are among them.

    Examples
    --------
    >>> print(*merged([ExtrapolationWarning({"context": (low, 192, "256–8192")}) for low in (128, 64)]))
    cost extrapolated: context 64–192 is outside the measured 256–8192
    """
    kept: list[Asked] = []
    for one in said:
        for asked in kept:
            if all(span == asked.get(name, (0, 0, span))[2] for name, (_, _, span) in one.asked.items()):
                _add(asked, one.asked)
                break
        else:
            kept.append(dict(one.asked))
    return [ExtrapolationWarning(asked) for asked in kept]


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
