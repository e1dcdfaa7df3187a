"""The user's cache folder: what was computed or checked once, under names that are hashes of what it depends on.

Nothing is kept beside traces, where anybody may have written. ``DDSIM_CACHE`` names another folder, or is ``off``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

LARGEST = 8 << 30
"""Bytes of all entries of one kind; beyond them those used longest ago go."""


IN_USE = 3600.0
"""Seconds for which an entry that was used, or a file that was written to, counts as in use."""


def cache_folder() -> Path | None:
    """Where ddsim keeps what it may compute again; None where it should keep nothing.

    ``$DDSIM_CACHE``, else ``ddsim`` in ``$XDG_CACHE_HOME`` or in the platform's folder for caches.

    Examples
    --------
    >>> os.environ["DDSIM_CACHE"] = "off"
    >>> cache_folder() is None
    True
    >>> del os.environ["DDSIM_CACHE"]
    """
    chosen = os.environ.get("DDSIM_CACHE")
    try:
        if chosen is not None:
            return None if chosen.strip().lower() in ("", "0", "off") else Path(chosen).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME", "")
        if os.path.isabs(base):  # a relative one is to be ignored, says its specification
            return Path(base) / "ddsim"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "ddsim"
        return Path.home() / ".cache" / "ddsim"
    except RuntimeError:  # no home directory
        return None


def is_known(kind: str, name: str) -> bool:
    """Whether ``remember`` was called with these."""
    folder = cache_folder()
    return folder is not None and (folder / kind / name).is_file()


def remember(kind: str, name: str) -> None:
    """Keep a fact, if there is where to keep it: an empty file."""
    folder = cache_folder()
    if folder is not None:
        with contextlib.suppress(OSError):
            made(folder / kind)
            (folder / kind / name).touch()


def made(folder: Path) -> Path:
    """The folder, made for the user alone if it isn't there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def tidy(folder: Path) -> None:
    """Remove what killed writers left in a folder of entries, and the entries used longest ago beyond ``LARGEST`` bytes.

    An entry is a folder of files, and the time of its folder that of its last use. A name that ends in ``.tmp`` is an
    entry being written.
    """
    now = time.time()
    entries = []
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # another process tidies up as well
            files = [file.stat() for file in entry.iterdir()]
            used = entry.stat().st_mtime
            if entry.suffix != ".tmp":
                entries.append((used, sum(file.st_size for file in files), entry))
            elif max([used, *(file.st_mtime for file in files)]) < now - IN_USE:
                shutil.rmtree(entry, ignore_errors=True)
    kept = 0
    for used, size, entry in sorted(entries, reverse=True):
        kept += size
        if kept > LARGEST and used < now - IN_USE:
            shutil.rmtree(entry, ignore_errors=True)
