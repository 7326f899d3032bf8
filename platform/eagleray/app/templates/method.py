"""NewPlugin: one plain sentence about the idea.

The paper's link. Differs from the paper: nothing yet.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch.nn import functional as F

from eagleray.augment import View, simclr_view
from eagleray.blocks.distributed import gather, own_rows
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform
from eagleray.contracts.recipe import SMALL, Recipe, Recipes


class NewPlugin(Method):
    """One sentence: each view finds the other view of its image in the batch."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float, LogUniform(0.05, 1.0), Field(gt=0, description="how sharply views are distinguished")
        ] = 0.2
        hidden: Annotated[int, IntRange(64, 2048), Field(ge=1, description="width of the projector's hidden layer")] = (
            512
        )
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 128

    config: Config
    recipes = Recipes(paper=Recipe(lr=1e-3), small=SMALL)

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.projection], last_norm=True)

    @property
    def views(self) -> tuple[View, ...]:
        view = simclr_view(self.data.image_size)
        return view, view

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        first, second = self.projector(self.encoder(torch.cat(batch.views))).chunk(2)  # [n, projection] each
        everywhere = F.normalize(gather(second), dim=1)  # of all workers, with gradient
        logits = F.normalize(first, dim=1) @ everywhere.T / self.config.temperature
        own = own_rows(torch.arange(len(everywhere), device=logits.device))
        return StepResult(F.cross_entropy(logits, own), [first.detach(), second.detach()])
