"""The noise-contrastive loss against its formula as printed, and the bank's rows and constant."""

import math

import pytest
import torch
from torch.nn import functional as F

from eagleray.blocks.memory_bank import MemoryBank, nce


def unit(count: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1)


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


def test_a_bank_mixes_old_and_new_vectors_of_the_images_it_is_told_of():
    bank, seen, vectors = MemoryBank(6, 4).double(), torch.tensor([4, 1]), unit(2, 5)
    before = bank.rows.clone()
    bank.remember(vectors, seen, 0.3)
    mixed = 0.3 * before[seen] + 0.7 * vectors
    torch.testing.assert_close(bank.rows[seen], mixed / mixed.norm(dim=1, keepdim=True))
    assert torch.equal(bank.rows[[0, 2, 3, 5]], before[[0, 2, 3, 5]])


def test_a_bank_estimates_its_constant_once_and_a_checkpoint_has_it():
    bank, vectors = MemoryBank(30, 4).double(), unit(3, 5)
    bank.contrast(vectors, torch.arange(3), 7, 0.5, torch.Generator().manual_seed(1))
    noise = bank.rows[torch.randint(30, (7,), generator=torch.Generator().manual_seed(1))]
    each = [math.exp(float(v @ n) / 0.5) for v in vectors for n in noise]
    assert bank.constant == pytest.approx(30 * sum(each) / 21, rel=1e-10)
    resumed = MemoryBank(30, 4).double()
    resumed.load_state_dict(bank.state_dict())
    loss = resumed.contrast(-vectors, torch.arange(3), 7, 0.5, torch.Generator().manual_seed(2))
    assert resumed.constant == bank.constant
    noise = bank.rows[torch.randint(30, (7,), generator=torch.Generator().manual_seed(2))]
    assert float(loss) == pytest.approx(float(nce(-vectors, bank.rows[:3], noise, bank.constant, 0.5, 30)))
