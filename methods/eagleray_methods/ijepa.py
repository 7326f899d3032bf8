"""I-JEPA: predict a moving average's features of hidden blocks from one visible block.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas 2023, https://arxiv.org/abs/2301.08243
The defaults are those of the paper's ViT-H/14; for ViT-B and ViT-L its predictor has 6 and 12 blocks. Views are crops
alone: there is neither a flip nor a change of colour. The teacher is evaluated, by the mean of its patches as in the
paper, if `encoder.pool` is the default.
Differs from the paper: encoder and teacher have a class token too, which the predictor does not see, and the encoder's
initial weights are not divided by depth. The mask token does not decay. Warm-up starts at 0, the authors' at a fifth of
the peak. A context of ten patches suffices, of which the code wants more than ten.
Blocks differ from those of the authors' code. A block's area and aspect are drawn independently, where the code
draws both with one number. Blocks reach the last row and column, and the context may be the whole side. Where images
have more visible patches than others of their step, random ones are left out, where the code leaves out the last
rows. What cannot be placed is drawn again for both targets and context at most 20 times, where the code may never end
on a grid of 8 x 8 patches. The small recipe has a narrower predictor of three blocks and a faster teacher.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.losses import precise
from eagleray.blocks.masking import only, take
from eagleray.blocks.networks import ema_update, frozen_copy, sincos_positions
from eagleray.blocks.targets import TARGET_VARIANCE, variance_over_images
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, IntRange, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes

TRIED = 20  # layouts drawn for an image, of which the first that leaves enough context is taken
AREAS, ASPECTS, CONTEXT = (0.15, 0.2), (0.75, 1.5), (0.85, 1.0)  # of target blocks, and the area of the context's


class IJEPA(Method):
    """Masked images: features of hidden blocks are predicted from a visible one; no pixel is reconstructed."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        targets: Annotated[
            int, IntRange(1, 8), Field(ge=1, le=8, description="blocks of an image that are predicted")
        ] = 4
        min_context: Annotated[
            int, IntRange(2, 32), Field(ge=1, description="patches that stay visible wherever 20 tries allow it")
        ] = 10
        predictor_dim: Annotated[
            int, Choice(96, 192, 384), Field(ge=16, multiple_of=16, description="width of the predictor")
        ] = 384
        predictor_depth: Annotated[int, IntRange(1, 12), Field(ge=1, description="blocks of the predictor")] = 12
        momentum: Annotated[
            float, Uniform(0.9, 0.999), Field(ge=0, le=1, description="of the teacher at the start; at the end it is 1")
        ] = 0.996

    config: Config
    needs = frozenset({"tokens"})
    metrics: ClassVar[dict[str, Metric]] = {
        "context": Metric("share of an image's patches that the encoder sees"),
        "target_variance": TARGET_VARIANCE,
    }
    collapsed_loss = 0.0
    recipes = Recipes(
        paper=Recipe(lr=1.25e-4, weight_decay=0.04, final_weight_decay=0.4, warmup_epochs=40, final_lr=0.001),
        small=SMALL_VIT,
        small_settings={"predictor_dim": 96, "predictor_depth": 3, "momentum": 0.99},
    )

    positions: Tensor

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        self._check_blocks(encoder.grid)
        width = config.predictor_dim
        self.embed = nn.Linear(encoder.dim, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sincos_positions(encoder.grid, width), persistent=False)
        heads = width // math.gcd(width, 32)  # 12 at the paper's width of 384
        self.predictor = nn.Sequential(
            *[Block(width, heads, qkv_bias=True) for _ in range(config.predictor_depth)],
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, encoder.dim),
        )
        self._draw_weights()
        encoder.fix_positions()
        self.teacher = frozen_copy(encoder)

    def _check_blocks(self, grid: int) -> None:
        aspects = [_between(ASPECTS, step / 100) for step in range(101)]
        largest = max(math.prod(block_size(grid, AREAS[1], aspect)) for aspect in aspects)
        room = math.prod(block_size(grid, CONTEXT[0], 1.0, whole=True)) - largest
        if self.config.min_context > room:
            less = f"take {room} at most, or use" if room > 0 else "use"
            raise ConfigError(
                f"method.min_context={self.config.min_context} leaves no block to predict among {grid**2} patches: "
                f"{less} smaller patches with encoder.patch_size"
            )

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Draw the predictor's initial weights as the authors do."""
        for part in (self.embed, *self.predictor.modules()):
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for depth, block in enumerate(self.predictor[:-2], start=1):
            assert isinstance(block, Block)
            for layer in (block.attn.proj, block.mlp.fc2):
                assert isinstance(layer, nn.Linear)
                layer.weight.div_(math.sqrt(2 * depth))

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.3, 1.0)),)

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup(self, decay="matrices"),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        everyone = world_size() * len(images)
        layout = draw_blocks(everyone, self.encoder.grid, self.config, self.rng(progress.step))
        context, targets = (
            own_rows(x).to(images.device, non_blocking=True) for x in (layout.context, layout.targets)
        )  # [N, K], [N, T, P]
        tokens = self.encoder.tokens(take(self.encoder.patches(images), context))[:, 1:]
        predicted = self._predict(tokens, context, targets)  # [N, T * P, dim]
        wanted = self.target_features(images)
        loss = F.smooth_l1_loss(precise(predicted), take(wanted, targets.flatten(1)))
        metrics: dict[str, Tensor | float] = {
            "context": context.shape[1] / self.encoder.grid**2,
            "target_variance": variance_over_images(wanted),
        }
        return StepResult(loss, [tokens.detach().mean(1)], metrics)

    @torch.no_grad()
    def target_features(self, images: Tensor) -> Tensor:
        """Return the teacher's features of all patches, [N, C, H, W] -> [N, L, dim], of mean square 1."""
        whole = precise(self.teacher.tokens(self.teacher.patches(images))[:, 1:])
        return F.layer_norm(whole, whole.shape[-1:])

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Show the visible patches, and the blocks whose features are predicted from them."""
        # The context is as large as that of the image that has least of it, so a whole batch is drawn.
        count, size = len(images), self.encoder.patch_size
        layout = draw_blocks(max(count, self.data.batch_size), self.encoder.grid, self.config, self.rng(0))
        shown = {"context": layout.context, "targets": layout.targets.flatten(1)}
        return {title: only(images, places[:count].to(images.device), size) for title, places in shown.items()}

    def _predict(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Predict each block by itself from the context.

        [N, K, dim], [N, K], [N, T, P] -> [N, T * P, dim].
        """
        seen = self.embed(tokens) + self.positions[context]  # [N, K, width]
        asked = self.mask_token + self.positions[targets]  # [N, T, P, width]
        blocks, places = targets.shape[1:]
        both = torch.cat([seen.unsqueeze(1).expand(-1, blocks, -1, -1), asked.to(seen.dtype)], 2)
        return self.predictor(both.flatten(0, 1))[:, -places:].unflatten(0, (-1, blocks)).flatten(1, 2)

    def after_step(self, progress: Progress) -> None:
        momentum = self.config.momentum
        ema_update(self.teacher, self.encoder, momentum + (1 - momentum) * progress.fraction)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.teacher(images)


@dataclass(frozen=True)
class Layout:
    """The patches of a step's images that are visible, and those that are predicted."""

    context: Tensor  # [N, K] places, in random order, equally many of each image
    targets: Tensor  # [N, T, P] places of T blocks, of one size and shape


def draw_blocks(count: int, grid: int, config: IJEPA.Config, generator: torch.Generator) -> Layout:
    """Draw the blocks of a whole batch (section 3, "Targets" and "Context").

    Sizes are drawn once for all images, places for each. The context is a block without the targets.
    """
    area, aspect, whole = torch.rand(3, generator=generator).tolist()
    rows, columns = block_size(grid, _between(AREAS, area), _between(ASPECTS, aspect))
    side, _ = block_size(grid, _between(CONTEXT, whole), 1.0, whole=True)
    numbers = torch.rand(TRIED, count, config.targets + 1, 2, generator=generator)
    starts = torch.tensor([[grid - rows + 1, grid - columns + 1]] * config.targets + [[grid - side + 1] * 2])
    corners = (numbers * starts).long()  # [tries, N, T + 1, 2]
    places = _block(corners[:, :, :-1], rows, columns, grid)  # [tries, N, T, P]
    visible = torch.zeros(TRIED, count, grid**2, dtype=torch.bool)
    visible.scatter_(2, _block(corners[:, :, -1], side, side, grid), True).scatter_(2, places.flatten(2), False)
    # The first try that leaves enough, or else the one that leaves most: this always ends.
    enough = visible.sum(2).clamp(max=config.min_context).argmax(0)  # [N]
    images = torch.arange(count)
    visible, places = visible[enough, images], places[enough, images]
    order = torch.rand(count, grid**2, generator=generator).masked_fill(~visible, 2.0).argsort(1)
    return Layout(order[:, : int(visible.sum(1).min())], places)


def block_size(grid: int, area: float, aspect: float, *, whole: bool = False) -> tuple[int, int]:
    """Return the rows and columns of a block.

    Its area is a share of the grid, its aspect the rows by the columns. At least one patch; at most the side, or one
    patch less for a block that must not be the `whole` image.
    """
    patches, most = int(area * grid**2), grid if whole else max(1, grid - 1)
    rows, columns = round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))
    return min(max(rows, 1), most), min(max(columns, 1), most)


def _block(corners: Tensor, rows: int, columns: int, grid: int) -> Tensor:
    """Return the places that blocks cover, [..., 2] -> [..., rows * columns]."""
    inside = (torch.arange(rows)[:, None] * grid + torch.arange(columns)).flatten()
    return (corners[..., :1] * grid + corners[..., 1:]) + inside


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share
