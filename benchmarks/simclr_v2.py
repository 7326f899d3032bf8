"""Measure what unlabelled images are worth beside a few labels: SimCLR v2's three steps.

    python benchmarks/simclr_v2.py FOLDER [--epochs 10 50] [--seeds 2] [--runs FOLDER] [--out simclr_v2.csv]

For each number of epochs and each seed: SimCLR v2 is pretrained on all images, fine-tuned for ten epochs to
`labels.per_class=40`, and distilled for ten epochs into a new student; beside it the labels alone, trained for as many
epochs as the pretraining took. FOLDER has images in class folders. A row of the CSV is one run: its step, the epochs of
pretraining, its seed, and its last metrics. Seeds run side by side, one process and one thread each.
"""

import argparse
import csv
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import eagleray

METRICS = ("accuracy", "test_accuracy", "linear", "test_linear", "knn", "test_knn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[10, 50], help="of pretraining, and of the labels alone"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are recorded")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.seeds) as processes:
        steps = partial(steps_of, arguments.folder, arguments.epochs, arguments.runs)
        rows = [row for rows in processes.map(steps, range(arguments.seeds)) for row in rows]
    for row in rows:
        print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()))
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", "epochs", "seed", *METRICS], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def steps_of(folder: Path, epochs: list[int], runs: Path, seed: int) -> list[dict[str, Any]]:
    """Train all steps with one seed."""
    return [row for each in epochs for row in _steps(folder, each, runs, seed)]


def _steps(folder: Path, epochs: int, runs: Path, seed: int) -> Iterator[dict[str, Any]]:
    shared = {
        "data": {"name": "folder", "root": str(folder)},
        "seed": seed,
        "batch_size": 128,
        "threads": 1,
        "tracking": {"experiment": "simclr_v2", "runs": str(runs)},
    }
    few = {"epochs": 10, "labels": {"per_class": 40}}

    def trained(step: str, **settings: Any) -> tuple[dict[str, Any], str]:
        directory = runs / "simclr_v2" / f"{step}-{epochs}-{seed}".replace(" ", "-")
        result = eagleray.train({**shared, **settings}, directory)
        measured = {name: result.metrics[name] for name in METRICS if name in result.metrics}
        return {"step": step, "epochs": epochs, "seed": seed, **measured}, str(result.directory)

    row, pretrained = trained("pretrained", method="simclr_v2", epochs=epochs)
    yield row
    one_rate = {"method": {"name": "finetune", "classifier_lr": 1}, "optimizer": {"lr": 5e-4}}  # of all layers
    encoder = {"name": "pretrained", "run": pretrained}
    row, tuned = trained("fine-tuned", encoder=encoder, **one_rate, **few)
    yield row
    yield trained("distilled", method={"name": "distillation", "teacher": tuned}, **few)[0]
    yield trained("labels alone", method="supervised", **{**few, "epochs": epochs})[0]


if __name__ == "__main__":
    main()
