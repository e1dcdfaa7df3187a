"""Settings for engines: the fields that engines document, and the K that each engine would read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsim
from ddsim.cost.model import CostModel, fit_cost
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.errors import DdsimError
from ddsim.replay.engines import (
    ENGINES,
    STAYS,
    ChainRates,
    acceptance,
    best_chains,
    choices_of,
    chosen,
    engine_rule,
    schedule_ranges,
)
from ddsim.trace.trace import Trace
from ddsim.view.settings import acceptance_profile, engine_settings, sps_table
from tests.made_up import made_trace
from tests.naive import schedule as naive

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = Path(ddsim.__file__).parent / "data" / "schemas"
PAIRS = [(engine, method) for engine, known in ENGINES.items() for method in known.rules]


def valid(document: dict[str, Any]) -> None:
    """Hold a document against our schema of its engine's fields."""
    schema = json.loads((SCHEMAS / f"{document.get('engine', 'acceptance')}.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(document)


@st.composite
def rates(draw: st.DrawFn) -> ChainRates:
    """What chains of up to 6 tokens yield for up to 12 requests; the longest not measured for some."""
    horizon, most = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    gains = draw(st.lists(st.floats(0, 1), min_size=horizon, max_size=horizon))
    lengths = np.concatenate([[1.0], 1 + np.cumsum(np.cumprod(gains))])
    cell = st.sampled_from([1.0, 1.001, 1.2, 2.0, 3.0, 7.0])
    seconds = np.array([[draw(cell) for _ in lengths] for _ in range(most)])
    for row in seconds:
        row[draw(st.integers(1, horizon + 1)) :] = np.nan
    return ChainRates(np.arange(1, most + 1), lengths, seconds, np.zeros(seconds.shape, bool), 512)


@settings(max_examples=80, deadline=None)
@given(rates(), st.sampled_from(PAIRS), st.lists(st.integers(1, 20), max_size=4))
def test_an_engine_reads_the_chosen_k(found: ChainRates, pair: tuple[str, str], graphs: list[int]) -> None:
    engine, method = pair
    horizon, most = len(found.lengths) - 1, len(found.requests)
    ks = chosen(found, engine_rule(engine, method))
    made = engine_settings(engine, choices_of(found, ks), "some where/drafter", horizon, method=method)
    document = json.loads(json.dumps(made, allow_nan=False))
    valid(document)
    assert [naive.k_of(document, n) for n in range(1, most + 1)] == ks.tolist()
    beyond = {naive.k_of(document, most + n) for n in (1, 2, 100)}
    assert beyond == {0 if engine == "tensorrt-llm" else int(ks[-1])}
    if engine == "sglang":  # a batch is padded to a graph's size before it is looked up
        for n in range(1, most + 1):
            padded = min((size for size in sorted(graphs) if size >= n), default=n)
            assert naive.k_of(document, n, graphs) == ks[min(padded, most) - 1]
    assert "drafter" in document["arguments"] or not ks.any()


@settings(max_examples=80, deadline=None)
@given(rates())
def test_each_rule_chooses_the_best_that_it_allows(found: ChainRates) -> None:
    table = found.rates
    free, first, one = (chosen(found, rule) for rule in ("any", "first", "one"))
    before = None
    for n, row in enumerate(table):
        best = max(range(len(row)), key=lambda k: (np.nan_to_num(row[k], nan=-1), -k))
        if before is not None and row[before] >= (1 - STAYS) * row[best]:
            best = before
        before = best
        assert free[n] == best
        allowed = row[: first[0] + 1] if n else row
        assert first[n] <= first[0] or n == 0
        assert row[first[n]] >= (1 - STAYS) * np.nanmax(allowed)
    covered = [k for k in range(table.shape[1]) if not np.isnan(table[:, k]).any()]
    assert len(set(one.tolist())) == 1 and one[0] in covered
    products = {k: np.prod(table[:, k] / table[:, 0]) for k in covered}
    assert products[int(one[0])] == pytest.approx(max(products.values()))
    lost = choices_of(found, free)["lost"]
    assert lost.between(0, STAYS).all() and (choices_of(found, one)["lost"] >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), max_size=40), st.integers(1, 7), st.integers(0, 7)
)
def test_a_slot_of_one_candidate_never_moves(rounds: list[list[int]], few: int, many: int) -> None:
    config = {"ema_alpha": 0.2, "warmup_batches": 2, "update_interval": 1}
    config |= {"1": {"candidate_steps": [few]}, "5": {"candidate_steps": [many]}}  # type: ignore[dict-item]
    engine = naive.Adaptive(config, few)
    for accepted in rounds:
        engine.update(accepted)
        assert [engine.steps(n) for n in (1, 4, 5, 64)] == [few, few, many, many]


def test_the_controller_follows_what_is_accepted() -> None:
    """The twin itself: down where little is accepted, up where much is, off and on again."""
    config = {"warmup_batches": 0, "update_interval": 1, "1": {"candidate_steps": [0, 1, 3, 7]}}
    engine = naive.Adaptive(config, 3)
    for _ in range(30):
        engine.update([0])
        assert engine.steps(1) <= 3
    assert engine.steps(1) in (0, 1)  # off, and it tries one token again
    for _ in range(60):
        engine.update([7])
    assert engine.steps(1) == 7


def example() -> pd.DataFrame:
    """Choices for up to 8 requests, typed in."""
    ks = [7, 7, 7, 7, 3, 3, 0, 0]
    lengths = {7: 2.75, 3: 2.5, 0: 1.0}
    speeds = [360.0, 700.0, 1010.0, 1300.0, 1500.0, 1700.0, 1750.0, 1900.0]
    return pd.DataFrame(
        {
            "requests": range(1, 9),
            "k": ks,
            "acceptance_length": [lengths[k] for k in ks],
            "tokens_per_second": speeds,
            "over_ar": [1.25, 1.0, 0.75, 0.5, 0.25, 0.125, 0.0, 0.0],
            "lost": 0.0,
            "extrapolated": [False] * 7 + [True],
        }
    )


def golden(engine: str, method: str) -> dict[str, Any]:
    """What the golden file of an engine and a method holds."""
    choices, sps = example(), None
    if engine_rule(engine, method) == "one":
        choices["k"], choices["acceptance_length"] = 3, 2.5
        choices["lost"] = [0.0625, 0.05, 0.03125, 0.0, 0.0, 0.0, 0.0, 0.125]
    if method == "dspark" and engine == "sglang":
        sps = sps_table(CostModel.from_table([1, 128], [0.005, 0.02], draft_seconds=0.001), 3, 512, 8)
    return engine_settings(
        engine, choices, "org/drafter", 15, method=method, sps=sps, provenance={"ddsim": "0.1.0", "trace": "t" * 8}
    )


@pytest.mark.parametrize(("engine", "method"), PAIRS)
def test_settings_as_they_were(engine: str, method: str) -> None:
    document = golden(engine, method)
    valid(document)
    assert document == json.loads((GOLDEN / f"{engine}-{method}.json").read_text())


def test_an_sps_table_holds_what_was_measured() -> None:
    verify = [VerifySample(t, c, b, (0.01 + 1e-4 * t,)) for b in (1, 2, 4) for t in (b, 8, 32) for c in (512, 1024)]
    cost = fit_cost(Profile(verify, [DraftSample(c, b, (0.002,)) for b in (1, 2, 4) for c in (512, 1024)]), "table")
    table = sps_table(cost, 7, 600, 8)
    assert (
        table is not None and table["sample_batch_tokens"] == [1, 2, 4, 8, 16, 32] and table["max_batch_tokens"] == 32
    )
    for tokens in (1, 3, 8, 31, 32, 99):
        probe = max(t for t in table["sample_batch_tokens"] if t <= tokens)
        assert naive.steps_per_second(table, tokens) == pytest.approx(1 / (0.012 + 1e-4 * probe))
    assert sps_table(cost, 7, 9000, 8) is None


@pytest.mark.parametrize(
    ("engine", "change", "reason"),
    [
        ("vllm", {"requests": [1, 2, 4]}, "must name 1, 2, 3, ... requests, none left out"),
        ("vllm", {"requests": [2, 3, 4]}, "none left out"),
        ("vllm", {"k": [16, 7, 0]}, "K = 16 for 1 requests: must be 0 to 15"),
        ("sglang", {"k": [3, 3, -1]}, "K = -1 for 3 requests"),
        ("sglang", {}, r"one K for all batches, not \[0, 3, 7\]"),
        ("tensorrt-llm", {"k": [3, 7, 0]}, "K = 7 is above that of one request, 3"),
        ("tgi", {}, r'unknown engine "tgi" \(known: vllm, sglang, tensorrt-llm\)'),
    ],
)
def test_choices_that_no_engine_takes(engine: str, change: dict[str, Any], reason: str) -> None:
    choices = pd.DataFrame({"requests": [1, 2, 3], "k": [7, 3, 0], "extrapolated": False} | change)
    with pytest.raises(DdsimError, match=reason):
        engine_settings(engine, choices, "d", 15)
    with pytest.raises(DdsimError, match='unknown method "dspark"'):
        engine_settings("tensorrt-llm", choices, "d", 15, method="dspark")


# --- on the command line ------------------------------------------------------------------------------------------------


def profile(engine: Any = None, **provenance: Any) -> Profile:
    """A pass is free up to 12 tokens and dear beyond; measured to 8 requests."""
    verify = [
        VerifySample(t, c, b, (0.01 + 0.001 * max(t - 12, 0),))
        for b in (1, 2, 4, 8)
        for t in (1, 2, 4, 8, 12, 13, 16, 56)
        if t >= b
        for c in (16, 512)
    ]
    named = {} if engine is None else {"engine": engine}
    return Profile(
        verify, [DraftSample(c, b, (0.001,)) for b in (1, 2, 4, 8) for c in (16, 512)], (), named | provenance
    )


@pytest.fixture(scope="module")
def trace() -> Trace:
    return made_trace(3, prompts=6, length=60)


@pytest.fixture(scope="module")
def folder(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace and profiles of several engines."""
    path = tmp_path_factory.mktemp("settings")
    trace.save(path / "trace")
    for engine in (None, "vllm", "SGLang 0.5.23", {"name": "tensorrt-llm"}):
        name = "plain" if engine is None else engine["name"] if isinstance(engine, dict) else engine.split()[0].lower()
        fit_cost(profile(engine, drafter="hub/Drafter"), "table").save(path / f"{name}.json")
    return path


def test_acceptance_is_of_its_schema(trace: Trace) -> None:
    for held in (trace, made_trace(1, prompts=1, length=4)):  # no round of the short one sees its whole horizon
        document = json.loads(json.dumps(acceptance_profile(acceptance(held)), allow_nan=False))
        valid(document)
        for row in document["workloads"].values():
            assert sorted(row["synthetic_acceptance_rates"], reverse=True) == row["synthetic_acceptance_rates"]


@pytest.mark.parametrize(("engine", "method"), PAIRS)
def test_exports_hold_what_the_plan_chose(
    engine: str, method: str, folder: Path, trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddsim.cli.main import main

    out = tmp_path / "s.json"
    words = ["export", folder / "trace", "-p", folder / f"{engine}.json", "--context", "100", "--drafter", "x/drafter/"]
    assert main([*map(str, words), "--for", engine, "--method", method, "-o", str(out)]) == 0
    document = json.loads(out.read_text())
    valid(document)
    cost = fit_cost(profile(), "table")
    choices = best_chains(trace, cost, context=100, rule=engine_rule(engine, method))
    assert [naive.k_of(document, n) for n in range(1, 9)] == choices["k"].tolist()
    assert len(schedule_ranges(choices)) > 1 or engine_rule(engine, method) == "one"
    source = document["provenance"]
    assert source["ddsim"] == ddsim.__version__ and source["trace"] == ddsim.open_trace(folder / "trace").fingerprint
    assert (
        source["cost"]["drafter"] == "hub/Drafter"
        and source["target"] == "made up"
        and source["profile"] == f"{engine}.json"
    )
    assert ("sps_table" in document) == (method == "dspark" and engine == "sglang")
    assert " ".join(document["arguments"].split()) in " ".join(capsys.readouterr().out.split())


def test_exports_are_refused_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ddsim.cli.main import main

    out = tmp_path / "s.json"
    for words, reason in {
        "--for sglang -p vllm.json --drafter drafter": "holds costs of 'vllm', not of SGLang; profile that engine",
        "--for vllm -p sglang.json --drafter drafter": "holds costs of 'SGLang 0.5.23', not of vLLM",
        "--for vllm -p vllm.json --drafter other": "of the drafter 'hub/Drafter', not of 'other'",
        "--for sglang -p sglang.json": "--for sglang needs --profile FILE and --drafter NAME",
        "--for tensorrt-llm -p tensorrt-llm.json --drafter drafter -b 9": "up to 8 requests, not 9",
        "--for vllm -p vllm.json --drafter drafter --context 9999": "not measured for 1 requests at a context of 9999",
        "--for tensorrt-llm -p tensorrt-llm.json --drafter drafter --method dspark": 'TensorRT-LLM: unknown method "dspark"',
        "--for vllm -p vllm.json --drafter drafter --method medusa": 'unknown value "medusa"',
        "--for triton -p vllm.json": 'unknown value "triton" (known: vllm, sglang, tensorrt-llm, acceptance)',
        "--for acceptance --method eagle3": "takes no --profile, --drafter, --method",
        "--method eagle3": "are for --for ENGINE",
    }.items():
        capsys.readouterr()
        line = [str(folder / word) if word.endswith(".json") else word for word in words.split()]
        assert main(["export", str(folder / "trace"), *line, "-o", str(out)]) == 2
        (said,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error")]
        assert reason in said and not out.exists()


def test_exports_mark_what_was_not_measured(folder: Path, tmp_path: Path) -> None:
    from ddsim.cli.main import main

    out = tmp_path / "s.json"
    words = [
        "export",
        folder / "trace",
        "-p",
        folder / "plain.json",
        "--context",
        "100",
        "--drafter",
        "d",
        "-b",
        "12",
        "-o",
        out,
    ]
    assert main([*map(str, words), "--for", "vllm", "--extrapolate"]) == 0
    document = json.loads(out.read_text())
    valid(document)
    marks = [row["extrapolated"] for row in document["choices"]]
    assert marks == [False] * 8 + [True] * 4
    assert any("Of 12 numbers of requests 4 rest on extrapolated costs" in note for note in document["notes"])
    assert any("Nothing says that these costs are vLLM's" in note for note in document["notes"])
