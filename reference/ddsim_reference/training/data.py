"""Training text: the target's own answers, and its own users' questions, written by the target on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim.files.atomic import write
from ddsim_reference.generate import TextGenerator
from ddsim_reference.limits import in_child
from ddsim_reference.model.config import ModelConfig, Weights


@dataclass
class PromptPool:
    """Token ids that documents begin with.

    ``tokens`` is int32 [prompts, longest] and ``lengths`` int32 [prompts]. ``self_written[i]`` marks a prompt that ends
    where a user's turn begins: the target writes that turn itself, then answers it after ``opening``, the chat template's
    opening of an assistant turn.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    self_written: np.ndarray
    opening: np.ndarray
    end_of_turn: int

    @classmethod
    def build(cls, prompts: Sequence[Sequence[int]], user_opening: Sequence[int], opening: Sequence[int],
              end_of_turn: int, self_written_share: float) -> PromptPool:  # fmt: skip
        """Pad prompts into one array and mix in ``self_written_share`` of documents that start at ``user_opening``."""
        extra = round(len(prompts) * self_written_share / (1 - self_written_share))
        rows = [list(p) for p in prompts] + [list(user_opening)] * extra
        lengths = np.array([len(r) for r in rows], np.int32)
        tokens = np.zeros((len(rows), max(int(lengths.max()), len(opening))), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        written = np.arange(len(rows)) >= len(prompts)
        return cls(tokens, lengths, written, np.array(opening, np.int32), end_of_turn)

    def share(self, rank: int, count: int) -> PromptPool:
        """One of ``count`` parts, for writers side by side: no prompt is in two of them."""
        mine = slice(rank, None, count)
        return PromptPool(
            self.tokens[mine], self.lengths[mine], self.self_written[mine], self.opening, self.end_of_turn
        )

    def save(self, path: str | Path) -> None:
        """Write the pool as ``.npz`` (arrays only, no pickle)."""
        arrays: dict[str, Any] = {
            "tokens": self.tokens.astype(np.uint16), "lengths": self.lengths, "self_written": self.self_written,
            "opening": self.opening, "end_of_turn": np.int32(self.end_of_turn),
        }  # fmt: skip
        write(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> PromptPool:
        """Read a pool that ``save`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["tokens"].astype(np.int32), file["lengths"], file["self_written"], file["opening"],
                       int(file["end_of_turn"]))  # fmt: skip


def looping(rows: Tensor, longest_period: int = 40) -> Tensor:
    """Which rows, int [slots, window], end in a repetition: three periods of at most ``longest_period``, 36 tokens at least."""
    found = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
    for period in range(1, longest_period + 1):
        tail = max(3 * period, 36)
        if tail + period > rows.shape[1]:
            break
        found |= (rows[:, -tail:] == rows[:, -tail - period : -period]).all(1)
    return found


class Writer:
    """Slots that write documents back to back: prompt, answer, next prompt, in rows of ``length`` tokens.

    No text is written twice: an instruction is answered greedily the first time and sampled after that. Users' turns that
    the target writes itself are samples, so most of their answers can be greedy (all but ``sampled_share``).
    """

    def __init__(self, config: ModelConfig, weights: Weights, pool: PromptPool, *, slots: int, length: int,
                 longest: int, sampled_share: float = 0.2, seed: int = 0) -> None:  # fmt: skip
        device = weights["model.embed_tokens.weight"].device
        self.model = TextGenerator(config, weights, slots, length)
        self.slots, self.length, self.longest, self.device = slots, length, longest, device
        self.seed = seed
        # A CUDA graph draws from the device's own generator, which `_capture` seeds.
        self.generator = None if device.type == "cuda" else torch.Generator(device).manual_seed(seed)
        generator = np.random.default_rng(seed)
        count = len(pool.lengths)
        # Row ``count`` of the pool is the opening of an assistant turn: a self-written question continues there.
        tokens = np.concatenate([pool.tokens, np.zeros((1, pool.tokens.shape[1]), np.int32)])
        tokens[count, : len(pool.opening)] = pool.opening
        self.pool = torch.from_numpy(tokens).to(device)
        self.pool_lengths = torch.tensor([*pool.lengths, len(pool.opening)], dtype=torch.long, device=device)
        self.self_written = torch.tensor([*pool.self_written, False], device=device)
        self.opening_row, self.end_of_turn = count, pool.end_of_turn
        self.order = torch.tensor(generator.permutation(count), dtype=torch.long, device=device)
        warm = generator.uniform(0.6, 1.0, 1 << 16)
        sampled = generator.random(1 << 16) < sampled_share
        self.warm = torch.tensor(warm, dtype=torch.float32, device=device)
        self.sampled = torch.tensor(sampled, device=device)
        self.next = torch.zeros((), dtype=torch.long, device=device)

        def vector(dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(slots, dtype=dtype, device=device)

        self.token, self.start, self.prompt, self.forced = vector(), vector(), vector(), vector()
        self.generated, self.answering, self.kill = vector(torch.bool), vector(torch.bool), vector(torch.bool)
        self.reply_temperature = vector(torch.float32)
        self.step = torch.zeros((), dtype=torch.long, device=device)
        self.rows = torch.zeros(slots, length, dtype=torch.long, device=device)
        self.row_generated = torch.zeros(slots, length, dtype=torch.bool, device=device)
        self.row_start = torch.zeros(slots, length, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def _begin(self, ended: Tensor) -> None:
        """Give each slot that ended the next prompt in order; its first token comes next."""
        ticket = self.next + ended.long().cumsum(0) - 1
        self.next += ended.sum()
        prompt = self.order[ticket % len(self.order)]
        draw = ticket % len(self.warm)
        sampled = torch.where(self.self_written[prompt], self.sampled[draw], ticket >= len(self.order))
        self.prompt.copy_(torch.where(ended, prompt, self.prompt))
        self.reply_temperature.copy_(torch.where(ended, self.warm[draw] * sampled, self.reply_temperature))
        self.forced.masked_fill_(ended, 0)
        self.answering.copy_(torch.where(ended, ~self.self_written[self.prompt], self.answering))

    def _advance(self) -> None:
        hidden = self.model.hidden(self.token, self.step, self.start)
        logits = self.model.logits(hidden)
        chosen = logits.argmax(-1)
        temperature = torch.where(self.answering, self.reply_temperature, 1.0)
        noise = torch.empty_like(logits).exponential_(generator=self.generator).log_()
        sampled = (logits / temperature.clamp_min(1e-3)[:, None] - noise).argmax(-1)
        chosen = torch.where(temperature > 0, sampled, chosen)

        turn_over = self.generated & (self.token == self.end_of_turn)
        ended = (turn_over & self.answering) | (self.step + 1 - self.start >= self.longest) | self.kill
        asked = turn_over & ~self.answering & ~ended
        self.prompt.masked_fill_(asked, self.opening_row)
        self.forced.masked_fill_(asked, 0)
        self.answering |= asked
        self._begin(ended)
        self.kill.zero_()
        scripted = self.forced < self.pool_lengths[self.prompt]
        script = self.pool[self.prompt, self.forced.clamp_max(self.pool.shape[1] - 1)].long()
        self.token.copy_(torch.where(scripted, script, chosen))
        self.forced += scripted
        self.generated.copy_(~scripted)
        self.step += 1
        self.start.copy_(torch.where(ended, self.step, self.start))
        self._store()

    def _store(self) -> None:
        at = self.step.clamp_max(self.length - 1).view(1)
        self.rows.index_copy_(1, at, self.token[:, None])
        self.row_generated.index_copy_(1, at, (self.generated & self.answering)[:, None])
        self.row_start.index_copy_(1, at, self.start[:, None])

    def wave(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Write one row a slot.

        Returns
        -------
        tokens : uint16 ndarray [slots, length]
        starts : uint16 ndarray [slots, length]
            Row position at which the token's document starts.
        generated : bool ndarray [slots, length]
            Tokens of answers. Users' turns are False, whoever wrote them: nobody drafts those.
        """
        everyone = torch.ones(self.slots, dtype=torch.bool, device=self.device)
        self.step.zero_()
        self.start.zero_()
        self.generated.zero_()
        self._begin(everyone)
        self.token.copy_(self.pool[self.prompt, 0].long())
        self.forced.fill_(1)
        self._store()
        advance: Callable[[], Any] = self._advance
        if self.device.type == "cuda":
            if self.graph is None:
                self._capture()
            assert self.graph is not None
            advance = self.graph.replay
        for t in range(1, self.length):
            advance()
            if t % 64 == 0 and t >= 192:
                self.kill |= looping(self.rows[:, t - 159 : t + 1]) & self.generated
        return (
            self.rows.cpu().numpy().astype(np.uint16),
            self.row_start.cpu().numpy().astype(np.uint16),
            self.row_generated.cpu().numpy(),
        )

    def _capture(self) -> None:
        # Warm-up runs advance the state; saving it keeps the first wave what the seed says it is.
        state = [self.token, self.start, self.prompt, self.forced, self.generated, self.answering, self.kill, self.step,
                 self.reply_temperature, self.next, self.rows, self.row_generated, self.row_start]  # fmt: skip
        saved = [tensor.clone() for tensor in state]
        torch.cuda.manual_seed(self.seed)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
        self.graph = graph


def generate(
    config: ModelConfig,
    weights: Weights,
    pool: PromptPool,
    *,
    seconds: float,
    slots: int = 2048,
    length: int = 1024,
    longest: int = 576,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> dict[str, np.ndarray]:
    """Write training text for about ``seconds``.

    Returns
    -------
    dict
        ``tokens`` uint16 [rows, length], ``starts`` uint16 and ``generated`` bool of the same shape.

    Raises
    ------
    DdsimError
        A prompt is longer than a document may be.
    """
    if int(pool.lengths.max()) >= longest:
        raise DdsimError(
            f"prompt {int(pool.lengths.argmax())}: {int(pool.lengths.max())} tokens, but documents end at {longest}"
        )
    with torch.inference_mode():
        writer = Writer(config, weights, pool, slots=slots, length=length, longest=longest, seed=seed)
        begun = time.perf_counter()
        waves: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while not waves or (time.perf_counter() - begun) * (1 + 1 / len(waves)) < seconds:
            waves.append(writer.wave())
            elapsed = time.perf_counter() - begun
            written = len(waves) * slots * length
            progress(f"wave {len(waves)}: {written / 1e6:.1f}M tokens, {written / elapsed / 1e3:.0f}k tokens/s")
    names = ("tokens", "starts", "generated")
    return {name: np.concatenate([wave[i] for wave in waves]) for i, name in enumerate(names)}


def build_pool(tokenizer: Any, prompts: Sequence[str], *, self_written_share: float, end_of_turn: int,
               longest: int = 400) -> PromptPool:  # fmt: skip
    """Encode instructions with the target's chat template; ones of more than ``longest`` tokens are left out.

    The template's own text around a user's message gives the openings of the user's and the assistant's turns.
    """
    mark = "@@ddsim@@"
    messages = [{"role": "user", "content": mark}]
    whole = in_child(
        lambda: tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
        f"{getattr(tokenizer, 'name_or_path', '') or 'the target'}: its chat template",
    )
    if whole.count(mark) != 1:
        raise DdsimError(f"the chat template repeats or drops the user's message: {whole.count(mark)} times of 1")
    before, after = whole.split(mark)
    opening = tokenizer(after, add_special_tokens=False)["input_ids"]
    if opening[0] != end_of_turn:
        raise DdsimError(
            "the chat template does not close a user's turn with the end-of-text token; self-written turns need it"
        )
    texts = [before + prompt + after for prompt in prompts]
    encoded = [ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if len(ids) <= longest]
    if not encoded:
        raise DdsimError(f"no prompt has at most {longest} tokens; give shorter ones")
    user_opening = tokenizer(before, add_special_tokens=False)["input_ids"]
    return PromptPool.build(encoded, user_opening, opening[1:], end_of_turn, self_written_share)
