"""Two drafters as folders: shapes, heads and parameters, read without PyTorch. What one gains over the other, recordings tell."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ddsim.errors import DdsimError
from ddsim.files.documents import parse, read_bytes
from ddsim.replay.replay import _records
from ddsim.replay.shown import beside
from ddsim.tables import Shown, Summary
from ddsim.text import brief

HEAD = "head"
"""Folder of a head beside its drafter's files."""

LONGEST_HEADER = 1 << 26
MOST = 1 << 50
"""Numbers in a tensor, bytes in a header: more are damage."""

FIELDS = {
    "block size, tokens": "block_size", "layers": "num_hidden_layers", "hidden size": "hidden_size", "inner size": "intermediate_size",
    "heads": "num_attention_heads", "key heads": "num_key_value_heads", "vocabulary": "vocab_size", "layers of the target": "num_target_layers",
}  # fmt: skip
"""What a drafter's configuration says, and how it is called there."""


@dataclass(frozen=True)
class Drafter:
    """A drafter's folder: what its configuration says, and how many parameters its files hold."""

    path: Path
    config: dict[str, Any]
    head: dict[str, Any] | None
    parameters: int
    head_parameters: int
    digest: str = field(repr=False)
    """Hash of all weights."""


@dataclass(frozen=True, eq=False, repr=False)
class DrafterComparison(Shown):
    """How two drafters differ; made by `compare`.

    Attributes
    ----------
    sentence : str
    notes : tuple of str
        How to learn what one gains over the other.
    names : (str, str)
    """

    sentence: str
    notes: tuple[str, ...]
    names: tuple[str, str]
    _rows: pd.DataFrame

    def summary(self) -> Summary:
        """What is printed: the sentence, the notes, and the table."""
        return Summary(self.sentence, self.notes, [beside(self._rows, self.names)])

    def table(self) -> pd.DataFrame:
        """One property a row: what, first, second, as text."""
        return self._rows.copy()

    def to_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values."""
        return {
            "schema_version": 1, "kind": "ddsim-drafter-comparison", "sentence": self.sentence, "notes": list(self.notes),
            "names": list(self.names), "table": _records(self._rows),
        }  # fmt: skip


def is_drafter(path: Path) -> bool:
    """Whether a folder holds a model, not a recording."""
    return (path / "config.json").is_file()


def read_drafter(path: str | os.PathLike[str]) -> Drafter:
    """What a drafter's folder says of itself; of its weights only the headers are parsed.

    Raises
    ------
    DdsimError
        It has no configuration or no weights, or a file is damaged.
    """
    folder = Path(path)
    config, head = _config(folder), None
    parameters, digest = _parameters(folder)
    if not parameters:
        raise DdsimError(f"{folder}: has no .safetensors file, so it is no drafter's folder")
    of_head = 0
    if (folder / HEAD / "config.json").is_file():
        head = _config(folder / HEAD)
        of_head, also = _parameters(folder / HEAD)
        digest += also
    return Drafter(folder, config, head, parameters, of_head, hashlib.sha256(digest.encode()).hexdigest())


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    value = parse(read_bytes(path), str(path))
    if not isinstance(value, dict):
        raise DdsimError(f"{path}: must hold an object")
    return value


def _parameters(folder: Path) -> tuple[int, str]:
    """Numbers in all weights, and a hash of these."""
    count, digest = 0, hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = file.read(size) if size <= LONGEST_HEADER else b""
                tensors = json.loads(header)
                for name, tensor in tensors.items():
                    if name != "__metadata__":
                        of_one = 1
                        for length in tensor["shape"]:
                            of_one *= int(length)
                        if not 0 <= of_one < MOST:
                            raise ValueError(f"{brief(name)} has an impossible shape")
                        count += of_one
                digest.update(header)
                while part := file.read(1 << 22):
                    digest.update(part)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DdsimError(f"{path}: can't be read as safetensors ({error})") from None
    return count, digest.hexdigest()


def compare_drafters(
    first: Drafter | str | os.PathLike[str],
    second: Drafter | str | os.PathLike[str],
    *,
    names: tuple[str, str] | None = None,
) -> DrafterComparison:
    """Compare how two drafters are made: shapes, heads, parameters. What that gains is measured by recordings of the same texts.

    Parameters
    ----------
    first, second : Drafter or path
        Folders with config.json and .safetensors files, and maybe a head.
    names : (str, str), optional
        What to call them; by default their folders.
    """
    a, b = (side if isinstance(side, Drafter) else read_drafter(side) for side in (first, second))
    names = names or (str(a.path), str(b.path))
    told = [_told(side) for side in (a, b)]
    keys = dict.fromkeys([*told[0], *told[1]])
    rows = pd.DataFrame(
        [{"what": key, "first": told[0].get(key, "–"), "second": told[1].get(key, "–")} for key in keys]
    )
    if a.digest == b.digest:
        sentence = f"{names[0]} and {names[1]} hold the same weights."
        return DrafterComparison(sentence, (), names, rows)
    sizes = [(side.parameters + side.head_parameters) / 1e6 for side in (a, b)]
    pairs = [(key, told[0].get(key, "–"), told[1].get(key, "–")) for key in keys]
    other = [f"{key} {mine} where {names[0]} has {theirs}" for key, theirs, mine in pairs if mine != theirs]
    other = [line for line in other if not line.startswith(("parameters", "trained"))]
    sentence = f"{names[1]} has {sizes[1]:.1f} million parameters where {names[0]} has {sizes[0]:.1f}"
    sentence += (
        f", and {other[0]}." if len(other) == 1 else f"; {len(other)} other properties differ." if other else "."
    )
    note = (
        "What that gains, recordings of the same texts tell: ddsim record with one, ddsim record --answers with the other, then "
        "ddsim compare of the two traces."
    )
    return DrafterComparison(sentence, (note,), names, rows)


def _told(drafter: Drafter) -> dict[str, str]:
    config = drafter.config
    told = {what: str(config[key]) for what, key in FIELDS.items() if config.get(key) is not None}
    own = config.get("dflash_config")
    layers = own.get("target_layer_ids") if isinstance(own, dict) else None
    if isinstance(layers, list):
        told["reads layers"] = ", ".join(map(str, layers))
    told["head"] = "none" if drafter.head is None else str(drafter.head.get("form", "of a form that isn't named"))
    told["parameters"] = f"{drafter.parameters / 1e6:.2f} million"
    if drafter.head is not None:
        told["parameters of the head"] = f"{drafter.head_parameters / 1e6:.2f} million"
    for part, what in ((config, "trained"), (drafter.head or {}, "head trained")):
        made = part.get("ddsim_provenance")
        if isinstance(made, dict) and isinstance(made.get("text_tokens"), int):
            told[what] = f"on {made['text_tokens'] / 1e6:.0f} million tokens"
    return told
