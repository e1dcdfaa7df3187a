"""Every public object shows its answer: text of 80 columns, HTML, a figure; never a thousand arrays, never an error."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddsim
from ddsim.tables import Shown, Summary, Table, number
from tests import made_up

DRAFTER = Path(__file__).parent.parent / "reference" / "drafter"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each public object that isn't a rule, a function or an error."""
    folder = tmp_path_factory.mktemp("shown")
    trace = made_up.made_trace(prompts=3, length=30, horizon=4, max_budget=16)
    profile = made_up.profile(contexts=(256, 1024), batches=(1, 2, 4))
    few = {"bootstrap": 3, "seed": 0}
    with warnings.catch_warnings(action="ignore"):
        cost = ddsim.fit_cost(profile, "steps")
        plan = ddsim.plan(trace, cost, bootstrap=50)
        lattice = ddsim.Lattice([[7, 8], [5, 6]], np.log([0.6, 0.4]), np.log([[[0.9, 0.1], [0.2, 0.8]]]))
        with ddsim.TraceWriter(folder / "new", horizon=1, max_budget=2, vocab_size=9, provenance={}) as writer:
            pass
        return {
            "Trace": trace,
            "TraceWriter": writer,
            "Profile": profile,
            "CostModel": cost,
            "Plan": plan,
            "ReplayResult": plan.result,
            "Comparison": ddsim.compare(trace, trace, bootstrap=50),
            "CostComparison": ddsim.compare(profile, profile),
            "PlanComparison": ddsim.compare(plan, plan),
            "DrafterComparison": ddsim.compare(DRAFTER, DRAFTER),
            "Contest": ddsim.contest(trace, cost, batch=[1, 2], running=2, bootstrap=0),
            "ServingResult": ddsim.simulate(trace, cost, ["AR", "DDTree:7"], batch=[1, 4], **few),
            "LoadResult": ddsim.serve_load(trace, cost, ["AR", "DDTree:7"], running=4, requests=20, ttft=0.1, **few),
            "load_map": ddsim.load_map(trace, cost, requests=[1, 2], contexts=[256]),
            "engine_plan": ddsim.engine_plan(trace, cost, "vllm", requests=[1, 2], bootstrap=20),
            "Calibration": ddsim.fit_calibration(trace)[0],
            "cross_calibrate": ddsim.cross_calibrate(trace),
            "reliability": ddsim.reliability(trace),
            "positions_of": ddsim.positions_of(trace),
            "Arrivals": ddsim.Arrivals([0.0, 0.5, 4.0], answer_tokens=[20, 300, 15]),
            "DraftTree": ddsim.draft_tree(lattice, 3),
            "drafted_round": ddsim.plot.drafted_round(trace, budget=8),
            "Lattice": lattice,
        }  # fmt: skip


DRAWN = {
    "Trace", "Profile", "CostModel", "Plan", "ReplayResult", "Comparison", "CostComparison", "PlanComparison", "Contest", "ServingResult", "LoadResult", "load_map", "engine_plan",
    "reliability", "DraftTree", "drafted_round", "Lattice",
}  # fmt: skip


def test_every_public_class_is_shown(shown: dict[str, Any]) -> None:
    """Or is a rule, whose name is the call that makes it, or an error."""
    for name in ddsim.__all__:
        thing = getattr(ddsim, name)
        if inspect.isclass(thing) and not issubclass(thing, (ddsim.Policy, Exception)):
            assert name in shown and isinstance(shown[name], thing)


def test_objects_print_what_they_are_in_80_columns(shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")  # what is printed is the same everywhere
    for name, thing in shown.items():
        text = str(thing)
        assert isinstance(thing, Shown) and repr(thing) == text == str(thing.summary()), name
        assert max(map(len, text.splitlines())) <= 80 and len(text) < 6000, name
        assert thing.summary().sentence.endswith("."), name
        assert "object at 0x" not in text and "array(" not in text and not re.search(r" $|\n\n\n", text, re.M), name


def test_results_show_tokens_a_second(shown: dict[str, Any]) -> None:
    for name in ("Plan", "ReplayResult", "ServingResult"):
        assert "tokens/s" in str(shown[name]) and "…" not in str(shown[name])
    rate = shown["ReplayResult"].table()["tokens_per_second"].iloc[0]
    assert f" {rate:,.1f} " in str(shown["ReplayResult"])


def test_profiles_and_calibrations_are_a_sentence(shown: dict[str, Any]) -> None:
    for name in ("Profile", "Calibration", "cross_calibrate", "positions_of", "Arrivals", "TraceWriter"):
        summary = shown[name].summary()
        assert summary.sentence.endswith(".") and not summary.tables and len(str(summary)) < 240


def test_what_results_are_made_of_is_a_line(shown: dict[str, Any]) -> None:
    for name, what in (("ReplayResult", "outcomes"), ("ServingResult", "runs"), ("LoadResult", "runs")):
        for part in getattr(shown[name], what).values():
            assert len(repr(part)) < 160 and repr(part).endswith(".") and "array" not in repr(part), name


def test_html_is_text_without_colours(shown: dict[str, Any]) -> None:
    """So it is read on a light page and on a dark one, and shows no markup of a name."""
    for name, thing in shown.items():
        page = thing._repr_html_()
        assert page.startswith("<div><strong>") and page.count("<table>") == len(thing.summary().tables), name
        assert "color" not in page and len(page) < 20_000, name
    evil = Summary(
        "<script>", ["a & b"], [Table.of([{"<i>": "<b>"}], [("<i>", "to-\nken/\ns", str)], "<u>")], ["<hr>"], "<pre>"
    )
    page = evil._repr_html_()
    assert (
        not re.search("<(script|i|b|u|hr)>", page)
        and "&lt;script&gt;" in page
        and "&lt;b&gt;</td>" in page
        and ">token/s</th>" in page
    )


def test_objects_draw_themselves(shown: dict[str, Any]) -> None:
    for name, thing in shown.items():
        assert hasattr(thing, "plot") == (name in DRAWN), name
        if name in DRAWN:
            ax = ddsim.plot.canvas()
            with warnings.catch_warnings(action="ignore"):
                assert thing.plot(ax=ax) is ax and ax.has_data() | bool(ax.child_axes or ax.figure.axes), name


def test_what_is_half_made_has_a_name(shown: dict[str, Any]) -> None:
    for thing in shown.values():
        empty = object.__new__(type(thing))
        assert repr(empty) == f"<{type(thing).__name__}>" and empty._repr_html_() == f"&lt;{type(thing).__name__}&gt;"


def test_nothing_is_read_to_show_a_trace(shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("read")

    monkeypatch.setattr(type(shown["Trace"]), "_load", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert "positions" in str(shown["Trace"])


def test_showing_costs_keeps_the_warning_of_an_extrapolation() -> None:
    cost = ddsim.CostModel.from_table([1, 64], [0.010, 0.012])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "12.00" in str(cost)
    with pytest.warns(UserWarning, match="extrapolated"):
        cost.verify_seconds(128)


def test_a_rule_with_costs_of_its_own_has_a_short_name() -> None:
    cost = ddsim.CostModel.from_table([1, 64], [0.010, 0.012])
    assert repr(ddsim.CaDDTree(decides_on=cost)) == "CaDDTree(decides_on=<CostModel>)"


def test_trees_are_drawn_in_text() -> None:
    tree = ddsim.draft_tree(np.log([[0.5, 0.3, 0.2]] * 4), 40)
    lines = str(tree).splitlines()
    assert (
        lines[0].startswith("Draft tree of 40 nodes: ") and lines[1] == "root" and lines[2] == "├─ candidate 1, 0.500"
    )
    assert lines[-1] == "… and 24 less likely nodes" and len(lines) == 2 + 16 + 1
    assert str(ddsim.draft_tree([[-0.5]], 0)).splitlines() == [
        "Draft tree of 0 nodes: 1.00 tokens a round expected.",
        "root",
    ]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Table.of([], [("a", "a", str)]), ""),
        (lambda: Table.of([{"a": None, "b": float("nan")}], [("a", "a", str), ("b", "b", number(1))]), "–"),
        (lambda: Table.of([{"a": "x" * 200}], [("a", "a", str)], "t" * 200), "x…x"),
        (lambda: Table.of([{"a": "\x1b[31m"}], [("a", "a", str)]), r"\x1b[31m"),
        (lambda: Table.of([{"a": "[bold]"}], [("a", "a", str)]), "[bold]"),
    ],
)
def test_tables_hold_any_cell(make: Callable[[], Table], text: str) -> None:
    drawn = make().text()
    assert text in drawn and max(map(len, drawn.splitlines()), default=0) <= 80


def test_costs_of_whole_steps_have_no_row_of_nothing() -> None:
    drafted, whole = (ddsim.CostModel.from_table([1, 64], [0.010, 0.012], draft_seconds=s) for s in (0.001, 0.0))
    assert "draft, host" in str(drafted) and "draft, host" not in str(whole)
