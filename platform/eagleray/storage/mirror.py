"""Who works in a copy: of the processes of a machine one, and at an address one machine.

A process that trains holds the copy of its run (`mirrored`): it fetches the run first, sends what changes every few
seconds, and the rest at the end. Other processes of that machine use the files as they are. Readers fetch what they
need (`at_hand`). Who starts a run or sweep has its address alone: an object `lock`, which the store creates only once,
names that process, and changes while it lives.
"""

import fcntl
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eagleray.contracts.errors import ConfigError, Noted
from eagleray.contracts.files import make_folder
from eagleray.contracts.paths import address_of, located
from eagleray.contracts.report import Failed
from eagleray.storage.copy import Part, everything, is_sent, of_record, of_run, pull, push
from eagleray.storage.lease import Lease, claimed
from eagleray.storage.store import Item, items_at, remove

EVERY = 5.0  # seconds between two looks at what has changed
PATIENCE = 60.0  # seconds in which a store must answer again, where nothing can go on without it
FRESH = 60.0  # seconds in which images and networks are not looked up again

_mutexes: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)
_held: set[Path] = set()  # copies that this process holds
_seen: dict[Path, float] = {}  # when inputs were looked up


# Readers


def input_at_hand(path: Path) -> Path:
    """Return a file or folder that a run reads; if it is the copy of an address, in step with it.

    Several processes may ask at once: one fetches, the others wait.

    Raises:
        ConfigError: the store does not answer, or refuses.
    """
    if address_of(path) is not None and time.monotonic() - _seen.get(path, -FRESH) >= FRESH:
        with told():
            _pulled(path, everything)
        _seen[path] = time.monotonic()
    return path


def records_at_hand(place: Path | str) -> Path:
    """Return a folder of runs, or of one; of an address, the records in it are fetched.

    Raises:
        ConfigError: the store does not answer, or refuses.
    """
    path = Path(located(place))
    if address_of(path) is not None:
        with told():
            for copy, listed in _runs_in(path).items():
                _pulled(copy, of_record, listed)
    return path


def run_at_hand(place: Path | str) -> Path:
    """Return the directory of a run or sweep; of an address, all of it is fetched, and the records of its trials.

    Raises:
        ConfigError: the store does not answer, or refuses.
    """
    path = records_at_hand(place)
    if address_of(path) is not None:
        with told():
            _pulled(path, of_run)
    return path


def _runs_in(path: Path) -> Mapping[Path, dict[str, Item]]:
    """List the runs at an address, and those that the copy has, with the objects of each."""
    items = items_at(path)
    places = {path / name: item for name, item in items.items()}
    runs: dict[Path, dict[str, Item]] = {place.parent: {} for place in places if place.name == "record.json"}
    runs |= {place.parent: {} for place in path.rglob("record.json") if place.parent not in runs}
    for place, item in places.items():
        if (own := next((above for above in place.parents if above in runs), None)) is not None:
            runs[own][str(place.relative_to(own))] = item
    return runs


# Those that train


def refresh(directory: Path, part: Part = of_run) -> None:
    """Bring what other machines have sent of a run, if its directory is a copy.

    Raises:
        Failed: the store does not answer for a while, or refuses.
    """
    if address_of(directory) is not None:
        _patiently(lambda: _pulled(directory, part, is_holder=True))


def flush(directory: Path) -> None:
    """Send what has changed in a run's directory, if it is a copy; afterwards other machines can have it.

    Raises:
        Failed: the store does not answer for a while, or refuses.
    """
    if address_of(directory) is not None:
        _patiently(lambda: _pushed(directory))


@contextmanager
def mirrored(directory: Path, part: Part = of_run, *, is_alone: bool = False) -> Iterator[None]:
    """Hold the copy of a run: fetch it, send what changes during the block, and the rest after it.

    Nothing happens if the directory is no copy. If another process of this machine holds it, the files are used as they
    are. While the store fails the block goes on, and a note says so.

    Args:
        directory: of the run or sweep.
        part: of it that is fetched first.
        is_alone: nobody else may work at the address meanwhile.

    Raises:
        ConfigError: another process works there, or the store does not answer, or refuses.
        Failed: at the end the store does not answer for a while; the copy has everything.
    """
    if address_of(directory) is None or directory in _held:
        yield
        return
    with ExitStack() as stack:
        if not _takes(directory, stack):
            yield
            flush(directory)
            return
        lease = stack.enter_context(claimed(directory)) if is_alone else None
        _held.add(directory)
        stack.callback(_held.discard, directory)
        _patiently(lambda: _pulled(directory, part, is_holder=True))
        if directory.exists():
            (directory / "artifacts").mkdir(exist_ok=True)  # stores have no empty folders
        try:
            with _Sending(directory, lease):
                yield
        except BaseException:
            try:
                _finish(directory, part, lease)
            except Failed as error:  # it must not hide what has ended the block
                warnings.warn(str(error), Noted, stacklevel=2)
            raise
        _finish(directory, part, lease)


class _Sending(threading.Thread):
    """Sends what changes in a copy until the block ends."""

    def __init__(self, directory: Path, lease: Lease | None):
        super().__init__(daemon=True, name="eagleray-storage")
        self.directory, self.lease, self.over, self.is_failing = directory, lease, threading.Event(), False

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        """Send every few seconds."""
        while not self.over.wait(EVERY):
            try:
                if self.lease:
                    self.lease.renew()
                _pushed(self.directory)
                self.is_failing = False
            except Failed as error:
                if not self.is_failing:
                    warnings.warn(f"{error}. The work goes on here, and is sent later", Noted, stacklevel=2)
                self.is_failing = True


def forget(directory: Path) -> None:
    """Remove what was sent of a run that is removed here, too."""
    if address_of(directory) is None:
        return
    try:
        remove(directory / name for name in items_at(directory))
    except Failed as error:
        warnings.warn(f"{error}. What was sent of {address_of(directory)} stays there", Noted, stacklevel=2)
    for left in ("copy", "turn", "held"):
        _beside(directory, left).unlink(missing_ok=True)


def _finish(directory: Path, part: Part, lease: Lease | None) -> None:
    """Send the rest of a copy, and learn the tags of what was sent."""
    if lease and lease.is_lost:
        raise lease.lost
    try:
        _patiently(lambda: _pushed(directory))
        _pulled(directory, part, is_holder=True)
    except Failed as error:
        raise Failed(
            f"{error}. Nothing is lost: {directory} has what is missing there, and on this machine "
            f"`eagleray sync {address_of(directory)}` sends it",
            "infrastructure",
        ) from error


def send_unsent(root: Path) -> None:
    """Send what earlier processes of this machine could not send of the runs in a copy.

    Raises:
        ConfigError: the store does not answer, or refuses.
    """
    for record in sorted(root.rglob("record.json")) if address_of(root) is not None else ():
        if not is_sent(record.parent):
            with told():
                _pushed(record.parent)


# One at a time


def _pulled(copy: Path, part: Part, listed: dict[str, Item] | None = None, *, is_holder: bool = False) -> None:
    """Bring a copy into step, unless somebody works in it; who holds it may do so himself."""
    if copy in _held:
        is_free = is_holder
    else:
        with ExitStack() as momentary:
            is_free = _takes(copy, momentary)
    if is_free:
        with _turn(copy):
            pull(copy, part, listed=listed, is_mine=part is not everything)


def _pushed(copy: Path) -> None:
    with _turn(copy):
        if copy.exists():
            push(copy)


@contextmanager
def _turn(copy: Path) -> Iterator[None]:
    """Wait until no other thread or process of this machine fetches or sends."""
    make_folder(copy.parent)
    with _mutexes[copy], open(_beside(copy, "turn"), "a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _takes(copy: Path, stack: ExitStack) -> bool:
    """Hold a copy until the stack is closed; false: another process holds it."""
    make_folder(copy.parent)
    file = stack.enter_context(_beside(copy, "held").open("a"))
    for _ in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps by one who only looks whether it is held
            time.sleep(0.02)
        else:
            return True
    return False


def _beside(copy: Path, ending: str) -> Path:
    return copy.with_name(f".{copy.name}.{ending}")


def _patiently(act: Callable[[], None]) -> None:
    """Try again while a store fails, but not forever."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except Failed:
            if time.monotonic() > end:
                raise
            time.sleep(1)


@contextmanager
def told() -> Iterator[None]:
    """Tell of a store that fails before anything has started."""
    try:
        yield
    except Failed as error:
        raise ConfigError(str(error)) from error
