"""Commands of Eagleray in processes of their own, and what is in their working directories when they end."""

import csv
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from observed import below, digest, repeated, rows

from eagleray.runs.record import Record

PATIENCE = 600  # seconds for anything to happen
GCS, WORKER = "gcs_server", ("default_worker.py", "ray::")  # command lines of Ray's first process, and of its workers


def start(place: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Start a command as a shell does: in a session of its own, in a working directory that has its log and store."""
    own = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "eagleray", *words], cwd=place, env=own, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def until(condition: Callable[[], object], place: Path, every: float = 0.1) -> float:
    """Wait until something is true; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, (place / "log").read_text()[-3000:]
        time.sleep(every)
    return time.monotonic() - began


def ended(process: "subprocess.Popen[bytes]", place: Path) -> None:
    """Wait for a command that must succeed."""
    assert process.wait(PATIENCE) == 0, (place / "log").read_text()[-3000:]


def next_row(process: "subprocess.Popen[bytes]", place: Path) -> float:
    """Wait until a command has written one more row, or has ended; return the seconds that it took."""
    before = count(place)
    return until(lambda: count(place) > before or process.poll() is not None, place)


def first_row(process: "subprocess.Popen[bytes]", place: Path) -> dict[str, float]:
    """Wait until a command that has just been started has written a row.

    Return the seconds until it started a Ray (`begin`; 0 if it used one that runs), until that had its first worker
    (`ray`), until that wrote a row (`train`), and all of them; nothing if the command ended before.
    """
    began, before, seen = psutil.Process(process.pid).create_time(), count(place), dict[str, float]()

    def is_written() -> bool:
        for name, words in (("gcs", (GCS,)), ("worker", WORKER)):
            new = [each.create_time() for each in below(*words) if each.create_time() > began]
            if name not in seen and new:
                seen[name] = min(new)
        return count(place) > before or process.poll() is not None

    until(is_written, place, 0.2)
    if process.poll() is not None or "worker" not in seen:
        return {}
    now, gcs = time.time(), seen.get("gcs", began)
    times = {"begin": gcs - began, "ray": seen["worker"] - gcs, "train": now - seen["worker"], "seconds": now - began}
    return {name: round(value, 2) for name, value in times.items()}


def wait_for_the_end(session: int, place: Path) -> None:
    """Wait until a session has no process but the two of Ray that notice only after a minute that they are alone."""
    until(lambda: not [each for each in of_session(session) if "Agent" not in each], place, 0.5)


def of_session(session: int) -> list[str]:
    """Return the command lines of the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


# --- what a sweep leaves ---------------------------------------------------------------------------------------


def sweep_directory(place: Path) -> Path:
    (directory,) = (path.parent for path in place.glob("runs/*/*/record.json"))
    return directory


def trials(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob("runs/*/*/trials/*/record.json"))


def count(place: Path) -> int:
    """Return how many rows all trials have written."""
    return sum(path.read_bytes().count(b"\n") for path in place.glob("runs/*/*/trials/*/metrics.jsonl"))


def finished_trials(place: Path) -> dict[str, bytes]:
    """Return what the finished trials have recorded, byte by byte.

    The test numbers of the winner, a row that the end of the sweep adds, are left out.
    """
    done = [each for each in trials(place) if Record.open(each).state == "finished"]
    return {each.name: b"".join(_trained(each / "metrics.jsonl")) for each in done}


def _trained(file: Path) -> list[bytes]:
    return [line for line in file.read_bytes().splitlines(keepends=True) if b'"test_' not in line]


def outcome(place: Path) -> dict[str, Any]:
    """Return what equal sweeps have in common."""
    (table,) = place.glob("runs/*/*/artifacts/leaderboard.csv")
    with table.open(newline="") as file:
        lines = [
            {name: cell for name, cell in row.items() if "images_per_second" not in name}
            for row in csv.DictReader(file)
        ]
    runs = [each for each in trials(place) if Record.open(each).kind == "trial"]
    points, twice = stored_points(place / "mlflow.db")
    return {
        "table": lines,
        "numbers": {each.name: rows(each) for each in runs},
        "weights": {each.name: digest(each) for each in runs},
        "rows twice": sum(map(repeated, runs)),
        "points": points,
        "points twice": twice,
    }


def stored_points(store: Path) -> tuple[int, int]:
    """Return the points (run, metric, step) in a store of MLflow, and how many are there more than once.

    What was used of the machine is no result, and differs between equal runs.
    """
    one = "SELECT run_uuid, key, step, count(*) AS many FROM metrics WHERE key NOT LIKE 'system/%' GROUP BY 1, 2, 3"
    with sqlite3.connect(store) as connection:
        return connection.execute(f"SELECT count(*), coalesce(sum(many > 1), 0) FROM ({one})").fetchone()
