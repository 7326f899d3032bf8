"""SwAV against lightly's loss, its queue and its prototypes, and what cannot work."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks import distributed
from eagleray.blocks.losses import cross_view_loss
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.processes import two_processes
from eagleray_methods.swav import SwAV, sinkhorn
from method_cases import NOW, batch_of, small

# 56: whole batches of the 8 and of the 56 images that the tests of all methods take.
SMALL = [
    "method.hidden=16", "method.projection=8", "method.prototypes=6", "method.queue=56", "method.local_size=4",
    "method.queue_after=0.2", "method.frozen_epochs=0.2", "method.epsilon=0.05",
]  # fmt: skip


def made(*settings: str) -> SwAV:
    method = small("swav", *settings).train()
    assert isinstance(method, SwAV)
    return method


def scores_of(seed: int, count: int, prototypes: int) -> Tensor:
    """Cosines, the later images near the first prototype."""
    scores = torch.rand(count, prototypes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
    scores[count // 2 :, 0] += 0.5
    return scores


def test_codes_are_lightlys_and_more_iterations_fill_all_prototypes_alike():
    from lightly.loss.swav_loss import sinkhorn as lightlys

    scores = scores_of(0, 12, 5)
    for iterations in (1, 3):
        theirs = lightlys(scores, iterations=iterations, epsilon=0.05)
        torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), theirs, rtol=1e-5, atol=1e-10)
    codes = sinkhorn(scores, 0.1, 500)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64))
    assert float(scores.argmax(1).bincount().max()) > 5  # which the scores alone do not


def test_codes_depend_on_neither_a_common_shift_nor_the_order_of_prototypes():
    scores, order = scores_of(1, 10, 4), torch.tensor([2, 0, 3, 1])
    codes = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(sinkhorn(scores + 0.3, 0.05, 3), codes)
    torch.testing.assert_close(sinkhorn(scores[:, order], 0.05, 3), codes[:, order])


@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_step_is_lightlys_loss_with_multi_crop_and_a_full_queue(local_crops: int):
    from lightly.loss import SwaVLoss

    method = made(f"method.local_crops={local_crops}", "method.queue=8")
    batch = batch_of(method)
    assert [view.shape[-1] for view in batch.views] == [8, 8] + [4] * local_crops
    first = method(batch, NOW).embeddings  # fills the queue
    method.projector[0].weight.data.mul_(-1.1)  # so that the queue and the batch differ
    crops, n = len(batch.views), len(batch.views[0])
    features = [method.encoder(torch.cat(batch.views[:2]))]
    features += [method.encoder(torch.cat(batch.views[2:]))] if local_crops else []
    z = F.normalize(method.projector(torch.cat(features)), dim=1)
    scores = list((z @ method.prototypes.weight.T).split(n))
    queued = [kept @ method.prototypes.weight.T for kept in first[:2]]
    reference = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    expected = reference(scores[:2], scores[2:], queued)
    result = method(batch, NOW)
    torch.testing.assert_close(result.loss, expected.squeeze(), rtol=1e-5, atol=1e-8)
    alone = reference(scores[:2], scores[2:])
    assert abs(float(alone.detach() - result.loss.detach())) > 1e-3  # the queue matters
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert len(result.embeddings) == crops
    for queue, kept in zip(method.queues, result.embeddings[:2], strict=True):
        torch.testing.assert_close(queue.rows, kept)  # the newest batch has replaced the oldest


def step_with_a_full_queue() -> list[Tensor]:
    """Loss and gradients of a step whose codes use the queue."""
    method = made("method.queue=16")
    for queue in method.queues:
        queue.rows.copy_(F.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(5)).double(), dim=1))
        queue.count = 16
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
    stepper = distributed.data_parallel(method)  # it must live until the backward pass
    loss = stepper(batch_of(method), NOW).loss
    loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return [distributed.all_reduce_mean(loss.detach()), *gradients, method.queues[1].rows]


@pytest.mark.slow
def test_two_workers_share_the_queue_between_them():
    alone = step_with_a_full_queue()
    for together in two_processes(step_with_a_full_queue):
        torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_the_queue_starts_late_and_counts_once_it_is_full():
    method = made("method.queue=16", "method.queue_after=2")
    batch = batch_of(method)
    without = made("method.queue=16", "method.queue_after=99")
    for step, filled in ((0, 0), (19, 0), (20, 8), (21, 16), (22, 16)):
        now = Progress(step=step, steps=30, epoch=step // 10, epochs=3)
        for queue in method.queues:
            queue.rows.neg_()  # the same batch once more would change no code
        with torch.no_grad():
            same = torch.equal(method(batch, now).loss, without(batch, now).loss)
        assert [queue.filled for queue in method.queues] == [filled, filled]
        assert same == (step < 22)


def test_prototypes_have_length_one_and_are_frozen_at_first():
    method = made("method.frozen_epochs=1")
    one = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), one)
    for step, moves in ((9, False), (10, True)):
        now = Progress(step=step, steps=20, epoch=step // 10, epochs=2)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
        before = method.prototypes.weight.clone()
        method(batch_of(method), now).loss.backward()
        assert method.prototypes.weight.grad is not None  # DistributedDataParallel waits for it
        method.before_step(now)
        optimizer.step()
        method.after_step(now)
        assert torch.allclose(before, method.prototypes.weight, rtol=0, atol=1e-6) != moves
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), one)


def test_codes_have_all_digits_inside_bf16_autocast(monkeypatch: pytest.MonkeyPatch):
    method = small("swav").float().train()
    batch = batch_of(method)
    batch.views[:] = [view.float() for view in batch.views]
    seen: list[Tensor] = []

    def loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
        seen.extend([targets, logits])
        return cross_view_loss(targets, logits, temperature)

    monkeypatch.setattr("eagleray_methods.swav.cross_view_loss", loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert method(batch, NOW).loss.dtype == torch.float32
    codes, scores = seen
    torch.testing.assert_close(codes[0], sinkhorn(scores[0], 0.05, 3), rtol=1e-6, atol=1e-6)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method.queue=12"], r"method\.queue=12 must hold whole batches of batch_size=8: take 16"),
        (
            ["method.queue=0", "method.prototypes=9"],
            r"method\.prototypes=9 cannot be filled equally by the batch and the queue: take 8 at most",
        ),
        (["method.local_size=16"], r"method\.local_size=16 is larger than the images of 8 pixels: take 4$"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        small("swav", *settings)
