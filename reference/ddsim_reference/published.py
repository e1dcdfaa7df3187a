"""The published DDTree loop as its public code runs it, for comparison only: eager layers, a dense mask a round, Python's heap.

Every operation is launched by the host, the cache grows by concatenation, and the target is transformers' own. It shares its
weights with whoever else holds them, so both loops run in one call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddsim.bench import published_tree
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim_reference.model import forward
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights

CONTEXTS = (64, 512, 4096)
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention as the published figures had it. Recent PyTorch would rather have cuDNN's on a Hopper GPU, which builds a plan for
every new length of the context, so for every round: that would flatter whatever is compared with this loop."""


@dataclass
class Published:
    """What the published loop made of some prompts.

    Attributes
    ----------
    tokens : list of list of int
        Answers, stop tokens included.
    rounds : int
    seconds : float
        Of all rounds, prompts not counted.
    """

    tokens: list[list[int]] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0


def transformers_target(config: ModelConfig, weights: Weights) -> Any:
    """The target as a transformers model that holds the very tensors of ``weights``."""
    import transformers

    kind = "Llama" if config.arch == "llama" else "Qwen3"
    settings = getattr(transformers, f"{kind}Config")(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=False,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(settings)
    wanted = set(model.state_dict())
    model.load_state_dict({name: x for name, x in weights.items() if name in wanted}, strict=True, assign=True)
    device = weights["model.embed_tokens.weight"].device
    # Buffers aren't in the checkpoint; only the rotary frequencies are any.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=settings)
    return model.eval()


class PublishedDrafter:
    """A DFlash drafter layer by layer; keys and values of the context grow by concatenation."""

    def __init__(self, config: DrafterConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        self.reset()

    def reset(self) -> None:
        """Forget the context."""
        self.fed = 0
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * self.config.num_layers

    def hidden(self, features: Tensor, noise: Tensor) -> Tensor:
        """Hidden states [1, block_size, hidden] of a block after the context that these features [1, n, ...] complete."""
        block, device = self.config.block_size, noise.device
        context_at = torch.arange(self.fed, self.fed + features.shape[1], device=device)[None]
        self.fed += features.shape[1]
        block_at = torch.arange(self.fed, self.fed + block, device=device)[None]
        layers = iter(range(self.config.num_layers))

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            i = next(layers)
            before = self.cache[i]
            if before is not None:
                key, value = torch.cat((before[0], key), 2), torch.cat((before[1], value), 2)
            self.cache[i] = key[:, :, :-block], value[:, :, :-block]
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

        return forward.drafter_hidden(
            self.config, self.weights, features, context_at, noise, block_at, attend, _published_layer
        )  # fmt: skip


_published_layer = partial(forward.drafter_layer, pair=forward.separate)
"""Its products are launched one by one, as in the public code: joined ones would copy the weights each round."""


def published_loop(
    config: ModelConfig,
    weights: Weights,
    drafter: DrafterConfig,
    drafter_weights: Weights,
    prompts: Sequence[Sequence[int]],
    *,
    budget: int,
    max_new_tokens: int,
    stop: Sequence[int] | None = None,
    warmup: int = 3,
) -> Published:
    """Answer prompts greedily, one after another.

    Parameters
    ----------
    config, weights, drafter, drafter_weights
        The pair; no tensor is copied.
    prompts : sequence of sequence of int
        Token ids.
    budget : int
        Nodes of every tree.
    max_new_tokens : int
        Longest answer.
    stop : sequence of int, optional
        Tokens that end an answer; the target's own by default.
    warmup : int
        Rounds on the first prompt that are run before anything is timed.

    Returns
    -------
    Published
    """
    model = transformers_target(config, weights)
    stops = frozenset(config.eos_token_ids if stop is None else stop)
    loop = _Loop(model, PublishedDrafter(drafter, drafter_weights), weights, budget)
    result = Published()
    with torch.inference_mode(), sdpa_kernel(BACKENDS):
        if prompts and warmup:
            loop.answer(prompts[0], max_new_tokens, stops, most_rounds=warmup)
        for prompt in prompts:
            tokens, rounds, seconds = loop.answer(prompt, max_new_tokens, stops)
            result.tokens.append(tokens)
            result.rounds += rounds
            result.seconds += seconds
    return result


class _Loop:
    def __init__(self, model: Any, drafter: PublishedDrafter, weights: Weights, budget: int) -> None:
        self.model, self.drafter, self.budget = model, drafter, budget
        self.embedding, self.head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
        self.device = self.embedding.device
        self.auxiliary: dict[int, Tensor] = {}
        for i in drafter.config.target_layer_ids:
            model.model.layers[i].register_forward_hook(self._keep(i))

    def _keep(self, layer: int) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            self.auxiliary[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _features(self) -> Tensor:
        return torch.cat([self.auxiliary[i] for i in self.drafter.config.target_layer_ids], -1)

    def answer(
        self, prompt: Sequence[int], longest: int, stops: frozenset[int], most_rounds: int | None = None
    ) -> tuple[list[int], int, float]:
        """Answer, rounds and their seconds."""
        from transformers import DynamicCache

        cache = DynamicCache()
        self.drafter.reset()
        ids = torch.tensor([list(prompt)], device=self.device)
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        features = self._features()
        answer = [int(output.logits[0, -1].argmax())]
        committed, rounds = len(prompt), 0
        self._synchronise()
        begin = time.perf_counter()
        while answer[-1] not in stops and len(answer) < longest and rounds != most_rounds:
            fresh, features = self._round(cache, committed, answer[-1], features)
            committed += len(fresh)
            rounds += 1
            fresh = fresh[: longest - len(answer)]
            end = next((i for i, token in enumerate(fresh) if token in stops), len(fresh) - 1)
            answer += fresh[: end + 1]
        self._synchronise()
        return answer, rounds, time.perf_counter() - begin

    def _round(self, cache: Any, committed: int, root: int, features: Tensor) -> tuple[list[int], Tensor]:
        """Draft, verify, commit: the tokens gained, and the features of the tokens that went into the cache."""
        return self.verify(cache, committed, root, *self.draft(root, features))

    def draft(self, root: int, features: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Log-probabilities and ids of the likeliest tokens at each depth, on the host."""
        block = self.drafter.config
        inputs = torch.full((1, block.block_size), block.mask_token_id, device=self.device)
        inputs[0, 0] = root
        hidden = self.drafter.hidden(features, F.embedding(inputs, self.embedding))
        logits = F.linear(forward.by_depth(block, hidden), self.head).float()
        values, places = logits.log_softmax(-1).topk(min(self.budget, logits.shape[-1]) or 1, -1)
        return values[0].cpu().numpy(), places[0].cpu().numpy()

    def verify(
        self, cache: Any, committed: int, root: int, values: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> tuple[list[int], Tensor]:
        """The heap's tree of a draft, the target's pass over it and what of it stays in the cache."""
        device = self.device
        parents, depths, ranks, seen = published_tree(values, self.budget)
        size = len(parents)
        tokens = ids[depths[1:] - 1, ranks[1:]].tolist()
        mask = torch.zeros(1, 1, size, committed + size, dtype=self.embedding.dtype)
        mask[0, 0, :, committed:].masked_fill_(torch.from_numpy(~seen), torch.finfo(mask.dtype).min)
        output = self.model(
            input_ids=torch.tensor([[root, *tokens]], device=device),
            position_ids=torch.tensor((committed + depths)[None].tolist(), device=device),
            attention_mask=mask.to(device),
            past_key_values=cache,
            use_cache=True,
        )
        wanted = output.logits[0].argmax(-1).tolist()
        children = {
            (parent, token): j for j, (parent, token) in enumerate(zip(parents[1:].tolist(), tokens, strict=True), 1)
        }
        path = [0]
        while (path[-1], wanted[path[-1]]) in children:
            path.append(children[path[-1], wanted[path[-1]]])
        kept = torch.tensor([*range(committed), *(committed + j for j in path)], device=device)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.index_select(2, kept), layer.values.index_select(2, kept)
        features = self._features()[:, torch.tensor(path, device=device)]
        return [*(tokens[j - 1] for j in path[1:]), wanted[path[-1]]], features


def published_seconds(
    config: ModelConfig,
    weights: Weights,
    drafter: DrafterConfig,
    drafter_weights: Weights,
    *,
    tokens: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    seed: int = 0,
    sweep_done: Callable[[int, dict[Any, list[float]]], None] | None = None,
) -> dict[Any, list[float]]:
    """Seconds of a round's two parts in the published loop, by the clock, in shuffled sweeps.

    Parameters
    ----------
    config, weights, drafter, drafter_weights
        The pair; no tensor is copied.
    tokens : sequence of int
        Verified in a pass. One token is a step without a draft.
    contexts : sequence of int
        Committed tokens.
    repeats : int
        Sweeps, each in another order.
    seed : int
        Of the prompt's tokens and the orders.
    sweep_done : callable, optional
        Called with (sweep, seconds so far).

    Returns
    -------
    dict
        Of ("verify", tokens, context, 1): the heap, the mask, the pass, and what stays in the cache. Of ("draft", context, 1):
        the drafter's pass over four new tokens, and its likeliest tokens on the host.
    """
    from transformers import DynamicCache

    model = transformers_target(config, weights)
    loop = _Loop(model, PublishedDrafter(drafter, drafter_weights), weights, max(1, max(tokens) - 1))
    rng, order = np.random.default_rng(seed), random.Random(seed)
    found: dict[Any, list[float]] = {}
    points: list[tuple[Any, ...]] = [
        *(("verify", m, c, 1) for m in tokens for c in contexts), *(("draft", c, 1) for c in contexts)
    ]  # fmt: skip
    with torch.inference_mode(), sdpa_kernel(BACKENDS):
        begun: dict[int, tuple[Any, Tensor, Any, Any]] = {}
        for context in contexts:
            cache = DynamicCache()
            loop.drafter.reset()
            ids = torch.tensor([rng.integers(0, config.vocab_size, context).tolist()], device=loop.device)
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            features = loop._features()
            drafted = loop.draft(1, features)
            begun[context] = cache, features[:, -4:], drafted, (loop.drafter.fed, list(loop.drafter.cache))
        for sweep in range(-1, repeats):  # the first picks the library's kernels
            for point in points:
                context = point[-2]
                cache, features, drafted, (fed, kept) = begun[context]
                loop.drafter.fed, loop.drafter.cache = fed, list(kept)
                loop._synchronise()
                begin = time.perf_counter()
                if point[0] == "draft":
                    loop.draft(1, features)
                elif point[1] == 1:
                    step = model(
                        input_ids=torch.tensor([[1]], device=loop.device), past_key_values=cache, use_cache=True
                    )
                    int(step.logits[0, -1].argmax())
                else:
                    loop.budget = point[1] - 1
                    loop.verify(cache, context, 1, *drafted)
                loop._synchronise()
                seconds = time.perf_counter() - begin
                for layer in cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, :context], layer.values[:, :, :context]
                if sweep >= 0:
                    found.setdefault(point, []).append(seconds)
            order.shuffle(points)
            if sweep >= 0 and sweep_done is not None:
                sweep_done(sweep, found)
    return found


def published_profile(
    path: Path, config: ModelConfig, weights: Weights, drafter: DrafterConfig, drafter_weights: Weights,
    provenance: dict[str, Any], most: int, contexts: Sequence[int] | None, progress: Callable[[int, int], None] | None,
) -> Path:  # fmt: skip
    """Measure the published loop and write its profile, anew after every sweep; ``provenance`` as `measure_profile` makes it."""
    import transformers

    repeats = provenance["repeats"]
    provenance = {k: v for k, v in provenance.items() if k not in ("head", "triton", "max_context")} | {
        "engine": f"Hugging Face transformers {transformers.__version__}, eager",
        "cuda_graphs": False,
    }

    def save(sweep: int, seconds: dict[Any, list[float]]) -> None:
        points = sorted(seconds.items(), key=lambda item: (item[0][-2], item[0][1]))
        Profile(
            verify=[VerifySample(key[1], key[2], 1, tuple(times)) for key, times in points if key[0] == "verify"],
            draft=[DraftSample(key[1], 1, tuple(times)) for key, times in points if key[0] == "draft"],
            host=[],
            provenance=provenance,
        ).save(path)
        if progress is not None:
            progress(sweep + 1, repeats)

    published_seconds(
        config, weights, drafter, drafter_weights, tokens=[2**i for i in range(most.bit_length())],
        contexts=contexts or CONTEXTS, repeats=repeats, seed=provenance["seed"], sweep_done=save,
    )  # fmt: skip
    return path
