"""Retrieval: how many of the most similar training images are of the same class."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import Features, evenly, intervals
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
            "share of the most similar training images that are of the same class",
            "higher",
            needs=LABELS,
            interval="wilson",
        ),
        "precision_at_10": Metric("the same of the ten most similar ones", "higher", needs=LABELS, interval="own"),
        "mean_average_precision": Metric(
            "mean average precision (mAP) of all training images, in order of similarity",
            "higher",
            needs=LABELS,
            interval="own",
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        evaluated = encodings.evaluated
        asking = evenly(torch.arange(len(evaluated), device=evaluated.features.device), self.config.queries)
        answers = retrieval(encodings.train, evaluated.at(asking))
        if not len(answers["precision_at_1"]):
            return Found({}, images=0)
        means = {name: values.mean().item() for name, values in answers.items()}
        own = {name: values for name, values in answers.items() if self.metrics[name].interval == "own"}
        return Found(means, images=len(answers["precision_at_1"]), intervals=intervals(means, own))


def retrieval(train: Features, queries: Features) -> dict[str, Tensor]:
    """Compute precision at 1 and 10 and average precision of every query.

    Training images are sorted by the cosine of their features with a query's; those of its class are relevant.

        average precision = mean over the relevant images of the precision down to their rank

    A query of a class without training images is left out. Equal similarities stay in the order of the training set.

    Args:
        train: the images to find, with labels.
        queries: the images that ask, with labels.

    Returns:
        {"precision_at_1": …, "precision_at_10": …, "mean_average_precision": …}, float64 [queries] from 0 to 1, whose
        means are the metrics. Of fewer than ten training images, all count.

    Raises:
        ConfigError: no labels or no images.

    Source: Manning, Raghavan, Schütze 2008, Introduction to Information Retrieval, section 8.4.
    """
    labels, asked = train.targets(), queries.targets()
    known = torch.isin(asked, labels)
    bank, points, asked = F.normalize(train.features), F.normalize(queries.features[known]), asked[known]
    size = max(1, BLOCK // len(bank))
    blocks = zip(points.split(size), asked.split(size), strict=True)
    found = torch.cat([_ranked(block @ bank.T, labels, these) for block, these in blocks], 1)
    return dict(zip(Retrieval.metrics, found, strict=True))


def _ranked(similarities: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Return each query's precision at 1 and 10 and average precision, float64 [3, n]."""
    order = similarities.sort(dim=1, descending=True, stable=True).indices
    relevant = (labels[order] == asked[:, None]).double()
    rank = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    precision = relevant.cumsum(1) / rank
    average = (precision * relevant).sum(1) / relevant.sum(1)
    return torch.stack([relevant[:, 0], relevant[:, :10].mean(1), average])
