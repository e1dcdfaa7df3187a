"""Choosing tokens from logits, such that a sampled text depends on its seed and prompt but never on what was drafted."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PER_NAT, LOWEST = 64, 65535  # as in ddsim.trace.folded


def uniforms(seed: int, prompt_id: str, count: int) -> NDArray[np.float64]:
    """The uniform number behind each sampled token of a prompt's answer, float64 [count], the first token's first."""
    generator = np.random.Generator(np.random.Philox(key=[seed, crc32(prompt_id.encode())]))
    return generator.random(count)


def choose(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """One token a row of float32 logits [rows, vocabulary].

    Greedy at temperature 0; otherwise the inverse of the cumulative distribution at ``uniform`` (float64 [rows]). One number
    per position of the answer makes the token at a position a function of the tokens before it, whatever tree or batch it
    was verified in, which is what lets a replay be exact at any temperature.
    """
    if temperature == 0:
        return logits.argmax(-1)
    assert uniform is not None
    cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    # Scaling by the last value keeps a uniform close to 1 inside the vocabulary despite rounding.
    return torch.searchsorted(cumulative, (uniform[:, None] * cumulative[:, -1:]), right=True)[:, 0].clamp_max(
        logits.shape[-1] - 1
    )


def round_down_half(x: Tensor) -> Tensor:
    """Values <= 0 rounded toward minus infinity to what float16 can hold, as float32 (twin of ``ddsim.trace.checks.round_logprobs``)."""
    half = x.half()
    bits = half.view(torch.int16) + (half.float() > x).to(torch.int16)  # one step away from zero for negative numbers
    return bits.view(torch.float16).float()


def round_conditionals(logprobs: Tensor) -> Tensor:
    """Rows of conditional log-probabilities as they enter traces and trees, float32 (twin of ``ddsim.trace.folded.round_conditionals``)."""
    scaled = logprobs.double() * PER_NAT
    nearest = scaled.round()
    above = (nearest / PER_NAT).exp().sum(-1, keepdim=True) > 1
    units = torch.where(above, scaled.floor(), nearest)
    return (F.threshold(units, -LOWEST - 0.5, -torch.inf) / PER_NAT).float()


def top_candidates(logits: Tensor, count: int, total: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``count`` most likely tokens of each row, as they enter traces and trees.

    Parameters
    ----------
    logits : float32 Tensor [..., vocabulary]
    count : int
    total : float32 Tensor [...], optional
        Their logsumexp.

    Returns
    -------
    logprobs : float32 Tensor [..., count]
        Rounded down to float16; descending, ties by smaller token id first.
    token_ids : int64 Tensor [..., count]
    """
    values, ids = logits.topk(min(count, logits.shape[-1]), -1, sorted=False)
    total = logits.logsumexp(-1) if total is None else total
    values = round_down_half(values - total[..., None])
    # Values are at most 0: the bits of their magnitude rise as they fall, so that one sort orders values, then ids.
    magnitude = values.neg().half().view(torch.int16).long()
    keys = ((magnitude << 32) | ids).sort(-1).values
    return -(keys >> 32).to(torch.int16).view(torch.float16).float(), keys & 0xFFFFFFFF
