"""Files that outlast a power cut, and whose damage is found before they are used.

A file is written beside its place, forced to the disk and renamed, and then its folder is forced to the disk, too:
after a power cut the old file is there or the new one, never a part. Text carries a digest of itself at its end: a
changed bit, a block of zeros or a missing end shows. It stays plain JSON or YAML.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eagleray.contracts.errors import Damaged
from eagleray.contracts.report import Failed

DIGITS = 16  # of SHA-256, in hexadecimal: damage passes unseen once in 2^64 times


@dataclass(frozen=True)
class Seal:
    """How a kind of text carries its digest."""

    end: bytes  # of the text without a digest
    before: bytes  # what stands between the rest of the text and its digest
    after: bytes

    def put(self, text: str) -> bytes:
        """Return a text with its digest."""
        body = text.encode().removesuffix(self.end)
        return body + self.before + digest(body).encode() + self.after

    def open(self, data: bytes) -> bytes:
        """Return the text without its digest.

        Raises:
            Damaged: the digest is missing, or it is not that of the text.
        """
        size = len(self.before) + DIGITS + len(self.after)
        body = data[:-size]
        if data[-size:] != self.before + digest(body).encode() + self.after:
            raise Damaged("its digest does not fit its content")
        return body + self.end


JSON = Seal(b"\n}", b',\n "digest": "', b'"\n}\n')  # of an object with at least one member, indented
LINE = Seal(b"}", b', "digest": "', b'"}')
YAML = Seal(b"", b"# digest: ", b"\n")


def digest(data: bytes) -> str:
    """Return a digest of data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def digest_of(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole; text in UTF-8.

    When this returns it outlasts a power cut.

    Raises:
        Failed: there is no room on the disk, or it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(unfinished):
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        place(unfinished, path)


@contextmanager
def appending(path: Path) -> Iterator[None]:
    """Tell why the block cannot add to a file.

    Raises:
        Failed: the disk has no room, or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise Failed(_unwritable(path.parent, error), "infrastructure") from error


@contextmanager
def writing(unfinished: Path) -> Iterator[None]:
    """Remove an unfinished file if the block cannot write it.

    Raises:
        Failed: the disk has no room, or cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # only that one is torch's for a disk that is full
        unfinished.unlink(missing_ok=True)
        raise Failed(_unwritable(unfinished.parent, error), "infrastructure") from error


def place(unfinished: Path, path: Path) -> None:
    """Give a complete file its name.

    When this returns it outlasts a power cut.
    """
    force(unfinished)
    os.replace(unfinished, path)
    force(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing.

    When this returns they outlast a power cut.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        force(each.parent)


def force(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, error: Exception) -> str:
    """Return why nothing can be written in a folder."""
    if not folder.exists():
        return f"{folder} is gone: somebody removed or moved it"
    reason = error.strerror if isinstance(error, OSError) else "No space left on device"
    free = shutil.disk_usage(folder).free / 2**20
    return f"{folder} cannot be written: {reason} ({free:,.0f} MiB are free there)"
