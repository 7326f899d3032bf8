"""Is it what a task shows, or what it asks? For pretext tasks: labels on the very images that they show the encoder.

    python benchmarks/shown.py FOLDER [--methods count "jigsaw method.one_channel=0"] [--seeds 2] [--out rows.csv]

A run draws the task's views, tiles and greys as the task does, and encodes them. In place of the task's question, a
linear layer on each feature is asked for the class of the image it comes from, with the labels of all images; the
recipe stays that of the task. If even labels learn little, the images that are shown are a limit; if they learn much
more than the task, these are not what holds it. It is evaluated as every run, on whole images. FOLDER has `train`,
`val` and `test`, with images in class folders.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rows import written
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.blocks.losses import precise
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, Progress, StepResult
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.loop import train
from eagleray.runs.assemble import Assembly, assemble, images_of

# Those that show the encoder one image, or the tiles of one image after those of another.
METHODS = ("jigsaw", "context_prediction", "count", "colorization", "exemplar")


class Asked(nn.Module):
    """A method's forward pass, of which only the encoded images are used: to learn classes from.

    Args:
        method: encodes images, k for each of the batch, in their order.
        classifier: of their features.
        labels: of the training images, [images].
    """

    def __init__(self, method: Method, classifier: nn.Module, labels: Tensor):
        super().__init__()
        self.method, self.classifier, self.labels = method, classifier, labels

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        features, targets = self.shown(batch, progress)
        return StepResult(F.cross_entropy(precise(self.classifier(features)), targets), [features.detach()])

    def shown(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return the features of all encoded images, [N k, D], and the labels of those they come from, [N k]."""
        encoded: list[Tensor] = []
        with self.method.encoder.register_forward_hook(lambda *call: encoded.append(call[2])):
            self.method(batch, progress)
        (features,) = encoded
        return features, self.labels[batch.indices].repeat_interleave(len(features) // len(batch.indices))


def asked_for_labels(*arguments: Any, **settings: Any) -> Assembly:
    """Build a run whose method is asked for labels."""
    built = assemble(*arguments, **settings)
    if built.data.train.labels is None or (built.data.train.labels < 0).any():
        raise ConfigError("not all training images have a class: take a folder of class folders, without `unlabelled`")
    method, labels = built.method, torch.as_tensor(built.data.train.labels).to(built.device)
    classifier = nn.Linear(method.encoder.dim, int(labels.max()) + 1).to(built.device)
    method.add_module("classifier_of_labels", classifier)  # so that it is trained
    return replace(built, forward=Asked(method, classifier, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="*", default=METHODS, help="each with settings, if any, after spaces")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if other := [name for name in a.methods if name.split()[0] not in METHODS]:
        parser.error(f"--methods {other[0]}: takes {', '.join(METHODS)}")
    shared = ["data=folder", f"data.root={a.folder}", f"epochs={a.epochs}", f"evaluate.every={a.epochs}"]
    with written(a.out, "method", "seed", "linear", "knn") as add, tempfile.TemporaryDirectory() as scratch:
        for name in a.methods:
            for seed in range(a.seeds):
                settings = [*shared, *f"method={name}".split(), f"seed={seed}", "batch_size=128", "threads=1"]
                run, directory = load_run(None, settings), Path(scratch) / f"{name}-{seed}"
                *_, last = train(run, directory, data=images_of(run), build=asked_for_labels)
                add(name, seed, last.metrics["linear"], last.metrics["knn"])


if __name__ == "__main__":
    main()
