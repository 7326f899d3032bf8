"""Train the same run again, in parts, and on several workers; it must come out the same.

    python chaos/repetition.py [--seeds 3] [--resumes 20] [--out repetition.csv]

`same seed`: the run once more. `resumed`: stopped after a random step, of which it has a checkpoint, and continued.
Both must end with weights, optimizer state and rows that are equal to the last bit. `2 workers`, `4 workers`: sums over
workers are rounded in another order, so the weights may differ; the largest difference is printed beside the largest
weight, and kNN must stay within `--knn` of that of one process.
"""

import argparse
import random
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

from observed import TINY, concluded, differences, leaves, rows

from eagleray.config import Run, load_run
from eagleray.loop import train
from eagleray.ray_backend.cluster import connected
from eagleray.ray_backend.workers import group
from eagleray.runs.checkpoint import last_state
from eagleray.runs.record import Record
from eagleray.runs.writer import recorded

SETTINGS = [*TINY, "data.limit=192", "encoder.width=8", "method.hidden=64", "method.projection=32", "epochs=3",
            "checkpoints.every_steps=1"]  # fmt: skip
STEPS = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resumes", type=int, default=20)
    parser.add_argument("--knn", type=float, default=0.05, help="how far kNN of several workers may be off")
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--out", type=Path, help="where to write a row for each repetition, as CSV")
    given = parser.parse_args()
    found, draw = list[dict[str, Any]](), random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(given.seeds):
            one = alone(run_of(seed), folder / f"{seed}")
            again = alone(run_of(seed), folder / f"{seed}-again")
            found.append({"kind": "same seed", "seed": seed, "broken": differences(one, again)})
        for number in range(given.resumes):
            seed, step = number % given.seeds, draw.randrange(1, STEPS)
            place = folder / f"{number}-resumed"
            alone(run_of(seed), place, stop=step)
            wrong = differences(folder / f"{seed}", alone(run_of(seed), place))
            found.append({"kind": "resumed", "seed": seed, "step": step, "broken": wrong})
        for workers in given.workers:
            with connected(None):
                for seed in range(given.seeds):
                    other = together(run_of(seed, workers), folder / f"{seed}-{workers}")
                    found.append({"kind": f"{workers} workers", "seed": seed, **apart(folder / f"{seed}", other)})
                    off = found[-1]["knn"] > given.knn
                    found[-1]["broken"] = f"kNN is off by {found[-1]['knn']}" if off else ""
    for kind in dict.fromkeys(row["kind"] for row in found):
        own = [row for row in found if row["kind"] == kind]
        far = f"; weights differ by {max(row['weights'] for row in own):.1e} at most" if "weights" in own[0] else ""
        print(f"{kind}: {len(own)}, broken: {sum(bool(row['broken']) for row in own)}{far}")
    concluded(found, given.out)


def run_of(seed: int, workers: int = 1) -> Run:
    return load_run(None, [*SETTINGS, f"seed={seed}", f"workers={workers}"])


def alone(run: Run, place: Path, stop: int | None = None) -> Path:
    """Train or continue a run in this process, up to a step or to its end."""
    record = Record.create(place, name=place.name, experiment="chaos", params={}, run=run.file())
    reports = recorded(train(run, place), record)
    for _ in takewhile(lambda report: report.progress.step != stop, reports):
        continue
    return place


def together(run: Run, place: Path) -> Path:
    """Train a run on several workers, which share this machine's cores."""
    Record.create(place, name=place.name, experiment="chaos", params={}, run=run.file())
    for _ in group(run, place, cpus=1 / run.workers, gpus=0):
        continue
    return place


def apart(one: Path, other: Path) -> dict[str, float]:
    """Return how far two runs are apart: the largest difference of a weight, the largest weight, that of kNN."""
    pairs = list(zip(leaves(last_state(one)["method"]), leaves(last_state(other)["method"]), strict=True))
    floats = [(a.double(), b.double()) for (_, a), (_, b) in pairs if a.is_floating_point()]
    return {
        "weights": max(float((a - b).abs().max()) for a, b in floats),
        "largest": max(float(a.abs().max()) for a, _ in floats),
        "knn": round(abs(rows(one)[-1]["knn"] - rows(other)[-1]["knn"]), 4),
    }


if __name__ == "__main__":
    main()
