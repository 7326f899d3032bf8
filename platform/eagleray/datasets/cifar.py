"""CIFAR-10 and CIFAR-100, from the Python batches that both are published in."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName, PublishedFiles, download
from eagleray.contracts.errors import ConfigError


class Layout(NamedTuple):
    """Where a dataset keeps what."""

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
            Path,
            AfterValidator(Path.expanduser),
            AfterValidator(Path.absolute),
            Field(
                description="cifar-10-batches-py or cifar-100-python, or the folder that holds it",
                validate_default=True,
            ),
        ] = Path("data")
        download: Annotated[bool, Field(description="let torchvision fetch the files into root if missing")] = False

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
            raise ConfigError(f"{path} is no batch of {self.name}: {error!r}; fetch it anew") from error


class _Plain(pickle.Unpickler):
    """A pickle can run any code as it is read; CIFAR's build numpy arrays, and may do nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # Written by Python 2, whose numpy kept _reconstruct in numpy.core.
        if (module.removeprefix("numpy._core.").removeprefix("numpy.core."), name) == (
            "multiarray",
            "_reconstruct",
        ):
            return _reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")


def _reconstruct(kind: type[np.ndarray], shape: tuple[int, ...], code: Any) -> np.ndarray:
    """An empty array for the pickle to fill: what numpy's function of this name does."""
    return np.ndarray.__new__(np.ndarray, shape, "b")


def read_pickle(path: Path) -> dict[str, Any]:
    """What a pickle of plain values and numpy arrays holds; strings of Python 2 are read as latin-1.

    Raises:
        ConfigError: it is damaged, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            held = _Plain(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigError(f"{path} cannot be read: {error}; fetch it anew") from error
    if not isinstance(held, dict):
        raise ConfigError(f"{path} holds no batch; fetch it anew")
    return held
