"""Stop processes that train, or that decode their images, without ending them; the run must start again.

    python chaos/hangs.py [--each 2] [--patience 15] [--out hangs.csv]

After two epochs SIGSTOP reaches one of a run's two workers (`rank`), all processes that decode images for a run of
two workers (`loader`), or the process of one of a sweep's trials (`actor`). Within `--patience` seconds (outside of
this script 120, or five epochs) and some more, the hang must be told, the stacks of all processes kept, and the run
started again; it must end with rows and weights of the undisturbed run, and no stopped process may be left. `none`: the
same without a fault, in which nothing may be told, although the patience is shorter than the real one.
"""

import argparse
import os
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from observed import TINY, below, concluded, differences, written
from rot import make_images

from eagleray.config import Run, Sweep, load_run, validated
from eagleray.contracts.errors import Noted
from eagleray.ray_backend.cluster import connected
from eagleray.ray_backend.sweep import sweep
from eagleray.ray_backend.workers import train_on_workers
from eagleray.runs import hangs
from eagleray.runs.record import Record

KNOWN = 2  # epochs after which a watch knows how long one takes
LATE = 30  # seconds beside the patience: two looks, the stacks, a busy machine
SETTINGS = [*TINY, "epochs=5", "workers=2"]
RUN = {"data": {"limit": 200}, "batch_size": 20, "epochs": 6, "encoder": {"width": 4}, "threads": 1, "device": "cpu",
       "precision": "fp32", "evaluate": {"linear": {"when": "never"}}}  # fmt: skip
QUESTION = {"name": "chaos", "run": RUN, "vary": {"method.temperature": [0.1, 0.5]}, "search": "grid", "floor": [],
            "keep": "all"}  # fmt: skip
Train = Callable[[Path, Callable[[], None]], None]  # in a directory, calling something after its first epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=2, help="hangs of each kind")
    parser.add_argument("--patience", type=float, default=15, help="seconds without a report")
    parser.add_argument("--out", type=Path, help="where to write a row for each hang, as CSV")
    given = parser.parse_args()
    hangs.LEAST, hangs.START, hangs.EVERY = given.patience, 10 * given.patience, 2.0
    found, draw = list[dict[str, Any]](), random.Random(0)
    with tempfile.TemporaryDirectory() as name, connected(None):
        streamed = [*SETTINGS, *make_images(Path(name)), "data.memory_limit=1", "data.workers=1", "batch_size=8"]
        kinds: dict[str, tuple[Train, str]] = {
            "rank": (partial(on_workers, load_run(None, SETTINGS)), "RayTrainWorker"),
            "loader": (partial(on_workers, load_run(None, streamed)), "eagleray.data.workers"),
            "actor": (as_sweep, "ray::TrialActor"),
        }
        for kind, (train, processes) in kinds.items():
            whole = Path(name, f"{kind}-0")
            for number in range(given.each + 1):
                stopper = Stopper(processes, None if kind == "loader" else draw) if number else None
                found.append({"kind": kind if number else f"none ({kind})", **hung(train, whole, number, stopper)})
                print(found[-1], flush=True)
                written(given.out, found)
    concluded(found, given.out, "told", "seconds")


class Stopper:
    """Stops one of the processes whose command line has a word, or all of them, once."""

    def __init__(self, word: str, draw: random.Random | None):
        self.word, self.draw = word, draw
        self.stopped: list[psutil.Process] = []
        self.at = 0.0

    def __call__(self) -> None:
        if not self.stopped:
            there = below(self.word)
            self.stopped = [self.draw.choice(there)] if self.draw else there
            for each in self.stopped:
                os.kill(each.pid, signal.SIGSTOP)
            self.at = time.time()

    def left(self) -> int:
        """Count the stopped processes that are still there, and end them."""
        there = [each for each in self.stopped if each.is_running() and each.status() == psutil.STATUS_STOPPED]
        for each in there:
            each.kill()
        return len(there)


def hung(train: Train, whole: Path, number: int, stopper: Stopper | None) -> dict[str, Any]:
    """Train with a hang, or without one, and say what was told of it."""
    place, told = whole.with_name(whole.name.replace("-0", f"-{number}")), list[tuple[float, str]]()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Noted)
        warnings.showwarning = lambda message, *_, **__: told.append((time.time(), str(message)))
        train(place, stopper or (lambda: None))
    now, notes = time.time(), [(at, text) for at, text in told if "has reported nothing" in text]
    stacks, wrong = list(place.rglob("stacks.txt")), list[str]()
    if stopper is None:
        wrong += ["a false alarm"] * bool(notes or stacks)
        return {"told": "", "seconds": "", "stacks": len(stacks), "broken": ", ".join(wrong)}
    seconds = round(notes[0][0] - stopper.at, 1) if notes else ""
    wrong += ["it was not told"] * (not notes) + ["no stacks"] * (not stacks)
    wrong += ["it was told late"] * bool(notes and notes[0][0] - stopper.at > hangs.LEAST + LATE)
    wrong += [difference] if (difference := apart(whole, place)) else []
    wrong += [f"{left} stopped processes are left"] if (left := stopper.left()) else []
    rest = round(now - stopper.at, 1)
    return {"told": seconds, "seconds": rest, "stacks": len(stacks), "broken": ", ".join(wrong)}


def apart(whole: Path, place: Path) -> str:
    """Return in what two runs, or the trials of two sweeps, differ."""
    pairs = [(each.directory, place / "trials" / each.name) for each in Record.open(whole).children()]
    return ", ".join(filter(None, (differences(*pair) for pair in pairs or [(whole, place)])))


def on_workers(run: Run, place: Path, when_known: Callable[[], None]) -> None:
    """Train a run on its workers."""
    Record.create(place, name=place.name, experiment="chaos", params={}, run=run.file())
    for report in train_on_workers(run, place):
        if report.epoch_ended and report.progress.epoch == KNOWN:
            when_known()


def as_sweep(place: Path, when_known: Callable[[], None]) -> None:
    """Run a sweep of two trials."""
    sweep(validated(Sweep, QUESTION), place, watch=Following(when_known))


class Following:
    """Shows a sweep, and calls something after its first epochs."""

    def __init__(self, when_known: Callable[[], None]):
        self.when_known = when_known

    def data(self, read: Any) -> None:
        pass

    def floor(self, name: str, metrics: Any) -> None:
        pass

    def work(self, what: str, done: int, total: int) -> None:
        pass

    def trial(
        self, label: str, params: Mapping[str, Any], state: str, epoch: int, epochs: int, metrics: Mapping[str, float]
    ) -> None:
        if state == "running" and epoch == KNOWN:
            self.when_known()


if __name__ == "__main__":
    main()
