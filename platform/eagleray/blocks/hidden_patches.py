"""Hidden patches of images: how many, which ones, and what an encoder makes of the rest."""

import torch
from torch import Tensor

from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.masking import block_masks
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError

TRIED = 50  # rectangles tried for an image; the last one that fits comes long before


def count_hidden(ratio: float, patches: int) -> int:
    """Return the number of patches that `method.mask_ratio` hides.

    Raises:
        ConfigError: it hides none or all.
    """
    hidden = round(ratio * patches)
    if hidden == 0:
        raise ConfigError(
            f"method.mask_ratio={ratio} hides none of {patches} patches: increase it, or use smaller patches with "
            "encoder.patch_size"
        )
    if hidden == patches:
        raise ConfigError(
            f"method.mask_ratio={ratio} hides all of {patches} patches: decrease it, or use smaller patches with "
            "encoder.patch_size"
        )
    return hidden


def draw_blocks(images: int, grid: int, hidden: int, generator: torch.Generator) -> Tensor:
    """Draw the places of hidden patches, in rectangles.

    They are BEiT's (2106.08254, algorithm 1). Where no further rectangle fits, single patches are added, so that every
    image hides the same number: then the mean over hidden patches does not depend on the number of workers.

    Args:
        images: of this worker.
        grid: patches along a side.
        hidden: patches to hide in each image.
        generator: the same on all workers.

    Returns:
        [images, hidden] int64, this worker's rows, in any order.
    """
    numbers = own_rows(torch.rand(world_size() * images, 4 * TRIED + grid**2, generator=generator))
    rectangles, singles = numbers.split([4 * TRIED, grid**2], 1)
    blocks = block_masks(torch.full((images,), float(hidden)), grid, rectangles.T.unflatten(0, (TRIED, 4)))
    return (blocks + singles).argsort(1, descending=True)[:, :hidden]  # all of the blocks, then single patches


def encode_rest(encoder: TokenEncoder, images: Tensor, places: Tensor, mask_token: Tensor) -> Tensor:
    """Encode images whose patches at `places` are replaced by the mask token.

    [N, C, S, S], [N, K], [dim] -> [N, 1 + L, dim], class token first.
    """
    hidden = torch.zeros(len(images), encoder.grid**2, dtype=torch.bool, device=images.device)
    return encoder.tokens(encoder.patches(images, hidden.scatter(1, places, True), mask_token))
