"""`ddsim train-drafter`: from a target to a DFlash drafter for it, in phases that each save what the next one needs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddsim.errors import DdsimError
from ddsim.files.atomic import write
from ddsim_reference.limits import LARGEST_SEED, check_range
from ddsim_reference.model.checkpoint import (
    checkpoint_folder,
    load_drafter,
    load_head,
    load_target,
    save_drafter,
    save_head,
    weight_files,
)
from ddsim_reference.model.config import MOST_BLOCK, MOST_LAYERS, ModelConfig, Weights, drafter_config
from ddsim_reference.model.device import device_name
from ddsim_reference.model.heads import FORMS, MOST_WIDTH, HeadConfig
from ddsim_reference.model.workloads import WORKLOADS, choose_prompts
from ddsim_reference.training.batches import Corpus
from ddsim_reference.training.data import PromptPool, build_pool, generate
from ddsim_reference.training.instructions import training_instructions
from ddsim_reference.training.processes import Processes
from ddsim_reference.training.trainer import Trainer, in_words


def train_drafter(
    *,
    target: str,
    out: str | Path,
    work: str | Path,
    data_seconds: float = 170,
    train_seconds: float = 680,
    stop_after: float | None = None,
    start: str | None = None,
    rate: float = 3e-3,
    head: str | HeadConfig | None = None,
    head_width: int | None = None,
    head_only: bool = False,
    prompts: Sequence[str] = (),
    instructions: int = 80_000,
    self_written_share: float = 0.4,
    mask_token_id: int,
    block_size: int = 16,
    layers: int = 5,
    target_layer_ids: Sequence[int] | None = None,
    slots: int = 2048,
    row_length: int = 1024,
    longest: int = 576,
    rows: int = 16,
    anchors: int = 128,
    held_out: int = 64,
    device: str = "cuda",
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Path | None:
    """Train a DFlash drafter on text that the target writes itself.

    On several GPUs, start it with torchrun, a process a GPU: each writes text of its own, and steps average their gradients.

    Parameters
    ----------
    target : str
        As `load_target` takes it: an instruction-tuned model with a chat template.
    out : path
        Folder of the drafter, in the published format.
    work : path
        Folder of the phases' results: ``pool.npz`` (encoded instructions), ``text.npz`` (the target's text; further
        processes' in ``text-1.npz`` and so on) and ``state.safetensors`` (the training so far). What is there already is
        not made again, so that a run that was killed or stopped continues.
    data_seconds, train_seconds : float
        Time for writing text and for training, compilation included. The learning rate falls to zero over the latter.
    stop_after : float, optional
        Stop, everything saved, after so many seconds of this call; a further call goes on.
    start : str, optional
        A drafter to go on from, as ``load_drafter`` takes it; by default training starts at the target's own last layers.
    rate : float
        Largest learning rate of matrices (Muon, scaled to AdamW's typical step); vectors take a third of it (AdamW).
    head : str or HeadConfig, optional
        Train a head that knows the token before, too: "static", "gated" or "gated_low_rank" (see `HeadConfig`).
    head_width : int, optional
        Its inner width, by default the target's hidden size.
    head_only : bool
        Leave the drafter ``start`` as it is and train a head for it alone; ``out`` gets the drafter's own files and the head.
    prompts : sequence of str
        What the target is asked, as `load_prompts` takes it, in place of templated instructions; what is longer than 400 tokens is left out.
    instructions : int
        Templated instructions, HumanEval kept out of them.
    self_written_share : float
        Share of documents whose user turn the target writes too.
    mask_token_id : int
        An unused special token of the target, which stands for positions yet to be drafted.
    block_size, layers, target_layer_ids
        Shape of the drafter: L + 1, its layers, and the target layers that it reads (evenly spaced by default).
    slots, row_length, longest : int
        Documents written side by side, tokens of a row of text, and the longest document.
    rows, anchors, held_out : int
        Rows of text a step and process, blocks drafted in each of them, and rows kept for evaluation.
    device : str
    seed : int
    progress : callable
        Called with a line of text now and then.

    Returns
    -------
    Path or None
        ``out``, or None when ``stop_after`` came first.

    Raises
    ------
    DdsimError
        The target can't be read, has no such layers or mask token, ``start`` has another shape, the head is unknown, or the
        device is missing.

    Examples
    --------
    >>> train_drafter(target="smollm2-135m", out="drafter", work="work", mask_token_id=16)  # doctest: +SKIP
    """
    begun = time.perf_counter()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DdsimError(
            "device cuda: PyTorch finds no GPU here; training on a CPU would take weeks, so use a GPU machine"
        )
    check_range("seed", seed, 0, LARGEST_SEED)
    month = 31 * 86_400
    check_range("data_seconds", data_seconds, 0, month)
    check_range("train_seconds", train_seconds, 0, month)
    check_range("stop_after", 0 if stop_after is None else stop_after, 0, month)
    check_range("rate", rate, 1e-12, 10)
    check_range("block_size", block_size, 2, MOST_BLOCK)
    check_range("layers", layers, 1, MOST_LAYERS)
    ranks = Processes()
    if ranks.count > 1 and device == "cuda":
        device = f"cuda:{ranks.local}"
    if ranks.rank > 0:
        progress = _say_nothing
    folder = Path(work)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pool_path = folder / "pool.npz"
    config, weights, tokenizer = load_target(target, dtype=dtype, device=device, with_tokenizer=not pool_path.exists())
    if not 0 <= mask_token_id < config.vocab_size:
        raise DdsimError(f"mask token {mask_token_id}: lies outside the target's vocabulary of {config.vocab_size}")
    check_range("layers", layers, 1, config.num_layers, "; a drafter has no more layers than its target")
    shape = drafter_config(
        config, layers=layers, block_size=block_size, mask_token_id=mask_token_id, layer_ids=target_layer_ids
    )
    path_head = _head(head, head_width or config.hidden_size)
    if head_only and (start is None or path_head is None):
        raise DdsimError("head_only: needs the drafter to train a head for (start), and the head's form (head)")
    earlier: Weights | None = None
    earlier_provenance: object = None
    if start is not None:
        earlier_shape, earlier = load_drafter(start, dtype=dtype if head_only else torch.float32, device=device)
        if earlier_shape != shape:
            raise DdsimError(
                f"{start}: its config.json describes another drafter than the one to train: {earlier_shape}"
            )
        earlier_provenance = json.loads((checkpoint_folder(start) / "config.json").read_text()).get("ddsim_provenance")
    if not pool_path.exists() and ranks.rank == 0:
        if tokenizer is None or not config.eos_token_ids:
            raise DdsimError(f"{target}: training needs the target's tokenizer, chat template and end-of-turn token")
        asked = _asked(prompts) if prompts else training_instructions(instructions, seed)
        build_pool(tokenizer, asked, self_written_share=self_written_share, end_of_turn=config.eos_token_ids[0]).save(
            pool_path
        )
    ranks.wait()

    text_path = folder / (f"text-{ranks.rank}.npz" if ranks.rank else "text.npz")
    if not text_path.exists():
        pool = PromptPool.load(pool_path).share(ranks.rank, ranks.count)
        _write_text(
            config, weights, pool, text_path, seconds=data_seconds, slots=slots, length=row_length, longest=longest,
            seed=seed + ranks.rank, progress=progress,
        )  # fmt: skip
    with np.load(text_path, allow_pickle=False) as file:
        corpus = Corpus({name: file[name] for name in file.files}, device)
    trainer = Trainer(
        config, weights, shape, corpus, rows=rows, anchors=anchors, held_out=held_out, matrix_rate=rate,
        vector_rate=rate / 3, seed=seed, ranks=ranks, heads=() if path_head is None else (path_head,),
        frozen=earlier if head_only else None,
    )  # fmt: skip
    state = folder / "state.safetensors"
    if state.exists():
        trainer.load(state)
    elif earlier is not None and not head_only:
        trainer.start_from(earlier)
    left = train_seconds - trainer.elapsed
    if stop_after is not None:
        left = min(left, stop_after - (time.perf_counter() - begun))
    trainer.run(ranks.first(left), train_seconds, progress)
    ranks.wait()  # all have read the state by now
    if ranks.rank == 0:
        trainer.save(state)
    figures = trainer.evaluate()
    progress(f"step {trainer.step}, {trainer.elapsed:.0f} s of training: {in_words(figures)}")
    text_tokens = torch.tensor([float(corpus.tokens.numel())])
    shared = torch.tensor([loss for loss, _ in figures])
    ranks.mean_(text_tokens)
    ranks.mean_(shared)
    if trainer.elapsed < train_seconds:
        return None
    if ranks.rank > 0:
        return Path(out)
    provenance: dict[str, object] = {
        "made_by": "ddsim train-drafter",
        "target": target,
        "device": (f"{ranks.count} x " if ranks.count > 1 else "") + device_name(device),
        "torch": torch.__version__,
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
        "text_tokens": round(float(text_tokens)) * ranks.count,
        "steps": trainer.step,
        "train_seconds": round(trainer.elapsed, 1),
        "blocks_per_step": rows * anchors * ranks.count,
        "rate": rate,
        "self_written_share": self_written_share,
        "held_out_loss": round(float(shared[0]), 4),
    }
    if path_head is not None:
        own = provenance | {
            "held_out_loss": round(float(shared[1]), 4),
            "held_out_loss_of_marginals": provenance["held_out_loss"],
        }
    if head_only:
        assert start is not None
        _copy_drafter(checkpoint_folder(start), Path(out))
    else:
        if earlier_provenance is not None:
            provenance["started_from"] = earlier_provenance
        save_drafter(out, shape, trainer.exported(), provenance)
    if path_head is not None:
        save_head(out, path_head, trainer.head_weights(0), own)
        load_head(str(out), shape)
    load_drafter(str(out))
    return Path(out)


def _head(form: str | HeadConfig | None, width: int) -> HeadConfig | None:
    if form is None or isinstance(form, HeadConfig):
        return form
    if form not in FORMS:
        raise DdsimError(f"head {form!r}: unknown; use one of {', '.join(FORMS)}")
    check_range("head_width", width, 1, MOST_WIDTH)
    return HeadConfig(form, width, reach=0 if form == "static" else 1)


def _copy_drafter(source: Path, out: Path) -> None:
    """The files of a drafter as they are."""
    if out.resolve() == source.resolve():
        return
    out.mkdir(parents=True, exist_ok=True)
    for file in [source / "config.json", *weight_files(source)]:
        _copy(file, out / file.name)


def _copy(source: Path, path: Path) -> None:
    content = source.read_bytes()
    write(path, lambda file: file.write(content))


def _asked(names: Sequence[str]) -> list[str]:
    """The user's messages of files and data sets, which must not be what drafters are judged on."""
    for name in names:
        if name in ("all", *WORKLOADS):
            raise DdsimError(f"--prompts {name}: drafters are judged on it; train on other prompts")
    found = choose_prompts(names)
    turns = [prompt for prompt in found if prompt.before]
    if turns:
        raise DdsimError(f"prompt {turns[0].workload} {turns[0].id}: is a conversation; training takes single messages")
    return [prompt.text for prompt in found]


def _say_nothing(line: str) -> None:
    """What processes other than the first report."""


def _write_text(
    config: ModelConfig,
    weights: Weights,
    pool: PromptPool,
    path: Path,
    *,
    seconds: float,
    slots: int,
    length: int,
    longest: int,
    seed: int,
    progress: Callable[[str], None],
) -> None:
    """The target's text, written whole or not at all."""
    data = generate(
        config,
        weights,
        pool,
        seconds=seconds,
        slots=slots,
        length=length,
        longest=longest,
        seed=seed,
        progress=progress,
    )
    arrays: dict[str, Any] = {name: data[name] for name in ("tokens", "starts", "generated")}
    write(path, lambda file: np.savez(file, **arrays))
