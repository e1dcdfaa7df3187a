"""One training process a GPU, as torchrun starts them: which one this is, and the few things that they agree on."""

from __future__ import annotations

import atexit

import torch
import torch.distributed as dist
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim_reference.model.device import ranks


class Processes:
    """This process among those that torchrun started; alone, every method does nothing.

    Small agreements go through gloo on the CPU, so that the GPU's queue isn't waited for; gradients go through NCCL.
    """

    def __init__(self) -> None:
        self.rank, self.count, self.local = ranks()
        if self.count > 1 and not dist.is_initialized():
            gpu = torch.cuda.is_available()
            if gpu and self.local >= torch.cuda.device_count():
                raise DdsimError(
                    f"torchrun started a process {self.local + 1} here, but PyTorch finds {torch.cuda.device_count()} GPUs; "
                    "start a process a GPU (--nproc-per-node)"
                )
            if gpu:
                torch.cuda.set_device(self.local)
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
            atexit.register(dist.destroy_process_group)

    def first(self, value: float) -> float:
        """The first process's number, for all."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def first_(self, *tensors: Tensor) -> None:
        """Give all processes the first one's tensors, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def mean_(self, tensor: Tensor) -> None:
        """Average a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
            tensor /= self.count

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.first(0.0)
