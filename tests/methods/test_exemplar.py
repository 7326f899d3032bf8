"""Exemplar-CNN: its loss from the formula, and which images are classes."""

import math
from dataclasses import replace

import pytest
import torch

from eagleray.augment import View
from eagleray.config import load_run
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.exemplar import Exemplar
from method_cases import INFO, NOW, batch_of, settings, small

SMALL = ["method.classes=60"]


def ready(*more: str) -> Exemplar:
    method = small("exemplar", *more).train()
    assert isinstance(method, Exemplar)
    return method


def written_out(method: Exemplar, features: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Minus the log of the own class's share, of each image that is a class."""
    terms = []
    for feature, index in zip(features, indices.tolist(), strict=True):
        if (own := int(method.targets[index])) >= 0:
            scores = [w @ feature + b for w, b in zip(method.classifier.weight, method.classifier.bias, strict=True)]
            terms.append(torch.stack(scores).exp().sum().log() - scores[own])
    assert 0 < len(terms) < len(indices)
    return torch.stack(terms).mean()


def test_loss_and_gradients_are_those_of_the_formula():
    method, other = ready(), ready()
    batch = batch_of(method)
    loss = method(batch, NOW).loss
    expected = written_out(other, other.encoder(batch.views[0]), batch.indices)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss, list(method.parameters()))
    wanted = torch.autograd.grad(expected, list(other.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_an_untrained_classifier_has_the_loss_of_chance():
    method = ready("method.classes=null")
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.zero_()
    assert float(method(batch_of(method), NOW).loss.detach()) == pytest.approx(math.log(INFO.samples))


def test_the_seed_draws_the_classes_and_each_is_one_image():
    method = ready()
    chosen = method.targets[method.targets >= 0]
    assert chosen.tolist() == list(range(60))
    assert torch.equal(ready().targets, method.targets)
    others = build_method(load_run(None, settings("exemplar")), replace(INFO, seed=1)).targets
    assert not torch.equal(others >= 0, method.targets >= 0)
    assert ready("method.classes=null").targets.tolist() == list(range(INFO.samples))
    with pytest.raises(ConfigError, match="classes=101 is more than the 100 training images: take fewer, or null for"):
        ready("method.classes=101")


def test_only_images_that_are_a_class_count_as_recognised():
    method = ready()
    batch = batch_of(method)
    own = method.targets[batch.indices]
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.zero_()
        method.classifier.bias[own[own >= 0][0]] = 5.0  # recognises one class everywhere
    assert float(method(batch, NOW).metrics["recognised"]) == pytest.approx(1 / int((own >= 0).sum()))


def test_a_batch_without_any_class_has_no_loss():
    method = ready()
    batch = batch_of(method)
    method.targets[batch.indices] = -1
    assert float(method(batch, NOW).loss.detach()) == 0


def test_classes_are_compared_in_float32_inside_bf16():
    method = ready("method.classes=null").float()
    batch = batch_of(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(batch.__class__([batch.views[0].float()], batch.indices), NOW).loss
    assert loss.dtype == torch.float32


def test_the_papers_settings():
    """8,000 classes; shifted by a fifth, half of the area or more; SGD at 0.01 with momentum 0.9; never mirrored."""
    run = load_run(None, ["method=exemplar", "recipe=paper"])
    assert run.method.config.model_dump() == {"classes": 8000}
    assert (run.optimizer.name, run.optimizer.peak_lr(128), run.optimizer.momentum) == ("sgd", 0.01, 0.9)
    colours = {"jitter": 1.0, "jitter_scale": (0.4, 0.7, 0.7, 0.1), "jitter_probability": 1.0}
    assert ready().views == (View(crop=(0.5, 1.0), shift=0.2, flip=0.0, **colours),)
