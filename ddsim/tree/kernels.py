"""Numba kernels for draft trees: arrays in, arrays out, one thread each; ``rows`` checks, shapes and splits the work.

How the first n nodes of a best-first tree are found, a position at a time:

1. *Aim.* Path log-probability = that of the all-best path to the same depth + the deviations from it. A histogram of summed
   deviations (rows convolved one after another) tells roughly how many nodes lie above any threshold: aim for a few more than n.
2. *List* every node above the threshold, level by level. Rows are descending, so a parent's children above it are a run.
3. *Order* by a bucket sort on path log-probability; equal nodes are compared by their rank tuples.

A threshold that lists too few nodes is lowered; where it lists too many to hold (a histogram that misleads, thousands of equal
nodes), a binary heap does the same job within a bounded time. Both leave the same arrays behind: listed nodes, each with its path
log-probability and its code ``parent * 2^32 + candidate rank`` (parents come before their children; node 0 is the root), and the
order of all but the root.

Path log-probabilities are float64 sums from depth 1 down; adding is monotone also in floating point, so no step approximates.

Inner loops index with unsigned integers: Numba tests a signed index for being negative, which doubles the time of these loops.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ddsim.jit import njit

NO_RANK = 2**31 - 1


NO_STEPS = None  # a type of its own, so that rows' compiled kernels don't ask


BINS = 32  # of the histogram that aims the threshold


REACH = 2.5  # nats below 1 / nodes wanted that the histogram covers at first: enough at 24 positions of 25


AIMS = (1.07, 1.4, 2.0)  # nodes aimed at, as multiples of those wanted: that is too few at 1 position of 20


GROUP = 4  # children listed at once, without a branch between them; rows end with as many -inf


PATIENCE = 8  # moves a node after which insertion sort gives way to merge sort


_0, _1, _2, _3, _4, _32 = (np.uint64(i) for i in (0, 1, 2, 3, 4, 32))


class Scratch(NamedTuple):
    """Working memory of one thread, for trees of at most ``most`` nodes and ``horizon`` levels; ``room`` nodes can be listed."""

    rows: Any  # float64 [horizon * (most + GROUP)]: candidates in reach, GROUP times -inf after each row
    starts: Any  # int64 [horizon]: where each row starts
    counts: Any  # float32 [4, 2 * BINS]: of the histogram
    values: Any  # float64 [room + GROUP]: path log-probabilities of the listed nodes
    codes: Any  # int64 [room + GROUP]: their codes
    levels: Any  # int64 [horizon + 2]: the first listed node of each depth; what lies behind the last level
    sorted_values: Any  # float64 [room]: path log-probabilities, best first
    order: Any  # uint32 [room]: which listed node stands where in best-first order
    bucket_of: Any  # uint32 [room], free for other use once nodes are ordered
    bucket_ends: Any  # uint32 [2 * room + 1], likewise


@njit(cache=True, nogil=True)
def make_scratch(horizon, most):
    """Working memory for ``first_nodes``."""
    room = 2 * most + 64
    return Scratch(
        np.empty(horizon * (most + GROUP), np.float64),
        np.empty(horizon, np.int64),
        np.empty((4, 2 * BINS), np.float32),
        np.empty(room + GROUP, np.float64),
        np.empty(room + GROUP, np.int64),
        np.empty(horizon + 2, np.int64),
        np.empty(room, np.float64),
        np.empty(room, np.uint32),
        np.empty(room, np.uint32),
        np.empty(2 * room + 1, np.uint32),
    )


@njit(cache=True, nogil=True)
def exp_nonpositive(x):
    """e^x for x <= 0, to 1e-9 of its value down to e^-104, where float32 ends, and 1e-12 down to e^-50; 0 in float32 below.

    (e^(x / 256))^256 needs neither a table nor integers, so loops over it vectorise; and no library call and no fused product, so
    gains are the same bits on every machine.
    """
    r = (x if x > -150.0 else -150.0) * (1.0 / 256.0)
    p = 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    return p


@njit(cache=True, nogil=True)
def load_rows(logprobs, offsets, first_row, horizon, most, reach, rows, starts):
    """Copy the candidates that a node above -reach can use, GROUP sentinels -inf after each row; return depths in use.

    Node (best, ..., best, k) has the highest probability of all that use candidate k of its row, and candidate k >= most of a row
    comes after ``most`` siblings.
    """
    at = 0
    chain = 0.0
    for d in range(horizon):
        begin = offsets[first_row + d]
        end = min(offsets[first_row + d + 1], begin + most)
        starts[d] = at
        for i in range(begin, end):
            value = np.float64(logprobs[i])
            if not chain + value > -reach:
                break
            rows[at] = value
            at += 1
        if at == starts[d]:
            return d
        for _ in range(GROUP):
            rows[at] = -np.inf
            at += 1
        chain += rows[starts[d]]
    return horizon


@njit(cache=True, nogil=True)
def histogram_nodes(rows, starts, depth, reach, memory):
    """About how many nodes have path log-probability near -b * reach / BINS: a view [2 * BINS] into ``memory``."""
    counts = memory[0]
    spread = memory[1]
    spread_next = memory[2]
    row_counts = memory[3]
    inverse = BINS / reach
    counts[:] = 0.0
    spread[:] = 0.0
    spread[0] = 1.0
    chain = 0.0
    for d in range(depth):
        best = rows[starts[d]]
        chain -= best
        row_counts[:] = 0.0
        last = 0
        at = starts[d]
        while rows[at] > -np.inf:  # all in reach: bin BINS at most
            last = int((best - rows[at]) * inverse + 0.5)
            row_counts[last] += 1.0
            at += 1
        weight = row_counts[0]
        for b in range(BINS):
            spread_next[b] = weight * spread[b]
            spread_next[b + BINS] = 0.0
        for q in range(1, last + 1):
            weight = row_counts[q]
            if weight > 0.0:
                for b in range(BINS):
                    spread_next[b + q] += weight * spread[b]
        shift = int(chain * inverse + 0.5)
        for b in range(BINS):
            spread[b] = spread_next[b]
            counts[b + shift] += spread_next[b]
    return counts


@njit(cache=True, nogil=True)
def threshold_for(counts, reach, target):
    """Path log-probability above which about ``target`` nodes lie by the histogram; -reach if it holds fewer."""
    total = 0.0
    for b in range(BINS):
        count = counts[b]
        if total + count >= target:
            return -(b - 0.5 + (target - total) / count) * (reach / BINS)
        total += count
    return -reach


@njit(cache=True, nogil=True)
def list_nodes(s, depth, threshold):
    """List the root and all nodes with path log-probability > threshold, level by level, each in lexicographic order.

    Return how many, or 0 if they are more than there is room for.
    """
    rows = s.rows
    values = s.values
    codes = s.codes
    room = np.uint64(values.shape[0] - GROUP)
    levels = s.levels
    values[0] = 0.0
    codes[0] = 0
    levels[0] = 0
    levels[1] = 1
    first = _0
    n = _1
    for d in range(depth):
        start = np.uint64(s.starts[d])
        last = n
        for parent in range(first, last):
            base = values[parent]
            at = start
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
                code = np.int64((parent << _32) + (at - start))
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
def precedes(values, codes, steps, a, b):
    """Whether listed node a comes before listed node b != a in best-first order.

    ``steps``: log-probabilities at the places that codes hold, where these are not in order; else None.
    """
    if values[a] != values[b]:
        return values[a] > values[b]
    # Climb to where the two paths meet (parents are listed before their children); the ranks of the last steps decide.
    x = np.int64(a)
    y = np.int64(b)
    rank_x = -1
    rank_y = -1
    while x != y:
        if x > y:
            rank_x = codes[x] & 0xFFFFFFFF
            x = codes[x] >> 32
        else:
            rank_y = codes[y] & 0xFFFFFFFF
            y = codes[y] >> 32
    if steps is not None and steps[rank_x] != steps[rank_y]:
        return rank_x < 0 or (rank_y >= 0 and steps[rank_x] > steps[rank_y])
    return rank_x < rank_y


@njit(cache=True, nogil=True)
def precedes_equal(s, steps, a, b):
    """Whether node a comes before an equal one b that was listed earlier; without ``steps``, by ``list_nodes``.

    Within a level nodes are in order; a deeper node stands where its ancestor of the other's level does, or right behind it.
    """
    if steps is not None:
        return precedes(s.values, s.codes, steps, a, b)
    d = 1
    while s.levels[d] <= b:
        d += 1
    x = np.int64(a)
    while x >= s.levels[d]:
        x = s.codes[x] >> 32
    return x < b


@njit(cache=True, nogil=True)
def order_nodes(s, n, high, low, most, steps):
    """Sort the n listed nodes but the root, all above ``low`` and none above ``high``, best first into s.sorted_values and s.order.

    Only the ``most`` first are sure to be in order. ``steps``: as for ``precedes``; None if ``list_nodes`` listed them here.
    """
    if n <= 1 or most == 0:
        return
    values = s.values
    if low == -np.inf:
        for i in range(1, n):
            low = min(low if low > -np.inf else high, values[i])
    scale = 1.0 / (high - low) if high > low else 0.0
    if not scale < 1e300:
        scale = 0.0
    # Nodes crowd towards the threshold, about as the fourth power of the distance from the best: so buckets fill evenly.
    bucket_of = s.bucket_of
    buckets = 2 * n
    for i in range(1, n):
        x = (high - values[i]) * scale
        x *= x
        x *= x
        bucket_of[i] = np.uint32(np.int32(x * buckets))
    ends = s.bucket_ends
    ends[: buckets + 1] = 0
    for i in range(1, n):
        ends[bucket_of[i]] += 1
    total = np.uint32(0)
    for b in range(buckets + 1):
        count = ends[b]
        ends[b] = total
        total = np.uint32(total + count)
    ordered = s.sorted_values
    order = s.order
    for i in range(1, n):
        b = bucket_of[i]
        at = ends[b]
        ends[b] = at + 1
        ordered[at] = values[i]
        order[at] = i
    moves = _0
    last = ordered[0]
    # Buckets behind the one that holds the last node wanted can stay as they are.
    stop = np.uint64(ends[bucket_of[order[min(most, n - 1) - 1]]])
    for i in range(_1, stop):
        value = ordered[i]
        if value < last:
            last = value
            continue
        node = order[i]
        j = i
        while j > _0 and (
            value > ordered[j - _1] or (value == ordered[j - _1] and precedes_equal(s, steps, node, order[j - _1]))
        ):
            ordered[j] = ordered[j - _1]
            order[j] = order[j - _1]
            j -= _1
        ordered[j] = value
        order[j] = node
        last = ordered[i]
        moves += i - j
        if moves > np.uint64(PATIENCE * n):
            merge_sort(values, s.codes, steps, order, bucket_of, n - 1)
            for k in range(n - 1):
                ordered[k] = values[order[k]]
            return


@njit(cache=True, nogil=True)
def merge_sort(values, codes, steps, order, spare, n):
    """Sort the nodes order[:n] best first."""
    width = 1
    while width < n:
        for left in range(0, n, 2 * width):
            middle = min(left + width, n)
            right = min(left + 2 * width, n)
            i = left
            j = middle
            for k in range(left, right):
                if i < middle and (j >= right or precedes(values, codes, steps, order[i], order[j])):
                    spare[k] = order[i]
                    i += 1
                else:
                    spare[k] = order[j]
                    j += 1
        order[:n] = spare[:n]
        width *= 2


@njit(cache=True, nogil=True)
def heap_nodes(s, depth, most):
    """List and order the ``most`` first nodes with a binary heap: pop the best, push its first child and its next sibling.

    Return how many were listed (the root and those left in the heap too) and how many are ordered.
    """
    rows = s.rows
    starts = s.starts
    values = s.values
    codes = s.codes
    depths = s.bucket_of
    heap = s.bucket_ends
    values[0] = 0.0
    codes[0] = 0
    depths[0] = 0
    listed = np.int64(1)
    size = 0
    n = 0
    node = 0
    while True:
        # The root, then the nodes best first: push the first child, and the next sibling.
        for step in range(2 if node > 0 else 1):
            if step == 0:
                parent = node
                rank = 0
            else:
                parent = codes[node] >> 32
                rank = (codes[node] & 0xFFFFFFFF) + 1
            d = np.int64(depths[parent])
            if d == depth or rows[starts[d] + rank] == -np.inf:
                continue
            values[listed] = values[parent] + rows[starts[d] + rank]
            codes[listed] = (parent << 32) + rank
            depths[listed] = d + 1
            hole = size
            while hole > 0 and precedes(values, codes, NO_STEPS, listed, heap[(hole - 1) // 2]):
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
            if child + 1 < size and precedes(values, codes, NO_STEPS, heap[child + 1], heap[child]):
                child += 1
            if not precedes(values, codes, NO_STEPS, heap[child], moved):
                break
            heap[hole] = heap[child]
            hole = child
        heap[hole] = moved


@njit(cache=True, nogil=True)
def first_nodes(logprobs, offsets, first_row, horizon, most, s):
    """List and order the ``most`` first nodes of the best-first tree over ``horizon`` rows.

    Return how many are listed, the root among them, and how many are ordered.
    """
    fits = True
    reach = math.log(most + 1.0) + REACH
    while fits and reach < 1000.0:
        depth = load_rows(logprobs, offsets, first_row, horizon, most, reach, s.rows, s.starts)
        counts = histogram_nodes(s.rows, s.starts, depth, reach, s.counts)
        for aim in AIMS:
            threshold = max(threshold_for(counts, reach, aim * most + 8.0), -reach)
            n = list_nodes(s, depth, threshold)
            if n > most:
                order_nodes(s, n, s.values[1], threshold, most, NO_STEPS)
                return n, most
            fits = n > 0
            if threshold == -reach or not fits:
                break
        reach *= 2.0
    depth = load_rows(logprobs, offsets, first_row, horizon, most, np.inf, s.rows, s.starts)
    if fits:  # so there may be fewer nodes than wanted
        n = list_nodes(s, depth, -np.inf)
        if n > 0:
            order_nodes(s, n, s.values[1], -np.inf, most, NO_STEPS)
            return n, min(n - 1, most)
    return heap_nodes(s, depth, most)


@njit(cache=True, nogil=True)
def write_gains(s, n, gains):
    """Fill gains [N] from the n nodes in order."""
    for i in range(n):
        gains[i] = exp_nonpositive(s.sorted_values[i])
    gains[n:] = 0.0
    rising = 0
    for i in range(1, n):
        rising += gains[i] > gains[i - 1]
    if rising > 0:  # the exponential of neighbouring floats may round the wrong way
        for i in range(1, n):
            gains[i] = min(gains[i], gains[i - 1])


@njit(cache=True, nogil=True)
def leading_best(truth):
    """Leading depths whose true token is the best candidate, 255 at most."""
    matched = 0
    while matched < truth.shape[0] and truth[matched] == 0:
        matched += 1
    return min(matched, 255)


@njit(cache=True, nogil=True)
def write_ranks(s, listed, n, truth, linked, ranks):
    """Fill ranks [L] with the places, among the n nodes in order, of the nodes of a true path; NO_RANK from where one isn't.

    ``linked``: a code counts from the start of all rows, as those of lattices do, and ``s.starts`` says where the row behind each node starts.
    """
    ranks[:] = NO_RANK
    if truth[0] < 0:
        return
    place = s.bucket_of
    place[:listed] = NO_RANK
    for i in range(n):
        place[s.order[i]] = i + 1
    node = 0
    at = 1
    for d in range(truth.shape[0]):
        if truth[d] < 0:
            break
        wanted = (node << 32) + np.int64(truth[d])  # a plain Python integer where NumPy runs the kernel
        if linked:
            wanted += s.starts[node]
        while at < listed and s.codes[at] != wanted:
            at += 1
        if at == listed or place[at] == NO_RANK:
            break
        ranks[d] = place[at]
        node = at


@njit(cache=True, nogil=True)
def gains_and_ranks(logprobs, offsets, truth, horizon, first, last, gains, ranks, chain):
    """Fill gains [P, N], ranks [P, horizon] and chain [P] for positions first..last-1."""
    most = gains.shape[1]
    s = make_scratch(horizon, most)
    for p in range(first, last):
        listed, n = first_nodes(logprobs, offsets, p * horizon, horizon, most, s)
        write_gains(s, n, gains[p])
        chain[p] = leading_best(truth[p])
        write_ranks(s, listed, n, truth[p], False, ranks[p])


@njit(cache=True, nogil=True)
def write_tree(s, n, parents, depths, ranks):
    """Fill arrays [>= n + 1] with the tree of the n nodes in order, root first."""
    parents[0] = -1
    depths[0] = 0
    ranks[0] = -1
    place = s.bucket_of
    place[0] = 0
    for i in range(n):
        node = s.order[i]
        place[node] = i + 1
        code = s.codes[node]
        above = place[np.uint32(code >> 32)]
        parents[i + 1] = above
        depths[i + 1] = depths[above] + 1
        ranks[i + 1] = code & 0xFFFFFFFF


@njit(cache=True, nogil=True)
def draft_tree(logprobs, offsets, horizon, most, parents, depths, ranks, values):
    """Fill the arrays [most + 1] of the best-first tree, root first; return how many nodes there are without the root."""
    s = make_scratch(horizon, most)
    n = first_nodes(logprobs, offsets, np.int64(0), horizon, most, s)[1] if most > 0 else 0
    write_tree(s, n, parents, depths, ranks)
    values[0] = 0.0
    values[1 : n + 1] = s.sorted_values[:n]
    return n


@njit(cache=True, nogil=True)
def kept_pairs(logprobs, offsets, horizon, most, first, last, kept):
    """Fill kept [P, horizon]: candidates of each row that trees of ``most`` nodes use, for positions first..last-1."""
    s = make_scratch(horizon, most)
    place = s.bucket_of
    on_chain = s.bucket_ends
    for p in range(first, last):
        kept[p, :] = 0
        listed, n = first_nodes(logprobs, offsets, p * horizon, horizon, most, s)
        place[:listed] = NO_RANK
        for i in range(n):
            place[s.order[i]] = i
        # A candidate is used if the node of best candidates down to its row, and then itself, is. on_chain[i]: 1 + depth of
        # node i if all its ranks are 0, else 0.
        on_chain[0] = 1
        for i in range(1, listed):
            level = np.int64(on_chain[s.codes[i] >> 32])
            rank = s.codes[i] & 0xFFFFFFFF
            on_chain[i] = 0
            if level > 0 and place[i] != NO_RANK:
                kept[p, level - 1] = max(kept[p, level - 1], rank + 1)
                if rank == 0:
                    on_chain[i] = level + 1


@njit(cache=True, nogil=True)
def true_ranks(token_ids, offsets, tokens, starts, horizon, first, last, ranks):
    """Fill ranks [P, horizon] for sequences first..last-1: index of x[p + d] in row (p, d), -1 if absent or past the end."""
    for q in range(first, last):
        for p in range(starts[q], starts[q + 1]):
            for d in range(horizon):
                found = -1
                if p + d + 1 < starts[q + 1]:
                    token = tokens[p + d + 1]
                    begin = offsets[p * horizon + d]
                    for i in range(begin, offsets[p * horizon + d + 1]):
                        if token_ids[i] == token:
                            found = i - begin
                            break
                ranks[p, d] = found
