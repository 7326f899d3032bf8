"""What it costs that nothing is lost: fsync and digests, as a share of training.

SimCLR is trained with a checkpoint and a row of metrics after each epoch, in a process of its own: as it is, and with
fsync and digests replaced by nothing. Both take turns, the other one first in every second round. An epoch's time is
that between the ends of two epochs. Printed are the ratio of both (the median of the rounds and its interval from order
statistics, of 95 % or more from six rounds on) and the share of the time inside fsync and digests, with less noise.

    python benchmarks/durable.py --images FOLDER [--rounds 11] [--epochs 6] [--limit IMAGES] [--out durable.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

from eagleray.config import load_run
from eagleray.config.settings import settings
from eagleray.contracts import files
from eagleray.loop import train
from eagleray.runs import checkpoint
from eagleray.runs.record import Record
from eagleray.runs.writer import recorded

SIDES = ("as it is", "without")
Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of images; by default scikit-learn's digits")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--epochs", type=int, default=6, help="of each measurement; the first is not counted")
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--keep", type=Path, help="where to write checkpoints: the disk that is measured")
    parser.add_argument("--out", type=Path, default=Path("durable.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measured(given)))
        return
    found: dict[str, list[Numbers]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side in SIDES[:: 1 if number % 2 == 0 else -1]:
            found[side].append(in_a_process(side))
        last = {side: found[side][-1]["epoch"] for side in SIDES}
        print(
            f"round {number + 1}: {', '.join(f'{side} {value:.3f} s an epoch' for side, value in last.items())}",
            flush=True,
        )
    ratios = [one["epoch"] / other["epoch"] for one, other in zip(*found.values(), strict=True)]
    low, high = interval(ratios)
    inside = [100 * one["inside"] / one["epoch"] for one in found["as it is"]]
    print(f"ratio of both: {statistics.median(ratios):.4f} ({low:.4f} to {high:.4f})")
    print(f"inside fsync and digests: {statistics.median(inside):.2f} % ({min(inside):.2f} to {max(inside):.2f} %)")
    given.out.write_text(json.dumps({"ratios": ratios, "inside": inside, "found": found}, indent=1))


def in_a_process(side: str) -> Numbers:
    """Measure one side in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(given: argparse.Namespace) -> Numbers:
    """Train here; return the seconds of an epoch, and those inside fsync and digests."""
    inside = [0.0]
    for owner, name, nothing in (
        (os, "fsync", lambda _: None),
        (files, "digest", lambda _: "0" * files.DIGITS),
        (checkpoint, "digest_of", lambda _: "0" * files.DIGITS),
    ):
        real = getattr(owner, name)
        setattr(owner, name, timed(real, inside) if given.side == "as it is" else nothing)
    images = ["data=folder", f"data.root={given.images}", "data.channels=rgb"] if given.images else []
    asked = [f"batch_size={given.batch}", f"data.limit={given.limit}", f"epochs={given.epochs}", "evaluate.every=1000"]
    run = load_run(None, [*images, *asked, "evaluate.linear.when=never"])
    with tempfile.TemporaryDirectory(dir=given.keep) as folder:
        record = Record.create(folder, name="r", experiment="e", params=settings(run), run=run.file())
        ends, spent = [], []
        for report in recorded(train(run, record.directory), record):
            if report.epoch_ended and not report.done:  # the last epoch is evaluated
                ends.append(time.perf_counter())
                spent.append(inside[0])
    count = len(ends) - 1
    return {"epoch": (ends[-1] - ends[0]) / count, "inside": (spent[-1] - spent[0]) / count}


def timed(call: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    """Add the seconds of each call to a total."""

    def called(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            total[0] += time.perf_counter() - began

    return called


def interval(values: list[float]) -> tuple[float, float]:
    """Return the shortest interval of order statistics that holds the median in 95 % of cases; of few values, all."""
    ordered, count = sorted(values), len(values)
    cut = 0
    while 2 * sum(comb(count, below) for below in range(cut + 2)) / 2**count <= 0.05:
        cut += 1
    return ordered[cut], ordered[-1 - cut]


if __name__ == "__main__":
    main()
