"""Transformations: predict how an image was flipped and rotated.

Golan, El-Yaniv 2018, Deep Anomaly Detection Using Geometric Transformations, https://arxiv.org/abs/1805.10917
The eight are the symmetries of the square: pixels move, and no border or blur tells which it was. Where images look
alike in a mirror, as most photos do, no more than half of them can be told; rotations alone are method=rotnet. Views
never flip, which would undo the task.
Differs from the paper: it adds translations by a quarter of the side, 72 transformations together, and scores
anomalies; here the eight of its authors' `SimpleTransformer` are learnt for the features. The four flips are a choice
of ours. A batch holds all versions of its images, not some of each. The classifier is one linear layer on the pooled
features, so that these features are trained. Under the small recipe crops cover at least half of the image.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.rotations import chosen, flips, recognise_versions, square_symmetries
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, Uniform
from eagleray.contracts.recipe import Recipe, Recipes

VERSIONS = {"square": 8, "flips": 4}


class Transformations(Method):
    """Pretext task: predict which flips and right-angle rotations were applied to an image."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        group: Annotated[
            Literal["square", "flips"],
            Choice("square", "flips"),
            Field(description="square: four right angles, mirrored or not; flips: horizontal, vertical, both, none"),
        ] = "square"
        crop_min: Annotated[
            float, Uniform(0.3, 1.0), Field(gt=0, le=1, description="smallest area of a random crop; 1: none")
        ] = 1.0

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "transformation": Metric("share of images whose transformation is recognised")
    }
    recipes = Recipes(
        paper=Recipe(lr=1e-3, lr_scaling="none", weight_decay=0, final_lr=1.0),
        small_settings={"crop_min": 0.5},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, VERSIONS[config.group])

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(self.config.crop_min, 1.0)) if self.config.crop_min < 1 else View(),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        versions = self.versions(batch.views[0])
        return recognise_versions(self.encoder, self.classifier, versions, "transformation")

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Flip and rotate each image, and undo the transformation that is recognised."""
        drawn = torch.randint(VERSIONS[self.config.group], (len(images),), generator=self.rng(0))
        changed = chosen(self.versions(images), drawn.to(images.device))
        predicted = self.classifier(self.encoder(changed)).argmax(1)
        # Mirrored versions undo themselves, rotations those by as much the other way.
        undoing = predicted.where((predicted >= 4) | (self.config.group == "flips"), -predicted % 4)
        return {"changed": changed, "changed back": chosen(self.versions(changed), undoing)}

    def versions(self, images: Tensor) -> list[Tensor]:
        """Return the images under all transformations, each [N, C, S, S]."""
        return square_symmetries(images) if self.config.group == "square" else flips(images)
