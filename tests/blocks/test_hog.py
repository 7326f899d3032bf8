"""HOG: known answers, and the authors' layer written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.blocks.hog import BINS, gradients, histograms, lines


def ramp(degrees: float, side: int = 32, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """An image that gets brighter in one direction, turned from the horizontal: [1, 1, side, side]."""
    down, across = torch.meshgrid(torch.arange(side, dtype=dtype), torch.arange(side, dtype=dtype), indexing="ij")
    angle = math.radians(degrees)
    return (math.cos(angle) * across + math.sin(angle) * down)[None, None] / side


def inner(image: Tensor, cell: int = 8) -> Tensor:
    """The histograms of the cells that no border touches, [cells, 9]."""
    return histograms(image, cell)[0, :, 1:-1, 1:-1].flatten(1).T


def test_a_horizontal_ramp_fills_one_bin():
    found = histograms(ramp(0), 8)
    assert found.shape == (1, 9, 4, 4)
    expected = torch.zeros(9)
    expected[4] = 1  # the middle of nine: the borders of bins are turned by ten degrees against a horizontal gradient
    for histogram in found.flatten(2)[0].T:
        torch.testing.assert_close(histogram, expected)


def test_turning_by_twenty_degrees_moves_one_bin():
    bins = [inner(ramp(20 * turn)) for turn in range(18)]
    first = bins[0].argmax(1)[0].item()
    step = bins[1].argmax(1)[0].item() - first
    assert abs(step) == 1
    for turn, found in enumerate(bins):  # after nine turns it is the opposite gradient, in the first bin again
        expected = torch.zeros(9)
        expected[(first + step * turn) % BINS] = 1
        torch.testing.assert_close(found, expected.expand_as(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vertical_ramp_up_or_down_lies_on_the_border_and_fills_one_bin(dtype: torch.dtype):
    for degrees in (90, -90):
        image = ramp(0, dtype=dtype).transpose(2, 3) * math.copysign(1, degrees)
        assert histograms(image, 8).argmax(1).eq(0).all()


def test_a_flat_image_has_no_gradient_and_its_rounding_none_either():
    assert histograms(torch.full((1, 3, 16, 16), 0.7), 4).abs().max() == 0
    noise = 2e-7 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert histograms(1.5 + noise, 4).norm(dim=1).max() < 0.2
    faint = torch.zeros(1, 1, 16, 16)
    faint[..., 8:] = 1 / 255  # the faintest edge that a picture has
    assert histograms(faint, 4).reshape(9, 4, 4).norm(dim=0)[:, 1:3].allclose(torch.ones(4, 2))


def test_histograms_of_normalised_pixels_are_those_of_raw_ones():
    raw = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(histograms((raw - mean) / std, 4), histograms(raw, 4), rtol=1e-9, atol=1e-12)


def slow(image: np.ndarray, cell: int, window: bool) -> np.ndarray:
    """HOGLayerC of facebookresearch/SlowFast for one image [C, S, S], pixel by pixel: [C, 9, cells, cells]."""
    channels, side, _ = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    smooth = np.array([1, 2, 1])
    line = np.exp(-0.5 * ((np.arange(2 * cell) - (2 * cell - 1) / 2) / cell) ** 2)
    gaussian = np.outer(line, line) / np.outer(line, line).sum()
    found = np.zeros((channels, 9, side // cell, side // cell))
    for channel in range(channels):
        for y in range(side):
            for x in range(side):
                around = padded[channel, y : y + 3, x : x + 3]
                gx, gy = smooth @ (around[:, 0] - around[:, 2]), smooth @ (around[0] - around[2])
                weight = gaussian[y % (2 * cell), x % (2 * cell)] if window else 1.0
                place = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
                found[channel, place, y // cell, x // cell] += math.hypot(gx, gy) * weight
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("side", "channels", "cell", "window"), [(16, 3, 4, True), (12, 1, 2, False), (12, 3, 4, True), (9, 1, 3, True)]
)
def test_histograms_are_the_authors(side: int, channels: int, cell: int, window: bool):
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = histograms(images, cell, window=window).unflatten(1, (channels, 9))
    expected = np.stack([slow(image.numpy(), cell, window) for image in images])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_sobels():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1.0
    across, down = gradients(image)
    assert across[0, 0, 1:4, 1:4].tolist() == [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    assert down.equal(across.transpose(2, 3))


def test_lines_are_drawn_along_edges():
    """A ramp's edges run across it."""
    for turn in range(9):
        angle = math.radians(20 * turn + 10)
        drawn = lines(histograms(ramp(20 * turn + 10, dtype=torch.float64), 8))[0, 0, 9:18, 9:18] + 1
        down, across = drawn.nonzero(as_tuple=True)
        weights, places_of = drawn[down, across], torch.stack([across, down]).double() - 4
        along = weights @ (places_of[1] * math.cos(angle) - places_of[0] * math.sin(angle)).square()
        assert along > 5 * weights @ (places_of[0] * math.cos(angle) + places_of[1] * math.sin(angle)).square()
    assert (lines(torch.zeros(1, 9, 2, 2)) == -1).all()
