"""Entropy minimisation: predictions of unlabelled images should be certain.

Grandvalet and Bengio 2004, https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization
Alone it can put all images into one class, where the entropy is least: `marginal_entropy` shows it. The default weight
is that of Google's code, where the entropy joins virtual adversarial training; the authors of that method take 1. As in
both, the labelled images alone move the running statistics of batch norms, and the weight does not rise.
Differs from the paper: a deep network in place of logistic regression, trained by SGD on weakly augmented views. Each
term is the mean over its own images, in place of sums over all. The paper selects the weight by cross-validation.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.frozen import frozen_statistics
from eagleray.blocks.losses import precise
from eagleray.blocks.semi_supervised import entropy, mean_prediction
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class EntropyMin(Method):
    """Semi-supervised: predictions of unlabelled images have little entropy."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[float, LogUniform(0.01, 1), Field(ge=0, description="of the entropy")] = 0.06

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "entropy": Metric("mean entropy of the predictions of unlabelled images, in nats", "lower", no_goal=TERM),
        "marginal_entropy": Metric(
            "entropy of the batch's mean prediction, in nats; near 0 all images are put into one class",
            "higher",
            no_goal="it shows collapse, and says nothing of healthy runs",
        ),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(flip=0.5, shift=0.125),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        labelled = precise(self.classifier(self.encoder(batch.labelled.views[0])))
        with frozen_statistics(self.encoder):
            features = self.encoder(batch.views[0])
        logits = self.classifier(features)
        uncertainty = entropy(logits).mean()
        loss = F.cross_entropy(labelled, batch.labelled.targets) + self.config.weight * uncertainty
        marginal = torch.special.entr(mean_prediction(logits)).sum()
        return StepResult(loss, [features.detach()], {"entropy": uncertainty, "marginal_entropy": marginal})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))
