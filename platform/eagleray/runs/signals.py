"""What a batch system, a container or a closed terminal sends to end a program is answered as Ctrl-C is."""

import signal
from types import FrameType


def as_interrupts() -> None:
    """SIGTERM and SIGHUP interrupt from now on; one that is ignored stays so, as nohup means it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)  # Ray Tune has an answer of its own
    else:  # a shell starts what runs in its background deaf to Ctrl-C
        raise KeyboardInterrupt
