"""DCL: SimCLR without the positive pair in the denominator.

Yeh, Hong, Hsu, Liu, Chen, LeCun 2021, https://arxiv.org/abs/2110.06848
Differs from the paper: it is trained like SimCLR, and images up to 64 pixels have no blur and half the jitter. DCLW's
weights are constants for the gradient; in the authors' code the gradient passes through them, which changes the
gradient but not the loss.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View, simclr_view
from eagleray.blocks.distributed import gather, own_rows, rank
from eagleray.blocks.losses import normalised
from eagleray.blocks.networks import mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class DCL(Method):
    """Contrastive: SimCLR without the positive pair in the denominator; made for small batches."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float, LogUniform(0.05, 1.0), Field(gt=0, description="how sharply near negatives are pushed away")
        ] = 0.1
        weighted: Annotated[bool, Field(description="pull distant pairs more strongly than near ones (DCLW)")] = False
        sigma: Annotated[
            float, LogUniform(0.1, 2.0), Field(gt=0, description="how sharply these weights differ; weighted only")
        ] = 0.5
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's hidden layer")
        ] = 2048
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 128

    config: Config
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10),
        small_settings={"temperature": 0.2, "hidden": 512},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.projector = mlp([encoder.dim, config.hidden, config.projection], last_norm=True)

    @property
    def views(self) -> tuple[View, ...]:
        view = simclr_view(self.data.image_size)
        return view, view

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # All views in one pass: batch norm must not distinguish them.
        first, second = self.projector(self.encoder(torch.cat(batch.views))).chunk(2)  # each [N, projection]
        sigma = self.config.sigma if self.config.weighted else None
        loss = decoupled_loss(first, second, self.config.temperature, sigma)
        return StepResult(loss, [first.detach(), second.detach()])


def decoupled_loss(first: Tensor, second: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    """Compute the decoupled contrastive loss.

    Over the batches of all workers. With z the L2-normalised embeddings, and i and j the two views of one image (eq.
    6):

        loss(i, j) = -w · z_i·z_j / T + log( sum over k != i, j of exp(z_i·z_k / T) )

    averaged over this worker's 2n anchors. For DCLW w falls with the pair's similarity (section 3.3); its mean is 1:

        w = 2 - exp(z_i·z_j / sigma) / (mean over all images of exp(z_i·z_j / sigma))

    Args:
        first, second: [n, D] embeddings of the two views of the same n images, not normalised.
        temperature: T above.
        sigma: as above; no gradient passes through w. None: w = 1.

    Returns:
        A scalar, float32 (float64 for float64 embeddings).
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = normalised(first), normalised(second)
        pairs = (first * second).sum(1)  # [n]
        pull = pairs if sigma is None else _weights(pairs.detach(), sigma) * pairs
        candidates = torch.cat([gather(first), gather(second)])  # [2N, D]
        scores = torch.cat([first, second]) @ candidates.T / temperature  # [2n, 2N]
        image = torch.arange(len(first), device=first.device) + rank() * len(first)
        of_same_image = image.repeat(2)[:, None] == torch.arange(len(candidates) // 2, device=first.device).repeat(2)
        push = scores.masked_fill(of_same_image, -torch.inf).logsumexp(1)
        return push.mean() - pull.mean() / temperature


def _weights(pairs: Tensor, sigma: float) -> Tensor:
    """Compute DCLW's weight of each pair, [n].

    From the pairs' cosines, averaged over all workers; a softmax, since exp(1 / sigma) may be infinite.
    """
    everyone = gather(pairs)
    return own_rows(2 - len(everyone) * (everyone / sigma).softmax(0))
