"""What a run over an engine has measured so far, kept beside its output, so that a run that was stopped goes on there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError
from ddsim_reference.model.rows import json_lines


class Journal:
    """Measurements by name, a line of JSON each, on disk as soon as they are made.

    Parameters
    ----------
    out : path
        The output that they are for. The journal is ``out`` with ``.part`` behind its name.
    about : dict
        What the measurements depend on; a journal of something else is refused.

    Raises
    ------
    DdsimError
        There is a journal of other settings, or one that can't be read or written.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "vllm.json"
    >>> Journal(out, {"seed": 0}).put("a step", [0.5])
    [0.5]
    >>> again = Journal(out, {"seed": 0})
    >>> again.get("a step"), again.get("another")
    ([0.5], None)
    >>> again.remove()
    >>> list(out.parent.iterdir())
    []
    """

    def __init__(self, out: str | Path, about: dict[str, Any]) -> None:
        self.path = Path(f"{out}.part")
        self.found: dict[str, Any] = {}
        about = json.loads(json.dumps(about))
        lines = self._whole() if self.path.exists() else []
        if not lines:
            self._write("w", {"about": about})
            return
        before = lines[0].get("about")
        if before != about:
            differing = [k for k, v in about.items() if not isinstance(before, dict) or before.get(k) != v]
            raise DdsimError(
                f"{self.path}: holds part of another run ({(differing or ['its settings'])[0]} differs); remove it, or name another output"
            )
        self.found = {entry["name"]: entry["value"] for entry in lines[1:] if "name" in entry and "value" in entry}

    def _whole(self) -> list[dict[str, Any]]:
        """Its lines but for one that was being written when the run was stopped, which goes."""
        try:
            content = self.path.read_bytes()
            kept = content[: content.rfind(b"\n") + 1]
            if kept != content:
                os.truncate(self.path, len(kept))
        except OSError as error:
            raise DdsimError(f"{self.path}: can't be read ({error.strerror})") from None
        return [entry for _, entry in json_lines(self.path)]

    def _write(self, mode: str, entry: dict[str, Any]) -> None:
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        except OSError as error:
            raise DdsimError(f"{self.path}: can't be written ({error.strerror})") from None

    def get(self, name: str) -> Any:
        """What was measured under a name; None if nothing was."""
        return self.found.get(name)

    def put(self, name: str, value: Any) -> Any:
        """Keep a measurement; returns it as it would be read again."""
        self.found[name] = json.loads(json.dumps(value))
        self._write("a", {"name": name, "value": value})
        return self.found[name]

    def remove(self) -> None:
        """Once the output is written it isn't needed any more."""
        self.path.unlink(missing_ok=True)
