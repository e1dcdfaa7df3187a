"""Other people's serving engines, driven in this process: what their steps cost, and whether predictions hold in them.

``vllm`` starts vLLM and steps through it, ``costs`` measures it as a profile, ``predict`` simulates a call of it, ``compare`` holds the one
against the other. An engine is imported when it is asked for, and needn't be installed otherwise.

May use: ddsim.cost, ddsim.errors, ddsim.files, ddsim.policy, ddsim.replay, ddsim.trace, ddsim.view, limits, model, record.
"""

from ddsim_reference.engines.compare import validate_engine
from ddsim_reference.engines.costs import host_bound, profile_engine

__all__ = ["host_bound", "profile_engine", "validate_engine"]
