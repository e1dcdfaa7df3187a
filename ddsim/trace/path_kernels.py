"""Numba kernels of path corrections: what relates a candidate to the token before it, and the fit's sums.

A position's rows are cut to their first K candidates. Row d (from 0) is followed by row d + 1; row 0 follows the root.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ddsim.jit import njit

FEATURES = 14
"""In the order of the module ``path``; columns 1 to `COUNTED` come from its table, the last is of unlisted tokens only."""


COUNTED = 5


HUNDREDTHS = 100.0
"""Log-ratios of pairs are kept in hundredths: whole numbers in the file, and the same numbers after it."""


NO_PAIR = np.int64(-(2**63))


_1, _MIX = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)


LEAST = 1e-4  # probability that a row at least leaves to unlisted tokens


class Candidates(NamedTuple):
    """The rows of one position."""

    sizes: Any  # int32 [L]
    ids: Any  # int32 [L, K]
    logs: Any  # float64 [L, K]: log-probabilities
    chances: Any  # float64 [L, K]: probabilities
    rest: Any  # float64 [L]: log of the probability of unlisted tokens
    below: Any  # int32 [L, K]: where the token stands in the row after, -1 if it doesn't
    above: Any  # int32 [L, K]: where it stands in the row before


class Text(NamedTuple):
    """Committed tokens, and for each where it stood before."""

    tokens: Any  # int32 [T]
    first: Any  # where the answer starts among them
    latest: Any  # int32 [V]: latest place of each token that another token follows, -1 for none
    earlier: Any  # int32 [T]: the place of the same token before this one, -1 for none


class Table(NamedTuple):
    """Log-ratios of pairs of tokens or classes. Class k counts as the number -1 - k; unknown tokens are of class 0."""

    classes: Any  # int32 [V]: class of each token
    pairs: (
        Any  # int64 [S, 2]: `key_of` of each pair, NO_PAIR for none, and its hundredths, the second in the lower half
    )
    shift: Any  # uint64: a key's hash is shifted by so much to its place there


@njit(cache=True, nogil=True)
def make_candidates(horizon, width):
    return Candidates(
        np.zeros(horizon, np.int32),
        np.full((horizon, width), -1, np.int32),
        np.zeros((horizon, width), np.float64),
        np.zeros((horizon, width), np.float64),
        np.zeros(horizon, np.float64),
        np.full((horizon, width), -1, np.int32),
        np.full((horizon, width), -1, np.int32),
    )


@njit(cache=True, nogil=True)
def place_of(token, row, size):
    """Where a token stands among the first ``size`` of a row, -1 if it doesn't."""
    for i in range(size):
        if row[i] == token:
            return i
    return -1


@njit(cache=True, nogil=True)
def load(token_ids, logprobs, offsets, first_row, kept, c):
    """Lay out a position whose rows start at ``first_row``, each cut to ``kept`` [L] and K candidates."""
    horizon, width = c.ids.shape
    for d in range(horizon):
        begin = offsets[first_row + d]
        size = min(width, kept[d])
        c.sizes[d] = size
        rest = 1.0
        for j in range(size):
            c.ids[d, j] = token_ids[begin + j]
            c.logs[d, j] = logprobs[begin + j]
            c.chances[d, j] = math.exp(c.logs[d, j])
            rest -= c.chances[d, j]
        c.rest[d] = math.log(max(rest, LEAST))
    for d in range(horizon):
        for j in range(c.sizes[d]):
            c.below[d, j] = place_of(c.ids[d, j], c.ids[d + 1], c.sizes[d + 1]) if d + 1 < horizon else -1
            c.above[d, j] = place_of(c.ids[d, j], c.ids[d - 1], c.sizes[d - 1]) if d > 0 else -1


@njit(cache=True, nogil=True)
def remember(text, place):
    """Note that the token at ``place`` is now followed by another."""
    token = text.tokens[place]
    text.earlier[place] = text.latest[token]
    text.latest[token] = place


@njit(cache=True, nogil=True)
def relate(c, d, i, token, text, place, x):
    """Fill x [K + 1, FEATURES] for row d behind ``token``, candidate i of row d - 1 (or the root); the last: of unlisted tokens.

    ``place``: where the root stands in the text. Columns 1 to `COUNTED` are left to the caller.
    """
    size = c.sizes[d]
    ids = c.ids[d]
    logs = c.logs[d]
    chances = c.chances
    tokens = text.tokens
    earlier = text.earlier
    off = 1.0 if d > 0 and i > 0 else 0.0
    for j in range(size + 1):
        x[j, 0] = 0.0
        for f in range(COUNTED + 1, FEATURES):
            x[j, f] = 0.0
    grand = np.int32(-1)  # the token before ``token``: of candidates, the best one
    if d >= 2:
        grand = c.ids[d - 2, 0]
    elif place - 1 + d >= text.first:
        grand = tokens[place - 1 + d]
    seen = 0
    seen_both = 0
    q = text.latest[token] if token < text.latest.shape[0] else -1
    first = text.first
    while q >= 0:
        both = q > first and tokens[q - 1] == grand
        seen += 1
        seen_both += both
        j = place_of(tokens[q + 1], ids, size)
        if j >= 0:
            x[j, 9] += 1.0
            x[j, 10] += both
        q = earlier[q]
    ahead = -1.0
    behind = -1.0
    if d > 0:
        if c.below[d - 1, i] >= 0:
            ahead = chances[d, c.below[d - 1, i]]
        if c.above[d - 1, i] >= 0:
            behind = chances[d - 2, c.above[d - 1, i]]
    before = chances[d - 1, i] if d > 0 else 0.0
    below = c.below[d]
    above = c.above[d]
    for j in range(size):
        chance = chances[d, j]
        x[j, 0] = off * logs[j]
        both = before * chance + 1e-6
        if ahead >= 0.0 and below[j] >= 0:
            x[j, 6] = math.log1p(ahead * chances[d + 1, below[j]] / both)
        if behind >= 0.0 and above[j] >= 0:
            x[j, 7] = math.log1p(behind * chances[d - 1, above[j]] / both)
        x[j, 8] = 1.0 if ids[j] == token else 0.0
        if seen > 0:
            x[j, 9] = math.log((x[j, 9] + chance + 1e-3) / ((seen + 1.0) * chance + 1e-3))
        if seen_both > 0:
            x[j, 10] = math.log((x[j, 10] + chance + 1e-3) / ((seen_both + 1.0) * chance + 1e-3))
    if size > 0:
        x[0, 11] = off
        x[0, 12] = -c.logs[d - 1, i] if d > 0 else 0.0
    x[size, 13] = off


@njit(cache=True, nogil=True)
def key_of(before, after):
    """A pair as one number."""
    return (np.int64(before) << 32) + (np.int64(after) & 0xFFFFFFFF)


@njit(cache=True, nogil=True)
def place_in(pairs, shift, key):
    """Where a pair stands among hashed ones, or would."""
    at = (np.uint64(key) * _MIX) >> shift
    while pairs[at, 0] != key and pairs[at, 0] != NO_PAIR:
        at = (at + _1) & np.uint64(pairs.shape[0] - 1)
    return at


@njit(cache=True, nogil=True)
def hashed(before, after, hundredths, pairs, shift):
    """Fill `Table.pairs` with M pairs."""
    pairs[:, 0] = NO_PAIR
    pairs[:, 1] = 0
    for i in range(before.shape[0]):
        key = key_of(before[i], after[i])
        at = place_in(pairs, shift, key)
        pairs[at, 0] = key
        pairs[at, 1] = key_of(hundredths[i, 0], hundredths[i, 1])


@njit(cache=True, nogil=True)
def look_up(token, kind, off, ids, kinds, pairs, shift, x):
    """Fill columns 1 to `COUNTED` of x: log-ratios of token and token, of token and class, and of class and class; 0 for none."""
    size = ids.shape[0]
    last = np.int64(-1)
    mixed = np.int64(0)
    alike = np.int64(0)
    for j in range(size):
        both = pairs[place_in(pairs, shift, key_of(token, ids[j])), 1]
        if kinds[j] != last:  # neighbours are often of one class
            last = kinds[j]
            mixed = pairs[place_in(pairs, shift, key_of(token, -1 - last)), 1]
            alike = pairs[place_in(pairs, shift, key_of(-1 - kind, -1 - last)), 1]
        x[j, 1] = (both >> 32) / HUNDREDTHS
        x[j, 2] = off * (np.int32(both & 0xFFFFFFFF) / HUNDREDTHS)
        x[j, 3] = (mixed >> 32) / HUNDREDTHS
        x[j, 4] = off * (np.int32(mixed & 0xFFFFFFFF) / HUNDREDTHS)
        x[j, 5] = off * (np.int32(alike & 0xFFFFFFFF) / HUNDREDTHS)
    x[size, 1 : COUNTED + 1] = 0.0


@njit(cache=True, nogil=True)
def correct(c, d, x, weights, power, rest, out):
    """Fill out [K] with the corrected log-probabilities of row d from its features; -inf past its end."""
    size = c.sizes[d]
    out[:] = -np.inf
    if size == 0:
        return
    logs = c.logs[d]
    unlisted = c.rest[d] + rest + weights[FEATURES - 1] * x[size, FEATURES - 1]
    largest = unlisted
    for j in range(size):
        score = power * logs[j]
        for f in range(FEATURES - 1):
            score += weights[f] * x[j, f]
        out[j] = score
        largest = max(largest, score)
    total = math.exp(unlisted - largest)
    for j in range(size):
        total += math.exp(out[j] - largest)
    total = largest + math.log(total)
    for j in range(size):
        out[j] = min(out[j] - total, 0.0)


@njit(cache=True, nogil=True)
def corrected(
    token_ids, logprobs, offsets, kept, base, tokens, vocab, table, weights, powers, rests, first, last, ids, roots, steps
):  # fmt: skip
    """Fill ids [P, L, K], roots [P, K] and steps [P, L - 1, K, K] for positions first..last-1 of one text.

    ``tokens``: the whole text; the rows are of its positions from ``base`` on. ``vocab``: above every token of it.
    """
    horizon, width = ids.shape[1:]
    c = make_candidates(horizon, width)
    text = Text(tokens, 0, np.full(vocab, -1, np.int32), np.empty(tokens.shape[0], np.int32))
    x = np.zeros((width + 1, FEATURES))
    out = np.empty(width)
    kinds = np.zeros((horizon, width), np.int64)
    known = table.classes.shape[0]
    classes = table.classes
    pairs = table.pairs
    shift = table.shift
    for q in range(base + first):
        remember(text, q)
    for p in range(first, last):
        if p > first:
            remember(text, base + p - 1)
        load(token_ids, logprobs, offsets, p * horizon, kept[p], c)
        for d in range(horizon):
            for j in range(c.sizes[d]):
                kinds[d, j] = classes[c.ids[d, j]] if c.ids[d, j] < known else 0
        ids[p] = c.ids
        steps[p] = -np.inf
        for d in range(horizon):
            for i in range(c.sizes[d - 1] if d > 0 else 1):
                token = c.ids[d - 1, i] if d > 0 else tokens[base + p]
                off = 1.0 if d > 0 and i > 0 else 0.0
                kind = kinds[d - 1, i] if d > 0 else (np.int64(classes[token]) if token < known else 0)
                look_up(token, kind, off, c.ids[d, : c.sizes[d]], kinds[d], pairs, shift, x)
                relate(c, d, i, token, text, base + p, x)
                correct(c, d, x, weights, powers[d], rests[d], out)
                if d > 0:
                    steps[p, d - 1, i] = out
                else:
                    roots[p] = out


@njit(cache=True, nogil=True)
def samples(token_ids, logprobs, offsets, kept, tokens, starts, vocab, width, least, first, rows, pairs, x, chosen):
    """Rows whose token before is the true one: where they are, [n, 3] sequence, depth and place of the true token (width for none),
    the candidates' pairs as token * vocab + candidate (-1: none), and features [n, K + 1, FEATURES + 2].

    The last two columns are a candidate's log-probability and 1 for unlisted tokens, whose own log-probability is ``rest``. Pass
    empty arrays to count only. ``chosen`` [P]: positions to take. Return n.
    """
    horizon = kept.shape[1]
    c = make_candidates(horizon, width)
    n = 0
    for s in range(starts.shape[0] - 1):
        text = Text(tokens, starts[s], np.full(vocab, -1, np.int32), np.empty(tokens.shape[0], np.int32))
        for p in range(starts[s], starts[s + 1] - 1):
            if p > starts[s]:
                remember(text, p - 1)
            if not chosen[p]:
                continue
            load(token_ids, logprobs, offsets, p * horizon, kept[p], c)
            reached = 0.0
            i = 0
            for d in range(horizon):
                if p + d + 1 >= starts[s + 1] or c.sizes[d] == 0:
                    break
                j = place_of(tokens[p + d + 1], c.ids[d], c.sizes[d])
                if rows.shape[0] > 0:
                    token = tokens[p + d]
                    rows[n, 0] = first + s
                    rows[n, 1] = d
                    rows[n, 2] = j if j >= 0 else width
                    relate(c, d, i, token, text, p, x[n])
                    last = c.sizes[d]
                    for k in range(last):
                        x[n, k, FEATURES] = c.logs[d, k]
                        pairs[n, k] = np.int64(token) * vocab + c.ids[d, k]
                    if last < width:
                        x[n, width] = x[n, last]
                        x[n, last] = 0.0
                    x[n, width, FEATURES + 1] = 1.0
                    x[n, width, FEATURES] = c.rest[d]
                n += 1
                if j < 0:
                    break
                reached += c.logs[d, j]
                if reached < least:
                    break
                i = j
    return n


@njit(cache=True, nogil=True)
def likelihood(x, pairs, rows, weight, theta, powers, loss, gradient, hessian):
    """Add minus the log-likelihood of the true tokens, its gradient [L, F + 2] and its Hessian [L, F + 2, F + 2] by depth.

    ``theta``: weights of the features; ``powers`` [L, 2]: by depth, the power of the marginal less 1, and the bias of unlisted tokens.
    """
    count, outcomes, features = x.shape
    width = outcomes - 1
    own = features - 2
    scores = np.empty(outcomes)
    mean = np.empty(features)
    z = np.empty((outcomes, features))
    for n in range(count):
        d = rows[n, 1]
        largest = -np.inf
        for j in range(outcomes):
            if j < width and pairs[n, j] < 0:
                scores[j] = -np.inf
                continue
            score = np.float64(x[n, j, own])
            for f in range(features):
                z[j, f] = x[n, j, f]
            if j == width:
                z[j, own] = 0.0
            for f in range(own):
                score += theta[f] * z[j, f]
            score += powers[d, 0] * z[j, own] + powers[d, 1] * z[j, own + 1]
            scores[j] = score
            largest = max(largest, score)
        total = 0.0
        for j in range(outcomes):
            if scores[j] > -np.inf:
                total += math.exp(scores[j] - largest)
        w = weight[n]
        loss[0] += w * (largest + math.log(total) - scores[rows[n, 2]])
        mean[:] = 0.0
        for j in range(outcomes):
            if scores[j] == -np.inf:
                continue
            chance = math.exp(scores[j] - largest) / total
            if chance < 1e-9:
                continue
            for f in range(features):
                if z[j, f] != 0.0:
                    mean[f] += chance * z[j, f]
                    for g in range(f + 1):
                        hessian[d, f, g] += w * chance * z[j, f] * z[j, g]
        for f in range(features):
            gradient[d, f] += w * (mean[f] - z[rows[n, 2], f])
            for g in range(f + 1):
                hessian[d, f, g] -= w * mean[f] * mean[g]
