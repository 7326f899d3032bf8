"""Features of images without a network.

Distances of whitened patches to k-means centroids.

Source: Coates, Ng, Lee 2011, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, sections 3 and 4,
https://proceedings.mlr.press/v15/coates11a.html; the constants are those of the authors' demo code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
        rows, columns = images.shape[2] - self.side + 1, images.shape[3] - self.side + 1
        quadrants = _quadrants(rows, columns).to(images)
        block = max(1, BLOCK // (rows * columns * len(self.centroids)))
        with torch.autocast(images.device.type, enabled=False):  # the difference of two distances needs every digit
            return torch.cat([(quadrants @ self._codes(each)).flatten(1) for each in images.float().split(block)])

    def _codes(self, images: Tensor) -> Tensor:
        """Compute all patches' codes, [n, positions, K]."""
        distances = torch.cdist((image_patches(images, self.side) - self.mean) @ self.whitening, self.centroids)
        return distances.neg_().sub_(distances.mean(2, keepdim=True)).clamp_(min=0)


def side_for(image_size: int) -> int:
    """Return the side of patches, in pixels.

    Six pixels, or less if the image has no room for two next to each other.
    """
    return min(SIDE, image_size - 1)


def image_patches(images: Tensor, side: int) -> Tensor:
    """Cut out all patches and normalise each.

    Each loses its mean and is divided by its contrast. [N, C, H, W] of 0 to 255 -> [N, positions, D]
    """
    return normalise_contrast(F.unfold(images, side).transpose(1, 2))


def normalise_contrast(patches: Tensor) -> Tensor:
    """Subtract each patch's mean and divide it by its contrast.

    [..., D] of 0 to 255 -> the same shape.
    """
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (patches - mean) / (variance + CONTRAST).sqrt()


def whiten(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and the whitening matrix [D, D] (ZCA) of patches [P, D]."""
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T.cov())
    return mean, vectors @ (values.clamp(min=0) + WHITENING).rsqrt().diag() @ vectors.T


def fit_patch_features(patches: Tensor, side: int, *, seed: int) -> PatchFeatures:
    """Whiten patches and group them by k-means.

    There are 1,600 groups, or one for every 50 patches.

    Args:
        patches: [P, C * side * side], from `image_patches`.
        side: of a patch, in pixels.
        seed: of k-means' random start.
    """
    from sklearn.cluster import MiniBatchKMeans

    mean, whitening = whiten(patches)
    count = min(CENTROIDS, max(1, len(patches) // PATCHES_EACH))
    kmeans = MiniBatchKMeans(count, init="random", batch_size=10_000, compute_labels=False, random_state=seed)
    kmeans.fit(((patches - mean) @ whitening).cpu().numpy())
    return PatchFeatures(side, mean, whitening, torch.from_numpy(kmeans.cluster_centers_).to(patches))


def _quadrants(rows: int, columns: int) -> Tensor:
    """Return masks of the four quadrants' positions.

    [4, rows * columns]; an odd middle belongs to upper and left.
    """
    is_low, is_right = torch.arange(rows) >= (rows + 1) // 2, torch.arange(columns) >= (columns + 1) // 2
    quadrant = 2 * is_low[:, None] + 1 * is_right
    return F.one_hot(quadrant.flatten(), 4).T.float()
