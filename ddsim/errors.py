"""The one exception that bad input raises, and whom warnings are for."""

from __future__ import annotations

import contextlib
import os
import sys

_INSIDE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class DdsimError(ValueError):
    """Bad input: one line that says which file, row or option, what is wrong and what to do.

    Examples
    --------
    >>> import ddsim
    >>> ddsim.draft_tree([[0.5]], 1)
    Traceback (most recent call last):
    ddsim.errors.DdsimError: logprobs at depth 1 are positive; log-probabilities are natural logarithms of probabilities, at most 0
    """


class WorkWarning(UserWarning):
    """A warning about work that goes on, which the command line says at once; any other comes after the answer."""


def caller_level() -> int:
    """The ``stacklevel`` with which a warning, given where this is called, names the line outside ddsim that led to it."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_INSIDE, contextlib.__file__)):
        frame, level = frame.f_back, level + 1
    return level
