"""Traces in memory: what users pass for one sequence or for several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import numbers
from ddsim.errors import DdsimError
from ddsim.trace.checks import _is_row, _listed
from ddsim.trace.folded import Folded
from ddsim.trace.schema import SequenceInfo, _check_new, _count, _describe, _Rows


class Memory:
    """Sequences in memory."""

    def __init__(self, infos: list[SequenceInfo], rows: list[_Rows | Folded]) -> None:
        self.infos = infos
        self._rows = rows

    def load(self, wanted: Sequence[int]) -> Iterator[_Rows | Folded]:
        return (self._rows[i] for i in wanted)

    def texts(self, wanted: Sequence[int]) -> Iterator[NDArray[Any]]:
        return (self._rows[i].tokens for i in wanted)


class Names:
    """What sequences are called, a value each."""

    def __init__(self, spread: Any, workload: Any, prompt_id: Any, context0: Any, temperature: Any) -> None:
        self.workloads = spread("workload", workload)
        self.contexts = spread("context0", context0)
        self.temperatures = spread("temperature", temperature)
        self.prompts = (
            [str(i) for i in range(len(self.workloads))] if prompt_id is None else spread("prompt_id", prompt_id)
        )

    def describe(self, parts: Sequence[_Rows | Folded]) -> list[SequenceInfo]:
        """What is known of sequences of this content; none may stand twice."""
        infos, seen = [], set[tuple[str, str, float]]()
        for i, part in enumerate(parts):
            where, prompt = f"sequence {i}", self.prompts[i]
            name = prompt if isinstance(prompt, str) else str(_count(where, "prompt_id", prompt))
            before = _count(where, "context0", self.contexts[i])
            info = _describe(where, self.workloads[i], name, self.temperatures[i], before, part)
            _check_new(seen, info.workload, info.prompt_id, info.temperature, where)
            infos.append(info)
        return infos


def several(**arrays: Any) -> tuple[list[list[Any]], Any]:
    """Arrays of one sequence or of several, as those of several; and what gives each sequence its value of a name."""
    tokens = arrays["tokens"]
    if _is_row(tokens[0]) if isinstance(tokens, (list, tuple)) and tokens else getattr(tokens, "ndim", 1) == 2:
        given = [_listed(name, value) for name, value in arrays.items()]
    else:
        given = [[value] for value in arrays.values()]
    count = len(given[0])
    if count == 0 or any(len(one) != count for one in given):
        others = " and ".join(f"{len(one)} of {name}" for name, one in list(zip(arrays, given, strict=True))[1:])
        raise DdsimError(f"{count} sequences of tokens, {others}: must be equally many, at least one")

    def spread(name: str, value: Any) -> list[Any]:
        values = _listed(name, value) if _is_row(value) else [value] * count
        if len(values) != count:
            raise DdsimError(f"{name}: {len(values)} values for {count} sequences")
        return values

    return given, spread


def rank_of(axes: int, name: str, value: Any) -> Any:
    """An array of so many axes."""
    array = numbers(value, name)
    if array.ndim != axes:
        raise DdsimError(f"{name}: shape {array.shape}, must have {axes} axes")
    return array


def vocabulary(size: int | None, *tokens: Any) -> int:
    """The vocabulary's size, by default the largest token + 1."""
    if size is not None:
        return size
    return 1 + max(0, *(int(np.max(numbers(one, "tokens"), initial=0)) for many in tokens for one in many))
