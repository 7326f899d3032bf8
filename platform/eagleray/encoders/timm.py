"""Any network of timm (https://github.com/huggingface/pytorch-image-models).

Its plain ViTs are in `vit.py`, because methods may mask their patches.
"""

from typing import Any, ClassVar, Literal

import timm
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.blocks.timm_networks import PublicWeights, create_network
from eagleray.config.timm_names import timm_family
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError

SMALL_UP_TO = 64  # pixels, as for our own residual networks


class Timm(Encoder):
    """Any other network of timm by its name: encoder=efficientnet_b0."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Architecture, first layer and weights."""

        model: str | None = Field(None, description="for encoder.name=timm: the network's name in timm")
        stem: Literal["auto", "small", "timm"] = Field(
            "auto",
            description="first convolution: small halves its stride, which doubles the resolution of all layers; auto "
            "takes small up to 64 pixels",
        )
        weights: PublicWeights = None

    config: Config

    names: ClassVar[tuple[str, ...]] = ("timm",)
    has_stages: ClassVar[bool] = True

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        # From here on the settings describe how to build the network: its weights are in checkpoints.
        super().__init__(name, config.model_copy(update={"weights": None}), image_size, channels)
        self.architecture = _architecture(name, config.model)
        facts = timm.get_pretrained_cfg(self.architecture)
        self.options: dict[str, Any] = {"in_chans": channels}
        if facts is not None and facts.fixed_input_size:
            self.options["img_size"] = image_size
        try:
            self.network = create_network(self.architecture, config.weights, **self.options)
            self.has_own_stem = self._halve_stride(config.stem, image_size, facts.first_conv if facts else None)
            shape = _output_shape(self.network, torch.zeros(2, channels, image_size, image_size))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            why = str(error).partition("\n")[0]
            raise ConfigError(
                f"encoder={self.architecture} cannot take images of {image_size} pixels and {channels} channels "
                f"({why}); set image_size, or choose another network"
            ) from error
        if len(shape) != 2:
            raise ConfigError(f"encoder={self.architecture} returns {list(shape)} instead of one vector an image")
        self.dim = shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return features, pooled as timm pools them.

        [N, C, H, W] -> [N, dim].
        """
        return self.network(images)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the means over positions of what timm counts as its stages.

        Raises:
            ConfigError: timm counts none.
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise ConfigError(f"timm counts no stages of {self.architecture}; set evaluate.stages.when=never")
        maps: list[Tensor] = self.network.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")  # type: ignore[operator]
        return [each.mean(dim=(2, 3)) for each in maps]

    def as_timm(self) -> tuple[str, dict[str, Any], nn.Module] | None:
        return None if self.has_own_stem else (self.architecture, {**self.options, "num_classes": 0}, self.network)

    def _halve_stride(self, stem: str, image_size: int, first: Any) -> bool:
        """Halve the stride of the first convolution, if asked for."""
        layers = [self.network.get_submodule(each) for each in ([first] if isinstance(first, str) else first or ())]
        strided = [layer for layer in layers if isinstance(layer, nn.Conv2d) and min(layer.stride) > 1]
        possible = strided and "img_size" not in self.options
        if stem == "small" and not possible:
            raise ConfigError(f"encoder.stem=small: the first layer of {self.architecture} has no stride to halve")
        if stem == "timm" or not possible or (stem == "auto" and image_size > SMALL_UP_TO):
            return False
        for layer in strided:
            layer.stride = tuple(stride // 2 for stride in layer.stride)
        return True


@torch.no_grad()
def _output_shape(network: nn.Module, images: Tensor) -> torch.Size:
    """Return the shape of a network's output.

    Raises:
        ValueError: a layer would shrink a single position. It learns nothing then; on CPUs in bfloat16 torch 2.14 even
            gives its unused weights gradients that are not finite.
    """

    def check(layer: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.Conv2d)
        if min(layer.stride) > 1 and max(layer.kernel_size) > 1 and given[0].shape[-2:] == (1, 1):
            raise ValueError("a layer would shrink a single position")

    hooks = [each.register_forward_pre_hook(check) for each in network.modules() if isinstance(each, nn.Conv2d)]
    try:
        return network.eval()(images).shape
    finally:
        network.train()
        for hook in hooks:
            hook.remove()


def _architecture(name: str, model: str | None) -> str:
    if name != "timm":
        if model is not None:
            raise ConfigError(f"encoder.model belongs to encoder.name=timm, not to {name}: remove one of them")
        return name
    if model is None:
        raise ConfigError("encoder=timm needs encoder.model=NAME; or write the name itself, encoder=efficientnet_b0")
    family = timm_family(model)
    if family is None:
        raise ConfigError(f"encoder.model={model} is no network of timm; `timm.list_models()` lists them")
    if family != "timm":
        raise ConfigError(
            f"encoder.model={model} is a plain ViT, whose patches methods may mask: write encoder={model}"
        )
    return model
