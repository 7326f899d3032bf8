"""One layer on whitened patches of images, summed over their quadrants.

Coates, Ng, Lee 2011, https://proceedings.mlr.press/v15/coates11a.html
Patches have six pixels a side, or fewer in small images.
"""

from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.blocks.patch_codes import PatchCodes as Layer
from eagleray.contracts.encoder import Encoder


class PatchCodes(Encoder):
    """A dictionary of image patches: what k-means and sparse coding train."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Size of the dictionary."""

        width: int = Field(
            400, ge=2, le=10_000, description="codes of a patch, each 4 features, or 8 if they have a sign"
        )

    config: Config

    names: ClassVar[tuple[str, ...]] = ("triangle_codes", "shrinkage_codes")

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        super().__init__(name, config, image_size, channels)
        code = "triangle" if name == "triangle_codes" else "shrinkage"
        self.layer = Layer(code, config.width, image_size, channels)
        self.dim = self.layer.dim

    def forward(self, images: Tensor) -> Tensor:
        """Return features: [N, C, H, W] -> [N, dim]."""
        return self.layer(images)
