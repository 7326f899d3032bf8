"""Files that outlast a power cut, and whose damage is found before they are used.

A file is written beside its place, forced to the disk and renamed, and then its folder is forced to the disk, too:
after a power cut the old file is there or the new one, never a part. Text carries a digest of itself at its end: a
changed bit, a block of zeros or a missing end shows. It stays plain JSON or YAML.
"""

import csv
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import IO

from eagleray.contracts.errors import ConfigError, Damaged
from eagleray.contracts.report import Failed

FULL = (errno.ENOSPC, errno.EDQUOT)
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


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write(path: Path, content: str | bytes, template: str = "") -> None:
    """Write a file as a whole (see `whole`); text in UTF-8."""
    with whole(path, template) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path, template: str = "") -> Iterator[IO[bytes]]:
    """Open a file that has its name only when the block has ended.

    Then it outlasts a power cut. What a killed process left of it before is removed.

    Args:
        path: of the file; its folder exists.
        template: a sentence with `{}` for the reason, if a person has chosen the path.

    Raises:
        Failed: there is no room on the disk, or it cannot be written.
        ConfigError: the same, told as the template.
    """
    with writable(path, template):
        for left in path.parent.glob(f".{escape(path.name)}.[0-9]*"):
            left.unlink(missing_ok=True)
        with unfinished(path.with_name(f".{path.name}.{os.getpid()}")) as beside:
            with beside.open("wb") as file:
                yield file
            place(beside, path)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Remove a file after the block, unless it has another name by then."""
    try:
        yield path
    finally:
        with suppress(OSError):  # it has its name; or the disk is gone, which is what the block itself has raised
            os.truncate(path, 0)  # frees its room even while torch, whose error is being handled, holds it open
            path.unlink()


@contextmanager
def writable(path: Path, template: str = "") -> Iterator[None]:
    """Tell why the block cannot write a file.

    Args and errors as `whole`.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # only that one is torch's for a disk that is full
        why = _unwritable(path, error)
        raise (ConfigError(template.format(why)) if template else Failed(why, "infrastructure")) from error


def place(beside: Path, path: Path) -> Path:
    """Give a complete file its name, and return it.

    When this returns it outlasts a power cut.
    """
    force(beside)
    os.replace(beside, path)
    force(path.parent)
    return path


def make_folder(path: Path, template: str = "") -> None:
    """Make a folder and those above it that are missing.

    When this returns they outlast a power cut. Args and errors as `whole`.
    """
    with writable(path, template):
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


def _unwritable(path: Path, error: Exception) -> str:
    """Return why a file cannot be written, with the free space of a full disk."""
    folder, number = path.parent, error.errno if isinstance(error, OSError) else errno.ENOSPC
    reason = os.strerror(number) if number else str(error)
    if number == errno.ENOENT and not folder.exists():
        reason += f", as {folder} is not there"
    if number in FULL:
        reason += f" ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there)"
    return f"{path} cannot be written: {reason}"
