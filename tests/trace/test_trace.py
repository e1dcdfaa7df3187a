"""Traces: lossless, crash-safe, and damaged files refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.errors import DdsimError
from ddsim.trace import checks as _checks
from ddsim.trace import reader as _reader
from ddsim.trace import schema as _schema
from ddsim.trace import writer as _writer
from ddsim.trace import writer as trace_module
from ddsim.trace.checks import round_logprobs
from ddsim.trace.trace import Trace, open_trace
from ddsim.trace.writer import TraceWriter, write_pieces
from ddsim.tree.rows import gains_and_ranks, true_ranks
from tests.naive import trace as naive_trace
from tests.strategies import ints

L, N, V = 3, 12, 20
SHAPE: dict[str, Any] = {"horizon": L, "max_budget": N, "vocab_size": V, "provenance": {"target": "toy"}}


def sequence(rng: np.random.Generator, length: int) -> dict[str, Any]:
    logits = rng.normal(size=(length, L, V)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-logprobs, -1)[..., :N]
    return {
        "tokens": rng.integers(0, V, length),
        "token_ids": ids,
        "logprobs": np.take_along_axis(logprobs, ids, -1).astype(np.float32),
        "prompt_tokens": 5,
        "temperature": 0.0,
        "workload": "toy",
    }


def written(folder: Path, sequences: list[dict[str, Any]], flush_every: int = 2, **changes: Any) -> Trace:
    with TraceWriter(folder, **(SHAPE | changes)) as writer:
        for i, item in enumerate(sequences):
            writer.add_sequence(prompt_id=str(i), **item)
            if i % flush_every == flush_every - 1:
                writer.flush()
    return open_trace(folder)


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    rng = np.random.default_rng(0)
    return written(tmp_path / "t", [sequence(rng, n) for n in (6, 1, 4, 9, 2)])


@st.composite
def sequences(draw: Any) -> dict[str, Any]:
    """What ``sequence`` makes, drawn by Hypothesis."""
    length = draw(st.integers(1, 7))
    weights = -np.sort(-draw(ints(1, 64, length, L, N)), axis=-1)
    return {
        "tokens": draw(ints(0, V - 1, length)),
        "token_ids": np.argsort(draw(ints(0, 255, length, L, V)), axis=-1, kind="stable")[..., :N],
        "logprobs": np.log(weights / (weights.sum(-1, keepdims=True) + 1)).astype(np.float32),
        "prompt_tokens": 5,
        "temperature": 0.0,
        "workload": "toy",
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(sequences(), min_size=1, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]]) -> None:
    lengths = [len(item["tokens"]) for item in items]
    trace = written(tmp_path_factory.mktemp("t") / "t", items)
    (block,) = trace.blocks()
    assert len(trace) == len(block) == sum(lengths)
    for s, item in enumerate(items):
        rounded = round_logprobs(item["logprobs"])
        counts = np.maximum(naive_trace.kept_pairs(rounded, N), rounded[:, :, 0] > -np.inf)  # the chain stays whole
        assert block.tokens[block.starts[s] : block.starts[s + 1]].tolist() == item["tokens"].tolist()
        for p in range(lengths[s]):
            for d, (ids, values) in enumerate(block.rows(int(block.starts[s]) + p)):
                count = counts[p, d] if p < lengths[s] - 1 else 0
                expected = sorted(zip(-rounded[p, d], item["token_ids"][p, d], strict=True))[:count]
                assert list(zip(-values, ids, strict=True)) == expected
    small = list(trace.blocks(max_positions=1))
    assert [len(b) for b in small] == lengths
    assert np.array_equal(np.concatenate([b.logprobs for b in small]), block.logprobs)


@settings(max_examples=200, deadline=None)
@given(st.floats(max_value=0, width=32, allow_nan=False))
def test_rounding(value: float) -> None:
    rounded = float(round_logprobs(value))
    assert rounded == naive_trace.half_floor(value)
    assert rounded <= value and float(round_logprobs(rounded)) == rounded


def test_fingerprint_ignores_shards(trace: Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "copy")
    copy = open_trace(tmp_path / "copy")
    assert len(list((tmp_path / "copy").glob("part-*"))) == 1
    assert copy.fingerprint == trace.fingerprint
    assert trace.select(prompts=["0"]).fingerprint != trace.fingerprint


def test_selection_and_merging(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = [sequence(rng, 4) for _ in range(3)]
    written(tmp_path / "a", items)
    written(tmp_path / "b", [item | {"temperature": 1.0, "workload": "w"} for item in items])
    for path in (tmp_path, [tmp_path / "a", tmp_path / "b"], str(tmp_path / "*")):
        both = open_trace(path)
        assert len(both.sequences) == 6 and both.workloads == ("toy", "w") and both.temperatures == (0.0, 1.0)
    assert both.select(workload="w").fingerprint == both.select(temperature=1).fingerprint
    with pytest.raises(DdsimError, match="no sequence"):
        both.select(workload="x")
    written(tmp_path / "c", items, max_budget=N - 1)
    with pytest.raises(DdsimError, match="max_budget"):
        open_trace(tmp_path)


def test_other_tools_read_it(trace: Trace) -> None:
    assert trace.path is not None
    write_pieces(trace.path, {3: "three", 4: " four"})
    table = pd.read_parquet(trace.path)
    columns = "sequence prompt_id workload temperature position token context counts token_ids logprobs"
    assert list(table.columns) == columns.split() and len(table) == len(trace)
    (block,) = trace.blocks()
    assert np.array_equal(np.concatenate(list(table["logprobs"])).astype(np.float32), block.logprobs)
    assert np.array_equal(np.concatenate(list(table["token_ids"])), block.token_ids)
    assert pq.read_table(trace.path)["token"].to_numpy().tolist() == block.tokens.tolist()
    assert open_trace(trace.path).text([3, 4, 5]) == "three four<5>"


def test_killed_run_is_readable_and_goes_on(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        import numpy as np
        from tests.trace.test_trace import SHAPE, sequence
        from ddsim.trace.writer import TraceWriter
        writer = TraceWriter({str(tmp_path / "t")!r}, **SHAPE)
        rng = np.random.default_rng(2)
        for i in range(5):
            writer.add_sequence(prompt_id=str(i), **sequence(rng, 5))
            if i == 2:
                writer.flush()
        open({str(tmp_path / "t" / ".part-00001.parquet.tmp")!r}, "wb").write(b"PAR1 half")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    assert run.returncode == -signal.SIGKILL
    with pytest.warns(UserWarning, match=f"{tmp_path / 't'}: the recording was interrupted.* 3 sequences"):
        interrupted = open_trace(tmp_path / "t")
    assert len(interrupted.sequences) == 3 and interrupted.meta["complete"] is False
    rng = np.random.default_rng(2)
    items = [sequence(rng, 5) for _ in range(5)]
    with TraceWriter(tmp_path / "t", **SHAPE) as writer:
        assert writer.done == {("toy", str(i), 0.0) for i in range(3)}
        with pytest.raises(DdsimError, match="already"):
            writer.add_sequence(prompt_id="0", **items[0])
        for i in (3, 4):
            writer.add_sequence(prompt_id=str(i), **items[i])
    whole = open_trace(tmp_path / "t")
    assert whole.fingerprint == written(tmp_path / "whole", items).fingerprint and whole.meta["complete"] is True
    assert not list((tmp_path / "t").glob(".*"))


@pytest.mark.parametrize(
    "change", [{"horizon": 4}, {"max_budget": 9}, {"vocab_size": 21}, {"provenance": {"target": "other"}}]
)
def test_another_recording_is_refused(trace: Trace, change: dict[str, Any]) -> None:
    assert trace.path is not None
    with pytest.raises(DdsimError, match=next(iter(change)) if "provenance" not in change else "target"):
        TraceWriter(trace.path, **(SHAPE | change))
    with pytest.raises(DdsimError, match="holds a trace already"):
        TraceWriter(trace.path, **SHAPE, resume=False)


def test_damage_never_gives_wrong_numbers(trace: Trace) -> None:
    assert trace.path is not None
    good, rng = trace.fingerprint, np.random.default_rng(3)
    file = trace.path / "part-00000.parquet"
    whole = file.read_bytes()
    for i in range(300):
        data = bytearray(whole)
        if i % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        else:
            data[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(data))
        try:
            damaged = open_trace(trace.path)
            damaged.check()
        except DdsimError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:
            assert damaged.fingerprint == good


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda s: s["logprobs"].__setitem__((1, 2, 3), np.nan), "position 1, depth 3.*not a number"),
        (lambda s: s["logprobs"].__setitem__((1, 2, 0), 0.5), "position 1, depth 3.*positive"),
        (lambda s: s["logprobs"].__setitem__((0, 0, 5), 0.0), "position 0, depth 1.*descending"),
        (lambda s: s["logprobs"].__setitem__((0, 1), np.float32(-0.5)), "position 0, depth 2.*sum"),
        (lambda s: s["token_ids"].__setitem__((2, 0, 0), V), f"position 2, depth 1.*vocabulary of {V}"),
        (lambda s: s["token_ids"].__setitem__((2, 0, 1), s["token_ids"][2, 0, 0]), "twice"),
        (lambda s: s["tokens"].__setitem__(3, -1), "position 3.*vocabulary"),
        (lambda s: s.update(tokens=s["tokens"][:2]), "2 tokens"),
        (lambda s: s.update(token_ids=s["token_ids"][..., :5], logprobs=s["logprobs"][..., :5]), "give 12"),
        (lambda s: s.update(temperature=-1.0), "temperature"),
    ],
)
def test_writer_refuses(tmp_path: Path, edit: Any, reason: str) -> None:
    item = sequence(np.random.default_rng(4), 5)
    edit(item)
    with TraceWriter(tmp_path / "t", **SHAPE) as writer, pytest.raises(DdsimError, match=reason):
        writer.add_sequence(prompt_id="a", **item)
    assert not list((tmp_path / "t").iterdir())


def test_missing_things(trace: Trace, tmp_path: Path) -> None:
    assert trace.path is not None
    with pytest.raises(DdsimError, match="up to 12"):
        trace.check_budget(13)
    with pytest.raises(DdsimError, match="no such trace"):
        open_trace(tmp_path / "nothing")
    with pytest.raises(DdsimError, match="is a file"):
        open_trace(trace.path / "part-00000.parquet")
    (trace.path / "part-00001.parquet").unlink()
    with pytest.raises(DdsimError, match="shard missing"):
        open_trace(trace.path)


def test_from_arrays_equals_files(tmp_path: Path) -> None:
    item = sequence(np.random.default_rng(5), 6)
    values = round_logprobs(item["logprobs"])
    memory = Trace.from_arrays(item["tokens"], item["token_ids"], values, max_budget=N, vocab_size=V, context0=5)
    memory.save(tmp_path / "t")
    answers = []
    for trace in (memory, open_trace(tmp_path / "t")):
        (b,) = trace.blocks()
        truth = true_ranks(b.token_ids, b.offsets, b.tokens, b.starts, L)
        answers.append(gains_and_ranks(b.logprobs, b.offsets, truth, L, N))
    assert all(np.array_equal(a, b) for a, b in zip(*answers, strict=True))  # pruning loses nothing up to N
    wide = Trace.from_arrays(item["tokens"], item["token_ids"], item["logprobs"], max_budget=N, vocab_size=V)
    wide.save(tmp_path / "u")
    open_trace(tmp_path / "u").check()
    with pytest.raises(DdsimError, match="horizon"):
        Trace.from_arrays([item["tokens"]] * 2, [item["token_ids"], item["token_ids"][:, :2]], [values, values[:, :2]])


# --- what an index tells is so --------------------------------------------------------------------------------------


def rewritten(shard: Path, change: Any = None, **meta: Any) -> None:
    """Change a shard's table, and entries of its metadata (None: leave out), under a checksum that fits."""
    table = pq.read_table(shard, partitioning=None)
    told = json.loads(table.schema.metadata[b"ddsim"]) | meta
    told = {key: value for key, value in told.items() if key != "checksum" and value is not None}
    told["checksum"] = _schema._checksum(told)
    if change is not None:
        table = change(table)
    pq.write_table(table.replace_schema_metadata({"ddsim": json.dumps(told)}), shard, row_group_size=1 << 20)


def column(name: str, edit: Any) -> Any:
    """A change of one column, as Python values."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        edit(values)
        at = table.schema.names.index(name)
        return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    return change


def shifted(values: list[Any], low: int, high: int, by: int) -> None:
    values[low:high] = [value + by for value in values[low:high]]


# The first shard of `trace` holds sequences of 6 and 1 positions.
EDITS: dict[str, Any] = {
    "prompt_id": column("prompt_id", lambda v: v.__setitem__(slice(0, 6), ["other"] * 6)),
    "workload": column("workload", lambda v: v.__setitem__(slice(0, 6), ["other"] * 6)),
    "temperature": column("temperature", lambda v: v.__setitem__(slice(0, 6), [0.5] * 6)),
    "context": column("context", lambda v: shifted(v, 0, 6, 1)),
    "token": column("token", lambda v: v.__setitem__(2, (v[2] + 1) % V)),
    "a row dropped at the start": lambda t: column("position", lambda v: shifted(v, 0, 5, -1))(t.slice(1)),
    "a sequence dropped": lambda t: t.slice(0, 6),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("remembered", [False, True])
def test_an_edited_index_is_refused(trace: Trace, edit: str, remembered: bool) -> None:
    """Whatever was cached for the sound trace, and before any candidate is read."""
    assert trace.path is not None
    shard = trace.path / "part-00000.parquet"
    if not remembered:
        rewritten(shard)  # other bytes than those that were verified
    rewritten(shard, EDITS[edit])
    with pytest.raises(DdsimError, match=f"{shard}.*(differs from its hash|hashes of 2)"):
        open_trace(trace.path)


def test_every_command_refuses_an_edited_index(
    cli: Callable[..., Any], trace: Trace, files: Path, tmp_path: Path
) -> None:
    assert trace.path is not None
    costs = ("-p", files / "profile.json")
    commands: dict[str, tuple[Any, ...]] = {
        "replay": costs, "plan": costs, "serve": costs, "calibrate": (), "export": ("-o", tmp_path / "e.csv"),
        "report": (*costs, "-o", tmp_path / "r.html"),
    }  # fmt: skip
    shard = trace.path / "part-00000.parquet"
    rewritten(shard, EDITS["prompt_id"])
    for command, options in commands.items():
        answer = cli(command, trace.path, *options)
        assert (answer.code, answer.err.count("\n")) == (2, 1), (command, answer)
        assert "differs from its hash" in answer.err and str(shard) in answer.err.replace("\n", "")
    assert not list(tmp_path.glob("[er].*"))


def test_verified_once_for_its_content(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace.path is not None
    read = []
    parse = _reader._Shard._parse
    monkeypatch.setattr(_reader._Shard, "_parse", lambda *a: read.append(a[0].path.name) or parse(*a))
    open_trace(trace.path)
    shutil.copytree(trace.path, tmp_path / "copy")
    open_trace(tmp_path / "copy")
    assert not read
    rewritten(tmp_path / "copy" / "part-00001.parquet")
    assert open_trace(tmp_path / "copy").fingerprint == trace.fingerprint
    assert read == ["part-00001.parquet"]
    monkeypatch.setenv("DDSIM_CACHE", "off")
    open_trace(tmp_path / "copy")
    assert len(read) == 4


def test_missing_and_foreign_shards(trace: Trace, tmp_path: Path) -> None:
    assert trace.path is not None and trace.meta["complete"] is True
    last, listed = trace.path / "part-00002.parquet", trace.path / "_recording.json"
    rng = np.random.default_rng(9)
    other = written(tmp_path / "other", [sequence(rng, n) for n in (6, 1, 4, 9, 2)])
    assert other.path is not None
    good = last.read_bytes()
    last.unlink()
    with pytest.raises(DdsimError, match=r"part-00002.parquet: is missing.* lists 3 shards"):
        open_trace(trace.path)
    shutil.copy(other.path / last.name, last)
    with pytest.raises(DdsimError, match=r"part-00002.parquet: is another shard than _recording.json lists"):
        open_trace(trace.path)
    last.write_bytes(good)
    rewritten(last)  # the same content in other bytes
    assert open_trace(trace.path).fingerprint == trace.fingerprint
    shutil.copy(last, trace.path / "part-00003.parquet")
    rewritten(trace.path / "part-00003.parquet", column("sequence", lambda v: shifted(v, 0, 2, 1)), first_sequence=5)
    with pytest.raises(DdsimError, match=r"part-00003.parquet: is not listed"):
        open_trace(trace.path)
    (trace.path / "part-00003.parquet").unlink()
    text = listed.read_text()
    for bad in (text.replace("true", "false"), text[:-5], "", "[]", '{"schema_version": 1}'):
        listed.write_text(bad)
        with pytest.raises(DdsimError, match=str(listed)):
            open_trace(trace.path)
    listed.unlink()
    with pytest.warns(UserWarning, match="interrupted"):
        assert open_trace(trace.path).meta["complete"] is False
    os.rename(last, trace.path / "part-00007.parquet")
    with pytest.raises(DdsimError, match=r"expected part-00002.parquet.*missing.*renamed"):
        open_trace(trace.path)


def test_a_recording_killed_between_a_shard_and_the_list(trace: Trace) -> None:
    """At each place where a resumed recorder can die, the folder stays readable and tells."""
    assert trace.path is not None
    rng = np.random.default_rng(10)
    writer = TraceWriter(trace.path, **SHAPE)
    writer.add_sequence(prompt_id="more", **sequence(rng, 3))
    write = _writer._write_recording
    for dies_at in (1, 2):
        calls = []

        def dying(*arguments: Any, at: int = dies_at, calls: list[Any] = calls) -> None:
            calls.append(arguments)
            if len(calls) == at:
                raise KeyboardInterrupt
            write(*arguments)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(trace_module, "_write_recording", dying)
            writer.flush()
        writer._lock.release()  # as the end of its process does
        found = len(list(trace.path.glob("part-*")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = open_trace(trace.path)
        assert (found, len(again.sequences), again.meta["complete"]) == ((3, 5, True), (4, 6, False))[dies_at - 1]
    with TraceWriter(trace.path, **SHAPE) as writer:
        assert ("toy", "more", 0.0) in writer.done
    assert open_trace(trace.path).meta["complete"] is True


def test_traces_without_a_list_stay_readable(trace: Trace) -> None:
    """The first builds listed no shards, nor said in a shard that they would, so whether one is missing can't be told."""
    for path in trace.path.glob("part-*.parquet"):
        file = pq.ParquetFile(path)
        meta = json.loads(file.metadata.metadata[b"ddsim"])
        assert meta.pop("listed") is True and meta.pop("checksum")
        told = json.dumps(meta | {"checksum": _schema._checksum(meta)})
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        with pq.ParquetWriter(path, groups[0].schema) as writer:
            writer.add_key_value_metadata({"ddsim": told})
            for group in groups:
                writer.write_table(group)
    (trace.path / "_recording.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = open_trace(trace.path)
    assert again.meta["complete"] is None and again.fingerprint == trace.fingerprint


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    item = sequence(np.random.default_rng(6), 4000)
    peaks = []
    for count in (4, 16):
        trace = written(tmp_path / str(count), [item] * count, flush_every=4)
        tracemalloc.start()
        for _ in trace.blocks(4000):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_kernel_finds_bad_what_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        counts = rng.integers(0, 4, (3, 3)).astype(np.int32)
        ids = rng.integers(-1 if rng.random() < 0.1 else 0, 9, counts.sum())
        values = rng.choice(np.float32([-1.2, -1.3, -1.3, -2.0, -9.0]), counts.sum())
        if rng.random() < 0.1 and len(values):
            values[rng.integers(len(values))] = rng.choice([-np.inf, np.nan, 0.0, 1e-6])
        rows = np.repeat(np.arange(9), counts.ravel())
        if rng.random() < 0.9:
            order = np.lexsort((ids, -values, rows))
            ids, values = ids[order], values[order]
        if rng.random() < 0.9:
            counts, keep = np.minimum(counts, 1), np.r_[True, np.diff(rows) > 0][: len(rows)]
            ids, values = ids[keep], values[keep]
        for ordered in (False, True):
            answers = []
            for many in (10**9, 0):
                monkeypatch.setattr(_checks, "MANY", many)
                answers.append(_checks._first_bad_row(counts, ids, values, 8, ordered))
            assert answers[0] == answers[1]
            found.append(answers[0] is None)
    assert 0.05 < np.mean(found) < 0.95


def test_texts_alone_are_those_of_whole_sequences(tmp_path: Path) -> None:
    from tests import made_up

    for trace in (
        made_up.saved(tmp_path / "a"),
        made_up.trace(),
        open_trace(Path(__file__).parents[2] / "traces" / "temperature-1"),
    ):
        for some in (trace, trace.subset(range(1, len(trace.sequences), 2))):
            whole = [part.tokens for part in some._load()]
            assert len(whole) == len(some.sequences)
            assert all(np.array_equal(a, b) for a, b in zip(some._texts(), whole, strict=True))
