"""The images of a source, cached for all processes.

A machine reads them once. The cache is two files: `<source>-<state of its files>.npz` lists the images, and `.bin` of
the same name holds their pixels, one image after the other, unless the folder is too large. Both are written once and
never changed.
"""

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path

import numpy as np
import PIL
from pydantic import BaseModel

from eagleray.config.plugin_files import PluginFile
from eagleray.config.registry import find
from eagleray.config.sections import DataSettings
from eagleray.contracts.dataset import Dataset, Part, PartName
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import whole
from eagleray.contracts.seeds import Stream
from eagleray.data.cache import REFUSAL, cache_folder, digest, locked, read_pixels, write_pixels
from eagleray.data.decode import Bad, Kept, decode, in_threads, settled
from eagleray.data.pixels import Pixels, Stored, Streamed
from eagleray.data.splits import held_out
from eagleray.storage.mirror import input_at_hand

FORMAT = 4  # version of the cache: increase it with every change of its content or of the decoding
TEST_SHARE = 0.2  # held out as the test set of a source without one; the same images for every seed
SAMPLE = 2048  # images from which mean and std are computed

Rows = dict[PartName, np.ndarray]
Labels = dict[PartName, np.ndarray | None]


class About(BaseModel, frozen=True):
    """What the cache stores besides rows and labels."""

    kept: Kept
    streamable: bool  # the images are files, which can be decoded again
    is_stored: bool  # the cache has the pixels
    checksum: int  # of all pixels, stored or not
    parts: tuple[PartName, ...]
    class_names: tuple[str, ...] | None
    skipped: int  # files left out because they could not be read
    sides: tuple[int, int]  # shortest and longest of all stored images, in pixels
    mean: tuple[float, ...]  # of each channel of the training set, images scaled to 0..1
    std: tuple[float, ...]


@dataclass(frozen=True)
class Archive:
    """The images of a source."""

    pixels: Pixels
    rows: Rows  # of each part, in pixels: int64 [N]
    labels: Labels  # int64 [N], -1: unknown; None: no classes
    about: About


def opened(name: str, config: BaseModel) -> Dataset:
    """Return a source of images; what it reads at addresses is fetched.

    Args:
        name: of the source.
        config: its own settings.

    Raises:
        ConfigError: a store does not answer, or refuses.
    """
    for _, value in config:
        if isinstance(value, Path | str) and os.path.isabs(value):
            input_at_hand(Path(value))
    source = find("data", name)
    return source.load()(name, source.real(config))


def open_archive(dataset: Dataset, settings: DataSettings) -> Archive:
    """Return the archive of a source.

    It comes from the cache unless the source's files have changed. Several processes may call this at once: one reads
    all images, the others wait for it.

    Raises:
        ConfigError: files are missing or damaged, or the cache cannot be written.
    """
    folder = cache_folder(settings.cache)
    file = PluginFile.of(dataset.name)
    own = [str(file.path)] if file else []  # a user's own source: an edit of it may change the images
    settled_by = digest([dataset.config.model_dump_json(), str(FORMAT), PIL.__version__, dataset.made_with, *own])
    source = f"{file.title if file else dataset.name}-{settled_by}"
    lock = folder / f"{source}.lock"
    with locked(lock):
        dataset.fetch()
    at = folder / f"{source}-{digest(map(_state, [*own, *dataset.files()]))}"
    archive = _read(at, dataset, settings)
    if archive is None:
        with locked(lock):
            archive = _read(at, dataset, settings) or _write(at, dataset, settings)
            _remove_older(source, at)
    return archive


def _state(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError as error:  # a broken link: decoding reports it
        return f"{path} {error.errno}"
    return f"{path} {state.st_size} {state.st_mtime_ns}"


def _remove_older(source: str, at: Path) -> None:
    """Delete caches of earlier states, which fill the disk.

    A process that maps one keeps it.
    """
    for path in at.parent.iterdir():
        if path.name.startswith(f"{source}-") and not path.name.startswith(f"{at.name}."):
            path.unlink(missing_ok=True)


def _read(at: Path, dataset: Dataset, settings: DataSettings) -> Archive | None:
    """Read the cache.

    Return None if it is missing, damaged, or has no pixels although they fit into `memory_limit` now.
    """
    try:
        about, sizes, rows, labels = _read_index(Path(f"{at}.npz"))
        streams = about.streamable and about.kept.total > settings.memory_limit
        if not about.is_stored and not streams:
            return None
        pixels = _pixels(at, dataset, settings, about.kept, sizes, None if streams else about.checksum)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return Archive(pixels, rows, labels, about)


def _write(at: Path, dataset: Dataset, settings: DataSettings) -> Archive:
    parts = parts_of(dataset)
    kept, images = _opened(dataset, parts)
    sizes = np.zeros((sum(map(len, parts.values())), 2), np.int32)
    images = _readable(images, sizes, dataset)
    streamable = bool(_paths(parts))
    is_stored = not (streamable and kept.total > settings.memory_limit)
    # All are decoded even if none is kept, so that a bad file cannot end a run halfway.
    checksum = write_pixels(Path(f"{at}.bin") if is_stored else None, images)
    readable = sizes[:, 0] > 0
    pixels = _pixels(at, dataset, settings, kept, sizes, checksum if is_stored else None)
    rows, labels = arranged(parts, readable, dataset)
    mean, std = _mean_and_std(pixels, rows["train"])
    about = About(
        kept=kept,
        streamable=streamable,
        is_stored=is_stored,
        checksum=checksum,
        parts=tuple(rows),
        class_names=dataset.class_names(),
        skipped=int((~readable).sum()),
        sides=(int(sizes[readable].min()), int(sizes.max())),
        mean=mean,
        std=std,
    )
    _write_index(Path(f"{at}.npz"), about, sizes, rows, labels)
    return Archive(pixels, rows, labels, about)


def _pixels(
    at: Path, dataset: Dataset, settings: DataSettings, kept: Kept, sizes: np.ndarray, checksum: int | None
) -> Pixels:
    """Return the pixels of the readable images.

    `sizes` [N, 2] is zero for the others.
    """
    readable = sizes[:, 0] > 0
    if checksum is None:
        paths = list(compress(_paths(dataset.parts()), readable))
        return Streamed(paths, kept.stored_size, kept.channels, settings.workers)
    return Stored(read_pixels(Path(f"{at}.bin"), checksum), sizes[readable], kept.channels)


def _paths(parts: dict[PartName, Part]) -> list[str]:
    """List all image files, in row order.

    The list is empty if the parts are arrays.
    """
    files = [part.images for part in parts.values() if not isinstance(part.images, np.ndarray)]
    return list(chain.from_iterable(files))


def _opened(dataset: Dataset, parts: dict[PartName, Part]) -> tuple[Kept, Iterator[np.ndarray | Bad]]:
    """Return how to decode images, and an iterator over them."""
    arrays = [part.images for part in parts.values() if isinstance(part.images, np.ndarray)]
    if arrays:
        channels, *sides = arrays[0].shape[1:]
        kept = Kept(min(sides), min(sides), channels, total=sum(array.size for array in arrays))
        return kept, chain.from_iterable(arrays)
    paths = _paths(parts)
    kept = settled(dataset.decoding, paths)
    return kept, in_threads(decode, paths, kept.stored_size, kept.channels)


def _readable(images: Iterable[np.ndarray | Bad], sizes: np.ndarray, dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield the readable images.

    Height and width of each are written to `sizes`.

    Raises:
        ConfigError: some images are bad and may not be skipped, or all are; raised after the last image.
    """
    bad: list[Bad] = []
    for row, image in enumerate(images):
        if isinstance(image, Bad):
            bad.append(image)
        else:
            sizes[row] = image.shape[1:]
            yield image
    if bad and not dataset.decoding.skip_bad:
        raise ConfigError(_listed(bad, len(sizes)))
    if len(bad) == len(sizes):
        raise ConfigError(f"{dataset.name} has {len(sizes)} files, but none can be read as an image")


def _listed(bad: Sequence[Bad], total: int) -> str:
    named = ", ".join(f"{each.path} ({each.reason})" for each in bad[:10])
    more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
    return (
        f"{len(bad)} of {total} files cannot be read as images: {named}{more}; "
        "repair or remove them, or leave them out with data.bad_images=skip"
    )


def parts_of(dataset: Dataset) -> dict[PartName, Part]:
    """Return the parts of a source, whose labels are numbers of its classes.

    Raises:
        ConfigError: files are missing or damaged, or a label is that of no class.
    """
    parts, names = dataset.parts(), dataset.class_names()
    for name, part in parts.items():
        labels = np.asarray(part.labels if part.labels is not None else [], np.int64)
        if part.labels is not None and (names is None or labels.shape != (len(part),)):
            raise ConfigError(
                f"{dataset.name} has {len(part)} images of {name} with {len(labels)} labels, and "
                f"{'no' if names is None else len(names)} class names: each image needs one label, each class a name"
            )
        if len(outside := labels[(labels < -1) | (labels >= len(names or ()))]):
            raise ConfigError(
                f"{dataset.name} has {len(names or ())} classes, and an image of {name} has the label {outside[0]}: "
                "labels count the classes from 0, and -1 is unknown; correct the files, or download them again"
            )
    return parts


def arranged(parts: dict[PartName, Part], readable: np.ndarray, dataset: Dataset) -> tuple[Rows, Labels]:
    """Return rows and labels of train and test.

    If the source has validation images, theirs are returned too.
    """
    rows: Rows = {}
    labels: Labels = {}
    start = row = 0
    for name, part in parts.items():
        places = np.flatnonzero(readable[start : start + len(part)])
        if len(places):
            rows[name] = row + np.arange(len(places))
            labels[name] = None if part.labels is None else np.asarray(part.labels, np.int64)[places]
        start, row = start + len(part), row + len(places)
    if "train" not in rows:
        raise ConfigError(f"{dataset.name} has no image to train on")
    if "test" not in rows:
        positions = held_out(len(rows["train"]), labels["train"], TEST_SHARE, (Stream.TEST,))
        _move(rows, labels, positions)
    if "unlabelled" in rows:
        _join_training(rows, labels)
    return rows, labels


def _move(rows: Rows, labels: Labels, positions: np.ndarray) -> None:
    """Move some training images to the test set."""
    if not len(positions):
        return
    of_train, known = rows["train"], labels["train"]
    rows["test"], rows["train"] = of_train[positions], np.delete(of_train, positions)
    labels["test"] = None if known is None else known[positions]
    labels["train"] = None if known is None else np.delete(known, positions)


def _join_training(rows: Rows, labels: Labels) -> None:
    """Join unlabelled images to training; a CSV file may label some of them."""
    unlabelled, known, more = rows.pop("unlabelled"), labels["train"], labels.pop("unlabelled")
    rows["train"] = np.concatenate([rows["train"], unlabelled])
    if known is not None:
        labels["train"] = np.concatenate([known, np.full(len(unlabelled), -1) if more is None else more])


def _mean_and_std(pixels: Pixels, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and std of each channel.

    At most SAMPLE training images are read, evenly spaced.
    """
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)]
    counts = np.zeros((pixels.channels, 256), np.int64)
    for image in chain.from_iterable(pixels.batches(np.array_split(sample, math.ceil(len(sample) / 64)))):
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in image]
    shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    variance = shares @ values**2 - mean**2
    std = np.sqrt(np.maximum(variance, 1 / 255**2))  # images of one flat colour must not lead to a division by zero
    return tuple(mean.tolist()), tuple(std.tolist())


def _read_index(path: Path) -> tuple[About, np.ndarray, Rows, Labels]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        about = About.model_validate_json(str(arrays["about"]))
        sizes = arrays["sizes"]
        rows: Rows = {name: arrays[f"{name} rows"] for name in about.parts}
        labels: Labels = {name: arrays.get(f"{name} labels") for name in about.parts}
    return about, sizes, rows, labels


def _write_index(path: Path, about: About, sizes: np.ndarray, rows: Rows, labels: Labels) -> None:
    arrays = {"sizes": sizes} | {f"{name} rows": value for name, value in rows.items()}
    arrays |= {f"{name} labels": value for name, value in labels.items() if value is not None}
    arrays["about"] = np.array(about.model_dump_json())
    with whole(path, REFUSAL) as file:
        np.savez(file, allow_pickle=False, **arrays)
