"""Balance of the classes that a method's own classifier guesses: a training may collapse to one class."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import intervals
from eagleray.contracts.metric import Metric, Need

CLASSIFIER: frozenset[Need] = frozenset({"classifier"})
SHOWS = "it shows collapse to few classes; guesses at random are balanced too"
# Of the entropy of the true classes, which is then that of one class with 96.5% of ten alike, or 98.7% of two.
ONE_CLASS = 0.1


class Balance(Evaluator):
    """How evenly the method's own classifier spreads the images over the classes."""

    metrics: ClassVar[dict[str, Metric]] = {
        "guess_entropy": Metric(
            "entropy of the mean prediction, as a share of the largest: 1 balanced, 0 all images in one class",
            "higher",
            no_goal=SHOWS,
            needs=CLASSIFIER,
            interval="own",
        ),
        "entropy_share": Metric(
            "the same as a share of the entropy of the true classes; below 0.1 nearly all images are given one class",
            "higher",
            no_goal=SHOWS,
            needs=CLASSIFIER,  # and left out without labels
            interval="own",
        ),
        "largest_class": Metric(
            "share of the images that are given the most frequent class",
            "lower",
            no_goal=SHOWS,
            needs=CLASSIFIER,
            interval="wilson",
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        logits = encodings.logits
        counts = torch.bincount(logits.features.argmax(1), minlength=logits.features.shape[1])
        scales = {"guess_entropy": math.log(logits.features.shape[1])}
        if logits.labels is not None:
            scales["entropy_share"] = entropy(torch.bincount(logits.labels).double() / len(logits))
        probabilities = logits.features.double().softmax(1)
        mean = probabilities.mean(0)
        found = {name: entropy(mean) / scale for name, scale in scales.items() if scale > 0}
        # By the derivative of the entropy, up to a constant.
        own = {name: -torch.special.xlogy(probabilities, mean).sum(1) / scales[name] for name in found}
        return Found(
            {**found, "largest_class": counts.max().item() / len(logits)},
            images=len(logits),
            intervals=intervals(found, own),
        )


def entropy(shares: Tensor) -> float:
    """Return the entropy of shares that add up to 1, in nats."""
    return torch.special.entr(shares).sum().item()
