"""Costs that others measured: CSV tables of passes or of whole steps, SPS tables of SGLang, latency files of CaDDTree's authors."""

from __future__ import annotations

import csv
import math
import statistics
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddsim.cost.interpolation import Curve, RoundPoint
from ddsim.cost.profile import LIMITS, MILLISECONDS, MOST_SECONDS, DraftSample, Profile, VerifySample, bounded
from ddsim.errors import DdsimError
from ddsim.files.documents import array, integer, mapping, need, number, parse
from ddsim.files.torch_values import ZIP, read_torch_values
from ddsim.text import brief

COLUMNS = ("batch", "k", "context", "seconds")
"""Of a CSV of whole steps: requests, drafted tokens of each, committed tokens of each, seconds of the whole step."""

PASSES, BESIDE = ("tokens", "seconds"), ("context", "batch", "draft_seconds")
"""Of a CSV of passes: tokens verified, of all requests together, and seconds; what may stand beside them."""

UNITS = {"ms": ("seconds", 1e3), "milliseconds": ("seconds", 1e3), "draft_ms": ("draft_seconds", 1e3)}
"""Columns of other units: what they hold, and how many are a second."""

WHOLE_STEPS = "of whole steps, drafting included"
"""What provenance says of ``seconds`` where drafting can't be told from verifying."""


@dataclass(frozen=True)
class Fitted:
    """Curves that need no fit: a cost model of somebody else's."""

    kind: str
    curves: list[Curve]
    draft: list[RoundPoint]
    provenance: dict[str, Any]


DENSE, MANY = 64, 2048
"""Tokens up to which every size of a latency file is kept, and passes above which larger ones are thinned: fits would take minutes."""

LEAST = 1e-9
"""Seconds that a draft takes at least: a profile holds no 0."""

SPLIT_STEPS = "of whole steps; what the shortest draft adds to a step without one counts as drafting"
"""The same where it was told apart so."""


SPS = ("sample_batch_tokens", "sample_steps_per_sec", "max_batch_tokens")
ADDITIVE = ("bias_seconds", "bs_probes", "alpha_seconds", "m_probes", "theta_seconds")


def read_content(content: bytes, where: str) -> Profile | Fitted | Any:
    """Costs of others by what a file holds: a profile, or curves that are fitted; of other JSON its value."""
    if content.startswith(ZIP):
        return read_caddtree(content, where)
    if is_csv(content):
        return read_csv(content, where)
    document = parse(content, where)
    return read_sps(document, where) if is_sps(document) else document


def is_csv(content: bytes) -> bool:
    """Whether the first line names columns, tokens or seconds among them."""
    first = content[:1000].removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].lower()
    return b"," in first and (b"seconds" in first or b"tokens" in first) and not first.lstrip().startswith((b"{", b"["))


def read_csv(content: bytes, where: str) -> Profile | Fitted:
    """Costs as a CSV: of passes by their tokens, or of whole steps by batch and drafted tokens.

    - ``tokens,seconds``, and where known ``context``, ``batch`` and ``draft_seconds``: a pass that verifies so many tokens, of all
      requests together, takes so long; ``draft_seconds`` is what the draft of a round takes, in any of the rows. Rows of one size are
      repeats. Without a column ``context`` or ``batch`` costs are the same at any.
    - ``batch,k,context,seconds``: whole steps of an engine, in which each request drafts k tokens. k = 0 is a step without a draft,
      and there must be one at every batch and context. What the shortest draft adds to a step without one counts as drafting, the
      rest of a step as a pass of batch·(k + 1) tokens. So a round costs what its step took, whichever part of it is which.

    ``ms`` (``milliseconds``, ``draft_ms``) may stand for ``seconds``. Columns come in any order.

    Parameters
    ----------
    content : bytes
    where : str
        Names the file in error messages.

    Raises
    ------
    DdsimError
        One line: which file, which row, which column, what is wrong.

    Examples
    --------
    >>> read_csv(b"tokens,ms\\n1,6.5\\n64,7.3\\n", "mine.csv").curves[0].seconds
    (0.0065, 0.0073)
    >>> read_csv(b"batch,k,context,seconds\\n1,0,512,0.0067\\n1,7,512,0.0079\\n", "vllm.csv").draft
    (DraftSample(context=512, batch=1, seconds=(0.0012,)),)
    """
    try:
        rows = list(csv.reader(content.decode("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DdsimError(f"{where}: can't be read as CSV ({error})") from None
    found = [name.strip().lower().replace(" ", "_") for name in rows[0]]
    names = [UNITS.get(name, (name, 1.0))[0] for name in found]
    of_passes = set(PASSES) <= set(names) <= {*PASSES, *BESIDE} and len(set(names)) == len(names)
    if not of_passes and sorted(names) != sorted(COLUMNS):
        raise DdsimError(
            f"{where}: row 1: must name the columns {', '.join(COLUMNS)} (of whole steps), or {' and '.join(PASSES)} and any of "
            f"{', '.join(BESIDE)} (of passes); ms may stand for seconds; names {', '.join(found)}"
        )
    entries = []
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(names):
            raise DdsimError(f"{where}: row {line}: has {len(row)} fields, not {len(names)}")
        entry: dict[str, Any] = {}
        for name, called, text in zip(names, found, row, strict=True):
            place = f"{where}: row {line}: {called}"
            if name == "draft_seconds" and not text.strip():
                continue  # it is known once
            entry[name] = (
                _seconds(text, place, UNITS.get(called, ("", 1.0))[1]) if "seconds" in name else _whole(text, place)
            )
        batch, tokens = entry.get("batch", 1), entry.get("tokens", entry.get("batch", 1) * (entry.get("k", 0) + 1))
        if batch < 1:
            raise DdsimError(f"{where}: row {line}: batch: must be at least 1, is {batch}")
        if tokens < batch:
            raise DdsimError(f"{where}: row {line}: tokens: must be at least 1 a request, {batch}, is {tokens}")
        for name, value in (("tokens", tokens), ("context", entry.get("context", 0)), ("batch", batch)):
            bounded(value, LIMITS[name][0], f"{where}: row {line}: {name}", LIMITS[name][1])
        entries.append(entry)
    if not entries:
        raise DdsimError(f"{where}: holds no {'pass' if of_passes else 'step'}, only the names of its columns")
    return _passes(entries, names, where) if of_passes else _steps(entries, where)


def _passes(entries: list[dict[str, Any]], names: list[str], where: str) -> Profile | Fitted:
    """Passes by their tokens: a profile where contexts are known, otherwise curves that are the same at any."""
    passes: dict[tuple[int, int], dict[int, list[float]]] = {}
    drafts: dict[tuple[int, int], list[float]] = {}
    for entry in entries:
        at = entry.get("context", 0), entry.get("batch", 1)
        passes.setdefault(at, {}).setdefault(entry["tokens"], []).append(entry["seconds"])
        if "draft_seconds" in entry:
            drafts.setdefault(at, []).append(entry["draft_seconds"])
    for (context, batch), by in passes.items():
        if len(by) < 2:
            place = "".join(f" at {n} {v}" for n, v in (("context", context), ("batch", batch)) if n in names)
            raise DdsimError(f"{where}: needs passes of at least 2 numbers of tokens{place}")
    source = _provenance(f"CSV of ({', '.join(names)})", where)
    if "context" in names:
        verify = [
            VerifySample(tokens, *at, tuple(seconds)) for at, by in passes.items() for tokens, seconds in by.items()
        ]
        return Profile(verify, [DraftSample(*at, tuple(seconds)) for at, seconds in drafts.items()], provenance=source)
    if (fastest := min(entry["seconds"] for entry in entries)) > MILLISECONDS:
        text = f"{where}: the fastest pass takes {fastest:g} s: are these milliseconds? Call the column ms, or divide by 1,000"
        warnings.warn(text, stacklevel=2)
    curves, draft = [], []
    for (_, batch), by in sorted(passes.items()):
        known = batch if "batch" in names else None
        sizes = sorted(by)
        curves.append(_curve(None, known, sizes, [statistics.median(by[tokens]) for tokens in sizes]))
        if (0, batch) in drafts:
            draft.append(RoundPoint(None, known, statistics.median(drafts[0, batch])))
    return Fitted("table", curves, draft or [RoundPoint(None, None, 0.0)], source)


def _steps(entries: list[dict[str, Any]], where: str) -> Profile:
    """Whole steps by batch and drafted tokens."""
    repeats: dict[tuple[int, int, int], list[float]] = {}
    for entry in entries:
        repeats.setdefault((entry["batch"], entry["context"], entry["k"]), []).append(entry["seconds"])
    verify, draft = [], []
    for batch, context in dict.fromkeys((batch, context) for batch, context, _ in repeats):
        by = {k: seconds for (b, c, k), seconds in sorted(repeats.items()) if (b, c) == (batch, context)}
        if 0 not in by or len(by) < 2:
            raise DdsimError(f"{where}: needs steps of k = 0 and of another k at batch {batch}, context {context}")
        shortest = sorted(by)[1]
        adds = statistics.median(by[shortest]) - statistics.median(by[0])
        least = min(s for k, seconds in by.items() if k for s in seconds)
        drafting = round(min(max(adds, LEAST), 0.9 * least), 12)
        draft.append(DraftSample(context, batch, (drafting,)))
        verify += [
            VerifySample(batch * (k + 1), context, batch, tuple(s - drafting if k else s for s in seconds))
            for k, seconds in by.items()
        ]
    return Profile(
        verify, draft, provenance=_provenance("CSV of (batch, k, context, seconds)", where, seconds=SPLIT_STEPS)
    )


def _whole(text: str, where: str) -> int:
    """A whole number in a field."""
    if not text.strip().isascii() or not text.strip().isdigit():
        raise DdsimError(f"{where}: must be a whole number of 0 or more, is {brief(text)}")
    if len(text) > 20:
        raise DdsimError(f"{where}: is implausibly large ({brief(text)})")
    return int(text)


def _seconds(text: str, where: str, units: float) -> float:
    """A duration in a field, in seconds; so many ``units`` are one."""
    try:
        value = float(text) / units
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DdsimError(f"{where}: must be a number above 0, is {brief(text)}")
    bounded(value, MOST_SECONDS, where, "step takes, in seconds")
    return value


def is_sps(document: Any) -> bool:
    """Whether a JSON value is one of SGLang's SPS tables."""
    return isinstance(document, dict) and (SPS[0] in document or ADDITIVE[0] in document)


def read_sps(document: dict[str, Any], where: str) -> Fitted:
    """Curves of an SPS table of SGLang (DSPARK): seconds of a step by the tokens of its pass, and maybe by its requests.

    The tables know no context, and the simple one no requests either: it says the same at any. Between probes seconds are on a line,
    where SGLang takes those of the probe below from a simple table.

    Raises
    ------
    DdsimError
        Fields missing or not as SGLang has them, or fewer than two probes, which SGLang takes for a table that wasn't measured.

    Examples
    --------
    >>> read_sps({"sample_batch_tokens": [8, 64], "sample_steps_per_sec": [100, 50.0], "max_batch_tokens": 64}, "sps.json").curves[0].seconds
    (0.01, 0.02)
    """
    if SPS[0] in document:
        mapping(document, where, SPS)
        tokens, rates = _probes(document, "sample_batch_tokens", "sample_steps_per_sec", where, positive=True)
        most = integer(need(document, SPS[2], where), f"{where}: {SPS[2]}", 1)
        if most < tokens[-1]:
            raise DdsimError(f"{where}: {SPS[2]}: {most} is below the last probe, {tokens[-1]}")
        if len(tokens) < 2:
            raise DdsimError(f"{where}: holds one probe, as a table that wasn't measured; profile SGLang first")
        return _table([_curve(None, None, tokens, [1 / rate for rate in rates])], "SPS table", where)
    mapping(document, where, ADDITIVE)
    bias = number(need(document, ADDITIVE[0], where), f"{where}: {ADDITIVE[0]}", positive=True)
    batches, alpha = _probes(document, "bs_probes", "alpha_seconds", where, positive=False)
    tokens, theta = _probes(document, "m_probes", "theta_seconds", where, positive=False)
    curves = []
    for batch, own in zip(batches, alpha, strict=True):
        points = [(t, bias + own + pass_) for t, pass_ in zip(tokens, theta, strict=True) if t >= batch]
        if len(points) > 1:
            curves.append(_curve(None, batch, [t for t, _ in points], [seconds for _, seconds in points]))
    if not curves:
        raise DdsimError(f"{where}: needs at least two m_probes that aren't below the batch, at one of its bs_probes")
    return _table(curves, "additive SPS table", where)


def _table(curves: list[Curve], name: str, where: str) -> Fitted:
    source = _provenance(f"{name} (SGLang, DSPARK)", where, engine="sglang", seconds=WHOLE_STEPS)
    return Fitted("table", curves, [RoundPoint(None, None, 0.0)], source)


def _probes(
    document: dict[str, Any], at: str, values: str, where: str, *, positive: bool
) -> tuple[list[int], list[float]]:
    """Probes that ascend, and a number for each."""
    probes = [
        integer(v, f"{where}: {at}[{i}]", 1)
        for i, v in enumerate(array(need(document, at, where), f"{where}: {at}", 1))
    ]
    numbers = [
        number(v, f"{where}: {values}[{i}]", positive=positive)
        for i, v in enumerate(array(need(document, values, where), f"{where}: {values}"))
    ]
    if len(probes) != len(numbers):
        raise DdsimError(f"{where}: {at} and {values} must be as many, are {len(probes)} and {len(numbers)}")
    for i, (before, probe) in enumerate(pairwise(probes), 1):
        if probe <= before:
            raise DdsimError(f"{where}: {at}[{i}]: {probe} does not exceed the {before} before it")
    bounded(probes[-1], LIMITS["tokens"][0], f"{where}: {at}", LIMITS["tokens"][1])
    return probes, numbers


def _curve(context: int | None, batch: int | None, tokens: list[int], seconds: list[float]) -> Curve:
    return Curve(context, batch, tokens[0], tokens[-1], tuple(map(float, tokens)), tuple(seconds))


def read_caddtree(content: bytes, where: str) -> Profile | Fitted:
    """A latency file, or a fitted cost model, of CaDDTree's public code: Python values that ``torch.save`` wrote.

    ``verify_latency__MODEL.pt`` holds ``profile_data["latencies"][context][tokens]``, lists of seconds of one pass of the target at
    batch 1; drafting isn't in it. ``MODEL_convex.pt`` (``type`` "convex") holds ``fitted_curves[context]``, seconds by tokens from 0 on,
    and ``draft_cost``, seconds.

    Raises
    ------
    DdsimError
        Another file of ``torch.save``, or a damaged one.
    """
    values = read_torch_values(content, where)
    if not isinstance(values, dict) or not ("profile_data" in values or values.get("type") == "convex"):
        raise DdsimError(f"{where}: is a file of torch.save, but no latencies or cost model of CaDDTree's code")
    if "profile_data" in values:
        held = need(mapping(values["profile_data"], f"{where}: profile_data"), "latencies", f"{where}: profile_data")
        source = _provenance("CaDDTree's verification latencies (verify_latency__*.pt)", where)
        given = values.get("args")
        if isinstance(given, dict) and isinstance(given.get("model_name_or_path"), str):
            source["target"] = given["model_name_or_path"]
        verify = [
            VerifySample(tokens, context, 1, tuple(array(seconds, f"{where}: latencies[{context}][{tokens}]", 1)))
            for context, by in _at(held, where).items()
            for tokens, seconds in _at(by, where).items()
        ]
        kept = [s for s in verify if s.tokens <= DENSE or s.tokens % 8 in (0, 1)]
        if len(verify) > MANY and kept:
            verify, source["sizes"] = (
                kept,
                f"above {DENSE} tokens only multiples of 8 and one more, of {len(verify)} passes",
            )
        try:
            return Profile(verify, provenance=source)
        except DdsimError as error:
            raise DdsimError(f"{where}: {str(error).removeprefix('profile: ')}") from None
    cost = number(need(values, "draft_cost", where), f"{where}: draft_cost", positive=False)
    curves = []
    for context, by in _at(need(values, "fitted_curves", where), where).items():
        place = f"{where}: fitted_curves[{context}]"
        # The value for 0 tokens is that of 1: no pass has none.
        seconds = [number(s, f"{place}[{t}]", positive=True) for t, s in enumerate(array(by, place, 3))][1:]
        bounded(max(seconds), MOST_SECONDS, place, "pass takes, in seconds")
        bounded(len(seconds), LIMITS["tokens"][0], place, LIMITS["tokens"][1])
        curves.append(_curve(integer(context, place, 0), 1, list(range(1, len(seconds) + 1)), seconds))
    if not curves:
        raise DdsimError(f"{where}: holds no curve")
    source = _provenance("CaDDTree's fitted cost model (*_convex.pt)", where)
    return Fitted("convex", curves, [RoundPoint(None, None, cost)], source)


def _at(held: Any, where: str) -> dict[int, Any]:
    """Entries by whole numbers."""
    if not isinstance(held, dict) or not all(isinstance(key, int) and not isinstance(key, bool) for key in held):
        raise DdsimError(f"{where}: must hold entries by context and tokens, as CaDDTree's code writes them")
    return held


def _provenance(source: str, where: str, **more: str) -> dict[str, Any]:
    """Where costs come from."""
    return {"source": source, "file": Path(where).name, **more}
