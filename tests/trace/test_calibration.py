"""Calibration: keeps order, finds what was put in, judged on prompts it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.errors import DdsimError
from ddsim.trace.cache import positions_of
from ddsim.trace.calibrate import (
    _fitter,
    _losses,
    _node_counts,
    _statistics,
    cross_calibrate,
    fit_calibration,
    fit_isotonic,
    split_prompts,
)
from ddsim.trace.calibration import Calibration, _uncensored
from ddsim.trace.reliability import EDGES, _Nodes, reliability, wilson
from ddsim.trace.rounds import rounds_of
from ddsim.trace.trace import Trace
from tests import strategies as some
from tests.made_up import made_trace
from tests.naive import trace as naive

L, V = 3, 16


def overdispersed(temperature: float, prompts: int = 24, length: int = 70) -> Trace:
    """Every depth knows the same distribution of a position; the truth is drawn from it sharpened."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(prompts):
        logits = rng.normal(size=(length + L, V)) * 2
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        sharp = np.exp(logprobs / temperature)
        tokens = np.array([rng.choice(V, p=row / row.sum()) for row in sharp[:length]])
        rows = np.stack([logprobs[1 + d : 1 + d + length] for d in range(L)], 1)
        ids = np.argsort(-rows, -1)
        parts.append((tokens, ids, np.take_along_axis(rows, ids, -1)))
    tokens, ids, values = (list(column) for column in zip(*parts, strict=True))
    return Trace.from_arrays(tokens, ids, values, max_budget=48)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return overdispersed(0.7)


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_held_out_bias_shrinks(trace: Trace, kind: str) -> None:
    calibration, report = fit_calibration(trace, kind)
    before = (report["predicted_before"] / report["realised"] - 1).abs().mean()
    after = (report["predicted_after"] / report["realised"] - 1).abs().mean()
    assert after < before / 3
    if kind == "temperature":
        assert np.abs(calibration.temperatures - 0.7).max() < 0.07


def test_parts_share_no_prompt(trace: Trace) -> None:
    train, test = split_prompts(trace, 0.25, seed=1)
    names = [{info.prompt_id for info in part.sequences} for part in (train, test)]
    assert len(names[0]) == 6 and not names[0] & names[1] and len(names[0] | names[1]) == 24


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), some.ints(0, 50, 30), some.ints(0, 50, 30))
def test_order_and_absence_survive(values: list[float], counts: Any, taken: Any) -> None:
    nodes = counts.astype(float) + (np.arange(30) == 0)
    logs, acceptance = fit_isotonic(nodes, np.minimum(taken, counts), nodes * np.linspace(-9, -0.1, 30))
    assert np.all(np.diff(acceptance) >= 0)
    gains = np.sort(np.array(values, np.float32))[::-1]
    calibration = Calibration("isotonic", logs, acceptance, np.ones(0), {})
    fitted = calibration.apply_gains(gains)
    assert fitted.dtype == np.float32 and np.all(np.diff(fitted) <= 0) and fitted.max() <= 1
    assert np.array_equal(fitted > 0, gains > 0)


def test_temperature_rows_by_hand() -> None:
    rows = np.log(np.array([0.6, 0.2, 0.5], np.float32))
    calibration = Calibration("temperature", np.ones(0), np.ones(0), np.array([0.5, 1.0]), {})
    fitted = np.exp(calibration.apply_rows(rows, np.array([0, 2, 3])))
    normaliser = 0.36 + 0.04 + 0.2 * 0.2  # the missing fifth counts as one candidate as likely as the last
    assert fitted == pytest.approx([0.36 / normaliser, 0.04 / normaliser, 0.5], rel=2e-3)
    with pytest.raises(DdsimError, match="horizon"):
        calibration.apply_rows(rows, np.array([0, 1, 2, 3]))


def test_reliability_counts(trace: Trace) -> None:
    table = reliability(trace)
    positions = 24 * (70 - L)
    assert table.by_depth["count"].is_monotonic_decreasing and table.by_depth["count"][0] == positions
    assert (table.by_budget["count"] == positions).all()
    assert (table.by_depth["low"] <= table.by_depth["realised"]).all()
    assert table.by_probability["count"].sum() == positions * 48
    low, high = wilson([0, 5], [0, 5])
    assert (low[0], high[0]) == (0, 1) and 0.5 < low[1] < high[1] <= 1


def test_json(trace: Trace, tmp_path: Path) -> None:
    for kind in ("isotonic", "temperature"):
        calibration, _ = fit_calibration(trace, kind)
        calibration.save(tmp_path / "c.json")
        again = Calibration.load(tmp_path / "c.json")
        assert again.kind == kind and again.provenance == calibration.provenance
        for name in ("log_gains", "acceptance", "temperatures"):
            assert np.array_equal(getattr(again, name), getattr(calibration, name))
    text = (tmp_path / "c.json").read_text()
    for bad in (
        text[:50],
        text.replace('"schema_version": 1', '"schema_version": 9'),
        text.replace('"temperature"', '"x"'),
    ):
        (tmp_path / "c.json").write_text(bad)
        with pytest.raises(DdsimError, match=r"c\.json"):
            Calibration.load(tmp_path / "c.json")


def test_refusals(trace: Trace) -> None:
    with pytest.raises(DdsimError, match="unknown calibration"):
        fit_calibration(trace, "platt")
    with pytest.raises(DdsimError, match="2 prompts"):
        fit_calibration(trace.select(prompts=["0"]))


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_cross_calibration_never_sees_the_prompt_it_is_used_on(trace: Trace, kind: str) -> None:
    cross = cross_calibrate(trace, kind, folds=4)
    assert sorted(np.bincount(list(cross.fold.values()))) == [6, 6, 6, 6]
    for f, part in enumerate(cross.parts):
        others = [i for i, info in enumerate(trace.sequences) if cross.fold[info.workload, info.prompt_id] != f]
        alone = trace.subset(others)
        statistics = _statistics(alone, kind, np.zeros(len(others), np.int64), 1)[0]
        expected = _fitter(kind)(statistics, {})
        for name in ("log_gains", "acceptance", "temperatures"):
            assert getattr(part, name) == pytest.approx(getattr(expected, name), rel=1e-9)
        prompt = next(info.prompt_id for info in trace.sequences if cross.fold[info.workload, info.prompt_id] == f)
        assert cross.for_prompt("", prompt) is part
    with pytest.raises(DdsimError, match="no part"):
        cross.for_prompt("", "another")


def test_cross_calibration_deals_workloads_evenly_and_keeps_prompts_together() -> None:
    trace = made_trace(0, prompts=10, length=20, temperatures=(0.0, 1.0))
    cross = cross_calibrate(trace, folds=5)
    for workload in ("code", "chat"):
        assert np.bincount([f for (w, _), f in cross.fold.items() if w == workload]).tolist() == [2] * 5
    assert len(cross.fold) == 20 and len(trace.sequences) == 40
    with pytest.raises(DdsimError, match="at least 2"):
        cross_calibrate(trace, folds=1)
    with pytest.raises(DdsimError, match="at least 2"):
        cross_calibrate(trace.select(prompts=["code/0"]))
    assert len(cross_calibrate(trace.select(prompts=["code/0", "code/1"])).parts) == 2


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_cross_calibrated_reliability(trace: Trace, kind: str) -> None:
    before = reliability(trace).by_budget["ratio"]
    after = reliability(trace, cross_calibrate(trace, kind)).by_budget["ratio"]
    assert (after - 1).abs().mean() < (before - 1).abs().mean() / 3


def test_rows_count_where_the_true_path_before_them_is_in_the_tree() -> None:
    rng = np.random.default_rng(0)
    length, vocab = 300, 6
    rows = np.log([[0.6, 0.39, 0.004, 0.003, 0.002, 0.001], [0.7, 0.2, 0.05, 0.03, 0.01, 0.01]])
    tokens = rng.integers(0, vocab, length)
    shape = (length, 2, vocab)
    trace = Trace.from_arrays(
        tokens, np.broadcast_to(np.arange(vocab), shape), np.broadcast_to(rows, shape), max_budget=4
    )  # whose four nodes are (0), (0, 0), (1) and (1, 0)
    counted = _losses(trace, np.zeros(1, np.int64), 1)[0, 0]
    assert counted.tolist() == [length - 2, int((tokens[1:-1] < 2).sum())]


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_progress_goes_from_nothing_to_all(trace: Trace, kind: str) -> None:
    work: dict[str, Any] = {
        "fit": lambda progress: fit_calibration(trace, kind, progress=progress),
        "cross": lambda progress: cross_calibrate(trace, kind, progress=progress),
        "judge": lambda progress: reliability(trace, progress=progress),
    }
    for name, run in work.items():
        said: list[tuple[int, int]] = []
        run(lambda done, whole, said=said: said.append((done, whole)))
        assert said == sorted(said) and said[-1][0] == said[-1][1], name
        assert len({whole for _, whole in said}) == 1 and (name == "fit" or said[-1][1] == len(trace))


def sums_over_nodes_are_those_of_their_twins(data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    table = data.draw(some.positions(lengths, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))))
    use, arrays = _uncensored(table), (table.gains, table.ranks)
    nodes = _Nodes(table.max_budget)
    assert nodes.add(table) == use.any() and nodes.positions == use.sum()
    bins, budgets = naive.by_probability(*arrays, use, EDGES)
    assert np.array_equal(nodes.bins, bins) and np.array_equal(nodes.budgets, budgets)
    fold = data.draw(some.ints(0, 1, len(lengths)))
    expected = naive.by_log_gain(*arrays, use, np.repeat(fold, lengths), 2)
    assert np.array_equal(_node_counts(iter([(0, table)]), fold, 2), expected)


@some.CASES
def test_sums_over_nodes_are_those_of_their_twins(cases: int) -> None:
    some.run(cases, sums_over_nodes_are_those_of_their_twins, st.data())


def calibrated_gains_are_those_of_their_twin(calibration: Calibration | None, gains: Any) -> None:
    if calibration is not None:
        each = [[naive.acceptance(calibration.log_gains, calibration.acceptance, g) for g in row] for row in gains]
        assert np.array_equal(calibration.apply_gains(gains), np.minimum.accumulate(each, axis=1))


@some.CASES
def test_calibrated_gains_are_those_of_their_twin(cases: int) -> None:
    some.run(cases, calibrated_gains_are_those_of_their_twin, some.calibrations(), some.gains(2, 6))


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_tables_that_are_there_give_the_same_answers(trace: Trace, kind: str) -> None:
    known, cross = positions_of(trace), cross_calibrate(trace, kind)
    for calibration, table in ((None, known), (cross, positions_of(trace, calibration=cross))):
        fresh, again = reliability(trace, calibration), reliability(trace, calibration, positions=table)
        for name in ("by_depth", "by_probability", "by_budget"):
            assert getattr(fresh, name).equals(getattr(again, name))
    (fitted, report), (again, judged) = (fit_calibration(trace, kind, positions=table) for table in (None, known))
    assert judged.equals(report)
    for name in ("log_gains", "acceptance", "temperatures"):
        assert np.array_equal(getattr(fitted, name), getattr(again, name))


def test_a_subset_of_a_table_is_the_table_of_the_subset(trace: Trace) -> None:
    chosen = np.arange(len(trace.sequences)) % 3 == 1
    expected = positions_of(trace.subset(np.flatnonzero(chosen)))
    (_, found), *more = rounds_of(trace, positions_of(trace).subset(chosen))
    assert not more
    for name in ("gains", "ranks", "nodes", "chain", "chain_expected", "context", "starts", "temperature"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert (found.prompt_id, found.workload) == (expected.prompt_id, expected.workload)
