"""NPID: a memory bank distinguishes each image from others.

Wu, Xiong, Yu, Lin 2018, https://arxiv.org/abs/1805.01978
Its classifier, weighted k nearest neighbours (section 3.4), evaluates every run of Eagleray, by default with the
paper's 200 neighbours and temperature, but on the encoder's features, not on the projector's.
Differs from the paper: the images of a step share their noise, which does not change the expectation and replaces a
gather of batch * negatives vectors by one matrix product. Views drop the colour after the colour jitter, not before.
Weight decay excludes biases and norms; the authors' includes them. The paper has the proximal term but does not give
its weight; the authors' code has the bank's momentum instead: `proximal=0 momentum=0.5`. The small recipe sees an image
ten times, not hundreds of times. So its projector has a hidden layer and ends with a batch norm, without which all
vectors drift in one direction and the bank follows them. The temperature is higher, negatives are fewer because there
are fewer images, and momentum alone keeps the vectors stable.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.memory_bank import MemoryBank
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class NPID(Method):
    """Contrastive: a memory bank of embeddings distinguishes each image from all others."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float, LogUniform(0.05, 0.5), Field(gt=0, description="how sharply near images are distinguished")
        ] = 0.07
        negatives: Annotated[
            int, IntRange(256, 16384), Field(ge=1, description="vectors drawn from the bank as noise, in each step")
        ] = 4096
        proximal: Annotated[
            float, Uniform(0, 50), Field(ge=0, description="weight of the pull towards an image's previous vector")
        ] = 10.0
        momentum: Annotated[
            float, Uniform(0, 0.9), Field(ge=0, lt=1, description="share of the old vector in an image's new one")
        ] = 0.0
        hidden: Annotated[
            int, Field(ge=0, description="width of the projector's hidden layer; 0: a single linear layer")
        ] = 0
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the bank's vectors")] = 128
        last_norm: Annotated[bool, Field(description="end the projector with a batch norm")] = False

    config: Config
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.03, weight_decay=1e-4, drops=(0.6, 0.8)),
        small_settings={
            "temperature": 0.2,
            "negatives": 1024,
            "proximal": 0.0,
            "momentum": 0.5,
            "hidden": 512,
            "last_norm": True,
        },
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        hidden = [config.hidden] if config.hidden else []
        self.projector = mlp([encoder.dim, *hidden, config.projection], last_norm=config.last_norm)
        self.bank = MemoryBank(data.samples, config.projection)

    @property
    def views(self) -> tuple[View, ...]:
        jitter = {"jitter": 1.0, "jitter_scale": (0.4, 0.4, 0.4, 0.4), "jitter_probability": 1.0}
        return (View(crop=(0.2, 1.0), flip=0.5, grayscale=0.2, **jitter),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        embedded = self.projector(self.encoder(images))
        with torch.autocast(images.device.type, enabled=False):
            vectors = F.normalize(embedded.to(self.bank.rows.dtype), dim=1)  # [N, projection]
            previous, generator = self.bank.rows[batch.indices], self.rng(progress.step)
            config = self.config
            loss = self.bank.contrast(vectors, batch.indices, config.negatives, config.temperature, generator)
            loss = loss + config.proximal * (vectors - previous).square().sum(1).mean()
        self.bank.remember(vectors.detach(), batch.indices, config.momentum)
        return StepResult(loss, [vectors.detach()])
