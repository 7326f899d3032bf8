"""ReMixMatch against its algorithm, written row by row."""

import copy

import pytest
import torch
from torch import Tensor, nn

from eagleray.blocks.rotations import rotated
from eagleray.blocks.semi_supervised import beta_shares
from eagleray.contracts.batch import EpochView, Progress
from eagleray.contracts.method import Method
from eagleray_methods.remixmatch import aligned
from method_cases import batch_of, small

SMALL = ["method.strong_views=2"]
LATE = Progress(step=8, steps=10, epoch=0, epochs=1)  # past the ramp
KNOWN = torch.tensor([0, 1, 1, 2])


def ready(*settings: str) -> Method:
    method = small("remixmatch", "method.ramp=0.4", *settings)
    with torch.no_grad():
        for number, p in enumerate(method.parameters()):
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(number)))
    method.before_epoch(EpochView(lambda: KNOWN, (KNOWN, KNOWN), LATE))
    return method


def network(method: Method) -> nn.Module:
    return nn.Sequential(method.encoder, method.get_submodule("classifier"))


def extra_pass(method: Method) -> tuple[Tensor, Tensor]:
    """Return features of the weak, the first strong and the rotated view, and each image's number of turns."""
    weak, strong, _ = batch_of(method).views
    turned = []
    for i in range(8):
        image = strong[i]
        for _ in range(i % 4):
            image = image.transpose(1, 2).flip(1)  # a right angle, counterclockwise
        turned.append(image)
    return method.encoder(torch.cat([weak, strong, torch.stack(turned)])), torch.arange(8) % 4


def guesses_of(method: Method, logits: Tensor) -> list[Tensor]:
    """Align, then sharpen, image by image."""
    predicted, known = method.get_buffer("predicted"), [0.25, 0.5, 0.25]
    found = []
    for z in logits.detach():
        p = [float(each) for each in z.exp() / z.exp().sum()]
        p = [p[k] * (known[k] + 1e-6) / (sum(float(row[k]) for row in predicted) / 128 + 1e-6) for k in range(3)]
        p = [(each / sum(p)) ** 2 for each in p]
        found.append(torch.tensor([each / sum(p) for each in p], dtype=torch.float64))
    return found


def mixture(method: Method, guesses: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return what the encoder sees in each of four passes, and the mixed targets of the four parts."""
    batch = batch_of(method)
    assert batch.labelled is not None
    rows, targets = [], []
    for i in range(8):  # four labelled images for eight others: each twice
        rows += [batch.labelled.views[0][i // 2], *(view[i] for view in batch.views)]
        targets += [torch.eye(3, dtype=torch.float64)[KNOWN[i // 2]], guesses[i], guesses[i], guesses[i]]
    draw = method.rng(LATE.step)
    order, shares = torch.randperm(32, generator=draw).tolist(), beta_shares(32, 0.75, draw).tolist()
    mixed = [shares[r] * rows[r] + (1 - shares[r]) * rows[order[r]] for r in range(32)]
    mixed_targets = [shares[r] * targets[r] + (1 - shares[r]) * targets[order[r]] for r in range(32)]
    parts = [[mixed[4 * i + part] for i in range(8)] for part in range(4)]
    for i in range(8):
        parts[0][i], parts[i % 4][i] = parts[i % 4][i], parts[0][i]
    return [torch.stack(part) for part in parts], [[mixed_targets[4 * i + part] for i in range(8)] for part in range(4)]


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * (logits.exp() / logits.exp().sum()).log()).sum()


def test_loss_and_gradients_are_the_papers():
    method = ready("method.weight=0.7", "method.mixed=1.1", "method.anchor=0.4", "method.rotation=0.3")
    generator = torch.Generator().manual_seed(9)
    method.get_buffer("predicted").copy_(torch.rand(128, 3, generator=generator, dtype=torch.float64) * 0.3)
    heads = method.get_submodule("classifier"), method.get_submodule("rotation_classifier")
    learning = [*method.encoder.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    features, turns = extra_pass(method)
    guesses = guesses_of(method, heads[0](features[:8]))
    anchored, turned = heads[0](features[8:16]), heads[1](features[16:])
    result = method(batch_of(method), LATE)
    found = torch.autograd.grad(result.loss, learning)

    passes, targets = mixture(method, guesses)
    logits = [list(network(method)(part)) for part in passes]
    labelled, mixed, anchor, rotation = (torch.zeros((), dtype=torch.float64) for _ in range(4))
    for i in range(8):
        logits[0][i], logits[i % 4][i] = logits[i % 4][i], logits[0][i]
        labelled = labelled + cross_entropy(targets[0][i], logits[0][i]) / 8
        anchor = anchor + cross_entropy(guesses[i], anchored[i]) / 8
        rotation = rotation + cross_entropy(torch.eye(4, dtype=torch.float64)[turns[i]], turned[i]) / 8
        for part in range(1, 4):
            mixed = mixed + cross_entropy(targets[part][i], logits[part][i]) / 24
    expected = labelled + 0.7 * (1.1 * mixed + 0.4 * anchor + 0.3 * rotation)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(found, torch.autograd.grad(expected, learning), rtol=1e-7, atol=1e-9)
    first = method(batch_of(method), Progress(step=0, steps=10, epoch=0, epochs=1))  # a ramp of 0: rotations alone
    without = ready("method.weight=0")(batch_of(method), Progress(step=0, steps=10, epoch=0, epochs=1))
    assert first.loss.item() - without.loss.item() > 0.7 * 0.3 * 0.5 * rotation.item()


def test_predictions_of_the_last_128_batches_are_kept():
    method = ready()
    before = method.get_buffer("predicted").clone()
    torch.testing.assert_close(before, torch.full((128, 3), 1 / 3, dtype=torch.float64))
    features, _ = extra_pass(method)
    expected = method.get_submodule("classifier")(features[:8]).softmax(1).mean(0).detach()
    for step in (5, 130):
        method(batch_of(method), Progress(step=step, steps=1000, epoch=0, epochs=1))
    after = method.get_buffer("predicted")
    torch.testing.assert_close(after[[5, 2]], torch.stack([expected, expected]))
    others = [row for row in range(128) if row not in (2, 5)]
    assert torch.equal(after[others], before[others])


def test_alignment_brings_predicted_to_wanted_frequencies():
    wanted, predicted = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.8, 0.1, 0.1])
    torch.testing.assert_close(aligned(predicted[None], wanted, predicted), wanted[None], rtol=1e-4, atol=1e-4)
    certain = aligned(torch.tensor([[1.0, 0.0, 0.0]]), wanted, predicted)
    torch.testing.assert_close(certain, torch.tensor([[1.0, 0.0, 0.0]]))
    gone = aligned(torch.tensor([[0.5, 0.5, 0.0]]), wanted, torch.tensor([1.0, 0.0, 0.0]))
    assert gone.isfinite().all()


def test_images_are_rotated_by_their_own_turns():
    images = torch.arange(16.0).view(4, 1, 2, 2)
    turned = rotated(images, torch.tensor([0, 1, 2, 3]))
    expected = [[[0, 1], [2, 3]], [[5, 7], [4, 6]], [[11, 10], [9, 8]], [[14, 12], [15, 13]]]
    assert turned[:, 0].tolist() == expected


def test_labelled_images_are_seen_in_a_strong_view_and_the_paper_has_eight():
    method = ready()
    assert method.labelled_views == method.views[1:2]
    assert method.labelled_views[0].randaugment
    assert not method.views[0].randaugment
    assert len(small("remixmatch", "recipe=paper", "method.strong_views=8").views) == 9


def test_one_interleaved_pass_updates_running_statistics():
    method = ready()
    alone, other = copy.deepcopy(method), copy.deepcopy(method)
    features, _ = extra_pass(other)
    passes, _ = mixture(other, guesses_of(other, other.get_submodule("classifier")(features[:8])))
    method(batch_of(method), LATE).loss.backward()
    alone.encoder(passes[0])
    torch.testing.assert_close(dict(method.encoder.named_buffers()), dict(alone.encoder.named_buffers()))
