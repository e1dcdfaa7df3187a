"""Lattices: candidates a depth, and the log-probability of each given each candidate before it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers, plain, whole_numbers
from ddsim.errors import DdsimError
from ddsim.tree.checked import FAULTS, NOT_A_NUMBER, POSITIVE, SUM
from ddsim.tree.lattice_tables import first_fault
from ddsim.tree.rows import ROW_SUM_TOLERANCE
from ddsim.tree.shown import ShownLattice

_REASONS = {
    NOT_A_NUMBER: "log-probabilities hold NaN; every candidate needs a number, -inf if it is absent",
    POSITIVE: "log-probabilities are positive; they are natural logarithms of probabilities, at most 0",
    SUM: f"probabilities sum above 1 + {ROW_SUM_TOLERANCE:g}; normalise each row by log-softmax",
}


class Lattice(ShownLattice):
    """What a drafter proposes that knows the token before: K candidates a depth, and transitions between those of neighbouring depths.

    A node of its trees is a path of candidates; its log-probability is the float64 sum of ``first`` and the transitions along it.
    The rank of a candidate is its place among those that follow the same candidate, most probable first, equal ones by index. So a
    lattice whose transitions are the same behind every candidate, in descending order, has the trees of rows of marginals.

    Parameters
    ----------
    token_ids : int [L, K]
        Candidates of each depth.
    first : float32 or float64 [K]
        Log-probabilities of the candidates of depth 1; -inf: absent.
    transitions : float32 or float64 [L - 1, K, K]
        ``transitions[d, i, j]``: log-probability of candidate j of depth d + 2 given candidate i of depth d + 1; -inf: absent. Rows
        sum to at most 1, in any order.
    check : bool
        Refuse rows that can't be probabilities. Leave it out where they are known to be sound and microseconds count.

    Raises
    ------
    DdsimError
        Shapes that don't fit together, or a row that can't be conditional log-probabilities (named).

    Examples
    --------
    >>> import ddsim
    >>> given_a, given_b = [0.9, 0.1], [0.2, 0.8]
    >>> lattice = ddsim.Lattice([[7, 8], [5, 6]], np.log([0.6, 0.4]), np.log([[given_a, given_b]]))
    >>> tree = ddsim.draft_tree(lattice, 4)
    >>> tree.tokens.tolist(), tree.parents.tolist()
    ([-1, 7, 5, 8, 6], [-1, 0, 1, 0, 3])
    """

    __slots__ = ("rows", "token_ids")

    rows: NDArray[Any]
    """[1 + (L - 1) * K, K] ``first``, then ``transitions`` row by row; [0, K] without depths."""
    token_ids: NDArray[np.int32]
    """[L, K]"""

    def __init__(self, token_ids: ArrayLike, first: ArrayLike, transitions: ArrayLike, *, check: bool = True) -> None:
        ids: Any = token_ids if _is(token_ids, "i") else plain(whole_numbers(token_ids, "token_ids"), np.int32)
        chances, steps = numbers(first, "first"), numbers(transitions, "transitions")
        if ids.ndim != 2:
            raise DdsimError(f"token_ids has shape {ids.shape}; a lattice needs [horizon, candidates]")
        horizon, width = ids.shape
        if chances.shape != (width,) or (steps.shape != (horizon - 1, width, width) and (horizon > 1 or steps.size)):
            raise DdsimError(
                f"first has shape {chances.shape} and transitions {steps.shape}; token_ids [{horizon}, {width}] "
                f"needs ({width},) and {(max(horizon - 1, 0), width, width)}"
            )
        narrow = chances.dtype.char in "ef" and steps.dtype.char in "ef"
        self.token_ids = ids
        self.rows = np.empty((1 + (horizon - 1) * width if horizon else 0, width), np.float32 if narrow else np.float64)
        if horizon:
            self.rows[0] = chances
        if horizon > 1:
            self.rows[1:] = steps.reshape((horizon - 1) * width, width)
        if check:
            fault = first_fault(self.rows.reshape(-1), width, ROW_SUM_TOLERANCE)
            if fault:
                raise self._refused(fault)

    @classmethod
    def from_marginals(cls, token_ids: ArrayLike, logprobs: ArrayLike) -> Self:
        """The lattice of rows of marginals [L, K]: each row behind every candidate before it.

        Examples
        --------
        >>> Lattice.from_marginals([[7, 8], [5, 6]], [[-0.5, -1.5], [-0.25, -2.0]]).transitions.tolist()
        [[[-0.25, -2.0], [-0.25, -2.0]]]
        """
        rows = numbers(logprobs, "logprobs")
        if rows.ndim != 2 or not len(rows):
            raise DdsimError(f"logprobs has shape {rows.shape}; one position needs [horizon, candidates]")
        return cls(token_ids, rows[0], np.repeat(rows[1:, None], rows.shape[1], axis=1))

    @property
    def horizon(self) -> int:
        """Depths, L."""
        return len(self.token_ids)

    @property
    def width(self) -> int:
        """Candidates a depth, K."""
        return self.token_ids.shape[1]

    @property
    def first(self) -> NDArray[Any]:
        """[K] log-probabilities of the candidates of depth 1."""
        return self.rows[0] if self.horizon else np.full(self.width, -np.inf)

    @property
    def transitions(self) -> NDArray[Any]:
        """[L - 1, K, K] log-probabilities of depths 2..L given the candidate before."""
        return self.rows[1:].reshape(max(self.horizon - 1, 0), self.width, self.width)

    def chain(self) -> NDArray[np.int64]:
        """Best candidates of depths 1, 2, ..., each given the one before; ends where none is left."""
        found: list[int] = []
        row = 0
        while len(found) < self.horizon and self.width:
            best = int(np.argmax(self.rows[row]))
            if self.rows[row, best] == -np.inf:
                break
            row = 1 + len(found) * self.width + best
            found.append(best)
        return np.array(found, np.int64)

    def _refused(self, fault: int) -> DdsimError:
        """What is wrong, from the fault that a kernel found."""
        row, reason = divmod(fault, FAULTS)
        if row == 0:
            return DdsimError(f"first: {_REASONS[reason]}")
        depth, candidate = divmod(row - 1, self.width)
        return DdsimError(f"transitions[{depth}, {candidate}]: {_REASONS[reason]}")


def _is(value: Any, kind: str) -> bool:
    """Whether an array is as kernels take it already."""
    return type(value) is np.ndarray and value.dtype.char == kind and value.flags.carray
