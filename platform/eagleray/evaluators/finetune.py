"""Fine-tuning: what the network is worth to someone who trains all of it further, with all labels or with few."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import accuracy
from eagleray.contracts.metric import Metric, Need, When

NEEDS: frozenset[Need] = frozenset({"labels", "network"})


class Finetune(Evaluator):
    """A copy of the network and a new classifier, trained on labelled images as by `finetune`, at one rate for all.

    Each of `labels` takes as many steps as `epochs` passes over all training images, however few are labelled. A step
    has one view of each image, so it costs about half of one of a method with two views.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """With which labels it is trained, and how long."""

        labels: Annotated[
            tuple[Literal["all", "10_percent", "1_percent", "few"], ...],
            Field(min_length=1, description="each is a training of its own: all labels, shares of each class, or few"),
        ] = ("all",)
        per_class: Annotated[int, Field(ge=1, description="labels a class of few; at most the smallest class")] = 10
        epochs: Annotated[int, Field(ge=1, description="passes over as many images as there are in train")] = 10
        lr: Annotated[
            float,
            Field(
                gt=0, description="learning rate of all layers, as optimizer.lr of finetune with method.classifier_lr=1"
            ),
        ] = 1e-3

    config: Config
    when: ClassVar[When] = "never"  # it trains the network

    metrics: ClassVar[dict[str, Metric]] = {
        "fine_tuned": Metric(
            "share that a fine-tuned copy of the network classifies right", "higher", interval="wilson", needs=NEEDS
        ),
        "fine_tuned_10_percent": Metric(
            "the same with a tenth of the labels", "higher", interval="wilson", needs=NEEDS
        ),
        "fine_tuned_1_percent": Metric(
            "the same with a hundredth of the labels", "higher", interval="wilson", needs=NEEDS
        ),
        "fine_tuned_few": Metric(
            "the same with evaluate.finetune.per_class labels of each class",
            "higher",
            interval="wilson",
            needs=NEEDS,
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        config, labels = self.config, encodings.data.train.labels
        smallest = int(np.bincount(labels[labels >= 0]).min())
        drawn: dict[str, dict[str, Any]] = {
            "all": {"fraction": 1.0},
            "10_percent": {"fraction": 0.1},
            "1_percent": {"fraction": 0.01},
            "few": {"per_class": max(1, min(config.per_class, smallest))},
        }
        found, images = dict[str, float](), 0
        for name in config.labels:
            logits = encodings.fine_tuned(epochs=config.epochs, lr=config.lr, **drawn[name])
            right, images = accuracy(logits.features.argmax(1), logits.targets()), len(logits)
            found["fine_tuned" if name == "all" else f"fine_tuned_{name}"] = right
        return Found(found, images=images)
