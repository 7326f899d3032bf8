"""Processes that decode images for another process.

They end with it. They are started by name, `python -m eagleray.data.workers`: a forked copy of a process with threads
(torch's, Ray's) can wait forever for a lock that nobody holds, and a process spawned by multiprocessing runs the user's
script again if that has no `if __name__ == "__main__"`. They import no torch, so they start fast.
"""

import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

import numpy as np

from eagleray.contracts.errors import ConfigError
from eagleray.data.decode import decode_all


class Decoders:
    """A pool of processes that decode one batch each.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int):
        started = [_start() for _ in range(count)]
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        for _, connection in started:
            self._idle.put(connection)
        self._waiters = ThreadPoolExecutor(count)  # one thread waits for each process
        weakref.finalize(self, _stop, self._waiters, started)

    def submit(self, paths: Sequence[str], size: int, channels: int) -> Future[list[np.ndarray]]:
        """Ask for image files as uint8 [channels, H, W] each.

        Requests start in their order.

        The future raises:
            ConfigError: a file cannot be read.
            RuntimeError: the process was killed.
        """
        return self._waiters.submit(_ask, self._idle, paths, size, channels)


def _ask(idle: "SimpleQueue[Connection]", paths: Sequence[str], size: int, channels: int) -> list[np.ndarray]:
    connection = idle.get()
    try:
        connection.send((paths, size, channels))
        answer: str | list[tuple[int, ...]] = connection.recv()
        if isinstance(answer, str):
            raise ConfigError(answer)
        ends = np.cumsum([math.prod(shape) for shape in answer])
        flat = np.empty(ends[-1], np.uint8)
        connection.recv_bytes_into(flat.data)
    except (EOFError, OSError) as error:
        raise RuntimeError("a process that decodes images was killed; did the machine run out of memory?") from error
    finally:
        idle.put(connection)
    return [image.reshape(shape) for image, shape in zip(np.split(flat, ends[:-1]), answer, strict=True)]


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with theirs:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
        )
    return process, ours


def _stop(waiters: ThreadPoolExecutor, started: list[tuple[subprocess.Popen[bytes], Connection]]) -> None:
    waiters.shutdown(cancel_futures=True)
    for _, connection in started:
        connection.close()
    for process, _ in started:
        process.wait()


def _serve(connection: Connection) -> None:
    """Decode on request until the other end is closed.

    A kill of its process closes it too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the other one handles it
    while True:
        try:
            images = decode_all(*connection.recv())
        except (EOFError, ConnectionError):
            return
        except ConfigError as error:
            connection.send(str(error))
        else:
            connection.send([image.shape for image in images])
            connection.send_bytes(np.concatenate([image.ravel() for image in images]).data)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
