"""The object that says which process works at an address."""

import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil

from eagleray.contracts.errors import ConfigError, Noted
from eagleray.contracts.paths import address_of
from eagleray.contracts.report import Failed
from eagleray.storage.store import items_at, read, remove, write

ALIVE = 30.0  # seconds in which the object of a living process changes


class Lease:
    """An object that one process has: its key, machine, number and beginning, and a count that grows."""

    def __init__(self, directory: Path):
        self.directory, self.path, self.key, self.count = directory, directory / "lock", uuid4().hex, 0
        self.created = psutil.Process().create_time()
        self.is_lost = False

    def take(self) -> None:
        """Create the object, or take the place of a process that has ended.

        Raises:
            ConfigError: a living process has it.
            Failed: the store does not answer, or refuses.
        """
        while items_at(self.path) or not write(self.path, self._text(), new=True):  # some stores ignore `new`
            before = read(self.path)
            if self._changes(before):
                _, node, pid, *_ = before.decode().split()
                raise ConfigError(
                    f"another process ({pid} on {node}) trains in {address_of(self.directory)}; wait for its end, or "
                    "stop it"
                )
            remove([self.path])

    def renew(self) -> None:
        """Change the object, so that others see that this process lives.

        Raises:
            Failed: another process has taken it, or the store does not answer.
        """
        if self.is_lost or read(self.path).split()[0] != self.key.encode():
            self.is_lost = True
            raise self.lost
        self.count += 1
        write(self.path, self._text())

    @property
    def lost(self) -> Failed:
        """The error of a process that does not have it any more."""
        return Failed(f"another process has taken {address_of(self.directory)}; stop one of them", "infrastructure")

    def _text(self) -> bytes:
        return f"{self.key} {platform.node()} {os.getpid()} {self.created} {self.count}".encode()

    def _changes(self, before: bytes) -> bool:
        """Return whether the process lives that has the object; on another machine, whether it changes the object."""
        _, node, pid, created, _ = before.decode().split()
        if node == platform.node():
            return psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).create_time() == float(created)
        end = time.monotonic() + ALIVE
        while time.monotonic() < end:
            time.sleep(1)
            if read(self.path) != before:
                return True
        return False


@contextmanager
def claimed(directory: Path) -> Iterator[Lease]:
    """Have the address of a run alone during the block.

    Raises:
        ConfigError: another process has it, or the store does not answer, or refuses.
    """
    lease = Lease(directory)
    try:
        lease.take()
    except Failed as error:
        raise ConfigError(str(error)) from error
    try:
        yield lease
    finally:
        try:
            if not lease.is_lost:
                remove([lease.path])
        except Failed as error:
            warnings.warn(f"{error}. {address_of(lease.path)} stays until the next start", Noted, stacklevel=2)
