"""Path corrections: as their equation says, honest, the same in a decoder, and judged on prompts they haven't seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddsim
from ddsim.errors import DdsimError
from ddsim.replay.held_out import tokens_a_round
from ddsim.trace import path as _path
from ddsim.trace.cache import positions_of
from ddsim.trace.calibrate import cross_calibrate, fit_calibration, fit_on_all, split_prompts
from ddsim.trace.calibration import Calibration, calibrated_proposal
from ddsim.trace.path import PathCorrection
from ddsim.trace.path_fit import fit_logit, fit_path, gathered, token_classes
from ddsim.trace.reliability import BRANCHES, reliability
from ddsim.trace.rounds import drafted
from ddsim.trace.trace import Trace
from ddsim.tree.lattices import Lattices
from ddsim.tree.proposal import Rows
from ddsim.tree.rows import kept_pairs
from ddsim.view.report import report
from tests import made_up
from tests import strategies as some
from tests.naive import lattice as naive_lattice
from tests.naive import path as naive

L, V = 3, 30


def chained(
    prompts: int = 40, length: int = 80, shuffled: bool = False, workloads: tuple[str, ...] = ("a", "b")
) -> Trace:
    """A text of pairs: an even token is drawn, the odd one after it follows. The drafter knows which evens may come, but not which
    odd belongs to which even. ``shuffled``: nor does the text, whose odd tokens follow any of the evens."""
    rng = np.random.default_rng(1)
    tokens, ids, values = [], [], []
    for _ in range(prompts):
        few = (
            2 * rng.permuted(np.tile(np.arange(V // 2), (length // 2 + L, 1)), axis=1)[:, :3]
        )  # what the drafter thinks possible
        chance = np.array([0.5, 0.3, 0.15])
        drawn = few[np.arange(len(few)), rng.choice(3, len(few), p=chance / chance.sum())]
        other = few[np.arange(len(few)), rng.choice(3, len(few), p=chance / chance.sum())]
        odd = (other if shuffled else drawn) + 1
        text = np.stack([drawn, odd], 1).ravel()[: length + L]
        rows_of_text = [few[i // 2] + i % 2 for i in range(len(text))]
        tokens.append(text[:length])
        here = np.array([[rows_of_text[t + d] for d in range(1, L + 1)] for t in range(length)])
        ids.append(here)
        values.append(np.broadcast_to(np.log(chance), here.shape))
    names = [workloads[i % len(workloads)] for i in range(prompts)]
    return Trace.from_arrays(tokens, ids, values, max_budget=12, vocab_size=V + 2, workload=names)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return chained()


def rows_of_position(rows: Rows, position: int, most: int) -> list[naive.Row]:
    """The rows of a position as lists of (token, log-probability), cut as the correction cuts them."""
    listed = rows.at(position)
    width = max(len(ids) for ids, _ in listed)
    dense = np.full((1, rows.horizon, max(width, 1)), -np.inf, np.float32)
    for d, (_, values) in enumerate(listed):
        dense[0, d, : len(values)] = values
    kept = np.maximum(kept_pairs(dense, most, check=False), dense[:, :, 0] > -np.inf)[0]
    return [
        [(int(t), float(v)) for t, v in zip(ids[:k], values[:k], strict=True)][: _path.WIDTH]
        for (ids, values), k in zip(listed, kept, strict=True)
    ]


def lattices_are_those_of_their_twin(trace: Trace, correction: PathCorrection) -> None:
    table = zip(correction.before.tolist(), correction.after.tolist(), correction.hundredths.tolist(), strict=True)
    pairs = {(a, b): (v / 100, w / 100) for a, b, (v, w) in table}
    (block,) = trace.blocks()
    found = correction.lattices(block.proposal, block.tokens, block.starts, 1 << 12)
    given = correction.classes.tolist(), correction.weights, correction.powers, correction.rests
    start = 0
    for p in range(len(block)):
        start = p if p in block.starts else start
        rows, answer = rows_of_position(block.proposal, p, correction.max_budget), block.tokens[start : p + 1].tolist()
        expected = naive.lattice(rows, answer, pairs, *given, _path.WIDTH)
        listed = [(ids.tolist(), values) for ids, values in block.proposal.at(p)]
        width = max(len(ids) for ids, _ in listed)
        dense_ids, dense = np.full((block.horizon, width), -1), np.full((block.horizon, width), -np.inf, np.float32)
        for d, (ids, values) in enumerate(listed):
            dense_ids[d, : len(ids)], dense[d, : len(ids)] = ids, values
        one = correction.lattice(dense_ids, dense, answer)
        assert one.token_ids.tolist() == expected.token_ids
        np.testing.assert_allclose(one.first, expected.first, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.transitions, expected.transitions, rtol=1e-5, atol=1e-6)
        # The recording's, sparse, is the same to the last bit: each row has what one's row has, in the order of a tree.
        exact = naive_lattice.Lattice(one.token_ids.tolist(), one.first.tolist(), one.transitions.tolist())
        tree = found.tree(p, 40)
        assert tree.tokens is not None
        nodes = naive_lattice.best_first(exact, 40)
        assert tree.logprobs[1:].tolist() == [node.value for node in nodes]
        assert tree.tokens[1:].tolist() == [exact.token_ids[len(n.candidates) - 1][n.candidates[-1]] for n in nodes]


@some.CASES
def test_lattices_are_those_of_their_twin(cases: int) -> None:
    some.run(min(cases, 2000), lattices_are_those_of_their_twin, some.traces(), some.path_corrections())


def test_no_correction_gives_the_trees_of_the_marginals(trace: Trace) -> None:
    none = np.zeros(0, np.int32)
    neutral = PathCorrection(np.zeros(14), np.ones(L), np.zeros(L), none, none, none, np.zeros((0, 2), np.int32), 12)
    (block,) = trace.subset([0, 1]).blocks()
    lattices = neutral.lattices(block.proposal, block.tokens, block.starts, 12)
    paths = block.proposal.true_paths(block.tokens, block.starts)
    assert np.array_equal(lattices.true_paths(block.tokens, block.starts)[:, 0], paths[:, 0])
    expected, found = (
        block.proposal.drafts(paths, 12),
        lattices.drafts(lattices.true_paths(block.tokens, block.starts), 12),
    )
    np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-5)


def test_one_position_is_that_of_the_block(trace: Trace) -> None:
    """What a decoder calls, position by position, against what replay reads: the same lattices to the last bit."""
    correction = fit_on_all(trace, "path").path
    assert correction is not None
    (block,) = trace.subset([3, 4]).blocks()
    many = correction.lattices(block.proposal, block.tokens, block.starts, trace.max_budget)
    for p in range(len(block)):
        start = block.starts[np.searchsorted(block.starts, p, side="right") - 1]
        ids, values = (np.stack(column) for column in zip(*block.proposal.at(p), strict=True))
        one = correction.lattice(ids, values, block.tokens[start : p + 1])
        alone = Lattices.from_dense(one.token_ids[None], one.first[None], one.transitions[None], trace.max_budget)
        tree, expected = alone.tree(0, 12), many.tree(p, 12)
        assert tree.tokens is not None and np.array_equal(tree.tokens, expected.tokens)
        assert np.array_equal(tree.logprobs, expected.logprobs) and np.array_equal(tree.parents, expected.parents)


def test_it_finds_what_the_marginals_don_t_know(trace: Trace) -> None:
    calibration, report = fit_calibration(trace, "path")
    assert (report["realised_after"] > 1.1 * report["realised"])[report["budget"] == 4].all()
    assert (report["predicted_after"] / report["realised_after"] - 1).abs().max() < 0.1
    assert calibration.path is not None
    path = calibration.path
    table = zip(path.before.tolist(), path.after.tolist(), path.hundredths[:, 0].tolist(), strict=True)
    odd = {(a, b): v for a, b, v in table if min(a, b) >= 0}
    assert np.median([v for (a, b), v in odd.items() if a % 2 == 0 and b == a + 1]) > 30
    assert np.median([v for (a, b), v in odd.items() if a % 2 == 0 and b % 2 and b != a + 1]) < -30
    _, held_out = split_prompts(trace)
    before, after = reliability(held_out).by_branch, reliability(held_out, calibration).by_branch
    assert before["branch"].tolist() == list(BRANCHES)
    wrong = [(table["predicted"] / table["realised"] - 1).abs()[1] for table in (before, after)]  # off the best path
    assert wrong[1] < wrong[0] / 3


def test_pairs_of_shuffled_text_gain_nothing() -> None:
    trace = chained(shuffled=True)
    cross = cross_calibrate(trace, "path")
    table = tokens_a_round(trace, positions_of(trace), positions_of(trace, calibration=cross), budgets=(4, 12))
    pooled = table[table["workload"] == "all"]
    assert len(pooled) == 3 and (pooled["low"] < 0.01).all() and (pooled["gain"] < 0.02).all()


def test_all_that_takes_a_calibration_takes_it(trace: Trace, tmp_path: Path) -> None:
    cross = cross_calibrate(trace, "path", folds=2)
    cost = ddsim.CostModel.from_table([1, 64], [0.010, 0.014], draft_seconds=0.001)
    table = ddsim.replay(
        trace, cost, ["AR", "DFlash", "DDTree:4", "RoundRatio", "Hindsight"], calibration=cross
    ).table()
    tokens = table.set_index("policy")["acceptance_length"]
    expected = tokens_a_round(trace, positions_of(trace), positions_of(trace, calibration=cross), budgets=(4,))
    for row in expected[expected["workload"] == "all"].itertuples():
        assert tokens[row.policy] == pytest.approx(row.before)
        assert tokens[row.policy + " calibrated"] == pytest.approx(row.after)
    assert {"RoundRatio calibrated", "Hindsight calibrated"} <= set(
        tokens.index
    ) and "AR calibrated" not in tokens.index
    assert "calibrated" in str(ddsim.plan(trace, cost, calibration=cross, bootstrap=50))
    report(trace, cost, tmp_path / "report.html", calibration=cross, bootstrap=50)
    ddsim.simulate(trace, cost, ["DDTree:4"], calibration=fit_on_all(trace, "path"), batch=4, bootstrap=10)


def test_gains_are_counted_by_walks(trace: Trace) -> None:
    cross = cross_calibrate(trace, "path", folds=2)
    before, after = positions_of(trace), positions_of(trace, calibration=cross)
    table = tokens_a_round(trace, before, after, budgets=(4,))
    assert (
        table["workload"].tolist() == ["a", "a", "b", "b", "all", "all"]
        and table["policy"].tolist() == ["DFlash", "DDTree(4)"] * 3
    )

    def rounds(positions: Any, s: int, chain: bool) -> int:
        p, end, count = int(positions.starts[s]), int(positions.starts[s + 1]), 0
        while p < end - 1:
            p += 1 + (int(positions.chain[p]) if chain else int((positions.ranks[p] <= 4).sum()))
            count += 1
        return count

    for row in table.itertuples():
        chosen = [s for s, info in enumerate(trace.sequences) if row.workload in (info.workload, "all")]
        tokens = sum(trace.sequences[s].length - 1 for s in chosen)
        for name, positions in (("before", before), ("after", after)):
            expected = tokens / sum(rounds(positions, s, row.policy == "DFlash") for s in chosen)
            assert getattr(row, name) == pytest.approx(expected)
        assert row.low < row.gain < row.high and row.gain == pytest.approx(row.after / row.before - 1)


def test_a_prompt_is_judged_by_a_fit_on_others(trace: Trace) -> None:
    cross = cross_calibrate(trace, "path", folds=4)
    for f, part in enumerate(cross.parts):
        others = [i for i, info in enumerate(trace.sequences) if cross.fold[info.workload, info.prompt_id] != f]
        alone = fit_on_all(trace.subset(others), "path").path
        assert part.path is not None and alone is not None
        for name in ("before", "after", "hundredths"):
            assert np.array_equal(getattr(part.path, name), getattr(alone, name))
        for name in ("weights", "powers", "rests"):
            assert getattr(part.path, name) == pytest.approx(getattr(alone, name), rel=1e-6, abs=1e-6)
    by = cross_calibrate(trace, "path", by="workload")
    assert by.fold == {(info.workload, info.prompt_id): "ab".index(info.workload) for info in trace.sequences}
    alone = fit_on_all(trace.select("b"), "path").path
    assert by.parts[0].path is not None and alone is not None
    assert by.parts[0].path.weights == pytest.approx(alone.weights, rel=1e-6, abs=1e-6)
    with pytest.raises(DdsimError, match="2 workloads"):
        cross_calibrate(trace.select("a"), "path", by="workload")
    with pytest.raises(DdsimError, match="choose prompt or workload"):
        cross_calibrate(trace, "path", by="day")


def test_a_prompt_s_own_counts_are_left_out(trace: Trace) -> None:
    data = gathered(trace, np.arange(len(trace.sequences)))
    one = data.rows[:, 0] == 0
    fitted = fit_path(
        dataclasses.replace(data, rows=data.rows * [0, 1, 1]), np.ones(len(one), bool)
    )  # all rows of one prompt
    assert not fitted.weights[1:6].any()  # so none of its counts is left to fit with
    assert np.abs(fit_path(data, np.ones(len(one), bool)).weights[1:3]).max() > 0.3


def test_classes_are_those_of_texts_that_start_alike(tmp_path: Path) -> None:
    trace = made_up.saved(tmp_path / "trace")
    alike = [
        {" return", " x"},
        {" None", " True"},
        {"_"},
        {"\n", "\n   "},
        {"(", ")"},
        {'"', '"""'},
        {"0", "1"},
        {":"},
        {" =", " =="},
    ]
    classes = token_classes(trace, np.arange(len(made_up.WORDS) + 5))
    of = {word: int(classes[i]) for i, word in enumerate(made_up.WORDS)}
    assert not classes[len(made_up.WORDS) :].any()  # those without text
    for words in alike[:4] + alike[5:]:
        assert len({of[word] for word in words}) == 1 and min(of[word] for word in words) > 0
    assert len({of[min(words)] for words in alike}) == len(alike) and of["("] != of[")"]
    correction = fit_on_all(trace, "path").path
    assert (
        correction is not None
        and (correction.before < 0).any()
        and ((correction.before >= 0) & (correction.after < 0)).any()
    )
    assert np.array_equal(correction.classes, classes[: len(correction.classes)])


def test_newton_finds_the_least_loss() -> None:
    rng = np.random.default_rng(0)
    n, horizon = 300, 2
    x = rng.normal(size=(n, _path.WIDTH + 1, 16)).astype(np.float32)
    x[:, :, 14] = -np.sort(rng.exponential(size=(n, _path.WIDTH + 1)))
    x[:, :, 15] = np.arange(_path.WIDTH + 1) == _path.WIDTH
    rows = np.stack([np.zeros(n), rng.integers(0, horizon, n), rng.integers(0, _path.WIDTH + 1, n)], 1).astype(np.int64)
    pairs = np.zeros((n, _path.WIDTH), np.int64)
    weights, powers, rests = fit_logit(x, pairs, rows, horizon)

    def loss(weights: Any, powers: Any, rests: Any) -> float:
        total = float((weights**2).sum() + ((powers - 1) ** 2).sum() + (rests**2).sum())
        for row, (_, d, j) in zip(x.astype(float), rows, strict=True):
            scores = row[:, :14] @ weights + np.where(row[:, 15] > 0, row[:, 14] + rests[d], powers[d] * row[:, 14])
            total += np.exp(-d / 7) * (np.log(np.exp(scores).sum()) - scores[j])
        return total

    found = weights, powers, rests
    least = loss(*found)
    for i, values in enumerate(found):
        for k in range(len(values)):
            for step in (-0.01, 0.01):
                moved = [v.copy() for v in found]
                moved[i][k] += step
                assert loss(*moved) > least


def test_json(trace: Trace, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    calibration = fit_on_all(trace, "path")
    calibration.save(file)
    again = Calibration.load(file)
    assert again.kind == "path" and again.provenance == calibration.provenance and again.path is not None
    for field in dataclasses.fields(PathCorrection):
        assert np.array_equal(getattr(again.path, field.name), getattr(calibration.path, field.name)), field.name
    document = json.loads(file.read_text())
    for changes, what in (
        ({"weights": [0.0]}, "1 weights"),
        ({"powers": []}, "rests"),
        ({"rests": ["x"] * L}, "rests"),
        ({"powers": [1e9] * L}, "1,000"),
        ({"powers": [True] * L}, "powers"),
        ({"max_budget": 0}, "max_budget"),
        ({"pairs": {"2": "3:5:0 3:6:0"}}, "rise"),
        ({"pairs": {"3": "3:5:0", "2": "3:6:0"}}, "rise"),
        ({"pairs": {"2": "3:1"}}, "second:all:off"),
        ({"pairs": {"x": "3:1:1"}}, "second:all:off"),
        ({"pairs": {"2": "-3:1:1"}}, "a class that no token has"),
        ({"pairs": {"2": "3:99999:1"}}, "beyond 100"),
        ({"pairs": {"2": f"{10**30}:1:1"}}, "31 bits"),
        ({"classes": ["1 2", "2"]}, "two classes"),
        ({"classes": ["1 x"]}, "whole numbers"),
        ({"classes": ["-1"]}, "below 0"),
        ({"classes": [f"{10**12}"]}, "above"),
        ({"pairs": {"2": ""}}, "pairs"),
        ({"extra": 1}, "extra"),
    ):
        file.write_text(json.dumps(document | {"path": document["path"] | changes}))
        with pytest.raises(DdsimError, match=what) as error:
            Calibration.load(file)
        assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
    file.write_text(json.dumps({k: v for k, v in document.items() if k != "path"}))
    with pytest.raises(DdsimError, match='"path" is missing'):
        Calibration.load(file)


@pytest.mark.parametrize("kind", ["temperature", "path"])
def test_what_is_no_rows_is_refused(trace: Trace, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = fit_on_all(trace, kind)
    (block,) = trace.subset([0]).blocks()
    path = fit_on_all(trace, "path").path
    assert path is not None
    lattices: Any = path.lattices(block.proposal, block.tokens, block.starts, 12)
    recorded = dataclasses.replace(block, proposal=lattices)
    with pytest.raises(DdsimError, match=f"{kind} corrects rows of marginals.*isotonic"):
        calibrated_proposal(recorded, calibration, 12)
    assert calibrated_proposal(recorded, fit_on_all(trace, "isotonic"), 12) is lattices
    part = trace.subset([0])
    monkeypatch.setattr(Trace, "blocks", lambda self, max_positions=0: iter([recorded]))
    for fit in (fit_on_all, drafted):
        with pytest.raises(DdsimError, match=f"{kind} corrects rows of marginals"):
            list(fit(part, kind if fit is fit_on_all else calibration))  # type: ignore[arg-type]


def test_rows_of_another_horizon_are_refused(trace: Trace) -> None:
    correction = fit_on_all(trace, "path").path
    assert correction is not None
    with pytest.raises(DdsimError, match="horizon 3"):
        correction.lattice(np.zeros((2, 1), int), np.zeros((2, 1)), [1])
    with pytest.raises(DdsimError, match="at least one token"):
        correction.lattice(np.zeros((3, 1), int), np.zeros((3, 1)), [])
    (block,) = trace.subset([0]).blocks()
    with pytest.raises(DdsimError, match="horizon 3"):
        correction.lattices(dataclasses.replace(block.proposal, horizon=1), block.tokens, block.starts, 12)
