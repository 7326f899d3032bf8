"""Fine-tuning: its loss is that of the labels, and its first answers are none."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.contracts.batch import DataInfo, Progress
from eagleray_methods.finetune import Finetune
from method_cases import INFO, NOW, batch_of, finished_run, small

DIGITS = DataInfo(image_size=8, channels=1, samples=100, classes=10)
FOLDER = tempfile.TemporaryDirectory()  # holds the pretrained runs until this process ends


def pretrained(name: str, info: DataInfo) -> list[str]:
    place = finished_run(Path(FOLDER.name, name), info, "method=simclr_v2", "method.hidden=12", "encoder.width=4")
    return ["encoder=pretrained", f"encoder.run={place}"]


SMALL = pretrained("of three channels", INFO)
ON_DIGITS = pretrained("of digits", DIGITS)


def test_fine_tuning_is_the_cross_entropy_of_the_labels_alone():
    method = small("finetune").train()
    assert isinstance(method, Finetune)
    batch = batch_of(method)
    assert batch.labelled is not None
    assert batch.views == []
    torch.nn.init.normal_(method.classifier.weight)
    images, targets = batch.labelled.views[0], batch.labelled.targets
    scores = method.classifier(method.encoder(images)).log_softmax(1)
    expected = -sum(scores[i, y] for i, y in enumerate(targets.tolist())) / len(targets)
    torch.testing.assert_close(method(batch, NOW).loss, expected)


def test_fine_tuning_starts_with_no_opinion_and_with_the_heads_first_layer():
    method = small("finetune").train()
    assert method.encoder.dim == 12  # of the head's first layer; the encoder behind it gives 32 features
    loss = method(batch_of(method), NOW).loss
    logits = method.eval().classify(torch.randn(5, 3, 8, 8, dtype=torch.float64))
    assert torch.equal(logits, logits[:1].expand(5, -1))
    assert abs(float(loss.detach()) - float(F.cross_entropy(logits[:4], torch.tensor([0, 1, 1, 2])))) < 1e-6


def test_the_classifier_may_learn_faster_and_crops_may_be_larger():
    method = small("finetune", "method.classifier_lr=20", "method.crop=0.5")
    optimizer = make_optimizer(method, Finetune.recipes.small)
    set_rates(optimizer, Finetune.recipes.small, 256, NOW)
    assert isinstance(method, Finetune)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    slow = {rates[id(weight)] for weight in method.encoder.parameters()}
    assert {rates[id(weight)] for weight in method.classifier.parameters()} == {20 * min(slow)}
    assert len(slow) == 1
    assert [view.crop for view in method.labelled_views] == [(0.5, 1.0)]


def test_frozen_it_is_a_linear_probe():
    """The network's weights and statistics stay, and an image's features do not depend on its batch."""
    method = small("finetune", "method.frozen=true")
    before = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    optimizer = make_optimizer(method, Finetune.recipes.small)
    set_rates(optimizer, Finetune.recipes.small, 256, NOW)
    batch = batch_of(method)
    assert batch.labelled is not None
    alone = method.eval().encode(batch.labelled.views[0][:1])
    result = method.train()(batch, NOW)
    torch.testing.assert_close(result.embeddings[0][:1], alone)
    result.loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in method.encoder.state_dict().items())
    assert method.classifier.weight.abs().sum() > 0


def test_under_the_papers_recipe_lars_adapts_the_network_but_not_the_new_classifier():
    method = small("finetune", "method.classifier_lr=1").train()
    assert isinstance(method, Finetune)
    recipe = Finetune.recipes.paper
    optimizer = make_optimizer(method, recipe)
    rate = set_rates(optimizer, recipe, 1024, Progress(step=0, steps=10, epoch=0, epochs=1))
    assert rate == pytest.approx(0.005 * 1024**0.5)
    torch.nn.init.normal_(method.classifier.weight)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    method(batch_of(method), NOW).loss.backward()
    optimizer.step()
    for name, p in method.named_parameters():
        assert p.grad is not None
        adapted = p.ndim > 1 and not name.startswith("classifier")
        trust = 0.001 * before[name].norm() / p.grad.norm() if adapted else 1.0
        torch.testing.assert_close(p.detach(), before[name] - rate * trust * p.grad, rtol=1e-6, atol=1e-9)
