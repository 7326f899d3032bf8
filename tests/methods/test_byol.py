"""BYOL against its formula."""

import torch
from torch.nn import functional as F

from eagleray.contracts.batch import Progress
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16"]


def test_byol_is_the_sum_of_both_directions_and_moves_its_teacher():
    method = small("byol").train()
    batch = batch_of(method)
    teacher_before = [p.clone() for p in method.teacher.parameters()]
    loss = method(batch, NOW).loss
    reference = torch.zeros((), dtype=torch.float64)
    for seen, target in ((0, 1), (1, 0)):
        p = method.predictor(method.projector(method.encoder(batch.views[seen])))
        z = method.teacher(batch.views[target])
        reference = reference + (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(loss, reference)
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    method.after_step(Progress(step=5, steps=10, epoch=0, epochs=1))
    # Half way, the cosine has brought the momentum half way to 1 (the paper's appendix, "target network").
    momentum = 1 - (1 - method.config.momentum) * 0.5
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    for after, before, online in zip(method.teacher.parameters(), teacher_before, student, strict=True):
        torch.testing.assert_close(after.data, momentum * before + (1 - momentum) * online.data)
