"""When requests arrive: at random, in bursts, or as a log says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import Floats, numbers
from ddsim.errors import DdsimError
from ddsim.replay.shown import ShownArrivals
from ddsim.text import brief, listed

PATTERNS = {"poisson": 1.0, "bursts": 0.25}
"""Shapes of the gamma distribution that gaps between arrivals are drawn from: 1 is memoryless, below it arrivals crowd (bursts: gaps vary by
twice their mean)."""

TIMES = ("arrival", "arrived_at", "arrival_time", "timestamp", "time", "seconds")
PROMPTS = ("prompt_tokens", "contexttokens", "request tokens", "num_prefill_tokens", "input_tokens", "input_length")
ANSWERS = ("answer_tokens", "generatedtokens", "response tokens", "num_decode_tokens", "output_tokens", "output_length")
"""Columns of a log, whatever their case: our own names, and those of public traces (Azure's, BurstGPT, Vidur's, vLLM's)."""

MOST_TOKENS = 2**20  # of a prompt or an answer: a larger number is a mistake in the log

A_DATE = r"\d{4}|:"
"""What dates and times of day hold. Pandas reads other text as dates too: a decimal comma, 1,5, as a day in January."""


@dataclass(frozen=True, repr=False)
class Arrivals(ShownArrivals):
    """When requests came, and how long they were, as a log has it.

    Parameters
    ----------
    seconds : array_like [N]
        Ascending; they are counted from the first.
    prompt_tokens, answer_tokens : array_like [N], optional
        Whole numbers from 1 on. By default those of the recorded prompts that stand for the requests.

    Examples
    --------
    >>> log = Arrivals([0.0, 0.5, 4.0], answer_tokens=[20, 300, 15])
    >>> len(log), log.rate
    (3, 0.5)
    """

    seconds: Floats
    prompt_tokens: NDArray[np.int64] | None = None
    answer_tokens: NDArray[np.int64] | None = None

    def __init__(
        self,
        seconds: ArrayLike,
        prompt_tokens: ArrayLike | None = None,
        answer_tokens: ArrayLike | None = None,
        *,
        name: str = "arrivals",
    ) -> None:
        times = numbers(seconds, name).astype(np.float64)
        if times.ndim != 1 or not len(times):
            raise DdsimError(f"{name}: must be times of at least one request")
        if not np.isfinite(times).all():
            at = int(np.flatnonzero(~np.isfinite(times))[0])
            raise DdsimError(f"{name}: request {at + 1}: its time is missing, or no finite number")
        back = np.flatnonzero(np.diff(times) < 0)
        if len(back):
            i = int(back[0])
            raise DdsimError(
                f"{name}: times run backwards: request {i + 2} came at {times[i + 1]:g} s, {times[i] - times[i + 1]:g} s before the one "
                "above it; sort the log"
            )
        object.__setattr__(self, "seconds", times - times[0])
        for what, lengths in (("prompt_tokens", prompt_tokens), ("answer_tokens", answer_tokens)):
            object.__setattr__(
                self, what, None if lengths is None else _lengths(lengths, len(times), f"{name}: {what}")
            )

    def __len__(self) -> int:
        return len(self.seconds)

    def first(self, count: int) -> Arrivals:
        """The first ``count`` of them."""
        lengths = (None if of is None else of[:count] for of in (self.prompt_tokens, self.answer_tokens))
        return Arrivals(self.seconds[:count], *lengths)

    @property
    def rate(self) -> float:
        """Requests a second, over the whole log; infinite if all come at once."""
        span = float(self.seconds[-1])
        return (len(self) - 1) / span if span > 0 else np.inf


def _lengths(given: ArrayLike, count: int, name: str) -> NDArray[np.int64]:
    lengths = numbers(given, name).astype(np.float64)
    if lengths.shape != (count,):
        raise DdsimError(f"{name}: must be one number a request, {count} in all")
    bad = np.flatnonzero(~((lengths >= 1) & (lengths <= MOST_TOKENS) & (lengths == np.trunc(lengths))))
    if len(bad):
        raise DdsimError(
            f"{name}: request {int(bad[0]) + 1}: must be a whole number of tokens, 1 to {MOST_TOKENS:,}, is {lengths[bad[0]]:g}"
        )
    return lengths.astype(np.int64)


def read_arrivals(path: str | os.PathLike[str]) -> Arrivals:
    """Arrivals from a log, a CSV or a Parquet file with a row a request.

    A column of times is needed: arrival, arrived_at, timestamp or time, in seconds or as dates. Lengths are taken where there are columns of them:
    prompt_tokens and answer_tokens, or as public traces call these.

    Raises
    ------
    DdsimError
        One line: which file, which row or column, what is wrong.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "log.csv")
    >>> pd.DataFrame({"seconds": [0.0, 0.5, 4.0], "answer_tokens": [20, 300, 15]}).to_csv(path, index=False)
    >>> print(read_arrivals(path))
    3 requests in 4 s, 0.5 a second; answers of 15 to 300 tokens.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in (".csv", ".parquet"):
        raise DdsimError(f"{name}: arrivals are read from .csv or .parquet")
    try:
        table = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError:
        raise DdsimError(f"{name}: no such file") from None
    except Exception as error:  # pandas and Arrow raise many kinds for what is no such file
        raise DdsimError(f"{name}: can't be read as {suffix[1:]}: {str(error)[:100]!r}") from None
    columns = {str(column).strip().lower(): column for column in table.columns}
    times = _column(table, columns, TIMES)
    if times is None:
        raise DdsimError(f"{name}: no column of times; call it {listed(TIMES[:2], 'or')}, in seconds or as dates")
    return Arrivals(
        _seconds(times, name), _column(table, columns, PROMPTS), _column(table, columns, ANSWERS), name=name
    )


def _column(table: pd.DataFrame, columns: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = next((columns[one] for one in names if one in columns), None)
    return None if found is None else table[found]


def _seconds(times: pd.Series, name: str) -> Floats:
    """Seconds, of numbers; or seconds from the first one, of dates."""
    if times.dtype.kind == "m":
        return np.asarray(times.dt.total_seconds(), np.float64)
    if times.dtype.kind != "M":
        try:
            known = np.asarray(pd.to_numeric(times, errors="coerce"), np.float64)
        except (TypeError, ValueError, OverflowError):  # lists, numbers that are missing or too large
            raise DdsimError(f"{name}: {times.name}: no column of seconds or dates") from None
        missing = np.isnan(known)
        if not missing.all() or not len(times):
            wrong = np.flatnonzero(missing & times.notna().to_numpy())
            if len(wrong):
                shown = brief(str(times.iloc[int(wrong[0])]))
                raise DdsimError(f"{name}: request {wrong[0] + 1}: {shown} is no number of seconds")
            return known
    dates = pd.to_datetime(times, errors="coerce", utc=True, format="mixed")
    dates = dates.where(times.astype(str).str.contains(A_DATE))
    if dates.isna().any():
        at = int(np.flatnonzero(dates.isna())[0])
        raise DdsimError(f"{name}: request {at + 1}: {brief(str(times.iloc[at]))} is neither seconds nor a date")
    return np.asarray((dates - dates.iloc[0]).dt.total_seconds(), np.float64)


LONGEST = 1e9  # seconds: later, a clock in float64 wouldn't tell microseconds


def check_span(seconds: float) -> None:
    """Refuse a last request that comes so late that the clock would stand still in rounds."""
    if seconds > LONGEST:
        raise DdsimError(
            f"arrivals: the last request comes after {seconds:.3g} s; at most {LONGEST:.0e} s are simulated: raise the rate, or mend the times "
            "of the log"
        )


def drawn_arrivals(pattern: str, simulations: int, requests: int, seed: int) -> Floats:
    """Arrivals at one request a second, float64 [simulations, requests]; the first at 0.

    Examples
    --------
    >>> drawn_arrivals("poisson", 2, 3, seed=0).shape
    (2, 3)
    """
    if pattern not in PATTERNS:
        raise DdsimError(f'unknown arrivals "{pattern}" (known: {", ".join(PATTERNS)}, or a log: .csv or .parquet)')
    shape = PATTERNS[pattern]
    gaps = np.random.default_rng([seed, 1]).gamma(shape, 1 / shape, (simulations, requests))
    gaps[:, 0] = 0
    times: Floats = np.cumsum(gaps, axis=1)
    return times
