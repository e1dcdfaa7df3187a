"""Traces, profiles and cost models that turn out to be something else: one line that says what is wrong and how to get there."""

from __future__ import annotations

import os
from typing import Any

from ddsim.cost import CostModel
from ddsim.errors import DdsimError
from ddsim.profiles import Profile
from ddsim.trace import Trace


def check_trace(function: str, trace: Any, *also: type) -> None:
    """Refuse what isn't a trace, nor of the types ``also``.

    Examples
    --------
    >>> check_trace("plan", "traces/temperature-0")
    Traceback (most recent call last):
    ddsim.errors.DdsimError: plan: trace must be a Trace, is the path 'traces/temperature-0'; open it first, as in ddsim.open_trace(path)
    """
    if not isinstance(trace, (Trace, *also)):
        how = "; open it first, as in ddsim.open_trace(path)" if _is_path(trace) else ""
        raise DdsimError(f"{function}: trace must be a Trace, is {_named(trace)}{how}")


def check_given(function: str, trace: Any, cost: Any, *also: type) -> None:
    """Refuse what isn't a trace (nor of the types ``also``) and a cost model, swapped ones too."""
    if isinstance(trace, (CostModel, Profile)) and isinstance(cost, (Trace, *also)):
        raise DdsimError(f"{function}: trace and cost are swapped; call {function}(trace, cost)")
    check_trace(function, trace, *also)
    if not isinstance(cost, CostModel):
        how = "make one with ddsim.fit_cost or CostModel.from_table"
        if _is_path(cost):
            how = "open it first, as in ddsim.cost.open_cost(path)"
        elif isinstance(cost, Profile):
            how = "fit it first, as in ddsim.fit_cost(profile)"
        raise DdsimError(f"{function}: cost must be a cost model, is {_named(cost)}; {how}")


def check_profile(function: str, profile: Any) -> None:
    """Refuse what isn't a profile."""
    if not isinstance(profile, Profile):
        how = "; open it first, as in ddsim.read_profile(path)" if _is_path(profile) else ""
        raise DdsimError(f"{function}: profile must be a Profile, is {_named(profile)}{how}")


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _named(value: Any) -> str:
    return f"the path {str(value)!r:.60}" if _is_path(value) else f"a {type(value).__name__}"
