"""Jigsaw: its permutations, what is shuffled, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.tiles import cut, laid
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.jigsaw import Jigsaw, far_permutations
from gradients import assert_same_gradients
from method_cases import BATCH, INFO, NOW, batch_of, small

# Tiles that a ViT's patches divide, at 8 pixels too.
SMALL = ["image_size=32", "method.permutations=12", "method.width=6", "method.tile=0.5"]


def jigsaw(*more: str) -> Jigsaw:
    method = small("jigsaw", *more)
    assert isinstance(method, Jigsaw)
    return method


def distances(permutations: Tensor) -> Tensor:
    differ = (permutations[:, None] != permutations[None]).sum(2)
    return differ[~torch.eye(len(permutations), dtype=torch.bool)].double()


@pytest.mark.parametrize(("tiles", "count", "least", "mean"), [(9, 30, 7, 8.19), (9, 100, 6, 8.07), (4, 8, 3, 0.0)])
def test_permutations_are_as_far_apart_as_the_greedy_choice_makes_them(tiles: int, count: int, least: int, mean: float):
    """Smallest and mean Hamming distances of other draws of the same algorithm; by the mean alone some differ in 2."""
    chosen = far_permutations(tiles, count)
    assert chosen.shape == (count, tiles)
    assert chosen.sort(1).values.equal(torch.arange(tiles).expand(count, -1))
    assert int(distances(chosen).min()) == least
    assert float(distances(chosen).mean()) > mean


@pytest.mark.slow
def test_a_thousand_permutations_differ_in_five_places():
    chosen = far_permutations(9, 1000)
    assert int(distances(chosen).min()) == 5
    assert float(distances(chosen).mean()) == pytest.approx(8.01, abs=0.01)


def test_four_tiles_have_24_permutations():
    assert len({tuple(each.tolist()) for each in far_permutations(4, 24)}) == 24
    with pytest.raises(ConfigError, match=r"^method\.permutations=25 is more than the 24 of 2 x 2 tiles"):
        jigsaw("method.grid=2", "method.permutations=25")


def test_permutations_are_kept_in_checkpoints():
    source, target = jigsaw(), jigsaw()
    source.permutations = source.permutations.flip(0)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.permutations, far_permutations(4, 12).flip(0))


@pytest.mark.parametrize("grid", [2, 3])
def test_loss_and_gradients_are_those_of_the_permutation_of_the_tiles(grid: int):
    """Written out: tiles are shuffled as pixels, before the encoder; all go through it together."""
    method = jigsaw(f"method.grid={grid}", "method.tile=0.8")
    batch, count = batch_of(method), grid**2
    images = batch.views[0].requires_grad_()
    result = method(batch, NOW)
    draw = method.rng(NOW.step)
    targets = torch.randint(12, (BATCH,), generator=draw)
    numbers = torch.rand(BATCH, count, 2, generator=draw)
    loses_colour = torch.rand(BATCH, generator=draw) < 0.66
    channels = torch.randint(3, (BATCH,), generator=draw)
    assert 0 < int(loses_colour.sum()) < BATCH
    shuffled = []
    for number, (image, target, places) in enumerate(zip(images, targets.tolist(), numbers, strict=True)):
        if loses_colour[number]:
            image = torch.stack([image[int(channels[number])]] * 3)
        tiles = list(cut(image[None], grid, method.tile_size, places[None])[0])
        for place in method.permutations[target].tolist():
            tile = tiles[place]
            deviation = (tile - tile.mean()).square().mean().add(1e-6).sqrt()
            shuffled.append((tile - tile.mean()) / deviation)
    vectors = method.projector(method.encoder(torch.stack(shuffled)))
    loss, right = torch.tensor(0.0, dtype=torch.float64), 0
    for number, target in enumerate(targets.tolist()):
        logits = method.classifier(torch.cat(list(vectors[count * number : count * (number + 1)])))
        loss = loss - F.log_softmax(logits, 0)[target] / BATCH
        right += int(logits.argmax() == target)
    assert_same_gradients(result.loss, loss, images, *method.parameters())
    assert float(result.metrics["solved"]) == pytest.approx(right / BATCH)


class Says(nn.Module):
    """A classifier that always says the same."""

    def __init__(self, classes: Tensor, count: int):
        super().__init__()
        self.logits = F.one_hot(classes, count).double()

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("grid", [2, 3])
def test_a_picture_shows_the_puzzle_and_what_the_prediction_makes_of_it(grid: int):
    method = jigsaw(f"method.grid={grid}", "method.tile=0.8").eval()
    images = batch_of(method).views[0]
    tiles = cut(images, grid, method.tile_size)
    targets = torch.randint(12, (BATCH,), generator=method.rng(0))
    method.classifier = Says(targets, 12)  # type: ignore[assignment]
    made = method.picture(images)
    shuffled = [each[order] for each, order in zip(tiles, method.permutations[targets], strict=True)]
    assert torch.equal(made["shuffled"], laid(torch.stack(shuffled), 32))
    assert torch.equal(made["solved"], laid(tiles, 32))
    method.classifier = Says(torch.zeros(BATCH, dtype=torch.long), 12)  # type: ignore[assignment]
    made = method.picture(images)  # the first permutation is the identity
    assert torch.equal(made["solved"], made["shuffled"])
    assert not torch.equal(made["solved"], laid(tiles, 32))


def test_each_step_has_permutations_and_places_of_its_own():
    method = jigsaw()
    losses = [
        float(method.eval()(batch_of(method), Progress(step=step, steps=10, epoch=0, epochs=1)).loss.detach())
        for step in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_papers_recipe_is_vissls_with_the_papers_tiles():
    run = load_run(None, ["method=jigsaw", "recipe=paper"])
    recipe, photos = run.optimizer, replace(INFO, image_size=225)
    assert [drop * 105 for drop in recipe.drops] == pytest.approx([30, 60, 90, 100])
    assert (recipe.peak_lr(256), recipe.weight_decay, recipe.warmup_epochs) == (0.1, 1e-4, 5)
    method = build_method(load_run(None, ["method=jigsaw", "method.grid=3", "method.tile=0.85"]), photos)
    assert isinstance(method, Jigsaw)
    assert method.tile_size == 64  # of cells of 75
    assert run.method.config.model_dump()["permutations"] == 1000
    assert method.views == (View(crop=(0.75, 1.0), flip=0.5),)


def test_tiles_too_small_for_the_encoder_are_refused():
    with pytest.raises(ConfigError, match=r"^method\.tile=0\.5 gives tiles of 2 pixels, which encoder=convnet cannot"):
        jigsaw("image_size=8")
