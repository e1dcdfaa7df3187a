"""JSON documents with a kind and a schema version: strict reading with one-line errors, atomic writing."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError

LARGEST = 2**53  # whole numbers up to here are exact in float64, and nothing counted here comes near


def read_document(path: str | os.PathLike[str], kinds: dict[str, int]) -> dict[str, Any]:
    """Read a JSON object whose ``kind`` is one of ``kinds`` (name -> newest schema version that can be read).

    Raises
    ------
    DdsimError
        The file is missing, isn't JSON, is truncated, is something else, or is from a newer schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DdsimError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DdsimError(f"{path}: can't be read as text ({type(error).__name__})") from None
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DdsimError(f"{path}: not valid JSON{place}; the file is truncated or was edited") from None
    check_header(document, kinds, str(path))
    return document  # type: ignore[no-any-return]


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
    """Write a JSON object whole or not at all (temporary file in the same folder, fsync, rename)."""
    target = Path(path)
    try:
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DdsimError(f"{path}: not written: something in it is not JSON ({error})") from None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    except OSError as error:
        raise DdsimError(f"{path}: can't be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private
        os.replace(temporary, target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise DdsimError(f"{path}: can't be written ({error.strerror})") from None


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


def brief(value: Any) -> str:
    """A value for an error message, on one line and short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
