"""Arguments that turn out to be something else: one line that says what is wrong and how to get there."""

from __future__ import annotations

from typing import Any

from ddsim.arrays import _is_path, _named
from ddsim.cost.model import CostModel
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.trace.trace import Trace, check_trace


def check_given(function: str, trace: Any, cost: Any, *also: type) -> None:
    """Refuse what isn't a trace (nor of the types ``also``) and a cost model, swapped ones too."""
    if isinstance(trace, (CostModel, Profile)) and isinstance(cost, (Trace, *also)):
        raise DdsimError(f"{function}: trace and cost are swapped; call {function}(trace, cost)")
    check_trace(function, trace, *also)
    if not isinstance(cost, CostModel):
        how = "make one with ddsim.fit_cost or CostModel.from_table"
        if _is_path(cost):
            how = "open it first, as in ddsim.cost.model.open_cost(path)"
        elif isinstance(cost, Profile):
            how = "fit it first, as in ddsim.fit_cost(profile)"
        raise DdsimError(f"{function}: cost must be a cost model, is {_named(cost)}; {how}")


def measured_on(provenance: dict[str, Any]) -> str | None:
    """The engine that a profile's provenance names, as `ddsim.replay.engines.ENGINES` spells it where that knows it; None if it names none.

    Examples
    --------
    >>> measured_on({"engine": "vLLM 0.26.0"}), measured_on({"engine": {"name": "TensorRT-LLM"}}), measured_on({})
    ('vllm', 'tensorrt-llm', None)
    """
    named = provenance.get("engine")
    if isinstance(named, dict):
        named = named.get("name")
    words = named.lower().split() if isinstance(named, str) else []
    return words[0] if words else None
