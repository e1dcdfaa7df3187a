"""JSON documents with a kind and a schema version: strict reading with one-line errors, atomic writing."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import select
import stat
import time
import zlib
from typing import Any

from ddsim.errors import DdsimError
from ddsim.files.atomic import write_text
from ddsim.text import brief

LARGEST = 2**53  # whole numbers up to here are exact in float64, and nothing counted here comes near


LARGEST_FILE = 64 << 20  # bytes; the largest profiles take a few megabytes


DIGITS = 40  # of a whole number: beyond any quantity, and Python refuses to print those of thousands


DEPTH = 50  # of nesting; our own documents go 6 deep


PATIENCE = 60.0  # seconds that a pipe may be silent


def read_document(path: str | os.PathLike[str], kinds: dict[str, int]) -> dict[str, Any]:
    """Read a JSON object whose ``kind`` is one of ``kinds`` (name -> newest schema version that can be read).

    Raises
    ------
    DdsimError
        The file is missing, isn't JSON, is truncated, is something else, or is from a newer schema.
    """
    document = parse(read_bytes(path), str(path))
    check_header(document, kinds, str(path))
    return document  # type: ignore[no-any-return]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file, plain or gzipped, or of a pipe.

    A pipe can be read once only.

    Raises
    ------
    DdsimError
        No such file, a folder, a device, more than `LARGEST_FILE` bytes, damaged gzip, or a pipe into which nobody writes.
    """
    try:
        # Without O_NONBLOCK a named pipe that nobody writes to would hold us here for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise DdsimError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DdsimError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise DdsimError(f"{path}: is a folder; name a file")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise DdsimError(f"{path}: is a device; name a regular file or a pipe")
        parts: list[bytes] = []
        size = 0
        while size <= LARGEST_FILE:
            if stat.S_ISFIFO(mode):
                _wait(handle, path)
            part = os.read(handle, 1 << 20)
            if not part:
                return _plain(b"".join(parts), path)
            parts.append(part)
            size += len(part)
        raise _too_large(path)
    except OSError as error:
        raise DdsimError(f"{path}: can't be read ({error.strerror or error})") from None
    finally:
        os.close(handle)


def _plain(content: bytes, path: str | os.PathLike[str]) -> bytes:
    """What a file says, unpacked if it is gzipped: told by its content, as JSON and CSV are."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            plain = file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DdsimError(f"{path}: is damaged gzip ({error})") from None
    if len(plain) > LARGEST_FILE:
        raise _too_large(path)
    return plain


def _too_large(path: str | os.PathLike[str]) -> DdsimError:
    return DdsimError(f"{path}: is larger than {LARGEST_FILE >> 20} MiB, which no such file is")


def _wait(handle: int, path: str | os.PathLike[str]) -> None:
    """Until something came through a pipe, or its last writer left."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    end = time.monotonic() + PATIENCE
    while not poll.poll(max(0, end - time.monotonic()) * 1e3):
        if time.monotonic() >= end:
            raise DdsimError(f"{path}: nothing came through this pipe for {PATIENCE:g} s")


def parse(content: bytes, where: str) -> Any:
    """A JSON value from UTF-8 text, strictly: what readers of JSON disagree about is refused.

    Refused are duplicate keys, NaN and infinities, numbers beyond 64-bit floats, whole numbers of more than `DIGITS`
    digits, lone surrogates, and values nested deeper than `DEPTH`.

    Parameters
    ----------
    content : bytes
        A byte-order mark at the start is skipped.
    where : str
        Names the file in error messages.

    Raises
    ------
    DdsimError
        One line: which file, which place, what is wrong.

    Examples
    --------
    >>> parse(b'{"a": [1, 2.5]}', "x.json")
    {'a': [1, 2.5]}
    >>> parse(b'{"a": 1, "a": 2}', "x.json")
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: x.json: the key "a" stands twice in one object
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DdsimError(f"{where}: is UTF-16 text or binary; JSON is read as UTF-8, so save it as that")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DdsimError(
            f"{where}: can't be read as text (byte {error.start} isn't UTF-8); it is no JSON file, or save it as UTF-8"
        ) from None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(items)
        if len(entries) < len(items):
            names = [key for key, _ in items]
            twice = next(key for key in entries if names.count(key) > 1)
            raise DdsimError(f"{where}: the key {brief(twice)} stands twice in one object")
        return entries

    def whole(digits: str) -> int:
        if len(digits) > DIGITS:
            raise DdsimError(f"{where}: holds a whole number of {len(digits.lstrip('-')):,} digits")
        return int(digits)

    def constant(name: str) -> float:
        raise DdsimError(f"{where}: holds {name}, which is no JSON number; write null for what isn't known")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DdsimError(f"{where}: not valid JSON at {place}; the file is truncated or was edited") from None
    except RecursionError:
        raise DdsimError(f"{where}: not valid JSON for ddsim: nested deeper than {DEPTH} levels") from None
    _check(value, where, "", 0)
    return value


def _check(value: Any, where: str, place: str, depth: int) -> None:
    """Refuse what parsed but can't be passed on: deep nesting, infinities such as 1e999, lone surrogates."""
    if depth > DEPTH:
        raise DdsimError(f"{where}: nested deeper than {DEPTH} levels")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise DdsimError(f"{where}: {place.lstrip('.')}: holds half of a surrogate pair, which is no character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise DdsimError(f"{where}: {place.lstrip('.')}: a number beyond 1.8e308")
    elif isinstance(value, dict):
        for key, entry in value.items():
            _check(key, where, f"{place}.(a key)", depth)
            _check(entry, where, f"{place}.{key}", depth + 1)
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _check(entry, where, f"{place}[{i}]", depth + 1)


def check_header(document: Any, kinds: dict[str, int], where: str) -> None:
    """Refuse a document that isn't an object of one of these kinds, at a schema version that can be read."""
    wanted = " or ".join(kinds)
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise DdsimError(f'{where}: not a {wanted} file (its "kind" is {brief(kind)})')
    version = integer(need(document, "schema_version", where), f"{where}: schema_version", 1)
    if version > kinds[kind]:
        raise DdsimError(
            f"{where}: schema version {version} is newer than this ddsim reads ({kinds[kind]}); upgrade ddsim"
        )


def write_document(path: str | os.PathLike[str], document: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    try:
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DdsimError(f"{path}: not written: something in it is not JSON ({error})") from None
    write_text(path, text)


def need(obj: dict[str, Any], key: str, where: str) -> Any:
    """``obj[key]``, or one line that says which key is missing where."""
    if key not in obj:
        raise DdsimError(f'{where}: the key "{key}" is missing')
    return obj[key]


def mapping(value: Any, where: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """An object; unknown keys are refused, because a misspelt optional key would be lost in silence."""
    if not isinstance(value, dict):
        raise DdsimError(f"{where}: must be an object, is {brief(value)}")
    if known is not None:
        for key in value:
            if key not in known:
                raise DdsimError(f'{where}: unknown key "{key}" (known: {", ".join(known)})')
    return value


def array(value: Any, where: str, at_least: int = 0) -> list[Any]:
    """A list of at least so many entries."""
    if not isinstance(value, (list, tuple)):
        raise DdsimError(f"{where}: must be a list, is {brief(value)}")
    if len(value) < at_least:
        raise DdsimError(
            f"{where}: needs at least {at_least} {'entry' if at_least == 1 else 'entries'}, has {len(value)}"
        )
    return list(value)


def integer(value: Any, where: str, minimum: int) -> int:
    """A whole number of at least ``minimum`` (true and 1.0 are no whole numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise DdsimError(f"{where}: must be a whole number, is {brief(value)}")
    if value < minimum:
        raise DdsimError(f"{where}: must be at least {minimum}, is {value}")
    if value > LARGEST:
        raise DdsimError(f"{where}: is implausibly large ({brief(value)})")
    return value


def number(value: Any, where: str, *, positive: bool) -> float:
    """A finite number, above zero or at least zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DdsimError(f"{where}: must be a number, is {brief(value)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise DdsimError(f"{where}: is implausibly large ({brief(value)})")
    if not math.isfinite(value):
        raise DdsimError(f"{where}: must be finite, is {value}")
    if value < 0 or (positive and value == 0):
        raise DdsimError(f"{where}: must be {'above' if positive else 'at least'} 0, is {value}")
    return float(value)


def text(value: Any, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise DdsimError(f"{where}: must be text, is {brief(value)}")
    return value
