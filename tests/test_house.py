"""How the code stands: no circle of imports, no arrow that runs back up, no file that is too long."""

from __future__ import annotations

import ast

import pytest

from tests import house

LONGEST = 600
TOO_LONG: set[str] = set()  # to be shortened
GRAPH = house.arrows()


def test_no_circle_of_modules() -> None:
    packages = {name for name, path in house.modules().items() if path.name == "__init__.py"}
    house.order({module: used - packages for module, used in GRAPH.items() if module not in packages})


def test_no_circle_of_rooms() -> None:
    house.order(
        {room: used - set(house.PACKAGES) for room, used in house.rooms(GRAPH).items() if room not in house.PACKAGES}
    )


@pytest.mark.parametrize("room", sorted({house.room_of(m) for m in GRAPH} - set(house.PACKAGES)))
def test_a_room_uses_what_its_docstring_says(room: str) -> None:
    allowed = house.may_use(room)
    used = house.rooms(GRAPH)[room] - {"ddsim"}
    if allowed is not None:
        assert used <= allowed, f"{room} also uses {sorted(used - allowed)}"
        assert allowed <= used, f"{room} doesn't use {sorted(allowed - used)}"


def test_ddsim_never_imports_torch_and_reaches_the_decoder_from_the_command_line_only() -> None:
    for module, path in house.modules().items():
        if module.split(".")[0] == "ddsim":
            tree = ast.parse(path.read_text())
            names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not {n for n in names if n.split(".")[0] in ("torch", "triton", "transformers")}, module
            assert module.startswith("ddsim.cli") or not {n for n in names if n.startswith("ddsim_reference")}, module


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=[pytest.mark.xfail(strict=True)] if module in TOO_LONG else [])
        for module in sorted(house.modules())
    ],
)
def test_files_are_one_thing(module: str) -> None:
    path = house.modules()[module]
    assert len(path.read_text().splitlines()) <= LONGEST
    sentence = ast.get_docstring(ast.parse(path.read_text()))
    assert sentence or path.name == "__init__.py" or path.name == "__main__.py", f"{path}: says nothing of itself"


def test_a_circle_is_seen() -> None:
    with pytest.raises(AssertionError, match="circle"):
        house.order({"a": {"b"}, "b": {"a"}})
