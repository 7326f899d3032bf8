"""MoCo v1 and v2: find the key in a queue.

v1: He, Fan, Wu, Xie, Girshick 2019, https://arxiv.org/abs/1911.05722
v2: Chen, Fan, Girshick, He 2020, https://arxiv.org/abs/2003.04297
Differs from the papers: v1's learning rate falls by a cosine too (its paper divides it by ten after 120 and 160 of 200
epochs: `optimizer.drops=[0.6, 0.8]`), and its views drop the colour after the colour jitter, not before. Weight decay
excludes biases and norms; the authors' includes them. Images up to 64 pixels are not blurred in v2's views. The papers'
eight workers, each with its own batch norm, are `groups` of the batch, for any number of workers. Under the small
recipe the queue is smaller than the data, and the teacher moves fast enough for hundreds of steps.
"""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View, moco_view
from eagleray.blocks.distributed import gather, own_rows
from eagleray.blocks.losses import info_nce, normalised
from eagleray.blocks.networks import Queue, check_queue, ema_update, frozen_copy, mlp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class MoCo(Method):
    """Contrastive: a query finds its key, made by a slowly moving teacher, among a long queue of older keys."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        version: Annotated[
            Literal[1, 2], Field(description="1: linear projector, temperature 0.07, views of 2019; 2: those of 2020")
        ] = 2
        temperature: Annotated[
            float | None,
            LogUniform(0.05, 0.5),
            Field(gt=0, description="how sharply near negatives are pushed away; null: the version's, 0.07 or 0.2"),
        ] = None
        queue: Annotated[int, Choice(1024, 4096, 16384, 65536), Field(ge=1, description="keys kept as negatives")] = (
            65536
        )
        momentum: Annotated[float, Uniform(0.9, 0.9999), Field(ge=0, le=1, description="of the teacher")] = 0.999
        hidden: Annotated[
            int, IntRange(128, 4096), Field(ge=1, description="width of the projector's hidden layer; version 2 only")
        ] = 2048
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings compared")] = 128
        groups: Annotated[int, Field(ge=1, description="parts of the batch that batch norm normalises separately")] = 8

    config: Config
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.03, weight_decay=1e-4),
        small_settings={"queue": 4096, "momentum": 0.99, "hidden": 512, "groups": 4},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        check_queue(config.queue, data.batch_size)
        check_groups(config.groups, data.batch_size, data.workers)
        hidden = [config.hidden] if config.version == 2 else []
        self.temperature = config.temperature or {1: 0.07, 2: 0.2}[config.version]
        self.projector = mlp([encoder.dim, *hidden, config.projection], norm=False)
        self.teacher = frozen_copy(nn.Sequential(self.encoder, self.projector))
        self.queue = Queue(config.queue, config.projection)

    @property
    def views(self) -> tuple[View, ...]:
        first = View(
            crop=(0.2, 1.0),
            flip=0.5,
            jitter=1.0,
            jitter_scale=(0.4, 0.4, 0.4, 0.4),
            jitter_probability=1.0,
            grayscale=0.2,
        )
        view = first if self.config.version == 1 else moco_view(self.data.image_size)
        return view, view

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        student = nn.Sequential(self.encoder, self.projector)
        queries = in_groups(student, batch.views[0], self.config.groups)
        keys = self._keys(batch.views[1], progress.step)
        loss = info_nce(queries, keys, self.temperature, negatives=self.queue.rows)
        self.queue.push(normalised(keys))
        return StepResult(loss, [queries.detach(), keys])

    @torch.no_grad()
    def _keys(self, images: Tensor, step: int) -> Tensor:
        """Return the teacher's embeddings of this worker's images.

        In random groups ("Shuffling BN", section 3.3). Otherwise batch statistics would reveal the key of a query,
        since both would come from the same few images.
        """
        everyone = gather(images)  # [N, C, H, W]
        order = torch.randperm(len(everyone), generator=self.rng(step)).to(images.device, non_blocking=True)
        keys = in_groups(self.teacher, everyone[own_rows(order)], self.config.groups)
        return own_rows(gather(keys)[order.argsort()])

    def after_step(self, progress: Progress) -> None:
        ema_update(self.teacher, nn.Sequential(self.encoder, self.projector), self.config.momentum)


def in_groups(network: nn.Module, images: Tensor, groups: int) -> Tensor:
    """Embed images in groups with own batch statistics.

    [n, C, H, W] -> [n, D]. Every `groups`-th image belongs to one group, on all workers, over which batch norm is
    synchronised: so the groups are those of a single process.
    """
    parts = [network(images[group::groups]) for group in range(groups)]
    return torch.stack(parts, 1).flatten(0, 1)


def check_groups(groups: int, batch_size: int, workers: int) -> None:
    """Check that batches divide into equal groups.

    Each worker's share must, into groups of at least two images over all workers.

    Raises:
        ConfigError: it does not; names the nearest number of groups that does.
    """
    images = batch_size // workers
    fitting = [g for g in range(1, images + 1) if images % g == 0 and batch_size >= 2 * g]
    if groups not in fitting:
        near = min(fitting, key=lambda g: abs(g - groups))
        raise ConfigError(
            f"method.groups={groups} must divide the {images} images that a worker has of batch_size={batch_size} "
            f"into equal groups of two or more: take {near}"
        )
