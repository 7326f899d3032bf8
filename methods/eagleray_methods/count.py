"""Learning to count: what is in an image is the sum of what is in its quarters.

Noroozi, Pirsiavash, Favaro 2017, https://arxiv.org/abs/1708.06734
The loss is the paper's, on whole vectors; a public reimplementation takes the hinge of each count alone.
Differs from the paper: its AlexNet's last layers are a head on the encoder's features, with batch norms between them.
The last layer starts with a tenth of the usual weights and no bias, which is our choice.
The other image is the one before in the batch. The share of images that show one channel alone, the crops and the
recipe are our choice. The kernels for halving are PIL's bilinear, bicubic, box and Lanczos, one of them drawn for each
image: a network still recognises some halved images by them, on planted images fewer than with bilinear alone and more
than with Lanczos alone. Under the small recipe the head is smaller.
"""

from typing import Annotated, ClassVar, get_args

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_mean, gather, own_rows
from eagleray.blocks.networks import mlp
from eagleray.blocks.tiles import Kernel, check_tiles, cut, grey, kept_channels, resampled, resampling
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes

START = 0.1  # of the usual weights, in the last layer


class Count(Method):
    """Pretext task: the counts of an image's quarters add up to those of the image at half its size."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        margin: Annotated[
            float, LogUniform(1, 100), Field(gt=0, description="squared distance at which another image is far enough")
        ] = 10.0
        counts: Annotated[int, IntRange(64, 1024), Field(ge=1, description="how many things are counted")] = 1000
        one_channel: Annotated[
            float, Uniform(0, 1), Field(ge=0, le=1, description="share of images that show one colour channel only")
        ] = 0.66
        hidden: Annotated[int, IntRange(128, 4096), Field(ge=1, description="width of the head's hidden layers")] = 4096

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "count": Metric("mean count of an image; 0: the network counts nothing, the trivial solution"),
        "used": Metric("share of the counts that are above 0 for some image of a step"),
        "error": Metric("squared distance of an image's counts from the sum of its quarters'", "lower", no_goal=TERM),
        "active": Metric("share of images whose counts are within the margin of another image's"),
    }
    recipes = Recipes(paper=Recipe(lr=1e-4, lr_scaling="none"), small_settings={"counts": 256, "hidden": 256})

    kernels: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.tile_size = data.image_size // 2
        if data.batch_size < 2:
            raise ConfigError("batch_size=1 has no other image to compare counts with: set it to 2 or more")
        check_tiles(encoder, self.tile_size, data.channels, f"image_size={data.image_size}")
        halving = [resampling(2 * self.tile_size, self.tile_size, kernel) for kernel in get_args(Kernel)]
        self.register_buffer("kernels", torch.stack(halving), persistent=False)
        self.counter = mlp([encoder.dim, config.hidden, config.hidden, config.counts])
        last = self.counter[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            # Sums over quarters start four times too large. From small counts that is mended with less harm: on planted
            # images fewer of them become 0 for every image.
            last.weight.mul_(START)
            last.bias.zero_()

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.5, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images, size, draw, count = batch.views[0], self.tile_size, self.rng(progress.step), self.data.batch_size
        drawn = torch.randint(len(self.kernels), (count,), generator=draw)
        # Whole images and quarters show a lens's shifts of colours at different places.
        kept = kept_channels((count,), self.config.one_channel, self.data.channels, draw)
        drawn, kept = (own_rows(each).to(images.device, non_blocking=True) for each in (drawn, kept))
        images, halve = grey(images, kept), self.kernels[drawn].to(images.dtype)  # [N, s, 2s]
        halved = resampled(images[..., : 2 * size, : 2 * size], halve.unsqueeze(1))
        tiles = torch.cat([halved.unsqueeze(1), cut(images, 2, size)], 1)  # [N, 5, C, s, s]
        features = self.encoder(tiles.flatten(0, 1))
        counts = self.counter(features).relu().unflatten(0, (-1, 5))  # [N, 5, counts]
        counts = counts.to(torch.promote_types(counts.dtype, torch.float32))
        whole, parts = counts[:, 0], counts[:, 1:].sum(1)
        other = own_rows(gather(whole).roll(1, 0))
        error, hinge = terms(whole, parts, other, self.config.margin)
        metrics = {
            "count": whole.detach().mean(),
            "used": (all_reduce_mean((whole.detach() > 0).to(whole.dtype).mean(0)) > 0).to(whole.dtype).mean(),
            "error": error.detach().mean(),
            "active": (hinge.detach() > 0).float().mean(),
        }
        embeddings = list(features.detach().unflatten(0, (-1, 5)).unbind(1))
        return StepResult((error + hinge).mean(), embeddings, metrics)


def terms(whole: Tensor, parts: Tensor, other: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return both terms of the loss for each image, [N] (equation 5).

    |whole - parts|^2 and max(0, margin - |other - parts|^2): of whole vectors, not of each count.

    Args:
        whole: counts of the halved image, [N, counts].
        parts: sum of the counts of its quarters, [N, counts].
        other: counts of another halved image, [N, counts].
        margin: squared distance from which another image is far enough.
    """
    return (whole - parts).square().sum(1), (margin - (other - parts).square().sum(1)).relu()
