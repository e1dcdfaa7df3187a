"""The requests that are served: a trace's sequences in memory, and the orders in which they are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.replay.served import SHUFFLES
from ddsim.trace.cache import positions_of
from ddsim.trace.calibration import Calibration
from ddsim.trace.rounds import Positions
from ddsim.trace.trace import Trace


def _in_memory(trace: Trace | Positions, calibration: Calibration | None) -> Positions:
    """Positions with all arrays in memory, without sequences in which no round starts."""
    if isinstance(trace, Positions):
        if calibration is not None:
            raise DdsimError("calibration: positions are calibrated already; give it to positions_of instead")
        positions = trace
    else:
        positions = positions_of(trace, calibration=calibration)
    if not (positions.tokens > 0).any():
        raise DdsimError("the trace has no sequence of two tokens or more: nothing to decode")
    whole = positions.block(0, positions.sequences)
    keep = np.flatnonzero(whole.tokens > 0)
    if len(keep) == whole.sequences:
        return whole
    rows = np.concatenate([np.arange(whole.starts[s], whole.starts[s + 1]) for s in keep])
    return Positions(
        whole.gains[rows],  # type: ignore[index]
        whole.ranks[rows],  # type: ignore[index]
        whole.nodes[rows],
        whole.chain[rows],
        whole.chain_expected[rows],  # type: ignore[index]
        whole.context[rows],
        np.concatenate([[0], np.cumsum(np.diff(whole.starts)[keep])]),
        tuple(whole.prompt_id[s] for s in keep),
        tuple(whole.workload[s] for s in keep),
        whole.temperature[keep],
        whole.fingerprint,
    )


def _queues(positions: Positions, count: int, repeats: int, seed: int) -> NDArray[np.int64]:
    """int64 [SHUFFLES + repeats, count]: sequences in the order in which they are taken.

    The first rows take every sequence before one is taken again.
    """
    rng = np.random.default_rng(seed)
    prompts: dict[tuple[str, str], list[int]] = {}
    for s in range(positions.sequences):
        names = (positions.workload[s], positions.prompt_id[s]) if positions.prompt_id else ("", str(s))
        prompts.setdefault(names, []).append(s)
    strata: dict[str, list[list[int]]] = {}
    for (workload, _), members in prompts.items():
        strata.setdefault(workload, []).append(members)

    def filled(draw: Any) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = []
        while sum(map(len, parts)) < count:
            parts.append(rng.permutation(np.array(draw(), np.int64)))
        return np.concatenate(parts)[:count]

    def resampled() -> list[int]:
        return [s for of in strata.values() for k in rng.integers(0, len(of), len(of)) for s in of[k]]

    rows = [filled(lambda: range(positions.sequences)) for _ in range(SHUFFLES)]
    for _ in range(repeats):
        drawn = resampled()  # one sample of prompts a repeat, taken again and again if there are more requests
        rows.append(filled(lambda drawn=drawn: drawn))
    return np.array(rows)
