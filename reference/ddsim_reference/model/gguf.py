"""GGUF files: metadata and the place of each tensor, every length checked against the file before it is believed.

The ``gguf`` package's own reader follows whatever lengths a damaged file claims, and transformers fills a tensor that it
doesn't find with random numbers. Here a file is read whole or refused; only the arithmetic of quantised blocks is the package's.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsim.errors import DdsimError

# Little-endian, as struct names them and NumPy does too.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
MOST_DIMENSIONS = 4


def shown(name: str) -> str:
    """A name out of a file as a message can hold it: in quotes, escaped, and not without end."""
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}..."


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies: rows first, as PyTorch has them."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """A GGUF file's metadata and tensors.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    meta : dict
        Numbers, strings, and arrays (of numbers as ndarrays, of strings as lists), by key.
    tensors : dict of str to Placed

    Raises
    ------
    DdsimError
        Not a GGUF file of version 2 or 3 in little-endian order, or one whose lengths lead beyond its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DdsimError(f"{path}: no such GGUF file")
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DdsimError(f"{path}: not readable as GGUF ({error})") from None
        self._at = 0
        if self._data[self._skip(4) : self._at] != b"GGUF":
            raise self.fail("it doesn't begin with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise self.fail(f"version {version} is unknown")
        tensors, keys = self._scalar("<Q"), self._scalar("<Q")
        self.meta: dict[str, Any] = {}
        for _ in range(self._count(keys, 12)):
            key = self._string()
            if key in self.meta:
                raise self.fail(f"key {shown(key)} is there twice")
            self.meta[key] = self._value(self._scalar("<I"))
        places: dict[str, Placed] = {}
        for _ in range(self._count(tensors, 24)):
            name = self._string()
            if name in places:
                raise self.fail(f"tensor {shown(name)} is there twice")
            rank = self._scalar("<I")
            if not 1 <= rank <= MOST_DIMENSIONS:
                raise self.fail(f"tensor {shown(name)} has {rank} dimensions")
            shape = tuple(self._scalar("<Q") for _ in range(rank))
            places[name] = Placed(shape[::-1], self._scalar("<I"), self._scalar("<Q"))
        alignment = self.meta.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self.fail(f"general.alignment {str(alignment)[:40]} is no alignment")
        self._start = -(-self._at // alignment) * alignment
        self.tensors = places

    def fail(self, reason: str) -> DdsimError:
        """One line about this file."""
        return DdsimError(f"{self.path}: not readable as GGUF ({reason}); the file is damaged or another format")

    def _skip(self, size: int) -> int:
        """Go on by so many bytes; where they begin."""
        begin = self._at
        if size > len(self._data) - begin:
            raise self.fail(f"byte {begin}: {size} bytes are announced, the file ends before")
        self._at += size
        return begin

    def _count(self, count: int, least: int) -> int:
        """A number of things of at least so many bytes each, if the file can hold them."""
        if count * least > len(self._data) - self._at:
            raise self.fail(f"byte {self._at}: {count} entries are announced, the file ends before")
        return count

    def _scalar(self, kind: str) -> Any:
        return struct.unpack_from(kind, self._data, self._skip(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        return self._data[self._skip(self._scalar("<Q")) : self._at].decode("utf-8", "surrogateescape")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self.fail(f"byte {self._at}: type {kind} is unknown")
        item, count = self._scalar("<I"), self._scalar("<Q")
        if item == _STRING:
            return [self._string() for _ in range(self._count(count, 8))]
        if item not in _SCALARS:
            raise self.fail(f"byte {self._at}: an array of type {item} is unknown")
        kind_of_items = _SCALARS[item]
        begin = self._skip(count * struct.calcsize(kind_of_items))
        return np.frombuffer(self._data, kind_of_items, count, begin)

    def values(self, name: str) -> NDArray[np.float32]:
        """A tensor's numbers, its quantised blocks unpacked: float32 of its shape."""
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
        except ImportError:
            raise DdsimError(f"{self.path}: reading GGUF needs the package gguf; pip install gguf") from None
        place = self.tensors[name]
        try:
            kind = GGMLQuantizationType(place.kind)
        except ValueError:
            raise self.fail(f"tensor {shown(name)}: type {place.kind} is unknown") from None
        block, size = GGML_QUANT_SIZES[kind]
        if place.shape[-1] % block:
            raise self.fail(f"tensor {shown(name)}: rows of {place.shape[-1]} are no whole blocks of {block}")
        row = place.shape[-1] // block * size
        self._at = self._start + place.offset
        total = math.prod(place.shape[:-1]) * row
        raw = np.frombuffer(self._data, np.uint8, total, self._skip(total)).reshape(*place.shape[:-1], row)
        try:
            return np.asarray(dequantize(raw, kind), np.float32).reshape(place.shape)
        except NotImplementedError:
            raise DdsimError(
                f"{self.path}: tensor {shown(name)}: type {kind.name} is not supported; convert the file"
            ) from None
