"""Mutations of JSON documents and odd values of options, and what has to hold of every run, whatever it is given."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import typer

from ddsim.cli.app import app
from ddsim.cli.main import main
from tests.cli import hostile

SECONDS = 60  # that a case may take on a busy machine; most take a hundredth
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e200, 1e-200, 5e-324, 2**50, 2**53 + 1, 2**63, 10**30, "", "x", "\ud800", "[/red]",
    "\x1b[31m", [], {}, [[]], [1, 2, 3], {"x": 1}, [None], "n" * 3000, 1e308, -1e308, "1", "NaN",
)  # fmt: skip
WORDS = (
    "", " ", "-1", "0", "1", "2", "1.5", "1e400", "nan", "-inf", "1" + "0" * 24, "9" * 5000, "0x10", "１", "1_0", ".", "/", "/dev/zero",
    "/dev/null", "/dev/full", "-", "--", "n" * 5000, "[/red]", "\x1b[31mx", "\udc80", "日本", "DDTree:" + "1" + "0" * 30,
    "DDTree:0", "Share:" * 5000, "LongRun:price=nan", "LongRun:price=1e400", "LongRun:memory=-1", "*", "/*", "~", "~nobody/x",
    "a\nb", "None", "{}", "a\0b", "x.json", "x.svg", "all", "Uniform:RoundRatio", "FairRatio", "table", "isotonic", "nowhere/x.png",
)  # fmt: skip


class TooLong(BaseException):
    """A run that doesn't end."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in what takes longer."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(words: Sequence[object], seconds: float = SECONDS) -> tuple[int, str, str]:
    """The command line in this process: exit code, output and errors; checked for what must hold of every run."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), at_most(seconds):
        code = main([str(word) for word in words])
    told = []
    for stream in (out, err):
        stream.flush()
        told.append(stream.buffer.getvalue())  # type: ignore[attr-defined]
    text = told[1].decode()
    assert code in (0, 1, 2), (words, code, text)
    assert "Traceback" not in text, (words, text)
    assert code == 0 or sum(not line.startswith("warning: ") for line in text.splitlines()) == 1, (words, text)
    if not any(str(word).startswith(("-o", "--out", "--plot")) for word in words):  # files may hold anything
        assert not hostile.RAW.search(told[0].decode() + text), (words, told)
    return code, told[0].decode(errors="replace"), text


@dataclass(frozen=True)
class Reader:
    """A document and a command that reads it from ``FILE``."""

    name: str
    document: Any
    words: tuple[Any, ...]
    writes: bool = False


def mutated(document: Any, rng: np.random.Generator) -> bytes:
    """A document with one to three changes of its structure or its bytes."""
    held = copy.deepcopy(document)
    if rng.random() < 0.65:
        for _ in range(rng.integers(1, 4)):
            _change(held, rng)
        text = json.dumps(held)
        if rng.random() < 0.1:  # what json.dumps doesn't write
            text = text.replace(
                "0", ["NaN", "Infinity", "1e999", "7" * 5000, "[" * 900, "0, 0", "-"][rng.integers(7)], 1
            )
        return text.encode("utf-8", "surrogatepass")
    content = bytearray(json.dumps(held, indent=int(rng.integers(0, 3))).encode())
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(content) or 1))
        what = rng.integers(7)
        if what == 0:
            content[at : at + 1] = bytes([int(rng.integers(256))])
        elif what == 1:
            del content[at:]
        elif what == 2:
            del content[at : at + int(rng.integers(1, 20))]
        elif what == 3:
            content[at:at] = content[at : at + int(rng.integers(1, 200))]
        elif what == 4:
            content[at:at] = rng.bytes(int(rng.integers(1, 8)))
        elif what == 5:
            content[at:at] = b" \n\t"[: int(rng.integers(1, 4))]
        elif len(content) > at:
            content[at] ^= 1 << int(rng.integers(8))
    if rng.random() < 0.05:
        return bytes(content).decode("utf-8", "replace").encode("utf-16")
    return bytes(content)


def _change(held: Any, rng: np.random.Generator) -> None:
    """Change one entry at any depth, in place."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                walk(value[key])

    walk(held)
    if not places:
        return
    parent, key = places[rng.integers(len(places))]
    what = rng.integers(6)
    if what == 0:
        del parent[key]
    elif what == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[rng.integers(len(parent))]))
    elif what == 2 and isinstance(parent, dict):
        parent[["x", "seconds", "tokens", "", "kind"][rng.integers(5)]] = parent.pop(key)
    elif what == 3 and isinstance(parent[key], (int, float)):
        parent[key] = parent[key] * [-1, 0, 1000, 1e-6, 1e15, 2.5][rng.integers(6)]
    else:
        parent[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])


def documents(readers: Sequence[Reader], folder: Path, count: int, seed: int) -> dict[int, int]:
    """Let readers meet mutations of their documents; how often each exit code came."""
    rng = np.random.default_rng([seed, 1])
    file, out = folder / "mutated.json", folder / "out.json"
    right: dict[str, str] = {}
    for reader in readers:
        file.write_text(json.dumps(reader.document))
        code, right[reader.name], said = run([file if word == "FILE" else word for word in reader.words], 600)
        assert code == 0, (reader.name, said)
    found: dict[int, int] = {}
    for i in range(count):
        reader = readers[i % len(readers)]
        content = mutated(reader.document, rng)
        file.write_bytes(content)
        words = [file if word == "FILE" else word for word in reader.words]
        if reader.writes:
            out.write_text("before")
            words += ["-o", out]
        try:
            code, answer, said = run(words)
        except BaseException as error:
            raise AssertionError(f"{reader.name}, {content!r}") from error
        if code == 2:
            assert str(file) in said or reader.name == "calibration", (reader.name, said)
        if reader.writes:
            assert code == 0 or out.read_text() == "before"
            assert code != 0 or json.loads(out.read_text())["kind"]
        assert {p.name for p in folder.iterdir()} <= {file.name, out.name, "trace", "profile.json"}
        with contextlib.suppress(ValueError, RecursionError):
            if json.dumps(
                json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once), sort_keys=True
            ) == json.dumps(reader.document, sort_keys=True):
                assert code == 0 and (answer == right[reader.name] or reader.writes), (
                    reader.name,
                    content,
                    said,
                    answer,
                )
        found[code] = found.get(code, 0) + 1
    return found


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(items)) < len(items):
        raise ValueError("a key stands twice, which is refused")
    return dict(items)


def options() -> dict[str, list[click.Parameter]]:
    """Every command's parameters, as the command line itself knows them."""
    group: Any = typer.main.get_command(app)
    return {name: list(command.params) for name, command in group.commands.items()}


def odd_options(base: dict[str, list[Any]], count: int, seed: int) -> dict[int, int]:
    """Give commands odd values of their options, one or two at a time; how often each exit code came."""
    rng = np.random.default_rng([seed, 2])
    known = options()
    assert set(base) == set(known), "a command without words to start from"
    found: dict[int, int] = {}
    names = sorted(base)
    for i in range(count):
        name = names[i % len(names)]
        words = [name, *base[name]]
        for _ in range(rng.integers(1, 3)):
            parameter = known[name][rng.integers(len(known[name]))]
            odd = WORDS[rng.integers(len(WORDS))]
            if parameter.param_type_name == "argument":
                words = [odd if word is base[name][0] else word for word in words]
            elif getattr(parameter, "is_flag", False):
                words.append(parameter.opts[rng.integers(len(parameter.opts))])
            else:
                words.append(f"{max(parameter.opts, key=len)}={odd}" if rng.random() < 0.5 else parameter.opts[0])
                if "=" not in words[-1]:
                    words.append(odd)
        if "--help" in words or any(str(w).startswith(("--install", "--show-c")) for w in words):
            continue
        try:
            code = run(words)[0]
        except TooLong:
            raise AssertionError(f"no end: {words}") from None
        found[code] = found.get(code, 0) + 1
    return found
