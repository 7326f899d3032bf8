"""The layout of a folder: which files are images, and of which part."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from eagleray.contracts.dataset import PartName
from eagleray.contracts.errors import ConfigError

SPLITS: dict[str, PartName] = {
    "train": "train",
    "training": "train",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow recognises and does not decode


@dataclass(frozen=True)
class Listed:
    """The files of one part, relative to its folder, sorted."""

    folder: Path
    images: list[str]
    strays: list[str]  # not named like images, although others are
    again: list[str]  # links to folders that are read already, which are not followed

    @property
    def paths(self) -> list[str]:
        """The images, with their folder."""
        return [os.path.join(self.folder, path) for path in self.images]


@dataclass(frozen=True)
class Layout:
    """The parts of a folder."""

    parts: dict[PartName, Listed]
    beside: list[str]  # images and folders that no part contains


def read_layout(root: Path) -> Layout:
    """List the files of each part.

    Parts are the sub-folders of their names, or `root` itself for training. Beside folders that are classes, `val` or
    `test` is a part if it contains some of the same folders.

    Raises:
        ConfigError: `root` is not a folder, cannot be read or has no images; two folders are the same part.
    """
    try:
        if not root.is_dir():
            raise ConfigError(f"data.root={root} {'is not a folder' if root.exists() else 'does not exist'}")
    except OSError as error:
        raise ConfigError(f"data.root={root} cannot be read: {error.strerror}") from None
    below = _folders_in(root)
    named = _named(below)
    others = {folder.name for folder in below if folder.name.lower() not in SPLITS}
    parts: dict[PartName, Listed]
    if "train" in named and (len(named) > 1 or not others or _only_train_is_deep(named["train"], below)):
        parts = {part: listed(folder) for part, folder in named.items()}
        beside = [*sorted(others), *filter(_is_image, _files_in(root))]
    else:
        shaped = _shaped(named, others)
        parts = {part: listed(named[part]) for part in shaped}
        parts["train"] = listed(root, without={named[part].name for part in shaped})
        beside = []
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return Layout(parts, beside)


def _named(folders: list[Path]) -> dict[PartName, Path]:
    named: dict[PartName, Path] = {}
    for folder in folders:
        part = SPLITS.get(folder.name.lower())
        if part in named:
            raise ConfigError(f"{named[part]} and {folder} are the same part: move the images of one into the other")
        if part:
            named[part] = folder
    return named


def _shaped(named: dict[PartName, Path], others: set[str]) -> list[PartName]:
    """Return which of validation and test have folders like those beside them."""
    held_out: tuple[PartName, ...] = ("validation", "test")
    return [part for part in held_out if part in named and others & {at.name for at in _folders_in(named[part])}]


def _only_train_is_deep(train: Path, below: list[Path]) -> bool:
    """Return whether `train` alone has sub-folders: else it may be a class of that name."""
    return bool(_folders_in(train)) and not any(_folders_in(folder) for folder in below if folder != train)


def listed(folder: Path, without: set[str] | None = None) -> Listed:
    """List all files below a folder, sorted so that no file system changes the order.

    If none is named like an image, those without an ending are the images.

    Raises:
        ConfigError: there are no images, or a folder cannot be read.
    """

    paths, again = _walked(folder, without or set())
    visible = sorted(path for path in paths if not _is_hidden(os.path.basename(path)))
    images = list(filter(_is_image, visible)) or [path for path in visible if not os.path.splitext(path)[1]]
    if not images:
        other = f": {visible[0]} is not named like one" if visible else ""
        raise ConfigError(f"{folder} contains no images{other}; name the folder that has them")
    return Listed(folder, images, sorted(set(paths) - set(images)), again)


def _walked(folder: Path, without: set[str]) -> tuple[list[str], list[str]]:
    """Return all files below a folder, and links to folders that are read already.

    Links are followed after all real folders were read, so that no folder is read twice and no circle has no end.
    """
    read = {_identity(folder / name) for name in without}
    waiting, links, files, again = [""], list[str](), list[str](), list[str]()
    while waiting or links:
        where = waiting.pop() if waiting else links.pop(0)
        try:
            if (identity := _identity(folder / where)) in read:
                again.append(where)
                continue
            read.add(identity)
            entries = list(os.scandir(folder / where))
        except OSError as error:
            raise ConfigError(f"{folder / where} cannot be read: {error.strerror}") from error
        for entry in entries:
            path, is_folder = os.path.join(where, entry.name), entry.is_dir(follow_symlinks=False)
            if not is_folder and not (entry.is_symlink() and os.path.isdir(entry.path)):
                files.append(path)
            elif not _is_hidden(entry.name) and path not in without:
                (waiting if is_folder else links).append(path)
        links.sort()
    return files, sorted(again)


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    known = Image.registered_extensions()  # also fills Image.OPEN
    return frozenset(end for end, format_ in known.items() if format_ in Image.OPEN and format_ not in NO_PICTURES)


def _folders_in(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _files_in(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_file()]


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in sorted(folder.iterdir()) if not _is_hidden(entry.name)]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
