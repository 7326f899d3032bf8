"""Residual networks (https://arxiv.org/abs/1512.03385).

As torchvision builds them, for any image size.
"""

from typing import ClassVar, Literal

import torchvision
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.contracts.encoder import Encoder

SMALL_UP_TO = 64  # pixels; the ImageNet stem would leave 2 x 2 positions of a 64-pixel image


class ResNet(Encoder):
    """A residual network; its stem keeps the resolution of small images."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """First layers and initialisation."""

        stem: Literal["auto", "small", "imagenet"] = Field(
            "auto",
            description="first layers: small is a 3x3 convolution without pooling, imagenet a strided 7x7 "
            "one with max-pooling; auto takes small up to 64 pixels",
        )
        zero_init_residual: bool = Field(
            False,
            description="start each residual branch at zero, so that every block begins as the identity",
        )

    config: Config

    names: ClassVar[tuple[str, ...]] = ("resnet18", "resnet34", "resnet50")

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        super().__init__(name, config, image_size, channels)
        network = torchvision.models.get_model(name, weights=None, zero_init_residual=config.zero_init_residual)
        assert isinstance(network, torchvision.models.ResNet)
        if config.stem == "small" or (config.stem == "auto" and image_size <= SMALL_UP_TO):
            network.conv1 = _initialised(nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False))
            network.maxpool = nn.Identity()  # type: ignore[assignment]
        elif channels != 3:
            network.conv1 = _initialised(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
        self.dim = network.fc.in_features
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return features, averaged over the last layer's positions.

        [N, C, H, W] -> [N, dim].
        """
        return self.network(images)


def _initialised(convolution: nn.Conv2d) -> nn.Conv2d:
    """Initialise weights as torchvision does for its own stem."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
