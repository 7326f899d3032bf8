"""Any folder of images."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, Field

from eagleray.dataset import Dataset, Decoding, Part, PartName
from eagleray.errors import Refusal

SPLITS: dict[str, PartName] = {
    "train": "train",
    "training": "train",
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

    `root/train` beside `root/test` (or `val`, or `unlabelled`) are taken as the parts they are called; `val` alone is
    the test part, as in ImageNet. Hidden files are passed over, every other file should be an image. Links are followed.
    """

    names: ClassVar[tuple[str, ...]] = ("folder",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Where the images are, and how they are read."""

        root: Annotated[
            Path,
            AfterValidator(Path.expanduser),
            AfterValidator(Path.absolute),
            Field(description="the folder; it may hold train and test (or val) folders"),
        ]
        labels: Annotated[
            Literal["auto", "folders", "none"],
            Field(
                description="folders: the first sub-folder is the class, however deep the image; none: no classes; "
                "auto: folders if every image lies exactly one sub-folder deep and there are two or more, else none"
            ),
        ] = "auto"
        size: Annotated[
            int | None,
            Field(
                ge=4,
                description="side the images are kept at: shorter side resized to it, centre cut out; "
                "null: the median shorter side, at most 64",
            ),
        ] = None
        channels: Annotated[
            Literal["auto", "grey", "rgb"], Field(description="auto: grey if every image is, else rgb")
        ] = "auto"
        bad_images: Annotated[
            Literal["error", "skip"],
            Field(description="files that cannot be read as images: an error, or left out and counted"),
        ] = "error"

    def __init__(self, name: str, config: Config):
        super().__init__(name, config)
        self.decoding = Decoding(config.size, CHANNELS[config.channels], config.bad_images == "skip")

    def files(self) -> Sequence[str]:
        return [path for folder, names in self._listed.values() for path in _joined(folder, names)]

    def parts(self) -> dict[PartName, Part]:
        classes = {name: label for label, name in enumerate(self.class_names() or ())}
        return {
            name: Part(_joined(folder, files), _labels(files, classes if name != "unlabelled" else {}))
            for name, (folder, files) in self._listed.items()
        }

    def class_names(self) -> tuple[str, ...] | None:
        return self._classes

    @cached_property
    def _listed(self) -> dict[PartName, tuple[Path, list[str]]]:
        """Every part's folder, and the files below it."""
        listed = {name: (folder, listed_below(folder)) for name, folder in parts_of(self.config.root).items()}
        for folder, files in listed.values():
            if not files:
                raise Refusal(f"{folder} holds no files: data.root must name a folder of images")
        return listed

    @cached_property
    def _classes(self) -> tuple[str, ...] | None:
        judged = {name: files for name, (_, files) in self._listed.items() if name != "unlabelled"}
        by_part = {name: self._classes_of(name, files) for name, files in judged.items()}
        train = by_part["train"]
        for name, classes in by_part.items():
            strange = sorted(set(classes or ()) - set(train or ()))
            if (classes is None) != (train is None) or strange:
                what = f"classes that train lacks ({', '.join(strange[:3])})" if strange and train else "other sub-folders"
                raise Refusal(f"{self.config.root}: {name} has {what} than train; give both the same, or set data.labels=none")
        return train

    def _classes_of(self, part: PartName, files: list[str]) -> tuple[str, ...] | None:
        if self.config.labels == "none":
            return None
        depths = {file.count(os.sep) for file in images_among(files)}
        classes = tuple(sorted({file.split(os.sep)[0] for file in images_among(files) if os.sep in file}))
        if self.config.labels == "folders":
            if 0 in depths or (part == "train" and len(classes) < 2):
                raise Refusal("…")
            return classes
        if len(depths) > 1 and classes:
            raise Refusal("…")
        return classes if depths == {1} and len(classes) > 1 else None
