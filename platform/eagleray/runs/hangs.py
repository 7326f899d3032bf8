"""Find runs that hang: processes that neither report nor compute.

Each process that trains leaves a pulse in the directory of its run, and a watch in another process (or thread) reads
it. A run that has reported nothing for several of its epochs is named, with the stacks of all its processes in
artifacts/stacks.txt. One that does not compute either is ended, so that it starts again from its checkpoint; one that
computes may be in a long evaluation, and is left alone.
"""

import faulthandler
import json
import os
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from eagleray.contracts.errors import ConfigError, Noted
from eagleray.contracts.files import write
from eagleray.contracts.paths import address_of
from eagleray.contracts.report import Report
from eagleray.runs.record import Record
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import mirrored, records_at_hand

EVERY = 5.0  # seconds between two beats of a pulse, and between two looks at it
EPOCHS = 5  # the median epochs that a run may take for one report
LEAST = 120.0  # seconds that every run may take for one
START = 10 * LEAST  # seconds before the first report: images may have to be decoded
BUSY = 0.02  # of a core: a process that computes more is slow, and does not hang
STILL = 3  # beats without computing, after which a process may hang
ANSWER = 2.0  # seconds in which a process writes its stacks
SHOW = signal.SIGUSR2  # asks a process for its stacks

Send = Callable[["Beat", int], bool]  # a signal to the process of a pulse; false: it has ended


@dataclass(frozen=True)
class Beat:
    """What a process writes of itself. Times are in seconds since 1970."""

    rank: int
    node: str  # where it runs; empty: on the machine of its watch
    pid: int
    created: float  # when the process began, as a PID is used again
    reported: float  # when it last reported, or waited for another process to take its report
    computed: float  # when it last used a core
    is_starting: bool  # it has not reported yet


class Pulse(threading.Thread):
    """Writes the pulse of this process until the block ends.

    Args:
        directory: of the run.
        rank: of the process among the workers of the run.
        node: as `Beat.node`.
    """

    def __init__(self, directory: Path, rank: int = 0, node: str = ""):
        super().__init__(daemon=True)
        self.path, self.traces = directory / f".pulse-{rank}", directory / f".stacks-{rank}"
        self.rank, self.node, self.created = rank, node, psutil.Process().create_time()
        self.reported = self.computed = time.time()
        self.used = time.process_time()  # seconds of cores, up to the last beat
        self.is_starting, self.is_resting = True, False
        self.due, self.is_over = threading.Event(), False

    def __enter__(self) -> "Pulse":
        self._file = self.traces.open("w")
        faulthandler.register(SHOW, self._file, all_threads=True)
        self._beat()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self.due.set()
        self.join()
        faulthandler.unregister(SHOW)
        self._file.close()
        for path in (self.path, self.traces):
            path.unlink(missing_ok=True)

    def run(self) -> None:
        """Write a beat every few seconds, and where one is due."""
        while not self.is_over:
            self.due.wait(EVERY)
            self.due.clear()
            if not self.is_over and not self._beat():
                return

    def _beat(self) -> bool:
        """Write a beat; return whether it could be written."""
        before, self.used = self.used, time.process_time()
        if self.used - before > BUSY * EVERY:
            self.computed = time.time()
        if self.is_resting:
            self.reported = time.time()
        beat = Beat(self.rank, self.node, os.getpid(), self.created, self.reported, self.computed, self.is_starting)
        unfinished = self.path.with_name(f".new{self.path.name}")
        try:
            unfinished.write_text(json.dumps(asdict(beat)))
            unfinished.replace(self.path)
        except OSError:  # the run cannot write there either, and says so
            return False
        return True


def pulsing(reports: Iterator[Report], directory: Path, rank: int = 0, node: str = "") -> Generator[Report]:
    """Pass on the reports of this process, with a pulse beside them."""
    with Pulse(directory, rank, node) as pulse:
        for report in reports:
            is_first, pulse.is_starting, pulse.is_resting = pulse.is_starting, False, True
            if is_first:
                pulse.due.set()  # from now on it may be silent for minutes only
            yield report
            pulse.is_resting, pulse.reported = False, time.time()


class HangWatch(threading.Thread):
    """Watches the pulses of a run, or of the trials of a sweep, until the block ends.

    Args:
        directory: of the run or sweep.
        send: sends a signal to a process, wherever it runs.
        may_end: end what hangs; false: only name it.
    """

    def __init__(self, directory: Path, send: Send, *, may_end: bool = True):
        super().__init__(daemon=True)
        self.directory, self.send, self.may_end = directory, send, may_end
        self.told: set[tuple[Path, float, bool]] = set()  # a run, its last report, whether it hangs
        self.over = threading.Event()

    def __enter__(self) -> "HangWatch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        """Look every few seconds."""
        while not self.over.wait(EVERY):
            with suppress(ConfigError):  # a store that does not answer; those who train say so
                records_at_hand(self.directory)
            for place in {path.parent for path in (*self._pulses(""), *self._pulses("trials/*/"))}:
                self.look(place, time.time())

    def _pulses(self, below: str) -> Iterator[Path]:
        return self.directory.glob(f"{below}.pulse-*")

    def look(self, place: Path, now: float) -> None:
        """Name and end a run that hangs."""
        beats = beats_in(place)
        if not beats or (place / "status.json").exists():  # what is left of a killed process
            return
        last = min(beat.reported for beat in beats)
        if now - last < LEAST or (place, last, True) in self.told:  # most looks end here, without reading its rows
            return
        epoch = median_epoch(place)
        limit = START if epoch is None or any(beat.is_starting for beat in beats) else max(LEAST, EPOCHS * epoch)
        if now - last < limit:
            return
        idle = [beat for beat in beats if now - beat.computed > limit]
        is_told = (place, last, False) in self.told
        if not idle and (is_told or any(now - beat.computed > STILL * EVERY for beat in beats)):
            return  # one has stopped to compute since its last report: later it shows whether it hangs
        alive = [beat for beat in beats if self.send(beat, SHOW)]
        idle = [beat for beat in idle if beat in alive]
        if not alive or (is_told and not idle):  # of ended processes Ray knows, and starts the run again
            return
        self.told.add((place, last, bool(idle)))
        is_ended = self.may_end and bool(idle)
        silent = f"{place} has reported nothing for {_minutes(now - last)}"
        silent += f", where an epoch takes {_minutes(epoch)}" if epoch else ""
        busy = "it does not compute" if idle else "it computes"
        remedy = "; it is ended and starts again from its last checkpoint" if is_ended else ""
        file = _keep_stacks(place, alive)
        warnings.warn(f"{silent}, and {busy}{remedy}. Its stacks are in {file}", Noted, stacklevel=2)
        for beat in idle if is_ended else ():
            self.send(beat, signal.SIGKILL)


def beats_in(place: Path) -> list[Beat]:
    """Return the last beats of a run's processes, in the order of their ranks."""
    return sorted((beat for path in place.glob(".pulse-*") if (beat := _read(path))), key=lambda beat: beat.rank)


def forget_pulses(place: Path, workers: int) -> None:
    """Remove what is left of the processes of a run that has fewer workers now."""
    for beat in beats_in(place):
        if beat.rank >= workers:
            (place / f".pulse-{beat.rank}").unlink(missing_ok=True)


def signalled(beat: Beat, number: int) -> bool:
    """Send a signal to a process of this machine; return whether it is there."""
    try:
        if psutil.Process(beat.pid).create_time() != beat.created:
            return False  # another process has its number now
        os.kill(beat.pid, number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True


def _keep_stacks(place: Path, beats: list[Beat]) -> Path:
    """Keep the stacks that processes were asked for."""
    time.sleep(ANSWER)
    if address_of(place) is not None:  # their machines send them
        time.sleep(2 * EVERY)
        with suppress(ConfigError):
            records_at_hand(place)
    texts = []
    for beat in beats:
        stacks = place / f".stacks-{beat.rank}"
        text = stacks.read_text() if stacks.exists() else ""
        where = f" on node {beat.node}" if beat.node else ""
        texts.append(f"rank {beat.rank}, process {beat.pid}{where}:\n{text or 'it does not answer: it is stopped'}\n")
    file = place / "artifacts/stacks.txt"
    with mirrored(place, of_record):
        write(file, "\n".join(texts))
    return file


def median_epoch(place: Path) -> float | None:
    """Return the seconds that an epoch of a run takes, the median; None: it has not told two of them."""
    try:
        rows = [row for row in Record.open(place).metrics() if row["epoch"]]
    except ConfigError:
        return None
    pairs = [(before, after) for before, after in pairwise(rows) if after["epoch"] > before["epoch"]]
    spent = [(b["time"] - a["time"]) / 1000 / (b["epoch"] - a["epoch"]) for a, b in pairs]
    return statistics.median(spent) if spent else None


def _read(path: Path) -> Beat | None:
    try:
        return Beat(**json.loads(path.read_text()))
    except FileNotFoundError:  # it has just ended
        return None


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
