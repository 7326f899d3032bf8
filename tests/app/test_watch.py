"""A sweep or run watched from another shell: only its directory is read, and a terminal of any size holds the view."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.config import load_run
from eagleray.runs.browse import epochs_in_all
from eagleray.runs.record import Record

SWEEP = {"name": "s", "question": "Which of these views and temperatures suit the images that we have, and why?",
         "run": {"epochs": 5}, "vary": {"augment.flip": [0, 0.5], "method.temperature": [0.1, 0.2]}, "search": "grid",
         "seeds": 10}  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Record:
    return Record.create(tmp_path / "runs/s/1", name="s", experiment="s", params={}, run=SWEEP, tags={"kind": "sweep"})


def trial(sweep: Record, number: int, epochs: int = 0) -> Record:
    params = {"augment.flip": 0.5, "method.temperature": 0.1, "seed": number, "batch_size": 256}
    name, tags = f"{number:03d}", {"kind": "trial", "point": "0"}
    record = Record.create(sweep.directory / "trials" / name, name=name, experiment="s", params=params,
                           run={"epochs": 5}, parent=sweep, tags=tags)  # fmt: skip
    for epoch in range(1, epochs + 1):
        record.append(epoch, {"knn": epoch / 10}, epoch)
    return record


def floor(sweep: Record) -> None:
    tags = {"kind": "floor", "floor": "pixels", "point": "raw pixels digits"}
    record = Record.create(sweep.directory / "trials/raw", name="raw", experiment="s", params={}, run={}, parent=sweep,
                           tags=tags)  # fmt: skip
    record.finish("finished", summary={"knn": 0.9})


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


class Terminal:
    """`eagleray watch` in a pseudo terminal."""

    def __init__(self, where: Path, *arguments: str, columns: int = 80, rows: int = 24):
        self.master, slave = pty.openpty()
        self.columns, self.text = columns, ""
        self.resize(columns, rows)
        command = [sys.executable, "-m", "eagleray", "watch", *arguments]
        self.process = subprocess.Popen(
            command, cwd=where, stdin=slave, stdout=slave, stderr=slave, env=self._environment()
        )
        os.close(slave)

    @staticmethod
    def _environment() -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        # Ctrl-C can come between Python's opening of a folder and its `with`; users do not see this warning
        warnings = os.environ["PYTHONWARNINGS"] + ",ignore::ResourceWarning"
        return own | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": warnings}

    def resize(self, columns: int, rows: int) -> None:
        self.columns = columns
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, words: str, seconds: float = 30) -> float:
        """Read until these words are shown; return the seconds that it took."""
        began, start = time.monotonic(), len(self.text)
        while words not in self.text[start:]:
            assert time.monotonic() - began < seconds, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self._read()
        return time.monotonic() - began

    def ended(self) -> int:
        while self._read():
            pass
        return self.process.wait(20)

    def _read(self) -> bool:
        try:
            part = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return False
        self.text += part.decode(errors="ignore")
        return bool(part)


def lines(text: str) -> list[str]:
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.master)


@pytest.mark.slow
def test_a_view_in_a_terminal_fits_it_survives_a_resize_and_ends_with_the_sweep(
    sweep: Record, tmp_path: Path, terminals: list[Terminal]
):
    for number in range(30):
        trial(sweep, number, epochs=3 if number < 4 else 5).finish("finished", summary={"knn": 0.5})
    running = trial(sweep, 30, epochs=1)
    floor(sweep)
    before = files(tmp_path)
    shown = Terminal(tmp_path, "s")
    terminals.append(shown)
    shown.until("raw pixels digits 0.900")
    shown.until("30 finished, 1 running, 9 waiting")
    assert max(map(len, lines(shown.text))) <= 80
    assert files(tmp_path) == before  # a watched sweep has nothing to do with who watches it

    start = len(shown.text)
    shown.resize(50, 16)
    shown.until("\x1b[2J", 5)
    running.append(2, {"knn": 0.777}, 2)
    assert shown.until("0.777") <= 5
    smaller = shown.text[start:].partition("\x1b[2J")[2]
    assert max(map(len, lines(smaller))) <= 50

    running.finish("finished", summary={"knn": 0.777})
    sweep.tag({"finding": "flips matter, " * 20}).finish("finished")
    assert shown.ended() == 0
    assert "runs/s/1: finished" in shown.text
    assert max(map(len, lines(shown.text[start:].partition("\x1b[2J")[2]))) <= 50
    assert "31 finished, 9 waiting" in shown.text
    assert "flips matter" in shown.text


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_alone(sweep: Record, tmp_path: Path, terminals: list[Terminal]):
    trial(sweep, 0, epochs=1)
    shown = Terminal(tmp_path, str(sweep.directory))
    terminals.append(shown)
    shown.until("1 running")
    shown.process.send_signal(signal.SIGINT)
    assert shown.ended() == 130
    assert "no longer watched" in shown.text
    assert "Traceback" not in shown.text
    assert sweep.state == "running"
    assert shown.text.count("\x1b[?25l") == shown.text.count("\x1b[?25h") == 1  # the cursor is back


def watched(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eagleray", "watch", *arguments]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=60, env=own)


@pytest.mark.slow
def test_in_a_log_a_finished_sweep_has_a_line_an_event(sweep: Record, tmp_path: Path):
    trial(sweep, 0, epochs=5).finish("finished", summary={"knn": 0.5})
    trial(sweep, 1, epochs=2).finish("failed", "out of memory")
    floor(sweep)
    sweep.tag({"finding": "flips matter."}).finish("finished")
    done = watched(tmp_path, "s")
    assert done.stdout.splitlines() == [
        f"s: {SWEEP['question']} (40 trials)",
        "[1/40] 000 augment.flip=0.5 method.temperature=0.1 seed=0: finished after epoch 5, knn 0.500",
        "[2/40] 001 augment.flip=0.5 method.temperature=0.1 seed=1: failed after epoch 2, knn 0.200",
        "floor raw pixels digits: knn 0.900",
        "runs/s/1: finished",
        "flips matter.",
    ]


@pytest.mark.slow
def test_plain_has_no_control_characters_in_a_terminal_either(sweep: Record, tmp_path: Path, terminals: list[Terminal]):
    trial(sweep, 0, epochs=5).finish("finished", summary={"knn": 0.5})
    sweep.finish("finished")
    shown = Terminal(tmp_path, "s", "--plain")
    terminals.append(shown)
    assert shown.ended() == 0
    assert "finished after epoch 5, knn 0.500" in shown.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", shown.text)


@pytest.mark.slow
def test_a_run_is_watched_epoch_by_epoch_and_one_whose_process_is_gone_says_so(tmp_path: Path):
    run = load_run(None, ["epochs=4"]).file()
    record = Record.create(tmp_path / "runs/lab/2", name="2", experiment="lab", params={}, run=run)
    Record.create(tmp_path / "runs/lab/3", name="3", experiment="lab", params={}, run=run).finish("finished")
    for epoch in (1, 2):
        record.append(epoch * 7, {"loss": 1.0, "knn": 0.5, "images_per_second": 10.0}, epoch)
    (record.directory / "lock").touch()  # which no process holds
    out = watched(tmp_path, "runs/lab/2").stdout.splitlines()
    assert out[0] == "2  epoch 1/4  loss 1.000  knn 0.500  10 images/s"
    assert out[1].startswith("2  epoch 2/4  loss 1.000  knn 0.500  10 images/s")
    assert out[2] == "runs/lab/2: its process is gone; --resume continues it"
    assert watched(tmp_path, "lab").stdout.splitlines() == ["runs/lab/3: finished", ""]  # the newest of an experiment


@pytest.mark.slow
def test_the_epochs_of_a_run_of_steps_are_known_once_its_images_are(tmp_path: Path):
    run = load_run(None, ["steps=24", "batch_size=32"]).file()
    record = Record.create(tmp_path / "runs/lab/2", name="2", experiment="lab", params={}, run=run)
    assert epochs_in_all(record.directory, run) is None
    record.keep_data({"images": {"train": 330}, "digest": "x"})
    assert epochs_in_all(record.directory, run) == 3
    for step, epoch in ((10, 1), (20, 2), (24, 3)):
        record.append(step, {"loss": 1.0, "knn": 0.5, "images_per_second": 10.0}, epoch)
    (record.directory / "lock").touch()  # which no process holds
    out = watched(tmp_path, "runs/lab/2").stdout.splitlines()
    assert out[0] == "2  epoch 1/3  loss 1.000  knn 0.500  10 images/s"
    assert out[2].startswith("2  epoch 3/3  loss 1.000")


@pytest.mark.slow
def test_a_name_that_is_nowhere_is_a_mistake(tmp_path: Path):
    done = watched(tmp_path, "colours")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "there is no run or sweep colours" in done.stderr
