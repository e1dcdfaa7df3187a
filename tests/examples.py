"""Run the examples of the documents: python tests/examples.py [--write] [FILE ...].

In README.md, CONTRIBUTING.md, RESULTS.md and docs/:

- A ``python`` block is run; blocks of a file share their names, in order. A ``text`` block right behind it holds what it prints.
- A ``console`` block holds commands, ``$ ddsim ...``, each with what it prints below it, 80 columns wide.
- A ``bash`` block holds commands whose options must be right; the slow tests run those whose input is here.
- ``<!-- not run -->`` on the line before a block that can't run here: Python is compiled, options are parsed.

A line ``…`` in what is printed stands for any lines. ``--write`` puts in what is printed today. All runs in a folder that holds the
repository's recordings and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import io
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "reference")]

LINKED = ("traces", "reference", "notebooks")
"""What examples read."""

NEEDS_MORE = {"record", "profile", "decode", "validate", "convert", "train-drafter"}
"""Commands that want a model, most of them a GPU."""

SLOW = {"bench"}

BLOCK = re.compile(r"(?P<skip><!-- not run[^>]*-->\n+)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block, and where it stands."""

    kind: str
    body: str
    line: int
    start: int
    end: int
    """Of the body, in the text."""
    runs: bool
    follows: bool
    """Whether nothing but empty lines is between it and the block before."""


def documents() -> list[Path]:
    """Files with examples."""
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RESULTS.md")]
    return [
        path
        for path in (*named, *sorted((ROOT / "docs").rglob("*.md")))
        if path.exists() and "_build" not in path.parts
    ]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a document.

    Examples
    --------
    >>> [(b.kind, b.body, b.follows) for b in blocks("```python\\nprint(1)\\n```\\n\\n```text\\n1\\n```\\n")]
    [('python', 'print(1)\\n', False), ('text', '1\\n', True)]
    """
    found: list[Block] = []
    before = -1
    for match in BLOCK.finditer(text):
        start, end = match.span("body")
        follows = before >= 0 and not text[before : match.start()].strip()
        found.append(
            Block(
                match["kind"], match["body"], text[:start].count("\n") + 1, start, end, match["skip"] is None, follows
            )
        )
        before = match.end()
    return found


def same(told: str, printed: str) -> bool:
    """Whether a document tells what is printed; a line of "…" stands for any lines.

    Examples
    --------
    >>> same("a\\n…\\nd", "a\\nb\\nc\\nd\\n"), same("a\\nb", "a"), same(" 1 ", " 1")
    (True, False, True)
    """
    lines = [line.rstrip() for line in told.strip("\n").split("\n")]
    pattern = "".join(r"(?:[^\n]*\n)*?" if line == "…" else re.escape(line + "\n") for line in lines)
    return re.fullmatch(pattern, _trimmed(printed)) is not None


def _trimmed(printed: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").split("\n"))


def commands(body: str) -> Iterator[list[str]]:
    """The words of every ``ddsim`` in a block for a shell, with names in place of * where there are such files.

    Examples
    --------
    >>> list(commands("pip install . && ddsim demo --plot a.png | head   # first\\ntorchrun -m ddsim record \\\\\\n  -o b"))
    [['demo', '--plot', 'a.png'], ['record', '-o', 'b']]
    """
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        parts: list[list[str]] = [[]]
        for word in words:
            if word in ("&&", "||", "|", ";"):
                parts.append([])
            else:
                parts[-1].append(word)
        for part in parts:
            at = next((i for i, word in enumerate(part) if Path(word).name == "ddsim"), None)
            if at is not None and (at == 0 or part[at - 1] == "-m"):
                until = next((i for i, word in enumerate(part) if word in (">", "2>", "<")), len(part))
                yield [name for word in part[at + 1 : until] for name in _globbed(word)]


def _globbed(word: str) -> list[str]:
    return sorted(glob.glob(word, root_dir=ROOT)) or [word] if "*" in word else [word]


def parsed(words: list[str]) -> Any:
    """The context of a command, its options checked.

    Raises
    ------
    click.ClickException
        An option that doesn't exist, a value that it doesn't take, or something missing.
    """
    command, rest = _command(words)
    return command.make_context(words[0], rest)


def misspelt(words: list[str]) -> list[str]:
    """Of a command in a sentence, which may lack what is required: words that look like options and aren't."""
    command, rest = _command(words)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return [word for word in rest if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]


@functools.cache
def _group() -> Any:
    import typer

    from ddsim.cli.main import app  # with all commands

    return typer.main.get_command(app)


def _command(words: list[str]) -> tuple[Any, list[str]]:
    group = _group()
    if words[0].startswith("-"):
        return group, list(words)
    _, command, rest = group.resolve_command(group.make_context("ddsim", list(words)), list(words))
    return command, rest


def here(words: list[str]) -> bool:
    """Whether a command needs neither a model nor minutes nor a file that isn't here."""
    if words[0] in NEEDS_MORE | SLOW:
        return False
    values = parsed(words).params.values()
    paths = [
        one
        for value in values
        for one in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(one, Path)
    ]
    return all((ROOT / path).exists() for path in paths)


def ran(words: list[str]) -> str:
    """What a command prints.

    Raises
    ------
    AssertionError
        It fails.
    """
    from ddsim.cli.main import main

    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(words)
    assert code == 0, f"ddsim {shlex.join(words)}: exit code {code}: {errors.getvalue()}"
    return printed.getvalue()


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """Meanwhile the process works in a folder with the repository's recordings, 80 columns wide."""
    before, widths = os.getcwd(), {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH")}
    with tempfile.TemporaryDirectory() as scratch:
        for name in LINKED:
            (Path(scratch) / name).symlink_to(ROOT / name)
        os.chdir(scratch)
        os.environ.update(dict.fromkeys(widths, "80"))
        try:
            yield
        finally:
            os.chdir(before)
            for name, value in widths.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def checked(path: Path) -> tuple[str, list[str]]:
    """Run a document's examples: the text with what they print, and a line for each place where it tells something else."""
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    pieces, wrong, done = [], [], 0
    printed: str | None = None
    with folder():
        for block in blocks(text):
            body = block.body
            if block.kind == "text" and block.follows and printed is not None:
                body = _told(block.body, printed)
            printed = None
            if block.kind == "python":
                code = compile(body, f"{path.name}:{block.line}", "exec")
                printed = _python(code, names) if block.runs else None
            elif block.kind == "console" and block.runs:
                body = "".join(_console(block.body))
            if body != block.body:
                wrong.append(
                    f"{path.relative_to(ROOT)}:{block.line}: tells\n{block.body}where this is printed:\n{body}"
                )
            pieces += [text[done : block.start], body]
            done = block.end
    return "".join([*pieces, text[done:]]), wrong


def _told(told: str, printed: str) -> str:
    return told if same(told, printed) else _trimmed(printed)


def _python(code: Any, names: dict[str, Any]) -> str:
    """What a block prints; the tests that it defines are run."""
    there, printed = set(names), io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(action="ignore"):
        exec(code, names)
        for name in set(names) - there:
            if name.startswith("test_"):
                names[name]()
    return printed.getvalue()


def _console(body: str) -> Iterator[str]:
    """A block's commands, each with what it prints."""
    for part in re.split(r"^(?=\$ )", body, flags=re.M):
        if not part:
            continue
        typed = re.match(r"(?:[^\n]*\\\n)*[^\n]*\n", part)
        assert part.startswith("$ ") and typed is not None, (
            f"a console block begins with a command, $ ddsim ...: {part!r}"
        )
        printed = "".join(ran(words) for words in commands(typed[0]))
        yield typed[0] + _told(part[typed.end() :], printed)


def main() -> int:
    """Check, or write, the documents named or all of them."""
    parser = argparse.ArgumentParser(description="Run the examples of the documents.")
    parser.add_argument("files", nargs="*", type=Path, help="default: all")
    parser.add_argument("--write", action="store_true", help="put in what is printed today")
    given = parser.parse_args()
    found = 0
    for path in [file.resolve() for file in given.files] or documents():
        text, wrong = checked(path)
        if given.write and wrong:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: wrote {len(wrong)} blocks")
        elif wrong:
            print("\n".join(wrong))
        found += len(wrong)
    return int(bool(found) and not given.write)


if __name__ == "__main__":
    sys.exit(main())
