"""ReMixMatch: MixMatch with guesses of the right class frequencies, which weak views make for strong ones.

Berthelot et al. 2020, https://arxiv.org/abs/1911.09785
A guess is multiplied by the ratio of the labelled images' class frequencies to those predicted in the last 128 batches,
then sharpened; it labels the weak view, from which it comes, and all strong views. Labelled images have a strong view.
One pass, which leaves running statistics alone, predicts the weak view, the first strong view and the same rotated,
normalised together. The mixed images are predicted one part at a time, interleaved as in MixMatch. The paper has as
many labelled as unlabelled images in a step, `labels.ratio=1`.
Differs from the paper: class frequencies are counted in all labelled images at once. Strong views are RandAugment at a
fixed magnitude and cutout, not CTAugment. Where a step has fewer labelled images, each is repeated until there are as
many. The optimizer is the one that all semi-supervised methods are compared with (SGD, rate falling by a cosine; the
paper's is Adam at a constant rate). The ramp is a share of the training, by default the 16,384 of 2^20 steps of the
authors' code. Under the small recipe it is 0.4, and there are two strong views.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows
from eagleray.blocks.frozen import frozen_statistics
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import frozen_copy
from eagleray.blocks.rotations import rotated
from eagleray.blocks.semi_supervised import (
    beta_shares,
    cross_entropy_with,
    follow,
    interleaved_logits,
    linear_ramp,
    mean_prediction,
    mixed_with_all,
    repeated,
    sharpen,
)
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes

BATCHES = 128  # whose mean prediction is the model's class frequencies
STRONG = View(flip=0.5, shift=0.125, randaugment=(2, 10), cutout=0.5)


class ReMixMatch(Method):
    """Semi-supervised: MixMatch with aligned guesses from weak views for strong ones, and rotations."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        strong_views: Annotated[
            int, IntRange(1, 8), Field(ge=1, description="strong views that a weak view's guess labels")
        ] = 8
        temperature: Annotated[
            float, Uniform(0.1, 1), Field(gt=0, description="of the guesses; below 1 they are sharpened")
        ] = 0.5
        alpha: Annotated[
            float, Uniform(0.1, 1), Field(gt=0, description="of the Beta distribution of an image's share in a mixture")
        ] = 0.75
        mixed: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="weight of mixed unlabelled images")] = 1.5
        anchor: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="weight of the first strong view, not mixed")
        ] = 0.5
        rotation: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="weight of predicting that view's rotation")
        ] = 0.5
        weight: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss, these three terms")
        ] = 1.0
        ramp: Annotated[
            float,
            Uniform(0, 0.5),
            Field(ge=0, le=1, description="share of the training in which the weights rise, but for rotations"),
        ] = 1 / 64
        momentum: Annotated[
            float, Uniform(0.9, 0.9999), Field(ge=0, le=1, description="of the averaged model that is evaluated")
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "anchoring": Metric("cross-entropy of a strong view with the weak view's guess", "lower", no_goal=TERM),
        "rotation": Metric("share of unlabelled images whose rotation is recognised"),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"strong_views": 2, "momentum": 0.97, "ramp": 0.4},
    )

    labelled_share: Tensor
    predicted: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        classes = data.classes or 0
        self.classifier = nn.Linear(encoder.dim, classes)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))
        self.rotation_classifier = nn.Linear(encoder.dim, 4)
        uniform = torch.ones(classes) / max(1, classes)
        self.register_buffer("labelled_share", uniform)
        self.register_buffer("predicted", uniform.repeat(BATCHES, 1))  # of each of the last batches, [BATCHES, classes]

    @property
    def views(self) -> tuple[View, ...]:
        return View(flip=0.5, shift=0.125), *[STRONG] * self.config.strong_views

    @property
    def labelled_views(self) -> tuple[View, ...]:
        return (STRONG,)

    @property
    def backbone(self) -> nn.Module:
        return self.average[0]

    def before_epoch(self, epoch: EpochView) -> None:
        assert epoch.labelled is not None
        targets = epoch.labelled[1]
        self.labelled_share.copy_(torch.bincount(targets, minlength=len(self.labelled_share)) / len(targets))

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        weak, strong = batch.views[:2]
        total, count = self.data.batch_size, len(weak)
        turns = own_rows(torch.arange(total) % 4).to(weak.device)
        with frozen_statistics(self.encoder):
            features = self.encoder(torch.cat([weak, strong, rotated(strong, turns)]))
        weak_logits, anchored = precise(self.classifier(features[: 2 * count])).chunk(2)
        turned = precise(self.rotation_classifier(features[2 * count :]))
        probabilities = aligned(weak_logits.detach().softmax(1), self.labelled_share, self.predicted.mean(0))
        guess = sharpen(probabilities, self.config.temperature)
        self.predicted[progress.step % BATCHES] = mean_prediction(weak_logits)

        known = F.one_hot(batch.labelled.targets, self.classifier.out_features).to(guess)
        parts, draw = 1 + len(batch.views), self.rng(progress.step)
        order = torch.randperm(parts * total, generator=draw)
        share = beta_shares(parts * total, self.config.alpha, draw)
        images = mixed_with_all([repeated(batch.labelled.views[0], count), *batch.views], order, share)
        targets = mixed_with_all([repeated(known, count), *[guess] * len(batch.views)], order, share)
        logits = interleaved_logits(nn.Sequential(self.encoder, self.classifier), images)

        labelled, *others = (cross_entropy_with(q, z).mean() for q, z in zip(targets, logits, strict=True))
        anchoring, rotation = cross_entropy_with(guess, anchored).mean(), F.cross_entropy(turned, turns)
        ramp = linear_ramp(progress.fraction / max(self.config.ramp, 1e-12))
        ramped = self.config.mixed * torch.stack(others).mean() + self.config.anchor * anchoring
        loss = labelled + self.config.weight * (ramp * ramped + self.config.rotation * rotation)
        recognised = (turned.detach().argmax(1) == turns).to(turned.dtype).mean()
        embeddings = list(features.detach()[: 2 * count].chunk(2))
        return StepResult(loss, embeddings, {"anchoring": anchoring, "rotation": recognised})

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def aligned(probabilities: Tensor, wanted: Tensor, predicted: Tensor) -> Tensor:
    """Multiply predictions by the ratio of wanted to predicted class frequencies, normalised (section 3.1).

    Args:
        probabilities: [N, classes].
        wanted, predicted: [classes]; as in the authors' code, 1e-6 is added to both.
    """
    weighted = probabilities * ((wanted + 1e-6) / (predicted + 1e-6))
    return weighted / weighted.sum(1, keepdim=True)
