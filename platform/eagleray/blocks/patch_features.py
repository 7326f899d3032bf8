"""Features of images without a network.

Distances of whitened patches to k-means centroids.

Source: Coates, Ng, Lee 2011, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, sections 3 and 4,
https://proceedings.mlr.press/v15/coates11a.html; the constants are those of the authors' demo code.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 32  # side in pixels to which larger images are shrunk
IMAGES = 10_000  # training images from which patches are drawn
PATCHES = 200_000  # from all of these images together
SIDE = 6  # of a patch, in pixels
CENTROIDS = 1600
PATCHES_EACH = 50  # patches per centroid, where there are too few for all centroids
CONTRAST = 10.0  # added to the variance of a patch, whose pixels go from 0 to 255
WHITENING = 0.1  # added to the eigenvalues of the patches' covariance
BLOCK = 2**22  # distances computed at a time: 16 MB


@dataclass(frozen=True)
class PatchFeatures:
    """Whitening and centroids of square patches.

    Called with images, it returns their features.
    """

    side: int  # of a patch, in pixels
    mean: Tensor  # [C * side * side] of the patches
    whitening: Tensor  # [C * side * side, the same], symmetric (ZCA)
    centroids: Tensor  # [K, C * side * side] of whitened patches

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute triangle codes, summed over an image's quadrants.

        [N, C, H, W] of 0 to 255 -> [N, 4 * K]. With d the distances of a patch to the centroids, its code is max(0,
        mean(d) - d).
        """
        rows, columns = positions(images, self.side)
        block = max(1, BLOCK // (rows * columns * len(self.centroids)))
        with torch.autocast(images.device.type, enabled=False):  # the difference of two distances needs every digit
            return torch.cat([self._features(each) for each in images.float().split(block)])

    def _features(self, images: Tensor) -> Tensor:
        patches = (image_patches(images, self.side) - self.mean) @ self.whitening
        return quadrant_sums(patches, positions(images, self.side), lambda each: triangle_codes(each, self.centroids))


def side_for(image_size: int) -> int:
    """Return the side of patches, in pixels.

    Six pixels, or less if the image has no room for two next to each other.
    """
    return min(SIDE, image_size - 1)


def positions(images: Tensor, side: int) -> tuple[int, int]:
    """Return the rows and columns of patches in an image."""
    return images.shape[2] - side + 1, images.shape[3] - side + 1


def image_patches(images: Tensor, side: int, places: Tensor | None = None) -> Tensor:
    """Cut out patches and normalise each.

    Each loses its mean and is divided by its contrast. They are all of an image's patches, row by row, or those at
    `places`, int64 [N, P]. [N, C, H, W] of 0 to 255 -> [N, P, D], with D = C * side * side.
    """
    patches = F.unfold(images, side).transpose(1, 2)
    if places is not None:
        patches = patches.take_along_dim(places[:, :, None], 1)
    return normalise_contrast(patches)


def normalise_contrast(patches: Tensor) -> Tensor:
    """Subtract each patch's mean and divide it by its contrast.

    [..., D] of 0 to 255 -> the same shape.
    """
    brightness, contrast = brightness_and_contrast(patches)
    return (patches - brightness) / contrast


def brightness_and_contrast(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each patch and what it is divided by, [..., D] of 0 to 255 -> [..., 1] each."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return mean, (variance + CONTRAST).sqrt()


def whiten(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] of patches [P, D] and the matrix [D, D] that whitens them (ZCA).

    Directions that hardly vary stay small: of the whitened covariance, an eigenvalue v has become v / (v + 0.1).
    """
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T.cov())
    return mean, vectors @ (values.clamp(min=0) + WHITENING).rsqrt().diag() @ vectors.T


def drawn_images(samples: int, generator: torch.Generator) -> Tensor:
    """Draw the training images from which patches are drawn, int64 [at most 10,000]."""
    return torch.randperm(samples, generator=generator)[:IMAGES]


def drawn_patches(batches: Iterable[Tensor], images: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw 200,000 patches, as many of each image, or all that there are.

    Args:
        batches: of images, each [n, C, H, W] of 0 to 255.
        images: in all batches.
        side: of a patch, in pixels.
        generator: draws the places.

    Returns:
        [P, C * side * side].
    """
    each, samples = -(-PATCHES // images), []
    for batch in batches:
        rows, columns = positions(batch, side)
        places = torch.rand(len(batch), rows * columns, generator=generator).argsort(1)[:, :each]
        samples.append(image_patches(batch, side, places.to(batch.device)).flatten(0, 1))
    return torch.cat(samples)


def in_bytes(normalised: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Undo the normalising by each channel's mean and deviation.

    [N, C, H, W] -> the same, of 0 to 255.
    """
    mean, std = (torch.as_tensor(each).to(normalised).view(1, -1, 1, 1) for each in (mean, std))
    return (normalised * std + mean) * 255


def shrunk(images: Tensor) -> Tensor:
    """Shrink images to at most 32 pixels a side.

    [N, C, H, W] -> [N, C, h, w].
    """
    return F.adaptive_avg_pool2d(images, LARGEST) if max(images.shape[-2:]) > LARGEST else images


def triangle_codes(patches: Tensor, centroids: Tensor) -> Tensor:
    """Compute max(0, mean(d) - d), with d the distances of a patch to the centroids.

    [N, P, D], [K, D] -> [N, P, K].
    """
    distances = torch.cdist(patches, centroids)
    return F.relu(distances.mean(2, keepdim=True) - distances)


def quadrant_sums(patches: Tensor, grid: tuple[int, int], code: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum the patches' codes over each of an image's quadrants.

    An odd middle belongs to upper and left. Quadrants are coded in turn, which needs a quarter of the memory.

    Args:
        patches: [N, rows * columns, D].
        grid: rows and columns.
        code: [N, P, D] -> [N, P, K].

    Returns:
        [N, 4 * K].
    """
    placed, (down, right) = patches.unflatten(1, grid), ((number + 1) // 2 for number in grid)
    halves = [
        half for rows in (placed[:, :down], placed[:, down:]) for half in (rows[:, :, :right], rows[:, :, right:])
    ]
    return torch.cat([code(quadrant.flatten(1, 2)).sum(1) for quadrant in halves], 1)


def fit_patch_features(patches: Tensor, side: int, *, seed: int, centroids: int | None = None) -> PatchFeatures:
    """Whiten patches and group them by k-means.

    Args:
        patches: [P, C * side * side], from `image_patches`.
        side: of a patch, in pixels.
        seed: of k-means' random start.
        centroids: how many; None: 1,600, or one for every 50 patches.
    """
    from sklearn.cluster import MiniBatchKMeans

    mean, whitening = whiten(patches)
    count = centroids or min(CENTROIDS, max(1, len(patches) // PATCHES_EACH))
    kmeans = MiniBatchKMeans(count, init="random", batch_size=10_000, compute_labels=False, random_state=seed)
    kmeans.fit(((patches - mean) @ whitening).cpu().numpy())
    return PatchFeatures(side, mean, whitening, torch.from_numpy(kmeans.cluster_centers_).to(patches))
