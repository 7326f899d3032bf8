"""Handwritten digits that ship with scikit-learn: no download, ready in a moment."""

from typing import ClassVar

import numpy as np
from pydantic import BaseModel

from eagleray.dataset import Dataset, Part, PartName


class Digits(Dataset):
    """1,797 handwritten digits of 8x8 grey pixels, shipped with scikit-learn.

    Alpaydin and Kaynak 1998, the test part of UCI's "Optical Recognition of Handwritten Digits", which has no official
    split of its own: the engine's fixed fifth is the test part.
    """

    names: ClassVar[tuple[str, ...]] = ("digits",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Nothing to set."""

    def parts(self) -> dict[PartName, Part]:
        from sklearn.datasets import load_digits  # a second to import: only when the cache is made

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
        return {"train": Part(pixels[:, None], digits.target.astype(np.int64))}

    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(10)))
