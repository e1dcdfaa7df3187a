"""The entry point: runs a command and turns every failure into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import typer

from ddsim.cli import answers, compare, contest, curves, draw, models, sweep  # noqa: F401 (their commands register themselves, in this order)
from ddsim.cli.app import BAD_INPUT, BROKEN_PIPE, BUG, FAILED_TOLERANCE, INTERRUPTED, _Failed
from ddsim.cli.app import app as app
from ddsim.cli.console import sane_width, warnings_after
from ddsim.cli.interrupts import seen
from ddsim.cli.waiting import sign
from ddsim.errors import DdsimError
from ddsim.text import printable

LONGEST_LINE = 2000  # characters of an error: names can be of any length


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 an answer failed a tolerance, 2 bad input, 3 a bug, 130 interrupted, 141 output closed.

    Examples
    --------
    >>> main(["--version"])
    ddsim 0.1.0
    0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters must not end a run
    sign.begin()
    try:
        with warnings_after(), sane_width():
            code = app([w for w in words if w != "--debug"], prog_name="ddsim", standalone_mode=False)
            sys.stdout.flush()
    except BaseException as error:
        sign.end()
        if debug and not isinstance(error, (BrokenPipeError, SystemExit)):
            import traceback

            print(printable(traceback.format_exc(), keep="\n"), end="", file=sys.stderr)
        code = _exit_code(error)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return code
    sign.end()
    if code == INTERRUPTED:  # Typer's answer to Ctrl-C
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _discard_output() -> None:
    """What standard output can't take is dropped; Python would try again when it exits, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: BaseException) -> int:
    """Say in one line what went wrong; the exit code that goes with it."""
    # Typer and Rich turn a broken pipe into sys.exit(1).
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
        _discard_output()
        return BROKEN_PIPE
    if isinstance(error, (KeyboardInterrupt, typer.Abort)) or seen():
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, _Failed):
        return _fail(str(error), FAILED_TOLERANCE, "failed")
    if isinstance(error, DdsimError):
        return _fail(str(error), BAD_INPUT)
    if hasattr(error, "format_message"):  # a usage error of Typer or Click, whichever of them raised it
        context = getattr(error, "ctx", None)
        message = error.format_message().rstrip(".")
        if not message:  # help was printed in place of a command
            return BAD_INPUT
        where = context.command_path if context is not None else "ddsim"
        return _fail(f"{message}; see {where} --help", BAD_INPUT)
    if hasattr(error, "of_policy"):
        return _fail(f"policy {error.of_policy}: {type(error).__name__}: {error}; --debug shows where", BAD_INPUT)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{name}{error.strerror or error}", BAD_INPUT)
    if isinstance(error, MemoryError):
        return _fail("not enough memory; choose fewer workloads or smaller budgets", BAD_INPUT)
    return _fail(f"a bug in ddsim: {type(error).__name__}: {error}; --debug shows where", BUG)


def _fail(message: str, code: int, word: str = "error") -> int:
    text = printable(" ".join(message.split()), LONGEST_LINE)
    with contextlib.suppress(OSError):  # nobody reads standard error
        print(f"{word}: {text}", file=sys.stderr)
    return code
