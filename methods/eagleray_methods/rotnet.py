"""RotNet: predict by which angle an image was rotated.

Gidaris, Singh, Komodakis 2018, https://arxiv.org/abs/1803.07728
Rates, schedule and crops are those of the authors' CIFAR-10 runs: 0.1 for 128 images, divided by five after 60, 120 and
160 of 200 epochs. The paper compares four rotations with 2 and 8, and finds four best. Right angles move pixels alone.
Rotations by 45 degrees resample the image, so with `method.rotations=8` all eight do; in images that are not smooth a
network still tells diagonals by how they were interpolated.
Differs from the paper: the classifier is one linear layer on the pooled features, so that these features are trained.
Weight decay excludes biases and norms; the authors' includes them. Under the small recipe crops cover at least half of
the image.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.rotations import chosen, eight_rotations, four_rotations, recognise_versions
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice
from eagleray.contracts.recipe import Recipe, Recipes


class RotNet(Method):
    """Pretext task: predict by which angle an image was rotated, by default one of four right angles."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        rotations: Annotated[
            Literal[2, 4, 8],
            Choice(2, 4, 8),
            Field(
                description="2: upright and upside down; 4: right angles; 8: multiples of 45 degrees, of the central "
                "half of the area"
            ),
        ] = 4
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
        self.classifier = nn.Linear(encoder.dim, config.rotations)

    @property
    def views(self) -> tuple[View, ...]:
        # Colours say nothing about the rotation, and crops that keep little of the object make it unrecognisable.
        if self.config.crop == "padded":
            return (View(shift=0.125, shift_border="black", flip=0.5),)
        return (View(crop=(0.5, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        return recognise_versions(self.encoder, self.classifier, self.rotated(batch.views[0]), "rotation")

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Rotate each image, and turn it back by the rotation that is recognised.

        Each of eight rotations shows the central half of the area, and the way back the central half of that.
        """
        count = self.config.rotations
        turned = chosen(
            self.rotated(images), torch.randint(count, (len(images),), generator=self.rng(0)).to(images.device)
        )
        predicted = self.classifier(self.encoder(turned)).argmax(1)
        return {"turned": turned, "turned back": chosen(self.rotated(turned), -predicted % count)}

    def rotated(self, images: Tensor) -> list[Tensor]:
        """Return the images under all rotations, each [N, C, S, S]."""
        if self.config.rotations == 8:
            return eight_rotations(images)
        return list(four_rotations(images).chunk(4))[:: 4 // self.config.rotations]
