"""SoftMatch: FixMatch that weighs pseudo-labels by their confidence, instead of choosing some of them.

Chen, Tao, Fan, Wang, Wang, Schiele, Xie, Raj, Savvides 2023, https://arxiv.org/abs/2301.10921
There is no threshold: weights fall below the mean confidence, as a Gaussian whose mean and variance are moving averages
that include the batch they are applied to. Confidences are those of uniformly aligned predictions, pseudo-labels those
of the predictions as they are. Batch norm sees labelled, weak and strong images in one pass.
Differs from the paper: as in the authors' code, mean and variance are those of aligned confidences, and the Gaussian's
deviation is half that of the confidences (`deviations=1`: all of it). The mean prediction starts uniform. The learning
rate falls by half a cosine to 0.195 of its peak, the value at which the paper's 7/16 of a cosine ends. RandAugment
draws from torchvision's fourteen operations at a fixed magnitude. Under the small recipe all averages are faster.
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
from eagleray.blocks.semi_supervised import follow, mean_prediction, pseudo_label_loss
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class SoftMatch(Method):
    """Semi-supervised: FixMatch in which every pseudo-label counts, with a weight that falls with its confidence."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss")] = 1.0
        deviations: Annotated[
            float, Uniform(1, 3), Field(gt=0, description="by which the spread of confidences is divided, in weights")
        ] = 2.0
        confidence_momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the confidence's mean and variance, and of the mean prediction"),
        ] = 0.999
        momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the averaged model that is evaluated"),
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "pseudo_weight": Metric("mean weight of the pseudo-labels, from 0 to 1"),
        "confidence": Metric("moving mean of the confidence, at which weights begin to fall"),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"confidence_momentum": 0.97, "momentum": 0.97},
    )

    predicted: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        classes = data.classes or 0
        self.classifier = nn.Linear(encoder.dim, classes)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))
        # Moving averages over weak views: the prediction [classes], mean and variance of the confidence [].
        self.register_buffer("predicted", torch.full((classes,), 1 / classes))
        self.register_buffer("mean", torch.tensor(1 / classes))
        self.register_buffer("variance", torch.tensor(1.0))

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
        weights = self._weights(weak_logits)
        unlabelled = pseudo_label_loss(weak_logits.argmax(1), strong_logits, weights)
        loss = F.cross_entropy(labelled, targets) + self.config.weight * unlabelled
        metrics = {"pseudo_weight": weights.mean(), "confidence": self.mean.clone()}
        return StepResult(loss, list(features.detach()[len(targets) :].chunk(2)), metrics)

    @torch.no_grad()
    def _weights(self, weak: Tensor) -> Tensor:
        """Update the moving averages with the weak views of all workers, and return this worker's weights, [N]."""
        new = 1 - self.config.confidence_momentum
        self.predicted.lerp_(mean_prediction(weak).to(self.predicted.dtype), new)
        confidence = uniformly_aligned(weak.softmax(1), self.predicted).amax(1)
        everywhere = gather(confidence).to(self.mean.dtype)
        self.mean.lerp_(everywhere.mean(), new)
        self.variance.lerp_(everywhere.var(), new)
        return truncated_gaussian(confidence, self.mean, self.variance / self.config.deviations**2)

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def uniformly_aligned(probabilities: Tensor, predicted: Tensor) -> Tensor:
    """Divide predictions by their mean, so that all classes are predicted alike, and make each sum 1 again.

    Args:
        probabilities: [N, classes].
        predicted: the mean prediction, [classes].
    """
    ratio = probabilities / (predicted + 1e-6)
    return ratio / ratio.sum(1, keepdim=True)


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the weight of each image, [N].

        1 from the mean upwards, exp(-(confidence - mean)^2 / (2 variance)) below it

    Args:
        confidence: [N].
        mean, variance: scalars.
    """
    below = (confidence - mean).clamp(max=0)
    # When all images are certain, the variance shrinks until it is 0 in float32.
    return (-below.square() / (2 * variance.clamp(min=torch.finfo(variance.dtype).tiny))).exp()
