"""Tiles: parts of an image cut from the cells of a grid, and guards against clues that are no content.

Random numbers are arguments: draw them from `Method.rng` for the whole batch, then take `own_rows`.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError

Kernel = Literal["bilinear", "bicubic", "area", "lanczos"]


def tile_size(image_size: int, grid: int, part: float) -> int:
    """Return the side of a tile in pixels: a part of its cell's, at least 1."""
    return max(1, round(part * (image_size // grid)))


def cut(images: Tensor, grid: int, size: int, numbers: Tensor | None = None, jitter: float = 1.0) -> Tensor:
    """Cut a tile from each cell of a grid, row by row.

    Cells have S // grid pixels a side, and the grid lies in the middle of the image.

    Args:
        images: [N, C, S, S].
        grid: cells along a side.
        size: side of a tile in pixels, at most that of a cell.
        numbers: random from 0 to 1, [N, grid * grid, 2]: where each tile lies in its cell; None: in the middle.
        jitter: part of the room in a cell that they choose from, around the middle.

    Returns:
        [N, grid * grid, C, size, size].
    """
    side = images.shape[-1]
    cell = side // grid
    room = round(jitter * (cell - size)) if numbers is not None else 0
    border = (side - cell * grid) // 2 + (cell - size - room) // 2
    first = cell * torch.cartesian_prod(torch.arange(grid), torch.arange(grid)) + border  # [T, 2]
    corners = first.expand(len(images), -1, -1)
    if numbers is not None:
        corners = corners + (numbers.cpu() * (room + 1)).long().clamp(max=room)
    places = (corners[..., None] + torch.arange(size)).to(images.device, non_blocking=True)  # [N, T, 2, size]
    rows, columns = places[:, :, 0, :, None], places[:, :, 1, None, :]
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3).contiguous()


def laid(tiles: Tensor, side: int) -> Tensor:
    """Lay tiles where `cut` finds them in the middle of their cells, with 0 around each.

    [N, grid * grid, C, size, size] -> [N, C, side, side].
    """
    size, grid = tiles.shape[-1], math.isqrt(tiles.shape[1])
    cell = side // grid
    cells = F.pad(tiles, _borders(cell - size)).unflatten(1, (grid, grid))
    whole = cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return F.pad(whole, _borders(side - cell * grid))


def _borders(room: int) -> list[int]:
    """Return the pixels left of, right of, above and below what lies in the middle."""
    return [room // 2, room - room // 2] * 2


def reordered(tiles: Tensor, order: Tensor) -> Tensor:
    """Move tile order[t] of each image to place t; `order.argsort(1)` undoes it.

    [N, T, C, S, S], [N, T] int64 -> [N, T, C, S, S].
    """
    return tiles.take_along_dim(order[:, :, None, None, None], 1)


def standardised(tiles: Tensor) -> Tensor:
    """Give each tile mean 0 and deviation 1 over its channels and pixels, [..., C, S, S].

    Otherwise brightness and contrast show which tiles are neighbours (1603.09246, section 3.3).
    """
    variance, mean = torch.var_mean(tiles, (-3, -2, -1), correction=0, keepdim=True)
    return (tiles - mean) / (variance + 1e-6).sqrt()


def kept_channels(shape: tuple[int, ...], share: float, channels: int, draw: torch.Generator) -> Tensor:
    """Draw which channel a share of tiles or images keeps, int64; -1: all."""
    loses_colour = torch.rand(shape, generator=draw)
    return torch.randint(channels, shape, generator=draw).where(loses_colour < share, -1)


def grey(images: Tensor, kept: Tensor) -> Tensor:
    """Show one channel of each image in all of them.

    Not luma: where a lens shifts colours against each other, their sum is blurred in the direction of the shift, which
    tells the place in the photo as the colours do.

    Args:
        images: [N, C, S, S].
        kept: which channel, [N] int64; -1: all stay as they are.
    """
    kept = kept[:, None, None, None]
    return torch.where(kept < 0, images, images.take_along_dim(kept.clamp(min=0), 1))


def one_channel(tiles: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
    """Keep one channel of each tile and replace the others by noise.

    A lens shifts colours against each other, the more the farther from the middle of the photo; one channel cannot
    show it (1505.05192, section 3.1). Each channel loses its mean.

    Args:
        tiles: [N, T, C, S, S].
        kept: which channel stays, [N, T] int64; -1: all.
        noise: [N, T, C, S, S], small.
    """
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    channels = torch.arange(tiles.shape[2], device=tiles.device)
    stays = (kept[..., None] == channels) | (kept[..., None] < 0)  # [N, T, C]
    return torch.where(stays[..., None, None], centred, noise)


def coarsened(tiles: Tensor, sides: Tensor) -> Tensor:
    """Reduce each tile to its own number of pixels and enlarge it again.

    Both bilinear. [N, T, C, S, S], `sides` [N, T] int64 from 1 to S, in which S changes nothing.
    """
    size = tiles.shape[-1]
    there_and_back = torch.stack(
        [resampling(side, size, "bilinear") @ resampling(size, side, "bilinear") for side in range(1, size + 1)]
    ).to(tiles)
    return resampled(tiles, there_and_back[sides - 1].unsqueeze(2))


def resampled(images: Tensor, matrix: Tensor) -> Tensor:
    """Resample rows and columns alike, [..., S, S] by [..., s, S] -> [..., s, s]."""
    with torch.autocast(images.device.type, enabled=False):  # pixels stay exact
        return matrix @ images @ matrix.mT


def resampling(source: int, size: int, kernel: Kernel) -> Tensor:
    """Return the matrix that resizes a line of pixels, [size, source].

    Kernels are as wide as an output pixel and at least as a source pixel, as in PIL. Each row has the sum 1.
    """
    if kernel != "lanczos":
        lines = torch.eye(source, device="cpu")[None, None]
        return F.interpolate(lines, (size, source), mode=kernel, antialias=kernel != "area")[0, 0]
    scale = max(1.0, source / size)
    centres = (torch.arange(size, device="cpu") + 0.5) * source / size
    distance = (torch.arange(source, device="cpu") + 0.5 - centres[:, None]) / scale
    weights = torch.where(distance.abs() < 3, distance.sinc() * (distance / 3).sinc(), 0)
    return weights / weights.sum(1, keepdim=True)


def check_tiles(encoder: Encoder, size: int, channels: int, setting: str) -> None:
    """Check that an encoder takes tiles of a size.

    Raises:
        ConfigError: it does not, or would ignore pixels; begins with `setting`, what the size of the tiles is of.
    """
    if size % encoder.patch_size:
        divisors = [str(each) for each in range(1, size + 1) if size % each == 0]
        raise ConfigError(
            f"{setting} gives tiles of {size} pixels, which patches of {encoder.patch_size} pixels do not divide: "
            f"change it, or set encoder.patch_size to {' or '.join(divisors)}"
        )
    try:
        _encode_nothing(encoder, size, channels)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(
            f"{setting} gives tiles of {size} pixels, which encoder={encoder.name} cannot take ({why}): increase it or "
            "image_size, or choose another encoder"
        ) from error


@torch.no_grad()
def _encode_nothing(encoder: Encoder, size: int, channels: int) -> None:
    """Encode two black tiles.

    Raises:
        ValueError: a convolution would shrink a single position, and learn nothing.
    """

    def check(layer: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.Conv2d)
        if min(layer.stride) > 1 and max(layer.kernel_size) > 1 and given[0].shape[-2:] == (1, 1):
            raise ValueError("a layer would shrink a single position")

    hooks = [each.register_forward_pre_hook(check) for each in encoder.modules() if isinstance(each, nn.Conv2d)]
    try:
        encoder.eval()(torch.zeros(2, channels, size, size))
    finally:
        encoder.train()
        for hook in hooks:
            hook.remove()
