"""Show a run or a sweep that another process trains.

Only its directory is read: no server is asked, and nothing is written. Imports no torch.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from eagleray.app.directories import folder_of
from eagleray.app.live import SweepDisplay
from eagleray.app.terminal import followed
from eagleray.config import Sweep, validated
from eagleray.config.search_points import trial_count
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import address_of
from eagleray.contracts.report import Progress, Report
from eagleray.runs.browse import epochs_in_all
from eagleray.runs.record import PLACES, Record, sound
from eagleray.storage.mirror import records_at_hand, told
from eagleray.storage.store import items_at

POLL = 1.0  # seconds between two looks at the directories


def find(name: str, runs: Path) -> Record:
    """Find what a person means by a name.

    Args:
        name: a directory of a run, a sweep or an experiment, or the name of one in `runs`; the newest of an experiment.
        runs: the folder of all runs.

    Raises:
        ConfigError: there is no record.
    """
    for place in (records_at_hand(name), folder_of(str(runs), name)):
        if not os.path.isdir(place):
            continue
        if (place / "record.json").exists():
            return Record.open(place)
        if records := sound(path.parent for path in place.glob("*/record.json")):
            return max(records, key=lambda record: record.created)
    raise ConfigError(f"there is no run or sweep {name}: name its directory, or a folder in {runs}/")


def follow(record: Record, console: Console) -> Record:
    """Show a run or sweep until it ends.

    Returns:
        The record as it is at the end. Its state is `running` if the process that trained is gone.
    """
    if record.kind == "sweep":
        _watch_sweep(record, console)
    else:
        for _ in followed(_reports(record), record.name, console):
            pass
    return Record.open(record.directory)


def _watch_sweep(record: Record, console: Console) -> None:
    sweep = validated(Sweep, record.file())
    title = f"{sweep.name}: {sweep.question}" if sweep.question else sweep.name
    reader = _SweepReader(record, [*sweep.vary, "seed"])
    display = SweepDisplay(title, sweep.metric, trial_count(sweep), console, sweep.mode)
    display.began -= (record.status["time"] or time.time() * 1000) / 1000 - record.created / 1000
    with display:
        for _ in _looks(record):
            reader.show(display)
    if console.is_terminal:
        console.print(display.table())


def _looks(record: Record) -> Iterator[None]:
    """Yield once a second until the end, and once after it."""
    while not (records_at_hand(record.directory) / "status.json").exists() and _has_process(record):
        yield
        time.sleep(POLL)
    yield


def _has_process(record: Record) -> bool:
    """Return whether a process holds the lock of a directory.

    Without a lock file nobody knows, so it is assumed. At an address it is the object `lock`.
    """
    if address_of(record.directory) is not None:
        with told():
            return bool(items_at(record.directory / "lock"))
    try:
        with open(record.directory / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return True
    return False


def _reports(record: Record) -> Iterator[Report]:
    """Yield the epochs of a run as the loop reported them."""
    file, seen = record.file(), 0.0
    for _ in _looks(record):
        for row in record.metrics():
            if row["epoch"] is not None and row["epoch"] > seen:
                seen = row["epoch"]
                epochs = epochs_in_all(record.directory, file) or int(seen)
                steps = file.get("steps") or round(row["step"] / seen * epochs)
                progress = Progress(row["step"], steps, int(seen), epochs)
                metrics = {name: value for name, value in row.items() if name not in PLACES}
                yield Report(progress, metrics, metrics.pop("images_per_second", 0.0), epoch_ended=True)


class _SweepReader:
    """Reads from the directories of a sweep what is new."""

    def __init__(self, record: Record, keys: Sequence[str]):
        self.record, self.keys = record, keys
        self.children: dict[Path, _Child] = {}

    def show(self, display: SweepDisplay) -> None:
        """Show what has changed since the last call."""
        for place in sorted(self.record.directory.glob("trials/*/record.json")):
            if place not in self.children:
                self.children[place] = _Child(Record.open(place.parent))
        changed = [child for child in self.children.values() if child.has_changed()]
        for child in changed:
            if child.record.kind == "trial":
                child.show(display, self.keys)
        for point in dict.fromkeys(child.floor for child in changed if child.floor):
            floors = [child.record for child in self.children.values() if child.floor == point]
            display.floor(point, [floor.summary for floor in floors])


class _Child:
    """A trial or a floor, read as far as it was written."""

    def __init__(self, record: Record):
        self.record = record
        self.seen: Any = None  # of its files at the last look
        self.end, self.epoch = 0, 0  # of metrics.jsonl: bytes read, and the last epoch
        self.metrics: dict[str, float] = {}

    @cached_property
    def file(self) -> dict[str, Any]:
        return self.record.file()

    @property
    def floor(self) -> str | None:
        """The name of a measured floor; None for anything else."""
        is_measured = self.record.kind == "floor" and self.record.state == "finished"
        return self.record.tags["point"] if is_measured else None

    def has_changed(self) -> bool:
        before, self.seen = (
            self.seen,
            [_stamp(self.record.directory / name) for name in ("metrics.jsonl", "status.json")],
        )
        return self.seen != before

    def show(self, display: SweepDisplay, keys: Sequence[str]) -> None:
        rows, self.end = self.record.read(self.end)
        for row in rows:
            self.epoch = int(row["epoch"] or self.epoch)
            self.metrics |= row["metrics"]
        params = {key: self.record.params[key] for key in keys if key in self.record.params}
        epochs = epochs_in_all(self.record.directory, self.file)
        display.trial(self.record.name, params, self.record.state, self.epoch, epochs, self.metrics)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_size, facts.st_mtime_ns
