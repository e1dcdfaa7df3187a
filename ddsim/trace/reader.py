"""Reads shards of a trace, with every damage told in one line."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ddsim.arrays import plain
from ddsim.errors import DdsimError
from ddsim.files.cache import is_known, remember
from ddsim.files.documents import array, integer, mapping, need, parse
from ddsim.trace.checks import _first_bad_row, _listed
from ddsim.trace.folded import COLUMNS, Folded
from ddsim.trace.schema import (
    _FOLDED_COLUMNS,
    _INDEX_COLUMNS,
    _ROW_COLUMNS,
    _SHAPE,
    KINDS,
    RECORDING_FILE,
    SCHEMA_VERSION,
    SequenceInfo,
    _check_name,
    _checksum,
    _digest,
    _id_type,
    _metadata,
    _Rows,
    _schema,
)

MOST_MATCHES = 10_000  # of a pattern, at any depth


VERIFIED = "verified-1"  # counted up when opening a trace verifies more


def _names(what: str, value: Any) -> set[str] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else _listed(what, value)
    if not all(isinstance(name, str) for name in names):
        raise DdsimError(f"{what}: must be a name or a list of names")
    return set(names)


def _trace_folders(path: Path) -> list[Path]:
    """The folders with shards that a path means."""
    if glob.has_magic(str(path)) and not path.exists():
        folders = [folder for match in _matches(path) for folder in _with_shards(match)]
        if not folders:
            raise DdsimError(f"{path}: no folder with a trace matches")
        return folders
    if path.is_file():
        raise DdsimError(f"{path}: is a file; a trace is a folder, give {path.parent}")
    if not path.is_dir():
        raise DdsimError(f"{path}: no such trace")
    folders = _with_shards(path)
    if not folders:
        raise DdsimError(f"{path}: no trace there (no part-*.parquet, also not one folder down)")
    return folders


def _matches(pattern: Path) -> list[Path]:
    """The paths that a pattern means; one that goes through half of the disk is refused before it has."""
    found = [pattern.parents[-1]] if len(pattern.parents) else [pattern]
    for part in pattern.relative_to(found[0]).parts:
        deeper: list[Path] = []
        for path in found:
            names = glob.iglob(part, root_dir=path) if glob.has_magic(part) else [part]
            deeper += (path / name for name in islice(names, MOST_MATCHES) if os.path.exists(path / name))
            if len(deeper) >= MOST_MATCHES:
                raise DdsimError(f"{pattern}: matches {MOST_MATCHES:,} paths and more; name the folders of traces")
        found = deeper
    return sorted(found)


def _with_shards(path: Path) -> list[Path]:
    """The folder itself if it has shards, otherwise those of its folders that do."""
    if any(path.glob("part-*.parquet")):
        return [path]
    children = sorted(path.iterdir()) if path.is_dir() else []
    return [child for child in children if child.is_dir() and any(child.glob("part-*.parquet"))]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def _shards(folder: Path) -> Iterator[_Shard]:
    """The shards of a folder, their indices checked."""
    first = 0
    for number, path in enumerate(sorted(folder.glob("part-*.parquet"))):
        expected = _shard_path(folder, number)
        if path != expected:
            raise DdsimError(f"{path}: expected {expected.name} here; is a shard missing, or was one renamed?")
        shard = _Shard(path)
        if shard.first != first:
            raise DdsimError(
                f"{path}: row 0: starts with sequence {shard.first}, expected {first}; is a shard missing?"
            )
        first += len(shard.infos)
        yield shard


def _check_recording(folder: Path, shards: Sequence[_Shard]) -> bool | None:
    """Compare the shards with the list beside them; whether the recording came to its end, None if nothing says so."""
    path = folder / RECORDING_FILE
    try:
        _check_regular(path)
        listed = _read_meta(path, path.read_bytes())
    except FileNotFoundError:
        return False if any(shard.meta["listed"] for shard in shards) else None
    except OSError as error:
        raise DdsimError(f"{path}: can't be read ({error.strerror or error})") from None
    checksums = array(need(listed, "shards", f"{path}"), f"{path}: shards")
    complete = need(listed, "complete", f"{path}")
    if not isinstance(complete, bool):
        raise DdsimError(f"{path}: complete must be true or false")
    for number, checksum in enumerate(checksums):
        if number >= len(shards):
            raise DdsimError(
                f"{_shard_path(folder, number)}: is missing ({path.name} lists {len(checksums)} shards); put it back, "
                f"or delete {path.name} to read what is left"
            )
        if shards[number].checksum != checksum:
            raise DdsimError(f"{shards[number].path}: is another shard than {path.name} lists; was it replaced?")
    # A recorder that is killed may have written one more shard than it has listed.
    if len(shards) > len(checksums) + (not complete):
        raise DdsimError(f"{shards[len(checksums)].path}: is not listed in {path.name}; was it added from elsewhere?")
    return complete


class _Shard:
    """One file of a trace: its index in memory, its rows on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reading = _Reading(path)
        with reading as file:
            self.meta, self.first, digests = _shard_meta(path, file.metadata.metadata)
            self.checksum = str(self.meta.pop("checksum"))
            self._check_schema(file.schema_arrow)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            table = file.read(columns=_INDEX_COLUMNS)
            table.validate(full=True)
            self._content = _content_hash(path, reading.found)
        self.infos, self.starts = self._read_index(table, digests)
        edges = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        if min(groups) < 1 or edges[-1] != table.num_rows:
            raise DdsimError(f"{path}: {table.num_rows} rows in row groups of {groups[:9]}; was the file edited?")
        cuts = np.searchsorted(self.starts, edges)
        if not np.array_equal(self.starts[cuts], edges):
            raise DdsimError(f"{path}: a row group ends inside a sequence; write traces with ddsim.TraceWriter")
        self._cuts = cuts  # sequences cuts[g] : cuts[g + 1] are row group g

    def verify(self) -> None:
        """Read every sequence and compare it with its hash, unless that was done for a file of the same content."""
        if not is_known(VERIFIED, self._content):
            for _ in self.load(range(len(self.infos))):
                pass
            remember(VERIFIED, self._content)

    def fail(self, row: int, reason: str) -> DdsimError:
        return DdsimError(f"{self.path}: row {row}: {reason}")

    def _check_schema(self, schema: pa.Schema) -> None:
        id_type = _id_type(self.meta["vocab_size"])
        wanted = {column.name: column.type for column in _schema(id_type, self.meta.get("kind", "rows"))}
        for name, kind in wanted.items():
            if schema.names.count(name) != 1:
                how = "is missing" if name not in schema.names else "is there twice"
                raise DdsimError(f"{self.path}: column {name} {how}")
            actual = schema.field(name).type
            if pa.types.is_list(kind):
                same = pa.types.is_list(actual) and actual.value_type == kind.value_type
            else:
                same = actual == kind
            if not same:
                raise DdsimError(f"{self.path}: column {name} is {actual}, expected {kind}")

    def _read_index(self, table: pa.Table, digests: list[str]) -> tuple[list[SequenceInfo], NDArray[np.int64]]:
        for name in _INDEX_COLUMNS:
            if table[name].null_count:
                row = int(np.argmax(table[name].is_null().to_numpy(zero_copy_only=False)))
                raise self.fail(row, f"{name} is missing")
        rows = table.num_rows
        if rows == 0:
            raise DdsimError(f"{self.path}: has no rows")
        number, position, context, temperature = (
            table[name].to_numpy() for name in ("sequence", "position", "context", "temperature")
        )
        new = np.ones(rows, bool)
        new[1:] = number[1:] != number[:-1]
        starts = np.flatnonzero(new)
        bounds = np.append(starts, rows).astype(np.int64)
        lengths = np.diff(bounds)
        which = np.cumsum(new) - 1
        names = [table[name].combine_chunks().dictionary_encode() for name in ("prompt_id", "workload")]
        codes = [name.indices.to_numpy() for name in names]
        checks = [
            (number != self.first + which, "sequence {number} is out of order"),
            (position != np.arange(rows) - starts[which], "position {position} is out of order"),
            (
                context != context[starts][which] + np.arange(rows) - starts[which],
                "context {context} doesn't follow",
            ),
            (context < 0, "context {context} is negative"),
            (
                (codes[0] != codes[0][starts][which]) | (codes[1] != codes[1][starts][which]),
                "prompt changes inside a sequence",
            ),
            (~((temperature >= 0) & (temperature < np.inf)), "temperature {temperature} must be 0 or more"),
            (temperature != temperature[starts][which], "temperature changes inside a sequence"),
        ]
        for bad, text in checks:
            if bad.any():
                row = int(np.argmax(bad))
                raise self.fail(row, text.format(
                    number=number[row], position=position[row],
                    context=context[row], temperature=temperature[row],
                ))  # fmt: skip
        if len(digests) != len(starts):
            raise DdsimError(
                f"{self.path}: {len(starts)} sequences, but hashes of {len(digests)}; was the file edited?"
            )
        told = self.meta.pop("prompt_digests")
        prompts, workloads = (name.dictionary.to_pylist() for name in names)
        for start in starts:
            where = f"{self.path}: row {start}"
            _check_name(where, "prompt_id", prompts[codes[0][start]])
            _check_name(where, "workload", workloads[codes[1][start]])
        infos = [
            SequenceInfo(
                workload=workloads[codes[1][start]],
                prompt_id=prompts[codes[0][start]],
                temperature=float(temperature[start]),
                prompt_tokens=int(context[start]),
                length=int(length),
                digest=digest,
                prompt_digest=prompt_digest,
            )
            for start, length, digest, prompt_digest in zip(starts, lengths, digests, told, strict=True)
        ]
        return infos, bounds

    def load(self, wanted: Sequence[int]) -> Iterator[_Rows | Folded]:
        """Sequences by their ascending numbers in the file, reading only the row groups that hold them."""
        paths = "kind" in self.meta
        for table, group, numbers in self._groups(wanted, _FOLDED_COLUMNS if paths else _ROW_COLUMNS):
            parse = self._parse_folded if paths else self._parse
            yield from parse(table, group, numbers)

    def texts(self, wanted: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The committed tokens of sequences, int32 [length], without reading what was proposed."""
        for table, group, numbers in self._groups(wanted, ["token"]):
            tokens, _ = self._tokens(table, group)
            base = int(self.starts[int(self._cuts[group])])
            for n in numbers:
                yield tokens[self.starts[n] - base : self.starts[n + 1] - base]

    def _groups(self, wanted: Sequence[int], columns: list[str]) -> Iterator[tuple[pa.Table, int, NDArray[np.int64]]]:
        """(columns of a row group, its number, the sequences wanted of it), of all that hold some."""
        numbers = np.asarray(wanted)
        groups = np.searchsorted(self._cuts, numbers, side="right") - 1
        with _Reading(self.path) as file:
            for group in np.unique(groups):
                table = file.read_row_group(int(group), columns=columns)
                table.validate(full=True)
                yield table, int(group), numbers[groups == group]

    def _tokens(self, table: pa.Table, group: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Committed tokens of a row group, and which are the last of a sequence."""
        a, b = int(self._cuts[group]), int(self._cuts[group + 1])
        base = int(self.starts[a])
        vocab, positions = int(self.meta["vocab_size"]), int(self.starts[b]) - base
        if table.num_rows != positions:
            raise self.fail(base, f"{table.num_rows} rows in a row group of {positions}; was the file edited?")
        token = table["token"]
        if token.null_count:
            raise self.fail(base + int(np.argmax(token.is_null().to_numpy(zero_copy_only=False))), "token is missing")
        tokens = token.to_numpy()
        self._refuse(base, (tokens < 0) | (tokens >= vocab), f"token lies outside the vocabulary of {vocab}")
        last = np.zeros(positions, bool)
        last[self.starts[a + 1 : b + 1] - base - 1] = True
        return tokens, last

    def _parse_folded(self, table: pa.Table, group: int, wanted: NDArray[np.int64]) -> Iterator[Folded]:
        """Sequences ``wanted`` of a row group of proposals that know their path, all checked."""
        base = int(self.starts[int(self._cuts[group])])
        horizon, vocab, most = (int(self.meta[name]) for name in ("horizon", "vocab_size", "max_budget"))
        tokens, last = self._tokens(table, group)
        lists = {name: self._list(table, name, base) for name in COLUMNS}
        edges = {name: found[0] - found[0][0] for name, found in lists.items()}
        flat = {name: plain(found[1], np.int32) for name, found in lists.items()}
        sizes = {name: np.diff(found) for name, found in edges.items()}
        for name, found in sizes.items():
            self._refuse(base, last & (found != 0), f"the last position of a sequence has {name}")
        self._refuse(base, ~last & (sizes["widths"] != horizon), f"widths of other than {horizon} depths")
        widths = np.zeros((len(tokens), horizon), np.int32)
        widths[~last] = flat["widths"].reshape(-1, horizon)
        candidates = widths.sum(1, dtype=np.int64)
        self._refuse(base, sizes["token_ids"] != candidates, "token_ids are not as many as widths say")
        self._refuse(base, ~last & (sizes["counts"] != candidates + 1), "counts are not as many as widths say")
        rows = np.concatenate([[0], np.cumsum(flat["counts"], dtype=np.int64)])[edges["counts"]]
        self._refuse(base, np.diff(rows) != sizes["children"], "children are not as many as counts say")
        self._refuse(base, sizes["falls"] != sizes["children"], "falls are not as many as children")
        self._refuse(base, sizes["children"] > most + horizon, f"more candidates than a budget of {most} can use")
        # In memory the last position of a sequence has the root's row too, empty.
        counts = np.zeros(len(tokens) + len(flat["token_ids"]), np.int32)
        slots = np.concatenate([[0], np.cumsum(candidates + 1)])
        counts[np.delete(np.arange(len(counts)), slots[:-1][last])] = flat["counts"]
        whole = Folded(tokens.astype(np.int32), widths, flat["token_ids"], counts, flat["children"], flat["falls"])
        try:
            fault = whole.unfold().first_fault(vocab)
        except DdsimError as error:
            at, _, why = str(error).removeprefix("position ").partition(": ")
            raise self.fail(base + int(at), why) from None
        if fault is not None:
            raise self.fail(base + fault[0], fault[1])
        runs = [(int(self.starts[i]) - base, int(self.starts[i + 1]) - base) for i in wanted]
        for i, (p, _), part in zip(wanted, runs, whole.parts(runs), strict=True):
            info = self.infos[i]
            if _digest(info.workload, info.prompt_id, info.temperature, info.prompt_tokens, part) != info.digest:
                raise self.fail(base + p, f"sequence {self.first + int(i)} differs from its hash; the file was edited")
            yield part

    def _parse(self, table: pa.Table, group: int, wanted: NDArray[np.int64]) -> Iterator[_Rows]:
        """Sequences ``wanted`` of a row group, its rows checked."""
        a, b = int(self._cuts[group]), int(self._cuts[group + 1])
        base = int(self.starts[a])
        horizon, vocab = int(self.meta["horizon"]), int(self.meta["vocab_size"])
        positions = int(self.starts[b]) - base
        tokens, last = self._tokens(table, group)
        lists = {name: self._list(table, name, base) for name in ("counts", "token_ids", "logprobs")}
        depth_edges, flat_counts = lists["counts"]
        pair_edges, ids = lists["token_ids"]
        value_edges, half = lists["logprobs"]
        sizes = np.diff(depth_edges)
        self._refuse(base, last & (sizes != 0), "the last position of a sequence has candidates")
        self._refuse(base, ~last & (sizes != horizon), f"counts of other than {horizon} depths")
        counts = np.zeros((positions, horizon), np.int32)
        counts[~last] = flat_counts.reshape(-1, horizon)
        totals = counts.sum(1)
        self._refuse(base, np.diff(pair_edges) != totals, "token_ids are not as many as counts say")
        self._refuse(base, np.diff(value_edges) != totals, "logprobs are not as many as counts say")
        self._refuse(
            base,
            totals > self.meta["max_budget"] + horizon,
            f"more candidates than a budget of {self.meta['max_budget']} can use",
        )
        values = half.astype(np.float32)
        ids = plain(ids, np.int32)
        bad = _first_bad_row(counts, ids, values, vocab, ties_ordered=True)
        if bad is not None:
            raise self.fail(base + bad[0], f"depth {bad[1] + 1}: {bad[2]}")
        pair_edges = pair_edges - pair_edges[0]
        kept = np.copy if len(wanted) < b - a else np.asarray  # a view would keep the whole group in memory
        for i in wanted:
            p, q = int(self.starts[i]) - base, int(self.starts[i + 1]) - base
            m, n = int(pair_edges[p]), int(pair_edges[q])
            rows = _Rows(tokens[p:q].astype(np.int32), kept(counts[p:q]), kept(ids[m:n]), kept(values[m:n]))
            info = self.infos[i]
            name = info.workload, info.prompt_id, info.temperature, info.prompt_tokens
            if _digest(*name, rows, half[m:n]) != info.digest:
                raise self.fail(base + p, f"sequence {self.first + int(i)} differs from its hash; the file was edited")
            yield rows

    def _list(self, table: pa.Table, name: str, base: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Edges and values of a list column."""
        column = table[name].combine_chunks()
        if column.null_count:
            raise self.fail(
                base + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))), f"{name} is missing"
            )
        edges = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(edges[0], edges[-1] - edges[0])
        if values.null_count:
            row = (
                np.searchsorted(
                    edges - edges[0], int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))), "right"
                )
                - 1
            )
            raise self.fail(base + int(row), f"a value in {name} is missing")
        return edges, values.to_numpy()

    def _refuse(self, base: int, bad: NDArray[np.bool_], reason: str) -> None:
        if bad.any():
            raise self.fail(base + int(np.argmax(bad)), reason)


class _Reading:
    """A Parquet file open for reading, whose every failure becomes one clear line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> pq.ParquetFile:
        # By its path: of a Python file object Arrow's threads may still want something when the interpreter exits.
        try:
            self.found = _check_regular(self._path)
            self._file = pq.ParquetFile(self._path, page_checksum_verification=True, memory_map=False)
        except DdsimError:
            raise
        except Exception as error:
            raise self._line(error) from None
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if isinstance(error, Exception) and not isinstance(error, DdsimError):
            raise self._line(error) from None

    def _line(self, error: Exception) -> DdsimError:
        text = "".join(
            c if c.isprintable() else " " for c in str(error)
        )  # Arrow quotes the bytes that it stumbles over
        detail = " ".join(text.split())[:160] or type(error).__name__
        return DdsimError(f"{self._path}: can't be read as Parquet, it is truncated or damaged ({detail})")


def _content_hash(path: Path, before: os.stat_result) -> str:
    """SHA-256 of a file's bytes, if it is still the one of ``before``."""
    with open(path, "rb") as file:
        now = os.fstat(file.fileno())
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise DdsimError(f"{path}: was replaced while it was read; try again")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_regular(path: Path) -> os.stat_result:
    """Refuse a folder, and a pipe or device, which could be read without end."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise DdsimError(f"{path}: is no regular file")
    return found


def _read_meta(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object with a schema version and a checksum that fits."""
    where = f"{path}"
    meta = mapping(parse(text, where), where)
    version = integer(need(meta, "schema_version", where), f"{where}: schema_version", 1)
    if version > SCHEMA_VERSION:
        raise DdsimError(
            f"{path}: has schema version {version}, this ddsim reads up to {SCHEMA_VERSION}; upgrade ddsim"
        )
    if meta.get("checksum") != _checksum({key: value for key, value in meta.items() if key != "checksum"}):
        raise DdsimError(f"{path}: metadata differs from its checksum; the file was edited or is damaged")
    return meta


def _shard_meta(path: Path, metadata: Mapping[bytes, bytes] | None) -> tuple[dict[str, Any], int, list[str]]:
    """What a shard says of itself, the number of its first sequence, and the digests of its sequences."""
    where = f"{path}"
    text = (metadata or {}).get(b"ddsim")
    if text is None:
        raise DdsimError(f"{path}: is no shard of a ddsim trace (no metadata under 'ddsim')")
    meta = _read_meta(path, text)
    shape = {name: integer(need(meta, name, where), f"{where}: {name}", 1) for name in _SHAPE}
    try:
        kind = need(meta, "kind", where) if meta["schema_version"] > 1 else "rows"
        if meta["schema_version"] > 1 and kind not in KINDS:
            raise DdsimError(f"kind must be {' or '.join(KINDS)}")
        checked = _metadata(**shape, provenance=mapping(need(meta, "provenance", where), "provenance"), kind=kind)
    except DdsimError as error:
        raise DdsimError(f"{path}: {error}") from None
    if need(meta, "block_size", where) != checked["block_size"]:
        raise DdsimError(f"{path}: block_size must be the horizon + 1, {checked['block_size']}")
    listed = meta.get("listed", False)
    digests = array(need(meta, "digests", where), f"{where}: digests")
    told = array(meta.get("prompt_digests", [""] * len(digests)), f"{where}: prompt_digests")
    if len(told) != len(digests) or not all(isinstance(digest, str) for digest in told):
        raise DdsimError(f"{path}: prompt_digests must be a string for each sequence; was the file edited?")
    if not isinstance(listed, bool) or not all(isinstance(digest, str) for digest in digests):
        raise DdsimError(f"{path}: listed must be true or false, and digests strings")
    first = integer(need(meta, "first_sequence", where), f"{where}: first_sequence", 0)
    return checked | {"listed": listed, "checksum": meta["checksum"], "prompt_digests": told}, first, digests


def _read_pieces(path: Path) -> dict[int, str]:
    with _Reading(path) as file:
        table = file.read()
        table.validate(full=True)
        if table.schema.names != ["id", "piece"] or table.schema.types != [pa.int32(), pa.string()]:
            raise DdsimError(f"{path}: must have the columns id (int32) and piece (string)")
        if table["id"].null_count or table["piece"].null_count:
            raise DdsimError(f"{path}: an id or a piece is missing")
        pieces = dict(zip(table["id"].to_pylist(), table["piece"].to_pylist(), strict=True))
    told = (table.schema.metadata or {}).get(b"ddsim")  # older files have no digest
    if told is not None and mapping(parse(told, f"{path}"), f"{path}").get("digest") != _pieces_digest(pieces):
        raise DdsimError(f"{path}: differs from its hash; the file was edited or is damaged")
    return pieces


def _pieces_digest(pieces: Mapping[int, str]) -> str:
    return hashlib.sha256(json.dumps(sorted((int(i), piece) for i, piece in pieces.items())).encode()).hexdigest()[:32]
