"""Sweeps: every cell is what serving that trace alone gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.replay.serving import ENOUGH, simulate
from ddsim.replay.sweep import sweep
from tests.made_up import made_trace

POLICIES = ["DFlash", "RoundRatio", "BestFixed", "LongRun"]


def costs() -> dict[str, CostModel]:
    return {
        "flat": CostModel.from_table([1, 400], [0.010, 0.020], draft_seconds=0.001),
        "steep": CostModel.from_table([1, 40, 400], [0.010, 0.011, 0.060], draft_seconds=0.001),
    }


def test_every_cell_is_a_simulation_of_its_own() -> None:
    traces = {"a": made_trace(1, prompts=3, length=30), "b": made_trace(2, prompts=2, length=20)}
    told: list[tuple[int, int]] = []
    table = sweep(
        traces, costs(), POLICIES, batch=[1, 4], seeds=[0, 3], bootstrap=2, progress=lambda *at: told.append(at)
    )  # fmt: skip
    assert told[-1] == (80, 80) and len(table) == 2 * 2 * 2 * 2 * 5
    for (trace, profile, seed), rows in table.groupby(["trace", "profile", "seed"]):
        alone = simulate(traces[trace], costs()[profile], POLICIES, batch=[1, 4], seed=seed, bootstrap=2).table()
        pd.testing.assert_frame_equal(rows.drop(columns=["trace", "profile", "seed"]).reset_index(drop=True), alone)
    for nothing in (({}, costs()), (traces, {})):
        with pytest.raises(DdsimError, match="sweep: give at least one trace, one cost and one seed"):
            sweep(*nothing)


def test_long_traces_solve_prices_on_fewer_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that ship are short enough for all orders; a price from one order is near."""
    trace = made_trace(1, prompts=6, length=60)
    assert ENOUGH // 8 >= 50_000
    whole = simulate(trace, costs()["steep"], "LongRun", batch=4, bootstrap=0)
    monkeypatch.setattr(sys.modules[simulate.__module__], "ENOUGH", 1)
    few = simulate(trace, costs()["steep"], "LongRun", batch=4, bootstrap=0)
    prices = [result.provenance["policies"][1]["price"] for result in (whole, few)]
    assert prices[0] != prices[1] and prices[1] == pytest.approx(prices[0], rel=0.05)


def test_the_command(cli: Any, files: Path, tmp_path: Path) -> None:
    words = (
        "sweep",
        files / "trace",
        "-p",
        files / "profile.json",
        "--batch",
        1,
        "--batch",
        2,
        "--seeds",
        2,
        "--policy",
        "DFlash",
    )
    done = cli(*words, "--out", tmp_path / "table.csv")
    assert done.code == 0 and "The fastest policy of each (8 rows in all)" in done.out
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == 8 and set(table["seed"]) == {0, 1}
    document = json.loads(cli(*words, "--json").out)
    assert [row["batch"] for row in document["table"]] == table["batch"].tolist()
    assert (
        cli("sweep", tmp_path / "no", "-p", files / "profile.json").err == f"error: {tmp_path / 'no'}: no such trace\n"
    )
