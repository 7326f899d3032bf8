"""Pseudo-label against the paper's loss, and whose statistics it keeps."""

import copy

import pytest
import torch
from torch import Tensor

from eagleray.contracts.batch import Batch, Progress
from eagleray.contracts.method import Method
from method_cases import batch_of, small

SMALL = ["method.threshold=0"]

LATE = Progress(step=8, steps=10, epoch=0, epochs=1)  # past the ramp


def unsure(*settings: str) -> tuple[Method, Batch]:
    """Return a method that is sure of some of a batch's images."""
    method = small("pseudo_label", "method.threshold=0.6", *settings)
    with torch.no_grad():
        method.classifier.weight.mul_(4)
    return method, batch_of(method)


def lees_loss(method: Method, batch: Batch, weight: float) -> tuple[Tensor, int]:
    """Compute the paper's loss image by image, and how many images count."""
    assert batch.labelled is not None
    known = method.classifier(method.encoder(batch.labelled.views[0]))
    labelled = [-(z[y] - z.exp().sum().log()) for z, y in zip(known, batch.labelled.targets.tolist(), strict=True)]
    unlabelled = []
    for z in method.classifier(method.encoder(batch.views[0])):
        p = (z.exp() / z.exp().sum()).tolist()
        guessed = p.index(max(p))
        if p[guessed] >= 0.6:
            unlabelled.append(-(z[guessed] - z.exp().sum().log()))
    loss = sum(labelled) / len(known) + weight * sum(unlabelled) / len(batch.views[0])
    assert isinstance(loss, Tensor)
    return loss, len(unlabelled)


@pytest.mark.parametrize(("progress", "ramp"), [(LATE, 1.0), (Progress(step=1, steps=10, epoch=0, epochs=1), 0.25)])
def test_loss_and_gradient_are_the_papers(progress: Progress, ramp: float):
    method, batch = unsure("method.weight=7")
    expected, counted = lees_loss(method, batch, 7 * ramp)
    assert 0 < counted < len(batch.views[0])
    result = method(batch, progress)
    torch.testing.assert_close(result.loss, expected)
    assert float(result.metrics["confident"]) == counted / len(batch.views[0])
    parameters = list(method.parameters())
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_unlabelled_images_do_not_move_the_running_statistics():
    method, batch = unsure()
    labelled_only = copy.deepcopy(method.encoder)
    before = copy.deepcopy(method.encoder.state_dict())
    assert batch.labelled is not None
    labelled_only(batch.labelled.views[0])
    method(batch, LATE)
    after = method.encoder.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)
    for key, value in labelled_only.state_dict().items():
        assert torch.equal(value, after[key]), key
