"""Accuracy of a method's own classifier, on unseen images."""

from typing import ClassVar

from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.features import accuracy
from eagleray.contracts.metric import Metric


class Accuracy(Evaluator):
    """Accuracy of the method's own classifier."""

    metrics: ClassVar[dict[str, Metric]] = {
        "accuracy": Metric(
            "share of the images that the method's own classifier classifies right",
            "higher",
            needs=frozenset({"labels", "classifier"}),
            interval="wilson",
            headline=True,
        )
    }

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        return {"accuracy": accuracy(encodings.logits.features.argmax(1), encodings.logits.targets())}
