"""The data loader of a run.

Its batches are functions of (seed, step), so it has no state to save.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagleray.augment import View, crop_boxes, evaluation_view, make_views
from eagleray.augment.override import overridden
from eagleray.blocks import distributed
from eagleray.config import Run
from eagleray.contracts.batch import Batch, DataInfo, LabelledBatch
from eagleray.contracts.method import Method
from eagleray.contracts.ragged import Ragged, coloured
from eagleray.data.images import Data, Images
from eagleray.data.order import epoch_order, labelled_order

_UNLABELLED, _LABELLED, _FIXED = range(3)  # kinds of batch, each with its own random numbers


@dataclass(frozen=True)
class Sample:
    """One image of a batch, as a worker sees it."""

    index: int  # the image's place in the training set
    image: Tensor  # uint8 [C, H, W]: as it is stored
    views: list[Tensor]  # float32 [C, S, S], normalised
    boxes: list[tuple[int, ...]]  # of each view: top, left, height and width of its part of the image


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

    def epoch(self, epoch: int, start: int, stop: int | None = None) -> Iterator[Batch]:
        """Yield an epoch's batches from step `start` on, to its end or before step `stop`."""
        rank, world = distributed.rank(), distributed.world_size()
        order = epoch_order(len(self.data.train), self.run.batch_size, self.run.seed, epoch, rank, world)[start:stop]
        first = epoch * self.steps_per_epoch + start
        if not self.views:
            for step, indices in enumerate(order, first):
                yield Batch([], indices.to(self.device, non_blocking=True), self._labelled(step, rank, world))
            return
        for step, (indices, images) in enumerate(zip(order, self.data.train.batches(order), strict=True), first):
            views = self._views(images, self.views, step, _UNLABELLED, (rank, world))
            yield Batch(views, indices.to(self.device, non_blocking=True), self._labelled(step, rank, world))

    def evaluation_view(self, images: Tensor | Ragged, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Prepare images for evaluation.

        [N, C, H, W] uint8 -> float, resized if the run asks for it, normalised.

        Args:
            images: as they are stored; grey ones may be shown to a network of colour images.
            change: of the resized pixels, float32 [N, C, S, S] in 0..1, before they are normalised.
        """
        images = coloured(images.to(self.device, non_blocking=True), self.info.channels)
        if change is None:
            return self._in_layout(evaluation_view(images, self.info.side, *self._norm))
        with torch.autocast(self.device.type, enabled=False):
            pixels = change(evaluation_view(images, self.info.side, *self._no_norm))
            mean, std = (torch.tensor(values).to(pixels).view(-1, 1, 1) for values in self._norm)
            return self._in_layout((pixels - mean) / std)

    def fixed(self, images: Tensor | Ragged, views: Sequence[View], number: int) -> list[Tensor]:
        """Make the views of batch `number` of some images.

        They are the same at every call, whatever the run's `augment` is.
        """
        mean, std = self._norm
        images = images.to(self.device, non_blocking=True)
        seed = self._seed(number, _FIXED)
        made = make_views(views, images, size=self.info.image_size, seed=seed, mean=mean, std=std)
        return [self._in_layout(view) for view in made]

    def order(self, step: int, *, labelled: bool = False, workers: int = 1) -> Tensor:
        """Return the images of a step: all, or the first worker's share.

        Args:
            step: counted from 0, over the whole run.
            labelled: return the labelled images of the step.
            workers: that share the step.

        Returns:
            int64 [N]: places in the training set.
        """
        if labelled:
            assert self.labelled_set is not None
            return self.labelled_set[0].cpu()[self._labelled_rows(step, 0, workers)]
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch_order(len(self.data.train), self.run.batch_size, self.run.seed, epoch, 0, workers)[place]

    def samples(self, rows: Sequence[int], *, labelled: bool = False) -> list[Sample]:
        """Make the views of some images of the first step, bitwise as training does.

        Args:
            rows: among the images of the first worker.
            labelled: take the labelled images of the step.
        """
        order, share = self.order(0, labelled=labelled, workers=self.run.workers), (0, self.run.workers)
        views, kind = (self.labelled_views, _LABELLED) if labelled else (self.views, _UNLABELLED)
        pixels = next(self.data.train.batches([order]))
        made = self._views(pixels, views, 0, kind, share, rows)
        boxes = crop_boxes(views, pixels, size=self.info.image_size, seed=self._seed(0, kind), share=share)
        stored = list(pixels)
        return [
            Sample(
                int(order[row]), stored[row], [view[n] for view in made], [tuple(box[row].tolist()) for box in boxes]
            )
            for n, row in enumerate(rows)
        ]

    def _labelled(self, step: int, rank: int, world: int) -> LabelledBatch | None:
        if self.labelled is None or self.labelled_set is None or self.run.labels is None:
            return None
        chosen = self._labelled_rows(step, rank, world)
        images = next(self.labelled.batches([chosen]))
        views = self._views(images, self.labelled_views, step, _LABELLED, (rank, world))
        places, classes = (each[chosen.to(self.device, non_blocking=True)] for each in self.labelled_set)
        return LabelledBatch(views, targets=classes, indices=places)

    def _labelled_rows(self, step: int, rank: int, world: int) -> Tensor:
        """Return a step's rows of the labelled images."""
        assert self.labelled is not None
        assert self.run.labels is not None
        size = self.run.batch_size // self.run.labels.ratio
        return labelled_order(torch.arange(len(self.labelled)), size, self.run.seed, step, rank, world)

    def _views(
        self,
        images: Tensor | Ragged,
        views: Sequence[View],
        step: int,
        kind: int,
        share: tuple[int, int],
        rows: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Make one worker's share of a step's views, or some rows of it.

        `share` is (rank, workers).
        """
        images = images.to(self.device, non_blocking=True)
        mean, std = self._norm
        made = make_views(
            views,
            images,
            size=self.info.image_size,
            seed=self._seed(step, kind),
            mean=mean,
            std=std,
            exact=self.run.augment.exact,
            share=share,
            rows=rows,
        )
        return [self._in_layout(view) for view in made]

    def _seed(self, step: int, kind: int) -> tuple[int, ...]:
        return self.run.seed, step, 0, kind

    @property
    def _norm(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.info.mean, self.info.std

    @property
    def _no_norm(self) -> tuple[Sequence[float], Sequence[float]]:
        return [0.0] * self.info.channels, [1.0] * self.info.channels

    def _in_layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.layout)
