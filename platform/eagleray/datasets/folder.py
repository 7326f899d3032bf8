"""Any folder of images."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, Field

from eagleray.contracts.dataset import Dataset, Decoding, Part, PartName
from eagleray.contracts.errors import ConfigError

SPLITS: dict[str, PartName] = {
    "train": "train",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
CHANNELS: dict[str, Literal[1, 3] | None] = {"auto": None, "grey": 1, "rgb": 3}


class Folder(Dataset):
    """Any folder of images, with a sub-folder for each class or with none.

    `root/train` next to `root/test` (or `val`, or `unlabelled`) are used as the parts of those names; `val`
    without a `test` is the test set, as in ImageNet. Hidden files are ignored; all others should be images.
    """

    names: ClassVar[tuple[str, ...]] = ("folder",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Where the images are, and how they are read."""

        root: Annotated[
            Path,
            AfterValidator(Path.expanduser),
            AfterValidator(Path.absolute),
            Field(description="the folder; it may contain train and test (or val) folders"),
        ]
        labels: Annotated[
            Literal["auto", "folders", "none"],
            Field(
                description="folders: the first sub-folder is the class, at any depth of the image; none: no "
                "classes; auto: folders if each image is one sub-folder deep and there are at least two, else none"
            ),
        ] = "auto"
        size: Annotated[
            int | None,
            Field(
                ge=4,
                description="side of the views if image_size is not set; null: the median shorter side of the "
                "images, at most 64",
            ),
        ] = None
        stored_size: Annotated[
            int | None,
            Field(
                ge=4,
                description="shorter side to which larger images are reduced in the cache; random crops are taken from "
                "the whole stored image; null: twice size",
            ),
        ] = None
        channels: Annotated[
            Literal["auto", "grey", "rgb"], Field(description="auto: grey if every image is, else rgb")
        ] = "auto"
        bad_images: Annotated[
            Literal["error", "skip"],
            Field(description="files that cannot be read as images: raise an error, or skip and count them"),
        ] = "error"

    config: Config

    def __init__(self, name: str, config: Config):
        super().__init__(name, config)
        self.decoding = Decoding(
            config.size, config.stored_size, CHANNELS[config.channels], skip_bad=config.bad_images == "skip"
        )

    def files(self) -> Sequence[str]:
        return [path for part in self._listed for path in self._paths(part)]

    def parts(self) -> dict[PartName, Part]:
        return {part: Part(self._paths(part), self._labels(part)) for part in self._listed}

    def class_names(self) -> tuple[str, ...] | None:
        return self._classes

    @cached_property
    def _folders(self) -> dict[PartName, Path]:
        return part_folders(self.config.root)

    @cached_property
    def _listed(self) -> dict[PartName, list[str]]:
        """Each part's files, relative to its folder."""
        return {part: files_below(folder) for part, folder in self._folders.items()}

    @cached_property
    def _classes(self) -> tuple[str, ...] | None:
        if self.config.labels == "none":
            return None
        images = named_like_images(self._listed["train"])
        depths = {path.count(os.sep) for path in images}
        classes = tuple(sorted({path.split(os.sep)[0] for path in images if os.sep in path}))
        where = self._folders["train"]
        if self.config.labels == "folders":
            if len(classes) < 2:
                raise ConfigError(f"{where} has fewer than two sub-folders of images: set data.labels=none")
            return classes
        if 1 in depths and len(depths) > 1 and len(classes) > 1:
            raise ConfigError(
                f"{where} contains images at different depths: set data.labels=folders if its sub-folders are "
                "classes (an image outside them then counts as unlabelled), else data.labels=none"
            )
        return classes if depths == {1} and len(classes) > 1 else None

    def _paths(self, part: PartName) -> list[str]:
        return [os.path.join(self._folders[part], path) for path in self._listed[part]]

    def _labels(self, part: PartName) -> np.ndarray | None:
        if self._classes is None:
            return None
        number = {} if part == "unlabelled" else {name: i for i, name in enumerate(self._classes)}
        labels = np.array([number.get(path.split(os.sep)[0], -1) for path in self._listed[part]], np.int64)
        if part in ("validation", "test") and (labels < 0).any():
            stray = self._listed[part][int(np.argmin(labels))]
            raise ConfigError(
                f"{self._folders[part] / stray} is in none of the class folders of {self._folders['train']}: "
                "move it into one, or set data.labels=none"
            )
        return labels


def part_folders(root: Path) -> dict[PartName, Path]:
    """Return the folder of each part.

    The sub-folders of these names, or `root` itself for training.

    Raises:
        ConfigError: `root` is not a folder.
    """
    if not root.is_dir():
        raise ConfigError(f"data.root={root} {'is not a folder' if root.exists() else 'does not exist'}")
    below = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    parts: dict[PartName, Path] = {
        SPLITS[folder.name.lower()]: folder for folder in below if folder.name.lower() in SPLITS
    }
    if "train" not in parts or (len(parts) == 1 and len(below) > 1):  # a class may be called train
        return {"train": root}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def files_below(folder: Path) -> list[str]:
    """Return all files below a folder, sorted.

    Hidden files are left out. Sorted, so that no file system changes the order.

    Raises:
        ConfigError: there are no files, or a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}")

    paths: list[str] = []
    for where, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.relpath(os.path.join(where, f), folder) for f in files if not f.startswith(".")]
    if not paths:
        raise ConfigError(f"{folder} contains no images")
    return sorted(paths)


def named_like_images(files: list[str]) -> list[str]:
    """Return the files that are named like images.

    Pillow must know the ending. Without any, all files: a README must not decide the layout.
    """
    known = Image.registered_extensions()
    return [path for path in files if os.path.splitext(path)[1].lower() in known] or files
