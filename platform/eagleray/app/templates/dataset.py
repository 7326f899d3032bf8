"""NewPlugin: one plain sentence about the images and where they come from."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from eagleray.contracts.dataset import Dataset, Part, PartName
from eagleray.contracts.seeds import numpy_generator

CLASSES = ("bar", "cross", "frame")


class NewPlugin(Dataset):
    """One sentence: bars, crosses and frames on noise, 16x16 grey pixels."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        images: Annotated[int, Field(ge=30, description="how many are drawn")] = 600
        noise: Annotated[float, Field(ge=0, le=100, description="standard deviation of the background, of 255")] = 20.0

    config: Config
    names: ClassVar[tuple[str, ...]] = ("new_plugin",)

    def parts(self) -> dict[PartName, Part]:
        draw = numpy_generator(0)
        pixels = draw.normal(60, self.config.noise, (self.config.images, 1, 16, 16))
        labels = draw.integers(0, len(CLASSES), self.config.images)
        for image, label in zip(pixels[:, 0], labels, strict=True):
            top, left = draw.integers(0, 6, 2)
            image[top : top + 10, left : left + 10] += 150 * _shape(CLASSES[label])
        return {"train": Part(pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64))}

    def class_names(self) -> tuple[str, ...]:
        return CLASSES


def _shape(name: str) -> np.ndarray:
    shape = np.zeros((10, 10))
    if name == "frame":
        shape[[0, -1]] = 1
        shape[:, [0, -1]] = 1
    else:
        shape[:, 4:6] = 1
    if name == "cross":
        shape[4:6] = 1
    return shape
