"""Numba kernels for draft trees: arrays in, arrays out, one thread each; ``tree.py`` checks, shapes and splits the work.

How the first n nodes of a best-first tree are found without a heap, a position at a time:

1. *Aim.* Path log-probability = that of the all-best path to the same depth + the deviations from it. A histogram of summed
   deviations (rows convolved one after another) tells roughly how many nodes lie above any threshold: aim for a few more than n.
2. *Enumerate* every node above the threshold depth-first. Rows are descending, so a failing candidate ends its row. Too few
   nodes: aim lower. More than fit: keep the n first, raise the threshold to the last of them and go on. A bad aim costs time
   only. Depth-first order is the lexicographic order of rank tuples, a prefix before its extensions.
3. *Order* by a stable bucket sort on path log-probability. Stability yields the documented order of ties.

Path log-probabilities are float64 sums from depth 1 down; adding is monotone also in floating point, so no step approximates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

NO_RANK = 2**31 - 1
BINS = 48  # of the histogram that aims the threshold
FIRST_REACH = 12.0  # nats below probability 1 that the histogram covers at first
AIM = 1.15  # nodes aimed at, as a multiple of those wanted
LONG_RUN = 32  # values in one bucket above which insertion sort is left for merge sort

# Powers 2^-k and the coefficients 1/i! of the exponential below: no library call, so loops over it vectorise, and no fused
# products, so gains are the same bits on every machine.
POWERS = 2.0 ** -np.arange(256.0)
_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10


class Scratch(NamedTuple):
    """Working memory of one thread, for trees of at most ``most`` nodes and ``horizon`` levels."""

    rows: Any  # float64 [horizon * (most + 1) + 1]: candidates in reach, -inf after each row
    starts: Any  # int64 [horizon + 1]: where each row starts
    counts: Any  # float32 [4, BINS]: of the histogram
    values: Any  # float64 [room]: path log-probabilities, depth-first
    codes: Any  # int64 [room]: parent * 2^32 + candidate rank
    stack: Any  # int64 [2, horizon]: where to go on in the row of each level, and below which node
    stack_values: Any  # float64 [horizon]: path log-probability of that node
    sorted_values: Any  # float64 [room]: path log-probabilities, best first
    order: Any  # int64 [room]: which node of the depth-first order stands where in the best-first order
    buckets: Any  # int64 [2, room + 1]
    spare_values: Any  # float64 [room]
    spare_order: Any  # int64 [room]


@njit(cache=True, nogil=True)
def make_scratch(horizon, most):
    """Working memory for ``first_nodes``."""
    room = 4 * most + 64
    return Scratch(
        np.empty(horizon * (most + 1) + 1, np.float64),
        np.empty(horizon + 1, np.int64),
        np.empty((4, BINS), np.float32),
        np.empty(room, np.float64),
        np.empty(room, np.int64),
        np.empty((2, horizon), np.int64),
        np.empty(horizon, np.float64),
        np.empty(room, np.float64),
        np.empty(room, np.int64),
        np.empty((2, room + 1), np.int64),
        np.empty(room, np.float64),
        np.empty(room, np.int64),
    )


@njit(cache=True, nogil=True)
def exp_nonpositive(x, powers):
    """e^x for x <= 0 within two units of the last place of float64; below e^-150 it is 0 in float32 anyway."""
    x = max(x, -150.0)
    k = int(0.5 - x * _LOG2_E)
    r = (x + k * _LN2_HIGH) + k * _LN2_LOW
    p = 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
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
    return p * powers[k]


@njit(cache=True, nogil=True)
def load_rows(logprobs, offsets, first_row, horizon, most, reach, rows, starts):
    """Copy the candidates that a node above -reach can use, a sentinel -inf after each row; return depths in use.

    Node (best, ..., best, k) has the highest probability of all that use candidate k of its row, and candidate k >= most of a row
    comes after ``most`` siblings. ``rows`` is [horizon * (most + 1) + 1], ``starts`` is [horizon + 1].
    """
    at = 0
    chain = 0.0
    depth = 0
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
        rows[at] = -np.inf
        at += 1
        if rows[starts[d]] == -np.inf:
            break
        chain += rows[starts[d]]
        depth = d + 1
    starts[depth] = at - 1  # the row below the deepest: empty
    rows[at - 1] = -np.inf
    return depth


@njit(cache=True, nogil=True)
def histogram_nodes(rows, starts, depth, reach, memory):
    """About how many nodes have path log-probability near -b * reach / BINS: a view [BINS] into ``memory``."""
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
        shift = int(min(chain * inverse + 0.5, 1e6))
        width = BINS - shift
        if width <= 0:
            break
        row_counts[:] = 0.0
        last = 0
        at = starts[d]
        while rows[at] > -np.inf:
            bin_of = int(min((best - rows[at]) * inverse + 0.5, 1e6))
            if bin_of >= width:
                break
            row_counts[bin_of] += 1.0
            last = bin_of
            at += 1
        for b in range(width):
            spread_next[b] = spread[b] * row_counts[0]
        for q in range(1, last + 1):
            weight = row_counts[q]
            if weight > 0.0:
                for b in range(width - q):
                    spread_next[b + q] += weight * spread[b]
        for b in range(width):
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
def enumerate_nodes(s, depth, threshold, most):
    """List nodes with path log-probability > threshold, depth-first; of more than fit, at least the ``most`` first by tree order.

    Node i gets s.values[i] and s.codes[i]. Return how many nodes, and the threshold in force at the end.
    """
    rows = s.rows
    starts = s.starts
    values = s.values
    codes = s.codes
    room = values.shape[0]
    n = 0
    d = 0
    base = 0.0
    parent = -1
    at = starts[0]
    start = at
    below = rows[starts[1]] if depth > 1 else -np.inf
    while True:
        value = base + rows[at]
        if value > threshold:
            if n == room:
                threshold = keep_first(s, n, most)
                n = most
                renumbered = s.buckets[0]
                for i in range(d):
                    if s.stack[1, i] >= 0:
                        s.stack[1, i] = renumbered[s.stack[1, i]]
                if parent >= 0:
                    parent = renumbered[parent]
                continue
            values[n] = value
            codes[n] = (parent << 32) + (at - start)
            at += 1
            if value + below > threshold:
                s.stack_values[d] = base
                s.stack[0, d] = at
                s.stack[1, d] = parent
                d += 1
                base = value
                parent = n
                at = starts[d]
                start = at
                below = rows[starts[d + 1]] if d + 1 < depth else -np.inf
            n += 1
        else:
            if d == 0:
                return n, threshold
            d -= 1
            base = s.stack_values[d]
            at = s.stack[0, d]
            parent = s.stack[1, d]
            start = starts[d]
            below = rows[starts[d + 1]]


@njit(cache=True, nogil=True)
def keep_first(s, n, most):
    """Reduce the n > most listed nodes to the ``most`` first by tree order, still depth-first; return the last one's value.

    Later nodes must exceed that value: equal ones come after these. Old indices map to new ones in s.buckets[0]; a node dropped
    maps to -1, and none of its descendants can be listed any more.
    """
    order_nodes(s, n, most, -np.inf)
    threshold = s.sorted_values[most - 1]
    renumbered = s.buckets[0]
    renumbered[:n] = -1
    for i in range(most):
        renumbered[s.order[i]] = 0
    m = 0
    for i in range(n):
        if renumbered[i] == 0:
            code = s.codes[i]
            parent = code >> 32
            if parent >= 0:
                parent = renumbered[parent]
            s.values[m] = s.values[i]
            s.codes[m] = (parent << 32) + (code & 0xFFFFFFFF)
            renumbered[i] = m
            m += 1
    return threshold


@njit(cache=True, nogil=True)
def order_nodes(s, n, most, low):
    """Sort the n listed nodes, all above ``low``, stably by descending value into s.sorted_values and s.order, ``most`` at most."""
    if n == 0:
        return 0
    values = s.values
    high = values[0]  # the best node of depth 1 is the best of all
    if low == -np.inf:
        low = high
        for i in range(n):
            low = min(low, values[i])
    scale = n / (high - low) if high > low else 0.0
    if not scale < 1e300:
        scale = 0.0
    bucket_of = s.buckets[0]
    counts = s.buckets[1]
    counts[: n + 1] = 0
    for i in range(n):
        b = min(max(int((high - values[i]) * scale), 0), n)
        bucket_of[i] = b
        counts[b] += 1
    total = 0
    longest = 0
    last = 0
    while total < min(n, most):
        count = counts[last]
        counts[last] = total
        total += count
        longest = max(longest, count)
        last += 1
    ordered = s.sorted_values
    order = s.order
    for i in range(n):
        b = bucket_of[i]
        if b < last:
            at = counts[b]
            counts[b] = at + 1
            ordered[at] = values[i]
            order[at] = i
    if longest <= LONG_RUN:
        for i in range(1, total):
            value = ordered[i]
            if value > ordered[i - 1]:
                node = order[i]
                j = i
                while j > 0 and ordered[j - 1] < value:
                    ordered[j] = ordered[j - 1]
                    order[j] = order[j - 1]
                    j -= 1
                ordered[j] = value
                order[j] = node
    else:
        merge_sort(ordered, order, s.spare_values, s.spare_order, total)
    return min(total, most)


@njit(cache=True, nogil=True)
def merge_sort(values, order, spare_values, spare_order, n):
    """Sort values[:n], and order[:n] with them, stably and descending."""
    width = 1
    while width < n:
        for left in range(0, n, 2 * width):
            middle = min(left + width, n)
            right = min(left + 2 * width, n)
            i = left
            j = middle
            for k in range(left, right):
                if i < middle and (j >= right or values[i] >= values[j]):
                    spare_values[k] = values[i]
                    spare_order[k] = order[i]
                    i += 1
                else:
                    spare_values[k] = values[j]
                    spare_order[k] = order[j]
                    j += 1
        values[:n] = spare_values[:n]
        order[:n] = spare_order[:n]
        width *= 2


@njit(cache=True, nogil=True)
def first_nodes(logprobs, offsets, first_row, horizon, most, s):
    """Find and order the ``most`` first nodes of the best-first tree over ``horizon`` rows; return (listed, ordered) counts."""
    reach = FIRST_REACH
    while True:
        depth = load_rows(logprobs, offsets, first_row, horizon, most, reach, s.rows, s.starts)
        threshold = -np.inf
        if reach == np.inf:
            n, threshold = enumerate_nodes(s, depth, -np.inf, most)
            return n, order_nodes(s, n, most, threshold)
        counts = histogram_nodes(s.rows, s.starts, depth, reach, s.counts)
        target = AIM * most + 8.0
        threshold = np.inf
        while threshold > -reach:
            threshold = max(min(threshold_for(counts, reach, target), threshold - 0.5 * reach / BINS), -reach)
            n, last = enumerate_nodes(s, depth, threshold, most)
            if n >= most:
                return n, order_nodes(s, n, most, last)
            target *= 2.0
        reach = 4.0 * reach if reach < 100.0 else np.inf


@njit(cache=True, nogil=True)
def gains_and_ranks(logprobs, offsets, truth, horizon, first, last, gains, ranks, chain, powers):
    """Fill gains [P, N], ranks [P, horizon] and chain [P] for positions first..last-1."""
    most = gains.shape[1]
    s = make_scratch(horizon, most)
    place = s.spare_order
    for p in range(first, last):
        listed, n = first_nodes(logprobs, offsets, p * horizon, horizon, most, s)
        for i in range(n):
            gains[p, i] = exp_nonpositive(s.sorted_values[i], powers)
        for i in range(n, most):
            gains[p, i] = 0.0
        rising = False
        for i in range(1, n):
            rising |= gains[p, i] > gains[p, i - 1]
        if rising:  # the exponential of neighbouring floats may round the wrong way
            for i in range(1, n):
                gains[p, i] = min(gains[p, i], gains[p, i - 1])

        matched = 0
        while matched < horizon and truth[p, matched] == 0:
            matched += 1
        chain[p] = min(matched, 255)

        for d in range(horizon):
            ranks[p, d] = NO_RANK
        if truth[p, 0] < 0:
            continue
        place[:listed] = NO_RANK
        for i in range(n):
            place[s.order[i]] = i + 1
        node = -1
        at = 0
        for d in range(horizon):
            if truth[p, d] < 0:
                break
            wanted = (node << 32) + truth[p, d]
            while at < listed and s.codes[at] != wanted:
                at += 1
            if at == listed or place[at] == NO_RANK:
                break
            ranks[p, d] = place[at]
            node = at


@njit(cache=True, nogil=True)
def draft_tree(logprobs, offsets, horizon, most, parents, depths, ranks, values):
    """Fill the arrays [most + 1] of the best-first tree, root first; return how many nodes there are without the root."""
    parents[0] = -1
    depths[0] = 0
    ranks[0] = -1
    values[0] = 0.0
    if most == 0:
        return 0
    s = make_scratch(horizon, most)
    n = first_nodes(logprobs, offsets, 0, horizon, most, s)[1]
    place = s.spare_order
    for i in range(n):
        node = s.order[i]
        code = s.codes[node]
        place[node] = i + 1
        parent = code >> 32
        above = place[parent] if parent >= 0 else 0
        parents[i + 1] = above
        depths[i + 1] = depths[above] + 1
        ranks[i + 1] = code & 0xFFFFFFFF
        values[i + 1] = s.sorted_values[i]
    return n


@njit(cache=True, nogil=True)
def kept_pairs(logprobs, offsets, horizon, most, first, last, kept):
    """Fill kept [P, horizon]: candidates of each row that trees of ``most`` nodes use, for positions first..last-1."""
    s = make_scratch(horizon, most)
    place = s.spare_order
    on_chain = s.buckets[0]
    for p in range(first, last):
        kept[p, :] = 0
        listed, n = first_nodes(logprobs, offsets, p * horizon, horizon, most, s)
        place[:listed] = 0
        for i in range(n):
            place[s.order[i]] = 1
        # on_chain[i]: depth of node i if all its ranks are 0, else 0. A candidate is used if the chain's end followed by it is.
        for i in range(listed):
            parent = s.codes[i] >> 32
            rank = s.codes[i] & 0xFFFFFFFF
            level = 0 if parent < 0 else on_chain[parent]
            on_chain[i] = 0
            if (parent < 0 or level > 0) and place[i] == 1:
                kept[p, level] = max(kept[p, level], rank + 1)
                if rank == 0:
                    on_chain[i] = level + 1


@njit(cache=True, nogil=True)
def packed_mask(parents, mask):
    """Set bit j of row i of ``mask`` [nodes, words], zeroed, where node j is node i or above it."""
    for i in range(parents.shape[0]):
        above = parents[i]
        if above >= 0:
            for w in range((above >> 6) + 1):
                mask[i, w] = mask[above, w]
        mask[i, i >> 6] |= np.uint64(1) << np.uint64(i & 63)


@njit(cache=True, nogil=True)
def ancestor_mask(parents, mask):
    """Set mask[i, j], all False before, where node j is node i or above it."""
    for i in range(parents.shape[0]):
        node = i
        while node >= 0:
            mask[i, node] = True
            node = parents[node]


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


@njit(cache=True, nogil=True)
def first_bad_row(logprobs, offsets, tolerance, first, last, powers):
    """First row of first..last-1 that can't be a marginal and why (1 NaN, 2 positive, 3 rising, 4 sum), or (-1, 0)."""
    for row in range(first, last):
        begin = offsets[row]
        end = offsets[row + 1]
        total = 0.0
        bad = False
        for i in range(begin, end):
            value = np.float64(logprobs[i])
            if not value <= 0.0:
                return row, (2 if value > 0.0 else 1)
            if i > begin and value > logprobs[i - 1]:
                bad = True
            total += exp_nonpositive(value, powers)
        if bad:
            for i in range(begin, end):
                if np.isnan(logprobs[i]):
                    return row, 1
                if logprobs[i] > 0.0:
                    return row, 2
            return row, 3
        if total > 1.0 + tolerance:
            return row, 4
    return -1, 0
