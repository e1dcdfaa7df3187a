"""The losses of training: cross-entropy through the target's frozen head, without keeping logits, and among candidates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the PyTorch twin below serves CPU-only installs
    triton = None

if triton is not None:

    @triton.jit
    def _cross_entropy(  # type: ignore[no-untyped-def]
        logits_ptr, label_ptr, weight_ptr, loss_ptr, hit_ptr, vocabulary, BLOCK: tl.constexpr
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        logits = logits_ptr + row * vocabulary
        label = tl.load(label_ptr + row)
        weight = tl.load(weight_ptr + row)
        best = tl.full([BLOCK], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for base in range(0, vocabulary, BLOCK):
            index = base + tl.arange(0, BLOCK)
            x = tl.load(logits + index, mask=index < vocabulary, other=-float("inf")).to(tl.float32)
            new_best = tl.maximum(best, x)
            # A lane past the vocabulary keeps -inf - -inf out of the exponential.
            safe = tl.where(new_best == -float("inf"), 0.0, new_best)
            total = total * tl.exp(best - safe) + tl.exp(x - safe)
            best = new_best
        peak = tl.max(best, 0)
        norm = tl.sum(total * tl.exp(best - peak), 0)
        log_norm = peak + tl.log(norm)
        target = tl.load(logits + label).to(tl.float32)
        tl.store(loss_ptr + row, weight * (log_norm - target))
        tl.store(hit_ptr + row, (target >= peak).to(tl.float32))
        for base in range(0, vocabulary, BLOCK):
            index = base + tl.arange(0, BLOCK)
            x = tl.load(logits + index, mask=index < vocabulary, other=-float("inf")).to(tl.float32)
            slope = tl.exp(x - log_norm) - tl.where(index == label, 1.0, 0.0)
            tl.store(logits + index, (slope * weight).to(logits_ptr.dtype.element_ty), mask=index < vocabulary)


class HeadLoss(torch.autograd.Function):
    """Weighted cross-entropy through the target's frozen head, in chunks, with the gradient made on the way forward.

    The logits of a step would take gigabytes; the head needs no gradient, so each chunk's gradient with respect to the
    hidden states is all that has to be kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of weights * cross-entropy, and which rows' argmax was the label (float32 [rows])."""
        losses = torch.empty_like(weights)
        hits = torch.empty_like(weights)
        slopes = torch.empty_like(hidden)
        for part in torch.arange(hidden.shape[0], device="cpu").split(8192):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            logits = hidden[rows] @ head.T
            if triton is not None and hidden.is_cuda:
                _cross_entropy[(logits.shape[0],)](
                    logits, labels[rows], weights[rows], losses[rows], hits[rows], logits.shape[1],
                    BLOCK=4096, num_warps=8,
                )  # fmt: skip
            else:
                wide = logits.float()
                log_norm = wide.logsumexp(-1)
                target = wide.gather(1, labels[rows, None])[:, 0]
                losses[rows] = weights[rows] * (log_norm - target)
                hits[rows] = (target >= wide.amax(-1)).float()
                slope = (wide - log_norm[:, None]).exp()
                slope[torch.arange(slope.shape[0]), labels[rows]] -= 1
                logits = (slope * weights[rows, None]).to(hidden.dtype)
            slopes[rows] = logits @ head
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(hits)
        return losses.sum(), hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the kept gradient."""
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0], None, None, None


def candidate_loss(logits: Tensor, rest: Tensor, ids: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy among candidates and all other tokens as one.

    Parameters
    ----------
    logits, ids : Tensor [..., C]
        The candidates.
    rest, labels, weights : Tensor [...]
        ``rest`` is the logarithm of all other tokens' summed exponentials.

    Returns
    -------
    loss : Tensor, scalar
    hits : float32 Tensor [...]
        Where the best candidate is the label.
    """
    match = ids == labels[..., None]
    found = match.any(-1)
    place = torch.where(found, match.int().argmax(-1), ids.shape[-1])
    every = torch.cat((logits, rest[..., None]), -1)
    losses = every.logsumexp(-1) - every.gather(-1, place[..., None])[..., 0]
    return (losses * weights).sum(), (found & (logits.argmax(-1) == place)).float()
