"""Colorization: predict the colours of an image from its brightness.

Zhang, Isola, Efros 2016, Colorful Image Colorization, https://arxiv.org/abs/1603.08511
The colours are those of every fourth pixel, as shares of bins in the a-b plane of CIE Lab; rare colours count more.
Images that are nearly grey teach nothing and do not count. Rate and decay are those of the authors' second version, and
as in their code an image without colour still counts in the mean.
Differs from the paper: the encoder sees luma, a weighted sum of red, green and blue, in place of Lab's lightness. It is
linear, so after every step the first convolution is made blind to everything else: then evaluation, export and fine-
tuning show the encoder what it has learnt from, whatever they do with colours. The decoder sees the pooled features
alone, so that these are trained, where the paper's network keeps an eighth of the resolution. There are 261 bins, into
which the colours of sRGB round, not 313. How rare a colour is follows from the images seen so far, not from all of them
in advance, and is smoothed by the spread of each colour over its bins alone. Crops show at least 47 % of the area, not
exactly that. Decay is AdamW's. The small recipe uses a narrow decoder.
"""

import copy
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_sum
from eagleray.blocks.lab import ab_bins, lab, soft_bins, srgb
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, Uniform
from eagleray.contracts.recipe import Recipe, Recipes

LUMA = (0.2126, 0.7152, 0.0722)  # of sRGB's primaries (ITU-R 709)
EVERY = 4  # pixels between two whose colours are predicted
COLOURED = 5.0  # |a| or |b| of the most coloured pixel, below which an image is grey
TEMPERATURE = 0.38  # of the annealed mean (section 2.3)


class Colorization(Method):
    """Pretext task: predict the colours of an image from its brightness."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        uniform: Annotated[
            float,
            Uniform(0.1, 1),
            Field(gt=0, le=1, description="how evenly colours count: 1 as often as they occur; near 0 all alike"),
        ] = 0.5
        width: Annotated[int, Choice(32, 64, 128, 256), Field(ge=1, description="channels of the decoder")] = 256

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "colour_error": Metric("mean distance of predicted and true colours in Lab's a-b plane", "lower"),
        "coloured": Metric("share of images that have colours; the others do not count"),
    }
    recipes = Recipes(
        # 3e-5 for 40 images.
        paper=Recipe(lr=3e-5, lr_scaling="none", beta2=0.99, weight_decay=1e-3, drops=(0.45, 0.9)),
        paper_steps=500_000,
        small_settings={"width": 64},
    )

    bins: Tensor
    seen: Tensor
    luma: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        if data.channels != 3:
            raise ConfigError("method=colorization learns from colours, and these images are grey: take colour images")
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (data.std, data.mean))
        shares = torch.tensor(LUMA).view(3, 1, 1) * std
        # Luma of normalised images, up to its own mean and scale.
        self.register_buffer("luma", shares / shares.sum(), persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        check_blind(encoder, self.luma, torch.randn(2, 3, data.image_size, data.image_size, generator=self.rng(0)))
        self.register_buffer("bins", ab_bins())  # [Q, 2]
        # Images seen of each bin; it starts as if one with all of them had been.
        self.register_buffer("seen", torch.full((len(self.bins),), 1 / len(self.bins)))
        self.decoder = Decoder(encoder.dim, config.width, len(self.bins), -(-data.image_size // EVERY))

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.47, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        features = self.encoder(seen_as_luma(images, self.luma))
        logits = self.decoder(features)  # [N, Q, h, w]
        with torch.autocast(images.device.type, enabled=False):
            logits = precise(logits)
            colours = lab(self._pixels(images)[:, :, ::EVERY, ::EVERY])[:, 1:]  # [N, 2, h, w]
            coloured = (colours.abs() > COLOURED).flatten(1).any(1).to(logits.dtype)  # [N]
            targets = soft_bins(colours.movedim(1, -1).flatten(0, 2), self.bins)  # [N h w, Q]
            targets = targets.unflatten(0, (len(images), *colours.shape[2:])).movedim(-1, 1)
            self._count(targets, coloured)
            weights = rarity(self.seen / self.seen.sum(), self.config.uniform)
            loss = colour_loss(logits, targets, weights.to(logits.dtype), coloured)
            predicted = annealed_mean(logits.detach(), self.bins.to(logits.dtype))
        error = (predicted - colours).norm(dim=1).mean()
        return StepResult(loss, [features.detach()], {"colour_error": error, "coloured": coloured.mean()})

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Take the colours from images and predict them; lightness stays that of the image."""
        logits = self.decoder(self.encoder(seen_as_luma(images, self.luma)))
        with torch.autocast(images.device.type, enabled=False):
            pixels = self._pixels(images)
            grey = seen_as_luma(pixels, pixels.new_tensor(LUMA).view(3, 1, 1))
            colours = spread(annealed_mean(precise(logits), self.bins.to(pixels)), images.shape[-1])
            coloured = srgb(torch.cat([lab(pixels)[:, :1], colours], 1))
            return {title: (each - self.mean) / self.std for title, each in (("seen", grey), ("coloured", coloured))}

    def _pixels(self, images: Tensor) -> Tensor:
        """Undo the normalising, to values in 0..1."""
        return (images * self.std + self.mean).clamp(0, 1)

    def change_encoder(self) -> None:
        make_blind(self.encoder, self.luma)

    def after_step(self, progress: Progress) -> None:
        self.change_encoder()

    @torch.no_grad()
    def _count(self, targets: Tensor, coloured: Tensor) -> None:
        """Count the colours of all workers' images that have some."""
        shares = targets.mean((2, 3)) * coloured[:, None]  # [N, Q]
        self.seen += all_reduce_sum(shares.sum(0)).to(self.seen.dtype)


class Decoder(nn.Module):
    """Features to a map of logits, [N, D] -> [N, Q, side, side]: a small map, doubled until it is large enough."""

    def __init__(self, features: int, width: int, bins: int, side: int):
        super().__init__()
        start, doublings = side, 0
        while start > 4:
            start, doublings = -(-start // 2), doublings + 1
        self.side = side
        layers: list[nn.Module] = [nn.Linear(features, width * start * start), nn.Unflatten(1, (width, start, start))]
        for _ in range(doublings):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, bins, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)[:, :, : self.side, : self.side]


def rarity(shares: Tensor, uniform: float) -> Tensor:
    """Weight colours by how rare they are (equation 4).

    With p a colour's share of the Q bins, w = 1 / ((1 - uniform) p + uniform / Q), scaled so that sum p w = 1.
    [Q] -> [Q].
    """
    weights = 1 / ((1 - uniform) * shares + uniform / len(shares))
    return weights / (shares * weights).sum()


def colour_loss(logits: Tensor, targets: Tensor, weights: Tensor, coloured: Tensor) -> Tensor:
    """Compute the weighted cross-entropy of colours (equation 2).

        loss = - mean over pixels of coloured v sum over bins q of Z_q log softmax(logits)_q,    v = weights[argmax Z]

    Args:
        logits, targets: Z above, [N, Q, h, w].
        weights: of each bin, [Q].
        coloured: [N], 0 for an image that does not count.
    """
    weights = weights[targets.argmax(1)] * coloured[:, None, None]  # [N, h, w]
    return (weights * F.cross_entropy(logits, targets, reduction="none")).mean()


def annealed_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Predict one colour of each pixel (equation 5).

    Between the likeliest colour and the mean of all, which is grey. [N, Q, h, w] -> [N, 2, h, w].
    """
    return torch.einsum("nqhw,qc->nchw", (logits / TEMPERATURE).softmax(1), bins)


def spread(colours: Tensor, side: int) -> Tensor:
    """Interpolate the colours of every fourth pixel, the first one first: [N, 2, h, h] -> [N, 2, side, side]."""
    between = EVERY * (colours.shape[-1] - 1) + 1
    inside = F.interpolate(colours, (between, between), mode="bilinear", align_corners=True)
    return F.pad(inside, [0, side - between] * 2, mode="replicate")


def seen_as_luma(images: Tensor, luma: Tensor) -> Tensor:
    """Replace all channels by their weighted sum, [N, 3, H, W]."""
    return (images * luma).sum(1, keepdim=True).expand_as(images)


@torch.no_grad()
def make_blind(encoder: nn.Module, luma: Tensor) -> None:
    """Make the first convolution give the same for an image as for its luma.

    With P the projection of `seen_as_luma`, its weights W become W P; on luma it computes what it did.
    """
    weight = first_convolution(encoder).weight
    weight.copy_(weight.sum(1, keepdim=True) * luma)


def first_convolution(encoder: nn.Module) -> nn.Conv2d:
    """Return the first convolution of three channels."""
    layers = (each for each in encoder.modules() if isinstance(each, nn.Conv2d) and each.weight.shape[1] == 3)
    found = next(layers, None)
    if found is None:
        raise ConfigError("encoder: method=colorization needs one that begins with a convolution: take encoder=convnet")
    return found


@torch.no_grad()
def check_blind(encoder: nn.Module, luma: Tensor, images: Tensor) -> None:
    """Check that the first convolution is all that sees the image.

    Raises:
        ConfigError: it is not.
    """
    blind = copy.deepcopy(encoder).eval()
    make_blind(blind, luma)
    if not torch.allclose(blind(images), blind(seen_as_luma(images, luma)), rtol=1e-3, atol=1e-3):
        raise ConfigError(
            "encoder: method=colorization needs one that sees images through its first convolution alone: take "
            "encoder=convnet"
        )
