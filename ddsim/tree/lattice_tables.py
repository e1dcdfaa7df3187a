"""Numba kernels for what lattices come to: trees, gains, ranks of paths, the candidates worth keeping, and faults.

Lattices lie in memory as ``lattice_kernels`` says. All call ``first_nodes`` with the same types, so that it is compiled once for each
type of log-probabilities: Numba takes a 0 that stands in a call for a type of its own.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import math

import numpy as np

from ddsim.jit import njit
from ddsim.tree.checked import FAULTS, MARGIN, NOT_A_NUMBER, POSITIVE, SUM, exp_roughly, sum_exp
from ddsim.tree.kernels import leading_best, write_gains, write_ranks
from ddsim.tree.lattice_kernels import PLACE, first_nodes, longest_row, make_scratch, next_row


@njit(cache=True, nogil=True)
def lattice_tree(logprobs, offsets, nexts, width, first_row, rows, token_ids, shape, values):
    """Fill parents, depths, ranks and tokens, ``shape`` [4, most + 1], and ``values`` [most + 1]; return the nodes but the root.

    ``token_ids``: [L, K] flat of a dense position, one a candidate of sparse ones.
    """
    most = values.shape[0] - 1
    shape[:, 0] = -1
    shape[1, 0] = 0
    values[0] = 0.0
    if most == 0 or rows == 0:
        return 0
    s = make_scratch(most, width if width > 0 else longest_row(offsets, first_row, first_row + rows))
    n = first_nodes(logprobs, offsets, nexts, width, first_row, rows, most, s)[1]
    ids = token_ids if width > 0 else token_ids[offsets[first_row] :]
    write_nodes(s, n, width, ids, shape[0], shape[1], shape[2], shape[3])
    for i in range(n):
        values[i + 1] = s.sorted_values[i]
    return n


@njit(cache=True, nogil=True)
def write_nodes(s, n, width, token_ids, parents, depths, ranks, tokens):
    """Fill the places 1..n of these from the n nodes in order; ``depths[0]`` is 0. ``token_ids``: the position's own."""
    place = s.bucket_of
    children = s.bucket_ends
    place[0] = 0
    children[: n + 1] = 0
    for i in range(n):
        node = s.order[i]
        place[node] = i + 1
        code = s.codes[node]
        parent = code >> 32
        above = place[parent]
        depth = depths[above] + 1
        parents[i + 1] = above
        depths[i + 1] = depth
        ranks[i + 1] = children[above]  # those before it are all written
        children[above] += 1
        at = code & PLACE
        tokens[i + 1] = token_ids[(depth - 1) * width + at - s.starts[parent] if width > 0 else at]


@njit(cache=True, nogil=True)
def dense_tree(logprobs, token_ids, shape, values):
    """`lattice_tree` of one position: ``logprobs`` [rows, K], ``token_ids`` [L, K]."""
    rows, width = logprobs.shape
    if width == 0:
        rows = 0
    nothing, none = np.empty(0, np.int64), np.empty(0, np.int32)
    ids = token_ids.reshape(-1)
    return lattice_tree(logprobs.reshape(-1), nothing, none, width, np.int64(0), rows, ids, shape, values)


@njit(cache=True, nogil=True)
def dense_gains(logprobs, gains):
    """Fill ``gains`` [N] of one position, ``logprobs`` [rows, K]."""
    most = gains.shape[0]
    gains[:] = 0.0
    rows, width = logprobs.shape
    if most == 0 or rows * width == 0:
        return
    nothing, none = np.empty(0, np.int64), np.empty(0, np.int32)
    s = make_scratch(most, width)
    write_gains(s, first_nodes(logprobs.reshape(-1), nothing, none, width, np.int64(0), rows, most, s)[1], gains)


@njit(cache=True, nogil=True)
def gains_and_ranks(logprobs, offsets, nexts, positions, truth, first, last, gains, ranks, chain):
    """Fill gains [P, N], ranks [P, L] and chain [P] for the sparse positions first..last-1; ``positions`` [P + 1]: first rows."""
    most = gains.shape[1]
    s = make_scratch(most, longest_row(offsets, positions[first], positions[last]))
    for p in range(first, last):
        rows = positions[p + 1] - positions[p]
        listed, n = first_nodes(logprobs, offsets, nexts, np.int64(0), positions[p], rows, most, s)
        write_gains(s, n, gains[p])
        chain[p] = leading_best(truth[p])
        write_ranks(s, listed, n, truth[p], True, ranks[p])


@njit(cache=True, nogil=True)
def best_of_row(logprobs, offsets, width, row):
    """Where the best candidate of a row stands, the first of equal ones; -1 if there is none."""
    first = row * width if width > 0 else offsets[row]
    last = first + width if width > 0 else offsets[row + 1]
    found = -1
    best = -np.inf
    for i in range(first, last):
        if logprobs[i] > best:
            best = logprobs[i]
            found = i
    return found


@njit(cache=True, nogil=True)
def kept_candidates(
    logprobs, offsets, nexts, width, positions, horizon, most, first, last, counts, origins, row_of, after
):
    """For positions first..last-1: the candidates that the ``most`` best nodes use, and the chain of best ones to full depth.

    Fill counts [P], and for each of so many candidates, row by row, best first: where it stands in ``logprobs``, the number of its row
    among the rows kept, and that of its next row (-1: none), all [P, most + L].
    """
    rows = 1 + (horizon - 1) * width
    longest = width
    candidates = rows * width
    if width == 0:
        longest = longest_row(offsets, positions[first], positions[last])
        for p in range(first, last):
            rows = max(rows, positions[p + 1] - positions[p])
            candidates = max(candidates, offsets[positions[p + 1]] - offsets[positions[p]])
    s = make_scratch(most, longest)
    used = np.empty(candidates, np.uint8)
    found = np.empty(most + horizon, np.int64)  # places of the candidates used, those of a row best first
    homes = np.empty(most + horizon, np.int64)  # where their rows start
    ends = np.empty(
        candidates, np.int64
    )  # by where a row starts: how many of it are used; later, where the next one goes
    number = np.empty(rows + 1, np.int32)
    for p in range(first, last):
        first_row = p * rows
        if width == 0:
            first_row = positions[p]
            rows = positions[p + 1] - first_row
        begin = first_row * width if width > 0 else offsets[first_row]
        used[:] = 0
        ends[:] = 0
        count = 0
        if most > 0:
            n = first_nodes(logprobs, offsets, nexts, width, first_row, rows, most, s)[1]
            for i in range(n):
                code = s.codes[s.order[i]]
                at = code & PLACE
                if used[at] == 0:
                    used[at] = 1
                    found[count] = at
                    homes[count] = s.starts[code >> 32]
                    ends[homes[count]] += 1
                    count += 1
        row = np.int64(0)
        while row < rows:
            best = best_of_row(logprobs, offsets, width, first_row + row)
            if best < 0:
                break
            if used[best - begin] == 0:  # beyond all nodes wanted: the only one of its row
                found[count] = best - begin
                homes[count] = row * width if width > 0 else offsets[first_row + row] - begin
                ends[homes[count]] += 1
                count += 1
            row = next_row(nexts, width, rows, row, best)
        kept = 0
        total = 0
        for row in range(rows):
            number[row] = -1
            start = row * width if width > 0 else offsets[first_row + row] - begin
            end = start + width if width > 0 else offsets[first_row + row + 1] - begin
            if start < end and ends[start] > 0:
                number[row] = kept
                for i in range(total, total + ends[start]):
                    row_of[p, i] = kept
                    after[p, i] = row
                total += ends[start]
                ends[start] = total - ends[start]
                kept += 1
        number[rows] = -1
        for i in range(count):
            origins[p, ends[homes[i]]] = begin + found[i]
            ends[homes[i]] += 1
        for i in range(count):
            after[p, i] = number[next_row(nexts, width, rows, np.int64(after[p, i]), origins[p, i])]
        counts[p] = count


@njit(cache=True, nogil=True)
def true_paths(token_ids, offsets, nexts, positions, tokens, starts, first, last, paths):
    """Fill paths [P, L] for sequences first..last-1: rank of x[p + d] in the row behind the true tokens before it, -1 from where one
    is absent or past the end."""
    for q in range(first, last):
        for p in range(starts[q], starts[q + 1]):
            paths[p, :] = -1
            row = np.int64(0)
            for d in range(min(paths.shape[1], starts[q + 1] - p - 1)):
                begin = offsets[positions[p] + row]
                end = offsets[positions[p] + row + 1]
                at = begin
                while at < end and token_ids[at] != tokens[p + d + 1]:
                    at += 1
                if at == end:
                    break
                paths[p, d] = at - begin
                row = np.int64(nexts[at])
                if row < 0:
                    break


@njit(cache=True, nogil=True)
def drawn_paths(logprobs, offsets, nexts, positions, uniforms, paths):
    """Fill paths [P, L]: at each depth the candidate whose share of the row holds the uniform number, -1 from where none does."""
    for p in range(paths.shape[0]):
        paths[p, :] = -1
        row = np.int64(0)
        for d in range(paths.shape[1]):
            begin = offsets[positions[p] + row]
            end = offsets[positions[p] + row + 1]
            mass = 0.0
            at = begin
            while at < end:
                mass += math.exp(np.float64(logprobs[at]))
                if uniforms[p, d] < mass:
                    break
                at += 1
            if at == end:
                break
            paths[p, d] = at - begin
            row = np.int64(nexts[at])
            if row < 0:
                break


@njit(cache=True, nogil=True)
def best_after(logprobs, offsets, nexts, positions, paths, best):
    """Fill best [P, L] with the log-probability of the best candidate of each depth behind paths [P, L]; -inf where none is."""
    for p in range(best.shape[0]):
        best[p, :] = -np.inf
        row = np.int64(0)
        for d in range(best.shape[1]):
            at = offsets[positions[p] + row]
            if at == offsets[positions[p] + row + 1]:
                break
            best[p, d] = logprobs[at]
            if paths[p, d] < 0:
                break
            row = np.int64(nexts[at + paths[p, d]])
            if row < 0:
                break


@njit(cache=True, nogil=True)
def row_depths(offsets, nexts, positions, depths):
    """Fill depths [R]: that of its deepest place, 1 for the root's; 0 where nothing leads."""
    depths[:] = 0
    for p in range(positions.shape[0] - 1):
        depths[positions[p]] = 1
        for row in range(positions[p], positions[p + 1]):
            for at in range(offsets[row], offsets[row + 1]):
                if nexts[at] >= 0:
                    after = positions[p] + nexts[at]
                    depths[after] = max(depths[after], depths[row] + 1)


@njit(cache=True, nogil=True)
def row_fault(row, tolerance):
    """Why an unsorted row can't be conditional log-probabilities; 0 if it can."""
    for i in range(row.shape[0]):
        if not row[i] <= 0.0:
            return NOT_A_NUMBER if np.isnan(row[i]) else POSITIVE
    return SUM if sum_exp(row) > 1.0 + tolerance else 0


@njit(cache=True, nogil=True)
def roughly(logprobs, chances):
    """Fill ``chances`` with rough exponentials; say whether any log-probability is NaN or positive."""
    wrong = False
    for i in range(chances.shape[0]):
        wrong |= not logprobs[i] <= 0.0
    for i in range(chances.shape[0]):
        chances[i] = exp_roughly(np.float32(logprobs[i]))
    return wrong


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def sum_of(row):
    """Sum of a row, added in any order."""
    total = np.float32(0.0)
    for i in range(row.shape[0]):
        total += row[i]
    return total


@njit(cache=True, nogil=True)
def first_fault(logprobs, width, tolerance):
    """The first fault of dense rows."""
    chances = np.empty(logprobs.shape[0], np.float32)
    wrong = roughly(logprobs, chances)
    for row in range(logprobs.shape[0] // width if width > 0 else 0):
        at = row * width
        if wrong or not sum_of(chances[at : at + width]) <= 1.0 + tolerance - MARGIN:
            reason = row_fault(logprobs[at : at + width], tolerance)
            if reason > 0:
                return row * FAULTS + reason
    return 0
