"""VAT against its formulas, and whether the direction it finds is the one that matters."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eagleray.contracts.method import Method
from eagleray_methods import vat
from method_cases import NOW, batch_of, small


def ready(*settings: str) -> Method:
    method = small("vat", *settings)
    with torch.no_grad():
        for number, p in enumerate(method.parameters()):
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(number)))
    return method


def kl(first: Tensor, second: Tensor) -> Tensor:
    """Compute the mean KL(first || second) of logits, image by image and class by class."""
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(first, second, strict=True):
        p, q = one.exp() / one.exp().sum(), other.exp() / other.exp().sum()
        for k in range(len(p)):
            total = total + p[k] * (torch.log(p[k]) - torch.log(q[k]))
    return total / len(first)


def test_loss_and_gradients_are_the_papers():
    method = ready("method.epsilon=2", "method.entropy=0.3", "method.weight=0.7")
    batch, learning = batch_of(method), list(method.parameters())
    assert batch.labelled is not None
    result = method(batch, NOW)
    found = torch.autograd.grad(result.loss, learning)

    network, images = nn.Sequential(method.encoder, method.get_submodule("classifier")), batch.views[0]
    d = torch.randn(8, 3, 8, 8, generator=method.rng(NOW.step)).double()
    d = torch.stack([each / each.square().sum().sqrt() for each in d])
    clean, step = network(images), (0.01 * d).requires_grad_()
    g = torch.autograd.grad(kl(clean.detach(), network(images + step)), step)[0]
    r = torch.stack([2 * each / each.square().sum().sqrt() for each in g])
    targets, logits = batch.labelled.targets, network(batch.labelled.views[0])
    labelled = -sum(torch.log(z.exp()[t] / z.exp().sum()) for z, t in zip(logits, targets, strict=True)) / len(targets)
    p = clean.exp() / clean.exp().sum(1, keepdim=True)
    uncertain = -(p * p.log()).sum(1).mean()
    expected = labelled + 0.7 * (kl(clean.detach(), network(images + r)) + 0.3 * uncertain)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(found, torch.autograd.grad(expected, learning), rtol=1e-6, atol=1e-9)


def test_the_direction_changes_predictions_more_than_random_ones_do():
    """In float32, where the authors' step of 1e-6 gives a direction of rounding errors."""
    method = ready().float()
    network, draw = nn.Sequential(method.encoder, method.get_submodule("classifier")), torch.Generator().manual_seed(0)
    images = batch_of(method).views[0].float()
    clean, start = network(images), torch.randn(images.shape, generator=draw)
    direction = vat.adversarial_direction(network, images, clean, start)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(8))
    exact = copy.deepcopy(network).double()
    with torch.no_grad():
        base = exact(images.double())
        reached = kl(base, exact(images.double() + 0.5 * direction.double()))
        for _ in range(100):
            other = torch.randn(images.shape, generator=draw).double()
            other = 0.5 * other / other.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            assert reached > kl(base, exact(images.double() + other))
    precise = vat.adversarial_direction(exact, images.double(), exact(images.double()), start)
    assert (direction * precise).flatten(1).sum(1).min() > 0.99


def test_a_bf16_autocast_does_not_blur_the_direction(monkeypatch: pytest.MonkeyPatch):
    method = ready().float()
    batch = batch_of(method)
    batch = type(batch)([v.float() for v in batch.views], batch.indices, batch.labelled)
    assert batch.labelled is not None
    batch.labelled.views[0] = batch.labelled.views[0].float()
    found: list[Tensor] = []

    def kept(*arguments: Any) -> Tensor:
        found.append(direction(*arguments))
        return found[-1]

    direction = vat.adversarial_direction
    monkeypatch.setattr(vat, "adversarial_direction", kept)
    method(batch, NOW)
    with torch.autocast("cpu", torch.bfloat16):
        method(batch, NOW)
    torch.testing.assert_close(found[0], found[1])


def test_only_labelled_images_update_running_statistics():
    method = ready()
    batch, alone = batch_of(method), copy.deepcopy(method)
    assert batch.labelled is not None
    method(batch, NOW).loss.backward()
    alone.encoder(batch.labelled.views[0])
    for (name, found), expected in zip(method.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(found, expected), name
