"""CIFAR-10 and CIFAR-100, from their published Python batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName, PublishedFiles, download
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import Place
from eagleray.datasets.cifar.batches import read_batch


class Layout(NamedTuple):
    """Names of a dataset's files and keys."""

    folder: str
    torchvision: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str  # key of the labels in a batch
    classes: str  # key of their names in `meta`


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        "CIFAR10",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": Layout("cifar-100-python", "CIFAR100", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
}


class Cifar(Dataset):
    """50,000 + 10,000 colour images of 32x32 pixels in ten classes (cifar10) or a hundred (cifar100).

    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    names: ClassVar[tuple[str, ...]] = ("cifar10", "cifar100")

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Where the files are."""

        root: Annotated[
            Place,
            Field(
                description="cifar-10-batches-py or cifar-100-python, or the folder that contains it",
                validate_default=True,
            ),
        ] = Path("data")
        download: Annotated[bool, Field(description="let torchvision download missing files into root")] = False

    config: Config

    def __init__(self, name: str, config: Config):
        super().__init__(name, config)
        self.layout = layout = LAYOUTS[name]
        names = (*layout.train, layout.test, layout.meta)
        self.published = PublishedFiles(name, config.root, (layout.folder, "."), names)

    def fetch(self) -> None:
        if self.config.download and not self.published.complete():
            download(self.layout.torchvision, self.config.root)

    def files(self) -> Sequence[str]:
        return self.published.paths()

    def parts(self) -> dict[PartName, Part]:
        return {"train": self._part(self.layout.train), "test": self._part((self.layout.test,))}

    def class_names(self) -> tuple[str, ...]:
        path = self.published[self.layout.meta]
        (names,) = read_batch(path, self.layout.classes)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{path} does not name the classes of {self.name}; download it again")
        return tuple(names)

    def _part(self, files: Sequence[str]) -> Part:
        batches = [self._batch(self.published[file]) for file in files]
        images = np.concatenate([images for images, _ in batches])
        return Part(images, np.concatenate([labels for _, labels in batches]))

    def _batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        images, labels = read_batch(path, "data", self.layout.labels)
        try:
            labels = np.asarray(labels, np.int64)
            are_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
            if not are_bytes or labels.ndim != 1 or labels.min() < 0:
                raise ValueError("its data are no bytes, or its labels no numbers from 0 on")
            return images.reshape(len(labels), 3, 32, 32), labels
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"{path} is not a batch of {self.name}: {error}; download it again") from error
