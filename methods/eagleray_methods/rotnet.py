"""RotNet: predict an image's rotation by right angles.

Gidaris, Singh, Komodakis 2018, https://arxiv.org/abs/1803.07728
Rates, schedule and crops are those of the authors' CIFAR-10 runs: 0.1 for 128 images, divided by five after 60, 120 and
160 of 200 epochs.
Differs from the paper: the classifier is one linear layer on the pooled features, so that these features are trained.
Weight decay excludes biases and norms; the authors' includes them. Under the small recipe crops cover at least half of
the image.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.rotations import four_rotations
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice
from eagleray.contracts.recipe import Recipe, Recipes


class RotNet(Method):
    """Pretext task: predict by which right angle an image was rotated."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        crop: Annotated[
            Literal["padded", "resized"],
            Choice("padded", "resized"),
            Field(
                description="padded: shifted by up to an eighth of the side, black beyond the border; "
                "resized: at least half of the area"
            ),
        ] = "padded"

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {"rotation": Metric("share of images whose rotation is recognised")}
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.2, nesterov=True, weight_decay=5e-4, drops=(0.3, 0.6, 0.8), drop_factor=0.2),
        small_settings={"crop": "resized"},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, 4)

    @property
    def views(self) -> tuple[View, ...]:
        # Colours say nothing about the rotation, and crops that keep little of the object make it unrecognisable.
        if self.config.crop == "padded":
            return (View(shift=0.125, shift_border="black", flip=0.5),)
        return (View(crop=(0.5, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        features = self.encoder(four_rotations(images))  # [4N, dim]
        targets = torch.arange(4, device=images.device).repeat_interleave(len(images))
        logits = self.classifier(features)
        recognised = (logits.detach().argmax(1) == targets).float().mean()
        # The four parts are the same images under four rotations, like two views under two crops.
        embeddings = list(features.detach().chunk(4))
        return StepResult(F.cross_entropy(logits, targets), embeddings, {"rotation": recognised})
