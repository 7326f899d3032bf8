"""NPID: its constant, its loss, and what its bank learns."""

import math

import pytest
import torch
from torch.nn import functional as F

from eagleray.blocks.memory_bank import nce
from eagleray.contracts.batch import Progress
from eagleray_methods.npid import NPID
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.hidden=0", "method.projection=4", "method.negatives=6", "method.proximal=3", "method.momentum=0.3"]


def drawn(method: NPID, step: int) -> torch.Tensor:
    return torch.randint(INFO.samples, (6,), generator=method.rng(step))


def test_the_constant_is_estimated_from_the_first_batch_and_then_kept():
    method = small("npid").train()
    assert isinstance(method, NPID)
    batch = batch_of(method)
    noise = method.bank.rows[drawn(method, NOW.step)].clone()
    vectors = F.normalize(method.projector(method.encoder(batch.views[0])), dim=1).detach()
    method(batch, NOW)
    similarities = vectors @ noise.T / method.config.temperature
    expected = INFO.samples * sum(math.exp(s) for s in similarities.flatten().tolist()) / similarities.numel()
    assert method.bank.constant == pytest.approx(expected, rel=1e-10)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1.5)
    method(batch, Progress(step=4, steps=10, epoch=0, epochs=1))
    assert method.bank.constant == pytest.approx(expected, rel=1e-10)


def test_the_loss_is_nce_and_the_pull_to_the_previous_vector_and_the_bank_learns_what_was_seen():
    method = small("npid").train()
    assert isinstance(method, NPID)
    batch = batch_of(method)
    before = method.bank.rows.clone()
    vectors = F.normalize(method.projector(method.encoder(batch.views[0])), dim=1).detach()
    loss = method(batch, NOW).loss.detach()
    previous = before[batch.indices]
    contrast = nce(vectors, previous, before[drawn(method, NOW.step)], method.bank.constant, 0.2, INFO.samples)
    pull = sum(float((v - p).norm()) ** 2 for v, p in zip(vectors, previous, strict=True)) / len(vectors)
    assert float(loss) == pytest.approx(float(contrast) + 3 * pull)
    mixed = 0.3 * previous + 0.7 * vectors
    torch.testing.assert_close(method.bank.rows[batch.indices], mixed / mixed.norm(dim=1, keepdim=True))
    unseen = torch.ones(INFO.samples, dtype=torch.bool)
    unseen[batch.indices] = False
    assert torch.equal(method.bank.rows[unseen], before[unseen])
    assert unseen.sum() == INFO.samples - len(batch.indices)


def test_each_step_draws_noise_of_its_own():
    method = small("npid", "method.proximal=0").train()
    assert isinstance(method, NPID)
    batch, held = batch_of(method), method.bank.rows.clone()
    losses = []
    for step in (3, 3, 4):
        method.bank.rows.copy_(held)
        losses.append(float(method(batch, Progress(step=step, steps=10, epoch=0, epochs=1)).loss.detach()))
    assert losses[0] == losses[1] != losses[2]
