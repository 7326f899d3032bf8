"""How well a method reproduces images that it was not trained on, beside those that it was."""

from typing import ClassVar

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import intervals
from eagleray.contracts.metric import Metric, Need

SCALES = "errors of different methods and settings have different scales"
NEEDS = frozenset[Need]({"error"})


class Unseen(Evaluator):
    """Reconstruction errors, or energies, of training images and of unseen ones: equal if none is memorised."""

    metrics: ClassVar[dict[str, Metric]] = {
        "seen_error": Metric(
            "the method's own error on training images, as they are evaluated: of reconstruction, or an energy",
            "lower",
            no_goal=SCALES,
            needs=NEEDS,
            interval="own",
        ),
        "unseen_error": Metric(
            "the same on held-out images: above that on training images, these are memorised",
            "lower",
            no_goal=SCALES,
            needs=NEEDS,
            interval="own",
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        errors = {"seen_error": encodings.seen_errors.features[:, 0].double()}
        if encodings.data.validation is not None:  # else all images are trained on
            errors["unseen_error"] = encodings.errors.features[:, 0].double()
        means = {name: each.mean().item() for name, each in errors.items()}
        return Found(
            means, images={name: len(each) for name, each in errors.items()}, intervals=intervals(means, errors)
        )
