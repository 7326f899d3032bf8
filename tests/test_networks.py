"""Parts that methods share."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eagleray import distributed
from eagleray.errors import Refusal
from eagleray.networks import Queue, check_queue, mlp
from two_processes import two_processes


def pushed() -> torch.Tensor:
    """What a queue of six holds after four pushes of two rows, made by one process or by two."""
    torch.manual_seed(0)
    queue = Queue(6, 3)
    for step in range(4):
        rows = torch.full((2, 3), float(step)) + torch.tensor([[0.0], [0.5]])
        queue.push(rows.chunk(distributed.world_size())[distributed.rank()])
    return queue.rows


def test_a_queue_keeps_the_newest_rows_of_all_workers_in_their_order():
    alone = pushed()
    assert alone[:, 0].tolist() == [3.0, 3.5, 1.0, 1.5, 2.0, 2.5]  # the oldest were overwritten
    for together in two_processes(pushed):
        assert torch.equal(together, alone)


def test_a_queue_starts_with_random_directions_and_says_what_is_real():
    queue = Queue(4, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(4))
    assert queue.filled == 0
    for filled in (2, 4, 4):
        queue.push(torch.ones(2, 8))
        assert queue.filled == filled
    other = Queue(4, 8)
    other.load_state_dict(queue.state_dict())  # all of it is in a checkpoint
    assert other.filled == 4
    assert torch.equal(other.rows, queue.rows)


@pytest.mark.parametrize(("size", "near"), [(100, 128), (200, 256), (10, 128)])
def test_a_queue_that_cannot_take_whole_batches_is_refused(size: int, near: int):
    with pytest.raises(Refusal, match=rf"method\.queue={size} must hold whole batches of batch_size=128: take {near}"):
        check_queue(size, 128)
    check_queue(near, 128)


def test_mlp_layers_are_what_is_asked_for():
    plain = mlp([4, 5, 6], norm=False, activation=nn.GELU)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.GELU, nn.Linear]
    x = torch.randn(7, 4)
    torch.testing.assert_close(plain(x), plain[2](F.gelu(plain[0](x))))
    head = mlp([4, 5, 6], last_norm=True, last_affine=False)
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert head[0].bias is None  # the norm that follows has one
    assert head[3].bias is None
    assert head[4].weight is None
    assert mlp([4, 5, 6])[3].bias is not None
    assert mlp([4, 5, 6], last_bias=False)[3].bias is None
