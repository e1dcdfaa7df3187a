"""Numba's compiler with a cache that survives damage."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

DIGEST = 16  # bytes

compiled = 0
"""Kernels that this process had to compile, because the cache had none."""


def njit(*, cache: bool = True, **options: Any) -> Callable[[Any], Any]:
    """``numba.njit``, with a cache that takes a damaged file for a missing one.

    Numba keeps machine code pickled, beside the source or, where it can't write, in the user's own cache folder. It reads back
    what it finds: a file cut short ends in an error of pickle's, a flipped bit in a wrong number or a crash. It also takes what
    was compiled with another version of a kernel that this one calls from another file.
    """

    def kernel_of(function: Any) -> Any:
        kernel = numba.njit(**options)(function)
        if cache and isinstance(kernel, Dispatcher):  # NUMBA_DISABLE_JIT leaves the function as it is
            with contextlib.suppress(RuntimeError):  # no folder can be written: compile in every process
                kernel._cache = _Cache(function)  # type: ignore[attr-defined, unused-ignore]
        return kernel

    return kernel_of


class _Cache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """The cache of one kernel."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        called = [
            v._cache.sources for v in function.__globals__.values() if isinstance(getattr(v, "_cache", None), _Cache)
        ]
        self.sources: frozenset[str] = frozenset([function.__code__.co_filename]).union(*called)
        stamp = hashlib.blake2b(numba.__version__.encode(), digest_size=DIGEST)
        for source in sorted(self.sources):
            stamp.update(_content(source))
        self._cache_file = _CacheFiles(self._cache_path, self._impl.filename_base, stamp.digest())

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the next process the time to compile, nothing else
            super().save_overload(sig, data)


class _CacheFiles(IndexDataCacheFile):  # type: ignore[misc, unused-ignore]
    """One file a signature: what Numba stores, and its checksum.

    Numba's own index names the file of a signature. A process that dies between writing the two, or a second one that writes at
    the same time, leaves an index that names another's code; so the name here is made of all that the code depends on.
    """

    def load(self, key: Any) -> Any:
        name = self._name(key)
        if _intact(Path(self._data_path(name))):
            return self._load_data(name)
        global compiled
        compiled += 1
        return None

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name(key), data)

    def _name(self, key: Any) -> str:
        digest = hashlib.blake2b(repr(key).encode(), key=self._source_stamp, digest_size=DIGEST).hexdigest()
        return self._index_name.removesuffix("nbi") + f"{digest}.nbc"

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + _digest(content.getvalue()))  # pickle reads up to its own end


def _intact(path: Path) -> bool:
    """Whether the file is there, as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) > DIGEST and content[-DIGEST:] == _digest(content[:-DIGEST])


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


@functools.cache
def _content(source: str) -> bytes:
    """Digest of a source file."""
    return _digest(Path(source).read_bytes())
