"""Traces, profiles and cost models that turn out to be something else: one line that says what is wrong and how to get there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import _is_path, _named
from ddsim.cost.shown import ShownProfile
from ddsim.errors import DdsimError
from ddsim.files.documents import array, check_header, integer, mapping, need, number, read_document, write_document


def check_profile(function: str, profile: Any) -> None:
    """Refuse what isn't a profile."""
    if not isinstance(profile, Profile):
        how = "; open it first, as in ddsim.read_profile(path)" if _is_path(profile) else ""
        raise DdsimError(f"{function}: profile must be a Profile, is {_named(profile)}{how}")


KIND = "ddsim-profile"


SCHEMA_VERSION = 1


CONSTANTS = ("bandwidth_bytes_per_s", "flops_per_s", "weight_bytes", "kv_bytes_per_token", "flops_per_token")


KEYS = ("schema_version", "kind", "provenance", "buckets", "verify", "draft", "host", "prefill", *CONSTANTS)


RESAMPLES = 400


MANY = 1000  # repeats past which the bars come from order statistics: resampling would take gigabytes


# More than any machine does, so that a wrong unit or a damaged file is named and nothing is allocated for it.
MOST_TOKENS = 1 << 22


MOST_CONTEXT = 1 << 31


MOST_BATCH = 1 << 20


MOST_SECONDS = 3600.0


MOST_SIZES = 4096  # token counts at one context and batch


MILLISECONDS = 1.0  # a fastest pass that takes more seconds than this was probably written down in milliseconds


FASTER, SLOWER = 0.7, 500.0  # of the time to read the weights, or to do the arithmetic: what can hardly be true


LIMITS = {
    "tokens": (MOST_TOKENS, "pass verifies, in tokens"),
    "context": (MOST_CONTEXT, "context, in tokens"),
    "batch": (MOST_BATCH, "batch, in requests"),
}


FALL = 0.25  # cost that falls by more than this share with more tokens


FloatArray = NDArray[np.float64]


IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class VerifySample:
    """Repeated seconds of one verification pass: ``tokens`` over the whole batch, ``context`` per request."""

    tokens: int
    context: int
    batch: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class DraftSample:
    """Repeated seconds of one drafter pass over a batch."""

    context: int
    batch: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class HostSample:
    """Repeated seconds that a round spends outside drafter and target (tree building, sampling, bookkeeping)."""

    seconds: tuple[float, ...]
    batch: int = 1


@dataclass(frozen=True)
class PrefillSample:
    """Repeated seconds of committing ``tokens`` prompt tokens of one request that has ``context`` others before them."""

    tokens: int
    context: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Points:
    """One point per measured (tokens, context, batch): the median of its repeats and a bootstrap error bar.

    Attributes
    ----------
    tokens, context, batch : int64 [M]
        Sorted by batch, then context, then tokens; each combination once.
    seconds, low, high : float64 [M]
        Median over repeats and the 95 % bootstrap interval of that median.
    error : float64 [M]
        Bootstrap standard deviation of the median, seconds; 0 for a point without repeats.
    repeats : int64 [M]
    """

    tokens: IntArray
    context: IntArray
    batch: IntArray
    seconds: FloatArray
    low: FloatArray
    high: FloatArray
    error: FloatArray
    repeats: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, which: NDArray[Any]) -> Points:
        """The points chosen by a mask or by indices."""
        return Points(**{name: getattr(self, name)[which] for name in self.__dataclass_fields__})


@dataclass(frozen=True, repr=False)
class Profile(ShownProfile):
    """What verification and drafting cost on one device, as measured.

    Parameters
    ----------
    verify : sequence of VerifySample
        At least 2 token counts at every (context, batch) that occurs.
    draft : sequence of DraftSample
        May be empty where there is no drafter; drafting then costs nothing but host time.
    host : sequence of HostSample
    provenance : dict
        Device, model, dtype, versions, date; anything that is JSON.
    buckets : sequence of int, optional
        Token counts that the engine pads to (CUDA-graph sizes), ascending. None: not padded, or not known.
    bandwidth_bytes_per_s, flops_per_s, weight_bytes, kv_bytes_per_token, flops_per_token : float, optional
        What is known of device and model; starting values for the ``roofline`` fit.
    prefill : sequence of PrefillSample
        May be empty.

    Raises
    ------
    DdsimError
        One line that names the entry and what is wrong with it.

    Examples
    --------
    >>> p = Profile([VerifySample(1, 512, 1, (0.010, 0.011)), VerifySample(64, 512, 1, (0.014,))])
    >>> p.points().seconds.round(6).tolist()
    [0.0105, 0.014]
    """

    verify: Sequence[VerifySample]
    draft: Sequence[DraftSample] = ()
    host: Sequence[HostSample] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    buckets: Sequence[int] | None = None
    bandwidth_bytes_per_s: float | None = None
    flops_per_s: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    flops_per_token: float | None = None
    prefill: Sequence[PrefillSample] = ()

    def __post_init__(self) -> None:
        checked = _parse(_document(self), "profile")
        for name, value in checked.items():  # sequences become tuples, numbers plain Python numbers
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """The profile as the JSON object that files hold."""
        return _document(self)

    @classmethod
    def from_json(cls, document: dict[str, Any], where: str = "profile") -> Profile:
        """A profile from its JSON object; ``where`` names the file in error messages."""
        check_header(document, {KIND: SCHEMA_VERSION}, where)
        return cls(**_parse(document, where))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON, whole or not at all."""
        write_document(path, self.to_json())

    def points(self, seed: int = 0) -> Points:
        """Median and bootstrap error bar of every measured (tokens, context, batch); samples of the same point are pooled.

        The bars of a point depend on its own repeats (and ``seed``) only, so leaving others out changes nothing.
        """
        pooled: dict[tuple[int, int, int], list[float]] = {}
        for s in self.verify:
            pooled.setdefault((s.batch, s.context, s.tokens), []).extend(s.seconds)
        keys = sorted(pooled)
        rows = np.array([_median_and_bar(np.array(pooled[key]), seed) for key in keys])
        batch, context, tokens = np.array(keys, np.int64).T
        seconds, low, high, error = rows.T
        repeats = np.array([len(pooled[key]) for key in keys], np.int64)
        return Points(tokens, context, batch, seconds, low, high, error, repeats)


def doubts(profile: Profile, points: Points) -> list[str]:
    """What can hardly be true of a profile, a line each that names the sample and the figures; usually nothing.

    The seconds of a wrong unit; passes faster than the device reads the weights, or hundreds of times slower than weights and
    arithmetic ask for, where the profile has the device's and the model's constants; costs that fall with more tokens.
    """
    found = []
    fastest = int(np.argmin(points.seconds))
    if points.seconds[fastest] > MILLISECONDS:
        found.append(
            f"{_place(points, fastest)} is the fastest pass and takes {points.seconds[fastest]:g} s: are these milliseconds? "
            "Divide by 1,000 if so"
        )
    for name, samples in (("draft", profile.draft), ("host", profile.host)):
        least = min((float(np.median(s.seconds)) for s in samples), default=0.0)
        if least > max(MILLISECONDS, 10 * float(points.seconds.max())):
            found.append(
                f"{name} takes {least:g} s at least, more than 10 times any verification: are these milliseconds?"
            )
    if profile.weight_bytes and profile.bandwidth_bytes_per_s:
        weights = profile.weight_bytes / profile.bandwidth_bytes_per_s
        if points.seconds[fastest] < FASTER * weights:
            found.append(
                f"{_place(points, fastest)} takes {1e3 * points.seconds[fastest]:.4g} ms, but reading "
                f"{profile.weight_bytes / 1e9:.3g} GB of weights at {profile.bandwidth_bytes_per_s / 1e9:,.0f} GB/s takes "
                f"{1e3 * weights:.4g} ms"
            )
        rate = (profile.flops_per_token or 0.0) / profile.flops_per_s if profile.flops_per_s else 0.0
        needed = np.maximum(weights, rate * points.tokens)
        nearest = int(np.argmin(points.seconds / needed))
        if points.seconds[nearest] > SLOWER * needed[nearest]:
            found.append(
                f"{_place(points, nearest)} takes {points.seconds[nearest]:.4g} s, {points.seconds[nearest] / needed[nearest]:,.0f} "
                f"times what weights and arithmetic need ({1e3 * needed[nearest]:.4g} ms), and no other is nearer: are these "
                "milliseconds?"
            )
    falls = []
    edges = np.flatnonzero(np.diff(points.batch) | np.diff(points.context)) + 1
    for curve in np.split(np.arange(len(points)), edges):  # sorted, so a curve's points follow one another
        y = points.seconds[curve]
        peaks = np.maximum.accumulate(np.where(y == np.maximum.accumulate(y), np.arange(len(y)), 0))
        peak = curve[peaks]
        fall = (y < (1 - FALL) * points.seconds[peak]) & (points.high[curve] < points.low[peak])
        falls += [(float(y[i] / points.seconds[peak[i]]), int(curve[i]), int(peak[i])) for i in np.flatnonzero(fall)]
    if falls:
        ratio, worst, top = min(falls)
        found.append(
            f"cost falls with more tokens: {_place(points, worst)} takes {1e3 * points.seconds[worst]:.4g} ms, "
            f"{100 * (1 - ratio):.0f} % less than {points.tokens[top]} tokens ({1e3 * points.seconds[top]:.4g} ms): was one "
            "disturbed, or is the order of the columns wrong?"
        )
    return found


def _place(points: Points, i: int) -> str:
    return f"verify at {points.tokens[i]} tokens, context {points.context[i]}, batch {points.batch[i]}"


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile file.

    Raises
    ------
    DdsimError
        One line: which file, which entry, what is wrong.

    Examples
    --------
    >>> from ddsim.demo import PROFILE, data
    >>> read_profile(data(PROFILE)).provenance["device"]
    'NVIDIA H100 80GB HBM3'
    """
    return Profile.from_json(read_document(path, {KIND: SCHEMA_VERSION}), str(path))


def write_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile file, whole or not at all."""
    profile.save(path)


def _median_and_bar(seconds: FloatArray, seed: int) -> tuple[float, float, float, float]:
    """Median, 2.5 % and 97.5 % bootstrap quantiles of it, and its bootstrap standard deviation."""
    median = float(np.median(seconds))
    if len(seconds) == 1:
        return median, median, median, 0.0
    rng, n = np.random.default_rng([seed, len(seconds)]), len(seconds)
    if n <= MANY:
        medians = np.median(seconds[rng.integers(0, n, (RESAMPLES, n))], axis=1)
    else:
        # The k-th of n draws is the sample's entry at n times the k-th of n uniform numbers, which is Beta(k, n + 1 - k);
        # the next one lies beyond it by the least of the n - k that are left.
        ordered, k = np.sort(seconds), (n + 1) // 2
        low_half = rng.beta(k, n + 1 - k, RESAMPLES)
        high_half = low_half if n % 2 else 1.0 - (1.0 - low_half) * rng.random(RESAMPLES) ** (1.0 / (n - k))
        below, above = (ordered[np.minimum((n * u).astype(np.int64), n - 1)] for u in (low_half, high_half))
        medians = (below + above) / 2.0
    low, high = np.quantile(medians, (0.025, 0.975))
    return median, float(low), float(high), float(medians.std())


def bounded(value: float, most: float, where: str, what: str) -> None:
    """Refuse a number above anything that exists; ``what`` it counts goes into the line."""
    if value > most:
        raise DdsimError(
            f"{where}: {value if isinstance(value, int) else f'{value:g}'} is more than any {what} ({most:,.0f}); is the unit or the column wrong?"
        )


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers, so that they pass as what they are and can be written."""
    return value.item() if isinstance(value, np.generic) else value


def _document(p: Profile) -> dict[str, Any]:
    def seconds(sample: VerifySample | DraftSample | HostSample | PrefillSample) -> list[float]:
        return [_plain(s) for s in sample.seconds]

    def samples(name: str, kind: type) -> Iterable[Any]:
        for i, sample in enumerate(getattr(p, name)):
            if not isinstance(sample, kind):
                raise DdsimError(f"profile: {name}[{i}]: must be a {kind.__name__}, is {type(sample).__name__}")
            yield sample

    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "provenance": dict(p.provenance),
    }
    document["buckets"] = None if p.buckets is None else [_plain(b) for b in p.buckets]
    for name in CONSTANTS:
        if getattr(p, name) is not None:
            document[name] = _plain(getattr(p, name))
    document["verify"] = [
        {
            "tokens": _plain(s.tokens),
            "context": _plain(s.context),
            "batch": _plain(s.batch),
            "seconds": seconds(s),
        }
        for s in samples("verify", VerifySample)
    ]
    document["draft"] = [
        {"context": _plain(s.context), "batch": _plain(s.batch), "seconds": seconds(s)}
        for s in samples("draft", DraftSample)
    ]
    document["host"] = [{"batch": _plain(s.batch), "seconds": seconds(s)} for s in samples("host", HostSample)]
    if p.prefill:
        document["prefill"] = [
            {"tokens": _plain(s.tokens), "context": _plain(s.context), "seconds": seconds(s)}
            for s in samples("prefill", PrefillSample)
        ]
    return document


def _parse(document: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a Profile from its JSON object, all checks made."""
    mapping(document, where, KEYS)
    fields: dict[str, Any] = {"provenance": mapping(need(document, "provenance", where), f"{where}: provenance")}
    fields["verify"] = tuple(
        VerifySample(e["tokens"], e["context"], e["batch"], e["seconds"])
        for e in _entries(document, "verify", where, {"tokens": 1, "context": 0, "batch": 1}, 1)
    )
    fields["draft"] = tuple(
        DraftSample(e["context"], e["batch"], e["seconds"])
        for e in _entries(document, "draft", where, {"context": 0, "batch": 1})
    )
    fields["host"] = tuple(
        HostSample(e["seconds"], e["batch"]) for e in _entries(document, "host", where, {"batch": 1})
    )
    fields["prefill"] = tuple(
        PrefillSample(e["tokens"], e["context"], e["seconds"])
        for e in _entries(document, "prefill", where, {"tokens": 1, "context": 0})
    )
    buckets = document.get("buckets")
    if buckets is not None:
        buckets = check_buckets(buckets, f"{where}: buckets")
    fields["buckets"] = buckets
    for name in CONSTANTS:
        value = document.get(name)
        fields[name] = None if value is None else number(value, f"{where}: {name}", positive=True)

    counts: dict[tuple[int, int], set[int]] = {}
    for i, s in enumerate(fields["verify"]):
        if s.tokens < s.batch:
            raise DdsimError(
                f"{where}: verify[{i}]: {s.tokens} tokens for a batch of {s.batch}; tokens counts the whole batch"
            )
        counts.setdefault((s.context, s.batch), set()).add(s.tokens)
    for (context, batch), tokens in counts.items():
        if len(tokens) > MOST_SIZES:
            raise DdsimError(
                f"{where}: verify has {len(tokens):,} token counts at context {context}, batch {batch}; "
                f"thin them out to at most {MOST_SIZES:,}"
            )
        if len(tokens) < 2:
            raise DdsimError(
                f"{where}: verify needs at least 2 token counts at context {context}, batch {batch}; it has only {min(tokens)}"
            )
    return fields


def check_buckets(values: Any, where: str) -> tuple[int, ...]:
    """Padded sizes as plain numbers: whole, at least 1, ascending; ``where`` names them in errors."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    sizes = [integer(_plain(b), f"{where}[{i}]", 1) for i, b in enumerate(array(values, where, 1))]
    for i, (before, size) in enumerate(pairwise(sizes), 1):
        if size <= before:
            raise DdsimError(f"{where}[{i}]: {size} does not exceed the {before} before it")
    bounded(sizes[-1], MOST_TOKENS, f"{where}[{len(sizes) - 1}]", LIMITS["tokens"][1])
    return tuple(sizes)


def _entries(
    document: dict[str, Any], name: str, where: str, integers: dict[str, int], at_least: int = 0
) -> list[dict[str, Any]]:
    """The checked samples of one list: whole numbers with their minima, and at least one duration."""
    raw = document.get(name, []) if name in ("host", "prefill") else need(document, name, where)
    entries = []
    for i, entry in enumerate(array(raw, f"{where}: {name}", at_least)):
        place = f"{where}: {name}[{i}]"
        entry = mapping(entry, place, (*integers, "seconds"))
        values: dict[str, Any] = {}
        for key, minimum in integers.items():
            value = 1 if name == "host" and key not in entry else need(entry, key, place)
            values[key] = integer(value, f"{place}.{key}", minimum)
            most, what = LIMITS[key]
            bounded(values[key], most, f"{place}.{key}", what)
        seconds = array(need(entry, "seconds", place), f"{place}.seconds", 1)
        values["seconds"] = tuple(number(s, f"{place}.seconds[{j}]", positive=True) for j, s in enumerate(seconds))
        bounded(max(values["seconds"]), MOST_SECONDS, f"{place}.seconds", "pass takes, in seconds")
        entries.append(values)
    return entries
