"""What a policy did on a trace, sequence by sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.policy.contract import Policy
from ddsim.policy.walk import Tally

TunedOn = Literal["same prompts", "other prompts"]
"""Where what a policy solves for (a price, a budget, a calibration) was tuned, beside the prompts that it is judged on."""


@dataclass(frozen=True)
class Outcome(Tally):
    """What one policy did: a tally of all sequences."""

    policy: Policy
    verify: Floats
    """[S, K] seconds of verification, by the knots of token counts (`_knots`): what an error of the costs there would change."""
    tuned_on: TunedOn | None = None
    """None: nothing was tuned."""

    def mix(self, counted: NDArray[np.bool_]) -> Floats:
        """[K]: by how much, relative, these sequences take longer for a unit of cost error at each knot."""
        out: Floats = self.verify[counted].sum(axis=0) / max(float(self.seconds[counted].sum()), 1e-300)
        return out
