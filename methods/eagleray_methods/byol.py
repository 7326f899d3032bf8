"""BYOL: predict a moving average's embedding of another view.

Grill et al. 2020, https://arxiv.org/abs/2006.07733
Differs from the paper: images up to 64 pixels are not blurred, and their crops keep at least a fifth of the image,
since smaller crops lose the object. Crops are resized by bilinear interpolation, the paper's by bicubic
(`augment.interpolation`). Under the small recipe the projector ends with a batch norm (`last_norm`), which makes the
targets spread within hundreds of steps instead of hundreds of thousands.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import nn

from eagleray.augment import View, byol_views
from eagleray.blocks.losses import cosine_loss
from eagleray.blocks.networks import ema_update, frozen_copy, mlp
from eagleray.blocks.schedules import cosine
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class BYOL(Method):
    """Distillation: a network predicts its own moving average's embedding of another view; no negatives."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        momentum: Annotated[
            float,
            Uniform(0.9, 0.999),
            Field(ge=0, le=1, description="of the teacher at the start; it rises to 1 by a cosine"),
        ] = 0.996
        hidden: Annotated[
            int, IntRange(256, 4096), Field(ge=1, description="width of the hidden layers of projector and predictor")
        ] = 4096
        projection: Annotated[int, IntRange(64, 512), Field(ge=2, description="width of the embeddings compared")] = 256
        last_norm: Annotated[bool, Field(description="end the projector with a batch norm")] = False

    config: Config
    collapsed_loss = 0.0
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10),
        small_settings={"momentum": 0.9, "hidden": 512, "projection": 128, "last_norm": True},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.projection], last_norm=config.last_norm)
        self.predictor = mlp([config.projection, config.hidden, config.projection])
        self.teacher = frozen_copy(nn.Sequential(self.encoder, self.projector))

    @property
    def views(self) -> tuple[View, ...]:
        return byol_views(self.data.image_size)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately, as in the paper; both directions are summed (equation 2 and below).
        online = [self.projector(self.encoder(view)) for view in batch.views]
        with torch.no_grad():
            targets = [self.teacher(view) for view in batch.views]
        predicted = [self.predictor(z) for z in online]
        loss = cosine_loss(predicted[0], targets[1]) + cosine_loss(predicted[1], targets[0])
        return StepResult(loss, [z.detach() for z in online])

    def after_step(self, progress: Progress) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        ema_update(self.teacher, student, cosine(self.config.momentum, 1.0, progress.fraction))
