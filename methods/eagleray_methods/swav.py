"""SwAV: predict the cluster assignment of another view.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, https://arxiv.org/abs/2006.09882
The defaults are those of the paper's runs with 256 images per step, which need the queue. Its runs with 4,096 images
have none: `recipe=paper batch_size=4096 method.queue=0 optimizer.lr=0.3 optimizer.warmup_epochs=10`, which scales to
the authors' rate of 4.8 (theirs warms up from 0.3, ours from 0).
Differs from the paper: LARS neither adapts the rate of biases and norms nor decays them, where the authors' LARC does
both. Images up to 64 pixels have no blur and half the jitter, and their small crops cover at least a tenth of the
image. The small recipe has two small crops, and so few prototypes that a batch fills them and no queue is needed. Its
codes are sharper, which hundreds of steps need.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View, multi_crop, simclr_view
from eagleray.blocks.distributed import all_reduce_sum, rank, world_size
from eagleray.blocks.losses import cross_view_loss, normalised
from eagleray.blocks.networks import Queue, check_queue, encode_crops, mlp, small_crop_size
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class SwAV(Method):
    """Clustering: each view predicts the clusters of another view; all clusters get equally many images."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        prototypes: Annotated[int, IntRange(32, 1024), Field(ge=2, description="centres of clusters")] = 3000
        temperature: Annotated[
            float, LogUniform(0.05, 0.5), Field(gt=0, description="how sharp the prediction of a code is")
        ] = 0.1
        epsilon: Annotated[
            float,
            Uniform(0.025, 0.1),
            Field(ge=0.025, description="how soft codes are; if the loss stays at ln(prototypes), use 0.03"),
        ] = 0.05
        iterations: Annotated[int, Field(ge=1, description="of Sinkhorn and Knopp, which make clusters equal")] = 3
        frozen_epochs: Annotated[float, Field(ge=0, description="epochs before prototypes start to move")] = 1.0
        queue: Annotated[
            int, Field(ge=0, description="earlier embeddings of each large crop, assigned with the batch; 0: none")
        ] = 3840
        queue_after: Annotated[float, Field(ge=0, description="epochs before the queue starts to fill")] = 15.0
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's hidden layer")
        ] = 2048
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings")] = 128
        local_crops: Annotated[int, IntRange(0, 8), Field(ge=0, description="small crops, next to the two large")] = 6
        local_size: Annotated[
            int | None, Field(ge=1, description="their side in pixels; null: 3/7 of the image's, as 96 of 224")
        ] = None
        crop_split: Annotated[
            float,
            Uniform(0.1, 0.6),
            Field(ge=0.1, lt=1, description="part of the image that large crops cover at least, small ones at most"),
        ] = 0.14

    config: Config
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.6, weight_decay=1e-6, final_lr=0.001),
        small_settings={
            "prototypes": 64,
            "epsilon": 0.03,
            "frozen_epochs": 0.5,
            "queue": 0,
            "hidden": 512,
            "projection": 64,
            "local_crops": 2,
            "crop_split": 0.25,
        },
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        if config.queue:
            check_queue(config.queue, data.batch_size)
        if config.prototypes > data.batch_size + config.queue:
            raise ConfigError(
                f"method.prototypes={config.prototypes} cannot be filled equally by the batch and the queue: take "
                f"{data.batch_size + config.queue} at most, or a longer method.queue"
            )
        self.local_size = small_crop_size(config.local_size, encoder, data)
        self.projector = mlp([encoder.dim, config.hidden, config.projection])
        self.prototypes = nn.Linear(config.projection, config.prototypes, bias=False)
        self._normalise_prototypes()
        self.queues = nn.ModuleList(Queue(config.queue, config.projection) for _ in range(2 if config.queue else 0))

    @property
    def views(self) -> tuple[View, ...]:
        size, config = self.data.image_size, self.config
        view = simclr_view(size)
        return multi_crop((view, view), size, config.local_crops, self.local_size, config.crop_split)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        z = self.projector(encode_crops(self.encoder, batch.views))
        with torch.autocast(z.device.type, enabled=False):  # exp(score / epsilon) needs all the digits of a score
            z = normalised(z).unflatten(0, (len(batch.views), -1))  # [V, n, projection]
            scores = self.prototypes(z)  # [V, n, prototypes]
            codes = self._codes(z.detach(), scores.detach(), progress)
            loss = cross_view_loss(codes, scores, self.config.temperature)
        return StepResult(loss, list(z.detach()))

    @torch.no_grad()
    def _codes(self, z: Tensor, scores: Tensor, progress: Progress) -> Tensor:
        """Compute both large crops' assignments, [2, n, prototypes].

        The queue is updated.
        """
        codes = [scores[0], scores[1]]
        if self.queues and progress.epochs_done >= self.config.queue_after:
            for crop, queue in enumerate(self.queues):
                assert isinstance(queue, Queue)
                if queue.filled == self.config.queue:
                    # Every worker has the whole queue, and adds its share of it to the common sums.
                    share = queue.rows.tensor_split(world_size())[rank()]
                    codes[crop] = torch.cat([scores[crop], self.prototypes(share)])
                queue.push(z[crop])
        count = scores.shape[1]
        return torch.stack([sinkhorn(each, self.config.epsilon, self.config.iterations)[:count] for each in codes])

    def before_step(self, progress: Progress) -> None:
        if progress.epochs_done < self.config.frozen_epochs:
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        self._normalise_prototypes()

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign images softly to prototypes, evenly (equation 3).

    The images of all workers; each prototype gets an equal share.

    Args:
        scores: [n, K], cosines of this worker's embeddings with the prototypes, in float32 at least.
        epsilon: weight of the assignments' entropy.
        iterations: of Sinkhorn and Knopp; more make the shares more equal.

    Returns:
        [n, K], rows that sum to 1.
    """
    codes = (scores / epsilon).exp()
    for _ in range(iterations):
        codes = codes / all_reduce_sum(codes.sum(0))  # every prototype equally full, over all workers
        codes = codes / codes.sum(1, keepdim=True)  # every image assigned once
    return codes
