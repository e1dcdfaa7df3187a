"""Names that markup, terminals, XML and mathematics read as something else, and what every command has to make of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ddsim.errors import DdsimError
from ddsim.trace.schema import _check_name
from tests import made_up

NAMES = (
    "[/red]", "[bold red]x", ":smile:", "$x$ and $\\frac$", "$", "_hidden", "\x1b[31mred\x1b]0;title\x07", "a\x00b", "a\nb\rc",
    "\u202eevil", "\ufffe\uffff", "\x9b31m", "n" * 10_000, "日本語" * 30, "👩\u200d💻🏳️\u200d🌈", "<script>alert(1)</script>&amp;",
    "{{ 7 * 7 }}{% raw %}", "'\"` \\", "", " ", "]]>", "../../etc/passwd", "%s%n", "-1", ' d="0.123456"', "AR", "all",
)  # fmt: skip
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""What must reach neither a terminal nor a page."""


def made(count: int, seed: int) -> list[str]:
    """Names made of the pieces above and of any characters at all."""
    rng = np.random.default_rng(seed)
    names: dict[str, None] = {}
    while len(names) < count:
        parts = []
        for _ in range(rng.integers(1, 5)):
            if rng.random() < 0.6:
                piece = NAMES[rng.integers(len(NAMES))][:200]
                start = int(rng.integers(0, max(1, len(piece) // 2)))
                parts.append(piece[start : start + int(rng.integers(1, 30))])
            else:
                top = [0x20, 0x250, 0x3000, 0x10FFFF][rng.integers(4)]
                codes = rng.integers(0, top, rng.integers(1, 6)).tolist()
                parts.append("".join(chr(c) for c in codes if not 0xD800 <= c <= 0xDFFF))
        names["".join(parts)] = None
    return list(names)


def may_name(name: str) -> bool:
    """Whether a trace takes it as the name of a workload; control characters and very long names are refused there."""
    try:
        _check_name("trace", "workload", name)
    except DdsimError:
        return False
    return True


class _Page(HTMLParser):
    """Notes which scripts a page has."""

    scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"


def use(cli: Callable[..., Any], names: Sequence[str], profile: Path, folder: Path) -> int:
    """Let all commands meet workloads, prompts and provenance of these names; the number of runs."""
    names = [name for name in names if may_name(name)]
    trace = folder / "names"
    joined = " ".join(NAMES)[:2000]
    made_up.saved(
        trace,
        sequences=2 * len(names),
        length=16,
        horizon=4,
        max_budget=8,
        workloads=names,
        prompt=names[0],
        origin=joined,
    )
    words = (trace, "-p", profile, "--kind", "table", "--bootstrap", 5)
    few = ("--policy", "AR", "--policy", "DDTree:4")
    runs: list[tuple[Any, ...]] = [
        ("replay", *words, *few, "--plot", folder / "replay.svg", "-o", folder / "r.csv"),
        ("replay", *words, *few, "--json"),
        ("plan", *words, "--plot", folder / "plan.svg"),
        ("report", *words, "-o", folder / "report.html"),
        ("export", trace, "-o", folder / "s.json"),
        ("calibrate", trace, "-o", folder / "c.json"),
        *(("replay", *words, *few, "--workload", name, "--json") for name in names[:2]),
        *(("replay", *words, "--policy", name) for name in names[:2]),
    ]
    for run in runs:
        answer = cli(*(str(w).replace("\0", "\\0") for w in run))
        assert answer.code in (0, 2), (run, answer)
        assert answer.code == 0 or names[0] in run or names[1] in run or "\0" in "".join(names[:2]), (run, answer)
        assert not RAW.search(answer.out + answer.err), (run, answer)
        if answer.code == 0 and "--json" in run:
            json.loads(answer.out)
    for svg in folder.glob("*.svg"):
        assert ElementTree.fromstring(svg.read_bytes()).tag.endswith("svg")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not RAW.search(page)
    parser = _Page()
    parser.feed(page)
    assert parser.scripts == 1
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    return len(runs)
