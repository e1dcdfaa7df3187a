"""ddsim: how big should a draft tree be? The public names, each imported when it is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

#: Public name -> module that defines it. NumPy and Numba load only when a name is asked for.
_HOME = {
    "DdsimError": "errors",
    "DraftTree": "tree.trees",
    "draft_chain": "tree.trees",
    "draft_tree": "tree.trees",
    "tree_gains": "tree.trees",
    "Trace": "trace.trace",
    "TraceWriter": "trace.writer",
    "open_trace": "trace.trace",
    "Profile": "cost.profile",
    "read_profile": "cost.profile",
    "CostModel": "cost.model",
    "fit_cost": "cost.model",
    "optimal_budget": "policy.choose",
    "Policy": "policy.contract",
    "Autoregressive": "policy.rules",
    "DFlash": "policy.rules",
    "DDTree": "policy.rules",
    "CaDDTree": "policy.rules",
    "GreedySteps": "policy.rules",
    "RoundRatio": "policy.rules",
    "LongRun": "policy.rules",
    "BestFixed": "policy.rules",
    "Hindsight": "policy.rules",
    "parse_policy": "policy.parse",
    "ReplayResult": "replay.replay",
    "Plan": "replay.plan",
    "replay": "replay.replay",
    "replay_rounds": "replay.replay",
    "default_policies": "replay.replay",
    "plan": "replay.plan",
    "Calibration": "trace.calibration",
    "fit_calibration": "trace.calibrate",
    "cross_calibrate": "trace.calibrate",
    "reliability": "trace.reliability",
    "positions_of": "trace.cache",
    "simulate": "replay.serving",
    "batch_map": "replay.maps",
    "best_widths": "replay.maps",
    "ServingResult": "replay.serving",
    "Share": "policy.batch",
    "Uniform": "policy.batch",
    "FairRatio": "policy.batch",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ddsim' has no attribute {name!r}")
    value = getattr(import_module(f"ddsim.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """Keeps ``ddsim.replay`` the function: importing the module ``ddsim.replay`` would else put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
