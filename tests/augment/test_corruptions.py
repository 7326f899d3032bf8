"""Corruptions against SciPy, Pillow and colorsys, and noise against its distribution."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from eagleray.augment.corruptions import CORRUPTIONS, SEVERITIES, Draws, corrupt, plasma

COUNT = 3


def images(side: int, channels: int = 3) -> Tensor:
    """Smooth images with whole bytes."""
    rough = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, channels), dtype=np.uint8)
    smooth = [
        np.stack([np.asarray(Image.fromarray(part).resize((side, side))) for part in np.moveaxis(image, -1, 0)])
        for image in rough
    ]
    return torch.from_numpy(np.stack(smooth)).float() / 255


def corrupted(pixels: Tensor, name: str, severity: int) -> np.ndarray:
    """Corrupt images, [N, S, S, C]."""
    return corrupt(pixels, torch.arange(len(pixels)), name=name, severity=severity, seed=0).movedim(1, -1).numpy()


def draws(name: str) -> Draws:
    return Draws(0, torch.arange(COUNT), name)


def setting(name: str, side: int, severity: int):
    one = CORRUPTIONS[name]
    return (one.small if side <= 64 else one.large)[severity - 1]


@pytest.fixture(params=[(32, 1), (32, 5), (96, 1), (96, 3)], ids=lambda one: f"{one[0]} pixels, severity {one[1]}")
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, Tensor, int]:
    """Return images as [N, S, S, C] and as they are corrupted, and a severity."""
    side, severity = request.param
    pixels = images(side)
    return pixels.movedim(1, -1).double().numpy(), pixels, severity


Case = tuple[np.ndarray, Tensor, int]


def test_noise_has_its_distribution():
    grey = torch.full((4, 3, 64, 64), 0.5)
    for severity, deviation in enumerate(CORRUPTIONS["gaussian_noise"].small, 1):
        noise = corrupted(grey, "gaussian_noise", severity) - 0.5
        assert stats.kstest(noise.ravel(), stats.norm(scale=deviation).cdf).pvalue > 1e-3
    for severity, photons in enumerate(CORRUPTIONS["shot_noise"].small, 1):
        counts = corrupted(grey, "shot_noise", severity) * photons
        np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
        assert counts.mean() == pytest.approx(photons / 2, rel=0.01)
        assert counts.var() == pytest.approx(photons / 2, rel=0.05)
    for severity, share in enumerate(CORRUPTIONS["impulse_noise"].small, 1):
        values = corrupted(grey, "impulse_noise", severity)
        for value in (0, 1):
            assert (values == value).mean() == pytest.approx(share / 2, rel=0.2)
        assert np.isin(values, (0, 0.5, 1)).all()


def test_defocus_is_a_disk(case: Case):
    clean, pixels, severity = case
    radius, deviation = setting("defocus_blur", len(clean[0]), severity)
    y, x = np.mgrid[-12:13, -12:13]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk, deviation, radius=1, mode="constant")
    kernel /= kernel.sum()
    expected = [ndimage.convolve(image, kernel[..., None], mode="mirror") for image in clean]
    np.testing.assert_allclose(corrupted(pixels, "defocus_blur", severity), expected, atol=1e-5)


def test_motion_is_a_line_of_half_a_gaussian(case: Case):
    clean, pixels, severity = case
    radius, deviation = setting("motion_blur", len(clean[0]), severity)
    angles = 90 * (draws("motion_blur").uniform(1)[:, 0].numpy() - 0.5)
    assert len(set(angles)) == COUNT
    reach, weights = 2 * radius, stats.norm.pdf(np.arange(2 * radius + 1), scale=deviation)
    for image, angle, found in zip(clean, angles, corrupted(pixels, "motion_blur", severity), strict=True):
        kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
        for step, weight in enumerate(weights):
            row, column = (
                math.ceil(step * turn - 0.5) for turn in (math.sin(np.radians(angle)), math.cos(np.radians(angle)))
            )
            kernel[reach + row, reach + column] += weight
        expected = ndimage.correlate(image, (kernel / kernel.sum())[..., None], mode="nearest")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_zoom_is_a_mean_of_zooms(case: Case):
    clean, pixels, severity = case
    side, factors = len(clean[0]), np.arange(1, *setting("zoom_blur", len(clean[0]), severity))
    for image, found in zip(clean, corrupted(pixels, "zoom_blur", severity), strict=True):
        total = image.copy()
        for factor in factors:
            part = math.ceil(side / factor)
            top = (side - part) // 2
            middle = image[top : top + part, top : top + part]
            large = np.asarray(ndimage.zoom(middle, (factor, factor, 1), order=1))
            trim = (large.shape[0] - side) // 2
            total += large[trim : trim + side, trim : trim + side]
        np.testing.assert_allclose(found, total / (len(factors) + 1), atol=1e-5)


def test_clouds_are_diamonds_and_squares_point_by_point():
    drawn = np.random.default_rng(0).uniform(-1, 1, (8, 8))
    clouds, step, scale = np.zeros((8, 8)), 8, 1.0
    while step > 1:
        half = step // 2

        def mean(points: list[tuple[int, int]]) -> float:
            return sum(clouds[row % 8, column % 8] for row, column in points) / 4

        for row in range(half, 8, step):
            for column in range(half, 8, step):
                corners = [(row + a, column + b) for a in (-half, half) for b in (-half, half)]
                clouds[row, column] = mean(corners) + scale * drawn[row, column]
        edges = [
            (row, column) for row in range(0, 8, half) for column in range(0, 8, half) if (row + column) // half % 2
        ]
        for row, column in edges:
            around = [(row + half, column), (row - half, column), (row, column + half), (row, column - half)]
            clouds[row, column] = mean(around) + scale * drawn[row, column]
        step, scale = half, scale / 2.5**2
    expected = (clouds - clouds.min()) / np.ptp(clouds)
    np.testing.assert_allclose(plasma(torch.from_numpy(drawn)[None], 2.5)[0].numpy(), expected, atol=1e-12)


def test_fog_lies_over_the_image(case: Case):
    clean, pixels, severity = case
    side = len(clean[0])
    amount, decay = setting("fog", side, severity)
    size = {32: 32, 96: 128}[side]
    clouds = plasma(2 * draws("fog").uniform(size, size) - 1, decay)[:, :side, :side, None].numpy()
    brightest = clean.max((1, 2, 3), keepdims=True)
    expected = (clean + amount * clouds) * brightest / (brightest + amount)
    np.testing.assert_allclose(corrupted(pixels, "fog", severity), expected, atol=1e-5)


def test_brightness_is_the_value_of_hsv(case: Case):
    clean, pixels, severity = case
    more = setting("brightness", len(clean[0]), severity)
    clean[0, 0, 0], pixels[0, :, 0, 0] = 0, 0  # black has no hue
    found = corrupted(pixels, "brightness", severity)
    for pixel, brighter in list(zip(clean.reshape(-1, 3), found.reshape(-1, 3), strict=True))[:: len(clean[0])]:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert brighter == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + more)), abs=1e-5)


def test_contrast_pulls_to_the_mean(case: Case):
    clean, pixels, severity = case
    factor, mean = setting("contrast", len(clean[0]), severity), clean.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(corrupted(pixels, "contrast", severity), mean + factor * (clean - mean), atol=1e-5)


def test_elastic_is_an_affine_map_and_smooth_noise(case: Case):
    clean, pixels, severity = case
    side = len(clean[0])
    strength, deviation, shift = (side * each for each in setting("elastic", side, severity))
    drawn = draws("elastic")
    corners, noise = 2 * drawn.uniform(3, 2).double().numpy() - 1, 2 * drawn.uniform(2, side, side).double().numpy() - 1
    points = side // 2 + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])  # x and y
    rows, columns = np.mgrid[:side, :side]
    for number, found in enumerate(corrupted(pixels, "elastic", severity)):
        moved = np.column_stack([points + shift * corners[number], np.ones(3)])
        back = np.vstack([np.linalg.solve(moved, points).T[::-1, [1, 0, 2]], [0, 0, 1]])  # of row and column
        x, y = (strength * ndimage.gaussian_filter(each, deviation, truncate=3) for each in noise[number])
        for channel in range(3):
            turned = ndimage.affine_transform(clean[number, ..., channel], back, order=1, mode="mirror")
            expected = ndimage.map_coordinates(turned, [rows + y, columns + x], order=1, mode="reflect")
            np.testing.assert_allclose(found[..., channel], expected, atol=2e-4)  # places in float32


def test_pixelate_and_jpeg_are_those_of_pillow(case: Case):
    clean, pixels, severity = case
    side = len(clean[0])
    small, quality = int(side * setting("pixelate", side, severity)), setting("jpeg", side, severity)
    coarse, compressed = (corrupted(pixels, name, severity) for name in ("pixelate", "jpeg"))
    for number, image in enumerate(clean):
        picture = Image.fromarray((255 * image).round().astype(np.uint8))
        box = picture.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
        np.testing.assert_allclose(255 * coarse[number], np.asarray(box), atol=1e-3)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        np.testing.assert_allclose(255 * compressed[number], np.asarray(Image.open(file)), atol=1e-3)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (65, 1)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_by_its_place_and_the_seed_alone(name: str, side: int, channels: int):
    pixels, places = images(side, channels), torch.tensor([4, 9, 2])
    before = pixels.clone()
    for severity in (SEVERITIES[0], SEVERITIES[-1]):
        whole = corrupt(pixels, places, name=name, severity=severity, seed=1)
        assert whole.shape == pixels.shape
        assert 0 <= whole.min() <= whole.max() <= 1
        assert not torch.equal(whole, pixels)
        one = corrupt(pixels[1:2], places[1:2], name=name, severity=severity, seed=1)
        torch.testing.assert_close(one[0], whole[1], atol=1e-6, rtol=0)
    assert torch.equal(pixels, before)
    is_random = name in ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic")
    other = corrupt(pixels, places, name=name, severity=5, seed=2)
    assert torch.equal(other, whole) is not is_random
