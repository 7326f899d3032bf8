"""Tiles: where they are cut, and that what they hide is hidden."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks.tiles import (
    Kernel,
    check_tiles,
    coarsened,
    cut,
    grey,
    kept_channels,
    laid,
    one_channel,
    reordered,
    resampled,
    resampling,
    standardised,
    tile_size,
)
from eagleray.config import load_run
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from method_cases import INFO


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def encoder(*overrides: str) -> Encoder:
    return build_method(load_run(None, [*overrides, "method.hidden=8"]), INFO).encoder


def test_tiles_in_the_middle_of_their_cells_are_slices_of_the_image():
    images = random(2, 3, 32, 32)
    tiles = cut(images, 3, 8)  # cells of 10 pixels from 1 to 31
    expected = [images[:, :, top : top + 8, left : left + 8] for top in (2, 12, 22) for left in (2, 12, 22)]
    torch.testing.assert_close(tiles, torch.stack(expected, 1), rtol=0, atol=0)


@pytest.mark.parametrize(("side", "grid", "size"), [(32, 3, 8), (33, 3, 8), (9, 2, 3), (6, 2, 3)])
def test_laid_tiles_are_where_they_were_cut(side: int, grid: int, size: int):
    tiles = cut(random(2, 3, side, side) + 1, grid, size)
    whole = laid(tiles, side)
    assert torch.equal(cut(whole, grid, size), tiles)
    assert (whole != 0).sum() == tiles.numel()


def test_an_order_is_undone_by_where_its_tiles_went():
    tiles, order = random(2, 4, 1, 2, 2), torch.tensor([[2, 0, 1, 3], [3, 2, 1, 0]])
    moved = reordered(tiles, order)
    assert torch.equal(moved[0, 0], tiles[0, 2])
    assert torch.equal(reordered(moved, order.argsort(1)), tiles)


def test_each_tile_lies_where_its_own_numbers_say():
    images, numbers = random(2, 1, 32, 32), random(2, 9, 2)
    numbers[0, 0], numbers[1, 8] = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.2])
    tiles = cut(images, 3, 8, numbers)  # 0, 1 or 2 pixels from the cell's border
    assert torch.equal(tiles[0, 0], images[0, :, 1:9, 3:11])
    assert torch.equal(tiles[1, 8], images[1, :, 22:30, 21:29])
    assert torch.equal(cut(images, 3, 8, numbers, jitter=0.0), cut(images, 3, 8))


def test_a_jitter_of_half_the_room_stays_around_the_middle():
    images = torch.arange(20.0).expand(1, 1, 20, 20)  # its columns
    first = [cut(images, 1, 12, torch.full((1, 1, 2), u), jitter=0.5)[0, 0, 0, 0, 0] for u in (0.0, 0.5, 0.999)]
    assert first == [2, 4, 6]  # of 0 to 8


def test_a_line_on_the_edge_of_two_cells_does_not_tell_that_they_are_neighbours():
    """Where it is seen differs from image to image, and often it is in neither tile."""
    images = torch.zeros(4000, 1, 30, 30)
    images[:, :, :, 9:11] = 1.0  # the last column of the left cell, the first of the right one
    tiles = cut(images, 3, 8, torch.rand(4000, 9, 2, generator=torch.Generator().manual_seed(0)))
    left, right = tiles[:, 3, 0, :, -1].amax(1) > 0, tiles[:, 4, 0, :, 0].amax(1) > 0
    assert float(left.float().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float((left & right).float().mean()) == pytest.approx(1 / 9, abs=0.02)


def test_a_gradient_of_light_over_the_image_leaves_no_level_in_a_tile():
    images = random(2, 3, 32, 32)
    light = torch.arange(9.0, dtype=torch.float64)[None, :, None, None, None]
    tiles = cut(images, 3, 8)
    torch.testing.assert_close(standardised((1 + light) * tiles + light), standardised(tiles), rtol=1e-4, atol=1e-4)
    flat = standardised(tiles).flatten(2)
    torch.testing.assert_close(flat.mean(2), torch.zeros(2, 9, dtype=torch.float64))
    torch.testing.assert_close(flat.std(2, correction=0), torch.ones(2, 9, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_black_tile_stays_finite():
    assert standardised(torch.zeros(1, 1, 3, 4, 4)).eq(0).all()


def test_a_shift_of_colours_against_each_other_is_not_in_a_tile_of_one_channel():
    """A lens shifts them by an amount that tells the place; whatever the other two channels were is gone."""
    tiles, noise = random(4, 9, 3, 8, 8), random(4, 9, 3, 8, 8) - 0.5
    kept = torch.full((4, 9), 1)
    shifted = tiles.clone()
    shifted[:, :, 0], shifted[:, :, 2] = tiles[:, :, 0].roll(2, -1), tiles[:, :, 2].roll(-2, -1)
    assert not torch.equal(shifted, tiles)
    single = one_channel(tiles, kept, noise)
    assert torch.equal(one_channel(shifted, kept, noise), single)
    assert torch.equal(single[:, :, [0, 2]], noise[:, :, [0, 2]])
    torch.testing.assert_close(
        single[:, :, 1], tiles[:, :, 1] - tiles[:, :, 1].mean((2, 3), keepdim=True), rtol=1e-12, atol=1e-12
    )


def test_a_tile_can_keep_all_its_channels():
    tiles, kept = random(1, 2, 3, 4, 4), torch.tensor([[-1, 0]])
    found = one_channel(tiles, kept, torch.zeros_like(tiles))
    torch.testing.assert_close(found[0, 0], tiles[0, 0] - tiles[0, 0].mean((1, 2), keepdim=True))
    assert found[0, 1, 1:].eq(0).all()


def test_a_coarse_tile_has_no_more_than_its_number_of_pixels():
    tiles = random(1, 3, 2, 8, 8)
    found = coarsened(tiles, torch.tensor([[8, 1, 3]]))
    torch.testing.assert_close(found[0, 0], tiles[0, 0])
    torch.testing.assert_close(found[0, 1], found[0, 1, :, :1, :1].expand(2, 8, 8))
    reduced = F.interpolate(tiles[0, 2:], (3, 3), mode="bilinear", antialias=True)
    torch.testing.assert_close(found[0, 2:], F.interpolate(reduced, (8, 8), mode="bilinear"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "theirs"),
    [
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("area", Image.Resampling.BOX),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_a_picture_is_halved_as_pil_halves_it(kernel: Kernel, theirs: Image.Resampling):
    image = random(16, 16).float()
    expected = torch.tensor(np.array(Image.fromarray(image.numpy()).resize((8, 8), theirs)))
    matrix = resampling(16, 8, kernel)
    torch.testing.assert_close(resampled(image, matrix), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matrix.sum(1), torch.ones(8))


def test_the_size_of_a_tile_is_a_part_of_its_cell():
    assert tile_size(32, 3, 0.8) == 8
    assert tile_size(225, 3, 0.85) == 64  # the jigsaw paper's
    assert tile_size(255, 3, 64 / 85) == 64  # VISSL's
    assert tile_size(8, 3, 0.1) == 1


def test_patches_that_do_not_divide_a_tile_are_refused():
    vit = encoder("encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32", "encoder.patch_size=4")
    check_tiles(vit, 8, 3, "method.tile=0.8")
    with pytest.raises(
        ConfigError, match=r"^method\.tile=0\.7 gives tiles of 6 pixels, which patches of 4 pixels"
    ) as e:
        check_tiles(vit, 6, 3, "method.tile=0.7")
    assert str(e.value).endswith("set encoder.patch_size to 1 or 2 or 3 or 6")


@pytest.mark.parametrize(("network", "size", "enough"), [("convnet", 2, 4), ("resnet18", 4, 8)])
def test_tiles_that_an_encoder_cannot_take_are_refused(network: str, size: int, enough: int):
    taker = encoder(f"encoder={network}")
    check_tiles(taker, enough, 3, "method.tile=0.8")
    assert all(part.training for part in taker.modules())
    with pytest.raises(
        ConfigError, match=rf"^method\.tile=0\.8 gives tiles of {size} pixels, which encoder={network} "
    ):
        check_tiles(taker, size, 3, "method.tile=0.8")


def test_the_check_of_tiles_changes_no_running_statistics():
    taker = encoder("encoder=convnet")
    before = {key: value.clone() for key, value in taker.state_dict().items()}
    check_tiles(taker, 8, 3, "method.tile=0.8")
    assert all(torch.equal(before[key], value) for key, value in taker.state_dict().items())
    assert math.isclose(float(before["blocks.1.running_mean"].sum()), 0)


def test_a_grey_image_shows_one_channel_and_the_share_is_as_said():
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 4, 4, generator=draw)
    found = grey(images, torch.tensor([-1, 0, 1, 2, -1]))
    torch.testing.assert_close(found[[0, 4]], images[[0, 4]])
    for number, channel in ((1, 0), (2, 1), (3, 2)):
        torch.testing.assert_close(found[number], images[number, channel].expand(3, 4, 4))
    kept = kept_channels((10_000,), 0.6, 3, draw)
    shares = [float((kept == channel).double().mean()) for channel in (-1, 0, 1, 2)]
    assert shares == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.02)
