"""Which rule wins where: one table of what serving and loads told."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddsim.cli.main import main
from ddsim.cost.model import CostModel, ExtrapolationWarning
from ddsim.cost.profile import Profile, VerifySample
from ddsim.replay.contest import WORTH, Contest, contest
from ddsim.replay.load_rules import RULES
from ddsim.replay.served import SHUFFLES
from tests.made_up import made_trace
from tests.policy.test_engine_rules import COST, made


@pytest.fixture(scope="module")
def answer() -> Contest:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        return contest(made(8, [25, 40, 30, 20, 35] * 2), COST, batch=[1, 4], running=4, bootstrap=3)


def test_every_rule_stands_at_every_place(answer: Contest) -> None:
    table, places = answer.table(), ["batch 1", "batch 4", "30 % load", "60 % load", "90 % load", "highest load"]
    assert answer.wide.columns.tolist() == places and answer.wide.index.tolist() == answer.rules
    assert len(table) == len(places) * len(answer.rules)
    assert {"AdaptiveVerification", "DSpark", "AdaptiveSteps", "BestSchedule", "LongRun on chains", "LongRun"} <= set(
        answer.rules
    )
    assert set(answer.rules).isdisjoint({"AR", "BestChain", "BestFixed"}) and RULES
    engines = set(table["policy"][table["engine"]])
    assert engines == {"AdaptiveVerification", "DSpark", "AdaptiveSteps", "BestSchedule"}


def test_gains_are_those_of_serving_and_of_loads(answer: Contest) -> None:
    table = answer.table().set_index(["policy", "where"])
    runs = answer.served.runs
    speed = {key: run.tokens[:SHUFFLES].sum() / run.seconds[:SHUFFLES].sum() for key, run in runs.items()}
    best = max(speed[4, name] for batch, name in answer.served.fixed if batch == 4)
    row = table.loc[("DSpark", "batch 4")]
    assert row["gain"] == pytest.approx(speed[4, "DSpark"] / best - 1) and row["low"] <= row["high"]
    assert table.loc[("BestSchedule", "batch 4"), "gain"] <= 0 and row["measure"] == "tokens/s"
    assert row["over_schedule"] == pytest.approx(speed[4, "DSpark"] / speed[4, "BestSchedule"] - 1)
    assert (table.loc["BestSchedule", "over_schedule"].dropna() == 0).all()
    loaded = answer.loaded
    load = loaded.loads[-1]
    late = {name: loaded.runs[load, name].latency[:SHUFFLES].mean() for name in loaded.highest}
    fixed = min(late[name] for name in loaded.fixed)
    row = table.loc[("DSpark", "90 % load")]
    assert row["gain"] == pytest.approx(1 - late["DSpark"] / fixed) and row["low"] <= row["high"]
    assert row["over_schedule"] == pytest.approx(1 - late["DSpark"] / late["BestSchedule"])
    assert {name for name in loaded.highest if name not in answer.rules} == set(loaded.fixed)


def test_the_sentence_names_what_gains_surely(answer: Contest) -> None:
    table = answer.table()
    full = table[table["measure"] == "tokens/s"]
    assert answer.sentence.startswith(
        "Over the best K for each number of requests, a static schedule, more than 1 % is gained by "
    )
    gains, _, rest = answer.sentence.partition("The best rule of any kind is ")
    gained = gains.partition(" is gained by ")[2].partition(". ")[0]
    for name in ("AdaptiveVerification", "DSpark", "AdaptiveSteps"):
        sure = (full["over_schedule_low"][full["policy"] == name] > WORTH).any()
        assert (name in gained) == sure
    best = full.loc[full["gain"].idxmax(), "policy"]
    assert rest.startswith(f"{best}: ")
    assert answer.details[0].startswith("At 90 % load, mean latency saved over ")
    document = answer.to_json()
    assert json.loads(json.dumps(document, allow_nan=False))["table"][0]["policy"] == answer.rules[0]


def test_rules_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made_trace().save(tmp_path / "trace")
    Profile([VerifySample(t, 64, b, (0.01 + 1e-4 * t,)) for b in (1, 2) for t in (b, 8, 64, 200)]).save(
        tmp_path / "p.json"
    )
    words: list[Any] = [
        "rules",
        tmp_path / "trace",
        "-p",
        tmp_path / "p.json",
        "-b",
        2,
        "--running",
        2,
        "--bootstrap",
        1,
    ]

    def run(*more: Any) -> tuple[int, str, str]:
        code = main([str(word) for word in (*words, *more)])
        told = capfd.readouterr()
        return code, told.out, told.err

    code, out, _ = run("--plot", tmp_path / "r.png")
    assert code == 0 and "Highest load gained" in out and "AdaptiveVerification" in out.replace("…", "ification")
    shown = out.replace(str(tmp_path), "")  # a folder of pytest's may be longer than a line
    assert (tmp_path / "r.png").exists() and max(map(len, shown.splitlines())) <= 80
    document = json.loads(run("--json")[1])
    assert document["kind"] == "ddsim-contest" and {row["where"] for row in document["table"]} >= {
        "batch 2",
        "90 % load",
    }
    for more, said in (
        (("--kind", "magic"), "--kind"),
        (("-b", "0"), "--batch"),
        (("--plot", "x.gif"), "end the name in .png"),
    ):
        code, _, err = run(*more)
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_free_costs_leave_nothing_to_gain() -> None:
    flat = CostModel.from_table([1, 200], [0.01, 0.01 + 1e-9])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        told = contest(made(2, [20, 30] * 5), flat, batch=2, running=2, bootstrap=0)
    assert np.isnan(told.table()["low"]).all() and "gained by none of the rules" in told.sentence
