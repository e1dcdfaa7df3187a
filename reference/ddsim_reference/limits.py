"""What keeps a run within bounds: upper limits of options, memory that is free, and foreign code that may not run on."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ddsim.errors import DdsimError

LARGEST_SEED = 2**63 - 1
MOST_REPEATS = 10_000
LONGEST_ANSWER = 1 << 20
CHILD_SECONDS = 20.0
CHILD_BYTES = 1 << 30
"""What templates and tokenizers may take beyond what the process has: they are data of a checkpoint, and programs."""


def check_range(name: str, value: float, low: float, high: float, advice: str = "") -> None:
    """Refuse an option outside its bounds; not a number is outside."""
    if not low <= value <= high:
        bounds = f"must be {low:,} or more" if math.isinf(high) else f"must be from {low:,} to {high:,}"
        shown = (
            value if isinstance(value, float) or abs(value) < 10**20 else f"of 10^{value.bit_length() * 0.30103:.0f}"
        )
        raise DdsimError(f"{name} {shown}: {bounds}{advice}")


def check_sampling(*, max_new_tokens: int, temperature: float, seed: int, batch: int) -> None:
    """Refuse options of a decoding run that no model could follow."""
    check_range("max_new_tokens", max_new_tokens, 1, LONGEST_ANSWER, "; models' contexts end long before")
    check_range("temperature", temperature, 0, 1e6)
    check_range("seed", seed, 0, LARGEST_SEED)
    check_range("batch", batch, 1, 1 << 16, "; requests that fit into memory are far fewer")


def free_memory(device: torch.device) -> float:
    """Bytes that are free there; infinite where nothing tells."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return math.inf


def in_child(work: Callable[[], Any], what: str, seconds: float = CHILD_SECONDS) -> Any:
    """What ``work`` returns, from a child process that is killed when it takes too much time or memory.

    The result comes back as JSON. Where processes can't fork (Windows), ``work`` runs here and unlimited.

    Raises
    ------
    DdsimError
        ``work`` raised, ran on, or needed too much; the line begins with ``what``.
    """
    if not hasattr(os, "fork"):
        return work()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child doesn't use what they hold
        child = os.fork()
    if child == 0:
        _child(work, writer, seconds)
    os.close(writer)
    parts, size, end = [], 0, time.monotonic() + 10 * seconds  # the clock runs on while others have the processor
    try:
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(reader, 1 << 20)
            if not part:
                break
            parts.append(part)
            size += len(part)
            if size > CHILD_BYTES >> 4:
                raise DdsimError(f"{what} makes {size / 1e6:.0f} MB and more of a prompt")
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        kind, value = json.loads(b"".join(parts))
    except ValueError:
        raise DdsimError(f"{what} ran for more than {seconds:g} s or took too much memory") from None
    if kind == "error":
        raise DdsimError(f"{what} failed ({value})")
    return value


def _child(work: Callable[[], Any], writer: int, seconds: float) -> None:
    """Run in the child: nothing of it comes back but bytes in the pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust's panics speak for themselves
        with suppress(ImportError, OSError, ValueError):
            import resource

            cpu = math.ceil(seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * os.sysconf("SC_PAGE_SIZE") + CHILD_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            answer = json.dumps(["ok", work()])
        except BaseException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            answer = json.dumps(["error", (lines or [type(error).__name__])[0][:200]])
        rest = answer.encode()
        while rest:
            rest = rest[os.write(writer, rest) :]
    finally:
        os._exit(0)
