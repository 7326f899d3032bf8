"""Compare the speed of two checkouts: the benchmarks of each run in turns, every time and rate side by side.

    git worktree add OLD COMMIT
    python benchmarks/same_speed.py OLD . [--benchmarks augment methods] [--images FOLDER] [--rounds 3] [--out speed.csv]

In every round each benchmark runs in one checkout and then in the other, the newer one first in every second round. A
line names a number of the benchmark, the medians of both, and the ratio second/first: the median of the rounds, and the
least and the largest. What lightly, SGD and plain Ray Tune take is listed too: it tells how far the machine's own noise
goes.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagleray.config.registry import declared

ALONE = [name for name, one in declared("method").items() if not one.needs_run]  # methods that need no other run
BENCHMARKS = {
    "augment": ["--seconds", "6"],
    "linear_probe": ["--rounds", "2"],
    "losses": ["--rounds", "1"],
    "methods": ["--rounds", "5", "--methods", *ALONE],
    "simclr": ["--rounds", "1", "--seconds", "6"],
    "tune": ["--rounds", "2", "--seconds", "4"],
}
LEFT_OUT = ("settings", "ratio", "accuracy", "more", "overhead", "rates", "lightly_best")  # made of others, or no speed
NAMES = ("blur", "loss", "images", "width", "batch", "trained", "others", "points")  # of a row: what it measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs=2)
    parser.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    parser.add_argument("--images", type=Path, help="a folder of images for benchmarks/simclr.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write a row for each number and round, as CSV")
    given = parser.parse_args()
    first, second = (checkout.resolve() for checkout in given.checkouts)
    rows = []
    for benchmark in given.benchmarks:
        images = ["--images", str(given.images.resolve())] if given.images and benchmark == "simclr" else []
        measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for turn in range(given.rounds):
            order = (first, second) if turn % 2 == 0 else (second, first)
            numbers = {checkout: measure(checkout, benchmark, images) for checkout in order}
            for name in numbers[first].keys() & numbers[second].keys():
                measured[name].append((numbers[first][name], numbers[second][name]))
                rows.append([benchmark, name, turn, *measured[name][-1]])
        for name, pairs in sorted(measured.items()):
            ratios = [after / before for before, after in pairs if before]
            if not ratios:
                continue
            medians = "".join(f"{statistics.median(side):12,.5g}" for side in zip(*pairs, strict=True))
            spread = f"{statistics.median(ratios):6.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{benchmark:13}{name:44}{medians}   {spread}", flush=True)
    if given.out:
        with given.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [["benchmark", "number", "round", "first", "second"], *rows]
            )


def measure(checkout: Path, benchmark: str, more: list[str]) -> dict[str, float]:
    """Return the times and rates that a benchmark of a checkout writes."""
    paths = os.pathsep.join(str(checkout / part) for part in ("platform", "methods"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        command = [sys.executable, checkout / f"benchmarks/{benchmark}.py", *BENCHMARKS[benchmark], *more]
        subprocess.run([*command, "--out", file], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        return dict(flat(json.loads(file.read_text())))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number below a value with its place; of a list of numbers the median."""
    if isinstance(value, dict):
        here = " ".join(str(value[key]) for key in NAMES if isinstance(value.get(key), str | int))
        for key, below in value.items():
            if key not in NAMES and not any(word in key for word in LEFT_OUT):
                yield from flat(below, f"{name} {here} {key}".replace("  ", " "))
    elif isinstance(value, list) and value and isinstance(value[0], int | float):
        yield name.strip(), statistics.median(value)
    elif isinstance(value, list):
        for place, below in enumerate(value):
            yield from flat(below, f"{name} {place}")
    elif isinstance(value, int | float):
        yield name.strip(), float(value)


if __name__ == "__main__":
    main()
