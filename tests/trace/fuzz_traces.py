"""Damaged and forged traces, thousands of them: each gives the answer of the sound one to the last digit, or one clear line.

Run by test_fuzz_traces.py in a process of its own, so that a crash or a hang is seen as one::

    python tests/trace/fuzz_traces.py FOLDER SEED FIRST LAST KIND

KIND is rows or lattice. Case i is drawn from (SEED, i). What fails is printed as one JSON object a line. Who writes a valid checksum over other valid
values has made another trace, which no check can tell; so these are not drawn.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ddsim.cli.main import main
from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.replay.replay import replay
from ddsim.trace import schema as _schema
from ddsim.trace.checks import round_logprobs
from ddsim.trace.trace import open_trace
from ddsim.trace.writer import TraceWriter, write_pieces

Rng = np.random.Generator
Change = Callable[[pa.Table, Rng], pa.Table]

PATIENCE = 60  # seconds a case; sound ones take 0.1, but the machine may be busy
HORIZON, BUDGET, VOCABULARY = 4, 16, 40
COST = CostModel.from_table([1, 8, 17], [0.010, 0.0104, 0.0115], draft_seconds=0.001)
SHARDS = tuple(f"part-0000{i}.parquet" for i in range(3))
HOSTILE = (
    None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, -(10**30), "", "x", "\ud800", "\x1b[31m\n", [], [[]], {}, {"a": {}}, [None],
    float("nan"), float("inf"), "x" * 10_000,
)  # fmt: skip


# --- the sound trace ------------------------------------------------------------------------------------------------


def sound(folder: Path, kind: str, seed: int = 0) -> Path:
    """Three shards of two sequences each, with pieces."""
    rng = np.random.default_rng(seed)
    provenance = {"target": "t", "drafter": "d"}
    shape = {"horizon": HORIZON, "max_budget": BUDGET, "vocab_size": VOCABULARY}
    with TraceWriter(folder, **shape, provenance=provenance, kind=kind) as writer:
        for i in range(6):
            length = int(rng.integers(3, 12))
            logits = rng.normal(size=(length, HORIZON, VOCABULARY)) * 2
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            ids = np.argsort(-logprobs, -1)[..., :BUDGET]
            names = {
                "prompt_id": f"p{i}",
                "workload": "ab"[i % 2],
                "temperature": 0.0,
                "prompt_tokens": 5 + i,
                "prompt_digest": f"digest {i}",
                "tokens": rng.integers(0, VOCABULARY, length),
            }
            rows = np.take_along_axis(logprobs, ids, -1)
            if kind == "rows":
                writer.add_sequence(**names, token_ids=ids, logprobs=round_logprobs(rows))
            else:
                steps = np.log(rng.dirichlet(np.full(5, 0.5), (length, HORIZON - 1, 5)))
                writer.add_lattice(**names, token_ids=ids[..., :5], first=rows[:, 0, :5], transitions=steps)
            if i % 2:
                writer.flush()
    write_pieces(folder, {i: f"<{i}>" for i in range(VOCABULARY)})
    return folder


def answer(folder: Path) -> str:
    """All that ddsim tells of a trace: its index, a replay, its text."""
    trace = open_trace(folder)
    table = replay(trace, COST, ["AR", "DFlash", "DDTree:8", "LongRun", "Hindsight"], bootstrap=10).table()
    told = [
        [info.workload, info.prompt_id, info.temperature, info.prompt_tokens, info.length] for info in trace.sequences
    ]
    numbers = table.select_dtypes("number").drop(columns="seconds", errors="ignore").to_numpy().tolist()
    return repr([trace.fingerprint, told, numbers, trace.text(range(VOCABULARY))])


# --- what is done to it ---------------------------------------------------------------------------------------------


def some(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def any_shard(folder: Path, rng: Rng) -> Path:
    return folder / some(rng, SHARDS)


def any_file(folder: Path, rng: Rng) -> Path:
    return folder / some(rng, (*SHARDS, *SHARDS, "_pieces.parquet", "_recording.json"))


def flip(folder: Path, rng: Rng) -> None:
    path = any_file(folder, rng)
    data = bytearray(path.read_bytes())
    low = 0 if rng.random() < 0.6 else max(0, len(data) - 2000)  # pages, or the footer, which Parquet doesn't check
    for at in rng.integers(low, len(data), int(rng.integers(1, 4))):
        data[at] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(data))


def overwrite(folder: Path, rng: Rng) -> None:
    path = any_file(folder, rng)
    data = bytearray(path.read_bytes())
    low, size = int(rng.integers(len(data))), int(rng.integers(1, 200))
    data[low : low + size] = bytes(size) if rng.random() < 0.5 else rng.bytes(size)
    path.write_bytes(bytes(data))


def truncate(folder: Path, rng: Rng) -> None:
    path = any_file(folder, rng)
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(len(data)))])


def insert(folder: Path, rng: Rng) -> None:
    path = any_file(folder, rng)
    data = path.read_bytes()
    at = int(rng.integers(len(data) + 1))
    path.write_bytes(data[:at] + rng.bytes(int(rng.integers(1, 50))) + data[at:])


def swap_pages(folder: Path, rng: Rng) -> None:
    """Two column chunks of one size class trade places, within a shard or between two."""
    one, other = any_shard(folder, rng), any_shard(folder, rng)
    chunks = []
    for path in (one, other):
        group = pq.ParquetFile(path).metadata.row_group(0)
        chunk = group.column(int(rng.integers(group.num_columns)))
        chunks.append((chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size))
    (a, n), (b, m) = chunks
    left, right = bytearray(one.read_bytes()), bytearray(other.read_bytes())
    size = min(n, m)
    page = bytes(left[a : a + size])
    left[a : a + size] = right[b : b + size]
    if one == other:
        left[b : b + size] = page
    else:
        right[b : b + size] = page
        other.write_bytes(bytes(right))
    one.write_bytes(bytes(left))


def no_file(folder: Path, rng: Rng) -> None:
    """Something else in a file's place."""
    path = any_file(folder, rng)
    content = path.read_bytes()
    path.unlink()
    kind = some(rng, ("gone", "empty", "folder", "pipe", "zero", "dangling", "loop", "text", "parquet", "link"))
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "text":
        path.write_text("a,b\n1,2\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"a": [1]}), path)
    elif kind == "link":  # a shard may lie elsewhere
        (folder / "elsewhere").write_bytes(content)
        path.symlink_to("elsewhere")


def shuffle_shards(folder: Path, rng: Rng) -> None:
    one, other = any_shard(folder, rng), any_shard(folder, rng)
    kind = some(rng, ("delete", "rename", "swap", "copy", "append", "foreign"))
    if kind == "delete":
        one.unlink()
    elif kind == "rename":
        one.rename(folder / some(rng, ("part-00009.parquet", "part-x.parquet", "shard.parquet", "part-000000.parquet")))
    elif kind == "swap":
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "copy":
        shutil.copy(one, other) if one != other else None
    elif kind == "append":
        shutil.copy(one, folder / "part-00003.parquet")
    else:
        shutil.copy(folder.parent / "foreign" / one.name, one)


def write_shard(path: Path, table: pa.Table, told: Any, rng: Rng | None = None) -> None:
    """A shard with this metadata, under a checksum that fits."""
    if isinstance(told, dict):
        told = {key: value for key, value in told.items() if key != "checksum"}
        told = told | {"checksum": _schema._checksum(told)}
    options: dict[str, Any] = {"row_group_size": 1 << 20}
    if rng is not None and rng.random() < 0.3:  # another writer's
        options |= {"compression": some(rng, ("zstd", "none", "snappy")), "use_dictionary": bool(rng.random() < 0.5)}
        options |= {"data_page_size": int(rng.integers(1, 500)), "data_page_version": some(rng, ("1.0", "2.0"))}
        options |= {"row_group_size": int(rng.integers(1, 30))}
    pq.write_table(table.replace_schema_metadata({"ddsim": json.dumps(told)}), path, **options)


def without_list(folder: Path, rng: Rng) -> None:
    """Mostly take the list of shards away, which would refuse all that follows."""
    if rng.random() < 0.8:
        (folder / "_recording.json").unlink()


def metadata(folder: Path, rng: Rng) -> None:
    path = any_shard(folder, rng)
    without_list(folder, rng)
    table = pq.read_table(path, partitioning=None)
    told: Any = json.loads(table.schema.metadata[b"ddsim"])
    key = some(rng, [key for key in told if key != "checksum"])
    kind = some(rng, ("delete", "hostile", "hostile", "inside", "all", "other"))
    if kind == "delete":
        del told[key]
    elif kind == "hostile":
        told[key] = some(rng, HOSTILE)
    elif kind == "inside":  # a provenance may hold anything
        told["provenance"] |= {some(rng, ("target", "drafter", "device", "recorded")): some(rng, HOSTILE)}
        told["digests"][0] = some(rng, HOSTILE)
    elif kind == "all":
        told = some(rng, HOSTILE)
    else:
        told |= {
            "first_sequence": told["first_sequence"] + int(rng.integers(1, 9)),
            "schema_version": int(rng.integers(3)),
        }
    write_shard(path, table, told)


def set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.names.index(name), name, values)


def retype(table: pa.Table, rng: Rng) -> pa.Table:
    name = some(rng, table.schema.names)
    kind = table.schema.field(name).type
    if pa.types.is_list(kind):
        wanted = some(
            rng, (pa.large_list(kind.value_type), pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.string()))
        )
    else:
        wanted = some(
            rng, (pa.int64(), pa.float64(), pa.string(), pa.large_string(), pa.int8(), pa.binary(), pa.bool_())
        )
    try:
        return set_column(table, name, table[name].cast(wanted))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return set_column(table, name, pa.nulls(table.num_rows, wanted))


def columns(table: pa.Table, rng: Rng) -> pa.Table:
    name = some(rng, table.schema.names)
    at = table.schema.names.index(name)
    kind = some(rng, ("drop", "permute", "twice", "rename", "more"))
    if kind == "drop":
        return table.drop_columns([name])
    if kind == "permute":
        return table.select(list(rng.permutation(table.schema.names)))
    if kind == "twice":
        return table.append_column(name, table[some(rng, table.schema.names)])
    if kind == "rename":
        return table.rename_columns(
            [some(rng, ("x", "", name.upper())) if i == at else n for i, n in enumerate(table.schema.names)]
        )
    return table.append_column("more", pa.nulls(table.num_rows, pa.list_(pa.string())))


def rows(table: pa.Table, rng: Rng) -> pa.Table:
    n = table.num_rows
    kind = some(rng, ("none", "drop", "twice", "swap", "head", "tail", "shuffle", "repeat"))
    at = int(rng.integers(n))
    order = list(range(n))
    if kind == "none":
        order = []
    elif kind == "drop":
        del order[at]
    elif kind == "twice":
        order.insert(at, at)
    elif kind == "swap":
        other = int(rng.integers(n))
        order[at], order[other] = order[other], order[at]
    elif kind == "head":
        order = order[: at + 1]
    elif kind == "tail":
        order = order[at:]
    elif kind == "shuffle":
        order = list(rng.permutation(n))
    else:
        order = order * 2
    return table.take(pa.array(order, pa.int64()))


def values(table: pa.Table, rng: Rng) -> pa.Table:
    """One value, or null, in one place of a column."""
    name = some(rng, table.schema.names)
    kind = table.schema.field(name).type
    entries = table[name].to_pylist()
    at = int(rng.integers(len(entries)))
    hostile: tuple[Any, ...] = (None,)
    inner = kind.value_type if pa.types.is_list(kind) else kind
    if pa.types.is_integer(inner):
        hostile += (0, 1, VOCABULARY - 1, VOCABULARY, 65535) + (
            (-1, 2**31 - 1, -(2**31)) if inner == pa.int32() else ()
        )
    elif pa.types.is_floating(inner):
        hostile += (0.0, 1.0, -1.0, -0.0, float("nan"), float("inf"), -float("inf"), 6e-8)
    else:
        hostile += ("", "p0", "a", "\n", "\x1b[2J", "\u2028", "[/red]", "x" * 10_000, "é")
    if pa.types.is_list(kind):
        where = some(rng, ("value", "value", "list", "more", "fewer", "swap"))
        if where == "list":
            entries[at] = some(rng, (None, []))
        elif where == "more":
            entries[at] = [*(entries[at] or []), some(rng, hostile)]
        elif where == "fewer":
            entries[at] = (entries[at] or [0])[:-1]
        elif entries[at]:
            i, j = (int(k) for k in rng.integers(0, len(entries[at]), 2))
            if where == "swap":
                entries[at][i], entries[at][j] = entries[at][j], entries[at][i]
            else:
                entries[at][i] = some(rng, hostile)
    else:
        change = some(rng, hostile)
        for i in range(at, at + 1 if rng.random() < 0.5 else len(entries)):
            entries[i] = change
    if pa.types.is_float16(inner):
        halves = [None if e is None else [None if v is None else np.float16(v) for v in e] for e in entries]
        return set_column(table, name, pa.array(halves, kind))
    return set_column(table, name, pa.array(entries, kind))


def offsets(table: pa.Table, rng: Rng) -> pa.Table:
    """The edges between lists move; text that isn't UTF-8."""
    if rng.random() < 0.2:
        name = some(rng, ("prompt_id", "workload"))
        text = pa.array([b"\xff\xfe\xed\xa0\x80"] * table.num_rows, pa.binary())
        return set_column(table, name, pa.StringArray.from_buffers(len(text), *text.buffers()[1:]))
    name = some(rng, [column.name for column in table.schema if pa.types.is_list(column.type)])
    column = table[name].combine_chunks()
    edges = column.offsets.to_numpy().copy()
    at = int(rng.integers(1, len(edges) - 1))
    edges[at] = min(max(edges[at] + int(rng.integers(-3, 4)), edges[at - 1]), edges[at + 1])
    return set_column(table, name, pa.ListArray.from_arrays(pa.array(edges), column.values))


def table_level(change: Change) -> Callable[[Path, Rng], None]:
    def mutate(folder: Path, rng: Rng) -> None:
        path = any_shard(folder, rng)
        without_list(folder, rng)
        table = pq.read_table(path, partitioning=None)
        write_shard(path, change(table, rng), json.loads(table.schema.metadata[b"ddsim"]), rng)

    mutate.__name__ = change.__name__
    return mutate


def listed(folder: Path, rng: Rng) -> None:
    path = folder / "_recording.json"
    told = json.loads(path.read_text())
    key = some(rng, list(told))
    if rng.random() < 0.3:
        del told[key]
    else:
        told[key] = some(rng, (*HOSTILE, [told["shards"][0]], [*told["shards"], "x"], told["shards"][::-1]))
    if rng.random() < 0.8:
        told.pop("checksum", None)
        told["checksum"] = _schema._checksum(told)
    path.write_text(json.dumps(told if rng.random() < 0.9 else some(rng, HOSTILE)))


def pieces(folder: Path, rng: Rng) -> None:
    path = folder / "_pieces.parquet"
    table = pq.read_table(path)
    change = some(rng, (retype, columns, values))
    pq.write_table(change(table, rng), path)


MUTATORS: tuple[Callable[[Path, Rng], None], ...] = (
    flip, flip, flip, overwrite, truncate, insert, swap_pages, no_file, shuffle_shards, metadata, metadata, listed, pieces,
    *(table_level(change) for change in (retype, columns, rows, values, values, values, offsets)),
)  # fmt: skip


# --- what must come of it -------------------------------------------------------------------------------------------


def digests(*folders: Path) -> set[str]:
    """Hashes of the content of all sequences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {info.digest for folder in folders for info in open_trace(folder).sequences}


class TooLong(BaseException):
    """A case that doesn't end."""


def outcome(folder: Path, expected: str, through_cli: bool) -> tuple[str, str]:
    """One of same, refused, or what is wrong; and the line or the reason."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = answer(folder)
    except DdsimError as error:
        line = str(error)
        if "\n" in line or str(folder) not in line or not line.isprintable() or len(line) > 1500:
            return "bad line", line
        kind = "refused"
    except TooLong:
        return "hang", ""
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    else:
        line, kind = "", "same"
        # Where the list of shards is lost too, a missing or foreign shard that is sound in itself is read, with a warning.
        warned = any("was interrupted" in str(warning.message) for warning in caught)
        unlisted = warned and not (folder / "_recording.json").exists()
        if found != expected and not (
            unlisted and digests(folder) <= digests(folder.parent / "sound", folder.parent / "foreign")
        ):
            return "differs", found[:1500]
    if through_cli:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(
                [
                    "replay",
                    str(folder),
                    "-p",
                    str(folder.parent / "profile.json"),
                    "--bootstrap",
                    "10",
                    "--policy",
                    "AR",
                ]
            )
        if "TooLong" in err.getvalue():
            return "hang", "command line"
        if code != 2 * (kind == "refused" and "_pieces.parquet" not in line):  # replay doesn't read the text of tokens
            return f"exit {code}", err.getvalue()[:1500]
    return kind, line


def run(work: Path, seed: int, first: int, last: int, kind_of_trace: str) -> Counter[str]:
    """Cases ``first`` to ``last`` (exclusive); prints those that fail."""
    from tests import made_up

    faulthandler.enable()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.environ["DDSIM_CACHE"] = str(work / "cache")
    template = sound(work / "sound", kind_of_trace)
    sound(work / "foreign", kind_of_trace, seed=1)
    made_up.profile().save(work / "profile.json")
    expected = answer(template)
    seen: Counter[str] = Counter()

    def too_long(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    for case in range(first, last):
        rng = np.random.default_rng([seed, case])
        folder = work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        mutators = [some(rng, MUTATORS) for _ in range(1 + (rng.random() < 0.15))]
        mutators.sort(key=lambda mutate: mutate is no_file)  # a pipe comes last: the other would wait for its writer
        for mutate in mutators:
            # The second may not find what it needs after the first.
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, pa.ArrowException
            ):
                mutate(folder, rng)
        faulthandler.dump_traceback_later(3 * PATIENCE, exit=True)  # where no signal is heard
        signal.alarm(PATIENCE)
        kind, line = outcome(folder, expected, through_cli=case % 25 == 0)
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        seen[kind] += 1
        names = "+".join(mutate.__name__ for mutate in mutators)
        if kind not in ("same", "refused"):
            print(json.dumps({"case": case, "mutators": names, "kind": kind, "line": line}), flush=True)
        elif os.environ.get("FUZZ_TRACES_TELL"):
            print(
                json.dumps({"case": case, "mutators": names, "kind": kind, "line": line}), file=sys.stderr, flush=True
            )
    return seen


if __name__ == "__main__":
    counts = run(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:5]), sys.argv[5])
    print(json.dumps({"counts": dict(counts)}))
