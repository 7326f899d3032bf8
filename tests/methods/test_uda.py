"""UDA against its formulas, and training-signal annealing by hand and of two workers."""

import math

import pytest
import torch
from torch import Tensor, nn

from eagleray.blocks.distributed import own_rows
from eagleray.contracts.batch import Progress
from eagleray.contracts.method import Method
from eagleray_methods.uda import annealed, annealed_cross_entropy
from gradients import assert_two_are_one, of_own_part
from method_cases import NOW, batch_of, small

# 3 classes; the first half of the images knows its class, so that workers keep different numbers.
LOGITS = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
LOGITS[torch.arange(3), TARGETS[:3]] += 6


def ready(*settings: str) -> Method:
    method = small("uda", *settings)
    with torch.no_grad():
        for number, p in enumerate(method.parameters()):
            p.add_(0.7 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(number)))
    return method


def softmax(logits: Tensor) -> Tensor:
    return torch.stack([row.exp() / row.exp().sum() for row in logits])


@pytest.mark.parametrize("annealing", ["none", "linear"])
def test_loss_and_gradients_are_the_papers(annealing: str):
    settings = ["method.threshold=0.8", "method.temperature=0.4", "method.weight=0.7"]
    method = ready(*settings, f"method.annealing={annealing}")
    batch = batch_of(method)
    assert batch.labelled is not None
    network = nn.Sequential(method.encoder, method.get_submodule("classifier"))
    learning = list(network.parameters())
    result = method(batch, NOW)
    found = torch.autograd.grad(result.loss, learning)

    logits = network(torch.cat([batch.labelled.views[0], *batch.views]))
    p, taught = softmax(logits), softmax(logits.detach() / 0.4)
    most = 1.0 if annealing == "none" else 0.3 * 2 / 3 + 1 / 3  # step 3 of 10, 3 classes
    kept = [-p[i, t].log() for i, t in enumerate(batch.labelled.targets) if p[i, t] <= most]
    assert 0 < len(kept) <= 4
    assert annealing == "none" or len(kept) < 4
    total, confident = torch.zeros((), dtype=torch.float64), 0
    for i in range(8):
        if p[4 + i].max() >= 0.8:
            confident += 1
            total = total + sum(taught[4 + i, k] * (taught[4 + i, k] / p[12 + i, k]).log() for k in range(3))
    assert 0 < confident < 8
    expected = sum(kept) / len(kept) + 0.7 * total / 8
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.as_tensor(result.metrics["confident"]).item() == confident / 8
    torch.testing.assert_close(found, torch.autograd.grad(expected, learning), rtol=1e-7, atol=1e-9)


def test_annealing_goes_from_chance_to_one():
    for schedule in ("linear", "exponential", "logarithmic"):
        assert annealed(schedule, 0, 10) == pytest.approx(0.1, abs=0.01)
        assert annealed(schedule, 1, 10) == pytest.approx(1, abs=0.01)
    assert annealed("linear", 0.5, 10) == pytest.approx(0.55)
    assert annealed("exponential", 0.5, 10) == pytest.approx(0.1 + 0.9 * math.exp(-2.5))
    assert annealed("logarithmic", 0.5, 10) == pytest.approx(0.1 + 0.9 * (1 - math.exp(-2.5)))
    assert all(annealed("none", 0, classes) == 1 for classes in range(2, 200))


def test_annealing_leaves_out_images_whose_class_is_known_and_averages_over_the_others():
    p = softmax(LOGITS)[range(8), TARGETS]
    kept = p[p <= 0.6]
    assert 0 < len(kept) < 8
    loss = annealed_cross_entropy(LOGITS, TARGETS, 0.6)
    torch.testing.assert_close(loss, -kept.log().mean())
    none = annealed_cross_entropy(LOGITS.requires_grad_(), TARGETS, 0.0)
    (gradient,) = torch.autograd.grad(none, LOGITS)
    LOGITS.requires_grad_(False)
    assert none.item() == gradient.abs().sum().item() == 0


def own_part(logits: Tensor, targets: Tensor) -> list[Tensor]:
    return of_own_part(lambda mine: annealed_cross_entropy(mine, own_rows(targets), 0.6), logits)


@pytest.mark.slow
def test_two_workers_that_keep_different_numbers_of_images_get_the_loss_of_one():
    assert_two_are_one(own_part, LOGITS, TARGETS)


def test_it_is_judged_by_its_average():
    method = ready("method.momentum=0.9").eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    averaged = method.get_parameter("average.1.weight")
    before, weight = method.classify(images), averaged.clone()
    with torch.no_grad():
        method.get_parameter("classifier.weight").add_(0.3)
    torch.testing.assert_close(method.classify(images), before)
    method.after_step(Progress(step=0, steps=10, epoch=0, epochs=1))
    torch.testing.assert_close(averaged, 0.9 * weight + 0.1 * method.get_parameter("classifier.weight"))
