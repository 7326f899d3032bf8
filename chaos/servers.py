"""Stop, kill or hang MLflow's server while a run trains; training must go on, and every point arrive exactly once.

    python chaos/servers.py [--runs 2] [--outage 30] [--out servers.csv]

`eagleray train` sends to a server of its own on SQLite. After a random epoch the server gets SIGTERM (`stopped`),
SIGKILL (`killed`) or SIGSTOP (`hung`), and is back after `--outage` seconds; or it stays away until the run has ended
(`gone`), and `eagleray sync` sends the rest. Then each number of each row of metrics.jsonl must be in the database,
with its value, once; nothing may be there twice; a second `sync` must find nothing to send. The longest pause between
two rows must be shorter than a client waits for a server.
"""

import argparse
import math
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from commands import ended, start, stored_points, until
from observed import concluded, written

from eagleray.runs.record import Record

KINDS = {"none": 0, "stopped": signal.SIGTERM, "killed": signal.SIGKILL, "hung": signal.SIGSTOP, "gone": signal.SIGKILL}
SETTINGS = ["data.limit=512", "batch_size=64", "encoder.width=8", "precision=fp32", "device=cpu", "threads=1",
            "evaluate.linear.when=never"]  # fmt: skip
PAUSE = 15  # seconds between two rows: an epoch takes less than one, and a client waits longer for a server that hangs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="of each kind")
    parser.add_argument("--outage", type=float, default=30, help="seconds")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, help="where to write a row for each run, as CSV")
    given = parser.parse_args()
    draw, found = random.Random(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        for kind in ["none", *(kind for kind in KINDS if kind != "none" for _ in range(given.runs))]:
            place = Path(folder, str(len(found)))
            place.mkdir()
            after = draw.randrange(1, max(2, given.epochs // 3))
            found.append(disturbed(server, place, kind, after, given.outage, given.epochs))
            print(found[-1], flush=True)
            written(given.out, found)
    concluded(found, given.out, "pause")


class Server:
    """MLflow's server, with its database, in a group of processes of its own."""

    def __init__(self, place: Path):
        self.place, self.store = place, place / "mlflow.db"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{self.store}",
            "--artifacts-destination",
            str(self.place / "files"),
        ]
        own = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
        until(self.answers, self.place)

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    @contextmanager
    def away(self, kind: str) -> Iterator[None]:
        """Be stopped, killed or hung while the block runs."""
        if kind != "none":
            self.signal(KINDS[kind])
        yield
        if kind == "hung":
            self.signal(signal.SIGCONT)
        elif kind != "none":
            self.signal(signal.SIGKILL)  # it may still wait for a request that is open
            self.start()

    def signal(self, number: int) -> None:
        """Signal all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


def disturbed(server: Server, place: Path, kind: str, after: int, outage: float, epochs: int) -> dict[str, Any]:
    """Train a run while the server is away, and look for its points."""
    began = time.monotonic()
    process = start(place, "train", *SETTINGS, f"epochs={epochs}", f"tracking.uri={server.uri}")
    until(lambda: epochs_of(place) >= after or process.poll() is not None, place)
    with server.away(kind):
        if kind == "gone":
            ended(process, place)
        elif kind != "none":
            time.sleep(outage)
    ended(process, place)
    seconds = time.monotonic() - began
    synced(place)
    record = Record.open(directory_of(place))
    points, missing = sought(record, server.store)
    twice, again = stored_points(server.store)[1], synced(place)
    wrong = [f"{missing} points are missing or differ"] * (missing > 0)
    wrong += [f"{twice} points are there twice"] * (twice > 0)
    pause = longest_pause(record)
    wrong += ["training waited"] * (pause > PAUSE)
    wrong += [f"a second sync says: {again}"] * ("0 runs sent, 1 were complete" not in again)
    return {"kind": kind, "after": after, "outage": outage, "points": points, "seconds": round(seconds, 1),
            "pause": pause,            "broken": ", ".join(wrong)}  # fmt: skip


def synced(place: Path) -> str:
    """Send what is left; return what the command says."""
    before = (place / "log").stat().st_size
    ended(start(place, "sync"), place)
    return (place / "log").read_bytes()[before:].decode().strip()


def directory_of(place: Path) -> Path:
    (file,) = place.glob("runs/*/*/record.json")
    return file.parent


def epochs_of(place: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in place.glob("runs/*/*/metrics.jsonl"))


def longest_pause(record: Record) -> float:
    """Return the longest time between two rows, in seconds."""
    times = [row["time"] / 1000 for row in record.metrics()]
    return round(max(after - before for before, after in pairwise(times)), 1)


def sought(record: Record, store: Path) -> tuple[int, int]:
    """Return how many points a run has told of, and how many of them are not in a store with their values."""
    told = {(row["step"], name): value for row in record.read()[0] for name, value in row["metrics"].items()}
    question = """SELECT metrics.step, metrics.key, metrics.value FROM metrics JOIN tags USING (run_uuid)
                  WHERE tags.key = 'eagleray.key' AND tags.value = ?"""
    with sqlite3.connect(store) as connection:
        there = {(step, name): value for step, name, value in connection.execute(question, (record.key,))}
    off = [at for at, value in told.items() if not math.isclose(there.get(at, math.nan), value, rel_tol=1e-12)]
    return len(told), len(off)


if __name__ == "__main__":
    main()
