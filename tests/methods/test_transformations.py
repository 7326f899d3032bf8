"""Transformations: as many classes as there are, and views that do not undo the task."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.config import load_run
from gradients import assert_same_gradients
from method_cases import NOW, batch_of, small


@pytest.mark.parametrize(("group", "classes"), [("square", 8), ("flips", 4)])
def test_the_classifier_distinguishes_the_transformations(group: str, classes: int):
    method = small("transformations", f"method.group={group}").train()
    assert method.get_submodule("classifier").out_features == classes
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.copy_(5.0 * (torch.arange(classes) == 2))  # says the third of everything
    result = method(batch_of(method), NOW)
    assert float(result.metrics["transformation"]) == pytest.approx(1 / classes)
    assert len(result.embeddings) == classes


@pytest.mark.parametrize("group", ["square", "flips"])
def test_loss_and_gradients_are_those_of_the_transformation_of_each_image(group: str):
    """Written out with numpy's flips and rotations, image by image; all go through the network together."""
    method = small("transformations", f"method.group={group}").train()
    batch = batch_of(method)
    images = batch.views[0].requires_grad_()
    result = method(batch, NOW)
    pixels = np.arange(64).reshape(8, 8)  # where each pixel comes from
    moved = {
        "square": [np.rot90(each, turns) for each in (pixels, np.fliplr(pixels)) for turns in range(4)],
        "flips": [pixels, np.fliplr(pixels), np.flipud(pixels), np.flipud(np.fliplr(pixels))],
    }[group]
    places = [torch.from_numpy(each.ravel().copy()) for each in moved]
    shown = [image.flatten(1)[:, place].view(3, 8, 8) for image in images for place in places]
    rows = method.get_submodule("classifier")(method.encoder(torch.stack(shown))).log_softmax(1)
    losses = [-row[number % len(moved)] for number, row in enumerate(rows)]
    assert_same_gradients(result.loss, torch.stack(losses).mean(), images, *method.parameters())


def test_views_never_flip_or_rotate():
    """Else an image and its mirror image would both be of either class."""
    for crop in (1.0, 0.5):
        for view in small("transformations", f"method.crop_min={crop}").views:
            assert (view.flip, view.rotate) == (0.0, 0.0)
            assert view.crop == (None if crop == 1 else (crop, 1.0))


def test_the_papers_recipe_is_that_of_the_authors_code():
    """Adam with its defaults, on images as they are."""
    run = load_run(None, ["method=transformations", "recipe=paper", "batch_size=128"])
    assert (run.optimizer.peak_lr(128), run.optimizer.weight_decay, run.optimizer.final_lr) == (1e-3, 0, 1)
    assert small("transformations", "method.crop_min=1").views == (View(),)


@pytest.mark.parametrize(("group", "classes"), [("square", 8), ("flips", 4)])
def test_a_picture_undoes_the_transformation_that_is_recognised(group: str, classes: int):
    method = small("transformations", f"method.group={group}").eval()
    images = torch.randn(32, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.randint(classes, (32,), generator=method.rng(0))
    assert len(drawn.unique()) == classes
    method.get_submodule("classifier").forward = lambda _: F.one_hot(drawn, classes)  # type: ignore[method-assign]
    made = method.picture(images)
    assert torch.equal(made["changed back"], images)
    assert not torch.equal(made["changed"], images)
