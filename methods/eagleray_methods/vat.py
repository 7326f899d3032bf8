"""VAT: predictions stay the same under the small change of an image that alters them most.

Virtual adversarial training. Miyato, Maeda, Koyama, Ishii 2017, https://arxiv.org/abs/1704.03976
The change is found by one step of the power method, and has one length for all images, in units of the network's input:
images whose channels are normalised. With an entropy term the paper calls it VAT+EntMin. As in the authors' code the
unlabelled images are all that these terms see, and the labelled pass alone updates running statistics; each of the
three unlabelled passes is normalised by its own batch.
Differs from the paper: images are shifted, flipped and normalised by channel, not whitened by ZCA, so that a length of
8 is not quite the paper's; the small recipe has 0.1, and 0.06 for the entropy's weight (sweeps/vat.yaml). The step of
the power method is 0.01: the authors' 0.000001 is below what float32 resolves. There is no noise and no dropout beyond
the encoder's own, and the optimizer is the one that all semi-supervised methods are compared with (SGD, rate falling by
a cosine).
"""

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows
from eagleray.blocks.frozen import frozen_statistics
from eagleray.blocks.losses import precise
from eagleray.blocks.semi_supervised import divergence, entropy
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes

XI = 1e-2  # length of the step at which the power method takes its gradient


class VAT(Method):
    """Semi-supervised: predictions stay the same under the change of an image that alters them most."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        epsilon: Annotated[
            float,
            LogUniform(0.05, 20),
            Field(ge=0, description="length of the change of an image, as it is normalised"),
        ] = 8.0
        entropy: Annotated[
            float, Uniform(0, 1), Field(ge=0, description="weight of the entropy beside the divergence")
        ] = 1.0
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss")] = 1.0

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "divergence": Metric("KL divergence of predictions for changed images", "lower", no_goal=TERM),
        "entropy": Metric("entropy of unlabelled predictions, in nats", "lower", no_goal=TERM),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"epsilon": 0.1, "entropy": 0.06},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(flip=0.5, shift=0.125),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        network, images = nn.Sequential(self.encoder, self.classifier), batch.views[0]
        labelled = F.cross_entropy(precise(network(batch.labelled.views[0])), batch.labelled.targets)
        start = torch.randn(self.data.batch_size, *images.shape[1:], generator=self.rng(progress.step))
        with frozen_statistics(self.encoder):
            # Two predictions a small step apart: bf16 would round their difference away.
            with torch.autocast(images.device.type, enabled=False):
                features = self.encoder(precise(images))
                clean = self.classifier(features)
                direction = adversarial_direction(network, precise(images), clean, own_rows(start).to(images.device))
            changed = network(images + self.config.epsilon * direction)
        different, uncertain = divergence(clean, changed).mean(), entropy(clean).mean()
        loss = labelled + self.config.weight * (different + self.config.entropy * uncertain)
        return StepResult(loss, [features.detach()], {"divergence": different, "entropy": uncertain})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))


def adversarial_direction(predict: Callable[[Tensor], Tensor], images: Tensor, clean: Tensor, start: Tensor) -> Tensor:
    """Find the direction in which each image's prediction changes most.

    One step of the power method: the gradient of KL(p(x) || p(x + xi d)) with respect to d, at length 1 (1704.03976,
    section 3.3). It is finite differences' way to multiply d by the divergence's second derivative.

    Args:
        predict: images -> logits.
        images: x, [N, C, H, W], in float32 at least.
        clean: logits of p(x), [N, classes], as `predict` gives them.
        start: random directions d, of the shape of `images` and of any length.

    Returns:
        The shape of `images`, without gradient; length 1, or 0 where the divergence has no gradient.
    """
    step = (XI * of_length_one(start.to(images))).requires_grad_()
    with torch.enable_grad():  # the direction needs a gradient also where the loss needs none
        (gradient,) = torch.autograd.grad(divergence(clean, predict(images + step)).sum(), step)
    return of_length_one(gradient)


def of_length_one(x: Tensor) -> Tensor:
    """Scale each row to length 1, [N, ...]."""
    return F.normalize(x.flatten(1), dim=1).view_as(x)
