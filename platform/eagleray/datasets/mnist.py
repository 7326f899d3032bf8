"""MNIST and Fashion-MNIST, from their published idx files."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName, PublishedFiles, download
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import AbsolutePath

CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CLASSES = {"mnist": tuple("0123456789"), "fashion_mnist": tuple(CLOTHES.split(","))}
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
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
            AbsolutePath,
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
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ConfigError(
                f"the {name} files of {self.name} do not match: "
                f"images of shape {images.shape}, labels of shape {labels.shape}"
            )
        return Part(images[:, None], labels.astype(np.int64))


def read_idx(path: Path) -> np.ndarray:
    """Read the array of an idx file of bytes.

    It may be gzipped (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        ConfigError: the file is damaged, or is not an idx file.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ConfigError(f"{path} cannot be read as an idx file: {error}; download it again") from error
    if zeros != 0 or kind != 8 or len(raw) != 4 + 4 * rank + math.prod(shape):
        raise ConfigError(f"{path} is not a complete idx file of bytes; download it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
