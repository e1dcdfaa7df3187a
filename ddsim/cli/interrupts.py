"""Ctrl-C at any moment: one line and exit code 130, while modules are still being imported too."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

CODE = 130


_SEEN = False


def seen() -> bool:
    """Whether this process was interrupted: an import that was cut short raises all kinds of errors."""
    return _SEEN


def install() -> None:
    """Handle SIGINT, unless the parent process has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable


def leave() -> None:
    """End the process now. Python itself would die of the signal where it came inside ``eval``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(CODE)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _SEEN
    _SEEN = True
    raise KeyboardInterrupt


def _unraisable(found: Any) -> None:
    """An interrupt that came inside a destructor or a callback was lost there: let it come again a moment later."""
    if found.exc_type is KeyboardInterrupt and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(found)
