"""Settings for engines: every number of requests and every K tried, every round counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

import ddsim
from ddsim.cli import engines as typed
from ddsim.cost.imports import WHOLE_STEPS
from ddsim.cost.model import CostModel, fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.cost.table import CostTable
from ddsim.errors import DdsimError
from ddsim.policy.rules import Schedule
from ddsim.replay import engines
from ddsim.replay.bootstrap import _Bootstrap, _knots, cost_error
from ddsim.replay.engines import STAYS, acceptance, best_chains, chain_seconds, schedule_ranges
from ddsim.trace.cache import positions_of
from ddsim.trace.trace import Trace
from ddsim.view.settings import acceptance_profile, vllm_settings
from tests import strategies
from tests.made_up import made_trace
from tests.naive import budget as naive
from tests.naive import schedule as naive_schedule


def measured(batches: tuple[int, ...] = (1, 2, 4, 8)) -> CostModel:
    """A pass is free up to 12 tokens and dear beyond; measured to so many requests, 30 tokens."""
    tokens = (1, 2, 4, 8, 12, 16, 30)
    verify = [
        VerifySample(t, c, b, (0.01 + 0.001 * max(t - 12, 0),))
        for b in batches
        for t in tokens
        if t >= b
        for c in (16, 512)
    ]
    return fit_cost(Profile(verify, draft=[DraftSample(c, b, (0.001,)) for b in batches for c in (16, 512)]), "table")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return made_trace(3, prompts=6, length=60)


def test_help_names_the_engines_and_methods_that_there_are() -> None:
    """The command line lists them once more, so that help needs no import."""
    assert list(typed.ENGINES) == list(engines.ENGINES)
    assert set(typed.METHODS) == {method for engine in engines.ENGINES.values() for method in engine.rules}


def test_every_k_for_every_number_of_requests(trace: Trace) -> None:
    cost = measured()
    found, positions = best_chains(trace, cost, context=100), positions_of(trace)
    free = CostTable.of_curve(np.ones(trace.horizon + 1), len(positions))
    walks = {k: naive.walk(positions, free, [naive.PREFIX - k] * len(positions)) for k in range(1, trace.horizon + 1)}
    tokens = {0: 1.0} | {k: positions.tokens.sum() / sum(one["rounds"] for one in w) for k, w in walks.items()}
    before: int | None = None
    draws = _Bootstrap(positions, 2000, 0, cost_error(cost))
    assert draws._small is not None
    errors = np.random.default_rng([0, 1]).normal(0.0, cost_error(cost), (2000, _knots(cost, 56).shape[1]))

    def drawn(k: int, n: int) -> Any:
        """Tokens a second in every draw of prompts and costs."""
        spent = [one["rounds"] for one in walks[k]] if k else positions.tokens
        rounds, committed = np.zeros(draws.units), np.zeros(draws.units)
        for s, unit in enumerate(draws.unit):
            rounds[unit] += spent[s]
            committed[unit] += positions.tokens[s]
        drafting = float(cost.draft_seconds(n, context=128)) if k else 0.0
        verifying = float(cost.verify_seconds(n * (k + 1), 128, n))
        seconds = (drafting + verifying) * np.exp(
            errors @ _knots(cost, 56)[n * (k + 1) - 1] * verifying / (drafting + verifying)
        )
        return n * (draws._small @ committed) / (draws._small @ rounds) / seconds

    smaller = 0
    assert found["requests"].tolist() == list(range(1, 9)) and not found["extrapolated"].any()
    for row in found.to_dict("records"):
        n = row["requests"]
        rates = {
            k: n
            * t
            / (
                float(cost.verify_seconds(n * (k + 1), 128, n))
                + (float(cost.draft_seconds(n, context=128)) if k else 0.0)
            )
            for k, t in tokens.items()
            if n * (k + 1) <= 30  # not beyond what was measured
        }
        best = max(rates, key=lambda k: (rates[k], -k))
        if before in rates and rates[before] >= (1 - STAYS) * rates[best]:
            best = before
        else:
            good = [k for k in sorted(rates) if rates[k] >= (1 - STAYS) * rates[best]]
            least = next(k for k in good if k == best or np.quantile(drawn(k, n) / drawn(best, n), 0.975) >= 1)
            smaller, best = smaller + (least < best), least
        assert row["k"] == best and row["tokens_per_second"] == pytest.approx(rates[best])
        assert row["over_ar"] == pytest.approx(rates[best] / rates[0] - 1)
        before = best
    ranges = schedule_ranges(found)
    assert naive_schedule.allowed(ranges) and len(ranges) > 1
    schedule = Schedule(ranges)
    assert [schedule.k(n) for n in range(1, 9)] == found["k"].tolist()
    with pytest.raises(DdsimError, match="measured for up to 8 requests, not 9; profile further"):
        best_chains(trace, cost, requests=9)
    with pytest.raises(DdsimError, match="not measured for 1 requests at a context of 9000"):
        best_chains(trace, cost, context=9000)
    more = best_chains(trace, cost, requests=9, context=100, extrapolate=True)
    assert len(more) == 9 and more["extrapolated"].iloc[-1]


def test_vllm_takes_the_settings(trace: Trace) -> None:
    choices = best_chains(trace, measured(), context=100)
    choices.loc[0, "k"], choices.loc[6:, "k"] = 6, 0
    document = json.loads(
        json.dumps(vllm_settings(choices, "folder/drafter", 6, provenance={"trace": "t"}), allow_nan=False)
    )
    config = document["speculative_config"]
    assert set(config) == {"method", "model", "num_speculative_tokens", "num_speculative_tokens_per_batch_size"}
    assert (config["method"], config["model"], config["num_speculative_tokens"]) == ("dflash", "folder/drafter", 6)
    ranges = config["num_speculative_tokens_per_batch_size"]
    assert isinstance(ranges, list) and naive_schedule.allowed(ranges) and ranges[-1] == [7, 8, 0]
    assert [naive_schedule.tokens(ranges, n, 6) for n in range(1, 9)] == choices["k"].tolist()
    assert "0.26" in document["written_against"] and any("Above 8 requests" in note for note in document["notes"])
    assert any("K = 0 is off" in note for note in document["notes"]) and document["provenance"] == {"trace": "t"}


@settings(max_examples=40, deadline=None)
@given(strategies.traces(horizon=3, longest=12))
def test_acceptance_counts_every_round(trace: Trace) -> None:
    assume(len(trace) > len(trace.sequences))
    positions, hits, rounds = positions_of(trace), np.zeros(3, int), 0
    for s in range(positions.sequences):
        p, end = int(positions.starts[s]), int(positions.starts[s + 1]) - 1
        while p < end:
            a = int(positions.chain[p])
            if p + 3 <= end:
                hits[:a] += 1
                rounds += 1
            p += a + 1
    last: Any = acceptance(trace).to_dict("records")[-1]
    assert (last["workload"], last["rounds"]) == ("all", rounds)
    assert last["rates"] == ([] if not rounds else pytest.approx((hits / rounds).tolist()))
    assert sorted(last["rates"], reverse=True) == last["rates"]
    document = acceptance_profile(acceptance(trace))
    json.dumps(document, allow_nan=False)
    assert document["workloads"]["all"]["synthetic_acceptance_rates"] == last["rates"]
    assert rounds == 0 or last["tokens_per_round"] == pytest.approx(1 + sum(last["rates"]))


def test_on_the_command_line(trace: Trace, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from ddsim.cli.main import main

    trace.save(tmp_path / "trace")
    measured().save(tmp_path / "cost.json")
    words = ["export", str(tmp_path / "trace"), "-o", str(tmp_path / "s.json"), "--for"]
    cost = ["-p", str(tmp_path / "cost.json"), "--context", "100"]
    assert main([*words, "vllm", *cost, "--drafter", "d"]) == 0
    said = json.loads((tmp_path / "s.json").read_text())
    ranges = schedule_ranges(best_chains(trace, measured(), context=100))
    whole = (
        [] if any(k == 6 for _, _, k in ranges) else [[1_000_000, 1_000_000, 6]]
    )  # so that there is a graph for the block
    assert said["speculative_config"]["num_speculative_tokens_per_batch_size"] == [*map(list, ranges), *whole]
    assert said["provenance"]["ddsim"] == ddsim.__version__ and said["provenance"]["trace"]
    (tmp_path / "s.json").unlink()
    for more, reason in {
        ("vllm", *cost): "needs --profile FILE and --drafter NAME",
        ("vllm", *cost, "--drafter", "d", "-b", "9"): "up to 8 requests, not 9",
        ("tgi",): "known: vllm, sglang, tensorrt-llm, acceptance",
        ("acceptance", *cost): "takes no --profile",
        ("acceptance", "--what", "budgets"): "takes no --what",
    }.items():
        capsys.readouterr()
        assert main([*words, *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert reason in line and not (tmp_path / "s.json").exists()
    assert main([*words, "acceptance"]) == 0
    assert set(json.loads((tmp_path / "s.json").read_text())["workloads"]) >= {"all", "code"}


def test_whole_steps_between_measured_requests_keep_k() -> None:
    """A step of 3 requests at K lies between those of 2 and 4 at K, and counts as measured; so no K is lost in between."""
    known = {(b, k): 0.004 + 0.0001 * b + 0.0002 * k * b for b in (1, 2, 4) for k in (0, 1, 3)}
    whole = Profile(
        [VerifySample(b * (k + 1), 64, b, (s,)) for (b, k), s in known.items()], provenance={"seconds": WHOLE_STEPS}
    )
    seconds, marks = chain_seconds(fit_cost(whole, "table"), [1, 2, 3, 4], 3, 64)
    assert not marks.any()
    for k in (0, 1, 3):
        np.testing.assert_allclose(
            seconds[:, k], [known[1, k], known[2, k], (known[2, k] + known[4, k]) / 2, known[4, k]]
        )
    other = Profile(whole.verify)
    seconds, marks = chain_seconds(fit_cost(other, "table"), [3], 3, 64)
    assert marks[0].tolist() == [False, False, True, True] and np.isnan(seconds[0, 2:]).all()
