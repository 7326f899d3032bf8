"""Kill workers of a run at random moments; the run must end as if nothing had happened.

    python chaos/workers.py [--runs 6] [--kills 2] [--workers 2] [--first-minute] [--out workers.csv]

Each run trains SimCLR on digits. A random worker gets SIGKILL at a random moment after each of some random epochs. It
must end with the weights and optimizer state of the undisturbed run to the last bit, with the same metrics, and no step
recorded twice. It prints how long it took from the kill to the first new step: until Ray had new processes, until these
were at their first step (imports and data), and the rest (the repeated part of an epoch). Workers have spares when they
are killed, as after a minute of work; with --first-minute they have none.
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

import psutil
from observed import below, concluded, differences, written

from eagleray.config import Run, load_run
from eagleray.contracts.report import Report
from eagleray.ray_backend import workers
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
    parser.add_argument("--first-minute", action="store_true", help="kill workers that have no spares yet")
    parser.add_argument("--out", type=Path, help="where to write a row for each kill, as CSV")
    given = parser.parse_args()
    run = load_run(None, [*SETTINGS, f"workers={given.workers}", f"epochs={given.epochs}"])
    found, spares = list[dict[str, Any]](), 0 if given.first_minute else given.workers
    workers.SPARE_AFTER = 0.0 if spares else 86_400.0
    with tempfile.TemporaryDirectory() as folder, connected(None):
        alone = trained(run, Watch(Path(folder, "undisturbed"), [], random.Random(0)))
        for number in range(given.runs):
            draw = random.Random(number)
            epochs = sorted(draw.sample(range(1, given.epochs), given.kills))
            watch = Watch(Path(folder, str(number)), epochs, draw, spares)
            wrong = differences(alone, trained(run, watch))
            found += rows_of(watch, given.kills, wrong, run=number)
            print(f"run {number}: {json.dumps(watch.recoveries)} {wrong}", flush=True)
            written(given.out, found)
    concluded(found, given.out, "processes", "loop", "step", "all")


def rows_of(watch: "Watch", kills: int, wrong: str, **facts: Any) -> list[dict[str, Any]]:
    """Return a row for each recovery of a run; the last says what was wrong with the run."""
    found = [{**facts, **each, "broken": ""} for each in watch.recoveries] or [{**facts}]
    missed = "" if len(watch.recoveries) == kills else f" {kills} kills and {len(watch.recoveries)} recoveries"
    found[-1]["broken"] = f"{wrong}{missed}".strip()
    return found


def trained(run: Run, watch: "Watch", address: str | None = None) -> Path:
    """Train a run while a watch injures it; return its directory."""
    Record.create(watch.place, name=watch.place.name, experiment="chaos", params={}, run=run.file())
    for report in train_on_workers(run, watch.place, address=address):
        watch.reported(report)
    return watch.place


class Watch:
    """Kills workers, and takes the times until they train again."""

    def __init__(self, place: Path, epochs: list[int], draw: random.Random, spares: int = 0):
        self.place, self.epochs, self.draw, self.spares = place, list(epochs), draw, spares
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
            while self.spares and len(rested()) < self.spares:
                continue
            time.sleep(self.draw.uniform(0, 0.3))
            self.kill()

    def kill(self) -> None:
        """Strike, and take the times until new workers train."""
        self.killed, self.processes, self.loop = time.time(), float("nan"), float("nan")
        old = {worker.pid for worker in below(WORKER)}
        threading.Thread(target=self.follow, args=(old,), daemon=True).start()
        self.strike()

    def strike(self) -> None:
        """Kill one of the workers."""
        os.kill(self.draw.choice(below(WORKER)).pid, signal.SIGKILL)

    def follow(self, old: set[int]) -> None:
        """Take the times at which new processes start, and at which the first one is at its first step."""
        while all(worker.pid in old for worker in below(WORKER)):
            time.sleep(0.02)
        self.processes = time.time()
        pulse = self.place / ".pulse-0"
        while not pulse.exists() or json.loads(pulse.read_text())["pid"] in old:
            time.sleep(0.02)
        self.loop = time.time()


def rested() -> list[psutil.Process]:
    """Return the processes of Ray that wait for work, and have imported torch and come to rest."""
    try:
        waiting = [each for each in below("ray::IDLE") if any("libtorch" in part.path for part in each.memory_maps())]
        before = [sum(each.cpu_times()[:2]) for each in waiting]
        time.sleep(1)
        return [each for each, used in zip(waiting, before, strict=True) if sum(each.cpu_times()[:2]) - used < 0.05]
    except psutil.NoSuchProcess:  # one has just ended
        return []


if __name__ == "__main__":
    main()
