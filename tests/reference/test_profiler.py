"""The profiler on the CPU: points, resuming, what a file says, and refusals."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ddsim import fit_cost, read_profile
from ddsim.errors import DdsimError
from ddsim_reference import profile as profiler
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model.checkpoint import save_drafter, save_target
from tests.reference import tiny


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    config, weights = tiny.target()
    shape, drafter = tiny.drafter(config)
    save_target(tmp_path / "target", config, weights)
    save_drafter(tmp_path / "drafter", shape, drafter, {})
    return str(tmp_path / "target"), str(tmp_path / "drafter")


OPTIONS = {"device": "cpu", "dtype": "float32", "max_tokens": 16, "contexts": (32, 64), "repeats": 3}


def test_a_profile_is_measured_and_fits(pair: tuple[str, str], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = profiler.measure_profile(
        target=pair[0], drafter=pair[1], out=tmp_path / "p.json", progress=lambda a, b: seen.append((a, b)), **OPTIONS
    )
    profile = read_profile(out)
    assert {(s.tokens, s.context) for s in profile.verify} == {(t, c) for t in (1, 2, 4, 8, 16) for c in (32, 64)}
    assert {s.context for s in profile.draft} == {32, 64} and len(profile.host) == 1
    assert all(len(s.seconds) == 3 and min(s.seconds) > 0 for s in [*profile.verify, *profile.draft])
    assert profile.provenance["device"] and profile.provenance["weights"] == "loaded"
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]
    assert fit_cost(profile).verify_seconds(8, 48) > 0
    assert [(s.tokens, s.context) for s in profile.prefill] == [(16, 0), (64, 0), (16, 4), (16, 16), (16, 48)]
    assert all(len(s.seconds) == 2 and min(s.seconds) > 0 for s in profile.prefill)  # half as many sweeps
    assert profile.provenance["prefill_tokens_a_pass"] == 16 and fit_cost(profile).prefill_seconds(40, 8) > 0


def test_an_interrupted_run_goes_on(pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "p.json"

    def cut(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiler.measure_profile(target=pair[0], drafter=pair[1], out=out, progress=cut, **OPTIONS)
    kept = {(s.tokens, s.context): s.seconds for s in read_profile(out).verify}
    assert all(len(v) == 2 for v in kept.values())
    profiler.measure_profile(target=pair[0], drafter=pair[1], out=out, **OPTIONS)
    for s in read_profile(out).verify:
        assert s.seconds[:2] == kept[s.tokens, s.context] and len(s.seconds) == 3
    before = out.read_bytes()
    profiler.measure_profile(target=pair[0], drafter=pair[1], out=out, **OPTIONS)  # nothing is left to do
    assert out.read_bytes() == before
    with pytest.raises(DdsimError, match="seed differs"):
        profiler.measure_profile(target=pair[0], drafter=pair[1], out=out, seed=5, **OPTIONS)


def test_long_contexts_and_prompts_have_engines_of_their_own(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "SHORT", 32)
    made: list[tuple[int, int]] = []

    class Spy(Engine):
        def __init__(self, *models: object, **options: object) -> None:
            made.append((options["batch"], options["max_context"]))  # type: ignore[arg-type]
            if options["batch"] == 2 and options["max_context"] > 100 and full:  # type: ignore[operator]
                raise DdsimError("memory: too little")
            super().__init__(*models, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(profiler, "Engine", Spy)
    full = False
    options = OPTIONS | {"target": pair[0], "drafter": pair[1], "batches": (1, 2), "repeats": 2}
    seen: list[tuple[int, int]] = []
    out = profiler.measure_profile(out=tmp_path / "p.json", progress=lambda a, b: seen.append((a, b)), **options)
    assert made == [(1, 96), (1, 128), (2, 96), (2, 128)] and seen[-1] == (8, 8)
    profile = read_profile(out)
    assert {(s.context, s.batch) for s in profile.verify} == {(c, b) for c in (32, 64) for b in (1, 2)}
    assert len(profile.prefill) == 5
    profiler.measure_profile(out=tmp_path / "p.json", **options)
    assert len(made) == 4  # nothing is left to do
    bare = profiler.measure_profile(out=tmp_path / "bare.json", prefill=False, **(options | {"batches": (1,)}))
    assert read_profile(bare).prefill == () and "prefill_tokens_a_pass" not in read_profile(bare).provenance
    profiler.measure_profile(out=bare, **(options | {"batches": (1,)}))  # prompts can come later
    assert read_profile(bare).prefill and read_profile(bare).verify[0].seconds
    # By default contexts go as far as the memory has room; those that are asked for must fit.
    full = True
    monkeypatch.setattr(profiler, "CONTEXTS", (32, 64, 10_000))
    short = profiler.measure_profile(out=tmp_path / "short.json", **(options | {"contexts": None}))
    assert {(s.context, s.batch) for s in read_profile(short).verify} == {(32, 1), (64, 1), (32, 2)}
    with pytest.raises(DdsimError, match="too little"):
        profiler.measure_profile(out=tmp_path / "asked.json", **options)


def test_default_contexts_are_those_that_models_have() -> None:
    config, _ = tiny.target()
    shape, _ = tiny.drafter(config)
    short = replace(config, max_position_embeddings=3000)
    assert profiler.default_contexts(short, None) == [64, 256, 512, 1024, 2048]
    assert profiler.default_contexts(short, shape, widened=True) == list(profiler.CONTEXTS)
    assert profiler.default_contexts(short, replace(shape, window=shape.block_size + 64 + 600)) == [64, 256, 512]
    assert profiler.default_contexts(replace(config, max_position_embeddings=50), None) == [25]


def test_prompts_to_measure_end_in_time() -> None:
    for most in (1, 2, 64, 200, 8192, 32_768):
        points = profiler.prompts_to_measure(most)
        assert all(t >= 1 and c >= 0 and t + c <= most for t, c in points) and len(set(points)) == len(points)
        assert (most, 0) in points or most > 64
    assert len(profiler.prompts_to_measure(32_768)) == 4 * len(profiler.PROMPTS)


def test_prefill_after_a_context_is_the_same_prompt() -> None:
    config, weights = tiny.target()
    shape, drafter = tiny.drafter(config)
    engine = Engine(config, weights, shape, drafter, max_context=64, max_tokens=8, device="cpu")
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, 40).tolist()
    whole = engine.prefill(0, prompt).clone()
    engine.set_root(0, 3)
    engine.draft()
    drafted = [x.copy() for x in engine.drafted()]
    engine.prefill(0, prompt[:16])
    parts = engine.prefill(0, prompt[16:], 16)
    assert torch.equal(whole, parts) and engine.context.tolist() == [40] and engine.fed.tolist() == [40]
    engine.draft()
    assert all(np.array_equal(a, b) for a, b in zip(drafted, engine.drafted(), strict=True))
    with pytest.raises(DdsimError, match="40 tokens after 30, but the cache holds 64"):
        engine.prefill(0, prompt, 30)


def test_random_trees_are_trees() -> None:
    for tokens in (1, 2, 40, 130):
        tree = profiler.random_tree(tokens, 15, 99, np.random.default_rng(tokens), 24)
        assert tree.parents[0] == -1 and tree.depths[0] == 0 and tree.depths.max() <= 15
        bits = np.unpackbits(tree.mask.view(np.uint8), axis=1, bitorder="little")
        for i in range(tokens):
            line, node = set(), i
            while node >= 0:
                line.add(node)
                node = int(tree.parents[node])
            assert set(np.flatnonzero(bits[i])) == line
            assert i == 0 or (tree.parents[i] < i and tree.depths[i] == tree.depths[tree.parents[i]] + 1)


def test_buckets_are_measured_at_both_ends() -> None:
    config, weights = tiny.target()
    engine = Engine(config, weights, max_context=64, max_tokens=64, device="cpu", buckets=(1, 4, 16))
    assert profiler.profiled_tokens(engine, 32) == [1, 2, 4, 8, 16, 32]
    engine.device = torch.device("cuda")
    assert profiler.profiled_tokens(engine, 64) == [1, 2, 4, 5, 16, 17, 64]
    engine.batch = 3
    assert profiler.profiled_tokens(engine, 64) == [3, 4, 5, 16, 17, 64]


def test_the_profile_names_its_buckets_and_goes_on_with_the_same(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = profiler.measure_profile(target=pair[0], out=tmp_path / "p.json", buckets=(16, 4, 4), **OPTIONS)
    assert read_profile(out).buckets is None  # nothing is padded on a CPU
    profile = read_profile(out)
    profile.to_json()
    object.__setattr__(profile, "buckets", (4, 16))
    profile.save(out)
    profiler.measure_profile(target=pair[0], out=out, buckets=(4,), **OPTIONS)
    with pytest.raises(DdsimError, match="buckets differs"):
        profiler.measure_profile(target=pair[0], out=out, buckets=(4, 8), **OPTIONS)


def test_widened_pairs_are_measured_with_their_head(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def widened(config, weights, shape, drafter, head, name, texts):  # type: ignore[no-untyped-def]
        asked.append((name, texts))
        return config, weights, shape, drafter, head

    monkeypatch.setattr(profiler, "widened", widened)
    out = profiler.measure_profile(
        target=pair[0], drafter=pair[1], out=tmp_path / "p.json", widen="qwen3-8b", texts=[[1, 2]], **OPTIONS
    )
    assert asked == [("qwen3-8b", [[1, 2]])]
    assert read_profile(out).provenance["target"] == "target text at qwen3-8b cost"


def test_batches_in_one_profile_and_later(pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    seen: list[tuple[int, int]] = []
    options = OPTIONS | {"target": pair[0], "drafter": pair[1], "out": out, "repeats": 2}
    profiler.measure_profile(batches=(1, 3), progress=lambda a, b: seen.append((a, b)), **options)
    profile = read_profile(out)
    assert {(s.tokens, s.batch) for s in profile.verify} == {
        *((t, 1) for t in (1, 2, 4, 8, 16)),
        *((t, 3) for t in (3, 4, 8, 16)),
    }
    assert {(s.context, s.batch) for s in profile.draft} == {(c, b) for c in (32, 64) for b in (1, 3)}
    assert all(len(s.seconds) == 2 for s in [*profile.verify, *profile.draft])
    assert [s.batch for s in profile.host][:1] == [1] and seen[-1] == (4, 4)
    profiler.measure_profile(batches=(1, 2), **options)  # what is there stays
    later = read_profile(out)
    assert [s for s in later.verify if s.batch != 2] == list(profile.verify)
    assert {s.tokens for s in later.verify if s.batch == 2} == {2, 4, 8, 16}
    assert fit_cost(later).verify_seconds(12, 48, 2) > 0
    with pytest.raises(DdsimError, match="max_tokens 16"):
        profiler.measure_profile(batches=(9,), **options)


def test_shapes_by_name() -> None:
    target, drafter = profiler.shape_configs("qwen3-8b")
    assert 7.5e9 < target.parameters < 8.5e9 and drafter.horizon == 15
    assert len(drafter.target_layer_ids) == 5 and max(drafter.target_layer_ids) < target.num_layers
    assert 1.2e8 < profiler.shape_configs("smollm2-135m")[0].parameters < 1.4e8
    with pytest.raises(DdsimError, match="qwen3-4b"):
        profiler.shape_configs("gpt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"repeats": 0}, "at least 1"), ({"dtype": "int7"}, "int7"), ({"buckets": (0, 4)}, "from 1 to"), ({"buckets": ()}, "none"),
        ({"widen": "qwen3-8b"}, "needs a target and a drafter"), ({"contexts": ()}, "at least 1"),
    ],
)  # fmt: skip
def test_bad_options(pair: tuple[str, str], tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(DdsimError, match=says):
        profiler.measure_profile(target=pair[0], out=tmp_path / "p.json", **(OPTIONS | change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(DdsimError, match="finds no GPU"):
        profiler.measure_profile(target="qwen3-8b", random_weights=True, out=tmp_path / "p.json")


def test_clocks_are_of_the_gpu_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "580.1, 1980 MHz, 2619 MHz, 1980 MHz, 700.00 W\n", "")

    monkeypatch.setattr(profiler.subprocess, "run", answer)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"7ba35415-{device.index}")
    )
    assert profiler.clocks(torch.device("cuda:1"))["clocks.sm"] == "1980 MHz"
    assert "--id=GPU-7ba35415-1" in asked[0]
    assert profiler.clocks(torch.device("cpu")) == {} and len(asked) == 1


def test_the_published_loop_is_profiled_too(pair: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    seen: list[tuple[int, int]] = []
    options = OPTIONS | {"target": pair[0], "drafter": pair[1], "eager": True, "repeats": 2}
    out = profiler.measure_profile(out=tmp_path / "p.json", progress=lambda a, b: seen.append((a, b)), **options)
    profile = read_profile(out)
    assert {(s.tokens, s.context) for s in profile.verify} == {(t, c) for t in (1, 2, 4, 8, 16) for c in (32, 64)}
    assert {s.context for s in profile.draft} == {32, 64} and not profile.host and profile.buckets is None
    assert all(len(s.seconds) == 2 and min(s.seconds) > 0 for s in [*profile.verify, *profile.draft])
    assert "eager" in profile.provenance["engine"] and "head" not in profile.provenance and seen == [(1, 2), (2, 2)]
    assert fit_cost(profile).verify_seconds(8, 48) > 0
    for wrong in ({"drafter": None}, {"batches": (1, 2)}, {"fast": True}, {"random_weights": True}):
        with pytest.raises(DdsimError, match="the eager loop needs"):
            profiler.measure_profile(out=tmp_path / "q.json", **(options | wrong))
