"""ddsim: how big should a draft tree be? The public names, each imported when it is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what _HOME says once more, for editors and type checkers
    from ddsim import plot as plot
    from ddsim.cost.model import CostModel as CostModel
    from ddsim.cost.model import fit_cost as fit_cost
    from ddsim.cost.profile import Profile as Profile
    from ddsim.cost.profile import read_profile as read_profile
    from ddsim.errors import DdsimError as DdsimError
    from ddsim.policy.batch import FairRatio as FairRatio
    from ddsim.policy.batch import Share as Share
    from ddsim.policy.batch import Uniform as Uniform
    from ddsim.policy.choose import optimal_budget as optimal_budget
    from ddsim.policy.contract import Policy as Policy
    from ddsim.policy.engine_rules import AdaptiveSteps as AdaptiveSteps
    from ddsim.policy.engine_rules import AdaptiveVerification as AdaptiveVerification
    from ddsim.policy.engine_rules import DSpark as DSpark
    from ddsim.policy.engine_rules import OnChain as OnChain
    from ddsim.policy.parse import parse_policy as parse_policy
    from ddsim.policy.rules import Autoregressive as Autoregressive
    from ddsim.policy.rules import BestChain as BestChain
    from ddsim.policy.rules import BestFixed as BestFixed
    from ddsim.policy.rules import BestSchedule as BestSchedule
    from ddsim.policy.rules import CaDDTree as CaDDTree
    from ddsim.policy.rules import Chain as Chain
    from ddsim.policy.rules import DDTree as DDTree
    from ddsim.policy.rules import DFlash as DFlash
    from ddsim.policy.rules import GreedySteps as GreedySteps
    from ddsim.policy.rules import Hindsight as Hindsight
    from ddsim.policy.rules import LongRun as LongRun
    from ddsim.policy.rules import RoundRatio as RoundRatio
    from ddsim.policy.rules import Schedule as Schedule
    from ddsim.replay.arrivals import Arrivals as Arrivals
    from ddsim.replay.arrivals import read_arrivals as read_arrivals
    from ddsim.replay.compare import Comparison as Comparison
    from ddsim.replay.compare import compare as compare
    from ddsim.replay.compare_costs import CostComparison as CostComparison
    from ddsim.replay.compare_drafters import DrafterComparison as DrafterComparison
    from ddsim.replay.compare_plans import PlanComparison as PlanComparison
    from ddsim.replay.contest import Contest as Contest
    from ddsim.replay.contest import contest as contest
    from ddsim.replay.engine_plan import engine_plan as engine_plan
    from ddsim.replay.load import serve_load as serve_load
    from ddsim.replay.load_map import load_map as load_map
    from ddsim.replay.loaded import LoadResult as LoadResult
    from ddsim.replay.maps import batch_map as batch_map
    from ddsim.replay.maps import best_widths as best_widths
    from ddsim.replay.plan import Plan as Plan
    from ddsim.replay.plan import plan as plan
    from ddsim.replay.replay import ReplayResult as ReplayResult
    from ddsim.replay.replay import default_policies as default_policies
    from ddsim.replay.replay import replay as replay
    from ddsim.replay.replay import replay_rounds as replay_rounds
    from ddsim.replay.served import ServingResult as ServingResult
    from ddsim.replay.serving import simulate as simulate
    from ddsim.trace.cache import positions_of as positions_of
    from ddsim.trace.calibrate import cross_calibrate as cross_calibrate
    from ddsim.trace.calibrate import fit_calibration as fit_calibration
    from ddsim.trace.calibration import Calibration as Calibration
    from ddsim.trace.reliability import reliability as reliability
    from ddsim.trace.trace import Trace as Trace
    from ddsim.trace.trace import open_trace as open_trace
    from ddsim.trace.writer import TraceWriter as TraceWriter
    from ddsim.tree.lattice import Lattice as Lattice
    from ddsim.tree.trees import DraftTree as DraftTree
    from ddsim.tree.trees import draft_chain as draft_chain
    from ddsim.tree.trees import draft_tree as draft_tree
    from ddsim.tree.trees import tree_gains as tree_gains

__version__ = "0.1.0"

#: Public name -> module that defines it. NumPy and Numba load only when a name is asked for.
_HOME = {
    "DdsimError": "errors",
    "DraftTree": "tree.trees",
    "Lattice": "tree.lattice",
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
    "Chain": "policy.rules",
    "Schedule": "policy.rules",
    "DDTree": "policy.rules",
    "CaDDTree": "policy.rules",
    "GreedySteps": "policy.rules",
    "RoundRatio": "policy.rules",
    "LongRun": "policy.rules",
    "BestFixed": "policy.rules",
    "BestChain": "policy.rules",
    "BestSchedule": "policy.rules",
    "Hindsight": "policy.rules",
    "parse_policy": "policy.parse",
    "ReplayResult": "replay.replay",
    "Plan": "replay.plan",
    "replay": "replay.replay",
    "replay_rounds": "replay.replay",
    "compare": "replay.compare",
    "contest": "replay.contest",
    "Contest": "replay.contest",
    "Comparison": "replay.compare",
    "CostComparison": "replay.compare_costs",
    "DrafterComparison": "replay.compare_drafters",
    "PlanComparison": "replay.compare_plans",
    "default_policies": "replay.replay",
    "plan": "replay.plan",
    "Calibration": "trace.calibration",
    "fit_calibration": "trace.calibrate",
    "cross_calibrate": "trace.calibrate",
    "reliability": "trace.reliability",
    "positions_of": "trace.cache",
    "engine_plan": "replay.engine_plan",
    "simulate": "replay.serving",
    "serve_load": "replay.load",
    "LoadResult": "replay.loaded",
    "load_map": "replay.load_map",
    "Arrivals": "replay.arrivals",
    "read_arrivals": "replay.arrivals",
    "batch_map": "replay.maps",
    "best_widths": "replay.maps",
    "ServingResult": "replay.served",
    "Share": "policy.batch",
    "Uniform": "policy.batch",
    "FairRatio": "policy.batch",
    "OnChain": "policy.engine_rules",
    "AdaptiveVerification": "policy.engine_rules",
    "AdaptiveSteps": "policy.engine_rules",
    "DSpark": "policy.engine_rules",
}

__all__ = ["__version__", "plot", *sorted(_HOME)]

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name == "plot":
            return import_module("ddsim.plot")
        if name not in _HOME:
            raise AttributeError(f"module 'ddsim' has no attribute {name!r}")
        value = getattr(import_module(f"ddsim.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``ddsim.replay`` the function: importing the module ``ddsim.replay`` would else put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
