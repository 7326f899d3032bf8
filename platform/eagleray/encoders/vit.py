"""Vision transformers (https://arxiv.org/abs/2010.11929).

As timm builds them, for any image and patch size.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eagleray.blocks.networks import sincos_positions
from eagleray.blocks.timm_networks import PublicWeights, create_network
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError

ARCHITECTURES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}


class ViT(TokenEncoder):
    """A vision transformer, or any plain ViT of timm by its name; methods that mask patches need one."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Patches, size, features and weights."""

        patch_size: int | None = Field(
            None,
            ge=1,
            description="side of a patch in pixels; by default 16, or for images of up to 64 pixels an eighth of their "
            "side, at least 2",
        )
        depth: int | None = Field(None, ge=1, description="number of blocks; by default the architecture's")
        dim: int | None = Field(
            None, ge=16, multiple_of=16, description="width of the tokens; by default the architecture's"
        )
        pool: Literal["mean", "class"] = Field(
            "mean", description="the features: the mean of the patch tokens, or the class token"
        )
        weights: PublicWeights = None

    config: Config

    names: ClassVar[tuple[str, ...]] = ("vit_tiny", "vit_small", "vit_base")
    has_tokens: ClassVar[bool] = True
    has_stages: ClassVar[bool] = True

    def __init__(self, name: str, config: Config, image_size: int, channels: int):
        # From here on the settings describe how to build the network: its weights are in checkpoints.
        super().__init__(name, config.model_copy(update={"weights": None}), image_size, channels)
        self.patch_size = _patch_size(config.patch_size, image_size)
        self.grid = image_size // self.patch_size
        self.architecture = ARCHITECTURES.get(name, name)
        # Every architecture gets a class token and a final norm on all tokens, whatever its own classifier uses.
        self.options: dict[str, Any] = {
            "img_size": image_size,
            "patch_size": self.patch_size,
            "in_chans": channels,
            "class_token": True,
            "final_norm": True,
            "fc_norm": False,
            **_overrides(config.depth, config.dim),
        }
        network = create_network(
            self.architecture, config.weights, global_pool="", dynamic_img_size=False, **self.options
        )
        assert isinstance(network, VisionTransformer)
        network.patch_embed.strict_img_size = False  # multi-crop uses smaller images too
        self.vit = network
        self.dim, self.depth = network.embed_dim, len(network.blocks)
        self.pool = config.pool

    def as_timm(self) -> tuple[str, dict[str, Any], nn.Module] | None:
        pool = {"mean": "avg", "class": "token"}[self.pool]
        return self.architecture, {**self.options, "num_classes": 0, "global_pool": pool}, self.vit

    def patches(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Embed patches, row by row, and add positions.

        [N, C, S, S] -> [N, L, dim]. S may be any multiple of the patch size, not only the image size (multi-crop).

        Where `mask` ([N, L] bool) is true, `mask_token` ([dim]) replaces the patch before the position is
        added.
        """
        patches = self.vit.patch_embed(images)
        if mask is not None:
            assert mask_token is not None, "a mask needs the token that replaces the masked patches"
            patches = torch.where(mask.unsqueeze(-1), mask_token.to(patches.dtype), patches)
        return patches + self._patch_positions(images.shape[-1] // self.patch_size)

    def tokens(self, patches: Tensor) -> Tensor:
        """Run the blocks on any patches.

        [N, K, dim] -> [N, 1 + K, dim], class token first, normalised.
        """
        return self._without_registers(self.vit.norm(self.vit.blocks(self._begun(patches))))

    def block_tokens(self, patches: Tensor, last: int) -> list[Tensor]:
        """Run the blocks and return what each of the `last` ones gives, not normalised.

        [N, K, dim] -> each [N, 1 + K, dim], class token first.
        """
        tokens, found = self._begun(patches), []
        for number, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if number >= self.depth - last:
                found.append(self._without_registers(tokens))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return features: [N, C, H, W] -> [N, dim]."""
        return self._pooled(self.tokens(self.patches(images)))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the features that the tokens after each block give, with the last block's norm."""
        found = self.block_tokens(self.patches(images), self.depth)
        return [self._pooled(self.vit.norm(tokens)) for tokens in found]

    def _begun(self, patches: Tensor) -> Tensor:
        """Return what the first block gets, [N, 1 + R + K, dim]."""
        return self.vit.norm_pre(torch.cat([self._prefix().expand(patches.shape[0], -1, -1), patches], dim=1))

    def _without_registers(self, tokens: Tensor) -> Tensor:
        """Leave out the registers, [N, 1 + R + K, dim] -> [N, 1 + K, dim]."""
        registers = self._prefix().shape[1] - 1
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1) if registers else tokens

    def _pooled(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(dim=1)

    @torch.no_grad()
    def fix_positions(self) -> None:
        """Replace all positions by fixed sine-cosine ones.

        Class token and registers get zeros.
        """
        positions = self._positions().zero_().requires_grad_(False)
        positions[:, -(self.grid**2) :] = sincos_positions(self.grid, self.dim)

    def _prefix(self) -> Tensor:
        """Return class token and registers, [1, 1 + R, dim].

        With positions, if the architecture has them.
        """
        vit = self.vit
        tokens = (vit.cls_token, vit.reg_token)
        prefix = torch.cat([token for token in tokens if isinstance(token, Tensor)], dim=1)
        return prefix if vit.no_embed_class else prefix + self._positions()[:, : -(self.grid**2)]

    def _patch_positions(self, grid: int) -> Tensor:
        """Return the positions of grid x grid patches.

        For crops of another size, the image's are interpolated.
        """
        positions = self._positions()[:, -(self.grid**2) :]
        return positions if grid == self.grid else resample_abs_pos_embed(positions, [grid, grid], num_prefix_tokens=0)

    def _positions(self) -> Tensor:
        assert self.vit.pos_embed is not None, "every accepted architecture of timm has positions"
        return self.vit.pos_embed


def _patch_size(patch_size: int | None, image_size: int) -> int:
    """Return the patch size: chosen, or a divisor.

    Of the divisors of the image size, the one nearest (as a ratio) to a usual patch size.
    """
    divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
    if patch_size in divisors:
        return patch_size
    if patch_size is not None:
        raise ConfigError(
            f"encoder.patch_size={patch_size} does not divide the image size of {image_size} pixels; "
            f"these do: {', '.join(map(str, divisors))}"
        )
    wanted = max(2, image_size / 8) if image_size <= 64 else 16
    nearest = min(divisors, key=lambda size: abs(math.log(size / wanted)))
    if not wanted / 2 <= nearest <= wanted * 2:
        raise ConfigError(
            f"an image of {image_size} pixels cannot be cut into patches of about {wanted:.0f} pixels; "
            f"set image_size to a multiple of 8, or encoder.patch_size to {' or '.join(map(str, divisors))}"
        )
    return nearest


def _overrides(depth: int | None, dim: int | None) -> dict[str, Any]:
    overrides = {}
    if depth is not None:
        overrides["depth"] = depth
    if dim is not None:  # heads as wide as in the paper, 64, or the widest that fit
        overrides |= {"embed_dim": dim, "num_heads": dim // math.gcd(dim, 64)}
    return overrides
