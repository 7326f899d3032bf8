"""The classifier that a method trains from labels, on images that it has not seen."""

from typing import ClassVar

from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.features import accuracy
from eagleray.contracts.metric import Metric


class Accuracy(Evaluator):
    """The method's own classifier."""

    metrics: ClassVar[dict[str, Metric]] = {
        "accuracy": Metric(
            "share of the images that the method's own classifier gets right",
            "higher",
            frozenset({"labels", "classifier"}),
            headline=True,
        )
    }

    def __call__(self, given: Encodings) -> dict[str, float]:
        return {"accuracy": accuracy(given.logits.features.argmax(1), given.logits.targets())}
