"""Colour operations of views.

torchvision's exact chain, and its fused form, one affine map per sample.
"""

import math
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from eagleray.augment.numbers import Numbers, whole
from eagleray.contracts.view import View

ORDERS = torch.tensor(list(permutations(range(4)))).t()  # [4, 24]: the orders of brightness, contrast, saturation, hue
LUMA = torch.tensor([0.2989, 0.587, 0.114])  # torchvision's weights of red, green, blue (ITU-R 601)
_GREY = torch.full((3, 3), 1 / 3)  # projection onto the grey axis
_AROUND = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
_TURN = torch.stack([_GREY, torch.eye(3) - _GREY, _AROUND])  # Rodrigues' formula: what stays, times cos, times sin
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # the factors that change nothing


@dataclass(frozen=True)
class Colours:
    """The parameters of each image's colour operations."""

    brightness: Tensor  # factors; 1, 1, 1, 0 where the image is not jittered
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # part of the colour circle
    order: Tensor  # [4, N] int64, on the CPU: the jitter's operations in their order, -1 where there is no jitter
    grayscale: Tensor  # 1: colour dropped
    solarize: Tensor  # 1: solarized


def draw(view: View, numbers: Numbers) -> Colours:
    """Draw each image's jitter, grayscale and solarization.

    Jitter factors are drawn as by torchvision's ColorJitter.
    """
    *spreads, hue = (view.jitter * scale for scale in view.jitter_scale)
    spans = [*((max(0.0, 1 - spread), 1 + spread) for spread in spreads), (-hue, hue)]
    jittered = numbers.happens("jitter", view.jitter_probability) > 0
    factors = zip(numbers.between("factors", spans), _NEUTRAL, strict=True)
    return Colours(
        *(torch.where(jittered, factor, neutral) for factor, neutral in factors),
        order=torch.where(jittered, ORDERS[:, whole(numbers["order"][0], ORDERS.shape[1]).long()], -1),
        grayscale=numbers.happens("grayscale", view.grayscale),
        solarize=numbers.happens("solarize", view.solarize),
    )


def fused(images: Tensor, mean: Tensor, drawn: Colours) -> Tensor:
    """Apply jitter and grayscale as ONE affine map.

    The map acts on each sample's colours, [N, C, S, S] in 0..1. Brightness, contrast, saturation and grayscale are
    linear in a pixel and in the image's mean, and without the clamps between them they commute, so the fixed order here
    loses only those clamps; one clamp at the end remains. Hue is the approximation: HSV moves along a hexagon; this
    rotates around the grey axis, which is the same at multiples of 120 degrees (a rotation in YIQ keeps the luma, which
    HSV does not, and is less accurate).

    Args:
        images: the views before any colour operation; blur may have been applied, since it commutes with this map.
        mean: [N, C], each channel's mean over the view before blur: contrast pulls towards its luma.
    """
    gain = (drawn.brightness * drawn.contrast)[:, None, None]
    if images.shape[1] == 1:
        matrix, grey = gain, mean
    else:
        turned = _hue_rotation(drawn.hue)  # [N, 3, 3]
        luma = (
            LUMA.to(turned.device, non_blocking=True) @ turned
        )  # [N, 3]: red, green and blue's share in the rotated colour's luma
        saturation = torch.where(drawn.grayscale > 0, 0.0, drawn.saturation)[:, None, None]
        matrix = gain * torch.lerp(luma[:, None], turned, saturation)
        grey = (luma * mean).sum(1, keepdim=True)
    offset = (drawn.brightness * (1 - drawn.contrast))[:, None] * grey  # [N, 1], the same for each channel
    offset = offset[:, :, None].expand(-1, images.shape[1], 1)
    return torch.baddbmm(offset, matrix, images.flatten(2)).view_as(images).clamp_(0, 1)


def _hue_rotation(hue: Tensor) -> Tensor:
    """Return rotations around RGB's grey axis, [N, 3, 3].

    `hue` is the part of a full circle.
    """
    angle = (2 * math.pi * hue)[:, None, None]
    along, across, around = _TURN.to(hue.device, non_blocking=True)
    return along + angle.cos() * across + angle.sin() * around


def jitter(images: Tensor, drawn: Colours) -> Tensor:
    """Apply torchvision's exact ColorJitter.

    Each sample in its own order, clamped after every operation.
    """
    operations = (
        (adjust_brightness, drawn.brightness),
        (adjust_contrast, drawn.contrast),
        (adjust_saturation, drawn.saturation),
        (adjust_hue, drawn.hue),
    )
    images = images.clone()
    for place in range(len(operations)):
        for number, (adjust, factors) in enumerate(operations):
            index = (drawn.order[place] == number).nonzero()[:, 0].to(images.device, non_blocking=True)
            images[index] = adjust(images[index], factors[index, None, None, None])
    return images


def luminance(images: Tensor) -> Tensor:
    """Compute luminance: [N, C, H, W] -> [N, 1, H, W].

    A grey image is its own luminance. Pixel by pixel, since a product of matrices rounds an image in other ways as the
    batch grows, and workers would not see the views of one process.
    """
    if images.shape[1] == 1:
        return images
    (r, g, b), (red, green, blue) = LUMA.tolist(), images.split(1, dim=1)
    return (red * r).add_(green, alpha=g).add_(blue, alpha=b)


def grayscale(images: Tensor, drawn: Colours) -> Tensor:
    """Remove the colour of the drawn images."""
    return torch.where(drawn.grayscale[:, None, None, None] > 0, luminance(images), images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale images: factor 0 gives black, 1 the image.

    Images are [n, C, H, W] in 0..1, the factor [n, 1, 1, 1], as in all four functions.
    """
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale around the mean luma; factor 1 changes nothing.

    Factor 0 gives the mean everywhere.
    """
    return torch.lerp(luminance(images).mean((1, 2, 3), keepdim=True), images, factor).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale around the luma; factor 0 gives grey.

    Factor 1 gives the image; a grey image is unchanged.
    """
    return images if images.shape[1] == 1 else torch.lerp(luminance(images), images, factor).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Move HSV's hue by `shift` of the circle.

    A grey image is unchanged. A channel of the colour (h, s, v) is v - v s max(0, min(k, 4 - k, 1)) with k = (n + 6h)
    mod 6 and n = 5, 3, 1 for red, green and blue.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    difference = torch.where(value == red, green - blue, torch.where(value == green, blue - red, red - green))
    sector = torch.where(value == red, 0.0, torch.where(value == green, 2.0, 4.0))
    sixth = difference / torch.where(chroma > 0, chroma, 1.0) + sector + 6 * shift  # 6h, not yet reduced to 0..6
    k = (torch.tensor([5.0, 3.0, 1.0], device=images.device).view(3, 1, 1) + sixth).remainder_(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def finish(view: View, images: Tensor, drawn: Colours) -> Tensor:
    """Solarize, which must come after the blur.

    The images stay in 0..1.
    """
    return solarize(images, drawn) if view.solarize else images


def solarize(images: Tensor, drawn: Colours) -> Tensor:
    """Invert bright pixels of the drawn images.

    These are the pixels of at least one half.
    """
    chosen = drawn.solarize[:, None, None, None] > 0
    return torch.where(chosen & (images >= 0.5), 1 - images, images)
