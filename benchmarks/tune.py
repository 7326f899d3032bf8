"""Measure the cost of Ray: trials per minute of a sweep against plain Ray Tune, and the loop with and without Tune.

    python benchmarks/tune.py --out tune.json [--rounds 3] [--trials 60] [--plain 8] [--seconds 10]

Trials: SimCLR for one short epoch on a few digits. Ours are a complete sweep (records, checkpoints, kNN); plain Ray
Tune calls a function for each trial, which runs the same loop and reports, in its own process, with Ray's loggers off.
The start of Ray is not counted.

Overhead: one trial whose epochs take about ten seconds, alone in an actor, against the same loop in this process. An
epoch lasts from one report to the next; the first one is left out. The sides take turns in both comparisons.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune

from eagleray.config import Run, Sweep, validated
from eagleray.loop import train
from eagleray.ray_backend.cluster import connected
from eagleray.ray_backend.sweep import sweep

SHORT = {"data": {"limit": 64}, "batch_size": 32, "epochs": 1, "encoder": {"name": "convnet", "width": 8},
         "evaluate": {"linear": {"when": "never"}}, "device": "cpu", "threads": 1}  # fmt: skip
EPOCHS = 4  # of the long trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60, help="of a sweep of ours")
    parser.add_argument("--plain", type=int, default=8, help="trials of plain Tune: they take longer")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an epoch, for the overhead")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with connected(None):
        trials = turns(arguments.rounds, ours=lambda: many(arguments.trials), plain=lambda: plain(arguments.plain))
        run = long_run(arguments.seconds)
        seconds = turns(arguments.rounds, bare=lambda: bare(run), under_tune=lambda: under_tune(run))
    more = statistics.median(a / b for a, b in zip(trials["ours"], trials["plain"], strict=True))
    overhead = statistics.median(a / b - 1 for a, b in zip(seconds["under_tune"], seconds["bare"], strict=True))
    medians = {name: statistics.median(values) for name, values in {**trials, **seconds}.items()}
    print(f"trials a minute    ours {medians['ours']:8.1f}    plain {medians['plain']:8.1f}    ratio {more:6.1f}x")
    print(
        f"seconds an epoch   Tune {medians['under_tune']:8.2f}     bare {medians['bare']:8.2f}    more {overhead:+7.1%}"
    )
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        result = {"trials_a_minute": trials, "ratio": more, "seconds_an_epoch": seconds, "overhead": overhead}
        arguments.out.write_text(json.dumps({"settings": settings, **result}, indent=2) + "\n")


def turns(rounds: int, **sides: Callable[[], float]) -> dict[str, list[float]]:
    """Measure each side once in every round."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            values[name].append(side())
    return values


def many(count: int) -> float:
    """Return trials per minute of a sweep."""
    vary = {"method.temperature": {"log_uniform": [0.05, 1]}}
    question = validated(Sweep, {"name": "many", "run": SHORT, "vary": vary, "trials": count, "floor": []})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        records = sweep(question, Path(folder) / "sweep")
        minutes = (time.perf_counter() - began) / 60
        assert [record.state for record in records] == ["finished"] * count
    return count / minutes


def plain(count: int) -> float:
    """Return trials per minute of Ray Tune as in its documentation: a function that reports."""
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            trial,
            param_space={"temperature": tune.loguniform(0.05, 1), "run": SHORT, "folder": folder},
            tune_config=tune.TuneConfig(metric="knn", mode="max", num_samples=count),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.perf_counter()
        results = tuner.fit()
        minutes = (time.perf_counter() - began) / 60
        assert len(results) == count
        assert not results.errors
    return count / minutes


def trial(config: dict[str, Any]) -> None:
    """Run the loop and report its epochs."""
    torch.set_num_threads(1)
    run = validated(Run, {**config["run"], "method": {"name": "simclr", "temperature": config["temperature"]}})
    for report in train(run, Path(config["folder"]) / tune.get_context().get_trial_id()):
        if report.epoch_ended:
            tune.report(report.metrics)


def long_run(seconds: float) -> dict[str, Any]:
    """Return a run whose epochs take about `seconds` here; the width of the encoder is adjusted."""
    file = {**SHORT, "data": {}, "batch_size": 64, "epochs": 2}
    width = 32
    for _ in range(4):
        file["encoder"] = {"name": "convnet", "width": width}
        width = min(256, max(8, round(width * (seconds / bare(file)) ** 0.5 / 8) * 8))  # costs grow with its square
    return {**file, "encoder": {"name": "convnet", "width": width}, "epochs": EPOCHS}


def bare(file: dict[str, Any]) -> float:
    """Return the median seconds of an epoch of the loop in this process, without the first epoch."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [time.perf_counter() for r in train(validated(Run, file), Path(folder)) if r.epoch_ended]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def under_tune(file: dict[str, Any]) -> float:
    """Return the median seconds of an epoch of a trial, from the times in its record."""
    question = validated(Sweep, {"name": "long", "run": file, "vary": {"seed": [0]}, "search": "grid", "floor": []})
    with tempfile.TemporaryDirectory() as folder:
        (record,) = sweep(question, Path(folder) / "sweep")
        ends = [row["time"] / 1000 for row in record.read()[0][: file["epochs"]]]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


if __name__ == "__main__":
    main()
