"""Draws a draft tree and the path that was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from ddsim.errors import DdsimError
from ddsim.text import printable
from ddsim.trace.trace import Trace
from ddsim.tree.shown import ShownRound
from ddsim.tree.trees import DraftTree
from ddsim.view.style import BLACK, ORANGE, SIZE, SKY, VERMILION, _axes, _figure, _mix, _settle, canvas


@dataclass(frozen=True, eq=False, repr=False)
class DraftedRound(ShownRound):
    """One round of a trace: the tree that was drafted, its tokens, and what the target made of it; made by `drafted_round`."""

    tree: DraftTree
    tokens: NDArray[np.int32]
    """[n + 1] token of each node; node 0 is the root, the last committed token."""
    texts: list[str]
    """[n + 1] the same as text."""
    accepted: list[int]
    """Nodes on the accepted path, the root first."""
    bonus: str | None
    """Text of the token that the target adds after it; None at the end of a sequence."""

    @property
    def branches(self) -> int:
        """Leaves: rows that a drawing takes."""
        return len(set(range(1, len(self.tree))) - set(self.tree.parents[1:].tolist())) or 1

    @property
    def sentence(self) -> str:
        """What came of it, for those who can't see the drawing."""
        path = "".join(self.texts[i] for i in self.accepted[1:])
        nodes, taken = len(self.tree) - 1, len(self.accepted) - 1
        said = f"Of {nodes} drafted token{'s' * (nodes != 1)}, verified in one pass, {taken} {'is' if taken == 1 else 'are'} accepted"
        said += f': "{printable(path, 200)}"' if path else ""
        return said + ("." if self.bonus is None else f'; the target adds "{printable(self.bonus, 40)}".')


def drafted_round(trace: Trace, position: int = 0, budget: int = 64, sequence: int = 0) -> DraftedRound:
    """The tree of ``budget`` nodes that a round at a position of a trace drafts, and the path that is accepted.

    Parameters
    ----------
    trace : Trace
    position : int
        Of the root in its sequence.
    budget : int
        Nodes without the root.
    sequence : int
        Number of the sequence in the trace.

    Raises
    ------
    DdsimError
        No such sequence or position, no round starts there, or a budget that the trace can't answer.

    Examples
    --------
    >>> logprobs = np.log(np.full((3, 2, 2), [0.6, 0.3]))
    >>> trace = Trace.from_arrays([5, 6, 7], np.full((3, 2, 2), [6, 7]), logprobs, max_budget=6)
    >>> r = drafted_round(trace, budget=3)
    >>> r.texts, r.accepted
    (['<5>', '<6>', '<6>', '<7>'], [0, 1])
    >>> print(r)
    A round with a draft tree of 3 nodes: 1 accepted (✓), and the target adds "<7>".
    "<5>"
    ├─ "<6>", 0.600 ✓
    │  └─ "<6>", 0.360
    └─ "<7>", 0.300
    """
    trace.check_budget(budget)
    if not 0 <= sequence < len(trace.sequences):
        raise DdsimError(f"sequence {sequence}: the trace has sequences 0 to {len(trace.sequences) - 1}")
    last = trace.sequences[sequence].length - 2
    if not 0 <= position <= last:
        raise DdsimError(f"position {position}: rounds of sequence {sequence} start at positions 0 to {last}")
    block = next(trace.subset([sequence]).blocks())
    drafted = block.proposal.tree(position, budget)
    assert drafted.tokens is not None
    tokens = np.concatenate([block.tokens[position : position + 1], drafted.tokens[1:]])
    accepted = [0]
    while True:
        following = position + len(accepted)
        true = block.tokens[following] if following < len(block) else -1
        children = np.flatnonzero((drafted.parents == accepted[-1]) & (tokens == true))
        if not len(children):
            break
        accepted.append(int(children[0]))
    bonus = trace.text([true]) if true >= 0 else None
    return DraftedRound(drafted, tokens, [trace.text([t]) for t in tokens], accepted, bonus)


def typical_round(trace: Trace, budget: int = 64, sequence: int | None = None) -> tuple[int, int]:
    """A round (its sequence and position) in which a tree is accepted as far as on average, and further than the chain would be.

    Parameters
    ----------
    trace : Trace
    budget : int
        Nodes of the tree.
    sequence : int, optional
        Look in this one only.

    Raises
    ------
    DdsimError
        No such sequence.

    Examples
    --------
    >>> logprobs = np.log(np.full((3, 2, 2), [0.6, 0.3]))
    >>> typical_round(Trace.from_arrays([5, 6, 7], np.full((3, 2, 2), [6, 7]), logprobs, max_budget=6), 6)
    (0, 0)
    """
    from ddsim.trace.cache import positions_of

    if sequence is not None and not 0 <= sequence < len(trace.sequences):
        raise DdsimError(f"sequence {sequence}: the trace has sequences 0 to {len(trace.sequences) - 1}")
    positions = positions_of(trace)
    reached = (np.asarray(positions.ranks[:]) <= budget).sum(axis=1)
    off = np.abs(reached - reached.mean()) + 1000.0 * (reached <= positions.chain[:])
    starts = np.asarray(positions.starts[: len(positions.tokens)])
    off[(starts + positions.tokens - 1)[positions.tokens > 0]] = np.inf  # no round starts at the last token of a text
    if sequence is not None:
        first = int(starts[sequence])
        return sequence, int(np.argmin(off[first : first + int(positions.tokens[sequence])]))
    at = int(np.argmin(off))
    found = int(np.searchsorted(starts, at, side="right")) - 1
    return found, at - int(starts[found])


def tree_canvas(drafted: DraftedRound) -> Axes:
    """A round drawn on a page of its own, as high as its branches need, with letters as large as text."""
    ax = canvas(8.4, max(1.2, 0.6 + 0.165 * (drafted.branches + 1)))
    return tree(drafted, ax=ax)


def tree(
    drafted: DraftTree | DraftedRound,
    texts: Sequence[str] | None = None,
    accepted: Sequence[int] = (),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a draft tree: depth to the right, a row for each branch, tokens on the nodes, the accepted path lit.

    Boxes are the darker the likelier their path; the best continuation of a node stands beside it, others below. Spaces are shown as
    ``·``, line ends as ``⏎``. The letters are sized to fit, and legible up to about 64 nodes on half a page.

    Parameters
    ----------
    drafted : DraftTree or DraftedRound
        A DraftedRound brings texts and accepted path with it.
    texts : sequence of n + 1 str, optional
        Of the nodes, the root's first. Without them nodes are named by their candidate's rank.
    accepted : sequence of int
        Nodes on the accepted path.
    ax : Axes, optional

    Examples
    --------
    >>> from ddsim.tree.trees import draft_tree
    >>> from ddsim.view.style import canvas
    >>> drawing = tree(draft_tree(np.log([[0.6, 0.3], [0.5, 0.4]]), 3), ["def", " add", "(", " sub"], ax=canvas())
    >>> [text.get_text() for text in drawing.texts][1:4]
    ['·add', '(', '·sub']
    """
    bonus = None
    if isinstance(drafted, DraftedRound):
        shape, texts, accepted, bonus = drafted.tree, drafted.texts, drafted.accepted, drafted.bonus
    else:
        shape = drafted
    count = len(shape)
    if texts is not None and len(texts) != count:
        raise DdsimError(f"{len(texts)} texts for a tree of {count} nodes, the root included")
    names = ["root", *(str(k + 1) for k in shape.ranks[1:])] if texts is None else texts
    labels = [_shown(name) for name in names]
    children: list[list[int]] = [[] for _ in range(count)]
    for node in range(1, count):
        children[shape.parents[node]].append(node)
    row = np.zeros(count)
    rows, stack = 0, [0]
    while stack:  # depth first: the first child continues its parent's row, each other opens a new one
        node = stack.pop()
        parent = shape.parents[node]
        if node and node != children[parent][0]:
            rows += 1
        row[node] = rows
        stack.extend(reversed(children[node]))
    depths = shape.depths
    widths = [max(len(labels[i]) for i in np.flatnonzero(depths == d)) for d in range(int(depths.max()) + 1)]
    gap = 2.6  # characters between columns
    left = np.concatenate([[0.0], np.cumsum(np.array(widths) + gap)])
    extent, height = left[-1] - gap, rows + 1

    if ax is None:
        ax = _axes(None, (SIZE[0] if extent > 45 else 1 + 5.3 * extent / 45, 0.6 + 0.128 * height))
    ax.set_axis_off()
    ax.set_xlim(-1.5, extent + 1.5)
    ax.set_ylim(height - 0.3, -1.9)
    _settle(ax)  # the letters are sized by the place that the axes will have
    box = ax.get_window_extent()
    points = 72 / _figure(ax).dpi
    wide, high = box.width * points / (extent + 3), box.height * points / (height + 1.6)
    size = float(np.clip(min(wide / 0.602, high / 1.45), 3.0, 10.0))  # a letter is 0.602 of its size wide
    # A small tree doesn't fill the axes: its boxes fit their letters.
    ax.set_xlim(-1.5, -1.5 + max(extent + 3, box.width * points / (0.602 * size)))
    ax.set_ylim(-1.9 + max(height + 1.6, box.height * points / (1.6 * size)), -1.9)

    probability = np.exp(shape.logprobs)
    lit = {int(i) for i in accepted}
    plain: list[list[tuple[float, float]]] = []
    bold: list[list[tuple[float, float]]] = []
    for node in range(1, count):
        parent = shape.parents[node]
        x0 = left[depths[parent]] + len(labels[parent]) + 0.5
        x1, y0, y1 = left[depths[node]] - 0.5, row[parent], row[node]
        bend = x1 - 0.9
        path = [(x0, y0), (x1, y1)] if y0 == y1 else [(x0, y0), (bend, y0), (bend, y1), (x1, y1)]
        (bold if node in lit and int(parent) in lit else plain).append(path)
    ax.add_collection(LineCollection(plain, colors="#9a9a9a", linewidths=0.09 * size, zorder=1))
    ax.add_collection(LineCollection(bold, colors=VERMILION, linewidths=0.28 * size, zorder=2))
    for node in range(count):
        on = node in lit
        shade = 0.08 + 0.62 * float(probability[node]) ** 0.5
        face = ORANGE if on else _mix(SKY, shade)
        edge = VERMILION if on else "#8aa4b5"
        x, w = left[depths[node]], len(labels[node])
        ax.add_patch(
            FancyBboxPatch(
                (x - 0.5, row[node] - 0.36), w + 1.0, 0.72, boxstyle="round,pad=0,rounding_size=0.3", mutation_aspect=0.5,
                facecolor=face, edgecolor=edge, linewidth=0.14 * size if on else 0.07 * size, zorder=3,
            )
        )  # fmt: skip
        ax.text(
            x + w / 2, row[node], labels[node], family="DejaVu Sans Mono", fontsize=size, ha="center", va="center_baseline",
            color=BLACK, weight="bold" if on else "normal", zorder=4, parse_math=False,
        )  # fmt: skip
    text = f"{count - 1} nodes"
    if lit:
        text += f", {len(lit - {0})} accepted"
        if bonus is not None:
            text += f', then "{_shown(bonus)}" from the target'
    ax.text(
        -0.5, -1.2, text, fontsize=max(size, 7.0), va="center", ha="left", color="#333333", parse_math=False, clip_on=False
    )  # fmt: skip
    return ax


def _shown(text: str, most: int = 12) -> str:
    """A token's text on one line, with what can't be seen or drawn made visible."""
    marks = {" ": "·", "\n": "⏎", "\t": "→", "\r": "↵"}
    known = _glyphs()
    text = "".join(marks.get(c, c if c.isprintable() and ord(c) in known else "□") for c in text)
    return (text if len(text) <= most else text[: most - 1] + "…") or "∅"


def _glyphs() -> Mapping[int, int]:
    return cast(Mapping[int, int], get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_charmap())
