"""The optimiser of training: Muon for matrices, AdamW for vectors and for tables of the vocabulary's size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddsim_reference.model.config import Weights


class Muon:
    """Muon for matrices (momentum, then an orthogonalised step) and AdamW for the rest, batched by shape.

    Muon: https://kellerjordan.github.io/posts/muon/. The Newton-Schulz iteration runs in bfloat16 on stacks of equal shape,
    because one small product at a time would leave the GPU idle.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, parameters: Weights, matrix_rate: float, vector_rate: float) -> None:
        self.matrix_rate, self.vector_rate = matrix_rate, vector_rate
        self.parameters = parameters
        # A step sees few rows of a table: orthogonalised, it would move the others as far.
        tables = [name for name in parameters if name.endswith(".table")]
        self.matrices = [name for name, p in parameters.items() if p.ndim == 2 and name not in tables]
        self.momentum = {name: torch.zeros_like(parameters[name]) for name in self.matrices}
        vectors = [p for p in parameters.values() if p.ndim != 2]
        on_gpu = vectors[0].is_cuda
        groups = [{"params": vectors, "rate": vector_rate}]
        if tables:
            groups.append({"params": [parameters[name] for name in tables], "rate": matrix_rate})
        self.adam = torch.optim.AdamW(
            groups,
            lr=torch.tensor(vector_rate),
            betas=(0.9, 0.99),
            weight_decay=0.0,
            foreach=on_gpu,
            capturable=on_gpu,
        )
        self.scale = torch.ones((), device=vectors[0].device)
        self.groups: dict[tuple[int, int], list[str]] = {}
        for name in self.matrices:
            tall, wide = sorted(parameters[name].shape, reverse=True)
            self.groups.setdefault((tall, wide), []).append(name)

    def _orthogonal(self, stack: Tensor) -> Tensor:
        a, b, c = self.COEFFICIENTS
        x = stack.to(torch.bfloat16 if stack.is_cuda else stack.dtype)
        x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
        for _ in range(5):
            gram = x.mT @ x
            x = a * x + x @ torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        return x

    @torch.no_grad()
    def step(self) -> None:
        """One update with both learning rates times ``self.scale``, a tensor so that a CUDA graph can hold the step."""
        for (tall, _), names in self.groups.items():
            updates = []
            for name in names:
                gradient = self.parameters[name].grad
                assert gradient is not None
                self.momentum[name].lerp_(gradient, 0.05)
                update = gradient.lerp(self.momentum[name], 0.95)
                updates.append(update if update.shape[0] >= update.shape[1] else update.T)
            moved = self._orthogonal(torch.stack(updates))
            # Moonlight's scaling (arXiv 2502.16982): an update's RMS is 0.2, as AdamW's typically is.
            rate = self.scale * (-0.2 * self.matrix_rate * math.sqrt(tall))
            for name, update in zip(names, moved, strict=True):
                parameter = self.parameters[name]
                parameter.add_((update if parameter.shape[0] >= parameter.shape[1] else update.T) * rate)
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * self.scale
        self.adam.step()
