"""Two workers compute what one process computes on the whole batch: values and gradients, asymmetric data."""

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from eagleray.blocks import distributed
from eagleray.blocks.distributed import (
    SynchronisedBatchNorm,
    SynchronisedBatchNormAct,
    all_reduce_mean,
    all_reduce_sum,
    broadcast,
    gather,
    synchronise_batch_norm,
)
from eagleray.contracts.errors import ConfigError
from eagleray.runs.processes import two_processes

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def whole_batch() -> Tensor:
    """[6, 3], the second half unlike the first: other place, other spread."""
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[3:] = x[3:] * 5 + torch.tensor([7.0, -2.0, 0.5])
    return x


def own_part(x: Tensor) -> Tensor:
    return x.chunk(distributed.world_size())[distributed.rank()].clone()


def gathered_loss(x: Tensor) -> Tensor:
    """Each local anchor against every sample: an asymmetric function of (local, all)."""
    everything = gather(x)
    return (x @ everything.T).exp().div(1e3).log1p().sum(1).mean()


def moments_loss(x: Tensor) -> Tensor:
    """A function of global sums only."""
    mean = all_reduce_mean(x.mean(0))
    second = all_reduce_sum(x.square().sum(0))
    return (mean.pow(3) * second.sqrt()).sum()


def loss_and_gradient(loss_of, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over workers of the loss, and the gradient of this mean, each worker its own rows."""
    x = x.requires_grad_()
    loss = loss_of(x)
    loss.backward()
    assert x.grad is not None
    return all_reduce_mean(loss.detach()), x.grad / distributed.world_size()


def operations() -> dict[str, object]:
    x = own_part(whole_batch())
    other = torch.full((2,), float(distributed.rank() + 1))
    reduced = all_reduce_sum(other)
    return {
        "identity": (distributed.rank(), distributed.world_size()),
        "gather": gather(x),
        "labels": gather(torch.arange(3) + 3 * distributed.rank()),
        "strided": gather(x.T.contiguous().T),
        "kept": other,
        "sum": reduced,
        "broadcast": broadcast(other, source=1),
        "gathered_loss": loss_and_gradient(gathered_loss, x),
        "moments_loss": loss_and_gradient(moments_loss, own_part(whole_batch())),
    }


def everything() -> dict[str, object]:
    settings = [two_steps(0.1, True), two_steps(None, False)]
    return operations() | {"batch_norm": settings, "low_precision": low_precision()}


@pytest.fixture(scope="module")
def both() -> list[dict]:
    return two_processes(everything)  # once: a process spends seconds on importing torch


def test_ranks_and_world_size(both):
    assert [result["identity"] for result in both] == [(0, 2), (1, 2)]


def test_gather_joins_in_the_order_of_ranks(both):
    for result in both:
        assert torch.equal(result["gather"], whole_batch())
        assert torch.equal(result["strided"], whole_batch())
        assert torch.equal(result["labels"], torch.arange(6))


def test_reduce_and_broadcast_leave_their_input_alone(both):
    for rank, result in enumerate(both):
        assert torch.equal(result["kept"], torch.full((2,), rank + 1.0))
        assert torch.equal(result["sum"], torch.full((2,), 3.0))
        assert torch.equal(result["broadcast"], torch.full((2,), 2.0))


@pytest.mark.parametrize("loss_of", [gathered_loss, moments_loss])
def test_gradients_are_those_of_one_process(both, loss_of):
    loss, gradient = loss_and_gradient(loss_of, whole_batch())
    for result in both:
        torch.testing.assert_close(result[loss_of.__name__][0], loss, **CLOSE)
    joined = torch.cat([result[loss_of.__name__][1] for result in both])
    torch.testing.assert_close(joined, gradient, **CLOSE)


def test_everything_is_the_identity_without_a_group():
    x = torch.randn(3, 2)
    distributed.barrier()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    for operation in (gather, all_reduce_sum, all_reduce_mean, broadcast):
        assert operation(x) is x


def network(momentum: float | None, affine: bool) -> nn.Module:
    torch.manual_seed(0)
    norms = {"momentum": momentum, "affine": affine}
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, **norms),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        BatchNormAct2d(4, **norms, act_layer=nn.SiLU),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5, **norms),
    ).double()


def images() -> Tensor:
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.cat([x[:4], x[4:] * 3 + 1])


def two_steps(momentum: float | None, affine: bool) -> dict[str, object]:
    """Two training passes: output, gradients (averaged as DDP does), running statistics; then evaluation."""
    net = synchronise_batch_norm(network(momentum, affine))
    x = own_part(images()).requires_grad_()
    for _ in range(2):
        output = net(x)
        output.pow(3).mean(1).sum().div(len(x)).backward()
    gradients = {name: all_reduce_mean(p.grad) for name, p in net.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {
        "output": output.detach(),
        "gradient": x.grad / distributed.world_size(),
        "weights": gradients,
        "state": dict(net.state_dict()),
        "evaluated": net.eval()(x).detach(),
    }


def test_batch_norm_of_two_workers_is_that_of_one(both):
    plain = [two_steps(0.1, True), two_steps(None, False)]
    for left, right, whole in zip(both[0]["batch_norm"], both[1]["batch_norm"], plain, strict=True):
        for part in ("output", "gradient", "evaluated"):
            torch.testing.assert_close(torch.cat([left[part], right[part]]), whole[part], **CLOSE)
        for part in ("weights", "state"):
            torch.testing.assert_close(left[part], whole[part], **CLOSE)
            torch.testing.assert_close(right[part], whole[part], **CLOSE)


def low_precision() -> tuple[Tensor, Tensor, Tensor]:
    norm = synchronise_batch_norm(nn.BatchNorm1d(3)).train()
    x = own_part(whole_batch()).bfloat16().requires_grad_()
    output = norm(x)
    (output.float().pow(3).sum() / len(output)).backward()
    return output.detach(), norm.running_mean, x.grad / distributed.world_size()


def test_batch_norm_keeps_fp32_statistics_of_bf16(both):
    (left, mean, of_left), (right, _, of_right) = both[0]["low_precision"], both[1]["low_precision"]
    x = whole_batch().bfloat16().float().requires_grad_()
    norm = nn.BatchNorm1d(3).train()
    expected = norm(x)
    (expected.pow(3).sum() / len(x)).backward()
    assert left.dtype == of_left.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([left, right]).float(), expected, rtol=1e-2, atol=1e-2)
    scale = x.grad.abs().max()
    torch.testing.assert_close(torch.cat([of_left, of_right]).float() / scale, x.grad / scale, rtol=0, atol=2e-2)
    torch.testing.assert_close(mean, norm.running_mean)


def test_synchronising_keeps_names_parameters_and_the_plain_result():
    plain = network(0.1, True)
    net = copy.deepcopy(plain)
    parameters = list(net.parameters())
    synchronised = synchronise_batch_norm(net)
    kinds = [SynchronisedBatchNorm, SynchronisedBatchNormAct, SynchronisedBatchNorm]
    assert [type(part) for part in synchronised if list(part.buffers())] == kinds
    assert all(p is q for p, q in zip(parameters, synchronised.parameters(), strict=True))
    assert list(plain.state_dict()) == list(synchronised.state_dict())
    plain.load_state_dict(synchronised.state_dict())
    assert torch.equal(plain(images()), synchronised(images()))


def test_a_batch_norm_of_another_kind_is_refused():
    class Own(nn.BatchNorm1d):
        pass

    with pytest.raises(ConfigError, match="the batch norm Own cannot be shared by several workers; set workers=1"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(2), Own(2)))


def fails_on_one() -> None:
    if distributed.rank() == 1:
        raise RuntimeError("the second is broken")
    distributed.barrier()


def test_a_failing_process_is_shown():
    with pytest.raises(RuntimeError, match="the second is broken"):
        two_processes(fails_on_one)


def waits() -> None:
    import time

    time.sleep(60)


def test_processes_that_hang_are_stopped():
    with pytest.raises(RuntimeError, match="the time was up"):
        two_processes(waits, timeout=0.5)
