"""One layer on whitened patches of images: what k-means and sparse coding train.

Source: Coates, Ng, Lee 2011, An Analysis of Single-Layer Networks in Unsupervised Feature Learning,
https://proceedings.mlr.press/v15/coates11a.html
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.losses import precise
from eagleray.blocks.patch_features import (
    LARGEST,
    brightness_and_contrast,
    drawn_images,
    drawn_patches,
    image_patches,
    in_bytes,
    normalise_contrast,
    positions,
    quadrant_sums,
    shrunk,
    side_for,
    triangle_codes,
)
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.seeds import generator

Code = Literal["triangle", "shrinkage"]


class PatchCodes(nn.Module):
    """Whitening of patches, and a dictionary that codes them.

    Args:
        code: how, see `codes`.
        width: K, rows of the dictionary.
        image_size, channels: of the images; larger ones than 32 pixels are shrunk.
    """

    mean: Tensor  # [D] of patches, D = channels * side * side
    whitening: Tensor  # [D, D]
    pixel_mean: Tensor  # [C] of images, scaled to 0..1
    pixel_std: Tensor

    def __init__(self, code: Code, width: int, image_size: int, channels: int):
        super().__init__()
        self.side = side_for(min(LARGEST, image_size))
        inputs = channels * self.side**2
        self.dictionary = nn.Parameter(F.normalize(torch.randn(width, inputs), dim=1))  # [K, D]
        self.threshold = nn.Parameter(torch.full((width,), 0.5)) if code == "shrinkage" else None  # [K]
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("whitening", torch.eye(inputs))
        self.register_buffer("pixel_mean", torch.full((channels,), 0.5))
        self.register_buffer("pixel_std", torch.full((channels,), 0.25))

    def patches_in(self, image_size: int) -> int:
        """Return the number of patches in an image."""
        return (min(LARGEST, image_size) - self.side + 1) ** 2

    @torch.no_grad()
    def set_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set what images are normalised with, as the contrast of a patch is measured in pixels of 0 to 255."""
        self.pixel_mean.copy_(self.pixel_mean.new_tensor(mean))
        self.pixel_std.copy_(self.pixel_std.new_tensor(std))

    def sample(self, images: Callable[[Tensor], Iterable[Tensor]], samples: int, seed: int) -> Tensor:
        """Draw patches of the training images for a fit, [P, D], not yet whitened.

        Args:
            images: `EpochView.images`.
            samples: number of training images.
            seed: of the run; the floor `kmeans` draws the same patches.
        """
        draw = generator(seed, purpose="patches")
        chosen = drawn_images(samples, draw)
        return drawn_patches(map(self.pixels, images(chosen)), len(chosen), self.side, draw)

    def draw(self, images: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw whitened patches of this worker's images, [N, C, H, W] -> [N, count, D].

        The generator draws the places for the images of all workers.
        """
        pixels = self.pixels(images)
        rows, columns = positions(pixels, self.side)
        places = torch.randint(rows * columns, (world_size() * len(images), count), generator=generator)
        return self.whitened(image_patches(pixels, self.side, own_rows(places).to(images.device)))

    def codes(self, patches: Tensor) -> Tensor:
        """Code whitened patches x, [N, P, D] -> [N, P, K].

        With c a row of the dictionary, triangle: max(0, mean |x - c| - |x - c|), the mean over all rows; shrinkage:
        sign(c·x) max(0, |c·x| - threshold).
        """
        if self.threshold is None:
            return triangle_codes(patches, self.dictionary)
        return shrink(patches @ self.dictionary.T, self.threshold)

    @property
    def dim(self) -> int:
        """Number of features."""
        return 4 * len(self.dictionary) * (1 if self.threshold is None else 2)

    def forward(self, images: Tensor) -> Tensor:
        """Sum codes over each quadrant, divided by a quarter of the patches; of shrinkage, both signs apart.

        [N, C, H, W] -> [N, dim].
        """
        with full_precision(images):
            pixels = self.pixels(images)
            rows, columns = positions(pixels, self.side)
            patches = self.whitened(image_patches(pixels, self.side))
            code = self.codes if self.threshold is None else lambda each: signs_apart(self.codes(each))
            return quadrant_sums(patches, (rows, columns), code) * (4 / (rows * columns))

    def pixels(self, images: Tensor) -> Tensor:
        """Return the pixels of normalised images, [N, C, h, w] of 0 to 255, shrunk."""
        return shrunk(in_bytes(precise(images), self.pixel_mean, self.pixel_std))

    def whitened(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) @ self.whitening

    def unwhitened(self, patches: Tensor) -> Tensor:
        """Undo `whitened`: patches without their brightness and contrast, [..., D]."""
        return torch.linalg.solve(self.whitening, patches, left=False) + self.mean

    def shaped(self, patches: Tensor) -> Tensor:
        """Return patches as small images, [..., D] -> [..., C, side, side]."""
        return patches.unflatten(-1, (-1, self.side, self.side))

    def rebuilt(self, images: Tensor, approximate: Callable[[Tensor], Tensor]) -> Tensor:
        """Rebuild images from what approximates their whitened patches, [N, P, D] -> the same.

        Each patch gets back its brightness and contrast, which are in no code; pixels are the mean of the patches that
        cover them. [N, C, H, W] -> [N, C, h, w], shrunk.
        """
        pixels = self.pixels(images)
        patches = F.unfold(pixels, self.side).mT
        brightness, contrast = brightness_and_contrast(patches)
        found = self.unwhitened(approximate(self.whitened(normalise_contrast(patches)))) * contrast + brightness
        sums, counts = (F.fold(each.mT, pixels.shape[-2:], self.side) for each in (found, torch.ones_like(found)))
        return (sums / counts / 255 - self.pixel_mean.view(-1, 1, 1)) / self.pixel_std.view(-1, 1, 1)


def signs_apart(codes: Tensor) -> Tensor:
    """Return max(0, codes) and max(0, -codes), [..., K] -> [..., 2 * K].

    Sums of |codes| would be the same of a patch and its negative (both signs are also kept by Coates, Ng 2011, The
    Importance of Encoding Versus Training with Sparse Coding and Vector Quantization).
    """
    return torch.cat([codes.relu(), (-codes).relu()], -1)


def layer_of(encoder: Encoder) -> PatchCodes:
    """Return the layer of `encoder=triangle_codes` or `shrinkage_codes`."""
    layer = encoder.layer
    assert isinstance(layer, PatchCodes), "a method that trains a dictionary names its encoder: `only_encoder`"
    return layer


def full_precision(images: Tensor) -> AbstractContextManager:
    """Leave autocast: the difference of two distances needs every digit. An exported graph has no place for it."""
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(images.device.type, enabled=False)


def shrink(x: Tensor, threshold: Tensor | float) -> Tensor:
    """Move numbers towards 0 by a threshold, those within it to 0."""
    return x.sign() * F.relu(x.abs() - threshold)
