"""MixMatch against its algorithm, written row by row."""

import copy

import pytest
import torch
from torch import Tensor, nn

from eagleray.blocks.semi_supervised import beta_shares
from eagleray.contracts.batch import Progress
from eagleray.contracts.method import Method
from method_cases import batch_of, small

LATE = Progress(step=8, steps=10, epoch=0, epochs=1)  # past the ramp


def ready(*settings: str) -> Method:
    method = small("mixmatch", "method.ramp=0.4", *settings)
    with torch.no_grad():
        for number, p in enumerate(method.parameters()):
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(number)))
    return method


def network(method: Method) -> nn.Module:
    return nn.Sequential(method.encoder, method.get_submodule("classifier"))


def parts_of(method: Method, progress: Progress) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return what the encoder sees in each of three passes, and the mixed targets of the three parts."""
    batch = batch_of(method)
    assert batch.labelled is not None
    both = network(method)(torch.cat(batch.views)).detach()
    rows, targets = [], []
    for i in range(8):  # four labelled images for eight others: each twice
        powers = [(both[i].softmax(0)[k] + both[8 + i].softmax(0)[k]) ** 2 for k in range(3)]
        guess = torch.stack([power / sum(powers) for power in powers])
        rows += [batch.labelled.views[0][i // 2], batch.views[0][i], batch.views[1][i]]
        targets += [torch.eye(3, dtype=torch.float64)[batch.labelled.targets[i // 2]], guess, guess]
    draw = method.rng(progress.step)
    order, shares = torch.randperm(24, generator=draw).tolist(), beta_shares(24, 0.75, draw).tolist()
    assert len(set(shares)) == 24  # one for each image
    mixed = [shares[r] * rows[r] + (1 - shares[r]) * rows[order[r]] for r in range(24)]
    mixed_targets = [shares[r] * targets[r] + (1 - shares[r]) * targets[order[r]] for r in range(24)]
    parts = [[mixed[3 * i + part] for i in range(8)] for part in range(3)]
    for i in range(8):
        parts[0][i], parts[i % 3][i] = parts[i % 3][i], parts[0][i]
    return [torch.stack(part) for part in parts], [[mixed_targets[3 * i + part] for i in range(8)] for part in range(3)]


def test_loss_and_gradients_are_the_papers():
    method = ready("method.weight=7")
    learning = list(network(method).parameters())
    passes, targets = parts_of(method, LATE)
    result = method(batch_of(method), LATE)
    found = torch.autograd.grad(result.loss, learning)
    logits = [list(network(method)(part)) for part in passes]
    labelled, difference = torch.zeros(()), torch.zeros(())
    for i in range(8):
        logits[0][i], logits[i % 3][i] = logits[i % 3][i], logits[0][i]
        for part in range(3):
            p, q = logits[part][i].exp() / logits[part][i].exp().sum(), targets[part][i]
            if part == 0:
                labelled = labelled - (q * p.log()).sum() / 8
            else:
                difference = difference + ((p - q) ** 2).sum() / (16 * 3)
    expected = labelled + 7 * difference
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(found, torch.autograd.grad(expected, learning), rtol=1e-7, atol=1e-9)


def test_the_weight_rises_linearly():
    method = ready("method.weight=7")
    found = []
    for steps in (10, 20, 40):  # the same draws of step 2, at other points of the ramp
        result = method(batch_of(method), Progress(step=2, steps=steps, epoch=0, epochs=1))
        found.append((result.loss.item(), torch.as_tensor(result.metrics["consistency"]).item()))
    (half, consistency), (quarter, _), (eighth, _) = found
    assert half - quarter == pytest.approx(7 * consistency / 4)
    assert quarter - eighth == pytest.approx(7 * consistency / 8)


def test_one_pass_updates_running_statistics_and_has_a_share_of_all_parts():
    method = ready()
    batch, alone = batch_of(method), copy.deepcopy(method)
    passes, _ = parts_of(copy.deepcopy(method), LATE)
    method(batch, LATE).loss.backward()
    alone.encoder(passes[0])
    torch.testing.assert_close(dict(method.encoder.named_buffers()), dict(alone.encoder.named_buffers()))


def test_it_is_judged_by_its_average():
    method = ready("method.momentum=0.9").eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    averaged = method.get_parameter("average.1.weight")
    before, weight = method.classify(images), averaged.clone()
    with torch.no_grad():
        method.get_parameter("classifier.weight").add_(0.3)
    torch.testing.assert_close(method.classify(images), before)
    method.after_step(LATE)
    expected = 0.9 * weight + 0.1 * method.get_parameter("classifier.weight")
    torch.testing.assert_close(averaged, expected)
