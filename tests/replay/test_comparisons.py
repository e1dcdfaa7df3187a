"""Two costs, plans or drafters beside each other: differences counted by hand, kinds told by content, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsim
from ddsim.cli.main import main
from ddsim.cost.model import CostModel
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.replay import bootstrap
from ddsim.replay.compare_costs import compare_costs
from ddsim.replay.compare_drafters import compare_drafters
from ddsim.replay.compare_plans import compare_plans
from ddsim.view.style import canvas
from tests.made_up import made_trace

STEPS = CostModel.from_table([1, 8, 64], [0.010, 0.010, 0.020], buckets=[1, 8, 64])
FLAT = CostModel.from_table([1, 64], [0.010, 0.0101])


def profile(rng: np.random.Generator, tokens: list[int], contexts: list[int], repeats: int) -> Profile:
    verify = [
        VerifySample(n, c, 1, tuple((0.005 + 1e-5 * n) * rng.uniform(0.9, 1.1, repeats)))
        for n in tokens
        for c in contexts
    ]
    return Profile(verify, [DraftSample(c, 1, (0.001 * rng.uniform(0.5, 2),)) for c in contexts])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 5]), st.sets(st.sampled_from([1, 4, 16, 64]), min_size=2))
def test_differences_of_measured_costs_are_those_of_medians(seed: int, repeats: int, sizes: set[int]) -> None:
    rng = np.random.default_rng(seed)
    first, second = profile(rng, [1, 4, 16, 64], [0, 512], repeats), profile(rng, sorted(sizes), [512, 2048], repeats)
    found = compare_costs(first, second)
    assert found.measured and found.plans is None
    medians = [{(s.tokens, s.context): np.median(s.seconds) for s in side.verify} for side in (first, second)]
    rows = found.table()
    passes = rows[rows["what"] == "verify"].set_index(["tokens", "context"])
    assert set(passes.index) == {(n, 512) for n in sizes}
    for at, row in passes.iterrows():
        assert row["difference"] == pytest.approx(medians[1][at] / medians[0][at] - 1)
        assert np.isnan(row["low"]) if repeats == 1 else row["low"] <= row["difference"] <= row["high"]
    drafts = rows[rows["what"] == "draft"]
    assert drafts["second"].tolist() == [pytest.approx(second.draft[0].seconds[0])]
    back = compare_costs(second, first).table()
    for column, other in (("difference", "difference"), ("low", "high"), ("high", "low")):
        product = (1 + rows[column]) * (1 + back[other])
        assert np.allclose(product.dropna(), 1) and (product.isna() == rows[column].isna()).all()


def test_fitted_costs_are_compared_where_both_answer() -> None:
    other = CostModel.from_table([4, 100], [0.02, 0.02], draft_seconds=0.001)
    rows = ddsim.compare(STEPS, other).table()
    passes = rows[rows["what"] == "verify"]
    assert passes["tokens"].tolist() == [4, 8, 16, 32, 64] and passes["low"].isna().all()
    assert np.allclose(passes["first"], STEPS.verify_seconds([4, 8, 16, 32, 64]))
    assert rows[rows["what"] == "draft"]["second"].tolist() == [0.001]
    with pytest.raises(DdsimError, match="no number of tokens in common"):
        compare_costs(STEPS, CostModel.from_table([100, 200], [0.02, 0.02]))


def test_a_plan_on_two_costs_and_why_it_differs() -> None:
    trace = made_trace(5, prompts=4, length=60)
    found = compare_costs(STEPS, FLAT, names=("steps", "flat"), trace=trace, bootstrap=50)
    assert found.plans is not None and found.sentence == found.plans.sentence
    assert found.to_json()["plans"]["same"] is found.plans.same
    a, b = (ddsim.plan(trace, cost, bootstrap=50) for cost in (STEPS, FLAT))
    again = compare_plans(a, b.to_json(), names=("steps", "flat"))
    assert str(again) == str(found.plans) and again.speed[0] == pytest.approx(
        b.judged()["tokens_per_second"] / a.judged()["tokens_per_second"] - 1
    )
    if a.choice != b.choice and {a.choice, b.choice} == {f"DDTree({a.budget})", f"DDTree({b.budget})"}:
        few, many = sorted((a.budget, b.budget))
        lengths = a.curve().set_index("budget")["acceptance_length"]
        assert f"From {few} to {many} nodes a round commits {100 * (lengths[many] / lengths[few] - 1):.1f} %" in str(
            again
        )
        rates = a.curve().set_index("budget")["tokens_per_second"]
        assert f"{b.budget} nodes would lose {100 * (1 - rates[b.budget] / rates.max()):.1f} % with steps" in str(again)
    same = compare_plans(a, a)
    assert same.same and same.sentence.startswith("The same answer from both") and same.speed[0] == 0
    assert same.notes[0] == f"Warning: {bootstrap.few(8)}" and a.result.prompts == 8
    assert "the same recording and the same costs" in same.notes[1]
    for drawn in (again.plot(ax=canvas()), found.plot(ax=canvas())):
        assert drawn.get_ylabel() in ("throughput, tokens/s", "difference in time of a pass, %")
    document = a.to_json()
    for damage in ({"curve": []}, {"judged": {}}, {"gains": 3}, {"best_budget": None}, {"replay": {}}):
        with pytest.raises(DdsimError, match=r"^the first: something is missing or damaged .*ddsim plan --json$"):
            compare_plans(document | damage, b)
    with pytest.raises(DdsimError, match='the second: is no plan \\(its "kind" is "ddsim-replay"\\)'):
        compare_plans(a, a.result.to_json())


def told(budget: int, rates: dict[int, float], engine: str | None = None) -> dict[str, Any]:
    """The document of a plan for trees of so many nodes, which commit 2 tokens a round and 1 more for 8 nodes more."""
    rows = [{"budget": n, "tokens_per_second": rate, "acceptance_length": 2 + n / 8} for n, rate in rates.items()]
    return {
        "kind": "ddsim-plan", "schema_version": 1, "choice": f"DDTree({budget})", "budget": budget, "best_budget": budget,
        "near_best": [[budget, budget]], "judged": {"tokens_per_second": rates[budget]}, "gains": [], "curve": rows,
        "replay": {"provenance": {"trace": {"fingerprint": "f"}, "cost": {"provenance": {"engine": engine}}}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ((100.0, 99.5), ["The same answer within 1 %: trees of 8 nodes from a, trees of 16 nodes from b"]),
        ((100.0, 97.0), ["Different answers", "16 nodes would lose 3.0 % with a", "8 nodes would lose 10.0 % with b"]),
        (
            (100.0, 95.0),
            [
                "From 8 to 16 nodes a round commits 33.3 % more tokens; it takes 40.4 % longer with a and 20.0 % longer with b."
            ],
        ),
    ],
)
def test_plans_that_differ_say_why(rates: tuple[float, float], says: list[str]) -> None:
    other = told(16, {8: 90.0 if rates[1] < 99 else 99.2, 16: 100.0}, "vLLM")
    found = compare_plans(told(8, dict(zip((8, 16), rates, strict=True))), other, names=("a", "b"))
    shown = " ".join([found.sentence, *found.notes])
    assert all(line in shown for line in says) and 'different costs (engine "vLLM" of b)' in shown, shown
    assert found.same == (rates[1] > 99) and found.speed[0] == 0 and np.isnan(found.speed[1])
    both = compare_plans(told(8, {8: 100.0, 16: 99.5}), told(16, {8: 90.0, 16: 100.0}))
    assert both.notes[1] == "16 nodes do for both: they are within 1 % of the best with each." and not both.same


def drafter(folder: Path, head: bool = False, **config: Any) -> Path:
    """A drafter's folder, written by hand: a header and zeros."""
    (folder / "head").mkdir(parents=True)
    for part, shapes in ((folder, {"fc": [3, 4], "norm": [5]}), (folder / "head", {"w": [7]})):
        if part == folder or head:
            (part / "config.json").write_text(
                json.dumps({"form": "gated"} if part != folder else {"block_size": 16} | config)
            )
            sizes = [4 * int(np.prod(shape)) for shape in shapes.values()]
            ends = np.cumsum(sizes).tolist()
            header = json.dumps(
                {
                    name: {"dtype": "F32", "shape": shape, "data_offsets": [end - size, end]}
                    for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True)
                }
            ).encode()
            (part / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(ends[-1]))
    return folder


def test_drafters_are_described_without_pytorch(tmp_path: Path) -> None:
    one, other = drafter(tmp_path / "one"), drafter(tmp_path / "other", head=True, num_hidden_layers=2)
    found = ddsim.compare(one, str(other), names=("one", "other"))
    rows = found.table().set_index("what")
    assert rows.loc["parameters", "first"] == rows.loc["parameters", "second"] == "0.00 million"
    assert rows.loc["head"].tolist() == ["none", "gated"] and rows.loc["layers"].tolist() == ["–", "2"]
    assert "recordings of the same texts tell" in found.notes[0] and "0.0 million parameters" in found.sentence
    assert ddsim.compare(one, one).sentence == f"{one} and {one} hold the same weights."
    from ddsim.replay.compare_drafters import read_drafter

    assert (read_drafter(other).parameters, read_drafter(other).head_parameters) == (17, 7)
    (other / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(DdsimError, match=r"model\.safetensors: can't be read as safetensors"):
        compare_drafters(one, other)
    (other / "model.safetensors").unlink()
    with pytest.raises(DdsimError, match=r"has no \.safetensors file"):
        compare_drafters(one, other)


def test_kinds_are_told_by_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = made_trace(5, prompts=3, length=40)
    trace.save(tmp_path / "trace")
    STEPS.save(tmp_path / "steps.json")
    (tmp_path / "mine.csv").write_text("tokens,ms\n1,8\n64,9")
    (tmp_path / "plan.json").write_text(json.dumps(ddsim.plan(trace, FLAT, bootstrap=20).to_json()))
    (tmp_path / "other.json").write_text('{"kind": "ddsim-validation", "schema_version": 1}')
    drafter(tmp_path / "drafter")
    words = ["--bootstrap", "20", "--trace", str(tmp_path / "trace")]

    def run(*names: str, more: tuple[str, ...] = ()) -> tuple[int, str, str]:
        code = main(["compare", *(str(tmp_path / name) for name in names), *more])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, _ = run(
        "steps.json", "mine.csv", "steps.json", more=(*words, "--json", "--plot", str(tmp_path / "x.png"))
    )
    assert code == 0 and (tmp_path / "x.png").exists()
    first, second = json.loads(out)["comparisons"]
    assert first["names"] == [str(tmp_path / "steps.json"), str(tmp_path / "mine.csv")] and second["plans"]["same"]
    code, out, _ = run("plan.json", "plan.json", more=("--plot", str(tmp_path / "plans.svg")))
    assert code == 0 and "The same answer from both" in out
    for names, more, says in (
        (("trace", "mine.csv"), (), "trace is a recording and"),
        (("plan.json", "drafter"), (), "plan.json is a plan and"),
        (("trace",), (), "needs two or more"),
        (("plan.json", "other.json"), (), "holds a ddsim-validation, and what can be compared"),
        (("drafter", "drafter"), ("--plot", "x.png"), "drafters' folders have no figure"),
        (("plan.json", "plan.json"), tuple(words), "--trace is for costs"),
        (("mine.csv", "mine.csv"), ("--budget", "3"), "--budget is for recordings"),
        (("trace", "nowhere"), (), "no such trace"),
    ):
        code, out, err = run(*names, more=more)
        assert code == 2 and says in err and err.count("\n") == 1 and not out, err
