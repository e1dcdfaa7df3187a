"""The mark, colour and line of each policy: the same in every figure, and decided by its name alone."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddsim.replay.outcome import CALIBRATED
from ddsim.view.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLES, VERMILION

WINE = "#882255"

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "d")

TREES = ("v", "<", "d", "p", "h")
"""Of fixed trees, by the remainder of their nodes by 5: neighbours such as 63 and 64 differ, and none is a common rule's mark."""

HOLLOW = "none"


@dataclass(frozen=True)
class Look:
    """How a policy is drawn.

    Attributes
    ----------
    colour : str
        As #rrggbb.
    marker : str
        Of Matplotlib.
    fill : str
        Matplotlib's fillstyle: "full", or "none" (one width for all requests), "right" (at its share), "bottom" (calibrated),
        "top" (other settings than usual).
    line : str or tuple
        Matplotlib's linestyle.

    Examples
    --------
    >>> Look("#0072B2", "o").mark()["marker"]
    'o'
    """

    colour: str
    marker: str
    fill: str = "full"
    line: Any = "-"

    def mark(self) -> dict[str, Any]:
        """Settings of a mark, for ``plot`` and ``errorbar``."""
        face = "white" if self.fill == HOLLOW else self.colour
        style = "full" if self.fill == HOLLOW else self.fill
        return {
            "color": self.colour, "marker": self.marker, "fillstyle": style, "markerfacecolor": face,
            "markerfacecoloralt": "white", "markeredgecolor": self.colour,
        }  # fmt: skip


# Families share a hue: fixed trees blue, chains orange, the best fixed settings black, bounds grey, engines' own rules wine.
_KNOWN = {
    "AR": Look(GREY, "X", line=STYLES[2]),
    "Hindsight": Look(GREY, "*", line=STYLES[1]),
    "BestFixed": Look(BLACK, "o", line=STYLES[1]),
    "BestChain": Look(BLACK, "s", line=STYLES[2]),
    "BestSchedule": Look(BLACK, "P", line=STYLES[3]),
    "DFlash": Look(ORANGE, "s", line=STYLES[3]),
    "CaDDTree": Look(VERMILION, "D"),
    "CaDDTree filled": Look(VERMILION, "d", line=STYLES[1]),
    "GreedySteps": Look(VERMILION, "v", line=STYLES[3]),
    "RoundRatio": Look(GREEN, "^"),
    "FairRatio": Look(GREEN, ">", line=STYLES[1]),
    "LongRun": Look(PURPLE, "P"),
    "LongRun online": Look(PURPLE, ">", line=STYLES[1]),
    "DSpark": Look(WINE, "D"),
    "AdaptiveVerification": Look(WINE, "v"),
    "AdaptiveSteps": Look(WINE, "^"),
}

_SIZED = {"DDTree": BLUE, "Chain": ORANGE}

_FILLED = {" uniform": HOLLOW, " share": "right", CALIBRATED: "bottom", " isotonic": "bottom"}
"""How the mark of a rule is filled that is carried over: one width for all, each at its share, on calibrated gains."""

_TURNED = {"^": "v", "v": "^", "<": ">", ">": "<", "P": "X", "X": "P", "D": "s", "s": "D", "d": "*", "*": "d", "o": "h"}
"""A rule's mark where the rule decides on chains."""


def policy_look(name: str) -> Look:
    """The mark, colour and line of a policy, by its name in tables.

    They hang on nothing else: not on the order, nor on what is drawn beside it. Fixed trees are blue and chains orange, the darker the
    larger; a rule has its own mark, which is hollow where one width is chosen for all requests, and turned where it decides on chains.

    Examples
    --------
    >>> policy_look("LongRun").colour, policy_look("LongRun").marker, policy_look("LongRun uniform").fill
    ('#CC79A7', 'P', 'none')
    """
    if name.endswith(" on chains"):
        base = policy_look(name.removesuffix(" on chains"))
        return Look(base.colour, _TURNED[base.marker], base.fill, base.line)
    for ending, fill in _FILLED.items():
        if name.endswith(ending):
            base = policy_look(name.removesuffix(ending))
            return Look(base.colour, base.marker, fill, base.line)
    if name in _KNOWN:
        return _KNOWN[name]
    sized = re.fullmatch(r"(DDTree|Chain)\((\d+)\)", name)
    if sized:
        kind, count = sized.group(1), int(sized.group(2))
        marks = TREES if kind == "DDTree" else MARKS
        return Look(_shade(_SIZED[kind], count), marks[count % len(marks)], line=STYLES[count % 4])
    number = zlib.crc32(name.encode())
    mark, line = MARKS[number % len(MARKS)], STYLES[number // 64 % 4]
    kind = _KNOWN.get(re.split(r"[ (]", name)[0])
    if kind is not None:  # a known rule with settings
        return Look(kind.colour, mark, "top", line)
    if name.startswith("Schedule("):
        return Look(BLACK, mark, HOLLOW, line)
    return Look(SKY if number // 13 % 2 else "#999933", mark, "full" if number // 26 % 2 else HOLLOW, line)


def _shade(colour: str, count: int) -> str:
    """A hue by size: 63 nodes have the hue itself, each halving is lighter, each doubling darker."""
    steps = float(np.clip(np.log2(count + 1) - 6, -5, 4))
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    rgb = [round(c - (255 - c) * 0.11 * steps if steps < 0 else c * (1 - 0.2 * steps)) for c in rgb]
    return "#" + "".join(f"{c:02X}" for c in rgb)
