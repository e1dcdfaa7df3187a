"""Numba kernels for attention inside a tree: who is whose ancestor, as booleans and in bits."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import numpy as np

from ddsim.jit import njit

_1, _64 = np.uint64(1), np.uint64(64)


@njit(cache=True, nogil=True)
def packed_mask(parents, mask):
    """Fill ``mask`` [nodes, words]: bit j of row i is set where node j is node i or above it."""
    flat = mask.reshape(-1)
    words = np.uint64(mask.shape[1])
    flat[:words] = 0
    flat[0] = 1
    for i in range(_1, np.uint64(parents.shape[0])):
        row = i * words
        above = np.uint64(parents[i]) * words
        for w in range(words):
            flat[row + w] = flat[above + w]
        flat[row + i // _64] |= _1 << i % _64


@njit(cache=True, nogil=True)
def ancestor_mask(parents, mask):
    """Set mask[i, j], all False before, where node j is node i or above it."""
    for i in range(parents.shape[0]):
        node = i
        while node >= 0:
            mask[i, node] = True
            node = parents[node]
