"""Measure `eagleray sync` and `eagleray compare` over many runs.

    python benchmarks/sync.py --out sync.json [--runs 1000] [--epochs 10] [--rounds 3]

A sweep of `--runs` trials is recorded as training leaves it: settings, two metrics of `--epochs` epochs, a picture of
the views, the digest of the images. Each command runs in a process of its own, so its imports count. The first `sync`
makes the store, a SQLite file; those after it have nothing to do. `compare` reads the directory, or MLflow. At last the
share of a core is measured that the sender of a running sweep takes: it looks every two seconds for what has changed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from eagleray.config import Sweep, validated
from eagleray.config.metrics import meanings
from eagleray.config.search_points import points, sweep_params, varied_keys
from eagleray.runs.record import Record
from eagleray.tracking import Sender

VARY = {"method.temperature": {"log_uniform": [0.05, 1]}, "augment.flip": {"uniform": [0, 1]}}
QUIET = 20  # seconds
MEASURED = ("loss", "knn")  # after every epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="of what is measured several times")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        record_sweep(Path("runs/many/1"), arguments.runs, arguments.epochs)
        seconds = {"first sync": [timed("sync")]}
        seconds["sync with nothing to do"] = [timed("sync") for _ in range(arguments.rounds)]
        seconds["compare the directory"] = [timed("compare", "runs/many") for _ in range(arguments.rounds)]
        seconds["compare in MLflow"] = [timed("compare", "many") for _ in range(arguments.rounds)]
        share = sender_share(Path("runs/many/1"))
    for name, values in seconds.items():
        wall, cpu = (statistics.median(each) for each in zip(*values, strict=True))
        print(f"{name:<24} {wall:7.1f} s, {cpu:.1f} s of them on a core (median of {len(values)})")
    print(f"{'sender with nothing new':<24} {share:7.1%} of a core")
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(
            json.dumps({"settings": settings, "seconds": seconds, "share": share}, indent=2) + "\n"
        )


def record_sweep(directory: Path, count: int, epochs: int) -> None:
    """Record a finished sweep of some trials."""
    run = {"data": "digits", "epochs": epochs}
    sweep = validated(Sweep, {"name": "many", "run": run, "vary": VARY, "trials": count, "question": "Which?"})
    parent = Record.create(
        directory, name=sweep.name, experiment=sweep.name, run=sweep.model_dump(mode="json"),
        params=sweep_params(sweep), tags={"kind": "sweep", "varied": varied_keys(sweep.vary)},
    )  # fmt: skip
    for point in points(sweep):
        record = Record.create(
            directory / "trials" / point.name, name=point.name, experiment=sweep.name, run=point.alone(sweep).file(),
            params=point.params(sweep), parent=parent, tags=point.tags, meanings=meanings(point.run(sweep)),
        )  # fmt: skip
        facts = {"images": {"train": 1437}, "classes": 10, "size": 8, "channels": 1}
        record.keep_data({"name": "digits", "digest": "0a1b", "source": {"limit": None}, **facts})
        Image.effect_noise((200, 400), point.number % 100).save(record.artifacts / "views.png")
        numbers: dict[str, float] = {}
        for epoch in range(1, epochs + 1):
            numbers = {name: 1 / (epoch + place + point.number) for place, name in enumerate(MEASURED)}
            record.append(20 * epoch, numbers, epoch)
        record.finish("finished", summary={**numbers, "linear": numbers["knn"]})
    parent.finish("finished")


def sender_share(directory: Path) -> float:
    """Return the share of a core that a sender takes while no run changes."""
    with Sender() as sender:
        sender.add(Record.open(directory))
        while (quiet := sender.changed()) and not time.sleep(1):
            print(f"{len(quiet)} runs to look at once", file=sys.stderr)
        began = time.process_time()
        time.sleep(QUIET)
        return (time.process_time() - began) / QUIET


def timed(*words: str) -> tuple[float, float]:
    """Return the seconds of a command, and those in which it used a core: others may keep the machine busy."""
    began, before = time.perf_counter(), cpu_seconds()
    done = subprocess.run([sys.executable, "-m", "eagleray", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return time.perf_counter() - began, cpu_seconds() - before


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
