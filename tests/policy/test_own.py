"""A policy of a user's own, end to end: what the shipped ones can do, it can."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ddsim
from ddsim.cli.main import main
from ddsim.cost.model import CostModel
from ddsim.errors import DdsimError
from ddsim.policy.choose import round_budgets
from ddsim.policy.contract import Policy
from ddsim.trace.trace import Trace
from ddsim.view.report import report
from tests.made_up import made_trace

COST = CostModel.from_table([1, 65], [0.010, 0.074])

OWN = """
import numpy as np
import ddsim
from ddsim.policy.choose import round_budgets

class Best(ddsim.Policy):
    def choose(self, gains, costs):
        return round_budgets(gains, costs, "exhaustive")

class Least(ddsim.Policy):
    \"\"\"Nodes likelier than what the trace showed to be worth it.\"\"\"

    def __init__(self, least=None):
        self.least = least

    def prepare(self, positions, costs, *, sequences=None):
        return type(self)(0.5 if self.least is None else self.least)

    def choose(self, gains, costs):
        return (gains >= self.least).sum(axis=1)
"""


class Best(Policy):
    """`RoundRatio`, written again."""

    def choose(self, gains: Any, costs: Any) -> Any:
        return round_budgets(gains, costs, "exhaustive")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return made_trace(7, workloads=(("easy", 2.5), ("hard", -1.5)), prompts=12, length=60, max_budget=64)


def test_a_plan_may_recommend_it(trace: Trace) -> None:
    shipped = ddsim.plan(trace, COST, "RoundRatio", bootstrap=200)
    mine = ddsim.plan(trace, COST, Best(), bootstrap=200)
    assert shipped.choice == "RoundRatio" and mine.choice == "Best" and isinstance(mine.policy, Best)
    assert mine.sentence == shipped.sentence.replace("RoundRatio", "Best")
    assert mine.details == tuple(line.replace("RoundRatio", "Best") for line in shipped.details)
    assert mine.table()["policy"].tolist() == ["AR", "DFlash", "BestFixed", "Best", "Hindsight"]
    assert mine.fold_choices == tuple(name.replace("RoundRatio", "Best") for name in shipped.fold_choices)
    assert "Best" in mine.fold_choices and mine.to_json()["gains"] == shipped.to_json()["gains"]


def test_a_plan_takes_any_mixture(trace: Trace) -> None:
    """Baselines that are there already aren't repeated, fixed trees stand beside, rules of one name are told apart."""
    given = ["AR", "Hindsight", "DDTree:20", "BestFixed", Best(), Best()]
    with pytest.raises(DdsimError, match="two policies are called 'Best' and are the same"):
        ddsim.plan(trace, COST, given, bootstrap=100)
    calm = Best()
    calm.name = "Calm"
    advice = ddsim.plan(trace, COST, [*given[:-1], calm], bootstrap=100)
    assert advice.table()["policy"].tolist() == ["AR", "DFlash", "BestFixed", "DDTree(20)", "Best", "Calm", "Hindsight"]
    bare = ddsim.plan(trace, COST, ["AR", "DDTree:20"], bootstrap=100)  # no rule at all
    assert bare.policy.fixed is not None and "rule" not in " ".join(bare.details).split("It reaches")[0]
    same = ddsim.plan(trace, COST, f"DDTree:{bare.budget}", bootstrap=100)
    names = same.table()["policy"].tolist()
    assert len(names) == len(set(names)) and same.sentence == bare.sentence
    with pytest.raises(DdsimError, match="65"):
        ddsim.plan(trace, COST, "DDTree:65", bootstrap=100)


def test_a_report_shows_it(trace: Trace) -> None:
    page = report(trace, COST, policies=[Best()], bootstrap=50)
    assert (
        "Let Best choose each tree" in page
        and "Best: half of the rounds" in page
        and "Best: RoundRatio, written again." in page
    )
    assert "CaDDTree" not in page


def test_every_command_takes_it_by_name(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_own_rules.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_rules", raising=False)
    trace.save(tmp_path / "trace")
    COST.save(tmp_path / "cost.json")
    words = ["trace", "-p", "cost.json", "--policy", "my_own_rules:Best", "--policy", "my_own_rules:Least", "--json"]

    def answer(command: str, *more: str) -> Any:
        assert main([command, *words, *more]) == 0
        return json.loads(capsys.readouterr().out)

    planned = answer("plan", "--bootstrap", "50")
    assert planned["choice"] == "Best" and planned["gains"][2]["over"] == "BestFixed"
    rows = {row["policy"]: row for row in planned["replay"]["pooled"]}
    assert list(rows) == ["AR", "DFlash", "BestFixed", "Best", "Least", "Hindsight"]
    assert rows["Least"]["tuned_on"] == "other prompts" and rows["Best"]["tuned_on"] is None
    replayed = answer("replay", "--bootstrap", "50", "--out", "table.csv")
    assert [row["policy"] for row in replayed["pooled"]] == ["Best", "Least"]
    assert replayed["pooled"][0]["seconds"] == rows["Best"]["seconds"]
    assert pd.read_csv("table.csv")["policy"].tolist() == ["Best", "Least"] * 2
    served = answer("serve", "--batch", "2", "--bootstrap", "2")
    assert [row["policy"] for row in served["table"]] == ["AR", "Best share", "Least share"]
    assert answer("report", "--bootstrap", "50", "-o", "report.html")["out"] == "report.html"
    page = (tmp_path / "report.html").read_text()
    assert "Let Best choose each tree" in page and "Least: half of the rounds" in page
    for command in ("plan", "report"):
        assert (
            main(
                [command, "trace", "-p", "cost.json", "--policy", "Magic", *(["-o", "x.html"] * (command == "report"))]
            )
            == 2
        )
        assert "unknown policy 'Magic'" in capsys.readouterr().err


def test_figures_know_what_they_know_of(trace: Trace) -> None:
    table = ddsim.replay(trace, COST, ["AR", Best(), "Hindsight"], bootstrap=20).table()
    ax = ddsim.plot.policies(table)
    looks = {
        text.get_text(): (line.get_color(), line.get_marker())
        for text, line in zip(ax.get_yticklabels(), ax.lines[1::2], strict=False)
    }
    assert list(looks) == ["Hindsight", "Best", "AR"] and len(set(looks.values())) == 3
    assert np.isfinite(table["tokens_per_second"]).all()
