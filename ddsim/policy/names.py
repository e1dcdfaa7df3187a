"""What can be typed for a policy, in spellings that a shell takes without quotes.

Plain text, so that help and completion needn't load a policy.
"""

from __future__ import annotations

RULES = ("CaDDTree", "CaDDTree:fill", "GreedySteps", "RoundRatio", "LongRun", "LongRun:online")
"""Policies that choose anew each round."""

RUN = ("AR", "DFlash", "Chain:7", "DDTree:63", *RULES)
"""Policies that can choose without having seen a trace."""

TRACE = ("BestFixed", "BestChain")
"""Those that solve for something on a trace first."""

HINDSIGHT = ("Hindsight",)
"""Those that have to know the tokens to come."""

BATCH = ("FairRatio", "Share:RoundRatio", "Uniform:RoundRatio", "BestSchedule")
"""Those for requests that are verified together."""

ENGINE = ("AdaptiveVerification", "DSpark", "AdaptiveSteps", "OnChain:RoundRatio")
"""Engines' own, and any rule over the chains that engines verify; what looks back on earlier rounds can't be decoded with."""

EVERY = "rules"
"""Where requests are decoded together: the best fixed settings and all rules that engines have."""

OWN = "module:Class or 'module:Class(settings)'"
"""How a policy of one's own is named."""
