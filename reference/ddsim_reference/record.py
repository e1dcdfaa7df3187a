"""Record dense traces: what the drafter proposes at every position of answers that the target writes, or that are given."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import ddsim
from ddsim.errors import DdsimError
from ddsim.trace.together import Together, is_shared
from ddsim.trace.writer import TraceWriter
from ddsim_reference.generate import TextGenerator
from ddsim_reference.limits import check_range, check_sampling, free_memory
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import (
    HEAD,
    checkpoint_folder,
    load_drafter,
    load_head,
    load_target,
    target_files,
    weight_files,
)
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, check_pair, check_window
from ddsim_reference.model.device import Process, device_name, number_type, this_process
from ddsim_reference.model.forward import head_logits
from ddsim_reference.model.heads import DraftHead, HeadConfig, lattice
from ddsim_reference.model.logs import Given, choose_answers, encode_given
from ddsim_reference.model.sampling import choose, round_conditionals, top_candidates, uniforms
from ddsim_reference.model.workloads import Prompt, check_tokens, choose_prompts, encode_all

WIDEST = 64
"""Candidates a depth of a lattice: transitions take the square of it."""


def write_answers(
    config: ModelConfig,
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    random: Sequence[np.ndarray] | None = None,
) -> list[list[int]]:
    """The target's own answers to several prompts, written side by side.

    Parameters
    ----------
    prompts : sequence of sequence of int
        Token ids.
    max_new_tokens : int
        Answers end there or with an end-of-text token, which is part of the answer.
    random : sequence of float64 arrays [max_new_tokens], optional
        ``uniforms`` of each prompt; needed above temperature 0.

    Returns
    -------
    list of list of int
        Token ids of each answer, at least one each.
    """
    device = weights["model.embed_tokens.weight"].device
    longest = max(map(len, prompts))
    model = TextGenerator(config, weights, len(prompts), longest + max_new_tokens)
    # Prompts end in one place, so that all answers begin at the same step.
    start = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    rows = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
    drawn = None if random is None else torch.tensor(np.stack([u[:max_new_tokens] for u in random]), device=device)
    stops = torch.tensor(config.eos_token_ids or (-1,), device=device)
    going = torch.arange(len(prompts), device=device)  # answers that are written on, in the order of the model's slots
    step = torch.zeros((), dtype=torch.long, device=device)
    with torch.inference_mode():
        hidden = torch.stack(
            [model.prefill(slot, prompt, longest - len(prompt)) for slot, prompt in enumerate(prompts)]
        )
        stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        for written in range(max_new_tokens):
            if written > 0:
                step.fill_(longest + written - 1)
                hidden = model.hidden(rows[going, written - 1], step, start)
            token = choose(model.logits(hidden), temperature, None if drawn is None else drawn[going, written])
            rows[going, written] = token
            stopped |= torch.isin(token, stops)
            if written % 16 == 15 and bool(stopped.any()):
                left = (~stopped).nonzero()[:, 0]
                if len(left) == 0:
                    break
                if len(left) <= 0.75 * len(going):  # finished answers would go on costing as much as the others
                    model.keep(left)
                    going, start, stopped = going[left], start[left], stopped[left]
    answers = []
    for answer in rows.tolist():
        ends = [i for i, token in enumerate(answer) if token in config.eos_token_ids]
        answers.append(answer[: ends[0] + 1] if ends else answer)
    return answers


@torch.inference_mode()
def marginals(
    target: ModelConfig,
    target_weights: Weights,
    layers: list[forward.TargetLayer],
    drafter: DrafterConfig,
    drafter_weights: Weights,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    candidates: int,
    positions_per_pass: int = 128,
) -> tuple[np.ndarray, np.ndarray]:
    """The drafter's marginals at every position of an answer, many blocks a pass.

    Returns
    -------
    logprobs : float32 ndarray [len(answer), horizon, candidates]
        Rounded and ordered as in a trace; -inf at the last position, which starts no round.
    token_ids : int32 ndarray of the same shape
    """
    count = min(candidates, target.vocab_size)
    logprobs = np.full((len(answer), drafter.horizon, count), -np.inf, np.float32)
    token_ids = np.zeros(logprobs.shape, np.int32)
    models = target, target_weights, layers, drafter, drafter_weights
    for own, hidden in drafted_blocks(*models, prompt, answer, positions_per_pass):
        values, ids = top_candidates(head_logits(hidden, target_weights["lm_head.weight"]), count)
        logprobs[own] = values.cpu().numpy()
        token_ids[own] = ids.cpu().numpy()
    return logprobs, token_ids


@torch.inference_mode()
def lattices(
    target: ModelConfig,
    target_weights: Weights,
    layers: list[forward.TargetLayer],
    drafter: DrafterConfig,
    drafter_weights: Weights,
    draft_head: DraftHead,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    width: int,
    positions_per_pass: int = 64,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lattices that a drafter with a head drafts at every position of an answer, many blocks a pass.

    Parameters
    ----------
    draft_head : DraftHead
        As ``load_head`` returns it.
    width : int
        Candidates a depth, K; no more than the vocabulary holds.

    Returns
    -------
    token_ids : int32 ndarray [len(answer), L, K]
    first : float32 ndarray [len(answer), K]
        Rounded as in a trace; -inf at the last position, which starts no round.
    transitions : float32 ndarray [len(answer), L - 1, K, K]
        The same.
    """
    embedding, target_head = target_weights["model.embed_tokens.weight"], target_weights["lm_head.weight"]
    count, depths = min(width, target.vocab_size), drafter.horizon
    token_ids = np.zeros((len(answer), depths, count), np.int32)
    first = np.full((len(answer), count), -np.inf, np.float32)
    transitions = np.full((len(answer), depths - 1, count, count), -np.inf, np.float32)
    models = target, target_weights, layers, drafter, drafter_weights
    for own, hidden in drafted_blocks(*models, prompt, answer, positions_per_pass):
        roots = torch.tensor(answer[own], device=hidden.device)
        ids, starts, steps = lattice(*draft_head, hidden, embedding, target_head, count, roots)
        token_ids[own] = ids.cpu().numpy()
        first[own] = round_conditionals(starts).cpu().numpy()
        transitions[own] = round_conditionals(steps).cpu().numpy()
    return token_ids, first, transitions


def drafted_blocks(
    target: ModelConfig,
    target_weights: Weights,
    layers: list[forward.TargetLayer],
    drafter: DrafterConfig,
    drafter_weights: Weights,
    prompt: Sequence[int],
    answer: Sequence[int],
    positions_per_pass: int,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The drafter's output at every position of an answer but the last.

    Yields the positions of a pass and their hidden states [blocks, L, hidden].
    """
    device = target_weights["model.embed_tokens.weight"].device
    tokens = torch.tensor([[*prompt, *answer]], device=device)
    here = torch.arange(tokens.shape[1], device=device)[None]
    features = forward.text_features(target, target_weights, layers, tokens, drafter.target_layer_ids)
    for first in range(0, len(answer) - 1, positions_per_pass):
        last = min(first + positions_per_pass, len(answer) - 1)
        anchors = torch.arange(len(prompt) + first, len(prompt) + last, device=device)
        context = len(prompt) + last
        inputs, block_positions = forward.block_inputs(drafter, tokens[:, anchors], anchors[None])
        mask = forward.block_mask(anchors, context, drafter.block_size)
        hidden = forward.drafter_hidden(
            drafter, drafter_weights, features[:, :context], here[:, :context],
            F.embedding(inputs, target_weights["model.embed_tokens.weight"]), block_positions,
            forward.masked_attention(mask),
        )  # fmt: skip
        yield slice(first, last), forward.by_depth(drafter, hidden[0].unflatten(0, (-1, drafter.block_size)))


def sha256(files: Iterable[Path]) -> str:
    """Hex digest of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
    return digest.hexdigest()


def prompt_digest(tokens: Sequence[int]) -> str:
    """Hash of a prompt's tokens: of its text, the chat template and the tokenizer all that the target is told."""
    return hashlib.sha256(np.asarray(tokens, "<i8").tobytes()).hexdigest()[:32]


def provenance(
    target: str,
    target_config: ModelConfig,
    drafter: str,
    drafter_config: DrafterConfig,
    device: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What the rows of a recording depend on but for the prompts: models by name, content and configuration, device, versions."""
    packages = ("torch", "transformers", "numpy", "numba")
    versions = {"ddsim": ddsim.__version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except Exception:  # run from a source tree without installation
            versions[package] = "source"
    return {
        "target": target,
        "target_sha256": sha256(target_files(target)),
        "target_config": asdict(target_config),
        "drafter": drafter,
        "drafter_sha256": sha256(weight_files(checkpoint_folder(drafter))),
        "drafter_config": drafter_config.described(),
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "versions": versions,
    }


def _short(texts: list[_Text], config: ModelConfig, new: int = 0) -> list[_Text]:
    """Those that the target has positions for, with ``new`` tokens or their own answer; says how many are left out."""
    most = config.max_position_embeddings
    short = [text for text in texts if len(text.prompt) + (len(text.answer) if text.answer else new) <= most]
    if texts and not short:
        raise DdsimError(
            f"record: all {len(texts)} texts are longer than the {most:,} positions that the target was made for"
        )
    if len(short) < len(texts):
        warnings.warn(
            f"left out {len(texts) - len(short)} of {len(texts)} texts, longer than the {most:,} positions that the target was made for",
            stacklevel=3,
        )
    return short


def _answers_digest(answers: Sequence[str | Path], given: Sequence[Given]) -> str:
    """Of the files, or of what folders and data sets of the hub gave."""
    if all(map(os.path.isfile, answers)):
        return sha256(map(Path, answers))
    return hashlib.sha256(json.dumps([[g.id, g.workload, g.prompt, g.answer] for g in given]).encode()).hexdigest()


def head_provenance(drafter: str, head: HeadConfig) -> dict[str, Any]:
    """What lattices depend on beside that. A published head lies among the drafter's own tensors and has no files of its own."""
    files = sorted((checkpoint_folder(drafter) / HEAD).glob("*.safetensors"))
    return {"head_config": asdict(head)} | ({"head_sha256": sha256(files)} if files else {})


def _prompt_tokens(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    encoded: dict[tuple[str, str], list[int]] | None,
    config: ModelConfig,
    max_new_tokens: int,
) -> dict[tuple[str, str], list[int]]:
    """The tokens of each prompt, by workload and id."""
    names = [(p.workload, p.id) for p in prompts]
    if encoded is None:
        return dict(zip(names, encode_all(tokenizer, prompts, config, max_new_tokens), strict=True))
    for name in names:
        if name not in encoded:
            raise DdsimError(f"prompt {name[1]} of {name[0]}: isn't among the encoded ones")
        check_tokens(f"prompt {name[0]} {name[1]}", encoded[name], config, max_new_tokens)
    return {name: encoded[name] for name in names}


def check_caches(config: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: str) -> None:
    """Refuse keys, values and logits of answers side by side that memory has no room for."""
    size = torch.empty(0, dtype=dtype).element_size()
    caches = 2 * size * config.num_layers * config.num_kv_heads * config.head_dim * batch * length
    needed, free = caches + 12 * batch * config.vocab_size, free_memory(torch.device(device))
    if needed > free:
        raise DdsimError(
            f"batch {batch}: keys and values of {length:,} tokens each need {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; lower --batch or --max-new-tokens"
        )


@dataclass(frozen=True)
class _Text:
    """A sequence to be recorded: its prompt's tokens, and those of its answer if it is given."""

    workload: str
    id: str
    temperature: float
    prompt: list[int]
    answer: list[int] | None = None

    @property
    def key(self) -> tuple[str, str, float]:
        """Its name in a trace."""
        return self.workload, self.id, float(np.float32(self.temperature))


@contextmanager
def _told_apart(process: Process, out: str | Path) -> Iterator[None]:
    """Meanwhile errors say which of several processes they are from, and so does being ended because another one has failed."""
    if process.count == 1:
        yield
        return
    who = f"process {process.rank} of {process.count}"

    def ended(number: int, frame: Any) -> None:
        raise DdsimError(
            f"{out}: ended by a signal, as when another process fails; what is recorded is kept: start the command again"
        )

    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, ended) if mine else None
    try:
        yield
    except DdsimError as error:
        raise DdsimError(f"{who}: {error}") from None
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before)


def record(
    *,
    target: str,
    drafter: str,
    prompts: Sequence[str] = (),
    answers: Sequence[str | Path] = (),
    out: str | Path,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    max_budget: int = 512,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    limit: int | None = None,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
    encoded: dict[tuple[str, str], list[int]] | None = None,
    head: bool = True,
    lattice_width: int = 16,
    block_size: int | None = None,
    skip_long: bool = False,
) -> Path:
    """Record a dense trace.

    Started by torchrun, or by any launcher that sets RANK, WORLD_SIZE and LOCAL_RANK, each process records its share of the prompts on a
    GPU of its own; they share nothing but the folder, and make the trace that one process makes (`ddsim.trace.together.Together`).

    Parameters
    ----------
    target, drafter : str
        As ``load_target`` and ``load_drafter`` take them.
    prompts : sequence of str
        Workload names, files or data sets, as `ddsim_reference.model.workloads.load_prompts` takes them.
    answers : sequence of paths, optional
        Logs of answers that are given, as `ddsim_reference.model.logs.read_log` takes them, in place of prompts: nothing is generated.
    out : path
        Folder of the trace. An interrupted recording continues there.
    temperature : float
        0 for the target's greedy answers, otherwise its samples. Of given answers: at which those were written that don't tell.
    max_new_tokens : int, optional
        Length of an answer; by default 128, or as long as given answers are.
    max_budget : int
        The largest budget that the trace answers exactly.
    limit : int, optional
        At most so many prompts, or given answers, of each workload.
    batch : int
        Answers written side by side; finished batches survive a crash.
    progress : callable, optional
        Called with (sequences done, sequences in all).
    encoded : dict, optional
        Token ids by (workload, prompt id), for machines without the tokenizer.
    head : bool
        Record lattices if the drafter has a head; otherwise its marginals.
    lattice_width : int
        Candidates a depth of a lattice; the decoder must keep as many.
    block_size : int, optional
        Slots of the blocks that are drafted; by default the drafter's own number, which is the most. Attention in a block sees all its
        slots, so fewer draft otherwise: an engine that is told to draft K tokens, K below the block's, drafts blocks of K + 1.
    skip_long : bool
        Leave out texts that exceed the positions that the target was made for, with a warning; otherwise they are an error.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    DdsimError
        A prompt file, log, checkpoint or existing trace does not fit.
    """
    process = this_process(device)
    device = process.device
    with _told_apart(process, out):
        if prompts and answers:
            raise DdsimError("record: takes prompts, which the target answers, or answers that are given, not both")
        if answers and encoded is not None:
            raise DdsimError("record: answers hold their own token ids; encoded goes with prompts")
        longest = 128 if max_new_tokens is None and not answers else max_new_tokens
        if longest is not None and longest < 2:
            raise DdsimError(f"max_new_tokens {longest}: a trace needs answers of at least 2 tokens")
        check_sampling(max_new_tokens=longest or 2, temperature=temperature, seed=seed, batch=batch)
        check_range("lattice_width", lattice_width, 1, WIDEST)
        torch_dtype = number_type(dtype)
        given = choose_answers(answers, limit, temperature)
        asked = choose_prompts(prompts, limit)
        readable = encoded is None and not (given and all(text.is_encoded for text in given))
        config, weights, tokenizer = load_target(target, dtype=torch_dtype, device=device, with_tokenizer=readable)
        drafter_shape, drafter_weights = load_drafter(drafter, dtype=torch_dtype, device=device, target=weights)
        if block_size is not None:
            if not 2 <= block_size <= drafter_shape.block_size:
                raise DdsimError(
                    f"block_size {block_size}: must be from 2 to the {drafter_shape.block_size} that {drafter} was trained with"
                )
            drafter_shape = replace(drafter_shape, block_size=block_size)
        check_pair(config, drafter_shape, drafter)
        draft_head = load_head(drafter, drafter_shape, dtype=torch_dtype, device=device) if head else None
        layers = forward.target_layers(config, weights)
        roomy = replace(config, max_position_embeddings=1 << 40) if skip_long else config
        if answers:
            pairs = encode_given(tokenizer, given, roomy, longest)
            chosen = [_Text(g.workload, g.id, g.temperature, *pair) for g, pair in zip(given, pairs, strict=True)]
            chosen = _short(chosen, config)
            made: dict[str, Any] = {
                "text": "given",
                "answers": [Path(path).name for path in answers],
                "answers_sha256": _answers_digest(answers, given),
            } | ({} if longest is None else {"max_new_tokens": longest})
        else:
            assert longest is not None
            ids = _prompt_tokens(asked, tokenizer, encoded, roomy, longest)
            chosen = [_Text(p.workload, p.id, temperature, ids[p.workload, p.id]) for p in asked]
            made = {
                "seed": seed,
                "max_new_tokens": longest,
                "batch": batch,  # sums of floating-point numbers depend on how many answers are written side by side
            }
            chosen = _short(chosen, config, longest)
            most = max((len(text.prompt) for text in chosen), default=0) + longest
            check_caches(config, min(batch, len(chosen)), most, torch_dtype, device)
        source = (
            provenance(target, config, drafter, drafter_shape, device, torch_dtype)
            | made
            | {"recorded": time.strftime("%Y-%m-%d")}
            | ({} if draft_head is None else head_provenance(drafter, draft_head[0]) | {"lattice_width": lattice_width})
        )
        check_window(
            drafter_shape,
            max((len(text.prompt) + len(text.answer or range(longest or 0)) for text in chosen), default=0),
        )
        shape: dict[str, Any] = {
            "horizon": drafter_shape.horizon, "max_budget": max_budget, "vocab_size": config.vocab_size, "provenance": source,
            "kind": "rows" if draft_head is None else "lattice",
        }  # fmt: skip
        models = config, weights, layers, drafter_shape, drafter_weights

        def written(part: Sequence[_Text]) -> list[list[int]]:
            if answers:
                return [text.answer for text in part if text.answer is not None]
            assert longest is not None
            random = None if temperature == 0 else [uniforms(seed, text.id, longest) for text in part]
            prompts = [text.prompt for text in part]
            return write_answers(
                config, weights, prompts, max_new_tokens=longest, temperature=temperature, random=random
            )  # fmt: skip

        def add(writer: TraceWriter, text: _Text, answer: list[int]) -> None:
            sequence: dict[str, Any] = {
                "prompt_id": text.id, "workload": text.workload, "temperature": text.temperature,
                "prompt_tokens": len(text.prompt), "tokens": np.asarray(answer, np.int32),
                "prompt_digest": prompt_digest(text.prompt),
            }  # fmt: skip
            if draft_head is None:
                logprobs, token_ids = marginals(*models, text.prompt, answer, candidates=max_budget)
                writer.add_sequence(**sequence, token_ids=token_ids, logprobs=logprobs)
            else:
                token_ids, starts, steps = lattices(*models, draft_head, text.prompt, answer, width=lattice_width)
                writer.add_lattice(**sequence, token_ids=token_ids, first=starts, transitions=steps)

        say = progress or (lambda done, total: None)
        if process.count > 1 or is_shared(Path(out)):
            keys = [text.key for text in chosen]
            with Together(
                out, **shape, rank=process.rank, count=process.count, sequences=keys, batch=batch
            ) as together:  # fmt: skip
                _check_prompts(out, together, chosen)
                texts = {text.key: text for text in chosen}
                whole = False
                while not whole:
                    for shard, names in together.share():
                        part = [texts[name] for name in names]
                        for number, (text, answer) in enumerate(zip(part, written(part), strict=True), 1):
                            add(together, text, answer)
                            say(together.recorded() + number, len(chosen))
                        together.put(shard)
                    whole = (
                        process.rank > 0 or together.whole()
                    )  # the first waits for the others, and for their work if they die
                    say(together.recorded(), len(chosen))
            return Path(out)
        with TraceWriter(out, **shape) as writer:
            _check_prompts(out, writer, chosen)
            todo = [text for text in chosen if text.key not in writer.done]
            finished = len(chosen) - len(todo)
            for first in range(0, len(todo), batch):
                part = todo[first : first + batch]
                for text, answer in zip(part, written(part), strict=True):
                    add(writer, text, answer)
                    finished += 1
                    say(finished, len(chosen))
                writer.flush()
        return Path(out)


def _check_prompts(out: str | Path, writer: TraceWriter, chosen: Sequence[_Text]) -> None:
    """Refuse prompts that were recorded as other tokens."""
    for text in chosen:
        before, now = writer.prompt_digests.get(text.key), prompt_digest(text.prompt)
        if before is not None and before != now:
            raise DdsimError(
                f"{out}: prompt {text.id} of {text.workload} was recorded as other tokens (hash {before or 'none'}, this run "
                f"{now}): its text, the chat template or the tokenizer changed; choose another folder"
            )
