"""Weighted k nearest neighbours; nothing is trained."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.features import Features, accuracy
from eagleray.contracts.metric import Metric

BLOCK = 2**24  # similarities formed at a time: 64 MB


class KNN(Evaluator):
    """Weighted k nearest neighbours on frozen features."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How neighbours vote."""

        k: Annotated[int, Field(ge=1, description="neighbours; bounded by the data")] = 200
        temperature: Annotated[float, Field(gt=0, description="of the votes: low, and near neighbours decide")] = 0.07

    metrics: ClassVar[dict[str, Metric]] = {
        "knn": Metric(
            "share of the images that a vote of their nearest training images classifies right",
            "higher",
            needs=frozenset({"labels"}),
            headline=True,
        )
    }
    config: Config

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        return knn(encodings.train, encodings.evaluated, k=self.config.k, temperature=self.config.temperature)


def knn(train: Features, test: Features, *, k: int = 200, temperature: float = 0.07) -> dict[str, float]:
    """Compute the accuracy of weighted kNN.

    On L2-normalised features. Each of the k training images most similar to a test image votes for its class with
    weight

        exp( cos(train image, test image) / T )

    and the class with the most votes wins; if votes are equal, the lower label. Everything is exact float32: bf16
    similarities tie and change the result.

    Args:
        k: number of neighbours; all training images if there are fewer.
        temperature: T above.

    Returns:
        {"knn": share of the test images that are classified right}

    Raises:
        ConfigError: no labels or no images.

    Source: Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, section 3.4,
    https://arxiv.org/abs/1805.01978
    """
    labels, truth = train.targets(), test.targets()
    bank, queries = F.normalize(train.features), F.normalize(test.features)
    blocks = queries.split(max(1, BLOCK // len(bank)))
    predicted = torch.cat([_vote(block @ bank.T, labels, min(k, len(bank)), temperature) for block in blocks])
    return {"knn": accuracy(predicted, truth)}


def _vote(similarities: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """Predict labels: [n, bank] similarities -> [n]."""
    nearest, index = similarities.topk(k)  # [n, k], most similar first
    weights = ((nearest - nearest[:, :1]) / temperature).exp()  # the nearest has weight 1: nothing overflows
    votes = weights.new_zeros(len(weights), int(labels.max()) + 1)
    return votes.scatter_add_(1, labels[index], weights).argmax(1)
