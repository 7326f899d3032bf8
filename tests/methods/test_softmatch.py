"""SoftMatch against its algorithm with one image after the other, over several steps."""

import math
from statistics import fmean, variance

import pytest
import torch

from eagleray.contracts.batch import Batch
from eagleray_methods.softmatch import SoftMatch, truncated_gaussian
from method_cases import NOW, batch_of, small

SMALL = ["method.confidence_momentum=0.6"]


class Reference:
    """Its weights and its loss, in plain numbers and sums."""

    def __init__(self, momentum: float):
        self.momentum, self.mean, self.variance, self.predicted = momentum, 1 / 3, 1.0, [1 / 3] * 3

    def mixed(self, old: float, new: float) -> float:
        return self.momentum * old + (1 - self.momentum) * new

    def weights(self, weak: list[list[float]]) -> list[float]:
        self.predicted = [self.mixed(old, fmean(p[c] for p in weak)) for c, old in enumerate(self.predicted)]
        ratios = [[p[c] * (1 / 3) / (self.predicted[c] + 1e-6) for c in range(3)] for p in weak]
        confidence = [max(ratio) / sum(ratio) for ratio in ratios]
        self.mean = self.mixed(self.mean, fmean(confidence))
        self.variance = self.mixed(self.variance, variance(confidence))
        deviation = math.sqrt(self.variance) / 2
        return [1.0 if c >= self.mean else math.exp(-(((c - self.mean) / deviation) ** 2) / 2) for c in confidence]

    def loss(self, method: SoftMatch, batch: Batch) -> tuple[torch.Tensor, list[float]]:
        assert batch.labelled is not None
        images = torch.cat([batch.labelled.views[0], *batch.views])
        probabilities = method.classifier(method.encoder(images)).softmax(1)
        count = len(batch.indices)
        labelled, weak, strong = probabilities.split([len(batch.labelled.targets), count, count])
        loss = -sum(p[y].log() for p, y in zip(labelled, batch.labelled.targets, strict=True)) / len(labelled)
        weights = self.weights(weak.tolist())
        for weight, before, after in zip(weights, weak.tolist(), strong, strict=True):
            loss = loss - 2 * weight * after[before.index(max(before))].log() / count
        return loss, weights


def test_loss_gradient_and_averages_follow_the_algorithm():
    method, reference = small("softmatch", "method.weight=2"), Reference(0.6)
    assert isinstance(method, SoftMatch)
    with torch.no_grad():  # so that one class is favoured, and the alignment changes which is the largest
        method.classifier.weight.mul_(2)
        method.classifier.bias.copy_(torch.tensor([1.0, 0.5, 0]))
        method.mean.fill_(0.7)
        method.variance.fill_(0.05)
    reference.mean, reference.variance = 0.7, 0.05
    batch, parameters = batch_of(method), [*method.encoder.parameters(), *method.classifier.parameters()]
    for _ in range(3):
        expected, weights = reference.loss(method, batch)
        result = method(batch, NOW)
        assert min(weights) < 0.9, "some images must weigh less"
        assert float(result.metrics["pseudo_weight"]) == pytest.approx(fmean(weights))
        assert float(method.mean) == pytest.approx(reference.mean)
        assert float(method.variance) == pytest.approx(reference.variance)
        assert method.predicted.tolist() == pytest.approx(reference.predicted)
        torch.testing.assert_close(result.loss, expected)
        gradients = torch.autograd.grad(result.loss, parameters)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))
        with torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                p.sub_(0.1 * gradient)


def test_it_starts_with_the_papers_averages():
    method = small("softmatch")
    assert isinstance(method, SoftMatch)
    assert [float(method.mean), float(method.variance)] == pytest.approx([1 / 3, 1])
    assert method.predicted.tolist() == pytest.approx([1 / 3] * 3)


def test_weights_are_those_of_a_gaussian_cut_at_its_mean():
    confidence = torch.tensor([0.3, 0.5, 0.7, 0.9])
    weights = truncated_gaussian(confidence, torch.tensor(0.7), torch.tensor(0.04))
    assert weights.tolist() == pytest.approx([math.exp(-2), math.exp(-0.5), 1, 1])


def test_weights_stay_numbers_when_all_images_are_certain():
    weights = truncated_gaussian(torch.tensor([1.0, 0.5]), torch.tensor(1.0), torch.tensor(0.0))
    assert weights.tolist() == [1, 0]
