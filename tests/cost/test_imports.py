"""Costs of others: each format read by hand beside what ddsim makes of it, and what none of them may hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cost.imports import SPLIT_STEPS, WHOLE_STEPS, Fitted, read_csv
from ddsim.cost.model import CostModel, fit_cost, open_cost, read_costs
from ddsim.cost.profile import Profile
from ddsim.errors import DdsimError
from ddsim.files.torch_values import read_torch_values
from ddsim.replay.engines import best_chains
from tests.made_up import made_trace
from tests.naive import schedule as naive


def saved(value: Any, protocol: int = 2) -> bytes:
    """What torch.save writes for a value without tensors."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model/data.pkl", pickle.dumps(value, protocol))
        file.writestr("model/version", "3\n")
    return archive.getvalue()


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(plain, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_are_read_without_unpickling(value: Any, protocol: int) -> None:
    assert read_torch_values(saved(value, protocol), "x.pt") == value
    shared = [value] * 3
    assert read_torch_values(saved({"a": shared, "b": shared}, protocol), "x.pt") == {"a": shared, "b": shared}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.int32, np.bool_])
def test_numbers_of_numpy_are_read(kind: Any) -> None:
    values = [kind(v) for v in (0, 1, 7.5)]
    assert read_torch_values(saved(values), "x.pt") == [v.item() for v in values]


class Opens:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_act_is_refused(protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(DdsimError, match=r"would call .*mkdir.* when opened"):
        read_torch_values(saved({"type": "convex", "x": Opens(made)}, protocol), "x.pt")
    assert not made.exists()
    for value in ({1, 2}, object(), np.arange(3), b"bytes" * 2 and bytearray(3)):
        with pytest.raises(DdsimError, match=r"x\.pt"):
            read_torch_values(saved(value), "x.pt")
    whole = saved({"draft_cost": [1.0] * 50})
    for cut in (b"PK\x03\x04", whole[: len(whole) // 2], whole[:60] + b"\xff" * 9 + whole[69:]):
        with pytest.raises(DdsimError, match=r"x\.pt: can't be read as a file of torch.save"):
            read_torch_values(cut, "x.pt")


def test_what_torch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    value = {"profile_data": {"medians": {512: {1: np.median([0.1, 0.2])}}}, "args": {"save_dir": "x", "max_nodes": 4}}
    torch.save(value, tmp_path / "x.pt")
    assert read_torch_values((tmp_path / "x.pt").read_bytes(), "x.pt") == value
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(DdsimError, match="more than"):
        read_torch_values((tmp_path / "x.pt").read_bytes(), "x.pt")


# --- CaDDTree ---------------------------------------------------------------------------------------------------------------


def test_caddtrees_latencies(tmp_path: Path) -> None:
    by = {c: {n: [0.01 + 1e-5 * n + 1e-7 * c + r * 1e-6 for r in range(3)] for n in (1, 2, 64)} for c in (0, 1024)}
    document = {
        "profile_data": {
            "context_lengths": [0, 1024],
            "node_counts": [1, 2, 64],
            "latencies": by,
            "medians": {c: {n: np.median(v) for n, v in of.items()} for c, of in by.items()},
        },
        "args": {"model_name_or_path": "Qwen/Qwen3-8B", "max_nodes": 1024},
    }
    path = tmp_path / "verify_latency__Qwen_Qwen3-8B.pt"
    path.write_bytes(saved(document))
    profile = read_costs(path)
    assert isinstance(profile, Profile) and not profile.draft
    assert {(s.context, s.tokens): list(s.seconds) for s in profile.verify} == {
        (c, n): v for c, of in by.items() for n, v in of.items()
    }
    assert profile.provenance["target"] == "Qwen/Qwen3-8B" and profile.provenance["file"] == path.name
    assert "verification latencies" in profile.provenance["source"]


def test_thousands_of_passes_are_thinned(tmp_path: Path) -> None:
    by = {c: {n: [0.01 + 1e-6 * n] for n in range(1, 1025)} for c in (0, 1024, 2048)}
    (tmp_path / "x.pt").write_bytes(saved({"profile_data": {"latencies": by}}))
    profile = read_costs(tmp_path / "x.pt")
    assert isinstance(profile, Profile) and "of 3072 passes" in profile.provenance["sizes"]
    sizes = [s.tokens for s in profile.verify if s.context == 1024]
    assert sizes[:64] == list(range(1, 65)) and {65, 72, 73, 512, 513, 1024} <= set(sizes) and 66 not in sizes
    assert all(s.seconds == (0.01 + 1e-6 * s.tokens,) for s in profile.verify)


def test_caddtrees_cost_model(tmp_path: Path) -> None:
    curves = {c: [0.03 + 1e-7 * c + 1e-6 * max(n, 1) ** 2 for n in range(9)] for c in (1, 1000)}
    document = {
        "type": "convex",
        "context_lengths": [1, 1000],
        "node_counts": [float(n) for n in range(9)],
        "fitted_curves": curves,
        "draft_cost": 0.0065,
    }
    path = tmp_path / "Qwen3-8B_convex.pt"
    path.write_bytes(saved(document))
    cost = open_cost(path)
    assert cost.kind == "convex" and cost.is_convex() and "cost model" in cost.provenance["source"]
    for c, curve in curves.items():
        assert cost.verify_seconds(np.arange(1, 9), c, 1) == pytest.approx(curve[1:])
    assert float(cost.draft_seconds(1, context=1000)) == 0.0065 and cost.extrapolated(9, 1000, 1)
    cost.save(tmp_path / "again.json")
    assert open_cost(tmp_path / "again.json").to_json() == cost.to_json()
    with pytest.raises(DdsimError, match='holds a fitted "convex" cost model'):
        open_cost(path, "steps")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "linear"}, "no latencies or cost model of CaDDTree's code"),
        ({"draft_cost": -1.0}, "draft_cost: must be at least 0"),
        ({"fitted_curves": {1: [0.1, 0.1, "x"]}}, r"fitted_curves\[1\]\[2\]: must be a number"),
        ({"fitted_curves": {1: [0.1, 0.1]}}, "needs at least 3 entries"),
        ({"fitted_curves": {"1": [0.1] * 4}}, "entries by context and tokens"),
        ({"fitted_curves": {}}, "holds no curve"),
        ({"fitted_curves": {1: [0.1, 0.1, 5000.0]}}, "more than any pass takes"),
        ({"profile_data": {"latencies": {512: {1: [0.1]}}}}, "needs at least 2 token counts"),
        ({"profile_data": {}}, 'the key "latencies" is missing'),
        ({"profile_data": {"latencies": {512: {1: [0.1], 2: [-0.1]}}}}, r"verify\[1\].seconds\[0\]: must be above 0"),
    ],
)
def test_damaged_files_of_caddtree(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    document = {"type": "convex", "fitted_curves": {1: [0.1, 0.1, 0.2]}, "draft_cost": 0.01} | change
    (tmp_path / "x.pt").write_bytes(saved(document))
    with pytest.raises(DdsimError, match=reason) as raised:
        read_costs(tmp_path / "x.pt")
    assert str(raised.value).startswith(f"{tmp_path / 'x.pt'}: ")


# --- SPS tables -------------------------------------------------------------------------------------------------------------


def test_an_sps_table(tmp_path: Path) -> None:
    table = {"sample_batch_tokens": [1, 16, 64], "sample_steps_per_sec": [125, 100.0, 50.0], "max_batch_tokens": 64}
    path = tmp_path / "sps.json"
    path.write_text(json.dumps(table))
    cost = open_cost(path)
    assert cost.provenance["engine"] == "sglang" and cost.provenance["source"].startswith("SPS table")
    for tokens in (1, 16, 64):
        assert 1 / cost.verify_seconds(tokens, 999, 7) == pytest.approx(naive.steps_per_second(table, tokens))
    assert (
        cost.verify_seconds(40) == pytest.approx(0.015)
        and cost.extrapolated(65)
        and not cost.extrapolated(64, 10**5, 64)
    )
    assert cost.draft_seconds(9) == 0 and f"seconds are {WHOLE_STEPS}" in cost.explain()
    found = best_chains(made_trace(3, prompts=2, length=40), cost)
    assert len(found) == 64 and found["k"].iloc[-1] == 0  # as many requests as tokens are known


def test_an_additive_sps_table(tmp_path: Path) -> None:
    table = {
        "bias_seconds": 0.005,
        "bs_probes": [1, 4, 8],
        "alpha_seconds": [0.0, 0.001, 0.003],
        "m_probes": [1, 8, 32],
        "theta_seconds": [0.0, 0.001, 0.004],
    }
    (tmp_path / "sps.json").write_text(json.dumps(table))
    cost = open_cost(tmp_path / "sps.json")
    for i, batch in enumerate((1, 4, 8)):
        for j, tokens in enumerate((1, 8, 32)):
            if tokens >= batch:
                wanted = 0.005 + table["alpha_seconds"][i] + table["theta_seconds"][j]  # type: ignore[index]
                assert cost.verify_seconds(tokens, 77, batch) == pytest.approx(wanted)
    assert cost.verify_seconds(20, 0, 6) == pytest.approx(0.005 + 0.002 + 0.0025)
    assert cost.extrapolated(32, 0, 9) and not cost.extrapolated(32, 10**6, 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sample_batch_tokens": [1, 1]}, r"sample_batch_tokens\[1\]: 1 does not exceed the 1 before it"),
        ({"sample_batch_tokens": [0, 8]}, r"sample_batch_tokens\[0\]: must be at least 1"),
        ({"sample_steps_per_sec": [1.0]}, "must be as many, are 2 and 1"),
        ({"sample_steps_per_sec": [1.0, 0]}, r"sample_steps_per_sec\[1\]: must be above 0"),
        ({"sample_batch_tokens": [8], "sample_steps_per_sec": [1.0]}, "holds one probe"),
        ({"max_batch_tokens": 4}, "4 is below the last probe, 8"),
        ({"gamma": 7}, 'unknown key "gamma"'),
    ],
)
def test_damaged_sps_tables(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    table = {"sample_batch_tokens": [1, 8], "sample_steps_per_sec": [100.0, 90.0], "max_batch_tokens": 8} | change
    (tmp_path / "x.json").write_text(json.dumps(table))
    with pytest.raises(DdsimError, match=reason):
        read_costs(tmp_path / "x.json")


# --- CSV --------------------------------------------------------------------------------------------------------------------


def steps() -> dict[tuple[int, int, int], float]:
    """Seconds of whole steps by batch, k and context."""
    return {
        (b, k, c): 0.006 + (0.001 if k else 0.0) + 2e-5 * b * (k + 1) + 1e-7 * b * c
        for b in (1, 8, 32)
        for k in (0, 1, 3, 7)
        for c in (512, 2048)
    }


def test_a_csv_of_whole_steps(tmp_path: Path) -> None:
    lines = ["K,Context,batch, seconds"]
    for (b, k, c), seconds in steps().items():
        lines += [f"{k},{c},{b},{seconds * wobble!r}" for wobble in (0.99, 1.0, 1.02)]
    path = tmp_path / "steps.csv"
    path.write_text("\r\n".join(lines) + "\r\n")
    profile = read_costs(path)
    assert isinstance(profile, Profile) and len(profile.verify) == len(steps())
    assert profile.provenance == {
        "source": "CSV of (batch, k, context, seconds)", "file": "steps.csv", "seconds": SPLIT_STEPS,
    }  # fmt: skip
    cost = fit_cost(profile, "table")
    for (b, k, c), seconds in steps().items():
        drafting = cost.draft_seconds(b, context=c) if k else 0.0
        round_ = cost.verify_seconds(b * (k + 1), c, b) + drafting
        assert round_ == pytest.approx(seconds)
    assert f"seconds are {SPLIT_STEPS}" in cost.explain() and "free" not in cost.explain()
    for c in (512, 2048):  # between batches too: a step without a draft holds nothing of a draft
        between = (4 * steps()[1, 0, c] + 3 * steps()[8, 0, c]) / 7
        assert cost.verify_seconds(4, c, 4) == pytest.approx(between, rel=0.01)


def test_a_csv_in_which_drafting_costs_nothing(tmp_path: Path) -> None:
    rows = ["batch,k,context,seconds", "1,0,8,0.02", "1,4,8,0.01", "1,9,8,0.0001", "1,9,8,0.03"]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    cost = open_cost(tmp_path / "x.csv", "table")
    for tokens, seconds in ((1, 0.02), (5, 0.01), (10, 0.01505)):
        drafting = cost.draft_seconds(1, context=8) if tokens > 1 else 0.0
        assert cost.verify_seconds(tokens, 8, 1) + drafting == pytest.approx(seconds)
    assert 0 < cost.draft_seconds(1, context=8) < 1e-8


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("batch,k,seconds\n1,0,0.1", "row 1: must name the columns batch, k, context, seconds"),
        ("batch,k,context,seconds,note\n1,0,5,0.1,x", "row 1: must name the columns"),
        ("batch,k,context,seconds", "holds no step"),
        ("batch,k,context,seconds\n1,0,5", "row 2: has 3 fields, not 4"),
        (
            "batch,k,context,seconds\n1,0,5,0.1\n1.5,0,5,0.1",
            'row 3: batch: must be a whole number of 0 or more, is "1.5"',
        ),
        ("batch,k,context,seconds\n0,0,5,0.1", "row 2: batch: must be at least 1"),
        ("batch,k,context,seconds\n1,-1,5,0.1", "row 2: k: must be a whole number"),
        ("batch,k,context,seconds\n1,0,5,nan", "row 2: seconds: must be a number above 0"),
        ("batch,k,context,seconds\n1,0,5,0", "row 2: seconds: must be a number above 0"),
        ("batch,k,context,seconds\n1,0,5,9000", "row 2: seconds: 9000 is more than any step takes"),
        ("batch,k,context,seconds\n1,9999999,5,1", "row 2: tokens: 10000000 is more than any pass verifies"),
        (
            "batch,k,context,seconds\n1,0,5,0.1\n1,0,5,0.2",
            "needs steps of k = 0 and of another k at batch 1, context 5",
        ),
        ("batch,k,context,seconds\n1,1,5,0.1\n1,2,5,0.2", "needs steps of k = 0 and of another k at batch 1"),
        ('batch,k,context,seconds\n"1,0,5,0.1', "can't be read as CSV"),
    ],
)
def test_damaged_csv(lines: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(lines)
    with pytest.raises(DdsimError, match=reason) as raised:
        read_costs(tmp_path / "x.csv")
    assert str(raised.value).startswith(f"{tmp_path / 'x.csv'}: ")


PASSES = [(1, 0.006), (8, 0.0065), (8, 0.0067), (64, 0.008), (64, 0.009), (64, 0.0081), (256, 0.012)]


@pytest.mark.parametrize(("column", "unit"), [("seconds", 1.0), ("ms", 1e3), (" Milliseconds", 1e3)])
def test_a_csv_of_passes(column: str, unit: float, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([f"tokens,{column}", *(f"{tokens},{seconds * unit!r}" for tokens, seconds in PASSES)]))
    cost = open_cost(path)
    for tokens in {tokens for tokens, _ in PASSES}:
        wanted = np.median([seconds for size, seconds in PASSES if size == tokens])
        assert cost.verify_seconds(tokens, 777, 3) == pytest.approx(wanted) and not cost.extrapolated(tokens, 777, 3)
    assert cost.verify_seconds(160) == pytest.approx((0.0081 + 0.012) / 2) and cost.extrapolated(257)
    assert cost.draft_seconds(5) == 0 and cost.provenance["source"] == "CSV of (tokens, seconds)"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_columns_beside_come_in_any_order(data: st.DataObject) -> None:
    beside = data.draw(st.lists(st.sampled_from(["context", "batch", "draft_seconds"]), unique=True))
    names = data.draw(st.permutations(["tokens", "seconds", *beside]))
    values = st.fixed_dictionaries(
        {
            "tokens": st.integers(8, 40), "seconds": st.floats(1e-4, 0.5), "context": st.sampled_from([0, 512]), "batch": st.sampled_from([1, 8]),
            "draft_seconds": st.none() | st.floats(1e-4, 0.1),
        }
    )  # fmt: skip
    rows = data.draw(st.lists(values, min_size=1, max_size=12))
    rows += [{**row, "tokens": row["tokens"] + 40} for row in rows]  # two sizes everywhere
    lines = [",".join("" if row[n] is None else repr(row[n]) for n in names) for row in rows]
    found = read_csv("\n".join([",".join(names), *lines]).encode(), "x.csv")
    passes: dict[Any, list[float]] = {}
    drafts: dict[Any, list[float]] = {}
    for row in rows:  # by hand
        at = tuple(row[n] if n in beside else None for n in ("context", "batch"))
        passes.setdefault((row["tokens"], *at), []).append(row["seconds"])
        if "draft_seconds" in beside and row["draft_seconds"] is not None:
            drafts.setdefault(at, []).append(row["draft_seconds"])
    if "context" in beside:
        assert isinstance(found, Profile)
        batch = {True: lambda s: s.batch, False: lambda s: None}["batch" in beside]
        assert {(s.tokens, s.context, batch(s)): list(s.seconds) for s in found.verify} == passes
        assert {(s.context, batch(s)): list(s.seconds) for s in found.draft} == drafts
        return
    assert isinstance(found, Fitted)
    curves = {(t, None, c.batch): s for c in found.curves for t, s in zip(c.tokens, c.seconds, strict=True)}
    assert curves == {key: pytest.approx(np.median(seconds)) for key, seconds in passes.items()}
    told = {(None, p.batch): p.seconds for p in found.draft}
    assert told == ({key: pytest.approx(np.median(v)) for key, v in drafts.items()} or {(None, None): 0.0})


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            "tokens,latency\n1,0.1",
            "row 1: must name the columns .* or tokens and seconds and any of context, batch, draft_seconds",
        ),
        ("tokens,seconds,ms\n1,0.1,100", "row 1: must name the columns"),
        ("tokens,seconds\n1,0.1\n8,fast", 'row 3: seconds: must be a number above 0, is "fast"'),
        ("tokens,ms\n1,10\n8,-1", 'row 3: ms: must be a number above 0, is "-1"'),
        ("tokens,seconds\n1,0.1\n8", "row 3: has 1 fields, not 2"),
        ("tokens,seconds\nx,0.1", "row 2: tokens: must be a whole number"),
        ("tokens,seconds,batch\n4,0.1,8", "row 2: tokens: must be at least 1 a request, 8, is 4"),
        ("tokens,seconds\n8,0.1\n8,0.2", "needs passes of at least 2 numbers of tokens$"),
        ("tokens,seconds,context\n8,0.1,5\n9,0.2,6", "needs passes of at least 2 numbers of tokens at context 5$"),
        ("tokens,seconds,draft_ms\n8,0.1,0\n9,0.2,", "row 2: draft_ms: must be a number above 0"),
        ("tokens,seconds", "holds no pass, only the names of its columns"),
    ],
)
def test_damaged_csv_of_passes(lines: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(lines)
    with pytest.raises(DdsimError, match=reason) as raised:
        read_costs(tmp_path / "x.csv")
    assert str(raised.value).startswith(f"{tmp_path / 'x.csv'}: ")


def test_milliseconds_in_a_column_of_seconds_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("tokens,seconds\n1,6.5\n64,7.3")
    with pytest.warns(UserWarning, match="6.5 s: are these milliseconds"):
        read_costs(tmp_path / "x.csv")


def test_passes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ddsim.cli.main import main

    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["tokens,seconds", *(f"{tokens},{seconds}" for tokens, seconds in PASSES)]))
    assert main(["fit", str(path), "--json"]) == 0
    told = capsys.readouterr()
    assert not told.err and json.loads(told.out)["model"]["provenance"]["file"] == "mine.csv"
    path.write_text("tokens,seconds\n1,x")
    assert main(["fit", str(path)]) == 2
    assert capsys.readouterr().err == f'error: {path}: row 2: seconds: must be a number above 0, is "x"\n'


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ddsim.cli.main import main

    made_trace(3, prompts=3, length=40).save(tmp_path / "trace")
    path = tmp_path / "steps.csv"
    path.write_text("\n".join(["batch,k,context,seconds", *(f"{b},{k},{c},{s}" for (b, k, c), s in steps().items())]))
    assert main(["fit", str(path), "--kind", "table", "--json", "-o", str(tmp_path / "cost.json")]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["provenance"]["file"] == "steps.csv"
    assert isinstance(read_costs(tmp_path / "cost.json"), CostModel)
    table = {"sample_batch_tokens": [1, 16, 64], "sample_steps_per_sec": [125, 100.0, 50.0], "max_batch_tokens": 64}
    (tmp_path / "sps.json").write_text(json.dumps(table))
    assert main(["fit", str(tmp_path / "sps.json"), "--plot", str(tmp_path / "sps.png")]) == 0
    assert (tmp_path / "sps.png").stat().st_size > 1000
    words = [
        "export",
        str(tmp_path / "trace"),
        "-p",
        str(tmp_path / "sps.json"),
        "--drafter",
        "d",
        "-o",
        str(tmp_path / "s.json"),
    ]
    assert main([*words, "--for", "sglang"]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["provenance"]["cost"]["source"].startswith("SPS table")
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "t.json"), "--for", "vllm"]) == 2  # SGLang's costs
    assert "not of vLLM" in capsys.readouterr().err and not (tmp_path / "t.json").exists()
