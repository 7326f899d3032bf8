"""Features averaged over copies of an image. Loaders of exported encoders contain this text; it needs torch alone."""

from collections.abc import Callable

import torch


def mean_over_copies(
    encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, mirrored: bool, shift: int
) -> torch.Tensor:
    """Encode images, or take the mean over copies of them: [N, C, H, W] -> [N, D], float32.

    Args:
        encode: [N, C, H, W] -> [N, D].
        images: prepared images.
        mirrored: whether the mirror images count too.
        shift: pixels by which copies are moved up, down, left and right, repeating those at the edges; 0: none.
    """
    moved = [images]
    if shift:
        height, width = images.shape[2:]
        padded = torch.nn.functional.pad(images, [shift] * 4, mode="replicate")
        for row, column in ((0, shift), (2 * shift, shift), (shift, 0), (shift, 2 * shift)):
            moved.append(padded[:, :, row : row + height, column : column + width])
    found = [encode(each).float() for one in moved for each in ((one, one.flip(-1)) if mirrored else (one,))]
    return sum(found[1:], found[0]) / len(found)
