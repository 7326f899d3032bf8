"""Kill the driver of a sweep at random moments and resume it; the sweep must end as if nothing had happened.

    python chaos/drivers.py [--sweeps 3] [--kills 4] [--out drivers.csv]

Each sweep has three temperatures, two seeds and two floors, and sends its numbers to MLflow. `eagleray sweep` gets
SIGKILL some seconds after its first new row; half of the time `--resume` follows at once, else after all of its Ray has
gone. Table, numbers, weights and MLflow's points must be those of the undisturbed sweep, no finished trial may be
written to again; the time from `--resume` to the first new row is printed.
"""

import argparse
import csv
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from observed import digest, percentiles, repeated, rows, written

from eagleray.runs.record import Record

FILE = """\
name: chaos
run:
  data: {limit: 512}
  batch_size: 64
  epochs: 6
  encoder: {width: 8}
  precision: fp32
  device: cpu
  threads: 1
  evaluate: {linear: {when: never}}
vary: {method.temperature: [0.1, 0.2, 0.5]}
search: grid
seeds: 2
floor: [random, pixels]
keep: all
"""
PATIENCE = 600  # seconds for a sweep to write a row, or to end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4, help="in each sweep")
    parser.add_argument("--out", type=Path, help="where to write a row for each kill, as CSV")
    given = parser.parse_args()
    found, bad = list[dict[str, Any]](), 0
    with tempfile.TemporaryDirectory() as folder:
        whole = outcome(finished(start(Path(folder, "undisturbed"))))
        for number in range(given.sweeps):
            place, draw = Path(folder, str(number)), random.Random(number)
            process = start(place)
            for kill in range(given.kills):
                seconds = wait_for_a_row(process, place)
                if kill:
                    found[-1]["seconds"] = round(seconds, 1)
                time.sleep(draw.uniform(0, 4))
                if process.poll() is not None:
                    break
                ended, at_once = finished_trials(place), draw.random() < 0.5
                session = os.getsid(process.pid)
                process.kill()
                process.wait()
                if not at_once:
                    wait_for_the_end(session)
                found.append({"sweep": number, "at_once": at_once, "finished": len(ended), "seconds": ""})
                process = start(place, "--resume")
                touched = sum(finished_trials(place).get(name) != stamp for name, stamp in ended.items())
                found[-1]["touched"] = touched
            now = outcome(finished(process))
            differing = [name for name in whole if whole[name] != now[name]]
            bad += bool(differing) + now["points twice"] + sum(row["touched"] for row in found)
            print(f"sweep {number}: {f'differs in {differing}' if differing else 'equal'}", flush=True)
    print(f"{len(found)} kills in {given.sweeps} sweeps; --resume to the first new row: ", end="")
    print(percentiles([row["seconds"] for row in found if row["seconds"]]))
    written(given.out, found)
    raise SystemExit(bad > 0)


def start(place: Path, *more: str) -> "subprocess.Popen[bytes]":
    place.mkdir(exist_ok=True)
    (place / "sweep.yaml").write_text(FILE)
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "eagleray", "sweep", "sweep.yaml", *more], cwd=place, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def finished(process: "subprocess.Popen[bytes]") -> Path:
    place = Path(os.readlink(f"/proc/{process.pid}/cwd"))
    code = process.wait(PATIENCE)
    assert code == 0, (place / "log").read_text()
    return place


def wait_for_a_row(process: "subprocess.Popen[bytes]", place: Path) -> float:
    """Wait until a trial has one more row; return the seconds that it took."""
    began, before = time.monotonic(), count(place)
    while count(place) <= before and process.poll() is None:
        assert time.monotonic() - began < PATIENCE, (place / "log").read_text()
        time.sleep(0.1)
    return time.monotonic() - began


def wait_for_the_end(session: int) -> None:
    """Wait until no process of a session is left."""
    while any(_session(process) == session for process in psutil.process_iter()):
        time.sleep(0.5)


def _session(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def trials(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob("runs/*/*/trials/*/record.json"))


def count(place: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in place.glob("runs/*/*/trials/*/metrics.jsonl"))


def finished_trials(place: Path) -> dict[str, int]:
    """Return the finished trials, and when their rows were last written."""
    done = [each for each in trials(place) if Record.open(each).state == "finished"]
    return {each.name: (each / "metrics.jsonl").stat().st_mtime_ns for each in done}


def outcome(place: Path) -> dict[str, Any]:
    """Return what equal sweeps have in common."""
    (table,) = place.glob("runs/*/*/artifacts/leaderboard.csv")
    with table.open(newline="") as file:
        lines = [
            {name: cell for name, cell in row.items() if "images_per_second" not in name}
            for row in csv.DictReader(file)
        ]
    runs = [each for each in trials(place) if Record.open(each).kind == "trial"]
    with sqlite3.connect(place / "mlflow.db") as store:
        columns = "run_uuid, key, step"
        (points,) = store.execute(f"SELECT count(*) FROM (SELECT DISTINCT {columns} FROM metrics)").fetchone()
        (twice,) = store.execute(f"SELECT count(*) - {points} FROM metrics WHERE key NOT LIKE 'system/%'").fetchone()
    return {
        "table": lines,
        "numbers": {each.name: rows(each) for each in runs},
        "weights": {each.name: digest(each) for each in runs},
        "rows twice": sum(map(repeated, runs)),
        "points": points,
        "points twice": max(0, twice),
    }


if __name__ == "__main__":
    main()
