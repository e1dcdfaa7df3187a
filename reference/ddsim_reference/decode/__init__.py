"""Answering prompts with the engine: draft, choose a budget, build the trees, verify them in one pass, commit.

``loop`` is the decode loop, ``trees`` a round's budgets and trees, ``rows`` and ``lattices`` what was drafted, ``answers`` what decoding tells, ``text`` loads
models by name and yields answers as text.

May use: ddsim.cost, ddsim.errors, ddsim.policy, ddsim.trace, ddsim.tree, engine, limits, model.
"""

from ddsim_reference.decode.answers import Decoded, Event, Round
from ddsim_reference.decode.loop import decode, stream
from ddsim_reference.decode.text import Piece, decode_prompts

__all__ = ["Decoded", "Event", "Piece", "Round", "decode", "decode_prompts", "stream"]
