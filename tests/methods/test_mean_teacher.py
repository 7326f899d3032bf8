"""Mean teacher against the authors' loss and their schedule of the teacher."""

import numpy as np
import pytest
import torch

from eagleray.contracts.batch import Progress
from method_cases import batch_of, small

LATE = Progress(step=8, steps=10, epoch=0, epochs=1)  # past the ramp


def softmax(logits: torch.Tensor) -> np.ndarray:
    powers = np.exp(logits.detach().numpy())
    return powers / powers.sum(1, keepdims=True)


def test_the_loss_is_the_papers():
    method = small("mean_teacher", "method.weight=7")
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(0)))
    batch = batch_of(method)
    assert batch.labelled is not None
    student = method.classifier(method.encoder(torch.cat([batch.labelled.views[0], batch.views[0]])))
    predicted, taught = softmax(student), softmax(method.teacher(batch.views[1]))
    count = len(batch.labelled.targets)
    labelled = -np.log(predicted[np.arange(count), batch.labelled.targets.numpy()]).mean()
    difference = ((predicted[count:] - taught) ** 2).mean()
    result = method(batch, LATE)
    assert result.loss.item() == pytest.approx(labelled + 7 * difference)
    early = method(batch, Progress(step=0, steps=10, epoch=0, epochs=1))
    assert early.loss.item() == pytest.approx(labelled + 7 * np.exp(-5) * difference)


def test_the_gradient_is_that_of_the_formula_and_none_reaches_the_teacher():
    method, batch = small("mean_teacher", "method.weight=7"), batch_of(small("mean_teacher"))
    assert batch.labelled is not None
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(0)))
    learning = [*method.encoder.parameters(), *method.classifier.parameters()]
    found = torch.autograd.grad(method(batch, LATE).loss, learning)
    count, loss = len(batch.labelled.targets), torch.zeros((), dtype=torch.float64)
    logits = method.classifier(method.encoder(torch.cat([batch.labelled.views[0], batch.views[0]])))
    taught = torch.softmax(method.teacher(batch.views[1]).detach(), 1)
    for row, target in enumerate(batch.labelled.targets.tolist()):
        loss = loss - torch.log(torch.softmax(logits[row], 0)[target]) / count
    for row, constant in enumerate(taught):
        for one, other in zip(torch.softmax(logits[count + row], 0), constant, strict=True):
            loss = loss + 7 * (one - other) ** 2 / taught.numel()
    expected = torch.autograd.grad(loss, learning)
    torch.testing.assert_close(found, expected)
    method(batch, LATE).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


def test_the_teacher_is_a_plain_mean_of_the_first_steps():
    method = small("mean_teacher", "method.momentum=0.9")
    weights = []
    for step in range(4):
        with torch.no_grad():
            method.classifier.weight.add_(torch.randn(method.classifier.weight.shape))
        weights.append(method.classifier.weight.detach().clone())
        method.after_step(Progress(step=step, steps=1000, epoch=0, epochs=1))
    torch.testing.assert_close(method.teacher[1].weight, torch.stack(weights).mean(0))
    method.after_step(Progress(step=500, steps=1000, epoch=0, epochs=1))
    expected = 0.9 * torch.stack(weights).mean(0) + 0.1 * weights[-1]
    torch.testing.assert_close(method.teacher[1].weight, expected)
