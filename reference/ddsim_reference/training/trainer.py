"""Train a DFlash drafter, or heads for one, for a target on text that the target wrote."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import write_tensors
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, drafter_shapes
from ddsim_reference.model.heads import TORCH, HeadConfig, Marginals, conditional, initial_head, marginals, mixed
from ddsim_reference.training.attention import Attention
from ddsim_reference.training.batches import Batch, Corpus, draw, labels_and_weights
from ddsim_reference.training.loss import HeadLoss, candidate_loss
from ddsim_reference.training.optimiser import Muon
from ddsim_reference.training.processes import Processes


class Trainer:
    """Everything that one training run keeps between steps and phases.

    With several processes (`Processes`), each draws from its own corpus and their gradients are averaged. Heads that know the token
    before are trained side by side on the same hidden states, each as if it were alone; with ``frozen``, the weights of a
    drafter that stays as it is, nothing else is trained. A head's loss is taken among ``candidates`` of the drafter.
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
        heads: Sequence[HeadConfig] = (),
        frozen: Weights | None = None,
        candidates: int = 32,
    ) -> None:
        if len(corpus.tokens) <= held_out:
            raise DdsimError(f"training text: {len(corpus.tokens)} rows, but {held_out} are held out; generate more")
        if held_out < rows:
            raise DdsimError(f"held_out: {held_out} rows, but a batch takes {rows}; hold out as many at least")
        if not bool(corpus.usable[: held_out // rows * rows].any()):
            raise DdsimError(f"training text: no token of an answer in the {held_out} rows held out; generate more")
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
        self.heads, self.candidates = tuple(heads), min(candidates, target.vocab_size)
        self.frozen = None
        if frozen is None:
            self.scale = self._feature_scale()
            self.parameters = self._initial(warm_start)
        else:
            dtype = target_weights["model.embed_tokens.weight"].dtype
            self.frozen = {name: weight.to(self.device, dtype) for name, weight in frozen.items()}
            self.scale = torch.ones(drafter.hidden_size * len(drafter.target_layer_ids), device=self.device)
            self.parameters = {}
        for i, head in enumerate(self.heads):
            generator = torch.Generator().manual_seed(seed)
            initial = initial_head(head, drafter, generator, self.device)
            self.parameters |= {f"heads.{i}.{name}": weight for name, weight in initial.items()}
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

    def _drafted(self, batch: Batch) -> Tensor:
        """The drafter's hidden states of a batch's blocks [blocks, horizon, hidden]."""
        dtype = self.target_weights["model.embed_tokens.weight"].dtype
        self.attention.update(batch)
        features = self._features(batch, self.drafter.target_layer_ids)
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) - batch.starts
        roots = batch.tokens.gather(1, batch.anchors)
        tokens, block_positions = forward.block_inputs(
            self.drafter, roots, batch.anchors - batch.starts.gather(1, batch.anchors)
        )
        noise = F.embedding(tokens, self.target_weights["model.embed_tokens.weight"])
        weights = self.frozen
        if weights is None:
            weights = {name: self.parameters[name].to(dtype) for name in drafter_shapes(self.drafter)}
            features = (features * self.scale).to(dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen is None):
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
        return hidden.unflatten(1, (-1, self.drafter.block_size)).flatten(0, 1)[:, 1:]

    def losses(self, batch: Batch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Of the marginals, then of each head: weighted cross-entropy and hits [rows, anchors, horizon]; and the labels' weights."""
        drafted = self._drafted(batch)
        labels, label_weights = labels_and_weights(batch, self.drafter.horizon, self.decay)
        # Rows without a token of an answer teach nothing, and no NaN.
        shares = (label_weights / label_weights.sum().clamp_min(1e-30)).flatten(0, 1)
        found = []
        if not self.heads:
            found.append(self._marginal_loss(drafted, labels, shares))
        else:
            before = labels.flatten(0, 1)[:, :-1, None]
            reach = max(head.reach for head in self.heads)
            cut = marginals(drafted, self.target_weights["lm_head.weight"], self.candidates, before, reach)
            rows = F.embedding(cut.ids, self.target_weights["lm_head.weight"])
            if self.frozen is None:
                found.append(self._marginal_loss(drafted, labels, shares))
            else:
                found.append(candidate_loss(cut.logits, cut.rest, cut.ids, labels.flatten(0, 1), shares))
            for i in range(len(self.heads)):
                found.append(self.head_loss(i, cut, rows, labels.flatten(0, 1), shares))
        return [(loss, hits.view(labels.shape)) for loss, hits in found], label_weights

    def _marginal_loss(self, drafted: Tensor, labels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = HeadLoss.apply(
            drafted.flatten(0, 1), self.target_weights["lm_head.weight"], labels.flatten(), shares.flatten()
        )
        return found

    def head_loss(self, i: int, cut: Marginals, rows: Tensor, labels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and hits [blocks, L] of a head behind the true tokens before; ``rows`` are the candidates' of the target's head."""
        head, embedding = self.heads[i], self.target_weights["model.embed_tokens.weight"]
        weights = {name: weight.to(embedding.dtype) for name, weight in self.head_weights(i).items()}

        def picked(
            x: Tensor, table: Tensor, ids: Tensor, shift: Tensor | None = None, near: Tensor | None = None
        ) -> Tensor:
            return (mixed(x, shift, near) @ rows[:, 1:].mT).float()  # all heads share the rows

        products = TORCH if head.tables else TORCH._replace(picked=picked)
        logits, rest = conditional(head, weights, cut, embedding, self.target_weights["lm_head.weight"], products)
        logits = torch.cat((cut.logits[:, :1], logits[:, :, 0]), 1)
        rest = torch.cat((cut.rest[:, :1], rest[:, :, 0]), 1)
        if self.frozen is None:
            # ``cut`` holds the candidates' values only: this adds nothing but their slope in the drafter's output.
            moved = cut.hidden - cut.hidden.detach()
            logits = logits + (moved[:, :, None] @ rows.mT)[:, :, 0].float()
        return candidate_loss(logits, rest, cut.ids, labels, shares)

    def head_weights(self, i: int) -> Weights:
        """The parameters of a head, by their names in its file."""
        start = f"heads.{i}."
        return {name.removeprefix(start): p for name, p in self.parameters.items() if name.startswith(start)}

    def _draws(self, step: int) -> int:
        """Seed of the draws that begin at a step, another one in each process."""
        return (self.seed + step) * self.ranks.count + self.ranks.rank

    def _next_rows(self) -> Tensor:
        if len(self.order) < self.rows:
            count = len(self.corpus.tokens) - self.held_out
            self.order = self.held_out + torch.randperm(count, device=self.device, generator=self.generator)
        rows, self.order = self.order[: self.rows], self.order[self.rows :]
        return rows

    def evaluate(self) -> list[tuple[float, float]]:
        """Held-out loss, and mean tokens a round of the chain at uniformly placed anchors (which flatters a walk).

        Of the marginals, then of each head, whose loss is taken behind the true tokens before.
        """
        values: list[list[tuple[float, float]]] = []
        with torch.no_grad():
            for first in range(0, self.held_out - self.rows + 1, self.rows):
                batch = self._held_out(first)
                if not bool(batch.valid.any()):  # nothing to be judged on
                    continue
                found, _ = self.losses(batch)
                values.append(
                    [(float(loss), float(1 + hits.cumprod(-1).sum(-1)[batch.valid].mean())) for loss, hits in found]
                )
        return [(float(loss), float(length)) for loss, length in np.mean(values, 0)]

    def _differentiate(self) -> None:
        self.gradients.zero_()
        found, _ = self.losses(self.batch)
        loss = torch.stack([loss for loss, _ in found]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.last_loss.copy_(found[-1][0].detach())

    def _move(self) -> None:
        if self.frozen is None:
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
                progress(
                    f"step {self.step}, {self.elapsed:.0f} s: loss {float(self.last_loss):.3f}, {in_words(self.evaluate())}"
                )
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def start_from(self, weights: Weights) -> None:
        """Begin at an exported drafter of the same shape in place of the target's own layers."""
        with torch.no_grad():
            for name, weight in weights.items():
                self.parameters[name].copy_(weight)
            self.parameters["fc.weight"] /= self.scale

    def exported(self) -> Weights:
        """The drafter as the published loader reads it: the features' scale folded into ``fc``."""
        weights = {name: self.parameters[name].detach().clone() for name in drafter_shapes(self.drafter)}
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
        shapes = {f"parameters.{name}": parameter.shape for name, parameter in self.parameters.items()}
        if {name: value.shape for name, value in state.items() if name.startswith("parameters.")} != shapes:
            raise DdsimError(f"{path}: is the state of another training; choose another work folder, or delete it")
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


def in_words(figures: Sequence[tuple[float, float]]) -> str:
    """What `Trainer.evaluate` returns, in a line."""
    return ", ".join(
        f"{f'head {i}: ' if i else ''}held out {loss:.3f}, chain {length:.3f} at uniform anchors"
        for i, (loss, length) in enumerate(figures)
    )
