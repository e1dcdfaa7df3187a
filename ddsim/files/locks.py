"""One writer a folder: a lock that the second writer is refused by, in a line that says who holds it."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from pathlib import Path
from typing import IO, Any

from ddsim.errors import DdsimError, WorkWarning, caller_level

try:
    import fcntl
except ImportError:  # Windows has none: nothing is locked there
    fcntl = None  # type: ignore[assignment]


LOCK_FILE = ".lock"


class FolderLock:
    """Held from construction to ``release``: a second one on the same folder, in whichever process, is refused.

    The operating system's lock (``flock``) on the file ``.lock`` in the folder ends with the process that holds it, even
    when that is killed: what a dead writer left behind never blocks. The file's content only says who holds it.

    On network file systems the lock is as good as theirs: NFS (Linux, from 2.6.12) and SMB carry it to the server, so
    that writers on two machines exclude each other; mounted with ``nolock`` or ``local_lock``, and on some cluster file
    systems (Lustre without ``-o flock``), it holds within one machine only or not at all. Where the file system has no
    locks, a warning says so and writing goes on.

    Parameters
    ----------
    folder : Path
        Exists.

    Raises
    ------
    DdsimError
        Another writer holds the folder (the line names its process, machine and since when), or it can't be written to.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lock = FolderLock(folder)
    >>> lock.release()
    >>> FolderLock(folder).release()
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._file: IO[str] | None = None
        while self._file is None:
            self._file = self._locked()

    def _locked(self) -> IO[str] | None:
        """The file, locked; None if its holder removed it meanwhile."""
        try:
            # Not followed if it is a link, and not a pipe that would wait: the folder may be anybody's.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = open(os.open(self.path, flags, 0o644), "r+", encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise DdsimError(f"{self.path}: can't be written ({error.strerror})") from None
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _told(file)
                file.close()
                raise DdsimError(
                    f"{self.path.parent}: is being written by {holder}; wait until it ends, or choose another folder"
                ) from None
            except OSError as error:
                warnings.warn(
                    f"{self.path.parent}: this file system has no locks ({error.strerror}); "
                    "make sure that nothing else writes here",
                    WorkWarning,
                    stacklevel=caller_level(),
                )
            if not _same(file, self.path):
                file.close()
                return None
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.truncate(0)
        file.write(json.dumps(who))
        file.flush()
        return file

    def release(self) -> None:
        """Let the next writer in; does nothing the second time."""
        if self._file is not None:
            # Removed while it is locked: whoever opened it meanwhile sees that it is gone, and opens a new one.
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def _same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _told(file: IO[str]) -> str:
    """Who holds the lock, as far as its file says; its holder writes that just after taking it."""
    for _ in range(20):
        try:
            file.seek(0)
            who: Any = json.loads(file.read(1000))
            return f"process {int(who['pid'])} on {str(who['host'])!r} since {who['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.05)
    return "another process"
