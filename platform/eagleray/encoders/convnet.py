"""A small convolutional network for training on a CPU.

It learns useful features in minutes, with blocks like VGG's.
"""

from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.contracts.encoder import Encoder


class ConvNet(Encoder):
    """A small convolutional network for CPUs."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Size of the network."""

        width: int = Field(32, ge=4, le=256, description="channels of the first block; each block doubles them")
        depth: int = Field(4, ge=1, le=6, description="blocks of a 3x3 convolution, batch norm and ReLU")

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
            blocks += _block(channels, width, stride)
            channels, side = width, -(-side // stride)
            if stride == 1 and side >= 4 and block < config.depth - 1:
                blocks.append(nn.MaxPool2d(2))
                side //= 2
        self.blocks = nn.Sequential(*blocks)
        self.dim = channels

    def forward(self, images: Tensor) -> Tensor:
        """Return features, averaged over the last block's positions.

        [N, C, H, W] -> [N, dim].
        """
        return self.blocks(images).mean(dim=(2, 3))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the means over positions after each block."""
        found = []
        for layer in self.blocks:
            images = layer(images)
            if isinstance(layer, nn.ReLU):
                found.append(images.mean(dim=(2, 3)))
        return found


def _block(channels: int, width: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
