"""Handle SIGTERM and SIGHUP like Ctrl-C.

A batch system, a container or a closed terminal sends them.
"""

import signal
from types import FrameType


def as_interrupts() -> None:
    """Make SIGTERM and SIGHUP interrupt as Ctrl-C does.

    A signal that is ignored (nohup) stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)  # Ray Tune has its own handler
    else:  # a shell makes its background processes ignore Ctrl-C
        raise KeyboardInterrupt
