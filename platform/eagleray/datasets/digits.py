"""Handwritten digits that ship with scikit-learn."""

from typing import ClassVar

import numpy as np
from pydantic import BaseModel

from eagleray.contracts.dataset import Dataset, Part, PartName


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
        from sklearn.datasets import load_digits  # takes a second to import: only when the cache is built

        values, labels = load_digits(return_X_y=True)  # 0..16, [N, 64]
        pixels = np.rint(np.asarray(values) * (255 / 16)).astype(np.uint8)
        return {"train": Part(pixels.reshape(-1, 1, 8, 8), np.asarray(labels, np.int64))}

    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")
