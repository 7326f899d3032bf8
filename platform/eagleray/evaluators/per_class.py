"""What the linear probe gets right of each class, and which classes it takes for each other."""

import io
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.files import as_csv
from eagleray.contracts.interval import of_mean, wilson
from eagleray.contracts.metric import Metric, Need, When
from eagleray.evaluators.linear import train_probe

LABELS: frozenset[Need] = frozenset({"labels"})
TOLD = 5  # confusions that are put into words
NAMED = 50  # classes whose names the picture has room for


class PerClass(Evaluator):
    """Accuracy of the linear probe for each class, and the classes that it confuses."""

    metrics: ClassVar[dict[str, Metric]] = {
        "balanced_accuracy": Metric(
            "accuracy of the linear probe, averaged over the classes", "higher", needs=LABELS, interval="own"
        ),
        "worst_class": Metric(
            "the lowest accuracy of the linear probe on a class",
            "higher",
            needs=LABELS,
            no_interval="which class is the worst is chance, too; the table has an interval for each",
        ),
    }
    when: ClassVar[When] = "never"  # it fits the probe again

    def __call__(self, encodings: Encodings) -> Found:
        evaluated = encodings.evaluated
        probe = train_probe(encodings.train, encodings.validation, seed=encodings.seed)
        predicted, truth = probe.predict(evaluated.features), evaluated.targets()
        names = encodings.data.class_names or tuple(map(str, range(1 + int(max(predicted.max(), truth.max())))))
        return per_class(confusion(predicted, truth, len(names)), names)


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count images by class and predicted class, int64 [classes, classes]: a row for each true class."""
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes).cpu()


def per_class(counts: Tensor, names: Sequence[str]) -> Found:
    """Return what a confusion matrix tells of each class.

    Args:
        counts: as `confusion` returns them.
        names: of the classes.

    Returns:
        The mean of the accuracies of all classes that have images, and the lowest of them; the table of these classes,
        the worst first; the most frequent confusions in words; the matrix as CSV and as a picture.
    """
    images, right = counts.sum(1), counts.diagonal()
    known = [place for place, count in enumerate(images.tolist()) if count]
    shares = {place: int(right[place]) / int(images[place]) for place in known}
    spans = {place: wilson(shares[place], int(images[place])) for place in known}
    rows = [
        [names[place], int(images[place]), shares[place], *spans[place]]
        for place in sorted(known, key=shares.__getitem__)
    ]
    matrix = [["class", *names], *([name, *row] for name, row in zip(names, counts.tolist(), strict=True))]
    return Found(
        {"balanced_accuracy": sum(shares.values()) / len(known), "worst_class": min(shares.values())},
        images=int(images.sum()),
        intervals={"balanced_accuracy": of_mean((shares[place], spans[place]) for place in known)},
        words=confusions(counts, names),
        tables={"per_class": [["class", "images", "right", "low", "high"], *rows]},
        files={"confusion.csv": as_csv(matrix).encode(), "confusion.png": drawn(counts, names)},
    )


def confusions(counts: Tensor, names: Sequence[str]) -> list[str]:
    """Say which classes are confused most often, by the share of the true class."""
    wrong = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    wrong.fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:TOLD].tolist()
    pairs = [(place // len(names), place % len(names)) for place in order]
    return [
        f"{names[true]} is taken for {names[said]}: {counts[true, said]} of {counts[true].sum()} images "
        f"({wrong[true, said]:.0%})"
        for true, said in pairs
        if wrong[true, said] > 0
    ]


def drawn(counts: Tensor, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix as shares of each true class, as a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    side = 2 + 0.45 * min(len(names), NAMED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # $ in the name of a class is a dollar
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # of a script that the font lacks
        axes = figure.add_subplot()
        image = axes.imshow(shares.numpy(), cmap="viridis", vmin=0, vmax=1)
        if len(names) <= NAMED:
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("class that the linear probe says")
        axes.set_ylabel("true class")
        figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
