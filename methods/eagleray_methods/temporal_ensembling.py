"""Temporal ensembling: predict what the networks of earlier epochs predicted for the same image.

Laine and Aila 2017, https://arxiv.org/abs/1610.02242
Each image has a moving average of its predictions, one an epoch, at the image's index. Targets change between epochs
alone, and all workers hold them: two numbers for each image and class. An image that an epoch leaves out, because the
last incomplete batch is dropped, keeps its average and the correction for its own number of predictions. Images without
a target count as zero: in the first epoch there are none.
The paper multiplies its weight of 30 by the share of images that are labelled, because its labelled loss is divided by
all images of a step. Here that loss is the mean over labelled images, so that 30 is the same ratio of both terms.
Differs from the paper: there is no noise on the images and no dropout, and labelled images are drawn besides the
others, all in one pass; predictions of those so drawn do not enter the averages. The optimizer is the one that all
semi-supervised methods are compared with (SGD, rate falling by a cosine), not Adam with a rate that rises with the
weight. The weight rises at every step, not once an epoch.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import gather
from eagleray.blocks.losses import precise
from eagleray.blocks.semi_supervised import sigmoid_ramp, squared_difference
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class TemporalEnsembling(Method):
    """Semi-supervised: predictions agree with the average of earlier epochs' predictions."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[
            float, LogUniform(1, 300), Field(ge=0, description="of the consistency term, after the ramp")
        ] = 30.0
        ramp: Annotated[
            float, Uniform(0, 0.5), Field(ge=0, le=1, description="share of the training in which the weight rises")
        ] = 0.27
        momentum: Annotated[
            float, Uniform(0, 0.9), Field(ge=0, lt=1, description="share of earlier epochs in an image's average")
        ] = 0.6

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "consistency": Metric("squared difference of predictions and earlier epochs' average", "lower", no_goal=TERM)
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
    )

    ensemble: Tensor
    counts: Tensor
    latest: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        classes = data.classes or 0
        self.classifier = nn.Linear(encoder.dim, classes)
        self.register_buffer("ensemble", torch.zeros(data.samples, classes))  # the paper's Z
        self.register_buffer("counts", torch.zeros(data.samples, 1))  # predictions in each average
        self.register_buffer("latest", torch.zeros(data.samples, classes))  # of the current epoch; 0: none yet

    @property
    def views(self) -> tuple[View, ...]:
        return (View(flip=0.5, shift=0.125),)

    def before_epoch(self, epoch: EpochView) -> None:
        seen = self.latest.sum(1, keepdim=True) > 0  # a prediction sums to 1
        self.ensemble.copy_(torch.where(seen, self.ensemble.lerp(self.latest, 1 - self.config.momentum), self.ensemble))
        self.counts += seen
        self.latest.zero_()

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        count = len(batch.labelled.targets)
        # One pass: batch norm sees labelled and unlabelled images together.
        features = self.encoder(torch.cat([batch.labelled.views[0], batch.views[0]]))
        labelled, logits = precise(self.classifier(features)).tensor_split([count])
        predicted = logits.softmax(1)
        counts = self.counts[batch.indices]
        targets = corrected(self.ensemble[batch.indices], counts, self.config.momentum)
        consistency = (squared_difference(predicted, targets) * (counts > 0).squeeze(1)).mean()
        weight = self.config.weight * sigmoid_ramp(progress.fraction / max(self.config.ramp, 1e-12))
        loss = F.cross_entropy(labelled, batch.labelled.targets) + weight * consistency
        self.latest[gather(batch.indices)] = gather(predicted.detach())
        return StepResult(loss, [features.detach()[count:]], {"consistency": consistency})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))


def corrected(ensemble: Tensor, counts: Tensor, momentum: float) -> Tensor:
    """Divide averages that began at 0 by 1 - momentum^count, so that they sum to 1 (algorithm 2).

    Args:
        ensemble: [N, classes]; zeros stay where there is no prediction.
        counts: predictions in each average, [N, 1].
        momentum: share of the old average that stays.
    """
    return ensemble / (1 - momentum ** counts.clamp(min=1))
