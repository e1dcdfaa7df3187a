"""Calibration: corrects the drafter's probabilities by a fit on other prompts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import plain
from ddsim.errors import DdsimError
from ddsim.files.documents import array, mapping, need, number, read_document, write_document
from ddsim.jit import njit
from ddsim.trace.checks import round_logprobs
from ddsim.trace.path import PathCorrection
from ddsim.trace.schema import TraceBlock
from ddsim.trace.shown import ShownCalibration
from ddsim.tree.lattices import Lattices
from ddsim.tree.proposal import Proposal, Rows

if TYPE_CHECKING:
    from ddsim.trace.rounds import Positions

KIND = "ddsim-calibration"


SCHEMA_VERSION = 1


KINDS = ("isotonic", "temperature", "path")
"""What is corrected: a node's gain, the marginals of each depth, or each row by the token before it."""


TEMPERATURES = np.geomspace(0.5, 2.0, 57)
"""Tried for every depth; the best is refined by a parabola through its neighbours."""


_TINY = np.finfo(np.float32).tiny


_PRIOR = 1.0  # nodes' worth of belief in the raw gain, which keeps every calibrated gain above 0


@njit(cache=True, nogil=True)
def _interpolate(gains, logs, knots, values, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` [n] with `np.interp` of ``logs``, at least the least number above 0, 0 where the gain is 0.

    Each search starts from the one before, since gains descend.
    """
    last = len(knots) - 1
    j = last
    for i in range(len(logs)):
        if not gains[i] > 0:
            out[i] = 0.0
            continue
        x = logs[i]
        while j < last and knots[j + 1] <= x:
            j += 1
        while j > 0 and knots[j] > x:
            j -= 1
        if j == last or x <= knots[j]:
            value = values[j]
        else:
            value = (values[j + 1] - values[j]) / (knots[j + 1] - knots[j]) * (x - knots[j]) + values[j]
        out[i] = max(value, _TINY)


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(ShownCalibration):
    """A fitted correction of marginals.

    ``kind`` is ``"isotonic"`` (``apply_gains``), ``"temperature"`` (``apply_rows``) or ``"path"`` (``path``); the methods of other
    kinds return their input.

    Examples
    --------
    >>> print(Calibration("isotonic", np.log([0.1, 0.9]), np.array([0.2, 0.95]), np.ones(0), {}))
    Calibration 'isotonic': maps a node's path probability to how often such nodes
    are accepted.
    """

    kind: str
    log_gains: NDArray[np.float64]
    """[J] knots of the isotonic map, ascending natural logarithms."""
    acceptance: NDArray[np.float64]
    """[J] acceptance probability there, non-decreasing, above 0."""
    temperatures: NDArray[np.float64]
    """[L] a temperature per depth."""
    provenance: dict[str, Any]
    path: PathCorrection | None = None
    """What makes lattices of rows, for a decoder too (`PathCorrection.lattice`); None for other kinds."""

    def apply_gains(self, gains: ArrayLike) -> NDArray[np.float32]:
        """Acceptance probability of nodes from their gains.

        Parameters
        ----------
        gains : float32 [..., N]
            Descending, 0 where there is no node.

        Returns
        -------
        float32 ndarray, same shape
            Descending; 0 exactly where the input is.

        Examples
        --------
        >>> c = Calibration("isotonic", np.log([0.1, 0.9]), np.array([0.2, 0.95]), np.ones(0), {})
        >>> c.apply_gains([0.9, 0.1, 0.05, 0.0]).round(3).tolist()
        [0.949999988079071, 0.20000000298023224, 0.10000000149011612, 0.0]
        """
        raw = np.asarray(gains, np.float32)
        if self.kind != "isotonic":
            return raw
        exists = raw > 0
        logs = np.log(raw, where=exists, out=np.full(raw.shape, -np.inf))
        fitted = np.empty(raw.shape, np.float32)
        knots = plain(self.log_gains, np.float64), plain(self.acceptance, np.float64)
        _interpolate(plain(raw, np.float32).reshape(-1), logs.reshape(-1), *knots, fitted.reshape(-1))
        # Below the lowest knot the ratio to the gain stays, so that no node falls to 0.
        below = exists & (logs < self.log_gains[0])
        if below.any():
            fitted[below] = np.maximum(self.acceptance[0] * np.exp(logs[below] - self.log_gains[0]), _TINY)
        # Interpolation may break the order in the last digit.
        result: NDArray[np.float32] = np.minimum.accumulate(fitted, axis=-1) if fitted.ndim else fitted
        return result

    def apply_rows(self, logprobs: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compressed rows at the temperatures of their depths.

        Parameters
        ----------
        logprobs : float32 [M]
            Rows pruned as in a trace (see the module).
        offsets : int64 [P * L + 1]

        Returns
        -------
        float32 [M]
            Rounded by `round_logprobs`, but never to -inf; descending within a row as before.

        Raises
        ------
        DdsimError
            Rows of another horizon.
        """
        if self.kind != "temperature":
            return logprobs
        horizon, rows = len(self.temperatures), len(offsets) - 1
        if rows % horizon:
            raise DdsimError(f"calibration: made for horizon {horizon}, but given {rows} rows")
        power = np.tile(1.0 / self.temperatures, rows // horizon)
        sizes = np.diff(offsets)
        scaled, normaliser = _scaled(logprobs, offsets, power)
        result = round_logprobs(np.minimum(scaled - np.repeat(normaliser, sizes), 0))
        return np.maximum(result, np.float32(-65504))

    def for_prompt(self, workload: str, prompt_id: str) -> Calibration:
        """The calibration to judge a prompt with: this one, whatever the prompt (see `CrossCalibration`)."""
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "calibration": self.kind,
            "log_gains": self.log_gains.tolist(),
            "acceptance": self.acceptance.tolist(),
            "temperatures": self.temperatures.tolist(),
            "provenance": self.provenance,
        }
        write_document(path, document if self.path is None else document | {"path": self.path.to_json()})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """Read what ``save`` wrote.

        Raises
        ------
        DdsimError
            Not such a file, from a newer schema, or not monotone.
        """
        document = read_document(path, {KIND: SCHEMA_VERSION})
        where = str(path)

        def numbers(key: str) -> NDArray[np.float64]:
            values = array(need(document, key, where), f"{where}: {key}")
            if key == "log_gains":
                bad = [
                    v for v in values if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v)
                ]
                if bad:
                    raise DdsimError(f"{where}: {key}: {bad[0]!r} is no finite number")
                return np.array(values, np.float64)
            return np.array([number(v, f"{where}: {key}", positive=True) for v in values], np.float64)

        kind = need(document, "calibration", where)
        if kind not in KINDS:
            raise DdsimError(f"{where}: unknown calibration {kind!r}; {', '.join(KINDS)} are known")
        logs, acceptance, temperatures = (numbers(key) for key in ("log_gains", "acceptance", "temperatures"))
        if len(logs) != len(acceptance) or np.any(np.diff(logs) <= 0) or np.any(np.diff(acceptance) < 0):
            raise DdsimError(f"{where}: the isotonic map is not monotone")
        if len(acceptance) and (acceptance[-1] > 1 or logs[-1] > 0):
            raise DdsimError(f"{where}: the isotonic map goes above probability 1")
        fitted = PathCorrection.from_json(need(document, "path", where), f"{where}: path") if kind == "path" else None
        if fitted is None and len(logs if kind == "isotonic" else temperatures) == 0:
            raise DdsimError(f"{where}: a {kind} calibration without values")
        if len(temperatures) and not 1e-3 <= temperatures.min() <= temperatures.max() <= 1e3:
            raise DdsimError(f"{where}: temperatures: must be between 0.001 and 1,000, as any fitted one is")
        provenance = mapping(need(document, "provenance", where), f"{where}: provenance")
        return Calibration(kind, logs, acceptance, temperatures, provenance, fitted)


@dataclass(frozen=True, eq=False, repr=False)
class CrossCalibration(ShownCalibration):
    """Calibrations of which each prompt gets one that was fitted without it; made by `cross_calibrate`."""

    kind: str
    parts: tuple[Calibration, ...]
    fold: dict[tuple[str, str], int]
    """(workload, prompt_id) -> which of ``parts`` was fitted without this prompt."""
    provenance: dict[str, Any]

    def for_prompt(self, workload: str, prompt_id: str) -> Calibration:
        """The calibration that was fitted without a prompt.

        Raises
        ------
        DdsimError
            A prompt that the cross-calibrated trace doesn't have.
        """
        if (workload, prompt_id) not in self.fold:
            raise DdsimError(f"calibration: prompt {prompt_id!r} of {workload!r} has no part in this cross-calibration")
        return self.parts[self.fold[workload, prompt_id]]


def rows_of(proposal: Proposal, kind: str) -> Rows:
    """A proposal that a calibration of this kind can correct.

    Raises
    ------
    DdsimError
        It isn't rows of marginals.
    """
    if isinstance(proposal, Rows):
        return proposal
    raise DdsimError(
        f"calibration: {kind} corrects rows of marginals, and the recording holds {type(proposal).__name__.lower()}; isotonic "
        "works for every proposal"
    )


def calibrated_proposal(block: TraceBlock, calibration: Calibration | CrossCalibration, max_budget: int) -> Proposal:
    """The proposal of a block for trees of at most ``max_budget`` nodes, each sequence's by its own calibration.

    Raises
    ------
    DdsimError
        A calibration of rows, and the block holds no rows.
    """
    if calibration.kind == "isotonic":
        return block.proposal
    rows = rows_of(block.proposal, calibration.kind)
    bounds = block.starts.tolist()
    parts: list[Any] = []
    for s, names in enumerate(zip(block.workload, block.prompt_id, strict=True)):
        own, (first, last) = calibration.for_prompt(*names), bounds[s : s + 2]
        part = rows.part(first, last)
        if own.path is None:
            parts.append(own.apply_rows(part.logprobs, part.offsets))
        else:
            starts = np.array([0, last - first])
            parts.append(own.path.lattices(part, block.tokens[first:last], starts, max_budget))
    if calibration.kind == "temperature":
        return rows.with_logprobs(np.concatenate(parts))
    return Lattices.joined(block.horizon, parts)


def calibrated_gains(
    block: TraceBlock | Positions, gains: NDArray[np.float32], calibration: Calibration | CrossCalibration
) -> NDArray[np.float32]:
    """The gains of a block, [P, N], each sequence's by its own calibration."""
    if calibration.kind != "isotonic":
        return gains
    out = np.empty_like(gains)
    for s, names in enumerate(zip(block.workload, block.prompt_id, strict=True)):
        rows = slice(block.starts[s], block.starts[s + 1])
        out[rows] = calibration.for_prompt(*names).apply_gains(gains[rows])
    return out


def _uncensored(block: TraceBlock | Positions) -> NDArray[np.bool_]:
    """[P] whether all L next tokens are known."""
    ends = np.repeat(block.starts[1:], np.diff(block.starts))
    return np.arange(len(block)) + block.horizon < ends


def _scaled(
    logprobs: NDArray[np.float32], offsets: NDArray[np.int64], power: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities times their row's power, and the log of each row's normaliser (module equation)."""
    sizes = np.diff(offsets)
    full = np.flatnonzero(sizes > 0)
    first = offsets[:-1][full]
    exact = logprobs.astype(np.float64)
    scaled = exact * np.repeat(power, sizes)
    normaliser = np.zeros(len(sizes))
    if len(full):
        kept = np.add.reduceat(np.exp(exact), first)
        powered = np.add.reduceat(np.exp(scaled), first)
        last = exact[offsets[1:][full] - 1]
        missing = np.maximum(1 - kept, 0) * np.exp(last * (power[full] - 1))
        normaliser[full] = np.log(powered + missing)
    return scaled, normaliser
