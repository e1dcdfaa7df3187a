"""Where weights go, and as what: devices, number types, and whether there is room."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from ddsim.errors import DdsimError
from ddsim_reference.limits import free_memory


def number_type(name: str) -> torch.dtype:
    """The type of weights and caches, by name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DdsimError(f"dtype {name!r}: unknown; use {' or '.join(known)}")
    return known[name]


def check_device(device: str | torch.device) -> torch.device:
    """The device, if it is there."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DdsimError(f"device {device!r}: unknown; use cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DdsimError(
            f"device {device}: PyTorch finds no GPU here; use --device cpu, or install a CUDA build of PyTorch"
        )
    return chosen


def _memory(device: torch.device) -> str:
    return "GPU memory" if device.type == "cuda" else "memory"


def check_room(name: str, parameters: int, dtype: torch.dtype, device: str | torch.device) -> None:
    """Refuse weights that there is no memory for."""
    chosen = check_device(device)
    needed = parameters * torch.empty(0, dtype=dtype).element_size()
    free = free_memory(chosen)
    if needed > free:
        raise DdsimError(
            f"{name}: its weights need {needed / 1e9:.1f} GB of {_memory(chosen)}, {free / 1e9:.1f} GB are free; "
            f"use a smaller model{', bfloat16 or --device cpu' if chosen.type == 'cuda' else ' or bfloat16'}"
        )


def device_name(device: str) -> str:
    """What the device calls itself."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Process:
    """One of the processes that torchrun, or another launcher, has started."""

    rank: int
    count: int
    device: str
    """Of its own, where it is a GPU."""


def ranks() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them; 0, 1 and 0 where they aren't set.

    Raises
    ------
    DdsimError
        One is no whole number, or the rank isn't below the number of processes.
    """
    values = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        said = os.environ.get(name, default)
        if not (said.isascii() and said.isdigit() and len(said) < 10):
            raise DdsimError(f"{name}={said!r:.40}: must be a whole number, as torchrun sets it")
        values.append(int(said))
    rank, count, local = values
    if rank >= count:
        raise DdsimError(f"RANK={rank}: must be less than WORLD_SIZE={count}, as torchrun sets it")
    return rank, count, local


def this_process(device: str) -> Process:
    """Which process this is, by RANK, WORLD_SIZE and LOCAL_RANK; the only one where they aren't set.

    Raises
    ------
    DdsimError
        They are no such numbers, a GPU is named where each process gets its own, or there are fewer GPUs than processes.
    """
    rank, count, local = ranks()
    if count > 1 and check_device(device).type == "cuda":
        if device != "cuda":
            raise DdsimError(f"device {device}: give cuda; of {count} processes each takes its own GPU")
        if local >= torch.cuda.device_count():
            raise DdsimError(
                f"process {local + 1} on this machine has no GPU of its own: PyTorch finds {torch.cuda.device_count()}; start a "
                "process a GPU (--nproc-per-node)"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    return Process(rank, count, device)
