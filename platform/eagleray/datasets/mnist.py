"""MNIST and Fashion-MNIST, from their published idx files."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName, PublishedFiles, content, download
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import Place

CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CLASSES = {"mnist": tuple("0123456789"), "fashion_mnist": tuple(CLOTHES.split(","))}
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
LARGEST = 256 * 2**20  # bytes of a file, packed or not; the published ones have up to 47 million
RANKS = (1, 3)  # labels, images
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Mnist(Dataset):
    """60,000 + 10,000 grey images of 28x28 pixels in ten classes: digits (mnist) or clothes (fashion_mnist).

    LeCun et al. 1998; Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747).
    """

    names: ClassVar[tuple[str, ...]] = ("mnist", "fashion_mnist")

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Where the files are."""

        root: Annotated[
            Place,
            Field(
                description="folder of the idx files (.gz or not), e.g. train-images-idx3-ubyte.gz",
                validate_default=True,
            ),
        ] = Path("data")
        download: Annotated[bool, Field(description="let torchvision download missing files into root")] = False

    config: Config

    def __init__(self, name: str, config: Config):
        super().__init__(name, config)
        places = (".", f"{TORCHVISION[name]}/raw")  # as published; as torchvision stores them
        names = (*FILES["train"], *FILES["test"])
        self.published = PublishedFiles(name, config.root, places, names, endings=("", ".gz"))

    def fetch(self) -> None:
        if self.config.download and not self.published.complete():
            download(TORCHVISION[self.name], self.config.root)

    def files(self) -> Sequence[str]:
        return self.published.paths()

    def parts(self) -> dict[PartName, Part]:
        return {"train": self._part("train"), "test": self._part("test")}

    def class_names(self) -> tuple[str, ...]:
        return CLASSES[self.name]

    def _part(self, name: str) -> Part:
        images, labels = (read_idx(self.published[file]) for file in FILES[name])
        if (
            images.ndim != 3
            or images.shape[1] != images.shape[2]
            or not images.size
            or labels.shape != images.shape[:1]
        ):
            raise ConfigError(
                f"the {name} files of {self.name} do not match: images of shape {_shape(images)}, labels of shape "
                f"{_shape(labels)}, and N square images with N labels are needed; download them again"
            )
        return Part(images[:, None], labels.astype(np.int64))


def read_idx(path: Path) -> np.ndarray:
    """Read the array of an idx file of bytes.

    It may be gzipped (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        ConfigError: the file is damaged, too large, or is not an idx file.
    """
    raw = content(path, LARGEST)
    try:
        with gzip.open(io.BytesIO(raw)) if path.suffix == ".gz" else io.BytesIO(raw) as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape)
            # A few kilobytes can unpack to gigabytes, so no more is read than the head promises.
            values = file.read(size + 1) if size <= LARGEST else b""
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ConfigError(f"{path} cannot be read as an idx file: {error}; download it again") from error
    if zeros != 0 or kind != 8 or rank not in RANKS or len(values) != size:
        raise ConfigError(f"{path} is not a complete idx file of bytes; download it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
