"""Rotations and flips: which there are, and that nothing but the content tells them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from eagleray.blocks.rotations import eight_rotations, flips, recognise_versions, square_symmetries


def test_the_symmetries_of_the_square_are_a_group_of_eight_that_moves_pixels_alone():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    versions = square_symmetries(image)
    assert len({tuple(each.flatten().tolist()) for each in versions}) == 8
    assert all(each.flatten().sort().values.equal(image.flatten()) for each in versions)
    for first in range(8):
        for second in range(8):
            again = square_symmetries(versions[first])[second]
            assert sum(again.equal(each) for each in versions) == 1
    torch.testing.assert_close(versions[1], image.transpose(2, 3).flip(2))
    torch.testing.assert_close(versions[4], image.flip(3))
    assert all(any(each.equal(other) for other in versions) for each in flips(image))


def test_the_four_flips_are_told_in_their_order():
    image = torch.arange(4.0).view(1, 1, 2, 2)
    assert [each.flatten().tolist() for each in flips(image)] == [
        [0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0],
    ]  # fmt: skip


def angle(image: Tensor) -> float:
    """Return the direction of the brightest part from the centre, in degrees, counter-clockwise from the right."""
    size = image.shape[-1]
    row, column = divmod(int(image.flatten().argmax()), size)
    x, y = column - (size - 1) / 2, (size - 1) / 2 - row
    return float(torch.rad2deg(torch.atan2(torch.tensor(y), torch.tensor(x)))) % 360


def test_eight_rotations_go_counter_clockwise_by_45_degrees():
    axis = torch.arange(65.0) - 32
    spot = torch.exp(-((axis[None] - 12) ** 2 + axis[:, None] ** 2) / 50).view(1, 1, 65, 65)  # to the right
    angles = [angle(each) for each in eight_rotations(spot)]
    assert all(abs((after - before) % 360 - 45) < 3 for before, after in pairwise([*angles, angles[0]]))
    assert min(angles[0], 360 - angles[0]) < 3


def test_eight_rotations_are_bilinear_interpolation():
    """Against scipy's."""
    image = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, found in enumerate(eight_rotations(image[None, None])):
        turn = math.radians(-45 * number)  # of the place looked up, rows going down
        matrix = 0.5**0.5 * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        expected = affine_transform(
            image.numpy(), matrix, np.full(2, 4.0) - matrix @ np.full(2, 4.0), order=1, mode="nearest"
        )
        np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=0, atol=1e-6)


def test_neither_black_corners_nor_a_sharper_image_betrays_a_rotation():
    """A white image stays white, in contrast to one that is rotated whole; all eight see half of the area."""
    assert all(torch.allclose(each, torch.ones(2, 3, 9, 9)) for each in eight_rotations(torch.ones(2, 3, 9, 9)))
    noise = torch.randn(20, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    variances = torch.stack([each.var() for each in eight_rotations(noise)])
    assert float(variances.max()) < 0.75  # none is as sharp as the image itself
    assert float(variances.max() / variances.min()) < 1.2  # of noise, the worst case; unguarded it is 2


def test_right_angles_among_eight_are_exact():
    images = torch.randn(2, 3, 8, 8)
    versions = eight_rotations(images)
    for turns in range(4):
        torch.testing.assert_close(versions[2 * turns], versions[0].rot90(turns, (2, 3)))
        torch.testing.assert_close(versions[2 * turns + 1], versions[1].rot90(turns, (2, 3)))


def test_recognition_is_a_cross_entropy_over_the_versions():
    images = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64)
    versions, seen = flips(images), []

    def encoder(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch.flatten(1)

    result = recognise_versions(encoder, lambda x: x @ weight, versions, "flip")  # pyright: ignore[reportArgumentType]
    losses, right = [], []
    for number, version in enumerate(versions):
        for image in version:
            scores = image.flatten() @ weight
            losses.append(scores.exp().sum().log() - scores[number])
            right.append(float(scores.argmax() == number))
    torch.testing.assert_close(result.loss, torch.stack(losses).mean())
    assert float(result.metrics["flip"]) == pytest.approx(sum(right) / 12)
    assert seen == [12]
    assert [list(each.shape) for each in result.embeddings] == [[3, 4]] * 4
