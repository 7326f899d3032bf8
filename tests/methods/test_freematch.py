"""FreeMatch against its algorithm with one image after the other, over several steps."""

import pytest
import torch

from eagleray.contracts.batch import Batch
from eagleray_methods.freematch import FreeMatch, fairness
from gradients import assert_two_are_one, of_own_part
from method_cases import NOW, batch_of, small

SMALL = ["method.threshold_momentum=0.6", "method.fairness=0.3"]


class Reference:
    """Its thresholds and its loss, in plain numbers and sums."""

    def __init__(self, momentum: float):
        self.momentum, self.confidence = momentum, 1 / 3
        self.predicted, self.histogram = [1 / 3] * 3, [1 / 3] * 3

    def mixed(self, old: float, new: float) -> float:
        return self.momentum * old + (1 - self.momentum) * new

    def loss(self, method: FreeMatch, batch: Batch) -> tuple[torch.Tensor, float]:
        assert batch.labelled is not None
        images = torch.cat([batch.labelled.views[0], *batch.views])
        probabilities = method.classifier(method.encoder(images)).softmax(1)
        count = len(batch.indices)
        labelled, weak, strong = probabilities.split([len(batch.labelled.targets), count, count])
        loss = -sum(p[y].log() for p, y in zip(labelled, batch.labelled.targets, strict=True)) / len(labelled)
        weak = weak.tolist()
        guessed = [p.index(max(p)) for p in weak]
        self.confidence = self.mixed(self.confidence, sum(map(max, weak)) / count)
        for c in range(3):
            self.predicted[c] = self.mixed(self.predicted[c], sum(p[c] for p in weak) / count)
            self.histogram[c] = self.mixed(self.histogram[c], guessed.count(c) / count)
        limits = [self.confidence * p / max(self.predicted) for p in self.predicted]
        chosen = [i for i in range(count) if max(weak[i]) >= limits[guessed[i]]]
        loss = loss - 2 * sum(strong[i][guessed[i]].log() for i in chosen) / count
        return loss + 2 * 0.3 * self.fairness([strong[i] for i in chosen]), len(chosen) / count

    def fairness(self, strong: list[torch.Tensor]) -> torch.Tensor:
        largest = [int(p.argmax()) for p in strong]
        means = [sum(p[c] for p in strong) / len(strong) for c in range(3)]
        shares = [largest.count(c) / len(strong) for c in range(3)]
        ratios = [mean / share if share else mean * 0 for mean, share in zip(means, shares, strict=True)]
        before = [p / h for p, h in zip(self.predicted, self.histogram, strict=True)]
        terms = [b / sum(before) * (r / sum(ratios) + 1e-12).log() for b, r in zip(before, ratios, strict=True)]
        return torch.stack(terms).sum()


def test_loss_gradient_and_thresholds_follow_the_algorithm():
    method, reference = small("freematch", "method.weight=2"), Reference(0.6)
    assert isinstance(method, FreeMatch)
    with torch.no_grad():
        method.classifier.weight.mul_(3)
        method.confidence.fill_(0.6)  # so that some images do not count
    reference.confidence = 0.6
    batch, parameters = batch_of(method), [*method.encoder.parameters(), *method.classifier.parameters()]
    shares = []
    for _ in range(3):
        expected, share = reference.loss(method, batch)
        result = method(batch, NOW)
        shares.append(share)
        assert float(result.metrics["confident"]) == share
        assert float(method.confidence) == pytest.approx(reference.confidence)
        assert method.predicted.tolist() == pytest.approx(reference.predicted)
        assert method.histogram.tolist() == pytest.approx(reference.histogram)
        torch.testing.assert_close(result.loss, expected)
        gradients = torch.autograd.grad(result.loss, parameters)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))
        with torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                p.sub_(0.3 * gradient)
    assert 0 < min(shares) < 1, "some images must count, and some not"


def test_without_confident_images_there_is_no_fairness_term():
    strong = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    loss = fairness(strong, torch.zeros(4, dtype=torch.float64), even, even)
    (gradient,) = torch.autograd.grad(loss, strong)
    assert float(loss.detach()) == 0
    assert gradient.abs().max() == 0


def test_the_fairness_term_compares_means_with_histograms():
    """Three images that are each the largest of one class have an even mean: log(1 / 3), whatever the averages are."""
    ones = torch.ones(3, dtype=torch.float64)
    averages = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    loss = fairness(4 * torch.eye(3, dtype=torch.float64), ones, averages, ones)
    assert float(loss) == pytest.approx(-1.0986122886681098)


def of_part(strong: torch.Tensor) -> list[torch.Tensor]:
    predicted, histogram = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64)
    return of_own_part(lambda x: fairness(x, (x[:, 0].detach() > 0).double(), predicted, histogram), strong)


@pytest.mark.slow
def test_two_workers_have_the_fairness_of_all_their_images():
    strong = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    strong[4:] = strong[4:] + torch.tensor([1.0, 0, 2])
    assert_two_are_one(of_part, strong)
