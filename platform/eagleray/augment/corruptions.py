"""Common corruptions of images, as in CIFAR-10-C and ImageNet-C (Hendrycks, Dietterich 2019, 1903.12261).

Twelve of the fifteen, those that need neither pictures of frost nor an order of pixels (glass, snow and frost are left
out). Images of up to 64 pixels get the severities of CIFAR-10-C, larger ones those of ImageNet-C; lengths are in
pixels, except those of the elastic transform, which are shares of the side.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from eagleray.contracts.seeds import generator

SMALL_UP_TO = 64  # pixels
SEVERITIES = (1, 2, 3, 4, 5)


class Draws:
    """Random numbers of some images, each with a stream of its own."""

    def __init__(self, seed: int, places: Tensor, purpose: str):
        self.streams = [generator(seed, int(place), purpose=purpose) for place in places]

    def each(self, draw: Callable[[Generator], Tensor]) -> Tensor:
        """Draw for each image, and stack: [n, ...]."""
        return torch.stack([draw(stream) for stream in self.streams])

    def uniform(self, *shape: int) -> Tensor:
        """Draw from 0..1: [n, *shape]"""
        return self.each(lambda stream: torch.rand(shape, generator=stream))


def corrupt(pixels: Tensor, places: Tensor, *, name: str, severity: int, seed: int) -> Tensor:
    """Corrupt images.

    What is random depends on the seed and the image's place alone, and is the same at every severity.

    Args:
        pixels: float32 [n, C, S, S] in 0..1, C is 1 or 3.
        places: int64 [n], of the images among all.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the draws.

    Returns:
        float32 [n, C, S, S] in 0..1.
    """
    corruption = CORRUPTIONS[name]
    settings = corruption.small if pixels.shape[-1] <= SMALL_UP_TO else corruption.large
    return corruption.perform(pixels, settings[severity - 1], Draws(seed, places, name)).clamp(0, 1)


# noise


def _gaussian_noise(pixels: Tensor, deviation: float, draws: Draws) -> Tensor:
    noise = draws.each(lambda stream: torch.randn(pixels.shape[1:], generator=stream))
    return pixels + deviation * noise.to(pixels)


def _shot_noise(pixels: Tensor, photons: float, draws: Draws) -> Tensor:
    """Count photons; `photons` is their mean at a white pixel."""
    expected = iter(photons * pixels.cpu())
    return draws.each(lambda stream: torch.poisson(next(expected), generator=stream)).to(pixels) / photons


def _impulse_noise(pixels: Tensor, share: float, draws: Draws) -> Tensor:
    """Set a share of the values to 0 or 1."""
    drawn = draws.uniform(*pixels.shape[1:]).to(pixels)
    return pixels.where(drawn > share, (drawn <= share / 2).to(pixels))


# blur


def _defocus_blur(pixels: Tensor, disk: tuple[float, float], _: Draws) -> Tensor:
    kernel = disk_kernel(*disk).to(pixels)
    padded = F.pad(pixels, [len(kernel) // 2] * 4, mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(pixels)


@cache
def disk_kernel(radius: float, deviation: float) -> Tensor:
    """Return a disk, its border smoothed by a Gaussian of 3 x 3 pixels; of 5 x 5 above a radius of 8.

    The weights sum to 1; in the authors' code those of the radii 8 and 10 sum to 1.01.
    """
    border = 1 if radius <= 8 else 2
    reach = math.floor(radius)
    squares = torch.arange(-reach, reach + 1).square()
    disk = (squares + squares[:, None] <= radius**2).float()
    bell = _bell(border, deviation)
    smoothing = bell.outer(bell)
    smooth = F.conv2d(F.pad(disk, [2 * border] * 4)[None, None], smoothing[None, None])[0, 0]
    return smooth / smooth.sum()


def _motion_blur(pixels: Tensor, blur: tuple[int, float], draws: Draws) -> Tensor:
    """Smear along a line, at up to 45 degrees from the horizontal, to one side, with half a Gaussian's weights."""
    radius, deviation = blur
    side, angle = pixels.shape[-1], math.radians(90) * (draws.uniform(1) - 0.5)
    steps = torch.arange(2 * radius + 1)
    weights = torch.exp(-(steps**2) / (2 * deviation**2))
    weights /= weights.sum()
    grid = torch.arange(side)
    rows, columns = (  # [n, steps, side]
        (torch.ceil(steps * turn - 0.5).long()[..., None] + grid).clamp(0, side - 1).to(pixels.device)
        for turn in (angle.sin(), angle.cos())
    )
    image = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = pixels.movedim(1, -1)
    parts = (
        weight * moved[image, rows[:, step, :, None], columns[:, step, None, :]]
        for step, weight in enumerate(weights.tolist())
    )
    return sum(parts, torch.zeros_like(moved)).movedim(-1, 1)


def _zoom_blur(pixels: Tensor, zoom: tuple[float, float], _: Draws) -> Tensor:
    """Average the image and what zooms show of it, from 1 to an end (as numpy counts) in steps."""
    shown = [zoomed(pixels, factor) for factor in np.arange(1, *zoom)]
    return (pixels + sum(shown)) / (len(shown) + 1)


def zoomed(pixels: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of the images, [n, C, S, S]."""
    side = pixels.shape[-1]
    part = math.ceil(side / factor)
    top = (side - part) // 2
    middle = pixels[..., top : top + part, top : top + part]
    large = F.interpolate(middle, size=round(part * factor), mode="bilinear", align_corners=True)
    trim = (large.shape[-1] - side) // 2
    return large[..., trim : trim + side, trim : trim + side]


# weather and light


def _fog(pixels: Tensor, fog: tuple[float, float], draws: Draws) -> Tensor:
    amount, roughness = fog
    side = 2 ** math.ceil(math.log2(pixels.shape[-1]))
    clouds = plasma(2 * draws.uniform(side, side) - 1, roughness)[:, None, : pixels.shape[-2], : pixels.shape[-1]]
    brightest = pixels.amax((1, 2, 3), keepdim=True)
    return (pixels + amount * clouds.to(pixels)) * brightest / (brightest + amount)


def plasma(drawn: Tensor, decay: float) -> Tensor:
    """Make clouds by the diamond-square algorithm, on a torus.

    From coarse to fine, each point is the mean of the four around it plus its own number, times a scale that starts at
    1 and falls by `decay`² a step.

    Args:
        drawn: a number for each point, [n, S, S]; S is a power of two.
        decay: larger is smoother.

    Returns:
        [n, S, S], from 0 to 1.
    """
    clouds, scale = torch.zeros_like(drawn), 1.0
    step = drawn.shape[-1]
    while step > 1:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        middles = (rows + rows.roll(-1, 2)) / 4 + scale * drawn[:, half::step, half::step]
        clouds[:, half::step, half::step] = middles
        beside = corners + corners.roll(-1, 2) + middles + middles.roll(1, 1)
        below = corners + corners.roll(-1, 1) + middles + middles.roll(1, 2)
        clouds[:, ::step, half::step] = beside / 4 + scale * drawn[:, ::step, half::step]
        clouds[:, half::step, ::step] = below / 4 + scale * drawn[:, half::step, ::step]
        step, scale = half, scale / decay**2
    clouds = clouds - clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


def _brightness(pixels: Tensor, more: float, _: Draws) -> Tensor:
    """Raise the value of HSV, the largest channel, at the same hue and saturation."""
    value = pixels.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, pixels / value.clamp(min=1e-6) * brighter, brighter)


def _contrast(pixels: Tensor, factor: float, _: Draws) -> Tensor:
    mean = pixels.mean((2, 3), keepdim=True)
    return (pixels - mean) * factor + mean


# digital


def _elastic(pixels: Tensor, elastic: tuple[float, float, float], draws: Draws) -> Tensor:
    """Move three points of the image, which turns and shears it, and then each pixel by smooth noise."""
    side = pixels.shape[-1]
    strength, deviation, shift = (side * each for each in elastic)
    middle, third = side // 2, side // 3
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * third + middle
    moved = points + shift * (2 * draws.uniform(3, 2) - 1)
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1), points.expand_as(moved))  # [n, 3, 2]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    whole = torch.stack([x, y, torch.ones_like(x)], -1).float()
    turned = _sampled(pixels, whole @ back[:, None], at_centres=True)
    smooth = smoothing(side, deviation)
    noise = strength * (smooth @ (2 * draws.uniform(2, side, side) - 1) @ smooth.T)
    return _sampled(turned, whole[..., :2] + noise.movedim(1, -1), at_centres=False)


def smoothing(side: int, deviation: float) -> Tensor:
    """Return a Gaussian filter of a row as a matrix, [side, side], mirrored at the borders, cut at three deviations."""
    reach = int(3 * deviation + 0.5)
    bell = _bell(reach, max(deviation, 1e-6))
    here = torch.arange(side)[:, None].expand(-1, len(bell))
    there = (here + torch.arange(-reach, reach + 1)) % (2 * side)
    there = there.minimum(2 * side - 1 - there)
    return torch.zeros(side, side).index_put_((here, there), bell.expand_as(here), accumulate=True)


def _sampled(images: Tensor, places: Tensor, *, at_centres: bool) -> Tensor:
    """Read images between pixels; outside they are mirrored at the outermost pixels' centres, or at their edges.

    `places` are x and y in pixels, [n, S, S, 2].
    """
    side = images.shape[-1]
    grid = 2 * places / (side - 1) - 1 if at_centres else (2 * places + 1) / side - 1
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=at_centres)


def _bell(reach: int, deviation: float) -> Tensor:
    """Return a Gaussian's weights, [2 * reach + 1]."""
    weights = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
    return weights / weights.sum()


def _pixelate(pixels: Tensor, factor: float, _: Draws) -> Tensor:
    side = pixels.shape[-1]
    small = max(1, int(side * factor))
    box = Image.Resampling.BOX
    return _by_pillow(pixels, lambda image: image.resize((small, small), box).resize((side, side), box))


def _jpeg(pixels: Tensor, quality: int, _: Draws) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(pixels, compressed)


def _by_pillow(pixels: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    rows = (255 * pixels).round().byte().movedim(1, -1).cpu().numpy()
    changed = [
        np.asarray(change(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image))) for image in rows
    ]
    return torch.from_numpy(np.stack(changed)).view(rows.shape).movedim(-1, 1).to(pixels) / 255


@dataclass(frozen=True)
class Corruption:
    """A corruption, with what it takes at the severities 1 to 5."""

    perform: Callable[[Tensor, Any, Draws], Tensor]
    small: tuple[Any, ...]  # of CIFAR-10-C
    large: tuple[Any, ...]  # of ImageNet-C


CORRUPTIONS = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Corruption(
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "motion_blur": Corruption(
        _motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    ),
    "zoom_blur": Corruption(
        _zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "fog": Corruption(
        _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic": Corruption(
        _elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
