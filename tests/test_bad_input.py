"""What ddsim makes of bad input, point by point: JSON files, options, names, terminals. The fuzzers are in test_fuzz_input.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddsim import jsonfile
from ddsim.errors import DdsimError

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
    from ddsim.calibration import Calibration

    path = tmp_path / "x.json"
    path.write_text('{"kind": "ddsim-calibration", "schema_version": 1, "log_gains": [NaN]}')
    with pytest.raises(DdsimError, match="holds NaN"):
        Calibration.load(path)
    path.write_text('{"kind": "ddsim-validation", "schema_version": 1, "rows": [], "rows": []}')
    assert "stands twice" in error(cli("validate", "--show", path))


def test_only_files_and_pipes_are_read(cli: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "PATIENCE", 0.1)
    monkeypatch.setattr(jsonfile, "LARGEST_FILE", 1 << 20)
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(10 << 30)  # takes no room
    cases: dict[str | Path, str] = {
        tmp_path: "is a folder",
        "/dev/zero": "is a device",
        tmp_path / "pipe": "nothing came through this pipe",
        tmp_path / "large.json": "is larger than 1 MiB",
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
