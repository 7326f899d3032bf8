"""UDA: the strong view is predicted as the weak view, where that prediction is confident, and sharpened.

Unsupervised data augmentation. Xie, Dai, Hovy, Luong, Le 2020, https://arxiv.org/abs/1904.12848
The defaults are those of the authors' last runs on CIFAR-10, which anneal nothing. As in their code, one pass
normalises labelled, weak and strong images together.
Differs from the paper: the learning rate falls by half a cosine to 0.195 of its peak, as it does for all
semi-supervised methods, and not to 0.004 after a warm-up. RandAugment applies two of torchvision's fourteen operations
at a fixed magnitude. Under the small recipe a confidence of 0.6 is enough, and the averaged model is faster.
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_mean
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import frozen_copy
from eagleray.blocks.semi_supervised import divergence, follow, guesses
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes

Annealing = Literal["none", "linear", "exponential", "logarithmic"]


class UDA(Method):
    """Semi-supervised: strong views are predicted as confident, sharpened predictions for weak views."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        threshold: Annotated[
            float, Uniform(0.5, 0.99), Field(ge=0, le=1, description="smallest confidence at which an image counts")
        ] = 0.8
        temperature: Annotated[
            float, Uniform(0.1, 1), Field(gt=0, description="of the weak view's prediction; below 1 it is sharpened")
        ] = 0.4
        annealing: Annotated[
            Annealing,
            Choice("none", "linear", "exponential", "logarithmic"),
            Field(
                description="how the probability rises, from 1 / classes to 1, above which a labelled image's class "
                "is known too well for the image to count; none: all count"
            ),
        ] = "none"
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss")] = 1.0
        momentum: Annotated[
            float, Uniform(0.9, 0.9999), Field(ge=0, le=1, description="of the averaged model that is evaluated")
        ] = 0.9999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "confident": Metric("share of unlabelled images whose prediction counts"),
        "consistency": Metric("KL divergence of strong from weak views, of all images", "lower", no_goal=TERM),
    }
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
        return View(flip=0.5, shift=0.125), View(flip=0.5, shift=0.125, randaugment=(2, 10), cutout=0.5)

    @property
    def backbone(self) -> nn.Module:
        return self.average[0]

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        targets, (weak, strong) = batch.labelled.targets, batch.views
        features = self.encoder(torch.cat([batch.labelled.views[0], weak, strong]))
        logits = precise(self.classifier(features))
        labelled, weak_logits, strong_logits = logits.split([len(targets), len(weak), len(strong)])
        _, counts = guesses(weak_logits, self.config.threshold)
        consistency = (divergence(weak_logits / self.config.temperature, strong_logits) * counts).mean()
        most = annealed(self.config.annealing, progress.fraction, self.classifier.out_features)
        loss = annealed_cross_entropy(labelled, targets, most) + self.config.weight * consistency
        pair = features.detach()[len(targets) :].chunk(2)
        return StepResult(loss, list(pair), {"confident": counts.mean(), "consistency": consistency})

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def annealed(schedule: Annealing, fraction: float, classes: int) -> float:
    """Return the largest probability of its class at which a labelled image counts (TSA in 1904.12848).

    a + (1 - a) / K, where a is t, exp(5 (t - 1)) or 1 - exp(-5 t) and t the share of the training that is done.
    """
    risen = {
        "none": 1.0,
        "linear": fraction,
        "exponential": math.exp(5 * (fraction - 1)),
        "logarithmic": 1 - math.exp(-5 * fraction),
    }[schedule]
    return risen + (1 - risen) / classes


def annealed_cross_entropy(logits: Tensor, targets: Tensor, most: float) -> Tensor:
    """Average the cross-entropy over the images that count, among those of all workers.

    Args:
        logits: [M, classes].
        targets: int64 [M].
        most: an image counts up to this probability of its class.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    counts = ((-losses.detach()).exp() <= most).to(losses.dtype)
    share = all_reduce_mean(counts.mean())
    return (losses * counts).mean() / torch.where(share > 0, share, 1)
