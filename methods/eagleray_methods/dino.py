"""DINO: predict a moving average's classes from small crops.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin 2021, https://arxiv.org/abs/2104.14294
The defaults are those of the authors' best ViT-S/16. A ViT's features are pooled by `encoder.pool`; the paper's are
the class token. The teacher is evaluated, as in the paper.
Differs from the paper: there is no stochastic depth, and prototypes keep the norm 1, as the paper's do for ViT-B.
Weight decay also excludes position embeddings and class tokens, where the authors' excludes only biases and vectors.
The gradient is clipped as a whole, not parameter by parameter, at 3.0, the default of their script. Images up to 64
pixels are not blurred, and their small crops cover at least a tenth of the image. Crops are resized by bilinear
interpolation, the authors' by bicubic (`augment.interpolation`). The small recipe has two small crops and fewer
prototypes, and is tuned for hundreds of steps: the teacher moves faster, and the centre faster still, since all images
collapse together if the centre lags behind the teacher. The teacher stays sharp, and batch norm ends the head
(`last_norm`), so that its targets spread.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View, byol_views, multi_crop
from eagleray.blocks.losses import cross_view_loss
from eagleray.blocks.networks import Centre, PrototypeHead, ema_update, encode_crops, frozen_copy, small_crop_size
from eagleray.blocks.schedules import cosine, ramp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SMALL, Recipe, Recipes


class DINO(Method):
    """Distillation: from small crops it predicts its own moving average's centred, sharpened output for large ones."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        prototypes: Annotated[
            int, IntRange(64, 4096), Field(ge=2, description="classes that teacher and student distinguish")
        ] = 65536
        temperature: Annotated[float, LogUniform(0.05, 0.5), Field(gt=0, description="of the student")] = 0.1
        teacher_start: Annotated[
            float, LogUniform(0.02, 0.08), Field(gt=0, description="the teacher's temperature at the start")
        ] = 0.04
        teacher_temperature: Annotated[
            float, LogUniform(0.02, 0.08), Field(gt=0, description="the teacher's temperature after its warm-up")
        ] = 0.07
        teacher_warmup: Annotated[float, Field(ge=0, description="epochs in which this temperature rises")] = 30.0
        momentum: Annotated[
            float, Uniform(0.9, 0.999), Field(ge=0, le=1, description="of the teacher at the start; at the end it is 1")
        ] = 0.996
        centre_momentum: Annotated[
            float, Uniform(0.5, 0.99), Field(ge=0, lt=1, description="of the mean of the teacher's logits")
        ] = 0.9
        frozen_epochs: Annotated[float, Field(ge=0, description="epochs before prototypes start to move")] = 1.0
        hidden: Annotated[int, IntRange(128, 4096), Field(ge=1, description="width of the head's hidden layers")] = 2048
        bottleneck: Annotated[
            int, IntRange(32, 512), Field(ge=2, description="width of the vectors compared with prototypes")
        ] = 256
        norm: Annotated[bool, Choice(True, False), Field(description="batch norm in the head's hidden layers")] = False
        last_norm: Annotated[bool, Choice(True, False), Field(description="batch norm after the bottleneck")] = False
        local_crops: Annotated[int, IntRange(0, 8), Field(ge=0, description="small crops, next to the two large")] = 10
        local_size: Annotated[
            int | None, Field(ge=1, description="their side in pixels; null: 3/7 of the image's, as 96 of 224")
        ] = None
        crop_split: Annotated[
            float,
            Uniform(0.1, 0.6),
            Field(ge=0.1, lt=1, description="part of the image that large crops cover at least, small ones at most"),
        ] = 0.25

    config: Config
    collapsed_loss = 0.0
    recipes = Recipes(
        paper=Recipe(lr=5e-4, weight_decay=0.04, final_weight_decay=0.4, warmup_epochs=10, final_lr=0.005, clip=3.0),
        small=SMALL.model_copy(update={"warmup_epochs": 1.0, "clip": 3.0}),
        small_settings={
            "prototypes": 1024,
            "teacher_temperature": 0.04,
            "momentum": 0.99,
            "centre_momentum": 0.7,
            "hidden": 512,
            "bottleneck": 128,
            "norm": True,
            "last_norm": True,
            "local_crops": 2,
        },
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.local_size = small_crop_size(config.local_size, encoder, data)
        widths = [encoder.dim, config.hidden, config.hidden, config.bottleneck]
        self.head = PrototypeHead(widths, config.prototypes, norm=config.norm, last_norm=config.last_norm)
        self.teacher = frozen_copy(nn.Sequential(self.encoder, self.head))
        self.centre = Centre(config.prototypes, config.centre_momentum)

    @property
    def views(self) -> tuple[View, ...]:
        size, config = self.data.image_size, self.config
        return multi_crop(byol_views(size), size, config.local_crops, self.local_size, config.crop_split)

    @property
    def backbone(self) -> nn.Module:
        return self.teacher[0]

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        embedded = self.head.embed(encode_crops(self.encoder, batch.views))  # [V * n, bottleneck]
        logits = self.head.compare(embedded).unflatten(0, (len(batch.views), -1))  # [V, n, prototypes]
        with torch.no_grad():
            teacher = self.teacher(torch.cat(batch.views[:2]))  # only large crops
        config = self.config
        sharp = ramp(config.teacher_start, config.teacher_temperature, config.teacher_warmup, progress)
        targets = self.centre.targets(teacher, sharp).unflatten(0, (2, -1))
        self.centre.update(teacher)
        loss = cross_view_loss(targets, logits, config.temperature)
        return StepResult(loss, list(embedded.detach().chunk(len(batch.views))))

    def before_step(self, progress: Progress) -> None:
        if progress.epochs_done < self.config.frozen_epochs:
            self.head.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        student = nn.Sequential(self.encoder, self.head)
        ema_update(self.teacher, student, cosine(self.config.momentum, 1.0, progress.fraction))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.teacher[0](images)
