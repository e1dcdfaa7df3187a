"""A server under load against a plain one, against queueing theory and against a batch that drains; conservation; bad input."""

from __future__ import annotations

import dataclasses
import json
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from ddsim.cost.model import CostModel, ExtrapolationWarning, fit_cost
from ddsim.cost.profile import PrefillSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.policy.batch import FairRatio, Share, Uniform
from ddsim.policy.contract import Policy
from ddsim.policy.joint import JointTable, decided_on
from ddsim.policy.rules import Autoregressive, Chain, DDTree, DFlash, LongRun, RoundRatio, Schedule
from ddsim.replay import load as _load
from ddsim.replay.arrivals import Arrivals, drawn_arrivals, read_arrivals
from ddsim.replay.load import serve_load
from ddsim.replay.load_kernels import Requests, Server
from ddsim.replay.serving import simulate
from ddsim.trace.rounds import Positions
from tests.naive import load as naive_load
from tests.replay.test_serving import COST, Copied, made, some_positions
from tests.strategies import ints, run

CASES = pytest.mark.parametrize("cases", [40, pytest.param(20_000, marks=pytest.mark.slow)])

POLICIES: list[Policy] = [
    Autoregressive(), DFlash(), DDTree(3), RoundRatio(), LongRun(80.0), FairRatio(), Share(RoundRatio()), Uniform(RoundRatio()),
    Chain(2), Schedule([(1, 1, 9), (2, 2, 2), (3, 9, 0)]), Copied(RoundRatio()), Copied(Chain(3)),
]  # fmt: skip


def quiet(*arguments: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        return serve_load(*arguments, **named)


@st.composite
def servers(draw: Any) -> tuple[Positions, Policy, Server, Requests]:
    """A few short texts, a policy, a small server, and two simulations of a few requests."""
    lengths = [2, *draw(st.lists(st.integers(2, 7), min_size=1, max_size=3))]
    positions = draw(some_positions(lengths, 6))
    policy = draw(st.sampled_from(POLICIES))
    count, running = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    arrival = np.cumsum(draw(ints(0, 5, 2, count)) / 256, axis=1)
    prompt = draw(ints(1, 9, 2, count)) * draw(st.sampled_from([1, 30]))
    taken = draw(ints(0, len(lengths) - 1, 2, count))
    pieces = draw(ints(0, 2, 2, count))
    texts: list[tuple[int, int]] = []
    ends, answer = np.zeros((2, count + 1), np.int64), np.ones((2, count), np.int64)
    for r in range(2):
        for i in range(count):
            ends[r, i] = len(texts)
            for k in range(pieces[r, i]):
                s = (taken[r, i] + k) % len(lengths)
                last = int(positions.starts[s + 1]) - 1 - (k == 1 and lengths[s] > 2)  # a second piece may be cut short
                texts.append((int(positions.starts[s]), last))
                answer[r, i] += last - int(positions.starts[s])
        ends[r, count] = len(texts)
    requests = Requests(arrival, prompt, answer, ends, np.array(texts, np.int64).reshape(-1, 2))
    needs = int((prompt + answer).max())
    chunked = draw(st.booleans())
    prefill = np.concatenate([[0.0], np.cumsum(draw(ints(0, 40, 400)) / 4096)])
    memory = needs + draw(st.sampled_from([0, 9, 10_000]))
    return (
        positions,
        policy,
        Server(
            running, memory, chunked, draw(st.sampled_from([3, 16, 40])), prefill, draw(st.sampled_from([0.0, 1e-6]))
        ),
        requests,
    )


def priced(positions: Positions, running: int, policy: Policy, prompt: int) -> list[JointTable]:
    return _load._priced(COST, positions, (1, prompt + 30), running, [policy])


@CASES
def test_the_kernel_against_a_plain_server(cases: int) -> None:
    run(cases, check_server, servers())


def check_server(drawn: tuple[Positions, Policy, Server, Requests]) -> None:
    positions, policy, server, requests = drawn
    tables = priced(positions, server.running, policy, int(requests.prompt.max()))
    ready = _load._ready(policy, positions, COST, tables, np.zeros((1, 1), np.int64))
    got = _load._simulate(ready, positions, server, requests)
    own = [decided_on(policy, COST, table, positions.max_budget) for table in tables]

    def costs(b: int, context: Fraction) -> Any:
        table = tables[b - 1]
        u = naive_load.row(context, table.step, table.first, len(table.seconds))
        return table.seconds[u], table.ar_seconds[u]

    def choose(gains: Any, context: Fraction) -> Any:
        rule = policy.policy if isinstance(policy, Copied) else policy
        if isinstance(rule, Autoregressive):
            return None
        if isinstance(rule, (DFlash, Chain)):
            return 4 if isinstance(rule, DFlash) else rule.k
        if isinstance(rule, Schedule):
            return min(rule.k(len(gains)), 4) or None
        table = own[len(gains) - 1]
        u = naive_load.row(context, table.step, table.first, len(table.seconds))
        return rule.choose_batch(np.ascontiguousarray(gains), table.curve[u]).tolist()

    for r in range(len(requests.arrival)):
        wanted = [
            {
                "arrival": float(requests.arrival[r, i]),
                "prompt": int(requests.prompt[r, i]),
                "answer": int(requests.answer[r, i]),
                "texts": requests.texts[requests.pieces[r, i] : requests.pieces[r, i + 1]].tolist(),
            }
            for i in range(requests.arrival.shape[1])
        ]
        want = naive_load.open_loop(
            positions, wanted, server.running, server.memory, server.budget if server.chunked else None, server.budget,
            server.prefill, server.attend, costs, choose, isinstance(policy, Uniform),
        )  # fmt: skip
        for name, value in want.items():  # to the last bit
            assert np.array_equal(getattr(got, name)[r], value), (policy.name, name)
        # no request is lost, none is served twice, tokens add up, and nobody is let in where there is no room
        assert (got.finish[r] >= got.first[r]).all() and (got.first[r] >= got.admitted[r]).all()
        assert (got.admitted[r] >= requests.arrival[r]).all()
        assert got.tokens[r] == (requests.answer[r] - 1).sum()
        assert got.held[r] <= server.memory
        inside = (got.admitted[r][:, None] <= got.admitted[r]) & (got.finish[r][:, None] > got.admitted[r])
        assert inside.sum(axis=0).max() <= server.running


def test_all_at_once_without_prefill_is_a_batch_that_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = made(3, [30, 12, 25, 18], contexts=[100, 220, 400, 60])
    monkeypatch.setattr(_load, "prefill_seconds", lambda cost, most: (np.zeros(most + 1), 0.0, "none"))
    names = ["AR", "DFlash", "DDTree:4", "RoundRatio", "FairRatio", "Schedule([(1, 2, 4), (3, 3, 0)])"]
    names += [
        "OnChain:RoundRatio",
        "AdaptiveVerification(estimate=False)",
        "DSpark",
        "AdaptiveSteps(slots={1: [0, 1, 3], 3: [2, 4]})",
    ]
    loaded = quiet(positions, COST, names, arrivals=Arrivals(np.zeros(24)), running=3, bootstrap=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        drained = simulate(positions, COST, names, batch=3, requests=24, drain=True, bootstrap=1)
    for name in loaded.highest:
        told, closed = loaded.runs[np.inf, name].told, drained.runs[3, name]
        assert np.array_equal(told.finish.max(axis=1), closed.seconds)
        for what in ("rounds", "nodes", "shares", "tokens"):
            assert np.array_equal(getattr(told, what), getattr(closed, what))


def test_one_slot_is_a_queue_that_theory_knows() -> None:
    """Poisson arrivals, one server, answers of one length: Pollaczek and Khinchine's mean wait."""
    positions = made(4, [9] * 6)
    cost = CostModel.from_table([1, 4096], [0.010, 0.010])
    rate = 8.0
    result = quiet(positions, cost, ["AR"], rate=rate, running=1, requests=2500, bootstrap=0)
    told, requests = result.runs[rate, "AR"].told, result.runs[rate, "AR"].requests
    service = 0.010 * requests.answer  # a pass for the prompt, and one for each token after the first
    assert np.allclose(told.finish - told.admitted, service)
    mean = float(service.mean())
    want = rate * mean**2 / (2 * (1 - rate * mean))
    assert float((told.admitted - requests.arrival).mean()) == pytest.approx(want, rel=0.06)
    assert result.highest["AR"].mean() == pytest.approx(1 / mean, rel=0.02)


def test_everything_is_the_same_whatever_the_threads() -> None:
    import numba

    positions = made(8, [30] * 12)
    asked: dict[str, Any] = {"rate": (3.0, 9.0), "running": 4, "bootstrap": 6, "prefill": "chunked", "chunk": 16}
    many = quiet(positions, COST, ["DDTree:4", "LongRun"], **asked).table()
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = quiet(positions, COST, ["DDTree:4", "LongRun"], **asked).table()
    finally:
        numba.set_num_threads(threads)
    assert many.equals(one)


def test_loads_are_shares_of_what_the_best_fixed_setting_can_serve() -> None:
    positions = made(5, [40] * 10, spread=2)
    result = quiet(positions, COST, ["DFlash", "DDTree:4", "RoundRatio"], running=4, bootstrap=5, ttft=1.0, tpot=0.05)
    table = result.table()
    most = max(float(result.highest[name][:8].mean()) for name in ("AR", "DFlash", "DDTree(4)"))
    assert table["load"].unique() == pytest.approx([0.3 * most, 0.6 * most, 0.9 * most])
    assert table["fixed"].tolist() == [True, True, True, False] * 3
    rows = table[table["load"] == result.loads[0]].set_index("policy")
    best = rows["best_fixed"].iloc[0]
    assert rows.loc[best, "latency_over"] == 0 == rows.loc[best, "latency_over_high"]
    assert (rows["ttft_p50"] <= rows["ttft_p95"]).all() and (rows["ttft_p95"] <= rows["ttft_p99"]).all()
    assert rows["goodput"].between(0, 1).all() and not rows.loc[best, "unstable"]
    assert result.gain("RoundRatio", best, result.loads[0])[0] == pytest.approx(rows.loc["RoundRatio", "latency_over"])
    document = json.loads(json.dumps(result.to_json()))
    assert document["kind"] == "ddsim-load" and len(document["table"]) == 12
    assert (
        repr(result).startswith(result.sentence[:30]) and repr(result).count(" requests/s (") == 4
    )  # the sentence, and a title a load
    assert result.sentence.startswith("At ") and "90 %" in result.sentence


def test_more_than_can_ever_be_served_is_said() -> None:
    positions = made(5, [40] * 6)
    result = quiet(positions, COST, ["DFlash"], rate=1000.0, running=2, bootstrap=0, ttft=1e-4)
    assert result.table()["unstable"].all()
    assert "the queue grows without end: the most that can be served is" in result.sentence
    assert "goodput 0" in " ".join(result.details)
    calm = quiet(positions, COST, ["DFlash"], rate=0.5, running=2, bootstrap=0)
    assert not calm.table()["unstable"].any() and np.isnan(calm.table()["goodput"]).all()


def test_bursts_wait_longer_and_memory_is_a_limit() -> None:
    positions = made(6, [40] * 8)
    waits = {}
    for arrivals in ("poisson", "bursts"):
        result = quiet(positions, COST, ["DFlash"], rate=4.0, arrivals=arrivals, running=4, requests=400, bootstrap=0)
        waits[arrivals] = float(result.runs[4.0, "DFlash"].ttft.mean())
    assert waits["bursts"] > 1.5 * waits["poisson"]
    free = quiet(positions, COST, ["DFlash"], rate=4.0, running=4, bootstrap=0)
    tight = quiet(positions, COST, ["DFlash"], rate=4.0, running=4, memory=60, bootstrap=0)
    assert tight.runs[4.0, "DFlash"].told.held.max() <= 60 < free.runs[4.0, "DFlash"].told.held.max()
    assert tight.highest["DFlash"].mean() < free.highest["DFlash"].mean()
    gaps = np.diff(drawn_arrivals("bursts", 1, 20_000, 0)[0])
    assert gaps.mean() == pytest.approx(1, rel=0.05) and gaps.std() == pytest.approx(2, rel=0.1)


def test_a_log_gives_times_and_lengths(tmp_path: Path) -> None:
    positions = made(7, [30] * 5)
    table = pd.DataFrame(
        {
            "TIMESTAMP": pd.to_datetime([0, 1, 1, 4], unit="s"),
            "ContextTokens": [5, 900, 3, 8],
            "GeneratedTokens": [1, 70, 2, 29],
        }
    )
    table.to_csv(tmp_path / "log.csv", index=False)
    table.to_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        result = quiet(positions, COST, ["DFlash"], arrivals=tmp_path / name, running=2, bootstrap=2)
        run_of = result.runs[0.75, "DFlash"]
        assert result.loads == [0.75] and run_of.skipped == 0
        assert run_of.requests.arrival[0].tolist() == [0, 1, 1, 4]
        assert run_of.requests.prompt[0].tolist() == [5, 900, 3, 8] and run_of.requests.answer[0].tolist() == [
            1,
            70,
            2,
            29,
        ]
        assert (run_of.told.tokens == 69 + 1 + 28).all()
        assert (run_of.tpot[:, 0] == 0).all()
    faster = quiet(positions, COST, ["DFlash"], arrivals=tmp_path / "log.csv", rate=7.5, running=2, bootstrap=0)
    assert faster.runs[7.5, "DFlash"].requests.arrival[0] == pytest.approx([0, 0.1, 0.1, 0.4])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time\n0\n2\n1\n", "times run backwards: request 3 came at 1 s, 1 s before the one above it; sort the log"),
        ("time\n0\nx\n", 'request 2: "x" is no number of seconds'),
        ("time\n2026-01-01\nx\n", 'request 2: "x" is neither seconds nor a date'),
        ("time\n0\nnan\n", "request 2: its time is missing"),
        ("when\n0\n", "no column of times; call it arrival or arrived_at"),
        ("time,prompt_tokens\n0,1\n1,0\n", "prompt_tokens: request 2: must be a whole number of tokens"),
        ("time,output_tokens\n0,1.5\n", "answer_tokens: request 1: must be a whole number of tokens"),
        ("time\n", "must be times of at least one request"),
        ("", "can't be read as csv"),
        ("time\n0\ninf\n", "request 2: its time is missing, or no finite number"),
        ("time\n1\n2026-01-01\n", 'request 2: "2026-01-01" is no number of seconds'),
        ('time\n"0,5"\n"1,5"\n', 'request 1: "0,5" is neither seconds nor a date'),
        ('time\n"1,5"\n', 'request 1: "1,5" is neither seconds nor a date'),
        ("time\n1,2,3\n4\n5,6,7,8,9\n", "can't be read as csv: 'Error tokenizing data"),
        ('time\n"1\n2', "can't be read as csv"),
        ("time\nTrue\nFalse\n", "times run backwards"),
        ("time,prompt_tokens\n1,abc\n", "prompt_tokens: must be numbers"),
        ("time,prompt_tokens\n1,\n", "prompt_tokens: request 1: must be a whole number of tokens"),
        ("time,prompt_tokens\n1,True\n", "prompt_tokens: must be numbers"),
        ("time,answer_tokens\n1,-4\n", "answer_tokens: request 1: must be a whole number of tokens"),
        (
            "time,answer_tokens\n1,16777216\n",
            "answer_tokens: request 1: must be a whole number of tokens, 1 to 1,048,576",
        ),
        ("\0\1\2", "no column of times"),
        ("\ufefftime\nx\n", 'request 1: "x" is neither seconds nor a date'),
    ],
)
def test_bad_logs_get_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(DdsimError, match=words) as error:
        read_arrivals(tmp_path / "log.csv")
    assert "\n" not in str(error.value) and "log.csv" in str(error.value)


def test_bad_parquet_gets_one_line(tmp_path: Path) -> None:
    path, days = tmp_path / "log.parquet", pd.to_datetime(["2026-01-01", None])
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DdsimError, match="can't be read as parquet"):
        read_arrivals(path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"time": [[1, 2], [3]]}, r'request 1: "\[1 2\]" is neither seconds nor a date'),
        ({"time": [{"a": 1}]}, "is neither seconds nor a date"),
        ({"time": [None, None]}, 'request 1: "None" is neither'),
        ({"time": days}, 'request 2: "NaT" is neither'),
        ({"time": days - days[0]}, "request 2: its time is missing"),
        ({"time": pd.array([1, None], dtype="Int64")}, "request 2: its time is missing"),
        ({"time": [1, 2], "prompt_tokens": pd.array([1, None], dtype="Int64")}, "prompt_tokens: request 2: must be"),
        ({"time": [1.0], "prompt_tokens": [[1]]}, "prompt_tokens: must be numbers"),
        ({"time": pd.Series([], dtype=float)}, "must be times of at least one request"),
    ]
    for columns, words in cases:
        pd.DataFrame(columns).to_parquet(path)
        with pytest.raises(DdsimError, match=words) as error:
            read_arrivals(path)
        assert "\n" not in str(error.value) and "log.parquet" in str(error.value)
    pd.DataFrame({"time": ["18:15:46", "18:15:48"]}).to_parquet(path)
    assert read_arrivals(path).seconds.tolist() == [0, 2]


def test_the_rate_of_a_log_is_that_of_the_requests_simulated() -> None:
    log = Arrivals([0, 0.1, 100, 200], answer_tokens=[3, 4, 5, 600])
    result = quiet(made(7, [30] * 5), COST, ["DFlash"], arrivals=log, requests=2, running=2, bootstrap=0)
    assert result.loads == [10.0] and result.provenance["arrivals"] == {"requests": 2, "rate": 10.0}
    assert result.runs[10.0, "DFlash"].requests.answer[0].tolist() == [3, 4]
    at_once = quiet(made(7, [30] * 5), COST, ["DFlash"], arrivals=Arrivals([5, 5]), running=2, bootstrap=0)
    assert "null" in json.dumps(at_once.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"rate": 0}, "rate: must be a number of requests a second above 0, is 0"),
        ({"rate": []}, "rate: must be one number"),
        ({"rate": float("nan")}, "rate: must be a number"),
        ({"arrivals": "never"}, 'unknown arrivals "never"'),
        ({"arrivals": "no.csv"}, "no.csv: no such file"),
        ({"arrivals": "log.txt"}, "log.txt: arrivals are read from"),
        ({"arrivals": 5}, "arrivals: must be poisson, bursts, a log's name or Arrivals, is 5"),
        ({"arrivals": Arrivals([0, 1e308])}, "the last request comes after 1e.308 s; at most 1e.09 s are simulated"),
        ({"arrivals": Arrivals([0, 1, 2]), "rate": 1e-12}, "the last request comes after 2e.12 s"),
        ({"arrivals": Arrivals([0, 1], answer_tokens=[2**20, 2**20])}, "recorded texts, more than 20,000,000"),
        ({"rate": [1.0, 1e-320]}, "the last request comes after inf s"),
        ({"running": 4096}, "running: must be at most 1,024, is 4,096; simulate a replica"),
        ({"running": 0}, "running: must be at least 1"),
        ({"memory": 10}, "memory: 10 tokens can't hold the longest request, of 30 with its answer"),
        ({"prefill": "later"}, 'prefill: must be "whole" or "chunked"'),
        ({"chunk": 0}, "chunk: must be at least 1"),
        ({"ttft": -1.0}, "ttft: must be a number of seconds above 0"),
        ({"policies": ["Hindsight"]}, "Hindsight"),
        ({"policies": ["DDTree:99"]}, "the trace answers budgets up to 12"),
    ],
)
def test_bad_options_get_one_line(named: dict[str, Any], words: str) -> None:
    with pytest.raises(DdsimError, match=words) as error:
        quiet(made(1, [20, 20]), COST, **{"policies": ["DFlash"], **named})
    assert "\n" not in str(error.value)


def test_defaults_are_what_can_be_held(tmp_path: Path) -> None:
    positions = made(9, [40] * 10, spread=2)
    result = quiet(positions, COST, running=4, bootstrap=0)
    assert {"AR", "BestSchedule", "BestFixed", "LongRun", "FairRatio"} <= set(result.highest)
    assert any(name.startswith("Chain(") for name in result.fixed) and any(
        name.startswith("DDTree(") for name in result.fixed
    )
    engine = CostModel.from_table([1, 16, 33, 200], [0.010, 0.0104, 0.0115, 0.05])
    engine.provenance["engine"] = "vLLM 0.26.0"
    by_engine = quiet(positions, engine, running=4, bootstrap=0)
    names = set(by_engine.highest)
    assert by_engine.provenance["server"]["prefill"] == "chunked" and result.provenance["server"]["prefill"] == "whole"
    assert not any("Tree" in name for name in names) and "BestSchedule" in names
    assert dataclasses.is_dataclass(Arrivals)


def test_prompts_are_not_padded_to_graphs_but_cost_what_was_measured() -> None:
    stepped = CostModel.from_table([1, 16, 64, 128], [0.010, 0.010, 0.020, 0.040], buckets=[16, 64, 128])
    seconds, attend, said = _load.prefill_seconds(stepped, 300)
    assert [seconds[n] for n in (0, 1, 16, 40, 64, 96, 128)] == pytest.approx(
        [0, 0.010, 0.010, 0.015, 0.020, 0.030, 0.040]
    )
    assert seconds[256] == pytest.approx(0.080) and (np.diff(seconds) >= 0).all()
    assert attend == 0 and said.startswith("assumed")
    samples = [
        PrefillSample(t, c, (0.01 + t * (1e-4 + 1e-8 * (c + (t - 1) / 2)),)) for t in (128, 512) for c in (0, 1024)
    ]
    verify = [VerifySample(t, 512, 1, (0.01 + 1e-5 * t,)) for t in (1, 64)]
    measured = fit_cost(Profile(verify, prefill=samples), "table")
    seconds, attend, said = _load.prefill_seconds(measured, 600)
    assert (
        attend == pytest.approx(1e-8)
        and seconds[300] == pytest.approx(0.01 + 300 * 1e-4)
        and said.startswith("measured")
    )


def test_long_prompts_are_priced_at_fewer_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = CostModel.from_table([1, 40], [0.010, 0.020])
    every = _load.prefill_seconds(cost, 2000)[0]
    monkeypatch.setattr(_load, "DENSE", 256)
    fewer = _load.prefill_seconds(cost, 2000)[0]
    assert len(fewer) == 2001 and (fewer[:257] == every[:257]).all() and fewer[2000] == every[2000]
    assert (np.diff(fewer) >= 0).all() and fewer == pytest.approx(every, rel=0.05)  # a part of 40 is 10 ms at least
