"""Measure training by two workers of one thread each beside one process of two threads, on the same two cores.

    python benchmarks/workers.py [--images FOLDER] [--settings method=simclr] [--rounds 3] [--epochs 4]

Both sides train the same run (weights equal but for rounding) and take turns. Images a second are those of the last
epoch, without evaluation and checkpoints; the start of Ray and of the workers, some twenty seconds, is not in them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIDES = {"one process, two threads": ["threads=2"], "two workers of one thread": ["workers=2", "threads=1"]}
QUIET = ["evaluate.protocols=[collapse]", "evaluate.every=1000", "evaluate.test=false"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images; by default scikit-learn's digits")
    parser.add_argument("--settings", nargs="*", default=[], help="of the run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    source = ["data=folder", f"data.root={given.images.absolute()}"] if given.images else []
    settings = [*source, f"epochs={given.epochs}", *QUIET, *given.settings]
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side, own in SIDES.items():
            speeds[side].append(measured([*settings, *own]))
        print(
            f"round {number + 1}: {', '.join(f'{side} {each[-1]:,.0f}' for side, each in speeds.items())}", flush=True
        )
    one, two = (speeds[side] for side in SIDES)
    ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
    for side, each in speeds.items():
        print(f"{side}: {statistics.median(each):,.0f} images a second (median)")
    print(f"ratio {ratio:.2f}")


def measured(settings: list[str]) -> float:
    """Train a run in a process and a folder of its own, and return its images a second."""
    command = [sys.executable, "-m", "eagleray", "train", "--plain", *settings]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (rows,) = Path(folder).glob("runs/*/*/metrics.jsonl")
        return json.loads(rows.read_text().splitlines()[-1])["metrics"]["images_per_second"]


if __name__ == "__main__":
    main()
