"""From a trace to the two arrays that say it all, gains and true-path ranks, cached beside the trace.

A cache file holds, after a mark of 64 bytes, the arrays of `ddsim.budget.Positions` one after another, each at a multiple of
64 bytes, then a JSON footer. Its name is a hash of what it depends on; the footer repeats this and holds checksums. A file that
doesn't agree is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import ddsim
from ddsim.budget import Positions, StoredRows, node_counts
from ddsim.calibration import Calibration, CrossCalibration, calibrated_gains, calibrated_rows
from ddsim.trace import Trace, TraceBlock
from ddsim.tree import gains_and_ranks, true_ranks

FOLDER = ".ddsim-cache"
VERSION = 1
"""Counted up when gains, ranks or the layout of the file change."""
KEPT = 16
"""Files kept in one cache folder; those used longest ago go first."""
MAPPED = 1 << 28
"""Bytes of an array up to which it stays mapped as a whole; pages that were read count as memory of the process."""
_MARK = b"ddsim positions".ljust(64, b"\0")
_PIECE = 1 << 24  # bytes per checksum

Progress = Callable[[int, int], None]
_Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]


def positions_of(
    trace: Trace,
    *,
    calibration: Calibration | CrossCalibration | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Positions:
    """Gains and true-path ranks at all positions of a trace.

    They are computed once and kept in ``.ddsim-cache`` in the trace's folder, or in the user's cache folder where that can't be
    written, and mapped from there, so memory stays bounded. Traces in memory aren't cached.

    Parameters
    ----------
    trace : Trace
    calibration : Calibration or CrossCalibration, optional
        A temperature changes the rows, hence trees, gains and ranks; an isotonic map changes the gains only.
    cache : bool
        False: compute, and keep all in memory.
    progress : callable, optional
        Called with (positions done, positions in all) while they are computed.

    Returns
    -------
    Positions

    Examples
    --------
    >>> trace = Trace.from_arrays([5, 6, 6], np.full((3, 2, 2), [6, 7]), np.log(np.full((3, 2, 2), [0.5, 0.25])), max_budget=4)
    >>> positions = positions_of(trace)
    >>> np.asarray(positions.gains)[0].tolist(), np.asarray(positions.ranks)[0].tolist()
    ([0.5, 0.25, 0.25, 0.125], [1, 2])
    """
    layout = _layout(len(trace), trace.max_budget, trace.horizon)
    if cache and trace.path is not None:
        key = {
            "trace": trace.fingerprint,
            "positions": len(trace),
            "max_budget": trace.max_budget,
            "horizon": trace.horizon,
            "calibration": None if calibration is None else _digest(calibration),
            "version": VERSION,
            "ddsim": ddsim.__version__,
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32] + ".positions"
        folders = _folders(trace.path)
        for folder in folders:
            found = _read(folder / name, key, layout)
            if found is not None:
                return _positions(trace, found)
        for folder in folders:
            made = _write(folder, name, key, layout, trace, calibration, progress)
            if made is not None:
                return _positions(trace, made)
    arrays = {field: np.zeros(shape, dtype) for field, (dtype, shape, _) in layout.items()}
    for low, part in _computed(trace, calibration, progress):
        for field, values in part.items():
            arrays[field][low : low + len(values)] = values
    return _positions(trace, arrays)


def _layout(positions: int, budget: int, horizon: int) -> _Layout:
    """Type, shape and place in the file of every array."""
    fields: list[tuple[str, Any, tuple[int, ...]]] = [
        ("nodes", np.int32, (positions,)),
        ("chain", np.uint8, (positions,)),
        ("chain_expected", np.float32, (positions,)),
        ("context", np.int32, (positions,)),
        ("ranks", np.int32, (positions, horizon)),
        ("gains", np.float32, (positions, budget)),
    ]
    layout, at = {}, len(_MARK)
    for field, kind, shape in fields:
        dtype = np.dtype(kind)
        layout[field] = (dtype, shape, at)
        at += -(-int(np.prod(shape)) * dtype.itemsize // 64) * 64
    return layout


def _positions(trace: Trace, arrays: dict[str, Any]) -> Positions:
    lengths = [info.length for info in trace.sequences]
    return Positions(
        **arrays,
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_id=tuple(info.prompt_id for info in trace.sequences),
        workload=tuple(info.workload for info in trace.sequences),
        temperature=np.array([info.temperature for info in trace.sequences], np.float32),
        fingerprint=trace.fingerprint,
    )


def _computed(
    trace: Trace, calibration: Calibration | CrossCalibration | None, progress: Progress | None
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """The arrays of one block after another, with the block's first position."""
    low = 0
    for block in trace.blocks():
        logprobs = block.logprobs if calibration is None else calibrated_rows(block, calibration)
        truth = true_ranks(block.token_ids, block.offsets, block.tokens, block.starts, block.horizon)
        gains, ranks, chain = gains_and_ranks(logprobs, block.offsets, truth, block.horizon, trace.max_budget)
        nodes = node_counts(gains)
        if calibration is not None:
            gains = calibrated_gains(block, gains, calibration)
        yield (
            low,
            {
                "nodes": nodes,
                "chain": chain,
                "chain_expected": _chain_expected(block, logprobs),
                "context": block.context,
                "ranks": ranks,
                "gains": gains,
            },
        )
        low += len(block)
        if progress is not None:
            progress(low, len(trace))


def _chain_expected(block: TraceBlock, logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
    """[P] the sum of the path probabilities of the chain of best candidates."""
    shape = (len(block), block.horizon)
    first = block.offsets[:-1].reshape(shape)
    exists = np.diff(block.offsets).reshape(shape) > 0
    best = np.full(shape, -np.inf)
    best[exists] = logprobs[first[exists]]
    return np.exp(np.cumsum(best, axis=1)).sum(axis=1).astype(np.float32)


def _digest(calibration: Calibration | CrossCalibration) -> str:
    """A hash of all that a calibration does."""
    parts = [calibration] if isinstance(calibration, Calibration) else calibration.parts
    fold = [] if isinstance(calibration, Calibration) else sorted(calibration.fold.items())
    digest = hashlib.sha256(json.dumps([calibration.kind, fold]).encode())
    for part in parts:
        for values in (part.log_gains, part.acceptance, part.temperatures):
            digest.update(json.dumps(values.tolist()).encode())
    return digest.hexdigest()


def _folders(trace: Path) -> list[Path]:
    """Where a cache may lie: in the trace's folder (unless it is part of the installed package), or the user's cache folder."""
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddsim"
    except RuntimeError:  # no home directory
        return [trace / FOLDER]
    if trace.resolve().is_relative_to(Path(__file__).resolve().parent):
        return [user]
    return [trace / FOLDER, user]


def _read(path: Path, key: dict[str, Any], layout: _Layout) -> dict[str, Any] | None:
    """The arrays of a cache file, large ones mapped; None if it isn't there or is damaged."""
    try:
        end = _end(layout)
        with open(path, "rb") as file:
            if file.read(len(_MARK)) != _MARK:
                return None
            file.seek(end)
            footer = json.loads(file.read())
        if footer["key"] != key or footer["checksums"] != _checksums(path, end):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return _mapped(path, layout)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _end(layout: _Layout) -> int:
    """Where the arrays end and the footer starts."""
    return max(at + int(np.prod(shape)) * dtype.itemsize for dtype, shape, at in layout.values())


def _mapped(path: Path, layout: _Layout) -> dict[str, Any]:
    """Small arrays read, large ones mapped: at once, or a slice at a time where all would fill the memory."""
    arrays: dict[str, Any] = {}
    for field, (dtype, shape, at) in layout.items():
        if len(shape) == 1:
            arrays[field] = np.fromfile(path, dtype, shape[0], offset=at)
        else:
            arrays[field] = StoredRows(path, (shape[0], shape[1]), dtype, at)
            if int(np.prod(shape)) * dtype.itemsize <= MAPPED:
                arrays[field] = arrays[field][:]
    return arrays


def _checksums(path: Path, end: int) -> list[int]:
    """CRC-32 of every piece of a file up to ``end``."""

    def piece(low: int) -> int:
        with open(path, "rb") as file:
            file.seek(low)
            return zlib.crc32(file.read(min(_PIECE, end - low)))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(piece, range(0, end, _PIECE)))


def _write(
    folder: Path,
    name: str,
    key: dict[str, Any],
    layout: _Layout,
    trace: Trace,
    calibration: Calibration | CrossCalibration | None,
    progress: Progress | None,
) -> dict[str, Any] | None:
    """Compute into a cache file, which appears whole or not at all; None if the folder can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=name, suffix=".tmp")
    except OSError:
        return None
    path, end = Path(temporary), _end(layout)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MARK)
            file.truncate(end)
            _fill(file, layout, _computed(trace, calibration, progress))
            file.flush()
            footer = {"key": key, "checksums": _checksums(path, end)}
            file.seek(end)
            file.write(json.dumps(footer).encode())
        os.replace(path, folder / name)
    except OSError:
        path.unlink(missing_ok=True)
        return None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    _prune(folder)
    return _mapped(folder / name, layout)


def _fill(file: BinaryIO, layout: _Layout, parts: Iterator[tuple[int, dict[str, NDArray[Any]]]]) -> None:
    for low, part in parts:
        for field, values in part.items():
            dtype, shape, at = layout[field]
            width = dtype.itemsize * (shape[1] if len(shape) == 2 else 1)
            file.seek(at + low * width)
            file.write(np.ascontiguousarray(values, dtype).data)


def _prune(folder: Path) -> None:
    """Remove all but the files used last."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.positions"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[KEPT:]:
            path.unlink(missing_ok=True)
