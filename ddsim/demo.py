"""The recording and the profile that come with ddsim, for ``ddsim demo`` and for trying the library.

The recording holds SmolLM2-135M-Instruct's greedy answers to HumanEval's prompts and a DFlash drafter's marginals at every
position; the profile the costs of a target with the shape of Qwen3-8B on an H100. Where each comes from is in its provenance.
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
    """The recording that comes with ddsim."""
    from ddsim.trace.trace import open_trace

    return open_trace(data(TRACE))


def demo_profile() -> Profile:
    """The profile that comes with ddsim."""
    from ddsim.cost.profile import read_profile

    return read_profile(data(PROFILE))
