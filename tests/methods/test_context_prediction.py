"""Context prediction: pairs and their places, what tiles hide, and the loss."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.blocks.tiles import cut
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.context_prediction import ContextPrediction, neighbours, position
from gradients import assert_same_gradients
from method_cases import BATCH, INFO, NOW, batch_of, small

SMALL = ["image_size=32", "method.width=8", "method.grid=3", "method.tile=0.8"]
# The eight places around a tile as (rows down, columns to the right), in the order of their labels.
AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def context(*more: str) -> ContextPrediction:
    method = small("context_prediction", *more)
    assert isinstance(method, ContextPrediction)
    return method


@pytest.mark.parametrize(("grid", "count"), [(2, 12), (3, 40)])
def test_pairs_are_all_neighbours_in_both_orders(grid: int, count: int):
    first, second = neighbours(grid)
    expected = {
        (grid * row + column, grid * (row + down) + column + right): label
        for row in range(grid)
        for column in range(grid)
        for label, (down, right) in enumerate(AROUND)
        if 0 <= row + down < grid and 0 <= column + right < grid
    }
    found = zip(first.tolist(), second.tolist(), position(first, second, grid).tolist(), strict=True)
    assert {(a, b): label for a, b, label in found} == expected
    assert len(first) == len(expected) == count
    assert set(expected.values()) == set(range(8))


def test_the_place_of_a_pair_is_seven_minus_that_of_the_other_order():
    first, second = neighbours(3)
    assert torch.equal(position(first, second, 3), 7 - position(second, first, 3))


def test_views_are_not_flipped():
    assert all(view.flip == 0 for view in context().views)


@pytest.mark.parametrize("grid", [2, 3])
def test_loss_and_gradients_are_those_of_the_mean_over_pairs(grid: int):
    """Written out for each pair of tiles, which go through the encoder together; the share that is placed too."""
    method = context(f"method.grid={grid}")
    batch = batch_of(method)
    images = batch.views[0].requires_grad_()
    result = method(batch, NOW)
    tiles = method._tiles(images, method.rng(NOW.step))
    found = method.projector(method.encoder(torch.stack([tile for image in tiles for tile in image])))
    pairs, labels = [], []
    for vectors in found.split(grid**2):
        for place, vector in enumerate(vectors):
            for label, (down, right_of) in enumerate(AROUND):
                row, column = place // grid + down, place % grid + right_of
                if row in range(grid) and column in range(grid):
                    pairs.append(torch.cat([vector, vectors[grid * row + column]]))
                    labels.append(label)
    logits = method.classifier(torch.stack(pairs))  # its batch norms see all pairs
    losses = [-F.log_softmax(row, 0)[label] for row, label in zip(logits, labels, strict=True)]
    assert_same_gradients(result.loss, torch.stack(losses).mean(), images, *method.parameters())
    right = [int(row.argmax() == label) for row, label in zip(logits, labels, strict=True)]
    assert float(result.metrics["placed"]) == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize(("grid", "commonest"), [(2, 2 / 12), (3, 6 / 40)])
def test_guessing_places_a_sixth_at_most(grid: int, commonest: float):
    """A head that says nothing has a loss of log 8; constant answers are right as often as a place occurs."""
    method = context(f"method.grid={grid}")
    last = list(method.classifier.children())[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        assert float(method(batch_of(method), NOW).loss) == pytest.approx(math.log(8))
        placed = []
        for label in range(8):
            last.bias.copy_(8.0 * torch.eye(8)[label])
            placed.append(float(method(batch_of(method), NOW).metrics["placed"]))
    assert max(placed) == pytest.approx(commonest)
    assert sum(placed) == pytest.approx(1)


def test_tiles_have_one_channel_and_noise_of_half_a_grey_level():
    method = context("method.one_channel=1", "method.coarse=0")
    images = batch_of(method).views[0]
    tiles = method._tiles(images, method.rng(3))
    spread = tiles.std((3, 4), correction=0).sort(2).values  # [N, T, C]
    assert spread[:, :, :2].max() < 0.01
    torch.testing.assert_close(spread[:, :, 2], torch.full_like(spread[:, :, 2], math.sqrt(3)), rtol=1e-3, atol=0)
    kept = Counter(tiles.std((3, 4)).argmax(2).flatten().tolist())
    assert set(kept) == {0, 1, 2}


def many_tiles(*more: str) -> torch.Tensor:
    """Return 3,600 tiles of noise, [3600, 3, 8, 8]."""
    method = context(*more)
    method.data = replace(method.data, batch_size=400)
    images = torch.rand(400, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return method._tiles(images, method.rng(0)).flatten(0, 1)


def test_a_share_of_the_tiles_keeps_its_colours():
    colourful = many_tiles("method.one_channel=0.7", "method.coarse=0").std((2, 3)).amin(1) > 0.1
    assert float(colourful.double().mean()) == pytest.approx(0.3, abs=0.03)


def test_a_share_of_the_tiles_loses_resolution():
    values = torch.linalg.svdvals(many_tiles("method.one_channel=0", "method.coarse=0.25")[:, 0])  # [3600, 8]
    reduced = values[:, -1] < 1e-5 * values[:, 0]
    less_than_8 = ((7.5 / 8) ** 2 - 0.01) / 0.99  # whose drawn side is not rounded to all of the tile's
    assert float(reduced.double().mean()) == pytest.approx(0.25 * less_than_8, abs=0.03)


def test_tiles_are_those_of_the_authors_code_written_out_for_each():
    """Cut with jitter, reduced to a share of the area and enlarged, noise in place of channels, standardised."""
    method = context("method.jitter=0.6", "method.coarse=0.5", "method.one_channel=0.5")
    method.tile_size = 6  # with more room than the encoder leaves
    deviation = (0.2, 0.25, 0.5)
    method.data = replace(method.data, std=deviation)
    images, draw = batch_of(method).views[0], method.rng(5)
    found = method._tiles(images, method.rng(5))
    places, loses = torch.rand(BATCH, 9, 2, generator=draw), torch.rand(BATCH, 9, generator=draw) < 0.5
    channel = torch.randint(3, (BATCH, 9), generator=draw)
    is_coarse, area = torch.rand(BATCH, 9, generator=draw) < 0.5, torch.rand(BATCH, 9, generator=draw)
    noise = torch.rand(BATCH, 9, 3, 6, 6, generator=draw) - 0.5
    for image in range(BATCH):
        for place in range(9):
            # Cells of 10 pixels, one around the grid; a tile has 6 of them, and round(0.6 * 4) = 2 to move in.
            moved = [int(number * 3) for number in places[image, place]]
            top, left = (1 + 10 * at + 1 + by for at, by in zip(divmod(place, 3), moved, strict=True))
            tile = images[image, :, top : top + 6, left : left + 6]
            if is_coarse[image, place]:
                side = max(1, round(6 * math.sqrt(0.01 + 0.99 * float(area[image, place]))))
                less = F.interpolate(tile[None], (side, side), mode="bilinear", antialias=True)
                tile = F.interpolate(less, (6, 6), mode="bilinear")[0]
            tile = tile - tile.mean((1, 2), keepdim=True)
            if loses[image, place]:
                for other in {0, 1, 2} - {int(channel[image, place])}:
                    grey_levels = noise[image, place, other]  # half a level to each side, of pixels from 0 to 255
                    tile[other] = grey_levels / 255 / deviation[other]
            tile = (tile - tile.mean()) / (tile.var(correction=0) + 1e-6).sqrt()
            torch.testing.assert_close(found[image, place], tile, rtol=1e-4, atol=1e-5)


def test_grey_images_keep_their_channel():
    run = load_run(None, ["method=context_prediction", *SMALL, "encoder.width=8"])
    method = build_method(run, replace(INFO, image_size=32, channels=1, mean=(0.5,), std=(0.25,)))
    assert isinstance(method, ContextPrediction)
    images = torch.rand(BATCH, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    method.config = method.config.model_copy(update={"coarse": 0.0})
    tiles = method._tiles(images, method.rng(0))
    places = torch.rand(BATCH, 9, 2, generator=method.rng(0))
    expected = cut(images, 3, 8, places)
    expected = expected - expected.mean((2, 3, 4), keepdim=True)
    deviation = expected.square().mean((2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(tiles, expected / deviation, rtol=1e-4, atol=1e-4)


class Says(nn.Module):
    """A classifier that is sure of a place for each pair."""

    def __init__(self, places: Tensor):
        super().__init__()
        self.logits = F.one_hot(places, 8).double()

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("grid", [2, 3])
def test_a_picture_shows_a_pair_as_it_lies_and_as_it_is_placed(grid: int):
    method = context(f"method.grid={grid}", "method.enlarge=2").eval()
    images, side = batch_of(method).views[0], method.tile_size
    tiles, cell = cut(images, grid, side), 32 // grid
    places = torch.randint(8, (BATCH, len(method.first)), generator=torch.Generator().manual_seed(0))
    method.classifier = Says(places.flatten())  # type: ignore[assignment]
    shown = method.picture(images)
    pairs = torch.randint(len(method.first), (BATCH,), generator=method.rng(0)).tolist()
    for each, pair in enumerate(pairs):
        first, second = int(method.first[pair]), int(method.second[pair])
        down, right = second // grid - first // grid, second % grid - first % grid
        for title, (rows, columns) in {"pair": (down, right), "placed": AROUND[places[each, pair]]}.items():
            expected, start = torch.zeros_like(shown[title][each]), (cell - side) // 2
            for tile, row, column in ((first, 1, 1), (second, 1 + rows, 1 + columns)):
                top, left = row * cell + start, column * cell + start
                expected[:, top : top + side, left : left + side] = tiles[each, tile]
            assert torch.equal(shown[title][each], expected)


def test_each_step_has_tiles_of_its_own():
    method = context()
    losses = [
        float(method.eval()(batch_of(method), Progress(step=step, steps=10, epoch=0, epochs=1)).loss.detach())
        for step in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_papers_tiles_gaps_and_jitter():
    """Patches of 96 pixels, gaps of 48, jitter of 7 to each side, in an image of 3 x 144."""
    run = load_run(None, ["method=context_prediction", "recipe=paper", "method.width=16"])
    method = build_method(run, replace(INFO, image_size=432))
    assert isinstance(method, ContextPrediction)
    assert method.tile_size == 96
    images = torch.randn(40, 3, 432, 432, generator=torch.Generator().manual_seed(0))
    method.config = method.config.model_copy(update={"one_channel": 0.0, "coarse": 0.0})
    method.data = replace(method.data, batch_size=40)
    tiles = method._tiles(images, method.rng(0))[:, 4]  # of the cell in the middle, [40, 3, 96, 96]
    corners = [(top, left) for top in range(144, 193) for left in range(144, 193)]
    first_rows = torch.stack([images[:, :, top, left : left + 96] for top, left in corners], 1)  # [40, 49 * 49, 3, 96]
    wanted = (tiles[:, None, :, 0] * first_rows).sum((2, 3)).argmax(1).tolist()  # where each tile was cut
    offsets = [offset - 144 for at in wanted for offset in corners[at]]
    assert (min(offsets), max(offsets)) == (24 - 7, 24 + 7)
    assert [drop * 70 for drop in run.optimizer.drops] == pytest.approx([30, 50])
    assert run.optimizer.peak_lr(512) == pytest.approx(0.2)


def test_small_tiles_are_enlarged():
    method = context("method.enlarge=2")
    assert method._tiles(batch_of(method).views[0], method.rng(0)).shape == (BATCH, 9, 3, 16, 16)


def test_tiles_too_small_for_the_encoder_are_refused():
    with pytest.raises(ConfigError, match=r"^method\.tile=0\.8 with method\.enlarge=1 gives tiles of 2 pixels, which"):
        context("image_size=8")
