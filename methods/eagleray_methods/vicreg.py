"""VICReg: invariance to views, variance and covariance of features.

Bardes, Ponce, LeCun 2021, https://arxiv.org/abs/2105.04906
As in the paper's code, the distance of the views is a mean over features too, and the hinge a mean over both views.
Differs from the paper: images up to 64 pixels are not blurred, and their crops keep at least a fifth of the image.
Crops are resized by bilinear interpolation, the authors' by bicubic (`augment.interpolation`). The small recipe has a
narrower projector (the paper's expander) and uses Muon.
"""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from eagleray.augment import View, byol_views
from eagleray.blocks.distributed import mean_and_variance, world_size
from eagleray.blocks.losses import precise, squared_norm_of_product
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class VICReg(Method):
    """Redundancy reduction: views of an image agree, while each feature keeps its spread and none repeats another."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        invariance: Annotated[
            float, LogUniform(1, 100), Field(ge=0, description="weight of the distance between views")
        ] = 25.0
        variance: Annotated[
            float, LogUniform(1, 100), Field(ge=0, description="weight of the hinge on each feature's spread")
        ] = 25.0
        covariance: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="weight of the covariances between features")
        ] = 1.0
        hidden: Annotated[
            int, IntRange(256, 8192), Field(ge=1, description="width of the projector's two hidden layers")
        ] = 8192
        projection: Annotated[int, IntRange(128, 8192), Field(ge=2, description="width of the embeddings")] = 8192

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "invariance": Metric("mean squared distance of the two views' embeddings", no_goal=TERM),
        "variance": Metric("amount by which the features' standard deviation is below 1, on average", no_goal=TERM),
        "covariance": Metric("squared covariances between different features, summed, for each feature", no_goal=TERM),
    }
    collapsed_loss = 0.0
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.2, weight_decay=1e-6, warmup_epochs=10, final_lr=0.001),
        small_settings={"hidden": 512, "projection": 512},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.hidden, config.projection], last_bias=False)

    @property
    def views(self) -> tuple[View, ...]:
        # One view that combines BYOL's two (appendix C.1): both branches are the same.
        first, _ = byol_views(self.data.image_size)
        view = replace(first, blur=first.blur / 2, solarize=0.1)
        return view, view

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately, as in the paper's code.
        first, second = (self.projector(self.encoder(view)) for view in batch.views)
        invariance, variance, covariance = vicreg_terms(first, second)
        weight = self.config
        loss = weight.invariance * invariance + weight.variance * variance + weight.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        metrics: dict[str, Tensor | float] = {name: term.detach() for name, term in terms.items()}
        return StepResult(loss, [first.detach(), second.detach()], metrics)


def vicreg_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss's three unweighted terms.

    Equations 1 to 5, scaled as in the paper's code:

        invariance:  mean over images and features of (z - z')²
        variance:    mean over views and features of max(0, 1 - sqrt(Var + 1e-4))
        covariance:  sum over views of 1/D times the sum over i and j != i of Cov_ij²

    Variances and covariances are taken over the batches of all workers; the covariance matrix need not be computed.

    Args:
        first, second: [n, D] embeddings of the two views of the same n images.

    Returns:
        Three scalars, float32 at least.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = precise(first), precise(second)
        (lack, covariance), (other_lack, other_covariance) = map(variance_and_covariance, (first, second))
        return F.mse_loss(first, second), (lack + other_lack) / 2, covariance + other_covariance


def variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one view's variance and covariance terms, [n, D]."""
    count = len(z) * world_size()
    mean, biased = mean_and_variance(z)
    centred, variance = z - mean, biased * count / (count - 1)
    squares = squared_norm_of_product(centred, centred) / (count - 1) ** 2  # of the whole covariance matrix
    hinge = F.relu(1 - (variance + 1e-4).sqrt()).mean()
    return hinge, (squares - variance.square().sum()) / z.shape[1]
