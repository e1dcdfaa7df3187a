"""Train a DFlash drafter for a target on text that the target wrote."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ddsim.errors import DdsimError
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import write_tensors
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, drafter_shapes
from ddsim_reference.training.processes import Processes

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


class Muon:
    """Muon for matrices (momentum, then an orthogonalised step) and AdamW for the rest, batched by shape.

    Muon: https://kellerjordan.github.io/posts/muon/. The Newton-Schulz iteration runs in bfloat16 on stacks of equal shape,
    because one small product at a time would leave the GPU idle.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, parameters: Weights, matrix_rate: float, vector_rate: float) -> None:
        self.matrix_rate, self.vector_rate = matrix_rate, vector_rate
        self.parameters = parameters
        self.matrices = [name for name, p in parameters.items() if p.ndim == 2]
        self.momentum = {name: torch.zeros_like(parameters[name]) for name in self.matrices}
        vectors = [p for p in parameters.values() if p.ndim != 2]
        on_gpu = vectors[0].is_cuda
        self.adam = torch.optim.AdamW(
            vectors,
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
            group["lr"] = self.vector_rate * self.scale
        self.adam.step()


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


class Attention:
    """The two attention patterns of training; FlexAttention with block masks kept in place on a GPU, dense masks elsewhere."""

    BLOCK = 128

    def __init__(self, rows: int, length: int, anchors: int, block_size: int, device: str) -> None:
        self.length, self.block_size = length, block_size
        self.flex = device.startswith("cuda")
        self.starts = torch.zeros(rows, length, dtype=torch.int32, device=device)
        self.anchors = torch.zeros(rows, anchors, dtype=torch.int32, device=device)
        self.anchor_starts = torch.zeros(rows, anchors, dtype=torch.int32, device=device)
        self.target_mask: Any = None
        self.drafter_mask: Any = None
        starts, anchors_, anchor_starts = self.starts, self.anchors, self.anchor_starts

        def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
            return (k <= q) & (k >= starts[b, q])

        def blocks(b: Any, h: Any, q: Any, k: Any) -> Any:
            block = q // block_size
            before = (k < anchors_[b, block]) & (k >= anchor_starts[b, block])
            return before | ((k >= length) & ((k - length) // block_size == block))

        self._causal, self._blocks = causal, blocks

    def update(self, batch: Batch) -> None:
        """Point both masks at a new batch. The mask objects stay, so that compiled code stays valid."""
        self.starts.copy_(batch.starts)
        self.anchors.copy_(batch.anchors)
        self.anchor_starts.copy_(batch.starts.gather(1, batch.anchors))
        if self.flex:
            self._update_flex()
        else:
            self._update_dense()

    def _update_dense(self) -> None:
        rows, length = self.starts.shape
        queries = self.anchors.shape[1] * self.block_size
        b = torch.arange(rows, device=self.starts.device)[:, None, None]
        q = torch.arange(max(length, queries), device=b.device)[None, :, None]
        k = torch.arange(length + queries, device=b.device)[None, None]
        self.target_mask = forward.masked_attention(self._causal(b, 0, q[:, :length], k[..., :length])[:, None])
        seen = self._blocks(b, 0, q[:, :queries], k)
        self.drafter_mask = forward.masked_attention(seen[:, None])

    def _update_flex(self) -> None:
        rows, length = self.starts.shape
        size, per = self.BLOCK, self.BLOCK // self.block_size
        queries = self.anchors.shape[1] * self.block_size
        device = self.starts.device
        k_block = torch.arange(length // size, device=device)
        q_block = k_block[:, None]
        starts = self.starts.view(rows, -1, size)
        causal = (k_block <= q_block) & (k_block >= starts.amin(2, keepdim=True) // size)
        causal_full = (k_block < q_block) & (k_block * size >= starts.amax(2, keepdim=True))
        anchors, anchor_starts = self.anchors.view(rows, -1, per), self.anchor_starts.view(rows, -1, per)
        before = (k_block >= anchor_starts.amin(2, keepdim=True) // size) & (
            k_block <= (anchors.amax(2, keepdim=True) - 1) // size
        )
        before_full = (k_block * size >= anchor_starts.amax(2, keepdim=True)) & (
            (k_block + 1) * size <= anchors.amin(2, keepdim=True)
        )
        own = torch.eye(queries // size, dtype=torch.bool, device=device).expand(rows, -1, -1)
        none = torch.zeros_like(own)
        self.target_mask = self._renewed(self.target_mask, causal, causal_full, self._causal, (length, length))
        self.drafter_mask = self._renewed(
            self.drafter_mask, torch.cat((before, own), 2), torch.cat((before_full, none), 2), self._blocks,
            (queries, length + queries),
        )  # fmt: skip

    def _renewed(self, old: Any, seen: Tensor, full: Tensor, rule: Callable[..., Any], lengths: tuple[int, int]) -> Any:
        """A block mask from blocks [rows, queries, keys] that are seen at all, and that are seen whole."""
        tables: list[Tensor] = []
        for blocks in ((seen & ~full)[:, None], (seen & full)[:, None]):
            order = blocks.int().argsort(dim=-1, descending=True, stable=True)
            tables += [blocks.sum(-1).int(), order.int()]
        new = BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=self.BLOCK, mask_mod=rule, seq_lengths=lengths)
        if old is None:
            return new
        for name in ("num_blocks", "indices"):
            for side in ("kv", "q", "full_kv", "full_q"):
                getattr(old, f"{side}_{name}").copy_(getattr(new, f"{side}_{name}"))
        return old

    def target(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal within each document."""
        if not self.flex:
            attended: Tensor = self.target_mask(query, key, value)
            return attended
        return flex_attention(query, key, value, block_mask=self.target_mask, enable_gqa=True)  # type: ignore[return-value]

    def drafter(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each block sees its document before its root, and itself."""
        if not self.flex:
            attended: Tensor = self.drafter_mask(query, key, value)
            return attended
        return flex_attention(query, key, value, block_mask=self.drafter_mask, enable_gqa=True)  # type: ignore[return-value]


class Trainer:
    """Everything that one training run keeps between steps and phases.

    With several processes (`Processes`), each draws from its own corpus and their gradients are averaged.
    """

    def __init__(
        self,
        target: ModelConfig,
        target_weights: Weights,
        drafter: DrafterConfig,
        corpus: Corpus,
        *,
        rows: int = 16,
        anchors: int = 128,
        held_out: int = 64,
        decay: float = 7.0,
        matrix_rate: float = 3e-3,
        vector_rate: float = 1e-3,
        warm_start: bool = True,
        seed: int = 0,
        compiled: bool | None = None,
        ranks: Processes | None = None,
    ) -> None:
        if len(corpus.tokens) <= held_out:
            raise DdsimError(f"training text: {len(corpus.tokens)} rows, but {held_out} are held out; generate more")
        self.target, self.drafter, self.corpus, self.target_weights = target, drafter, corpus, target_weights
        self.rows, self.anchors, self.held_out, self.decay = rows, anchors, held_out, decay
        self.device = str(corpus.tokens.device)
        self.layers = forward.target_layers(target, target_weights)
        self.ranks = Processes() if ranks is None else ranks
        self.seed = seed
        self.generator = torch.Generator(self.device).manual_seed(self._draws(0))
        self.attention = Attention(rows, corpus.tokens.shape[1], anchors, drafter.block_size, self.device)
        compiled = self.device.startswith("cuda") if compiled is None else compiled
        wrap: Callable[..., Any] = torch.compile(fullgraph=True, dynamic=False) if compiled else (lambda f: f)
        self.target_layer = wrap(forward.target_layer)
        self.drafter_layer = wrap(forward.drafter_layer)
        self.elapsed, self.step = 0.0, 0
        torch.manual_seed(seed)
        self.scale = self._feature_scale()
        self.parameters = self._initial(warm_start)
        self.ranks.first_(self.scale, *self.parameters.values())
        # All gradients lie in one buffer, which processes average at once; backward adds to what it finds there.
        self.gradients = torch.zeros(sum(p.numel() for p in self.parameters.values()), device=self.device)
        parts = self.gradients.split([p.numel() for p in self.parameters.values()])
        for parameter, part in zip(self.parameters.values(), parts, strict=True):
            parameter.requires_grad_()
            parameter.grad = part.view_as(parameter)
        self.optimizer = Muon(self.parameters, matrix_rate, vector_rate)
        self.order = torch.zeros(0, dtype=torch.long)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.batch = self._held_out(0)
        self.last_loss = torch.zeros((), device=self.device)

    def _features(self, batch: Batch, ids: Sequence[int]) -> Tensor:
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) - batch.starts
        with torch.no_grad():
            features, _ = forward.target_features(
                self.target, self.target_weights, self.layers, batch.tokens, positions, self.attention.target, ids,
                self.target_layer,
            )  # fmt: skip
        return features

    def _held_out(self, first: int) -> Batch:
        generator = torch.Generator(self.device).manual_seed(first)
        rows = torch.arange(first, first + self.rows, device=self.device)
        return draw(self.corpus, rows, self.anchors, generator)

    def _feature_scale(self) -> Tensor:
        """1 / median RMS of each feature layer: the median, because a document's first token is a thousand times larger."""
        batch = self._held_out(0)
        self.attention.update(batch)
        features = self._features(batch, self.drafter.target_layer_ids).float()
        parts = features.unflatten(-1, (len(self.drafter.target_layer_ids), -1))
        rms = parts.pow(2).mean(-1).sqrt().flatten(0, 1).median(0).values
        return (1 / rms).repeat_interleave(self.drafter.hidden_size)

    def _initial(self, warm_start: bool) -> Weights:
        drafter, target = self.drafter, self.target
        weights: Weights = {}
        for name, shape in drafter_shapes(drafter).items():
            if len(shape) == 1:
                weights[name] = torch.ones(shape, device=self.device)
            else:
                weights[name] = torch.randn(shape, device=self.device) * 0.5 / math.sqrt(shape[1])
        hidden = drafter.hidden_size
        fc = torch.randn(weights["fc.weight"].shape, device=self.device) * 0.02
        fc[:, -hidden:] += torch.eye(hidden, device=self.device)
        weights["fc.weight"] = fc
        weights["norm.weight"] = self.target_weights["model.norm.weight"].float().clone()
        first = target.num_layers - drafter.num_layers
        if not warm_start or first < 1:
            return weights
        batch = self._held_out(0)
        inputs = self._features(batch, range(first - 1, target.num_layers - 1)).float().chunk(drafter.num_layers, -1)
        norms = []
        for i in range(drafter.num_layers):
            source = f"model.layers.{first + i}."
            for name in forward.DRAFTER_LAYER_NAMES:
                if source + name in self.target_weights:
                    weights[f"layers.{i}.{name}"] = self.target_weights[source + name].float().clone()
            norms.append(weights[f"layers.{i}.input_layernorm.weight"])
            normed = forward.rms_norm(inputs[i], norms[-1], target.rms_norm_eps)
            for part in ("q", "k"):
                # The drafter normalises queries and keys where a Llama target does not: start at the target's own scale.
                if not target.qk_norm:
                    heads = F.linear(normed, weights[f"layers.{i}.self_attn.{part}_proj.weight"])
                    rms = heads.unflatten(-1, (-1, drafter.head_dim)).pow(2).mean(-1).sqrt().median()
                    weights[f"layers.{i}.self_attn.{part}_norm.weight"].fill_(rms)
        weights["hidden_norm.weight"] = torch.stack(norms).mean(0)
        return weights

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted cross-entropy of a batch, hits [rows, anchors, horizon] and their weights."""
        dtype = self.target_weights["model.embed_tokens.weight"].dtype
        self.attention.update(batch)
        features = (self._features(batch, self.drafter.target_layer_ids) * self.scale).to(dtype)
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) - batch.starts
        roots = batch.tokens.gather(1, batch.anchors)
        tokens, block_positions = forward.block_inputs(
            self.drafter, roots, batch.anchors - batch.starts.gather(1, batch.anchors)
        )
        noise = F.embedding(tokens, self.target_weights["model.embed_tokens.weight"])
        weights = {name: parameter.to(dtype) for name, parameter in self.parameters.items()}
        hidden = forward.drafter_hidden(
            self.drafter,
            weights,
            features,
            positions,
            noise,
            block_positions,
            self.attention.drafter,
            self.drafter_layer,
        )
        drafted = hidden.unflatten(1, (-1, self.drafter.block_size))[:, :, 1:]
        labels, label_weights = labels_and_weights(batch, self.drafter.horizon, self.decay)
        total = label_weights.sum()
        loss, hits = HeadLoss.apply(
            drafted.flatten(0, 2), self.target_weights["lm_head.weight"], labels.flatten(),
            (label_weights / total).flatten(),
        )  # fmt: skip
        return loss, hits.view(labels.shape), label_weights

    def _draws(self, step: int) -> int:
        """Seed of the draws that begin at a step, another one in each process."""
        return (self.seed + step) * self.ranks.count + self.ranks.rank

    def _next_rows(self) -> Tensor:
        if len(self.order) < self.rows:
            count = len(self.corpus.tokens) - self.held_out
            self.order = self.held_out + torch.randperm(count, device=self.device, generator=self.generator)
        rows, self.order = self.order[: self.rows], self.order[self.rows :]
        return rows

    def evaluate(self) -> tuple[float, float]:
        """Held-out loss, and mean tokens a round of the chain at uniformly placed anchors (which flatters a walk)."""
        losses, lengths = [], []
        with torch.no_grad():
            for first in range(0, self.held_out - self.rows + 1, self.rows):
                batch = self._held_out(first)
                loss, hits, _ = self.loss(batch)
                losses.append(float(loss))
                lengths.append(float(1 + hits.cumprod(-1).sum(-1)[batch.valid].mean()))
        return float(np.mean(losses)), float(np.mean(lengths))

    def _differentiate(self) -> None:
        self.gradients.zero_()
        loss, _, _ = self.loss(self.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.last_loss.copy_(loss.detach())

    def _move(self) -> None:
        fc = self.parameters["fc.weight"].grad
        assert fc is not None
        # Documents' first tokens reach fc a thousand times larger than the rest and would drown its momentum.
        fc.mul_((1.0 / fc.norm().clamp_min(1e-6)).clamp_max(1.0))
        self.optimizer.step()

    def _update(self) -> None:
        """One step: by calls at first, then from CUDA graphs, without which launches would cost a third of the time."""
        halves = [graph.replay for graph in self.graphs] or [self._differentiate, self._move]
        halves[0]()
        self.ranks.mean_(self.gradients)
        halves[1]()

    def _capture(self) -> None:
        torch.cuda.synchronize()
        for half in (self._differentiate, self._move):
            graph = torch.cuda.CUDAGraph()
            # Thread-local, because NCCL's watchdog thread may ask about events meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                half()
            self.graphs.append(graph)

    def run(
        self, seconds: float, total_seconds: float, progress: Callable[[str], None] = print, every: int = 500
    ) -> None:
        """Train for ``seconds`` of a run of ``total_seconds``, over which the learning rates follow a cosine to zero."""
        begun = time.perf_counter()
        before, first = self.elapsed, self.step
        while True:
            # One clock for all processes: they take the same rate, and stop at the same step.
            self.elapsed = self.ranks.first(before + time.perf_counter() - begun)
            if self.elapsed - before >= seconds or self.elapsed >= total_seconds:
                break
            batch = draw(self.corpus, self._next_rows(), self.anchors, self.generator)
            for name, tensor in vars(batch).items():
                getattr(self.batch, name).copy_(tensor)
            warm = min(1.0, (self.step + 1) / 100)
            self.optimizer.scale.fill_(warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.elapsed / total_seconds))))
            self._update()
            if self.device.startswith("cuda") and self.step - first == 3:
                self._capture()
            self.step += 1
            if self.step % every == 0:
                held_out, length = self.evaluate()
                progress(f"step {self.step}, {self.elapsed:.0f} s: loss {float(self.last_loss):.3f}, held out {held_out:.3f}, "
                         f"chain {length:.3f} at uniform anchors")  # fmt: skip
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def start_from(self, weights: Weights) -> None:
        """Begin at an exported drafter of the same shape in place of the target's own layers."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
            self.parameters["fc.weight"] /= self.scale

    def exported(self) -> Weights:
        """The drafter as the published loader reads it: the features' scale folded into ``fc``."""
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        weights["fc.weight"] *= self.scale
        return weights

    def save(self, path: str | Path) -> None:
        """Write what the next phase needs to continue."""
        state = {f"parameters.{k}": v.detach() for k, v in self.parameters.items()}
        state |= {f"momentum.{k}": v for k, v in self.optimizer.momentum.items()}
        for i, entry in self.optimizer.adam.state_dict()["state"].items():
            state |= {f"adam.{i}.{key}": torch.as_tensor(value).float() for key, value in entry.items()}
        state["scale"] = self.scale
        state["progress"] = torch.tensor([self.elapsed, float(self.step)], dtype=torch.float64)
        write_tensors(Path(path), state)

    def load(self, path: str | Path) -> None:
        """Continue from what ``save`` wrote."""
        state = load_file(str(path), device=self.device)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"parameters.{name}"])
            for name, momentum in self.optimizer.momentum.items():
                momentum.copy_(state[f"momentum.{name}"])
            self.scale.copy_(state["scale"])
        adam = self.optimizer.adam.state_dict()
        for key, value in state.items():
            if key.startswith("adam."):
                _, index, field = key.split(".")
                adam["state"].setdefault(int(index), {})[field] = (
                    value if self.device.startswith("cuda") else value.cpu()
                )
        self.optimizer.adam.load_state_dict(adam)
        self.elapsed, self.step = float(state["progress"][0]), int(state["progress"][1])
        self.generator.manual_seed(self._draws(self.step + 1))
