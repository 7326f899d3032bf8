"""Kill the driver of a sweep at random moments and resume it; the sweep must end as if nothing had happened.

    python chaos/drivers.py [--sweeps 3] [--kills 4] [--out drivers.csv]

Each sweep has three temperatures, two seeds and two floors, and sends its numbers to MLflow. `eagleray sweep` gets
SIGKILL some seconds after its first new row; half of the time `--resume` follows at once, else after all of its Ray has
gone. Table, numbers, weights and MLflow's points must be those of the undisturbed sweep, no finished trial may be
written to again. It prints the time from `--resume` to the first new row: until the command starts a Ray, until that
has its first worker, until that has written a row.
"""

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import ended, finished_trials, first_row, next_row, outcome, start, wait_for_the_end
from observed import concluded, written

FILE = """\
name: chaos
run:
  data: {limit: 512}
  batch_size: 64
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
Rows = list[dict[str, Any]]
Injure = Callable[["subprocess.Popen[bytes]", Path, random.Random], dict[str, Any]]
# kills, and returns what is noted of it and the words of the next start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4, help="in each sweep")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, help="where to write a row for each kill, as CSV")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [f"epochs={given.epochs}"]
        whole = undisturbed(Path(folder, "undisturbed"), *words)
        found: Rows = []
        for number in range(given.sweeps):
            found += disturbed(Path(folder, str(number)), whole, number, given.kills, kill, lambda: words)
            written(given.out, found)
    concluded(found, given.out, "begin", "ray", "train", "seconds")


def kill(process: "subprocess.Popen[bytes]", place: Path, draw: random.Random) -> dict[str, Any]:
    """Kill a driver; half of the time, wait until its Ray has gone, too."""
    session, at_once = os.getsid(process.pid), draw.random() < 0.5
    process.kill()
    process.wait()
    if not at_once:
        wait_for_the_end(session, place)
    return {"at_once": at_once}


def undisturbed(place: Path, *words: str) -> dict[str, Any]:
    """Run the sweep without faults."""
    ended(begun(place, *words), place)
    return outcome(place)


def begun(place: Path, *words: str) -> "subprocess.Popen[bytes]":
    place.mkdir(exist_ok=True)
    (place / "sweep.yaml").write_text(FILE)
    return start(place, "sweep", "sweep.yaml", *words)


def disturbed(
    place: Path, whole: dict[str, Any], number: int, kills: int, injure: Injure, words: Callable[[], list[str]]
) -> Rows:
    """Run the sweep with faults, each followed by `--resume`, and compare its end with that of the whole one.

    Args:
        place: where it works.
        whole: the outcome without faults.
        number: of the sweep, the seed of what is random.
        kills: how many faults.
        injure: makes one, and returns what is noted of it.
        words: more words of the command, asked for at every start.
    """
    draw, found, kept = random.Random(number), Rows(), dict[str, bytes]()
    process = begun(place, *words())
    for _ in range(kills):
        next_row(process, place)
        time.sleep(draw.uniform(0, 4))
        if process.poll() is not None:
            break  # the sweep has ended before the fault
        kept = finished_trials(place) | kept  # as they were when they were first seen
        found.append({"sweep": number, "finished": len(kept), **injure(process, place, draw), "broken": ""})
        if process.returncode == 0:
            break  # it was not even noticed
        process = begun(place, "--resume", *words())
        found[-1] |= first_row(process, place)
        print(found[-1], flush=True)
    ended(process, place)
    wrong = [name for name, value in outcome(place).items() if whole[name] != value]
    after = finished_trials(place)
    wrong += [f"the finished trial {name} was written to" for name, rows in kept.items() if after.get(name) != rows]
    if found:
        found[-1]["broken"] = ", ".join(wrong)
    print(f"sweep {number}: {', '.join(wrong) or 'equal'}", flush=True)
    return found


if __name__ == "__main__":
    main()
