"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719).

A few of 14 operations, all at one magnitude.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.augment.colour import adjust_brightness, adjust_contrast, adjust_saturation
from eagleray.augment.numbers import Numbers, whole
from eagleray.contracts.view import MAGNITUDES, View

# images [n, C, H, W] in 0..1, sign [n, 1, 1, 1] of +1 or -1, strength from 0 to 1 -> images
Operation = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Choices:
    """The operations chosen for each image."""

    randaugment: Tensor  # [operations, 2, N] on the CPU: which of the 14 operations, and its sign


def draw(view: View, numbers: Numbers) -> Choices:
    """Draw each image's operations and their signs."""
    operations = view.randaugment[0] if view.randaugment else 0
    choice, sign = numbers.stream("randaugment", 2 * operations).unflatten(0, (2, operations))
    return Choices(torch.stack([whole(choice, len(OPERATIONS)), torch.where(sign < 0.5, -1.0, 1.0)], dim=1))


def randaugment(images: Tensor, magnitude: int, choices: Tensor) -> Tensor:
    """Apply each sample's own operations in their order.

    Samples that share an operation are batched.

    Args:
        images: [N, C, H, W] in 0..1.
        magnitude: 0 to 30.
        choices: [operations, 2, N] on the CPU: which operation, and its sign.
    """
    images = images.clone()
    for chosen, signs in choices:
        for number, operation in enumerate(OPERATIONS.values()):
            index = (chosen == number).nonzero()[:, 0]
            if not len(index):
                continue
            sign = signs[index].view(-1, 1, 1, 1).to(images.device, non_blocking=True)
            index = index.to(images.device, non_blocking=True)
            images[index] = operation(images[index], sign, magnitude / MAGNITUDES)
    return images


def _warp(images: Tensor, xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    """Resample by an affine map from the centre.

    Output pixel (u, v) shows source pixel (xx u + xy v + x, yx u + yy v + y). The nearest pixel is used, and black
    outside.
    """
    height, width = images.shape[-2:]
    matrix = torch.stack(  # affine_grid measures both axes from -1 to 1
        [xx, xy * height / width, 2 * x / width, yx * width / height, yy, 2 * y / height], dim=-1
    ).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _shear_x(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    one, shear = torch.ones_like(sign), 0.3 * strength * sign
    return _warp(images, one, shear, shear * images.shape[-2] / 2, 0 * one, one, 0 * one)


def _shear_y(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    one, shear = torch.ones_like(sign), 0.3 * strength * sign
    return _warp(images, one, 0 * one, 0 * one, shear, one, shear * images.shape[-1] / 2)


def _translate_x(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    one = torch.ones_like(sign)
    return _warp(images, one, 0 * one, -sign * _pixels(strength, images.shape[-1]), 0 * one, one, 0 * one)


def _translate_y(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    one = torch.ones_like(sign)
    return _warp(images, one, 0 * one, 0 * one, 0 * one, one, -sign * _pixels(strength, images.shape[-2]))


def _pixels(strength: float, side: int) -> int:
    """Convert a strength to pixels.

    AutoAugment moved its ImageNet crops of 331 pixels by up to 150.
    """
    return int(150 / 331 * side * strength)


def _rotate(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    angle = sign * math.radians(30 * strength)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(sign)
    return _warp(images, cos, -sin, zero, sin, cos, zero)


def _factor(sign: Tensor, strength: float) -> Tensor:
    return 1 + 0.9 * strength * sign


def _sharpness(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Move images away from or towards smoothed copies.

    The outermost pixels are not smoothed (as in PIL).
    """
    if min(images.shape[-2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=channels)
    return torch.lerp(smooth, images, _factor(sign, strength)).clamp_(0, 1)


def _posterize(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    levels = 2 ** (8 - round(4 * strength))
    return (images * levels).floor_().clamp_(max=levels - 1) / levels


def _solarize(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    return torch.where(images >= 1 - strength, 1 - images, images)


def _autocontrast(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Stretch each channel to 0..1, unless it is constant."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / torch.where(high > low, high - low, 1.0), images)


def _equalize(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Flatten each channel's histogram, as PIL does.

    It has 256 grey levels (ImageOps.equalize).
    """
    grey = (images * 255.999).long().flatten(2)  # torchvision's conversion to 8 bits
    counts = torch.zeros(*grey.shape[:2], 256, device=images.device)
    counts.scatter_add_(2, grey, torch.ones_like(grey, dtype=counts.dtype))
    below = counts.cumsum(2) - counts  # pixels darker than each level
    brightest = counts.gather(2, grey.amax(2, keepdim=True))
    step = ((grey.shape[2] - brightest) / 255).floor()  # [n, C, 1]
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256.0, device=images.device))
    return table.gather(2, grey).view_as(images) / 255


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, sign, strength: images,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": lambda images, sign, strength: adjust_brightness(images, _factor(sign, strength)),
    "color": lambda images, sign, strength: adjust_saturation(images, _factor(sign, strength)),
    "contrast": lambda images, sign, strength: adjust_contrast(images, _factor(sign, strength)),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
