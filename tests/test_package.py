"""What the repository promises: the README's commands, metadata, package data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import ddsim

ROOT = Path(__file__).parent.parent


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ddsim.__version__ == version("ddsim")
    assert re.search(rf"^version: {re.escape(ddsim.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert f"## {ddsim.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_entry_point() -> None:
    (script,) = entry_points(group="console_scripts", name="ddsim")
    assert script.value == "ddsim.cli:main"


def test_constraints_pin_everything_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    names = {re.split(r"[<>=!~]", d)[0].strip().lower().replace("_", "-") for d in wanted}
    assert names <= pinned


def test_typed_packages() -> None:
    assert (ROOT / "ddsim" / "py.typed").exists()
    assert (ROOT / "reference" / "ddsim_reference" / "py.typed").exists()


def test_public_names_can_be_imported() -> None:
    for name in ddsim.__all__:
        assert getattr(ddsim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        ddsim.magic  # noqa: B018


def test_licence_and_papers() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    for paper in ("2602.06036", "2604.12989", "2606.01813"):
        assert f"arXiv:{paper}" in citation


def test_python_in_the_documents_runs(tmp_path: Path) -> None:
    """The blocks of README and CONTRIBUTING, on made-up files in place of the shipped ones."""
    import made_up

    made_up.saved(tmp_path / "traces" / "temperature-0" / "humaneval")
    (tmp_path / "traces" / "profiles").mkdir()
    made_up.profile().save(tmp_path / "traces" / "profiles" / "qwen3-8b-cost-h100.json")
    blocks = []
    for document in ("README.md", "CONTRIBUTING.md"):
        blocks += re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace('"traces/', f'"{tmp_path}/traces/'), names)
    test = names["test_half"]
    assert callable(test)
    test()


@pytest.mark.slow
def test_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    """A wheel holds all that ``ddsim demo`` needs, and nothing of the tests."""
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(source)], check=True)
    packages = {p.name for p in (tmp_path / "site").iterdir() if p.is_dir() and not p.name.endswith(".dist-info")}
    assert packages - {"bin"} == {"ddsim", "ddsim_reference"}
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
