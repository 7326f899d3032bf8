"""Barlow Twins: features agree between views and are uncorrelated.

Zbontar, Jing, Misra, LeCun, Deny 2021, https://arxiv.org/abs/2103.03230
Differs from the paper: its lower rate for biases and norms (0.0048 instead of 0.2) is obtained by a `scale` of the loss
of 0.024, which under LARS changes nothing else except decay's small share of a step. Images up to 64 pixels are not
blurred, and their crops keep at least a fifth of the image. Crops are resized by bilinear interpolation, the authors'
by bicubic (`augment.interpolation`). The small recipe has a narrower projector and uses Muon and AdamW, where the
scale of the loss makes no difference.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View, byol_views
from eagleray.blocks.distributed import all_reduce_sum, mean_and_variance, world_size
from eagleray.blocks.losses import precise, squared_norm_of_product
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class BarlowTwins(Method):
    """Redundancy reduction: a feature agrees between two views of an image, and with no other feature."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        redundancy: Annotated[
            float, LogUniform(1e-3, 0.1), Field(ge=0, description="weight of the correlations between features")
        ] = 0.0051
        scale: Annotated[float, Field(gt=0, description="of the loss; under LARS it affects only biases and norms")] = (
            0.024
        )
        hidden: Annotated[
            int, IntRange(256, 8192), Field(ge=1, description="width of the projector's two hidden layers")
        ] = 8192
        projection: Annotated[
            int, IntRange(128, 8192), Field(ge=2, description="width of the embeddings; wider is better")
        ] = 8192

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "invariance": Metric("disagreement of the same feature between views, summed over the features", no_goal=TERM),
        "redundancy": Metric("squared correlations between different features, summed", no_goal=TERM),
    }
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10, final_lr=0.001),
        small_settings={"hidden": 512, "projection": 512},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.hidden, config.projection], last_bias=False)

    @property
    def views(self) -> tuple[View, ...]:
        return byol_views(self.data.image_size)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately, as in the paper's code.
        first, second = (self.projector(self.encoder(view)) for view in batch.views)
        invariance, redundancy = cross_correlation(first, second)
        loss = self.config.scale * (invariance + self.config.redundancy * redundancy)
        metrics: dict[str, Tensor | float] = {"invariance": invariance.detach(), "redundancy": redundancy.detach()}
        return StepResult(loss, [first.detach(), second.detach()], metrics)


def cross_correlation(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss's terms (equations 1 and 2).

    The distance of two views' cross-correlation matrix C from the identity:

        sum over i of (1 - C_ii)²,   sum over i and j != i of C_ij²

    Features are standardised over the batches of all workers, and C itself need not be computed.

    Args:
        first, second: [n, D] embeddings of the two views of the same n images.

    Returns:
        Two scalars, float32 at least, the same on every worker.
    """
    with torch.autocast(first.device.type, enabled=False):
        a, b = standardised(first), standardised(second)
        count = len(a) * world_size()
        diagonal = all_reduce_sum((a * b).sum(0)) / count  # [D]
        squares = squared_norm_of_product(a, b) / count**2  # of all of C
        return (1 - diagonal).square().sum(), squares - diagonal.square().sum()


def standardised(x: Tensor) -> Tensor:
    """Give each feature mean 0 and variance 1.

    [n, D], over the batches of all workers, in float32 at least.
    """
    x = precise(x)
    mean, variance = mean_and_variance(x)
    return (x - mean) * (variance + 1e-5).rsqrt()
