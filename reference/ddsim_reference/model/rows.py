"""Rows of prompts and answers, from files of several formats or a data set of the Hugging Face hub, and what a row may hold."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError
from ddsim.text import brief, listed

LARGEST_FILE = 1 << 28
ROLES = {"human": "user", "gpt": "assistant"}
"""Of ShareGPT's conversations; other roles are called what they are called elsewhere."""
COLUMNS = ("messages", "conversations", "prompt", "question", "instruction")
"""Where a prompt is looked for, in this order."""
NEEDED = 'JSONL or Parquet with "prompt" or "messages", or .txt with a prompt a line'

Message = dict[str, str]


@dataclass(frozen=True)
class Row:
    """A row that was read: ``where`` names file and row, ``number`` counts from 1, ``source`` is what the workload is called."""

    where: str
    number: int
    source: str
    columns: dict[str, Any]


def read_rows(source: str | Path, what: str = "prompts", limit: int | None = None) -> Iterator[Row]:
    """
    Rows of a file, of all files of a folder, or of a data set of the Hugging Face hub.

    Parameters
    ----------
    source
        - a file: ``.jsonl`` (an object a line; also any other name), ``.json`` (the same, or a list of objects), ``.txt`` (a prompt a
          line), each also gzipped, ``.parquet`` or ``.arrow``;
        - a folder: the files of one of these formats in it, in order of name; of ``.txt`` files each is one prompt;
        - ``org/name``, ``org/name:split`` or ``org/name:config:split``, read through ``datasets`` while the hub is reached.
    what
        What is looked for, for the error.
    limit
        Rows of a data set of the hub to fetch, unless they name workloads; files are read, and checked, whole.

    Yields
    ------
    Row
        Without columns that are null.

    Raises
    ------
    DdsimError
        There is no such file, it can't be read, or the hub isn't reached. The message names file and row.
    """
    path = Path(source)
    if path.is_file():
        yield from _file(path, path.name.split(".")[0], 0)
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        kind = next((kind for kind in FORMATS if any(_format(file) == kind for file in files)), None)
        if kind is None:
            raise DdsimError(f"{path}: holds no {listed(tuple(FORMATS), 'or')} file; name the folder that does")
        number = 0
        for file in files:
            if _format(file) != kind:
                continue
            if kind == ".txt":
                number += 1
                yield Row(str(file), number, path.name, {"prompt": _decoded(_bytes(file), str(file)), "id": file.stem})
                continue
            for row in _file(file, path.name, number):
                number = row.number
                yield row
    elif is_source(source):
        yield from _hub(str(source), limit)
    else:
        raise DdsimError(f"{source}: no such file of {what}; it needs {NEEDED}, or org/name of a data set on the hub")


_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")


def is_source(source: str | Path) -> bool:
    """Whether there is such a file or folder, or it may be the name of a data set."""
    path = Path(source)
    return path.exists() or (_HUB.fullmatch(str(source)) is not None and _format(path) is None)


def _format(path: Path) -> str | None:
    """The format that a file's name tells."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in FORMATS else None


def _file(path: Path, source: str, before: int) -> Iterator[Row]:
    called, read = FORMATS[_format(path) or ".jsonl"]
    numbered = before
    for line, columns in read(path):
        numbered += 1
        here = {key: value for key, value in columns.items() if value is not None}
        yield Row(f"{path}, {called} {line}", line if not before else numbered, source, here)


def _bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DdsimError(f"{path}: can't be read ({error})") from None
    if len(raw) > LARGEST_FILE:
        raise DdsimError(f"{path}: more than {LARGEST_FILE / 1e6:.0f} MB; split the file")
    return raw


def _decoded(content: bytes, where: str, first: bool = True) -> str:
    try:
        return content.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError:
        raise DdsimError(f"{where}: not UTF-8; save the file as UTF-8") from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSONL file, plain or gzipped."""
    # Split on newlines only: str.splitlines also cuts at U+2028 and the like, which JSON strings may hold.
    for line, content in enumerate(_bytes(path).split(b"\n"), 1):
        text = _decoded(content, f"{path}, line {line}", line == 1)
        if text:
            yield line, _object(_parsed(text, f"{path}, line {line}"), f"{path}, line {line}")


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A list of objects, or JSONL."""
    content = _bytes(path)
    if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from json_lines(path)
        return
    for number, entry in enumerate(_parsed(_decoded(content, str(path)), str(path)), 1):
        yield number, _object(entry, f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DdsimError(f"{where}: not JSON; write one JSON object a line") from None


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DdsimError(f"{where}: not a JSON object but a {type(record).__name__}; write one object a line")
    return record


def _text_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(_bytes(path).split(b"\n"), 1):
        if text := _decoded(content, f"{path}, line {line}", line == 1):
            yield line, {"prompt": text}


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from enumerate((row for batch in file.iter_batches(1024) for row in batch.to_pylist()), 1)
    except (OSError, pa.ArrowException) as error:
        raise DdsimError(f"{path}: not readable as Parquet ({str(error).splitlines()[0][:200]})") from None


def _arrow(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What ``save_to_disk`` of ``datasets`` writes."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (OSError, pa.ArrowException) as error:
        raise DdsimError(f"{path}: not readable as an Arrow stream ({str(error).splitlines()[0][:200]})") from None


Reader = Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]

FORMATS: dict[str, tuple[str, Reader]] = {
    ".arrow": ("row", _arrow),
    ".parquet": ("row", _parquet),
    ".jsonl": ("line", json_lines),
    ".json": ("entry", _json),
    ".txt": ("line", _text_lines),
}
"""Format by the end of a file's name: what a row is called there, and how rows are read."""


def _hub(name: str, limit: int | None) -> Iterator[Row]:
    """Rows of a data set of the hub, streamed: only as many are fetched as are asked for."""
    repository, *rest = name.split(":")
    config, split = (rest[0], rest[1]) if len(rest) == 2 else (None, rest[0] if rest else None)
    try:
        import datasets
    except ImportError:
        raise DdsimError(
            f"{name}: is no file, and reading it as a data set of the Hugging Face hub needs the package datasets "
            f"(pip install datasets); a file needs {NEEDED}"
        ) from None
    try:
        _reach(repository)
        found = datasets.load_dataset(repository, config, streaming=True)
        if split is None and len(found) == 1:
            (split,) = found
        if split not in found:
            raise DdsimError(
                f"{name}: has the splits {', '.join(found)}; name one, as in {':'.join([repository, *rest[:-1], next(iter(found))])}"
                if found
                else f"{name}: has no rows"
            )
        for number, columns in enumerate(found[split], 1):
            here = {key: value for key, value in columns.items() if value is not None}
            yield Row(f"{name}, row {number}", number, repository.split("/")[1], here)
            if number == limit and "workload" not in here:
                return
    except DdsimError:
        raise
    except Exception as error:  # of datasets, the hub's client, or whatever it sends requests with
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        answered = isinstance(error, (FileNotFoundError, ValueError)) or getattr(error, "response", None) is not None
        how = "can't be read" if answered else "the hub isn't reached"
        raise DdsimError(
            f"{name}: is no file, and as a data set of the Hugging Face hub: {how} ({why}); a file needs {NEEDED}"
        ) from None


def _reach(repository: str) -> None:
    """Ask the hub for a data set once: ``datasets`` would try again for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(repository, timeout=10)


def body(value: Any) -> dict[str, Any]:
    """A request or response within a row; batch files keep theirs in ``body``."""
    if not isinstance(value, dict):
        return {}
    return value["body"] if isinstance(value.get("body"), dict) else value


def prompt_of(where: str, holders: list[dict[str, Any]], *, raw: bool = False) -> list[int] | str | list[Message]:
    """
    What was asked, in the first of ``holders`` that says so: token ids (of ``prompt`` itself), raw text, or messages.

    Text is one message of the user, unless it is ``raw``.
    """
    for holder in holders:
        for name in COLUMNS:
            value = holder.get(name)
            if value is None:
                continue
            if name not in COLUMNS[:2] and (isinstance(value, str) or are_ids(value)):
                text = text_of(where, name, value)
                if name == "instruction" and isinstance(holder.get("input"), str) and holder["input"].strip():
                    text = f"{text}\n\n{holder['input']}"  # Alpaca's form
                return [{"role": "user", "content": text}] if isinstance(text, str) and not raw else text
            messages = objects(where, name, value)
            return [message_of(where, f'"{name}" {i}', message) for i, message in enumerate(messages, 1)]
    has = ", ".join(holders[0]) or "none"
    raise DdsimError(
        f"{where}: has no prompt; its columns are {has[:200]}; name one prompt, messages, conversations, question or instruction"
    )


def objects(where: str, name: str, value: Any) -> list[dict[str, Any]]:
    """A list of objects, as messages and outputs are."""
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise DdsimError(f'{where}: "{name}" is {brief(value)}, but must be a list of objects')
    return value


def message_of(where: str, what: str, message: Any) -> Message:
    """A message of text, as chat templates take it."""
    if not isinstance(message, dict):
        raise DdsimError(f"{where}: {what} is {brief(message)}, but must be a message")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DdsimError(f'{where}: {what} needs "role" and "content", both text; other content is not supported')
    return {"role": ROLES.get(role, role), "content": text_of(where, f"{what}: content", content)}


def are_ids(value: Any) -> bool:
    """Whether a value is a list of token ids."""
    return isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)


def text_of(where: str, name: str, value: Any, *, ids: bool = False) -> Any:
    """Text or token ids as they are."""
    if are_ids(value) or (isinstance(value, str) and not ids):
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise DdsimError(f"{where}: {name.strip()} has half a surrogate pair, which is no text")
        return value
    wanted = "a list of token ids" if ids else "text or a list of token ids"
    raise DdsimError(f'{where}: "{name}" is {brief(value)}, but must be {wanted}')


def name_of(where: str, columns: dict[str, Any], *names: str) -> str | None:
    """The first of some columns that is there, as text."""
    for name in names:
        value = columns.get(name)
        if value is None:
            continue
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise DdsimError(f'{where}: "{name}" is {brief(value)}, but must be text')
        return str(text_of(where, name, str(value)))
    return None
