"""FreeMatch: FixMatch whose thresholds follow the confidence that the network has reached.

Wang, Chen, Heng, Hou, Fan, Wu, Wang, Savvides, Shinozaki, Raj, Schiele, Xie 2023, https://arxiv.org/abs/2205.07246
There is no threshold to choose: that of all classes is a moving average of the confidence, and a class has a lower one
if it is predicted less. The averages include the batch they are applied to. Batch norm sees labelled, weak and strong
images in one pass.
Differs from the paper: `weight` multiplies the fairness term too, so that 0 leaves the labelled loss alone. The
learning rate falls by half a cosine to 0.195 of its peak, the value at which the paper's 7/16 of a cosine ends.
RandAugment draws from torchvision's fourteen operations at a fixed magnitude. Under the small recipe all averages are
faster.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_mean, all_reduce_sum
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import frozen_copy
from eagleray.blocks.semi_supervised import follow, guesses, pseudo_label_loss
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class FreeMatch(Method):
    """Semi-supervised: FixMatch with thresholds that follow the network's confidence, and a term for even classes."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss")] = 1.0
        fairness: Annotated[
            float, LogUniform(1e-3, 0.1), Field(ge=0, description="of the fairness term in the unlabelled loss")
        ] = 0.01
        threshold_momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the confidence and the predictions that thresholds follow"),
        ] = 0.999
        momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the averaged model that is evaluated"),
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "confident": Metric("share of unlabelled images whose pseudo-label counts"),
        "threshold": Metric("threshold of the class that is predicted most, an average of the confidence"),
        "fairness": Metric("how evenly the strong views of these images are predicted", "lower", no_goal=TERM),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"threshold_momentum": 0.97, "momentum": 0.97},
    )

    confidence: Tensor
    predicted: Tensor
    histogram: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        classes = data.classes or 0
        self.classifier = nn.Linear(encoder.dim, classes)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))
        # Moving averages over weak views, of the confidence [1], the prediction and its largest class [classes].
        self.register_buffer("confidence", torch.full((1,), 1 / classes))
        self.register_buffer("predicted", torch.full((classes,), 1 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))

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
        self._observe(weak_logits)
        guessed, counts = guesses(weak_logits, self.confidence * self.predicted / self.predicted.max())
        fair = fairness(strong_logits, counts, self.predicted, self.histogram)
        unlabelled = pseudo_label_loss(guessed, strong_logits, counts) + self.config.fairness * fair
        loss = F.cross_entropy(labelled, targets) + self.config.weight * unlabelled
        metrics = {"confident": counts.mean(), "threshold": self.confidence.mean(), "fairness": fair}
        return StepResult(loss, list(features.detach()[len(targets) :].chunk(2)), metrics)

    @torch.no_grad()
    def _observe(self, weak: Tensor) -> None:
        """Update the moving averages with the weak views of all workers."""
        probabilities = weak.softmax(1)
        confidence, guessed = probabilities.max(1, keepdim=True)
        largest = torch.zeros_like(probabilities).scatter_(1, guessed, 1)
        now = all_reduce_mean(torch.cat([confidence, probabilities, largest], 1).mean(0))
        averages = self.confidence, self.predicted, self.histogram
        for average, value in zip(averages, now.split([len(each) for each in averages]), strict=True):
            average.lerp_(value.to(average.dtype), 1 - self.config.threshold_momentum)

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def fairness(strong: Tensor, counts: Tensor, predicted: Tensor, histogram: Tensor) -> Tensor:
    """Compute the self-adaptive fairness loss of the images that count, over all workers.

    With q the mean prediction for their strong views, g the histogram of its largest classes, and N(x) = x / sum of x:

        loss = sum over classes of N(predicted / histogram) log N(q / g)

    A class that is the largest of no image has a ratio of 0, and the logarithm is of 1e-12 more, as the authors' have.

    Args:
        strong: logits of the strong views, [N, classes].
        counts: 1 for an image that counts, else 0, [N].
        predicted, histogram: moving averages of the same over weak views, [classes].

    Returns:
        A scalar, the same for all workers; 0 if no image counts.
    """
    probabilities = precise(strong).softmax(1)
    largest = torch.zeros_like(probabilities).scatter_(1, strong.argmax(1, keepdim=True), 1)
    # Sums: what they are divided by cancels.
    now, now_largest = all_reduce_sum(torch.stack([probabilities, largest]).mul(counts[:, None]).sum(1))
    logs = (_evened(now, now_largest) + 1e-12).log()
    return torch.where(now_largest.sum() > 0, (_evened(predicted, histogram) * logs).sum(), 0)


def _evened(predicted: Tensor, histogram: Tensor) -> Tensor:
    """Divide by a histogram, 0 where it is empty, and make the sum 1."""
    ratio = torch.where(histogram > 0, predicted / histogram.where(histogram > 0, 1), 0)
    return ratio / ratio.sum().clamp(min=torch.finfo(ratio.dtype).tiny)
