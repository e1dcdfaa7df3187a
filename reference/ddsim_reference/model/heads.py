"""Heads that know the token before: what a drafter's marginals become behind each candidate of the depth above.

A drafter's last hidden state h_d gives one distribution a depth. A head turns it into one a parent, from depth 2 on (depth 1 follows
the root, which the drafter has seen): it adds to the candidates' logits, and to the log-mass of all tokens that are no candidates, so
that of the target's head nothing but the candidates' rows is read once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsim_reference.model.config import DrafterConfig, Weights
from ddsim_reference.model.forward import head_logits

FORMS = ("static", "gated", "gated_low_rank")
"""Forms that are trained here."""

PUBLISHED = ("markov", "selector")
"""Forms of others' drafters."""

MOST_WIDTH = 1 << 16
MOST_REACH = 4
FLOOR = -20.0
"""Log-probability below which a token counts as not to be expected at a depth."""


@dataclass(frozen=True)
class HeadConfig:
    """A head that conditions on the token before.

    Its inner values i, ``width`` of them, come from the token before, a = We·embedding(previous), and from the drafter,
    b = Wh·h + bias: ``static`` has i = a, ``gated`` i = silu(a + b), ``gated_low_rank`` i = a ⊙ sigmoid(b). They change the
    logits by head·(Wo·i), with the target's own head. With ``tables`` two tables of the vocabulary's size stand for We and Wo:
    a = W1[previous], and the logits change by W2·i (static: DSpark's Markov head).

    With ``reach`` r > 0 a head sees text that drifts: b reads the hidden states of depths d - r to d + r; a how likely the token
    before was at depths d - 1 - r to d - 1 + r (one that comes early takes the rest of the draft with it); and i mixes those
    hidden states into h_d. A static head has no reach, one with tables doesn't mix.

    Two more are as they are published, with tables, and at depth 1 behind the root: ``markov`` (DSpark) has i = a, and is normalised
    over the whole vocabulary, which costs a product with a table a parent; ``selector`` (DFlash 2) has i = a ⊙ Wh·h, and is
    normalised over the candidates.
    """

    form: str
    width: int
    tables: bool = False
    reach: int = 0

    @property
    def window(self) -> int:
        """Depths that it looks at around its own."""
        return 2 * self.reach + 1


DraftHead = tuple[HeadConfig, Weights]
"""A head and its weights, as ``load_head`` returns them."""

Linear = Callable[..., Tensor]
"""`torch.nn.functional.linear`, or one that does the same."""


def few(x: Tensor, rows: Tensor) -> Tensor:
    """x [..., width] times few rows [n, width], or times one [width]."""
    return x @ rows if rows.dim() == 1 else F.linear(x, rows)


def mixed(x: Tensor, shift: Tensor | None, near: Tensor | None) -> Tensor:
    """x [..., K, width] and, by eighths, ``shift`` [..., K, n] times ``near`` [..., n, width]."""
    return x if shift is None or near is None else x + shift @ near * 0.125


def picked(x: Tensor, table: Tensor, ids: Tensor, shift: Tensor | None = None, near: Tensor | None = None) -> Tensor:
    """float32 [..., K, C]: x [..., K, width], `mixed`, times the rows ``ids`` [..., C] of a table."""
    return (mixed(x, shift, near) @ F.embedding(ids, table).mT).float()


class Products(NamedTuple):
    """Who does a head's products: PyTorch, or an engine whose sums don't depend on how many blocks there are."""

    linear: Linear = F.linear
    few: Callable[[Tensor, Tensor], Tensor] = few
    picked: Callable[..., Tensor] = picked
    logits: Callable[[Tensor, Tensor], Tensor] = head_logits


TORCH = Products()


def head_shapes(head: HeadConfig, drafter: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a head, with its shape."""
    hidden, width, vocabulary = drafter.hidden_size, head.width, drafter.vocab_size
    if head.form in PUBLISHED:
        tables: dict[str, tuple[int, ...]] = {"previous.table": (vocabulary, width), "out.table": (vocabulary, width)}
        return tables | ({"hidden.weight": (width, hidden)} if head.form == "selector" else {})
    shapes: dict[str, tuple[int, ...]] = {"rest.weight": (width,)}
    if head.tables:
        shapes |= {"previous.table": (vocabulary, width), "out.table": (vocabulary, width)}
    else:
        shapes |= {"previous.weight": (width, hidden), "out.weight": (hidden, width)}
    if head.form != "static":
        shapes |= {"hidden.weight": (width, hidden * head.window), "bias": (width,)}
        if head.reach:
            shapes["likely.weight"] = (width, 2 * head.window)
            if not head.tables:
                shapes["shift.weight"] = (head.window, width)
    return shapes


def initial_head(head: HeadConfig, drafter: DrafterConfig, generator: torch.Generator, device: str) -> Weights:
    """A head that changes nothing yet."""
    weights: Weights = {}
    for name, shape in head_shapes(head, drafter).items():
        if name in ("previous.weight", "hidden.weight", "likely.weight", "previous.table"):
            spread = 0.3 if name == "previous.table" else 0.7 / math.sqrt(shape[1])
            weights[name] = torch.randn(shape, generator=generator, device=generator.device).to(device) * spread
        else:
            weights[name] = torch.zeros(shape, device=device)
    return weights


@dataclass
class Marginals:
    """The drafter's marginals of blocks, cut to candidates, and how likely parents are.

    ``hidden`` [blocks, L, hidden] is the drafter's output. ``ids`` and ``logits`` (float32) [blocks, L, C] are the candidates, best
    first, ``rest`` [blocks, L] the logarithm of all other tokens' summed exponentials. ``parents`` [blocks, L - 1, K] are tokens
    before depths 2 to L, and ``likely`` [blocks, L - 1, K, window] their log-probabilities at depths d - 1 - reach to d - 1 + reach,
    ``FLOOR`` where there is no such depth.
    """

    hidden: Tensor
    ids: Tensor
    logits: Tensor
    rest: Tensor
    parents: Tensor
    likely: Tensor


def largest(logits: Tensor, count: int, group: int = 64) -> tuple[Tensor, Tensor]:
    """``topk`` along the last dimension; of many values by way of the groups that hold the largest, which is many times faster."""
    if logits.shape[-1] % group or logits.shape[-1] < 4 * group * count:
        top = logits.topk(count)
        return top.values, top.indices
    groups = logits.unflatten(-1, (-1, group))
    best = groups.amax(-1).topk(count).indices  # no group outside can hold one of the ``count`` largest
    top = groups.gather(-2, best[..., None].expand(*best.shape, group)).flatten(-2).topk(count)
    return top.values, best.gather(-1, top.indices // group) * group + top.indices % group


@torch.no_grad()
def marginals(
    hidden: Tensor, target_head: Tensor, count: int, parents: Tensor | None = None, reach: int = 0, chunk: int = 512
) -> Marginals:
    """The marginals of blocks.

    Parameters
    ----------
    hidden : Tensor [blocks, L, hidden]
        After the drafter's final norm, depths 1 to L.
    target_head : Tensor [vocabulary, hidden]
    count : int
        Candidates a depth.
    parents : int Tensor [blocks, L - 1, K], optional
        Tokens before depths 2 to L; by default all candidates of the depth above.
    reach : int
        Depths before and after its own at which a parent's log-probability is wanted.
    chunk : int
        Blocks whose logits are held at a time.
    """
    found = []
    for first in range(0, len(hidden), chunk):
        own = slice(first, first + chunk)
        logits = head_logits(hidden[own], target_head)
        part = cut(hidden[own], logits, count, None if parents is None else parents[own], reach)
        found.append((part.ids, part.logits, part.rest, part.parents, part.likely))
    return Marginals(hidden, *(torch.cat(part) for part in zip(*found, strict=True)))


@torch.no_grad()
def cut(
    hidden: Tensor,
    logits: Tensor,
    count: int,
    parents: Tensor | None = None,
    reach: int = 0,
    total: Tensor | None = None,
) -> Marginals:
    """`marginals` of blocks whose logits, float32 [blocks, L, vocabulary], are there; and maybe their ``total``, the logsumexp."""
    depths = logits.shape[1]
    values, ids = largest(logits, count)
    total = logits.logsumexp(-1) if total is None else total
    share = (values - total[..., None]).exp().sum(-1)
    rest = total + torch.log1p(-share.clamp_max(1 - 1e-6))
    before = ids[:, :-1] if parents is None else parents
    likely = values.new_full((*before.shape, 2 * reach + 1), FLOOR)
    for i in range(2 * reach + 1):
        shift = i - reach
        low, high = max(0, -shift), min(depths - 1, depths - shift)
        at = slice(low + shift, high + shift)
        likely[:, low:high, :, i] = logits[:, at].gather(-1, before[:, low:high]) - total[:, at, None]
    return Marginals(hidden, ids, values, rest, before, likely.clamp_min_(FLOOR))


def conditional(
    head: HeadConfig,
    weights: Weights,
    marginals: Marginals,
    embedding: Tensor,
    target_head: Tensor,
    products: Products = TORCH,
) -> tuple[Tensor, Tensor]:
    """Logits of depths 2 to L behind parents.

    Parameters
    ----------
    marginals : Marginals
        Of blocks: candidates C and parents K a depth.
    embedding, target_head : Tensor [vocabulary, hidden]
        The target's.
    products : Products
        Who does the products.

    Returns
    -------
    logits : float32 Tensor [blocks, L - 1, K, C]
    rest : float32 Tensor [blocks, L - 1, K]
        Logarithm of the summed exponentials of all tokens that are no candidates.
    """
    inner, near = inner_values(head, weights, marginals, embedding, products.linear)
    change = inner if head.tables else products.linear(inner, weights["out.weight"])
    shift = None
    if "shift.weight" in weights and not head.tables:
        shift = products.few(inner, weights["shift.weight"])
    table = weights["out.table"] if head.tables else target_head
    logits = marginals.logits[:, 1:, None] + products.picked(change, table, marginals.ids[:, 1:], shift, near)
    return logits, marginals.rest[:, 1:, None] + products.few(inner, weights["rest.weight"]).float()


def inner_values(
    head: HeadConfig, weights: Weights, marginals: Marginals, embedding: Tensor, linear: Linear = F.linear
) -> tuple[Tensor, Tensor]:
    """A head's inner values [blocks, L - 1, K, width], and the hidden states `around` each depth."""
    if head.tables:
        inner = F.embedding(marginals.parents, weights["previous.table"])
    else:
        inner = linear(_unit(F.embedding(marginals.parents, embedding)), weights["previous.weight"])
    near = around(marginals.hidden, head.reach)
    if head.form != "static":
        seen = linear(_unit(near).flatten(2), weights["hidden.weight"], weights["bias"])[:, :, None]
        if head.reach:
            spare = (marginals.likely.shape[-1] - head.window) // 2
            likely = marginals.likely[..., spare : spare + head.window]
            features = torch.cat((1 - likely / FLOOR, likely.exp()), -1)
            inner = inner + linear(features.to(inner.dtype), weights["likely.weight"])
        inner = F.silu(inner + seen) if head.form == "gated" else inner * torch.sigmoid(seen)
    return inner, near


def around(x: Tensor, reach: int) -> Tensor:
    """Depths 2 to L of x [blocks, L, hidden] with their neighbours: [blocks, L - 1, window, hidden], zero where there is none."""
    depths = x.shape[1]
    padded = F.pad(x, (0, 0, reach, reach))
    return torch.stack([padded[:, 1 + i : i + depths] for i in range(2 * reach + 1)], 2)


def _unit(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


@torch.no_grad()
def lattice(
    head: HeadConfig,
    weights: Weights,
    hidden: Tensor,
    embedding: Tensor,
    target_head: Tensor,
    count: int,
    roots: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The lattice of drafted blocks: candidates, and their log-probabilities behind each candidate of the depth above.

    Parameters
    ----------
    hidden : Tensor [blocks, L, hidden]
        The drafter's output after its final norm, depths 1 to L.
    embedding, target_head : Tensor [vocabulary, hidden]
    count : int
        Candidates K a depth.
    roots : int Tensor [blocks], optional
        The tokens before depth 1, which published heads look at.

    Returns
    -------
    token_ids : int Tensor [blocks, L, K]
        Best first by the drafter's marginals.
    first : float32 Tensor [blocks, K]
        Log-probabilities of depth 1: the drafter's own, or behind the root with a published head.
    transitions : float32 Tensor [blocks, L - 1, K, K]
        [b, d - 1, i, j]: candidate j of depth d + 1 behind candidate i of depth d.
    """
    found = marginals(hidden, target_head, count, reach=head.reach)
    return lattice_of(head, weights, found, embedding, target_head, roots)


@torch.no_grad()
def lattice_of(
    head: HeadConfig,
    weights: Weights,
    found: Marginals,
    embedding: Tensor,
    target_head: Tensor,
    roots: Tensor | None = None,
    products: Products = TORCH,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lattice` of marginals whose parents are all candidates of the depth above."""
    if head.form in PUBLISHED:
        assert roots is not None
        logprobs = _published(head, weights, found, roots, target_head, products)
        return found.ids, logprobs[:, 0, 0], logprobs[:, 1:]
    logits, rest = conditional(head, weights, found, embedding, target_head, products)
    first = found.logits[:, 0] - torch.logaddexp(found.logits[:, 0].logsumexp(-1), found.rest[:, 0])[:, None]
    return found.ids, first, logits - torch.logaddexp(logits.logsumexp(-1), rest)[..., None]


def parents_at_a_time(logits: int, count: int) -> int:
    """Parents behind which a ``markov`` head's logits of the whole vocabulary are held, where there are ``logits`` behind one."""
    return min(count, max(1, (1 << 25) // logits))


def _published(
    head: HeadConfig, weights: Weights, found: Marginals, roots: Tensor, target_head: Tensor, products: Products
) -> Tensor:
    """Log-probabilities [blocks, L, K, K] behind the root, K times, and behind the candidates of depths 1 to L - 1."""
    out = weights["out.table"]
    parents = torch.cat((roots[:, None, None].expand(-1, 1, found.ids.shape[-1]), found.ids[:, :-1]), 1)
    inner = F.embedding(parents, weights["previous.table"])
    if head.form == "selector":
        inner = inner * products.linear(found.hidden, weights["hidden.weight"])[:, :, None]
    scores = found.logits[:, :, None] + products.picked(inner, out, found.ids)
    if head.form == "selector":
        return scores.log_softmax(-1)
    logits = products.logits(found.hidden, target_head)
    step = parents_at_a_time(logits.numel(), inner.shape[2])
    totals = [(logits[:, :, None] + products.logits(some, out)).logsumexp(-1) for some in inner.split(step, 2)]
    return scores - torch.cat(totals, -1)[..., None]
