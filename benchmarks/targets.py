"""What do the targets of data2vec and I-JEPA tell of an image, before training and after?

    python benchmarks/targets.py RUN [RUN ...] [--out rows.csv]

The teacher's targets of 1,000 validation images, each of mean square 1, are split in three: their mean over images at
each place (`place`: it can be predicted without an image), what all patches of an image have in common beside that
(`image`), and the rest (`patch`). RUN is the directory of a finished run, or of a trial of a sweep.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from reconstruction import normalised
from rows import written
from torch import Tensor
from torch.nn import functional as F

from eagleray.contracts.method import Method
from eagleray.runs.assemble import build_method
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run, restored
from eagleray_methods.data2vec import Data2Vec, average_normalised
from eagleray_methods.ijepa import IJEPA

HEAD = ("method", "seed", "epochs", "place", "image", "patch")
IMAGES = 1000


def targets_of(method: Method, images: Tensor) -> Tensor:
    """Return the targets of all patches of images, [N, L, D], of mean square 1."""
    if isinstance(method, Data2Vec):
        blocks = method.teacher.block_tokens(method.teacher.patches(images), method.blocks)
        return average_normalised([block[:, 1:] for block in blocks])
    if not isinstance(method, IJEPA):
        sys.exit(f"{type(method).__name__} has no targets of patches: name runs of data2vec or ijepa")
    whole = method.teacher.tokens(method.teacher.patches(images))[:, 1:]
    return F.layer_norm(whole, whole.shape[-1:])


def shares(targets: Tensor) -> tuple[float, float, float]:
    """Split the mean square of targets [N, L, D] into that of places, of images, and of the rest."""
    place = targets.mean(0)
    image = (targets - place).mean(1)
    rest = targets - place - image[:, None]
    first, second, third = (float(part.square().mean()) for part in (place, image, rest))
    return first, second, third


def rows_of(directory: Path) -> Iterator[tuple[str | int | float, ...]]:
    """Yield the shares of a run with the weights it began with, and with those it has now."""
    run = recorded_run(Record.open(directory))
    trained = restored(run, directory)
    assert trained.data.validation is not None
    assert run.epochs is not None
    images = normalised(trained.data, trained.data.validation)[:IMAGES]
    for epochs, method in ((0, build_method(run, trained.data.info)), (run.epochs, trained.method)):
        method.eval()
        with torch.no_grad():
            targets = torch.cat([targets_of(method, part) for part in images.split(100)])
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
