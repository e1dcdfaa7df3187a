"""Plans for engines: every number of requests by hand, and the same K that the exported file gives."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cost.model import CostModel, fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.replay.arguments import measured_on
from ddsim.replay.engine_plan import NEAR, engine_plan, near_best
from ddsim.replay.engines import ENGINES, best_chains, engine_rule
from ddsim.trace.cache import positions_of
from ddsim.trace.trace import Trace
from ddsim.view.settings import engine_settings
from tests.made_up import made_trace
from tests.naive import budget as naive
from tests.naive import schedule as naive_schedule


def seconds(tokens: int, context: int, batch: int) -> float:
    """A pass is free up to 12 tokens and dear beyond; long contexts cost."""
    return 0.01 + 0.001 * max(tokens - 12, 0) + 1e-6 * context * batch


def profile(**provenance: Any) -> Profile:
    verify = [
        VerifySample(t, c, b, (seconds(t, c, b),))
        for b in (1, 2, 4, 8)
        for t in (1, 2, 4, 8, 12, 13, 16, 56)
        if t >= b
        for c in (128, 1024)
    ]
    return Profile(verify, [DraftSample(c, b, (0.001,)) for b in (1, 2, 4, 8) for c in (128, 1024)], (), provenance)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return made_trace(3, prompts=5, length=50)


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return fit_cost(profile(engine="vLLM 0.26.0"), "table")


def walked(trace: Trace, workload: str | None = None) -> tuple[dict[int, float], dict[int, float]]:
    """Tokens a round of chains and of trees, by their nodes, counted round by round."""
    positions = positions_of(trace)
    chosen = [s for s, name in enumerate(positions.workload) if workload in (None, name)]
    free = CostTable.of_curve(np.ones(positions.max_budget + 1), len(positions))
    tokens = int(positions.tokens[chosen].sum())

    def length(action: int) -> float:
        walks = naive.walk(positions, free, [action] * len(positions))
        return tokens / sum(walks[s]["rounds"] for s in chosen)

    chains = {0: 1.0} | {k: length(naive.PREFIX - k) for k in range(1, positions.horizon + 1)}
    return chains, {n: length(n) for n in (1, 3, 6, 13, 27, 55)}


def rates(lengths: dict[int, float], batch: int, context: int = 128) -> dict[int, float]:
    """Tokens a second of all requests."""
    return {
        n: batch * length / (seconds(batch * (n + 1), context, batch) + (0.001 if n else 0.0))
        for n, length in lengths.items()
        if batch * (n + 1) <= 56
    }


def test_every_row_by_hand(trace: Trace, cost: CostModel) -> None:
    answer = engine_plan(trace, cost, "vllm", context=100, bootstrap=200)
    chains, trees = walked(trace)
    assert answer.context == 128 and answer.shown == (1, 2, 4, 8)
    assert answer.table["k"].tolist() == best_chains(trace, cost, context=100)["k"].tolist()
    for row in answer.table.to_dict("records"):
        mine = rates(chains, row["requests"])
        best = max(mine.values())
        assert row["tokens_per_second"] == pytest.approx(mine[row["k"]]) and row["acceptance_length"] == pytest.approx(
            chains[row["k"]]
        )
        assert row["low"] < row["tokens_per_second"] < row["high"] or row["k"] == 0
        assert row["tpot"] == pytest.approx(row["requests"] / row["tokens_per_second"])
        assert row["over_ar"] == pytest.approx(mine[row["k"]] / mine[0] - 1)
        assert row["against_k"] == 6 and row["against_tokens_per_second"] == pytest.approx(mine[6])
        assert row["gain"] == pytest.approx(mine[row["k"]] / mine[6] - 1)
        assert row["gain_low"] <= row["gain"] <= row["gain_high"] and row["lost"] == pytest.approx(
            1 - mine[row["k"]] / best
        )
        good = {k for k, rate in mine.items() if rate >= (1 - NEAR) * best}
        assert {k for a, b in row["near_best"] for k in range(a, b + 1)} == good
        assert row["k_low"] <= max(mine, key=lambda k: mine[k]) <= row["k_high"]
    ks = dict(zip(answer.table["requests"], answer.table["k"], strict=True))
    for row in answer.trees.to_dict("records"):
        batch = row["requests"]
        mine = rates(trees, batch)
        assert row["tokens_per_second"] >= max(mine.values()) - 1e-9
        assert row["lost"] == pytest.approx(max(0, 1 - rates(chains, batch)[ks[batch]] / row["tokens_per_second"]))
    for row in answer.by_workload.to_dict("records"):
        mine = rates(walked(trace, row["workload"])[0], row["requests"])
        assert row["k"] == max(mine, key=lambda k: (mine[k], -k))
        assert row["lost"] == pytest.approx(1 - mine[ks[row["requests"]]] / mine[row["k"]])
    assert answer.by_context["context"].unique().tolist() == [256, 512, 1024]
    for row in answer.by_context.to_dict("records"):
        mine = rates(chains, row["requests"], row["context"])
        assert mine[row["k"]] == pytest.approx(max(mine.values())) and not row["extrapolated"]
        assert row["lost"] == pytest.approx(1 - mine[ks[row["requests"]]] / mine[row["k"]])
    off = [n for n, k in ks.items() if k == 0]
    assert answer.off_from == (min(off) if off else None) == 8
    for loss, table in zip(
        answer.lost, (answer.table, answer.trees, answer.by_context, answer.by_workload), strict=True
    ):
        assert loss["lost"] == pytest.approx(max(0, table["lost"].max()))
    assert (
        "From 8 requests on drafting loses" in " ".join(answer.details) and "no draft for 8 requests" in answer.sentence
    )
    document = json.loads(json.dumps(answer.to_json(), allow_nan=False))
    assert document["batches"][0]["k"] == ks[1] and document["provenance"]["cost"]["provenance"] == {
        "engine": "vLLM 0.26.0"
    }
    assert document["why"] == list(answer.reasons) and [row["requests"] for row in answer.reasons] == [
        n for n in range(2, 9) if ks[n] != ks[n - 1]
    ]
    for row in answer.reasons:
        n, k, other = row["requests"], row["k"], row["other"]
        took = [seconds(n * (one + 1), 128, n) + (0.001 if one else 0.0) for one in (other, k)]
        assert (k, other) == (ks[n], ks[n - 1]) and row["seconds"] == pytest.approx(took[0] / took[1] - 1)
        assert row["tokens"] == pytest.approx(chains[other] / chains[k] - 1)
    first = answer.reasons[0]
    assert (
        answer.details[0].startswith(f"At {first['requests']} request") and f"K = {first['other']}" in answer.details[0]
    )
    positions = positions_of(trace)
    for row in answer.by_workload.to_dict("records"):
        mine = [s for s, name in enumerate(positions.workload) if name == row["workload"]]
        spans = [positions.context[positions.starts[s] : positions.starts[s + 1]] for s in mine]
        assert row["context"] == pytest.approx(np.concatenate(spans).mean())
    grid, contexts, marks = answer.grid()
    assert grid.shape == marks.shape == (4, 3) and contexts == [256, 512, 1024]


@pytest.mark.parametrize(("engine", "method"), [(e, m) for e, known in ENGINES.items() for m in known.rules])
def test_the_plan_is_what_the_export_says(engine: str, method: str, trace: Trace, cost: CostModel) -> None:
    answer = engine_plan(trace, cost, engine, method=method, bootstrap=20)
    choices = best_chains(trace, cost, rule=engine_rule(engine, method))
    document = json.loads(json.dumps(engine_settings(engine, choices, "d", trace.horizon, method=method)))
    assert [naive_schedule.k_of(document, n) for n in range(1, 9)] == answer.table["k"].tolist()
    worst = answer.lost[0]
    assert worst["what"] == "settings" and worst["lost"] == pytest.approx(max(choices["lost"].max(), 0))
    assert any("all that can be set" in line for line in answer.details) == (worst["lost"] > NEAR)


def test_against_what_is_set_now(trace: Trace, cost: CostModel) -> None:
    schedule = [(1, 2, 6), (3, 8, 1)]
    answer = engine_plan(trace, cost, "vllm", against=schedule, requests=[1, 4], bootstrap=20)
    assert answer.table["against_k"].tolist() == [6, 6, 1, 1] and answer.shown == (1, 4)
    assert engine_plan(trace, cost, "vllm", against=0, requests=2, bootstrap=20).table[
        "gain"
    ].tolist() == pytest.approx(engine_plan(trace, cost, "vllm", requests=2, bootstrap=20).table["over_ar"].tolist())
    for wrong, reason in {
        7: "K = 7: must be 0 to 6, the tokens of a recorded draft",
        ((1, 2, 6), (5, 8, 1)): "leaves out 3 to 4 requests, where vLLM would go on with K = 6",
        ((1, 2, 6), (3, 8, 7)): "K = 7 for 3 to 8 requests: must be 0 to 6",
        ((2, 4, 6),): "first range must start from 1",
        ((1, 4, 6), (4, 8, 1)): "overlap",
    }.items():
        with pytest.raises(DdsimError, match=reason):
            engine_plan(trace, cost, "vllm", against=wrong)


def test_what_was_not_measured(trace: Trace, cost: CostModel) -> None:
    answer = engine_plan(trace, cost, "vllm", bootstrap=20)  # 8 requests of 7 tokens are 56: measured
    assert answer.table["against_tokens_per_second"].notna().all()
    with pytest.raises(DdsimError, match="up to 8 requests, not 12"):
        engine_plan(trace, cost, "vllm", requests=12)
    more = engine_plan(trace, cost, "vllm", requests=12, extrapolate=True, bootstrap=20)
    assert more.table["extrapolated"].tolist() == [False] * 8 + [True] * 4
    assert any("Of 12 rows 4 rest on extrapolated costs" in note for note in more.notes)
    short = fit_cost(Profile([s for s in profile().verify if s.tokens <= 16], profile().draft), "table")
    cut = engine_plan(trace, short, "vllm", bootstrap=20)
    assert cut.table["gain"].isna().any()  # 8 requests of 7 tokens weren't
    json.dumps(cut.to_json(), allow_nan=False)
    assert any("Nothing says that these costs are vLLM's" in note for note in cut.notes)
    one = engine_plan(made_trace(0, prompts=1, length=40, workloads=(("code", 1.4),)), cost, "vllm", bootstrap=20)
    assert one.table["low"].isna().all() and not len(one.by_workload)
    json.dumps(one.to_json(), allow_nan=False)
    flat = CostModel.from_table([1, 56], [0.01, 0.02])
    alone = engine_plan(trace, flat, "tensorrt-llm", requests=4, bootstrap=20)
    assert not len(alone.by_context) and alone.grid()[0].shape == (3, 1)


def test_recorded_chains_have_no_trees(cost: CostModel) -> None:
    rng = np.random.default_rng(0)
    chains = Trace.from_chains(rng.integers(0, 3, 50), rng.integers(0, 3, (50, 4)), np.log(np.full((50, 4), 0.5)))
    answer = engine_plan(chains, cost, "sglang", method="eagle3", bootstrap=20)
    assert not len(answer.trees) and [loss["what"] for loss in answer.lost] == ["settings", "K by context"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1, 100) | st.just(float("nan")), min_size=1, max_size=9).filter(
        lambda r: not all(map(np.isnan, r))
    )
)
def test_runs_that_are_near_the_best(row: list[float]) -> None:
    runs = near_best(np.array(row))
    top = max(r for r in row if r == r)
    assert [k for a, b in runs for k in range(a, b + 1)] == [k for k, r in enumerate(row) if r >= (1 - NEAR) * top]
    assert all(b < c - 1 for (_, b), (c, _) in pairwise(runs))


def test_whose_costs_these_are() -> None:
    for named, engine in {
        "vllm": "vllm", "vLLM 0.26.0": "vllm", "SGLang 0.5.23": "sglang", "TensorRT-LLM": "tensorrt-llm", "": None, 3: None, None: None,
    }.items():  # fmt: skip
        assert measured_on({"engine": named}) == engine
    assert measured_on({"engine": {"name": "vllm", "version": "0.26.0"}}) == "vllm" and measured_on({}) is None


def test_on_the_command_line(trace: Trace, cost: CostModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ddsim.cli.main import main

    trace.save(tmp_path / "trace")
    cost.save(tmp_path / "cost.json")
    words = ["plan", str(tmp_path / "trace"), "-p", str(tmp_path / "cost.json"), "--engine"]
    more = ["--context", "100", "--bootstrap", "50", "--against", "[[1, 4, 6], [5, 8, 3]]"]
    assert main([*words, "vllm", *more, "--plot", str(tmp_path / "k.png")]) == 0
    said = capsys.readouterr().out
    assert "vLLM: K = " in said and "gain over the given schedule" in said and "Each workload's own best K" in said
    assert (tmp_path / "k.png").stat().st_size > 1000
    assert main([*words, "vllm", *more, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "ddsim-engine-plan" and document["schedule"][0][:2] == [1, document["schedule"][0][1]]
    assert [row["against_k"] for row in document["batches"]] == [6] * 4 + [3] * 4
    for line, reason in {
        "sglang": "holds costs of 'vLLM 0.26.0', not of SGLang",
        "tgi": 'unknown value "tgi" (known: vllm, sglang, tensorrt-llm)',
        "tensorrt-llm --method dspark": 'unknown method "dspark"',
        "vllm --policy AR": "--engine takes no --policy or --calibrate",
        "vllm --calibrate path": "--engine takes no --policy or --calibrate",
        "vllm -b 9": "up to 8 requests, not 9",
        "vllm --against 7": "K = 7: must be 0 to 6",
        "vllm --against [[1,2,6],[5,8,1]]": "leaves out 3 to 4 requests",
        "vllm --against [[1,2,9]]": "K = 9 for 1 to 2 requests",
        "vllm --against [[1,2]]": "--against[0]: needs at least 3 entries",
        "vllm --against K7": "--against: not valid JSON",
        "vllm --against 1.5": "--against: must be a whole number",
    }.items():
        assert main([*words, *line.split(), "--plot", str(tmp_path / "no.png")]) == 2
        (error,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error")]
        assert reason in error and not (tmp_path / "no.png").exists()
    assert main([*words[:-1], "--against", "7"]) == 2
    assert "are for --engine ENGINE" in capsys.readouterr().err


def test_k_that_never_changes_is_held_beside_the_next_best(trace: Trace) -> None:
    flat = CostModel.from_table([1, 56], [0.010, 0.0101])
    answer = engine_plan(trace, flat, "vllm", requests=4, bootstrap=20)
    chains, _ = walked(trace)
    assert len(set(answer.table["k"])) == 1
    (reason,) = answer.reasons
    rates = {k: length / (0.010 + 0.0001 * (4 * (k + 1) - 1) / 55) for k, length in chains.items()}
    k = reason["k"]
    assert reason["requests"] == 4 and reason["other"] == max((one for one in rates if one != k), key=rates.__getitem__)
    assert reason["tokens"] == pytest.approx(chains[reason["other"]] / chains[k] - 1)


def test_a_plan_of_two_prompts_warns() -> None:
    small = made_trace(3, workloads=(("a", 0.5),), prompts=2, length=50)
    answer = engine_plan(small, CostModel.from_table([1, 56], [0.010, 0.030]), "vllm", requests=4, bootstrap=20)
    assert str(answer).splitlines()[1].startswith("Warning: The trace holds 2 prompts, too few") and answer.prompts == 2
    assert " to +" not in str(answer) and "95 %" not in str(answer) and not answer.to_json()["enough_prompts"]
