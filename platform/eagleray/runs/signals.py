"""Handle SIGTERM and SIGHUP like Ctrl-C.

A batch system, a container or a closed terminal sends them.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def as_interrupts() -> None:
    """Make SIGTERM and SIGHUP interrupt as Ctrl-C does.

    A signal that is ignored (nohup) stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold interrupts back until the end of the block, so that what it starts can be ended.

    Raises:
        KeyboardInterrupt: one came.
    """
    came, numbers = list[int](), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: each for number in numbers if (each := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)  # Ray Tune has its own handler
    else:  # a shell makes its background processes ignore Ctrl-C
        raise KeyboardInterrupt
