"""Fuzzers of JSON documents, options and names: no traceback, no bug, no hang, no half-written file, no answer that differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddsim.cost.profile import DraftSample, HostSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.files.documents import read_bytes
from tests import made_up
from tests.cli import fuzz_input, hostile

SHIPPED = Path(__file__).parents[2] / "traces"


def small_profile() -> Profile:
    """A profile that is fitted in a moment."""
    samples = [
        VerifySample(t * b, c, b, (made_up.seconds(t * b, c, b), made_up.seconds(t * b, c, b) * 1.01))
        for b in (1, 4)
        for c in (64, 512)
        for t in (1, 4, 16, 64)
    ]
    known = {"weight_bytes": 16e9, "bandwidth_bytes_per_s": 3e12}
    return Profile(
        samples, [DraftSample(64, 1, (0.001, 0.0011))], [HostSample((0.0002,))], {"device": "made up", "n": [1, {"a": None}]},
        buckets=(1, 4, 16, 64, 256), **known,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with a small trace and a small profile, as working directory."""
    made_up.saved(tmp_path / "trace", sequences=4, length=16, horizon=4, max_budget=8)
    small_profile().save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def readers(folder: Path) -> list[fuzz_input.Reader]:
    """What reads JSON documents, each with one that is right."""
    from ddsim.cost.model import fit_cost

    profile = small_profile()
    trace, few = folder / "trace", ("--policy", "AR", "--policy", "RoundRatio", "--bootstrap", 2, "--json")
    found = [
        fuzz_input.Reader("fit", profile.to_json(), ("fit", "FILE", "--kind", "convex", "--json")),
        fuzz_input.Reader("fit and write", profile.to_json(), ("fit", "FILE", "--kind", "table"), writes=True),
        fuzz_input.Reader("profile", profile.to_json(), ("replay", trace, "-p", "FILE", "--kind", "steps", *few)),
    ]
    for kind in ("roofline", "isotonic"):
        cost = json.loads(json.dumps(fit_cost(profile, kind).to_json()))
        found.append(fuzz_input.Reader(kind, cost, ("replay", trace, "-p", "FILE", *few)))
    cost = json.loads(json.dumps(fit_cost(profile, "table").to_json()))
    found.append(fuzz_input.Reader("serve", cost, ("serve", trace, "-p", "FILE", "-b", 2, *few)))
    sps = {"sample_batch_tokens": [1, 8, 64], "sample_steps_per_sec": [125.0, 100.0, 50.0], "max_batch_tokens": 64}
    found.append(fuzz_input.Reader("SPS table", sps, ("fit", "FILE", "--json")))
    additive = {"bias_seconds": 0.005, "bs_probes": [1, 4], "alpha_seconds": [0.0, 0.001]}
    additive |= {"m_probes": [1, 8, 32], "theta_seconds": [0.0, 0.001, 0.004]}
    found.append(fuzz_input.Reader("additive SPS table", additive, ("fit", "FILE", "--json")))
    (path,) = (SHIPPED / "validation").glob("qwen3-8b-cost-h100.json*")
    validation = json.loads(read_bytes(path))
    validation["rows"] = validation["rows"][:6]
    found.append(fuzz_input.Reader("validation", validation, ("validate", "--show", "FILE")))
    return found


def words(folder: Path) -> dict[str, list[Any]]:
    """The fewest words that each command needs."""
    trace, profile = str(folder / "trace"), ["-p", str(folder / "profile.json"), "--kind", "table"]
    few = ["--bootstrap", "2"]
    model = ["--target", "no-model", "--drafter", "no-drafter"]
    return {
        "demo": [], "bench": [],
        "plan": [trace, *profile, *few],
        "compare": [trace, trace, *few],
        "replay": [trace, *profile, *few, "--policy", "AR"],
        "report": [trace, *profile, *few, "-o", "page.html"],
        "serve": [trace, *profile, *few, "-b", "2", "--policy", "DFlash"],
        "sweep": [trace, *profile, "-b", "2", "--policy", "DFlash"],
        "rules": [trace, *profile, *few, "-b", "2", "--running", "2"],
        "fit": [str(folder / "profile.json"), "--kind", "table"],
        "calibrate": [trace],
        "export": [trace, "-o", "x.csv"],
        "draw": [trace, "-o", "tree.svg"],
        "record": [*model, "--prompts", "chat", "-o", "recording"],
        "decode": ["hello", *model],
        "profile": ["--target", "no-model", "-o", "p.json"],
        "validate": [*model, "-o", "v.json"],
        "convert": [*model, "-o", "pair"],
        "train-drafter": ["--target", "no-model", "--mask-token", "1", "-o", "drafter", "--work", "work"],
    }  # fmt: skip


@pytest.fixture
def light(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, and commands that need a model, or take minutes, stopped where their work would begin."""
    import ddsim.bench
    import ddsim.bench_serving
    import ddsim.cli.models
    import ddsim.demo

    def stop(*_: object, **__: object) -> None:
        raise DdsimError("no model here")

    monkeypatch.setattr(ddsim.cli.models, "reference", stop)
    monkeypatch.setattr(ddsim.bench, "run_bench", stop)
    monkeypatch.setattr(ddsim.bench_serving, "run_scale", stop)
    paths = {ddsim.demo.TRACE: folder / "trace", ddsim.demo.MARGINALS: folder / "trace"}
    paths[ddsim.demo.PROFILE] = folder / "profile.json"
    monkeypatch.setattr(ddsim.demo, "data", paths.__getitem__)
    return folder


def calibrations(folder: Path, count: int, seed: int) -> dict[bool, int]:
    """Let Python meet mutated calibrations, and replay with those that are read; how often which."""
    import numpy as np

    import ddsim
    from ddsim.trace.calibration import Calibration

    trace = ddsim.open_trace(folder / "trace")
    cost = ddsim.CostModel.from_table([1, 64], [0.01, 0.02])
    rng, found = np.random.default_rng([seed, 3]), {True: 0, False: 0}
    right = {}
    for kind in ("isotonic", "temperature"):
        ddsim.fit_calibration(trace, kind)[0].save(folder / "c.json")
        right[kind] = json.loads((folder / "c.json").read_text())
    for i in range(count):
        (folder / "c.json").write_bytes(fuzz_input.mutated(right[("isotonic", "temperature")[i % 2]], rng))
        try:
            calibration = Calibration.load(folder / "c.json")
        except DdsimError as error:
            assert str(folder / "c.json") in str(error)
            found[False] += 1
            continue
        try:
            ddsim.replay(trace, cost, ["AR", "RoundRatio"], calibration=calibration, bootstrap=2).table()
        except DdsimError:
            continue
        found[True] += 1
    return found


def test_fuzzed_documents(folder: Path) -> None:
    found = fuzz_input.documents(readers(folder), folder, 35, seed=0)
    assert found[0] and found[2] > 10  # some are harmless


def test_fuzzed_calibrations(folder: Path) -> None:
    assert calibrations(folder, 15, seed=0)[False] > 5


def test_fuzzed_options(light: Path) -> None:
    found = fuzz_input.odd_options(words(light), 35, seed=1)
    assert found[0] and found[2] > 7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_fuzzed_documents(folder: Path, seed: int) -> None:
    found = fuzz_input.documents(readers(folder), folder, 500, seed)
    assert found[0] and found[2] > 140 and calibrations(folder, 100, seed)[False] > 33


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_fuzzed_options(light: Path, seed: int) -> None:
    found = fuzz_input.odd_options(words(light), 500, seed)
    assert found[0] and found[2] > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_thousand_hostile_names(cli: Callable[..., Any], folder: Path, seed: int) -> None:
    hostile.use(cli, hostile.made(50, seed), folder / "profile.json", folder)
