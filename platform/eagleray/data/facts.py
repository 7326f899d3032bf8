"""What is known of a run's images before any is decoded."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eagleray.config.run import Run
from eagleray.config.sections import DataSettings
from eagleray.contracts.dataset import Dataset
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import address_of
from eagleray.data.archive import Labels, Rows, arranged, open_archive, opened, parts_of
from eagleray.data.cache import digest
from eagleray.data.splits import split, validation_of_each
from eagleray.storage.mirror import told
from eagleray.storage.store import items_at


@dataclass(frozen=True)
class Facts:
    """The training images of a run."""

    samples: int
    labels: np.ndarray | None  # int64 [samples], -1: unknown; None: there are no classes
    class_names: tuple[str, ...] | None
    has_validation: bool
    validation_labels: int  # labelled images among those
    channels: int | None  # None: known only when the files are decoded


@dataclass(frozen=True)
class Files:
    """The files that a source reads."""

    count: int
    digest: str  # of their names and sizes; at an address, also of their tags


def files_of(run: Run) -> Files:
    """Return which files a run reads as this machine sees them; none if they are downloaded, or the images drawn.

    Raises:
        ConfigError: they are missing.
    """
    if at_addresses := [path for path in _paths(run) if address_of(path) is not None]:
        return _listed_at(at_addresses)
    dataset = _dataset(run)
    files = [] if getattr(dataset.config, "download", False) else dataset.files()
    return Files(
        len(files), digest(f"{path} {os.path.getsize(path) if os.path.exists(path) else None}" for path in files)
    )


def facts_of(run: Run) -> Facts | None:
    """Return the facts of a run's images, which are listed, not decoded.

    They count files that turn out to be unreadable. None: the images are yet to be downloaded.

    Raises:
        ConfigError: images are missing.
    """
    dataset, settings = _dataset(run), run.data.settings
    try:
        rows, labels, channels = _cached(dataset, settings) if dataset.made_with else _listed(dataset)
    except ConfigError:
        if getattr(dataset.config, "download", False):
            return None
        raise
    own, known = "validation" in rows, labels["train"]
    names, seed = dataset.class_names(), run.seed
    train, held = split(len(rows["train"]), known, names, settings, seed, own_validation=own)
    shown = labels["validation"] if own else None if known is None else known[held]
    if own and settings.validation_per_class is not None:
        shown = shown if shown is None else shown[validation_of_each(shown, names, settings, seed, part="validation")]
    return Facts(
        samples=len(train),
        labels=None if known is None else known[train],
        class_names=names,
        has_validation=own or len(held) > 0,
        validation_labels=0 if shown is None else int((shown >= 0).sum()),
        channels=channels,
    )


def _dataset(run: Run) -> Dataset:
    return opened(run.data.name, run.data.config)


def _paths(run: Run) -> list[Path]:
    return [
        path for _, value in run.data.config if isinstance(value, Path | str) and (path := Path(value)).is_absolute()
    ]


def _listed_at(paths: list[Path]) -> Files:
    """Return which objects are at addresses; they are not fetched."""
    with told():
        items = [(name, item) for path in paths for name, item in sorted(items_at(path).items())]
    return Files(len(items), digest(f"{name} {item.size} {item.tag}" for name, item in items))


def _listed(dataset: Dataset) -> tuple[Rows, Labels, int | None]:
    parts = parts_of(dataset)
    rows, labels = arranged(parts, np.ones(sum(map(len, parts.values())), bool), dataset)
    images = parts["train"].images
    return rows, labels, images.shape[1] if isinstance(images, np.ndarray) else None


def _cached(dataset: Dataset, settings: DataSettings) -> tuple[Rows, Labels, int | None]:
    """Read the cache of a source that draws its images, which takes long; training needs it too."""
    archive = open_archive(dataset, settings)
    return archive.rows, archive.labels, archive.pixels.channels
