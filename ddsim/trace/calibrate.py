"""Fits calibrations on some prompts and judges them on others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddsim import limits
from ddsim.arrays import plain
from ddsim.cluster import workers
from ddsim.errors import DdsimError
from ddsim.jit import njit
from ddsim.trace.calibration import (
    _PRIOR,
    KINDS,
    TEMPERATURES,
    Calibration,
    CrossCalibration,
    _scaled,
    _uncensored,
    rows_of,
)
from ddsim.trace.path import PathCorrection
from ddsim.trace.path_fit import Samples, fit_path, gathered
from ddsim.trace.reliability import lengths_by_budget
from ddsim.trace.rounds import Positions, drafted, rounds_of
from ddsim.trace.shared import SharedTrace
from ddsim.trace.trace import Trace, check_trace

if TYPE_CHECKING:
    from ddsim.trace.schema import Progress


_LOWEST = -24.0  # log-gain below which all nodes share a bin


_BINS_PER_NAT = 16


def fit_calibration(
    trace: Trace,
    kind: str = "isotonic",
    *,
    train_share: float = 0.5,
    seed: int = 0,
    positions: Positions | None = None,
    progress: Progress | None = None,
) -> tuple[Calibration, pd.DataFrame]:
    """Fit a calibration on some prompts and judge it on the others.

    Parameters
    ----------
    trace : Trace
    kind : {"isotonic", "temperature", "path"}
    train_share : float
        Share of the prompts to fit on; all sequences of a prompt go to one side.
    seed : int
        Of the split.
    positions : Positions, optional
        `ddsim.positions_of` the trace, where they are there already: an isotonic fit then reads no trace and builds no tree.
    progress : callable, optional
        Called with (positions done, positions in all); held-out ones are read twice.

    Returns
    -------
    Calibration
    pandas.DataFrame
        On the held-out prompts, a row a budget: budget, count (positions), realised acceptance length,
        predicted_before, predicted_after; for trees that are others than recorded also realised_after.

    Raises
    ------
    DdsimError
        Unknown kind, fewer than two prompts, or no position with a full horizon of truth on one side.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(4), (2, 20, 3)))[..., ::-1])
    >>> ids = np.tile(np.arange(4), (20, 3, 1))
    >>> trace = Trace.from_arrays(list(rng.integers(0, 4, (2, 20))), [ids] * 2, list(rows), max_budget=8)
    >>> calibration, held_out = fit_calibration(trace)
    >>> calibration.kind, held_out["budget"].tolist()
    ('isotonic', [1, 2, 4, 8])
    """
    check_trace("fit_calibration", trace)
    limits.check("seed", seed)
    _check_kind(kind)
    inside = _chosen_prompts(trace, train_share, seed)
    train, test = (trace.subset(np.flatnonzero(chosen)) for chosen in (inside, ~inside))
    known = positions if kind == "isotonic" else None
    to_fit, to_judge = (None if known is None else known.subset(chosen) for chosen in (inside, ~inside))
    provenance = _origin(trace) | {"train": train.fingerprint, "train_share": train_share, "seed": seed}
    whole = len(train) + 2 * len(test)
    (calibration,) = _fits(train, kind, None, [provenance], _part(progress, 0, whole), to_fit)
    before = lengths_by_budget(test, None, to_judge, _part(progress, len(train), whole))
    after = lengths_by_budget(test, calibration, to_judge, _part(progress, len(train) + len(test), whole))
    report = before[["budget", "count", "realised"]].assign(
        predicted_before=before["predicted"], predicted_after=after["predicted"]
    )
    if kind == "path":
        report["realised_after"] = after["realised"]
    return calibration, report


def fit_on_all(trace: Trace, kind: str = "isotonic", *, progress: Progress | None = None) -> Calibration:
    """Fit a calibration on every prompt of a trace: the one to use on others, where `cross_calibrate` has judged its kind.

    Raises
    ------
    DdsimError
        Unknown kind, or no position with a full horizon of truth.
    """
    check_trace("fit_on_all", trace)
    _check_kind(kind)
    provenance = _origin(trace) | {"train": trace.fingerprint, "train_share": 1.0}
    (calibration,) = _fits(trace, kind, None, [provenance], progress)
    return calibration


def cross_calibrate(
    trace: Trace,
    kind: str = "isotonic",
    *,
    folds: int = 5,
    seed: int = 0,
    by: str = "prompt",
    cluster: str | None = None,
    progress: Progress | None = None,
) -> CrossCalibration:
    """Fit calibrations such that every prompt can be judged with one that was fitted on other prompts only.

    Parameters
    ----------
    trace : Trace
    kind : {"isotonic", "temperature", "path"}
    folds : int
        Prompts are dealt into so many parts (fewer if there are fewer prompts), each workload evenly; all
        sequences of a prompt go to one.
    seed : int
        Of the deal.
    by : {"prompt", "workload"}
        "workload": each workload is a part of its own, so every prompt is judged with a fit on other workloads.
    cluster : str, optional
        Where path corrections are fitted, a task a part: as `ddsim.cluster.workers` takes it. The other kinds are one pass over the trace,
        here; their fits take no time.
    progress : callable, optional
        Called with (positions done, positions in all); of a cluster with (parts done, parts in all).

    Returns
    -------
    CrossCalibration
        For ``replay(..., calibration=)`` and ``positions_of(..., calibration=)``.

    Raises
    ------
    DdsimError
        Unknown kind, fewer than two prompts, folds or workloads, or no position with a full horizon of truth.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = np.log(np.sort(rng.dirichlet(np.ones(4), (2, 20, 3)))[..., ::-1])
    >>> ids = np.tile(np.arange(4), (20, 3, 1))
    >>> trace = Trace.from_arrays(list(rng.integers(0, 4, (2, 20))), [ids] * 2, list(rows), max_budget=8)
    >>> calibration = cross_calibrate(trace)
    >>> len(calibration.parts), sorted(calibration.fold.values())
    (2, [0, 1])
    """
    check_trace("cross_calibrate", trace)
    limits.check("seed", seed)
    _check_kind(kind)
    prompts = list(dict.fromkeys((info.workload, info.prompt_id) for info in trace.sequences))
    if by == "workload":
        fold = {prompt: trace.workloads.index(prompt[0]) for prompt in prompts}
        count = len(trace.workloads)
        if count < 2:
            raise DdsimError(f"calibration: by workload needs at least 2 workloads, got {count}")
    elif by == "prompt":
        count = min(folds, len(prompts))
        if count < 2:
            raise DdsimError(
                f"calibration: needs at least 2 folds and 2 prompts, got {folds} folds and {len(prompts)} prompts"
            )
        rng = np.random.default_rng(seed)
        shuffled = [prompts[i] for i in rng.permutation(len(prompts))]
        fold = {prompt: i % count for i, prompt in enumerate(sorted(shuffled, key=lambda prompt: prompt[0]))}
    else:
        raise DdsimError(f"calibration: by {by!r} is not known; choose prompt or workload")
    of_sequence = np.array([fold[info.workload, info.prompt_id] for info in trace.sequences], np.int64)
    provenance = _origin(trace) | {"folds": count, "seed": seed}
    if by == "workload":
        provenance["by"] = by
    provenances = [provenance | {"left_out": f} for f in range(count)]
    parts = tuple(_fits(trace, kind, of_sequence, provenances, progress, cluster=cluster))
    return CrossCalibration(kind, parts, fold, provenance)


@dataclass
class _PathFits:
    """Path corrections, each without the prompts of a fold; a task is the fold."""

    trace: SharedTrace
    group: NDArray[np.int64]
    """[S] the prompt that each sequence is of."""
    away: NDArray[np.int64]
    """The fold of each prompt."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "data"}

    @functools.cached_property
    def data(self) -> Samples:
        return gathered(self.trace.open(), self.group)

    def __call__(self, fold: int) -> PathCorrection:
        return fit_path(self.data, self.away[self.data.rows[:, 0]] != fold)


def _fits(
    trace: Trace,
    kind: str,
    fold: NDArray[np.int64] | None,
    provenances: list[dict[str, Any]],
    progress: Progress | None = None,
    positions: Positions | None = None,
    cluster: str | None = None,
) -> list[Calibration]:
    """A calibration without each fold (``fold`` [S]), or, with None, one of all sequences; each with its provenance."""
    none, count = np.zeros(0), len(provenances)
    if kind == "path":
        prompts: dict[tuple[str, str], int] = {}
        names = [(info.workload, info.prompt_id) for info in trace.sequences]
        of = np.array([prompts.setdefault(name, len(prompts)) for name in names], np.int64)
        away = np.full(len(prompts), -1)
        if fold is not None:
            away[of] = fold
        job = _PathFits(SharedTrace(trace), of, away)
        if cluster is None:  # workers gather for themselves
            job.data, progress = gathered(trace, of, progress), None
        with workers(cluster) as spread:
            fits = spread(job, range(count), progress)
        return [Calibration(kind, none, none, none, p, fit) for p, fit in zip(provenances, fits, strict=True)]
    fit = _fitter(kind)
    if fold is None:
        statistics = _statistics(trace, kind, np.zeros(len(trace.sequences), np.int64), 1, progress, positions)
        return [fit(statistics[0], provenances[0])]
    statistics = _statistics(trace, kind, fold, count, progress, positions)
    return [fit(np.delete(statistics, f, axis=0).sum(axis=0), p) for f, p in enumerate(provenances)]


def _origin(trace: Trace) -> dict[str, Any]:
    return {
        "trace": trace.fingerprint,
        "workloads": list(trace.workloads),
        "recording": trace.meta["provenance"],
    }


def split_prompts(trace: Trace, train_share: float = 0.5, seed: int = 0) -> tuple[Trace, Trace]:
    """Two disjoint parts of a trace; sequences that share a workload and prompt stay together."""
    inside = _chosen_prompts(trace, train_share, seed)
    return trace.subset(np.flatnonzero(inside)), trace.subset(np.flatnonzero(~inside))


def _chosen_prompts(trace: Trace, train_share: float, seed: int) -> NDArray[np.bool_]:
    """[S] which sequences are of the prompts to fit on."""
    prompts = sorted({(info.workload, info.prompt_id) for info in trace.sequences})
    if len(prompts) < 2:
        raise DdsimError(
            f"calibration: needs at least 2 prompts to fit on one and judge on the other, got {len(prompts)}"
        )
    if not 0 < train_share < 1:
        raise DdsimError(f"train_share {train_share}: must lie between 0 and 1")
    order = np.random.default_rng(seed).permutation(len(prompts))
    count = min(max(round(train_share * len(prompts)), 1), len(prompts) - 1)
    chosen = {prompts[i] for i in order[:count]}
    return np.array([(info.workload, info.prompt_id) in chosen for info in trace.sequences])


def fit_isotonic(
    nodes: NDArray[np.float64], accepted: NDArray[np.float64], log_sums: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots of a non-decreasing map from log-gain to acceptance, from binned outcomes.

    Parameters
    ----------
    nodes, accepted, log_sums : float64 [J]
        Per bin of log-gain, ascending: nodes, accepted ones, and the sum of their log-gains.

    Returns
    -------
    log_gains, acceptance : float64 [<= J]
    """
    from scipy.optimize import isotonic_regression  # here: SciPy's optimisers cost a third of a second to import

    used = nodes > 0
    if not used.any():
        raise DdsimError("calibration: no position of the training prompts has a full horizon of truth")
    logs = log_sums[used] / nodes[used]
    rate = (accepted[used] + _PRIOR * np.exp(logs)) / (nodes[used] + _PRIOR)
    fitted = isotonic_regression(rate, weights=nodes[used] + _PRIOR).x
    return logs, np.clip(np.maximum.accumulate(fitted), np.finfo(np.float32).tiny, 1.0)


def _fitter(kind: str) -> Callable[[NDArray[np.float64], dict[str, Any]], Calibration]:
    """From sufficient statistics and provenance to a calibration of this kind."""
    none = np.zeros(0)
    if kind == "isotonic":

        def isotonic(counts: NDArray[np.float64], provenance: dict[str, Any]) -> Calibration:
            logs, acceptance = fit_isotonic(*counts)
            return Calibration(kind, logs, acceptance, none, provenance)

        return isotonic
    if kind == "temperature":
        return lambda sums, provenance: Calibration(kind, none, none, _best_temperatures(sums), provenance)
    raise AssertionError(kind)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise DdsimError(f"unknown calibration {kind!r}; choose {', '.join(KINDS)}")


def _part(progress: Progress | None, before: int, whole: int) -> Progress | None:
    """Progress of a part of a longer job."""
    return None if progress is None else lambda done, _: progress(before + done, whole)


def _statistics(
    trace: Trace,
    kind: str,
    fold: NDArray[np.int64],
    count: int,
    progress: Progress | None = None,
    positions: Positions | None = None,
) -> NDArray[np.float64]:
    """What a fit needs, summed over the sequences of each fold (``fold`` int64 [S]): [count, ...]."""
    if kind == "isotonic":
        return _node_counts(rounds_of(trace, positions, progress), fold, count)
    return _losses(trace, fold, count, progress)


def _node_counts(blocks: Iterator[tuple[int, Positions]], fold: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[count, 3, J]: nodes, accepted nodes and sums of log-gains, binned by log-gain ascending."""
    total = np.zeros((count, 3, int(-_LOWEST * _BINS_PER_NAT)))
    for first, block in blocks:
        gains, ranks = plain(np.asarray(block.gains), np.float32), plain(np.asarray(block.ranks), np.int32)
        logs = np.full(gains.shape, _LOWEST)
        np.log(gains, where=gains > 0, out=logs, dtype=np.float64)
        of = np.repeat(fold[first : first + block.sequences], np.diff(block.starts))
        part = np.zeros(total.shape)
        _bin_nodes(gains, logs, ranks, _uncensored(block), of, part)
        total += part
    return total


@njit(cache=True, nogil=True)
def _bin_nodes(gains, logs, ranks, use, of, total):  # type: ignore[no-untyped-def]
    """Count the nodes of the positions in use into the bins of their folds, ``of`` [P]."""
    last = total.shape[2] - 1
    for p in range(gains.shape[0]):
        if not use[p]:
            continue
        nodes, accepted, sums = total[of[p]]
        for i in range(gains.shape[1]):
            if gains[p, i] > 0:
                at = min(max(int((logs[p, i] - _LOWEST) * _BINS_PER_NAT), 0), last)
                nodes[at] += 1
                sums[at] += logs[p, i]
        for d in range(ranks.shape[1]):
            if ranks[p, d] <= gains.shape[1]:
                at = min(max(int((logs[p, ranks[p, d] - 1] - _LOWEST) * _BINS_PER_NAT), 0), last)
                accepted[at] += 1


def _losses(trace: Trace, fold: NDArray[np.int64], count: int, progress: Progress | None = None) -> NDArray[np.float64]:
    """[count, 1 + temperatures, L]: rows judged, then -log-likelihood of the true tokens at every temperature (those not kept
    count as the missing mass)."""
    total = np.zeros((count, 1 + len(TEMPERATURES), trace.horizon))
    for proposal, truth, block, first in drafted(trace, progress=progress):
        rows = rows_of(proposal, "temperature")
        use, sizes, ranks = _uncensored(block), rows.counts, np.asarray(block.ranks)
        where = np.repeat(fold[first : first + block.sequences], np.diff(block.starts))
        judged = use[:, None] & (sizes > 0)
        judged[:, 1:] &= ranks[:, :-1] <= trace.max_budget  # the true path before the row is in the tree
        full = np.flatnonzero(sizes.ravel() > 0)
        place = np.where(truth >= 0, rows.offsets[:-1].reshape(truth.shape) + truth, 0)
        np.add.at(total[:, 0], where, judged)
        for i, temperature in enumerate(TEMPERATURES):
            power = np.full(truth.size, 1 / temperature)
            scaled, normaliser = _scaled(rows.logprobs, rows.offsets, power)
            z = normaliser.reshape(truth.shape)
            mass = np.zeros(truth.size)
            if len(full):
                mass[full] = np.add.reduceat(np.exp(scaled), rows.offsets[:-1][full])
            rest = np.maximum(1 - mass.reshape(truth.shape) / np.exp(z), 1e-9)
            found = (scaled[place] if len(scaled) else np.zeros(place.shape)) - z
            loss = -np.where(judged, np.where(truth >= 0, found, np.log(rest)), 0)
            np.add.at(total[:, 1 + i], where, loss)
    return total


def _best_temperatures(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L] the temperature of each depth under which the true tokens are likeliest, 1 where none was judged."""
    seen, losses = sums[0], sums[1:]
    if not seen.any():
        raise DdsimError("calibration: no position of the training prompts has a full horizon of truth")
    logs, step = np.log(TEMPERATURES), np.log(TEMPERATURES[1] / TEMPERATURES[0])
    best = losses.argmin(0)
    result = np.exp(logs[best])
    for d in range(len(seen)):
        if seen[d] == 0:
            result[d] = 1.0
        elif 0 < best[d] < len(logs) - 1:
            a, b, c = losses[best[d] - 1 : best[d] + 2, d]
            if a + c > 2 * b:
                result[d] = np.exp(logs[best[d]] + step * (a - c) / (2 * (a - 2 * b + c)))
    return result
