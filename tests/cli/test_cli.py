"""The command line as people and programs meet it: answers, formats, exit codes, one-line errors."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ddsim
from ddsim.cli.app import app
from ddsim.cli.main import main

Run = Callable[..., Any]  # the fixture of conftest.py
COMMAND = [sys.executable, "-m", "ddsim"]
COMMANDS = sorted(c.name or c.callback.__name__ for c in app.registered_commands if c.callback)


def error(answer: Any, code: int = 2) -> str:
    """The one line that a failed run printed; nothing else may have been."""
    assert answer.code == code, answer
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, answer.err
    assert "Traceback" not in answer.err
    return lines[0]


def narrow(text: str) -> None:
    """No line is wider than 80 columns, but for those that name a file."""
    assert max(len(line) for line in text.splitlines() if not line.startswith("Wrote ")) <= 80, text


# --- help, start-up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_in_80_columns(cli: Run, command: str) -> None:
    answer = cli(command, "--help")
    assert answer.code == 0
    assert f"ddsim {command}" in answer.out.split("Example")[1]
    narrow(answer.out)


def test_help_lists_every_command(cli: Run) -> None:
    answer = cli("--help")
    assert answer.code == 0
    wanted = (
        "demo plan replay fit calibrate export report compare bench serve sweep rules draw record decode profile validate convert "
        "train-drafter"
    )
    assert set(wanted.split()) == set(COMMANDS)
    assert all(f" {name} " in answer.out for name in COMMANDS)
    narrow(answer.out)


def test_every_command_has_json_and_curves_have_plot(cli: Run) -> None:
    for command in COMMANDS:
        assert "--json" in cli(command, "--help").out, command
    for command in ("demo", "plan", "replay", "compare", "fit", "calibrate", "serve", "profile", "validate"):
        assert "--plot" in cli(command, "--help").out, command


def test_start_up_imports_nothing_heavy() -> None:
    code = (
        "import sys, ddsim.cli.main as c; c.main(['--help']); "
        "heavy = {'numpy', 'pandas', 'scipy', 'numba', 'matplotlib', 'pyarrow', 'torch'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(cli: Run) -> None:
    from ddsim import __version__

    answer = cli("--version")
    assert (answer.code, answer.out, answer.err) == (0, f"ddsim {__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    words = {"COMP_WORDS": "ddsim re", "COMP_CWORD": "1"} if shell == "bash" else {"_TYPER_COMPLETE_ARGS": "ddsim re"}
    environment = (
        os.environ | words | {"_DDSIM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    )
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert {"replay", "record", "report"} <= set(done.stdout.replace('"', " ").replace(":", " ").split()), done


def test_completion_knows_policies() -> None:
    environment = os.environ | {
        "COMP_WORDS": "ddsim replay trace --policy Lo",
        "COMP_CWORD": "4",
        "_DDSIM_COMPLETE": "complete_bash",
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert "LongRun" in done.stdout


# --- answers --------------------------------------------------------------------------------------------------------


def test_replay(cli: Run, files: Path, tmp_path: Path) -> None:
    answer = cli(
        "replay", files / "trace", "--profile", files / "profile.json", "--plot", tmp_path / "r.png", "-o", tmp_path / "r.csv"
    )  # fmt: skip
    assert answer.code == 0
    for name in (
        "AR",
        "DFlash",
        "DDTree(8)",
        "DDTree(64)",
        "CaDDTree",
        "RoundRatio",
        "LongRun *",
        "BestFixed *",
        "Hindsight",
    ):
        assert answer.out.count(f"\n {name}  ") == 3, name  # chat, code, pooled
    assert answer.out.count("\n* tuned on the prompts that it is judged on") == 1
    narrow(answer.out)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.csv").read_text().startswith("workload,policy,")
    assert all(
        line.startswith(("warning: cost extrapolated: ", "warning: profile: no buckets"))
        for line in answer.err.splitlines()
    )


def test_replay_of_chosen_policies_as_json(cli: Run, files: Path) -> None:
    answer = cli(
        "replay", files / "trace", "-p", files / "profile.json", "--policy", "AR", "--policy", "DDTree:24", "-w", "chat",
        "--kind", "table", "--json", "--bootstrap", 50,
    )  # fmt: skip
    assert answer.code == 0
    document = json.loads(answer.out)
    assert [row["policy"] for row in document["pooled"]] == ["AR", "DDTree(24)"]
    assert document["pooled"][0]["speedup"] == 1
    assert document["provenance"]["cost"]["kind"] == "table"


def test_plan(cli: Run, files: Path, tmp_path: Path) -> None:
    words = ("plan", files / "trace", "-p", files / "profile.json", "--bootstrap", 100)
    answer = cli(*words, "--plot", tmp_path / "plan.svg")
    assert answer.code == 0
    narrow(answer.out)
    document = json.loads(cli(*words, "--json").out)
    assert " ".join(answer.out.split()).startswith(" ".join((document["sentence"], *document["details"])))
    assert f"{document['best_budget']} nodes" in document["sentence"]
    assert "<svg" in (tmp_path / "plan.svg").read_text()


def test_patterns_and_several_traces_make_one(cli: Run, files: Path, tmp_path: Path) -> None:
    from ddsim.trace.trace import open_trace

    whole = open_trace(files / "trace")
    for name in whole.workloads:
        whole.select(workload=name).save(tmp_path / f"{name}-t0")
    (tmp_path / "notes.txt").write_text("not a trace")
    for traces in ([f"{tmp_path}/*-t0"], [tmp_path / "chat-t0", tmp_path / "code-t0"], [tmp_path]):
        answer = cli("export", *traces, "-o", "-", "--format", "jsonl")
        assert answer.code == 0, answer.err
        rows = [json.loads(line) for line in answer.out.splitlines()]
        assert [row["workload"] for row in rows] == ["chat"] * 12 + ["code"] * 12


def test_fit(cli: Run, files: Path, tmp_path: Path) -> None:
    answer = cli("fit", files / "profile.json", "-o", tmp_path / "cost.json", "--plot", tmp_path / "fit.pdf")
    assert answer.code == 0
    assert answer.out.startswith("Cost model '")
    narrow(answer.out)
    assert (tmp_path / "fit.pdf").read_bytes().startswith(b"%PDF")
    again = cli("plan", files / "trace", "-p", tmp_path / "cost.json", "--bootstrap", 20, "--json")
    direct = cli("plan", files / "trace", "-p", files / "profile.json", "--bootstrap", 20, "--json")
    assert json.loads(again.out)["sentence"] == json.loads(direct.out)["sentence"]


def test_fit_draws_other_profiles_beside(cli: Run, files: Path, tmp_path: Path) -> None:
    profile, out = files / "profile.json", tmp_path / "both.svg"
    assert cli("fit", profile, "--beside", profile, "--plot", out).code == 0
    assert b"<svg" in out.read_bytes()
    assert "give --plot FILE too" in error(cli("fit", profile, "--beside", profile))
    assert cli("fit", profile, "-o", tmp_path / "cost.json").code == 0
    assert "holds a fitted model" in error(cli("fit", profile, "--beside", tmp_path / "cost.json", "--plot", out))


def test_draw(cli: Run, files: Path, tmp_path: Path) -> None:
    answer = cli("draw", files / "trace", "--budget", 16, "-o", tmp_path / "tree.svg")
    assert answer.code == 0 and answer.out.startswith("Of 16 drafted tokens, verified in one pass, ")
    narrow(answer.out)
    assert b"<svg" in (tmp_path / "tree.svg").read_bytes()
    words = (
        "draw",
        files / "trace",
        "--sequence",
        1,
        "--position",
        3,
        "--budget",
        16,
        "-o",
        tmp_path / "t.png",
        "--json",
    )
    document = json.loads(cli(*words).out)
    assert (document["sequence"], document["position"], len(document["texts"])) == (1, 3, 17)
    assert all(document["parents"][child] == node for node, child in itertools.pairwise(document["accepted"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "tree.gif"), "--out tree.gif: can't tell the format"),
        (("--position", 3), "--position needs --sequence"),
        (("--sequence", 999), "sequence 999: the trace has sequences 0 to"),
        (("--budget", 65), "budget 65"),
    ],
)
def test_draw_refuses(cli: Run, files: Path, tmp_path: Path, words: tuple[Any, ...], said: str) -> None:
    out = () if "-o" in words else ("-o", tmp_path / "tree.svg")
    assert said in error(cli("draw", files / "trace", *words, *out))


def test_fit_fails_a_tolerance_with_exit_code_1(cli: Run, files: Path) -> None:
    assert cli("fit", files / "profile.json", "--tolerance", 0.2, "--json").code == 0
    answer = cli("fit", files / "profile.json", "--tolerance", 1e-6, "--json")
    assert answer.code == 1
    assert json.loads(answer.out)["model"]["kind"] == "ddsim-cost"
    assert answer.err.splitlines()[-1].startswith("failed: held-out error ")


def test_calibrate(cli: Run, files: Path, tmp_path: Path) -> None:
    for kind in ("isotonic", "temperature"):
        answer = cli(
            "calibrate", files / "trace", "--kind", kind, "-o", tmp_path / "c.json", "--plot", tmp_path / "c.png"
        )
        assert answer.code == 0
        narrow(answer.out)
        assert json.loads((tmp_path / "c.json").read_text())["calibration"] == kind
    document = json.loads(cli("calibrate", files / "trace", "--json").out)
    assert [row["budget"] for row in document["held_out"]] == [1, 2, 4, 8, 16, 32, 64]
    assert document["by_branch"][0]["branch"] == "best path" and "by_branch_after" not in document


def test_calibrate_by_the_path(cli: Run, files: Path, tmp_path: Path) -> None:
    words = ("calibrate", files / "trace", "--path", "--leave-workload-out", "-o", tmp_path / "c.json")
    answer = cli(*words, "--plot", tmp_path / "c.png")
    assert answer.code == 0 and "other workloads" in answer.out.replace("\n", " ") and "best path" in answer.out
    narrow(answer.out)
    assert json.loads((tmp_path / "c.json").read_text())["calibration"] == "path"
    document = json.loads(cli(*words, "--json").out)
    rows = [(row["workload"], row["policy"]) for row in document["gains"]]
    assert rows == [(w, p) for w in ("chat", "code", "all") for p in ("DFlash", "DDTree(16)", "DDTree(64)")]
    assert [(row["workload"], row["policy"]) for row in document["gains_from_other_workloads"]] == rows
    assert len(document["by_branch"]) == len(document["by_branch_after"]) == 6
    assert json.loads(cli("calibrate", files / "trace", "--kind", "path", "--json").out)["gains"] == document["gains"]
    assert "--leave-workload-out: only with --path" in error(cli("calibrate", files / "trace", "--leave-workload-out"))
    assert "--cluster: only with --path" in error(cli("calibrate", files / "trace", "--cluster", "local"))


def test_dash_is_standard_output(cli: Run, files: Path) -> None:
    document = json.loads(cli("fit", files / "profile.json", "-o", "-").out)
    assert document["kind"] == "ddsim-cost"
    done = subprocess.run([*COMMAND, "fit", files / "profile.json", "--plot", "-"], capture_output=True)
    assert done.stdout.startswith(b"\x89PNG")
    assert b"Cost model" in done.stderr
    assert "standard output" in error(cli("fit", files / "profile.json", "-o", "-", "--json"))
    assert "standard output" in error(cli("fit", files / "profile.json", "-o", "-", "--plot", "-"))


def test_export(cli: Run, files: Path, tmp_path: Path) -> None:
    answer = cli("export", files / "trace", "-o", tmp_path / "s.parquet")
    assert answer.code == 0
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 24
    answer = cli("export", files / "trace", "--what", "candidates", "--limit", 5, "-o", "-")
    assert answer.out.splitlines()[0] == "sequence,position,context,token,depth,rank,token_id,logprob"
    assert len(answer.out.splitlines()) == 6


def test_export_of_budgets(cli: Run, files: Path, tmp_path: Path) -> None:
    words = ("export", files / "trace", "--what", "budgets", "-b", 16, "-b", 1, "--context", 512, "-o", "-")
    document = json.loads(cli(*words, "-p", files / "profile.json").out)
    assert (document["contexts"], document["batches"]) == ([512], [1, 16])
    ((one, sixteen),) = document["budgets"]
    assert one > sixteen > 0
    assert document["extrapolated"] == [[False, True]]  # batch 1 was measured
    assert document["provenance"]["acceptance"].startswith("what the recording accepted")
    assert "--profile" in error(cli(*words))
    words = ("export", files / "trace", "--what", "budgets", "-p", files / "profile.json", "-o", tmp_path / "b.json")
    answer = cli(*words)  # as far as measured
    document = json.loads((tmp_path / "b.json").read_text())
    assert (document["contexts"], document["batches"]) == ([256, 512, 1024, 2048, 4096], [1])
    assert document["extrapolated"] == [[False]] * 5 and "extrapolated" not in answer.out + answer.err
    answer = cli(*words, "-b", 1, "-b", 4, "-b", 8, "--context", 512, "--context", 9000)
    assert "Of 6 budgets 5 rest on extrapolated costs" in " ".join(answer.out.split())
    assert answer.err.count("warning: cost extrapolated") == 1


@pytest.fixture
def shipped(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up files in place of those that come with ddsim."""
    import ddsim.demo

    paths = {ddsim.demo.TRACE: files / "trace", ddsim.demo.MARGINALS: files / "trace"}
    paths[ddsim.demo.PROFILE] = files / "profile.json"
    monkeypatch.setattr(ddsim.demo, "data", paths.__getitem__)


@pytest.mark.usefixtures("shipped")
def test_demo(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cli("demo")
    assert answer.code == 0
    narrow(answer.out)
    assert "Hindsight" in answer.out
    assert [p.name for p in tmp_path.iterdir()] == ["ddsim-demo.png"]
    document = json.loads(cli("demo", "--json", "--plot", "other.svg").out)
    assert document["plan"]["sentence"] in " ".join(answer.out.split())
    assert len(document["replay"]["pooled"]) == 12
    path = document["path"]["sentence"]
    assert f"Trees that know their path: {path[0].lower()}{path[1:]}" in " ".join(answer.out.split())
    assert ": 0.0 %, on the same " in path  # here both recordings are one
    assert (tmp_path / "other.svg").exists()


def test_demo_without_its_data(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ddsim.demo

    monkeypatch.setattr(ddsim.demo, "TRACE", "not-there")
    monkeypatch.chdir(tmp_path)
    assert "not-there: is missing from this installation" in error(cli("demo"))
    assert list(tmp_path.iterdir()) == []


def test_help_of_serve_names_its_policies(cli: Run) -> None:
    shown = " ".join(cli("serve", "--help").out.replace("│", " ").split())
    assert "FairRatio, Share:RoundRatio, Uniform:RoundRatio" in shown and "Hindsight" not in shown


def test_serve(cli: Run, files: Path, tmp_path: Path) -> None:
    words = ("serve", files / "trace", "-p", files / "profile.json", "-b", 2, "--bootstrap", 5)
    answer = cli(*words, "--plot", tmp_path / "s.png")
    assert answer.code == 0
    narrow(answer.out)
    assert "2 requests together" in answer.out
    assert "AR *" in answer.out and answer.out.count("* costs extrapolated") == 1  # measured at batch 1
    assert answer.err.count("warning: cost extrapolated") == 1
    plain = cli("serve", files / "trace", "-p", files / "profile.json", "--policy", "AR", "--bootstrap", 0)
    assert "1 request at a time" in plain.out and "together" not in plain.out and "*" not in plain.out
    assert (tmp_path / "s.png").exists()
    document = json.loads(cli(*words, "--policy", "DDTree:8", "--json").out)
    assert [row["policy"] for row in document["table"]] == ["AR", "DDTree(8)"]
    words = (*words, "--json")
    chosen = ("--policy", "FairRatio", "--policy", "Share:LongRun", "--policy", "uniform:RoundRatio")
    document = json.loads(cli(*words, *chosen).out)
    assert [row["policy"] for row in document["table"]] == ["AR", "FairRatio", "LongRun share", "RoundRatio uniform"]
    assert "BestFixed, FairRatio, Share, Uniform" in error(cli(*words, "--policy", "Magic"))
    document = json.loads(cli(*words, "--policy", "rules").out)
    assert {"AR", "BestSchedule", "DSpark", "AdaptiveVerification", "AdaptiveSteps", "FairRatio"} <= {
        r["policy"] for r in document["table"]
    }
    assert "as in Share:RoundRatio" in error(cli(*words, "--policy", "Share"))
    assert "Hindsight" in error(cli(*words, "--policy", "Hindsight"))
    assert "--batch" in error(cli(*words, "-b", 0))


def test_report(cli: Run, files: Path, tmp_path: Path) -> None:
    words = ("report", files / "trace", "-p", files / "profile.json", "--bootstrap", 20, "-o")
    answer = cli(*words, tmp_path / "report.html")
    assert (answer.code, answer.out) == (0, f"Wrote {tmp_path}/report.html\n")
    page = (tmp_path / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "doesn't exist" in error(cli(*words, tmp_path / "no" / "r.html"))


def test_compare_and_a_report_with_both_trees(cli: Run, files: Path, tmp_path: Path) -> None:
    recording = ddsim.open_trace(files / "trace")
    worse = [  # the same texts, drafted with less: only the best candidate of each depth stays
        (block.tokens, *(np.stack(x) for x in zip(*(best_of(block, p) for p in range(len(block))), strict=True)))
        for block in (next(recording.subset([n]).blocks()) for n in range(len(recording.sequences)))
    ]
    tokens, ids, logprobs = (list(x) for x in zip(*worse, strict=True))
    infos = recording.sequences
    ddsim.Trace.from_arrays(
        tokens, ids, logprobs, workload=[i.workload for i in infos], prompt_id=[i.prompt_id for i in infos],
        context0=[i.prompt_tokens for i in infos], temperature=[i.temperature for i in infos], max_budget=64,
    ).save(tmp_path / "worse")  # fmt: skip
    words = ("compare", tmp_path / "worse", files / "trace", "--budget", 16, "--budget", 4, "--bootstrap", 50)
    answer = cli(*words, "--plot", tmp_path / "gain.svg")
    assert answer.code == 0 and (tmp_path / "gain.svg").exists()
    narrow(answer.out)
    document = json.loads(cli(*words, "--json").out)
    assert document["sentence"].split(":")[0] in " ".join(answer.out.split())
    assert document["prompts"] == len({(i.workload, i.prompt_id) for i in infos}) and not document["notes"]
    gains = {
        row["policy"]: row["gain"] for row in document["gains"] if row["workload"] == document["gains"][-1]["workload"]
    }
    assert gains["DFlash"] == gains["DDTree(1)"] == 0 < gains["DDTree(16)"]
    one, other = (recording.subset([n]) for n in (0, 1))
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    assert "share no text" in error(cli("compare", tmp_path / "one", tmp_path / "other"))
    words = ("report", files / "trace", "-p", files / "profile.json", "--bootstrap", 20, "-o", tmp_path / "r.html")
    assert cli(*words, "--beside", tmp_path / "worse").code == 0
    page = (tmp_path / "r.html").read_text()
    assert all(f'<figure id="{name}"' in page for name in ("drafts", "drafts-first", "drafts-second"))
    assert "What the tree holds" in page and "no such trace" in error(cli(*words, "--beside", tmp_path / "none"))


def best_of(block: Any, position: int) -> tuple[np.ndarray, np.ndarray]:
    """[L, 1] best candidate of each depth and its log-probability, -inf where none was kept."""
    rows = block.rows(position)
    ids = np.array([[row[0][0] if len(row[0]) else 0] for row in rows])
    return ids, np.array([[row[1][0] if len(row[0]) else -np.inf] for row in rows])


def test_bench(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import ddsim.bench as module

    figures = (
        module.Figure("tree of 1,024 nodes", 5.0, "ms", 8.0),
        module.Figure("replay of 10,000 positions", 0.9, "s", 0.4),
        module.Figure("for information", 3.0, "s", None),
    )
    asked: list[dict[str, Any]] = []

    def run_bench(**options: Any) -> module.BenchReport:
        asked.append(options)
        options["progress"]("trees")
        return module.BenchReport(figures, {"processor": "made up"})

    monkeypatch.setattr(module, "run_bench", run_bench)
    answer = cli("bench", "--quick")
    assert (answer.code, answer.err) == (0, "")
    assert "NO" in answer.out and "made up" in answer.out
    narrow(answer.out)
    answer = cli("bench", "--check", "--json")
    assert answer.code == 1
    assert answer.err == "failed: targets missed: replay of 10,000 positions\n"
    assert [f["meets"] for f in json.loads(answer.out)["figures"]] == [True, False, None]
    assert [options["quick"] for options in asked] == [True, False]


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_words(cli: Run, files: Path) -> None:
    trace, profile = files / "trace", files / "profile.json"
    cases = {
        ("fitt",): "No such command 'fitt'",
        ("fit",): "Missing argument 'PROFILE'",
        ("fit", profile, "--colour"): "No such option",
        ("fit", profile, "--seed", "one"): "--seed",
        ("plan", trace): "Missing option '--profile'",
        ("replay", trace, "-p", profile, "--policy", "Magic"): "known: AR, DFlash, DDTree, CaDDTree",
        ("replay", trace, "-p", profile, "--policy", "DDTree"): "DDTree needs a budget",
        ("replay", trace, "-p", profile, "--policy", "FairRatio"): "decoded together, as by ddsim serve",
        ("replay", trace, "-p", profile, "--policy", "DDTree:65"): "up to 64 only",
        ("replay", trace, "-p", profile, "--policy", "AR", "--policy", "AR"): "'AR'",
        ("replay", trace, "-p", profile, "--kind", "cubic"): "known: auto, steps, roofline, convex, isotonic, table",
        ("replay", trace, "-p", profile, "--calibrate", "platt"): "known: isotonic, temperature",
        ("replay", trace, "-p", profile, "-w", "poetry"): "the trace has workloads chat, code",
        ("replay", trace, "-p", profile, "--plot", "figure.bmp"): "end the name in .png, .svg, .pdf",
        ("export", trace, "--what", "rows", "-o", "x.csv"): "known: sequences, candidates, budgets",
        ("export", trace, "-o", "x.xlsx"): "end the name in",
        ("export", trace, "-o", "x.csv", "--format", "json"): "disagree",
        ("export", trace, "--what", "candidates", "-o", "x.json"): ".csv or .parquet",
    }
    for words, wanted in cases.items():
        line = error(cli(*words))
        assert wanted in line, (words, line)
        assert len(line) < 250, line


def test_missing_files(cli: Run, files: Path, tmp_path: Path) -> None:
    assert "no-trace" in error(cli("plan", tmp_path / "no-trace", "-p", files / "profile.json"))
    assert "no-profile.json: no such file" in error(cli("plan", files / "trace", "-p", tmp_path / "no-profile.json"))
    assert "no-profile.json: no such file" in error(cli("fit", tmp_path / "no-profile.json"))
    assert str(tmp_path) in error(cli("plan", f"{tmp_path}/*-t9", "-p", files / "profile.json"))
    assert "doesn't exist" in error(cli("fit", files / "profile.json", "-o", tmp_path / "no" / "cost.json"))
    assert "is a folder" in error(cli("fit", files / "profile.json", "-o", tmp_path))


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    """A trace of one's own to spoil."""
    return Path(shutil.copytree(files / "trace", tmp_path / "copy", ignore=shutil.ignore_patterns(".*")))


def test_truncated_trace(cli: Run, files: Path, copy: Path, tmp_path: Path) -> None:
    shard = copy / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-2000])
    out = tmp_path / "r.csv"
    line = error(cli("replay", copy, "-p", files / "profile.json", "-o", out))
    assert "part-00000.parquet" in line and "truncated" in line
    assert not out.exists()


def test_edited_trace(cli: Run, files: Path, copy: Path, tmp_path: Path) -> None:
    shard = copy / "part-00000.parquet"
    table = pq.read_table(shard)
    tokens = table["token"].to_pylist()
    tokens[7] = (tokens[7] + 1) % 40
    column = table.schema.get_field_index("token")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(tokens, pa.int32())), shard)
    for words in (
        ("replay", copy, "-p", files / "profile.json", "-o", tmp_path / "r.csv"),
        ("calibrate", copy, "-o", tmp_path / "c.json"),
        ("export", copy, "--what", "candidates", "-o", tmp_path / "c.parquet"),
    ):
        line = error(cli(*words))
        assert "part-00000.parquet" in line and "edited" in line
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]  # nothing half-written


def test_profile_with_one_token_count(cli: Run, files: Path, tmp_path: Path) -> None:
    document = json.loads((files / "profile.json").read_text())
    document["verify"] = [v for v in document["verify"] if v["tokens"] == 16]
    (tmp_path / "p.json").write_text(json.dumps(document))
    for words in (
        ("fit", tmp_path / "p.json", "-o", tmp_path / "c.json"),
        ("plan", files / "trace", "-p", tmp_path / "p.json"),
    ):
        assert "verify needs at least 2 token counts at context 256, batch 1" in error(cli(*words))
    assert not (tmp_path / "c.json").exists()


def test_profile_that_is_something_else(cli: Run, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text((files / "profile.json").read_text()[:-300])
    assert "truncated" in error(cli("fit", path))
    path.write_text('{"kind": "invoice"}')
    assert '"invoice"' in error(cli("plan", files / "trace", "-p", path))
    path.write_bytes(b"\xff\xfe\x00binary")
    assert "text" in error(cli("fit", path))


# --- with a model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ``target``, ``drafter`` and ``prompts.jsonl``."""
    pytest.importorskip("torch", reason="needs the reference extra")
    from tests.reference import tiny_models

    folder = tmp_path_factory.mktemp("models")
    tiny_models.save(folder)
    lines = [{"id": f"p{i}", "workload": "toy", "prompt": f"word{i} word{i + 1}"} for i in range(3)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_record(cli: Run, models: Path, tmp_path: Path) -> None:
    words = (
        "record", "--target", models / "target", "--drafter", models / "drafter", "--prompts", models / "prompts.jsonl",
        "-o", tmp_path / "trace", "--max-new-tokens", 12, "--max-budget", 16,
    )  # fmt: skip
    document = json.loads(cli(*words, "--limit", 2, "--json").out)
    assert (document["sequences"], document["positions"], document["max_budget"]) == (2, 24, 16)
    answer = cli(*words)  # goes on with the third prompt
    assert answer.code == 0
    assert "3 sequences, 36 positions, exact to budget 16" in answer.out


def test_record_of_given_answers(cli: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    told = {"messages": [{"role": "user", "content": "word1"}, {"role": "assistant", "content": "word2 word3 word4"}]}
    log.write_text(json.dumps(told) + "\n" + json.dumps({"prompt": [1, 2], "answer": [3, 4, 5, 6]}) + "\n")
    words = (
        "record",
        "--target",
        models / "target",
        "--drafter",
        models / "drafter",
        "--max-budget",
        16,
        "-o",
        tmp_path / "t",
    )
    monkeypatch.setenv("RANK", "00")  # the first of one process, however it is spelt
    document = json.loads(cli(*words, "--answers", log, "--json").out)
    assert (document["sequences"], document["positions"], document["workloads"]) == (2, 7, ["log"])
    monkeypatch.setenv("RANK", "zero")
    assert "RANK='zero': must be a whole number" in error(cli(*words, "--answers", log))
    monkeypatch.delenv("RANK")
    assert "--answers FILE" in error(cli(*words, "--answers", log, "--prompts", "chat"))
    log.write_text('{"prompt": "word1", "answer": "word2"}\n{"prompt": "word1"}\n')
    assert f"{log}, line 2: has no answer" in error(cli(*words[:-1], tmp_path / "other", "--answers", log))
    assert not (tmp_path / "other").exists()


def test_decode(cli: Run, models: Path, files: Path) -> None:
    words = ("decode", "word1 word2", "word3", "--target", models / "target", "--max-new-tokens", 9)
    drafted = (*words, "--drafter", models / "drafter", "--policy")
    plain = json.loads(cli(*words, "--policy", "AR", "--json").out)["answers"]
    assert [len(answer["tokens"]) for answer in plain] == [9, 9]
    for policy, batch in (("DDTree:8", 1), ("DFlash", 2)):
        answers = json.loads(cli(*drafted, policy, "-b", batch, "--json").out)["answers"]
        found = {answer["prompt_id"]: answer["tokens"] for answer in answers}
        assert found == {answer["prompt_id"]: answer["tokens"] for answer in plain}
    answer = cli(*drafted, "DDTree:8", "--no-mark")
    assert answer.code == 0
    assert answer.out == f"{plain[0]['text']}\n\n{plain[1]['text']}\n"  # nothing but the texts
    assert answer.err.count("9 tokens in ") == answer.err.count("first token after ") == 2 and "(prompt " in answer.err
    assert [line for line in answer.err.splitlines() if " tokens a round" not in line] == ["text-1", "text-2"]
    assert all(0 < answer["seconds"]["prefill"] <= answer["seconds"]["ttft"] for answer in plain)
    assert plain[1]["seconds"]["ttft"] > plain[0]["seconds"]["ttft"] + plain[0]["seconds"]["decode"]  # they take turns
    assert "--buckets 1,x: must be token counts" in error(cli(*drafted, "DDTree:8", "--buckets", "1,x"))
    assert "buckets 0, 4: give token counts from 1" in error(cli(*drafted, "DDTree:8", "--buckets", "4,0"))
    marked = cli(*drafted, "DDTree:8").out
    assert marked.replace("[", "").replace("]", "") == answer.out != marked
    for policy, wanted in (
        ("Hindsight", "replay"),
        ("LongRun", "profile"),
        ("Magic", "known: AR"),
        ("FairRatio", "together"),
    ):
        assert wanted in error(cli(*drafted, policy))
    answers = json.loads(cli(*drafted, "Share:RoundRatio", "-b", 2, "-p", files / "profile.json", "--json").out)[
        "answers"
    ]
    assert {answer["prompt_id"]: answer["tokens"] for answer in answers} == found
    assert "needs a drafter" in error(cli(*words))
    assert "no prompts" in error(cli("decode", "--target", models / "target", "--policy", "AR"))


def test_profile(cli: Run, models: Path, tmp_path: Path) -> None:
    words = (
        "profile", "--target", models / "target", "--drafter", models / "drafter", "-o", tmp_path / "p.json", "--max-tokens", 16,
        "--context", 16, "--context", 32, "--repeats", 2, "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    answer = cli(*words, "--plot", tmp_path / "p.png")
    assert answer.code == 0, answer
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "p.json").read_text())
    assert {v["context"] for v in document["verify"]} == {16, 32} and len(document["prefill"]) == 5
    assert json.loads(cli(*words, "--json").out)["out"] == str(tmp_path / "p.json")
    assert "seed differs" in error(cli(*words, "--seed", 3))
    assert "name a file" in error(cli("profile", "--target", models / "target", "-o", "-"))
    assert "--buckets ,: must be token counts" in error(cli(*words, "--buckets", ","))
    assert "unknown" in error(cli(*words, "--widen", "huge"))
    assert "no --widen or --buckets" in error(cli(*words, "--engine", "vllm", "--buckets", "4"))


def test_every_command_with_a_model_names_it_with_target(cli: Run) -> None:
    for command in ("record", "decode", "profile", "validate", "convert", "train-drafter"):
        assert "--target" in cli(command, "--help").out, command
    usage = cli("profile", "--help").out.split("Usage: ")[1].splitlines()[0].strip()
    assert usage == "ddsim profile [OPTIONS]"
    for more in ((), ("--target", "qwen3-8b")):
        line = error(cli("profile", "smollm2-135m", "-o", "p.json", *more))
        assert line == "error: unexpected 'smollm2-135m': name the model with --target, as in --target smollm2-135m"
    assert "Missing option '--target'" in error(cli("profile", "-o", "p.json"))


def test_convert(cli: Run, models: Path, tmp_path: Path) -> None:
    words = ("convert", "--target", models / "target", "--drafter", models / "drafter", "-o", tmp_path / "pair")
    answer = cli(*words)
    assert answer.out == f"Wrote {tmp_path / 'pair' / 'target'}\nWrote {tmp_path / 'pair' / 'drafter'}\n"
    assert "isn't empty; name a new folder" in error(cli(*words))
    document = json.loads(cli(*words[:3], "-o", tmp_path / "alone", "--no-tokenizer", "--json").out)
    assert document["target"] == str(tmp_path / "alone") and document["drafter"] is None and not document["tokenizer"]
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == ["config.json", "model.safetensors"]
    assert "--prompts are for --widen" in error(cli(*words, "--prompts", "chat"))
    assert "needs the drafter" in error(cli(*words[:3], "-o", tmp_path / "x", "--widen", "qwen3-8b"))


def older(validation: dict[str, Any]) -> dict[str, Any]:
    """A validation as it was written before it had intervals."""
    rows = []
    for row in validation["rows"]:
        sides = {
            s: {k: v for k, v in row[s].items() if not k.endswith(("_low", "_high"))} for s in ("predicted", "measured")
        }
        rows.append({k: v for k, v in row.items() if k not in ("inside", "contributions")} | sides)
    return {k: v for k, v in validation.items() if k not in ("inside", "rule_ms_per_round")} | {"rows": rows}


def test_validate(cli: Run, models: Path, tmp_path: Path) -> None:
    words = (
        "validate", "--target", models / "target", "--drafter", models / "drafter", "-o", tmp_path / "v.json",
        "--prompts", models / "prompts.jsonl", "--limit", 2, "--max-new-tokens", 8, "--context", 16, "--context", 32,
        "--repeats", 1, "--max-budget", 15, "--device", "cpu", "--dtype", "float32", "--policy", "AR",
    )  # fmt: skip
    assert cli(*words, "--policy", "DDTree:7", "--tolerance", 1000).code == 0
    show = ("validate", "--show", tmp_path / "v.json")
    answer = cli(*show, "--plot", tmp_path / "v.png")
    assert answer.code == 0, answer
    narrow(answer.out)
    assert answer.out.startswith("Of 2 predictions, a policy and workload each, tokens/s are ")
    assert "DDTree(7)" in answer.out and "2 have the autoregressive text" in " ".join(answer.out.split())
    (tmp_path / "old.json").write_text(json.dumps(older(json.loads((tmp_path / "v.json").read_text()))))
    narrow(cli("validate", "--show", tmp_path / "old.json", "--plot", tmp_path / "old.png").out)
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    answer = cli(*show, "--tolerance", 0, "--json")
    assert answer.code == 1 and answer.err.startswith("failed: tokens/s")
    assert json.loads(answer.out)["kind"] == "ddsim-validation"
    answer = cli(*words, "--tolerance", 0, "--json")
    assert answer.code == 1 and not json.loads(answer.out)["passed"]
    assert "DDTree needs a budget" in error(cli(*words, "--policy", "DDTree"))
    answer = cli(*words, "--policy", "DFlash", "--temperature", 1)
    assert answer.code == 0 and "With other dice" in answer.out
    narrow(answer.out)
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps(json.loads((tmp_path / "v.json").read_text())["profile"]))
    assert "so what sampling takes isn't that" in error(cli(*words, "--profile", profile))


def test_validate_show_refuses_other_files(cli: Run, files: Path, tmp_path: Path) -> None:
    assert "not a ddsim-validation or ddsim-engine-validation file" in error(
        cli("validate", "--show", files / "profile.json")
    )
    (tmp_path / "v.json").write_text('{"kind": "ddsim-validation", "schema_version": 1, "rows": []}')
    assert "damaged" in error(cli("validate", "--show", tmp_path / "v.json"))
    assert "needs --target" in error(cli("validate"))


def test_models_that_do_not_fit(cli: Run, models: Path, tmp_path: Path) -> None:
    from tests.reference import tiny_models

    def record(target: Path, drafter: Path, *more: str | Path | int) -> str:
        words = ("record", "--target", target, "--drafter", drafter, "--prompts", models / "prompts.jsonl")
        return error(cli(*words, "-o", tmp_path / "trace", "--max-new-tokens", 8, "--max-budget", 8, *more))

    target, drafter = tiny_models.save(tmp_path / "vocabulary", vocab_size=99)
    line = record(target, drafter)
    assert "vocabulary" in line and " 99" in line and " 61" in line
    assert not (tmp_path / "trace").exists()
    target, drafter = tiny_models.save(tmp_path / "size", hidden_size=32)
    line = record(target, drafter)
    assert "hidden size" in line and " 32" in line and " 48" in line
    assert "no-model: no such folder" in record(tmp_path / "no-model", models / "drafter")
    assert "config.json" in record(models / "target", models / "target")
    assert "float64" in record(models / "target", models / "drafter", "--dtype", "float64")
    target, drafter = tiny_models.save(tmp_path / "horizon", block_size=4)
    words = ("record", "--prompts", models / "prompts.jsonl", "-o", tmp_path / "trace", "--max-new-tokens", 8)
    words = (*words, "--max-budget", 8, "--target", models / "target", "--drafter")
    assert cli(*words, models / "drafter").code == 0
    assert "horizon" in error(cli(*words, drafter))  # a recording of another drafter can't go on there


def test_prompt_files_that_are_not_jsonl(cli: Run, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    for text, wanted in (
        ("Tell me a story.\n", "line 1: not JSON; write one JSON object a line"),
        ('[{"id": "a", "workload": "w", "prompt": "p"}]\n', "line 1: not a JSON object but a list"),
        ('{"id": "a", "workload": "w", "prompt": "p"}\n{"id": "b"}\n', "line 2: has no prompt; its columns are id"),
        ("", "holds no prompts"),
    ):
        path.write_text(text)
        words = ("record", "--target", models / "target", "--drafter", models / "drafter", "--prompts", path)
        assert wanted in error(cli(*words, "-o", tmp_path / "trace"))
        assert not (tmp_path / "trace").exists()


# --- whatever goes wrong ----------------------------------------------------------------------------------------------


def test_debug_shows_the_traceback(cli: Run) -> None:
    for words in (("--debug", "fit", "nothing.json"), ("fit", "nothing.json", "--debug")):
        answer = cli(*words)
        assert answer.code == 2
        assert "Traceback" in answer.err
        assert answer.err.splitlines()[-1] == "error: nothing.json: no such file"


def test_a_bug_is_one_line_and_exit_code_3(cli: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ddsim.cost.model

    monkeypatch.setattr(ddsim.cost.model, "fit_cost", lambda *_, **__: 1 / 0)
    assert "a bug in ddsim: ZeroDivisionError" in error(cli("fit", files / "profile.json"), 3)


def test_an_interrupt_is_one_line_and_exit_code_130(cli: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ddsim.cost.model

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ddsim.cost.model, "fit_cost", interrupt)
    assert error(cli("fit", files / "profile.json"), 130) == "error: interrupted"


def test_a_reader_that_goes_away_is_no_error(files: Path) -> None:
    words = " ".join([*COMMAND, "export", str(files / "trace"), "--what", "candidates", "-o", "-"])
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("sequence,position")
    assert done.stderr == ""
    assert done.returncode == 141


def test_options_have_names_in_lower_case() -> None:
    """Typer 0.27 took the metavar of ``--drafter`` and ``--what`` for their names."""
    import typer

    from ddsim.cli.app import app

    options = [o for command in typer.main.get_command(app).commands.values() for p in command.params for o in p.opts]
    assert "--drafter" in options and "--what" in options
    assert [option for option in options if option != option.lower()] == []


def test_without_torch_one_line_says_what_to_install(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("ddsim_reference")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    model = ("--target", "smollm2-135m", "--drafter", "drafter")
    for words in (
        ("record", *model, "--prompts", "chat", "-o", "trace"),
        ("profile", "--target", "smollm2-135m", "-o", "p.json"),
        ("validate", *model, "-o", "v.json"),
        ("convert", *model, "-o", "pair"),
        ("train-drafter", "--target", "smollm2-135m", "--mask-token", 16, "-o", "d", "--work", "w"),
    ):
        line = error(cli(*words))
        assert "torch isn't installed" in line
        assert line.endswith("run pip install -c constraints.txt '.[reference]' ./reference")


# --- terminals --------------------------------------------------------------------------------------------------------


def on_a_terminal(words: list[str], seconds: float = 60) -> str:
    """What a command writes to a terminal of 80 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": "80", "TERM": "xterm-256color"}
        os.execv(sys.executable, [*COMMAND, *words])
    written, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, written.decode(errors="replace")
    return written.decode(errors="replace")


def test_progress_on_a_terminal_only(cli: Run, files: Path) -> None:
    words = ["calibrate", str(files / "trace")]
    written = on_a_terminal(words)
    assert "Calibrating" in written
    assert re.search(r"([1-9][\d,]+)/\1\b", written), written  # all of the positions
    answer = cli(*words)
    assert "Calibrating" not in answer.out + answer.err


def test_main_takes_words() -> None:
    assert main(["--version"]) == 0


def test_outputs_that_are_no_files_are_left_alone(cli: Run, files: Path, tmp_path: Path) -> None:
    """A device or a pipe in an output's place would be replaced by the file."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for name in (pipe, link):
        assert "isn't a regular file" in error(cli("fit", files / "profile.json", "-o", name))
    assert pipe.is_fifo() and link.is_symlink()
    assert "null byte" in error(cli("fit", files / "profile.json", "-o", "a\0b.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_is_refused_first(cli: Run, files: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "can't be written" in error(cli("fit", files / "profile.json", "-o", tmp_path / "cost.json"))


def test_numbers_and_nesting_beyond_reason_are_one_line(cli: Run, files: Path, tmp_path: Path) -> None:
    assert "--seed" in error(cli("plan", files / "trace", "-p", files / "profile.json", "--seed", "-1"))
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    assert "not valid JSON" in error(cli("plan", files / "trace", "-p", deep))
    budgets = ("export", files / "trace", "--what", "budgets", "-p", files / "profile.json", "-o", tmp_path / "b.csv")
    assert "--context" in error(cli(*budgets, "--context", "99999999999999999999"))


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ("[(1, 4, 2), (9, 16, 1)]", "leaves out 5 to 8 requests, where vLLM would go on with K = 2; name them"),
        ("[(1, 4, 2), (5, 16, 99)]", "K = 99 for 5 to 16 requests: must be 0 to {horizon}, the tokens of a draft"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "plan", "serve", "report"])
def test_schedules_that_an_engine_would_mend_are_refused(
    cli: Run, files: Path, tmp_path: Path, command: str, ranges: str, reason: str
) -> None:
    out = ["-o", tmp_path / "r.html"] if command == "report" else []
    answer = cli(command, files / "trace", "-p", files / "profile.json", "--policy", f"Schedule({ranges})", *out)
    horizon = ddsim.open_trace(files / "trace").horizon
    assert error(answer) == f"error: Schedule({ranges}): {reason.format(horizon=horizon)}"
    assert not list(tmp_path.iterdir())
