"""Path corrections: rows of marginals become lattices that know the token before.

Given token a, candidate i of the depth before, candidate b of depth d gets, of its own marginal q_d(b),

    p_d(b | a) = exp(s_d(a, b)) / (sum_b' exp(s_d(a, b')) + r_d exp(c_d + w_rest off)),
    s_d(a, b) = t_d log q_d(b) + w . x_d(a, b),

where r_d is what the listed candidates leave to others, off is 1 if a isn't the best of its depth (i > 0), and x are:

0. off log q_d(b);
1. log (N_ab + k) / (E_ab + k): how often b followed a in the recording against how often the marginals said;
2. the same, counted where a wasn't the best of its depth, if off;
3. as 1, and 4. as 2, of a and all tokens of b's class;
5. as 2, of the class of a and the class of b;
6. log (1 + q_d(a) q_(d+1)(b) / q_(d-1)(a) q_d(b)): the draft may be one token ahead;
7. log (1 + q_(d-2)(a) q_(d-1)(b) / q_(d-1)(a) q_d(b)): or one behind;
8. 1 if a = b;
9. log ((n_ab + q_d(b)) / ((n_a + 1) q_d(b))): how often a was followed by b in the answer so far;
10. the same behind two tokens, a and the one before it (of candidates, the best one);
11. off, and 12. -log q_(d-1)(a), if b is the best candidate of depth d.

Tokens are of one class if their texts start alike: with a space or without, then a digit, a letter, a capital or the same sign.
So the proposal stays a function of the committed text. The candidates stay too, but for those beyond the first `WIDTH` of a depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.arrays import numbers, plain, whole_numbers
from ddsim.errors import DdsimError
from ddsim.files.documents import array, integer, mapping, need, number, text
from ddsim.text import brief
from ddsim.threads import split
from ddsim.trace.path_kernels import FEATURES, Table, corrected, hashed
from ddsim.tree.checked import even_offsets
from ddsim.tree.kernels import kept_pairs
from ddsim.tree.lattice import Lattice
from ddsim.tree.lattices import Lattices
from ddsim.tree.proposal import Rows

WIDTH = 16
"""Candidates of a depth, K, between which transitions are made."""


LARGEST = 2**31 - 1


MOST_TOKENS = 1 << 24
"""No vocabulary is larger; a number typed wrongly would only be refused by the allocator."""


def kept_candidates(
    logprobs: NDArray[Any], offsets: NDArray[np.int64], horizon: int, max_budget: int
) -> NDArray[np.int32]:
    """[P, L] leading candidates of each row that product trees of ``max_budget`` nodes use, the best one at least."""
    flat, edges = plain(logprobs, np.float32), plain(offsets, np.int64)
    kept = np.empty(((len(edges) - 1) // horizon, horizon), np.int32)
    split(lambda a, b: kept_pairs(flat, edges, horizon, max_budget, a, b, kept), len(kept), 256)
    full = np.flatnonzero(np.diff(edges) > 0)
    there = np.zeros(len(edges) - 1, np.int32)
    there[full] = flat[edges[:-1][full]] > -np.inf
    return np.maximum(kept, there.reshape(kept.shape))


@dataclass(frozen=True, eq=False)
class PathCorrection:
    """A fitted correction of rows by the token before (equation: see the module)."""

    weights: NDArray[np.float64]
    """[14] of the features, the last that of unlisted tokens."""
    powers: NDArray[np.float64]
    """[L] of the marginals, t."""
    rests: NDArray[np.float64]
    """[L] biases of unlisted tokens, c."""
    classes: NDArray[np.int32]
    """[V] class of each token, 0 for unknown ones, as tokens beyond these are."""
    before: NDArray[np.int32]
    """[M] first of each pair that is kept, ascending: a token, or -1 - k for class k."""
    after: NDArray[np.int32]
    """[M] second, ascending with the same first."""
    hundredths: NDArray[np.int32]
    """[M, 2] log-ratios of the pair, times 100: of all rows, of those off the best path."""
    max_budget: int
    """Rows are cut to what product trees of so many nodes use, as the recording's were that it was fitted on."""

    @property
    def horizon(self) -> int:
        """Depths, L."""
        return len(self.powers)

    @cached_property
    def _model(self) -> tuple[Any, ...]:
        """As the kernel takes it: the table of pairs, then the numbers."""
        room = 1 << (2 * len(self.before) + 1).bit_length()  # at most half of it is taken
        pairs, shift = np.empty((room, 2), np.int64), np.uint64(65 - room.bit_length())
        numbers = (plain(values, np.int32) for values in (self.before, self.after, self.hundredths))
        hashed(*numbers, pairs, shift)
        table = Table(plain(self.classes, np.int32), pairs, shift)
        return (table, *(plain(values, np.float64) for values in (self.weights, self.powers, self.rests)))

    def lattices(self, rows: Rows, tokens: NDArray[np.int32], starts: NDArray[np.int64], max_budget: int) -> Lattices:
        """The lattices of rows of marginals.

        Parameters
        ----------
        rows : Rows
            Of P positions.
        tokens : int32 [P]
            Committed tokens.
        starts : int64 [S + 1]
            Where each answer starts.
        max_budget : int
            What trees of more nodes use is left out; the chain of best candidates stays whole.

        Returns
        -------
        Lattices

        Raises
        ------
        DdsimError
            Rows of another horizon.
        """
        self._check_horizon(rows.horizon)
        kept = kept_candidates(rows.logprobs, rows.offsets, self.horizon, self.max_budget)
        committed, edges = plain(tokens, np.int32), plain(rows.offsets, np.int64)
        parts = []
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            for first in range(a, b, 1024):  # 14 kB of transitions a position
                last = min(first + 1024, b)
                cut = edges[first * rows.horizon : last * rows.horizon + 1]
                answer = committed[a:last]
                dense = self._dense(rows.token_ids, rows.logprobs, cut, kept[first:last], first - a, answer)
                parts.append(Lattices.from_dense(*dense, max_budget))
        return Lattices.joined(rows.horizon, parts)

    def lattice(self, token_ids: ArrayLike, logprobs: ArrayLike, committed: ArrayLike) -> Lattice:
        """The lattice of one position: what a decoder drafts from, equal to what `lattices` makes of a recording.

        Parameters
        ----------
        token_ids : int [L, K]
            What the drafter proposes, uncut: the best candidates of each depth, at least as many as were recorded (`max_budget`).
        logprobs : float32 [L, K]
            Rounded by `round_logprobs`, as recorder and decoder do; descending; -inf for none.
        committed : int [T]
            The answer's tokens so far, without the prompt's, the last one the root: what a recording has as ``tokens``.

        Returns
        -------
        Lattice
            Of the first `WIDTH` candidates a depth; -1 and -inf where there are fewer.

        Raises
        ------
        DdsimError
            Rows of another horizon, or no committed token.
        """
        ids, values = plain(whole_numbers(token_ids, "token_ids"), np.int32), numbers(logprobs, "logprobs")
        answer = plain(whole_numbers(committed, "committed"), np.int32)
        if ids.ndim != 2 or values.shape != ids.shape or answer.ndim != 1 or not len(answer):
            raise DdsimError(
                f"token_ids, logprobs and committed have shapes {ids.shape}, {values.shape} and {answer.shape}; a path correction "
                "needs [horizon, candidates] twice and at least one token"
            )
        self._check_horizon(len(ids))
        flat, edges = plain(values.reshape(-1), np.float32), even_offsets(*ids.shape)
        kept = kept_candidates(flat, edges, self.horizon, self.max_budget)
        found, first, steps = self._dense(ids.reshape(-1), flat, edges, kept, len(answer) - 1, answer)
        return Lattice(found[0], first[0], steps[0], check=False)

    def _check_horizon(self, horizon: int) -> None:
        if horizon != self.horizon:
            raise DdsimError(f"calibration: made for horizon {self.horizon}, but given rows of horizon {horizon}")

    def _dense(
        self,
        token_ids: NDArray[np.int32],
        logprobs: NDArray[Any],
        offsets: NDArray[np.int64],
        kept: NDArray[np.int32],
        base: int,
        answer: NDArray[np.int32],
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """What `Lattices.from_dense` takes, of the positions of one answer from ``base`` on."""
        count, horizon = kept.shape
        ids = np.empty((count, horizon, WIDTH), np.int32)
        first = np.empty((count, WIDTH), np.float32)
        steps = np.empty((count, horizon - 1, WIDTH, WIDTH), np.float32)
        rows = plain(token_ids, np.int32), plain(logprobs, np.float32), plain(offsets, np.int64), plain(kept, np.int32)
        vocab = int(answer.max()) + 1
        given = (*rows, base, answer, vocab, *self._model)
        split(lambda a, b: corrected(*given, a, b, ids, first, steps), count, 256)
        return ids, first, steps

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: the tokens of each class from 1, and the pairs of a first number, "second:all:off" each, as text."""
        members = [
            " ".join(map(str, np.flatnonzero(self.classes == k))) for k in range(1, self.classes.max(initial=0) + 1)
        ]
        edges = [0, *(np.flatnonzero(np.diff(self.before)) + 1).tolist(), len(self.before)]
        seconds = [f"{b}:{v}:{w}" for b, (v, w) in zip(self.after.tolist(), self.hundredths.tolist(), strict=True)]
        pairs = {str(self.before[a]): " ".join(seconds[a:b]) for a, b in pairwise(edges) if a < b}
        numbers = {name: getattr(self, name).tolist() for name in ("weights", "powers", "rests")}
        return numbers | {"max_budget": self.max_budget, "classes": members, "pairs": pairs}

    @classmethod
    def from_json(cls, value: Any, where: str) -> PathCorrection:
        """Read what `to_json` made.

        Raises
        ------
        DdsimError
            Anything else; the line names the place.
        """
        given = mapping(value, where, ("weights", "powers", "rests", "max_budget", "classes", "pairs"))

        def floats(key: str) -> NDArray[np.float64]:
            place = f"{where}: {key}"
            values = array(need(given, key, where), place)
            return np.array([signed(v, place) for v in values], np.float64)

        def signed(v: Any, place: str) -> float:
            size = number(abs(v) if type(v) in (int, float) else v, place, positive=False)
            if size > 1e3:
                raise DdsimError(f"{place}: {v!r} is beyond 1,000, as no fitted number is")
            return float(v)

        weights, powers, rests = (floats(key) for key in ("weights", "powers", "rests"))
        if len(weights) != FEATURES or not len(powers) or len(rests) != len(powers):
            raise DdsimError(
                f"{where}: {len(weights)} weights, {len(powers)} powers and {len(rests)} rests; a path correction has {FEATURES} "
                "weights, and of the others one a depth each"
            )
        most = integer(need(given, "max_budget", where), f"{where}: max_budget", 1)
        classes = _classes(array(need(given, "classes", where), f"{where}: classes"), f"{where}: classes")
        pairs: list[list[int]] = []
        for key, line in mapping(need(given, "pairs", where), f"{where}: pairs").items():
            place = f"{where}: pairs: {brief(key)}"
            try:
                found = [[int(key), *map(int, pair.split(":"))] for pair in text(line, place).split(" ")]
            except ValueError:
                found = [[]]
            if any(len(pair) != 4 for pair in found):
                raise DdsimError(f"{place}: must be a number, and pairs of whole numbers, second:all:off")
            pairs += found
        if any(not -LARGEST < v < LARGEST for pair in pairs for v in pair):
            raise DdsimError(f"{where}: pairs: a number beyond 31 bits")
        table = np.array(pairs, np.int64).reshape(-1, 4)
        before, after, hundredths = table[:, 0], table[:, 1], table[:, 2:]
        if np.abs(hundredths).max(initial=0) > 10_000:
            raise DdsimError(f"{where}: pairs: a log-ratio beyond 100")
        if min(before.min(initial=0), after.min(initial=0)) < -1 - classes.max(initial=0):
            raise DdsimError(f"{where}: pairs: a class that no token has")
        if np.any((np.diff(before) < 0) | ((np.diff(before) == 0) & (np.diff(after) <= 0))):
            raise DdsimError(f"{where}: pairs: numbers must rise, and each pair stand once")
        numbers: NDArray[np.int32] = table.astype(np.int32)
        pair, ratios = np.ascontiguousarray(numbers[:, :2].T), np.ascontiguousarray(numbers[:, 2:])
        return cls(weights, powers, rests, classes, pair[0], pair[1], ratios, most)


def _classes(members: list[Any], where: str) -> NDArray[np.int32]:
    """[V] class of each token, from the tokens of the classes from 1."""
    found: dict[int, int] = {}
    for k, line in enumerate(members):
        try:
            tokens = [int(token) for token in text(line, where).split(" ")]
        except ValueError:
            raise DdsimError(f"{where}: must be whole numbers, the tokens of a class each") from None
        if not 0 <= min(tokens) <= max(tokens) < MOST_TOKENS:
            raise DdsimError(f"{where}: a token below 0 or above {MOST_TOKENS:,}")
        if any(token in found for token in tokens):
            raise DdsimError(f"{where}: a token of two classes")
        found |= dict.fromkeys(tokens, k + 1)
    classes = np.zeros(max(found, default=-1) + 1, np.int32)
    classes[list(found)] = list(found.values())
    return classes
