"""The kinds of cost curves by name, without the NumPy that their code needs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddsim.cost.shapes import Shape

#: Kind -> its `Shape`. Of equally good fits the earliest is picked, with steps last unless they are declared or evident.
_SHAPES = {
    "steps": "ddsim.cost.shapes:Steps",
    "roofline": "ddsim.cost.shapes:OneRoofline",
    "convex": "ddsim.cost.shapes:Convex",
    "isotonic": "ddsim.cost.shapes:Isotonic",
    "table": "ddsim.cost.shapes:Shape",
}
KINDS = tuple(_SHAPES)


@cache
def shape_of(kind: str) -> Shape:
    """How a kind is fitted and read; imported when it is used.

    Examples
    --------
    >>> shape_of("steps").pads, shape_of("table").pads
    (True, False)
    """
    module, _, name = _SHAPES[kind].partition(":")
    return getattr(import_module(module), name)()  # type: ignore[no-any-return]
