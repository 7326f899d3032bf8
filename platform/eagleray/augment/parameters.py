"""The random parameters of a batch's views.

Each operation's are drawn in the module that performs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagleray.augment import colour, geometry, randaugment
from eagleray.augment.numbers import WHOLE, Numbers, Share
from eagleray.contracts.view import View


@dataclass(frozen=True)
class Parameters(geometry.Geometry, colour.Colours, randaugment.Choices):
    """Random parameters of N images, [N] or [2, N].

    float32; [2, N] where there is one number for y and one for x.
    """

    def to(self, device: torch.device) -> "Parameters":
        """Move them to a device, except group numbers.

        Those sort images into groups; reading them from a GPU would wait.
        """
        on_cpu = ("order", "turns", "randaugment")
        moved = {name: v if name in on_cpu else v.to(device, non_blocking=True) for name, v in vars(self).items()}
        return Parameters(**moved)

    def __getitem__(self, piece: slice) -> "Parameters":
        """Return the parameters of some of the images."""
        return Parameters(**{name: values[..., piece] for name, values in vars(self).items()})


def joined(parts: Sequence[Parameters]) -> Parameters:
    """Concatenate the parameters of several batches."""
    if len(parts) == 1:
        return parts[0]
    return Parameters(**{name: torch.cat([vars(part)[name] for part in parts], -1) for name in vars(parts[0])})


def draw_parameters(view: View, sizes: Tensor, size: int, seed: tuple[int, ...], share: Share = WHOLE) -> Parameters:
    """Draw the parameters of images of several sizes.

    `sizes` [N, 2] are heights and widths in pixels; the views are `size` x `size`. The images are the `share` (rank,
    workers) of a batch.
    """
    numbers = Numbers(len(sizes), seed, share)
    parts = (geometry.draw(view, numbers, sizes, size), colour.draw(view, numbers), randaugment.draw(view, numbers))
    return Parameters(**{name: values for part in parts for name, values in vars(part).items()})
