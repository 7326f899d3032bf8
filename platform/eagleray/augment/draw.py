"""Draws every random number that a batch of views needs, from a seed alone and before any pixel is touched."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from eagleray.contracts.view import View

Share = tuple[int, int]  # rank and number of the workers that hold a batch in equal parts
WHOLE: Share = (0, 1)
ATTEMPTS = 10  # torchvision's RandomResizedCrop too tries ten boxes before it takes the central one
OPERATIONS = 14  # RandAugment's
ORDERS = torch.tensor(list(permutations(range(4)))).t()  # [4, 24]: the orders of brightness, contrast, saturation, hue
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # the factors that change nothing
_COLUMNS = (ATTEMPTS, ATTEMPTS, 2, 6, 5, 2, 2, 1, 1)  # how many numbers a sample draws for what, see `draw`


@dataclass(frozen=True)
class Parameters:
    """What happens to each of N samples: float32 [N], and [2, N] where there is one for y and one for x.

    The last three sort the samples into groups. They stay on the CPU: to ask a GPU for them would mean waiting for it.
    """

    corner: Tensor  # [2, N] the crop's top and left, whole pixels of the source
    box: Tensor  # [2, N] its height and width
    shift: Tensor  # [2, N] translation, whole pixels of the output
    flip: Tensor  # 1: flipped
    brightness: Tensor  # factors; 1, 1, 1, 0 where the sample is not jittered
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # part of the colour circle
    grayscale: Tensor  # 1: colour dropped
    sigma: Tensor  # of the blur, pixels of the output; 0: not blurred
    solarize: Tensor  # 1: solarized
    cutout: Tensor  # [2, N] centre of the square, whole pixels of the output
    order: Tensor  # [4, N] int64: the jitter's operations in their order, -1 where the sample is not jittered
    turns: Tensor  # int64: quarter turns
    randaugment: Tensor  # [operations, 2, N]: which of the 14 operations, and its sign

    def to(self, device: torch.device) -> "Parameters":
        """The same on a device."""
        stay = ("order", "turns", "randaugment")
        moved = {name: v if name in stay else v.to(device, non_blocking=True) for name, v in vars(self).items()}
        return Parameters(**moved)

    def __getitem__(self, piece: slice) -> "Parameters":
        """Those of some of the samples."""
        return Parameters(**{name: values[..., piece] for name, values in vars(self).items()})


def joined(parts: Sequence[Parameters]) -> Parameters:
    """The parameters of several batches, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Parameters(**{name: torch.cat([vars(part)[name] for part in parts], -1) for name in vars(parts[0])})


def draw(view: View, sizes: Tensor, size: int, seed: tuple[int, ...], share: Share = WHOLE) -> Parameters:
    """The parameters of images of `sizes` [N, 2], height and width in pixels, that become `size` x `size`.

    Each parameter has its own column of uniform numbers, drawn whether it is used or not: to change one operation
    leaves all others as they were, so a sweep compares like with like. Sample i depends on the seed and i alone. A
    worker draws the numbers of the whole batch, which are few, and keeps those of its own rows.
    """
    samples, extent = len(sizes), sizes.t().float()
    uniform = _uniform(samples, sum(_COLUMNS), seed, share, b"view")
    areas, ratios, place, chance, span, shift, cutout, order, turns = uniform.t().contiguous().split(_COLUMNS)

    box = _box(view, areas, ratios, extent)
    probabilities = (view.flip, view.jitter_probability, view.grayscale, view.blur, view.solarize, view.rotate)
    flip, jittered, grayscale, blurred, solarize, rotated = (chance < _column(probabilities)).float()
    low, high = torch.tensor([*_jitter_spans(view), view.blur_sigma]).t()[:, :, None]  # each [5, 1]
    *factors, sigma = span * (high - low) + low
    factors = (torch.where(jittered > 0, factor, still) for factor, still in zip(factors, _NEUTRAL, strict=True))
    most = min(round(view.shift * size), size - 1)
    return Parameters(
        corner=_whole(place, extent + 1 - box),
        box=box,
        shift=_whole(shift, 2 * most + 1) - most,
        flip=flip,
        **dict(zip(("brightness", "contrast", "saturation", "hue"), factors, strict=True)),
        grayscale=grayscale,
        sigma=sigma * blurred,
        solarize=solarize,
        cutout=_whole(cutout, size),
        order=torch.where(jittered > 0, ORDERS[:, _whole(order[0], ORDERS.shape[1]).long()], -1),
        turns=((1 + _whole(turns[0], 3)) * rotated).long(),
        randaugment=_operations(view, samples, seed, share),
    )


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def _uniform(samples: int, numbers: int, seed: tuple[int, ...], share: Share, purpose: bytes) -> Tensor:
    """[samples, numbers] in 0..1. A hash makes the seed: those of neighbouring tuples would else be near each other."""
    rank, world = share
    digest = hashlib.blake2b(repr(tuple(map(int, seed))).encode(), digest_size=8, person=purpose).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(world * samples, numbers, generator=generator)[rank * samples : (rank + 1) * samples]


def _whole(u: Tensor, count: Tensor | int) -> Tensor:
    """One of 0 … count - 1. The product may round up to `count` itself, once in 10^7 draws."""
    return (u * count).floor_().clamp_(max=count - 1)


def _box(view: View, areas: Tensor, ratios: Tensor, extent: Tensor) -> Tensor:
    """Height and width of each crop, [2, N]: the first attempt that fits, as torchvision's RandomResizedCrop."""
    if view.crop is None:
        return extent
    (low, high), (narrow, wide) = view.crop, map(math.log, view.crop_ratio)
    area = (areas * (high - low) + low) * extent.prod(0)
    root = (ratios * (wide - narrow) + narrow).div_(2).exp_()  # of the ratio width / height
    side = area.sqrt_()
    boxes = torch.stack([side / root, side * root]).round_()  # [2, ATTEMPTS, N]
    fits = ((boxes > 0) & (boxes <= extent[:, None])).all(0)
    first = fits.float().argmax(0).expand(2, 1, -1)
    return torch.where(fits.any(0), boxes.gather(1, first)[:, 0], _central_box(view, extent))


def _central_box(view: View, extent: Tensor) -> Tensor:
    """The largest box of an allowed shape for each extent, for the samples of which no attempt fits."""
    low, high = view.crop_ratio
    height, width = extent.double()  # rounded as Python rounds
    box = torch.stack([height.minimum((width / low).round_()), width.minimum((height * high).round_())])
    return box.clamp_(min=1).float()


def _jitter_spans(view: View) -> list[tuple[float, float]]:
    """Lowest and highest brightness, contrast, saturation and hue, as torchvision's ColorJitter."""
    *factors, hue = (view.jitter * scale for scale in view.jitter_scale)
    return [*((max(0.0, 1 - spread), 1 + spread) for spread in factors), (-hue, hue)]


def _operations(view: View, samples: int, seed: tuple[int, ...], share: Share) -> Tensor:
    operations = view.randaugment[0] if view.randaugment else 0
    uniform = _uniform(samples, 2 * operations, seed, share, b"randaugment")
    choice, sign = uniform.t().contiguous().view(2, operations, samples)
    return torch.stack([_whole(choice, OPERATIONS), torch.where(sign < 0.5, -1.0, 1.0)], dim=1)
