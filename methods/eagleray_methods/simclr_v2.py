"""SimCLR v2: SimCLR with a deeper head.

Chen, Kornblith, Swersky, Norouzi, Hinton 2020, https://arxiv.org/abs/2006.10029
The whole method is three commands: pretraining without labels, fine-tuning with few labels, and distillation of the
resulting network to a student (another network, or one like itself) on all images:

    eagleray train method=simclr_v2
    eagleray train method=finetune encoder.run=runs/eagleray/FIRST labels.per_class=40
    eagleray train method=distillation method.teacher=runs/eagleray/SECOND labels.per_class=40

Differs from the paper: the head's width is a setting, where the paper's is the width of its features. The memory of
additional negatives keeps one view of each image, and is empty at the start. Crops are resized by bilinear
interpolation, the authors' by bicubic (`augment.interpolation`). LARS is timm's, as for SimCLR. For images up to 64
pixels the views are those of SimCLR's CIFAR-10 study. The small recipe uses Muon, a narrower head, a higher
temperature and no memory: with few images the memory would soon contain the positive itself.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import nn

from eagleray.augment import View, simclr_view
from eagleray.blocks.losses import normalised, nt_xent
from eagleray.blocks.networks import Queue, check_queue, ema_update, frozen_copy, mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class SimCLRv2(Method):
    """Contrastive: SimCLR with a head of three layers, the first of which is kept for fine-tuning."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float,
            LogUniform(0.05, 1.0),
            Field(gt=0, description="how sharply near negatives are pushed away"),
        ] = 0.1
        hidden: Annotated[
            int,
            IntRange(128, 4096),
            Field(ge=1, description="width of the head's two hidden layers, the first of which is kept"),
        ] = 2048
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 128
        queue: Annotated[
            int, Field(ge=0, description="embeddings kept as additional negatives, whole batches; 0: no memory")
        ] = 65536
        momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the averaged network that fills the queue, if there is one"),
        ] = 0.999

    config: Config
    # 0.1 times the square root of the batch size; the warm-up is a twentieth of 800 epochs.
    recipes = Recipes(
        paper=Recipe(name="lars", lr=1.6, lr_scaling="sqrt", weight_decay=1e-4, warmup_epochs=40),
        small_settings={"temperature": 0.2, "hidden": 512, "queue": 0},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.hidden, config.projection], last_norm=True)
        if config.queue:
            check_queue(config.queue, data.batch_size)
            self.teacher = frozen_copy(nn.Sequential(self.encoder, self.projector))
            self.queue = Queue(config.queue, config.projection)

    @property
    def views(self) -> tuple[View, ...]:
        view = simclr_view(self.data.image_size)
        return view, view

    @property
    def backbone(self) -> nn.Module:
        # The head's first layer with its norm and ReLU (section 2 and figure 5).
        return nn.Sequential(self.encoder, self.projector[:3])

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # All views in one pass: batch norm must not distinguish them.
        embeddings = self.projector(self.encoder(torch.cat(batch.views)))  # [2N, projection]
        first, second = embeddings.chunk(2)
        negatives = self.queue.rows[: self.queue.filled] if self.config.queue else None
        loss = nt_xent(first, second, self.config.temperature, negatives)
        if self.config.queue:
            with torch.no_grad():
                self.queue.push(normalised(self.teacher(batch.views[1])))
        return StepResult(loss, [first.detach(), second.detach()])

    def after_step(self, progress: Progress) -> None:
        if self.config.queue:
            ema_update(self.teacher, nn.Sequential(self.encoder, self.projector), self.config.momentum)
