"""MAE: most patches are hidden, a small decoder paints them from the few that the encoder saw.

He, Chen, Xie, Li, Dollár, Girshick 2021, https://arxiv.org/abs/2111.06377
Differs from the paper: nothing. Its features are made for fine-tuning and the linear probe; their kNN says little.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, Field
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Choice, IntRange, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class MAE(Method):
    """Masked images: the hidden patches are painted from the few that the encoder saw."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.4, 0.9), Field(gt=0, lt=1, description="share of the patches hidden")
        ] = 0.75
        decoder_dim: Annotated[
            int, Choice(64, 128, 256, 512), Field(ge=16, multiple_of=16, description="width of the decoder")
        ] = 512
        decoder_depth: Annotated[int, IntRange(1, 8), Field(ge=1, description="blocks of the decoder")] = 8
        normalise: Annotated[bool, Field(description="paint patches normalised each by itself")] = True

    config: Config
    needs = frozenset({"tokens"})
    recipes = Recipes(
        paper=Recipe(lr=1.5e-4, beta2=0.95, weight_decay=0.05, warmup_epochs=40),
        small=Recipe(lr=1e-3, beta2=0.95, lr_scaling="sqrt", weight_decay=0.05, warmup_epochs=1),
        small_settings={"decoder_dim": 128, "decoder_depth": 2},
    )

    positions: Tensor

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        width, pixels = config.decoder_dim, encoder.patch_size**2 * data.channels
        if config.normalise and pixels == 1:
            raise ConfigError(
                "method.normalise needs patches of more than one number: take encoder.patch_size=2 or more"
            )
        self.kept = max(1, round(encoder.grid**2 * (1 - config.mask_ratio)))
        self.embed = nn.Linear(encoder.dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        positions = build_sincos2d_pos_embed([encoder.grid, encoder.grid], width)  # [L, width]
        self.register_buffer("positions", positions, persistent=False)
        self.decoder = nn.Sequential(
            *[Block(width, num_heads=width // 16, qkv_bias=True) for _ in range(config.decoder_depth)],
            nn.LayerNorm(width),
            nn.Linear(width, pixels),
        )

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.2, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        patches = self.encoder.patches(images)  # [N, L, dim]
        order = torch.rand(patches.shape[:2], device=images.device).argsort(1)  # [N, L]
        seen = order[:, : self.kept]  # [N, K]
        tokens = self.encoder.tokens(take(patches, seen))  # [N, 1 + K, dim]
        painted = self.decoder(self._placed(self.embed(tokens[:, 1:]), order))  # [N, L, pixels]
        loss = self._loss(painted.float(), patchify(images, self.encoder.patch_size).float(), order)
        return StepResult(loss, [tokens[:, 1:].detach().mean(1)])

    def _placed(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Seen tokens and mask tokens, each at its place in the image: [N, K, width] -> [N, L, width]."""
        count, places = order.shape
        hidden = self.mask_token.to(tokens.dtype).expand(count, places - self.kept, -1)
        shuffled = torch.cat([tokens, hidden], 1)
        return take(shuffled, order.argsort(1)) + self.positions

    def _loss(self, painted: Tensor, target: Tensor, order: Tensor) -> Tensor:
        """Mean squared error on hidden patches alone (section 3, "Reconstruction target")."""
        if self.config.normalise:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        errors = (painted - target).square().mean(-1)  # [N, L]
        return errors.gather(1, order[:, self.kept :]).mean()


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens at given places of each sample: [N, L, D], [N, K] -> [N, K, D]."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def patchify(images: Tensor, size: int) -> Tensor:
    """The pixels of each patch, row by row: [N, C, S, S] -> [N, (S / size)^2, C * size * size]."""
    count, channels, side, _ = images.shape
    grid = side // size
    cut = images.reshape(count, channels, grid, size, grid, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, channels * size * size)
