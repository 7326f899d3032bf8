"""The Pi-model against the paper's loss, of which no side is a constant."""

import math

import pytest
import torch
from torch import Tensor

from eagleray.contracts.batch import Batch, Progress
from eagleray.contracts.method import Method
from method_cases import batch_of, small


def predictions(method: Method, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return those of the labelled images and of both views, which share the statistics of batch norms."""
    assert batch.labelled is not None
    p = method.classifier(method.encoder(torch.cat([batch.labelled.views[0], *batch.views]))).softmax(1)
    known, count = len(batch.labelled.targets), len(batch.views[0])
    return p[:known], p[known : known + count], p[known + count :]


def papers_loss(method: Method, batch: Batch, weight: float) -> Tensor:
    """Compute the paper's loss class by class."""
    assert batch.labelled is not None
    known, first, second = predictions(method, batch)
    labelled = -sum(p[y].log() for p, y in zip(known, batch.labelled.targets.tolist(), strict=True)) / len(known)
    squares = [(p - q) ** 2 for one, other in zip(first, second, strict=True) for p, q in zip(one, other, strict=True)]
    loss = labelled + weight * sum(squares) / len(squares)
    assert isinstance(loss, Tensor)
    return loss


@pytest.mark.parametrize(("step", "ramp"), [(8, 1.0), (0, math.exp(-5)), (2, math.exp(-1.25))])
def test_loss_and_gradient_are_the_papers(step: int, ramp: float):
    method = small("pi_model", "method.weight=7", "method.ramp=0.4")
    batch = batch_of(method)
    expected = papers_loss(method, batch, 7 * ramp)
    result = method(batch, Progress(step=step, steps=10, epoch=0, epochs=1))
    torch.testing.assert_close(result.loss, expected)
    parameters = list(method.parameters())
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_the_gradient_passes_through_both_predictions():
    """With one of them a constant, the gradient of the consistency term would be another."""
    method = small("pi_model", "method.weight=1", "method.ramp=0")
    batch, parameters = batch_of(method), list(method.parameters())
    late = Progress(step=8, steps=10, epoch=0, epochs=1)
    consistency = method(batch, late).metrics["consistency"]
    assert isinstance(consistency, Tensor)
    found = torch.autograd.grad(consistency, parameters)
    halves = []
    for constant in (0, 1):
        pair = list(predictions(method, batch)[1:])
        pair[constant] = pair[constant].detach()
        halves.append(torch.autograd.grad((pair[0] - pair[1]).square().mean(), parameters))
    for whole, one, other in zip(found, *halves, strict=True):
        torch.testing.assert_close(whole, one + other)
    assert all(any(not torch.allclose(w, h) for w, h in zip(found, half, strict=True)) for half in halves)
