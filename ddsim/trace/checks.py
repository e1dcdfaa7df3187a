"""Rows of marginals of one sequence: what they must be, and how they are rounded and ordered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers, plain, whole_numbers
from ddsim.errors import DdsimError
from ddsim.trace.folded import Folded, fold, round_conditionals, rounded
from ddsim.trace.schema import _Rows

ROW_SUM_TOLERANCE = 1e-4  # rows come from float32 softmaxes, whose sums are not exactly 1


MANY = 100_000  # candidates from which on a kernel looks whether any is bad at all, before NumPy finds out which


def round_logprobs(logprobs: ArrayLike) -> NDArray[np.float32]:
    """Round log-probabilities down to what float16 can hold.

    Recorder and decoder pass the drafter's marginals through this, so both build the same trees: sums of at
    most a few dozen such values are exact in float64 whatever their order. Rounding down keeps the sum of a
    row's probabilities at or below 1.

    Parameters
    ----------
    logprobs : array_like of float32, any shape
        Log-probabilities (natural logarithm), 0 at most.

    Returns
    -------
    float32 ndarray, same shape
        The largest float16 value that is not above each input; -inf below -65,504. NaN stays NaN.

    Examples
    --------
    >>> round_logprobs([-0.1, -1e-9]).tolist()
    [-0.10003662109375, -5.960464477539063e-08]
    """
    exact = np.asarray(logprobs, np.float32)
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
        half = np.where(half.astype(np.float32) > exact, np.nextafter(half, np.float16(-np.inf)), half)
    return half.astype(np.float32)


def _is_row(value: Any) -> bool:
    """Whether a value is more than one number: a list, or an array of any kind."""
    return bool(getattr(value, "ndim", isinstance(value, (list, tuple))))


def _listed(name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except Exception:
        raise DdsimError(f"{name}: must be a list") from None


def _arrays(
    where: str, tokens: Any, token_ids: Any, logprobs: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Arrays of one sequence, whatever they came as, if their shapes fit: [T], and [T, L, K] or [T - 1, L, K] twice."""
    x = whole_numbers(tokens, f"{where}: tokens")
    ids = whole_numbers(token_ids, f"{where}: token_ids")
    with np.errstate(over="ignore"):
        values = numbers(logprobs, f"{where}: logprobs").astype(np.float32)
    if x.ndim != 1 or len(x) == 0:
        raise DdsimError(f"{where}: tokens must be a row of at least one integer, got shape {x.shape}")
    if ids.shape != values.shape or values.ndim != 3 or len(values) not in (len(x), len(x) - 1):
        raise DdsimError(
            f"{where}: {len(x)} tokens, token_ids of shape {ids.shape}, logprobs of shape {values.shape}: "
            f"must be [{len(x)}, horizon, candidates]"
        )
    return x, ids, values


def _rescaled(values: NDArray[np.float32], error: float) -> NDArray[np.float32]:
    """Divide probabilities of rows that sum above 1 by their sum, where rounding to a coarse type explains it."""
    if not error or not np.all(values <= 0):
        return values
    sums = np.exp(values, dtype=np.float64).sum(-1, keepdims=True)
    over = (sums > 1 + ROW_SUM_TOLERANCE) & (sums < 1 + 16 * error)  # log-probabilities of interest are above -16
    return np.where(over, values - np.log(np.maximum(sums, 1)), values).astype(np.float32)


def _sparse(
    where: str,
    meta: Mapping[str, Any],
    x: NDArray[np.int64],
    ids: NDArray[np.int64],
    values: NDArray[np.float32],
    prune: bool = False,
) -> _Rows:
    """Check dense arrays of one sequence, from `_arrays`, and keep the candidates that exist (``prune``: and that
    trees can use)."""
    horizon, vocab, most = int(meta["horizon"]), int(meta["vocab_size"]), int(meta["max_budget"])
    if values.shape[1] != horizon:
        raise DdsimError(f"{where}: {values.shape[1]} depths, but the horizon is {horizon}")
    if np.any((x < 0) | (x >= vocab)):
        p = int(np.argmax((x < 0) | (x >= vocab)))
        raise DdsimError(f"{where}: token {x[p]} at position {p} lies outside the vocabulary of {vocab}")
    rounds = len(x) - 1
    width = values.shape[2]
    ids, values = ids[:rounds], np.ascontiguousarray(values[:rounds])
    _check_descending(where, values)
    exists = values > -np.inf
    counts = np.zeros((len(x), horizon), np.int32)
    if rounds and width:
        if prune:
            from ddsim.tree.rows import kept_pairs

            counts[:rounds] = kept_pairs(values, most)
            full = (counts[:rounds] == width) & (width < min(most, vocab))
            if full.any():
                p, d = (int(v) for v in np.argwhere(full)[0])
                raise DdsimError(
                    f"{where}: position {p}, depth {d + 1}: all {width} candidates matter "
                    f"up to budget {most}; "
                    f"give {min(most, vocab)} of them"
                )
            # The chain of best candidates goes on where no tree does.
            counts[:rounds] = np.maximum(counts[:rounds], exists[:, :, 0])
        else:
            counts[:rounds] = exists.sum(-1)
        kept = np.arange(width) < counts[:rounds, :, None]
    else:
        kept = exists
    rows = _Rows(x.astype(np.int32), counts, ids[kept].astype(np.int64), values[kept])
    bad = _first_bad_row(rows.counts, rows.token_ids, rows.logprobs, vocab, ties_ordered=False)
    if bad is not None:
        raise DdsimError(f"{where}: position {bad[0]}, depth {bad[1] + 1}: {bad[2]}")
    # The sum is over all that was given: pruning could hide a row that is no marginal.
    sums = np.exp(values, dtype=np.float64).sum(-1)
    if np.any(sums > 1 + ROW_SUM_TOLERANCE):
        p, d = (int(v) for v in np.argwhere(sums > 1 + ROW_SUM_TOLERANCE)[0])
        raise DdsimError(f"{where}: position {p}, depth {d + 1}: probabilities sum to {sums[p, d]:.6g}, above 1")
    depth = np.repeat(np.arange(rows.counts.size), rows.counts.ravel())
    order = np.lexsort((rows.token_ids, depth))
    twice = (np.diff(depth[order]) == 0) & (np.diff(rows.token_ids[order]) == 0)
    if twice.any():
        row = int(depth[order][int(np.argmax(twice))])
        token = int(rows.token_ids[order][int(np.argmax(twice))])
        raise DdsimError(f"{where}: position {row // horizon}, depth {row % horizon + 1}: token {token} twice")
    return _Rows(rows.tokens, rows.counts, rows.token_ids.astype(np.int32), rows.logprobs)


def folded_lattices(
    where: str, meta: Mapping[str, Any], tokens: Any, token_ids: Any, first: Any, transitions: Any
) -> Folded:
    """Check the lattices of one sequence; round them, and keep what trees can use."""
    from ddsim.tree.lattices import Lattices  # loads Numba

    x, ids = _committed(where, meta, tokens), whole_numbers(token_ids, f"{where}: token_ids")
    horizon, vocab, most = int(meta["horizon"]), int(meta["vocab_size"]), int(meta["max_budget"])
    starts, steps = numbers(first, f"{where}: first"), numbers(transitions, f"{where}: transitions")
    rounds = len(x) - 1
    wanted = f"[{len(x)}, {horizon}, K], [{len(x)}, K] and [{len(x)}, {horizon - 1}, K, K]"
    shapes = ids.shape, starts.shape, steps.shape
    width = ids.shape[2] if ids.ndim == 3 else 0
    if not any(
        shapes == ((n, horizon, width), (n, width), (n, horizon - 1, width, width)) for n in (rounds, rounds + 1)
    ):
        raise DdsimError(
            f"{where}: {len(x)} tokens, token_ids, first and transitions of shapes {', '.join(map(str, shapes))}: must be {wanted}"
        )
    ids, starts, steps = ids[:rounds], starts[:rounds], steps[:rounds]
    for name, rows in (("first", starts), ("transitions", steps)):
        with np.errstate(over="ignore", invalid="ignore"):
            bad = ~(rows <= 0).all(-1) | ~(np.exp(rows.astype(np.float64)).sum(-1) <= 1 + ROW_SUM_TOLERANCE)
        if bad.any():
            at = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
            raise DdsimError(f"{where}: {name}[{at}] are no log-probabilities: NaN, positive, or they sum above 1")
    lattices = Lattices.from_dense(ids, round_conditionals(starts), round_conditionals(steps), most)
    return _folded(where, x, lattices, vocab)


def folded_trees(where: str, meta: Mapping[str, Any], tokens: Any, trees: Any) -> Folded:
    """Check the explicit trees of one sequence, (parents, tokens, path log-probabilities) a position; round them."""
    from ddsim.tree.lattices import Lattices  # loads Numba

    x, listed = _committed(where, meta, tokens), _listed(f"{where}: trees", trees)
    if len(listed) not in (len(x) - 1, len(x)):
        raise DdsimError(f"{where}: {len(x)} tokens, but {len(listed)} trees")
    parts = [
        [numbers(part, f"{where}: tree {p}") for part in _tree(tree)] for p, tree in enumerate(listed[: len(x) - 1])
    ]
    starts = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts], dtype=np.int64)])
    flat = [np.concatenate([part[i] for part in parts]) if parts else np.zeros(0) for i in range(3)]
    try:
        lattices = Lattices.from_trees(int(meta["horizon"]), starts, *flat)
    except DdsimError as error:
        raise DdsimError(f"{where}: {error}") from None
    return _folded(where, x, rounded(lattices).pruned(int(meta["max_budget"])), int(meta["vocab_size"]))


def _tree(tree: Any) -> tuple[Any, Any, Any]:
    """Parents, tokens and path log-probabilities, without the root."""
    if hasattr(tree, "parents"):
        return tree.parents[1:], tree.tokens[1:], tree.logprobs[1:]
    parents, tokens, logprobs = tree
    return parents, tokens, logprobs


def _committed(where: str, meta: Mapping[str, Any], tokens: Any) -> NDArray[np.int64]:
    x, vocab = whole_numbers(tokens, f"{where}: tokens"), int(meta["vocab_size"])
    if x.ndim != 1 or len(x) == 0:
        raise DdsimError(f"{where}: tokens must be a row of at least one integer, got shape {x.shape}")
    if np.any((x < 0) | (x >= vocab)):
        p = int(np.argmax((x < 0) | (x >= vocab)))
        raise DdsimError(f"{where}: token {x[p]} at position {p} lies outside the vocabulary of {vocab}")
    return x


def _folded(where: str, x: NDArray[np.int64], lattices: Any, vocab: int) -> Folded:
    """The proposals of all positions of a sequence but its last, and none there."""
    fault = lattices.first_fault(vocab)
    if fault is not None:
        raise DdsimError(f"{where}: position {fault[0]}: {fault[1]}")
    return fold(x.astype(np.int32), lattices)


def _dense(rows: _Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Token ids and log-probabilities [T, L, K + 1], -inf beyond the candidates that exist."""
    here = np.arange(int(rows.counts.max(initial=0)) + 1) < rows.counts[..., None]
    token_ids, logprobs = np.zeros(here.shape, np.int32), np.full(here.shape, -np.inf, np.float32)
    token_ids[here], logprobs[here] = rows.token_ids, rows.logprobs
    return token_ids, logprobs


def _check_descending(where: str, values: NDArray[np.floating[Any]]) -> None:
    """Refuse dense rows that aren't descending log-probabilities with any -inf at the end."""
    if values.ndim != 3:
        return  # the shapes are refused later
    for what, bad in (
        ("not a number", np.isnan(values)),
        ("positive", values > 0),
        (
            "not in descending order",
            np.pad(values[..., 1:] > values[..., :-1], [(0, 0), (0, 0), (min(1, values.shape[2]), 0)]),
        ),
    ):
        if bad.any():
            p, d, k = (int(v) for v in np.argwhere(bad)[0])
            raise DdsimError(
                f"{where}: position {p}, depth {d + 1}: log-probability {values[p, d, k]:g} of candidate {k} is {what}"
            )


def _order_ties(values: NDArray[np.float32], ids: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Order equal values (made so by rounding) by token id, where they aren't yet."""
    wrong = (values[..., 1:] == values[..., :-1]) & (ids[..., 1:] < ids[..., :-1]) & (values[..., 1:] > -np.inf)
    for p, d in np.argwhere(wrong.any(-1)):
        order = np.lexsort((ids[p, d], -values[p, d]))
        values[p, d], ids[p, d] = values[p, d][order], ids[p, d][order]
    return values, ids


def _first_bad_row(
    counts: NDArray[np.int32], ids: NDArray[Any], values: NDArray[np.float32], vocab: int, ties_ordered: bool
) -> tuple[int, int, str] | None:
    """The first (position, depth index, reason) whose kept candidates can't be a marginal, if any."""
    if len(values) >= MANY:
        from ddsim.tree.checked import sound_rows  # loads Numba

        whole = plain(counts, np.int32), plain(ids, np.int64 if ids.dtype == np.int64 else np.int32)
        if sound_rows(*whole, plain(values, np.float32), vocab, ties_ordered, ROW_SUM_TOLERANCE):
            return None
    depths = counts.shape[1]
    sizes = counts.ravel().astype(np.int64)
    ends = np.cumsum(sizes)
    inner = np.ones(len(values), bool)  # pairs that have a predecessor in their row
    inner[(ends - sizes)[sizes > 0]] = False
    before, here = values[:-1], values[1:]
    unordered = np.zeros(len(values), bool)
    unordered[1:] = here > before
    if ties_ordered:
        unordered[1:] |= (here == before) & (ids[1:] <= ids[:-1])
    full = ends[sizes > 0] - sizes[sizes > 0]
    sums = np.add.reduceat(np.exp(values, dtype=np.float64), full) if len(full) else np.zeros(0)
    gap = np.zeros(counts.shape, bool)
    gap[:, 1:] = (counts[:, 1:] > 0) & (counts[:, :-1] == 0)
    candidates = [
        (~(values <= 0) | ~np.isfinite(values), "log-probability {value:g} is not finite and 0 or less"),
        (inner & unordered, "log-probabilities are not in descending order (ties: ascending token id)"),
        ((ids < 0) | (ids >= vocab), "token {token} lies outside the vocabulary of {vocab}"),
    ]
    found: list[tuple[int, str]] = []
    for bad, text in candidates:
        if bad.any():
            i = int(np.argmax(bad))
            row = int(np.searchsorted(ends, i, side="right"))
            found.append((row, text.format(value=float(values[i]), token=int(ids[i]), vocab=vocab)))
    if len(full) and sums.max() > 1 + ROW_SUM_TOLERANCE:
        i = int(np.argmax(sums > 1 + ROW_SUM_TOLERANCE))
        found.append((int(np.flatnonzero(sizes > 0)[i]), f"probabilities sum to {sums[i]:.6g}, above 1"))
    if gap.any():
        found.append((int(np.argmax(gap)), "candidates after a depth without any"))
    if not found:
        return None
    row, reason = min(found, key=lambda item: item[0])
    return row // depths, row % depths, reason
