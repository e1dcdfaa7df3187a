"""Reliability of a drafter's marginals, and two calibrations: an isotonic map of gains and a temperature per
depth.

Gains are a surrogate: the product of marginals is not the probability that the target accepts a path. Both
calibrations are fitted on some prompts and judged on others.

*Isotonic*: g -> f(g) with f non-decreasing, fitted by isotonic regression on node-level outcomes (a node of
the tree of ``max_budget`` nodes is accepted iff it lies on the true path). The order of nodes stays, so trees
and ranks do too.

*Temperature*: row d becomes p_k^(1/t_d) / Z. A trace keeps only the top of a row; the mass m that is missing
is taken to consist of candidates as likely as the last one kept (probability q), so Z = sum_k p_k^(1/t) + m
q^(1/t - 1). It follows that a decoder must prune its rows with `ddsim.tree.kept_pairs` first: given the same
rows, replay and decoder compute the same numbers. The temperature of depth d is the likeliest one over the rows
whose first d - 1 true tokens are in the tree of ``max_budget`` nodes: elsewhere no node of that depth can be accepted,
and there drafters are at their worst, so judging all rows would flatten what matters.

Positions within the horizon of a sequence's end are left out: nothing tells whether nodes beyond it would be
accepted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from . import limits
from .arguments import check_trace
from .errors import DdsimError
from .jsonfile import array, mapping, need, number, read_document, write_document
from .trace import Trace, TraceBlock, round_logprobs
from .tree import gains_and_ranks, true_ranks

KIND = "ddsim-calibration"
SCHEMA_VERSION = 1
TEMPERATURES = np.geomspace(0.5, 2.0, 57)
"""Tried for every depth; the best is refined by a parabola through its neighbours."""
_LOWEST = -24.0  # log-gain below which all nodes share a bin
_BINS_PER_NAT = 16
Progress = Callable[[int, int], None]
_PRIOR = 1.0  # nodes' worth of belief in the raw gain, which keeps every calibrated gain above 0


@dataclass(frozen=True)
class Reliability:
    """Predicted against realised acceptance; each row has its count and a 95 % Wilson interval.

    Intervals treat outcomes as independent; those of neighbouring positions are not, so read them as a lower
    bound on doubt.
    """

    by_depth: pd.DataFrame
    """depth, count, predicted and realised probability that the best candidate is the true token, low, high; rows
    whose true path so far is in the tree of ``max_budget`` nodes."""
    by_probability: pd.DataFrame
    """bin edges of path probability (above, upto), count of nodes, predicted, realised, low, high."""
    by_budget: pd.DataFrame
    """budget, count of positions, predicted and realised acceptance length (root included), ratio."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A fitted correction of marginals.

    ``kind`` is ``"isotonic"`` (``apply_gains``) or ``"temperature"`` (``apply_rows``); the other method
    returns its input.
    """

    kind: str
    log_gains: NDArray[np.float64]
    """[J] knots of the isotonic map, ascending natural logarithms."""
    acceptance: NDArray[np.float64]
    """[J] acceptance probability there, non-decreasing, above 0."""
    temperatures: NDArray[np.float64]
    """[L] a temperature per depth."""
    provenance: dict[str, Any]

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
        # Below the lowest knot the ratio to the gain stays, so that no node falls to 0.
        values = np.interp(logs, self.log_gains, self.acceptance)
        below = logs < self.log_gains[0]
        values = np.where(below, self.acceptance[0] * np.exp(np.minimum(logs - self.log_gains[0], 0)), values)
        tiny = np.finfo(np.float32).tiny
        fitted = np.where(exists, np.maximum(values, tiny), 0.0).astype(np.float32)
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
        write_document(
            path,
            {
                "schema_version": SCHEMA_VERSION,
                "kind": KIND,
                "calibration": self.kind,
                "log_gains": self.log_gains.tolist(),
                "acceptance": self.acceptance.tolist(),
                "temperatures": self.temperatures.tolist(),
                "provenance": self.provenance,
            },
        )

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
        if kind not in ("isotonic", "temperature"):
            raise DdsimError(f"{where}: unknown calibration {kind!r}; isotonic and temperature are known")
        logs, acceptance, temperatures = (numbers(key) for key in ("log_gains", "acceptance", "temperatures"))
        if len(logs) != len(acceptance) or np.any(np.diff(logs) <= 0) or np.any(np.diff(acceptance) < 0):
            raise DdsimError(f"{where}: the isotonic map is not monotone")
        if len(acceptance) and (acceptance[-1] > 1 or logs[-1] > 0):
            raise DdsimError(f"{where}: the isotonic map goes above probability 1")
        if len(logs if kind == "isotonic" else temperatures) == 0:
            raise DdsimError(f"{where}: a {kind} calibration without values")
        if len(temperatures) and not 1e-3 <= temperatures.min() <= temperatures.max() <= 1e3:
            raise DdsimError(f"{where}: temperatures: must be between 0.001 and 1,000, as any fitted one is")
        provenance = mapping(need(document, "provenance", where), f"{where}: provenance")
        return Calibration(kind, logs, acceptance, temperatures, provenance)


@dataclass(frozen=True, eq=False)
class CrossCalibration:
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


def fit_calibration(
    trace: Trace,
    kind: str = "isotonic",
    *,
    train_share: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Calibration, pd.DataFrame]:
    """Fit a calibration on some prompts and judge it on the others.

    Parameters
    ----------
    trace : Trace
    kind : {"isotonic", "temperature"}
    train_share : float
        Share of the prompts to fit on; all sequences of a prompt go to one side.
    seed : int
        Of the split.
    progress : callable, optional
        Called with (positions done, positions in all); held-out ones are read twice.

    Returns
    -------
    Calibration
    pandas.DataFrame
        On the held-out prompts, a row a budget: budget, count (positions), realised acceptance length,
        predicted_before, predicted_after.

    Raises
    ------
    DdsimError
        Unknown kind, fewer than two prompts, or no position with a full horizon of truth on one side.
    """
    check_trace("fit_calibration", trace)
    limits.check("seed", seed)
    fit = _fitter(kind)
    train, test = split_prompts(trace, train_share, seed)
    provenance = _origin(trace) | {"train": train.fingerprint, "train_share": train_share, "seed": seed}
    whole = len(train) + 2 * len(test)
    all_of = np.zeros(len(train.sequences), np.int64)
    calibration = fit(_statistics(train, kind, all_of, 1, _part(progress, 0, whole))[0], provenance)
    before = reliability(test, progress=_part(progress, len(train), whole)).by_budget
    after = reliability(test, calibration, progress=_part(progress, len(train) + len(test), whole)).by_budget
    report = before[["budget", "count", "realised"]].assign(
        predicted_before=before["predicted"], predicted_after=after["predicted"]
    )
    return calibration, report


def cross_calibrate(
    trace: Trace, kind: str = "isotonic", *, folds: int = 5, seed: int = 0, progress: Progress | None = None
) -> CrossCalibration:
    """Fit calibrations such that every prompt can be judged with one that was fitted on other prompts only.

    Parameters
    ----------
    trace : Trace
    kind : {"isotonic", "temperature"}
    folds : int
        Prompts are dealt into so many parts (fewer if there are fewer prompts), each workload evenly; all
        sequences of a prompt go to one.
    seed : int
        Of the deal.
    progress : callable, optional
        Called with (positions done, positions in all).

    Returns
    -------
    CrossCalibration
        For ``replay(..., calibration=)`` and ``positions_of(..., calibration=)``.

    Raises
    ------
    DdsimError
        Unknown kind, fewer than two prompts or folds, or no position with a full horizon of truth.
    """
    check_trace("cross_calibrate", trace)
    limits.check("seed", seed)
    fit = _fitter(kind)
    prompts = list(dict.fromkeys((info.workload, info.prompt_id) for info in trace.sequences))
    count = min(folds, len(prompts))
    if count < 2:
        raise DdsimError(
            f"calibration: needs at least 2 folds and 2 prompts, got {folds} folds and {len(prompts)} prompts"
        )
    rng = np.random.default_rng(seed)
    shuffled = [prompts[i] for i in rng.permutation(len(prompts))]
    fold = {prompt: i % count for i, prompt in enumerate(sorted(shuffled, key=lambda prompt: prompt[0]))}
    of_sequence = np.array([fold[info.workload, info.prompt_id] for info in trace.sequences], np.int64)
    statistics = _statistics(trace, kind, of_sequence, count, progress)
    provenance = _origin(trace) | {"folds": count, "seed": seed}
    parts = tuple(fit(np.delete(statistics, f, axis=0).sum(axis=0), provenance | {"left_out": f}) for f in range(count))
    return CrossCalibration(kind, parts, fold, provenance)


def calibrated_rows(block: TraceBlock, calibration: Calibration | CrossCalibration) -> NDArray[np.float32]:
    """The log-probabilities of a block, [M], each sequence's by its own calibration."""
    if calibration.kind != "temperature":
        return block.logprobs
    out = np.empty_like(block.logprobs)
    for s, names in enumerate(zip(block.workload, block.prompt_id, strict=True)):
        edges = block.offsets[block.starts[s] * block.horizon : block.starts[s + 1] * block.horizon + 1]
        rows = slice(edges[0], edges[-1])
        out[rows] = calibration.for_prompt(*names).apply_rows(block.logprobs[rows], edges - edges[0])
    return out


def calibrated_gains(
    block: TraceBlock, gains: NDArray[np.float32], calibration: Calibration | CrossCalibration
) -> NDArray[np.float32]:
    """The gains of a block, [P, N], each sequence's by its own calibration."""
    if calibration.kind != "isotonic":
        return gains
    out = np.empty_like(gains)
    for s, names in enumerate(zip(block.workload, block.prompt_id, strict=True)):
        rows = slice(block.starts[s], block.starts[s + 1])
        out[rows] = calibration.for_prompt(*names).apply_gains(gains[rows])
    return out


def _origin(trace: Trace) -> dict[str, Any]:
    return {
        "trace": trace.fingerprint,
        "workloads": list(trace.workloads),
        "recording": trace.meta["provenance"],
    }


def split_prompts(trace: Trace, train_share: float = 0.5, seed: int = 0) -> tuple[Trace, Trace]:
    """Two disjoint parts of a trace; sequences that share a workload and prompt stay together."""
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
    inside = [(info.workload, info.prompt_id) in chosen for info in trace.sequences]
    return trace.subset(np.flatnonzero(inside)), trace.subset(np.flatnonzero(~np.array(inside)))


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
    used = nodes > 0
    if not used.any():
        raise DdsimError("calibration: no position of the training prompts has a full horizon of truth")
    logs = log_sums[used] / nodes[used]
    rate = (accepted[used] + _PRIOR * np.exp(logs)) / (nodes[used] + _PRIOR)
    fitted = isotonic_regression(rate, weights=nodes[used] + _PRIOR).x
    return logs, np.clip(np.maximum.accumulate(fitted), np.finfo(np.float32).tiny, 1.0)


def reliability(
    trace: Trace, calibration: Calibration | CrossCalibration | None = None, *, progress: Progress | None = None
) -> Reliability:
    """Compare predicted with realised acceptance over a trace, optionally after a calibration.

    Parameters
    ----------
    trace : Trace
    calibration : Calibration or CrossCalibration, optional
    progress : callable, optional
        Called with (positions done, positions in all).

    Returns
    -------
    Reliability

    Raises
    ------
    DdsimError
        No position has a full horizon of truth.
    """
    check_trace("reliability", trace)
    horizon, most = trace.horizon, trace.max_budget
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 1, 17)])
    depth_sums = np.zeros((3, horizon))  # rows, predicted, realised
    node_sums = np.zeros((3, len(edges) - 1))
    predicted, realised, positions = np.zeros(most), np.zeros(most), 0
    for block in _blocks(trace, progress):
        use = _uncensored(block)
        if not use.any():
            continue
        truth = _truth(block)
        logprobs = block.logprobs if calibration is None else calibrated_rows(block, calibration)
        gains, ranks, _ = gains_and_ranks(logprobs, block.offsets, truth, horizon, most)
        sizes = np.diff(block.offsets).reshape(-1, horizon)
        has = (sizes > 0) & use[:, None]
        has[:, 1:] &= ranks[:, :-1] <= most
        best = np.zeros(sizes.shape)
        best[has] = np.exp(logprobs[block.offsets[:-1].reshape(-1, horizon)[has]].astype(np.float64))
        depth_sums += np.stack([has.sum(0), best.sum(0), (has & (truth == 0)).sum(0)])
        if calibration is not None:
            gains = calibrated_gains(block, gains, calibration)
        gains, ranks = gains[use], ranks[use]
        predicted += gains.sum(0, dtype=np.float64)
        hit = ranks[ranks <= most] - 1
        realised += np.bincount(hit, minlength=most)
        positions += int(use.sum())
        flat = gains[gains > 0]
        bins = np.clip(np.searchsorted(edges, flat, side="left") - 1, 0, len(edges) - 2)
        rows = np.broadcast_to(np.arange(len(ranks))[:, None], ranks.shape)[ranks <= most]
        hits = gains[rows, hit]
        hit_bins = np.clip(np.searchsorted(edges, hits, side="left") - 1, 0, len(edges) - 2)
        width = len(edges) - 1
        node_sums += np.stack(
            [
                np.bincount(bins, minlength=width),
                np.bincount(bins, flat, width),
                np.bincount(hit_bins, minlength=width),
            ]
        )
    if positions == 0:
        raise DdsimError("calibration: no position of these sequences has a full horizon of truth")
    budgets = np.array(sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= most} | {most}))
    forecast = 1 + np.cumsum(predicted)[budgets - 1] / positions
    outcome = 1 + np.cumsum(realised)[budgets - 1] / positions
    return Reliability(
        by_depth=_rates({"depth": np.arange(1, horizon + 1)}, depth_sums),
        by_probability=_rates({"above": edges[:-1], "upto": edges[1:]}, node_sums),
        by_budget=pd.DataFrame(
            {
                "budget": budgets,
                "count": positions,
                "predicted": forecast,
                "realised": outcome,
                "ratio": forecast / outcome,
            }
        ),
    )


def wilson(successes: ArrayLike, count: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's 95 % interval of a proportion; (0, 1) for no trials.

    Examples
    --------
    >>> [round(float(v), 3) for v in wilson(5, 10)]
    [0.237, 0.763]
    """
    z = 1.959963984540054
    n = np.asarray(count, np.float64)
    safe = np.maximum(n, 1)
    rate = np.asarray(successes, np.float64) / safe
    centre = (rate + z * z / (2 * safe)) / (1 + z * z / safe)
    half = z / (1 + z * z / safe) * np.sqrt(rate * (1 - rate) / safe + z * z / (4 * safe * safe))
    return np.where(n > 0, np.maximum(centre - half, 0), 0.0), np.where(n > 0, np.minimum(centre + half, 1), 1.0)


def _rates(labels: dict[str, NDArray[Any]], sums: NDArray[np.float64]) -> pd.DataFrame:
    count, predicted, realised = sums
    low, high = wilson(realised, count)
    safe = np.where(count > 0, count, np.nan)
    rates = {"predicted": predicted / safe, "realised": realised / safe, "low": low, "high": high}
    return pd.DataFrame(labels | {"count": count.astype(np.int64)} | rates)


def _uncensored(block: TraceBlock) -> NDArray[np.bool_]:
    """[P] whether all L next tokens are known."""
    ends = np.repeat(block.starts[1:], np.diff(block.starts))
    return np.arange(len(block)) + block.horizon < ends


def _truth(block: TraceBlock) -> NDArray[np.int32]:
    return true_ranks(block.token_ids, block.offsets, block.tokens, block.starts, block.horizon)


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
    raise DdsimError(f"unknown calibration {kind!r}; choose isotonic or temperature")


def _blocks(trace: Trace, progress: Progress | None) -> Iterator[TraceBlock]:
    """The blocks of a trace, each reported once it has been dealt with."""
    done = 0
    for block in trace.blocks():
        yield block
        done += len(block)
        if progress is not None:
            progress(done, len(trace))


def _part(progress: Progress | None, before: int, whole: int) -> Progress | None:
    """Progress of a part of a longer job."""
    return None if progress is None else lambda done, _: progress(before + done, whole)


def _statistics(
    trace: Trace, kind: str, fold: NDArray[np.int64], count: int, progress: Progress | None = None
) -> NDArray[np.float64]:
    """What a fit needs, summed over the sequences of each fold (``fold`` int64 [S]): [count, ...]."""
    return (_node_counts if kind == "isotonic" else _losses)(trace, fold, count, progress)


def _node_counts(
    trace: Trace, fold: NDArray[np.int64], count: int, progress: Progress | None = None
) -> NDArray[np.float64]:
    """[count, 3, J]: nodes, accepted nodes and sums of log-gains, binned by log-gain ascending."""
    bins = int(-_LOWEST * _BINS_PER_NAT)
    total = np.zeros((3, count * bins))
    for block in _blocks(trace, progress):
        use = _uncensored(block)
        gains, ranks, _ = gains_and_ranks(block.logprobs, block.offsets, _truth(block), block.horizon, trace.max_budget)
        gains, ranks, first = gains[use], ranks[use], fold[block.sequence[use]] * bins
        node_position = np.repeat(np.arange(len(gains)), (gains > 0).sum(axis=1))
        logs = np.log(gains[gains > 0].astype(np.float64))
        position, depth = np.nonzero(ranks <= trace.max_budget)
        hits = np.log(gains[position, ranks[position, depth] - 1].astype(np.float64))
        where, hit = (
            np.clip(((v - _LOWEST) * _BINS_PER_NAT).astype(np.int64), 0, bins - 1) + first[at]
            for v, at in ((logs, node_position), (hits, position))
        )
        size = count * bins
        total += np.stack(
            [np.bincount(where, None, size), np.bincount(hit, None, size), np.bincount(where, logs, size)]
        )
    return total.reshape(3, count, bins).swapaxes(0, 1)


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


def _losses(trace: Trace, fold: NDArray[np.int64], count: int, progress: Progress | None = None) -> NDArray[np.float64]:
    """[count, 1 + temperatures, L]: rows judged, then -log-likelihood of the true tokens at every temperature (those not kept
    count as the missing mass)."""
    total = np.zeros((count, 1 + len(TEMPERATURES), trace.horizon))
    for block in _blocks(trace, progress):
        use, truth, where = _uncensored(block), _truth(block), fold[block.sequence]
        sizes = np.diff(block.offsets).reshape(truth.shape)
        _, ranks, _ = gains_and_ranks(block.logprobs, block.offsets, truth, block.horizon, trace.max_budget)
        judged = use[:, None] & (sizes > 0)
        judged[:, 1:] &= ranks[:, :-1] <= trace.max_budget  # the true path before the row is in the tree
        full = np.flatnonzero(sizes.ravel() > 0)
        place = np.where(truth >= 0, block.offsets[:-1].reshape(truth.shape) + truth, 0)
        np.add.at(total[:, 0], where, judged)
        for i, temperature in enumerate(TEMPERATURES):
            power = np.full(truth.size, 1 / temperature)
            scaled, normaliser = _scaled(block.logprobs, block.offsets, power)
            z = normaliser.reshape(truth.shape)
            mass = np.zeros(truth.size)
            if len(full):
                mass[full] = np.add.reduceat(np.exp(scaled), block.offsets[:-1][full])
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
