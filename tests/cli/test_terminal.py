"""What a person sees who reads answers in a terminal: nothing is cut, and warnings come once, after the answer."""

from __future__ import annotations

import io
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsim
from ddsim.cli import waiting
from ddsim.cli.console import Out, make_console
from ddsim.cli.main import main
from ddsim.cost.ranges import ExtrapolationWarning, merged
from ddsim.errors import WorkWarning
from ddsim.tables import Table, wrapped

Run = Callable[..., Any]  # the fixture of conftest.py

SHIPPED = Path(__file__).parent.parent.parent / "traces"

NUMBER = re.compile(r"[+-]?\d[\d,.]*\d|\d")

ANSWERS: dict[str, tuple[Any, ...]] = {
    "plan": ("plan", "TRACE", "-p", "PROFILE", "--bootstrap", 5),
    "replay": ("replay", "TRACE", "-p", "PROFILE", "--bootstrap", 5),
    "serve": ("serve", "TRACE", "-p", "PROFILE", "--bootstrap", 2, "-b", 8, "--policy", "Uniform:RoundRatio"),
    "serve --load": (
        "serve",
        "TRACE",
        "-p",
        "PROFILE",
        "--load",
        "--rate",
        2,
        "--bootstrap",
        2,
        "--policy",
        "BestFixed",
    ),
    "rules": ("rules", "TRACE", "-p", "PROFILE", "-b", 1, "--bootstrap", 2),
    "compare": ("compare", SHIPPED / "marginals", SHIPPED / "temperature-0" / "humaneval", "--bootstrap", 5),
    "fit": ("fit", "PROFILE", "--kind", "table", "--choose-buckets", 4),
    "calibrate": ("calibrate", "TRACE"),
    "plan --engine": ("plan", "TRACE", "-p", "PROFILE", "--engine", "vllm", "--bootstrap", 5),
    "plan --load": ("plan", "TRACE", "-p", "PROFILE", "--load", "-b", 1, "--context", 512),
}


def said(words: tuple[Any, ...], trace: Path, profile: Path) -> tuple[Any, ...]:
    return tuple({"TRACE": trace, "PROFILE": profile}.get(word, word) for word in words)


@pytest.fixture(scope="module")
def fitted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of ``files`` as a cost model, so that no command has to fit it."""
    path = tmp_path_factory.mktemp("fitted") / "cost.json"
    ddsim.fit_cost(ddsim.read_profile(files / "profile.json"), "steps").save(path)
    return path


WIDTHS = (200, 80, 60, 44)


@pytest.fixture
def at_widths(cli: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, str]]:
    """Run a command once, and lay what it says out for several widths."""
    streams = {width: io.StringIO() for width in WIDTHS}

    def everywhere(inner: Callable[..., None]) -> Callable[..., None]:
        def call(self: Out, *given: Any, **named: Any) -> None:
            if self._console is not None:  # it has been called by the other
                return inner(self, *given, **named)
            for width, stream in streams.items():
                self._console = make_console(stream, width)
                inner(self, *given, **named)
            self._console = None

        return call

    for name in ("say", "tables"):
        monkeypatch.setattr(Out, name, everywhere(getattr(Out, name)))

    def run(*words: Any) -> dict[int, str]:
        answer = cli(*words)
        assert answer.code == 0, answer.err
        assert answer.out == ""
        return {width: stream.getvalue() for width, stream in streams.items()}

    return run


@pytest.mark.parametrize("command", ANSWERS)
def test_answers_fit_narrow_terminals(
    at_widths: Callable[..., dict[int, str]], files: Path, fitted: Path, command: str
) -> None:
    fits(at_widths(*said(ANSWERS[command], files / "trace", files / "profile.json" if command == "fit" else fitted)))


@pytest.mark.slow
@pytest.mark.parametrize("command", ANSWERS)
def test_answers_about_shipped_recordings_fit_narrow_terminals(
    at_widths: Callable[..., dict[int, str]], command: str
) -> None:
    shipped = SHIPPED / "temperature-0", SHIPPED / "profiles/qwen3-8b-cost-h100.json"
    fits(at_widths(*said(ANSWERS[command], *shipped)))


def fits(shown: dict[int, str]) -> None:
    """An answer holds at every width the numbers that it has at the widest, each whole, on lines that are short enough."""
    for width, text in shown.items():
        assert "…" not in text
        assert all(len(line) <= width for line in text.splitlines() if not line.startswith("Wrote ")), text
        assert set(NUMBER.findall(text)) == set(NUMBER.findall(shown[WIDTHS[0]])) != set()


@pytest.mark.parametrize(
    "name",
    ["RoundRatio uniform", "RoundRatio uniform *", "LongRun uniform on chains *", "Share:GreedySteps calibrated"],
)
def test_names_of_policies_stay_on_a_line_in_80_columns(name: str) -> None:
    rows = [[name, "6.06", "18.0", "5,083.1", "1.57", "2.21", "3.72", "+0.2 ±0.1"]]
    headings = [
        "policy",
        "tokens/\nround",
        "nodes/\nrequest",
        "tokens/s",
        "TPOT\nms",
        "p95\nms",
        "speed-up",
        "over best\nfixed, %",
    ]
    text = drawn(headings, rows, 80)
    assert f" {name} " in text and max(map(len, text.splitlines())) <= 80


def drawn(headings: list[str], rows: list[list[str]], width: int) -> str:
    stream = io.StringIO()
    console = make_console(stream, width)
    for part in Table(tuple(headings), tuple(map(tuple, rows))).rich(console):
        console.print(part)
    return stream.getvalue()


NUMBERS = st.floats(-9e6, 9e6, allow_nan=False).map(lambda value: f"{value:,.1f} %")
NAMES = st.text("abcdefgh ", min_size=1, max_size=50).map(lambda name: " ".join(name.split()) or "a")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tables_of_any_kind_fit_and_keep_every_number(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 9))
    rows = data.draw(
        st.lists(st.tuples(NAMES, *[NUMBERS] * columns).map(list), min_size=1, max_size=4, unique_by=lambda row: row[0])
    )
    headings = data.draw(
        st.lists(NAMES.map(lambda name: name[:14].strip() or "a"), min_size=columns + 1, max_size=columns + 1)
    )
    width = data.draw(st.integers(44, 120))
    text = drawn(headings, rows, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    found = re.findall(r"-?\d[\d,.]* %", text)
    assert sorted(found) == sorted(cell for row in rows for cell in row[1:])


@given(st.lists(st.sampled_from(["a", "gain", "+12.5 %", "3 ms", "K = 15", "over"]), min_size=1), st.integers(12, 40))
def test_paragraphs_keep_numbers_with_their_units(words: list[str], width: int) -> None:
    text = " ".join(words)
    lines = wrapped(text, width)
    assert " ".join(lines) == text and max(map(len, lines)) <= width
    assert not any(line.startswith(("%", "ms", "=", "15")) for line in lines)


# --- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "replay", "serve"])
def test_what_is_extrapolated_is_said_once_and_after_the_answer(
    files: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    both = io.StringIO()
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    assert main([str(word) for word in said(ANSWERS[command], files / "trace", fitted)]) == 0
    lines = both.getvalue().splitlines()
    told = [i for i, line in enumerate(lines) if "cost extrapolated" in line]
    assert len(told) == 1 and lines[told[0]].startswith("warning: cost extrapolated: ")
    assert all(line.startswith("warning: ") for line in lines[told[0] :]), lines[told[0] :]
    quantities = [part.split(" is outside")[0].rsplit(" ", 1)[0] for part in lines[told[0]].split(": ")[2].split("; ")]
    assert len(set(quantities)) == len(quantities)


def test_an_answer_that_fails_says_its_warnings_before_the_error(cli: Run, files: Path) -> None:
    answer = cli("replay", files / "trace", "-p", files / "profile.json", "--policy", "DDTree:100000")
    assert answer.code == 2 and answer.err.splitlines()[-1].startswith("error: ")


def test_what_concerns_work_that_goes_on_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from ddsim.cli.console import warnings_after

    with warnings_after():
        warnings.warn("of the answer", stacklevel=1)
        warnings.warn("of the work", WorkWarning, stacklevel=1)
        warnings.warn("of the answer", stacklevel=1)
        assert capsys.readouterr().err == "warning: of the work\n"
    assert capsys.readouterr().err == "warning: of the answer\n"


def test_warnings_of_several_costs_are_merged_where_they_speak_of_the_same() -> None:
    one = {"context": (128.0, 192.0, "256–8192"), "context of drafting": (128.0, 192.0, "256–8192")}
    other = {
        "context": (64.0, 64.0, "256–8192"),
        "context of drafting": (64.0, 64.0, "256–8192"),
        "batch": (8.0, 8.0, "1"),
    }
    third = {"context": (64.0, 64.0, "512")}
    texts = [str(w) for w in merged([ExtrapolationWarning(asked) for asked in (one, other, third)])]
    assert texts == [
        "cost extrapolated: context 64–192 is outside the measured 256–8192; batch 8 is outside the measured 1",
        "cost extrapolated: context 64 is outside the measured 512",
    ]


@pytest.mark.parametrize("function", [ddsim.plan, ddsim.replay])
def test_python_warns_once_at_the_line_of_the_caller(files: Path, function: Callable[..., Any]) -> None:
    trace, cost = ddsim.open_trace(files / "trace"), ddsim.fit_cost(ddsim.read_profile(files / "profile.json"), "steps")
    with pytest.warns(ExtrapolationWarning) as caught:
        function(trace, cost, bootstrap=2)
    assert len(caught) == 1 and caught[0].filename == __file__
    with cost.no_warning(), warnings.catch_warnings():
        warnings.simplefilter("error")
        function(trace, cost, bootstrap=2)


# --- progress --------------------------------------------------------------------------------------------------------


class Watched(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Watched]:
    """Standard error, with a person before it. No fixture: pytest would put its own stream back before the test."""
    stream = Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "60")
        waiting.sign.begin()
        yield stream
        waiting.sign.hush()


def drawn_until(stream: io.StringIO, words: str, seconds: float = 20) -> str:
    end = time.monotonic() + seconds
    while words not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    assert words in stream.getvalue(), stream.getvalue()[-200:]
    return stream.getvalue()


def test_progress_counts_down_in_seconds() -> None:
    with terminal() as seen, waiting.progress("Calibrating, each workload by a fit on others") as told:
        for done in range(8):
            told(done, 100)
            time.sleep(0.02)
        text = drawn_until(seen, " s left")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", text)]
    assert re.search(r" \d+ s left  \d/100  Calibrating, each workload", text) and max(map(len, lines)) <= 60


def test_a_person_sees_something_before_the_work_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddsim import jit

    assert waiting.SOON + 0.4 < 2
    with terminal() as seen:
        drawn_until(seen, "ddsim: ")
        monkeypatch.setattr(jit, "compiled", jit.compiled + 1)
        drawn_until(seen, "ddsim: compiling kernels, once, ")
        Out().say("The answer.")  # begins: the line goes, and none comes after it
        text = seen.getvalue()
        assert text.endswith(" \r")
        time.sleep(0.5)
        assert seen.getvalue() == text
    assert capsys.readouterr().out == "The answer.\n"


def test_documents_come_without_progress() -> None:
    with terminal() as seen:
        Out(as_json=True)
        with waiting.progress("Replaying") as told, waiting.working("Measuring") as say:
            told(1, 2)
            say("all")
            time.sleep(0.3)
        assert seen.getvalue() == ""


def test_long_work_that_nobody_watches_says_one_line_a_phase(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting.sign.begin()
    monkeypatch.setattr(waiting, "LONG", 0.0)
    with waiting.progress("Recording") as told:
        for done in range(5):
            told(done, 4)
            time.sleep(0.01)
    assert re.fullmatch(r"Recording: 1 of 4, about \d+ s left\n", capsys.readouterr().err)


def test_a_plan_counts_its_folds(files: Path) -> None:
    told: list[tuple[int, int]] = []
    trace, cost = ddsim.open_trace(files / "trace"), ddsim.fit_cost(ddsim.read_profile(files / "profile.json"), "steps")
    with cost.no_warning():
        ddsim.plan(trace, cost, bootstrap=2, progress=lambda *step: told.append(step))
    assert told[-5:] == [(part, 5) for part in range(5)]
