"""data2vec: predict what a moving average makes of hidden patches, averaged over its last blocks.

Baevski, Hsu, Xu, Babu, Gu, Auli 2022, https://arxiv.org/abs/2202.03555
The defaults are those of the authors' command for ViT-B, which hides 120 of 196 patches and normalises each block's
tokens and also their mean; the paper tells of the former. The student is evaluated, which the authors fine-tune.
Differs from the paper: the ViT has absolute positions, where the authors' has shared relative ones, and neither
stochastic depth, dropped attention nor layer scale; its weights start as timm's. The teacher averages the encoder only,
not the head. Hidden rectangles are filled up by single patches. Weight decay excludes the mask token, too. Images up to
64 pixels keep at least a fifth in a crop, since smaller crops lose the object.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.hidden_patches import count_hidden, draw_blocks, encode_rest
from eagleray.blocks.losses import precise
from eagleray.blocks.masking import filled, take
from eagleray.blocks.networks import ema_update, frozen_copy
from eagleray.blocks.targets import TARGET_VARIANCE, variance_over_images
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes


class Data2Vec(Method):
    """Masked images: a moving average that sees the whole image gives hidden patches their features."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.3, 0.8), Field(gt=0, lt=1, description="share of the patches hidden")
        ] = 0.61
        blocks: Annotated[
            int | None,
            IntRange(1, 12),
            Field(ge=1, description="last blocks of the teacher that the targets average; null: half of all"),
        ] = None  # the paper's 6 of a ViT-B's 12
        beta: Annotated[
            float, LogUniform(0.1, 4), Field(gt=0, description="error from which the loss is no longer squared")
        ] = 2.0
        momentum: Annotated[float, Uniform(0.9, 0.9999), Field(ge=0, le=1, description="of the teacher")] = 0.9998

    config: Config
    needs = frozenset({"tokens"})
    metrics: ClassVar[dict[str, Metric]] = {"target_variance": TARGET_VARIANCE}
    collapsed_loss = 0.0
    recipes = Recipes(
        paper=Recipe(lr=2.5e-4, weight_decay=0.05, warmup_epochs=10, final_lr=0.005, clip=3.0),
        small=SMALL_VIT,
    )

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        self.blocks = config.blocks or max(1, encoder.depth // 2)
        if self.blocks > encoder.depth:
            raise ConfigError(
                f"method.blocks={self.blocks} must not exceed the {encoder.depth} blocks of the encoder: leave it out"
            )
        self.hidden = count_hidden(config.mask_ratio, encoder.grid**2)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(encoder.dim), std=0.02, a=-0.02, b=0.02))
        self.head = nn.Linear(encoder.dim, encoder.dim)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.head.bias)
        self.teacher = frozen_copy(self.encoder)

    @property
    def views(self) -> tuple[View, ...]:
        smallest = 0.08 if self.data.image_size > 64 else 0.2
        jitter = {"jitter": 1.0, "jitter_scale": (0.4, 0.4, 0.4, 0.0), "jitter_probability": 1.0}
        return (View(crop=(smallest, 1.0), flip=0.5, interpolation="bicubic", **jitter),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images, encoder = batch.views[0], self.encoder
        places = draw_blocks(len(images), encoder.grid, self.hidden, self.rng(progress.step))
        places = places.to(images.device, non_blocking=True)  # [N, K]
        tokens = encode_rest(encoder, images, places, self.mask_token)[:, 1:]
        targets = self.target_features(images)
        loss = smooth_error(self.head(take(tokens, places)), take(targets, places), self.config.beta)
        return StepResult(loss, [tokens.detach().mean(1)], {"target_variance": variance_over_images(targets)})

    @torch.no_grad()
    def target_features(self, images: Tensor) -> Tensor:
        """Return the teacher's features of all patches, [N, C, H, W] -> [N, L, dim], of mean square 1."""
        blocks = self.teacher.block_tokens(self.teacher.patches(images), self.blocks)
        return average_normalised([block[:, 1:] for block in blocks])

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Hide patches, as of the images that the student sees."""
        places = draw_blocks(len(images), self.encoder.grid, self.hidden, self.rng(0)).to(images.device)
        return {"seen": filled(images, places, self.encoder.patch_size)}

    def after_step(self, progress: Progress) -> None:
        ema_update(self.teacher, self.encoder, self.config.momentum)


def average_normalised(blocks: Sequence[Tensor]) -> Tensor:
    """Normalise each block's tokens, average them and normalise again.

    targets = LN(mean over blocks of LN(block)), LN without scale or shift (section 3.3). Each [..., D] -> [..., D].
    """
    with torch.autocast(blocks[0].device.type, enabled=False):
        width = blocks[0].shape[-1:]
        mean = torch.stack([F.layer_norm(precise(block), width) for block in blocks]).mean(0)
        return F.layer_norm(mean, width)


def smooth_error(predicted: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Compute the smooth L1 loss (section 3.4).

    With d the difference, d² / (2 beta) where |d| <= beta, else |d| - beta / 2, averaged over all numbers.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        return F.smooth_l1_loss(precise(predicted), targets, beta=beta)
