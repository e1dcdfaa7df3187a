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
    "DraftTree": "tree",
    "draft_chain": "tree",
    "draft_tree": "tree",
    "tree_gains": "tree",
    "Trace": "trace",
    "TraceWriter": "trace",
    "open_trace": "trace",
    "Profile": "profiles",
    "read_profile": "profiles",
    "CostModel": "cost",
    "fit_cost": "cost",
    "optimal_budget": "budget",
    "Policy": "policy",
    "Autoregressive": "policy",
    "DFlash": "policy",
    "DDTree": "policy",
    "CaDDTree": "policy",
    "GreedySteps": "policy",
    "RoundRatio": "policy",
    "LongRun": "policy",
    "BestFixed": "policy",
    "Hindsight": "policy",
    "parse_policy": "policy",
    "ReplayResult": "replay",
    "Plan": "replay",
    "replay": "replay",
    "replay_rounds": "replay",
    "default_policies": "replay",
    "plan": "replay",
    "Calibration": "calibration",
    "fit_calibration": "calibration",
    "cross_calibrate": "calibration",
    "reliability": "calibration",
    "positions_of": "positions",
    "simulate": "serving",
    "batch_map": "serving",
    "best_widths": "serving",
    "ServingResult": "serving",
    "Share": "joint",
    "Uniform": "joint",
    "FairRatio": "joint",
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
