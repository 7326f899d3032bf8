"""Patches of images as sequences, and masks of blocks of them."""

import math

import torch
from torch import Tensor


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens at given places of each sample.

    [N, L, D], [N, K] -> [N, K, D].
    """
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def put(tokens: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """Replace the tokens at given places of each sample.

    [N, L, D], [N, K], [N, K, D] -> [N, L, D].
    """
    return tokens.scatter(1, places.unsqueeze(-1).expand_as(new), new.to(tokens.dtype))


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut images into patches, row by row.

    [N, C, S, S] -> [N, (S/size)^2, size*size*C], channels last in each patch.
    """
    count, channels, side, _ = images.shape
    grid = side // size
    cut = images.reshape(count, channels, grid, size, grid, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, grid * grid, size * size * channels)


def unpatchify(patches: Tensor, size: int) -> Tensor:
    """Put patches together again, the inverse of `patchify`."""
    count, cut, pixels = patches.shape
    grid, channels = math.isqrt(cut), pixels // size**2
    placed = patches.reshape(count, grid, grid, size, size, channels)
    return placed.permute(0, 5, 1, 3, 2, 4).reshape(count, channels, grid * size, grid * size)


def filled(images: Tensor, places: Tensor, size: int, new: Tensor | None = None) -> Tensor:
    """Replace patches of images, by the mean colour (0) if nothing is given.

    [N, C, S, S], places [N, K], patches [N, K, size*size*C] -> [N, C, S, S].
    """
    patches = patchify(images, size)
    if new is None:
        new = patches.new_zeros(*places.shape, patches.shape[-1])
    return unpatchify(put(patches, places, new), size)


def only(images: Tensor, places: Tensor, size: int) -> Tensor:
    """Show patches of images, and the mean colour (0) elsewhere.

    [N, C, S, S], places [N, K] -> [N, C, S, S].
    """
    return filled(torch.zeros_like(images), places, size, take(patchify(images, size), places))


def block_masks(wanted: Tensor, grid: int, numbers: Tensor) -> Tensor:
    """Hide random rectangles of a grid.

    They are added until enough places are hidden, or ten in a row do not fit. Areas are between (grid / 3)² and the
    number of places still to hide, aspect ratios between 0.3 and 1 / 0.3 (BEiT, 2106.08254, algorithm 1).

    Args:
        wanted: largest number of places to hide, [M].
        grid: places along a side.
        numbers: random from 0 to 1, [rectangles tried, 4, M].

    Returns:
        [M, grid * grid] bool, row by row.
    """
    mask = torch.zeros(len(wanted), grid, grid, dtype=torch.bool)
    failed = torch.zeros(len(wanted))
    for area, aspect, top, left in numbers:
        missing = wanted - mask.sum((1, 2))
        active = (missing > 0) & (failed < 10)
        if not active.any():
            break
        area = (grid // 3) ** 2 + area * (missing - (grid // 3) ** 2)
        aspect = ((2 * aspect - 1) * math.log(1 / 0.3)).exp()
        rows, columns = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        block = _within(top, rows, grid)[:, :, None] & _within(left, columns, grid)[:, None, :]
        new = (block & ~mask).sum((1, 2))
        fits = active & (rows < grid) & (columns < grid) & (new > 0) & (new <= missing)
        mask |= block & fits[:, None, None]
        failed = torch.where(fits, 0, failed + 1)
    return mask.flatten(1)


def _within(position: Tensor, length: Tensor, grid: int) -> Tensor:
    """Return which places an interval covers, [M, grid].

    Places are those of a side; the interval's position is 0 at the start, 1 at the end.
    """
    start = (position * (grid - length + 1)).floor()[:, None]
    places = torch.arange(grid)
    return (places >= start) & (places < start + length[:, None])
