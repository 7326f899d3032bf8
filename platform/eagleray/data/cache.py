"""Cache files that the processes of a machine share.

One process writes a file atomically; all that read it check it.
"""

import fcntl
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np

from eagleray.contracts.files import make_folder, whole, writable
from eagleray.contracts.machine import user_cache

REFUSAL = "the cache of decoded images: {}; set data.cache to another folder"


def cache_folder(chosen: Path | None) -> Path:
    """Return the folder of the cache, created if missing.

    It is `chosen`, else `eagleray` in the user's cache folder.

    Raises:
        ConfigError: it cannot be created.
    """
    folder = chosen or user_cache()
    make_folder(folder, REFUSAL)
    return folder


def digest(texts: Iterable[str]) -> str:
    """Return a short hash of some texts."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode("utf-8", "surrogateescape") + b"\0")  # file names may not be UTF-8
    return whole.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes.

    It is released if the process dies.
    """
    with writable(path, REFUSAL):
        file = path.open("ab")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_pixels(path: Path | None, images: Iterable[np.ndarray]) -> int:
    """Write uint8 images one after the other; without a path, only read them.

    Return their CRC-32.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written.
    """
    checksum = 0
    with whole(path, REFUSAL) if path else nullcontext() as file:
        for image in images:
            block = image.tobytes()
            checksum = zlib.crc32(block, checksum)
            if file:
                file.write(block)
    return checksum


def read_pixels(path: Path, checksum: int) -> np.ndarray:
    """Map a file read-only, as uint8 [bytes].

    Raises:
        OSError, ValueError: it is missing, or has changed since it was written.
    """
    state = path.stat()
    if _checksum(path, state.st_size, state.st_mtime_ns) != checksum:
        raise ValueError(f"{path} is damaged")
    return np.memmap(path, np.uint8, "r")


@lru_cache(maxsize=16)
def _checksum(path: Path, size: int, changed: int) -> int:
    """Return the CRC-32 of a file.

    It is computed once per process: a process may train hundreds of runs.
    """
    return zlib.crc32(np.memmap(path, np.uint8, "r").data)
