"""The bench: its baseline builds the same trees, its made-up trace is sound, its report says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ddsim import bench, bench_serving
from ddsim.trace.trace import open_trace
from ddsim.tree.rows import kept_pairs
from ddsim.tree.trees import draft_tree


@pytest.mark.parametrize("budget", [0, 1, 7, 300])
def test_published_method_builds_the_same_tree(budget: int) -> None:
    rng = np.random.default_rng(budget)
    # Multiples of 1/8: sums are exact, and there are many equal ones.
    rows = -np.sort(rng.integers(4, 60, (5, 40)) / 8, axis=1).astype(np.float32)
    parents, depths, ranks, mask = bench.published_tree(rows, budget)
    drafted = draft_tree(rows, budget, check=False)
    assert parents.tolist() == drafted.parents.tolist()
    assert depths.tolist() == drafted.depths.tolist()
    assert ranks.tolist() == drafted.ranks.tolist()
    np.testing.assert_array_equal(mask, drafted.mask())


def test_made_up_marginals_are_marginals() -> None:
    marginals = bench.made_up_marginals(np.random.default_rng(1), 30, 64)
    assert marginals.dtype == np.float32
    assert np.all(np.diff(marginals, axis=-1) <= 0)
    assert np.exp(marginals, dtype=np.float64).sum(-1).max() < 1
    best = np.exp(marginals[..., 0]).mean(0)
    assert 0.75 < best[0] < 0.95 and best[-1] < 0.6  # peaked, and flatter with depth
    kept_pairs(marginals, 64)  # checks them too


def test_made_up_trace(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pool = bench._Pool(rng, 20)
    positions = 2 * bench.LENGTH
    bench._write_trace(rng, pool, positions, tmp_path / "trace")
    trace = open_trace(tmp_path / "trace")
    trace.check()
    assert len(trace) == positions
    (block,) = trace.blocks()
    inside = hits = first = 0
    for p in range(positions):
        q = p % bench.LENGTH
        for d, (ids, _) in enumerate(block.rows(p), 1):
            if q + d < bench.LENGTH:
                inside += 1
                hits += block.tokens[p + d] in ids
                first += d == 1 and len(ids) > 0 and block.tokens[p + d] == ids[0]
    assert 0.6 < hits / inside < 1  # true tokens are mostly, not always, among the kept candidates
    assert 0.7 < first / positions < 0.95


def test_report() -> None:
    report = bench.BenchReport(
        (
            bench.Figure("a", 120.0, "x", 100.0, at_least=True),
            bench.Figure("b", 13.25, "µs", 12.0),
            bench.Figure("c", None, "s", 6.0),
            bench.Figure("d", 0.5, "s", None),
        ),
        {"cores": 2},
    )
    table = report.table()
    assert table["meets"].tolist() == [True, False, None, None]
    assert table["target"].tolist() == ["≥ 100 x", "≤ 12 µs", "≤ 6 s", ""]
    assert table["measured"].tolist() == ["120 x", "13.2 µs", "not available", "0.50 s"]
    again = json.loads(json.dumps(report.to_json()))
    assert again["machine"] == {"cores": 2}
    assert [figure["meets"] for figure in again["figures"]] == [True, False, None, None]


def test_twenty_policies_differ() -> None:
    names = [policy.name for policy in bench._policies(20)]
    assert len(set(names)) == 20


def test_processes_of_their_own_find_what_they_import(tmp_path: Path) -> None:
    """A figure is "not available" where its process fails, which must not be for a name that has moved."""
    rng = np.random.default_rng(3)
    bench._write_trace(rng, bench._Pool(rng, 20), 2 * bench.LENGTH, tmp_path / "trace")
    assert bench._child(bench._PEAK, str(tmp_path / "trace"), env={"DDSIM_CACHE": str(tmp_path / "cache")})["bytes"] > 0
    assert (tmp_path / "cache").exists()  # gains were made, not found
    for script in (bench._IMPORT, bench._KERNELS):
        assert bench._child(script) is not None


@pytest.mark.slow
def test_bench_runs() -> None:
    told: list[str] = []
    report = bench.run_bench(quick=True, progress=told.append)
    assert told
    figures = {figure.name: figure for figure in report.figures}
    assert figures["kernels compiled by a second process"].measured == 0
    assert all(figure.measured is not None and figure.measured >= 0 for figure in report.figures)


def test_scale(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A small trace, served in this process."""

    def here(script: str) -> dict[str, float]:
        exec(script)
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    pool = bench._Pool
    monkeypatch.setattr(bench, "_Pool", lambda rng, positions: pool(rng, 50))
    monkeypatch.setattr(bench, "_child", here)
    monkeypatch.setattr(bench_serving, "_PART", 1000)
    monkeypatch.setattr(bench_serving, "BATCHES", (1, 4))
    report = bench_serving.run_scale(positions=2500)
    assert all(f.name.startswith("serving 2,000 positions, 8 policies, batches 1 to 4") for f in report.figures)
    assert report.figures[0].measured and report.figures[0].target is None
    assert report.figures[2].meets
