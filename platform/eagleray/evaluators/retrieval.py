"""Retrieval: how many of the most similar training images are of the same class."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.features import Features, evenly
from eagleray.contracts.metric import Metric, Need, When

BLOCK = 2**24  # similarities sorted at a time: 64 MB
LABELS: frozenset[Need] = frozenset({"labels"})


class Retrieval(Evaluator):
    """Retrieval of training images of the same class by the cosine of frozen features."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How many images ask."""

        queries: Annotated[int, Field(ge=1, description="evaluated images that ask, evenly spaced; at most all")] = 1000

    config: Config
    when: ClassVar[When] = "never"  # it sorts all training images for each query

    metrics: ClassVar[dict[str, Metric]] = {
        "precision_at_1": Metric(
            "share of the most similar training images that are of the same class", "higher", needs=LABELS
        ),
        "precision_at_10": Metric("the same of the ten most similar ones", "higher", needs=LABELS),
        "mean_average_precision": Metric(
            "mean average precision (mAP) of all training images, in order of similarity", "higher", needs=LABELS
        ),
    }

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        evaluated = encodings.evaluated
        asking = evenly(torch.arange(len(evaluated), device=evaluated.features.device), self.config.queries)
        return retrieval(encodings.train, evaluated.at(asking))


def retrieval(train: Features, queries: Features) -> dict[str, float]:
    """Compute precision at 1 and 10 and mean average precision.

    Training images are sorted by the cosine of their features with a query's; those of its class are relevant.

        average precision = mean over the relevant images of the precision down to their rank

    A query of a class without training images is left out. Equal similarities stay in the order of the training set.

    Args:
        train: the images to find, with labels.
        queries: the images that ask, with labels.

    Returns:
        {"precision_at_1": …, "precision_at_10": …, "mean_average_precision": …}, from 0 to 1; nothing, if no query
        has a class of the training images. Of fewer than ten training images, all count.

    Raises:
        ConfigError: no labels or no images.

    Source: Manning, Raghavan, Schütze 2008, Introduction to Information Retrieval, section 8.4.
    """
    labels, asked = train.targets(), queries.targets()
    known = torch.isin(asked, labels)
    bank, points, asked = F.normalize(train.features), F.normalize(queries.features[known]), asked[known]
    if not len(asked):
        return {}
    size = max(1, BLOCK // len(bank))
    parts = [
        _ranked(points[start : start + size] @ bank.T, labels, asked[start : start + size])
        for start in range(0, len(asked), size)
    ]
    first, ten, average = torch.cat(parts, 1).mean(1).tolist()
    return {"precision_at_1": first, "precision_at_10": ten, "mean_average_precision": average}


def _ranked(similarities: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Return each query's precision at 1 and 10 and average precision, float64 [3, n]."""
    order = similarities.sort(dim=1, descending=True, stable=True).indices
    relevant = (labels[order] == asked[:, None]).double()
    rank = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    precision = relevant.cumsum(1) / rank
    average = (precision * relevant).sum(1) / relevant.sum(1)
    return torch.stack([relevant[:, 0], relevant[:, :10].mean(1), average])
