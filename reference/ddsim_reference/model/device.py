"""Where weights go, and as what: devices, number types, and whether there is room."""

from __future__ import annotations

import platform

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
