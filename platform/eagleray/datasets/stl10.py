"""STL-10, from its published binary files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName, PublishedFiles, content, download
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import Place

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
LABELLED = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
UNLABELLED = "unlabeled_X.bin"
MOST = 100_000  # images of a file


class Stl10(Dataset):
    """5,000 + 8,000 colour images of 96x96 pixels in ten classes, and 100,000 without labels to train on.

    Coates, Lee, Ng 2011, "An Analysis of Single Layer Networks in Unsupervised Feature Learning".
    """

    names: ClassVar[tuple[str, ...]] = ("stl10",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Where the files are."""

        root: Annotated[
            Place,
            Field(description="stl10_binary, or the folder that contains it", validate_default=True),
        ] = Path("data")
        download: Annotated[bool, Field(description="let torchvision download missing files into root")] = False
        unlabelled: Annotated[bool, Field(description="train on the 100,000 images without labels too")] = True

    config: Config

    def __init__(self, name: str, config: Config):
        super().__init__(name, config)
        names = (*LABELLED, UNLABELLED) if config.unlabelled else LABELLED
        self.published = PublishedFiles(name, config.root, ("stl10_binary", "."), names)

    def fetch(self) -> None:
        if self.config.download and not self.published.complete():
            download("STL10", self.config.root)

    def files(self) -> Sequence[str]:
        return self.published.paths()

    def parts(self) -> dict[PartName, Part]:
        parts: dict[PartName, Part] = {"train": self._labelled("train"), "test": self._labelled("test")}
        if self.config.unlabelled:
            images = read_images(self.published[UNLABELLED])
            parts["unlabelled"] = Part(images, np.full(len(images), -1))
        return parts

    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def _labelled(self, part: str) -> Part:
        images = read_images(self.published[f"{part}_X.bin"])
        numbers = content(self.published[f"{part}_y.bin"], MOST)
        labels = np.frombuffer(numbers, np.uint8).astype(np.int64) - 1  # counted from 1
        if len(labels) != len(images) or labels.min() < 0:
            raise ConfigError(f"{part}_X.bin and {part}_y.bin of stl10 do not match; download them again")
        return Part(images, labels)


def read_images(path: Path) -> np.ndarray:
    """Map an STL-10 file into memory, uint8 [N, 3, 96, 96].

    The unlabelled images are 2.8 GB.

    Raises:
        ConfigError: the file is truncated, or too large.
    """
    image = 3 * 96 * 96
    count, rest = divmod(path.stat().st_size, image)
    if rest or not 0 < count <= MOST:
        raise ConfigError(
            f"{path} is damaged: it has no whole number of images of {image} bytes, or more than {MOST:,}; "
            "download it again"
        )
    columns_first = np.memmap(path, np.uint8, "r", shape=(count, 3, 96, 96))
    return columns_first.transpose(0, 1, 3, 2)
