"""What several tests share: small made-up files, and the command line run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MPLBACKEND", "agg")
# Processes that tests start, in whatever folder, run this tree.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "reference")])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, those in Triton's interpreter, so that none of them is what is left at the end."""
    items.sort(key=lambda item: "in_the_interpreter" not in item.name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """A process that has done its half takes tests from the other's; tests of a file mostly stay together, as what they share does."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@dataclass(frozen=True)
class Answer:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what tests cache out of the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDSIM_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def fits_are_kept() -> Iterator[None]:
    """Fit a profile once in a kind: a fit depends on nothing else, and a second one costs every test a second.

    Tests of fits, in tests/cost, ask for each anew.
    """
    from ddsim.cost import model
    from ddsim.cost.fit import fit

    kept: dict[str, Any] = {}

    def once(profile: Any, kind: str, seed: int = 0) -> Any:
        key = json.dumps([profile.to_json(), kind, seed])
        if key not in kept:
            kept[key] = fit(profile, kind, seed)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "fit", once)
        yield


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Run ``ddsim WORD ...`` through its entry point, 80 columns wide."""
    from ddsim.cli.main import main

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")

    def run(*words: str | Path | int | float) -> Answer:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made-up trace (``trace``, two workloads, exact to budget 64) and profile (``profile.json``)."""
    from tests import made_up

    folder = tmp_path_factory.mktemp("files")
    made_up.saved(folder / "trace")
    made_up.profile(contexts=(256, 1024, 4096)).save(folder / "profile.json")
    return folder
