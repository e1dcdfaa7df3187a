"""The decoding engine: static buffers, one forward pass per bucket of tokens (a CUDA graph on a GPU), tree commit, drafting.

A round is ``stage`` (host: pack and upload the trees), ``verify`` (target over all tree tokens), ``commit`` (follow the
target's choices, move accepted rows), ``draft`` (marginals after the new roots); ``collect`` and ``drafted`` read what they
left on the host, once ``wait_commit`` and ``wait`` say that it is there. ``step`` is the round without drafts. Each is usable
and timeable alone: ``set_context`` pretends that any number of tokens is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim_reference.engine import kernels, products
from ddsim_reference.engine.attention import GRANULE, TreeMetadata, near_width
from ddsim_reference.engine.buckets import BUCKETS, Bucket, TokenTree
from ddsim_reference.engine.graphs import Graphs
from ddsim_reference.engine.heads import PRODUCTS
from ddsim_reference.engine.kernels import power_of_two
from ddsim_reference.engine.layers import build_stack, run_layers, run_layers_one
from ddsim_reference.limits import free_memory
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, check_pair, check_window
from ddsim_reference.model.device import check_device
from ddsim_reference.model.forward import by_depth, head_logits
from ddsim_reference.model.heads import TORCH, DraftHead, cut, lattice_of, parents_at_a_time
from ddsim_reference.model.sampling import round_conditionals, top_candidates


class Engine:
    """A target and its drafter, ready to decode ``batch`` requests side by side.

    Parameters
    ----------
    target_config, target_weights
        As ``load_target`` returns them. Their device and type are the engine's; query/key/value and gate/up matrices are
        fused, and the dictionary's entries become views of the fused ones.
    drafter_config, drafter_weights : optional
        As ``load_drafter`` returns them; None decodes autoregressively only.
    draft_head : DraftHead, optional
        As ``load_head`` returns it: lattices are drafted, and not marginals.
    max_context : int
        Most committed tokens of a request, prompt included.
    max_tokens : int
        Most tokens of one forward pass, all requests together.
    batch : int
        Requests side by side.
    candidates : int
        Drafter candidates kept of each marginal; no fewer than the largest budget, and trees are exact.
    lattice_width : int
        Candidates a depth of a lattice, K: other tokens are not proposed, whatever the budget.
    cuda_graphs : bool
        Replay captured graphs (GPU only).
    fast : bool
        Single tokens go through matrix-vector products, and more than 64 through the library's products (GPU only). That is a little
        faster; but then a token's logits depend on how many tokens share its pass, by the rounding of sums in other orders. By
        default they are the same bits: texts don't depend on what is drafted, nor on who else is answered.
    buckets : sequence of int
        Token counts of the graphs.

    Raises
    ------
    DdsimError
        Target and drafter don't fit each other, the GPU is missing, or its memory is too small.
    """

    def __init__(
        self,
        target_config: ModelConfig,
        target_weights: Weights,
        drafter_config: DrafterConfig | None = None,
        drafter_weights: Weights | None = None,
        draft_head: DraftHead | None = None,
        *,
        max_context: int = 2048,
        max_tokens: int = 1025,
        batch: int = 1,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        candidates: int = 512,
        lattice_width: int = 16,
        cuda_graphs: bool = True,
        fast: bool = False,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        embedding = target_weights["model.embed_tokens.weight"]
        self.device = torch.device(embedding.device if device is None else device)
        self.dtype = embedding.dtype if dtype is None else dtype
        check_device(self.device)
        if max_context < 1 or max_tokens < 1 or batch < 1:
            raise DdsimError(
                f"max_context {max_context}, max_tokens {max_tokens}, batch {batch}: all must be at least 1"
            )
        if drafter_config is None or drafter_weights is None:
            drafter_config = drafter_weights = draft_head = None
        else:
            check_pair(target_config, drafter_config)
            check_window(drafter_config, max_context)
        self.target, self.drafter = target_config, drafter_config
        self.max_context, self.max_tokens, self.batch = max_context, max_tokens, batch
        self.steps = 16 if drafter_config is None else power_of_two(drafter_config.horizon + 1)
        self.length = max_context + max(max_tokens, 2 * self.steps)
        self.draft_head = draft_head
        self.candidates = min(candidates if draft_head is None else lattice_width, target_config.vocab_size)
        self.graphs = Graphs(cuda_graphs and self.device.type == "cuda")
        self.fast = fast and self.device.type == "cuda"
        self.auxiliary_layers = () if drafter_config is None else drafter_config.target_layer_ids
        self._check_memory(target_weights, drafter_weights, None if draft_head is None else draft_head[1])

        def here(weights: Weights) -> Weights:
            if embedding.device.type == self.device.type and embedding.dtype == self.dtype:
                return weights
            return {name: tensor.to(self.device, self.dtype) for name, tensor in weights.items()}

        weights = here(target_weights)
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = weights["lm_head.weight"]
        self.stack = build_stack(target_config, weights, "model.", batch, self.length, "model.norm.weight")
        hidden = target_config.hidden_size
        self.features = self._zeros(max_tokens, len(self.auxiliary_layers) * hidden)
        self.logits = torch.zeros(max_tokens, target_config.vocab_size, device=self.device)
        self.choices = self._zeros(max_tokens, dtype=torch.int32)
        self.best = torch.full((max_tokens,), kernels.LOWEST, device=self.device)
        self.context = self._zeros(batch, dtype=torch.int32)
        self.roots = self._zeros(batch, dtype=torch.int32)
        self.active = self._zeros(batch, dtype=torch.int32) + 1  # requests that ``step`` advances
        self.temperature = 0.0
        self.origin = self._zeros(batch, dtype=torch.int32)  # context at which each answer begins
        self.uniforms = self._zeros(
            batch, max_context + 1, dtype=torch.float64
        )  # uniform number of each token of an answer
        self.report = self._zeros(batch, self.steps + 2, dtype=torch.int32)
        self.group = target_config.num_heads // target_config.num_kv_heads
        self.buckets: dict[int, Bucket] = {}
        self.sizes = sorted({b for b in buckets if b < max_tokens} | {max_tokens})
        self.host_report = self._pinned(self.report)
        if drafter_config is not None and drafter_weights is not None:
            self._build_drafter(drafter_config, here(drafter_weights))
            if draft_head is not None:
                self.draft_head = draft_head[0], here(draft_head[1])
        self.ready = self.committed = None
        if self.device.type == "cuda":
            self.ready, self.committed = torch.cuda.Event(), torch.cuda.Event()
        self.step_bucket = Bucket(batch, batch, self.group, self.device)
        self.step_bucket.pack([TokenTree.chain([0])] * batch)
        self.step_bucket.uploaded.copy_(self.step_bucket.staging)

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(*shape, dtype=dtype or self.dtype, device=self.device)

    def _pinned(self, like: Tensor) -> Tensor:
        return like if self.device.type == "cpu" else torch.zeros(like.shape, dtype=like.dtype, pin_memory=True)

    def _build_drafter(self, config: DrafterConfig, weights: Weights) -> None:
        self.fc, self.hidden_norm = weights["fc.weight"], weights["hidden_norm.weight"]
        self.drafter_stack = build_stack(config, weights, "", self.batch, self.length, "norm.weight")
        width = self.steps * self.batch
        self.fresh = self._zeros(width, self.features.shape[1])  # features of the tokens that the last round committed
        self.fed = self._zeros(self.batch, dtype=torch.int32)  # tokens whose keys the drafter holds
        self.pending = self._zeros(self.batch, dtype=torch.int32)  # valid rows of ``fresh``
        block = config.block_size
        # Log-probabilities and ids, so that one copy fetches both.
        depths, count = config.horizon, self.candidates
        rows = depths if self.draft_head is None else 1 + (depths - 1) * count
        values = self.batch * rows * count
        self.draft_out = self._zeros(values + self.batch * depths * count, dtype=torch.int32)
        self.host_draft = self._pinned(self.draft_out)
        (self.draft_logprobs, self.draft_ids), (self.host_logprobs, self.host_ids) = (
            (
                out[:values].view(torch.float32).view(self.batch, rows, count),
                out[values:].view(self.batch, depths, count),
            )
            for out in (self.draft_out, self.host_draft)
        )
        # What the same draft pass needs every round, made once: a launch saved is two microseconds saved.
        rows = torch.arange(self.batch, dtype=torch.int32, device=self.device)
        self.block_tokens = torch.full((self.batch, block), config.mask_token_id, dtype=torch.int32, device=self.device)
        self.block_steps = torch.arange(self.steps, dtype=torch.int32, device=self.device)
        self.block_request = rows.repeat_interleave(block)
        self.placed_request = torch.cat((rows.repeat_interleave(self.steps), self.block_request))
        self.near_steps = torch.arange(near_width(self.steps), dtype=torch.int32, device=self.device)
        whole = torch.full_like(rows, block)
        self.block_tiles = torch.stack((rows, rows * block, whole), 1).contiguous()

    @property
    def largest_tree(self) -> int:
        """Nodes of the largest tree that one request can ask for: beyond the candidates kept of marginals, no tree is exact."""
        all_kept = self.draft_head is not None or self.candidates == self.target.vocab_size
        return self.max_tokens - 1 if all_kept else min(self.candidates, self.max_tokens - 1)

    def needed_bytes(self) -> int:
        """Bytes that caches, logits and features take, beside the weights."""
        size = torch.empty(0, dtype=self.dtype).element_size()
        t, d = self.target, self.drafter
        total = 2 * size * t.num_layers * self.batch * t.num_kv_heads * self.length * t.head_dim
        total += self.max_tokens * (
            4 * t.vocab_size + size * (len(self.auxiliary_layers) * t.hidden_size + 8 * t.intermediate_size)
        )
        if d is not None:
            total += 2 * size * d.num_layers * self.batch * d.num_kv_heads * self.length * d.head_dim
            logits = self.batch * d.horizon * t.vocab_size
            total += 5 * 4 * logits
            if self.draft_head is not None and self.draft_head[0].form == "markov":
                total += 3 * 4 * logits * parents_at_a_time(logits, self.candidates)
        return total

    def _check_memory(self, *weights: Weights | None) -> None:
        free = free_memory(self.device)
        size = torch.empty(0, dtype=self.dtype).element_size()
        needed = self.needed_bytes()
        for tensors in weights:
            needed += sum(x.numel() * size for x in (tensors or {}).values() if x.device.type != self.device.type)
        needed += 2 * size * (self.target.hidden_size * self.target.intermediate_size)  # a matrix while it is fused
        if needed > free:
            raise DdsimError(
                f"{'GPU memory' if self.device.type == 'cuda' else 'memory'}: {needed / 1e9:.1f} GB needed beside what is loaded, {free / 1e9:.1f} GB free; "
                f"lower max_context ({self.max_context}), max_tokens ({self.max_tokens}) or batch ({self.batch})"
            )

    # The state of the requests.

    def set_context(self, contexts: Sequence[int] | int) -> None:
        """Declare tokens committed without computing them: to start afresh (0), or to time any context length."""
        values = [contexts] * self.batch if isinstance(contexts, int) else list(contexts)
        if max(values) > self.max_context:
            raise DdsimError(f"context {max(values)}: the cache holds {self.max_context} tokens; raise max_context")
        self.context.copy_(torch.tensor(values, dtype=torch.int32))
        if self.drafter is not None:
            self.fed.copy_(self.context)
            self.pending.zero_()

    def set_roots(self, roots: Sequence[int]) -> None:
        """Declare each request's last committed token, which the next draft starts from."""
        self.roots.copy_(torch.tensor(list(roots), dtype=torch.int32))

    def set_temperature(self, temperature: float) -> None:
        """Temperature of the tokens chosen from now on; 0 is greedy."""
        if not temperature >= 0:
            raise DdsimError(f"temperature {temperature}: must be 0 or more")
        self.temperature = float(temperature)

    def set_uniforms(self, request: int, origin: int, uniforms: NDArray[np.float64]) -> None:
        """Declare the uniform number behind each token of an answer that begins after ``origin`` tokens."""
        count = min(len(uniforms), self.uniforms.shape[1])
        self.uniforms[request, :count] = torch.from_numpy(uniforms[:count]).to(self.device)
        self.origin[request] = origin

    def set_root(self, request: int, root: int) -> None:
        """Declare one request's last committed token."""
        self.roots[request] = root

    def bucket_for(self, tokens: int) -> Bucket:
        """The bucket that ``tokens`` tokens fall into; on the CPU, exactly that many."""
        if tokens > self.max_tokens:
            raise DdsimError(
                f"{tokens} tokens in one forward pass: the engine was built for {self.max_tokens}; raise max_tokens"
            )
        size = tokens if self.device.type == "cpu" else next(b for b in self.sizes if b >= tokens)
        if size not in self.buckets:
            self.buckets[size] = Bucket(size, self.batch, self.group, self.device)
        return self.buckets[size]

    # One round.

    def stage(self, trees: Sequence[TokenTree | None]) -> Bucket:
        """Pack the requests' trees and start their upload; None leaves a request out."""
        bucket = self.bucket_for(sum(len(tree.tokens) for tree in trees if tree is not None))
        bucket.pack(trees)
        bucket.upload()
        return bucket

    def verify(self, bucket: Bucket) -> Tensor:
        """Run the target over the staged trees.

        Returns
        -------
        float32 Tensor [bucket.tokens, vocabulary]
            Logits in a buffer that the next pass overwrites. ``choices`` holds their argmax, ``features`` the drafter's
            view of the tokens; keys and values lie after each request's context.
        """
        key, verify = ("verify", bucket.tokens), partial(self._verify, bucket)
        self.graphs.prepare(key, verify)
        self._prepare_commit(bucket)
        self.graphs.run(key, verify)
        return self.logits[: bucket.tokens]

    def _prepare_commit(self, bucket: Bucket) -> None:
        """Before anything is verified: warming up walks whatever is staged, and moves rows that lie after the context."""
        if self.graphs.on:
            state = [self.context, self.roots, self.report]
            if self.drafter is not None:
                state += [self.fed, self.pending, self.fresh]
            self.graphs.prepare(("commit", bucket.tokens, self.temperature), partial(self._commit, bucket), state)

    def commit(self, bucket: Bucket) -> None:
        """Follow the target's choices down the verified trees and move the accepted rows; ``collect`` tells the outcome.

        Choices are greedy at temperature 0 (``set_temperature``), otherwise samples drawn with each answer's ``uniforms``.
        """
        self.graphs.run(("commit", bucket.tokens, self.temperature), partial(self._commit, bucket))
        if self.committed is not None:
            self.host_report.copy_(self.report, non_blocking=True)
            self.committed.record()

    def sample(self, bucket: Bucket) -> None:
        """Draw the choices as ``commit`` does above temperature 0, to time that alone."""
        key, sample = ("sample", bucket.tokens, self.temperature), partial(self._sample, bucket)
        self.graphs.prepare(key, sample)
        self.graphs.run(key, sample)

    def draft(self) -> None:
        """Draft after the roots; ``drafted`` tells what."""
        if self.drafter is None:
            raise DdsimError("this engine has no drafter: only autoregressive decoding is possible")
        self.graphs.prepare("draft", self._draft)
        self.graphs.run("draft", self._draft)
        if self.ready is not None:
            self.host_draft.copy_(self.draft_out, non_blocking=True)

    def step(self) -> None:
        """One token for every active request, from its root to its next root, all of it on the device.

        ``roots`` holds the new tokens. Nothing is fed to the drafter: ``draft`` needs a fresh ``prefill`` after it.
        """
        key = "step", self.temperature
        self.graphs.prepare(key, self._step, [self.context, self.roots])
        self.graphs.run(key, self._step)

    def wait(self) -> None:
        """Wait until everything asked for has arrived on the host."""
        if self.ready is not None:
            self.ready.record()
            self.ready.synchronize()

    def wait_commit(self) -> None:
        """Wait for the last ``commit`` only, so that the host works while the drafter does."""
        if self.committed is not None:
            self.committed.synchronize()

    def collect(self) -> list[tuple[list[int], int]]:
        """After ``wait_commit``: for each request the accepted tree indices (the root's 0 first) and the target's next token."""
        return [(row[2 : 2 + row[0]], row[1]) for row in self.host_report.tolist()]

    def drafted(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """After ``wait``: what was drafted for every request; the next draft overwrites it.

        Returns
        -------
        logprobs : float32 ndarray [batch, L, K], or [batch, 1 + (L - 1) * K, K] with a head
            Marginals, descending; or a lattice's first row, then its transitions: row 1 + (d - 1) * K + i follows candidate i
            of depth d. Rounded as in a trace.
        token_ids : int32 ndarray [batch, L, K]
        """
        return self.host_logprobs.numpy(), self.host_ids.numpy()

    def prefill(self, request: int, prompt: Sequence[int], context: int = 0) -> Tensor:
        """Commit a prompt to a request's cache after the ``context`` tokens that it holds, in chunks through the verification path.

        Returns
        -------
        float32 Tensor [1, vocabulary]
            Logits after the last token, valid until the next pass.
        """
        if len(prompt) == 0:
            raise DdsimError("prompt: it is empty; give at least one token")
        if context + len(prompt) > self.max_context:
            held = f"{len(prompt)} tokens" + (f" after {context}" if context else "")
            raise DdsimError(f"prompt: {held}, but the cache holds {self.max_context}; raise max_context")
        self.context[request] = context
        last = None
        for first in range(0, len(prompt), self.max_tokens):
            part = prompt[first : first + self.max_tokens]
            trees: list[TokenTree | None] = [None] * self.batch
            trees[request] = TokenTree.chain(part)
            bucket = self.stage(trees)
            last = self.verify(bucket)[len(part) - 1 : len(part)]
            if self.drafter is not None:
                with torch.inference_mode():
                    self._feed(bucket, len(part))
            self.context[request] += len(part)
            self.wait()  # the staging block is about to be filled again
        if self.drafter is not None:
            self.fed[request] = context + len(prompt)
            self.pending[request] = 0
        assert last is not None
        return last

    # What runs on the device: captured into graphs, or run as it is.

    def _verify(self, bucket: Bucket, auxiliary_layers: tuple[int, ...] | None = None) -> None:
        auxiliary_layers = self.auxiliary_layers if auxiliary_layers is None else auxiliary_layers
        metadata = bucket.metadata(self.context, self.steps)
        x = F.embedding(bucket.on["token"], self.embedding)
        logits = self.logits[: bucket.tokens]
        if self.fast and bucket.tokens == 1:
            hidden = run_layers_one(self.stack, x, metadata, auxiliary_layers=auxiliary_layers, features=self.features)
            kernels.gemv(hidden, self.head, out=logits)
        else:
            hidden = run_layers(
                self.stack, x, metadata, auxiliary_layers=auxiliary_layers, features=self.features, fast=self.fast
            )
            project_head(hidden, self.head, logits, fast=self.fast)
        kernels.highest(logits, self.choices[: bucket.tokens], self.best)

    def _sample(self, bucket: Bucket) -> None:
        """Replace the greedy choices by samples: the number behind a token belongs to its place in the answer."""
        request = bucket.on["request"]
        place = self.context[request] + bucket.on["depth"] + 1 - self.origin[request]
        uniform = self.uniforms[request, place.clamp(0, self.uniforms.shape[1] - 1)]
        picked = kernels.choose_tokens(self.logits[: bucket.tokens], self.temperature, uniform)
        self.choices[: bucket.tokens].copy_(picked)

    def _step(self) -> None:
        bucket = self.step_bucket
        bucket.on["token"].copy_(self.roots)
        self._verify(bucket, auxiliary_layers=())
        if self.temperature > 0:
            self._sample(bucket)
        self.roots.copy_(self.choices[: self.batch])
        self.context += self.active

    def _commit(self, bucket: Bucket) -> None:
        on = bucket.on
        if self.temperature > 0:
            self._sample(bucket)
        path, count, bonus = kernels.walk(
            on["token"], on["parent"], self.choices[: bucket.tokens], on["start"], on["size"], self.steps, bucket.tokens
        )
        kernels.move_rows(self.stack.keys, self.stack.values, self.context, path, count)
        if self.drafter is not None:
            rows = (on["start"][:, None] + path).flatten()
            torch.index_select(self.features, 0, rows, out=self.fresh)
            self.fed.copy_(self.context)
            self.pending.copy_(count)
        self.context += count
        self.roots.copy_(bonus)
        self.report.copy_(torch.cat((count[:, None], bonus[:, None], path), 1))

    def _inject(self, features: Tensor) -> Tensor:
        assert self.drafter is not None
        nothing = self._zeros(features.shape[0], self.fc.shape[0])
        injected = products.product(features, self.fc)
        return kernels.add_rms_norm(nothing, injected, self.hidden_norm, self.drafter.rms_norm_eps)

    def _feed(self, bucket: Bucket, tokens: int) -> None:
        """Write a prompt chunk's keys and values into the drafter's cache."""
        outside = self._inject(self.features[:tokens])
        metadata = bucket.metadata(self.context, self.steps)
        stack = self.drafter_stack
        for i, layer in enumerate(stack.layers):
            kernels.rope_write(
                products.product(outside, layer.qkv), layer.q_norm, layer.k_norm, stack.eps, stack.cos, stack.sin,
                metadata.position[:tokens].contiguous(), metadata.request[:tokens], metadata.slot[:tokens].contiguous(),
                stack.keys[i], stack.values[i],
            )  # fmt: skip

    def _draft(self) -> None:
        config, batch = self.drafter, self.batch
        assert config is not None
        block = config.block_size
        old = self.fed[:, None] + self.block_steps
        kept = torch.where(self.block_steps < self.pending[:, None], old, -1)
        own = (self.context[:, None] + self.block_steps[:block]).flatten()
        self.block_tokens[:, 0] = self.roots
        # Every token of a block sees its context and the whole block.
        seen = self.context // GRANULE * GRANULE
        near = seen[:, None] + self.near_steps
        metadata = TreeMetadata(
            request=self.block_request,
            position=own,
            slot=own,
            seen=seen.repeat_interleave(block),
            near=torch.where(near < self.context[:, None] + block, near, -1).repeat_interleave(block, 0),
            tiles=self.block_tiles,
            tokens_per_tile=power_of_two(block),
        )
        placed = replace(
            metadata,
            request=self.placed_request,
            position=torch.cat((old.flatten(), own)),
            slot=torch.cat((kept.flatten(), own)),
        )
        x = F.embedding(self.block_tokens.flatten(), self.embedding)
        hidden = run_layers(
            self.drafter_stack,
            x,
            metadata,
            outside=self._inject(self.fresh),
            outside_metadata=placed,
            fast=self.fast,
        )
        drafted = by_depth(config, hidden.unflatten(0, (batch, block))).flatten(0, 1)
        logits = torch.empty(drafted.shape[0], self.head.shape[0], device=self.device)
        project_head(drafted, self.head, logits, fast=self.fast)
        total = kernels.logsumexp(logits)
        if self.draft_head is None:
            values, ids = top_candidates(logits, self.candidates, total)
        else:
            head, weights = self.draft_head
            blocks = (x.unflatten(0, (batch, -1)) for x in (drafted, logits))
            found = cut(*blocks, self.candidates, reach=head.reach, total=total.unflatten(0, (batch, -1)))
            ids, first, transitions = lattice_of(
                head, weights, found, self.embedding, self.head, self.roots, TORCH if self.fast else PRODUCTS
            )
            values = round_conditionals(torch.cat((first[:, None], transitions.flatten(1, 2)), 1))
        self.draft_logprobs.copy_(values.view_as(self.draft_logprobs))
        self.draft_ids.copy_(ids.view_as(self.draft_ids))


def project_head(hidden: Tensor, head: Tensor, out: Tensor, *, fast: bool = False) -> None:
    """The head's product, accumulated and kept in float32, into ``out`` [M, vocabulary]; ``fast`` as in `Engine`."""
    if not kernels.use_triton(hidden):
        out.copy_(head_logits(hidden, head))
    elif fast and hidden.shape[0] > products.STREAMED_TOKENS and hidden.dtype != torch.float32:
        torch.ops.aten.mm.dtype_out(hidden, head.T, torch.float32, out=out)
    else:
        products.product(hidden, head, out=out)
