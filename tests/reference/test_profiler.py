"""The profiler on the CPU: points, resuming, what a file says, and refusals."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(("change", "says"), [({"repeats": 0}, "at least 1"), ({"dtype": "int7"}, "int7")])
def test_bad_options(pair: tuple[str, str], tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(DdsimError, match=says):
        profiler.measure_profile(target=pair[0], out=tmp_path / "p.json", **(OPTIONS | change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(DdsimError, match="finds no GPU"):
        profiler.measure_profile(target="qwen3-8b", random_weights=True, out=tmp_path / "p.json")
