"""The contract of a source of images.

To add one, read this file and one other source in `datasets/`. A source is one class in one file of `datasets/`. It
says where its images are, which are for training and which for testing; the engine (`data/`) decodes, caches, splits
and batches them. Neither this file nor any source imports torch.
"""

import stat
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
    """The images of one part: training, test, …."""

    images: np.ndarray | Sequence[str]  # pixels, uint8 [N, C, H, W] with C 1 or 3; or image files
    labels: np.ndarray | None = None  # int64 [N], -1: unknown; None: this source has no labels

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels.

    It has no effect on a source that returns pixels.
    """

    size: int | None = None  # side of the views; None: the median shorter side of the images, at most 64
    stored_size: int | None = None  # shorter side of the stored image, never enlarged; None: twice `size`
    channels: Literal[1, 3] | None = None  # None: 1 if every image is grey, else 3
    skip_bad: bool = False  # leave out files that cannot be read, instead of raising a ConfigError


class Dataset:
    """A source of images.

    Args:
        name: which of `names` the user chose.
        config: this class's own `Config`.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The source's own settings.

        Their names must differ from those of `DataSettings`.
        """

    config: BaseModel  # a source writes `config: Config` below its own Config, for type checkers
    names: ClassVar[tuple[str, ...]]  # what a user types
    decoding: Decoding = Decoding()
    made_with: str = ""  # versions of what makes the images, if the source draws them: others rebuild the cache

    def __init__(self, name: str, config: BaseModel):
        self.name = name
        self.config = config

    def fetch(self) -> None:
        """Download missing files if the user allows it.

        One process of a machine at a time runs this.
        """

    def files(self) -> Sequence[str]:
        """Return the files that are read; a change rebuilds the cache."""
        return ()

    def notes(self) -> Sequence[str]:
        """Return what a person should know of how they are read.

        For example, which files are left out. Each is a phrase; they are joined by semicolons.
        """
        return ()

    def parts(self) -> dict[PartName, Part]:
        """Return the images of each part.

        There is always a "train"; the others where the source has them. Images of "unlabelled" join training. Without a
        "test", the engine holds out a fixed fifth of train; without a "validation", a share of train that depends on
        the run's seed.

        Raises:
            ConfigError: files are missing or damaged.
        """
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...] | None:
        """Return the class names in order of labels, if any."""
        return None


@dataclass(frozen=True)
class PublishedFiles:
    """The published files of a dataset.

    Each is taken from the first of the places below `root` that has it.
    """

    dataset: str
    root: Path
    places: tuple[str, ...]  # folders below root, "." for root itself
    names: tuple[str, ...]
    endings: tuple[str, ...] = ("",)  # ".gz": gzipped is fine too

    def __getitem__(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            ConfigError: the file is missing.
        """
        path = self._find(name)
        if path is None:
            raise ConfigError(
                f"{self.dataset} needs {name}, which is not in data.root={self.root}: "
                "set data.root to the folder that contains it, or data.download=true"
            )
        return path

    def paths(self) -> list[str]:
        """Return all paths, in the form of `Dataset.files`."""
        return [str(self[name]) for name in self.names]

    def complete(self) -> bool:
        """Return whether no file is missing."""
        return all(self._find(name) is not None for name in self.names)

    def _find(self, name: str) -> Path | None:
        candidates = (self.root / place / f"{name}{end}" for end in self.endings for place in self.places)
        return next((path for path in candidates if path.is_file()), None)


def content(path: Path, most: int, called: str | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        path: of the file.
        most: bytes that it may have.
        called: what messages call it; None: its path.

    Raises:
        ConfigError: it cannot be read, is larger, or is no file: reading a device or a pipe might never end.
    """
    called = called or str(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ConfigError(f"{called} cannot be read: it is no regular file")
        if state.st_size > most:
            raise ConfigError(f"{called} has {state.st_size:,} bytes, more than such a file can have ({most:,})")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{called} cannot be read: {error.strerror}") from error


def download(dataset: str, root: Path, **options: Any) -> None:
    """Download a dataset with torchvision, which verifies its checksums.

    Raises:
        ConfigError: the download fails.
    """
    from torchvision import datasets  # imports torch: only when something must be downloaded

    try:
        getattr(datasets, dataset)(root, download=True, **options)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{dataset} cannot be downloaded into data.root={root}: {error}") from error
