"""What draft trees and lattices print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddsim.tables import Shown, Summary, drawn, public
from ddsim.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ddsim.tree.trees import DraftTree

MOST = 16
"""Nodes that are drawn in text: the best ones."""


class ShownTree(Shown):
    """How a draft tree is shown."""

    __slots__ = ()

    def summary(self: Any) -> Summary:
        """What is printed: nodes, what they are expected to yield, and the best of them drawn: candidate's rank or token, path probability."""
        nodes = len(self.parents) - 1
        chances = np.exp(self.logprobs[1:])
        said = f"Draft tree of {nodes} node{'s' * (nodes != 1)}: {1 + chances.sum():.2f} tokens a round expected."
        return Summary(said, drawing="\n".join(_lines(self)))

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw it: `ddsim.plot.tree`."""
        return drawn("tree", self, ax=ax)


class ShownLattice(Shown):
    """How a lattice is shown."""

    __slots__ = ()

    def summary(self: Any) -> Summary:
        """What is printed: its size and its likeliest path, in a line."""
        said = f"Lattice of {self.horizon} depth{'s' * (self.horizon != 1)} with {self.width} candidates each"
        path = self.chain()
        tokens = self.token_ids[np.arange(len(path)), path].tolist()
        shown = ", ".join(map(str, tokens[:8])) + (", …" if len(tokens) > 8 else "")
        return Summary(f"{said}; likeliest tokens, each given the one before: {shown}." if tokens else f"{said}.")

    def plot(self: Any, budget: int = 32, *, ax: Axes | None = None) -> Axes:
        """Draw its best tree of ``budget`` nodes: `ddsim.plot.tree`."""
        return drawn("tree", public("draft_tree")(self, budget), ax=ax)


class ShownRound(Shown):
    """How a drafted round is shown."""

    def summary(self: Any) -> Summary:
        """What is printed: how many of its tokens were accepted, and the best nodes drawn, those accepted marked."""
        nodes, taken = len(self.tree) - 1, len(self.accepted) - 1
        said = f"A round with a draft tree of {nodes} node{'s' * (nodes != 1)}: {taken} accepted (✓)"
        said += "." if self.bonus is None else f", and the target adds {_quoted(self.bonus)}."
        return Summary(
            said, drawing="\n".join(_lines(self.tree, [_quoted(text) for text in self.texts], self.accepted[1:]))
        )

    def plot(self: Any, *, ax: Axes | None = None) -> Axes:
        """Draw it: `ddsim.plot.tree`."""
        return drawn("tree", self, ax=ax)


def _quoted(text: str) -> str:
    """A token's text, spaces and line ends to be seen, as in figures."""
    return f'"{printable(text.replace(" ", "·").replace(chr(10), "⏎"), 24)}"'


def _lines(tree: DraftTree, names: Sequence[str] | None = None, accepted: Sequence[int] = ()) -> list[str]:
    """The best nodes and those accepted, each below its parent."""
    last = min(len(tree.parents), MOST + 1)
    shown = sorted({*range(1, last), *accepted})
    if names is None:
        of = ("candidate", tree.ranks + 1) if tree.tokens is None else ("token", tree.tokens)
        names = ["root", *(f"{of[0]} {number}" for number in of[1][1:])]
    below: dict[int, list[int]] = {}
    for node in shown:
        below.setdefault(int(tree.parents[node]), []).append(node)
    lines = [names[0]]

    def grow(parent: int, indent: str) -> None:
        kin = below.get(parent, [])
        for node in kin:
            ends = node == kin[-1]
            mark = " ✓" if node in accepted else ""
            lines.append(f"{indent}{'└─' if ends else '├─'} {names[node]}, {np.exp(tree.logprobs[node]):.3f}{mark}")
            grow(node, indent + ("   " if ends else "│  "))

    grow(0, "")
    left = len(tree.parents) - 1 - len(shown)
    return [*lines, f"… and {left} less likely node{'s' * (left != 1)}"] if left else lines
