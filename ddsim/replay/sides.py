"""What can be compared: recordings, costs, plans and drafters, told by what a folder or a file holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddsim.cost.imports import read_content
from ddsim.cost.model import COST_KIND, CostModel, costs_of
from ddsim.cost.profile import KIND as PROFILE_KIND
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.files.documents import check_header, read_bytes
from ddsim.replay.compare_drafters import Drafter, is_drafter, read_drafter
from ddsim.replay.plan import KIND, SCHEMA_VERSION, Plan
from ddsim.trace.trace import Trace, open_trace

Side = Trace | Profile | CostModel | Plan | Mapping[str, Any] | Drafter

CALLED: tuple[tuple[tuple[type, ...], str], ...] = (
    ((Trace,), "a recording"),
    ((Profile, CostModel), "costs"),
    ((Plan, Mapping), "a plan"),
    ((Drafter,), "a drafter"),
)


def open_side(path: str | os.PathLike[str], kind: str = "auto") -> Side:
    """What a path holds: a recording or a drafter (a folder), costs (a profile, a cost model, or what `read_costs` takes), or a plan.

    Raises
    ------
    DdsimError
        None of them, or damaged.
    """
    folder = Path(path)
    if folder.is_dir() and is_drafter(folder):
        return read_drafter(folder)
    if not folder.is_file():
        return open_trace(folder)
    content: Any = read_content(read_bytes(path), str(path))
    of = content.get("kind") if isinstance(content, dict) else None
    if of == KIND:
        check_header(content, {KIND: SCHEMA_VERSION}, str(path))
        return dict(content)
    if isinstance(of, str) and of.startswith("ddsim-") and of not in (COST_KIND, PROFILE_KIND):
        raise DdsimError(
            f"{path}: holds a {of}, and what can be compared are recordings, profiles and cost models, plans (ddsim plan --json), and drafters"
        )
    return costs_of(content, str(path), kind)


def called(side: Any) -> str:
    """What a side is."""
    for types, name in CALLED:
        if isinstance(side, types):
            return name
    raise DdsimError(f"compare: takes recordings, costs, plans or drafters, not {type(side).__name__}")
