"""Handwritten digits that ship with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import BaseModel

from eagleray.contracts.dataset import Dataset, Part, PartName
from eagleray.contracts.errors import ConfigError


class Digits(Dataset):
    """1,797 handwritten digits of 8x8 grey pixels, shipped with scikit-learn.

    Alpaydin and Kaynak 1998, the test set of UCI's "Optical Recognition of Handwritten Digits". It has no
    official split of its own, so the engine's fixed fifth is the test set.
    """

    names: ClassVar[tuple[str, ...]] = ("digits",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Nothing to set."""

    config: Config

    def parts(self) -> dict[PartName, Part]:
        table = np.loadtxt(_file(), np.int64, delimiter=",")  # 64 values from 0 to 16, and the digit
        pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
        return {"train": Part(pixels.reshape(-1, 1, 8, 8), table[:, -1])}

    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")


def _file() -> Path:
    """Return scikit-learn's file, which is read without importing it: that takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("data=digits needs scikit-learn: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
