"""FixMatch against its formula, and what of it is judged."""

import pytest
import torch

from eagleray_methods.fixmatch import consistency
from method_cases import NOW, batch_of, small

SMALL = ["method.threshold=0"]


def test_fixmatch_averages_over_all_images_and_trains_the_strong_view_alone():
    weak = torch.tensor([[9.0, 0, 0], [0.1, 0, 0], [0, 0, 7.0]], dtype=torch.float64, requires_grad=True)
    strong = torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float64, requires_grad=True)
    loss, share_confident = consistency(weak, strong, 0.95)
    expected = 0.0
    for guess, logits in ((0, strong[0]), (2, strong[2])):  # the second image is not sure enough
        expected = expected - float(logits.detach().log_softmax(0)[guess]) / 3
    assert float(loss.detach()) == pytest.approx(expected)
    assert float(share_confident) == pytest.approx(2 / 3)
    loss.backward()
    assert weak.grad is None
    assert strong.grad is not None
    assert strong.grad[1].abs().sum() == 0


def test_loss_and_gradient_of_the_whole_method_follow_the_algorithm():
    method = small("fixmatch", "method.threshold=0.5", "method.weight=2")
    with torch.no_grad():
        method.classifier.weight.mul_(2)
    batch, parameters = batch_of(method), [*method.encoder.parameters(), *method.classifier.parameters()]
    assert batch.labelled is not None
    images = torch.cat([batch.labelled.views[0], *batch.views])
    labelled, weak, strong = method.classifier(method.encoder(images)).softmax(1).split([4, 8, 8])
    expected = -sum(p[y].log() for p, y in zip(labelled, batch.labelled.targets, strict=True)) / 4
    confident = 0
    for before, after in zip(weak.tolist(), strong, strict=True):
        if max(before) >= 0.5:
            expected = expected - 2 * after[before.index(max(before))].log() / 8
            confident += 1
    assert 0 < confident < 8, "some images must count, and some not"
    result = method(batch, NOW)
    assert float(result.metrics["confident"]) == confident / 8
    torch.testing.assert_close(result.loss, expected)
    gradients = torch.autograd.grad(result.loss, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))


def test_fixmatch_is_judged_by_its_average():
    method = small("fixmatch").eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = method.classify(images)
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.classifier.parameters()):
            p.add_(0.3)
    torch.testing.assert_close(method.classify(images), before)
    method.after_step(NOW)
    assert not torch.equal(method.classify(images), before)
