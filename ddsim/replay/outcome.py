"""What a policy did on a trace, sequence by sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddsim.arrays import Floats
from ddsim.policy.contract import Policy
from ddsim.policy.walk import Tally
from ddsim.tables import Shown, Summary
from ddsim.text import distinct

TunedOn = Literal["same prompts", "other prompts"]
"""Where what a policy solves for (a price, a budget, a calibration) was tuned, beside the prompts that it is judged on."""


Key = tuple[int, bool]
"""``id`` of a policy as it was given, and whether the marginals that it was replayed on were calibrated."""

CALIBRATED = " calibrated"
"""How the name of a policy ends that was replayed on calibrated marginals."""


@dataclass(frozen=True, repr=False)
class Outcome(Shown, Tally):
    """What one policy did: a tally of all sequences."""

    policy: Policy
    verify: Floats
    """[S, K] seconds of verification, by the knots of token counts (`_knots`): what an error of the costs there would change."""
    asked: Policy
    """The policy as it was given, of which ``policy`` is a copy that is ready."""
    calibrated: bool = False
    """Whether the marginals were calibrated."""
    tuned_on: TunedOn | None = None
    """None: nothing was tuned."""

    @property
    def key(self) -> Key:
        return id(self.asked), self.calibrated

    @property
    def name(self) -> str:
        """The policy's, with an ending where it was calibrated."""
        return self.asked.name + (CALIBRATED if self.calibrated else "")

    def summary(self) -> Summary:
        """What is printed: rounds, nodes and time, in a line."""
        rounds = int(self.rounds.sum())
        nodes = self.budget.sum() / max(rounds, 1)
        return Summary(f"{self.name}: {rounds:,} rounds of {nodes:.1f} nodes in {self.seconds.sum():,.2f} s.")

    def mix(self, counted: NDArray[np.bool_]) -> Floats:
        """[K]: by how much, relative, these sequences take longer for a unit of cost error at each knot."""
        out: Floats = self.verify[counted].sum(axis=0) / max(float(self.seconds[counted].sum()), 1e-300)
        return out


def named(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Outcomes by their names, no two alike."""
    found = list(outcomes)
    return dict(zip(distinct([outcome.name for outcome in found]), found, strict=True))
