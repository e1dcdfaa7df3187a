"""Plain values out of files of ``torch.save``: numbers, texts, lists and dicts.

Such a file is a zip archive around a pickle. Nothing is unpickled here: the pickle's instructions are read as data, one by one, and
those that would import or call anything are refused, but for NumPy's way to spell a number.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from typing import Any

from ddsim.errors import DdsimError
from ddsim.files.documents import LARGEST_FILE
from ddsim.text import brief

ZIP = b"PK\x03\x04"
"""What such a file begins with."""

_NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "u8": "<Q", "u4": "<I", "b1": "<?"}
_MARK = object()
_PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = (
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINBYTES",
    "SHORT_BINBYTES",
)  # fmt: skip


class _Named:
    """Something that the pickle would import, by its name and what it would be called with."""

    def __init__(self, name: str, given: Any = ()) -> None:
        self.name, self.given = name, given


def read_torch_values(content: bytes, where: str) -> Any:
    """The value in a file of ``torch.save``.

    Parameters
    ----------
    content : bytes
        Of the file.
    where : str
        Names it in error messages.

    Raises
    ------
    DdsimError
        It isn't such a file, is damaged, or holds anything but numbers, texts, lists, tuples and dicts.

    Examples
    --------
    >>> import pickle
    >>> archive = io.BytesIO()
    >>> with zipfile.ZipFile(archive, "w") as file:
    ...     file.writestr("x/data.pkl", pickle.dumps({"draft_cost": 0.0065, 512: [1, 2]}, 2))
    >>> read_torch_values(archive.getvalue(), "x.pt")
    {'draft_cost': 0.0065, 512: [1, 2]}
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (entry,) = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
            if entry.file_size > LARGEST_FILE:
                raise DdsimError(f"{where}: its values are larger than {LARGEST_FILE >> 20} MiB")
            pickled = archive.read(entry)
        return _value(pickled, where)
    except DdsimError:
        raise
    except Exception:  # a damaged archive, or instructions that don't fit together: many kinds of error
        raise DdsimError(f"{where}: can't be read as a file of torch.save; it is damaged, or something else") from None


def _value(pickled: bytes, where: str) -> Any:
    """Follow the instructions of a pickle with a stack of plain values."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    def entries(flat: list[Any]) -> list[tuple[Any, Any]]:
        return list(zip(flat[::2], flat[1::2], strict=True))

    argument: Any
    for instruction, argument, _ in pickletools.genops(pickled):
        name = instruction.name
        if name in ("PROTO", "FRAME"):
            pass
        elif name in _VALUES:
            stack.append(argument)
        elif name in _PLAIN:
            stack.append(_PLAIN[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "APPEND":
            stack[-2].append(stack.pop())
        elif name == "APPENDS":
            taken = since_mark()
            stack[-1].extend(taken)
        elif name == "SETITEM":
            value = stack.pop()
            key = stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            taken = since_mark()
            stack[-1].update(entries(taken))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "GLOBAL":
            stack.append(_Named(argument))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Named(f"{stack[-2]} {stack[-1]}")]
        elif name == "REDUCE":
            given = stack.pop()
            stack[-1] = _called(stack[-1], given, where)
        elif name == "BUILD" and isinstance(stack[-2], _Named) and stack[-2].name == "numpy dtype":
            if stack.pop()[1] not in ("<", "|"):
                raise DdsimError(f"{where}: holds numbers in the byte order of another machine")
        elif name == "STOP":
            return stack.pop()
        else:
            raise DdsimError(
                f"{where}: holds more than numbers, texts, lists and dicts ({name}), which ddsim doesn't read"
            )
    raise DdsimError(f"{where}: ends in the middle of a value")


def _called(what: Any, given: Any, where: str) -> Any:
    """What NumPy's spelling of a number stands for; no other call."""
    name = what.name if isinstance(what, _Named) else ""
    if name == "_codecs encode" and given[1] == "latin1":
        return given[0].encode("latin1")
    if name == "numpy dtype":
        return _Named(name, given[0])
    if name in ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar"):
        kind, content = given
        return struct.unpack(_NUMBERS[kind.given], content)[0]
    raise DdsimError(
        f"{where}: would call {brief(name)} when opened, which ddsim never does; it holds more than plain values"
    )
