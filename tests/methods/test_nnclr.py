"""NNCLR against its formula, and how its queue is used."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.contracts.errors import ConfigError
from eagleray_methods.nnclr import nearest, neighbour_loss
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.predictor_hidden=16", "method.queue=112"]


def equation_three(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Equation 3 image by image, and the term that section 3.2 adds, in which the sum runs over the neighbours."""
    count = len(neighbours)
    loss = torch.zeros((), dtype=predictions.dtype)
    for i in range(count):
        own = (neighbours[i] @ predictions[i] / temperature).exp()
        by_neighbour = [(neighbours[i] @ predictions[k] / temperature).exp() for k in range(count)]
        by_prediction = [(neighbours[k] @ predictions[i] / temperature).exp() for k in range(count)]
        loss = loss - (own / sum(by_neighbour)).log() / 2 - (own / sum(by_prediction)).log() / 2
    return loss / count


def test_nnclr_is_equation_three_in_both_directions_with_the_neighbours_of_before():
    method = small("nnclr").train()
    batch, queue = batch_of(method), method.queue.rows.clone()
    result = method(batch, NOW)
    first, second = (method.projector(method.encoder(view)) for view in batch.views)
    expected = torch.zeros((), dtype=torch.float64)
    for looked_up, other in ((first, second), (second, first)):
        found = torch.stack([queue[int((F.normalize(queue, dim=1) @ z).argmax())] for z in looked_up])
        predictions = F.normalize(method.predictor(other), dim=1)
        expected = expected + equation_three(F.normalize(found, dim=1), predictions, method.config.temperature) / 2
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.loss, list(method.projector.parameters())),
        torch.autograd.grad(expected, list(method.projector.parameters())),
    )
    torch.testing.assert_close(method.queue.rows[:8], F.normalize(first, dim=1).detach())
    assert torch.equal(method.queue.rows[8:], queue[8:])


def test_neighbours_are_lightlys():
    from lightly.models.modules import NNMemoryBankModule

    z, rows = torch.randn(9, 6), F.normalize(torch.randn(40, 6), dim=1)
    bank = NNMemoryBankModule(size=(40, 6))
    bank.bank = rows.clone()
    torch.testing.assert_close(nearest(z, rows), bank(z, update=False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(z, rows), nearest(100 * z, rows))  # cosine, and in float32
    assert torch.equal(nearest(rows[3:5], rows), rows[3:5])


def test_the_loss_minds_who_belongs_to_whom_and_neither_scale_nor_order():
    neighbours = torch.randn(7, 5, dtype=torch.float64)
    predictions = neighbours + 0.3 * torch.randn(7, 5, dtype=torch.float64)
    loss, order = neighbour_loss(neighbours, predictions, 0.2), torch.randperm(7)
    torch.testing.assert_close(neighbour_loss(2 * neighbours, 3 * predictions, 0.2), loss)
    torch.testing.assert_close(neighbour_loss(neighbours[order], predictions[order], 0.2), loss)
    torch.testing.assert_close(neighbour_loss(predictions, neighbours, 0.2), loss)
    assert neighbour_loss(neighbours, predictions.roll(1, 0), 0.2) > loss + 0.1


def test_a_queue_of_broken_batches_is_refused():
    with pytest.raises(ConfigError, match=r"method\.queue=100 must hold whole batches"):
        small("nnclr", "method.queue=100")
