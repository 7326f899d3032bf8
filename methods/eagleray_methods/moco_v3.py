"""MoCo v3: find the teacher's embedding in the batch.

Chen, Xie, He 2021, https://arxiv.org/abs/2104.02057
Defaults and recipe are the paper's for a ViT. Its ResNet-50 of 1,000 epochs, by the authors' script and CONFIG.md:
`recipe=paper encoder=resnet50 encoder.zero_init_residual=true batch_size=4096 epochs=1000 method.temperature=1
method.momentum=0.996 augment.crop_min=0.2 optimizer.name=lars optimizer.lr=0.3 optimizer.weight_decay=1.5e-6
optimizer.warmup_epochs=10`.
Differs from the paper: a ViT's positions are learnt, and its features are chosen by `encoder.pool`. Images up to 64
pixels are not blurred, and their crops keep at least a fifth of the image. Weight decay excludes biases, norms and
tokens; the authors' AdamW excludes nothing. Under the small recipe the teacher moves fast enough for hundreds of steps.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import nn

from eagleray.augment import View, byol_views
from eagleray.blocks.losses import info_nce
from eagleray.blocks.networks import ema_update, frozen_copy, mlp
from eagleray.blocks.schedules import cosine
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder, TokenEncoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class MoCoV3(Method):
    """Contrastive: each view finds a slowly moving teacher's embedding of the other view in the batch; for ViTs."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float, LogUniform(0.05, 1.0), Field(gt=0, description="how sharply near negatives are pushed away")
        ] = 0.2
        momentum: Annotated[
            float,
            Uniform(0.9, 0.999),
            Field(ge=0, le=1, description="of the teacher at the start; it rises to 1 by a cosine"),
        ] = 0.99
        hidden: Annotated[
            int, IntRange(256, 4096), Field(ge=1, description="width of the hidden layers of projector and predictor")
        ] = 4096
        projection: Annotated[int, IntRange(64, 512), Field(ge=2, description="width of the embeddings compared")] = 256
        freeze_patches: Annotated[
            bool, Field(description="do not train a ViT's patch projection: training it is unstable")
        ] = True

    config: Config
    recipes = Recipes(
        paper=Recipe(lr=1.5e-4, weight_decay=0.1, warmup_epochs=40),
        small_settings={"momentum": 0.9, "hidden": 512, "projection": 128},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        vit = any(isinstance(part, TokenEncoder) for part in encoder.modules())  # a trained run's too
        if config.freeze_patches:
            freeze_patches(encoder)
        # Behind a ViT the projector is a layer deeper, and the predictor ends in a norm too (section 4.2 and its code).
        widths = [encoder.dim, *[config.hidden] * (2 if vit else 1), config.projection]
        self.projector = mlp(widths, last_norm=True, last_affine=False)
        self.predictor = mlp(
            [config.projection, config.hidden, config.projection], last_norm=vit, last_affine=False, last_bias=False
        )
        self.teacher = frozen_copy(nn.Sequential(self.encoder, self.projector))

    @property
    def views(self) -> tuple[View, ...]:
        return byol_views(self.data.image_size)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately, as in the paper's algorithm 1.
        online = [self.projector(self.encoder(view)) for view in batch.views]
        with torch.no_grad():
            keys = [self.teacher(view) for view in batch.views]
        queries, temperature = [self.predictor(z) for z in online], self.config.temperature
        loss = info_nce(queries[0], keys[1], temperature) + info_nce(queries[1], keys[0], temperature)
        # 2T makes the gradient's size independent of T, and comparable to BYOL's.
        return StepResult(2 * temperature * loss, [z.detach() for z in online])

    def after_step(self, progress: Progress) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        ema_update(self.teacher, student, cosine(self.config.momentum, 1.0, progress.fraction))


@torch.no_grad()
def freeze_patches(encoder: Encoder) -> None:
    """Stop training a ViT's patch projection (section 4.1).

    A new one is first drawn by Xavier's rule, as in the paper's code; that of a trained run is not changed.
    """
    for name, layer in encoder.named_modules():
        if name.endswith("patch_embed.proj") and isinstance(layer, nn.Conv2d):
            if isinstance(encoder, TokenEncoder):
                nn.init.xavier_uniform_(layer.weight.flatten(1))  # it is a linear layer of each patch
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            layer.requires_grad_(False)
