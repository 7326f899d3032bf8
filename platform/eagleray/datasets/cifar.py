"""CIFAR-10 and CIFAR-100, from their published Python batches."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName, PublishedFiles, download
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import AbsolutePath


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
            AbsolutePath,
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
        return tuple(read_pickle(self.published[self.layout.meta])[self.layout.classes])

    def _part(self, files: Sequence[str]) -> Part:
        batches = [self._batch(self.published[file]) for file in files]
        images = np.concatenate([images for images, _ in batches])
        return Part(images, np.concatenate([labels for _, labels in batches]))

    def _batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        batch = read_pickle(path)
        try:
            labels = np.asarray(batch[self.layout.labels], np.int64)
            return np.asarray(batch["data"], np.uint8).reshape(len(labels), 3, 32, 32), labels
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not a batch of {self.name}: {error!r}; download it again") from error


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and nothing else.

    Reading a pickle could run any code.
    """

    def find_class(self, module: str, name: str) -> Any:
        # Written by Python 2, whose numpy kept _reconstruct in numpy.core.
        if (module.removeprefix("numpy._core.").removeprefix("numpy.core."), name) == (
            "multiarray",
            "_reconstruct",
        ):
            return _reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch of images does not need")


def _reconstruct(kind: type[np.ndarray], shape: tuple[int, ...], code: Any) -> np.ndarray:
    """Return an empty array for the pickle to fill.

    As numpy's function of this name does.
    """
    return np.ndarray.__new__(np.ndarray, shape, "b")


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of values and arrays.

    The values are simple, the arrays numpy's; Python 2 strings are read as latin-1.

    Raises:
        ConfigError: the file is damaged, or contains anything else.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigError(f"{path} cannot be read: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} contains no batch; download it again")
    return content
