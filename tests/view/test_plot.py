"""Figures: what they show is what they were given; nothing global changes; each has units; files come out in three formats."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from ddsim import plot
from ddsim.cost.model import CostModel, fit_cost
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.trace.calibrate import fit_calibration
from ddsim.trace.reliability import Reliability, reliability
from ddsim.trace.trace import Trace
from ddsim.tree.trees import draft_tree, tree_gains
from ddsim.view import budgets as _budgets
from ddsim.view import checks as _checks
from ddsim.view import comparisons as _comparisons
from ddsim.view import costs as _costs
from ddsim.view import load as _load
from ddsim.view import load_maps as _load_maps
from ddsim.view import style as _style
from ddsim.view import trees as _trees
from tests import made_up


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return made_up.saved(tmp_path_factory.mktemp("plot") / "trace", sequences=8)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return made_up.profile(batches=(1, 8))


@pytest.fixture(scope="module")
def cost(profile: Profile) -> CostModel:
    return fit_cost(profile, "steps")


@pytest.fixture(scope="module")
def reliable(trace: Trace) -> tuple[Reliability, Reliability]:
    return reliability(trace), reliability(trace, fit_calibration(trace)[0])


NAMES = ["AR", "DFlash", "DDTree(64)", "CaDDTree", "Hindsight"]


def gains_table() -> pd.DataFrame:
    """Of two workloads and both of them, chains and trees of two sizes."""
    rows = [
        {
            "workload": w,
            "policy": p,
            "first": 4.0,
            "second": 4.0 * (1 + g),
            "gain": g,
            "low": g - 0.02,
            "high": g + 0.03,
        }
        for w in ("code", "chat", "all")
        for p, g in (("DFlash", 0.1), ("DDTree(8)", 0.05), ("DDTree(64)", 0.2))
    ]
    return pd.DataFrame(rows)


def policy_table() -> pd.DataFrame:
    rate = np.array([145.0, 430.0, 520.0, 540.0, 600.0])
    return pd.DataFrame(
        {
            "policy": NAMES, "tokens_per_second": rate, "tokens_per_second_low": 0.97 * rate,
            "tokens_per_second_high": 1.03 * rate, "speedup": rate / 145, "hindsight_share": rate / 600,
        }
    )  # fmt: skip


def gain_table(key: str, values: tuple[float, ...], *columns: str) -> pd.DataFrame:
    """Relative changes of each policy with intervals, at loads or batches; one far beyond the axis."""
    changes = [3.2, 0.08, -0.02, 0.0, -0.05]
    rows = [{key: value, "policy": name, "share": value / 10} for value in values for name in NAMES]
    table = pd.DataFrame(rows).assign(unstable=[name == NAMES[1] for name in NAMES] * len(values))
    for column in columns:
        change = np.tile(changes, len(values))
        table = table.assign(**{column: change, f"{column}_low": change - 0.02, f"{column}_high": change + 0.01})
    return table


def map_table() -> pd.DataFrame:
    """Two workloads, three batches and contexts; a cell is missing, one is extrapolated."""
    cells = [(w, b, c) for w in ("all", "chat") for b in (1, 8, 64) for c in (256, 1024, 8192)][:-1]
    table = pd.DataFrame(cells, columns=["workload", "requests", "context"])
    values = {
        "setting": np.arange(len(cells)) * 15,
        "lost_by_step": 0.2,
        "rule_gain": np.linspace(-0.02, 0.3, len(cells)),
    }
    return table.assign(extrapolated=table["context"] == 8192, **values)


def curve_table() -> pd.DataFrame:
    n = np.arange(65)
    rate = (1 + 4 * (1 - np.exp(-n / 10))) / (0.0075 + np.maximum(0, n - 24) * 4e-5)
    return pd.DataFrame({"budget": n, "tokens_per_second": rate, "low": 0.96 * rate, "high": 1.03 * rate})


def passes_table() -> pd.DataFrame:
    """How passes of two costs differ, at two contexts."""
    rows = [(t, c, 0.02 * np.log2(t) - 1e-4 * c) for c in (256, 1024) for t in (1, 4, 16, 64)]
    table = pd.DataFrame(rows, columns=["tokens", "context", "difference"]).assign(what="verify", batch=1)
    return table.assign(low=table["difference"] - 0.01, high=table["difference"] + 0.02)


def every_figure(
    trace: Trace, profile: Profile, cost: CostModel, reliable: tuple[Reliability, Reliability]
) -> dict[str, Callable[[Axes | None], Axes]]:
    drafted = _trees.drafted_round(trace, 3, 64)
    gains = tree_gains([v for _, v in next(trace.blocks()).rows(3)], 64)
    runs = policy_table().rename(columns={"policy": "label", "tokens_per_second": "predicted"})
    runs = runs.assign(
        measured=runs["predicted"] * 1.02, measured_low=runs["predicted"], measured_high=runs["predicted"] * 1.04
    )
    price = np.linspace(200, 800, 61)
    grid = np.outer([96, 20, 4], [1, 0.7])
    return {
        "tree": lambda ax: _trees.tree(drafted, ax=ax),
        "gains": lambda ax: _budgets.gains(gains, ax=ax),
        "gains of many": lambda ax: _budgets.gains(np.stack([gains, gains / 2]), ax=ax),
        "round_throughput": lambda ax: _budgets.round_throughput(gains, cost, context=512, ax=ax),
        "cost_curve": lambda ax: _costs.cost_curve(cost, profile, ax=ax),
        "cost_curve of a batch": lambda ax: _costs.cost_curve(cost, profile, batch=8, ax=ax),
        "cost_curve beside others": lambda ax: _costs.cost_curve(cost, profile, beside=[profile, profile], ax=ax),
        "fixed_budgets and policies": lambda ax: _budgets.fixed_budgets(
            curve_table(), flat=[(20, 40), (48, 50)], baseline=145.0, policies=policy_table().assign(budget_mean=[0, 15, 64, 30.5, 24.0]),
            buckets=[1, 8, 16, 17, 32, 64], title="Verify trees of 24 nodes, which is a title of more than a line", about="A · B · C", ax=ax,
        ),
        "cost_curve alone": lambda ax: _costs.cost_curve(cost, ax=ax),
        "fixed_budgets": lambda ax: _budgets.fixed_budgets(curve_table(), flat=(20, 40), baseline=145.0, ax=ax),
        "draft_gains": lambda ax: _budgets.draft_gains(gains_table(), ("marginals", "lattices"), ax=ax),
        "cost_differences": lambda ax: _comparisons.cost_differences(passes_table(), ("old", "new"), ax=ax),
        "plan_curves": lambda ax: _comparisons.plan_curves({"old": curve_table(), "new": curve_table()}, ax=ax),
        "policies": lambda ax: _budgets.policies(policy_table(), ax=ax),
        "policies by workload": lambda ax: _budgets.policies(
            pd.concat([policy_table().assign(workload=w) for w in ("code", "chat")]), ax=ax
        ),
        "budget_distribution": lambda ax: _budgets.budget_distribution({"CaDDTree": [1, 2, 8, -2], "LongRun": [4, 4]}, ax=ax),
        "serving": lambda ax: _costs.serving(gain_table("batch", (1, 8), "over_fixed", "tpot_over_fixed"), ax=ax),
        "load_gains": lambda ax: _load.load_gains(
            gain_table("load", (3.0, 6.0, 9.0), "latency_over", "highest_over"), ax=ax
        ),
        "load_maps": lambda ax: _load_maps.load_maps(map_table(), ax=ax),
        "load_maps of an engine": lambda ax: _load_maps.load_maps(map_table().assign(chain_gain=0.04), "K", ax=ax),
        "price_curve": lambda ax: _budgets.price_curve(price, 550 - 4e-4 * (price - 550) ** 2, ratio=540.0, ax=ax),
        "heat_map": lambda ax: _costs.heat_map(grid, [1, 8, 64], [512, 4096], label="best budget, nodes a request", ax=ax),
        "heat_map around 0": lambda ax: _costs.heat_map(
            grid - 30, [1, 8, 64], [512, 4096], label="gain, %", form="{:+.1f}", centre=0, ax=ax
        ),
        "reliability_by_probability": lambda ax: _checks.reliability_by_probability(*reliable, ax=ax),
        "reliability_by_depth": lambda ax: _checks.reliability_by_depth(*reliable, ax=ax),
        "acceptance_by_budget": lambda ax: _checks.acceptance_by_budget(*reliable, ax=ax),
        "predicted_measured": lambda ax: _checks.predicted_measured(runs.assign(group="code"), ax=ax),
        "prediction_errors": lambda ax: _checks.prediction_errors(runs, ax=ax),
        "validation": lambda ax: _checks.validation(validated(("DFlash", "DDTree(63)")), ax=ax),
    }  # fmt: skip


def validated(names: Sequence[str]) -> dict[str, Any]:
    """A validation as a file holds it, of two workloads."""
    rows = [
        {
            "workload": workload,
            "policy": name,
            "predicted": {
                "tokens_per_second": 100.0 + i,
                "tokens_per_second_low": 90.0,
                "tokens_per_second_high": 120.0,
            },
            "measured": {"tokens_per_second": 99.0 + i, "tokens_per_second_low": None, "tokens_per_second_high": None},
        }
        for i, name in enumerate(names)
        for workload in ("all", "chat", "code")
    ]
    return {
        "label": "a pair of $ models whose name is longer than a label",
        "provenance": {"device": "NVIDIA H100 80GB HBM3", "temperature": 1.0},
        "rows": rows,
    }


@pytest.fixture(scope="module")
def figures(
    trace: Trace, profile: Profile, cost: CostModel, reliable: tuple[Reliability, Reliability]
) -> dict[str, Axes]:
    """Every figure, drawn once, on a narrow page; warnings (missing glyphs, layouts that collapse) are errors."""
    found = {}
    for name, draw in every_figure(trace, profile, cost, reliable).items():
        found[name] = _style.canvas(5.0, 4.2)
        assert draw(found[name]) is found[name], name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FigureCanvasAgg(found[name].figure).draw()  # type: ignore[arg-type]
    return found


def test_every_figure_is_drawn_and_changes_nothing_global(request: pytest.FixtureRequest) -> None:
    import matplotlib.pyplot as plt

    before, open_before = dict(matplotlib.rcParams), plt.get_fignums()
    figures = request.getfixturevalue("figures")
    drawn = {name.split()[0] for name in figures}
    helpers = {
        "canvas", "save_figure", "drafted_round", "DraftedRound", "COLOURS", "STYLES", "SUFFIXES", "Look", "policy_look", "about", "entitle",
    }  # fmt: skip
    assert drawn == set(plot.__all__) - helpers
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == open_before


def test_every_figure_names_what_its_axes_show(figures: dict[str, Axes]) -> None:
    units = ("ms", "tokens", "%", "nodes", "probability", "share", "requests", "true token")
    for name, drawn in figures.items():
        if name == "tree":
            continue
        for ax in all_axes(drawn.figure):
            labels = [a.get_label_text() for a in (ax.xaxis, ax.yaxis) if a.get_label_text()]
            assert labels, name
            assert all(any(unit in label for unit in units) for label in labels), (name, labels)


def test_no_text_of_a_figure_overlaps_another_or_leaves_the_page(figures: dict[str, Axes]) -> None:
    for name, drawn in figures.items():
        if name == "tree":
            continue  # its letters are in boxes that a test of its own looks at
        page = drawn.figure.bbox
        notes = [t for t in drawn.texts if t.get_label() in ("_title", "_direct")]
        written = [text_box(t) for t in notes]
        for i, (note, box) in enumerate(zip(notes, written, strict=True)):
            assert _within(box, page), (name, note.get_text())
            assert not any(box.overlaps(other) for other in written[i + 1 :]), (name, note.get_text())
        for ax in all_axes(drawn.figure):
            boxes = [box for axis in (ax.xaxis, ax.yaxis) for box in tick_boxes(axis)]
            for i, a in enumerate(boxes):
                assert not any(a.overlaps(b) for b in boxes[i + 1 :]), name
                assert not any(a.overlaps(b) for b in written), name
            for label in (ax.xaxis.label, ax.yaxis.label):
                if label.get_text() and label.get_visible():
                    box = label.get_window_extent()
                    assert _within(box, page), (name, label.get_text())
                    assert not any(box.overlaps(b) for b in [*boxes, *written]), (name, label.get_text())


def text_box(text: Any) -> Any:
    """Where letters are, without the line that ties them to a point."""
    return Text.get_window_extent(text)


def test_no_legend_lies_over_what_is_drawn(figures: dict[str, Axes]) -> None:
    seen = 0
    for name, drawn in figures.items():
        for ax in all_axes(drawn.figure):
            legend = ax.get_legend()
            if legend is None:
                continue
            seen += 1
            box = legend.get_window_extent()
            assert _within(box, drawn.figure.bbox), name
            for other in all_axes(drawn.figure):
                assert not box.overlaps(other.bbox), name
                points = [
                    line.get_transform().transform(line.get_xydata()) for line in other.lines if len(line.get_xydata())
                ]  # type: ignore[arg-type]
                points = [p[np.isfinite(p).all(axis=1)] for p in points]
                assert not any(
                    box.contains(*point) for part in points for point in part if other.bbox.contains(*point)
                ), name
    assert seen > 8  # of many figures


def all_axes(figure: Any) -> list[Axes]:
    return [a for ax in figure.axes for a in (ax, *ax.child_axes) if a.axison]


def tick_boxes(axis: Any) -> list[Any]:
    """Where the tick labels in view are written."""
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
    return [t.get_window_extent() for at, t in ticks if low <= at <= high and t.get_text() and t.get_visible()]


def _within(box: object, page: object) -> bool:
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1  # type: ignore[attr-defined]


def test_a_figure_of_its_own_is_one_that_notebooks_show() -> None:
    import matplotlib.pyplot as plt

    ax = _budgets.gains([0.9, 0.5])
    try:
        assert ax.figure.number in plt.get_fignums()  # type: ignore[union-attr]
    finally:
        plt.close(ax.figure)  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_save_figure(tmp_path: Path, suffix: str, head: bytes) -> None:
    paths = [
        _style.save_figure(_budgets.gains([0.9, 0.5], ax=_style.canvas()), tmp_path / s / f"a.{suffix}") for s in "xy"
    ]
    assert paths[0].read_bytes().startswith(head)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_save_figure_refuses_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DdsimError, match=r"^.*a\.gif: figures are written as png, svg or pdf; .*$"):
        _style.save_figure(_style.canvas(), tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(DdsimError, match="can't be written"):
        _style.save_figure(_style.canvas(), tmp_path / "file" / "a.png")


# --- trees ----------------------------------------------------------------------------------------------------------


def naive_accepted(trace: Trace, sequence: int, position: int, budget: int) -> int:
    """Accepted drafted tokens, by looking for the true path among the tree's paths."""
    block = next(trace.subset([sequence]).blocks())
    rows = block.rows(position)
    tree = draft_tree([v for _, v in rows], budget)
    paths = {0: ()}
    for node in range(1, len(tree)):
        token = int(rows[tree.depths[node] - 1][0][tree.ranks[node]])
        paths[node] = (*paths[int(tree.parents[node])], token)  # type: ignore[assignment]
    true = tuple(block.tokens[position + 1 :].tolist())
    return max(len(p) for p in paths.values() if true[: len(p)] == p)


def test_drafted_round_accepts_what_the_text_says(trace: Trace) -> None:
    seen = set()
    for position in range(0, 58, 3):
        for budget in (0, 1, 7, 64):
            drafted = _trees.drafted_round(trace, position, budget, sequence=2)
            assert len(drafted.accepted) - 1 == naive_accepted(trace, 2, position, budget)
            assert len(drafted.texts) == len(drafted.tree) == budget + 1
            seen.add(len(drafted.accepted))
    assert len(seen) > 3  # the examples tell cases apart


def test_drafted_round_knows_the_token_that_follows(trace: Trace) -> None:
    block = next(trace.subset([0]).blocks())
    drafted = _trees.drafted_round(trace, 10, 16)
    assert drafted.bonus == trace.text([block.tokens[10 + len(drafted.accepted)]])
    assert drafted.texts[0] == trace.text([block.tokens[10]])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budget": 65}, "budget 65: .* up to 64 only"),
        ({"sequence": 8}, "sequence 8: the trace has sequences 0 to 7"),
        ({"position": 59}, "position 59: rounds of sequence 0 start at positions 0 to 58"),
    ],
)
def test_drafted_round_refuses(trace: Trace, changes: dict[str, int], line: str) -> None:
    with pytest.raises(DdsimError, match=line):
        _trees.drafted_round(trace, **changes)


def boxes(ax: Axes) -> list[FancyBboxPatch]:
    return [p for p in ax.patches if isinstance(p, FancyBboxPatch)]


def test_a_tree_of_64_nodes_is_legible_on_half_a_page(trace: Trace) -> None:
    ax = _trees.tree(_trees.drafted_round(trace, 3, 64), ax=_style.canvas(6.3, 4.6))
    texts = [t for t in ax.texts if t.get_family() == ["DejaVu Sans Mono"]]
    assert len(texts) == len(boxes(ax)) == 65
    assert min(t.get_fontsize() for t in texts) >= 5.5  # points
    drawn = [b.get_window_extent() for b in boxes(ax)]
    for i, a in enumerate(drawn):
        assert not any(a.overlaps(b) for b in drawn[i + 1 :])
    for text, box in zip(texts, drawn, strict=True):
        extent = text.get_window_extent()
        assert extent.x0 >= box.x0 - 1 and extent.x1 <= box.x1 + 1


def test_the_accepted_path_is_lit(trace: Trace) -> None:
    drafted = _trees.drafted_round(trace, 3, 64)
    assert len(drafted.accepted) > 2
    ax = _trees.tree(drafted, ax=_style.canvas())
    faces = [matplotlib.colors.to_hex(b.get_facecolor()).upper() for b in boxes(ax)]
    assert [i for i, face in enumerate(faces) if face == _style.ORANGE] == drafted.accepted
    bold = [c for c in ax.collections if isinstance(c, LineCollection)][1]
    assert len(bold.get_segments()) == len(drafted.accepted) - 1
    assert f"64 nodes, {len(drafted.accepted) - 1} accepted" in ax.texts[-1].get_text()


def test_strange_tokens_are_drawn_without_warning() -> None:
    texts = [" $x$", "\n\n", "", "漢字", "👍", "\\frac{", "a very long token indeed", "_", "\u202e", "%"]
    tree = draft_tree(np.log(np.full((1, 9), 0.1)), 9)
    ax = _trees.tree(tree, texts, ax=_style.canvas())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    shown = [t.get_text() for t in ax.texts]
    assert shown[:4] == ["·$x$", "⏎⏎", "∅", "□□"]
    assert shown[6] == "a·very·long…"
    with pytest.raises(DdsimError, match="3 texts for a tree of 10 nodes"):
        _trees.tree(tree, texts[:3], ax=_style.canvas())


def test_a_tree_of_the_root_alone_is_drawn() -> None:
    ax = _trees.tree(draft_tree(np.log(np.full((1, 2), 0.1)), 0), ax=_style.canvas())
    assert len(boxes(ax)) == 1


# --- numbers on figures ---------------------------------------------------------------------------------------------


def test_round_throughput_marks_best_and_greedy() -> None:
    seconds = [1.0, 1.05, 1.9, 1.95, 2.0]  # a step that greedy doesn't climb
    ax = _budgets.round_throughput([0.9, 0.9, 0.9, 0.9], seconds, ax=_style.canvas())
    theta = np.array([1, 1.9, 2.8, 3.7, 4.6]) / seconds
    marks = {line.get_label(): line.get_xydata()[0] for line in ax.lines if len(line.get_xydata()) == 1}  # type: ignore[arg-type, index, misc]
    best, greedy = int(np.argmax(theta)), 1
    assert best == 4
    (b, g) = (next(v for k, v in marks.items() if str(k).startswith(name)) for name in ("best: 4", "greedy stop: 1"))
    np.testing.assert_allclose(b, [best, theta[best]])
    np.testing.assert_allclose(g, [greedy, theta[greedy]])
    with pytest.raises(DdsimError, match="give those of one position"):
        _budgets.round_throughput([[0.9]], seconds, ax=_style.canvas())


def test_gains_add_up() -> None:
    ax = _budgets.gains([0.5, 0.25, 0.0], ax=_style.canvas())
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 1.5, 1.75, 1.75])
    with pytest.raises(DdsimError, match="gains have shape"):
        _budgets.gains(np.zeros((2, 0)), ax=_style.canvas())


def test_cost_curve_is_in_milliseconds_and_residuals_are_what_is_left(cost: CostModel, profile: Profile) -> None:
    ax = _costs.cost_curve(cost, profile, contexts=[512], ax=_style.canvas())
    points = profile.points()
    points = points.take((points.batch == 1) & (points.context == 512))
    upper, below = ax, ax.child_axes[0]
    np.testing.assert_allclose(upper.lines[0].get_xydata(), np.stack([points.tokens, 1e3 * points.seconds], 1))
    inner = np.unique(points.tokens)[1:-1]
    left_out = inner[::10]  # the first fold: a fit of all other sizes, made by hand, predicts them
    fewer = dataclasses.replace(profile, verify=[s for s in profile.verify if s.tokens not in left_out])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = fit_cost(fewer, "steps").verify_seconds(left_out, 512)
    at, off = (np.asarray(v) for v in below.lines[0].get_data())
    measured = points.seconds[np.isin(points.tokens, left_out)]
    np.testing.assert_allclose(off[np.isin(at, left_out)], 100 * (measured / predicted - 1))
    assert set(at) <= set(inner)  # ends can't be left out
    assert "held-out" in below.get_ylabel()
    with pytest.raises(DdsimError, match="no points at batch 2; it has batches 1, 8"):
        _costs.cost_curve(cost, profile, batch=2, ax=_style.canvas())


def test_cost_curve_asks_for_nothing_that_was_not_measured(cost: CostModel, profile: Profile) -> None:
    fresh = fit_cost(profile, "steps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (1, 8):
            _costs.cost_curve(fresh, profile, batch=batch, ax=_style.canvas())
        _costs.cost_curve(fresh, ax=_style.canvas())


def test_serving_shows_differences_and_says_in_words_what_is_far() -> None:
    table = pd.concat(
        [
            policy_table().assign(
                batch=b, over_fixed=[-0.7, -0.3, 0, 0.02, 0.1 * b], tpot_over_fixed=[2, 0.3, 0, 0, -0.04]
            )
            for b in (1, 8)
        ]
    )
    ax = _costs.serving(table, ax=_style.canvas())
    upper, below = ax.child_axes
    labels = [t.get_text() for t in upper.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels[-2:] == ["AR: −70 to −70 %", "DFlash: −30 to −30 %"] and len(labels) == 5
    assert labels[:2] == ["Hindsight", "CaDDTree"]  # as the lines end
    low, high = upper.get_ylim()
    assert -6 < low < 0 and 80 < high < 90 and -6 < below.get_ylim()[0] < -4
    drawn = [np.asarray(line.get_ydata(), float) for line in below.lines]
    assert any(np.allclose(y, [-4, -4]) for y in drawn if len(y) == 2)


def test_policies_are_in_order_and_say_what_they_are_worth() -> None:
    ax = _budgets.policies(policy_table(), ax=_style.canvas())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Hindsight", "CaDDTree", "DDTree(64)", "DFlash", "AR"]
    assert [t.get_text() for t in ax.texts][:2] == ["4.14×", "3.72×, 90 % of hindsight"]
    bare = _budgets.policies(policy_table()[["policy", "tokens_per_second"]], ax=_style.canvas())
    assert {t.get_text() for t in bare.texts} <= {""}


def test_unknown_intervals_are_left_out() -> None:
    table = policy_table().assign(tokens_per_second_low=np.nan, tokens_per_second_high=np.nan)
    ax = _budgets.policies(table, ax=_style.canvas())
    assert ax.get_xlim()[1] > 600
    curve = curve_table().assign(low=np.nan, high=np.nan)
    assert np.isfinite(_budgets.fixed_budgets(curve, ax=_style.canvas()).get_ylim()).all()


def test_budget_distribution_is_the_share_of_rounds() -> None:
    ax = _budgets.budget_distribution({"A": [8, 8, 16, 64, -1]}, ax=_style.canvas())
    x, y = (np.asarray(v) for v in ax.lines[0].get_data())
    for n, share in ((0, 0.0), (8, 0.5), (16, 0.75), (64, 1.0)):
        assert y[x == n][-1] == share
    assert ax.lines[0].get_label() == "A: median 12, mean 24"


def test_price_curve_finds_the_fixed_point() -> None:
    x = np.linspace(100, 300, 41)
    ax = _budgets.price_curve(x, 250 - (x - 250) ** 2 / 1000, ax=_style.canvas())
    star = next(line for line in ax.lines if str(line.get_label()).startswith("λ*"))
    np.testing.assert_allclose(star.get_xydata(), [[250, 250]], atol=0.5)  # type: ignore[arg-type]


def test_heat_map_refuses_another_shape() -> None:
    with pytest.raises(DdsimError, match=r"values have shape \(1, 2\); expected \(2, 1\)"):
        _costs.heat_map([[1, 2]], [1, 2], [512], label="x", ax=_style.canvas())
    ax = _costs.heat_map([[1.0, np.nan]], [1], [512, 1024], label="x, nodes", ax=_style.canvas())
    assert [t.get_text() for t in ax.texts] == ["1"]


def test_prediction_errors_are_relative() -> None:
    table = pd.DataFrame({"label": ["a", "b"], "predicted": [100.0, 200.0], "measured": [103.0, 190.0]})
    ax = _checks.prediction_errors(table, ax=_style.canvas())
    dots = [float(np.asarray(line.get_xdata())[0]) for line in ax.lines if line.get_marker() not in ("", "None", None)]
    np.testing.assert_allclose(dots, [100 * (100 / 103 - 1), 100 * (200 / 190 - 1)])  # as `ddsim validate`


def test_colours_are_told_apart_when_red_or_green_cones_are_missing() -> None:
    # Viénot, Brettel and Mollon (1999): linear RGB -> LMS, drop one cone, back.
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in _style.COLOURS]) ** 2.2
    lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    for drop in ([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]):
        seen = np.clip(rgb @ lms.T @ np.array(drop).T @ np.linalg.inv(lms).T, 0, 1) ** (1 / 2.2)
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert gaps[:3, :3][np.triu_indices(3, 1)].min() > 0.3  # most figures need no more than three
        assert gaps[np.triu_indices(len(seen), 1)].min() > 0.14  # where markers or line styles differ too


def test_canvas_is_unknown_to_pyplot() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert isinstance(_style.canvas().figure, Figure)
    assert plt.get_fignums() == before


def test_a_validation_has_a_mark_for_every_policy() -> None:
    names = [f"DDTree({n})" for n in range(14)]
    ax = _checks.validation(validated(names), ax=_style.canvas())
    marks = [container.lines[0] for container in ax.containers]
    assert [len(mark.get_xdata()) for mark in marks] == [2] * len(names)  # the pooled rows aren't drawn
    assert len({(mark.get_marker(), mark.get_color()) for mark in marks}) == len(names)
    title = " ".join(next(text.get_text() for text in ax.texts if text.get_label() == "_title").split())
    assert (
        title.startswith("a pair of $ models") and "H100 · ddsim's decoder" in title and title.endswith("temperature 1")
    )
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= set(names)


def test_a_typical_round_is_one_whose_tree_goes_further_than_its_chain(trace: Trace) -> None:
    for budget in (8, 64):
        sequence, position = _trees.typical_round(trace, budget)
        drafted = _trees.drafted_round(trace, position, budget, sequence)
        block = next(trace.subset([sequence]).blocks())
        chain = 0
        for tokens, _ in block.rows(position):
            if position + chain + 1 >= len(block) or not len(tokens) or tokens[0] != block.tokens[position + chain + 1]:
                break
            chain += 1
        assert len(drafted.accepted) - 1 > chain
        assert _trees.typical_round(trace, budget, 2)[0] == 2
    with pytest.raises(DdsimError, match="sequence 8: the trace has sequences 0 to 7"):
        _trees.typical_round(trace, 8, 8)


def test_a_round_says_what_is_drawn(trace: Trace) -> None:
    drafted = _trees.drafted_round(trace, 3, 64)
    assert drafted.sentence.startswith(
        f"Of 64 drafted tokens, verified in one pass, {len(drafted.accepted) - 1} are accepted"
    )
    assert len(boxes(_trees.tree_canvas(drafted))) == 65
