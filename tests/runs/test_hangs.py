"""Runs that hang are named with their stacks, and ended if they do not compute."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil
import pytest

from eagleray.contracts.errors import Noted
from eagleray.contracts.report import Progress, Report
from eagleray.runs import hangs
from eagleray.runs.hangs import LEAST, START, Beat, HangWatch, Pulse, median_epoch, pulsing, signalled
from eagleray.runs.record import Record

CHILD = """
import sys, time
from pathlib import Path
from eagleray.runs import hangs

hangs.EVERY = 0.05
def wait_for_a_batch():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if sys.argv[2] == "waits":
            time.sleep(0.1)

with hangs.Pulse(Path(sys.argv[1])) as pulse:
    pulse.is_starting = False
    wait_for_a_batch()
"""


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record.create(tmp_path / "r", name="r", experiment="e", params={}, run={"epochs": 9})


@pytest.fixture
def started(record: Record) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children that leave a pulse in the run's directory, ended afterwards."""
    children: list[subprocess.Popen[bytes]] = []
    yield children
    for child in children:
        child.kill()
        child.wait()


def start(children: list[subprocess.Popen[bytes]], record: Record, what: str) -> Beat:
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children.append(subprocess.Popen([sys.executable, "-c", CHILD, str(record.directory), what], env=own))
    end = time.monotonic() + 60
    while (beat := read(record)) is None or beat.is_starting:
        assert time.monotonic() < end
        time.sleep(0.05)
    return beat


def read(record: Record) -> Beat | None:
    path = record.directory / ".pulse-0"
    return Beat(**json.loads(path.read_text())) if path.exists() else None


def with_epochs(record: Record, seconds: float, count: int = 4) -> Record:
    for epoch in range(1, count + 1):
        with mock.patch("eagleray.runs.record._now", return_value=int(1000 * seconds * epoch)):
            record.append(epoch, {"loss": 1.0}, epoch)
    return record


def test_the_median_epoch_is_that_of_the_rows(record: Record):
    assert median_epoch(record.directory) is None
    assert median_epoch(with_epochs(record, 7.5).directory) == pytest.approx(7.5, abs=0.01)


def a_beat(now: float, **changes: float) -> Beat:
    mine = psutil.Process()
    return replace(Beat(0, "", mine.pid, mine.create_time(), now, now, is_starting=False), **changes)


@pytest.mark.parametrize(
    ("epoch", "silent", "is_starting", "hangs_now"),
    [
        (1.0, LEAST - 1, False, False),  # short epochs: the least patience
        (1.0, LEAST + 1, False, True),
        (100.0, 499, False, False),  # long ones: five of them
        (100.0, 501, False, True),
        (1.0, START - 1, True, False),  # it may be decoding its images
        (1.0, START + 1, True, True),
        (None, START - 1, False, False),  # no epoch is known yet
    ],
)
def test_a_run_hangs_after_several_epochs_without_a_report(
    record: Record, monkeypatch: pytest.MonkeyPatch, epoch: float | None, silent: float, is_starting: bool,
    hangs_now: bool,
):  # fmt: skip
    if epoch:
        with_epochs(record, epoch)
    monkeypatch.setattr(hangs, "ANSWER", 0)
    now, sent = time.time(), list[int]()
    beat = a_beat(now - silent, is_starting=is_starting)
    (record.directory / ".pulse-0").write_text(json.dumps(vars(beat)))
    watch = HangWatch(record.directory, lambda beat, number: bool(sent.append(number)) or True)
    if not hangs_now:
        watch.look(record.directory, now)
        assert not sent
        return
    with pytest.warns(Noted, match="it does not compute; it is ended and starts again from its last checkpoint"):
        watch.look(record.directory, now)
    assert sent == [hangs.SHOW, signal.SIGKILL]
    watch.look(record.directory, now + 1)  # told once
    assert sent == [hangs.SHOW, signal.SIGKILL]


def test_a_process_that_stops_to_compute_after_its_report_is_ended_and_not_taken_for_a_busy_one(
    record: Record, monkeypatch: pytest.MonkeyPatch
):
    with_epochs(record, 1.0)
    monkeypatch.setattr(hangs, "ANSWER", 0)
    now, sent = time.time(), list[int]()
    beat = a_beat(now, computed=now + 60)
    (record.directory / ".pulse-0").write_text(json.dumps(vars(beat)))
    watch = HangWatch(record.directory, lambda beat, number: bool(sent.append(number)) or True)
    watch.look(record.directory, now + LEAST + 1)  # it has not computed for a minute, and may still
    assert not sent
    with pytest.warns(Noted, match="it does not compute; it is ended"):
        watch.look(record.directory, now + 60 + LEAST + 1)
    assert sent == [hangs.SHOW, signal.SIGKILL]


def test_a_process_that_computed_and_then_hangs_is_told_twice(record: Record, monkeypatch: pytest.MonkeyPatch):
    with_epochs(record, 1.0)
    monkeypatch.setattr(hangs, "ANSWER", 0)
    now, sent = time.time(), list[int]()
    beat = a_beat(now, computed=now + LEAST)
    (record.directory / ".pulse-0").write_text(json.dumps(vars(beat)))
    watch = HangWatch(record.directory, lambda beat, number: bool(sent.append(number)) or True)
    with pytest.warns(Noted, match="it computes. Its stacks"):
        watch.look(record.directory, now + LEAST + 1)
    watch.look(record.directory, now + LEAST + 5)
    assert sent == [hangs.SHOW], "told once"
    with pytest.warns(Noted, match="it does not compute; it is ended"):
        watch.look(record.directory, now + 2 * LEAST + 1)
    assert sent == [hangs.SHOW, hangs.SHOW, signal.SIGKILL]


def test_what_an_ended_process_left_is_no_hang(record: Record):
    now = time.time()
    gone = a_beat(now - 10_000, created=1.0)  # its number belongs to another process now
    (record.directory / ".pulse-0").write_text(json.dumps(vars(gone)))
    HangWatch(record.directory, signalled).look(record.directory, now)
    assert not (record.artifacts / "stacks.txt").exists()


@pytest.mark.slow
def test_a_process_that_waits_is_ended_and_its_stacks_name_the_line(
    record: Record, started: list[subprocess.Popen[bytes]]
):
    with_epochs(record, 1.0)
    beat = start(started, record, "waits")
    with pytest.warns(
        Noted, match=r"r has reported nothing for 3 minutes, where an epoch takes 1 seconds, and it does"
    ):
        HangWatch(record.directory, signalled).look(record.directory, beat.reported + 200)
    assert "in wait_for_a_batch" in (record.artifacts / "stacks.txt").read_text()
    assert started[0].wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_process_that_is_stopped_is_ended(record: Record, started: list[subprocess.Popen[bytes]]):
    with_epochs(record, 1.0)
    beat = start(started, record, "waits")
    started[0].send_signal(signal.SIGSTOP)
    with pytest.warns(Noted, match="it does not compute; it is ended"):
        HangWatch(record.directory, signalled).look(record.directory, beat.reported + 200)
    assert "it does not answer: it is stopped" in (record.artifacts / "stacks.txt").read_text()
    assert started[0].wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_process_that_computes_is_named_and_left_alone(
    record: Record, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
):
    with_epochs(record, 1.0)
    beat = start(started, record, "computes")
    time.sleep(0.5)
    later = read(record)
    assert later
    assert later.computed > beat.reported == later.reported
    monkeypatch.setattr(hangs, "_read", lambda path: replace(later, computed=beat.reported + 199))
    with pytest.warns(Noted, match=r"and it computes\. Its stacks are in"):
        HangWatch(record.directory, signalled).look(record.directory, beat.reported + 200)
    assert started[0].poll() is None


def test_a_report_that_is_being_taken_is_no_silence(record: Record, monkeypatch: pytest.MonkeyPatch):
    """A driver may let a trial wait for other ones."""
    monkeypatch.setattr(hangs, "EVERY", 0.02)
    reports = pulsing(iter([Report(Progress(1, 2, 0, 1), {}, 1.0)] * 2), record.directory)
    next(reports)
    first = read(record)
    time.sleep(0.2)
    second = read(record)
    assert first is not None
    assert second is not None
    assert second.reported > first.reported
    reports.close()
    assert not [*record.directory.glob(".pulse*"), *record.directory.glob(".stacks*")]


def test_a_pulse_ends_where_its_directory_is_gone(record: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hangs, "EVERY", 0.01)
    with Pulse(record.directory) as pulse:
        record.directory.rename(record.directory.with_name("away"))
        pulse.join(5)
        assert not pulse.is_alive()


def test_the_first_report_is_told_at_once(record: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hangs, "EVERY", 600.0)
    reports = pulsing(iter([Report(Progress(1, 2, 1, 2), {}, 0.0)] * 2), record.directory)
    next(reports)
    end = time.monotonic() + 60
    while (beat := read(record)) is None or beat.is_starting:
        assert time.monotonic() < end
        time.sleep(0.01)
    reports.close()
    assert read(record) is None
