"""Draw the imports of the project: python tests/house.py [--svg FILE].

A room is a sub-package, or a module beside the sub-packages. Every room's docstring ends with a line "May use: ...", the rooms that
it may import from; what no room names may be used by nobody. Imports inside functions count too, those under TYPE_CHECKING don't.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"ddsim": ROOT / "ddsim", "ddsim_reference": ROOT / "reference" / "ddsim_reference"}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room that a module stands in: ddsim.trace.reader stands in ddsim.trace, ddsim.errors is a room of its own."""
    return ".".join(module.split(".")[:2])


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements but those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (found for other in node.orelse for found in _imports(other))
        else:
            yield from _imports(node)


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The project's modules that a module imports."""
    found = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _imports(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                base = ".".join(
                    package.split(".")[: len(package.split(".")) - node.level + 1] + ([base] if base else [])
                )
            # "from ddsim import tree" takes a module, "from ddsim.tree import draft_tree" a name of one
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        found |= {name for name in names if name in known and name != module}
    return found


def arrows() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    known = modules()
    return {module: imports(module, path, known) for module, path in known.items()}


def may_use(room: str) -> set[str] | None:
    """The rooms that a sub-package's docstring names, or None for a module that is no sub-package."""
    path = modules().get(room)
    if path is None or path.name != "__init__.py":
        return None
    match = re.search(r"^May use: (.*?)\.\s*$", ast.get_docstring(ast.parse(path.read_text())) or "", re.M | re.S)
    if match is None:
        raise AssertionError(f'{path.relative_to(ROOT)}: its docstring must end with a line "May use: ROOM, ROOM."')
    names = [name.strip() for name in match.group(1).replace("\n", " ").split(",")]
    return {name if "." in name else f"{room.split('.')[0]}.{name}" for name in names if name != "nothing"}


def order(graph: dict[str, set[str]]) -> list[str]:
    """A graph's nodes, what is used before what uses it.

    Raises
    ------
    AssertionError
        There is a circle; the line walks along it.
    """
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError("a circle of imports: " + " <- ".join(error.args[1])) from None


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between rooms."""
    out: dict[str, set[str]] = {}
    for module, used in graph.items():
        room = room_of(module)
        out.setdefault(room, set()).update({room_of(other) for other in used} - {room})
    return out


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floor: a room stands one floor above the highest that it uses."""
    height: dict[str, int] = {}
    for room in order(graph):
        height[room] = 1 + max((height[used] for used in graph[room]), default=-1)
    return [[room for room in graph if height[room] == level] for level in range(max(height.values()) + 1)]


def lines_of(room: str) -> int:
    """Lines of code in a room."""
    return sum(len(path.read_text().splitlines()) for module, path in modules().items() if room_of(module) == room)


def text(graph: dict[str, set[str]]) -> str:
    """The house in words, from the top floor down."""
    out = []
    for level, found in reversed(list(enumerate(floors(graph)))):
        out.append(f"floor {level}")
        for room in sorted(found):
            used = ", ".join(sorted(graph[room])) or "nothing"
            out.append(f"  {room} ({lines_of(room)} lines) uses {used}")
    return "\n".join(out)


def svg(graph: dict[str, set[str]]) -> str:
    """The house as a picture: floors from the top down, arrows from a room to what it uses."""
    wide, high, gap = 150, 44, 70
    levels = list(reversed(floors(graph)))
    width = max(len(level) for level in levels) * (wide + 20) + 20
    place = {}
    for y, level in enumerate(levels):
        left = (width - len(level) * (wide + 20)) / 2 + 10
        for x, room in enumerate(sorted(level)):
            place[room] = left + x * (wide + 20), 20 + y * (high + gap)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{len(levels) * (high + gap)}" font-family="sans-serif">'
    ]
    out.append('<rect width="100%" height="100%" fill="white"/>')
    for room, used in graph.items():
        for other in used:
            (x, y), (u, v) = place[room], place[other]
            out.append(f'<line x1="{x + wide / 2}" y1="{y + high}" x2="{u + wide / 2}" y2="{v}" stroke="#999"/>')
    for room, (x, y) in place.items():
        out.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="#eef" stroke="#446"/>')
        short = room.replace("ddsim_reference", "ref").replace("ddsim.", "")
        out.append(f'<text x="{x + wide / 2}" y="{y + 19}" text-anchor="middle" font-size="13">{short}</text>')
        out.append(
            f'<text x="{x + wide / 2}" y="{y + 35}" text-anchor="middle" font-size="11">{lines_of(room)} lines</text>'
        )
    return "\n".join([*out, "</svg>"])


if __name__ == "__main__":
    house = {room: used - {"ddsim"} for room, used in rooms(arrows()).items() if room not in PACKAGES}
    print(text(house))
    if "--svg" in sys.argv:
        Path(sys.argv[sys.argv.index("--svg") + 1]).write_text(svg(house))
