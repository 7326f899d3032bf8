"""MAE: reconstruct hidden patches from the few visible ones.

He, Chen, Xie, Li, Dollár, Girshick 2021, https://arxiv.org/abs/2111.06377
Network, initial weights, views and weight decay are those of the authors' code; an encoder's positions become fixed
sine-cosine ones. Differs from the paper: under the small recipe the decoder has two blocks of width 128. The features
are meant for fine-tuning and the linear probe.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.masking import filled, patchify, take
from eagleray.blocks.networks import sincos_positions
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.ranges import Choice, IntRange, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes


class MAE(Method):
    """Masked images: hidden patches are reconstructed from the few that the encoder sees."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.4, 0.9), Field(gt=0, lt=1, description="share of the patches hidden")
        ] = 0.75
        decoder_dim: Annotated[
            int, Choice(64, 128, 256, 512), Field(ge=16, multiple_of=16, description="width of the decoder")
        ] = 512
        decoder_depth: Annotated[int, IntRange(1, 8), Field(ge=1, description="blocks of the decoder")] = 8
        normalise: Annotated[bool, Field(description="reconstruct patches that are each normalised")] = True

    config: Config
    needs = frozenset({"tokens"})
    recipes = Recipes(
        paper=Recipe(lr=1.5e-4, beta2=0.95, weight_decay=0.05, warmup_epochs=40),
        small=SMALL_VIT,
        small_settings={"decoder_dim": 128, "decoder_depth": 2},
    )

    positions: Tensor

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        width, patches, pixels = config.decoder_dim, encoder.grid**2, encoder.patch_size**2 * data.channels
        if config.normalise and pixels == 1:
            raise ConfigError(
                "method.normalise needs patches of more than one number: take encoder.patch_size=2 or more"
            )
        self.kept = max(1, int(patches * (1 - config.mask_ratio)))
        if self.kept == patches:
            raise ConfigError(
                f"method.mask_ratio={config.mask_ratio} hides none of {patches} patches: increase it, or use smaller "
                "patches with encoder.patch_size"
            )
        self.embed = nn.Linear(encoder.dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.cat([torch.zeros(1, width), sincos_positions(encoder.grid, width)])  # [1 + L, width]
        self.register_buffer("positions", positions, persistent=False)
        heads = width // math.gcd(width, 32)  # 16 at the paper's width of 512
        self.decoder = nn.Sequential(
            *[Block(width, heads, qkv_bias=True) for _ in range(config.decoder_depth)],
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, pixels),
        )
        encoder.fix_positions()
        draw_weights(self)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.2, 1.0), flip=0.5, interpolation="bicubic"),)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup(self, decay="matrices"),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        order = self._orders(progress.step, len(images)).to(images.device, non_blocking=True)  # [N, L]
        visible = take(self.encoder.patches(images), order[:, : self.kept])  # [N, K, dim]
        tokens = self.encoder.tokens(visible)  # [N, 1 + K, dim]
        reconstructed = self._reconstruct(tokens, order)  # [N, L, pixels]
        loss = self._loss(reconstructed, patchify(images, self.encoder.patch_size), order)
        return StepResult(loss, [tokens[:, 1:].detach().mean(1)])

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Hide patches and predict them, as in the paper's figure 2.

        Normalised patches get back the mean and deviation of the true ones, which the network does not know.
        """
        order = self._orders(0, len(images)).to(images.device)
        tokens = self.encoder.tokens(take(self.encoder.patches(images), order[:, : self.kept]))
        predicted, target = self._reconstruct(tokens, order), patchify(images, self.encoder.patch_size)
        if self.config.normalise:
            mean, deviation = _statistics(target)
            predicted = predicted * deviation + mean
        hidden, size = order[:, self.kept :], self.encoder.patch_size
        rebuilt = filled(images, hidden, size, take(predicted, hidden))
        return {"seen": filled(images, hidden, size), "reconstructed": rebuilt}

    def _orders(self, step: int, count: int) -> Tensor:
        """Draw this worker's patch orders, [N, L], kept first.

        They are drawn for the images of all workers.
        """
        noise = torch.rand(world_size() * count, self.encoder.grid**2, generator=self.rng(step))
        return own_rows(noise).argsort(1)

    def _reconstruct(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Insert mask tokens at the hidden places and decode.

        [N, 1 + K, dim] -> [N, L, pixels].
        """
        tokens = self.embed(tokens)
        count, patches = order.shape
        hidden = self.mask_token.to(tokens.dtype).expand(count, patches - self.kept, -1)
        placed = take(torch.cat([tokens[:, 1:], hidden], 1), order.argsort(1))  # [N, L, width]
        return self.decoder(torch.cat([tokens[:, :1], placed], 1) + self.positions)[:, 1:]

    def _loss(self, reconstructed: Tensor, target: Tensor, order: Tensor) -> Tensor:
        """Return the mean squared error on hidden patches.

        See section 3, "Reconstruction target".
        """
        if self.config.normalise:
            mean, deviation = _statistics(target)
            target = (target - mean) / deviation
        errors = (reconstructed - target).square().mean(-1)  # [N, L]
        return errors.gather(1, order[:, self.kept :]).mean()


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each patch, [N, L, 1]."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


@torch.no_grad()
def draw_weights(method: nn.Module) -> None:
    """Draw initial weights as the authors do.

    Linear layers and the patch projection by Xavier's rule, tokens from N(0, 0.02).
    """
    for module in method.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
        if isinstance(module, nn.Linear) and module.bias is not None:  # the projection keeps torch's initial bias
            nn.init.zeros_(module.bias)
    for name, parameter in method.named_parameters():
        if name.endswith(("cls_token", "reg_token", "mask_token")):
            nn.init.normal_(parameter, std=0.02)
