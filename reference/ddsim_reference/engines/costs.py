"""An engine's steps, measured and written as a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import ddsim
from ddsim.cost.imports import WHOLE_STEPS
from ddsim.cost.profile import Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim_reference.engines import vllm
from ddsim_reference.limits import LARGEST_SEED, check_range
from ddsim_reference.model.device import device_name

BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 28, 32, 48, 64)
CONTEXTS = (128, 512, 2048, 8192)
KS = (0, 1, 3, 7, 15)
"""K + 1 divides the sizes that vLLM captures graphs at; another K can take the graphs of smaller ones away."""

WARM, COUNT = 4, 8
"""Steps after a change of K that aren't timed, and that are."""


def drafted(block: int, ks: Sequence[int] | None = None) -> tuple[int, ...]:
    """The Ks to measure, descending: those given, or those of `KS` that the block holds, and the block's.

    Raises
    ------
    DdsimError
        A K is above the block, or only one is given.

    Examples
    --------
    >>> drafted(15), drafted(5)
    ((15, 7, 3, 1, 0), (5, 3, 1, 0))
    """
    found = sorted({*(k for k in KS if k < block), block} if ks is None else set(ks), reverse=True)
    if not all(0 <= k <= block for k in found):
        raise DdsimError(f"K {max(found)}: must be 0 to {block}, as many tokens as the drafter's block drafts")
    if len(found) < 2:
        raise DdsimError("K: a profile needs at least two of them")
    return tuple(found)


def measure(
    engine: vllm.Vllm,
    *,
    batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[VerifySample], dict[str, Any]]:
    """Seconds of whole steps over batch, K and context, and how they were measured.

    Nothing is accepted where the engine can be told so; what is accepted changes how fast contexts grow, not what a step does.
    Combinations that the engine has no room for are left out. What compiles at a batch's first step is not timed.
    """
    grow = repeats * len(engine.ks) * (WARM + COUNT)
    fixed = engine.accept([0.0] * max(engine.ks))
    largest = max(engine.ks) + 1
    points = [
        (c, b)
        for c in sorted(set(contexts))
        for b in sorted(set(batches))
        if b <= engine.seats and b * (c + grow * (1 if fixed else largest)) <= engine.room
    ]
    if not points:
        raise DdsimError(f"profile: its cache of {engine.room:,} tokens has no room for these batches and contexts")
    samples, seen = [], set()
    try:
        for done, (context, batch) in enumerate(points):
            if batch not in seen:
                engine.steps(batch, context, repeats=1, warm=1, count=1, seed=seed)
                seen.add(batch)
            found = engine.steps(batch, context, repeats=repeats, warm=WARM, count=COUNT, seed=seed)
            for k in engine.ks:
                seconds = tuple(s for steps in found if steps.k == k for s in steps.seconds)
                if not seconds:
                    raise DdsimError(f"profile: no step of {batch} requests at a context of {context} was whole")
                samples.append(VerifySample(batch * (k + 1), context, batch, seconds))
            if progress is not None:
                progress(done + 1, len(points))
    finally:
        engine.accept(None)
    how = {
        "acceptance": "synthetic: nothing accepted" if fixed else "as the target says",
        "warm_steps": WARM, "steps": COUNT, "repeats": repeats, "seed": seed, "ks": sorted(engine.ks),
    }  # fmt: skip
    return samples, how


def profile_of(engine: vllm.Vllm, samples: Sequence[VerifySample], provenance: dict[str, Any]) -> Profile:
    """Whole steps as a profile: a step of B requests at K stands as a pass of B · (K + 1) tokens, whose draft costs nothing more.

    Buckets are the sizes of the engine's graphs.
    """
    source: dict[str, Any] = {
        "engine": f"{engine.title} {engine.version}",
        "seconds": WHOLE_STEPS,
        "off": "K = 0 drafts too: its steps cost more than an engine's without a drafter",
        "flags": engine.about(),
    }
    most = max(sample.tokens for sample in samples)
    sizes = [size for size in source["flags"]["cudagraph_capture_sizes"] if size < most]
    return Profile(samples, provenance=source | provenance, buckets=[*sizes, most])


def described(target: str, drafter: str, dtype: str) -> dict[str, Any]:
    """What else a profile's figures depend on."""
    return {
        "target": Path(target).name, "drafter": Path(drafter).name, "dtype": dtype, "ddsim": ddsim.__version__,
        "torch": torch.__version__, "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "measured": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def profile_engine(
    *,
    engine: str,
    target: str,
    drafter: str,
    out: str | Path,
    batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS,
    ks: Sequence[int] | None = None,
    repeats: int = 2,
    dtype: str = "bfloat16",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    started: vllm.Vllm | None = None,
) -> Path:
    """Measure what an engine's steps cost and write it as a profile, whole or not at all.

    Parameters
    ----------
    engine : {"vllm"}
    target, drafter : str
        Folders in Hugging Face format that the engine loads.
    out : path
        JSON that `ddsim.read_profile` and ``ddsim fit`` read.
    batches, contexts, ks : sequence of int
        Requests side by side, committed tokens of each, and K. By default 0, 1, 3, 7, 15 as far as the drafter's block goes.
    repeats : int
        Sweeps over the Ks at every batch and context.
    progress : callable, optional
        Called with (points done, points in all).
    started : Vllm, optional
        An engine that runs already.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    DdsimError
        The engine isn't known, installed or of a known version, the pair doesn't fit, or the options don't.

    Examples
    --------
    >>> profile_engine(engine="vllm", target="pair/target", drafter="pair/drafter", out="vllm.json")  # doctest: +SKIP
    """
    check_engine(engine)
    check_range("seed", seed, 0, LARGEST_SEED)
    if repeats < 1 or not batches or min(batches) < 1 or not contexts or min(contexts) < 1:
        raise DdsimError("profile: repeats, batches and contexts must be at least 1")
    if started is None:
        vllm.known_version()
    _, shape = vllm.read_pair(target, drafter)
    asked = drafted(shape.horizon, ks)
    running = started or vllm.start(
        target, drafter, block=shape.horizon, ks=asked, seats=max(batches), length=max(contexts) + longest(repeats, asked),
        dtype=dtype, seed=seed,
    )  # fmt: skip
    samples, how = measure(running, batches=batches, contexts=contexts, repeats=repeats, seed=seed, progress=progress)
    profile_of(running, samples, described(target, drafter, dtype) | how).save(out)
    return Path(out)


def longest(repeats: int, ks: Sequence[int]) -> int:
    """Tokens that a request of a measurement may gain, over its context."""
    return repeats * len(ks) * (WARM + COUNT) * (max(ks) + 1) + 64


def check_engine(name: str) -> None:
    """Refuse an engine that can't be driven here."""
    if name != "vllm":
        raise DdsimError(
            f'engine "{name}": can\'t be driven here; only vllm can (settings are exported for others too)'
        )
