"""MMCR: the means of views lie far apart, so that views of an image lie close together.

Yerxa, Kuang, Simoncelli, Chung 2023, https://arxiv.org/abs/2303.03307
Embeddings have length 1, so that the mean of an image's views is long only if they agree; the sum of the means'
singular values is large if they are long and point everywhere. Rates, projector and views are those of the authors'
ImageNet runs with two views. With more `views` fewer images fit: their CIFAR-10 runs have 40 of each of 32 images.
Differs from the paper: the loss is divided by the number of images, so that it can be compared between batch sizes.
Under the paper's recipe LARS takes the same steps in matrices; in norms and biases, whose rate it does not adapt, they
are smaller by as much. There is no teacher, as in the paper; the authors' code for ImageNet adds one.
The term of single images' singular values, whose weight is 0 in the paper, is left out. Images up to 64 pixels are not
blurred, and their crops keep at least a fifth of the image. Crops are resized by bilinear interpolation, the authors'
by bicubic (`augment.interpolation`). The small recipe has four views and a narrower projector.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View, byol_views
from eagleray.blocks.distributed import gather
from eagleray.blocks.losses import normalised
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, IntRange
from eagleray.contracts.recipe import Recipe, Recipes


class MMCR(Method):
    """Joint embedding: the means of images' views span as many directions, as far, as they can."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        views: Annotated[int, Choice(2, 4, 8), Field(ge=2, description="views of an image, whose mean is taken")] = 2
        hidden: Annotated[
            int, IntRange(256, 8192), Field(ge=1, description="width of the projector's two hidden layers")
        ] = 8192
        projection: Annotated[
            int,
            IntRange(32, 1024),
            Field(ge=2, description="width of the embeddings"),
        ] = 512

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "agreement": Metric("mean length of the means of an image's views: 1 if views are equal", no_goal=TERM)
    }
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.6, weight_decay=1e-6, warmup_epochs=10, final_lr=0.001),
        small_settings={"views": 4, "hidden": 512, "projection": 128},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.hidden, config.projection], last_bias=False)

    @property
    def views(self) -> tuple[View, ...]:
        pair = byol_views(self.data.image_size)
        return tuple(pair[number % 2] for number in range(self.config.views))

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        z = self.projector(self.encoder(torch.cat(batch.views))).unflatten(0, (len(batch.views), -1))
        with torch.autocast(z.device.type, enabled=False):
            z = normalised(z)
            agreement = z.detach().mean(0).norm(dim=-1).mean()
        return StepResult(mmcr(z), list(z.detach()), {"agreement": agreement})


def mmcr(embeddings: Tensor) -> Tensor:
    """Compute the negative nuclear norm of the means of views (equation 2).

    - (sum of the singular values of C) / N, where row i of C is the mean of image i's views.

    Args:
        embeddings: [V, n, D], of length 1.

    Returns:
        A scalar, the same on every worker. With more images than features it is at least -sqrt(D / N), which equal
        views reach that lie evenly on the sphere; with fewer, at least -1.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        means = gather(embeddings.mean(0))  # [N, D]
        return -torch.linalg.svdvals(means).sum() / len(means)
