"""The data loader of a run.

Its batches are functions of (seed, step), so it has no state to save.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eagleray.augment import View, evaluation_view, make_views
from eagleray.augment.override import overridden
from eagleray.blocks import distributed
from eagleray.config import Run
from eagleray.contracts.batch import Batch, DataInfo, LabelledBatch
from eagleray.contracts.method import Method
from eagleray.contracts.ragged import Ragged
from eagleray.data.images import Data, Images
from eagleray.data.order import epoch_order, labelled_order

_UNLABELLED, _LABELLED, _FIXED = range(3)  # kinds of batch, each with its own random numbers


class BatchLoader:
    """Loads the batches of a run for this worker.

    Args:
        run: its settings of views, sizes and seed are used.
        data: the images.
        info: the data's facts as the method gets them (`fitted`).
        method: declares the views.
        device: makes the views.
    """

    def __init__(self, run: Run, data: Data, info: DataInfo, method: Method, device: torch.device):
        self.run, self.data, self.info, self.device = run, data, info, device
        self.views = overridden(method.views, run.augment)
        self.labelled_views = overridden(method.labelled_views, run.augment)
        # Convolutions are faster with a pixel's channels next to each other in memory; a ViT gains nothing.
        self.layout = torch.contiguous_format if method.encoder.has_tokens else torch.channels_last
        # The few labelled images are decoded once: every step reads some of them.
        self.labelled: Images | None = None
        self.labelled_set: tuple[Tensor, Tensor] | None = None  # positions [L] in the training set, and classes [L]
        if run.labels:
            places = data.labelled(run.labels, run.seed)
            self.labelled = data.train.only(places.numpy()).in_memory()
            assert self.labelled.labels is not None
            self.labelled_set = places.to(device), torch.from_numpy(self.labelled.labels).to(device)
        self.steps_per_epoch = len(data.train) // run.batch_size

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield an epoch's batches from step `start` on."""
        rank, world = distributed.rank(), distributed.world_size()
        order = epoch_order(len(self.data.train), self.run.batch_size, self.run.seed, epoch, rank, world)[start:]
        first = epoch * self.steps_per_epoch + start
        if not self.views:
            for step, indices in enumerate(order, first):
                yield Batch([], indices.to(self.device, non_blocking=True), self._labelled(step, rank, world))
            return
        for step, (indices, images) in enumerate(zip(order, self.data.train.batches(order), strict=True), first):
            views = self._views(images, self.views, step, _UNLABELLED, (rank, world))
            yield Batch(views, indices.to(self.device, non_blocking=True), self._labelled(step, rank, world))

    def evaluation_view(self, images: Tensor | Ragged) -> Tensor:
        """Prepare images for evaluation.

        [N, C, H, W] uint8 -> float, resized if the run asks for it, normalised.
        """
        return self._in_layout(
            evaluation_view(images.to(self.device, non_blocking=True), self.info.image_size, *self._norm)
        )

    def fixed(self, images: Tensor | Ragged, views: Sequence[View], number: int) -> list[Tensor]:
        """Make the views of batch `number` of some images.

        They are the same at every call, whatever the run's `augment` is.
        """
        mean, std = self._norm
        images = images.to(self.device, non_blocking=True)
        seed = (self.run.seed, number, 0, _FIXED)
        made = make_views(views, images, size=self.info.image_size, seed=seed, mean=mean, std=std)
        return [self._in_layout(view) for view in made]

    def _labelled(self, step: int, rank: int, world: int) -> LabelledBatch | None:
        if self.labelled is None or self.labelled_set is None or self.run.labels is None:
            return None
        size = self.run.batch_size // self.run.labels.ratio
        chosen = labelled_order(torch.arange(len(self.labelled)), size, self.run.seed, step, rank, world)
        images = next(self.labelled.batches([chosen]))
        views = self._views(images, self.labelled_views, step, _LABELLED, (rank, world))
        places, classes = (each[chosen.to(self.device)] for each in self.labelled_set)
        return LabelledBatch(views, targets=classes, indices=places)

    def _views(
        self, images: Tensor | Ragged, views: Sequence[View], step: int, kind: int, share: tuple[int, int] = (0, 1)
    ) -> list[Tensor]:
        """Make one worker's share of a step's views.

        `share` is (rank, workers).
        """
        images = images.to(self.device, non_blocking=True)
        mean, std = self._norm
        made = make_views(
            views,
            images,
            size=self.info.image_size,
            seed=(self.run.seed, step, 0, kind),
            mean=mean,
            std=std,
            exact=self.run.augment.exact,
            share=share,
        )
        return [self._in_layout(view) for view in made]

    @property
    def _norm(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.info.mean, self.info.std

    def _in_layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.layout)
