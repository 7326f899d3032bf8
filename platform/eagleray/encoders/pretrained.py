"""The network of a trained run with its weights, to start from."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BaseModel, Field
from torch import Tensor

from eagleray.contracts.encoder import Encoder
from eagleray.runs.restore import check_images, trained


class Pretrained(Encoder):
    """The network of a trained run with its weights: to fine-tune, or to train on by another method.

    It is the run's encoder, or what else its method keeps for this (`Method.backbone`).
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Which run."""

        run: Annotated[
            # A dictionary says what the network is built from, in what was saved.
            Annotated[Path, AfterValidator(Path.expanduser), AfterValidator(Path.absolute)] | dict[str, Any],
            Field(description="directory of a finished run"),
        ]

    config: Config

    names: ClassVar[tuple[str, ...]] = ("pretrained",)
    start: ClassVar[str] = "source encoder"

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        method, plan = trained(config.run)
        # From now on the settings say what the network is built from, so an exported encoder needs no run.
        super().__init__(name, config.model_copy(update={"run": plan}), image_size, channels)
        check_images(f"encoder.run={config.run}", method.data, image_size, channels)
        self.network, self.patch_size = method.backbone.requires_grad_(), method.encoder.patch_size
        with torch.no_grad():
            self.dim = self.network(torch.zeros(1, channels, image_size, image_size)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Features: [N, C, H, W] -> [N, dim]."""
        return self.network(images)
