"""Triplet margin: an image's other view is nearest.

Schroff, Kalenichenko, Philbin 2015 (FaceNet), https://arxiv.org/abs/1503.03832
Differs from the paper: the positive is another view of the same image, not another photo of the same person, and the
views are SimCLR's. SGD with momentum replaces AdaGrad, and the rate falls by a cosine, where the paper's is lowered at
the end. If no image of the batch is farther than the positive, the farthest is the negative: the triplet then keeps a
gradient that does not lead to collapse. The small recipe compares after a projector with a hidden layer.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View, simclr_view
from eagleray.blocks.distributed import gather, rank
from eagleray.blocks.losses import normalised
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class Triplet(Method):
    """Contrastive: closer to the other view than to the nearest image beyond it, by a margin."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        margin: Annotated[
            float,
            Uniform(0.05, 1.0),
            Field(gt=0, le=4, description="smallest difference of squared distances on the unit sphere, 0 to 4"),
        ] = 0.2
        hidden: Annotated[
            int, Field(ge=0, description="width of the projector's hidden layer; 0: a single linear layer")
        ] = 0
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 128

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "active": Metric("share of triplets within the margin"),
        "semi_hard": Metric("share of triplets whose negative is farther than the positive, but within the margin"),
    }
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.05, lr_scaling="none", weight_decay=0.0), small_settings={"hidden": 512}
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        hidden = [config.hidden] if config.hidden else []
        self.projector = mlp([encoder.dim, *hidden, config.projection])

    @property
    def views(self) -> tuple[View, ...]:
        view = simclr_view(self.data.image_size)
        return view, view

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        embeddings = self.projector(self.encoder(torch.cat(batch.views)))  # [2N, projection]
        positive, negative = semi_hard(embeddings)  # [2N] each
        gaps = positive - negative + self.config.margin
        active = gaps.detach() > 0
        hard = active & (positive < negative).detach()
        metrics = {"active": active.float().mean(), "semi_hard": hard.float().mean()}
        return StepResult(gaps.relu().mean(), list(embeddings.detach().chunk(2)), metrics)


def semi_hard(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Compute distances to positives and semi-hard negatives (equation 4).

    Squared distances of every anchor. The negative is the nearest of all workers' images that are farther from the
    anchor than its positive; without such an image, it is the farthest of all. The nearest negatives of all would lead
    to collapse (section 3.2).

    Args:
        embeddings: the first views of n images, then the second, [2n, D], not normalised.

    Returns:
        Two [2n], from 0 to 4; in float32 at least.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        anchors = normalised(embeddings)
        distances = 2 - 2 * anchors @ gather(anchors).T  # [2n, 2N], rank by rank
    count = len(anchors)
    own = torch.arange(count, device=anchors.device)
    other = (own + count // 2) % count
    own, other = ((index + rank() * count).unsqueeze(1) for index in (own, other))
    positive = distances.gather(1, other)
    with torch.no_grad():
        is_same = torch.zeros_like(distances, dtype=torch.bool).scatter_(1, torch.cat([own, other], 1), True)
        is_beyond = (distances > positive) & ~is_same
        nearest = distances.masked_fill(~is_beyond, torch.inf).argmin(1)
        farthest = distances.masked_fill(is_same, -torch.inf).argmax(1)
        chosen = torch.where(is_beyond.any(1), nearest, farthest)
    return positive.squeeze(1), distances.gather(1, chosen.unsqueeze(1)).squeeze(1)
