"""Mean teacher: predict what the moving average of the network predicts for another view.

Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780
The consistency term is computed of all images, the labelled ones among them. The teacher's batch norms see their own
batch, as in the authors' code, and it is evaluated.
Differs from the paper: there is no dropout and no noise on the images, the network has one classifier, and the
optimizer is the one that all semi-supervised methods are compared with (SGD, rate falling by a cosine). The paper's
weight is 100 times the share of images that are labelled; here it is given. Its teacher is faster during the ramp (.99,
then .999); here the momentum is one, limited by 1 - 1 / (step + 1) as there.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import ema_update, frozen_copy
from eagleray.blocks.semi_supervised import sigmoid_ramp, squared_difference
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class MeanTeacher(Method):
    """Semi-supervised: the network predicts what its own moving average predicts for another view."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[
            float, LogUniform(1, 100), Field(ge=0, description="of the consistency term, after the ramp")
        ] = 50.0
        ramp: Annotated[
            float, Uniform(0, 0.5), Field(ge=0, le=1, description="share of the training in which the weight rises")
        ] = 0.27
        momentum: Annotated[float, Uniform(0.9, 0.9999), Field(ge=0, le=1, description="of the teacher")] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "consistency": Metric("squared difference of student's and teacher's predictions", "lower", no_goal=TERM)
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"momentum": 0.97},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)
        self.teacher = frozen_copy(nn.Sequential(self.encoder, self.classifier))

    @property
    def views(self) -> tuple[View, ...]:
        weak = View(flip=0.5, shift=0.125)
        return weak, weak

    @property
    def backbone(self) -> nn.Module:
        return self.teacher[0]

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        targets, (first, second) = batch.labelled.targets, batch.views
        # One pass of the student: batch norm sees labelled and unlabelled images together.
        features = self.encoder(torch.cat([batch.labelled.views[0], first]))
        labelled, logits = precise(self.classifier(features)).tensor_split([len(targets)])
        with torch.no_grad():
            taught = precise(self.teacher(second)).softmax(1)
        consistency = squared_difference(logits.softmax(1), taught).mean()
        weight = self.config.weight * sigmoid_ramp(progress.fraction / max(self.config.ramp, 1e-12))
        loss = F.cross_entropy(labelled, targets) + weight * consistency
        return StepResult(loss, [features.detach()[len(targets) :]], {"consistency": consistency})

    def after_step(self, progress: Progress) -> None:
        momentum = min(1 - 1 / (progress.step + 1), self.config.momentum)  # a plain mean of the first steps
        ema_update(self.teacher, nn.Sequential(self.encoder, self.classifier), momentum)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.teacher[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.teacher(images)
