"""Numba kernels for draft trees of lattices, where each candidate names the row of candidates that follows it.

A position is rows numbered from 0, the row behind the root; a candidate's next row has a larger number than its own. Two layouts
hold P positions, told apart by ``width``:

- *dense*, width K > 0: ``logprobs`` [P, 1 + (L - 1) * K, K] flat, each row in any order, -inf where a candidate is absent. Row 0 is
  depth 1, row 1 + d * K + i follows candidate i of depth d + 1. ``offsets`` and ``nexts`` are empty.
- *sparse*, width 0: row r is ``logprobs[offsets[r] : offsets[r + 1]]``, descending, and ``nexts`` holds the number of each
  candidate's next row within the position, -1 for none.

Nodes are found as ``kernels`` finds them for rows of marginals: aim by a histogram, list, order; its heap is the resort here too.
What differs is that rows are loaded, and sorted, only where the best path to them is in reach, and that a node's children are those
of its candidate's next row: the code of a node is ``parent * 2^32 + place of its candidate among the loaded ones``.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ddsim.jit import njit
from ddsim.tree.kernels import (
    AIMS,
    GROUP,
    Scratch,
    order_nodes,
    precedes,
    threshold_for,
)

REACH = 1.6  # as in ``kernels``: enough at 24 positions of 25; rows cost more here, and going further less


BINS = 16  # of the histogram that aims the threshold


BLOCK = 8  # bins of the histogram that are added at once


PLACE = 0xFFFFFFFF  # the bits of a code that say which candidate


_0, _1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(i) for i in range(9))


_32, _BINS, _PLACE = (np.uint64(i) for i in (32, BINS, PLACE))


class Loaded(NamedTuple):
    """What is loaded of a position, beside ``Scratch``: its rows, and GROUP times -inf after each, are ``rows`` there.

    ``starts`` there says where the row that follows each loaded candidate starts: at 0, where GROUP times -inf stand, for none. Place
    0 also stands for the root.
    """

    best: Any  # float64 [rows + 1]: path log-probability of the best way to each row; the last: of ways that end
    begins: Any  # int64 [rows + 1]: where each row starts among the loaded, 0 where it isn't
    origins: Any  # int64 [room]: where each loaded candidate stands in the position's log-probabilities


@njit(cache=True, nogil=True)
def make_scratch(horizon, most, rows, candidates):
    """Working memory for positions of at most so many rows and candidates."""
    nodes = 2 * most + 64
    room = candidates + GROUP * (rows + 2)
    return (
        Scratch(
            np.empty(room, np.float64),
            np.empty(room, np.int64),
            np.empty((rows + 1, BINS + 2 + BLOCK), np.float32),
            np.empty(nodes + GROUP, np.float64),
            np.empty(nodes + GROUP, np.int64),
            np.empty(horizon + 2, np.int64),
            np.empty(nodes, np.float64),
            np.empty(nodes, np.uint32),
            np.empty(nodes, np.uint32),
            np.empty(2 * nodes + 1, np.uint32),
        ),
        Loaded(np.empty(rows + 1, np.float64), np.empty(rows + 1, np.int64), np.empty(room, np.int64)),
    )


@njit(cache=True, nogil=True)
def largest(positions, offsets, first, last):
    """The most rows and the most candidates of a sparse position among first..last-1."""
    rows = 1
    candidates = 1
    for p in range(first, last):
        rows = max(rows, positions[p + 1] - positions[p])
        candidates = max(candidates, offsets[positions[p + 1]] - offsets[positions[p]])
    return rows, candidates


@njit(cache=True, nogil=True)
def next_row(nexts, width, rows, row, at):
    """Number of the row that follows the candidate at ``at`` of a row; ``rows`` for none."""
    if width == 0:
        return np.int64(nexts[at]) if nexts[at] >= 0 else rows
    below = 1 + (row + width - 1) // width * width
    return below + at % width if below < rows else rows


@njit(cache=True, nogil=True)
def load_rows(logprobs, offsets, nexts, width, first_row, rows, reach, s, m):
    """Copy the candidates that a node above -reach can use, each row sorted, GROUP sentinels -inf after it.

    ``s.starts`` then holds the number of each candidate's next row, as `link_rows` takes it.
    """
    values = s.rows
    follows = s.starts
    best = m.best
    begins = m.begins
    origins = m.origins
    best[: rows + 1] = -np.inf
    best[0] = 0.0
    values[:GROUP] = -np.inf
    follows[:GROUP] = rows
    follows[0] = 0
    at = np.uint64(GROUP)
    for row in range(rows):
        base = best[row]
        begins[row] = 0
        if not base > -reach:
            continue
        if width > 0:
            first = (first_row + row) * width
            last = first + width
        else:
            first = offsets[first_row + row]
            last = offsets[first_row + row + 1]
        start = at
        for i in range(first, last):
            value = np.float64(logprobs[i])
            values[at] = value
            origins[at] = i
            at += np.uint64(base + value > -reach)
        if at == start:
            continue
        for i in range(start + _1, at):
            value = values[i]
            origin = origins[i]
            j = i
            while j > start and value > values[j - _1]:
                values[j] = values[j - _1]
                origins[j] = origins[j - _1]
                j -= _1
            values[j] = value
            origins[j] = origin
        # Where the row after the first candidate stands, were all candidates of a depth in order; ``rows`` behind the last depth.
        below = next_row(nexts, width, rows, row, first) if width > 0 else 0
        for i in range(start, at):
            if width == 0:
                after = np.uint64(next_row(nexts, width, rows, row, origins[i]))
            else:
                after = np.uint64(below + origins[i] - first if below < rows else rows)
            follows[i] = after
            best[after] = max(best[after], base + values[i])
        begins[row] = start
        for _ in range(GROUP):
            values[at] = -np.inf
            follows[at] = rows
            at += _1
    begins[rows] = 0
    return np.int64(at)


@njit(cache=True, nogil=True)
def link_rows(s, m, loaded):
    """Turn the number of each loaded candidate's next row into the place where this row starts."""
    for i in range(loaded):
        s.starts[i] = m.begins[s.starts[i]]


@njit(cache=True, nogil=True)
def add_shifted(source, target, shift, count):
    """Add source[b] to target[b + shift] for b below ``count``, and up to BLOCK - 1 beyond.

    Most counts are below BLOCK: without a branch on each, and with all read before any is written, this is one vector operation.
    """
    b = _0
    while b < count:
        at = b + shift
        x_0 = target[at] + source[b]
        x_1 = target[at + _1] + source[b + _1]
        x_2 = target[at + _2] + source[b + _2]
        x_3 = target[at + _3] + source[b + _3]
        x_4 = target[at + _4] + source[b + _4]
        x_5 = target[at + _5] + source[b + _5]
        x_6 = target[at + _6] + source[b + _6]
        x_7 = target[at + _7] + source[b + _7]
        target[at] = x_0
        target[at + _1] = x_1
        target[at + _2] = x_2
        target[at + _3] = x_3
        target[at + _4] = x_4
        target[at + _5] = x_5
        target[at + _6] = x_6
        target[at + _7] = x_7
        b += _8


@njit(cache=True, nogil=True)
def histogram_nodes(s, m, rows, reach):
    """About how many nodes have path log-probability near -b * reach / BINS: a view into ``s.counts``.

    The spread of a row counts the ways to it by how far they are below the best of them.
    """
    values = s.rows
    follows = s.starts
    best = m.best
    counts = s.counts[rows]
    inverse = BINS / reach
    for row in range(rows + 1):
        if row == rows or best[row] > -reach:
            s.counts[row, :] = 0.0
    s.counts[0, 0] = 1.0
    for row in range(rows):
        base = best[row]
        if not base > -reach:
            continue
        spread = s.counts[row]
        if row > 0:
            shift = np.uint64(np.int32(0.5 - base * inverse))
            add_shifted(spread, counts, shift, _BINS - shift)
        at = np.uint64(m.begins[row])
        while values[at] > -np.inf:
            after = np.uint64(follows[at])
            value = base + values[at]
            shift = np.uint64(np.int32(0.5 - value * inverse))
            in_reach = _BINS - shift
            if after != rows:
                shift = np.uint64(np.int32(0.5 + (best[after] - value) * inverse))
            add_shifted(spread, s.counts[after], shift, in_reach)
            at += _1
    return counts


@njit(cache=True, nogil=True)
def list_nodes(s, horizon, threshold):
    """List the root and all nodes with path log-probability > threshold, level by level, each in lexicographic order.

    Return how many, or 0 if they are more than there is room for.
    """
    rows = s.rows
    starts = s.starts
    values = s.values
    codes = s.codes
    room = np.uint64(values.shape[0] - GROUP)
    levels = s.levels
    values[0] = 0.0
    codes[0] = 0
    levels[0] = 0
    levels[1] = 1
    first = np.uint64(0)
    n = _1
    for d in range(horizon):
        last = n
        for parent in range(first, last):
            base = values[parent]
            at = np.uint64(starts[np.uint64(codes[parent]) & _PLACE])
            found = _4
            while found == _4:
                if n > room:
                    return 0
                value_0 = base + rows[at]
                value_1 = base + rows[at + _1]
                value_2 = base + rows[at + _2]
                value_3 = base + rows[at + _3]
                values[n] = value_0
                values[n + _1] = value_1
                values[n + _2] = value_2
                values[n + _3] = value_3
                code = np.int64((parent << _32) + at)
                codes[n] = code
                codes[n + _1] = code + 1
                codes[n + _2] = code + 2
                codes[n + _3] = code + 3
                found = np.uint64(value_0 > threshold) + np.uint64(value_1 > threshold)
                found += np.uint64(value_2 > threshold) + np.uint64(value_3 > threshold)
                n += found
                at += _4
        first = last
        levels[d + 2] = n
    return np.int64(n) if n <= room else 0


@njit(cache=True, nogil=True)
def heap_nodes(s, most):
    """List and order the ``most`` first nodes with a binary heap: pop the best, push its first child and its next sibling.

    Return how many were listed (the root and those left in the heap too) and how many are ordered.
    """
    rows = s.rows
    values = s.values
    codes = s.codes
    heap = s.bucket_ends
    values[0] = 0.0
    codes[0] = 0
    listed = 1
    size = 0
    n = 0
    node = 0
    while True:
        # The root, then the nodes best first: push the first child, and the next sibling.
        for step in range(2 if node > 0 else 1):
            if step == 0:
                parent = node
                at = s.starts[codes[node] & PLACE]
            else:
                parent = codes[node] >> 32
                at = (codes[node] & PLACE) + 1
            if rows[at] == -np.inf:
                continue
            values[listed] = values[parent] + rows[at]
            codes[listed] = (parent << 32) + at
            hole = size
            while hole > 0 and precedes(values, codes, listed, heap[(hole - 1) // 2]):
                heap[hole] = heap[(hole - 1) // 2]
                hole = (hole - 1) // 2
            heap[hole] = listed
            listed += 1
            size += 1
        if n == most or size == 0:
            return listed, n

        node = np.int64(heap[0])
        s.order[n] = node
        s.sorted_values[n] = values[node]
        n += 1
        size -= 1
        moved = heap[size]
        hole = 0
        while 2 * hole + 1 < size:
            child = 2 * hole + 1
            if child + 1 < size and precedes(values, codes, heap[child + 1], heap[child]):
                child += 1
            if not precedes(values, codes, heap[child], moved):
                break
            heap[hole] = heap[child]
            hole = child
        heap[hole] = moved


@njit(cache=True, nogil=True)
def first_nodes(logprobs, offsets, nexts, width, first_row, rows, horizon, most, s, m):
    """List and order the ``most`` first nodes of the best-first tree of a position.

    Return how many are listed, the root among them, and how many are ordered.
    """
    fits = True
    reach = math.log(most + 1.0) + REACH
    while fits and reach < 1000.0:
        loaded = load_rows(logprobs, offsets, nexts, width, first_row, rows, reach, s, m)
        counts = histogram_nodes(s, m, rows, reach)
        link_rows(s, m, loaded)
        for aim in AIMS:
            threshold = max(threshold_for(counts, reach, aim * most + 8.0, BINS), -reach)
            n = list_nodes(s, horizon, threshold)
            if n > most:
                order_nodes(s, n, threshold, most)
                return n, most
            fits = n > 0
            if threshold == -reach or not fits:
                break
        reach *= 1.5
    loaded = load_rows(logprobs, offsets, nexts, width, first_row, rows, np.inf, s, m)
    link_rows(s, m, loaded)
    if fits:  # so there may be fewer nodes than wanted
        n = list_nodes(s, horizon, -np.inf)
        if n > 0:
            order_nodes(s, n, -np.inf, most)
            return n, min(n - 1, most)
    return heap_nodes(s, most)
