"""What a trace holds: its columns, its metadata, and the names of its sequences."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.files.documents import parse
from ddsim.text import brief
from ddsim.trace.folded import COLUMNS, Folded, columns

if TYPE_CHECKING:
    from ddsim.tree.lattices import Lattices
    from ddsim.tree.proposal import Rows

SCHEMA_VERSION = 2
"""The newest; rows of marginals are written as version 1, which older builds read too."""


KINDS = ("lattice", "trees")
"""What schema 2 records; schema 1 holds rows of marginals, and chains, which are rows of one candidate."""


DEFAULT_MAX_BUDGET = 512


MAX_HORIZON = 255  # accepted tokens are counted in a byte


MAX_BUDGET = 65535  # counts of candidates are recorded in 16 bits


PIECES_FILE = "_pieces.parquet"


RECORDING_FILE = "_recording.json"


# Entries of a provenance that may differ between two runs of one recording.
CHANGING_PROVENANCE = ("recorded", "date", "seconds")


_INDEX_COLUMNS = ["sequence", "prompt_id", "workload", "temperature", "position", "context"]


_ROW_COLUMNS = ["token", "counts", "token_ids", "logprobs"]


_FOLDED_COLUMNS = ["token", *COLUMNS]


@dataclass(frozen=True)
class SequenceInfo:
    """What is known of a recorded sequence without reading its candidates."""

    workload: str
    prompt_id: str
    temperature: float
    prompt_tokens: int
    length: int
    """Committed tokens = positions."""
    digest: str
    """Hash of the sequence's whole content."""
    prompt_digest: str = ""
    """Hash of the prompt's tokens; empty in recordings that keep none."""


@dataclass(frozen=True)
class TraceBlock:
    """Some whole sequences of a trace, in memory: S sequences, P positions."""

    horizon: int
    first_sequence: int
    """Number of the block's first sequence in the trace."""
    tokens: NDArray[np.int32]
    """[P] committed tokens x."""
    context: NDArray[np.int32]
    """[P] tokens committed before each."""
    sequence: NDArray[np.int32]
    """[P] number of the sequence in the trace."""
    starts: NDArray[np.int64]
    """[S + 1] sequence s is positions starts[s] : starts[s + 1]."""
    proposal: Rows | Lattices
    """What the drafter proposed at each position."""
    prompt_id: list[str]
    """[S]"""
    workload: list[str]
    """[S]"""
    temperature: NDArray[np.float32]
    """[S]"""

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, position: int) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Candidates and log-probabilities of depths 1..L at a position of the block."""
        return self.marginals.at(position)

    @property
    def marginals(self) -> Rows:
        """``proposal``, where it is rows of marginals; else refused."""
        from ddsim.tree.proposal import Rows

        if not isinstance(self.proposal, Rows):
            raise DdsimError("this trace holds no rows of marginals, but proposals that know their path")
        return self.proposal

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Of ``proposal``."""
        return self.proposal.offsets

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Of ``proposal``."""
        return self.proposal.token_ids

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Of ``proposal``."""
        return self.proposal.logprobs


@dataclass(frozen=True)
class _Rows:
    """One sequence: T positions."""

    tokens: NDArray[np.int32]  # [T]
    counts: NDArray[np.int32]  # [T, L]; zeros at the last position
    token_ids: NDArray[np.int32]  # [M]
    logprobs: NDArray[np.float32]  # [M]


class _Source(Protocol):
    """Where sequences come from."""

    infos: list[SequenceInfo]

    def load(self, wanted: Sequence[int]) -> Iterator[_Rows | Folded]:
        """The sequences with these ascending numbers."""
        ...

    def texts(self, wanted: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Their committed tokens alone."""
        ...


_SHAPE = ("horizon", "max_budget", "vocab_size")


def _metadata(
    horizon: Any, max_budget: Any, vocab_size: Any, provenance: Mapping[str, Any], kind: str = "rows"
) -> dict[str, Any]:
    if kind != "rows" and kind not in KINDS:
        raise DdsimError(f"kind {brief(kind)}: must be rows, {' or '.join(KINDS)}")
    limits = (MAX_HORIZON, MAX_BUDGET, 2**31 - 1)
    for name, value, most in zip(_SHAPE, (horizon, max_budget, vocab_size), limits, strict=True):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1 <= value <= most:
            raise DdsimError(f"{name} {brief(value)}: must be a whole number from 1 to {most:,}")
    try:
        told = parse(json.dumps(dict(provenance), allow_nan=False).encode(), "provenance")
    except DdsimError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DdsimError(f"provenance: must be a mapping of JSON values ({error})") from None
    return {
        "schema_version": 1 if kind == "rows" else 2,
        "horizon": int(horizon),
        "block_size": int(horizon) + 1,
        "max_budget": int(max_budget),
        "vocab_size": int(vocab_size),
        "provenance": told,
    } | ({} if kind == "rows" else {"kind": kind})


def _check_name(where: str, what: str, name: Any) -> str:
    """Names are printed, and drawn: refuse what isn't text, or controls terminals and breaks lines."""
    if not isinstance(name, str):
        raise DdsimError(f"{where}: {what} {brief(name)} must be text")
    if len(name) > 500 or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise DdsimError(f"{where}: {what} {brief(name)} is longer than 500 characters or holds control characters")
    return name


def _digest(
    workload: str,
    prompt_id: str,
    temperature: float,
    prompt_tokens: int,
    rows: _Rows | Folded,
    half: NDArray[np.float16] | None = None,
) -> str:
    """Hash of a sequence's content, the same whether it lies in a file or in memory; ``half``: its exact log-probabilities."""
    if isinstance(rows, Folded):
        return rows.digest([workload, prompt_id, temperature, prompt_tokens])
    exact = half is not None
    if half is None:
        half = rows.logprobs.astype(np.float16)
        exact = np.array_equal(half.astype(np.float32), rows.logprobs)
    logprobs = half.astype("<f2") if exact else rows.logprobs.astype("<f4")
    head = [workload, prompt_id, temperature, prompt_tokens, len(rows.tokens), logprobs.dtype.str]
    digest = hashlib.sha256(json.dumps(head).encode())
    for part in (
        rows.tokens.astype("<i4"),
        rows.counts.astype("<i4"),
        rows.token_ids.astype("<i4"),
        logprobs,
    ):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]


def _describe(
    where: str, workload: Any, prompt_id: Any, temperature: Any, prompt_tokens: Any, rows: _Rows | Folded
) -> SequenceInfo:
    workload, prompt_id = _check_name(where, "workload", workload), _check_name(where, "prompt_id", prompt_id)
    heat = _temperature(where, temperature)
    before = _count(where, "prompt_tokens", prompt_tokens)
    if before >= 2**31 - len(rows.tokens):
        raise DdsimError(f"{where}: a prompt of {before} tokens")
    digest = _digest(workload, prompt_id, heat, before, rows)
    return SequenceInfo(workload, prompt_id, heat, before, len(rows.tokens), digest)


def _temperature(where: str, value: Any) -> float:
    """As float32 holds it."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and 0 <= value < 1e38:
        return float(np.float32(value))
    raise DdsimError(f"{where}: temperature {brief(value)} must be a number of 0 or more")


def _count(where: str, name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise DdsimError(f"{where}: {name} {brief(value)} must be a whole number of 0 or more")
    return int(value)


def _check_new(
    seen: set[tuple[str, str, float]], workload: str, prompt_id: str, temperature: float, where: str
) -> None:
    if (workload, prompt_id, temperature) in seen:
        raise DdsimError(
            f"{where}: the answer to prompt {prompt_id!r} of workload {workload!r} at "
            f"temperature {temperature:g} is in the "
            "trace already"
        )
    seen.add((workload, prompt_id, temperature))


def _check_agree(
    path: Path,
    meta: Mapping[str, Any],
    other_path: Path | None,
    other: Mapping[str, Any],
    keys: Iterable[str],
) -> None:
    """Refuse to join recordings that differ in shape or in the given entries of their provenance."""
    right = "this run" if other_path is None else f"{other_path}"
    mine, others = _leaves(meta["provenance"]), _leaves(other["provenance"])
    pairs = [(name, meta[name], other[name]) for name in ("horizon", "max_budget", "vocab_size")]
    pairs.append(("kind", meta.get("kind", "rows"), other.get("kind", "rows")))
    for key in keys:
        ours, theirs = mine.get(key), others.get(key)
        if other_path is None or (ours is not None and theirs is not None):
            pairs.append((key, ours, theirs))
    for name, ours, theirs in pairs:
        if ours is None and theirs is not None:
            raise DdsimError(
                f"{path}: recorded without {name} (by an older ddsim?), so whether this run would continue it can't be "
                "known; choose another folder"
            )
        if ours != theirs:
            raise DdsimError(
                f"{path}: recorded with {name} {brief(ours)}, {right} has {brief(theirs)}; they can't be one trace"
            )


def _leaves(provenance: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of a provenance, those of objects within as ``object.entry``."""
    found: dict[str, Any] = {}
    for key, value in provenance.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _checksum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:32]


def _id_type(vocab_size: int) -> pa.DataType:
    return pa.uint16() if vocab_size <= 65536 else pa.int32()


def _schema(id_type: pa.DataType, kind: str = "rows") -> pa.Schema:
    rows = [("counts", pa.list_(pa.uint16())), ("token_ids", pa.list_(id_type)), ("logprobs", pa.list_(pa.float16()))]
    return pa.schema(
        [
            ("sequence", pa.int32()),
            ("prompt_id", pa.string()),
            ("workload", pa.string()),
            ("temperature", pa.float32()),
            ("position", pa.int32()),
            ("token", pa.int32()),
            ("context", pa.int32()),
            *(rows if kind == "rows" else columns(id_type)),
        ]
    )


Progress = Callable[[int, int], None]
