"""Kill workers of a run at random moments; the run must end as if nothing had happened.

    python chaos/workers.py [--runs 6] [--kills 2] [--workers 2] [--out workers.csv]

Each run trains SimCLR on digits. A random worker gets SIGKILL at a random moment after each of some random epochs. It
prints how many runs have the weights and optimizer state of the undisturbed run to the last bit, and the same metrics,
how many steps were recorded twice, and how long it took from the kill to the first new step: until Ray had started new
processes, until these were at their first step (imports and data), and the rest (the repeated part of an epoch).
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from observed import below, digest, percentiles, repeated, rows, written

from eagleray.config import Run, load_run
from eagleray.contracts.report import Report
from eagleray.ray_backend.cluster import connected
from eagleray.ray_backend.workers import train_on_workers
from eagleray.runs.record import Record

WORKER = "RayTrainWorker"
SETTINGS = ["data.limit=512", "batch_size=64", "encoder.width=8", "precision=fp32", "device=cpu", "threads=1",
            "evaluate.linear.when=never"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=2, help="in each run")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write a row for each kill, as CSV")
    given = parser.parse_args()
    run = load_run(None, [*SETTINGS, f"workers={given.workers}", f"epochs={given.epochs}"])
    with tempfile.TemporaryDirectory() as folder, connected(None):
        alone = trained(run, Path(folder, "undisturbed"), [], random.Random(0))[0]
        found, equal, alike, twice = list[dict[str, Any]](), 0, 0, 0
        for number in range(given.runs):
            draw = random.Random(number)
            epochs = sorted(draw.sample(range(1, given.epochs), given.kills))
            place, recoveries = trained(run, Path(folder, str(number)), epochs, draw)
            found += [{"run": number, **each} for each in recoveries]
            equal += digest(place) == digest(alone)
            alike += rows(place) == rows(alone)
            twice += repeated(place)
            print(f"run {number}: {json.dumps(recoveries)}", flush=True)
    print(f"{len(found)} kills in {given.runs} runs: {equal} with equal weights, {alike} with equal metrics,", end=" ")
    print(f"{twice} steps recorded twice")
    for name in ("processes", "loop", "step", "all"):
        print(f"{name:10} {percentiles([each[name] for each in found])}")
    written(given.out, found)
    raise SystemExit(not equal == alike == given.runs or twice > 0)


def trained(run: Run, place: Path, epochs: list[int], draw: random.Random) -> tuple[Path, list[dict[str, float]]]:
    """Train a run, with a kill in each of some epochs; return its directory and how it recovered each time."""
    Record.create(place, name=place.name, experiment="chaos", params={}, run=run.file())
    watch = Watch(place, epochs, draw)
    for report in train_on_workers(run, place):
        watch.reported(report)
    assert Record.open(place).state == "finished"
    return place, watch.recoveries


class Watch:
    """Kills workers, and takes the times until they train again."""

    def __init__(self, place: Path, epochs: list[int], draw: random.Random):
        self.place, self.epochs, self.draw = place, list(epochs), draw
        self.recoveries: list[dict[str, float]] = []
        self.furthest, self.killed = 0, 0.0

    def reported(self, report: Report) -> None:
        step = report.progress.step
        if self.killed and step > self.furthest:
            now = time.time()
            times = {"processes": self.processes - self.killed, "loop": self.loop - self.processes,
                     "step": now - self.loop, "all": now - self.killed}  # fmt: skip
            self.recoveries.append({name: round(seconds, 2) for name, seconds in times.items()})
            self.killed = 0.0
        self.furthest = max(self.furthest, step)
        if self.epochs and not self.killed and report.epoch_ended and report.progress.epoch >= self.epochs[0]:
            self.epochs.pop(0)
            time.sleep(self.draw.uniform(0, 0.3))
            self.kill()

    def kill(self) -> None:
        workers = below(WORKER)
        self.killed, self.processes, self.loop = time.time(), float("nan"), float("nan")
        old = {worker.pid for worker in workers}
        threading.Thread(target=self.follow, args=(old,), daemon=True).start()
        os.kill(self.draw.choice(workers).pid, signal.SIGKILL)

    def follow(self, old: set[int]) -> None:
        """Take the times at which new processes start, and at which the first one is at its first step."""
        while not (new := [worker for worker in below(WORKER) if worker.pid not in old]):
            time.sleep(0.02)
        self.processes = new[0].create_time()
        pulse = self.place / ".pulse-0"
        while not pulse.exists() or json.loads(pulse.read_text())["pid"] in old:
            time.sleep(0.02)
        self.loop = time.time()


if __name__ == "__main__":
    main()
