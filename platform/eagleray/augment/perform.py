"""Computes the declared views of a batch.

On the images' device, each sample with its own parameters.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from eagleray.augment import colour, geometry
from eagleray.augment.numbers import WHOLE, Share
from eagleray.augment.parameters import Parameters, draw_parameters, joined
from eagleray.augment.randaugment import randaugment
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ragged import Ragged
from eagleray.contracts.view import View

CACHED_FLOATS = 200_000  # a piece of a batch on a CPU: 65 images of 32 x 32 in colour, 1 of 224 x 224


def make_view(
    view: View,
    images: Tensor | Ragged,
    *,
    size: int,
    seed: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
    exact: bool = False,
) -> Tensor:
    """Compute one view of every image.

    The fast path computes crop, resize, shift, flip and blur as two matrix products, and the colours as one affine
    map. So blur comes before jitter there, which changes nothing since both are linear and the blur's weights sum to 1
    (contrast still pulls to the mean of the unblurred view). It differs from torchvision's chain in the clamps
    between colour operations and in hue (see `colour.fused`). `exact=True` runs torchvision's chain itself, and so do
    views with RandAugment, whose operations cannot be fused.

    Args:
        view: the operations.
        images: uint8 [N, C, H, W], C is 1 (grey) or 3 (colour); grey images have no saturation and no hue. Images
            of several shapes are each cropped within their own shape.
        size: side of the output, unless the view has its own.
        seed: determines the parameters alone: neither the device nor torch's global state matters.
        mean: of each channel, images scaled to 0..1.
        std: of each channel, likewise.
        exact: use torchvision's chain, sample by sample in random order, without approximation.

    Returns:
        float32 [N, C, size, size], normalised, contiguous, on the images' device.

    Raises:
        ConfigError: images of another kind, or a mean or std that does not match their channels.
    """
    return _perform(view, images, [seed], size=size, mean=mean, std=std, exact=exact)[0]


def make_views(
    views: Sequence[View],
    images: Tensor | Ragged,
    *,
    size: int,
    seed: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
    exact: bool = False,
    share: Share = WHOLE,
    rows: Sequence[int] | None = None,
) -> list[Tensor]:
    """Compute every view of every image.

    Each is `make_view` with the view's index added to the seed. Equal consecutive views (the small crops of multi-crop)
    are computed in one pass. If the images are the `share` (rank, workers) of a batch, their views are bitwise those
    rows of the views of the whole batch. With `rows`, only these images have views, the same to the bit.
    """
    results: list[Tensor] = []
    for view, places in groupby(range(len(views)), key=views.__getitem__):
        seeds = [(*seed, index) for index in places]
        results += _perform(view, images, seeds, size=size, mean=mean, std=std, exact=exact, share=share, rows=rows)
    return results


def crop_boxes(
    views: Sequence[View], images: Tensor | Ragged, *, size: int, seed: tuple[int, ...], share: Share = WHOLE
) -> list[Tensor]:
    """Return the part of each image that each view shows.

    Arguments as `make_views`, whose views these are.

    Returns:
        For each view int64 [N, 4]: top, left, height and width in pixels of the image.
    """
    sizes = (images if isinstance(images, Ragged) else Ragged.of_one_shape(images)).sizes
    drawn = (draw_parameters(view, sizes, view.size or size, (*seed, n), share) for n, view in enumerate(views))
    return [torch.cat([each.corner, each.box]).t().long() for each in drawn]


def evaluation_view(images: Tensor | Ragged, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute the view for evaluation; nothing is random.

    The shorter side is resized, the middle cut out and normalised. uint8 [N, C, H, W] -> float32 [N, C, size, size].
    Raises as `make_view`.
    """
    return make_view(View(), images, size=size, seed=(), mean=mean, std=std)


@torch.no_grad()
def _perform(
    view: View,
    images: Tensor | Ragged,
    seeds: Sequence[tuple[int, ...]],
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    exact: bool,
    share: Share = WHOLE,
    rows: Sequence[int] | None = None,
) -> Sequence[Tensor]:
    """Compute one view of every image for each seed."""
    images = images if isinstance(images, Ragged) else Ragged.of_one_shape(images)
    _check(images.padded, mean, std)
    size, device = view.size or size, images.padded.device
    drawn = joined([draw_parameters(view, images.sizes, size, seed, share) for seed in seeds]).to(device)
    wanted = None if rows is None else {row + len(images) * n for row in rows for n in range(len(seeds))}
    images = images.repeated(len(seeds))
    output = torch.empty(len(images), len(mean), size, size, device=device)
    offset, scale = (torch.tensor(values).to(device, non_blocking=True).view(-1, 1, 1) for values in (mean, std))
    perform = _exact if exact or view.randaugment else _fast
    with torch.autocast(device.type, enabled=False):  # bf16 is too coarse for shades of colour
        for piece in _pieces(images, size):
            if wanted is not None and wanted.isdisjoint(range(len(images))[piece]):
                continue  # whole pieces are computed, as arithmetic may round differently in smaller ones
            part = images[piece]
            pixels = part.padded.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            result = perform(view, pixels, part.sizes, drawn[piece], size)
            result = colour.finish(view, result, drawn[piece])
            torch.sub(result, offset, out=output[piece]).div_(scale)
    geometry.finish(view, output, drawn)
    return output.chunk(len(seeds)) if rows is None else [views[rows] for views in output.chunk(len(seeds))]


def _check(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ConfigError(
            "views are made of uint8 images [N, C, H, W] with 1 or 3 channels and at least one pixel, not of "
            f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    if not len(mean) == len(std) == images.shape[1]:
        raise ConfigError(f"images of {images.shape[1]} channels need as many means and stds, not {mean} and {std}")


def _pieces(images: Ragged, size: int) -> list[slice]:
    """Split the batch into pieces, on a CPU.

    Their intermediate tensors stay in its cache and in its allocator. If the allocator returns freed memory to the
    system (as in a young process), whole batches take twice as long.
    """
    samples, channels = images.padded.shape[:2]
    area = max(int(images.sizes.prod(1).sum()) // max(1, samples), size * size)
    step = max(1, CACHED_FLOATS // (channels * area)) if images.padded.device.type == "cpu" else max(1, samples)
    return [slice(start, start + step) for start in range(0, samples, step)]


def _fast(view: View, pixels: Tensor, sizes: Tensor, drawn: Parameters, size: int) -> Tensor:
    matrices = geometry.sampling(view, drawn, sizes, size)
    recolour = view.jitter or view.grayscale
    mean = geometry.resampled_mean(pixels, matrices) if recolour else None
    if view.blur:
        matrices = geometry.blurred(matrices, drawn.sigma, size)
    images = geometry.resize(view, pixels, matrices)
    return images if mean is None else colour.fused(images, mean, drawn)


def _exact(view: View, pixels: Tensor, sizes: Tensor, drawn: Parameters, size: int) -> Tensor:
    images = geometry.resize(view, pixels, geometry.sampling(view, drawn, sizes, size))
    if view.randaugment:
        images = randaugment(images, view.randaugment[1], drawn.randaugment)
    if view.jitter:
        images = colour.jitter(images, drawn)
    if view.grayscale:
        images = colour.grayscale(images, drawn)
    return geometry.resample(images, geometry.blurred(None, drawn.sigma, size)) if view.blur else images
