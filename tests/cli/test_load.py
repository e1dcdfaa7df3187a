"""`ddsim serve --load` as people and programs meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Run, error, narrow


def words(files: Path, *more: Any) -> tuple[Any, ...]:
    return ("serve", files / "trace", "-p", files / "profile.json", "--load", "--running", 4, "--bootstrap", 4, *more)


def test_serve_under_load(cli: Run, files: Path, tmp_path: Path) -> None:
    rules = ("--policy", "DFlash", "--policy", "LongRun")
    answer = cli(*words(files, *rules, "--ttft", 0.5, "--tpot", 0.02, "--plot", tmp_path / "load.png"))
    assert answer.code == 0
    narrow(answer.out)
    told = " ".join(answer.out.split())
    assert told.startswith("At ") and "90 % of what the best fixed setting can serve" in told
    assert "Prefill: assumed" in told and "TTFT 0.5 s and TPOT 20 ms are kept for" in told
    assert answer.out.count("of the best fixed setting's most)") == 3 and "mised %" in answer.out
    assert (tmp_path / "load.png").stat().st_size > 10_000
    crowded = cli(*words(files, "--policy", "DFlash", "--rate", 500))
    assert "AR † *" in crowded.out and "† more arrives than it can ever serve" in crowded.out
    document = json.loads(cli(*words(files, *rules, "--rate", 1.5, "--rate", 500, "--json")).out)
    assert document["kind"] == "ddsim-load" and document["plot"] is None
    assert [(row["load"], row["policy"]) for row in document["table"]] == [
        (load, name) for load in (1.5, 500.0) for name in ("AR", "DFlash", "LongRun")
    ]
    assert document["table"][0]["goodput"] is None and document["table"][-1]["unstable"] is True
    assert "the queue grows without end" in document["sentence"]


def test_a_log_and_chunks(cli: Run, files: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "arrived_at,prompt_tokens,answer_tokens\n" + "".join(f"{i / 3},{20 + i},{5 + i}\n" for i in range(12))
    )
    more = ("--arrivals", log, "--chunk", 16, "--memory", 90, "--policy", "DFlash", "--json")
    document = json.loads(cli(*words(files, *more)).out)
    assert document["provenance"]["arrivals"] == {"requests": 12, "rate": 3.0}
    assert document["provenance"]["server"] == {"running": 4, "memory": 90, "prefill": "chunked", "chunk": 16}
    log.write_text("time\n3\n1\n")
    assert "log.csv: times run backwards: request 2 came at 1 s" in error(cli(*words(files, "--arrivals", log)))


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (("--batch", 2), "serve: --batch is for full batches, not for --load"),
        (("--rate", 0), "rate: must be a number of requests a second above 0, is 0"),
        (("--rate", "nan"), "rate: must be a number"),
        (("--arrivals", "never"), 'unknown arrivals "never" (known: poisson, bursts, or a log'),
        (("--arrivals", "none.parquet"), "none.parquet: no such file"),
        (("--running", 4096), "--running: must be at most 1,024, is 4,096; simulate a replica"),
        (("--chunk", 0), "--chunk: must be at least 1, is 0"),
        (("--prefill", "later"), '--prefill: unknown value "later"'),
        (("--prefill", "whole", "--chunk", 8), "--chunk is for --prefill chunked"),
        (("--memory", 7), "memory: 7 tokens can't hold the longest request"),
        (("--memory", 0), "--memory: must be at least 1, is 0"),
        (("--ttft", -1), "ttft: must be a number of seconds above 0, is -1"),
        (("--running", 0), "--running: must be at least 1, is 0"),
    ],
)
def test_bad_options_get_one_line(cli: Run, files: Path, more: tuple[Any, ...], wanted: str) -> None:
    assert wanted in error(cli(*words(files, *more)))


def test_options_of_the_load_need_it(cli: Run, files: Path) -> None:
    plain = ("serve", files / "trace", "-p", files / "profile.json")
    assert "serve: --rate, --ttft need --load" in error(cli(*plain, "--rate", 1, "--ttft", 1))
    assert "serve: --chunk needs --load" in error(cli(*plain, "--chunk", 16))


def test_map_of_settings(cli: Run, files: Path, tmp_path: Path) -> None:
    plain = ("plan", files / "trace", "-p", files / "profile.json", "--load")
    answer = cli(*plain, "--plot", tmp_path / "map.png")
    assert answer.code == 0
    narrow(answer.out)
    told = " ".join(answer.out.split())
    assert told.startswith("Our decoder: ") and "Best nodes / % lost one step off" in told
    assert "all" in answer.out.split() and (tmp_path / "map.png").stat().st_size > 10_000
    document = json.loads(cli(*plain, "--engine", "vllm", "-b", 1, "--context", 512, "--json").out)
    assert document["kind"] == "ddsim-load-map" and {row["context"] for row in document["table"]} == {512}
    assert "Nothing says that these costs are vLLM's" in " ".join(document["notes"])
    hatched = json.loads(cli(*plain, "--extrapolate", "--json").out)
    assert any(row["extrapolated"] for row in hatched["table"])
    assert "no cell of the map was measured" in error(cli(*plain, "-b", 64))
    assert "--load takes no --against or --calibrate" in error(cli(*plain, "--against", 3))
    assert "LongRun has to solve for something" in error(cli(*plain, "--policy", "LongRun"))


def test_a_sweep_of_loads(cli: Run, files: Path, tmp_path: Path) -> None:
    plain = ("sweep", files / "trace", "-p", files / "profile.json", "--policy", "DFlash")
    more = ("--load", "--running", 4, "--rate", 1.5, "--rate", 500, "--bootstrap", 4)
    answer = cli(*plain, *more, "--out", tmp_path / "loads.csv")
    assert answer.code == 0 and "The policy of each that can serve most (4 rows in all)" in " ".join(answer.out.split())
    alone = json.loads(cli(*words(files, "--policy", "DFlash", "--rate", 1.5, "--rate", 500, "--json")).out)["table"]
    rows = json.loads(cli(*plain, *more, "--json").out)["table"]
    assert [{k: v for k, v in row.items() if k not in ("trace", "profile", "seed")} for row in rows] == alone
    assert "sweep: --rate needs --load" in error(cli(*plain, "--rate", 1))
    assert "sweep: --batch is for full batches, not for --load" in error(cli(*plain, "--load", "--batch", 1))
    assert "rate: must be a number of requests a second above 0, is 0" in error(cli(*plain, "--load", "--rate", 0))
