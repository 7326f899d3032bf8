"""Colours of CIE 1976 L*a*b*, and the bins of its a-b plane.

L is lightness, 0 black to 100 white; a goes from green to red and b from blue to yellow, and equal distances look about
equally different (CIE 15:2004, sRGB: IEC 61966-2-1, white point D65).
"""

import torch
from torch import Tensor

_TO_XYZ = torch.tensor(  # linear red, green and blue -> X, Y and Z, each by that of the white point
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
) / torch.tensor([[0.95047], [1.0], [1.08883]], dtype=torch.float64)
_KNEE = 6 / 29  # below its cube, the cube root is continued by a line


def lab(images: Tensor) -> Tensor:
    """Convert sRGB to Lab: [N, 3, H, W], values in 0..1, -> L in 0..100, a and b in about -108..108."""
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    x, y, z = _cube_root(torch.einsum("dc,nchw->ndhw", _TO_XYZ.to(images), linear)).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def srgb(colours: Tensor) -> Tensor:
    """Convert Lab to sRGB, the inverse of `lab`; colours that sRGB lacks get the nearest values in 0..1."""
    lightness, a, b = colours.unbind(1)
    y = (lightness + 16) / 116
    roots = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(roots > _KNEE, roots**3, (roots - 4 / 29) * (3 * _KNEE**2))
    linear = torch.einsum("dc,nchw->ndhw", _TO_XYZ.inverse().to(colours), xyz).clamp(0, 1)
    return torch.where(linear > 0.04045 / 12.92, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _cube_root(values: Tensor) -> Tensor:
    line = values / (3 * _KNEE**2) + 4 / 29
    return torch.where(values > _KNEE**3, values.clamp(min=_KNEE**3) ** (1 / 3), line)


def ab_bins(grid: int = 10) -> Tensor:
    """Return the points of a grid in the a-b plane that a colour of sRGB rounds to, [Q, 2].

    The colours are the 256^3 of 8 bits. Only those on the surface of the cube are converted: over each point of the
    plane, the solid of colours begins and ends at its surface.
    """
    line = torch.arange(256, dtype=torch.float64) / 255
    first, second = (each.flatten() for each in torch.meshgrid(line, line, indexing="ij"))
    sides = [
        torch.stack([first, second, torch.full_like(first, end)]).roll(axis, 0)
        for axis in range(3)
        for end in (0.0, 1.0)
    ]
    colours = lab(torch.cat(sides, 1)[None, :, :, None])[0, 1:, :, 0]  # [2, 6 * 256^2]
    a, b = (colours / grid).round().long()
    places = (a * 1000 + b + 500).unique()  # one number for both: to sort pairs takes seconds
    a = (places / 1000).floor()
    return torch.stack([a, places - 1000 * a - 500], 1).float() * grid


def soft_bins(ab: Tensor, bins: Tensor, nearest: int = 10, sigma: float = 5.0) -> Tensor:
    """Spread each colour over its nearest bins.

    With d the distance to a bin, its share is exp(-d^2 / (2 sigma^2)) by the sum of all (Zhang et al. 2016,
    https://arxiv.org/abs/1603.08511, section 2.1).

    Args:
        ab: colours, [N, 2].
        bins: [Q, 2].

    Returns:
        [N, Q], each row sums to 1.
    """
    distances = torch.cdist(ab, bins.to(ab), compute_mode="donot_use_mm_for_euclid_dist")
    distances, places = distances.topk(nearest, 1, largest=False)
    shares = (-distances.square() / (2 * sigma**2)).softmax(1)
    return torch.zeros(len(ab), len(bins), dtype=ab.dtype, device=ab.device).scatter_(1, places, shares)
