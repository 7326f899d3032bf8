"""Calibration: how far the confidence of a method's own classifier can be believed.

Guo et al. 2017, https://arxiv.org/abs/1706.04599
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found, Table
from eagleray.contracts.features import intervals
from eagleray.contracts.interval import Interval, wilson
from eagleray.contracts.metric import Metric

HEADS = ("above", "up_to", "images", "confidence", "right", "low", "high")


class Calibration(Evaluator):
    """Expected calibration error of the method's own classifier, and the accuracy at each confidence."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How confidences are grouped."""

        bins: Annotated[int, Field(ge=1, le=1000, description="bins of equal width between confidence 0 and 1")] = 15

    metrics: ClassVar[dict[str, Metric]] = {
        "ece": Metric(
            "how far the confidence of the method's own classifier is from its accuracy, over bins of confidence; of "
            "few images too high",
            "lower",
            caution="it says how far confidence can be believed, not how often the classifier is right; chance adds to "
            "it, the more the fewer images there are, so compare equal numbers of them",
            needs=frozenset({"labels", "classifier"}),
            interval="own",
        )
    }
    config: Config

    def __call__(self, encodings: Encodings) -> Found:
        logits = encodings.logits
        confidence, guess = logits.features.double().softmax(1).max(1)
        confidence, right = confidence.cpu(), (guess == logits.targets()).double().cpu()  # GPUs add up in any order
        places = bins(confidence, self.config.bins)
        return Found(
            {"ece": calibration_error(confidence, right, places).item()},
            images=len(logits),
            intervals=interval(confidence, right, places),
            tables={"calibration": table(confidence, right, places, self.config.bins)},
        )


def bins(confidence: Tensor, count: int) -> Tensor:
    """Return the bin of each confidence, int64 [N]: bin m has those above m / count, up to (m + 1) / count."""
    edges = torch.arange(1, count, dtype=confidence.dtype) / count
    return torch.bucketize(confidence, edges)


def calibration_error(confidence: Tensor, right: Tensor, places: Tensor) -> Tensor:
    """Compute the expected calibration error (equation 3): sum over bins B of |sum over B of (right - confidence)| / N.

    Args:
        confidence: of each guess, float64 [N].
        right: 1 for a right guess, else 0, [N].
        places: as `bins` returns them.
    """
    return _sums(right - confidence, places).abs().sum() / len(right)


def interval(confidence: Tensor, right: Tensor, places: Tensor) -> dict[str, Interval]:
    """Return the interval of the error, none of a single image.

    It is that of a mean, since of each bin only the sign depends on other images. Chance makes the error of a bin too
    large, as deviations do not cancel in |x|: by at most sqrt(2 / pi) standard errors, which a normal x of mean 0
    reaches. So the interval reaches down by as much further, and holds the truth more often than it promises.
    """
    gaps = right - confidence
    of_bins = _sums(gaps, places)
    known = intervals({"ece": (of_bins.abs().sum() / len(gaps)).item()}, {"ece": of_bins.sign()[places] * gaps})
    by_chance = math.sqrt(2 / math.pi) * _sums(gaps.square(), places).sqrt().sum().item() / len(gaps)
    return {name: (max(0.0, low - by_chance), min(1.0, high)) for name, (low, high) in known.items()}


def table(confidence: Tensor, right: Tensor, places: Tensor, count: int) -> Table:
    """Return the bins that have images, with the interval of each one's accuracy."""
    images, certain, hits = (_sums(each, places).tolist() for each in (torch.ones_like(right), confidence, right))
    rows = [
        [place / count, (place + 1) / count, int(n), certain[place] / n, hits[place] / n, *wilson(hits[place] / n, n)]
        for place, n in enumerate(images)
        if n
    ]
    return [HEADS, *rows]


def _sums(values: Tensor, places: Tensor) -> Tensor:
    """Return the sum of the values in each bin, up to the last that has images."""
    return torch.bincount(places, values)
