"""Training instructions for the drafter: a seeded mix of code, mathematics, chat, summarising and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ddsim.errors import DdsimError
from ddsim_reference.training.instructions_code import completion, description, other_code, with_body
from ddsim_reference.training.instructions_text import chat, mathematics, other, summarising

#: Share of each kind of instruction. Code is split over four functions, completing stubs being the largest.
MIX: tuple[tuple[str, Callable[[np.random.Generator], str], float], ...] = (
    ("code", completion, 0.27),
    ("code", description, 0.06),
    ("code", with_body, 0.03),
    ("code", other_code, 0.04),
    ("mathematics", mathematics, 0.20),
    ("chat", chat, 0.20),
    ("summarising", summarising, 0.10),
    ("other", other, 0.10),
)

#: Most instructions that one call can be asked for; beyond this small families run out of distinct ones.
MAX_COUNT = 80_000

# Runs of eight one-digit numbers: HumanEval's examples have many, so chance would repeat one now and then.
_COUNTING = re.compile(r"(?:\b\d\W+){7}\d\b")
_TRIES = 50  # draws in a row that repeat before a family counts as exhausted


def training_instructions(count: int, seed: int = 0) -> list[str]:
    """
    Distinct instructions for a chat model, whose replies become the drafter's training text.

    Parameters
    ----------
    count
        Number of instructions, from 1 to `MAX_COUNT`.
    seed
        The same count and seed always give the same list, on every machine.

    Returns
    -------
    list of str
        User messages in random order: 40 % programming, 20 % mathematics, 20 % chat, 10 % summarising, 10 %
        lists, stories and others (`MIX`).

    Raises
    ------
    DdsimError
        If `count` is out of range.

    Examples
    --------
    >>> len(set(training_instructions(100, seed=1)))
    100
    """
    return [text for _, text in labelled_instructions(count, seed)]


def labelled_instructions(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Like `training_instructions`, as pairs of (kind, instruction); kinds are the names in `MIX`."""
    if not 1 <= count <= MAX_COUNT:
        raise DdsimError(f"training instructions: count must be from 1 to {MAX_COUNT}, not {count}")
    rng = np.random.default_rng(seed)
    ends = np.round(np.cumsum([share for _, _, share in MIX]) * count).astype(int)
    seen: set[str] = set()
    labelled: list[tuple[str, str]] = []
    for (kind, make, _), end in zip(MIX, ends, strict=True):
        misses = 0
        while len(labelled) < end:
            text = make(rng)
            if text in seen or _COUNTING.search(text):
                misses += 1
                if misses > _TRIES * count:
                    raise DdsimError(f"training instructions: {kind} has too few distinct ones")
                continue
            seen.add(text)
            labelled.append((kind, text))
    return [labelled[int(i)] for i in rng.permutation(len(labelled))]


def word_ngrams(text: str, n: int = 8) -> Iterator[tuple[str, ...]]:
    """All runs of n words (letters, digits and underscores, in lower case) of a text."""
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[i:] for i in range(n)), strict=False)


def shared_ngrams(instructions: Iterable[str], evaluation: Iterable[str], n: int = 8) -> dict[str, str]:
    """
    Instructions that share a run of n words with an evaluation text: {instruction: the shared words}.

    Examples
    --------
    >>> shared_ngrams(["Count to ten, then stop."], ["Now count to ten!"], n=3)
    {'Count to ten, then stop.': 'count to ten'}
    """
    forbidden = {gram for text in evaluation for gram in word_ngrams(text, n)}
    hits = {}
    for instruction in instructions:
        gram = next((gram for gram in word_ngrams(instruction, n) if gram in forbidden), None)
        if gram is not None:
            hits[instruction] = " ".join(gram)
    return hits
