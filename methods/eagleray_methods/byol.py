"""BYOL: a network predicts what its own slowly moving average says of another view; no negatives.

Grill et al. 2020, https://arxiv.org/abs/2006.07733
Differs from the paper: up to 64 pixels there is no blur, which at that size removes the object.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import nn

from eagleray.augment import View
from eagleray.encoder import Encoder
from eagleray.losses import cosine_loss
from eagleray.method import Batch, DataInfo, Method, Progress, StepResult
from eagleray.networks import ema_update, frozen_copy, mlp
from eagleray.recipe import Recipe
from eagleray.schedules import cosine
from eagleray.search import IntRange, Uniform


class BYOL(Method):
    """Distillation: a network predicts what its own moving average says of another view; no negatives."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        momentum: Annotated[
            float,
            Uniform(0.9, 0.999),
            Field(ge=0, le=1, description="of the teacher at the start; it ends at 1, by cosine"),
        ] = 0.996
        hidden: Annotated[
            int,
            IntRange(256, 4096),
            Field(ge=1, description="width of the hidden layers of projector and predictor"),
        ] = 4096
        projection: Annotated[int, IntRange(64, 512), Field(ge=2, description="width of the embeddings compared")] = 256

    recipe: ClassVar[Recipe] = Recipe(name="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10)
    small_recipe: ClassVar[Recipe] = Recipe(lr=2e-3, lr_scaling="sqrt", weight_decay=1e-4, warmup_epochs=0.5)
    small_settings: ClassVar[dict[str, Any]] = {"momentum": 0.97, "hidden": 512, "projection": 128}

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.projection])
        self.predictor = mlp([config.projection, config.hidden, config.projection])
        self.teacher = frozen_copy(nn.Sequential(self.encoder, self.projector))

    @property
    def views(self) -> tuple[View, ...]:
        large = self.data.image_size > 64
        shared: dict[str, Any] = {
            "crop": (0.08, 1.0), "flip": 0.5, "grayscale": 0.2, "jitter": 1.0, "jitter_scale": (0.4, 0.4, 0.2, 0.1)
        }  # fmt: skip
        first = View(**shared, blur=1.0 if large else 0.0)
        second = View(**shared, blur=0.1 if large else 0.0, solarize=0.2)
        return first, second

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Each view normalised by itself, as in the paper; both directions are summed (its equation 2 and what follows).
        online = [self.projector(self.encoder(view)) for view in batch.views]
        with torch.no_grad():
            targets = [self.teacher(view) for view in batch.views]
        predicted = [self.predictor(z) for z in online]
        loss = cosine_loss(predicted[0], targets[1]) + cosine_loss(predicted[1], targets[0])
        return StepResult(loss, [z.detach() for z in online])

    def after_step(self, progress: Progress) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        ema_update(self.teacher, student, cosine(self.config.momentum, 1.0, progress.fraction))
