"""Exemplar-CNN: each image is a class, of which random transformations are the examples.

Dosovitskiy, Fischer, Springenberg, Riedmiller, Brox 2014, https://arxiv.org/abs/1406.6909
The more classes, the more near-duplicates are told to be different: the paper finds the best accuracy at some 8,000,
and `method.classes` is worth a sweep. Shift, colour and contrast matter, scale and rotation little.
Differs from the paper: a class is a whole image, not a patch of one, drawn where gradients are large; its examples are
new ones in each epoch, not about a hundred drawn once. Nothing is rotated. Crops of half of the area or more, whose
sides have a ratio between 3/4 and 4/3, are enlarged, and nothing is reduced; the paper scales by 0.7 to 1.4. Contrast
and colour change as in SimCLR's jitter, not along the principal axes of a patch's colours and by powers of HSV's
saturation and value. The batches hold all images; those that are no class move batch norms alone. The classifier is one
linear layer on the pooled features, so that these features are trained; there is no dropout. The rate of the paper
recipe is ours, and falls by cosine, where the authors divide theirs by three whenever the validation error stops
falling. The small recipe makes every image a class.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_sum, world_size
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange
from eagleray.contracts.recipe import Recipe, Recipes


class Exemplar(Method):
    """Pretext task: recognise each image under random transformations, as a class of its own."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        classes: Annotated[
            int | None,
            IntRange(500, 32000),
            Field(ge=2, description="images that are a class, drawn by the seed; null: every image"),
        ] = 8000

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "recognised": Metric("share of images that are recognised, of those that are a class")
    }
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.01, lr_scaling="none"),
        small_settings={"classes": None},
    )

    targets: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        classes = config.classes or data.samples
        if classes > data.samples:
            raise ConfigError(
                f"method.classes={classes} is more than the {data.samples} training images: take fewer, or null for all"
            )
        self.classifier = nn.Linear(encoder.dim, classes)
        # The class of each image, at its index; -1: it is none.
        targets = torch.full((data.samples,), -1)
        chosen = torch.randperm(data.samples, generator=self.rng(0, 1))[:classes].sort().values
        targets[chosen] = torch.arange(classes)
        self.register_buffer("targets", targets)

    @property
    def views(self) -> tuple[View, ...]:
        # Enlarged by 1.4 a square shows half of the area.
        return (
            View(crop=(0.5, 1.0), shift=0.2, jitter=1.0, jitter_scale=(0.4, 0.7, 0.7, 0.1), jitter_probability=1.0),
        )

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        features, targets = self.encoder(batch.views[0]), self.targets[batch.indices]
        with torch.autocast(features.device.type, enabled=False):  # thousands of classes need more than bf16's digits
            logits = self.classifier(precise(features))
            loss = mean_over_classes(F.cross_entropy(logits, targets, ignore_index=-1, reduction="none"), targets)
            right = (logits.detach().argmax(1) == targets).to(logits.dtype)
        return StepResult(loss, [features.detach()], {"recognised": mean_over_classes(right, targets)})


def mean_over_classes(values: Tensor, targets: Tensor) -> Tensor:
    """Average over the images of all workers that are a class.

    [n], [n] -> a scalar, of which the mean over workers is that average; 0 if there is none. The values of the other
    images, whose target is -1, are 0.
    """
    count = all_reduce_sum((targets >= 0).sum())
    return world_size() * values.sum() / count.clamp(min=1)
