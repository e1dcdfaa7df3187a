"""Templates of instructions: JSON files in ``prompts``, whose texts have fields in braces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@cache
def templates(name: str) -> SimpleNamespace:
    """The tables of a file, as attributes."""
    path = Path(__file__).parent / "prompts" / f"{name}.json"
    return SimpleNamespace(**json.loads(path.read_text(encoding="utf-8")))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly (numpy's own choice would turn tuples into arrays)."""
    return options[int(rng.integers(len(options)))]
