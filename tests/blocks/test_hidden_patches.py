"""Hidden patches: their number, their shape, and that every worker draws its own rows of one drawing."""

import pytest
import torch

from eagleray.blocks import distributed, hidden_patches
from eagleray.blocks.hidden_patches import TRIED, count_hidden, draw_blocks, encode_rest
from eagleray.blocks.masking import block_masks
from eagleray.config.registry import find
from eagleray.contracts.errors import ConfigError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_masks(places: torch.Tensor, grid: int) -> torch.Tensor:
    return torch.zeros(len(places), grid**2, dtype=torch.bool).scatter(1, places, True)


@pytest.mark.parametrize(("ratio", "patches", "hidden"), [(0.4, 196, 78), (0.61, 196, 120), (0.5, 4, 2), (0.4, 64, 26)])
def test_numbers_of_hidden_patches_are_those_of_the_papers(ratio: float, patches: int, hidden: int):
    assert count_hidden(ratio, patches) == hidden


def test_hiding_none_or_all_is_refused():
    with pytest.raises(ConfigError, match=r"^method\.mask_ratio=0\.4 hides none of 1 patches: .* encoder\.patch_size$"):
        count_hidden(0.4, 1)
    with pytest.raises(ConfigError, match=r"^method\.mask_ratio=0\.9 hides all of 4 patches: decrease it"):
        count_hidden(0.9, 4)


@pytest.mark.parametrize(("grid", "hidden"), [(14, 78), (14, 120), (8, 26), (4, 6), (2, 1), (2, 3)])
def test_exactly_so_many_patches_are_hidden_in_every_image(grid: int, hidden: int):
    masks = as_masks(draw_blocks(200, grid, hidden, seeded()), grid)
    assert (masks.sum(1) == hidden).all()
    assert len(masks.unique(dim=0)) > 1


def test_blocks_are_hidden_whole_and_single_patches_only_fill_up():
    places = draw_blocks(300, 8, 26, seeded())
    numbers = torch.rand(300, 4 * TRIED + 64, generator=seeded())[:, : 4 * TRIED]
    blocks = block_masks(torch.full((300,), 26.0), 8, numbers.T.unflatten(0, (TRIED, 4)))
    masks = as_masks(places, 8)
    assert (masks | blocks).equal(masks)
    filled = (masks & ~blocks).sum(1)
    assert 0 < filled.float().mean() < 26 / 4


def test_hidden_patches_touch_more_often_than_random_ones():
    def neighbours(masks: torch.Tensor) -> float:
        grids = masks.unflatten(1, (8, 8))
        return (grids[:, 1:] & grids[:, :-1]).float().mean().item()

    blocks = as_masks(draw_blocks(300, 8, 26, seeded()), 8)
    single = as_masks(torch.rand(300, 64, generator=seeded()).argsort(1)[:, :26], 8)
    assert neighbours(blocks) > 1.4 * neighbours(single)


def test_workers_hide_what_one_process_hides(monkeypatch: pytest.MonkeyPatch):
    whole = draw_blocks(6, 8, 26, seeded())
    parts = []
    for rank in range(3):
        for module in (distributed, hidden_patches):
            monkeypatch.setattr(module, "world_size", lambda: 3)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(draw_blocks(2, 8, 26, seeded()))
    assert torch.cat(parts).equal(whole)


def test_hidden_patches_do_not_reach_the_encoder():
    kind = find("encoder", "vit_tiny").load()
    encoder = kind("vit_tiny", kind.Config(depth=1, dim=16, patch_size=2), image_size=8, channels=3).eval()
    images, places = torch.randn(2, 3, 8, 8, generator=seeded()), torch.tensor([[0, 5], [15, 3]])
    token = torch.randn(16, generator=seeded(1))
    before = encode_rest(encoder, images, places, token)
    assert before.shape == (2, 17, 16)
    spoiled = images.clone()
    spoiled[0, :, :2, :2] = 9  # patch 0
    spoiled[0, :, 2:4, 2:4] = 9  # patch 5
    spoiled[1, :, 6:, 6:] = 9  # patch 15
    spoiled[1, :, :2, 6:] = 9  # patch 3
    assert encode_rest(encoder, spoiled, places, token).equal(before)
    assert not encode_rest(encoder, spoiled, places.flip(0), token).allclose(before)
