"""`ddsim convert`: a target, and its drafter, as Hugging Face folders that engines load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import ddsim
from ddsim.errors import DdsimError
from ddsim.files.atomic import check_new_folder, new_folder
from ddsim_reference.model.checkpoint import (
    SHARD,
    load_drafter,
    load_head,
    load_target,
    save_drafter,
    save_head,
    save_target,
    save_tokenizer,
)
from ddsim_reference.model.config import check_pair
from ddsim_reference.model.device import number_type
from ddsim_reference.model.widen import SHAPES, direction_away, stream_target, widen_drafter, widen_head
from ddsim_reference.model.workloads import choose_prompts, encode_all


def convert(
    *,
    target: str,
    out: str | Path,
    drafter: str | None = None,
    widen: str | None = None,
    prompts: Sequence[str] = ("all",),
    limit: int | None = 4,
    dtype: str = "bfloat16",
    device: str = "cpu",
    head: bool = True,
    seed: int = 0,
    tokenizer: bool = True,
    encoded: dict[tuple[str, str], list[int]] | None = None,
    shard: int = SHARD,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a target as a Hugging Face folder, and its drafter as another.

    Parameters
    ----------
    target, drafter : str
        As `load_target` and `load_drafter` take them. With a drafter the folders are ``target`` and ``drafter`` in ``out``;
        without, ``out`` itself is the target's.
    out : path
        A new folder, or an empty one. It is there once it is whole.
    widen : str, optional
        A shape ("qwen3-4b", "qwen3-8b"): the pair keeps its function at that shape's cost. Needs the drafter.
    prompts, limit : sequence of str, int
        As `ddsim_reference.validate.validate` takes them: what the widened pair's hidden states look like is seen on the first 16.
    dtype : str
        Of the files; the pair is loaded and widened in it, as validation does.
    device : str
        Where the pair is widened. On a GPU 16 GB take seconds to make.
    head : bool
        Write the drafter's head, if it has one. Engines don't read a head in a folder of its own.
    tokenizer : bool
        Write the target's tokenizer, which transformers converts out of a GGUF file.
    encoded : dict, optional
        Token ids by (workload, prompt id), for machines without the tokenizer, which then isn't written.
    shard : int
        Bytes of tensors in a file. No more of a widened target is in memory.

    Returns
    -------
    dict
        ``target`` and ``drafter`` (None without one): their folders. ``bytes`` of the target's tensors, ``tokenizer``: whether one
        was written, and ``provenance``, which stands in each config.json as ``ddsim_provenance``.

    Raises
    ------
    DdsimError
        A model, prompt or option doesn't fit, or the folder holds something.
    """
    if widen is not None and widen not in SHAPES:
        raise DdsimError(f"widen {widen!r}: unknown shape; use one of {', '.join(SHAPES)}")
    if widen is not None and drafter is None:
        raise DdsimError(f"widen {widen}: needs the drafter too; what keeps the extra vocabulary out holds for both")
    if shard < 1:
        raise DdsimError(f"shard {shard}: must be 1 byte or more")
    check_new_folder(out)
    kind = number_type(dtype)
    asked = choose_prompts(prompts, limit)[:16] if widen is not None else []
    need = tokenizer or bool(asked)
    config, weights, reader = load_target(target, dtype=kind, device=device, with_tokenizer=need and encoded is None)
    provenance = {
        "made_by": "ddsim convert",
        "ddsim": ddsim.__version__,
        "target": Path(target).name.removesuffix(".gguf"),
        "dtype": dtype,
    }
    tensors: Iterable[tuple[str, torch.Tensor]] = weights.items()
    shape = draft_weights = draft_head = None
    if drafter is not None:
        shape, draft_weights = load_drafter(drafter, dtype=kind, device=device, target=weights)
        check_pair(config, shape, drafter)
        provenance["drafter"] = Path(drafter).name
        draft_head = load_head(drafter, shape, dtype=kind, device=device) if head else None
    progress(f"loaded {target}")
    if widen is not None and shape is not None and draft_weights is not None:
        texts = [encoded[p.workload, p.id] for p in asked] if encoded is not None else encode_all(reader, asked, config)
        away = direction_away(config, weights, shape, draft_weights, widen, texts)
        options: dict[str, Any] = {"device": device, "dtype": kind, "seed": seed}
        config, tensors = stream_target(config, weights, SHAPES[widen], away=away, **options)
        if draft_head is not None:
            draft_head = widen_head(*draft_head, shape, SHAPES[widen], **options)
        shape, draft_weights = widen_drafter(shape, draft_weights, SHAPES[widen], **options)
        provenance |= {"label": f"{provenance['target']} text at {widen} cost", "widen": widen, "seed": str(seed)}
    with new_folder(out) as folder:
        if shape is not None and draft_weights is not None:
            inside = draft_head is not None and draft_head[0].form == "markov"  # DSpark's: among the drafter's tensors
            save_drafter(
                folder / "drafter", shape, draft_weights, provenance, draft_head if inside else None, kind,
                config.max_position_embeddings,
            )  # fmt: skip
            if draft_head is not None and not inside:
                save_head(folder / "drafter", *draft_head, provenance, kind)
            del draft_weights, draft_head
            progress("wrote the drafter")
        place = folder if drafter is None else folder / "target"
        size = save_target(place, config, tensors, provenance, shard=shard)
        if tokenizer and reader is not None:
            save_tokenizer(place, reader)
        progress(f"wrote the target, {size / 1e9:.1f} GB")
    final = Path(out)
    return {
        "target": str(final if drafter is None else final / "target"),
        "drafter": None if drafter is None else str(final / "drafter"),
        "bytes": size,
        "tokenizer": tokenizer and reader is not None,
        "provenance": provenance,
    }
