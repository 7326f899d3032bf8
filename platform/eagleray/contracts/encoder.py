"""The contract of an encoder: one vector per image."""

from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn


class Encoder(nn.Module):
    """A network that turns images into features.

    One file in `encoders/` defines one; one class may have several `names`. `name` and `config` are kept: together with
    the image size and the channels they suffice to build it again.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The encoder's own settings."""

    config: BaseModel  # an encoder writes `config: Config` below its own Config, for type checkers
    names: ClassVar[tuple[str, ...]]  # what a user types
    has_tokens: ClassVar[bool] = False  # True: a ViT, with `patches` and `tokens`
    has_stages: ClassVar[bool] = False  # True: it has `stages`
    dim: int  # width of the features
    patch_size: int = 1  # side in pixels of the patches that an image is cut into; 1: it is not cut

    def __init__(self, name: str, config: BaseModel, image_size: int, channels: int):
        super().__init__()
        self.name, self.config = name, config

    def forward(self, images: Tensor) -> Tensor:
        """Return features: [N, C, H, W] -> [N, dim]."""
        raise NotImplementedError

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return what its stages give, pooled over positions or tokens, from first to last.

        [N, C, H, W] -> each [N, D], of any width. Only for an encoder that `has_stages`.
        """
        raise NotImplementedError(f"{type(self).__name__} names no stages")

    @classmethod
    def start(cls, config: BaseModel) -> str:
        """Name its state before any training, in two words.

        It is the name of its floor.
        """
        return "public weights" if getattr(config, "weights", None) else "random init"

    def as_timm(self) -> tuple[str, dict[str, Any], nn.Module] | None:
        """Return timm's name, its options and the network.

        `timm.create_model(name, **options)` has the network's weights and features. None: timm has no such network.
        """
        return None


class TokenEncoder(Encoder):
    """An encoder with patches and tokens, for masking methods."""

    has_tokens: ClassVar[bool] = True
    grid: int  # patches along a side; L = grid * grid
    depth: int  # number of its blocks

    def patches(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Embed patches and add their positions.

        [N, C, H, W] -> [N, L, dim]. Where `mask` ([N, L] bool) is true, `mask_token` ([dim]) replaces the patch before
        the position is added.
        """
        raise NotImplementedError

    def tokens(self, patches: Tensor) -> Tensor:
        """Run the blocks on any subset of patches.

        [N, K, dim] -> [N, 1 + K, dim], class token first, normalised.
        """
        raise NotImplementedError

    def block_tokens(self, patches: Tensor, last: int) -> list[Tensor]:
        """Run the blocks and return what each of the `last` ones gives, not normalised.

        [N, K, dim] -> each [N, 1 + K, dim], class token first (data2vec).
        """
        raise NotImplementedError

    def fix_positions(self) -> None:
        """Replace position embeddings by fixed sine-cosine ones (MAE)."""
        raise NotImplementedError
