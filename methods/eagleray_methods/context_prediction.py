"""Context prediction: where does one tile of an image lie around another?

Doersch, Gupta, Efros 2015, https://arxiv.org/abs/1505.05192
Tiles, gaps, jitter, colours and pairs are those of the authors' code: all neighbours in a grid, in both orders.
Differs from the paper: one grid of tiles covers the image, instead of four grids of as many tiles of 96 pixels as fit.
The head has a batch norm after its second layer too. The loss is the mean over pairs, not their sum, so the recipe is
that of MMSelfSup's ResNet-50, with equal weight decay in all parts. Tiles have deviation 1, as images in an evaluation
have, not 50, and are reduced with antialiasing. Under the small recipe the head is smaller, a third of the tiles keep
their colours, because images in an evaluation do (a lens then still shows some places), and there are 2 x 2 tiles:
those of 3 x 3 have 8 of 32 pixels, and less is learnt from them.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows
from eagleray.blocks.networks import mlp
from eagleray.blocks.tiles import (
    check_tiles,
    coarsened,
    cut,
    kept_channels,
    laid,
    one_channel,
    resampled,
    resampling,
    standardised,
    tile_size,
)
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, IntRange, Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class ContextPrediction(Method):
    """Pretext task: predict at which of eight places around a tile another one lies."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        grid: Annotated[Literal[2, 3], Choice(2, 3), Field(description="tiles along a side of the image")] = 3
        tile: Annotated[
            float, Uniform(0.5, 0.9), Field(gt=0, le=1, description="side of a tile, as a part of its cell's side")
        ] = 0.667
        jitter: Annotated[
            float, Uniform(0, 1), Field(ge=0, le=1, description="part of the room in its cell that a tile may use")
        ] = 0.29
        one_channel: Annotated[
            float, Uniform(0, 1), Field(ge=0, le=1, description="share of tiles that keep one colour channel only")
        ] = 1.0
        coarse: Annotated[
            float, Uniform(0, 0.5), Field(ge=0, le=1, description="share of tiles that lose resolution")
        ] = 0.33
        enlarge: Annotated[int, Choice(1, 2), Field(ge=1, le=8, description="factor by which tiles are enlarged")] = 1
        width: Annotated[
            int, IntRange(64, 4096), Field(ge=1, description="features of a tile, and of the head's two hidden layers")
        ] = 4096

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "placed": Metric("share of pairs of tiles whose relative position is recognised; 0.17 at most by guessing")
    }
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.1, weight_decay=1e-4, drops=(30 / 70, 50 / 70)),
        small_settings={"grid": 2, "tile": 0.75, "jitter": 1.0, "one_channel": 0.67, "width": 256},
    )

    first: Tensor
    second: Tensor
    positions: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.tile_size = tile_size(data.image_size, config.grid, config.tile)
        setting = f"method.tile={config.tile:g} with method.enlarge={config.enlarge}"
        check_tiles(encoder, self.tile_size * config.enlarge, data.channels, setting)
        first, second = neighbours(config.grid)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.register_buffer("positions", position(first, second, config.grid), persistent=False)
        width = config.width
        self.projector = nn.Sequential(*mlp([encoder.dim, width], last_norm=True), nn.ReLU())
        self.classifier = mlp([2 * width, width, width, 8])

    @property
    def views(self) -> tuple[View, ...]:
        # No flips: left and right would no longer be learnt from how things look.
        return (View(crop=(0.75, 1.0)),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        tiles = self._tiles(batch.views[0], self.rng(progress.step))  # [N, T, C, s, s]
        features, logits = self._recognise(tiles)
        targets = self.positions.repeat(len(tiles))
        placed = (logits.detach().argmax(1) == targets).float().mean()
        return StepResult(F.cross_entropy(logits, targets), list(features.detach().unbind(1)), {"placed": placed})

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Show a pair of tiles of each image, the first in the middle, and where the second is said to lie."""
        tiles = cut(images, self.config.grid, self.tile_size)
        image = torch.arange(len(images), device=images.device)
        pair = torch.randint(len(self.first), (len(images),), generator=self.rng(0)).to(images.device)
        logits = self._recognise(self._presented(tiles))[1].unflatten(0, (len(images), -1))  # [N, pairs, 8]
        shown = {"pair": self.positions[pair], "placed": logits[image, pair].argmax(1)}
        pictures = {}
        for title, place in shown.items():
            cells = tiles.new_zeros(len(images), 9, *tiles.shape[2:])
            cells[:, 4] = tiles[image, self.first[pair]]
            cells[image, place + (place >= 4)] = tiles[image, self.second[pair]]
            pictures[title] = laid(cells, 3 * (images.shape[-1] // self.config.grid))
        return pictures

    def _recognise(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tiles, and say of each pair how the second lies.

        [N, T, C, s, s] -> features [N, T, dim] and logits [N * pairs, 8].
        """
        features = self.encoder(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2])
        reduced = self.projector(features.flatten(0, 1)).unflatten(0, tiles.shape[:2])
        pairs = torch.cat([reduced[:, self.first], reduced[:, self.second]], 2).flatten(0, 1)  # [N * pairs, 2 width]
        return features, self.classifier(pairs)

    def _tiles(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Cut tiles without clues to their place: edges, levels, shifts of colours, resolution."""
        config, size, channels = self.config, self.tile_size, self.data.channels
        shape = self.data.batch_size, config.grid**2
        places = torch.rand(*shape, 2, generator=draw)
        kept = kept_channels(shape, config.one_channel, channels, draw)
        is_coarse, area = torch.rand(2, *shape, generator=draw)
        # The area is uniform between a hundredth of the tile's and all of it, as in the authors' code.
        sides = ((area * 0.99 + 0.01).sqrt() * size).round().long().clamp(min=1).where(is_coarse < config.coarse, size)
        noise = torch.rand(*shape, channels, size, size, generator=draw) - 0.5
        kept, sides, noise = (own_rows(each).to(images.device, non_blocking=True) for each in (kept, sides, noise))
        tiles = cut(images, config.grid, size, own_rows(places), config.jitter)
        if config.coarse:
            tiles = coarsened(tiles, sides)
        if channels > 1:
            # The authors' noise is of half a grey level of 255; images have been divided by their deviation.
            deviation = torch.tensor(self.data.std, device=images.device)[:, None, None]
            tiles = one_channel(tiles, kept, (noise / (255 * deviation)).to(tiles.dtype))
        return self._presented(tiles)

    def _presented(self, tiles: Tensor) -> Tensor:
        """Standardise tiles and enlarge them, as the encoder sees them."""
        tiles, size = standardised(tiles), self.tile_size
        if self.config.enlarge == 1:
            return tiles
        return resampled(tiles, resampling(size, size * self.config.enlarge, "bilinear").to(tiles))


def neighbours(grid: int) -> tuple[Tensor, Tensor]:
    """Return all ordered pairs of neighbouring tiles of a grid, also diagonal ones, [pairs] each."""
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))  # [T, 2]: row and column
    apart = (places[:, None] - places[None]).abs().amax(2)
    first, second = (apart == 1).nonzero().unbind(1)
    return first, second


def position(first: Tensor, second: Tensor, grid: int) -> Tensor:
    """Return where the second tile lies around the first, row by row from 0 to 7.

    The other way round it is 7 minus that.
    """
    rows, columns = second // grid - first // grid + 1, second % grid - first % grid + 1
    place = 3 * rows + columns  # from 0 to 8; 4 is the first tile itself
    return place - (place > 4).long()
