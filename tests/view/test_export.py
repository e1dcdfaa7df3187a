"""Exports come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddsim.errors import DdsimError
from ddsim.trace.trace import Trace
from ddsim.view.export import export_budgets, export_candidates, export_table, sequence_table


@pytest.fixture
def trace() -> Trace:
    return Trace.from_arrays([1, 2, 3], np.tile([2, 3], (3, 2, 1)), np.log(np.full((3, 2, 2), [0.5, 0.25])), context0=4)


@pytest.mark.parametrize("ending", ["csv", "parquet", "json", "jsonl"])
def test_tables(trace: Trace, tmp_path: Path, ending: str) -> None:
    path, table = tmp_path / f"t.{ending}", sequence_table(trace)
    export_table(table, path)
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}.get(ending)
    again = read(path) if read else pd.read_json(path, lines=True)
    assert again["tokens"].tolist() == [3] and again["prompt_tokens"].tolist() == [4]
    with pytest.raises(DdsimError, match="format"):
        export_table(table, tmp_path / "t.txt")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_candidates(trace: Trace, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"c.{ending}"
    for limit, rows in ((None, 8), (5, 5)):
        export_candidates(trace, path, limit=limit)
        table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
        assert len(table) == rows
        assert table["depth"].tolist()[:5] == [1, 1, 2, 2, 1] and table["rank"].tolist()[:5] == [
            0,
            1,
            0,
            1,
            0,
        ]
        assert table["position"].tolist()[:5] == [0, 0, 0, 0, 1]


def test_budgets(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    export_budgets(path, [512, 1024], [1, 8], [[96, 8], [64, 4]])
    assert json.loads(path.read_text())["budgets"] == [[96, 8], [64, 4]]
    assert "extrapolated" not in json.loads(path.read_text())
    export_budgets(path, [512, 1024], [1, 8], [[96, 8], [64, 4]], extrapolated=[[False, True], [False, True]])
    assert json.loads(path.read_text())["extrapolated"] == [[False, True], [False, True]]
    with pytest.raises(DdsimError, match="true or false for each of the 4"):
        export_budgets(path, [512, 1024], [1, 8], [[96, 8], [64, 4]], extrapolated=[True])
    with pytest.raises(DdsimError, match="ascending"):
        export_budgets(path, [512, 512], [1, 8], [[96, 8], [64, 4]])
    with pytest.raises(DdsimError, match="shape"):
        export_budgets(path, [512], [1, 8], [[96, 8], [64, 4]])
