"""NewPlugin: one plain sentence about the network."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.contracts.encoder import Encoder
from eagleray.contracts.ranges import IntRange


class NewPlugin(Encoder):
    """One sentence: two convolutions and a mean over positions."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        width: Annotated[int, IntRange(16, 128), Field(ge=4, description="channels of the first convolution")] = 32

    config: Config
    names: ClassVar[tuple[str, ...]] = ("new_plugin",)

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        super().__init__(name, config, image_size, channels)
        self.dim = 2 * config.width
        self.blocks = nn.Sequential(*_block(channels, config.width), *_block(config.width, self.dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean(dim=(2, 3))  # [N, C, H, W] -> [N, dim]


def _block(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
