"""FlexMatch: FixMatch whose threshold is lower for classes that are still hard to learn.

Zhang, Wang, Hou, Wu, Wang, Okumura, Shinozaki 2021, https://arxiv.org/abs/2110.08263
The more images were last guessed in a class with confidence, the nearer is its threshold to the given one. While more
images were never guessed so than any class has, their number is what a class is compared with (the paper's warm-up): in
the first step all thresholds are 0 and all images count. Batch norm sees labelled, weak and strong images in one pass.
Differs from the paper: the learning rate falls by half a cosine to 0.195 of its peak, the value at which the paper's
7/16 of a cosine ends. RandAugment draws from torchvision's fourteen operations at a fixed magnitude. Under the small
recipe a confidence of 0.6 is enough, and the average is faster.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import gather
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import frozen_copy
from eagleray.blocks.semi_supervised import follow, guesses, pseudo_label_loss
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class FlexMatch(Method):
    """Semi-supervised: FixMatch with lower thresholds for classes in which few images are guessed with confidence."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        threshold: Annotated[
            float,
            Uniform(0.5, 0.99),
            Field(ge=0, le=1, description="confidence that counts as sure, and the best learnt class's threshold"),
        ] = 0.95
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss")] = 1.0
        momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the averaged model that is evaluated"),
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "confident": Metric("share of unlabelled images whose pseudo-label counts"),
        "hardest": Metric("lowest threshold of a class; 0: no image was guessed in it with confidence"),
        "easiest": Metric("highest threshold of a class"),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"threshold": 0.6, "momentum": 0.97},
    )

    guessed: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))
        # Each image's class when it was last guessed with confidence, at the image's index; -1: it never was.
        self.register_buffer("guessed", torch.full((data.samples,), -1))

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
        features = self.encoder(torch.cat([batch.labelled.views[0], weak, strong]))
        logits = precise(self.classifier(features))
        labelled, weak_logits, strong_logits = logits.split([len(targets), len(weak), len(strong)])
        thresholds = class_thresholds(self.guessed, logits.shape[1], self.config.threshold)
        guessed, counts = guesses(weak_logits, thresholds)
        _, sure = guesses(weak_logits, self.config.threshold)
        self._remember(batch.indices, guessed, sure)
        unlabelled = pseudo_label_loss(guessed, strong_logits, counts)
        loss = F.cross_entropy(labelled, targets) + self.config.weight * unlabelled
        metrics = {"confident": counts.mean(), "hardest": thresholds.min(), "easiest": thresholds.max()}
        return StepResult(loss, list(features.detach()[len(targets) :].chunk(2)), metrics)

    def _remember(self, indices: Tensor, guessed: Tensor, sure: Tensor) -> None:
        """Store all workers' guesses that are sure; other images keep their last one."""
        last = torch.where(sure > 0, guessed, self.guessed[indices])
        self.guessed[gather(indices)] = gather(last)

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def class_thresholds(guessed: Tensor, classes: int, threshold: float) -> Tensor:
    """Return the threshold of each class, [classes].

    With s_c the number of images last guessed in class c, and s_0 of those never guessed with confidence:

        b_c = s_c / max(s_0, max over classes of s),    T_c = threshold b_c / (2 - b_c)

    Args:
        guessed: class of each image, int64 [samples]; -1: never guessed with confidence.
        classes: how many there are.
        threshold: that of the class which is learnt best.
    """
    sizes = (guessed + 1).bincount(minlength=classes + 1)
    learnt = sizes[1:] / sizes.max()
    return threshold * learnt / (2 - learnt)
