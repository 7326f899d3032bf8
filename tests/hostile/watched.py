"""What an input makes the process do: seconds, memory, what is run and written."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS, BYTES = 10, 2**30  # of computing and of memory, that one input may take; who waits is ended by pytest
RUN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
}
CHANGED = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watched:
    """What happened in a block."""

    places: tuple[Path, ...]  # where files may be written
    run: list[str] = field(default_factory=list)  # processes and connections
    outside: list[str] = field(default_factory=list)  # files written elsewhere
    seconds: float = 0
    bytes: int = 0

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event of the interpreter."""
        if event in RUN:
            self.run.append(f"{event} {arguments}")
        is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (is_written or event in CHANGED) and isinstance(arguments[0], str | bytes | os.PathLike):
            path = Path(os.path.realpath(os.fsdecode(arguments[0])))
            if not any(path.is_relative_to(place) for place in (*self.places, Path("/dev/null"))):
                self.outside.append(f"{event} {path}")

    def check(self) -> None:
        """Assert that the input was harmless."""
        assert self.run == []
        assert self.outside == []
        assert self.seconds < SECONDS
        assert self.bytes < BYTES


_active: list[Watched] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for each in tuple(_active):
        each.see(event, arguments)


@contextmanager
def watched(*places: Path) -> Iterator[Watched]:
    """Watch what the block does; it may write below `places` alone."""
    if not hasattr(sys, "_hostile_hook"):
        sys.addaudithook(_hook)
        sys._hostile_hook = True  # type: ignore[attr-defined]  # a hook stays until the process ends
    result = Watched(tuple(place.resolve() for place in places))
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory from here on
    before, start, sys.dont_write_bytecode = _memory("VmRSS"), time.process_time(), True
    _active.append(result)
    try:
        yield result
    finally:
        _active.remove(result)
        sys.dont_write_bytecode = False
        result.seconds, result.bytes = time.process_time() - start, _memory("VmHWM") - before


def _memory(name: str) -> int:
    """Return a line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
