"""Weighted k nearest neighbours; nothing is trained."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import Features, accuracy, evenly
from eagleray.contracts.metric import Metric, Need

BLOCK = 2**24  # similarities formed at a time: 64 MB
FIXED = (1, 5, 20)  # neighbours of knn_1, knn_5 and knn_20
LABELS: frozenset[Need] = frozenset({"labels"})


class KNN(Evaluator):
    """Weighted k nearest neighbours on frozen features, for several k."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How neighbours vote."""

        k: Annotated[int, Field(ge=1, description="neighbours of knn; bounded by the data")] = 200
        temperature: Annotated[float, Field(gt=0, description="of the votes: low, and near neighbours decide")] = 0.07
        queries: Annotated[int, Field(ge=1, description="evaluated images that are classified, evenly spaced")] = 10_000

    metrics: ClassVar[dict[str, Metric]] = {
        "knn": Metric(
            "share of the images that a vote of their nearest training images classifies right",
            "higher",
            needs=LABELS,
            interval="wilson",
            headline=True,
        ),
        "knn_1": Metric(
            "share of the images that the nearest training image classifies right",
            "higher",
            needs=LABELS,
            interval="wilson",
        ),
        "knn_5": Metric(
            "share of the images that a vote of the five nearest training images classifies right",
            "higher",
            needs=LABELS,
            interval="wilson",
        ),
        "knn_20": Metric(
            "share of the images that a vote of the twenty nearest training images classifies right",
            "higher",
            needs=LABELS,
            interval="wilson",
        ),
    }
    config: Config

    def __call__(self, encodings: Encodings) -> Found:
        asked = encodings.evaluated
        asked = asked.at(evenly(torch.arange(len(asked), device=asked.features.device), self.config.queries))
        found = knn(encodings.train, asked, [self.config.k, *FIXED], self.config.temperature)
        return Found(dict(zip(self.metrics, found, strict=True)), images=len(asked))


def knn(train: Features, test: Features, ks: Sequence[int] = (200,), temperature: float = 0.07) -> list[float]:
    """Compute the accuracy of weighted kNN for several k.

    On L2-normalised features. Each of the k training images most similar to a test image votes for its class with
    weight

        exp( cos(train image, test image) / T )

    and the class with the most votes wins; if votes are equal, the lower label. Everything is exact float32: bf16
    similarities tie and change the result. The similarities are formed once for all k.

    Args:
        train: the images that vote, with labels.
        test: the images to classify, with labels.
        ks: numbers of neighbours; all training images if there are fewer.
        temperature: T above.

    Returns:
        For each k the share of the test images that are classified right.

    Raises:
        ConfigError: no labels or no images.

    Source: Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, section 3.4,
    https://arxiv.org/abs/1805.01978
    """
    labels, truth = train.targets(), test.targets()
    bank, queries = F.normalize(train.features), F.normalize(test.features)
    blocks = queries.split(max(1, BLOCK // len(bank)))
    votes = [_votes(block @ bank.T, labels, ks, temperature) for block in blocks]
    return [accuracy(torch.cat(predicted), truth) for predicted in zip(*votes, strict=True)]


def _votes(similarities: Tensor, labels: Tensor, ks: Sequence[int], temperature: float) -> list[Tensor]:
    """Predict labels for each k: [n, bank] similarities -> [n] each."""
    nearest, index = similarities.topk(min(max(ks), similarities.shape[1]))  # [n, k], most similar first
    weights = ((nearest - nearest[:, :1]) / temperature).exp()  # the nearest has weight 1: nothing overflows
    voted, none = labels[index], weights.new_zeros(len(weights), int(labels.max()) + 1)
    return [none.scatter_add(1, voted[:, :k], weights[:, :k]).argmax(1) for k in ks]
