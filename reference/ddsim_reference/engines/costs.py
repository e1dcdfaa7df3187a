"""An engine's steps, measured and written as a profile."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddsim
from ddsim.cost.imports import WHOLE_STEPS
from ddsim.cost.profile import Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim_reference.engines import vllm
from ddsim_reference.engines.journal import Journal
from ddsim_reference.limits import LARGEST_SEED, MOST_REPEATS, check_range
from ddsim_reference.model.checkpoint import checkpoint_folder
from ddsim_reference.model.config import ModelConfig
from ddsim_reference.model.device import device_name
from ddsim_reference.model.fields import read_json

BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 28, 32, 48, 64)
CONTEXTS = (128, 512, 2048, 8192)
KS = (0, 1, 3, 7, 15)
"""K + 1 divides the sizes that vLLM captures graphs at; another K can take the graphs of smaller ones away."""

WARM, COUNT, ALONE = 4, 8, 2
"""Steps after a change of K that aren't timed, that are, and that begin when the GPU has nothing left to do."""

ACCEPTED = 0.7
"""Of drafted tokens, each given those before it, that are accepted while steps are timed: about what drafters reach. It is nothing to
the GPU, but every token that a step decodes is work for the host."""

HOST = 0.9
"""Share of a step's seconds from which on its work on the host is what it takes."""

SHORT, MOST_CACHED = 512, 1 << 17
"""Longer contexts are measured at powers of two of requests only, up to so many tokens, unless batches are given: prompts take time."""

Point = tuple[int, int]
"""A context and a number of requests."""


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


class Sweeps:
    """Seconds of whole steps over batch, K and context, measured a sweep at a time.

    A sweep takes every combination once; the next ones take them, and the Ks, the other way around. So what happens on the machine
    meanwhile falls on all of them alike, and sweeps can lie before and after other work. Where the engine can be told so, a fixed
    share of drafted tokens is accepted. Combinations that the engine has no room for are left out. What compiles or loads at a batch's first steps is not timed.

    Parameters
    ----------
    engine : Vllm
    batches, contexts : sequence of int
    seed : int
    journal : Journal, optional
        Where measurements are kept.
    progress : callable, optional
        Called after every combination.

    Raises
    ------
    DdsimError
        No combination has room.
    """

    def __init__(
        self,
        engine: vllm.Vllm,
        *,
        batches: Sequence[int] = BATCHES,
        contexts: Sequence[int] = CONTEXTS,
        seed: int = 0,
        journal: Journal | None = None,
        progress: Callable[[], object] | None = None,
    ) -> None:
        self.engine, self.seed, self.journal, self.progress = engine, seed, journal, progress
        steps = len(engine.ks) * (WARM + COUNT + ALONE)
        self.rates = [ACCEPTED] * max(engine.ks)
        self.gain = float(np.mean([sum(ACCEPTED**i for i in range(k + 1)) for k in engine.ks]))
        self.fixed = engine.accept(self.rates)
        engine.accept(None)
        grow = steps * (self.gain if self.fixed else max(engine.ks) + 1)
        self.points: list[Point] = [
            (c, b)
            for c in sorted(set(contexts))
            for b in sorted(set(batches))
            if b <= engine.seats and b * (c + grow) <= engine.room
            if batches is not BATCHES or c <= SHORT or (b & (b - 1) == 0 and b * c <= MOST_CACHED)
        ]
        if not self.points:
            raise DdsimError(f"profile: its cache of {engine.room:,} tokens has no room for these batches and contexts")
        self.done = 0
        self.seen: set[int] = set()
        self.found: dict[tuple[int, int, int], tuple[list[float], list[float]]] = {}

    def sweep(self) -> None:
        """Measure every combination once more."""
        gc.collect()  # not while it steps
        self.engine.accept(self.rates)
        try:
            for context, batch in self.points[:: -1 if self.done % 2 else 1]:
                for k, seconds, host in self._steps(context, batch):
                    known = self.found.setdefault((batch, context, k), ([], []))
                    known[0].extend(seconds)
                    known[1].extend(host)
                if self.progress is not None:
                    self.progress()
        finally:
            self.engine.accept(None)
        self.done += 1

    def _steps(self, context: int, batch: int) -> list[tuple[int, list[float], list[float]]]:
        """K, seconds, and those on the host alone, of one combination in this sweep."""
        name = f"steps {self.done}: {batch} at {context}"
        before = None if self.journal is None else self.journal.get(name)
        if before is not None:
            return [(k, seconds, host) for k, seconds, host in before]
        if batch not in self.seen:
            self.engine.steps(batch, context, warm=1, count=1, seed=self.seed)
            self.seen.add(batch)
        steps = self.engine.steps(
            batch,
            context,
            warm=WARM,
            count=COUNT,
            alone=ALONE,
            gain=self.gain,
            down=bool(self.done % 2),
            seed=self.seed,
        )
        found = [(one.k, list(one.seconds), list(one.host)) for one in steps]
        if self.journal is not None:
            self.journal.put(name, found)
        return found

    def samples(self) -> list[VerifySample]:
        """What all sweeps so far found, one sample a batch, K and context."""
        for (batch, context, k), (seconds, _) in self.found.items():
            if not seconds:
                raise DdsimError(f"profile: no step of {batch} requests at K {k} and a context of {context} was whole")
        return [VerifySample(b * (k + 1), c, b, tuple(seconds)) for (b, c, k), (seconds, _) in self.found.items()]

    def how(self) -> dict[str, Any]:
        """How they were measured, and of how many combinations a step is the host's work."""
        found: dict[str, Any] = {
            "acceptance": f"synthetic: {ACCEPTED} of drafted tokens, each given those before it" if self.fixed else "as the target says",
            "warm_steps": WARM, "steps": COUNT, "repeats": self.done, "seed": self.seed, "ks": sorted(self.engine.ks),
        }  # fmt: skip
        shares = [float(np.median(host) / np.median(seconds)) for seconds, host in self.found.values() if host]
        if shares:
            found["host_share"] = {
                "median": float(np.median(shares)), "bound": sum(s >= HOST for s in shares), "points": len(shares)
            }  # fmt: skip
        return found


def host_bound(provenance: dict[str, Any]) -> str | None:
    """A sentence, if the steps of a profile are the host's work more than the GPU's.

    Examples
    --------
    >>> host_bound({"host_share": {"median": 0.95, "bound": 60, "points": 80}})
    "A step's work on the host takes 95 % of its time (60 of 80 points at 90 % or more): K costs little, and what else the host does counts."
    >>> host_bound({"host_share": {"median": 0.3, "bound": 0, "points": 80}}) is None
    True
    """
    share = provenance.get("host_share")
    if not isinstance(share, dict) or 2 * share["bound"] < share["points"]:
        return None
    return (
        f"A step's work on the host takes {100 * share['median']:.0f} % of its time ({share['bound']} of {share['points']} points at "
        f"{100 * HOST:.0f} % or more): K costs little, and what else the host does counts."
    )


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
        "target": label_of(target), "drafter": Path(drafter).name, "dtype": dtype, "ddsim": ddsim.__version__,
        "torch": torch.__version__, "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "measured": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def label_of(target: str) -> str:
    """What ``ddsim convert`` says a folder holds; the folder's name if it didn't write it."""
    written = read_json(checkpoint_folder(target) / "config.json").get("ddsim_provenance")
    named = [written.get("label"), written.get("target")] if isinstance(written, dict) else []
    return next((name for name in named if isinstance(name, str)), Path(target).name)


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
        JSON that `ddsim.read_profile` and ``ddsim fit`` read. What is measured meanwhile is kept beside it; a run that was stopped
        goes on there.
    batches, contexts, ks : sequence of int
        Requests side by side, committed tokens of each, and K. By default 0, 1, 3, 7, 15 as far as the drafter's block goes.
    repeats : int
        Sweeps over every batch, context and K.
    progress : callable, optional
        Called with (points done, points in all), every sweep's counted.
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
    check_range("repeats", repeats, 1, MOST_REPEATS)
    if not batches or min(batches) < 1 or not contexts or min(contexts) < 1:
        raise DdsimError("profile: repeats, batches and contexts must be at least 1")
    if started is None:
        vllm.known_version()
    config, shape = vllm.read_pair(target, drafter)
    asked = drafted(shape.horizon, ks)
    contexts = check_contexts(contexts, config)
    said = {"dtype": dtype, "seed": seed, "ks": asked, "batches": batches, "contexts": contexts}
    journal = Journal(out, {"kind": "profile", "pair": described(target, drafter, dtype) | {"measured": ""}, **said})
    running = started or vllm.start(
        target, drafter, block=shape.horizon, ks=asked, seats=max(batches),
        length=min(max(contexts) + longest(asked), config.max_position_embeddings), dtype=dtype, seed=seed,
    )  # fmt: skip
    sweeps = Sweeps(running, batches=batches, contexts=contexts, seed=seed, journal=journal)
    if progress is not None:
        whole, report = repeats * len(sweeps.points), progress
        done = count(1)
        sweeps.progress = lambda: report(next(done), whole)
    for _ in range(repeats):
        sweeps.sweep()
    profile_of(running, sweeps.samples(), described(target, drafter, dtype) | sweeps.how()).save(out)
    journal.remove()
    running.close()
    return Path(out)


def check_contexts(contexts: Sequence[int], config: ModelConfig) -> list[int]:
    """Contexts that the target was made for: of the default ones those, otherwise all or an error."""
    most = config.max_position_embeddings
    found = [c for c in contexts if c <= most] if contexts == CONTEXTS else list(contexts)
    if not found or max(found) > most:
        raise DdsimError(f"context {max(contexts):,}: the target was made for {most:,} tokens")
    return found


def longest(ks: Sequence[int]) -> int:
    """Tokens that a request of a measurement may gain, over its context."""
    return len(ks) * (WARM + COUNT + ALONE) * (max(ks) + 1) + 64


def check_engine(name: str) -> None:
    """Refuse an engine that can't be driven here."""
    if name != "vllm":
        raise DdsimError(
            f'engine "{name}": can\'t be driven here; only vllm can (settings are exported for others too)'
        )
