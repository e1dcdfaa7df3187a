"""Files that are written whole or not at all, and the refusals that come before the work.

Everything that ddsim writes goes through :func:`write`. The content goes to a file of its own, a hidden one with a random name
in the same folder, and takes the name asked for once it is complete and on disk. So a full disk, a kill or a power cut leaves
the file that was there, and of two writers at once one wins.

- A symbolic link in the file's place stays: what it points to is replaced. Further hard links keep the old content.
- A new file gets the permissions that the umask gives; a replaced one keeps its permissions, and its owner where that is allowed.
- Devices, pipes, folders and write-protected files are refused.
- A writer that is killed leaves its hidden file. It held a lock on it, so the next writer of the same name knows, and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ddsim.errors import DdsimError

STDOUT = "-"


PathLike = str | os.PathLike[str]


def write(path: PathLike, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : path
        The file to make or replace. Its folder must exist.
    fill : callable
        Writes the content to the binary file that it is given. That file can be read and sought in too; its ``name`` is a path,
        for libraries that open files themselves.

    Raises
    ------
    DdsimError
        The file can't be written: no such folder, not allowed, disk full, or something else than a file is there.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write(folder / "a.bin", lambda file: file.write(b"whole"))
    >>> (folder / "a.bin").read_bytes(), [p.name for p in folder.iterdir()]
    (b'whole', ['a.bin'])
    """
    target, replaced = _target(path)
    remove_stale(target)
    try:
        temporary, file = _created(target)
    except OSError as error:
        raise _refusal(path, error) from None
    try:
        with file:
            if replaced is not None:
                with contextlib.suppress(OSError):  # only root may give files away
                    os.fchown(file.fileno(), replaced.st_uid, replaced.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(replaced.st_mode) & 0o777)
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)  # while the lock is held: nobody takes the file for a leftover
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):
            raise _refusal(path, error) from None
        raise
    _sync_folder(target.parent)


def write_text(path: PathLike, text: str) -> None:
    """Write text as UTF-8, whole or not at all; raises as :func:`write` does."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise DdsimError(f"{path}: not written: {error.object[error.start]!r} in it is half a character") from None
    write(path, lambda file: file.write(content))


@contextlib.contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """A folder that takes its name once all its files are written; folders above it are made.

    Raises
    ------
    DdsimError
        Something other than an empty folder has that name, or it can't be made there.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp(), "model")
    >>> with new_folder(place) as folder:
    ...     write_text(folder / "config.json", "{}")
    ...     place.exists()
    False
    >>> [p.name for p in place.iterdir()]
    ['config.json']
    """
    target = Path(os.path.realpath(path))
    check_new_folder(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        temporary = target.with_name(f".{_head(target)}.{secrets.token_hex(8)}.tmp")
        temporary.mkdir()
    except OSError as error:
        raise _refusal(path, error) from None
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise _refusal(path, error) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)
    _sync_folder(target.parent)


def check_new_folder(path: PathLike) -> None:
    """Refuse, before the work, a folder that is there and holds something, or that can't be made."""
    check_output_folder(path)
    if os.path.isdir(path) and os.listdir(path):
        raise DdsimError(f"{path}: is there and isn't empty; name a new folder")


def write_stdout(suffix: str, make: Callable[[Path], object]) -> None:
    """Send a file to standard output.

    Parameters
    ----------
    suffix : str
        The format: what a name of such a file ends in.
    make : callable
        Makes the file that it is given the path of.

    Raises
    ------
    DdsimError
        Standard output is closed or can't be written.
    BrokenPipeError
        Whoever read it has had enough.
    """
    if stdout_closed():
        raise DdsimError("standard output is closed; give a file name in place of -")
    with tempfile.TemporaryDirectory(prefix="ddsim-") as folder:
        path = Path(folder, f"file{suffix}")
        make(path)
        try:
            sys.stdout.flush()
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, 1 << 16)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # What is left in the buffer has nowhere to go, and Python would try again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise _refusal("standard output", error) from None


def stdout_closed() -> bool:
    """Whether there is no standard output; ``ddsim.__main__`` puts the null device in its place."""
    return sys.stdout is None or getattr(sys.stdout, "name", None) == os.devnull


def remove_stale(path: PathLike) -> None:
    """Remove what killed writers of a file or folder left beside it; what is still being written is locked, and stays."""
    target = Path(path)
    ours = re.compile(rf"\.{re.escape(_head(target))}\.[0-9a-f]{{16}}\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if ours.fullmatch(name):
                _remove_if_dead(target.with_name(name))


def check_output(name: PathLike) -> None:
    """Refuse, before the work, an output file that can't be written. ``-`` is standard output and never refused.

    Raises
    ------
    DdsimError
        No such folder, one that can't be written, a name that is too long, or something else than a file is there.
    """
    if str(name) == STDOUT:
        return
    if "\0" in str(name):
        raise DdsimError(f"{str(name)!r}: a file name can't hold a null byte")
    target, _ = _target(name)
    _check_folder(name, target.parent)


def check_output_folder(name: PathLike) -> None:
    """Refuse, before the work, a folder for output that is something else or that can't be made or written.

    Raises
    ------
    DdsimError
        In its place, or in that of a folder above it, is something else than a folder, or one that can't be written.
    """
    if "\0" in str(name):
        raise DdsimError(f"{str(name)!r}: a folder's name can't hold a null byte")
    folder = Path(name)
    try:
        while not _exists(folder) and folder != folder.parent:
            folder = folder.parent
    except OSError as error:
        raise _refusal(name, error) from None
    if not folder.is_dir():
        raise DdsimError(f"{name}: {'' if folder == Path(name) else f'{folder} '}is a file; name a folder")
    _check_folder(name, folder)


def refuse_inputs(outputs: Iterable[PathLike | None], inputs: Iterable[PathLike | None]) -> None:
    """Refuse to write over what is read, or two outputs to one file. Links count as what they point to.

    Parameters
    ----------
    outputs : paths
        Files, or folders to write to; None and ``-`` are left out.
    inputs : paths
        Files, and folders all of whose content is read; what doesn't exist (the name of a model, say) is left out.

    Raises
    ------
    DdsimError
        Names the output.

    Examples
    --------
    >>> refuse_inputs(["a.png", "./a.png"], [])
    Traceback (most recent call last):
        ...
    ddsim.errors.DdsimError: ./a.png: is the place of two outputs; name another for one of them
    """
    named = [name for name in outputs if name is not None and str(name) != STDOUT]
    seen: set[Any] = set()
    for name in named:
        if _identity(name) in seen:
            raise DdsimError(f"{name}: is the place of two outputs; name another for one of them")
        seen.add(_identity(name))
    for given in inputs:
        if given is None or not os.path.exists(given):
            continue
        for name in named:
            if _identity(name) == _identity(given):
                raise DdsimError(f"{name}: is read by this command, which would replace it; name another output")
            if os.path.isdir(given) and (
                Path(os.path.realpath(given)) in Path(os.path.realpath(name)).parents
                or any(_identity(entry.path) == _identity(name) for entry in os.scandir(given))
            ):
                raise DdsimError(f"{name}: belongs to {given}, which this command reads; name another output")


def _target(path: PathLike) -> tuple[Path, os.stat_result | None]:
    """The file that a path means, links followed, and what is known of it if it is there; refuses what is no file."""
    if not str(path) or str(path).endswith(os.sep):
        raise DdsimError(f"{str(path)!r}: names no file; name one")
    try:
        found: os.stat_result | None = os.stat(path)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise _refusal(path, error) from None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise DdsimError(f"{path}: is a folder; name a file")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise DdsimError(f"{path}: isn't a regular file; name another, or - for standard output")
    if found is not None and not os.access(path, os.W_OK):
        raise DdsimError(f"{path}: is write-protected; name another file, or change its permissions")
    return Path(os.path.realpath(path)), found


def _check_folder(name: PathLike, folder: Path) -> None:
    if not folder.is_dir():
        raise DdsimError(f"{name}: the folder {folder} doesn't exist; make it first or choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DdsimError(f"{name}: the folder {folder} can't be written; choose another")


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _identity(path: PathLike) -> Any:
    """Equal for equal files: device and inode, or the path where nothing is."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _head(target: Path) -> str:
    """The name, cut so that a longer one can be made of it: file systems take 255 bytes."""
    return os.fsdecode(os.fsencode(target.name)[:230])


def _created(target: Path) -> tuple[Path, BinaryIO]:
    """A new file beside the target, locked for as long as it is open."""
    while True:
        temporary = target.with_name(f".{_head(target)}.{secrets.token_hex(8)}.tmp")
        file = open(temporary, "x+b")  # noqa: SIM115 -- the caller closes it; x never follows a link
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # another writer removed it before it was locked


def _remove_if_dead(leftover: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                shutil.rmtree(leftover)
            else:
                os.unlink(leftover)
        finally:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Put a rename on disk: it too must survive a power cut."""
    with contextlib.suppress(OSError):  # some file systems don't know how
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refusal(path: PathLike, error: OSError) -> DdsimError:
    return DdsimError(f"{path}: can't be written ({error.strerror or error})")
