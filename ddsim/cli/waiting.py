"""What a person sees while a command works: progress that counts down, and a first sign within two seconds. All on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ddsim.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Progress = Callable[[int, int], None]  # called with (done, in all)

LONG = 30.0  # seconds after which a phase is worth a line where nobody watches

SOON = 0.5  # seconds without a sign after which a person is told that work goes on


def seconds_left(seconds: float) -> str:
    """How long something will take, in words that grow no longer than they help.

    Examples
    --------
    >>> seconds_left(4.2), seconds_left(75), seconds_left(4000)
    ('5 s left', '75 s left', '67 min left')
    """
    whole = int(-(-seconds // 1))
    return f"{whole} s left" if whole < 600 else f"{-(-whole // 60)} min left"


class _Sign:
    """A line that says that work goes on, drawn by a thread while nothing else is: until the answer begins."""

    def __init__(self) -> None:
        self.silent = True  # nobody watches, or all that may be said is a document
        self.told_nothing = True  # in the latter case not even lines
        self._lock = threading.Lock()
        self._bars = 0
        self._drawn = 0  # characters on the line
        self._since = self._began = 0.0
        self._stop = threading.Event()

    def begin(self) -> None:
        """Start to watch the time, if a person watches."""
        self._stop.set()  # of an earlier command of this process
        self._stop = threading.Event()
        self.silent, self.told_nothing = not sys.stderr.isatty(), False
        self._began = self._since = time.monotonic()
        if not self.silent:
            threading.Thread(target=self._watch, args=(self._stop,), daemon=True).start()

    def hush(self) -> None:
        """Say nothing of what goes on: the answer is a document."""
        self.silent = self.told_nothing = True
        self.end()

    def end(self) -> None:
        """The answer begins, or there is none to wait for."""
        self._stop.set()
        with self._lock:
            self._clear()

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Meanwhile a bar is drawn."""
        with self._lock:
            self._clear()
            self._bars += 1
        try:
            yield
        finally:
            with self._lock:
                self._bars -= 1
                self._since = time.monotonic()

    def _clear(self) -> None:
        if self._drawn:
            with suppress(OSError, ValueError):
                print(f"\r{' ' * self._drawn}\r", end="", file=sys.stderr, flush=True)
            self._drawn = 0

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.2):
            with self._lock:
                now = time.monotonic()
                if stop.is_set() or self._bars or now - self._since < SOON:
                    continue
                text = f"ddsim: {compiling() or 'working'}, {now - self._began:.0f} s"
                with suppress(OSError, ValueError):
                    print(f"\r{text:<{self._drawn}}", end="", file=sys.stderr, flush=True)
                self._drawn = max(self._drawn, len(text))


sign = _Sign()

_compiled = [0, 0.0]  # kernels compiled when it was last looked, and when they had last become more


def compiling() -> str:
    """That kernels are compiled, where some were a moment ago: this takes a minute, once for each version of ddsim."""
    jit = sys.modules.get("ddsim.jit")
    count = getattr(jit, "compiled", 0)  # of a module that is being imported, too
    if count > _compiled[0]:
        _compiled[:] = [count, time.monotonic()]
    return "compiling kernels, once" if count and time.monotonic() - _compiled[1] < 5 else ""


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A progress bar that counts down, on a terminal; elsewhere one line, once the work has taken long. Nothing with ``--json``.

    Yields a function to call with (done, in all). Until it is called the bar says only that work goes on.
    """
    if sign.silent:
        yield _line(label)
        return
    with _bar(label) as (bar, task):
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def working(label: str) -> Iterator[Callable[[str], None]]:
    """A line that says what goes on and for how long, where the length of the work isn't known; on a terminal only.

    Yields a function to call with what comes next, in a few words.
    """
    if sign.silent:
        yield lambda what: None
        return
    with _bar(label) as (bar, task):
        yield lambda what: bar.update(task, description=printable(f"{label}: {what}"))


@contextmanager
def _bar(label: str) -> Iterator[tuple[Bar, Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Said(ProgressColumn):
        """What goes on, how much of it is done, and what is left."""

        max_refresh = 0.2

        def render(self, task: Task) -> Text:
            left, parts = task.time_remaining, []  # what is cut where a terminal is narrow comes last
            if task.total is not None and left is not None and not task.finished:
                parts.append(seconds_left(left))
            elif task.elapsed is not None and task.elapsed >= 1:
                parts.append(f"{task.elapsed:.0f} s")
            if task.total is not None:
                parts.append(f"{task.completed:,.0f}/{task.total:,.0f}")
            said = "  ".join([*parts, task.description]) + (f" ({note})" if (note := compiling()) else "")
            return Text(said, no_wrap=True, overflow="ellipsis")

    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), Said(), BarColumn(bar_width=max(6, min(24, console.width - 60))))
    with sign.bar(), Bar(*columns, console=console, transient=True) as bar:
        yield bar, bar.add_task(printable(label), total=None)


def _line(label: str) -> Progress:
    """Where nobody watches: a line, once the work has taken long, that says how long it will take."""
    began, said = time.monotonic(), sign.told_nothing

    def update(done: int, total: int) -> None:
        nonlocal said
        took = time.monotonic() - began
        if not said and took >= LONG and 0 < done < total:
            said = True
            with suppress(OSError):
                left = seconds_left(took * (total - done) / done)
                print(f"{printable(label)}: {done:,} of {total:,}, about {left}", file=sys.stderr)

    return update
