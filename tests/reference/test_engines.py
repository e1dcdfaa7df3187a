"""Serving engines on a small one with vLLM's interface: what is measured, what is predicted, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ddsim.cli.main import main
from ddsim.cost.model import fit_cost
from ddsim.cost.profile import read_profile
from ddsim.errors import DdsimError
from ddsim.files.documents import read_bytes
from ddsim_reference import engines
from ddsim_reference.engines import compare, costs, vllm
from ddsim_reference.engines.predict import drain
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import load_drafter, load_target, save_drafter, save_target
from ddsim_reference.record import marginals, write_answers
from tests.reference import tiny
from tests.reference.served import FakeEngine

NEW = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A target and a drafter of blocks of 8, as folders."""
    folder = tmp_path_factory.mktemp("pair")
    config, weights = tiny.target("llama")
    shape, drafter = tiny.drafter(config, block_size=8)
    save_target(folder / "target", config, weights, {})
    save_drafter(folder / "drafter", shape, drafter, {})
    return str(folder / "target"), str(folder / "drafter")


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[str, dict[tuple[str, str], list[int]]]:
    generator = np.random.default_rng(0)
    lines, encoded = [], {}
    for i in range(10):
        lines.append(json.dumps({"id": f"p{i}", "workload": "w", "prompt": f"p {i}"}))
        encoded["w", f"p{i}"] = generator.integers(0, 61, 9 + 3 * i).tolist()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "prompts.jsonl"), encoded


def decoded(pair: tuple[str, str], prompts: dict[tuple[str, str], list[int]]) -> dict[tuple[int, ...], Any]:
    """By prompt, the target's answer and how much of a block it accepts at each position, as the pair really does it.

    A random drafter is seldom right, so that every third position is made to accept a few more.
    """
    config, weights, _ = load_target(pair[0], with_tokenizer=False)
    shape, drafter = load_drafter(pair[1], target=weights)
    layers = forward.target_layers(config, weights)
    found = {}
    for i, ids in enumerate(prompts.values()):
        answer = write_answers(config, weights, [ids], max_new_tokens=NEW - i)[0]
        _, drafts = marginals(config, weights, layers, shape, drafter, ids, answer, candidates=4)
        chain = []
        for p in range(len(answer)):
            right = drafts[p, : len(answer) - 1 - p, 0] == answer[p + 1 : p + 1 + shape.horizon]
            chain.append(int(right.cumprod().sum()))
        found[tuple(ids)] = answer, chain
    return found


def running(answers: dict[tuple[int, ...], Any], ks: tuple[int, ...] = (7, 3, 1, 0), **options: Any) -> vllm.Vllm:
    fake = FakeEngine(answers, block=7, **options)
    wait = fake.wait if "host" in options else None
    return vllm.Vllm(fake, ks, "0.26.0", clock=fake.clock, sampling=lambda most, stop: (most, stop), wait=wait)


def test_a_profile_holds_what_steps_cost(pair: tuple[str, str], tmp_path: Path) -> None:
    engine = running({})
    path = engines.profile_engine(
        engine="vllm", target=pair[0], drafter=pair[1], out=tmp_path / "p.json", batches=(1, 2, 8), contexts=(128, 384),
        started=engine,
    )  # fmt: skip
    profile = read_profile(path)
    assert profile.provenance["engine"] == "vLLM 0.26.0"
    assert profile.provenance["ks"] == [0, 1, 3, 7]
    assert (
        profile.provenance["acceptance"] == f"synthetic: {costs.ACCEPTED} of drafted tokens, each given those before it"
    )
    assert profile.provenance["flags"]["async_scheduling"] is True
    assert {(s.tokens, s.context, s.batch) for s in profile.verify} == {
        (b * (k + 1), c, b) for b in (1, 2, 8) for c in (128, 384) for k in (0, 1, 3, 7)
    }
    for sample in profile.verify:
        expected = engine.engine.seconds(sample.tokens, sample.batch, sample.context)
        np.testing.assert_allclose(sample.seconds, expected, rtol=1e-3)
        assert len(sample.seconds) == 2 * costs.COUNT
    assert "whole steps" in fit_cost(profile).explain()
    assert not list(tmp_path.glob("*.part"))


def test_no_room_for_a_batch_leaves_it_out() -> None:
    engine = running({})
    engine.engine.vllm_config.cache_config.num_gpu_blocks = 100
    sweeps = costs.Sweeps(engine, batches=(1, 2, 4), contexts=(512,))
    sweeps.sweep()
    assert {s.batch for s in sweeps.samples()} == {1, 2}
    with pytest.raises(DdsimError, match=r"cache of 1,600 tokens has no room"):
        costs.Sweeps(engine, batches=(1,), contexts=(2048,))


def test_steps_of_the_host_are_told(pair: tuple[str, str], tmp_path: Path) -> None:
    """A step that begins when the GPU has nothing left to do takes the host's time alone."""
    for host, said in ((0.0039, True), (0.0005, False)):
        engine = running({}, host=host)
        sweeps = costs.Sweeps(engine, batches=(1, 2), contexts=(64,))
        sweeps.sweep()
        share = sweeps.how()["host_share"]
        assert share["points"] == 8
        assert share["median"] == pytest.approx(host / 0.0042, rel=0.1)
        assert (costs.host_bound(sweeps.how()) is not None) == said
        for sample in sweeps.samples():
            expected = engine.engine.seconds(sample.tokens, sample.batch, sample.context)
            np.testing.assert_allclose(sample.seconds, expected, rtol=1e-3)


def test_a_run_that_was_stopped_goes_on(
    pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path
) -> None:
    """Whatever it stops at, what was measured before is neither lost nor measured again."""
    answers = decoded(pair, prompts[1])
    given: dict[str, Any] = {
        "engine": "vllm", "target": pair[0], "drafter": pair[1], "prompts": [prompts[0]], "encoded": prompts[1], "limit": None,
        "max_new_tokens": NEW, "batches": (1, 4), "profile_batches": (1, 4), "contexts": (16, 64), "device": "cpu",
        "repeats": 2, "turns": 1,
    }  # fmt: skip
    engine = running(answers)
    before = engine.engine.breaks
    whole = engines.validate_engine(out=tmp_path / "whole.json", started=engine, **given)
    steps, out, kept = before - engine.engine.breaks, tmp_path / "v.json", 1
    for share in (0.4, 0.5):
        engine = running(answers)
        engine.engine.breaks = int(share * steps)
        with pytest.raises(KeyboardInterrupt):
            engines.validate_engine(out=out, started=engine, **given)
        assert not out.exists()
        lines = len((tmp_path / "v.json.part").read_text().splitlines())
        assert lines > kept
        kept = lines
    engine = running(answers)
    engine.engine.breaks = int(0.7 * steps)
    result = engines.validate_engine(out=out, started=engine, **given)
    assert [row["measured"] for row in result["rows"]] == [
        {name: pytest.approx(value, rel=1e-6) for name, value in row["measured"].items()} for row in whole["rows"]
    ]
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "v.json.part").write_text('{"about":{"kind":"validation"}}\n')
    with pytest.raises(DdsimError, match=r"v\.json\.part: holds part of another run \(\w+ differs\)"):
        engines.validate_engine(out=out, started=running(answers), **given)
    (tmp_path / "v.json.part").write_text("not JSON\n")
    with pytest.raises(DdsimError, match=r"v\.json\.part, line 1: not JSON"):
        engines.validate_engine(out=out, started=running(answers), **given)


def test_an_engine_without_a_drafter(
    pair: tuple[str, str],
    prompts: tuple[str, dict[tuple[str, str], list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = decoded(pair, prompts[1])
    fake = FakeEngine(answers, block=0)
    fake.lookup = fake.engine_core.engine_core.scheduler.dynamic_sd_lookup = None  # type: ignore[assignment]
    plain = vllm.Vllm(fake, (0,), "0.26.0", clock=fake.clock, sampling=lambda most, stop: (most, stop))
    monkeypatch.setattr(compare, "apart", lambda work, *given: work(*given, plain))
    result = engines.validate_engine(
        engine="vllm", target=pair[0], drafter=pair[1], out=tmp_path / "v.json", prompts=[prompts[0]], encoded=prompts[1],
        limit=None, max_new_tokens=NEW, batches=(1, 4), profile_batches=(1, 4), contexts=(16, 64), device="cpu", repeats=2,
        turns=2, plain=True, started=running(answers),
    )  # fmt: skip
    assert [(row["batch"], len(row["turns"])) for row in result["without_drafter"]] == [(1, 2), (4, 2)]
    for row, batch in zip(result["without_drafter"], (1, 4), strict=True):
        drafting = next(r for r in result["rows"] if (r["batch"], r["k"]) == (batch, "0"))
        assert row["measured"]["tokens_per_second"] == pytest.approx(
            drafting["measured"]["tokens_per_second"], rel=1e-6
        )


def test_work_apart_comes_back() -> None:
    assert compare.apart(sorted, [3, 1, 2]) == [1, 2, 3]


@pytest.mark.parametrize("lag", [0, 1])
def test_predictions_are_what_an_engine_does(
    lag: int, pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path
) -> None:
    answers = decoded(pair, prompts[1])
    out, picture = tmp_path / "held.json", tmp_path / "held.png"
    result = engines.validate_engine(
        engine="vllm", target=pair[0], drafter=pair[1], out=out, prompts=[prompts[0]], encoded=prompts[1], limit=None,
        max_new_tokens=NEW, batches=(1, 4, 10), profile_batches=(1, 4, 10), contexts=(16, 64), device="cpu",
        plot_path=picture, tolerance=0.02,
        started=running(answers, lag=lag),
    )  # fmt: skip
    assert json.loads(out.read_text())["kind"] == "ddsim-engine-validation"
    assert picture.stat().st_size > 0
    assert [(row["batch"], row["k"]) for row in result["rows"]] == [
        (b, k) for b in (1, 4, 10) for k in ("0", "3", "7", "schedule")
    ]
    for row in result["rows"]:
        assert row["same_text"] == row["answers"] == 10
        assert row["predicted"]["tokens_per_round"] == row["measured"]["tokens_per_round"]
        for name in ("ms_per_step", "tokens_per_second", "tpot_ms"):
            assert row["predicted"][name] == pytest.approx(row["measured"][name], rel=0.02)
        assert row["on_its_text"] == row["predicted"]
    assert result["passed"]
    assert all(one["right"] == one["pairs"] for one in result["order"])
    assert all(one["ratio"] > 0.95 for one in result["schedule_over_best"])
    assert main(["validate", "--show", str(out)]) == 0


def test_texts_that_differ_are_told_apart(
    pair: tuple[str, str], prompts: tuple[str, dict[tuple[str, str], list[int]]], tmp_path: Path
) -> None:
    """An engine whose answers end sooner the second time: the prediction rests on the first, its own text explains the rest."""
    answers = decoded(pair, prompts[1])
    engine = running(answers)
    whole = engine.decode

    def shorter(ids: Any, most: int, stop: Any) -> vllm.Call:
        drafting = engine.scheduler.dynamic_sd_lookup[1] > 0
        return whole(ids, most // 2 if drafting else most, stop)

    engine.decode = shorter  # type: ignore[method-assign]
    result = engines.validate_engine(
        engine="vllm", target=pair[0], drafter=pair[1], out=tmp_path / "v.json", prompts=[prompts[0]], encoded=prompts[1],
        limit=None, max_new_tokens=NEW, batches=(4,), profile_batches=(1, 4), contexts=(16, 64), device="cpu",
        started=engine,
    )  # fmt: skip
    drafted = next(row for row in result["rows"] if row["k"] == "7")
    assert drafted["same_text"] == 0
    assert abs(drafted["error_on_its_text"]) < 0.02


def test_draining_by_hand() -> None:
    """Two requests, K by how many the step before had; the one that ends takes part in one step more."""
    positions: Any = SimpleNamespace(
        starts=np.array([0, 4, 11]), chain=np.array([1, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0]), context=np.arange(11)
    )
    asked: list[tuple[int, int, float]] = []

    def price(requests: int, k: int, context: float) -> float:
        asked.append((requests, k, context))
        return 1.0

    told = drain(positions, price, [0, 1], lambda requests: 1 if requests > 1 else 2, most=7)
    # The first gains 2 and 1 and ends by itself; the second 2 (one of two right ones is verified), 1, 2, and 1 that was sure.
    assert asked == [(2, 1, 2.0), (2, 1, 4.0), (2, 1, 7.0), (1, 1, 9.0)]
    assert (told.tokens, told.rounds, told.steps, told.seconds) == (9, 6, 4, 4.0)
    assert told.tpot == pytest.approx((2 / 3, 4 / 6))
    asked.clear()
    drain(positions, price, [0, 1], lambda requests: 1 if requests > 1 else 2, lag=0)
    assert asked == [(2, 1, 2.0), (2, 1, 4.0), (1, 1, 7.0), (1, 2, 9.0)]


def test_refusals(pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p.json"
    given: dict[str, Any] = {"engine": "vllm", "target": pair[0], "drafter": pair[1], "out": out}

    def missing(name: str) -> str:
        raise vllm.PackageNotFoundError(name)

    monkeypatch.setattr(vllm, "version", missing)
    with pytest.raises(
        DdsimError, match=r"vLLM isn't installed; on a machine with a GPU run pip install vllm==0\.26\.0"
    ):
        engines.profile_engine(**given)
    with pytest.raises(DdsimError, match="isn't installed"):
        engines.validate_engine(**given)
    monkeypatch.setattr(vllm, "version", lambda name: "0.99.1")
    with pytest.raises(DdsimError, match=r"version 0\.99\.1 isn't known here \(0\.26\.0\)"):
        engines.profile_engine(**given)
    monkeypatch.setattr(vllm, "version", lambda name: "0.26.0")
    monkeypatch.setattr(vllm.importlib, "import_module", lambda name: SimpleNamespace(LLM=lambda **options: 1 / 0))
    with pytest.raises(DdsimError, match="doesn't start: ZeroDivisionError: division by zero"):
        engines.profile_engine(**given)
    for changes, message in (
        ({"engine": "sglang"}, 'engine "sglang": can\'t be driven here'),
        ({"ks": (0, 9)}, "K 9: must be 0 to 7"),
        ({"ks": (0,)}, "at least two"),
        ({"repeats": 0}, "repeats 0: must be from 1"),
        ({"batches": ()}, "must be at least 1"),
        ({"contexts": (1024,)}, "context 1,024: the target was made for 512 tokens"),
        ({"target": str(tmp_path / "none")}, "no such folder"),
        ({"target": "some.gguf"}, "folders in Hugging Face format; ddsim convert writes them"),
        ({"drafter": pair[0]}, "config.json"),
    ):
        with pytest.raises(DdsimError, match=message.replace("(", r"\(")):
            engines.profile_engine(**(given | changes))
    engine = running({})
    with pytest.raises(DdsimError, match=r"was started for K of \[0, 1, 3, 7\], and has no graphs for \[5\]"):
        engine.schedule([(1, 4, 5)])
    del engine.engine.engine_core.engine_core.scheduler.dynamic_sd_lookup
    with pytest.raises(DdsimError, match="without a schedule"):
        vllm.Vllm(engine.engine, (7, 0), "0.26.0")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["profile", "--target", "t", "-o", "p.json", "--engine", "vllm"], "needs --target and --drafter"),
        (["profile", "--target", "t", "-o", "p.json", "--k", "3"], "--k is for --engine"),
        (["profile", "--target", "t", "--drafter", "d", "-o", "p.json", "--engine", "tgi"], "can't be driven here"),
        (["validate", "--target", "t", "--drafter", "d", "-o", "v.json", "-b", "8"], "are for --engine"),
        (["validate", "--target", "t", "--drafter", "d", "-o", "v.json", "--engine", "vllm", "--widen", "qwen3-8b"],
         "takes no --widen"),
    ],
)  # fmt: skip
def test_command_line_refusals(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_vllms_own_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules carry K through gaps and past the end as vLLM's lookup does, and accepting can be fixed and freed."""
    engine = running({})
    engine.schedule([(1, 2, 7), (5, 6, 3), (9, 9, 0)])
    assert engine.scheduler.dynamic_sd_lookup[:12] == [0, 7, 7, 7, 7, 3, 3, 3, 3, 0, 0, 0]
    assert engine.accept([0.0] * 7)
    assert torch.equal(engine.engine.sampler.synthetic_conditional_rates, torch.zeros(7))
    assert engine.accept(None)
    assert engine.engine.sampler.synthetic_conditional_rates is None
    engine.engine.model_executor = SimpleNamespace()
    assert not engine.accept(None)


def test_groups_end_with_the_rest() -> None:
    assert compare.groups_of(3, 8) == [[0, 1, 2]]


def test_what_was_measured_in_vllm_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped comparison: its errors are those of its rows, and its costs are an engine's that plans take."""
    traces = Path(__file__).parents[2] / "traces"
    path = traces / "validation" / "vllm-qwen3-8b-cost-h100.json.gz"
    document = json.loads(read_bytes(path))
    told = compare.summary(document["rows"], 15)
    assert document["tokens_per_second_error"] == pytest.approx(told["tokens_per_second_error"], rel=1e-4)
    assert document["order"] == told["order"]
    for name in ("schedule_over_best", "schedule_over_block"):
        for one, again in zip(document[name], told[name], strict=True):
            assert one == pytest.approx(again, rel=1e-4)
    for said, most in (("mean", 0.03), ("worst", 0.05)):
        assert told["tokens_per_second_error"][said] <= most
    assert all(one["right"] == one["pairs"] for one in told["order"])
    # What else is at work on a machine can only slow a turn: the fastest tell what the engine does by itself.
    fastest = [row | {"measured": {"tokens_per_second": max(row["turns"])}} for row in document["rows"]]
    for row in fastest:
        row["tokens_per_second_error"] = row["predicted"]["tokens_per_second"] / max(row["turns"]) - 1
    calm = compare.summary(fastest, 15)
    assert calm["tokens_per_second_error"]["worst"] <= 0.05
    assert all(one["right"] == one["pairs"] for one in calm["order"])
    assert all(one["accepted"] for one in document["accepted"] if "file" in one)
    assert main(["validate", "--show", str(path)]) == 0
    shown = capsys.readouterr().out
    for errors, said in ((told, "off by"), (calm, "they are")):
        mean, worst = (f"{100 * errors['tokens_per_second_error'][name]:.1f} %" for name in ("mean", "worst"))
        assert f"{said} {mean} on average and {worst} at worst" in " ".join(shown.split())
    profile = read_profile(traces / "profiles" / "vllm-qwen3-8b-cost-h100.json.gz")
    assert profile.provenance["engine"] == "vLLM 0.26.0"
    assert {s.batch for s in profile.verify} >= {1, 8, 32, 64}


def test_a_process_that_is_ended_is_one_line() -> None:
    with pytest.raises(DdsimError, match="was ended from outside"):
        compare.apart(os._exit, 9)
