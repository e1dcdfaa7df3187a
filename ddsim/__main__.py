"""``python -m ddsim`` and the script ``ddsim``: the command line as a process of its own."""

from __future__ import annotations

import os
import signal
import sys

from ddsim.cli import interrupts as _interrupts


def run() -> int:
    """Run the command line on the words of the process; its exit code."""
    try:
        _interrupts.install()
        for number in range(3):  # a closed one would be taken by the next file that is opened, and written to
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
        from ddsim.cli.main import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and said
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("error: interrupted", file=sys.stderr)
        code = _interrupts.CODE
    except BaseException:
        if not _interrupts.seen():
            raise
        print("error: interrupted", file=sys.stderr)
        code = _interrupts.CODE
    if code == _interrupts.CODE:
        _interrupts.leave()
    return code


if __name__ == "__main__":
    sys.exit(run())
