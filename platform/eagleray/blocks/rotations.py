"""Rotations and flips of images, and their recognition as a pretext task."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.contracts.batch import StepResult


def four_rotations(images: Tensor) -> Tensor:
    """Rotate every image by 0, 90, 180, 270 degrees.

    [N, C, S, S] -> [4N, C, S, S], without interpolation.
    """
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate each image by its own number of right angles, [N, C, S, S]."""
    return chosen(four_rotations(images).chunk(4), turns)


def chosen(versions: Sequence[Tensor], which: Tensor) -> Tensor:
    """Return one of its versions of each image: [N, C, S, S] each, [N] -> [N, C, S, S]."""
    return torch.stack(list(versions))[which, torch.arange(len(which), device=which.device)]


def eight_rotations(images: Tensor) -> list[Tensor]:
    """Rotate every image by multiples of 45 degrees.

    [N, C, S, S] -> eight of the same shape. Of each the central square is shown that a rotation by 45 degrees leaves
    whole, half of the area, since black corners would give the angle away. All are enlarged by bilinear interpolation,
    since a blur would, too.
    """
    scale = math.sqrt(0.5)
    shown = []
    for degrees in (0, 45):
        cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
        turn = images.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(turn, list(images.shape), align_corners=False)
        shown.append(F.grid_sample(images, grid, align_corners=False))
    return [torch.rot90(image, turns, (2, 3)) for turns in range(4) for image in shown]


def flips(images: Tensor) -> list[Tensor]:
    """Return images as they are, flipped horizontally, vertically, and both, each [N, C, S, S]."""
    return [images, images.flip(3), images.flip(2), images.flip(2, 3)]


def square_symmetries(images: Tensor) -> list[Tensor]:
    """Return the eight images that a square can be laid down in, each [N, C, S, S].

    The four rotations by right angles, and those of the mirrored image.
    """
    return [*four_rotations(images).chunk(4), *four_rotations(images.flip(3)).chunk(4)]


def recognise_versions(encoder: nn.Module, classifier: nn.Module, versions: Sequence[Tensor], name: str) -> StepResult:
    """Predict which of its versions an image is.

    Args:
        encoder, classifier: images -> features [N, D] -> logits [N, versions].
        versions: of the same images, each [N, C, S, S]; they go through the encoder in one pass.
        name: of the metric, the share that is recognised.
    """
    images = torch.cat(list(versions))
    features = encoder(images)
    targets = torch.arange(len(versions), device=images.device).repeat_interleave(len(versions[0]))
    logits = classifier(features)
    recognised = (logits.detach().argmax(1) == targets).float().mean()
    # The parts are the same images in several versions, like two views under two crops.
    embeddings = list(features.detach().chunk(len(versions)))
    return StepResult(F.cross_entropy(logits, targets), embeddings, {name: recognised})
