"""Entropy minimisation against the paper's loss, and the number that shows collapse."""

import copy
import math

import pytest
import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.runs.processes import two_processes
from method_cases import NOW, batch_of, small


def spread() -> list[float]:
    """Return what a step tells of its predictions: their entropy, and that of their mean."""
    method = small("entropy_min")
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
    metrics = method(batch_of(method), NOW).metrics
    return [float(torch.as_tensor(metrics[name]).detach()) for name in ("entropy", "marginal_entropy")]


def test_loss_and_gradient_are_the_papers():
    method = small("entropy_min", "method.weight=7")
    batch = batch_of(method)
    assert batch.labelled is not None
    known = method.classifier(method.encoder(batch.labelled.views[0])).softmax(1)
    labelled = -sum(p[y].log() for p, y in zip(known, batch.labelled.targets.tolist(), strict=True)) / len(known)
    predictions = method.classifier(method.encoder(batch.views[0])).softmax(1)
    entropies = [-sum(each * each.log() for each in p) for p in predictions]
    expected = labelled + 7 * sum(entropies) / len(entropies)
    assert isinstance(expected, Tensor)
    result = method(batch, NOW)
    torch.testing.assert_close(result.loss, expected)
    parameters = list(method.parameters())
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    mean = [sum(column) / len(column) for column in predictions.T.tolist()]
    certain = torch.stack([torch.as_tensor(each) for each in entropies]).mean().item()
    assert spread() == pytest.approx([certain, -sum(p * math.log(p) for p in mean)])


def test_collapse_to_one_class_shows():
    method = small("entropy_min")
    with torch.no_grad():
        method.classifier.bias[1] = 1000.0  # whose softmax is 0 elsewhere
    metrics = method(batch_of(method), NOW).metrics
    assert metrics["marginal_entropy"] == metrics["entropy"] == 0
    with torch.no_grad():
        method.classifier.bias.zero_()
        method.classifier.weight.mul_(1000)  # certain, and of several classes
    metrics = method(batch_of(method), NOW).metrics
    assert metrics["entropy"] < 0.1
    assert metrics["marginal_entropy"] > 0.3  # one of eight images in another class has 0.38


@pytest.mark.slow
def test_the_mean_prediction_is_that_of_all_workers():
    alone, workers = spread(), two_processes(spread)
    assert [each[1] for each in workers] == pytest.approx([alone[1]] * 2)
    assert workers[0][0] != pytest.approx(workers[1][0])  # each has half of the images
    assert (workers[0][0] + workers[1][0]) / 2 == pytest.approx(alone[0])


def test_unlabelled_images_do_not_move_the_running_statistics():
    method = small("entropy_min")
    batch = batch_of(method)
    assert batch.labelled is not None
    labelled_only = copy.deepcopy(method.encoder)
    labelled_only(batch.labelled.views[0])
    method(batch, NOW)
    for key, value in method.encoder.state_dict().items():
        assert torch.equal(value, labelled_only.state_dict()[key]), key
