"""Pi-model: two views of an image have the same prediction.

Laine and Aila 2017, https://arxiv.org/abs/1610.02242
The gradient passes through both predictions, and the consistency term is computed of all images, the labelled ones
among them. Google's code and USB stop the gradient at one of them.
The paper multiplies its weight of 100 by the share of images that are labelled, because its labelled loss is divided by
all images of a step. Here that loss is the mean over labelled images, so that 100 is the same ratio of both terms.
Differs from the paper: there is no noise on the images and no dropout, each view has a flip of its own, and labelled
images are drawn besides the others, all in one pass. The optimizer is the one that all semi-supervised methods are
compared with (SGD, rate falling by a cosine), not Adam with a rate that rises with the weight. The weight rises at
every step, not once an epoch, and starts at e^-5 of its end, while the authors' is 0 throughout the first epoch.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.blocks.semi_supervised import sigmoid_ramp, squared_difference
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class PiModel(Method):
    """Semi-supervised: the predictions of two views agree."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[
            float, LogUniform(1, 300), Field(ge=0, description="of the consistency term, after the ramp")
        ] = 100.0
        ramp: Annotated[
            float, Uniform(0, 0.5), Field(ge=0, le=1, description="share of the training in which the weight rises")
        ] = 0.27

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "consistency": Metric("squared difference of the two views' predictions", "lower", no_goal=TERM)
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"weight": 30.0},  # sweeps/unlabelled_weight.yaml
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)

    @property
    def views(self) -> tuple[View, ...]:
        weak = View(flip=0.5, shift=0.125)
        return weak, weak

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        targets = batch.labelled.targets
        # One pass: batch norm sees labelled images and both views together.
        features = self.encoder(torch.cat([batch.labelled.views[0], *batch.views]))
        labelled, logits = precise(self.classifier(features)).tensor_split([len(targets)])
        consistency = squared_difference(*logits.softmax(1).chunk(2)).mean()
        weight = self.config.weight * sigmoid_ramp(progress.fraction / max(self.config.ramp, 1e-12))
        loss = F.cross_entropy(labelled, targets) + weight * consistency
        return StepResult(loss, list(features.detach()[len(targets) :].chunk(2)), {"consistency": consistency})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))
