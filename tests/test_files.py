"""Files are written whole or not at all, never over what is read, and equal answers give equal files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddsim import files as ours
from ddsim.errors import DdsimError

Run = Callable[..., Any]  # the fixture of conftest.py
ROOT = os.geteuid() == 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the writer -----------------------------------------------------------------------------------------------------


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    ours.write_text(path, "old")
    for error in (OSError(28, "No space left on device"), ValueError("no"), KeyboardInterrupt()):

        def fill(file: Any, error: BaseException = error) -> None:
            file.write(b"half")
            file.flush()
            assert len(names(tmp_path)) == 2
            raise error

        with pytest.raises(DdsimError if isinstance(error, OSError) else type(error)) as caught:
            ours.write(path, fill)
        if isinstance(error, OSError):
            assert str(caught.value) == f"{path}: can't be written (No space left on device)"
        assert (names(tmp_path), path.read_text()) == (["a"], "old")


def test_an_unreadable_input_is_not_called_an_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        ours.write(tmp_path / "a", lambda file: file.write((tmp_path / "missing").read_bytes()))
    assert names(tmp_path) == []


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        ours.write_text(tmp_path / "new", "1")
        ours.write_text(tmp_path / "old", "1")
        (tmp_path / "old").chmod(0o604)
        ours.write_text(tmp_path / "old", "2")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o640, 0o604]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("reports/5")
    for text in ("made", "replaced"):
        ours.write_text(link, text)
        assert link.is_symlink() and (tmp_path / "reports" / "5").read_text() == text
    assert (names(tmp_path), names(tmp_path / "reports")) == (["latest", "reports"], ["5"])


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary name can't be guessed; were it guessed, the link there is refused."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(ours.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / f".a.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(DdsimError, match="can't be written"):
        ours.write_text(tmp_path / "a", "theirs")
    assert victim.read_text() == "mine" and (tmp_path / f".a.{'0' * 16}.tmp").is_symlink()


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    for name in ("a" * 255, "ä" * 127):
        ours.write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    with pytest.raises(DdsimError, match=r"can't be written .File name too long"):
        ours.write_text(tmp_path / ("a" * 256), "")
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("check", [ours.check_output, lambda path: ours.write_text(path, "")])
def test_what_is_no_file_is_refused(tmp_path: Path, check: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path: "is a folder",
        tmp_path / "pipe": "isn't a regular file",
        tmp_path / "link": "isn't a regular file",
        Path("/dev/null"): "isn't a regular file",
        tmp_path / "loop": "can't be written",
        tmp_path / "file" / "a": "can't be written .Not a directory",
        tmp_path / "none" / "a": "doesn't exist|can't be written .No such file or directory",
    }
    for path, reason in cases.items():
        with pytest.raises(DdsimError, match=reason):
            check(path)
    assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["file", "link", "loop", "pipe"]


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_what_is_protected_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o444)
    tmp_path.chmod(0o555)
    for path, reason in ((tmp_path / "a", "write-protected"), (tmp_path / "b", "can't be written")):
        for check in (ours.check_output, lambda path: ours.write_text(path, "")):
            with pytest.raises(DdsimError, match=reason):
                check(path)
    with pytest.raises(DdsimError, match="can't be written"):
        ours.check_output_folder(tmp_path / "c" / "d")


def test_folders_for_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("new", "new/deeper", "."):
        ours.check_output_folder(tmp_path / name)
    for name in ("file", "file/a/b"):
        with pytest.raises(DdsimError, match="is a file; name a folder"):
            ours.check_output_folder(tmp_path / name)
    with pytest.raises(DdsimError, match="too long"):
        ours.check_output_folder(tmp_path / ("a" * 256))
    assert names(tmp_path) == ["file"]


# --- leftovers ------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from ddsim import files
def fill(file):
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    sys.stdin.readline()
files.write(sys.argv[1], fill)
"""


def writer(path: Path) -> subprocess.Popen[bytes]:
    """A process that has written half of the file and waits for a line."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_leftovers_of_the_dead_go_and_files_of_the_living_stay(tmp_path: Path) -> None:
    path = tmp_path / "a"
    dead = writer(path)
    dead.kill()
    dead.wait()
    assert len(names(tmp_path)) == 1
    strange = [f".a.{'0' * 16}.tmpx", f".b.{'0' * 16}.tmp", f".a.{'x' * 16}.tmp"]
    for name in strange:
        (tmp_path / name).write_text("")
    alive = writer(path)
    assert len(names(tmp_path)) == 4  # one of them is being written, the dead one's is gone
    ours.write_text(path, "whole")
    assert len(names(tmp_path)) == 5 and path.read_text() == "whole"
    alive.communicate(b"\n", timeout=60)
    assert alive.returncode == 0 and path.read_text() == "half"
    assert names(tmp_path) == sorted(["a", *strange])


def test_a_file_removed_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flock(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (leftover,) = tmp_path.iterdir()
            leftover.unlink()

    monkeypatch.setattr(ours.fcntl, "flock", flock)
    ours.write_text(tmp_path / "a", "whole")
    assert len(calls) == 2 and (tmp_path / "a").read_text() == "whole" and names(tmp_path) == ["a"]


# --- outputs over inputs --------------------------------------------------------------------------------------------


def test_refuse_inputs(tmp_path: Path) -> None:
    trace, profile = tmp_path / "trace", tmp_path / "p.json"
    trace.mkdir()
    shard = trace / "part-00000.parquet"
    shard.write_text("rows")
    profile.write_text("{}")
    (tmp_path / "soft").symlink_to(profile)
    (tmp_path / "hard").hardlink_to(profile)
    (tmp_path / "shard").hardlink_to(shard)
    (tmp_path / "alias").symlink_to(trace)
    inputs = [trace, profile, None, "Qwen/Qwen3-8B"]
    for name in ("p.json", "trace/../p.json", "soft", "hard"):
        with pytest.raises(DdsimError, match="is read by this command"):
            ours.refuse_inputs([tmp_path / name], inputs)
    for name in ("trace/new.csv", "trace/part-00000.parquet", "alias/new.csv", "trace/deep/er", "shard"):
        with pytest.raises(DdsimError, match="belongs to"):
            ours.refuse_inputs([tmp_path / name], inputs)
    with pytest.raises(DdsimError, match="is read by"):
        ours.refuse_inputs([trace], inputs)
    (tmp_path / "new").symlink_to("other.json")
    for pair in (("hard", "p.json"), ("other.json", "new"), ("x", "trace/../x")):
        with pytest.raises(DdsimError, match="place of two outputs"):
            ours.refuse_inputs([tmp_path / name for name in pair], [])
    ours.refuse_inputs([tmp_path / "other.json", tmp_path / "traces", None, "-", "-"], inputs)


# --- each command, each output --------------------------------------------------------------------------------------

# What comes before the output's name; {t} is the trace, {p} the profile.
OUTPUTS = {
    "plan --plot": "plan {t} -p {p} --bootstrap 20 --plot",
    "replay -o": "replay {t} -p {p} --bootstrap 20 -o",
    "replay --plot": "replay {t} -p {p} --bootstrap 20 --plot",
    "report -o": "report {t} -p {p} --bootstrap 20 -o",
    "serve --plot": "serve {t} -p {p} --bootstrap 0 -b 1 --plot",
    "fit -o": "fit {p} -o",
    "fit --plot": "fit {p} --plot",
    "calibrate -o": "calibrate {t} -o",
    "calibrate --plot": "calibrate {t} --plot",
    "export sequences": "export {t} -o",
    "export candidates": "export {t} --what candidates -o",
    "export budgets": "export {t} --what budgets -p {p} -b 1 -o",
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(answer: Any) -> str:
    """What a refused command says."""
    assert answer.code == 2 and answer.out == "" and answer.err.count("\n") == 1, answer
    return str(answer.err)


@pytest.fixture
def inputs(files: Path, tmp_path: Path) -> Path:
    """A folder of inputs of its own: trace, profile, and links to them under each ending that some output may have."""
    import shutil

    folder = tmp_path / "inputs"
    shutil.copytree(files / "trace", folder / "trace", ignore=shutil.ignore_patterns(".ddsim-cache"))
    shutil.copy(files / "profile.json", folder / "profile.json")
    shard = folder / "trace" / "part-00000.parquet"
    for end in ("png", "json", "csv", "html", "parquet"):
        (folder / f"soft.{end}").symlink_to("profile.json")
        (folder / f"hard.{end}").hardlink_to(folder / "profile.json")
        (folder / f"shard.{end}").hardlink_to(shard)
        (folder / f"part.{end}").symlink_to(shard)
    return folder


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_over_inputs_are_refused(cli: Run, inputs: Path, name: str) -> None:
    before = content(inputs)
    words = OUTPUTS[name].format(t=inputs / "trace", p=inputs / "profile.json").split()
    ending = {"plot": "png", "budgets": "json", "candidates": "parquet", "sequences": "parquet"}
    end = next((e for key, e in ending.items() if key in name), "html" if "report" in name else "json")
    reads = {"profile": "{p}" in OUTPUTS[name], "trace": "{t}" in OUTPUTS[name]}
    if reads["profile"]:
        for link in ("soft", "hard"):
            assert "is read by this command" in one_line(cli(*words, inputs / f"{link}.{end}"))
    if reads["trace"]:
        for place in (f"trace/new.{end}", f"shard.{end}", f"part.{end}"):
            assert "belongs to" in one_line(cli(*words, inputs / place))
    if end == "json" and reads["profile"]:
        assert "is read by this command" in one_line(cli(*words, inputs / "trace" / ".." / "profile.json"))
    if end == "parquet":
        assert "belongs to" in one_line(cli(*words, inputs / "trace" / "part-00000.parquet"))
    after = content(inputs)
    assert {key for key in after if ".ddsim-cache" not in key} == set(before)
    assert all(after[key] == value for key, value in before.items())


@pytest.mark.parametrize("words", ["replay {t} -p {p}", "fit {p}", "calibrate {t}"])
def test_two_outputs_in_one_place_are_refused(cli: Run, files: Path, tmp_path: Path, words: str) -> None:
    start = words.format(t=files / "trace", p=files / "profile.json").split()
    (tmp_path / "b.png").symlink_to("a.png")
    for pair in (("a.png", "a.png"), ("a.png", "b.png")):
        said = one_line(cli(*start, "-o", tmp_path / pair[0], "--plot", tmp_path / pair[1]))
        assert "place of two outputs" in said
    assert names(tmp_path) == ["b.png"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_cannot_be_written_are_refused_first(cli: Run, files: Path, tmp_path: Path, name: str) -> None:
    """Before anything is read: the trace isn't even there."""
    words = OUTPUTS[name].format(t=tmp_path / "none", p=tmp_path / "none.json").split()
    end = "png" if "plot" in name else "html" if "report" in name else "parquet" if "candidates" in name else "json"
    (tmp_path / "file").write_text("")
    places = {
        f"nowhere/a.{end}": "doesn't exist",
        f"file/a.{end}": "can't be written (Not a directory)",
        f"{'a' * 255}.{end}": "can't be written (File name too long)",
        ".": "is a folder",
    }
    for place, reason in places.items():
        assert reason in one_line(cli(*words, tmp_path / place))
    assert names(tmp_path) == ["file"]
