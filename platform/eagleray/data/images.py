"""Load the images of a source and split them."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from eagleray.config.sections import DataSettings, Labels
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.dataset import PartName
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ragged import Ragged
from eagleray.data.archive import Archive, open_archive, opened
from eagleray.data.cache import digest
from eagleray.data.pixels import Decoded, Pixels, Stored
from eagleray.data.splits import few_of_each, split, validation_of_each

CUTS = ("limit", "imbalance", "validation_per_class")  # settings of DataSettings that use a part of the images


class Images:
    """Images of one split.

    Pixels come in batches; labels stay with the engine.
    """

    labels: np.ndarray | None  # int64 [N], -1: unknown; None: there are no classes

    def __init__(self, pixels: Pixels, rows: np.ndarray, labels: np.ndarray | None):
        self._pixels = pixels
        self._rows = rows
        self.labels = labels

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def stored(self) -> int:
        """Bytes in the cache, of all splits together."""
        return self._pixels.stored

    def batches(self, order: Iterable[Tensor]) -> Iterator[Tensor | Ragged]:
        """Yield the images at each tensor of positions.

        Positions are int64 [n], images uint8 [n, C, H, W]; the caller may change them.
        """
        rows = (self._rows[indices.numpy()] for indices in order)
        return map(batched, self._pixels.batches(rows))

    def in_memory(self) -> "Images":
        """Decode the images once and keep them.

        This is for the few labelled ones that every step reads.
        """
        images = list(chain.from_iterable(self._pixels.batches(np.array_split(self._rows, -(-len(self) // 64)))))
        flat = np.concatenate([image.ravel() for image in images])
        sizes = np.array([image.shape[1:] for image in images])
        return Images(Stored(flat, sizes, self._pixels.channels), np.arange(len(self)), self.labels)

    def only(self, positions: np.ndarray) -> "Images":
        """Return the images at some positions, int64 [n]."""
        labels = None if self.labels is None else self.labels[positions]
        return Images(self._pixels, self._rows[positions], labels)


def batched(images: Decoded) -> Tensor | Ragged:
    """Return uint8 images [C, H, W] as one tensor.

    It is [n, C, H, W], padded if their shapes differ.
    """
    if isinstance(images, np.ndarray) or len({image.shape for image in images}) == 1:
        return torch.from_numpy(np.stack(images) if isinstance(images, list) else images)
    sizes = np.array([image.shape[1:] for image in images])
    padded = np.zeros((len(images), len(images[0]), *sizes.max(0)), np.uint8)
    for place, image, (height, width) in zip(padded, images, sizes, strict=True):
        place[:, :height, :width] = image
    return Ragged(torch.from_numpy(padded), torch.from_numpy(sizes))


@dataclass(frozen=True)
class Data:
    """The images of a run."""

    train: Images
    validation: Images | None  # held out of train by the run's seed
    test: Images | None  # the same for every seed
    info: DataInfo
    class_names: tuple[str, ...] | None
    skipped: int  # files left out because they could not be read
    stored: int  # images of the source, more than the parts have under `data.limit` and the like
    cut: tuple[str, ...]  # the settings that leave some of them out
    sides: tuple[int, int]  # shortest and longest of all stored images, in pixels
    notes: tuple[str, ...]  # of the source, on how it was read
    digest: str  # of all images and labels of the source, whatever part of them the run uses

    def facts(self) -> dict[str, Any]:
        """Return what was read, as plain values.

        They are the digest, the images of each part, the number of classes (None: there are none), and in pixels the
        side of views and the largest shorter side that is stored, which a run file may leave open.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "digest": self.digest,
            "images": {name: len(images) for name, images in parts.items() if images is not None},
            "classes": self.info.classes,
            "size": self.info.image_size,
            "stored_size": self.info.stored_size,
            "channels": self.info.channels,
            "skipped": self.skipped,
        }

    def labelled(self, wanted: Labels, seed: int) -> Tensor:
        """Draw labelled training images of every class.

        Return their positions in train, int64 [L], sorted. They depend only on the data and the seed, not on the number
        of workers or the step.

        Raises:
            ConfigError: there are no labels, or a class has too few images.
        """
        if self.train.labels is None or self.class_names is None:
            raise ConfigError("these images have no labels, and the method needs some")
        return torch.from_numpy(few_of_each(self.train.labels, wanted, seed, self.class_names))


def load_data(name: str, config: BaseModel, settings: DataSettings, seed: int) -> Data:
    """Load the images of a source and split them.

    Args:
        name: of the source, as in `eagleray datasets`.
        config: the source's own settings.
        settings: those that all sources share.
        seed: of the run; the validation set is drawn from it.

    Raises:
        ConfigError: images are missing, damaged, or too few.
    """
    dataset = opened(name, config)
    archive = open_archive(dataset, settings)
    everything, validation, test = (_part(archive, part) for part in ("train", "validation", "test"))
    assert everything is not None, "an archive has a training set"
    train, validation = _held_out(everything, validation, archive.about.class_names, settings, seed)
    if len(train) < 2:
        raise ConfigError(f"{name} leaves {len(train)} image to train on; at least two are needed")
    about = archive.about
    return Data(
        train,
        validation,
        test,
        _info(archive, len(train)),
        about.class_names,
        about.skipped,
        stored=sum(map(len, archive.rows.values())),
        cut=tuple(f"data.{key}" for key in CUTS if getattr(settings, key) != DataSettings.model_fields[key].default),
        sides=about.sides,
        notes=tuple(dataset.notes()),
        digest=_digest(archive),
    )


def _digest(archive: Archive) -> str:
    """Return a digest of the images and their labels, wherever they lie and whether they are streamed."""
    arrays = [*archive.rows.values(), *(labels for labels in archive.labels.values() if labels is not None)]
    about = archive.about.model_dump_json(exclude={"is_stored"})
    return digest([about, *(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)])


def _part(archive: Archive, name: PartName) -> Images | None:
    if name not in archive.rows:
        return None
    return Images(archive.pixels, archive.rows[name], archive.labels[name])


def _held_out(
    train: Images, own: Images | None, names: tuple[str, ...] | None, settings: DataSettings, seed: int
) -> tuple[Images, Images | None]:
    """Return the training and validation sets.

    A source's own validation set is kept, or as many of each class as are asked for.
    """
    chosen, held = split(len(train), train.labels, names, settings, seed, own_validation=own is not None)
    if own is not None and settings.validation_per_class is not None:
        own = own.only(validation_of_each(own.labels, names, settings, seed, part="validation"))
    return train.only(chosen), own or (train.only(held) if len(held) else None)


def _info(archive: Archive, samples: int) -> DataInfo:
    about = archive.about
    return DataInfo(
        image_size=about.kept.size,
        channels=about.kept.channels,
        stored_size=about.kept.stored_size,
        samples=samples,
        classes=len(about.class_names) if about.class_names else None,
        mean=about.mean,
        std=about.std,
    )
