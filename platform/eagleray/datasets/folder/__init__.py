"""Any folder of images."""

import difflib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainSerializer

from eagleray.contracts.dataset import Dataset, Decoding, Part, PartName
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import Place, expanded, located, shared
from eagleray.datasets.folder.label_file import ENDINGS, read_labels
from eagleray.datasets.folder.layout import SPLITS, Layout, Listed, read_layout

CHANNELS: dict[str, Literal[1, 3] | None] = {"auto": None, "grey": 1, "rgb": 3}
WORDS = ("auto", "folders", "none")  # values of data.labels that are no file
UNCLEAR = ("unknown", "unsorted", "unclassified", "uncategorised", "uncategorized")  # a class, or no label?
SHOWN = 5  # names in a list for a person


def _labels_from(value: str) -> str:
    """Return where labels come from: a word, or an absolute path."""
    if value in WORDS:
        return value
    if not value.lower().endswith(ENDINGS):
        near = difflib.get_close_matches(value, WORDS, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{value!r} is not one of {', '.join(WORDS)} or a file ({', '.join(ENDINGS)}){hint}")
    return str(expanded(value).absolute())


class Folder(Dataset):
    """Any folder of images, with classes by sub-folder, by a CSV file, or with none.

    `root/train` next to `root/test` (or `val`, or `unlabelled`) are used as the parts of those names; `val`
    without a `test` is the test set, as in ImageNet. A folder `unlabelled` beside class folders has the images without
    a label. Files that are hidden or not named like images are left out and counted.
    """

    names: ClassVar[tuple[str, ...]] = ("folder",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Where the images are, and how they are read."""

        root: Annotated[
            Place,
            Field(description="the folder; it may contain train and test (or val) folders"),
        ]
        labels: Annotated[
            str,
            BeforeValidator(located),
            AfterValidator(_labels_from),
            PlainSerializer(shared, return_type=str, when_used="json"),
            Field(
                description="folders: the first sub-folder is the class, at any depth of the image; none: no "
                "classes; auto: folders if each image is one sub-folder deep and there are at least two, else none; or "
                "a CSV file with the columns path and label, whose paths are relative to its own folder or to root: "
                "images that it leaves out are unlabelled"
            ),
        ] = "auto"
        size: Annotated[
            int | None,
            Field(
                ge=4,
                le=8192,
                description="side of the views if image_size is not set; null: the median shorter side of the "
                "images, at most 64",
            ),
        ] = None
        stored_size: Annotated[
            int | None,
            Field(
                ge=4,
                le=8192,
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
        images = [path for listed in self._layout.parts.values() for path in listed.paths]
        return images if self._label_file is None else [*images, str(self._label_file)]

    def parts(self) -> dict[PartName, Part]:
        return {part: Part(listed.paths, self._labels(part)) for part, listed in self._layout.parts.items()}

    def class_names(self) -> tuple[str, ...] | None:
        return self._classes

    def notes(self) -> Sequence[str]:
        strays = [os.path.join(listed.folder, path) for listed in self._layout.parts.values() for path in listed.strays]
        strays = [path for path in strays if path != str(self._label_file)]
        notes: list[str] = []
        if strays:
            notes.append(f"{_counted(len(strays), 'file')} left out, hidden or not named like images ({_few(strays)})")
        if again := [path for listed in self._layout.parts.values() for path in listed.again]:
            notes.append(
                f"{_counted(len(again), 'link')} not followed, to folders that are read already ({_few(again)})"
            )
        if beside := self._layout.beside:
            notes.append(f"not read, because beside {self._train.folder.name}: {_few(beside)}")
        if self._classes is None and self.config.labels == "auto" and len(self._folders) > 1:
            notes.append(f"data.labels=folders would take {_few(self._folders)} as classes")
        return notes

    @cached_property
    def _layout(self) -> Layout:
        return read_layout(self.config.root)

    @property
    def _train(self) -> Listed:
        return self._layout.parts["train"]

    @property
    def _label_file(self) -> Path | None:
        return None if self.config.labels in WORDS else Path(self.config.labels)

    @cached_property
    def _folders(self) -> tuple[str, ...]:
        """The sub-folders of the training images that can be classes."""
        return tuple(sorted({_top(path) for path in self._train.images} - {"", *self._unlabelled}))

    @cached_property
    def _unlabelled(self) -> set[str]:
        """The sub-folders of training images without a label."""
        return {top for path in self._train.images if SPLITS.get((top := _top(path)).lower()) == "unlabelled"}

    @cached_property
    def _classes(self) -> tuple[str, ...] | None:
        if self.config.labels == "none":
            return None
        where, classes = self._train.folder, self._folders
        if self.config.labels == "folders":
            if len(classes) < 2:
                raise ConfigError(f"{where} has fewer than two sub-folders of images: set data.labels=none")
            return classes
        self._check_no_part_is_trained_on()
        if self._label_file is not None:
            return self._named_classes
        if unclear := [name for name in classes if name.lower() in UNCLEAR and len(classes) > 1]:
            raise ConfigError(
                f"{where / unclear[0]} is beside class folders: if its images have no label, rename it `unlabelled`; "
                f"if {unclear[0]} is a class, set data.labels=folders; for no classes at all, data.labels=none"
            )
        depths = {path.count(os.sep) for path in self._train.images if _top(path) not in self._unlabelled}
        if 1 in depths and len(depths) > 1 and len(classes) > 1:
            raise ConfigError(
                f"{where} contains images at different depths: set data.labels=folders if its sub-folders are "
                "classes (an image outside them then counts as unlabelled), else data.labels=none"
            )
        are_classes = depths == {1} or (0 not in depths and self._classes_are_meant)
        return classes if are_classes and len(classes) > 1 else None

    @property
    def _classes_are_meant(self) -> bool:
        """Whether sub-folders are classes however deep: others are unlabelled, or test has the same."""
        others = [listed for part, listed in self._layout.parts.items() if part in ("validation", "test")]
        same = bool(others) and all(_top(path) in self._folders for listed in others for path in listed.images)
        return same or bool(self._unlabelled)

    def _check_no_part_is_trained_on(self) -> None:
        for name in self._folders:
            if SPLITS.get(name.lower()) in ("validation", "test"):
                raise ConfigError(
                    f"{self._train.folder / name} would be trained on: move the training images into a folder `train` "
                    f"beside it; or set data.labels=folders if {name} is a class, data.labels=none if there are no "
                    "classes and it is for training"
                )

    @cached_property
    def _named(self) -> dict[PartName, list[str]]:
        """The label of each image, from the file; empty: none."""
        assert self._label_file is not None
        parts = self._layout.parts
        every = [path for listed in parts.values() for path in listed.paths]
        labels = iter(read_labels(self._label_file, self.config.root, every))
        return {part: [next(labels) for _ in listed.images] for part, listed in parts.items()}

    @cached_property
    def _named_classes(self) -> tuple[str, ...]:
        known = [name for part in ("train", "unlabelled") for name in self._named.get(part, ()) if name]
        classes = tuple(sorted(set(known)))
        if len(classes) < 2:
            found = f"one class, {classes[0]!r}" if classes else "no class"
            raise ConfigError(
                f"{self._label_file} gives the training images {found}: at least two are needed; "
                "add labels, or set data.labels=none"
            )
        return classes

    def _labels(self, part: PartName) -> np.ndarray | None:
        if self._classes is None:
            return None
        number = {name: place for place, name in enumerate(self._classes)}
        images = self._layout.parts[part].images
        if self._label_file is None:
            names = [_top(path) for path in images] if part != "unlabelled" else [""] * len(images)
        else:
            names = self._named[part]
        labels = np.array([number.get(name, -1) for name in names], np.int64)
        if part in ("validation", "test"):
            self._check_held_out(part, names, labels)
        return labels

    def _check_held_out(self, part: PartName, names: list[str], labels: np.ndarray) -> None:
        listed, place = self._layout.parts[part], int(np.argmin(labels))
        if self._label_file is None and labels[place] < 0:
            raise ConfigError(
                f"{listed.folder / listed.images[place]} is in none of the class folders of {self._train.folder}: "
                "move it into one, or set data.labels=none"
            )
        if strange := [at for at, name in enumerate(names) if name and labels[at] < 0]:
            path, name = listed.paths[strange[0]], names[strange[0]]
            raise ConfigError(
                f"{self._label_file} gives {path} the label {name!r}, which no training image has: correct it, or "
                "label training images of that class"
            )
        if (labels < 0).all():
            raise ConfigError(
                f"{self._label_file} has no label for an image in {listed.folder}: add some, rename that folder "
                "`unlabelled` to train on it, or move it away"
            )


def _top(path: str) -> str:
    """Return the first folder of a relative path, if any."""
    return path.partition(os.sep)[0] if os.sep in path else ""


def _few(names: Sequence[str]) -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*map(os.path.basename, names[:SHOWN]), *more])


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
