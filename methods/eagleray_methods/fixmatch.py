"""FixMatch: confident predictions for weak views label strong views.

Sohn et al. 2020, https://arxiv.org/abs/2001.07685
Differs from the paper: the learning rate falls by half a cosine to 0.195 of its peak, the value at which the paper's
7/16 of a cosine ends. RandAugment draws from torchvision's fourteen operations at a fixed magnitude. Under the small
recipe a confidence of 0.6 is enough: in hundreds of steps hardly any image reaches the paper's 0.95.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import frozen_copy
from eagleray.blocks.semi_supervised import follow, guesses, pseudo_label_loss
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class FixMatch(Method):
    """Semi-supervised: a confident prediction for a weak view is the label of the strong view."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        threshold: Annotated[
            float,
            Uniform(0.5, 0.99),
            Field(ge=0, le=1, description="smallest confidence at which a pseudo-label counts"),
        ] = 0.95
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss")] = 1.0
        momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the averaged model that is evaluated"),
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {"confident": Metric("share of unlabelled images whose pseudo-label counts")}
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"threshold": 0.6, "momentum": 0.97},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))

    @property
    def views(self) -> tuple[View, ...]:
        weak = View(flip=0.5, shift=0.125)
        return weak, View(flip=0.5, shift=0.125, randaugment=(2, 10), cutout=0.5)

    @property
    def backbone(self) -> nn.Module:
        return self.average[0]

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        targets, (weak, strong) = batch.labelled.targets, batch.views
        # One pass: batch norm sees labelled, weak and strong images together.
        features = self.encoder(torch.cat([batch.labelled.views[0], weak, strong]))
        logits = precise(self.classifier(features))
        labelled, weak_logits, strong_logits = logits.split([len(targets), len(weak), len(strong)])
        unlabelled, confident = consistency(weak_logits, strong_logits, self.config.threshold)
        loss = F.cross_entropy(labelled, targets) + self.config.weight * unlabelled
        pair = features.detach()[len(targets) :].chunk(2)
        return StepResult(loss, list(pair), {"confident": confident})

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def consistency(weak: Tensor, strong: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Compute the strong views' cross-entropy (equation 4).

    Against confident pseudo-labels, averaged over ALL images.

    Args:
        weak: logits of the weak views, [N, classes]; no gradient passes through them.
        strong: logits of the strong views, [N, classes].
        threshold: smallest confidence at which an image counts; the others count as zero.

    Returns:
        The loss, and the share of images that counted.
    """
    guessed, counts = guesses(weak, threshold)
    return pseudo_label_loss(guessed, strong, counts), counts.mean()
