"""Held against a slow transcription of Coates, Ng and Lee (2011), loop for loop."""

import numpy as np
import pytest
import torch

from eagleray.blocks import patch_features
from eagleray.blocks.patch_features import PatchFeatures, fit_patch_features, image_patches, side_for


def slow_patches(image: np.ndarray, side: int) -> np.ndarray:
    """[C, H, W] -> [rows, columns, C * side * side], each less its mean, over its standard deviation + 10."""
    rows, columns = image.shape[1] - side + 1, image.shape[2] - side + 1
    found = np.empty((rows, columns, image.shape[0] * side * side))
    for y in range(rows):
        for x in range(columns):
            patch = image[:, y : y + side, x : x + side].reshape(-1)
            found[y, x] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
    return found


def slow_features(image: np.ndarray, made: PatchFeatures) -> np.ndarray:
    """The four quadrants' sums of max(0, mean distance - distance)."""
    patches = slow_patches(image, made.side)
    mean, whitening, centroids = (each.double().numpy() for each in (made.mean, made.whitening, made.centroids))
    codes = np.empty((*patches.shape[:2], len(centroids)))
    for y, x in np.ndindex(codes.shape[:2]):
        distances = np.array([np.linalg.norm((patches[y, x] - mean) @ whitening - each) for each in centroids])
        codes[y, x] = np.maximum(0, distances.mean() - distances)
    down, right = round(codes.shape[0] / 2 + 1e-9), round(codes.shape[1] / 2 + 1e-9)
    quadrants = [codes[:down, :right], codes[:down, right:], codes[down:, :right], codes[down:, right:]]
    return np.concatenate([each.sum((0, 1)) for each in quadrants])


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "size"), [(3, 13), (3, 14), (1, 8), (1, 4)])
def test_features_are_those_of_the_paper(channels: int, size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patch_features, "BLOCK", 2000)  # several blocks
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, channels, size, size), generator=draw).float()
    side = side_for(size)
    made = fit_patch_features(image_patches(images, side).flatten(0, 1), side, seed=0)
    features = made(images[:5])
    assert features.shape == (5, 4 * len(made.centroids))
    expected = np.stack([slow_features(image.double().numpy(), made) for image in images[:5]])
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-3, atol=1e-3)
    assert (features > 0).any(1).all()


def test_whitened_patches_are_white_but_for_the_directions_that_hardly_vary():
    """Of the whitened covariance, an eigenvalue v has become v / (v + 0.1)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 9, 9), generator=draw).float()
    patches = image_patches(images, 6).flatten(0, 1)
    made = fit_patch_features(patches, 6, seed=0)
    before, after = (
        np.linalg.eigvalsh(np.cov(each.double().numpy().T))
        for each in (patches, (patches - made.mean) @ made.whitening)
    )
    np.testing.assert_allclose(after, before / (before + 0.1), atol=1e-4)
    assert torch.allclose(made.whitening, made.whitening.T, atol=1e-5)


def test_centroids_are_where_patches_are_and_as_many_as_patches_allow():
    draw = torch.Generator().manual_seed(0)
    middles = 5 * torch.randn(4, 9, generator=draw)
    patches = (middles.repeat(60, 1) + 0.01 * torch.randn(240, 9, generator=draw)).contiguous()
    made = fit_patch_features(patches, 3, seed=0)
    assert len(made.centroids) == 4  # one for every 50 patches
    white = (middles - made.mean) @ made.whitening
    assert torch.cdist(white, made.centroids).min(1).values.max() < 0.2
    assert torch.equal(made.centroids, fit_patch_features(patches, 3, seed=0).centroids)


def test_a_flat_patch_has_no_contrast_and_no_nan():
    assert image_patches(torch.full((1, 3, 8, 8), 200.0), 6).abs().max() == 0
    assert [side_for(size) for size in (32, 8, 7, 6, 4)] == [6, 6, 6, 5, 3]
