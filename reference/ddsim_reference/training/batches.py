"""Batches of training: rows of text, the positions at which blocks start, labels and weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def repeated(tokens: Tensor, longest_period: int = 40) -> Tensor:
    """Bool like tokens [rows, length]: positions at least 36 tokens (three periods) deep in a repetition."""
    found = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    for period in range(1, longest_period + 1):
        run = max(3 * period, 36)
        same = F.pad((tokens[:, period:] == tokens[:, :-period]).int(), (period + 1, 0)).cumsum(1)
        found[:, run:] |= same[:, run + 1 :] - same[:, 1:-run] == run
    return found


class Corpus:
    """Rows of text on a device, with the positions at which a block may start."""

    def __init__(self, data: dict[str, np.ndarray], device: str) -> None:
        self.tokens = torch.from_numpy(data["tokens"].astype(np.int32)).to(device)
        self.starts = torch.from_numpy(data["starts"].astype(np.int16)).to(device)
        generated = torch.from_numpy(data["generated"]).to(device)
        usable = generated.clone()
        for rows in torch.arange(len(usable)).split(2048):
            span = slice(int(rows[0]), int(rows[-1]) + 1)
            usable[span] &= ~repeated(self.tokens[span])
        usable[:, :-1] &= self.starts[:, 1:] == self.starts[:, :-1]  # a document's last token has nothing to predict
        usable[:, -1] = False
        self.usable = usable


@dataclass
class Batch:
    """Rows with anchors (block roots): all [rows, anchors] but tokens and starts, which are [rows, length]."""

    tokens: Tensor
    starts: Tensor
    anchors: Tensor
    valid: Tensor


def draw(corpus: Corpus, rows: Tensor, anchors: int, generator: torch.Generator) -> Batch:
    """Rows of the corpus with anchors drawn uniformly from usable positions, ascending."""
    usable = corpus.usable[rows]
    score = torch.rand(usable.shape, device=usable.device, generator=generator) + usable
    picked = score.topk(anchors, dim=1).indices.sort(1).values
    return Batch(
        corpus.tokens[rows].long(), corpus.starts[rows].long(), picked, usable.gather(1, picked)
    )  # rows short of usable positions get invalid anchors, whose weight is zero


def labels_and_weights(batch: Batch, horizon: int, decay: float) -> tuple[Tensor, Tensor]:
    """Labels [rows, anchors, horizon] and weights exp(-(k - 1) / decay), zero past the document or the row."""
    length = batch.tokens.shape[1]
    ahead = batch.anchors[..., None] + torch.arange(1, horizon + 1, device=batch.tokens.device)
    inside = ahead < length
    at = ahead.clamp_max(length - 1).flatten(1)
    labels = batch.tokens.gather(1, at).view(ahead.shape)
    same = batch.starts.gather(1, at).view(ahead.shape) == batch.starts.gather(1, batch.anchors)[..., None]
    weights = torch.exp(-torch.arange(horizon, device=labels.device) / decay)
    return labels, weights * (inside & same & batch.valid[..., None])
