"""A small convolutional network for training on a CPU.

It learns useful features in minutes, with blocks like VGG's.
"""

from collections import deque
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError


class ConvNet(Encoder):
    """A small convolutional network for CPUs."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Size of the network."""

        width: int = Field(48, ge=4, le=256, description="channels of the first block; each block doubles them")
        depth: int = Field(4, ge=1, le=6, description="blocks of a 3x3 convolution, batch norm and ReLU")
        grid: int = Field(2, ge=1, le=4, description="cells along a side that features keep apart; 1: one mean of all")
        last: int = Field(2, ge=1, le=6, description="blocks whose features are joined: the last ones")

    config: Config

    names: ClassVar[tuple[str, ...]] = ("convnet",)
    has_stages: ClassVar[bool] = True

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        super().__init__(name, config, image_size, channels)
        # At full resolution the first block costs as much as all others together. If the image is large enough,
        # its convolution halves the side itself; smaller images keep every pixel until max-pooling.
        strided = image_size > 16
        side, blocks = image_size, []
        for block in range(config.depth):
            width = config.width * 2**block
            stride = 2 if strided and block == 0 else 1
            convolution = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(width)]
            channels, side = width, -(-side // stride)
            if stride == 1 and side >= 4 and block < config.depth - 1:
                blocks.append(nn.MaxPool2d(2))  # before the ReLU, with which it commutes: a quarter of the elements
                side //= 2
            blocks.append(nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*blocks)
        if config.last > config.depth:
            raise ConfigError(
                f"encoder.last={config.last}: with encoder.depth={config.depth} there are fewer blocks; take less"
            )
        if config.grid > side:
            raise ConfigError(
                f"encoder.grid={config.grid}: the last block has {side} positions a side for images of {image_size} "
                "pixels; take fewer cells"
            )
        self.dim = config.grid**2 * sum(config.width * 2**block for block in range(config.depth)[-config.last :])

    def forward(self, images: Tensor) -> Tensor:
        """Return the last blocks' features, averaged over the positions of each cell.

        [N, C, H, W] -> [N, dim].
        """
        last = deque(self._maps(images), maxlen=self.config.last)  # the large maps of the first blocks are not kept
        return torch.cat([_cells(each, self.config.grid) for each in last], 1)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the means over positions after each block."""
        return [each.mean(dim=(2, 3)) for each in self._maps(images)]

    def _maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield what each block gives, [N, D, h, w]."""
        for layer in self.blocks:
            images = layer(images)
            if isinstance(layer, nn.ReLU):
                yield images


def _cells(maps: Tensor, grid: int) -> Tensor:
    """Average over the positions of each cell: [N, D, h, w] -> [N, grid * grid * D].

    Cells are those of adaptive pooling, whose gradient on a GPU is not deterministic.
    """
    if grid == 1:
        return maps.mean(dim=(2, 3))
    rows, columns = (
        [slice(side * n // grid, -(-side * (n + 1) // grid)) for n in range(grid)] for side in maps.shape[2:]
    )
    return torch.cat([maps[:, :, row, column].mean(dim=(2, 3)) for row in rows for column in columns], 1)
