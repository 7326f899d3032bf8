"""NPID against its formula as printed, its constant, and its bank."""

import math

import pytest
import torch
from torch.nn import functional as F

from eagleray.contracts.batch import Progress
from eagleray_methods.npid import NPID, nce
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.hidden=0", "method.projection=4", "method.negatives=6", "method.proximal=3", "method.momentum=0.3"]


def unit(count: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1)


def drawn(method: NPID, step: int) -> torch.Tensor:
    return torch.randint(INFO.samples, (6,), generator=method.rng(step))


def test_nce_is_the_papers_formula():
    vectors, previous, noise = unit(3, 0), unit(3, 1), unit(5, 2)
    constant, temperature, samples = 60.0, 0.3, 20
    expected = 0.0
    for now, before in zip(vectors, previous, strict=True):
        posterior = []
        for other in (before, *noise):
            probability = math.exp(float(other @ now) / temperature) / constant  # equation 4
            posterior.append(probability / (probability + len(noise) / samples))  # equation 5
        expected -= (math.log(posterior[0]) + sum(math.log(1 - h) for h in posterior[1:])) / 3  # equation 7
    assert float(nce(vectors, previous, noise, constant, temperature, samples)) == pytest.approx(expected, rel=1e-10)


def test_nce_with_the_true_constant_and_all_the_noise_is_least_at_the_images_own_vector():
    """What it estimates: P(i|v) of a distribution over all images."""
    bank = unit(30, 3)
    own = nce(bank, bank, bank, (bank @ bank.T / 0.1).exp().sum(1).mean(), 0.1, 30)
    assert own < nce(bank, bank.roll(1, 0), bank, (bank @ bank.T / 0.1).exp().sum(1).mean(), 0.1, 30)


def test_nce_stays_finite_at_a_tiny_temperature():
    vectors = unit(4, 0).float().requires_grad_()
    loss = nce(vectors, -vectors.detach(), vectors.detach(), torch.tensor(1e30), 1e-2, 1000)
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_constant_is_estimated_from_the_first_batch_and_then_kept():
    method = small("npid").train()
    assert isinstance(method, NPID)
    batch = batch_of(method)
    noise = method.bank[drawn(method, NOW.step)].clone()
    vectors = F.normalize(method.projector(method.encoder(batch.views[0])), dim=1).detach()
    method(batch, NOW)
    similarities = vectors @ noise.T / method.config.temperature
    expected = INFO.samples * sum(math.exp(s) for s in similarities.flatten().tolist()) / similarities.numel()
    assert method.constant == pytest.approx(expected, rel=1e-10)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1.5)
    method(batch, Progress(step=4, steps=10, epoch=0, epochs=1))
    assert method.constant == pytest.approx(expected, rel=1e-10)


def test_the_loss_is_nce_and_the_pull_to_the_previous_vector_and_the_bank_learns_what_was_seen():
    method = small("npid").train()
    assert isinstance(method, NPID)
    batch = batch_of(method)
    before = method.bank.clone()
    vectors = F.normalize(method.projector(method.encoder(batch.views[0])), dim=1).detach()
    loss = method(batch, NOW).loss.detach()
    previous = before[batch.indices]
    contrast = nce(vectors, previous, before[drawn(method, NOW.step)], method.constant, 0.2, INFO.samples)
    pull = sum(float((v - p).norm()) ** 2 for v, p in zip(vectors, previous, strict=True)) / len(vectors)
    assert float(loss) == pytest.approx(float(contrast) + 3 * pull)
    mixed = 0.3 * previous + 0.7 * vectors
    torch.testing.assert_close(method.bank[batch.indices], mixed / mixed.norm(dim=1, keepdim=True))
    unseen = torch.ones(INFO.samples, dtype=torch.bool)
    unseen[batch.indices] = False
    assert torch.equal(method.bank[unseen], before[unseen])
    assert unseen.sum() == INFO.samples - len(batch.indices)


def test_each_step_draws_noise_of_its_own():
    method = small("npid", "method.proximal=0").train()
    assert isinstance(method, NPID)
    batch, held = batch_of(method), method.bank.clone()
    losses = []
    for step in (3, 3, 4):
        method.bank.copy_(held)
        losses.append(float(method(batch, Progress(step=step, steps=10, epoch=0, epochs=1)).loss.detach()))
    assert losses[0] == losses[1] != losses[2]
