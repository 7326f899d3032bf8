"""Images of several shapes in one tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Images of several shapes, padded to one.

    Each is in the upper left corner of its place; the padding is never used.
    """

    padded: Tensor  # uint8 [N, C, H, W]: as high as the highest, as wide as the widest
    sizes: Tensor  # int64 [N, 2]: height and width of each

    @classmethod
    def of_one_shape(cls, images: Tensor) -> Self:
        """Return [N, C, H, W] in this form."""
        return cls(images, torch.tensor(images.shape[2:]).expand(len(images), -1))

    def __len__(self) -> int:
        return len(self.padded)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each image, [C, H, W]."""
        for image, (height, width) in zip(self.padded, self.sizes.tolist(), strict=True):
            yield image[:, :height, :width]

    def __getitem__(self, piece: slice) -> "Ragged":
        """Select images, padded no more than they need."""
        sizes = self.sizes[piece]
        height, width = sizes.amax(0).tolist()
        return Ragged(self.padded[piece, :, :height, :width], sizes)

    def repeated(self, times: int) -> "Ragged":
        """Repeat all images, one round after the other."""
        return self if times == 1 else Ragged(self.padded.repeat(times, 1, 1, 1), self.sizes.repeat(times, 1))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Ragged":
        """Move the pixels to a device.

        The sizes stay on the CPU, where they are needed.
        """
        return Ragged(self.padded.to(device, non_blocking=non_blocking), self.sizes)


def coloured(images: Tensor | Ragged, channels: int) -> Tensor | Ragged:
    """Repeat the channel of grey images.

    [N, 1, H, W] -> [N, channels, H, W]; colour images stay as they are.
    """
    if isinstance(images, Ragged):
        return Ragged(images.padded.expand(-1, max(channels, images.padded.shape[1]), -1, -1), images.sizes)
    return images.expand(-1, max(channels, images.shape[1]), -1, -1)
