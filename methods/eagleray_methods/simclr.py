"""SimCLR: views of one image find each other.

Chen, Kornblith, Norouzi, Hinton 2020, https://arxiv.org/abs/2002.05709
Differs from the paper: for images up to 64 pixels the views are those of its CIFAR-10 study (appendix B.9: no blur,
half the jitter). Crops are resized by bilinear interpolation, the authors' by bicubic (`augment.interpolation`). LARS
is timm's, where the learning rate multiplies the momentum buffer; in the authors' (TensorFlow) it is part of the
buffer, so the two differ only while the rate changes.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field

from eagleray.augment import View, simclr_view
from eagleray.blocks.losses import nt_xent
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class SimCLR(Method):
    """Contrastive: two views of an image find each other among all other views in the batch."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float,
            LogUniform(0.05, 1.0),
            Field(gt=0, description="how sharply near negatives are pushed away"),
        ] = 0.1
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's hidden layer")
        ] = 2048
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 128

    config: Config
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10),
        small_settings={"temperature": 0.2, "hidden": 512},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.projection], last_norm=True)

    @property
    def views(self) -> tuple[View, ...]:
        view = simclr_view(self.data.image_size)
        return view, view

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # All views in one pass: batch norm must not distinguish them.
        embeddings = self.projector(self.encoder(torch.cat(batch.views)))  # [2N, projection]
        first, second = embeddings.chunk(2)
        return StepResult(nt_xent(first, second, self.config.temperature), [first.detach(), second.detach()])
