"""Templates of instructions: gzipped JSON files in ``prompts``, whose texts have fields in braces."""

from __future__ import annotations

import gzip
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
    path = Path(__file__).parent / "prompts" / f"{name}.json.gz"
    return SimpleNamespace(**json.loads(gzip.decompress(path.read_bytes())))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly (numpy's own choice would turn tuples into arrays)."""
    return options[int(rng.integers(len(options)))]
