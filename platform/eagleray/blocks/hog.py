"""Histograms of oriented gradients (HOG).

Source: Dalal, Triggs 2005, Histograms of Oriented Gradients for Human Detection, with the choices of MaskFeat
(https://arxiv.org/abs/2112.09133): Sobel's gradients, a histogram for each channel, normalised cell by cell.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.blocks.losses import precise

BINS = 9  # of unsigned orientations, 20 degrees each
FLAT = 1e-5  # a smaller sum of magnitudes is the rounding of a flat cell: 1/255 of contrast gives about 1e-3


def histograms(images: Tensor, cell: int, *, window: bool = True) -> Tensor:
    """Compute histograms of oriented gradients.

    Each pixel adds the magnitude of its gradient to the bin of its orientation, in the histogram of its cell and
    channel; each histogram has the length 1, or 0 where the cell is flat. As mean and scale of a channel change
    nothing, the histograms of normalised images are those of the raw ones.

    Args:
        images: [N, C, S, S] of two pixels a side or more.
        cell: side of a cell in pixels; it divides S.
        window: weigh magnitudes by a Gaussian around the middle of each square of two by two cells, whose standard
            deviation is the side of a cell.

    Returns:
        [N, 9 * C, S / cell, S / cell], the bins of a channel next to each other, float32 at least.
    """
    across, down = gradients(precise(images))
    magnitude = (across.square() + down.square()).sqrt()  # [N, C, S, S]
    if window:
        magnitude = magnitude * _window(images.shape[-1], cell, magnitude)
    orientation = torch.atan2(across, down) / math.pi * BINS  # from -9 to 9: gradients g and -g share a bin
    bins = orientation.floor().long() % BINS
    votes = magnitude.new_zeros(*magnitude.shape[:2], BINS, *magnitude.shape[2:])
    votes.scatter_(2, bins.unsqueeze(2), magnitude.unsqueeze(2))
    cells = votes.unflatten(-1, (-1, cell)).unflatten(-3, (-1, cell)).sum((-3, -1))  # [N, C, 9, S / cell, S / cell]
    return F.normalize(cells, dim=2, eps=FLAT).flatten(1, 2)


def lines(found: Tensor) -> Tensor:
    """Draw each cell's histogram as lines along edges, across the gradient, the brighter the more.

    [N, 9 * C, h, w] -> [N, C, 9 * h, 9 * w], of -1 where there is no edge.
    """
    place = torch.arange(BINS, dtype=found.dtype, device=found.device) - BINS // 2
    angle = (torch.arange(BINS, dtype=found.dtype, device=found.device) + 0.5) / BINS * math.pi
    # `histograms` measures the angle of a gradient from down towards the right: its sine lies across, its cosine down.
    distance = place * angle.sin()[:, None, None] + place[:, None] * angle.cos()[:, None, None]  # [9, 9, 9]
    drawn = (-2 * distance.square()).exp() * (place.square() + place[:, None].square() <= (BINS // 2) ** 2)
    cells = torch.einsum("ncbhw,byx->nchywx", found.clamp(min=0).unflatten(1, (-1, BINS)), drawn)
    return cells.flatten(4, 5).flatten(2, 3) * 3 - 1


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Sobel's gradients across and down, each [N, C, S, S].

    The border reflects the image.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    return (
        across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :],
        down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:],
    )


def _window(side: int, cell: int, like: Tensor) -> Tensor:
    """Return the weights of an image's pixels, [side, side].

    Those of a square of two by two cells, repeated, have the sum 1.
    """
    place = torch.arange(2 * cell, dtype=like.dtype, device=like.device) - (cell - 0.5)  # from the middle of a square
    line = (-(place / cell).square() / 2).exp()
    line = (line / line.sum()).repeat(-(-side // (2 * cell)))[:side]
    return line[:, None] * line
