"""MixMatch: mix labelled images with unlabelled ones, whose labels are guessed from two views.

Berthelot et al. 2019, https://arxiv.org/abs/1905.02249
The guesses come from one pass in training mode, in which both views are normalised together. The mixed images are
predicted in three passes, interleaved as in the authors' code: each has a share of labelled and unlabelled images, and
the first one updates the running statistics. The paper has as many labelled as unlabelled images in a step,
`labels.ratio=1`.
Differs from the paper: where a step has fewer labelled images, each is repeated until there are as many, and every copy
is mixed with another image. The optimizer is the one that all semi-supervised methods are compared with (SGD, rate
falling by a cosine; the paper's is Adam at a constant rate). The ramp is a share of the training, by default the 16,384
of 2^20 steps of the authors' code; under the small recipe it is 0.4, as in hundreds of steps 1/64 would be no ramp.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.frozen import frozen_statistics
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import frozen_copy
from eagleray.blocks.semi_supervised import (
    beta_shares,
    cross_entropy_with,
    follow,
    interleaved_logits,
    linear_ramp,
    mixed_with_all,
    repeated,
    sharpen,
    squared_difference,
)
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class MixMatch(Method):
    """Semi-supervised: labelled images are mixed with unlabelled ones and their guessed labels."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float, Uniform(0.1, 1), Field(gt=0, description="of the guesses; below 1 they are sharpened")
        ] = 0.5
        alpha: Annotated[
            float, Uniform(0.1, 1), Field(gt=0, description="of the Beta distribution of an image's share in a mixture")
        ] = 0.75
        weight: Annotated[
            float, LogUniform(1, 200), Field(ge=0, description="of the unlabelled loss, after the ramp")
        ] = 75.0
        ramp: Annotated[
            float, Uniform(0, 0.5), Field(ge=0, le=1, description="share of the training in which the weight rises")
        ] = 1 / 64
        momentum: Annotated[
            float, Uniform(0.9, 0.9999), Field(ge=0, le=1, description="of the averaged model that is evaluated")
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "consistency": Metric("squared difference of predictions and guesses, mixed", "lower", no_goal=TERM)
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"momentum": 0.97, "ramp": 0.4},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))

    @property
    def views(self) -> tuple[View, ...]:
        weak = View(flip=0.5, shift=0.125)
        return weak, weak

    @property
    def backbone(self) -> nn.Module:
        return self.average[0]

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        views, labels = batch.views, F.one_hot(batch.labelled.targets, self.classifier.out_features)
        with torch.no_grad(), frozen_statistics(self.encoder):
            features = self.encoder(torch.cat(views))
            first, second = precise(self.classifier(features)).softmax(1).chunk(2)
        guess = sharpen((first + second) / 2, self.config.temperature)
        count, draw = len(guess), self.rng(progress.step)
        order = torch.randperm(3 * self.data.batch_size, generator=draw)
        share = beta_shares(3 * self.data.batch_size, self.config.alpha, draw)
        images = mixed_with_all([repeated(batch.labelled.views[0], count), *views], order, share)
        targets = mixed_with_all([repeated(labels.to(guess), count), guess, guess], order, share)
        labelled, consistency = losses(
            interleaved_logits(nn.Sequential(self.encoder, self.classifier), images), targets
        )
        weight = self.config.weight * linear_ramp(progress.fraction / max(self.config.ramp, 1e-12))
        return StepResult(labelled + weight * consistency, list(features.chunk(2)), {"consistency": consistency})

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def losses(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of labelled images and the squared difference of the others (equations 3 and 4).

    Args:
        logits: of the labelled images and of each view of the others, all mixed, each [N, classes].
        targets: probabilities that were mixed alike.
    """
    guessed = squared_difference(torch.cat(logits[1:]).softmax(1), torch.cat(targets[1:]))
    return cross_entropy_with(targets[0], logits[0]).mean(), guessed.mean()
