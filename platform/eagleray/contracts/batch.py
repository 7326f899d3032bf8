"""Values that pass between the loop and a method."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from eagleray.contracts.report import Progress


@dataclass(frozen=True)
class DataInfo:
    """Facts about the data that a method may use: never a label."""

    image_size: int  # side of the views, in pixels
    channels: int  # 1 (grey) or 3 (colour)
    samples: int  # training images
    classes: int | None  # None: no class is known
    batch_size: int = 256  # images in a step, over all workers together
    workers: int = 1  # that share a step
    seed: int = 0  # the run's
    mean: tuple[float, ...] = (0.5,)  # of each channel, images scaled to 0..1
    std: tuple[float, ...] = (0.25,)
    stored_size: int = 64  # shorter side that larger images were reduced to before any view was made
    encoded_size: int | None = None  # side of the images that are encoded after training; None: image_size
    mirrored: bool = False  # what encoders give after training is the mean over an image and its mirror image,
    shift: int = 0  # and over copies of them moved by that many pixels

    @property
    def side(self) -> int:
        """Side in pixels of the images that are encoded: evaluated, embedded or shown to an exported encoder."""
        return self.encoded_size or self.image_size


@dataclass(frozen=True)
class LabelledBatch:
    """Labelled images, only for a method that needs labels.

    They come next to the unlabelled images, or alone.
    """

    views: list[Tensor]  # each [M, C, H, W]
    targets: Tensor  # [M] int64
    indices: Tensor  # [M] int64: each image's place in the training set, the same under any sharding


@dataclass(frozen=True)
class Batch:
    """The images of one step."""

    views: list[Tensor]  # one [N, C, H, W] for each declared view, all of the same N images
    indices: Tensor  # [N] int64: each image's place in the training set, the same under any sharding
    labelled: LabelledBatch | None = None


@dataclass(frozen=True)
class EpochView:
    """The whole training set, before an epoch."""

    embed: Callable[[], Tensor]  # encodes all training images: [samples, D], in the order of `indices`
    labelled: tuple[Tensor, Tensor] | None  # indices [L] and targets [L] of the labelled images; None: it needs none
    progress: Progress
    # Gives the images at some indices, [n], as they are evaluated: in batches of any size, each [.., C, S, S].
    images: Callable[[Tensor], Iterable[Tensor]] = lambda _: ()


@dataclass(frozen=True)
class StepResult:
    """The result of one step."""

    loss: Tensor  # scalar, carries the gradient
    embeddings: list[Tensor]  # detached, one [N, D] for each view of the same images: collapse is measured on them
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)  # scalars, those the method declares
