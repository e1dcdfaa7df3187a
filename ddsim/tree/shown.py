"""What draft trees and lattices print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ddsim.tables import Shown, Summary, drawn, public

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


def _lines(tree: DraftTree) -> list[str]:
    """The best nodes, each below its parent."""
    shown = min(len(tree.parents), MOST + 1)
    below: dict[int, list[int]] = {}
    for node in range(1, shown):
        below.setdefault(int(tree.parents[node]), []).append(node)
    lines = ["root"]

    def grow(parent: int, indent: str) -> None:
        kin = below.get(parent, [])
        for node in kin:
            last = node == kin[-1]
            name = f"candidate {tree.ranks[node] + 1}" if tree.tokens is None else f"token {tree.tokens[node]}"
            lines.append(f"{indent}{'└─' if last else '├─'} {name}, {np.exp(tree.logprobs[node]):.3f}")
            grow(node, indent + ("   " if last else "│  "))

    grow(0, "")
    left = len(tree.parents) - shown
    return [*lines, f"… and {left} less likely node{'s' * (left != 1)}"] if left else lines
