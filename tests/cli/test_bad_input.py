"""What ddsim makes of bad input, point by point: JSON files, options, names, terminals. The fuzzers are in test_fuzz_input.py."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddsim.cli.main import main
from ddsim.errors import DdsimError
from ddsim.files import documents as jsonfile
from ddsim.view import budgets as _budgets
from ddsim.view import style as _style
from tests.cli import hostile

Run = Callable[..., Any]  # the fixture of conftest.py
COMMAND = [sys.executable, "-m", "ddsim"]


def error(answer: Any, code: int = 2) -> str:
    """The one line that a failed run printed; nothing else may have been."""
    assert answer.code == code, answer
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, answer.err
    return lines[0]


# --- JSON -------------------------------------------------------------------------------------------------------------


def spoilt(profile: str) -> dict[str, tuple[bytes, str]]:
    """A profile in ways that readers of JSON disagree about, and what the line says."""

    def first(key: str, value: str) -> bytes:
        return profile.replace(f'"{key}": ', f'"{key}": {value}, "x": ', 1).encode()

    return {
        "binary": (b"\x89PNG\r\n\x1a\n" + os.urandom(40), "isn't UTF-8"),
        "latin-1": (profile.replace("made up", "caf\xe9", 1).encode("latin-1"), "isn't UTF-8"),
        "utf-16": (profile.encode("utf-16"), "UTF-16"),
        "surrogate": (profile.replace("made up", "\\ud800", 1).encode(), "half of a surrogate pair"),
        "surrogate key": (profile.replace('"device"', '"\\udfff"', 1).encode(), "half of a surrogate pair"),
        "5,000 digits": (first("tokens", "7" * 5000), "a whole number of 5,000 digits"),
        "-5,000 digits": (first("tokens", "-" + "7" * 5000), "a whole number of 5,000 digits"),
        "900 deep": (first("provenance", "[" * 900 + "]" * 900), "nested deeper than 50 levels"),
        "10^5 deep": (b"[" * 100_000, "nested deeper than 50 levels"),
        "NaN": (first("context", "NaN"), "holds NaN"),
        "-Infinity": (first("context", "-Infinity"), "holds -Infinity"),
        "1e999": (first("device", "1e999"), "provenance.device: a number beyond 1.8e308"),
        "twice": (first("tokens", "1").replace(b'"x"', b'"tokens"', 1), 'the key "tokens" stands twice'),
        "empty": (b"", "not valid JSON at line 1"),
        "null": (b"null", "not a ddsim-cost or ddsim-profile file"),
        "number": (b"7", "not a ddsim-cost or ddsim-profile file"),
    }


def test_json_that_readers_disagree_about_is_refused(cli: Run, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for name, (content, wanted) in spoilt((files / "profile.json").read_text()).items():
        path.write_bytes(content)
        line = error(cli("plan", files / "trace", "-p", path))
        assert wanted in line and str(path) in line, (name, line)


def test_a_byte_order_mark_is_skipped(cli: Run, files: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf" + (files / "profile.json").read_bytes())
    words = ("fit", "--json", "--kind", "table")
    assert cli(*words, tmp_path / "p.json").out == cli(*words, files / "profile.json").out != ""


def test_calibrations_and_validations_are_read_by_the_same_rules(cli: Run, files: Path, tmp_path: Path) -> None:
    from ddsim.trace.calibration import Calibration

    path = tmp_path / "x.json"
    path.write_text('{"kind": "ddsim-calibration", "schema_version": 1, "log_gains": [NaN]}')
    with pytest.raises(DdsimError, match="holds NaN"):
        Calibration.load(path)
    for key, value, wanted in (
        ("log_gains", 10**30, "not monotone"),
        ("temperatures", 1e-320, "between 0.001 and 1,000"),
    ):
        ends = {"log_gains": [], "acceptance": [], "temperatures": [1.0], "provenance": {}} | {key: [value]}
        path.write_text(
            json.dumps({"kind": "ddsim-calibration", "schema_version": 1, "calibration": "temperature"} | ends)
        )
        with pytest.raises(DdsimError, match=wanted):
            Calibration.load(path)
    path.write_text('{"kind": "ddsim-validation", "schema_version": 1, "rows": [], "rows": []}')
    assert "stands twice" in error(cli("validate", "--show", path))


def test_only_files_and_pipes_are_read(cli: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "PATIENCE", 0.1)
    monkeypatch.setattr(jsonfile, "LARGEST_FILE", 1 << 20)
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(10 << 30)  # takes no room
    packed = gzip.compress(bytes(2 << 20))
    small = gzip.compress(b"{}" * 100)
    (tmp_path / "large.json.gz").write_bytes(packed)
    (tmp_path / "cut.json.gz").write_bytes(small[:-9])
    (tmp_path / "damaged.json.gz").write_bytes(packed[:10] + b"\xff" * 20)
    cases: dict[str | Path, str] = {
        files: "is a folder",
        "/dev/zero": "is a device",
        tmp_path / "pipe": "nothing came through this pipe",
        tmp_path / "large.json": "is larger than 1 MiB",
        tmp_path / "large.json.gz": "is larger than 1 MiB",
        tmp_path / "cut.json.gz": "is damaged gzip",
        tmp_path / "damaged.json.gz": "is damaged gzip",
        "a\0b.json": "null",
        tmp_path / ("n" * 300): "can't be read (File name too long)",
    }
    for path, wanted in cases.items():
        assert wanted in error(cli("plan", files / "trace", "-p", path))
        assert wanted in error(cli("report", files / "trace", "-p", path, "-o", tmp_path / "r.html"))


def test_a_pipe_is_read_once_and_to_its_end(cli: Run, files: Path, tmp_path: Path) -> None:
    pipe, content = tmp_path / "pipe", (files / "profile.json").read_bytes()
    os.mkfifo(pipe)

    def write() -> None:
        with open(pipe, "wb") as file:
            for i in range(0, len(content), 5000):
                file.write(content[i : i + 5000])
                file.flush()

    words = ("report", files / "trace", "--kind", "table", "--bootstrap", 5)
    for profile, out in ((files / "profile.json", "file.html"), (pipe, "pipe.html")):
        writer = threading.Thread(target=write, daemon=True)
        if profile == pipe:
            writer.start()
        assert cli(*words, "-p", profile, "-o", tmp_path / out).code == 0
    assert (tmp_path / "file.html").read_bytes() == (tmp_path / "pipe.html").read_bytes()


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs process substitution")
def test_process_substitution(files: Path) -> None:
    command = f"{sys.executable} -m ddsim fit --kind table --json <(cat {files / 'profile.json'})"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["model"]["fit"] == "table", done.stderr


# --- names ------------------------------------------------------------------------------------------------------------


def test_printable() -> None:
    from ddsim.text import printable, printable_json

    for name in hostile.NAMES:
        shown = printable(name)
        assert not hostile.RAW.search(shown) and "\n" not in shown
        assert len(printable(name, 20)) <= 20 * 6
        text = json.dumps({name: name}, ensure_ascii=False)
        for encoding in ("utf-8", "ascii", "latin-1"):
            safe = printable_json(text, encoding)
            assert json.loads(safe) == {name: name} and not hostile.RAW.search(safe)
            safe.encode(encoding)
    assert printable("naïve 日本語 👩\u200d💻") == "naïve 日本語 👩\u200d💻"


def test_hostile_names_are_shown_as_they_are(cli: Run, files: Path, tmp_path: Path) -> None:
    hostile.use(cli, hostile.NAMES, files / "profile.json", tmp_path)


def test_markup_in_names_is_shown_not_obeyed(cli: Run, files: Path, tmp_path: Path) -> None:
    from tests import made_up

    names = ["[/red]", "[bold red]x", ":smile:", "$x$", "_y"]
    made_up.saved(tmp_path / "trace", sequences=10, length=24, workloads=names)
    words = ("replay", tmp_path / "trace", "-p", files / "profile.json", "--bootstrap", 5, "--policy", "AR")
    answer = cli(*words)
    assert answer.code == 0 and set(names) <= {line.strip() for line in answer.out.splitlines()}
    cli("report", *words[1:-2], "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert all(f">{name}<" in page for name in names)
    assert names[0] in error(cli(*words, "-w", "nothing"))


def test_labels_are_no_mathematics() -> None:
    import pandas as pd

    for name in hostile.NAMES:
        table = pd.DataFrame({"policy": [name, "b"], "tokens_per_second": [1.0, 2.0], "workload": [name, name]})
        ax = _budgets.policies(table, ax=_style.canvas())
        ax.get_figure().canvas.draw()  # type: ignore[union-attr]
    ax = _budgets.budget_distribution({"_a$x$": [1, 2], r"\$": [3]}, ax=_style.canvas())
    assert [t.get_text().split(":")[0].strip() for t in ax.get_legend().get_texts()] == [r"_a\$x\$", r"\\$"]  # type: ignore[union-attr]


def test_errors_show_file_names_on_one_line(cli: Run) -> None:
    for name in ("a\nerror: all is well", "\x1b[2J", "\u202egnp", "x" * 5000):
        line = error(cli("fit", name))
        assert not hostile.RAW.search(line) and len(line) < 2200
        for words in (("fit", name, "--debug"), ("fit", "nothing.json", f"--{name}"), (name,)):
            assert not hostile.RAW.search(cli(*words).err)


# --- terminals --------------------------------------------------------------------------------------------------------


def heeding() -> None:
    """SIGINT counts, where the tests themselves run in the background too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("module", ["typer.main", "numpy.linalg", "ddsim.cost"])
def test_an_interrupt_while_modules_are_imported_is_one_line(files: Path, module: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "ddsim", "fit", files / "profile.json"]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heeding
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        said = [line for line in process.stderr.read().splitlines() if not line.startswith("import time:")]
        assert (process.wait(60), said) == (130, ["error: interrupted"])


def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    code = """
        import sys, time, signal, ddsim.cli.main
        class Last:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)
        def work(*_):
            Last()
            time.sleep(120)
        ddsim.cli.main.app = lambda *_, **__: work()
        import ddsim.__main__ as m
        sys.exit(m.run())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, preexec_fn=heeding
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 0, ""),
        (
            "--json >&-",
            2,
            "error: standard output is closed, so the answer would be lost; open it, or give a file name\n",
        ),
        ("<&- >&- 2>&-", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/full", 2, "error: No space left on device\n"),
        ("| true", 141, ""),
        ("2> /dev/full --seed x", 2, ""),
    ],
)
def test_closed_streams(files: Path, tmp_path: Path, redirection: str, code: int, said: str) -> None:
    words = f"{sys.executable} -m ddsim fit --kind table {files}/profile.json -o {tmp_path}/c.json {redirection}"
    done = subprocess.run(["bash", "-c", f"{words}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("warning: profile: ")]
    assert (done.returncode, "".join(lines)) == (code, said)  # what the profile leaves open is no matter of streams
    if code == 0:
        assert json.loads((tmp_path / "c.json").read_text())["fit"] == "table"


def test_terminals_of_any_kind(cli: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("fit", files / "profile.json", "--kind", "table")
    for name, values in {
        "COLUMNS": ("0", "1", "-5", "1" + "0" * 9, "9" * 5000, "wide", "", "²"),
        "TERM": ("dumb", "unknown"),
        "NO_COLOR": ("1",),
    }.items():
        for value in values:
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                patch.setenv("TERMINAL_WIDTH", value if name == "COLUMNS" else "80")
                for more in (words, ("fit", "--help"))[name == "NO_COLOR" :]:
                    answer = main_alone(more)
                    assert answer[0] == 0 and len(answer[1]) < 40_000, (name, value, more)
                assert os.environ[name] == value


def main_alone(words: tuple[Any, ...]) -> tuple[int, str]:
    """The command line with an environment of one's own (the fixture sets COLUMNS)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        return main([str(w) for w in words]), out.getvalue()


def test_a_locale_without_letters(files: Path, tmp_path: Path) -> None:
    from tests import made_up

    made_up.saved(tmp_path / "trace", sequences=4, length=24, workloads=["Zoë", "日本"])
    words = [
        *COMMAND,
        "replay",
        tmp_path / "trace",
        "-p",
        files / "profile.json",
        "--kind",
        "table",
        "--bootstrap",
        "5",
    ]
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    for more in ([], ["--json"]):
        done = subprocess.run([*words, *more], env=environment, capture_output=True, text=True, encoding="ascii")
        assert done.returncode == 0 and "Traceback" not in done.stderr
    assert {row["workload"] for row in json.loads(done.stdout)["by_workload"]} >= {"Zoë", "日本"}


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_beyond_bounds_are_refused_before_the_work(cli: Run, files: Path, tmp_path: Path) -> None:
    profile = ("-p", files / "profile.json")
    plan, serve = (
        ("plan", "no-trace", *profile),
        ("serve", "no-trace", *profile),
    )  # found out before the trace is opened
    budgets = ("export", "no-trace", "--what", "budgets", *profile, "-o", tmp_path / "b.json")
    huge = 10**24
    cases: dict[tuple[Any, ...], str] = {
        (*serve, "-b", 8, "-b", huge): "with its share of the requests",
        (*serve, "--batch", 5000): "--batch: must be at most 4,096, is 5,000; ",
        (*serve, "--requests", 10**12): "--requests: must be at most 1,000,000",
        (*serve, "--bootstrap", 10**9): "--bootstrap: must be at most 10,000",
        (*serve, "--max-tokens", 10**30): "--max-tokens: must be at most",
        (*plan, "--bootstrap", 10**9): "intervals hardly move beyond a few thousand resamples",
        (*plan, "--bootstrap", 0): "--bootstrap: must be at least 1, is 0",
        (*plan, "--seed", 10**30): "--seed: must be at most 9,223,372,036,854,775,807, is 10^30 or so",
        (*plan, "--seed", "9" * 5000): "--seed",
        (*plan, "--temperature", "nan"): "--temperature: must be a finite number of at least 0, is nan",
        (*plan, "--temperature", "inf"): "--temperature",
        (*budgets, "--context", huge): "no model reads that many tokens",
        (*budgets, "--limit", huge): "--limit",
        ("fit", files / "profile.json", "--tolerance", "nan"): "--tolerance: must be a finite number",
        ("fit", files / "profile.json", "--tolerance", -1): "--tolerance",
        ("replay", *plan[1:], "--policy", "Share:" * 3000): "of 18,000 characters",
        ("replay", *plan[1:], "--policy", f"DDTree:{'9' * 5000}"): "of 5,007 characters",
        (*serve, "--policy", "Share:" * 30 + "LongRun"): "RoundRatio or LongRun, not LongRun share",
        ("replay", *plan[1:], "--policy", ""): "unknown policy ''",
        ("plan", "/*/*/*/*/*/*/x", *profile): "/*/*/*/*/*/*/x: ",
    }
    for words, wanted in cases.items():
        line = error(cli(*words))
        assert wanted in line, (words, line)
        assert len(line) < 2200
    many = ("serve", files / "trace", *profile, "--requests", 10**6)
    assert "1,000,000 requests in 100 simulations are more than 20,000,000" in error(cli(*many))


def test_arguments_beyond_bounds_are_refused_from_python_too(files: Path) -> None:
    import ddsim

    trace, cost = ddsim.open_trace(files / "trace"), ddsim.CostModel.from_table([1, 512], [0.01, 0.02])
    for wanted, call in {
        "bootstrap: must be at most": lambda: ddsim.replay(trace, cost, bootstrap=10**12),
        "bootstrap: must be at least": lambda: ddsim.plan(trace, cost, bootstrap=-1),
        "bootstrap: must be a whole": lambda: ddsim.replay(trace, cost, bootstrap=2.5),  # type: ignore[arg-type]
        "seed: must be at most": lambda: ddsim.replay(trace, cost, seed=10**30),
        "seed: must be at least": lambda: ddsim.cross_calibrate(trace, seed=-1),
        "batch: must be at most 4,096, is 1,000,000,": lambda: ddsim.simulate(trace, cost, batch=10**24),
        "bootstrap: must be at most 10": lambda: ddsim.simulate(trace, cost, bootstrap=10**9),
        "requests: must be at most": lambda: ddsim.simulate(trace, cost, requests=10**12),
        "requests in 400 simulations are more": lambda: ddsim.simulate(trace, cost, requests=10**6, bootstrap=400),
        "context: must be at most": lambda: ddsim.batch_map(trace, cost, contexts=[10**30]),
        "batch: must be at most": lambda: ddsim.batch_map(trace, cost, batch=[10**24]),
    }.items():
        with pytest.raises(DdsimError, match=wanted):
            call()


def test_what_needs_no_work_is_refused_before_it(cli: Run, files: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("time\n3\n1\n")
    profile = ("-p", files / "profile.json")
    load = ("serve", "no-trace", *profile, "--load")
    fit = ("fit", "no-profile.json", "--choose-buckets")
    cases: dict[tuple[Any, ...], str] = {
        (*load, "--arrivals", tmp_path / "log.csv"): "log.csv: times run backwards: request 2 came at 1 s",
        (*load, "--running", 4096): "--running: must be at most 1,024",
        (*load, "--memory", 0): "--memory: must be at least 1, is 0",
        (*load, "--chunk", 0): "--chunk: must be at least 1, is 0",
        ("rules", "no-trace", *profile, "--running", 0): "--running: must be at least 1, is 0",
        ("sweep", "no-trace"): "Missing option '--profile'",
        (
            "sweep",
            "no-trace",
            *profile,
            "--out",
            "x.xyz",
        ): "--out x.xyz: can't tell the format; end the name in one of .csv",
        ("sweep", "no-trace", *profile, "--seeds", 0): "'--seeds': Input should be greater than or equal to 1",
        ("plan", "no-trace", *profile, "--load", "--context", 2**31): "--context: must be at most 1,073,741,824",
        ("plan", "no-trace", *profile, "--load", "-b", 0): "--batch: must be at least 1, is 0",
        (*fit, 0): "'--choose-buckets': Input should be greater than or equal to 1",
        (*fit, "x"): "'--choose-buckets': Input should be a valid integer",
    }
    for words, wanted in cases.items():
        assert wanted in error(cli(*words)), words
