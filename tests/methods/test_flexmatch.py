"""FlexMatch against its algorithm, image by image, and its thresholds against numbers worked out by hand."""

from collections import Counter

import pytest
import torch

from eagleray.contracts.batch import Batch
from eagleray_methods.flexmatch import FlexMatch, class_thresholds
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.threshold=0.5"]


def thresholds(last: dict[int, int], threshold: float) -> list[float]:
    """Follow the paper's algorithm 1: from each image's last confident guess."""
    sizes = Counter(last.values())
    unused = INFO.samples - len(last)
    effects = [sizes[c] / max(max(sizes.values(), default=0), unused) for c in range(3)]
    return [threshold * effect / (2 - effect) for effect in effects]


def expected_loss(method: FlexMatch, batch: Batch, last: dict[int, int]) -> torch.Tensor:
    assert batch.labelled is not None
    images = torch.cat([batch.labelled.views[0], *batch.views])
    probabilities = method.classifier(method.encoder(images)).softmax(1)
    count = len(batch.indices)
    labelled, weak, strong = probabilities.split([len(batch.labelled.targets), count, count])
    loss = -sum(p[y].log() for p, y in zip(labelled, batch.labelled.targets, strict=True)) / len(labelled)
    limits = thresholds(last, method.config.threshold)
    for image, before, after in zip(batch.indices.tolist(), weak.tolist(), strong, strict=True):
        guess = before.index(max(before))
        if max(before) >= limits[guess]:
            loss = loss - 2 * after[guess].log() / count
        if max(before) >= method.config.threshold:
            last[image] = guess
    return loss


def test_loss_gradient_and_memory_follow_the_algorithm():
    method = small("flexmatch", "method.weight=2")
    assert isinstance(method, FlexMatch)
    with torch.no_grad():  # so that some guesses are sure and others are not
        method.classifier.weight.mul_(0.7)
        method.guessed[20:] = torch.arange(80) % 3
        method.guessed[20:70] = 1
    last = {image: guess for image, guess in enumerate(method.guessed.tolist()) if guess >= 0}
    batch, parameters = batch_of(method), [*method.encoder.parameters(), *method.classifier.parameters()]
    shares = []
    for _ in range(3):
        expected = expected_loss(method, batch, last)
        result = method(batch, NOW)
        shares.append(float(result.metrics["confident"]))
        torch.testing.assert_close(result.loss, expected)
        gradients = torch.autograd.grad(result.loss, parameters)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))
        assert {i: guess for i, guess in enumerate(method.guessed.tolist()) if guess >= 0} == last
        with torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                p.sub_(0.3 * gradient)
    assert 0 < min(shares) < 1, "some images must count, and some not"


def test_an_image_keeps_its_class_when_it_is_guessed_without_confidence():
    method = small("flexmatch")
    assert isinstance(method, FlexMatch)
    places = torch.tensor([7, 40])
    method._remember(places, torch.tensor([0, 2]), torch.tensor([1.0, 1.0]))
    assert method.guessed[places].tolist() == [0, 2]
    method._remember(places, torch.tensor([1, 1]), torch.tensor([0.0, 1.0]))
    assert method.guessed[places].tolist() == [0, 1]
    assert method.guessed.ge(0).sum() == 2


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),  # nothing is guessed: all images count
        ((10, 0, 5), (1 / 15, 0, 1 / 31)),  # 80 of 85 are not: warm-up, b = 10 / 80 and 5 / 80
        ((50, 20, 10), (1, 0.25, 1 / 9)),  # b = 1, 2 / 5, 1 / 5; 15 are not guessed
    ],
)
def test_thresholds_are_convex_in_the_share_of_the_best_learnt_class(sizes: tuple[int, ...], expected: tuple):
    samples = 95
    labels = [c for c, size in enumerate(sizes) for _ in range(size)]
    guessed = torch.tensor(labels + [-1] * (samples - len(labels)))
    torch.testing.assert_close(class_thresholds(guessed, 3, 0.8), 0.8 * torch.tensor(expected).float())
