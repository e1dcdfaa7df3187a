"""The recordings and the profile that come with ddsim, for ``ddsim demo`` and for trying the library.

Both recordings hold SmolLM2-135M-Instruct's greedy answers to HumanEval's prompts: one with the lattice that a DFlash drafter with a head
proposes at every position, one with the same drafter's marginals. The profile is of a target with the shape of Qwen3-8B on an H100.
Where each comes from is in its provenance.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ddsim.errors import DdsimError

if TYPE_CHECKING:
    from ddsim.cost.profile import Profile
    from ddsim.trace.trace import Trace

TRACE = "humaneval"
MARGINALS = "humaneval-marginals"
PROFILE = "qwen3-8b-cost-h100.json"


def data(name: str) -> Path:
    """The path of a file or folder in ``ddsim/data``.

    Raises
    ------
    DdsimError
        It isn't there: ddsim was installed incompletely.
    """
    path = Path(str(files("ddsim") / "data" / name))
    if not path.exists():
        raise DdsimError(f"{path}: is missing from this installation; install ddsim again")
    return path


def demo_trace() -> Trace:
    """The recording that comes with ddsim: lattices."""
    from ddsim.trace.trace import open_trace

    return open_trace(data(TRACE))


def demo_marginals() -> Trace:
    """The same texts with the same drafter's marginals, for smaller budgets."""
    from ddsim.trace.trace import open_trace

    return open_trace(data(MARGINALS))


def demo_profile() -> Profile:
    """The profile that comes with ddsim."""
    from ddsim.cost.profile import read_profile

    return read_profile(data(PROFILE))
