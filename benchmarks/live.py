"""Measure what the live view of a sweep costs: the same training beside a live table and beside plain lines.

    python benchmarks/live.py --out live.json [--pairs 20] [--trials 20] [--epochs 40]

SimCLR on digits trains in this process on one core. In the meantime the table of a sweep with `--trials` running trials
is drawn into a terminal of 80 x 24; or the output is no terminal, and a line is printed where a trial starts. The
trials of a real sweep have processes of their own, so this is the most that the view can cost. The sides take turns,
and so does which of them is first.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from eagleray.app.live import SweepDisplay
from eagleray.config import Run, validated
from eagleray.loop import train

PARAMS = {"method.temperature": 0.2, "augment.flip": 0.5}
SMALL = {"data": {"limit": 256}, "batch_size": 64, "encoder": {"width": 16}, "device": "cpu", "precision": "fp32",
         "evaluate": {"linear": {"when": "never"}}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=20, help="in the table")
    parser.add_argument("--epochs", type=int, default=40, help="of each training")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = validated(Run, {**SMALL, "epochs": arguments.epochs})
    seconds: dict[str, list[float]] = {"live": [], "plain": []}
    for pair in range(arguments.pairs):
        for side in ("live", "plain")[:: 1 if pair % 2 else -1]:
            seconds[side].append(trained_beside(run, arguments.trials, is_live=side == "live"))
    ratios = [live / plain for live, plain in zip(seconds["live"], seconds["plain"], strict=True)]
    live, plain = (statistics.median(seconds[side]) for side in ("live", "plain"))
    print(
        f"seconds    live {live:8.2f}    plain {plain:8.2f}    ratio {statistics.median(ratios):.4f} (of pairs, median)"
    )
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(
            json.dumps({"settings": settings, "seconds": seconds, "ratios": ratios}, indent=2) + "\n"
        )


def trained_beside(run: Run, trials: int, *, is_live: bool) -> float:
    """Return the seconds of a training while the trials of a sweep are shown."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=is_live, width=80, height=24)
        with SweepDisplay("cost", "knn", trials, console) as display:
            began = time.perf_counter()
            for report in train(run, Path(folder)):
                if report.epoch_ended:
                    for number in range(trials):
                        label, epoch = f"{number:03d}", report.progress.epoch
                        display.trial(label, PARAMS, "running", epoch, run.epochs, report.metrics)
            return time.perf_counter() - began


if __name__ == "__main__":
    main()
