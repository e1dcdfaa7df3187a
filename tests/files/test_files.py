"""Files are written whole or not at all, never over what is read, and equal answers give equal files."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddsim.errors import DdsimError
from ddsim.files import atomic as _atomic

Run = Callable[..., Any]  # the fixture of conftest.py


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the writer -----------------------------------------------------------------------------------------------------


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _atomic.write_text(path, "old")
    for error in (OSError(28, "No space left on device"), ValueError("no"), KeyboardInterrupt()):

        def fill(file: Any, error: BaseException = error) -> None:
            file.write(b"half")
            file.flush()
            assert len(names(tmp_path)) == 2
            raise error

        with pytest.raises(DdsimError if isinstance(error, OSError) else type(error)) as caught:
            _atomic.write(path, fill)
        if isinstance(error, OSError):
            assert str(caught.value) == f"{path}: can't be written (No space left on device)"
        assert (names(tmp_path), path.read_text()) == (["a"], "old")


def test_an_unreadable_input_is_not_called_an_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        _atomic.write(tmp_path / "a", lambda file: file.write((tmp_path / "missing").read_bytes()))
    assert names(tmp_path) == []


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _atomic.write_text(tmp_path / "new", "1")
        _atomic.write_text(tmp_path / "old", "1")
        (tmp_path / "old").chmod(0o604)
        _atomic.write_text(tmp_path / "old", "2")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o640, 0o604]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("reports/5")
    for text in ("made", "replaced"):
        _atomic.write_text(link, text)
        assert link.is_symlink() and (tmp_path / "reports" / "5").read_text() == text
    assert (names(tmp_path), names(tmp_path / "reports")) == (["latest", "reports"], ["5"])


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary name can't be guessed; were it guessed, the link there is refused."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(_atomic.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / f".a.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(DdsimError, match="can't be written"):
        _atomic.write_text(tmp_path / "a", "theirs")
    assert victim.read_text() == "mine" and (tmp_path / f".a.{'0' * 16}.tmp").is_symlink()


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    for name in ("a" * 255, "ä" * 127):
        _atomic.write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    with pytest.raises(DdsimError, match=r"can't be written .File name too long"):
        _atomic.write_text(tmp_path / ("a" * 256), "")
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("check", [_atomic.check_output, lambda path: _atomic.write_text(path, "")])
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


def as_a_user(check: Callable[[Path], None]) -> None:
    """Run a check in an empty folder of somebody who isn't root."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            return check(Path(folder))
        os.chown(folder, 65534, 65534)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os.setuid(65534)
                check(Path(folder))
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_protected_is_refused() -> None:
    def check(folder: Path) -> None:
        (folder / "a").write_text("old")
        (folder / "a").chmod(0o444)
        folder.chmod(0o555)
        for path, reason in ((folder / "a", "write-protected"), (folder / "b", "can't be written")):
            for refuse in (_atomic.check_output, lambda path: _atomic.write_text(path, "")):
                with pytest.raises(DdsimError, match=reason):
                    refuse(path)
        with pytest.raises(DdsimError, match="can't be written"):
            _atomic.check_output_folder(folder / "c" / "d")
        folder.chmod(0o755)
        with pytest.raises(DdsimError, match="write-protected"):
            _atomic.write_text(folder / "a", "")
        assert names(folder) == ["a"] and (folder / "a").read_text() == "old"

    as_a_user(check)


def test_replacing_keeps_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    _atomic.write_text(path, "new")
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino


def test_text_that_is_no_unicode_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DdsimError, match="half a character"):
        _atomic.write_text(tmp_path / "a", "x\ud800y")
    for name in ("", "a/"):
        with pytest.raises(DdsimError, match="names no file"):
            _atomic.check_output(name)
    assert names(tmp_path) == []


def test_folders_for_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("new", "new/deeper", "."):
        _atomic.check_output_folder(tmp_path / name)
    for name in ("file", "file/a/b"):
        with pytest.raises(DdsimError, match="is a file; name a folder"):
            _atomic.check_output_folder(tmp_path / name)
    with pytest.raises(DdsimError, match="too long"):
        _atomic.check_output_folder(tmp_path / ("a" * 256))
    assert names(tmp_path) == ["file"]


# --- leftovers ------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from ddsim.files import atomic as files
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
    _atomic.write_text(path, "whole")
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

    monkeypatch.setattr(_atomic.fcntl, "flock", flock)
    _atomic.write_text(tmp_path / "a", "whole")
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
            _atomic.refuse_inputs([tmp_path / name], inputs)
    for name in ("trace/new.csv", "trace/part-00000.parquet", "alias/new.csv", "trace/deep/er", "shard"):
        with pytest.raises(DdsimError, match="belongs to"):
            _atomic.refuse_inputs([tmp_path / name], inputs)
    with pytest.raises(DdsimError, match="is read by"):
        _atomic.refuse_inputs([trace], inputs)
    (tmp_path / "new").symlink_to("other.json")
    for pair in (("hard", "p.json"), ("other.json", "new"), ("x", "trace/../x")):
        with pytest.raises(DdsimError, match="place of two outputs"):
            _atomic.refuse_inputs([tmp_path / name for name in pair], [])
    _atomic.refuse_inputs([tmp_path / "other.json", tmp_path / "traces", None, "-", "-"], inputs)


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


MODELS = {
    "record": "record --target {m}/target --drafter {m}/drafter --prompts {m}/prompts.jsonl -o",
    "profile -o": "profile --target {m}/target --drafter {m}/drafter -o",
    "profile --plot": "profile --target {m}/target -o {m}/new.json --plot",
    "validate -o": "validate --target {m}/target --drafter {m}/drafter --prompts {m}/prompts.jsonl -o",
    "validate --plot": "validate --show {m}/saved.json --plot",
    "convert": "convert --target {m}/target --drafter {m}/drafter --widen qwen3-8b --prompts {m}/prompts.jsonl -o",
    "train-drafter -o": "train-drafter --target {m}/target --start {m}/drafter --mask-token 1 --work {m}/new -o",
    "train-drafter --work": "train-drafter --target {m}/target --start {m}/drafter --mask-token 1 -o {m}/new --work",
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_not_written_over(cli: Run, tmp_path: Path, name: str) -> None:
    """Nothing is loaded before: the checkpoints are empty."""
    for folder in ("target", "drafter"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_text(folder)
        (tmp_path / folder / "config.json").write_text(folder)
        (tmp_path / f"{folder}.link").symlink_to(folder)
        (tmp_path / f"{folder}.png").hardlink_to(tmp_path / folder / "config.json")
    for file in ("prompts.jsonl", "saved.json"):
        (tmp_path / file).write_text("{}")
        (tmp_path / f"{file}.png").hardlink_to(tmp_path / file)
    before, words = content(tmp_path), MODELS[name].format(m=tmp_path).split()
    folder_wanted = name in ("record", "convert") or "train" in name
    places = {
        "record": ["target", "drafter", "drafter.link", "drafter/trace"],
        "convert": ["target", "drafter", "drafter.link", "drafter/pair"],
        "profile -o": ["target/new.json", "drafter/config.json", "drafter.link/config.json", "drafter.png"],
        "profile --plot": ["target/new.png", "target.png"],
        "validate -o": ["target/new.json", "drafter/config.json", "prompts.jsonl", "drafter.png", "prompts.jsonl.png"],
        "validate --plot": ["saved.json.png"],
    }.get(name, ["target", "drafter", "drafter.link", "drafter/new", "new"])
    for place in places:
        said = one_line(cli(*words, tmp_path / place))
        assert any(reason in said for reason in ("is read by", "belongs to", "place of two outputs")), said
    if folder_wanted:
        assert "is a file; name a folder" in one_line(cli(*words, tmp_path / "prompts.jsonl"))
        assert "is a file; name a folder" in one_line(cli(*words, tmp_path / "prompts.jsonl" / "deeper"))
    assert content(tmp_path) == before


# --- full disks -----------------------------------------------------------------------------------------------------


def written(name: str, files: Path, out: Path) -> list[str]:
    """The words of a command that writes one output."""
    return [*OUTPUTS[name].format(t=files / "trace", p=files / "profile.json").split(), str(out)]


# A few hundred bytes fit on the disk; nothing that is written here does.
FORMATS = [
    ("replay -o", "parquet"), ("fit --plot", "pdf"), ("report -o", "html"), ("fit -o", "json"), ("export candidates", "csv"),
    ("export candidates", "parquet"), ("export sequences", "jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "end"), FORMATS)
def test_a_full_disk_leaves_the_old_file(
    cli: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: str
) -> None:
    """The system refuses what goes beyond 300 bytes of a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    created, refusal = _atomic._created, _atomic._refusal

    def limited(target: Path) -> Any:
        found = created(target)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        return found

    def told(*arguments: Any) -> DdsimError:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # what is said of it goes to files, too
        return refusal(*arguments)

    out = tmp_path / f"a.{end}"
    out.write_text("old")
    monkeypatch.setattr(_atomic, "_created", limited)
    monkeypatch.setattr(_atomic, "_refusal", told)
    try:
        answer = cli(*written(name, files, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = [line for line in answer.err.splitlines() if not line.startswith("warning: ")]
    assert (answer.code, lines) == (2, [f"error: {out}: can't be written (File too large)"])
    assert (names(tmp_path), out.read_text()) == ([out.name], "old")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 8 KB left, where the tests may make one."""
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        (folder / "filler").write_bytes(bytes(52 << 10))
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(cli: Run, files: Path, full: Path) -> None:
    for name, end in (("report -o", "html"), ("fit --plot", "pdf"), ("export candidates", "parquet")):
        out = full / f"a.{end}"
        out.write_text("old")
        answer = cli(*written(name, files, out))
        assert answer.code == 2 and answer.err.endswith(f"error: {out}: can't be written (No space left on device)\n")
        assert (names(full), out.read_text()) == (sorted([out.name, "filler"]), "old")
        out.unlink()


def test_checkpoints_and_states_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their libraries' own writers leave half a file, or one that only its owner can read."""
    import torch

    from ddsim_reference.model.checkpoint import write_tensors
    from ddsim_reference.training.data import PromptPool

    pool = PromptPool(*(np.ones(3, np.int32) for _ in range(4)), 0)
    writers: dict[str, Callable[[Path], object]] = {
        "model.safetensors": lambda path: write_tensors(path, {"a": torch.ones(500)}),
        "pool.npz": pool.save,
    }
    for name, write in writers.items():
        write(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask()
    assert PromptPool.load(tmp_path / "pool.npz").lengths.tolist() == [1, 1, 1]
    before = content(tmp_path)
    monkeypatch.setattr(_atomic.os, "fsync", full_disk)
    for name, write in writers.items():
        with pytest.raises(DdsimError, match=f"{name}: can't be written .No space left"):
            write(tmp_path / name)
    assert content(tmp_path) == before


def umask() -> int:
    os.umask(held := os.umask(0))
    return held


def full_disk(handle: int) -> None:
    raise OSError(28, "No space left on device")


# --- kills, two writers ---------------------------------------------------------------------------------------------

# Writes one of two contents of two megabytes, in pieces, again and again.
LOOP = """
import itertools, sys
from ddsim.files import atomic as files
def fill(file, letter):
    for _ in range(32):
        file.write(letter * (1 << 16))
print("ready", flush=True)
for letter in itertools.cycle(sys.argv[2].encode()):
    files.write(sys.argv[1], lambda file: fill(file, bytes([letter])))
"""


def looping(path: Path, letters: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(path), letters], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def whole(data: bytes) -> bool:
    return len(data) == 2 << 20 and data == data[:1] * len(data)


def kill_writers(folder: Path, times: int, seed: int) -> int:
    """Kill a writer at random moments; how many of them left a hidden file behind."""
    rng, left, path = random.Random(seed), 0, folder / "a"
    path.write_bytes(b"o" * (2 << 20))
    for _ in range(times):
        process = looping(path, "xy")
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        assert whole(path.read_bytes())
        found = names(folder)
        assert "a" in found and len(found) <= 2  # the hidden files of earlier ones are gone
        left += len(found) - 1
    return left


def test_killed_writers(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, 8, 0) > 0  # or none was killed while it wrote


@pytest.mark.slow
def test_killed_writers_some_hundred(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, 300, 1) > 30


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writers = [looping(path, letters) for letters in ("ab", "cd", "ef")]
    seen, stop = set(), time.monotonic() + 2
    try:
        while time.monotonic() < stop:
            if path.exists():
                data = path.read_bytes()
                assert whole(data)
                seen.add(data[:1])
        assert [process.poll() for process in writers] == [None] * 3  # none stumbled over another's file
    finally:
        for process in writers:
            process.kill()
            process.wait()
    assert len(seen) > 2
    _atomic.write_text(path, "")
    assert names(tmp_path) == ["a"]


KILLED = {"report -o": "html", "replay --plot": "pdf", "export candidates": "parquet", "fit -o": "json"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_commands(files: Path, tmp_path: Path, name: str) -> None:
    out, rng = tmp_path / f"a.{KILLED[name]}", random.Random(name)
    command = [sys.executable, "-m", "ddsim", *written(name, files, out)]
    subprocess.run(command, check=True, capture_output=True)  # compiles what is to be compiled
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds, new = time.monotonic() - begin, out.read_bytes()
    killed = 0
    for _ in range(15):
        out.write_text("old")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * rng.uniform(0.6, 1.05))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert out.read_bytes() in (b"old", new)
    assert killed
    subprocess.run(command, check=True, capture_output=True)
    assert names(tmp_path) == [out.name]


@pytest.mark.slow
def test_two_commands_write_one_file(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddsim", *written("report -o", files, tmp_path / "a.html"), "--seed"]
    pages = []
    for seed in ("0", "1"):
        subprocess.run([*command, seed], check=True, capture_output=True)
        pages.append((tmp_path / "a.html").read_bytes())
    assert pages[0] != pages[1]
    for _ in range(8):
        for process in [subprocess.Popen([*command, seed], stdout=subprocess.DEVNULL) for seed in ("0", "1")]:
            assert process.wait() == 0
        assert (tmp_path / "a.html").read_bytes() in pages and names(tmp_path) == ["a.html"]


# --- equal answers, equal files -------------------------------------------------------------------------------------

ALL = """
import sys
from ddsim.cli.main import main
trace, profile, folder = sys.argv[1:]
at = lambda name: f"{folder}/{name}"
answers = ["-p", profile, "--bootstrap", "20"]
code = 0
for end in ("svg", "pdf", "png"):
    code |= main(["replay", trace, *answers, "--plot", at(f"r.{end}"), "-o", at("r.parquet")])
code |= main(["report", trace, *answers, "--calibrate", "isotonic", "-o", at("r.html")])
code |= main(["calibrate", trace, "-o", at("c.json"), "--plot", at("c.svg")])
code |= main(["fit", profile, "-o", at("f.json"), "--plot", at("f.svg")])
code |= main(["plan", trace, *answers, "--plot", at("p.svg")])
code |= main(["serve", trace, "-p", profile, "-b", "1", "--bootstrap", "2", "--plot", at("s.svg")])
sys.exit(code)
"""


@pytest.mark.slow
def test_equal_answers_make_equal_files(files: Path, tmp_path: Path) -> None:
    """Whatever the order of sets and the time of the day."""
    made = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": str(i), "MPLBACKEND": "agg", "SOURCE_DATE_EPOCH": str(i * 10**8)}
        subprocess.run(
            [sys.executable, "-c", ALL, files / "trace", files / "profile.json", folder],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
        made.append(content(folder))
    assert len(made[0]) == 11
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []


# --- standard output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["export candidates", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fit --plot", "report -o"))]
)
def test_standard_output_that_ends_early(files: Path, name: str) -> None:
    command = subprocess.list2cmdline([sys.executable, "-m", "ddsim", *written(name, files, Path("-"))])
    for redirection, code, says in (
        (">&-", 2, "error: standard output is closed, so the answer would be lost; open it, or give a file name"),
        ("> /dev/full", 2, "error: standard output: can't be written (No space left on device)"),
        ("| :", 141, ""),
    ):
        script = f"set -o pipefail; {command} {redirection}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "Traceback", "Exception"))]
        assert (done.returncode, lines, done.stdout) == (code, [says] if says else [], ""), (redirection, done)
