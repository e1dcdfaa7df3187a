"""The figures, under one name: ``from ddsim import plot``."""

from __future__ import annotations

from ddsim.view.budgets import (
    budget_distribution,
    draft_gains,
    fixed_budgets,
    gains,
    policies,
    price_curve,
    round_throughput,
)
from ddsim.view.checks import (
    acceptance_by_budget,
    predicted_measured,
    prediction_errors,
    reliability_by_depth,
    reliability_by_probability,
)
from ddsim.view.costs import cost_curve, heat_map, serving
from ddsim.view.style import COLOURS, STYLES, SUFFIXES, canvas, save_figure
from ddsim.view.trees import DraftedRound, drafted_round, tree

__all__ = [
    "COLOURS",
    "STYLES",
    "SUFFIXES",
    "DraftedRound",
    "acceptance_by_budget",
    "budget_distribution",
    "canvas",
    "cost_curve",
    "draft_gains",
    "drafted_round",
    "fixed_budgets",
    "gains",
    "heat_map",
    "policies",
    "predicted_measured",
    "prediction_errors",
    "price_curve",
    "reliability_by_depth",
    "reliability_by_probability",
    "round_throughput",
    "save_figure",
    "serving",
    "tree",
]
