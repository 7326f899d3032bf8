"""Send runs from one thread of the driver.

They are sent while they train; what is left is sent afterwards.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record, find_records, sound
from eagleray.tracking.send import Destination, Sent, Unsent
from eagleray.tracking.store import store_uri
from eagleray.tracking.sync_state import is_sent, read_note, traces

Traces = dict[str, list[int]]


class Sender:
    """Sends runs and their children until it is closed.

    Runs are added to it; their children are sent as they appear.

        with Sender(uri) as sender:
            sender.add(record)
            ...
        print(sender.message)

    It sends every `every` seconds; while the store fails, less and less often, down to once a minute. A slow or
    unreachable store delays only this thread.
    """

    def __init__(self, uri: str | None = None, every: float = 2.0) -> None:
        self.uri = store_uri(uri)
        self.message: str | None = None  # after closing: what `close` returned
        self.troubles: dict[str, str] = {}  # key of a run -> why the last attempt failed
        self._records: dict[Path, Record] = {}
        self._sent: dict[Path, Traces] = {}  # of the runs that were sent, before they were
        self._every = every
        self._destination = Destination(self.uri)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="eagleray-sender", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, record: Record) -> None:
        """Add a run.

        Later changes in its directory (tags, its end) are sent too.
        """
        self._records[record.directory] = record

    def close(self, timeout: float = 30.0) -> str | None:
        """Send what is left, in at most `timeout` seconds.

        Return None, or what is unsent or cannot be kept there, and why.
        """
        self._destination.deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout)
        unsent = [record for record, _ in self.changed() if not is_sent(record, self.uri)]
        sentences = [*([self._farewell(unsent)] if unsent else []), *self._destination.lacks]
        self.message = " ".join(sentences) or None
        return self.message

    def _farewell(self, unsent: list[Record]) -> str:
        reasons = [self.troubles[record.key] for record in unsent if record.key in self.troubles]
        why = max(reasons, key=reasons.count) if reasons else "the time was up"
        runs = "1 run is" if len(unsent) == 1 else f"{len(unsent)} runs are"
        return (
            f"{runs} not yet completely in MLflow at {self._destination.name}: {why}. "
            "Nothing is lost; `eagleray sync` sends the rest."
        )

    def changed(self) -> list[tuple[Record, Traces]]:
        """Open the runs, and their children, that have changed since all of them was sent.

        Each parent comes before its children. Opening a thousand others every time would take a core.
        """
        found: list[tuple[Record, Traces]] = []
        for root in list(self._records):
            trials = sorted(path.parent for path in root.glob("trials/*/record.json"))
            for directory in (root, *trials):
                now = traces(directory, None if directory == root else root)
                if self._sent.get(directory) != now:
                    found += [(record, now) for record in self._opened(directory)]
        return found

    def _opened(self, directory: Path) -> list[Record]:
        """Open a record; none if it was deleted or damaged meanwhile, and the other runs continue."""
        try:
            opened = [Record.open(directory)] if directory in self._records else sound([directory])
        except (ConfigError, OSError) as error:
            self.troubles[str(directory)] = str(error)
            return []
        self.troubles.pop(str(directory), None)
        return opened

    def _work(self) -> None:
        failures = 0
        while not self._closing.is_set():
            failures = 0 if self._pass() else failures + 1
            self._closing.wait(min(self._every * 2 ** min(failures, 10), 60.0))
        self._pass()

    def _pass(self) -> bool:
        """Try to send every run that has changed, once.

        Return whether nothing is left.
        """
        # Runs that failed come last, so that one which the store always refuses does not delay the others.
        for record, now in sorted(self.changed(), key=lambda each: each[0].key in self.troubles):
            if time.monotonic() > self._destination.deadline:
                return False
            result = self._destination.send(record)
            self.troubles.pop(record.key, None)
            if isinstance(result, Unsent):
                self.troubles[record.key] = result.reason
                if not result.answered:
                    return False
            else:
                self._sent[record.directory] = now
        return not self.troubles


@dataclass(frozen=True)
class Synced:
    sent: int  # runs of which something was sent
    already: int  # runs that were complete already
    unsent: dict[Path, str]  # directory -> why not
    lacks: list[str]  # sentences about what a store cannot do


def sync_all(root: Path | str, uri: str | None = None) -> Synced:
    """Send what is unsent of every run in `root`.

    It is sent to `uri`, or else to the store of each run.

    Raises:
        ConfigError: there are no runs.
    """
    destinations: dict[str, Destination] = {}
    unreachable: dict[str, Unsent] = {}
    sent = already = 0
    unsent: dict[Path, str] = {}
    records = find_records(root)
    if not records:
        raise ConfigError(f"{root} holds no runs; name the directory that contains them")
    for record in records:
        to = _store_of(record, uri)
        result = unreachable.get(to) or destinations.setdefault(to, Destination(to)).send(record)
        if isinstance(result, Unsent):
            unsent[record.directory] = result.reason
            if not result.answered:
                unreachable[to] = result
        elif result.new:
            sent += 1
        else:
            already += 1
    return Synced(sent, already, unsent, [lack for each in destinations.values() for lack in each.lacks])


def send_again(record: Record) -> Sent | Unsent | None:
    """Send what is new of a run to its store; None: nothing was sent there before, or there is nothing new."""
    store = _store_of(record, None)
    if read_note(record, without_password(store)) is None or is_sent(record, store):
        return None
    return Destination(store).send(record)


def _store_of(record: Record, uri: str | None) -> str:
    """Return the store of a run.

    Records keep no password, so use the environment's URI if it is the same store.
    """
    here = store_uri(uri)
    if uri or record.uri is None or without_password(here) == store_uri(record.uri):
        return here
    return store_uri(record.uri)
