"""Residual networks (https://arxiv.org/abs/1512.03385).

As torchvision builds them, for any image size.
"""

from typing import Any, ClassVar, Literal

import torchvision
from pydantic import BaseModel, Field
from timm.models import adapt_input_conv
from torch import Tensor, nn

from eagleray.blocks.timm_networks import PublicWeights, Weights, misfit, read_weights
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError

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

        weights: PublicWeights = None

    config: Config

    names: ClassVar[tuple[str, ...]] = ("resnet18", "resnet34", "resnet50")
    has_stages: ClassVar[bool] = True

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        # From here on the settings describe how to build the network: its weights are in checkpoints.
        super().__init__(name, config.model_copy(update={"weights": None}), image_size, channels)
        self.is_small = config.stem == "small" or (config.stem == "auto" and image_size <= SMALL_UP_TO)
        network = torchvision.models.get_model(name, weights=None, zero_init_residual=config.zero_init_residual)
        assert isinstance(network, torchvision.models.ResNet)
        if self.is_small:
            network.conv1 = _initialised(nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False))
            network.maxpool = nn.Identity()  # type: ignore[assignment]
        elif channels != 3:
            network.conv1 = _initialised(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
        self.dim = network.fc.in_features
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network, self.channels = network, channels
        if config.weights is not None:
            self._load(name, config.weights)

    def as_timm(self) -> tuple[str, dict[str, Any], nn.Module] | None:
        return None if self.is_small else (self.name, {"in_chans": self.channels, "num_classes": 0}, self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, averaged over the last layer's positions.

        [N, C, H, W] -> [N, dim].
        """
        return self.network(images)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the means over positions after each of the four groups of blocks."""
        network, found = self.network, []
        images = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            images = layer(images)
            found.append(images.mean(dim=(2, 3)))
        return found

    def _load(self, name: str, weights: Weights) -> None:
        """Load public weights of torchvision or timm, which name them alike."""
        if self.is_small:
            raise ConfigError(
                f"encoder.weights={weights}: public weights have the large stem; set encoder.stem=imagenet"
            )
        state = read_weights(name, weights)
        if "conv1.weight" in state:
            state["conv1.weight"] = adapt_input_conv(self.channels, state["conv1.weight"])
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise misfit(name, weights, error) from error


def _initialised(convolution: nn.Conv2d) -> nn.Conv2d:
    """Initialise weights as torchvision does for its own stem."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
