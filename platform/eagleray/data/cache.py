"""Files that the processes of a machine share: written by one, whole or not at all, and checked when read."""

import fcntl
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from eagleray.contracts.errors import ConfigError


def cache_folder(chosen: Path | None) -> Path:
    """The folder of the cache, made if it is not there: `chosen`, or `eagleray` in the user's cache folder.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagleray"
    with _refusing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(texts: Iterable[str]) -> str:
    """A short name for any number of texts; different texts get different ones."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode("utf-8", "surrogateescape") + b"\0")  # file names may be no UTF-8
    return whole.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process is inside; one that dies inside lets go."""
    with _refusing(path.parent):
        file = path.open("ab")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name when the block has ended well.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _refusing(path.parent):
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a power cut leaves a file of the right size full of zeros
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_pixels(path: Path, images: Iterable[np.ndarray]) -> int:
    """Write uint8 images one after the other, bytes alone; return their CRC-32."""
    checksum = 0
    with written_whole(path) as file:
        for image in images:
            block = image.tobytes()
            checksum = zlib.crc32(block, checksum)
            file.write(block)
    return checksum


def read_pixels(path: Path, checksum: int) -> np.ndarray:
    """Return the bytes of a file, uint8 [bytes], mapped and read-only.

    Raises:
        OSError, ValueError: it is not there, or not what was written.
    """
    state = path.stat()
    if _checksum(path, state.st_size, state.st_mtime_ns) != checksum:
        raise ValueError(f"{path} is damaged")
    return np.memmap(path, np.uint8, "r")


@lru_cache(maxsize=16)
def _checksum(path: Path, size: int, changed: int) -> int:
    """Read through once in a process for each state of the file: a process may train hundreds of runs."""
    return zlib.crc32(np.memmap(path, np.uint8, "r").data)


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the cache of decoded images in {folder} cannot be written ({error}): set data.cache"
        ) from error
