"""What the repository promises: the README's commands, metadata, package data."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import ddsim

ROOT = Path(__file__).parent.parent
PROJECT, REFERENCE = (
    tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in (".", "reference")
)


def readme_commands() -> list[str]:
    """The lines of the README that make a fresh environment."""
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.M)


def test_ci_runs_the_readme_commands_word_for_word() -> None:
    commands = readme_commands()
    assert len(commands) == 2
    assert commands[0].endswith("ddsim demo") and "pytest" in commands[1]
    script = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert f"'{command}'" in script


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == REFERENCE["version"] == ddsim.__version__
    assert re.search(rf"^version: {re.escape(ddsim.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert f"## {ddsim.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_names() -> None:
    """The distributions don't bear the name of another project on PyPI; the import and the command do."""
    assert PROJECT["name"] == "ddsim-decoding"
    assert REFERENCE["name"] == "ddsim-decoding-reference"
    assert REFERENCE["dependencies"] == [f"ddsim-decoding[reference]=={ddsim.__version__}"]
    assert PROJECT["scripts"] == {"ddsim": "ddsim.__main__:run"}
    assert "`ddsim-decoding`" in (ROOT / "README.md").read_text()


def test_what_is_installed_is_what_is_here() -> None:
    for project in (PROJECT, REFERENCE):
        try:
            installed = metadata.version(project["name"])
        except metadata.PackageNotFoundError:
            pytest.skip(f"{project['name']} isn't installed: the tests run from the source")
        assert installed == ddsim.__version__
    (script,) = metadata.entry_points(group="console_scripts", name="ddsim")
    assert script.value == PROJECT["scripts"]["ddsim"]


def test_constraints_pin_everything_that_is_asked_for() -> None:
    wanted = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    names = {re.split(r"[<>=!~]", d)[0].strip().lower().replace("_", "-") for d in wanted}
    assert names <= pinned


def test_lowest_versions_are_those_that_are_allowed() -> None:
    """CI proves the bounds of what the core, its tests and clusters ask for: the file for that names each."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["test"], *extras["cluster"]]
    bounds = {re.split(r"[<>=!~]", d)[0]: re.findall(r">=([\d.]+)", d) for d in wanted}
    lines = [line for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")]
    lowest = dict(line.split("==") for line in lines)
    assert {name: [re.sub(r"(\.0)+$", "", bound) for bound in found] for name, found in bounds.items()} == {
        name: [re.sub(r"(\.0)+$", "", version)] for name, version in lowest.items()
    }
    assert "-c constraints-lowest.txt" in (ROOT / ".ci" / "run").read_text()


def test_typed_packages() -> None:
    assert (ROOT / "ddsim" / "py.typed").exists()
    assert (ROOT / "reference" / "ddsim_reference" / "py.typed").exists()


def test_public_names_can_be_imported() -> None:
    for name in ddsim.__all__:
        assert getattr(ddsim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        ddsim.magic  # type: ignore[attr-defined]  # noqa: B018
    assert dir(ddsim) == sorted(ddsim.__all__)
    assert ddsim.plot.tree is importlib.import_module("ddsim.view.trees").tree
    assert all(getattr(ddsim.plot, name) is not None for name in ddsim.plot.__all__)


@pytest.mark.parametrize("name", ["__init__", "plot"])
def test_type_checkers_see_the_names_that_python_sees(name: str) -> None:
    """What a module imports for them stands there once more for Python, which imports it when it is used."""
    module = ast.parse((ROOT / "ddsim" / f"{name}.py").read_text())
    (block,) = (n for n in module.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        for alias in line.names:
            assert alias.asname == alias.name, "a name is exported if it is imported as itself"
            seen[alias.name] = line.module
    here: Any = ddsim if name == "__init__" else ddsim.plot
    assert seen.pop("plot", "ddsim") == "ddsim"
    assert seen == {name: f"ddsim.{home}" for name, home in here._HOME.items()}


@pytest.mark.slow
def test_mypy_checks_what_users_write(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    code = tmp_path / "code.py"
    code.write_text(
        "import ddsim\n"
        "reveal_type(ddsim.open_trace('x'))\n"
        "reveal_type(ddsim.replay)\n"
        "ddsim.plot.tree\n"
        "ddsim.open_trace(1)\n"
        "ddsim.opentrace('x')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", str(code)]
    said = subprocess.run(command, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    lines = [re.sub(r"^.*code.py:", "", line) for line in said.stdout.splitlines()]
    assert lines[0] == '2: note: Revealed type is "ddsim.trace.trace.Trace"', said.stdout + said.stderr
    assert lines[1].startswith("3: note: Revealed type is ") and "-> ddsim.replay.replay.ReplayResult" in lines[1]
    assert [line[:8] for line in lines if ": error: " in line] == ["5: error", "6: error"]


def test_licence_and_papers() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    for paper in ("2602.06036", "2604.12989", "2606.01813"):
        assert f"arXiv:{paper}" in citation


def test_shipped_data_stays_small() -> None:
    data = [path for folder in ("traces", "ddsim/data") for path in (ROOT / folder).rglob("*") if not path.is_symlink()]
    assert sum(path.stat().st_size for path in data if path.is_file()) < 11 << 20
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    tracked = [ROOT / name for name in git(ROOT, "ls-files", "-z").split("\0") if name]
    assert sum(path.lstat().st_size for path in tracked if path.exists()) <= 56 << 20


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Digest of each file, without what Python and Numba compile."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    """A wheel holds all that ``ddsim demo`` needs, and nothing of the decoder, which has its own, nor of the tests."""
    source, site, decoder, empty = (
        clone(tmp_path / "source"),
        tmp_path / "site",
        tmp_path / "decoder",
        tmp_path / "empty",
    )
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target"]
    subprocess.run([*pip, str(site), str(source)], check=True)
    subprocess.run([*pip, str(decoder), str(source / "reference")], check=True)
    for folder, package, where in ((site, "ddsim", source), (decoder, "ddsim_reference", source / "reference")):
        packages = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.endswith(".dist-info")}
        assert packages - {"bin"} == {package}
        assert hashes(folder / package) == hashes(where / package)
        assert "py.typed" in hashes(folder / package)
        assert len(list(folder.glob("*.dist-info/licenses/LICENSE"))) == 1
    data = {f"data/{name}/part-00000.parquet" for name in ("humaneval", "humaneval-marginals")}
    assert data | {"templates/report.html"} <= set(hashes(site / "ddsim"))
    assert git(source, "status", "--porcelain", "--ignored") == ""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "DDSIM_CACHE": str(tmp_path / "cache")}
    for word in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-m", "ddsim", "demo", "--json"],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (word, done.stderr)
        assert json.loads(done.stdout)["plan"]["sentence"]
        assert [p.name for p in empty.iterdir()] == ["ddsim-demo.png"]
    assert list((tmp_path / "cache" / "positions").iterdir())  # not beside the package's own files
    assert not list((tmp_path / "site" / "ddsim" / "data").rglob(".*"))


@pytest.mark.slow
def test_a_killed_installation_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    """``pip install .`` twice, the first one killed: what is installed is what is in the tree, which stays clean."""
    source = clone(tmp_path / "source")
    draw, whole = random.Random(0), 0.0
    for attempt in range(5):
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / f"venv{attempt}")], check=True)
        pip = [str(tmp_path / f"venv{attempt}" / "bin" / "pip"), "install", "--no-deps", "-q"]
        if attempt == 0:  # how long an installation takes
            start = time.monotonic()
            subprocess.run([*pip, "."], cwd=source, check=True)
            whole = time.monotonic() - start
            continue
        # Late moments: earlier ones kill pip while it fetches the build backend.
        killed = subprocess.Popen([*pip, "."], cwd=source, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.wait(draw.uniform(0.3, 1) * whole)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert git(source, "status", "--porcelain", "--ignored") == ""
        again = subprocess.run([*pip, "."], cwd=source, capture_output=True, text=True)
        if (
            "RECORD file not found" in again.stderr
        ):  # killed between two files of pip's own books: pip refuses, and says so
            again = subprocess.run([*pip, "--ignore-installed", "."], cwd=source, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        (installed,) = (tmp_path / f"venv{attempt}").glob("lib/*/site-packages/ddsim")
        assert hashes(installed) == hashes(source / "ddsim")
        assert git(source, "status", "--porcelain", "--ignored") == ""
