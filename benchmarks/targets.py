"""What do the targets of data2vec and I-JEPA tell of an image, before training and after?

    python benchmarks/targets.py RUN [RUN ...] [--out rows.csv]

The teacher's targets of 1,000 validation images, each of mean square 1, are split in four: their mean (`constant`), how
places differ from it (`place`: this can be predicted without an image), what all patches of an image have in common
beside these (`image`), and the rest (`patch`). RUN is the directory of a finished run, or of a trial of a sweep.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from reconstruction import normalised
from rows import written
from torch import Tensor

from eagleray.runs.assemble import build_method
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run, restored
from eagleray_methods.data2vec import Data2Vec
from eagleray_methods.ijepa import IJEPA

METHODS = ("data2vec", "ijepa")
HEAD = ("method", "seed", "epochs", "constant", "place", "image", "patch")
IMAGES = 1000


def shares(targets: Tensor) -> tuple[float, float, float, float]:
    """Split the mean square of targets [N, L, D]: of their mean, of places, of images, and of the rest."""
    mean = targets.mean((0, 1))
    place = targets.mean(0) - mean
    image = (targets - mean - place).mean(1, keepdim=True)
    rest = targets - mean - place - image
    first, second, third, fourth = (float(part.square().mean()) for part in (mean, place, image, rest))
    return first, second, third, fourth


def rows_of(directory: Path) -> Iterator[tuple[str | int | float, ...]]:
    """Yield the shares of a run with the weights it began with, and with those it has now."""
    run = recorded_run(Record.open(directory))
    if run.method.name not in METHODS:
        sys.exit(f"{directory}: {run.method.name} has no targets of patches; name runs of {' or '.join(METHODS)}")
    trained = restored(run, directory)
    assert trained.data.validation is not None
    assert run.epochs is not None
    images = normalised(trained.data, trained.data.validation)[:IMAGES]
    for epochs, method in ((0, build_method(run, trained.data.info)), (run.epochs, trained.method)):
        assert isinstance(method, (Data2Vec, IJEPA))
        method.eval()
        targets = torch.cat([method.target_features(x) for x in images.split(100)])
        yield run.method.name, run.seed, epochs, *shares(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    with written(a.out, *HEAD) as add:
        for directory in a.runs:
            for row in rows_of(directory):
                add(*row)


if __name__ == "__main__":
    main()
