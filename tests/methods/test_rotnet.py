"""RotNet: what is turned, and what is reported."""

import pytest
import torch
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.rotations import eight_rotations, four_rotations
from eagleray.config import load_run
from gradients import assert_same_gradients
from method_cases import NOW, batch_of, small


def test_rotations_are_right_angles_of_the_same_images():
    images = torch.randn(3, 2, 6, 6)
    turned = four_rotations(images).chunk(4)
    upright, quarter, half, _ = turned
    torch.testing.assert_close(upright, images)
    torch.testing.assert_close(half, images.flip(2, 3))
    torch.testing.assert_close(quarter, images.transpose(2, 3).flip(2))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_loss_and_gradients_are_those_of_the_angle_of_each_rotated_image(count: int):
    """Written out: image by image, all rotations of each; all go through the network together."""
    method = small("rotnet", f"method.rotations={count}").train()
    batch = batch_of(method)
    images = batch.views[0].requires_grad_()
    result = method(batch, NOW)
    shown = images if count < 8 else torch.cat(eight_rotations(images)[:2])
    turned, angles = [], []
    for number, image in enumerate(shown):
        for quarters in (0, 2) if count == 2 else range(4):
            turned.append(image.rot90(quarters, (1, 2)))
            angles.append(quarters // (4 // count) if count < 8 else 2 * quarters + number // len(images))
    logits = method.classifier(method.encoder(torch.stack(turned)))
    losses = [-row.log_softmax(0)[angle] for row, angle in zip(logits, angles, strict=True)]
    assert_same_gradients(result.loss, torch.stack(losses).mean(), images, *method.parameters())


def test_rotnet_reports_the_share_it_recognises():
    method = small("rotnet").train()
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))  # says "a quarter turn" to everything
    result = method(batch_of(method), NOW)
    assert float(result.metrics["rotation"]) == pytest.approx(0.25)


@pytest.mark.parametrize(("count", "degrees"), [(2, [0, 180]), (4, [0, 90, 180, 270])])
def test_rotnet_predicts_as_many_rotations_as_it_is_told(count: int, degrees: list[int]):
    method = small("rotnet", f"method.rotations={count}").train()
    images = batch_of(method).views[0]
    for found, angle in zip(method.rotated(images), degrees, strict=True):
        torch.testing.assert_close(found, images.rot90(angle // 90, (2, 3)))
    assert method(batch_of(method), NOW).loss.isfinite()


def test_eight_rotations_are_shown_without_corners():
    method = small("rotnet", "method.rotations=8").train()
    assert all(torch.allclose(each, torch.ones(2, 3, 8, 8)) for each in method.rotated(torch.ones(2, 3, 8, 8)))
    assert method.classifier.out_features == 8
    assert len(method(batch_of(method), NOW).embeddings) == 8


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_picture_turns_images_back_by_the_rotation_that_is_recognised(count: int):
    method = small("rotnet", f"method.rotations={count}").eval()
    images = batch_of(method).views[0]
    if count == 8:  # so smooth that interpolation changes little
        images = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None].expand_as(images)
    drawn = torch.randint(count, (len(images),), generator=method.rng(0))
    assert len(drawn.unique()) > 1
    method.classifier.forward = lambda _: F.one_hot(drawn, count)  # type: ignore[method-assign]
    made = method.picture(images)
    turned = [method.rotated(image[None])[which][0] for image, which in zip(images, drawn.tolist(), strict=True)]
    torch.testing.assert_close(made["turned"], torch.stack(turned))
    upright = images if count < 8 else method.rotated(method.rotated(images)[0])[0]
    torch.testing.assert_close(made["turned back"], upright, rtol=0, atol=0 if count < 8 else 0.05)


def test_the_papers_recipe_is_that_of_the_authors_cifar_runs():
    """Rate 0.1 at 128 images, a fifth of it after 60, 120 and 160 of 200 epochs; RandomCrop(32, padding=4)."""
    recipe = load_run(None, ["method=rotnet", "recipe=paper", "batch_size=128"]).optimizer
    assert recipe.peak_lr(128) == 0.1
    assert [drop * 200 for drop in recipe.drops] == pytest.approx([60, 120, 160])
    assert (recipe.drop_factor, recipe.warmup_epochs) == (0.2, 0)
    assert small("rotnet", "method.crop=padded").views == (View(shift=4 / 32, shift_border="black", flip=0.5),)
    assert small("rotnet").views == (View(crop=(0.5, 1.0), flip=0.5),)
