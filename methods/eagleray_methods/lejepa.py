"""LeJEPA: views agree, and embeddings are Gaussian along random directions.

Balestriero, LeCun 2025, https://arxiv.org/abs/2511.08544
There is neither a teacher nor a stopped gradient. Views and rates are those of the authors' page, for ViTs; for ResNets
it takes `optimizer.weight_decay=5e-4`. Each step draws new directions.
The statistic grows with the images of a step, N: for Gaussian embeddings it is 1 at any N, for equal ones 0.4 N. So
`weight` says something else at another batch size.
Differs from the paper: small crops have 3/7 of the side instead of 98 of 224 pixels, and warm-up takes one epoch, as in
the authors' example. Images up to 64 pixels are not blurred, and their small crops cover at least a tenth of the image.
The small recipe has two small crops, a narrower projector and fewer directions.
"""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from eagleray.augment import View, moco_view, multi_crop
from eagleray.blocks.distributed import all_reduce_mean, world_size
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import encode_crops, mlp, small_crop_size
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes

POINTS, LAST = 17, 3.0  # the statistic is integrated over 17 frequencies from 0 to 3


class LeJEPA(Method):
    """Joint embedding: all crops agree with the large ones, and embeddings follow an isotropic Gaussian."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[
            float,
            LogUniform(5e-3, 0.2),
            Field(gt=0, lt=1, description="of the Gaussian term, which grows with the batch; agreement has the rest"),
        ] = 0.05
        directions: Annotated[
            int, IntRange(64, 2048), Field(ge=1, description="random directions along which embeddings are tested")
        ] = 1024
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's two hidden layers")
        ] = 2048
        projection: Annotated[int, IntRange(16, 256), Field(ge=2, description="width of the embeddings")] = 64
        local_crops: Annotated[int, IntRange(0, 8), Field(ge=0, description="small crops, next to the two large")] = 6
        local_size: Annotated[
            int | None, Field(ge=1, description="their side in pixels; null: 3/7 of the image's, as 96 of 224")
        ] = None
        crop_split: Annotated[
            float,
            Uniform(0.1, 0.6),
            Field(ge=0.1, lt=1, description="part of the image that large crops cover at least, small ones at most"),
        ] = 0.3

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "agreement": Metric("squared distance of crops from the mean of the large ones", no_goal=TERM),
        "gaussianity": Metric("distance of the embeddings from a Gaussian: about 1 for a sample of one", no_goal=TERM),
    }
    recipes = Recipes(
        paper=Recipe(lr=5e-4, lr_scaling="none", weight_decay=0.05, warmup_epochs=1, final_lr=0.001),
        small_settings={"directions": 256, "hidden": 512, "projection": 16, "local_crops": 2},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.local_size = small_crop_size(config.local_size, encoder, data)
        self.projector = mlp([encoder.dim, config.hidden, config.hidden, config.projection])

    @property
    def views(self) -> tuple[View, ...]:
        size, config = self.data.image_size, self.config
        view = replace(moco_view(size), jitter_scale=(0.4, 0.4, 0.2, 0.1), solarize=0.2)
        return multi_crop((view, view), size, config.local_crops, self.local_size, config.crop_split)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        z = self.projector(encode_crops(self.encoder, batch.views)).unflatten(0, (len(batch.views), -1))
        directions = torch.randn(z.shape[-1], self.config.directions, generator=self.rng(progress.step))
        apart, unlike = agreement(z), sigreg(z, directions.to(z.device, non_blocking=True))
        loss = (1 - self.config.weight) * apart + self.config.weight * unlike
        return StepResult(loss, list(z.detach()), {"agreement": apart.detach(), "gaussianity": unlike.detach()})


def agreement(embeddings: Tensor) -> Tensor:
    """Compute the squared distance of all views from the mean of the first two.

    It is averaged over views, images and features, and the mean has a gradient too.

    Args:
        embeddings: [V, n, D]; the first two are those of the large crops.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = precise(embeddings)
        return (z[:2].mean(0) - z).square().mean()


def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Measure how far embeddings are from an isotropic Gaussian.

    The statistic of Epps and Pulley, averaged over views and directions a, with φ(t) = exp(-t²/2) and the images of all
    workers:

        N · ∫ | mean over n of exp(i t a·z_n) - φ(t) |² φ(t) dt

    from -3 to 3, by the trapezoidal rule; both halves are equal.

    Args:
        embeddings: [V, n, D].
        directions: [D, M], of any length; the same on all workers.

    Returns:
        A scalar, the same on every worker, float32 even inside a bf16 autocast (float64 for float64 embeddings).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = precise(embeddings)
        t = torch.linspace(0, LAST, POINTS, dtype=z.dtype, device=z.device)
        gaussian = (-t.square() / 2).exp()
        angles = (z @ F.normalize(directions.to(z.dtype), dim=0)).unsqueeze(-1) * t  # [V, n, M, T]
        parts = torch.stack([angles.cos().mean(1), angles.sin().mean(1)])
        real, imaginary = all_reduce_mean(parts)  # each [V, M, T]
        errors = (real - gaussian).square() + imaginary.square()
        samples = z.shape[1] * world_size()
        return 2 * samples * torch.trapezoid(errors * gaussian, t).mean()
