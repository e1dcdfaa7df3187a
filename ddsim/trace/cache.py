"""Keeps tables of rounds in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import ddsim
from ddsim.errors import DdsimError
from ddsim.files.cache import cache_folder, made, tidy
from ddsim.trace.calibration import Calibration, CrossCalibration
from ddsim.trace.rounds import Positions, StoredRows, drafted
from ddsim.trace.schema import Progress
from ddsim.trace.trace import Trace
from ddsim.tree.kernels import NO_RANK

KIND = "positions"


VERSION = 3
"""Counted up when gains, ranks or the files of an entry change."""


MAPPED = 1 << 25
"""Bytes of an array up to which it stays mapped as a whole; pages that were read count as memory of the process."""


_ABOUT = "entry.json"


_PIECE = 1 << 24  # bytes per checksum


_Shapes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def positions_of(
    trace: Trace,
    *,
    calibration: Calibration | CrossCalibration | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Positions:
    """Gains and true-path ranks at all positions of a trace.

    They are computed once, kept in the user's cache folder (``DDSIM_CACHE`` names another, or is ``off``) under a hash of the
    trace's content, and mapped from there, so memory stays bounded. Traces in memory aren't cached.

    Parameters
    ----------
    trace : Trace
    calibration : Calibration or CrossCalibration, optional
        A temperature or a path correction changes the rows, hence trees, gains and ranks; an isotonic map changes the gains only.
    cache : bool
        False: compute, and keep all in memory.
    progress : callable, optional
        Called with (positions done, positions in all) while they are computed.

    Returns
    -------
    Positions

    Raises
    ------
    DdsimError
        The trace is damaged, or nothing can be cached and the arrays don't fit the machine's memory.

    Examples
    --------
    >>> trace = Trace.from_arrays([5, 6, 6], np.full((3, 2, 2), [6, 7]), np.log(np.full((3, 2, 2), [0.5, 0.25])), max_budget=4)
    >>> positions = positions_of(trace)
    >>> np.asarray(positions.gains)[0].tolist(), np.asarray(positions.ranks)[0].tolist()
    ([0.5, 0.25, 0.25, 0.125], [1, 2])
    """
    shapes = _shapes(len(trace), trace.max_budget, trace.horizon)
    folder = cache_folder() if cache and trace.path is not None else None
    if folder is not None:
        key = {
            "trace": trace.fingerprint,
            "positions": len(trace),
            "max_budget": trace.max_budget,
            "horizon": trace.horizon,
            "calibration": None if calibration is None else _digest(calibration),
            "version": VERSION,
            "ddsim": ddsim.__version__,
        }
        entry = folder / KIND / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        found = _read(entry, key, shapes)
        if found is None:
            found = _write(entry, key, shapes, _computed(trace, calibration, progress))
        if found is not None:
            return _positions(trace, found)
    _check_memory(shapes)
    arrays = {field: np.zeros(shape, dtype) for field, (dtype, shape) in shapes.items()}
    low = 0
    for part in _computed(trace, calibration, progress):
        for field, values in arrays.items():
            values[low : low + len(part)] = getattr(part, field)
        low += len(part)
    return _positions(trace, arrays)


def _computed(
    trace: Trace, calibration: Calibration | CrossCalibration | None, progress: Progress | None
) -> Iterator[Positions]:
    """One block after another."""
    for block in drafted(trace, calibration, progress=progress):
        yield block.rounds


def _shapes(positions: int, budget: int, horizon: int) -> _Shapes:
    """Type and shape of every array that is computed."""
    return {
        "nodes": (np.dtype(np.int32), (positions,)),
        "chain": (np.dtype(np.uint8), (positions,)),
        "chain_expected": (np.dtype(np.float32), (positions, horizon)),
        "ranks": (np.dtype(np.int32), (positions, horizon)),
        "gains": (np.dtype(np.float32), (positions, budget)),
    }


def _bytes(shapes: _Shapes) -> int:
    return sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in shapes.values())


def _check_memory(shapes: _Shapes) -> None:
    """Refuse what can't fit, before the system ends the process for it."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return  # not known here
    positions, budget = shapes["gains"][1]
    if _bytes(shapes) > memory:
        raise DdsimError(
            f"gains of {positions:,} positions up to budget {budget:,} take {_bytes(shapes) / 1e9:.0f} GB, which neither the cache "
            "folder nor the memory holds; choose fewer workloads, or another folder with DDSIM_CACHE"
        )


def _positions(trace: Trace, arrays: dict[str, Any]) -> Positions:
    lengths = np.array([info.length for info in trace.sequences], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    first = np.array([info.prompt_tokens for info in trace.sequences], np.int64) - starts[:-1]
    return Positions(
        **arrays,
        context=(np.arange(starts[-1]) + np.repeat(first, lengths)).astype(np.int32),
        starts=starts,
        prompt_id=tuple(info.prompt_id for info in trace.sequences),
        workload=tuple(info.workload for info in trace.sequences),
        temperature=np.array([info.temperature for info in trace.sequences], np.float32),
        fingerprint=trace.fingerprint,
    )


def _digest(calibration: Calibration | CrossCalibration) -> str:
    """A hash of all that a calibration does."""
    parts = [calibration] if isinstance(calibration, Calibration) else calibration.parts
    fold = [] if isinstance(calibration, Calibration) else sorted(calibration.fold.items())
    digest = hashlib.sha256(json.dumps([calibration.kind, fold]).encode())
    for part in parts:
        for values in (part.log_gains, part.acceptance, part.temperatures):
            digest.update(json.dumps(values.tolist()).encode())
        if part.path is not None:
            digest.update(json.dumps(part.path.to_json()).encode())
    return digest.hexdigest()


def _read(entry: Path, key: dict[str, Any], shapes: _Shapes) -> dict[str, Any] | None:
    """The arrays of a cache entry, large ones mapped; None if it isn't there, is damaged or is no trace's."""
    try:
        about = json.loads((entry / _ABOUT).read_bytes())
        if about["key"] != key or about["checksums"] != {field: _checksums(_file(entry, field)) for field in shapes}:
            return None
        arrays = _opened(entry, shapes)
        if not _sound(arrays):
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)
        return arrays
    except (OSError, ValueError, KeyError, TypeError, RecursionError, EOFError):
        return None


def _file(entry: Path, field: str) -> Path:
    return entry / f"{field}.npy"


def _opened(entry: Path, shapes: _Shapes) -> dict[str, Any]:
    """The arrays of an entry, mapped: at once, or a slice at a time where all would fill the memory."""
    arrays: dict[str, Any] = {}
    for field, (dtype, shape) in shapes.items():
        path = _file(entry, field)
        # mode "c": numba compiles a kernel anew for read-only arrays
        mapped = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(mapped, np.memmap) or (mapped.dtype, mapped.shape) != (dtype, shape) or mapped.flags.fnc:
            raise ValueError(f"{path}: another array than expected")
        large = len(shape) == 2 and mapped.nbytes > MAPPED
        arrays[field] = StoredRows(path, (shape[0], shape[1]), dtype, mapped.offset) if large else np.asarray(mapped)
    return arrays


def _sound(arrays: dict[str, Any]) -> bool:
    """Whether arrays are such as a trace can give: kernels index with ranks, nodes and chain, and add gains up unchecked."""
    nodes, chain = arrays["nodes"], arrays["chain"]
    (positions, budget), horizon = arrays["gains"].shape, arrays["ranks"].shape[1]
    if not (np.all((nodes >= 0) & (nodes <= budget)) and np.all(chain <= horizon)):
        return False

    def piece(low: int) -> bool:
        rows = slice(low, low + step)
        gains, ranks, expected = (arrays[name][rows] for name in ("gains", "ranks", "chain_expected"))
        return bool(
            np.all((gains[:, 0] <= 1) & (gains[:, -1] >= 0))  # and, falling between the two, all others
            and np.all(gains[:, 1:] <= gains[:, :-1])
            and np.array_equal(np.count_nonzero(gains, axis=1), nodes[rows])
            and np.all(((ranks >= 1) & (ranks <= budget)) | (ranks == NO_RANK))
            and np.all((ranks[:, 1:] > ranks[:, :-1]) | (ranks[:, 1:] == NO_RANK))
            and np.all((expected >= 0) & (expected <= np.arange(1, horizon + 1) * (1 + 1e-6)))
        )

    step = max(1, _PIECE // (4 * budget))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return all(pool.map(piece, range(0, positions, step)))


def _checksums(path: Path) -> list[int]:
    """CRC-32 of every piece of a file."""

    def piece(low: int) -> int:
        with open(path, "rb") as file:
            file.seek(low)
            return zlib.crc32(file.read(_PIECE))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(piece, range(0, path.stat().st_size, _PIECE)))


def _write(entry: Path, key: dict[str, Any], shapes: _Shapes, parts: Iterator[Positions]) -> dict[str, Any] | None:
    """Compute into a cache entry, which appears whole or not at all; None if it can't be written."""
    try:
        tidy(made(entry.parent))
        if shutil.disk_usage(entry.parent).free < _bytes(shapes):
            return None
        temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=entry.name, suffix=".tmp"))
    except OSError:
        return None
    try:
        _fill(temporary, shapes, parts)
        about = {"key": key, "checksums": {field: _checksums(_file(temporary, field)) for field in shapes}}
        (temporary / _ABOUT).write_text(json.dumps(about))
        # Another process may have made the same entry meanwhile; a damaged one is in the way.
        found = _read(entry, key, shapes)
        if found is None:
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(temporary, entry)
            found = _opened(entry, shapes)
        return found
    except OSError:
        return _read(entry, key, shapes)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, shapes: _Shapes, parts: Iterator[Positions]) -> None:
    """Write the arrays' files, a block of rows after another."""
    with contextlib.ExitStack() as stack:
        files = {field: stack.enter_context(open(_file(folder, field), "wb")) for field in shapes}
        for field, (dtype, shape) in shapes.items():
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[field], header)
        for part in parts:
            for field, (dtype, _) in shapes.items():
                files[field].write(np.ascontiguousarray(getattr(part, field), dtype).data)
