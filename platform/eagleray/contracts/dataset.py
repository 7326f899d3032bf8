"""The contract of a source of images. Who adds one reads this file and one neighbour in `datasets/`.

A source is one class in one file of `datasets/`. It says where its images are, which are to train on, which
to test on; the engine (`data/`) decodes, caches, splits and batches them. Neither this file nor any source
imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from eagleray.contracts.errors import ConfigError

PartName = Literal["train", "unlabelled", "validation", "test"]


@dataclass(frozen=True)
class Part:
    """Images that belong together."""

    images: np.ndarray | Sequence[str]  # pixels, uint8 [N, C, H, W] with C 1 or 3; or image files
    labels: np.ndarray | None = None  # int64 [N], -1: not known; None: this source has no labels

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels; of no meaning to a source that hands out pixels."""

    size: int | None = None  # side of the views; None: the median shorter side of the images, at most 64
    stored_size: int | None = None  # shorter side of the stored image, never enlarged; None: twice `size`
    channels: Literal[1, 3] | None = None  # None: 1 if every image is grey, else 3
    skip_bad: bool = False  # leave out what cannot be read, instead of refusing the source


class Dataset:
    """A source of images.

    Args:
        name: the one of `names` that was asked for.
        config: this class's own `Config`.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The source's own settings; no name that `DataSettings` has."""

    config: BaseModel  # a source writes `config: Config` below its own Config, for type checkers
    names: ClassVar[tuple[str, ...]]  # what a user types
    decoding: Decoding = Decoding()

    def __init__(self, name: str, config: BaseModel):
        self.name = name
        self.config = config

    def fetch(self) -> None:
        """Downloads what is missing, if the user said so. One process of a machine at a time runs it."""

    def files(self) -> Sequence[str]:
        """Every file the images come from: when one changes, the cache is made anew."""
        return ()

    def parts(self) -> dict[PartName, Part]:
        """The images: "train", and what else there is.

        Those of "unlabelled" join training. Without a "test", the engine holds out a fixed fifth of train;
        without a "validation", a share of train by the run's seed.

        Raises:
            ConfigError: files are missing or damaged.
        """
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...] | None:
        """Name of each class, by label; None: there are no classes."""
        return None


@dataclass(frozen=True)
class PublishedFiles:
    """The files a dataset was published in, in the first of the places below `root` that holds them."""

    dataset: str
    root: Path
    places: tuple[str, ...]  # folders below root, "." for root itself
    names: tuple[str, ...]
    endings: tuple[str, ...] = ("",)  # ".gz": gzipped is fine too

    def __getitem__(self, name: str) -> Path:
        """Where the file of that name is.

        Raises:
            ConfigError: nowhere.
        """
        path = self._find(name)
        if path is None:
            raise ConfigError(
                f"{self.dataset} needs {name}, which is not in data.root={self.root}: "
                "set data.root to the folder that holds it, or data.download=true"
            )
        return path

    def paths(self) -> list[str]:
        """All of them, as `Dataset.files` wants them."""
        return [str(self[name]) for name in self.names]

    def complete(self) -> bool:
        """Whether none is missing."""
        return all(self._find(name) is not None for name in self.names)

    def _find(self, name: str) -> Path | None:
        found = (self.root / place / f"{name}{end}" for end in self.endings for place in self.places)
        return next((path for path in found if path.is_file()), None)


def download(dataset: str, root: Path, **options: Any) -> None:
    """Fetches a dataset with torchvision, which checks its sums.

    Raises:
        ConfigError: it cannot be had.
    """
    from torchvision import datasets  # imports torch: only when something is to be fetched

    try:
        getattr(datasets, dataset)(root, download=True, **options)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{dataset} cannot be downloaded into data.root={root}: {error}") from error
