"""What a load is served with by default: fixed settings that its costs make best, and the rules that engines have."""

from __future__ import annotations

from ddsim.cost.model import CostModel
from ddsim.policy.contract import Policy
from ddsim.policy.parse import policies_of
from ddsim.policy.rules import Chain, DDTree
from ddsim.replay.arguments import measured_on
from ddsim.replay.engines import chain_rates
from ddsim.replay.maps import best_widths
from ddsim.trace.rounds import Positions

RULES = ["BestSchedule", "BestFixed", "Uniform:LongRun", "LongRun", "FairRatio"]

ENGINE_RULES = [
    "BestSchedule",
    "AdaptiveVerification",
    "DSpark",
    "AdaptiveSteps",
    "OnChain:RoundRatio",
    "OnChain:LongRun",
]
"""Where costs are an engine's, which verifies chains."""


def load_policies(positions: Positions, cost: CostModel, running: int) -> list[Policy]:
    """What a load is served with by default: each number of requests' best chain and best tree as fixed settings, AR, and the rules.

    Costs that were measured in an engine are of chains, so there are no trees. Nor are there trees that weren't measured for all who run.
    """
    sizes = [size for size in (2**i for i in range(13)) if size < running] + [running]
    engine = measured_on(cost.provenance) is not None
    with cost.no_warning():
        best = chain_rates(positions, cost, requests=running, extrapolate=True).best
        found: list[Policy] = [Chain(k) for k in sorted({int(best[size - 1]) for size in sizes} - {0})]
        if not engine:
            context = round(float(positions.context.mean()))
            most = cost.measured_tokens(context, running)[1] // running - 1
            widths = best_widths(positions, cost, batch=sizes, contexts=[context])["width"]
            found += [DDTree(n) for n in sorted(set(widths.tolist()) - {0}) if n <= most]
    rules = ENGINE_RULES if engine else RULES
    return [*policies_of(["AR"], joint=True), *found, *policies_of(rules, joint=True)]
