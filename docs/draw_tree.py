"""Draws one draft tree with its accepted path, of a shipped recording: ``python docs/draw_tree.py`` writes docs/tree.svg.

Text stays text, and colours are read on light and on dark pages. ``ddsim.plot.tree`` draws any tree with Matplotlib.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

import ddsim
from ddsim.plot import drafted_round

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "tree.svg"
TRACE, SEQUENCE, POSITION, BUDGET = "traces/temperature-0/humaneval", 22, 62, 20
"""A round of an answer to HumanEval whose text leaves the best candidates twice."""

LETTER, ROW, BOX, GAP, EDGE = (
    7.6,
    31,
    23,
    20,
    8,
)  # pixels: a letter's width, rows apart, a box, columns apart, a box's padding
STYLE = (
    "text{font:12.6px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1f2328;text-anchor:middle}"
    ".a{font-weight:700}.s{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#7d8590;text-anchor:start}"
    "path{fill:none;stroke:#8c959f;stroke-width:1.3}.p{stroke:#d9480f;stroke-width:3.2}"
    "rect{stroke:#6e9ab8;stroke-width:1}.r{stroke:#d9480f;stroke-width:2.2}.d{stroke-dasharray:4 3}"
)


def shown(text: str) -> str:
    """A token on one line; the space before a word is left out."""
    return text.removeprefix(" ").replace(" ", "·").replace("\n", "⏎").replace("\t", "→") or "·"


def draw() -> tuple[str, str]:
    """The picture as SVG, and what it shows in a sentence."""
    drafted = drafted_round(ddsim.open_trace(ROOT / TRACE), POSITION, BUDGET, SEQUENCE)
    tree, accepted, labels = drafted.tree, drafted.accepted, [shown(text) for text in drafted.texts]
    children: list[list[int]] = [[] for _ in labels]
    for node in range(1, len(labels)):
        children[tree.parents[node]].append(node)
    row, rows, stack = [0] * len(labels), 0, [0]
    while stack:  # the first child stands beside its parent, each other opens a row
        node = stack.pop()
        rows += node > 0 and node != children[tree.parents[node]][0]
        row[node] = rows
        stack.extend(reversed(children[node]))
    depths = tree.depths
    longest = [max(len(labels[i]) for i in np.flatnonzero(depths == d)) for d in range(int(depths.max()) + 1)]
    left = np.cumsum([2.0, *(LETTER * n + 2 * EDGE + GAP for n in longest)])
    x = [float(left[d]) for d in depths]
    y = [2 + BOX / 2 + ROW * r for r in row]
    width = [LETTER * len(label) + 2 * EDGE for label in labels]

    edges, boxes = [], []
    for node in range(1, len(labels)):
        parent = int(tree.parents[node])
        level = y[node] == y[parent]
        bend = "" if level else f"H{x[node] - GAP / 2:.0f}V{y[node]:.1f}"
        lit = node in accepted and parent in accepted
        kind = ' class="p"' if lit else ""
        edges.append((lit, f'<path{kind} d="M{x[parent] + width[parent]:.0f} {y[parent]:.1f}{bend}H{x[node]:.0f}"/>'))

    def box(left: float, middle: float, label: str, fill: str, kind: str, bold: bool) -> str:
        wide = LETTER * len(label) + 2 * EDGE
        kind, weight = f' class="{kind}"' if kind else "", ' class="a"' if bold else ""
        return (
            f'<rect{kind} x="{left:.0f}" y="{middle - BOX / 2:.1f}" width="{wide:.0f}" height="{BOX}" rx="5" fill="{fill}"/>'
            f'<text{weight} x="{left + wide / 2:.1f}" y="{middle + 4.4:.1f}">{escape(label)}</text>'
        )

    for node, label in enumerate(labels):
        lit = node in accepted
        share = 0.1 + 0.6 * float(np.exp(tree.logprobs[node])) ** 0.5
        blue = "#{:02x}{:02x}{:02x}".format(*(round(255 + share * (c - 255)) for c in (86, 180, 233)))
        fill = "#e9ecef" if node == 0 else "#ffc078" if lit else blue
        boxes.append(box(x[node], y[node], label, fill, "r" if lit else "", lit))
    last = accepted[-1]
    assert drafted.bonus is not None and not children[last], "choose a round that ends in a leaf, before the text does"
    end = x[last] + width[last]
    edges.append((True, f'<path class="p d" d="M{end:.0f} {y[last]:.1f}h{GAP}"/>'))
    boxes.append(box(end + GAP, y[last], shown(drafted.bonus), "#fff", "r d", True))
    chain = next((i for i, node in enumerate(accepted[1:]) if tree.ranks[node]), len(accepted) - 1)
    count, found = len(labels) - 1, len(accepted) - 1
    told = [
        f"A round on HumanEval: the last token (grey) and {count} drafted ones, verified in one pass of the target.",
        f"{found} are accepted (orange) and the target adds one of its own (dashed): {found + 1} tokens. "
        f"The chain in the top row gives {chain + 1}.",
    ]
    wide = max(a + b for a, b in zip(x, width, strict=True)) + 2
    high = max(y) + BOX / 2 + 50
    words = "".join(
        f'<text class="s" x="2" y="{high - 27 + 19 * i:.0f}">{escape(line)}</text>' for i, line in enumerate(told)
    )
    lines = "".join(line for _, line in sorted(edges))
    alt = " ".join(told)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" role="img">'
        f"<title>{escape(alt)}</title><style>{STYLE}</style>{lines}{''.join(boxes)}{words}</svg>\n",
        alt,
    )


if __name__ == "__main__":
    FILE.write_text(draw()[0], encoding="utf-8")
    print(FILE.relative_to(ROOT))
