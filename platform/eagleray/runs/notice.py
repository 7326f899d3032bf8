"""The notice before a process is ended: a signal, after which training saves what it has and ends.

The step that is under way is done first, so nothing is lost. A second signal ends the process where it is.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LEFT = (signal.SIG_IGN, None)  # what is ignored (nohup) stays ignored, and what is not Python's stays


class Notice:
    """Whether this process was told to end.

    Args:
        error: what ends the training then; it must leave the run to be continued.
    """

    def __init__(self, error: BaseException | None = None):
        self.error = error or KeyboardInterrupt()
        self.came = False
        self._waiting: int | None = None  # the thread that is inside `interrupting`

    @contextmanager
    def heeded(self, *numbers: signal.Signals) -> Iterator[None]:
        """Take signals as the notice inside the block. Only the main thread can; elsewhere nothing changes."""
        before = self.heed(*numbers) if threading.current_thread() is threading.main_thread() else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def heed(self, *numbers: signal.Signals) -> dict[signal.Signals, Any]:
        """Take signals as the notice from now on; return what handled them before."""
        before = {number: handler for number in numbers if (handler := signal.getsignal(number)) not in LEFT}
        for number in before:
            signal.signal(number, self.give)
        return before

    def give(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Give notice; as a handler of signals.

        Raises:
            BaseException: `error`, if it came before, or if this thread is inside `interrupting`.
        """
        again, self.came = self.came, True
        if again or self._waiting == threading.get_ident():
            raise self.error

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a notice end the block at once: it takes long, and changes nothing that is saved."""
        self._waiting = threading.get_ident()
        try:
            if self.came:
                raise self.error
            yield
        finally:
            self._waiting = None
