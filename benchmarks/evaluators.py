"""Time every evaluator, and the whole default set, on features of 10,000 to 60,000 images.

    python benchmarks/evaluators.py [--images 10000 30000 60000] [--width 512] [--rounds 3]
        [--out docs/results/evaluators.csv]

Ten classes are clusters in noise; a tenth of the images is evaluated and the others train, as by default. Features are
given, and the logits of a classifier, so encoding costs nothing, and evaluators that encode other images than these are
left out. Each time is the shortest of several rounds, on all cores; seconds of cores are told beside, as those of a
busy machine mean more. kNN costs the product of both parts, up to the 10,000 images that it classifies at most; all
others are linear or constant. The exit status is 1 if the default set takes longer than 15 s.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eagleray.config.metrics import needs
from eagleray.config.registry import Declaration, declared
from eagleray.config.sections import evaluator_settings
from eagleray.contracts.features import SAMPLES, Features, evenly

LONGEST = 15.0  # seconds of the default set
CLASSES = 10
HEADS = ("images", "evaluator", "default", "seconds", "seconds_of_cores")


class NeedsImages(Exception):
    """An evaluator asks for what only images give."""


class Data:
    """Stands for the images of a run."""

    validation = "held out"
    class_names = tuple(f"class {number}" for number in range(CLASSES))

    def __getattr__(self, name: str) -> Any:
        raise NeedsImages(name)


@dataclass
class Drawn:
    """The `Encodings` of images that were never seen."""

    images: int
    width: int
    seed: int = 0
    image_size: int = 32
    data: Any = field(default_factory=Data)
    method: Any = None
    validation: Features | None = None

    @cached_property
    def train(self) -> Features:
        return clusters(self.images * 9 // 10, self.width, seed=1)

    @cached_property
    def evaluated(self) -> Features:
        return clusters(self.images // 10, self.width, seed=2)

    @cached_property
    def untrained(self) -> Features:
        return clusters(min(SAMPLES, self.images // 10), self.width, seed=4)

    @cached_property
    def logits(self) -> Features:
        return guessed(self.images // 10, seed=5)

    @cached_property
    def guesses(self) -> Features:
        return guessed(min(SAMPLES, self.images * 9 // 10), seed=6)

    @cached_property
    def errors(self) -> Features:
        return clusters(self.images // 10, 1, seed=7)

    @cached_property
    def seen_errors(self) -> Features:
        return clusters(min(SAMPLES, self.images * 9 // 10), 1, seed=8)

    @cached_property
    def noise(self) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(3)
        return [0.3 * torch.randn(self.images // 10, self.width, generator=draw) for _ in range(9)]

    def views(self, views: Sequence[Any], most: int) -> list[Features]:
        chosen = evenly(torch.arange(self.images // 10), most)
        some = self.evaluated.at(chosen)
        return [Features(some.features + one[chosen], some.labels) for one in self.noise[: len(views)]]

    def __getattr__(self, name: str) -> Any:
        raise NeedsImages(name)


def clusters(count: int, width: int, seed: int) -> Features:
    """Draw Gaussian clusters in noise that falls over the dimensions, as the spectrum of real features does."""
    draw = torch.Generator().manual_seed(99)
    centres = torch.randn(CLASSES, width, generator=draw)
    draw.manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    noise = torch.randn(count, width, generator=draw)
    return Features((0.1 * centres[labels] + noise) * torch.arange(1, width + 1) ** -0.5, labels)


def guessed(count: int, seed: int) -> Features:
    """Draw the logits of a classifier that is often right, [count, 10], and the classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return Features(2 * torch.randn(count, CLASSES, generator=draw) + 4 * torch.eye(CLASSES)[labels], labels)


def seconds(some: Sequence[Declaration], encodings: Drawn, rounds: int) -> tuple[float, float]:
    """Return the shortest time that evaluators take together, of some rounds, and the shortest of all cores together.

    As at every evaluation the features are new, and the untrained network's are known.

    Raises:
        NeedsImages: it cannot work on features alone.
    """
    evaluators, times = [one.load()(evaluator_settings(one)()) for one in some], list[tuple[float, float]]()
    _ = encodings.untrained.spectra
    for _ in range(rounds):
        vars(encodings.evaluated).pop("spectra", None)
        began, used = time.perf_counter(), time.process_time()
        for evaluator in evaluators:
            evaluator(encodings)
        times.append((time.perf_counter() - began, time.process_time() - used))
    return min(wall for wall, _ in times), min(cores for _, cores in times)


def measured(images: int, width: int, rounds: int) -> list[list[Any]]:
    """Return a row for each evaluator, and one for the default set."""
    encodings, rows = Drawn(images, width), list[list[Any]]()
    _ = encodings.train, encodings.evaluated, encodings.noise, encodings.logits, encodings.guesses
    default = list[Declaration]()
    for name, one in declared("evaluator").items():
        if "stages" in needs(one):  # of the network, not of its features
            continue
        try:
            rows.append([images, name, one.values["when"] != "never", *seconds([one], encodings, rounds)])
        except NeedsImages:
            print(f"{name} works on images, so it is left out", file=sys.stderr)
            continue
        default += [one] if rows[-1][2] else []
        _say(rows[-1])
    rows.append([images, "default set", True, *seconds(default, encodings, rounds)])
    _say(rows[-1])
    return rows


def _say(row: Sequence[Any]) -> None:
    print(f"{row[0]:>8,}  {row[1]:<14}{row[3]:>8.2f} s  {row[4]:>8.2f} s of cores", flush=True)


def main() -> None:
    arguments = _arguments()
    rows = [row for images in arguments.images for row in measured(images, arguments.width, arguments.rounds)]
    least, most = min(arguments.images), max(arguments.images)
    of_cores = {(row[0], row[1]): row[4] for row in rows}
    for name in dict.fromkeys(row[1] for row in rows) if most > least else ():
        grown = of_cores[most, name] / of_cores[least, name]
        print(f"{name:<14} {grown:.1f} times the seconds of cores for {most / least:.1f} times the images")
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(HEADS)
            table.writerows([*row[:2], "yes" if row[2] else "no", *(f"{time:.3f}" for time in row[3:])] for row in rows)
    sys.exit(max(row[3] for row in rows if row[1] == "default set") > LONGEST)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 30_000, 60_000])
    parser.add_argument("--width", type=int, default=512, help="features of an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the rows as CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
