"""Jigsaw: predict how the tiles of an image were shuffled.

Noroozi, Favaro 2016, https://arxiv.org/abs/1603.09246
Widths, rates and the share of images without colour are those of VISSL's ResNet-50 (Goyal et al. 2019,
https://arxiv.org/abs/1905.01235). Permutations are chosen once, and are the same for every seed.
Differs from the paper: the first permutation is the identity, not a random one. The next one is always that whose
nearest one before is farthest, and of these that with the largest mean distance; algorithm 1 takes the largest mean at
once, and some then differ in two places only. Colour channels are not shifted against each other; images without colour
show one channel, not luma, which shows where a lens shifted colours. In the others it still does. A layer of its own
follows the encoder for each tile, and one linear layer all of them. Images are cropped to between three quarters and
all of their area, and flipped. The small recipe has all 24 permutations of 2 x 2 tiles, since 3 x 3 tiles of small
images show too little (docs/results.md), and fewer features of a tile.
"""

from collections.abc import Mapping
from functools import cache
from itertools import permutations
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows
from eagleray.blocks.masking import take
from eagleray.blocks.networks import mlp
from eagleray.blocks.tiles import check_tiles, cut, grey, kept_channels, laid, reordered, standardised, tile_size
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, IntRange, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class Jigsaw(Method):
    """Pretext task: predict by which of many permutations the tiles of an image were shuffled."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        grid: Annotated[Literal[2, 3], Choice(2, 3), Field(description="tiles along a side of the image")] = 3
        permutations: Annotated[
            int, Choice(100, 300, 1000), Field(ge=2, le=10000, description="how many; 2 x 2 tiles have 24")
        ] = 1000
        tile: Annotated[
            float, Uniform(0.6, 1.0), Field(gt=0, le=1, description="side of a tile, as a part of its cell's side")
        ] = 0.85
        one_channel: Annotated[
            float, Uniform(0, 1), Field(ge=0, le=1, description="share of images that show one colour channel only")
        ] = 0.66
        width: Annotated[int, IntRange(64, 1024), Field(ge=1, description="features that each tile is reduced to")] = (
            1000
        )

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {"solved": Metric("share of images whose permutation is recognised")}
    recipes = Recipes(
        paper=Recipe(
            name="sgd", lr=0.1, weight_decay=1e-4, warmup_epochs=5, drops=(30 / 105, 60 / 105, 90 / 105, 100 / 105)
        ),
        small_settings={"grid": 2, "permutations": 24, "tile": 0.75, "width": 128},
    )

    permutations: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.tiles = config.grid**2
        if config.grid == 2 and config.permutations > 24:
            raise ConfigError(
                f"method.permutations={config.permutations} is more than the 24 of 2 x 2 tiles: set it to 24 or less, "
                "or method.grid to 3"
            )
        self.tile_size = tile_size(data.image_size, config.grid, config.tile)
        check_tiles(encoder, self.tile_size, data.channels, f"method.tile={config.tile:g}")
        # In checkpoints: classes keep their meaning, whatever a later version chooses.
        self.register_buffer("permutations", far_permutations(self.tiles, config.permutations).clone())
        self.projector = nn.Sequential(*mlp([encoder.dim, config.width], last_norm=True), nn.ReLU())
        self.classifier = nn.Linear(self.tiles * config.width, config.permutations)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.75, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images, draw, count = batch.views[0], self.rng(progress.step), self.data.batch_size
        targets = torch.randint(self.config.permutations, (count,), generator=draw)
        numbers = torch.rand(count, self.tiles, 2, generator=draw)
        kept = kept_channels((count,), self.config.one_channel, self.data.channels, draw)
        targets, kept = (own_rows(each).to(images.device, non_blocking=True) for each in (targets, kept))
        tiles = cut(grey(images, kept), self.config.grid, self.tile_size, own_rows(numbers))
        features, logits = self._recognise(tiles, targets)
        solved = (logits.detach().argmax(1) == targets).float().mean()
        return StepResult(F.cross_entropy(logits, targets), list(features.detach().unbind(1)), {"solved": solved})

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Shuffle the tiles of images, and put them back by the permutation that is recognised."""
        targets = torch.randint(self.config.permutations, (len(images),), generator=self.rng(0)).to(images.device)
        tiles = cut(images, self.config.grid, self.tile_size)
        predicted = self._recognise(tiles, targets)[1].argmax(1)
        shuffled = reordered(tiles, self.permutations[targets])
        solved = reordered(shuffled, self.permutations[predicted].argsort(1))
        return {"shuffled": laid(shuffled, images.shape[-1]), "solved": laid(solved, images.shape[-1])}

    def _recognise(self, tiles: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tiles, [N, T, C, s, s] -> [N, T, dim], and shuffle them -> logits [N, permutations]."""
        features = self.encoder(standardised(tiles).flatten(0, 1)).unflatten(0, (-1, self.tiles))
        reduced = self.projector(features.flatten(0, 1)).unflatten(0, (-1, self.tiles))
        # Each tile is encoded alone, so to shuffle features is to shuffle tiles.
        return features, self.classifier(take(reduced, self.permutations[targets]).flatten(1))


@cache
def far_permutations(tiles: int, count: int) -> Tensor:
    """Choose permutations that differ in many places, [count, tiles] int64.

    Each is the one whose smallest Hamming distance to those before is largest, of several the one with the largest mean
    distance; the first is the identity. By the mean alone, as in algorithm 1, some would differ in two tiles.
    """
    candidates = torch.tensor(list(permutations(range(tiles))), dtype=torch.uint8, device="cpu").t().contiguous()
    nearest = torch.full_like(candidates[0], tiles + 1)
    total = torch.zeros_like(candidates[0], dtype=torch.int32)
    chosen = [0]
    while len(chosen) < count:
        distance = torch.zeros_like(nearest)
        for places, place in zip(candidates, candidates[:, chosen[-1]], strict=True):
            distance += places != place
        nearest, total = torch.minimum(nearest, distance), total + distance
        farthest = (nearest == nearest.max()).nonzero().squeeze(1)
        chosen.append(int(farthest[total[farthest].argmax()]))
    return candidates[:, chosen].t().long()
