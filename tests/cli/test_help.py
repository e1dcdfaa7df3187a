"""Every command's help shows examples: their options are right, and those that need no model, GPU or cluster run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddsim.cli.main import app
from tests import examples, made_up

Run = Callable[..., Any]  # the fixture of conftest.py

EXAMPLES = {
    command.name or command.callback.__name__: re.findall(r"\[bold\](.*?)\[/\]", command.epilog or "")
    for command in app.registered_commands
    if command.callback
}
LINES = [line for lines in EXAMPLES.values() for line in lines]

CHEAP = {"--bootstrap": "4", "--seeds": "1"}
"""What an example is run with besides, where its command takes it."""


def words_of(line: str) -> list[str]:
    (words,) = examples.commands(line)
    return words


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_help_has_an_example_of_its_command(command: str) -> None:
    assert EXAMPLES[command]
    assert all(words_of(line)[0] == command for line in EXAMPLES[command])


@pytest.mark.parametrize("line", LINES)
def test_options_of_examples_are_right(line: str) -> None:
    examples.parsed(words_of(line))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files under the names that examples use."""
    folder = tmp_path_factory.mktemp("examples")
    for name, workload in (("humaneval", "code"), ("chat", "chat")):
        made_up.saved(
            folder / "traces" / "temperature-0" / name, sequences=8, max_budget=96, workloads=(workload,), prompt=name
        )
    for name in ("traces/marginals", "old", "new"):
        shutil.copytree(folder / "traces" / "temperature-0", folder / name)
    (folder / "traces" / "validation").symlink_to(examples.ROOT / "traces" / "validation")
    made_up.profile(contexts=(256, 1024), batches=(1, 8)).save(folder / "h100.json")
    for name in ("vllm.json", "eager.json"):
        shutil.copy(folder / "h100.json", folder / name)
    (folder / "mine.csv").write_text("tokens,seconds\n1,0.0065\n64,0.0073\n512,0.0193\n")
    (folder / "DRAFTER").mkdir()
    return folder


DEAR = ("ddsim demo", "ddsim rules traces/temperature-0/chat -p vllm.json")
"""What takes seconds, or is run by CI anyway."""


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.slow) if line.startswith(DEAR) else line for line in LINES]
)
def test_examples_run(cli: Run, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    words = words_of(line)
    monkeypatch.chdir(stand_ins)
    if words[0] == "compare" and "yesterday.json" in words and not Path("today.json").exists():
        answer = cli("plan", "old", "-p", "h100.json", "--bootstrap", 4, "--json")
        for name in ("yesterday.json", "today.json"):
            Path(name).write_text(answer.out)
    if not runs(words):
        pytest.skip("needs a model, a GPU, a cluster or minutes")
    options = {name for parameter in examples._command(words)[0].params for name in parameter.opts}
    words += [word for name, value in CHEAP.items() if name in options for word in (name, value)]
    answer = cli(*words)
    assert answer.code == 0, answer.err
    assert answer.out or "-o" in words
    if "--json" in words:
        json.loads(answer.out)
    for option in ("-o", "--out", "--plot"):
        if option in words and (name := words[words.index(option) + 1]) != "-":
            assert os.path.getsize(name)


def runs(words: list[str]) -> bool:
    """Whether all that a command needs is here."""
    if "--cluster" in words or words[0] in examples.SLOW or (words[0] in examples.NEEDS_MORE and "--show" not in words):
        return False
    values = examples.parsed(list(words)).params.values()
    flat = [one for value in values for one in (value if isinstance(value, (list, tuple)) else [value])]
    return all(path.exists() for path in flat if isinstance(path, Path))
