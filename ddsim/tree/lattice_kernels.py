"""Numba kernels for draft trees of lattices, where each candidate names the row of candidates that follows it.

A position is rows numbered from 0, the row behind the root; a candidate's next row has a larger number than its own. Two layouts
hold P positions, told apart by ``width``:

- *dense*, width K > 0: ``logprobs`` [P, 1 + (L - 1) * K, K] flat, each row in any order, -inf where a candidate is absent. Row 0 is
  depth 1, row 1 + d * K + i follows candidate i of depth d + 1. ``offsets`` and ``nexts`` are empty.
- *sparse*, width 0: row r is ``logprobs[offsets[r] : offsets[r + 1]]``, descending, and ``nexts`` holds the number of each
  candidate's next row within the position, -1 for none.

The place of a candidate is where it stands among those of its position; a listed node's code is ``parent * 2^32 + place``.

How the first n nodes are found: list every node above a threshold, lower the threshold by as much as the nodes so far say, list those
between the two, until there are enough; then order them. A row is read only behind a listed node, which is far fewer than there are,
and none is sorted. Where a threshold lists too many to hold, the next lies halfway; where that doesn't help (thousands of equal
nodes), a binary heap does the same job within a bounded time. Both leave behind what those of ``kernels`` do.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import math

import numpy as np

from ddsim.jit import njit
from ddsim.tree.kernels import Scratch, order_nodes, precedes

FIRST = 0.65  # the first threshold, in times -log(nodes wanted): a fifth of them lie above it


AIMS = (1.5, 1.25)  # nodes aimed at, as multiples of those wanted: from the first threshold, and from later ones


SPARE = 4  # nodes that can be listed, as a multiple of those wanted


PATIENCE = 14  # thresholds that are tried before the heap is asked


GROUP = 4  # candidates of a sparse row that are looked at together


SLACK = 1e-6  # more than float32 rounds by, of numbers about 1


PLACE = 0xFFFFFFFF  # the bits of a code that say which candidate


_0, _1, _32, _PLACE = (np.uint64(i) for i in (0, 1, 32, PLACE))


@njit(cache=True, nogil=True)
def make_scratch(most, longest):
    """Working memory for trees of at most ``most`` nodes on rows of at most ``longest`` candidates."""
    room = SPARE * most + 64
    none = np.empty(0, np.float64)
    starts = np.empty(room, np.int64)  # of each listed node: the place where the row behind it starts
    levels = np.empty(room, np.int64)  # and of dense positions: the number of the first row of the depth below that row
    return Scratch(
        none,
        starts,
        np.empty((0, 0), np.float32),
        np.empty(room, np.float64),
        np.empty(room + longest + GROUP, np.int64),  # a row is sieved into it before it is known to fit
        levels,
        np.empty(room, np.float64),
        np.empty(room, np.uint32),
        np.empty(room, np.uint32),
        np.empty(2 * room + 1, np.uint32),
    )


@njit(cache=True, nogil=True)
def longest_row(offsets, first, last):
    """The most candidates of a row among first..last-1."""
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@njit(cache=True, nogil=True)
def next_row(nexts, width, rows, row, at):
    """Number of the row that follows the candidate at ``at`` of a row; ``rows`` for none."""
    if width == 0:
        return np.int64(nexts[at]) if nexts[at] >= 0 else rows
    below = 1 + (row + width - 1) // width * width
    return below + at % width if below < rows else rows


@njit(cache=True, nogil=True)
def sieve_bound(threshold, base):
    """A candidate behind a node at ``base`` is listed above this, which is a little less than leads to the threshold."""
    gap = threshold - base
    return np.float32(gap - SLACK * (1.0 + abs(gap)))


# Both functions that list have no branch on a candidate or on how many a row gives, so that the processor fetches the next node's row
# while it sieves this one's.


@njit(cache=True, nogil=True)
def list_dense(own, width, rows, low, high, n, s):
    """`list_nodes` of a dense position."""
    values = s.values
    codes = s.codes
    starts = s.starts
    levels = s.levels
    room = np.uint64(starts.shape[0])
    found = np.uint64(n)
    before = found if high < np.inf else _0
    levels[0] = 1
    node = _0
    while node < found:
        code = np.uint64(codes[node])
        place = code & _PLACE
        row = np.int64(0)
        base = 0.0
        if node > _0:
            parent = code >> _32
            level = levels[parent]
            levels[node] = level + width
            row = level + np.int64(place) - starts[parent] if level < rows else -1
            base = values[parent] + own[place]
        start = row * width
        values[node] = base
        starts[node] = start
        if row >= 0:
            least = sieve_bound(low, base)
            most = sieve_bound(high, base) if node < before else np.float32(np.inf)
            code = node << _32
            for i in range(np.uint64(start), np.uint64(start + width)):
                codes[found] = np.int64(code + i)
                found += np.uint64((own[i] > least) & (own[i] <= most))
            if found > room:
                return 0
        node += _1
    return np.int64(found)


@njit(cache=True, nogil=True)
def list_sparse(own, offsets, nexts, first_row, low, high, n, s):
    """`list_nodes` of a sparse position."""
    values = s.values
    codes = s.codes
    starts = s.starts
    room = np.uint64(starts.shape[0])
    last = np.uint64(own.shape[0] - 1)
    begin = np.uint64(offsets[first_row])
    top = np.uint64(first_row)
    found = np.uint64(n)
    before = found if high < np.inf else _0
    node = _0
    while node < found:
        code = np.uint64(codes[node])
        place = code & _PLACE
        row = top
        base = 0.0
        leaf = False
        if node > _0:
            leaf = nexts[begin + place] < 0
            row = top + np.uint64(nexts[begin + place])
            base = values[code >> _32] + own[place]
        values[node] = base
        starts[node] = -1
        if not leaf:
            i = np.uint64(offsets[row]) - begin
            end = np.uint64(offsets[row + _1]) - begin
            starts[node] = np.int64(i)
            least = sieve_bound(low, base)
            most = sieve_bound(high, base) if node < before else np.float32(np.inf)
            more = True
            code = (node << _32) + i
            while more:
                if found > room:
                    return 0
                for _ in range(GROUP):
                    value = own[min(i, last)]
                    more = (i < end) & (value > least)
                    codes[found] = np.int64(code)
                    found += np.uint64(more & (value <= most))
                    i += _1
                    code += _1
        node += _1
    return np.int64(found) if found <= room else 0


@njit(cache=True, nogil=True)
def list_nodes(own, offsets, nexts, width, first_row, rows, low, high, n, s):
    """List the nodes with path log-probability above ``low`` behind the n that this listed for ``high``, infinity for the root alone.

    Return how many are listed then, or 0 if they are more than there is room for. Some that are listed are below ``low`` by as much
    as float32 rounds. ``own``: the position's log-probabilities.
    """
    if width > 0:
        return list_dense(own, width, rows, low, high, n, s)
    return list_sparse(own, offsets, nexts, first_row, low, high, n, s)


@njit(cache=True, nogil=True)
def follower(own, start, end, at):
    """Place of the candidate of a row that comes next behind the one at ``at``, of the first if this is -1; -1 if there is none."""
    found = -1
    best = -np.inf
    for i in range(start, end):
        value = own[i]
        if value > best and (at < 0 or value < own[at] or (value == own[at] and i > at)):
            best = value
            found = i
    return found


@njit(cache=True, nogil=True)
def open_row(offsets, nexts, width, first_row, rows, node, s):
    """Place where the row behind a listed node ends; where it starts goes to ``s.starts``."""
    parent = s.codes[node] >> 32
    place = s.codes[node] & PLACE
    if width > 0:
        row = s.levels[parent] + place - s.starts[parent] if node > 0 else 0
        s.levels[node] = s.levels[parent] + width if node > 0 else 1
        s.starts[node] = row * width
        return (row + 1) * width if row < rows else row * width
    begin = offsets[first_row]
    after = np.int64(nexts[begin + place]) if node > 0 else 0
    s.starts[node] = offsets[first_row + after] - begin if after >= 0 else 0
    return offsets[first_row + after + 1] - begin if after >= 0 else 0


@njit(cache=True, nogil=True)
def heap_nodes(own, offsets, nexts, width, first_row, rows, most, s):
    """List and order the ``most`` first nodes with a binary heap: pop the best, push its first child and its next sibling.

    Return how many were listed (the root and those left in the heap too) and how many are ordered.
    """
    values = s.values
    codes = s.codes
    starts = s.starts
    ends = s.bucket_of  # of the rows behind listed nodes
    heap = s.bucket_ends
    values[0] = 0.0
    codes[0] = 0
    listed = np.int64(1)
    size = 0
    n = 0
    node = 0
    while True:
        ends[node] = open_row(offsets, nexts, width, first_row, rows, node, s)
        # The root, then the nodes best first: push the first child, and the next sibling.
        for step in range(2 if node > 0 else 1):
            parent = node if step == 0 else codes[node] >> 32
            last = -1 if step == 0 else codes[node] & PLACE
            start = starts[parent]
            end = np.int64(ends[parent])
            if width > 0:
                at = follower(own, start, end, last)
            else:
                at = start if step == 0 else last + 1
                at = at if at < end else -1
            if at < 0 or not values[parent] + own[at] > -np.inf:
                continue
            values[listed] = values[parent] + own[at]
            codes[listed] = (parent << 32) + at
            hole = size
            while hole > 0 and precedes(values, codes, own, listed, heap[(hole - 1) // 2]):
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
            if child + 1 < size and precedes(values, codes, own, heap[child + 1], heap[child]):
                child += 1
            if not precedes(values, codes, own, heap[child], moved):
                break
            heap[hole] = heap[child]
            hole = child
        heap[hole] = moved


@njit(cache=True, nogil=True)
def first_nodes(logprobs, offsets, nexts, width, first_row, rows, most, s):
    """List and order the ``most`` first nodes of the best-first tree of a position.

    Return how many are listed, the root among them, and how many are ordered.
    """
    if width > 0:
        own = logprobs[first_row * width : (first_row + rows) * width]
    else:
        own = logprobs[offsets[first_row] : offsets[first_row + rows]]
    if own.shape[0] == 0:
        return 1, 0
    s.codes[0] = 0
    n = np.int64(1)
    high = np.inf
    low = -FIRST * math.log(most + 1.0)
    floor = -np.inf  # the nodes above it are too many
    rate = 1.0
    for _ in range(PATIENCE):
        listed = list_nodes(own, offsets, nexts, width, first_row, rows, low, high, n, s)
        if listed == 0:
            floor = low
            low = 0.5 * (low + min(high, 0.0)) if low > -np.inf else 2.0 * high - 1.0
            continue
        if listed > most or low == -np.inf:
            best = -np.inf
            for i in range(1, listed):
                if s.codes[i] > PLACE:
                    break
                best = max(best, s.values[i])
            order_nodes(s, listed, best, low - 2.0 * SLACK * (1.0 - low), most, own)
            if low == -np.inf or s.sorted_values[most - 1] > low:
                return listed, min(listed - 1, most)
        # Nodes become e times as many about every nat; from the second threshold on, as fast as they did between the last two.
        aim = AIMS[0] if high == np.inf else AIMS[1]
        if high < np.inf:
            rate = max(math.log(listed / n) / max(high - low, SLACK), 0.5 * rate)
        n = listed
        high = low
        low -= max(math.log(aim * (most + 4.0) / n), 0.1) / rate
        if low < -1000.0:
            low = -np.inf
        if not low > floor:
            low = 0.5 * (high + floor) if floor > -np.inf else low
    return heap_nodes(own, offsets, nexts, width, first_row, rows, most, s)
