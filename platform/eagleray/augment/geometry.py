"""Geometry of views.

Crop, resize, shift, flip and blur as two matrices per sample; right-angle turns; cutout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagleray.augment.numbers import Numbers, whole
from eagleray.contracts.view import View

Matrices = tuple[Tensor, Tensor] | None  # rows [N, S, H] and columns [N, S, W]; None: every pixel stays where it is
Kernel = Callable[[Tensor, Tensor], Tensor]  # distances in pixels, and 1 inside or 0 outside the box -> weights


@dataclass(frozen=True)
class Geometry:
    """The parameters of each image's geometry."""

    corner: Tensor  # [2, N] the crop's top and left, whole pixels of the source
    box: Tensor  # [2, N] its height and width
    shift: Tensor  # [2, N] translation, whole pixels of the output
    flip: Tensor  # 1: flipped
    sigma: Tensor  # of the blur, pixels of the output; 0: not blurred
    turns: Tensor  # int64, on the CPU: quarter turns
    cutout: Tensor  # [2, N] centre of the square, whole pixels of the output


def draw(view: View, numbers: Numbers, sizes: Tensor, size: int) -> Geometry:
    """Draw the parameters of images of several sizes.

    `sizes` [N, 2] are heights and widths in pixels; the views are `size` x `size`.
    """
    corner, box = _crop(view, numbers, sizes.t().float())
    most = min(round(view.shift * size), size - 1)
    return Geometry(
        corner=corner,
        box=box,
        shift=whole(numbers["shift"], 2 * most + 1) - most,
        flip=numbers.happens("flip", view.flip),
        sigma=numbers.between("sigma", [view.blur_sigma])[0] * numbers.happens("blur", view.blur),
        turns=((1 + whole(numbers["turns"][0], 3)) * numbers.happens("rotate", view.rotate)).long(),
        cutout=whole(numbers["cutout"], size),
    )


def _crop(view: View, numbers: Numbers, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Draw each crop's corner and box, both [2, N].

    As in RandomResizedCrop, the first attempt that fits.
    """
    if view.crop is None:
        return torch.zeros_like(extent), extent
    (low, high), (narrow, wide) = view.crop, map(math.log, view.crop_ratio)
    area = (numbers["areas"] * (high - low) + low) * extent.prod(0)
    root = (numbers["ratios"] * (wide - narrow) + narrow).div_(2).exp_()  # of the ratio width / height
    side = area.sqrt_()
    boxes = torch.stack([side / root, side * root]).round_()  # [2, ATTEMPTS, N]
    fits = ((boxes > 0) & (boxes <= extent[:, None])).all(0)
    first = fits.float().argmax(0).expand(2, 1, -1)
    box = torch.where(fits.any(0), boxes.gather(1, first)[:, 0], _central_box(view, extent))
    corner = torch.where(fits.any(0), whole(numbers["place"], extent + 1 - box), ((extent - box) / 2).floor_())
    return corner, box


def _central_box(view: View, extent: Tensor) -> Tensor:
    """Return each image's largest box of allowed shape.

    For images where no attempt fits.
    """
    low, high = view.crop_ratio
    height, width = extent.double()  # rounded as Python rounds
    box = torch.stack([height.minimum((width / low).round_()), width.minimum((height * high).round_())])
    return box.clamp_(min=1).float()


def sampling(view: View, drawn: Geometry, sizes: Tensor, size: int) -> Matrices:
    """Return the matrices that crop, resize, shift, flip.

    view = rows @ image @ columns^T. `sizes`: height and width of each image, [N, 2] on the CPU. Without a random crop,
    the shorter side is resized to `size` and the middle is cut out: torchvision's Resize(size) and CenterCrop(size).
    """
    if view.crop is None and not view.shift and not view.flip and bool((sizes == size).all()):
        return None
    pixel = torch.arange(size, dtype=torch.float32, device=drawn.box.device).expand(2, len(drawn.flip), size)
    if view.flip:
        pixel = torch.stack([pixel[0], torch.where(drawn.flip[:, None] > 0, size - 1 - pixel[1], pixel[1])])
    visible = None
    if view.shift:
        pixel = pixel + drawn.shift[:, :, None]
        if view.shift_border == "black":
            visible = ((pixel >= 0) & (pixel < size)).float()[..., None]  # [2, N, S, 1]: 0 behind the border
        pixel = _reflect(pixel, size)
    box, resized = drawn.box, torch.full_like(drawn.box, size)
    if view.crop is None:
        resized = (box.long() * size).div_(box.amin(0).long(), rounding_mode="floor").float()
        pixel = pixel + ((resized - size) / 2).round_()[:, :, None]
    height, width = sizes.amax(0).tolist()
    corner, box, resized = (each[:, :, None] for each in (drawn.corner, box, resized))
    kernel = _cubic if view.interpolation == "bicubic" else _triangle
    weights = _weights(kernel, corner, box, resized, pixel, max(height, width))
    rows, columns = weights if visible is None else weights * visible
    return rows[:, :, :height], columns[:, :, :width]


def _weights(kernel: Kernel, start: Tensor, length: Tensor, resized: Tensor, pixel: Tensor, source: int) -> Tensor:
    """Return each output pixel's weights on source pixels.

    Along both axes: [2, N, S, source]. As in resize(antialias=True), the kernel is as wide as an output pixel and at
    least as a source pixel, cut off at the box (`start`, `length`: [2, N, 1]) and normalised. `pixel` [2, N, S] is the
    place of each output pixel among the `resized` [2, N, 1] pixels of the box.
    """
    scale = length / resized  # source pixels in an output pixel
    steepness = 1 / scale.clamp(min=1)
    centre = (start + (pixel + 0.5) * scale) * steepness  # [2, N, S]
    position = torch.arange(source, dtype=torch.float32, device=start.device)
    inside = ((position >= start) & (position < start + length)).float()[:, :, None]  # [2, N, 1, source]
    distance = ((position + 0.5) * steepness)[:, :, None] - centre[:, :, :, None]
    weights = kernel(distance.abs_(), inside)
    return weights.div_(weights.sum(3, keepdim=True))


def _triangle(distance: Tensor, inside: Tensor) -> Tensor:
    """Weigh by 1 - distance: bilinear."""
    return torch.addcmul(inside, inside, distance.clamp_(max=1), value=-1)


def _cubic(distance: Tensor, inside: Tensor) -> Tensor:
    """Weigh by Keys' cubic with a = -1/2.

    This is bicubic interpolation (1981, equation 4, as PIL and resize(antialias=True)).
    """
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, far).mul_(distance < 2).mul_(inside)


def blurred(matrices: Matrices, sigma: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the matrices, followed by a Gaussian blur.

    The blur is separable and so a matrix on each side.
    """
    blur = blur_matrix(sigma, size)
    return (blur, blur) if matrices is None else (torch.bmm(blur, matrices[0]), torch.bmm(blur, matrices[1]))


def resize(view: View, images: Tensor, matrices: Matrices) -> Tensor:
    """Resample images; clamp where bicubic interpolation overshoots."""
    images = resample(images, matrices)
    return images.clamp_(0, 1) if view.interpolation == "bicubic" else images


def resample(images: Tensor, matrices: Matrices) -> Tensor:
    """Compute rows @ image @ columns^T for each channel.

    [N, C, H, W] -> [N, C, S, S].
    """
    if matrices is None:
        return images
    rows, columns = matrices
    samples, channels, height, width = images.shape
    size = rows.shape[1]
    narrow = torch.bmm(images.reshape(samples, channels * height, width), columns.mT)  # [N, C * H, S]
    each = rows[:, None].expand(samples, channels, size, height).reshape(-1, size, height)
    return torch.bmm(each, narrow.view(-1, height, size)).view(samples, channels, size, size)


def resampled_mean(images: Tensor, matrices: Matrices) -> Tensor:
    """Compute channel means of resampled images, [N, C].

    Equal to the means of `resample(images, matrices)`, but without resampling: both are linear.
    """
    if matrices is None:
        return images.mean((2, 3))
    rows, columns = (matrix.mean(1)[:, None] for matrix in matrices)  # [N, 1, H], [N, 1, W]
    return ((images * columns[:, :, None]).sum(3) * rows).sum(2)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return a Gaussian blur along one axis.

    [N, size, size], with reflected borders; the identity where sigma is 0. The kernel is SimCLR's (2002.05709): a tenth
    of the side, odd; at least 3 pixels, or a small image stays sharp.
    """
    radius = min(max(1, size // 20), size - 1)
    offset = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)  # [K]
    kernel = torch.softmax(-((offset / sigma.clamp(min=1e-3)[:, None]) ** 2) / 2, dim=1)  # [N, K]
    pixel = torch.arange(size, dtype=sigma.dtype, device=sigma.device)
    source = _reflect(pixel + offset[:, None], size)  # [K, S]: the pixel at `offset` from each pixel
    taps = (source[:, :, None] == pixel).to(sigma.dtype)  # [K, S, S]
    return (kernel @ taps.flatten(1)).view(-1, size, size)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside at the outermost pixels.

    These are not repeated; positions may be up to size - 1 outside.
    """
    return (size - 1) - ((size - 1) - position.abs()).abs()


def finish(view: View, images: Tensor, drawn: Geometry) -> None:
    """Turn square images and cut squares out, in place."""
    if view.rotate:  # last, because a turn commutes with all operations before it except RandAugment
        turn(images, drawn.turns)
    if view.cutout:
        cut_out(images, view.cutout, drawn.cutout)


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Turn square images by right angles, counter-clockwise.

    `turns`: 0 to 3 of them, [N] on the CPU. It is exact, pixels only move.
    """
    for quarter in range(1, 4):
        index = (turns == quarter).nonzero()[:, 0].to(images.device, non_blocking=True)
        images[index] = torch.rot90(images[index], quarter, (2, 3))
    return images


def cut_out(images: Tensor, part: float, centre: Tensor) -> Tensor:
    """Zero a square around each centre (Cutout, 1708.04552).

    The side is `part` of the image's; centres are [2, N], and squares are clipped at the borders. The images are
    normalised already, so zero is the mean.
    """
    side = round(part * images.shape[2])
    pixel = torch.arange(images.shape[2], device=images.device) + side // 2
    rows, columns = (pixel >= centre[:, :, None]) & (pixel < centre[:, :, None] + side)  # [N, S] each
    return images.masked_fill_((rows[:, :, None] & columns[:, None])[:, None], 0.0)
