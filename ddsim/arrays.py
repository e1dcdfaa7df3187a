"""Arrays: what users may pass, and the one convention that kernels take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsim.errors import DdsimError


def numbers(value: Any, what: str) -> NDArray[Any]:
    """An array of integers or floats, from anything array-like.

    Parameters
    ----------
    value : array_like
        NumPy arrays come back as they are. Tensors of PyTorch and lists of them are detached and copied to the host
        if need be; bfloat16, which NumPy lacks, becomes float32.
    what : str
        Names the value in the error message.

    Raises
    ------
    DdsimError
        Not numbers, or rows of different lengths.

    Examples
    --------
    >>> numbers([[1, 2], [3]], "tokens")
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: tokens: no array of numbers (rows of different lengths?)
    """
    try:
        array = np.asarray(_on_host(value))
        if array.dtype.kind == "V":  # bfloat16 of JAX and others
            array = array.astype(np.float32)
    except Exception:  # other people's __array__ may raise anything
        raise DdsimError(f"{what}: no array of numbers (rows of different lengths?)") from None
    if array.dtype.kind not in "iuf":
        raise DdsimError(f"{what}: must be numbers, not of type {array.dtype}")
    return array


def whole_numbers(value: Any, what: str) -> NDArray[np.int64]:
    """As `numbers`, for what counts or names: integers, or floats without a fraction.

    Examples
    --------
    >>> whole_numbers([1.0, 2.5], "tokens")
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: tokens: position 1: 2.5 is no whole number of 32 bits
    """
    array = numbers(value, what)
    with np.errstate(invalid="ignore"):
        bad = ~((array >= -(2**31)) & (array < 2**31))
        if array.dtype.kind == "f":
            bad |= array != np.trunc(array)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DdsimError(f"{what}: {place(at)}{array[at]} is no whole number of 32 bits")
    return array.astype(np.int64)


def place(index: tuple[int, ...]) -> str:
    """Where in an array [positions, depths, candidates] an entry stands, for error messages."""
    names = ("position", "depth", "candidate")
    parts = [f"{name} {i + (name == 'depth')}" for name, i in zip(names, index, strict=False)]
    return "".join(f"{part}: " for part in [", ".join(parts)] if part)


def relative_error(value: Any) -> float:
    """By how much rounding to the value's own type may have changed a number, as a share of it; 0 for float32 and wider."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    kind = str(getattr(value, "dtype", ""))
    return 2.0**-8 if kind.endswith("bfloat16") else 2.0**-11 if kind.endswith("float16") else 0.0


def _on_host(value: Any) -> Any:
    """Tensors as NumPy arrays, also inside lists."""
    if isinstance(value, (list, tuple)):
        return [_on_host(item) for item in value]
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor.float().numpy()


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _named(value: Any) -> str:
    return f"the path {str(value)!r:.60}" if _is_path(value) else f"a {type(value).__name__}"


Floats = NDArray[np.float64]


Ints = NDArray[np.int32]


def plain(array: ArrayLike, dtype: Any) -> NDArray[Any]:
    """What every kernel is compiled for: a contiguous, writable array of a type; copied only if it isn't one.

    Examples
    --------
    >>> rows = np.arange(6.0).reshape(2, 3)
    >>> plain(rows, np.float64) is rows, plain(rows.T, np.float64).flags.c_contiguous
    (True, True)
    """
    try:
        out = np.ascontiguousarray(array, dtype)
    except (TypeError, ValueError, OverflowError):
        out = np.ascontiguousarray(numbers(array, "array"), dtype)
    return out if out.flags.writeable else out.copy()


def spread(values: Sequence[int] | NDArray[Any], most: int) -> list[int]:
    """At most so many of the values, evenly, first and last among them.

    Examples
    --------
    >>> spread(range(9), 5), spread([3, 1], 5)
    ([0, 2, 4, 6, 8], [3, 1])
    """
    count = len(values)
    places = range(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int)
    return [int(values[i]) for i in places]
