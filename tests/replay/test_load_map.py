"""The map of settings against rounds counted one by one, costs asked for one by one, and simulations."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from ddsim.cost import table as _table
from ddsim.cost.model import CostModel, ExtrapolationWarning, fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.replay.load_map import CHAIN_STEPS, TREE_STEPS, load_map
from ddsim.replay.serving import simulate
from ddsim.trace.cache import positions_of
from tests.made_up import made_trace
from tests.naive import budget as naive_budget
from tests.replay.test_serving import made

COST = CostModel.from_table([1, 16, 33, 200], [0.010, 0.0104, 0.0115, 0.05], draft_seconds=0.001)


def test_trees_against_rounds_counted_one_by_one() -> None:
    positions = positions_of(made_trace(8, prompts=4, length=30, sharper=0.6, max_budget=24))
    found = load_map(positions, COST, requests=(1, 3, 7), contexts=(64, 640), rules=[])
    costs = _table.CostTable.of_curve(np.ones(25), len(positions))
    counts = [sum(d["rounds"] for d in naive_budget.walk(positions, costs, [n] * len(positions))) for n in range(25)]
    pooled = found.table[found.table["workload"] == found.workloads[0]]
    assert len(pooled) == 6 and found.unit == "nodes"
    for row in pooled.to_dict("records"):
        size, context = row["requests"], row["context"]
        rates = {
            n: size * (positions.tokens.sum() / counts[n])
            / (COST.draft_seconds(batch=size, context=context) * (n > 0) + COST.verify_seconds(size * (n + 1), context, size))
            for n in range(25)
            if size * (n + 1) <= 200
        }  # fmt: skip
        best = max(rates, key=rates.__getitem__)
        assert row["setting"] == best and row["tokens_per_second"] == pytest.approx(rates[best])
        assert row["over_ar"] == pytest.approx(rates[best] / rates[0] - 1)
        down, up = [n for n in TREE_STEPS if n < best][-1:], [n for n in TREE_STEPS if n > best and n in rates][:1]
        lost = [1 - rates[n] / rates[best] for n in (*down, *up)]
        assert row["lost_by_step"] == pytest.approx(max(lost))
        assert ([row["down"]], [row["lost_down"]]) == (down, [pytest.approx(lost[0])])


def measured() -> CostModel:
    """Costs of an engine that was made ready for K = 0, 1, 3: not for 4 requests of context 1,024."""
    places = [(b, c) for b in (1, 2, 4) for c in (256, 1024) if (b, c) != (4, 1024)]
    verify = [VerifySample(b * (k + 1), c, b, (0.01 + 4e-4 * b * k * b,)) for b, c in places for k in (0, 1, 3)]
    provenance = {"engine": "vLLM 0.26.0", "ks": [0, 1, 3], "off": "K = 0 drafts too"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit_cost(Profile(verify, [DraftSample(256, 1, (1e-4,))], provenance=provenance), "table")


def test_an_engine_is_mapped_where_it_was_measured() -> None:
    positions = made(3, [40] * 8, spread=2)
    cost = measured()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        found = load_map(positions, cost, "vllm")
        wide = load_map(positions, cost, "vllm", extrapolate=True, rules=[])
    assert found.unit == "K" and set(found.table["setting"]) <= {0, 1, 3}
    assert set(zip(found.table["requests"], found.table["context"], strict=True)) <= {
        (b, c) for b in (1, 2, 4) for c in (256, 512, 1024)
    }
    assert not found.table["extrapolated"].any() and "K = 0 drafts too." in found.notes
    assert len(wide.table) == 3 * 7 * 6 and wide.table["extrapolated"].any()
    assert (found.table["chain_gain"] <= found.table["rule_gain"]).all()
    values, sizes, contexts, marks = wide.grid("setting")
    assert values.shape == marks.shape == (7, 6) and sizes[-1] == 64 and contexts[-1] == 8192
    assert marks[-1, -1] and not marks[0, 0]
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (
        document["kind"] == "ddsim-load-map"
        and document["setting"] == "K"
        and len(document["table"]) == len(found.table)
    )
    assert document["sentence"].startswith("vLLM: K = ")
    assert CHAIN_STEPS[0] == 0


def test_rules_are_simulated_beside_the_best_setting() -> None:
    positions = made(5, [40] * 8, spread=2, contexts=[64] * 8)
    cost = CostModel.from_table([1, 8, 9, 64, 65, 300], [0.010, 0.010, 0.013, 0.013, 0.02, 0.05], draft_seconds=0.002)
    found = load_map(positions, cost, requests=[4], contexts=[128], rules=["RoundRatio"])
    row: Any = found.table.iloc[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        runs = simulate(positions, cost, [f"DDTree:{row['setting']}", "RoundRatio"], batch=4, bootstrap=0).runs
    rates = {name: run.tokens[:4].sum() / run.seconds[:4].sum() for (_, name), run in runs.items()}
    assert row["rule_gain"] == pytest.approx(rates["RoundRatio"] / rates[f"DDTree({row['setting']})"] - 1)
    assert row["rule"] == "RoundRatio" and "RoundRatio at 4 requests of context 128" in " ".join(found.details)


def test_where_drafting_is_off_is_said() -> None:
    steep = CostModel.from_table([1, 4, 5, 300], [0.010, 0.011, 0.1, 5.0], draft_seconds=0.001)
    found = load_map(made(5, [40] * 4), steep, requests=[1, 4], contexts=[64], rules=[])
    assert found.table.set_index(["workload", "requests"])["setting"]["all", 4] == 0
    assert "drafting is off in 3 of 6 cells" in found.sentence
    assert "Drafting is off from 4 requests of context 64 on at the earliest." in found.details


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"engine": "magic"}, 'unknown engine "magic"'),
        ({"rules": ["LongRun"]}, "LongRun has to solve for something"),
        ({"rules": ["Hindsight"]}, "Hindsight"),
        ({"requests": [0]}, "batch: must be whole numbers"),
        ({"contexts": []}, "contexts: must be one number"),
        ({"contexts": [-1]}, "context: must be at least 0"),
    ],
)
def test_bad_options_get_one_line(named: dict[str, Any], words: str) -> None:
    with pytest.raises(DdsimError, match=words) as error:
        load_map(made(5, [40] * 4), COST, **named)
    assert "\n" not in str(error.value)


def test_nothing_measured_is_said() -> None:
    with pytest.raises(DdsimError, match="no cell of the map was measured"):
        load_map(made(5, [40] * 4), measured(), "vllm", requests=[64], contexts=[8192])
