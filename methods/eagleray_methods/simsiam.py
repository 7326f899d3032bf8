"""SimSiam: predict the other view's embedding, with stopped gradient.

Chen, He 2020, https://arxiv.org/abs/2011.10566
Differs from the paper: weight decay excludes biases and norms. Images up to 64 pixels are not blurred, as in its study
of CIFAR-10 (appendix D). The small recipe uses Muon, and its projector and predictor are four times narrower.
"""

from typing import Annotated

from pydantic import BaseModel, Field

from eagleray.augment import View, moco_view
from eagleray.blocks.losses import cosine_loss
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.ranges import IntRange
from eagleray.contracts.recipe import Recipe, Recipes


class SimSiam(Method):
    """Distillation: a network predicts its own embedding of another view; no negatives, no moving average."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        hidden: Annotated[
            int, IntRange(256, 4096), Field(ge=1, description="width of the projector's two hidden layers")
        ] = 2048
        projection: Annotated[int, IntRange(128, 4096), Field(ge=2, description="width of the embeddings compared")] = (
            2048
        )
        bottleneck: Annotated[
            int, IntRange(32, 1024), Field(ge=1, description="width of the predictor's hidden layer; a quarter works")
        ] = 512

    config: Config
    collapsed_loss = -1.0
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.05, weight_decay=1e-4),
        small_settings={"hidden": 512, "projection": 512, "bottleneck": 128},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        # The last norm neither scales nor shifts, as in the paper's code.
        widths = [encoder.dim, config.hidden, config.hidden, config.projection]
        self.projector = mlp(widths, last_norm=True, last_affine=False)
        self.predictor = mlp([config.projection, config.bottleneck, config.projection])

    @property
    def views(self) -> tuple[View, ...]:
        view = moco_view(self.data.image_size)
        return view, view

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        # The predictor should follow the latest embeddings, so its rate does not decay (section 4.2).
        return (ParameterGroup(self.predictor, schedule="constant"),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately, as in the paper.
        first, second = (self.projector(self.encoder(view)) for view in batch.views)
        targets = first.detach(), second.detach()
        distance = cosine_loss(self.predictor(first), targets[1]) + cosine_loss(self.predictor(second), targets[0])
        return StepResult(distance / 4 - 1, list(targets))  # equation 2: the mean of both negative cosines
