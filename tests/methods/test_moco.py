"""MoCo v1 and v2 against their formula, and what keeps batch norm from giving the keys away."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray_methods.moco import check_groups, in_groups
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.queue=112", "method.groups=2"]


def equation_one(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The loss as MoCo's equation 1 has it, query by query; the sum runs over one positive and K negatives."""
    q, k, n = (F.normalize(x, dim=1) for x in (queries, keys, negatives))
    loss = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        positive = (q[i] @ k[i] / temperature).exp()
        loss = loss - (positive / (positive + (n @ q[i] / temperature).exp().sum())).log()
    return loss / len(q)


@pytest.mark.parametrize(("version", "temperature"), [(1, 0.07), (2, 0.2)])
def test_moco_is_equation_one_and_its_keys_come_from_random_groups(version: int, temperature: float):
    method = small("moco", f"method.version={version}").train()
    before, batch = copy.deepcopy(method), batch_of(method)
    result = method(batch, NOW)
    queries, keys = result.embeddings
    order = torch.randperm(8, generator=method.rng(NOW.step)).tolist()
    for place, image in enumerate(order):
        group = [other for at, other in enumerate(order) if at % 2 == place % 2]
        made = before.teacher(batch.views[1][group])[group.index(image)]
        torch.testing.assert_close(keys[image], made)
    for image in range(8):
        group = list(range(image % 2, 8, 2))
        made = before.projector(before.encoder(batch.views[0][group]))[group.index(image)]
        torch.testing.assert_close(queries[image], made.detach())
    torch.testing.assert_close(result.loss.detach(), equation_one(queries, keys, before.queue.rows, temperature))
    # Only then the keys replace the oldest.
    torch.testing.assert_close(method.queue.rows[:8], F.normalize(keys, dim=1))
    assert torch.equal(method.queue.rows[8:], before.queue.rows[8:])
    assert method.queue.filled == 8


def test_every_step_draws_other_groups():
    method, progress = small("moco"), Progress(step=4, steps=10, epoch=0, epochs=1)
    batch = batch_of(method)
    keys = [copy.deepcopy(method).train()(batch, now).embeddings[1] for now in (NOW, NOW, progress)]
    assert torch.equal(keys[0], keys[1])
    assert not torch.allclose(keys[0], keys[2])


class BatchMean(nn.Module):
    """What a batch norm that leaks tells of the others in its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).expand_as(x)


def test_a_group_sees_itself_alone_and_the_order_stays():
    images = torch.arange(12.0).reshape(6, 2)
    means = in_groups(BatchMean(), images, 3)
    for i in range(6):
        torch.testing.assert_close(means[i], (images[i % 3] + images[i % 3 + 3]) / 2)
    assert torch.equal(in_groups(nn.Identity(), images, 3), images)


def test_the_teacher_follows_encoder_and_projector_and_gets_no_gradient():
    method = small("moco").train()
    method(batch_of(method), NOW).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    before = [p.clone() for p in method.teacher.parameters()]
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in student:
            p.add_(1.0)
    method.after_step(NOW)
    for after, old, online in zip(method.teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(after.data, 0.99 * old + 0.01 * online.data)


def test_head_temperature_and_views_follow_the_version():
    one, two = (small("moco", f"method.version={version}") for version in (1, 2))
    assert [type(layer) for layer in one.projector] == [nn.Linear]
    assert [type(layer) for layer in two.projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [view.jitter_scale[3] for view in (*one.views, *two.views)] == [0.4, 0.4, 0.1, 0.1]
    assert [view.jitter_probability for view in (one.views[0], two.views[0])] == [1.0, 0.8]
    assert small("moco", "method.temperature=0.3").temperature == 0.3


@pytest.mark.parametrize(("groups", "batch_size", "near"), [(5, 8, 4), (8, 8, 4), (3, 128, 2), (200, 256, 128)])
def test_groups_that_are_unequal_or_of_one_image_are_refused(groups: int, batch_size: int, near: int):
    with pytest.raises(ConfigError, match=rf"method\.groups={groups} .* batch_size={batch_size} .*: take {near}$"):
        check_groups(groups, batch_size, workers=1)
    check_groups(near, batch_size, workers=1)


def test_groups_are_of_what_each_worker_has():
    check_groups(8, 64, workers=8)
    with pytest.raises(ConfigError, match=r"method\.groups=8 must divide the 4 images that a worker has .*: take 4$"):
        check_groups(8, 64, workers=16)


def test_a_queue_of_broken_batches_is_refused():
    with pytest.raises(ConfigError, match=r"method\.queue=100 must hold whole batches"):
        small("moco", "method.queue=100")
