"""The figures, under one name: ``from ddsim import plot``. Each is imported, and Matplotlib with it, when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what _HOME says once more, for editors and type checkers
    from ddsim.view.budgets import budget_distribution as budget_distribution
    from ddsim.view.budgets import draft_gains as draft_gains
    from ddsim.view.budgets import fixed_budgets as fixed_budgets
    from ddsim.view.budgets import gains as gains
    from ddsim.view.budgets import policies as policies
    from ddsim.view.budgets import price_curve as price_curve
    from ddsim.view.budgets import round_throughput as round_throughput
    from ddsim.view.checks import acceptance_by_budget as acceptance_by_budget
    from ddsim.view.checks import predicted_measured as predicted_measured
    from ddsim.view.checks import prediction_errors as prediction_errors
    from ddsim.view.checks import reliability_by_depth as reliability_by_depth
    from ddsim.view.checks import reliability_by_probability as reliability_by_probability
    from ddsim.view.checks import validation as validation
    from ddsim.view.comparisons import cost_differences as cost_differences
    from ddsim.view.comparisons import plan_curves as plan_curves
    from ddsim.view.costs import cost_curve as cost_curve
    from ddsim.view.costs import heat_map as heat_map
    from ddsim.view.costs import serving as serving
    from ddsim.view.load import load_gains as load_gains
    from ddsim.view.load_maps import load_maps as load_maps
    from ddsim.view.looks import Look as Look
    from ddsim.view.looks import policy_look as policy_look
    from ddsim.view.style import COLOURS as COLOURS
    from ddsim.view.style import STYLES as STYLES
    from ddsim.view.style import SUFFIXES as SUFFIXES
    from ddsim.view.style import canvas as canvas
    from ddsim.view.style import save_figure as save_figure
    from ddsim.view.titles import about as about
    from ddsim.view.titles import entitle as entitle
    from ddsim.view.trees import DraftedRound as DraftedRound
    from ddsim.view.trees import drafted_round as drafted_round
    from ddsim.view.trees import tree as tree

_HOME = {
    "budget_distribution": "view.budgets",
    "draft_gains": "view.budgets",
    "fixed_budgets": "view.budgets",
    "gains": "view.budgets",
    "policies": "view.budgets",
    "price_curve": "view.budgets",
    "round_throughput": "view.budgets",
    "acceptance_by_budget": "view.checks",
    "predicted_measured": "view.checks",
    "prediction_errors": "view.checks",
    "reliability_by_depth": "view.checks",
    "reliability_by_probability": "view.checks",
    "validation": "view.checks",
    "cost_differences": "view.comparisons",
    "plan_curves": "view.comparisons",
    "cost_curve": "view.costs",
    "heat_map": "view.costs",
    "serving": "view.costs",
    "load_gains": "view.load",
    "load_maps": "view.load_maps",
    "Look": "view.looks",
    "policy_look": "view.looks",
    "COLOURS": "view.style",
    "STYLES": "view.style",
    "SUFFIXES": "view.style",
    "canvas": "view.style",
    "save_figure": "view.style",
    "about": "view.titles",
    "entitle": "view.titles",
    "DraftedRound": "view.trees",
    "drafted_round": "view.trees",
    "tree": "view.trees",
}

__all__ = sorted(_HOME)

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'ddsim.plot' has no attribute {name!r}")
        value = getattr(import_module(f"ddsim.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
