"""W-MSE: views become equal where batches are whitened.

Ermolov, Siarohin, Sangineto, Sebe 2020, https://arxiv.org/abs/2007.06346
Defaults are those of its CIFAR-10 runs with two views and 512 images per step; `views=4` with 256 images is its W-MSE
4. Of 1000 epochs, the learning rate is divided by five 50 epochs before the end, and again 25 epochs before it.
Differs from the paper: weight decay is AdamW's, and excludes biases and norms. Crops are resized by bilinear
interpolation, the authors' by bicubic (`augment.interpolation`). Under the small recipe there are four images for each
whitened dimension. With AdamW its learning rate must be low: at 2e-3 all images may collapse to one curve, along which
whitening still finds all directions (the embeddings' rank is then below 2); with Muon none of three seeds did. A little
shrinkage keeps the first steps stable.
"""

from itertools import combinations
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View
from eagleray.blocks.distributed import gather
from eagleray.blocks.losses import cosine_loss, precise
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Choice, IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class WMSE(Method):
    """Whitening: views of an image become equal in a space where every batch is whitened."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        views: Annotated[int, Choice(2, 4), Field(ge=2, le=8, description="views of an image, compared in pairs")] = 2
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's hidden layer")
        ] = 1024
        projection: Annotated[int, Choice(16, 32, 64, 128), Field(ge=2, description="width that is whitened")] = 64
        sub_batch: Annotated[
            int, Choice(64, 128, 256), Field(ge=3, description="images whitened together, best twice the width")
        ] = 128
        iterations: Annotated[
            int, IntRange(1, 8), Field(ge=1, description="random divisions of the batch into sub-batches")
        ] = 1
        shrinkage: Annotated[
            float, LogUniform(1e-6, 1e-1), Field(ge=0, lt=1, description="share of the identity in the covariance")
        ] = 0.0

    config: Config
    recipes = Recipes(
        paper=Recipe(
            lr=3e-3, lr_scaling="none", weight_decay=1e-6, warmup_epochs=5, drops=(0.95, 0.975), drop_factor=0.2
        ),
        small_settings={"hidden": 512, "projection": 32, "shrinkage": 1e-3},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        if data.batch_size % config.sub_batch:
            raise ConfigError(
                f"method.sub_batch={config.sub_batch} does not divide batch_size={data.batch_size}: take a divisor of "
                f"it, or batch_size={config.sub_batch * max(1, round(data.batch_size / config.sub_batch))}"
            )
        if config.projection >= config.sub_batch:
            raise ConfigError(
                f"method.projection={config.projection} is too wide to be whitened by "
                f"method.sub_batch={config.sub_batch} images: take {config.sub_batch // 2} or less"
            )
        self.projector = mlp([encoder.dim, config.hidden, config.projection])

    @property
    def views(self) -> tuple[View, ...]:
        view = View(crop=(0.2, 1.0), flip=0.5, grayscale=0.1, jitter=1.0, jitter_scale=(0.4, 0.4, 0.4, 0.1))
        return (view,) * self.config.views

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately in the encoder, all together in the projector, as in the paper's code.
        features = torch.cat([self.encoder(view) for view in batch.views])
        embeddings = self.projector(features).chunk(len(batch.views))
        everyone = gather(torch.stack(embeddings, 1))  # [N, views, projection] of all workers, on each of them
        generator = self.rng(progress.step)
        orders = [torch.randperm(len(everyone), generator=generator) for _ in range(self.config.iterations)]
        order = torch.cat(orders).view(-1, self.config.sub_batch).to(everyone.device, non_blocking=True)
        loss = w_mse(everyone.transpose(0, 1), order, self.config.shrinkage)
        return StepResult(loss, [z.detach() for z in embeddings])


def w_mse(embeddings: Tensor, order: Tensor, shrinkage: float) -> Tensor:
    """Compute the distance of whitened views.

    The mean squared distance of whitened, normalised views, over all pairs of views (equations 3 to 6).

    Args:
        embeddings: [views, N, D], not normalised.
        order: which images are whitened together, [sub-batches, size]; each view is whitened separately.
        shrinkage: share of the identity in the covariance.

    Returns:
        A scalar from 0 to 4, float32 even inside a bf16 autocast (float64 for float64 embeddings).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        white = whiten(precise(embeddings)[:, order], shrinkage).flatten(1, 2)  # [views, order's images, D]
        return torch.stack([cosine_loss(one, other) for one, other in combinations(white, 2)]).mean()


def whiten(x: Tensor, shrinkage: float) -> Tensor:
    """Whiten by the shrunk covariance.

    L⁻¹(x - mean), where L Lᵀ is the shrunk covariance: [..., n, D] -> the same shape. The result has mean zero and
    identity covariance; it is NaN if no such L exists because a direction has no variance.
    """
    centred = x - x.mean(-2, keepdim=True)
    covariance = centred.mT @ centred / (x.shape[-2] - 1)  # [..., D, D]
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    # `cholesky` without `_ex` would make the host wait for the GPU, and raise its own error in a collapsed run.
    factor, failed = torch.linalg.cholesky_ex((1 - shrinkage) * covariance + shrinkage * identity)
    factor = factor.where(failed[..., None, None] == 0, torch.nan)
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
