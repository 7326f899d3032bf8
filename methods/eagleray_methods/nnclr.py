"""NNCLR: a view's nearest neighbour finds the other view.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021, https://arxiv.org/abs/2104.14548
Differs from the paper: images up to 64 pixels are not blurred, and their crops keep at least a fifth of the image.
Under the small recipe the queue is smaller than the data, and the heads are four to eight times narrower.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View, byol_views
from eagleray.blocks.losses import info_nce, normalised
from eagleray.blocks.networks import Queue, check_queue, mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Choice, IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class NNCLR(Method):
    """Contrastive: the nearest neighbour of one view, among earlier images, finds the other view in the batch."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        temperature: Annotated[
            float, LogUniform(0.05, 1.0), Field(gt=0, description="how sharply near negatives are pushed away")
        ] = 0.1
        queue: Annotated[
            int, Choice(1024, 4096, 16384, 98304), Field(ge=1, description="images that are searched for neighbours")
        ] = 98304
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's two hidden layers")
        ] = 2048
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 256
        predictor_hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the predictor's hidden layer")
        ] = 4096

    config: Config
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10),
        small_settings={"temperature": 0.2, "queue": 4096, "hidden": 512, "projection": 128, "predictor_hidden": 512},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        check_queue(config.queue, data.batch_size)
        self.projector = mlp([encoder.dim, config.hidden, config.hidden, config.projection], last_norm=True)
        self.predictor = mlp([config.projection, config.predictor_hidden, config.projection])
        self.queue = Queue(config.queue, config.projection)

    @property
    def views(self) -> tuple[View, ...]:
        return byol_views(self.data.image_size)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        # Batch norm sees each view separately, as in the paper's algorithm 1.
        first, second = (self.projector(self.encoder(view)) for view in batch.views)
        targets = first.detach(), second.detach()
        neighbours = [nearest(z, self.queue.rows) for z in targets]
        loss = (
            neighbour_loss(neighbours[0], self.predictor(second), self.config.temperature)
            + neighbour_loss(neighbours[1], self.predictor(first), self.config.temperature)
        ) / 2
        # After the search, or each would be its own neighbour; only one view, so the queue has twice as many images.
        self.queue.push(normalised(targets[0]))
        return StepResult(loss, list(targets))


@torch.no_grad()
def nearest(embeddings: Tensor, rows: Tensor) -> Tensor:
    """Return each embedding's nearest row by cosine (equation 2).

    The rows have length 1. [n, D], [K, D] -> [n, D]
    """
    with torch.autocast(rows.device.type, enabled=False):  # bfloat16 makes ties
        return rows[(embeddings.to(rows.dtype) @ rows.T).argmax(1)]


def neighbour_loss(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Compute the symmetric neighbour loss (equation 3, section 3.2).

    Neighbours find the other view's predictions, and the reverse.

    Args:
        neighbours: of one view's embeddings, [n, D]; no gradient passes through them.
        predictions: of the other view of the same images, [n, D].
        temperature: of both softmaxes, which run over the images of all workers.

    Returns:
        The mean of both directions, averaged over this worker's images.
    """
    forward = info_nce(neighbours, predictions, temperature)
    return (forward + info_nce(predictions, neighbours, temperature)) / 2
