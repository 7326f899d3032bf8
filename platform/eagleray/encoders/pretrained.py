"""The trained network of another run."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.contracts.encoder import Encoder
from eagleray.contracts.paths import Place
from eagleray.runs.restore import check_images, trained


class Pretrained(Encoder):
    """The trained network of another run: to fine-tune, or to continue training with another method.

    It is the run's encoder, or the module that its method names instead (`Method.backbone`).
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The run to load."""

        run: Annotated[
            # A dictionary describes how to build the network; saved files contain it instead of a path.
            Place | dict[str, Any],
            Field(description="directory of a finished run"),
        ]

    config: Config

    names: ClassVar[tuple[str, ...]] = ("pretrained",)
    has_stages: ClassVar[bool] = True

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        method, plan = trained(config.run)
        # From here on the settings describe how to build the network, so an exported encoder needs no run.
        super().__init__(name, config.model_copy(update={"run": plan}), image_size, channels)
        check_images(f"encoder.run={config.run}", method.data, image_size, channels)
        self.network, self.patch_size = method.backbone.requires_grad_(), method.encoder.patch_size
        with torch.no_grad():
            self.dim = self.network(torch.zeros(1, channels, image_size, image_size)).shape[1]

    @classmethod
    def start(cls, config: BaseModel) -> str:
        return "source encoder"

    def as_timm(self) -> tuple[str, dict[str, Any], nn.Module] | None:
        return self.network.as_timm() if isinstance(self.network, Encoder) else None

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return those of the other run's encoder."""
        return next(each for each in self.network.modules() if isinstance(each, Encoder)).stages(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return features: [N, C, H, W] -> [N, dim]."""
        return self.network(images)
