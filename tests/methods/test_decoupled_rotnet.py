"""Decoupled RotNet: its loss from the formula, what each half learns, and a trained RotNet's weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.memory_bank import nce
from eagleray.config import load_run
from eagleray.contracts.batch import DataInfo, Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.method_checks import CHECKS
from eagleray_methods.decoupled_rotnet import DecoupledRotNet, mean_and_distance, rotation_weights
from method_cases import INFO, NOW, batch_of, finished_run, settings, small

SMALL = ["method.projection=4", "method.negatives=6", "method.last_norm=false"]
LATE = Progress(step=9, steps=10, epoch=0, epochs=1)


def ready(*settings: str) -> DecoupledRotNet:
    method = small("decoupled_rotnet", *settings).train()
    assert isinstance(method, DecoupledRotNet)
    return method


def rotnet(place: Path, *settings: str) -> str:
    return f"method.rotations={finished_run(place, INFO, 'method=rotnet', 'encoder.width=4', *settings)}"


def written_out(method: DecoupledRotNet, images: Tensor, indices: Tensor, bank: Tensor, weights: list[float]) -> Tensor:
    """The three terms, image by image and rotation by rotation."""
    count, half, config = len(images), method.encoder.dim // 2, method.config
    turned = [images, images.transpose(2, 3).flip(2), images.flip(2, 3), images.transpose(2, 3).flip(3)]
    features = method.encoder(torch.cat(turned))
    recognising, distance, vectors = torch.zeros((), dtype=torch.float64), 0.0, []
    for n in range(count):
        own = [features[n + turn * count] for turn in range(4)]
        mean = sum(each[half:] for each in own) / 4
        for turn, each in enumerate(own):
            chances = torch.softmax(method.classifier.weight @ each[:half] + method.classifier.bias, 0)
            recognising = recognising - weights[n + turn * count] * chances[turn].log() / (4 * count)
            distance = distance + (each[half:] - mean.detach()).square().mean() / (4 * count)
        vectors.append(method.projector[0].weight @ mean + (0 if config.last_norm else method.projector[0].bias))
    drawn = torch.randint(INFO.samples, (6,), generator=method.rng(NOW.step))
    vectors = torch.stack(vectors)
    if config.last_norm:
        vectors = (vectors - vectors.mean(0)) / (vectors.var(0, correction=0) + 1e-5).sqrt()
        vectors = vectors * method.projector[1].weight + method.projector[1].bias
    noise, vectors = bank[drawn], torch.stack([vector / vector.norm() for vector in vectors])
    constant = INFO.samples * torch.stack([(v @ o / config.temperature).exp() for v in vectors for o in noise]).mean()
    contrast = nce(vectors, bank[indices], noise, float(constant.detach()), config.temperature, INFO.samples)
    return recognising + config.alike * distance + config.contrast * contrast


@pytest.mark.parametrize("last_norm", ["false", "true"])
def test_loss_and_gradients_are_those_of_the_formula_written_out(last_norm: str):
    settings = ["method.alike=0.7", "method.contrast=0.3", f"method.last_norm={last_norm}"]
    method, other = ready(*settings), ready(*settings)
    batch, bank = batch_of(method), other.bank.rows.clone()
    loss = method(batch, NOW).loss
    expected = written_out(other, batch.views[0], batch.indices, bank, [1.0] * 32)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(loss, list(method.parameters()))
    wanted = torch.autograd.grad(expected, list(other.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_the_distance_has_the_gradient_of_one_to_a_constant_mean():
    instance = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    mean, distance = mean_and_distance(instance)
    (gradient,) = torch.autograd.grad(distance, instance)
    torch.testing.assert_close(gradient, 2 * (instance - mean).detach() / instance.numel())


def test_half_of_the_features_predict_the_rotation_and_the_other_half_the_image():
    method = ready()
    features = torch.randn(32, method.encoder.dim, dtype=torch.float64, requires_grad=True)
    method.encoder.forward = lambda images: features
    half = method.encoder.dim // 2
    everything = method.config
    for turned_off, reaches in ((("alike", "contrast"), False), (("alike",), True), (("contrast",), True)):
        method.config = everything.model_copy(update=dict.fromkeys(turned_off, 0.0))
        (gradient,) = torch.autograd.grad(method(batch_of(method), NOW).loss, features)
        assert gradient[:, :half].any()
        assert bool(gradient[:, half:].any()) == reaches


def test_weights_of_rotated_images_fall_with_the_probability_to_be_upright():
    upright = torch.tensor([0.9, 0.2, 0.5, 0.1, 0.0, 1.0, 0.3, 0.6])
    expected = torch.tensor([1.0, 1.0, 0.75, 0.99, 1.0, 0.0, 0.91, 0.64])
    torch.testing.assert_close(rotation_weights(upright, 2.0), expected)
    assert math.isclose(float(rotation_weights(upright, 1.0)[2]), 0.5)


def test_a_trained_rotnet_weights_images_at_the_end_of_the_training(tmp_path: Path):
    method = ready(rotnet(tmp_path / "run"))
    with torch.no_grad():
        method.weighing.classifier.weight.zero_()
        method.weighing.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    chance = math.e / (math.e + 3)
    batch, bank, constant = batch_of(method), method.bank.rows.clone(), method.bank.constant
    losses = {}
    for progress in (NOW, LATE):
        method.bank.rows.copy_(bank)
        method.bank.constant = constant
        result = method(batch, progress)
        losses[progress.step] = (result, result.loss.detach() - result.metrics["contrast"])
    assert float(losses[3][0].metrics["counted"]) == 1.0
    assert float(losses[9][0].metrics["counted"]) == pytest.approx(1 - chance**2)
    features = method.encoder(torch.cat([batch.views[0].rot90(turn, (2, 3)) for turn in range(4)]))
    logits = method.classifier(features[:, : method.encoder.dim // 2])
    each = [-float(row.log_softmax(0)[n // 8]) for n, row in enumerate(logits.detach())]
    lost = sum(chance**2 * value for value in each[8:]) / 32
    assert float(losses[3][1] - losses[9][1]) == pytest.approx(lost, rel=1e-6)


def test_each_rotated_image_has_a_weight_of_its_own(tmp_path: Path):
    """From images as the trained network saw them, with another mean and deviation."""
    other = replace(INFO, mean=(0.1, 0.4, 0.6), std=(0.5, 0.2, 0.3))
    place = finished_run(tmp_path / "run", other, "method=rotnet", "encoder.width=4")
    settings, late = [f"method.rotations={place}", "method.power=1.5"], replace(LATE, step=NOW.step, steps=NOW.step + 1)
    method, twin = ready(*settings, "method.weighted_from=0.7"), ready(*settings)
    batch, bank, weighing = batch_of(method), twin.bank.rows.clone(), method.weighing
    mean, std, their_mean, their_std = (
        torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (INFO.mean, INFO.std, other.mean, other.std)
    )
    images = (batch.views[0] * std + mean - their_mean) / their_std
    weights = [1.0] * 8
    with torch.no_grad():
        for turns in (1, 2, 3):
            logits = weighing.classifier(weighing.encoder(images.rot90(turns, (2, 3))))
            weights += (1 - logits.softmax(1)[:, 0] ** 1.5).tolist()
    assert max(weights[8:]) - min(weights[8:]) > 0.01
    expected = written_out(twin, batch.views[0], batch.indices, bank, weights)
    result = method(batch, late)
    torch.testing.assert_close(result.loss.detach(), expected.detach(), rtol=1e-6, atol=1e-7)
    assert float(result.metrics["counted"]) == pytest.approx(sum(weights[8:]) / 24)


@pytest.mark.parametrize("check", ["resuming", "randomness", pytest.param("two workers", marks=pytest.mark.slow)])
def test_weighted_images_pass_the_checks(tmp_path: Path, check: str):
    run = load_run(None, [*settings("decoupled_rotnet"), rotnet(tmp_path / "run"), "method.weighted_from=0"])
    assert list(CHECKS[check](run)) == []


def test_a_picture_turns_images_back_by_the_rotation_that_is_recognised():
    method = ready().eval()
    images, drawn = batch_of(method).views[0], torch.randint(4, (8,), generator=method.rng(0))
    assert len(drawn.unique()) > 1
    features = torch.randn(8, method.encoder.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given: list[Tensor] = []
    method.encoder.forward = lambda shown: (given.append(shown), features)[1]
    method.classifier.forward = lambda half: (given.append(half), F.one_hot(drawn, 4))[1]  # type: ignore[method-assign]
    made = method.picture(images)
    assert torch.equal(given[0], made["turned"])
    assert torch.equal(given[1], features[:, : method.encoder.dim // 2])
    for turned, image, turns in zip(made["turned"], images, drawn.tolist(), strict=True):
        assert torch.equal(turned, image.rot90(turns, (1, 2)))
    assert torch.equal(made["turned back"], images)


def test_a_trained_rotnet_gets_no_gradient_and_keeps_its_statistics(tmp_path: Path):
    method = ready(rotnet(tmp_path / "run"))
    before = {name: value.clone() for name, value in method.weighing.state_dict().items()}
    method(batch_of(method), LATE).loss.backward()
    assert all(p.grad is None for p in method.weighing.parameters())
    assert all(torch.equal(before[name], value) for name, value in method.weighing.state_dict().items())


def test_runs_that_do_not_predict_four_rotations_are_refused(tmp_path: Path):
    other = finished_run(tmp_path / "simclr", INFO, "method=simclr", "method.hidden=8", "encoder.width=4")
    with pytest.raises(ConfigError, match="is no run that predicts four rotations: train one with method=rotnet"):
        ready(f"method.rotations={other}")
    grey = DataInfo(image_size=8, channels=1, samples=100, classes=None)
    place = finished_run(tmp_path / "grey", grey, "method=rotnet", "encoder.width=4")
    with pytest.raises(ConfigError, match="trained on images of 1 channels, and these have 3"):
        ready(f"method.rotations={place}")


def test_the_papers_recipe_is_that_of_the_authors_code():
    """0.01 for 192 images; a tenth of it after 90, 130 and 190 of 245 epochs; RandomResizedCrop and flip."""
    recipe = load_run(None, ["method=decoupled_rotnet", "recipe=paper", "batch_size=192"]).optimizer
    assert recipe.peak_lr(192) == pytest.approx(0.01)
    assert [drop * 245 for drop in recipe.drops] == pytest.approx([90, 130, 190])
    assert (recipe.nesterov, recipe.weight_decay, recipe.drop_factor) == (True, 5e-4, 0.1)
    config = load_run(None, ["method=decoupled_rotnet", "recipe=paper"]).method.config.model_dump()
    assert config == {
        "alike": 1, "contrast": 1, "temperature": 0.07, "negatives": 4096, "momentum": 0.5, "projection": 128,
        "last_norm": False, "crop_min": 0.08, "rotations": None, "power": 2, "weighted_from": 210 / 245,
    }  # fmt: skip
    assert ready("method.crop_min=0.08").views == (View(crop=(0.08, 1.0), flip=0.5),)
