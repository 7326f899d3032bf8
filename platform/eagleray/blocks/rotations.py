"""Right-angle rotations of images."""

import torch
from torch import Tensor


def four_rotations(images: Tensor) -> Tensor:
    """Rotate every image by 0, 90, 180, 270 degrees.

    [N, C, S, S] -> [4N, C, S, S], without interpolation.
    """
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate each image by its own number of right angles, [N, C, S, S]."""
    all_turns = torch.stack([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    return all_turns[turns, torch.arange(len(images), device=images.device)]
